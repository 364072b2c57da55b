/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_PRESENCE_H
#define KM_PRESENCE_H

#include <stdatomic.h>
#include <stdint.h>

/*
 * The per-page record through which populate, pager, prefetch and discard agree, two bits a page:
 *
 *	ABSENT --claim--> CLAIMED --publish--> PRESENT | ZERO
 *	   ^                 |
 *	   +----abandon------+
 *
 * Who claims a page is the only one to fill it. PRESENT: its content is in the kernel. ZERO: its
 * content is zero and the kernel may have no page there (hole of the source, discarded). publish is
 * a release and get an acquire, so that who sees PRESENT sees the content too.
 *
 * The map of more than 1 GiB is reserved, not touched, at creation: absent is 0 and a page of it
 *covers 64 MiB of guest.
 */
enum km_page_state {
	KM_ABSENT = 0,
	KM_CLAIMED = 1,
	KM_PRESENT = 2,
	KM_ZERO = 3,
};

struct km_presence {
	_Atomic uint64_t *words; /* 32 pages each */
	uint64_t pages;
	_Atomic uint64_t done; /* pages PRESENT or ZERO */
};

int km_presence_init(struct km_presence *p, uint64_t pages);
void km_presence_destroy(struct km_presence *p);
enum km_page_state km_presence_get(const struct km_presence *p, uint64_t page);

/* The run of pages in one state that starts at `page`, at most `max` long: returns its length. */
uint64_t km_presence_run(const struct km_presence *p, uint64_t page, uint64_t max,
			 enum km_page_state *ret_state);

/* Claim pages from `first` on as long as they are absent, at most `max`: returns how many, maybe 0.
 */
uint64_t km_presence_claim(struct km_presence *p, uint64_t first, uint64_t max);

/* Of `count` claimed pages. */
void km_presence_publish(struct km_presence *p, uint64_t first, uint64_t count,
			 enum km_page_state state);
void km_presence_abandon(struct km_presence *p, uint64_t first, uint64_t count);

/* PRESENT -> ZERO, ZERO -> PRESENT and the like, for pages that are done; others stay as they are.
 */
void km_presence_change(struct km_presence *p, uint64_t first, uint64_t count,
			enum km_page_state from, enum km_page_state to);

/* Wait (spinning, then yielding) until no page of the run is claimed by anyone. */
void km_presence_settle(const struct km_presence *p, uint64_t first, uint64_t count);

static inline uint64_t km_presence_missing(const struct km_presence *p)
{
	return p->pages - atomic_load_explicit(&p->done, memory_order_acquire);
}

#endif
