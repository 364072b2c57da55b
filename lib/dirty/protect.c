// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Taking pages out of KVM's mapping while vCPUs run, their content untouched: the next write to
 * them faults in KVM and is logged. What the host does to a range of its own mapping, KVM follows
 * in its own, so it is enough to have the host unmap or write-protect the pages:
 *
 *	a mapping of a file	MADV_DONTNEED: the pages stay in the file
 *	anonymous memory	userfaultfd's write protection, on and off again. In its
 *				asynchronous form a write meanwhile is let through by the kernel
 *				itself, in the synchronous one its thread sleeps until the off.
 *				mprotect() would not do: KVM_RUN fails with EFAULT where it meets it
 *	under a capture		a page that it has not had is protected as it is, and KVM has
 *				let go of it: nothing is to be done. The others of memory
 *				without a pager by the capture's own userfaultfd
 *	under a pager		the same write protection through the pager's own userfaultfd.
 *				MADV_DONTNEED would raise an event there and sleep until somebody
 *				reads it, who may be the very thread that calls us
 */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "base/uapi/userfaultfd.h"
#include "fill/fill.h"

static int64_t open_with(int flags, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int64_t fd = km_sys_userfaultfd(O_NONBLOCK | flags), r;

	if (fd < 0)
		return fd;
	r = km_sys_ioctl((int)fd, UFFDIO_API, &api);
	if (r < 0)
		km_sys_close((int)fd);
	return r < 0 ? r : fd;
}

/*
 * USER_MODE_ONLY, which needs no privilege, is enough for asynchronous protection: it raises no
 * event. Before Linux 6.7 there is the synchronous kind alone. A vCPU that writes between its on and
 * off sleeps until the off, so it must be one that sees KVM's faults: with USER_MODE_ONLY, KVM_RUN
 * would fail with EFAULT. By the system call, not the device: while a guest runs nothing is opened.
 */
static int open_uffd(void)
{
	int64_t fd = open_with(UFFD_USER_MODE_ONLY, KM_UFFD_FEATURE_WP_ASYNC);

	return (int)(fd < 0 ? open_with(0, UFFD_FEATURE_PAGEFAULT_FLAG_WP) : fd);
}

static int64_t write_protect(const struct kvmem_dirty *d, const struct uffdio_range *range,
			     uint64_t mode)
{
	struct uffdio_writeprotect wp = { .range = *range, .mode = mode };

	return km_sys_ioctl(d->uffd, UFFDIO_WRITEPROTECT, &wp);
}

static bool protect_anonymous(struct kvmem_dirty *d, uint8_t *at, uint64_t bytes)
{
	struct uffdio_range range = { .start = (uintptr_t)at, .len = bytes };
	struct uffdio_register reg = { .range = range, .mode = UFFDIO_REGISTER_MODE_WP };
	int64_t r, off, gone, woken;

	if (d->uffd == -1)
		d->uffd = open_uffd();
	if (d->uffd < 0 || km_sys_ioctl(d->uffd, UFFDIO_REGISTER, &reg) < 0)
		return false;
	r = write_protect(d, &range, UFFDIO_WRITEPROTECT_MODE_WP);
	off = write_protect(d, &range, 0);
	gone = km_sys_ioctl(d->uffd, UFFDIO_UNREGISTER, &range);
	/*
	 * The off wakes who waits, but a thread that had met the protection before it can begin to wait after it: the
	 * page is not writable yet. Once the memory is not registered none begins any more, and unregistering write
	 * protection wakes nobody (userfaultfd_unregister() and userfaultfd_must_wait() of fs/userfaultfd.c, 6.1).
	 */
	woken = km_sys_ioctl(d->uffd, UFFDIO_WAKE, &range);
	if (off < 0 || gone < 0 || woken < 0)
		km_dirty_protect_end(d); /* which unregisters all, and wakes */
	if (gone < 0)
		d->uffd = -EIO;
	return r >= 0;
}

