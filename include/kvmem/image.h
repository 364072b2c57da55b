/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_IMAGE_H
#define KVMEM_IMAGE_H

/*
 * Guests' memory in files: libkvmem-image, a library of its own on top of libkvmem.
 *
 * An image is two files. The data are a raw sparse file of the regions in their order, each page at its offset. What
 * they mean is in the index beside it, NAME.kvmem: which pages are data, zero, or those of the parent, their
 * checksums, the regions, and blobs of the VMM. docs/image-format.md has it byte by byte.
 *
 * Offsets are bytes into the image: region 0 from 0 on, each further one behind the one before.
 */

#include <kvmem/base.h>
#include <kvmem/capture.h>
#include <kvmem/dirty.h>
#include <kvmem/source.h>

KVMEM_BEGIN_DECLS

struct kvmem_image;
struct kvmem_image_writer;

#define KVMEM_IMAGE_NAME_MAX 31 /* bytes of the name of a region or blob */
#define KVMEM_IMAGE_ID_TEXT  33 /* an id as 32 hexadecimal digits, and '\0' */

struct kvmem_image_id {
	uint8_t bytes[16];
};

struct kvmem_image_region {
	uint32_t size;
	uint32_t flags;	   /* the VMM's own */
	uint64_t gpa;	   /* where the guest sees it; UINT64_MAX: not said */
	uint64_t bytes;	   /* a non-zero multiple of 4096 */
	uint64_t offset;   /* bytes into the image; a result, not looked at when an image is made */
	uint64_t reserved; /* 0 */
	char name[KVMEM_IMAGE_NAME_MAX + 1];
};

#define KVMEM_IMAGE_REGION_INIT KVMEM_INIT_(struct kvmem_image_region)

/* ---- opening ---- */

#define KVMEM_IMAGE_RAW_FULL (1u << 0) /* no index: a raw file whose holes are zero */
#define KVMEM_IMAGE_RAW_DIFF (1u << 1) /* no index: a raw file whose holes are the parent's */

struct kvmem_image_open_opts {
	uint32_t size;
	uint32_t flags; /* KVMEM_IMAGE_RAW_* */
	struct kvmem_image
		*parent; /* of KVMEM_IMAGE_RAW_DIFF; it stays the caller's, and open as long */
	const struct kvmem_image_region
		*regions; /* of a raw file; NULL: one, as long as the file */
	uint32_t region_count;
	uint32_t reserved; /* 0 */
};

#define KVMEM_IMAGE_OPEN_OPTS_INIT KVMEM_INIT_(struct kvmem_image_open_opts)

/**
 * kvmem_image_open() - open the image whose index is `path`, for reading.
 *
 * Reads the index's head, whatever the memory's size: pages are looked up and checked when they are read, and
 * parents opened when something of them is. With KVMEM_IMAGE_RAW_*, path is a raw file without an index, e.g. of
 * Firecracker's; nothing checks its content. The image and each of its parents that has been read from are
 * locked (flock, shared) until it is closed, so that who replaces or deletes images can see that they are in use.
 * Errors: -EINVAL, -ENOENT, -EACCES, -EBADMSG (damaged, or not an image), -EOPNOTSUPP (it has features that this
 * library does not know, or is packed, and the library was built without zstd), -EBUSY (it is being deleted),
 * -ENOMEM, -EMFILE. May be called from any thread.
 */
KVMEM_API int kvmem_image_open(const char *path, const struct kvmem_image_open_opts *opts,
			       struct kvmem_image **ret_image);

/**
 * kvmem_image_close() - close it. NULL is allowed.
 *
 * Errors: -EBUSY while one of its sources, a writer, or an image on top of it is there. One thread at a time per
 * object.
 */
KVMEM_API int kvmem_image_close(struct kvmem_image *image);

/**
 * kvmem_image_open_parent() - open the image that it was made on top of, as kvmem_image_open() does.
 *
 * By the path that it knows; it has to be the very image. It is the caller's to close. Errors: -EINVAL, -ENOENT (there
 * is none), -ESTALE (it is another image by now), and those of kvmem_image_open(). May be called from any thread.
 */
KVMEM_API int kvmem_image_open_parent(struct kvmem_image *image, struct kvmem_image **ret_parent);

