/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* clones: eight guests of one image, which is in memory once; each has copies of what it writes. */
#include "small.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM    (8 * MIB)
#define CLONES 8
#define PART   (RAM / CLONES / 4) /* that each of them writes */

/* The image in a memfd, as any region is filled, and sealed: nobody can change it afterwards. */
static int make_template(void)
{
	int fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct kvmem_region_opts o = { .size = sizeof(o), .flags = KVMEM_REGION_FD, .fd = fd };
	struct kvmem_source *image;
	struct kvmem_region *filled;

	o.bytes = RAM;
	must(ftruncate(fd, RAM), "ftruncate");
	must(kvmem_source_memory(small_image(RAM), RAM, &image), "image");
	must(kvmem_region_create(NULL, &o, &filled), "kvmem_region_create");
	must(kvmem_populate(filled, 0, image, NULL, NULL), "populate");
	must(kvmem_region_free(filled), "free"); /* a mapping for writing forbids the seal */
	must(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), "seal");
	return fd;
}

/* How many pages are not as they should be, in a guest of its own. */
static uint64_t run_clone(int fd, unsigned int i)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .flags = KVMEM_REGION_CLONE, .fd = fd };
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;
	uint64_t bad;

	o.bytes = RAM;
	must(kvmem_region_create(vm, &o, &ram), "clone");
	must(kvmem_region_attach(ram, 0, RAM, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), RAM, &vmm);
	bad = small_run(vcpu, GUEST_VERIFY, GPA, RAM); /* the template's pages */
	memset((char *)kvmem_region_base(ram) + i * PART, 0xff, PART);
	must(kvmem_region_discard(ram, i * PART, PART / 2), "discard"); /* never the image again */
	return bad + (small_run(vcpu, GUEST_VERIFY, GPA, RAM) != PART / BASE_PAGE);
}

int main(void)
{
	int fd = make_template();
	uint64_t bad = 0;

	for (unsigned int i = 0; i < CLONES; i++)
		bad += run_clone(fd, i);
	puts(bad ? "a clone has other content" : "eight guests, one image");
	return bad ? EXIT_FAILURE : EXIT_SUCCESS; /* the kernel frees what is left */
}
