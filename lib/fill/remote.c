// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Watches of other processes' memory: the process has registered it, and has given its userfaultfds. They belong to the
 * watch and not to the pager's set, since an address means something only together with the userfaultfd it came from.
 */
#include "fill/fill_internal.h"

#include <errno.h>
#include <sys/ioctl.h>

int km_remote_begin(struct km_watch *w)
{
	struct km_view *v;
	int r = km_view_new(w, w->region->remote, &v);

	if (r)
		return r;
	w->ioctls = v->remote->ioctls;
	atomic_store(&w->views, v);
	r = km_watch_check_wake(w);
	if (r) {
		km_remote_free_views(w);
		return r;
	}
	return 0;
}

void km_remote_join(struct km_watch *w)
{
	w->region->watch = w;
	atomic_fetch_add(&w->set->remotes, 1);
	km_watch_append(w->set, w);
}

/* Faults that were read and not answered come again, to who reads the events next. */
void km_remote_end(struct km_watch *w)
{
	km_watch_wake(w, 0, km_watch_pages(w));
	atomic_fetch_sub(&w->set->remotes, 1);
	km_watch_unlink(w);
	w->region->watch = NULL;
}

bool km_remote_page(const struct km_uffd *u, uint64_t addr, uint64_t *ret_page)
{
	const struct km_remote *m = u->view->remote;
	const struct km_span *s = &m->by_addr[km_remote_at(m, addr)];
	unsigned int shift = u->view->watch->shift;

	if (addr - s->addr >= s->pages << shift)
		return false;
	*ret_page = s->first + ((addr - s->addr) >> shift);
	return true;
}

void km_remote_unprotect(struct km_uffd *u, uint64_t addr)
{
	uint64_t page = 1ull << u->view->watch->shift;
	struct uffdio_writeprotect wp = { .range = { .start = addr & ~(page - 1), .len = page } };

	/* While its address space changes: it faults again. */
	if (km_uffd_ioctl(u, UFFDIO_WRITEPROTECT, &wp) == -EAGAIN)
		km_uffd_wake(u, wp.range.start, page);
}

/* A page that the region does not have, and is registered all the same: nobody knows its content. */
void km_remote_refuse(struct km_uffd *u, uint64_t addr)
{
	uint64_t page = km_sys_page_size();
	struct km_uffdio_poison poison = { .range = { .start = addr & ~(page - 1), .len = page } };

	if (km_uffd_ioctl(u, KM_UFFDIO_POISON, &poison) == -EAGAIN)
		km_uffd_wake(u, poison.range.start, page);
}

/* Those whole pages of a span that [start, end) covers. */
static unsigned int removed_in(const struct km_watch *w, const struct km_span *s, uint64_t start,
			       uint64_t end)
{
	uint64_t unit = 1ull << w->shift, first, last;

	start = start > s->addr ? start : s->addr;
	end = km_min(end, s->addr + (s->pages << w->shift));
	if (start >= end)
		return 0;
	first = (start - s->addr + unit - 1) >> w->shift;
	last = (end - s->addr) >> w->shift;
	if (first >= last)
		return 0;
	first += s->first;
	last += s->first;
	/* A private mapping of a file would bring the file's page back, by a minor fault. */
	km_presence_turn(&w->region->presence, first, last - first, KM_PRESENT, KM_ZERO);
	return km_presence_remove(&w->region->presence, first, last - first);
}

unsigned int km_remote_removed(const struct km_uffd *u, uint64_t start, uint64_t end)
{
	const struct km_remote *m = u->view->remote;
	unsigned int ended = 0;

	/* A process that has joined has taken its mapping away, not the memory. */
	if (m->joined)
		return 0;
	for (unsigned int i = km_remote_at(m, start); i < m->span_count && m->by_addr[i].addr < end;
	     i++)
		ended |= removed_in(u->view->watch, &m->by_addr[i], start, end);
	return ended;
}

void km_remote_ended(const struct km_watch *w)
{
	if (!atomic_exchange(&w->region->remote->ended, true))
		atomic_fetch_add(&w->set->ended, 1);
}

bool km_watch_ended(const struct km_watch *w)
{
	return km_watch_is_remote(w) && atomic_load(&w->region->remote->ended);
}
