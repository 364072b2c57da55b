/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_EXISTS_H
#define KM_EXISTS_H

/*
 * Which pages of a region exist in the kernel. Of anonymous memory /proc/self/pagemap tells: mincore()
 * passes over pages that are in swap. Else mincore() is the way, but of a file that the process
 * neither owns nor may write by its mode (it gave up its user since, or got the file from another)
 * mincore() says that every page is there. Then SEEK_DATA tells of shmem; of a guest_memfd or
 * hugetlb file nobody does, and the library's own record has to do: it knows the pages that the
 * library filled, and not those that a guest made alone.
 */

#include <stdbool.h>
#include <stdint.h>

struct kvmem_region;

enum km_exists_how {
	KM_EXISTS_MINCORE,
	KM_EXISTS_PAGEMAP,
	KM_EXISTS_EXTENTS,
	KM_EXISTS_RECORD,
};

#define KM_EXISTS_BATCH 1024u

struct km_exists {
	struct kvmem_region *r;
	uint8_t *view; /* a mapping of it, for mincore() */
	enum km_exists_how how;
};

/* All return 0 or -errno without detail, unless said otherwise. */
int64_t km_exists_begin(struct km_exists *x, struct kvmem_region *r, uint8_t *view);

/* `count` pages from `page` on, at most KM_EXISTS_BATCH. */
int64_t km_exists_get(const struct km_exists *x, uint64_t page, unsigned int count, bool *exists);

/* The machine has no swap: of anonymous memory mincore() tells all. */
bool km_no_swap(void);

/* 1: mincore() tells the truth about the region's file, or one of such pages; 0: it does not; -errno. */
int64_t km_mincore_tells(const struct kvmem_region *r);
int64_t km_mincore_tells_file(int fd, uint64_t page);

/* The first extent of data at or after `offset`, in whole pages of the region, which may begin
 * before it: 1 and its bounds as offsets in the region, or 0. Not of hugetlb and guest_memfd. */
int64_t km_next_extent(const struct kvmem_region *r, uint64_t offset, uint64_t *ret_first,
		       uint64_t *ret_end);

/* All pages exist of a range beside the region, `offset` bytes from its first one, in the same file or the same
 * mapping; false where that is not known. */
bool km_exists_beside(const struct kvmem_region *r, int64_t offset, uint64_t bytes);

/* How many of a range exist; -errno with the detail set. */
int64_t km_region_count_pages(struct kvmem_region *r, uint64_t offset, uint64_t bytes);

#endif
