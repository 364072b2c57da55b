/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_GUARD_H
#define KM_GUARD_H

/*
 * Pages whose content somebody (a capture) is to see before it changes or is taken away. Included by fill.h; the
 * functions are in guard.c.
 *
 * A guarded page is write-protected by a userfaultfd: the pager's, where the region has one, else one of the
 * capture's own. Who reads the events of that userfaultfd calls km_guard_fault() for a write. Who in the library is
 * about to do what write protection does not stop (take pages out, map a page of the file without protection, fill
 * what the record has ABSENT), brackets it:
 *
 *	g = km_guard_enter(r);
 *	km_guard_before(g, first, count);
 *	...
 *	km_guard_leave(r, g);
 *
 * Who places content in claimed pages stays inside until the record has it: km_pages_publish_leave().
 *
 * What becomes whole inside is told (km_presence_notify()) by the outermost _leave(): `complete` may end the capture,
 * which waits until nobody is inside. So no lock is held there.
 *
 * Whoever has entered before a guard was set, and found none, has left when km_guard_settle() returns, and removals
 * whose events were read before are in the record: nothing of what a guard is to see begins unseen, and no page has
 * content of before that the record has not.
 *
 * _settle() and _end() read events of the watch while they wait: what becomes whole by them the caller has deferred.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct kvmem_region;
struct km_watch;

struct km_guard {
	struct kvmem_region *region;
	const struct km_watch *watch; /* by whose userfaultfds pages are protected */
	/* The content of these pages is about to change: returns when none of them is guarded any more. */
	void (*before)(struct km_guard *g, uint64_t first, uint64_t count);
	bool (*holds)(const struct km_guard *g, uint64_t page);
	void (*waited)(struct km_guard *g, uint64_t ns); /* so long a thread waited in a write */
	_Atomic unsigned int users;
};

/* NULL: the region has none. Either is left by _leave(). */
struct km_guard *km_guard_enter(struct kvmem_region *r);
void km_guard_leave(struct kvmem_region *r, struct km_guard *g);

static inline void km_guard_before(struct km_guard *g, uint64_t first, uint64_t count)
{
	if (g)
		g->before(g, first, count);
}

/* A write waits for this page since read_ns: ends its wait, whether the page is guarded or not. */
void km_guard_fault(const struct km_watch *w, uint64_t page, uint64_t read_ns);

/* Of KVM's pages of a region that one has, is this one guarded? It is write-protected then. */
bool km_guard_holds(struct kvmem_region *r, uint64_t page);

/*
 * Set a guard, with the region's lock held; _settle() without it, before anything is protected. _end(): nobody is in
 * `before` or will be.
 */
void km_guard_begin(struct km_guard *g);
void km_guard_settle(const struct km_guard *g);
void km_guard_end(struct km_guard *g);

#endif
