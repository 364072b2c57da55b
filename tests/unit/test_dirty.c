// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The tracker over a KVM in memory: what it asks of the kernel, the order of calls, short resets. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "fake_rings.h"
#include "base/uapi/kvm.h"

#define PAGE 4096ull

/* Sanitizers map what they like. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

static struct kvmem_dirty *dirty;
static struct kvmem_batch *batch;

#define ck_fails(call, err, word) \
	do { \
		ck_assert_int_eq((call), -(err)); \
		ck_assert_msg(strstr(kvmem_error_detail(), word), "%s", kvmem_error_detail()); \
	} while (0)

static int create(uint32_t mode, uint32_t entries, uint32_t flags)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;

	o.mode = mode;
	o.ring_entries = entries;
	o.flags = flags;
	dirty = NULL;
	return kvmem_dirty_create(&fk.vm, &o, &dirty);
}

static int attach(struct kvmem_region *r, uint64_t first, uint64_t pages, uint64_t gpa,
		  uint32_t slot)
{
	return kvmem_region_attach(r, first * PAGE, pages * PAGE, gpa, slot, 0, NULL);
}

/* Slot 0: region a from page 100 on; slot 1: all of region b. One vCPU, started. */
static void open_with(uint32_t mode, uint32_t flags)
{
	fk_reset();
	ck_assert_int_eq(create(mode, 256, flags), 0);
	ck_assert_int_eq(attach(&fk.a, 100, 924, 0, 0), 0);
	ck_assert_int_eq(attach(&fk.b, 0, 512, 1ull << 30, 1), 0);
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	fk.resets = 0;
}

static void open_ring(void)
{
	open_with(KVMEM_DIRTY_RING, 0);
}

static void close_all(void)
{
	kvmem_batch_free(batch);
	batch = NULL;
	ck_assert_int_eq(kvmem_dirty_stop(dirty), 0);
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	fk_done();
}

static void expect_run(struct kvmem_region *r, uint64_t first, uint64_t pages)
{
	struct kvmem_run run;

	ck_assert_int_eq(kvmem_batch_next(batch, &run), 1);
	ck_assert_ptr_eq(run.region, r);
	ck_assert_uint_eq(run.offset, first * PAGE);
	ck_assert_uint_eq(run.bytes, pages * PAGE);
}

static void expect_end(void)
{
	struct kvmem_run run;

	ck_assert_int_eq(kvmem_batch_next(batch, &run), 0);
}

/* ---- create ---- */

TEST(ring_is_enabled_with_bytes_under_the_best_capability)
{
	fk_reset();
	ck_assert_int_eq(create(KVMEM_DIRTY_AUTO, 0, 0), 0);
	ck_assert_uint_eq(kvmem_dirty_get_mode(dirty), KVMEM_DIRTY_RING);
	ck_assert_uint_eq(fk.enabled.cap, KM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
	ck_assert_uint_eq(fk.enabled.args[0], 65536 * 16);
	ck_assert(strstr(kvmem_dirty_get_reason(dirty), "65536"));
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	fk_done();

	fk_reset();
	fk.acq_rel = 0;
	fk.tso = 4096 * 16;
	ck_assert_int_eq(create(KVMEM_DIRTY_AUTO, 1024, 0), 0);
	ck_assert_uint_eq(fk.enabled.cap, KVM_CAP_DIRTY_LOG_RING);
	ck_assert_uint_eq(fk.enabled.args[0], 1024 * 16);
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	fk_done();
}
END

TEST(a_vcpu_there_already_means_busy_or_the_bitmap)
{
	fk_reset();
	fk.enable_errno = EINVAL;
	ck_fails(create(KVMEM_DIRTY_RING, 0, 0), EBUSY, "vCPU");
	ck_assert_int_eq(create(KVMEM_DIRTY_AUTO, 0, 0), 0);
	ck_assert_uint_eq(kvmem_dirty_get_mode(dirty), KVMEM_DIRTY_BITMAP);
	ck_assert_msg(strstr(kvmem_dirty_get_reason(dirty), "before the first one"), "%s",
		      kvmem_dirty_get_reason(dirty));
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	fk_done();
}
END

TEST(a_ring_too_small_for_the_machine_is_told_from_a_vcpu)
{
	fk_reset();
	fk.enable_errno = fk.scratch_errno = EINVAL;
	ck_fails(create(KVMEM_DIRTY_RING, 256, 0), EINVAL, "ring_entries 256");
	ck_fails(create(KVMEM_DIRTY_AUTO, 256, 0), EINVAL, "ring_entries 256");
	fk_done();
}
END

static int64_t no_kvm(const char *path, int flags)
{
	(void)path;
	(void)flags;
	return -EACCES;
}

TEST(where_dev_kvm_is_out_of_reach_the_kvm_fd_given_tells)
{
	int fd = (int)km_real_open("/dev/null", O_RDWR);

	fk_reset();
	fake.open = no_kvm;
	fk.enable_errno = fk.scratch_errno = EINVAL;
	ck_fails(create(KVMEM_DIRTY_RING, 256, 0), EBUSY,
		 "or they are fewer than this machine needs");
	kvmem_caps_free(fk.vm.caps);
	ck_assert_int_eq(km_caps_create(fd, FK_VM_FD, 0, &fk.vm.caps), 0);
	ck_fails(create(KVMEM_DIRTY_AUTO, 256, 0), EINVAL, "ring_entries 256");
	fk.scratch_errno = 0;
	ck_fails(create(KVMEM_DIRTY_RING, 256, 0), EBUSY, "before the first one");
	close(fd);
	fk_done();
}
END

TEST(bad_options_are_refused_before_anything_is_done)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;

	fk_reset();
	ck_fails(create(KVMEM_DIRTY_RING, 1000, 0), EINVAL, "power of two");
	ck_fails(create(KVMEM_DIRTY_RING, 131072, 0), EINVAL, "65536");
	ck_fails(create(KVMEM_DIRTY_RING, 128, 0), EINVAL, "256");
	ck_fails(create(3, 0, 0), EINVAL, "mode");
	ck_fails(create(0, 0, 1u << 31), EINVAL, "flags");
	o.reap_min_ns = 2;
	o.reap_max_ns = 1;
	ck_fails(kvmem_dirty_create(&fk.vm, &o, &dirty), EINVAL, "reap_min_ns");
	o.size = 4;
	ck_fails(kvmem_dirty_create(&fk.vm, &o, &dirty), EINVAL, "size");
	ck_fails(kvmem_dirty_create(NULL, NULL, &dirty), EINVAL, "vm");
	ck_fails(kvmem_dirty_create(&fk.vm, NULL, NULL), EINVAL, "ret_dirty");
	ck_assert_uint_eq(fk.enables, 0);
	fk.acq_rel = 0;
	ck_fails(create(KVMEM_DIRTY_RING, 0, 0), EOPNOTSUPP, "bitmap");
	fk_done();
}
END

TEST(one_tracker_a_vm_and_rings_for_life)
{
	struct kvmem_dirty *first;

	fk_reset();
	ck_assert_int_eq(create(KVMEM_DIRTY_RING, 512, 0), 0);
	first = dirty;
	ck_fails(create(KVMEM_DIRTY_RING, 512, 0), EEXIST, "tracker");
	ck_assert_int_eq(kvmem_dirty_free(first), 0);
	ck_fails(create(KVMEM_DIRTY_BITMAP, 0, 0), EBUSY, "exclude");
	ck_fails(create(KVMEM_DIRTY_RING, 1024, 0), EINVAL, "512");
	ck_assert_int_eq(create(KVMEM_DIRTY_AUTO, 0, 0), 0);
	ck_assert_uint_eq(fk.enables, 1);
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	fk_done();

	fk_reset(); /* the VMM's own rings */
	fk.rings_on = true;
	fk.entries = 1024;
	ck_fails(create(KVMEM_DIRTY_AUTO, 0, 0), EBUSY, "ring_entries");
	ck_assert_int_eq(create(KVMEM_DIRTY_AUTO, 1024, 0), 0);
	ck_assert_uint_eq(fk.enables, 0);
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	fk_done();
}
END

