// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Kernels of every kind, faked: what the table makes of them. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "caps/caps_internal.h"
#include "fake_kvm.h"
#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"
#include "base/uapi/userfaultfd.h"

static struct kvmem_caps *caps;

static const struct kvmem_cap_info *get(uint32_t id)
{
	static struct kvmem_cap_info info;

	info.size = sizeof(info);
	ck_assert_int_eq(kvmem_caps_get(caps, id, &info), 0);
	ck_assert_msg(strlen(info.reason) > 10, "%s has no reason", info.name);
	return &info;
}

static void probe(void)
{
	ck_assert_int_eq(kvmem_caps_probe(NULL, &caps), 0);
}

static void expect(uint32_t id, uint32_t support, int64_t value)
{
	const struct kvmem_cap_info *i = get(id);

	ck_assert_msg(i->support == support && i->value == value, "%s: support %u value 0x%llx: %s",
		      i->name, i->support, (unsigned long long)i->value, i->reason);
}

static void says(uint32_t id, const char *word)
{
	ck_assert_msg(strstr(get(id)->reason, word), "'%s' is not in: %s", word, get(id)->reason);
}

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

/* ---- the table ---- */

TEST(every_id_has_its_line)
{
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++) {
		ck_assert_uint_eq(km_cap_defs[id - 1].id, id);
		ck_assert_str_eq(kvmem_cap_name(id), km_cap_defs[id - 1].name);
		for (uint32_t other = 1; other < id; other++)
			ck_assert_str_ne(kvmem_cap_name(id), kvmem_cap_name(other));
	}
	ck_assert_ptr_null(kvmem_cap_name(0));
	ck_assert_ptr_null(kvmem_cap_name(KVMEM_CAP_COUNT_));
}
END

TEST(every_line_is_settled_by_its_probe_alone)
{
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++) {
		fake_kvm_reset();
		ck_assert_int_eq(km_caps_create(-1, -1, 0, &caps), 0);
		get(id);
		ck_assert_msg(caps->entries[id].settled, "%s", kvmem_cap_name(id));
		ck_assert_int_eq(caps->scratch_vm, -1);
		kvmem_caps_free(caps);
		ck_assert_int_eq(fake.allocs, 0);
	}
}
END

TEST(bad_input)
{
	struct kvmem_caps_opts o = KVMEM_CAPS_OPTS_INIT;
	struct kvmem_cap_info info = KVMEM_CAP_INFO_INIT;
	char c;

	fake_kvm_reset();
	failed(EINVAL, "ret_caps", kvmem_caps_probe(NULL, NULL));
	o.flags = 2;
	failed(EINVAL, "flags", kvmem_caps_probe(&o, &caps));
	o.flags = KVMEM_CAPS_VM_FD;
	o.vm_fd = -1;
	failed(EBADF, "vm_fd -1", kvmem_caps_probe(&o, &caps));
	o.vm_fd = 0;
	failed(EBADF, "vm_fd 0", kvmem_caps_probe(&o, &caps));
	o.flags = 0;
	o.reserved = 1;
	failed(EINVAL, "reserved", kvmem_caps_probe(&o, &caps));
	o.size = 3;
	failed(EINVAL, "size is 3", kvmem_caps_probe(&o, &caps));
	ck_assert_int_eq(fake.allocs, 0);
	probe();
	failed(EINVAL, "number 0", kvmem_caps_get(caps, 0, &info));
	failed(EINVAL, "number 9999", kvmem_caps_get(caps, 9999, &info));
	failed(EINVAL, "NULL", kvmem_caps_get(NULL, 1, &info));
	failed(EINVAL, "NULL", kvmem_caps_get(caps, 1, NULL));
	info.size = 4;
	failed(EINVAL, "size is 4", kvmem_caps_get(caps, 1, &info));
	failed(EINVAL, "caps", kvmem_caps_format(NULL, 0, &c, 1));
	failed(EINVAL, "buf", kvmem_caps_format(caps, 0, NULL, 1));
	failed(EINVAL, "format 2", kvmem_caps_format(caps, 2, &c, 1));
	kvmem_caps_free(caps);
	kvmem_caps_free(NULL);
}
END

