// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Making regions, adopting files, discarding and marking pages; nothing leaks whichever call fails.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_kvm.h"
#include "numa/numa.h"
#include "source/source.h"
#include "base/uapi/kvm.h"

#define PAGE  4096ull
#define PAGES 64ull
#define BYTES (PAGES * PAGE)

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static unsigned int fds, maps;

static void count(void)
{
	fds = harness_count_fds();
	maps = harness_count_maps();
}

static void expect_no_leak(void)
{
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
	ck_assert_int_eq(fake.allocs, 0);
}

static void fresh_vm(void)
{
	fake_kvm_reset();
	count();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
}

static int create(struct kvmem_region_opts o)
{
	o.size = sizeof(o);
	if (!o.bytes)
		o.bytes = BYTES;
	return kvmem_region_create(vm, &o, &ram);
}

#define CREATE(...) create((struct kvmem_region_opts){ __VA_ARGS__ })

static void fresh(uint32_t backing)
{
	fresh_vm();
	ck_assert_int_eq(CREATE(.backing = backing), 0);
}

static void done(void)
{
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	expect_no_leak();
}

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

static void expect_states(const char *want)
{
	char got[PAGES + 1] = "";

	for (uint64_t p = 0; p < strlen(want); p++)
		got[p] = "a-pzx---c"[km_presence_get(&ram->presence, p)];
	ck_assert_str_eq(got, want);
}

/* ---- making ---- */

TEST(each_backing)
{
	static const uint32_t backings[] = { KVMEM_BACKING_AUTO, KVMEM_BACKING_GUEST_MEMFD,
					     KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };

	for (size_t i = 0; i < KM_ARRAY_SIZE(backings); i++) {
		struct kvmem_plan p = KVMEM_PLAN_INIT;
		uint8_t *base;

		fresh(backings[i]);
		base = kvmem_region_base(ram);
		ck_assert_int_eq(kvmem_region_get_plan(ram, &p), 0);
		ck_assert_uint_eq(p.backing, backings[i] ? backings[i] : KVMEM_BACKING_ANONYMOUS);
		ck_assert_uint_eq(kvmem_region_bytes(ram), BYTES);
		ck_assert_uint_eq(kvmem_region_page_size(ram), PAGE);
		ck_assert_uint_eq(base[0] | base[BYTES - 1], 0);
		if (p.backing == KVMEM_BACKING_ANONYMOUS) {
			failed(ENODEV, "anonymous", kvmem_region_fd(ram));
		} else {
			ck_assert_int_eq(fcntl(kvmem_region_fd(ram), F_GETFD), FD_CLOEXEC);
			base[PAGE] = 77;
			ck_assert_int_eq(km_real_pread(kvmem_region_fd(ram), base + 8, 1, PAGE), 1);
			ck_assert_uint_eq(base[8], 77);
		}
		done();
	}
}
END

TEST(the_guest_memfd_is_made_with_what_was_found)
{
	fake_kvm_reset();
	kvm.gmem_flags = kvm.gmem_advertised = 0xf;
	kvm.no_gup_flag = 4;
	kvm.write_flag = 8;
	kvm.write = FAKE_WRITE_ALIGNED;
	count();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
	ck_assert_int_eq(CREATE(.needs = KVMEM_WANT_WRITE, .backing = KVMEM_BACKING_GUEST_MEMFD),
			 0);
	ck_assert_uint_eq(ram->plan.gmem_flags, 8 | 3);
	ck_assert_uint_eq(ram->plan.write_rev, KVMEM_WRITE_ALIGNED);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	failed(EINVAL, "KVM_CREATE_GUEST_MEMFD", CREATE(.gmem_flags = 1ull << 33));
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	expect_no_leak();
}
END

