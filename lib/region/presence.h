/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_PRESENCE_H
#define KM_PRESENCE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * The record of the pages of a region, four bits a page, through which everybody who fills,
 * removes or asks agrees:
 *
 *	ABSENT ---claim---> CLAIMED ---publish---> PRESENT | ZERO | POISONED
 *	   ^  ^                |                      |                |
 *	   |  +----abandon-----+                      |                +--claim--> CLAIMED
 *	   |                                          +--claim_done--> CLAIMED
 *	   +------------------turn--------------------+
 *
 * ABSENT	nothing has filled it.
 * CLAIMED	one thread fills it, and only that thread.
 * PRESENT	its content is in the kernel.
 * ZERO		its content is zero, and the kernel may have no page there (a hole of the source,
 *		discarded, removed).
 * POISONED	it could not be filled, and an access to it raises a memory error.
 *
 * While a page is CLAIMED, two flags may be added by others. WANTED: a thread waits in a fault on
 * it, so who ends the claim must wake it. REMOVED: the memory was taken away meanwhile, so the
 * content that the claimer is about to place must not appear: the page becomes ZERO. A third flag,
 * MARKED, says that the page was POISONED before: the mark of it is in the page tables until
 * something is placed over it, and the page becomes POISONED again when the claim is given up.
 *
 * publish is a release and get an acquire: who sees PRESENT sees the content too.
 *
 * A record of more than 64 KiB is reserved, not touched, at creation: absent is 0, and a page of
 * the record covers 32 MiB of guest.
 */
enum km_page_state {
	KM_ABSENT = 0,
	KM_PRESENT = 2,
	KM_ZERO = 3,
	KM_POISONED = 4,
	KM_CLAIMED = 8,
};

/* How it lies in memory, also in a memfd that outlives its process (record.c). */
#define KM_PAGE_BITS	  4u
#define KM_PAGES_PER_WORD 16u
/* Flags of a page that is CLAIMED. */
#define KM_PAGE_REMOVED 2u
#define KM_PAGE_MARKED	4u

/* What the one who ends a claim has to do next. */
#define KM_WAS_WANTED (1u << 0) /* wake who waits for these pages */
#define KM_IS_WHOLE   (1u << 1) /* nothing is ABSENT or CLAIMED any more: km_presence_notify() */

struct km_presence_listener;

struct km_presence {
	_Atomic uint64_t *words; /* 16 pages each */
	_Atomic uint64_t pages;	 /* grows: see km_presence_grow() */
	uint64_t room;		 /* that there are words for */
	void *mapped;		 /* where they lie in a file: its mapping; record.c */
	uint64_t mapped_bytes;
	_Atomic uint64_t open;	   /* pages ABSENT or CLAIMED, never too few: 0 is whole */
	_Atomic uint64_t done;	   /* pages PRESENT or ZERO */
	_Atomic uint64_t poisoned; /* pages POISONED */
	_Atomic bool ever_poisoned;
	_Atomic uint32_t waiters; /* threads in km_presence_wait() */
	_Atomic uint32_t ends;	  /* the futex word: counts ends of claims while somebody waits */
	/* Set while a pager serves the region; see km_presence_notify(). */
	const struct km_presence_listener *_Atomic listener;
	void *_Atomic listener_arg;
};

int km_presence_init_growing(struct km_presence *p, uint64_t pages, uint64_t room);
void km_presence_destroy(struct km_presence *p);

static inline int km_presence_init(struct km_presence *p, uint64_t pages)
{
	return km_presence_init_growing(p, pages, pages);
}

/*
 * From now on there are `pages` pages, not fewer than before and at most the room; the new ones are ABSENT,
 * or ZERO. One thread at a time. Afterwards the caller notifies as if it were KM_IS_WHOLE, where it is:
 * who asked meanwhile may have seen the new pages as missing.
 */
void km_presence_grow(struct km_presence *p, uint64_t pages, enum km_page_state state);

/* CLAIMED is told without its flags. */
enum km_page_state km_presence_get(const struct km_presence *p, uint64_t page);

/* The run of pages in one state that starts at `page`, at most `max` long: returns its length. */
uint64_t km_presence_run(const struct km_presence *p, uint64_t page, uint64_t max,
			 enum km_page_state *ret_state);

/* The run of claimed pages from `page` on that are all REMOVED, or all not. */
uint64_t km_presence_removed(const struct km_presence *p, uint64_t page, uint64_t max,
			     bool *ret_removed);

/* Is the page ZERO, or claimed and will be, since it was REMOVED meanwhile? */
bool km_presence_zero(const struct km_presence *p, uint64_t page);

