// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What else is true of the process: limits, locked memory, a container's seccomp filter, another
 * user since, poison. Each in a child of its own, which ends with the line at which it found fault.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE   4096ul
#define PAGES  64ul
#define BYTES  (PAGES * PAGE)
#define MIB    (1ul << 20)
#define NOBODY 65534

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static struct kvmem_plan plan;

/* In a child: the first thing that is not as it should be ends it, and says where. */
#define NEED(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "# line %d: %s: %s\n", __LINE__, #cond, \
				kvmem_error_detail()); \
			return 1; \
		} \
	} while (0)

#define SAID(word) strstr(kvmem_error_detail(), word)

static int create(struct kvmem_region_opts o)
{
	o.size = sizeof(o);
	if (!o.bytes)
		o.bytes = BYTES;
	return kvmem_region_create(vm, &o, &ram);
}

#define CREATE(...) create((struct kvmem_region_opts){ __VA_ARGS__ })

/* Pages that exist; -1 for a failure. */
static int64_t pages_there(void)
{
	struct kvmem_placement p = KVMEM_PLACEMENT_INIT;

	return kvmem_region_placement(ram, 0, kvmem_region_bytes(ram), &p) ? -1
									   : (int64_t)p.present;
}

static int bind(uint32_t mode)
{
	unsigned long nodes = 0;

	if (kvmem_numa_nodes(&nodes, 64) < 1)
		return -1;
	nodes = mode == KVMEM_POLICY_DEFAULT ? 0 : nodes & -nodes;
	return kvmem_region_set_policy(ram, 0, kvmem_region_bytes(ram), mode, &nodes, 64, 0);
}

static int be_nobody(void)
{
	return setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY);
}

static const uint32_t backings[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS,
				     KVMEM_BACKING_GUEST_MEMFD };

/* ---- limits ---- */

static int small_files(void *arg)
{
	const struct rlimit limit = { BYTES - 1, BYTES - 1 }, none = { 0, 0 };
	struct kvmem_caps *caps;

	(void)arg;
	NEED(!setrlimit(RLIMIT_FSIZE, &limit));
	NEED(CREATE(.backing = KVMEM_BACKING_MEMFD) == -EFBIG && SAID("RLIMIT_FSIZE"));
	NEED(!CREATE(.backing = KVMEM_BACKING_MEMFD, .bytes = BYTES - PAGE));
	NEED(!kvmem_region_free(ram));
	NEED(!setrlimit(RLIMIT_FSIZE, &none)); /* the probes make files, too */
	NEED(!kvmem_caps_probe(NULL, &caps));
	kvmem_caps_free(caps);
	NEED(!CREATE(.backing = KVMEM_BACKING_ANONYMOUS));
	return kvmem_region_free(ram);
}

TEST(k10_31_a_file_size_limit_is_no_signal)
{
	ck_assert_int_eq(harness_child(small_files, NULL), 0);
}
END

/* ---- locked memory ---- */

/* By number: the sanitizers make a function of that name that does nothing. */
static int lock_future(int flags)
{
	return (int)syscall(SYS_mlockall, MCL_FUTURE | flags);
}

#define CONTENT 0x5c

static int fill_some(uint64_t bytes)
{
	static unsigned char content[BYTES];
	struct kvmem_source *s;
	int r = kvmem_source_memory(memset(content, CONTENT, sizeof(content)), bytes, &s);

	if (!r)
		r = kvmem_populate(ram, 0, s, NULL, NULL);
	kvmem_source_free(s);
	return r;
}

static int locked_region(uint32_t backing)
{
	const uint64_t bytes = 2 * BYTES;
	unsigned char *base;

	if (CREATE(.backing = backing, .bytes = bytes)) {
		NEED(backing == KVMEM_BACKING_GUEST_MEMFD);
		return 0;
	}
	base = kvmem_region_base(ram);
	NEED(pages_there() == 0);
	NEED(!bind(KVMEM_POLICY_BIND) || backing == KVMEM_BACKING_GUEST_MEMFD);
	NEED(pages_there() == 0);
	NEED(!fill_some(BYTES));
	NEED(base[0] == CONTENT && base[BYTES - 1] == CONTENT);
	NEED(pages_there() == (int64_t)PAGES);
	NEED(!kvmem_region_discard(ram, PAGE, 2 * PAGE));
	NEED(base[PAGE] == 0 && base[3 * PAGE] == CONTENT);
	return kvmem_region_free(ram);
}

static bool is_locked_memory(void)
{
	void *p = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool locked = madvise(p, PAGE, MADV_DONTNEED) && errno == EINVAL;

	munmap(p, PAGE);
	return locked;
}

