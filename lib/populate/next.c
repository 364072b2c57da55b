// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What is to be filled next: chunks, claims, extents. */
#include "populate/populate_internal.h"

#include "fill/store.h"

static uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t pos_of(const struct km_fill *f, uint64_t page)
{
	return page << f->r->page_shift;
}

uint64_t km_fill_clip(const struct km_fill *f, uint64_t from, uint64_t to)
{
	from = max_u64(from, f->offset);
	to = km_min(to, f->end);
	return from < to ? to - from : 0;
}

uint64_t km_fill_source_pos(const struct km_fill *f, uint64_t pos)
{
	return pos - f->offset + f->source_offset;
}

static uint64_t asked(const struct km_fill *f, uint64_t page, uint64_t pages)
{
	return km_fill_clip(f, pos_of(f, page), pos_of(f, page + pages));
}

static void add_done(struct km_filler *w, uint64_t bytes)
{
	uint64_t done = atomic_load_explicit(&w->done, memory_order_relaxed);

	atomic_store_explicit(&w->done, done + bytes, memory_order_relaxed);
}

/* ---- ends of a claim ---- */

int km_fill_publish(struct km_filler *w, struct km_piece *p, uint64_t pages, bool stored,
		    bool mapped)
{
	struct km_fill *f = w->f;
	uint64_t pos = pos_of(f, p->page), bytes = pages << f->r->page_shift;
	int r = 0;

	if (f->ops && stored && !mapped) {
		r = f->ops->complete(f->r, pos, bytes, &bytes);
		pages = bytes >> f->r->page_shift;
	}
	if (!pages)
		return r;
	km_presence_publish(&f->r->presence, p->page, pages, stored ? KM_PRESENT : KM_ZERO);
	if (f->ops && !stored) /* who waits there faults again, and is given zeros */
		f->ops->wake(f->r, pos, bytes);
	add_done(w, asked(f, p->page, pages));
	p->page += pages;
	p->pages -= pages;
	p->stored = false;
	return r;
}

void km_fill_forget(struct km_fill *f, uint64_t pos, uint64_t bytes)
{
	km_store_forget(f->r, f->store, pos, bytes);
}

static void give_up(struct km_fill *f, uint64_t page, uint64_t pages)
{
	km_presence_abandon(&f->r->presence, page, pages);
	if (f->ops)
		f->ops->wake(f->r, pos_of(f, page), pages << f->r->page_shift);
}

void km_fill_abandon(struct km_filler *w, struct km_piece *p)
{
	if (!p->pages)
		return;
	/* Nothing of a fill that failed may show up behind the next one's zeros. */
	km_fill_forget(w->f, pos_of(w->f, p->page), p->pages << w->f->r->page_shift);
	give_up(w->f, p->page, p->pages);
	p->pages = 0;
}

void km_fill_release(struct km_filler *w)
{
	if (w->page < w->claimed_end)
		give_up(w->f, w->page, w->claimed_end - w->page);
	w->page = w->claimed_end = w->chunk_end = 0;
}

/* ---- extents ---- */

static bool holds(const struct kvmem_extent *e, uint64_t offset)
{
	return offset - e->offset < e->bytes;
}

int km_fill_extent(struct km_filler *w, uint64_t pos, uint32_t *ret_kind, uint64_t *ret_end)
{
	struct km_fill *f = w->f;
	uint64_t offset = km_fill_source_pos(f, pos);
	struct kvmem_extent *e = &w->ext[w->ext_last];
	int r;

	if (!holds(e, offset)) {
		w->ext_last ^= 1;
		e = &w->ext[w->ext_last];
	}
	if (!holds(e, offset)) {
		r = km_source_extent(f->s, offset, e);
		if (r) {
			e->bytes = 0;
			return r;
		}
	}
	*ret_kind = e->kind;
	*ret_end = km_min(e->offset + e->bytes - f->source_offset + f->offset, f->end);
	return 0;
}

