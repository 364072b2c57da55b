/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_FILL_H
#define KM_FILL_H

/*
 * fill: from absent to present. The one engine by which pages get their content, whoever asks for
 * it: claim -> content -> place -> map -> publish -> notify. Knows source, numa, region and what is
 * to their left; populate and pager are its clients.
 *
 * Invariants:
 *  - Who has claimed a page ends the claim: by publishing it or by abandoning it.
 *  - What is published PRESENT can be read by the guest; who waits for it has been woken.
 *  - Content never appears in a page that was removed after it was claimed: such a page is ZERO.
 *  - Memory is only touched by calls that answer with an error, never by loads and stores that can
 *    raise SIGBUS.
 */

#include "fill/guard.h"
#include "fill/store.h"
#include "fill/watch.h"
#include "numa/numa.h"
#include "region/region.h"
#include "source/source.h"

/*
 * Pages of one claim at most: what one ioctl places. While a page is claimed a fault on it waits, so
 * claim, read and place no more than this at a time.
 */
#define KM_CLAIM_PAGES 64u

/*
 * Work on the pages of a region goes on between these two: meanwhile no pager is added to the
 * region or taken away from it. Calls can be nested, and several threads can be inside.
 */
void km_pages_enter(struct kvmem_region *r);
void km_pages_leave(struct kvmem_region *r);

/* A userfaultfd watches the region's mapping: pages become visible there by the calls below only. */
bool km_pages_watched(const struct kvmem_region *r);

/* Pages of a watched region now. */
static inline uint64_t km_watch_pages(const struct km_watch *w)
{
	return atomic_load_explicit(&w->region->presence.pages, memory_order_acquire);
}

/*
 * Claim pages that are ABSENT or POISONED, from `page` on, at most `max` (and KM_CLAIM_PAGES): how
 * many, maybe 0. A poisoned page that is claimed can be filled like an absent one; -errno with the detail set where the
 * mark of it cannot be taken away.
 */
int64_t km_pages_claim(struct kvmem_region *r, uint64_t page, uint64_t max);

/*
 * Content of claimed pages was stored where km_region_store() or the file descriptor says: map it
 * where the guest looks, publish it PRESENT and wake who waits. 0, or -errno with the detail set;
 * the first *ret_done pages are published, the others still claimed.
 */
int km_pages_stored(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done);

/*
 * Only where km_pages_watched(): make claimed pages with the content of `buf` (NULL: zeros), map,
 * publish and wake, in one go. Result as above.
 */
int km_pages_place(struct kvmem_region *r, uint64_t page, uint64_t count, const void *buf,
		   uint64_t *ret_done);

/* Claimed pages are zero, and nothing was stored of them: publish them ZERO. `empty`: the caller
 * knows that the kernel has no pages there (km_pages_unannounced()). -errno as above: all are still
 * claimed. */
int km_pages_zero(struct kvmem_region *r, uint64_t page, uint64_t count, bool empty);

/* Give claimed pages up. `stored`: content of them may have been stored; it is taken out first. */
void km_pages_abandon(struct kvmem_region *r, uint64_t page, uint64_t count, bool stored);

/* Take out what was stored of claimed pages: the kernel has no pages there afterwards. */
void km_pages_forget(struct kvmem_region *r, uint64_t page, uint64_t count);

/* Sleep until nobody has claimed a page of the run (true) or about timeout_ns has passed (false). */
bool km_pages_wait(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t timeout_ns);

/*
 * Pages that exist in the kernel and are ABSENT in the record: a guest ran without a pager, or the
 * VMM wrote by hand. `how`: 0 refuses them (-EEXIST, the detail has the count and `what`),
 * KVMEM_FILL_KEEP publishes them PRESENT, KVMEM_FILL_OVERWRITE drops them. For a fresh region this
 * is one system call.
 */
int km_pages_unannounced(struct kvmem_region *r, uint64_t page, uint64_t count, uint32_t how,
			 const char *what);

/*
 * The same in steps, for a caller who may fail in between. _find_ changes nothing. _keep_ has the found pages PRESENT,
 * or takes that back, where that is asked for. _overwrite_ takes them out of the file, where that is; of anonymous
 * memory the caller drops all that is ABSENT. With the region's lock held all the time, and no fillers. The caller
 * frees `runs`.
 */
struct km_found {
	struct km_found_run {
		uint64_t page, count;
	} * runs;
	size_t count, room;
	uint32_t how;
};
int km_pages_find_unannounced(struct kvmem_region *r, uint32_t how, const char *what,
			      struct km_found *ret_found);