static int locked_regions(void *arg)
{
	kvmem_vm_create(NULL, &vm); /* KVM takes calls from the process that made it only */
	NEED(!lock_future(*(int *)arg));
	NEED(is_locked_memory());
	for (size_t i = 0; i < 3; i++)
		if (locked_region(backings[i]))
			return 1;
	return 0;
}

static int lazily_locked(void *arg)
{
	unsigned char *content = calloc(1, BYTES);
	struct kvmem_pager *pager;
	struct kvmem_source *s;

	NEED(!lock_future(*(int *)arg));
	for (size_t i = 0; i < 2; i++) {
		unsigned char *base;

		memset(content, CONTENT, BYTES);
		NEED(!kvmem_source_memory(content, BYTES, &s));
		NEED(!CREATE(.backing = backings[i]));
		if (kvmem_pager_create(NULL, &pager))
			return 77;
		NEED(!kvmem_pager_add(pager, ram, s, 0, 0));
		NEED(!kvmem_pager_start(pager));
		base = kvmem_region_base(ram);
		NEED(base[7 * PAGE] == CONTENT);
		NEED(!kvmem_region_discard(ram, 7 * PAGE, 2 * PAGE));
		NEED(base[7 * PAGE] == 0 && base[8 * PAGE] == 0 && base[9 * PAGE] == CONTENT);
		NEED(!kvmem_pager_stop(pager, KVMEM_STOP_FILL));
		NEED(base[BYTES - 1] == CONTENT);
		NEED(!kvmem_pager_free(pager));
		NEED(!kvmem_region_free(ram));
		NEED(!kvmem_source_free(s));
	}
	free(content);
	return 0;
}

TEST(k10_32_under_mlockall_a_new_region_is_empty)
{
	int onfault = MCL_ONFAULT, all = 0;

	SKIP_IF(geteuid(), "root", "more is locked than others may lock");
	ck_assert_int_eq(harness_child(locked_regions, &onfault), 0);
	ck_assert_int_eq(harness_child(locked_regions, &all), 0);
}
END

TEST(k10_32_under_mlockall_a_region_is_filled_lazily)
{
	int onfault = MCL_ONFAULT, all = 0, r;

	SKIP_IF(geteuid(), "root", "more is locked than others may lock");
	r = harness_child(lazily_locked, &all);
	SKIP_IF(r == 77, "uffd", "no userfaultfd");
	ck_assert_int_eq(r, 0);
	ck_assert_int_eq(harness_child(lazily_locked, &onfault), 0);
}
END

static int little_locked(void *arg)
{
	const struct rlimit limit = { 8 * MIB, 8 * MIB };

	(void)arg;
	NEED(!setrlimit(RLIMIT_MEMLOCK, &limit));
	NEED(!be_nobody());
	NEED(!lock_future(MCL_ONFAULT));
	for (size_t i = 0; i < 2; i++) {
		unsigned int fds = harness_count_fds();

		NEED(CREATE(.backing = backings[i], .bytes = 16 * MIB) == -EAGAIN);
		NEED(SAID("RLIMIT_MEMLOCK"));
		NEED(harness_count_fds() == fds);
		/* It counts once, not for each step on the way. */
		NEED(!CREATE(.backing = backings[i], .bytes = 6 * MIB));
		NEED(!kvmem_region_free(ram));
	}
	return 0;
}

TEST(k14_48_the_limit_of_locked_memory_is_named)
{
	SKIP_IF(geteuid(), "root", "only root can become another user");
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	ck_assert_int_eq(harness_child(little_locked, NULL), 0);
#else
	(void)little_locked; /* a sanitizer's own memory is more */
#endif
}
END

/* ---- poison ---- */

/* As <linux/userfaultfd.h> of Linux 6.6 has it. */
struct poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};

static int poisoned(void *arg)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct poison p = { .mode = 0 };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	unsigned char *base;

	(void)arg;
	NEED(!CREATE(.backing = KVMEM_BACKING_MEMFD));
	base = kvmem_region_base(ram);
	for (uint64_t at = 0; at < BYTES; at += PAGE)
		NEED(pwrite(kvmem_region_fd(ram), "x", 1, (off_t)at) == 1);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return 77;
	reg.range.start = (uintptr_t)base;
	reg.range.len = BYTES;
	NEED(!ioctl(fd, UFFDIO_REGISTER, &reg));
	p.range.start = (uintptr_t)base + 5 * PAGE;
	p.range.len = PAGE;
	if (ioctl(fd, _IOWR(UFFDIO, 0x08, struct poison), &p))
		return 77;
	close(fd); /* the marker stays */
	NEED(pages_there() == (int64_t)PAGES);
	return kvmem_region_free(ram);
}

TEST(k10_30_placement_takes_no_poison)
{
	int r = harness_child(poisoned, NULL);

	SKIP_IF(r == 77, "uffd-poison", "no UFFDIO_POISON");
	ck_assert_int_eq(r, 0);
}
END

