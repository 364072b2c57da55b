// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Three readers of what running guests write: a copy each, kept up at its own rhythm by a thread of its own. When
 * the guests have stopped and the last batch is in, a page that differs was lost.
 */
#include "dirty_rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct copier {
	struct rig *rig;
	struct kvmem_reader *reader;
	unsigned char *copy;
	unsigned int pause_us;
	unsigned int returned; /* batches given back */
	_Atomic bool end;
	pthread_t thread;
};

static void sync_copy(struct copier *c, bool fails)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;

	ck_ok(kvmem_reader_harvest(c->reader, &batch));
	ck_ok(kvmem_dirty_commit(c->rig->dirty, batch));
	while (kvmem_batch_next(batch, &run) == 1) {
		memcpy(c->copy + run.offset, c->rig->base + run.offset, run.bytes);
		if (fails) { /* sending failed after the first run */
			ck_ok(kvmem_batch_return(batch));
			c->returned++;
			return;
		}
	}
	kvmem_batch_free(batch);
}

static void *copies(void *arg)
{
	struct copier *c = arg;

	for (unsigned int n = 0; !atomic_load(&c->end); n++) {
		sync_copy(c, n % 5 == 4);
		ck_ok(kvmem_reader_pending(c->reader, c->rig->ram));
		if (c->pause_us)
			usleep(c->pause_us);
	}
	return NULL;
}

static void copier_start(struct copier *c, struct rig *rig, unsigned int pause_us)
{
	struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;

	*c = (struct copier){ .rig = rig, .pause_us = pause_us };
	o.flags = KVMEM_READER_FIRST_ALL;
	o.regions = &rig->ram;
	o.region_count = pause_us % 2; /* with a filter, or without one */
	ck_ok(kvmem_dirty_reader_create(rig->dirty, &o, &c->reader));
	c->copy = calloc(1, rig->bytes);
	ck_assert_ptr_nonnull(c->copy);
	ck_assert_int_eq(pthread_create(&c->thread, NULL, copies, c), 0);
}

static void copier_end(struct copier *c)
{
	uint64_t lost = 0;

	atomic_store(&c->end, true);
	pthread_join(c->thread, NULL);
	sync_copy(c, false);
	for (uint64_t at = 0; at < c->rig->bytes; at += RIG_PAGE)
		lost += !!memcmp(c->copy + at, c->rig->base + at, RIG_PAGE);
	ck_assert_msg(!lost, "%lu pages lost by the reader of every %u us", lost, c->pause_us);
	ck_ok(kvmem_reader_free(c->reader));
	free(c->copy);
}

static void three_readers(uint32_t mode, uint32_t flags, uint32_t backing)
{
	struct rig_opts o = { .mode = mode,
			      .flags = flags,
			      .ring_entries = mode == KVMEM_DIRTY_RING ? 1024 : 0,
			      .vcpus = 2,
			      .reap_ns = flags ? 1000000 : 0,
			      .backing = backing };
	struct copier fast, slow;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	rig_write(&rig, 0, harness_emulated() ? 15 : 150, 0, true);
	rig_write(&rig, 1, harness_emulated() ? 15 : 150, 0, false);
	copier_start(&fast, &rig, 301);
	copier_start(&slow, &rig, 20000);
	rig_follow(&rig); /* the tracker's own reader, as fast as it can */
	ck_assert_uint_eq(rig_lost(&rig), 0);
	copier_end(&slow);
	copier_end(&fast);
	rig_close(&rig);
}

TEST(three_readers_of_rings)
{
	three_readers(KVMEM_DIRTY_RING, 0, 0);
}
END

TEST(three_readers_of_rings_and_a_reaper)
{
	three_readers(KVMEM_DIRTY_RING, KVMEM_DIRTY_REAPER, KVMEM_BACKING_ANONYMOUS);
}
END

TEST(three_readers_of_a_bitmap)
{
	three_readers(KVMEM_DIRTY_BITMAP, 0, 0);
}
END

/* Nobody harvests: the reaper and full rings tell the reader that it has enough. */
TEST(a_threshold_wakes_a_reader_that_sleeps)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING,
			      .flags = KVMEM_DIRTY_REAPER,
			      .ring_entries = 1024,
			      .reap_ns = 1000000 };
	struct kvmem_reader_opts ro = KVMEM_READER_OPTS_INIT;
	struct kvmem_reader *reader;
	struct rig rig;
	uint64_t n;

	if (!rig_open(&rig, &o))
		return;
	ro.threshold_pages = 2000;
	ro.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ck_assert_int_ge(ro.event_fd, 0);
	ck_ok(kvmem_dirty_reader_create(rig.dirty, &ro, &reader));
	rig_write(&rig, 0, 1, 0, false);
	ck_assert_int_eq(poll(&(struct pollfd){ .fd = ro.event_fd, .events = POLLIN }, 1, 20000),
			 1);
	ck_assert_int_eq(read(ro.event_fd, &n, sizeof(n)), sizeof(n));
	ck_assert_int_ge(kvmem_reader_pending(reader, NULL), 2000);
	rig_wait(&rig);
	ck_assert_int_eq(kvmem_reader_pending(reader, rig.ram), (int64_t)(rig.bytes / RIG_PAGE));
	ck_ok(kvmem_reader_free(reader));
	close(ro.event_fd);
	rig_follow(&rig);
	ck_assert_uint_eq(rig_lost(&rig), 0);
	rig_close(&rig);
}
END

/* What is forgotten and written again is reported, under a guest that never stops writing. */
static void forget_under_a_guest(uint32_t mode)
{
	struct rig_opts o = { .mode = mode,
			      .ring_entries = mode == KVMEM_DIRTY_RING ? 1024 : 0,
			      .bytes = 256 * RIG_PAGE };
	struct kvmem_reader *own;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	own = kvmem_dirty_reader(rig.dirty);
	rig_write(&rig, 0, harness_emulated() ? 400 : 4000, 0, false);
	while (rig_running(&rig)) {
		/* Every page is written again in each round: none may stay forgotten. */
		ck_ok(kvmem_reader_forget(own, rig.ram, 0, 128 * RIG_PAGE));
		rig_sync(&rig);
	}
	rig_wait(&rig);
	rig_forget(&rig);
	rig_sync(&rig);
	rig_write(&rig, 0, 1, 0, false);
	rig_wait(&rig);
	rig_forget(&rig);
	ck_assert_uint_eq(rig_sync(&rig), 256);
	ck_assert_uint_eq(rig_lost(&rig), 0);
	rig_close(&rig);
}

TEST(forgotten_pages_are_logged_again)
{
	forget_under_a_guest(KVMEM_DIRTY_RING);
	forget_under_a_guest(KVMEM_DIRTY_BITMAP);
}
END

HARNESS_MAIN(T(three_readers_of_rings), T(three_readers_of_rings_and_a_reaper),
	     T(three_readers_of_a_bitmap), T(a_threshold_wakes_a_reader_that_sleeps),
	     T(forgotten_pages_are_logged_again))
