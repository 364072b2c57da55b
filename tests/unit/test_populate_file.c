// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Files straight into guest memory: reads in flight, short and failing ones, refusals, fallbacks. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fill_rig.h"

#define DIR_ON_DISK "/var/tmp"

static _Atomic unsigned int completion;

/* What the kernel is made to say of the n-th read that completes. */
static struct {
	unsigned int at;
	int res;
} tamper;

static int64_t tampered_wait(struct io_uring *ring, struct io_uring_cqe **ret)
{
	int64_t r = km_real_uring_wait(ring, ret);

	if (r >= 0 && (++completion == tamper.at || tamper.at == UINT32_MAX))
		(*ret)->res = tamper.res;
	return r;
}

static int file_init(struct rig *g, uint32_t file_method, const char *dir)
{
	int fd;

	rig_init(g, RIG_MEMFD, 0);
	fd = rig_content_file(g, dir);
	ck_assert_int_ge(fd, 0);
	rig_file_source(g, fd);
	g->opts.file_method = file_method;
	g->opts.chunk_bytes = 4 * PAGE; /* more reads than fit in flight */
	completion = 0;
	tamper.at = 0;
	fake.uring_wait = tampered_wait;
	return fd;
}

static bool no_ring(void)
{
	struct io_uring_params p = { 0 };
	struct io_uring ring;

	if (km_real_uring_init(4, &ring, &p) < 0)
		return true;
	km_sys_uring_exit(&ring);
	return false;
}

#define NEED_RING() SKIP_IF(no_ring(), "io-uring", "no ring to be had here")

TEST(io_uring_brings_the_file_in)
{
	struct rig g;
	int fd;

	NEED_RING();
	for (unsigned int threads = 1; threads <= 3; threads++) {
		fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
		g.opts.threads = threads;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_eq(g.res.file_method, KVMEM_FILE_URING);
		ck_assert_uint_gt(g.res.bytes_read, 0);
		ck_assert_uint_eq(g.res.bytes_copied + g.res.bytes_written, 0);
		ck_assert_uint_gt(g.res.bytes_zero, 0);
		ck_assert_uint_eq(g.res.bytes_hole, 16 * PAGE);
		for (unsigned int p = 0; p < PAGES; p++)
			ck_assert_int_eq(rig_allocated(&g, p),
					 !km_is_zero(g.content + p * PAGE, PAGE));
		rig_expect(&g);
		close(fd);
		rig_free(&g);
	}
}
END

TEST(unaligned_ranges_of_a_file)
{
	static const uint64_t ranges[][3] = { { 0, 0, 10 * PAGE + 3 },
					      { 5, 5, 20 * PAGE },
					      { 7, 4, 9 * PAGE },
					      { 0, 512, 40 * PAGE } };
	struct rig g;
	int fd;

	NEED_RING();
	for (size_t i = 0; i < KM_ARRAY_SIZE(ranges); i++) {
		fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
		g.opts.source_offset = ranges[i][1];
		g.opts.bytes = ranges[i][2];
		ck_assert_int_eq(rig_populate(&g, ranges[i][0]), 0);
		ck_assert_uint_gt(g.res.bytes_read, 0);
		rig_expect(&g);
		close(fd);
		rig_free(&g);
	}
}
END

TEST(short_reads_and_again_go_on)
{
	static const int res[] = { -EAGAIN, -EINTR };
	struct rig g;
	int fd;

	NEED_RING();
	for (size_t i = 0; i < KM_ARRAY_SIZE(res); i++) {
		fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
		tamper.at = 3;
		tamper.res = res[i];
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		rig_expect(&g);
		close(fd);
		rig_free(&g);
	}
	fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
	tamper.at = UINT32_MAX; /* every read is short, a page takes five */
	tamper.res = 1000;
	g.opts.chunk_bytes = PAGE;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(completion, (PAGES - 16) * 5);
	rig_expect(&g);
	close(fd);
	rig_free(&g);
}
END

TEST(read_errors_come_through)
{
	static const struct {
		int res, want;
	} cases[] = { { -EIO, -EIO }, { 0, -ENODATA }, { -ENOMEM, -ENOMEM } };
	struct rig g;
	int fd;

	NEED_RING();
	for (size_t i = 0; i < KM_ARRAY_SIZE(cases); i++) {
		fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
		tamper.at = 5;
		tamper.res = cases[i].res;
		ck_assert_int_eq(rig_populate(&g, 0), cases[i].want);
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "offset"));
		ck_assert_uint_lt(rig_sum(&g), BYTES);
		tamper.at = 0;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		rig_expect(&g);
		close(fd);
		rig_free(&g);
	}
}
END

/* All of the file is said not to be in the page cache. */
static int64_t all_cold(void *addr, size_t len, unsigned char *vec)
{
	(void)addr;
	memset(vec, 0, (len + PAGE - 1) / PAGE);
	return 0;
}

static int64_t no_direct_open(const char *path, int flags)
{
	return flags & O_DIRECT ? -EINVAL : km_real_open(path, flags);
}

