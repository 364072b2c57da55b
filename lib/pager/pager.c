// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The life of a pager: options, shards, regions, threads. */
#include "pager/pager_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>

#define MAX_SHARDS	   256u
#define MAX_WORKERS	   64u
#define AROUND_DEFAULT	   (1u << 20)	/* bytes: sequential windows grow up to this */
#define AROUND_BLOCK	   (256u << 10) /* bytes: the block about a fault that follows no pattern */
#define STRIPES_PER_SHARD  16u
#define STRIPE_MIN	   (2u << 20) /* bytes; page tables of two shards are never the same */
#define CPUS_PER_SHARD	   4u
#define SHARDS_DEFAULT_MAX 16u

static const uint64_t all_events = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

/* ---- create, free ---- */

/*
 * Two, as soon as there are two CPUs: making a page costs more than touching it, and the CPU of a
 * thread that waits for one is free to make another.
 */
static uint32_t default_shards(unsigned int cpus)
{
	if (cpus < 2 * CPUS_PER_SHARD)
		return cpus < 2 ? 1 : 2;
	return (uint32_t)km_min(cpus / CPUS_PER_SHARD, SHARDS_DEFAULT_MAX);
}

static int check_opts(struct kvmem_pager_opts *o)
{
	const uint32_t known = KVMEM_PAGER_BACKGROUND | KVMEM_PAGER_NO_THREADS;
	int r = km_flags_check(o->flags, known, "kvmem_pager_opts.flags");

	if (r)
		return r;
	if (o->shards > MAX_SHARDS || o->workers > MAX_WORKERS)
		return km_fail(EINVAL,
			       "kvmem_pager_opts: %" PRIu32 " shards of %" PRIu32
			       " workers; at most "
			       "%u of %u",
			       o->shards, o->workers, MAX_SHARDS, MAX_WORKERS);
	if (o->flags & KVMEM_PAGER_NO_THREADS && o->workers > 1)
		return km_fail(EINVAL,
			       "kvmem_pager_opts: %" PRIu32
			       " workers, but NO_THREADS has none: leave "
			       "it 0",
			       o->workers);
	if (!o->workers)
		o->workers = 1;
	if (!o->shards && !(o->flags & KVMEM_PAGER_NO_THREADS))
		o->shards = default_shards(km_sys_cpus());
	if (!o->shards)
		o->shards = 1;
	if (!o->fault_around)
		o->fault_around = AROUND_DEFAULT;
	return 0;
}

/* Arrays of things that own their cache lines; freed by *ret_raw. */
static void *alloc_lines(size_t count, size_t each, void **ret_raw)
{
	void *raw = km_sys_alloc(count * each + KM_CACHE_LINE);

	*ret_raw = raw;
	if (!raw)
		return NULL;
	return (void *)(((uintptr_t)raw + KM_CACHE_LINE - 1) & ~(uintptr_t)(KM_CACHE_LINE - 1));
}

static int alloc_parts(struct kvmem_pager *pager)
{
	bool threads = !(pager->opts.flags & KVMEM_PAGER_NO_THREADS);

	pager->shard_count = pager->opts.shards;
	pager->worker_count = 1 + (threads ? pager->opts.shards * pager->opts.workers : 1);
	pager->shards = alloc_lines(pager->shard_count, sizeof(*pager->shards), &pager->raw_shards);
	pager->workers = alloc_lines(pager->worker_count, sizeof(*pager->workers),
				     &pager->raw_workers);
	for (unsigned int i = 0; pager->shards && i < pager->shard_count; i++) {
		atomic_store(&pager->shards[i].fd, -1);
		pager->shards[i].spare = -1;
		pager->shards[i].prefetch_tail = &pager->shards[i].prefetch;
	}
	for (unsigned int i = 0; pager->workers && i < pager->worker_count; i++)
		pager->workers[i].epoll = pager->workers[i].kick = -1;
	if (!pager->shards || !pager->workers)
		return km_fail(ENOMEM, "pager: no memory for %u shards and %u workers",
			       pager->shard_count, pager->worker_count);
	return 0;
}

