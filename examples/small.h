/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* What the small examples share: a guest of one vCPU that writes or reads a word of each page. */
#ifndef SMALL_H
#define SMALL_H

#include <pthread.h>

#include "example.h"
#include "vmm.h"

#define GPA	   (UINT64_C(4) << 30) /* where they put the guest's RAM */
#define BASE_PAGE  UINT64_C(4096)
#define GUEST_SEED 2026

static inline void must_vmm(int ret)
{
	if (!ret)
		return;
	fprintf(stderr, "%s\n", vmm_error());
	exit(EXIT_FAILURE);
}

static inline pthread_t small_thread(void *(*fn)(void *), void *arg)
{
	pthread_t thread;

	must(-pthread_create(&thread, NULL, fn, arg), "pthread_create");
	return thread;
}

/* A VM whose slot 0 is left to the guest's own code. */
static inline struct kvmem_vm *small_vm(void)
{
	struct kvmem_vm_opts opts = KVMEM_VM_OPTS_INIT;

	opts.first_slot = 1;
	return must_have_vm(&opts);
}

/* Its vCPU sees [GPA, GPA + bytes). vmm_destroy() ends it. */
static inline struct vmm_vcpu *small_guest(int vm_fd, uint64_t bytes, struct vmm **ret_vmm)
{
	struct vmm_vcpu *vcpu;

	must_vmm(vmm_create(vm_fd, 0, NULL, ret_vmm));
	must_vmm(vmm_map(*ret_vmm, GPA, bytes));
	must_vmm(vmm_vcpu_create(*ret_vmm, 0, &vcpu));
	return vcpu;
}

/* command: GUEST_FILL writes guest_pattern(GUEST_SEED, gpa) into each page of the range, GUEST_VERIFY returns in how
 * many pages something else is. */
static inline uint64_t small_run(struct vmm_vcpu *vcpu, uint32_t command, uint64_t gpa,
				 uint64_t bytes)
{
	*vmm_mailbox(vcpu) = (struct guest_mailbox){ .command = command,
						     .gpa = gpa,
						     .bytes = bytes,
						     .page = BASE_PAGE,
						     .step = BASE_PAGE,
						     .seed = GUEST_SEED };
	must_vmm(vmm_run(vcpu));
	return vmm_mailbox(vcpu)->result;
}

/* What the guest is to find at [GPA, GPA + bytes): its own pattern in the first word of each page. */
static inline uint64_t *small_image(uint64_t bytes)
{
	uint64_t *image = calloc(1, bytes);

	if (!image)
		exit(EXIT_FAILURE);
	for (uint64_t at = 0; at < bytes; at += BASE_PAGE)
		image[at / 8] = guest_pattern(GUEST_SEED, GPA + at);
	return image;
}

static inline struct kvmem_region *small_ram(struct kvmem_vm *vm, uint64_t needs, uint64_t bytes)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = bytes, .needs = needs };
	struct kvmem_region *ram;

	must(kvmem_region_create(vm, &o, &ram), "kvmem_region_create");
	return ram;
}

/* A tracker, and a guest that sees the region at GPA, whose vCPU the tracker knows. flags: KVMEM_DIRTY_*. */
static inline struct vmm_vcpu *small_tracked(struct kvmem_vm *vm, struct kvmem_region *ram,
					     uint32_t flags, struct kvmem_dirty **ret_dirty)
{
	struct kvmem_dirty_opts o = { .size = sizeof(o), .flags = flags };
	uint64_t bytes = kvmem_region_bytes(ram);
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;

	must(kvmem_dirty_create(vm, &o, ret_dirty), "kvmem_dirty_create");
	must(kvmem_region_attach(ram, 0, bytes, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), bytes, &vmm);
	must(kvmem_dirty_add_vcpu(*ret_dirty, vmm_vcpu_fd(vcpu)), "kvmem_dirty_add_vcpu");
	return vcpu;
}

#endif
