/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* vhost_log: what a vhost-user device has written, by its log, comes with what the guest has written. */
#include "small.h"

#include <sys/mman.h>

#define RAM	  (8 * MIB)
#define VHOST_LOG 12 /* a bit is 4096 bytes, from guest address 0 on */

static uint64_t vhost_log[((GPA + RAM) >> VHOST_LOG) / 64]; /* shared with the device */

/* The device: it has mapped the region's file, writes a word, and marks the page. */
static void device_writes(char *mapping, uint64_t at)
{
	uint64_t bit = (GPA + at) >> VHOST_LOG;

	*(uint64_t *)(mapping + at) = at;
	__atomic_fetch_or(&vhost_log[bit / 64], UINT64_C(1) << bit % 64, __ATOMIC_SEQ_CST);
}

int main(void)
{
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram = small_ram(vm, KVMEM_WANT_DIRTY | KVMEM_WANT_SHARED, RAM);
	char *device = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED, kvmem_region_fd(ram), 0);
	struct kvmem_dirty *dirty;
	struct kvmem_batch *batch;
	struct kvmem_run run;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;
	int64_t pages;

	if (device == MAP_FAILED)
		must(-errno, "mmap");
	must(kvmem_dirty_create(vm, NULL, &dirty), "tracker");
	must(kvmem_region_attach(ram, 0, RAM, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), RAM, &vmm);
	must(kvmem_dirty_add_vcpu(dirty, vmm_vcpu_fd(vcpu)), "vCPU");
	must(kvmem_dirty_start(dirty), "start");
	small_run(vcpu, GUEST_FILL, GPA, 3 * BASE_PAGE);
	device_writes(device, 100 * BASE_PAGE + 8);
	device_writes(device, 2 * BASE_PAGE); /* the guest has written this page too */

	/* The bits are taken while the device goes on: it loses none. Then as without devices. */
	must(kvmem_dirty_merge_gpa(dirty, 0, 0, GPA + RAM, VHOST_LOG, vhost_log, KVMEM_MERGE_CLEAR),
	     "merge");
	pages = must(kvmem_dirty_harvest(dirty, &batch), "harvest");
	must(kvmem_dirty_commit(dirty, batch), "commit");
	while (must(kvmem_batch_next(batch, &run), "next"))
		printf("page %u, %u pages\n", (unsigned int)(run.offset / BASE_PAGE),
		       (unsigned int)(run.bytes / BASE_PAGE));
	kvmem_batch_free(batch);
	must(kvmem_dirty_stop(dirty), "stop");
	must(kvmem_dirty_free(dirty), "free");
	vmm_destroy(vmm);
	return pages == 4 ? EXIT_SUCCESS : EXIT_FAILURE; /* the kernel frees what is left */
}
