// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "source/source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ALL_FLAGS (KVMEM_SOURCE_BUFFERED | KVMEM_SOURCE_ALL_DATA | KVMEM_SOURCE_BORROW)

#define MOST_EXTENTS 64u /* of a callback that are joined to a run */

/*
 * A description of our own: SEEK_DATA moves the file position, which a duplicate would share with
 * the caller, and a caller's O_DIRECT would bind every read to its alignment.
 */
static int64_t open_own(int fd, int64_t mode, uint32_t flags)
{
	char path[32];
	int64_t own;

	if (flags & KVMEM_SOURCE_BORROW)
		return mode & O_DIRECT
			       ? km_fail(EINVAL,
					 "source: fd %d is open with O_DIRECT, and with "
					 "KVMEM_SOURCE_BORROW nothing else is opened: pass one opened "
					 "without it",
					 fd)
			       : fd;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	own = km_sys_open(path, O_RDONLY);
	if (own >= 0)
		return own;
	if (own == -EMFILE || own == -ENFILE || own == -ENOMEM)
		return km_fail((int)-own, "source: opening the file of fd %d again: %m", fd);
	if (mode & O_DIRECT)
		return km_fail(EINVAL,
			       "source: fd %d is open with O_DIRECT and cannot be opened again "
			       "without it through %s (%s): pass one opened without it",
			       fd, path, strerror((int)-own));
	own = km_sys_dup(fd); /* no /proc: the position of the caller's fd will move */
	if (own < 0)
		return km_fail((int)-own, "source: duplicating fd %d: %m", fd);
	return own;
}

static int device_size(int fd, int own, uint64_t *ret_size)
{
	int64_t size = km_sys_lseek(own, 0, SEEK_END);

	if (size < 0)
		return km_fail((int)-size, "source: size of the block device of fd %d: %m", fd);
	*ret_size = (uint64_t)size;
	return 0;
}

/* Before it is opened again: opening a pipe can wait for ever, and opening a device can do
 * anything. */
static int check_fd(int fd, int64_t *ret_mode, struct stat *st)
{
	int64_t mode = km_sys_fcntl_getfl(fd), r;

	if (mode < 0)
		return km_fail(EBADF, "source: fd %d is not open", fd);
	if ((mode & O_PATH) || (mode & O_ACCMODE) == O_WRONLY)
		return km_fail(EBADF, "source: fd %d is not open for reading", fd);
	r = km_sys_fstat(fd, st);
	if (r < 0)
		return km_fail((int)-r, "source: fstat of fd %d: %m", fd);
	if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
		return km_fail(ESPIPE,
			       "source: fd %d is neither a file nor a block device: wrap it in "
			       "kvmem_source_callback()",
			       fd);
	*ret_mode = mode;
	return 0;
}

static int file_range(int fd, uint64_t offset, uint64_t size, uint64_t *bytes)
{
	if (offset + *bytes < offset)
		return km_fail(EINVAL,
			       "source: offset 0x%" PRIx64 " + 0x%" PRIx64 " bytes overflows",
			       offset, *bytes);
	if (offset >= size || *bytes > size - offset)
		return km_fail(ENODATA,
			       "source: the file of fd %d has 0x%" PRIx64 " bytes, too short "
			       "for 0x%" PRIx64 " at offset 0x%" PRIx64,
			       fd, size, *bytes ? *bytes : 1, offset);
	if (!*bytes)
		*bytes = size - offset;
	return 0;
}

int kvmem_source_file(int fd, uint64_t offset, uint64_t bytes, uint32_t flags,
		      struct kvmem_source **ret_source)
{
	struct kvmem_source *s;
	int64_t mode = 0, own;
	uint64_t size = 0;
	struct stat st;
	int r;

