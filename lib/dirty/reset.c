// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Resets, and what to do when one comes short. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <inttypes.h>

#include "base/uapi/kvm.h"

/* A reset that was cut short is taken up again this often before its rest is left to the next one.
 */
#define RESET_TRIES 4

/*
 * A pending signal, even one of the freezer or a debugger, ends the kernel's reset loop after it
 * has counted the last run of pages and before it has protected them (seen on 6.18 and 7.2). All
 * signals are blocked here; what can still interrupt shows as fewer entries reset than were marked.
 */
static int64_t reset_once(struct kvmem_dirty *d)
{
	uint64_t start = km_sys_now_ns();
	sigset_t old;
	int64_t r;

	km_sys_block_signals(&old);
	r = km_sys_ioctl_val(d->vm->fd, KVM_RESET_DIRTY_RINGS, 0);
	km_sys_restore_signals(&old);
	km_count_shared(&d->stats.resets, 1);
	km_count_shared(&d->stats.reset_ns, km_sys_now_ns() - start);
	return r;
}

/* Any slot that had an entry marked since the last complete reset may have unprotected pages now.
 */
static void suspect_slots(struct kvmem_dirty *d)
{
	for (size_t i = 0; i < d->slot_count; i++)
		if (d->slots[i]->ring.epoch == d->table.epoch)
			d->slots[i]->suspect = true;
	atomic_store(&d->suspects, true);
	km_count_shared(&d->stats.short_resets, 1);
}

static int reset_marked(struct kvmem_dirty *d)
{
	for (int i = 0; i < RESET_TRIES; i++) {
		uint64_t marked = atomic_load(&d->marked);
		int64_t r;

		if (!marked)
			break;
		r = reset_once(d);
		if (r < 0)
			return km_fail(EIO,
				       "KVM_RESET_DIRTY_RINGS of %" PRIu64
				       " entries failed with error %d: "
				       "the pages are still the batch's, try again",
				       marked, (int)-r);
		if ((uint64_t)r < marked)
			suspect_slots(d);
		atomic_store(&d->marked, (uint64_t)r < marked ? marked - (uint64_t)r : 0);
		if (!r)
			break;
	}
	if (!atomic_load(&d->marked))
		d->table.epoch++;
	return 0;
}

int km_dirty_reset(struct kvmem_dirty *d)
{
	int r;

	pthread_rwlock_wrlock(&d->mark_lock);
	r = reset_marked(d);
	pthread_rwlock_unlock(&d->mark_lock);
	return r;
}

/*
 * Logging off and on again protects every page of the slot. What is written in between is not
 * logged, so the whole slot is reported again.
 */
static int64_t repair_slot(struct kvmem_dirty *d, struct km_dirty_slot *s)
{
	struct km_slot *slot = km_slot_find(d->vm, s->id);
	int r = km_slot_set(d->vm, slot, false);

	if (!r) {
		slot->logged = false;
		r = km_slot_set(d->vm, slot, true);
	}
	if (r)
		return km_fail(EIO,
			       "slot %" PRIu32
			       " could not be protected again after a short reset, error %d: "
			       "try again",
			       s->id, -r);
	slot->logged = true;
	s->suspect = false;
	km_dmap_set_range_shared(&s->dr->pending, s->ring.first, s->ring.pages);
	km_count_shared(&d->stats.pages_kept, s->ring.pages);
	return (int64_t)s->ring.pages;
}

int64_t km_dirty_repair(struct kvmem_dirty *d)
{
	int64_t pages = 0, r = 0;

	if (!atomic_load(&d->suspects))
		return 0;
	pthread_rwlock_wrlock(&d->vm->lock);
	for (size_t i = 0; i < d->slot_count && r >= 0; i++) {
		r = d->slots[i]->suspect ? repair_slot(d, d->slots[i]) : 0;
		pages += r;
	}
	if (r >= 0)
		atomic_store(&d->suspects, false);
	pthread_rwlock_unlock(&d->vm->lock);
	return r < 0 ? r : pages;
}