/* ---- order of calls ---- */

TEST(harvest_commit_read_and_no_other_order)
{
	struct kvmem_batch *other = NULL;
	struct kvmem_run run;
	uint64_t bits[8] = { 0 };

	open_ring();
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
	ck_assert_ptr_nonnull(batch);
	ck_assert_uint_eq(kvmem_batch_pages(batch), 0);
	ck_fails(kvmem_batch_next(batch, &run), EPERM, "commit");
	ck_fails(kvmem_dirty_harvest(dirty, &other), EBUSY, "kvmem_batch_free");
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_end();
	kvmem_batch_free(batch);
	fk_write(0, 0, 3);
	fk_write(0, 0, 4);
	fk_write(0, 1, 511);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 3);
	ck_assert_uint_eq(fk.resets, 0);
	ck_fails(kvmem_batch_next(batch, &run), EPERM, "commit");
	ck_fails(kvmem_batch_runs(batch, &run, 1), EPERM, "commit");
	ck_fails(kvmem_batch_bitmap(batch, &fk.b, 0, fk.b.bytes, bits), EPERM, "commit");
	ck_fails(kvmem_dirty_harvest(dirty, &other), EBUSY, "kvmem_batch_free");
	ck_fails(kvmem_dirty_stop(dirty), EBUSY, "batch");
	ck_fails(kvmem_dirty_commit(dirty, (struct kvmem_batch *)&run), EINVAL, "batch");
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert_uint_eq(fk.resets, 1);
	ck_fails(kvmem_dirty_commit(dirty, batch), EALREADY, "committed");
	for (int again = 0; again < 2; again++) {
		expect_run(&fk.a, 103, 2);
		expect_run(&fk.b, 511, 1);
		expect_end();
	}
	ck_assert_int_eq(kvmem_batch_bitmap(batch, &fk.b, 0, fk.b.bytes, bits), 0);
	ck_assert_uint_eq(bits[7], 1ull << 63);
	ck_fails(kvmem_batch_bitmap(batch, &fk.b, 0, fk.b.bytes + PAGE, bits), ERANGE, "region");
	ck_fails(kvmem_batch_bitmap(batch, &fk.b, 1, PAGE, bits), EINVAL, "page size");
	ck_fails(kvmem_batch_bitmap(batch, &fk.b, 0, PAGE, NULL), EINVAL, "bitmap");
	kvmem_batch_free(batch);
	ck_fails(kvmem_dirty_commit(dirty, batch), EINVAL, "batch");
	fk_write(0, 0, 3); /* protected again */
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	close_all();
}
END

TEST(start_and_stop_and_free_out_of_turn)
{
	fk_reset();
	ck_assert_int_eq(create(KVMEM_DIRTY_RING, 256, 0), 0);
	ck_fails(kvmem_dirty_harvest(dirty, &batch), EINVAL, "not started");
	ck_fails(kvmem_dirty_stop(dirty), EINVAL, "not started");
	ck_fails(kvmem_dirty_merge(dirty, &fk.a, 0, PAGE, 12, &(uint64_t){ 1 }), EINVAL,
		 "not started");
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	ck_fails(kvmem_dirty_start(dirty), EBUSY, "started");
	ck_fails(kvmem_dirty_free(dirty), EBUSY, "kvmem_dirty_stop");
	ck_assert_int_eq(kvmem_dirty_stop(dirty), 0);
	ck_fails(kvmem_dirty_stop(dirty), EINVAL, "not started");
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	ck_assert_int_eq(kvmem_dirty_free(NULL), 0);
	ck_fails(kvmem_dirty_start(NULL), EINVAL, "NULL");
	ck_fails(kvmem_dirty_stop(NULL), EINVAL, "NULL");
	ck_fails(kvmem_dirty_harvest(NULL, &batch), EINVAL, "NULL");
	ck_fails(kvmem_dirty_commit(NULL, NULL), EINVAL, "NULL");
	ck_fails(kvmem_dirty_add_vcpu(NULL, 0), EINVAL, "NULL");
	ck_fails(kvmem_dirty_remove_vcpu(NULL, 0), EINVAL, "NULL");
	ck_fails(kvmem_dirty_ring_full(NULL, 0), EINVAL, "NULL");
	ck_fails(kvmem_batch_next(NULL, &(struct kvmem_run){ 0 }), EINVAL, "NULL");
	fk_done();
}
END

/* Of the two slots the first is not logged any more, the second is still. */
static void stop_half_way(void)
{
	fake.fail_errno = ENOMEM;
	fake.fail_at = fake.calls + 2;
	ck_fails(kvmem_dirty_stop(dirty), ENOMEM, "slot 1");
	fake.fail_at = 0;
}

TEST(a_stop_that_fails_loses_nothing)
{
	open_with(KVMEM_DIRTY_RING, KVMEM_DIRTY_REAPER);
	stop_half_way();
	ck_assert(dirty->reaper.running);
	close_all();

	open_ring();
	stop_half_way();
	fk_write(0, 0, 7);
	fk_write(0, 1, 9);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 925);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 100, 924);
	expect_run(&fk.b, 9, 1);
	expect_end();
	kvmem_batch_free(batch);
	fk_write(0, 0, 7);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1); /* logged again */
	close_all();
}
END

TEST(a_batch_never_committed_goes_into_the_next)
{
	open_ring();
	fk_write(0, 0, 1);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	kvmem_batch_free(batch);
	fk_write(0, 0, 5);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 2);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 101, 1);
	expect_run(&fk.a, 105, 1);
	expect_end();
	close_all();
}
END

/* ---- vCPUs ---- */

TEST(vcpus_are_told_from_other_files)
{
	open_ring();
	ck_fails(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD), EEXIST, "added before");
	ck_fails(kvmem_dirty_add_vcpu(dirty, FK_FILE_FD), EINVAL, "not a vCPU");
	ck_fails(kvmem_dirty_add_vcpu(dirty, -1), EBADF, "not open");
	ck_fails(kvmem_dirty_remove_vcpu(dirty, FK_VCPU_FD + 1), ENOENT, "not added");
	ck_fails(kvmem_dirty_ring_full(dirty, FK_VCPU_FD + 1), ENOENT, "not added");
	ck_fails(kvmem_dirty_get_vcpu_stats(
			 dirty, FK_VCPU_FD + 1,
			 &(struct kvmem_vcpu_stats){ .size = sizeof(struct kvmem_vcpu_stats) }),
		 ENOENT, "not added");
	close_all();
}
END

TEST(a_removed_vcpu_leaves_its_pages)
{
	struct kvmem_vcpu_stats v = KVMEM_VCPU_STATS_INIT;

	open_ring();
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD + 1), 0);
	fk_write(1, 0, 7);
	fk_write(0, 0, 6);
	ck_assert_int_eq(kvmem_dirty_remove_vcpu(dirty, FK_VCPU_FD + 1), 0);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 2);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 106, 2);
	ck_assert_int_eq(kvmem_dirty_get_vcpu_stats(dirty, FK_VCPU_FD, &v), 0);
	ck_assert_uint_eq(v.pages, 1);
	ck_assert_uint_gt(v.pages_per_s, 0);
	close_all();
}
END

TEST(a_full_ring_is_emptied_by_its_vcpu)
{
	struct kvmem_dirty_stats s = KVMEM_DIRTY_STATS_INIT;

	open_ring();
	for (uint64_t p = 0; p < 500; p++) {
		if (p && p % 200 == 0)
			ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
		fk_write(0, 1, p);
	}
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 500);
	/* Marked by the harvest, and reset by the vCPU: no short reset for the commit. */
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.b, 0, 500);
	expect_end();
	ck_assert_int_eq(kvmem_dirty_get_stats(dirty, &s), 0);
	ck_assert_uint_eq(s.ring_full, 3);
	ck_assert_uint_eq(s.resets, 4); /* one by the start */
	ck_assert_uint_eq(s.short_resets, 0);
	ck_assert_uint_eq(s.pages, 500);
	ck_assert_uint_eq(s.vcpus, 1);
	ck_assert_uint_eq(s.ring_entries, 256);
	ck_assert_uint_eq(s.harvests, 1);
	close_all();
}
END

