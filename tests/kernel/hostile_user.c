// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A user who has read the manual only, in a process with few rights and small limits, whose files
 * belong to others. Each case is a child of its own: nothing may kill it, hang it, or give it
 * other bytes than its source has, and what fails says so by its code.
 */
#include "harness.h"
#include "prefetch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#include "vmm.h"

#define PAGE  4096ul
#define PAGES 256ul
#define BYTES (PAGES * PAGE)
#define GPA   (UINT64_C(4) << 30)
#define SOME  64ul /* the pages that something is done to: SOME ... 2 * SOME */

static struct kvmem_region *ram;
static struct kvmem_source *source;
static struct kvmem_pager *pager;
static unsigned char *content;
static int image = -1;

/* In a child: the first thing that is not as it should be ends it, and says where. */
#define NEED(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "# line %d: %s: %s\n", __LINE__, #cond, \
				kvmem_error_detail()); \
			return 1; \
		} \
	} while (0)

/* On a disk where there is one. */
static int image_file(void)
{
	static const char *const dirs[] = { "/var/tmp", "/tmp", "." };

	for (unsigned int i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		int fd = open(dirs[i], O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

		if (fd >= 0)
			return fd;
	}
	return memfd_create("image", MFD_CLOEXEC);
}

static void make_content(void)
{
	if (content)
		return;
	content = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert(content != MAP_FAILED);
	for (uint64_t i = 0; i < BYTES / 8; i++)
		((uint64_t *)content)[i] = guest_pattern(77, i);
	image = image_file();
	ck_assert_int_ge(image, 0);
	ck_assert_int_eq(pwrite(image, content, BYTES, 0), (ssize_t)BYTES);
}

static int from_memory(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	memcpy(buf, content + offset, bytes);
	return 0;
}

enum { FILE_SOURCE, MEMORY_SOURCE, CALLBACK_SOURCE, SOURCES };

static int make_source(int kind)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	ops.read = from_memory;
	if (kind == FILE_SOURCE)
		return kvmem_source_file(image, 0, 0, 0, &source);
	if (kind == MEMORY_SOURCE)
		return kvmem_source_memory(content, BYTES, &source);
	return kvmem_source_callback(&ops, NULL, BYTES, &source);
}

static int make_ram(uint32_t backing, int fd)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.bytes = BYTES;
	o.backing = backing;
	o.flags = fd < 0 ? 0 : KVMEM_REGION_FD;
	o.fd = fd;
	o.content = fd < 0 ? KVMEM_CONTENT_KEEP : KVMEM_CONTENT_IGNORE;
	return kvmem_region_create(NULL, &o, &ram);
}

/* By a system call, which says EFAULT where a load would be a signal; by a pipe where the kernel has
 * not the one for it. */
static bool read_page(uint64_t i, unsigned char *page)
{
	char *at = (char *)kvmem_region_base(ram) + i * PAGE;
	struct iovec here = { page, PAGE }, there = { at, PAGE };
	ssize_t n = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
	int ends[2];

	if (n >= 0 || errno != ENOSYS)
		return n == (ssize_t)PAGE;
	if (pipe(ends))
		return false;
	n = write(ends[1], at, PAGE) == (ssize_t)PAGE ? read(ends[0], page, PAGE) : -1;
	close(ends[0]);
	close(ends[1]);
	return n == (ssize_t)PAGE;
}

/* Pages of [from, to) that are not the source's. */
static unsigned int wrong(uint64_t from, uint64_t to)
{
	unsigned char page[PAGE] = { 0 };
	unsigned int n = 0;

	for (uint64_t i = from; i < to; i++)
		n += !read_page(i, page) || memcmp(page, content + i * PAGE, PAGE);
	return n;
}

static int page_in(uint32_t backing, int kind, uint32_t flags)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	int r;

	o.flags = flags;
	r = make_source(kind);
	r = r ? r : make_ram(backing, -1);
	r = r ? r : kvmem_pager_create(&o, &pager);
	r = r ? r : kvmem_pager_add(pager, ram, source, 0, 0);
	r = r ? r : kvmem_pager_start(pager);
	return r;
}

