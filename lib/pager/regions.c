// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Regions of a pager: added, divided into stripes, given a source, and let go. */
#include "pager/pager_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>

#define AROUND_BLOCK	  (256u << 10) /* bytes: the block about a fault that follows no pattern */
#define STRIPES_PER_SHARD 16u
#define STRIPE_MIN	  (2u << 20) /* bytes; page tables of two shards are never the same */
/*
 * Each stripe is a mapping, and vm.max_map_count, 65530 by default, is shared with the whole VMM.
 * The first regions are divided finely, since one region may be all there is. When so many mappings
 * are used, a further region is divided no more than that each shard has a part of a large one.
 */
#define MAPPINGS_FINE 1024u
#define LARGE_REGION  (1ull << 30)
#define GROWING_PARTS 512u /* of a region that can grow, at most */

/* ---- geometry ---- */

static uint64_t round_down_pow2(uint64_t n)
{
	return n ? 1ull << (63 - __builtin_clzll(n)) : 1;
}

static uint64_t parts_of(const struct kvmem_pager *pager, const struct km_watch *w)
{
	uint64_t shards = pager->set.count;

	if (shards == 1)
		return 1;
	if (pager->mappings + shards * STRIPES_PER_SHARD <= MAPPINGS_FINE)
		return shards * STRIPES_PER_SHARD;
	return km_watch_pages(w) << w->shift >= LARGE_REGION ? shards : 1;
}

static void set_geometry(struct km_paged *p)
{
	const struct kvmem_pager *pager = p->pager;
	struct km_watch *w = &p->watch;
	uint64_t parts, unit, width;

	w->addr = (uintptr_t)w->region->base; /* of memory of our own */
	w->shift = w->region->page_shift;
	w->room = km_region_room(w->region) >> w->shift;
	w->first_uffd = pager->region_count % pager->set.count;
	p->window_max = pager->opts.fault_around >> w->shift ? pager->opts.fault_around >> w->shift
							     : 1;
	p->window = round_down_pow2(km_min(AROUND_BLOCK >> w->shift, p->window_max));
	unit = STRIPE_MIN >> w->shift ? STRIPE_MIN >> w->shift : 1;
	p->slice = KM_SLICE_BYTES >> w->shift ? KM_SLICE_BYTES >> w->shift : 1;
	parts = parts_of(pager, w);
	/* The rest of a region that can grow is divided alike, unless that makes too many mappings. */
	width = (km_watch_pages(w) + parts - 1) / parts;
	if (width < w->room / GROWING_PARTS)
		width = w->room / GROWING_PARTS;
	w->stripe = parts == 1 ? w->room : (width + unit - 1) / unit * unit;
}

static uint64_t mappings_of(const struct km_paged *p)
{
	if (p->watch.region->remote)
		return 0; /* they are another process's */
	return (p->watch.room + p->watch.stripe - 1) / p->watch.stripe;
}

/* ---- adding ---- */

/*
 * What is absent must fault: pages that somebody touched through the mapping before are taken out
 * of it. Marks of poison from an earlier pager are taken away, and these pages are absent again.
 */
static int64_t unmap_run(struct kvmem_region *r, uint64_t page, uint64_t n,
			 enum km_page_state state)
{
	bool no_access = state == KM_POISONED && atomic_load(&r->no_access);
	uint8_t *at = r->base + (page << r->page_shift);
	uint64_t bytes = n << r->page_shift;
	int64_t err = 0;

	if (no_access)
		err = km_sys_mprotect(at, bytes, PROT_READ | PROT_WRITE);
	if (err >= 0)
		err = km_mem_drop(at, bytes);
	if (err >= 0)
		km_presence_turn(&r->presence, page, n, KM_POISONED, KM_ABSENT);
	else if (no_access)
		km_sys_mprotect(at, bytes, PROT_NONE);
	return err;
}

