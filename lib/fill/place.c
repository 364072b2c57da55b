// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The placing ioctls, and what they answer.
 *
 * EAGAIN has three meanings. With a positive result: so much is done, go on behind it. Without: a
 * change of the address space has begun in another thread, which waits until its REMOVE or UNMAP
 * event has been read, so read it; or the event has been read and the change is under way, so wait
 * a moment. Kernels before 6.15 leave the result 0 in the last two cases, later ones make it
 * -EAGAIN.
 *
 * ENOENT is what the kernel says where two mappings meet, also in the middle of what is registered:
 * a policy, madvise(2), mlock(2) or mprotect(2) of a part divides a mapping. Only ENOENT for a
 * single page means that the page is not mapped.
 *
 * ESRCH: the process whose memory it is has ended.
 */
#include "fill/fill_internal.h"

#include <errno.h>
#include <sys/ioctl.h>

#define PER_IOCTL KM_CLAIM_PAGES
#define SPINS	  200u
#define YIELDS	  200u
/* So long a thread waits for another process to stop changing its memory. */
#define PARK_NS 100000000u

static int64_t issue(struct km_uffd *u, const struct km_place *p, uint64_t count,
		     int64_t *ret_moved)
{
	struct uffdio_range range = { .start = km_watch_addr(p->watch, p->first),
				      .len = count << p->watch->shift };
	struct uffdio_copy copy = { .dst = range.start,
				    .src = (uintptr_t)p->src,
				    .len = range.len,
				    .mode = p->quiet ? UFFDIO_COPY_MODE_DONTWAKE : 0 };
	struct uffdio_zeropage zero = { .range = range,
					.mode = p->quiet ? UFFDIO_ZEROPAGE_MODE_DONTWAKE : 0 };
	struct uffdio_continue cont = { .range = range,
					.mode = p->quiet ? UFFDIO_CONTINUE_MODE_DONTWAKE : 0 };
	struct km_uffdio_poison poison = { .range = range,
					   .mode = p->quiet ? KM_UFFDIO_POISON_MODE_DONTWAKE : 0 };
	int64_t r;

	switch (p->op) {
	case KM_PLACE_COPY:
		r = km_uffd_ioctl(u, UFFDIO_COPY, &copy);
		*ret_moved = copy.copy;
		return r;
	case KM_PLACE_ZERO:
		r = km_uffd_ioctl(u, UFFDIO_ZEROPAGE, &zero);
		*ret_moved = zero.zeropage;
		return r;
	case KM_PLACE_CONTINUE:
		r = km_uffd_ioctl(u, UFFDIO_CONTINUE, &cont);
		*ret_moved = cont.mapped;
		return r;
	default:
		r = km_uffd_ioctl(u, KM_UFFDIO_POISON, &poison);
		*ret_moved = poison.updated;
		return r;
	}
}

/*
 * Inside the gate: what was removed is seen, or it is the ioctl that the kernel refuses. Pages that nobody has claimed
 * are those that have been filled, and are to be mapped, be zeros where the kernel has lost them, or be poisoned. One
 * that is absent again since the caller has looked is left alone, and counts as dealt with: somebody may be storing its
 * content just now. The same for pages of a file that another process maps privately: what it has taken away must not
 * come back from the file.
 */
static int64_t try_once(struct km_uffd *u, struct km_place *p, uint64_t count, int64_t *ret_moved)
{
	struct km_presence *map = &p->watch->region->presence;
	bool remote = km_watch_is_remote(p->watch);
	bool gate = !p->claimed || u->sees_removals, skip = false;
	enum km_page_state state;
	uint64_t settled;
	int64_t r = 0;

	if (gate)
		km_gate_enter(&u->gate, KM_UFFD_PLACES);
	if (gate && p->claimed)
		count = km_presence_removed(map, p->first, count, &p->removed);
	if (!p->claimed) {
		settled = km_presence_settled(map, p->first, count);
		skip = !settled;
		count = settled ? settled : 1;
		/* Before the page is there, for it may be written to from then on. What was removed in another process
		 * stays ZERO: it may only be about to take the page away. */
		if (!skip && p->op != KM_PLACE_POISON && !remote)
			km_presence_turn(map, p->first, count, KM_ZERO, KM_PRESENT);
	}
	if (remote && p->present) {
		settled = km_presence_run(map, p->first, count, &state);
		skip = state != KM_PRESENT;
		count = skip ? 1 : settled;
	}
	*ret_moved = (int64_t)(count << p->watch->shift);
	if (!p->removed && !skip)
		r = issue(u, p, count, ret_moved);
	if (gate)
		km_gate_leave(&u->gate, KM_UFFD_PLACES);
	if (r >= 0 && *ret_moved <= 0)
		*ret_moved = (int64_t)(count << p->watch->shift);
	return r;
}

/* The change that the kernel waits for is under way in another thread. */
static void back_off(unsigned int tries)
{
	if (tries > SPINS)
		km_sys_yield();
	if (tries > SPINS + YIELDS)
		km_sys_poll(NULL, 0, 1);
}

/* Another process can go on with its changes for ever, and then holds up nobody but itself. */
static bool is_overdue(const struct km_place *p, uint64_t *since)
{
	uint64_t now;

	if (!km_watch_is_remote(p->watch))
		return false;
	now = km_sys_now_ns();
	*since = *since ? *since : now;
	return now - *since > PARK_NS;
}

static int failed(const struct km_place *p, int64_t r)
{
	if (r == -ESRCH && km_watch_is_remote(p->watch))
		km_remote_ended(p->watch);
	return (int)r;
}

static int place(struct km_place *p)
{
	uint64_t n = km_watch_in_stripe(p->watch, p->first, km_min(p->count, PER_IOCTL));
	struct km_uffd *u = km_watch_uffd_of(p->watch, p->first);
	unsigned int tries = 0;
	uint64_t since = 0;

	p->done = 0;
	p->removed = false;
	for (;;) {
		int64_t moved, r = try_once(u, p, n, &moved);

		if (r >= 0 || (r == -EAGAIN && moved > 0)) {
			p->done = (uint64_t)moved >> p->watch->shift;
			return p->done ? 0
				       : -EIO; /* pages of another process are smaller than it said */
		}
		if (r == -ENOENT && n > 1) {
			n /= 2;
			continue;
		}
		if (r != -EAGAIN)
			return failed(p, r);
		atomic_fetch_add_explicit(&u->retries, 1, memory_order_relaxed);
		if (is_overdue(p, &since))
			return KM_PARKED;
		if (km_uffd_drain(p->watch->set, u))
			tries = 0;
		else
			back_off(++tries);
	}
}

/*
 * What is placed or mapped is not write-protected. A page that is guarded, and had no place in the page table, is
 * handed out first; claimed pages have no content that anybody guards.
 */
int km_place(struct km_place *p)
{
	struct kvmem_region *r = p->watch->region;
	struct km_guard *g;
	int err;

	if (p->claimed || !p->watch->set->captures)
		return place(p);
	p->count = km_min(p->count, PER_IOCTL);
	g = km_guard_enter(r);
	km_guard_before(g, p->first, p->count);
	err = place(p);
	km_guard_leave(r, g);
	return err;
}
