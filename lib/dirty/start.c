// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Start and stop. */
#include "dirty/dirty_internal.h"

#include <errno.h>

static int log_slot(struct kvmem_dirty *d, struct km_slot *slot, bool on)
{
	int r = km_slot_log(d->vm, slot, on);

	if (!r)
		slot->logged = on;
	return r;
}

/* Returns the first error, having tried all. */
static int unlog_all(struct kvmem_dirty *d)
{
	int first = 0;

	for (size_t i = 0; i < d->vm->slot_count; i++) {
		struct km_slot *slot = d->vm->slots[i];
		int r = slot->logged ? log_slot(d, slot, false) : 0;

		if (r && !first)
			first = r;
	}
	return first;
}

static int log_all(struct kvmem_dirty *d)
{
	int r = 0;

	for (size_t i = 0; i < d->vm->slot_count && !r; i++)
		if (d->vm->slots[i]->tracked)
			r = log_slot(d, d->vm->slots[i], true);
	return r;
}

static void empty_rings(struct kvmem_dirty *d)
{
	if (d->mode != KVMEM_DIRTY_RING || !d->vcpu_count)
		return;
	km_dirty_take_all(d, true);
	km_dirty_reset(d, true);
}

/* Of what the rings held before the start nothing is to be reported; with FIRST_ALL everything. */
static void first_pages(struct kvmem_dirty *d)
{
	for (size_t i = 0; i < d->region_count; i++)
		km_dmap_take(NULL, 0, &d->regions[i]->pending);
	for (size_t i = 0; i < d->vm->slot_count; i++) {
		struct km_dirty_slot *s = d->vm->slots[i]->tracked;

		if (s && d->flags & KVMEM_DIRTY_FIRST_ALL)
			km_dirty_slot_whole(s);
		if (s)
			km_readers_slot_new(d, NULL, s);
	}
}

static int begin(struct kvmem_dirty *d)
{
	int r = km_dirty_slots_follow(d);

	if (r)
		return r;
	empty_rings(d);
	first_pages(d);
	if (d->mode == KVMEM_DIRTY_BITMAP)
		r = km_dirty_log_enable(d);
	if (!r)
		r = log_all(d);
	if (!r && d->mode == KVMEM_DIRTY_BITMAP)
		r = km_dirty_log_settle(d);
	if (!r)
		r = km_dirty_reaper_start(d);
	return r;
}

static int start_locked(struct kvmem_dirty *d)
{
	int r;

	if (d->started)
		return km_fail(EBUSY, "kvmem_dirty_start: it is started");
	r = begin(d);
	if (r) {
		struct km_detail why;

		km_detail_save(&why);
		unlog_all(d);
		km_dirty_log_disable(d);
		km_dirty_slots_forget(d);
		km_detail_restore(&why);
		return r;
	}
	d->harvested_at = km_sys_now_ns();
	d->started = true;
	km_readers_begin(d);
	km_vm_set_tracking(d->vm, true);
	return 0;
}

int kvmem_dirty_start(struct kvmem_dirty *dirty)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_start: dirty is NULL");
	r = km_callback_check("kvmem_dirty_start", NULL);
	if (r)
		return r;
	pthread_mutex_lock(&dirty->harvest_lock);
	pthread_rwlock_wrlock(&dirty->vm->lock);
	r = start_locked(dirty);
	pthread_rwlock_unlock(&dirty->vm->lock);
	km_readers_unlock(dirty);
	return r;
}

/*
 * It could not be stopped. A slot that is not logged any more is logged again and reported whole,
 * now or, where the kernel refuses that too, by the next harvest or its own detach.
 */
static void restart_logging(struct kvmem_dirty *d)
{
	struct km_detail why;

	km_detail_save(&why);
	for (size_t i = 0; i < d->vm->slot_count; i++) {
		struct km_slot *slot = d->vm->slots[i];
		struct km_dirty_slot *s = slot->tracked;

		if (!s || slot->logged)
			continue;
		if (log_slot(d, slot, true)) {
			s->suspect = true;
			atomic_store(&d->suspects, true);
		}
		km_dirty_slot_whole(s);
	}
	km_dirty_reaper_start(d); /* without it, full rings are emptied by their vCPUs */
	km_detail_restore(&why);
}

static int stop_check(const struct kvmem_dirty *d)
{
	if (!d->started)
		return km_fail(EINVAL, "kvmem_dirty_stop: it is not started");
	for (unsigned int i = 0; i < KM_READERS; i++)
		if (d->readers[i] && d->readers[i]->batch)
			return km_fail(EBUSY,
				       "kvmem_dirty_stop: a batch %sis out: "
				       "kvmem_batch_free() first",
				       i ? "of another reader " : "");
	return 0;
}

static int stop_locked(struct kvmem_dirty *d)
{
	int r = unlog_all(d);

	if (r) {
		restart_logging(d);
		return r;
	}
	km_dirty_log_disable(d);
	/* Leave the rings empty: nobody else would, and a vCPU with a full one does not run. */
	empty_rings(d);
	km_vm_set_tracking(d->vm, false);
	km_dirty_slots_forget(d);
	km_dirty_protect_end(d);
	d->started = false;
	return 0;
}

int kvmem_dirty_stop(struct kvmem_dirty *dirty)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_stop: dirty is NULL");
	r = km_callback_check("kvmem_dirty_stop", NULL);
	if (r)
		return r;
	pthread_mutex_lock(&dirty->harvest_lock);
	r = stop_check(dirty);
	if (!r) {
		km_dirty_reaper_stop(dirty); /* which takes vm->lock, and tries harvest_lock only */
		pthread_rwlock_wrlock(&dirty->vm->lock);
		r = stop_locked(dirty);
		pthread_rwlock_unlock(&dirty->vm->lock);
	}
	km_readers_unlock(dirty);
	return r;
}
