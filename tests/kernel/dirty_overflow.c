// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Rings that nobody empties while the guest writes more pages than they hold. Most kernels stop the vCPU before its
 * ring is full; where KVM emulates the guest's instructions, some go on, and push over entries that nobody has read.
 * Either way no page is lost in silence, and what is written later is reported.
 */
#include "dirty_rig.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t overflows(struct kvmem_dirty *dirty)
{
	struct kvmem_dirty_stats s = KVMEM_DIRTY_STATS_INIT;

	ck_ok(kvmem_dirty_get_stats(dirty, &s));
	return s.ring_overflows;
}

/* ---- a guest with page tables ---- */

/* Each round must report what is written in it. */
static void small_rounds(struct rig *rig, unsigned int rounds)
{
	for (unsigned int i = 1; i <= rounds; i++) {
		rig_write(rig, 0, 1, i * 7, true);
		rig_wait(rig);
		rig_sync(rig);
		ck_assert_uint_eq(rig_lost(rig), 0);
	}
}

static void write_all_at_once(uint32_t entries, uint32_t backing, uint32_t flags)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING,
			      .ring_entries = entries,
			      .flags = flags,
			      .backing = backing };
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	for (unsigned int i = 0; i < 4; i++) {
		rig_write(&rig, 0, 1, 0, i % 2);
		rig_wait(&rig);
		rig_sync(&rig);
		ck_assert_uint_eq(rig_lost(&rig), 0);
		small_rounds(&rig, harness_emulated() ? 3 : 30);
	}
	harness_note("%u exits, %lu overflows", atomic_load(&rig.full),
		     (unsigned long)overflows(rig.dirty));
	rig_close(&rig);
}

TEST(a_guest_writes_more_than_its_ring_holds)
{
	write_all_at_once(1024, KVMEM_BACKING_MEMFD, 0);
}
END

TEST(with_a_reaper_too)
{
	write_all_at_once(1024, KVMEM_BACKING_ANONYMOUS, KVMEM_DIRTY_REAPER);
}
END

/* ---- a guest without page tables, whose instructions some KVM emulate one by one ---- */

#define FLAT_GPA   UINT64_C(0x10000000)
#define FLAT_PAGES 16384u
#define FLAT_CODE  0x1000u

struct flat {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	struct kvmem_dirty *dirty;
	int vcpu;
	struct kvm_run *run;
	size_t run_bytes;
	void *low;
	unsigned char *base, *copy;
	unsigned int full;
};

/* Adds one to the first byte of ecx pages from edi on, and stops. */
static const unsigned char flat_code[] = {
	0xfe, 0x07,			    /* incb (%edi) */
	0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, /* add $4096,%edi */
	0xe2, 0xf6,			    /* loop */
	0xf4,				    /* hlt */
};

static void flat_vcpu(struct flat *f)
{
	struct kvm_userspace_memory_region low = { .slot = 0,
						   .memory_size = 0x10000,
						   .userspace_addr = (uintptr_t)f->low };
	int kvm = kvmem_vm_kvm_fd(f->vm);

	ck_assert_int_eq(ioctl(kvmem_vm_fd(f->vm), KVM_SET_USER_MEMORY_REGION, &low), 0);
	f->vcpu = ioctl(kvmem_vm_fd(f->vm), KVM_CREATE_VCPU, 0);
	ck_assert_int_ge(f->vcpu, 0);
	f->run_bytes = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	f->run = mmap(NULL, f->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, f->vcpu, 0);
	ck_assert_ptr_ne(f->run, MAP_FAILED);
	ck_ok(kvmem_dirty_add_vcpu(f->dirty, f->vcpu));
}

static bool flat_open(struct flat *f, uint32_t entries)
{
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;

	memset(f, 0, sizeof(*f));
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	if (!rig_has_ring()) {
		harness_skip("dirty-ring", "%s", kvmem_error_detail());
		return false;
	}
	vo.first_slot = 1;
	ck_ok(kvmem_vm_create(&vo, &f->vm));
	d.mode = KVMEM_DIRTY_RING;
	d.ring_entries = entries;
	ck_ok(kvmem_dirty_create(f->vm, &d, &f->dirty));
	ro.bytes = FLAT_PAGES * RIG_PAGE;
	ro.needs = KVMEM_WANT_DIRTY;
	ck_ok(kvmem_region_create(f->vm, &ro, &f->ram));
	ck_ok(kvmem_region_attach(f->ram, 0, ro.bytes, FLAT_GPA, KVMEM_SLOT_ANY, 0, NULL));
	f->base = kvmem_region_base(f->ram);
	f->copy = calloc(1, ro.bytes);
	f->low = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert(f->copy && f->low != MAP_FAILED);
	memcpy((char *)f->low + FLAT_CODE, flat_code, sizeof(flat_code));
	flat_vcpu(f);
	ck_ok(kvmem_dirty_start(f->dirty));
	return true;
}

