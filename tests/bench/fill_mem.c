// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "fill_mem.h"

#include <string.h>

#include "free_pages.h"

static uint32_t best_backing(void)
{
	static uint32_t best;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_vm *vm;

	if (best)
		return best;
	best = KVMEM_BACKING_MEMFD;
	if (kvmem_vm_create(NULL, &vm))
		return best;
	o.bytes = PAGE;
	o.backing = KVMEM_BACKING_GUEST_MEMFD;
	if (!kvmem_region_plan(vm, &o, &plan))
		best = KVMEM_BACKING_GUEST_MEMFD;
	kvmem_vm_free(vm);
	return best;
}

const char *memory_kind(uint32_t backing)
{
	static const char *const names[] = { "", "guest_memfd", "memfd", "hugetlb", "anonymous" };

	return names[backing ? backing : best_backing()];
}

static void make(struct memory *m, uint32_t backing, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	int r = 0;

	memset(m, 0, sizeof(*m));
	o.bytes = bytes;
	o.backing = backing ? backing : best_backing();
	if (o.backing == KVMEM_BACKING_GUEST_MEMFD)
		r = kvmem_vm_create(NULL, &m->vm);
	if (!r)
		r = kvmem_region_create(m->vm, &o, &m->region);
	bench_check(!r, "region: %s", kvmem_error_detail());
	m->base = kvmem_region_base(m->region);
	m->bytes = bytes;
}

void memory_make(struct memory *m, uint32_t backing, uint64_t bytes, uint64_t touch)
{
	backing = backing ? backing : best_backing();
	free_pages_have(backing, touch);
	make(m, backing, bytes);
}

void memory_free(struct memory *m)
{
	kvmem_region_free(m->region);
	kvmem_vm_free(m->vm);
}

double memory_fill(struct memory *m, struct kvmem_source *source,
		   const struct kvmem_populate_opts *opts, struct kvmem_populate_result *res)
{
	struct kvmem_populate_result local = KVMEM_POPULATE_RESULT_INIT;
	double start = bench_now(), took;
	int r;

	res = res ? res : &local;
	r = kvmem_populate(m->region, 0, source, opts, res);
	took = bench_now() - start;
	bench_check(!r, "populate: %s", kvmem_error_detail());
	bench_check(res->bytes_copied + res->bytes_written + res->bytes_read + res->bytes_zero +
				    res->bytes_hole ==
			    m->bytes,
		    "populate: not all bytes are accounted for");
	return took;
}
