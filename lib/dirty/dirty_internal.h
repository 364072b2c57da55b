/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_DIRTY_INTERNAL_H
#define KM_DIRTY_INTERNAL_H

/*
 * The tracker's files, each of which calls only those above it:
 *
 *	bitmap.c, runs.c	a bit a page, and the runs of set bits; know no KVM
 *	ring.c			the reader of one vCPU's ring
 *	regions.c		the maps of a region
 *	log.c			bitmap mode: turning it on, get and clear
 *	protect.c		taking a run of pages out of KVM's mapping, so that the next write
 *				to them is logged
 *	doubt.c			the pages that a reset may have left unprotected
 *	reset.c			emptying rings, and resets
 *	repair.c		the last resort: logging off and on, and the slot reported whole
 *	vcpus.c			vCPUs and their rings
 *	full.c, reaper.c	who empties rings beside the harvest
 *	slots.c			the slots that the tracker follows: its hooks
 *	start.c			start and stop
 *	readers.c		what one reader takes from the log is fed to the others
 *	harvest.c, batch.c	harvest and commit; what a batch gives out
 *	forget.c		pages that a reader does not want, and how many it has
 *	merge.c, gpa.c		what others wrote, by region and by guest-physical address
 *	choose.c		ring or bitmap
 *	dirty.c			create and free, statistics
 *
 * vm->lock, held for reading, keeps slots, regions and vCPUs in place: every call holds it so, and
 * the few that change one of these hold it for writing. Under it, a vCPU's lock guards its ring.
 * mark_lock, inside that, is held for reading while entries are marked for reset, and for writing
 * during a reset and until what it left in doubt is protected again or written down. So nobody sees
 * a ring without marked entries before the pages of these are safe, and threads that empty their
 * own rings do not wait for each other (the kernel resets one at a time in any case). Inside
 * mark_lock region->lock is only tried, never waited for.
 *
 * vm->change_lock guards the array of regions, with vm->lock, for those that come with a change and
 * must not wait for vm->lock: regions that they make wait in `late` for the next harvest.
 *
 * A region has one map that all threads add to, `pending`, and for each reader two more: `batch`, what it
 * is handing out, and `pending`, what the harvests of others have taken from the log since its own last
 * one. harvest_lock, taken before vm->lock, guards the readers' maps and the logs of bitmap mode: one
 * harvest, commit or other change of them at a time. A batch that is out is read without it: nobody else
 * writes to that map.
 *
 * The rule that makes several readers exact: a page is in a reader's map no later than the moment in which
 * its entry in the log is taken, and whoever commits has every entry reset that anybody has taken. So when
 * the commit of a reader returns, each page of its batch is protected, whoever took it from the log.
 */

#include "dirty/bitmap.h"
#include "dirty/dirty.h"
#include "dirty/ring.h"

#define KM_READERS 16 /* the tracker's own among them */

struct km_dirty_maps {
	struct km_dmap batch;
	struct km_dmap pending;
};

struct km_dirty_region {
	struct km_dirty_region *next; /* in kvmem_dirty.late */
	struct kvmem_region *region;
	struct km_dmap pending;
	struct km_dirty_maps *of[KM_READERS]; /* NULL: the reader does not look at the region */
};

/* What the tracker adds to the record of a slot that it follows: km_slot.tracked. */
struct km_dirty_slot {
	struct km_ring_slot ring; /* first: the ring's reader knows only this part */
	struct km_dirty_region *dr;
	bool suspect;  /* may have pages whose writes go unlogged, nobody knows which */
	bool fetched;  /* bitmap mode: log[] waits to be cleared */
	uint64_t *log; /* bitmap mode: as the kernel gave it */
	size_t log_bytes;
};

