// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* From guest-physical addresses to regions and back; slots that the VMM has set itself. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fake_kvm.h"
#include "region/region.h"
#include "base/uapi/kvm.h"

#define PAGE  4096ull
#define PAGES 64ull
#define GPA   (1ull << 32)

static struct kvmem_vm *vm;
static struct kvmem_region *ram, *other;
static unsigned int fds, maps;
static int ram_arg, other_arg;

static struct kvmem_region *region_new(void *arg)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *r;

	o.bytes = PAGES * PAGE;
	o.slot_form = KVMEM_SLOT_HVA;
	o.wants = KVMEM_WANT_DIRTY;
	o.arg = arg;
	ck_assert_int_eq(kvmem_region_create(vm, &o, &r), 0);
	return r;
}

static void fresh(void)
{
	fake_kvm_reset();
	kvm.max_slots = 64;
	fds = harness_count_fds();
	maps = harness_count_maps();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
	ram = region_new(&ram_arg);
	other = region_new(&other_arg);
}

static void done(void)
{
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(kvmem_region_free(other), 0);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
	ck_assert_int_eq(fake.allocs, 0);
}

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

static void attach(struct kvmem_region *r, uint64_t page, uint64_t pages, uint64_t gpa, uint32_t id,
		   uint32_t flags)
{
	int e = kvmem_region_attach(r, page * PAGE, pages * PAGE, gpa, id, flags, NULL);

	ck_assert_msg(!e, "%d: %s", e, kvmem_error_detail());
}

static struct kvmem_translation at(uint64_t gpa, uint64_t bytes)
{
	struct kvmem_translation t = KVMEM_TRANSLATION_INIT;
	int r = kvmem_vm_translate(vm, 0, gpa, bytes, &t);

	ck_assert_msg(!r, "%d: %s", r, kvmem_error_detail());
	ck_assert_ptr_eq(t.host, (char *)kvmem_region_base(t.region) + t.offset);
	return t;
}

static void nothing_at(uint64_t gpa)
{
	struct kvmem_translation t = KVMEM_TRANSLATION_INIT;

	failed(ENOENT, "no slot holds", kvmem_vm_translate(vm, 0, gpa, 1, &t));
	ck_assert_ptr_null(t.region);
}

/* ---- translate ---- */

TEST(where_an_address_leads)
{
	struct kvmem_translation t;

	fresh();
	nothing_at(0);
	attach(ram, 8, 16, GPA, 5, KVMEM_ATTACH_READONLY);
	attach(other, 0, 64, 0, 3, 0);
	t = at(GPA + 3 * PAGE + 100, 8);
	ck_assert_ptr_eq(t.region, ram);
	ck_assert_ptr_eq(t.arg, &ram_arg);
	ck_assert_uint_eq(t.slot, 5);
	ck_assert_uint_eq(t.offset, 11 * PAGE + 100);
	ck_assert_uint_eq(t.bytes, 8);
	ck_assert_uint_eq(t.flags, KVMEM_TRANSLATION_READONLY);
	t = at(GPA + 15 * PAGE + 4095, UINT64_MAX);
	ck_assert_uint_eq(t.bytes, 1);
	t = at(0, UINT64_MAX);
	ck_assert_ptr_eq(t.region, other);
	ck_assert_ptr_eq(t.arg, &other_arg);
	ck_assert_uint_eq(t.bytes, 64 * PAGE);
	ck_assert_uint_eq(t.flags, 0);
	nothing_at(64 * PAGE);
	nothing_at(GPA - 1);
	nothing_at(GPA + 16 * PAGE);
	nothing_at(UINT64_MAX);
	ck_assert_int_eq(kvmem_region_detach(other, 3), 0);
	nothing_at(0);
	ck_assert_int_eq(kvmem_region_detach(ram, 5), 0);
	nothing_at(GPA);
	done();
}
END

