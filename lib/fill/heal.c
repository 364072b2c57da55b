// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Marks of poison in the page tables of processes that have joined a watch go when the page has content. */
#include "fill/fill_internal.h"

#include <errno.h>
#include <sys/ioctl.h>

#define HEAL_TRIES 64u

/* UFFDIO_CONTINUE maps the file's page over a mark. No access to a mark raises an event, to be answered later. */
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
