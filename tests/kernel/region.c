// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Regions on the kernel that runs, without a guest: making, mapping, adopting, discarding, limits.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE	4096ul
#define BYTES	(1024 * PAGE)
#define SIZE_2M (2ul << 20)

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static unsigned char *base;

static bool open_vm(void)
{
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	ck_assert_msg(!kvmem_vm_create(NULL, &vm), "%s", kvmem_error_detail());
	return true;
}

static bool vm_can(uint32_t id)
{
	struct kvmem_cap_info i = KVMEM_CAP_INFO_INIT;

	ck_assert_int_eq(kvmem_caps_get(kvmem_vm_caps(vm), id, &i), 0);
	return i.support == KVMEM_SUPPORT_NATIVE;
}

static int create(struct kvmem_region_opts o)
{
	int r;

	o.size = sizeof(o);
	if (!o.bytes)
		o.bytes = BYTES;
	r = kvmem_region_create(vm, &o, &ram);
	base = r ? NULL : kvmem_region_base(ram);
	return r;
}

#define CREATE(...) create((struct kvmem_region_opts){ __VA_ARGS__ })

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

static void close_all(void)
{
	ok(kvmem_region_free(ram));
	ok(kvmem_vm_free(vm));
}

/* Pages in the kernel, by the region's own count. */
static uint64_t pages_there(void)
{
	struct kvmem_placement p = KVMEM_PLACEMENT_INIT;

	ok(kvmem_region_placement(ram, 0, kvmem_region_bytes(ram), &p));
	return p.present;
}

static const uint32_t backings[] = { KVMEM_BACKING_GUEST_MEMFD, KVMEM_BACKING_MEMFD,
				     KVMEM_BACKING_ANONYMOUS };

static bool has_backing(uint32_t backing)
{
	return backing != KVMEM_BACKING_GUEST_MEMFD || vm_can(KVMEM_CAP_GUEST_MEMFD_INIT_SHARED);
}

/* ---- life ---- */

TEST(every_backing_reads_zero_and_keeps_what_is_written)
{
	for (size_t i = 0; i < 3; i++) {
		if (!open_vm())
			return;
		if (!has_backing(backings[i])) {
			kvmem_vm_free(vm);
			continue;
		}
		ok(CREATE(.backing = backings[i]));
		ck_assert_uint_eq(pages_there(), 0);
		for (size_t at = 0; at < BYTES; at += PAGE) {
			ck_assert_uint_eq(base[at], 0);
			base[at] = (unsigned char)(at / PAGE + 1);
		}
		for (size_t at = 0; at < BYTES; at += PAGE)
			ck_assert_uint_eq(base[at], (unsigned char)(at / PAGE + 1));
		ck_assert_uint_eq(pages_there(), BYTES / PAGE);
		ok(kvmem_region_attach(ram, 0, BYTES, 0, KVMEM_SLOT_ANY, 0, NULL));
		close_all();
	}
}
END

TEST(nothing_is_left_behind)
{
	unsigned int fds = harness_count_fds(), maps = harness_count_maps();

	for (size_t i = 0; i < 3; i++) {
		if (!open_vm())
			return;
		if (has_backing(backings[i])) {
			ok(CREATE(.backing = backings[i]));
			ok(kvmem_region_attach(ram, 0, BYTES, 0, KVMEM_SLOT_ANY, 0, NULL));
			ok(kvmem_region_free(ram));
		}
		ok(kvmem_vm_free(vm));
	}
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
}
END

TEST(plans_come_true)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan p = KVMEM_PLAN_INIT;

	if (!open_vm())
		return;
	o.bytes = BYTES;
	for (o.wants = 0; o.wants < 128; o.wants++) {
		ok(kvmem_region_plan(vm, &o, &p));
		ck_assert_uint_eq(p.granted | p.given_up, o.wants);
		if (p.backing == KVMEM_BACKING_HUGETLB)
			continue;
		ok(kvmem_region_create(vm, &o, &ram));
		((unsigned char *)kvmem_region_base(ram))[BYTES - 1] = 1;
		ok(kvmem_region_attach(ram, 0, BYTES, 0, KVMEM_SLOT_ANY, 0, NULL));
		ok(kvmem_region_free(ram));
	}
	ok(kvmem_vm_free(vm));
}
END