TEST(slots_side_by_side_are_one_run)
{
	fresh();
	attach(ram, 0, 2, GPA, 1, 0);
	attach(ram, 2, 2, GPA + 2 * PAGE, 9, 0);
	attach(ram, 4, 1, GPA + 4 * PAGE, 0, KVMEM_ATTACH_READONLY);
	attach(ram, 5, 1, GPA + 5 * PAGE, 2, KVMEM_ATTACH_READONLY);
	attach(ram, 7, 1, GPA + 6 * PAGE, 4, KVMEM_ATTACH_READONLY);   /* a gap in the region */
	attach(other, 8, 1, GPA + 7 * PAGE, 5, KVMEM_ATTACH_READONLY); /* another region */
	attach(other, 9, 1, GPA + 9 * PAGE, 6, KVMEM_ATTACH_READONLY); /* a gap for the guest */
	ck_assert_uint_eq(at(GPA + 100, UINT64_MAX).bytes, 4 * PAGE - 100);
	ck_assert_uint_eq(at(GPA + 100, UINT64_MAX).slot, 1);
	ck_assert_uint_eq(at(GPA + 2 * PAGE, UINT64_MAX).slot, 9);
	ck_assert_uint_eq(at(GPA + 100, 2 * PAGE).bytes, 2 * PAGE);
	ck_assert_uint_eq(at(GPA + 4 * PAGE, UINT64_MAX).bytes, 2 * PAGE);
	ck_assert_uint_eq(at(GPA + 6 * PAGE, UINT64_MAX).bytes, PAGE);
	ck_assert_uint_eq(at(GPA + 7 * PAGE, UINT64_MAX).bytes, PAGE);
	done();
}
END

TEST(spaces_are_apart)
{
	struct kvmem_translation t = KVMEM_TRANSLATION_INIT;

	fresh();
	attach(ram, 0, 2, GPA, 1, 0);
	attach(other, 0, 1, GPA, 1 << 16 | 1, 0);
	ck_assert_ptr_eq(at(GPA, 1).region, ram);
	ck_assert_int_eq(kvmem_vm_translate(vm, 1, GPA, UINT64_MAX, &t), 0);
	ck_assert_ptr_eq(t.region, other);
	ck_assert_uint_eq(t.slot, 1 << 16 | 1);
	ck_assert_uint_eq(t.bytes, PAGE);
	failed(ENOENT, "no slot", kvmem_vm_translate(vm, 1, GPA + PAGE, 1, &t));
	failed(EINVAL, "space 2", kvmem_vm_translate(vm, 2, GPA, 1, &t));
	failed(EINVAL, "bytes is 0", kvmem_vm_translate(vm, 0, GPA, 0, &t));
	failed(EINVAL, "vm is NULL", kvmem_vm_translate(NULL, 0, GPA, 1, &t));
	failed(EINVAL, "kvmem_translation", kvmem_vm_translate(vm, 0, GPA, 1, NULL));
	t.size = 8;
	failed(EINVAL, "kvmem_translation", kvmem_vm_translate(vm, 0, GPA, 1, &t));
	done();
}
END

/* Slots of a page at random places, in and out; every page asked for after each change. */
TEST(every_address_after_every_change)
{
	uint32_t owner[PAGES];
	unsigned int seed = 11;

	fresh();
	memset(owner, 0xff, sizeof(owner));
	for (int step = 0; step < 600; step++) {
		uint64_t p = (unsigned int)rand_r(&seed) % PAGES;
		uint32_t id = (uint32_t)p; /* a number may be another page's next time */

		if (owner[p] == UINT32_MAX) {
			attach(ram, PAGES - 1 - p, 1, GPA + p * PAGE, id, 0);
			owner[p] = id;
		} else {
			ck_assert_int_eq(kvmem_region_detach(ram, owner[p]), 0);
			owner[p] = UINT32_MAX;
		}
		for (p = 0; p < PAGES; p++)
			if (owner[p] == UINT32_MAX)
				nothing_at(GPA + p * PAGE + 1);
			else
				ck_assert_uint_eq(at(GPA + p * PAGE + 1, UINT64_MAX).offset,
						  (PAGES - 1 - p) * PAGE + 1);
	}
	done();
}
END

