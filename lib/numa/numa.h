/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_NUMA_H
#define KM_NUMA_H

/*
 * numa: on which nodes the pages of a region shall be, and are. A policy is held by the kernel
 * where it honours mbind() on the memory, else applied by the threads that fill. Knows region and
 * what is to its left.
 */

#include <kvmem/numa.h>

#include "region/region.h"

struct km_numa_state {
	bool changed;
	int mode; /* the thread's own policy */
	unsigned long nodes[16];
	int now_mode; /* what it has instead, when changed */
	unsigned long now[16];
};

/*
 * The calling thread is about to make pages of r from `offset` on: apply the emulated policy there,
 * if any, to the thread. ret_end (bytes into the region) is how far that policy reaches. _leave()
 * restores what _save() kept.
 */
void km_numa_save(struct km_numa_state *s);
int km_numa_enter(struct kvmem_region *r, uint64_t offset, uint64_t *ret_end,
		  struct km_numa_state *s);
void km_numa_leave(struct km_numa_state *s);

/* The one node that the policy at offset names; -1 when there is no policy, or several nodes. */
int km_numa_node_at(struct kvmem_region *r, uint64_t offset);

/* With r->lock held. */
bool km_numa_misplaced(const struct kvmem_region *r, uint64_t offset, unsigned long node);

#endif