/* Whatever of it there is. */
static int free_all(void)
{
	int r = kvmem_pager_free(pager);

	r = r ? r : kvmem_source_free(source);
	r = r ? r : kvmem_region_free(ram);
	pager = NULL;
	source = NULL;
	ram = NULL;
	return r;
}

/* ---- one system call after the other is refused ---- */

static const struct refused {
	const char *name;
	int number;
	bool needed; /* then calls may fail, cleanly */
} refused[] = {
	{ "userfaultfd", SYS_userfaultfd, false },
	{ "io_uring_setup", SYS_io_uring_setup, false },
	{ "io_uring_enter", SYS_io_uring_enter, false },
	{ "io_uring_register", SYS_io_uring_register, false },
	{ "mbind", SYS_mbind, false },
	{ "get_mempolicy", SYS_get_mempolicy, false },
	{ "set_mempolicy", SYS_set_mempolicy, false },
	{ "move_pages", SYS_move_pages, false },
	{ "process_vm_readv", SYS_process_vm_readv, false },
	{ "preadv2", SYS_preadv2, false },
	{ "cachestat", 451, false },
	{ "mlock2", SYS_mlock2, false },
	{ "pipe2", SYS_pipe2, false },
	{ "fallocate", SYS_fallocate, true },
	{ "memfd_create", SYS_memfd_create, true },
	{ "mincore", SYS_mincore, true },
	{ "madvise", SYS_madvise, true },
	{ "mprotect", SYS_mprotect, true },
	{ "eventfd2", SYS_eventfd2, true },
	{ "epoll_create1", SYS_epoll_create1, true },
	{ "epoll_ctl", SYS_epoll_ctl, true },
	{ "ftruncate", SYS_ftruncate, true },
	{ "pwrite64", SYS_pwrite64, true },
	{ "clone3", SYS_clone3, true },
};

static bool refuse(int number, unsigned int err)
{
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = { sizeof(f) / sizeof(f[0]), f };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p);
}

/* By the mapping itself, where process_vm_readv() is what is refused. */
static bool same(void)
{
	return !memcmp(kvmem_region_base(ram), content, BYTES);
}

static int fill_in_every_way(uint32_t backing, bool must)
{
	for (int kind = 0; kind < SOURCES; kind++) {
		int r = make_source(kind);

		r = r ? r : make_ram(backing, -1);
		r = r ? r : kvmem_populate(ram, 0, source, NULL, NULL);
		NEED(r >= 0 ? same() : !must && *kvmem_error_detail());
		NEED(!free_all());
	}
	for (int kind = 0; kind < SOURCES; kind++) {
		int r = page_in(backing, kind, kind ? KVMEM_PAGER_BACKGROUND : 0);

		r = r ? r : kvmem_pager_stop(pager, KVMEM_STOP_FILL);
		NEED(r >= 0 ? same() : !must && *kvmem_error_detail());
		if (r < 0)
			kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK);
		NEED(!free_all());
	}
	return 0;
}

static const int refusals[] = { EPERM, ENOSYS };

struct refusal {
	const struct refused *what;
	int err;
};

static int under_a_filter(void *arg)
{
	const struct refusal *job = arg;

	NEED(refuse(job->what->number, (unsigned int)job->err));
	NEED(!fill_in_every_way(KVMEM_BACKING_MEMFD, !job->what->needed));
	return fill_in_every_way(KVMEM_BACKING_ANONYMOUS, !job->what->needed);
}

static bool pager_here(void)
{
	int r = kvmem_pager_create(NULL, &pager);

	if (r)
		harness_skip("uffd", "%s", kvmem_error_detail());
	ck_assert_int_eq(kvmem_pager_free(pager), 0);
	pager = NULL;
	return !r;
}

TEST(k14_44_each_system_call_refused)
{
	if (!pager_here())
		return;
	make_content();
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
		for (size_t e = 0; e < 2; e++) {
			struct refusal job = { &refused[i], refusals[e] };
			int status;

			/* The device may be missing; then the system call is needed. */
			if (refused[i].number == SYS_userfaultfd &&
			    access("/dev/userfaultfd", R_OK | W_OK))
				continue;
			status = harness_child(under_a_filter, &job);
			ck_assert_msg(!status, "%s: %s: status %d", refused[i].name,
				      strerror(job.err), status);
		}
}
END

