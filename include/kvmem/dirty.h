/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_DIRTY_H
#define KVMEM_DIRTY_H

/*
 * What the guest wrote: harvest, then commit, then read.
 *
 * A harvest takes pages out of the kernel's log; only the commit makes the kernel log the next write
 * to them. A page read between the two can change afterwards without being reported, so a batch gives
 * out its pages only when it has been committed.
 *
 * A page here is the base page of the system (sysconf(_SC_PAGESIZE)), in which KVM logs, also where the
 * pages of the region are larger.
 */

#include <kvmem/base.h>
#include <kvmem/region.h>
#include <kvmem/vm.h>

KVMEM_BEGIN_DECLS

struct kvmem_dirty;
struct kvmem_reader;
struct kvmem_batch;

enum kvmem_dirty_mode {
	KVMEM_DIRTY_AUTO = 0,
	KVMEM_DIRTY_RING = 1,
	KVMEM_DIRTY_BITMAP = 2,
};

struct kvmem_dirty_opts {
	uint32_t size;
	uint32_t flags; /* KVMEM_DIRTY_* */
	uint32_t mode;	/* enum kvmem_dirty_mode: anything but AUTO is a requirement */
	uint32_t
		ring_entries; /* per vCPU, a power of two, 16 bytes of kernel memory each; 0: chosen
				* (65536: 1 MiB a vCPU) */
	uint64_t
		reap_min_ns; /* with REAPER: shortest and longest pause between reaps; 0: default */
	uint64_t reap_max_ns;
	/*
	 * A ring entry of a slot that the library has not set: the VMM's own. `flags` is 0 or
	 * KVMEM_FOREIGN_*. Called from whatever empties rings (harvest, ring_full, reaper, attach,
	 * detach, stop...), with locks held: it writes the page down; what it may call is in kvmem(7).
	 * NULL: such entries are counted and dropped.
	 */
	void (*foreign)(void *arg, uint32_t slot, uint64_t page, uint32_t flags);
	void *arg;
};

#define KVMEM_DIRTY_REAPER \
	(1u << 0) /* a thread that keeps rings from filling, period adapted to the rate */
#define KVMEM_DIRTY_FIRST_ALL \
	(1u << 1) /* a slot's first harvest reports all of it, written or not */
#define KVMEM_DIRTY_WHOLE_VM \
	(1u << 2) /* AUTO may turn on for an adopted VM what holds for all its slots */
#define KVMEM_DIRTY_DETACH_STOPPED \
	(1u << 3) /* the VMM detaches slots only while no vCPU is in KVM_RUN */

#define KVMEM_FOREIGN_UNSURE \
	(1u << 0) /* after a reset: the page may be left unprotected, its next writes unlogged */

#define KVMEM_DIRTY_OPTS_INIT KVMEM_INIT_(struct kvmem_dirty_opts)

/**
 * kvmem_dirty_create() - prepare dirty tracking of a VM; one tracker per VM.
 *
 * The ring must be enabled before the first vCPU is created: -EBUSY with the reason when there is one
 * already and mode is RING, the bitmap when it is AUTO. Rings are for all slots of the VM, the VMM's own
 * too, so for an adopted VM AUTO turns them on only with WHOLE_VM. They stay on for the VM's life, in one
 * size: a later tracker of the VM uses them again, and where the VMM has turned them on itself,
 * ring_entries (here or in kvmem_vm_opts) must say their size. Errors: -EINVAL (ring_entries: not a power of
 * two, or out of the kernel's range), -E2BIG, -EBUSY, -EEXIST (VM has a tracker), -EOPNOTSUPP, -ENOMEM.
 * Before the first vCPU is created.
 */
KVMEM_API int kvmem_dirty_create(struct kvmem_vm *vm, const struct kvmem_dirty_opts *opts,
				 struct kvmem_dirty **ret_dirty);

/** kvmem_dirty_get_mode() - KVMEM_DIRTY_RING or _BITMAP: what it became. */
KVMEM_API uint32_t kvmem_dirty_get_mode(const struct kvmem_dirty *dirty);

/** kvmem_dirty_get_reason() - one line on how tracking is provided and why so; valid until
 * kvmem_dirty_free(). May be called from any thread. */
KVMEM_API const char *kvmem_dirty_get_reason(const struct kvmem_dirty *dirty);

/**
 * kvmem_dirty_start() - log writes from here on, to every slot of a region made with WANT_DIRTY.
 *
 * Slots attached later are logged from their first moment. With FIRST_ALL each slot begins as if all of it
 * had been written: the first pass of a migration, which the kernel then starts for less. Errors: -EBUSY
 * (started), -EOPNOTSUPP (a direct slot), -EAGAIN (no thread for the reaper), -ENOMEM, -EDEADLK. One thread at
 * a time per object.
 */