struct kvmem_image_info {
	uint32_t size;
	uint32_t flags; /* KVMEM_IMAGE_DIFF, KVMEM_IMAGE_PACKED, KVMEM_IMAGE_RAW_* */
	struct kvmem_image_id id, parent; /* zero: raw; none */
	uint64_t bytes;			  /* of all regions */
	uint64_t bytes_data;		  /* of pages stored in this image itself */
	uint64_t bytes_parent;		  /* of pages stored in its parents */
	uint64_t bytes_zero;
	uint64_t created_ns; /* since 1970 */
	uint32_t regions;
	uint32_t blobs;
	uint32_t depth; /* parents that there are */
	uint32_t reserved;
	uint64_t bytes_packed; /* length of packed data; 0: they are not packed */
};

#define KVMEM_IMAGE_DIFF (1u << 8) /* made as a difference to a parent */
#define KVMEM_IMAGE_PACKED \
	(1u << 9) /* its own data are zstd frames; the name of its data is no raw file */
#define KVMEM_IMAGE_INFO_INIT KVMEM_INIT_(struct kvmem_image_info)

/** kvmem_image_get_info() - what it is. The bytes by kind are 0 of a raw file. May be called from any thread. */
KVMEM_API int kvmem_image_get_info(const struct kvmem_image *image,
				   struct kvmem_image_info *ret_info);

/** kvmem_image_get_region() - region `index` of it. Errors: -EINVAL, -ERANGE (there are not so many). */
KVMEM_API int kvmem_image_get_region(const struct kvmem_image *image, uint32_t index,
				     struct kvmem_image_region *ret_region);

/**
 * kvmem_image_read_blob() - what the VMM stored under `name` with the memory.
 *
 * Returns its length; at most `bytes` of it are stored in buf, which may be NULL when bytes is 0. Errors: -EINVAL,
 * -ENOENT, -EBADMSG (damaged). May be called from any thread.
 */
KVMEM_API int64_t kvmem_image_read_blob(const struct kvmem_image *image, const char *name,
					void *buf, uint64_t bytes);

/** kvmem_image_blob_name() - the name of blob `index`, borrowed; NULL when there are not so many. */
KVMEM_API const char *kvmem_image_blob_name(const struct kvmem_image *image, uint32_t index);

/**
 * kvmem_image_source() - the content of region `index`, for kvmem_populate() and kvmem_pager_add().
 *
 * Pages of parents come from there. A page whose checksum is wrong is -EBADMSG, and is never given out. The image
 * stays open as long as the source is there. Errors: -EINVAL, -ERANGE, -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_image_source(struct kvmem_image *image, uint32_t index,
				 struct kvmem_source **ret_source);

/**
 * kvmem_image_template() - the file whose bytes are the image: `fd` of a region that is a clone, KVMEM_REGION_CLONE.
 *
 * A file descriptor of the caller's, for reading. The data stay locked as long as it is open. What clones read is
 * compared with no checksum. Errors: -EINVAL, -EOPNOTSUPP (the data are packed, or pages of parents are not in them),
 * -EMFILE. May be called from any thread.
 */
KVMEM_API int kvmem_image_template(struct kvmem_image *image, int *ret_fd);

/**
 * kvmem_image_read() - bytes of it into buf, checked.
 *
 * Errors: -EINVAL, -ERANGE, -EBADMSG (damaged: nothing of buf counts), -ENOENT, -ESTALE (a parent is not there, or is
 * another one), -EIO. May be called from any thread.
 */
KVMEM_API int kvmem_image_read(struct kvmem_image *image, uint64_t offset, void *buf,
			       uint64_t bytes);

/**
 * kvmem_image_prefetch() - have the kernel read these bytes into the page cache, and do not wait for it.
 *
 * Those of parents too, from where they are. Nothing is checked. Errors: -EINVAL, -ERANGE, and those of opening a
 * parent. May be called from any thread.
 */
KVMEM_API int kvmem_image_prefetch(struct kvmem_image *image, uint64_t offset, uint64_t bytes);

enum kvmem_image_kind {
	KVMEM_IMAGE_ZERO = 0,
	KVMEM_IMAGE_DATA = 1,	/* stored in this image */
	KVMEM_IMAGE_PARENT = 2, /* stored in one of its parents */
};

