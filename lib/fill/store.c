// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "fill/store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/resource.h>

#include "base/uapi/mm.h"

static const uint8_t zeros[64 << 10];

/* ---- the file ---- */

/* Sealed where it is ours. Of others' files the owner can cut off the end, and a write would put it
 * back. */
static bool cut_short(const struct kvmem_region *r, uint64_t end, uint64_t *ret_size)
{
	struct stat st;

	if (!r->adopted || km_sys_fstat(r->fd, &st) < 0)
		return false;
	*ret_size = (uint64_t)st.st_size;
	return *ret_size < r->fd_offset + end;
}

int km_store_check(const struct kvmem_region *r, uint64_t pos, uint64_t bytes)
{
	uint64_t size;

	if (!cut_short(r, pos + bytes, &size))
		return 0;
	return km_fail(ENODATA,
		       "fill: the region's file has been cut short to 0x%" PRIx64
		       " bytes: nothing can be stored at offset 0x%" PRIx64 " + 0x%" PRIx64
		       " of the region",
		       size, pos, bytes);
}

/* ---- through the mapping ---- */

static int no_pages(const struct kvmem_region *r, uint64_t pos, uint64_t bytes, int64_t err,
		    const char *call)
{
	if (err == -EFAULT && km_store_check(r, pos, bytes))
		return -ENODATA;
	return km_fail(err == -EFAULT || err == -ENOSPC ? ENOMEM : (int)-err,
		       "fill: no pages to be had for 0x%" PRIx64 " bytes at offset 0x%" PRIx64
		       " of the region: %s: %s%s",
		       bytes, pos, call,
		       err == -EFAULT ? "the file system or the memory cgroup is full"
				      : strerror((int)-err),
		       r->plan.backing == KVMEM_BACKING_HUGETLB
			       ? "; not enough free huge pages, raise vm.nr_hugepages"
		       : r->plan.backing == KVMEM_BACKING_GUEST_MEMFD && r->adopted
			       ? "; or the guest_memfd given was made without "
				 "GUEST_MEMFD_FLAG_INIT_SHARED, so that the host has no access"
			       : "");
}

int km_store_map(const struct kvmem_region *r, uint8_t *base, uint64_t pos, uint64_t bytes)
{
	/* Reading makes a writable page of a shared file, and costs less; of anonymous memory it
	 * makes the shared zero page. */
	int advice = r->fd >= 0 ? KM_MADV_POPULATE_READ : KM_MADV_POPULATE_WRITE;
	int64_t err = km_sys_madvise(base + pos, bytes, advice);

	if (err == -EINVAL || err == -ENOSYS)
		return KM_STORE_REFUSED;
	/* guest_memfd without direct map: no GUP. Elsewhere touching the page would be SIGBUS. */
	if (err == -EFAULT && r->plan.backing == KVMEM_BACKING_GUEST_MEMFD)
		return KM_STORE_REFUSED;
	return err < 0 ? no_pages(r, pos, bytes, err, "MADV_POPULATE") : 0;
}

int km_store_populate(const struct kvmem_region *r, uint8_t *base, uint64_t pos, const uint8_t *src,
		      uint64_t bytes)
{
	int err = km_store_map(r, base, pos, bytes);

	if (!err && src)
		memcpy(base + pos, src, bytes);
	return err;
}

int km_store_copy(const struct kvmem_region *r, uint8_t *base, uint64_t pos, const uint8_t *src,
		  uint64_t bytes)
{
	while (bytes) {
		uint64_t n = src ? bytes : km_min(bytes, sizeof(zeros));
		int err = km_copy(base + pos, src ? src : zeros, n);

		if (err)
			return no_pages(r, pos, n, err, "copying");
		pos += n;
		bytes -= n;
		if (src)
			src += n;
	}
	return 0;
}

int km_store_make(const struct kvmem_region *r, uint8_t *base, uint64_t pos, uint64_t bytes)
{
	int64_t err = 0;

	if (r->fd >= 0)
		err = km_sys_fallocate(r->fd, FALLOC_FL_KEEP_SIZE, r->fd_offset + pos, bytes);
	if (err >= 0)
		err = km_sys_madvise(base + pos, bytes, KM_MADV_POPULATE_WRITE);
	return err < 0 ? no_pages(r, pos, bytes, err, "fallocate and MADV_POPULATE") : 0;
}

