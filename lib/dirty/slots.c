// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The slots that the tracker follows, from their first moment to their last. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <inttypes.h>

static int refuse_direct(const struct km_slot *slot)
{
	if (slot->gmem_fd < 0)
		return 0;
	return km_fail(EOPNOTSUPP,
		       "slot %" PRIu32
		       " is a direct slot of a guest_memfd, whose writes KVM does not "
		       "log: make the region with slot_form KVMEM_SLOT_HVA",
		       slot->id);
}

static int slot_new(struct kvmem_dirty *d, const struct km_slot *slot, struct km_dirty_slot **ret)
{
	struct km_dirty_slot *s = km_sys_alloc(sizeof(*s));

	if (!s)
		return km_fail(ENOMEM, "dirty tracker: no memory for slot %" PRIu32, slot->id);
	s->ring.first = slot->offset >> d->page_shift;
	s->ring.pages = slot->bytes >> d->page_shift;
	if (d->mode == KVMEM_DIRTY_BITMAP) {
		s->log_bytes = (size_t)((s->ring.pages + 63) / 64 * 8);
		s->log = km_sys_alloc(s->log_bytes);
		if (!s->log) {
			km_sys_free(s);
			return km_fail(ENOMEM,
				       "dirty tracker: no memory for the log of slot %" PRIu32,
				       slot->id);
		}
	}
	*ret = s;
	return 0;
}

static void slot_free(struct km_dirty_slot *s)
{
	km_sys_free(s->log);
	km_sys_free(s);
}

/* Before the kernel logs: an entry of a slot that is not followed would be dropped. */
static int slot_follow(struct kvmem_dirty *d, struct km_slot *slot)
{
	struct km_dirty_slot *s = NULL;
	int r = refuse_direct(slot);

	if (!r)
		r = slot_new(d, slot, &s);
	if (r)
		return r;
	r = km_dirty_region_get(d, slot->owner, &s->dr);
	if (r) {
		slot_free(s);
		return r;
	}
	s->ring.own = &s->dr->of[d->takes]->batch;
	s->ring.shared = &s->dr->pending;
	slot->tracked = s;
	return 0;
}

static void slot_unfollow(struct km_slot *slot)
{
	struct km_dirty_slot *s = slot->tracked;

	slot->tracked = NULL;
	if (s)
		slot_free(s);
}

int km_dirty_slots_follow(struct kvmem_dirty *d)
{
	int r = 0;

	for (size_t i = 0; i < d->vm->slot_count && !r; i++)
		if (d->vm->slots[i]->wants_log)
			r = slot_follow(d, d->vm->slots[i]);
	return r;
}

void km_dirty_slots_forget(struct kvmem_dirty *d)
{
	for (size_t i = 0; i < d->vm->slot_count; i++)
		slot_unfollow(d->vm->slots[i]);
	km_doubt_forget(d, NULL);
	km_dirty_regions_free(d);
	atomic_store(&d->suspects, false);
}

/* ---- hooks ---- */

/*
 * The kernel joins ring entries by slot number, and drops a run that ends beyond the slot which has
 * the number now. So a number can be used again only when no entry of its last slot, ours or the
 * VMM's, is left in a ring.
 */
static int number_is_free(struct kvmem_dirty *d, uint32_t id)
{
	int r;

	if (d->mode != KVMEM_DIRTY_RING || !d->vcpu_count)
		return 0;
	km_dirty_take_all(d, true);
	r = km_dirty_reset(d, true);
	if (!km_dirty_unreset(d, id))
		return 0;
	if (r)
		return r;
	return km_fail(EBUSY,
		       "slot number %" PRIu32
		       ": ring entries of the slot that had it are not reset "
		       "yet: try again, or another number",
		       id);
}

static int attaching(void *arg, struct km_slot *slot)
{
	struct kvmem_dirty *d = arg;
	int r;

	if (!d->started || !slot->wants_log)
		return 0;
	r = number_is_free(d, slot->id);
	if (!r)
		r = slot_follow(d, slot);
	if (r)
		return r;
	if (d->flags & KVMEM_DIRTY_FIRST_ALL)
		km_dirty_slot_whole(slot->tracked);
	km_readers_slot_new(d, NULL, slot->tracked);
	return 1;
}

static void attach_failed(void *arg, struct km_slot *slot)
{
	(void)arg;
	slot_unfollow(slot);
}

/*
 * The slot is to be deleted, and what its last writes have left where no ring shows it goes with
 * it: the kernel's bitmap; the buffer of a processor that logs by itself, of a vCPU that has left
 * the guest and is not on yet to empty it; writes while nothing was logged. Then all of the slot
 * counts as written.
 */
static void detaching(void *arg, struct km_slot *slot)
{
	struct kvmem_dirty *d = arg;
	struct km_dirty_slot *s = slot->tracked;

	if (s && (d->mode == KVMEM_DIRTY_BITMAP || d->late_writes || s->suspect || !slot->logged))
		km_dirty_slot_whole(s);
}

/*
 * Rings outlive the slot: no vCPU can push an entry of it any more, and the number is not given to
 * another slot before we return. So what the rings hold now is all of it, and still the old slot's.
 */
static void detached(void *arg, struct km_slot *slot)
{
	struct kvmem_dirty *d = arg;
	struct km_dirty_slot *s = slot->tracked;

	if (!s)
		return;
	if (d->mode == KVMEM_DIRTY_RING) {
		km_dirty_take_all(d, true);
		km_dirty_reset(d, false); /* what stays marked, number_is_free() looks after */
		if (s->suspect)
			km_dirty_slot_whole(s);
		km_doubt_slot_gone(d, slot->id);
	}
	slot_unfollow(slot);
}

static void region_freed(void *arg, const struct kvmem_region *region)
{
	struct kvmem_dirty *d = arg;
	struct km_dirty_region *dr = km_dirty_region_find(d, region);

	if (dr)
		km_doubt_forget(d, dr);
	km_dirty_region_free(d, region);
}

/* The record of a region that no slot shows yet is made here. */
static bool changed(void *arg, struct kvmem_region *region, uint64_t offset, uint64_t bytes,
		    bool exclusive)
{
	struct kvmem_dirty *d = arg;
	struct km_dirty_region *dr;
	uint64_t first = offset >> d->page_shift;
	uint64_t end = (offset + bytes + (1ull << d->page_shift) - 1) >> d->page_shift;
	bool wanted = region->plan.granted & KVMEM_WANT_DIRTY;

	dr = km_dirty_region_late(d, region, wanted && exclusive);
	if (!dr && wanted && !exclusive)
		return false;
	if (!dr && wanted)
		km_readers_untold(d, region); /* the next harvest of each says so */
	if (!dr)
		return true;
	km_dmap_set_range_shared(&dr->pending, first, end - first);
	km_count_shared(&d->stats.pages_changed, end - first);
	return true;
}

const struct km_slot_hooks km_dirty_hooks = {
	.attaching = attaching,
	.attach_failed = attach_failed,
	.detaching = detaching,
	.detached = detached,
	.region_freed = region_freed,
	.changed = changed,
};
