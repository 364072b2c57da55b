// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Sources: what they are made of, extents, reads, and what goes wrong with files and callbacks. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_sys.h"
#include "numa/numa.h"
#include "source/source.h"

#define PAGE 4096u

static unsigned char page[PAGE];

/* 16 pages: data in 2..3 and in 8; all else is hole. */
static int sparse_file(void)
{
	int fd = memfd_create("source", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, 16 * PAGE), 0);
	memset(page, 0xa5, PAGE);
	for (int i = 0; i < 3; i++) {
		static const int at[] = { 2, 3, 8 };

		page[0] = (unsigned char)at[i];
		ck_assert_int_eq(pwrite(fd, page, PAGE, at[i] * (off_t)PAGE), PAGE);
	}
	return fd;
}

static struct kvmem_source *file_source(int fd, uint64_t offset, uint64_t bytes)
{
	struct kvmem_source *s = NULL;

	ck_assert_int_eq(kvmem_source_file(fd, offset, bytes, 0, &s), 0);
	return s;
}

static void expect_extent(struct kvmem_source *s, uint64_t at, uint32_t kind, uint64_t bytes)
{
	struct kvmem_extent e = KVMEM_EXTENT_INIT;

	ck_assert_int_eq(kvmem_source_extent(s, at, &e), 0);
	ck_assert_msg(e.kind == kind && e.offset == at && e.bytes == bytes,
		      "at 0x%lx: kind %u, 0x%lx bytes from 0x%lx", (unsigned long)at, e.kind,
		      (unsigned long)e.bytes, (unsigned long)e.offset);
}

TEST(extents_of_a_file_are_clipped_to_the_source)
{
	int fd = sparse_file();
	struct kvmem_source *s = file_source(fd, PAGE, 10 * PAGE);

	fake_reset();
	ck_assert_uint_eq(kvmem_source_bytes(s), 10 * PAGE);
	expect_extent(s, 0, KVMEM_EXTENT_HOLE, PAGE);
	expect_extent(s, PAGE, KVMEM_EXTENT_DATA, 2 * PAGE);
	expect_extent(s, PAGE + 100, KVMEM_EXTENT_DATA, 2 * PAGE - 100);
	expect_extent(s, 3 * PAGE + 1, KVMEM_EXTENT_HOLE, 4 * PAGE - 1);
	expect_extent(s, 7 * PAGE, KVMEM_EXTENT_DATA, PAGE);
	expect_extent(s, 8 * PAGE, KVMEM_EXTENT_HOLE, 2 * PAGE);
	ck_assert_int_eq(kvmem_source_free(s), 0);
	close(fd);
}
END

TEST(the_file_position_of_the_caller_stays)
{
	int fd = sparse_file();
	struct kvmem_source *s = file_source(fd, 0, 0);

	ck_assert_uint_eq(kvmem_source_bytes(s), 16 * PAGE);
	ck_assert_int_eq(lseek(fd, 77, SEEK_SET), 77);
	expect_extent(s, 0, KVMEM_EXTENT_HOLE, 2 * PAGE);
	ck_assert_int_eq(kvmem_source_read(s, 2 * PAGE, page, PAGE), 0);
	ck_assert_int_eq(lseek(fd, 0, SEEK_CUR), 77);
	close(fd); /* the source has its own */
	ck_assert_int_eq(kvmem_source_read(s, 3 * PAGE, page, PAGE), 0);
	ck_assert_uint_eq(page[0], 3);
	ck_assert_int_eq(kvmem_source_free(s), 0);
}
END

static int64_t no_proc(const char *path, int flags)
{
	return strncmp(path, "/proc/", 6) ? km_real_open(path, flags) : -ENOENT;
}

TEST(without_proc_a_duplicate_serves)
{
	int fd = sparse_file();
	struct kvmem_source *s;

	fake_reset();
	fake.open = no_proc;
	s = file_source(fd, 0, 0);
	ck_assert_uint_eq(fake.count.dup, 1);
	expect_extent(s, 2 * PAGE, KVMEM_EXTENT_DATA, 2 * PAGE);
	ck_assert_int_eq(kvmem_source_free(s), 0);
	close(fd);
	fake_reset();
}
END

static int64_t no_holes(int fd, uint64_t off, int whence)
{
	return whence == SEEK_DATA || whence == SEEK_HOLE ? -EINVAL
							  : km_real_lseek(fd, off, whence);
}

