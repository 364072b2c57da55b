// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A kernel that lets a vCPU run on when its ring is full: entries are lost, and the kernel's own place in the ring is
 * behind ours. Nothing is lost in silence, and the ring is in step again, or the library says that it is not.
 */
#include "harness.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fake_rings.h"

#define ENTRIES 256u
#define PAGES	((uint64_t)FK_SLOT_PAGES)
#define FOREIGN 5u /* a slot of the VMM's */

static struct kvmem_dirty *dirty;
static bool written[FK_SLOT_PAGES]; /* since it was reported last */

static void (*meanwhile)(
	void); /* what vCPUs do while an entry of a slot that is not ours is taken */

static void on_foreign(void *arg, uint32_t slot, uint64_t page, uint32_t flags)
{
	(void)arg;
	(void)page;
	(void)flags;
	ck_assert_uint_eq(slot, FOREIGN);
	if (meanwhile)
		meanwhile();
}

static void track(void)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;

	o.mode = KVMEM_DIRTY_RING;
	o.ring_entries = ENTRIES;
	o.foreign = on_foreign;
	ck_assert_int_eq(kvmem_dirty_create(&fk.vm, &o, &dirty), 0);
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD), 0);
}

static void begin(void)
{
	fk_reset();
	memset(written, 0, sizeof(written));
	meanwhile = NULL;
	track();
	ck_assert_int_eq(kvmem_region_attach(&fk.a, 0, PAGES << 12, 0, 0, 0, NULL), 0);
	fk.slots[FOREIGN] = (struct fk_slot){ .pages = 64, .flags = KVM_MEM_LOG_DIRTY_PAGES };
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	fk.overruns = true;
}

static void end(void)
{
	fk.interrupt_times = 0;
	ck_assert_int_eq(kvmem_dirty_stop(dirty), 0);
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	fk_done();
}

static uint64_t overflows(void)
{
	struct kvmem_dirty_stats s = KVMEM_DIRTY_STATS_INIT;

	ck_assert_int_eq(kvmem_dirty_get_stats(dirty, &s), 0);
	return s.ring_overflows;
}

static void write_pages(uint64_t first, uint64_t count, uint64_t stride)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t page = (first + i * stride) % PAGES;

		written[page] = true;
		fk_write(0, 0, page);
	}
}

/* So many entries are between the kernel's two places. */
static uint32_t used(void)
{
	return fk.vcpus[0].pushed - fk.vcpus[0].reset;
}

/* Harvest and commit: returns what the commit did. */
static int64_t sync_once(void)
{
	uint64_t bits[FK_SLOT_PAGES / 64] = { 0 };
	struct kvmem_batch *batch;
	int64_t r;

	ck_assert_int_ge(kvmem_dirty_harvest(dirty, &batch), 0);
	r = kvmem_dirty_commit(dirty, batch);
	if (r >= 0)
		ck_assert_int_eq(kvmem_batch_bitmap(batch, &fk.a, 0, fk.a.bytes, bits), 0);
	for (uint64_t p = 0; p < PAGES; p++)
		written[p] &= !(bits[p / 64] >> (p % 64) & 1);
	kvmem_batch_free(batch);
	return r;
}

/* While no vCPU runs: nothing may be missing. */
static int64_t sync_all(void)
{
	int64_t r = sync_once();

	for (uint64_t p = 0; p < PAGES && r >= 0; p++) {
		if (written[p])
			ck_abort_msg("page %lu is not reported", p);
		if (fk.slots[0].open[p])
			ck_abort_msg("page %lu is not protected", p);
	}
	return r;
}

/* Whatever the kernel is behind by, after however many entries in the ring. */
TEST(one_overflow_is_reported_whole_and_mended)
{
	for (uint32_t before = 0; before < ENTRIES; before += 85)
		for (uint32_t more = 0; more < ENTRIES; more += more < 18 ? 1 : 34) {
			begin();
			write_pages(0, before, 1);
			ck_assert_int_eq(sync_all(), 0);
			write_pages(300, ENTRIES + more, 1);
			ck_assert_int_eq(sync_all(), 0);
			ck_assert_uint_eq(overflows(), 1);
			ck_assert_uint_eq(used(), more);
			for (int i = 0; i < 12 && more < 200; i++) {
				write_pages((uint64_t)i * 31, 1 + (uint64_t)i, 3);
				ck_assert_int_eq(sync_all(), 0);
				ck_assert_uint_eq(used(), 0);
			}
			ck_assert_uint_eq(overflows(), 1);
			end();
		}
}
END

