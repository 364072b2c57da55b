// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Several readers of one log: each sees everything since its own last harvest, over a KVM in memory. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fake_rings.h"
#include "base/uapi/kvm.h"

#define PAGE	4096ull
#define READERS 3
#define A_FIRST 100u /* slot 0 shows region a from here on */
#define A_PAGES 924u
#define B_PAGES 512u
#define GPA_B	(1ull << 30)

static struct kvmem_dirty *dirty;
static struct kvmem_reader *readers[READERS]; /* the tracker's own; another one; one of region a */
static struct kvmem_batch *batches[READERS];

#define ck_fails(call, err, word) \
	do { \
		ck_assert_int_eq((call), -(err)); \
		ck_assert_msg(strstr(kvmem_error_detail(), word), "%s", kvmem_error_detail()); \
	} while (0)

#define ck_ok(call) \
	do { \
		int64_t ck_r_ = (call); \
		ck_assert_msg(ck_r_ >= 0, "%s: %ld: %s", #call, (long)ck_r_, \
			      kvmem_error_detail()); \
	} while (0)

static void open_with(uint32_t mode, uint32_t flags)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;

	fk_reset();
	o.mode = mode;
	o.ring_entries = mode == KVMEM_DIRTY_RING ? 256 : 0;
	o.flags = flags;
	ck_ok(kvmem_dirty_create(&fk.vm, &o, &dirty));
	ck_ok(kvmem_region_attach(&fk.a, A_FIRST * PAGE, A_PAGES * PAGE, 0, 0, 0, NULL));
	ck_ok(kvmem_region_attach(&fk.b, 0, B_PAGES * PAGE, GPA_B, 1, 0, NULL));
	ck_ok(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD));
	ck_ok(kvmem_dirty_start(dirty));
	memset(batches, 0, sizeof(batches));
}

static struct kvmem_reader *reader_of(struct kvmem_region *only, uint32_t flags)
{
	struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;
	struct kvmem_reader *r;

	o.flags = flags;
	o.regions = &only;
	o.region_count = only ? 1 : 0;
	ck_ok(kvmem_dirty_reader_create(dirty, &o, &r));
	return r;
}

static void open_all(uint32_t mode, uint32_t flags)
{
	open_with(mode, flags);
	readers[0] = kvmem_dirty_reader(dirty);
	readers[1] = reader_of(NULL, 0);
	readers[2] = reader_of(&fk.a, 0);
}

static void close_all(void)
{
	for (size_t i = 0; i < READERS; i++)
		kvmem_batch_free(batches[i]);
	ck_ok(kvmem_reader_free(readers[2]));
	ck_ok(kvmem_dirty_stop(dirty));
	ck_ok(kvmem_reader_free(readers[1]));
	ck_ok(kvmem_dirty_free(dirty));
	fk_done();
}

/* Harvest, commit, read: pages, and how many of them are region a's. */
static int64_t sync_of(unsigned int i, uint64_t *ret_a)
{
	int64_t n = kvmem_reader_harvest(readers[i], &batches[i]);

	ck_ok(n);
	ck_ok(kvmem_dirty_commit(dirty, batches[i]));
	ck_assert_uint_eq(kvmem_batch_pages(batches[i]), (uint64_t)n);
	if (ret_a)
		*ret_a = kvmem_batch_region_pages(batches[i], &fk.a);
	kvmem_batch_free(batches[i]);
	batches[i] = NULL;
	return n;
}

static void both_modes(void (*test)(uint32_t mode))
{
	test(KVMEM_DIRTY_RING);
	test(KVMEM_DIRTY_BITMAP);
}

static void rhythms(uint32_t mode)
{
	uint64_t a;

	open_all(mode, 0);
	fk_write(0, 0, 3);
	fk_write(0, 1, 7);
	ck_assert_int_eq(sync_of(0, &a), 2);
	ck_assert_uint_eq(a, 1);
	fk_write(0, 0, 3);
	fk_write(0, 0, 4);
	ck_assert_int_eq(sync_of(0, &a), 2);
	ck_assert_int_eq(sync_of(1, &a), 3);
	ck_assert_uint_eq(a, 2);
	ck_assert_int_eq(sync_of(2, &a), 2);
	fk_write(0, 1, 9);
	ck_assert_int_eq(sync_of(2, &a),
			 0); /* the filtered one takes it from the log for the others */
	ck_assert_int_eq(sync_of(1, &a), 1);
	ck_assert_int_eq(sync_of(0, &a), 1);
	for (unsigned int i = 0; i < READERS; i++)
		ck_assert_int_eq(sync_of(i, NULL), 0);
	close_all();
}

TEST(each_sees_all_since_its_own_last_harvest)
{
	both_modes(rhythms);
}
END

/* Taken by one reader and not committed; committed by another one. */
static void cross_commits(uint32_t mode)
{
	open_all(mode, 0);
	fk_write(0, 0, 3);
	ck_assert_int_eq(kvmem_reader_harvest(readers[0], &batches[0]), 1);
	ck_assert(fk.slots[0].open[3]);
	ck_assert_int_eq(kvmem_reader_harvest(readers[1], &batches[1]), 1);
	ck_ok(kvmem_dirty_commit(dirty, batches[1]));
	ck_assert(!fk.slots[0].open[3]);
	fk_write(0, 0, 3); /* reader 0 reads this one too, or hears of it again */
	fk_write(0, 0, 5);
	ck_ok(kvmem_dirty_commit(dirty, batches[0]));
	kvmem_batch_free(batches[0]);
	kvmem_batch_free(batches[1]);
	batches[0] = batches[1] = NULL;
	ck_assert_int_eq(sync_of(0, NULL), 2);
	ck_assert_int_eq(sync_of(1, NULL), 2);
	ck_assert_int_eq(sync_of(2, NULL), 2);
	close_all();
}

