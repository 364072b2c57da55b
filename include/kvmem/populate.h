/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_POPULATE_H
#define KVMEM_POPULATE_H

/* Eager fill: bring a range of a region to the content of a source, by the fastest way there is. */

#include <kvmem/base.h>
#include <kvmem/region.h>
#include <kvmem/source.h>

KVMEM_BEGIN_DECLS

/* How pages are made. */
enum kvmem_fill_method {
	KVMEM_FILL_AUTO = 0,	      /* tried on the first chunks, the fastest kept */
	KVMEM_FILL_WRITE = 1,	      /* pwrite() into the file descriptor */
	KVMEM_FILL_UFFD_COPY = 2,     /* UFFDIO_COPY, on memory registered with a pager */
	KVMEM_FILL_POPULATE_COPY = 3, /* map a chunk with MADV_POPULATE, then copy into it */
	KVMEM_FILL_COPY = 4,	      /* copied by the kernel through the mapping, page by page */
};

/* How a file's bytes are brought in. */
enum kvmem_file_method {
	KVMEM_FILE_AUTO = 0,
	KVMEM_FILE_DIRECT = 1, /* io_uring, O_DIRECT straight into guest memory */
	KVMEM_FILE_URING = 2,  /* io_uring, through the page cache */
	KVMEM_FILE_PREAD = 3,  /* pread() */
};

struct kvmem_progress {
	uint32_t size;
	uint32_t reserved;
	uint64_t done;	/* bytes dealt with, holes and zero pages among them */
	uint64_t total; /* bytes asked for */
	uint64_t elapsed_ns;
};

struct kvmem_populate_opts {
	uint32_t size;
	uint32_t flags;		/* KVMEM_POPULATE_*, KVMEM_FILL_KEEP or KVMEM_FILL_OVERWRITE */
	uint64_t source_offset; /* bytes into the source of the first byte */
	uint64_t bytes;		/* 0: as much as both the source and the region hold */
	uint32_t threads;	/* 0: as many as pay, 1: the calling thread only */
	uint32_t method;	/* enum kvmem_fill_method: anything but AUTO is a requirement */
	uint32_t file_method;	/* enum kvmem_file_method: likewise */
	int32_t vcpu_fd; /* with KVMEM_POPULATE_MAP_GUEST: a vCPU of the VM that does not run now */
	uint64_t chunk_bytes; /* unit of work, 0: chosen */
	/* Called in the calling thread every ~50 ms and at the end; non-zero cancels. May be NULL. */
	int (*progress)(void *arg, const struct kvmem_progress *progress);
	void *progress_arg;
	uint32_t
		uring_workers; /* most threads that the kernel makes for reads of one ring; 0: its own limit */
	uint32_t reserved; /* 0 */
};

#define KVMEM_POPULATE_KEEP_ZERO  (1u << 0) /* write zero pages too: allocate all of the range */
#define KVMEM_POPULATE_PREALLOC	  (1u << 1) /* no source: all pages are made, as zeros, or none */
#define KVMEM_POPULATE_MAP_GUEST  (1u << 2) /* map them for the guest too: KVM_PRE_FAULT_MEMORY */
#define KVMEM_POPULATE_MAP_NEEDED (1u << 3) /* with it: that it cannot be done is an error */
#define KVMEM_POPULATE_OPTS_INIT  KVMEM_INIT_(struct kvmem_populate_opts)

struct kvmem_populate_result {
	uint32_t size;
	uint32_t method;      /* enum kvmem_fill_method used for most bytes */
	uint32_t file_method; /* enum kvmem_file_method used, 0 when the source is no file */
	uint32_t threads;
	uint64_t bytes_copied;	/* stored through the mapping or by UFFDIO_COPY */
	uint64_t bytes_written; /* by write() */
	uint64_t bytes_read;	/* by O_DIRECT or read() straight into guest memory */
	uint64_t bytes_zero;	/* data of the source that was zero: not written */
	uint64_t bytes_hole;	/* holes of the source: neither read nor written */
	uint64_t bytes_present; /* had content already: left alone */
	uint64_t elapsed_ns;
	uint64_t bytes_made;   /* preallocated */
	uint64_t bytes_mapped; /* in the guest's tables, by KVMEM_POPULATE_MAP_GUEST */
	uint64_t
		bytes_unmapped; /* attached, and not mapped there: KVM could not, or does not offer it */
};

#define KVMEM_POPULATE_RESULT_INIT KVMEM_INIT_(struct kvmem_populate_result)

/**
 * kvmem_populate() - fill bytes from `offset` of a region with a source's content.
 *
 * Offset and length need no alignment: the rest of a first or last page is zero. Only pages that
 * nothing has filled yet are filled, each once, poisoned ones too, also beside a running pager; when it
 * returns 0, every page of the range has its content. Pages that exist and that nothing has announced are
 * -EEXIST, unless a flag says what they are. With KVMEM_POPULATE_PREALLOC, and source NULL, whole pages are
 * made as zeros; a failure leaves none of those that were absent. ret_result (may be NULL) is filled in on
 * failure too, with what was done. Errors: -EINVAL, -E2BIG, -ERANGE (beyond the region), -ENODATA (source shorter than
 * asked), -EEXIST, -EOPNOTSUPP (a required method or KVM_PRE_FAULT_MEMORY is not to be had: the detail says
 * why), -EBADF (vcpu_fd), -EBUSY (preallocation under a pager), -ECANCELED (by progress), -EDEADLK (from a
 * callback that runs for this region), -EFAULT (a source in memory that is not there), -ENOMEM, -EIO, or the
 * source callback's own. May be called from any thread.
 */
KVMEM_API int kvmem_populate(struct kvmem_region *region, uint64_t offset,
			     struct kvmem_source *source, const struct kvmem_populate_opts *opts,
			     struct kvmem_populate_result *ret_result);

/** kvmem_fill_method_name() - e.g. "populate+copy"; NULL for an unknown one. */
KVMEM_API const char *kvmem_fill_method_name(uint32_t method);

/** kvmem_file_method_name() - e.g. "io_uring+O_DIRECT"; NULL for an unknown one. */
KVMEM_API const char *kvmem_file_method_name(uint32_t method);

KVMEM_END_DECLS

#endif