TEST(a_file_system_without_holes_is_all_data)
{
	int fd = sparse_file();
	struct kvmem_source *s = file_source(fd, 0, 0);

	fake_reset();
	fake.lseek = no_holes;
	expect_extent(s, PAGE, KVMEM_EXTENT_DATA, 15 * PAGE);
	fake_reset();
	ck_assert_int_eq(kvmem_source_free(s), 0);
	close(fd);
}
END

TEST(a_file_that_shrank_is_no_data)
{
	struct kvmem_extent e = KVMEM_EXTENT_INIT;
	int fd = sparse_file();
	struct kvmem_source *s = file_source(fd, 0, 0);

	ck_assert_int_eq(ftruncate(fd, 3 * PAGE), 0);
	expect_extent(s, 2 * PAGE, KVMEM_EXTENT_DATA, PAGE);
	ck_assert_int_eq(kvmem_source_extent(s, 9 * PAGE, &e), -ENODATA);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "shrunk"));
	ck_assert_int_eq(kvmem_source_read(s, 8 * PAGE, page, PAGE), -ENODATA);
	ck_assert_int_eq(kvmem_source_read(s, 3 * PAGE - 10, page, 20), -ENODATA);
	ck_assert_int_eq(kvmem_source_free(s), 0);
	close(fd);
}
END

static int64_t short_pread(int fd, void *buf, size_t len, uint64_t off)
{
	return km_real_pread(fd, buf, len > 100 ? 100 : len, off);
}

static int64_t bad_pread(int fd, void *buf, size_t len, uint64_t off)
{
	(void)fd, (void)buf, (void)len, (void)off;
	return -EIO;
}

TEST(short_reads_go_on_and_errors_come_through)
{
	unsigned char got[2 * PAGE];
	int fd = sparse_file();
	struct kvmem_source *s = file_source(fd, 0, 0);

	fake_reset();
	fake.pread = short_pread;
	ck_assert_int_eq(kvmem_source_read(s, 3 * PAGE, got, PAGE), 0);
	ck_assert_uint_eq(got[0], 3);
	ck_assert_uint_eq(got[PAGE - 1], 0xa5);
	ck_assert_uint_eq(fake.count.pread, 41);
	fake.pread = bad_pread;
	ck_assert_int_eq(kvmem_source_read(s, 0x3000, got, PAGE), -EIO);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "0x3000"));
	fake_reset();
	ck_assert_int_eq(kvmem_source_free(s), 0);
	close(fd);
}
END

TEST(bad_files_are_refused)
{
	struct kvmem_source *s = NULL;
	int fd = sparse_file(), pipes[2], wr;
	unsigned int fds;

	fake_reset();
	ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
	wr = open("/dev/null", O_WRONLY | O_CLOEXEC);
	fds = harness_count_fds();
	ck_assert_int_eq(kvmem_source_file(fd, 0, 0, 0, NULL), -EINVAL);
	ck_assert_int_eq(kvmem_source_file(fd, 0, 0, 8, &s), -EINVAL);
	ck_assert_int_eq(kvmem_source_file(-1, 0, 0, 0, &s), -EBADF);
	ck_assert_int_eq(kvmem_source_file(wr, 0, 0, 0, &s), -EBADF);
	ck_assert_int_eq(kvmem_source_file(pipes[0], 0, 0, 0, &s), -ESPIPE);
	ck_assert_uint_eq(fake.count.open, 0); /* a pipe nobody writes to would hold us for ever */
	ck_assert_int_eq(kvmem_source_file(fd, 0, 16 * PAGE + 1, 0, &s), -ENODATA);
	ck_assert_int_eq(kvmem_source_file(fd, 16 * PAGE, 0, 0, &s), -ENODATA);
	ck_assert_int_eq(kvmem_source_file(fd, 17 * PAGE, 1, 0, &s), -ENODATA);
	ck_assert_int_eq(kvmem_source_file(fd, 4096, UINT64_MAX - 100, 0, &s), -EINVAL);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "overflows"));
	ck_assert_ptr_null(s);
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_int_eq(fake.allocs, 0);
	close(wr);
	close(pipes[0]);
	close(pipes[1]);
	close(fd);
}
END