/* ---- limits ---- */

static int with_few_files(void *arg)
{
	rlim_t most = *(rlim_t *)arg;
	const struct rlimit limit = { most, most };

	NEED(!setrlimit(RLIMIT_NOFILE, &limit));
	return fill_in_every_way(KVMEM_BACKING_MEMFD, false);
}

static int with_little_address_space(void *arg)
{
	struct rlimit limit;
	unsigned long pages;
	char line[100];
	FILE *f = fopen("/proc/self/statm", "r");

	NEED(f && fgets(line, sizeof(line), f) && !fclose(f));
	pages = strtoul(line, NULL, 10);
	limit.rlim_cur = limit.rlim_max = pages * PAGE + *(rlim_t *)arg;
	NEED(!setrlimit(RLIMIT_AS, &limit));
	NEED(!fill_in_every_way(KVMEM_BACKING_MEMFD, false));
	return fill_in_every_way(KVMEM_BACKING_ANONYMOUS, false);
}

TEST(k10_limits_of_every_size_kill_nobody)
{
	make_content();
	for (rlim_t n = 5; n < 26; n++)
		ck_assert_msg(!harness_child(with_few_files, &n), "%lu files", (unsigned long)n);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	for (rlim_t n = 1 << 20; n <= 64 << 20; n *= 2)
		ck_assert_msg(!harness_child(with_little_address_space, &n), "%lu bytes",
			      (unsigned long)n);
#endif
}
END

/* ---- files of others ---- */

struct look {
	struct stat st;
	int64_t flags, fd_flags, position, seals;
	uint64_t sum;
};

static struct look look_at(int fd, int reader)
{
	static unsigned char buf[BYTES] __attribute__((aligned(4096)));
	struct look l = { .sum = 14695981039346656037u };

	fstat(fd, &l.st);
	l.flags = fcntl(fd, F_GETFL);
	l.fd_flags = fcntl(fd, F_GETFD);
	l.position = lseek(fd, 0, SEEK_CUR);
	l.seals = fcntl(fd, F_GET_SEALS);
	for (ssize_t i = 0, n = pread(reader, buf, BYTES, 0); i < n; i++)
		l.sum = (l.sum ^ buf[i]) * 1099511628211u;
	return l;
}

static bool looks_the_same(const struct look *a, const struct look *b)
{
	return a->sum == b->sum && a->flags == b->flags && a->fd_flags == b->fd_flags &&
	       a->position == b->position && a->seals == b->seals &&
	       a->st.st_size == b->st.st_size && a->st.st_blocks == b->st.st_blocks &&
	       a->st.st_mode == b->st.st_mode && a->st.st_nlink == b->st.st_nlink &&
	       !memcmp(&a->st.st_mtim, &b->st.st_mtim, sizeof(a->st.st_mtim)) &&
	       !memcmp(&a->st.st_ctim, &b->st.st_ctim, sizeof(a->st.st_ctim));
}

static void look_only(int fd, uint32_t content_is, uint64_t needs, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_extent extent = KVMEM_EXTENT_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_run run;
	unsigned char buf[3 * PAGE];

	o.flags = KVMEM_REGION_FD;
	o.fd = fd;
	o.bytes = bytes;
	o.content = content_is;
	o.needs = needs;
	kvmem_region_plan(NULL, &o, &plan);
	if (!kvmem_region_create(NULL, &o, &ram)) {
		kvmem_region_next_missing(ram, 0, &run);
		ck_assert_int_eq(kvmem_region_free(ram), 0);
	}
	if (kvmem_source_file(fd, 0, 0, 0, &source))
		return;
	ck_assert_int_eq(kvmem_source_extent(source, 0, &extent), 0);
	ck_assert_int_eq(kvmem_source_read(source, 100, buf, sizeof(buf)), 0);
	ck_assert_int_eq(kvmem_source_free(source), 0);
}

