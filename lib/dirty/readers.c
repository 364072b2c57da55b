// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Several readers of one log. The kernel gives each entry once; whoever takes it puts it into the maps of all.
 * That costs one visit to each word that is dirty for each reader, and nothing for memory that is not.
 */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>

/* ---- who gets what ---- */

/* What all threads have added to, into the maps: the batch of `reader`, or NULL, the `pending` of the others. */
static void feed_shared(struct kvmem_dirty *d, const struct kvmem_reader *reader)
{
	for (size_t i = 0; i < d->region_count; i++) {
		struct km_dirty_region *dr = d->regions[i];
		struct km_dmap *into[KM_READERS];
		size_t n = 0;

		for (unsigned int k = 0; k < KM_READERS; k++)
			if (dr->of[k])
				into[n++] = reader && reader->index == k ? &dr->of[k]->batch
									 : &dr->of[k]->pending;
		km_dmap_take(into, n, &dr->pending);
	}
}

/* The batch of `reader` is what it has just taken from the log: the others get it too. */
static void feed_others(struct kvmem_dirty *d, const struct kvmem_reader *reader)
{
	for (size_t i = 0; i < d->region_count; i++) {
		struct km_dirty_region *dr = d->regions[i];

		for (unsigned int k = 0; k < KM_READERS; k++)
			if (dr->of[k] && k != reader->index)
				km_dmap_add(&dr->of[k]->pending, &dr->of[reader->index]->batch);
	}
}

static int take_log(struct kvmem_dirty *d, bool shared)
{
	if (d->mode != KVMEM_DIRTY_RING)
		return km_dirty_log_fetch(d, shared);
	km_doubt_begin(d);
	km_dirty_take_all(d, shared);
	km_doubt_report(d, shared);
	return atomic_load(&d->overflowed) ? km_dirty_reset(d, false) : 0;
}

/* The maps that the reader of a ring adds to without atomic operations. */
static void take_as(struct kvmem_dirty *d, unsigned int index)
{
	if (d->takes == index)
		return;
	d->takes = index;
	for (size_t i = 0; i < d->vm->slot_count; i++) {
		struct km_dirty_slot *s = d->vm->slots[i]->tracked;

		if (s)
			__atomic_store_n(&s->ring.own, &s->dr->of[index]->batch, __ATOMIC_RELAXED);
	}
}

static uint64_t pending_of(const struct kvmem_reader *reader)
{
	const struct kvmem_dirty *d = reader->dirty;
	uint64_t n = 0;

	for (size_t i = 0; i < d->region_count; i++)
		if (d->regions[i]->of[reader->index])
			n += km_dmap_count(&d->regions[i]->of[reader->index]->pending);
	return n;
}

void km_readers_tell(struct kvmem_dirty *d, const struct kvmem_reader *but)
{
	static const uint64_t one = 1;

	if (!atomic_load(&d->thresholds))
		return;
	for (unsigned int i = 0; i < KM_READERS; i++) {
		struct kvmem_reader *r = d->readers[i];

		if (!r || r == but || !r->threshold || r->told)
			continue;
		/* A slot that is suspect will be reported whole, and logs nothing more before. */
		if (!atomic_load(&d->suspects) && pending_of(r) < r->threshold)
			continue;
		r->told = true;
		km_sys_write(r->event_fd, &one, sizeof(one)); /* full: it is readable anyway */
	}
}

void km_reader_forgot(struct kvmem_reader *reader)
{
	if (reader->threshold && pending_of(reader) < reader->threshold)
		reader->told = false;
}

void km_readers_begin(struct kvmem_dirty *d)
{
	for (unsigned int i = 0; i < KM_READERS; i++) {
		if (!d->readers[i])
			continue;
		d->readers[i]->told = false;
		atomic_store(&d->readers[i]->untold, false);
	}
}

void km_readers_keep(struct kvmem_dirty *d, const struct kvmem_reader *reader)
{
	for (size_t i = 0; i < d->region_count; i++) {
		struct km_dirty_maps *maps = d->regions[i]->of[reader->index];

		if (!maps)
			continue;
		km_dmap_add(&maps->pending, &maps->batch);
		km_dmap_clear(&maps->batch);
	}
}

int km_readers_take(struct kvmem_dirty *d, struct kvmem_reader *reader)
{
	bool shared = !reader || reader->filtered; /* whose batch has not all regions */
	int r;

	if (!shared)
		take_as(d, reader->index);
	r = take_log(d, shared);
	if (!shared)
		feed_others(d, reader);
	if (!shared && r)
		km_readers_keep(d, reader);
	feed_shared(d, r ? NULL : reader);
	if (reader && !r)
		reader->told = false;
	km_readers_tell(d, reader);
	return r;
}

