/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_CAPTURE_H
#define KVMEM_CAPTURE_H

/*
 * The memory of a moment, taken while the guest runs on. At the pause all pages are write-protected; a page that is
 * about to be written is handed to the caller first, and the caller fetches the others meanwhile. Each page is handed
 * out once, as it was at the pause.
 */

#include <kvmem/base.h>
#include <kvmem/region.h>

KVMEM_BEGIN_DECLS

struct kvmem_capture;

/* What a run of pages was at the pause. */
enum kvmem_capture_kind {
	KVMEM_CAPTURE_DATA = 0, /* has content, which may be zeros */
	KVMEM_CAPTURE_ZERO = 1, /* zero: there was no memory for it */
	KVMEM_CAPTURE_ABSENT =
		2, /* its pager had not filled it: the pager's source has the content */
	KVMEM_CAPTURE_POISONED =
		3, /* could not be filled, or cannot be read: nobody has the content */
};

struct kvmem_capture_run {
	struct kvmem_region *region;
	uint64_t offset; /* bytes into the region */
	uint64_t bytes;
	uint32_t kind; /* enum kvmem_capture_kind */
	uint32_t reserved;
};

struct kvmem_capture_opts {
	uint32_t size;
	uint32_t flags;	  /* KVMEM_CAPTURE_UFFD */
	uint32_t threads; /* that hand out what is about to be written; 0: chosen */
	int32_t uffd;	  /* with KVMEM_CAPTURE_UFFD: opened by the caller, whose it stays */
	/*
	 * A page that is about to be written, or taken away: one page of the region, of kind DATA or POISONED; content
	 * (NULL where it is POISONED) is valid until it returns. The writer waits meanwhile. 0, or -errno: the capture
	 * has failed. From several threads at once: the capture's, the pager's, those that call
	 * kvmem_region_discard(), _mark_absent() or kvmem_populate(). It must not write to the memory of a region that
	 * is captured, nor read a page that is absent, nor wait for a thread that does.
	 */
	int (*before_write)(void *arg, const struct kvmem_capture_run *run, const void *content);
	void *arg;
};

#define KVMEM_CAPTURE_UFFD (1u << 0) /* opts.uffd: O_NONBLOCK, and UFFDIO_API not called yet */

#define KVMEM_CAPTURE_OPTS_INIT KVMEM_INIT_(struct kvmem_capture_opts)

/**
 * kvmem_capture_create() - what a capture needs, opened and made ahead: nothing is opened later.
 *
 * Starts its threads. It can be started and stopped any number of times. Errors: -EINVAL (no before_write), -E2BIG,
 * -ENOMEM, -EMFILE, -EAGAIN (threads), -EPERM (userfaultfd forbidden: the detail names the sysctl, the capability and
 * the device), -ENOSYS or -EOPNOTSUPP (no write protection by userfaultfd), -EBADF (uffd). May be called from any
 * thread.
 */
KVMEM_API int kvmem_capture_create(const struct kvmem_capture_opts *opts,
				   struct kvmem_capture **ret_capture);

/**
 * kvmem_capture_check() - can this region be captured? 0: it can.
 *
 * Tried on its memory, and nothing stays of that. Errors: -EINVAL; -EOPNOTSUPP (it cannot: the detail says why, and
 * what can); -EBUSY (not now: a capture of it is under way, nobody reads the events of its pager, or another
 * userfaultfd has the memory). May be called from any thread.
 */
KVMEM_API int kvmem_capture_check(struct kvmem_capture *capture, struct kvmem_region *region);

/**
 * kvmem_capture_start() - protect all pages of these regions: what they hold now is what is captured.
 *
 * While no vCPU and no device of the VMM writes to them; when it has returned, the guest may run. On failure nothing is
 * protected. Errors: those of kvmem_capture_check(), with the number of the region in the detail; -EINVAL (no region,
 * or a region of KVMEM_REGION_OVERLAP), -EBUSY (started already), -EDEADLK (from a callback), -ENOMEM. One thread at a
 * time per object.
 */
KVMEM_API int kvmem_capture_start(struct kvmem_capture *capture,
				  struct kvmem_region *const *regions, size_t count);

/**
 * kvmem_capture_start_runs() - the same of these pages alone: a difference to what somebody has already.
 *
 * runs are whole base pages of the regions, in any order, and may overlap; of a larger page that a run touches all is
 * captured. Other pages are neither read nor handed out, and a write to them waits for nobody's before_write. All
 * regions are taken, also those without a run. run_count 0: no page. runs are read during the call. Errors: those of
 * kvmem_capture_start(); -EINVAL (a run that is no pages of one of the regions: its number is in the detail). One
 * thread at a time per object.
 */
KVMEM_API int kvmem_capture_start_runs(struct kvmem_capture *capture,
				       struct kvmem_region *const *regions, size_t count,
				       const struct kvmem_run *runs, uint64_t run_count);

/**
 * kvmem_capture_next() - the next run of pages of one kind that nobody has been given yet.
 *
 * Of kind DATA its content is copied to buf, at most `bytes`, which has room for a page of each region; a run of the
 * other kinds can be longer. Its pages can be written again when it returns. In the order of the regions
 * and of their addresses, as far as one thread calls it. Returns 1 and the run; 0: all pages have been handed out, or
 * are just being handed out in other threads, for which kvmem_capture_stop() waits. Errors: -EINVAL (not started, buf
 * too small), -EDEADLK (from a callback), -ECANCELED (stopped meanwhile), that of a capture that has failed: of
 * before_write, -EIO (memory was taken away by others before it was saved), or the kernel's. May be called from any
 * thread.
 */
KVMEM_API int kvmem_capture_next(struct kvmem_capture *capture, void *buf, uint64_t bytes,
				 struct kvmem_capture_run *ret_run);

/**
 * kvmem_capture_stop() - end it, at any time: nothing is protected any more, and all who wait go on.
 *
 * Waits for before_write in other threads. 0: every page has been handed out. Errors: -ECANCELED (not every page: the
 * detail has how much is left), that of a capture that has failed; it is stopped all the same. -EINVAL (not started),
 * -EDEADLK (from a callback): nothing has happened. One thread at a time per object.
 */
KVMEM_API int kvmem_capture_stop(struct kvmem_capture *capture);

/** kvmem_capture_free() - join its threads and free it. Errors: -EBUSY (stop it first), -EDEADLK. NULL is allowed.
 * One thread at a time per object. */
KVMEM_API int kvmem_capture_free(struct kvmem_capture *capture);

struct kvmem_capture_stats {
	uint32_t size;
	uint32_t threads;
	uint64_t bytes;		/* of all pages that are captured: the sum of the following six */
	uint64_t bytes_written; /* handed to before_write */
	uint64_t bytes_background; /* data of kvmem_capture_next() */
	uint64_t bytes_zero;	   /* of kvmem_capture_next(), by kind */
	uint64_t bytes_absent;
	uint64_t bytes_poisoned;
	uint64_t bytes_left;
	uint64_t pause_ns; /* that kvmem_capture_start() took */
	uint64_t writers;  /* writes that waited */
	uint64_t
		writer_longest_ns; /* of these: from the read of its event to the end of its wait */
};

#define KVMEM_CAPTURE_STATS_INIT KVMEM_INIT_(struct kvmem_capture_stats)

/** kvmem_capture_get_stats() - counters of the capture under way, or of the last one. Errors: -EINVAL.
 * May be called from any thread. */
KVMEM_API int kvmem_capture_get_stats(const struct kvmem_capture *capture,
				      struct kvmem_capture_stats *ret_stats);

KVMEM_END_DECLS

#endif
