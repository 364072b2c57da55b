/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* grow: memory is added to a guest that runs, as a DIMM or by virtio-mem. */
#include "small.h"

#define FIRST (8 * MIB)
#define DIMM  (4 * MIB)
#define MOST  (FIRST + 4 * DIMM)

/* The next DIMM: its bytes of the region, then its slot. Nothing that was there before moves. */
static void plug(struct kvmem_region *ram)
{
	uint64_t old = kvmem_region_bytes(ram);

	must(kvmem_region_grow(ram, old + DIMM), "grow");
	must(kvmem_region_attach(ram, old, DIMM, GPA + old, KVMEM_SLOT_ANY, 0, NULL), "slot");
}

int main(void)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = FIRST, .reserve = MOST };
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;
	uint64_t wrong;
	void *base;

	must(kvmem_region_create(vm, &o, &ram), "region");
	must(kvmem_region_attach(ram, 0, FIRST, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), MOST, &vmm);
	base = kvmem_region_base(ram);
	small_run(vcpu, GUEST_FILL, GPA, FIRST);
	while (kvmem_region_bytes(ram) < MOST) {
		uint64_t old = kvmem_region_bytes(ram);

		plug(ram);
		small_run(vcpu, GUEST_FILL, GPA + old, DIMM);
		printf("%u MiB\n", (unsigned int)(kvmem_region_bytes(ram) / MIB));
	}
	wrong = small_run(vcpu, GUEST_VERIFY, GPA, MOST);
	wrong += base != kvmem_region_base(ram);
	vmm_destroy(vmm);
	must(kvmem_region_free(ram), "free");
	must(kvmem_vm_free(vm), "free");
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
