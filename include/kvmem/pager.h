/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_PAGER_H
#define KVMEM_PAGER_H

/*
 * Lazy fill: serve the page faults of a region from a source, through userfaultfd.
 *
 * Life: create, add regions, start, (guest runs), stop, free. A page that cannot be filled is
 * poisoned or handed to the caller's `fail`; it never silently becomes zero and never hangs a vCPU.
 */

#include <kvmem/base.h>
#include <kvmem/region.h>
#include <kvmem/source.h>

KVMEM_BEGIN_DECLS

struct kvmem_pager;

/* What the caller's `fail` says to do with pages that could not be filled. */
enum kvmem_fail_action {
	/* Accesses raise SIGBUS, in KVM_RUN too (BUS_MCEERR_AR, for the vCPU's thread to handle); where
	 * the kernel has no UFFDIO_POISON (before 6.6), SIGSEGV, and EFAULT from KVM_RUN. Filling the page
	 * heals it. */
	KVMEM_FAIL_POISON = 0,
	KVMEM_FAIL_RETRY = 1, /* ask the source again */
	/* Leave it absent: an access, or a later pass of the background, asks again. Not of pages that
	 * are waited for, nor by KVMEM_STOP_FILL: these are poisoned instead. */
	KVMEM_FAIL_LEAVE = 2,
};

/* Who wants the pages that could not be filled. */
enum kvmem_fail_why {
	KVMEM_FAIL_DEMAND = 0, /* an access waits */
	KVMEM_FAIL_PREFETCH = 1,
	KVMEM_FAIL_BACKGROUND = 2,
	KVMEM_FAIL_STOP = 3, /* KVMEM_STOP_FILL */
};

struct kvmem_fail {
	uint32_t size;
	int32_t error; /* -errno of the source or the kernel */
	struct kvmem_region *region;
	uint64_t offset; /* bytes into the region */
	uint64_t bytes;
	uint32_t attempt; /* 1 at the first failure of this range */
	uint32_t why;	  /* enum kvmem_fail_why */
};

struct kvmem_pager_opts {
	uint32_t size;
	uint32_t flags;	  /* KVMEM_PAGER_* */
	uint32_t shards;  /* userfaultfds, each over stripes of the regions; 0: chosen */
	uint32_t workers; /* threads per shard, 0: 1 */
	uint64_t
		fault_around; /* most bytes filled by one fault; 0: default (1 MiB), one page: off */
	uint64_t
		busy_poll_ns; /* looks for faults this long before it sleeps; 0: briefly, in a storm */
	/*
	 * Called when a page cannot be filled. NULL: what is waited for, and what KVMEM_STOP_FILL needs, is
	 * poisoned; what nobody waits for is left absent. In the thread that fills: one of the pager's,
	 * kvmem_pager_handle() or kvmem_pager_stop().
	 */
	enum kvmem_fail_action (*fail)(void *arg, const struct kvmem_fail *fail);
	/* Called once for each start, when every page of every region is present, in the thread that
	 * brought in the last one: as above, or kvmem_populate(), kvmem_region_discard(), _mark_present(),
	 * kvmem_pager_start(). */
	void (*complete)(void *arg);
	void *arg;
};

#define KVMEM_PAGER_BACKGROUND (1u << 0) /* fill or map all in address order, yielding to faults */
#define KVMEM_PAGER_NO_THREADS (1u << 1) /* the caller polls kvmem_pager_fd() and calls _handle() */

/*
 * madvise(2) of memory under a pager, other than by kvmem_region_discard(): what was absent becomes
 * zero, also what is being filled at that moment. The kernel holds the calling thread up until a thread of
 * the pager has seen it, so not from a callback. With NO_THREADS the pager does not hear of it, and what was
 * absent is still filled from the source.
 */

#define KVMEM_PAGER_OPTS_INIT KVMEM_INIT_(struct kvmem_pager_opts)

/** kvmem_pager_create() - an engine without regions. Errors: -EINVAL, -E2BIG, -ENOMEM, -EMFILE,
 * -EPERM (userfaultfd forbidden: the detail names the sysctl, the capability and the device),
 * -ENOSYS or -EOPNOTSUPP (no userfaultfd). May be called from any thread. */
KVMEM_API int kvmem_pager_create(const struct kvmem_pager_opts *opts,
				 struct kvmem_pager **ret_pager);

/**
 * kvmem_pager_add() - serve a region's absent pages from a source.
 *
 * Byte 0 of the region is byte source_offset of the source; what lies beyond the source's end is
 * zero. From here on an access to an absent page waits for kvmem_pager_start(). flags: 0,
 * KVMEM_FILL_KEEP or KVMEM_FILL_OVERWRITE. Errors: -EINVAL, -EEXIST (pages exist that nothing has
 * announced, and no flag says what they are), -EBUSY (region has a pager or is being filled, or pager
 * is started), -EOPNOTSUPP (this kind of memory takes no userfaultfd here, or a direct slot bypasses
 * it: the detail says what to change), -ENOMEM. One thread at a time per object.
 */
KVMEM_API int kvmem_pager_add(struct kvmem_pager *pager, struct kvmem_region *region,
			      struct kvmem_source *source, uint64_t source_offset, uint32_t flags);

