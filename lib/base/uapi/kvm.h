/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_UAPI_KVM_H
#define KM_UAPI_KVM_H

/*
 * KVM interfaces newer than the oldest headers we build with (Linux 6.1), under names of our own
 * and always defined, so that a unit test can hold them against newer headers.
 */

#include <linux/kvm.h>

struct km_kvm_userspace_memory_region2 {
	uint32_t slot;
	uint32_t flags;
	uint64_t guest_phys_addr;
	uint64_t memory_size;
	uint64_t userspace_addr;
	uint64_t guest_memfd_offset;
	uint32_t guest_memfd;
	uint32_t pad1;
	uint64_t pad2[14];
};

struct km_kvm_create_guest_memfd {
	uint64_t size;
	uint64_t flags;
	uint64_t reserved[6];
};

struct km_kvm_memory_attributes {
	uint64_t address;
	uint64_t size;
	uint64_t attributes;
	uint64_t flags;
};

struct km_kvm_pre_fault_memory {
	uint64_t gpa;
	uint64_t size;
	uint64_t flags;
	uint64_t padding[5];
};

#define KM_KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct km_kvm_userspace_memory_region2)
#define KM_KVM_SET_MEMORY_ATTRIBUTES   _IOW(KVMIO, 0xd2, struct km_kvm_memory_attributes)
#define KM_KVM_CREATE_GUEST_MEMFD      _IOWR(KVMIO, 0xd4, struct km_kvm_create_guest_memfd)
#define KM_KVM_PRE_FAULT_MEMORY	       _IOWR(KVMIO, 0xd5, struct km_kvm_pre_fault_memory)

#define KM_KVM_MEM_GUEST_MEMFD		(1ul << 2)
#define KM_KVM_MEMORY_ATTRIBUTE_PRIVATE (1ull << 3)

#define KM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL     223
#define KM_KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225
#define KM_KVM_CAP_USER_MEMORY2		      231
#define KM_KVM_CAP_MEMORY_FAULT_INFO	      232
#define KM_KVM_CAP_MEMORY_ATTRIBUTES	      233
#define KM_KVM_CAP_GUEST_MEMFD		      234
#define KM_KVM_CAP_PRE_FAULT_MEMORY	      236
#define KM_KVM_CAP_GUEST_MEMFD_FLAGS	      244

#define KM_GUEST_MEMFD_FLAG_MMAP	(1ull << 0)
#define KM_GUEST_MEMFD_FLAG_INIT_SHARED (1ull << 1)

/* Pages into a vCPU's mapping at which its dirty ring begins: the same on x86-64 and arm64. */
#define KM_KVM_DIRTY_LOG_PAGE_OFFSET 64

#endif
