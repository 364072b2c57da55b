// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What is to be filled next: chunks, claims, runs of the source. */
#include "populate/populate_internal.h"

static uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

void km_fill_release(struct km_filler *w)
{
	if (w->page < w->claimed_end)
		km_pages_abandon(w->f->r, w->page, w->claimed_end - w->page, false);
	w->page = w->claimed_end = w->chunk_end = 0;
}

/* ---- runs of the source ---- */

/* Where the run of data (or of anything but data) that holds pos ends, or `limit`. */
static int run_end(struct km_filler *w, uint64_t pos, uint64_t limit, bool *ret_data,
		   uint64_t *ret_end)
{
	uint32_t kind = KVMEM_EXTENT_DATA;
	uint64_t end = limit;
	int r = km_piece_extent(w, pos, &kind, &end);

	*ret_data = kind == KVMEM_EXTENT_DATA;
	while (!r && end < limit) {
		uint64_t next = limit;

		r = km_piece_extent(w, end, &kind, &next);
		if (!r && (kind == KVMEM_EXTENT_DATA) != *ret_data)
			break;
		end = next;
	}
	*ret_end = km_min(end, limit);
	return r;
}

/* The next pages that all hold data, or that all hold none: up to `max` of them. */
static int span(struct km_filler *w, uint64_t max, struct km_piece *p)
{
	struct km_fill *f = w->f;
	uint64_t limit = km_min(km_fill_pos(f, w->page + max), f->end), end;
	int r = run_end(w, max_u64(km_fill_pos(f, w->page), f->offset), limit, &p->data, &end);

	if (r)
		return r;
	if (end == limit)
		p->pages = max;
	else if (p->data)
		p->pages = (end + f->page_bytes - 1) / f->page_bytes - w->page;
	else
		p->pages = end / f->page_bytes - w->page;
	if (!p->pages) { /* data begins within the page */
		p->pages = 1;
		p->data = true;
	}
	return 0;
}

/* ---- chunks ---- */

/* From the thread's own share, then from what the others have left. */
static bool next_chunk(struct km_filler *w)
{
	struct km_fill *f = w->f;

	for (unsigned int i = 0; i < f->threads; i++) {
		struct km_filler *from = &f->fillers[(w->index + i) % f->threads];
		uint64_t c;

		if (atomic_load_explicit(&from->next, memory_order_relaxed) >= from->end)
			continue;
		c = atomic_fetch_add_explicit(&from->next, 1, memory_order_relaxed);
		if (c >= from->end)
			continue;
		w->page = f->first_page + c * f->chunk_pages;
		w->claimed_end = w->page;
		w->chunk_end = km_min(w->page + f->chunk_pages, f->first_page + f->pages);
		return true;
	}
	return false;
}

/* Claim what can be filled from w->page on, or pass over what has its content. */
static int claim(struct km_filler *w)
{
	struct km_fill *f = w->f;
	uint64_t max = w->chunk_end - w->page, n, bytes;
	int64_t claimed = km_pages_claim(f->r, w->page, max);
	enum km_page_state state;

	if (claimed < 0)
		return (int)claimed;
	w->claimed_end = w->page + (uint64_t)claimed;
	if (claimed)
		return 0;
	n = km_presence_run(&f->r->presence, w->page, max, &state);
	if (state == KM_ABSENT || state == KM_POISONED)
		return 0; /* given up by someone just now: claim it next time round */
	bytes = km_fill_clip(f, km_fill_pos(f, w->page), km_fill_pos(f, w->page + n));
	if (state == KM_CLAIMED) {
		w->deferred += bytes;
	} else if (!w->recount) {
		w->counts.present += bytes;
		atomic_fetch_add_explicit(&w->done, bytes, memory_order_relaxed);
	}
	w->page += n;
	w->claimed_end = w->page;
	return 0;
}

/* The pages of a piece are made under one policy. */
static int enter_policy(struct km_filler *w, uint64_t *max)
{
	struct km_fill *f = w->f;
	uint64_t pos = km_fill_pos(f, w->page);
	int r;

	if (pos < w->numa_from || pos >= w->numa_end) {
		w->numa_from = pos;
		w->numa_end = 0;
		r = km_numa_enter(f->r, pos, &w->numa_end, &w->numa);
		if (r < 0)
			return r;
	}
	*max = km_min(*max, max_u64((w->numa_end - pos) >> f->r->page_shift, 1));
	return 0;
}

static int take(struct km_filler *w, struct km_piece *p)
{
	uint64_t max = w->claimed_end - w->page;
	int r = enter_policy(w, &max);

	if (!r)
		r = span(w, max, p);
	if (r)
		return r;
	p->page = w->page;
	p->stored = false;
	w->page += p->pages;
	return 1;
}

int km_fill_next(struct km_filler *w, struct km_piece *p)
{
	int r;

	while (!km_fill_stopped(w->f)) {
		if (w->page < w->claimed_end)
			return take(w, p);
		if (w->page >= w->chunk_end && !next_chunk(w))
			return 0;
		r = claim(w);
		if (r)
			return r;
	}
	return 0;
}
