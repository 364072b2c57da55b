/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* hotplug: memory that comes while the guest runs under a pager, and goes again. */
#include "small.h"

#define BYTES (4 * MIB)

static uint64_t content[2 * BYTES / 8]; /* what the image has: the guest's own pattern */

static struct kvmem_region *ram_new(struct kvmem_vm *vm)
{
	struct kvmem_region_opts o = { .size = sizeof(o),
				       .bytes = BYTES,
				       .needs = KVMEM_WANT_PAGING };
	struct kvmem_region *ram;

	must(kvmem_region_create(vm, &o, &ram), "kvmem_region_create");
	return ram;
}

int main(void)
{
	struct kvmem_pager_opts po = { .size = sizeof(po), .flags = KVMEM_PAGER_BACKGROUND };
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram = ram_new(vm), *more = ram_new(vm);
	struct kvmem_source *image;
	struct kvmem_pager *pager;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;
	uint64_t wrong;
	uint32_t slot;

	for (uint64_t at = 0; at < 2 * BYTES; at += BASE_PAGE)
		content[at / 8] = guest_pattern(GUEST_SEED, GPA + at);
	must(kvmem_source_memory(content, sizeof(content), &image), "image");
	must(kvmem_pager_create(&po, &pager), "pager");
	must(kvmem_pager_add(pager, ram, image, 0, 0), "kvmem_pager_add");
	must(kvmem_region_attach(ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), 2 * BYTES, &vmm);
	must(kvmem_pager_start(pager), "start");
	wrong = small_run(vcpu, GUEST_VERIFY, GPA, BYTES);

	/* Plugged in: the pager first, then the slot, so that the guest never sees a page that is not there. */
	must(kvmem_pager_add(pager, more, image, BYTES, 0), "kvmem_pager_add");
	must(kvmem_region_attach(more, 0, BYTES, GPA + BYTES, KVMEM_SLOT_ANY, 0, &slot), "slot");
	wrong += small_run(vcpu, GUEST_VERIFY, GPA, 2 * BYTES);

	/* Unplugged: the other way round. What is missing of it nobody needs any more. */
	must(kvmem_region_detach(more, slot), "detach");
	must(kvmem_pager_remove(pager, more, KVMEM_STOP_HAND_BACK), "kvmem_pager_remove");
	must(kvmem_region_free(more), "free");
	wrong += small_run(vcpu, GUEST_VERIFY, GPA, BYTES);

	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL), "stop");
	must(kvmem_pager_free(pager), "free");
	vmm_destroy(vmm);
	printf("%llu pages were not as in the image\n", (unsigned long long)wrong);
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS; /* the kernel frees what is left */
}
