// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The life of a pager: options, threads, start and stop. */
#include "pager/pager_internal.h"

#include <errno.h>
#include <inttypes.h>

#define MAX_SHARDS	   256u
#define MAX_WORKERS	   64u
#define AROUND_DEFAULT	   (1u << 20) /* bytes: sequential windows grow up to this */
#define CPUS_PER_SHARD	   4u
#define SHARDS_DEFAULT_MAX 16u
#define BUF_BYTES	   (128u << 10) /* stays in the second-level cache between read and copy */
#define BUF_MOST	   (2u << 20)	/* for huge pages; larger ones are filled in pieces */

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

static bool has_threads(const struct kvmem_pager *pager)
{
	return !(pager->opts.flags & KVMEM_PAGER_NO_THREADS);
}

/* Each of them is a shard. */
static int check_uffds(struct kvmem_pager_opts *o)
{
	if (!o->uffd_count && !o->uffds)
		return 0;
	if (!o->uffds || !o->uffd_count)
		return km_fail(EINVAL, "kvmem_pager_opts: %s",
			       o->uffds ? "uffds is given, and uffd_count is 0" : "uffds is NULL");
	if (o->shards && o->shards != o->uffd_count)
		return km_fail(EINVAL,
			       "kvmem_pager_opts: %" PRIu32 " shards of %" PRIu32
			       " userfaultfds: each is one shard, leave shards 0",
			       o->shards, o->uffd_count);
	o->shards = o->uffd_count;
	return 0;
}

static int check_opts(struct kvmem_pager_opts *o)
{
	const uint32_t known = KVMEM_PAGER_BACKGROUND | KVMEM_PAGER_NO_THREADS |
			       KVMEM_PAGER_CAPTURE | KVMEM_PAGER_REMOTE;
	int r = km_flags_check(o->flags, known, "kvmem_pager_opts.flags");

	if (!r)
		r = km_trace_check(o);
	if (!r)
		r = km_threads_check(o);
	if (!r)
		r = check_uffds(o);
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
	if (o->flags & KVMEM_PAGER_REMOTE && (o->uffds || o->flags & KVMEM_PAGER_CAPTURE))
		return km_fail(
			EINVAL,
			"kvmem_pager_opts: KVMEM_PAGER_REMOTE with %s: its regions bring their "
			"userfaultfds",
			o->uffds ? "uffds" : "KVMEM_PAGER_CAPTURE");
	if (o->flags & KVMEM_PAGER_REMOTE && !o->shards)
		o->shards = 1;
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
	unsigned int shards = pager->opts.shards;
	unsigned int fillers = has_threads(pager) ? shards : 0;

	pager->worker_count = has_threads(pager) ? shards * pager->opts.workers : 1;
	pager->all_count = pager->worker_count + fillers + 1;
	pager->backlogs = alloc_lines(shards, sizeof(*pager->backlogs), &pager->raw_backlogs);
	pager->workers = alloc_lines(pager->all_count, sizeof(*pager->workers),
				     &pager->raw_workers);
	for (unsigned int i = 0; pager->backlogs && i < shards; i++) {
		km_prefetch_init(&pager->backlogs[i].now);
		km_prefetch_init(&pager->backlogs[i].later);
	}
	for (unsigned int i = 0; pager->workers && i < pager->all_count; i++) {
		pager->workers[i].epoll = pager->workers[i].kick = -1;
		pager->workers[i].timer = -1;
	}
	if (!pager->backlogs || !pager->workers)
		return km_fail(ENOMEM, "pager: no memory for %u shards and %u workers", shards,
			       pager->worker_count);
	pager->set.whole = km_pager_whole;
	pager->set.whole_arg = pager;
	/*
	 * REMOVE and UNMAP events stop their thread until we have read them. Without threads that
	 * may be the very thread that would read them, so these events are left off there.
	 */
	return km_uffd_set_open(
		&pager->set, shards, pager->opts.uffds,
		(has_threads(pager) ? KM_UFFD_REMOVALS : 0) |
			(pager->opts.trace_entries ? KM_UFFD_THREADS : 0) |
			(pager->opts.flags & KVMEM_PAGER_CAPTURE ? KM_UFFD_CAPTURES : 0) |
			(pager->opts.flags & KVMEM_PAGER_REMOTE ? KM_UFFD_NONE : 0));
}

static int open_traces(struct kvmem_pager *pager)
{
	int r = km_trace_open(&pager->given_trace, pager->opts.trace_entries);

	for (unsigned int i = 0; !r && i < pager->all_count; i++)
		r = km_trace_open(&pager->workers[i].trace, pager->opts.trace_entries);
	return r;
}

static int open_workers(struct kvmem_pager *pager)
{
	unsigned int shards = pager->set.count, last = pager->all_count - 1;
	int r = 0;

	if (!has_threads(pager))
		r = km_worker_open(&pager->workers[0], pager, 0, shards, false);
	for (unsigned int i = 0; !r && has_threads(pager) && i < last; i++)
		r = km_worker_open(&pager->workers[i], pager, i % shards, 1,
				   i >= pager->worker_count);
	if (!r) /* kvmem_pager_stop()'s own, and the caretaker's */
		r = km_worker_open(&pager->workers[last], pager, 0, has_threads(pager) ? shards : 0,
				   false);
	return r;
}

