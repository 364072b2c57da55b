// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Pages whose source answers later. They stay claimed while the request is under way, so that no thread of the pager
 * waits for it: faults on them leave a mark, and who ends the claim wakes their threads. That is the thread that
 * completes the request: it places the content by the same engine as everybody.
 *
 * What failed is asked for again page by page. That is done by a thread of the pager, from a list: a source that
 * answers from within `submit` would otherwise come back here ever deeper.
 */
#include "pager/pager_internal.h"

#include <errno.h>
#include <stddef.h>

_Static_assert((int)KM_BACKGROUND == (int)KVMEM_TRACE_BACKGROUND,
	       "the tags of fills are the trace's");

struct km_later {
	struct km_source_request req; /* first */
	struct km_later *next, *prev; /* of those under way: later_lock */
	struct km_later *again;	      /* on the list of those to be asked for again */
	struct kvmem_pager *pager;
	struct km_paged *paged;
	struct kvmem_source *source;
	uint64_t first, count;
	uint64_t start_ns;
	uint32_t attempt;
	enum km_why why;
	/* Under later_lock. */
	unsigned int pins; /* it is being submitted or cancelled: not freed meanwhile */
	uint64_t turn;	   /* of its submissions; another one when it is listed */
	bool submitted;	   /* its source knows of it, and has not answered */
	bool done;
	_Atomic bool cancelled;
	_Alignas(max_align_t) uint8_t buf[]; /* the source may store anything there */
};

static uint32_t fail_why(enum km_why why)
{
	return why == KM_DEMAND	    ? KVMEM_FAIL_DEMAND
	       : why == KM_PREFETCH ? KVMEM_FAIL_PREFETCH
				    : KVMEM_FAIL_BACKGROUND;
}

static struct km_backlog *backlog_of(const struct km_later *l)
{
	return &l->pager->backlogs[km_watch_shard(&l->paged->watch, l->first)];
}

/* The thread that goes on with what nobody waits for, of this shard. */
static void kick_shard(const struct km_later *l)
{
	struct kvmem_pager *pager = l->pager;
	unsigned int shard = km_watch_shard(&l->paged->watch, l->first);

	if (pager->opts.flags & KVMEM_PAGER_NO_THREADS)
		shard = 0;
	else if (atomic_load(&pager->fillers_run))
		shard += pager->worker_count;
	km_worker_kick(&pager->workers[shard]);
}

/* ---- under way ---- */

static struct km_later *later_new(struct kvmem_pager *pager, struct km_paged *p, uint64_t first,
				  uint64_t count, enum km_why why)
{
	uint64_t bytes = count << p->watch.shift;
	uint64_t at = p->feed.source_offset + (first << p->watch.shift);
	struct km_later *l = km_sys_alloc(sizeof(*l) + bytes); /* zero beyond the source's end */

	if (!l)
		return NULL;
	l->req.pub.offset = at;
	l->req.pub.bytes = km_min(bytes, p->feed.source->bytes - at);
	l->req.pub.buf = l->buf;
	l->req.done = km_later_done;
	l->pager = pager;
	l->paged = p;
	l->source = p->feed.source;
	l->first = first;
	l->count = count;
	l->why = why;
	l->start_ns = km_sys_now_ns();
	if (why != KM_DEMAND) {
		atomic_fetch_add(&backlog_of(l)->later_pieces, 1);
		atomic_fetch_add(&backlog_of(l)->busy, 1);
	}
	pthread_mutex_lock(&pager->later_lock);
	l->next = pager->later;
	if (l->next)
		l->next->prev = l;
	pager->later = l;
	pthread_mutex_unlock(&pager->later_lock);
	return l;
}

/* Last of all: when nothing is under way any more, the pager may go. */
static void later_end(struct km_later *l, uint64_t failed, bool filled)
{
	struct kvmem_pager *pager = l->pager;
	bool last_pin;

	if (l->why != KM_DEMAND) {
		km_pass_request_ended(pager, backlog_of(l), failed, filled);
		kick_shard(l);
	}
	pthread_mutex_lock(&pager->later_lock);
	if (l->prev)
		l->prev->next = l->next;
	else
		pager->later = l->next;
	if (l->next)
		l->next->prev = l->prev;
	l->done = true;
	last_pin = !l->pins;
	pthread_cond_broadcast(&pager->later_changed);
	pthread_mutex_unlock(&pager->later_lock);
	if (last_pin)
		km_sys_free(l);
}

/* ---- failures ---- */

static void ask_again(struct km_later *l)
{
	struct kvmem_pager *pager = l->pager;

	pthread_mutex_lock(&pager->later_lock);
	l->turn++;
	l->submitted = false;
	l->again = pager->later_again;
	pager->later_again = l;
	atomic_fetch_add(&pager->later_again_count, 1);
	kick_shard(l); /* here: without the lock it is whoever's takes it from the list */
	pthread_cond_broadcast(&pager->later_changed); /* who ends all takes it from the list */
	pthread_mutex_unlock(&pager->later_lock);
}