TEST(plan_and_create_agree)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan p = KVMEM_PLAN_INIT, q = KVMEM_PLAN_INIT;

	fresh_vm();
	o.bytes = BYTES;
	o.wants = KVMEM_WANT_PAGING | KVMEM_WANT_DIRTY;
	ck_assert_int_eq(kvmem_region_plan(vm, &o, &p), 0);
	ck_assert_int_eq(kvmem_region_create(vm, &o, &ram), 0);
	ck_assert_int_eq(kvmem_region_get_plan(ram, &q), 0);
	ck_assert_mem_eq(&p, &q, sizeof(p));
	ck_assert_uint_eq(p.backing, KVMEM_BACKING_MEMFD);
	p.size = 8;
	failed(EINVAL, "size is 8", kvmem_region_plan(vm, &o, &p));
	failed(EINVAL, "NULL", kvmem_region_plan(vm, &o, NULL));
	failed(EINVAL, "NULL", kvmem_region_plan(vm, NULL, &q));
	failed(EINVAL, "NULL", kvmem_region_get_plan(NULL, &q));
	failed(EINVAL, "ret_region", kvmem_region_create(vm, &o, NULL));
	done();
}
END

static void expect_nothing_leaks(struct kvmem_region_opts o)
{
	int r;

	o.size = sizeof(o);
	o.bytes = BYTES;
	for (unsigned long n = 1; n == 1 || fake.failed; n++) {
		fresh_vm();
		kvmem_region_plan(vm, &o, &(struct kvmem_plan)KVMEM_PLAN_INIT);
		fake.fail_at = fake.calls + n;
		fake.fail_errno = EMFILE;
		r = kvmem_region_create(vm, &o, &ram);
		fake.fail_at = 0;
		if (!r)
			ck_assert_int_eq(kvmem_region_free(ram), 0);
		else
			ck_assert_uint_gt(strlen(kvmem_error_detail()), 0);
		ck_assert_int_eq(kvmem_vm_free(vm), 0);
		expect_no_leak();
		ck_assert_uint_lt(n, 60);
	}
}

TEST(no_creation_that_fails_leaks)
{
	int fd = memfd_create("given", 0);

	ck_assert(!ftruncate(fd, (off_t)BYTES));
	expect_nothing_leaks((struct kvmem_region_opts){ .backing = KVMEM_BACKING_GUEST_MEMFD });
	expect_nothing_leaks((struct kvmem_region_opts){ .backing = KVMEM_BACKING_MEMFD });
	expect_nothing_leaks((struct kvmem_region_opts){ .backing = KVMEM_BACKING_ANONYMOUS });
	expect_nothing_leaks((struct kvmem_region_opts){ .flags = KVMEM_REGION_FD, .fd = fd });
	close(fd);
}
END

TEST(no_planning_that_fails_leaks)
{
	/* Whatever a failing probe makes of the kernel, a region comes of it or a clean refusal. */
	for (unsigned long n = 1; n < 150; n++) {
		fake_kvm_reset();
		count();
		ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
		fake.fail_at = fake.calls + n;
		fake.fail_errno = EPERM;
		if (!CREATE(.wants = KVMEM_WANT_DIRTY | KVMEM_WANT_PAGING | KVMEM_WANT_NUMA |
				     KVMEM_WANT_WRITE))
			ck_assert_int_eq(kvmem_region_free(ram), 0);
		fake.fail_at = 0;
		ck_assert_int_eq(kvmem_vm_free(vm), 0);
		expect_no_leak();
	}
}
END

TEST(private_pages_beside_shared_ones)
{
	uint8_t *base;

	fake_kvm_reset();
	kvm.gmem_flags = kvm.gmem_advertised = 0;
	kvm.attributes = KVMEM_ATTRIBUTE_PRIVATE;
	count();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
	ck_assert_int_eq(CREATE(.needs = KVMEM_WANT_PRIVATE | KVMEM_WANT_WRITE), 0);
	ck_assert_uint_eq(ram->plan.backing, KVMEM_BACKING_GUEST_MEMFD);
	ck_assert_uint_eq(ram->plan.shared_backing, KVMEM_BACKING_MEMFD);
	ck_assert_int_ne(kvmem_region_private_fd(ram), kvmem_region_fd(ram));
	ck_assert_int_eq(kvmem_region_attach(ram, 4 * PAGE, PAGE, 0, 0, 0, NULL), 0);
	ck_assert_int_eq(kvm.slot.gmem, kvmem_region_private_fd(ram));
	ck_assert_uint_eq(kvm.slot.gmem_offset, 4 * PAGE);
	ck_assert_uint_eq(kvm.slot.hva, (uintptr_t)kvmem_region_base(ram) + 4 * PAGE);
	base = kvmem_region_base(ram);
	base[0] = 1;
	ck_assert_int_eq(km_real_pwrite(kvmem_region_private_fd(ram), "x", 1, 0), 1);
	ck_assert_int_eq(kvmem_region_discard(ram, 0, PAGE), 0);
	ck_assert_uint_eq(base[0], 0);
	ck_assert_int_eq(km_real_pread(kvmem_region_private_fd(ram), base, 1, 0), 1);
	ck_assert_uint_eq(base[0], 0);
	done();
	fresh(0);
	failed(ENODEV, "no private", kvmem_region_private_fd(ram));
	failed(EINVAL, "NULL", kvmem_region_private_fd(NULL));
	done();
}
END

