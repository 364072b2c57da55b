// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Making and adopting a VM; the slot table and what KVM is told. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "fake_kvm.h"
#include "numa/numa.h"
#include "source/source.h"
#include "base/uapi/kvm.h"

#define PAGE 4096ull

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static unsigned int fds, maps;

static void fresh(uint32_t form)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	fake_kvm_reset();
	fds = harness_count_fds();
	maps = harness_count_maps();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
	o.bytes = 64 * PAGE;
	o.slot_form = form;
	ck_assert_int_eq(kvmem_region_create(vm, &o, &ram), 0);
}

static void done(void)
{
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
	ck_assert_int_eq(fake.allocs, 0);
	ck_assert_uint_eq(kvm.slot_count, 0);
}

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

/* ---- VMs ---- */

TEST(create_says_what_is_wrong)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;

	fake_kvm_reset();
	fds = harness_count_fds();
	failed(EINVAL, "ret_vm", kvmem_vm_create(NULL, NULL));
	o.flags = 4;
	failed(EINVAL, "flags", kvmem_vm_create(&o, &vm));
	o.flags = 0;
	o.ring_entries = 1000;
	failed(EINVAL, "power of two", kvmem_vm_create(&o, &vm));
	o.ring_entries = 0;
	o.manual_protect = 1;
	failed(EINVAL, "KVMEM_VM_MANUAL_PROTECT", kvmem_vm_create(&o, &vm));
	o.manual_protect = 0;
	o.type = 7;
	failed(EINVAL, "type 7", kvmem_vm_create(&o, &vm));
	o.type = 0;
	o.first_slot = 32;
	failed(EINVAL, "first_slot is 32", kvmem_vm_create(&o, &vm));
	o.size = 4;
	failed(EINVAL, "size", kvmem_vm_create(&o, &vm));
	kvm.open_error = ENOENT;
	failed(ENOENT, "/dev/kvm", kvmem_vm_create(NULL, &vm));
	kvm.open_error = EACCES;
	failed(EACCES, "give this user", kvmem_vm_create(NULL, &vm));
	kvm.open_error = ENXIO;
	failed(ENODEV, "load kvm_intel", kvmem_vm_create(NULL, &vm));
	kvm.open_error = 0;
	kvm.create_vm_error = ENOMEM;
	failed(ENOMEM, "KVM_CREATE_VM", kvmem_vm_create(NULL, &vm));
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_int_eq(fake.allocs, 0);
}
END

TEST(create_with_type_and_kvm_fd)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;
	int fd;

	fake_kvm_reset();
	kvm.vm_types = 1 | 1 << 3;
	fd = (int)km_sys_open("/dev/kvm", O_RDWR);
	fds = harness_count_fds();
	kvm.open_error = ENOENT; /* the one given is used instead */
	o.flags = KVMEM_VM_KVM_FD;
	o.kvm_fd = fd;
	o.type = 3;
	ck_assert_int_eq(kvmem_vm_create(&o, &vm), 0);
	ck_assert_uint_eq(kvm.last_type, 3);
	close(fd);
	ck_assert(km_caps_has(kvmem_vm_caps(vm), KVMEM_CAP_GUEST_MEMFD_HVA_SLOT));
	ck_assert_uint_eq(kvm.vms, 2); /* slots are tried on a VM of its own, of the same type */
	ck_assert_uint_eq(kvm.last_type, 3);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	ck_assert_uint_eq(harness_count_fds(), fds - 1);
	o.kvm_fd = -1;
	failed(EBADF, "kvm_fd", kvmem_vm_create(&o, &vm));
}
END

