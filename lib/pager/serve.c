// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The fault path: read a batch of events, sort the faults, answer each run of neighbours at once.
 *
 * Every fault gets an answer: its thread is woken, after its page was placed or mapped, or whatever
 * else came of it; or the page is somebody's claim, which the fault marks as WANTED, and who ends
 * the claim wakes the thread. Nothing is kept for later.
 */
#include "pager/pager_internal.h"

#include <errno.h>

#define GAP_MAX_NS	1000000u
#define NEIGHBOUR_FIXES 8u

/* ---- accounts ---- */

/* A run of pages in one state, and the faults on them. */
struct served {
	struct km_worker *w;
	struct km_paged *p;
	uint64_t first, count;
	const struct km_fault *faults;
	unsigned int fault_count;
	bool alone; /* no other fault of the batch is left to be served */
};

/* Before they are woken, so that who has been woken finds everything counted. `piece`: was placed
 * with them, and is not woken yet. */
static void count_and_wake(const struct served *s, const struct km_window *piece)
{
	uint64_t now = km_sys_now_ns(), end = s->first + s->count;

	for (unsigned int i = 0; i < s->fault_count; i++)
		km_count_own(
			&s->w->counts.service_ns[km_service_bucket(now - s->faults[i].read_ns)], 1);
	if (s->w->trace.entries)
		km_trace_faults(s->w, s->faults, s->fault_count, now);
	if (piece->count)
		km_watch_wake(&s->p->watch, piece->first, piece->count);
	if (s->first < piece->first || end > piece->first + piece->count)
		km_watch_wake(&s->p->watch, s->first, s->count);
}

/* ---- absent ---- */

/* The part of a window that is placed at once, with the pages that are waited for in it. */
static struct km_window piece_of(const struct km_window *win, const struct served *s)
{
	struct km_window piece = *win;
	uint64_t end = win->first + win->count;

	if (s->first + s->count > win->first + KM_CLAIM_PAGES)
		piece.first = km_min(s->first, s->first + s->count - KM_CLAIM_PAGES);
	if (piece.first < win->first || piece.first > s->first)
		piece.first = win->first;
	piece.count = km_min(end - piece.first, KM_CLAIM_PAGES);
	return piece;
}

static void put_off_rest(struct km_worker *w, const struct km_window *win,
			 const struct km_window *piece)
{
	struct km_window before = *win, behind = *win;

	before.count = piece->first - win->first;
	behind.first = piece->first + piece->count;
	behind.count = win->first + win->count - behind.first;
	if (behind.count)
		km_around_put_off(w, &behind);
	if (before.count)
		km_around_put_off(w, &before);
}

/*
 * A sequential access, no other fault waits and content is at hand: the neighbours come in the same
 * ioctl. Of what is filled, the pages that are waited for count as such.
 */
static void fill_with_neighbours(const struct served *s, const struct km_window *piece)
{
	_Atomic uint64_t *pages = s->w->counts.pages;
	struct km_fill_way way = km_way(s->w, KM_AROUND);
	uint64_t filled = pages[KM_AROUND];
	uint64_t asked = km_min(s->count, piece->first + piece->count - s->first);

	way.demand = true;
	km_fill_run(&s->p->feed, &s->w->hands, piece->first, piece->count, &way);
	asked = km_min(asked, pages[KM_AROUND] - filled);
	km_count_own(&pages[KM_DEMAND], asked);
	km_count_own(&pages[KM_AROUND], -asked);
}

static void fill_asked(const struct served *s)
{
	struct km_fill_way way = km_way(s->w, KM_DEMAND);

	int r = -1;

	if (s->count > 1)
		r = km_fill_run(&s->p->feed, &s->w->hands, s->first, s->count, &way);
	if (!r || r == KM_PARKED)
		return;
	for (uint64_t i = 0; i < s->count; i++)
		if (km_presence_get(km_paged_map(s->p), s->first + i) == KM_ABSENT)
			km_fill_or_fail(s->w, s->p, s->first + i, KVMEM_FAIL_DEMAND, &way);
}

/*
 * The source answers later. What is under way is claimed, and who ends that wakes the threads; the others, whose
 * pages have come or failed meanwhile, are woken here.
 */
static void serve_later(const struct served *s)
{
	fill_asked(s);
	if (s->w->trace.entries)
		km_trace_faults(s->w, s->faults, s->fault_count, km_sys_now_ns());
	for (uint64_t i = 0; i < s->count; i++)
		if (km_presence_want(km_paged_map(s->p), s->first + i) != KM_CLAIMED)
			km_watch_wake(&s->p->watch, s->first + i, 1);
}