/* Entries that have been taken, and were not reset yet, are pushed over: their pages are not protected. */
TEST(an_overflow_over_marked_entries)
{
	for (uint32_t taken = 1; taken < ENTRIES; taken += 37) {
		struct kvmem_batch *batch;

		begin();
		write_pages(0, taken, 1);
		ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), taken);
		write_pages(300, ENTRIES - taken + 7, 1); /* seven of them */
		ck_assert_int_ge(kvmem_dirty_commit(dirty, batch), 0);
		kvmem_batch_free(batch);
		for (int i = 0; i < 40; i++) {
			ck_assert_int_ge(sync_all(), 0);
			write_pages((uint64_t)i * 31, 1 + (uint64_t)i % 20, 3);
		}
		ck_assert_uint_le(used(), 20);
		end();
	}
}
END

/* A vCPU that the kernel takes for full whatever is reset would exit for ever. */
TEST(a_ring_that_stays_full_is_an_error)
{
	begin();
	write_pages(0, ENTRIES * 2 + 30, 1);
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	ck_assert_uint_gt(used(), ENTRIES);
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), -EIO);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "ring of vCPU 600 is full"));
	ck_assert_int_eq(sync_all(), 0);
	end();
}
END

/* A ring that has not overflowed may be empty as often as it likes: others have emptied it. */
TEST(an_empty_ring_is_no_error)
{
	begin();
	write_pages(0, 100, 1);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(sync_all(), 0);
	ck_assert_uint_eq(overflows(), 0);
	end();
}
END

/* While the library looks for the kernel's place: too much may be marked, which must not stay. */
TEST(resets_are_interrupted_on_the_way_back)
{
	for (uint32_t after = 0; after < 60; after++) {
		uint32_t flags = 0;

		begin();
		write_pages(0, ENTRIES + 41, 1);
		ck_assert_int_eq(sync_all(), 0);
		write_pages(500, 3, 1);
		fk.interrupt_after = after % 10;
		fk.interrupt_times = 1 + after / 10;
		ck_assert_int_ge(sync_all(), 0);
		fk.interrupt_times = 0;
		for (int i = 0; i < 60; i++) {
			write_pages((uint64_t)i * 31, 10, 3);
			ck_assert_int_eq(sync_all(), 0);
			ck_assert_uint_eq(used(), 0);
		}
		for (uint32_t i = 0; i < ENTRIES; i++)
			flags |= fk.vcpus[0].ring[i].flags;
		ck_assert_uint_eq(flags, 0);
		end();
	}
}
END

/* What is marked stays unprotected as long as the kernel does not come to it: the commit says so. */
TEST(a_kernel_that_resets_nothing_more_is_an_error)
{
	begin();
	write_pages(0, ENTRIES + 41, 1);
	ck_assert_int_eq(sync_all(), 0);
	write_pages(500, 3, 1);
	fk.interrupt_after = 0;
	fk.interrupt_times = 1000000;
	ck_assert_int_eq(sync_all(), -EIO);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "ring of vCPU 600 has overflowed"));
	fk.interrupt_times = 0;
	ck_assert_int_eq(sync_all(), 0);
	ck_assert_uint_eq(used(), 0);
	end();
}
END

/* A count is one of all that the next harvest reports, and what is forgotten is logged again. */
TEST(an_overflow_is_noticed_by_a_count_and_by_forgetting)
{
	struct kvmem_reader *own;
	struct kvmem_batch *batch;

	begin();
	own = kvmem_dirty_reader(dirty);
	write_pages(0, ENTRIES + 41, 1);
	ck_assert_int_eq(kvmem_reader_pending(own, NULL), (int64_t)PAGES);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), (int64_t)PAGES);
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	kvmem_batch_free(batch);
	memset(written, 0, sizeof(written));
	write_pages(100, ENTRIES + 90, 1);
	ck_assert_int_eq(kvmem_reader_forget(own, &fk.a, 0, PAGES << 12), 0);
	ck_assert_int_eq(kvmem_reader_pending(own, NULL), 0);
	memset(written, 0, sizeof(written));
	write_pages(0, 100, 1);
	ck_assert_int_eq(sync_all(), 0);
	end();
}
END

/* A slot that is deleted takes what was lost with it: all of it is reported. */
TEST(an_overflow_is_noticed_by_a_detach)
{
	struct kvmem_batch *batch;

	begin();
	write_pages(0, ENTRIES + 41, 1);
	ck_assert_int_eq(kvmem_region_detach(&fk.a, 0), 0);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), (int64_t)PAGES);
	kvmem_batch_free(batch);
	end();
}
END

