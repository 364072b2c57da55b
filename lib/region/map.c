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

	return r->bytes < SIZE_2M || page > SIZE_2M ? page : SIZE_2M;
}

/*
 * Address space of its own, at a multiple of `align`, for a mapping to be put over. A length that
 * is a multiple of 2 MiB is aligned by Linux 6.7 and later themselves, so the second try is rare.
 */
static int64_t reserve(uint64_t bytes, uint64_t align, uint8_t **ret)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	uint64_t len = (bytes + align - 1) & ~(align - 1);
	uint8_t *start;
	void *p;
	int64_t err = km_sys_mmap(len, PROT_NONE, flags, -1, 0, &p);

	if (err >= 0 && (uintptr_t)p & (align - 1)) {
		km_sys_munmap(p, len);
		len += align;
		err = km_sys_mmap(len, PROT_NONE, flags, -1, 0, &p);
	}
	if (err < 0)
		return err;
	start = (uint8_t *)(((uintptr_t)p + align - 1) & ~(uintptr_t)(align - 1));
	if (start > (uint8_t *)p)
		km_sys_munmap(p, (size_t)(start - (uint8_t *)p));
	if (start + bytes < (uint8_t *)p + len)
		km_sys_munmap(start + bytes, (size_t)((uint8_t *)p + len - start) - bytes);
	*ret = start;
	return 0;
}

static int64_t put(const struct kvmem_region *r, uint8_t *at, int prot)
{
	int flags = r->fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

	return km_sys_mmap_at(at, r->bytes, prot, flags, r->fd, r->fd < 0 ? 0 : r->fd_offset);
}

/*
 * Under mlockall(MCL_FUTURE) the kernel would make every page of the new mapping at once: the
 * region would be full of zeros before anything filled it. Mapped without access no page is made;
 * then pages are locked as they come. The second mapping's are the same pages: they need no lock of
 * their own, which would count twice against RLIMIT_MEMLOCK.
 */
static int64_t put_locked(const struct kvmem_region *r, uint8_t *at, enum km_mapping which)
{
	int64_t err;

	km_sys_munlock(at, r->bytes); /* what is there counts against the limit until it is gone */
	err = put(r, at, PROT_NONE);
	if (err >= 0 && which == KM_MAPPING_GUEST)
		err = km_sys_mlock_onfault(at, r->bytes);
	else if (err >= 0)
		err = km_sys_munlock(at, r->bytes);
	return err < 0 ? err : km_sys_mprotect(at, r->bytes, PROT_READ | PROT_WRITE);
}

/* MADV_DONTNEED refuses locked memory: nothing else tells, before there are pages. */
static bool is_locked(uint8_t *at)
{
	return km_sys_madvise(at, km_sys_page_size(), MADV_DONTNEED) == -EINVAL;
}

static int64_t advise(const struct kvmem_region *r, uint8_t *at)
{
	int64_t err = 0;

	if (r->flags & KVMEM_REGION_DONTDUMP)
		err = km_sys_madvise(at, r->bytes, MADV_DONTDUMP);
	if (err >= 0 && r->flags & KVMEM_REGION_DONTFORK)
		err = km_sys_madvise(at, r->bytes, MADV_DONTFORK);
	return err;
}

int64_t km_region_map(const struct kvmem_region *r, enum km_mapping which, uint8_t **ret)
{
	uint8_t *at;
	int64_t err = reserve(r->bytes, alignment(r), &at);

	if (err == -ENOMEM) /* there may be room for as much and no more */
		err = reserve(r->bytes, km_region_page(r), &at);
	if (err < 0)
		return err;
	err = is_locked(at) ? put_locked(r, at, which) : put(r, at, PROT_READ | PROT_WRITE);
	if (err >= 0)
		err = advise(r, at);
	if (err < 0)
		km_sys_munmap(at, r->bytes);
	else
		*ret = at;
	return err;
}

static const char *map_hint(const struct kvmem_region *r, int64_t err)
{
	switch (err) {
	case -EAGAIN:
		return "; memory of this process is locked (mlockall(2)): raise RLIMIT_MEMLOCK";
	case -EPERM:
	case -EACCES:
		return "; the file is sealed against writing (F_SEAL_WRITE or "
		       "F_SEAL_FUTURE_WRITE)";
	case -ENOMEM:
		return r->plan.backing == KVMEM_BACKING_HUGETLB
			       ? "; not enough free huge pages, raise vm.nr_hugepages"
			       : "; see RLIMIT_AS and vm.max_map_count";
	default:
		return "";
	}
}

int km_region_map_fail(const struct kvmem_region *r, const char *what, int64_t err)
{
	return km_fail((int)-err, "region of 0x%" PRIx64 " bytes: %s: %m%s", r->bytes, what,
		       map_hint(r, err));
}

static int64_t map_alias(struct kvmem_region *r)
{
	int64_t err = km_region_map(r, KM_MAPPING_ALIAS, &r->alias);

	if (err >= 0)
		err = km_policy_bind_alias(r);
	if (err < 0) {
		km_sys_munmap(r->alias, r->bytes);
		r->alias = NULL;
	}
	return err;
}

int km_region_store(struct kvmem_region *r, uint8_t **ret_base)
{
	int64_t err = 0;

	pthread_mutex_lock(&r->lock);
	if (!r->fault_ops && !r->pager) {
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
