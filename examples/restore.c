/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* restore: a guest runs at once while its memory still lies in a file. The rest comes behind it. */
#include "small.h"

#include <unistd.h>

#define RAM   (32 * MIB)
#define FIRST (1 * MIB) /* what the guest needs before all else */

static int image_file(void)
{
	FILE *file = tmpfile();
	uint64_t *image = small_image(RAM);

	if (!file || fwrite(image, RAM, 1, file) != 1 || fflush(file))
		exit(EXIT_FAILURE);
	free(image);
	return fileno(file);
}

int main(void)
{
	struct kvmem_pager_opts po = { .size = sizeof(po), .flags = KVMEM_PAGER_BACKGROUND };
	struct kvmem_populate_opts first = { .size = sizeof(first), .bytes = FIRST };
	struct kvmem_pager_stats stats = KVMEM_PAGER_STATS_INIT;
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram = small_ram(vm, KVMEM_WANT_PAGING, RAM);
	struct kvmem_source *image;
	struct kvmem_pager *pager;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;
	uint64_t wrong;

	must(kvmem_source_file(image_file(), 0, 0, 0, &image), "image");
	must(kvmem_populate(ram, 0, image, &first, NULL), "populate");
	must(kvmem_pager_create(&po, &pager), "pager");
	must(kvmem_pager_add(pager, ram, image, 0, 0), "add"); /* before the slot */
	must(kvmem_region_attach(ram, 0, RAM, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), RAM, &vmm);
	must(kvmem_pager_start(pager), "start");

	wrong = small_run(vcpu, GUEST_VERIFY, GPA + RAM / 2, RAM / 2); /* it runs already */
	must(kvmem_pager_wait(pager, -1), "wait");
	must(kvmem_pager_get_stats(pager, &stats), "stats");
	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL), "stop");
	must(kvmem_pager_free(pager), "free");
	must(kvmem_source_free(image), "free"); /* the file may go */
	wrong += small_run(vcpu, GUEST_VERIFY, GPA, RAM);
	printf("%u pages came because the guest touched them; %u are wrong\n",
	       (unsigned int)stats.pages_demand, (unsigned int)wrong);

	vmm_destroy(vmm);
	must(kvmem_region_free(ram), "free");
	must(kvmem_vm_free(vm), "free");
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
