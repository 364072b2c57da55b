// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The tracker: made, started, stopped; which slots it follows. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/uapi/kvm.h"

#define OPTS_MIN  sizeof(struct kvmem_dirty_opts)
#define STATS_MIN sizeof(struct kvmem_dirty_stats)
#define SPACES	  2u

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

/* ---- regions ---- */

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

int km_dirty_region_get(struct kvmem_dirty *d, struct kvmem_region *region,
			struct km_dirty_region **ret)
{
	uint64_t pages = region->bytes >> d->page_shift;
	struct km_dirty_region *dr = km_dirty_region_find(d, region);
	int r;

	*ret = dr;
	if (dr)
		return 0;
	r = km_dirty_room(&d->regions, d->region_count, &d->region_room);
	if (r)
		return r;
	dr = km_sys_alloc(sizeof(*dr));
	if (!dr)
		return km_fail(ENOMEM, "dirty tracker: no memory for a region");
	dr->region = region;
	r = km_dmap_init(&dr->batch, pages);
	if (!r)
		r = km_dmap_init(&dr->pending, pages);
	if (r) {
		region_destroy(dr);
		return r;
	}
	d->regions[d->region_count++] = dr;
	*ret = dr;
	return 0;
}

/* Of those that kvmem_batch_next() has in store. */
static void drop_runs(struct kvmem_batch *b, const struct kvmem_region *region)
{
	size_t n = 0;

	for (size_t i = b->run_at; i < b->run_count; i++)
		if (b->runs[i].region != region)
			b->runs[n++] = b->runs[i];
	b->run_at = 0;
	b->run_count = n;
}

static void region_freed(void *arg, const struct kvmem_region *region)
{
	struct kvmem_dirty *d = arg;
	struct kvmem_batch *b = &d->batch;
	struct km_dirty_region *dr = km_dirty_region_find(d, region);
	size_t i = 0;

	if (!dr)
		return;
	while (d->regions[i] != dr)
		i++;
	if (b->state != KM_BATCH_FREE)
		b->pages -= km_dmap_count(&dr->batch);
	drop_runs(b, region);
	if (i == b->region)
		b->pos = 0;
	else if (i < b->region)
		b->region--;
	d->region_count--;
	memmove(&d->regions[i], &d->regions[i + 1], (d->region_count - i) * sizeof(*d->regions));
	region_destroy(dr);
}

/* ---- slots ---- */

static bool wants_log(const struct km_slot *slot)
{
	return slot->wants_log;
}

static int refuse_direct(const struct km_slot *slot)
{
	if (slot->gmem_fd < 0)
		return 0;
	return km_fail(EOPNOTSUPP,
		       "slot %" PRIu32
		       " is a direct slot of a guest_memfd, whose writes KVM does not "
		       "log: make the region with slot_form KVMEM_SLOT_HVA",
		       slot->id);
}

static struct km_ring_slot **table_entry(struct kvmem_dirty *d, uint32_t id)
{
	return &d->table.by_id[id >> 16][id & 0xffff];
}

static int slot_new(struct kvmem_dirty *d, const struct km_slot *slot, struct km_dirty_slot **ret)
{
	struct km_dirty_slot *s = km_sys_alloc(sizeof(*s));

	if (!s)
		return km_fail(ENOMEM, "dirty tracker: no memory for slot %" PRIu32, slot->id);
	s->id = slot->id;
	s->ring.first = slot->offset >> d->page_shift;
	s->ring.pages = slot->bytes >> d->page_shift;
	if (d->mode == KVMEM_DIRTY_BITMAP) {
		s->log_bytes = (size_t)((s->ring.pages + 63) / 64 * 8);
		s->log = km_sys_alloc(s->log_bytes);
		if (!s->log) {
			km_sys_free(s);
			return km_fail(ENOMEM,
				       "dirty tracker: no memory for the log of slot %" PRIu32,
				       slot->id);
		}
	}
	*ret = s;
	return 0;
}

static void slot_free(struct km_dirty_slot *s)
{
	km_sys_free(s->log);
	km_sys_free(s);
}