/* ---- adopting ---- */

TEST(a_memfd_with_data_and_holes)
{
	int fd = memfd_create("given", 0);

	fresh_vm();
	ck_assert(!ftruncate(fd, (off_t)(2 * BYTES)));
	ck_assert_int_eq(pwrite(fd, "xx", 2, (off_t)(BYTES + 2 * PAGE + 100)), 2);
	ck_assert_int_eq(pwrite(fd, "xx", 2, (off_t)(BYTES + 5 * PAGE - 1)), 2);
	ck_assert_int_eq(CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .fd_offset = BYTES), 0);
	ck_assert_uint_eq(ram->plan.backing, KVMEM_BACKING_MEMFD);
	ck_assert_int_ne(kvmem_region_fd(ram), fd);
	expect_states("aapappaa");
	ck_assert_uint_eq(((uint8_t *)kvmem_region_base(ram))[2 * PAGE + 100], 'x');
	ck_assert_int_eq(kvmem_region_discard(ram, 2 * PAGE, PAGE), 0);
	ck_assert_uint_eq(((uint8_t *)kvmem_region_base(ram))[2 * PAGE + 100], 0);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	failed(ERANGE, "fd",
	       CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .fd_offset = 2 * BYTES - PAGE));
	failed(EINVAL, "fd_offset", CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .fd_offset = 100));
	failed(EOPNOTSUPP, "another kind",
	       CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .backing = KVMEM_BACKING_GUEST_MEMFD));
	failed(EOPNOTSUPP, "page_size",
	       CREATE(.flags = KVMEM_REGION_FD, .fd = fd, .page_size = 2 << 20, .bytes = 2 << 20));
	close(fd);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
}
END

TEST(a_guest_memfd_with_some_pages)
{
	int fd;

	fresh_vm();
	fd = (int)km_sys_ioctl(kvmem_vm_fd(vm), KM_KVM_CREATE_GUEST_MEMFD,
			       &(struct km_kvm_create_guest_memfd){ .size = BYTES, .flags = 3 });
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(km_real_pwrite(fd, "xx", 2, 3 * PAGE), 2);
	ck_assert_int_eq(CREATE(.flags = KVMEM_REGION_FD, .fd = fd), 0);
	ck_assert_uint_eq(ram->plan.backing, KVMEM_BACKING_GUEST_MEMFD);
	ck_assert_uint_eq(ram->plan.slot_form, KVMEM_SLOT_HVA);
	expect_states("aaapaa");
	close(fd);
	done();
}
END

/* What it is is told without a write, a hole, a seek or a read: also of what is taken. */
TEST(k12_36_no_probe_touches_a_file)
{
	int file = open("/proc/self/exe", O_RDONLY), disk = open(".", O_TMPFILE | O_RDWR, 0600);
	int mem = memfd_create("given", 0), gmem;
	struct kvmem_plan p = KVMEM_PLAN_INIT;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	fresh_vm();
	ck_assert(!ftruncate(mem, (off_t)BYTES));
	gmem = (int)km_sys_ioctl(kvmem_vm_fd(vm), KM_KVM_CREATE_GUEST_MEMFD,
				 &(struct km_kvm_create_guest_memfd){ .size = BYTES, .flags = 3 });
	o.bytes = BYTES;
	o.flags = KVMEM_REGION_FD;
	kvmem_region_plan(vm, &(struct kvmem_region_opts){ .size = sizeof(o), .bytes = BYTES }, &p);
	for (int i = 0; i < 4; i++) {
		memset(&fake.count, 0, sizeof(fake.count));
		o.fd = (int[]){ mem, gmem, disk, file }[i];
		ck_assert_int_eq(kvmem_region_plan(vm, &o, &p), i < 2 ? 0 : -EBADF);
		if (i > 1)
			failed(EBADF, "fd", kvmem_region_create(vm, &o, &ram));
		ck_assert_uint_eq(fake.count.pwrite + fake.count.write + fake.count.fallocate +
					  fake.count.ftruncate + fake.count.lseek +
					  fake.count.pread + fake.count.read + fake.count.open,
				  0);
		/* Of a guest_memfd: without access, and behind its end. */
		ck_assert_uint_eq(fake.count.mmap, i == 1);
	}
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	close(file);
	close(disk);
	close(mem);
	close(gmem);
}
END

