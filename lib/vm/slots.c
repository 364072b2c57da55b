// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The table of slots: giving memory to the guest, and taking it away. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "vm/vm.h"

#define SPACE(id)  ((id) >> 16)
#define NUMBER(id) ((id)&0xffff)

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
		if (new->gmem_fd >= 0 &&
		    s->gmem_fd == new->gmem_fd &&new->gmem_offset < s->gmem_offset + s->bytes &&
		    s->gmem_offset < new->gmem_offset + new->bytes)
			return km_fail(
				EEXIST,
				"bytes 0x%" PRIx64 " + 0x%" PRIx64 " of the region are bound to "
				"slot %" PRIu32 ": a guest_memfd range has one direct slot at most",
				new->offset, new->bytes, s->id);
	}
	return 0;
}

static int id_check(const struct kvmem_vm *vm, uint32_t id)
{
	if (SPACE(id) >= KM_SLOT_SPACES)
		return km_fail(EINVAL,
			       "slot %" PRIu32 " is of address space %" PRIu32
			       ": KVM has two at most",
			       id, SPACE(id));
	if (NUMBER(id) >= vm->max_slots)
		return km_fail(EINVAL,
			       "slot number %" PRIu32 " is beyond the %" PRIu32 " slots of this VM",
			       NUMBER(id), vm->max_slots);
	if (km_slot_find(vm, id))
		return km_fail(EEXIST, "slot number %" PRIu32 " is taken", id);
	return 0;
}

static int make_room(struct kvmem_vm *vm, uint32_t space)
{
	size_t room = vm->slot_room ? vm->slot_room * 2 : 8;
	struct km_slot **p;

	if (!vm->by_id[space])
		vm->by_id[space] = km_sys_alloc(vm->max_slots * sizeof(*p));
	if (!vm->by_id[space] || km_views_reserve(&vm->views[space]))
		return km_fail(ENOMEM, "slot table: no memory");
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
	vm->by_id[SPACE(s->id)][NUMBER(s->id)] = s;
	km_views_add(&vm->views[SPACE(s->id)], s);
}

static void take_out(struct kvmem_vm *vm, struct km_slot *s)
{
	size_t i = 0;

	while (vm->slots[i] != s)
		i++;
	vm->slot_count--;
	memmove(&vm->slots[i], &vm->slots[i + 1], (vm->slot_count - i) * sizeof(*vm->slots));
	vm->by_id[SPACE(s->id)][NUMBER(s->id)] = NULL;
	km_views_remove(&vm->views[SPACE(s->id)], s);
}

static int set_tracked(struct kvmem_vm *vm, struct km_slot *s)
{
	int r = 0;

	if (vm->hooks)
		r = vm->hooks->attaching(vm->hooks_arg, s);
	if (r < 0)
		return r;
	s->logged = r > 0;
	if (s->adopted && !s->logged) /* KVM has it as it is to be */
		return 0;
	r = km_slot_set(vm, s, s->logged);
	if (r && vm->hooks)
		vm->hooks->attach_failed(vm->hooks_arg, s);
	return r;
}

/*
 * Which numbers the VMM has set itself is not known. KVM is asked first, as it would take a request for the very memory
 * of a slot that it has for one to move it. A number that it refuses is passed over; what is refused under every number
 * is refused for its first reason.
 */
static int try_numbers(struct kvmem_vm *vm, struct km_slot *s, void *hva)
{
	uint64_t shown = vm->slot_count ? vm->slots[0]->gpa : s->gpa;
	struct km_detail before, first;
	int err = 0;

	km_detail_save(&before);
	for (uint32_t n = vm->first_slot; n < vm->max_slots; n++) {
		int r;

		if (km_slot_find(vm, n))
			continue;
		s->id = n;
		if (km_slot_is_known(vm, n, shown, hva))
			r = km_slot_refused(s, -EINVAL);
		else
			r = set_tracked(vm, s);
		if (!r)
			km_detail_restore(&before);
		if (r != -EINVAL && r != -EBUSY)
			return r;
		if (!err)
			km_detail_save(&first);
		err = err ? err : r;
	}
	if (!err)
		return km_fail(ENOSPC, "all slots from %" PRIu32 " to %" PRIu32 " are taken",
			       vm->first_slot, vm->max_slots - 1);
	km_detail_restore(&first);
	return err;
}

static int set_any(struct kvmem_vm *vm, struct km_slot *s)
{
	void *hva;
	int r = (int)km_slot_ask_page(&hva);

	if (r)
		return r;
	r = try_numbers(vm, s, hva);
	km_sys_munmap(hva, km_sys_page_size());
	return r;
}