void km_pages_keep_found(struct kvmem_region *r, const struct km_found *f, bool keep);
int64_t km_pages_overwrite_found(struct kvmem_region *r, const struct km_found *f);

/*
 * A watch has begun, and the record is believed from here on: pages that it has ZERO, and that somebody has written to
 * while nobody watched, are PRESENT. With the region's lock held.
 */
void km_pages_written_zeros(struct kvmem_region *r);

/*
 * Poisoned pages of the region become absent again, where a watch or nobody has it: an access then waits
 * for their content. 0 or -errno; somebody else must read events, if there are any.
 */
int km_pages_unpoison(struct kvmem_region *r);

/* ---- a pager's own: from its source into a region that it watches ---- */

/* Where the content of a watched region comes from. */
struct km_feed {
	struct km_watch *watch;
	struct kvmem_source *source;
	uint64_t source_offset;
	const void *owner; /* the pager: whose callbacks the source's are */
};

/* What a thread that fills has of its own. */
struct km_hands {
	uint8_t *buf;
	uint64_t buf_bytes;
	/* What the source said last, in pages of the region. */
	const struct km_feed *feed;
	uint64_t first, end;
	bool data, ragged; /* ragged: runs meet within the page */
};

struct km_fill_way {
	bool demand;  /* somebody waits: the caller counts, and then wakes, all of the run */
	bool at_hand; /* only what can be had without waiting for anything */
	bool heal;    /* poisoned pages as well */
	bool zeros;   /* zeros get pages, although nobody may ever look at them */
	bool map;     /* what is PRESENT is mapped where the guest looks */
	bool keep;    /* claims of what the kernel refuses to place */
	/* Counted before anybody can see the pages. One writer each. */
	_Atomic uint64_t *pages, *zero;
	/* Told of each run that was filled; NULL: nobody is. */
	void (*placed)(void *arg, uint32_t tag, const struct km_watch *w, uint64_t first,
		       uint64_t count);
	void *arg;
	uint32_t tag;
	/*
	 * Of a source that answers later: takes these claimed pages of data over, and ends their claim when the answer
	 * is there, by km_pages_given() or _abandon(). -errno: it does not. NULL: the thread waits for the answer.
	 */
	int (*later)(void *arg, uint32_t tag, const struct km_feed *f, uint64_t first,
		     uint64_t count);
};

/*
 * Fill what is absent of a run: 0, or the first error, -EAGAIN for what is not at hand. What could
 * not be filled is as it was. Pages that others have claimed are left out.
 */
int km_fill_run(const struct km_feed *f, struct km_hands *h, uint64_t first, uint64_t count,
		const struct km_fill_way *way);

/*
 * Content that came unasked: place it where pages are ABSENT or POISONED still. Returns how many were placed, or
 * -errno of the first that could not be, without detail; what was not placed is as it was. Pages that others have
 * claimed, or that have content, are left out. Between km_pages_enter() and _leave().
 */
int64_t km_pages_put(struct km_watch *w, uint64_t first, uint64_t count, const uint8_t *src);
/* The same for pages that the caller has claimed: 0, or -errno, and all but the first *ret_placed are claimed still. */
int km_pages_given(struct km_watch *w, uint64_t first, uint64_t count, const uint8_t *src,
		   _Atomic uint64_t *ret_placed);

/* How soon content can be had: at once; perhaps (ask with `at_hand`); or there is no telling. */
enum km_haste { KM_AT_HAND, KM_PERHAPS, KM_SLOW };
enum km_haste km_feed_haste(const struct km_feed *f);

/*
 * Pages that are PRESENT or ZERO: map them where the guest looks, a page of zeros where the kernel
 * has none. Wakes nobody. `fixes`: how many pages may need a look of their own before it stops. 0,
 * or the first error, of a page that the kernel cannot bring back.
 */
int km_map_run(struct km_watch *w, uint64_t first, uint64_t count, bool zero, unsigned int fixes);

/* A page that cannot be filled, claimed by the caller: POISONED from here on. False: it exists after
 * all. The caller of a fault wakes its thread. */
bool km_poison_claimed(struct km_watch *w, uint64_t page);
/* The same for a page that has content which the kernel cannot bring back. */
bool km_poison_lost(struct km_watch *w, uint64_t page);

/* Of a counter with one writer. */
static inline void km_count_own(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

#endif
