// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * From absent to present: claim, ask the source, place, publish, wake.
 *
 * UFFDIO_COPY is the way to place content wherever memory takes it: one call makes the page,
 * copies, maps and wakes, from the source's own memory if that is what it is. Storing through a
 * second mapping of the file and UFFDIO_CONTINUE costs twice as much; it remains for pages larger
 * than the buffer, for memory without UFFDIO_COPY, and for a page that somebody put into the file
 * unasked.
 */
#include "pager/pager_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>

#define BUSY_NS	   1000000u /* no fault for so long: the background may take long breaths */
#define BUSY_PAGES 16u

static void publish(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count,
		    enum km_page_state state, enum km_why why)
{
	if (!count)
		return;
	km_presence_publish(&p->region->presence, first, count, state);
	km_count_own(&w->counts.pages[why], count);
}

/*
 * Whoever waits for them faults again, and finds out what is the matter: another worker may have
 * read of their fault and left it to the claim. Not on demand: such a page is tried by itself or
 * poisoned next, which wakes them, and who faulted again before that would have `fail` asked again.
 */
static void give_up(struct km_paged *p, uint64_t first, uint64_t count, enum km_why why)
{
	if (!count)
		return;
	km_presence_abandon(&p->region->presence, first, count);
	if (why != KM_DEMAND)
		km_uffd_wake(p, first, count);
}

/* ---- what the source has ---- */

static int look_up(struct km_paged *p, uint64_t page, struct km_extent *ret)
{
	struct kvmem_extent e = KVMEM_EXTENT_INIT;
	uint64_t at = p->source_offset + (page << p->shift), unit = 1ull << p->shift, end;
	int r;

	*ret = (struct km_extent){ .paged = p, .first = page, .end = p->pages };
	if (at >= p->source->bytes)
		return 0;
	r = kvmem_source_extent(p->source, at, &e);
	if (r)
		return r;
	end = e.offset + e.bytes;
	ret->data = e.kind == KVMEM_EXTENT_DATA;
	if (end < p->source->bytes) /* otherwise zeros follow for ever, or data and then zeros */
		ret->end = page + ((end - at) >> p->shift);
	else if (ret->data)
		ret->end = page + ((end - at + unit - 1) >> p->shift);
	if (ret->end > page)
		return 0;
	ret->data = true; /* extents meet within the page */
	ret->end = page + 1;
	return 0;
}

static int extent_at(struct km_worker *w, struct km_paged *p, uint64_t page, uint64_t *count,
		     bool *ret_data)
{
	struct km_extent *e = &w->extent;
	int r = 0;

	if (e->paged != p || page < e->first || page >= e->end)
		r = look_up(p, page, e);
	if (r) {
		e->paged = NULL;
		return r;
	}
	*count = km_min(*count, e->end - page);
	*ret_data = e->data;
	return 0;
}

static int read_source(struct km_paged *p, uint64_t page, void *buf, uint64_t bytes)
{
	uint64_t at = p->source_offset + (page << p->shift), have = 0;
	int r = 0;

	if (at < p->source->bytes)
		have = km_min(bytes, p->source->bytes - at);
	if (have)
		r = kvmem_source_read(p->source, at, buf, have);
	memset((uint8_t *)buf + have, 0, bytes - have);
	return r;
}

/* ---- placing through the file ---- */

static uint8_t *store_at(struct km_paged *p, uint64_t page)
{
	uint8_t *base;

	if (p->region->fd < 0 || km_region_store(p->region, &base) || !base)
		return NULL;
	return base + (page << p->shift);
}

/*
 * Content is stored. Publish first: a fault read from here on finds its page present and is mapped,
 * and not dropped as somebody's claim just after that somebody's wake-up.
 */
static void map_stored(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count,
		       enum km_why why)
{
	uint64_t done;

	publish(w, p, first, count, KM_PRESENT, why);
	if (km_uffd_continue(p, first, count, &done))
		km_uffd_wake(p, first + done, count - done);
}

