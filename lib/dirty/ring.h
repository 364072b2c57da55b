/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_DIRTY_RING_H
#define KM_DIRTY_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dirty/bitmap.h"

/*
 * The kernel's ring of one vCPU, read from user space. The kernel pushes {DIRTY, slot, offset}; we
 * read it and mark it RESET, in order and without gaps; KVM_RESET_DIRTY_RINGS then frees it (flags
 * 0).
 */
#define KM_RING_DIRTY 1u
#define KM_RING_RESET 2u

/* struct kvm_dirty_gfn, its first two words read as one. */
struct km_ring_entry {
	uint64_t flags_slot; /* flags in the low half */
	uint64_t offset;     /* page in the slot */
};

struct km_ring {
	struct km_ring_entry *entries;
	uint32_t mask;	/* entries - 1 */
	uint32_t head;	/* the next entry to read; free-running */
	bool lost_head; /* the ring was in use before us: find where it stands */
};

/* Where the pages of a slot go: a window of a region's map. */
struct km_ring_slot {
	struct km_dmap *own;	/* the harvesting thread's map */
	struct km_dmap *shared; /* everyone's */
	uint64_t first;		/* page of the map that is page 0 of the slot */
	uint64_t pages;
	uint64_t epoch; /* of the last harvest that saw the slot */
};

/* Slots by address space (2) and id. */
struct km_ring_slots {
	struct km_ring_slot **by_id[2];
	uint32_t ids;
	uint64_t epoch;		 /* written into each slot that a harvest sees */
	_Atomic uint64_t strays; /* entries of slots that are not ours */
};

/*
 * Take what the ring holds into the slots' `own` maps, or into the `shared` ones, and mark it for
 * reset. Returns how many entries were marked. The caller holds the ring's lock.
 */
uint32_t km_ring_take(struct km_ring *ring, struct km_ring_slots *slots, bool shared);

#endif