TEST(a_commit_protects_what_anybody_has_taken)
{
	both_modes(cross_commits);
}
END

static void given_back(uint32_t mode)
{
	struct kvmem_batch *old;

	open_all(mode, 0);
	fk_write(0, 0, 3);
	fk_write(0, 1, 4);
	ck_assert_int_eq(kvmem_reader_harvest(readers[1], &batches[1]), 2);
	ck_ok(kvmem_dirty_commit(dirty, batches[1]));
	old = batches[1];
	ck_ok(kvmem_batch_return(old));
	ck_fails(kvmem_batch_return(old), EINVAL, "freed");
	fk_write(0, 1, 5);
	ck_assert_int_eq(sync_of(0, NULL), 3);
	ck_assert_int_eq(kvmem_reader_harvest(readers[1], &batches[1]), 3);
	ck_ok(kvmem_batch_return(batches[1])); /* not committed */
	ck_assert_int_eq(kvmem_reader_harvest(readers[1], &batches[1]), 3);
	kvmem_batch_free(batches[1]); /* not committed */
	batches[1] = NULL;
	ck_assert_int_eq(kvmem_reader_pending(readers[1], NULL), 3);
	ck_assert_int_eq(sync_of(1, NULL), 3);
	ck_assert_int_eq(sync_of(1, NULL), 0);
	ck_fails(kvmem_batch_return(NULL), EINVAL, "NULL");
	close_all();
}

TEST(a_batch_that_could_not_be_sent_comes_again)
{
	both_modes(given_back);
}
END

static void counted(uint32_t mode)
{
	open_all(mode, 0);
	fk_write(0, 0, 3);
	fk_write(0, 0, 4);
	fk_write(0, 1, 4);
	ck_assert_int_eq(kvmem_reader_pending(readers[1], NULL), 3);
	ck_assert_int_eq(kvmem_reader_pending(readers[1], &fk.a), 2);
	ck_assert_int_eq(kvmem_reader_pending(readers[2], NULL), 2);
	ck_assert_int_eq(kvmem_reader_pending(readers[2], &fk.b), 0);
	ck_assert_int_eq(kvmem_reader_pending(readers[0], &fk.b), 1);
	fk_write(0, 0, 3); /* its entry may be taken and not reset: it counts already */
	fk_write(0, 0, 6);
	ck_assert_int_eq(kvmem_reader_pending(readers[0], NULL), 4);
	for (unsigned int i = 0; i < READERS; i++)
		ck_assert_int_eq(sync_of(i, NULL), i == 2 ? 3 : 4);
	ck_assert_int_eq(kvmem_reader_pending(readers[0], NULL), 0);
	ck_fails(kvmem_reader_pending(NULL, NULL), EINVAL, "NULL");
	close_all();
}

TEST(pending_counts_and_takes_nothing)
{
	both_modes(counted);
}
END

static void forgotten(uint32_t mode)
{
	open_all(mode, 0);
	for (unsigned int p = 0; p < 200; p++)
		fk_write(0, 0, p);
	ck_ok(kvmem_reader_forget(readers[1], &fk.a, (A_FIRST + 10) * PAGE, 150 * PAGE));
	fk_write(0, 0, 20); /* written again: logged again */
	ck_assert_int_eq(sync_of(1, NULL), 51);
	ck_assert_int_eq(sync_of(0, NULL), 200);
	ck_assert_int_eq(sync_of(2, NULL), 200);
	ck_ok(kvmem_reader_forget(readers[2], &fk.b, 0,
				  B_PAGES * PAGE)); /* it does not look there */
	ck_fails(kvmem_reader_forget(readers[1], &fk.a, 0, 1025 * PAGE), ERANGE, "region");
	ck_fails(kvmem_reader_forget(readers[1], &fk.a, 1, PAGE), EINVAL, "page size");
	ck_fails(kvmem_reader_forget(readers[1], NULL, 0, PAGE), EINVAL, "region is NULL");
	ck_fails(kvmem_reader_forget(NULL, &fk.a, 0, PAGE), EINVAL, "reader is NULL");
	close_all();
}

TEST(a_forgotten_page_that_is_written_again_is_reported)
{
	both_modes(forgotten);
}
END

/* ---- what others wrote ---- */

TEST(marks_come_to_every_reader)
{
	open_all(KVMEM_DIRTY_RING, 0);
	ck_ok(kvmem_dirty_mark(dirty, &fk.a, 5 * PAGE + 4090, 10)); /* two pages, in no slot */
	ck_ok(kvmem_dirty_mark(dirty, &fk.b, 0, 1));
	ck_assert_int_eq(sync_of(0, NULL), 3);
	ck_assert_int_eq(sync_of(2, NULL), 2);
	ck_assert_int_eq(sync_of(1, NULL), 3);
	ck_fails(kvmem_dirty_mark(dirty, &fk.b, B_PAGES * PAGE, 1), ERANGE, "region");
	ck_fails(kvmem_dirty_mark(dirty, &fk.b, 0, 0), EINVAL, "region");
	ck_fails(kvmem_dirty_mark(dirty, NULL, 0, 1), EINVAL, "region is NULL");
	ck_fails(kvmem_dirty_mark(NULL, &fk.b, 0, 1), EINVAL, "dirty is NULL");
	close_all();
}
END