	if (!ret_source)
		return km_fail(EINVAL, "source: ret_source is NULL");
	r = km_flags_check(flags, ALL_FLAGS, "kvmem_source_file: flags");
	if (!r)
		r = check_fd(fd, &mode, &st);
	if (r)
		return r;
	/* A file is closed again when the call fails after this: its record locks would be gone. */
	if (S_ISREG(st.st_mode))
		r = file_range(fd, offset, (uint64_t)st.st_size, &bytes);
	if (r)
		return r;
	own = open_own(fd, mode, flags);
	if (own < 0)
		return (int)own;
	if (!S_ISREG(st.st_mode)) {
		r = device_size(fd, (int)own, &size);
		if (!r)
			r = file_range(fd, offset, size, &bytes);
	}
	if (r)
		goto err;
	s = km_source_new(KM_SOURCE_FILE, bytes);
	if (!s) {
		r = -ENOMEM;
		goto err;
	}
	s->fd = (int)own;
	s->offset = offset;
	/* What is borrowed is never opened again either, with O_DIRECT. */
	s->flags = flags | (flags & KVMEM_SOURCE_BORROW ? KVMEM_SOURCE_BUFFERED : 0);
	*ret_source = s;
	return 0;
err:
	if (!(flags & KVMEM_SOURCE_BORROW))
		km_sys_close((int)own);
	return r;
}

int kvmem_source_memory(const void *base, uint64_t bytes, struct kvmem_source **ret_source)
{
	struct kvmem_source *s;

	if (!base || !ret_source)
		return km_fail(EINVAL, "source: %s is NULL", base ? "ret_source" : "base");
	if (!bytes || (uintptr_t)base + bytes < (uintptr_t)base)
		return km_fail(EINVAL,
			       "source: 0x%" PRIx64 " bytes of memory at %p: must be at least one "
			       "and not wrap around",
			       bytes, base);
	s = km_source_new(KM_SOURCE_MEMORY, bytes);
	if (!s)
		return -ENOMEM;
	s->base = base;
	*ret_source = s;
	return 0;
}

int kvmem_source_callback(const struct kvmem_source_ops *ops, void *arg, uint64_t bytes,
			  struct kvmem_source **ret_source)
{
	struct kvmem_source_ops o;
	struct kvmem_source *s;
	int r;

	if (!ops || !ret_source)
		return km_fail(EINVAL, "source: %s is NULL", ops ? "ret_source" : "ops");
	r = km_opts_copy(&o, sizeof(o), sizeof(o), ops, "kvmem_source_ops");
	if (!r)
		r = km_flags_check(o.flags, KVMEM_SOURCE_CHEAP, "kvmem_source_ops.flags");
	if (r)
		return r;
	if (!o.read)
		return km_fail(EINVAL,
			       "source ops: read is NULL, and there is no other way to content");
	if (!bytes)
		return km_fail(EINVAL, "source: 0 bytes, must be at least one");
	s = km_source_new(KM_SOURCE_CALLBACK, bytes);
	if (!s)
		return -ENOMEM;
	s->ops = o;
	s->arg = arg;
	*ret_source = s;
	return 0;
}

int kvmem_source_free(struct kvmem_source *s)
{
	unsigned int users;
	int r;

	if (!s)
		return 0;
	r = km_callback_check("kvmem_source_free", s);
	if (r)
		return r;
	users = atomic_load_explicit(&s->users, memory_order_acquire);
	if (users)
		return km_fail(
			EBUSY,
			"kvmem_source_free: %u populate calls or regions of pagers use the source: "
			"wait for the calls, kvmem_pager_remove() or kvmem_pager_free() first",
			users);
	if (s->ops.close)
		s->ops.close(s->arg);
	if (!(s->flags & KVMEM_SOURCE_BORROW))
		km_sys_close(s->fd);
	km_sys_free(s);
	return 0;
}

uint64_t kvmem_source_bytes(const struct kvmem_source *s)
{
	return s ? s->bytes : 0;
}