static void expect_looked_at_only(const char *name, int fd, int reader)
{
	static const uint64_t needs[] = { 0, KVMEM_WANT_PAGING, KVMEM_WANT_DIRTY | KVMEM_WANT_NUMA,
					  KVMEM_WANT_HUGE };
	struct look before = look_at(fd, reader);

	for (uint32_t c = 0; c < 2; c++)
		for (size_t n = 0; n < 4; n++)
			for (uint64_t bytes = BYTES / 2; bytes <= 2 * BYTES; bytes *= 2) {
				struct look after;

				look_only(fd, c, needs[n], bytes);
				after = look_at(fd, reader);
				ck_assert_msg(looks_the_same(&before, &after),
					      "%s, content %u, needs 0x%llx, %llu bytes", name, c,
					      (unsigned long long)needs[n],
					      (unsigned long long)bytes);
			}
	close(fd);
	close(reader);
}

static const struct {
	const char *name;
	int flags;
} ways[] = {
	{ "read-write", O_RDWR },
	{ "read-only", O_RDONLY },
	{ "write-only", O_WRONLY },
	{ "O_APPEND", O_RDWR | O_APPEND },
	{ "O_DIRECT", O_RDWR | O_DIRECT },
	{ "O_DIRECT, read-only", O_RDONLY | O_DIRECT },
	{ "O_PATH", O_PATH },
	{ "O_DIRECT, O_APPEND", O_RDWR | O_DIRECT | O_APPEND },
};

static void check_in(const char *dir)
{
	char path[64], name[96];

	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		int reader = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), fd;

		if (reader < 0)
			return;
		ck_assert_int_eq(pwrite(reader, content, BYTES, 0), (ssize_t)BYTES);
		ck_assert_int_eq(fsync(reader), 0);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", reader);
		snprintf(name, sizeof(name), "%s, %s", dir, ways[i].name);
		fd = open(path, ways[i].flags);
		if (fd < 0) { /* no O_DIRECT there */
			close(reader);
			continue;
		}
		lseek(fd, 3 * PAGE, SEEK_SET);
		expect_looked_at_only(name, fd, reader);
	}
}

TEST(k12_36_odd_files_are_looked_at_only)
{
	static const unsigned int seals[] = { 0, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL,
					      F_SEAL_WRITE, F_SEAL_FUTURE_WRITE };

	make_content();
	check_in("/dev/shm");
	check_in("/var/tmp");
	check_in(".");
	for (size_t i = 0; i < 4; i++) {
		int fd = memfd_create("theirs", MFD_ALLOW_SEALING);

		ck_assert_int_eq(pwrite(fd, content, BYTES, 0), (ssize_t)BYTES);
		ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals[i]), 0);
		expect_looked_at_only("memfd", fd, dup(fd));
	}
}
END

/* The owner makes his file shorter: what is gone is an error, and no signal in our threads. */
static int a_file_cut_short(void *arg)
{
	int kind = *(int *)arg, fd = memfd_create("theirs", 0), r;

	NEED(!ftruncate(fd, BYTES) && !make_ram(0, fd) && !make_source(kind));
	NEED(!ftruncate(fd, 0));
	NEED(!kvmem_pager_create(NULL, &pager) && !kvmem_pager_add(pager, ram, source, 0, 0));
	NEED(!kvmem_pager_start(pager));
	NEED(kvmem_pager_stop(pager, KVMEM_STOP_FILL) < 0);
	NEED(!free_all());
	NEED(!ftruncate(fd, BYTES) && !make_ram(0, fd) && !make_source(kind));
	NEED(!ftruncate(fd, 0));
	r = kvmem_populate(ram, 0, source, NULL, NULL);
	NEED(r < 0 || !wrong(0, PAGES));
	return free_all();
}

TEST(k10_30_a_file_cut_short_by_its_owner)
{
	if (!pager_here())
		return;
	make_content();
	for (int kind = 0; kind < SOURCES; kind++)
		ck_assert_int_eq(harness_child(a_file_cut_short, &kind), 0);
}
END

/* ---- a file system that is full: what is filled is right, and it goes on when there is room ---- */

#define NO_MOUNT 77

