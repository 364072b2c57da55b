/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_NBD_H
#define KVMEM_NBD_H

/*
 * Content from another machine: libkvmem-nbd, a library of its own on top of libkvmem.
 *
 * A server's NBD export becomes sources for kvmem_populate() and pagers, with many requests under way on one or several
 * connections. A connection that breaks is made again, and what was under way is asked for again. What is not answered
 * within its deadline fails: it is never zero, and nobody waits for ever.
 */

#include <kvmem/base.h>
#include <kvmem/source.h>

KVMEM_BEGIN_DECLS

struct kvmem_nbd;

#define KVMEM_NBD_ALL_DATA   (1u << 0) /* do not ask for holes: all of it is data */
#define KVMEM_NBD_WAIT_HOLES (1u << 1) /* open until all holes are known: for kvmem_populate() */
#define KVMEM_NBD_URI_FILES  (1u << 2) /* the URI may name files of this machine: keys */

struct kvmem_nbd_opts {
	uint32_t size;
	uint32_t flags;	      /* KVMEM_NBD_* */
	uint32_t connections; /* at most, where the server allows several; 0: 4; 16 at most */
	uint32_t depth;	      /* requests under way on each connection; 0: 128; 1024 at most */
	uint64_t deadline_ns; /* a request fails when it is not answered by then; 0: 30 s */
	uint64_t silence_ns; /* a connection that owes answers and is silent is given up; 0: 10 s */
	uint64_t retry_ns;   /* the longest pause between attempts to connect; 0: 1 s */
};

#define KVMEM_NBD_OPTS_INIT KVMEM_INIT_(struct kvmem_nbd_opts)

/**
 * kvmem_nbd_open() - connect to an export, named by an NBD URI, e.g. "nbd://host/guest".
 *
 * Waits for the first connection, which is tried once and for silence_ns. The name of the host is looked up by the C
 * library, for as long as that takes. Errors: -EINVAL (opts, or the URI), -E2BIG, -ENOENT (no such export or socket),
 * -EACCES or -EPERM, -ETIMEDOUT (the server is silent), -EIO (no connection, for another reason: the detail has it),
 * -ENODATA (the export is empty), -EAGAIN (no thread), -ENOMEM, -EMFILE. May be called from any thread.
 */
KVMEM_API int kvmem_nbd_open(const char *uri, const struct kvmem_nbd_opts *opts,
			     struct kvmem_nbd **ret_nbd);

/**
 * kvmem_nbd_close() - disconnect and free it. NULL is allowed.
 *
 * Errors: -EBUSY (a source of it is not freed). One thread at a time per object.
 */
KVMEM_API int kvmem_nbd_close(struct kvmem_nbd *nbd);

/**
 * kvmem_nbd_source() - bytes [offset, offset + bytes) of the export, for kvmem_populate() and kvmem_pager_add().
 *
 * bytes 0 means up to the end of the export. There may be several, e.g. one a region. Errors: -EINVAL, -ENODATA (the
 * export is shorter; bytes is 0, and the last bytes are no whole block, which cannot be read), -ENOMEM. May be called
 * from any thread.
 */
KVMEM_API int kvmem_nbd_source(struct kvmem_nbd *nbd, uint64_t offset, uint64_t bytes,
			       struct kvmem_source **ret_source);

#define KVMEM_NBD_HOLES	     (1u << 0) /* the server tells what is zero */
#define KVMEM_NBD_MULTI_CONN (1u << 1) /* it allows several connections */
#define KVMEM_NBD_TLS	     (1u << 2) /* the connections are encrypted */

struct kvmem_nbd_info {
	uint32_t size;
	uint32_t flags;	      /* KVMEM_NBD_HOLES, _MULTI_CONN, _TLS */
	uint64_t bytes;	      /* of the export that can be read */
	uint32_t connections; /* that there are, or that are made again */
	uint32_t block_bytes; /* the server reads whole blocks of so many bytes */
};

#define KVMEM_NBD_INFO_INIT KVMEM_INIT_(struct kvmem_nbd_info)

/** kvmem_nbd_get_info() - what the export is. Errors: -EINVAL. May be called from any thread. */
KVMEM_API int kvmem_nbd_get_info(const struct kvmem_nbd *nbd, struct kvmem_nbd_info *ret_info);

#define KVMEM_NBD_WHY_MAX 160

struct kvmem_nbd_stats {
	uint32_t size;
	uint32_t connected;	  /* connections that work now */
	uint64_t requests;	  /* that came */
	uint64_t requests_failed; /* by the server's answer, or for want of memory */
	uint64_t requests_late;	  /* past their deadline */
	uint64_t requests_cancelled;
	uint64_t bytes;	    /* of requests that succeeded */
	uint64_t in_flight; /* commands that the server has not answered: of a request one a MiB */
	uint64_t in_flight_most;
	uint64_t again;		  /* commands that were put back because their connection broke */
	uint64_t broken;	  /* connections that broke */
	uint64_t attempts_failed; /* to connect */
	uint64_t bytes_known;	  /* of the export: it is known whether they are zero */
	uint64_t bytes_zero;	  /* of these */
	char why[KVMEM_NBD_WHY_MAX]; /* the last thing that went wrong, "": none */
};

#define KVMEM_NBD_STATS_INIT KVMEM_INIT_(struct kvmem_nbd_stats)

/** kvmem_nbd_get_stats() - what happened since it was opened. Errors: -EINVAL. May be called from any thread. */
KVMEM_API int kvmem_nbd_get_stats(struct kvmem_nbd *nbd, struct kvmem_nbd_stats *ret_stats);

KVMEM_END_DECLS

#endif
