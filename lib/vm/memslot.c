// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory slots as KVM is told them. */
#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>

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

int km_slot_refused(const struct km_slot *s, int64_t err)
{
	return km_fail((int)-err,
		       "slot %" PRIu32 " of space %" PRIu32 " at guest address 0x%" PRIx64
		       " + 0x%" PRIx64 ": %m%s",
		       s->id & 0xffff, s->id >> 16, s->gpa, s->bytes, slot_hint(s, err));
}

int km_slot_set(struct kvmem_vm *vm, const struct km_slot *s, bool logged)
{
	int64_t r = set_bytes(vm, s, s->bytes, logged);

	return r < 0 ? km_slot_refused(s, r) : 0;
}

int km_slot_delete(struct kvmem_vm *vm, const struct km_slot *s)
{
	int64_t r = set_bytes(vm, s, 0, false);

	if (r >= 0)
		return 0;
	return km_fail((int)-r, "deleting slot %" PRIu32 ": %m", s->id);
}

/*
 * ---- is it there? ----
 *
 * KVM does not tell which slots it has. It is asked by requests that it refuses: under a number that it does
 * not know, EEXIST says that something shows this guest address; under a number that it knows, EINVAL says
 * that the size or the host address is another one. A request that is not refused has made a slot where none
 * was, which shows a page of zeros read-only; it is deleted at once.
 */

/* What no slot of anybody's can be: it shows memory that nobody else knows. */
static int64_t probe(struct kvmem_vm *vm, uint32_t id, uint64_t gpa, uint64_t bytes, void *hva)
{
	struct km_slot s = {
		.id = id,
		.gpa = gpa,
		.bytes = bytes,
		.hva = (uintptr_t)hva,
		.gmem_fd = -1,
		.readonly = km_sys_ioctl_val(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_READONLY_MEM) > 0,
	};
	int64_t r = set_bytes(vm, &s, bytes, false);

	if (!r)
		set_bytes(vm, &s, 0, false);
	return r;
}

/* Asked under a number that KVM does not know: EINVAL is passed over, as it means one that it knows. */
static bool shown(struct kvmem_vm *vm, uint32_t id, uint64_t gpa, void *hva)
{
	int64_t r = -EINVAL;

	for (uint32_t n = vm->max_slots; n-- && r == -EINVAL;) {
		uint32_t other = (id & 0xffff0000u) | n;

		if (other != id && !km_slot_find(vm, other))
			r = probe(vm, other, gpa, km_sys_page_size(), hva);
	}
	return r; /* when all numbers are taken, the other questions have to do */
}

int64_t km_slot_ask_page(void **ret_hva)
{
	int64_t r = km_sys_mmap(km_sys_page_size(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0,
				ret_hva);

	return r < 0 ? km_fail((int)-r, "a page to ask KVM for slots with: %m") : 0;
}

bool km_slot_is_known(struct kvmem_vm *vm, uint32_t id, uint64_t gpa, void *hva)
{
	return probe(vm, id, gpa, km_sys_page_size(), hva) == -EINVAL;
}

static int verify(struct kvmem_vm *vm, const struct km_slot *s, void *hva)
{
	uint64_t page = km_sys_page_size();
	int64_t r;

	if (!shown(vm, s->id, s->gpa, hva) || !shown(vm, s->id, s->gpa + s->bytes - page, hva))
		return km_fail(ENOENT,
			       "slot %" PRIu32 " of space %" PRIu32 ": KVM shows nothing at guest "
			       "address 0x%" PRIx64 " + 0x%" PRIx64
			       ": the VMM sets the slot first, and "
			       "detaches its record before it deletes it",
			       s->id & 0xffff, s->id >> 16, s->gpa, s->bytes);
	r = probe(vm, s->id, s->gpa, page, hva);
	if (r != -EINVAL)
		return km_fail(ENOENT,
			       "KVM has no slot %" PRIu32 " in address space %" PRIu32
			       ": what is at guest address 0x%" PRIx64 " has another number",
			       s->id & 0xffff, s->id >> 16, s->gpa);
	if (s->gmem_fd >= 0) /* refuses every change: nothing more to ask */
		return 0;
	r = set_hva(vm, s, s->bytes, s->logged || s->keep_log);
	if (!r)
		return 0;
	return km_fail(
		r == -EEXIST ? EINVAL : (int)-r,
		"slot %" PRIu32 " of space %" PRIu32 " is not in KVM what the call says: guest "
		"address 0x%" PRIx64 ", size 0x%" PRIx64 ", host address 0x%" PRIx64
		" (the region's base + offset) or KVM_MEM_READONLY differ; give them as the VMM "
		"has set them",
		s->id & 0xffff, s->id >> 16, s->gpa, s->bytes, s->hva);
}

int km_slot_verify(struct kvmem_vm *vm, const struct km_slot *s)
{
	void *hva;
	int64_t r = km_slot_ask_page(&hva);

	if (r < 0)
		return (int)r;
	r = verify(vm, s, hva);
	km_sys_munmap(hva, km_sys_page_size());
	return (int)r;
}
