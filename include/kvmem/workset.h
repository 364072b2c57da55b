/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_WORKSET_H
#define KVMEM_WORKSET_H

/*
 * Working sets: which pages a guest touches after it has been restored, in which order, so that the next restore brings
 * them in ahead of it. Part of libkvmem-image.
 *
 * A working set is a hint and never data: a wrong one costs time, and nothing else. docs/workset-format.md has the file
 * byte by byte. Offsets are bytes into the image: of region 0 from 0 on, each further region behind the one before.
 */

#include <kvmem/base.h>
#include <kvmem/image.h>
#include <kvmem/pager.h>

KVMEM_BEGIN_DECLS

struct kvmem_workset;
struct kvmem_recorder;

/* ---- recording ---- */

struct kvmem_recorder_opts {
	uint32_t size;
	uint32_t flags;	    /* 0 */
	uint64_t begin_ns;  /* CLOCK_MONOTONIC: the window begins; 0: now */
	uint64_t window_ns; /* touches later than this are not recorded; 0: 30 s */
	uint64_t
		settled_ns; /* ... nor what follows when nothing new was touched for so long; 0: 2 s */
	uint64_t max_bytes; /* ... nor more than this; 0: half of the memory */
	/* That was replayed in this session: it stays the caller's, and there as long. What it has is not touched by
	 * faults, so the recording has only what is missing in it. NULL: none was. */
	const struct kvmem_workset *replayed;
};

#define KVMEM_RECORDER_OPTS_INIT KVMEM_INIT_(struct kvmem_recorder_opts)

/**
 * kvmem_recorder_create() - begin to record the first touches of these regions, which are the image's in their order.
 *
 * Their pager traces (kvmem_pager_opts.trace_entries) and has its fault-around off (fault_around: one page): what a
 * fault brings in beside its page is touched without a fault. Errors: -EINVAL, -E2BIG, -EOPNOTSUPP (more than 16 TiB),
 * -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_recorder_create(struct kvmem_region *const *regions, uint32_t region_count,
				    const struct kvmem_recorder_opts *opts,
				    struct kvmem_recorder **ret_recorder);

/**
 * kvmem_recorder_read() - take all of a pager's trace that there is now.
 *
 * Call it often enough that the trace does not overflow (trace_dropped of the statistics). Returns 1 while the window
 * is open, and 0 when it is over; what comes later is counted in the statistics and not recorded. Errors: -EINVAL,
 * -ENOMEM. One thread at a time per object.
 */
KVMEM_API int kvmem_recorder_read(struct kvmem_recorder *recorder, struct kvmem_pager *pager);

/** kvmem_recorder_add() - the same, of entries that the caller has read from the trace itself. Those of other regions
 * are passed over. One thread at a time per object. */
KVMEM_API int kvmem_recorder_add(struct kvmem_recorder *recorder,
				 const struct kvmem_trace_entry *entries, size_t count);

struct kvmem_recorder_stats {
	uint32_t size;
	uint32_t over;		 /* 1: the window is over */
	uint64_t faults;	 /* entries of demand faults */
	uint64_t blocked_ns;	 /* that threads waited in them, summed */
	uint64_t pages;		 /* of 4096 bytes: recorded */
	uint64_t pages_late;	 /* of the replayed set, touched before it had brought them in */
	uint64_t pages_new;	 /* not in the replayed set */
	uint64_t pages_left_out; /* of the replayed set, left out on purpose ... */
	uint64_t pages_missed;	 /* ... and touched: their share is the hit rate of the set */
};

#define KVMEM_RECORDER_STATS_INIT KVMEM_INIT_(struct kvmem_recorder_stats)

/** kvmem_recorder_get_stats() - of this session, so far. Errors: -EINVAL. One thread at a time per object. */
KVMEM_API int kvmem_recorder_get_stats(const struct kvmem_recorder *recorder,
				       struct kvmem_recorder_stats *ret_stats);

/** kvmem_recorder_finish() - what was recorded, as a working set of one sample. The recorder goes on. Errors: -EINVAL,
 * -ENOMEM. One thread at a time per object. */
KVMEM_API int kvmem_recorder_finish(struct kvmem_recorder *recorder,
				    struct kvmem_workset **ret_workset);

/** kvmem_recorder_free() - NULL is allowed. One thread at a time per object. */
KVMEM_API void kvmem_recorder_free(struct kvmem_recorder *recorder);

/* ---- working sets ---- */

/**
 * kvmem_workset_merge() - what another session of the same guest touched, into a set.
 *
 * A set remembers of each page in which of the last eight samples it was touched, and drops one that was touched in
 * fewer than a quarter of them. A recording under replay is no sample: it adds what was missing. Both have memory of
 * the same length. Errors: -EINVAL, -ENOMEM: the set is as it was. One thread at a time per object.
 */
