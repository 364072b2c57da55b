/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_FILL_STORE_H
#define KM_FILL_STORE_H

/*
 * Content into pages of a region that no userfaultfd watches: by write(), or through `base`, the
 * mapping that km_region_store() gives. The caller has claimed the pages. Nothing here raises a
 * signal: what cannot be touched is an error.
 *
 * Positions are bytes into the region, in whole base pages. `src` NULL: zeros, over memory that is
 * zero where it exists.
 */

#include "region/region.h"

#define KM_STORE_REFUSED 1 /* this memory or kernel does not take this way: try another */

/* -ENODATA where the region's file, another's, has been cut short before the end of these bytes. */
int km_store_check(const struct kvmem_region *r, uint64_t pos, uint64_t bytes);

/* Make the pages and map them at base, by one MADV_POPULATE. 0, KM_STORE_REFUSED or -errno. */
int km_store_map(const struct kvmem_region *r, uint8_t *base, uint64_t pos, uint64_t bytes);

/* Map, then copy. 0, KM_STORE_REFUSED or -errno. */
int km_store_populate(const struct kvmem_region *r, uint8_t *base, uint64_t pos, const uint8_t *src,
		      uint64_t bytes);

/* Copied by the kernel, page fault by page fault: works everywhere. 0 or -errno. */
int km_store_copy(const struct kvmem_region *r, uint8_t *base, uint64_t pos, const uint8_t *src,
		  uint64_t bytes);

/* By write(). `base` may be NULL. 0, KM_STORE_REFUSED or -errno. */
int km_store_write(const struct kvmem_region *r, uint8_t *base, uint64_t pos, const uint8_t *src,
		   uint64_t bytes);

/* Why these bytes cannot be stored by write(); NULL: they can. */
const char *km_store_no_write(const struct kvmem_region *r, uint64_t pos, uint64_t bytes);

/*
 * Make sure of pages before anything is stored into them: for huge pages, of which there may be
 * none left. 0 or -errno, -ENOMEM when there are none.
 */
int km_store_make(const struct kvmem_region *r, uint8_t *base, uint64_t pos, uint64_t bytes);

/* The memory is zero from here on, and where possible holds no page. `base` may be NULL. */
int km_store_forget(const struct kvmem_region *r, uint8_t *base, uint64_t pos, uint64_t bytes);

#endif
