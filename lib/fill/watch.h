/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_FILL_WATCH_H
#define KM_FILL_WATCH_H

/*
 * The userfaultfds of a pager and the regions that they watch. Included by fill.h; the functions
 * are in uffd.c, events.c, discard.c and place.c.
 *
 * A set has one or more userfaultfds (shards). A region is divided into stripes of whole pages, and
 * each stripe is registered with one of them. UFFDIO_REGISTER makes a mapping of each stripe.
 *
 * How a removal is exact: the kernel refuses to place anything from the moment a REMOVE or UNMAP
 * event is queued until it is read. The gate of a userfaultfd keeps two groups of threads apart:
 * those that read events and enter the removals among them into the record, and those that look at
 * the REMOVED flag of their pages and then issue a placing ioctl. So content is placed either before
 * the event was queued, and then the removal takes it away; or after the removal is in the record,
 * and then it is not placed. Who makes filled pages absent again (absent.c) claims them on the reading side, so
 * that nobody who has found them filled is placing or mapping anything there.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/gate.h"
#include "base/uapi/userfaultfd.h"

struct kvmem_region;
struct km_watch;

#define KM_UFFD_MSGS  64u /* events per read */
#define KM_CACHE_LINE 64u

/* Sides of a userfaultfd's gate. */
#define KM_UFFD_READS  KM_GATE_LEFT
#define KM_UFFD_PLACES KM_GATE_RIGHT

struct km_uffd {
	_Alignas(KM_CACHE_LINE) _Atomic int fd;
	int spare;	    /* a duplicate: outlives an fd closed by mistake */
	bool sees_removals; /* REMOVE and UNMAP events are on */
	/* Of another process (fill/remote.c), whose addresses its events have; else NULL. */
	struct km_view *view;
	_Atomic bool unpolled; /* ... and poll() tells nothing of it */
	_Alignas(KM_CACHE_LINE) struct km_gate gate;
	_Atomic uint64_t retries; /* EAGAIN from the kernel */
	_Atomic uint64_t removes; /* REMOVE and UNMAP events */
};

struct km_uffd_set {
	unsigned int count;
	struct km_uffd *all;
	void *raw;
	bool none;	    /* it has none of its own, only those that regions bring */
	bool sees_removals; /* of those that are its own */
	bool protects; /* write protection is on: for a moment, as km_watch_protect() does it */
	bool captures; /* ... and it raises events: pages can be guarded (guard.h) */
	_Atomic bool served; /* somebody reads events all the time */
	/* ... and leaves faults on absent pages waiting: what ends their wait wakes them. */
	_Atomic bool drops;
	/* A removal may have been the end of what is missing. Called without locks, and by who may keep no region. */
	void (*whole)(void *arg);
	void *whole_arg;
	struct km_watch *_Atomic first_watch; /* in the order they were added */
	struct km_watch *last_watch;
	_Atomic unsigned int remotes; /* watches of other processes' memory */
	_Atomic unsigned int ended;   /* of which that many have told that their process is gone */
};

/*
 * A process that has the memory of a watch, with its userfaultfds. The first of a watch is the one whose memory it is,
 * where all content is placed. Others share it: their threads are woken, and pages that are there are mapped for them.
 */
struct km_view {
	struct km_view *_Atomic next;
	struct km_watch *watch;
	struct km_remote *remote;
	struct km_uffd *uffds; /* as many as the remote has */
	void *raw;
};

/* A region that is watched. Filled in by the pager but for `ioctls` and `next`. */
struct km_watch {
	struct km_watch *_Atomic next;
	struct km_uffd_set *set;
	struct kvmem_region *region;
	uint64_t addr; /* of its mapping */
	uint64_t room; /* pages that are registered: all that the region can grow to */
	unsigned int shift;
	unsigned int first_uffd; /* of the first stripe; the next ones take turns */
	uint64_t stripe;	 /* pages in a row that belong to one userfaultfd */
	uint64_t ioctls;	 /* that its memory takes, by bit */
	/* Memory of another process: it, and those that have joined. Stripes only divide the work. */
	struct km_view *_Atomic views;
};

static inline bool km_watch_is_remote(const struct km_watch *w)
{
	return atomic_load_explicit(&w->views, memory_order_acquire) != NULL;
}

#define KM_UFFD_REMOVALS (1u << 0) /* REMOVE and UNMAP events */
#define KM_UFFD_THREADS	 (1u << 1) /* faults say whose they are */
#define KM_UFFD_CAPTURES (1u << 2) /* write protection raises events */
#define KM_UFFD_NONE	 (1u << 3) /* only those that regions of other processes bring */

/* `given`: userfaultfds of the caller, which stay his; NULL: made here. -errno with the detail set. */
int km_uffd_set_open(struct km_uffd_set *set, unsigned int count, const int32_t *given,
		     unsigned int flags);
void km_uffd_set_close(struct km_uffd_set *set);

/*
 * Register all stripes, all or none, with the region's lock held: -errno with the detail set. Then either join, and
 * the watch is in the set's list from then on; or leave, and all is as before.
 */
int km_watch_register(struct km_watch *w);
void km_watch_join(struct km_watch *w);
void km_watch_unregister(struct km_watch *w);
/* Unregister: who waits goes on, and finds what the kernel has. The caller frees the watch when
 * nobody works on any region of the set any more. */
void km_watch_end(struct km_watch *w);

static inline struct km_watch *km_watch_first(const struct km_uffd_set *set)
{
	return atomic_load_explicit(&set->first_watch, memory_order_acquire);
}

static inline struct km_watch *km_watch_next(const struct km_watch *w)
{
	return atomic_load_explicit(&w->next, memory_order_acquire);
}