/* ---- by write() ---- */

/* Beyond this limit a write raises SIGXFSZ, which ends the process by default. */
static bool beyond_limit(uint64_t end)
{
	struct rlimit limit;

	return km_sys_getrlimit(RLIMIT_FSIZE, &limit) >= 0 && limit.rlim_cur != RLIM_INFINITY &&
	       end > limit.rlim_cur;
}

const char *km_store_no_write(const struct kvmem_region *r, uint64_t pos, uint64_t bytes)
{
	int64_t mode;
	uint64_t size;

	if (r->fd < 0)
		return "anonymous memory has no file to write to";
	if (r->plan.write_rev == KVMEM_WRITE_NONE)
		return r->plan.backing == KVMEM_BACKING_GUEST_MEMFD
			       ? "a guest_memfd takes write() only on a kernel with write population"
			       : "this memory takes no write()";
	/* The flag is of the file description, which is shared with who gave the descriptor. */
	mode = km_sys_fcntl_getfl(r->fd);
	if (mode >= 0 && mode & O_APPEND)
		return "the file descriptor is open with O_APPEND: a write ignores the offset";
	if (beyond_limit(r->fd_offset + pos + bytes))
		return "RLIMIT_FSIZE is below the end of the range: a write there would raise SIGXFSZ";
	if (cut_short(r, pos + bytes, &size))
		return "the region's file has been cut short: a write would make it longer";
	return NULL;
}

static int write_failed(int64_t err, uint64_t pos, uint64_t bytes)
{
	if (err == -ESPIPE || err == -ENODEV || err == -EINVAL || err == -EBADF ||
	    err == -EOPNOTSUPP || err == -EPERM)
		return KM_STORE_REFUSED;
	return km_fail(err == -ENOSPC ? ENOMEM : (int)-err,
		       "fill: writing 0x%" PRIx64 " bytes at offset 0x%" PRIx64
		       " of the region: %s",
		       bytes, pos, strerror((int)-err));
}

/* The page exists although nobody filled it: something touched it. 0, KM_STORE_REFUSED, -errno. */
static int over_existing(const struct kvmem_region *r, uint8_t *base, uint64_t pos,
			 const uint8_t *src, int64_t *n)
{
	if (*n != -ENOSPC || r->plan.write_rev != KVMEM_WRITE_ALIGNED_ONCE || !base)
		return KM_STORE_REFUSED;
	*n = (int64_t)km_region_page(r);
	return km_store_copy(r, base, pos, src, km_region_page(r));
}

int km_store_write(const struct kvmem_region *r, uint8_t *base, uint64_t pos, const uint8_t *src,
		   uint64_t bytes)
{
	if (km_store_no_write(r, pos, bytes))
		return KM_STORE_REFUSED;
	while (bytes) {
		uint64_t len = src ? bytes : km_min(bytes, sizeof(zeros));
		int64_t n = km_sys_pwrite(r->fd, src ? src : zeros, len, r->fd_offset + pos);
		int err = n > 0 ? 0 : over_existing(r, base, pos, src, &n);

		if (err < 0)
			return err;
		if (err)
			return write_failed(n ? n : -EIO, pos, len);
		pos += (uint64_t)n;
		bytes -= (uint64_t)n;
		if (src)
			src += n;
	}
	return 0;
}

/* ---- nothing ---- */

int km_store_forget(const struct kvmem_region *r, uint8_t *base, uint64_t pos, uint64_t bytes)
{
	int64_t err = 0;

	if (r->fd >= 0)
		err = km_sys_fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       r->fd_offset + pos, bytes);
	else if (base)
		err = km_mem_drop(base + pos, bytes);
	if (err >= 0)
		return 0;
	if (base && !km_store_copy(r, base, pos, NULL, bytes))
		return 0;
	return km_fail((int)-err,
		       "fill: taking out 0x%" PRIx64 " bytes at offset 0x%" PRIx64
		       " of the region: %s",
		       bytes, pos, strerror((int)-err));
}
