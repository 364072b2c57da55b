// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What is filled is mapped in the guest's own tables too: KVM_PRE_FAULT_MEMORY. */
#include "populate/populate_internal.h"

#include <errno.h>
#include <inttypes.h>

#include "base/uapi/kvm.h"

#define SPACE(slot) ((slot) >> 16)

int km_map_guest_check(const struct kvmem_region *r, const struct kvmem_populate_opts *o)
{
	const uint32_t map = KVMEM_POPULATE_MAP_GUEST, need = KVMEM_POPULATE_MAP_NEEDED;

	if (!(o->flags & map)) {
		if (o->flags & need || o->vcpu_fd)
			return km_fail(EINVAL, "populate: %s without KVMEM_POPULATE_MAP_GUEST",
				       o->flags & need ? "KVMEM_POPULATE_MAP_NEEDED" : "vcpu_fd");
		return 0;
	}
	if (!r->vm)
		return km_fail(EINVAL, "populate: KVMEM_POPULATE_MAP_GUEST of a region that was "
				       "created without a VM");
	if (km_sys_fcntl_getfl(o->vcpu_fd) < 0)
		return km_fail(EBADF, "populate: vcpu_fd %d is not open", o->vcpu_fd);
	if (o->flags & need && !km_caps_has(r->vm->caps, KVMEM_CAP_PRE_FAULT))
		return km_fail(EOPNOTSUPP, "populate: the guest's tables cannot be filled: %s",
			       km_caps_reason(r->vm->caps, KVMEM_CAP_PRE_FAULT));
	return 0;
}

/* KVM says in the struct how far it came. */
static int64_t map_slot(int vcpu_fd, const struct kvmem_attachment *a, uint64_t *mapped)
{
	struct km_kvm_pre_fault_memory m = { .gpa = a->gpa, .size = a->bytes };
	int64_t err = 0;

	while (m.size) {
		uint64_t left = m.size;

		err = km_sys_ioctl(vcpu_fd, KM_KVM_PRE_FAULT_MEMORY, &m);
		*mapped += left - m.size;
		if (err < 0 && (err != -EAGAIN || left == m.size))
			return err;
	}
	return 0;
}

/* Where the guest sees the range: in its first address space, which is the one that it runs in. */
static int64_t attached(const struct kvmem_region *r, uint64_t offset, uint64_t bytes,
			struct kvmem_attachment **ret)
{
	struct kvmem_attachment *list = NULL;
	int64_t n = kvmem_region_attachments(r, offset, bytes, NULL, 0), room = 0;

	while (n > room) { /* a slot may come meanwhile */
		km_sys_free(list);
		room = n;
		list = km_sys_alloc((size_t)n * sizeof(*list));
		if (!list)
			return km_fail(ENOMEM, "populate: no memory for a list of slots");
		n = kvmem_region_attachments(r, offset, bytes, list, (size_t)room);
	}
	*ret = list;
	return n;
}

int km_map_guest(const struct kvmem_region *r, uint64_t offset, uint64_t bytes,
		 const struct kvmem_populate_opts *o, struct kvmem_populate_result *res)
{
	bool offered = km_caps_has(r->vm->caps, KVMEM_CAP_PRE_FAULT);
	uint64_t page = km_sys_page_size(), skew = offset % page;
	uint64_t whole = (skew + bytes + page - 1) & ~(page - 1);
	struct kvmem_attachment *list = NULL;
	int64_t n = attached(r, offset - skew, whole, &list), err = 0, first = 0;

	for (int64_t i = 0; i < n; i++) {
		uint64_t mapped = 0;

		if (SPACE(list[i].slot))
			continue;
		if (offered)
			err = map_slot(o->vcpu_fd, &list[i], &mapped);
		first = first ? first : err;
		res->bytes_mapped += mapped;
		res->bytes_unmapped += list[i].bytes - mapped;
	}
	km_sys_free(list);
	if (n < 0)
		return (int)n;
	if (first >= 0 || !(o->flags & KVMEM_POPULATE_MAP_NEEDED))
		return 0;
	return km_fail((int)-first,
		       "populate: the pages are filled, but not all mapped for the guest: "
		       "KVM_PRE_FAULT_MEMORY: %m");
}
