/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_DIRTY_INTERNAL_H
#define KM_DIRTY_INTERNAL_H

/*
 * The tracker's parts, and who may touch what.
 *
 *	dirty.c		create, start, stop, the slots it follows
 *	dirty_vcpu.c	vCPUs and their rings, ring-full, the reaper thread
 *	dirty_reset.c	resets, and what to do when one comes short
 *	dirty_log.c	the bitmap mode: get and clear
 *	dirty_batch.c	harvest, commit, and what a batch gives out; merge
 *	dirty_ring.c, dirty_bitmap.c, dirty_runs.c	readers and maps, free of system calls on
 *KVM
 *
 * vm->lock, held for reading, keeps slots, regions and vCPUs in place: every call holds it so, and
 *the few that change one of these hold it for writing. Under it, a vCPU's lock guards its ring.
 *mark_lock inside that is held for reading while entries are marked for reset and for writing
 *during the reset itself: so the kernel's count can be held against ours exactly, and threads that
 *empty their own rings do not wait for each other (the kernel resets one at a time in any case).
 *
 * Of a region's two maps, `batch` belongs to the thread that harvests and hands out, `pending` to
 *all.
 */

#include "dirty/bitmap.h"
#include "dirty/ring.h"
#include "dirty/dirty.h"

struct km_dirty_region {
	struct kvmem_region *region;
	struct km_dmap batch;
	struct km_dmap pending;
};

struct km_dirty_slot {
	struct km_ring_slot ring; /* first: km_ring_slots points here */
	uint32_t id;
	struct km_dirty_region *dr;
	bool suspect;  /* reset short: may have pages whose writes go unlogged */
	bool fetched;  /* bitmap mode: log[] waits to be cleared */
	uint64_t *log; /* bitmap mode: as the kernel gave it */
	size_t log_bytes;
};

struct km_dirty_vcpu {
	int fd; /* the caller's */
	pthread_mutex_t lock;
	struct km_ring ring; /* entries is NULL in bitmap mode */
	size_t map_bytes;
	_Atomic uint64_t pages;
	_Atomic uint64_t ring_full;
	_Atomic uint64_t rate;
	uint64_t pages_then; /* at the last harvest */
};

enum km_batch_state { KM_BATCH_FREE, KM_BATCH_OUT, KM_BATCH_COMMITTED };

#define KM_BATCH_RUNS 64

struct kvmem_batch {
	struct kvmem_dirty *dirty;
	enum km_batch_state state;
	uint64_t pages;
	size_t region; /* where kvmem_batch_next() is */
	uint64_t pos;
	struct kvmem_run runs[KM_BATCH_RUNS];
	size_t run_at, run_count;
};

struct km_reaper {
	bool wanted, running, quit;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	uint64_t min_ns, max_ns;
};

struct km_dirty_counters {
	_Atomic uint64_t harvests, pages, pages_merged, resets, short_resets, pages_kept, ring_full;
	_Atomic uint64_t reaps, harvest_ns, reset_ns;
};

struct kvmem_dirty {
	struct kvmem_vm *vm;
	uint32_t mode;
	uint32_t ring_entries;
	unsigned int page_shift; /* of the page in which KVM logs */
	uint32_t flags;
	uint64_t manual; /* bitmap mode: KVM_DIRTY_LOG_* the kernel offers */
	bool manual_on;
	bool started;
	struct km_ring_slots table;
	struct km_dirty_slot **slots;
	size_t slot_count, slot_room;
	struct km_dirty_region **regions;
	size_t region_count, region_room;
	struct km_dirty_vcpu **vcpus;
	size_t vcpu_count, vcpu_room;
	pthread_rwlock_t mark_lock;
	_Atomic uint64_t marked; /* entries marked and not known to be reset */
	_Atomic bool suspects;	 /* some slot is suspect */
	uint64_t harvested_at;	 /* ns */
	struct kvmem_batch batch;
	struct km_reaper reaper;
	struct km_dirty_counters stats;
	char reason[256];
};

static inline void km_count_shared(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* A pointer more in a growing array: make room for it first, then add it without a chance to fail.
 */
int km_dirty_room(void *array, size_t count, size_t *room);

/* dirty.c; vm->lock held for writing. */
int km_dirty_region_get(struct kvmem_dirty *d, struct kvmem_region *region,
			struct km_dirty_region **ret);
struct km_dirty_region *km_dirty_region_find(const struct kvmem_dirty *d,
					     const struct kvmem_region *region);

/* dirty_vcpu.c */
int km_dirty_rings_probe(struct kvmem_dirty *d, uint32_t entries, uint32_t mode);
uint64_t km_dirty_take_all(struct kvmem_dirty *d, bool shared);
void km_dirty_vcpus_free(struct kvmem_dirty *d);
int km_dirty_reaper_start(struct kvmem_dirty *d);
void km_dirty_reaper_stop(struct kvmem_dirty *d);

/* dirty_reset.c; reset with vm->lock held, repair without. */
int km_dirty_reset(struct kvmem_dirty *d);
int64_t km_dirty_repair(struct kvmem_dirty *d);

/* dirty_log.c */
int km_dirty_log_enable(struct kvmem_dirty *d);
void km_dirty_log_disable(struct kvmem_dirty *d);
int km_dirty_log_fetch(struct kvmem_dirty *d);
int km_dirty_log_clear(struct kvmem_dirty *d);

#endif
