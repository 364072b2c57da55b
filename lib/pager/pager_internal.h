/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_PAGER_INTERNAL_H
#define KM_PAGER_INTERNAL_H

/*
 * The pager's own parts, each calling only those above it:
 *
 *	wait.c		nothing is missing any more: `complete`, and who waits for it
 *	fail.c		what is done with pages that cannot be filled
 *	around.c	fault-around: streams, windows, and how much of it was of use
 *	serve.c		the fault path: events in, waiters woken
 *	background.c	work that nobody waits for: prefetch, and the fill in address order
 *	worker.c	what a thread does next, and when it sleeps; who keeps house meanwhile
 *	stop.c		the rest filled, in the thread that stops
 *	stats.c		counters
 *	regions.c	regions added, their sources
 *	pager.c		the life of a pager: options, threads, start and stop
 *
 * A shard is one userfaultfd over its stripes of every region. A worker belongs to one shard and
 * serves its faults; it has buffers, statistics and patterns of its own, so that two shards share
 * nothing on the fault path but the record of pages. Work that nobody waits for is done by the
 * workers where all content is at hand, and else by fillers: threads of their own, one a shard, so
 * that no fault waits for their reads. Without threads one worker has all shards.
 */

#include "pager/pager.h"

#define KM_STREAMS     16u	    /* sequential accesses told apart */
#define KM_AROUNDS     64u	    /* fault-around windows put off until no fault waits */
#define KM_SAMPLES     64u	    /* pages left out of windows, to see whether they are touched */
#define KM_SLICE_BYTES (256u << 10) /* work without a waiter is done in pieces of this size */

enum km_why { KM_DEMAND, KM_AROUND, KM_PREFETCH, KM_BACKGROUND, KM_WHYS };

/* A region being served. */
struct km_paged {
	struct km_watch watch; /* first: the set's list of watches is the list of these */
	struct km_feed feed;
	struct kvmem_pager *pager;
	uint64_t window; /* pages: fault-around at a fault without pattern, and at most */
	uint64_t window_max;
	uint64_t slice; /* pages; a stripe begins with one */
	enum km_haste haste;
	bool in_file; /* some were in its file at the beginning, and want mapping alone */
	/* Windows to be left out because content was not at hand the last times; and how many
	 * next time. */
	_Atomic uint32_t around_skip, around_penalty;
};

struct km_pager_counts {
	_Atomic uint64_t missing, minor, stale, reads;
	_Atomic uint64_t pages[KM_WHYS];
	_Atomic uint64_t zero, lost, failed;
	_Atomic uint64_t sampled, touched;
	_Atomic uint64_t service_ns[KVMEM_HIST_BUCKETS];
};

struct km_fault {
	struct km_paged *paged;
	uint64_t page;
	uint64_t read_ns;
	bool minor;
};

/* Pages of a region; `kind`: those in this state are meant. */
struct km_window {
	struct km_paged *paged;
	uint64_t first;
	uint64_t count;
	enum km_page_state kind;
	bool down; /* the access goes towards lower addresses: the last pages are wanted first */
};

/* A sequential access: the window it got last. */
struct km_stream {
	struct km_paged *paged;
	uint64_t first, end;
	uint64_t count; /* pages of the next window, before it doubles */
	uint64_t used;	/* for replacing the one that rested longest */
};

/* Fault-around of one worker. */
struct km_around {
	struct km_window windows[KM_AROUNDS];
	unsigned int first, count;
	struct km_stream streams[KM_STREAMS];
	uint64_t tick;
	struct {
		const struct km_paged *paged;
		uint64_t page;
	} samples[KM_SAMPLES];
	unsigned int next_sample;
	uint64_t windows_done;
};

struct km_worker {
	_Alignas(KM_CACHE_LINE) struct kvmem_pager *pager;
	unsigned int first_shard, shard_count; /* whose events it reads, and whose work it does */
	bool filler;			       /* it reads no events */
	int epoll;
	int kick; /* eventfd */
	pthread_t thread;
	bool started;
	uint64_t demand_ns; /* when the last fault was read */
	uint64_t gap_ns;    /* between reads that found some, smoothed */
	struct km_hands hands;
	struct km_window slice; /* of the background, under way */
	struct km_around around;
	struct km_fault faults[KM_UFFD_MSGS];
	unsigned int fault_count;
	struct uffd_msg msgs[KM_UFFD_MSGS];
	struct km_pager_counts counts;
};

struct km_prefetch {
	struct km_prefetch *next;
	struct km_window window;
};

/* What is to be done, and nobody waits for, of one shard. */
struct km_backlog {
	_Alignas(KM_CACHE_LINE) struct km_prefetch *prefetch; /* under the pager's lock */
	struct km_prefetch **prefetch_tail;
	_Atomic uint64_t prefetch_count;
	_Atomic uint64_t cursor; /* slices of the background given out in this pass */
	uint64_t slices;
	_Atomic uint64_t demand_ns; /* when the shard's last fault was read */
	_Atomic uint64_t busy;	    /* threads that have a slice under way */
	_Atomic uint64_t failed;    /* pages of this pass that could not be filled */
	_Atomic uint64_t filled;    /* and that could */
	_Atomic uint64_t retry_ns;  /* when the next pass begins, 0: no other pass */
	uint64_t delay_ns;	    /* and how long the one after that waits */
	_Atomic bool stuck;	    /* the last pass failed, and filled nothing */
};

enum km_pager_state {
	KM_PAGER_NEW,
	KM_PAGER_RUNNING,
	KM_PAGER_HANDED_BACK, /* stopped; its regions are registered still */
	KM_PAGER_STOPPED,
};