TEST(a_mark_of_a_region_that_no_slot_shows)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;

	fk_reset();
	ck_ok(kvmem_dirty_create(&fk.vm, &o, &dirty));
	ck_fails(kvmem_dirty_mark(dirty, &fk.a, 0, 1), EINVAL, "not started");
	ck_ok(kvmem_dirty_start(dirty));
	readers[0] = kvmem_dirty_reader(dirty);
	ck_ok(kvmem_dirty_mark(dirty, &fk.a, PAGE, 1));
	ck_ok(kvmem_dirty_mark(dirty, &fk.a, 2 * PAGE, 1));
	ck_assert_int_eq(sync_of(0, NULL), 2);
	ck_ok(kvmem_dirty_stop(dirty));
	ck_fails(kvmem_dirty_mark(dirty, &fk.a, 0, 1), EINVAL, "not started");
	ck_ok(kvmem_dirty_free(dirty));
	fk_done();
}
END

TEST(bitmaps_of_devices_by_guest_address)
{
	uint64_t log[8] = { 0 };

	open_all(KVMEM_DIRTY_RING, 0);
	/* As vhost writes it: a bit a page of 4 KiB from address 0. */
	log[0] = 1 << 3 | 1ull << 63;
	log[1] = 1;
	ck_assert_int_eq(kvmem_dirty_merge_gpa(dirty, 0, 0, 512 * PAGE, 12, log, KVMEM_MERGE_CLEAR),
			 0);
	ck_assert_uint_eq(log[0] | log[1], 0);
	ck_assert_int_eq(sync_of(2, NULL), 3);
	ck_assert_int_eq(sync_of(1, NULL), 3);
	/* Pages of 64 KiB, the last one cut off by the end of the slot; not cleared. */
	log[0] = 1ull << 57;
	ck_assert_int_eq(kvmem_dirty_merge_gpa(dirty, 0, 0, A_PAGES * PAGE, 16, log, 0), 0);
	ck_assert_uint_eq(log[0], 1ull << 57);
	ck_assert_int_eq(sync_of(2, NULL), A_PAGES - 57 * 16);
	/* 512 bytes: eight bits a page. */
	log[0] = 0x8001;
	ck_assert_int_eq(kvmem_dirty_merge_gpa(dirty, 0, GPA_B, 4 * PAGE, 9, log, 0), 0);
	ck_assert_int_eq(kvmem_reader_pending(readers[1], &fk.b), 2);
	/* What lies in no slot is left out and said, and stays; a bit beyond the range is not looked at. */
	log[0] = ~0ull;
	log[1] = ~0ull;
	ck_assert_int_eq(kvmem_dirty_merge_gpa(dirty, 0, (A_PAGES - 2) * PAGE, 70 * PAGE, 12, log,
					       KVMEM_MERGE_CLEAR),
			 68);
	ck_assert_uint_eq(log[0], ~3ull);
	ck_assert_uint_eq(log[1], ~0ull);
	/* A hole of a petabyte is not walked page by page. */
	log[0] = 1;
	ck_assert_int_gt(kvmem_dirty_merge_gpa(dirty, 0, 1ull << 40, 1ull << 40, 40, log, 0), 0);
	ck_assert_int_eq(kvmem_dirty_merge_gpa(dirty, 1, 0, 64 * PAGE, 12, log, 0), 1);
	log[0] = 0x55; /* four sectors of one page */
	ck_assert_int_eq(kvmem_dirty_merge_gpa(dirty, 0, 1ull << 40, PAGE, 9, log, 0), 1);
	log[0] = 3; /* a run of two sectors over the end of a page */
	ck_assert_int_eq(
		kvmem_dirty_merge_gpa(dirty, 0, (1ull << 40) + PAGE - 512, 1024, 9, log, 0), 2);
	log[0] = 1;
	ck_fails(kvmem_dirty_merge_gpa(dirty, 2, 0, PAGE, 12, log, 0), EINVAL, "space");
	ck_fails(kvmem_dirty_merge_gpa(dirty, 0, 0, PAGE, 41, log, 0), EINVAL, "page_shift");
	ck_fails(kvmem_dirty_merge_gpa(dirty, 0, 0, PAGE, 12, log, 2), EINVAL, "flags");
	ck_fails(kvmem_dirty_merge_gpa(dirty, 0, 0, 0, 12, log, 0), EINVAL, "addresses");
	ck_fails(kvmem_dirty_merge_gpa(dirty, 0, 1ull << 52, PAGE, 12, log, 0), ERANGE,
		 "addresses");
	ck_fails(kvmem_dirty_merge_gpa(dirty, 0, 0, PAGE, 12, (uint64_t *)((char *)log + 1), 0),
		 EINVAL, "aligned");
	ck_fails(kvmem_dirty_merge_gpa(dirty, 0, 0, PAGE, 12, NULL, 0), EINVAL, "NULL");
	ck_ok(kvmem_dirty_stop(dirty));
	ck_fails(kvmem_dirty_merge_gpa(dirty, 0, 0, PAGE, 12, log, KVMEM_MERGE_CLEAR), EINVAL,
		 "not started");
	ck_assert_uint_eq(log[0], 1);
	ck_ok(kvmem_dirty_start(dirty));
	close_all();
}
END

