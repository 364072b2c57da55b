// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Files of others: what is looked at is not changed, and what is taken over is taken over right. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE  4096ul
#define PAGES 64ul
#define BYTES (PAGES * PAGE)

static struct kvmem_vm *vm;
static struct kvmem_region *ram;

static void ok(int r)
{
	ck_assert_msg(r >= 0, "%d: %s", r, kvmem_error_detail());
}

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

static int create(struct kvmem_region_opts o)
{
	o.size = sizeof(o);
	if (!o.bytes)
		o.bytes = BYTES;
	return kvmem_region_create(vm, &o, &ram);
}

#define CREATE(...) create((struct kvmem_region_opts){ __VA_ARGS__ })

static int plan(struct kvmem_region_opts o)
{
	struct kvmem_plan p = KVMEM_PLAN_INIT;

	o.size = sizeof(o);
	o.bytes = BYTES;
	return kvmem_region_plan(vm, &o, &p);
}

static bool open_vm(void)
{
	if (kvmem_vm_create(NULL, &vm)) {
		harness_skip("kvm", "%s", kvmem_error_detail());
		return false;
	}
	return true;
}

static int memfd(unsigned int flags)
{
	int fd = memfd_create("theirs", MFD_CLOEXEC | flags);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)BYTES), 0);
	return fd;
}

static uint64_t missing(void)
{
	struct kvmem_run run = { .bytes = 0 };
	uint64_t n = 0;

	for (uint64_t at = 0; kvmem_region_next_missing(ram, at, &run) == 1;
	     at = run.offset + run.bytes)
		n += run.bytes / PAGE;
	return n;
}

/* ---- what is refused stays as it is ---- */

static const char *const dirs[] = { ".", "/var/tmp", "/tmp", "/dev/shm" };

/* A file without a name, full of 0x5a, whose position is at its second page. */
static int file_in(const char *dir, int flags)
{
	int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
	unsigned char *buf = aligned_alloc(PAGE, BYTES);

	if (fd >= 0) {
		memset(buf, 0x5a, BYTES);
		ck_assert_int_eq(pwrite(fd, buf, BYTES, 0), (ssize_t)BYTES);
		ck_assert_int_eq(lseek(fd, PAGE, SEEK_SET), (off_t)PAGE);
	}
	free(buf);
	return fd;
}

static void expect_untouched(int fd, const struct stat *before)
{
	unsigned char *buf = aligned_alloc(PAGE, BYTES);
	struct stat now;

	ck_assert_int_eq(lseek(fd, 0, SEEK_CUR), (off_t)PAGE);
	ck_assert_int_eq(fstat(fd, &now), 0);
	ck_assert_int_eq(now.st_size, before->st_size);
	ck_assert_int_eq(now.st_blocks, before->st_blocks);
	ck_assert(now.st_mtim.tv_sec == before->st_mtim.tv_sec &&
		  now.st_mtim.tv_nsec == before->st_mtim.tv_nsec);
	ck_assert_int_eq(pread(fd, buf, BYTES, 0), (ssize_t)BYTES);
	for (size_t i = 0; i < BYTES; i++)
		ck_assert_msg(buf[i] == 0x5a, "byte %zu is 0x%x", i, buf[i]);
	free(buf);
}

static unsigned int check_refused(int flags)
{
	unsigned int tried = 0;

	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		int fd = file_in(dirs[i], flags);
		struct statfs fs;
		struct stat st;

		if (fd < 0)
			continue;
		ck_assert_int_eq(fstatfs(fd, &fs), 0);
		ck_assert_int_eq(fstat(fd, &st), 0);
		tried++;
		if (fs.f_type == 0x01021994) { /* tmpfs, which is taken: refused for its length */
			failed(ERANGE, "fd",
			       CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .bytes = 2 * BYTES));
			ok(plan((struct kvmem_region_opts){ .flags = KVMEM_REGION_FD, .fd = fd }));
		} else {
			failed(EBADF, "neither", CREATE(.flags = KVMEM_REGION_FD, .fd = fd));
			failed(EBADF, "neither",
			       plan((struct kvmem_region_opts){ .flags = KVMEM_REGION_FD,
								.fd = fd }));
		}
		expect_untouched(fd, &st);
		close(fd);
	}
	return tried;
}

