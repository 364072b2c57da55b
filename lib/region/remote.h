/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_REMOTE_H
#define KM_REMOTE_H

/*
 * Regions whose memory is another process's (kvmem_remote_create()): where their pages are there, the userfaultfds that
 * the process has given, and what these can do. The record of pages is in a memfd (record.c).
 *
 * Invariants:
 *  - Spans are sorted by page, cover the region without gaps, and none wraps around.
 *  - No two regions have the same userfaultfd: an event is read once.
 *  - The flags of a descriptor are never changed: the other process shares them.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct kvmem_region;
struct kvmem_remote_opts;
struct km_presence;

/* Pages that lie in a row in the other process, registered with one userfaultfd. */
struct km_span {
	uint64_t addr, first, pages;
	unsigned int uffd;
};

struct km_remote_uffd {
	int fd; /* a duplicate; -1: not yet */
	dev_t dev;
	ino_t ino;
	uint64_t features; /* that UFFDIO_API was told */
	bool blocking;	   /* without O_NONBLOCK: poll() tells nothing */
};

struct km_remote {
	struct km_span *spans;	 /* sorted by page */
	struct km_span *by_addr; /* the same, sorted by address */
	struct km_remote_uffd *uffds;
	unsigned int span_count, uffd_count;
	uint64_t ioctls; /* that its memory takes, by bit */
	bool minor; /* registered for minor faults: a page can be in a file and not be mapped */
	int record; /* memfd */
	_Atomic bool ended;	       /* an ioctl has told that the process is gone */
	struct km_remote *next, *prev; /* of all in this process */
	/* A further process that has the same memory: it may have a part of it only, and nothing is filled there. */
	bool joined;
	bool listed;
};

/* The span that a page is in; and, of by_addr, the index of the last one that begins at or before an address, or 0. */
const struct km_span *km_remote_span(const struct km_remote *m, uint64_t page);
unsigned int km_remote_at(const struct km_remote *m, uint64_t addr);

/* remote.c: a further process (kvmem_remote_join()) of a region: -errno with the detail set. */
int km_remote_open(const struct kvmem_region *r, const struct kvmem_remote_opts *opts,
		   struct km_remote **ret);
/* spans.c: of options whose sizes have been checked. -errno with the detail set. */
int km_remote_spans(struct km_remote *m, const struct kvmem_remote_opts *o, unsigned int shift);
/* Among all of this process, so that no other region has one of its userfaultfds. */
int km_remote_enlist(struct km_remote *m);
/* NULL is allowed. */
void km_remote_free(struct km_remote *m);

/* check.c: -EOPNOTSUPP of a region that is memory of another process: `what` needs it here. */
int km_region_own_check(const struct kvmem_region *r, const char *what);

/*
 * remote_fd.c: what a descriptor given is, into u: a duplicate of it, and what it can do; *ret_ioctls: that the kernel
 * has, by bit. -errno with the detail set.
 */
int km_remote_take_fd(struct km_remote_uffd *u, int given, uint64_t *ret_ioctls);

/*
 * A UFFDIO_COPY that cannot copy, since its source is not there: 0, the page is there to be filled; -ENOENT: nothing is
 * mapped or registered there; -EINVAL: its pages are larger; -EAGAIN: events are unread, so nothing is known; -ESRCH:
 * the process has ended. Changes nothing. -errno without detail.
 */
int km_remote_ping(const struct km_remote_uffd *u, uint64_t addr, uint64_t bytes);

/*
 * record.c: the words of a record in a memfd: a new one, or (`given` >= 0) that of a predecessor, in which nobody
 * fills anything any more. *ret_fd: ours. -errno with the detail set.
 */
int km_record_open(struct km_presence *p, uint64_t pages, unsigned int shift, int given,
		   int *ret_fd);

#endif