/* ---- thresholds ---- */

static bool is_told(int fd)
{
	uint64_t n;

	return read(fd, &n, sizeof(n)) == sizeof(n);
}

TEST(a_reader_is_told_once_when_it_has_enough)
{
	struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;
	struct kvmem_reader *r;
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	open_with(KVMEM_DIRTY_RING, 0);
	readers[0] = kvmem_dirty_reader(dirty);
	o.threshold_pages = 3;
	o.event_fd = 12345;
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &r), EBADF, "event_fd 12345");
	o.event_fd = fd;
	ck_ok(kvmem_dirty_reader_create(dirty, &o, &r));
	readers[1] = r;
	fk_write(0, 0, 1);
	fk_write(0, 0, 2);
	ck_assert_int_eq(sync_of(0, NULL), 2);
	ck_assert(!is_told(fd));
	fk_write(0, 0, 1); /* the same page is one page */
	ck_assert_int_eq(sync_of(0, NULL), 1);
	ck_assert(!is_told(fd));
	fk_write(0, 0, 3);
	ck_ok(kvmem_dirty_ring_full(dirty, FK_VCPU_FD)); /* whoever empties a ring looks */
	ck_assert(is_told(fd));
	fk_write(0, 0, 4);
	ck_assert_int_eq(sync_of(0, NULL), 2);
	ck_assert(!is_told(fd)); /* once */
	ck_assert_int_eq(sync_of(1, NULL), 4);
	for (unsigned int p = 10; p < 13; p++)
		ck_ok(kvmem_dirty_mark(dirty, &fk.a, p * PAGE, 1));
	ck_assert(!is_told(fd));
	ck_assert_int_eq(kvmem_reader_pending(r, NULL), 3);
	ck_assert(is_told(fd));
	/* What was forgotten, or came back, or was dropped by a stop, is told again when it is enough. */
	ck_ok(kvmem_reader_forget(r, &fk.a, 0, 1024 * PAGE));
	for (unsigned int p = 10; p < 13; p++)
		ck_ok(kvmem_dirty_mark(dirty, &fk.a, p * PAGE, 1));
	ck_assert_int_eq(kvmem_reader_pending(r, NULL), 3);
	ck_assert(is_told(fd));
	ck_assert_int_eq(kvmem_reader_harvest(r, &batches[1]), 3);
	ck_ok(kvmem_dirty_commit(dirty, batches[1]));
	ck_assert(!is_told(fd));
	ck_ok(kvmem_batch_return(batches[1]));
	ck_assert(is_told(fd));
	ck_ok(kvmem_dirty_stop(dirty));
	ck_ok(kvmem_dirty_start(dirty));
	ck_ok(kvmem_dirty_mark(dirty, &fk.a, 10 * PAGE, 3 * PAGE));
	ck_assert_int_eq(kvmem_reader_pending(r, NULL), 3);
	ck_assert(is_told(fd));
	ck_ok(kvmem_dirty_stop(dirty));
	ck_ok(kvmem_reader_free(r));
	ck_ok(kvmem_dirty_free(dirty));
	fk_done();
	close(fd);
}
END

/* It is written to under locks, and in any thread: nothing that may block or raise a signal. */
TEST(what_a_reader_can_be_told_by)
{
	struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;
	struct kvmem_reader *r;
	int fd, other, ends[2];

	open_with(KVMEM_DIRTY_RING, 0);
	o.threshold_pages = 1;
	ck_assert_int_eq(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
	o.event_fd = ends[1];
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &r), EINVAL, "not an eventfd");
	o.event_fd = open("/dev/null", O_PATH | O_CLOEXEC);
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &r), EINVAL, "not an eventfd");
	close(o.event_fd);
	o.event_fd = open("/dev/null", O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &r), EINVAL, "not an eventfd");
	close(o.event_fd);
	o.event_fd = eventfd(0, EFD_CLOEXEC);
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &r), EINVAL, "EFD_NONBLOCK");
	close(o.event_fd);
	o.reserved = 1;
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &r), EINVAL, "reserved");
	o.reserved = 0;
	/* A number that is another file's later. */
	fd = o.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	ck_ok(kvmem_dirty_reader_create(dirty, &o, &r));
	other = dup(fd);
	ck_assert_int_eq(dup2(ends[1], fd), fd);
	ck_ok(kvmem_dirty_mark(dirty, &fk.a, 200 * PAGE, 1));
	ck_assert_int_eq(kvmem_reader_pending(kvmem_dirty_reader(dirty), NULL), 1);
	ck_assert(is_told(other));
	ck_assert(!is_told(ends[0]));
	ck_ok(kvmem_dirty_stop(dirty));
	ck_ok(kvmem_reader_free(r));
	ck_ok(kvmem_dirty_free(dirty));
	fk_done();
	close(fd);
	close(other);
	close(ends[0]);
	close(ends[1]);
}
END

/* ---- runs ---- */

