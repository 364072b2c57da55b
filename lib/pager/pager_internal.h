/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_PAGER_INTERNAL_H
#define KM_PAGER_INTERNAL_H

/*
 * The pager's own parts, each calling only those above it:
 *
 *	wait.c		nothing is missing any more: `complete`, and who waits for it
 *	fail.c		what is done with pages that cannot be filled
 *	trace.c		who faulted what, when and why
 *	pass.c		the end of a pass of the background
 *	later.c		pages whose source answers later
 *	around.c	fault-around: streams, windows, and how much of it was of use
 *	table.c		which region an address is in, while regions come and go
 *	remote.c	memory of other processes: their userfaultfds, their end
 *	serve.c		the fault path: events in, waiters woken
 *	prefetch.c	lists of ranges, and tickets for them
 *	background.c	work that nobody waits for: prefetch, and the fill in address order
 *	worker.c	what a thread does next, and when it sleeps; who keeps house meanwhile
 *	stop.c		the rest filled, in the thread that stops
 *	stats.c		counters
 *	regions.c	regions added, their sources; and removed
 *	put.c		content that came unasked
 *	threads.c	how threads are made: names, processors, scheduling
 *	pager.c		the life of a pager: options, start and stop
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
#define KM_LATER_BATCH 64u	    /* requests to a source that answers later, at once */
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
	_Atomic bool leaving; /* no new work is begun on it */
	/* Memory of another process: */
	_Atomic bool joined; /* its events are read */
	bool told_ended; /* the caller knows that its process has ended; under the pager's lock */
	bool in_file;	 /* some were in its file at the beginning, and want mapping alone */
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
	bool minor, write;
	uint32_t thread; /* that waits, where it is traced */
};

/* A ring of one writer; tail is the reader's. */
struct km_trace {
	struct kvmem_trace_entry *entries; /* NULL: nothing is traced */
	uint64_t mask;
	_Atomic uint64_t head, tail, dropped;
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
	int kick;	   /* eventfd */
	int timer;	   /* -1: epoll_wait() has a time-out, or there is nothing to wait for */
	uint64_t timer_ns; /* what it is set to */
	struct km_thread thread;
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
	struct km_trace trace;
	struct km_later *later[KM_LATER_BATCH]; /* to be submitted */
	unsigned int later_count;
	_Atomic uint64_t seen; /* of kvmem_pager.changes */
};

struct km_later;

struct km_prefetch {
	struct km_prefetch *next;
	struct km_window window;
	struct kvmem_ticket *ticket; /* NULL: nobody asks what came of it */
	uint64_t due_ns;	     /* on a list for later */
	uint64_t missing;	     /* pages, when it was dropped */
};

struct km_prefetch_list {
	struct km_prefetch *first, **tail;
	_Atomic uint64_t count;
};

/* What is to be done, and nobody waits for, of one shard. */
struct km_backlog {
	_Alignas(KM_CACHE_LINE) struct km_prefetch_list now; /* under the pager's lock */
	struct km_prefetch_list later;
	_Atomic uint64_t later_ns; /* when the first of these is due; 0: there are none */
	_Atomic uint64_t cursor;   /* slices of the background given out in this pass */
	_Atomic uint64_t slices;
	_Atomic uint64_t demand_ns;    /* when the shard's last fault was read */
	_Atomic uint64_t later_pieces; /* requests under way that nobody waits for */
	_Atomic uint64_t busy;	       /* these, and threads that have a slice under way */
	_Atomic uint64_t failed;       /* pages of this pass that could not be filled */
	_Atomic uint64_t filled;       /* and that could */
	_Atomic uint64_t retry_ns;     /* when the next pass begins, 0: no other pass */
	uint64_t delay_ns;	       /* and how long the one after that waits */
	_Atomic bool stuck;	       /* the last pass failed, and filled nothing */
};

enum km_pager_state {
	KM_PAGER_NEW,
	KM_PAGER_RUNNING,
	KM_PAGER_HANDED_BACK, /* stopped; its regions are registered still */
	KM_PAGER_STOPPED,
};