static int file_on_small_tmpfs(char *dir)
{
	char path[64];

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    !mkdtemp(dir) || mount("none", dir, "tmpfs", 0, "size=256k"))
		return -1;
	snprintf(path, sizeof(path), "%s/ram", dir);
	return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static int fill_by_populate(const char *dir)
{
	struct kvmem_run run = { .bytes = 0 };

	NEED(kvmem_populate(ram, 0, source, NULL, NULL) == -ENOMEM);
	NEED(kvmem_region_next_missing(ram, 0, &run) == 1 && !wrong(0, run.offset / PAGE));
	NEED(!mount("none", dir, "tmpfs", MS_REMOUNT, "size=4m"));
	NEED(!kvmem_populate(ram, 0, source, NULL, NULL));
	return 0;
}

static int fill_by_pager(const char *dir)
{
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;

	NEED(!kvmem_pager_create(NULL, &pager) && !kvmem_pager_add(pager, ram, source, 0, 0) &&
	     !kvmem_pager_start(pager));
	NEED(wrong(0, PAGES) >= PAGES / 2);
	NEED(!kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
	NEED(!kvmem_pager_get_stats(pager, &st) && st.pages_poisoned);
	NEED(!mount("none", dir, "tmpfs", MS_REMOUNT, "size=4m"));
	NEED(!kvmem_pager_start(pager) && !kvmem_pager_stop(pager, KVMEM_STOP_FILL));
	return 0;
}

static int on_a_full_file_system(void *arg)
{
	int way = *(int *)arg, fd;
	char dir[] = "/tmp/kvmem-XXXXXX";

	fd = file_on_small_tmpfs(dir);
	if (fd < 0)
		return NO_MOUNT;
	NEED(!ftruncate(fd, BYTES) && !make_ram(0, fd) && !make_source(way % SOURCES));
	NEED(!(way < SOURCES ? fill_by_populate : fill_by_pager)(dir));
	NEED(!wrong(0, PAGES) && !free_all() && !close(fd));
	NEED(!umount(dir) && !rmdir(dir));
	return 0;
}

TEST(k10_30_a_file_system_that_is_full)
{
	if (!pager_here())
		return;
	make_content();
	for (int way = 0; way < 2 * SOURCES; way++) {
		int status = harness_child(on_a_full_file_system, &way);

		SKIP_IF(status == NO_MOUNT, "root", "a tmpfs cannot be mounted");
		ck_assert_msg(!status, "way %d", way);
	}
}
END

/* ---- what the file had before, and zeros of the source ---- */

static int every_second_run(void *arg, uint64_t offset, struct kvmem_extent *ret)
{
	(void)arg;
	ret->kind = offset / PAGE / 8 % 2 ? KVMEM_EXTENT_HOLE : KVMEM_EXTENT_DATA;
	ret->offset = offset / PAGE / 8 * 8 * PAGE;
	ret->bytes = 8 * PAGE;
	return 0;
}

static unsigned int wrong_with_holes(void)
{
	static const unsigned char zero[PAGE];
	unsigned int n = 0;

	for (uint64_t i = 0; i < PAGES; i++)
		n += !!memcmp((char *)kvmem_region_base(ram) + i * PAGE,
			      i / 8 % 2 ? zero : content + i * PAGE, PAGE);
	return n;
}

static int over_what_was_there(void *arg)
{
	int way = *(int *)arg, before = way % 3, fd = memfd_create("theirs", 0);
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	unsigned char *map;

	NEED(!ftruncate(fd, BYTES));
	if (before == 0)
		NEED(!fallocate(fd, 0, 0, BYTES));
	if (before == 1)
		NEED(pwrite(fd, content + PAGE, BYTES - PAGE, 0) == (ssize_t)(BYTES - PAGE));
	map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	NEED(map != MAP_FAILED);
	if (before == 2)
		memset(map, 0x66, BYTES);
	ops.read = from_memory;
	ops.extent = every_second_run;
	NEED(!kvmem_source_callback(&ops, NULL, BYTES, &source) && !make_ram(0, fd));
	if (way / 3 == 0) {
		NEED(!kvmem_populate(ram, 0, source, NULL, NULL) && !wrong_with_holes());
		return free_all();
	}
	o.flags = way / 3 == 1 ? KVMEM_PAGER_BACKGROUND : 0;
	o.fault_around = way / 3 == 3 ? PAGE : 0;
	NEED(!kvmem_pager_create(&o, &pager) && !kvmem_pager_add(pager, ram, source, 0, 0) &&
	     !kvmem_pager_start(pager));
	NEED(!wrong_with_holes());
	NEED(!kvmem_pager_stop(pager, KVMEM_STOP_FILL) && !wrong_with_holes());
	return free_all();
}

TEST(k11_35_nothing_shows_of_what_a_file_had_before)
{
	if (!pager_here())
		return;
	make_content();
	for (int way = 0; way < 12; way++)
		ck_assert_msg(!harness_child(over_what_was_there, &way), "way %d", way);
}
END

/* ---- the VMM changes the mapping of a pager's memory ---- */

static const char *const changes[] = { "mprotect, read", "mprotect, none", "DONTDUMP",
				       "mlock",		 "munmap",	   "another mapping",
				       "HUGEPAGE",	 "mremap",	   "PAGEOUT" };

static int change(unsigned int what)
{
	char *at = (char *)kvmem_region_base(ram) + SOME * PAGE;
	void *p;

	switch (what) {
	case 0:
		return mprotect(at, SOME * PAGE, PROT_READ);
	case 1:
		return mprotect(at, SOME * PAGE, PROT_NONE);
	case 2:
		return madvise(at, SOME * PAGE, MADV_DONTDUMP);
	case 3:
		return mlock(at, 3 * PAGE);
	case 4:
		return munmap(at, SOME * PAGE);
	case 5:
		p = mmap(at, SOME * PAGE, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1,
			 0);
		return p == MAP_FAILED;
	case 6:
		return madvise(at, SOME * PAGE, MADV_HUGEPAGE);
	case 7:
		return mremap(at, SOME * PAGE, SOME * PAGE, MREMAP_MAYMOVE) == MAP_FAILED;
	default:
		return madvise(at, SOME * PAGE, MADV_PAGEOUT);
	}
}

struct mess {
	uint32_t backing;
	unsigned int what;
};

static int change_under_a_pager(void *arg)
{
	const struct mess *mess = arg;

	NEED(!page_in(mess->backing, CALLBACK_SOURCE, 0));
	NEED(!wrong(SOME - 2, SOME + 2));
	change(mess->what);
	NEED(!wrong(0, SOME) && !wrong(2 * SOME, 2 * SOME + 3));
	kvmem_pager_stop(pager, KVMEM_STOP_FILL);
	NEED(!wrong(0, SOME) && !wrong(2 * SOME, PAGES));
	return free_all();
}

TEST(k4_15_the_mapping_is_changed_under_a_pager)
{
	if (!pager_here())
		return;
	make_content();
	for (unsigned int what = 0; what < sizeof(changes) / sizeof(changes[0]); what++)
		for (unsigned int b = 0; b < 2; b++) {
			struct mess mess = { b ? KVMEM_BACKING_MEMFD : KVMEM_BACKING_ANONYMOUS,
					     what };

			ck_assert_msg(!harness_child(change_under_a_pager, &mess), "%s, backing %u",
				      changes[what], mess.backing);
		}
}
END

/* ---- stopped, signalled, forked ---- */

static void heard(int number)
{
	(void)number;
}

static pid_t start_pesterer(void)
{
	const struct timespec nap = { .tv_nsec = 300000 };
	pid_t me = getpid(), child = fork();

	for (int i = 0; !child && i < 500; i++) {
		kill(me, SIGSTOP);
		nanosleep(&nap, NULL);
		kill(me, SIGCONT);
		kill(me, SIGUSR1);
		nanosleep(&nap, NULL);
	}
	if (!child)
		_exit(0);
	return child;
}

static int while_pestered(void *arg)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct sigaction sa = { .sa_handler = heard };
	pid_t pesterer;
	int r;

	(void)arg;
	NEED(!sigaction(SIGUSR1, &sa, NULL)); /* without SA_RESTART */
	pesterer = start_pesterer();
	for (unsigned int i = 0; i < 12; i++) {
		o.file_method = i % 4;
		posix_fadvise(image, 0, 0, POSIX_FADV_DONTNEED);
		NEED(!make_source(FILE_SOURCE) && !make_ram(0, -1));
		r = kvmem_populate(ram, 0, source, &o, NULL);
		NEED(r == -EOPNOTSUPP || (!r && !wrong(0, PAGES)));
		NEED(!free_all());
		NEED(!page_in(i % 2 ? KVMEM_BACKING_MEMFD : KVMEM_BACKING_ANONYMOUS, (int)i % 3,
			      0));
		NEED(!wrong(0, PAGES / 2) && !kvmem_pager_stop(pager, KVMEM_STOP_FILL));
		NEED(!wrong(0, PAGES) && !free_all());
	}
	kill(pesterer, SIGKILL);
	kill(getpid(), SIGCONT);
	return waitpid(pesterer, NULL, 0) != pesterer;
}