/* One by one and many at once, in any mixture: each run once, and never more than there is room for. */
TEST(runs_by_both_calls_in_any_mixture)
{
	uint64_t bits[1024 / 64];
	struct kvmem_run runs[80];
	unsigned int seed = 1;

	memset(bits, 0x55, sizeof(bits));
	for (unsigned int round = 0; round < 200; round++) {
		uint64_t found = 0, next = 0;
		struct kvmem_batch *b;

		open_with(KVMEM_DIRTY_RING, 0);
		ck_ok(kvmem_dirty_merge(dirty, &fk.a, 0, 1024 * PAGE, 12, bits));
		ck_ok(kvmem_dirty_merge(dirty, &fk.b, 0, B_PAGES * PAGE, 12, bits));
		ck_assert_int_eq(kvmem_dirty_harvest(dirty, &b), 512 + B_PAGES / 2);
		ck_ok(kvmem_dirty_commit(dirty, b));
		for (int64_t n = 1; n;) {
			size_t count = 1 + (unsigned int)rand_r(&seed) % 70;

			memset(runs, 0xa5, sizeof(runs));
			n = rand_r(&seed) % 3 ? kvmem_batch_next(b, runs)
					      : kvmem_batch_runs(b, runs, count);
			ck_ok(n);
			ck_assert_int_le(n, (int64_t)count);
			ck_assert_uint_eq(runs[n].bytes, 0xa5a5a5a5a5a5a5a5);
			for (int64_t i = 0; i < n; i++, found++) {
				next = found == 512 ? 0 : next;
				ck_assert_ptr_eq(runs[i].region, found < 512 ? &fk.a : &fk.b);
				ck_assert_uint_eq(runs[i].offset, next);
				ck_assert_uint_eq(runs[i].bytes, PAGE);
				next += 2 * PAGE;
			}
		}
		ck_assert_uint_eq(found, 512 + B_PAGES / 2);
		kvmem_batch_free(b);
		ck_ok(kvmem_dirty_stop(dirty));
		ck_ok(kvmem_dirty_free(dirty));
		fk_done();
	}
}
END

/* Each reader is told, or its copy would be stale. */
TEST(a_change_that_could_not_be_written_down_is_told_to_all)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	struct kvmem_reader *all, *of_a;
	struct kvmem_batch *b;

	fk_reset();
	o.mode = KVMEM_DIRTY_RING;
	o.ring_entries = 256;
	ck_ok(kvmem_dirty_create(&fk.vm, &o, &dirty));
	all = reader_of(NULL, 0);
	of_a = reader_of(&fk.a, 0);
	ck_ok(kvmem_dirty_start(dirty));
	fake.fail_errno = ENOMEM;
	fake.fail_at = fake.calls + 1;
	km_vm_changed(&fk.vm, &fk.b, PAGE, PAGE); /* of which there is no record yet */
	fake.fail_at = 0;
	ck_fails((int)kvmem_reader_pending(all, NULL), ENOMEM, "take all of it");
	ck_fails((int)kvmem_dirty_harvest(dirty, &b), ENOMEM, "take all of it");
	ck_fails((int)kvmem_reader_harvest(all, &b), ENOMEM, "take all of it");
	ck_assert_int_eq(kvmem_reader_harvest(of_a, &b), 0); /* does not look at that region */
	kvmem_batch_free(b);
	ck_assert_int_eq(kvmem_reader_harvest(all, &b), 0); /* once */
	kvmem_batch_free(b);
	ck_ok(kvmem_dirty_stop(dirty));
	ck_ok(kvmem_reader_free(all));
	ck_ok(kvmem_reader_free(of_a));
	ck_ok(kvmem_dirty_free(dirty));
	fk_done();
}
END

/* ---- readers come and go ---- */

TEST(first_all_and_readers_before_the_start)
{
	struct kvmem_reader *late, *of_b;

	open_with(KVMEM_DIRTY_RING, 0);
	readers[0] = kvmem_dirty_reader(dirty);
	fk_write(0, 0, 3);
	late = reader_of(NULL, KVMEM_READER_FIRST_ALL);
	of_b = reader_of(&fk.b, KVMEM_READER_FIRST_ALL);
	readers[1] = late;
	readers[2] = of_b;
	ck_assert_int_eq(sync_of(1, NULL), A_PAGES + B_PAGES);
	ck_assert_int_eq(sync_of(2, NULL), B_PAGES);
	ck_assert_int_eq(sync_of(0, NULL), 1);
	ck_ok(kvmem_region_detach(&fk.b, 1));
	ck_ok(kvmem_region_attach(&fk.b, 0, 64 * PAGE, GPA_B, 1, 0, NULL));
	ck_assert_int_eq(sync_of(2, NULL), 64);
	ck_assert_int_eq(sync_of(0, NULL), 0);
	/* They stay through a stop; what they had coming does not. */
	fk_write(0, 0, 9);
	ck_ok(kvmem_dirty_stop(dirty));
	ck_fails((int)kvmem_reader_harvest(late, &batches[1]), EINVAL, "not started");
	ck_fails((int)kvmem_reader_pending(late, NULL), EINVAL, "not started");
	ck_fails(kvmem_reader_forget(late, &fk.a, 0, PAGE), EINVAL, "not started");
	ck_fails(kvmem_dirty_free(dirty), EBUSY, "readers");
	ck_ok(kvmem_dirty_start(dirty));
	ck_assert_int_eq(sync_of(1, NULL), A_PAGES + 64);
	ck_assert_int_eq(sync_of(0, NULL), 0);
	ck_assert_int_eq(sync_of(1, NULL), 0);
	close_all();
}
END

