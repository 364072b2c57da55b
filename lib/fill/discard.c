// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_region_discard(): pages become zero and their memory goes back to the kernel. */
#include "fill/fill_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int km_pages_check(const struct kvmem_region *r, uint64_t offset, uint64_t bytes, const char *what)
{
	char name[64];
	bool odd;
	int ret;

	if (!r)
		return km_fail(EINVAL, "%s: region is NULL", what);
	ret = km_callback_check(what, r);
	if (!ret)
		ret = km_range_check(offset, bytes, r->bytes, what);
	odd = offset % km_region_page(r);
	snprintf(name, sizeof(name), "%s: %s", what, odd ? "offset" : "bytes");
	return ret ? ret : km_align_check(odd ? offset : bytes, km_region_page(r), name);
}

/* ---- out of a mapping that is watched ---- */

/*
 * The kernel holds who takes pages out of a watched mapping until its event has been read. Where
 * nobody reads events all the time, one thread takes the pages out and this one reads.
 */
struct removal {
	int64_t (*fn)(void *arg);
	void *arg;
	int64_t result;
	_Atomic uint32_t done;
};

static void *remove_pages(void *arg)
{
	struct removal *rm = arg;

	rm->result = rm->fn(rm->arg);
	atomic_store(&rm->done, 1);
	km_sys_futex_wake(&rm->done);
	return NULL;
}

int64_t km_uffd_removing(struct km_uffd_set *set, int64_t (*fn)(void *arg), void *arg)
{
	struct removal rm = { .fn = fn, .arg = arg };
	struct km_thread thread;
	int64_t r;

	if (!set->sees_removals)
		return fn(arg);
	r = km_sys_thread_create(&thread, "kvmem-remove", NULL, remove_pages, &rm);
	if (r < 0)
		return r;
	while (!atomic_load(&rm.done)) {
		bool any = false;

		for (unsigned int i = 0; i < set->count; i++)
			any |= km_uffd_drain(set, &set->all[i]);
		if (!any)
			km_sys_futex_wait(&rm.done, 0, 100000);
	}
	km_sys_thread_join(&thread);
	return rm.result;
}

struct pages {
	uint8_t *addr;
	uint64_t bytes;
};

static int64_t drop(void *arg)
{
	const struct pages *p = arg;

	return km_mem_drop(p->addr, p->bytes);
}

static int64_t drop_mapping(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	struct pages p = { r->base + (page << r->page_shift), count << r->page_shift };

	if (r->watch && !atomic_load(&r->watch->set->served))
		return km_uffd_removing(r->watch->set, drop, &p);
	return drop(&p);
}

/* ---- poison ---- */

/*
 * The event of this removal sets REMOVED on the pages, which are ours: it means nothing here. (A
 * removal by the VMM at the very same moment is taken for ours.)
 */
int km_pages_unpoison_run(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t n = km_presence_claim_poisoned(&r->presence, page, count);
	int64_t err = 0;

	if (!n)
		return 0;
	if (atomic_load(&r->no_access))
		err = km_pages_set_access(r, page, n, PROT_READ | PROT_WRITE);
	if (err >= 0)
		err = drop_mapping(r, page, n);
	if (r->watch)
		km_uffd_settle(r->watch->set);
	if (err >= 0)
		km_presence_unmark(&r->presence, page, n);
	km_presence_unremove(&r->presence, page, n);
	km_pages_give_up(r, page, n);
	return (int)err;
}

int km_pages_unpoison(struct kvmem_region *r)
{
	enum km_page_state state;
	int err = 0;

	if (!km_presence_poisoned(&r->presence))
		return 0;
	for (uint64_t page = 0, n; page < r->presence.pages && err >= 0; page += n) {
		n = km_presence_run(&r->presence, page, UINT64_MAX, &state);
		if (state == KM_POISONED)
			err = km_pages_unpoison_run(r, page, n);
	}
	return err;
}

/* ---- out of the memory ---- */

/*
 * A mark of poison is in the page tables of the mapping, where a hole in the file leaves it: that
 * mapping is emptied as well. Before UFFDIO_POISON the pages have lost their access rights.
 */
int64_t km_pages_take_out(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t offset = page << r->page_shift, bytes = count << r->page_shift;
	int64_t err = 0;

	if (atomic_load(&r->no_access))
		err = km_pages_set_access(r, page, count, PROT_READ | PROT_WRITE);
	if (err >= 0 && r->fd >= 0)
		err = km_pages_punch(r, page, count);
	if (err >= 0 && (r->fd < 0 || atomic_load(&r->presence.ever_poisoned)))
		err = drop_mapping(r, page, count);
	if (err >= 0 && r->private_fd >= 0)
		err = km_sys_fallocate(r->private_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       offset, bytes);
	return err;
}

