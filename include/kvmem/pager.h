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
struct kvmem_ticket;

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
	/* Called once for each start, and once more for each time that pages became absent again, when every page
	 * of every region is present, in the thread that brought in the last one: as above, or kvmem_populate(),
	 * kvmem_region_discard(), _mark_present(), kvmem_pager_start(). */
	void (*complete)(void *arg);
	void *arg;
	/* Userfaultfds that the caller has opened, with O_NONBLOCK, and not called UFFDIO_API on; one a shard. They
	 * stay the caller's. NULL: the pager opens its own. */
	const int32_t *uffds;
	uint32_t uffd_count;
	uint32_t trace_entries; /* of each thread's trace, a power of two; 0: nothing is traced */
	/* Of its threads. */
	const unsigned long
		*cpus; /* a mask of cpu_count bits, as in sched_setaffinity(2); NULL: any */
	uint32_t cpu_count;
	uint32_t
		sched_policy; /* SCHED_FIFO, _RR, _BATCH, _IDLE; 0: as the thread that starts them */
	int32_t sched_priority; /* of these */
	uint32_t reserved;
	const char *thread_name; /* their names begin so: at most 8 characters; NULL: "kvmem" */
	/* The process whose memory a region is (kvmem_remote_create()) has ended: once for each region, in a thread of
	 * the pager's, or in the one whose call has met it. Nothing of the region is filled any more. */
	void (*ended)(void *arg, struct kvmem_region *region);
};

#define KVMEM_PAGER_BACKGROUND (1u << 0) /* fill or map all in address order, yielding to faults */
#define KVMEM_PAGER_NO_THREADS (1u << 1) /* the caller polls kvmem_pager_fd() and calls _handle() */
#define KVMEM_PAGER_CAPTURE    (1u << 2) /* its regions can be captured meanwhile: kvmem_capture(3) */
#define KVMEM_PAGER_REMOTE \
	(1u << 3) /* for memory of other processes alone: it opens no userfaultfd */

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
 * KVMEM_FILL_KEEP or KVMEM_FILL_OVERWRITE. Also while the pager is running: the region is served from then
 * on. Errors: -EINVAL, -EEXIST (pages exist that nothing has
 * announced, and no flag says what they are), -EBUSY (region has a pager or is being filled, or pager
 * was stopped), -EOPNOTSUPP (this kind of memory takes no userfaultfd here, or a direct slot bypasses
 * it: the detail says what to change), -ESRCH (memory of a process that has ended), -ENOMEM. One thread at a time per
 * object.
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
 * -EBUSY (a capture of a region is under way, and needs the pager), -EDEADLK (from a callback of the pager),
 * the source's error when FILL could not fill: the pages concerned are poisoned. A populate under way is
 * waited for. One thread at a time per object.
 */
KVMEM_API int kvmem_pager_stop(struct kvmem_pager *pager, uint32_t how);

/**
 * kvmem_pager_free() - let the regions go and free a pager that is not running.
 *
 * What is still absent reads as zero from then on: no vCPU may be in KVM_RUN on such a region. Errors:
 * -EBUSY (running: stop it first; a capture of a region is under way), -EDEADLK. NULL is allowed. One thread at
 * a time per object.
 */
KVMEM_API int kvmem_pager_free(struct kvmem_pager *pager);

/**
 * kvmem_pager_remove() - let one region go, also while the pager is running.
 *
 * how is KVMEM_STOP_FILL: what is missing is filled first, in the calling thread; or KVMEM_STOP_HAND_BACK: it
 * stays absent, and reads as zero from then on, so no slot may show the region to a guest. Waits for what the
 * pager's threads have begun. Errors: -EINVAL, -ENOENT (region is not of this pager), -EBUSY (a slot shows missing
 * pages, or a capture of the region is under way), -EDEADLK (from a callback), -ENOMEM; the source's error when
 * FILL could not fill: the pages are poisoned, and the region is removed. One thread at a time per object.
 */
KVMEM_API int kvmem_pager_remove(struct kvmem_pager *pager, struct kvmem_region *region,
				 uint32_t how);

struct kvmem_range {
	uint64_t offset; /* bytes into the region */
	uint64_t bytes;
};

struct kvmem_ticket_result {
	uint32_t size;
	int32_t error;	       /* the first, -errno; 0: none */
	uint64_t pages;	       /* of the region's page size: that are in */
	uint64_t pages_failed; /* that could not be filled, or were not when the pager stopped */
};

#define KVMEM_TICKET_RESULT_INIT KVMEM_INIT_(struct kvmem_ticket_result)

struct kvmem_prefetch_opts {
	uint32_t size;
	uint32_t flags; /* 0 */
	/* Called once, when every page of the list is in or has failed: in the thread that has dealt with the last,
	 * which may be before kvmem_pager_prefetch() has returned. With a ticket only. */
	void (*done)(void *arg, const struct kvmem_ticket_result *result);
	void *arg;
};

