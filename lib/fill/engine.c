// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Claimed pages to their end: placed, mapped, published, woken; or given up. */
#include "fill/fill_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/mman.h>

#define REPLACE_TRIES 16u

/* What the caller has had removed before is in the record: or it would undo what he does now. */
void km_pages_enter(struct kvmem_region *r)
{
	pthread_mutex_lock(&r->lock);
	atomic_fetch_add(&r->fillers, 1);
	pthread_mutex_unlock(&r->lock);
	if (r->watch)
		km_uffd_settle(r->watch->set);
}

void km_pages_leave(struct kvmem_region *r)
{
	atomic_fetch_sub(&r->fillers, 1);
}

bool km_pages_watched(const struct kvmem_region *r)
{
	return r->watch != NULL;
}

bool km_pages_wait(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t timeout_ns)
{
	return km_presence_wait(&r->presence, page, count, timeout_ns);
}

/* ---- ends of claims ---- */

static void changed(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	km_region_changed(r, page << r->page_shift, count << r->page_shift);
}

static void end_claim(struct kvmem_region *r, uint64_t page, uint64_t count, unsigned int ended,
		      bool quiet)
{
	bool wanted = ended & KM_WAS_WANTED || (r->watch && atomic_load(&r->watch->set->drops));

	if (wanted && !quiet && r->watch)
		km_watch_wake(r->watch, page, count);
	if (ended & KM_IS_WHOLE)
		km_presence_notify(&r->presence);
}

void km_pages_publish(struct kvmem_region *r, uint64_t page, uint64_t count,
		      enum km_page_state state, bool quiet)
{
	if (count)
		end_claim(r, page, count, km_presence_publish(&r->presence, page, count, state),
			  quiet);
}

void km_pages_publish_leave(struct kvmem_region *r, struct km_guard *g, uint64_t page,
			    uint64_t count, enum km_page_state state, bool quiet)
{
	unsigned int ended;

	if (r->watch && state == KM_PRESENT && km_watch_is_remote(r->watch))
		km_views_heal(r->watch, page, count);
	ended = count ? km_presence_publish(&r->presence, page, count, state) : 0;
	km_guard_leave(r, g); /* the VMM may be called now */
	if (count)
		end_claim(r, page, count, ended, quiet);
}

int64_t km_pages_set_access(const struct kvmem_region *r, uint64_t page, uint64_t count, int prot)
{
	return km_sys_mprotect(r->base + (page << r->page_shift), count << r->page_shift, prot);
}

/* A poisoned page that could not be healed is one again: heal() has given its access rights back. */
void km_pages_give_up(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	bool no_access;

	if (!count)
		return;
	no_access = atomic_load(&r->no_access) && km_presence_marked(&r->presence, page, count);
	if (no_access)
		km_pages_set_access(r, page, count, PROT_NONE);
	end_claim(r, page, count, km_presence_abandon(&r->presence, page, count), false);
	/* One that was removed meanwhile is ZERO now, and no removal gives access back. */
	for (uint64_t i = 0; no_access && i < count; i++)
		if (km_presence_get(&r->presence, page + i) == KM_ZERO)
			km_pages_set_access(r, page + i, 1, PROT_READ | PROT_WRITE);
}

/* ---- claims ---- */

/*
 * A mark of poison in the page tables outlives the userfaultfd that made it. Under a watch it is
 * overwritten by what is placed; elsewhere it is taken away here. Access rights are given back in
 * either case: an access then waits for the claim.
 */
static int heal(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint8_t *at = r->base + (page << r->page_shift);
	uint64_t bytes = count << r->page_shift;
	int64_t err = 0;

	if (atomic_load(&r->no_access))
		err = km_pages_set_access(r, page, count, PROT_READ | PROT_WRITE);
	if (err >= 0 && !r->watch)
		err = km_mem_drop(at, bytes);
	if (err >= 0 && !r->watch)
		km_presence_unmark(&r->presence, page, count);
	return (int)err;
}

static int64_t claim_poisoned(struct kvmem_region *r, uint64_t page, uint64_t max)
{
	uint64_t n;
	int err;

	if (!km_presence_poisoned(&r->presence))
		return 0;
	n = km_presence_claim_poisoned(&r->presence, page, max);
	err = n ? heal(r, page, n) : 0;
	if (!err)
		return (int64_t)n;
	km_pages_give_up(r, page, n);
	return km_fail(-err,
		       "lifting the poison of 0x%" PRIx64 " bytes at offset 0x%" PRIx64
		       " of the region: %m%s",
		       n << r->page_shift, page << r->page_shift,
		       err == -ENOMEM ? "; see vm.max_map_count" : "");
}

