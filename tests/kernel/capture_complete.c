// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* `complete` of a pager is called where its thread is in no guard: a capture of the region can be ended there. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include <kvmem/kvmem.h>

#define PAGE  UINT64_C(4096)
#define PAGES UINT64_C(64)
#define BYTES (PAGES * PAGE)

#define ck_ok(call) \
	do { \
		int64_t ck_r_ = (call); \
		ck_assert_msg(ck_r_ >= 0, "%s: %ld: %s", #call, (long)ck_r_, \
			      kvmem_error_detail()); \
	} while (0)

/* They outlive a test that fails. */
static struct scene {
	struct kvmem_region *region;
	struct kvmem_pager *pager;
	struct kvmem_source *source;
	struct kvmem_capture *capture;
	uint8_t content[BYTES];
	_Atomic int completed, stopped; /* 1: not yet */
	_Atomic bool returned;
	int (*act)(void);
	int result;
} s;

static int no_write(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	(void)arg;
	(void)run;
	(void)content;
	return 0;
}

static void on_complete(void *arg)
{
	(void)arg;
	atomic_store(&s.stopped, kvmem_capture_stop(s.capture));
	atomic_fetch_add(&s.completed, 1);
}

/* Pages [0, absent) are missing, and a capture is under way. False: no userfaultfd that can. */
static bool set_up(uint32_t backing, uint64_t absent)
{
	struct kvmem_capture_opts c = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_region_opts r = KVMEM_REGION_OPTS_INIT;
	struct kvmem_pager_opts p = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_populate_opts fill = KVMEM_POPULATE_OPTS_INIT;

	memset(&s, 0, sizeof(s));
	memset(s.content, 0x5a, sizeof(s.content));
	s.stopped = 1;
	r.bytes = BYTES;
	r.backing = backing;
	p.flags = KVMEM_PAGER_CAPTURE;
	p.complete = on_complete;
	p.fault_around = PAGE;
	c.before_write = no_write;
	if (kvmem_pager_create(&p, &s.pager))
		return false;
	ck_ok(kvmem_region_create(NULL, &r, &s.region));
	ck_ok(kvmem_source_memory(s.content, BYTES, &s.source));
	fill.source_offset = absent * PAGE;
	ck_ok(kvmem_populate(s.region, absent * PAGE, s.source, &fill, NULL));
	ck_ok(kvmem_pager_add(s.pager, s.region, s.source, 0, 0));
	ck_ok(kvmem_pager_start(s.pager));
	ck_ok(kvmem_capture_create(&c, &s.capture));
	ck_ok(kvmem_capture_start(s.capture, &s.region, 1));
	return true;
}

static void tear_down(void)
{
	ck_ok(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	ck_ok(kvmem_pager_free(s.pager));
	ck_ok(kvmem_capture_free(s.capture));
	ck_ok(kvmem_region_free(s.region));
	ck_ok(kvmem_source_free(s.source));
}

static void *act_run(void *arg)
{
	(void)arg;
	s.result = s.act();
	atomic_store(&s.returned, true);
	return NULL;
}

static bool is_over(void *arg)
{
	(void)arg;
	return atomic_load(&s.returned) && atomic_load(&s.completed);
}

static void completes_by(int (*act)(void), uint32_t backing)
{
	pthread_t thread;

	if (!set_up(backing, 2)) {
		harness_note("%s", kvmem_error_detail());
		return;
	}
	s.act = act;
	ck_assert_int_eq(pthread_create(&thread, NULL, act_run, NULL), 0);
	ck_assert_msg(harness_wait(is_over, NULL, 20), "it hangs");
	pthread_join(thread, NULL);
	ck_ok(s.result);
	ck_assert_int_eq(s.completed, 1);
	ck_assert_int_eq(s.stopped, -ECANCELED); /* nobody has asked for its pages */
	tear_down();
}

static void both_kinds(int (*act)(void))
{
	completes_by(act, KVMEM_BACKING_ANONYMOUS);
	completes_by(act, KVMEM_BACKING_MEMFD);
}

static int discard(void)
{
	return kvmem_region_discard(s.region, 0, 2 * PAGE);
}

TEST(a_discard_that_completes)
{
	both_kinds(discard);
}
END

static int populate(void)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.bytes = 2 * PAGE;
	return kvmem_populate(s.region, 0, s.source, &o, NULL);
}

TEST(a_populate_that_completes)
{
	both_kinds(populate);
}
END

static int touch(void)
{
	const volatile uint8_t *base = kvmem_region_base(s.region);

	return base[0] + base[PAGE] == 2 * 0x5a ? 0 : -EIO;
}

TEST(a_fault_that_completes)
{
	both_kinds(touch);
}
END

/* A page beside it is discarded, and the removal's event completes: whoever reads it. */
static int balloon(void)
{
	uint8_t *base = kvmem_region_base(s.region);

	return madvise(base, 2 * PAGE, MADV_DONTNEED);
}

TEST(a_removal_that_completes)
{
	both_kinds(balloon);
}
END

HARNESS_MAIN(T(a_discard_that_completes), T(a_populate_that_completes), T(a_fault_that_completes),
	     T(a_removal_that_completes))
