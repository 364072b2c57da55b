// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Work that nobody waits for: prefetch, and the background fill in address order. It is done in
 * small pieces; what fails is left absent, and tried again in a later pass over everything.
 */
#include "pager/pager_internal.h"

#include <errno.h>

#define BUSY_NS	   1000000u /* no fault for so long: it may take long breaths */
#define BUSY_PAGES 16u
#define MOST_LATER 32u /* requests of a shard that nobody waits for */

/* ---- a piece of work ---- */

/* How many pages of a shard at once: short breaths while faults come. */
static uint64_t breath(const struct km_backlog *b, uint64_t pages)
{
	uint64_t last = atomic_load_explicit(&b->demand_ns, memory_order_relaxed);

	if (pages > BUSY_PAGES && km_sys_now_ns() - last < BUSY_NS)
		return BUSY_PAGES;
	return pages;
}

/* A failure costs only the pages that fail. Returns how many these are, and the first error. */
static uint64_t fill_piece(struct km_worker *w, const struct km_window *s, enum km_why why,
			   int *ret_err)
{
	uint32_t because = why == KM_PREFETCH ? KVMEM_FAIL_PREFETCH : KVMEM_FAIL_BACKGROUND;
	struct km_fill_way way = km_way(w, why);
	uint64_t failed = 0;
	int r;

	*ret_err = 0;
	way.map = s->paged->in_file;
	r = km_fill_run(&s->paged->feed, &w->hands, s->first, s->count, &way);
	if (!r)
		return 0;
	if (r == KM_PARKED || km_watch_ended(&s->paged->watch)) {
		*ret_err = r;
		return s->count;
	}
	for (uint64_t i = 0; i < s->count && !atomic_load(&w->pager->stopping); i++) {
		r = km_fill_or_fail(w, s->paged, s->first + i, because, &way);
		failed += r != 0;
		*ret_err = *ret_err ? *ret_err : r;
	}
	return failed;
}

/* Enough is asked of sources that answer later: an answer goes on with it. */
static bool is_full(const struct km_backlog *b)
{
	return atomic_load_explicit(&b->later_pieces, memory_order_relaxed) >= MOST_LATER;
}

bool km_prefetch_step(struct km_worker *w)
{
	struct km_prefetch piece;
	int err;

	for (unsigned int i = 0; i < w->shard_count; i++) {
		struct km_backlog *b = &w->pager->backlogs[w->first_shard + i];

		if (is_full(b) || !km_prefetch_take(w->pager, b, breath(b, UINT64_MAX), &piece))
			continue;
		err = 0;
		/* What has been asked for, of a source that answers later, has come by now, or not. */
		if (!piece.due_ns || piece.window.paged->feed.source->kind != KM_SOURCE_ASYNC)
			fill_piece(w, &piece.window, KM_PREFETCH, &err);
		km_later_flush(w);
		km_prefetch_done(w->pager, b, &piece, err);
		return true;
	}
	return false;
}

/* ---- the background: slices ---- */

static uint64_t slices_per_stripe(const struct km_paged *p)
{
	return (p->watch.stripe + p->slice - 1) / p->slice;
}

/* The first stripe of a region that is the shard's. */
static uint64_t first_stripe(const struct km_paged *p, unsigned int shard)
{
	return (shard + p->watch.set->count - p->watch.first_uffd) % p->watch.set->count;
}

uint64_t km_paged_slices(const struct km_paged *p, unsigned int shard)
{
	uint64_t stripes = (p->watch.room + p->watch.stripe - 1) / p->watch.stripe;
	uint64_t shards = p->watch.set->count, first = first_stripe(p, shard);

	if (stripes <= first || atomic_load(&p->leaving) || km_watch_ended(&p->watch))
		return 0;
	return (stripes - first + shards - 1) / shards * slices_per_stripe(p);
}

/* The n-th slice of a shard; it is empty where the last stripe is not a whole one, and where a region has left
 * meanwhile. */
static struct km_window slice_at(const struct kvmem_pager *pager, unsigned int shard, uint64_t n)
{
	struct km_paged *p = km_paged_first(pager);
	uint64_t in_stripe, low, high;

	for (uint64_t slices; p; p = km_paged_next(p)) {
		slices = km_paged_slices(p, shard);
		if (n < slices)
			break;
		n -= slices;
	}
	if (!p)
		return (struct km_window){ 0 };
	in_stripe = n % slices_per_stripe(p) * p->slice;
	low = (first_stripe(p, shard) + n / slices_per_stripe(p) * pager->set.count) *
	      p->watch.stripe;
	high = km_min(low + km_min(in_stripe + p->slice, p->watch.stripe),
		      km_watch_pages(&p->watch));
	low += in_stripe;
	return (struct km_window){ .paged = p, .first = low, .count = low < high ? high - low : 0 };
}

/* ---- the background: passes ---- */

/* The next slice of a shard becomes this thread's. */
static bool next_slice(struct km_worker *w, unsigned int shard)
{
	struct km_backlog *b = &w->pager->backlogs[shard];

	atomic_fetch_add(&b->busy, 1);
	while (atomic_load_explicit(&b->cursor, memory_order_relaxed) < b->slices) {
		uint64_t n = atomic_fetch_add_explicit(&b->cursor, 1, memory_order_relaxed);

		if (n >= b->slices)
			break;
		w->slice = slice_at(w->pager, shard, n);
		if (w->slice.count)
			return true;
	}
	km_pass_give_back(w->pager, b);
	return false;
}