TEST(nothing_leaks_whichever_call_fails)
{
	int fd = sparse_file(), r = -1;
	unsigned int fds = harness_count_fds();
	unsigned long at;

	for (at = 1; r; at++) {
		struct kvmem_source *s = NULL;

		ck_assert_uint_lt(at, 20);
		fake_reset();
		fake.fail_at = at;
		fake.fail_errno = ENOMEM;
		r = kvmem_source_file(fd, 0, 0, 0, &s);
		if (!r)
			ck_assert_int_eq(kvmem_source_free(s), 0);
		ck_assert_uint_eq(harness_count_fds(), fds);
		ck_assert_int_eq(fake.allocs, 0);
	}
	ck_assert_uint_gt(at, 4);
	fake_reset();
	close(fd);
}
END

TEST(memory_is_read_where_it_lies)
{
	struct kvmem_source *s = NULL;
	char got[4] = "";

	ck_assert_int_eq(kvmem_source_memory(NULL, 8, &s), -EINVAL);
	ck_assert_int_eq(kvmem_source_memory("abcdefgh", 0, &s), -EINVAL);
	ck_assert_int_eq(kvmem_source_memory("abcdefgh", UINT64_MAX, &s), -EINVAL);
	ck_assert_int_eq(kvmem_source_memory("abcdefgh", 8, NULL), -EINVAL);
	ck_assert_int_eq(kvmem_source_memory("abcdefgh", 8, &s), 0);
	expect_extent(s, 3, KVMEM_EXTENT_DATA, 5);
	ck_assert_int_eq(kvmem_source_read(s, 5, got, 3), 0);
	ck_assert_str_eq(got, "fgh");
	ck_assert_int_eq(kvmem_source_read(s, 5, got, 4), -ERANGE);
	ck_assert_int_eq(kvmem_source_read(s, 5, got, 0), -EINVAL);
	ck_assert_int_eq(kvmem_source_read(s, 5, NULL, 1), -EINVAL);
	ck_assert_int_eq(kvmem_source_free(s), 0);
	ck_assert_int_eq(kvmem_source_free(NULL), 0);
	ck_assert_uint_eq(kvmem_source_bytes(NULL), 0);
}
END

TEST(a_source_in_use_is_busy)
{
	struct kvmem_source *s = NULL;

	ck_assert_int_eq(kvmem_source_memory("x", 1, &s), 0);
	km_source_get(s);
	ck_assert_int_eq(kvmem_source_free(s), -EBUSY);
	km_source_put(s);
	ck_assert_int_eq(kvmem_source_free(s), 0);
}
END

struct script {
	int read_result;
	int closed;
	uint64_t
		odd_extent; /* the callback answers with an extent that does not hold this offset */
};

static int script_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct script *sc = arg;

	memset(buf, (int)(offset / PAGE), bytes);
	return sc->read_result;
}

/* Pages 0..3 data, each an extent of its own; 4..5 zero; from 6 a hole. */
static int script_extent(void *arg, uint64_t offset, struct kvmem_extent *e)
{
	struct script *sc = arg;
	uint64_t n = offset / PAGE;

	if (sc->odd_extent && offset == sc->odd_extent) {
		e->offset = offset + 1;
		e->bytes = PAGE;
		return 0;
	}
	e->kind = n < 4 ? KVMEM_EXTENT_DATA : n < 6 ? KVMEM_EXTENT_ZERO : KVMEM_EXTENT_HOLE;
	e->offset = n < 6 ? n * PAGE : 6 * PAGE;
	e->bytes = n < 6 ? PAGE : UINT64_MAX / 2;
	return 0;
}

static void script_close(void *arg)
{
	((struct script *)arg)->closed++;
}

