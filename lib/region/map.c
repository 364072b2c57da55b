// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The mappings of a region: where they begin, what mlockall() makes of them, what they are called. */
#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>

#include "region/policy.h"
#include "region/region.h"

#define SIZE_2M (2ull << 20)

/* KVM maps huge pages where guest and host address are equal in their lower bits. */
static uint64_t alignment(const struct kvmem_region *r)
{
	uint64_t page = km_region_page(r);

	return r->room < SIZE_2M || page > SIZE_2M ? page : SIZE_2M;
}

/*
 * The kernel aligns no mapping of a file. Right below the last region there is room more often than
 * not, at a multiple of `align`: where the guess is wrong it takes another place. Reserving address
 * space first, to map over it, costs a third of a small region, most of it in KVM's notifier.
 */
static _Atomic uintptr_t lowest;

static void *guess(uint64_t bytes, uint64_t align)
{
	uintptr_t end = atomic_load_explicit(&lowest, memory_order_relaxed);

	return bytes < end ? (void *)((end - bytes) & ~(uintptr_t)(align - 1)) : NULL;
}

/* A clone's huge pages are reserved: a write that found none would end the process. */
static int map_flags(const struct kvmem_region *r)
{
	if (r->clone)
		return MAP_PRIVATE | (km_region_page(r) > km_sys_page_size() ? 0 : MAP_NORESERVE);
	if (r->fd < 0)
		return MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	return MAP_SHARED | (r->room > r->bytes ? MAP_NORESERVE : 0);
}

/* -ENOSPC: it lies where it must not. */
static int64_t map_near(const struct kvmem_region *r, void *near, uint64_t align, uint8_t **ret)
{
	void *p = near;
	int fd = r->clone ? r->clone->fd : r->fd;
	int64_t err = km_sys_mmap_near(r->room, PROT_NONE, map_flags(r), fd,
				       fd < 0 ? 0 : r->fd_offset, &p);

	*ret = p;
	if (err < 0 || !((uintptr_t)p & (align - 1)))
		return err;
	km_sys_munmap(p, r->room);
	return -ENOSPC;
}

/*
 * Room for it and its alignment, given back and asked for again: another thread may be faster, and
 * a mapping over a reservation (MAP_FIXED) that fails leaves a hole that may be another's by then.
 */
static int64_t map_found(const struct kvmem_region *r, uint64_t align, uint8_t **ret)
{
	uint64_t len = r->room + align;
	int64_t err = -ENOSPC;
	void *p;

	for (unsigned int tries = 0; tries < 8 && err == -ENOSPC; tries++) {
		err = km_sys_mmap(len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
				  0, &p);
		if (err < 0)
			break;
		km_sys_munmap(p, len);
		p = (void *)(((uintptr_t)p + align - 1) & ~(uintptr_t)(align - 1));
		err = map_near(r, p, align, ret);
	}
	return err;
}

static int64_t map_aligned(const struct kvmem_region *r, uint8_t **ret)
{
	uint64_t align = alignment(r), page = km_region_page(r);
	int64_t err = map_near(r, align > page ? guess(r->room, align) : NULL, align, ret);

	if (err == -ENOSPC)
		err = map_found(r, align, ret);
	if (err == -ENOMEM || err == -ENOSPC) /* there may be room for as much and no more */
		err = map_near(r, NULL, page, ret);
	return err;
}

/* MADV_DONTNEED refuses locked memory: nothing else tells, before there are pages. */
static bool is_locked(uint8_t *at)
{
	return km_sys_madvise(at, km_sys_page_size(), MADV_DONTNEED) == -EINVAL;
}

/*
 * A shared mapping reserves huge pages for the file, not for itself: they stay reserved when it is gone.
 * The mappings of a region that can grow reserve none, since they would do so for all of the room.
 */
int64_t km_region_reserve_huge(const struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	void *p;
	int64_t err = km_sys_mmap(bytes, PROT_NONE, MAP_SHARED, r->fd, r->fd_offset + offset, &p);

	if (err >= 0)
		km_sys_munmap(p, bytes);
	return err;
}

/*
 * Access is given last. Under mlockall(MCL_FUTURE) the kernel makes every page of a new mapping that
 * has access: the region would be full of zeros before anything filled it. So pages are locked as
 * they come. The second mapping's are the same pages: they need no lock of their own, which would
 * count twice.
 */
int64_t km_region_open(const struct kvmem_region *r, uint8_t *at, uint64_t bytes,
		       enum km_mapping which)
{
	int64_t err = 0;