static inline bool km_watch_can(const struct km_watch *w, unsigned int ioctl_nr)
{
	return w->ioctls >> ioctl_nr & 1;
}

/* The shard of a page, and how many pages from it on are of the same one, and lie in a row where they are watched. */
unsigned int km_watch_shard(const struct km_watch *w, uint64_t page);
uint64_t km_watch_in_stripe(const struct km_watch *w, uint64_t page, uint64_t count);

/*
 * remote.c: in place of km_watch_register(), _join() and _end(), for memory of another process, which has
 * registered it.
 * _begin() makes the view, which km_remote_free_views() frees if the watch does not join. The page that an address of
 * such a userfaultfd is in; false: in none.
 */
int km_remote_begin(struct km_watch *w);
void km_remote_join(struct km_watch *w);
void km_remote_end(struct km_watch *w);
bool km_remote_page(const struct km_uffd *u, uint64_t addr, uint64_t *ret_page);
/* A write that waits, since the process has protected the page: it goes on, whoever has wanted to know of it. */
void km_remote_unprotect(struct km_uffd *u, uint64_t addr);
/* A fault on what is in none: its thread gets SIGBUS, where the kernel can. */
void km_remote_refuse(struct km_uffd *u, uint64_t addr);
/* When no thread looks at the watch any more. */
void km_remote_free_views(struct km_watch *w);
/*
 * A further process's userfaultfds for a watch: _new() makes the view, whose memory is the caller's to free as long as
 * it has not been added. -errno with the detail set.
 */
int km_view_new(struct km_watch *w, struct km_remote *m, struct km_view **ret);
void km_view_add(struct km_view *v);
void km_view_free(struct km_view *v);
/*
 * A fault of a process that has joined: true, it is answered. Else the page is to be brought in, as for a fault of
 * the first.
 */
bool km_view_answer(struct km_uffd *u, uint64_t addr, uint64_t page, bool minor);
/* An ioctl has told that the process is gone. */
void km_remote_ended(const struct km_watch *w);
bool km_watch_ended(const struct km_watch *w);

/* Let the threads that wait for these pages fault again. */
void km_watch_wake(const struct km_watch *w, uint64_t first, uint64_t count);

/*
 * Write-protect pages for a moment: KVM, which follows the host's mapping, lets go of them, and the
 * next write faults there. The kernel lets a write through by itself and raises no event; where it
 * raises one (km_uffd_set.captures), who reads that lets the writer go on. None of the pages is guarded. False
 * where it cannot be had, or not now (events are unread). With the region's lock held.
 */
bool km_watch_protect(const struct km_watch *w, uint64_t first, uint64_t count);
/* Take the mark of it away, which stays where the page has gone. False: not here, or not now. */
bool km_watch_unprotect(const struct km_watch *w, uint64_t page);

/* ---- protect.c: write protection that stays ---- */

/*
 * A watch for write protection alone, of a region that no pager has: it is in no list. Neither sets the detail.
 * _end_wp() lets all who wait go on.
 */
int km_watch_begin_wp(struct km_watch *w);
void km_watch_end_wp(struct km_watch *w, uint64_t pages);
/* Events of a set that has no removals: how many, or -errno. */
int64_t km_uffd_read_events(struct km_uffd_set *set, unsigned int index, struct uffd_msg *msgs,
			    unsigned int max);
/* Protection of pages on; or off, and who waits goes on. Pages that are not mapped are passed over. 0 or -errno. */
int km_watch_set_wp(const struct km_watch *w, uint64_t first, uint64_t count, bool on);

/*
 * Read events, up to KM_UFFD_MSGS: enters the removals among them into the records and leaves the
 * faults in `msgs`, *ret_faults of them. Returns how many events there were; 0: none.
 */
unsigned int km_uffd_read(struct km_uffd_set *set, struct km_uffd *u, struct uffd_msg *msgs,
			  unsigned int *ret_faults);

/* Read events that nobody else reads: the faults among them are woken and come again. False: there
 * were none. */
bool km_uffd_drain(struct km_uffd_set *set, struct km_uffd *u);

/*
 * fn(arg), which takes pages out of memory that is registered with the set: the kernel holds it until the events have
 * been read, which this thread does meanwhile, and fn runs in another one. Its result, or -errno.
 */
int64_t km_uffd_removing(struct km_uffd_set *set, int64_t (*fn)(void *arg), void *arg);

enum km_place_op { KM_PLACE_COPY, KM_PLACE_ZERO, KM_PLACE_CONTINUE, KM_PLACE_POISON };

/* One step of resolving pages. */
struct km_place {
	struct km_watch *watch;
	enum km_place_op op;
	uint64_t first, count;
	const uint8_t *src; /* of KM_PLACE_COPY */
	bool claimed;	    /* by the caller: pages that were REMOVED meanwhile are left out */
	bool quiet;	    /* do not wake: the caller does, later */
	bool present; /* in another process: leave out what is not PRESENT any more, since it was removed there */
	/* Results. */
	uint64_t done; /* the first `done` pages are dealt with */
	bool removed;  /* they were removed meanwhile, and nothing was placed */
};

/* Of another process, whose address space has been changing for long: no failure, to be tried again later. */
#define KM_PARKED (-ERESTART)

/*
 * One ioctl that succeeds, or fails for the first page: 0 with done > 0, or -errno with done 0.
 * EAGAIN, and ENOENT where mappings meet, are dealt with inside. -EEXIST: the page exists (COPY,
 * ZERO) or is mapped (CONTINUE). -ENOENT: the page is not mapped any more. Of another process: -ESRCH: it has
 * ended; KM_PARKED.
 */
int km_place(struct km_place *p);

#endif
