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
static struct kvmem_batch *batch_new(struct kvmem_reader *reader, uint64_t pages)
{
	struct kvmem_batch *b = &reader->batches[reader->batch_turn++ % KM_BATCHES];

	*b = (struct kvmem_batch){ .reader = reader, .state = KM_BATCH_OUT, .pages = pages };
	return b;
}

/* What the harvests of other readers have found since this one's last. */
static uint64_t add_pending(struct kvmem_reader *reader)
{
	struct kvmem_dirty *d = reader->dirty;
	uint64_t pages = 0;

	for (size_t i = 0; i < d->region_count; i++) {
		struct km_dirty_maps *maps = d->regions[i]->of[reader->index];

		if (!maps)
			continue;
		km_dmap_add(&maps->batch, &maps->pending);
		km_dmap_clear(&maps->pending);
		pages += km_dmap_count(&maps->batch);
	}
	return pages;
}

static int64_t harvest_taken(struct kvmem_reader *reader, uint64_t start)
{
	struct kvmem_dirty *d = reader->dirty;
	uint64_t now, pages;
	int r = 0;

	pages = add_pending(reader);
	/* Of an empty batch there may be no commit; and entries of the VMM's own slots are nobody's. */
	if (!pages && atomic_load(&d->marked))
		r = km_dirty_reset(d, false);
	if (r)
		return r;
	reader->batch = batch_new(reader, pages);
	now = km_sys_now_ns();
	update_rates(d, now);
	km_count_shared(&d->stats.harvests, 1);
	km_count_shared(&d->stats.harvest_ns, now - start);
	return (int64_t)pages;
}

static int ready(struct kvmem_dirty *d, const char *what)
{
	int64_t r;

	if (!d->started)
		return km_fail(EINVAL, "%s: not started: kvmem_dirty_start() first", what);
	km_dirty_regions_join(d);
	r = km_dirty_repair(d);
	return r < 0 ? (int)r : 0;
}

int km_reader_untold(const char *what)
{
	return km_fail(ENOMEM,
		       "%s: there was no memory to write down which pages of "
		       "a region without a slot a discard, a populate or "
		       "kvmem_region_mark_present() has changed: take all of it as changed",
		       what);
}

/* Each time that a ring is found to have overflowed, slots are to be repaired before all is there. */
#define REPAIRS 8

int km_dirty_take_whole(struct kvmem_dirty *d, struct kvmem_reader *reader, const char *what)
{
	int r = 0;

	for (int i = 0; !r && i < REPAIRS; i++) {
		r = ready(d, what);
		if (r)
			return r;
		pthread_rwlock_rdlock(&d->vm->lock);
		r = km_readers_take(d, reader);
		if (!r && !atomic_load(&d->suspects))
			return 0;
		if (!r && reader)
			km_readers_keep(d, reader);
		pthread_rwlock_unlock(&d->vm->lock);
	}
	if (r)
		return r;
	return km_fail(
		EIO,
		"%s: rings overflow in the kernel, or resets are cut short, faster than that can be "
		"mended: use KVMEM_DIRTY_REAPER, larger rings, or KVMEM_DIRTY_BITMAP",
		what);
}

static int64_t harvest(struct kvmem_reader *reader, const char *what)
{
	struct kvmem_dirty *d = reader->dirty;
	uint64_t start = km_sys_now_ns();
	int64_t r;

	if (reader->batch && d->started)
		return km_fail(EBUSY, "%s: the batch before is out: kvmem_batch_free() first",
			       what);
	if (d->started && atomic_exchange(&reader->untold, false))
		return km_reader_untold(what);
	r = km_dirty_take_whole(d, reader, what);
	if (r)
		return r;
	r = harvest_taken(reader, start);
	pthread_rwlock_unlock(&d->vm->lock);
	return r;
}