/* ---- resets that go wrong ---- */

static struct kvmem_dirty_stats stats(void)
{
	struct kvmem_dirty_stats s = KVMEM_DIRTY_STATS_INIT;

	ck_assert_int_eq(kvmem_dirty_get_stats(dirty, &s), 0);
	return s;
}

/* One harvest, committed and freed, in which page `page` of slot 0 is; returns its pages. */
static int64_t sync_with(uint64_t page)
{
	uint64_t bits[FK_SLOT_PAGES / 64] = { 0 };
	int64_t r = kvmem_dirty_harvest(dirty, &batch);

	ck_assert_int_gt(r, 0);
	ck_assert_int_ge(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert_int_eq(kvmem_batch_bitmap(batch, &fk.a, 0, fk.a.bytes, bits), 0);
	page += fk.slots[0].pages == FK_SLOT_PAGES ? 0 : 100;
	ck_assert_msg(bits[page / 64] >> (page % 64) & 1, "page %lu of %ld", page, (long)r);
	kvmem_batch_free(batch);
	batch = NULL;
	return r;
}

/* Wherever a reset is interrupted: each page that it counted is protected, and none is said in vain. */
static void interrupt_everywhere(uint32_t total, uint64_t stride)
{
	for (uint32_t after = 0; after <= total; after++) {
		open_ring();
		for (uint64_t i = 0; i < total; i++)
			fk_write(0, 0, i * stride);
		ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), total);
		fk.slot_sets = 0;
		fk.interrupt_after = after;
		fk.interrupt_times = 1;
		ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
		ck_assert_uint_eq(fk.interrupt_times, 0);
		ck_assert_uint_eq(fk.resets, after == total ? 1 : 2);
		ck_assert_uint_eq(fk.vcpus[0].reset, total);
		ck_assert_uint_eq(fk.slot_sets, 0);
		for (uint64_t p = 0; p < 924; p++)
			ck_assert(!fk.slots[0].open[p]);
		kvmem_batch_free(batch);
		ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
		kvmem_batch_free(batch);
		ck_assert_uint_eq(stats().short_resets, after < total);
		ck_assert_uint_eq(stats().pages_kept, 0);
		close_all();
	}
}

TEST(k1_2_equal_count_and_every_other_count)
{
	interrupt_everywhere(60, 1);
	interrupt_everywhere(150, 3);
	interrupt_everywhere(100, 9);
	interrupt_everywhere(1, 1);
}
END

TEST(k1_3_of_anonymous_memory_too)
{
	open_ring();
	fk.a.fd = -1;
	for (uint64_t p = 0; p < 60; p++)
		fk_write(0, 0, p);
	fk.interrupt_times = 1;
	fk.interrupt_after = 60;
	ck_assert_int_eq(sync_with(59), 60);
	ck_assert_uint_eq(fk.zaps, 0);
	ck_assert_uint_eq(fk.wps, 1);
	for (uint64_t p = 0; p < 924; p++)
		ck_assert(!fk.slots[0].open[p]);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
	kvmem_batch_free(batch);
	close_all();
}
END

/* Before Linux 6.7: on and off, and by a userfaultfd that sees the faults of vCPUs. */
TEST(k1_3_of_anonymous_memory_without_asynchronous_protection)
{
	open_ring();
	fk.a.fd = -1;
	fk.no_wp_async = true;
	for (uint64_t p = 0; p < 60; p++)
		fk_write(0, 0, p);
	fk.interrupt_times = 1;
	fk.interrupt_after = 60;
	ck_assert_int_eq(sync_with(59), 60);
	ck_assert_uint_eq(fk.wps, 1);
	ck_assert(!fk.wp_on);
	ck_assert(!fk.user_mode_only);
	for (uint64_t p = 0; p < 60; p++)
		ck_assert(!fk.slots[0].open[p]);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
	kvmem_batch_free(batch);
	close_all();
}
END

/* Where pages cannot be protected they come with every batch, until they can, and no others do. */
TEST(k1_3_what_cannot_be_protected_is_reported_until_it_is)
{
	open_ring();
	fk.a.fd = -1;
	fk.uffd_errno = EPERM;
	for (uint64_t p = 0; p < 100; p++)
		fk_write(0, 0, p);
	fk.interrupt_times = 1;
	fk.interrupt_after = 100;
	ck_assert_int_eq(sync_with(99), 100); /* 64 to 99 are left open */
	ck_assert(fk.slots[0].open[99] && !fk.slots[0].open[0]);
	for (int i = 0; i < 3; i++) {
		fk_write(0, 0, 99);
		ck_assert_int_eq(sync_with(99), 64);
	}
	ck_assert_uint_gt(stats().pages_kept, 100);
	dirty->uffd = -1; /* as if it were to be had now */
	fk.uffd_errno = 0;
	ck_assert_int_eq(sync_with(99), 64);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
	kvmem_batch_free(batch);
	fk_write(0, 0, 99);
	ck_assert_int_eq(sync_with(99), 1);
	close_all();
}
END

/* That KVM logs a write proves that the page was protected. */
TEST(k1_3_a_page_that_is_logged_again_is_in_doubt_no_more)
{
	open_ring();
	fk.a.fd = -1;
	fk.uffd_errno = EPERM;
	for (uint64_t p = 0; p < 10; p++)
		fk_write(0, 0, p);
	ck_assert_int_eq(sync_with(9), 10);
	for (uint64_t p = 0; p < 10; p++)
		fk_write(0, 0, p);
	fk_write(0, 0, 500);
	ck_assert_int_eq(sync_with(9), 11);
	ck_assert_int_eq(sync_with(500), 1);
	close_all();
}
END

TEST(k1_3_doubts_without_end_cost_the_slot_once)
{
	open_ring();
	fk.a.fd = fk.b.fd = -1;
	fk.uffd_errno = EPERM;
	dirty->doubt_count = KM_DOUBTS - 1; /* of eight pages of another region */
	for (uint32_t i = 0; i < KM_DOUBTS - 1; i++)
		dirty->doubts[i] = (struct km_doubt){ km_dirty_region_find(dirty, &fk.b), 10 + i,
						      i % 8, 1 };
	fk_write(0, 0, 1);
	ck_assert_int_eq(sync_with(1), 8 + 1);
	fk_write(0, 0, 200);
	ck_assert_int_eq(sync_with(200), 8 + 2);
	ck_assert_int_eq(sync_with(900), 8 + 924);
	fk_write(0, 0, 200);
	ck_assert_int_eq(sync_with(200), 8 + 1);
	close_all();
}
END

TEST(a_short_reset_of_a_full_ring_is_mended_there)
{
	open_ring();
	for (uint64_t p = 0; p < 60; p++)
		fk_write(0, 0, p);
	fk.interrupt_times = 1;
	fk.interrupt_after = 59;
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	ck_assert(!fk.slots[0].open[55]);
	fk_write(0, 0, 55);
	ck_assert_int_eq(sync_with(55), 60);
	close_all();
}
END

TEST(a_reset_that_gets_nowhere_is_taken_up_by_the_next)
{
	open_ring();
	for (uint64_t p = 0; p < 60; p++)
		fk_write(0, 0, p);
	fk.interrupt_times = 1000000;
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 60);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert_uint_eq(fk.vcpus[0].reset, 0);
	kvmem_batch_free(batch);
	fk.interrupt_times = 0;
	fk_write(0, 1, 7);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert_uint_eq(fk.vcpus[0].reset, 61);
	fk_write(0, 0, 7);
	kvmem_batch_free(batch);
	ck_assert_int_eq(sync_with(7), 1);
	close_all();
}
END