TEST(callbacks_give_content_extents_and_errors)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_extent e = KVMEM_EXTENT_INIT;
	struct kvmem_source *s = NULL;
	struct script sc = { 0 };
	unsigned char got[3 * PAGE];

	ck_assert_int_eq(kvmem_source_callback(&ops, &sc, 8 * PAGE, &s), -EINVAL);
	ops.read = script_read;
	ops.extent = script_extent;
	ops.close = script_close;
	ck_assert_int_eq(kvmem_source_callback(&ops, &sc, 0, &s), -EINVAL);
	ck_assert_int_eq(kvmem_source_callback(&ops, &sc, 8 * PAGE, &s), 0);
	expect_extent(s, 1, KVMEM_EXTENT_DATA, 4 * PAGE - 1);
	expect_extent(s, 4 * PAGE, KVMEM_EXTENT_ZERO, 2 * PAGE);
	expect_extent(s, 7 * PAGE, KVMEM_EXTENT_HOLE, PAGE);
	memset(got, 0xee, sizeof(got));
	ck_assert_int_eq(kvmem_source_read(s, 3 * PAGE, got, 3 * PAGE), 0);
	ck_assert_uint_eq(got[PAGE - 1], 3);
	ck_assert(km_is_zero(got + PAGE, 2 * PAGE));

	sc.read_result = -ESTALE;
	ck_assert_int_eq(kvmem_source_read(s, 2 * PAGE, got, 100), -ESTALE);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "0x2000"));
	sc.read_result = 7;
	ck_assert_int_eq(kvmem_source_read(s, 2 * PAGE, got, 100), -EIO);
	sc.odd_extent = 3 * PAGE;
	ck_assert_int_eq(kvmem_source_extent(s, 3 * PAGE, &e), -EINVAL);
	ck_assert_int_eq(kvmem_source_extent(s, 8 * PAGE, &e), -ERANGE);
	ck_assert_int_eq(kvmem_source_extent(NULL, 0, &e), -EINVAL);
	e.size = 3;
	ck_assert_int_eq(kvmem_source_extent(s, 0, &e), -EINVAL);
	ck_assert_int_eq(sc.closed, 0);
	ck_assert_int_eq(kvmem_source_free(s), 0);
	ck_assert_int_eq(sc.closed, 1);
}
END

TEST(a_callback_struct_from_the_future_is_refused)
{
	struct {
		struct kvmem_source_ops ops;
		uint64_t more;
	} big = { .ops = { .size = sizeof(big), .read = script_read }, .more = 1 };
	struct kvmem_source *s = NULL;

	ck_assert_int_eq(kvmem_source_callback(&big.ops, NULL, PAGE, &s), -E2BIG);
	big.more = 0;
	big.ops.flags = 1;
	ck_assert_int_eq(kvmem_source_callback(&big.ops, NULL, PAGE, &s), -EINVAL);
	big.ops.flags = 0;
	big.ops.size = 8;
	ck_assert_int_eq(kvmem_source_callback(&big.ops, NULL, PAGE, &s), -EINVAL);
	big.ops.size = sizeof(big);
	ck_assert_int_eq(kvmem_source_callback(&big.ops, NULL, PAGE, &s), 0);
	ck_assert_int_eq(kvmem_source_free(s), 0);
}
END

/* A callback that answers in short pieces, and counts how often it is asked. */
struct pieces {
	uint64_t piece;
	unsigned long calls;
};

static int piece_extent(void *arg, uint64_t offset, struct kvmem_extent *e)
{
	struct pieces *p = arg;

	p->calls++;
	e->kind = KVMEM_EXTENT_DATA;
	e->offset = offset / p->piece * p->piece;
	e->bytes = p->piece;
	return 0;
}

static int no_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg, (void)offset, (void)buf, (void)bytes;
	return -EIO;
}

TEST(k6_22_one_call_joins_a_bounded_number_of_extents)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_extent e = KVMEM_EXTENT_INIT;
	struct pieces p = { .piece = 64 << 10 };
	struct kvmem_source *s = NULL;

	ops.read = no_read;
	ops.extent = piece_extent;
	ck_assert_int_eq(kvmem_source_callback(&ops, &p, UINT64_C(16) << 30, &s), 0);
	ck_assert_int_eq(kvmem_source_extent(s, 5, &e), 0);
	ck_assert_uint_le(p.calls, 64);
	ck_assert_uint_le(e.offset, 5);
	ck_assert_uint_ge(e.bytes, p.piece - 5);
	p.calls = 0;
	ck_assert_int_eq(km_source_run(s, 0, 3 * p.piece, &e), 0);
	ck_assert_uint_eq(p.calls, 3);
	ck_assert_uint_eq(e.bytes, 3 * p.piece);
	ck_assert_int_eq(kvmem_source_free(s), 0);
}
END

struct freer {
	struct kvmem_source *s;
	int got;
};

static int free_itself(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct freer *f = arg;

	(void)offset;
	memset(buf, 0, bytes);
	f->got = kvmem_source_free(f->s);
	return 0;
}

