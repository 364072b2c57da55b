// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Giving parts of a region to the guest, taking them away, and whether they are private. */
#include <errno.h>
#include <inttypes.h>

#include "base/uapi/kvm.h"
#include "region/region.h"

/* Guest-physical addresses are at most 52 bits wide. */
#define GPA_LIMIT (1ull << 52)
/* KVM counts the pages of a slot in 31 bits. */
#define SLOT_PAGES_MAX ((1ull << 31) - 1)

static int range_check(const struct kvmem_region *r, uint64_t offset, uint64_t bytes, uint64_t gpa)
{
	uint64_t page = km_sys_page_size();
	int ret = km_range_check(offset, bytes, r->bytes,
				 bytes <= r->room - offset && offset <= r->room
					 ? "slot: region, before kvmem_region_grow()"
					 : "slot: region");

	if (!ret)
		ret = km_range_check(gpa, bytes, GPA_LIMIT, "slot: gpa");
	if (!ret)
		ret = km_align_check(offset, page, "slot: offset");
	if (!ret)
		ret = km_align_check(bytes, page, "slot: bytes");
	if (!ret)
		ret = km_align_check(gpa, page, "slot: gpa");
	return ret;
}

static int slot_check(const struct kvmem_region *r, uint64_t offset, uint64_t bytes, uint64_t gpa,
		      uint32_t flags)
{
	int ret = range_check(r, offset, bytes, gpa);

	if (!ret && bytes / km_sys_page_size() > SLOT_PAGES_MAX)
		ret = km_fail(EINVAL,
			      "slot: 0x%" PRIx64 " bytes are more than the 2^31 - 1 "
			      "pages that KVM takes in one slot: attach the region in parts",
			      bytes);
	if (!ret && flags & KVMEM_ATTACH_READONLY && r->plan.slot_form == KVMEM_SLOT_DIRECT)
		ret = km_fail(EOPNOTSUPP,
			      "a read-only slot cannot be a direct slot of a guest_memfd: make the "
			      "region with slot_form KVMEM_SLOT_HVA");
	/* A write of the guest's would end KVM_RUN with EFAULT. */
	if (!ret && !(flags & KVMEM_ATTACH_READONLY) && r->own_mapping && !r->own.writable)
		ret = km_fail(EOPNOTSUPP,
			      "slot: the region is a mapping without write access: attach it with "
			      "KVMEM_ATTACH_READONLY");
	return ret;
}

/* A direct slot's guest_memfd: the region's own file, or the one of its private pages. */
static void bind(struct km_slot *s, const struct kvmem_region *r)
{
	s->hva = (uintptr_t)r->base + s->offset;
	s->gmem_fd = -1;
	if (r->plan.slot_form != KVMEM_SLOT_DIRECT)
		return;
	s->gmem_fd = r->private_fd >= 0 ? r->private_fd : r->fd;
	s->gmem_offset = (r->private_fd >= 0 ? 0 : r->fd_offset) + s->offset;
}

/* What is asked for as vm's record; `known` are the flags that this caller takes. */
static int slot_of(struct kvmem_region *region, const char *what, uint32_t flags, uint32_t known,
		   struct km_slot *s)
{
	int r;

	if (!region)
		return km_fail(EINVAL, "%s: region is NULL", what);
	r = km_region_own_check(region, what);
	if (r)
		return r;
	if (!region->vm)
		return km_fail(EINVAL, "%s: the region was created without a VM", what);
	r = km_flags_check(flags, known, "slot: flags");
	if (!r)
		r = slot_check(region, s->offset, s->bytes, s->gpa, flags);
	if (!r)
		r = km_callback_check(what, NULL);
	if (r)
		return r;
	s->owner = region;
	s->arg = region->arg;
	s->readonly = flags & KVMEM_ATTACH_READONLY;
	s->wants_log = region->plan.granted & KVMEM_WANT_DIRTY;
	bind(s, region);
	return 0;
}

int kvmem_region_attach(struct kvmem_region *region, uint64_t offset, uint64_t bytes, uint64_t gpa,
			uint32_t slot, uint32_t flags, uint32_t *ret_slot)
{
	struct km_slot want = { .id = slot, .offset = offset, .bytes = bytes, .gpa = gpa };
	struct km_slot *s;
	int r = slot_of(region, "kvmem_region_attach", flags, KVMEM_ATTACH_READONLY, &want);

	if (r)
		return r;
	pthread_rwlock_wrlock(&region->vm->lock);
	r = km_slot_add(region->vm, &want, &s);
	if (!r && ret_slot)
		*ret_slot = s->id;
	pthread_rwlock_unlock(&region->vm->lock);
	return r;
}

