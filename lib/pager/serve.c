// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The fault path: read a batch of events, apply what was removed, sort the faults, serve each run
 * of neighbours with one fill, and put off what nobody waits for (fault-around) until no fault
 * waits.
 */
#include "pager/pager_internal.h"

#include <errno.h>

#define AROUND_FIXES 8u
#define GAP_MAX_NS   1000000u

struct km_paged *km_paged_at(struct kvmem_pager *pager, uint64_t addr)
{
	for (unsigned int i = 0; i < pager->paged_count; i++) {
		struct km_paged *p = pager->paged[i];

		if (addr - p->addr < p->pages << p->shift)
			return p;
	}
	return NULL;
}

/* ---- removed ranges ---- */

/*
 * What was absent is zero now. What was present needs no mark: the next fault tells whether the
 * kernel still has the page (madvise(MADV_DONTNEED) of a file mapping leaves it in the file) or
 * not.
 */
static void removed_in(struct km_paged *p, uint64_t start, uint64_t end)
{
	struct km_presence *map = &p->region->presence;
	uint64_t unit = 1ull << p->shift, page = (start - p->addr + unit - 1) >> p->shift;
	uint64_t last = (end - p->addr) >> p->shift, n;
	enum km_page_state state;

	for (; page < last; page += n) {
		n = km_presence_run(map, page, last - page, &state);
		if (state == KM_ABSENT) {
			n = km_presence_claim(map, page, n);
			km_presence_publish(map, page, n, KM_ZERO);
		}
	}
}

void km_serve_removed(struct kvmem_pager *pager, uint64_t start, uint64_t end)
{
	for (unsigned int i = 0; i < pager->paged_count; i++) {
		struct km_paged *p = pager->paged[i];
		uint64_t p_end = p->addr + (p->pages << p->shift);
		uint64_t from = start > p->addr ? start : p->addr, to = km_min(end, p_end);

		if (from < to)
			removed_in(p, from, to);
	}
}

/* ---- fault-around ---- */

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

static struct km_stream *find_stream(struct km_worker *w, const struct km_paged *p, uint64_t page,
				     enum place *ret_place)
{
	struct km_stream *oldest = &w->streams[0];

	for (unsigned int i = 0; i < KM_STREAMS; i++) {
		struct km_stream *s = &w->streams[i];

		*ret_place = place_of(s, p, page);
		if (*ret_place != APART)
			return s;
		if (s->used < oldest->used)
			oldest = s;
	}
	return oldest;
}

/*
 * The pages to bring in with a fault: true when it continues a sequential access, whose windows
 * double; else the aligned block about it, or nothing when that is on its way already. The window
 * lies within one stripe.
 */
static bool plan_window(struct km_worker *w, struct km_paged *p, uint64_t page,
			struct km_window *ret)
{
	uint64_t first = page & ~(p->window - 1), count = p->window, low, high;
	enum place place;
	struct km_stream *s = find_stream(w, p, page, &place);

	s->used = ++w->tick;
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
	low = page - page % p->stripe;
	high = km_min(low + p->stripe, p->pages);
	ret->first = first > low ? first : low;
	ret->count = km_min(first + count, high) - ret->first;
	s->paged = p;
	s->first = ret->first;
	s->end = ret->first + ret->count;
	s->count = count;
	return place != APART;
}

static void put_off_around(struct km_worker *w, const struct km_window *win)
{
	unsigned int at;

	if (w->around_count == KM_AROUNDS) { /* the oldest window is the least likely to help */
		w->around_first = (w->around_first + 1) % KM_AROUNDS;
		w->around_count--;
	}
	at = (w->around_first + w->around_count++) % KM_AROUNDS;
	w->arounds[at] = *win;
}

static void map_around(struct km_worker *w, const struct km_window *win)
{
	struct km_presence *map = &win->paged->region->presence;
	uint64_t page = win->first, end = win->first + win->count, n;
	enum km_page_state state;

	for (; page < end; page += n) {
		n = km_presence_run(map, page, end - page, &state);
		if (state == win->kind)
			km_pager_map(w, win->paged, page, n, state == KM_ZERO, AROUND_FIXES);
	}
}