/* Without a pager a capture has ABSENT pages as the guest has them, which are to be filled now, or taken out. */
static void hand_out(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	struct km_guard *g = km_guard_enter(r);

	km_guard_before(g, page, count);
	km_guard_leave(r, g);
}

int64_t km_pages_claim(struct kvmem_region *r, uint64_t page, uint64_t max)
{
	uint64_t n;

	max = km_min(max, KM_CLAIM_PAGES);
	n = km_presence_claim(&r->presence, page, max);
	if (!n)
		return claim_poisoned(r, page, max);
	if (!r->watch)
		hand_out(r, page, n);
	return (int64_t)n;
}

/* ---- taking out ---- */

int64_t km_pages_punch(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	return km_sys_fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				r->fd_offset + (page << r->page_shift), count << r->page_shift);
}

void km_pages_forget(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	if (!r->watch)
		hand_out(r, page, count);
	km_store_forget(r, r->watch ? r->alias : r->base, page << r->page_shift,
			count << r->page_shift);
	changed(r, page, count); /* what nobody knew of is gone */
}

void km_pages_abandon(struct kvmem_region *r, uint64_t page, uint64_t count, bool stored)
{
	if (!count)
		return;
	if (stored)
		km_pages_forget(r, page, count);
	km_pages_give_up(r, page, count);
}

/* ---- placing ---- */

int km_place_failed(int err, const char *op, const struct kvmem_region *r, uint64_t page,
		    uint64_t count)
{
	return km_fail(err == -ENOMEM ? ENOMEM : EIO,
		       "%s of 0x%" PRIx64 " bytes at offset 0x%" PRIx64 " of the region: %s%s", op,
		       count << r->page_shift, page << r->page_shift, strerror(-err),
		       err == -EFAULT ? ": nothing has been written there" : "");
}

/* Content of these claimed pages is in the file: map it. */
int km_place_stored(struct km_place *p, enum km_page_state *ret_state)
{
	int err;

	p->op = KM_PLACE_CONTINUE;
	err = km_place(p);
	*ret_state = KM_PRESENT;
	if (err == -EEXIST || err == -ENOENT) { /* mapped already, or nobody can look */
		p->done = 1;
		err = 0;
		if (!p->quiet)
			km_watch_wake(p->watch, p->first, 1);
	}
	if (p->removed) { /* and must not appear */
		km_pages_punch(p->watch->region, p->first, p->done);
		*ret_state = KM_ZERO;
	}
	return err;
}

/*
 * `exists`: the caller knows that he has stored them. What is not there then was punched out of the
 * file meanwhile, and is zero.
 */
static int map_stored(struct kvmem_region *r, uint64_t page, uint64_t count, bool exists,
		      uint64_t *ret_done)
{
	struct km_place p = { .watch = r->watch, .first = page, .claimed = true };
	uint64_t end = page + count;
	enum km_page_state state;
	struct km_guard *g;
	int err = 0;

	if (!r->watch || r->fd < 0) {
		km_pages_publish(r, page, count, KM_PRESENT, false);
		p.first = end;
	}
	while (p.first < end) {
		p.count = end - p.first;
		g = km_guard_enter(r);
		err = km_place_stored(&p, &state);
		if (err == -EFAULT && exists) {
			p.done = 1;
			state = KM_ZERO;
			err = 0;
		}
		if (err) {
			km_guard_leave(r, g);
			break;
		}
		km_pages_publish_leave(r, g, p.first, p.done, state, false);
		p.first += p.done;
	}
	*ret_done = p.first - page;
	if (*ret_done)
		changed(r, page, *ret_done);
	return err ? km_place_failed(err, "UFFDIO_CONTINUE", r, p.first, end - p.first) : 0;
}

int km_pages_stored(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done)
{
	return map_stored(r, page, count, true, ret_done);
}

int km_pages_found(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done)
{
	return map_stored(r, page, count, false, ret_done);
}

/* Zeros by copy: they overwrite a mark of poison, which UFFDIO_ZEROPAGE does not. */
static const uint8_t *zeros_for(const struct kvmem_region *r, uint8_t **ret_own)
{
	static const uint8_t zeros[64u << 10];

	*ret_own = NULL;
	if (km_region_page(r) > sizeof(zeros))
		return *ret_own = km_sys_alloc(km_region_page(r));
	return zeros;
}

static int place_zeros_by_copy(struct km_place *p)
{
	const struct kvmem_region *r = p->watch->region;
	uint8_t *own;
	int err = -ENOMEM;

	p->op = KM_PLACE_COPY;
	p->count = km_min(p->count, r->page_shift < 16 ? (64u << 10) >> r->page_shift : 1);
	p->src = zeros_for(r, &own);
	if (p->src)
		err = km_place(p);
	p->src = NULL;
	km_sys_free(own);
	return err;
}