TEST(formats)
{
	for (uint32_t format = KVMEM_CAPS_TEXT; format <= KVMEM_CAPS_JSON; format++) {
		char *whole, part[100];
		int n;

		fake_kvm_reset();
		probe();
		n = kvmem_caps_format(caps, format, NULL, 0);
		ck_assert_int_gt(n, 1000);
		whole = malloc((size_t)n + 1);
		ck_assert_int_eq(kvmem_caps_format(caps, format, whole, (size_t)n + 1), n);
		ck_assert_uint_eq(strlen(whole), (size_t)n);
		ck_assert_int_eq(kvmem_caps_format(caps, format, part, sizeof(part)), n);
		ck_assert_uint_eq(strlen(part), sizeof(part) - 1);
		ck_assert_mem_eq(part, whole, sizeof(part) - 1);
		for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++)
			ck_assert_ptr_nonnull(strstr(whole, kvmem_cap_name(id)));
		/* For people, numbers are in tens and bits are not; for machines all is in tens. */
		ck_assert_ptr_nonnull(strstr(whole, format ? "\"value\": 12," : " 12 "));
		ck_assert_ptr_nonnull(strstr(whole, format ? "\"value\": 3," : " 0x3 "));
		free(whole);
		kvmem_caps_free(caps);
	}
}
END

/* ---- kernels ---- */

TEST(no_kvm_at_all)
{
	fake_kvm_reset();
	kvm.open_error = ENOENT;
	probe();
	expect(KVMEM_CAP_KVM, KVMEM_SUPPORT_NONE, 0);
	ck_assert_int_eq(get(KVMEM_CAP_KVM)->error, ENOENT);
	says(KVMEM_CAP_KVM, "kvm_intel");
	expect(KVMEM_CAP_GUEST_MEMFD, KVMEM_SUPPORT_UNKNOWN, 0);
	ck_assert_int_eq(get(KVMEM_CAP_DIRTY_RING)->error, ENOENT);
	ck_assert_uint_eq(get(KVMEM_CAP_MADV_POPULATE)->support, KVMEM_SUPPORT_NATIVE);
	kvmem_caps_free(caps);
	kvm.open_error = EACCES;
	probe();
	says(KVMEM_CAP_KVM, "give this user");
	kvmem_caps_free(caps);
}
END

TEST(a_kernel_before_guest_memfd)
{
	fake_kvm_reset();
	kvm.no_gmem = kvm.no_memory2 = true;
	kvm.gmem_advertised = 0;
	probe();
	expect(KVMEM_CAP_USER_MEMORY2, KVMEM_SUPPORT_NONE, 0);
	expect(KVMEM_CAP_READONLY_MEM, KVMEM_SUPPORT_NATIVE, 0);
	for (uint32_t id = KVMEM_CAP_GUEST_MEMFD; id <= KVMEM_CAP_GUEST_MEMFD_HVA_DIRTY; id++)
		ck_assert_msg(get(id)->support == KVMEM_SUPPORT_NONE, "%s", kvmem_cap_name(id));
	says(KVMEM_CAP_GUEST_MEMFD, "6.18");
	ck_assert_uint_eq(kvm.slot_count, 0);
	kvmem_caps_free(caps);
}
END

TEST(a_kernel_whose_guest_memfd_cannot_be_mapped)
{
	fake_kvm_reset();
	kvm.gmem_flags = kvm.gmem_advertised = 0;
	probe();
	expect(KVMEM_CAP_GUEST_MEMFD, KVMEM_SUPPORT_NATIVE, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_MMAP, KVMEM_SUPPORT_NONE, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_INIT_SHARED, KVMEM_SUPPORT_NONE, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT, KVMEM_SUPPORT_NATIVE, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_HVA_SLOT, KVMEM_SUPPORT_NONE, 0);
	kvmem_caps_free(caps);
	kvm.gmem_flags = kvm.gmem_advertised = 1; /* mapped, but no page can be touched */
	probe();
	expect(KVMEM_CAP_GUEST_MEMFD_MMAP, KVMEM_SUPPORT_NATIVE, 1);
	expect(KVMEM_CAP_GUEST_MEMFD_INIT_SHARED, KVMEM_SUPPORT_NONE, 0);
	kvmem_caps_free(caps);
}
END