bool km_serve_around(struct km_worker *w)
{
	struct km_window *win = &w->arounds[w->around_first];

	if (!w->around_count)
		return false;
	w->around_first = (w->around_first + 1) % KM_AROUNDS;
	w->around_count--;
	if (win->kind == KM_ABSENT)
		km_pager_fill(w, win->paged, win->first, win->count, KM_AROUND);
	else
		map_around(w, win);
	return true;
}

/* ---- faults ---- */

/* All at once for a sequential access; otherwise the page that is waited for, the rest later. */
static void serve_absent(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count,
			 struct km_window *win, bool ordered)
{
	if (ordered) {
		_Atomic uint64_t *pages = w->counts.pages;
		uint64_t asked = km_min(count, win->first + win->count - first),
			 filled = pages[KM_AROUND];

		w->last = *win;
		if (!km_pager_fill(w, p, win->first, win->count, KM_AROUND)) {
			/* Others may have filled some of it meanwhile. */
			asked = km_min(asked, pages[KM_AROUND] - filled);
			km_count_own(&pages[KM_DEMAND], asked);
			km_count_own(&pages[KM_AROUND], -asked);
		}
	}
	if (count > 1 && !km_pager_fill(w, p, first, count, KM_DEMAND))
		return;
	for (; count; first++, count--)
		if (km_presence_get(&p->region->presence, first) == KM_ABSENT)
			km_pager_fill_or_fail(w, p, first);
}

/*
 * The kernel cannot bring back pages that had content: no memory, a lost swap device. Some of them
 * it could: those stay, also where poisoning is to take access rights away.
 */
static void lost(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count, int err)
{
	km_pager_set_error(w->pager, err);
	for (; count; first++, count--)
		if (km_pager_map_page(p, first) && km_uffd_poison(p, first) > 0)
			km_count_own(&w->counts.poisoned, 1);
}

static void serve_run(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count,
		      enum km_page_state state, bool stale)
{
	struct km_window win = { .paged = p, .first = first, .count = count, .kind = state };
	bool around = p->window_max > 1 && !stale, ordered = false;
	int r = 0;

	if (around)
		ordered = plan_window(w, p, first, &win);
	if (state == KM_ABSENT)
		serve_absent(w, p, first, count, &win, ordered);
	else
		r = km_pager_map(w, p, first, count, state == KM_ZERO, (unsigned int)count);
	if (r)
		lost(w, p, first, count, r);
	if (ordered && state != KM_ABSENT)
		map_around(w, &win);
	if (around && !ordered && win.count > count)
		put_off_around(w, &win);
}

/* Sorted by region and page; batches are short, and mostly in order when they are not. */
static void sort_faults(struct km_fault *f, unsigned int count)
{
	for (unsigned int i = 1; i < count; i++) {
		struct km_fault x = f[i];
		unsigned int at = i;

		for (; at && (f[at - 1].paged->addr > x.paged->addr ||
			      (f[at - 1].paged == x.paged && f[at - 1].page > x.page));
		     at--)
			f[at] = f[at - 1];
		f[at] = x;
	}
}

/* Pages in a row that the faults from i on wait for. */
static uint64_t neighbours(const struct km_worker *w, unsigned int i)
{
	const struct km_fault *f = &w->faults[i];
	uint64_t last = f->page;

	for (i++; i < w->fault_count; i++) {
		const struct km_fault *g = &w->faults[i];

		if (g->paged != f->paged || g->page > last + 1)
			break;
		last = g->page;
	}
	return last - f->page + 1;
}

static bool filled_in_batch(const struct km_worker *w, const struct km_fault *f)
{
	return w->last.paged == f->paged && f->page - w->last.first < w->last.count;
}

static unsigned int bucket(uint64_t ns)
{
	unsigned int b = ns ? 63u - (unsigned int)__builtin_clzll(ns) : 0;

	return b < KVMEM_HIST_BUCKETS ? b : KVMEM_HIST_BUCKETS - 1;
}