struct kvmem_image_run {
	uint32_t size;
	uint32_t kind;	 /* enum kvmem_image_kind */
	uint64_t offset; /* bytes into the image */
	uint64_t bytes;
	uint32_t layer; /* of DATA and PARENT: 0 is the oldest parent */
	uint32_t reserved;
};

#define KVMEM_IMAGE_RUN_INIT KVMEM_INIT_(struct kvmem_image_run)

/**
 * kvmem_image_next_run() - the run of pages of one kind and layer that the page at `from` begins.
 *
 * What lies behind it may be of the same kind. Returns 1, or 0 at the end of the image. Errors: -EINVAL, -ERANGE,
 * -EBADMSG, and those of opening a parent. May be called from any thread.
 */
KVMEM_API int kvmem_image_next_run(struct kvmem_image *image, uint64_t from,
				   struct kvmem_image_run *ret_run);

struct kvmem_image_progress {
	uint32_t size;
	uint32_t reserved;
	uint64_t done; /* bytes */
	uint64_t total;
};

/**
 * kvmem_image_verify() - read all of it, index, blobs and pages, those of parents among them, against the checksums.
 *
 * progress (may be NULL) is called after each blob and each MiB; non-zero cancels. Returns 0, or the first error:
 * -EBADMSG with the offset in the detail, -ECANCELED, or those of kvmem_image_read(). -EOPNOTSUPP of a raw file: it
 * has no checksums. May be called from any thread.
 */
KVMEM_API int kvmem_image_verify(struct kvmem_image *image,
				 int (*progress)(void *arg,
						 const struct kvmem_image_progress *progress),
				 void *arg);

/* ---- writing ---- */

#define KVMEM_IMAGE_NO_SYNC \
	(1u << 0) /* fast, and after a crash of the machine anything may be left */
#define KVMEM_IMAGE_REPLACE \
	(1u << 1) /* an image of this name is replaced in one step, at the commit */

struct kvmem_image_create_opts {
	uint32_t size;
	uint32_t flags; /* KVMEM_IMAGE_NO_SYNC, KVMEM_IMAGE_REPLACE, KVMEM_IMAGE_PACKED */
	const struct kvmem_image_region *regions; /* NULL with a parent: as it has them */
	uint32_t region_count;
	uint32_t reserved; /* 0 */
	/* Pages that nothing is written to are its; NULL: they are zero. It stays the caller's, and open as long. */
	struct kvmem_image *parent;
	/*
	 * Of KVMEM_IMAGE_PACKED: called now and then by kvmem_image_commit(), in its thread; non-zero cancels. It must
	 * not use the writer (-EBUSY). NULL is allowed.
	 */
	int (*progress)(void *arg, const struct kvmem_image_progress *progress);
	void *arg;
	/*
	 * Of KVMEM_IMAGE_REPLACE: only this image is replaced, e.g. since the new one is made of its content. Looked at
	 * during the call: it can be closed before the commit. NULL: whatever image has the name.
	 */
	const struct kvmem_image *replaces;
};

#define KVMEM_IMAGE_CREATE_OPTS_INIT KVMEM_INIT_(struct kvmem_image_create_opts)

/**
 * kvmem_image_create() - begin to write an image whose data are `path` and whose index is `path`.kvmem.
 *
 * Nothing of it has a name until kvmem_image_commit(). With KVMEM_IMAGE_PACKED the commit packs it: until then its
 * pages are in a raw file without a name. With a parent, its index has to be reachable from the folder of `path` by
 * the path that the parent was opened with. Errors: -EINVAL, -EEXIST (there is such an image, or a file where
 * its data go, and not KVMEM_IMAGE_REPLACE), -ENOENT, -EACCES, -EOPNOTSUPP (parent or replaces is a raw file; or
 * KVMEM_IMAGE_PACKED, and the library was built without zstd), -ENOSPC, -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_image_create(const char *path, const struct kvmem_image_create_opts *opts,
				 struct kvmem_image_writer **ret_writer);

/**
 * kvmem_image_write() - whole pages of content: offset and bytes are multiples of 4096.
 *
 * Pages of zeros are found and not stored. A page may be written again; what was written last counts. Errors: -EINVAL,
 * -ERANGE, -ENOSPC, -EFBIG, -EIO, -ENOMEM; after one of the last four the pages of this call are undefined until they
 * are written again. May be called from any thread, several at a time on pages of their own.
 */
