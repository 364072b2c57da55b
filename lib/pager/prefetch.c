// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Prefetch: lists of ranges that are to be filled soon, and tickets that tell when they are in, whichever way their
 * pages came.
 *
 * A list is cut into pieces of one shard each. A piece is filled in slices; what others have claimed of it is looked at
 * again a moment later, if there is a ticket, and its pages are accounted to the ticket when they have come or failed.
 */
#include "pager/pager_internal.h"

#include <errno.h>

#define LATER_NS 1000000u /* before what others have claimed is looked at again */

struct kvmem_ticket {
	struct kvmem_pager *pager;
	struct kvmem_region *region;
	void (*done_fn)(void *arg, const struct kvmem_ticket_result *result);
	void *arg;
	pthread_mutex_t lock; /* what follows; inside the pager's */
	pthread_cond_t changed;
	uint64_t left;	   /* pages */
	unsigned int busy; /* threads that work on it */
	bool cancelled;	   /* changes under the pager's lock too */
	bool telling;	   /* somebody tells that it is done, or has */
	bool done;
	struct kvmem_ticket_result result;
};

/* ---- tickets ---- */

static struct kvmem_ticket *ticket_new(struct kvmem_pager *pager, struct kvmem_region *region,
				       const struct kvmem_prefetch_opts *o)
{
	struct kvmem_ticket *t = km_sys_alloc(sizeof(*t));
	pthread_condattr_t attr;

	if (!t)
		return NULL;
	t->pager = pager;
	t->region = region;
	t->done_fn = o->done;
	t->arg = o->arg;
	t->result.size = sizeof(t->result);
	pthread_mutex_init(&t->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&t->changed, &attr);
	pthread_condattr_destroy(&attr);
	return t;
}

static void ticket_destroy(struct kvmem_ticket *t)
{
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->changed);
	km_sys_free(t);
}

static void tell_done(struct kvmem_ticket *t)
{
	struct km_callback cb;

	if (!t->done_fn)
		return;
	km_callback_enter(&cb, "kvmem_prefetch_opts.done", t, t->region);
	t->done_fn(t->arg, &t->result);
	km_callback_leave(&cb);
}