	/* Asked again of what is added later: mlockall(MCL_CURRENT) may have come in between. */
	if (which == KM_MAPPING_GUEST && (r->locked || is_locked(at)))
		err = km_sys_mlock_onfault(at, bytes);
	if (err >= 0)
		err = km_sys_mprotect(at, bytes, PROT_READ | PROT_WRITE);
	return err == -EACCES ? -EPERM : err; /* as mmap() has it of a sealed file */
}

void km_region_close(uint8_t *at, uint64_t bytes)
{
	km_sys_mprotect(at, bytes, PROT_NONE);
}

static int64_t give_access(struct kvmem_region *r, uint8_t *at, enum km_mapping which)
{
	int64_t err = 0;
	bool locked = is_locked(at);

	if (which == KM_MAPPING_GUEST)
		r->locked = locked;
	else if (locked)
		err = km_sys_munlock(at, r->room);
	return err < 0 ? err : km_region_open(r, at, r->bytes, which);
}

int64_t km_region_advise(const struct kvmem_region *r, uint8_t *at, uint64_t bytes)
{
	int64_t err = 0;

	if (r->flags & KVMEM_REGION_DONTDUMP)
		err = km_sys_madvise(at, bytes, MADV_DONTDUMP);
	if (err >= 0 && r->flags & KVMEM_REGION_DONTFORK)
		err = km_sys_madvise(at, bytes, MADV_DONTFORK);
	if (err >= 0 && r->plan.flags & KVMEM_PLAN_THP)
		km_sys_madvise(at, bytes, MADV_HUGEPAGE); /* a kernel without has base pages */
	return err;
}

int64_t km_region_map(struct kvmem_region *r, enum km_mapping which, uint8_t **ret)
{
	uint8_t *at;
	int64_t err = 0;

	if (r->room > r->bytes && r->plan.backing == KVMEM_BACKING_HUGETLB)
		err = km_region_reserve_huge(r, 0, r->bytes);
	if (err >= 0)
		err = map_aligned(r, &at);
	if (err < 0)
		return err;
	err = give_access(r, at, which);
	if (err >= 0)
		err = km_region_advise(r, at, r->room);
	if (err < 0) {
		km_sys_munmap(at, r->room);
		return err;
	}
	atomic_store_explicit(&lowest, (uintptr_t)at, memory_order_relaxed);
	*ret = at;
	return 0;
}

void km_region_unmap(const struct kvmem_region *r, uint8_t *at)
{
	uintptr_t mine = (uintptr_t)at;

	if (!at)
		return;
	km_sys_munmap(at, r->room);
	atomic_compare_exchange_strong(&lowest, &mine, mine + r->room);
}

static const char *map_hint(const struct kvmem_region *r, int64_t err)
{
	switch (err) {
	case -EAGAIN:
		return "; memory of this process is locked (mlockall(2)): raise RLIMIT_MEMLOCK";
	case -ENODEV:
		if (r->clone)
			return "; its file system does not map files";
		return "; the guest_memfd was made without GUEST_MEMFD_FLAG_MMAP: the host cannot map "
		       "it";
	case -EPERM:
		return "; the file is sealed against writing (F_SEAL_WRITE or "
		       "F_SEAL_FUTURE_WRITE)";
	case -ENOMEM:
		return km_region_page(r) > km_sys_page_size()
			       ? "; not enough free huge pages, raise vm.nr_hugepages"
		       : r->fd < 0
			       ? "; see RLIMIT_AS, vm.max_map_count, and, which do not hold for a "
				 "memfd, RLIMIT_DATA and vm.overcommit_memory"
			       : "; see RLIMIT_AS and vm.max_map_count";
	default:
		return "";
	}
}

int km_region_map_fail(const struct kvmem_region *r, const char *what, int64_t err)
{
	return km_fail((int)-err, "region of 0x%" PRIx64 " bytes: %s: %m%s", r->room, what,
		       map_hint(r, err));
}

static int64_t map_alias(struct kvmem_region *r)
{
	int64_t err = km_region_map(r, KM_MAPPING_ALIAS, &r->alias);

	if (err >= 0)
		err = km_policy_bind_alias(r);
	if (err < 0) {
		km_region_unmap(r, r->alias);
		r->alias = NULL;
	}
	return err;
}

int km_region_store(struct kvmem_region *r, uint8_t **ret_base)
{
	int64_t err = 0;

	pthread_mutex_lock(&r->lock);
	if (!r->watch) {
		*ret_base = r->base;
	} else if (r->fd < 0) {
		*ret_base = NULL;
	} else {
		if (!r->alias)
			err = map_alias(r);
		*ret_base = r->alias;
	}
	pthread_mutex_unlock(&r->lock);
	return err < 0 ? km_region_map_fail(r, "second mapping of it", err) : 0;
}
