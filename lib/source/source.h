/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_SOURCE_H
#define KM_SOURCE_H

/*
 * source: where the content of pages comes from: a file, memory, or functions of the caller; in
 * runs of data, zero and hole. Knows base alone.
 *
 * Invariant: a source is never written to, and its content is the same each time it is asked.
 */

#include <stdatomic.h>

#include <kvmem/source.h>

#include "base/base.h"

enum km_source_kind { KM_SOURCE_FILE, KM_SOURCE_MEMORY, KM_SOURCE_CALLBACK, KM_SOURCE_ASYNC };

struct kvmem_source {
	enum km_source_kind kind;
	uint64_t bytes;
	_Atomic unsigned int users;
	int fd; /* FILE: ours, or with KVMEM_SOURCE_BORROW the caller's; offset within it */
	uint64_t offset;
	uint32_t flags;
	const uint8_t *base;	     /* MEMORY */
	struct kvmem_source_ops ops; /* CALLBACK; ASYNC but for `read` */
	void *arg;
	int (*submit)(void *arg, struct kvmem_source_request *const *requests, size_t count);
	void (*cancel)(void *arg, struct kvmem_source_request *request);
};

struct kvmem_source *km_source_new(enum km_source_kind kind, uint64_t bytes);
/* Anything but 0 is a failure; what is no -errno becomes -EIO. */
int km_callback_errno(int r);

void km_source_get(struct kvmem_source *s);
void km_source_put(struct kvmem_source *s);

/* From `offset` to the end of its extent, not merged with a next one of the same kind. In range. */
int km_source_extent(struct kvmem_source *s, uint64_t offset, struct kvmem_extent *e);

/*
 * The same, with the extents behind it that are of the same kind, until `enough` bytes are known. It
 * may end before that: a bounded number of extents is asked for.
 */
int km_source_run(struct kvmem_source *s, uint64_t offset, uint64_t enough, struct kvmem_extent *e);

/*
 * Read within data extents, all of it or -errno with the detail set. In range. Never a signal,
 * whatever becomes of a source in memory.
 */
int km_source_read(struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes);

/* While answers are waited for: every KM_SOURCE_LOOK_NS; true: they are not wanted any more. */
struct km_source_wait {
	bool (*look)(void *arg);
	void *arg;
};

#define KM_SOURCE_LOOK_NS 50000000u

/* The same, for who has something else to look after. */
int km_source_read_looking(struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes,
			   const struct km_source_wait *wait);

/* ---- async.c ---- */

/* What the caller's `submit` gets is the first part. done() ends it, in the thread that completes it. */
struct km_source_request {
	struct kvmem_source_request pub;
	void (*done)(struct km_source_request *request, int result);
};

/* -errno: none of them is under way. At most 64. */
int km_source_submit(struct kvmem_source *s, struct km_source_request *const *requests,
		     size_t count);
/* It is not needed any more; it is to be completed all the same. */
void km_source_cancel(struct kvmem_source *s, struct km_source_request *request);
int km_source_async_read(struct kvmem_source *s, uint64_t offset, uint8_t *buf, uint64_t bytes,
			 const struct km_source_wait *wait);

/* ---- memory.c ---- */

int km_source_memory_read(const struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes);

/*
 * The source is memory, and loads from these bytes of it cannot be SIGBUS: nobody but the caller
 * himself can take it away. A few system calls: ask once, not for every chunk.
 */
bool km_source_in_place(const struct kvmem_source *s, uint64_t offset, uint64_t bytes);

#endif