KVMEM_API int kvmem_dirty_start(struct kvmem_dirty *dirty);

/** kvmem_dirty_stop() - stop logging; what was not harvested is dropped. Errors: -EINVAL (not
 * started), -EBUSY (a batch is out), -ENOMEM (tracking goes on, nothing is lost: try again), -EDEADLK. One thread
 * at a time per object. */
KVMEM_API int kvmem_dirty_stop(struct kvmem_dirty *dirty);

/** kvmem_dirty_free() - free a stopped tracker and unmap the rings. Errors: -EBUSY (started, or it
 * has readers). NULL is allowed. One thread at a time per object. */
KVMEM_API int kvmem_dirty_free(struct kvmem_dirty *dirty);

/**
 * kvmem_dirty_add_vcpu() - map a vCPU's ring; before its first KVM_RUN, also while tracking.
 *
 * vcpu_fd stays the caller's and open until kvmem_dirty_remove_vcpu() or _free(). In bitmap mode it
 * only counts. Errors: -EINVAL (not a vCPU), -EBADF, -EEXIST, -ENOMEM. May be called from any thread.
 */
KVMEM_API int kvmem_dirty_add_vcpu(struct kvmem_dirty *dirty, int vcpu_fd);

/** kvmem_dirty_remove_vcpu() - take what its ring still holds, then unmap it; the vCPU must have left
 * KVM_RUN for good. Errors: -ENOENT. May be called from any thread. */
KVMEM_API int kvmem_dirty_remove_vcpu(struct kvmem_dirty *dirty, int vcpu_fd);

/**
 * kvmem_dirty_ring_full() - on KVM_EXIT_DIRTY_RING_FULL, from that vCPU's own thread.
 *
 * Empties this ring into the next batch and resets it, with all signals blocked meanwhile. Call
 * KVM_RUN again on 0. Errors: -EINVAL (bitmap mode), -ENOENT (vCPU not added), -EIO (the reset failed, or the
 * kernel has overflowed the ring for good: the vCPU cannot go on). One thread at a time per vCPU.
 */
KVMEM_API int kvmem_dirty_ring_full(struct kvmem_dirty *dirty, int vcpu_fd);

/**
 * kvmem_dirty_harvest() - take what was written since the last harvest.
 *
 * Where a slot was detached in bitmap mode, all of it counts as written: the kernel's log of its last
 * moments went with it.
 *
 * Returns the number of pages, and a batch, which is empty when there are none: free it in any case. One
 * batch of a reader can be out at a time. A last harvest is complete when every vCPU has left KVM_RUN
 * before it. This is kvmem_reader_harvest() of the tracker's own reader, which sees all that is written
 * from kvmem_dirty_start() on. Errors: -EINVAL (not started), -EBUSY (the batch before is not freed),
 * -ENOMEM, -EIO, -EDEADLK. One thread at a time per object.
 */
KVMEM_API int64_t kvmem_dirty_harvest(struct kvmem_dirty *dirty, struct kvmem_batch **ret_batch);

struct kvmem_reader_opts {
	uint32_t size;
	uint32_t flags;			     /* KVMEM_READER_* */
	struct kvmem_region *const *regions; /* look at these only; read during the call */
	size_t region_count;		     /* 0: at all regions, those to come among them */
	uint64_t threshold_pages; /* with so many pages pending, add 1 to event_fd; 0: never */
	int32_t event_fd; /* an eventfd made with EFD_NONBLOCK, with threshold_pages; is duplicated */
	uint32_t reserved; /* 0 */
};

/* Each slot of its regions begins as if all of it had been written: those that there are, and later ones. */
#define KVMEM_READER_FIRST_ALL (1u << 0)
#define KVMEM_READER_OPTS_INIT KVMEM_INIT_(struct kvmem_reader_opts)

/**
 * kvmem_dirty_reader_create() - one more reader of the log, with harvests of its own.
 *
 * It sees all that is written from here on, and everything since its own last harvest, whatever other readers
 * take meanwhile. It stays through kvmem_dirty_stop() and a new start; what it has pending does not. Also
 * before the start. At most 15. Errors: -EINVAL, -E2BIG, -EBADF (event_fd), -ENOSPC, -ENOMEM, -EDEADLK. May be
 * called from any thread.
 */
KVMEM_API int kvmem_dirty_reader_create(struct kvmem_dirty *dirty,
					const struct kvmem_reader_opts *opts,
					struct kvmem_reader **ret_reader);

/** kvmem_dirty_reader() - the tracker's own reader, borrowed: that of kvmem_dirty_harvest(). May be called from
 * any thread. */