/* A vCPU has gone once around its ring: which pages a short reset left out cannot be read any more. */
TEST(what_cannot_be_told_is_reported_whole)
{
	open_ring();
	for (uint64_t p = 0; p < 20; p++)
		fk_write(0, 0, p);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 20);
	fk.interrupt_after = 10;
	fk.interrupt_times = 1;
	fk.writes_in_reset = 241;
	fk.slot_sets = 0;
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 924 + 512);
	ck_assert_uint_eq(fk.slot_sets, 4);
	ck_assert_uint_eq(fk.sets[0].flags, 0);
	ck_assert_uint_eq(fk.sets[1].flags, KVM_MEM_LOG_DIRTY_PAGES);
	kvmem_batch_free(batch);
	ck_assert_int_eq(sync_with(3), 924 + 512);
	close_all();
}
END

TEST(a_failed_reset_leaves_the_batch_uncommitted)
{
	open_ring();
	fk_write(0, 0, 9);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	fk.reset_errno = ENOMEM;
	ck_fails(kvmem_dirty_commit(dirty, batch), EIO, "KVM_RESET_DIRTY_RINGS");
	ck_fails(kvmem_batch_next(batch, &(struct kvmem_run){ 0 }), EPERM, "commit");
	ck_fails(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), EIO, "KVM_RESET_DIRTY_RINGS");
	fk.reset_errno = 0;
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 109, 1);
	close_all();
}
END

TEST(a_repair_that_fails_is_tried_again)
{
	open_ring();
	fk_write(0, 0, 9);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	pthread_rwlock_wrlock(&fk.vm.lock);
	km_doubt_all(dirty);
	pthread_rwlock_unlock(&fk.vm.lock);
	fk.slot_errno = ENOMEM;
	ck_fails(kvmem_dirty_commit(dirty, batch), EIO, "slot 0");
	fk.slot_errno = 0;
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 924 + 512);
	close_all();
}
END

/* ---- slots that come and go ---- */

TEST(a_slot_number_used_again_gets_no_pages_of_the_old_slot)
{
	open_ring();
	fk_write(0, 1, 7);
	ck_assert_int_eq(kvmem_region_detach(&fk.b, 1), 0);
	ck_assert_int_eq(attach(&fk.a, 0, 100, 2ull << 30, 1), 0);
	ck_assert_uint_eq(fk.slots[1].flags, KVM_MEM_LOG_DIRTY_PAGES);
	fk_write(0, 1, 50);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 2);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 50, 1);
	expect_run(&fk.b, 7, 1);
	expect_end();
	close_all();
}
END

TEST(slots_of_one_region_give_one_run)
{
	open_ring();
	ck_assert_int_eq(attach(&fk.a, 0, 100, 2ull << 30, 2), 0);
	fk_write(0, 2, 99);
	fk_write(0, 0, 0);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 2);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 99, 2);
	expect_end();
	close_all();
}
END

TEST(a_freed_region_takes_its_pages_along)
{
	open_ring();
	fk_write(0, 0, 7);
	fk_write(0, 1, 8);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 2);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 107, 1);
	ck_assert_int_eq(kvmem_region_detach(&fk.a, 0), 0);
	pthread_rwlock_wrlock(&fk.vm.lock);
	fk.vm.hooks->region_freed(fk.vm.hooks_arg, &fk.a);
	pthread_rwlock_unlock(&fk.vm.lock);
	ck_assert_uint_eq(kvmem_batch_pages(batch), 1);
	expect_run(&fk.b, 8, 1);
	expect_end();
	close_all();
}
END

TEST(regions_without_tracking_are_left_alone)
{
	fk_reset();
	fk.b.plan.granted = 0;
	ck_assert_int_eq(create(KVMEM_DIRTY_RING, 256, 0), 0);
	ck_assert_int_eq(attach(&fk.b, 0, 256, 0, 1), 0);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	ck_assert_int_eq(attach(&fk.b, 256, 256, 1ull << 30, 2), 0);
	ck_assert_uint_eq(fk.slots[1].flags | fk.slots[2].flags, 0);
	fk.a.plan.slot_form = KVMEM_SLOT_DIRECT;
	ck_fails(attach(&fk.a, 0, 256, 2ull << 30, 3), EOPNOTSUPP, "KVMEM_SLOT_HVA");
	close_all();
}
END

TEST(a_slot_the_kernel_refuses_is_forgotten)
{
	open_ring();
	fk.slot_errno = EEXIST;
	ck_assert_int_eq(attach(&fk.a, 0, 100, 2ull << 30, 5), -EEXIST);
	fk.slot_errno = 0;
	ck_assert_int_eq(attach(&fk.a, 0, 100, 2ull << 30, 5), 0);
	close_all();
}
END

TEST(a_later_tracker_reads_on_where_the_ring_stands)
{
	open_ring();
	for (uint64_t p = 0; p < 37; p++)
		fk_write(0, 0, p);
	ck_assert_int_eq(kvmem_dirty_stop(dirty), 0);
	ck_assert_int_eq(fk.vcpus[0].reset, 37); /* left empty */
	ck_assert_int_eq(kvmem_dirty_remove_vcpu(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	for (uint64_t p = 300; p < 310; p++)
		fk_write(0, 0, p);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 10);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 400, 10);
	close_all();
}
END

/* ---- merge, and what is handed in ---- */

TEST(merged_pages_of_any_size_come_with_the_next_batch)
{
	uint64_t bits[2] = { 0x8000000000000005ull, 1 };

	open_ring();
	ck_assert_int_eq(kvmem_dirty_merge(dirty, &fk.a, 10 * PAGE, 65 * PAGE, 12, bits), 0);
	ck_assert_int_eq(kvmem_dirty_merge(dirty, &fk.b, 0, 65 * 512, 9, bits), 0);
	bits[0] = 3;
	ck_assert_int_eq(kvmem_dirty_merge(dirty, &fk.b, 256 * PAGE, 17 * PAGE, 16, bits), 0);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 4 + 3 + 17);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 10, 1);
	expect_run(&fk.a, 12, 1);
	expect_run(&fk.a, 73, 2);
	expect_run(&fk.b, 0, 1);
	expect_run(&fk.b, 7, 2);
	expect_run(&fk.b, 256, 17);
	expect_end();
	ck_fails(kvmem_dirty_merge(dirty, &fk.a, 0, fk.a.bytes + PAGE, 12, bits), ERANGE, "region");
	ck_fails(kvmem_dirty_merge(dirty, &fk.a, 0, 0, 12, bits), EINVAL, "0 bytes");
	ck_fails(kvmem_dirty_merge(dirty, &fk.a, 0, PAGE, 64, bits), EINVAL, "page_shift");
	ck_fails(kvmem_dirty_merge(dirty, &fk.a, 0, PAGE, 12, NULL), EINVAL, "bitmap");
	close_all();
}
END

TEST(first_all_begins_with_everything)
{
	open_with(KVMEM_DIRTY_RING, KVMEM_DIRTY_FIRST_ALL);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 924 + 512);
	close_all();
	open_with(KVMEM_DIRTY_BITMAP, KVMEM_DIRTY_FIRST_ALL);
	ck_assert_uint_eq(fk.enabled.args[0], 3);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 924 + 512);
	close_all();
}
END

/* ---- the bitmap ---- */

TEST(bitmap_clears_in_whole_words_up_to_the_slots_end)
{
	open_with(KVMEM_DIRTY_BITMAP, 0);
	ck_assert_uint_eq(fk.enabled.cap, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	ck_assert_uint_eq(fk.enabled.args[0], KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	fk_write(0, 0, 70);
	fk_write(0, 0, 923);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 2);
	ck_assert_uint_eq(fk.gets, 2);
	ck_assert_uint_eq(fk.clears, 0);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert_uint_eq(fk.clears, 1);
	ck_assert_uint_eq(fk.clear[0].slot, 0);
	ck_assert_uint_eq(fk.clear[0].first_page, 64);
	ck_assert_uint_eq(fk.clear[0].num_pages, 924 - 64);
	expect_run(&fk.a, 170, 1);
	expect_run(&fk.a, 1023, 1);
	expect_end();
	kvmem_batch_free(batch);
	fk_write(0, 0, 70);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	ck_fails(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), EINVAL, "bitmap");
	close_all();
	ck_assert_uint_eq(fk.enabled.args[0], 0);
}
END