TEST(linux_6_18)
{
	fake_kvm_reset();
	probe();
	expect(KVMEM_CAP_GUEST_MEMFD, KVMEM_SUPPORT_NATIVE, 3);
	expect(KVMEM_CAP_GUEST_MEMFD_MMAP, KVMEM_SUPPORT_NATIVE, 1);
	expect(KVMEM_CAP_GUEST_MEMFD_INIT_SHARED, KVMEM_SUPPORT_NATIVE, 3);
	expect(KVMEM_CAP_GUEST_MEMFD_GUP, KVMEM_SUPPORT_NATIVE, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_WRITE, KVMEM_SUPPORT_FALLBACK, 0);
	ck_assert_int_eq(get(KVMEM_CAP_GUEST_MEMFD_WRITE)->error, ESPIPE);
	expect(KVMEM_CAP_GUEST_MEMFD_NUMA, KVMEM_SUPPORT_FALLBACK, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_UFFD, KVMEM_SUPPORT_FALLBACK, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT, KVMEM_SUPPORT_NATIVE, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_DIRECT_DIRTY, KVMEM_SUPPORT_NONE, 0);
	says(KVMEM_CAP_GUEST_MEMFD_DIRECT_DIRTY, "instead");
	expect(KVMEM_CAP_GUEST_MEMFD_HVA_DIRTY, KVMEM_SUPPORT_NATIVE, 0);
	ck_assert_uint_eq(kvm.slot_count, 0);
	kvmem_caps_free(caps);
}
END

/* Each revision of write population, under each flag it was posted with. */
TEST(write_population_in_every_revision)
{
	static const struct {
		enum fake_write write;
		uint64_t flags, write_flag, no_gup_flag;
		int64_t rev;
	} kernels[] = {
		{ FAKE_WRITE_ONCE, 3, 0, 0, KVMEM_WRITE_ALIGNED_ONCE },
		{ FAKE_WRITE_ANY, 3, 0, 0, KVMEM_WRITE_ANY },
		{ FAKE_WRITE_ALIGNED, 7, 4, 0, KVMEM_WRITE_ALIGNED },
		{ FAKE_WRITE_ALIGNED, 0xf, 8, 4, KVMEM_WRITE_ALIGNED },
		{ FAKE_WRITE_ALIGNED, 0xf, 4, 8, KVMEM_WRITE_ALIGNED },
		{ FAKE_WRITE_ANY, 0x83, 0x80, 0, KVMEM_WRITE_ANY },
	};

	for (size_t i = 0; i < KM_ARRAY_SIZE(kernels); i++) {
		fake_kvm_reset();
		kvm.write = kernels[i].write;
		kvm.gmem_flags = kvm.gmem_advertised = kernels[i].flags;
		kvm.write_flag = kernels[i].write_flag;
		kvm.no_gup_flag = kernels[i].no_gup_flag;
		probe();
		expect(KVMEM_CAP_GUEST_MEMFD_WRITE, KVMEM_SUPPORT_NATIVE, kernels[i].rev);
		expect(KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG, KVMEM_SUPPORT_NATIVE,
		       (int64_t)kernels[i].write_flag);
		expect(KVMEM_CAP_GUEST_MEMFD_GUP, KVMEM_SUPPORT_NATIVE, 0);
		kvmem_caps_free(caps);
	}
}
END

TEST(a_flag_that_takes_away_more_than_it_gives)
{
	fake_kvm_reset();
	kvm.write = FAKE_WRITE_ALIGNED;
	kvm.gmem_flags = kvm.gmem_advertised = 7;
	kvm.write_flag = kvm.no_gup_flag = 4;
	probe();
	expect(KVMEM_CAP_GUEST_MEMFD_WRITE, KVMEM_SUPPORT_FALLBACK, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_GUP, KVMEM_SUPPORT_NATIVE, 0);
	kvmem_caps_free(caps);
}
END

TEST(a_kernel_that_has_it_all)
{
	int64_t modes = KVMEM_UFFD_MISSING | KVMEM_UFFD_MINOR;
	int64_t fd = km_uffd_try(0, NULL);

	SKIP_IF(fd < 0, "uffd", "userfaultfd is forbidden");
	close((int)fd);
	fake_kvm_reset();
	kvm.gmem_uffd = kvm.gmem_numa = kvm.direct_dirty = true;
	kvm.attributes = KVMEM_ATTRIBUTE_PRIVATE;
	probe();
	ck_assert_int_eq(get(KVMEM_CAP_GUEST_MEMFD_UFFD)->value & modes, modes);
	expect(KVMEM_CAP_GUEST_MEMFD_NUMA, KVMEM_SUPPORT_NATIVE, 0);
	expect(KVMEM_CAP_GUEST_MEMFD_DIRECT_DIRTY, KVMEM_SUPPORT_NATIVE, 0);
	expect(KVMEM_CAP_MEMORY_ATTRIBUTES, KVMEM_SUPPORT_NATIVE, KVMEM_ATTRIBUTE_PRIVATE);
	kvmem_caps_free(caps);
}
END