TEST(o_direct_reads_a_cold_file)
{
	struct rig g;
	int fd, r;

	NEED_RING();
	fd = file_init(&g, KVMEM_FILE_DIRECT, DIR_ON_DISK);
	r = rig_populate(&g, 0);
	if (r == -EOPNOTSUPP) {
		close(fd);
		rig_free(&g);
		SKIP("o-direct", "%s", kvmem_error_detail());
	}
	ck_assert_int_eq(r, 0);
	ck_assert_uint_eq(g.res.file_method, KVMEM_FILE_DIRECT);
	ck_assert_uint_gt(g.res.bytes_read, 0);
	rig_expect(&g);
	close(fd);
	rig_free(&g);

	fd = file_init(&g, KVMEM_FILE_AUTO, DIR_ON_DISK);
	fake.mincore = all_cold;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(g.res.file_method, KVMEM_FILE_DIRECT);
	rig_expect(&g);
	close(fd);
	rig_free(&g);
}
END

TEST(a_cached_file_is_copied)
{
	struct rig g;
	int fd = file_init(&g, KVMEM_FILE_AUTO, "/dev/shm");

	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(g.res.file_method, KVMEM_FILE_PREAD);
	ck_assert_uint_eq(fake.count.uring_init, 0);
	rig_expect(&g);
	close(fd);
	rig_free(&g);
}
END

static const void *into; /* where the region lies */

static int64_t fault_pread(int fd, void *buf, size_t len, uint64_t off)
{
	if ((const uint8_t *)buf >= (const uint8_t *)into &&
	    (const uint8_t *)buf < (const uint8_t *)into + BYTES)
		return -EFAULT;
	return km_real_pread(fd, buf, len, off);
}

/* Few zero pages and no write(): straight in; many: through a buffer, so that they are never made. */
TEST(cached_bytes_go_straight_in_unless_rich_in_zeros)
{
	struct rig g;
	int fd;

	for (int kind = RIG_MEMFD; kind <= RIG_ANON; kind++) {
		rig_init(&g, (enum rig_kind)kind, 0);
		for (unsigned int p = 0; p < 128; p++)
			memset(g.content + p * PAGE, (int)p + 1, PAGE);
		fd = rig_content_file(&g, "/dev/shm");
		rig_file_source(&g, fd);
		g.r.plan.write_rev = KVMEM_WRITE_NONE;
		g.opts.chunk_bytes = 16 * PAGE;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_ge(g.res.bytes_read, 128 * PAGE);
		ck_assert_uint_gt(g.res.bytes_copied, 0);
		for (unsigned int p = 0; p < PAGES; p++)
			ck_assert_int_eq(rig_allocated(&g, p),
					 !km_is_zero(g.content + p * PAGE, PAGE));
		rig_expect(&g);

		ck_assert_int_eq(
			madvise(g.r.base, BYTES, kind == RIG_ANON ? MADV_DONTNEED : MADV_REMOVE),
			0);
		km_presence_turn(&g.r.presence, 0, PAGES, KM_PRESENT, KM_ABSENT);
		into = g.r.base;
		fake.pread = fault_pread;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_eq(g.res.bytes_read, 0);
		rig_expect(&g);
		close(fd);
		rig_free(&g);
	}
}
END

TEST(without_o_direct_the_ring_reads_through_the_cache)
{
	struct rig g;
	int fd;

	NEED_RING();
	fd = file_init(&g, KVMEM_FILE_AUTO, DIR_ON_DISK);
	fake.mincore = all_cold;
	fake.open = no_direct_open;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(g.res.file_method, KVMEM_FILE_URING);
	rig_expect(&g);
	g.opts.file_method = KVMEM_FILE_DIRECT;
	ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "O_DIRECT"));
	close(fd);
	rig_free(&g);
}
END

TEST(a_refused_read_falls_back)
{
	static const int res[] = { -EINVAL, -EOPNOTSUPP, -EFAULT };
	struct rig g;
	int fd;

	NEED_RING();
	for (size_t i = 0; i < KM_ARRAY_SIZE(res); i++) {
		fd = file_init(&g, KVMEM_FILE_AUTO, DIR_ON_DISK);
		fake.mincore = all_cold;
		tamper.at = UINT32_MAX;
		tamper.res = res[i];
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_eq(g.res.file_method, KVMEM_FILE_PREAD);
		rig_expect(&g);
		close(fd);
		rig_free(&g);

		fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
		tamper.at = 2;
		tamper.res = res[i];
		ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
		close(fd);
		rig_free(&g);
	}
}
END

static int ring_errno;

static int64_t bad_init(unsigned int entries, struct io_uring *ring, struct io_uring_params *p)
{
	(void)entries, (void)ring, (void)p;
	return -ring_errno;
}

static int64_t bad_submit(struct io_uring *ring)
{
	(void)ring;
	return -ring_errno;
}

