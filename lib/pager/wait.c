// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Nothing is missing any more: `complete`, and who waits for it. */
#include "pager/pager_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <time.h>

uint64_t km_pager_missing(const struct kvmem_pager *pager, uint64_t *ret_poisoned)
{
	uint64_t n = 0;

	*ret_poisoned = 0;
	for (struct km_paged *p = km_paged_first(pager); p; p = km_paged_next(p)) {
		*ret_poisoned += km_presence_poisoned(km_paged_map(p));
		n += km_presence_missing(km_paged_map(p));
	}
	return n;
}

void km_pager_set_error(struct kvmem_pager *pager, int err)
{
	int none = 0;

	atomic_compare_exchange_strong(&pager->error, &none, err);
}

void km_pager_changed(struct kvmem_pager *pager)
{
	pthread_mutex_lock(&pager->lock);
	pthread_cond_broadcast(&pager->changed);
	pthread_mutex_unlock(&pager->lock);
}

static void tell_complete(struct kvmem_pager *pager, const struct kvmem_region *region)
{
	struct km_detail before; /* the call that has made it whole may have failed later on */
	struct km_callback cb;

	if (!pager->opts.complete)
		return;
	km_detail_save(&before);
	km_callback_enter(&cb, "kvmem_pager_opts.complete", pager, region);
	pager->opts.complete(pager->opts.arg);
	km_callback_leave(&cb);
	km_detail_restore(&before);
}

/*
 * Called by whoever published the last page of a region, or entered the removal of it, without locks: a worker,
 * populate, a discard. The pager cannot go away meanwhile; a region can, of which that thread has nothing.
 */
static void region_whole(struct kvmem_pager *pager, const struct kvmem_region *region)
{
	uint64_t poisoned = 0, missing;
	bool running, whole;

	/* The lock: regions are not let go meanwhile. */
	pthread_mutex_lock(&pager->lock);
	if (!region && km_paged_first(pager))
		region = km_paged_first(pager)->watch.region;
	running = !pager->released && atomic_load(&pager->state) == KM_PAGER_RUNNING;
	missing = running ? km_pager_missing(pager, &poisoned) : 0;
	whole = running && !missing && !atomic_exchange(&pager->complete, true);
	pthread_mutex_unlock(&pager->lock);
	if (!running)
		return; /* kvmem_pager_start() looks itself */
	if (whole) {
		tell_complete(pager, region);
		if (pager->opts.flags & KVMEM_PAGER_NO_THREADS)
			km_worker_kick(&pager->workers[0]);
	}
	if (missing == poisoned)
		km_pager_changed(pager);
}

void km_pager_region_whole(void *arg)
{
	const struct km_paged *p = arg;

	region_whole(p->pager, p->watch.region);
}

/* It is not known which region. */
void km_pager_whole(void *arg)
{
	region_whole(arg, NULL);
}

/* With the lock, so that pages which become absent after the look are taken for a reason to tell once more. */
bool km_pager_filled(struct kvmem_pager *pager)
{
	const struct km_paged *first = km_paged_first(pager), *p = first;
	bool tell;

	pthread_mutex_lock(&pager->lock);
	while (p && km_presence_settled(km_paged_map(p), 0, km_watch_pages(&p->watch)) ==
			    km_watch_pages(&p->watch))
		p = km_paged_next(p);
	tell = first && !p && !atomic_exchange(&pager->complete, true);
	pthread_mutex_unlock(&pager->lock);
	if (tell)
		tell_complete(pager, first->watch.region);
	return !p;
}

/* ---- waiting ---- */

int km_pager_callback_check(struct kvmem_pager *pager, const char *call)
{
	int r = km_callback_check(call, pager);

	pthread_mutex_lock(&pager->lock); /* regions are not let go meanwhile */
	for (struct km_paged *p = km_paged_first(pager); !r && p; p = km_paged_next(p))
		r = km_callback_check(call, p->watch.region);
	pthread_mutex_unlock(&pager->lock);
	return r;
}

int km_pager_capture_check(struct kvmem_pager *pager, const char *call)
{
	bool any = false;

	pthread_mutex_lock(&pager->lock);
	for (struct km_paged *p = km_paged_first(pager); !any && p; p = km_paged_next(p))
		any = atomic_load(&p->watch.region->guard) != NULL;
	pthread_mutex_unlock(&pager->lock);
	if (!any)
		return 0;
	return km_fail(EBUSY,
		       "%s: a capture of a region is under way, whose writes the pager hands out: "
		       "kvmem_capture_stop() it first",
		       call);
}