static int64_t unmap(struct km_paged *p, enum km_page_state which)
{
	struct kvmem_region *r = p->watch.region;
	enum km_page_state state;
	int64_t err = 0;

	for (uint64_t page = 0, n; page < r->presence.pages && err >= 0; page += n) {
		n = km_presence_run(&r->presence, page, UINT64_MAX, &state);
		p->in_file |= state == KM_PRESENT;
		if (state == which)
			err = unmap_run(r, page, n, state);
	}
	return err;
}

/* Poison at last: one run that cannot be taken out, and all of it is there still. */
static int64_t unmap_absent(struct km_paged *p)
{
	int64_t err = unmap(p, KM_ABSENT);

	return err >= 0 && km_presence_poisoned(km_paged_map(p)) ? unmap(p, KM_POISONED) : err;
}

static int check_region(const struct kvmem_pager *pager, const struct kvmem_region *r)
{
	int err = km_remote_serve_check(pager, r);

	if (err)
		return err;
	if (r->plan.slot_form == KVMEM_SLOT_DIRECT)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_pager_add: the region's slots are direct "
			"(KVM_MEM_GUEST_MEMFD): the kernel resolves their faults by itself and no "
			"userfaultfd sees them; create the region with slot form HVA, or want "
			"KVMEM_WANT_PAGING");
	if (!r->remote && km_region_fill_check(r, "kvmem_pager_add"))
		return -EOPNOTSUPP;
	if (r->watch)
		return km_fail(EBUSY, "kvmem_pager_add: the region has a pager already");
	if (atomic_load(&r->guard))
		return km_fail(EBUSY, "kvmem_pager_add: a capture of the region is under way");
	if (atomic_load(&r->fillers))
		return km_fail(EBUSY, "kvmem_pager_add: the region is being populated");
	if (atomic_load(&r->writes)) /* before anything is taken out of it */
		return km_fail(
			EBUSY,
			"kvmem_pager_add: kvmem_writes watches the region, whose mapping has one "
			"userfaultfd");
	return 0;
}

/* Pages are absent again: what was said of all being there is not true any more. */
static void region_absent(void *arg)
{
	struct km_paged *p = arg;
	struct kvmem_pager *pager = p->pager;
	uint64_t poisoned;

	pthread_mutex_lock(&pager->lock);
	if (!pager->released && km_pager_missing(pager, &poisoned))
		atomic_store(&pager->complete, false);
	pthread_mutex_unlock(&pager->lock);
	km_backlog_again(pager);
}

static const struct km_presence_listener listener = {
	.whole = km_pager_region_whole,
	.absent = region_absent,
};

/* Of another process's memory UFFDIO_COPY tells what exists already. With the region's lock held. */
static int serve_remote(struct km_paged *p, uint32_t flags)
{
	struct kvmem_region *r = p->watch.region;
	int err = 0;

	if (flags)
		return km_fail(EINVAL,
			       "kvmem_pager_add: flags 0x%" PRIx32
			       ": what exists in the memory of another process is content",
			       flags);
	err = km_remote_begin(&p->watch);
	if (err)
		return err;
	err = km_remote_poll(p);
	if (err)
		return err; /* the view goes when the lock is not held any more */
	km_remote_join(&p->watch);
	p->in_file = km_watch_can(&p->watch, _UFFDIO_CONTINUE);
	km_source_get(p->feed.source);
	km_presence_listen(&r->presence, &listener, p);
	return 0;
}

struct take_out {
	struct km_paged *p;
	const struct km_found *found;
	bool unmaps;
};

/* A file that is sealed refuses, and marks of poison are there still. */
static int64_t take_out_run(void *arg)
{
	const struct take_out *t = arg;
	int64_t err = km_pages_overwrite_found(t->p->watch.region, t->found);

	return err >= 0 && t->unmaps ? unmap_absent(t->p) : err;
}

