/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_CAPTURE_INTERNAL_H
#define KM_CAPTURE_INTERNAL_H

/*
 * capture's own parts, each calling only those above it:
 *
 *	record.c	what has been handed out of a region
 *	content.c	what a page was at the pause, and its content, read without touching it
 *	failed.c	a capture that has failed: nothing is protected any more
 *	written.c	a page that is about to be written, handed to the caller
 *	next.c		the next run for the caller's own loop
 *	arm.c		the pause: kinds of pages, and their protection
 *	threads.c	threads that read events, and help to arm
 *	runs.c		which pages are captured, where it is not all of them
 *	parts.c		regions of a capture: taken, and let go
 *	capture.c	the life of a capture
 */

#include <pthread.h>

#include "capture/capture.h"
#include "capture/record.h"

#define KM_COPY_PAGES  64u	     /* at once, while who writes to them waits */
#define KM_PAGE_MOST   (2u << 20)    /* bytes */
#define KM_CHUNK_BYTES (64ull << 20) /* armed by one thread in one go */
#define KM_MAX_THREADS 64u

/* A region of a capture. */
struct km_captured {
	struct km_guard guard; /* first */
	struct kvmem_capture *capture;
	struct kvmem_region *region;
	struct km_watch own; /* the capture's registration, where the region has no pager */
	bool watched;	     /* it has one */
	bool by_fd;	     /* content is read from the file: that makes no page */
	/* What does not exist is zero for ever: there write protection leaves no marker. Of a clone, in part. */
	bool by_pages;
	bool checks; /* the protection of a page can be seen in pagemap: it is looked for after a copy */
	bool seeks;   /* SEEK_DATA tells of its file */
	bool in_runs; /* not all pages are captured: those that are not are DONE */
	_Atomic bool armed;
	uint64_t pages;
	unsigned int shift;
	uint64_t first_chunk, chunk; /* pages of one */
	struct km_record record;
	_Atomic uint64_t cursor; /* of kvmem_capture_next() */
	/* What SEEK_DATA said last. Under the capture's lock. */
	uint64_t data_first, data_end;
};

struct km_capture_thread {
	struct kvmem_capture *capture;
	int epoll, kick;
	struct km_thread thread;
	bool started;
};

struct km_copy_buffer {
	struct km_copy_buffer *next;
	uint8_t *bytes;
};

struct kvmem_capture {
	struct kvmem_capture_opts opts;
	struct km_uffd_set set;
	int pagemap; /* -errno: the kernel does not show it */
	struct km_capture_thread *threads;
	unsigned int thread_count;
	_Atomic bool closing;

	/* Reading: for who uses the parts. Writing: they come and go. */
	pthread_rwlock_t parts_lock;
	struct km_captured **parts; /* in the caller's order; NULL: not started */
	struct km_captured **by_addr;
	struct kvmem_region **to_tell; /* room for km_tell_last() */
	size_t part_count;
	const char *call; /* that starts it, for messages */
	_Atomic bool running, ended;

	/* Arming. */
	_Atomic uint64_t next_chunk, chunks_done;
	uint64_t chunks;
	_Atomic int arm_error;
	_Atomic bool whole; /* a pager's `complete` is to be called, if it is whole still */

	pthread_mutex_t lock; /* what follows */
	pthread_cond_t
		changed; /* a page is not BUSY any more, a buffer is free, all chunks are done */
	_Atomic unsigned int waiters;
	struct km_copy_buffer *buffers; /* that are free */
	struct km_copy_buffer *all_buffers;
	unsigned int buffer_count;
	uint64_t buffer_bytes;
	struct km_detail why; /* of `error` */

	_Atomic int error; /* the first, -errno */
	_Atomic uint64_t bytes, written, background, zero, absent, poisoned;
	_Atomic uint64_t pause_ns, writers, longest_ns;
};

static inline uint8_t *km_captured_at(const struct km_captured *p, uint64_t page)
{
	return p->region->base + (page << p->shift);
}

/* Neither failed nor ended: pages are handed out. */
static inline bool km_capture_goes_on(const struct kvmem_capture *c)
{
	return !atomic_load(&c->error) && !atomic_load(&c->ended);
}