int64_t kvmem_reader_harvest(struct kvmem_reader *reader, struct kvmem_batch **ret_batch)
{
	const char *what = "kvmem_reader_harvest";
	int64_t r;

	if (!reader || !ret_batch)
		return km_fail(EINVAL, "%s: %s is NULL", what, reader ? "ret_batch" : "reader");
	if (reader == &reader->dirty->own)
		what = "kvmem_dirty_harvest";
	r = km_callback_check(what, NULL);
	if (r)
		return r;
	pthread_mutex_lock(&reader->dirty->harvest_lock);
	r = harvest(reader, what);
	if (r >= 0)
		*ret_batch = reader->batch;
	km_readers_unlock(reader->dirty);
	return r;
}

int64_t kvmem_dirty_harvest(struct kvmem_dirty *dirty, struct kvmem_batch **ret_batch)
{
	if (!dirty || !ret_batch)
		return km_fail(EINVAL, "kvmem_dirty_harvest: %s is NULL",
			       dirty ? "ret_batch" : "dirty");
	return kvmem_reader_harvest(&dirty->own, ret_batch);
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

static int64_t commit_log(struct kvmem_dirty *d, struct kvmem_batch *batch)
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
	batch->state = KM_BATCH_COMMITTED;
	pthread_rwlock_unlock(&d->vm->lock);
	return again;
}

/* Looks at no batch but those that are out: the handle may be an old one. */
static int64_t commit(struct kvmem_dirty *d, struct kvmem_batch *batch)
{
	for (unsigned int i = 0; i < KM_READERS; i++) {
		if (!d->readers[i] || d->readers[i]->batch != batch)
			continue;
		if (batch->state == KM_BATCH_COMMITTED)
			return km_fail(EALREADY, "kvmem_dirty_commit: the batch is committed");
		return commit_log(d, batch);
	}
	return km_fail(EINVAL, "kvmem_dirty_commit: not a batch that is out");
}

int64_t kvmem_dirty_commit(struct kvmem_dirty *dirty, struct kvmem_batch *batch)
{
	int64_t r;

	if (!dirty || !batch)
		return km_fail(EINVAL, "kvmem_dirty_commit: %s is NULL", dirty ? "batch" : "dirty");
	r = km_callback_check("kvmem_dirty_commit", NULL);
	if (r)
		return r;
	pthread_mutex_lock(&dirty->harvest_lock);
	r = commit(dirty, batch);
	km_readers_unlock(dirty);
	return r;
}

/* Back to what its reader has coming (with harvest_lock held), or done with. */
static void end_batch(struct kvmem_batch *batch, bool keep)
{
	struct kvmem_reader *reader = batch->reader;
	struct kvmem_dirty *d = reader->dirty;

	for (size_t i = 0; i < d->region_count && batch->pages; i++) {
		struct km_dirty_maps *maps = d->regions[i]->of[reader->index];

		if (maps && keep)
			km_dmap_add(&maps->pending, &maps->batch);
		if (maps)
			km_dmap_clear(&maps->batch);
	}
	batch->state = KM_BATCH_FREE;
	reader->batch = NULL;
	if (keep)
		km_readers_tell(d, NULL);
}

void kvmem_batch_free(struct kvmem_batch *batch)
{
	struct kvmem_dirty *d;
	bool keep;

	if (!batch || batch->state == KM_BATCH_FREE)
		return;
	d = batch->reader->dirty;
	keep = batch->state != KM_BATCH_COMMITTED;
	if (keep)
		pthread_mutex_lock(&d->harvest_lock);
	pthread_rwlock_rdlock(&d->vm->lock);
	end_batch(batch, keep);
	pthread_rwlock_unlock(&d->vm->lock);
	if (keep)
		km_readers_unlock(d);
}

int kvmem_batch_return(struct kvmem_batch *batch)
{
	struct kvmem_dirty *d;
	int r;

	if (!batch)
		return km_fail(EINVAL, "kvmem_batch_return: batch is NULL");
	r = km_callback_check("kvmem_batch_return", NULL);
	if (r)
		return r;
	if (batch->state == KM_BATCH_FREE)
		return km_fail(EINVAL, "kvmem_batch_return: the batch is freed");
	d = batch->reader->dirty;
	pthread_mutex_lock(&d->harvest_lock);
	pthread_rwlock_rdlock(&d->vm->lock);
	end_batch(batch, true);
	pthread_rwlock_unlock(&d->vm->lock);
	km_readers_unlock(d);
	return 0;
}