TEST(k12_36_no_byte_of_a_refused_file_changes)
{
	SKIP_IF(!check_refused(0), "files", "no file system takes an O_TMPFILE");
}
END

/* ext4 and xfs take a hole of one byte, and a read at an odd offset is EINVAL as of a guest_memfd. */
TEST(k12_36_no_byte_of_a_refused_o_direct_file_changes)
{
	SKIP_IF(!check_refused(O_DIRECT), "o-direct", "no file system takes O_DIRECT");
}
END

TEST(k12_36_adopting_moves_no_position)
{
	int fd = memfd(0);

	ck_assert_int_eq(pwrite(fd, "x", 1, 3 * PAGE), 1);
	ck_assert_int_eq(lseek(fd, 777, SEEK_SET), 777);
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = fd));
	ck_assert_uint_eq(missing(), PAGES - 1);
	ck_assert_int_eq(lseek(fd, 0, SEEK_CUR), 777);
	ok(kvmem_region_free(ram));
	close(fd);
}
END

/* ---- descriptors ---- */

TEST(k12_37_no_descriptor_stays_open_across_exec)
{
	static const uint32_t kinds[] = { KVMEM_BACKING_GUEST_MEMFD, KVMEM_BACKING_MEMFD };

	if (!open_vm())
		return;
	for (size_t i = 0; i < 2; i++) {
		if (CREATE(.backing = kinds[i])) {
			harness_note("%s", kvmem_error_detail());
			continue;
		}
		ck_assert_int_eq(fcntl(kvmem_region_fd(ram), F_GETFD), FD_CLOEXEC);
		ok(kvmem_region_free(ram));
	}
	ok(kvmem_vm_free(vm));
	vm = NULL;
}
END

/* pwrite() to a descriptor with O_APPEND ignores the offset. */
TEST(k12_38_o_append_is_not_inherited)
{
	int fd = memfd(0), appending;
	unsigned char *content = malloc(BYTES);
	struct kvmem_source *s;
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	appending = open(path, O_RDWR | O_APPEND | O_CLOEXEC);
	ck_assert_int_ge(appending, 0);
	for (size_t i = 0; i < BYTES; i++)
		content[i] = (unsigned char)(i / PAGE + 1);
	ok(kvmem_source_memory(content, BYTES, &s));
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = appending));
	ck_assert(!(fcntl(kvmem_region_fd(ram), F_GETFL) & O_APPEND));
	ok(kvmem_populate(ram, 0, s, NULL, NULL));
	ck_assert_mem_eq(kvmem_region_base(ram), content, BYTES);
	ck_assert_int_eq(lseek(fd, 0, SEEK_END), (off_t)BYTES);
	ok(kvmem_region_free(ram));
	ok(kvmem_source_free(s));
	free(content);
	close(appending);
	close(fd);
}
END

/* ---- seals ---- */

static int seals_of(int fd)
{
	return fcntl(fd, F_GET_SEALS);
}

TEST(k12_39_a_memfd_cannot_be_cut_short)
{
	ok(CREATE(.backing = KVMEM_BACKING_MEMFD));
	ck_assert_int_eq(seals_of(kvmem_region_fd(ram)), F_SEAL_SHRINK | F_SEAL_GROW);
	ck_assert_int_eq(ftruncate(kvmem_region_fd(ram), 0), -1);
	ck_assert_int_eq(ftruncate(kvmem_region_fd(ram), 2 * BYTES), -1);
	ck_assert_int_eq(fcntl(kvmem_region_fd(ram), F_ADD_SEALS, F_SEAL_SEAL), 0);
	ok(kvmem_region_free(ram));

	ok(CREATE(.backing = KVMEM_BACKING_MEMFD, .seals = KVMEM_SEAL_SEAL));
	ck_assert_int_eq(seals_of(kvmem_region_fd(ram)), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	ok(kvmem_region_discard(ram, 0, BYTES));
	ok(kvmem_region_free(ram));

	ok(CREATE(.backing = KVMEM_BACKING_MEMFD, .seals = KVMEM_SEAL_NONE));
	ck_assert_int_eq(seals_of(kvmem_region_fd(ram)), 0);
	ck_assert_int_eq(ftruncate(kvmem_region_fd(ram), 2 * BYTES), 0);
	ok(kvmem_region_free(ram));
}
END

TEST(k12_39_a_file_given_is_sealed_when_asked)
{
	int fd = memfd(MFD_ALLOW_SEALING), other = memfd(0);

	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = fd));
	ck_assert_int_eq(seals_of(fd), 0);
	ok(kvmem_region_free(ram));
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .seals = KVMEM_SEAL_SHRINK));
	ck_assert_int_eq(seals_of(fd), F_SEAL_SHRINK);
	ok(kvmem_region_free(ram));
	failed(EPERM, "MFD_ALLOW_SEALING",
	       CREATE(.flags = KVMEM_REGION_FD, .fd = other, .seals = KVMEM_SEAL_SHRINK));
	close(fd);
	close(other);
}
END

