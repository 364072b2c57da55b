// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Threads: what they do next, when they sleep; and the caller's own loop. */
#include "pager/pager_internal.h"

#include <errno.h>
#include <sys/eventfd.h>

#define LINGER_NS    20000u
#define STORM_GAP_NS 100000u

/* Work that nobody waits for is this thread's: a filler's, or, where all is at hand, a worker's. */
static bool has_backlog(const struct km_worker *w)
{
	/* A slice under way when fillers were started is still its own. */
	return w->filler || w->slice.count ||
	       !atomic_load_explicit(&w->pager->fillers_run, memory_order_relaxed);
}

/* Nothing of regions that leave. By the worker's thread, or where it has none. */
static void forget(struct km_worker *w)
{
	if (w->slice.count && atomic_load(&w->slice.paged->leaving))
		km_slice_drop(w);
	km_around_forget(&w->around);
	if (w->hands.feed && atomic_load(&((struct km_paged *)w->hands.feed->watch)->leaving))
		w->hands.feed = NULL;
}

/* Between two pieces of work: what has left is forgotten, and who waits for that is told. */
static void catch_up(struct km_worker *w)
{
	uint64_t changes = atomic_load(&w->pager->changes);

	if (changes == atomic_load_explicit(&w->seen, memory_order_relaxed))
		return;
	forget(w);
	atomic_store(&w->seen, changes);
}

/* One step of what there is to do, the most urgent first: the number of events served. */
static unsigned int step(struct km_worker *w, bool *ret_idle)
{
	unsigned int n = w->filler ? 0 : km_serve_events(w);

	km_remote_tell_if(w->pager, NULL);
	*ret_idle = !n && !km_around_step(w) && !km_later_step(w) &&
		    !(has_backlog(w) && (km_prefetch_step(w) || km_background_step(w)));
	return n;
}

void km_worker_swallow_kick(struct km_worker *w)
{
	uint64_t n;

	km_sys_read(w->kick, &n, sizeof(n));
}

/*
 * Stay awake for a moment while faults come one after the other: to be there for the next is
 * cheaper than to be woken for it. After a single fault sleep at once, so that its thread finds its
 * CPU free.
 */
static bool linger(struct km_worker *w)
{
	uint64_t ns = w->pager->opts.busy_poll_ns, now = km_sys_now_ns(), until = now + ns;

	if (w->filler)
		return false;
	if (!ns)
		until = w->gap_ns < STORM_GAP_NS ? w->demand_ns + LINGER_NS : now;
	for (; now < until && !atomic_load(&w->pager->stopping) &&
	       atomic_load(&w->pager->changes) == atomic_load(&w->seen);
	     now = km_sys_now_ns()) {
		if (km_serve_events(w))
			return true;
		km_sys_yield(); /* the thread that we have just woken may be waiting for this CPU */
	}
	return false;
}

/* In milliseconds, for epoll: until the next pass of the background. */
static int sleep_time(const struct km_worker *w)
{
	uint64_t due = has_backlog(w) ? km_backlog_retry_ns(w) : UINT64_MAX, now;

	if (!w->filler)
		due = km_min(due, km_remote_look_ns(w->pager));
	if (due == UINT64_MAX)
		return -1;
	now = km_sys_now_ns();
	return due > now ? (int)((due - now) / 1000000 + 1) : 0;
}

static void sleep_until_event(struct km_worker *w)
{
	struct epoll_event ev[4];
	int64_t n = km_sys_epoll_wait(w->epoll, ev, 4, sleep_time(w));

	for (int64_t i = 0; i < n; i++)
		if (ev[i].data.ptr == w)
			km_worker_swallow_kick(w);
		else
			km_remote_polled(w, ev[i].data.ptr, ev[i].events);
}

void *km_worker_run(void *arg)
{
	struct km_worker *w = arg;
	bool idle;

	while (!atomic_load_explicit(&w->pager->stopping, memory_order_acquire)) {
		catch_up(w);
		step(w, &idle);
		if (idle && !linger(w))
			sleep_until_event(w);
	}
	return NULL;
}

int km_worker_start(struct km_worker *w, const char *what, unsigned int number)
{
	int64_t r = km_threads_create(w->pager, &w->thread, what, number, km_worker_run, w);

	w->started = r >= 0;
	return (int)r;
}