static int open_parts(struct kvmem_pager *pager)
{
	bool threads = !(pager->opts.flags & KVMEM_PAGER_NO_THREADS);
	unsigned int i, shard = 0, last = pager->worker_count - 1;
	int r = 0;

	/*
	 * REMOVE and UNMAP events stop their thread until we have read them. Without threads that
	 * may be the very thread that would read them, so these events are left off there.
	 */
	for (i = 0; !r && i < pager->shard_count; i++)
		r = km_shard_open(&pager->shards[i], pager, threads ? all_events : 0);
	for (i = 0; !r && i < last; i++) {
		r = threads ? km_worker_open(&pager->workers[i], pager, &pager->shards[shard], 1)
			    : km_worker_open(&pager->workers[i], pager, pager->shards,
					     pager->shard_count);
		shard = shard + 1 < pager->shard_count ? shard + 1 : 0;
	}
	if (!r) /* kvmem_pager_stop()'s own: it fills, and reads no events */
		r = km_worker_open(&pager->workers[last], pager, pager->shards, 0);
	return r;
}

static void destroy(struct kvmem_pager *pager)
{
	for (unsigned int i = 0; pager->workers && i < pager->worker_count; i++)
		km_worker_close(&pager->workers[i]);
	for (unsigned int i = 0; pager->shards && i < pager->shard_count; i++) {
		km_prefetch_free(pager->shards[i].prefetch);
		km_shard_close(&pager->shards[i]);
	}
	pthread_cond_destroy(&pager->changed);
	pthread_mutex_destroy(&pager->lock);
	km_sys_free(pager->paged);
	km_sys_free(pager->raw_shards);
	km_sys_free(pager->raw_workers);
	km_sys_free(pager);
}

int kvmem_pager_create(const struct kvmem_pager_opts *opts, struct kvmem_pager **ret_pager)
{
	struct kvmem_pager *pager;
	pthread_condattr_t attr;
	int r;

	if (!ret_pager)
		return km_fail(EINVAL, "kvmem_pager_create: ret_pager is NULL");
	pager = km_sys_alloc(sizeof(*pager));
	if (!pager)
		return km_fail(ENOMEM, "kvmem_pager_create: no memory");
	pthread_mutex_init(&pager->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&pager->changed, &attr);
	pthread_condattr_destroy(&attr);
	r = km_opts_copy(&pager->opts, sizeof(pager->opts), sizeof(pager->opts), opts,
			 "kvmem_pager_opts");
	if (!r)
		r = check_opts(&pager->opts);
	if (!r)
		r = alloc_parts(pager);
	if (!r)
		r = open_parts(pager);
	if (r) {
		destroy(pager);
		return r;
	}
	*ret_pager = pager;
	return 0;
}

/* ---- regions ---- */

static uint64_t round_down_pow2(uint64_t n)
{
	return n ? 1ull << (63 - __builtin_clzll(n)) : 1;
}

static void set_geometry(struct km_paged *p)
{
	const struct kvmem_pager *pager = p->pager;
	uint64_t parts = (uint64_t)pager->shard_count * STRIPES_PER_SHARD;
	uint64_t unit;

	p->addr = (uintptr_t)p->region->base;
	p->shift = p->region->page_shift;
	p->pages = p->region->bytes >> p->shift;
	p->window_max = pager->opts.fault_around >> p->shift ? pager->opts.fault_around >> p->shift
							     : 1;
	p->window = round_down_pow2(km_min(AROUND_BLOCK >> p->shift, p->window_max));
	unit = STRIPE_MIN >> p->shift ? STRIPE_MIN >> p->shift : 1;
	p->slice = KM_SLICE_BYTES >> p->shift ? KM_SLICE_BYTES >> p->shift : 1;
	p->stripe = pager->shard_count == 1
			    ? p->pages
			    : ((p->pages + parts - 1) / parts + unit - 1) / unit * unit;
}

/*
 * What is absent must fault: pages that somebody touched through the mapping before are taken out
 * of it. Those of a file stay in the file, and are replaced when their turn comes.
 */
static int unmap_absent(struct km_paged *p)
{
	enum km_page_state state;
	int64_t r;

	for (uint64_t page = 0, n; page < p->pages; page += n) {
		n = km_presence_run(&p->region->presence, page, p->pages - page, &state);
		p->in_file |= state == KM_PRESENT;
		if (state != KM_ABSENT)
			continue;
		r = km_sys_madvise(p->region->base + (page << p->shift), n << p->shift,
				   MADV_DONTNEED);
		if (r < 0)
			return km_fail((int)-r,
				       "kvmem_pager_add: MADV_DONTNEED of 0x%" PRIx64 " bytes at "
				       "offset 0x%" PRIx64 ": %m",
				       n << p->shift, page << p->shift);
	}
	return 0;
}

