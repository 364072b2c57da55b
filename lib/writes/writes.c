// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Writes through a mapping, by asynchronous write protection. Protected pages have a bit in their entry of the page
 * table, memory that was never touched has a marker with it (WP_UNPOPULATED, which WP_ASYNC includes). Everything
 * else PAGEMAP_SCAN tells as written: pages whose bit a write has taken off, and entries that are empty, also of a
 * page table that has gone as a whole, since something was there and has been taken out of the mapping: by reclaim
 * of a file's page, by a discard or by km_region_changed(). So a mapping that has come in place of a part of the
 * watched one (a discard in a clone) need only be registered, which each take does: all of it reads as written.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <kvmem/writes.h>

#include "base/uapi/pagemap.h"
#include "base/uapi/userfaultfd.h"
#include "region/region.h"

#define VECTOR 256u		    /* ranges that the kernel tells at once */
#define WINDOW (UINT64_C(32) << 20) /* that is looked through for holes at once */

struct watched {
	struct watched *next;
	struct kvmem_region *region;
	uint64_t bytes; /* from its beginning on */
};

struct kvmem_writes {
	int uffd;
	int pagemap;
	bool tells_holes; /* the kernel does: page tables that are not there read as written */
	pthread_mutex_t lock;
	struct watched *first;
};

/* ---- the kernel's calls ---- */

static int64_t pagemap_scan(int pagemap, struct km_pm_scan *s)
{
	s->size = sizeof(*s);
	return km_sys_ioctl(pagemap, KM_PAGEMAP_SCAN, s);
}

static int64_t register_wp(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_register reg = { .range = { .start = start, .len = bytes },
				       .mode = UFFDIO_REGISTER_MODE_WP };

	return km_sys_ioctl(uffd, UFFDIO_REGISTER, &reg);
}

static int64_t protect(int uffd, uint64_t start, uint64_t bytes)
{
	struct uffdio_writeprotect wp = { .range = { .start = start, .len = bytes },
					  .mode = UFFDIO_WRITEPROTECT_MODE_WP };

	return km_sys_ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

/* ---- opened ---- */

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = KM_UFFD_FEATURE_WP_ASYNC |
					      KM_UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					      UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	/* It raises no events, so those of the kernel's own accesses are none: no privilege is needed. */
	int64_t fd = km_sys_userfaultfd(O_NONBLOCK | UFFD_USER_MODE_ONLY), r;

	if (fd < 0)
		return km_fail((int)-fd, "kvmem_writes_create: userfaultfd: %m");
	r = km_sys_ioctl((int)fd, UFFDIO_API, &api);
	if (r >= 0)
		return (int)fd;
	km_sys_close((int)fd);
	return km_fail(
		r == -EINVAL ? EOPNOTSUPP : (int)-r,
		"kvmem_writes_create: UFFD_FEATURE_WP_ASYNC is not offered: Linux 6.7 and later have it");
}

static int open_pagemap(void)
{
	struct km_pm_scan scan = { .start = 0 }; /* of nothing */
	int64_t fd = km_sys_open("/proc/self/pagemap", O_RDONLY), r;

	if (fd < 0)
		return km_fail(fd == -ENOENT ? EOPNOTSUPP : (int)-fd,
			       "kvmem_writes_create: /proc/self/pagemap: %m");
	r = pagemap_scan((int)fd, &scan);
	if (r >= 0)
		return (int)fd;
	km_sys_close((int)fd);
	return km_fail(r == -ENOTTY ? EOPNOTSUPP : (int)-r,
		       "kvmem_writes_create: PAGEMAP_SCAN: %m; Linux 6.7 and later have it");
}

/*
 * Looked at in a mapping that nothing was ever put in, of two page tables' length: one of them at least is none of
 * its neighbours'. What cannot be looked at is taken for "no", which costs time alone.
 */