#define KVMEM_PREFETCH_OPTS_INIT KVMEM_INIT_(struct kvmem_prefetch_opts)

/**
 * kvmem_pager_prefetch() - fill these ranges of a region soon, in the given order, ahead of the background.
 *
 * Pages that were in the region's file at kvmem_pager_add() are mapped instead, and not counted. Returns at once.
 * With ret_ticket (may be NULL) there is a ticket, which tells when they are in, whichever way they came; the
 * caller frees it. Errors: -EINVAL, -E2BIG, -ERANGE, -ENOENT (region is not of this pager), -ENOMEM: nothing is
 * prefetched then. May be called from any thread.
 */
KVMEM_API int kvmem_pager_prefetch(struct kvmem_pager *pager, struct kvmem_region *region,
				   const struct kvmem_range *ranges, size_t count,
				   const struct kvmem_prefetch_opts *opts,
				   struct kvmem_ticket **ret_ticket);

/**
 * kvmem_ticket_wait() - wait until every page of the list is in or has failed. timeout_ns < 0: for ever.
 *
 * ret_result (may be NULL) is filled in also when it is not. Errors: -ETIMEDOUT; the first error of a page that
 * could not be filled, -ECANCELED for those that the pager had not come to when it stopped; -EINVAL, -EDEADLK (from a
 * callback). May be called from any thread.
 */
KVMEM_API int kvmem_ticket_wait(struct kvmem_ticket *ticket, int64_t timeout_ns,
				struct kvmem_ticket_result *ret_result);

/**
 * kvmem_ticket_free() - free a ticket; what has not been begun of its list is not prefetched any more.
 *
 * `done` is not called after it has returned. Before the pager is freed, or after. Errors: -EDEADLK (from its
 * own callback, or one of the region's). NULL is allowed. One thread at a time per object.
 */
KVMEM_API int kvmem_ticket_free(struct kvmem_ticket *ticket);

/**
 * kvmem_pager_put() - content that came unasked: place it where pages are absent (or poisoned) still.
 *
 * Whole pages; buf has the content of [offset, offset + bytes). Threads that wait for them go on. Pages that have
 * content already, or that somebody is filling at the moment, are left out. Returns how many bytes were placed. Also
 * before the start, and after HAND_BACK. Errors: -EINVAL, -ERANGE, -ENOENT (region is not of this pager), -EFAULT
 * (buf is not there), -ENOMEM, -EIO. May be called from any thread.
 */
KVMEM_API int64_t kvmem_pager_put(struct kvmem_pager *pager, struct kvmem_region *region,
				  uint64_t offset, const void *buf, uint64_t bytes);

/* Why a page was brought in. */
enum kvmem_trace_why {
	KVMEM_TRACE_DEMAND =
		0, /* an access: one entry for each fault, also on pages that are there */
	KVMEM_TRACE_AROUND = 1,	    /* beside one that was asked for, which may be in the run too */
	KVMEM_TRACE_PREFETCH = 2,   /* kvmem_pager_prefetch() */
	KVMEM_TRACE_BACKGROUND = 3, /* the fill in address order */
	KVMEM_TRACE_PUT = 4,	    /* kvmem_pager_put(): the range that was given */
};

#define KVMEM_TRACE_WRITE (1u << 0) /* the access was a write */
#define KVMEM_TRACE_MINOR (1u << 1) /* the page was in the file, and wanted mapping */

struct kvmem_trace_entry {
	uint64_t time_ns; /* CLOCK_MONOTONIC: the event was read; or the run was filled */
	struct kvmem_region *region;
	uint64_t offset; /* bytes into the region */
	uint64_t bytes;
	uint64_t service_ns; /* of a fault: from then to the wake-up */
	uint32_t thread;     /* of a fault: the thread that waited, as gettid(2); 0: not told */
	uint16_t why;	     /* enum kvmem_trace_why */
	uint16_t flags;	     /* KVMEM_TRACE_* */
};

/**
 * kvmem_pager_trace_read() - take up to `count` entries of the trace, the oldest first.
 *
 * Returns how many were stored, 0 when there are none. Entries for which there was no room are counted in
 * trace_dropped of the statistics. Errors: -EINVAL (the pager was made without trace_entries). May be called from any
 * thread.
 */
KVMEM_API int64_t kvmem_pager_trace_read(struct kvmem_pager *pager,
					 struct kvmem_trace_entry *entries, size_t count);

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
	uint64_t pages_given;			 /* by kvmem_pager_put() */
	uint64_t trace_dropped;			 /* entries that did not fit */
};

#define KVMEM_PAGER_STATS_INIT KVMEM_INIT_(struct kvmem_pager_stats)

/** kvmem_pager_get_stats() - counters since start, summed over shards. Errors: -EINVAL.
 * May be called from any thread. */
KVMEM_API int kvmem_pager_get_stats(const struct kvmem_pager *pager,
				    struct kvmem_pager_stats *ret_stats);

KVMEM_END_DECLS

#endif