/* A seal cannot be taken off again: what fails has added none. */
static int has_no_room(void *arg)
{
	const struct rlimit limit = { 1 << 20, 1 << 20 };
	int fd = *(int *)arg;

	if (setrlimit(RLIMIT_AS, &limit))
		return 1;
	if (CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .seals = KVMEM_SEAL_SHRINK) != -ENOMEM)
		return 2;
	return seals_of(fd);
}

TEST(what_is_refused_is_not_sealed)
{
	int fd = memfd(MFD_ALLOW_SEALING);

	ck_assert_int_eq(harness_child(has_no_room, &fd), 0);
	close(fd);
}
END

TEST(k14_48_a_file_sealed_against_writing_is_named)
{
	int fd = memfd(MFD_ALLOW_SEALING);

	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, 0x10), 0); /* F_SEAL_FUTURE_WRITE */
	failed(EPERM, "F_SEAL_FUTURE_WRITE", CREATE(.flags = KVMEM_REGION_FD, .fd = fd));
	failed(EPERM, "F_SEAL_FUTURE_WRITE",
	       plan((struct kvmem_region_opts){ .flags = KVMEM_REGION_FD, .fd = fd }));
	close(fd);
}
END

/* ---- locks ---- */

static const struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
static int image;

/* In a child: does this program's lock keep it out? */
static int is_locked(void *arg)
{
	struct flock l = whole;

	(void)arg;
	return fcntl(image, F_GETLK, &l) ? 2 : l.l_type != F_UNLCK;
}

static void use_source(uint32_t flags)
{
	unsigned char buf[PAGE];
	struct kvmem_source *s;

	ok(kvmem_source_file(image, 0, 0, flags, &s));
	ok(kvmem_source_read(s, 0, buf, sizeof(buf)));
	ck_assert_uint_eq(buf[0], 'x');
	ok(CREATE(.backing = KVMEM_BACKING_MEMFD));
	ok(kvmem_populate(ram, 0, s, NULL, NULL));
	ok(kvmem_region_free(ram));
	ok(kvmem_source_free(s));
}

/* False where the kernel was built without file locks. */
static bool lock_image(struct flock *l)
{
	int r = fcntl(image, F_SETLK, l);

	if (r && (errno == EACCES || errno == EINVAL)) { /* nobody else can have it locked */
		harness_skip("file-locks", "this kernel has no record locks");
		return false;
	}
	ck_assert_int_eq(r, 0);
	return true;
}

TEST(k12_40_record_locks_outlive_a_borrowed_image)
{
	struct flock l = whole;

	image = memfd(0);
	ck_assert_int_eq(pwrite(image, "x", 1, 0), 1);
	if (!lock_image(&l))
		return;
	ck_assert_int_eq(harness_child(is_locked, NULL), 1);
	use_source(KVMEM_SOURCE_BORROW);
	ck_assert_int_eq(harness_child(is_locked, NULL), 1);
	/* Without, the kernel drops it at the library's close: kvmem_source(3) says so. */
	use_source(0);
	ck_assert_int_eq(harness_child(is_locked, NULL), 0);
	/* Locks of the open file description stay. */
	l = whole;
	ck_assert_int_eq(fcntl(image, F_OFD_SETLK, &l), 0);
	use_source(0);
	ck_assert_int_eq(harness_child(is_locked, NULL), 1);
	close(image);
}
END