TEST(k9_27_a_source_is_not_freed_from_its_own_callback)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct freer f = { 0 };
	char byte;

	ops.read = free_itself;
	ck_assert_int_eq(kvmem_source_callback(&ops, &f, PAGE, &f.s), 0);
	ck_assert_int_eq(kvmem_source_read(f.s, 0, &byte, 1), 0);
	ck_assert_int_eq(f.got, -EDEADLK);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "kvmem_source_ops.read"));
	ck_assert_int_eq(kvmem_source_free(f.s), 0);
}
END

/* Memory whose second half has been cut off since. */
static uint8_t *cut_memory(int *fd)
{
	uint8_t *p;

	*fd = memfd_create("source", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(*fd, 32 * PAGE), 0);
	p = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	memset(p, 0x3c, 32 * PAGE);
	ck_assert_int_eq(ftruncate(*fd, 16 * PAGE), 0);
	return p;
}

static int64_t refused_vm_read(void *to, const void *from, size_t len)
{
	(void)to, (void)from, (void)len;
	return -ENOSYS;
}

TEST(k10_30_memory_that_was_cut_short_is_an_error_and_no_signal)
{
	unsigned int fds = harness_count_fds();
	unsigned char got[4 * PAGE];
	struct kvmem_source *s = NULL;
	int fd;
	uint8_t *p = cut_memory(&fd);

	ck_assert_int_eq(kvmem_source_memory(p, 32 * PAGE, &s), 0);
	for (int forbidden = 0; forbidden < 2; forbidden++) {
		fake_reset();
		fake.vm_read = forbidden ? refused_vm_read : NULL;
		memset(got, 0, sizeof(got));
		ck_assert_int_eq(kvmem_source_read(s, 12 * PAGE + 7, got, 3 * PAGE), 0);
		for (size_t i = 0; i < 3 * PAGE; i++)
			ck_assert_uint_eq(got[i], 0x3c);
		ck_assert_uint_eq(got[3 * PAGE], 0);
		ck_assert_int_eq(kvmem_source_read(s, 14 * PAGE, got, 4 * PAGE), -EFAULT);
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "0xe000"));
		ck_assert_int_eq(kvmem_source_read(s, 20 * PAGE, got, 1), -EFAULT);
	}
	fake_reset();
	ck_assert_int_eq(kvmem_source_free(s), 0);
	munmap(p, 32 * PAGE);
	close(fd);
	ck_assert_uint_eq(harness_count_fds(), fds);
}
END

static int64_t old_ioctl(int fd, unsigned long request, void *arg)
{
	(void)fd, (void)request, (void)arg;
	return -ENOTTY;
}

static bool in_place(const void *p, uint64_t offset, uint64_t bytes)
{
	struct kvmem_source *s = NULL;
	bool ret;

	ck_assert_int_eq(kvmem_source_memory(p, 32 * PAGE, &s), 0);
	ret = km_source_in_place(s, offset, bytes);
	ck_assert_int_eq(kvmem_source_free(s), 0);
	return ret;
}

