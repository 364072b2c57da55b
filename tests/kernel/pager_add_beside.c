// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A region is added to a pager that runs, while its only worker is in a callback. */
#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include <kvmem/kvmem.h>

#define PAGE  UINT64_C(4096)
#define BYTES (UINT64_C(64) * PAGE)

#define ck_ok(call) \
	do { \
		int64_t ck_r_ = (call); \
		ck_assert_msg(ck_r_ >= 0, "%s: %ld: %s", #call, (long)ck_r_, \
			      kvmem_error_detail()); \
	} while (0)

/* They outlive a test that fails. */
static struct {
	struct kvmem_region *paged, *added;
	struct kvmem_source *failing, *memory;
	struct kvmem_pager *pager;
	uint8_t content[BYTES];
	atomic_bool mended, in_fail, is_added, touched;
	int result;
} s;

static int read_failing(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	if (!atomic_load(&s.mended))
		return -5;
	memcpy(buf, s.content + offset, bytes);
	return 0;
}

/* What is said of the other region is looked at, which the table of callbacks allows, as long as it is not added. */
static enum kvmem_fail_action on_fail(void *arg, const struct kvmem_fail *f)
{
	struct kvmem_stored stored[4];
	struct timespec begun, now;

	(void)arg;
	(void)f;
	clock_gettime(CLOCK_MONOTONIC, &begun);
	do {
		atomic_store(&s.in_fail, true);
		kvmem_region_stored(s.added, 0, BYTES, stored, 4);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (!atomic_load(&s.is_added) && now.tv_sec - begun.tv_sec < 3);
	atomic_store(&s.mended, true);
	return KVMEM_FAIL_RETRY;
}

static void *touch(void *arg)
{
	(void)arg;
	(void)*(volatile uint8_t *)kvmem_region_base(s.paged);
	atomic_store(&s.touched, true);
	return NULL;
}

static void *add(void *arg)
{
	(void)arg;
	s.result = kvmem_pager_add(s.pager, s.added, s.memory, 0, KVMEM_FILL_OVERWRITE);
	atomic_store(&s.is_added, true);
	return NULL;
}

static bool is_set(void *arg)
{
	return atomic_load((atomic_bool *)arg);
}

static bool set_up(void)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_region_opts r = KVMEM_REGION_OPTS_INIT;
	struct kvmem_pager_opts p = KVMEM_PAGER_OPTS_INIT;

	memset(&s, 0, sizeof(s));
	memset(s.content, 0x5a, sizeof(s.content));
	ops.read = read_failing;
	p.shards = p.workers = 1;
	p.fail = on_fail;
	p.fault_around = PAGE;
	if (kvmem_pager_create(&p, &s.pager))
		return false;
	r.bytes = BYTES;
	r.backing = KVMEM_BACKING_MEMFD;
	ck_ok(kvmem_region_create(NULL, &r, &s.paged));
	r.backing = KVMEM_BACKING_ANONYMOUS;
	ck_ok(kvmem_region_create(NULL, &r, &s.added));
	memset(kvmem_region_base(s.added), 1, BYTES);
	ck_ok(kvmem_source_callback(&ops, NULL, BYTES, &s.failing));
	ck_ok(kvmem_source_memory(s.content, BYTES, &s.memory));
	ck_ok(kvmem_pager_add(s.pager, s.paged, s.failing, 0, 0));
	ck_ok(kvmem_pager_start(s.pager));
	return true;
}

/* Its memory is taken out while it is registered, which waits for who reads the events. */
TEST(an_add_does_not_wait_for_a_callback)
{
	pthread_t toucher, adder;

	if (!set_up()) {
		harness_note("%s", kvmem_error_detail());
		return;
	}
	ck_assert_int_eq(pthread_create(&toucher, NULL, touch, NULL), 0);
	ck_assert_msg(harness_wait(is_set, &s.in_fail, 20), "nobody asks");
	ck_assert_int_eq(pthread_create(&adder, NULL, add, NULL), 0);
	ck_assert_msg(harness_wait(is_set, &s.is_added, 20), "the add hangs");
	ck_assert_msg(harness_wait(is_set, &s.touched, 20), "the fault hangs");
	pthread_join(adder, NULL);
	pthread_join(toucher, NULL);
	ck_ok(s.result);
	ck_assert_uint_eq(*(uint8_t *)kvmem_region_base(s.added), 0x5a);
	ck_ok(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	ck_ok(kvmem_pager_free(s.pager));
	ck_ok(kvmem_region_free(s.paged));
	ck_ok(kvmem_region_free(s.added));
	ck_ok(kvmem_source_free(s.failing));
	ck_ok(kvmem_source_free(s.memory));
}
END

HARNESS_MAIN(T(an_add_does_not_wait_for_a_callback))
