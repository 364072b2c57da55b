// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Harvest, commit, and what a batch gives out. */
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

static void batch_rewind(struct kvmem_batch *b)
{
	b->region = 0;
	b->pos = 0;
	b->run_at = b->run_count = 0;
}

static int64_t batch_fill(struct kvmem_dirty *d)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < d->region_count; i++) {
		km_dmap_take(&d->regions[i]->batch, &d->regions[i]->pending);
		pages += km_dmap_count(&d->regions[i]->batch);
	}
	d->batch.pages = pages;
	batch_rewind(&d->batch);
	if (pages)
		d->batch.state = KM_BATCH_OUT;
	return (int64_t)pages;
}

static int64_t harvest_locked(struct kvmem_dirty *d)
{
	uint64_t start = km_sys_now_ns(), now;
	int64_t pages;
	int r = 0;

	if (d->mode == KVMEM_DIRTY_RING)
		km_dirty_take_all(d, false);
	else
		r = km_dirty_log_fetch(d);
	if (r)
		return r;
	pages = batch_fill(d);
	/* Only entries of the VMM's own slots: nobody will commit them. */
	if (!pages && atomic_load(&d->marked))
		r = km_dirty_reset(d);
	now = km_sys_now_ns();
	update_rates(d, now);
	km_count_shared(&d->stats.harvests, 1);
	km_count_shared(&d->stats.harvest_ns, now - start);
	return r ? r : pages;
}

int64_t kvmem_dirty_harvest(struct kvmem_dirty *dirty, struct kvmem_batch **ret_batch)
{
	int64_t r;

	if (!dirty || !ret_batch)
		return km_fail(EINVAL, "kvmem_dirty_harvest: %s is NULL",
			       dirty ? "ret_batch" : "dirty");
	if (!dirty->started)
		return km_fail(EINVAL,
			       "kvmem_dirty_harvest: not started: kvmem_dirty_start() first");
	if (dirty->batch.state != KM_BATCH_FREE)
		return km_fail(
			EBUSY,
			"kvmem_dirty_harvest: the batch before is out: kvmem_batch_free() first");
	r = km_dirty_repair(dirty);
	if (r < 0)
		return r;
	pthread_rwlock_rdlock(&dirty->vm->lock);
	r = harvest_locked(dirty);
	pthread_rwlock_unlock(&dirty->vm->lock);
	if (r >= 0)
		*ret_batch = r ? &dirty->batch : NULL;
	return r;
}

int64_t kvmem_dirty_commit(struct kvmem_dirty *dirty, struct kvmem_batch *batch)
{
	int64_t r;

	if (!dirty || batch != &dirty->batch || batch->state == KM_BATCH_FREE)
		return km_fail(EINVAL, "kvmem_dirty_commit: %s",
			       dirty ? "not the batch that is out" : "dirty is NULL");
	if (batch->state == KM_BATCH_COMMITTED)
		return km_fail(EALREADY, "kvmem_dirty_commit: the batch is committed");
	pthread_rwlock_rdlock(&dirty->vm->lock);
	r = dirty->mode == KVMEM_DIRTY_RING ? km_dirty_reset(dirty) : km_dirty_log_clear(dirty);
	pthread_rwlock_unlock(&dirty->vm->lock);
	if (!r)
		r = km_dirty_repair(dirty);
	if (r < 0)
		return r;
	pthread_rwlock_rdlock(&dirty->vm->lock);
	batch->state = KM_BATCH_COMMITTED;
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r;
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
	pthread_rwlock_unlock(&d->vm->lock);
}

uint64_t kvmem_batch_pages(const struct kvmem_batch *batch)
{
	uint64_t pages;

	if (!batch)
		return 0;
	pthread_rwlock_rdlock(&batch->dirty->vm->lock);
	pages = batch->pages;
	pthread_rwlock_unlock(&batch->dirty->vm->lock);
	return pages;
}

/* ---- what it gives out ---- */

static int readable(const struct kvmem_batch *batch, const char *what)
{
	if (!batch)
		return km_fail(EINVAL, "%s: batch is NULL", what);
	if (batch->state != KM_BATCH_COMMITTED)
		return km_fail(
			EPERM,
			"%s: the batch is not committed: a page read now may change again without "
			"being reported; kvmem_dirty_commit() first",
			what);
	return 0;
}

/* Into the caller's store, from where kvmem_batch_next() is; 0 at the end. */
static size_t next_runs(struct kvmem_batch *b, struct kvmem_run *runs, size_t max)
{
	const struct kvmem_dirty *d = b->dirty;
	size_t n = 0;

	for (; b->region < d->region_count; b->region++, b->pos = 0) {
		struct km_dirty_region *dr = d->regions[b->region];

		n += km_dmap_runs(&dr->batch, &b->pos, dr->region, d->page_shift, runs + n,
				  max - n);
		if (n == max)
			break;
	}
	return n;
}

/* One by one they come from the batch's own store. */
static bool next_run(struct kvmem_batch *b, struct kvmem_run *ret_run)
{
	if (b->run_at == b->run_count) {
		b->run_at = 0;
		b->run_count = next_runs(b, b->runs, KM_BATCH_RUNS);
		if (!b->run_count)
			return false;
	}
	*ret_run = b->runs[b->run_at++];
	return true;
}