static int check_region(const struct kvmem_region *r)
{
	if (r->plan.slot_form == KVMEM_SLOT_DIRECT)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_pager_add: the region's slots are direct "
			"(KVM_MEM_GUEST_MEMFD): the kernel resolves their faults by itself and no "
			"userfaultfd sees them; create the region with slot form HVA, or want "
			"KVMEM_WANT_PAGING");
	if (r->pager)
		return km_fail(EBUSY, "kvmem_pager_add: the region has a pager already");
	if (atomic_load(&r->fillers))
		return km_fail(EBUSY, "kvmem_pager_add: the region is being populated");
	return 0;
}

/* With the region's lock held. */
static int serve_region(struct km_paged *p)
{
	struct kvmem_region *r = p->region;
	int err = check_region(r);

	if (!err)
		err = unmap_absent(p);
	if (!err)
		err = km_uffd_register(p);
	if (err)
		return err;
	p->in_file = p->in_file && km_can(p, _UFFDIO_CONTINUE);
	km_source_get(p->source);
	r->pager = p;
	r->fault_ops = &km_pager_fault_ops;
	return 0;
}

static int check_add(const struct kvmem_pager *pager, const struct kvmem_region *region,
		     const struct kvmem_source *source, uint64_t source_offset)
{
	if (!pager || !region || !source)
		return km_fail(EINVAL, "kvmem_pager_add: %s is NULL",
			       !pager	 ? "pager"
			       : !region ? "region"
					 : "source");
	if (atomic_load(&pager->state) != KM_PAGER_NEW)
		return km_fail(EBUSY, "kvmem_pager_add: the pager was started: regions come before "
				      "kvmem_pager_start()");
	if (source_offset + region->bytes < source_offset)
		return km_fail(EINVAL,
			       "kvmem_pager_add: source_offset 0x%" PRIx64 " + 0x%" PRIx64
			       " bytes overflows",
			       source_offset, region->bytes);
	return 0;
}

/* Statistics, prefetch and discard look at the list from threads of their own. */
static bool make_room(struct kvmem_pager *pager)
{
	struct km_paged **list;

	pthread_mutex_lock(&pager->lock);
	list = km_sys_realloc(pager->paged, (pager->paged_count + 1) * sizeof(*list));
	if (list)
		pager->paged = list;
	pthread_mutex_unlock(&pager->lock);
	return list != NULL;
}

static void append(struct kvmem_pager *pager, struct km_paged *p)
{
	pthread_mutex_lock(&pager->lock);
	pager->paged[pager->paged_count++] = p;
	pthread_mutex_unlock(&pager->lock);
}

int kvmem_pager_add(struct kvmem_pager *pager, struct kvmem_region *region,
		    struct kvmem_source *source, uint64_t source_offset)
{
	int r = check_add(pager, region, source, source_offset);
	struct km_paged *p;

	if (r)
		return r;
	p = make_room(pager) ? km_sys_alloc(sizeof(*p)) : NULL;
	if (!p)
		return km_fail(ENOMEM, "kvmem_pager_add: no memory");
	p->pager = pager;
	p->region = region;
	p->source = source;
	p->source_offset = source_offset;
	set_geometry(p);
	pthread_mutex_lock(&region->lock);
	r = serve_region(p);
	if (!r)
		append(pager, p);
	pthread_mutex_unlock(&region->lock);
	if (r)
		km_sys_free(p);
	return r;
}

/* Nobody else reads events any more, and who holds the lock may be waiting for that. */
static bool drain_all(struct kvmem_pager *pager)
{
	bool any = false;

	for (unsigned int i = 0; i < pager->shard_count; i++)
		any |= km_uffd_drain(&pager->shards[i]);
	return any;
}

static void lock_unfilled(struct km_paged *p)
{
	struct kvmem_region *r = p->region;

	for (;; km_sys_poll(NULL, 0, 1)) {
		drain_all(p->pager);
		if (pthread_mutex_trylock(&r->lock))
			continue;
		if (!atomic_load(&r->fillers)) /* populate fills by our hooks */
			return;
		pthread_mutex_unlock(&r->lock);
	}
}

static void release(struct km_paged *p)
{
	struct kvmem_region *r = p->region;

	lock_unfilled(p);
	km_uffd_unregister(p);
	r->fault_ops = NULL;
	r->pager = NULL;
	pthread_mutex_unlock(&r->lock);
	km_source_put(p->source);
	km_sys_free(p);
}