/* Before the kernel logs: an entry of a slot that is not in the table would be dropped. */
static int slot_follow(struct kvmem_dirty *d, struct km_slot *slot)
{
	struct km_dirty_slot *s = NULL;
	int r;

	if (slot->id >> 16 >= SPACES || (slot->id & 0xffff) >= d->table.ids)
		return km_fail(EINVAL, "slot %" PRIu32 ": beyond the slots of this VM", slot->id);
	r = km_dirty_room(&d->slots, d->slot_count, &d->slot_room);
	if (!r)
		r = slot_new(d, slot, &s);
	if (r)
		return r;
	r = km_dirty_region_get(d, slot->owner, &s->dr);
	if (r) {
		slot_free(s);
		return r;
	}
	s->ring.own = &s->dr->batch;
	s->ring.shared = &s->dr->pending;
	d->slots[d->slot_count++] = s;
	*table_entry(d, s->id) = &s->ring;
	slot->tracked = s;
	if (d->flags & KVMEM_DIRTY_FIRST_ALL)
		km_dmap_set_range_shared(&s->dr->pending, s->ring.first, s->ring.pages);
	return 0;
}

static void slot_unfollow(struct kvmem_dirty *d, struct km_slot *slot)
{
	struct km_dirty_slot *s = slot->tracked;
	size_t i = 0;

	if (!s)
		return;
	while (d->slots[i] != s)
		i++;
	d->slots[i] = d->slots[--d->slot_count];
	*table_entry(d, slot->id) = NULL;
	slot->tracked = NULL;
	slot_free(s);
}

static int attaching(void *arg, struct km_slot *slot)
{
	struct kvmem_dirty *d = arg;
	int r;

	if (!d->started || !wants_log(slot))
		return 0;
	r = refuse_direct(slot);
	if (!r)
		r = slot_follow(d, slot);
	return r ? r : 1;
}

static void attach_failed(void *arg, struct km_slot *slot)
{
	slot_unfollow(arg, slot);
}

/*
 * The kernel's bitmap goes with the slot, and a vCPU may write between any last look at it and the
 * deletion. Nothing may be lost, so all of the slot counts as written.
 */
static void detaching(void *arg, struct km_slot *slot)
{
	struct kvmem_dirty *d = arg;
	struct km_dirty_slot *s = slot->tracked;

	if (s && d->mode == KVMEM_DIRTY_BITMAP)
		km_dmap_set_range_shared(&s->dr->pending, s->ring.first, s->ring.pages);
}

/*
 * Rings outlive the slot: no vCPU can push an entry of it any more, and the number is not given to
 * another slot before we return. So what the rings hold now is all of it, and still the old slot's.
 */
static void detached(void *arg, struct km_slot *slot)
{
	struct kvmem_dirty *d = arg;

	if (!slot->tracked)
		return;
	if (d->mode == KVMEM_DIRTY_RING)
		km_dirty_take_all(d, true);
	slot_unfollow(d, slot);
}

/* The record of a region that no slot shows yet is made here, and so needs the lock for writing. */
static bool changed(void *arg, struct kvmem_region *region, uint64_t offset, uint64_t bytes,
		    bool exclusive)
{
	struct kvmem_dirty *d = arg;
	struct km_dirty_region *dr = km_dirty_region_find(d, region);
	uint64_t first = offset >> d->page_shift;
	uint64_t end = (offset + bytes + (1ull << d->page_shift) - 1) >> d->page_shift;

	if (!dr && !(region->plan.granted & KVMEM_WANT_DIRTY))
		return true;
	if (!dr && (!exclusive || km_dirty_region_get(d, region, &dr)))
		return exclusive;
	km_dmap_set_range_shared(&dr->pending, first, end - first);
	return true;
}

static const struct km_slot_hooks hooks = {
	.attaching = attaching,
	.attach_failed = attach_failed,
	.detaching = detaching,
	.detached = detached,
	.region_freed = region_freed,
	.changed = changed,
};

/* ---- create and free ---- */

static int opts_check(struct kvmem_dirty_opts *o, const struct kvmem_dirty_opts *opts)
{
	int r = km_opts_copy(o, sizeof(*o), OPTS_MIN, opts, "kvmem_dirty_opts");

	if (!r)
		r = km_flags_check(o->flags, KVMEM_DIRTY_REAPER | KVMEM_DIRTY_FIRST_ALL,
				   "kvmem_dirty_opts: flags");
	if (r)
		return r;
	if (o->mode > KVMEM_DIRTY_BITMAP)
		return km_fail(EINVAL, "kvmem_dirty_opts: mode %" PRIu32 " is unknown", o->mode);
	if (o->ring_entries & (o->ring_entries - 1))
		return km_fail(EINVAL,
			       "kvmem_dirty_opts: ring_entries %" PRIu32 " is not a power of two",
			       o->ring_entries);
	if (!o->reap_min_ns)
		o->reap_min_ns = 1000000;
	if (!o->reap_max_ns)
		o->reap_max_ns = o->reap_min_ns > 100000000 ? o->reap_min_ns : 100000000;
	if (o->reap_min_ns > o->reap_max_ns)
		return km_fail(EINVAL,
			       "kvmem_dirty_opts: reap_min_ns %" PRIu64
			       " is more than reap_max_ns %" PRIu64,
			       o->reap_min_ns, o->reap_max_ns);
	return 0;
}

