/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Raw KVM for the rig's own programs, with tiny guests. */
#ifndef RIG_KVM_H
#define RIG_KVM_H

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "tap.h"
#include "base/uapi/kvm.h"

#define PAGE 4096ul

#define GMEM_MMAP	 (1ull << 0)
#define GMEM_INIT_SHARED (1ull << 1)

static inline int kvm_open(void)
{
	return open("/dev/kvm", O_RDWR | O_CLOEXEC);
}

static inline int kvm_new_vm(void)
{
	int kvm = kvm_open();
	int vm;

	must(kvm >= 0, "/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0ul);
	must(vm >= 0, "KVM_CREATE_VM");
	close(kvm);
	return vm;
}

static inline int gmem_flags(int vm)
{
	return ioctl(vm, KVM_CHECK_EXTENSION, (unsigned long)KM_KVM_CAP_GUEST_MEMFD_FLAGS);
}

static inline int gmem_new(int vm, uint64_t bytes, uint64_t flags)
{
	struct km_kvm_create_guest_memfd g = { .size = bytes, .flags = flags };

	return ioctl(vm, KM_KVM_CREATE_GUEST_MEMFD, &g);
}

static inline uint8_t *map_shared(int fd, size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

static inline int slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t bytes,
			   const void *hva)
{
	struct kvm_userspace_memory_region r = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)hva,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r);
}

static inline int slot_set_direct(int vm, uint32_t slot, uint32_t flags, uint64_t gpa,
				  uint64_t bytes, int gmem, const void *hva)
{
	struct km_kvm_userspace_memory_region2 r = {
		.slot = slot,
		.flags = flags | (uint32_t)KM_KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)hva,
		.guest_memfd = (uint32_t)gmem,
	};

	return ioctl(vm, KM_KVM_SET_USER_MEMORY_REGION2, &r);
}

struct vcpu {
	int fd;
	struct kvm_run *run;
	size_t run_bytes;
};

/* A vCPU in 16-bit mode that starts at gpa (below 64 KiB). */
static inline struct vcpu vcpu_new(int vm, uint64_t gpa)
{
	struct kvm_regs regs = { .rip = gpa, .rflags = 2 };
	struct vcpu v = { .fd = ioctl(vm, KVM_CREATE_VCPU, 0ul) };
	struct kvm_sregs s;
	int kvm = kvm_open();

	must(v.fd >= 0, "KVM_CREATE_VCPU");
	v.run_bytes = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0ul);
	close(kvm);
	v.run = mmap(NULL, v.run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v.fd, 0);
	must(v.run != MAP_FAILED, "mmap of a vCPU");
	must(!ioctl(v.fd, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
	s.cs.base = 0;
	s.cs.selector = 0;
	must(!ioctl(v.fd, KVM_SET_SREGS, &s), "KVM_SET_SREGS");
	must(!ioctl(v.fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	return v;
}

/* Runs until the guest writes a byte to a port; that byte, or -1. */
static inline int vcpu_run(struct vcpu *v)
{
	int err;

	do {
		err = ioctl(v->fd, KVM_RUN, 0ul);
	} while (err && errno == EINTR);
	if (err || v->run->exit_reason != KVM_EXIT_IO)
		return -1;
	return ((uint8_t *)v->run)[v->run->io.data_offset];
}

static inline void vcpu_free(struct vcpu *v)
{
	munmap(v->run, v->run_bytes);
	close(v->fd);
}

#endif