/*
 * Four neighbours stay while others come and go. A reader that saw half a change would find an address in the
 * wrong place, or none for one that never went.
 */
#define READERS 6 /* more than there are processors: some are preempted in the middle */
static _Atomic bool over;

static bool is_right(uint64_t p, int r, const struct kvmem_translation *t)
{
	if (r)
		return r == -ENOENT && p % 16 != 5;
	return t->region == (p % 2 ? ram : other) && t->offset == p * PAGE + 7 && t->slot == p &&
	       t->bytes == PAGE - 7;
}

/* Hardly anything but look-ups, so that a thread is preempted within one. */
static void *reads(void *arg)
{
	uint64_t n = (uintptr_t)arg;

	while (!atomic_load_explicit(&over, memory_order_relaxed)) {
		uint64_t p = n++ * 29 % PAGES;
		struct kvmem_translation t = KVMEM_TRANSLATION_INIT;
		int r = kvmem_vm_translate(vm, 0, GPA + p * PAGE + 7, UINT64_MAX, &t);

		if (!is_right(p, r, &t))
			ck_abort_msg("page %u: %d, offset 0x%llx of slot %u", (unsigned int)p, r,
				     (unsigned long long)t.offset, t.slot);
	}
	return (void *)(uintptr_t)n;
}

TEST(readers_are_exact_while_slots_come_and_go)
{
	pthread_t readers[READERS];
	unsigned int seed = 3;
	bool set[PAGES] = { false };
	unsigned int before;

	fresh();
	before = harness_count_maps();
	atomic_store(&over, false);
	for (uint64_t p = 5; p < PAGES; p += 16)
		attach(ram, p, 1, GPA + p * PAGE, (uint32_t)p, 0);
	for (size_t i = 0; i < READERS; i++)
		ck_assert_int_eq(pthread_create(&readers[i], NULL, reads, (void *)(i + 1)), 0);
	for (int step = 0; step < 40000; step++) {
		uint64_t p = (unsigned int)rand_r(&seed) % PAGES;

		if (p % 16 == 5)
			continue;
		if (set[p])
			ck_assert_int_eq(kvmem_region_detach(p % 2 ? ram : other, (uint32_t)p), 0);
		else
			attach(p % 2 ? ram : other, p, 1, GPA + p * PAGE, (uint32_t)p, 0);
		set[p] = !set[p];
	}
	atomic_store(&over, true);
	for (size_t i = 0; i < READERS; i++) {
		void *n;

		pthread_join(readers[i], &n);
		ck_assert_ptr_nonnull(n);
	}
	maps += harness_count_maps() -
		before; /* the C library keeps stacks and arenas of threads */
	done();
}
END

/* ---- back ---- */

