// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The walk of a pager over a run of pages: claim, ask the source, place, publish.
 *
 * UFFDIO_COPY is the way to place content wherever memory takes it: one call makes the page,
 * copies, maps and wakes, from the source's own memory if that is what it is. Storing through a
 * second mapping of the file and UFFDIO_CONTINUE costs twice as much; it remains for pages larger
 * than the buffer and for memory without UFFDIO_COPY.
 */
#include "fill/fill_internal.h"

#include <errno.h>

#include "base/uapi/mm.h"

#define LATER_SHIFT 21u /* larger pages are read in pieces, which a thread waits for */

/* Claimed pages of one walk, and how they are to be filled. */
struct walk {
	const struct km_feed *f;
	struct km_hands *h;
	const struct km_fill_way *way;
	struct km_watch *w;
	struct kvmem_region *r;
};

typedef int step_fn(struct km_place *p, enum km_page_state *ret_state);

static bool can_copy(const struct walk *k)
{
	return km_watch_can(k->w, _UFFDIO_COPY);
}

static void tell(const struct walk *k, uint64_t first, uint64_t count)
{
	if (k->way->placed && count)
		k->way->placed(k->way->arg, k->way->tag, k->w, first, count);
}

/* What could not be placed, by an error that the caller is told. */
static void end_failed(const struct walk *k, uint64_t first, uint64_t count, bool stored)
{
	if (!k->way->keep)
		km_pages_abandon(k->r, first, count, stored);
	else if (stored)
		km_pages_forget(k->r, first, count);
}

/*
 * Place all of [first, first + count), which are counted before anybody can see them. No claim is
 * left, but on an error those that are to be kept.
 */
static int place_all(const struct walk *k, uint64_t first, uint64_t count, const uint8_t *src,
		     step_fn *step)
{
	struct km_place p = {
		.watch = k->w, .first = first, .claimed = true, .quiet = k->way->demand
	};
	uint64_t end = first + count;
	enum km_page_state state;
	struct km_guard *g;
	int r = 0;

	km_count_own(k->way->pages, count);
	while (p.first < end) {
		p.count = end - p.first;
		p.src = src ? src + ((p.first - first) << k->w->shift) : NULL;
		g = km_guard_enter(k->r);
		r = step(&p, &state);
		if (r == -EFAULT && step == km_place_stored) {
			/* Punched out of the file since it was stored. */
			p.done = 1;
			state = KM_ZERO;
			r = 0;
		}
		if (r) {
			km_guard_leave(k->r, g);
			break;
		}
		km_pages_publish_leave(k->r, g, p.first, p.done, state, k->way->demand);
		p.first += p.done;
	}
	tell(k, first, p.first - first);
	if (!r)
		return 0;
	km_count_own(k->way->pages, -(end - p.first));
	end_failed(k, p.first, end - p.first, step == km_place_stored);
	return r;
}

/* ---- through the file ---- */

static int store_base(const struct walk *k, uint8_t **ret_base)
{
	return k->r->fd < 0 ? -EOPNOTSUPP : km_region_store(k->r, ret_base);
}

/* Content (NULL: zeros) into claimed pages of the file. */
static int store(const struct walk *k, uint64_t first, uint64_t count, const uint8_t *src)
{
	uint64_t pos = first << k->w->shift, bytes = count << k->w->shift;
	uint8_t *base = NULL;
	int r = store_base(k, &base);

	if (!r)
		r = km_store_write(k->r, base, pos, src, bytes);
	if (r != KM_STORE_REFUSED)
		return r;
	r = km_store_make(k->r, base, pos, bytes);
	return r ? r : km_store_copy(k->r, base, pos, src, bytes);
}

static int store_all(const struct walk *k, uint64_t first, uint64_t count, const uint8_t *src)
{
	int r = store(k, first, count, src);

	if (!r)
		return place_all(k, first, count, NULL, km_place_stored);
	end_failed(k, first, count, true);
	return r;
}