TEST(bitmap_without_manual_clear)
{
	fk_reset();
	fk.acq_rel = 0;
	fk.manual = 0;
	ck_assert_int_eq(create(KVMEM_DIRTY_AUTO, 0, 0), 0);
	ck_assert_int_eq(attach(&fk.a, 0, 1024, 0, 0), 0);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	fk_write(0, 0, 70);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	kvmem_batch_free(batch); /* the kernel has forgotten it, we have not */
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 70, 1);
	ck_assert_uint_eq(fk.clears, 0);
	close_all();
}
END

TEST(bitmap_errors_keep_the_pages)
{
	open_with(KVMEM_DIRTY_BITMAP, 0);
	fk_write(0, 0, 5);
	fk_write(0, 1, 6);
	fk.get_errno = ENOENT;
	ck_fails(kvmem_dirty_harvest(dirty, &batch), EIO, "KVM_GET_DIRTY_LOG");
	fk.get_errno = 0;
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 2);
	fk.clear_errno = EFAULT;
	fk.fail_clear_at = 2;
	ck_fails(kvmem_dirty_commit(dirty, batch), EIO, "KVM_CLEAR_DIRTY_LOG of slot 1");
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 105, 1);
	expect_run(&fk.b, 6, 1);
	close_all();
}
END

TEST(a_slot_detached_in_bitmap_mode_counts_as_written)
{
	open_with(KVMEM_DIRTY_BITMAP, 0);
	ck_assert_int_eq(kvmem_region_detach(&fk.b, 1), 0);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 512);
	close_all();
}
END

/* ---- numbers used again, rings used before, slots that go under running vCPUs ---- */

/* The kernel joins entries by number, and drops all of a run that ends beyond the slot of today. */
TEST(k1_1_number_used_again)
{
	fk_reset();
	ck_assert_int_eq(create(KVMEM_DIRTY_RING, 256, 0), 0);
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	ck_assert_int_eq(attach(&fk.a, 0, 200, 0, 7), 0);
	fk_write(0, 7, 100);
	ck_assert_int_eq(kvmem_region_detach(&fk.a, 7), 0);
	ck_assert_int_eq(attach(&fk.b, 0, 90, 0, 7), 0);
	fk_write(0, 7, 80);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 2);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	kvmem_batch_free(batch);
	ck_assert_uint_eq(fk.dropped, 1); /* the old slot's alone */
	ck_assert(!fk.slots[7].open[80]);
	fk_write(0, 7, 80);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	close_all();
}
END

/* As long as entries of a number are not reset it is not given out. */
TEST(k1_1_a_number_is_free_when_its_entries_are_reset)
{
	uint32_t id;

	open_ring();
	fk_write(0, 1, 100);
	fk.interrupt_times = 1000000;
	ck_assert_int_eq(kvmem_region_detach(&fk.b, 1), 0);
	ck_fails(attach(&fk.b, 0, 90, 1ull << 30, 1), EBUSY, "not reset yet");
	ck_assert_int_eq(
		kvmem_region_attach(&fk.b, 0, 90 * PAGE, 1ull << 30, KVMEM_SLOT_ANY, 0, &id), 0);
	ck_assert_uint_eq(id, 2);
	fk.interrupt_times = 0;
	ck_assert_int_eq(attach(&fk.b, 100, 90, 2ull << 30, 1), 0);
	ck_assert_uint_eq(fk.vcpus[0].reset, 1);
	close_all();
}
END

/* The VMM's own slot had the number before, and its entries are in the ring. */
TEST(k1_1_a_number_that_the_vmm_had)
{
	struct kvm_userspace_memory_region m = {
		.slot = 5,
		.memory_size = 200 * PAGE,
		.userspace_addr = 1ull << 40,
		.flags = KVM_MEM_LOG_DIRTY_PAGES,
		.guest_phys_addr = 5ull << 30,
	};

	open_ring();
	ck_assert_int_eq(km_sys_ioctl(FK_VM_FD, KVM_SET_USER_MEMORY_REGION, &m), 0);
	fk_write(0, 5, 100);
	m.memory_size = 0;
	ck_assert_int_eq(km_sys_ioctl(FK_VM_FD, KVM_SET_USER_MEMORY_REGION, &m), 0);
	ck_assert_int_eq(attach(&fk.a, 0, 90, 5ull << 30, 5), 0);
	fk_write(0, 5, 80);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert(!fk.slots[5].open[80]);
	close_all();
}
END

/* Without leave to call it exact, a slot that goes is reported whole where a buffer may hold pages. */
TEST(k1_4_detach_with_a_page_log_reports_the_slot_whole)
{
	for (int stopped = 0; stopped < 2; stopped++) {
		fk_reset();
		fk.pml = true;
		ck_assert_int_eq(
			create(KVMEM_DIRTY_RING, 1024, stopped ? KVMEM_DIRTY_DETACH_STOPPED : 0),
			0);
		ck_assert_int_eq(!strstr(kvmem_dirty_get_reason(dirty), "whole"), stopped);
		ck_assert_int_eq(attach(&fk.b, 0, 512, 0, 1), 0);
		ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD), 0);
		ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
		fk_write(0, 1, 3);
		ck_assert_int_eq(kvmem_region_detach(&fk.b, 1), 0);
		ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), stopped ? 1 : 512);
		close_all();
	}
}
END

/* An earlier owner of the ring has marked entries and not had them reset. */
TEST(k1_5_ring_full_calls_the_kernel_also_where_nothing_is_taken)
{
	open_ring();
	for (uint64_t p = 0; p < 250; p++)
		fk_write(0, 0, p);
	for (unsigned int i = 0; i < 250; i++)
		fk.vcpus[0].ring[i].flags = KVM_DIRTY_GFN_F_RESET;
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	ck_assert_uint_eq(fk.resets, 1);
	ck_assert_uint_eq(fk.vcpus[0].reset, 250);
	close_all();
}
END

/* What an earlier owner left is gone before entries of slots of today come behind it. */
TEST(k1_5_a_ring_that_was_used_is_emptied_when_it_is_added)
{
	fk_reset();
	ck_assert_int_eq(create(KVMEM_DIRTY_RING, 256, 0), 0);
	ck_assert_int_eq(attach(&fk.a, 0, 100, 0, 0), 0);
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD), 0);
	for (unsigned int i = 0; i < 9; i++)
		fk.vcpus[0].ring[i] = (struct kvm_dirty_gfn){ .flags = KVM_DIRTY_GFN_F_RESET,
							      .offset = 150 };
	fk.vcpus[0].pushed = 9;
	ck_assert_int_eq(kvmem_dirty_remove_vcpu(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD), 0);
	ck_assert_uint_eq(fk.vcpus[0].reset, 9);
	fk_write(0, 0, 95);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert(!fk.slots[0].open[95]);
	close_all();
}
END

/* Slot 0 is not logged any more when the stop fails, nor can it be again; then it is detached. */
TEST(k1_6_half_a_stop_and_a_detach)
{
	open_ring();
	fk.slot_errno = ENOMEM;
	fk.slot_good = 1;
	ck_assert_int_eq(kvmem_dirty_stop(dirty), -ENOMEM);
	fk.slot_errno = 0;
	ck_assert_uint_eq(fk.slots[0].flags, 0);
	fk_write(0, 0, 7);
	ck_assert_int_eq(kvmem_region_detach(&fk.a, 0), 0);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 924);
	close_all();
}
END

