// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a source has for the pages of a region. What lies beyond the source's end is zero. */
#include "fill/fill_internal.h"

#include <errno.h>
#include <string.h>

static uint64_t position(const struct km_feed *f, uint64_t page)
{
	return f->source_offset + (page << f->watch->shift);
}

/* The source may call functions of the VMM's: what waits for this thread is refused meanwhile. */
static void enter(struct km_callback *cb, const struct km_feed *f)
{
	km_callback_enter(cb, "kvmem_source_ops.read or .extent", f->watch->region, f->owner);
}

enum km_haste km_feed_haste(const struct km_feed *f)
{
	switch (f->source->kind) {
	case KM_SOURCE_MEMORY:
		return KM_AT_HAND;
	case KM_SOURCE_ASYNC:
		return KM_SLOW;
	case KM_SOURCE_CALLBACK:
		return f->source->ops.flags & KVMEM_SOURCE_CHEAP ? KM_AT_HAND : KM_SLOW;
	default:
		/* Only files in memory have seals. */
		return km_sys_fcntl_seals(f->source->fd) >= 0 ? KM_AT_HAND : KM_PERHAPS;
	}
}

static int look_up(const struct km_feed *f, struct km_hands *h, uint64_t page, uint64_t count)
{
	struct kvmem_extent e = KVMEM_EXTENT_INIT;
	unsigned int shift = f->watch->shift;
	uint64_t at = position(f, page), end;
	struct km_callback cb;
	int r;

	h->feed = f;
	h->first = page;
	h->end = km_watch_pages(f->watch);
	h->data = h->ragged = false;
	if (at >= f->source->bytes)
		return 0;
	enter(&cb, f);
	r = km_source_run(f->source, at, count << shift, &e);
	km_callback_leave(&cb);
	if (r)
		return r;
	end = e.offset + e.bytes;
	h->data = e.kind == KVMEM_EXTENT_DATA;
	if (end < f->source->bytes) /* otherwise zeros follow for ever, or data and then zeros */
		h->end = page + ((end - at) >> shift);
	else if (h->data)
		h->end = page + ((end - at + (1ull << shift) - 1) >> shift);
	if (h->end > page)
		return 0;
	h->data = h->ragged = true;
	h->end = page + 1;
	return 0;
}

int km_content_look(const struct km_feed *f, struct km_hands *h, uint64_t page, uint64_t *count,
		    bool *ret_data)
{
	int r = 0;

	if (h->feed != f || page < h->first || page >= h->end)
		r = look_up(f, h, page, *count);
	if (r) {
		h->feed = NULL;
		return r;
	}
	*count = km_min(*count, h->end - page);
	*ret_data = h->data;
	return 0;
}

const uint8_t *km_content_direct(const struct km_feed *f, uint64_t page, uint64_t *count)
{
	uint64_t at = position(f, page), whole;

	if (f->source->kind != KM_SOURCE_MEMORY || at >= f->source->bytes)
		return NULL;
	whole = (f->source->bytes - at) >> f->watch->shift;
	if (!whole)
		return NULL;
	*count = km_min(*count, whole);
	return f->source->base + at;
}

static int read_at_hand(const struct km_feed *f, uint64_t at, void *buf, uint64_t bytes)
{
	int64_t n = km_sys_pread_nowait(f->source->fd, buf, bytes, f->source->offset + at);

	return n == (int64_t)bytes ? 0 : -EAGAIN;
}

static int read_source(const struct km_feed *f, const struct km_hands *h, uint64_t at, void *buf,
		       uint64_t bytes)
{
	struct km_callback cb;
	int r;

	enter(&cb, f);
	r = h->ragged ? kvmem_source_read(f->source, at, buf, bytes)
		      : km_source_read(f->source, at, buf, bytes);
	km_callback_leave(&cb);
	return r;
}

int km_content_read(const struct km_feed *f, struct km_hands *h, uint64_t page, uint64_t at,
		    uint64_t bytes, bool at_hand)
{
	uint64_t from = position(f, page) + at, have = 0;
	int r = 0;

	if (from < f->source->bytes)
		have = km_min(bytes, f->source->bytes - from);
	if (have && at_hand && km_feed_haste(f) != KM_AT_HAND)
		r = read_at_hand(f, from, h->buf, have);
	else if (have)
		r = read_source(f, h, from, h->buf, have);
	memset(h->buf + have, 0, bytes - have);
	return r;
}
