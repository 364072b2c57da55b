// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The userfaultfd ioctls, and what they answer.
 *
 * EAGAIN has three meanings. With a positive result: so much is done, go on behind it. Without: a
 * change of the address space has begun in another thread, which waits until its REMOVE or UNMAP
 * event has been read, so read it; or the event has been read and the change is under way, so wait
 * a moment. Kernels before 6.15 leave the result 0 in the last two cases, later ones make it
 * -EAGAIN.
 */
#include "pager/pager_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define PER_IOCTL 64u /* pages: the bits of a word tell which were removed meanwhile */
#define SPINS	  200u
#define YIELDS	  200u

enum op { OP_COPY, OP_ZERO, OP_CONTINUE, OP_POISON, OP_COUNT };

static int shard_fd(struct km_shard *s)
{
	return atomic_load_explicit(&s->fd, memory_order_relaxed);
}

/* Somebody closed our descriptor: go on with the duplicate. */
static bool use_spare(struct km_shard *s, int64_t err)
{
	if (err != -EBADF || shard_fd(s) == s->spare)
		return false;
	atomic_store_explicit(&s->fd, s->spare, memory_order_relaxed);
	return true;
}

static int64_t shard_ioctl(struct km_shard *s, unsigned long request, void *arg)
{
	int64_t r = km_sys_ioctl(shard_fd(s), request, arg);

	return use_spare(s, r) ? km_sys_ioctl(shard_fd(s), request, arg) : r;
}

int km_shard_open(struct km_shard *s, struct kvmem_pager *pager, uint64_t features)
{
	int64_t spare;
	int fd;

	s->pager = pager;
	fd = km_uffd_open(features);
	if (fd < 0)
		return fd;
	spare = km_sys_dup(fd);
	if (spare < 0) {
		km_sys_close(fd);
		return km_fail((int)-spare, "pager: duplicating a userfaultfd: %m");
	}
	atomic_store(&s->fd, fd);
	s->spare = (int)spare;
	return 0;
}

void km_shard_close(struct km_shard *s)
{
	if (shard_fd(s) != s->spare)
		km_sys_close(shard_fd(s));
	km_sys_close(s->spare);
	atomic_store(&s->fd, -1);
	s->spare = -1;
}

unsigned int km_uffd_read(struct km_shard *s, struct uffd_msg *msgs)
{
	int64_t r = km_sys_read(shard_fd(s), msgs, KM_MSGS * sizeof(*msgs));

	if (use_spare(s, r))
		r = km_sys_read(shard_fd(s), msgs, KM_MSGS * sizeof(*msgs));
	return r < 0 ? 0 : (unsigned int)((size_t)r / sizeof(*msgs));
}

/* ---- ranges ---- */

static struct km_shard *shard_of(const struct km_paged *p, uint64_t page)
{
	return &p->pager->shards[page / p->stripe % p->pager->shard_count];
}

/* Pages from `first` on that belong to its shard. */
static uint64_t in_stripe(const struct km_paged *p, uint64_t first, uint64_t count)
{
	return km_min(count, p->stripe - first % p->stripe);
}

static void wake(struct km_shard *s, uint64_t addr, uint64_t bytes)
{
	struct uffdio_range range = { .start = addr, .len = bytes };

	shard_ioctl(s, UFFDIO_WAKE, &range);
}

void km_uffd_wake(struct km_paged *p, uint64_t first, uint64_t count)
{
	for (uint64_t n; count; first += n, count -= n) {
		n = in_stripe(p, first, count);
		wake(shard_of(p, first), p->addr + (first << p->shift), n << p->shift);
	}
}

/* ---- resolving ---- */

static int64_t issue(struct km_shard *s, enum op op, uint64_t dst, uint64_t src, uint64_t len,
		     int64_t *ret_moved)
{
	struct uffdio_range range = { .start = dst, .len = len };
	struct uffdio_copy copy = { .dst = dst, .src = src, .len = len };
	struct uffdio_zeropage zero = { .range = range };
	struct uffdio_continue cont = { .range = range };
	struct km_uffdio_poison poison = { .range = range };
	int64_t r;

	switch (op) {
	case OP_COPY:
		r = shard_ioctl(s, UFFDIO_COPY, &copy);
		*ret_moved = copy.copy;
		return r;
	case OP_ZERO:
		r = shard_ioctl(s, UFFDIO_ZEROPAGE, &zero);
		*ret_moved = zero.zeropage;
		return r;
	case OP_CONTINUE:
		r = shard_ioctl(s, UFFDIO_CONTINUE, &cont);
		*ret_moved = cont.mapped;
		return r;
	default:
		r = shard_ioctl(s, KM_UFFDIO_POISON, &poison);
		*ret_moved = poison.updated;
		return r;
	}
}