/* What is refused is refused before the library opens the file, whose closing would drop the lock. */
TEST(k12_40_record_locks_outlive_a_refused_call)
{
	struct kvmem_region *first;
	struct flock l = whole;
	struct kvmem_source *s;

	image = memfd(0);
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = image));
	first = ram;
	if (!lock_image(&l))
		return;
	failed(EBUSY, "another region", CREATE(.flags = KVMEM_REGION_FD, .fd = image));
	failed(EPERM, "MFD_ALLOW_SEALING",
	       CREATE(.flags = KVMEM_REGION_FD | KVMEM_REGION_OVERLAP, .fd = image,
		      .seals = KVMEM_SEAL_SHRINK));
	failed(ERANGE, "fd", CREATE(.flags = KVMEM_REGION_FD, .fd = image, .bytes = 2 * BYTES));
	failed(ENODATA, "too short", kvmem_source_file(image, 0, 2 * BYTES, 0, &s));
	failed(EINVAL, "overflows", kvmem_source_file(image, PAGE, UINT64_MAX - 1, 0, &s));
	ck_assert_int_eq(harness_child(is_locked, NULL), 1);
	ok(kvmem_region_free(first)); /* the manual says so */
	ck_assert_int_eq(harness_child(is_locked, NULL), 0);
	close(image);
}
END

TEST(k12_40_what_is_borrowed_stays_open)
{
	unsigned int fds = harness_count_fds();
	struct kvmem_source *s;
	char path[32];
	int direct;

	image = memfd(0);
	ck_assert_int_eq(pwrite(image, "x", 1, 5 * PAGE), 1);
	ck_assert_int_eq(lseek(image, 99, SEEK_SET), 99);
	ok(kvmem_source_file(image, 0, 0, KVMEM_SOURCE_BORROW | KVMEM_SOURCE_ALL_DATA, &s));
	ck_assert_uint_eq(harness_count_fds(), fds + 1);
	ok(kvmem_source_read(s, 5 * PAGE, path, 1));
	ck_assert_int_eq(path[0], 'x');
	ck_assert_int_eq(lseek(image, 0, SEEK_CUR), 99);
	ok(kvmem_source_free(s));
	ck_assert_int_ge(fcntl(image, F_GETFD), 0);
	close(image);
	direct = file_in(".", O_DIRECT);
	SKIP_IF(direct < 0, "o-direct", "no O_DIRECT in the working directory");
	failed(EINVAL, "O_DIRECT", kvmem_source_file(direct, 0, 0, KVMEM_SOURCE_BORROW, &s));
	ck_assert_int_ge(fcntl(direct, F_GETFD), 0);
	close(direct);
}
END

/* ---- two regions over one file ---- */

TEST(k12_41_a_second_region_over_the_same_bytes_is_refused)
{
	struct kvmem_region *first;
	int fd = memfd(0);
	char path[32];
	int again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .bytes = 8 * PAGE, .fd_offset = 8 * PAGE));
	first = ram;
	failed(EBUSY, "KVMEM_REGION_OVERLAP",
	       CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .bytes = 9 * PAGE));
	failed(EBUSY, "0x8000",
	       CREATE(.flags = KVMEM_REGION_FD, .fd = again, .bytes = PAGE,
		      .fd_offset = 15 * PAGE));
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = again, .bytes = 8 * PAGE));
	ok(kvmem_region_free(ram));
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .bytes = PAGE, .fd_offset = 16 * PAGE));
	ok(kvmem_region_free(ram));
	ok(CREATE(.flags = KVMEM_REGION_FD | KVMEM_REGION_OVERLAP, .fd = fd));
	ok(kvmem_region_free(first));
	failed(EBUSY, "another region", CREATE(.flags = KVMEM_REGION_FD, .fd = fd));
	ok(kvmem_region_free(ram));
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = fd));
	ok(kvmem_region_free(ram));
	close(again);
	close(fd);
}
END