void km_readers_unlock(struct kvmem_dirty *d)
{
	pthread_mutex_unlock(&d->harvest_lock);
	if (atomic_load(&d->look))
		km_readers_look(d);
}

/* Who cannot have the lock leaves the look to who has it. */
void km_readers_look(struct kvmem_dirty *d)
{
	if (!atomic_load(&d->thresholds))
		return;
	atomic_store(&d->look, true);
	while (atomic_load(&d->look) && !pthread_mutex_trylock(&d->harvest_lock)) {
		atomic_store(&d->look, false);
		pthread_rwlock_rdlock(&d->vm->lock);
		if (d->started) {
			feed_shared(d, NULL);
			km_readers_tell(d, NULL);
		}
		pthread_rwlock_unlock(&d->vm->lock);
		pthread_mutex_unlock(&d->harvest_lock);
	}
}

uint64_t km_reader_pending(const struct kvmem_reader *reader, const struct kvmem_region *region)
{
	const struct km_dirty_region *dr;

	if (!region)
		return pending_of(reader);
	dr = km_dirty_region_find(reader->dirty, region);
	return dr && dr->of[reader->index] ? km_dmap_count(&dr->of[reader->index]->pending) : 0;
}

void km_readers_slot_new(struct kvmem_dirty *d, const struct kvmem_reader *only,
			 const struct km_dirty_slot *s)
{
	for (unsigned int i = 0; i < KM_READERS; i++)
		if (d->readers[i] && d->readers[i]->first_all && s->dr->of[i] &&
		    (!only || only == d->readers[i]))
			km_dmap_set_range(&s->dr->of[i]->pending, s->ring.first, s->ring.pages);
}

/* ---- made and freed ---- */

/*
 * It is written to with locks held, by whoever harvests: a file descriptor that blocks would hold up all of them, and a
 * pipe or socket whose other end is closed raises SIGPIPE. An eventfd has no type of file.
 */
static int event_check(int fd)
{
	int64_t flags = km_sys_fcntl_getfl(fd);
	struct stat st;

	if (flags < 0)
		return km_fail(EBADF, "kvmem_reader_opts: event_fd %d is not open", fd);
	if (flags & O_PATH || km_sys_fstat(fd, &st) < 0 || st.st_mode & S_IFMT)
		return km_fail(EINVAL, "kvmem_reader_opts: event_fd %d is not an eventfd", fd);
	if (!(flags & O_NONBLOCK))
		return km_fail(EINVAL,
			       "kvmem_reader_opts: event_fd %d was made without EFD_NONBLOCK", fd);
	return 0;
}

static int opts_check(struct kvmem_dirty *d, struct kvmem_reader_opts *o,
		      const struct kvmem_reader_opts *opts)
{
	int r = km_opts_copy(o, sizeof(*o), sizeof(*o), opts, "kvmem_reader_opts");

	if (!r)
		r = km_flags_check(o->flags, KVMEM_READER_FIRST_ALL, "kvmem_reader_opts: flags");
	if (r)
		return r;
	if (o->region_count && !o->regions)
		return km_fail(EINVAL, "kvmem_reader_opts: regions is NULL");
	for (size_t i = 0; i < o->region_count; i++)
		if (!o->regions[i] || o->regions[i]->vm != d->vm)
			return km_fail(EINVAL, "kvmem_reader_opts: regions[%zu] is %s", i,
				       o->regions[i] ? "not of the tracker's VM" : "NULL");
	if (o->reserved)
		return km_fail(EINVAL, "kvmem_reader_opts.reserved must be 0");
	return o->threshold_pages ? event_check(o->event_fd) : 0;
}

static void reader_destroy(struct kvmem_reader *reader)
{
	if (reader->event_fd >= 0)
		km_sys_close(reader->event_fd);
	km_sys_free(reader->only);
	km_sys_free(reader);
}

static int reader_new(struct kvmem_dirty *d, const struct kvmem_reader_opts *o,
		      struct kvmem_reader **ret)
{
	struct kvmem_reader *reader = km_sys_alloc(sizeof(*reader));
	int64_t fd = 0;