TEST(adopt)
{
	int kvm_fd, fd, pipes[2];

	fake_kvm_reset();
	kvm_fd = (int)km_sys_open("/dev/kvm", O_RDWR);
	fd = (int)km_sys_ioctl_val(kvm_fd, KVM_CREATE_VM, 0);
	ck_assert_int_eq(pipe(pipes), 0);
	failed(EBADF, "not a KVM VM", kvmem_vm_adopt(-1, NULL, &vm));
	failed(EBADF, "not a KVM VM", kvmem_vm_adopt(pipes[0], NULL, &vm));
	failed(EBADF, "not a KVM VM", kvmem_vm_adopt(kvm_fd, NULL, &vm));
	failed(EINVAL, "ret_vm", kvmem_vm_adopt(fd, NULL, NULL));
	fds = harness_count_fds();
	ck_assert_int_eq(kvmem_vm_adopt(fd, NULL, &vm), 0);
	ck_assert_int_ne(kvmem_vm_fd(vm), fd);
	ck_assert_int_eq(fcntl(kvmem_vm_fd(vm), F_GETFD), FD_CLOEXEC);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_int_ge(fcntl(fd, F_GETFD), 0);
	close(fd);
	close(kvm_fd);
	close(pipes[0]);
	close(pipes[1]);
}
END

TEST(null_and_busy)
{
	failed(EINVAL, "NULL", kvmem_vm_fd(NULL));
	ck_assert_ptr_null(kvmem_vm_caps(NULL));
	ck_assert_int_eq(kvmem_vm_free(NULL), 0);
	fresh(0);
	failed(EBUSY, "1 regions", kvmem_vm_free(vm));
	done();
}
END

TEST(no_call_that_fails_leaks)
{
	int r = -1;

	for (unsigned long n = 1; r; n++) {
		fake_kvm_reset();
		fds = harness_count_fds();
		maps = harness_count_maps();
		fake.fail_at = n;
		fake.fail_errno = EMFILE;
		r = kvmem_vm_create(NULL, &vm);
		fake.fail_at = 0;
		if (!r)
			kvmem_vm_free(vm);
		ck_assert_uint_eq(harness_count_fds(), fds);
		ck_assert_uint_eq(harness_count_maps(), maps);
		ck_assert_int_eq(fake.allocs, 0);
		ck_assert_uint_lt(n, 50);
	}
}
END

/* ---- slots ---- */

TEST(an_hva_slot_as_kvm_sees_it)
{
	uint32_t id = 99;

	fresh(KVMEM_SLOT_HVA);
	ck_assert_int_eq(kvmem_region_attach(ram, 8 * PAGE, 16 * PAGE, 1ull << 32, KVMEM_SLOT_ANY,
					     KVMEM_ATTACH_READONLY, &id),
			 0);
	ck_assert_uint_eq(id, 0);
	ck_assert(!kvm.slot.v2);
	ck_assert_uint_eq(kvm.slot.id, 0);
	ck_assert_uint_eq(kvm.slot.flags, KVM_MEM_READONLY);
	ck_assert_uint_eq(kvm.slot.gpa, 1ull << 32);
	ck_assert_uint_eq(kvm.slot.bytes, 16 * PAGE);
	ck_assert_uint_eq(kvm.slot.hva, (uintptr_t)kvmem_region_base(ram) + 8 * PAGE);
	ck_assert_int_eq(kvmem_region_detach(ram, id), 0);
	ck_assert_uint_eq(kvm.slot.bytes, 0);
	ck_assert_uint_eq(kvm.slot_count, 0);
	done();
}
END

TEST(a_direct_slot_as_kvm_sees_it)
{
	fresh(KVMEM_SLOT_DIRECT);
	ck_assert_int_eq(kvmem_region_attach(ram, 8 * PAGE, 16 * PAGE, PAGE, 1 << 16 | 5, 0, NULL),
			 0);
	ck_assert(kvm.slot.v2);
	ck_assert_uint_eq(kvm.slot.id, 1 << 16 | 5);
	ck_assert_uint_eq(kvm.slot.flags, KM_KVM_MEM_GUEST_MEMFD);
	ck_assert_uint_eq(kvm.slot.gpa, PAGE);
	ck_assert_uint_eq(kvm.slot.bytes, 16 * PAGE);
	ck_assert_uint_eq(kvm.slot.hva, (uintptr_t)kvmem_region_base(ram) + 8 * PAGE);
	ck_assert_int_eq(kvm.slot.gmem, kvmem_region_fd(ram));
	ck_assert_uint_eq(kvm.slot.gmem_offset, 8 * PAGE);
	failed(EOPNOTSUPP, "read-only",
	       kvmem_region_attach(ram, 32 * PAGE, PAGE, 1 << 30, KVMEM_SLOT_ANY,
				   KVMEM_ATTACH_READONLY, NULL));
	failed(EEXIST, "one direct slot",
	       kvmem_region_attach(ram, 20 * PAGE, 8 * PAGE, 1 << 30, KVMEM_SLOT_ANY, 0, NULL));
	done();
}
END

