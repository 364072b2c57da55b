/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_REGION_H
#define KVMEM_REGION_H

/*
 * A run of guest RAM: what backs it, where the host sees it, which of its pages have their content,
 * and the memory slots through which the guest sees it.
 */

#include <kvmem/base.h>
#include <kvmem/vm.h>

KVMEM_BEGIN_DECLS

struct kvmem_region;

enum kvmem_backing {
	KVMEM_BACKING_AUTO = 0,
	KVMEM_BACKING_GUEST_MEMFD = 1,
	KVMEM_BACKING_MEMFD = 2,     /* shmem; page size: the base page */
	KVMEM_BACKING_HUGETLB = 3,   /* memfd of huge pages: 2 MiB or 1 GiB */
	KVMEM_BACKING_ANONYMOUS = 4, /* private anonymous memory; no file descriptor */
	/* A mapping of the caller's that the library cannot fill: a private mapping of a file, a shared one
	 * without its file descriptor, read-only memory. */
	KVMEM_BACKING_OTHER = 5,
	KVMEM_BACKING_CLONE = 6,  /* private pages over a template: KVMEM_REGION_CLONE */
	KVMEM_BACKING_REMOTE = 7, /* memory of another process: kvmem_remote_create() */
};

enum kvmem_slot_form {
	KVMEM_SLOT_AUTO = 0,
	KVMEM_SLOT_HVA = 1, /* KVM resolves guest faults through the host mapping */
	KVMEM_SLOT_DIRECT =
		2, /* KVM resolves them on the guest_memfd itself (KVM_MEM_GUEST_MEMFD) */
};

/* What a region should be able to do: `wants` may be given up with a reason, `needs` may not. */
#define KVMEM_WANT_DIRTY   (1u << 0) /* learn what the guest wrote */
#define KVMEM_WANT_PAGING  (1u << 1) /* fill on demand through a pager */
#define KVMEM_WANT_NUMA	   (1u << 2) /* kernel-held NUMA policy by range */
#define KVMEM_WANT_PRIVATE (1u << 3) /* memory the guest can convert to private (direct slot) */
#define KVMEM_WANT_HUGE	   (1u << 4) /* huge pages (hugetlb) */
#define KVMEM_WANT_SHARED  (1u << 5) /* a file descriptor another process can map */
#define KVMEM_WANT_WRITE   (1u << 6) /* population by write() */
#define KVMEM_WANT_THP	   (1u << 7) /* huge pages as they come: transparent ones (MADV_HUGEPAGE) */
#define KVMEM_WANT_CAPTURE \
	(1u << 8) /* the memory of a moment, while the guest runs: kvmem_capture(3) */

/* What of an adopted file or mapping counts as content: pages that exist are present, or nothing is. */
enum kvmem_content {
	KVMEM_CONTENT_KEEP = 0,	  /* all that exists, by whole pages of the kernel's */
	KVMEM_CONTENT_IGNORE = 1, /* nothing: all of it is to be filled */
};

/* Seals of a memfd, in addition to SHRINK and GROW, which it has without asking: as F_SEAL_*. */
#define KVMEM_SEAL_SEAL	  0x0001u
#define KVMEM_SEAL_SHRINK 0x0002u
#define KVMEM_SEAL_GROW	  0x0004u
#define KVMEM_SEAL_EXEC	  0x0020u
#define KVMEM_SEAL_NONE	  0x80000000u /* alone: none, the caller adds them later or resizes */

struct kvmem_region_opts {
	uint32_t size;
	uint32_t flags;	     /* KVMEM_REGION_* */
	uint64_t bytes;	     /* a non-zero multiple of the page size */
	uint64_t wants;	     /* KVMEM_WANT_* */
	uint64_t needs;	     /* KVMEM_WANT_*: refuse (-EOPNOTSUPP) rather than fall back */
	uint32_t backing;    /* enum kvmem_backing; anything but AUTO is a requirement */
	uint32_t slot_form;  /* enum kvmem_slot_form; anything but AUTO is a requirement */
	uint64_t page_size;  /* bytes; 0: the base page, or 2 MiB for huge pages */
	uint64_t gmem_flags; /* further guest_memfd creation flags, passed through */
	int32_t fd;	     /* with KVMEM_REGION_FD: an existing memfd or guest_memfd;
				      * with KVMEM_REGION_CLONE: the template */
	uint32_t seals;	     /* KVMEM_SEAL_* of a memfd; of an adopted one only these */
	uint64_t fd_offset;  /* bytes into fd at which the region begins */
	uint32_t content;    /* enum kvmem_content, of an adopted file or mapping */
	uint32_t reserved;
	void *arg;	  /* the caller's word: kvmem_region_arg(), kvmem_translation.arg */
	void *mapping;	  /* with KVMEM_REGION_MAPPING: where the caller has mapped it */
	uint64_t reserve; /* bytes that it can grow to: kvmem_region_grow(); 0: it stays as it is */
};