/*
 * Claim pages from `first` on as long as they are ABSENT (or POISONED), at most `max`: returns how
 * many, maybe 0. _poisoned() may tell who listens, as km_presence_notify(): no lock may be held.
 */
uint64_t km_presence_claim(struct km_presence *p, uint64_t first, uint64_t max);
uint64_t km_presence_claim_poisoned(struct km_presence *p, uint64_t first, uint64_t max);

/* The same for pages that are PRESENT or ZERO: what is to become ABSENT again is claimed meanwhile. */
uint64_t km_presence_claim_done(struct km_presence *p, uint64_t first, uint64_t max);

/* No page is ABSENT or CLAIMED. By the words: who has ended a claim may not have counted it yet. */
bool km_presence_ended(const struct km_presence *p);

/* How many pages from `first` on, at most `max`, have content: PRESENT or ZERO. */
uint64_t km_presence_settled(const struct km_presence *p, uint64_t first, uint64_t max);

/* Is any of these claimed pages MARKED? A mark has been set; the marks have been taken away. */
bool km_presence_marked(const struct km_presence *p, uint64_t first, uint64_t count);
void km_presence_mark(struct km_presence *p, uint64_t page);
void km_presence_unmark(struct km_presence *p, uint64_t first, uint64_t pages);
/* The removal that was entered for these claimed pages was their claimer's own. */
void km_presence_unremove(struct km_presence *p, uint64_t first, uint64_t pages);

/*
 * End the claim of `pages` pages. Abandoned pages become ABSENT, but ZERO where they were REMOVED
 * and else POISONED where they are MARKED. Both return KM_WAS_WANTED and KM_IS_WHOLE.
 */
unsigned int km_presence_publish(struct km_presence *p, uint64_t first, uint64_t pages,
				 enum km_page_state state);
unsigned int km_presence_abandon(struct km_presence *p, uint64_t first, uint64_t pages);

/* A fault waits for the page: mark it WANTED if it is claimed. Returns the state it has. */
enum km_page_state km_presence_want(struct km_presence *p, uint64_t page);

/*
 * The memory of these pages was taken away by others: ABSENT and POISONED become ZERO, CLAIMED
 * gets REMOVED. PRESENT stays: whether the kernel still has the page is seen at the next fault.
 * Returns KM_IS_WHOLE or 0.
 */
unsigned int km_presence_remove(struct km_presence *p, uint64_t first, uint64_t pages);

/*
 * Pages in state `from` get state `to`; others stay as they are. Neither is CLAIMED. Returns
 * KM_IS_WHOLE or 0.
 */
unsigned int km_presence_turn(struct km_presence *p, uint64_t first, uint64_t pages,
			      enum km_page_state from, enum km_page_state to);

/*
 * Sleep until no page of the run is claimed (true), or for about `timeout_ns` (false). Who publishes
 * or abandons wakes the sleeper; it also looks by itself now and then.
 */
bool km_presence_wait(struct km_presence *p, uint64_t first, uint64_t count, uint64_t timeout_ns);

/*
 * KM_IS_WHOLE was returned: tell who listens. No lock may be held, since it may call the VMM's
 * `complete`. Listeners are set and cleared while no operation on the region is under way.
 */
void km_presence_notify(struct km_presence *p);
/* The same where it is known who listens, and not which region has become whole. */
void km_presence_tell(void (*whole)(void *arg), void *arg);
/*
 * Between these two both of them tell nobody in this thread: it holds something up that `complete` may wait
 * for (a guard, a gate). They nest. The outermost _end() returns whether there was something to tell: the caller
 * calls km_presence_notify() then, of one region of the pager, without locks.
 */
void km_presence_defer(void);
bool km_presence_defer_end(void);
/* Around a callback: what the VMM makes whole there, maybe of another pager, is told at once. */
unsigned int km_presence_undefer(void);
void km_presence_redefer(unsigned int was);
/* Pages that had content are ABSENT again. As above. */
void km_presence_notify_absent(struct km_presence *p);

struct km_presence_listener {
	void (*whole)(void *arg);
	void (*absent)(void *arg);
};
/* NULL: nobody listens any more. */
void km_presence_listen(struct km_presence *p, const struct km_presence_listener *listener,
			void *arg);

static inline uint64_t km_presence_poisoned(const struct km_presence *p)
{
	uint64_t n = atomic_load_explicit(&p->poisoned, memory_order_acquire);

	return n > p->pages ? 0 : n; /* claimed again before who poisoned it had counted it */
}

/* Pages without content: ABSENT, CLAIMED and POISONED. Never too few: pages are counted before they are
 * counted as done, and looked at after. */
static inline uint64_t km_presence_missing(const struct km_presence *p)
{
	uint64_t done = atomic_load(&p->done);

	return atomic_load(&p->pages) - done;
}

#endif