TEST(what_is_wrong_with_a_reader)
{
	struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;
	struct kvmem_region *none = NULL, stranger = { 0 }, *other = &stranger;
	struct kvmem_reader *more[16];
	unsigned int n = 0;
	int r;

	open_all(KVMEM_DIRTY_RING, 0);
	o.region_count = 1;
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &more[0]), EINVAL, "regions is NULL");
	o.regions = &none;
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &more[0]), EINVAL, "regions[0] is NULL");
	o.regions = &other;
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &more[0]), EINVAL, "tracker's VM");
	o.flags = 2;
	ck_fails(kvmem_dirty_reader_create(dirty, &o, &more[0]), EINVAL, "flags");
	ck_fails(kvmem_dirty_reader_create(dirty, NULL, NULL), EINVAL, "ret_reader");
	ck_fails(kvmem_dirty_reader_create(NULL, NULL, &more[0]), EINVAL, "dirty");
	ck_fails(kvmem_reader_free(readers[0]), EINVAL, "own");
	ck_assert_ptr_null(kvmem_dirty_reader(NULL));
	ck_assert_int_eq(kvmem_reader_free(NULL), 0);
	fk_write(0, 0, 1);
	ck_assert_int_eq(kvmem_reader_harvest(readers[1], &batches[1]), 1);
	ck_fails(kvmem_reader_free(readers[1]), EBUSY, "batch");
	ck_fails(kvmem_dirty_stop(dirty), EBUSY, "another reader");
	while (!(r = kvmem_dirty_reader_create(dirty, NULL, &more[n])))
		n++;
	ck_assert_int_eq(r, -ENOSPC);
	ck_assert_uint_eq(n, 13);
	while (n)
		ck_ok(kvmem_reader_free(more[--n]));
	close_all();
}
END

/* A reader that took last is freed: its maps are not written to any more. And a region goes. */
TEST(a_reader_or_a_region_goes_while_batches_are_out)
{
	struct kvmem_run run;

	open_all(KVMEM_DIRTY_RING, 0);
	fk_write(0, 0, 1);
	fk_write(0, 1, 2);
	ck_assert_int_eq(sync_of(1, NULL), 2);
	ck_ok(kvmem_reader_free(readers[1]));
	fk_write(0, 0, 5);
	ck_assert_int_eq(kvmem_reader_harvest(readers[0], &batches[0]), 3);
	readers[1] = reader_of(NULL, 0);
	ck_assert_int_eq(kvmem_reader_harvest(readers[2], &batches[2]), 2);
	ck_ok(kvmem_dirty_commit(dirty, batches[0]));
	ck_ok(kvmem_dirty_commit(dirty, batches[2]));
	pthread_rwlock_wrlock(&fk.vm.lock); /* as kvmem_region_free() does */
	while (fk.vm.slot_count)
		ck_ok(km_slot_remove(&fk.vm, fk.vm.slots[0]));
	km_dirty_hooks.region_freed(dirty, &fk.a);
	pthread_rwlock_unlock(&fk.vm.lock);
	ck_assert_uint_eq(kvmem_batch_pages(batches[0]), 1);
	ck_assert_uint_eq(kvmem_batch_pages(batches[2]), 0);
	ck_assert_int_eq(kvmem_batch_next(batches[2], &run), 0);
	ck_assert_int_eq(kvmem_batch_next(batches[0], &run), 1);
	ck_assert_ptr_eq(run.region, &fk.b);
	kvmem_batch_free(batches[2]);
	/* Another region at its address is not one that the filter names. */
	ck_ok(kvmem_region_attach(&fk.a, 0, 10 * PAGE, 0, 0, 0, NULL));
	fk_write(0, 0, 1);
	ck_assert_int_eq(sync_of(2, NULL), 0);
	ck_assert_int_eq(sync_of(1, NULL), 1);
	close_all();
}
END

TEST(an_error_of_the_kernel_loses_no_page_of_any_reader)
{
	open_all(KVMEM_DIRTY_BITMAP, 0);
	fk_write(0, 0, 1);
	fk_write(0, 1, 2);
	fake.fail_at = 0;
	fk.get_errno = EIO;
	ck_fails((int)kvmem_reader_harvest(readers[0], &batches[0]), EIO, "KVM_GET_DIRTY_LOG");
	ck_fails((int)kvmem_reader_pending(readers[0], NULL), EIO, "KVM_GET_DIRTY_LOG");
	ck_fails(kvmem_reader_forget(readers[1], &fk.b, 0, PAGE), EIO, "KVM_GET_DIRTY_LOG");
	fk.get_errno = 0;
	fk.clear_errno = EIO;
	fk.fail_clear_at = fk.clears + 1;
	ck_assert_int_eq(kvmem_reader_harvest(readers[0], &batches[0]), 2);
	ck_fails((int)kvmem_dirty_commit(dirty, batches[0]), EIO, "KVM_CLEAR_DIRTY_LOG");
	fk.fail_clear_at = fk.clears + 1;
	ck_fails((int)kvmem_reader_harvest(readers[1], &batches[1]), EIO, "KVM_CLEAR_DIRTY_LOG");
	fk_write(0, 0, 9);
	fk.fail_clear_at = fk.clears + 2; /* slot 0 was read, and slot 1 not */
	ck_fails((int)kvmem_reader_harvest(readers[1], &batches[1]), EIO, "KVM_CLEAR_DIRTY_LOG");
	ck_ok(kvmem_dirty_commit(dirty, batches[0]));
	ck_assert_int_eq(sync_of(1, NULL), 3);
	ck_assert_int_eq(sync_of(2, NULL), 2);
	kvmem_batch_free(batches[0]);
	ck_assert_int_eq(sync_of(0, NULL), 1);
	close_all();
}
END

