// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Fault-around: which neighbours to bring in with a page, and whether that was of use. It is only
 * done where it is cheap, since a fault that comes meanwhile waits for it: content in memory or in
 * the page cache, zeros, pages that only want mapping.
 */
#include "pager/pager_internal.h"

#include <errno.h>

#define FIXES	       8u
#define MOST_PENALTY   64u
#define SAMPLE_WINDOWS 16u /* one page is left out of one window in so many */

struct km_fill_way km_way(struct km_worker *w, enum km_why why)
{
	static const uint32_t tags[KM_WHYS] = {
		[KM_DEMAND] = KVMEM_TRACE_DEMAND,
		[KM_AROUND] = KVMEM_TRACE_AROUND,
		[KM_PREFETCH] = KVMEM_TRACE_PREFETCH,
		[KM_BACKGROUND] = KVMEM_TRACE_BACKGROUND,
	};

	return (struct km_fill_way){
		/* Faults have an entry each. */
		.placed = w->trace.entries && why != KM_DEMAND ? km_trace_fill : NULL,
		.arg = w,
		.tag = tags[why],
		.later = km_later_take,
		.demand = why == KM_DEMAND,
		.at_hand = why == KM_AROUND,
		.heal = why == KM_PREFETCH,
		.zeros = why != KM_BACKGROUND,
		.pages = &w->counts.pages[why],
		.zero = &w->counts.zero,
	};
}

/* ---- plans ---- */

enum place { INSIDE, AHEAD, BEHIND, APART };

/* Where a fault lies to the window that a sequential access got last. */
static enum place place_of(const struct km_stream *s, const struct km_paged *p, uint64_t page)
{
	if (s->paged != p)
		return APART;
	if (page >= s->end)
		return page - s->end < s->count ? AHEAD : APART;
	if (page >= s->first)
		return INSIDE;
	return s->first - page <= s->count ? BEHIND : APART;
}

static struct km_stream *find_stream(struct km_around *a, const struct km_paged *p, uint64_t page,
				     enum place *ret_place)
{
	struct km_stream *oldest = &a->streams[0];

	for (unsigned int i = 0; i < KM_STREAMS; i++) {
		struct km_stream *s = &a->streams[i];

		*ret_place = place_of(s, p, page);
		if (*ret_place != APART)
			return s;
		if (s->used < oldest->used)
			oldest = s;
	}
	return oldest;
}

/*
 * The windows of a sequential access double. Otherwise it is the aligned block about the page, or
 * nothing when that is on its way already. A window lies within one stripe.
 */
bool km_around_plan(struct km_worker *w, struct km_paged *p, uint64_t page, struct km_window *ret)
{
	uint64_t first = page & ~(p->window - 1), count = p->window, low, high;
	enum place place;
	struct km_stream *s = find_stream(&w->around, p, page, &place);

	s->used = ++w->around.tick;
	if (place == INSIDE)
		return false;
	if (place != APART) {
		count = km_min(s->count * 2, p->window_max);
		first = page;
	}
	if (place == BEHIND) {
		first = page + 1 > count ? page + 1 - count : 0;
		count = page + 1 - first;
	}
	low = page - page % p->watch.stripe;
	high = km_min(low + p->watch.stripe, km_watch_pages(&p->watch));
	ret->first = first > low ? first : low;
	ret->count = km_min(first + count, high) - ret->first;
	ret->down = place == BEHIND;
	s->paged = p;
	s->first = ret->first;
	s->end = ret->first + ret->count;
	s->count = count;
	return place != APART;
}

/* ---- is it of use? ---- */

/* Leave a page out of the window and remember it; a fault on it later shows that it was of use. */
static uint64_t take_sample(struct km_around *a, const struct km_window *win)
{
	uint64_t page = win->first + a->tick * 0x9e3779b97f4a7c15ull % win->count;

	a->samples[a->next_sample].paged = win->paged;
	a->samples[a->next_sample].page = page;
	a->next_sample = (a->next_sample + 1) % KM_SAMPLES;
	return page;
}

void km_around_touched(struct km_worker *w, const struct km_paged *p, uint64_t page)
{
	struct km_around *a = &w->around;

	if (!atomic_load_explicit(&w->counts.sampled, memory_order_relaxed))
		return;
	for (unsigned int i = 0; i < KM_SAMPLES; i++)
		if (a->samples[i].page == page && a->samples[i].paged == p) {
			a->samples[i].paged = NULL;
			km_count_own(&w->counts.touched, 1);
			return;
		}
}

/* ---- windows that wait ---- */

static void push(struct km_around *a, const struct km_window *win)
{
	if (!win->count)
		return;
	if (a->count == KM_AROUNDS) { /* the oldest window is the least likely to help */
		a->first = (a->first + 1) % KM_AROUNDS;
		a->count--;
	}
	a->windows[(a->first + a->count++) % KM_AROUNDS] = *win;
}