TEST(without_a_vm)
{
	vm = NULL;
	ok(CREATE(.wants = KVMEM_WANT_PAGING));
	base[0] = 1;
	ck_assert_uint_eq(pages_there(), 1);
	ok(kvmem_region_free(ram));
	failed(EOPNOTSUPP, "belongs to a VM", CREATE(.backing = KVMEM_BACKING_GUEST_MEMFD));
}
END

/* "VmFlags: rd wr ... hg": MADV_HUGEPAGE has been said of the mapping that begins at base. */
static bool is_advised(void)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	char line[512], *dash;
	unsigned long start, end;
	bool mine = false, ret = false;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		start = strtoul(line, &dash, 16);
		if (dash > line && *dash == '-') {
			end = strtoul(dash + 1, NULL, 16);
			mine = start <= (uintptr_t)base && (uintptr_t)base < end;
		}
		if (mine && !strncmp(line, "VmFlags:", 8))
			ret = strstr(line, " hg") != NULL;
	}
	fclose(f);
	return ret;
}

TEST(k9_3_huge_pages_are_asked_of_the_kernel)
{
	struct kvmem_plan plan = KVMEM_PLAN_INIT;

	vm = NULL;
	SKIP_IF(access("/sys/kernel/mm/transparent_hugepage/enabled", R_OK), "thp",
		"a kernel without transparent huge pages");
	ok(CREATE(.bytes = 4 * SIZE_2M));
	ok(kvmem_region_get_plan(ram, &plan));
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_ANONYMOUS);
	ck_assert(is_advised());
	ok(kvmem_region_check_huge(ram, 0, 4 * SIZE_2M, 0));
	ok(kvmem_region_free(ram));
	/* And of what grows, before it has grown. */
	ok(CREATE(.bytes = SIZE_2M, .reserve = 4 * SIZE_2M));
	ok(kvmem_region_grow(ram, 4 * SIZE_2M));
	base += 3 * SIZE_2M;
	ck_assert(is_advised());
	base[0] = 1;
	ok(kvmem_region_free(ram));
	ok(CREATE(.backing = KVMEM_BACKING_ANONYMOUS));
	ck_assert(!is_advised());
	ok(kvmem_region_free(ram));
	ok(CREATE(.backing = KVMEM_BACKING_MEMFD, .wants = KVMEM_WANT_THP));
	ok(kvmem_region_get_plan(ram, &plan));
	ck_assert_int_eq(is_advised(), !!(plan.granted & KVMEM_WANT_THP));
	ok(kvmem_region_free(ram));
}
END

TEST(bad_sizes)
{
	if (!open_vm())
		return;
	failed(EINVAL, "bytes is 0",
	       kvmem_region_create(vm, &(struct kvmem_region_opts)KVMEM_REGION_OPTS_INIT, &ram));
	failed(EINVAL, "multiple", CREATE(.bytes = PAGE + 1));
	failed(EINVAL, "more than", CREATE(.bytes = ~0ul & ~(PAGE - 1)));
	ck_assert_int_eq(CREATE(.bytes = 1ul << 60, .backing = KVMEM_BACKING_MEMFD) < 0, 1);
	ok(kvmem_vm_free(vm));
}
END

/* ---- guest_memfd as the kernel has it ---- */

