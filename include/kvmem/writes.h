/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_WRITES_H
#define KVMEM_WRITES_H

/*
 * What was written through the mappings of regions, told by the kernel's asynchronous write protection (Linux 6.7:
 * UFFD_FEATURE_WP_ASYNC and PAGEMAP_SCAN), without a dirty log of KVM's: for VMs that have none, for what the VMM
 * itself writes to memory whose slots are not logged, for memory without a VM.
 *
 * Seen is what is written by an access to the mapping: by the VMM, by the kernel on its behalf (read(), io_uring), by
 * vCPUs through HVA slots; and what the library changes in a region. Not seen is what does not go through the mapping:
 * another mapping of the file, write() to it, vCPUs of direct slots, and devices that have pinned the memory before.
 */

#include <kvmem/base.h>
#include <kvmem/region.h>

KVMEM_BEGIN_DECLS

struct kvmem_writes;

struct kvmem_writes_opts {
	uint32_t size;
	uint32_t flags; /* 0 */
};

#define KVMEM_WRITES_OPTS_INIT KVMEM_INIT_(struct kvmem_writes_opts)

/**
 * kvmem_writes_create() - what is needed to watch regions, opened ahead.
 *
 * Errors: -EINVAL, -E2BIG, -EOPNOTSUPP (before Linux 6.7, or without /proc), -EPERM (userfaultfd or /proc/self/pagemap
 * forbidden), -EMFILE, -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_writes_create(const struct kvmem_writes_opts *opts,
				  struct kvmem_writes **ret_writes);

/**
 * kvmem_writes_add() - watch a region: what is written after it has returned is seen.
 *
 * Takes a pass over its page tables, and page tables for memory that was never touched. Of a region that has been
 * added already, what it has grown by. The region cannot be freed, served by a pager or captured meanwhile: its
 * mapping has one userfaultfd. Errors: -EINVAL, -EBUSY (another userfaultfd has it), -ENOMEM, -EOPNOTSUPP, -EDEADLK.
 * One thread at a time per object.
 */
KVMEM_API int kvmem_writes_add(struct kvmem_writes *writes, struct kvmem_region *region);

/**
 * kvmem_writes_take() - pages from byte `from` of a region on that were written since they were taken last.
 *
 * In the same step they are protected again, so that the next write to them is seen: what they hold may be read after
 * it has returned. Stores up to `count` runs, in order, and returns how many; *ret_next is the byte up to which it has
 * looked: call it again from there until it is kvmem_region_bytes(). A page that may have been written is told as well:
 * after a discard, or where the kernel has taken it out of the mapping. A page is that of the mapping: of hugetlb all
 * of a huge page. Errors: -EINVAL, -ERANGE, -EBUSY, -EOPNOTSUPP, -EIO, -ENOMEM; *ret_next is not set then, and
 * runs that were stored before are lost: all of the region counts as written. One thread at a time per object.
 */
KVMEM_API int64_t kvmem_writes_take(struct kvmem_writes *writes, struct kvmem_region *region,
				    uint64_t from, struct kvmem_run *runs, size_t count,
				    uint64_t *ret_next);

/** kvmem_writes_watched() - how many bytes of a region are watched, from its beginning on. Errors: -EINVAL. One thread
 * at a time per object. */
KVMEM_API int64_t kvmem_writes_watched(struct kvmem_writes *writes,
				       const struct kvmem_region *region);

/** kvmem_writes_remove() - watch it no longer. Errors: -EINVAL, -EBUSY (a populate is under way). One thread at a time
 * per object. */
KVMEM_API int kvmem_writes_remove(struct kvmem_writes *writes, struct kvmem_region *region);

/** kvmem_writes_free() - Errors: -EBUSY (it watches a region). NULL is allowed. One thread at a time per object. */
KVMEM_API int kvmem_writes_free(struct kvmem_writes *writes);

KVMEM_END_DECLS

#endif
