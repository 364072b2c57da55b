// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Slots that the VMM has set itself over a region of the library: told of, tracked, translated, given back. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <kvmem/kvmem.h>
#include <linux/kvm.h>

#include "base/uapi/kvm.h"
#include "vmm.h"

#define PAGE  4096ull
#define PAGES 512ull
#define BYTES (PAGES * PAGE)
#define GPA   (4ull << 30)
#define SLOT  7u

static struct {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	struct kvmem_dirty *dirty;
	struct vmm *vmm;
	struct vmm_vcpu *vcpu;
} m;

static void ok(int64_t r)
{
	ck_assert_msg(r >= 0, "%d: %s", (int)r, kvmem_error_detail());
}

static void vmm_ok(int r)
{
	ck_assert_msg(!r, "%d: %s", r, vmm_error());
}

static int set_slot(uint32_t id, uint64_t page, uint64_t pages, uint64_t gpa, uint32_t flags)
{
	struct kvm_userspace_memory_region s = {
		.slot = id,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = pages * PAGE,
		.userspace_addr = (uintptr_t)kvmem_region_base(m.ram) + page * PAGE,
	};

	return ioctl(kvmem_vm_fd(m.vm), KVM_SET_USER_MEMORY_REGION, &s) ? -errno : 0;
}

static bool open_machine(uint32_t mode)
{
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;
	int r;

	memset(&m, 0, sizeof(m));
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	vo.first_slot = 16;
	ok(kvmem_vm_create(&vo, &m.vm));
	d.mode = mode;
	d.ring_entries = mode == KVMEM_DIRTY_RING ? 1024 : 0;
	r = kvmem_dirty_create(m.vm, &d, &m.dirty);
	if (r == -EOPNOTSUPP && mode == KVMEM_DIRTY_RING) {
		harness_skip("dirty-ring", "%s", kvmem_error_detail());
		ok(kvmem_vm_free(m.vm));
		return false;
	}
	ok(r);
	o.bytes = BYTES;
	o.backing = KVMEM_BACKING_MEMFD;
	o.wants = KVMEM_WANT_DIRTY;
	ok(kvmem_region_create(m.vm, &o, &m.ram));
	vmm_ok(vmm_create(kvmem_vm_fd(m.vm), 0, NULL, &m.vmm));
	vmm_ok(vmm_map(m.vmm, GPA, 2 * BYTES));
	vmm_ok(vmm_vcpu_create(m.vmm, 0, &m.vcpu));
	ok(kvmem_dirty_add_vcpu(m.dirty, vmm_vcpu_fd(m.vcpu)));
	return true;
}

static void close_machine(void)
{
	ok(kvmem_dirty_remove_vcpu(m.dirty, vmm_vcpu_fd(m.vcpu)));
	vmm_destroy(m.vmm);
	ok(kvmem_dirty_free(m.dirty));
	ok(kvmem_region_free(m.ram));
	ok(kvmem_vm_free(m.vm));
}

/* The guest writes a word to each of these pages, and the tracker says which. */
static void write_pages(uint64_t page, uint64_t pages, uint64_t gpa)
{
	struct guest_mailbox *mb = vmm_mailbox(m.vcpu);

	memset(mb, 0, sizeof(*mb));
	mb->command = GUEST_FILL;
	mb->gpa = gpa + page * PAGE;
	mb->bytes = pages * PAGE;
	mb->page = mb->step = PAGE;
	mb->seed = 1;
	vmm_ok(vmm_run(m.vcpu));
}

static void expect(uint64_t page, uint64_t pages)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;
	int64_t n = kvmem_dirty_harvest(m.dirty, &batch);

	ok(n);
	ck_assert_int_eq(n, (int64_t)pages);
	ok(kvmem_dirty_commit(m.dirty, batch));
	if (pages) {
		ck_assert_int_eq(kvmem_batch_next(batch, &run), 1);
		ck_assert_uint_eq(run.offset, page * PAGE);
		ck_assert_uint_eq(run.bytes, pages * PAGE);
	}
	ck_assert_int_eq(kvmem_batch_next(batch, &run), 0);
	kvmem_batch_free(batch);
}