static void release_all(struct kvmem_pager *pager)
{
	pthread_mutex_lock(&pager->lock);
	pager->missing_at_end = km_pager_missing(pager);
	pager->released = true;
	pthread_mutex_unlock(&pager->lock);
	for (; pager->paged_count; pager->paged_count--)
		release(pager->paged[pager->paged_count - 1]);
	while (drain_all(pager)) /* no fault comes any more, but who was held up is let go */
		;
}

int kvmem_pager_free(struct kvmem_pager *pager)
{
	if (!pager)
		return 0;
	if (atomic_load(&pager->state) == KM_PAGER_RUNNING)
		return km_fail(
			EBUSY,
			"kvmem_pager_free: the pager is running: kvmem_pager_stop() it first");
	release_all(pager);
	destroy(pager);
	return 0;
}

/* ---- start, stop ---- */

static void count_slices(struct kvmem_pager *pager)
{
	for (unsigned int s = 0; s < pager->shard_count; s++)
		for (unsigned int i = 0; i < pager->paged_count; i++)
			pager->shards[s].slices += km_pager_slices(pager->paged[i], s);
}

static void join_all(struct kvmem_pager *pager)
{
	atomic_store_explicit(&pager->stopping, true, memory_order_release);
	km_pager_kick_all(pager);
	for (unsigned int i = 0; i + 1 < pager->worker_count; i++) {
		struct km_worker *w = &pager->workers[i];

		if (w->started)
			km_sys_thread_join(w->thread);
		w->started = false;
	}
}

static int start_threads(struct kvmem_pager *pager)
{
	for (unsigned int i = 0; i + 1 < pager->worker_count; i++) {
		struct km_worker *w = &pager->workers[i];
		char name[16];
		int64_t r;

		snprintf(name, sizeof(name), "kvmem-pager/%u", i % 1000);
		r = km_sys_thread_create(&w->thread, name, km_worker_run, w);
		if (r < 0) {
			join_all(pager);
			atomic_store(&pager->stopping, false);
			return km_fail((int)-r, "kvmem_pager_start: worker %u of %u: %m", i,
				       pager->worker_count - 1);
		}
		w->started = true;
	}
	return 0;
}

int kvmem_pager_start(struct kvmem_pager *pager)
{
	int r = 0;

	if (!pager)
		return km_fail(EINVAL, "kvmem_pager_start: pager is NULL");
	if (atomic_load(&pager->state) != KM_PAGER_NEW)
		return km_fail(EBUSY, "kvmem_pager_start: the pager was started already");
	if (!pager->paged_count)
		return km_fail(EINVAL, "kvmem_pager_start: no region: kvmem_pager_add() one first");
	atomic_store(&pager->background, pager->opts.flags & KVMEM_PAGER_BACKGROUND);
	count_slices(pager);
	if (!(pager->opts.flags & KVMEM_PAGER_NO_THREADS))
		r = start_threads(pager);
	else
		km_worker_kick(&pager->workers[0]);
	if (!r)
		atomic_store(&pager->state, KM_PAGER_RUNNING);
	for (unsigned int i = 0; r && i < pager->shard_count; i++)
		pager->shards[i].slices = 0;
	return r;
}

static int fill_rest(struct kvmem_pager *pager)
{
	int r;

	atomic_store(&pager->background, true); /* the workers help */
	km_pager_kick_all(pager);
	r = km_pager_fill_rest(&pager->workers[pager->worker_count - 1]);
	km_pager_check_complete(pager);
	if (r)
		return km_fail(-r,
			       "kvmem_pager_stop: not all could be filled, the pages concerned are "
			       "poisoned: %m");
	return 0;
}

int kvmem_pager_stop(struct kvmem_pager *pager, uint32_t how)
{
	int r = 0;

	if (!pager)
		return km_fail(EINVAL, "kvmem_pager_stop: pager is NULL");
	if (how > KVMEM_STOP_HAND_BACK)
		return km_fail(EINVAL,
			       "kvmem_pager_stop: how is %" PRIu32 ", must be FILL or HAND_BACK",
			       how);
	if (atomic_load(&pager->state) != KM_PAGER_RUNNING)
		return km_fail(EINVAL, "kvmem_pager_stop: the pager is not running");
	if (how == KVMEM_STOP_FILL)
		r = fill_rest(pager);
	join_all(pager);
	pthread_mutex_lock(&pager->lock);
	atomic_store(&pager->state, KM_PAGER_STOPPED);
	pthread_cond_broadcast(&pager->changed);
	while (pager->waiters)
		pthread_cond_wait(&pager->changed, &pager->lock);
	pthread_mutex_unlock(&pager->lock);
	release_all(pager);
	return r;
}