TEST(bad_slots)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *lone;

	fresh(0);
	failed(EINVAL, "NULL", kvmem_region_attach(NULL, 0, PAGE, 0, 0, 0, NULL));
	failed(EINVAL, "0 bytes", kvmem_region_attach(ram, 0, 0, 0, 0, 0, NULL));
	failed(ERANGE, "region", kvmem_region_attach(ram, 60 * PAGE, 5 * PAGE, 0, 0, 0, NULL));
	failed(EINVAL, "overflows", kvmem_region_attach(ram, PAGE, UINT64_MAX, 0, 0, 0, NULL));
	failed(ERANGE, "gpa", kvmem_region_attach(ram, 0, PAGE, 1ull << 52, 0, 0, NULL));
	failed(EINVAL, "gpa", kvmem_region_attach(ram, 0, PAGE, UINT64_MAX - 100, 0, 0, NULL));
	failed(EINVAL, "offset", kvmem_region_attach(ram, 1, PAGE, 0, 0, 0, NULL));
	failed(EINVAL, "bytes", kvmem_region_attach(ram, 0, PAGE + 1, 0, 0, 0, NULL));
	failed(EINVAL, "gpa", kvmem_region_attach(ram, 0, PAGE, 5, 0, 0, NULL));
	failed(EINVAL, "flags", kvmem_region_attach(ram, 0, PAGE, 0, 0, 2, NULL));
	failed(EINVAL, "slot number 32", kvmem_region_attach(ram, 0, PAGE, 0, 32, 0, NULL));
	ck_assert_uint_eq(kvm.slot_count, 0);
	failed(ENOENT, "slot 3", kvmem_region_detach(ram, 3));
	failed(EINVAL, "NULL", kvmem_region_detach(NULL, 3));
	o.bytes = PAGE;
	ck_assert_int_eq(kvmem_region_create(NULL, &o, &lone), 0);
	failed(EINVAL, "without a VM", kvmem_region_attach(lone, 0, PAGE, 0, 0, 0, NULL));
	failed(ENOENT, "without a VM", kvmem_region_detach(lone, 0));
	ck_assert_int_eq(kvmem_region_free(lone), 0);
	done();
}
END

TEST(numbers_and_overlaps)
{
	uint32_t id;

	fresh(0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, 4 * PAGE, 0, 1, 0, NULL), 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, 4 * PAGE, 4 * PAGE, KVMEM_SLOT_ANY, 0, &id),
			 0);
	ck_assert_uint_eq(id, 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, 4 * PAGE, 8 * PAGE, KVMEM_SLOT_ANY, 0, &id),
			 0);
	ck_assert_uint_eq(id, 2);
	failed(EEXIST, "taken", kvmem_region_attach(ram, 0, PAGE, 1 << 20, 1, 0, NULL));
	failed(EEXIST, "overlap slot 1", kvmem_region_attach(ram, 0, 3 * PAGE, PAGE, 9, 0, NULL));
	failed(EEXIST, "overlap slot 2", kvmem_region_attach(ram, 0, PAGE, 11 * PAGE, 9, 0, NULL));
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, 12 * PAGE, 9, 0, NULL), 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, 4 * PAGE, 100 * PAGE, 10, 0, NULL), 0);
	failed(EEXIST, "overlap slot 10",
	       kvmem_region_attach(ram, 0, 2 * PAGE, 99 * PAGE, 11, 0, NULL));
	ck_assert_int_eq(kvmem_region_attach(ram, 0, 2 * PAGE, 98 * PAGE, 11, 0, NULL), 0);
	/* Another address space has addresses and numbers of its own. */
	ck_assert_int_eq(kvmem_region_attach(ram, 0, 4 * PAGE, 0, 1 << 16 | 1, 0, NULL), 0);
	ck_assert_int_eq(kvmem_region_detach(ram, 0), 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, 4 * PAGE, KVMEM_SLOT_ANY, 0, &id), 0);
	ck_assert_uint_eq(id, 0);
	done();
}
END

