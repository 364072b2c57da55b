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
	const struct km_remote *m = w->region->remote;
	struct km_uffd *all;
	int r;

	w->raw_uffds = km_sys_alloc(m->uffd_count * sizeof(*all) + KM_CACHE_LINE);
	if (!w->raw_uffds)
		return km_fail(ENOMEM, "no memory for %u userfaultfds", m->uffd_count);
	all = (void *)(((uintptr_t)w->raw_uffds + KM_CACHE_LINE - 1) &
		       ~(uintptr_t)(KM_CACHE_LINE - 1));
	for (unsigned int i = 0; i < m->uffd_count; i++) {
		const uint64_t removals = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

		atomic_store(&all[i].fd, m->uffds[i].fd);
		all[i].spare = m->uffds[i].fd;
		all[i].sees_removals = m->uffds[i].features & removals;
		all[i].remote = w;
		atomic_store(&all[i].unpolled, m->uffds[i].blocking);
	}
	w->uffds = all;
	w->ioctls = m->ioctls;
	r = km_watch_check_wake(w);
	if (!r) {
		w->region->watch = w;
		atomic_fetch_add(&w->set->remotes, 1);
		km_watch_append(w->set, w);
		return 0;
	}
	w->uffds = NULL;
	km_remote_free_uffds(w);
	return r;
}

void km_remote_free_uffds(struct km_watch *w)
{
	km_sys_free(w->raw_uffds);
	w->raw_uffds = NULL;
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
	const struct km_remote *m = u->remote->region->remote;
	const struct km_span *s = &m->by_addr[km_remote_at(m, addr)];

	if (addr - s->addr >= s->pages << u->remote->shift)
		return false;
	*ret_page = s->first + ((addr - s->addr) >> u->remote->shift);
	return true;
}

void km_remote_unprotect(struct km_uffd *u, uint64_t addr)
{
	uint64_t page = 1ull << u->remote->shift;
	struct uffdio_writeprotect wp = { .range = { .start = addr & ~(page - 1), .len = page } };

	km_uffd_ioctl(u, UFFDIO_WRITEPROTECT, &wp);
}

/* A page that the region does not have, and is registered all the same: nobody knows its content. */
void km_remote_refuse(struct km_uffd *u, uint64_t addr)
{
	uint64_t page = km_sys_page_size();
	struct km_uffdio_poison poison = { .range = { .start = addr & ~(page - 1), .len = page } };

	km_uffd_ioctl(u, KM_UFFDIO_POISON, &poison);
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
	const struct km_remote *m = u->remote->region->remote;
	unsigned int ended = 0;

	for (unsigned int i = km_remote_at(m, start); i < m->span_count && m->by_addr[i].addr < end;
	     i++)
		ended |= removed_in(u->remote, &m->by_addr[i], start, end);
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
