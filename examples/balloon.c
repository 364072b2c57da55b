/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* balloon: pages that the guest gives up go back to the host, and a migration does not send them. */
#include "small.h"

#define RAM   (8 * MIB)
#define FROM  (2 * MIB) /* the balloon */
#define BYTES (3 * MIB)

/* How many pages of the balloon are reported, and (ret) how many in all. */
static uint64_t in_balloon(struct kvmem_dirty *dirty, int64_t *ret)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;
	uint64_t n = 0;

	*ret = must(kvmem_dirty_harvest(dirty, &batch), "harvest");
	must(kvmem_dirty_commit(dirty, batch), "commit");
	while (must(kvmem_batch_next(batch, &run), "next"))
		for (uint64_t at = run.offset; at < run.offset + run.bytes; at += BASE_PAGE)
			n += at - FROM < BYTES;
	kvmem_batch_free(batch);
	return n;
}

int main(void)
{
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram = small_ram(vm, KVMEM_WANT_DIRTY, RAM);
	struct kvmem_dirty *dirty;
	struct vmm_vcpu *vcpu = small_tracked(vm, ram, 0, &dirty);
	int64_t all;
	bool right;

	must(kvmem_dirty_start(dirty), "start");
	small_run(vcpu, GUEST_FILL, GPA, RAM);

	/* Inflated: a discard is a change of the memory, so it comes before what forgets the changes. */
	must(kvmem_region_discard(ram, FROM, BYTES), "kvmem_region_discard");
	must(kvmem_reader_forget(kvmem_dirty_reader(dirty), ram, FROM, BYTES), "forget");
	right = !in_balloon(dirty, &all) && (uint64_t)all == (RAM - BYTES) / BASE_PAGE;
	right &= !*(uint64_t *)((char *)kvmem_region_base(ram) + FROM); /* it reads as zero */

	/* Deflated: nothing is to be done. The guest writes there again, and that is reported. */
	small_run(vcpu, GUEST_FILL, GPA + FROM, BYTES);
	right &= in_balloon(dirty, &all) == BYTES / BASE_PAGE;
	puts(right ? "the balloon was not sent" : "not as it should be");
	return right ? EXIT_SUCCESS : EXIT_FAILURE; /* the kernel frees what is left */
}