/**
 * kvmem_pager_set_source() - another source for a region of a pager that is not running.
 *
 * Before the start, or between kvmem_pager_stop() with HAND_BACK and the next start. Errors: -EINVAL,
 * -EBUSY (running), -ENOENT (region is not of this pager), -EDEADLK. One thread at a time per object.
 */
KVMEM_API int kvmem_pager_set_source(struct kvmem_pager *pager, struct kvmem_region *region,
				     struct kvmem_source *source, uint64_t source_offset);

/**
 * kvmem_pager_start() - begin to serve, or go on after HAND_BACK; starts threads unless NO_THREADS.
 *
 * Errors: -EINVAL (no region), -EBUSY (running, or stopped with FILL), -EAGAIN or -ENOMEM (threads),
 * -EDEADLK. One thread at a time per object.
 */
KVMEM_API int kvmem_pager_start(struct kvmem_pager *pager);

enum kvmem_stop {
	KVMEM_STOP_FILL = 0, /* fill what is missing first, then let the regions go */
	KVMEM_STOP_HAND_BACK =
		1, /* stop now; what is missing stays absent, and accesses to it wait */
};

/**
 * kvmem_pager_stop() - end serving and join the threads.
 *
 * After HAND_BACK the regions stay registered: an access to a page that is missing waits until
 * kvmem_pager_start() is called again, or kvmem_populate() has filled it. Errors: -EINVAL (not running),
 * -EDEADLK (from a callback of the pager), the source's error when FILL could not fill: the pages
 * concerned are poisoned. A populate under way is waited for. One thread at a time per object.
 */
KVMEM_API int kvmem_pager_stop(struct kvmem_pager *pager, uint32_t how);

/**
 * kvmem_pager_free() - let the regions go and free a pager that is not running.
 *
 * What is still absent reads as zero from then on: no vCPU may be in KVM_RUN on such a region. Errors:
 * -EBUSY (running: stop it first), -EDEADLK. NULL is allowed. One thread at a time per object.
 */
KVMEM_API int kvmem_pager_free(struct kvmem_pager *pager);

/**
 * kvmem_pager_prefetch() - fill these runs soon, in the given order, ahead of the background fill.
 *
 * Pages that were in the region's file at kvmem_pager_add() are mapped instead, and not counted. Returns at once.
 * Errors: -EINVAL, -ERANGE, -ENOENT (region is not of this pager), -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_pager_prefetch(struct kvmem_pager *pager, const struct kvmem_run *runs,
				   size_t count);

/** kvmem_pager_fd() - readable when kvmem_pager_handle() has work; borrowed, for poll or epoll.
 * Errors: -EINVAL (pager has threads). May be called from any thread. */
KVMEM_API int kvmem_pager_fd(const struct kvmem_pager *pager);

/**
 * kvmem_pager_handle() - serve what is ready, for NO_THREADS; never waits.
 *
 * Returns the number of events served, 0 when there were none. One call also does a bounded piece of
 * background fill when nothing else is to do. Errors: -EINVAL (pager has threads, or is not started).
 * One thread at a time per object.
 */
KVMEM_API int kvmem_pager_handle(struct kvmem_pager *pager);

/**
 * kvmem_pager_wait() - wait until every page is present. timeout_ns < 0: for ever.
 *
 * Errors: -ETIMEDOUT, -EINVAL (not running, or NO_THREADS), -EDEADLK; the first fill error when all that
 * is missing is poisoned, or when a whole pass of the background could fill nothing of it. May be called
 * from any thread.
 */
KVMEM_API int kvmem_pager_wait(struct kvmem_pager *pager, int64_t timeout_ns);

#define KVMEM_HIST_BUCKETS 40 /* bucket i counts times in [2^i, 2^(i+1)) ns */

struct kvmem_pager_stats {
	uint32_t size;
	uint32_t shards;
	uint64_t faults_missing; /* events of each kind */
	uint64_t faults_minor;
	uint64_t faults_stale; /* page was there by the time the event was read */
	uint64_t removes;      /* REMOVE and UNMAP events */
	uint64_t reads;	       /* read() calls that returned events */
	uint64_t pages_demand; /* pages filled because of a fault, the faulting page itself */
	uint64_t pages_around; /* ... and its neighbours */
	uint64_t pages_background;
	uint64_t pages_prefetch;
	uint64_t pages_zero;	 /* of all these, pages of zeros */
	uint64_t pages_missing;	 /* still absent, the poisoned ones among them */
	uint64_t pages_poisoned; /* are poisoned now */
	uint64_t fills_failed;	 /* attempts */
	uint64_t retries;	 /* EAGAIN from the kernel */
	uint64_t around_sampled; /* pages left out of fault-around on purpose ... */
	uint64_t around_touched; /* ... on which a fault came later */
	uint64_t service_p50_ns; /* quantiles of service_ns */
	uint64_t service_p90_ns;
	uint64_t service_p99_ns;
	uint64_t service_p999_ns;
	uint64_t service_ns[KVMEM_HIST_BUCKETS]; /* read of the event to wake-up */
};

#define KVMEM_PAGER_STATS_INIT KVMEM_INIT_(struct kvmem_pager_stats)

/** kvmem_pager_get_stats() - counters since start, summed over shards. Errors: -EINVAL.
 * May be called from any thread. */
KVMEM_API int kvmem_pager_get_stats(const struct kvmem_pager *pager,
				    struct kvmem_pager_stats *ret_stats);

KVMEM_END_DECLS

#endif
