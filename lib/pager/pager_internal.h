/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_PAGER_INTERNAL_H
#define KM_PAGER_INTERNAL_H

/*
 * The pager's own parts.
 *
 *	pager.c		the life of a pager: options, regions, threads
 *	pager_worker.c	what a worker does next, and when it sleeps
 *	pager_serve.c	the fault path: events in, waiters woken
 *	pager_fill.c	claimed pages in, content placed; prefetch and background
 *	pager_uffd.c	the ioctls, and what they answer
 *	pager_watch.c	prefetch, waiting, statistics
 *
 * A shard is one userfaultfd over its stripes of every region. A worker belongs to one shard and
 *has buffers, statistics and patterns of its own, so that two shards share nothing on the fault
 *path but the presence map. Without threads one worker has all shards.
 */

#include "pager/pager.h"
#include "base/uapi/userfaultfd.h"

#define KM_MSGS	       64u	    /* events per read */
#define KM_FAULTS      128u	    /* of one batch, with those put off */
#define KM_STREAMS     16u	    /* sequential accesses told apart */
#define KM_AROUNDS     64u	    /* fault-around windows put off until no fault waits */
#define KM_SLICE_BYTES (256u << 10) /* work without a waiter is done in pieces of this size */
#define KM_CACHE_LINE  64u
#define KM_TICK_MS     20

struct km_shard {
	_Alignas(KM_CACHE_LINE) _Atomic int fd;
	int spare; /* a duplicate: outlives an fd closed by mistake */
	struct kvmem_pager *pager;
	_Atomic uint64_t retries;
	_Atomic uint64_t removes;
	/*
	 * Work without a waiter is done by the shard's own workers too. If there is one, it is
	 * never filling what a REMOVE event that it reads is about.
	 */
	_Atomic uint64_t cursor; /* slices of the background given out */
	uint64_t slices;
	struct km_prefetch *prefetch, **prefetch_tail; /* under the pager's lock */
	_Atomic uint64_t prefetch_count;
};

/* A region being served. */
struct km_paged {
	struct kvmem_pager *pager;
	struct kvmem_region *region;
	struct kvmem_source *source;
	uint64_t source_offset;
	uint64_t addr; /* of its mapping */
	uint64_t pages;
	unsigned int shift;
	uint64_t stripe; /* pages in a row that belong to one shard */
	uint64_t window; /* pages: fault-around at a fault without pattern, and at most */
	uint64_t window_max;
	uint64_t ioctls; /* that its memory takes, by bit */
	uint64_t slice;	 /* pages; a stripe begins with one */
	bool in_file;	 /* some were in its file at the beginning, and want mapping alone */
};

enum km_why { KM_DEMAND, KM_AROUND, KM_PREFETCH, KM_BACKGROUND, KM_WHYS };

struct km_pager_counts {
	_Atomic uint64_t missing, minor, stale, reads;
	_Atomic uint64_t pages[KM_WHYS];
	_Atomic uint64_t zero, poisoned;
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
};

/* A sequential access: the window it got last. */
struct km_stream {
	struct km_paged *paged;
	uint64_t first, end;
	uint64_t count; /* pages of the next window, before it doubles */
	uint64_t used;	/* for replacing the one that rested longest */
};

/* What the source said last, in pages of the region. */
struct km_extent {
	struct km_paged *paged;
	uint64_t first, end;
	bool data;
};

struct km_worker {
	_Alignas(KM_CACHE_LINE) struct kvmem_pager *pager;
	struct km_shard *shards;
	unsigned int shard_count;
	int epoll;
	int kick; /* eventfd */
	pthread_t thread;
	bool started;
	uint64_t demand_ns; /* when the last fault was read */
	uint64_t gap_ns;    /* between reads that found some, smoothed */
	uint64_t tick;
	uint8_t *buf;
	uint64_t buf_bytes;
	struct km_extent extent;
	struct km_window slice; /* of the background, under way */
	struct km_window arounds[KM_AROUNDS];
	unsigned int around_first, around_count;
	struct km_stream streams[KM_STREAMS];
	struct km_fault faults[KM_FAULTS];
	unsigned int fault_count;
	struct km_window last; /* filled for an earlier fault of this batch */
	struct uffd_msg msgs[KM_MSGS];
	struct km_pager_counts counts;
};

struct km_prefetch {
	struct km_prefetch *next;
	struct km_window window;
};

enum km_pager_state { KM_PAGER_NEW, KM_PAGER_RUNNING, KM_PAGER_STOPPED };

struct kvmem_pager {
	struct kvmem_pager_opts opts;
	_Atomic int state; /* enum km_pager_state */
	unsigned int shard_count;
	unsigned int worker_count; /* with the one of kvmem_pager_stop(), the last */
	struct km_shard *shards;
	struct km_worker *workers;
	void *raw_shards, *raw_workers;
	struct km_paged **paged; /* in the order they were added; under the lock until started */
	unsigned int paged_count;
	_Atomic bool stopping;
	_Atomic bool background;
	_Atomic bool watched; /* pages come from outside: look now and then whether all are there */
	_Atomic bool complete;
	_Atomic int error;    /* the first of a fill, -errno */
	pthread_mutex_t lock; /* what follows; never taken by a fault */
	pthread_cond_t changed;
	unsigned int waiters;
	bool released; /* the regions are not ours any more */
	uint64_t missing_at_end;
};