int64_t kvmem_batch_runs(struct kvmem_batch *batch, struct kvmem_run *runs, size_t count)
{
	int r = readable(batch, "kvmem_batch_runs");
	size_t n;

	if (r)
		return r;
	if (!runs || !count)
		return km_fail(EINVAL, "kvmem_batch_runs: room for no run");
	pthread_rwlock_rdlock(&batch->dirty->vm->lock);
	for (n = 0; n < count && batch->run_at < batch->run_count;)
		runs[n++] = batch->runs[batch->run_at++];
	n += next_runs(batch, runs + n, count - n);
	if (!n)
		batch_rewind(batch);
	pthread_rwlock_unlock(&batch->dirty->vm->lock);
	return (int64_t)n;
}

int kvmem_batch_next(struct kvmem_batch *batch, struct kvmem_run *ret_run)
{
	int r = readable(batch, "kvmem_batch_next");

	if (r)
		return r;
	if (!ret_run)
		return km_fail(EINVAL, "kvmem_batch_next: ret_run is NULL");
	pthread_rwlock_rdlock(&batch->dirty->vm->lock);
	r = next_run(batch, ret_run);
	if (!r)
		batch_rewind(batch);
	pthread_rwlock_unlock(&batch->dirty->vm->lock);
	return r;
}

int kvmem_batch_bitmap(struct kvmem_batch *batch, struct kvmem_region *region, uint64_t offset,
		       uint64_t bytes, uint64_t *bitmap)
{
	const struct km_dirty_region *dr;
	const struct kvmem_dirty *d;
	int r = readable(batch, "kvmem_batch_bitmap");

	if (r)
		return r;
	if (!region || !bitmap)
		return km_fail(EINVAL, "kvmem_batch_bitmap: %s is NULL",
			       region ? "bitmap" : "region");
	d = batch->dirty;
	r = km_range_check(offset, bytes, region->bytes, "kvmem_batch_bitmap: region");
	if (!r)
		r = km_align_check(offset | bytes, 1ull << d->page_shift,
				   "kvmem_batch_bitmap: offset or bytes");
	if (r)
		return r;
	pthread_rwlock_rdlock(&d->vm->lock);
	dr = km_dirty_region_find(d, region);
	if (dr)
		km_dmap_or_out(&dr->batch, offset >> d->page_shift, bytes >> d->page_shift, bitmap);
	pthread_rwlock_unlock(&d->vm->lock);
	return 0;
}

/* ---- merge ---- */

struct merge {
	struct kvmem_dirty *d;
	struct km_dmap *pending;
	uint64_t offset, end;
	unsigned int shift;
};

/* Bits [first, end) of the caller's bitmap. */
static void merge_run(const struct merge *m, uint64_t first, uint64_t end)
{
	uint64_t from = m->offset + (first << m->shift);
	uint64_t to = end << m->shift >= m->end - m->offset ? m->end
							    : m->offset + (end << m->shift);

	from >>= m->d->page_shift;
	to = (to + (1ull << m->d->page_shift) - 1) >> m->d->page_shift;
	km_dmap_set_range_shared(m->pending, from, to - from);
	km_count_shared(&m->d->stats.pages_merged, to - from);
}

static void merge_bits(const struct merge *m, const uint64_t *bitmap)
{
	uint64_t bits = ((m->end - m->offset - 1) >> m->shift) + 1;

	for (uint64_t at = 0; at < bits; at += 64) {
		uint64_t word = bitmap[at / 64];

		if (bits - at < 64)
			word &= ~(~0ull << (bits - at));
		while (word) {
			unsigned int lo = (unsigned int)__builtin_ctzll(word);
			uint64_t gap = ~(word >> lo);
			unsigned int n = gap ? (unsigned int)__builtin_ctzll(gap) : 64;

			merge_run(m, at + lo, at + lo + n);
			word &= lo + n < 64 ? ~0ull << (lo + n) : 0;
		}
	}
}

/* The region's maps, made on first need; vm->lock held for reading on return, also on failure. */
static int merge_lock(struct kvmem_dirty *d, struct kvmem_region *region,
		      struct km_dirty_region **ret)
{
	int r = 0;

	pthread_rwlock_rdlock(&d->vm->lock);
	*ret = km_dirty_region_find(d, region);
	while (d->started && !*ret && !r) {
		pthread_rwlock_unlock(&d->vm->lock);
		pthread_rwlock_wrlock(&d->vm->lock);
		if (d->started)
			r = km_dirty_region_get(d, region, ret);
		pthread_rwlock_unlock(&d->vm->lock);
		pthread_rwlock_rdlock(&d->vm->lock);
		*ret = km_dirty_region_find(d, region);
	}
	return r;
}

int kvmem_dirty_merge(struct kvmem_dirty *dirty, struct kvmem_region *region, uint64_t offset,
		      uint64_t bytes, unsigned int page_shift, const uint64_t *bitmap)
{
	struct merge m = {
		.d = dirty, .offset = offset, .end = offset + bytes, .shift = page_shift
	};
	struct km_dirty_region *dr;
	int r;

	if (!dirty || !region || !bitmap)
		return km_fail(EINVAL, "kvmem_dirty_merge: %s is NULL",
			       !dirty	 ? "dirty"
			       : !region ? "region"
					 : "bitmap");
	if (page_shift > 40)
		return km_fail(EINVAL, "kvmem_dirty_merge: page_shift %u, must be at most 40",
			       page_shift);
	if (region->vm != dirty->vm)
		return km_fail(EINVAL, "kvmem_dirty_merge: the region is not of the tracker's VM");
	r = km_range_check(offset, bytes, region->bytes, "kvmem_dirty_merge: region");
	if (r)
		return r;
	r = merge_lock(dirty, region, &dr);
	if (!r && !dirty->started)
		r = km_fail(EINVAL, "kvmem_dirty_merge: not started: kvmem_dirty_start() first");
	if (!r) {
		m.pending = &dr->pending;
		merge_bits(&m, bitmap);
	}
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r;
}