static bool tells_holes(const struct kvmem_writes *w)
{
	uint64_t page = km_sys_page_size(), bytes = 2 * page * (page / sizeof(uint64_t));
	struct km_page_region told = { .start = 0 };
	struct km_pm_scan s = { .vec = (uintptr_t)&told,
				.vec_len = 1,
				.category_mask = KM_PAGE_IS_WRITTEN,
				.return_mask = KM_PAGE_IS_WRITTEN };
	bool all;
	void *at;

	if (km_sys_mmap(bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &at) <
	    0)
		return false;
	s.start = (uintptr_t)at;
	s.end = s.start + bytes;
	all = register_wp(w->uffd, s.start, bytes) >= 0 && pagemap_scan(w->pagemap, &s) == 1 &&
	      told.start == s.start && told.end == s.end;
	km_sys_munmap(at, bytes);
	return all;
}

int kvmem_writes_create(const struct kvmem_writes_opts *opts, struct kvmem_writes **ret_writes)
{
	struct kvmem_writes_opts o;
	struct kvmem_writes *w;
	int r;

	if (!ret_writes)
		return km_fail(EINVAL, "kvmem_writes_create: ret_writes is NULL");
	r = km_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_writes_opts");
	if (!r)
		r = km_flags_check(o.flags, 0, "kvmem_writes_opts.flags");
	if (r)
		return r;
	w = km_sys_alloc(sizeof(*w));
	if (!w)
		return km_fail(ENOMEM, "kvmem_writes_create: no memory");
	w->uffd = open_uffd();
	w->pagemap = w->uffd < 0 ? w->uffd : open_pagemap();
	if (w->pagemap < 0) {
		r = w->pagemap;
		km_sys_close(w->uffd);
		km_sys_free(w);
		return r;
	}
	w->tells_holes = tells_holes(w);
	pthread_mutex_init(&w->lock, NULL);
	*ret_writes = w;
	return 0;
}

int kvmem_writes_free(struct kvmem_writes *writes)
{
	if (!writes)
		return 0;
	if (writes->first)
		return km_fail(
			EBUSY,
			"kvmem_writes_free: it watches a region: kvmem_writes_remove() first");
	km_sys_close(writes->pagemap);
	km_sys_close(writes->uffd);
	pthread_mutex_destroy(&writes->lock);
	km_sys_free(writes);
	return 0;
}

/* ---- regions, with the lock held ---- */

static struct watched *find(const struct kvmem_writes *w, const struct kvmem_region *region)
{
	struct watched *e = w->first;

	while (e && e->region != region)
		e = e->next;
	return e;
}

/* Also what has come in place of a part of it; who has it already keeps it as it is. */
static int register_range(const struct kvmem_writes *w, const struct kvmem_region *region,
			  uint64_t from, uint64_t bytes)
{
	int64_t r = register_wp(w->uffd, (uintptr_t)region->base + from, bytes);

	if (r == -EBUSY)
		return km_fail(EBUSY,
			       "kvmem_writes: a pager, a capture or another userfaultfd has the "
			       "region: a mapping has one");
	if (r < 0)
		return km_fail(r == -EINVAL ? EOPNOTSUPP : (int)-r,
			       "kvmem_writes: UFFDIO_REGISTER of 0x%" PRIx64
			       " bytes at offset 0x%" PRIx64 ": %m",
			       bytes, from);
	return 0;
}

static void unregister(const struct kvmem_writes *w, const struct kvmem_region *region,
		       uint64_t from, uint64_t bytes)
{
	struct uffdio_range range = { .start = (uintptr_t)region->base + from, .len = bytes };

	km_sys_ioctl(w->uffd, UFFDIO_UNREGISTER, &range);
}

static int watch(const struct kvmem_writes *w, struct kvmem_region *region, uint64_t from,
		 uint64_t bytes)
{
	int r = register_range(w, region, from, bytes);
	int64_t err;

	if (r)
		return r;
	err = protect(w->uffd, (uintptr_t)region->base + from, bytes);
	if (err >= 0)
		return 0;
	unregister(w, region, from, bytes);
	return km_fail((int)-err,
		       "kvmem_writes_add: UFFDIO_WRITEPROTECT of 0x%" PRIx64
		       " bytes at offset 0x%" PRIx64 ": %m",
		       bytes, from);
}

