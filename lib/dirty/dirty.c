// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The tracker: made, freed, and what it says of itself. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <inttypes.h>

#define OPTS_MIN  sizeof(struct kvmem_dirty_opts)
#define STATS_MIN sizeof(struct kvmem_dirty_stats)

static int opts_check(struct kvmem_dirty_opts *o, const struct kvmem_dirty_opts *opts)
{
	int r = km_opts_copy(o, sizeof(*o), OPTS_MIN, opts, "kvmem_dirty_opts");

	if (!r)
		r = km_flags_check(o->flags,
				   KVMEM_DIRTY_REAPER | KVMEM_DIRTY_FIRST_ALL |
					   KVMEM_DIRTY_WHOLE_VM | KVMEM_DIRTY_DETACH_STOPPED,
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
	pthread_mutex_destroy(&d->harvest_lock);
	pthread_mutex_destroy(&d->reaper.lock);
	pthread_cond_destroy(&d->reaper.wake);
	km_sys_free(d->regions);
	km_sys_free(d->vcpus);
	km_sys_free(d);
}

static void init_locks(struct kvmem_dirty *d)
{
	pthread_condattr_t attr;

	pthread_rwlock_init(&d->mark_lock, NULL);
	pthread_mutex_init(&d->harvest_lock, NULL);
	pthread_mutex_init(&d->reaper.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->reaper.wake, &attr);
	pthread_condattr_destroy(&attr);
}

static void foreign_entry(void *arg, uint32_t slot, uint64_t page)
{
	struct kvmem_dirty *d = arg;
	struct km_callback cb;

	km_callback_enter(&cb, "kvmem_dirty_opts.foreign", d, d->vm);
	d->foreign(d->arg, slot, page, 0);
	km_callback_leave(&cb);
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
	d->reaper.min_ns = o->reap_min_ns;
	d->reaper.max_ns = o->reap_max_ns;
	d->table.by_id = vm->by_id;
	d->table.ids = vm->max_slots;
	d->uffd = -1;
	d->own.dirty = d;
	d->own.event_fd = -1;
	d->readers[0] = &d->own;
	if (o->foreign) {
		d->foreign = o->foreign;
		d->arg = o->arg;
		d->table.foreign = foreign_entry;
		d->table.arg = d;
	}
	return d;
}

int kvmem_dirty_create(struct kvmem_vm *vm, const struct kvmem_dirty_opts *opts,
		       struct kvmem_dirty **ret_dirty)
{
	struct km_dirty_wish wish;
	struct kvmem_dirty_opts o;
	struct kvmem_dirty *d;
	int r;

	if (!vm || !ret_dirty)
		return km_fail(EINVAL, "kvmem_dirty_create: %s is NULL", vm ? "ret_dirty" : "vm");
	r = opts_check(&o, opts);
	if (r)
		return r;
	wish = (struct km_dirty_wish){ o.mode, o.ring_entries, o.flags & KVMEM_DIRTY_WHOLE_VM };
	d = dirty_new(vm, &o);
	if (!d)
		return km_fail(ENOMEM, "kvmem_dirty_create: no memory");
	pthread_rwlock_wrlock(&vm->lock);
	if (vm->hooks)
		r = km_fail(EEXIST, "kvmem_dirty_create: the VM has a tracker");
	else
		r = km_dirty_choose(d, &wish);
	if (!r) {
		vm->hooks = &km_dirty_hooks;
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
	int r;

	if (!dirty)
		return 0;
	r = km_callback_check("kvmem_dirty_free", dirty);
	if (r)
		return r;
	if (dirty->started)
		return km_fail(EBUSY, "kvmem_dirty_free: it is started: kvmem_dirty_stop() first");
	for (unsigned int i = 1; i < KM_READERS; i++)
		if (dirty->readers[i])
			return km_fail(EBUSY, "kvmem_dirty_free: it has readers: "
					      "kvmem_reader_free() them first");
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

/* ---- statistics ---- */

static void count_slots(const struct kvmem_vm *vm, struct kvmem_dirty_stats *s)
{
	for (size_t i = 0; i < vm->slot_count; i++)
		if (vm->slots[i]->tracked)
			s->slots_tracked++;
		else
			s->slots_untracked++;
}

int kvmem_dirty_get_stats(const struct kvmem_dirty *dirty, struct kvmem_dirty_stats *ret_stats)
{
	struct kvmem_dirty_stats s;
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_get_stats: dirty is NULL");
	r = km_callback_check("kvmem_dirty_get_stats", dirty);
	if (r)
		return r;
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
		.pages_changed = dirty->stats.pages_changed,
		.resets = dirty->stats.resets,
		.short_resets = dirty->stats.short_resets,
		.ring_overflows = dirty->stats.ring_overflows,
		.pages_protected = dirty->stats.pages_protected,
		.pages_kept = dirty->stats.pages_kept,
		.foreign_entries = dirty->table.foreign_entries,
		.ring_full = dirty->stats.ring_full,
		.reaps = dirty->stats.reaps,
		.harvest_ns = dirty->stats.harvest_ns,
		.reset_ns = dirty->stats.reset_ns,
	};
	count_slots(dirty->vm, &s);
	pthread_rwlock_unlock(&dirty->vm->lock);
	km_result_copy(ret_stats, &s, sizeof(s));
	return 0;
}
