/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* readers: two readers of one log. A migration sends all of it, a display looks at its frame buffer alone. */
#include "small.h"

#define RAM   (8 * MIB)
#define FRAME (1 * MIB)

/* Harvest, commit, and only then read; returns the pages. */
static int64_t follow(struct kvmem_dirty *dirty, struct kvmem_reader *reader, const char *who)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;
	int64_t pages = must(kvmem_reader_harvest(reader, &batch), "harvest");

	must(kvmem_dirty_commit(dirty, batch), "commit");
	while (must(kvmem_batch_next(batch, &run), "next"))
		printf("%s: page %u, %u pages\n", who, (unsigned int)(run.offset / BASE_PAGE),
		       (unsigned int)(run.bytes / BASE_PAGE));
	kvmem_batch_free(batch);
	return pages;
}

int main(void)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = RAM, .needs = KVMEM_WANT_DIRTY };
	struct kvmem_reader_opts ro = { .size = sizeof(ro), .region_count = 1 };
	struct kvmem_vm *vm = small_vm();
	struct kvmem_reader *migration, *display;
	struct kvmem_region *ram, *frame;
	struct kvmem_dirty *dirty;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;
	bool right;

	must(kvmem_dirty_create(vm, NULL, &dirty), "tracker");
	must(kvmem_region_create(vm, &o, &ram), "RAM");
	o.bytes = FRAME;
	must(kvmem_region_create(vm, &o, &frame), "frame buffer");
	must(kvmem_region_attach(ram, 0, RAM, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	must(kvmem_region_attach(frame, 0, FRAME, GPA + RAM, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), RAM + FRAME, &vmm);
	must(kvmem_dirty_add_vcpu(dirty, vmm_vcpu_fd(vcpu)), "vCPU");
	must(kvmem_dirty_reader_create(dirty, NULL, &migration), "migration");
	ro.regions = &frame;
	must(kvmem_dirty_reader_create(dirty, &ro, &display), "display");
	must(kvmem_dirty_start(dirty), "start");
	small_run(vcpu, GUEST_FILL, GPA + BASE_PAGE, 3 * BASE_PAGE);
	small_run(vcpu, GUEST_FILL, GPA + RAM, 2 * BASE_PAGE);
	right = follow(dirty, display, "display") == 2 &&
		follow(dirty, migration, "migration") == 5;
	small_run(vcpu, GUEST_FILL, GPA + RAM, BASE_PAGE);
	right &= follow(dirty, migration, "migration") == 1 &&
		 follow(dirty, display, "display") == 1;
	must(kvmem_dirty_stop(dirty), "stop");
	must(kvmem_reader_free(display), "free");
	must(kvmem_reader_free(migration), "free");
	must(kvmem_dirty_free(dirty), "free");
	vmm_destroy(vmm);
	return right ? EXIT_SUCCESS : EXIT_FAILURE; /* the kernel frees what is left */
}