/* Where the run of data (or of anything but data) that holds pos ends, or `limit`. */
static int run_end(struct km_filler *w, uint64_t pos, uint64_t limit, bool *ret_data,
		   uint64_t *ret_end)
{
	uint32_t kind = KVMEM_EXTENT_DATA;
	uint64_t end = limit;
	int r = km_fill_extent(w, pos, &kind, &end);

	*ret_data = kind == KVMEM_EXTENT_DATA;
	while (!r && end < limit) {
		uint64_t next = limit;

		r = km_fill_extent(w, end, &kind, &next);
		if (!r && (kind == KVMEM_EXTENT_DATA) != *ret_data)
			break;
		end = next;
	}
	*ret_end = km_min(end, limit);
	return r;
}

/* The next pages that all hold data, or that all hold none: up to `max` of them. */
static int span(struct km_filler *w, uint64_t page, uint64_t max, uint64_t *ret_pages,
		bool *ret_data)
{
	struct km_fill *f = w->f;
	uint64_t limit = km_min(pos_of(f, page + max), f->end), end;
	int r = run_end(w, max_u64(pos_of(f, page), f->offset), limit, ret_data, &end);

	if (r)
		return r;
	if (end == limit)
		*ret_pages = max;
	else if (*ret_data)
		*ret_pages = (end + f->page_bytes - 1) / f->page_bytes - page;
	else
		*ret_pages = end / f->page_bytes - page;
	if (!*ret_pages) { /* data begins within the page */
		*ret_pages = 1;
		*ret_data = true;
	}
	return 0;
}

static int count_empty(struct km_filler *w, uint64_t from, uint64_t to)
{
	uint32_t kind;
	uint64_t end;
	int r;

	for (; from < to; from = end) {
		r = km_fill_extent(w, from, &kind, &end);
		if (r)
			return r;
		end = km_min(end, to);
		if (kind == KVMEM_EXTENT_ZERO)
			w->counts.zero += end - from;
		else
			w->counts.hole += end - from;
	}
	return 0;
}

static int pass_empty(struct km_filler *w, struct km_piece *p)
{
	struct km_fill *f = w->f;
	int r;

	if (f->keep_zero)
		return km_fill_zeros(w, p);
	r = count_empty(w, max_u64(pos_of(f, p->page), f->offset),
			km_min(pos_of(f, p->page + p->pages), f->end));
	if (r)
		km_fill_abandon(w, p);
	else
		km_fill_publish(w, p, p->pages, false, false);
	return r;
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

/* Claim what is absent from w->page on, or pass over what is not. */
static void claim(struct km_filler *w)
{
	struct km_presence *map = &w->f->r->presence;
	uint64_t max = w->chunk_end - w->page, n = km_presence_claim(map, w->page, max);
	enum km_page_state state;

	w->claimed_end = w->page + n;
	if (n)
		return;
	n = km_presence_run(map, w->page, max, &state);
	if (state == KM_ABSENT)
		return; /* given up by someone just now: claim it next time round */
	if (state == KM_CLAIMED) {
		w->deferred += asked(w->f, w->page, n);
	} else if (!w->recount) {
		w->counts.present += asked(w->f, w->page, n);
		add_done(w, asked(w->f, w->page, n));
	}
	w->page += n;
	w->claimed_end = w->page;
}

/* The pages of a piece are made under one policy. */
static int enter_policy(struct km_filler *w, uint64_t *max)
{
	struct km_fill *f = w->f;
	uint64_t pos = pos_of(f, w->page);
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

/* Returns 1 with a piece, 0 when what came first held no data and is done. */
static int take(struct km_filler *w, struct km_piece *p)
{
	uint64_t max = w->claimed_end - w->page;
	bool data;
	int r = enter_policy(w, &max);

	if (!r)
		r = span(w, w->page, max, &p->pages, &data);
	if (r)
		return r;
	p->page = w->page;
	p->stored = false;
	w->page += p->pages;
	return data ? 1 : pass_empty(w, p);
}

int km_fill_next(struct km_filler *w, struct km_piece *p)
{
	int r;

	while (!km_fill_stopped(w->f)) {
		if (w->page < w->claimed_end) {
			r = take(w, p);
			if (r)
				return r;
		} else if (w->page < w->chunk_end || next_chunk(w)) {
			claim(w);
		} else {
			return 0;
		}
	}
	return 0;
}