static int add_new(struct kvmem_writes *w, struct kvmem_region *region)
{
	struct watched *e = km_sys_alloc(sizeof(*e));
	int r;

	if (!e)
		return km_fail(ENOMEM, "kvmem_writes_add: no memory");
	*e = (struct watched){ .next = w->first, .region = region, .bytes = region->bytes };
	r = watch(w, region, 0, e->bytes);
	if (r) {
		km_sys_free(e);
		return r;
	}
	w->first = e;
	return km_region_changes_to(region, w->uffd); /* which does not fail */
}

static int add_grown(struct kvmem_writes *w, struct watched *e)
{
	uint64_t bytes = e->region->bytes;
	int r = bytes > e->bytes ? watch(w, e->region, e->bytes, bytes - e->bytes) : 0;

	if (!r)
		e->bytes = bytes;
	return r;
}

int kvmem_writes_add(struct kvmem_writes *writes, struct kvmem_region *region)
{
	struct watched *e;
	int r;

	if (!writes || !region)
		return km_fail(EINVAL, "kvmem_writes_add: %s is NULL",
			       writes ? "region" : "writes");
	r = km_region_own_check(region, "kvmem_writes_add");
	if (!r)
		r = km_callback_check("kvmem_writes_add", NULL);
	if (r)
		return r;
	pthread_mutex_lock(&writes->lock);
	e = find(writes, region);
	r = e ? add_grown(writes, e) : add_new(writes, region);
	pthread_mutex_unlock(&writes->lock);
	return r;
}

int kvmem_writes_remove(struct kvmem_writes *writes, struct kvmem_region *region)
{
	struct watched **link, *e;
	int r;

	if (!writes || !region)
		return km_fail(EINVAL, "kvmem_writes_remove: %s is NULL",
			       writes ? "region" : "writes");
	pthread_mutex_lock(&writes->lock);
	for (link = &writes->first; *link && (*link)->region != region;)
		link = &(*link)->next;
	e = *link;
	r = e ? km_region_changes_to(region, -1)
	      : km_fail(EINVAL, "kvmem_writes_remove: the region is not watched");
	if (!r) {
		*link = e->next;
		unregister(writes, region, 0, e->bytes);
		km_sys_free(e);
	}
	pthread_mutex_unlock(&writes->lock);
	return r;
}

int64_t kvmem_writes_watched(struct kvmem_writes *writes, const struct kvmem_region *region)
{
	const struct watched *e;
	uint64_t bytes;

	if (!writes || !region)
		return km_fail(EINVAL, "kvmem_writes_watched: %s is NULL",
			       writes ? "region" : "writes");
	pthread_mutex_lock(&writes->lock);
	e = find(writes, region);
	bytes = e ? e->bytes : 0;
	pthread_mutex_unlock(&writes->lock);
	return (int64_t)bytes;
}

/* ---- taken ---- */

/* There is room for it: joined to the run before, or one more. */
static void append(struct kvmem_region *region, uint64_t from, uint64_t to, struct kvmem_run *runs,
		   size_t *used)
{
	struct kvmem_run *last = *used ? &runs[*used - 1] : NULL;

	if (last && last->offset + last->bytes == from)
		last->bytes += to - from;
	else
		runs[(*used)++] =
			(struct kvmem_run){ .region = region, .offset = from, .bytes = to - from };
}

/* What is told is protected again, so no more is asked than there is room for. */
static int64_t scan(const struct kvmem_writes *w, uint64_t from, uint64_t to, size_t room,
		    struct km_page_region *vec, uint64_t *ret_end)
{
	struct km_pm_scan s = {
		.flags = KM_PM_SCAN_WP_MATCHING,
		.start = from,
		.end = to,
		.vec = (uintptr_t)vec,
		.vec_len = km_min(VECTOR, room),
		.category_mask = KM_PAGE_IS_WRITTEN,
		.return_mask = KM_PAGE_IS_WRITTEN,
	};
	int64_t n = pagemap_scan(w->pagemap, &s);