TEST(k10_a_process_that_is_stopped_and_signalled)
{
	if (!pager_here())
		return;
	make_content();
	ck_assert_int_eq(harness_child(while_pestered, NULL), 0);
}
END

static int fork_in_the_middle(void *arg)
{
	(void)arg;
	NEED(!page_in(KVMEM_BACKING_MEMFD, CALLBACK_SOURCE, KVMEM_PAGER_BACKGROUND));
	for (unsigned int i = 0; i < 16; i++) {
		pid_t child = fork();
		int status;

		if (!child) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(0);
		}
		NEED(!wrong(i * 16, i * 16 + 16));
		NEED(waitpid(child, &status, 0) == child);
	}
	NEED(!kvmem_pager_stop(pager, KVMEM_STOP_FILL) && !wrong(0, PAGES));
	return free_all();
}

TEST(k10_children_come_and_go_under_a_pager)
{
	if (!pager_here())
		return;
	make_content();
	ck_assert_int_eq(harness_child(fork_in_the_middle, NULL), 0);
}
END

/* ---- a source that is another pager's memory ---- */

static int paged_from_paged(void *arg)
{
	struct kvmem_region *first;
	struct kvmem_source *from_first;
	struct kvmem_pager *second = NULL;

	(void)arg;
	NEED(!page_in(KVMEM_BACKING_MEMFD, FILE_SOURCE, 0));
	first = ram;
	NEED(!kvmem_source_memory(kvmem_region_base(first), BYTES, &from_first));
	NEED(!make_ram(0, -1) && !kvmem_pager_create(NULL, &second));
	NEED(!kvmem_pager_add(second, ram, from_first, 0, 0) && !kvmem_pager_start(second));
	NEED(!wrong(0, PAGES / 2) && !kvmem_pager_stop(second, KVMEM_STOP_FILL));
	NEED(!wrong(0, PAGES) && !kvmem_pager_free(second) && !kvmem_region_free(ram));
	ram = first;
	NEED(!kvmem_pager_stop(pager, KVMEM_STOP_FILL) && !kvmem_source_free(from_first));
	return free_all();
}