TEST(a_guest_memfd_is_in_one_direct_slot_at_most)
{
	if (!open_vm())
		return;
	if (!vm_can(KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT)) {
		kvmem_vm_free(vm);
		SKIP("guest-memfd", "no direct slots");
	}
	ok(CREATE(.slot_form = KVMEM_SLOT_DIRECT));
	ok(kvmem_region_attach(ram, 0, 4 * PAGE, 0, 0, 0, NULL));
	failed(EEXIST, "one direct slot",
	       kvmem_region_attach(ram, 3 * PAGE, PAGE, 1 << 20, 1, 0, NULL));
	ok(kvmem_region_attach(ram, 4 * PAGE, 4 * PAGE, 1 << 20, 1, 0, NULL));
	ok(kvmem_region_detach(ram, 0));
	ok(kvmem_region_attach(ram, 0, 4 * PAGE, 1 << 30, 0, 0, NULL));
	failed(EOPNOTSUPP, "read-only",
	       kvmem_region_attach(ram, 8 * PAGE, PAGE, 2u << 20, 2, KVMEM_ATTACH_READONLY, NULL));
	close_all();
}
END

TEST(a_guest_memfd_of_another_vm_is_refused)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *theirs, *ours;
	struct kvmem_vm *other;

	if (!open_vm())
		return;
	if (!vm_can(KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT)) {
		kvmem_vm_free(vm);
		SKIP("guest-memfd", "no direct slots");
	}
	ok(kvmem_vm_create(NULL, &other));
	o.bytes = BYTES;
	o.backing = KVMEM_BACKING_GUEST_MEMFD;
	ok(kvmem_region_create(other, &o, &theirs));
	o.flags = KVMEM_REGION_FD | KVMEM_REGION_OVERLAP;
	o.fd = kvmem_region_fd(theirs);
	o.slot_form = KVMEM_SLOT_DIRECT;
	ok(kvmem_region_create(vm, &o, &ours));
	failed(EINVAL, "slot 0", kvmem_region_attach(ours, 0, PAGE, 0, 0, 0, NULL));
	ok(kvmem_region_free(ours));
	ok(kvmem_region_free(theirs));
	ok(kvmem_vm_free(other));
	ok(kvmem_vm_free(vm));
}
END

/* ---- adopting ---- */

TEST(adopted_files_keep_their_pages)
{
	static const uint32_t kinds[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_GUEST_MEMFD };

	for (size_t i = 0; i < 2; i++) {
		struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
		struct kvmem_region *first;
		struct kvmem_run run;

		if (!open_vm())
			return;
		if (!has_backing(kinds[i])) {
			kvmem_vm_free(vm);
			continue;
		}
		ok(CREATE(.backing = kinds[i]));
		first = ram;
		base[5 * PAGE + 1] = 55;
		base[700 * PAGE] = 70;
		o.flags = KVMEM_REGION_FD | KVMEM_REGION_OVERLAP;
		o.fd = kvmem_region_fd(first);
		o.fd_offset = 4 * PAGE;
		o.bytes = BYTES - 4 * PAGE;
		ok(kvmem_region_create(vm, &o, &ram));
		ok(kvmem_region_free(first));
		ck_assert_uint_eq(((unsigned char *)kvmem_region_base(ram))[PAGE + 1], 55);
		ck_assert_int_eq(kvmem_region_next_missing(ram, PAGE, &run), 1);
		ck_assert_uint_eq(run.offset, 2 * PAGE);
		ck_assert_uint_eq(run.bytes, (696 - 2) * PAGE);
		ck_assert_uint_eq(pages_there(), 2);
		ok(kvmem_region_discard(ram, PAGE, PAGE));
		ck_assert_uint_eq(pages_there(), 1);
		close_all();
	}
}
END

/* To another user the kernel says that all pages are there: nothing of it would be filled. */
TEST(a_guest_memfd_of_another_user_is_refused)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_region *first;
	int r;

	SKIP_IF(geteuid(), "root", "only root can become another user");
	if (!open_vm())
		return;
	if (!has_backing(KVMEM_BACKING_GUEST_MEMFD)) {
		kvmem_vm_free(vm);
		SKIP("guest-memfd", "none that can be mapped");
	}
	ok(CREATE(.backing = KVMEM_BACKING_GUEST_MEMFD));
	first = ram;
	base[5 * PAGE] = 55;
	o.flags = KVMEM_REGION_FD | KVMEM_REGION_OVERLAP;
	o.fd = kvmem_region_fd(first);
	o.bytes = BYTES;
	ck_assert_int_eq(seteuid(65534), 0);
	r = kvmem_region_create(vm, &o, &ram);
	ck_assert_int_eq(seteuid(0), 0);
	failed(EOPNOTSUPP, "belongs to another user", r);
	ck_assert_int_eq(seteuid(65534), 0);
	r = kvmem_region_plan(vm, &o, &plan);
	ck_assert_int_eq(seteuid(0), 0);
	failed(EOPNOTSUPP, "belongs to another user", r);
	ok(kvmem_region_create(vm, &o, &ram));
	ok(kvmem_region_free(first));
	ck_assert_uint_eq(pages_there(), 1);
	close_all();
}
END

