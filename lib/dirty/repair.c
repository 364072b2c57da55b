// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The last resort where it is not known any more which pages of a slot are protected: logging off
 * and on again protects every page of it. What is written in between is not logged, so the whole
 * slot is reported.
 */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <inttypes.h>

static int64_t repair_slot(struct kvmem_dirty *d, struct km_slot *slot)
{
	struct km_dirty_slot *s = slot->tracked;
	int r = km_slot_set(d->vm, slot, false);

	if (!r) {
		slot->logged = false;
		r = km_slot_set(d->vm, slot, true);
	}
	if (r)
		return km_fail(EIO,
			       "slot %" PRIu32 " could not be protected again, error %d: try again",
			       slot->id, -r);
	slot->logged = true;
	s->suspect = false;
	km_dirty_slot_whole(s);
	km_doubt_slot_gone(d, slot->id);
	km_count_shared(&d->stats.pages_kept, s->ring.pages);
	return (int64_t)s->ring.pages;
}

static int64_t repair_all(struct kvmem_dirty *d)
{
	int64_t pages = 0;

	for (size_t i = 0; i < d->vm->slot_count; i++) {
		const struct km_dirty_slot *s = d->vm->slots[i]->tracked;
		int64_t r = s && s->suspect ? repair_slot(d, d->vm->slots[i]) : 0;

		if (r < 0)
			return r;
		pages += r;
	}
	atomic_store(&d->suspects, false);
	return pages;
}

int64_t km_dirty_repair(struct kvmem_dirty *d)
{
	int64_t r;

	if (!atomic_load(&d->suspects))
		return 0;
	pthread_rwlock_wrlock(&d->vm->lock);
	r = repair_all(d);
	pthread_rwlock_unlock(&d->vm->lock);
	return r;
}