static bool is_given_up(const struct km_later *l)
{
	return l->cancelled || km_watch_ended(&l->paged->watch) ||
	       atomic_load(&l->pager->stopping) || atomic_load(&l->paged->leaving);
}

/* The page is claimed still. */
static void page_failed(struct km_later *l, int err)
{
	struct kvmem_region *r = l->paged->watch.region;
	int action = KVMEM_FAIL_LEAVE; /* who waits goes on waiting for the next start */

	if (!is_given_up(l)) {
		atomic_fetch_add(&l->pager->later_failed, 1);
		action = KVMEM_FAIL_RETRY;
		if (err != KM_PARKED)
			action = km_fail_ask(l->pager, l->paged, l->first, fail_why(l->why), err,
					     ++l->attempt);
	}
	if (action == KVMEM_FAIL_RETRY) {
		ask_again(l); /* what is given up meanwhile is given up there */
		return;
	}
	if (!is_given_up(l))
		km_pager_set_error(l->pager, err);
	if (action == KVMEM_FAIL_LEAVE)
		km_pages_abandon(r, l->first, 1, false);
	else
		km_poison_claimed(&l->paged->watch, l->first);
	later_end(l, 1, false);
}

/* A request of several pages: each for itself. What there is no memory for is absent again. */
static void split(struct km_later *l)
{
	struct kvmem_region *r = l->paged->watch.region;
	bool given_up = is_given_up(l);
	uint64_t dropped = 0;

	for (uint64_t i = 0; i < l->count; i++) {
		struct km_later *one = given_up ? NULL
						: later_new(l->pager, l->paged, l->first + i, 1,
							    l->why);

		if (!one) {
			km_pages_abandon(r, l->first + i, 1, false);
			dropped++;
			continue;
		}
		one->start_ns = l->start_ns;
		ask_again(one);
	}
	later_end(l, dropped, false);
}

/* ---- the end of a request ---- */

static void count_service(struct km_later *l)
{
	if (l->why == KM_DEMAND)
		atomic_fetch_add_explicit(
			&l->pager->later_service[km_service_bucket(km_sys_now_ns() - l->start_ns)],
			1, memory_order_relaxed);
}

/* Pages that the kernel refused to place, which are claimed still: they have failed, as those that the source does not
 * have. */
static void not_placed(const struct km_later *l, uint64_t placed, int err)
{
	if (km_watch_ended(&l->paged->watch))
		kick_shard(l); /* it tells the caller */
	for (uint64_t i = placed; i < l->count; i++) {
		struct km_later *one = later_new(l->pager, l->paged, l->first + i, 1, l->why);

		if (!one) {
			km_pages_abandon(l->paged->watch.region, l->first + i, 1, false);
			continue;
		}
		one->start_ns = l->start_ns;
		one->attempt = l->attempt;
		page_failed(one, err);
	}
}

static void place(struct km_later *l)
{
	_Atomic uint64_t *pages = &l->pager->later_pages[l->why], placed = 0;
	int r;

	atomic_fetch_add(pages, l->count);
	count_service(l);
	r = km_pages_given(&l->paged->watch, l->first, l->count, l->buf, &placed);
	atomic_fetch_sub(pages, l->count - placed);
	if (r)
		not_placed(l, placed, r);
	if (placed && l->pager->given_trace.entries && l->why != KM_DEMAND)
		km_trace_given(l->pager, &l->paged->watch, l->first, placed, (uint16_t)l->why);
	later_end(l, 0, placed);
}

void km_later_done(struct km_source_request *req, int result)
{
	struct km_later *l = (struct km_later *)req;

	if (!result)
		place(l);
	else if (l->count > 1)
		split(l);
	else
		page_failed(l, result);
}

/* ---- asking ---- */

/* They stay while the source looks at them, although it may answer at once. */
static void submit_begin(struct kvmem_pager *pager, struct km_later *const *list, size_t count,
			 uint64_t *turns)
{
	pthread_mutex_lock(&pager->later_lock);
	for (size_t i = 0; i < count; i++) {
		list[i]->pins++;
		turns[i] = ++list[i]->turn;
		list[i]->req.pub.user = NULL; /* it may be asked again */
	}
	pthread_mutex_unlock(&pager->later_lock);
}

/* Those that are under way can be cancelled from here on. */
static void submit_end(struct kvmem_pager *pager, struct km_later *const *list, size_t count,
		       const uint64_t *turns, bool taken)
{
	pthread_mutex_lock(&pager->later_lock);
	for (size_t i = 0; i < count; i++) {
		struct km_later *l = list[i];

		l->pins--;
		if (l->done && !l->pins)
			km_sys_free(l);
		else if (taken && !l->done && l->turn == turns[i])
			l->submitted = true;
	}
	pthread_cond_broadcast(&pager->later_changed);
	pthread_mutex_unlock(&pager->later_lock);
}

