/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_NUMA_H
#define KVMEM_NUMA_H

/*
 * Where the pages are: a policy by range, held by the kernel where it honours one on this memory and
 * by the threads that fill it where it does not, and a report of where they are indeed.
 */

#include <kvmem/base.h>
#include <kvmem/region.h>

KVMEM_BEGIN_DECLS

enum kvmem_policy {
	KVMEM_POLICY_DEFAULT = 0,   /* the filling thread's */
	KVMEM_POLICY_BIND = 1,	    /* no others: full nodes mean -ENOMEM or the OOM killer */
	KVMEM_POLICY_PREFERRED = 2, /* one node */
	KVMEM_POLICY_PREFERRED_MANY = 3,
	KVMEM_POLICY_INTERLEAVE = 4,
	KVMEM_POLICY_WEIGHTED_INTERLEAVE =
		5, /* weights: /sys/kernel/mm/mempolicy/weighted_interleave */
};

#define KVMEM_POLICY_FUTURE (1u << 0) /* accept that pages exist already: only future ones follow */
#define KVMEM_POLICY_NATIVE (1u << 1) /* refuse (-EOPNOTSUPP) where the kernel ignores the policy */

/**
 * kvmem_region_set_policy() - place the future pages of a range.
 *
 * nodes is a bit mask of maxnode bits, as in mbind(2); it is read during the call only. Where the
 * memory does not keep what mbind() says (a guest_memfd before Linux 6.19; hugetlb, of which only each
 * mapping does) the policy is kept here and emulated: the threads of kvmem_populate() take it on, and all
 * mappings of hugetlb that the library makes have it. Returns 0 when the kernel holds the policy, 1 when it
 * is emulated. Errors: -EINVAL, -ERANGE, -ENODEV (a node that does not exist or has no memory; the detail
 * names it), -EEXIST (n pages exist already; the detail says how many, see KVMEM_POLICY_FUTURE),
 * -EOPNOTSUPP (mode not on this kernel), -EPERM (node outside the cpuset, or a container's seccomp filter
 * refuses mbind() without CAP_SYS_NICE: the detail says which), -ENOMEM.
 * One thread at a time per object.
 */
KVMEM_API int kvmem_region_set_policy(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
				      uint32_t mode, const unsigned long *nodes,
				      unsigned long maxnode, uint32_t flags);

struct kvmem_placement {
	uint32_t size;
	uint32_t node_count; /* in: entries of `nodes`; out: entries used */
	uint64_t *nodes;     /* caller's array: pages on each node, by node number */
	uint64_t pages;	     /* pages of the range */
	uint64_t present;    /* pages that exist */
	uint64_t misplaced;  /* pages on a node outside their policy's mask */
	uint64_t other; /* pages on nodes beyond `nodes`, or whose node the kernel does not tell */
};

#define KVMEM_PLACEMENT_INIT KVMEM_INIT_(struct kvmem_placement)

/**
 * kvmem_region_placement() - count the pages of a range by the node they are on, as move_pages(2) says.
 *
 * Allocates nothing in the region: pages that do not exist are counted as such. Pages are of the
 * region's page size. Where a seccomp filter hides the nodes, they are counted as `other`. Errors:
 * -EINVAL, -ERANGE. May be called from any thread.
 */
KVMEM_API int kvmem_region_placement(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
				     struct kvmem_placement *ret_placement);

/**
 * kvmem_numa_nodes() - the nodes that have memory and that this process may use.
 *
 * Sets their bits in nodes (maxnode bits, cleared first) and returns how many there are. Errors:
 * -EINVAL (maxnode too small for the highest one). May be called from any thread.
 */
KVMEM_API int kvmem_numa_nodes(unsigned long *nodes, unsigned long maxnode);

KVMEM_END_DECLS

#endif