TEST(first_slot_and_no_slot_left)
{
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	uint32_t id;

	fake_kvm_reset();
	fds = harness_count_fds();
	maps = harness_count_maps();
	vo.first_slot = 20;
	ck_assert_int_eq(kvmem_vm_create(&vo, &vm), 0);
	o.bytes = 64 * PAGE;
	ck_assert_int_eq(kvmem_region_create(vm, &o, &ram), 0);
	for (uint32_t i = 0; i < 12; i++) {
		ck_assert_int_eq(
			kvmem_region_attach(ram, i * PAGE, PAGE, i * PAGE, KVMEM_SLOT_ANY, 0, &id),
			0);
		ck_assert_uint_eq(id, 20 + i);
	}
	failed(ENOSPC, "20 to 31",
	       kvmem_region_attach(ram, 0, PAGE, 1 << 20, KVMEM_SLOT_ANY, 0, &id));
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, 1 << 20, 3, 0, &id), 0);
	for (size_t i = 1; i < vm->slot_count; i++)
		ck_assert_uint_lt(vm->slots[i - 1]->id, vm->slots[i]->id);
	ck_assert_ptr_null(km_slot_find(vm, 4));
	ck_assert_uint_eq(km_slot_find(vm, 25)->offset, 5 * PAGE);
	done();
}
END

/* Numbers that the VMM has set itself are passed over, and freed ones found again. */
TEST(k2_11_any_passes_over_numbers_that_the_vmm_has_set)
{
	struct kvm_userspace_memory_region m = { .guest_phys_addr = 1ull << 40,
						 .memory_size = 4 * PAGE,
						 .userspace_addr = 1ull << 32 };
	uint32_t id;

	fresh(0);
	for (m.slot = 0; m.slot < 3; m.slot++, m.guest_phys_addr += m.memory_size)
		ck_assert_int_eq(km_sys_ioctl(kvmem_vm_fd(vm), KVM_SET_USER_MEMORY_REGION, &m), 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, 0, KVMEM_SLOT_ANY, 0, &id), 0);
	ck_assert_uint_eq(id, 3);
	failed(EEXIST, "overlap",
	       kvmem_region_attach(ram, 0, PAGE, 1ull << 40, KVMEM_SLOT_ANY, 0, &id));
	ck_assert_ptr_null(strstr(kvmem_error_detail(), "guest_memfd"));
	m.memory_size = 0;
	for (m.slot = 0; m.slot < 3; m.slot++)
		ck_assert_int_eq(km_sys_ioctl(kvmem_vm_fd(vm), KVM_SET_USER_MEMORY_REGION, &m), 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, PAGE, KVMEM_SLOT_ANY, 0, &id), 0);
	ck_assert_uint_eq(id, 0);
	kvm.slot_error = EINVAL;
	failed(EINVAL, "slot 1",
	       kvmem_region_attach(ram, 0, PAGE, 2 * PAGE, KVMEM_SLOT_ANY, 0, &id));
	kvm.slot_error = 0;
	done();
}
END

TEST(what_the_kernel_says_is_passed_on)
{
	static const int errors[] = { EEXIST, EINVAL, ENOMEM, EPERM };

	fresh(0);
	for (size_t i = 0; i < KM_ARRAY_SIZE(errors); i++) {
		kvm.slot_error = errors[i];
		failed(errors[i], "slot 7", kvmem_region_attach(ram, 0, PAGE, 0, 7, 0, NULL));
		ck_assert_uint_eq(vm->slot_count, 0);
	}
	kvm.slot_error = 0;
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, 0, 7, 0, NULL), 0);
	kvm.delete_error = EIO;
	failed(EIO, "deleting slot 7", kvmem_region_detach(ram, 7));
	failed(EIO, "deleting slot 7", kvmem_region_free(ram));
	kvm.delete_error = 0;
	ck_assert_ptr_nonnull(km_slot_find(vm, 7));
	done();
}
END

/* ---- hooks ---- */

static struct {
	int answer;
	unsigned int attaching, failed, detaching, detached, freed, changed[2];
} seen;