/*
 * By this something is lost: content that the caller wants overwritten, and poison. So it is done when nothing else
 * can fail any more; the memory is registered by then, and its removals raise events, which nobody enters.
 */
static int take_out(struct km_paged *p, const struct km_found *found, bool unmaps)
{
	struct take_out t = { .p = p, .found = found, .unmaps = unmaps };
	int64_t err;

	km_pages_keep_found(p->watch.region, found, true);
	/* Workers that would read the events may be in a callback, which may wait for the region's lock. */
	err = unmaps ? km_uffd_removing(p->watch.set, take_out_run, &t) : take_out_run(&t);
	if (err >= 0)
		return 0;
	km_pages_keep_found(p->watch.region, found, false);
	if (err == -EAGAIN)
		return km_fail(
			EAGAIN,
			"kvmem_pager_add: a thread for taking out what is to be filled anew: %m; "
			"see RLIMIT_NPROC, pids.max of the cgroup, RLIMIT_AS");
	return km_fail((int)-err, "kvmem_pager_add: taking out what is to be filled anew "
				  "(FALLOC_FL_PUNCH_HOLE, MADV_DONTNEED): %m");
}

static int register_region(struct km_paged *p, const struct km_found *found)
{
	const struct kvmem_region *r = p->watch.region;
	bool late = km_presence_poisoned(&r->presence) || (found->count && r->fd < 0);
	int64_t dropped = late ? 0 : unmap_absent(p);
	int err;

	if (dropped < 0)
		return km_fail((int)-dropped, "kvmem_pager_add: MADV_DONTNEED of absent pages: %m");
	err = km_watch_register(&p->watch);
	if (err)
		return err;
	err = take_out(p, found, late);
	if (err)
		km_watch_unregister(&p->watch);
	else
		km_watch_join(&p->watch);
	return err;
}

/* With the region's lock held. */
static int serve_region(struct km_paged *p, uint32_t flags)
{
	struct kvmem_region *r = p->watch.region;
	struct km_found found = { .runs = NULL };
	int err = check_region(p->pager, r);

	if (!err && r->remote)
		return serve_remote(p, flags);
	if (!err)
		err = km_pages_find_unannounced(r, flags, "kvmem_pager_add", &found);
	if (!err)
		err = register_region(p, &found);
	p->in_file |= flags & KVMEM_FILL_KEEP && found.count; /* they have become PRESENT since */
	km_sys_free(found.runs);
	if (err)
		return err;
	km_pages_written_zeros(r);
	p->in_file = p->in_file && km_watch_can(&p->watch, _UFFDIO_CONTINUE);
	km_source_get(p->feed.source);
	km_presence_listen(&r->presence, &listener, p);
	return 0;
}

static int check_source(const struct kvmem_pager *pager, const struct kvmem_region *region,
			const struct kvmem_source *source, uint64_t source_offset, const char *call)
{
	if (!pager || !region || !source)
		return km_fail(EINVAL, "%s: %s is NULL", call,
			       !pager	 ? "pager"
			       : !region ? "region"
					 : "source");
	if (source_offset + region->bytes < source_offset)
		return km_fail(EINVAL,
			       "%s: source_offset 0x%" PRIx64 " + 0x%" PRIx64 " bytes overflows",
			       call, source_offset, region->bytes);
	return km_callback_check(call, pager);
}

static int check_flags(uint32_t flags)
{
	const uint32_t both = KVMEM_FILL_KEEP | KVMEM_FILL_OVERWRITE;
	int r = km_flags_check(flags, both, "kvmem_pager_add: flags");

	if (r || (flags & both) != both)
		return r;
	return km_fail(EINVAL, "kvmem_pager_add: KVMEM_FILL_KEEP and KVMEM_FILL_OVERWRITE exclude "
			       "each other");
}