TEST(files_of_other_kinds)
{
	int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDWR);
	int file = open("/var/tmp", O_TMPFILE | O_RDWR, 0600), kvm = open("/dev/kvm", O_RDWR),
	    closed = dup(null);
	struct statfs fs;

	if (!open_vm())
		return;
	close(closed);
	failed(EBADF, "not open", CREATE(.flags = KVMEM_REGION_FD, .fd = closed));
	failed(EBADF, "neither", CREATE(.flags = KVMEM_REGION_FD, .fd = null));
	failed(EBADF, "neither", CREATE(.flags = KVMEM_REGION_FD, .fd = zero));
	failed(EBADF, "neither", CREATE(.flags = KVMEM_REGION_FD, .fd = kvm));
	failed(EBADF, "neither", CREATE(.flags = KVMEM_REGION_FD, .fd = kvmem_vm_fd(vm)));
	/* A file on tmpfs is shmem as a memfd is, and taken as one. */
	if (file >= 0 && !fstatfs(file, &fs) && fs.f_type != TMPFS_MAGIC) {
		ck_assert(!ftruncate(file, (off_t)BYTES));
		ck_assert_int_eq(pwrite(file, "keep", 4, 0), 4);
		failed(EBADF, "neither", CREATE(.flags = KVMEM_REGION_FD, .fd = file));
		ck_assert_int_eq(lseek(file, 0, SEEK_DATA), 0); /* nothing was punched into it */
	}
	ok(kvmem_vm_free(vm));
	close(null);
	close(zero);
	close(file);
	close(kvm);
}
END

TEST(vms_of_other_kinds)
{
	int null = open("/dev/null", O_RDWR), kvm, vcpu;

	if (!open_vm())
		return;
	kvm = open("/dev/kvm", O_RDWR);
	vcpu = ioctl(kvmem_vm_fd(vm), 0xae41, 0); /* KVM_CREATE_VCPU */
	ck_assert_int_ge(vcpu, 0);
	struct kvmem_vm *other;

	failed(EBADF, "not a KVM VM", kvmem_vm_adopt(null, NULL, &other));
	failed(EBADF, "not a KVM VM", kvmem_vm_adopt(kvm, NULL, &other));
	failed(EBADF, "not a KVM VM", kvmem_vm_adopt(vcpu, NULL, &other));
	ok(kvmem_vm_adopt(kvmem_vm_fd(vm), NULL, &other));
	ok(kvmem_vm_free(other));
	ok(kvmem_vm_free(vm));
	close(null);
	close(kvm);
	close(vcpu);
}
END

/* ---- discarding ---- */

TEST(discarded_pages_are_zero_and_gone)
{
	for (size_t i = 0; i < 3; i++) {
		if (!open_vm())
			return;
		if (!has_backing(backings[i])) {
			kvmem_vm_free(vm);
			continue;
		}
		ok(CREATE(.backing = backings[i]));
		memset(base, 0xee, BYTES);
		ok(kvmem_region_discard(ram, 16 * PAGE, 100 * PAGE));
		ck_assert_uint_eq(pages_there(), BYTES / PAGE - 100);
		for (size_t p = 0; p < BYTES / PAGE; p++)
			ck_assert_uint_eq(base[p * PAGE + 7], p >= 16 && p < 116 ? 0 : 0xee);
		base[20 * PAGE] = 1;
		ck_assert_uint_eq(base[20 * PAGE], 1);
		close_all();
	}
}
END

