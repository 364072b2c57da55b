// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Fill from files: every way in, onto every backing, and with io_uring forbidden. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fill_rig.h"

#define BYTES (UINT64_C(8) << 20)

static struct kvmem_source *file_source(int fd, uint64_t bytes, uint32_t flags)
{
	struct kvmem_source *s = NULL;

	ck_assert_msg(!kvmem_source_file(fd, 0, bytes, flags, &s), "%s", kvmem_error_detail());
	return s;
}

static uint64_t hole_bytes(void)
{
	uint64_t sum = 0;

	for (uint64_t p = 0; p < BYTES / PAGE; p++)
		sum += fill_is_hole(p) ? PAGE : 0;
	return sum;
}

/* Some file systems keep no holes. */
static bool knows_holes(struct kvmem_source *s)
{
	struct kvmem_extent e = KVMEM_EXTENT_INIT;

	return !kvmem_source_extent(s, 0, &e) && e.bytes < BYTES;
}

static void drop_cache(int fd)
{
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

static void each_way(uint32_t backing)
{
	struct fill_region fr;
	int fd = fill_file(BYTES);

	SKIP_IF(fd < 0, "files", "no file can be made in the current directory");
	for (uint32_t way = KVMEM_FILE_AUTO; way <= KVMEM_FILE_PREAD; way++) {
		struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
		struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
		struct kvmem_source *s = file_source(fd, 0, 0);
		unsigned int fds = harness_count_fds();
		int r;

		if (!fill_region_open(&fr, backing, BYTES)) {
			kvmem_source_free(s);
			break;
		}
		drop_cache(fd);
		o.file_method = way;
		r = kvmem_populate(fr.region, 0, s, &o, &res);
		if (r == -EOPNOTSUPP && way) {
			harness_note("%s: %s", fill_backing_name(backing), kvmem_error_detail());
		} else {
			ck_assert_msg(!r, "%d: %s", r, kvmem_error_detail());
			ck_assert_uint_eq(fill_sum(&res), BYTES);
			if (knows_holes(s) && kvmem_region_page_size(fr.region) <= 16 * PAGE)
				ck_assert_uint_eq(res.bytes_hole, hole_bytes());
			if (way)
				ck_assert_uint_eq(res.file_method, way);
			harness_note("%s by %s, asked for %s", fill_backing_name(backing),
				     kvmem_file_method_name(res.file_method),
				     kvmem_file_method_name(way));
			fill_expect(&fr, 0, 0, BYTES);
		}
		fill_region_close(&fr);
		ck_assert_uint_eq(harness_count_fds(), fds);
		ck_assert_int_eq(kvmem_source_free(s), 0);
	}
	close(fd);
}

TEST(into_guest_memfd)
{
	each_way(KVMEM_BACKING_GUEST_MEMFD);
}
END

TEST(into_memfd)
{
	each_way(KVMEM_BACKING_MEMFD);
}
END

TEST(into_hugetlb)
{
	each_way(KVMEM_BACKING_HUGETLB);
}
END

TEST(into_anonymous_memory)
{
	each_way(KVMEM_BACKING_ANONYMOUS);
}
END

TEST(odd_places_of_a_file)
{
	static const uint64_t places[][3] = { { 1, 3, 5 * PAGE },
					      { 4096, 512, 100 * PAGE },
					      { 0, 0, BYTES - 1 },
					      { 77, 77, 200 * PAGE } };
	int fd = fill_file(BYTES);

	SKIP_IF(fd < 0, "files", "no file can be made in the current directory");
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
		struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
		struct kvmem_source *s = file_source(fd, 0, 0);
		struct fill_region fr;

		ck_assert(fill_region_open(&fr, KVMEM_BACKING_MEMFD, BYTES));
		drop_cache(fd);
		o.source_offset = places[i][1];
		o.bytes = places[i][2];
		ck_assert_int_eq(kvmem_populate(fr.region, places[i][0], s, &o, &res), 0);
		ck_assert_uint_eq(fill_sum(&res), o.bytes);
		fill_expect(&fr, places[i][0], places[i][1], places[i][2]);
		fill_region_close(&fr);
		ck_assert_int_eq(kvmem_source_free(s), 0);
	}
	close(fd);
}
END