/* What could not be logged again at once is by the next harvest. */
TEST(k1_6_half_a_stop_and_a_harvest)
{
	open_ring();
	fk.slot_errno = ENOMEM;
	fk.slot_good = 1;
	ck_assert_int_eq(kvmem_dirty_stop(dirty), -ENOMEM);
	fk.slot_errno = 0;
	fk_write(0, 0, 7);
	ck_assert_int_eq(sync_with(7), 924);
	ck_assert_uint_eq(fk.slots[0].flags, KVM_MEM_LOG_DIRTY_PAGES);
	fk_write(0, 0, 7);
	ck_assert_int_eq(sync_with(7), 1);
	close_all();
}
END

/* Its pages may be unprotected, nobody knows which, and no harvest comes before it is detached. */
TEST(k1_6_a_slot_in_doubt_that_is_detached_is_reported_whole)
{
	open_ring();
	pthread_rwlock_wrlock(&fk.vm.lock);
	km_doubt_all(dirty);
	pthread_rwlock_unlock(&fk.vm.lock);
	ck_assert_int_eq(kvmem_region_detach(&fk.b, 1), 0);
	ck_assert_int_eq(kvmem_region_detach(&fk.a, 0), 0);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 924 + 512);
	close_all();
}
END

/* Pages that could not be protected again, of a slot that is detached: once more, and never again. */
TEST(k1_6_pages_in_doubt_of_a_slot_that_is_detached)
{
	open_ring();
	fk.a.fd = -1;
	fk.uffd_errno = EPERM;
	fk_write(0, 0, 7);
	ck_assert_int_eq(sync_with(7), 1);
	ck_assert_int_eq(kvmem_region_detach(&fk.a, 0), 0);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 107, 1);
	kvmem_batch_free(batch);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
	kvmem_batch_free(batch);
	close_all();
}
END

/* The tracker's functions are refused in a callback, and so is what changes slots. */
TEST(k9_27_calls_from_foreign_are_refused)
{
	struct kvmem_vcpu_stats v = KVMEM_VCPU_STATS_INIT;
	struct kvmem_dirty_stats t = KVMEM_DIRTY_STATS_INIT;
	const uint64_t bits = 1;
	struct km_callback cb;

	open_ring();
	km_callback_enter(&cb, "kvmem_dirty_opts.foreign", dirty, dirty->vm);
	ck_fails(kvmem_dirty_start(dirty), EDEADLK, "kvmem_dirty_start");
	ck_fails(kvmem_dirty_stop(dirty), EDEADLK, "kvmem_dirty_stop");
	ck_fails(kvmem_dirty_free(dirty), EDEADLK, "kvmem_dirty_free");
	ck_fails(kvmem_dirty_harvest(dirty, &batch), EDEADLK, "kvmem_dirty_harvest");
	ck_fails(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), EDEADLK, "kvmem_dirty_ring_full");
	ck_fails(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD + 1), EDEADLK, "kvmem_dirty_add_vcpu");
	ck_fails(kvmem_dirty_remove_vcpu(dirty, FK_VCPU_FD), EDEADLK, "kvmem_dirty_remove_vcpu");
	ck_fails(kvmem_dirty_merge(dirty, &fk.a, 0, PAGE, 12, &bits), EDEADLK, "kvmem_dirty_merge");
	ck_fails(kvmem_dirty_get_stats(dirty, &t), EDEADLK, "kvmem_dirty_get_stats");
	ck_fails(kvmem_dirty_get_vcpu_stats(dirty, FK_VCPU_FD, &v), EDEADLK, "get_vcpu_stats");
	ck_fails(attach(&fk.b, 0, 1, 1ull << 40, 5), EDEADLK, "kvmem_region_attach");
	ck_fails(kvmem_region_detach(&fk.a, 0), EDEADLK, "kvmem_region_detach");
	km_callback_leave(&cb);
	close_all();
}
END

/* ---- what the VMM has set ---- */

static void set_manual(uint64_t bits)
{
	struct kvm_enable_cap c = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { bits } };

	ck_assert_int_eq(km_sys_ioctl(FK_VM_FD, KVM_ENABLE_CAP, &c), 0);
}

static void adopted(bool told, uint64_t manual)
{
	fk_reset();
	fk.vm.adopted = true;
	fk.vm.manual_known = told;
	fk.vm.manual = told ? manual : 0;
	set_manual(manual);
}

static void start_all(void)
{
	ck_assert_int_eq(attach(&fk.a, 0, 1024, 0, 0), 0);
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
}

TEST(k2_8_a_ring_where_the_vmm_has_initially_set_on)
{
	for (int told = 0; told < 2; told++) {
		adopted(told, 3);
		ck_assert_int_eq(create(KVMEM_DIRTY_RING, 256, 0), 0);
		start_all();
		for (uint64_t p = 0; p < 10; p++)
			fk_write(0, 0, p);
		ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 10);
		close_all();
	}
}
END

TEST(k2_9_bitmap_leaves_on_what_the_vmm_has_on)
{
	for (uint64_t bits = 0; bits < 4; bits++)
		for (int told = 0; told < 2; told++) {
			if (bits == 2) /* the kernel takes it only with the other */
				continue;
			adopted(told, bits);
			ck_assert_int_eq(create(KVMEM_DIRTY_BITMAP, 0, 0), 0);
			start_all();
			ck_assert_uint_eq(fk.manual_now, bits);
			ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
			kvmem_batch_free(batch);
			fk_write(0, 0, 70);
			ck_assert_int_eq(sync_with(70), 1);
			fk_write(0, 0, 70);
			ck_assert_int_eq(sync_with(70), 1);
			ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
			kvmem_batch_free(batch);
			close_all();
			ck_assert_uint_eq(fk.manual_now, bits);
		}
	adopted(true, 3); /* nor with leave is anything lowered */
	ck_assert_int_eq(create(KVMEM_DIRTY_BITMAP, 0, KVMEM_DIRTY_WHOLE_VM), 0);
	start_all();
	ck_assert_uint_eq(fk.manual_now, 3);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
	kvmem_batch_free(batch);
	close_all();
	adopted(true, 1); /* with leave it is added to, and restored */
	ck_assert_int_eq(
		create(KVMEM_DIRTY_BITMAP, 0, KVMEM_DIRTY_WHOLE_VM | KVMEM_DIRTY_FIRST_ALL), 0);
	start_all();
	ck_assert_uint_eq(fk.manual_now, 3);
	close_all();
	ck_assert_uint_eq(fk.manual_now, 1);
}
END

TEST(k2_10_auto_turns_nothing_on_for_an_adopted_vm)
{
	adopted(false, 0);
	ck_assert_int_eq(create(KVMEM_DIRTY_AUTO, 0, 0), 0);
	ck_assert_uint_eq(kvmem_dirty_get_mode(dirty), KVMEM_DIRTY_BITMAP);
	ck_assert(strstr(kvmem_dirty_get_reason(dirty), "KVMEM_DIRTY_WHOLE_VM"));
	ck_assert_uint_eq(fk.enables, 0);
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	ck_assert_int_eq(create(KVMEM_DIRTY_AUTO, 0, KVMEM_DIRTY_WHOLE_VM), 0);
	ck_assert_uint_eq(kvmem_dirty_get_mode(dirty), KVMEM_DIRTY_RING);
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	fk_done();
}
END

static struct {
	uint64_t pages[FK_SLOT_PAGES], sure, unsure;
	int harvest;
} handed;

static void on_foreign(void *arg, uint32_t slot, uint64_t page, uint32_t flags)
{
	struct kvmem_batch *b;

	ck_assert_ptr_eq(arg, &handed);
	ck_assert_uint_eq(slot, 5);
	handed.pages[page]++;
	if (flags & KVMEM_FOREIGN_UNSURE)
		handed.unsure++;
	else
		handed.sure++;
	handed.harvest = (int)kvmem_dirty_harvest(dirty, &b);
}

