// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Harvest and commit. */
#include "dirty/dirty_internal.h"

#include <errno.h>

static void update_rates(struct kvmem_dirty *d, uint64_t now)
{
	uint64_t ns = now > d->harvested_at ? now - d->harvested_at : 1;

	for (size_t i = 0; i < d->vcpu_count; i++) {
		struct km_dirty_vcpu *v = d->vcpus[i];
		uint64_t pages = atomic_load(&v->pages);

		atomic_store(&v->rate,
			     (uint64_t)((double)(pages - v->pages_then) * 1e9 / (double)ns));
		v->pages_then = pages;
	}
	d->harvested_at = now;
}

/* Each batch has a handle that is not the next one's, so that freeing one twice does no harm. */
static struct kvmem_batch *batch_new(struct kvmem_dirty *d, uint64_t pages)
{
	struct kvmem_batch *b = &d->batches[d->batch_turn++ % KM_BATCHES];

	*b = (struct kvmem_batch){ .dirty = d, .state = KM_BATCH_OUT, .pages = pages };
	return b;
}

static uint64_t merge_pending(struct kvmem_dirty *d)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < d->region_count; i++) {
		km_dmap_take(&d->regions[i]->batch, &d->regions[i]->pending);
		pages += km_dmap_count(&d->regions[i]->batch);
	}
	return pages;
}

static bool nothing_kept(const struct kvmem_dirty *d)
{
	for (size_t i = 0; i < d->region_count; i++)
		if (!km_dmap_empty(&d->regions[i]->batch))
			return false;
	return true;
}

static int take_log(struct kvmem_dirty *d)
{
	bool empty = nothing_kept(d); /* a batch that was not committed is in the maps */

	if (d->mode != KVMEM_DIRTY_RING)
		return km_dirty_log_fetch(d);
	km_doubt_begin(d);
	km_dirty_take_all(d, false);
	km_doubt_report(d, empty);
	return 0;
}

static int64_t harvest_locked(struct kvmem_dirty *d)
{
	uint64_t start = km_sys_now_ns(), now, pages;
	int r = take_log(d);

	if (r)
		return r;
	pages = merge_pending(d);
	/* Only entries of the VMM's own slots: nobody will commit them. */
	if (!pages && atomic_load(&d->marked))
		r = km_dirty_reset(d, false);
	if (r)
		return r;
	if (pages)
		d->batch = batch_new(d, pages);
	now = km_sys_now_ns();
	update_rates(d, now);
	km_count_shared(&d->stats.harvests, 1);
	km_count_shared(&d->stats.harvest_ns, now - start);
	return (int64_t)pages;
}

static int harvest_check(struct kvmem_dirty *d, struct kvmem_batch **ret_batch)
{
	int r;

	if (!d || !ret_batch)
		return km_fail(EINVAL, "kvmem_dirty_harvest: %s is NULL",
			       d ? "ret_batch" : "dirty");
	r = km_callback_check("kvmem_dirty_harvest", NULL);
	if (r)
		return r;
	if (!d->started)
		return km_fail(EINVAL,
			       "kvmem_dirty_harvest: not started: kvmem_dirty_start() first");
	if (d->batch)
		return km_fail(
			EBUSY,
			"kvmem_dirty_harvest: the batch before is out: kvmem_batch_free() first");
	if (atomic_exchange(&d->untold, false))
		return km_fail(
			ENOMEM,
			"kvmem_dirty_harvest: there was no memory to write down which pages of "
			"a region without a slot a discard, a populate or "
			"kvmem_region_mark_present() has changed: take all of it as changed");
	return 0;
}

int64_t kvmem_dirty_harvest(struct kvmem_dirty *dirty, struct kvmem_batch **ret_batch)
{
	int64_t r = harvest_check(dirty, ret_batch);

	if (!r)
		km_dirty_regions_join(dirty);
	if (!r)
		r = km_dirty_repair(dirty);
	if (r < 0)
		return r;
	pthread_rwlock_rdlock(&dirty->vm->lock);
	r = harvest_locked(dirty);
	pthread_rwlock_unlock(&dirty->vm->lock);
	if (r >= 0)
		*ret_batch = dirty->batch;
	return r;
}

/* Pages that the next batch reports again, whether written or not. */
static int64_t unsure_pages(struct kvmem_dirty *d)
{
	int64_t n;

	if (!d->doubt_count)
		return 0;
	pthread_rwlock_rdlock(&d->mark_lock);
	n = (int64_t)km_doubt_pages(d);
	pthread_rwlock_unlock(&d->mark_lock);
	return n;
}

static int64_t commit_log(struct kvmem_dirty *d)
{
	int64_t again = 0;
	int r;

	pthread_rwlock_rdlock(&d->vm->lock);
	r = d->mode == KVMEM_DIRTY_RING ? km_dirty_reset(d, false) : km_dirty_log_clear(d);
	pthread_rwlock_unlock(&d->vm->lock);
	if (!r)
		again = km_dirty_repair(d);
	if (r || again < 0)
		return r ? r : again;
	pthread_rwlock_rdlock(&d->vm->lock);
	again += unsure_pages(d);
	d->batch->state = KM_BATCH_COMMITTED;
	pthread_rwlock_unlock(&d->vm->lock);
	return again;
}

int64_t kvmem_dirty_commit(struct kvmem_dirty *dirty, struct kvmem_batch *batch)
{
	int r;

	if (!dirty || !batch || batch != dirty->batch)
		return km_fail(EINVAL, "kvmem_dirty_commit: %s",
			       dirty ? "not the batch that is out" : "dirty is NULL");
	r = km_callback_check("kvmem_dirty_commit", NULL);
	if (r)
		return r;
	if (batch->state == KM_BATCH_COMMITTED)
		return km_fail(EALREADY, "kvmem_dirty_commit: the batch is committed");
	return commit_log(dirty);
}

void kvmem_batch_free(struct kvmem_batch *batch)
{
	struct kvmem_dirty *d;

	if (!batch || batch->state == KM_BATCH_FREE)
		return;
	d = batch->dirty;
	pthread_rwlock_rdlock(&d->vm->lock);
	for (size_t i = 0; i < d->region_count && batch->state == KM_BATCH_COMMITTED; i++)
		km_dmap_clear(&d->regions[i]->batch);
	batch->state = KM_BATCH_FREE;
	d->batch = NULL;
	pthread_rwlock_unlock(&d->vm->lock);
}
