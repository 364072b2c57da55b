/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_REMOTE_H
#define KVMEM_REMOTE_H

/*
 * Regions whose memory is another process's: it has mapped the memory, registered it with a userfaultfd, and given that
 * to this process, which serves its page faults. Nothing of the memory is mapped here.
 *
 * A pager serves such a region as any other: kvmem_pager_add() with a source, then kvmem_pager_start(). The region has
 * no slots, no host pointer, no policies; it cannot be populated, discarded, read, captured or watched for writes:
 * these calls answer -EOPNOTSUPP. It ends with kvmem_region_free().
 */

#include <kvmem/base.h>
#include <kvmem/pager.h>
#include <kvmem/region.h>

KVMEM_BEGIN_DECLS

/* A part of the region: where it is in the other process. */
struct kvmem_remote_mapping {
	uint64_t addr;	 /* in the other process */
	uint64_t bytes;	 /* whole pages */
	uint64_t offset; /* bytes into the region */
	uint32_t uffd;	 /* index in kvmem_remote_opts.uffds: with which it is registered */
	uint32_t reserved;
};

#define KVMEM_REMOTE_MAPPINGS_MAX 4096u
#define KVMEM_REMOTE_UFFDS_MAX	  64u

struct kvmem_remote_opts {
	uint32_t size;
	uint32_t flags;	    /* KVMEM_REMOTE_* */
	uint64_t bytes;	    /* of the region */
	uint64_t page_size; /* bytes, of all of its memory there; 0: the base page */
	/* Together they cover the region: no gaps, no overlaps, in any order. */
	const struct kvmem_remote_mapping *mappings;
	const int32_t *uffds; /* stay the caller's: the region duplicates them */
	uint32_t mapping_count;
	uint32_t uffd_count;
	int32_t fd;	    /* with KVMEM_REMOTE_FD */
	int32_t record_fd;  /* with KVMEM_REMOTE_RECORD */
	uint64_t fd_offset; /* bytes into fd at which the region begins */
	void *arg;	    /* the caller's word: kvmem_region_arg() */
};

/* How the memory is registered there: at least one of the two. */
#define KVMEM_REMOTE_MISSING (1u << 0) /* UFFDIO_REGISTER_MODE_MISSING */
#define KVMEM_REMOTE_MINOR   (1u << 1) /* UFFDIO_REGISTER_MODE_MINOR */
/* opts.fd is a memfd that the other process has mapped: pages that it has are present. With KVMEM_REMOTE_MINOR. */
#define KVMEM_REMOTE_FD (1u << 2)
#define KVMEM_REMOTE_RECORD \
	(1u << 3) /* opts.record_fd is the record of a predecessor: go on with it */

#define KVMEM_REMOTE_OPTS_INIT KVMEM_INIT_(struct kvmem_remote_opts)

/**
 * kvmem_remote_create() - a region over memory of another process.
 *
 * The userfaultfds are that process's, which has called UFFDIO_API and UFFDIO_REGISTER. Their flags are not changed.
 * Nobody else may read from them. Errors: -EINVAL (what is wrong with which mapping or option), -E2BIG, -EBADF (a
 * descriptor is no userfaultfd), -EBUSY (another region has this userfaultfd), -ENOENT (a mapping is not mapped
 * and registered there), -ESRCH (the process has ended), -EOPNOTSUPP (FORK or REMAP events, a blocking one
 * before Linux 6.10, no /proc), -EPERM (the record could be cut short), -EMFILE, -ENOMEM. May be called from any
 * thread.
 */
KVMEM_API int kvmem_remote_create(const struct kvmem_remote_opts *opts,
				  struct kvmem_region **ret_region);

/**
 * kvmem_remote_join() - a further process has memory of a region: its faults are served too.
 *
 * For vhost-user back-ends: all map the same file, shared, at addresses of their own. opts is as for
 * kvmem_remote_create(), with the region's bytes and page_size, KVMEM_REMOTE_MISSING among its flags, and the further
 * process's mappings, which may be of a part only. The pager has the region, and may be running. Pages are filled once,
 * in the memory of the region's process. What the further process unmaps or removes from its mapping changes nothing of
 * the region, and its end is not told. It is served until the pager lets the region go. Errors: -EINVAL, -ENOENT (the
 * region is not of this pager, or a mapping is not there), -EDEADLK, and those of kvmem_remote_create(). One thread at
 * a time per object.
 */
KVMEM_API int kvmem_remote_join(struct kvmem_pager *pager, struct kvmem_region *region,
				const struct kvmem_remote_opts *opts);

/**
 * kvmem_remote_record_fd() - the memfd that holds the record of its pages, borrowed.
 *
 * A successor in another process gives it to kvmem_remote_create() with the same mappings, after this one has let the
 * region go, or has died. Errors: -EINVAL (not such a region). May be called from any thread.
 */
KVMEM_API int kvmem_remote_record_fd(const struct kvmem_region *region);

/**
 * kvmem_remote_check() - is the other process there?
 *
 * 0, or -ESRCH when it has ended or executed another program. Asks the kernel, and changes nothing there. Errors:
 * -EINVAL (not such a region), -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_remote_check(const struct kvmem_region *region);

KVMEM_END_DECLS

#endif
