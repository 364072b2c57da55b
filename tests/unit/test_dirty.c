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

static int attach(struct kvmem_region *r, uint64_t first, uint64_t pages, uint64_t gpa, uint32_t slot)
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
	ck_fails(create(KVMEM_DIRTY_RING, 256, 0), EBUSY, "or they are fewer than this machine needs");
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

	fk_reset();		/* the VMM's own rings */
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
	ck_assert_ptr_null(batch);
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
	fk_write(0, 0, 3);		/* protected again */
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
	ck_fails(kvmem_dirty_merge(dirty, &fk.a, 0, PAGE, 12, &(uint64_t){ 1 }), EINVAL, "not started");
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
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);	/* logged again */
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
	ck_fails(kvmem_dirty_get_vcpu_stats(dirty, FK_VCPU_FD + 1,
		 &(struct kvmem_vcpu_stats){ .size = sizeof(struct kvmem_vcpu_stats) }), ENOENT, "not added");
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
	ck_assert_uint_eq(s.resets, 3);
	ck_assert_uint_eq(s.short_resets, 0);
	ck_assert_uint_eq(s.pages, 500);
	ck_assert_uint_eq(s.vcpus, 1);
	ck_assert_uint_eq(s.ring_entries, 256);
	ck_assert_uint_eq(s.harvests, 1);
	close_all();
}
END

/* ---- resets that go wrong ---- */

/* Whatever the kernel forgot to protect is protected and reported by the next batch. */
static void expect_repaired(uint64_t kept)
{
	struct kvmem_dirty_stats s = KVMEM_DIRTY_STATS_INIT;

	for (uint64_t p = 0; p < 924; p++)
		ck_assert(!fk.slots[0].open[p]);
	fk_write(0, 0, 20);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 924);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	expect_run(&fk.a, 100, 924);
	expect_end();
	ck_assert_int_eq(kvmem_dirty_get_stats(dirty, &s), 0);
	ck_assert_uint_eq(s.short_resets, 1);
	ck_assert_uint_eq(s.pages_kept, kept);
}

TEST(a_short_reset_is_repaired_in_the_commit)
{
	open_ring();
	for (uint64_t p = 0; p < 60; p++)
		fk_write(0, 0, p);
	fk.short_times = 1;
	fk.short_after = 40;
	fk.short_lost = 30;
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 60);
	fk.slot_sets = 0;
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 924);
	ck_assert_uint_eq(fk.resets, 2);		/* the rest at once */
	ck_assert_uint_eq(fk.slot_sets, 2);		/* slot 0 alone */
	ck_assert_uint_eq(fk.sets[0].slot, 0);
	ck_assert_uint_eq(fk.sets[0].flags, 0);
	ck_assert_uint_eq(fk.sets[1].flags, KVM_MEM_LOG_DIRTY_PAGES);
	expect_run(&fk.a, 100, 60);
	kvmem_batch_free(batch);
	expect_repaired(924);
	close_all();
}
END

TEST(a_short_reset_of_a_full_ring_is_repaired_by_the_harvest)
{
	open_ring();
	for (uint64_t p = 0; p < 60; p++)
		fk_write(0, 0, p);
	fk.short_times = 1;
	fk.short_after = 59;
	fk.short_lost = 9;
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	fk_write(0, 0, 55);				/* unlogged */
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 924);
	kvmem_batch_free(batch);
	expect_repaired(924);
	close_all();
}
END

TEST(a_reset_that_stays_short_is_taken_up_by_the_next)
{
	open_ring();
	for (uint64_t p = 0; p < 60; p++)
		fk_write(0, 0, p);
	fk.short_times = 100;
	fk.short_after = 0;
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 60);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 924);
	ck_assert_uint_eq(fk.resets, 1);	/* no progress, no more tries */
	kvmem_batch_free(batch);
	fk.short_times = 0;
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 924);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	ck_assert_uint_eq(fk.vcpus[0].reset, 60);
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
	fk.short_times = 1;
	fk.short_after = 0;
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	fk.slot_errno = ENOMEM;
	ck_fails(kvmem_dirty_commit(dirty, batch), EIO, "slot 0");
	fk.slot_errno = 0;
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 924);
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
	ck_assert_int_eq(fk.vcpus[0].reset, 37);	/* left empty */
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
	kvmem_batch_free(batch);	/* the kernel has forgotten it, we have not */
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
		ck_assert_msg(SANITIZED || harness_count_maps() <= maps, "call %lu, %s: %u mappings, were %u", n,
			      fake.failed, harness_count_maps(), maps);
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

HARNESS_MAIN(T(ring_is_enabled_with_bytes_under_the_best_capability),
	     T(a_vcpu_there_already_means_busy_or_the_bitmap),
	     T(a_ring_too_small_for_the_machine_is_told_from_a_vcpu),
	     T(where_dev_kvm_is_out_of_reach_the_kvm_fd_given_tells),
	     T(bad_options_are_refused_before_anything_is_done), T(one_tracker_a_vm_and_rings_for_life),
	     T(harvest_commit_read_and_no_other_order), T(start_and_stop_and_free_out_of_turn),
	     T(a_stop_that_fails_loses_nothing), T(a_batch_never_committed_goes_into_the_next),
	     T(vcpus_are_told_from_other_files),
	     T(a_removed_vcpu_leaves_its_pages), T(a_full_ring_is_emptied_by_its_vcpu),
	     T(a_short_reset_is_repaired_in_the_commit),
	     T(a_short_reset_of_a_full_ring_is_repaired_by_the_harvest),
	     T(a_reset_that_stays_short_is_taken_up_by_the_next),
	     T(a_failed_reset_leaves_the_batch_uncommitted), T(a_repair_that_fails_is_tried_again),
	     T(a_slot_number_used_again_gets_no_pages_of_the_old_slot),
	     T(slots_of_one_region_give_one_run), T(a_freed_region_takes_its_pages_along),
	     T(regions_without_tracking_are_left_alone), T(a_slot_the_kernel_refuses_is_forgotten),
	     T(a_later_tracker_reads_on_where_the_ring_stands),
	     T(merged_pages_of_any_size_come_with_the_next_batch), T(first_all_begins_with_everything),
	     T(bitmap_clears_in_whole_words_up_to_the_slots_end), T(bitmap_without_manual_clear),
	     T(bitmap_errors_keep_the_pages), T(a_slot_detached_in_bitmap_mode_counts_as_written),
	     T(whichever_call_fails_nothing_leaks))
