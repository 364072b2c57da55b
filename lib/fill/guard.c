// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Who enters and leaves a guarded region, and what becomes of a write that waits. */
#include "fill/fill_internal.h"

#define SPINS 1000u

struct km_guard *km_guard_enter(struct kvmem_region *r)
{
	struct km_guard *g;

	km_presence_defer();
	atomic_fetch_add(&r->unguarded, 1);
	g = atomic_load(&r->guard);
	if (!g)
		return NULL;
	atomic_fetch_add(&g->users, 1);
	atomic_fetch_sub(&r->unguarded, 1);
	return g;
}

void km_guard_leave(struct kvmem_region *r, struct km_guard *g)
{
	atomic_fetch_sub(g ? &g->users : &r->unguarded, 1);
	if (km_presence_defer_end())
		km_presence_notify(&r->presence);
}

void km_guard_fault(const struct km_watch *w, uint64_t page, uint64_t read_ns)
{
	struct kvmem_region *r = w->region;
	struct km_guard *g = km_guard_enter(r);

	km_guard_before(g, page, 1);
	/* Also where that has done it: this thread may have begun to wait since. */
	km_watch_set_wp(w, page, 1, false);
	if (g)
		g->waited(g, km_sys_now_ns() - read_ns);
	km_guard_leave(r, g);
}

bool km_guard_holds(struct kvmem_region *r, uint64_t page)
{
	struct km_guard *g = km_guard_enter(r);
	bool holds = g && g->holds(g, page);

	km_guard_leave(r, g);
	return holds;
}

void km_guard_begin(struct km_guard *g)
{
	atomic_store(&g->region->guard, g);
}

/*
 * Events are read meanwhile: who is inside may take pages out, and the event of that may be for this thread to read, a
 * worker in a callback, or for one that waits for its source.
 */
static void wait_for_none(_Atomic unsigned int *users, struct km_uffd_set *set)
{
	if (!set->sees_removals)
		set = NULL;
	for (unsigned int looks = 0; atomic_load(users); looks++) {
		for (unsigned int i = 0; set && i < set->count; i++)
			km_uffd_drain(set, &set->all[i]);
		if (looks < SPINS)
			km_relax();
		else if (looks < 2 * SPINS)
			km_sys_yield();
		else
			km_sys_poll(NULL, 0, 1);
	}
}

void km_guard_settle(const struct km_guard *g)
{
	wait_for_none(&g->region->unguarded, g->watch->set);
	km_uffd_settle(g->watch->set);
}

void km_guard_end(struct km_guard *g)
{
	atomic_store(&g->region->guard, NULL);
	wait_for_none(&g->region->unguarded, g->watch->set);
	wait_for_none(&g->users, g->watch->set);
}