static void destroy(struct kvmem_dirty *d)
{
	pthread_rwlock_destroy(&d->mark_lock);
	pthread_mutex_destroy(&d->reaper.lock);
	pthread_cond_destroy(&d->reaper.wake);
	for (unsigned int i = 0; i < SPACES; i++)
		km_sys_free(d->table.by_id[i]);
	km_sys_free(d->slots);
	km_sys_free(d->regions);
	km_sys_free(d->vcpus);
	km_sys_free(d);
}

static void init_locks(struct kvmem_dirty *d)
{
	pthread_condattr_t attr;

	pthread_rwlock_init(&d->mark_lock, NULL);
	pthread_mutex_init(&d->reaper.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->reaper.wake, &attr);
	pthread_condattr_destroy(&attr);
}

static struct kvmem_dirty *dirty_new(struct kvmem_vm *vm, const struct kvmem_dirty_opts *o)
{
	struct kvmem_dirty *d = km_sys_alloc(sizeof(*d));

	if (!d)
		return NULL;
	init_locks(d);
	d->vm = vm;
	d->flags = o->flags;
	d->page_shift = (unsigned int)__builtin_ctzll(km_sys_page_size());
	d->batch.dirty = d;
	d->reaper.min_ns = o->reap_min_ns;
	d->reaper.max_ns = o->reap_max_ns;
	d->table.ids = vm->max_slots < 0x10000 ? vm->max_slots : 0x10000;
	d->table.epoch = 1;
	for (unsigned int i = 0; i < SPACES; i++) {
		d->table.by_id[i] = km_sys_alloc(d->table.ids * sizeof(**d->table.by_id));
		if (!d->table.by_id[i]) {
			destroy(d);
			return NULL;
		}
	}
	return d;
}

int kvmem_dirty_create(struct kvmem_vm *vm, const struct kvmem_dirty_opts *opts,
		       struct kvmem_dirty **ret_dirty)
{
	struct kvmem_dirty_opts o;
	struct kvmem_dirty *d;
	int r;

	if (!vm || !ret_dirty)
		return km_fail(EINVAL, "kvmem_dirty_create: %s is NULL", vm ? "ret_dirty" : "vm");
	r = opts_check(&o, opts);
	if (r)
		return r;
	d = dirty_new(vm, &o);
	if (!d)
		return km_fail(ENOMEM, "kvmem_dirty_create: no memory");
	pthread_rwlock_wrlock(&vm->lock);
	if (vm->hooks)
		r = km_fail(EEXIST, "kvmem_dirty_create: the VM has a tracker");
	else
		r = km_dirty_rings_probe(d, o.ring_entries, o.mode);
	if (!r) {
		vm->hooks = &hooks;
		vm->hooks_arg = d;
		atomic_fetch_add(&vm->users, 1);
	}
	pthread_rwlock_unlock(&vm->lock);
	if (r) {
		destroy(d);
		return r;
	}
	*ret_dirty = d;
	return 0;
}

int kvmem_dirty_free(struct kvmem_dirty *dirty)
{
	if (!dirty)
		return 0;
	if (dirty->started)
		return km_fail(EBUSY, "kvmem_dirty_free: it is started: kvmem_dirty_stop() first");
	pthread_rwlock_wrlock(&dirty->vm->lock);
	dirty->vm->hooks = NULL;
	dirty->vm->hooks_arg = NULL;
	km_dirty_vcpus_free(dirty);
	pthread_rwlock_unlock(&dirty->vm->lock);
	atomic_fetch_sub(&dirty->vm->users, 1);
	destroy(dirty);
	return 0;
}

uint32_t kvmem_dirty_get_mode(const struct kvmem_dirty *dirty)
{
	return dirty ? dirty->mode : KVMEM_DIRTY_AUTO;
}

const char *kvmem_dirty_get_reason(const struct kvmem_dirty *dirty)
{
	return dirty ? dirty->reason : "";
}

/* ---- start and stop ---- */

static int log_slot(struct kvmem_dirty *d, struct km_slot *slot, bool on)
{
	int r = km_slot_set(d->vm, slot, on);

	if (!r)
		slot->logged = on;
	return r;
}

