// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The two maps of each region that is tracked. */
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

static void region_destroy(struct km_dirty_region *dr)
{
	km_dmap_destroy(&dr->batch);
	km_dmap_destroy(&dr->pending);
	km_sys_free(dr);
}

static int region_new(struct kvmem_dirty *d, struct kvmem_region *region,
		      struct km_dirty_region **ret)
{
	uint64_t pages = region->bytes >> d->page_shift;
	struct km_dirty_region *dr = km_sys_alloc(sizeof(*dr));
	int r;

	if (!dr)
		return km_fail(ENOMEM, "dirty tracker: no memory for a region");
	dr->region = region;
	r = km_dmap_init(&dr->batch, pages);
	if (!r)
		r = km_dmap_init(&dr->pending, pages);
	if (r)
		region_destroy(dr);
	else
		*ret = dr;
	return r;
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
	struct kvmem_run *runs = b->dirty->runs;
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
	b->pages -= km_dmap_count(&dr->batch);
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
	if (d->batch)
		leave_batch(d->batch, dr, i);
	d->region_count--;
	memmove(&d->regions[i], &d->regions[i + 1], (d->region_count - i) * sizeof(*d->regions));
	return dr;
}

void km_dirty_region_free(struct kvmem_dirty *d, const struct kvmem_region *region)
{
	struct km_dirty_region *dr;

	pthread_rwlock_wrlock(&d->vm->change_lock);
	dr = take_out(d, region);
	pthread_rwlock_unlock(&d->vm->change_lock);
	if (dr)
		region_destroy(dr);
}

/* No change comes any more. */
void km_dirty_regions_free(struct kvmem_dirty *d)
{
	while (d->region_count)
		region_destroy(d->regions[--d->region_count]);
	while (d->late) {
		struct km_dirty_region *dr = d->late;

		d->late = dr->next;
		region_destroy(dr);
	}
}

void km_dirty_slot_whole(struct km_dirty_slot *s)
{
	km_dmap_set_range_shared(&s->dr->pending, s->ring.first, s->ring.pages);
}
