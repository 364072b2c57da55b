// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "free_pages.h"

#include <sys/mman.h>

#include <kvmem/kvmem.h>

#include "bench.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define PAGE   UINT64_C(4096)
#define KEPT   (16 * PAGE) /* a page of so many bytes: nothing free is larger than half of them */
#define SETTLE 2u	   /* other small pieces than these have not been touched for long */

static struct kvmem_region *make(struct kvmem_vm *vm, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *region;

	o.bytes = bytes;
	o.backing = vm ? KVMEM_BACKING_GUEST_MEMFD : KVMEM_BACKING_MEMFD;
	bench_check(!kvmem_region_create(vm, &o, &region), "region: %s", kvmem_error_detail());
	bench_check(!madvise(kvmem_region_base(region), bytes, MADV_POPULATE_WRITE),
		    "MADV_POPULATE_WRITE");
	return region;
}

void free_pages_have(uint32_t backing, uint64_t bytes)
{
	static uint64_t have[2]; /* pages that the kernel may move come from places of their own */
	bool moves = backing != KVMEM_BACKING_GUEST_MEMFD;
	struct kvmem_vm *vm = NULL;
	struct kvmem_region *region;
	uint64_t more;

	bytes += bytes / 8;
	if (bytes <= have[moves])
		return;
	more = (bytes - have[moves] + KEPT - 1) / KEPT * KEPT;
	bench_check(moves || !kvmem_vm_create(NULL, &vm), "VM: %s", kvmem_error_detail());
	region = make(vm, more); /* until the program ends, and the VM with it */
	for (uint64_t at = 0; at < more; at += KEPT)
		bench_check(!kvmem_region_discard(region, at + PAGE, KEPT - PAGE), "discard: %s",
			    kvmem_error_detail());
	have[moves] += more;
	for (unsigned int i = 0; i < SETTLE; i++)
		kvmem_region_free(make(vm, have[moves]));
}
