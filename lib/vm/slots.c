// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Giving parts of a region to the guest, and taking them away. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "region/region.h"
#include "base/uapi/kvm.h"

/* Guest-physical addresses are at most 52 bits wide. */
#define GPA_LIMIT (1ull << 52)
#define SPACE(id) ((id) >> 16)

static int overlap_check(struct kvmem_vm *vm, const struct km_slot *new)
{
	for (size_t i = 0; i < vm->slot_count; i++) {
		const struct km_slot *s = vm->slots[i];

		if (SPACE(s->id) == SPACE(new->id) && new->gpa < s->gpa + s->bytes &&
		    s->gpa < new->gpa + new->bytes)
			return km_fail(EEXIST,
				       "guest addresses 0x%" PRIx64 " + 0x%" PRIx64
				       " overlap slot %" PRIu32 " at 0x%" PRIx64 " + 0x%" PRIx64,
				       new->gpa, new->bytes, s->id, s->gpa, s->bytes);
		if (new->region->plan.slot_form == KVMEM_SLOT_DIRECT &&
		    s->region == new->region &&new->offset < s->offset + s->bytes &&
		    s->offset < new->offset + new->bytes)
			return km_fail(
				EEXIST,
				"bytes 0x%" PRIx64 " + 0x%" PRIx64 " of the region are bound to "
				"slot %" PRIu32 ": a guest_memfd range has one direct slot at most",
				new->offset, new->bytes, s->id);
	}
	return 0;
}

static int choose_id(struct kvmem_vm *vm, uint32_t *id)
{
	uint32_t n = vm->first_slot;

	if (*id != KVMEM_SLOT_ANY) {
		if ((*id & 0xffff) >= vm->max_slots)
			return km_fail(EINVAL,
				       "slot number %" PRIu32 " is beyond the %" PRIu32
				       " slots of this VM",
				       *id & 0xffff, vm->max_slots);
		if (km_slot_find(vm, *id))
			return km_fail(EEXIST, "slot number %" PRIu32 " is taken", *id);
		return 0;
	}
	for (size_t i = 0; i < vm->slot_count; i++) /* which are sorted */
		n += vm->slots[i]->id == n;
	if (n >= vm->max_slots)
		return km_fail(ENOSPC, "all slots from %" PRIu32 " to %" PRIu32 " are taken",
			       vm->first_slot, vm->max_slots - 1);
	*id = n;
	return 0;
}

static int make_room(struct kvmem_vm *vm)
{
	size_t room = vm->slot_room ? vm->slot_room * 2 : 8;
	struct km_slot **p;

	if (vm->slot_count < vm->slot_room)
		return 0;
	p = km_sys_realloc(vm->slots, room * sizeof(*p));
	if (!p)
		return km_fail(ENOMEM, "slot table: no memory");
	vm->slots = p;
	vm->slot_room = room;
	return 0;
}

static void insert(struct kvmem_vm *vm, struct km_slot *s)
{
	size_t i = vm->slot_count++;

	for (; i && vm->slots[i - 1]->id > s->id; i--)
		vm->slots[i] = vm->slots[i - 1];
	vm->slots[i] = s;
}

static void take_out(struct kvmem_vm *vm, struct km_slot *s)
{
	size_t i = 0;

	while (vm->slots[i] != s)
		i++;
	vm->slot_count--;
	memmove(&vm->slots[i], &vm->slots[i + 1], (vm->slot_count - i) * sizeof(*vm->slots));
}

static int set_tracked(struct kvmem_vm *vm, struct km_slot *s)
{
	int r = 0;

	if (vm->hooks)
		r = vm->hooks->attaching(vm->hooks_arg, s);
	if (r < 0)
		return r;
	s->logged = r > 0;
	r = km_slot_set(vm, s, s->logged);
	if (r && vm->hooks)
		vm->hooks->attach_failed(vm->hooks_arg, s);
	return r;
}

