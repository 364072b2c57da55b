// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Which pages of a region exist in the kernel, found without making any. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "region/exists.h"
#include "region/region.h"

/* ---- does mincore() tell? ---- */

/* A mapping of one page that begins at or behind the end of the file. */
static int64_t map_behind_end(int fd, uint64_t page, uint8_t **ret)
{
	struct stat st;
	void *p = NULL;
	int64_t err = km_sys_fstat(fd, &st);

	if (err >= 0)
		err = km_sys_mmap(page, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd,
				  ((uint64_t)st.st_size + page - 1) & ~(page - 1), &p);
	*ret = p;
	return err;
}

int64_t km_mincore_tells_file(int fd, uint64_t page)
{
	unsigned char there = 0;
	uint8_t *p;
	int64_t err = map_behind_end(fd, page, &p);

	if (err < 0)
		return err;
	err = km_sys_mincore(p, km_sys_page_size(), &there);
	km_sys_munmap(p, page);
	return err < 0 ? err : !(there & 1);
}

int64_t km_mincore_tells(const struct kvmem_region *r)
{
	/* Of anonymous memory it always does; a memfd that we made may be written by all. */
	if (r->fd < 0 || (!r->adopted && r->plan.backing != KVMEM_BACKING_GUEST_MEMFD))
		return 1;
	return km_mincore_tells_file(r->fd, km_region_page(r));
}

/* ---- extents ---- */

/* SEEK_DATA or SEEK_HOLE, leaving the file position alone where the caller shares it. */
static int64_t seek(const struct kvmem_region *r, uint64_t at, int whence)
{
	int64_t pos = 0, found;

	if (!r->own_description)
		pos = km_sys_lseek(r->fd, 0, SEEK_CUR);
	found = km_sys_lseek(r->fd, at, whence);
	if (!r->own_description && pos >= 0)
		km_sys_lseek(r->fd, (uint64_t)pos, SEEK_SET);
	return found;
}

int64_t km_next_extent(const struct kvmem_region *r, uint64_t offset, uint64_t *ret_first,
		       uint64_t *ret_end)
{
	uint64_t at = r->fd_offset + offset, end = r->fd_offset + r->bytes;
	uint64_t mask = km_region_page(r) - 1;
	int64_t data = seek(r, at, SEEK_DATA), hole;

	if (data == -ENXIO || (data >= 0 && (uint64_t)data >= end))
		return 0;
	hole = data < 0 ? data : seek(r, (uint64_t)data, SEEK_HOLE);
	if (hole < 0)
		return hole;
	*ret_first = ((uint64_t)data - r->fd_offset) & ~mask;
	*ret_end = (km_min((uint64_t)hole, end) - r->fd_offset + mask) & ~mask;
	return 1;
}

bool km_exists_beside(const struct kvmem_region *r, int64_t offset, uint64_t bytes)
{
	uint64_t grain = km_sys_page_size(), at;
	unsigned char vec[KM_EXISTS_BATCH];
	int64_t data;

	if (!bytes)
		return true;
	if (r->plan.backing == KVMEM_BACKING_MEMFD) {
		at = r->fd_offset + (uint64_t)offset;
		data = seek(r, at, SEEK_DATA);
		return data >= 0 && (uint64_t)data == at &&
		       seek(r, at, SEEK_HOLE) >= (int64_t)(at + bytes);
	}
	if (r->plan.backing != KVMEM_BACKING_ANONYMOUS || bytes > sizeof(vec) * grain ||
	    km_sys_mincore(r->base + offset, bytes, vec) < 0)
		return false;
	for (uint64_t i = 0; i < bytes / grain; i++)
		if (!(vec[i] & 1))
			return false;
	return true;
}

/* ---- the answer for a run of pages ---- */

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)
/* What looks like a page in swap, and is a marker: guard pages, write protection of an absent one. */
#define PAGEMAP_MARKER (1ull << 57 | 1ull << 58)

/* -errno where the kernel does not show it: then mincore() has to do. */
static int64_t by_pagemap(const uint8_t *at, unsigned int count, bool *exists)
{
	uint64_t page = km_sys_page_size(), entry[KM_EXISTS_BATCH];
	int64_t fd = km_sys_open("/proc/self/pagemap", O_RDONLY), n;

	if (fd < 0)
		return fd;
	n = km_sys_pread((int)fd, entry, count * sizeof(*entry),
			 (uintptr_t)at / page * sizeof(*entry));
	km_sys_close((int)fd);
	if (n < 0)
		return n;
	if ((uint64_t)n != count * sizeof(*entry))
		return -EIO;
	for (unsigned int i = 0; i < count; i++)
		exists[i] = entry[i] & PAGEMAP_PRESENT ||
			    (entry[i] & PAGEMAP_SWAPPED && !(entry[i] & PAGEMAP_MARKER));
	return 0;
}