/* Half a store must not be taken for content by whoever reads the file. */
static void undo_store(struct km_paged *p, uint64_t first, uint64_t count)
{
	km_sys_fallocate(p->region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 p->region->fd_offset + (first << p->shift), count << p->shift);
}

static int store_data(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t *count,
		      enum km_why why)
{
	uint8_t *to = store_at(p, first);
	int r;

	if (!to)
		return -ENOMEM;
	if (*count << p->shift > w->buf_bytes)
		*count = km_min(*count, (w->buf_bytes >> p->shift) + 1);
	r = read_source(p, first, to, *count << p->shift);
	if (r) {
		undo_store(p, first, *count);
		return r;
	}
	map_stored(w, p, first, *count, why);
	return 0;
}

/* ---- placing by userfaultfd ---- */

int km_pager_store_page(struct km_paged *p, uint64_t page, const void *src)
{
	uint8_t *to = store_at(p, page);

	if (!to)
		return -ENOMEM;
	if (src)
		memcpy(to, src, 1ull << p->shift);
	else
		memset(to, 0, 1ull << p->shift);
	return 0;
}

/*
 * A claimed page exists in the kernel. In a file it is not mapped here, so the guest cannot know
 * it: the source's content replaces it. In anonymous memory it is mapped, and what is mapped stays.
 */
static int replace(struct km_worker *w, struct km_paged *p, uint64_t page, const void *src,
		   enum km_why why)
{
	int r;

	if (p->region->fd < 0) {
		publish(w, p, page, 1, KM_PRESENT, why);
		km_uffd_wake(p, page, 1);
		return 0;
	}
	r = km_pager_store_page(p, page, src);
	if (!r)
		map_stored(w, p, page, 1, why);
	return r;
}

/* Zeros where src is NULL. */
static int place(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count,
		 const uint8_t *src, enum km_why why)
{
	uint64_t done = 0, n;
	int r = 0;

	while (!r && done < count) {
		const uint8_t *from = src ? src + (done << p->shift) : NULL;

		if (from)
			r = km_uffd_copy(p, first + done, count - done, from, &n);
		else
			r = km_uffd_zero(p, first + done, count - done, &n);
		publish(w, p, first + done, n, KM_PRESENT, why);
		done += n;
		if (r == -ENOENT) { /* unmapped: nobody can miss what was there */
			publish(w, p, first + done, count - done, KM_ZERO, why);
			return 0;
		}
		if (r == -EEXIST) {
			r = replace(w, p, first + done, src ? src + (done << p->shift) : NULL, why);
			done += !r;
		}
	}
	if (r)
		give_up(p, first + done, count - done, why);
	return r;
}

static bool in_memory(const struct km_paged *p, uint64_t page, uint64_t *count)
{
	uint64_t at = p->source_offset + (page << p->shift), whole;

	if (p->source->kind != KM_SOURCE_MEMORY || at >= p->source->bytes)
		return false;
	whole = (p->source->bytes - at) >> p->shift;
	*count = whole ? km_min(*count, whole) : *count;
	return whole > 0;
}

/*
 * Content into *count claimed pages, or fewer. On error none of them is claimed any more: place()
 * may have published some.
 */
static int place_data(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t *count,
		      enum km_why why)
{
	const uint8_t *src = w->buf;
	int r;

	if (!km_can(p, _UFFDIO_COPY) ||
	    (1ull << p->shift > w->buf_bytes && p->source->kind != KM_SOURCE_MEMORY)) {
		r = store_data(w, p, first, count, why);
		if (r)
			give_up(p, first, *count, why);
		return r;
	}
	if (in_memory(p, first, count))
		return place(w, p, first, *count,
			     p->source->base + p->source_offset + (first << p->shift), why);
	*count = km_min(*count, w->buf_bytes >> p->shift);
	r = read_source(p, first, w->buf, *count << p->shift);
	if (r) {
		give_up(p, first, *count, why);
		return r;
	}
	return place(w, p, first, *count, src, why);
}