/* ---- a model ---- */

/*
 * Versions of pages: a reader copies what its batch says. In the end every copy is the memory; and a page is
 * not reported that was not written since it was copied, unless it was written while a batch was out.
 */
static struct {
	uint32_t now[2][FK_SLOT_PAGES], copy[READERS][2][FK_SLOT_PAGES];
	unsigned char excused[READERS][2][FK_SLOT_PAGES]; /* so many reports */
	bool whole; /* bitmap: a detach reports all of a slot */
} model;

static void model_write(unsigned int region, uint64_t page)
{
	model.now[region][page]++;
	for (unsigned int i = 0; i < READERS; i++)
		for (unsigned int k = 0; k < READERS; k++)
			if (batches[k])
				model.excused[i][region][page] = 2;
}

static void guest_write(uint64_t n)
{
	if (n < A_PAGES)
		fk_write(0, 0, n);
	else
		fk_write(0, 1, n - A_PAGES);
	model_write(n >= A_PAGES, n < A_PAGES ? n + A_FIRST : n - A_PAGES);
}

static void read_batch(unsigned int i)
{
	struct kvmem_run run;

	ck_ok(kvmem_dirty_commit(dirty, batches[i]));
	while (kvmem_batch_next(batches[i], &run) == 1) {
		unsigned int region = run.region == &fk.b;

		ck_assert(i != 2 || !region);
		for (uint64_t p = run.offset / PAGE; p < (run.offset + run.bytes) / PAGE; p++) {
			ck_assert_msg(model.copy[i][region][p] != model.now[region][p] ||
					      model.excused[i][region][p] || model.whole,
				      "reader %u: page %lu of %u in vain", i, p, region);
			model.copy[i][region][p] = model.now[region][p];
			if (model.excused[i][region][p])
				model.excused[i][region][p]--;
		}
	}
	kvmem_batch_free(batches[i]);
	batches[i] = NULL;
}

static void forget_some(unsigned int i, uint64_t n)
{
	uint64_t first = n % FK_SLOT_PAGES / 2, count = n % 7 + 1;

	ck_ok(kvmem_reader_forget(readers[i], &fk.a, first * PAGE, count * PAGE));
	for (uint64_t p = first; p < first + count; p++)
		model.copy[i][0][p] = model.now[0][p];
}

static void merge_some(uint64_t n)
{
	uint64_t bits[2] = { 1ull << (n % 64), 1ull << (n / 64 % 64) };

	ck_assert_int_eq(kvmem_dirty_merge_gpa(dirty, 0, GPA_B + 64 * PAGE, 128 * PAGE, 12, bits,
					       KVMEM_MERGE_CLEAR),
			 0);
	model_write(1, 64 + n % 64);
	model_write(1, 128 + n / 64 % 64);
}

static void step(unsigned int *seed)
{
	uint64_t n = (unsigned int)rand_r(seed);
	unsigned int i = (unsigned int)(n >> 8) % READERS;

	switch (n % 32) {
	case 0:
	case 1:
	case 2:
		if (!batches[i])
			ck_ok(kvmem_reader_harvest(readers[i], &batches[i]));
		else
			read_batch(i);
		break;
	case 3:
	case 4:
		if (!batches[i])
			ck_ok(kvmem_reader_harvest(readers[i], &batches[i]));
		read_batch(i);
		break;
	case 5:
		if (batches[i] && n & 64)
			ck_ok(kvmem_dirty_commit(dirty, batches[i]));
		if (batches[i])
			ck_ok(kvmem_batch_return(batches[i]));
		batches[i] = NULL;
		break;
	case 6:
		ck_ok(kvmem_reader_pending(readers[i], n & 64 ? &fk.a : NULL));
		break;
	case 7:
		if (!batches[i])
			forget_some(i, n >> 12);
		break;
	case 8:
		ck_ok(kvmem_dirty_mark(dirty, &fk.a, (n >> 10) % FK_SLOT_PAGES * PAGE, 8));
		model_write(0, (n >> 10) % FK_SLOT_PAGES);
		break;
	case 9:
		merge_some(n >> 10);
		break;
	case 10:
		if (dirty->mode == KVMEM_DIRTY_RING)
			ck_ok(kvmem_dirty_ring_full(dirty, FK_VCPU_FD));
		break;
	default:
		for (unsigned int k = 0; k < 4; k++)
			guest_write((unsigned int)rand_r(seed) % (A_PAGES + B_PAGES));
	}
	/* The ring has 256 entries. */
	if (dirty->mode == KVMEM_DIRTY_RING && fk.vcpus[0].pushed - fk.vcpus[0].reset > 240)
		ck_ok(kvmem_dirty_ring_full(dirty, FK_VCPU_FD));
}

