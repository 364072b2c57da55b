/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_DIRTY_RING_H
#define KM_DIRTY_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dirty/bitmap.h"
#include "vm/vm.h"

/*
 * The kernel's ring of one vCPU, read from user space. The kernel pushes {DIRTY, slot, offset}; we
 * read it and mark it RESET, in order and without gaps; KVM_RESET_DIRTY_RINGS then frees it (flags
 * 0).
 */
#define KM_RING_DIRTY 1u
#define KM_RING_RESET 2u

/* The number of no slot: of an address space that there is not. */
#define KM_RING_NOWHERE 0xfffffffeull

/* struct kvm_dirty_gfn, its first two words read as one. */
struct km_ring_entry {
	uint64_t flags_slot; /* flags in the low half */
	uint64_t offset;     /* page in the slot */
};

/*
 * Entries [tail, head) have been marked and are not known to be reset; the kernel resets them in
 * this order. Both are free-running.
 *
 * A kernel is to stop a vCPU before its ring is full to the last entry. Some let it run on, and push over entries that
 * nobody has read, or had reset. Then all entries are dirty at once, and which pages were lost cannot be told. The
 * place at which the kernel resets is behind the next entry that it pushes from then on, with free ones in between:
 * what is marked is not reset, until as many entries before it are marked as the kernel is behind.
 */
struct km_ring {
	struct km_ring_entry *entries;
	uint32_t mask; /* entries - 1 */
	uint32_t head; /* the next entry to read */
	uint32_t tail;
	bool lost_head; /* the ring was in use before us, or has overflowed: find where it stands */
	bool overflowed; /* pages were lost, which nobody has been told yet */
	bool had_overflow;
	bool may_lag;  /* the kernel may be behind the tail: since the head was lost */
	uint32_t back; /* entries before the tail that are marked for a kernel that is behind */
};

/* Where the pages of a slot go: a window of a region's map. km_slot.tracked points to one. */
struct km_ring_slot {
	struct km_dmap *own;	/* the harvesting thread's map */
	struct km_dmap *shared; /* everyone's */
	uint64_t first;		/* page of the map that is page 0 of the slot */
	uint64_t pages;
};

/* The slots of a VM, and who takes the entries of slots that the library has not set. */
struct km_ring_slots {
	struct km_slot **const *by_id; /* [address space][number]: kvmem_vm.by_id */
	uint32_t ids;		       /* numbers of an address space */
	void (*foreign)(void *arg, uint32_t slot, uint64_t page); /* NULL: nobody */
	void *arg;
	_Atomic uint64_t foreign_entries;
	_Atomic uint64_t strays; /* entries of our slots that are none of their pages */
};

/*
 * Take what the ring holds into the slots' `own` maps, or into the `shared` ones, and mark it for
 * reset. Returns how many entries were marked. The caller holds the ring's lock.
 */
uint32_t km_ring_take(struct km_ring *ring, struct km_ring_slots *slots, bool shared);

/* A dirty entry is somewhere, and not at the head, where it would be if the kernel were where we think. */
bool km_ring_is_astray(const struct km_ring *ring);

/* ---- after a reset ---- */

/* Pages first + i of a slot, for each bit i of mask. An empty mask: no run. */
struct km_ring_run {
	uint32_t slot;
	uint64_t first;
	uint64_t mask;
};

/*
 * The entries before `end`, as far back as the kernel may have joined them to one run of 64 pages
 * that it protects at once: those of one slot within 64 pages. None when end is the tail.
 */
struct km_ring_run km_ring_last_run(const struct km_ring *ring, uint32_t end);

/*
 * Where the kernel's reset stands: moves the tail there and returns how many entries it has reset. Nobody
 * marks entries meanwhile. *ret_run is the run that was reset last, of which the kernel may have
 * left the pages unprotected; `before` is km_ring_last_run(ring, ring->head) as it was before the
 * reset. *ret_overwritten: it cannot be told any more, the vCPU has gone once around the ring.
 */
uint32_t km_ring_reset_done(struct km_ring *ring, const struct km_ring_run *before,
			    struct km_ring_run *ret_run, bool *ret_overwritten);

/* The ring has overflowed, and the kernel has reset what was marked: begin again where it stands next. */
void km_ring_begin_again(struct km_ring *ring);

/*
 * The kernel has reset nothing of what is marked: mark more, before the tail, for the next call. False when there is no
 * more, or where no kernel can be behind.
 */
bool km_ring_step_back(struct km_ring *ring);

/* Some entry of the slot is marked and not reset yet. */
bool km_ring_holds(const struct km_ring *ring, uint32_t slot);

#endif