/* Without fillers, for want of threads, the workers do what nobody waits for. */
void km_fillers_start(struct kvmem_pager *pager)
{
	unsigned int first = pager->worker_count, n = 0;

	if (atomic_load(&pager->fillers_run))
		return;

	for (unsigned int i = first; pager->slow && i + 1 < pager->all_count; i++, n++)
		if (km_worker_start(&pager->workers[i], "fill", i - first) < 0)
			break;
	atomic_store(&pager->fillers_run, n && n == pager->set.count);
}

/* A thread that waits for a source sees the change when the source has answered. */
void km_workers_settle(struct kvmem_pager *pager)
{
	uint64_t change = atomic_fetch_add(&pager->changes, 1) + 1;

	for (; !km_table_seen(pager, change); km_sys_poll(NULL, 0, 1)) {
		km_pager_kick_all(pager);
		km_worker_kick(km_stop_worker(pager));
	}
	/* Those that have no thread are this thread's just now. */
	for (unsigned int i = 0; i < pager->all_count; i++)
		if (!pager->workers[i].started)
			forget(&pager->workers[i]);
	km_table_free_old(pager, false);
}

/* ---- keeping house ---- */

static void *caretaker_run(void *arg)
{
	struct km_worker *w = arg;

	while (!atomic_load_explicit(&w->pager->caretaker_stops, memory_order_acquire)) {
		catch_up(w);
		w->around.count = 0;
		if (!km_serve_events(w))
			sleep_until_event(w);
		km_remote_tell_if(w->pager, NULL);
	}
	return NULL;
}

int km_caretaker_start(struct kvmem_pager *pager)
{
	struct km_worker *w = km_stop_worker(pager);
	int64_t r;

	if (pager->opts.flags & KVMEM_PAGER_NO_THREADS || w->started)
		return 0;
	atomic_store(&pager->caretaker_stops, false);
	atomic_store(&pager->set.drops, true);
	r = km_threads_create(pager, &w->thread, "keep", UINT32_MAX, caretaker_run, w);
	w->started = r >= 0;
	atomic_store(&pager->set.served, w->started);
	if (r < 0)
		return km_fail(
			(int)-r,
			"pager: a thread that reads events until kvmem_pager_start(): %m; see "
			"RLIMIT_NPROC, pids.max of the cgroup, RLIMIT_AS");
	return 0;
}

void km_caretaker_stop(struct kvmem_pager *pager)
{
	struct km_worker *w = km_stop_worker(pager);

	if (!w->started)
		return;
	atomic_store_explicit(&pager->caretaker_stops, true, memory_order_release);
	km_worker_kick(w);
	km_sys_thread_join(&w->thread);
	w->started = false;
}

/* ---- open, close ---- */

static int watch_fd(struct km_worker *w, int fd, uint32_t events, void *ptr)
{
	struct epoll_event ev = { .events = events, .data = { .ptr = ptr } };
	int64_t r = km_sys_epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &ev);

	return r < 0 ? km_fail((int)-r, "pager: EPOLL_CTL_ADD: %m") : 0;
}

static int watch_shards(struct km_worker *w)
{
	/* One event wakes one of a shard's workers. */
	uint32_t events = w->pager->opts.workers > 1 ? EPOLLIN | EPOLLEXCLUSIVE : EPOLLIN;
	int r = 0;

	for (unsigned int i = 0; !r && !w->pager->set.none && i < w->shard_count; i++) {
		struct km_uffd *u = &w->pager->set.all[w->first_shard + i];

		r = watch_fd(w, atomic_load(&u->fd), events, u);
	}
	return r;
}

/* Where the caller waits for the epoll, what is due later makes that readable. */
static int open_timer(struct km_worker *w)
{
	int64_t fd = km_sys_timerfd();

	if (fd < 0)
		return km_fail((int)-fd, "pager: timerfd_create: %m");
	w->timer = (int)fd;
	w->timer_ns = UINT64_MAX;
	fd = km_sys_timerfd_set(
		w->timer,
		UINT64_MAX); /* a filter is noticed here, not by a ticket that never ends */
	if (fd < 0)
		return km_fail((int)-fd, "pager: timerfd_settime: %m");
	return watch_fd(w, w->timer, EPOLLIN, w);
}

