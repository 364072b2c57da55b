// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A file that the caller brings: what kind it is, told by what it does, and which pages it has. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "region/region.h"
#include "base/uapi/userfaultfd.h"

/* Only memfds know seals, shmem and hugetlb alike; and files on tmpfs and hugetlbfs, which are the
 * same. */
static bool is_memfd(int fd)
{
	return km_sys_fcntl_seals(fd) >= 0;
}

/* hugetlb files cannot be written, not even no byte. */
static bool has_write(int fd)
{
	const char none = 0;

	return km_sys_pwrite(fd, &none, 0, 0) >= 0;
}

/* A regular file that cannot be read, and whose holes are of whole pages: no other file is both.
 * The hole asked for is refused for its alignment before anything is done. */
static bool is_guest_memfd(int fd)
{
	char byte;
	int64_t r = km_sys_pread(fd, &byte, 1, 0);

	return (r == -EINVAL || r == -ESPIPE) &&
	       km_sys_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1, 1) == -EINVAL;
}

static int kind_of(int fd, const struct stat *st, uint32_t *ret_backing)
{
	if (is_memfd(fd))
		*ret_backing = has_write(fd) ? KVMEM_BACKING_MEMFD : KVMEM_BACKING_HUGETLB;
	else if (S_ISREG(st->st_mode) && is_guest_memfd(fd))
		*ret_backing = KVMEM_BACKING_GUEST_MEMFD;
	else
		return km_fail(EBADF,
			       "kvmem_region_opts.fd %d is neither a memfd nor a guest_memfd", fd);
	return 0;
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
	r = kind_of(o->fd, &st, &backing);
	if (r)
		return r;
	if (o->backing && o->backing != backing)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_region_opts.fd %d is of another kind than the backing asked for: "
			"leave backing AUTO",
			o->fd);
	page = backing == KVMEM_BACKING_HUGETLB ? (uint64_t)st.st_blksize : km_sys_page_size();
	if (o->page_size && o->page_size != page)
		return km_fail(EOPNOTSUPP,
			       "kvmem_region_opts.fd %d has pages of 0x%" PRIx64
			       " bytes, page_size asks "
			       "for 0x%" PRIx64,
			       o->fd, page, o->page_size);
	o->backing = backing;
	o->page_size = page;
	r = km_align_check(o->fd_offset, page, "kvmem_region_opts.fd_offset");
	if (!r)
		r = km_align_check(o->bytes, page, "kvmem_region_opts.bytes");
	if (!r)
		r = km_range_check(o->fd_offset, o->bytes, (uint64_t)st.st_size,
				   "kvmem_region_opts.fd");
	return r;
}

/* ---- which pages exist ---- */

static void mark(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	km_presence_publish(&r->presence, page, km_presence_claim(&r->presence, page, count),
			    KM_PRESENT);
}

static int by_extents(struct kvmem_region *r)
{
	uint64_t at = r->fd_offset, end = r->fd_offset + r->bytes, mask = km_region_page(r) - 1;

	while (at < end) {
		int64_t data = km_sys_lseek(r->fd, at, SEEK_DATA), hole;
		uint64_t from, to;

		if (data == -ENXIO || (data >= 0 && (uint64_t)data >= end))
			return 0;
		hole = data < 0 ? data : km_sys_lseek(r->fd, (uint64_t)data, SEEK_HOLE);
		if (hole < 0)
			return km_fail((int)-hole,
				       "finding the pages of the file given: SEEK_DATA: %m");
		from = ((uint64_t)data - r->fd_offset) & ~mask;
		to = ((uint64_t)hole < end ? (uint64_t)hole : end) - r->fd_offset;
		mark(r, from >> r->page_shift, (to + mask - from) >> r->page_shift);
		at = (uint64_t)hole;
	}
	return 0;
}

#define BATCH 4096u

/*
 * To who neither owns a file nor may write it by its mode, mincore() says of every page that it is
 * there: also of one behind the file's end.
 */
static int mincore_tells(const struct kvmem_region *r)
{
	size_t page = km_sys_page_size();
	unsigned char there = 0;
	struct stat st;
	void *p;
	int64_t err = km_sys_fstat(r->fd, &st);

	if (err >= 0)
		err = km_sys_mmap(page, PROT_READ, MAP_SHARED, r->fd,
				  ((uint64_t)st.st_size + page - 1) & ~((uint64_t)page - 1), &p);
	if (err >= 0) {
		err = km_sys_mincore(p, page, &there);
		km_sys_munmap(p, page);
	}
	if (err < 0)
		return km_fail((int)-err, "finding the pages of the file given: %m");
	if (there & 1)
		return km_fail(
			EOPNOTSUPP,
			"the guest_memfd given belongs to another user, and the kernel tells only its "
			"owner which pages it has: adopt it as the user who made it, or with "
			"CAP_FOWNER");
	return 0;
}

/* mincore() on a shared mapping tells of the file's pages, mapped here or not. */
static int by_mincore(struct kvmem_region *r)
{
	uint64_t total = r->presence.pages;
	unsigned char vec[BATCH];
	int ret = mincore_tells(r);

	if (ret)
		return ret;
	for (uint64_t at = 0; at < total; at += BATCH) {
		uint64_t n = total - at < BATCH ? total - at : BATCH;
		int64_t err = km_sys_mincore(r->base + (at << r->page_shift), n << r->page_shift,
					     vec);

		if (err < 0)
			return km_fail((int)-err,
				       "finding the pages of the file given: mincore: %m");
		for (uint64_t i = 0; i < n; i++)
			if (vec[i] & 1)
				mark(r, at + i, 1);
	}
	return 0;
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