	if (!reader)
		return km_fail(ENOMEM, "kvmem_dirty_reader_create: no memory");
	reader->dirty = d;
	reader->threshold = o->threshold_pages;
	reader->event_fd = -1;
	reader->first_all = o->flags & KVMEM_READER_FIRST_ALL;
	reader->filtered = o->region_count;
	reader->only_count = o->region_count;
	if (o->region_count)
		reader->only = km_sys_alloc(o->region_count * sizeof(*reader->only));
	if (o->region_count && !reader->only) {
		reader_destroy(reader);
		return km_fail(ENOMEM, "kvmem_dirty_reader_create: no memory");
	}
	for (size_t i = 0; i < o->region_count; i++)
		reader->only[i] = o->regions[i];
	if (o->threshold_pages) /* the number may be another file's one day */
		fd = km_sys_dup(o->event_fd);
	if (fd < 0) {
		reader_destroy(reader);
		return km_fail((int)-fd, "kvmem_reader_opts: duplicating event_fd %d: %m",
			       o->event_fd);
	}
	reader->event_fd = o->threshold_pages ? (int)fd : -1;
	*ret = reader;
	return 0;
}

static int join(struct kvmem_dirty *d, struct kvmem_reader *reader)
{
	unsigned int i = 1;
	int r;

	while (i < KM_READERS && d->readers[i])
		i++;
	if (i == KM_READERS)
		return km_fail(ENOSPC,
			       "kvmem_dirty_reader_create: the tracker has %u readers, and "
			       "takes no more",
			       KM_READERS - 1);
	reader->index = i;
	r = km_dirty_maps_add(d, reader);
	if (r)
		return r;
	d->readers[i] = reader;
	if (reader->threshold)
		atomic_fetch_add(&d->thresholds, 1);
	return 0;
}

int kvmem_dirty_reader_create(struct kvmem_dirty *dirty, const struct kvmem_reader_opts *opts,
			      struct kvmem_reader **ret_reader)
{
	struct kvmem_reader *reader = NULL;
	struct kvmem_reader_opts o;
	int r;

	if (!dirty || !ret_reader)
		return km_fail(EINVAL, "kvmem_dirty_reader_create: %s is NULL",
			       dirty ? "ret_reader" : "dirty");
	r = km_callback_check("kvmem_dirty_reader_create", NULL);
	if (!r)
		r = opts_check(dirty, &o, opts);
	if (!r)
		r = reader_new(dirty, &o, &reader);
	if (r)
		return r;
	pthread_mutex_lock(&dirty->harvest_lock);
	pthread_rwlock_wrlock(&dirty->vm->lock);
	pthread_rwlock_wrlock(&dirty->vm->change_lock);
	r = join(dirty, reader);
	for (size_t i = 0; !r && i < dirty->vm->slot_count; i++)
		if (dirty->vm->slots[i]->tracked)
			km_readers_slot_new(dirty, reader, dirty->vm->slots[i]->tracked);
	pthread_rwlock_unlock(&dirty->vm->change_lock);
	pthread_rwlock_unlock(&dirty->vm->lock);
	km_readers_unlock(dirty);
	if (r)
		reader_destroy(reader);
	else
		*ret_reader = reader;
	return r;
}

static void leave(struct kvmem_dirty *d, struct kvmem_reader *reader)
{
	take_as(d, 0);
	d->readers[reader->index] = NULL;
	if (reader->threshold)
		atomic_fetch_sub(&d->thresholds, 1);
	km_dirty_maps_remove(d, reader);
}

int kvmem_reader_free(struct kvmem_reader *reader)
{
	struct kvmem_dirty *d;
	int r;

	if (!reader)
		return 0;
	d = reader->dirty;
	r = km_callback_check("kvmem_reader_free", NULL);
	if (r)
		return r;
	if (reader == &d->own)
		return km_fail(EINVAL, "kvmem_reader_free: the reader is the tracker's own, which "
				       "kvmem_dirty_free() frees");
	if (reader->batch)
		return km_fail(EBUSY,
			       "kvmem_reader_free: a batch is out: kvmem_batch_free() first");
	pthread_mutex_lock(&d->harvest_lock);
	pthread_rwlock_wrlock(&d->vm->lock);
	pthread_rwlock_wrlock(&d->vm->change_lock);
	leave(d, reader);
	pthread_rwlock_unlock(&d->vm->change_lock);
	pthread_rwlock_unlock(&d->vm->lock);
	km_readers_unlock(d);
	reader_destroy(reader);
	return 0;
}

struct kvmem_reader *kvmem_dirty_reader(struct kvmem_dirty *dirty)
{
	if (dirty)
		return &dirty->own;
	km_fail(EINVAL, "kvmem_dirty_reader: dirty is NULL");
	return NULL;
}