TEST(k2_10_entries_of_the_vmms_slots_are_handed_on)
{
	struct kvm_userspace_memory_region m = {
		.slot = 5,
		.memory_size = 200 * PAGE,
		.userspace_addr = 1ull << 40,
		.flags = KVM_MEM_LOG_DIRTY_PAGES,
		.guest_phys_addr = 5ull << 30,
	};
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;

	memset(&handed, 0, sizeof(handed));
	adopted(false, 0);
	o.mode = KVMEM_DIRTY_RING;
	o.ring_entries = 256;
	o.foreign = on_foreign;
	o.arg = &handed;
	ck_assert_int_eq(kvmem_dirty_create(&fk.vm, &o, &dirty), 0);
	start_all();
	ck_assert_int_eq(km_sys_ioctl(FK_VM_FD, KVM_SET_USER_MEMORY_REGION, &m), 0);
	fk_write(0, 5, 10);
	fk_write(0, 0, 1);
	fk_write(0, 5, 11);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	ck_assert(handed.sure == 2 && handed.pages[10] && handed.pages[11]);
	ck_assert_int_eq(handed.harvest, -EDEADLK);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert_uint_eq(handed.unsure, 1); /* the last run was 11 */
	ck_assert_uint_eq(handed.pages[11], 2);
	ck_assert_uint_eq(stats().foreign_entries, 2);
	kvmem_batch_free(batch);
	fk_write(0, 5, 10);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch),
			 0); /* nothing to commit: reset at once */
	ck_assert_uint_eq(fk.vcpus[0].reset, 4);
	close_all();
}
END

TEST(k2_13_an_old_batch_is_no_handle_of_the_new_one)
{
	struct kvmem_batch *old;

	open_ring();
	fk_write(0, 0, 1);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &old), 1);
	kvmem_batch_free(old);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	kvmem_batch_free(old);
	ck_fails(kvmem_dirty_commit(dirty, old), EINVAL, "not a batch that is out");
	ck_fails(kvmem_batch_next(old, &(struct kvmem_run){ 0 }), EINVAL, "freed");
	ck_assert_uint_eq(kvmem_batch_pages(old), 0);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 101, 1);
	close_all();
}
END

TEST(k2_13_a_fallback_leaves_the_error_detail_alone)
{
	fk_reset();
	fk.enable_errno = EINVAL;
	ck_fails(create(3, 0, 0), EINVAL, "mode");
	ck_assert_int_eq(create(KVMEM_DIRTY_AUTO, 0, 0), 0);
	ck_assert(strstr(kvmem_error_detail(), "mode"));
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	fk_done();
}
END

/* ---- what the library itself changes ---- */

TEST(k3_14_changes_of_the_librarys_own_come_with_the_next_batch)
{
	for (uint32_t mode = KVMEM_DIRTY_RING; mode <= KVMEM_DIRTY_BITMAP; mode++) {
		open_with(mode, 0);
		fk.b.plan.granted =
			0; /* it has a record nonetheless: it was tracked from the start */
		km_vm_changed(&fk.vm, &fk.a, 150 * PAGE, 3 * PAGE);
		km_vm_changed(&fk.vm, &fk.b, 0, PAGE);
		ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 4);
		ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
		expect_run(&fk.a, 150, 3);
		expect_run(&fk.b, 0, 1);
		expect_end();
		ck_assert_uint_eq(stats().pages_changed, 4);
		close_all();
	}
}
END

/* Of a region that no slot shows yet, too; of one that is not tracked, nothing. */
TEST(k3_14_changes_before_the_region_is_attached)
{
	fk_reset();
	fk.b.plan.granted = 0;
	ck_assert_int_eq(create(KVMEM_DIRTY_RING, 256, 0), 0);
	km_vm_changed(&fk.vm, &fk.a, 0, PAGE);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	km_vm_changed(&fk.vm, &fk.b, 0, PAGE);
	km_vm_changed(&fk.vm, &fk.a, PAGE, PAGE);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 1, 1);
	kvmem_batch_free(batch);
	ck_assert_int_eq(kvmem_dirty_stop(dirty), 0);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	fake.fail_errno = ENOMEM;
	fake.fail_at = fake.calls + 1;
	km_vm_changed(&fk.vm, &fk.a, PAGE, PAGE);
	fake.fail_at = 0;
	ck_fails(kvmem_dirty_harvest(dirty, &batch), ENOMEM, "take all of it as changed");
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 0);
	kvmem_batch_free(batch);
	close_all();
}
END

TEST(k15_49_what_is_not_tracked_is_counted_and_said)
{
	fk_reset();
	fk.b.plan.granted = 0;
	ck_assert_int_eq(create(KVMEM_DIRTY_RING, 1024, 0), 0);
	ck_assert(strstr(kvmem_dirty_get_reason(dirty), "16 KiB of kernel memory"));
	ck_assert(strstr(kvmem_dirty_get_reason(dirty), "vCPUs that are not added"));
	ck_assert_int_eq(attach(&fk.b, 0, 512, 1ull << 30, 1), 0);
	start_all();
	ck_assert_uint_eq(stats().slots_tracked, 1);
	ck_assert_uint_eq(stats().slots_untracked, 1);
	close_all();
}
END

/* ---- threads beside each other ---- */

static struct {
	atomic_bool taking, committed;
} beside;

/* In the take of a full ring, after a page of ours: it stays there until the commit is through. */
static void hold_take(void *arg, uint32_t slot, uint64_t page, uint32_t flags)
{
	(void)arg, (void)slot, (void)page, (void)flags;
	atomic_store(&beside.taking, true);
	for (int i = 0; i < 300 && !atomic_load(&beside.committed); i++)
		usleep(1000);
}

static void *empty_full_ring(void *arg)
{
	(void)arg;
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	return NULL;
}

/* A page that another thread has just taken is in the batch: its entry is reset by the commit too. */
TEST(k1_2_commit_waits_for_who_takes_entries)
{
	struct kvm_userspace_memory_region m = {
		.slot = 5,
		.memory_size = 200 * PAGE,
		.userspace_addr = 1ull << 40,
		.flags = KVM_MEM_LOG_DIRTY_PAGES,
		.guest_phys_addr = 5ull << 30,
	};
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	pthread_t t;

	memset(&beside, 0, sizeof(beside));
	fk_reset();
	o.mode = KVMEM_DIRTY_RING;
	o.ring_entries = 256;
	o.foreign = hold_take;
	ck_assert_int_eq(kvmem_dirty_create(&fk.vm, &o, &dirty), 0);
	start_all();
	ck_assert_int_eq(km_sys_ioctl(FK_VM_FD, KVM_SET_USER_MEMORY_REGION, &m), 0);
	fk_write(0, 0, 7);
	fk_write(0, 5, 1);
	ck_assert_int_eq(pthread_create(&t, NULL, empty_full_ring, NULL), 0);
	while (!atomic_load(&beside.taking))
		usleep(100);
	dirty->vcpu_count = 0; /* the harvest has passed this ring before */
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	dirty->vcpu_count = 1;
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert(!fk.slots[0].open[7]);
	atomic_store(&beside.committed, true);
	pthread_join(t, NULL);
	close_all();
}
END

/* In doubt since a reset that came after the harvest had taken the rings: it stays in doubt. */
TEST(k1_3_a_doubt_that_is_younger_than_the_entry)
{
	open_ring();
	fk.a.fd = -1;
	fk.uffd_errno = EPERM;
	fk_write(0, 0, 7);
	pthread_rwlock_rdlock(&fk.vm.lock);
	km_doubt_begin(dirty);
	ck_assert_uint_eq(km_dirty_take_all(dirty, false), 1);
	fk.interrupt_after = 1;
	fk.interrupt_times = 1;
	ck_assert_int_eq(km_dirty_reset(dirty, false), 0);
	km_doubt_report(dirty, false);
	for (size_t i = 0; i < dirty->region_count; i++) /* given out */
		km_dmap_clear(&dirty->regions[i]->of[0]->batch);
	pthread_rwlock_unlock(&fk.vm.lock);
	ck_assert(fk.slots[0].open[7]);
	ck_assert_uint_eq(dirty->doubt_count, 1);
	ck_assert_int_eq(sync_with(7), 1);
	ck_assert_int_eq(sync_with(7), 1);
	close_all();
}
END