#define KVMEM_REGION_FD	       (1u << 0) /* adopt opts.fd */
#define KVMEM_REGION_OVERLAP   (1u << 1) /* though a region of this process has these bytes of it */
#define KVMEM_REGION_DONTDUMP  (1u << 2) /* not in core dumps: MADV_DONTDUMP */
#define KVMEM_REGION_DONTFORK  (1u << 3) /* not in children of fork(): MADV_DONTFORK */
#define KVMEM_REGION_MAPPING   (1u << 4) /* opts.mapping: memory that the caller has mapped himself */
#define KVMEM_REGION_CLONE     (1u << 5) /* of the template opts.fd: written pages are its own */
#define KVMEM_REGION_OPTS_INIT KVMEM_INIT_(struct kvmem_region_opts)

#define KVMEM_PLAN_REASONS 1536

struct kvmem_plan {
	uint32_t size;
	uint32_t backing;   /* enum kvmem_backing */
	uint32_t slot_form; /* enum kvmem_slot_form */
	uint32_t write_rev; /* enum kvmem_write_rev of its file descriptor */
	uint64_t bytes;
	uint64_t page_size;	 /* bytes */
	uint64_t gmem_flags;	 /* creation flags of the guest_memfd */
	uint64_t granted;	 /* KVMEM_WANT_* that the region will have */
	uint64_t given_up;	 /* KVMEM_WANT_* asked for in `wants` and not to be had */
	uint32_t shared_backing; /* enum kvmem_backing of the shared pages where a guest_memfd holds
					 * private ones only; else 0 */
	uint32_t flags;		 /* KVMEM_PLAN_* */
	char reasons[KVMEM_PLAN_REASONS]; /* a line per decision, each ending in '\n' */
};

#define KVMEM_PLAN_THP (1u << 0) /* MADV_HUGEPAGE is said of its mappings */

#define KVMEM_PLAN_INIT KVMEM_INIT_(struct kvmem_plan)

/**
 * kvmem_region_plan() - what kvmem_region_create() would make of these options, and why.
 *
 * Makes nothing. vm may be NULL for memory that no guest will see. Errors: -EINVAL, -E2BIG,
 * -EOPNOTSUPP (a requirement cannot be met, or two exclude each other: the detail says which and
 * what to change), -EBADF (fd is not open for reading and writing, or neither a memfd nor a guest_memfd),
 * -ERANGE (fd is shorter than the region), -EFAULT (part of opts.mapping is not mapped). May be called from
 * any thread.
 */
KVMEM_API int kvmem_region_plan(struct kvmem_vm *vm, const struct kvmem_region_opts *opts,
				struct kvmem_plan *ret_plan);

/**
 * kvmem_region_create() - make (or adopt) the memory and map it into this process.
 *
 * A memfd that the library makes is sealed against resizing, and its mapping and that of anonymous memory
 * begin at a multiple of 2 MiB. A file descriptor given with KVMEM_REGION_FD stays the caller's; the library
 * opens the file once more. A file on tmpfs or hugetlbfs counts as a memfd. Pages that exist in an adopted
 * file count as present, the others can be filled; opts.content can say otherwise. Memory given with
 * KVMEM_REGION_MAPPING stays mapped as it is, and is unmapped by the caller after kvmem_region_free(). Errors:
 * those of kvmem_region_plan(), -EBUSY (another region has these bytes or this memory), -EOPNOTSUPP (the guest_memfd is
 * another user's: the kernel does not tell which pages it has), -EPERM (the file's seals), -EFBIG
 * (RLIMIT_FSIZE), -EAGAIN (RLIMIT_MEMLOCK), -ENOMEM (limits, no huge pages), -EMFILE. May be called from any
 * thread.
 */
KVMEM_API int kvmem_region_create(struct kvmem_vm *vm, const struct kvmem_region_opts *opts,
				  struct kvmem_region **ret_region);

/**
 * kvmem_region_free() - delete the region's slots, unmap and close it. A mapping of the caller's stays.
 *
 * Pages that a dirty tracker has not reported yet are gone with it. Errors: -EBUSY while a pager
 * serves it or a populate fills it; where KVM refuses to delete a slot, its own: the region stays, with
 * the slots that are left; -EDEADLK in a callback of this library. NULL is allowed. One thread at a time per
 * object.
 */
