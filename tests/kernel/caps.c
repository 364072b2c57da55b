// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The capability table of this machine, held against the same questions asked by hand; and in
 * places where much is forbidden. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE 4096ul

static struct kvmem_caps *caps;

static struct kvmem_cap_info get(uint32_t id)
{
	struct kvmem_cap_info info = KVMEM_CAP_INFO_INIT;

	ck_assert_int_eq(kvmem_caps_get(caps, id, &info), 0);
	return info;
}

static bool native(uint32_t id)
{
	return get(id).support == KVMEM_SUPPORT_NATIVE;
}

static bool open_table(void)
{
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	ck_assert_int_eq(kvmem_caps_probe(NULL, &caps), 0);
	return true;
}

/* ---- by hand ---- */

struct by_hand {
	int kvm, vm, gmem;
	unsigned char *map;
};

static void by_hand_open(struct by_hand *h)
{
	struct {
		uint64_t size, flags, reserved[6];
	} g = { .size = PAGE, .flags = 3 };
	void *p;

	h->kvm = open("/dev/kvm", O_RDWR);
	h->vm = ioctl(h->kvm, KVM_CREATE_VM, 0);
	ck_assert_msg(h->vm >= 0, "KVM_CREATE_VM: %s", strerror(errno));
	h->gmem = ioctl(h->vm, _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd4, sizeof(g)), &g);
	p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, h->gmem, 0);
	h->map = p == MAP_FAILED ? NULL : p;
}

static void by_hand_close(struct by_hand *h)
{
	if (h->map)
		munmap(h->map, PAGE);
	close(h->gmem);
	close(h->vm);
	close(h->kvm);
}

static bool slot_by_hand(const struct by_hand *h, uint32_t flags)
{
	struct kvm_userspace_memory_region m = {
		.flags = flags,
		.memory_size = PAGE,
		.userspace_addr = (uintptr_t)h->map,
	};

	return !ioctl(h->vm, KVM_SET_USER_MEMORY_REGION, &m);
}

TEST(agrees_with_what_is_tried_by_hand)
{
	struct by_hand h;

	if (!open_table())
		return;
	by_hand_open(&h);
	ck_assert(native(KVMEM_CAP_KVM));
	ck_assert_int_eq(get(KVMEM_CAP_MEMORY_SLOTS).value,
			 ioctl(h.vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS));
	ck_assert_int_eq(native(KVMEM_CAP_GUEST_MEMFD_INIT_SHARED), h.map != NULL);
	ck_assert_int_eq(get(KVMEM_CAP_DIRTY_RING).value,
			 ioctl(h.vm, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING));
	ck_assert_int_eq(get(KVMEM_CAP_DIRTY_MANUAL_PROTECT).value,
			 ioctl(h.vm, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
	if (h.map) {
		bool gup = !madvise(h.map, PAGE, 23);

		ck_assert_int_eq(native(KVMEM_CAP_GUEST_MEMFD_GUP), gup);
		/* Without it such a slot can be set, and no vCPU gets at its pages. */
		ck_assert_int_eq(native(KVMEM_CAP_GUEST_MEMFD_HVA_SLOT),
				 gup && slot_by_hand(&h, 0));
		ck_assert_int_eq(native(KVMEM_CAP_GUEST_MEMFD_HVA_DIRTY),
				 gup && slot_by_hand(&h, KVM_MEM_LOG_DIRTY_PAGES));
	}
	by_hand_close(&h);
	kvmem_caps_free(caps);
}
END

/* The same facility, asked with the largest set of flags the kernel advertises. */
TEST(write_population_agrees)
{
	struct kvmem_cap_info write;
	unsigned char page[PAGE];
	struct {
		uint64_t size, flags, reserved[6];
	} g = { .size = 2 * PAGE };
	struct by_hand h;
	int fd;

	if (!open_table())
		return;
	write = get(KVMEM_CAP_GUEST_MEMFD_WRITE);
	by_hand_open(&h);
	g.flags = (uint64_t)(get(KVMEM_CAP_GUEST_MEMFD_INIT_SHARED).value |
			     get(KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG).value);
	fd = ioctl(h.vm, _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd4, sizeof(g)), &g);
	memset(page, 7, sizeof(page));
	if (fd >= 0) {
		bool whole = pwrite(fd, page, PAGE, 0) == (ssize_t)PAGE;
		bool part = pwrite(fd, page, 100, PAGE) == 100;

		ck_assert_int_eq(whole, write.support == KVMEM_SUPPORT_NATIVE);
		ck_assert_int_eq(part, write.value == KVMEM_WRITE_ANY);
		close(fd);
	}
	by_hand_close(&h);
	kvmem_caps_free(caps);
}
END

TEST(every_line_has_a_reason_and_most_are_known)
{
	unsigned int unknown = 0;

	if (!open_table())
		return;
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++) {
		struct kvmem_cap_info i = get(id);

		ck_assert_msg(strlen(i.reason) > 10, "%s: %s", i.name, i.reason);
		ck_assert_int_eq(i.support == KVMEM_SUPPORT_FALLBACK, i.fallback[0] != '\0');
		unknown += i.support == KVMEM_SUPPORT_UNKNOWN;
		if (i.support != KVMEM_SUPPORT_NATIVE)
			harness_note("%s: %s", i.name, i.reason);
	}
	ck_assert_uint_le(unknown, 3);
	kvmem_caps_free(caps);
}
END

