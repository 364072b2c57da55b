/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_SOURCE_H
#define KVMEM_SOURCE_H

/* Where page content comes from: the same object for populate (all now) and the pager (on demand). */

#include <kvmem/base.h>

KVMEM_BEGIN_DECLS

struct kvmem_source;

enum kvmem_extent_kind {
	KVMEM_EXTENT_DATA = 0, /* must be read */
	KVMEM_EXTENT_ZERO = 1, /* reads as zero, known without reading */
	KVMEM_EXTENT_HOLE = 2, /* nothing stored here; reads as zero */
};

struct kvmem_extent {
	uint32_t size;
	uint32_t kind;	 /* enum kvmem_extent_kind */
	uint64_t offset; /* bytes into the source */
	uint64_t bytes;
};

#define KVMEM_EXTENT_INIT KVMEM_INIT_(struct kvmem_extent)

#define KVMEM_SOURCE_BUFFERED (1u << 0) /* never read the file with O_DIRECT */
#define KVMEM_SOURCE_ALL_DATA (1u << 1) /* do not look for holes: all of it is data */
#define KVMEM_SOURCE_BORROW   (1u << 2) /* use fd itself and never close the file: POSIX locks */

/**
 * kvmem_source_file() - bytes [offset, offset + bytes) of an open file, holes known by SEEK_HOLE.
 *
 * fd stays the caller's; the library opens the file once more. Closing that, in kvmem_source_free(), makes
 * the kernel drop all POSIX record locks (fcntl F_SETLK) that this process has on the file: see
 * KVMEM_SOURCE_BORROW. bytes 0 means up to the end of the file. The file may not shrink while it is in use:
 * reading past a new end is -ENODATA. Errors: -EINVAL,
 * -EBADF (not open for reading), -ENODATA (the file is shorter than offset + bytes), -ESPIPE (not
 * seekable), -ENOMEM, -EMFILE. May be called from any thread.
 */
KVMEM_API int kvmem_source_file(int fd, uint64_t offset, uint64_t bytes, uint32_t flags,
				struct kvmem_source **ret_source);

/**
 * kvmem_source_memory() - bytes in this process's memory, which stay the caller's until the source
 * is freed. Memory that is not there any more when it is read (a mapping of a file that was cut short)
 * is -EFAULT, not a signal. Errors: -EINVAL, -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_source_memory(const void *base, uint64_t bytes,
				  struct kvmem_source **ret_source);

/* Reads and extents of a callback source wait for nothing: a pager brings in the neighbours of a page
 * that is asked for, and fills in the background on the threads that serve faults. */
#define KVMEM_SOURCE_CHEAP (1u << 1)

struct kvmem_source_ops {
	uint32_t size;
	uint32_t flags; /* KVMEM_SOURCE_CHEAP */
	/* Fill buf with bytes from offset; 0, or -errno, which fails the fill. Called from any of the
	 * library's threads, several at a time. */
	int (*read)(void *arg, uint64_t offset, void *buf, uint64_t bytes);
	/* The extent that offset lies in; NULL when all is data. */
	int (*extent)(void *arg, uint64_t offset, struct kvmem_extent *ret_extent);
	/* Called once by kvmem_source_free(); may be NULL. */
	void (*close)(void *arg);
};

#define KVMEM_SOURCE_OPS_INIT KVMEM_INIT_(struct kvmem_source_ops)

/**
 * kvmem_source_callback() - content from the caller's own functions.
 *
 * ops is copied; arg is passed back. Errors: -EINVAL (no read), -E2BIG, -ENOMEM.
 * May be called from any thread.
 */
KVMEM_API int kvmem_source_callback(const struct kvmem_source_ops *ops, void *arg, uint64_t bytes,
				    struct kvmem_source **ret_source);

/* What is asked of a source that answers later. It stays the library's, and as it is, until it is completed. */
struct kvmem_source_request {
	uint64_t offset; /* bytes into the source */
	uint64_t bytes;
	void *buf;  /* to be filled; nothing else is to be written there */
	void *user; /* the source's own word; NULL at first */
};

struct kvmem_source_async_ops {
	uint32_t size;
	uint32_t flags; /* 0 */
	/*
	 * Begin these requests, and return without waiting for them: 0; or -errno, which fails all of them and none is
	 * completed. Called from any of the library's threads, several at a time. A request may reach into extents
	 * that are not data by less than a page: their bytes are zero.
	 */
	int (*submit)(void *arg, struct kvmem_source_request *const *requests, size_t count);
	/* A request is not needed any more; it is to be completed all the same, soon, from within or later. NULL: it
	 * is waited for. */
	void (*cancel)(void *arg, struct kvmem_source_request *request);
	/* As in kvmem_source_ops: they wait for nothing. */
	int (*extent)(void *arg, uint64_t offset, struct kvmem_extent *ret_extent);
	void (*close)(void *arg);
};

#define KVMEM_SOURCE_ASYNC_OPS_INIT KVMEM_INIT_(struct kvmem_source_async_ops)

/**
 * kvmem_source_async() - content that comes later: many requests under way, answered in any order.
 *
 * No thread of a pager waits for an answer: the thread that calls kvmem_source_complete() places the content and
 * wakes who waits for it. kvmem_populate() and kvmem_source_read() wait, with several requests under way. ops is
 * copied; arg is passed back. Errors: -EINVAL (no submit, bytes is 0), -E2BIG, -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_source_async(const struct kvmem_source_async_ops *ops, void *arg,
				 uint64_t bytes, struct kvmem_source **ret_source);

/**
 * kvmem_source_complete() - a request is done: its buffer is filled (0), or it failed (-errno).
 *
 * Once for each request that was submitted, from any thread, also from within submit and cancel; the request is
 * gone then. In this thread the pages are placed, and the pager's `fail` and `complete` may be called. Errors: -EINVAL.
 * May be called from any thread.
 */
KVMEM_API int kvmem_source_complete(struct kvmem_source_request *request, int result);

/**
 * kvmem_source_free() - free it. NULL is allowed.
 *
 * Errors: -EBUSY while a populate or a pager uses it, -EDEADLK from one of its own callbacks.
 */
KVMEM_API int kvmem_source_free(struct kvmem_source *source);

/** kvmem_source_bytes() - its length in bytes. */
KVMEM_API uint64_t kvmem_source_bytes(const struct kvmem_source *source);

/**
 * kvmem_source_extent() - a run of one kind that offset lies in, clipped to the source.
 *
 * What lies behind it may be of the same kind: short extents of a callback are joined, up to 64 of them.
 * Errors: -EINVAL, -ERANGE (offset at or beyond the end), or the callback's.
 * May be called from any thread.
 */
KVMEM_API int kvmem_source_extent(struct kvmem_source *source, uint64_t offset,
				  struct kvmem_extent *ret_extent);

/**
 * kvmem_source_read() - read all of a range into buf; holes read as zero.
 *
 * Errors: -EINVAL, -ERANGE (beyond the end), -ENODATA (a file that shrank), -EFAULT (memory that is not
 * there), -EIO, or the callback's.
 * May be called from any thread.
 */
KVMEM_API int kvmem_source_read(struct kvmem_source *source, uint64_t offset, void *buf,
				uint64_t bytes);

KVMEM_END_DECLS

#endif