struct kvmem_pager {
	struct kvmem_pager_opts opts;
	_Atomic int state; /* enum km_pager_state */
	struct km_uffd_set set;
	/* Workers, then a filler for each shard, and last the one of kvmem_pager_stop(). */
	unsigned int worker_count, all_count;
	struct km_worker *workers;
	struct km_backlog *backlogs; /* one a shard */
	void *raw_workers, *raw_backlogs;
	unsigned int region_count;
	uint64_t mappings;	   /* that the stripes of all regions take */
	struct km_paged **by_addr; /* sorted, while it is running */
	bool slow; /* some content is not at hand: fillers do what nobody waits for */
	_Atomic bool fillers_run;
	/* Reads events while the pager is not running; see km_caretaker_start(). */
	_Atomic bool caretaker_stops;
	_Atomic bool stopping;
	_Atomic bool background;
	_Atomic bool complete;
	_Atomic int error;    /* the first of a fill, -errno */
	pthread_mutex_t lock; /* what follows; never taken by a fault */
	pthread_cond_t changed;
	unsigned int waiters;
	bool released; /* the regions are not ours any more */
	uint64_t missing_at_end, poisoned_at_end;
};

static inline struct km_paged *km_paged_first(const struct kvmem_pager *pager)
{
	return (struct km_paged *)km_watch_first(&pager->set);
}

static inline struct km_paged *km_paged_next(const struct km_paged *p)
{
	return (struct km_paged *)km_watch_next(&p->watch);
}

static inline struct km_presence *km_paged_map(const struct km_paged *p)
{
	return &p->watch.region->presence;
}

static inline struct km_worker *km_stop_worker(const struct kvmem_pager *pager)
{
	return &pager->workers[pager->all_count - 1];
}

static inline void km_worker_kick(struct km_worker *w)
{
	const uint64_t one = 1;

	km_sys_write(w->kick, &one, sizeof(one));
}

static inline void km_pager_kick_all(struct kvmem_pager *pager)
{
	for (unsigned int i = 0; i + 1 < pager->all_count; i++)
		km_worker_kick(&pager->workers[i]);
}

/* ---- wait.c ---- */

/* -EDEADLK inside a callback of the pager, or of a populate of one of its regions: `call` would wait
 * for it. */
int km_pager_callback_check(struct kvmem_pager *pager, const char *call);
/* Pages that are not PRESENT or ZERO, and those of them that are POISONED. */
uint64_t km_pager_missing(const struct kvmem_pager *pager, uint64_t *ret_poisoned);
void km_pager_set_error(struct kvmem_pager *pager, int err);
/* Listener of a region's record: arg is the km_paged. */
void km_pager_region_whole(void *arg);
/* What kvmem_pager_wait() waits for may have come. */
void km_pager_changed(struct kvmem_pager *pager);

/* ---- fail.c ---- */

/*
 * Fill one page, or do what the caller's `fail` says. The error if it is poisoned or was left; 0:
 * it is filled, or somebody else's claim.
 */
int km_fill_or_fail(struct km_worker *w, struct km_paged *p, uint64_t page, uint32_t why,
		    const struct km_fill_way *way);

/* ---- around.c ---- */

/* The pages to bring in with a fault, in *ret: true when it continues a sequential access. */
bool km_around_plan(struct km_worker *w, struct km_paged *p, uint64_t page, struct km_window *ret);
void km_around_put_off(struct km_worker *w, const struct km_window *win);
/* The next piece of a window that was put off, of the kind in *ret_piece, if it holds the page. */
bool km_around_take(struct km_worker *w, const struct km_paged *p, uint64_t page,
		    struct km_window *ret_piece);
/* A piece of a window that was put off; false when there is none. */
bool km_around_step(struct km_worker *w);
void km_around_touched(struct km_worker *w, const struct km_paged *p, uint64_t page);
struct km_fill_way km_way(struct km_worker *w, enum km_why why);

/* ---- serve.c ---- */

/* Read and serve one batch of each of its shards; returns the number of events. */
unsigned int km_serve_events(struct km_worker *w);

/* ---- background.c ---- */

void km_prefetch_free(struct km_prefetch *f);
/* Slices of the background that a shard has in a region. */
uint64_t km_paged_slices(const struct km_paged *p, unsigned int shard);
/* The next piece; false when there is none. */
bool km_prefetch_step(struct km_worker *w);
bool km_background_step(struct km_worker *w);
/* Is there any, and when is the next pass (UINT64_MAX: none is due)? */
bool km_backlog_left(const struct km_worker *w);
uint64_t km_backlog_retry_ns(const struct km_worker *w);
void km_backlog_begin(struct kvmem_pager *pager);

/* ---- worker.c ---- */

int km_worker_open(struct km_worker *w, struct kvmem_pager *pager, unsigned int first_shard,
		   unsigned int shard_count, bool filler);
int km_worker_buffer(struct km_worker *w, uint64_t bytes);
void km_worker_close(struct km_worker *w);
void *km_worker_run(void *arg);
/* Forget what was begun before kvmem_pager_start(). */
void km_worker_reset(struct km_worker *w);
void km_worker_swallow_kick(struct km_worker *w);
/*
 * From kvmem_pager_add() to the start, and from HAND_BACK to the next one, a thread goes on to read
 * events: it applies removals, maps what has content, and leaves faults on absent pages waiting. It
 * is the worker of kvmem_pager_stop(). -errno with the detail set.
 */
int km_caretaker_start(struct kvmem_pager *pager);
void km_caretaker_stop(struct kvmem_pager *pager);

/* ---- regions.c ---- */

/* Unregister all regions and free what is known of them. */
void km_pager_release_all(struct kvmem_pager *pager);

/* ---- stop.c ---- */

/* All that is absent or poisoned, in the calling thread; what fails is poisoned. The first error. */
int km_pager_fill_rest(struct kvmem_pager *pager);

#endif