static void set_source(struct km_paged *p, struct kvmem_source *source, uint64_t source_offset)
{
	p->feed.watch = &p->watch;
	p->feed.source = source;
	p->feed.source_offset = source_offset;
	p->feed.owner = p->pager;
	p->haste = km_feed_haste(&p->feed);
}

/* Faults that were read before the table had the region were left alone: they come again. */
static void wake_early(const struct km_paged *p)
{
	km_watch_wake(&p->watch, 0, km_watch_pages(&p->watch));
}

/* Without this thread events wait for kvmem_pager_start(), and who makes them with them. */
static void keep_house(struct km_paged *p)
{
	struct km_detail before;

	if (km_stop_worker(p->pager)->started) { /* for other regions */
		wake_early(p);
		return;
	}
	km_detail_save(&before);
	if (km_caretaker_start(p->pager))
		km_detail_restore(&before);
}

static void join_running(struct km_paged *p)
{
	struct kvmem_pager *pager = p->pager;

	pager->slow |= km_paged_is_slow(p);
	if (pager->slow && !(pager->opts.flags & KVMEM_PAGER_NO_THREADS))
		km_fillers_start(pager);
	wake_early(p);
	region_absent(p);
}

/* A thread may have got an event of one of its userfaultfds just now. */
static void drop_view(struct km_paged *p)
{
	struct km_detail failed;

	if (!km_watch_is_remote(&p->watch))
		return;
	km_detail_save(&failed);
	km_workers_settle(p->pager);
	km_remote_free_views(&p->watch);
	km_detail_restore(&failed);
}

static int add_region(struct km_paged *p, uint32_t flags)
{
	struct kvmem_pager *pager = p->pager;
	struct kvmem_region *region = p->watch.region;
	struct km_paged_table *table = km_table_new(pager);
	bool whole;
	int r;

	if (!table)
		return km_fail(ENOMEM, "kvmem_pager_add: no memory");
	pthread_mutex_lock(&region->lock);
	km_presence_defer(); /* events of other regions may be read */
	r = serve_region(p, flags);
	whole = km_presence_defer_end();
	pthread_mutex_unlock(&region->lock);
	if (whole && km_paged_first(pager))
		km_pager_region_whole(km_paged_first(pager));
	if (r) {
		km_sys_free(table);
		drop_view(p);
		return r;
	}
	pager->region_count++;
	pager->mappings += mappings_of(p);
	if (region->remote)
		km_sys_free(table); /* its addresses are not ours */
	else
		km_table_add(pager, table, p);
	atomic_store(&p->joined, true);
	return 0;
}

int kvmem_pager_add(struct kvmem_pager *pager, struct kvmem_region *region,
		    struct kvmem_source *source, uint64_t source_offset, uint32_t flags)
{
	int r = check_source(pager, region, source, source_offset, "kvmem_pager_add");
	struct km_paged *p;

	if (!r)
		r = check_flags(flags);
	if (r)
		return r;
	if (atomic_load(&pager->state) == KM_PAGER_STOPPED)
		return km_fail(EBUSY, "kvmem_pager_add: the pager was stopped: make another one");
	p = km_sys_alloc(sizeof(*p));
	if (!p)
		return km_fail(ENOMEM, "kvmem_pager_add: no memory");
	p->pager = pager;
	p->watch.set = &pager->set;
	p->watch.region = region;
	set_geometry(p);
	set_source(p, source, source_offset);
	r = add_region(p, flags);
	if (r) {
		km_sys_free(p);
		return r;
	}
	if (atomic_load(&pager->state) == KM_PAGER_RUNNING)
		join_running(p);
	else
		keep_house(p);
	return 0;
}

/* ---- another source ---- */

int kvmem_pager_set_source(struct kvmem_pager *pager, struct kvmem_region *region,
			   struct kvmem_source *source, uint64_t source_offset)
{
	int r = check_source(pager, region, source, source_offset, "kvmem_pager_set_source");
	struct km_paged *p;
	int state;

