// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Workers: what they do, when they sleep, and what populate asks of a pager from its own threads.
 */
#include "pager/pager_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#define BUF_BYTES    (128u << 10) /* stays in the second-level cache between read and copy */
#define LINGER_NS    20000u
#define STORM_GAP_NS 100000u

/* ---- progress ---- */

void km_pager_set_error(struct kvmem_pager *pager, int err)
{
	int none = 0;

	atomic_compare_exchange_strong(&pager->error, &none, err);
}

uint64_t km_pager_missing(const struct kvmem_pager *pager)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < pager->paged_count; i++)
		n += km_presence_missing(&pager->paged[i]->region->presence);
	return n;
}

void km_pager_check_complete(struct kvmem_pager *pager)
{
	if (atomic_load_explicit(&pager->complete, memory_order_relaxed) || km_pager_missing(pager))
		return;
	if (atomic_exchange(&pager->complete, true))
		return;
	if (pager->opts.complete)
		pager->opts.complete(pager->opts.arg);
	pthread_mutex_lock(&pager->lock);
	pthread_cond_broadcast(&pager->changed);
	pthread_mutex_unlock(&pager->lock);
}

/* ---- what populate asks of us, from its own threads ---- */

void km_worker_kick(struct km_worker *w)
{
	const uint64_t one = 1;

	km_sys_write(w->kick, &one, sizeof(one));
}

void km_pager_kick_all(struct kvmem_pager *pager)
{
	for (unsigned int i = 0; i + 1 < pager->worker_count; i++)
		km_worker_kick(&pager->workers[i]);
}

/* It publishes after it has called us: let a worker look whether that was the last page. */
static void watch(struct kvmem_pager *pager)
{
	if (!atomic_load_explicit(&pager->watched, memory_order_relaxed) &&
	    !atomic_exchange(&pager->watched, true))
		km_worker_kick(&pager->workers[0]);
}

/* Pages of a file are there: map them. Who is there already needs a wake-up of its own. */
static int complete(struct km_paged *p, uint64_t first, uint64_t count, uint64_t *ret_done)
{
	uint64_t done = 0, n;
	int r;

	for (;;) {
		r = km_uffd_continue(p, first + done, count - done, &n);
		done += n;
		if (r != -EEXIST)
			break;
		km_uffd_wake(p, first + done++, 1);
	}
	*ret_done = done;
	return r;
}

/* Who called us hands the error on, and has no sentence for it. */
static int said(int err, const char *what, uint64_t offset, uint64_t bytes)
{
	if (!err)
		return 0;
	return km_fail(err == -ENOMEM ? ENOMEM : EIO,
		       "%s of 0x%" PRIx64 " bytes at offset 0x%" PRIx64 " of the region: %s%s",
		       what, bytes, offset, strerror(-err),
		       err == -EFAULT ? ": nothing has been written there" : "");
}

static int op_complete(struct kvmem_region *r, uint64_t offset, uint64_t bytes, uint64_t *ret_done)
{
	struct km_paged *p = r->pager;
	uint64_t done;
	int err = complete(p, offset >> p->shift, bytes >> p->shift, &done);

	*ret_done = done << p->shift;
	watch(p->pager);
	return said(err, "UFFDIO_CONTINUE", offset, bytes);
}

/* The page exists: unasked for in a file, and replaced; mapped in anonymous memory, and kept. */
static int place_existing(struct km_paged *p, uint64_t page, const void *src)
{
	uint64_t done;
	int r;

	if (p->region->fd < 0) {
		km_uffd_wake(p, page, 1);
		return 0;
	}
	r = km_pager_store_page(p, page, src);
	return r ? r : complete(p, page, 1, &done);
}