static int place_zeros(struct km_place *p)
{
	if (!km_watch_can(p->watch, _UFFDIO_ZEROPAGE))
		return place_zeros_by_copy(p);
	p->op = KM_PLACE_ZERO;
	return km_place(p);
}

/*
 * The first of these claimed pages exists. In a file it was put there unasked, since nobody sees it
 * who has not asked the pager: out with it. In anonymous memory it is mapped, and what is mapped
 * stays.
 */
static int make_way(struct kvmem_region *r, struct km_place *p, unsigned int tries)
{
	p->done = 0;
	p->removed = false;
	if (r->fd >= 0) {
		if (tries > REPLACE_TRIES)
			return -EEXIST;
		return (int)km_sys_fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					     r->fd_offset + (p->first << r->page_shift),
					     km_region_page(r));
	}
	p->done = 1;
	if (!p->quiet)
		km_watch_wake(p->watch, p->first, 1);
	return 0;
}

int km_place_claimed(struct km_place *p, enum km_page_state *ret_state)
{
	struct kvmem_region *r = p->watch->region;
	int err;

	*ret_state = KM_PRESENT;
	for (unsigned int tries = 0;; tries++) {
		if (p->src) {
			p->op = KM_PLACE_COPY;
			err = km_place(p);
		} else {
			err = place_zeros(p);
		}
		if (err != -EEXIST)
			break;
		if (!p->src && r->fd < 0) { /* a mark in the page tables is no page */
			err = place_zeros_by_copy(p);
			if (err != -EEXIST)
				break;
		}
		err = make_way(r, p, tries);
		if (err || p->done)
			return err;
	}
	if (err == -ENOENT) { /* unmapped: nobody can miss what was there */
		p->done = 1;
		*ret_state = KM_ZERO;
		return 0;
	}
	if (!err && p->removed)
		*ret_state = KM_ZERO;
	return err;
}

int km_pages_place(struct kvmem_region *r, uint64_t page, uint64_t count, const void *buf,
		   uint64_t *ret_done)
{
	struct km_place p = {
		.watch = r->watch, .op = KM_PLACE_COPY, .first = page, .claimed = true
	};
	uint64_t end = page + count;
	enum km_page_state state;
	struct km_guard *g;
	int err = 0;

	while (p.first < end && !err) {
		p.count = end - p.first;
		p.src = buf ? (const uint8_t *)buf + ((p.first - page) << r->page_shift) : NULL;
		g = km_guard_enter(r);
		err = km_place_claimed(&p, &state);
		if (err) {
			km_guard_leave(r, g);
			break;
		}
		km_pages_publish_leave(r, g, p.first, p.done, state, false);
		p.first += p.done;
	}
	*ret_done = p.first - page;
	if (*ret_done)
		changed(r, page, *ret_done);
	return err ? km_place_failed(err, buf ? "UFFDIO_COPY" : "UFFDIO_ZEROPAGE", r, p.first,
				     end - p.first)
		   : 0;
}

/* ---- zero ---- */

/* The file may have pages there: someone else's, or of a fill that failed. */
static bool file_has(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t first, end;
	int64_t found;

	if (r->plan.backing != KVMEM_BACKING_MEMFD)
		return true;
	found = km_next_extent(r, page << r->page_shift, &first, &end);
	return found < 0 || (found && first < (page + count) << r->page_shift);
}

int km_pages_clear(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	int64_t err = 0;

	if (r->fd >= 0 && file_has(r, page, count))
		err = km_pages_punch(r, page, count);
	else if (r->fd < 0 && !r->watch)
		err = km_mem_drop(r->base + (page << r->page_shift), count << r->page_shift);
	return (int)err;
}

/*
 * Faults that nobody reads have marked no page WANTED, and a page whose mark of poison has not been
 * overwritten still kills: both want a page of zeros now. Elsewhere a fault will ask for it.
 */
bool km_pages_want_zeros(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	return r->watch && (!atomic_load(&r->watch->set->served) ||
			    km_presence_marked(&r->presence, page, count));
}

int km_pages_zero(struct kvmem_region *r, uint64_t page, uint64_t count, bool empty)
{
	uint64_t done = 0;
	int err = empty ? 0 : km_pages_clear(r, page, count);

	if (err < 0)
		return km_place_failed(err, "clearing", r, page, count);
	if (km_pages_want_zeros(r, page, count)) {
		/* Where there is no memory for them, zero without a page is as true. */
		km_pages_place(r, page, count, NULL, &done);
		page += done;
		count -= done;
	}
	km_pages_publish(r, page, count, KM_ZERO, false);
	changed(r, page, count);
	return 0;
}