static int adopt_locked(struct kvmem_vm *vm, const struct km_slot *want)
{
	struct km_slot *s = km_slot_find(vm, want->id);

	if (s && s->adopted && s->owner == want->owner && s->offset == want->offset &&
	    s->bytes == want->bytes && s->gpa == want->gpa && s->readonly == want->readonly)
		return km_slot_readopt(vm, s, want->keep_log);
	return km_slot_adopt(vm, want);
}

int kvmem_region_adopt_slot(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
			    uint64_t gpa, uint32_t slot, uint32_t flags)
{
	struct km_slot want = {
		.id = slot,
		.offset = offset,
		.bytes = bytes,
		.gpa = gpa,
		.adopted = true,
		.keep_log = flags & KVMEM_ATTACH_LOGGED,
	};
	int r = slot_of(region, "kvmem_region_adopt_slot", flags,
			KVMEM_ATTACH_READONLY | KVMEM_ATTACH_LOGGED, &want);

	if (!r && slot == KVMEM_SLOT_ANY)
		r = km_fail(EINVAL,
			    "kvmem_region_adopt_slot: slot is KVMEM_SLOT_ANY: say which one");
	if (r)
		return r;
	pthread_rwlock_wrlock(&region->vm->lock);
	r = adopt_locked(region->vm, &want);
	pthread_rwlock_unlock(&region->vm->lock);
	return r;
}

int kvmem_region_detach(struct kvmem_region *region, uint32_t slot)
{
	struct km_slot *s;
	int r;

	if (!region)
		return km_fail(EINVAL, "kvmem_region_detach: region is NULL");
	if (!region->vm)
		return km_fail(ENOENT, "kvmem_region_detach: the region was created without a VM");
	r = km_callback_check("kvmem_region_detach", NULL);
	if (r)
		return r;
	pthread_rwlock_wrlock(&region->vm->lock);
	s = km_slot_find(region->vm, slot);
	if (s && s->owner == region)
		r = km_slot_remove(region->vm, s);
	else
		r = km_fail(ENOENT, "slot %" PRIu32 " is not a slot of this region", slot);
	pthread_rwlock_unlock(&region->vm->lock);
	return r;
}

int km_region_detach_all(struct kvmem_region *region)
{
	struct kvmem_vm *vm = region->vm;
	int r = 0;

	if (!vm)
		return 0;
	pthread_rwlock_wrlock(&vm->lock);
	for (size_t i = vm->slot_count; i-- && !r;)
		if (vm->slots[i]->owner == region)
			r = km_slot_remove(vm, vm->slots[i]);
	pthread_rwlock_unlock(&vm->lock);
	return r;
}

/* ---- where the guest sees it ---- */

static int64_t attachments_locked(const struct kvmem_region *region, uint64_t offset, uint64_t end,
				  struct kvmem_attachment *ret, size_t room)
{
	const struct kvmem_vm *vm = region->vm;
	size_t n = 0;

	for (size_t i = 0; i < vm->slot_count; i++) {
		const struct km_slot *s = vm->slots[i];
		uint64_t from = s->offset > offset ? s->offset : offset;
		uint64_t to = s->offset + s->bytes < end ? s->offset + s->bytes : end;

		if (s->owner != region || from >= to)
			continue;
		if (n++ >= room)
			continue;
		ret[n - 1] = (struct kvmem_attachment){
			.slot = s->id,
			.flags = (s->readonly ? KVMEM_ATTACH_READONLY : 0) |
				 (s->adopted ? KVMEM_ATTACH_ADOPTED : 0) |
				 (s->keep_log ? KVMEM_ATTACH_LOGGED : 0),
			.offset = from,
			.bytes = to - from,
			.gpa = s->gpa + (from - s->offset),
		};
	}
	return (int64_t)n;
}

int64_t kvmem_region_attachments(const struct kvmem_region *region, uint64_t offset, uint64_t bytes,
				 struct kvmem_attachment *attachments, size_t count)
{
	int64_t r;

	if (!region)
		return km_fail(EINVAL, "kvmem_region_attachments: region is NULL");
	if (!attachments && count)
		return km_fail(EINVAL, "kvmem_region_attachments: attachments is NULL");
	r = km_range_check(offset, bytes, region->bytes, "kvmem_region_attachments: region");
	if (r || !region->vm)
		return r;
	pthread_rwlock_rdlock(&region->vm->lock);
	r = attachments_locked(region, offset, offset + bytes, attachments, count);
	pthread_rwlock_unlock(&region->vm->lock);
	return r;
}