TEST(probing_leaves_nothing_behind)
{
	unsigned int fds, maps;

	if (!open_table())
		return;
	kvmem_caps_free(caps);
	fds = harness_count_fds();
	maps = harness_count_maps();
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(kvmem_caps_probe(NULL, &caps), 0);
		kvmem_caps_free(caps);
	}
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
}
END

/* ---- where things are forbidden: each in a child that gives something up ---- */

#define CHILD_OK     0
#define CHILD_CANNOT 99

static int expect(bool good, const char *what)
{
	if (good)
		return CHILD_OK;
	printf("# %s: %s\n", what, kvmem_error_detail());
	fflush(stdout);
	return 1;
}

static int says(uint32_t id, uint32_t support, int error, const char *word)
{
	struct kvmem_cap_info i = get(id);

	if (i.support == support && i.error == error && strstr(i.reason, word))
		return 0;
	printf("# %s: support %u errno %d: %s\n", i.name, i.support, i.error, i.reason);
	fflush(stdout);
	return 1;
}

static int without_dev(void *arg)
{
	struct kvmem_vm *vm;

	(void)arg;
	if (chroot("/proc/sys")) /* a place without devices */
		return CHILD_CANNOT;
	if (expect(kvmem_vm_create(NULL, &vm) == -ENOENT, "create without /dev/kvm"))
		return 1;
	if (expect(strstr(kvmem_error_detail(), "/dev/kvm") != NULL, "names /dev/kvm"))
		return 1;
	if (expect(!kvmem_caps_probe(NULL, &caps), "probe without /dev/kvm"))
		return 1;
	return says(KVMEM_CAP_KVM, KVMEM_SUPPORT_NONE, ENOENT, "/dev/kvm");
}

TEST(without_dev_kvm)
{
	int r = harness_child(without_dev, NULL);

	SKIP_IF(r == CHILD_CANNOT, "root", "chroot() needs root");
	ck_assert_int_eq(r, 0);
}
END

static int as_nobody(void *arg)
{
	struct kvmem_vm *vm;
	struct stat st;

	(void)arg;
	if (geteuid() || stat("/dev/kvm", &st) || setgid(65534) || setuid(65534) ||
	    !access("/dev/kvm", W_OK))
		return CHILD_CANNOT;
	if (expect(kvmem_vm_create(NULL, &vm) == -EACCES, "create without permission"))
		return 1;
	if (expect(!kvmem_caps_probe(NULL, &caps), "probe without permission"))
		return 1;
	if (says(KVMEM_CAP_KVM, KVMEM_SUPPORT_NONE, EACCES, "give this user"))
		return 1;
	if (get(KVMEM_CAP_UFFD).support == KVMEM_SUPPORT_NATIVE)
		return CHILD_OK; /* the sysctl or the device allows it to everyone */
	return says(KVMEM_CAP_UFFD, KVMEM_SUPPORT_NONE, EPERM, "vm.unprivileged_userfaultfd");
}

