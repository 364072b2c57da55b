// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A region becomes longer. File, mappings, record and registration with userfaultfds are made for all of the
 * reserve when the region is; only access ends at the bytes in use. So growing makes nothing that a reader
 * without locks could meet half made: it gives access, then says the new length.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>

#include "region/region.h"

static int check(const struct kvmem_region *r, uint64_t bytes)
{
	int ret;

	if (!r)
		return km_fail(EINVAL, "kvmem_region_grow: region is NULL");
	ret = km_region_own_check(r, "kvmem_region_grow");
	if (!ret)
		ret = km_align_check(bytes, km_region_page(r), "kvmem_region_grow: bytes");
	if (ret)
		return ret;
	if (bytes > r->room)
		return km_fail(ERANGE,
			       "kvmem_region_grow: 0x%" PRIx64 " bytes are more than the 0x%" PRIx64
			       " that the region can have: kvmem_region_opts.reserve",
			       bytes, r->room);
	return 0;
}

/* Who has the file may have stored something there, which is no content. */
static int64_t clear(const struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int64_t err = 0;

	if (r->fd >= 0)
		err = km_sys_fallocate(r->fd, punch, r->fd_offset + offset, bytes);
	if (err >= 0 && r->private_fd >= 0)
		err = km_sys_fallocate(r->private_fd, punch, offset, bytes);
	return err;
}

static void close_new(const struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	km_region_close(r->base + offset, bytes);
	if (r->alias)
		km_region_close(r->alias + offset, bytes);
}

static int64_t open_new(const struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	int64_t err = 0;

	if (r->alias)
		err = km_region_open(r, r->alias + offset, bytes, KM_MAPPING_ALIAS);
	if (err < 0)
		return err;
	err = km_region_open(r, r->base + offset, bytes, KM_MAPPING_GUEST);
	if (err < 0 && r->alias)
		km_region_close(r->alias + offset, bytes);
	return err;
}

static int grow_locked(struct kvmem_region *r, uint64_t bytes)
{
	uint64_t old = r->bytes;
	int64_t err;

	if (bytes < old)
		return km_fail(EINVAL,
			       "kvmem_region_grow: 0x%" PRIx64 " bytes are less than the 0x%" PRIx64
			       " that the region has: it cannot shrink, discard what is not needed",
			       bytes, old);
	if (bytes == old)
		return 0;
	err = clear(r, old, bytes - old);
	if (err < 0)
		return km_region_map_fail(r, "growing it", err);
	err = open_new(r, old, bytes - old);
	if (err < 0)
		return km_fail((int)-err, "growing the region: mprotect: %m%s",
			       err == -ENOMEM ? "; see vm.max_map_count, RLIMIT_AS" : "");
	/* Last, as it cannot be undone. */
	if (r->plan.backing == KVMEM_BACKING_HUGETLB)
		err = km_region_reserve_huge(r, old, bytes - old);
	if (err < 0) {
		close_new(r, old, bytes - old);
		return km_region_map_fail(r, "growing it", err);
	}
	km_presence_grow(&r->presence, bytes >> r->page_shift, r->watch ? KM_ZERO : KM_ABSENT);
	atomic_store(&r->bytes, bytes);
	return 0;
}

int kvmem_region_grow(struct kvmem_region *region, uint64_t bytes)
{
	bool whole = false;
	int r = check(region, bytes);

	if (r)
		return r;
	pthread_mutex_lock(&region->lock);
	r = grow_locked(region, bytes);
	if (!r && region->watch)
		whole = !atomic_load(&region->presence.open);
	if (whole)
		atomic_fetch_add(&region->fillers, 1); /* its pager does not go meanwhile */
	pthread_mutex_unlock(&region->lock);
	if (whole) {
		km_presence_notify(&region->presence);
		atomic_fetch_sub(&region->fillers, 1);
	}
	return r;
}