KVMEM_API int kvmem_workset_merge(struct kvmem_workset *workset,
				  const struct kvmem_workset *recording);

/**
 * kvmem_workset_save() - write a set to a file, bound to this image. An old file of this name is replaced in one step.
 *
 * Errors: -EINVAL (the image has other memory; a recording under replay is not a set: merge it), -EACCES, -ENOENT,
 * -ENOSPC, -EFBIG, -EIO. May be called from any thread.
 */
KVMEM_API int kvmem_workset_save(const struct kvmem_workset *workset, const char *path,
				 const struct kvmem_image *image);

/**
 * kvmem_workset_load() - read the set of this image.
 *
 * Errors say why there is none, and the caller goes on without: -ENOENT, -EACCES, -ESTALE (of another image), -EBADMSG
 * (damaged, or it cannot be), -EOPNOTSUPP (a format that this library does not know), -EINVAL, -ENOMEM. May be called
 * from any thread.
 */
KVMEM_API int kvmem_workset_load(const char *path, const struct kvmem_image *image,
				 struct kvmem_workset **ret_workset);

struct kvmem_workset_info {
	uint32_t size;
	uint32_t samples; /* recordings in it, at most 8; 0: a recording under replay */
	uint64_t ranges;
	uint64_t bytes;
	uint64_t memory_bytes; /* of the guest */
};

#define KVMEM_WORKSET_INFO_INIT KVMEM_INIT_(struct kvmem_workset_info)

/** kvmem_workset_get_info() - Errors: -EINVAL. May be called from any thread. */
KVMEM_API int kvmem_workset_get_info(const struct kvmem_workset *workset,
				     struct kvmem_workset_info *ret_info);

/* Pages that were touched, neighbours together. */
struct kvmem_workset_range {
	uint64_t offset; /* bytes into the image */
	uint64_t bytes;
	uint32_t votes; /* samples that have them */
	uint32_t reserved;
};

/**
 * kvmem_workset_ranges() - up to `count` ranges of the set from number `first` on, in the order of their first touch.
 *
 * Returns how many were stored, 0 at the end. Errors: -EINVAL. May be called from any thread.
 */
KVMEM_API int64_t kvmem_workset_ranges(const struct kvmem_workset *workset, uint64_t first,
				       struct kvmem_workset_range *ranges, size_t count);

/** kvmem_workset_free() - NULL is allowed. One thread at a time per object. */
KVMEM_API void kvmem_workset_free(struct kvmem_workset *workset);

/* ---- replay ---- */

struct kvmem_replay_opts {
	uint32_t size;
	/*
	 * One range in so many, chosen by its address, is left out, so that a recorder can tell how much of the set is
	 * touched at all (pages_left_out, pages_missed); 0: none.
	 */
	uint32_t sample;
	/* Its data are read into the page cache ahead of the pager, in the same order. NULL: they are not. */
	struct kvmem_image *image;
	uint64_t ahead_bytes; /* so far ahead at most; 0: 64 MiB */
	uint64_t max_bytes;   /* the rest of the set is left; 0: all of it */
	/* Called after each piece of some MiB, in the calling thread; non-zero ends the replay. NULL is allowed. */
	int (*progress)(void *arg, const struct kvmem_image_progress *progress);
	void *arg;
};

#define KVMEM_REPLAY_OPTS_INIT KVMEM_INIT_(struct kvmem_replay_opts)

struct kvmem_replay_result {
	uint32_t size;
	uint32_t reserved;
	uint64_t bytes;		 /* of the set that were asked for */
	uint64_t bytes_left_out; /* by `sample` */
	uint64_t pages_filled;	 /* of the region's page size, by prefetches meanwhile */
	uint64_t faults;	 /* meanwhile */
	uint64_t ns;
};

#define KVMEM_REPLAY_RESULT_INIT KVMEM_INIT_(struct kvmem_replay_result)

/**
 * kvmem_workset_replay() - have a pager bring in a set, in its order, and return when it is in.
 *
 * Before the guest runs, or beside it from a thread of the caller's: faults go first. By kvmem_pager_prefetch(), a
 * piece after the other, so that all workers of the pager fill at once and nothing is allocated by the set's length.
 * Pages that cannot be filled are left: a fault will tell. The regions are those of the recording, in the same order,
 * and of the pager. ret_result may be NULL. Errors: -EINVAL, -ENOENT (a region is not of the pager), -ECANCELED,
 * -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_workset_replay(struct kvmem_workset *workset, struct kvmem_pager *pager,
				   struct kvmem_region *const *regions, uint32_t region_count,
				   const struct kvmem_replay_opts *opts,
				   struct kvmem_replay_result *ret_result);

KVMEM_END_DECLS

#endif