static void *change(void *arg)
{
	km_vm_changed(&fk.vm, arg, PAGE, PAGE);
	return NULL;
}

/* Who holds it for writing may wait for a vCPU whose fault waits for who makes the change. */
TEST(k3_14_a_change_waits_for_nobody_who_changes_slots)
{
	pthread_t t;

	open_ring();
	pthread_rwlock_wrlock(&fk.vm.lock);
	ck_assert_int_eq(pthread_create(&t, NULL, change, &fk.a), 0);
	pthread_join(t, NULL);
	pthread_rwlock_unlock(&fk.vm.lock);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	close_all();

	fk_reset(); /* a region that no slot shows */
	ck_assert_int_eq(create(KVMEM_DIRTY_RING, 256, 0), 0);
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	pthread_rwlock_wrlock(&fk.vm.lock);
	ck_assert_int_eq(pthread_create(&t, NULL, change, &fk.a), 0);
	pthread_join(t, NULL);
	pthread_rwlock_unlock(&fk.vm.lock);
	ck_assert_int_eq(attach(&fk.a, 0, 512, 0, 0), 0);
	km_vm_changed(&fk.vm, &fk.b, 0, PAGE);
	pthread_rwlock_wrlock(&fk.vm.lock);
	fk.vm.hooks->region_freed(fk.vm.hooks_arg, &fk.b);
	pthread_rwlock_unlock(&fk.vm.lock);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	close_all();
}
END

/* ---- every call fails once ---- */

/* 0 when all of it went well. */
static int whole_life(uint32_t mode, uint32_t flags)
{
	int64_t r = create(mode, 256, flags);
	struct kvmem_run run;

	batch = NULL;
	if (r)
		return (int)r;
	r = attach(&fk.a, 0, 512, 0, 0);
	if (!r)
		r = kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD);
	if (!r)
		r = kvmem_dirty_start(dirty);
	if (!r)
		r = attach(&fk.b, 0, 512, 1ull << 30, 1);
	if (!r) {
		fk_write(0, 0, 1);
		fk_write(0, 1, 2);
		r = kvmem_dirty_harvest(dirty, &batch);
	}
	if (r > 0)
		r = kvmem_dirty_commit(dirty, batch);
	if (r > 0) /* pages could not be protected again, and come with the next batch */
		r = 0;
	if (!r && batch)
		r = kvmem_batch_next(batch, &run) == 1 ? 0 : -EPROTO;
	kvmem_batch_free(batch);
	fake.fail_at = r < 0 ? 0 : fake.fail_at;
	if (kvmem_dirty_stop(dirty) < 0 && dirty->started) {
		r = -EIO;
		fake.fail_at = 0;
		ck_assert_int_eq(kvmem_dirty_stop(dirty), 0);
	}
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	return (int)r;
}

static int fail_call(unsigned long n, uint32_t mode, uint32_t flags)
{
	int r;

	fk_reset();
	fake.fail_at = n;
	fake.fail_errno = ENOMEM;
	r = whole_life(mode, flags);
	fake.fail_at = 0;
	ck_assert_msg(r <= 0, "%s: %d", fake.failed, r);
	ck_assert_msg(fake.failed || !r, "%d: %s", r, kvmem_error_detail());
	fk_done();
	return r;
}

static void fail_each_call(uint32_t mode, uint32_t flags)
{
	unsigned long n = 0, failures = 0;
	unsigned int maps;

	fail_call(0, mode, flags);
	maps = harness_count_maps();
	do {
		failures += fail_call(++n, mode, flags) < 0;
		ck_assert_msg(SANITIZED || harness_count_maps() <= maps,
			      "call %lu, %s: %u mappings, were %u", n, fake.failed,
			      harness_count_maps(), maps);
	} while (fake.failed);
	ck_assert_uint_gt(failures, 13);
}

TEST(whichever_call_fails_nothing_leaks)
{
	fail_each_call(KVMEM_DIRTY_RING, 0);
	fail_each_call(KVMEM_DIRTY_BITMAP, 0);
	fail_each_call(KVMEM_DIRTY_AUTO, KVMEM_DIRTY_REAPER);
}
END

HARNESS_MAIN(
	T(ring_is_enabled_with_bytes_under_the_best_capability),
	T(a_vcpu_there_already_means_busy_or_the_bitmap),
	T(a_ring_too_small_for_the_machine_is_told_from_a_vcpu),
	T(where_dev_kvm_is_out_of_reach_the_kvm_fd_given_tells),
	T(bad_options_are_refused_before_anything_is_done), T(one_tracker_a_vm_and_rings_for_life),
	T(harvest_commit_read_and_no_other_order), T(start_and_stop_and_free_out_of_turn),
	T(a_stop_that_fails_loses_nothing), T(a_batch_never_committed_goes_into_the_next),
	T(vcpus_are_told_from_other_files), T(a_removed_vcpu_leaves_its_pages),
	T(a_full_ring_is_emptied_by_its_vcpu), T(k1_2_equal_count_and_every_other_count),
	T(k1_3_of_anonymous_memory_too),
	T(k1_3_of_anonymous_memory_without_asynchronous_protection),
	T(k1_3_what_cannot_be_protected_is_reported_until_it_is),
	T(k1_3_a_page_that_is_logged_again_is_in_doubt_no_more),
	T(k1_3_doubts_without_end_cost_the_slot_once),
	T(a_short_reset_of_a_full_ring_is_mended_there),
	T(a_reset_that_gets_nowhere_is_taken_up_by_the_next),
	T(what_cannot_be_told_is_reported_whole), T(a_failed_reset_leaves_the_batch_uncommitted),
	T(a_repair_that_fails_is_tried_again),
	T(a_slot_number_used_again_gets_no_pages_of_the_old_slot),
	T(slots_of_one_region_give_one_run), T(a_freed_region_takes_its_pages_along),
	T(regions_without_tracking_are_left_alone), T(a_slot_the_kernel_refuses_is_forgotten),
	T(a_later_tracker_reads_on_where_the_ring_stands),
	T(merged_pages_of_any_size_come_with_the_next_batch), T(first_all_begins_with_everything),
	T(bitmap_clears_in_whole_words_up_to_the_slots_end), T(bitmap_without_manual_clear),
	T(bitmap_errors_keep_the_pages), T(a_slot_detached_in_bitmap_mode_counts_as_written),
	T(k1_1_number_used_again), T(k1_1_a_number_is_free_when_its_entries_are_reset),
	T(k1_1_a_number_that_the_vmm_had), T(k1_4_detach_with_a_page_log_reports_the_slot_whole),
	T(k1_5_ring_full_calls_the_kernel_also_where_nothing_is_taken),
	T(k1_5_a_ring_that_was_used_is_emptied_when_it_is_added), T(k1_6_half_a_stop_and_a_detach),
	T(k1_6_half_a_stop_and_a_harvest),
	T(k1_6_a_slot_in_doubt_that_is_detached_is_reported_whole),
	T(k1_6_pages_in_doubt_of_a_slot_that_is_detached), T(k9_27_calls_from_foreign_are_refused),
	T(k2_8_a_ring_where_the_vmm_has_initially_set_on),
	T(k2_9_bitmap_leaves_on_what_the_vmm_has_on),
	T(k2_10_auto_turns_nothing_on_for_an_adopted_vm),
	T(k2_10_entries_of_the_vmms_slots_are_handed_on),
	T(k2_13_an_old_batch_is_no_handle_of_the_new_one),
	T(k2_13_a_fallback_leaves_the_error_detail_alone),
	T(k3_14_changes_of_the_librarys_own_come_with_the_next_batch),
	T(k3_14_changes_before_the_region_is_attached),
	T(k15_49_what_is_not_tracked_is_counted_and_said),
	T(k1_2_commit_waits_for_who_takes_entries), T(k1_3_a_doubt_that_is_younger_than_the_entry),
	T(k3_14_a_change_waits_for_nobody_who_changes_slots), T(whichever_call_fails_nothing_leaks))