KVMEM_API struct kvmem_reader *kvmem_dirty_reader(struct kvmem_dirty *dirty);

/** kvmem_reader_free() - free a reader; what it has pending is dropped, other readers keep it. Errors: -EBUSY (a
 * batch is out), -EINVAL (the tracker's own), -EDEADLK. NULL is allowed. One thread at a time per object. */
KVMEM_API int kvmem_reader_free(struct kvmem_reader *reader);

/** kvmem_reader_harvest() - take what was written since this reader's last harvest: as kvmem_dirty_harvest(). One
 * thread at a time per object. */
KVMEM_API int64_t kvmem_reader_harvest(struct kvmem_reader *reader, struct kvmem_batch **ret_batch);

/**
 * kvmem_reader_pending() - how many pages its next harvest would report, of a region or (NULL) of all.
 *
 * Nothing is taken from the reader. The kernel's log is read for it, so it costs what a harvest does. Pages of
 * a batch that is out do not count. Errors: -EINVAL (not started), -EIO, -ENOMEM, -EDEADLK. May be called from any
 * thread.
 */
KVMEM_API int64_t kvmem_reader_pending(struct kvmem_reader *reader,
				       const struct kvmem_region *region);

/**
 * kvmem_reader_forget() - this reader does not want what was written to a range so far.
 *
 * For pages whose content nobody needs (free for the guest, discarded). Whole base pages. What is written after
 * it has returned is reported; what is written meanwhile may be or not. Other readers, and a batch that is out,
 * keep the pages. Errors: -EINVAL (not started, too), -ERANGE, -EIO, -ENOMEM, -EDEADLK. May be called from any
 * thread.
 */
KVMEM_API int kvmem_reader_forget(struct kvmem_reader *reader, struct kvmem_region *region,
				  uint64_t offset, uint64_t bytes);

/**
 * kvmem_dirty_commit() - have the kernel log the next write to the batch's pages.
 *
 * Only after it may the pages be read. Pages that an interrupted kernel may have left unprotected are
 * protected again; the number of those with which that was not possible, and which the next batch
 * therefore reports whether written or not, is returned, 0 in the normal case. Errors: -EINVAL,
 * -EALREADY, -EIO (the batch stays uncommitted), -EDEADLK.
 * One thread at a time per object.
 */
KVMEM_API int64_t kvmem_dirty_commit(struct kvmem_dirty *dirty, struct kvmem_batch *batch);

/**
 * kvmem_batch_next() - the batch's next run of dirty pages, sorted by region and offset, merged.
 *
 * Returns 1 and the run, 0 at the end (the next call begins again). Errors: -EPERM (not committed).
 * One thread at a time per object.
 */
KVMEM_API int kvmem_batch_next(struct kvmem_batch *batch, struct kvmem_run *ret_run);

/**
 * kvmem_batch_runs() - the same, up to `count` runs at once.
 *
 * Returns how many runs were stored, 0 at the end (the next call begins again). Errors: -EPERM (not
 * committed), -EINVAL. One thread at a time per object.
 */
KVMEM_API int64_t kvmem_batch_runs(struct kvmem_batch *batch, struct kvmem_run *runs, size_t count);

/**
 * kvmem_batch_bitmap() - OR the batch's pages of a region into the caller's bitmap.
 *
 * Bit i of bitmap (64-bit words, bit i % 64 of word i / 64) is page i from offset. Errors: -EPERM (not
 * committed), -ERANGE, -EINVAL. One thread at a time per object.
 */
KVMEM_API int kvmem_batch_bitmap(struct kvmem_batch *batch, struct kvmem_region *region,
				 uint64_t offset, uint64_t bytes, uint64_t *bitmap);

/** kvmem_batch_pages() - pages in the batch. */
KVMEM_API uint64_t kvmem_batch_pages(const struct kvmem_batch *batch);

/** kvmem_batch_region_pages() - pages of one region in the batch. May be called from any thread. */
KVMEM_API uint64_t kvmem_batch_region_pages(const struct kvmem_batch *batch,
					    const struct kvmem_region *region);

/**
 * kvmem_batch_return() - sending it failed: all its pages come with the reader's next harvest, and it is freed.
 *
 * Errors: -EINVAL (freed before), -EDEADLK. One thread at a time per object.
 */
KVMEM_API int kvmem_batch_return(struct kvmem_batch *batch);

/** kvmem_batch_free() - done with it; a batch never committed goes into the next one. NULL is allowed, and a
 * batch freed before, as long as its reader is there. */
KVMEM_API void kvmem_batch_free(struct kvmem_batch *batch);