/* A page that is larger than the buffer, in pieces. */
static int store_large(const struct walk *k, uint64_t page)
{
	uint64_t bytes = 1ull << k->w->shift, n;
	uint8_t *base = NULL;
	int r = store_base(k, &base);

	if (!r)
		r = km_store_make(k->r, base, page << k->w->shift, bytes);
	for (uint64_t at = 0; !r && at < bytes; at += n) {
		n = km_min(bytes - at, k->h->buf_bytes);
		r = km_content_read(k->f, k->h, page, at, n, k->way->at_hand);
		if (!r)
			r = km_copy(base + (page << k->w->shift) + at, k->h->buf, n);
	}
	if (!r)
		return place_all(k, page, 1, NULL, km_place_stored);
	km_pages_abandon(k->r, page, 1, true);
	return r;
}

/* The same where there is no file: all of it in a buffer of its own. */
static int copy_large(const struct walk *k, uint64_t page)
{
	uint64_t bytes = 1ull << k->w->shift;
	struct km_hands large = *k->h;
	int r = -ENOMEM;

	large.buf = km_sys_alloc(bytes);
	large.buf_bytes = bytes;
	if (large.buf)
		r = km_content_read(k->f, &large, page, 0, bytes, k->way->at_hand);
	if (r)
		km_pages_give_up(k->r, page, 1);
	else
		r = place_all(k, page, 1, large.buf, km_place_claimed);
	km_sys_free(large.buf);
	return r;
}

/* ---- data and zeros ---- */

/*
 * The pause of a capture waits for what is being placed, and the copy would wait for a source that is in swap, or
 * behind a userfaultfd of its own. So that is waited for before. What cannot be read the copy tells.
 */
static void bring_in(const struct walk *k, const uint8_t *src, uint64_t bytes)
{
	uint64_t page = km_sys_page_size();
	uintptr_t from = (uintptr_t)src & ~(uintptr_t)(page - 1);
	uintptr_t end = ((uintptr_t)src + bytes + page - 1) & ~(uintptr_t)(page - 1);

	if (k->w->set->captures)
		km_sys_madvise((void *)from, end - from, KM_MADV_POPULATE_READ);
}

/* Some of the claimed pages, *count of them, or one failure for these. */
static int place_data(const struct walk *k, uint64_t first, uint64_t *count)
{
	const uint8_t *src = can_copy(k) ? km_content_direct(k->f, first, count) : NULL;
	uint64_t fit = k->h->buf_bytes >> k->w->shift;
	int r;

	if (k->f->source->kind == KM_SOURCE_ASYNC && k->way->at_hand) {
		km_pages_give_up(k->r, first, *count);
		return -EAGAIN;
	}
	if (k->f->source->kind == KM_SOURCE_ASYNC && k->way->later && k->w->shift <= LATER_SHIFT) {
		r = k->way->later(k->way->arg, k->way->tag, k->f, first, *count);
		if (r)
			km_pages_give_up(k->r, first, *count);
		return r;
	}

	if (src) {
		bring_in(k, src, *count << k->w->shift);
		return place_all(k, first, *count, src, km_place_claimed);
	}
	if (!fit) {
		*count = 1;
		return km_watch_is_remote(k->w) ? copy_large(k, first) : store_large(k, first);
	}
	*count = km_min(*count, fit);
	r = km_content_read(k->f, k->h, first, 0, *count << k->w->shift, k->way->at_hand);
	if (r) {
		km_pages_give_up(k->r, first, *count);
		return r;
	}
	if (can_copy(k))
		return place_all(k, first, *count, k->h->buf, km_place_claimed);
	return store_all(k, first, *count, k->h->buf);
}

/* Where nobody waits and nobody is expected soon, no memory is spent on zeros. */
static int place_zeros(const struct walk *k, uint64_t first, uint64_t count)
{
	int r;

	km_count_own(k->way->zero, count);
	if (k->way->zeros || km_pages_want_zeros(k->r, first, count)) {
		if (can_copy(k) || km_watch_can(k->w, _UFFDIO_ZEROPAGE))
			r = place_all(k, first, count, NULL, km_place_claimed);
		else
			r = store_all(k, first, count, NULL);
	} else {
		r = km_pages_clear(k->r, first, count);
		if (!r) {
			km_count_own(k->way->pages, count);
			km_pages_publish(k->r, first, count, KM_ZERO, false);
			tell(k, first, count);
		} else {
			km_pages_give_up(k->r, first, count);
		}
	}
	if (r)
		km_count_own(k->way->zero, -count);
	return r;
}