	*ret_end = s.walk_end;
	return n;
}

/* The first range without entries, or what is empty at the end of what was looked through. */
static int find_hole(const struct kvmem_writes *w, uint64_t from, uint64_t to,
		     struct km_page_region *ret_hole)
{
	struct km_pm_scan s = {
		.start = from,
		.end = to,
		.vec = (uintptr_t)ret_hole,
		.vec_len = 1,
		.category_inverted = KM_PAGE_IS_PRESENT | KM_PAGE_IS_SWAPPED,
		.category_mask = KM_PAGE_IS_PRESENT | KM_PAGE_IS_SWAPPED,
		.return_mask = KM_PAGE_IS_PRESENT,
	};
	int64_t n;

	*ret_hole = (struct km_page_region){ .start = to, .end = to };
	n = pagemap_scan(w->pagemap, &s);
	return n < 0 ? (int)n : 0;
}

static int64_t take(const struct kvmem_writes *w, const struct watched *e, uint64_t from,
		    struct kvmem_run *runs, size_t count, uint64_t *ret_next)
{
	uint64_t base = (uintptr_t)e->region->base, end = base + e->bytes, at = base + from;
	uint64_t page = km_region_page(e->region), window = page > WINDOW ? page : WINDOW;
	struct km_page_region vec[VECTOR], hole = { .end = at };
	size_t used = 0;
	int64_t n = 0;
	int r = register_range(w, e->region, from, e->bytes - from);

	if (r)
		return r;
	while (n >= 0 && at < end && used < count) {
		if (w->tells_holes)
			hole.start = hole.end = end;
		else if (at >= hole.end)
			n = find_hole(w, at, km_min(end, at + window), &hole);
		if (n < 0)
			break;
		if (at < hole.start) {
			n = scan(w, at, hole.start, count - used, vec, &at);
			for (int64_t i = 0; i < n; i++)
				append(e->region, vec[i].start - base, vec[i].end - base, runs,
				       &used);
		} else if (at < hole.end) {
			n = protect(w->uffd, at, hole.end - at);
			if (n == -ENOENT) /* replaced since: it will be told again */
				n = 0;
			append(e->region, at - base, hole.end - base, runs, &used);
			at = hole.end;
		}
	}
	if (n < 0)
		return km_fail(n == -ENOMEM ? ENOMEM : EIO,
			       "kvmem_writes_take: the page tables at offset 0x%" PRIx64
			       " cannot be looked at or protected: error %d",
			       at - base, (int)-n);
	*ret_next = at - base;
	return (int64_t)used;
}

int64_t kvmem_writes_take(struct kvmem_writes *writes, struct kvmem_region *region, uint64_t from,
			  struct kvmem_run *runs, size_t count, uint64_t *ret_next)
{
	const struct watched *e;
	int64_t r;

	if (!writes || !region || !runs || !count || !ret_next)
		return km_fail(EINVAL, "kvmem_writes_take: %s is NULL or 0",
			       !writes	 ? "writes"
			       : !region ? "region"
			       : !runs	 ? "runs"
			       : !count	 ? "count"
					 : "ret_next");
	pthread_mutex_lock(&writes->lock);
	e = find(writes, region);
	if (!e)
		r = km_fail(
			EINVAL,
			"kvmem_writes_take: the region is not watched: kvmem_writes_add() first");
	else if (from % km_region_page(region) || from >= e->bytes)
		r = km_fail(ERANGE,
			    "kvmem_writes_take: from 0x%" PRIx64 " is not a page of the 0x%" PRIx64
			    " bytes that are watched",
			    from, e->bytes);
	else
		r = take(writes, e, from, runs, count, ret_next);
	pthread_mutex_unlock(&writes->lock);
	return r;
}