static atomic_bool stop;

/* Counts up in each word of its page: a value may fall back to zero, never to anything else. */
static void *count_up(void *arg)
{
	_Atomic uint64_t *word = arg;
	uintptr_t bad = 0;
	uint64_t last = 0;

	while (!stop) {
		uint64_t got = atomic_fetch_add(word, 1);

		bad |= got && got != last;
		last = got + 1;
	}
	return (void *)bad;
}

TEST(discards_race_with_writers)
{
	pthread_t t[3];

	if (!open_vm())
		return;
	ok(CREATE(.wants = KVMEM_WANT_DIRTY));
	stop = false;
	for (size_t i = 0; i < 3; i++)
		ck_assert_int_eq(pthread_create(&t[i], NULL, count_up, base + i * PAGE), 0);
	for (int round = 0; round < 2000; round++)
		ok(kvmem_region_discard(ram, (size_t)(round % 3) * PAGE, PAGE));
	stop = true;
	for (size_t i = 0; i < 3; i++) {
		void *bad;

		pthread_join(t[i], &bad);
		ck_assert_ptr_null(bad);
	}
	close_all();
}
END

/* ---- huge pages ---- */

TEST(hugetlb)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *again;
	struct kvmem_run run;

	if (!open_vm())
		return;
	if (CREATE(.needs = KVMEM_WANT_HUGE, .bytes = 4 * SIZE_2M)) {
		kvmem_vm_free(vm);
		SKIP("hugetlb", "%s", kvmem_error_detail());
	}
	ck_assert_uint_eq(kvmem_region_page_size(ram), SIZE_2M);
	base[SIZE_2M] = 2;
	base[2 * SIZE_2M] = 3;
	ck_assert_uint_eq(pages_there(), 2);
	ok(kvmem_region_attach(ram, SIZE_2M + PAGE, PAGE, 0, KVMEM_SLOT_ANY, 0, NULL));
	failed(EINVAL, "multiple", kvmem_region_discard(ram, 0, PAGE));
	o.flags = KVMEM_REGION_FD | KVMEM_REGION_OVERLAP;
	o.fd = kvmem_region_fd(ram);
	o.bytes = 4 * SIZE_2M;
	ok(kvmem_region_create(vm, &o, &again));
	ck_assert_int_eq(kvmem_region_next_missing(again, SIZE_2M, &run), 1);
	ck_assert_uint_eq(run.offset, 3 * SIZE_2M);
	ck_assert_int_eq(kvmem_region_next_missing(again, 0, &run), 1);
	ck_assert_uint_eq(run.bytes, SIZE_2M);
	ok(kvmem_region_discard(again, SIZE_2M, SIZE_2M));
	ck_assert_uint_eq(base[SIZE_2M], 0);
	ok(kvmem_region_free(again));
	close_all();
}
END

TEST(no_huge_pages_left)
{
	if (!open_vm())
		return;
	ck_assert_int_lt(CREATE(.backing = KVMEM_BACKING_HUGETLB, .bytes = 1ul << 46), 0);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "huge"));
	ok(CREATE(.wants = KVMEM_WANT_HUGE, .bytes = 3 * PAGE)); /* cannot be huge: falls back */
	ck_assert_uint_eq(kvmem_region_page_size(ram), PAGE);
	close_all();
}
END

/* ---- limits, in a child ---- */

static int little_address_space(void *arg)
{
	struct rlimit limit = { .rlim_cur = 1ul << 30, .rlim_max = 1ul << 30 };

	(void)arg;
	if (setrlimit(RLIMIT_AS, &limit))
		return 99;
	for (size_t i = 1; i < 3; i++) {
		unsigned int fds = harness_count_fds();

		if (CREATE(.bytes = 1ul << 31, .backing = backings[i]) != -ENOMEM ||
		    !strstr(kvmem_error_detail(), "RLIMIT_AS") || harness_count_fds() != fds)
			return 1;
	}
	return CREATE(.bytes = PAGE);
}