static void serve_absent(const struct served *s)
{
	struct km_window win = { .paged = s->p, .kind = KM_ABSENT }, piece = win;
	bool around = s->p->window_max > 1, ordered = false;
	bool cheap = s->alone && s->p->haste == KM_AT_HAND;

	if (s->p->feed.source->kind == KM_SOURCE_ASYNC) {
		serve_later(s);
		return;
	}
	for (uint64_t i = 0; around && i < s->count; i++)
		km_around_touched(s->w, s->p, s->first + i);
	if (around)
		ordered = km_around_plan(s->w, s->p, s->first, &win);
	if (ordered && cheap)
		piece = piece_of(&win, s);
	else if (around && cheap && !win.count)
		km_around_take(s->w, s->p, s->first, &piece);
	if (piece.count)
		fill_with_neighbours(s, &piece);
	fill_asked(s);
	if (ordered && piece.count)
		put_off_rest(s->w, &win, &piece);
	else if (win.count > s->count)
		km_around_put_off(s->w, &win);
	count_and_wake(s, &piece);
}

/* ---- present, zero, poisoned ---- */

/*
 * The kernel cannot bring back pages that had content: no memory, a lost swap device. Some of them
 * it could: those stay, also where poisoning is to take access rights away.
 */
static void poison_lost(const struct served *s, int err)
{
	km_pager_set_error(s->w->pager, err);
	for (uint64_t i = 0; i < s->count; i++) {
		km_count_own(&s->w->counts.lost, 1);
		if (!km_poison_lost(&s->p->watch, s->first + i))
			km_count_own(&s->w->counts.lost, (uint64_t)-1);
	}
}

static void map_with_neighbours(const struct served *s, const struct km_window *piece)
{
	uint64_t page = piece->first, end = piece->first + piece->count, n;
	enum km_page_state state;

	for (; page < end; page += n) {
		n = km_presence_run(km_paged_map(s->p), page, end - page, &state);
		if (state == piece->kind)
			km_map_run(&s->p->watch, page, n, state == KM_ZERO, NEIGHBOUR_FIXES);
	}
}

/* The pages have content, whatever the kernel has of them: a removed one is zero. */
static void serve_done(const struct served *s, enum km_page_state state)
{
	struct km_window win = { .paged = s->p, .kind = state }, piece = win;
	bool stale = state == KM_PRESENT && !s->faults[0].minor, ordered = false;
	int r;

	if (stale)
		km_count_own(&s->w->counts.stale, s->fault_count);
	if (!stale && s->p->window_max > 1 && s->w->hands.buf)
		ordered = km_around_plan(s->w, s->p, s->first, &win);
	r = km_map_run(&s->p->watch, s->first, s->count, state == KM_ZERO, (unsigned int)s->count);
	if (r && r != KM_PARKED && !km_watch_ended(&s->p->watch))
		poison_lost(s, r);
	if (ordered && s->alone)
		piece = piece_of(&win, s);
	else if (s->alone && !stale && !win.count)
		km_around_take(s->w, s->p, s->first, &piece);
	if (piece.count)
		map_with_neighbours(s, &piece);
	if (ordered && piece.count)
		put_off_rest(s->w, &win, &piece);
	else if (win.count > s->count)
		km_around_put_off(s->w, &win);
	count_and_wake(s, &piece);
}

/* The mark of poison is gone from the page tables, or the fault is older than it. */
static void serve_poisoned(const struct served *s)
{
	for (uint64_t i = 0; i < s->count; i++)
		if (km_presence_claim_poisoned(km_paged_map(s->p), s->first + i, 1))
			km_poison_claimed(&s->p->watch, s->first + i);
	count_and_wake(s, &(struct km_window){ 0 });
}

/* ---- batches ---- */

static bool is_before(const struct km_fault *a, const struct km_fault *b)
{
	return a->paged != b->paged ? a->paged < b->paged : a->page < b->page;
}

static void sort_faults(struct km_fault *f, unsigned int n)
{
	for (unsigned int i = 1; i < n; i++) {
		struct km_fault x = f[i];
		unsigned int at = i;

		for (; at && is_before(&x, &f[at - 1]); at--)
			f[at] = f[at - 1];
		f[at] = x;
	}
}

/* The faults from i on that are on neighbouring pages in one state, as the claims of others go. */
static unsigned int take_run(struct km_worker *w, unsigned int i, struct served *ret,
			     enum km_page_state *ret_state)
{
	const struct km_fault *f = &w->faults[i];
	struct km_presence *map = km_paged_map(f->paged);
	uint64_t last = f->page;
	unsigned int next = i + 1;