TEST(without_permission)
{
	int r = harness_child(as_nobody, NULL);

	SKIP_IF(access("/dev/kvm", F_OK), "kvm", "there is no /dev/kvm");
	SKIP_IF(r == CHILD_CANNOT, "root", "setuid() needs root, and /dev/kvm closed to others");
	ck_assert_int_eq(r, 0);
}
END

static int forbid(unsigned int nr, unsigned int err)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

static int io_uring_forbidden(void *arg)
{
	(void)arg;
	if (forbid(SYS_io_uring_setup, EPERM))
		return CHILD_CANNOT;
	if (expect(!kvmem_caps_probe(NULL, &caps), "probe"))
		return 1;
	return says(KVMEM_CAP_IO_URING, KVMEM_SUPPORT_FALLBACK, EPERM,
		    "kernel.io_uring_disabled") ||
	       says(KVMEM_CAP_IO_URING_FIXED, KVMEM_SUPPORT_NONE, EPERM, "io_uring");
}

static int nothing_locked(void *arg)
{
	struct rlimit limit = { 0 };

	(void)arg;
	if (geteuid() || setrlimit(RLIMIT_MEMLOCK, &limit) || setgid(65534) || setuid(65534))
		return CHILD_CANNOT;
	if (expect(!kvmem_caps_probe(NULL, &caps), "probe"))
		return 1;
	if (get(KVMEM_CAP_IO_URING).support != KVMEM_SUPPORT_NATIVE)
		return says(KVMEM_CAP_IO_URING_FIXED, KVMEM_SUPPORT_NONE,
			    get(KVMEM_CAP_IO_URING).error, "io_uring");
	return says(KVMEM_CAP_IO_URING_FIXED, KVMEM_SUPPORT_NONE, ENOMEM, "RLIMIT_MEMLOCK");
}

TEST(nothing_may_be_locked)
{
	int r = harness_child(nothing_locked, NULL);

	SKIP_IF(r == CHILD_CANNOT, "root", "setuid() needs root");
	ck_assert_int_eq(r, 0);
}
END

static int no_mbind(void *arg)
{
	(void)arg;
	if (forbid(SYS_mbind, EPERM) || forbid(SYS_memfd_create, ENOSYS))
		return CHILD_CANNOT;
	if (expect(!kvmem_caps_probe(NULL, &caps), "probe"))
		return 1;
	return says(KVMEM_CAP_NUMA_PREFERRED_MANY, KVMEM_SUPPORT_UNKNOWN, EPERM, "mbind");
}

TEST(under_seccomp)
{
	int r = harness_child(io_uring_forbidden, NULL);

	SKIP_IF(r == CHILD_CANNOT, "seccomp", "no seccomp filter can be set");
	ck_assert_int_eq(r, 0);
	ck_assert_int_eq(harness_child(no_mbind, NULL), 0);
}
END

static int few_files(void *arg)
{
	struct rlimit limit = { .rlim_cur = 32, .rlim_max = 32 };
	struct kvmem_vm *vm;

	(void)arg;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		return CHILD_CANNOT;
	while (dup(0) >= 0)
		;
	if (expect(kvmem_vm_create(NULL, &vm) == -EMFILE, "create without a file descriptor left"))
		return 1;
	return expect(!kvmem_caps_probe(NULL, &caps), "probe without a file descriptor left") ||
	       says(KVMEM_CAP_KVM, KVMEM_SUPPORT_UNKNOWN, EMFILE, "Too many open files");
}

TEST(out_of_file_descriptors)
{
	SKIP_IF(access("/dev/kvm", R_OK | W_OK), "kvm", "/dev/kvm cannot be opened");
	ck_assert_int_eq(harness_child(few_files, NULL), 0);
}
END

HARNESS_MAIN(T(agrees_with_what_is_tried_by_hand), T(write_population_agrees),
	     T(every_line_has_a_reason_and_most_are_known), T(probing_leaves_nothing_behind),
	     T(without_dev_kvm), T(without_permission), T(under_seccomp), T(nothing_may_be_locked),
	     T(out_of_file_descriptors))