/* `pages` have come, or `failed` of them have not; no lock is held. The caller counts in `busy`. */
static void account(struct kvmem_ticket *t, uint64_t pages, uint64_t failed, int err)
{
	bool last;

	pthread_mutex_lock(&t->lock);
	t->result.pages += pages - failed;
	t->result.pages_failed += failed;
	if (failed && !t->result.error)
		t->result.error = err;
	t->left -= pages;
	last = !t->left && !t->telling && !t->cancelled;
	t->telling |= last;
	if (last) {
		pthread_mutex_unlock(&t->lock);
		tell_done(t);
		pthread_mutex_lock(&t->lock);
		t->done = true;
	}
	t->busy--;
	/* Not for each piece: a waiter that is woken in vain takes longer than a page does. */
	if (last || (!t->busy && (t->done || t->cancelled)))
		pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

static void hold(struct kvmem_ticket *t)
{
	pthread_mutex_lock(&t->lock);
	t->busy++;
	pthread_mutex_unlock(&t->lock);
}

/* ---- the list of a shard ---- */

void km_prefetch_free(struct km_prefetch *f)
{
	while (f) {
		struct km_prefetch *next = f->next;

		km_sys_free(f);
		f = next;
	}
}

static void append(struct km_prefetch_list *list, struct km_prefetch *f)
{
	f->next = NULL;
	*list->tail = f;
	list->tail = &f->next;
	atomic_fetch_add_explicit(&list->count, 1, memory_order_release);
}

static struct km_prefetch *take_first(struct km_prefetch_list *list)
{
	struct km_prefetch *f = list->first;

	list->first = f->next;
	if (!list->first)
		list->tail = &list->first;
	atomic_fetch_sub_explicit(&list->count, 1, memory_order_release);
	return f;
}

void km_prefetch_init(struct km_prefetch_list *list)
{
	list->tail = &list->first;
}

/* Those that `of` (a ticket), or `paged` (a region) means, or all, from a list onto another one. */
static void take_out(struct km_prefetch_list *list, const struct kvmem_ticket *of,
		     const struct km_paged *paged, struct km_prefetch **ret)
{
	struct km_prefetch_list keep = { 0 };

	km_prefetch_init(&keep);
	while (list->first) {
		struct km_prefetch *f = take_first(list);

		if ((of && f->ticket != of) || (paged && f->window.paged != paged)) {
			append(&keep, f);
			continue;
		}
		f->next = *ret;
		*ret = f;
	}
	while (keep.first)
		append(list, take_first(&keep));
}

static uint64_t missing_of(const struct km_window *w)
{
	enum km_page_state state;
	uint64_t missing = 0, n;

	for (uint64_t at = w->first, end = at + w->count; at < end; at += n) {
		n = km_presence_run(km_paged_map(w->paged), at, end - at, &state);
		if (state != KM_PRESENT && state != KM_ZERO)
			missing += n;
	}
	return missing;
}

/* From all shards, with the pager's lock held. What is missing is counted now: the regions may go. */
static void take_out_all(struct kvmem_pager *pager, const struct kvmem_ticket *of,
			 const struct km_paged *paged, struct km_prefetch **ret)
{
	struct km_prefetch *before = *ret;

	for (unsigned int i = 0; i < pager->set.count; i++) {
		take_out(&pager->backlogs[i].now, of, paged, ret);
		take_out(&pager->backlogs[i].later, of, paged, ret);
	}
	for (struct km_prefetch *f = *ret; f != before; f = f->next)
		f->missing = missing_of(&f->window);
}

/* Those of a ticket that are being dropped by another thread, or by this one further out. */
static void take_dropped(struct kvmem_pager *pager, const struct kvmem_ticket *of,
			 struct km_prefetch **ret)
{
	struct km_prefetch **link = &pager->dropped, *f;

	while ((f = *link) != NULL) {
		if (f->ticket != of) {
			link = &f->next;
			continue;
		}
		*link = f->next;
		f->next = *ret;
		*ret = f;
	}
}

/* They will not be done: what has not come by other ways has failed. */
static void end_pieces(struct km_prefetch *f)
{
	while (f) {
		struct km_prefetch *next = f->next;

		if (f->ticket)
			account(f->ticket, f->window.count, f->missing, -ECANCELED);
		km_sys_free(f);
		f = next;
	}
}

void km_prefetch_close(struct kvmem_pager *pager)
{
	pthread_mutex_lock(&pager->lock);
	pager->closed = true;
	pthread_mutex_unlock(&pager->lock);
}

/* One by one: `done` of a ticket may free another one, which takes the pieces of that out for itself. */
void km_prefetch_drop(struct kvmem_pager *pager, const struct km_paged *paged)
{
	struct km_prefetch *f;

	pthread_mutex_lock(&pager->lock);
	take_out_all(pager, NULL, paged, &pager->dropped);
	while ((f = pager->dropped) != NULL) {
		pager->dropped = f->next;
		f->next = NULL;
		if (f->ticket)
			hold(f->ticket);
		pthread_mutex_unlock(&pager->lock);
		end_pieces(f);
		pthread_mutex_lock(&pager->lock);
	}
	pthread_mutex_unlock(&pager->lock);
}

/* ---- asking for it ---- */

/* A range in pieces of one shard each, onto a list; returns its pages, or -ENOMEM. */
static int64_t split(struct km_paged *p, const struct kvmem_range *range, struct kvmem_ticket *t,
		     struct km_prefetch **list)
{
	unsigned int shift = p->watch.shift;
	uint64_t first = range->offset >> shift;
	uint64_t end = (range->offset + range->bytes + (1ull << shift) - 1) >> shift;

	for (uint64_t page = first, n; page < end; page += n) {
		struct km_prefetch *f = km_sys_alloc(sizeof(*f));

		if (!f)
			return km_fail(ENOMEM, "kvmem_pager_prefetch: no memory");
		n = km_watch_in_stripe(&p->watch, page, end - page);
		f->window = (struct km_window){ .paged = p, .first = page, .count = n };
		f->ticket = t;
		f->next = *list;
		*list = f;
	}
	return (int64_t)(end - first);
}

/* All of them or none. The list is the wrong way round: from its end on, each to its shard. */
static void hand_out(struct kvmem_pager *pager, struct km_prefetch *list)
{
	struct km_prefetch *forward = NULL;

	while (list) {
		struct km_prefetch *f = list;

		list = f->next;
		f->next = forward;
		forward = f;
	}
	while (forward) {
		struct km_prefetch *f = forward;
		const struct km_window *w = &f->window;

		forward = f->next;
		append(&pager->backlogs[km_watch_shard(&w->paged->watch, w->first)].now, f);
	}
}

static struct km_paged *paged_of(const struct kvmem_pager *pager, const struct kvmem_region *region)
{
	struct km_paged *p = km_paged_first(pager);

	while (p && (p->watch.region != region || atomic_load(&p->leaving)))
		p = km_paged_next(p);
	return p;
}

/* With the pager's lock held. */
static int queue(struct kvmem_pager *pager, struct kvmem_region *region,
		 const struct kvmem_range *ranges, size_t count, struct kvmem_ticket *t)
{
	struct km_paged *p = paged_of(pager, region);
	struct km_prefetch *list = NULL;
	int64_t n = 0;

	if (pager->closed)
		return km_fail(EINVAL, "kvmem_pager_prefetch: the pager was stopped");
	if (!p)
		return km_fail(ENOENT, "kvmem_pager_prefetch: the region is not of this pager");
	if (km_watch_ended(&p->watch))
		return km_fail(ESRCH,
			       "kvmem_pager_prefetch: the process whose memory the region is "
			       "has ended");
	for (size_t i = 0; n >= 0 && i < count; i++) {
		n = km_range_check(ranges[i].offset, ranges[i].bytes, region->bytes,
				   "kvmem_pager_prefetch: region");
		if (!n)
			n = split(p, &ranges[i], t, &list);
		if (n >= 0 && t)
			t->left += (uint64_t)n;
	}
	if (n < 0)
		km_prefetch_free(list);
	else
		hand_out(pager, list);
	return n < 0 ? (int)n : 0;
}

static int prefetch_check(const struct kvmem_pager *pager, const struct kvmem_region *region,
			  const struct kvmem_range *ranges, size_t count,
			  const struct kvmem_prefetch_opts *opts, struct kvmem_prefetch_opts *o,
			  bool ticket)
{
	int r;

	if (!pager || !region || (!ranges && count))
		return km_fail(EINVAL, "kvmem_pager_prefetch: %s is NULL",
			       !pager	 ? "pager"
			       : !region ? "region"
					 : "ranges");
	r = km_opts_copy(o, sizeof(*o), sizeof(*o), opts, "kvmem_prefetch_opts");
	if (!r)
		r = km_flags_check(o->flags, 0, "kvmem_prefetch_opts: flags");
	if (!r && o->done && !ticket)
		r = km_fail(EINVAL,
			    "kvmem_pager_prefetch: kvmem_prefetch_opts.done needs a ticket: "
			    "ret_ticket is NULL");
	return r;
}

int kvmem_pager_prefetch(struct kvmem_pager *pager, struct kvmem_region *region,
			 const struct kvmem_range *ranges, size_t count,
			 const struct kvmem_prefetch_opts *opts, struct kvmem_ticket **ret_ticket)
{
	struct kvmem_ticket *t = NULL;
	struct kvmem_prefetch_opts o;
	int r = prefetch_check(pager, region, ranges, count, opts, &o, ret_ticket);

	if (r)
		return r;
	if (ret_ticket) {
		t = ticket_new(pager, region, &o);
		if (!t)
			return km_fail(ENOMEM, "kvmem_pager_prefetch: no memory");
		t->busy = 1; /* this thread, so that it is not done before it is handed out */
	}
	pthread_mutex_lock(&pager->lock);
	r = queue(pager, region, ranges, count, t);
	pthread_mutex_unlock(&pager->lock);
	if (r) {
		if (t)
			ticket_destroy(t);
		return r;
	}
	if (t) {
		*ret_ticket = t;
		account(t, 0, 0, 0); /* of an empty list it is all */
	}
	if (atomic_load(&pager->state) == KM_PAGER_RUNNING)
		km_pager_kick_all(pager);
	return 0;
}

/* ---- doing it ---- */

uint64_t km_prefetch_due_ns(const struct km_backlog *b)
{
	return atomic_load_explicit(&b->later_ns, memory_order_relaxed);
}

/* What is due of it is to be done now. With the pager's lock held. */
static void wake_later(struct km_backlog *b)
{
	uint64_t now = km_sys_now_ns();

	while (b->later.first && b->later.first->due_ns <= now)
		append(&b->now, take_first(&b->later));
	atomic_store_explicit(&b->later_ns, b->later.first ? b->later.first->due_ns : 0,
			      memory_order_relaxed);
}

bool km_prefetch_take(struct kvmem_pager *pager, struct km_backlog *b, uint64_t breath,
		      struct km_prefetch *ret)
{
	uint64_t due = km_prefetch_due_ns(b);
	struct km_prefetch *f, *spent = NULL;

	if (!atomic_load_explicit(&b->now.count, memory_order_acquire) &&
	    (!due || km_sys_now_ns() < due))
		return false;
	pthread_mutex_lock(&pager->lock);
	wake_later(b);
	f = b->now.first;
	if (f) {
		*ret = *f;
		ret->window.count = km_min(f->window.count, km_min(f->window.paged->slice, breath));
		f->window.first += ret->window.count;
		f->window.count -= ret->window.count;
		if (f->ticket)
			hold(f->ticket);
		if (!f->window.count)
			spent = take_first(&b->now);
	}
	pthread_mutex_unlock(&pager->lock);
	km_sys_free(spent);
	return f != NULL;
}

/* The claimed pages of a window that begin at `at`, once more a moment later. */
static bool put_off(struct kvmem_pager *pager, struct km_backlog *b, const struct km_prefetch *done,
		    uint64_t at, uint64_t count)
{
	struct km_prefetch *f = km_sys_alloc(sizeof(*f));
	bool put = false;

	if (!f)
		return false;
	*f = *done;
	f->window.first = at;
	f->window.count = count;
	f->due_ns = km_sys_now_ns() + LATER_NS;
	pthread_mutex_lock(&pager->lock);
	/* Not when the regions go: nobody would look at it again. */
	if (!atomic_load(&pager->stopping) && !atomic_load(&done->window.paged->leaving) &&
	    !f->ticket->cancelled) {
		append(&b->later, f);
		if (b->later.first == f)
			atomic_store_explicit(&b->later_ns, f->due_ns, memory_order_relaxed);
		put = true;
	}
	pthread_mutex_unlock(&pager->lock);
	if (!put)
		km_sys_free(f);
	return put;
}

void km_prefetch_done(struct kvmem_pager *pager, struct km_backlog *b, const struct km_prefetch *f,
		      int err)
{
	const struct km_window *w = &f->window;
	uint64_t pages = w->count, failed = 0, n;
	enum km_page_state state;

	if (!f->ticket)
		return;
	for (uint64_t at = w->first, end = at + w->count; at < end; at += n) {
		n = km_presence_run(km_paged_map(w->paged), at, end - at, &state);
		if (state == KM_PRESENT || state == KM_ZERO)
			continue;
		if ((state == KM_CLAIMED || err == KM_PARKED) && put_off(pager, b, f, at, n))
			pages -= n;
		else
			failed += n;
	}
	if (!err)
		err = atomic_load(&pager->error); /* of a request, or who claimed it gave up */
	account(f->ticket, pages, failed, err ? err : -ECANCELED);
}

/* ---- what its owner does ---- */

int kvmem_ticket_wait(struct kvmem_ticket *ticket, int64_t timeout_ns,
		      struct kvmem_ticket_result *ret_result)
{
	struct timespec end = km_pager_from_now(timeout_ns < 0 ? 0 : timeout_ns);
	bool late = false;
	int r;

	if (!ticket)
		return km_fail(EINVAL, "kvmem_ticket_wait: ticket is NULL");
	r = km_callback_check("kvmem_ticket_wait", NULL);
	if (!r && ret_result)
		r = km_result_check(ret_result, sizeof(*ret_result), "kvmem_ticket_result");
	if (r)
		return r;
	pthread_mutex_lock(&ticket->lock);
	while (!ticket->done && !late) {
		if (timeout_ns < 0)
			pthread_cond_wait(&ticket->changed, &ticket->lock);
		else
			late = pthread_cond_timedwait(&ticket->changed, &ticket->lock, &end);
	}
	late = !ticket->done;
	if (ret_result)
		km_result_copy(ret_result, &ticket->result, sizeof(ticket->result));
	r = ticket->result.error;
	pthread_mutex_unlock(&ticket->lock);
	if (late)
		return km_fail(ETIMEDOUT, "kvmem_ticket_wait: pages of the list are missing still");
	return r ? km_fail(-r, "kvmem_ticket_wait: pages of the list could not be filled: %m") : 0;
}

int kvmem_ticket_free(struct kvmem_ticket *ticket)
{
	struct km_prefetch *out = NULL;
	bool done;
	int r;

	if (!ticket)
		return 0;
	r = km_callback_check("kvmem_ticket_free", ticket);
	if (!r)
		r = km_callback_check("kvmem_ticket_free", ticket->region);
	if (r)
		return r;
	pthread_mutex_lock(&ticket->lock);
	done = ticket->done;
	pthread_mutex_unlock(&ticket->lock);
	if (!done) { /* the pager is there still: it does not go before its lists are done with */
		pthread_mutex_lock(&ticket->pager->lock);
		pthread_mutex_lock(&ticket->lock);
		ticket->cancelled = true;
		pthread_mutex_unlock(&ticket->lock);
		take_out_all(ticket->pager, ticket, NULL, &out);
		take_dropped(ticket->pager, ticket, &out);
		for (struct km_prefetch *f = out; f; f = f->next)
			hold(ticket);
		pthread_mutex_unlock(&ticket->pager->lock);
		end_pieces(out);
	}
	pthread_mutex_lock(&ticket->lock);
	while (ticket->busy)
		pthread_cond_wait(&ticket->changed, &ticket->lock);
	pthread_mutex_unlock(&ticket->lock);
	ticket_destroy(ticket);
	return 0;
}