	*ret_state = km_presence_want(map, f->page);
	for (; next < w->fault_count; next++) {
		const struct km_fault *g = &w->faults[next];

		if (g->paged != f->paged || g->page > last + 1)
			break;
		if (g->page != last && km_presence_want(map, g->page) != *ret_state)
			break;
		last = g->page;
	}
	*ret = (struct served){
		.w = w,
		.p = f->paged,
		.first = f->page,
		.count = last - f->page + 1,
		.faults = f,
		.fault_count = next - i,
		.alone = next == w->fault_count,
	};
	return next;
}

static void serve_faults(struct km_worker *w)
{
	struct served s;
	enum km_page_state state;

	sort_faults(w->faults, w->fault_count);
	for (unsigned int i = 0; i < w->fault_count;) {
		i = take_run(w, i, &s, &state);
		if (state == KM_ABSENT && atomic_load(&w->pager->set.drops))
			continue; /* kvmem_pager_start(), or who fills it, wakes its thread */
		if (state == KM_ABSENT)
			serve_absent(&s);
		else if (state == KM_POISONED)
			serve_poisoned(&s);
		else if (state != KM_CLAIMED)
			serve_done(&s, state);
	}
	w->fault_count = 0;
}

/* ---- events ---- */

/* The region of an address, and its page. */
static struct km_paged *find(struct km_worker *w, struct km_uffd *u, uint64_t addr,
			     uint64_t *ret_page)
{
	struct km_paged *p;

	if (u->view) {
		if (km_remote_page(u, addr, ret_page))
			return (struct km_paged *)u->view->watch;
		km_remote_refuse(u, addr);
		return NULL;
	}
	p = km_paged_at(w->pager, addr);
	if (p)
		*ret_page = (addr - p->watch.addr) >> p->watch.shift;
	return p;
}

static void take_fault(struct km_worker *w, struct km_uffd *u, const struct uffd_msg *m)
{
	bool minor = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR;
	uint64_t page;
	struct km_paged *p = find(w, u, m->arg.pagefault.address, &page);

	if (!p)
		return;
	km_count_own(minor ? &w->counts.minor : &w->counts.missing, 1);
	if (u->view && km_view_answer(u, m->arg.pagefault.address, page, minor))
		return;
	w->faults[w->fault_count++] = (struct km_fault){
		.paged = p,
		.page = page,
		.read_ns = w->demand_ns,
		.minor = minor,
		.write = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE,
		.thread = m->arg.pagefault.feat.ptid,
	};
}

/* After the faults of the batch: who is handed the page may take his time. */
static void serve_write(struct km_worker *w, struct km_uffd *u, const struct uffd_msg *m)
{
	struct km_paged *p = u->view ? NULL : km_paged_at(w->pager, m->arg.pagefault.address);

	if (u->view)
		km_remote_unprotect(u, m->arg.pagefault.address);
	if (p)
		km_guard_fault(&p->watch,
			       (m->arg.pagefault.address - p->watch.addr) >> p->watch.shift,
			       w->demand_ns);
}

static bool is_write_protected(const struct uffd_msg *m)
{
	return m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP;
}

static void note_time(struct km_worker *w, unsigned int shard)
{
	uint64_t now = km_sys_now_ns(), gap = km_min(now - w->demand_ns, GAP_MAX_NS);

	w->gap_ns = (3 * w->gap_ns + gap) / 4;
	w->demand_ns = now;
	atomic_store_explicit(&w->pager->backlogs[shard].demand_ns, now, memory_order_relaxed);
}

static unsigned int serve_batch(struct km_worker *w, struct km_uffd *u, unsigned int shard)
{
	unsigned int faults, n = km_uffd_read(&w->pager->set, u, w->msgs, &faults);

	if (!n)
		return 0;
	km_count_own(&w->counts.reads, 1);
	note_time(w, shard);
	for (unsigned int k = 0; k < faults; k++)
		if (!is_write_protected(&w->msgs[k]))
			take_fault(w, u, &w->msgs[k]);
	serve_faults(w);
	km_later_flush(w);
	for (unsigned int k = 0; k < faults; k++)
		if (is_write_protected(&w->msgs[k]))
			serve_write(w, u, &w->msgs[k]);
	return n;
}

static unsigned int serve_remotes(struct km_worker *w)
{
	struct km_view *v = NULL;
	unsigned int i = 0, events = 0;
	struct km_uffd *u;

	while ((u = km_remote_next(w, &v, &i)) != NULL)
		events += serve_batch(w, u, w->first_shard);
	return events;
}

unsigned int km_serve_events(struct km_worker *w)
{
	struct km_uffd_set *set = &w->pager->set;
	unsigned int events = 0;

	for (unsigned int i = 0; !set->none && i < w->shard_count; i++)
		events += serve_batch(w, &set->all[w->first_shard + i], w->first_shard + i);
	if (atomic_load_explicit(&set->remotes, memory_order_relaxed))
		events += serve_remotes(w);
	return events;
}