TEST(where_a_range_is_attached)
{
	struct kvmem_attachment a[4] = { 0 };

	fresh();
	ck_assert_int_eq(kvmem_region_attachments(ram, 0, PAGE, a, 4), 0);
	attach(ram, 0, 4, GPA, 7, 0);
	attach(ram, 2, 4, GPA + 64 * PAGE, 1, KVMEM_ATTACH_READONLY);
	attach(other, 2, 4, 0, 2, 0);
	ck_assert_int_eq(kvmem_region_attachments(ram, 3 * PAGE, 8 * PAGE, a, 4), 2);
	ck_assert_uint_eq(a[0].slot, 1);
	ck_assert_uint_eq(a[0].flags, KVMEM_ATTACH_READONLY);
	ck_assert_uint_eq(a[0].offset, 3 * PAGE);
	ck_assert_uint_eq(a[0].bytes, 3 * PAGE);
	ck_assert_uint_eq(a[0].gpa, GPA + 65 * PAGE);
	ck_assert_uint_eq(a[1].slot, 7);
	ck_assert_uint_eq(a[1].flags, 0);
	ck_assert_uint_eq(a[1].offset, 3 * PAGE);
	ck_assert_uint_eq(a[1].bytes, PAGE);
	ck_assert_uint_eq(a[1].gpa, GPA + 3 * PAGE);
	memset(a, 0, sizeof(a));
	ck_assert_int_eq(kvmem_region_attachments(ram, 0, 64 * PAGE, a, 1), 2);
	ck_assert_uint_eq(a[0].bytes, 4 * PAGE);
	ck_assert_uint_eq(a[1].bytes, 0);
	ck_assert_int_eq(kvmem_region_attachments(ram, 0, 64 * PAGE, NULL, 0), 2);
	ck_assert_int_eq(kvmem_region_attachments(ram, 6 * PAGE, PAGE, a, 4), 0);
	failed(EINVAL, "attachments is NULL", (int)kvmem_region_attachments(ram, 0, PAGE, NULL, 1));
	failed(EINVAL, "region is NULL", (int)kvmem_region_attachments(NULL, 0, PAGE, a, 1));
	failed(ERANGE, "region", (int)kvmem_region_attachments(ram, 0, 65 * PAGE, a, 1));
	ck_assert_ptr_eq(kvmem_region_arg(ram), &ram_arg);
	ck_assert_ptr_null(kvmem_region_arg(NULL));
	done();
}
END

/* ---- adopted slots ---- */

static void vmm_sets(uint32_t id, uint64_t gpa, uint64_t page, uint64_t pages, uint32_t flags)
{
	struct kvm_userspace_memory_region s = {
		.slot = id,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = pages * PAGE,
		.userspace_addr = (uintptr_t)kvmem_region_base(ram) + page * PAGE,
	};

	ck_assert_int_eq(km_sys_ioctl(kvmem_vm_fd(vm), KVM_SET_USER_MEMORY_REGION, &s), 0);
}

static const struct fake_slot *in_kvm(uint32_t id)
{
	for (unsigned int i = 0; i < kvm.slot_count; i++)
		if (kvm.slots[i].id == id)
			return &kvm.slots[i];
	return NULL;
}

static int adopt(uint64_t page, uint64_t pages, uint64_t gpa, uint32_t id, uint32_t flags)
{
	return kvmem_region_adopt_slot(ram, page * PAGE, pages * PAGE, gpa, id, flags);
}

TEST(an_adopted_slot_is_found_and_left_to_the_vmm)
{
	struct kvmem_attachment a;

	fresh();
	vmm_sets(4, GPA, 8, 16, 0);
	nothing_at(GPA);
	ck_assert_int_eq(adopt(8, 16, GPA, 4, 0), 0);
	ck_assert_uint_eq(kvm.slot_count, 1);
	ck_assert_uint_eq(in_kvm(4)->flags, 0);
	ck_assert_uint_eq(at(GPA + PAGE, UINT64_MAX).offset, 9 * PAGE);
	ck_assert_int_eq(kvmem_region_attachments(ram, 0, 64 * PAGE, &a, 1), 1);
	ck_assert_uint_eq(a.flags, KVMEM_ATTACH_ADOPTED);
	failed(EEXIST, "taken", adopt(8, 15, GPA, 4, 0));
	failed(EEXIST, "taken", kvmem_region_attach(other, 0, PAGE, 0, 4, 0, NULL));
	failed(EEXIST, "overlap", kvmem_region_attach(other, 0, PAGE, GPA, 5, 0, NULL));
	ck_assert_int_eq(kvmem_region_detach(ram, 4), 0);
	nothing_at(GPA);
	ck_assert_uint_eq(kvm.slot_count, 1);
	ck_assert_int_eq(adopt(8, 16, GPA, 4, 0), 0);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_uint_eq(kvm.slot_count, 1);
	ram = region_new(NULL);
	vmm_sets(4, GPA, 0, 0, 0);
	done();
}
END