static int64_t no_proc(const char *path, int flags)
{
	return strncmp(path, "/proc/self/fd", 13) ? km_real_open(path, flags) : -ENOENT;
}

/* Without /proc there is only a duplicate, which shares the position and the flags. */
TEST(k12_38_o_append_that_cannot_be_undone_is_refused)
{
	int fd = memfd_create("given", 0);

	fresh_vm();
	ck_assert(!ftruncate(fd, (off_t)BYTES));
	ck_assert_int_eq(pwrite(fd, "x", 1, 2 * PAGE), 1);
	ck_assert_int_eq(lseek(fd, 77, SEEK_SET), 77);
	fake.open = no_proc;
	ck_assert_int_eq(CREATE(.flags = KVMEM_REGION_FD, .fd = fd), 0);
	expect_states("aapa");
	ck_assert_int_eq(lseek(fd, 0, SEEK_CUR), 77);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(fcntl(fd, F_SETFL, O_APPEND), 0);
	failed(EBADF, "O_APPEND", CREATE(.flags = KVMEM_REGION_FD, .fd = fd));
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	close(fd);
}
END

static unsigned int seals_added;

static int64_t watch_seals(int fd, unsigned int s)
{
	seals_added = s;
	return s & KVMEM_SEAL_EXEC ? -EINVAL : km_real_fcntl_add_seals(fd, s);
}

TEST(k12_39_a_seal_that_the_kernel_lacks_is_named)
{
	fresh_vm();
	fake.fcntl_add_seals = watch_seals;
	ck_assert_int_eq(CREATE(.backing = KVMEM_BACKING_MEMFD, .seals = KVMEM_SEAL_SEAL), 0);
	ck_assert_uint_eq(seals_added, KVMEM_SEAL_SEAL | KVMEM_SEAL_SHRINK | KVMEM_SEAL_GROW);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	failed(EINVAL, "6.3", CREATE(.backing = KVMEM_BACKING_MEMFD, .seals = KVMEM_SEAL_EXEC));
	fake.count.fcntl_add_seals = 0;
	ck_assert_int_eq(CREATE(.backing = KVMEM_BACKING_MEMFD, .seals = KVMEM_SEAL_NONE), 0);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(CREATE(.backing = KVMEM_BACKING_GUEST_MEMFD), 0);
	ck_assert_uint_eq(fake.count.fcntl_add_seals, 0);
	done();
}
END

static unsigned int times_unaligned;

/* A mapping that lies wrong is made again; nothing of it is left. */
static int64_t unaligned(size_t len, int prot, int flags, int fd, uint64_t off, void **addr)
{
	void *p = NULL;
	int64_t r = km_real_mmap(len + (2u << 20), PROT_NONE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &p);
	uintptr_t at = ((uintptr_t)p + (2u << 20) - 1) & ~((2ull << 20) - 1);

	ck_assert_int_ge(r, 0);
	munmap(p, len + (2u << 20));
	if (!times_unaligned || !times_unaligned--)
		return km_real_mmap_near(len, prot, flags, fd, off, addr);
	*addr = (void *)(at + PAGE); /* such an address is as good a hint as any other */
	return km_real_mmap_near(len, prot, flags, fd, off, addr);
}

TEST(k14_47_wherever_the_kernel_maps_it_it_is_aligned)
{
	static const uint32_t backings[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };

	for (size_t i = 0; i < 2; i++) {
		fresh_vm();
		fake.mmap_near = unaligned;
		times_unaligned = 3;
		ck_assert_int_eq(CREATE(.backing = backings[i], .bytes = (2 << 20) + 5 * PAGE), 0);
		ck_assert_uint_eq((uintptr_t)kvmem_region_base(ram) % (2 << 20), 0);
		ck_assert_uint_eq(fake.count.mmap_near, 4);
		((uint8_t *)kvmem_region_base(ram))[(2 << 20) + 5 * PAGE - 1] = 1;
		done();
	}
}
END