/**
 * kvmem_dirty_merge() - add pages that the VMM or a device wrote (vhost-user log, VFIO, own I/O).
 *
 * Bit i of bitmap (as in kvmem_batch_bitmap()) is the 2^page_shift bytes from offset + (i <<
 * page_shift). They come with the next harvest. Errors: -EINVAL (not started, too), -ERANGE, -ENOMEM. May be
 * called from any thread.
 */
KVMEM_API int kvmem_dirty_merge(struct kvmem_dirty *dirty, struct kvmem_region *region,
				uint64_t offset, uint64_t bytes, unsigned int page_shift,
				const uint64_t *bitmap);

/**
 * kvmem_dirty_mark() - the VMM has written bytes of a region itself: they come with every reader's next harvest.
 *
 * For device emulation, after each write. Takes no lock and waits for nobody once a slot shows the region, or
 * something was merged into it. Errors: -EINVAL (not started, too), -ERANGE, -ENOMEM. May be called from any
 * thread.
 */
KVMEM_API int kvmem_dirty_mark(struct kvmem_dirty *dirty, struct kvmem_region *region,
			       uint64_t offset, uint64_t bytes);

#define KVMEM_MERGE_CLEAR (1u << 0) /* take the bits: each word is cleared by an atomic operation */

/**
 * kvmem_dirty_merge_gpa() - add pages that a device wrote, by guest-physical address.
 *
 * For the log of vhost and vhost-user (page_shift 12, gpa 0, KVMEM_MERGE_CLEAR while the device goes on
 * writing to it), and bitmaps of VFIO and iommufd of any page size. Bit i of bitmap (64-bit words, aligned to 8
 * bytes) is the 2^page_shift bytes from gpa + (i << page_shift). Returns how many of the pages (base pages) lie in
 * no slot that is tracked, and are left out (their bits stay): 0 in the normal case. Errors: -EINVAL (not
 * started, too), -ERANGE, -EDEADLK; nothing was cleared then. May be called from any thread.
 */
KVMEM_API int64_t kvmem_dirty_merge_gpa(struct kvmem_dirty *dirty, uint32_t space, uint64_t gpa,
					uint64_t bytes, unsigned int page_shift, uint64_t *bitmap,
					uint32_t flags);

struct kvmem_dirty_stats {
	uint32_t size;
	uint32_t mode; /* enum kvmem_dirty_mode */
	uint32_t vcpus;
	uint32_t ring_entries;
	uint32_t slots_tracked; /* slots whose writes are logged now */
	uint32_t
		slots_untracked; /* slots the library set whose writes are not: not started, or regions
				   * without KVMEM_WANT_DIRTY */
	uint64_t harvests;
	uint64_t pages;		  /* entries or set bits taken from the kernel's log */
	uint64_t pages_merged;	  /* pages added by kvmem_dirty_merge(), _merge_gpa() and _mark() */
	uint64_t pages_changed;	  /* pages that the library itself changed: discard, populate,
				   * mark_present */
	uint64_t resets;	  /* reset (or clear) calls */
	uint64_t short_resets;	  /* ... that returned before all marked entries were reset */
	uint64_t pages_protected; /* protected again because a reset may have left them out */
	uint64_t pages_kept;	  /* reported once more because they could not be */
	uint64_t foreign_entries; /* ring entries of slots that the library has not set */
	uint64_t ring_full;	  /* kvmem_dirty_ring_full() calls */
	uint64_t reaps;		  /* rounds of the reaper thread */
	uint64_t harvest_ns;	  /* time in harvests */
	uint64_t reset_ns;	  /* time in resets */
	uint64_t ring_overflows;  /* rings that the kernel has pushed more into than they hold */
};

#define KVMEM_DIRTY_STATS_INIT KVMEM_INIT_(struct kvmem_dirty_stats)

/** kvmem_dirty_get_stats() - counters since create. Errors: -EINVAL. May be called from any thread. */
KVMEM_API int kvmem_dirty_get_stats(const struct kvmem_dirty *dirty,
				    struct kvmem_dirty_stats *ret_stats);

struct kvmem_vcpu_stats {
	uint32_t size;
	uint32_t reserved;
	uint64_t pages; /* ring entries harvested of this vCPU */
	uint64_t ring_full;
	uint64_t pages_per_s; /* over the last harvest interval */
};

#define KVMEM_VCPU_STATS_INIT KVMEM_INIT_(struct kvmem_vcpu_stats)

/** kvmem_dirty_get_vcpu_stats() - one vCPU's counters; zero in bitmap mode, where the kernel does not
 * say who wrote. Errors: -EINVAL, -ENOENT. May be called from any thread. */
KVMEM_API int kvmem_dirty_get_vcpu_stats(const struct kvmem_dirty *dirty, int vcpu_fd,
					 struct kvmem_vcpu_stats *ret_stats);

KVMEM_END_DECLS

#endif
