// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The processes that have the memory of a watch. All content is placed in the first one's: what is there is in the file
 * that they share, and a thread of another one that is woken finds it, or raises a minor fault and has it mapped.
 */
#include "fill/fill_internal.h"

#include <errno.h>
#include <sys/ioctl.h>

int km_view_new(struct km_watch *w, struct km_remote *m, struct km_view **ret)
{
	const uint64_t removals = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
	struct km_view *v = km_sys_alloc(sizeof(*v));

	if (v)
		v->raw = km_sys_alloc(m->uffd_count * sizeof(*v->uffds) + KM_CACHE_LINE);
	if (!v || !v->raw) {
		km_sys_free(v);
		return km_fail(ENOMEM, "no memory for %u userfaultfds", m->uffd_count);
	}
	v->watch = w;
	v->remote = m;
	v->uffds = (void *)(((uintptr_t)v->raw + KM_CACHE_LINE - 1) &
			    ~(uintptr_t)(KM_CACHE_LINE - 1));
	for (unsigned int i = 0; i < m->uffd_count; i++) {
		struct km_uffd *u = &v->uffds[i];

		atomic_store(&u->fd, m->uffds[i].fd);
		u->spare = m->uffds[i].fd;
		u->sees_removals = m->uffds[i].features & removals;
		u->view = v;
		atomic_store(&u->unpolled, m->uffds[i].blocking);
	}
	*ret = v;
	return 0;
}

void km_view_free(struct km_view *v)
{
	if (v->remote->joined)
		km_remote_free(v->remote);
	km_sys_free(v->raw);
	km_sys_free(v);
}

/* Readers walk the list without a lock: a view is whole before it can be found. One thread at a time. */
void km_view_add(struct km_view *v)
{
	struct km_view *last = km_view_first(v->watch);

	while (atomic_load(&last->next))
		last = atomic_load(&last->next);
	atomic_store_explicit(&last->next, v, memory_order_release);
}

void km_remote_free_views(struct km_watch *w)
{
	struct km_view *v = atomic_exchange(&w->views, NULL), *next;

	for (; v; v = next) {
		next = atomic_load(&v->next);
		km_view_free(v);
	}
}

/* ---- poison ---- */

#define HEAL_TRIES 64u

/* UFFDIO_CONTINUE maps the file's page over a mark. No access to a mark raises an event that could be answered later. */
static void heal_page(const struct km_view *v, const struct km_span *s, uint64_t page)
{
	uint64_t bytes = 1ull << v->watch->shift;
	struct km_uffd *u = &v->uffds[s->uffd];
	int64_t r = -EAGAIN;

	for (unsigned int i = 0; r == -EAGAIN && i < HEAL_TRIES; i++) {
		struct uffdio_continue cont = {
			.range = { .start = s->addr + ((page - s->first) << v->watch->shift),
				   .len = bytes },
		};

		r = km_uffd_ioctl(u, UFFDIO_CONTINUE, &cont);
		if (r == -EAGAIN && !km_uffd_drain(v->watch->set, u))
			km_sys_poll(NULL, 0, 1);
	}
}

void km_views_heal(const struct km_watch *w, uint64_t first, uint64_t count)
{
	const struct km_presence *map = &w->region->presence;
	const struct km_view *v = atomic_load(&km_view_first(w)->next);

	if (!v || !km_presence_marked(map, first, count))
		return;
	for (; v; v = atomic_load(&v->next))
		for (uint64_t page = first; page < first + count; page++) {
			const struct km_span *s = km_remote_span(v->remote, page);

			if (page - s->first < s->pages && km_presence_marked(map, page, 1))
				heal_page(v, s, page);
		}
}

/* ---- faults ---- */

bool km_view_answer(struct km_uffd *u, uint64_t addr, uint64_t page, bool minor)
{
	const struct km_watch *w = u->view->watch;
	enum km_page_state state = km_presence_get(&w->region->presence, page);
	struct km_uffdio_poison poison = { 0 };
	struct uffdio_continue cont = { 0 };
	int64_t r;

	if (!u->view->remote->joined)
		return false;
	addr &= ~((1ull << w->shift) - 1);
	poison.range = (struct uffdio_range){ .start = addr, .len = 1ull << w->shift };
	if (state == KM_POISONED) /* the mark is in the page tables of each */
		return km_uffd_ioctl(u, KM_UFFDIO_POISON, &poison) >= 0;
	if (!minor || (state != KM_PRESENT && state != KM_ZERO))
		return false;
	cont.range = poison.range;
	r = km_uffd_ioctl(u, UFFDIO_CONTINUE, &cont);
	if (r == -EFAULT) /* not in the file any more: the first brings it in */
		return false;
	if (r == -EAGAIN) /* its address space is changing: the thread faults again */
		km_sys_poll(NULL, 0, 1);
	if (r < 0)
		km_uffd_wake(u, addr, 1ull << w->shift);
	return true;
}