/* Pages of [dst, dst + PER_IOCTL pages) that [start, end) covers, a bit each. */
static uint64_t covered(uint64_t dst, uint64_t page, uint64_t start, uint64_t end)
{
	uint64_t bits = 0;

	for (unsigned int i = 0; i < PER_IOCTL; i++)
		if (dst + i * page >= start && dst + (i + 1) * page <= end)
			bits |= 1ull << i;
	return bits;
}

/*
 * Read the events that hold up the ioctls. This may be any thread, with a batch of its own under
 * way or none at all, so the faults among them are not kept: woken, their threads fault again.
 * *removed: pages at dst, which the caller has claimed, that have become zero.
 */
static bool drain(struct km_shard *s, uint64_t dst, uint64_t page, uint64_t *removed)
{
	struct uffd_msg msgs[KM_MSGS];
	unsigned int n = km_uffd_read(s, msgs);

	for (unsigned int i = 0; i < n; i++)
		if (msgs[i].event == UFFD_EVENT_REMOVE || msgs[i].event == UFFD_EVENT_UNMAP) {
			atomic_fetch_add_explicit(&s->removes, 1, memory_order_relaxed);
			*removed |= covered(dst, page, msgs[i].arg.remove.start,
					    msgs[i].arg.remove.end);
			km_serve_removed(s->pager, msgs[i].arg.remove.start,
					 msgs[i].arg.remove.end);
		}
	for (unsigned int i = 0; i < n; i++)
		if (msgs[i].event == UFFD_EVENT_PAGEFAULT) {
			uint64_t addr = msgs[i].arg.pagefault.address;
			struct km_paged *p = km_paged_at(s->pager, addr);

			if (p)
				km_uffd_wake(p, (addr - p->addr) >> p->shift, 1);
		}
	return n > 0;
}

bool km_uffd_drain(struct km_shard *s)
{
	uint64_t none = 0;

	return drain(s, 0, 0, &none);
}

/*
 * The thread that changes the address space has been let go and needs a few microseconds. One that
 * does so in a loop leaves gaps no longer than that: asking at once finds them, sleeping does not.
 */
static void back_off(unsigned int tries)
{
	if (tries > SPINS)
		km_sys_yield();
	if (tries > SPINS + YIELDS)
		km_sys_poll(NULL, 0, 1);
}

/* At most PER_IOCTL pages within one stripe. */
static int resolve(const struct km_paged *p, enum op op, uint64_t first, uint64_t count,
		   uint64_t src, uint64_t *ret_done)
{
	struct km_shard *s = shard_of(p, first);
	uint64_t dst = p->addr + (first << p->shift), removed = 0, done = 0, n;
	unsigned int tries = 0;
	int64_t r = 0, moved;

	while (done < count) {
		uint64_t gone = removed >> done & 1, at = done << p->shift;

		for (n = 1; done + n < count && (removed >> (done + n) & 1) == gone; n++)
			;
		r = issue(s, gone && op == OP_COPY ? OP_ZERO : op, dst + at, src ? src + at : 0,
			  n << p->shift, &moved);
		if (r >= 0 && moved <= 0)
			moved = (int64_t)(n << p->shift);
		if (r < 0 && r != -EAGAIN)
			break;
		r = 0;
		if (moved > 0) {
			done += (uint64_t)moved >> p->shift;
			tries = 0;
			continue;
		}
		atomic_fetch_add_explicit(&s->retries, 1, memory_order_relaxed);
		if (drain(s, dst, 1ull << p->shift, &removed))
			tries = 0;
		else
			back_off(++tries);
	}
	*ret_done = done;
	return (int)r;
}