static int add(struct kvmem_vm *vm, struct km_slot *s)
{
	bool any = s->id == KVMEM_SLOT_ANY;
	int r;

	if (any)
		s->id = 0; /* of the first address space */
	r = any ? 0 : id_check(vm, s->id);
	if (!r)
		r = overlap_check(vm, s);
	if (!r)
		r = make_room(vm, SPACE(s->id));
	if (!r && s->adopted)
		r = km_slot_verify(vm, s);
	if (!r)
		r = any ? set_any(vm, s) : set_tracked(vm, s);
	if (!r)
		insert(vm, s);
	return r;
}

int km_slot_add(struct kvmem_vm *vm, const struct km_slot *want, struct km_slot **ret_slot)
{
	struct km_slot *s = km_sys_alloc(sizeof(*s));
	int r;

	if (!s)
		return km_fail(ENOMEM, "slot: no memory");
	*s = *want;
	r = add(vm, s);
	if (r)
		km_sys_free(s);
	else
		*ret_slot = s;
	return r;
}

int km_slot_adopt(struct kvmem_vm *vm, const struct km_slot *want)
{
	struct km_slot *s;

	return km_slot_add(vm, want, &s);
}

int km_slot_readopt(struct kvmem_vm *vm, struct km_slot *s, bool keep_log)
{
	int r = km_slot_verify(vm, s);

	if (!r)
		r = km_slot_set(vm, s, s->logged || keep_log);
	if (!r)
		s->keep_log = keep_log;
	return r;
}

int km_slot_log(struct kvmem_vm *vm, const struct km_slot *s, bool on)
{
	struct km_detail before;
	int r = 0;

	km_detail_save(&before);
	if (s->adopted)
		r = km_slot_verify(vm, s);
	if ((r == -ENOENT || r == -EINVAL) && !on) {
		km_detail_restore(&before);
		return 0;
	}
	return r ? r : km_slot_set(vm, s, on || s->keep_log);
}

/* The flags that the VMM had given it. */
static int give_back(struct kvmem_vm *vm, const struct km_slot *s)
{
	return s->logged && !s->keep_log ? km_slot_log(vm, s, false) : 0;
}

/* A slot of ours that the VMM has deleted is gone: KVM says EINVAL of what it does not have. */
static int take_away(struct kvmem_vm *vm, const struct km_slot *s)
{
	struct km_detail before;
	int r;

	km_detail_save(&before);
	r = km_slot_delete(vm, s);
	if (r != -EINVAL || km_slot_verify(vm, s) != -ENOENT)
		return r;
	km_detail_restore(&before);
	return 0;
}

int km_slot_remove(struct kvmem_vm *vm, struct km_slot *s)
{
	int r;

	if (vm->hooks)
		vm->hooks->detaching(vm->hooks_arg, s);
	r = s->adopted ? give_back(vm, s) : take_away(vm, s);
	if (r)
		return r;
	if (vm->hooks)
		vm->hooks->detached(vm->hooks_arg, s);
	take_out(vm, s);
	km_sys_free(s);
	return 0;
}

void km_slots_free(struct kvmem_vm *vm)
{
	for (unsigned int i = 0; i < KM_SLOT_SPACES; i++) {
		km_sys_free(vm->by_id[i]);
		km_views_free(&vm->views[i]);
	}
	km_sys_free(vm->slots);
}

void km_vm_set_tracking(struct kvmem_vm *vm, bool on)
{
	pthread_rwlock_wrlock(&vm->change_lock);
	atomic_store(&vm->tracking, on);
	pthread_rwlock_unlock(&vm->change_lock);
}

/* True when the hook has done it. */
static bool tell(struct kvmem_vm *vm, struct kvmem_region *region, uint64_t offset, uint64_t bytes,
		 bool exclusive)
{
	return !atomic_load(&vm->tracking) ||
	       vm->hooks->changed(vm->hooks_arg, region, offset, bytes, exclusive);
}

void km_vm_changed(struct kvmem_vm *vm, struct kvmem_region *region, uint64_t offset,
		   uint64_t bytes)
{
	bool told;

	if (!vm || !bytes || !atomic_load(&vm->tracking))
		return;
	pthread_rwlock_rdlock(&vm->change_lock);
	told = tell(vm, region, offset, bytes, false);
	pthread_rwlock_unlock(&vm->change_lock);
	if (told)
		return;
	pthread_rwlock_wrlock(&vm->change_lock);
	tell(vm, region, offset, bytes, true);
	pthread_rwlock_unlock(&vm->change_lock);
}