static void random_readers(uint32_t mode)
{
	for (unsigned int seed = 1; seed <= 40; seed++) {
		unsigned int s = seed;

		memset(&model, 0, sizeof(model));
		open_all(mode, 0);
		for (int n = 0; n < 3000; n++)
			step(&s);
		for (unsigned int i = 0; i < READERS; i++) {
			if (!batches[i])
				ck_ok(kvmem_reader_harvest(readers[i], &batches[i]));
			read_batch(i);
			ck_ok(kvmem_reader_harvest(readers[i], &batches[i]));
			read_batch(i);
			for (unsigned int p = 0; p < FK_SLOT_PAGES; p++)
				ck_assert_msg(
					model.copy[i][0][p] == model.now[0][p] &&
						(i == 2 || model.copy[i][1][p] == model.now[1][p]),
					"seed %u: reader %u lost page %u", seed, i, p);
		}
		close_all();
	}
}

TEST(three_readers_against_a_model)
{
	both_modes(random_readers);
}
END

/* ---- threads ---- */

static _Atomic bool over;

static void *marks(void *arg)
{
	uint64_t n = 0;

	(void)arg;
	while (!atomic_load(&over)) {
		int r = kvmem_dirty_mark(dirty, &fk.a, n++ % FK_SLOT_PAGES * PAGE, 1);

		ck_assert(!r || r == -EINVAL);
	}
	return NULL;
}

static void *harvests(void *arg)
{
	unsigned int i = (unsigned int)(uintptr_t)arg;
	struct kvmem_batch *b;

	while (!atomic_load(&over)) {
		int64_t r = kvmem_reader_harvest(readers[i], &b);

		ck_assert(r >= 0 || r == -EINVAL);
		if (r < 0)
			continue;
		ck_ok(kvmem_dirty_commit(dirty, b));
		kvmem_batch_free(b);
		kvmem_reader_pending(readers[i], NULL);
		kvmem_reader_forget(readers[i], &fk.a, 0, 64 * PAGE);
	}
	return NULL;
}

/* Marks and harvests by several threads, while the tracker stops and starts and readers come and go. */
TEST(marks_while_the_tracker_stops_and_starts)
{
	pthread_t threads[3];

	open_all(KVMEM_DIRTY_RING, 0);
	atomic_store(&over, false);
	ck_assert_int_eq(pthread_create(&threads[0], NULL, marks, NULL), 0);
	ck_assert_int_eq(pthread_create(&threads[1], NULL, harvests, (void *)1), 0);
	ck_assert_int_eq(pthread_create(&threads[2], NULL, harvests, (void *)2), 0);
	for (int n = 0; n < 300; n++) {
		struct kvmem_reader *r = reader_of(n % 2 ? &fk.b : NULL, 0);
		int e;

		sync_of(0, NULL);
		do
			e = kvmem_dirty_stop(dirty);
		while (e == -EBUSY);
		ck_ok(e);
		ck_ok(kvmem_dirty_start(dirty));
		ck_ok(kvmem_reader_free(r));
	}
	atomic_store(&over, true);
	for (size_t i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	close_all();
}
END

/* ---- every call fails once ---- */

TEST(whichever_call_fails_no_reader_leaks)
{
	for (unsigned long n = 1, failed = 0; n < 400; n++) {
		struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;
		struct kvmem_region *only = &fk.a;
		struct kvmem_reader *r = NULL;
		struct kvmem_batch *b = NULL;
		int64_t e;

		open_with(n % 2 ? KVMEM_DIRTY_RING : KVMEM_DIRTY_BITMAP, 0);
		o.regions = &only;
		o.region_count = n % 4 < 2 ? 1 : 0;
		fk_write(0, 0, 1);
		fake.fail_at = fake.calls + n / 4 + 1;
		fake.fail_errno = ENOMEM;
		fake.failed = NULL;
		e = kvmem_dirty_reader_create(dirty, &o, &r);
		if (!e)
			e = kvmem_reader_harvest(r, &b);
		if (e > 0)
			e = kvmem_dirty_commit(dirty, b);
		failed += e < 0;
		fake.fail_at = 0;
		kvmem_batch_free(b);
		if (r) {
			int64_t pages = kvmem_reader_harvest(r, &b);

			ck_ok(pages);
			ck_assert(e >= 0 || pages == 1);
			kvmem_batch_free(b);
		}
		ck_ok(kvmem_reader_free(r));
		ck_ok(kvmem_dirty_stop(dirty));
		ck_ok(kvmem_dirty_free(dirty));
		fk_done();
		if (!fake.failed) {
			ck_assert_uint_gt(failed, 10);
			break;
		}
	}
}
END

HARNESS_MAIN(T(each_sees_all_since_its_own_last_harvest),
	     T(a_commit_protects_what_anybody_has_taken),
	     T(a_batch_that_could_not_be_sent_comes_again), T(pending_counts_and_takes_nothing),
	     T(a_forgotten_page_that_is_written_again_is_reported), T(marks_come_to_every_reader),
	     T(a_mark_of_a_region_that_no_slot_shows), T(bitmaps_of_devices_by_guest_address),
	     T(a_reader_is_told_once_when_it_has_enough), T(what_a_reader_can_be_told_by),
	     T(runs_by_both_calls_in_any_mixture),
	     T(a_change_that_could_not_be_written_down_is_told_to_all),
	     T(first_all_and_readers_before_the_start), T(what_is_wrong_with_a_reader),
	     T(a_reader_or_a_region_goes_while_batches_are_out),
	     T(an_error_of_the_kernel_loses_no_page_of_any_reader),
	     T(three_readers_against_a_model), T(marks_while_the_tracker_stops_and_starts),
	     T(whichever_call_fails_no_reader_leaks))
