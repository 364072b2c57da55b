/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* own_paging: a VMM that has its memory and its slots lets the library bring content in as the guest touches it. */
#include "small.h"

#include <sys/mman.h>

#define RAM (8 * MIB)

/* What the guest is to find, as it would come from an image: bytes of the region from `offset` on. */
static int read_page(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	for (uint64_t at = 0; at < bytes; at += 8) {
		uint64_t word = guest_pattern(GUEST_SEED, GPA + offset + at);

		memcpy((char *)buf + at, &word, 8);
	}
	return 0;
}

int main(void)
{
	/* What the VMM has. The library need not know the VM, nor the slot. */
	void *memory = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvmem_vm *vm = small_vm();
	struct vmm *vmm;
	struct vmm_vcpu *vcpu = small_guest(kvmem_vm_fd(vm), RAM, &vmm);

	struct kvmem_region_opts o = { .size = sizeof(o),
				       .bytes = RAM,
				       .needs = KVMEM_WANT_PAGING };
	struct kvmem_source_ops ops = { .size = sizeof(ops), .read = read_page };
	struct kvmem_pager_stats stats = KVMEM_PAGER_STATS_INIT;
	struct kvmem_source *image;
	struct kvmem_region *ram;
	struct kvmem_pager *pager;
	uint64_t wrong;

	must_vmm(vmm_set_slot(vmm, 1, 0, GPA, RAM, memory));
	o.flags = KVMEM_REGION_MAPPING;
	o.mapping = memory;
	must(kvmem_region_create(NULL, &o, &ram), "region");
	must(kvmem_source_callback(&ops, NULL, RAM, &image), "image");
	must(kvmem_pager_create(NULL, &pager), "pager");
	must(kvmem_pager_add(pager, ram, image, 0, 0), "add");
	must(kvmem_pager_start(pager), "start");

	wrong = small_run(vcpu, GUEST_VERIFY, GPA, RAM / 2);
	must(kvmem_pager_get_stats(pager, &stats), "stats");
	printf("%u pages are wrong, %u of %u are not there yet\n", (unsigned int)wrong,
	       (unsigned int)stats.pages_missing, (unsigned int)(RAM / BASE_PAGE));
	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL), "stop"); /* brings in the rest */
	wrong += small_run(vcpu, GUEST_VERIFY, GPA, RAM);

	must(kvmem_pager_free(pager), "free");
	must(kvmem_region_free(ram), "free");
	must(kvmem_source_free(image), "free");
	vmm_destroy(vmm);
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