static int few_files(void *arg)
{
	struct rlimit limit = { .rlim_cur = 32, .rlim_max = 32 };

	(void)arg;
	setrlimit(RLIMIT_NOFILE, &limit);
	while (dup(0) >= 0)
		;
	return !(CREATE(.backing = KVMEM_BACKING_MEMFD) == -EMFILE && kvmem_error_detail()[0]);
}

static int small_files(void *arg)
{
	struct rlimit limit = { .rlim_cur = PAGE, .rlim_max = PAGE };

	(void)arg;
	signal(SIGXFSZ, SIG_IGN);
	setrlimit(RLIMIT_FSIZE, &limit);
	return !(CREATE(.backing = KVMEM_BACKING_MEMFD) == -EFBIG && kvmem_error_detail()[0]);
}

TEST(limits)
{
	if (!open_vm())
		return;
#if !defined(__SANITIZE_ADDRESS__) && \
	!defined(__SANITIZE_THREAD__) /* whose runtime needs more than such a limit leaves */
	ck_assert_int_eq(harness_child(little_address_space, NULL), 0);
#else
	(void)little_address_space;
#endif
	ck_assert_int_eq(harness_child(few_files, NULL), 0);
	ck_assert_int_eq(harness_child(small_files, NULL), 0);
	ok(kvmem_vm_free(vm));
}
END

/* ---- private memory ---- */

TEST(private_memory)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;
	struct kvmem_plan p = KVMEM_PLAN_INIT;

	SKIP_IF(access("/dev/kvm", R_OK | W_OK), "kvm", "/dev/kvm cannot be opened");
	o.type = 1; /* KVM_X86_SW_PROTECTED_VM */
	if (kvmem_vm_create(&o, &vm))
		SKIP("private", "%s", kvmem_error_detail());
	ok(CREATE(.needs = KVMEM_WANT_PRIVATE));
	ok(kvmem_region_get_plan(ram, &p));
	ck_assert_uint_eq(p.slot_form, KVMEM_SLOT_DIRECT);
	failed(ENOENT, "in no slot",
	       kvmem_region_set_attributes(ram, 0, PAGE, KVMEM_ATTRIBUTE_PRIVATE));
	ok(kvmem_region_attach(ram, 0, BYTES, 1 << 30, KVMEM_SLOT_ANY, 0, NULL));
	base[0] = 1;
	ok(kvmem_region_set_attributes(ram, 0, BYTES, KVMEM_ATTRIBUTE_PRIVATE));
	ok(kvmem_region_set_attributes(ram, 4 * PAGE, 8 * PAGE, 0));
	ok(kvmem_region_discard(ram, 0, PAGE));
	ck_assert_uint_eq(base[0], 0);
	close_all();
}
END

TEST(no_private_memory_on_an_ordinary_vm)
{
	if (!open_vm())
		return;
	failed(EOPNOTSUPP, "private", CREATE(.needs = KVMEM_WANT_PRIVATE));
	ok(CREATE(.wants = KVMEM_WANT_PRIVATE));
	failed(EOPNOTSUPP, "KVM_CAP_MEMORY_ATTRIBUTES",
	       kvmem_region_set_attributes(ram, 0, PAGE, 0));
	close_all();
}
END

HARNESS_MAIN(T(every_backing_reads_zero_and_keeps_what_is_written), T(nothing_is_left_behind),
	     T(plans_come_true), T(without_a_vm), T(k9_3_huge_pages_are_asked_of_the_kernel),
	     T(bad_sizes), T(a_guest_memfd_is_in_one_direct_slot_at_most),
	     T(a_guest_memfd_of_another_vm_is_refused), T(adopted_files_keep_their_pages),
	     T(a_guest_memfd_of_another_user_is_refused), T(files_of_other_kinds),
	     T(vms_of_other_kinds), T(discarded_pages_are_zero_and_gone),
	     T(discards_race_with_writers), T(hugetlb), T(no_huge_pages_left), T(limits),
	     T(private_memory), T(no_private_memory_on_an_ordinary_vm))