KVMEM_API int kvmem_region_free(struct kvmem_region *region);

/**
 * kvmem_region_grow() - make the region longer: `bytes` is its new length, at most opts.reserve.
 *
 * What it had stays where it is, in host memory, in the file and for the guest; the new part is attached by the
 * caller. Its pages are absent, as in a new region, or zero while a pager has the region. Errors, which
 * change nothing: -EINVAL (not whole pages, or shorter than it is), -ERANGE (beyond the reserve), -ENOMEM
 * (limits, no huge pages), -EAGAIN (RLIMIT_MEMLOCK). May be called from any thread.
 */
KVMEM_API int kvmem_region_grow(struct kvmem_region *region, uint64_t bytes);

/** kvmem_region_get_plan() - what the region is: the plan it was made by. May be called from any thread. */
KVMEM_API int kvmem_region_get_plan(const struct kvmem_region *region, struct kvmem_plan *ret_plan);

/** kvmem_region_base() - first byte of the host mapping, borrowed: valid until kvmem_region_free(). */
KVMEM_API void *kvmem_region_base(const struct kvmem_region *region);

/** kvmem_region_bytes() - length of the region in bytes, without the reserve. May be called from any thread. */
KVMEM_API uint64_t kvmem_region_bytes(const struct kvmem_region *region);

/** kvmem_region_arg() - kvmem_region_opts.arg that it was created with. */
KVMEM_API void *kvmem_region_arg(const struct kvmem_region *region);

/** kvmem_region_page_size() - bytes of one page of the region: the unit of discard and paging. */
KVMEM_API uint64_t kvmem_region_page_size(const struct kvmem_region *region);

/** kvmem_region_fd() - its file descriptor, borrowed; -ENODEV where the library has none of it. */
KVMEM_API int kvmem_region_fd(const struct kvmem_region *region);

/** kvmem_region_private_fd() - the guest_memfd of its private pages, borrowed, where plan.shared_backing
 * says that the shared ones are elsewhere; else -ENODEV. */
KVMEM_API int kvmem_region_private_fd(const struct kvmem_region *region);

/**
 * kvmem_region_check_huge() - can KVM map huge pages where these bytes are attached at gpa?
 *
 * It can where the guest address and the host address are equal in their lower 21 bits, and the region has
 * memory of huge pages. 0: it can, once the pages are there. Errors: -EINVAL (it cannot at this gpa: the detail
 * has the next one where it can; or not whole base pages), -ERANGE (beyond the region, or no whole huge
 * page in the range), -EOPNOTSUPP (the memory has base pages). May be called from any thread.
 */
KVMEM_API int kvmem_region_check_huge(const struct kvmem_region *region, uint64_t offset,
				      uint64_t bytes, uint64_t gpa);

#define KVMEM_ATTACH_READONLY (1u << 0) /* guest writes exit with KVM_EXIT_MMIO; HVA slots only */
#define KVMEM_ATTACH_LOGGED   (1u << 1) /* adopted: the VMM has its dirty log on, and it stays on */
#define KVMEM_ATTACH_ADOPTED  (1u << 2) /* kvmem_region_attachments(): the VMM has set the slot */

/**
 * kvmem_region_attach() - give bytes [offset, offset + bytes) to the guest at guest-physical gpa.
 *
 * slot is a number (address space << 16 | id) or KVMEM_SLOT_ANY; ret_slot (may be NULL) receives it.
 * All three of offset, bytes and gpa are multiples of the base page. A region may have many slots, over parts of
 * it. When a dirty tracker is started on the VM, the slot is tracked from its first moment. Errors:
 * -EINVAL, -ERANGE (beyond the region or the guest's physical addresses), -EEXIST (overlaps another
 * slot, or slot number taken), -EBUSY (ring entries of the number's last slot are not reset yet),
 * -ENOSPC (no slot left), -EOPNOTSUPP (flag and slot form exclude each other), -EDEADLK (in a
 * callback of this library), -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_region_attach(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
				  uint64_t gpa, uint32_t slot, uint32_t flags, uint32_t *ret_slot);

/**
 * kvmem_region_detach() - take a slot of this region away from the guest.
 *
 * Dirty pages of the slot that were not harvested yet are kept and come with the next harvest; where a
 * write may have escaped the log in the slot's last moments, all of it counts as written (kvmem_dirty(3)).
 * Errors: -EINVAL, -ENOENT (no such slot of this region), -EDEADLK; where KVM refuses, its own: the slot
 * stays.
 * May be called from any thread.
 */
