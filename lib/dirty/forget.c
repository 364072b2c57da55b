// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* How many pages a reader has, and pages that it does not want. */
#include "dirty/dirty_internal.h"

#include <errno.h>

int64_t kvmem_reader_pending(struct kvmem_reader *reader, const struct kvmem_region *region)
{
	struct kvmem_dirty *d;
	int64_t r;

	if (!reader)
		return km_fail(EINVAL, "kvmem_reader_pending: reader is NULL");
	d = reader->dirty;
	r = km_callback_check("kvmem_reader_pending", NULL);
	if (!r && region)
		r = km_dirty_region_check(d, region, "kvmem_reader_pending");
	if (r)
		return r;
	pthread_mutex_lock(&d->harvest_lock);
	r = km_dirty_take_whole(d, NULL, "kvmem_reader_pending");
	if (!r) {
		r = (int64_t)km_reader_pending(reader, region);
		pthread_rwlock_unlock(&d->vm->lock);
	}
	if (r >= 0 && atomic_load(&reader->untold)) /* said again by the harvest */
		r = km_reader_untold("kvmem_reader_pending");
	km_readers_unlock(d);
	return r;
}

/*
 * What is taken from the log and forgotten must be logged again from here on, or a write that comes later would
 * be lost: so the entries are reset before the pages are forgotten, as by a commit.
 */
static int forget(struct kvmem_reader *reader, const struct kvmem_region *region, uint64_t first,
		  uint64_t count)
{
	struct kvmem_dirty *d = reader->dirty;
	const struct km_dirty_region *dr;
	int r = d->mode == KVMEM_DIRTY_RING ? km_dirty_reset(d, false) : km_dirty_log_clear(d);

	if (r)
		return r;
	dr = km_dirty_region_find(d, region);
	if (dr && dr->of[reader->index])
		km_dmap_clear_range(&dr->of[reader->index]->pending, first, count);
	km_reader_forgot(reader);
	return 0;
}

int kvmem_reader_forget(struct kvmem_reader *reader, struct kvmem_region *region, uint64_t offset,
			uint64_t bytes)
{
	struct kvmem_dirty *d;
	int r;

	if (!reader || !region)
		return km_fail(EINVAL, "kvmem_reader_forget: %s is NULL",
			       reader ? "region" : "reader");
	d = reader->dirty;
	r = km_callback_check("kvmem_reader_forget", NULL);
	if (!r)
		r = km_dirty_region_check(d, region, "kvmem_reader_forget");
	if (!r)
		r = km_range_check(offset, bytes, region->bytes, "kvmem_reader_forget: region");
	if (!r)
		r = km_align_check(offset | bytes, 1ull << d->page_shift,
				   "kvmem_reader_forget: offset or bytes");
	if (r)
		return r;
	pthread_mutex_lock(&d->harvest_lock);
	r = km_dirty_take_whole(d, NULL, "kvmem_reader_forget");
	if (!r) {
		r = forget(reader, region, offset >> d->page_shift, bytes >> d->page_shift);
		pthread_rwlock_unlock(&d->vm->lock);
	}
	km_readers_unlock(d);
	return r;
}