static void begin_pass_if_due(struct kvmem_pager *pager, struct km_backlog *b)
{
	uint64_t due = atomic_load(&b->retry_ns);

	if (!due || km_sys_now_ns() < due)
		return;
	pthread_mutex_lock(&pager->lock);
	if (atomic_load(&b->retry_ns)) {
		atomic_store(&b->failed, 0);
		atomic_store(&b->filled, 0);
		atomic_store(&b->stuck, false); /* as long as it has not come to its end */
		atomic_store(&b->retry_ns, 0);
		atomic_store(&b->cursor, 0);
	}
	pthread_mutex_unlock(&pager->lock);
}

static void fill_slice_piece(struct km_worker *w, struct km_backlog *b)
{
	_Atomic uint64_t *pages = &w->counts.pages[KM_BACKGROUND];
	uint64_t before = atomic_load_explicit(pages, memory_order_relaxed), failed;
	struct km_window s = w->slice;
	int err;

	s.count = breath(b, s.count);
	w->slice.first += s.count;
	w->slice.count -= s.count;
	failed = fill_piece(w, &s, KM_BACKGROUND, &err);
	km_later_flush(w);
	if (failed)
		atomic_fetch_add(&b->failed, failed);
	if (atomic_load_explicit(pages, memory_order_relaxed) != before || err == KM_PARKED)
		atomic_fetch_add(&b->filled, 1); /* what is parked has not failed */
	if (!w->slice.count)
		km_pass_give_back(w->pager, b);
}

/* The rest of the slice under way is not done. */
void km_slice_drop(struct km_worker *w)
{
	const struct km_paged *p = w->slice.paged;

	w->slice.count = 0;
	km_pass_give_back(w->pager, &w->pager->backlogs[km_watch_shard(&p->watch, w->slice.first)]);
}

bool km_background_step(struct km_worker *w)
{
	if (!atomic_load_explicit(&w->pager->background, memory_order_relaxed))
		return false;
	if (w->slice.count) {
		const struct km_paged *p = w->slice.paged;
		struct km_backlog *b =
			&w->pager->backlogs[km_watch_shard(&p->watch, w->slice.first)];

		if (is_full(b))
			return false;
		fill_slice_piece(w, b);
		return true;
	}
	for (unsigned int i = 0; i < w->shard_count; i++) {
		struct km_backlog *b = &w->pager->backlogs[w->first_shard + i];

		begin_pass_if_due(w->pager, b);
		if (is_full(b) || !next_slice(w, w->first_shard + i))
			continue;
		fill_slice_piece(w, b);
		return true;
	}
	return false;
}

/* ---- is there any? ---- */

bool km_backlog_left(const struct km_worker *w)
{
	bool background = atomic_load(&w->pager->background);

	if (background && w->slice.count &&
	    !is_full(&w->pager->backlogs[km_watch_shard(&w->slice.paged->watch, w->slice.first)]))
		return true;
	if (atomic_load(&w->pager->later_again_count))
		return true;
	for (unsigned int i = 0; i < w->shard_count; i++) {
		struct km_backlog *b = &w->pager->backlogs[w->first_shard + i];

		if (is_full(b))
			continue;
		if (atomic_load(&b->now.count) ||
		    (background && atomic_load(&b->cursor) < b->slices))
			return true;
	}
	return false;
}

uint64_t km_backlog_retry_ns(const struct km_worker *w)
{
	uint64_t soonest = UINT64_MAX, due;

	for (unsigned int i = 0; i < w->shard_count; i++) {
		const struct km_backlog *b = &w->pager->backlogs[w->first_shard + i];

		due = atomic_load(&b->retry_ns);
		if (due)
			soonest = km_min(soonest, due);
		due = km_prefetch_due_ns(b);
		if (due)
			soonest = km_min(soonest, due);
	}
	return soonest;
}

/* With the pager's lock held. */
static void begin_pass(struct kvmem_pager *pager, unsigned int shard)
{
	struct km_backlog *b = &pager->backlogs[shard];
	uint64_t slices = 0;

	for (struct km_paged *p = km_paged_first(pager); p; p = km_paged_next(p))
		slices += km_paged_slices(p, shard);
	atomic_store(&b->slices, slices);
	atomic_store(&b->failed, 0);
	atomic_store(&b->filled, 0);
	atomic_store(&b->stuck, false);
	atomic_store(&b->retry_ns, 0);
	b->delay_ns = 0;
	atomic_store(&b->cursor, 0);
}

void km_backlog_begin(struct kvmem_pager *pager)
{
	pthread_mutex_lock(&pager->lock);
	for (unsigned int i = 0; i < pager->set.count; i++) {
		atomic_store(&pager->backlogs[i].busy, 0);
		begin_pass(pager, i);
	}
	pthread_mutex_unlock(&pager->lock);
}

void km_backlog_again(struct kvmem_pager *pager)
{
	if (atomic_load(&pager->state) != KM_PAGER_RUNNING)
		return; /* kvmem_pager_start() begins with everything */
	pthread_mutex_lock(&pager->lock);
	for (unsigned int i = 0; i < pager->set.count; i++)
		begin_pass(pager, i);
	pthread_mutex_unlock(&pager->lock);
	km_pager_kick_all(pager);
}
