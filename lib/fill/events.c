// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a userfaultfd tells: removals go into the records here, faults go to who asked. */
#include "fill/fill_internal.h"

/* Those whole pages of a watch that [start, end) covers. */
static unsigned int removed_in(struct km_watch *w, uint64_t start, uint64_t end)
{
	uint64_t w_end = w->addr + (km_watch_pages(w) << w->shift), unit = 1ull << w->shift, page,
		 last;

	if (km_watch_is_remote(w)) /* its addresses are of another process */
		return 0;
	start = start > w->addr ? start : w->addr;
	end = km_min(end, w_end);
	if (start >= end)
		return 0;
	page = (start - w->addr + unit - 1) >> w->shift;
	last = (end - w->addr) >> w->shift;
	return page < last ? km_presence_remove(&w->region->presence, page, last - page) : 0;
}

/* The ends of removals may call the VMM: not here, inside the gate. */
struct news {
	bool removals, whole;
};

/* Inside the gate, which holds up who takes a watch out of the list: this may be a thread that fills another region. */
static void enter_removals(struct km_uffd_set *set, struct km_uffd *u, const struct uffd_msg *msgs,
			   unsigned int n, struct news *news)
{
	for (unsigned int i = 0; i < n; i++) {
		const struct uffd_msg *m = &msgs[i];

		if (m->event != UFFD_EVENT_REMOVE && m->event != UFFD_EVENT_UNMAP)
			continue;
		news->removals = true;
		atomic_fetch_add_explicit(&u->removes, 1, memory_order_relaxed);
		if (u->view)
			news->whole |= km_remote_removed(u, m->arg.remove.start,
							 m->arg.remove.end) &
				       KM_IS_WHOLE;
		for (struct km_watch *w = u->view ? NULL : km_watch_first(set); w;
		     w = km_watch_next(w))
			news->whole |= removed_in(w, m->arg.remove.start, m->arg.remove.end) &
				       KM_IS_WHOLE;
	}
}

/* Threads that wait for an absent page, which is zero now. */
static void wake_removed(struct km_uffd *u, const struct uffd_msg *msgs, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		if (msgs[i].event == UFFD_EVENT_REMOVE)
			km_uffd_wake(u, msgs[i].arg.remove.start,
				     msgs[i].arg.remove.end - msgs[i].arg.remove.start);
}

static unsigned int keep_faults(struct uffd_msg *msgs, unsigned int n)
{
	unsigned int kept = 0;

	for (unsigned int i = 0; i < n; i++)
		if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
			msgs[kept++] = msgs[i];
	return kept;
}

unsigned int km_uffd_read(struct km_uffd_set *set, struct km_uffd *u, struct uffd_msg *msgs,
			  unsigned int *ret_faults)
{
	struct news news = { 0 };
	unsigned int n;
	int64_t r;

	if (u->sees_removals)
		km_gate_enter(&u->gate, KM_UFFD_READS);
	r = km_uffd_read_raw(u, msgs, KM_UFFD_MSGS * sizeof(*msgs));
	n = r < 0 ? 0 : (unsigned int)((size_t)r / sizeof(*msgs));
	enter_removals(set, u, msgs, n, &news);
	if (u->sees_removals)
		km_gate_leave(&u->gate, KM_UFFD_READS);
	if (news.removals && atomic_load(&set->drops))
		wake_removed(u, msgs, n);
	if (news.whole && set->whole)
		km_presence_tell(set->whole, set->whole_arg);
	*ret_faults = news.removals ? keep_faults(msgs, n) : n;
	return n;
}

/* The page size of the fault is not told: a wake-up of a base page finds who waits for it. */
static void wake_fault(struct km_uffd *u, const struct uffd_msg *m)
{
	uint64_t page = km_sys_page_size();

	km_uffd_wake(u, m->arg.pagefault.address & ~(page - 1), page);
}

bool km_uffd_drain(struct km_uffd_set *set, struct km_uffd *u)
{
	struct uffd_msg msgs[KM_UFFD_MSGS];
	unsigned int faults, n = km_uffd_read(set, u, msgs, &faults);

	for (unsigned int i = 0; i < faults; i++)
		wake_fault(u, &msgs[i]);
	return n;
}