	if (r)
		return r;
	state = atomic_load(&pager->state);
	if (state == KM_PAGER_RUNNING)
		return km_fail(EBUSY, "kvmem_pager_set_source: the pager is running: "
				      "kvmem_pager_stop() it with KVMEM_STOP_HAND_BACK first");
	if (state == KM_PAGER_STOPPED)
		return km_fail(EINVAL, "kvmem_pager_set_source: the pager was stopped, and has no "
				       "regions any more");
	p = km_paged_of(pager, region);
	if (!p)
		return km_fail(ENOENT, "kvmem_pager_set_source: the region is not of this pager");
	km_source_get(source);
	km_source_put(p->feed.source);
	set_source(p, source, source_offset);
	/* What a thread remembers of the old source it forgets at the start: km_worker_reset(). */
	atomic_store(&p->around_skip, 0);
	atomic_store(&p->around_penalty, 0);
	return 0;
}

/* ---- letting go ---- */

/* Nobody else reads events any more, and who holds the lock may be waiting for that. */
static void drain_all(struct km_uffd_set *set)
{
	for (unsigned int i = 0; !set->none && i < set->count; i++)
		while (km_uffd_drain(set, &set->all[i]))
			;
}

/* Faults are let go, and come again: one look, since the other process may never run out of them. */
static void drain_remote(struct km_paged *p)
{
	for (struct km_view *v = atomic_load(&p->watch.views); v; v = atomic_load(&v->next))
		for (unsigned int i = 0; i < v->remote->uffd_count; i++)
			km_uffd_drain(p->watch.set, &v->uffds[i]);
}

/* Until nobody works on the region's pages: populate, a discard. */
static void lock_unfilled(struct km_paged *p)
{
	struct kvmem_region *r = p->watch.region;

	for (;; km_sys_poll(NULL, 0, 1)) {
		drain_all(p->watch.set);
		drain_remote(p);
		if (pthread_mutex_trylock(&r->lock))
			continue;
		if (!atomic_load(&r->fillers))
			return;
		pthread_mutex_unlock(&r->lock);
	}
}

/*
 * Nothing is to be missing, unless something has failed (`err`): kvmem_region_mark_absent() may have been called since
 * all was filled. Returns with the region's lock held.
 */
static int lock_filled(struct km_paged *p, int err)
{
	for (;;) {
		lock_unfilled(p);
		if (err || km_presence_ended(km_paged_map(p)))
			return err;
		pthread_mutex_unlock(&p->watch.region->lock);
		err = km_pager_fill_region(p);
	}
}

/* In `at_end` what it lacks is added up. */
static int release(struct km_paged *p, int err, bool at_end)
{
	struct kvmem_region *r = p->watch.region;

	err = lock_filled(p, err);
	/* Who counts what is missing goes through the list under this lock. */
	pthread_mutex_lock(&p->pager->lock);
	if (at_end) {
		p->pager->missing_at_end += km_presence_missing(&r->presence);
		p->pager->poisoned_at_end += km_presence_poisoned(&r->presence);
	}
	if (km_watch_ended(&p->watch) && !p->told_ended)
		atomic_fetch_add(&p->pager->ended_told, 1); /* who lets it go knows */
	p->told_ended = true;
	if (km_watch_is_remote(&p->watch))
		km_remote_end(&p->watch);
	else
		km_watch_end(&p->watch);
	pthread_mutex_unlock(&p->pager->lock);
	if (km_watch_is_remote(&p->watch))
		km_remote_unpoll(p);
	km_presence_listen(&r->presence, NULL, NULL);
	pthread_mutex_unlock(&r->lock);
	km_source_put(p->feed.source);
	return err;
}