static int place_zero(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count,
		      enum km_why why)
{
	int r = 0;

	km_count_own(&w->counts.zero, count);
	if (why == KM_BACKGROUND) { /* nobody waits: spend no memory on it */
		publish(w, p, first, count, KM_ZERO, why);
		return 0;
	}
	if (km_can(p, _UFFDIO_ZEROPAGE))
		return place(w, p, first, count, NULL, why);
	for (; !r && count; first++, count--)
		r = replace(w, p, first, NULL, why);
	if (r)
		give_up(p, first - 1, count + 1, why);
	return r;
}

/* On error what was not filled is absent again. */
static int fill_claimed(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count,
			enum km_why why)
{
	while (count) {
		uint64_t n = count;
		bool data;
		int r = extent_at(w, p, first, &n, &data);

		if (r) {
			give_up(p, first, count, why);
			return r;
		}
		r = data ? place_data(w, p, first, &n, why) : place_zero(w, p, first, n, why);
		first += n;
		count -= n;
		if (r) {
			give_up(p, first, count, why);
			return r;
		}
	}
	return 0;
}

/* The file has them. What is mapped already, or gone, is not our matter: a fault will tell. */
static void map_unasked(struct km_paged *p, uint64_t first, uint64_t count)
{
	uint64_t end = first + count, done;

	for (; first < end; first++) {
		km_uffd_continue(p, first, end - first, &done);
		first += done;
	}
}

int km_pager_fill(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count,
		  enum km_why why)
{
	uint64_t end = first + count, n;
	enum km_page_state state;
	int r;

	while (first < end) {
		n = km_presence_run(&p->region->presence, first, end - first, &state);
		if (state == KM_ABSENT) {
			n = km_presence_claim(&p->region->presence, first, n);
			r = fill_claimed(w, p, first, n, why);
			if (r)
				return r;
		} else if (state == KM_PRESENT && p->in_file &&
			   (why == KM_PREFETCH || why == KM_BACKGROUND)) {
			map_unasked(p, first, n);
		}
		first += n;
	}
	return 0;
}

/* ---- failure ---- */

static bool ask_again(struct km_worker *w, struct km_paged *p, uint64_t page, int err,
		      uint32_t attempt)
{
	const struct kvmem_pager_opts *o = &w->pager->opts;
	struct kvmem_fail fail = {
		.size = sizeof(fail),
		.error = err,
		.region = p->region,
		.offset = page << p->shift,
		.bytes = 1ull << p->shift,
		.attempt = attempt,
	};

	return o->fail && o->fail(o->arg, &fail) == KVMEM_FAIL_RETRY;
}

int km_pager_fill_or_fail(struct km_worker *w, struct km_paged *p, uint64_t page)
{
	uint32_t attempt = 0;
	bool stopping;
	int r;

	do {
		r = km_pager_fill(w, p, page, 1, KM_DEMAND);
		if (!r)
			return 0;
		stopping = atomic_load(&w->pager->stopping);
	} while (!stopping && ask_again(w, p, page, r, ++attempt));
	km_pager_set_error(w->pager, r);
	if (stopping) /* what is handed back is absent: `fail` has not given it up */
		return r;
	if (!km_presence_claim(&p->region->presence, page, 1))
		return 0; /* somebody is trying again, and tells who waits */
	if (km_uffd_poison(p, page) > 0)
		km_count_own(&w->counts.poisoned, 1);
	km_presence_abandon(&p->region->presence, page, 1);
	return r;
}

/* ---- mapping what has content ---- */

/* A zero page where the kernel has none: -EEXIST when it has one after all. */
static int zero_page(struct km_paged *p, uint64_t page)
{
	const volatile uint8_t *at;
	uint64_t done;

	if (km_can(p, _UFFDIO_ZEROPAGE))
		return km_uffd_zero(p, page, 1, &done);
	at = store_at(p, page);
	if (!at)
		return -ENOMEM;
	(void)*at; /* a read makes it */
	return -EEXIST;
}