/* A userfaultfd that registers anything and raises nothing: feature bits and success are
	   not enough. */
static int64_t register_and_do_nothing(int fd, unsigned long request, void *arg)
{
	return request == UFFDIO_REGISTER ? 0 : km_real_ioctl(fd, request, arg);
}

TEST(a_registration_that_raises_nothing_is_no_support)
{
	fake_kvm_reset();
	fake.ioctl = register_and_do_nothing;
	probe();
	ck_assert_uint_ne(get(KVMEM_CAP_UFFD_SHMEM)->support, KVMEM_SUPPORT_NATIVE);
	ck_assert_uint_ne(get(KVMEM_CAP_UFFD_ANON)->support, KVMEM_SUPPORT_NATIVE);
	kvmem_caps_free(caps);
}
END

/* ---- userfaultfd ---- */

static int64_t no_device(const char *path, int flags)
{
	return strcmp(path, "/dev/userfaultfd") ? km_real_open(path, flags) : -EACCES;
}

static int64_t forbidden(int flags)
{
	ck_assert(!(flags & UFFD_USER_MODE_ONLY));
	return -EPERM;
}

static int64_t absent(int flags)
{
	(void)flags;
	return -ENOSYS;
}

TEST(userfaultfd_forbidden)
{
	fake_kvm_reset();
	fake.open = no_device;
	fake.userfaultfd = forbidden;
	failed(EPERM, "vm.unprivileged_userfaultfd", km_uffd_open(0));
	failed(EPERM, "CAP_SYS_PTRACE", km_uffd_open(0));
	failed(EPERM, "/dev/userfaultfd", km_uffd_open(0));
	probe();
	expect(KVMEM_CAP_UFFD, KVMEM_SUPPORT_NONE, 0);
	ck_assert_int_eq(get(KVMEM_CAP_UFFD)->error, EPERM);
	ck_assert_int_eq(get(KVMEM_CAP_UFFD_DEVICE)->error, EACCES);
	says(KVMEM_CAP_UFFD_SYSCALL, "vm.unprivileged_userfaultfd");
	expect(KVMEM_CAP_UFFD_SHMEM, KVMEM_SUPPORT_NONE, 0);
	kvmem_caps_free(caps);
	fake.userfaultfd = absent;
	failed(ENOSYS, "CONFIG_USERFAULTFD", km_uffd_open(0));
}
END

static int64_t odd_api(int fd, unsigned long request, void *arg)
{
	struct uffdio_api *api = arg;

	if (request != UFFDIO_API)
		return km_real_ioctl(fd, request, arg);
	return api->features ? -EINVAL : 0;
}

TEST(features_refused)
{
	unsigned int fds = harness_count_fds();

	fake_kvm_reset();
	fake.ioctl = odd_api;
	failed(EOPNOTSUPP, "0x8000", km_uffd_open(0x8000));
	ck_assert_uint_eq(harness_count_fds(), fds);
}
END

/* ---- io_uring ---- */

static int uring_error;

static int64_t no_uring(unsigned int entries, struct io_uring *ring, struct io_uring_params *p)
{
	(void)entries, (void)ring, (void)p;
	return -uring_error;
}

TEST(io_uring_forbidden)
{
	static const struct {
		int error;
		const char *word;
	} cases[] = { { EPERM, "kernel.io_uring_disabled" },
		      { ENOSYS, "CONFIG_IO_URING" },
		      { ENOMEM, "RLIMIT_MEMLOCK" } };

	for (size_t i = 0; i < KM_ARRAY_SIZE(cases); i++) {
		fake_kvm_reset();
		uring_error = cases[i].error;
		fake.uring_init = no_uring;
		probe();
		expect(KVMEM_CAP_IO_URING, KVMEM_SUPPORT_FALLBACK, 0);
		ck_assert_str_eq(get(KVMEM_CAP_IO_URING)->fallback, "pread()");
		says(KVMEM_CAP_IO_URING, cases[i].word);
		ck_assert_int_eq(get(KVMEM_CAP_IO_URING_FIXED)->error, cases[i].error);
		kvmem_caps_free(caps);
	}
}
END