static unsigned int advised;

static int64_t watch_advice(void *addr, size_t len, int advice)
{
	advised += advice == MADV_HUGEPAGE;
	return advice == MADV_HUGEPAGE ? -EINVAL : km_real_madvise(addr, len, advice);
}

/* Said of every mapping that the library makes, and of no other; a kernel without is no failure. */
TEST(k9_3_huge_pages_are_asked_for)
{
	void *own = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	fresh_vm();
	fake.madvise = watch_advice;
	advised = 0;
	ck_assert_int_eq(CREATE(.bytes = 4 << 20), 0);
	ck_assert_uint_eq(advised, 1);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(CREATE(.backing = KVMEM_BACKING_ANONYMOUS), 0);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(
		CREATE(.flags = KVMEM_REGION_MAPPING, .mapping = own, .wants = KVMEM_WANT_THP), 0);
	ck_assert_uint_eq(advised, 1);
	ck_assert_uint_eq(ram->plan.granted, 0);
	ck_assert_ptr_nonnull(strstr(ram->plan.reasons, "MADV_HUGEPAGE"));
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	munmap(own, BYTES);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	expect_no_leak();
}
END

static const char *shmem_text;

static int64_t shmem_open(const char *path, int flags)
{
	if (!strcmp(path, "/sys/kernel/mm/transparent_hugepage/shmem_enabled"))
		return 10000;
	return strstr(path, "hugepages-2048kB") ? -ENOENT : km_real_open(path, flags);
}

static int64_t shmem_read(int fd, void *buf, size_t len)
{
	if (fd != 10000)
		return km_real_read(fd, buf, len);
	strncpy(buf, shmem_text, len);
	return (int64_t)strlen(shmem_text);
}

TEST(k9_3_where_kvm_maps_huge_pages)
{
	const uint64_t huge = 2 << 20;

	fresh_vm();
	ck_assert_int_eq(CREATE(.bytes = 4 * huge), 0);
	ck_assert_int_eq(kvmem_region_check_huge(ram, 0, 4 * huge, 0), 0);
	ck_assert_int_eq(kvmem_region_check_huge(ram, 0, 4 * huge, 7 * huge), 0);
	ck_assert_int_eq(kvmem_region_check_huge(ram, PAGE, 3 * huge, huge + PAGE), 0);
	failed(EINVAL, "attach at 0x201000", kvmem_region_check_huge(ram, PAGE, 3 * huge, huge));
	failed(EINVAL, "attach at 0x400000", kvmem_region_check_huge(ram, 0, huge, huge + PAGE));
	failed(ERANGE, "no whole huge page", kvmem_region_check_huge(ram, PAGE, huge, PAGE));
	failed(ERANGE, "no whole huge page", kvmem_region_check_huge(ram, 0, huge - PAGE, 0));
	failed(ERANGE, "beyond", kvmem_region_check_huge(ram, huge, 4 * huge, huge));
	failed(EINVAL, "gpa", kvmem_region_check_huge(ram, 0, huge, 1));
	failed(EINVAL, "offset", kvmem_region_check_huge(ram, 1, huge, 0));
	failed(EINVAL, "NULL", kvmem_region_check_huge(NULL, 0, huge, 0));
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(CREATE(.backing = KVMEM_BACKING_MEMFD, .bytes = huge), 0);
	fake.open = shmem_open;
	fake.read = shmem_read;
	shmem_text = "always within_size [advise] never deny force\n";
	failed(EOPNOTSUPP, "base pages", kvmem_region_check_huge(ram, 0, huge, 0));
	shmem_text = "[always] within_size advise never deny force\n";
	ck_assert_int_eq(kvmem_region_check_huge(ram, 0, huge, 0), 0);
	done();
	fresh(KVMEM_BACKING_GUEST_MEMFD);
	failed(EOPNOTSUPP, "base pages", kvmem_region_check_huge(ram, 0, BYTES, 0));
	done();
}
END

