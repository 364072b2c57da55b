// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a batch gives out. */
#include "dirty/dirty_internal.h"

#include <errno.h>

uint64_t kvmem_batch_pages(const struct kvmem_batch *batch)
{
	uint64_t pages;

	if (!batch || batch->state == KM_BATCH_FREE)
		return 0;
	pthread_rwlock_rdlock(&batch->reader->dirty->vm->lock);
	pages = batch->pages;
	pthread_rwlock_unlock(&batch->reader->dirty->vm->lock);
	return pages;
}

static struct km_dirty_maps *maps_of(const struct kvmem_batch *batch,
				     const struct kvmem_region *region)
{
	const struct km_dirty_region *dr = km_dirty_region_find(batch->reader->dirty, region);

	return dr ? dr->of[batch->reader->index] : NULL;
}

uint64_t kvmem_batch_region_pages(const struct kvmem_batch *batch,
				  const struct kvmem_region *region)
{
	struct km_dirty_maps *maps;
	uint64_t pages;

	if (!batch || batch->state == KM_BATCH_FREE)
		return 0;
	pthread_rwlock_rdlock(&batch->reader->dirty->vm->lock);
	maps = maps_of(batch, region);
	pages = maps ? km_dmap_count(&maps->batch) : 0;
	pthread_rwlock_unlock(&batch->reader->dirty->vm->lock);
	return pages;
}

static void rewind_batch(struct kvmem_batch *b)
{
	b->region = 0;
	b->pos = 0;
	b->run_at = b->run_count = 0;
}

static int readable(const struct kvmem_batch *batch, const char *what)
{
	if (!batch)
		return km_fail(EINVAL, "%s: batch is NULL", what);
	if (batch->state == KM_BATCH_FREE)
		return km_fail(EINVAL, "%s: the batch is freed", what);
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
	const struct kvmem_dirty *d = b->reader->dirty;
	size_t n = 0;

	for (; n < max && b->region < d->region_count; b->region++, b->pos = 0) {
		struct km_dirty_region *dr = d->regions[b->region];
		struct km_dirty_maps *maps = dr->of[b->reader->index];

		if (!maps)
			continue;
		n += km_dmap_runs(&maps->batch, &b->pos, dr->region, d->page_shift, runs + n,
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
		b->run_count = next_runs(b, b->reader->runs, KM_BATCH_RUNS);
		if (!b->run_count)
			return false;
	}
	*ret_run = b->reader->runs[b->run_at++];
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
	pthread_rwlock_rdlock(&batch->reader->dirty->vm->lock);
	for (n = 0; n < count && batch->run_at < batch->run_count;)
		runs[n++] = batch->reader->runs[batch->run_at++];
	n += next_runs(batch, runs + n, count - n);
	if (!n)
		rewind_batch(batch);
	pthread_rwlock_unlock(&batch->reader->dirty->vm->lock);
	return (int64_t)n;
}

int kvmem_batch_next(struct kvmem_batch *batch, struct kvmem_run *ret_run)
{
	int r = readable(batch, "kvmem_batch_next");

	if (r)
		return r;
	if (!ret_run)
		return km_fail(EINVAL, "kvmem_batch_next: ret_run is NULL");
	pthread_rwlock_rdlock(&batch->reader->dirty->vm->lock);
	r = next_run(batch, ret_run);
	if (!r)
		rewind_batch(batch);
	pthread_rwlock_unlock(&batch->reader->dirty->vm->lock);
	return r;
}

int kvmem_batch_bitmap(struct kvmem_batch *batch, struct kvmem_region *region, uint64_t offset,
		       uint64_t bytes, uint64_t *bitmap)
{
	const struct km_dirty_maps *maps;
	const struct kvmem_dirty *d;
	int r = readable(batch, "kvmem_batch_bitmap");

	if (r)
		return r;
	if (!region || !bitmap)
		return km_fail(EINVAL, "kvmem_batch_bitmap: %s is NULL",
			       region ? "bitmap" : "region");
	d = batch->reader->dirty;
	r = km_dirty_region_check(d, region, "kvmem_batch_bitmap");
	if (!r)
		r = km_range_check(offset, bytes, region->bytes, "kvmem_batch_bitmap: region");
	if (!r)
		r = km_align_check(offset | bytes, 1ull << d->page_shift,
				   "kvmem_batch_bitmap: offset or bytes");
	if (r)
		return r;
	pthread_rwlock_rdlock(&d->vm->lock);
	maps = maps_of(batch, region);
	if (maps)
		km_dmap_or_out(&maps->batch, offset >> d->page_shift, bytes >> d->page_shift,
			       bitmap);
	pthread_rwlock_unlock(&d->vm->lock);
	return 0;
}
