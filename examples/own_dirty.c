/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* own_dirty: a VMM that has its memory and its slot already learns what its guest wrote. Nothing else is asked. */
#include "small.h"

#include <sys/mman.h>

#define RAM  (8 * MIB)
#define SLOT 3

int main(void)
{
	/* What the VMM has: a VM, memory of any kind, a slot over it, a vCPU. */
	struct kvmem_vm *vm = small_vm();
	void *memory = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vmm *vmm;
	struct vmm_vcpu *vcpu = small_guest(kvmem_vm_fd(vm), RAM, &vmm);

	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = RAM, .needs = KVMEM_WANT_DIRTY };
	struct kvmem_dirty *dirty;
	struct kvmem_region *ram;
	struct kvmem_batch *batch;
	struct kvmem_run run;
	uint64_t pages = 0;

	must_vmm(vmm_set_slot(vmm, SLOT, 0, GPA, RAM, memory));

	/* What the library is told. */
	o.flags = KVMEM_REGION_MAPPING;
	o.mapping = memory;
	must(kvmem_region_create(vm, &o, &ram), "region");
	must(kvmem_region_adopt_slot(ram, 0, RAM, GPA, SLOT, 0), "slot");
	must(kvmem_dirty_create(vm, NULL, &dirty), "tracker");
	must(kvmem_dirty_add_vcpu(dirty, vmm_vcpu_fd(vcpu)), "vCPU");
	must(kvmem_dirty_start(dirty), "start");

	small_run(vcpu, GUEST_FILL, GPA + 5 * BASE_PAGE, 3 * BASE_PAGE);
	must(kvmem_dirty_harvest(dirty, &batch), "harvest");
	must(kvmem_dirty_commit(dirty, batch), "commit");
	while (must(kvmem_batch_next(batch, &run), "next")) {
		printf("written: page %u, %u pages\n", (unsigned int)(run.offset / BASE_PAGE),
		       (unsigned int)(run.bytes / BASE_PAGE));
		pages += run.bytes / BASE_PAGE;
	}
	kvmem_batch_free(batch);

	/* All is the VMM's again. */
	must(kvmem_dirty_stop(dirty), "stop");
	must(kvmem_dirty_free(dirty), "free");
	must(kvmem_region_free(ram), "free");
	vmm_destroy(vmm);
	munmap(memory, RAM);
	must(kvmem_vm_free(vm), "free");
	return pages == 3 ? EXIT_SUCCESS : EXIT_FAILURE;
}
