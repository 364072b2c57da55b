// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A piece through a buffer, or from memory where it lies: zeros are found and not stored. */
#include "populate/populate_internal.h"

#include <errno.h>
#include <string.h>

int km_buffer_need(struct km_filler *w)
{
	if (!w->buf)
		w->buf = km_sys_alloc(KM_FILL_BLOCK);
	if (!w->buf)
		return km_fail(ENOMEM, "populate: no memory for a buffer of %u bytes",
			       KM_FILL_BLOCK);
	return 0;
}

static int read_source(struct km_filler *w, uint64_t pos, uint8_t *to, uint64_t bytes)
{
	if (w->f->s->kind == KM_SOURCE_FILE)
		w->counts.file[KVMEM_FILE_PREAD] += bytes;
	return km_piece_read(w, pos, to, bytes);
}

/* What [from, to) shall hold, holes and all that lies outside of the range asked for as zeros. */
static int load(struct km_filler *w, uint64_t from, uint64_t to)
{
	struct km_fill *f = w->f;
	/* Of a huge page, a whole block can lie before or behind the range. */
	uint64_t pos = km_min(from < f->offset ? f->offset : from, to);
	uint64_t end = f->end < pos ? pos : km_min(to, f->end);
	uint64_t next;
	uint32_t kind;
	int r;

	memset(w->buf, 0, pos - from);
	memset(w->buf + (end - from), 0, to - end);
	for (; pos < end; pos = next) {
		r = km_piece_extent(w, pos, &kind, &next);
		if (r)
			return r;
		if (next > end)
			next = end;
		if (kind == KVMEM_EXTENT_DATA)
			r = read_source(w, pos, w->buf + (pos - from), next - pos);
		else
			memset(w->buf + (pos - from), 0, next - pos);
		if (r)
			return r;
	}
	return 0;
}

static int content(struct km_filler *w, uint64_t from, uint64_t to, const uint8_t **ret)
{
	struct km_fill *f = w->f;
	int r;

	if (f->in_place && from >= f->offset && to <= f->end) {
		*ret = f->s->base + km_fill_source_pos(f, from);
		return 0;
	}
	r = km_buffer_need(w);
	if (!r)
		r = load(w, from, to);
	*ret = w->buf;
	return r;
}

/* How far the content stays zero, or not zero; never beyond the end of a huge page. */
static uint64_t same_run(const struct km_fill *f, const uint8_t *src, uint64_t pos, uint64_t bytes,
			 bool *ret_zero)
{
	uint64_t n = f->grain;

	if (f->page_bytes > f->grain) {
		uint64_t left = f->page_bytes - (pos & (f->page_bytes - 1));

		bytes = bytes < left ? bytes : left;
	}
	if (f->keep_zero) {
		*ret_zero = false;
		return bytes;
	}
	*ret_zero = km_is_zero(src, f->grain);
	while (n < bytes && km_is_zero(src + n, f->grain) == *ret_zero)
		n += f->grain;
	return n;
}

/* The page that ends at `end`, and those before it, are complete. */
static int publish(struct km_filler *w, struct km_piece *p, uint64_t end, uint64_t placed)
{
	unsigned int shift = w->f->r->page_shift;
	uint64_t page = p->page, pages = (end >> shift) - page;
	int r = 0;

	if (placed)
		km_piece_placed(w, p, pages);
	else if (p->stored)
		r = km_piece_stored(w, p, pages);
	else
		r = km_piece_zero(w, p, pages);
	if (p->page == page)
		return r;
	if (r) /* a run that can be mapped in part only: that part is kept */
		km_method_uncount(w, p->page << shift, end);
	w->kept = w->counts;
	return r;
}

/* [pos, end) was stored, or is zero: publish the pages that are complete by that. */
static int passed(struct km_filler *w, struct km_piece *p, uint64_t pos, uint64_t end, bool zero,
		  uint64_t placed)
{
	struct km_fill *f = w->f;

	if (zero)
		w->counts.zero += km_fill_clip(f, pos, end);
	else
		p->stored = true;
	return end & (f->page_bytes - 1) ? 0 : publish(w, p, end, placed);
}

static int store_block(struct km_filler *w, struct km_piece *p, uint64_t pos, const uint8_t *src,
		       uint64_t bytes)
{
	while (bytes) {
		bool zero;
		uint64_t n = same_run(w->f, src, pos, bytes, &zero), placed = 0;
		int r = zero ? 0 : km_method_store(w, pos, src, n, &placed), err = 0;

		if (!r || placed)
			err = passed(w, p, pos, pos + (r ? placed : n), zero, placed);
		if (r || err)
			return r ? r : err;
		pos += n;
		src += n;
		bytes -= n;
	}
	return 0;
}

void km_buffer_saw_zeros(struct km_filler *w, uint64_t zero, uint64_t bytes)
{
	w->zeros_seen = zero * 16 > bytes;
}

int km_buffer_fill(struct km_filler *w, struct km_piece *p)
{
	struct km_fill *f = w->f;
	uint64_t zero = w->counts.zero;
	uint64_t start = p->page << f->r->page_shift, pos = start, next;
	uint64_t end = start + (p->pages << f->r->page_shift);
	int r = 0;

	w->kept = w->counts;
	for (; !r && pos < end; pos = next) {
		const uint8_t *src = NULL;

		next = end - pos < KM_FILL_BLOCK ? end : pos + KM_FILL_BLOCK;
		r = content(w, pos, next, &src);
		if (!r)
			r = store_block(w, p, pos, src, next - pos);
	}
	if (r) {
		w->counts = w->kept;
		km_piece_abandon(w, p);
	}
	km_buffer_saw_zeros(w, w->counts.zero - zero, end - start);
	return r;
}

int km_buffer_zeros(struct km_filler *w, struct km_piece *p)
{
	unsigned int shift = w->f->r->page_shift;
	uint64_t pos = p->page << shift, bytes = p->pages << shift, placed;
	int r, err;

	w->kept = w->counts;
	r = km_method_store(w, pos, NULL, bytes, &placed);
	if (!r || placed) {
		p->stored = true;
		err = publish(w, p, pos + (r ? placed : bytes), placed);
		r = r ? r : err;
	}
	if (r) {
		w->counts = w->kept;
		km_piece_abandon(w, p);
	}
	return r;
}
