// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Pages of a clone that are discarded. MADV_DONTNEED would show the template again, so anonymous memory is mapped over
 * them: one step for who looks at the same time, a vCPU too, since the kernel has KVM and page tables let go of the old
 * pages first and shows nothing but zeros from then on. (A mapping that cannot be had is refused before anything is
 * unmapped.) Memory that lies there already is dropped. Zeros are written where no mapping is to be had: for want of
 * mappings, in locked memory, where a new mapping would be filled at once, and in huge pages, which are
 * reserved for as long as the clone lives, so that nothing would be given back.
 */
#include "fill/fill_internal.h"

#include <errno.h>
#include <sys/mman.h>

#define PER_STEP \
	16u /* pages that are written with zeros at once: by one copy, all of them or none */

static bool can_map(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	return !r->locked && km_region_page(r) == km_sys_page_size() &&
	       km_clone_may_add(r->clone, page, page + count);
}

/* What the mapping had been told. A policy is given up where a sandbox forbids mbind() by now. */
static int64_t equip(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t offset = page << r->page_shift, bytes = count << r->page_shift;
	struct km_policy part;

	for (const struct km_policy *p = r->policies; p; p = p->next)
		if (km_policy_part(p, offset, offset + bytes, &part))
			km_policy_bind(r->base, &part);
	return km_region_advise(r, r->base + offset, bytes);
}

/* 0, KM_STORE_REFUSED: nothing has changed, or -errno: zero all the same. */
static int64_t map_over(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	void *at = r->base + (page << r->page_shift);

	if (km_sys_mmap_near(count << r->page_shift, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0,
			     &at) < 0)
		return KM_STORE_REFUSED;
	km_clone_add(r->clone, page, page + count);
	return equip(r, page, count);
}

/* Pages are made first: what fails then leaves no page half written. */
static int64_t write_zeros(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t pos = page << r->page_shift, bytes = count << r->page_shift;
	int err = km_store_map(r, r->base, pos, bytes);

	return err < 0 ? err : km_store_copy(r, r->base, pos, NULL, bytes);
}

/* One step from `page` on, at most `max` pages: *ret_n of them are zero now. */
static int64_t zero_step(struct kvmem_region *r, uint64_t page, uint64_t max, uint64_t *ret_n)
{
	int64_t err = KM_STORE_REFUSED;
	bool over;
	uint64_t n = km_clone_run(r->clone, page, max, &over);

	if (over) {
		err = km_mem_drop(r->base + (page << r->page_shift), n << r->page_shift);
	} else if (can_map(r, page, max)) {
		err = map_over(r, page, max);
		if (err != KM_STORE_REFUSED)
			n = max;
	}
	if (err == KM_STORE_REFUSED) {
		n = km_min(n, km_region_page(r) > km_sys_page_size() ? 1 : PER_STEP);
		err = write_zeros(r, page, n);
	}
	*ret_n = err < 0 ? 0 : n;
	return err;
}

int64_t km_clone_zero(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done)
{
	int64_t err = 0;
	uint64_t n;

	for (*ret_done = 0; *ret_done < count && err >= 0; *ret_done += n) {
		pthread_mutex_lock(&r->lock);
		err = zero_step(r, page + *ret_done, count - *ret_done, &n);
		pthread_mutex_unlock(&r->lock);
	}
	return err < 0 ? err : 0;
}
