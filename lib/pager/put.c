// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Content that came unasked: pushed by the other side of a migration, read ahead by the VMM. */
#include "pager/pager_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static int put_check(const struct kvmem_pager *pager, const struct kvmem_region *region,
		     uint64_t offset, const void *buf, uint64_t bytes)
{
	int r;

	if (!pager || !region || !buf)
		return km_fail(EINVAL, "kvmem_pager_put: %s is NULL",
			       !pager	 ? "pager"
			       : !region ? "region"
					 : "buf");
	r = km_range_check(offset, bytes, region->bytes, "kvmem_pager_put: region");
	if (!r)
		r = km_align_check(offset | bytes, km_region_page(region),
				   "kvmem_pager_put: offset or bytes");
	return r;
}

int64_t kvmem_pager_put(struct kvmem_pager *pager, struct kvmem_region *region, uint64_t offset,
			const void *buf, uint64_t bytes)
{
	int64_t n = put_check(pager, region, offset, buf, bytes);
	uint64_t first, count;

	if (n)
		return n;
	first = offset >> region->page_shift;
	count = bytes >> region->page_shift;
	km_pages_enter(region); /* its pager stays until we leave */
	if (!region->watch || region->watch->set != &pager->set)
		n = km_fail(ENOENT, "kvmem_pager_put: the region is not of this pager");
	else
		n = km_pages_put(region->watch, first, count, buf);
	if (n > 0)
		atomic_fetch_add(&pager->given_pages, (uint64_t)n);
	if (n > 0 && pager->given_trace.entries)
		km_trace_given(pager, region->watch, first, count, KVMEM_TRACE_PUT);
	if (region->watch && region->watch->set == &pager->set)
		km_remote_tell_if(pager, (struct km_paged *)region->watch);
	km_pages_leave(region);
	if (n >= 0)
		return n << region->page_shift;
	if (n == -ENOENT)
		return n;
	/* Some kernels say so of a source below vm.mmap_min_addr; all else has been checked. */
	if (n == -EINVAL)
		n = -EFAULT;
	if (n == -ESRCH)
		return km_fail(ESRCH, "kvmem_pager_put: the process whose memory the region is has "
				      "ended");
	if (n == KM_PARKED)
		return km_fail(EAGAIN,
			       "kvmem_pager_put: the other process keeps changing its memory");
	return km_fail(n == -EFAULT || n == -ENOMEM ? (int)-n : EIO,
		       "kvmem_pager_put: 0x%" PRIx64 " bytes at offset 0x%" PRIx64
		       " of the region: %s",
		       bytes, offset, strerror((int)-n));
}