int km_pager_map_page(struct km_paged *p, uint64_t page)
{
	bool file = p->region->fd >= 0;
	uint64_t done;
	int r = -EAGAIN;

	for (unsigned int tries = 0; tries < 8; tries++) {
		r = file ? km_uffd_continue(p, page, 1, &done) : -EFAULT;
		if (r == -EFAULT) { /* not there any more: discarded */
			r = zero_page(p, page);
			if (r == -EEXIST && file)
				continue;
		}
		break;
	}
	if (r) {
		km_uffd_wake(p, page, 1);
		if (r == -EEXIST || r == -ENOENT || r == -EFAULT)
			r = 0; /* mapped, unmapped, or changing still: a new fault will tell */
	}
	return r;
}

static int map_many(struct km_paged *p, uint64_t first, uint64_t count, bool zero,
		    uint64_t *ret_done)
{
	*ret_done = 0;
	if (zero && km_can(p, _UFFDIO_ZEROPAGE))
		return km_uffd_zero(p, first, count, ret_done);
	if (zero || p->region->fd < 0)
		return -EEXIST;
	return km_uffd_continue(p, first, count, ret_done);
}

int km_pager_map(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count, bool zero,
		 unsigned int fixes)
{
	int r = 0, err = 0;
	uint64_t n;

	while (count) {
		r = map_many(p, first, count, zero, &n);
		if (r && !fixes--)
			break;
		if (r) {
			r = km_pager_map_page(p, first + n++);
			if (r && !err)
				err = r;
		}
		if (zero) {
			km_presence_turn(&p->region->presence, first, n, KM_ZERO, KM_PRESENT);
			km_count_own(&w->counts.zero, n);
		}
		first += n;
		count -= n;
	}
	return err;
}

/* ---- work that nobody waits for ---- */

static bool take_prefetch(struct kvmem_pager *pager, struct km_shard *s, struct km_window *ret)
{
	struct km_prefetch *f, *spent = NULL;

	if (!atomic_load_explicit(&s->prefetch_count, memory_order_acquire))
		return false;
	pthread_mutex_lock(&pager->lock);
	f = s->prefetch;
	if (f) {
		*ret = f->window;
		ret->count = km_min(ret->count, ret->paged->slice);
		f->window.first += ret->count;
		f->window.count -= ret->count;
	}
	if (f && !f->window.count) {
		spent = f;
		s->prefetch = f->next;
		if (!s->prefetch)
			s->prefetch_tail = &s->prefetch;
		atomic_fetch_sub_explicit(&s->prefetch_count, 1, memory_order_release);
	}
	pthread_mutex_unlock(&pager->lock);
	km_sys_free(spent);
	return f != NULL;
}

bool km_pager_prefetch_step(struct km_worker *w)
{
	struct km_window take;

	for (unsigned int i = 0; i < w->shard_count; i++)
		if (take_prefetch(w->pager, &w->shards[i], &take)) {
			km_pager_fill(w, take.paged, take.first, take.count, KM_PREFETCH);
			return true;
		}
	return false;
}

static uint64_t slices_per_stripe(const struct km_paged *p)
{
	return (p->stripe + p->slice - 1) / p->slice;
}

uint64_t km_pager_slices(const struct km_paged *p, unsigned int shard)
{
	uint64_t stripes = (p->pages + p->stripe - 1) / p->stripe, shards = p->pager->shard_count;

	return stripes > shard ? (stripes - shard + shards - 1) / shards * slices_per_stripe(p) : 0;
}

/* The n-th slice of a shard; it is empty where the last stripe is not a whole one. */
static struct km_window slice_at(const struct kvmem_pager *pager, unsigned int shard, uint64_t n)
{
	struct km_paged *p = pager->paged[0];
	uint64_t in_stripe, low, high;