/* What kvmem_pager_opts say of threads, kept. */
struct km_thread_opts {
	char prefix[9];
	unsigned long *cpus; /* NULL: as they come */
	uint32_t cpu_count;
	uint32_t policy;
	int32_t priority;
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
	uint64_t mappings;		      /* that the stripes of all regions take */
	struct km_paged_table *_Atomic table; /* of regions, by address */
	struct km_paged_table *old_tables;
	_Atomic uint64_t changes; /* of the table; see table.c */
	bool slow; /* some content is not at hand: fillers do what nobody waits for */
	_Atomic bool fillers_run;
	/* Of regions that are memory of other processes. */
	_Atomic unsigned int ended_told;	     /* of set.ended */
	_Atomic unsigned int unpolled;		     /* userfaultfds that poll() tells nothing of */
	_Atomic uint64_t gone_removes, gone_retries; /* of those that have left */
	/* Reads events while the pager is not running; see km_caretaker_start(). */
	_Atomic bool caretaker_stops;
	_Atomic bool stopping;
	_Atomic bool background;
	_Atomic bool complete;
	_Atomic int error;    /* the first of a fill, -errno */
	pthread_mutex_t lock; /* what follows; never taken by a fault */
	pthread_cond_t changed;
	/* Requests to sources that answer later: later.c. */
	pthread_mutex_t later_lock;
	pthread_cond_t later_changed;
	struct km_later *later, *later_again;
	_Atomic unsigned int later_again_count;
	_Atomic uint64_t later_pages[KM_WHYS], later_failed, later_service[KVMEM_HIST_BUCKETS];
	pthread_mutex_t trace_lock; /* one reader of the traces at a time */
	pthread_mutex_t given_lock; /* given_trace has many writers */
	struct km_trace given_trace;
	_Atomic uint64_t given_pages; /* by kvmem_pager_put() */
	struct km_thread_opts threads;
	unsigned int waiters;
	bool closed;		     /* no list is taken any more */
	struct km_prefetch *dropped; /* pieces whose tickets are to be told */
	bool released;		     /* the regions are not ours any more */
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

/* NULL: the region is not of this pager. */
static inline struct km_paged *km_paged_of(const struct kvmem_pager *pager,
					   const struct kvmem_region *region)
{
	struct km_paged *p = km_paged_first(pager);

	while (p && p->watch.region != region)
		p = km_paged_next(p);
	return p;
}

/* A thread that reads from its source may have to wait. */
static inline bool km_paged_is_slow(const struct km_paged *p)
{
	return p->haste != KM_AT_HAND && p->feed.source->kind != KM_SOURCE_ASYNC;
}

static inline struct km_presence *km_paged_map(const struct km_paged *p)
{
	return &p->watch.region->presence;
}

static inline struct km_worker *km_stop_worker(const struct kvmem_pager *pager)
{
	return &pager->workers[pager->all_count - 1];
}

/* Of the histogram of service times. */
static inline unsigned int km_service_bucket(uint64_t ns)
{
	unsigned int b = ns ? 63u - (unsigned int)__builtin_clzll(ns) : 0;

	return b < KVMEM_HIST_BUCKETS ? b : KVMEM_HIST_BUCKETS - 1;
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
/* -EBUSY while a capture of one of its regions is under way. */
int km_pager_capture_check(struct kvmem_pager *pager, const char *call);
/* Pages that are not PRESENT or ZERO, and those of them that are POISONED. */
uint64_t km_pager_missing(const struct kvmem_pager *pager, uint64_t *ret_poisoned);
void km_pager_set_error(struct kvmem_pager *pager, int err);
/* Nothing may be missing any more: arg is the pager; and as the listener of a region's record, the km_paged. */
void km_pager_whole(void *arg);
void km_pager_region_whole(void *arg);
/* The stop has filled all: who published the last page may not have counted it yet, and finds no pager that runs.
 * False: pages have become absent since. */
bool km_pager_filled(struct kvmem_pager *pager);
struct timespec km_pager_from_now(int64_t ns);
/* What kvmem_pager_wait() waits for may have come. */
void km_pager_changed(struct kvmem_pager *pager);

/* ---- fail.c ---- */

/*
 * Fill one page, or do what the caller's `fail` says. The error if it is poisoned or was left; 0:
 * it is filled, or somebody else's claim.
 */
int km_fail_ask(struct kvmem_pager *pager, struct km_paged *p, uint64_t page, uint32_t why, int err,
		uint32_t attempt);
int km_fill_or_fail(struct km_worker *w, struct km_paged *p, uint64_t page, uint32_t why,
		    const struct km_fill_way *way);

/* ---- trace.c ---- */

int km_trace_check(const struct kvmem_pager_opts *o);
int km_trace_open(struct km_trace *t, uint32_t entries);
void km_trace_close(struct km_trace *t);
void km_trace_put(struct km_trace *t, const struct kvmem_trace_entry *e);
void km_trace_faults(struct km_worker *w, const struct km_fault *f, unsigned int count,
		     uint64_t now);
/* km_fill_way.placed of a worker; tag is enum kvmem_trace_why. */
void km_trace_fill(void *arg, uint32_t tag, const struct km_watch *w, uint64_t first,
		   uint64_t count);
void km_trace_given(struct kvmem_pager *pager, const struct km_watch *w, uint64_t first,
		    uint64_t count, uint16_t why);
uint64_t km_trace_dropped(const struct kvmem_pager *pager);

/* ---- pass.c ---- */

/* A slice, or a request that nobody waited for, of this shard has ended: who has the last one looks whether that was
 * the end of a pass; also who only found that there is no slice left, for the one who did the last may have gone
 * before. */
void km_pass_give_back(struct kvmem_pager *pager, struct km_backlog *b);
void km_pass_request_ended(struct kvmem_pager *pager, struct km_backlog *b, uint64_t failed,
			   bool filled);

/* ---- later.c ---- */

/* km_fill_way.later of a worker, which submits with _flush() what it has taken. */
int km_later_take(void *arg, uint32_t tag, const struct km_feed *f, uint64_t first, uint64_t count);
void km_later_flush(struct km_worker *w);
void km_later_done(struct km_source_request *req, int result);
/* Asks again for what has failed; false when there is nothing. */
bool km_later_step(struct km_worker *w);
/* Until nothing of the region, or (NULL) of all, is under way. */
void km_later_end_all(struct kvmem_pager *pager, const struct km_paged *paged, bool cancel);

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
/* Regions that leave are not remembered. */
void km_around_forget(struct km_around *a);
struct km_fill_way km_way(struct km_worker *w, enum km_why why);

/* ---- table.c ---- */

struct km_paged *km_paged_at(const struct kvmem_pager *pager, uint64_t addr);
/* Room for the table that a change makes; NULL: no memory. Then the change cannot fail. */
struct km_paged_table *km_table_new(const struct kvmem_pager *pager);
void km_table_add(struct kvmem_pager *pager, struct km_paged_table *t, struct km_paged *p);
void km_table_remove(struct kvmem_pager *pager, struct km_paged_table *t, const struct km_paged *p);
void km_table_free(struct kvmem_pager *pager);
/* Has every thread of the pager seen this change? Then what it has replaced can be freed. */
bool km_table_seen(const struct kvmem_pager *pager, uint64_t change);
void km_table_free_old(struct kvmem_pager *pager, bool all);

/* ---- remote.c ---- */

/* Why a region cannot be served by this pager: -errno with the detail set, or 0. */
int km_remote_serve_check(const struct kvmem_pager *pager, const struct kvmem_region *r);
/* Threads learn of events of its userfaultfds; and no longer. */
int km_remote_poll(struct km_paged *p);
int km_remote_poll_view(struct kvmem_pager *pager, struct km_view *v);
void km_remote_unpoll(struct km_paged *p);
/* An event of a worker's epoll that is none of its own: `u` may have become one that poll() tells nothing of. */
void km_remote_polled(struct km_worker *w, struct km_uffd *u, uint32_t events);
/* The userfaultfds of other processes that are this worker's: the one after (*v, *i), which begin NULL and 0. */
struct km_uffd *km_remote_next(const struct km_worker *w, struct km_view **v, unsigned int *i);
/*
 * Tells of regions whose process has ended since. Without locks, and while none of them can go: a thread that is none
 * of the pager's has one of them, `only`.
 */
void km_remote_tell(struct kvmem_pager *pager, const struct km_paged *only);
static inline void km_remote_tell_if(struct kvmem_pager *pager, const struct km_paged *only)
{
	if (atomic_load_explicit(&pager->set.ended, memory_order_relaxed) !=
	    atomic_load_explicit(&pager->ended_told, memory_order_relaxed))
		km_remote_tell(pager, only);
}
/* When events are looked for next, since poll() does not tell; UINT64_MAX: it tells of all. */
uint64_t km_remote_look_ns(const struct kvmem_pager *pager);

/* ---- serve.c ---- */

/* Read and serve one batch of each of its shards; returns the number of events. */
unsigned int km_serve_events(struct km_worker *w);

/* ---- prefetch.c ---- */

void km_prefetch_init(struct km_prefetch_list *list);
void km_prefetch_free(struct km_prefetch *f);
/* What is queued, of a region or (NULL) of all, will not be done. Without locks: tickets may be told. */
void km_prefetch_drop(struct kvmem_pager *pager, const struct km_paged *paged);
/* Nothing is queued from here on: the callbacks of a drop ask for more. */
void km_prefetch_close(struct kvmem_pager *pager);
/* The next piece of a shard, at most `breath` pages; it ends with _done(), err being what failed. */
bool km_prefetch_take(struct kvmem_pager *pager, struct km_backlog *b, uint64_t breath,
		      struct km_prefetch *ret);
void km_prefetch_done(struct kvmem_pager *pager, struct km_backlog *b, const struct km_prefetch *f,
		      int err);
/* When the first piece for later is due; 0: there is none. */
uint64_t km_prefetch_due_ns(const struct km_backlog *b);

/* ---- background.c ---- */

/* Slices of the background that a shard has in a region. */
uint64_t km_paged_slices(const struct km_paged *p, unsigned int shard);
/* The next piece; false when there is none. */
bool km_prefetch_step(struct km_worker *w);
bool km_background_step(struct km_worker *w);
void km_slice_drop(struct km_worker *w);
/* Is there any, and when is the next pass (UINT64_MAX: none is due)? */
bool km_backlog_left(const struct km_worker *w);
uint64_t km_backlog_retry_ns(const struct km_worker *w);
void km_backlog_begin(struct kvmem_pager *pager);
/* There is more to do, or other regions: a pass over everything begins anew. */
void km_backlog_again(struct kvmem_pager *pager);

/* ---- worker.c ---- */

int km_worker_open(struct km_worker *w, struct kvmem_pager *pager, unsigned int first_shard,
		   unsigned int shard_count, bool filler);
int km_worker_buffer(struct km_worker *w, uint64_t bytes);
void km_worker_close(struct km_worker *w);
void *km_worker_run(void *arg);
/* Forget what was begun before kvmem_pager_start(). */
void km_worker_reset(struct km_worker *w);
void km_worker_swallow_kick(struct km_worker *w);
/* Its thread. -errno without detail. */
int km_worker_start(struct km_worker *w, const char *what, unsigned int number);
/* Those of a pager that has threads, if some content is not at hand and they do not run yet. */
void km_fillers_start(struct kvmem_pager *pager);
/* Until no thread of the pager remembers what has left. Without a lock that work may need. */
void km_workers_settle(struct kvmem_pager *pager);
/*
 * From kvmem_pager_add() to the start, and from HAND_BACK to the next one, a thread goes on to read
 * events: it applies removals, maps what has content, and leaves faults on absent pages waiting. It
 * is the worker of kvmem_pager_stop(). -errno with the detail set.
 */
int km_caretaker_start(struct kvmem_pager *pager);
void km_caretaker_stop(struct kvmem_pager *pager);

/* ---- regions.c ---- */

/* Unregister all regions and free what is known of them. */
int km_pager_release_all(struct kvmem_pager *pager, int err);

/* ---- threads.c ---- */

int km_threads_check(const struct kvmem_pager_opts *o);
int km_threads_copy(struct kvmem_pager *pager);
/* -errno without detail. */
int64_t km_threads_create(struct kvmem_pager *pager, struct km_thread *ret, const char *what,
			  unsigned int number, void *(*fn)(void *), void *arg);

/* ---- stop.c ---- */

/* All that is absent or poisoned, in the calling thread; what fails is poisoned. The first error. */
int km_pager_fill_rest(struct kvmem_pager *pager);
int km_pager_fill_region(struct km_paged *p);

#endif