static int on_attaching(void *arg, struct km_slot *s)
{
	ck_assert_ptr_eq(arg, &seen);
	ck_assert_uint_eq(kvm.slot_count, s->id); /* not set yet */
	seen.attaching++;
	return seen.answer;
}

static void on_failed(void *arg, struct km_slot *s)
{
	(void)arg, (void)s;
	seen.failed++;
}

static void on_detaching(void *arg, struct km_slot *s)
{
	(void)arg, (void)s;
	ck_assert_uint_gt(kvm.slot_count, 0); /* still there: its log can be read */
	seen.detaching++;
}

static void on_detached(void *arg, struct km_slot *s)
{
	(void)arg;
	ck_assert_uint_eq(s->bytes, PAGE);
	seen.detached++;
}

static void on_freed(void *arg, const struct kvmem_region *r)
{
	(void)arg;
	ck_assert_ptr_eq(r, ram);
	ck_assert_uint_eq(kvm.slot_count, 0);
	seen.freed++;
}

static bool on_changed(void *arg, struct kvmem_region *r, uint64_t offset, uint64_t bytes,
		       bool exclusive)
{
	(void)arg, (void)bytes;
	ck_assert_ptr_eq(r, ram);
	seen.changed[exclusive]++;
	return exclusive || offset; /* of page 0, only with the lock for writing */
}

static const struct km_slot_hooks hooks = { on_attaching, on_failed, on_detaching,
					    on_detached,  on_freed,  on_changed };

TEST(the_tracker_is_asked_and_told)
{
	fresh(0);
	memset(&seen, 0, sizeof(seen));
	vm->hooks = &hooks;
	vm->hooks_arg = &seen;
	seen.answer = 1;
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, 0, 0, 0, NULL), 0);
	ck_assert_uint_eq(kvm.slot.flags, KVM_MEM_LOG_DIRTY_PAGES);
	ck_assert(km_slot_find(vm, 0)->logged);
	seen.answer = 0;
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, PAGE, 1, 0, NULL), 0);
	ck_assert_uint_eq(kvm.slot.flags, 0);
	seen.answer = -EOPNOTSUPP;
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, 2 * PAGE, 2, 0, NULL), -EOPNOTSUPP);
	ck_assert_uint_eq(kvm.slot_count, 2);
	ck_assert_uint_eq(seen.failed, 0);
	seen.answer = 1;
	kvm.slot_error = ENOMEM;
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, 2 * PAGE, 2, 0, NULL), -ENOMEM);
	ck_assert_uint_eq(seen.failed, 1);
	kvm.slot_error = 0;
	km_vm_changed(vm, ram, PAGE, PAGE); /* no tracker is started */
	atomic_store(&vm->tracking, true);
	km_vm_changed(NULL, ram, PAGE, PAGE);
	km_vm_changed(vm, ram, PAGE, PAGE);
	ck_assert(seen.changed[0] == 1 && !seen.changed[1]);
	km_vm_changed(vm, ram, 0, PAGE);
	ck_assert(seen.changed[0] == 2 && seen.changed[1] == 1);
	atomic_store(&vm->tracking, false);
	ck_assert_int_eq(kvmem_region_detach(ram, 1), 0);
	ck_assert_uint_eq(seen.detaching, 1);
	ck_assert_uint_eq(seen.detached, 1);
	done();
	ck_assert_uint_eq(seen.detached, 2);
	ck_assert_uint_eq(seen.freed, 1);
	ck_assert_uint_eq(seen.attaching, 4);
}
END

TEST(no_attach_that_fails_leaves_a_slot)
{
	int r = -1;

	for (unsigned long n = 1; r; n++) {
		fresh(0);
		fake.fail_at = fake.calls + n;
		fake.fail_errno = ENOMEM;
		r = kvmem_region_attach(ram, 0, PAGE, 0, KVMEM_SLOT_ANY, 0, NULL);
		fake.fail_at = 0;
		if (r) {
			ck_assert_int_eq(r, -ENOMEM);
			ck_assert_uint_eq(vm->slot_count, 0);
			ck_assert_uint_eq(kvm.slot_count, 0);
		}
		done();
		ck_assert_uint_lt(n, 20);
	}
}
END