static int64_t no_tmpfile(const char *path, int flags)
{
	return (flags & O_TMPFILE) == O_TMPFILE ? -EOPNOTSUPP : km_real_open(path, flags);
}

TEST(no_file_system_to_try)
{
	fake_kvm_reset();
	fake.open = no_tmpfile;
	ck_assert_int_eq(km_caps_create(-1, -1, 0, &caps), 0);
	expect(KVMEM_CAP_ODIRECT_GUEST_MEMORY, KVMEM_SUPPORT_UNKNOWN, 0);
	ck_assert_int_eq(get(KVMEM_CAP_ODIRECT_GUEST_MEMORY)->error, EOPNOTSUPP);
	kvmem_caps_free(caps);
}
END

/* ---- keeping ---- */

/* Huge pages come and go while others work: what needs one is asked for each time. */
static bool needs_huge_pages(uint32_t id)
{
	return id == KVMEM_CAP_HUGETLB_2M || id == KVMEM_CAP_HUGETLB_1G ||
	       id == KVMEM_CAP_UFFD_HUGETLB || id == KVMEM_CAP_UFFD_WP_ASYNC ||
	       id == KVMEM_CAP_UFFD_POISON;
}

static void *ask_all(void *arg)
{
	uint64_t sum = 0;

	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++) {
		uint64_t value = (uint64_t)km_caps_value(arg, (enum kvmem_cap)id);

		if (!needs_huge_pages(id))
			sum += value;
	}
	return (void *)(uintptr_t)sum;
}

TEST(threads_ask_and_one_probes)
{
	pthread_t t[4];
	void *sums[4];

	fake_kvm_reset();
	ck_assert_int_eq(km_caps_create(-1, -1, 0, &caps), 0);
	for (int i = 0; i < 4; i++)
		ck_assert_int_eq(pthread_create(&t[i], NULL, ask_all, caps), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], &sums[i]);
	for (int i = 1; i < 4; i++)
		ck_assert_ptr_eq(sums[i], sums[0]);
	ck_assert_ptr_nonnull(sums[0]);
	kvmem_caps_free(caps);
}
END

TEST(whichever_call_fails_the_table_is_whole)
{
	unsigned long total;

	fake_kvm_reset();
	probe();
	total = fake.calls;
	kvmem_caps_free(caps);
	for (unsigned long n = 1; n <= total; n++) {
		unsigned int fds = harness_count_fds(), maps = harness_count_maps();

		fake_kvm_reset();
		fake.fail_at = n;
		fake.fail_errno = ENOMEM;
		caps = NULL;
		if (kvmem_caps_probe(NULL, &caps))
			ck_assert_ptr_null(caps);
		else
			for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++)
				get(id);
		kvmem_caps_free(caps);
		ck_assert_msg(harness_count_fds() == fds, "call %lu, %s: a file descriptor leaks",
			      n, fake.failed);
		ck_assert_msg(harness_count_maps() == maps, "call %lu, %s: a mapping leaks", n,
			      fake.failed);
		ck_assert_int_eq(fake.allocs, 0);
	}
}
END

static int64_t no_room(const char *path, int flags)
{
	(void)path;
	(void)flags;
	return -EMFILE;
}

static int64_t no_room_either(const char *name, unsigned int flags)
{
	(void)name;
	(void)flags;
	return -ENFILE;
}

TEST(too_many_open_files_say_nothing_of_the_kernel)
{
	unsigned int unknown = 0;

	fake_kvm_reset();
	fake.open = no_room;
	fake.memfd_create = no_room_either;
	probe();
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++) {
		const struct kvmem_cap_info *i = get(id);

		if (i->error != EMFILE && i->error != ENFILE)
			continue;
		ck_assert_msg(i->support == KVMEM_SUPPORT_UNKNOWN, "%s: support %u: %s", i->name,
			      i->support, i->reason);
		unknown++;
	}
	ck_assert_uint_ge(unknown, 20);
	kvmem_caps_free(caps);
}
END

static unsigned int memfds_left;

static int64_t few_memfds(const char *name, unsigned int flags)
{
	return memfds_left && memfds_left-- ? km_real_memfd_create(name, flags) : -ENOMEM;
}