/* On error what was not filled is given up. */
static int fill_claimed(const struct walk *k, uint64_t first, uint64_t count)
{
	while (count) {
		uint64_t n = count;
		bool data;
		int r = km_content_look(k->f, k->h, first, &n, &data);

		if (r) {
			km_pages_give_up(k->r, first, count);
			return r;
		}
		r = data ? place_data(k, first, &n) : place_zeros(k, first, n);
		first += n;
		count -= n;
		if (r) {
			km_pages_give_up(k->r, first, count);
			return r;
		}
	}
	return 0;
}

/* ---- the walk ---- */

/* The file has them. What is mapped already, or gone, is let be: an access raises a fault. */
static void map_present(struct km_watch *w, uint64_t first, uint64_t count)
{
	struct km_place p = {
		.watch = w, .op = KM_PLACE_CONTINUE, .first = first, .present = true
	};

	for (uint64_t end = first + count; p.first < end; p.first += p.done ? p.done : 1) {
		p.count = end - p.first;
		if (km_place(&p) == KM_PARKED)
			break;
	}
}

/* No more than is read at once: a fault on a claimed page waits for this read, not for the next. */
static int64_t claim(const struct walk *k, uint64_t page, uint64_t max)
{
	uint64_t at_once = k->h->buf_bytes >> k->w->shift;

	if (k->f->source->kind != KM_SOURCE_MEMORY)
		max = km_min(max, at_once ? at_once : 1);
	if (k->way->heal)
		return km_pages_claim(k->r, page, max);
	return (int64_t)km_presence_claim(&k->r->presence, page, km_min(max, KM_CLAIM_PAGES));
}

int km_fill_run(const struct km_feed *f, struct km_hands *h, uint64_t first, uint64_t count,
		const struct km_fill_way *way)
{
	const struct walk k = { f, h, way, f->watch, f->watch->region };
	bool map = way->map && km_watch_can(k.w, _UFFDIO_CONTINUE);

	if (km_watch_ended(k.w))
		return -ESRCH; /* before the source is asked */
	for (uint64_t end = first + count, n; first < end; first += n) {
		enum km_page_state state;
		int64_t r;

		n = km_presence_run(&k.r->presence, first, end - first, &state);
		if (state == KM_ABSENT || (state == KM_POISONED && way->heal)) {
			r = claim(&k, first, n);
			n = r > 0 ? (uint64_t)r : 0;
			if (n)
				r = fill_claimed(&k, first, n);
			if (r)
				return (int)r;
		} else if (state == KM_PRESENT && map) {
			map_present(k.w, first, n);
		}
	}
	return 0;
}

/* ---- content that came unasked ---- */

static int place_given(const struct walk *k, uint64_t first, uint64_t count, const uint8_t *src)
{
	return can_copy(k) ? place_all(k, first, count, src, km_place_claimed)
			   : store_all(k, first, count, src);
}

int km_pages_given(struct km_watch *w, uint64_t first, uint64_t count, const uint8_t *src,
		   _Atomic uint64_t *ret_placed)
{
	const struct km_fill_way way = { .pages = ret_placed, .keep = true };
	const struct walk k = { .way = &way, .w = w, .r = w->region };

	return place_given(&k, first, count, src);
}

int64_t km_pages_put(struct km_watch *w, uint64_t first, uint64_t count, const uint8_t *src)
{
	_Atomic uint64_t pages = 0;
	const struct km_fill_way way = { .heal = true, .pages = &pages };
	const struct walk k = { .way = &way, .w = w, .r = w->region };
	int64_t err = 0;

	for (uint64_t end = first + count, n; first < end && !err; first += n) {
		enum km_page_state state;

		n = km_presence_run(&k.r->presence, first, end - first, &state);
		if (state == KM_ABSENT || state == KM_POISONED) {
			err = km_pages_claim(k.r, first, n);
			n = err > 0 ? (uint64_t)err : 0;
			if (n)
				err = place_given(&k, first, n, src);
		}
		src += n << w->shift;
	}
	return err && !pages ? err : (int64_t)pages;
}