static void forget_all(struct kvmem_dirty *d)
{
	for (size_t i = 0; i < d->vm->slot_count; i++)
		slot_unfollow(d, d->vm->slots[i]);
	while (d->region_count)
		region_destroy(d->regions[--d->region_count]);
	d->batch.state = KM_BATCH_FREE;
	atomic_store(&d->suspects, false);
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

static int follow_all(struct kvmem_dirty *d)
{
	int r = 0;

	for (size_t i = 0; i < d->vm->slot_count && !r; i++) {
		struct km_slot *slot = d->vm->slots[i];

		if (!wants_log(slot))
			continue;
		r = refuse_direct(slot);
		if (!r)
			r = slot_follow(d, slot);
	}
	return r;
}

static int start_locked(struct kvmem_dirty *d)
{
	int r = follow_all(d);

	if (!r && d->mode == KVMEM_DIRTY_BITMAP)
		r = km_dirty_log_enable(d);
	for (size_t i = 0; i < d->vm->slot_count && !r; i++)
		if (wants_log(d->vm->slots[i]))
			r = log_slot(d, d->vm->slots[i], true);
	if (!r)
		r = km_dirty_reaper_start(d);
	if (r) {
		unlog_all(d);
		km_dirty_log_disable(d);
		forget_all(d);
		return r;
	}
	d->harvested_at = km_sys_now_ns();
	d->started = true;
	atomic_store(&d->vm->tracking, true);
	return 0;
}

int kvmem_dirty_start(struct kvmem_dirty *dirty)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_start: dirty is NULL");
	if (dirty->started)
		return km_fail(EBUSY, "kvmem_dirty_start: it is started");
	pthread_rwlock_wrlock(&dirty->vm->lock);
	r = start_locked(dirty);
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r;
}

/* It could not be stopped: slots that are not logged any more are to be reported whole, and logged
 * again. */
static void go_on(struct kvmem_dirty *d)
{
	for (size_t i = 0; i < d->slot_count; i++) {
		if (km_slot_find(d->vm, d->slots[i]->id)->logged)
			continue;
		d->slots[i]->suspect = true;
		atomic_store(&d->suspects, true);
	}
	km_dirty_reaper_start(d); /* without it, full rings are emptied by their vCPUs */
}

int kvmem_dirty_stop(struct kvmem_dirty *dirty)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_stop: dirty is NULL");
	if (!dirty->started)
		return km_fail(EINVAL, "kvmem_dirty_stop: it is not started");
	if (dirty->batch.state != KM_BATCH_FREE)
		return km_fail(EBUSY, "kvmem_dirty_stop: a batch is out: kvmem_batch_free() first");
	km_dirty_reaper_stop(dirty); /* takes the lock itself */
	pthread_rwlock_wrlock(&dirty->vm->lock);
	r = unlog_all(dirty);
	if (!r) {
		km_dirty_log_disable(dirty);
		/* Leave the rings empty: nobody else would, and a vCPU with a full one does not
		 * run. */
		if (km_dirty_take_all(dirty, true))
			km_dirty_reset(dirty);
		forget_all(dirty);
		dirty->started = false;
		atomic_store(&dirty->vm->tracking, false);
	} else {
		go_on(dirty);
	}
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r;
}

/* ---- statistics ---- */

int kvmem_dirty_get_stats(const struct kvmem_dirty *dirty, struct kvmem_dirty_stats *ret_stats)
{
	struct kvmem_dirty_stats s;
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_get_stats: dirty is NULL");
	r = km_result_check(ret_stats, STATS_MIN, "kvmem_dirty_stats");
	if (r)
		return r;
	pthread_rwlock_rdlock(&dirty->vm->lock);
	s = (struct kvmem_dirty_stats){
		.mode = dirty->mode,
		.vcpus = (uint32_t)dirty->vcpu_count,
		.ring_entries = dirty->ring_entries,
		.harvests = dirty->stats.harvests,
		.pages = dirty->stats.pages,
		.pages_merged = dirty->stats.pages_merged,
		.resets = dirty->stats.resets,
		.short_resets = dirty->stats.short_resets,
		.pages_kept = dirty->stats.pages_kept,
		.ring_full = dirty->stats.ring_full,
		.reaps = dirty->stats.reaps,
		.harvest_ns = dirty->stats.harvest_ns,
		.reset_ns = dirty->stats.reset_ns,
	};
	pthread_rwlock_unlock(&dirty->vm->lock);
	km_result_copy(ret_stats, &s, sizeof(s));
	return 0;
}