static int op_place(struct kvmem_region *r, uint64_t offset, const void *buf, uint64_t bytes,
		    uint64_t *ret_done)
{
	struct km_paged *p = r->pager;
	uint64_t first = offset >> p->shift, count = bytes >> p->shift, at = 0, done;
	int err = 0;

	while (at < count && !err) {
		const uint8_t *from = buf ? (const uint8_t *)buf + (at << p->shift) : NULL;

		err = from ? km_uffd_copy(p, first + at, count - at, from, &done)
			   : km_uffd_zero(p, first + at, count - at, &done);
		at += done;
		if (err == -EEXIST) {
			err = place_existing(p, first + at,
					     from ? from + (done << p->shift) : NULL);
			at += !err;
		}
	}
	*ret_done = at << p->shift;
	watch(p->pager);
	return said(err, buf ? "UFFDIO_COPY" : "UFFDIO_ZEROPAGE", offset, bytes);
}

static void op_wake(struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	struct km_paged *p = r->pager;

	km_uffd_wake(p, offset >> p->shift, bytes >> p->shift);
	watch(p->pager);
}

struct removal {
	void *addr;
	size_t bytes;
	int64_t result;
	_Atomic bool done;
};

static void *remove_pages(void *arg)
{
	struct removal *rm = arg;

	rm->result = km_sys_madvise(rm->addr, rm->bytes, MADV_DONTNEED);
	atomic_store(&rm->done, true);
	return NULL;
}

/* Before the pager is started nobody reads events: one thread removes, this one reads. */
static int remove_unserved(struct kvmem_pager *pager, struct removal *rm)
{
	pthread_t thread;
	int64_t r = km_sys_thread_create(&thread, "kvmem-remove", remove_pages, rm);

	if (r < 0)
		return (int)r;
	while (!atomic_load(&rm->done)) {
		pthread_mutex_lock(&pager->lock); /* regions may still be added */
		for (unsigned int i = 0; i < pager->shard_count; i++)
			km_uffd_drain(&pager->shards[i]);
		pthread_mutex_unlock(&pager->lock);
		km_sys_yield();
	}
	km_sys_thread_join(thread);
	return (int)rm->result;
}

static int op_remove(struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	struct kvmem_pager *pager = ((struct km_paged *)r->pager)->pager;
	struct removal rm = { .addr = r->base + offset, .bytes = bytes };

	if (atomic_load(&pager->state) == KM_PAGER_NEW &&
	    !(pager->opts.flags & KVMEM_PAGER_NO_THREADS))
		return remove_unserved(pager, &rm);
	remove_pages(&rm);
	return (int)rm.result;
}

const struct km_fault_ops km_pager_fault_ops = {
	.complete = op_complete,
	.place = op_place,
	.wake = op_wake,
	.remove = op_remove,
};

/* ---- workers ---- */

/* One step of what there is to do, the most urgent first; the number of events served. */
static unsigned int step(struct km_worker *w, bool *ret_idle)
{
	unsigned int n = km_serve_events(w);

	*ret_idle = !km_serve_around(w) && !n && !km_pager_prefetch_step(w) &&
		    !km_pager_background_step(w);
	return n;
}

static void swallow_kick(struct km_worker *w)
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

	if (!ns)
		until = w->gap_ns < STORM_GAP_NS ? w->demand_ns + LINGER_NS : now;
	for (; now < until && !atomic_load(&w->pager->stopping); now = km_sys_now_ns()) {
		if (km_serve_events(w))
			return true;
		km_sys_yield(); /* the thread that we have just woken may be waiting for this CPU */
	}
	return false;
}

static bool being_populated(const struct kvmem_pager *pager)
{
	for (unsigned int i = 0; i < pager->paged_count; i++)
		if (atomic_load(&pager->paged[i]->region->fillers))
			return true;
	return false;
}

static void look_after_populate(struct kvmem_pager *pager)
{
	if (!atomic_load_explicit(&pager->watched, memory_order_relaxed))
		return;
	if (!being_populated(pager))
		atomic_store(&pager->watched, false);
	km_pager_check_complete(pager);
}

static void sleep_until_event(struct km_worker *w)
{
	struct epoll_event ev[4];
	int timeout = -1;
	int64_t n;

	if (w->fault_count)
		timeout = 1;
	else if (w == w->pager->workers && atomic_load(&w->pager->watched))
		timeout = KM_TICK_MS;
	n = km_sys_epoll_wait(w->epoll, ev, 4, timeout);
	for (int64_t i = 0; i < n; i++)
		if (ev[i].data.ptr == w)
			swallow_kick(w);
}