/* ---- attributes ---- */

TEST(attributes)
{
	fresh(0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, 8 * PAGE, 0, 0, 0, NULL), 0);
	failed(EOPNOTSUPP, "KVM_CAP_MEMORY_ATTRIBUTES",
	       kvmem_region_set_attributes(ram, 0, PAGE, 0));
	done();

	fake_kvm_reset();
	kvm.attributes = KVMEM_ATTRIBUTE_PRIVATE;
	fds = harness_count_fds();
	maps = harness_count_maps();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.bytes = 64 * PAGE;
	ck_assert_int_eq(kvmem_region_create(vm, &o, &ram), 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, 8 * PAGE, 1 << 20, 0, 0, NULL), 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 8 * PAGE, 8 * PAGE, 1 << 30, 1, 0, NULL), 0);
	failed(EINVAL, "NULL", kvmem_region_set_attributes(NULL, 0, PAGE, 0));
	failed(EINVAL, "attributes", kvmem_region_set_attributes(ram, 0, PAGE, 1));
	failed(EINVAL, "multiple", kvmem_region_set_attributes(ram, 1, PAGE, 0));
	failed(ERANGE, "region", kvmem_region_set_attributes(ram, 0, 65 * PAGE, 0));
	failed(ENOENT, "0x10000", kvmem_region_set_attributes(ram, 15 * PAGE, 2 * PAGE, 0));
	ck_assert_uint_eq(kvm.attribute_calls, 0);
	ck_assert_int_eq(
		kvmem_region_set_attributes(ram, 6 * PAGE, 4 * PAGE, KVMEM_ATTRIBUTE_PRIVATE), 0);
	ck_assert_uint_eq(kvm.attribute_calls, 2);
	ck_assert_uint_eq(kvm.attr_gpa, 1 << 30);
	ck_assert_uint_eq(kvm.attr_bytes, 4 * PAGE);
	ck_assert_uint_eq(kvm.attr_value, KVMEM_ATTRIBUTE_PRIVATE);
	kvm.set_attributes_error = ENOMEM;
	failed(ENOMEM, "KVM_SET_MEMORY_ATTRIBUTES", kvmem_region_set_attributes(ram, 0, PAGE, 0));
	done();
}
END

/* ---- the lock ---- */

static void *nothing(void *arg)
{
	return arg;
}

static void *write_lock(void *arg)
{
	(void)arg;
	pthread_rwlock_wrlock(&vm->lock);
	pthread_rwlock_unlock(&vm->lock);
	return NULL;
}

static bool readers_wait(void *arg)
{
	(void)arg;
	if (pthread_rwlock_tryrdlock(&vm->lock))
		return true;
	pthread_rwlock_unlock(&vm->lock);
	return false;
}

TEST(a_slot_is_not_kept_waiting_by_reader_after_reader)
{
	pthread_t writer;

	/* The C library keeps the stack of a thread: let the mappings be counted with one. */
	ck_assert_int_eq(pthread_create(&writer, NULL, nothing, NULL), 0);
	pthread_join(writer, NULL);
	fresh(KVMEM_SLOT_AUTO);
	pthread_rwlock_rdlock(&vm->lock);
	ck_assert_int_eq(pthread_create(&writer, NULL, write_lock, NULL), 0);
	ck_assert(harness_wait(readers_wait, NULL, 10));
	pthread_rwlock_unlock(&vm->lock);
	pthread_join(writer, NULL);
	done();
}
END

HARNESS_MAIN(T(create_says_what_is_wrong), T(create_with_type_and_kvm_fd), T(adopt),
	     T(null_and_busy), T(no_call_that_fails_leaks), T(an_hva_slot_as_kvm_sees_it),
	     T(a_direct_slot_as_kvm_sees_it), T(bad_slots), T(numbers_and_overlaps),
	     T(first_slot_and_no_slot_left), T(k2_11_any_passes_over_numbers_that_the_vmm_has_set),
	     T(what_the_kernel_says_is_passed_on), T(the_tracker_is_asked_and_told),
	     T(no_attach_that_fails_leaves_a_slot), T(attributes),
	     T(a_slot_is_not_kept_waiting_by_reader_after_reader))