TEST(files_that_are_neither)
{
	char name[] =
		"/var/tmp/kvmem-test-XXXXXX"; /* not on tmpfs, where a file counts as a memfd */
	int file = mkstemp(name), event = eventfd(0, 0), ro, pipes[2];

	ck_assert_int_ge(file, 0);
	unlink(name);
	ck_assert_int_eq(pipe(pipes), 0);
	ck_assert(!ftruncate(file, (off_t)BYTES));
	ro = open("/proc/self/exe", O_RDONLY);
	fresh_vm();
	count();
	failed(EBADF, "not open", CREATE(.flags = KVMEM_REGION_FD, .fd = -1));
	failed(EBADF, "neither", CREATE(.flags = KVMEM_REGION_FD, .fd = file));
	failed(EBADF, "reading and writing", CREATE(.flags = KVMEM_REGION_FD, .fd = pipes[0]));
	failed(EBADF, "reading and writing", CREATE(.flags = KVMEM_REGION_FD, .fd = ro));
	failed(EBADF, "neither", CREATE(.flags = KVMEM_REGION_FD, .fd = event));
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	close(file);
	close(event);
	close(ro);
	close(pipes[0]);
	close(pipes[1]);
}
END

/* ---- pages ---- */

TEST(discard_by_state)
{
	uint8_t *base;

	fresh(KVMEM_BACKING_MEMFD);
	base = kvmem_region_base(ram);
	memset(base, 9, BYTES); /* by the guest, say: the record knows nothing of it */
	ck_assert_int_eq(kvmem_region_mark_present(ram, 2 * PAGE, 2 * PAGE), 0);
	expect_states("aappaa");
	ck_assert_int_eq(kvmem_region_discard(ram, PAGE, 2 * PAGE), 0);
	expect_states("azzpaa");
	ck_assert_uint_eq(base[0] & base[3 * PAGE], 9);
	ck_assert_uint_eq(base[PAGE] | base[2 * PAGE], 0);
	base[PAGE] = 1;
	ck_assert_int_eq(kvmem_region_discard(ram, 0, BYTES), 0);
	expect_states("zzzzzz");
	ck_assert_uint_eq(km_presence_missing(&ram->presence), 0);
	for (uint64_t i = 0; i < BYTES; i += PAGE)
		ck_assert_uint_eq(base[i], 0);
	done();
}
END

static int64_t no_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
	(void)fd;
	ck_assert_int_eq(mode, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
	ck_assert_uint_eq(off % PAGE + len % PAGE, 0);
	return -ENOSPC;
}