static void track_an_own_slot(uint32_t mode)
{
	struct kvmem_translation t = KVMEM_TRANSLATION_INIT;

	if (!open_machine(mode))
		return;
	ck_assert_int_eq(set_slot(SLOT, 0, PAGES / 2, GPA, 0), 0);
	ok(kvmem_region_adopt_slot(m.ram, 0, BYTES / 2, GPA, SLOT, 0));
	write_pages(0, 16, GPA);
	ok(kvmem_dirty_start(m.dirty));
	write_pages(8, 16, GPA);
	expect(8, 16);
	/* One that comes while the tracker is started, and goes again. */
	ck_assert_int_eq(set_slot(SLOT + 1, PAGES / 2, PAGES / 2, GPA + BYTES, 0), 0);
	ok(kvmem_region_adopt_slot(m.ram, BYTES / 2, BYTES / 2, GPA + BYTES, SLOT + 1, 0));
	write_pages(3, 5, GPA + BYTES);
	expect(PAGES / 2 + 3, 5);
	ok(kvmem_vm_translate(m.vm, 0, GPA + BYTES + 5, 8, &t));
	ck_assert_ptr_eq(t.host, (char *)kvmem_region_base(m.ram) + BYTES / 2 + 5);
	write_pages(1, 2, GPA + BYTES);
	ok(kvmem_region_detach(m.ram, SLOT + 1));
	if (mode == KVMEM_DIRTY_RING)
		expect(PAGES / 2 + 1, 2);
	else
		expect(PAGES / 2, PAGES / 2); /* the log went with it */
	write_pages(0, 2, GPA + BYTES);	      /* the slot is still there, nobody tracks it */
	expect(0, 0);
	ck_assert_int_eq(kvmem_vm_translate(m.vm, 0, GPA + BYTES, 8, &t), -ENOENT);
	ok(kvmem_dirty_stop(m.dirty));
	write_pages(0, 4, GPA);
	ck_assert_int_eq(set_slot(SLOT, 0, 0, GPA, 0), 0);
	ck_assert_int_eq(set_slot(SLOT + 1, 0, 0, GPA, 0), 0);
	close_machine();
}

TEST(an_own_slot_under_the_ring)
{
	track_an_own_slot(KVMEM_DIRTY_RING);
}
END

TEST(an_own_slot_under_the_bitmap)
{
	track_an_own_slot(KVMEM_DIRTY_BITMAP);
}
END

/* A vCPU runs on the slot meanwhile: were it moved, deleted or set anew for a moment, the run would fail. */
static _Atomic bool failed_early;

static void *writes(void *arg)
{
	struct guest_mailbox *mb = vmm_mailbox(m.vcpu);

	(void)arg;
	memset(mb, 0, sizeof(*mb));
	mb->command = GUEST_SPIN;
	mb->gpa = GPA;
	mb->bytes = BYTES / 2;
	mb->page = PAGE;
	mb->seed = 1;
	if (vmm_run(m.vcpu))
		atomic_store(&failed_early, true);
	return NULL;
}