TEST(k13_a_source_that_is_paged_itself)
{
	if (!pager_here())
		return;
	make_content();
	ck_assert_int_eq(harness_child(paged_from_paged, NULL), 0);
}
END

/* ---- a vCPU meets poison, and goes on when the page is healed ---- */

static bool source_fails;
static struct vmm_vcpu *poisoned_vcpu;
static volatile sig_atomic_t bus_errors;

static int failing(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	return source_fails ? -EREMOTEIO : from_memory(arg, offset, buf, bytes);
}

/* KVM tells the vCPU's thread by SIGBUS, again and again while it is let back in. */
static void on_bus_error(int number)
{
	(void)number;
	bus_errors++;
	vmm_cancel(poisoned_vcpu);
}

enum { BY_POPULATE, BY_DISCARD, BY_FILL, BY_NEXT_PAGER, HEALERS };

static int heal(int how)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.source_offset = SOME * PAGE;
	o.bytes = PAGE;
	source_fails = false;
	if (how == BY_POPULATE)
		return kvmem_populate(ram, SOME * PAGE, source, &o, NULL);
	if (how == BY_DISCARD)
		return kvmem_region_discard(ram, SOME * PAGE, PAGE);
	if (how == BY_FILL)
		return kvmem_pager_stop(pager, KVMEM_STOP_FILL);
	NEED(!kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK) && !kvmem_pager_free(pager));
	pager = NULL;
	NEED(!kvmem_pager_create(NULL, &pager) && !kvmem_pager_add(pager, ram, source, 0, 0) &&
	     !kvmem_pager_start(pager));
	for (int i = 0; i < 20000; i++) {
		struct kvmem_run run = { ram, SOME * PAGE, PAGE };
		uint32_t state;

		if (!prefetch_runs(pager, &run, 1) &&
		    kvmem_region_next_run(ram, SOME * PAGE, &run, &state) == 1 &&
		    state == KVMEM_PAGE_PRESENT)
			return 0;
		usleep(1000);
	}
	return -ETIMEDOUT;
}