TEST(a_file_shorter_than_asked)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_source *s;
	struct fill_region fr;
	int fd = fill_file(BYTES / 2);

	SKIP_IF(fd < 0, "files", "no file can be made in the current directory");
	s = file_source(fd, 0, 0);
	ck_assert(fill_region_open(&fr, KVMEM_BACKING_MEMFD, BYTES));
	o.bytes = BYTES;
	ck_assert_int_eq(kvmem_populate(fr.region, 0, s, &o, NULL), -ENODATA);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "source has 0x400000"));
	o.bytes = 0; /* as much as there is */
	ck_assert_int_eq(kvmem_populate(fr.region, 0, s, &o, NULL), 0);
	fill_expect(&fr, 0, 0, BYTES / 2);
	fill_region_close(&fr);
	ck_assert_int_eq(kvmem_source_free(s), 0);
	close(fd);
}
END

/* ---- io_uring that is not to be had, in a child ---- */

static int deny_io_uring(int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned int)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) ? -errno : 0;
}

struct child {
	int fd;
	int deny;      /* errno that io_uring_setup() is made to give */
	bool memlock;  /* or: no locked memory at all, no privilege */
	bool disabled; /* or: io_uring disabled on this machine */
};

#define CHILD_SKIP 77

static int fill_in_child(void *arg)
{
	struct child *c = arg;
	struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct rlimit none = { 0, 0 };
	struct kvmem_source *s;
	struct fill_region fr;

	if (!fill_region_open(&fr, KVMEM_BACKING_MEMFD, BYTES) ||
	    kvmem_source_file(c->fd, 0, 0, 0, &s))
		return 1;
	if (c->deny && deny_io_uring(c->deny))
		return CHILD_SKIP;
	if (c->memlock && (setrlimit(RLIMIT_MEMLOCK, &none) || (!geteuid() && setuid(65534))))
		return CHILD_SKIP;
	drop_cache(c->fd);
	o.file_method = KVMEM_FILE_URING;
	if ((c->deny || c->disabled) && (kvmem_populate(fr.region, 0, s, &o, NULL) != -EOPNOTSUPP ||
					 !strstr(kvmem_error_detail(), "seccomp")))
		return 2;
	if (kvmem_populate(fr.region, 0, s, NULL, &res) || fill_sum(&res) != BYTES)
		return 3;
	if ((c->deny || c->disabled) && res.bytes_read)
		return 4;
	fill_expect(&fr, 0, 0, BYTES);
	fill_region_close(&fr);
	return kvmem_source_free(s) ? 5 : 0;
}

static void run_child(struct child *c)
{
	int r;

	c->fd = fill_file(BYTES);
	SKIP_IF(c->fd < 0, "files", "no file can be made in the current directory");
	r = harness_child(fill_in_child, c);
	close(c->fd);
	SKIP_IF(r == CHILD_SKIP, "seccomp", "the child could not be limited");
	ck_assert_int_eq(r, 0);
}

TEST(io_uring_forbidden_by_seccomp)
{
	run_child(&(struct child){ .deny = EPERM });
}
END

TEST(io_uring_unknown_to_seccomp)
{
	run_child(&(struct child){ .deny = ENOSYS });
}
END

#define DISABLED "/proc/sys/kernel/io_uring_disabled"

static bool set_disabled(char value)
{
	int fd = open(DISABLED, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && pwrite(fd, &value, 1, 0) == 1;

	if (fd >= 0)
		close(fd);
	return done;
}

/* For the whole machine, so only on one that is the tests' own. */
TEST(io_uring_disabled_by_sysctl)
{
	SKIP_IF(!getenv("KVMEM_TEST_RIG") || !set_disabled('2'), "own-machine",
		"kernel.io_uring_disabled is of the whole machine, or not there (before Linux 6.6)");
	run_child(&(struct child){ .disabled = true });
	ck_assert(set_disabled('0'));
}
END

TEST(no_locked_memory)
{
	run_child(&(struct child){ .memlock = true });
}
END

HARNESS_MAIN(T(into_guest_memfd), T(into_memfd), T(into_hugetlb), T(into_anonymous_memory),
	     T(odd_places_of_a_file), T(a_file_shorter_than_asked),
	     T(io_uring_forbidden_by_seccomp), T(io_uring_unknown_to_seccomp),
	     T(io_uring_disabled_by_sysctl), T(no_locked_memory))