/* Pages [first, first + count) of KVM's, widened to whole pages of the region. */
struct range {
	uint64_t from, bytes;
};

static struct range range_of(const struct kvmem_dirty *d, const struct kvmem_region *region,
			     uint64_t first, uint64_t count)
{
	uint64_t page = km_region_page(region);
	uint64_t from = first << d->page_shift & ~(page - 1);
	uint64_t to = (((first + count) << d->page_shift) + page - 1) & ~(page - 1);

	return (struct range){ from, to - from };
}

/* Only the pages themselves: write protection would leave a marker where a page is absent. */
static bool protect_by(struct kvmem_dirty *d, struct kvmem_region *region, const struct km_watch *w,
		       uint64_t first, uint64_t mask)
{
	bool done = true;

	while (mask && done) {
		unsigned int lo = (unsigned int)__builtin_ctzll(mask);
		uint64_t gap = ~(mask >> lo);
		unsigned int n = gap ? (unsigned int)__builtin_ctzll(gap) : 64;
		struct range r = range_of(d, region, first + lo, n);

		done = km_watch_protect(w, r.from >> region->page_shift,
					r.bytes >> region->page_shift);
		mask &= lo + n < 64 ? ~0ull << (lo + n) : 0;
	}
	return done;
}

/* The ioctl of Linux 6.1 takes pages of one mapping alone, and a discard in a clone makes another one. */
static bool protect_clone(struct kvmem_dirty *d, struct kvmem_region *region, struct range r)
{
	unsigned int shift = region->page_shift;
	bool done = true, over;
	uint64_t n;

	for (; r.bytes && done; r.from += n, r.bytes -= n) {
		n = km_clone_run(region->clone, r.from >> shift, r.bytes >> shift, &over) << shift;
		done = protect_anonymous(d, region->base + r.from, n);
	}
	return done;
}

/* Those of the pages that no capture guards. */
static uint64_t not_guarded(const struct kvmem_dirty *d, struct kvmem_region *region,
			    uint64_t first, uint64_t mask)
{
	for (uint64_t left = mask; left; left &= left - 1) {
		unsigned int i = (unsigned int)__builtin_ctzll(left);

		if (km_guard_holds(region, (first + i) << d->page_shift >> region->page_shift))
			mask &= ~(1ull << i);
	}
	return mask;
}

/* With the region's lock held: no capture begins. */
static bool protect_guarded(struct kvmem_dirty *d, struct kvmem_region *region, uint64_t first,
			    uint64_t mask)
{
	struct km_guard *g = km_guard_enter(region);
	bool done = true;

	mask = not_guarded(d, region, first, mask);
	if (g && mask)
		done = protect_by(d, region, g->watch, first, mask);
	km_guard_leave(region, g);
	return g ? done : false; /* it has just ended */
}

bool km_dirty_protect(struct kvmem_dirty *d, struct kvmem_region *region, uint64_t first,
		      uint64_t mask)
{
	uint64_t lo = (uint64_t)__builtin_ctzll(mask);
	uint64_t end = 64 - (uint64_t)__builtin_clzll(mask);
	struct range r = range_of(d, region, first + lo, end - lo);
	bool done;

	/* Whoever holds it may be waiting for an event that our caller is to read. */
	if (pthread_mutex_trylock(&region->lock))
		return false;
	if (atomic_load(&region->guard) && !(km_region_is_shared(region) && !region->watch))
		done = protect_guarded(d, region, first, mask);
	else if (region->watch)
		done = protect_by(d, region, region->watch, first, mask);
	else if (km_region_is_shared(region))
		done = km_mem_drop(region->base + r.from, r.bytes) >= 0;
	else if (region->clone)
		done = protect_clone(d, region, r);
	else
		done = protect_anonymous(d, region->base + r.from, r.bytes);
	pthread_mutex_unlock(&region->lock);
	return done;
}

void km_dirty_protect_end(struct kvmem_dirty *d)
{
	if (d->uffd >= 0)
		km_sys_close(d->uffd);
	d->uffd = -1;
}
