/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_FILL_INTERNAL_H
#define KM_FILL_INTERNAL_H

/*
 * fill's own parts, each calling only those above it:
 *
 *	store.c		content into memory that no userfaultfd watches
 *	uffd.c		userfaultfds: opened, registered over regions, woken
 *	view.c		the processes that have the memory of a watch
 *	remote.c	watches of other processes' memory
 *	events.c	their events: removals into the record, faults to who asks
 *	protect.c	write protection that stays
 *	guard.c		who is to see pages before they change
 *	place.c		one placing ioctl, and what it answers
 *	engine.c	claimed pages to their end: placed, published, woken, or given up
 *	unannounced.c	pages that exist and are not in the record
 *	content.c	what the source has for a page
 *	fill.c		the walk of a pager: claim, content, place, publish
 *	map.c		pages that have content, mapped where a fault asks for them, or poisoned
 *	clone.c		pages of clones that are discarded
 *	discard.c, mark.c, absent.c, query.c	what the VMM asks of pages
 */

#include "fill/fill.h"

/* ---- uffd.c ---- */

/*
 * After a removal of one's own has returned: its event is in the record. The kernel lets the thread
 * that removes go on when the event is read, which is before it is entered.
 */
void km_uffd_settle(struct km_uffd_set *set);
/* Who found pages that have content, and brings zeros where the kernel has none, has done so, or sees the record as it
 * is now. */
void km_uffd_settle_places(struct km_uffd_set *set);

struct km_uffd *km_watch_uffd_of(const struct km_watch *w, uint64_t page);
/* Where a page is watched: an address of the process whose memory it is. */
uint64_t km_watch_addr(const struct km_watch *w, uint64_t page);
/* In the list of its set. */
void km_watch_append(struct km_uffd_set *set, struct km_watch *w);
void km_watch_unlink(struct km_watch *w);
/* Waking is allowed: -errno with the detail set. */
int km_watch_check_wake(const struct km_watch *w);
int64_t km_uffd_ioctl(struct km_uffd *u, unsigned long request, void *arg);
int64_t km_uffd_read_raw(struct km_uffd *u, void *buf, size_t bytes);
void km_uffd_wake(struct km_uffd *u, uint64_t addr, uint64_t bytes);

/* The page may be in a file that is mapped there, and not be mapped. */
static inline bool km_watch_has_file(const struct km_watch *w)
{
	return km_watch_is_remote(w) ? w->region->remote->minor : w->region->fd >= 0;
}

/* ---- view.c ---- */

static inline struct km_view *km_view_first(const struct km_watch *w)
{
	return atomic_load_explicit(&w->views, memory_order_acquire);
}

/* ---- heal.c ---- */

/* Pages of a remote watch have content now, which the caller has claimed: marks of poison go from the page tables of
 * those who have joined. */
void km_views_heal(const struct km_watch *w, uint64_t first, uint64_t count);

/* ---- remote.c ---- */

/* Pages of [start, end) there were removed: as km_presence_remove(). */
unsigned int km_remote_removed(const struct km_uffd *u, uint64_t start, uint64_t end);

/* ---- engine.c ---- */

/*
 * End claims, wake who waits and tell who listens. `quiet`: the caller wakes, of all pages at once.
 * Pages of a region that nobody watches have no waiters.
 */
void km_pages_publish(struct kvmem_region *r, uint64_t page, uint64_t count,
		      enum km_page_state state, bool quiet);
/* The same of pages that were placed since km_guard_enter(), which ends here. */
void km_pages_publish_leave(struct kvmem_region *r, struct km_guard *g, uint64_t page,
			    uint64_t count, enum km_page_state state, bool quiet);
int64_t km_pages_set_access(const struct kvmem_region *r, uint64_t page, uint64_t count, int prot);
void km_pages_give_up(struct kvmem_region *r, uint64_t page, uint64_t count);

/*
 * One step of placing claimed pages: with the content `src` (NULL: zeros), or content that is in
 * the file. What must be in the way is taken out of it. 0 with p->done > 0 pages, which the caller
 * publishes as *ret_state; or -errno.
 */
int km_place_claimed(struct km_place *p, enum km_page_state *ret_state);
int km_place_stored(struct km_place *p, enum km_page_state *ret_state);

/* As km_pages_stored(), but that the pages are there is only said: -EIO where they are not. */
int km_pages_found(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done);

/* Claimed pages that become ZERO: nothing may be left of them in the file. 0 or -errno. */
int km_pages_clear(struct kvmem_region *r, uint64_t page, uint64_t count);
/* ... and zero alone is not enough, a page of zeros has to be placed. */
bool km_pages_want_zeros(const struct kvmem_region *r, uint64_t page, uint64_t count);

/* The sentence of a failed ioctl; `op` names it. */
int km_place_failed(int err, const char *op, const struct kvmem_region *r, uint64_t page,
		    uint64_t count);

/* Take pages out of the file, so that whoever looks finds nothing there. */
int64_t km_pages_punch(const struct kvmem_region *r, uint64_t page, uint64_t count);

/* ---- clone.c ---- */

/* Pages of a clone read as zero from here on: 0, or -errno and the first *ret_done do. */
int64_t km_clone_zero(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done);

/* ---- discard.c ---- */

/* Whole pages of the region, and not from a callback of its own. */
int km_pages_check(const struct kvmem_region *r, uint64_t offset, uint64_t bytes, const char *what);
/*
 * Pages that are to change, by steps in a guard. A step deals with the first *ret_n of at most `max` pages; 0, -errno,
 * or KM_CLAIMED_BY_OTHER: it is to be called again when nobody has claimed the page. That is waited for outside of the
 * guard: who has claimed it may be in a callback, and end a capture there, which waits until nobody is in the guard.
 */
#define KM_CLAIMED_BY_OTHER 1
typedef int km_pages_step_fn(struct kvmem_region *r, uint64_t page, uint64_t max, uint64_t *ret_n);
int km_pages_by_steps(struct kvmem_region *r, uint64_t page, uint64_t end, km_pages_step_fn *step,
		      uint64_t *ret_done);
/* Out of the mapping, the file and the page tables. 0 or -errno. */
int64_t km_pages_take_out(struct kvmem_region *r, uint64_t page, uint64_t count);
/* Those pages of a run that are POISONED become ABSENT. 0 or -errno. */
int km_pages_unpoison_run(struct kvmem_region *r, uint64_t page, uint64_t count);

/* ---- content.c ---- */

/* What a run of pages has: its data ends at *count pages, or its zeros do. 0 or -errno. */
int km_content_look(const struct km_feed *f, struct km_hands *h, uint64_t page, uint64_t *count,
		    bool *ret_data);
/* Whole pages of data that lie in memory: where, and how many of *count; else NULL. */
const uint8_t *km_content_direct(const struct km_feed *f, uint64_t page, uint64_t *count);
/*
 * Bytes of a page or more, from byte `at` of it on, into the buffer. `at_hand`: only what can be had
 * without waiting, else -EAGAIN.
 */
int km_content_read(const struct km_feed *f, struct km_hands *h, uint64_t page, uint64_t at,
		    uint64_t bytes, bool at_hand);

#endif