/* The next tracker of the VM finds the ring as it is. */
TEST(a_later_tracker_finds_the_kernels_place)
{
	for (uint32_t more = 0; more < 150; more += 10) {
		begin();
		write_pages(0, ENTRIES + more, 1);
		ck_assert_int_eq(sync_all(), 0);
		ck_assert_int_eq(kvmem_dirty_stop(dirty), 0);
		ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
		track();
		ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
		for (int i = 0; i < 40; i++) {
			write_pages((uint64_t)i * 31, 10, 3);
			ck_assert_int_eq(sync_all(), 0);
			ck_assert_uint_eq(used(), 0);
		}
		end();
	}
}
END

static void go_on(void)
{
	meanwhile = NULL;
	write_pages(400, 126, 1);
}

/* What was taken first has been pushed over before the last is: its end is not where the kernel goes on. */
TEST(entries_are_pushed_over_in_the_middle_of_a_take)
{
	begin();
	write_pages(0, 50, 1);
	fk_write(0, FOREIGN, 0);
	write_pages(50, 150, 1);
	meanwhile = go_on;
	ck_assert_int_eq(sync_all(), 0);
	ck_assert_uint_eq(overflows(), 1);
	for (uint64_t i = 0; i < 6; i++) {
		write_pages(700 + i * 10, 10, 1);
		ck_assert_int_eq(sync_all(), 0);
		ck_assert_uint_eq(used(), 0);
	}
	end();
}
END

static int64_t (*fake_val)(int fd, unsigned long request, unsigned long arg);
static unsigned int calls;

/* After the second call the vCPU has stored the slot and the page of its next entry, and not yet that it is dirty. */
static int64_t half_a_push(int fd, unsigned long request, unsigned long arg)
{
	int64_t r = fake_val(fd, request, arg);

	if (request == KVM_RESET_DIRTY_RINGS && ++calls == 2) {
		struct kvm_dirty_gfn *e = &fk.vcpus[0].ring[fk.vcpus[0].pushed % ENTRIES];

		e->slot = 0;
		e->offset = 99;
		written[99] = fk.slots[0].open[99] = true;
	}
	return r;
}

/* The library marks the very entry, which is taken for one that was pushed long ago. */
TEST(a_push_meets_a_mark)
{
	struct kvmem_batch *batch;

	begin();
	write_pages(0, ENTRIES + 200, 1);
	ck_assert_int_eq(sync_all(), 0);
	write_pages(500, 3, 1);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 3);
	write_pages(600, 20, 1);
	calls = 0;
	fake_val = fake.ioctl_val;
	fake.ioctl_val = half_a_push;
	ck_assert_int_eq(kvmem_dirty_commit(dirty, batch), 0);
	kvmem_batch_free(batch);
	fake.ioctl_val = fake_val;
	fk.vcpus[0].ring[fk.vcpus[0].pushed++ % ENTRIES].flags = KVM_DIRTY_GFN_F_DIRTY;
	memset(&written[500], 0, 3 * sizeof(*written));
	ck_assert_int_ge(sync_all(), 0);
	end();
}
END

/* A vCPU that has gone on where nothing was lost, while another one's ring is full. */
TEST(the_ring_of_another_vcpu_is_nobodys_error)
{
	struct kvmem_batch *batch;

	begin();
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD + 1), 0);
	write_pages(0, ENTRIES + 100, 1);
	ck_assert_int_eq(sync_all(), 0);
	write_pages(500, 3, 1);
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 3);
	write_pages(600, 206, 1);
	for (uint64_t p = 900; p < 950; p++)
		fk_write(1, 0, p);
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD + 1), 0);
	ck_assert_int_ge(kvmem_dirty_commit(dirty, batch), 0);
	kvmem_batch_free(batch);
	memset(&written[500], 0, 3 * sizeof(*written));
	ck_assert_int_ge(sync_all(), 0);
	end();
}
END

/* Exactly a whole ring behind: no entry is left between what is marked and the vCPU, until that goes on. */
TEST(a_ring_that_is_a_whole_ring_behind)
{
	begin();
	ck_assert_int_eq(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD + 1), 0);
	write_pages(0, ENTRIES + 100, 1);
	ck_assert_int_eq(sync_all(), 0);
	write_pages(400, ENTRIES - 100, 1);
	ck_assert_int_eq(sync_once(), -EIO);
	for (uint64_t p = 900; p < 950; p++)
		fk_write(1, 0, p);
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD + 1), 0);
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), -EIO);
	write_pages(700, 10, 1);
	ck_assert_int_ge(sync_once(), 0);
	ck_assert_int_ge(sync_all(), 0);
	end();
}
END