KVMEM_API int kvmem_image_write(struct kvmem_image_writer *writer, uint64_t offset, const void *buf,
				uint64_t bytes);

/** kvmem_image_write_zero() - whole pages that are zero, also where the parent has content. As kvmem_image_write(). */
KVMEM_API int kvmem_image_write_zero(struct kvmem_image_writer *writer, uint64_t offset,
				     uint64_t bytes);

/**
 * kvmem_image_write_blob() - something of the VMM's that belongs to the memory, e.g. device state, under a name.
 *
 * At most 64 of them, each at most 1 GiB. Errors: -EINVAL, -EEXIST (the name is taken), -ENOSPC (too many), -ENOMEM.
 * May be called from any thread.
 */
KVMEM_API int kvmem_image_write_blob(struct kvmem_image_writer *writer, const char *name,
				     const void *buf, uint64_t bytes);

/**
 * kvmem_image_commit() - the image is complete: it is there from now on, and the writer is gone.
 *
 * Data and index are on the disk before the index has its name, unless KVMEM_IMAGE_NO_SYNC. On failure the writer is
 * gone as well, and what was there before is there still. ret_id may be NULL. Errors: -EINVAL (also: the image that
 * it would replace is one of its parents), -ECANCELED, -EEXIST (somebody else made it meanwhile), -ESTALE (the parent,
 * or the image that the caller wants to replace, is another one by now, or that one is gone), -ENOENT (the parent is
 * not there), -EBADMSG (the parent is damaged), -ETIMEDOUT (another process has had the old index's lock for 30 s),
 * -ENOSPC, -EFBIG, -EIO, -EDQUOT; -EBUSY (kvmem_image_save(), or the commit itself, is not over) leaves the writer. One
 * thread at a time per object.
 */
KVMEM_API int kvmem_image_commit(struct kvmem_image_writer *writer, struct kvmem_image_id *ret_id);

/**
 * kvmem_image_abort() - give it up: nothing is left of it. While a save, capture or commit has it: nothing is done.
 *
 * NULL is allowed. One thread at a time per object.
 */
KVMEM_API void kvmem_image_abort(struct kvmem_image_writer *writer);

/* ---- saving a guest ---- */

/*
 * Pages that a pager has not filled yet are the parent's: the source that it fills them from is the parent image, or
 * has the same content. Without it they are filled first, and stored.
 */
#define KVMEM_IMAGE_ABSENT_FROM_PARENT (1u << 0)

struct kvmem_image_save_opts {
	uint32_t size;
	uint32_t flags;	   /* KVMEM_IMAGE_ABSENT_FROM_PARENT */
	uint32_t threads;  /* that read, check and write; 0: as many as CPUs, at most 4 */
	uint32_t reserved; /* 0 */
	/* Called now and then in the calling thread; non-zero cancels. It must not use the writer. NULL is allowed. */
	int (*progress)(void *arg, const struct kvmem_image_progress *progress);
	void *arg;
	/* In place of a batch: these runs of the regions, read during the call. Not of kvmem_image_capture_run(). */
	const struct kvmem_run *runs;
	uint64_t run_count; /* 0 with runs: none */
};

#define KVMEM_IMAGE_SAVE_OPTS_INIT KVMEM_INIT_(struct kvmem_image_save_opts)

struct kvmem_image_save_result {
	uint32_t size;
	uint32_t threads;      /* that there were */
	uint64_t bytes_data;   /* stored */
	uint64_t bytes_zero;   /* zero: known without reading, or found */
	uint64_t bytes_absent; /* left to the parent */
	uint64_t ns;
};

#define KVMEM_IMAGE_SAVE_RESULT_INIT KVMEM_INIT_(struct kvmem_image_save_result)

