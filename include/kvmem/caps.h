/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_CAPS_H
#define KVMEM_CAPS_H

/*
 * What this kernel can do for a guest's memory, found out by doing it on a minimal object: never by
 * a kernel version, and never by the number of a flag or feature bit alone, since the same number
 * has meant different things in different trees.
 */

#include <kvmem/base.h>

KVMEM_BEGIN_DECLS

struct kvmem_caps;

/* How a facility is provided. */
enum kvmem_support {
	KVMEM_SUPPORT_UNKNOWN = 0, /* the probe itself failed; info.error has the errno */
	KVMEM_SUPPORT_NONE = 1,	   /* not to be had on this kernel */
	KVMEM_SUPPORT_FALLBACK =
		2,		  /* the library provides it another way; info.fallback names it */
	KVMEM_SUPPORT_NATIVE = 3, /* the kernel provides it */
};

/* One facility each. `value` of struct kvmem_cap_info is described beside it. */
enum kvmem_cap {
	KVMEM_CAP_KVM = 1,	    /* /dev/kvm opens, API 12; value: API version */
	KVMEM_CAP_USER_MEMORY2,	    /* KVM_SET_USER_MEMORY_REGION2 */
	KVMEM_CAP_MEMORY_SLOTS,	    /* value: slots per address space */
	KVMEM_CAP_READONLY_MEM,	    /* read-only HVA slots */
	KVMEM_CAP_GUEST_MEMFD,	    /* KVM_CREATE_GUEST_MEMFD on this VM; value: flags advertised */
	KVMEM_CAP_GUEST_MEMFD_MMAP, /* mapping one in the host; value: the flag used */
	KVMEM_CAP_GUEST_MEMFD_INIT_SHARED, /* host faults on it work; value: the flag used */
	KVMEM_CAP_GUEST_MEMFD_GUP, /* GUP on its mapping: MADV_POPULATE, O_DIRECT, registered buffers */
	KVMEM_CAP_GUEST_MEMFD_WRITE, /* write population; value: enum kvmem_write_rev */
	KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG, /* value: the creation flag that enables it, 0 when none is needed */
	KVMEM_CAP_GUEST_MEMFD_UFFD, /* userfaultfd on its mapping; value: enum kvmem_uffd_modes bits */
	KVMEM_CAP_GUEST_MEMFD_NUMA, /* mbind() honoured; fallback: policy of the filling threads */
	KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT,  /* slot with KVM_MEM_GUEST_MEMFD */
	KVMEM_CAP_GUEST_MEMFD_DIRECT_DIRTY, /* ... together with KVM_MEM_LOG_DIRTY_PAGES */
	KVMEM_CAP_GUEST_MEMFD_HVA_SLOT,	    /* slot over its mapping */
	KVMEM_CAP_GUEST_MEMFD_HVA_DIRTY,    /* ... together with KVM_MEM_LOG_DIRTY_PAGES */
	KVMEM_CAP_UFFD,		 /* a userfaultfd that KVM can use; value: API feature bits */
	KVMEM_CAP_UFFD_DEVICE,	 /* /dev/userfaultfd opens */
	KVMEM_CAP_UFFD_SYSCALL,	 /* userfaultfd(2) with kernel faults */
	KVMEM_CAP_UFFD_SHMEM,	 /* value: enum kvmem_uffd_modes bits */
	KVMEM_CAP_UFFD_HUGETLB,	 /* likewise */
	KVMEM_CAP_UFFD_ANON,	 /* likewise */
	KVMEM_CAP_UFFD_WP_ASYNC, /* UFFD_FEATURE_WP_ASYNC; value: 1 shmem, 2 hugetlb, 4 anonymous */
	KVMEM_CAP_UFFD_POISON,	 /* UFFDIO_POISON */
	KVMEM_CAP_UFFD_MOVE,	 /* UFFDIO_MOVE */
	KVMEM_CAP_NUMA_NODES,	 /* value: number of nodes that have memory */
	KVMEM_CAP_NUMA_PREFERRED_MANY,	    /* MPOL_PREFERRED_MANY */
	KVMEM_CAP_NUMA_WEIGHTED_INTERLEAVE, /* MPOL_WEIGHTED_INTERLEAVE */
	KVMEM_CAP_DIRTY_RING,		    /* value: maximum bytes of a ring */
	KVMEM_CAP_DIRTY_RING_ACQ_REL,	  /* KVM_CAP_DIRTY_LOG_RING_ACQ_REL; value: maximum bytes */
	KVMEM_CAP_DIRTY_RING_WITH_BITMAP, /* ring kernels that also need a bitmap (arm64) */
	KVMEM_CAP_DIRTY_MANUAL_PROTECT,	  /* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; value: flags */
	KVMEM_CAP_DIRTY_INITIALLY_SET,	  /* ... with KVM_DIRTY_LOG_INITIALLY_SET */
	KVMEM_CAP_PRE_FAULT,		  /* KVM_PRE_FAULT_MEMORY */
	KVMEM_CAP_MEMORY_ATTRIBUTES,	  /* value: attributes this VM takes */
	KVMEM_CAP_HUGETLB_2M,		  /* value: free 2 MiB pages */
	KVMEM_CAP_HUGETLB_1G,		  /* value: free 1 GiB pages */
	KVMEM_CAP_MADV_POPULATE,	  /* MADV_POPULATE_READ/WRITE */
	KVMEM_CAP_IO_URING,		  /* a ring with the operations used */
	KVMEM_CAP_IO_URING_FIXED,	  /* registered buffers over guest memory */
	KVMEM_CAP_ODIRECT_GUEST_MEMORY,	  /* O_DIRECT read straight into guest memory */
	KVMEM_CAP_COUNT_		  /* one past the last; grows */
};