static void submit(struct km_later *const *list, size_t count)
{
	struct km_source_request *requests[KM_LATER_BATCH];
	struct kvmem_source *source = list[0]->source;
	struct kvmem_pager *pager = list[0]->pager;
	uint64_t turns[KM_LATER_BATCH];
	struct km_callback cb;
	int r;

	for (size_t i = 0; i < count; i++)
		requests[i] = &list[i]->req;
	submit_begin(pager, list, count, turns);
	km_callback_enter(&cb, "kvmem_source_async_ops.submit", pager,
			  list[0]->paged->watch.region);
	r = km_source_submit(source, requests, count);
	km_callback_leave(&cb);
	submit_end(pager, list, count, turns, !r);
	for (size_t i = 0; r && i < count; i++)
		km_later_done(requests[i], r);
}

void km_later_flush(struct km_worker *w)
{
	struct km_later *list[KM_LATER_BATCH];
	unsigned int n = w->later_count;

	if (!n)
		return;
	for (unsigned int i = 0; i < n; i++)
		list[i] = w->later[i];
	w->later_count = 0;
	for (unsigned int from = 0, to; from < n; from = to) {
		for (to = from + 1; to < n && list[to]->source == list[from]->source;)
			to++;
		submit(&list[from], to - from);
	}
}

int km_later_take(void *arg, uint32_t tag, const struct km_feed *f, uint64_t first, uint64_t count)
{
	struct km_worker *w = arg;
	struct km_paged *p = (struct km_paged *)f->watch;
	struct km_later *l = later_new(w->pager, p, first, count, (enum km_why)tag);

	if (!l)
		return -ENOMEM;
	w->later[w->later_count++] = l;
	if (w->later_count == KM_LATER_BATCH)
		km_later_flush(w);
	return 0;
}

static bool is_listed(const struct kvmem_pager *pager, const struct km_paged *paged)
{
	const struct km_later *l = pager->later_again;

	while (l && paged && l->paged != paged)
		l = l->again;
	return l;
}

/* Of one region, or (NULL) of all, those that are to be asked for again. */
static struct km_later *take_again(struct kvmem_pager *pager, const struct km_paged *paged)
{
	struct km_later **link = &pager->later_again, *out = NULL, *l;

	pthread_mutex_lock(&pager->later_lock);
	while ((l = *link) != NULL) {
		if (paged && l->paged != paged) {
			link = &l->again;
			continue;
		}
		*link = l->again;
		l->again = out;
		out = l;
		atomic_fetch_sub(&pager->later_again_count, 1);
	}
	pthread_mutex_unlock(&pager->later_lock);
	return out;
}

bool km_later_step(struct km_worker *w)
{
	struct km_later *l, *next;

	if (!atomic_load_explicit(&w->pager->later_again_count, memory_order_relaxed))
		return false;
	l = take_again(w->pager, NULL);
	for (struct km_later *i = l; i; i = next) {
		next = i->again;
		if (is_given_up(i))
			km_later_done(&i->req, -ECANCELED);
		else
			submit(&i, 1);
	}
	return l != NULL;
}

/* ---- ending all ---- */

/* One of those that there are, or (to_cancel) that can be cancelled, and are not. */
static struct km_later *find(struct kvmem_pager *pager, const struct km_paged *paged,
			     bool to_cancel)
{
	struct km_later *l = pager->later;

	while (l &&
	       ((paged && l->paged != paged) || (to_cancel && (l->cancelled || !l->submitted))))
		l = l->next;
	return l;
}

static void give_up_again(struct kvmem_pager *pager, const struct km_paged *paged)
{
	struct km_later *l = take_again(pager, paged), *next;

	for (; l; l = next) {
		next = l->again;
		l->cancelled = true;
		km_later_done(&l->req, -ECANCELED);
	}
}

/* With later_lock held, which is let go of for each. */
static void cancel_all(struct kvmem_pager *pager, const struct km_paged *paged)
{
	struct km_later *l;
	bool free_it;

	while ((l = find(pager, paged, true)) != NULL) {
		l->cancelled = true;
		l->pins++;
		pthread_mutex_unlock(&pager->later_lock);
		km_source_cancel(l->source, &l->req);
		pthread_mutex_lock(&pager->later_lock);
		free_it = !--l->pins && l->done;
		if (free_it)
			km_sys_free(l);
	}
}

void km_later_end_all(struct kvmem_pager *pager, const struct km_paged *paged, bool cancel)
{
	pthread_mutex_lock(&pager->later_lock);
	while (find(pager, paged, false)) {
		if (is_listed(pager, paged)) {
			pthread_mutex_unlock(&pager->later_lock);
			give_up_again(pager, paged);
			pthread_mutex_lock(&pager->later_lock);
		} else if (cancel && find(pager, paged, true)) {
			cancel_all(pager, paged);
		} else {
			pthread_cond_wait(&pager->later_changed, &pager->later_lock);
		}
	}
	pthread_mutex_unlock(&pager->later_lock);
}