TEST(a_discard_that_fails_keeps_the_record)
{
	fresh(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(kvmem_region_mark_present(ram, 0, 2 * PAGE), 0);
	fake.fallocate = no_fallocate;
	failed(EIO, "giving back", kvmem_region_discard(ram, 0, 2 * PAGE));
	failed(EIO, "giving back", kvmem_region_discard(ram, 2 * PAGE, 2 * PAGE));
	expect_states("ppaa");
	failed(EINVAL, "multiple", kvmem_region_discard(ram, 0, PAGE + 1));
	failed(EINVAL, "multiple", kvmem_region_discard(ram, 8, PAGE));
	failed(ERANGE, "beyond", kvmem_region_discard(ram, BYTES, PAGE));
	failed(EINVAL, "0 bytes", kvmem_region_discard(ram, 0, 0));
	failed(EINVAL, "NULL", kvmem_region_discard(NULL, 0, PAGE));
	done();
}
END

TEST(anonymous_memory_is_given_back_too)
{
	uint8_t *base;

	fresh(KVMEM_BACKING_ANONYMOUS);
	base = kvmem_region_base(ram);
	memset(base, 9, BYTES);
	ck_assert_int_eq(kvmem_region_discard(ram, 0, BYTES), 0);
	ck_assert_uint_eq(base[0] | base[BYTES - 1], 0);
	ck_assert_uint_eq(fake.count.fallocate, 0);
	done();
}
END

TEST(mark_present)
{
	fresh(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(kvmem_region_discard(ram, 0, PAGE), 0);
	ck_assert_int_eq(kvmem_region_mark_present(ram, 0, 3 * PAGE), 0);
	expect_states("pppa");
	ck_assert_uint_eq(km_presence_claim(&ram->presence, 5, 1), 1);
	failed(EBUSY, "0x5000", kvmem_region_mark_present(ram, 2 * PAGE, 6 * PAGE));
	expect_states("pppaaca"); /* nothing changed */
	km_presence_abandon(&ram->presence, 5, 1);
	failed(EINVAL, "multiple", kvmem_region_mark_present(ram, 0, 1));
	failed(ERANGE, "beyond", kvmem_region_mark_present(ram, 0, BYTES + PAGE));
	failed(EINVAL, "NULL", kvmem_region_mark_present(NULL, 0, PAGE));
	done();
}
END

TEST(next_missing)
{
	struct kvmem_run run;

	fresh(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(kvmem_region_mark_present(ram, 0, 10 * PAGE), 0);
	ck_assert_int_eq(kvmem_region_discard(ram, 12 * PAGE, PAGE), 0);
	ck_assert_int_eq(kvmem_region_next_missing(ram, 0, &run), 1);
	ck_assert_ptr_eq(run.region, ram);
	ck_assert_uint_eq(run.offset, 10 * PAGE);
	ck_assert_uint_eq(run.bytes, 2 * PAGE);
	ck_assert_uint_eq(km_presence_claim(&ram->presence, 20, 1), 1);
	ck_assert_int_eq(kvmem_region_next_missing(ram, 12 * PAGE, &run), 1);
	ck_assert_uint_eq(run.offset, 13 * PAGE);
	ck_assert_uint_eq(run.bytes, BYTES - 13 * PAGE);
	km_presence_abandon(&ram->presence, 20, 1);
	ck_assert_int_eq(kvmem_region_mark_present(ram, 0, BYTES), 0);
	ck_assert_int_eq(kvmem_region_next_missing(ram, 0, &run), 0);
	ck_assert_int_eq(kvmem_region_next_missing(ram, BYTES, &run), 0);
	failed(ERANGE, "beyond", kvmem_region_next_missing(ram, BYTES + 1, &run));
	failed(EINVAL, "ret_run", kvmem_region_next_missing(ram, 0, NULL));
	failed(EINVAL, "region", kvmem_region_next_missing(NULL, 0, &run));
	done();
}
END

TEST(stores_go_where_no_pager_sees_them)
{
	uint8_t *p;

	fresh(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(km_region_store(ram, &p), 0);
	ck_assert_ptr_eq(p, ram->base);
	ram->watch = (struct km_watch *)ram; /* never looked into here */
	ck_assert_int_eq(km_region_store(ram, &p), 0);
	ck_assert_ptr_ne(p, ram->base);
	p[PAGE] = 5;
	ck_assert_uint_eq(ram->base[PAGE], 5);
	failed(EBUSY, "pager", kvmem_region_free(ram));
	ram->watch = NULL;
	done();
	fresh(KVMEM_BACKING_ANONYMOUS);
	ram->watch = (struct km_watch *)ram;
	ck_assert_int_eq(km_region_store(ram, &p), 0);
	ck_assert_ptr_null(p);
	ram->watch = NULL;
	done();
}
END

TEST(null_arguments)
{
	ck_assert_int_eq(kvmem_region_free(NULL), 0);
	ck_assert_ptr_null(kvmem_region_base(NULL));
	ck_assert_uint_eq(kvmem_region_bytes(NULL) + kvmem_region_page_size(NULL), 0);
	failed(EINVAL, "NULL", kvmem_region_fd(NULL));
}
END

HARNESS_MAIN(T(each_backing), T(the_guest_memfd_is_made_with_what_was_found),
	     T(plan_and_create_agree), T(no_creation_that_fails_leaks),
	     T(private_pages_beside_shared_ones), T(no_planning_that_fails_leaks),
	     T(a_memfd_with_data_and_holes), T(a_guest_memfd_with_some_pages),
	     T(files_that_are_neither), T(k12_36_no_probe_touches_a_file),
	     T(k12_38_o_append_that_cannot_be_undone_is_refused),
	     T(k12_39_a_seal_that_the_kernel_lacks_is_named),
	     T(k14_47_wherever_the_kernel_maps_it_it_is_aligned), T(discard_by_state),
	     T(k9_3_huge_pages_are_asked_for), T(k9_3_where_kvm_maps_huge_pages),
	     T(a_discard_that_fails_keeps_the_record), T(anonymous_memory_is_given_back_too),
	     T(mark_present), T(next_missing), T(stores_go_where_no_pager_sees_them),
	     T(null_arguments))