TEST(k10_30_only_private_anonymous_memory_is_read_in_place)
{
	const int rw = PROT_READ | PROT_WRITE;
	uint8_t *a = mmap(NULL, 33 * PAGE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *p, *sh;
	int fd = memfd_create("source", MFD_CLOEXEC);

	ck_assert_int_eq(ftruncate(fd, 32 * PAGE), 0);
	p = mmap(NULL, 32 * PAGE, rw, MAP_PRIVATE, fd, 0);
	sh = mmap(NULL, 32 * PAGE, rw, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	munmap(a + 32 * PAGE, PAGE);
	ck_assert_int_eq(mprotect(a + 8 * PAGE, 4 * PAGE, PROT_READ), 0);
	for (int old = 0; old < 2; old++) {
		fake_reset();
		fake.ioctl = old ? old_ioctl : NULL;
		ck_assert_int_eq(mprotect(a + 20 * PAGE, PAGE, rw), 0);
		ck_assert(in_place(a, 0, 32 * PAGE));
		ck_assert(in_place(a, 5, PAGE));
		ck_assert(!in_place(a, 32 * PAGE - 1, 2)); /* nothing there, or a neighbour */
		ck_assert_int_eq(mprotect(a + 20 * PAGE, PAGE, PROT_NONE), 0);
		ck_assert(!in_place(a, 0, 32 * PAGE));
		ck_assert(in_place(a, 0, 20 * PAGE));
		ck_assert(!in_place(p, 0, PAGE));
		ck_assert(!in_place(sh, 0, PAGE));
		if (old)
			ck_assert_uint_gt(fake.count.read, 0);
	}
	fake_reset();
	munmap(a, 32 * PAGE);
	munmap(p, 32 * PAGE);
	munmap(sh, 32 * PAGE);
	close(fd);
}
END

/* For file systems whose SEEK_HOLE does not tell the truth. */
static int64_t lying_lseek(int fd, uint64_t off, int whence)
{
	return whence == SEEK_DATA ? -ENXIO : km_real_lseek(fd, off, whence);
}

TEST(k12_42_all_of_a_file_can_be_taken_for_data)
{
	struct kvmem_source *s;
	int fd = sparse_file();

	fake_reset();
	fake.lseek = lying_lseek;
	s = file_source(fd, 0, 0);
	expect_extent(s, 2 * PAGE, KVMEM_EXTENT_HOLE, 14 * PAGE); /* which is a lie */
	ck_assert_int_eq(kvmem_source_free(s), 0);
	fake_reset();
	ck_assert_int_eq(kvmem_source_file(fd, PAGE, 0, KVMEM_SOURCE_ALL_DATA, &s), 0);
	expect_extent(s, 0, KVMEM_EXTENT_DATA, 15 * PAGE);
	expect_extent(s, 5 * PAGE + 1, KVMEM_EXTENT_DATA, 10 * PAGE - 1);
	ck_assert_uint_eq(fake.count.lseek, 0);
	ck_assert_int_eq(kvmem_source_free(s), 0);
	close(fd);
}
END

TEST(k12_40_a_borrowed_file_is_neither_opened_nor_closed)
{
	struct kvmem_source *s;
	int fd = sparse_file(), r;

	fake_reset();
	ck_assert_int_eq(kvmem_source_file(fd, 0, 0, KVMEM_SOURCE_BORROW, &s), 0);
	ck_assert_uint_eq(fake.count.open + fake.count.dup, 0);
	ck_assert_int_eq(s->fd, fd);
	ck_assert(s->flags & KVMEM_SOURCE_BUFFERED); /* which keeps populate from opening it */
	ck_assert_int_eq(kvmem_source_free(s), 0);
	ck_assert_int_ge(fcntl(fd, F_GETFD), 0);
	r = kvmem_source_file(fd, 0, 17 * PAGE, KVMEM_SOURCE_BORROW, &s);
	ck_assert_int_eq(r, -ENODATA);
	ck_assert_int_ge(fcntl(fd, F_GETFD), 0);
	close(fd);
}
END

/* What fails behind the run asked for is no failure of the call. */
TEST(k2_13_a_run_that_ends_at_a_failure_leaves_the_detail)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct script sc = { .odd_extent = 2 * PAGE };
	struct kvmem_source *s = NULL;

	ops.read = script_read;
	ops.extent = script_extent;
	ck_assert_int_eq(kvmem_source_callback(&ops, &sc, 8 * PAGE, &s), 0);
	km_fail(EPERM, "before");
	expect_extent(s, 0, KVMEM_EXTENT_DATA, 2 * PAGE);
	ck_assert_str_eq(kvmem_error_detail(), "before");
	ck_assert_int_eq(kvmem_source_free(s), 0);
}
END

HARNESS_MAIN(T(extents_of_a_file_are_clipped_to_the_source),
	     T(the_file_position_of_the_caller_stays), T(without_proc_a_duplicate_serves),
	     T(a_file_system_without_holes_is_all_data), T(a_file_that_shrank_is_no_data),
	     T(short_reads_go_on_and_errors_come_through), T(bad_files_are_refused),
	     T(nothing_leaks_whichever_call_fails), T(memory_is_read_where_it_lies),
	     T(a_source_in_use_is_busy), T(callbacks_give_content_extents_and_errors),
	     T(k12_42_all_of_a_file_can_be_taken_for_data),
	     T(k12_40_a_borrowed_file_is_neither_opened_nor_closed),
	     T(k2_13_a_run_that_ends_at_a_failure_leaves_the_detail),
	     T(a_callback_struct_from_the_future_is_refused),
	     T(k6_22_one_call_joins_a_bounded_number_of_extents),
	     T(k9_27_a_source_is_not_freed_from_its_own_callback),
	     T(k10_30_memory_that_was_cut_short_is_an_error_and_no_signal),
	     T(k10_30_only_private_anonymous_memory_is_read_in_place))