static inline void km_capture_kick_all(struct kvmem_capture *c)
{
	const uint64_t one = 1;

	for (unsigned int i = 0; i < c->thread_count; i++)
		if (c->threads[i].started)
			km_sys_write(c->threads[i].kick, &one, sizeof(one));
}

/* ---- content.c ---- */

/* The kinds of these pages into the record, of those that are DATA there. 0 or -errno with the detail set. */
int km_content_kinds(struct km_captured *p, uint64_t first, uint64_t count);
/*
 * Pages that are BUSY: their content as of the pause. 0; -EFAULT: one of them cannot be read; -ECANCELED: the capture
 * has failed or ended meanwhile; or -errno with the detail set.
 */
int km_content_copy(struct km_captured *p, uint64_t first, uint64_t count, void *buf);
/* Pages from `first` on, at most `max`, for which the file has nothing: how many, maybe 0; or data, *ret_data. */
uint64_t km_content_hole(struct km_captured *p, uint64_t first, uint64_t max, uint64_t *ret_data);

/* ---- failed.c ---- */

/* The detail says why. Nothing is protected any more. */
void km_capture_fail(struct kvmem_capture *c, int err);
/* Take the protection of all pages away. */
void km_capture_open(struct kvmem_capture *c);
/* -errno and the detail of a capture that has failed, with the name of the call. */
int km_capture_error(struct kvmem_capture *c, const char *call);
/* Who waits for something that `lock` guards looks again. */
void km_capture_changed(struct kvmem_capture *c);
/* BUSY pages are handed out: DONE, and not protected any more. */
void km_captured_done(struct km_captured *p, uint64_t first, uint64_t count, bool protected);

/* ---- written.c ---- */

void km_written_before(struct km_guard *g, uint64_t first, uint64_t count);
bool km_written_holds(const struct km_guard *g, uint64_t page);
void km_written_waited(struct km_guard *g, uint64_t ns);

/* ---- arm.c ---- */

/* Do what is to be done of the arming, beside others. */
void km_arm_help(struct kvmem_capture *c);
/* All of it: 0 or -errno with the detail set. */
int km_arm(struct kvmem_capture *c);

/* ---- threads.c ---- */

int km_capture_threads_start(struct kvmem_capture *c);
void km_capture_threads_stop(struct kvmem_capture *c);

/* ---- runs.c ---- */

/* Pages that are to be captured; in any order. */
struct km_capture_runs {
	const struct kvmem_run *runs;
	uint64_t count;
};

/* Are they pages of these regions? 0 or -errno with the detail set. */
int km_capture_runs_check(const struct km_capture_runs *only, struct kvmem_region *const *regions,
			  size_t count);
/* Parts that nobody else sees yet, c->parts[0] to [count - 1], have these pages alone. */
void km_capture_runs_apply(struct kvmem_capture *c, size_t count,
			   const struct km_capture_runs *only);

/* ---- parts.c ---- */

/* Why a region cannot be captured: 0 or -errno with the detail set. */
int km_parts_check(struct kvmem_capture *c, struct kvmem_region *region);
/* With parts_lock held for writing. */
int km_parts_begin(struct kvmem_capture *c, struct kvmem_region *const *regions, size_t count,
		   const struct km_capture_runs *only); /* NULL: all pages */
void km_parts_end_guards(struct kvmem_capture *c);
void km_parts_free(struct kvmem_capture *c);
struct km_captured *km_parts_at(const struct kvmem_capture *c, uint64_t addr);

/*
 * Events of pagers are read inside of captures, and `complete` may stop and free the capture. So it is called when
 * nothing is held any more: for one region of each pager, which stays meanwhile. _collect() with parts_lock held: where
 * there is no memory for the list, a later call tells. _last() is of a capture that ends, and needs no memory. _now()
 * touches no capture.
 */
struct km_to_tell {
	struct kvmem_region **regions;
	size_t count;
};

void km_tell_collect(struct kvmem_capture *c, struct km_to_tell *t);
void km_tell_last(struct kvmem_capture *c, struct km_to_tell *t);
void km_tell_now(struct km_to_tell *t);

#endif
