// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What this machine demonstrably has, found without the library, as KVMEM_TEST_REQUIRE wants it: so that
 * a facility the library fails to find is a failure and not a skip. Prints the list; with --known, every
 * name that a test may ask for.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define GUEST_MEMFD_MMAP_SHARED 3 /* MMAP | INIT_SHARED */
#define CAP_PRE_FAULT_MEMORY	236
#define SW_PROTECTED_VM		1
#define CREATE_GUEST_MEMFD	_IOWR(KVMIO, 0xd4, struct gmem_create)
#define UFFD_POISON		_IOWR(UFFDIO, 0x08, struct uffd_poison)

struct gmem_create {
	uint64_t size;
	uint64_t flags;
	uint64_t reserved[6];
};

struct uffd_poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};

static size_t page;

static int kvm_fd(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	return fd >= 0 && ioctl(fd, KVM_GET_API_VERSION, 0) == KVM_API_VERSION ? fd : -1;
}

static int vm_fd(void)
{
	int kvm = kvm_fd();

	return kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
}

static bool has_kvm(void)
{
	return vm_fd() >= 0;
}

static int guest_memfd(void)
{
	struct gmem_create c = { .size = page, .flags = GUEST_MEMFD_MMAP_SHARED };

	return ioctl(vm_fd(), CREATE_GUEST_MEMFD, &c);
}

static bool has_guest_memfd(void)
{
	char *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, guest_memfd(), 0);

	if (p == MAP_FAILED)
		return false;
	*p = 1;
	return true;
}

static bool has_gmem_gup(void)
{
	void *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, guest_memfd(), 0);

	return p != MAP_FAILED && !madvise(p, page, MADV_POPULATE_WRITE);
}

static bool has_dirty_ring(void)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL, .args = { 65536 } };
	int vm = vm_fd();

	if (vm < 0 || ioctl(vm, KVM_CHECK_EXTENSION, cap.cap) < 65536)
		return false;
	return !ioctl(vm, KVM_ENABLE_CAP, &cap);
}

static bool has_dirty_bitmap(void)
{
	void *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region m = { .flags = KVM_MEM_LOG_DIRTY_PAGES,
						 .memory_size = page,
						 .userspace_addr = (uintptr_t)p };

	return !ioctl(vm_fd(), KVM_SET_USER_MEMORY_REGION, &m);
}

static bool has_pre_fault(void)
{
	return ioctl(vm_fd(), KVM_CHECK_EXTENSION, CAP_PRE_FAULT_MEMORY) > 0;
}

static int uffd(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) {
		int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		fd = dev < 0 ? -1 : ioctl(dev, _IO(0xAA, 0x00), O_CLOEXEC | O_NONBLOCK);
	}
	return fd >= 0 && !ioctl(fd, UFFDIO_API, &api) ? fd : -1;
}

static bool registers(int fd, void *p, uint64_t mode)
{
	struct uffdio_register r = { .range = { (uintptr_t)p, page }, .mode = mode };

	return p != MAP_FAILED && !ioctl(fd, UFFDIO_REGISTER, &r);
}

static bool has_uffd(void)
{
	return uffd(0) >= 0;
}

static bool has_uffd_minor(void)
{
	int fd = memfd_create("facilities", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)page))
		return false;
	return registers(uffd(UFFD_FEATURE_MINOR_SHMEM),
			 mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0),
			 UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
}

static bool has_uffd_poison(void)
{
	void *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffd_poison poison = { .range = { (uintptr_t)p, page } };
	int fd = uffd(0);

	return registers(fd, p, UFFDIO_REGISTER_MODE_MISSING) && !ioctl(fd, UFFD_POISON, &poison);
}

/* A userfaultfd that is read by RWF_NOWAIT: Linux 6.10. */
static bool has_uffd_nowait(void)
{
	struct uffd_msg msg;
	struct iovec v = { &msg, sizeof(msg) };

	return preadv2(uffd(0), &v, 1, -1, RWF_NOWAIT) < 0 && errno == EAGAIN;
}

/* UFFD_FEATURE_WP_ASYNC: Linux 6.7. */
static bool has_wp_async(void)
{
	return uffd(1u << 15) >= 0;
}

static bool has_gmem_uffd(void)
{
	return registers(uffd(0),
			 mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, guest_memfd(), 0),
			 UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
}