/**
 * kvmem_image_save() - what memory holds, all of it or what a dirty batch has, into an image that is being made.
 *
 * regions[i] is the memory of the image's region i, of the same length. The guest is stopped meanwhile: a page that is
 * written while it is read has any mixture of both contents. batch NULL: all of the regions, or opts->runs, which stay
 * the caller's; else the runs of the batch, which is committed (kvmem_dirty_commit()) and has no other regions. The
 * batch is taken, also when the call
 * fails: kvmem_image_commit() frees it when it succeeds. When anything fails, or the image is given up, it is given
 * back to its reader, whose next harvest has its pages again. ret_result may be NULL. Errors: -EINVAL, -EIO (a poisoned
 * page), -EFAULT (memory that cannot be read), -EPERM (the batch is not committed), -ECANCELED, -ENOSPC, -EFBIG,
 * -ENOMEM; the writer can only be given up then. One thread at a time per object.
 */
KVMEM_API int kvmem_image_save(struct kvmem_image_writer *writer,
			       struct kvmem_region *const *regions, uint32_t region_count,
			       struct kvmem_batch *batch, const struct kvmem_image_save_opts *opts,
			       struct kvmem_image_save_result *ret_result);

/* ---- saving a guest that runs, pass by pass ---- */

struct kvmem_dirty;
struct kvmem_reader;
struct kvmem_writes;

#define KVMEM_IMAGE_LAST_PASS \
	(1u << 1) /* the guest is stopped: what is left, and the image is complete */

struct kvmem_image_precopy_opts {
	uint32_t size;
	uint32_t flags;	  /* KVMEM_IMAGE_LAST_PASS, KVMEM_IMAGE_ABSENT_FROM_PARENT */
	uint32_t threads; /* as of kvmem_image_save() */
	uint32_t passes;  /* at most, of one call; 0: 16 */
	/* Who tells what was written: a reader of this image's own, with its tracker; or `writes` with all regions. */
	struct kvmem_dirty *dirty;
	struct kvmem_reader *reader;
	struct kvmem_writes *writes;
	uint64_t pause_ns; /* the last pass is to take no longer; 0: 100 ms */
	int (*progress)(void *arg, const struct kvmem_image_progress *progress);
	void *arg;
};

#define KVMEM_IMAGE_PRECOPY_OPTS_INIT KVMEM_INIT_(struct kvmem_image_precopy_opts)

enum kvmem_image_precopy_end {
	KVMEM_IMAGE_PRECOPY_CONVERGED = 0, /* what is left is saved within pause_ns */
	KVMEM_IMAGE_PRECOPY_STALLED = 1,   /* the guest writes as fast as pages are saved */
	KVMEM_IMAGE_PRECOPY_PASSES = 2,	   /* that were all passes */
};

struct kvmem_image_precopy_result {
	uint32_t size;
	uint32_t end;	     /* enum kvmem_image_precopy_end; after the last pass CONVERGED */
	uint32_t passes;     /* that this call has made */
	uint32_t reserved;   /* 0 */
	uint64_t bytes_data; /* stored by all passes of this call: pages count each time */
	uint64_t bytes_pass; /* that the last of them looked at */
	uint64_t
		pause_ns; /* how long the next pass is expected to take; of the last one how long it took */
	uint64_t ns;
};

#define KVMEM_IMAGE_PRECOPY_RESULT_INIT KVMEM_INIT_(struct kvmem_image_precopy_result)

/**
 * kvmem_image_precopy() - save what memory holds while the guest runs, until what is left is a short pause.
 *
 * For memory that kvmem_capture_check() refuses. The image is of the moment of the last pass. The first call saves
 * all of the regions, then again and again what was written meanwhile, and returns when a pass took no longer than
 * pause_ns, or when that is not to be had (ret_result->end). The caller then stops the guest and calls it once more,
 * with KVMEM_IMAGE_LAST_PASS; or goes on without it, for more passes. Until the last pass the image cannot be
 * committed. The reader sees all regions, is nobody else's and has existed since before the first call (the regions
 * are added to `writes` before it): what it has told is not given back when the image fails. ret_result may be NULL.
 * Errors: those of kvmem_image_save(), kvmem_reader_harvest(), kvmem_dirty_commit() and kvmem_writes_take(); the
 * writer can only be given up then. One thread at a time per object.
 */
KVMEM_API int kvmem_image_precopy(struct kvmem_image_writer *writer,
				  struct kvmem_region *const *regions, uint32_t region_count,
				  const struct kvmem_image_precopy_opts *opts,
				  struct kvmem_image_precopy_result *ret_result);