/* Of a counter with one writer. */
static inline void km_count_own(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

static inline bool km_can(const struct km_paged *p, unsigned int ioctl_nr)
{
	return p->ioctls >> ioctl_nr & 1;
}

/* ---- pager_uffd.c ---- */

/*
 * Resolve pages of one region; several shards if need be. 0, or -errno of the first page that could
 * not be, with ret_done the pages before it. EAGAIN is dealt with inside; -EEXIST: the page is
 * there.
 */
int km_uffd_copy(struct km_paged *p, uint64_t first, uint64_t count, const void *src,
		 uint64_t *ret_done);
int km_uffd_zero(struct km_paged *p, uint64_t first, uint64_t count, uint64_t *ret_done);
int km_uffd_continue(struct km_paged *p, uint64_t first, uint64_t count, uint64_t *ret_done);
/* 1: poisoned; 0: mapped, poisoned already or gone. */
int km_uffd_poison(struct km_paged *p, uint64_t first);
void km_uffd_wake(struct km_paged *p, uint64_t first, uint64_t count);

/* Register all stripes of a region, all or none; sets p->ioctls. */
int km_uffd_register(struct km_paged *p);
void km_uffd_unregister(struct km_paged *p);

/* Events of a shard, up to KM_MSGS: 0 when there are none. */
unsigned int km_uffd_read(struct km_shard *s, struct uffd_msg *msgs);
/* Read events nobody else will read: removals are applied, faults come again. False: there were
 * none. */
bool km_uffd_drain(struct km_shard *s);
int km_shard_open(struct km_shard *s, struct kvmem_pager *pager, uint64_t features);
void km_shard_close(struct km_shard *s);

/* ---- pager_serve.c ---- */

/* Read and serve one batch; returns the number of events. */
unsigned int km_serve_events(struct km_worker *w);
/* One window of fault-around that was put off; false when there is none. */
bool km_serve_around(struct km_worker *w);
/* Pages of [start, end) that nobody has filled are zero now. */
void km_serve_removed(struct kvmem_pager *pager, uint64_t start, uint64_t end);
struct km_paged *km_paged_at(struct kvmem_pager *pager, uint64_t addr);

/* ---- pager_fill.c ---- */

/*
 * Fill what is absent of a run; what is in the file and only wants mapping is mapped, where nobody
 * waits for it. 0, or the first error, with the pages concerned absent again.
 */
int km_pager_fill(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count,
		  enum km_why why);
/*
 * Fill one page, or do what the caller's `fail` says. The error if it is poisoned now, or the pager
 * is stopping; after 0 it may still be somebody's claim.
 */
int km_pager_fill_or_fail(struct km_worker *w, struct km_paged *p, uint64_t page);
/*
 * Map pages that have content, or (zero) whose content is zero: a fault came for one of them.
 * `fixes`: how many pages may need a second look, because they are mapped already or gone, before
 * it stops.
 */
int km_pager_map(struct km_worker *w, struct km_paged *p, uint64_t first, uint64_t count, bool zero,
		 unsigned int fixes);
/* One page, in whatever state the kernel has it: discarded since, mapped since, or only cached. */
int km_pager_map_page(struct km_paged *p, uint64_t page);
/* Content (NULL: zeros) into the page of the file, whatever it holds. */
int km_pager_store_page(struct km_paged *p, uint64_t page, const void *src);
/* Slices of the background that a shard has in a region. */
uint64_t km_pager_slices(const struct km_paged *p, unsigned int shard);
/* A piece of prefetch or background; false when there is none. */
bool km_pager_prefetch_step(struct km_worker *w);
bool km_pager_background_step(struct km_worker *w);
/* All that is absent, in the calling thread; what fails is poisoned. The first error. */
int km_pager_fill_rest(struct km_worker *w);

/* ---- pager_worker.c ---- */

extern const struct km_fault_ops km_pager_fault_ops;

int km_worker_open(struct km_worker *w, struct kvmem_pager *pager, struct km_shard *shards,
		   unsigned int shard_count);
void km_worker_close(struct km_worker *w);
void *km_worker_run(void *arg);
void km_worker_kick(struct km_worker *w);
void km_pager_kick_all(struct kvmem_pager *pager);
void km_pager_set_error(struct kvmem_pager *pager, int err);
uint64_t km_pager_missing(const struct kvmem_pager *pager);
/* Nothing missing any more? Tells the caller and who waits, once. */
void km_pager_check_complete(struct kvmem_pager *pager);

/* ---- pager_watch.c ---- */

void km_prefetch_free(struct km_prefetch *f);

#endif