TEST(claims_are_compared_and_change_nothing_under_a_guest)
{
	static const struct {
		uint64_t page, pages, gpa;
		uint32_t slot, flags;
		int err;
	} wrong[] = {
		{ 0, PAGES / 2, GPA, SLOT + 2, 0, ENOENT },
		{ 0, PAGES / 2, GPA + PAGE, SLOT, 0, EINVAL },
		{ 0, PAGES / 2, GPA - PAGE, SLOT, 0, ENOENT },
		{ 0, PAGES / 2, 4 * GPA, SLOT, 0, ENOENT },
		{ 0, PAGES / 2 - 1, GPA, SLOT, 0, EINVAL },
		{ 0, PAGES / 2 + 1, GPA, SLOT, 0, EINVAL },
		{ 0, 1, GPA, SLOT, 0, EINVAL },
		{ 1, PAGES / 2, GPA, SLOT, 0, EINVAL },
		{ 0, PAGES / 2, GPA, SLOT, KVMEM_ATTACH_READONLY, EINVAL },
		{ 0, 16, GPA + BYTES / 2, SLOT, 0, EINVAL }, /* the neighbour's place */
	};
	pthread_t guest;

	if (!open_machine(KVMEM_DIRTY_BITMAP))
		return;
	ck_assert_int_eq(set_slot(SLOT, 0, PAGES / 2, GPA, 0), 0);
	ck_assert_int_eq(set_slot(SLOT + 1, PAGES / 2, 16, GPA + BYTES / 2, 0), 0);
	atomic_store(&failed_early, false);
	ck_assert_int_eq(pthread_create(&guest, NULL, writes, NULL), 0);
	for (int round = 0; round < 20; round++)
		for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
			int r = kvmem_region_adopt_slot(m.ram, wrong[i].page * PAGE,
							wrong[i].pages * PAGE, wrong[i].gpa,
							wrong[i].slot, wrong[i].flags);

			ck_assert_msg(r == -wrong[i].err, "%zu: %d: %s", i, r,
				      kvmem_error_detail());
		}
	ok(kvmem_region_adopt_slot(m.ram, 0, BYTES / 2, GPA, SLOT, 0));
	vmm_ask_stop(m.vcpu);
	pthread_join(guest, NULL);
	ck_assert(!atomic_load(&failed_early));
	ok(kvmem_region_detach(m.ram, SLOT));
	ck_assert_int_eq(set_slot(SLOT, 0, 0, GPA, 0), 0); /* EINVAL when it was not there */
	ck_assert_int_eq(set_slot(SLOT + 1, 0, 0, GPA, 0), 0);
	ck_assert_int_eq(set_slot(SLOT + 2, 0, 0, GPA, 0), -EINVAL);
	close_machine();
}
END

/* The VMM deletes or moves its slot without a word: what it has made of it stays. */
static void gone_behind_our_back(uint32_t mode)
{
	if (!open_machine(mode))
		return;
	ck_assert_int_eq(set_slot(SLOT, 0, PAGES, GPA, 0), 0);
	ok(kvmem_region_adopt_slot(m.ram, 0, BYTES, GPA, SLOT, 0));
	ok(kvmem_dirty_start(m.dirty));
	ck_assert_int_eq(set_slot(SLOT, 0, 0, GPA, 0), 0);
	ok(kvmem_dirty_stop(m.dirty));
	ck_assert_int_eq(set_slot(SLOT, 0, 0, GPA, 0), -EINVAL); /* it did not come back */
	ck_assert_int_eq(set_slot(SLOT, 0, PAGES, 2 * GPA, 0), 0);
	ck_assert_int_eq(kvmem_dirty_start(m.dirty), -ENOENT);
	ck_assert_int_eq(set_slot(SLOT + 1, 0, PAGES, GPA, 0), 0); /* was not moved there */
	ok(kvmem_region_detach(m.ram, SLOT));
	ck_assert_int_eq(set_slot(SLOT + 1, 0, 0, GPA, 0), 0);
	ck_assert_int_eq(set_slot(SLOT, 0, 0, GPA, 0), 0);
	/* One of the library's own is gone as well, and the region can be freed. */
	ok(kvmem_region_attach(m.ram, 0, BYTES, GPA, 20, 0, NULL));
	ck_assert_int_eq(set_slot(20, 0, 0, GPA, 0), 0);
	ok(kvmem_region_detach(m.ram, 20));
	close_machine();
}

TEST(slots_that_the_vmm_takes_back_without_a_word)
{
	gone_behind_our_back(KVMEM_DIRTY_BITMAP);
	gone_behind_our_back(KVMEM_DIRTY_RING);
}
END

/* Any number, but none that the VMM has: also where its slot shows the very same memory. */
TEST(any_number_is_none_of_the_vmms)
{
	uint32_t id = 0;

	if (!open_machine(KVMEM_DIRTY_BITMAP))
		return;
	ck_assert_int_eq(set_slot(16, 0, PAGES, GPA, 0), 0); /* the first that the library takes */
	ok(kvmem_region_attach(m.ram, 0, BYTES, 2 * GPA, KVMEM_SLOT_ANY, 0, &id));
	ck_assert_uint_eq(id, 17);
	write_pages(1, 3, GPA); /* the VMM's is where it was */
	ck_assert_int_eq(kvmem_region_attach(m.ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, &id),
			 -EEXIST);
	ok(kvmem_region_detach(m.ram, 17));
	ck_assert_int_eq(set_slot(16, 0, 0, GPA, 0), 0); /* and there */
	close_machine();
}
END

