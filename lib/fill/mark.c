// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_region_mark_present(): the VMM has filled pages by its own means. */
#include "fill/fill_internal.h"

#include <errno.h>
#include <inttypes.h>

static int none_claimed(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	enum km_page_state state;

	for (uint64_t n; count; page += n, count -= n) {
		n = km_presence_run(&r->presence, page, count, &state);
		if (state == KM_CLAIMED)
			return km_fail(EBUSY,
				       "kvmem_region_mark_present: the page at offset 0x%" PRIx64
				       " is being filled",
				       page << r->page_shift);
	}
	return 0;
}

/*
 * Under a pager nobody can have written to anonymous memory that is absent: where the kernel has no
 * page there is nothing to be marked. In a file UFFDIO_CONTINUE tells.
 */
static int check_exists(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	unsigned char there[KM_CLAIM_PAGES];
	int64_t err;

	if (!r->watch || r->fd >= 0)
		return 0;
	err = km_sys_mincore(r->base + (page << r->page_shift), count << r->page_shift, there);
	if (err < 0)
		return km_fail((int)-err, "kvmem_region_mark_present: mincore: %m");
	for (uint64_t i = 0; i < count; i++)
		if (!(there[i] & 1))
			return km_fail(EIO,
				       "kvmem_region_mark_present: the page at offset 0x%" PRIx64
				       " does not exist: nothing has been written there",
				       (page + i) << r->page_shift);
	return 0;
}

static int mark_claimed(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t done = 0;
	int err = check_exists(r, page, count);

	if (!err)
		err = km_pages_found(r, page, count, &done);
	km_pages_abandon(r, page + done, count - done, false);
	return err;
}

/* One step from `page` on: *ret_n pages are dealt with. */
static int mark_step(struct kvmem_region *r, uint64_t page, uint64_t max, uint64_t *ret_n)
{
	enum km_page_state state;
	uint64_t n = km_presence_run(&r->presence, page, max, &state);
	int64_t claimed;

	*ret_n = 0;
	if (state == KM_CLAIMED) {
		km_presence_wait(&r->presence, page, n, UINT64_MAX);
	} else if (state == KM_ABSENT || state == KM_POISONED) {
		claimed = km_pages_claim(r, page, n);
		if (claimed < 0)
			return (int)claimed;
		*ret_n = (uint64_t)claimed;
		return *ret_n ? mark_claimed(r, page, *ret_n) : 0;
	} else {
		km_presence_turn(&r->presence, page, n, KM_ZERO, KM_PRESENT);
		km_region_changed(r, page << r->page_shift, n << r->page_shift);
		*ret_n = n;
	}
	return 0;
}

int kvmem_region_mark_present(struct kvmem_region *region, uint64_t offset, uint64_t bytes)
{
	int err = km_pages_check(region, offset, bytes, "kvmem_region_mark_present");
	uint64_t page, end, n;

	if (!err)
		err = km_region_own_check(region, "kvmem_region_mark_present");
	if (err)
		return err;
	page = offset >> region->page_shift;
	end = (offset + bytes) >> region->page_shift;
	err = none_claimed(region, page, end - page);
	if (err)
		return err;
	km_pages_enter(region);
	for (; page < end && !err; page += n)
		err = mark_step(region, page, end - page, &n);
	km_pages_leave(region);
	return err;
}