/*
 * Faults [from, to) were served. Put off those whose page another thread has claimed, or published
 * as zero without mapping it, in the meantime: its wake-up may have come before our fault.
 */
static unsigned int settle_accounts(struct km_worker *w, unsigned int from, unsigned int to,
				    unsigned int kept)
{
	uint64_t now = km_sys_now_ns();

	for (unsigned int i = from; i < to; i++) {
		struct km_fault *f = &w->faults[i];
		enum km_page_state s = km_presence_get(&f->paged->region->presence, f->page);

		if (s == KM_CLAIMED || s == KM_ZERO)
			w->faults[kept++] = *f;
		else
			km_count_own(&w->counts.service_ns[bucket(now - f->read_ns)], 1);
	}
	return kept;
}

static void serve_faults(struct km_worker *w)
{
	unsigned int i = 0, next, kept = 0;

	sort_faults(w->faults, w->fault_count);
	w->last.count = 0;
	while (i < w->fault_count) {
		struct km_fault *f = &w->faults[i];
		struct km_paged *p = f->paged;
		uint64_t first = f->page, n;
		enum km_page_state state;
		bool stale;

		n = km_presence_run(&p->region->presence, first, neighbours(w, i), &state);
		for (next = i; next < w->fault_count && w->faults[next].paged == p &&
			       w->faults[next].page < first + n;
		     next++)
			;
		stale = state == KM_PRESENT && !f->minor;
		if (stale)
			km_count_own(&w->counts.stale, next - i);
		if (state != KM_CLAIMED && !(stale && filled_in_batch(w, f)))
			serve_run(w, p, first, n, state, stale);
		kept = settle_accounts(w, i, next, kept);
		i = next;
	}
	w->fault_count = kept;
}

/* ---- events ---- */

static void take_fault(struct km_worker *w, const struct uffd_msg *m)
{
	struct km_paged *p = km_paged_at(w->pager, m->arg.pagefault.address);
	bool minor = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR;

	if (!p)
		return;
	km_count_own(minor ? &w->counts.minor : &w->counts.missing, 1);
	w->faults[w->fault_count++] = (struct km_fault){
		.paged = p,
		.page = (m->arg.pagefault.address - p->addr) >> p->shift,
		.read_ns = w->demand_ns,
		.minor = minor,
	};
}

static void take_events(struct km_worker *w, struct km_shard *s, unsigned int n)
{
	/* A fault can be handed out before the removal that caused it. */
	for (unsigned int i = 0; i < n; i++)
		if (w->msgs[i].event == UFFD_EVENT_REMOVE || w->msgs[i].event == UFFD_EVENT_UNMAP) {
			atomic_fetch_add_explicit(&s->removes, 1, memory_order_relaxed);
			km_serve_removed(w->pager, w->msgs[i].arg.remove.start,
					 w->msgs[i].arg.remove.end);
		}
	for (unsigned int i = 0; i < n; i++)
		if (w->msgs[i].event == UFFD_EVENT_PAGEFAULT)
			take_fault(w, &w->msgs[i]);
}

/* Room for a whole read must remain: the threads of what does not fit fault again. */
static void limit_put_off(struct km_worker *w)
{
	while (w->fault_count > KM_FAULTS - KM_MSGS) {
		struct km_fault *f = &w->faults[--w->fault_count];

		km_uffd_wake(f->paged, f->page, 1);
	}
}

static void note_time(struct km_worker *w)
{
	uint64_t now = km_sys_now_ns(), gap = km_min(now - w->demand_ns, GAP_MAX_NS);

	w->gap_ns = (3 * w->gap_ns + gap) / 4;
	w->demand_ns = now;
}

unsigned int km_serve_events(struct km_worker *w)
{
	unsigned int events = 0, n;

	for (unsigned int i = 0; i < w->shard_count; i++) {
		n = km_uffd_read(&w->shards[i], w->msgs);
		if (n) {
			km_count_own(&w->counts.reads, 1);
			note_time(w);
			take_events(w, &w->shards[i], n);
			events += n;
		}
		if (w->fault_count)
			serve_faults(w);
		limit_put_off(w);
	}
	return events;
}