/* The VMM has turned rings on, and their size is what it says: a wrong one is noticed, and can be mended. */
TEST(the_size_of_rings_that_the_vmm_has_turned_on)
{
	struct kvm_enable_cap cap = { .cap = KM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
				      .args = { 4096 * sizeof(struct kvm_dirty_gfn) } };
	static const uint32_t wrong[] = { 1024, 8192 };
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	struct kvmem_dirty *dirty;
	struct kvmem_vm *vm;
	int vcpu;

	SKIP_IF(access("/dev/kvm", R_OK | W_OK), "kvm", "/dev/kvm cannot be opened");
	ok(kvmem_vm_create(NULL, &vm));
	SKIP_IF(ioctl(kvmem_vm_fd(vm), KVM_ENABLE_CAP, &cap), "dirty-ring", "no rings");
	vcpu = ioctl(kvmem_vm_fd(vm), KVM_CREATE_VCPU, 0);
	ck_assert_int_ge(vcpu, 0);
	for (size_t i = 0; i < 2; i++) {
		o.ring_entries = wrong[i];
		ok(kvmem_dirty_create(vm, &o, &dirty));
		ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, vcpu), -EINVAL);
		ck_assert(strstr(kvmem_error_detail(), i ? "fewer than 8192" : "more than 1024"));
		ok(kvmem_dirty_free(dirty));
	}
	o.ring_entries = 4096;
	ok(kvmem_dirty_create(vm, &o, &dirty));
	ok(kvmem_dirty_add_vcpu(dirty, vcpu));
	ok(kvmem_dirty_free(dirty));
	close(vcpu);
	ok(kvmem_vm_free(vm));
}
END

/* The VMM logs its slot itself, and goes on doing so. */
TEST(a_log_of_the_vmms_own_stays_on)
{
	uint64_t bits[PAGES / 64] = { 0 };
	struct kvm_dirty_log log = { .slot = SLOT, .dirty_bitmap = bits };

	if (!open_machine(KVMEM_DIRTY_BITMAP))
		return;
	ck_assert_int_eq(set_slot(SLOT, 0, PAGES, GPA, KVM_MEM_LOG_DIRTY_PAGES), 0);
	ok(kvmem_region_adopt_slot(m.ram, 0, BYTES, GPA, SLOT, KVMEM_ATTACH_LOGGED));
	ok(kvmem_dirty_start(m.dirty));
	write_pages(1, 3, GPA);
	expect(1, 3);
	ok(kvmem_dirty_stop(m.dirty));
	write_pages(4, 1, GPA);
	ck_assert_int_eq(ioctl(kvmem_vm_fd(m.vm), KVM_GET_DIRTY_LOG, &log), 0);
	ck_assert_uint_eq(bits[0] & 1 << 4, 1 << 4);
	/* Told otherwise: off with the next stop. */
	ok(kvmem_region_adopt_slot(m.ram, 0, BYTES, GPA, SLOT, 0));
	ck_assert_int_eq(ioctl(kvmem_vm_fd(m.vm), KVM_GET_DIRTY_LOG, &log), -1);
	ok(kvmem_region_detach(m.ram, SLOT));
	ck_assert_int_eq(set_slot(SLOT, 0, 0, GPA, 0), 0);
	close_machine();
}
END

HARNESS_MAIN(T(any_number_is_none_of_the_vmms), T(an_own_slot_under_the_ring),
	     T(an_own_slot_under_the_bitmap),
	     T(claims_are_compared_and_change_nothing_under_a_guest),
	     T(slots_that_the_vmm_takes_back_without_a_word),
	     T(the_size_of_rings_that_the_vmm_has_turned_on), T(a_log_of_the_vmms_own_stays_on))
