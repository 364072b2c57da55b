// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A piece: what the source has for it, and the ends of its claim. */
#include "populate/populate_internal.h"

/* ---- what the source has ---- */

static bool holds(const struct kvmem_extent *e, uint64_t offset)
{
	return offset - e->offset < e->bytes;
}

/* The caller's functions run while pages are claimed: what waits for these must be refused. */
static int ask_extent(struct km_fill *f, uint64_t offset, struct kvmem_extent *e)
{
	struct km_callback cb;
	int r;

	km_callback_enter(&cb, "the source of kvmem_populate", f->r, NULL);
	r = km_source_extent(f->s, offset, e);
	km_callback_leave(&cb);
	if (r)
		e->bytes = 0;
	return r;
}

int km_piece_extent(struct km_filler *w, uint64_t pos, uint32_t *ret_kind, uint64_t *ret_end)
{
	struct km_fill *f = w->f;
	uint64_t offset = km_fill_source_pos(f, pos), left;
	struct kvmem_extent *e = &w->ext[w->ext_last];
	int r = 0;

	if (!holds(e, offset)) {
		w->ext_last ^= 1;
		e = &w->ext[w->ext_last];
	}
	if (!holds(e, offset))
		r = ask_extent(f, offset, e);
	if (r)
		return r;
	*ret_kind = e->kind;
	left = e->offset + e->bytes - offset; /* a source may end near 2^64 */
	*ret_end = left < f->end - pos ? pos + left : f->end;
	return 0;
}

/* While the source has not answered. */
static bool look(void *arg)
{
	struct km_filler *w = arg;

	if (!w->index)
		km_fill_tick(w->f, false);
	return atomic_load(&w->f->stop);
}

int km_piece_read(struct km_filler *w, uint64_t pos, void *to, uint64_t bytes)
{
	const struct km_source_wait wait = { look, w };
	struct km_fill *f = w->f;
	struct km_callback cb;
	int r;

	km_callback_enter(&cb, "the source of kvmem_populate", f->r, NULL);
	r = km_source_read_looking(f->s, km_fill_source_pos(f, pos), to, bytes, &wait);
	km_callback_leave(&cb);
	return r;
}

/* ---- ends of a claim ---- */

static void advance(struct km_filler *w, struct km_piece *p, uint64_t pages)
{
	uint64_t done = atomic_load_explicit(&w->done, memory_order_relaxed);

	if (!pages)
		return;
	done += km_fill_clip(w->f, km_fill_pos(w->f, p->page), km_fill_pos(w->f, p->page + pages));
	atomic_store_explicit(&w->done, done, memory_order_relaxed);
	p->page += pages;
	p->pages -= pages;
	p->stored = false;
}

int km_piece_stored(struct km_filler *w, struct km_piece *p, uint64_t pages)
{
	uint64_t done;
	int r = km_pages_stored(w->f->r, p->page, pages, &done);

	advance(w, p, done);
	return r;
}

void km_piece_placed(struct km_filler *w, struct km_piece *p, uint64_t pages)
{
	advance(w, p, pages);
}

/* The kernel has no page there that the caller's `flags` do not speak of: enter() has looked. */
int km_piece_zero(struct km_filler *w, struct km_piece *p, uint64_t pages)
{
	int r = km_pages_zero(w->f->r, p->page, pages, true);

	if (!r)
		advance(w, p, pages);
	return r;
}

void km_piece_abandon(struct km_filler *w, struct km_piece *p)
{
	/* Nothing of a fill that failed may show up behind the next one's zeros. */
	if (p->pages)
		km_pages_abandon(w->f->r, p->page, p->pages, true);
	p->pages = 0;
}

/* ---- without data ---- */

static int count_empty(struct km_filler *w, uint64_t from, uint64_t to)
{
	uint32_t kind;
	uint64_t end;
	int r;

	for (; from < to; from = end) {
		r = km_piece_extent(w, from, &kind, &end);
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

int km_piece_empty(struct km_filler *w, struct km_piece *p)
{
	struct km_fill *f = w->f;
	uint64_t from = km_fill_pos(f, p->page), to = km_fill_pos(f, p->page + p->pages);
	int r;

	w->kept = w->counts;
	r = count_empty(w, from > f->offset ? from : f->offset, km_min(to, f->end));
	if (!r)
		r = km_piece_zero(w, p, p->pages);
	if (!r)
		return 0;
	w->counts = w->kept;
	km_piece_abandon(w, p);
	return r;
}