static bool same_slot(const struct fake_slot *a, const struct fake_slot *b)
{
	return a->v2 == b->v2 && a->id == b->id && a->flags == b->flags && a->gpa == b->gpa &&
	       a->bytes == b->bytes && a->hva == b->hva && a->gmem_offset == b->gmem_offset &&
	       a->gmem == b->gmem;
}

TEST(what_is_claimed_of_a_slot_is_compared)
{
	struct fake_slot before[3];

	fresh();
	kvm.max_slots = 64;
	vmm_sets(4, GPA, 8, 16, 0);
	vmm_sets(5, GPA + 32 * PAGE, 30, 1, KVM_MEM_READONLY);
	vmm_sets(63, GPA + 16 * PAGE, 24, 4, 0);
	memcpy(before, kvm.slots, sizeof(before));
	failed(EINVAL, "KVMEM_SLOT_ANY", adopt(8, 16, GPA, KVMEM_SLOT_ANY, 0));
	failed(EINVAL, "flags", adopt(8, 16, GPA, 4, KVMEM_ATTACH_ADOPTED));
	failed(ENOENT, "no slot 6", adopt(8, 16, GPA, 6, 0));
	failed(ENOENT, "guest address", adopt(8, 16, 2 * GPA, 4, 0));
	failed(ENOENT, "guest address", adopt(8, 16, GPA - PAGE, 4, 0)); /* a page too low */
	failed(EINVAL, "differ", adopt(8, 16, GPA + PAGE, 4, 0)); /* too high, into the next */
	failed(EINVAL, "differ", adopt(8, 15, GPA, 4, 0));
	failed(EINVAL, "differ", adopt(8, 1, GPA, 4, 0));
	failed(EINVAL, "differ", adopt(9, 16, GPA, 4, 0));
	failed(EINVAL, "differ", adopt(8, 16, GPA, 4, KVMEM_ATTACH_READONLY));
	failed(EINVAL, "differ", adopt(30, 1, GPA + 32 * PAGE, 5, 0));
	failed(ENOENT, "guest address", adopt(30, 2, GPA + 32 * PAGE, 5, KVMEM_ATTACH_READONLY));
	failed(EINVAL, "differ", adopt(30, 1, GPA + 32 * PAGE, 4, 0)); /* another's place */
	ck_assert_uint_eq(kvm.slot_count, 3);
	for (size_t i = 0; i < sizeof(before) / sizeof(before[0]); i++)
		ck_assert(same_slot(&before[i], &kvm.slots[i]));
	ck_assert_int_eq(adopt(30, 1, GPA + 32 * PAGE, 5, KVMEM_ATTACH_READONLY), 0);
	ck_assert_int_eq(adopt(24, 4, GPA + 16 * PAGE, 63, 0), 0);
	ck_assert_uint_eq(kvm.slot_count, 3);
	done();
}
END

static int log_it(void *arg, struct km_slot *s)
{
	(void)arg;
	return s->wants_log;
}

static void on_slot(void *arg, struct km_slot *s)
{
	(void)arg, (void)s;
}

static void on_region(void *arg, const struct kvmem_region *r)
{
	(void)arg, (void)r;
}

static const struct km_slot_hooks logging = {
	.attaching = log_it,
	.attach_failed = on_slot,
	.detaching = on_slot,
	.detached = on_slot,
	.region_freed = on_region,
};