KVMEM_API int kvmem_region_detach(struct kvmem_region *region, uint32_t slot);

/**
 * kvmem_region_adopt_slot() - tell of a slot that the VMM itself has set over this region.
 *
 * From then on it is translated, tracked and paged like one of kvmem_region_attach(), and its flags are the
 * library's: a tracker that starts turns its dirty log on, and off again when it stops unless
 * KVMEM_ATTACH_LOGGED is given. The arguments are what KVM was told; they are compared with KVM's slot, which
 * stays as it is. kvmem_region_detach() and kvmem_region_free() forget the slot and leave it in KVM: the VMM
 * deletes it afterwards. Told again of an adopted slot, only the flags change. Errors: those of
 * kvmem_region_attach(); -ENOENT (KVM has no slot of this number, or none there), -EINVAL (slot is
 * KVMEM_SLOT_ANY; KVM's slot has another size, host address or KVMEM_ATTACH_READONLY). May be called from any
 * thread; no other changes the VMM's slots meanwhile.
 */
KVMEM_API int kvmem_region_adopt_slot(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
				      uint64_t gpa, uint32_t slot, uint32_t flags);

struct kvmem_attachment {
	uint32_t slot;	 /* address space << 16 | id */
	uint32_t flags;	 /* KVMEM_ATTACH_* */
	uint64_t offset; /* bytes into the region */
	uint64_t bytes;
	uint64_t gpa;
};

/**
 * kvmem_region_attachments() - where the guest sees bytes [offset, offset + bytes) of a region.
 *
 * One entry for each slot that shows a part of the range, cut to it, in the order of slot numbers: the way from
 * a run of dirty pages to guest-physical addresses. Returns how many there are; at most `count` are stored in
 * attachments, which may be NULL when count is 0. Errors: -EINVAL, -ERANGE. May be called from any thread.
 */
KVMEM_API int64_t kvmem_region_attachments(const struct kvmem_region *region, uint64_t offset,
					   uint64_t bytes, struct kvmem_attachment *attachments,
					   size_t count);

/*
 * Pages that exist although nothing has announced them: a guest ran without a pager, or the VMM wrote by
 * hand and did not call kvmem_region_mark_present(). kvmem_populate() and kvmem_pager_add() refuse them
 * (-EEXIST, the detail has their number) unless a flag says what they are.
 */
#define KVMEM_FILL_KEEP	     (1u << 8) /* content: they are present from now on */
#define KVMEM_FILL_OVERWRITE (1u << 9) /* nothing: they are dropped, and filled from the source */

/**
 * kvmem_region_discard() - give the pages of a range back to the host; they read as zero afterwards.
 *
 * Safe under a running guest and a running pager: a discarded page is zero from then on and is not
 * filled from a source again. Not from a callback of a pager or of a source: their thread is waited for.
 * Errors: -EINVAL (not whole pages), -ERANGE, -EIO (the pages before were discarded).
 * May be called from any thread.
 */
KVMEM_API int kvmem_region_discard(struct kvmem_region *region, uint64_t offset, uint64_t bytes);

/**
 * kvmem_region_mark_present() - say that the caller itself wrote these whole pages.
 *
 * For what a VMM puts into memory by hand (a kernel, tables) before it populates or starts a pager:
 * neither will overwrite them. Under a pager they are written through the file descriptor or a mapping
 * of the caller's own. Pages that already have content stay as they are. Errors: -EINVAL, -ERANGE, -EBUSY
 * (a page of it is being filled), -EIO (under a pager: nothing was written there). May be called from any
 * thread.
 */
KVMEM_API int kvmem_region_mark_present(struct kvmem_region *region, uint64_t offset,
					uint64_t bytes);

#define KVMEM_ABSENT_ATTACHED (1u << 0) /* although a slot shows the pages to a guest */

/**
 * kvmem_region_mark_absent() - the content of these whole pages is stale: they are to be filled again.
 *
 * For a migration: what was sent before the guest has written to it again. They are taken out of the memory,
 * poisoned ones too, and are absent from then on: under a pager the next access waits until they have been filled from
 * its source anew, also while it is running. Without one they read as zero until something fills them. Where a
 * slot shows them to a guest for writing it is refused (-EBUSY) unless KVMEM_ABSENT_ATTACHED says that no vCPU
 * runs, or that writes to them meanwhile may be lost. Waits for fills of these pages that are under way. Errors:
 * -EINVAL, -ERANGE, -EBUSY, -EDEADLK (from a callback of the region's), -EIO (the pages before are absent). May be
 * called from any thread.
 */