/* Does a slot show part of the range, for reading too or to be written? */
static bool is_shown(const struct kvmem_region *region, uint64_t offset, uint64_t bytes,
		     bool reading)
{
	bool found = false;

	if (!region->vm)
		return false;
	pthread_rwlock_rdlock(&region->vm->lock);
	for (size_t i = 0; i < region->vm->slot_count && !found; i++) {
		const struct km_slot *s = region->vm->slots[i];

		found = s->owner == region && (reading || !s->readonly) &&
			s->offset < offset + bytes && offset < s->offset + s->bytes;
	}
	pthread_rwlock_unlock(&region->vm->lock);
	return found;
}

bool km_region_is_writable(const struct kvmem_region *region, uint64_t offset, uint64_t bytes)
{
	return is_shown(region, offset, bytes, false);
}

bool km_region_is_attached(const struct kvmem_region *region)
{
	return is_shown(region, 0, region->bytes, true);
}

/* ---- attributes ---- */

static int set_attributes(struct kvmem_vm *vm, uint64_t gpa, uint64_t bytes, uint64_t attributes)
{
	struct km_kvm_memory_attributes a = { .address = gpa,
					      .size = bytes,
					      .attributes = attributes };
	int64_t r = km_sys_ioctl(vm->fd, KM_KVM_SET_MEMORY_ATTRIBUTES, &a);

	if (r >= 0)
		return 0;
	return km_fail(r == -ENOTTY ? EOPNOTSUPP : (int)-r,
		       "KVM_SET_MEMORY_ATTRIBUTES 0x%" PRIx64 " at guest address 0x%" PRIx64
		       " + 0x%" PRIx64 ": %m",
		       attributes, gpa, bytes);
}

/* The first byte at or after `at` of [at, end) that no slot of the region holds; `end` when all do.
 */
static uint64_t attached_until(const struct kvmem_region *region, uint64_t at, uint64_t end)
{
	const struct kvmem_vm *vm = region->vm;

	for (size_t i = 0; i < vm->slot_count && at < end; i++) {
		const struct km_slot *s = vm->slots[i];

		if (s->owner == region && s->offset <= at && at < s->offset + s->bytes) {
			at = s->offset + s->bytes;
			i = SIZE_MAX; /* the next byte may be in any slot */
		}
	}
	return at < end ? at : end;
}

static int attributes_locked(struct kvmem_region *region, uint64_t offset, uint64_t end,
			     uint64_t attributes)
{
	struct kvmem_vm *vm = region->vm;
	uint64_t until = attached_until(region, offset, end);

	if (until < end)
		return km_fail(ENOENT,
			       "offset 0x%" PRIx64 " of the region is in no slot: attach it first",
			       until);
	for (size_t i = 0; i < vm->slot_count; i++) {
		const struct km_slot *s = vm->slots[i];
		uint64_t from = s->offset > offset ? s->offset : offset;
		uint64_t to = s->offset + s->bytes < end ? s->offset + s->bytes : end;
		int r;

		if (s->owner != region || from >= to)
			continue;
		r = set_attributes(vm, s->gpa + (from - s->offset), to - from, attributes);
		if (r)
			return r;
	}
	return 0;
}

int kvmem_region_set_attributes(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
				uint64_t attributes)
{
	int r;

	if (!region)
		return km_fail(EINVAL, "kvmem_region_set_attributes: region is NULL");
	r = km_region_own_check(region, "kvmem_region_set_attributes");
	if (!r)
		r = km_range_check(offset, bytes, region->bytes,
				   "kvmem_region_set_attributes: region");
	if (!r)
		r = km_align_check(offset | bytes, km_region_page(region),
				   "kvmem_region_set_attributes: offset or bytes");
	if (!r)
		r = km_flags_check(attributes, KVMEM_ATTRIBUTE_PRIVATE,
				   "kvmem_region_set_attributes: attributes");
	if (r)
		return r;
	if (!region->vm)
		return km_fail(ENOENT,
			       "kvmem_region_set_attributes: the region was created without a VM");
	if (!km_caps_has(region->vm->caps, KVMEM_CAP_MEMORY_ATTRIBUTES))
		return km_fail(EOPNOTSUPP, "%s",
			       km_caps_reason(region->vm->caps, KVMEM_CAP_MEMORY_ATTRIBUTES));
	pthread_rwlock_rdlock(&region->vm->lock);
	r = attributes_locked(region, offset, offset + bytes, attributes);
	pthread_rwlock_unlock(&region->vm->lock);
	return r;
}