TEST(no_ring_means_pread)
{
	static const struct {
		int error;
		const char *says;
	} cases[] = { { EPERM, "kernel.io_uring_disabled" },
		      { ENOSYS, "seccomp" },
		      { ENOMEM, "RLIMIT_MEMLOCK" },
		      { EMFILE, "Too many open files" } };
	struct rig g;
	int fd;

	for (size_t i = 0; i < KM_ARRAY_SIZE(cases); i++) {
		fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
		ring_errno = cases[i].error;
		fake.uring_init = bad_init;
		ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), cases[i].says));
		g.opts.file_method = KVMEM_FILE_AUTO;
		fake.mincore = all_cold;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_eq(g.res.file_method, KVMEM_FILE_PREAD);
		rig_expect(&g);
		close(fd);
		rig_free(&g);
	}
}
END

static unsigned int workers_asked;

static int64_t counts_workers(struct io_uring *ring, unsigned int most)
{
	(void)ring;
	workers_asked = most;
	return ring_errno ? -ring_errno : km_real_uring_workers(ring, most);
}

/* The kernel's threads are limited before anything is read, or there is no ring. */
TEST(threads_of_a_ring_are_limited)
{
	struct rig g;
	int fd;

	NEED_RING();
	fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
	fake.uring_workers = counts_workers;
	g.opts.threads = 1;
	ring_errno = 0;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(fake.count.uring_workers, 0);
	rig_expect(&g);
	close(fd);
	rig_free(&g);
	fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
	fake.uring_workers = counts_workers;
	g.opts.threads = 1;
	g.opts.uring_workers = 2;
	ring_errno = EINVAL;
	ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
	ring_errno = 0;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(workers_asked, 2);
	rig_expect(&g);
	close(fd);
	rig_free(&g);
}
END

TEST(a_ring_that_takes_nothing_means_pread)
{
	struct rig g;
	int fd;

	NEED_RING();
	fd = file_init(&g, KVMEM_FILE_AUTO, DIR_ON_DISK);
	ring_errno = EPERM;
	fake.uring_submit = bad_submit;
	fake.mincore = all_cold;
	g.opts.threads = 2;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(g.res.file_method, KVMEM_FILE_PREAD);
	rig_expect(&g);
	close(fd);
	rig_free(&g);
}
END

static int64_t bad_wait(struct io_uring *ring, struct io_uring_cqe **ret)
{
	(void)ring, (void)ret;
	return -EPERM;
}

TEST(reads_in_flight_are_waited_for_even_so)
{
	struct rig g;
	int fd;

	NEED_RING();
	fd = file_init(&g, KVMEM_FILE_URING, DIR_ON_DISK);
	fake.uring_wait = bad_wait;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	rig_expect(&g);
	close(fd);
	rig_free(&g);
}
END

TEST(ways_that_exclude_each_other)
{
	struct rig g;
	int fd = file_init(&g, KVMEM_FILE_DIRECT, DIR_ON_DISK);
	struct kvmem_source *s;

	g.opts.method = KVMEM_FILL_WRITE;
	ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
	g.opts.method = KVMEM_FILL_AUTO;
	ck_assert_int_eq(kvmem_source_file(fd, 0, 0, KVMEM_SOURCE_BUFFERED, &s), 0);
	ck_assert_int_eq(kvmem_populate(&g.r, 0, s, &g.opts, NULL), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "KVMEM_SOURCE_BUFFERED"));
	ck_assert_int_eq(kvmem_source_free(s), 0);
	close(fd);
	rig_free(&g);
}
END

TEST(a_file_that_shrinks_under_way)
{
	static const uint32_t ways[] = { KVMEM_FILE_PREAD, KVMEM_FILE_URING };
	struct rig g;

	for (size_t i = 0; i < KM_ARRAY_SIZE(ways) - (no_ring() ? 1 : 0); i++) {
		int fd = file_init(&g, ways[i], DIR_ON_DISK);

		ck_assert_int_eq(ftruncate(fd, BYTES / 2 + 100), 0);
		ck_assert_int_eq(rig_populate(&g, 0), -ENODATA);
		ck_assert_uint_gt(rig_sum(&g), 0);
		ck_assert_uint_lt(rig_sum(&g), BYTES);
		close(fd);
		rig_free(&g);
	}
}
END

HARNESS_MAIN(T(io_uring_brings_the_file_in), T(unaligned_ranges_of_a_file),
	     T(short_reads_and_again_go_on), T(read_errors_come_through),
	     T(o_direct_reads_a_cold_file), T(a_cached_file_is_copied),
	     T(cached_bytes_go_straight_in_unless_rich_in_zeros),
	     T(without_o_direct_the_ring_reads_through_the_cache), T(a_refused_read_falls_back),
	     T(no_ring_means_pread), T(threads_of_a_ring_are_limited),
	     T(a_ring_that_takes_nothing_means_pread), T(reads_in_flight_are_waited_for_even_so),
	     T(ways_that_exclude_each_other), T(a_file_that_shrinks_under_way))