struct km_dirty_vcpu {
	int fd; /* the caller's */
	pthread_mutex_t lock;
	struct km_ring ring; /* entries is NULL in bitmap mode */
	size_t map_bytes;
	struct km_ring_run last; /* of the marked entries, before a reset */
	_Atomic uint64_t pages;
	_Atomic uint64_t ring_full;
	uint64_t pages_at_full;	 /* pages at the last ring_full: lock */
	unsigned int idle_exits; /* full, without an entry since the last: lock */
	bool lags;		 /* the kernel does not come to what is marked: mark_lock */
	_Atomic uint64_t rate;
	uint64_t pages_then; /* at the last harvest */
};

/* 64 neighbouring pages of a region, some of which may be unprotected, through one slot. */
struct km_doubt {
	struct km_dirty_region *dr;
	uint32_t slot;
	uint64_t word;
	uint64_t mask;
	uint64_t old; /* of mask: written down before the harvest under way took the rings */
};

#define KM_DOUBTS 512

enum km_batch_state { KM_BATCH_FREE, KM_BATCH_OUT, KM_BATCH_COMMITTED };

#define KM_BATCH_RUNS 64
#define KM_BATCHES    16

struct kvmem_batch {
	struct kvmem_reader *reader;
	enum km_batch_state state;
	uint64_t pages;
	size_t region; /* where kvmem_batch_next() is */
	uint64_t pos;
	size_t run_at, run_count; /* of kvmem_reader.runs, which kvmem_batch_next() has in store */
};

struct kvmem_reader {
	struct kvmem_dirty *dirty;
	unsigned int index; /* in kvmem_dirty.readers and km_dirty_region.of */
	bool filtered;	    /* looks at `only`, else at all regions */
	const struct kvmem_region **only;
	size_t only_count;
	uint64_t threshold;  /* pages; 0: nobody is told */
	int event_fd;	     /* a duplicate of the caller's; -1: none */
	bool told;	     /* since the last harvest */
	_Atomic bool untold; /* a change of the library's own could not be written down */
	bool first_all;	     /* each slot begins as if all of it had been written */
	struct kvmem_batch batches[KM_BATCHES];
	unsigned int batch_turn;
	struct kvmem_batch *_Atomic batch; /* that is out; NULL: none */
	struct kvmem_run runs[KM_BATCH_RUNS];
};

struct km_reaper {
	bool wanted, running, quit;
	struct km_thread thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	uint64_t min_ns, max_ns;
};

struct km_dirty_counters {
	_Atomic uint64_t harvests, pages, pages_merged, pages_changed, resets, short_resets;
	_Atomic uint64_t ring_overflows;
	_Atomic uint64_t pages_protected, pages_kept, ring_full, reaps, harvest_ns, reset_ns;
};

struct kvmem_dirty {
	struct kvmem_vm *vm;
	uint32_t mode;
	uint32_t ring_entries;
	unsigned int page_shift; /* of the page in which KVM logs */
	uint32_t flags;
	bool late_writes; /* a deleted slot may have had writes that no ring will show */
	bool clears;	  /* bitmap mode: KVM_CLEAR_DIRTY_LOG is needed, or does no harm */
	uint64_t offered; /* KVM_DIRTY_LOG_* that the kernel has */
	uint64_t manual;  /* ... that are on for this VM now, as far as known */
	bool started;
	struct km_ring_slots table;
	struct km_dirty_region **regions;
	size_t region_count, region_room;
	struct km_dirty_region
		*_Atomic late; /* made by a change, to join the others: change_lock */
	struct km_dirty_vcpu **vcpus;
	size_t vcpu_count, vcpu_room;
	pthread_rwlock_t mark_lock;
	_Atomic bool
		marked; /* entries may be marked and not reset: spares an idle harvest the lock */
	struct km_doubt doubts[KM_DOUBTS]; /* under mark_lock */
	_Atomic size_t doubt_count;
	int uffd; /* protects anonymous memory; -1: not opened, -errno: not to be had */
	_Atomic bool suspects; /* some slot is suspect */
	_Atomic bool
		overflowed;    /* a ring has; the next reset says which slots are suspect for it */
	uint64_t harvested_at; /* ns */
	void (*foreign)(void *arg, uint32_t slot, uint64_t page, uint32_t flags);
	void *arg;
	pthread_mutex_t harvest_lock;
	struct kvmem_reader own; /* of kvmem_dirty_harvest() */
	struct kvmem_reader *readers[KM_READERS];
	unsigned int takes; /* whose maps km_ring_slot.own points to; looks at all regions */
	_Atomic unsigned int thresholds; /* readers that have one */
	_Atomic bool look;		 /* whoever lets go of harvest_lock looks at them */
	_Atomic unsigned int markers;	 /* threads in kvmem_dirty_mark() */
	struct km_reaper reaper;
	struct km_dirty_counters stats;
	char reason[512];
};