/* A header, and a line for each. */
bool km_no_swap(void)
{
	char text[512] = "", *nl;
	int64_t fd = km_sys_open("/proc/swaps", O_RDONLY), n;

	if (fd < 0)
		return fd == -ENOENT;
	n = km_sys_read((int)fd, text, sizeof(text) - 1);
	km_sys_close((int)fd);
	nl = n > 0 ? strchr(text, '\n') : NULL;
	return nl && !nl[1];
}

int64_t km_exists_begin(struct km_exists *x, struct kvmem_region *r, uint8_t *view)
{
	int64_t tells = km_mincore_tells(r);
	bool any;

	x->r = r;
	x->view = view;
	x->how = KM_EXISTS_MINCORE;
	if (r->plan.backing == KVMEM_BACKING_ANONYMOUS && by_pagemap(view, 1, &any) >= 0)
		x->how = KM_EXISTS_PAGEMAP;
	if (tells)
		return tells < 0 ? tells : 0;
	x->how = r->plan.backing == KVMEM_BACKING_MEMFD ? KM_EXISTS_EXTENTS : KM_EXISTS_RECORD;
	return 0;
}

static int64_t by_mincore(const struct km_exists *x, uint64_t page, unsigned int count,
			  bool *exists)
{
	unsigned int shift = x->r->page_shift;
	bool huge = km_region_page(x->r) > km_sys_page_size();
	unsigned char vec[KM_EXISTS_BATCH] = { 0 };
	int64_t err = 0;

	if (!huge)
		err = km_sys_mincore(x->view + (page << shift), (size_t)count << shift, vec);
	for (unsigned int i = 0; huge && i < count && err >= 0; i++)
		err = km_sys_mincore(x->view + ((page + i) << shift), km_sys_page_size(), &vec[i]);
	for (unsigned int i = 0; i < count; i++)
		exists[i] = vec[i] & 1;
	return err;
}

static int64_t by_extents(const struct km_exists *x, uint64_t page, unsigned int count,
			  bool *exists)
{
	unsigned int shift = x->r->page_shift;
	uint64_t first, end, at = page << shift, stop = (page + count) << shift;
	int64_t found = 1;

	memset(exists, 0, count * sizeof(*exists));
	while (at < stop && (found = km_next_extent(x->r, at, &first, &end)) > 0) {
		for (at = first; at < km_min(end, stop); at += km_region_page(x->r))
			exists[(at >> shift) - page] = true;
		at = end;
	}
	return found < 0 ? found : 0;
}

int64_t km_exists_get(const struct km_exists *x, uint64_t page, unsigned int count, bool *exists)
{
	int64_t err = 0;

	if (x->how == KM_EXISTS_MINCORE)
		err = by_mincore(x, page, count, exists);
	else if (x->how == KM_EXISTS_PAGEMAP)
		err = by_pagemap(x->view + (page << x->r->page_shift), count, exists);
	else if (x->how == KM_EXISTS_EXTENTS)
		err = by_extents(x, page, count, exists);
	else
		memset(exists, 0, count * sizeof(*exists));
	/* hugetlb pages show in mincore() only once they are mapped here: the record knows more. */
	for (unsigned int i = 0; i < count && err >= 0; i++)
		exists[i] |= km_presence_get(&x->r->presence, page + i) == KM_PRESENT;
	return err;
}

int64_t km_region_count_pages(struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	uint64_t page = offset >> r->page_shift, left = bytes >> r->page_shift;
	bool exists[KM_EXISTS_BATCH];
	struct km_exists x;
	int64_t n = 0, err = km_exists_begin(&x, r, r->base);

	while (left && err >= 0) {
		unsigned int count = (unsigned int)km_min(left, KM_EXISTS_BATCH);

		err = km_exists_get(&x, page, count, exists);
		for (unsigned int i = 0; i < count && err >= 0; i++)
			n += exists[i];
		page += count;
		left -= count;
	}
	return err < 0 ? km_fail((int)-err,
				 "counting the pages that exist of offset 0x%" PRIx64
				 " + 0x%" PRIx64 ": %m",
				 offset, bytes)
		       : n;
}