int km_pager_release_all(struct kvmem_pager *pager, int err)
{
	struct km_paged *p, *first = km_paged_first(pager), *next;

	pthread_mutex_lock(&pager->lock);
	pager->released = true;
	pthread_mutex_unlock(&pager->lock);
	for (p = first; p; p = km_paged_next(p))
		err = release(p, err, true);
	/* No fault comes any more, but who was held up is let go. */
	drain_all(&pager->set);
	for (p = first; p; p = next) {
		next = km_paged_next(p);
		km_remote_free_views(&p->watch);
		km_sys_free(p);
	}
	pager->region_count = 0;
	return err;
}

/* ---- one of them ---- */

static int remove_check(struct kvmem_pager *pager, struct kvmem_region *region, uint32_t how,
			struct km_paged **ret)
{
	int r;

	if (!pager || !region)
		return km_fail(EINVAL, "kvmem_pager_remove: %s is NULL",
			       pager ? "region" : "pager");
	if (how > KVMEM_STOP_HAND_BACK)
		return km_fail(EINVAL,
			       "kvmem_pager_remove: how is %" PRIu32 ", must be FILL or HAND_BACK",
			       how);
	r = km_pager_callback_check(pager, "kvmem_pager_remove");
	if (r)
		return r;
	*ret = km_paged_of(pager, region);
	if (!*ret)
		return km_fail(ENOENT, "kvmem_pager_remove: the region is not of this pager");
	if (atomic_load(&region->guard))
		return km_fail(EBUSY, "kvmem_pager_remove: a capture of the region is under way: "
				      "kvmem_capture_stop() it first");
	if (how == KVMEM_STOP_HAND_BACK && km_presence_missing(&region->presence) &&
	    km_region_is_attached(region))
		return km_fail(EBUSY,
			       "kvmem_pager_remove: pages are missing, and a slot shows the region "
			       "to a guest, who would find zeros: kvmem_region_detach() first, "
			       "or KVMEM_STOP_FILL");
	if (how == KVMEM_STOP_FILL && atomic_load(&pager->state) != KM_PAGER_RUNNING &&
	    km_presence_missing(&region->presence))
		return km_fail(EINVAL,
			       "kvmem_pager_remove: pages are missing, and the pager is not "
			       "running: kvmem_pager_start() it, or populate the region");
	return 0;
}

/* No thread of the pager begins anything on it, then none remembers it. */
static void withdraw(struct km_paged *p, struct km_paged_table *table)
{
	struct kvmem_pager *pager = p->pager;

	atomic_store(&p->leaving, true);
	if (p->watch.region->remote)
		km_sys_free(table);
	else
		km_table_remove(pager, table, p);
	km_prefetch_drop(pager, p);
	km_backlog_again(pager);
	km_workers_settle(pager);
	km_later_end_all(pager, p, true);
}

int kvmem_pager_remove(struct kvmem_pager *pager, struct kvmem_region *region, uint32_t how)
{
	struct km_paged_table *table;
	struct km_paged *p = NULL;
	int r = remove_check(pager, region, how, &p);
	bool fill;

	if (r)
		return r;
	table = km_table_new(pager);
	if (!table)
		return km_fail(ENOMEM, "kvmem_pager_remove: no memory");
	fill = how == KVMEM_STOP_FILL && atomic_load(&pager->state) == KM_PAGER_RUNNING;
	if (fill)
		r = km_pager_fill_region(p);
	withdraw(p, table);
	r = release(p, fill ? r : -ECANCELED, false);
	/* Who walks the list of regions may have been at this one. */
	km_workers_settle(pager);
	pager->region_count--;
	pager->mappings -= mappings_of(p);
	km_remote_free_views(&p->watch);
	km_sys_free(p);
	if (atomic_load(&pager->state) == KM_PAGER_RUNNING && km_paged_first(pager))
		km_pager_region_whole(km_paged_first(pager));
	km_pager_changed(pager);
	if (fill && r)
		return km_fail(
			-r, "kvmem_pager_remove: not all could be filled, the pages concerned are "
			    "poisoned: %m");
	return 0;
}