/* ---- seccomp, as in a container without CAP_SYS_NICE ---- */

static int forbid_policies(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mbind, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_get_mempolicy, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_set_mempolicy, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_move_pages, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog prog = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

static int in_a_container(void *arg)
{
	unsigned long before = 0, nodes = 0;
	uint64_t per_node[64];
	struct kvmem_placement p = KVMEM_PLACEMENT_INIT;
	int n = kvmem_numa_nodes(&before, 64);

	(void)arg;
	if (forbid_policies())
		return 77;
	NEED(kvmem_numa_nodes(&nodes, 64) == n && nodes == before);
	NEED(!CREATE(.wants = KVMEM_WANT_NUMA, .backing = KVMEM_BACKING_MEMFD));
	plan.size = sizeof(plan);
	NEED(!kvmem_region_get_plan(ram, &plan));
	NEED(plan.given_up == KVMEM_WANT_NUMA);
	NEED(strstr(plan.reasons, "seccomp") && strstr(plan.reasons, "CAP_SYS_NICE"));
	NEED(bind(KVMEM_POLICY_DEFAULT) == 0);
	NEED(bind(KVMEM_POLICY_BIND) == -EPERM);
	NEED(SAID("seccomp") && SAID("CAP_SYS_NICE") && !SAID("cpuset"));
	NEED(!fill_some(3 * PAGE));
	p.nodes = per_node;
	p.node_count = 64;
	NEED(!kvmem_region_placement(ram, 0, BYTES, &p));
	NEED(p.pages == PAGES && p.present == 3 && p.misplaced == 0);
	if (n == 1) /* then there is no doubt */
		NEED(!p.other && per_node[__builtin_ctzl(before)] == 3);
	else
		NEED(p.other == 3);
	return kvmem_region_free(ram);
}

TEST(k14_44_a_seccomp_filter_is_named_and_lived_with)
{
	int r = harness_child(in_a_container, NULL);

	SKIP_IF(r == 77, "seccomp", "no filter can be set");
	ck_assert_int_eq(r, 0);
}
END

/* ---- another user since ---- */

static int not_root_any_more(void *arg)
{
	(void)arg;
	if (kvmem_vm_create(NULL, &vm) || CREATE(.backing = KVMEM_BACKING_GUEST_MEMFD))
		return 77;
	NEED(!fill_some(5 * PAGE));
	NEED(!be_nobody());
	NEED(pages_there() == 5); /* the library's own record knows these */
	NEED(bind(KVMEM_POLICY_BIND) == -EEXIST && SAID("5 pages"));
	NEED(!kvmem_region_free(ram));
	return 0;
}

static int empty_and_not_root(void *arg)
{
	(void)arg;
	if (kvmem_vm_create(NULL, &vm) || CREATE(.backing = KVMEM_BACKING_GUEST_MEMFD))
		return 77;
	NEED(!be_nobody());
	NEED(pages_there() == 0);
	NEED(bind(KVMEM_POLICY_BIND) >= 0);
	return kvmem_region_free(ram);
}

TEST(k14_45_an_empty_guest_memfd_of_a_user_who_was_root)
{
	int r;

	SKIP_IF(geteuid(), "root", "only root can become another user");
	r = harness_child(empty_and_not_root, NULL);
	SKIP_IF(r == 77, "guest-memfd", "no VM, or no guest_memfd that can be mapped");
	ck_assert_int_eq(r, 0);
	ck_assert_int_eq(harness_child(not_root_any_more, NULL), 0);
}
END

static int adopted_before;

/* Two pages of a tmpfs file that this user may not write by its mode: mincore() says all of it. */
static int tmpfs_of_another(void *arg)
{
	int fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	struct kvmem_run run;
	struct stat st;

	(void)arg;
	if (fd < 0)
		return 77;
	NEED(!ftruncate(fd, BYTES));
	NEED(pwrite(fd, "x", 1, 3 * PAGE) == 1 && pwrite(fd, "x", 1, 9 * PAGE) == 1);
	NEED(lseek(fd, 123, SEEK_SET) == 123);
	if (!adopted_before)
		NEED(!be_nobody());
	NEED(!CREATE(.flags = KVMEM_REGION_FD, .fd = fd));
	if (adopted_before)
		NEED(!be_nobody());
	NEED(kvmem_region_next_missing(ram, 3 * PAGE, &run) == 1 && run.offset == 4 * PAGE);
	NEED(run.bytes == 5 * PAGE);
	NEED(pages_there() == 2);
	NEED(!fstat(fd, &st) && st.st_blocks == 2 * PAGE / 512);
	NEED(bind(KVMEM_POLICY_BIND) == -EEXIST && SAID("2 pages"));
	NEED(lseek(fd, 0, SEEK_CUR) == 123);
	return kvmem_region_free(ram);
}

TEST(k14_45_a_tmpfs_file_of_another_user_stays_sparse)
{
	int r;

	SKIP_IF(geteuid(), "root", "only root can become another user");
	adopted_before = 1;
	r = harness_child(tmpfs_of_another, NULL);
	SKIP_IF(r == 77, "files", "no O_TMPFILE in /dev/shm");
	ck_assert_int_eq(r, 0);
	adopted_before = 0;
	ck_assert_int_eq(harness_child(tmpfs_of_another, NULL), 0);
}
END

/* ---- addresses and advice ---- */

TEST(k14_47_regions_begin_where_huge_pages_do)
{
	static const uint64_t sizes[] = { 2 * MIB, 3 * MIB + PAGE, 64 * MIB, 5 * MIB };

	for (size_t i = 0; i < 8; i++) {
		uint32_t backing = backings[i % 2];
		uint64_t bytes = sizes[i / 2];
		struct kvmem_region *first;
		unsigned int maps;

		ck_assert_int_eq(CREATE(.backing = backing, .bytes = bytes), 0);
		first = ram;
		maps = harness_count_maps();
		ck_assert_int_eq(CREATE(.backing = backing, .bytes = bytes), 0);
		ck_assert_uint_eq((uintptr_t)kvmem_region_base(first) % (2 * MIB), 0);
		ck_assert_uint_eq((uintptr_t)kvmem_region_base(ram) % (2 * MIB), 0);
		((unsigned char *)kvmem_region_base(ram))[bytes - 1] = 1;
		ck_assert_int_eq(kvmem_region_free(ram), 0);
		ck_assert_uint_eq(harness_count_maps(), maps);
		ck_assert_int_eq(kvmem_region_free(first), 0);
	}
}
END

/* The flags of the mapping that holds p, as /proc has them. */
static bool has_flag(const void *p, const char *flag)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	bool here = false, found = false;
	unsigned long start;
	char line[512], *at;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		start = strtoul(line, &at, 16);
		if (*at == '-')
			here = start <= (uintptr_t)p && (uintptr_t)p < strtoul(at + 1, NULL, 16);
		else if (here && !strncmp(line, "VmFlags:", 8))
			found |= strstr(line, flag) != NULL;
	}
	fclose(f);
	return found;
}