void *km_worker_run(void *arg)
{
	struct km_worker *w = arg;
	bool idle;

	while (!atomic_load_explicit(&w->pager->stopping, memory_order_acquire)) {
		step(w, &idle);
		km_pager_check_complete(w->pager);
		if (w == w->pager->workers)
			look_after_populate(w->pager);
		if (idle && !linger(w))
			sleep_until_event(w);
	}
	return NULL;
}

static int watch_fd(struct km_worker *w, int fd, uint32_t events, void *ptr)
{
	struct epoll_event ev = { .events = events, .data = { .ptr = ptr } };
	int64_t r = km_sys_epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &ev);

	return r < 0 ? km_fail((int)-r, "pager: EPOLL_CTL_ADD: %m") : 0;
}

int km_worker_open(struct km_worker *w, struct kvmem_pager *pager, struct km_shard *shards,
		   unsigned int shard_count)
{
	/* One event wakes one of a shard's workers. */
	uint32_t events = pager->opts.workers > 1 ? EPOLLIN | EPOLLEXCLUSIVE : EPOLLIN;
	int64_t fd;
	int r;

	w->pager = pager;
	w->shards = shards;
	w->shard_count = shard_count;
	w->buf_bytes = BUF_BYTES;
	w->buf = km_sys_alloc(w->buf_bytes);
	if (!w->buf)
		return km_fail(ENOMEM, "pager: no memory for a buffer of %u bytes", BUF_BYTES);
	fd = km_sys_epoll_create();
	if (fd < 0)
		return km_fail((int)-fd, "pager: epoll_create1: %m");
	w->epoll = (int)fd;
	fd = km_sys_eventfd(0, EFD_NONBLOCK);
	if (fd < 0)
		return km_fail((int)-fd, "pager: eventfd: %m");
	w->kick = (int)fd;
	r = watch_fd(w, w->kick, EPOLLIN, w);
	for (unsigned int i = 0; !r && i < shard_count; i++)
		r = watch_fd(w, atomic_load(&shards[i].fd), events, &shards[i]);
	return r;
}

void km_worker_close(struct km_worker *w)
{
	km_sys_close(w->epoll);
	km_sys_close(w->kick);
	km_sys_free(w->buf);
}

/* ---- without threads ---- */

int kvmem_pager_fd(const struct kvmem_pager *pager)
{
	if (!pager)
		return km_fail(EINVAL, "kvmem_pager_fd: pager is NULL");
	if (!(pager->opts.flags & KVMEM_PAGER_NO_THREADS))
		return km_fail(
			EINVAL,
			"kvmem_pager_fd: only a pager made with KVMEM_PAGER_NO_THREADS has one");
	return pager->workers[0].epoll;
}

static bool work_left(const struct km_worker *w)
{
	bool background = atomic_load(&w->pager->background);

	if (w->fault_count || (background && w->slice.count))
		return true;
	for (unsigned int i = 0; i < w->shard_count; i++)
		if (atomic_load(&w->shards[i].prefetch_count) ||
		    (background && atomic_load(&w->shards[i].cursor) < w->shards[i].slices))
			return true;
	return false;
}

int kvmem_pager_handle(struct kvmem_pager *pager)
{
	struct km_worker *w;
	unsigned int n;
	bool idle;

	if (!pager)
		return km_fail(EINVAL, "kvmem_pager_handle: pager is NULL");
	if (!(pager->opts.flags & KVMEM_PAGER_NO_THREADS))
		return km_fail(
			EINVAL,
			"kvmem_pager_handle: only for a pager made with KVMEM_PAGER_NO_THREADS");
	if (atomic_load(&pager->state) != KM_PAGER_RUNNING)
		return km_fail(EINVAL, "kvmem_pager_handle: the pager is not running");
	w = &pager->workers[0];
	n = step(w, &idle);
	while (km_serve_around(w))
		;
	atomic_store(&pager->watched, false);
	km_pager_check_complete(pager);
	if (!work_left(w)) {
		swallow_kick(w);
		if (work_left(w))
			km_worker_kick(w);
	}
	return (int)n;
}
