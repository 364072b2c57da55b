// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Work that nobody waits for: prefetch, and the background fill in address order. It is done in
 * small pieces; what fails is left absent, and tried again in a later pass over everything.
 */
#include "pager/pager_internal.h"

#include <errno.h>

#define BUSY_NS	       1000000u /* no fault for so long: it may take long breaths */
#define BUSY_PAGES     16u
#define FIRST_DELAY_NS 100000000ull /* before what failed is tried again */
#define MOST_DELAY_NS  5000000000ull

/* ---- prefetch: the list ---- */

void km_prefetch_free(struct km_prefetch *f)
{
	while (f) {
		struct km_prefetch *next = f->next;

		km_sys_free(f);
		f = next;
	}
}

static struct km_paged *paged_of(const struct kvmem_pager *pager, const struct kvmem_region *region)
{
	struct km_paged *p = km_paged_first(pager);

	while (p && p->watch.region != region)
		p = km_paged_next(p);
	return p;
}

static int check_run(const struct kvmem_pager *pager, const struct kvmem_run *run)
{
	if (!paged_of(pager, run->region))
		return km_fail(ENOENT, "kvmem_pager_prefetch: the region is not of this pager");
	return km_range_check(run->offset, run->bytes, run->region->bytes, "kvmem_pager_prefetch");
}

/* A run in pieces of one shard each, onto a list. */
static int split(struct km_paged *p, const struct kvmem_run *run, struct km_prefetch ***tail)
{
	unsigned int shift = p->watch.shift;
	uint64_t page = run->offset >> shift;
	uint64_t end = (run->offset + run->bytes + (1ull << shift) - 1) >> shift, n;

	for (; page < end; page += n) {
		struct km_prefetch *f = km_sys_alloc(sizeof(*f));

		if (!f)
			return km_fail(ENOMEM, "kvmem_pager_prefetch: no memory");
		n = km_watch_in_stripe(&p->watch, page, end - page);
		f->window = (struct km_window){ .paged = p, .first = page, .count = n };
		**tail = f;
		*tail = &f->next;
	}
	return 0;
}

/* Each to its shard. */
static void hand_out(struct kvmem_pager *pager, struct km_prefetch *list)
{
	while (list) {
		struct km_prefetch *f = list;
		const struct km_window *w = &f->window;
		struct km_backlog *b = &pager->backlogs[km_watch_uffd(&w->paged->watch, w->first)];

		list = f->next;
		f->next = NULL;
		*b->prefetch_tail = f;
		b->prefetch_tail = &f->next;
		atomic_fetch_add_explicit(&b->prefetch_count, 1, memory_order_release);
	}
}

/* All of them or none. With the pager's lock held. */
static int queue(struct kvmem_pager *pager, const struct kvmem_run *runs, size_t count)
{
	struct km_prefetch *list = NULL, **tail = &list;
	int r = 0;

	for (size_t i = 0; !r && i < count; i++)
		r = split(paged_of(pager, runs[i].region), &runs[i], &tail);
	if (r)
		km_prefetch_free(list);
	else
		hand_out(pager, list);
	return r;
}

int kvmem_pager_prefetch(struct kvmem_pager *pager, const struct kvmem_run *runs, size_t count)
{
	int r = 0;

	if (!pager || (!runs && count))
		return km_fail(EINVAL, "kvmem_pager_prefetch: %s is NULL",
			       pager ? "runs" : "pager");
	pthread_mutex_lock(&pager->lock);
	if (pager->released)
		r = km_fail(EINVAL, "kvmem_pager_prefetch: the pager was stopped");
	for (size_t i = 0; !r && i < count; i++)
		r = check_run(pager, &runs[i]);
	if (!r)
		r = queue(pager, runs, count);
	pthread_mutex_unlock(&pager->lock);
	if (atomic_load(&pager->state) == KM_PAGER_RUNNING)
		km_pager_kick_all(pager);
	return r;
}

/* ---- a piece of work ---- */

/* How many pages of a shard at once: short breaths while faults come. */
static uint64_t breath(const struct km_backlog *b, uint64_t pages)
{
	uint64_t last = atomic_load_explicit(&b->demand_ns, memory_order_relaxed);

	if (pages > BUSY_PAGES && km_sys_now_ns() - last < BUSY_NS)
		return BUSY_PAGES;
	return pages;
}

/* A failure costs only the pages that fail. Returns how many these are. */
static uint64_t fill_piece(struct km_worker *w, const struct km_window *s, enum km_why why)
{
	uint32_t because = why == KM_PREFETCH ? KVMEM_FAIL_PREFETCH : KVMEM_FAIL_BACKGROUND;
	struct km_fill_way way = km_way(w, why);
	uint64_t failed = 0;

	way.map = s->paged->in_file;
	if (!km_fill_run(&s->paged->feed, &w->hands, s->first, s->count, &way))
		return 0;
	for (uint64_t i = 0; i < s->count && !atomic_load(&w->pager->stopping); i++)
		if (km_fill_or_fail(w, s->paged, s->first + i, because, &way))
			failed++;
	return failed;
}

static bool take_prefetch(struct kvmem_pager *pager, struct km_backlog *b, struct km_window *ret)
{
	struct km_prefetch *f, *spent = NULL;

	if (!atomic_load_explicit(&b->prefetch_count, memory_order_acquire))
		return false;
	pthread_mutex_lock(&pager->lock);
	f = b->prefetch;
	if (f) {
		*ret = f->window;
		ret->count = breath(b, km_min(ret->count, ret->paged->slice));
		f->window.first += ret->count;
		f->window.count -= ret->count;
	}
	if (f && !f->window.count) {
		spent = f;
		b->prefetch = f->next;
		if (!b->prefetch)
			b->prefetch_tail = &b->prefetch;
		atomic_fetch_sub_explicit(&b->prefetch_count, 1, memory_order_release);
	}
	pthread_mutex_unlock(&pager->lock);
	km_sys_free(spent);
	return f != NULL;
}