static void destroy(struct kvmem_pager *pager)
{
	for (unsigned int i = 0; pager->workers && i < pager->all_count; i++)
		km_worker_close(&pager->workers[i]);
	km_uffd_set_close(&pager->set);
	pthread_cond_destroy(&pager->changed);
	pthread_mutex_destroy(&pager->lock);
	pthread_mutex_destroy(&pager->trace_lock);
	pthread_mutex_destroy(&pager->given_lock);
	pthread_mutex_destroy(&pager->later_lock);
	pthread_cond_destroy(&pager->later_changed);
	km_trace_close(&pager->given_trace);
	km_table_free(pager);
	km_sys_free(pager->threads.cpus);
	km_sys_free(pager->raw_workers);
	km_sys_free(pager->raw_backlogs);
	km_sys_free(pager);
}

static void init_lock(struct kvmem_pager *pager)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&pager->lock, NULL);
	pthread_mutex_init(&pager->trace_lock, NULL);
	pthread_mutex_init(&pager->given_lock, NULL);
	pthread_mutex_init(&pager->later_lock, NULL);
	pthread_cond_init(&pager->later_changed, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&pager->changed, &attr);
	pthread_condattr_destroy(&attr);
}

int kvmem_pager_create(const struct kvmem_pager_opts *opts, struct kvmem_pager **ret_pager)
{
	struct kvmem_pager *pager;
	int r;

	if (!ret_pager)
		return km_fail(EINVAL, "kvmem_pager_create: ret_pager is NULL");
	pager = km_sys_alloc(sizeof(*pager));
	if (!pager)
		return km_fail(ENOMEM, "kvmem_pager_create: no memory");
	init_lock(pager);
	r = km_opts_copy(&pager->opts, sizeof(pager->opts), sizeof(pager->opts), opts,
			 "kvmem_pager_opts");
	if (!r)
		r = check_opts(&pager->opts);
	if (!r)
		r = km_threads_copy(pager);
	if (!r)
		r = alloc_parts(pager);
	if (!r)
		r = open_traces(pager);
	if (!r)
		r = open_workers(pager);
	/* What the caller's pointers meant has been kept. */
	pager->opts.uffds = NULL;
	pager->opts.cpus = NULL;
	pager->opts.thread_name = NULL;
	if (r) {
		destroy(pager);
		return r;
	}
	*ret_pager = pager;
	return 0;
}

int kvmem_pager_free(struct kvmem_pager *pager)
{
	int r;

	if (!pager)
		return 0;
	r = km_pager_callback_check(pager, "kvmem_pager_free");
	if (r)
		return r;
	if (atomic_load(&pager->state) == KM_PAGER_RUNNING)
		return km_fail(
			EBUSY,
			"kvmem_pager_free: the pager is running: kvmem_pager_stop() it first");
	r = km_pager_capture_check(pager, "kvmem_pager_free");
	if (r)
		return r;
	km_caretaker_stop(pager);
	atomic_store(&pager->set.served, false);
	km_prefetch_close(pager);
	km_prefetch_drop(pager, NULL);
	km_pager_release_all(pager, -ECANCELED);
	destroy(pager);
	return 0;
}

/* ---- threads ---- */

static void join_all(struct kvmem_pager *pager)
{
	atomic_store_explicit(&pager->stopping, true, memory_order_release);
	km_pager_kick_all(pager);
	for (unsigned int i = 0; i + 1 < pager->all_count; i++) {
		struct km_worker *w = &pager->workers[i];

		if (w->started)
			km_sys_thread_join(&w->thread);
		w->started = false;
	}
}

/* The fillers first: a worker must not take a read of theirs for its own. */
static int start_threads(struct kvmem_pager *pager)
{
	km_fillers_start(pager);
	for (unsigned int i = 0; i < pager->worker_count; i++) {
		int r = km_worker_start(&pager->workers[i], "pager", i);

		if (r < 0) {
			join_all(pager);
			km_later_end_all(pager, NULL, true);
			return km_fail(-r,
				       "kvmem_pager_start: worker %u of %u: %m; see RLIMIT_NPROC, "
				       "pids.max of the cgroup, RLIMIT_AS, and RLIMIT_MEMLOCK "
				       "under mlockall(2)",
				       i, pager->worker_count);
		}
	}
	return 0;
}

/* ---- start ---- */

/* As large as a page of the regions, up to a limit. Larger pages of regions that come later are filled in pieces. */
static int make_buffers(struct kvmem_pager *pager)
{
	uint64_t bytes = BUF_BYTES;
	int r = 0;

	pager->slow = false;
	for (struct km_paged *p = km_paged_first(pager); p; p = km_paged_next(p)) {
		uint64_t page = 1ull << p->watch.shift;

		if (page > bytes && page <= BUF_MOST)
			bytes = page;
		pager->slow |= km_paged_is_slow(p);
	}
	for (unsigned int i = 0; !r && i < pager->all_count; i++)
		r = km_worker_buffer(&pager->workers[i], bytes);
	return r;
}

