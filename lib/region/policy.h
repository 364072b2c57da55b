/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_POLICY_H
#define KM_POLICY_H

/*
 * The memory policies of a region, by range: a list sorted by offset, without overlap, under the
 * region's lock. What they mean, and who holds them, is decided in numa; kept here because the
 * second mapping of hugetlb memory needs them and because they go with the region.
 */

#include <stdbool.h>
#include <stdint.h>

struct kvmem_region;

#define KM_POLICY_WORDS 16 /* 1024 nodes, the kernel's own limit */
#define KM_POLICY_NODES (8 * sizeof(unsigned long) * KM_POLICY_WORDS)
/* As maxnode of the system calls: the kernel takes one bit less than it is told. */
#define KM_POLICY_MAXNODE (KM_POLICY_NODES + 1)

struct km_policy {
	struct km_policy *next;
	uint64_t offset;
	uint64_t bytes;
	int mode;      /* enum km_mpol */
	bool emulated; /* by the threads that fill: the memory does not hold it */
	unsigned long nodes[KM_POLICY_WORDS];
};

/* The policy at an offset, or NULL. */
const struct km_policy *km_policy_at(const struct kvmem_region *r, uint64_t offset);

/*
 * Puts *new in the place of what its range had; MPOL_DEFAULT only clears the range. Cannot fail:
 * `spare`, allocated beforehand, is for a policy that is split in two. Takes both.
 */
void km_policy_put(struct kvmem_region *r, struct km_policy *new, struct km_policy *spare);
void km_policies_free(struct kvmem_region *r);

/* What of a policy lies in [offset, end); false: nothing. */
bool km_policy_part(const struct km_policy *p, uint64_t offset, uint64_t end,
		    struct km_policy *ret_part);

/* mbind() of the policy's range in a mapping of the region that begins at base; -errno. */
int64_t km_policy_bind(uint8_t *base, const struct km_policy *p);

/* A new second mapping: of hugetlb, each mapping has its own policies. -errno. */
int64_t km_policy_bind_alias(struct kvmem_region *r);

#endif
