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

enum km_source_kind { KM_SOURCE_FILE, KM_SOURCE_MEMORY, KM_SOURCE_CALLBACK };

struct kvmem_source {
	enum km_source_kind kind;
	uint64_t bytes;
	_Atomic unsigned int users;
	int fd; /* FILE: ours, or with KVMEM_SOURCE_BORROW the caller's; offset within it */
	uint64_t offset;
	uint32_t flags;
	const uint8_t *base;	     /* MEMORY */
	struct kvmem_source_ops ops; /* CALLBACK */
	void *arg;
};

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

/* ---- memory.c ---- */

int km_source_memory_read(const struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes);

/*
 * The source is memory, and loads from these bytes of it cannot be SIGBUS: nobody but the caller
 * himself can take it away. A few system calls: ask once, not for every chunk.
 */
bool km_source_in_place(const struct kvmem_source *s, uint64_t offset, uint64_t bytes);

#endif
