// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Pages of a region as the caller sees them: which are missing, marking them, giving them back. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>

#include "fill/fill.h"

static int pages_check(const struct kvmem_region *r, uint64_t offset, uint64_t bytes,
		       const char *what)
{
	int ret;

	if (!r)
		return km_fail(EINVAL, "%s: region is NULL", what);
	ret = km_range_check(offset, bytes, r->bytes, what);
	if (!ret)
		ret = km_align_check(offset, km_region_page(r), what);
	if (!ret)
		ret = km_align_check(bytes, km_region_page(r), what);
	return ret;
}

/* ---- discard ---- */

/* Under the lock, so that the pager does not go away meanwhile. */
static int64_t remove_anonymous(struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	int64_t err;

	pthread_mutex_lock(&r->lock);
	if (r->fault_ops)
		err = r->fault_ops->remove(r, offset, bytes);
	else
		err = km_sys_madvise(r->base + offset, bytes, MADV_DONTNEED);
	pthread_mutex_unlock(&r->lock);
	return err;
}

static int punch(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t offset = page << r->page_shift, bytes = count << r->page_shift;
	int64_t err;

	if (r->fd >= 0)
		err = km_sys_fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       r->fd_offset + offset, bytes);
	else
		err = remove_anonymous(r, offset, bytes);
	if (err >= 0 && r->private_fd >= 0)
		err = km_sys_fallocate(r->private_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       offset, bytes);
	if (err >= 0)
		return 0;
	return km_fail(EIO,
		       "kvmem_region_discard: giving back 0x%" PRIx64 " bytes at offset 0x%" PRIx64
		       ": errno %d",
		       bytes, offset, (int)-err);
}

static void wake(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	pthread_mutex_lock(&r->lock);
	if (r->fault_ops)
		r->fault_ops->wake(r, page << r->page_shift, count << r->page_shift);
	pthread_mutex_unlock(&r->lock);
}

/* On claimed pages: 0, or -errno with *ret_done of them dealt with. */
typedef int act_fn(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done);

static int punch_claimed(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done)
{
	int err = punch(r, page, count);

	*ret_done = err ? 0 : count;
	return err;
}

static int complete(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done)
{
	uint64_t bytes = count << r->page_shift;
	int err = 0;

	pthread_mutex_lock(&r->lock);
	if (r->fault_ops && r->fd >= 0)
		err = r->fault_ops->complete(r, page << r->page_shift, bytes, &bytes);
	pthread_mutex_unlock(&r->lock);
	*ret_done = bytes >> r->page_shift;
	return err;
}

/* Take pages that nothing has filled through `act` to the state `to`; returns how many, maybe 0. */
static uint64_t take_absent(struct kvmem_region *r, uint64_t page, uint64_t count, act_fn *act,
			    enum km_page_state to, int *err)
{
	uint64_t n = km_presence_claim(&r->presence, page, count), done;

	if (!n)
		return 0;
	*err = act(r, page, n, &done);
	if (done)
		km_presence_publish(&r->presence, page, done, to);
	if (done < n)
		km_presence_abandon(&r->presence, page + done, n - done);
	wake(r, page, n); /* faults on claimed pages were left to us */
	return n;
}

/* What to do with a run of pages in one state: returns how many are dealt with. */
typedef uint64_t run_fn(struct kvmem_region *r, uint64_t page, uint64_t count,
			enum km_page_state state, int *err);

/* Each run of the range, those being filled when they are. */
static int each_run(struct kvmem_region *r, uint64_t offset, uint64_t bytes, run_fn *fn)
{
	uint64_t page = offset >> r->page_shift, left = bytes >> r->page_shift;
	int err = 0;

	while (left && !err) {
		enum km_page_state state;
		uint64_t n = km_presence_run(&r->presence, page, left, &state);

		if (state == KM_CLAIMED) {
			km_presence_wait(&r->presence, page, n, UINT64_MAX);
			continue;
		}
		n = fn(r, page, n, state, &err);
		page += n;
		left -= n;
	}
	return err;
}

/*
 * ZERO before the hole is there: a fault in between finds the old page, as one before the call
 * would; the other way round it would find a page that is PRESENT and gone. Absent pages are
 * punched too: a guest without a pager may have written to them.
 */
static uint64_t discard_run(struct kvmem_region *r, uint64_t page, uint64_t count,
			    enum km_page_state state, int *err)
{
	if (state == KM_ABSENT)
		return take_absent(r, page, count, punch_claimed, KM_ZERO, err);
	km_presence_turn(&r->presence, page, count, KM_PRESENT, KM_ZERO);
	*err = punch(r, page, count);
	if (*err && state == KM_PRESENT)
		km_presence_turn(&r->presence, page, count, KM_ZERO, KM_PRESENT);
	return count;
}

int kvmem_region_discard(struct kvmem_region *region, uint64_t offset, uint64_t bytes)
{
	int err = pages_check(region, offset, bytes, "kvmem_region_discard");

	return err ? err : each_run(region, offset, bytes, discard_run);
}

/* ---- mark_present ---- */

static uint64_t mark_run(struct kvmem_region *r, uint64_t page, uint64_t count,
			 enum km_page_state state, int *err)
{
	if (state == KM_ABSENT)
		return take_absent(r, page, count, complete, KM_PRESENT, err);
	km_presence_turn(&r->presence, page, count, KM_ZERO, KM_PRESENT);
	return count;
}

static int none_claimed(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	while (count) {
		enum km_page_state state;
		uint64_t n = km_presence_run(&r->presence, page, count, &state);

		if (state == KM_CLAIMED)
			return km_fail(EBUSY,
				       "kvmem_region_mark_present: the page at offset 0x%" PRIx64
				       " is being filled",
				       page << r->page_shift);
		page += n;
		count -= n;
	}
	return 0;
}

int kvmem_region_mark_present(struct kvmem_region *region, uint64_t offset, uint64_t bytes)
{
	int err = pages_check(region, offset, bytes, "kvmem_region_mark_present");

	if (!err)
		err = none_claimed(region, offset >> region->page_shift,
				   bytes >> region->page_shift);
	return err ? err : each_run(region, offset, bytes, mark_run);
}

/* ---- next_missing ---- */

static bool is_missing(enum km_page_state state)
{
	return state == KM_ABSENT || state == KM_CLAIMED;
}

int kvmem_region_next_missing(const struct kvmem_region *region, uint64_t from,
			      struct kvmem_run *ret_run)
{
	uint64_t page, first, n;
	enum km_page_state state;

	if (!region || !ret_run)
		return km_fail(EINVAL, "kvmem_region_next_missing: %s is NULL",
			       region ? "ret_run" : "region");
	if (from > region->bytes)
		return km_fail(ERANGE,
			       "kvmem_region_next_missing: 0x%" PRIx64
			       " is beyond the region's 0x%" PRIx64 " bytes",
			       from, region->bytes);
	page = from >> region->page_shift;
	for (; page < region->presence.pages; page += n) {
		n = km_presence_run(&region->presence, page, UINT64_MAX, &state);
		if (is_missing(state))
			break;
	}
	first = page;
	for (; page < region->presence.pages; page += n) {
		n = km_presence_run(&region->presence, page, UINT64_MAX, &state);
		if (!is_missing(state))
			break;
	}
	if (first == page)
		return 0;
	ret_run->region = (struct kvmem_region *)(uintptr_t)region;
	ret_run->offset = first << region->page_shift;
	ret_run->bytes = (page - first) << region->page_shift;
	return 1;
}