/* Content was not at hand the last times: it is not worth a try each time. */
static bool skip(struct km_paged *p)
{
	uint32_t left = atomic_load_explicit(&p->around_skip, memory_order_relaxed);

	if (p->haste == KM_SLOW)
		return true;
	if (!left)
		return false;
	atomic_store_explicit(&p->around_skip, left - 1, memory_order_relaxed);
	return true;
}

void km_around_put_off(struct km_worker *w, const struct km_window *win)
{
	struct km_window before = *win, behind = *win;
	uint64_t page;

	if (win->kind == KM_ABSENT && skip(win->paged))
		return;
	if (win->kind != KM_ABSENT || win->count < 2 || ++w->around.windows_done % SAMPLE_WINDOWS) {
		push(&w->around, win);
		return;
	}
	page = take_sample(&w->around, win);
	if (km_presence_get(km_paged_map(win->paged), page) == KM_ABSENT)
		km_count_own(&w->counts.sampled, 1);
	before.count = page - win->first;
	behind.first = page + 1;
	behind.count = win->first + win->count - behind.first;
	push(&w->around, win->down ? &behind : &before);
	push(&w->around, win->down ? &before : &behind);
}

static void map_around(const struct km_window *win)
{
	struct km_paged *p = win->paged;
	uint64_t page = win->first, end = win->first + win->count, n;
	enum km_page_state state;

	for (; page < end; page += n) {
		n = km_presence_run(km_paged_map(p), page, end - page, &state);
		if (state != win->kind)
			continue;
		km_map_run(&p->watch, page, n, state == KM_ZERO, FIXES);
		km_watch_wake(&p->watch, page, n);
	}
}

static void note_result(struct km_paged *p, int r)
{
	uint32_t penalty = atomic_load_explicit(&p->around_penalty, memory_order_relaxed);

	if (r == -EAGAIN)
		penalty = penalty * 2 + 1 < MOST_PENALTY ? penalty * 2 + 1 : MOST_PENALTY;
	else
		penalty = 0;
	atomic_store_explicit(&p->around_penalty, penalty, memory_order_relaxed);
	atomic_store_explicit(&p->around_skip, penalty, memory_order_relaxed);
}

/* The next piece of a window, which it loses; the window stays, maybe empty. */
static struct km_window cut_piece(struct km_window *win)
{
	struct km_window piece = *win;

	piece.count = km_min(win->count, KM_CLAIM_PAGES);
	if (win->down)
		piece.first += win->count - piece.count;
	else
		win->first += piece.count;
	win->count -= piece.count;
	return piece;
}

static bool holds(const struct km_window *win, uint64_t page)
{
	return page - win->first < win->count;
}

bool km_around_take(struct km_worker *w, const struct km_paged *p, uint64_t page,
		    struct km_window *ret_piece)
{
	struct km_around *a = &w->around;

	for (unsigned int i = 0; i < a->count; i++) {
		struct km_window *win = &a->windows[(a->first + i) % KM_AROUNDS], rest = *win;

		if (win->paged != p || win->kind != ret_piece->kind || !holds(win, page))
			continue;
		*ret_piece = cut_piece(&rest);
		if (!holds(ret_piece, page))
			return false;
		*win = rest;
		return true;
	}
	return false;
}

void km_around_forget(struct km_around *a)
{
	struct km_window keep[KM_AROUNDS];
	unsigned int n = 0;

	for (unsigned int i = 0; i < a->count; i++) {
		const struct km_window *win = &a->windows[(a->first + i) % KM_AROUNDS];

		if (!atomic_load(&win->paged->leaving))
			keep[n++] = *win;
	}
	for (unsigned int i = 0; i < n; i++)
		a->windows[i] = keep[i];
	a->first = 0;
	a->count = n;
	for (unsigned int i = 0; i < KM_STREAMS; i++)
		if (a->streams[i].paged && atomic_load(&a->streams[i].paged->leaving))
			a->streams[i] = (struct km_stream){ 0 };
	for (unsigned int i = 0; i < KM_SAMPLES; i++)
		if (a->samples[i].paged && atomic_load(&a->samples[i].paged->leaving))
			a->samples[i].paged = NULL;
}

bool km_around_step(struct km_worker *w)
{
	struct km_around *a = &w->around;
	struct km_window *front = &a->windows[a->first], piece;
	struct km_fill_way way = km_way(w, KM_AROUND);
	int r = 0;

	if (!a->count)
		return false;
	piece = cut_piece(front);
	if (piece.count && piece.kind == KM_ABSENT)
		r = km_fill_run(&piece.paged->feed, &w->hands, piece.first, piece.count, &way);
	else
		map_around(&piece);
	if (piece.kind == KM_ABSENT && piece.paged->haste == KM_PERHAPS)
		note_result(piece.paged, r);
	if (r || !front->count) {
		a->first = (a->first + 1) % KM_AROUNDS;
		a->count--;
	}
	return true;
}