	for (unsigned int i = 1; n >= km_pager_slices(p, shard); i++) {
		n -= km_pager_slices(p, shard);
		p = pager->paged[i];
	}
	in_stripe = n % slices_per_stripe(p) * p->slice;
	low = (shard + n / slices_per_stripe(p) * pager->shard_count) * p->stripe;
	high = km_min(low + km_min(in_stripe + p->slice, p->stripe), p->pages);
	low += in_stripe;
	return (struct km_window){ .paged = p, .first = low, .count = low < high ? high - low : 0 };
}

/* The next slice of the background becomes this worker's. */
static bool next_slice(struct km_worker *w)
{
	for (unsigned int i = 0; i < w->shard_count; i++) {
		struct km_shard *s = &w->shards[i];
		unsigned int shard = (unsigned int)(s - w->pager->shards);

		while (atomic_load_explicit(&s->cursor, memory_order_relaxed) < s->slices) {
			uint64_t n = atomic_fetch_add_explicit(&s->cursor, 1, memory_order_relaxed);

			if (n >= s->slices)
				break;
			w->slice = slice_at(w->pager, shard, n);
			if (w->slice.count)
				return true;
		}
	}
	return false;
}

/* A failure costs only the pages that fail: they stay absent, and an access will ask again. */
static int fill_one_by_one(struct km_worker *w, const struct km_window *s)
{
	int r, err = 0;

	for (uint64_t i = 0; i < s->count; i++) {
		r = km_pager_fill(w, s->paged, s->first + i, 1, KM_BACKGROUND);
		if (r && !err)
			err = r;
	}
	return err;
}

bool km_pager_background_step(struct km_worker *w)
{
	struct km_window s;
	int r;

	if (!atomic_load_explicit(&w->pager->background, memory_order_relaxed))
		return false;
	if (!w->slice.count && !next_slice(w))
		return false;
	s = w->slice;
	if (s.count > BUSY_PAGES && km_sys_now_ns() - w->demand_ns < BUSY_NS)
		s.count = BUSY_PAGES;
	w->slice.first += s.count;
	w->slice.count -= s.count;
	if (km_pager_fill(w, s.paged, s.first, s.count, KM_BACKGROUND)) {
		r = fill_one_by_one(w, &s);
		if (r)
			km_pager_set_error(w->pager, r);
	}
	return true;
}

/*
 * A page of a window that could not be filled. A worker may have claimed it, and give it up again:
 * only a page that is not absent after that is done.
 */
static int fill_page_or_fail(struct km_worker *w, struct km_paged *p, uint64_t page)
{
	const struct km_presence *map = &p->region->presence;
	int r;

	for (;;) {
		km_presence_wait((struct km_presence *)(uintptr_t)map, page, 1, UINT64_MAX);
		if (km_presence_get(map, page) != KM_ABSENT)
			return 0;
		r = km_pager_fill_or_fail(w, p, page);
		if (r)
			return r;
	}
}

static int fill_rest_of(struct km_worker *w, struct km_paged *p)
{
	enum km_page_state state;
	uint64_t page = 0, n;
	int r, err = 0;

	while (page < p->pages) {
		n = km_presence_run(&p->region->presence, page, p->pages - page, &state);
		if (state == KM_CLAIMED) {
			km_presence_wait((struct km_presence *)(uintptr_t)&p->region->presence, page, n, UINT64_MAX);
			continue;
		}
		if (state == KM_ABSENT) {
			n = km_min(n, p->slice);
			if (!km_pager_fill(w, p, page, n, KM_BACKGROUND))
				continue; /* it leaves out what others have claimed: look again */
			for (uint64_t i = 0; i < n; i++) {
				r = fill_page_or_fail(w, p, page + i);
				err = err ? err : r;
			}
		}
		page += n;
	}
	return err;
}

int km_pager_fill_rest(struct km_worker *w)
{
	int r, err = 0;

	for (unsigned int i = 0; i < w->pager->paged_count; i++) {
		r = fill_rest_of(w, w->pager->paged[i]);
		err = err ? err : r;
	}
	return err;
}
