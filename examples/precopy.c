/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* precopy: a guest's memory is sent while it runs, until little is left; then it stops for the rest. */
#include "small.h"

#define RAM    (16 * MIB)
#define ROUNDS 30
#define FEW    256 /* pages that are sent while the guest stands still */

static char *other_side; /* what a migration stream would fill */

static void send_round(struct kvmem_dirty *dirty)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;

	printf("%u pages\n", (unsigned int)must(kvmem_dirty_harvest(dirty, &batch), "harvest"));
	must(kvmem_dirty_commit(dirty, batch), "commit"); /* only then read */
	while (must(kvmem_batch_next(batch, &run), "next"))
		memcpy(other_side + run.offset, (char *)kvmem_region_base(run.region) + run.offset,
		       run.bytes);
	kvmem_batch_free(batch); /* kvmem_batch_return() where sending failed */
}

int main(void)
{
	struct kvmem_dirty_opts o = { .size = sizeof(o), .flags = KVMEM_DIRTY_FIRST_ALL };
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram = small_ram(vm, KVMEM_WANT_DIRTY, RAM);
	struct kvmem_dirty *dirty;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;
	int differ;

	other_side = calloc(1, RAM);
	must(kvmem_dirty_create(vm, &o, &dirty), "tracker");
	must(kvmem_region_attach(ram, 0, RAM, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), RAM, &vmm);
	must(kvmem_dirty_add_vcpu(dirty, vmm_vcpu_fd(vcpu)), "vCPU");
	small_run(vcpu, GUEST_FILL, GPA, RAM);
	vmm_mailbox(vcpu)->command = GUEST_SPIN; /* writes a part of it without an end */
	vmm_mailbox(vcpu)->bytes = RAM / 32;
	must_vmm(vmm_start(vcpu));
	must(kvmem_dirty_start(dirty), "start");
	for (int i = 0; i < ROUNDS; i++) {
		send_round(dirty);
		if (must(kvmem_reader_pending(kvmem_dirty_reader(dirty), NULL), "pending") <= FEW)
			break;
	}
	vmm_ask_stop(vcpu); /* every vCPU leaves KVM_RUN: the last harvest is complete */
	must_vmm(vmm_wait(vcpu));
	send_round(dirty);
	must(kvmem_dirty_stop(dirty), "stop");
	differ = memcmp(other_side, kvmem_region_base(ram), RAM);
	must(kvmem_dirty_free(dirty), "free");
	vmm_destroy(vmm);
	return differ ? EXIT_FAILURE : EXIT_SUCCESS; /* the kernel frees what is left */
}