static int prepare(struct kvmem_pager *pager)
{
	int r = make_buffers(pager);

	if (r)
		return r;
	atomic_store(&pager->stopping, false);
	atomic_store(&pager->complete, false);
	atomic_store(&pager->error, 0);
	atomic_store(&pager->background, pager->opts.flags & KVMEM_PAGER_BACKGROUND);
	for (unsigned int i = 0; i < pager->all_count; i++)
		km_worker_reset(&pager->workers[i]);
	km_backlog_begin(pager);
	return 0;
}

/* Faults that nobody answered come again, and go to the workers. */
static void wake_all(struct kvmem_pager *pager)
{
	atomic_store(&pager->set.drops, false);
	for (struct km_paged *p = km_paged_first(pager); p; p = km_paged_next(p))
		km_watch_wake(&p->watch, 0, km_watch_pages(&p->watch));
}

static int begin(struct kvmem_pager *pager)
{
	int r = 0;

	/* While somebody reads the events of it: what was poisoned is asked for again. */
	for (struct km_paged *p = km_paged_first(pager); p && !r; p = km_paged_next(p))
		if (!km_watch_is_remote(&p->watch))
			r = km_pages_unpoison(p->watch.region);
	if (r)
		return km_fail(-r, "kvmem_pager_start: lifting poison: %m");
	km_caretaker_stop(pager);
	r = prepare(pager);
	if (r)
		return r;
	atomic_store(&pager->set.served, true);
	wake_all(pager);
	return has_threads(pager) ? start_threads(pager) : 0;
}

int kvmem_pager_start(struct kvmem_pager *pager)
{
	int r = 0, state;

	if (!pager)
		return km_fail(EINVAL, "kvmem_pager_start: pager is NULL");
	r = km_callback_check("kvmem_pager_start", pager);
	if (r)
		return r;
	state = atomic_load(&pager->state);
	if (state != KM_PAGER_NEW && state != KM_PAGER_HANDED_BACK)
		return km_fail(EBUSY, "kvmem_pager_start: the pager was started already");
	if (!pager->region_count)
		return km_fail(EINVAL, "kvmem_pager_start: no region: kvmem_pager_add() one first");
	r = begin(pager);
	if (r) {
		if (km_caretaker_start(pager)) /* whose failure is not what is told */
			atomic_store(&pager->set.served, false);
		return r;
	}
	atomic_store(&pager->state, KM_PAGER_RUNNING);
	km_worker_kick(&pager->workers[0]);
	/* What was filled before nobody has been told of. */
	if (km_paged_first(pager))
		km_pager_region_whole(km_paged_first(pager));
	return 0;
}

/* ---- stop ---- */

/* While events are read: `complete`, which is told of it, may touch memory. */
static int fill_rest(struct kvmem_pager *pager)
{
	int r;

	atomic_store(&pager->background, true); /* the others help */
	km_pager_kick_all(pager);
	do
		r = km_pager_fill_rest(pager);
	while (!r && !km_pager_filled(pager));
	return r;
}

static void leave_waiters(struct kvmem_pager *pager, enum km_pager_state state)
{
	pthread_mutex_lock(&pager->lock);
	atomic_store(&pager->state, state);
	pthread_cond_broadcast(&pager->changed);
	while (pager->waiters)
		pthread_cond_wait(&pager->changed, &pager->lock);
	pthread_mutex_unlock(&pager->lock);
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
	r = km_pager_callback_check(pager, "kvmem_pager_stop");
	if (r)
		return r;
	if (atomic_load(&pager->state) != KM_PAGER_RUNNING)
		return km_fail(EINVAL, "kvmem_pager_stop: the pager is not running");
	if (how == KVMEM_STOP_FILL || !has_threads(pager))
		r = km_pager_capture_check(pager, "kvmem_pager_stop");
	if (r)
		return r;
	if (how == KVMEM_STOP_FILL)
		r = fill_rest(pager);
	join_all(pager);
	km_later_end_all(pager, NULL, true);
	if (how == KVMEM_STOP_FILL || !has_threads(pager) || km_caretaker_start(pager))
		atomic_store(&pager->set.served, false);
	if (how == KVMEM_STOP_FILL)
		km_prefetch_close(pager);
	km_prefetch_drop(pager, NULL);
	leave_waiters(pager, how == KVMEM_STOP_FILL ? KM_PAGER_STOPPED : KM_PAGER_HANDED_BACK);
	if (how == KVMEM_STOP_FILL)
		r = km_pager_release_all(pager, r);
	if (r)
		return km_fail(-r,
			       "kvmem_pager_stop: not all could be filled, the pages concerned are "
			       "poisoned: %m");
	return 0;
}