TEST(k12_41_a_file_that_the_library_made_is_known_too)
{
	struct kvmem_region *first;

	if (!open_vm())
		return;
	ok(CREATE(.backing = KVMEM_BACKING_MEMFD));
	first = ram;
	failed(EBUSY, "another region",
	       CREATE(.flags = KVMEM_REGION_FD, .fd = kvmem_region_fd(first)));
	ok(kvmem_region_free(first));
	if (!CREATE(.backing = KVMEM_BACKING_GUEST_MEMFD)) {
		first = ram;
		failed(EBUSY, "another region",
		       CREATE(.flags = KVMEM_REGION_FD, .fd = kvmem_region_fd(first)));
		ok(kvmem_region_free(first));
	}
	ok(kvmem_vm_free(vm));
	vm = NULL;
}
END

/* ---- content ---- */

static void fill_all(void)
{
	unsigned char *content = malloc(BYTES);
	struct kvmem_source *s;

	for (size_t i = 0; i < BYTES; i++) /* a page of zeros among them */
		content[i] = (unsigned char)(i / PAGE);
	ok(kvmem_source_memory(content, BYTES, &s));
	ok(kvmem_populate(ram, 0, s, NULL, NULL));
	ck_assert_mem_eq(kvmem_region_base(ram), content, BYTES);
	ok(kvmem_source_free(s));
	free(content);
}

TEST(k11_35_a_file_that_has_all_its_pages_can_be_filled)
{
	int fd = memfd(0);

	for (size_t at = 0; at < BYTES; at += PAGE)
		ck_assert_int_eq(pwrite(fd, "old", 3, (off_t)at), 3);
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = fd));
	ck_assert_uint_eq(missing(), 0); /* all that exists counts */
	ok(kvmem_region_free(ram));
	ok(CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .content = KVMEM_CONTENT_IGNORE));
	ck_assert_uint_eq(missing(), PAGES);
	fill_all();
	ck_assert_uint_eq(missing(), 0);
	ok(kvmem_region_free(ram));
	close(fd);
}
END

/* Of a tmpfs of its own, whose folios are of 2 MiB. */
static int huge_folio(void *arg)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	const uint64_t bytes = 2ul << 20;
	struct stat st;
	int fd;

	(void)arg;
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("none", "/tmp", "tmpfs", 0, "huge=always"))
		return 77;
	fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) || pwrite(fd, "x", 1, 5 * PAGE) != 1 ||
	    fstat(fd, &st) || (uint64_t)st.st_blocks * 512 != bytes)
		return 77;
	o.flags = KVMEM_REGION_FD;
	o.fd = fd;
	o.bytes = bytes;
	if (kvmem_region_create(NULL, &o, &ram) || missing() != 0 || kvmem_region_free(ram))
		return 1;
	o.content = KVMEM_CONTENT_IGNORE;
	if (kvmem_region_create(NULL, &o, &ram) || missing() != bytes / PAGE)
		return 2;
	return kvmem_region_free(ram) ? 3 : 0;
}

TEST(k11_35_one_byte_in_a_huge_folio)
{
	int r;

	SKIP_IF(geteuid(), "root", "only root can mount a tmpfs");
	r = harness_child(huge_folio, NULL);
	SKIP_IF(r == 77, "own-machine", "no tmpfs of huge folios");
	ck_assert_int_eq(r, 0);
}
END

HARNESS_MAIN(T(k12_36_no_byte_of_a_refused_file_changes),
	     T(k12_36_no_byte_of_a_refused_o_direct_file_changes),
	     T(k12_36_adopting_moves_no_position), T(k12_37_no_descriptor_stays_open_across_exec),
	     T(k12_38_o_append_is_not_inherited), T(k12_39_a_memfd_cannot_be_cut_short),
	     T(k12_39_a_file_given_is_sealed_when_asked), T(what_is_refused_is_not_sealed),
	     T(k14_48_a_file_sealed_against_writing_is_named),
	     T(k12_40_record_locks_outlive_a_borrowed_image), T(k12_40_what_is_borrowed_stays_open),
	     T(k12_40_record_locks_outlive_a_refused_call),
	     T(k12_41_a_second_region_over_the_same_bytes_is_refused),
	     T(k12_41_a_file_that_the_library_made_is_known_too),
	     T(k11_35_a_file_that_has_all_its_pages_can_be_filled),
	     T(k11_35_one_byte_in_a_huge_folio))