static int resolve_pages(struct km_paged *p, enum op op, uint64_t first, uint64_t count,
			 const void *src, uint64_t *ret_done)
{
	uint64_t from = (uintptr_t)src, done = 0, n;
	int r = 0;

	while (!r && done < count) {
		n = in_stripe(p, first + done, km_min(count - done, PER_IOCTL));
		r = resolve(p, op, first + done, n, from ? from + (done << p->shift) : 0, &n);
		done += n;
	}
	*ret_done = done;
	return r;
}

int km_uffd_copy(struct km_paged *p, uint64_t first, uint64_t count, const void *src,
		 uint64_t *ret_done)
{
	return resolve_pages(p, OP_COPY, first, count, src, ret_done);
}

int km_uffd_zero(struct km_paged *p, uint64_t first, uint64_t count, uint64_t *ret_done)
{
	return resolve_pages(p, OP_ZERO, first, count, NULL, ret_done);
}

int km_uffd_continue(struct km_paged *p, uint64_t first, uint64_t count, uint64_t *ret_done)
{
	return resolve_pages(p, OP_CONTINUE, first, count, NULL, ret_done);
}

/*
 * Without UFFDIO_POISON (before 6.6, or memory that does not take it) the page loses its access
 * rights instead: the waiter gets SIGSEGV, a vCPU's KVM_RUN EFAULT, and neither ever sees zeros.
 */
int km_uffd_poison(struct km_paged *p, uint64_t first)
{
	void *addr = (uint8_t *)p->region->base + (first << p->shift);
	uint64_t done;
	int64_t r = resolve_pages(p, OP_POISON, first, 1, NULL, &done);
	bool there = r == -EEXIST || r == -ENOENT;

	if (r && !there)
		r = km_sys_mprotect(addr, 1ull << p->shift, PROT_NONE);
	km_uffd_wake(p, first, 1);
	if (there)
		return 0;
	return r < 0 ? (int)r : 1;
}

/* ---- registering ---- */

static const char *why_refused(const struct km_paged *p)
{
	if (p->region->plan.backing == KVMEM_BACKING_GUEST_MEMFD)
		return "this kernel takes no userfaultfd on a guest_memfd mapping: create the region with "
		       "KVMEM_WANT_PAGING and the plan moves to a memfd";
	return "this kernel takes no userfaultfd on this kind of memory: create the region as a memfd";
}

static int register_stripe(struct km_paged *p, uint64_t first, uint64_t count)
{
	struct uffdio_register reg = {
		.range = { .start = p->addr + (first << p->shift), .len = count << p->shift },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int64_t r;

	/* Never MINOR alone: an absent page would not fault, but be allocated as zeros. */
	if (p->region->fd >= 0)
		reg.mode |= UFFDIO_REGISTER_MODE_MINOR;
	r = shard_ioctl(shard_of(p, first), UFFDIO_REGISTER, &reg);
	if (r == -EINVAL)
		return km_fail(EOPNOTSUPP, "pager: UFFDIO_REGISTER: %s", why_refused(p));
	if (r < 0)
		return km_fail((int)-r,
			       "pager: UFFDIO_REGISTER of 0x%" PRIx64 " bytes at offset 0x%" PRIx64
			       ": %m",
			       count << p->shift, first << p->shift);
	p->ioctls &= reg.ioctls;
	return 0;
}

static void unregister(struct km_paged *p, uint64_t pages)
{
	for (uint64_t first = 0, n; first < pages; first += n) {
		struct uffdio_range range;

		n = in_stripe(p, first, pages - first);
		range.start = p->addr + (first << p->shift);
		range.len = n << p->shift;
		shard_ioctl(shard_of(p, first), UFFDIO_UNREGISTER, &range);
	}
}

int km_uffd_register(struct km_paged *p)
{
	const uint64_t fills = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_CONTINUE;
	uint64_t first, n;
	int r;

	p->ioctls = UINT64_MAX;
	for (first = 0; first < p->pages; first += n) {
		n = in_stripe(p, first, p->pages - first);
		r = register_stripe(p, first, n);
		if (r)
			goto undo;
	}
	if (p->ioctls & fills)
		return 0;
	r = km_fail(EOPNOTSUPP, "pager: the memory takes neither UFFDIO_COPY nor UFFDIO_CONTINUE");
undo:
	unregister(p, first);
	return r;
}

void km_uffd_unregister(struct km_paged *p)
{
	unregister(p, p->pages);
}