static int poison_and_heal(void *arg)
{
	struct sigaction sa = { .sa_handler = on_bus_error };
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_vm_opts vm_opts = KVMEM_VM_OPTS_INIT;
	struct guest_mailbox *box;
	struct kvmem_vm *vm;
	struct vmm *vmm;
	int how = *(int *)arg, r;

	vm_opts.first_slot = 2;
	o.bytes = BYTES;
	o.needs = KVMEM_WANT_PAGING;
	ops.read = failing;
	source_fails = true;
	NEED(!kvmem_vm_create(&vm_opts, &vm) && !kvmem_region_create(vm, &o, &ram));
	NEED(!kvmem_source_callback(&ops, NULL, BYTES, &source));
	NEED(!kvmem_pager_create(NULL, &pager) && !kvmem_pager_add(pager, ram, source, 0, 0) &&
	     !kvmem_pager_start(pager));
	NEED(!kvmem_region_attach(ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, NULL));
	NEED(!vmm_create(kvmem_vm_fd(vm), 0, NULL, &vmm) && !vmm_map(vmm, GPA, BYTES));
	NEED(!vmm_vcpu_create(vmm, 0, &poisoned_vcpu) && !sigaction(SIGBUS, &sa, NULL));
	box = vmm_mailbox(poisoned_vcpu);
	*box = (struct guest_mailbox){ .command = GUEST_READ,
				       .gpa = GPA + SOME * PAGE,
				       .bytes = PAGE,
				       .page = PAGE,
				       .seed = 1,
				       .rounds = 1 };
	r = vmm_run(poisoned_vcpu);
	NEED(r && !kvmem_pager_get_stats(pager, &st) && st.pages_poisoned == 1);
	NEED(bus_errors == 1 || (!bus_errors && r == -EFAULT)); /* before 6.6 */
	NEED(!heal(how));
	NEED(!vmm_run(poisoned_vcpu) && bus_errors <= 1);
	NEED(how == BY_DISCARD || !wrong(SOME, SOME + 1));
	vmm_destroy(vmm);
	if (how != BY_FILL)
		NEED(!kvmem_pager_stop(pager, KVMEM_STOP_FILL));
	NEED(!free_all());
	return kvmem_vm_free(vm);
}

TEST(k7_24_a_vcpu_goes_on_when_its_page_is_healed)
{
	struct kvmem_vm *vm;

	if (kvmem_vm_create(NULL, &vm))
		SKIP("kvm", "%s", kvmem_error_detail());
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	if (!pager_here())
		return;
	make_content();
	for (int how = 0; how < HEALERS; how++)
		ck_assert_msg(!harness_child(poison_and_heal, &how), "way %d", how);
}
END

HARNESS_MAIN(T(k14_44_each_system_call_refused), T(k10_limits_of_every_size_kill_nobody),
	     T(k12_36_odd_files_are_looked_at_only), T(k10_30_a_file_cut_short_by_its_owner),
	     T(k10_30_a_file_system_that_is_full),
	     T(k11_35_nothing_shows_of_what_a_file_had_before),
	     T(k4_15_the_mapping_is_changed_under_a_pager),
	     T(k10_a_process_that_is_stopped_and_signalled),
	     T(k10_children_come_and_go_under_a_pager), T(k13_a_source_that_is_paged_itself),
	     T(k7_24_a_vcpu_goes_on_when_its_page_is_healed))
