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
#define MIB  (UINT64_C(1) << 20)

struct baseline;

enum lazy_kind {
	LAZY_MISSING, /* content comes from memory */
	LAZY_MINOR,   /* it is in the file already */
	LAZY_HUGE,    /* missing, a page is 2 MiB */
};

struct lazy {
	uint64_t bytes;
	const uint8_t *content;
	enum lazy_kind kind;
	uint64_t page; /* bytes of one */
	int fd;
	uint8_t *base; /* touch this */
	struct baseline *simple;
	struct kvmem_region *region; /* the library's */
	struct kvmem_source *source;
	struct kvmem_pager *pager;
};

void lazy_by_simple(struct lazy *l, const uint8_t *content, uint64_t bytes, enum lazy_kind kind);
/* vm may be NULL. */
void lazy_by_pager(struct lazy *l, const uint8_t *content, uint64_t bytes, enum lazy_kind kind,
		   const struct kvmem_pager_opts *opts, struct kvmem_vm *vm);
/* All present and mapped: nothing to serve. */
void lazy_none(struct lazy *l, const uint8_t *content, uint64_t bytes, enum lazy_kind kind);
/* From here on a pager serves, and may fill in the background: within what is timed. */
void lazy_start(struct lazy *l);
void lazy_end(struct lazy *l); /* checks the content first */

/* Whether so many bytes of huge pages are reserved and free. */
bool lazy_has_huge(uint64_t bytes);

/* Content for `bytes`, made once. */
const uint8_t *lazy_content(uint64_t bytes);

#endif
