// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory slots as KVM is told them. */
#include <errno.h>
#include <inttypes.h>

#include "base/uapi/kvm.h"
#include "vm/vm.h"

static uint32_t kernel_flags(const struct km_slot *s, bool logged)
{
	return (s->readonly ? KVM_MEM_READONLY : 0) | (logged ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

static int64_t set_hva(struct kvmem_vm *vm, const struct km_slot *s, uint64_t bytes, bool logged)
{
	struct kvm_userspace_memory_region m = {
		.slot = s->id,
		.flags = kernel_flags(s, logged),
		.guest_phys_addr = s->gpa,
		.memory_size = bytes,
		.userspace_addr = s->hva,
	};

	return km_sys_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &m);
}

static int64_t set_direct(struct kvmem_vm *vm, const struct km_slot *s, uint64_t bytes, bool logged)
{
	struct km_kvm_userspace_memory_region2 m = {
		.slot = s->id,
		.flags = kernel_flags(s, logged) | (uint32_t)KM_KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = s->gpa,
		.memory_size = bytes,
		.userspace_addr = s->hva,
		.guest_memfd = (uint32_t)s->gmem_fd,
		.guest_memfd_offset = s->gmem_offset,
	};

	return km_sys_ioctl(vm->fd, KM_KVM_SET_USER_MEMORY_REGION2, &m);
}

static int64_t set_bytes(struct kvmem_vm *vm, const struct km_slot *s, uint64_t bytes, bool logged)
{
	return s->gmem_fd >= 0 ? set_direct(vm, s, bytes, logged) : set_hva(vm, s, bytes, logged);
}

static const char *slot_hint(const struct km_slot *s, int64_t err)
{
	switch (err) {
	case -EEXIST:
		return s->gmem_fd < 0
			       ? ": the guest addresses overlap a slot that the VMM set itself"
			       : ": the guest addresses overlap a slot that the VMM set itself, or the "
				 "range of the guest_memfd is bound to one";
	case -EINVAL:
		return s->gmem_fd < 0
			       ? ": the VMM has set this number itself, or the guest address or "
				 "the flags are not allowed on this VM"
			       : ": the VMM has set this number itself, or the guest address or "
				 "the flags are not allowed on this VM, or (before Linux 6.19) the "
				 "range of the guest_memfd is bound already";
	case -ENOMEM:
		return ": the kernel has no memory for the slot's tables";
	default:
		return "";
	}
}

int km_slot_set(struct kvmem_vm *vm, const struct km_slot *s, bool logged)
{
	int64_t r = set_bytes(vm, s, s->bytes, logged);

	if (r >= 0)
		return 0;
	return km_fail((int)-r,
		       "slot %" PRIu32 " of space %" PRIu32 " at guest address 0x%" PRIx64
		       " + 0x%" PRIx64 "%s: %m%s",
		       s->id & 0xffff, s->id >> 16, s->gpa, s->bytes,
		       logged ? " with dirty log" : "", slot_hint(s, r));
}

int km_slot_delete(struct kvmem_vm *vm, const struct km_slot *s)
{
	int64_t r = set_bytes(vm, s, 0, false);

	if (r >= 0)
		return 0;
	return km_fail((int)-r, "deleting slot %" PRIu32 ": %m", s->id);
}
