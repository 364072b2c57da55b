// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Regions that are memory of other processes: who reads their events, and what is done when a process has ended. */
#include "pager/pager_internal.h"

#include <errno.h>

#include <kvmem/remote.h>

#define LOOK_NS 1000000u /* events of a userfaultfd that poll() tells nothing of */

int km_remote_serve_check(const struct kvmem_pager *pager, const struct kvmem_region *r)
{
	if (!r->remote && !pager->set.none)
		return 0;
	if (!r->remote)
		return km_fail(EINVAL,
			       "kvmem_pager_add: the pager was made with KVMEM_PAGER_REMOTE, "
			       "and has no userfaultfd for memory of this process");
	if (atomic_load(&r->remote->ended))
		return km_fail(ESRCH, "kvmem_pager_add: the process whose memory the region is has "
				      "ended");
	if (r->remote->ioctls >> KM_UFFDIO_POISON_NR & 1 || pager->opts.fail)
		return 0;
	return km_fail(
		EOPNOTSUPP,
		"kvmem_pager_add: this kernel has no UFFDIO_POISON (Linux 6.6), so nothing ends "
		"the wait for a page that cannot be filled: set kvmem_pager_opts.fail, and end "
		"the process there");
}

/* ---- which worker's ---- */

static bool is_of(const struct km_worker *w, const struct km_view *v, unsigned int i)
{
	unsigned int shard = (v->watch->first_uffd + i) % v->watch->set->count;

	return shard - w->first_shard < w->shard_count;
}

static struct km_view *first_view(const struct km_paged *p)
{
	return atomic_load_explicit(&p->watch.views, memory_order_acquire);
}

static struct km_view *next_view(const struct km_view *v)
{
	return atomic_load_explicit(&v->next, memory_order_acquire);
}

static struct km_view *view_from(struct km_paged *p)
{
	for (; p; p = km_paged_next(p))
		if (first_view(p) && atomic_load(&p->joined) && !atomic_load(&p->leaving))
			return first_view(p);
	return NULL;
}

struct km_uffd *km_remote_next(const struct km_worker *w, struct km_view **v, unsigned int *i)
{
	if (!*v)
		*v = view_from(km_paged_first(w->pager));
	while (*v) {
		struct km_view *next = next_view(*v);

		while (*i < (*v)->remote->uffd_count)
			if (is_of(w, *v, (*i)++))
				return &(*v)->uffds[*i - 1];
		*i = 0;
		*v = next ? next : view_from(km_paged_next((struct km_paged *)(*v)->watch));
	}
	return NULL;
}

/* ---- epoll ---- */

static int poll_one(const struct km_worker *w, struct km_uffd *u, int op)
{
	uint32_t events = w->pager->opts.workers > 1 ? EPOLLIN | EPOLLEXCLUSIVE : EPOLLIN;
	struct epoll_event ev = { .events = events, .data = { .ptr = u } };
	int64_t r = km_sys_epoll_ctl(w->epoll, op, atomic_load(&u->fd), &ev);

	return r < 0 ? km_fail((int)-r, "pager: EPOLL_CTL_ADD: %m") : 0;
}

static void unpoll_view(struct kvmem_pager *pager, struct km_view *v)
{
	for (unsigned int i = 0; i < v->remote->uffd_count; i++) {
		struct km_uffd *u = &v->uffds[i];

		for (unsigned int k = 0; k < pager->all_count; k++)
			if (!pager->workers[k].filler)
				poll_one(&pager->workers[k], u, EPOLL_CTL_DEL);
		if (atomic_exchange(&u->unpolled, false))
			atomic_fetch_sub(&pager->unpolled, 1);
		atomic_fetch_add(&pager->gone_removes, atomic_load(&u->removes));
		atomic_fetch_add(&pager->gone_retries, atomic_load(&u->retries));
	}
}

int km_remote_poll_view(struct kvmem_pager *pager, struct km_view *v)
{
	struct km_detail failed;
	int r = 0;

	for (unsigned int i = 0; i < v->remote->uffd_count; i++)
		if (atomic_load(&v->uffds[i].unpolled))
			atomic_fetch_add(&pager->unpolled, 1);
	for (unsigned int k = 0; k < pager->all_count; k++) {
		struct km_worker *w = &pager->workers[k];

		for (unsigned int i = 0; !r && !w->filler && i < v->remote->uffd_count; i++)
			if (is_of(w, v, i) && !atomic_load(&v->uffds[i].unpolled))
				r = poll_one(w, &v->uffds[i], EPOLL_CTL_ADD);
	}
	if (r) {
		km_detail_save(&failed);
		unpoll_view(pager, v);
		km_detail_restore(&failed);
	}
	return r;
}

int km_remote_poll(struct km_paged *p)
{
	return km_remote_poll_view(p->pager, first_view(p));
}

/* Closing would not do it: the description is another process's as well. */
void km_remote_unpoll(struct km_paged *p)
{
	struct km_detail before;

	km_detail_save(&before);
	for (struct km_view *v = first_view(p); v; v = next_view(v))
		unpoll_view(p->pager, v);
	km_detail_restore(&before);
}

/* The other process has taken O_NONBLOCK away: poll() tells of an error from then on, without end. */
void km_remote_polled(struct km_worker *w, struct km_uffd *u, uint32_t events)
{
	/* Of a region that leaves this is undone by now, or will be without us. */
	if (!(events & EPOLLERR) || !u || !u->view ||
	    atomic_load(&((struct km_paged *)u->view->watch)->leaving))
		return;
	poll_one(w, u, EPOLL_CTL_DEL);
	if (!atomic_exchange(&u->unpolled, true))
		atomic_fetch_add(&w->pager->unpolled, 1);
}

uint64_t km_remote_look_ns(const struct kvmem_pager *pager)
{
	return atomic_load_explicit(&pager->unpolled, memory_order_relaxed)
		       ? km_sys_now_ns() + LOOK_NS
		       : UINT64_MAX;
}

/* ---- the end ---- */

/* Of one of them, or (NULL) all. */
static struct km_paged *next_ended(struct kvmem_pager *pager, const struct km_paged *only)
{
	struct km_paged *p;

	pthread_mutex_lock(&pager->lock);
	for (p = km_paged_first(pager); p; p = km_paged_next(p))
		if (km_watch_ended(&p->watch) && !p->told_ended && (!only || p == only))
			break;
	if (p) {
		p->told_ended = true;
		atomic_fetch_add(&pager->ended_told, 1);
	}
	pthread_mutex_unlock(&pager->lock);
	return p;
}

void km_remote_tell(struct kvmem_pager *pager, const struct km_paged *only)
{
	struct km_paged *p;

	while ((p = next_ended(pager, only)) != NULL) {
		struct km_callback cb;

		km_prefetch_drop(pager, p);
		km_backlog_again(pager); /* without it */
		if (pager->opts.ended) {
			km_callback_enter(&cb, "kvmem_pager_opts.ended", pager, p->watch.region);
			pager->opts.ended(pager->opts.arg, p->watch.region);
			km_callback_leave(&cb);
		}
		km_pager_changed(pager);
	}
}