/* ---- saving a guest that runs on ---- */

struct kvmem_image_capture;

/**
 * kvmem_image_capture_create() - what a capture into an image needs, opened ahead: as kvmem_capture_create().
 *
 * opts->before_write must be NULL. Errors: those of kvmem_capture_create(). May be called from any thread.
 */
KVMEM_API int kvmem_image_capture_create(const struct kvmem_capture_opts *opts,
					 struct kvmem_image_capture **ret_capture);

/**
 * kvmem_image_capture_start() - what these regions hold now is what the image gets.
 *
 * While no vCPU runs and no device of the VMM writes to them: its time is the pause, and no disk is in it. When it has
 * returned the guest may run; a page that it is about to write goes into the image first. regions[i] is the memory of
 * the image's region i. flags: 0, or KVMEM_IMAGE_ABSENT_FROM_PARENT. Until kvmem_image_capture_run() or _stop() the
 * writer is the capture's. Errors: -EINVAL, -EBUSY (started already), -ENOMEM, and those of kvmem_capture_start():
 * nothing has begun. One thread at a time per object.
 */
KVMEM_API int kvmem_image_capture_start(struct kvmem_image_capture *capture,
					struct kvmem_image_writer *writer,
					struct kvmem_region *const *regions, uint32_t region_count,
					uint32_t flags);

/**
 * kvmem_image_capture_start_dirty() - the same of what was written since the parent: a difference, of this moment.
 *
 * Either a batch, harvested in the same pause and committed (kvmem_dirty_commit()), or opts->runs, which are read
 * during the call and may overlap; of opts only flags are looked at besides, the rest must be 0. Only these pages are
 * protected, and come into the image as they are now. All others are as kvmem_image_write() has put them, else the
 * parent's (without one: zero), and a write to them waits for no page to be saved. The batch is taken, also when the
 * call fails: kvmem_image_commit() frees it when it succeeds. When anything fails, or the image is given up, it goes
 * back to its reader, whose next harvest has its pages again. Errors: those of kvmem_image_capture_start(), -EPERM (the
 * batch is not committed), and -EINVAL also for pages of other regions, or an image that has taken a batch already. One
 * thread at a time per object.
 */
KVMEM_API int kvmem_image_capture_start_dirty(struct kvmem_image_capture *capture,
					      struct kvmem_image_writer *writer,
					      struct kvmem_region *const *regions,
					      uint32_t region_count, struct kvmem_batch *batch,
					      const struct kvmem_image_save_opts *opts);

/**
 * kvmem_image_capture_run() - save all that the guest does not write first, and end the capture.
 *
 * Beside the running guest, in a thread of the caller's and some of its own. opts as for kvmem_image_save(), flags 0.
 * When it returns nothing is protected any more. 0: the image is complete, and can be committed. Errors: -EINVAL (not
 * started: nothing has happened), -EIO (a poisoned page), -EOPNOTSUPP (a page that its pager had not filled),
 * -ECANCELED, -ENOSPC, -EFBIG, -ENOMEM, and those of a capture that has failed; the writer can only be given up then.
 * One thread at a time per object.
 */
KVMEM_API int kvmem_image_capture_run(struct kvmem_image_capture *capture,
				      const struct kvmem_image_save_opts *opts,
				      struct kvmem_image_save_result *ret_result);

/**
 * kvmem_image_capture_stop() - end it instead of kvmem_image_capture_run().
 *
 * -ECANCELED, unless every page was written by the guest. Errors: -EINVAL (not started), and those of a capture that
 * has failed. One thread at a time per object.
 */
KVMEM_API int kvmem_image_capture_stop(struct kvmem_image_capture *capture);

/** kvmem_image_capture_get_stats() - as kvmem_capture_get_stats(): the pause, and writers that waited. May be called
 * from any thread. */
KVMEM_API int kvmem_image_capture_get_stats(const struct kvmem_image_capture *capture,
					    struct kvmem_capture_stats *ret_stats);

/** kvmem_image_capture_free() - Errors: -EBUSY (started). NULL is allowed. One thread at a time per object. */
KVMEM_API int kvmem_image_capture_free(struct kvmem_image_capture *capture);

KVMEM_END_DECLS

#endif