static int failed(const struct kvmem_region *r, uint64_t page, uint64_t count, int64_t err)
{
	return km_fail(EIO,
		       "kvmem_region_discard: giving back 0x%" PRIx64 " bytes at offset 0x%" PRIx64
		       ": %s: %s",
		       count << r->page_shift, page << r->page_shift,
		       r->clone	    ? "zeros over a clone"
		       : r->fd >= 0 ? "fallocate(PUNCH_HOLE)"
				    : "MADV_DONTNEED",
		       strerror((int)-err));
}

/* ABSENT pages are taken out too: a guest without a pager may have written to them. */
static int discard_claimed(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	int64_t err = km_pages_take_out(r, page, count);

	if (err < 0) {
		km_pages_give_up(r, page, count);
		return failed(r, page, count, err);
	}
	km_pages_publish(r, page, count, KM_ZERO, false);
	return 0;
}

/*
 * ZERO before the pages are gone: a fault in between finds the old page, as one before the call would; the other way
 * round it would find a page that is PRESENT and gone. Who brings a page of zeros meanwhile makes it PRESENT first, in
 * the same step (place.c): that has ended before the pages are taken out, or makes them PRESENT after all.
 */
static void turn_zero(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	km_presence_turn(&r->presence, page, count, KM_PRESENT, KM_ZERO);
	if (r->watch)
		km_uffd_settle_places(r->watch->set);
}

/* Of a clone there is no other page: all have content. */
static int discard_clone(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done)
{
	int64_t err;

	turn_zero(r, page, count);
	err = km_clone_zero(r, page, count, ret_done);
	page += *ret_done;
	count -= *ret_done;
	if (count)
		km_presence_turn(&r->presence, page, count, KM_ZERO, KM_PRESENT);
	return err < 0 ? failed(r, page, count, err) : 0;
}

static int discard_done(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	int64_t err;

	turn_zero(r, page, count);
	err = km_pages_take_out(r, page, count);
	if (err >= 0)
		return 0;
	km_presence_turn(&r->presence, page, count, KM_ZERO, KM_PRESENT); /* it may be written to */
	return failed(r, page, count, err);
}

/* ---- steps ---- */

int km_pages_by_steps(struct kvmem_region *r, uint64_t page, uint64_t end, km_pages_step_fn *step,
		      uint64_t *ret_done)
{
	enum km_page_state state;
	struct km_guard *g;
	uint64_t n;
	int err = 0;

	for (*ret_done = 0; page < end && !err;) {
		g = km_guard_enter(r);
		km_guard_before(g, page, end - page);
		for (; page < end && !err; page += n, *ret_done += n)
			err = step(r, page, end - page, &n);
		km_guard_leave(r, g);
		if (err != KM_CLAIMED_BY_OTHER)
			continue;
		err = 0;
		n = km_presence_run(&r->presence, page, end - page, &state);
		if (state == KM_CLAIMED)
			km_presence_wait(&r->presence, page, n, UINT64_MAX);
	}
	return err;
}

static int discard_step(struct kvmem_region *r, uint64_t page, uint64_t max, uint64_t *ret_n)
{
	enum km_page_state state;
	uint64_t n = km_presence_run(&r->presence, page, max, &state);
	int64_t claimed;

	*ret_n = 0;
	switch (state) {
	case KM_CLAIMED:
		return KM_CLAIMED_BY_OTHER;
	case KM_ABSENT:
	case KM_POISONED:
		claimed = state == KM_ABSENT ? (int64_t)km_presence_claim(&r->presence, page, n)
					     : km_pages_claim(r, page, n);
		if (claimed < 0)
			return (int)claimed;
		*ret_n = (uint64_t)claimed;
		return *ret_n ? discard_claimed(r, page, *ret_n) : 0;
	default:
		if (r->clone)
			return discard_clone(r, page, n, ret_n);
		*ret_n = n;
		return discard_done(r, page, n);
	}
}

int kvmem_region_discard(struct kvmem_region *region, uint64_t offset, uint64_t bytes)
{
	int err = km_pages_check(region, offset, bytes, "kvmem_region_discard");
	uint64_t page, end, done;

	if (!err && !region->clone)
		err = km_region_fill_check(region, "kvmem_region_discard");
	if (err)
		return err;
	km_pages_enter(region);
	page = offset >> region->page_shift;
	end = (offset + bytes) >> region->page_shift;
	err = km_pages_by_steps(region, page, end, discard_step, &done);
	if (done)
		km_region_changed(region, offset, done << region->page_shift);
	km_pages_leave(region);
	return err;
}