/* A hole that reaches the end of the file must reach the end of the source too. */
static int check_not_shrunk(struct kvmem_source *s)
{
	struct stat st;
	int64_t r = km_sys_fstat(s->fd, &st);

	if (r < 0)
		return km_fail((int)-r, "source: fstat: %m");
	if (S_ISREG(st.st_mode) && (uint64_t)st.st_size < s->offset + s->bytes)
		return km_fail(ENODATA,
			       "source: the file has shrunk to 0x%" PRIx64 " bytes, 0x%" PRIx64
			       " are in use",
			       (uint64_t)st.st_size, s->offset + s->bytes);
	return 0;
}

static int file_extent(struct kvmem_source *s, uint64_t offset, struct kvmem_extent *e)
{
	uint64_t from = s->offset + offset, end = s->offset + s->bytes;
	int64_t data, next;

	if (s->flags & KVMEM_SOURCE_ALL_DATA) {
		e->kind = KVMEM_EXTENT_DATA;
		e->bytes = end - from;
		return 0;
	}
	data = km_sys_lseek(s->fd, from, SEEK_DATA);
	if (data == -ENXIO) {
		int r = check_not_shrunk(s);

		if (r)
			return r;
		e->kind = KVMEM_EXTENT_HOLE;
		e->bytes = end - from;
		return 0;
	}
	if (data > (int64_t)from) {
		e->kind = KVMEM_EXTENT_HOLE;
		e->bytes = ((uint64_t)data < end ? (uint64_t)data : end) - from;
		return 0;
	}
	/* A block device or file system that knows of no holes says so: all is data. */
	next = data < 0 ? data : km_sys_lseek(s->fd, from, SEEK_HOLE);
	if (next < 0 && next != -EINVAL && next != -EOPNOTSUPP && next != -ENXIO)
		return km_fail((int)-next, "source: extent at offset 0x%" PRIx64 ": lseek: %m",
			       offset);
	e->kind = KVMEM_EXTENT_DATA;
	e->bytes = (next > (int64_t)from && (uint64_t)next < end ? (uint64_t)next : end) - from;
	return 0;
}

static int callback_read(struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes)
{
	struct km_callback cb;
	int r;

	km_callback_enter(&cb, "kvmem_source_ops.read", s, NULL);
	r = km_callback_errno(s->ops.read(s->arg, offset, buf, bytes));
	km_callback_leave(&cb);
	if (r)
		return km_fail(-r,
			       "source: the read callback failed at offset 0x%" PRIx64
			       ", 0x%" PRIx64 " bytes: %m",
			       offset, bytes);
	return 0;
}

static int callback_extent(struct kvmem_source *s, uint64_t offset, struct kvmem_extent *e)
{
	struct kvmem_extent got = KVMEM_EXTENT_INIT;
	struct km_callback cb;
	uint64_t end;
	int r;

	if (!s->ops.extent) {
		e->kind = KVMEM_EXTENT_DATA;
		e->bytes = s->bytes - offset;
		return 0;
	}
	km_callback_enter(&cb, "kvmem_source_ops.extent", s, NULL);
	r = km_callback_errno(s->ops.extent(s->arg, offset, &got));
	km_callback_leave(&cb);
	if (r)
		return km_fail(-r, "source: the extent callback failed at offset 0x%" PRIx64 ": %m",
			       offset);
	end = got.offset + got.bytes;
	if (got.kind > KVMEM_EXTENT_HOLE || got.offset > offset || end <= offset ||
	    end < got.offset)
		return km_fail(EINVAL,
			       "source: the extent callback, asked for offset 0x%" PRIx64
			       ", gave kind %u from 0x%" PRIx64 ", 0x%" PRIx64
			       " bytes: it must hold "
			       "the offset",
			       offset, got.kind, got.offset, got.bytes);
	e->kind = got.kind;
	e->bytes = (end < s->bytes ? end : s->bytes) - offset;
	return 0;
}

