// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The maps of each region that is tracked. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <string.h>

int km_dirty_room(void *array, size_t count, size_t *room)
{
	size_t want = *room ? *room * 2 : 8;
	void **p;

	if (count < *room)
		return 0;
	p = km_sys_realloc(*(void **)array, want * sizeof(void *));
	if (!p)
		return km_fail(ENOMEM, "dirty tracker: no memory");
	*(void **)array = p;
	*room = want;
	return 0;
}

struct km_dirty_region *km_dirty_region_find(const struct kvmem_dirty *d,
					     const struct kvmem_region *region)
{
	for (size_t i = 0; i < d->region_count; i++)
		if (d->regions[i]->region == region)
			return d->regions[i];
	return NULL;
}

int km_dirty_region_check(const struct kvmem_dirty *d, const struct kvmem_region *region,
			  const char *what)
{
	if (region->vm == d->vm)
		return 0;
	return km_fail(EINVAL, "%s: the region is not of the tracker's VM", what);
}

static bool looks_at(const struct kvmem_reader *reader, const struct kvmem_region *region)
{
	if (!reader->filtered)
		return true;
	for (size_t i = 0; i < reader->only_count; i++)
		if (reader->only[i] == region)
			return true;
	return false;
}

void km_readers_untold(struct kvmem_dirty *d, const struct kvmem_region *region)
{
	for (unsigned int i = 0; i < KM_READERS; i++)
		if (d->readers[i] && looks_at(d->readers[i], region))
			atomic_store(&d->readers[i]->untold, true);
}

static void maps_free(struct km_dirty_region *dr, unsigned int reader)
{
	struct km_dirty_maps *maps = dr->of[reader];

	dr->of[reader] = NULL;
	if (!maps)
		return;
	km_dmap_destroy(&maps->batch);
	km_dmap_destroy(&maps->pending);
	km_sys_free(maps);
}

static int maps_new(struct km_dirty_region *dr, const struct kvmem_reader *reader)
{
	struct km_dirty_maps *maps;
	int r;

	if (!looks_at(reader, dr->region))
		return 0;
	maps = km_sys_alloc(sizeof(*maps));
	if (!maps)
		return km_fail(ENOMEM, "dirty tracker: no memory for the maps of a reader");
	dr->of[reader->index] = maps;
	r = km_dmap_init(&maps->batch, dr->pending.pages);
	if (!r)
		r = km_dmap_init(&maps->pending, dr->pending.pages);
	if (r)
		maps_free(dr, reader->index);
	return r;
}

/* From here on kvmem_dirty_mark() finds it, or does not; and nobody who has found it is at it. */
static void show(struct km_dirty_region *dr)
{
	atomic_store(&dr->region->tracked, dr);
}

static void hide(struct kvmem_dirty *d, struct km_dirty_region *dr)
{
	atomic_store(&dr->region->tracked, NULL);
	while (atomic_load(&d->markers))
		km_sys_yield();
}

static void region_destroy(struct km_dirty_region *dr)
{
	for (unsigned int i = 0; i < KM_READERS; i++)
		maps_free(dr, i);
	km_dmap_destroy(&dr->pending);
	km_sys_free(dr);
}

static int region_new(struct kvmem_dirty *d, struct kvmem_region *region,
		      struct km_dirty_region **ret)
{
	uint64_t pages = km_region_room(region) >> d->page_shift;
	struct km_dirty_region *dr = km_sys_alloc(sizeof(*dr));
	int r;

	if (!dr)
		return km_fail(ENOMEM, "dirty tracker: no memory for a region");
	dr->region = region;
	r = km_dmap_init(&dr->pending, pages);
	for (unsigned int i = 0; i < KM_READERS && !r; i++)
		if (d->readers[i])
			r = maps_new(dr, d->readers[i]);
	if (r) {
		region_destroy(dr);
		return r;
	}
	show(dr);
	*ret = dr;
	return 0;
}

/* There is room. */
static void append(struct kvmem_dirty *d, struct km_dirty_region *dr)
{
	d->regions[d->region_count++] = dr;
}

static struct km_dirty_region *find_late(const struct kvmem_dirty *d,
					 const struct kvmem_region *region)
{
	struct km_dirty_region *dr = d->late;

	while (dr && dr->region != region)
		dr = dr->next;
	return dr;
}

static void unlink_late(struct kvmem_dirty *d, struct km_dirty_region *dr)
{
	struct km_dirty_region *before = d->late;

	if (before == dr) {
		d->late = dr->next;
		return;
	}
	while (before->next != dr)
		before = before->next;
	before->next = dr->next;
}

static int join(struct kvmem_dirty *d, struct km_dirty_region *dr)
{
	int r = km_dirty_room(&d->regions, d->region_count, &d->region_room);

	if (r)
		return r;
	unlink_late(d, dr);
	append(d, dr);
	return 0;
}

struct km_dirty_region *km_dirty_region_late(struct kvmem_dirty *d, struct kvmem_region *region,
					     bool make)
{
	struct km_dirty_region *dr = km_dirty_region_find(d, region);

	if (!dr)
		dr = find_late(d, region);
	if (dr || !make || region_new(d, region, &dr))
		return dr;
	dr->next = d->late;
	d->late = dr;
	return dr;
}