int km_worker_open(struct km_worker *w, struct kvmem_pager *pager, unsigned int first_shard,
		   unsigned int shard_count, bool filler)
{
	int64_t fd;
	int r;

	w->pager = pager;
	w->first_shard = first_shard;
	w->shard_count = shard_count;
	w->filler = filler;
	fd = km_sys_epoll_create();
	if (fd < 0)
		return km_fail((int)-fd, "pager: epoll_create1: %m");
	w->epoll = (int)fd;
	fd = km_sys_eventfd(0, EFD_NONBLOCK);
	if (fd < 0)
		return km_fail((int)-fd, "pager: eventfd: %m");
	w->kick = (int)fd;
	r = watch_fd(w, w->kick, EPOLLIN, w);
	if (!r && pager->opts.flags & KVMEM_PAGER_NO_THREADS && shard_count)
		r = open_timer(w);
	return r || filler ? r : watch_shards(w);
}

int km_worker_buffer(struct km_worker *w, uint64_t bytes)
{
	if (w->hands.buf_bytes >= bytes)
		return 0;
	km_sys_free(w->hands.buf);
	w->hands.buf_bytes = 0;
	w->hands.buf = km_sys_alloc(bytes);
	if (!w->hands.buf)
		return km_fail(ENOMEM,
			       "pager: no memory for a buffer of %zu bytes; see vm.max_map_count",
			       (size_t)bytes);
	w->hands.buf_bytes = bytes;
	return 0;
}

void km_worker_reset(struct km_worker *w)
{
	w->slice.count = 0;
	w->around.first = w->around.count = 0;
	w->hands.feed = NULL;
}

void km_worker_close(struct km_worker *w)
{
	km_sys_close(w->epoll);
	km_sys_close(w->kick);
	if (w->timer >= 0)
		km_sys_close(w->timer);
	km_sys_free(w->hands.buf);
	km_trace_close(&w->trace);
}

/* ---- without threads ---- */

static int check_no_threads(const struct kvmem_pager *pager, const char *call)
{
	if (!pager)
		return km_fail(EINVAL, "%s: pager is NULL", call);
	if (!(pager->opts.flags & KVMEM_PAGER_NO_THREADS))
		return km_fail(EINVAL, "%s: only for a pager made with KVMEM_PAGER_NO_THREADS",
			       call);
	return 0;
}

int kvmem_pager_fd(const struct kvmem_pager *pager)
{
	int r = check_no_threads(pager, "kvmem_pager_fd");

	return r ? r : pager->workers[0].epoll;
}

static void set_timer(struct km_worker *w)
{
	uint64_t due = km_min(km_backlog_retry_ns(w), km_remote_look_ns(w->pager));

	if (due != w->timer_ns && km_sys_timerfd_set(w->timer, due) >= 0)
		w->timer_ns = due;
}

/* A userfaultfd that has become one that poll() tells nothing of would have the caller come here without end. */
static void look_for_errors(struct km_worker *w)
{
	struct epoll_event ev[4];
	int64_t n = km_sys_epoll_wait(w->epoll, ev, 4, 0);

	for (int64_t i = 0; i < n; i++)
		if (ev[i].data.ptr != w)
			km_remote_polled(w, ev[i].data.ptr, ev[i].events);
}

int kvmem_pager_handle(struct kvmem_pager *pager)
{
	int r = check_no_threads(pager, "kvmem_pager_handle");
	struct km_worker *w;
	unsigned int n;
	bool idle;

	if (!r)
		r = km_callback_check("kvmem_pager_handle", pager);
	if (r)
		return r;
	if (atomic_load(&pager->state) != KM_PAGER_RUNNING)
		return km_fail(EINVAL, "kvmem_pager_handle: the pager is not running");
	w = &pager->workers[0];
	n = step(w, &idle);
	if (!n && atomic_load(&pager->set.remotes))
		look_for_errors(w);
	while (km_around_step(w))
		n += km_serve_events(w);
	if (!km_backlog_left(w)) {
		km_worker_swallow_kick(w);
		if (km_backlog_left(w))
			km_worker_kick(w);
	}
	set_timer(w);
	return (int)n;
}
