// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * kvmem_region_mark_absent(): pages that have content are stale, and are to be filled again.
 *
 * They are claimed while they are taken out of the memory: an access waits for the end of the claim, raises its
 * fault again and has the page filled. A thread that has found such a page filled may be about to map it, or to bring a
 * page of zeros where the kernel has none. It does so inside the gate of the userfaultfd and looks at the record once
 * more there; the claim is made on the other side of that gate. So either it is done before the page is taken out, or
 * it sees the claim.
 */
#include "fill/fill_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static uint64_t claim(struct kvmem_region *r, uint64_t page, uint64_t max)
{
	struct km_uffd *u;
	uint64_t n;

	if (!r->watch)
		return km_presence_claim_done(&r->presence, page, max);
	u = km_watch_uffd_of(r->watch, page);
	max = km_watch_in_stripe(r->watch, page, max);
	km_gate_enter(&u->gate, KM_UFFD_READS);
	n = km_presence_claim_done(&r->presence, page, max);
	km_gate_leave(&u->gate, KM_UFFD_READS);
	return n;
}

/* The event of this removal sets REMOVED on the pages, which are ours: it means nothing here. */
static int take_out_claimed(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	int64_t err = km_pages_take_out(r, page, count);

	if (r->watch)
		km_uffd_settle(r->watch->set);
	km_presence_unremove(&r->presence, page, count);
	if (err >= 0) {
		/* Before anybody can fill them: or they would be whole again before it is known that they were not. */
		km_presence_notify_absent(&r->presence);
		km_pages_give_up(r, page, count);
		return 0;
	}
	km_pages_publish(r, page, count, KM_PRESENT, false);
	return km_fail(EIO,
		       "kvmem_region_mark_absent: taking 0x%" PRIx64 " bytes at offset 0x%" PRIx64
		       " out of the memory: %s",
		       count << r->page_shift, page << r->page_shift, strerror((int)-err));
}

static int absent_step(struct kvmem_region *r, uint64_t page, uint64_t max, uint64_t *ret_n)
{
	enum km_page_state state;
	uint64_t n = km_presence_run(&r->presence, page, max, &state);
	int err;

	*ret_n = 0;
	switch (state) {
	case KM_CLAIMED:
		return KM_CLAIMED_BY_OTHER;
	case KM_ABSENT:
		*ret_n = n;
		return 0;
	case KM_POISONED:
		err = km_pages_unpoison_run(r, page, n);
		return err ? km_fail(EIO, "kvmem_region_mark_absent: lifting poison: %s",
				     strerror(-err))
			   : 0;
	default:
		*ret_n = claim(r, page, n);
		return *ret_n ? take_out_claimed(r, page, *ret_n) : 0;
	}
}

static int writable_check(const struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	if (!km_region_is_writable(r, offset, bytes))
		return 0;
	return km_fail(EBUSY,
		       "kvmem_region_mark_absent: a slot shows these pages to the guest, whose "
		       "writes to them would be lost: KVMEM_ABSENT_ATTACHED says that no vCPU "
		       "writes them, or that it may be so");
}

int kvmem_region_mark_absent(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
			     uint32_t flags)
{
	int err = km_pages_check(region, offset, bytes, "kvmem_region_mark_absent");
	uint64_t page, end, done;

	if (!err)
		err = km_flags_check(flags, KVMEM_ABSENT_ATTACHED,
				     "kvmem_region_mark_absent: flags");
	if (!err)
		err = km_region_fill_check(region, "kvmem_region_mark_absent");
	if (!err && !(flags & KVMEM_ABSENT_ATTACHED))
		err = writable_check(region, offset, bytes);
	if (err)
		return err;
	km_pages_enter(region);
	page = offset >> region->page_shift;
	end = (offset + bytes) >> region->page_shift;
	err = km_pages_by_steps(region, page, end, absent_step, &done);
	km_presence_notify_absent(&region->presence); /* its pager does not go before we leave */
	if (done)
		km_region_changed(region, offset, done << region->page_shift);
	km_pages_leave(region);
	return err;
}