static void flat_close(struct flat *f)
{
	munmap(f->run, f->run_bytes);
	close(f->vcpu);
	ck_ok(kvmem_dirty_stop(f->dirty));
	ck_ok(kvmem_dirty_free(f->dirty));
	ck_ok(kvmem_region_free(f->ram));
	ck_ok(kvmem_vm_free(f->vm));
	munmap(f->low, 0x10000);
	free(f->copy);
}

static void flat_registers(struct flat *f, unsigned int first, unsigned int count)
{
	struct kvm_segment flat = { .limit = 0xffffffff, .present = 1, .db = 1, .s = 1, .g = 1 };
	struct kvm_regs regs = { .rip = FLAT_CODE,
				 .rflags = 2,
				 .rdi = FLAT_GPA + (uint64_t)first * RIG_PAGE,
				 .rcx = count };
	struct kvm_sregs s;

	ck_assert_int_eq(ioctl(f->vcpu, KVM_GET_SREGS, &s), 0);
	s.cs = s.ds = s.es = s.ss = flat;
	s.cs.type = 11;
	s.cs.selector = 8;
	s.ds.type = s.es.type = s.ss.type = 3;
	s.ds.selector = s.es.selector = s.ss.selector = 16;
	s.cr0 |= 1;
	ck_assert_int_eq(ioctl(f->vcpu, KVM_SET_SREGS, &s), 0);
	ck_assert_int_eq(ioctl(f->vcpu, KVM_SET_REGS, &regs), 0);
}

/* False when the ring is lost: the library says so, instead of sending the vCPU back for ever. */
static bool flat_write(struct flat *f, unsigned int first, unsigned int count)
{
	flat_registers(f, first, count);
	for (;;) {
		int r = ioctl(f->vcpu, KVM_RUN, 0);

		if (r < 0 && errno == EINTR)
			continue;
		ck_assert_msg(!r, "KVM_RUN: %s", strerror(errno));
		if (f->run->exit_reason == KVM_EXIT_HLT)
			return true;
		ck_assert_uint_eq(f->run->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
		f->full++;
		r = kvmem_dirty_ring_full(f->dirty, f->vcpu);
		if (r == -EIO)
			return false;
		ck_ok(r);
	}
}

/* Looks for lost pages. False when the commit says that a ring is lost. */
static bool flat_sync(struct flat *f)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;
	unsigned int lost = 0;
	int64_t r;

	ck_ok(kvmem_dirty_harvest(f->dirty, &batch));
	r = kvmem_dirty_commit(f->dirty, batch);
	if (r == -EIO) {
		kvmem_batch_free(batch);
		return false;
	}
	ck_ok(r);
	while (kvmem_batch_next(batch, &run) == 1)
		memcpy(f->copy + run.offset, f->base + run.offset, run.bytes);
	kvmem_batch_free(batch);
	for (size_t i = 0; i < FLAT_PAGES; i++)
		lost += f->copy[i * RIG_PAGE] != f->base[i * RIG_PAGE];
	ck_assert_msg(!lost, "%u pages lost", lost);
	return true;
}

/* Then as many pages in small steps, that any entry of the ring is used again. */
static void flat_rounds(uint32_t entries, unsigned int count)
{
	struct flat f;
	bool whole;

	if (!flat_open(&f, entries))
		return;
	flat_write(&f, 0, 100);
	ck_assert(flat_sync(&f));
	whole = flat_write(&f, 100, count);
	whole = flat_sync(&f) && whole;
	for (unsigned int at = 0; whole && at + 77 <= 3 * entries; at += 77) {
		whole = flat_write(&f, at % 10000, 77);
		whole = flat_sync(&f) && whole;
	}
	/* Where the kernel stops the vCPU in time, nothing is an error. */
	ck_assert(whole || overflows(f.dirty));
	harness_note("rings of %u, %u pages at once: %u exits, %lu overflows%s", entries, count,
		     f.full, (unsigned long)overflows(f.dirty), whole ? "" : ", a ring lost");
	flat_close(&f);
}

TEST(a_guest_without_page_tables_does)
{
	static const unsigned int more[] = { 1, 50, 300, 700, 1023, 1024, 1025, 1400, 3000, 10000 };

	for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i += harness_emulated() ? 4 : 1)
		flat_rounds(1024, 1024 + more[i]);
	flat_rounds(4096, 7000);
}
END

HARNESS_MAIN(T(a_guest_writes_more_than_its_ring_holds), T(with_a_reaper_too),
	     T(a_guest_without_page_tables_does))