/* The rest of the extent from `offset` on. */
int km_source_extent(struct kvmem_source *s, uint64_t offset, struct kvmem_extent *e)
{
	e->offset = offset;
	switch (s->kind) {
	case KM_SOURCE_FILE:
		return file_extent(s, offset, e);
	case KM_SOURCE_CALLBACK:
	case KM_SOURCE_ASYNC:
		return callback_extent(s, offset, e);
	default:
		e->kind = KVMEM_EXTENT_DATA;
		e->bytes = s->bytes - offset;
		return 0;
	}
}

/* What fails further on is for who asks there. */
int km_source_run(struct kvmem_source *s, uint64_t offset, uint64_t enough, struct kvmem_extent *e)
{
	struct kvmem_extent next = KVMEM_EXTENT_INIT;
	struct km_detail kept;
	int r = km_source_extent(s, offset, e);

	if (r || !s->ops.extent)
		return r;
	km_detail_save(&kept);
	for (unsigned int i = 1; i < MOST_EXTENTS; i++) {
		if (e->bytes >= enough || offset + e->bytes >= s->bytes)
			break;
		if (km_source_extent(s, offset + e->bytes, &next) || next.kind != e->kind)
			break;
		e->bytes += next.bytes;
	}
	km_detail_restore(&kept);
	return 0;
}

int kvmem_source_extent(struct kvmem_source *s, uint64_t offset, struct kvmem_extent *ret_extent)
{
	struct kvmem_extent e = KVMEM_EXTENT_INIT;
	int r;

	if (!s)
		return km_fail(EINVAL, "source is NULL");
	r = km_result_check(ret_extent, sizeof(e), "ret_extent");
	if (!r)
		r = km_range_check(offset, 1, s->bytes, "extent of a source");
	if (!r)
		r = km_source_run(s, offset, s->bytes, &e);
	if (!r)
		km_result_copy(ret_extent, &e, sizeof(e));
	return r;
}

static int file_read(struct kvmem_source *s, uint64_t offset, unsigned char *buf, uint64_t bytes)
{
	while (bytes) {
		int64_t n = km_sys_pread(s->fd, buf, bytes, s->offset + offset);

		if (n < 0)
			return km_fail((int)-n,
				       "source: reading 0x%" PRIx64 " bytes at offset 0x%" PRIx64
				       " of the file: %m",
				       bytes, s->offset + offset);
		if (!n)
			return km_fail(ENODATA,
				       "source: the file ends at offset 0x%" PRIx64 ", 0x%" PRIx64
				       " bytes before the range in use: it has shrunk",
				       s->offset + offset, bytes);
		offset += (uint64_t)n;
		buf += n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

/* Data of one extent. */
int km_source_read_looking(struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes,
			   const struct km_source_wait *wait)
{
	switch (s->kind) {
	case KM_SOURCE_FILE:
		return file_read(s, offset, buf, bytes);
	case KM_SOURCE_CALLBACK:
		return callback_read(s, offset, buf, bytes);
	case KM_SOURCE_ASYNC:
		return km_source_async_read(s, offset, buf, bytes, wait);
	default:
		return km_source_memory_read(s, offset, buf, bytes);
	}
}

int km_source_read(struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes)
{
	return km_source_read_looking(s, offset, buf, bytes, NULL);
}

int kvmem_source_read(struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes)
{
	unsigned char *to = buf;
	int r;

	if (!s || !buf)
		return km_fail(EINVAL, "%s is NULL", s ? "buf" : "source");
	r = km_range_check(offset, bytes, s->bytes, "read of a source");
	if (r || !s->ops.extent)
		return r ? r : km_source_read(s, offset, buf, bytes);
	while (bytes) {
		struct kvmem_extent e = KVMEM_EXTENT_INIT;
		uint64_t n;

		r = km_source_extent(s, offset, &e);
		if (r)
			return r;
		n = e.bytes < bytes ? e.bytes : bytes;
		if (e.kind == KVMEM_EXTENT_DATA)
			r = km_source_read(s, offset, to, n);
		else
			memset(to, 0, n);
		if (r)
			return r;
		offset += n;
		to += n;
		bytes -= n;
	}
	return 0;
}