/* Of a ring that somebody else had, nobody knows that it has overflowed. */
TEST(an_adopted_ring_may_be_empty)
{
	begin();
	fk_write(0, FOREIGN, 60);
	ck_assert_int_eq(sync_all(), 0);
	ck_assert_int_eq(kvmem_dirty_stop(dirty), 0);
	ck_assert_int_eq(kvmem_dirty_free(dirty), 0);
	track();
	ck_assert_int_eq(kvmem_dirty_start(dirty), 0);
	write_pages(0, 10, 1);
	for (int i = 0; i < 10; i++)
		ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(sync_all(), 0);
	end();
}
END

/* Entries are where nobody looks: found by the vCPU whose ring they fill. */
TEST(a_full_ring_whose_entries_are_elsewhere)
{
	begin();
	write_pages(0, 20, 1);
	ck_assert_int_eq(sync_all(), 0);
	fk.vcpus[0].pushed += 7; /* entries that never became dirty */
	write_pages(100, 30, 1);
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	ck_assert_uint_eq(overflows(), 1);
	ck_assert_int_eq(sync_all(), 0);
	ck_assert_uint_eq(used(), 0);
	end();
}
END

/* Nothing more comes of pages that are not protected: who waits for enough of them would sleep for ever. */
TEST(a_reader_that_sleeps_is_told_of_an_overflow)
{
	struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;
	struct kvmem_reader *reader;
	uint64_t n;

	begin();
	o.threshold_pages = 900;
	o.event_fd = eventfd(0, EFD_NONBLOCK);
	ck_assert_int_eq(kvmem_dirty_reader_create(dirty, &o, &reader), 0);
	write_pages(0, ENTRIES + 41, 1);
	ck_assert_int_eq(kvmem_dirty_ring_full(dirty, FK_VCPU_FD), 0);
	ck_assert_int_eq(read(o.event_fd, &n, sizeof(n)), sizeof(n));
	ck_assert_int_eq(kvmem_reader_pending(reader, NULL), (int64_t)PAGES);
	ck_assert_int_eq(kvmem_reader_free(reader), 0);
	close(o.event_fd);
	end();
}
END

static unsigned long long luck;

static void at_times(void)
{
	uint64_t n = harness_random(&luck) % 6 ? 0 : harness_random(&luck) % 300;

	meanwhile = NULL;
	write_pages(harness_random(&luck) % PAGES, n, 1 + harness_random(&luck) % 70);
	meanwhile = at_times;
}

/* Anything, by a vCPU that stops at times: what a commit has said holds. */
TEST(whatever_comes_nothing_is_lost_in_silence)
{
	for (unsigned long long round = 0; round < 120; round++) {
		unsigned long long seed = round;
		bool broken = false;

		begin();
		for (int i = 0; i < 60 && !broken; i++) {
			uint64_t n = harness_random(&seed) % (harness_random(&seed) % 4 ? 60 : 500);

			if (!(round % 2))
				fk_write(0, FOREIGN, harness_random(&seed) % 64);
			write_pages(harness_random(&seed) % PAGES, n,
				    1 + harness_random(&seed) % 70);
			fk.interrupt_after = (uint32_t)(harness_random(&seed) % 20);
			fk.interrupt_times = harness_random(&seed) % 4 ? 0 : 1;
			luck = seed;
			meanwhile = round % 2 ? NULL : at_times;
			broken = meanwhile && sync_once() == -EIO;
			meanwhile = NULL;
			if (harness_random(&seed) % 3)
				broken |= sync_all() == -EIO;
			else
				broken |= kvmem_dirty_ring_full(dirty, FK_VCPU_FD) == -EIO;
		}
		end();
	}
}
END

HARNESS_MAIN(T(one_overflow_is_reported_whole_and_mended), T(an_overflow_over_marked_entries),
	     T(a_ring_that_stays_full_is_an_error), T(an_empty_ring_is_no_error),
	     T(resets_are_interrupted_on_the_way_back),
	     T(a_kernel_that_resets_nothing_more_is_an_error),
	     T(an_overflow_is_noticed_by_a_count_and_by_forgetting),
	     T(an_overflow_is_noticed_by_a_detach), T(a_later_tracker_finds_the_kernels_place),
	     T(entries_are_pushed_over_in_the_middle_of_a_take), T(a_push_meets_a_mark),
	     T(the_ring_of_another_vcpu_is_nobodys_error), T(a_ring_that_is_a_whole_ring_behind),
	     T(an_adopted_ring_may_be_empty), T(a_full_ring_whose_entries_are_elsewhere),
	     T(a_reader_that_sleeps_is_told_of_an_overflow),
	     T(whatever_comes_nothing_is_lost_in_silence))
