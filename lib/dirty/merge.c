// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Pages that others wrote: devices, and the VMM itself. */
#include "dirty/dirty_internal.h"

#include <errno.h>

struct merge {
	struct kvmem_dirty *d;
	struct km_dmap *pending;
	uint64_t offset, end;
	unsigned int shift;
	uint64_t counted; /* pages of KVM's below here are */
};

/* Bits [first, end) of the caller's bitmap. */
static void merge_run(struct merge *m, uint64_t first, uint64_t end)
{
	uint64_t from = m->offset + (first << m->shift);
	uint64_t to = end << m->shift >= m->end - m->offset ? m->end
							    : m->offset + (end << m->shift);

	from >>= m->d->page_shift;
	to = (to + (1ull << m->d->page_shift) - 1) >> m->d->page_shift;
	km_dmap_set_range_shared(m->pending, from, to - from);
	km_count_shared(&m->d->stats.pages_merged, km_dirty_count_from(&m->counted, from, to));
}

static void merge_bits(struct merge *m, const uint64_t *bitmap)
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

static int merge_range(struct kvmem_dirty *d, struct kvmem_region *region, uint64_t first,
		       uint64_t count, const char *what)
{
	struct km_dirty_region *dr;
	int r = km_callback_check(what, d);

	if (r)
		return r;
	r = merge_lock(d, region, &dr);
	if (!r && !d->started)
		r = km_fail(EINVAL, "%s: not started: kvmem_dirty_start() first", what);
	if (!r)
		km_dmap_set_range_shared(&dr->pending, first, count);
	pthread_rwlock_unlock(&d->vm->lock);
	return r;
}

/*
 * Without a lock and without waiting: the tracker's record of a region stays while `markers` is not 0 and it
 * could be found.
 */
static bool mark_at_once(struct kvmem_dirty *d, struct kvmem_region *region, uint64_t first,
			 uint64_t count)
{
	struct km_dirty_region *dr;

	atomic_fetch_add(&d->markers, 1);
	dr = atomic_load(&region->tracked);
	if (dr)
		km_dmap_set_range_shared(&dr->pending, first, count);
	atomic_fetch_sub(&d->markers, 1);
	return dr;
}

int kvmem_dirty_mark(struct kvmem_dirty *dirty, struct kvmem_region *region, uint64_t offset,
		     uint64_t bytes)
{
	uint64_t first, count;
	int r;

	if (!dirty || !region)
		return km_fail(EINVAL, "kvmem_dirty_mark: %s is NULL", dirty ? "region" : "dirty");
	r = km_dirty_region_check(dirty, region, "kvmem_dirty_mark");
	if (!r)
		r = km_range_check(offset, bytes, region->bytes, "kvmem_dirty_mark: region");
	if (r)
		return r;
	first = offset >> dirty->page_shift;
	count = ((offset + bytes - 1) >> dirty->page_shift) + 1 - first;
	if (!mark_at_once(dirty, region, first, count))
		r = merge_range(dirty, region, first, count, "kvmem_dirty_mark");
	if (!r)
		km_count_shared(&dirty->stats.pages_merged, count);
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
	r = km_callback_check("kvmem_dirty_merge", dirty);
	if (r)
		return r;
	if (page_shift > 40)
		return km_fail(EINVAL, "kvmem_dirty_merge: page_shift %u, must be at most 40",
			       page_shift);
	r = km_dirty_region_check(dirty, region, "kvmem_dirty_merge");
	if (!r)
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
