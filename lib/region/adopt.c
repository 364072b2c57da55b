// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A file that the caller brings: what kind it is, and which pages it has. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "region/exists.h"
#include "region/region.h"
#include "base/uapi/userfaultfd.h"

/* Newer than the headers of the build host, as those of uapi/. */
#define FS_TMPFS     0x01021994
#define FS_HUGETLBFS 0x958458f6
#define FS_ANON	     0x09041934
#define FS_GMEM	     0x474d454d /* Linux 6.19: guest_memfds have a file system of their own */

/*
 * Told by the file system alone: the file is the caller's, and may be of any kind. A probe that
 * writes, punches or reads at an odd offset would do so on a file that is then refused. Memfds are
 * files on a tmpfs or hugetlbfs of the kernel's own, and others there are the same.
 */
static bool is_guest_memfd(int fd, int64_t fs)
{
	char path[32], link[64];

	if (fs != FS_ANON)
		return fs == FS_GMEM;
	/* Before 6.19: of the files without a file system only guest_memfds are regular files. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (km_sys_readlink(path, link, sizeof(link)) < 0)
		return true; /* no /proc */
	return !strcmp(link, "anon_inode:[kvm-gmem]");
}

uint32_t km_file_kind(int fd, const struct stat *st)
{
	struct statfs fs;
	int64_t err = km_sys_fstatfs(fd, &fs), type;

	type = err < 0 ? 0 : (int64_t)(fs.f_type & 0xffffffff);
	if (!S_ISREG(st->st_mode))
		type = 0;
	if (type == FS_TMPFS)
		return KVMEM_BACKING_MEMFD;
	if (type == FS_HUGETLBFS)
		return KVMEM_BACKING_HUGETLB;
	return type && is_guest_memfd(fd, type) ? KVMEM_BACKING_GUEST_MEMFD : 0;
}

int km_file_range(struct kvmem_region_opts *o, uint64_t page, uint64_t size)
{
	int r;

	if (o->page_size && o->page_size != page)
		return km_fail(EOPNOTSUPP,
			       "kvmem_region_opts.fd %d has pages of 0x%" PRIx64
			       " bytes, page_size asks "
			       "for 0x%" PRIx64,
			       o->fd, page, o->page_size);
	o->page_size = page;
	r = km_align_check(o->fd_offset, page, "kvmem_region_opts.fd_offset");
	if (!r)
		r = km_align_check(o->bytes, page, "kvmem_region_opts.bytes");
	return r ? r : km_range_check(o->fd_offset, o->bytes, size, "kvmem_region_opts.fd");
}

#define SEAL_WRITE	  0x0008
#define SEAL_FUTURE_WRITE 0x0010

static int check_writable(int fd)
{
	int64_t seals = km_sys_fcntl_seals(fd);

	if (seals < 0 || !(seals & (SEAL_WRITE | SEAL_FUTURE_WRITE)))
		return 0;
	return km_fail(EPERM,
		       "kvmem_region_opts.fd %d is sealed against writing (F_SEAL_WRITE or "
		       "F_SEAL_FUTURE_WRITE): it cannot be mapped for a guest",
		       fd);
}

/* What km_adopt_presence() is going to ask for. */
static int check_owner(const struct kvmem_region_opts *o)
{
	int64_t tells = 1;

	if (o->backing == KVMEM_BACKING_GUEST_MEMFD && o->content == KVMEM_CONTENT_KEEP)
		tells = km_mincore_tells_file(o->fd, o->page_size);
	if (tells < 0)
		return km_fail((int)-tells, "kvmem_region_opts.fd %d: mapping a page of it: %m",
			       o->fd);
	if (tells)
		return 0;
	return km_fail(
		EOPNOTSUPP,
		"the guest_memfd given belongs to another user, and the kernel tells only its "
		"owner which pages it has: adopt it as the user who made it, or with "
		"CAP_FOWNER, or with KVMEM_CONTENT_IGNORE");
}