TEST(the_log_of_an_adopted_slot_is_set_and_given_back)
{
	fresh();
	vm->hooks = &logging;
	vmm_sets(4, GPA, 0, 4, 0);
	vmm_sets(5, GPA + 4 * PAGE, 4, 4, KVM_MEM_LOG_DIRTY_PAGES);
	ck_assert_int_eq(adopt(0, 4, GPA, 4, 0), 0);
	ck_assert_int_eq(adopt(4, 4, GPA + 4 * PAGE, 5, KVMEM_ATTACH_LOGGED), 0);
	ck_assert_uint_eq(in_kvm(4)->flags, KVM_MEM_LOG_DIRTY_PAGES);
	ck_assert_uint_eq(in_kvm(5)->flags, KVM_MEM_LOG_DIRTY_PAGES);
	ck_assert_int_eq(kvmem_region_detach(ram, 4), 0);
	ck_assert_int_eq(kvmem_region_detach(ram, 5), 0);
	ck_assert_uint_eq(in_kvm(4)->flags, 0);
	ck_assert_uint_eq(in_kvm(5)->flags, KVM_MEM_LOG_DIRTY_PAGES);
	/* Told again: only the flag. */
	ck_assert_int_eq(adopt(4, 4, GPA + 4 * PAGE, 5, KVMEM_ATTACH_LOGGED), 0);
	ck_assert_int_eq(adopt(4, 4, GPA + 4 * PAGE, 5, 0), 0);
	ck_assert_uint_eq(in_kvm(5)->flags, KVM_MEM_LOG_DIRTY_PAGES);
	ck_assert_int_eq(kvmem_region_detach(ram, 5), 0);
	ck_assert_uint_eq(in_kvm(5)->flags, 0);
	/* Deleted by the VMM before it tells: not set again. */
	ck_assert_int_eq(adopt(0, 4, GPA, 4, 0), 0);
	vmm_sets(4, GPA, 0, 0, 0);
	ck_assert_int_eq(kvmem_region_detach(ram, 4), 0);
	ck_assert_ptr_null(in_kvm(4));
	vm->hooks = NULL;
	done();
}
END

TEST(no_adoption_that_fails_leaves_anything)
{
	int r = -1;

	for (unsigned long n = 1; r; n++) {
		struct kvmem_translation t = KVMEM_TRANSLATION_INIT;

		fresh();
		vmm_sets(4, GPA, 8, 16, 0);
		fake.fail_at = n;
		fake.fail_errno = ENOMEM;
		r = adopt(8, 16, GPA, 4, 0);
		fake.fail_at = 0;
		if (r)
			ck_assert_int_eq(kvmem_vm_translate(vm, 0, GPA, 1, &t), -ENOENT);
		ck_assert_uint_eq(kvm.slot_count, 1);
		ck_assert_uint_eq(in_kvm(4)->bytes, 16 * PAGE);
		ck_assert_uint_lt(n, 50);
		done();
	}
}
END

TEST(the_file_descriptor_of_dev_kvm)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;
	struct kvmem_vm *adopted;

	fresh();
	ck_assert_int_ge(kvmem_vm_kvm_fd(vm), 0);
	ck_assert_int_eq(kvmem_vm_adopt(kvmem_vm_fd(vm), NULL, &adopted), 0);
	failed(ENODEV, "KVMEM_VM_KVM_FD", kvmem_vm_kvm_fd(adopted));
	ck_assert_int_eq(kvmem_vm_free(adopted), 0);
	o.flags = KVMEM_VM_KVM_FD;
	o.kvm_fd = kvmem_vm_kvm_fd(vm);
	ck_assert_int_eq(kvmem_vm_adopt(kvmem_vm_fd(vm), &o, &adopted), 0);
	ck_assert_int_ge(kvmem_vm_kvm_fd(adopted), 0);
	ck_assert_int_eq(kvmem_vm_free(adopted), 0);
	failed(EINVAL, "vm is NULL", kvmem_vm_kvm_fd(NULL));
	done();
}
END

HARNESS_MAIN(T(where_an_address_leads), T(slots_side_by_side_are_one_run), T(spaces_are_apart),
	     T(every_address_after_every_change), T(readers_are_exact_while_slots_come_and_go),
	     T(where_a_range_is_attached), T(an_adopted_slot_is_found_and_left_to_the_vmm),
	     T(what_is_claimed_of_a_slot_is_compared),
	     T(the_log_of_an_adopted_slot_is_set_and_given_back),
	     T(no_adoption_that_fails_leaves_anything), T(the_file_descriptor_of_dev_kvm))