static int attach_locked(struct kvmem_vm *vm, struct km_slot *s)
{
	int r = choose_id(vm, &s->id);

	if (!r)
		r = overlap_check(vm, s);
	if (!r)
		r = make_room(vm);
	if (!r)
		r = set_tracked(vm, s);
	if (!r)
		insert(vm, s);
	return r;
}

static int attach_check(const struct kvmem_region *r, const struct km_slot *s)
{
	uint64_t page = km_sys_page_size();
	int ret = km_range_check(s->offset, s->bytes, r->bytes, "kvmem_region_attach: region");

	if (!ret)
		ret = km_range_check(s->gpa, s->bytes, GPA_LIMIT, "kvmem_region_attach: gpa");
	if (!ret)
		ret = km_align_check(s->offset, page, "kvmem_region_attach: offset");
	if (!ret)
		ret = km_align_check(s->bytes, page, "kvmem_region_attach: bytes");
	if (!ret)
		ret = km_align_check(s->gpa, page, "kvmem_region_attach: gpa");
	if (!ret)
		ret = km_flags_check(s->flags, KVMEM_ATTACH_READONLY, "kvmem_region_attach: flags");
	if (!ret && s->flags & KVMEM_ATTACH_READONLY && r->plan.slot_form == KVMEM_SLOT_DIRECT)
		ret = km_fail(EOPNOTSUPP,
			      "a read-only slot cannot be a direct slot of a guest_memfd: make the "
			      "region with slot_form KVMEM_SLOT_HVA");
	return ret;
}

int kvmem_region_attach(struct kvmem_region *region, uint64_t offset, uint64_t bytes, uint64_t gpa,
			uint32_t slot, uint32_t flags, uint32_t *ret_slot)
{
	struct km_slot want = {
		.id = slot,
		.flags = flags,
		.region = region,
		.offset = offset,
		.bytes = bytes,
		.gpa = gpa,
	};
	struct km_slot *s;
	int r;

	if (!region)
		return km_fail(EINVAL, "kvmem_region_attach: region is NULL");
	if (!region->vm)
		return km_fail(EINVAL, "kvmem_region_attach: the region was created without a VM");
	r = attach_check(region, &want);
	if (r)
		return r;
	s = km_sys_alloc(sizeof(*s));
	if (!s)
		return km_fail(ENOMEM, "slot: no memory");
	*s = want;
	pthread_rwlock_wrlock(&region->vm->lock);
	r = attach_locked(region->vm, s);
	if (!r && ret_slot)
		*ret_slot = s->id;
	pthread_rwlock_unlock(&region->vm->lock);
	if (r)
		km_sys_free(s);
	return r;
}

static int detach_locked(struct kvmem_vm *vm, struct km_slot *s)
{
	int r;

	if (vm->hooks)
		vm->hooks->detaching(vm->hooks_arg, s);
	r = km_slot_delete(vm, s);
	if (r)
		return r;
	if (vm->hooks)
		vm->hooks->detached(vm->hooks_arg, s);
	take_out(vm, s);
	km_sys_free(s);
	return 0;
}

int kvmem_region_detach(struct kvmem_region *region, uint32_t slot)
{
	struct km_slot *s;
	int r;

	if (!region)
		return km_fail(EINVAL, "kvmem_region_detach: region is NULL");
	if (!region->vm)
		return km_fail(ENOENT, "kvmem_region_detach: the region was created without a VM");
	pthread_rwlock_wrlock(&region->vm->lock);
	s = km_slot_find(region->vm, slot);
	if (s && s->region == region)
		r = detach_locked(region->vm, s);
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
		if (vm->slots[i]->region == region)
			r = detach_locked(vm, vm->slots[i]);
	pthread_rwlock_unlock(&vm->lock);
	return r;
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

		if (s->region == region && s->offset <= at && at < s->offset + s->bytes) {
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

		if (s->region != region || from >= to)
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
	r = km_range_check(offset, bytes, region->bytes, "kvmem_region_set_attributes: region");
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