bool km_prefetch_step(struct km_worker *w)
{
	struct km_window take;

	for (unsigned int i = 0; i < w->shard_count; i++)
		if (take_prefetch(w->pager, &w->pager->backlogs[w->first_shard + i], &take)) {
			fill_piece(w, &take, KM_PREFETCH);
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
	uint64_t stripes = (p->watch.pages + p->watch.stripe - 1) / p->watch.stripe;
	uint64_t shards = p->watch.set->count, first = first_stripe(p, shard);

	return stripes > first ? (stripes - first + shards - 1) / shards * slices_per_stripe(p) : 0;
}

/* The n-th slice of a shard; it is empty where the last stripe is not a whole one. */
static struct km_window slice_at(const struct kvmem_pager *pager, unsigned int shard, uint64_t n)
{
	struct km_paged *p = km_paged_first(pager);
	uint64_t in_stripe, low, high;

	for (; n >= km_paged_slices(p, shard); p = km_paged_next(p))
		n -= km_paged_slices(p, shard);
	in_stripe = n % slices_per_stripe(p) * p->slice;
	low = (first_stripe(p, shard) + n / slices_per_stripe(p) * pager->set.count) *
	      p->watch.stripe;
	high = km_min(low + km_min(in_stripe + p->slice, p->watch.stripe), p->watch.pages);
	low += in_stripe;
	return (struct km_window){ .paged = p, .first = low, .count = low < high ? high - low : 0 };
}

/* ---- the background: passes ---- */

/* The last slice of a pass is done. Where pages failed, another pass comes, later. */
static void end_pass(struct kvmem_pager *pager, struct km_backlog *b)
{
	bool stuck;

	pthread_mutex_lock(&pager->lock);
	if (atomic_load(&b->failed) && !atomic_load(&b->busy) && !atomic_load(&b->retry_ns) &&
	    atomic_load(&b->cursor) >= b->slices) {
		stuck = !atomic_load(&b->filled);
		b->delay_ns = stuck && b->delay_ns ? km_min(b->delay_ns * 2, MOST_DELAY_NS)
						   : FIRST_DELAY_NS;
		atomic_store(&b->stuck, stuck);
		atomic_store(&b->retry_ns, km_sys_now_ns() + b->delay_ns);
		pthread_cond_broadcast(&pager->changed);
	}
	pthread_mutex_unlock(&pager->lock);
}

/* Whoever is the last to be busy with a shard looks whether that was the end of a pass: also who
 * only found that there is no slice left, for the one who did the last may have gone before. */
static void give_back(struct kvmem_pager *pager, struct km_backlog *b)
{
	if (atomic_fetch_sub(&b->busy, 1) == 1 && atomic_load(&b->failed))
		end_pass(pager, b);
}

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
	give_back(w->pager, b);
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

	s.count = breath(b, s.count);
	w->slice.first += s.count;
	w->slice.count -= s.count;
	failed = fill_piece(w, &s, KM_BACKGROUND);
	if (failed)
		atomic_fetch_add(&b->failed, failed);
	if (atomic_load_explicit(pages, memory_order_relaxed) != before)
		atomic_fetch_add(&b->filled, 1);
	if (!w->slice.count)
		give_back(w->pager, b);
}

bool km_background_step(struct km_worker *w)
{
	if (!atomic_load_explicit(&w->pager->background, memory_order_relaxed))
		return false;
	if (w->slice.count) {
		const struct km_paged *p = w->slice.paged;

		fill_slice_piece(w, &w->pager->backlogs[km_watch_uffd(&p->watch, w->slice.first)]);
		return true;
	}
	for (unsigned int i = 0; i < w->shard_count; i++) {
		struct km_backlog *b = &w->pager->backlogs[w->first_shard + i];

		begin_pass_if_due(w->pager, b);
		if (!next_slice(w, w->first_shard + i))
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

	if (background && w->slice.count)
		return true;
	for (unsigned int i = 0; i < w->shard_count; i++) {
		struct km_backlog *b = &w->pager->backlogs[w->first_shard + i];

		if (atomic_load(&b->prefetch_count) ||
		    (background && atomic_load(&b->cursor) < b->slices))
			return true;
	}
	return false;
}

uint64_t km_backlog_retry_ns(const struct km_worker *w)
{
	uint64_t soonest = UINT64_MAX, due;

	for (unsigned int i = 0; i < w->shard_count; i++) {
		due = atomic_load(&w->pager->backlogs[w->first_shard + i].retry_ns);
		if (due)
			soonest = km_min(soonest, due);
	}
	return soonest;
}

void km_backlog_begin(struct kvmem_pager *pager)
{
	pthread_mutex_lock(&pager->lock);
	for (unsigned int i = 0; i < pager->set.count; i++) {
		struct km_backlog *b = &pager->backlogs[i];

		atomic_store(&b->cursor, 0);
		atomic_store(&b->busy, 0);
		atomic_store(&b->failed, 0);
		atomic_store(&b->filled, 0);
		atomic_store(&b->retry_ns, 0);
		atomic_store(&b->stuck, false);
		b->delay_ns = 0;
		b->slices = 0;
		for (struct km_paged *p = km_paged_first(pager); p; p = km_paged_next(p))
			b->slices += km_paged_slices(p, i);
	}
	pthread_mutex_unlock(&pager->lock);
}
