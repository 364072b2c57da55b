// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Whether KVM can map huge pages of a region, as far as addresses decide it. */
#include <errno.h>
#include <inttypes.h>

#include "region/region.h"

#define HUGE KM_THP_BYTES

/* Memory of base pages alone, and why. What the caller has mapped himself may have huge ones. */
static int check_pages(const struct kvmem_region *r)
{
	uint32_t backing = r->plan.backing;

	if (km_region_page(r) > km_sys_page_size() || r->plan.flags & KVMEM_PLAN_THP ||
	    (r->own_mapping && backing != KVMEM_BACKING_GUEST_MEMFD))
		return 0;
	/* Without being asked for. */
	if (backing != KVMEM_BACKING_GUEST_MEMFD && !r->clone &&
	    km_caps_thp(backing == KVMEM_BACKING_MEMFD) == KM_THP_ALWAYS)
		return 0;
	return km_fail(EOPNOTSUPP,
		       "kvmem_region_check_huge: the region has base pages: want KVMEM_WANT_THP or "
		       "KVMEM_WANT_HUGE of it");
}

static int check_range(const struct kvmem_region *r, uint64_t offset, uint64_t bytes, uint64_t gpa)
{
	uint64_t page = km_sys_page_size();
	int ret;

	if (!r)
		return km_fail(EINVAL, "kvmem_region_check_huge: region is NULL");
	ret = km_region_own_check(r, "kvmem_region_check_huge");
	if (!ret)
		ret = km_range_check(offset, bytes, r->bytes, "kvmem_region_check_huge: region");
	if (!ret)
		ret = km_align_check(offset, page, "kvmem_region_check_huge: offset");
	if (!ret)
		ret = km_align_check(bytes, page, "kvmem_region_check_huge: bytes");
	return ret ? ret : km_align_check(gpa, page, "kvmem_region_check_huge: gpa");
}

int kvmem_region_check_huge(const struct kvmem_region *region, uint64_t offset, uint64_t bytes,
			    uint64_t gpa)
{
	int r = check_range(region, offset, bytes, gpa);
	uint64_t host, skew;

	if (!r)
		r = check_pages(region);
	if (r)
		return r;
	host = (uintptr_t)region->base + offset;
	skew = (host - gpa) & (HUGE - 1);
	if (skew)
		return km_fail(EINVAL,
			       "kvmem_region_check_huge: guest address 0x%" PRIx64
			       " and host address 0x%" PRIx64
			       " differ in their lower 21 bits, so KVM maps base pages: attach at "
			       "0x%" PRIx64,
			       gpa, host, gpa + skew);
	if (((host + HUGE - 1) & ~(HUGE - 1)) + HUGE > host + bytes)
		return km_fail(ERANGE,
			       "kvmem_region_check_huge: there is no whole huge page in 0x%" PRIx64
			       " bytes from host address 0x%" PRIx64 " on",
			       bytes, host);
	return 0;
}
