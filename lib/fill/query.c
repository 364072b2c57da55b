// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Which pages have their content, and which have not. */
#include "fill/fill_internal.h"

#include <errno.h>
#include <inttypes.h>

static bool is_missing(enum km_page_state state)
{
	return state != KM_PRESENT && state != KM_ZERO;
}

static int check(const struct kvmem_region *r, uint64_t from, const void *ret, const char *call)
{
	if (!r || !ret)
		return km_fail(EINVAL, "%s: %s is NULL", call, r ? "ret_run" : "region");
	if (from > r->bytes)
		return km_fail(ERANGE,
			       "%s: 0x%" PRIx64 " is beyond the region's 0x%" PRIx64 " bytes", call,
			       from, r->bytes);
	return 0;
}

static void set_run(struct kvmem_run *run, const struct kvmem_region *r, uint64_t page,
		    uint64_t count)
{
	run->region = (struct kvmem_region *)(uintptr_t)r;
	run->offset = page << r->page_shift;
	run->bytes = count << r->page_shift;
}

int kvmem_region_next_missing(const struct kvmem_region *region, uint64_t from,
			      struct kvmem_run *ret_run)
{
	int err = check(region, from, ret_run, "kvmem_region_next_missing");
	uint64_t page, first, n;
	enum km_page_state state;

	if (err)
		return err;
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
	set_run(ret_run, region, first, page - first);
	return 1;
}

static uint32_t public_state(enum km_page_state state)
{
	switch (state) {
	case KM_ABSENT:
		return KVMEM_PAGE_ABSENT;
	case KM_PRESENT:
		return KVMEM_PAGE_PRESENT;
	case KM_ZERO:
		return KVMEM_PAGE_ZERO;
	case KM_POISONED:
		return KVMEM_PAGE_POISONED;
	default:
		return KVMEM_PAGE_FILLING;
	}
}

int kvmem_region_next_run(const struct kvmem_region *region, uint64_t from,
			  struct kvmem_run *ret_run, uint32_t *ret_state)
{
	int err = check(region, from, ret_run, "kvmem_region_next_run");
	enum km_page_state state;
	uint64_t page, n;

	if (!err && !ret_state)
		err = km_fail(EINVAL, "kvmem_region_next_run: ret_state is NULL");

	if (err)
		return err;
	page = from >> region->page_shift;
	if (page >= region->presence.pages)
		return 0;
	n = km_presence_run(&region->presence, page, UINT64_MAX, &state);
	set_run(ret_run, region, page, n);
	*ret_state = public_state(state);
	return 1;
}