static inline void km_count_shared(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* regions.c; vm->lock held, for writing where something is made or freed. */

/* A pointer more in a growing array: make room for it first, then add it without a chance to fail.
 */
int km_dirty_room(void *array, size_t count, size_t *room);
int km_dirty_region_get(struct kvmem_dirty *d, struct kvmem_region *region,
			struct km_dirty_region **ret);
struct km_dirty_region *km_dirty_region_find(const struct kvmem_dirty *d,
					     const struct kvmem_region *region);
/* How many pages of [first, end) have not been counted: runs of pages that are smaller than KVM's come in order, and
 * several may lie in one of KVM's. */
static inline uint64_t km_dirty_count_from(uint64_t *counted, uint64_t first, uint64_t end)
{
	uint64_t from = first > *counted ? first : *counted;

	if (end <= from)
		return 0;
	*counted = end;
	return end - from;
}

/* -EINVAL with the detail set where it is of another VM. */
int km_dirty_region_check(const struct kvmem_dirty *d, const struct kvmem_region *region,
			  const char *what);
/* For a change, under vm->change_lock: find it, for writing make it. */
struct km_dirty_region *km_dirty_region_late(struct kvmem_dirty *d, struct kvmem_region *region,
					     bool make);
/* Regions that changes have made join the others: takes both locks itself. */
void km_dirty_regions_join(struct kvmem_dirty *d);
void km_dirty_region_free(struct kvmem_dirty *d, const struct kvmem_region *region);
void km_dirty_regions_free(struct kvmem_dirty *d);
/* A reader comes or goes: its maps of the regions that there are. vm->lock held for writing. */
int km_dirty_maps_add(struct kvmem_dirty *d, const struct kvmem_reader *reader);
void km_dirty_maps_remove(struct kvmem_dirty *d, const struct kvmem_reader *reader);

/* All of a slot's pages are to be reported. */
void km_dirty_slot_whole(struct km_dirty_slot *s);

/* log.c */
int km_dirty_log_enable(struct kvmem_dirty *d);
void km_dirty_log_disable(struct kvmem_dirty *d);
int km_dirty_log_settle(struct kvmem_dirty *d);
/* Into the batch of d->takes, or (shared) what all threads add to. What was fetched before and not cleared is
 * cleared first: it is in every reader's maps already. harvest_lock held. */
int km_dirty_log_fetch(struct kvmem_dirty *d, bool shared);
int km_dirty_log_clear(struct kvmem_dirty *d);

/* protect.c: pages first + i of KVM's size, for each bit i of mask. False when there is no safe way
 * now. */
bool km_dirty_protect(struct kvmem_dirty *d, struct kvmem_region *region, uint64_t first,
		      uint64_t mask);
void km_dirty_protect_end(struct kvmem_dirty *d);

/* doubt.c; vm->lock held, and mark_lock for writing where nothing else is said. */
void km_doubt_run(struct kvmem_dirty *d, const struct km_ring_run *run);
void km_doubt_all(struct kvmem_dirty *d);
uint64_t km_doubt_pages(const struct kvmem_dirty *d);
/* In a harvest, before and after it has taken the rings into an empty batch of d->takes, or (shared) into
 * what all threads add to: take mark_lock themselves. */
void km_doubt_begin(struct kvmem_dirty *d);
void km_doubt_report(struct kvmem_dirty *d, bool shared);
/* A slot or region goes: its pages are pending, for the last time. */
void km_doubt_slot_gone(struct kvmem_dirty *d, uint32_t slot);
void km_doubt_forget(struct kvmem_dirty *d, const struct km_dirty_region *dr);

/* reset.c; vm->lock held. */
uint32_t km_dirty_take(struct kvmem_dirty *d, struct km_dirty_vcpu *v, bool shared);
uint64_t km_dirty_take_all(struct kvmem_dirty *d, bool shared);
/* With `always` the kernel is called even where nothing of ours is marked. */
int km_dirty_reset(struct kvmem_dirty *d, bool always);
bool km_dirty_unreset(struct kvmem_dirty *d, uint32_t slot);
/* For a vCPU whose ring is full: the kernel is always called, and what it says counts of this ring alone. */
int km_dirty_reset_full(struct kvmem_dirty *d, struct km_dirty_vcpu *v);

/* repair.c; without a lock held. Pages reported again, or -errno. */
int64_t km_dirty_repair(struct kvmem_dirty *d);

/* vcpus.c; vm->lock held. */
struct km_dirty_vcpu *km_dirty_vcpu_find(const struct kvmem_dirty *d, int fd);
void km_dirty_vcpus_free(struct kvmem_dirty *d);

/* readers.c; harvest_lock and vm->lock held. */

/* Take what is in the kernel's log into the maps: as the harvest of `reader`, into its batch, or (NULL) into
 * every reader's `pending`. */
int km_readers_take(struct kvmem_dirty *d, struct kvmem_reader *reader);
/* A start: nothing has been told yet. */
void km_readers_begin(struct kvmem_dirty *d);
/* Of those that nobody has told, and that have enough, all but `but`. */
void km_readers_tell(struct kvmem_dirty *d, const struct kvmem_reader *but);
/* A change in this region could not be written down. Under vm->change_lock. */
void km_readers_untold(struct kvmem_dirty *d, const struct kvmem_region *region);
/* It has fewer pages pending: to be told again when they are enough. */
void km_reader_forgot(struct kvmem_reader *reader);
/* What the readers are told instead of a batch, once: -ENOMEM. */
int km_reader_untold(const char *what);
/* A batch that is not given out has nothing in it: what it has is pending. */
void km_readers_keep(struct kvmem_dirty *d, const struct kvmem_reader *reader);
/* A slot is followed from now on: what readers with FIRST_ALL get of it (NULL: all of them). vm->lock held for
 * writing. */
void km_readers_slot_new(struct kvmem_dirty *d, const struct kvmem_reader *only,
			 const struct km_dirty_slot *s);
/* Tell those whose threshold is passed. Without a lock held: not when another thread is at it. */
void km_readers_look(struct kvmem_dirty *d);
/* Lets go of harvest_lock. */
void km_readers_unlock(struct kvmem_dirty *d);
uint64_t km_reader_pending(const struct kvmem_reader *reader, const struct kvmem_region *region);

/*
 * harvest.c: km_readers_take() of a tracker that is started, when its regions have joined and its slots are repaired,
 * as often as it finds a ring that has overflowed. With harvest_lock held; returns 0 with vm->lock held for reading.
 */
int km_dirty_take_whole(struct kvmem_dirty *d, struct kvmem_reader *reader, const char *what);

/* reaper.c */
int km_dirty_reaper_start(struct kvmem_dirty *d);
void km_dirty_reaper_stop(struct kvmem_dirty *d);

/* slots.c; vm->lock held for writing. */
extern const struct km_slot_hooks km_dirty_hooks;
int km_dirty_slots_follow(struct kvmem_dirty *d);
void km_dirty_slots_forget(struct kvmem_dirty *d);

/* choose.c; vm->lock held for writing. */
struct km_dirty_wish {
	uint32_t mode, entries;
	bool whole_vm; /* leave to turn on for all slots what AUTO would like */
};
int km_dirty_choose(struct kvmem_dirty *d, const struct km_dirty_wish *wish);

#endif