TEST(k14_47_regions_stay_out_of_dumps_and_children)
{
	for (size_t i = 0; i < 2; i++) {
		const unsigned char *base;

		ck_assert_int_eq(CREATE(.backing = backings[i]), 0);
		base = kvmem_region_base(ram);
		ck_assert(!has_flag(base, " dd") && !has_flag(base, " dc"));
		ck_assert_int_eq(kvmem_region_free(ram), 0);
		ck_assert_int_eq(CREATE(.backing = backings[i],
					.flags = KVMEM_REGION_DONTDUMP | KVMEM_REGION_DONTFORK),
				 0);
		base = kvmem_region_base(ram);
		ck_assert(has_flag(base, " dd") && has_flag(base + BYTES - 1, " dd"));
		ck_assert(has_flag(base, " dc"));
		ck_assert_int_eq(kvmem_region_free(ram), 0);
	}
}
END

/* ---- a VM of another process ---- */

static int adopt_theirs(void *arg)
{
	struct kvmem_vm *theirs;

	NEED(kvmem_vm_adopt(*(int *)arg, NULL, &theirs) == -EBADF);
	NEED(SAID("another process"));
	return 0;
}

TEST(k14_48_a_vm_of_another_process_is_told_from_no_vm)
{
	int fd;

	if (kvmem_vm_create(NULL, &vm))
		SKIP("kvm", "%s", kvmem_error_detail());
	fd = kvmem_vm_fd(vm);
	ck_assert_int_eq(harness_child(adopt_theirs, &fd), 0);
	kvmem_vm_free(vm);
	vm = NULL;
}
END

HARNESS_MAIN(T(k10_31_a_file_size_limit_is_no_signal),
	     T(k10_32_under_mlockall_a_new_region_is_empty),
	     T(k10_32_under_mlockall_a_region_is_filled_lazily),
	     T(k14_48_the_limit_of_locked_memory_is_named), T(k10_30_placement_takes_no_poison),
	     T(k14_44_a_seccomp_filter_is_named_and_lived_with),
	     T(k14_45_an_empty_guest_memfd_of_a_user_who_was_root),
	     T(k14_45_a_tmpfs_file_of_another_user_stays_sparse),
	     T(k14_47_regions_begin_where_huge_pages_do),
	     T(k14_47_regions_stay_out_of_dumps_and_children),
	     T(k14_48_a_vm_of_another_process_is_told_from_no_vm))