static bool has_gmem_write(void)
{
	static const char buf[65536];

	for (uint64_t bits = 0; bits < 16; bits += 4) {
		struct gmem_create c = { .size = page, .flags = GUEST_MEMFD_MMAP_SHARED | bits };
		int fd = ioctl(vm_fd(), CREATE_GUEST_MEMFD, &c);

		if (fd >= 0 && pwrite(fd, buf, page, 0) == (ssize_t)page)
			return true;
	}
	return false;
}

static bool has_hugetlb(void)
{
	return mmap(NULL, 2u << 20, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0) != MAP_FAILED;
}

static bool has_numa2(void)
{
	char list[64] = "";
	FILE *f = fopen("/sys/devices/system/node/has_memory", "re");

	return f && fgets(list, sizeof(list), f) && strpbrk(list, ",-");
}

static bool has_weighted_interleave(void)
{
	return !access("/sys/kernel/mm/mempolicy/weighted_interleave", F_OK);
}

static bool has_io_uring(void)
{
	uint32_t params[30] = { 0 };

	return syscall(SYS_io_uring_setup, 1, params) >= 0;
}

static bool has_files(void)
{
	return open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) >= 0;
}

static bool has_file_locks(void)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	return !fcntl(memfd_create("locked", MFD_CLOEXEC), F_SETLK, &l);
}

static bool has_o_direct(void)
{
	return open(".", O_TMPFILE | O_RDWR | O_CLOEXEC | O_DIRECT, 0600) >= 0;
}

static bool has_restricted_uffd(void)
{
	FILE *f = fopen("/proc/sys/vm/unprivileged_userfaultfd", "re");

	return f && getc(f) == '0';
}

/* A machine that the tests may set up as they like. */
static bool has_own_machine(void)
{
	return getenv("KVMEM_TEST_RIG") && !access("/proc/sys/kernel/io_uring_disabled", W_OK);
}

static bool has_root(void)
{
	return !geteuid();
}

static bool has_private(void)
{
	int kvm = kvm_fd();

	return kvm >= 0 && ioctl(kvm, KVM_CREATE_VM, SW_PROTECTED_VM) >= 0;
}

static bool has_seccomp(void)
{
	return !access("/proc/sys/kernel/seccomp/actions_avail", F_OK);
}

static bool has_nbdkit(void)
{
	return !system("nbdkit --version >/dev/null 2>&1"); /* NOLINT(cert-env33-c) */
}

static const struct {
	const char *name;
	bool (*has)(void);
} facilities[] = {
	{ "kvm", has_kvm },
	{ "guest-memfd", has_guest_memfd },
	{ "gmem-gup", has_gmem_gup },
	{ "gmem-write", has_gmem_write },
	{ "gmem-uffd", has_gmem_uffd },
	{ "dirty-ring", has_dirty_ring },
	{ "dirty-bitmap", has_dirty_bitmap },
	{ "pre-fault", has_pre_fault },
	{ "uffd", has_uffd },
	{ "uffd-minor", has_uffd_minor },
	{ "uffd-poison", has_uffd_poison },
	{ "uffd-nowait", has_uffd_nowait },
	{ "wp-async", has_wp_async },
	{ "hugetlb", has_hugetlb },
	{ "numa2", has_numa2 },
	{ "weighted-interleave", has_weighted_interleave },
	{ "io-uring", has_io_uring },
	{ "files", has_files },
	{ "file-locks", has_file_locks },
	{ "o-direct", has_o_direct },
	{ "restricted-uffd", has_restricted_uffd },
	{ "own-machine", has_own_machine },
	{ "root", has_root },
	{ "private", has_private },
	{ "seccomp", has_seccomp },
	{ "nbdkit", has_nbdkit },
};

int main(int argc, char **argv)
{
	bool known = argc > 1 && !strcmp(argv[1], "--known");
	const char *comma = "";

	page = (size_t)sysconf(_SC_PAGESIZE);
	for (size_t i = 0; i < sizeof(facilities) / sizeof(facilities[0]); i++) {
		if (!known && !facilities[i].has())
			continue;
		printf("%s%s", comma, facilities[i].name);
		comma = ",";
	}
	printf("\n");
	return 0;
}