KVMEM_API int kvmem_region_mark_absent(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
				       uint32_t flags);

struct kvmem_run {
	struct kvmem_region *region;
	uint64_t offset; /* bytes into the region */
	uint64_t bytes;
};

/**
 * kvmem_region_next_missing() - the first run at or after `from` that has no content yet.
 *
 * Poisoned pages, which could not be filled, are among them: kvmem_region_next_run() tells them apart.
 * It is of whole pages, the one that `from` lies in among them. Returns 1 and the run, or 0 when there
 * is none. Errors: -EINVAL, -ERANGE. May be called from any thread.
 */
KVMEM_API int kvmem_region_next_missing(const struct kvmem_region *region, uint64_t from,
					struct kvmem_run *ret_run);

/* What the record says of pages. */
enum kvmem_page_state {
	KVMEM_PAGE_ABSENT = 0,	 /* nothing has filled it */
	KVMEM_PAGE_FILLING = 1,	 /* somebody is at it */
	KVMEM_PAGE_PRESENT = 2,	 /* has its content */
	KVMEM_PAGE_ZERO = 3,	 /* its content is zero, and there may be no memory for it */
	KVMEM_PAGE_POISONED = 4, /* could not be filled: an access is a memory error */
};

/**
 * kvmem_region_next_run() - the run of pages in one state that begins with the page `from` lies in.
 *
 * Returns 1 with the run and its enum kvmem_page_state, or 0 at the end of the region. Errors: -EINVAL,
 * -ERANGE. May be called from any thread.
 */
KVMEM_API int kvmem_region_next_run(const struct kvmem_region *region, uint64_t from,
				    struct kvmem_run *ret_run, uint32_t *ret_state);

/* What would be read from pages, as far as it is known without touching them. */
enum kvmem_stored_kind {
	KVMEM_STORED_ZERO = 0, /* zeros, and mostly no memory */
	KVMEM_STORED_DATA = 1, /* memory: its content has to be read */
	KVMEM_STORED_ABSENT =
		2, /* a pager has the region and has not filled them: its source's content */
	KVMEM_STORED_POISONED = 3, /* could not be filled: no content, and reading them fails */
};

struct kvmem_stored {
	uint64_t offset; /* bytes into the region */
	uint64_t bytes;
	uint32_t kind; /* enum kvmem_stored_kind */
	uint32_t reserved;
};

/**
 * kvmem_region_stored() - what memory holds of a range, from the record and from the kernel, without touching it.
 *
 * For saving and sending memory. Stores up to `count` runs that follow each other from `offset` on, neighbours of one
 * kind merged, and returns how many; a further call goes on behind the last. Pages that nobody has filled, and that no
 * pager would, are DATA where the guest or the VMM has written to them, and ZERO else. Where the kernel does not tell
 * whether there is memory, it is DATA. What is written or filled meanwhile may show or not. offset and bytes are
 * multiples of the base page. Errors: -EINVAL, -ERANGE, -EIO, -ENOMEM, -EMFILE. May be called from any thread.
 */
KVMEM_API int64_t kvmem_region_stored(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
				      struct kvmem_stored *runs, size_t count);

/**
 * kvmem_region_read() - copy bytes of a region into buf.
 *
 * As a load would, only that what cannot be read (a poisoned page, private memory, a truncated file) is -EFAULT
 * instead of SIGBUS. Absent pages of a region that a pager serves are waited for; where its userfaultfd takes faults
 * of user mode alone, they are -EFAULT. Errors: -EINVAL, -ERANGE, -EFAULT, -ENOMEM, -EMFILE. May be called from any
 * thread, but not from one that answers page faults.
 */
KVMEM_API int kvmem_region_read(struct kvmem_region *region, uint64_t offset, void *buf,
				uint64_t bytes);

#define KVMEM_ATTRIBUTE_PRIVATE (1u << 3) /* KVM_MEMORY_ATTRIBUTE_PRIVATE */

/**
 * kvmem_region_set_attributes() - KVM_SET_MEMORY_ATTRIBUTES on the attached parts of a range.
 *
 * 0 is shared, KVMEM_ATTRIBUTE_PRIVATE private. Errors: -EINVAL, -ERANGE, -ENOENT (part of the range
 * is not attached), -EOPNOTSUPP (not a VM type with private memory); where KVM refuses a part, its own, and
 * the parts before it are set. May be called from any thread.
 */
KVMEM_API int kvmem_region_set_attributes(struct kvmem_region *region, uint64_t offset,
					  uint64_t bytes, uint64_t attributes);

KVMEM_END_DECLS

#endif