/* Of a mode of userfaultfd, a probe that fails itself says nothing. */
TEST(a_userfaultfd_mode_is_unknown_when_its_probe_fails)
{
	static const uint32_t ids[] = { KVMEM_CAP_UFFD_SHMEM, KVMEM_CAP_UFFD_ANON };
	int64_t modes[KM_ARRAY_SIZE(ids)];
	unsigned int unknown = 0;

	for (unsigned int left = 100; left != UINT_MAX; left = left == 100 ? 12 : left - 1)
		for (size_t i = 0; i < KM_ARRAY_SIZE(ids); i++) {
			const struct kvmem_cap_info *info;

			fake_kvm_reset();
			fake.memfd_create = few_memfds;
			memfds_left = left;
			ck_assert_int_eq(km_caps_create(-1, -1, 0, &caps), 0);
			info = get(ids[i]);
			if (left == 100)
				modes[i] = info->value;
			else if (info->support == KVMEM_SUPPORT_UNKNOWN)
				unknown += info->error == ENOMEM;
			else
				ck_assert_msg(info->value == modes[i],
					      "%u memfds: %s: modes %lld, not %lld: %s", left,
					      info->name, (long long)info->value,
					      (long long)modes[i], info->reason);
			kvmem_caps_free(caps);
		}
	ck_assert_uint_gt(unknown, 3);
}
END

TEST(the_given_vm_gets_no_slot)
{
	struct kvmem_caps_opts o = KVMEM_CAPS_OPTS_INIT;
	int kvm_fd, vm;

	fake_kvm_reset();
	kvm.vm_types = 1 | 1 << 4;
	kvm_fd = (int)km_sys_open("/dev/kvm", O_RDWR);
	vm = (int)km_sys_ioctl_val(kvm_fd, KVM_CREATE_VM, 4);
	o.flags = KVMEM_CAPS_VM_FD;
	o.vm_fd = vm;
	o.vm_type = 4;
	ck_assert_int_eq(kvmem_caps_probe(&o, &caps), 0);
	ck_assert_uint_eq(kvm.vms, 2);
	ck_assert_uint_eq(kvm.last_type, 4);
	ck_assert_uint_gt(kvm.slot_calls, 0);
	ck_assert_uint_eq(kvm.slot_count, 0);
	kvmem_caps_free(caps);
	close(vm);
	close(kvm_fd);
}
END

/* KVM's stay open across exec: a program started meanwhile would inherit the probes'. */
TEST(k12_37_every_guest_memfd_is_closed_on_exec)
{
	fake_kvm_reset();
	probe();
	ck_assert_uint_gt(kvm.gmems, 3);
	ck_assert_uint_eq(fake.count.fcntl_cloexec, kvm.gmems);
	kvmem_caps_free(caps);
}
END

/* ---- what passes ---- */

struct answer {
	uint32_t support;
	int64_t value;
};

/* Hangs on how many huge pages are free, which others on this machine change. */
static bool is_quantity(uint32_t id)
{
	return km_cap_defs[id - 1].changes || id == KVMEM_CAP_UFFD_HUGETLB ||
	       id == KVMEM_CAP_UFFD_WP_ASYNC;
}

static void read_all(struct answer *all)
{
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++) {
		const struct kvmem_cap_info *i;

		kvm.slot_count = 0; /* what could not be deleted goes with its scratch VM */
		i = get(id);
		all[id] = (struct answer){ is_quantity(id) ? 0 : i->support,
					   is_quantity(id) ? 0 : i->value };
	}
}

/* Whichever call fails once for a reason that passes: what is asked for later is the truth. */
TEST(k2_12_a_failure_that_passes_is_not_kept)
{
	static const int errors[] = { EMFILE, ENOMEM, EAGAIN, ENFILE, EINTR };
	struct answer want[KVMEM_CAP_COUNT_], got[KVMEM_CAP_COUNT_];
	unsigned long total;

	fake_kvm_reset();
	kvm.gmem_uffd = kvm.gmem_numa = true;
	ck_assert_int_eq(km_caps_create(-1, -1, 0, &caps), 0);
	read_all(want);
	total = fake.calls;
	kvmem_caps_free(caps);
	for (unsigned long n = 1; n <= total; n++) {
		fake_kvm_reset();
		kvm.gmem_uffd = kvm.gmem_numa = true;
		ck_assert_int_eq(km_caps_create(-1, -1, 0, &caps), 0);
		fake.fail_at = fake.calls + n;
		fake.fail_errno = errors[n % KM_ARRAY_SIZE(errors)];
		read_all(got);
		fake.fail_at = 0;
		read_all(got);
		for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++)
			ck_assert_msg(
				got[id].support == want[id].support &&
					got[id].value == want[id].value,
				"call %lu, %s, errno %d: %s is %u, 0x%llx, not %u, 0x%llx: %s", n,
				fake.failed ? fake.failed : "none", fake.fail_errno,
				kvmem_cap_name(id), got[id].support,
				(unsigned long long)got[id].value, want[id].support,
				(unsigned long long)want[id].value, get(id)->reason);
		kvmem_caps_free(caps);
		ck_assert_int_eq(fake.allocs, 0);
	}
}
END