int km_adopt_kind(struct kvmem_region_opts *o)
{
	struct stat st;
	uint32_t backing;
	uint64_t page;
	int64_t err = km_sys_fcntl_getfl(o->fd);
	int r;

	if (err < 0)
		return km_fail(EBADF, "kvmem_region_opts.fd %d is not open", o->fd);
	if ((err & O_ACCMODE) != O_RDWR)
		return km_fail(EBADF, "kvmem_region_opts.fd %d is not open for reading and writing",
			       o->fd);
	err = km_sys_fstat(o->fd, &st);
	if (err < 0)
		return km_fail((int)-err, "kvmem_region_opts.fd %d: fstat: %m", o->fd);
	backing = km_file_kind(o->fd, &st);
	if (!backing)
		return km_fail(EBADF,
			       "kvmem_region_opts.fd %d is neither a memfd nor a guest_memfd",
			       o->fd);
	r = check_writable(o->fd);
	if (r)
		return r;
	if (o->backing && o->backing != backing)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_region_opts.fd %d is of another kind than the backing asked for: "
			"leave backing AUTO",
			o->fd);
	page = backing == KVMEM_BACKING_HUGETLB ? (uint64_t)st.st_blksize : km_sys_page_size();
	o->backing = backing;
	r = km_file_range(o, page, (uint64_t)st.st_size);
	return r ? r : check_owner(o);
}

/* ---- which pages exist ---- */

static void mark(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	km_presence_publish(&r->presence, page, km_presence_claim(&r->presence, page, count),
			    KM_PRESENT);
}

static int by_extents(struct kvmem_region *r)
{
	uint64_t at = 0, first, end;
	int64_t found;

	while (at < r->bytes && (found = km_next_extent(r, at, &first, &end)) != 0) {
		if (found < 0)
			return km_fail((int)-found,
				       "finding the pages of the file given: SEEK_DATA: %m");
		mark(r, first >> r->page_shift, (end - first) >> r->page_shift);
		at = end;
	}
	return 0;
}

/* mincore() on a shared mapping tells of the file's pages, mapped here or not. */
static int by_mincore(struct kvmem_region *r)
{
	uint64_t total = r->presence.pages, n;
	bool exists[KM_EXISTS_BATCH];
	struct km_exists x;
	int64_t err = km_exists_begin(&x, r, r->base);

	for (uint64_t at = 0; at < total && err >= 0; at += n) {
		n = km_min(total - at, KM_EXISTS_BATCH);
		err = km_exists_get(&x, at, (unsigned int)n, exists);
		for (uint64_t i = 0; i < n && err >= 0; i++)
			if (exists[i])
				mark(r, at + i, 1);
	}
	return err < 0 ? km_fail((int)-err, "finding the pages of the file given: mincore: %m") : 0;
}

/*
 * hugetlb knows neither SEEK_DATA nor pages that are not mapped here. When some pages exist and
 * some do not, UFFDIO_CONTINUE tells them apart: it maps what is there and fails with EFAULT where
 * nothing is.
 */
static int by_continue(struct kvmem_region *r)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)r->base, .len = r->bytes },
		.mode = UFFDIO_REGISTER_MODE_MINOR,
	};
	int uffd = km_uffd_open(0);
	int64_t err;

	if (uffd < 0)
		return km_fail(
			EOPNOTSUPP,
			"the hugetlb file given has some of its pages, and only a userfaultfd can "
			"tell which: %s",
			kvmem_error_detail());
	err = km_sys_ioctl(uffd, UFFDIO_REGISTER, &reg);
	for (uint64_t page = 0; page < r->presence.pages && err >= 0; page++) {
		struct uffdio_continue c = {
			.range = { .start = (uintptr_t)r->base + (page << r->page_shift),
				   .len = km_region_page(r) },
			.mode = UFFDIO_CONTINUE_MODE_DONTWAKE,
		};

		err = km_sys_ioctl(uffd, UFFDIO_CONTINUE, &c);
		if (err >= 0 || err == -EEXIST)
			mark(r, page, 1);
		if (err == -EEXIST || err == -EFAULT)
			err = 0;
	}
	km_sys_close(uffd);
	return err < 0 ? km_fail((int)-err,
				 "finding the pages of the hugetlb file given: userfaultfd: %m")
		       : 0;
}

static int by_blocks(struct kvmem_region *r)
{
	struct stat st;
	int64_t err = km_sys_fstat(r->fd, &st);

	if (err < 0)
		return km_fail((int)-err, "finding the pages of the hugetlb file given: fstat: %m");
	if (!st.st_blocks)
		return 0;
	if ((uint64_t)st.st_blocks * 512 < (uint64_t)st.st_size)
		return by_continue(r);
	mark(r, 0, r->presence.pages);
	return 0;
}

int km_adopt_presence(struct kvmem_region *r)
{
	switch (r->plan.backing) {
	case KVMEM_BACKING_MEMFD:
		return by_extents(r);
	case KVMEM_BACKING_HUGETLB:
		return by_blocks(r);
	default:
		return by_mincore(r);
	}
}
