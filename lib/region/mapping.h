/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_MAPPING_H
#define KM_MAPPING_H

/*
 * Memory that the caller has mapped himself (KVMEM_REGION_MAPPING): what it is, told by
 * /proc/self/maps and the file descriptor that came with it. Nothing here touches it or changes it.
 */

#include <stdbool.h>

struct kvmem_region;
struct kvmem_region_opts;

struct km_own {
	/* Why the library cannot fill its pages or take them out; NULL: it can. */
	const char *limits;
	bool writable;
	bool shared; /* what is stored is in a file, and stays there when it is dropped here */
};

/* Of checked options: sets backing and page_size to what the mapping is. -errno with the detail set. */
int km_mapping_kind(struct kvmem_region_opts *o, struct km_own *ret_own);

/* Of a new region without a file: the pages that exist, into its record. */
int km_mapping_presence(struct kvmem_region *r);

#endif