/* Revisions of write population (KVMEM_CAP_GUEST_MEMFD_WRITE), named after what they do. */
enum kvmem_write_rev {
	KVMEM_WRITE_NONE = 0,
	KVMEM_WRITE_ALIGNED_ONCE = 1, /* whole pages; a page already there is -ENOSPC */
	KVMEM_WRITE_ANY = 2,	 /* any range; the rest of a partial page is zeroed; overwrites */
	KVMEM_WRITE_ALIGNED = 3, /* whole pages; overwrites */
};

/* Modes of userfaultfd on a kind of memory. */
enum kvmem_uffd_modes {
	KVMEM_UFFD_MISSING = 1 << 0,
	KVMEM_UFFD_MINOR = 1 << 1,
	KVMEM_UFFD_WP = 1 << 2,
};

struct kvmem_caps_opts {
	uint32_t size;
	uint32_t flags;	   /* KVMEM_CAPS_VM_FD */
	int32_t vm_fd;	   /* with KVMEM_CAPS_VM_FD: ask this VM where the kernel answers per VM */
	uint32_t reserved; /* 0 */
	uint64_t
		vm_type; /* machine type that VM was created with; the scratch VM is made with it too */
};

#define KVMEM_CAPS_VM_FD     (1u << 0)
#define KVMEM_CAPS_OPTS_INIT KVMEM_INIT_(struct kvmem_caps_opts)

struct kvmem_cap_info {
	uint32_t size;
	uint32_t id;	      /* enum kvmem_cap */
	uint32_t support;     /* enum kvmem_support */
	int32_t error;	      /* errno the kernel gave, or 0 */
	int64_t value;	      /* see enum kvmem_cap */
	const char *name;     /* short name, e.g. "guest-memfd-write" */
	const char *fallback; /* how it is provided instead, or "" */
	const char *reason;   /* one sentence: the kernel facility, and how to get it */
};

#define KVMEM_CAP_INFO_INIT KVMEM_INIT_(struct kvmem_cap_info)

/**
 * kvmem_caps_probe() - try every facility once and keep the results, those that may pass among them.
 *
 * Changes nothing on the VM given: what needs a memory slot or a vCPU is tried on a scratch VM. A
 * facility that is missing, /dev/kvm included, is a result and not a failure. The caller frees the
 * table with kvmem_caps_free(). Errors: -EINVAL, -E2BIG, -ENOMEM, -EBADF (vm_fd is not a VM).
 * May be called from any thread.
 */
KVMEM_API int kvmem_caps_probe(const struct kvmem_caps_opts *opts, struct kvmem_caps **ret_caps);

/** kvmem_caps_free() - free the table and the strings handed out from it. NULL is allowed. */
KVMEM_API void kvmem_caps_free(struct kvmem_caps *caps);

/**
 * kvmem_caps_get() - one facility (enum kvmem_cap).
 *
 * The strings belong to the table. Errors: -EINVAL (unknown id, NULL, info->size).
 * May be called from any thread.
 */
KVMEM_API int kvmem_caps_get(const struct kvmem_caps *caps, uint32_t id,
			     struct kvmem_cap_info *ret_info);

enum kvmem_caps_format {
	KVMEM_CAPS_TEXT = 0, /* a table for people, a line per facility */
	KVMEM_CAPS_JSON = 1, /* one object, keyed by facility name */
};

/**
 * kvmem_caps_format() - the whole table as text, in the manner of snprintf(3).
 *
 * Writes at most len bytes with the final NUL and returns the length without it that the whole
 * takes. buf may be NULL when len is 0. Errors: -EINVAL. May be called from any thread.
 */
KVMEM_API int kvmem_caps_format(const struct kvmem_caps *caps, uint32_t format, char *buf,
				size_t len);

/** kvmem_cap_name() - short name of a facility, NULL for an id this library does not know. */
KVMEM_API const char *kvmem_cap_name(uint32_t id);

KVMEM_END_DECLS

#endif
