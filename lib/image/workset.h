/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KI_WORKSET_H
#define KI_WORKSET_H

/*
 * Working sets. Parts, each calling only those above it, beside files.c and sums.c:
 *
 *	workset.c		a set: ranges in the order of first touch; merged
 *	workset_file.c		stored and loaded: docs/workset-format.md
 *	workset_record.c	made of a pager's trace
 *	workset_replay.c	given to a pager
 */

#include <kvmem/workset.h>

#include "image/internal.h"

#define KW_SAMPLES 8u

/* As it is stored. */
struct kw_range {
	uint32_t page, pages; /* of 4096 bytes, of the image */
	uint8_t history;      /* bit i: touched in the i-th sample from the last one on */
	uint8_t reserved[7];
};

struct kvmem_workset {
	struct kw_range *ranges; /* in the order of first touch */
	uint64_t count;
	uint64_t pages;		 /* in them */
	uint64_t memory_pages;	 /* of the guest */
	uint32_t samples;	 /* 0: a recording under replay */
	_Atomic uint32_t sample; /* that the last replay left out: kvmem_replay_opts.sample */
};

/* One page of a set that is being made. */
struct kw_page {
	uint32_t page;
	uint32_t rank; /* 0: first */
	uint8_t history;
};

/* A set of pages, which may be in any order, and are sorted by this. NULL: no memory, and the detail says so. */
struct kvmem_workset *kw_make(struct kw_page *pages, uint64_t count, uint64_t memory_pages,
			      uint32_t samples);

/* Is the range one of those that a replay with `sample` leaves out? */
static inline bool kw_left_out(const struct kw_range *r, uint32_t sample)
{
	return sample && (uint32_t)((r->page * 0x9e3779b97f4a7c15ull) >> 33) % sample == 0;
}

/* Regions in the order of an image. */
struct kw_memory {
	struct kvmem_region **regions;
	uint64_t *first; /* page of the image that each begins with */
	uint32_t count;
	uint64_t pages;
};

int kw_memory_make(const char *call, struct kvmem_region *const *regions, uint32_t count,
		   struct kw_memory *ret);
void kw_memory_free(struct kw_memory *m);

#endif