static int get_locked(struct kvmem_dirty *d, struct kvmem_region *region,
		      struct km_dirty_region **ret)
{
	int r;

	*ret = km_dirty_region_late(d, region, false);
	if (*ret)
		return find_late(d, region) ? join(d, *ret) : 0;
	r = km_dirty_room(&d->regions, d->region_count, &d->region_room);
	if (!r)
		r = region_new(d, region, ret);
	if (!r)
		append(d, *ret);
	return r;
}

int km_dirty_region_get(struct kvmem_dirty *d, struct kvmem_region *region,
			struct km_dirty_region **ret)
{
	int r;

	pthread_rwlock_wrlock(&d->vm->change_lock);
	r = get_locked(d, region, ret);
	pthread_rwlock_unlock(&d->vm->change_lock);
	return r;
}

void km_dirty_regions_join(struct kvmem_dirty *d)
{
	if (!d->late)
		return;
	pthread_rwlock_wrlock(&d->vm->lock);
	pthread_rwlock_wrlock(&d->vm->change_lock);
	while (d->late && !join(d, d->late)) /* without memory, by the next harvest */
		;
	pthread_rwlock_unlock(&d->vm->change_lock);
	pthread_rwlock_unlock(&d->vm->lock);
}

/* Of those that kvmem_batch_next() has in store. */
static void drop_runs(struct kvmem_batch *b, const struct kvmem_region *region)
{
	struct kvmem_run *runs = b->reader->runs;
	size_t n = 0;

	for (size_t i = b->run_at; i < b->run_count; i++)
		if (runs[i].region != region)
			runs[n++] = runs[i];
	b->run_at = 0;
	b->run_count = n;
}

/* The region with this index is not of the batch any more. */
static void leave_batch(struct kvmem_batch *b, struct km_dirty_region *dr, size_t index)
{
	struct km_dirty_maps *maps = dr->of[b->reader->index];

	b->pages -= maps ? km_dmap_count(&maps->batch) : 0;
	drop_runs(b, dr->region);
	if (index == b->region)
		b->pos = 0;
	else if (index < b->region)
		b->region--;
}

static struct km_dirty_region *take_out(struct kvmem_dirty *d, const struct kvmem_region *region)
{
	struct km_dirty_region *dr = find_late(d, region);
	size_t i = 0;

	if (dr)
		unlink_late(d, dr);
	if (dr)
		return dr;
	dr = km_dirty_region_find(d, region);
	if (!dr)
		return NULL;
	while (d->regions[i] != dr)
		i++;
	for (unsigned int n = 0; n < KM_READERS; n++)
		if (d->readers[n] && d->readers[n]->batch)
			leave_batch(d->readers[n]->batch, dr, i);
	d->region_count--;
	memmove(&d->regions[i], &d->regions[i + 1], (d->region_count - i) * sizeof(*d->regions));
	return dr;
}

/* Another region may get the address of this one. */
static void leave_filters(struct kvmem_dirty *d, const struct kvmem_region *region)
{
	for (unsigned int n = 0; n < KM_READERS; n++)
		for (size_t i = 0; d->readers[n] && i < d->readers[n]->only_count; i++)
			if (d->readers[n]->only[i] == region)
				d->readers[n]->only[i] = NULL;
}

void km_dirty_region_free(struct kvmem_dirty *d, const struct kvmem_region *region)
{
	struct km_dirty_region *dr;

	pthread_rwlock_wrlock(&d->vm->change_lock);
	dr = take_out(d, region);
	pthread_rwlock_unlock(&d->vm->change_lock);
	leave_filters(d, region);
	if (!dr)
		return;
	hide(d, dr);
	region_destroy(dr);
}

/* No change comes any more. */
void km_dirty_regions_free(struct kvmem_dirty *d)
{
	while (d->region_count) {
		hide(d, d->regions[--d->region_count]);
		region_destroy(d->regions[d->region_count]);
	}
	while (d->late) {
		struct km_dirty_region *dr = d->late;

		d->late = dr->next;
		hide(d, dr);
		region_destroy(dr);
	}
}

void km_dirty_maps_remove(struct kvmem_dirty *d, const struct kvmem_reader *reader)
{
	for (size_t i = 0; i < d->region_count; i++)
		maps_free(d->regions[i], reader->index);
	for (struct km_dirty_region *dr = d->late; dr; dr = dr->next)
		maps_free(dr, reader->index);
}

int km_dirty_maps_add(struct kvmem_dirty *d, const struct kvmem_reader *reader)
{
	int r = 0;

	for (size_t i = 0; i < d->region_count && !r; i++)
		r = maps_new(d->regions[i], reader);
	for (struct km_dirty_region *dr = d->late; dr && !r; dr = dr->next)
		r = maps_new(dr, reader);
	if (r)
		km_dirty_maps_remove(d, reader);
	return r;
}

void km_dirty_slot_whole(struct km_dirty_slot *s)
{
	km_dmap_set_range_shared(&s->dr->pending, s->ring.first, s->ring.pages);
}