/* What is found stays found: nothing is probed twice where nothing failed. */
TEST(k2_12_what_was_found_is_kept)
{
	unsigned long calls;

	fake_kvm_reset();
	ck_assert_int_eq(km_caps_create(-1, -1, 0, &caps), 0);
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++)
		km_caps_has(caps, (enum kvmem_cap)id);
	calls = fake.calls;
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++)
		if (!is_quantity(id))
			km_caps_has(caps, (enum kvmem_cap)id);
	ck_assert_uint_eq(fake.calls, calls);
	kvmem_caps_free(caps);
}
END

static unsigned int free_huge;

static int64_t huge_memfd(const char *name, unsigned int flags)
{
	if (flags & MFD_HUGETLB)
		return free_huge ? km_real_memfd_create(name, 0) : -ENOMEM;
	return km_real_memfd_create(name, flags);
}

static int64_t huge_number(const char *path, int flags)
{
	int64_t fd;

	if (!strstr(path, "free_hugepages"))
		return km_real_open(path, flags);
	fd = km_real_memfd_create("free", 0);
	ck_assert_int_eq(dprintf((int)fd, "%u\n", free_huge) > 0, 1);
	lseek((int)fd, 0, SEEK_SET);
	return fd;
}

/* "Reserve some" can be followed. */
TEST(k2_12_huge_pages_are_counted_each_time)
{
	const char *first;

	fake_kvm_reset();
	fake.memfd_create = huge_memfd;
	fake.open = huge_number;
	free_huge = 0;
	ck_assert_int_eq(km_caps_create(-1, -1, 0, &caps), 0);
	ck_assert(!km_caps_has(caps, KVMEM_CAP_HUGETLB_2M));
	first = km_caps_reason(caps, KVMEM_CAP_HUGETLB_2M);
	ck_assert_ptr_nonnull(strstr(first, "reserve some"));
	for (free_huge = 3; free_huge; free_huge--) {
		ck_assert(km_caps_has(caps, KVMEM_CAP_HUGETLB_2M));
		ck_assert_int_eq(km_caps_value(caps, KVMEM_CAP_HUGETLB_2M), free_huge);
	}
	ck_assert(!km_caps_has(caps, KVMEM_CAP_HUGETLB_2M));
	ck_assert_ptr_eq(km_caps_reason(caps, KVMEM_CAP_HUGETLB_2M),
			 first); /* still there, and once */
	kvmem_caps_free(caps);
}
END

HARNESS_MAIN(T(every_id_has_its_line), T(every_line_is_settled_by_its_probe_alone), T(bad_input),
	     T(formats), T(no_kvm_at_all), T(a_kernel_before_guest_memfd),
	     T(a_kernel_whose_guest_memfd_cannot_be_mapped), T(linux_6_18),
	     T(write_population_in_every_revision), T(a_flag_that_takes_away_more_than_it_gives),
	     T(a_kernel_that_has_it_all), T(a_registration_that_raises_nothing_is_no_support),
	     T(userfaultfd_forbidden), T(features_refused), T(io_uring_forbidden),
	     T(no_file_system_to_try), T(threads_ask_and_one_probes),
	     T(whichever_call_fails_the_table_is_whole),
	     T(a_userfaultfd_mode_is_unknown_when_its_probe_fails),
	     T(too_many_open_files_say_nothing_of_the_kernel),
	     T(k12_37_every_guest_memfd_is_closed_on_exec), T(the_given_vm_gets_no_slot),
	     T(k2_12_a_failure_that_passes_is_not_kept), T(k2_12_what_was_found_is_kept),
	     T(k2_12_huge_pages_are_counted_each_time))
