// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Claimed pages to their end: placed, mapped, published, woken; or given up. */
#include "fill/fill.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>

void km_pages_enter(struct kvmem_region *r)
{
	pthread_mutex_lock(&r->lock);
	atomic_fetch_add(&r->fillers, 1);
	pthread_mutex_unlock(&r->lock);
}

void km_pages_leave(struct kvmem_region *r)
{
	atomic_fetch_sub(&r->fillers, 1);
}

bool km_pages_watched(const struct kvmem_region *r)
{
	return r->fault_ops != NULL;
}

uint64_t km_pages_claim(struct kvmem_region *r, uint64_t page, uint64_t max)
{
	return km_presence_claim(&r->presence, page, km_min(max, KM_CLAIM_PAGES));
}

static void publish(struct kvmem_region *r, uint64_t page, uint64_t count, enum km_page_state state)
{
	unsigned int what;

	if (!count)
		return;
	what = km_presence_publish(&r->presence, page, count, state);
	if (r->fault_ops && (what & KM_WAS_WANTED || state == KM_ZERO))
		r->fault_ops->wake(r, page << r->page_shift, count << r->page_shift);
	if (what & KM_IS_WHOLE)
		km_presence_notify(&r->presence);
}

int km_pages_stored(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t *ret_done)
{
	uint64_t bytes = count << r->page_shift;
	int err = 0;

	if (r->fault_ops)
		err = r->fault_ops->complete(r, page << r->page_shift, bytes, &bytes);
	*ret_done = bytes >> r->page_shift;
	publish(r, page, *ret_done, KM_PRESENT);
	return err;
}

int km_pages_place(struct kvmem_region *r, uint64_t page, uint64_t count, const void *buf,
		   uint64_t *ret_done)
{
	uint64_t bytes = count << r->page_shift;
	int err = r->fault_ops->place(r, page << r->page_shift, buf, bytes, &bytes);

	*ret_done = bytes >> r->page_shift;
	publish(r, page, *ret_done, KM_PRESENT);
	return err;
}

int km_pages_zero(struct kvmem_region *r, uint64_t page, uint64_t count, bool empty)
{
	(void)empty;
	publish(r, page, count, KM_ZERO);
	return 0;
}

void km_pages_forget(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t offset = page << r->page_shift, bytes = count << r->page_shift;

	if (r->fd >= 0)
		km_sys_fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 r->fd_offset + offset, bytes);
	else if (!r->fault_ops)
		km_sys_madvise(r->base + offset, bytes, MADV_DONTNEED);
}

void km_pages_abandon(struct kvmem_region *r, uint64_t page, uint64_t count, bool stored)
{
	unsigned int what;

	if (stored)
		km_pages_forget(r, page, count);
	what = km_presence_abandon(&r->presence, page, count);
	if (r->fault_ops)
		r->fault_ops->wake(r, page << r->page_shift, count << r->page_shift);
	if (what & KM_IS_WHOLE)
		km_presence_notify(&r->presence);
}

bool km_pages_wait(struct kvmem_region *r, uint64_t page, uint64_t count, uint64_t timeout_ns)
{
	return km_presence_wait(&r->presence, page, count, timeout_ns);
}