struct timespec km_pager_from_now(int64_t ns)
{
	struct timespec t;
	int64_t sum;

	clock_gettime(CLOCK_MONOTONIC, &t);
	sum = t.tv_nsec + ns % 1000000000;
	t.tv_sec += ns / 1000000000 + sum / 1000000000;
	t.tv_nsec = sum % 1000000000;
	return t;
}

/* The background has come to its end in every shard, and in one it could fill nothing of what is
 * missing there. */
static bool is_stuck(const struct kvmem_pager *pager)
{
	bool stuck = false;

	if (!atomic_load(&pager->background))
		return false;
	for (unsigned int i = 0; i < pager->set.count; i++) {
		struct km_backlog *b = &pager->backlogs[i];

		if (atomic_load(&b->now.count) || atomic_load(&b->later_ns))
			return false;
		if (atomic_load(&b->stuck))
			stuck = true;
		else if (atomic_load(&b->failed) || atomic_load(&b->busy) ||
			 atomic_load(&b->cursor) < b->slices)
			return false;
	}
	return stuck;
}

static bool any_ended(const struct kvmem_pager *pager)
{
	struct km_paged *p = km_paged_first(pager);

	while (p && !(km_watch_ended(&p->watch) && km_presence_missing(km_paged_map(p))))
		p = km_paged_next(p);
	return p;
}

/* 1: not yet. */
static int wait_result(struct kvmem_pager *pager)
{
	uint64_t poisoned, missing;
	int err = atomic_load(&pager->error);

	if (atomic_load(&pager->complete))
		return 0;
	if (pager->released || atomic_load(&pager->state) != KM_PAGER_RUNNING)
		return km_fail(EINVAL, "kvmem_pager_wait: the pager was stopped meanwhile");
	missing = km_pager_missing(pager, &poisoned);
	if (!missing)
		return 0;
	if (any_ended(pager))
		return km_fail(ESRCH,
			       "kvmem_pager_wait: a process whose memory is served has ended");
	if (missing == poisoned)
		return km_fail(err ? -err : EIO,
			       "kvmem_pager_wait: all that is missing is poisoned, %" PRIu64
			       " pages: %m",
			       poisoned);
	if (is_stuck(pager))
		return km_fail(
			err ? -err : EIO,
			"kvmem_pager_wait: a whole pass of the background could fill none of "
			"the %" PRIu64 " pages that are missing: %m",
			missing);
	return 1;
}

static int timed_out(struct kvmem_pager *pager)
{
	uint64_t poisoned;
	int r = wait_result(pager);

	if (r <= 0)
		return r;
	return km_fail(ETIMEDOUT, "kvmem_pager_wait: %" PRIu64 " pages are missing still",
		       km_pager_missing(pager, &poisoned));
}

static int wait_locked(struct kvmem_pager *pager, int64_t timeout_ns)
{
	struct timespec end = km_pager_from_now(timeout_ns < 0 ? 0 : timeout_ns);
	int r;

	while ((r = wait_result(pager)) > 0) {
		if (timeout_ns < 0)
			pthread_cond_wait(&pager->changed, &pager->lock);
		else if (pthread_cond_timedwait(&pager->changed, &pager->lock, &end) == ETIMEDOUT)
			return timed_out(pager);
	}
	return r;
}

int kvmem_pager_wait(struct kvmem_pager *pager, int64_t timeout_ns)
{
	int r;

	if (!pager)
		return km_fail(EINVAL, "kvmem_pager_wait: pager is NULL");
	r = km_pager_callback_check(pager, "kvmem_pager_wait");
	if (r)
		return r;
	if (pager->opts.flags & KVMEM_PAGER_NO_THREADS)
		return km_fail(EINVAL,
			       "kvmem_pager_wait: the pager has no threads: nothing would go on");
	pthread_mutex_lock(&pager->lock);
	if (atomic_load(&pager->state) == KM_PAGER_RUNNING) {
		pager->waiters++;
		r = wait_locked(pager, timeout_ns);
		if (!--pager->waiters)
			pthread_cond_broadcast(&pager->changed);
	} else {
		r = km_fail(EINVAL, "kvmem_pager_wait: the pager is not running");
	}
	pthread_mutex_unlock(&pager->lock);
	return r;
}
