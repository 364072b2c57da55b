// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Where the export is zero, as the server tells by block status of "base:allocation". It is asked for in address order
 * from the beginning, one command at a time, by whichever connection works; what is not known yet is data. Nothing here
 * is needed: whatever goes wrong, less is known.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbd/internal.h"

#define ASKED \
	(1ull \
	 << 30) /* bytes of the export by one command: what it answers is before content that is waited for */
#define MOST_RUNS   (1u << 20) /* that are remembered: 16 MiB */
#define MOST_FAILED 3u	       /* attempts in a row */

void kn_holes_init(struct kn_holes *h)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&h->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&h->over_changed, &attr);
	pthread_condattr_destroy(&attr);
	h->over = true;
}

void kn_holes_begin(struct kn_holes *h)
{
	pthread_mutex_lock(&h->lock);
	h->over = false;
	pthread_mutex_unlock(&h->lock);
}

void kn_holes_end(struct kn_holes *h)
{
	free(h->known.at);
	free(h->fresh.at);
	pthread_cond_destroy(&h->over_changed);
	pthread_mutex_destroy(&h->lock);
}

bool kn_holes_wait(struct kn_holes *h, uint64_t until_ns)
{
	struct timespec t = { .tv_sec = (time_t)(until_ns / 1000000000),
			      .tv_nsec = (long)(until_ns % 1000000000) };
	bool over;

	pthread_mutex_lock(&h->lock);
	while (!h->over && kn_now_ns() < until_ns)
		pthread_cond_timedwait(&h->over_changed, &h->lock, &t);
	over = h->over;
	pthread_mutex_unlock(&h->lock);
	return over;
}

static uint64_t known_until(const struct kn_runs *r)
{
	return r->count ? r->at[r->count - 1].end : 0;
}

/* False: no memory, or too many. */
static bool add_run(struct kn_runs *r, uint64_t end, uint32_t kind)
{
	if (r->count && r->at[r->count - 1].kind == kind) {
		r->at[r->count - 1].end = end;
		return true;
	}
	if (r->count == MOST_RUNS)
		return false;
	if (r->count == r->room) {
		size_t room = r->room ? 2 * r->room : 64;
		struct kn_run *more = realloc(r->at, room * sizeof(*more));

		if (!more)
			return false;
		r->at = more;
		r->room = room;
	}
	r->at[r->count++] = (struct kn_run){ .end = end, .kind = kind };
	return true;
}

/* ---- asking ---- */

/* HOLE alone says that it is not allocated, and nothing about its bytes. */
static uint32_t kind_of(uint32_t flags)
{
	if (!(flags & LIBNBD_STATE_ZERO))
		return KVMEM_EXTENT_DATA;
	return flags & LIBNBD_STATE_HOLE ? KVMEM_EXTENT_HOLE : KVMEM_EXTENT_ZERO;
}

/* entries: {bytes, flags}, from the server as they are. */
static int status_came(void *arg, const char *context, uint64_t offset, uint32_t *entries,
		       size_t count, int *error)
{
	struct kn_connection *c = arg;
	struct kn_holes *h = &c->nbd->holes;
	uint64_t at = offset, end = c->nbd->export.readable;

	if (*error || strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) || offset != h->asked_at ||
	    h->fresh.count)
		return 0;
	for (size_t i = 0; i + 1 < count && at < end && entries[i]; i += 2) {
		at += kn_min(entries[i], end - at);
		if (!add_run(&h->fresh, at, kind_of(entries[i + 1])))
			break;
	}
	return 0;
}

static int status_over(void *arg, int *error)
{
	struct kn_connection *c = arg;

	c->nbd->holes.error = *error;
	c->nbd->holes.answered = true;
	return 1;
}

bool kn_holes_asked(struct kn_connection *c)
{
	struct kn_holes *h = &c->nbd->holes;
	bool asked;

	pthread_mutex_lock(&h->lock);
	asked = h->by == c;
	pthread_mutex_unlock(&h->lock);
	return asked;
}

/* With the lock held. */
static void set_over(struct kn_holes *h)
{
	h->over = true;
	pthread_cond_broadcast(&h->over_changed);
}

static bool begin(struct kn_connection *c)
{
	struct kn_holes *h = &c->nbd->holes;
	bool mine;

	pthread_mutex_lock(&h->lock);
	mine = !h->over && !h->by;
	if (mine) {
		h->by = c;
		h->asked_at = known_until(&h->known);
		h->fresh.count = 0;
		h->answered = false;
	}
	pthread_mutex_unlock(&h->lock);
	return mine;
}

void kn_holes_ask(struct kn_connection *c)
{
	nbd_extent_callback came = { .callback = status_came, .user_data = c };
	nbd_completion_callback over = { .callback = status_over, .user_data = c };
	struct kn_holes *h = &c->nbd->holes;
	uint64_t bytes;

	if (!begin(c))
		return;
	bytes = kn_min(ASKED, c->nbd->export.readable - h->asked_at);
	if (nbd_aio_block_status(c->handle, bytes, h->asked_at, came, over, 0) < 0) {
		h->error = EINVAL;
		h->answered = true;
	}
}

/* ---- answers ---- */

/* With the lock held: what came follows what is known. */
static bool take_fresh(struct kn_holes *h)
{
	uint64_t at = h->asked_at;

	for (size_t i = 0; i < h->fresh.count; i++) {
		struct kn_run run = h->fresh.at[i];

		if (!add_run(&h->known, run.end, run.kind))
			return false;
		if (run.kind != KVMEM_EXTENT_DATA)
			h->bytes_zero += run.end - at;
		at = run.end;
	}
	return h->fresh.count;
}

void kn_holes_settle(struct kn_connection *c)
{
	struct kn_holes *h = &c->nbd->holes;

	pthread_mutex_lock(&h->lock);
	if (h->by == c && h->answered) {
		h->by = NULL;
		h->failed = 0;
		if (h->error || !take_fresh(h) || known_until(&h->known) >= c->nbd->export.readable)
			set_over(h);
	}
	pthread_mutex_unlock(&h->lock);
}

bool kn_holes_lost(struct kn_connection *c)
{
	struct kn_holes *h = &c->nbd->holes;
	bool left;

	pthread_mutex_lock(&h->lock);
	if (h->by == c) {
		h->by = NULL;
		if (++h->failed == MOST_FAILED)
			set_over(h);
	}
	left = !h->over;
	pthread_mutex_unlock(&h->lock);
	return left;
}

/* ---- looking up ---- */

struct kn_run kn_holes_find(struct kn_holes *h, uint64_t at, uint64_t *ret_begin)
{
	struct kn_run run = { .end = UINT64_MAX, .kind = KVMEM_EXTENT_DATA };
	size_t low = 0, high;

	pthread_mutex_lock(&h->lock);
	high = h->known.count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (h->known.at[middle].end > at)
			high = middle;
		else
			low = middle + 1;
	}
	*ret_begin = low ? h->known.at[low - 1].end : 0;
	if (low < h->known.count)
		run = h->known.at[low];
	pthread_mutex_unlock(&h->lock);
	return run;
}

void kn_holes_count(struct kn_holes *h, uint64_t *ret_known, uint64_t *ret_zero)
{
	pthread_mutex_lock(&h->lock);
	*ret_known = known_until(&h->known);
	*ret_zero = h->bytes_zero;
	pthread_mutex_unlock(&h->lock);
}
