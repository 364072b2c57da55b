/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef PAGER_MEM_H
#define PAGER_MEM_H

/*
 * Two ways to serve the faults of the same memfd: a handler as a VMM author would write it in an
 * afternoon (one thread; poll, one message a read, one page an ioctl), and the library's pager.
 */

#include <kvmem/kvmem.h>

#include "bench.h"

#define PAGE UINT64_C(4096)
#define MIB (UINT64_C(1) << 20)

struct baseline;

/* Content that is in the file already (faults are minor), or comes from memory. */
struct lazy {
	uint64_t bytes;
	const uint8_t *content;
	bool cached;
	int fd;
	uint8_t *base;			/* touch this */
	struct baseline *simple;
	struct kvmem_region *region;	/* the library's */
	struct kvmem_source *source;
	struct kvmem_pager *pager;
};

void lazy_by_simple(struct lazy *l, const uint8_t *content, uint64_t bytes, bool cached);
/* vm may be NULL. */
void lazy_by_pager(struct lazy *l, const uint8_t *content, uint64_t bytes, bool cached,
		   const struct kvmem_pager_opts *opts, struct kvmem_vm *vm);
/* All present and mapped: nothing to serve. */
void lazy_none(struct lazy *l, const uint8_t *content, uint64_t bytes, bool cached);
/* From here on a pager serves, and may fill in the background: within what is timed. */
void lazy_start(struct lazy *l);
void lazy_end(struct lazy *l);		/* checks the content first */

/* Content for `bytes`, made once. */
const uint8_t *lazy_content(uint64_t bytes);

#endif
