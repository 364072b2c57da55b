// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Fill from memory and callbacks on the kernel's own memory: every backing, every method, races. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "fill_rig.h"

#define BYTES (UINT64_C(8) << 20)
#define PAGES (BYTES / PAGE)

static uint8_t *content;

static struct kvmem_source *memory_source(void)
{
	struct kvmem_source *s;

	if (!content) {
		content = malloc(BYTES);
		fill_content(content, BYTES);
	}
	ck_assert_int_eq(kvmem_source_memory(content, BYTES, &s), 0);
	return s;
}

static bool is_zero_page(uint64_t page)
{
	return fill_is_hole(page) || page % 5 == 0;
}

/* Pages that exist are the ones that are not zero, and no others. */
static void expect_only_data(const struct fill_region *fr)
{
	uint64_t per = kvmem_region_page_size(fr->region) / PAGE, want = 0;
	struct kvmem_placement pl = KVMEM_PLACEMENT_INIT;

	for (uint64_t p = 0; p < PAGES; p += per) {
		uint64_t zero = 0;

		for (uint64_t i = p; i < p + per; i++)
			zero += is_zero_page(i);
		want += zero < per;
	}
	ck_assert_int_eq(kvmem_region_placement(fr->region, 0, BYTES, &pl), 0);
	ck_assert_uint_eq(pl.present, want);
}

static void each_method(uint32_t backing)
{
	struct fill_region fr;

	for (uint32_t method = KVMEM_FILL_AUTO; method <= KVMEM_FILL_COPY; method++) {
		struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
		struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
		struct kvmem_source *s = memory_source();
		unsigned int fds = harness_count_fds();
		int r;

		if (!fill_region_open(&fr, backing, BYTES)) {
			kvmem_source_free(s);
			return;
		}
		if (backing == KVMEM_BACKING_ANONYMOUS) /* which is counted in base pages */
			madvise(fr.base, BYTES, MADV_NOHUGEPAGE);
		o.method = method;
		r = kvmem_populate(fr.region, 0, s, &o, &res);
		if (r == -EOPNOTSUPP && method) {
			harness_note("%s: %s", fill_backing_name(backing), kvmem_error_detail());
		} else {
			ck_assert_msg(!r, "%d: %s", r, kvmem_error_detail());
			ck_assert_uint_eq(fill_sum(&res), BYTES);
			if (method)
				ck_assert_uint_eq(res.method, method);
			harness_note("%s by %s, %u threads", fill_backing_name(backing),
				     kvmem_fill_method_name(res.method), res.threads);
			expect_only_data(&fr);
			fill_expect(&fr, 0, 0, BYTES);
		}
		fill_region_close(&fr);
		ck_assert_int_eq(kvmem_source_free(s), 0);
		ck_assert_uint_eq(harness_count_fds(), fds);
	}
}

TEST(guest_memfd)
{
	each_method(KVMEM_BACKING_GUEST_MEMFD);
}
END

TEST(memfd)
{
	each_method(KVMEM_BACKING_MEMFD);
}
END

TEST(hugetlb)
{
	each_method(KVMEM_BACKING_HUGETLB);
}
END

TEST(anonymous)
{
	each_method(KVMEM_BACKING_ANONYMOUS);
}
END

/* By whatever revision this kernel has, at whatever alignment. */
TEST(guest_memfd_by_write)
{
	struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct fill_region fr = { .bytes = BYTES };
	struct kvmem_source *s;
	int r = kvmem_vm_create(NULL, &fr.vm);

	SKIP_IF(r, "kvm", "%s", kvmem_error_detail());
	ro.backing = KVMEM_BACKING_GUEST_MEMFD;
	ro.bytes = BYTES;
	ro.needs = KVMEM_WANT_WRITE;
	r = kvmem_region_create(fr.vm, &ro, &fr.region);
	if (r == -EOPNOTSUPP) {
		kvmem_vm_free(fr.vm);
		SKIP("gmem-write", "%s", kvmem_error_detail());
	}
	ck_assert_int_eq(r, 0);
	fr.base = kvmem_region_base(fr.region);
	ck_assert_int_eq(kvmem_region_get_plan(fr.region, &plan), 0);
	s = memory_source();
	o.method = KVMEM_FILL_WRITE;
	o.source_offset = 3 * PAGE + 5;
	o.bytes = BYTES / 2 + 77;
	ck_assert_msg(!kvmem_populate(fr.region, 33, s, &o, &res), "%s", kvmem_error_detail());
	harness_note("write revision %u: 0x%lx bytes written", plan.write_rev,
		     (unsigned long)res.bytes_written);
	ck_assert_uint_gt(res.bytes_written, 0);
	ck_assert_uint_eq(res.bytes_copied, 0);
	fill_expect(&fr, 33, o.source_offset, o.bytes);
	fill_region_close(&fr);
	ck_assert_int_eq(kvmem_source_free(s), 0);
}
END

TEST(parts_and_what_lies_between)
{
	static const uint32_t backings[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };
	static const uint64_t parts[][3] = { { 5, 7, 3 * PAGE },
					     { 100 * PAGE - 1, 4 * PAGE, 2 },
					     { BYTES - 4097, 99, 4097 },
					     { 300 * PAGE + 9, 17 * PAGE + 9, 500 * PAGE } };

	for (size_t b = 0; b < 2; b++) {
		for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
			struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
			struct kvmem_source *s = memory_source();
			struct fill_region fr;

			ck_assert(fill_region_open(&fr, backings[b], BYTES));
			o.source_offset = parts[i][1];
			o.bytes = parts[i][2];
			ck_assert_int_eq(kvmem_populate(fr.region, parts[i][0], s, &o, NULL), 0);
			fill_expect(&fr, parts[i][0], parts[i][1], parts[i][2]);
			fill_region_close(&fr);
			ck_assert_int_eq(kvmem_source_free(s), 0);
		}
	}
}
END

/* ---- races ---- */

struct racer {
	struct fill_region *fr;
	struct kvmem_source *s;
	struct kvmem_populate_result res;
	pthread_barrier_t *start;
	int result;
	uint64_t chunk;
};

static void *race(void *arg)
{
	struct racer *me = arg;
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.threads = 2;
	o.chunk_bytes = me->chunk;
	me->res.size = sizeof(me->res);
	pthread_barrier_wait(me->start);
	me->result = kvmem_populate(me->fr->region, 0, me->s, &o, &me->res);
	return NULL;
}

TEST(two_fills_at_once_fill_each_page_once)
{
	for (int round = 0; round < 10; round++) {
		struct kvmem_source *s = memory_source();
		struct fill_region fr;
		pthread_barrier_t start;
		struct racer r[2];
		pthread_t t[2];

		ck_assert(fill_region_open(&fr, KVMEM_BACKING_MEMFD, BYTES));
		pthread_barrier_init(&start, NULL, 2);
		for (int i = 0; i < 2; i++) {
			r[i] = (struct racer){ &fr, s, .start = &start,
					       .chunk = PAGE * (uint64_t)(3 + 13 * i) };
			ck_assert_int_eq(pthread_create(&t[i], NULL, race, &r[i]), 0);
		}
		for (int i = 0; i < 2; i++)
			pthread_join(t[i], NULL);
		for (int i = 0; i < 2; i++) {
			ck_assert_int_eq(r[i].result, 0);
			ck_assert_uint_eq(fill_sum(&r[i].res), BYTES);
		}
		ck_assert_uint_eq(r[0].res.bytes_present + r[1].res.bytes_present, BYTES);
		fill_expect(&fr, 0, 0, BYTES);
		fill_region_close(&fr);
		ck_assert_int_eq(kvmem_source_free(s), 0);
		pthread_barrier_destroy(&start);
	}
}
END

static void *discard_all(void *arg)
{
	struct racer *me = arg;
	unsigned long long seed = 4711;

	pthread_barrier_wait(me->start);
	for (int i = 0; i < 2000 && !me->result; i++)
		me->result = kvmem_region_discard(me->fr->region,
						  harness_random(&seed) % PAGES * PAGE, PAGE);
	return NULL;
}

/* A page is whole or zero, whichever came last; and filled by nobody once it was discarded. */
TEST(discard_beside_a_fill)
{
	static const uint8_t zero[PAGE];

	for (int round = 0; round < 5; round++) {
		struct kvmem_source *s = memory_source();
		uint64_t zeros = 0;
		struct fill_region fr;
		pthread_barrier_t start;
		struct racer r[2];
		pthread_t t[2];

		ck_assert(fill_region_open(&fr, KVMEM_BACKING_MEMFD, BYTES));
		pthread_barrier_init(&start, NULL, 2);
		r[0] = r[1] = (struct racer){ &fr, s, .start = &start };
		ck_assert_int_eq(pthread_create(&t[0], NULL, race, &r[0]), 0);
		ck_assert_int_eq(pthread_create(&t[1], NULL, discard_all, &r[1]), 0);
		pthread_join(t[0], NULL);
		pthread_join(t[1], NULL);
		ck_assert_int_eq(r[0].result, 0);
		ck_assert_int_eq(r[1].result, 0);
		for (uint64_t at = 0; at < BYTES; at += PAGE) {
			bool gone = !memcmp(fr.base + at, zero, PAGE);

			ck_assert(gone || !memcmp(fr.base + at, content + at, PAGE));
			zeros += gone && !is_zero_page(at / PAGE);
		}
		ck_assert_uint_gt(zeros, 0);
		ck_assert_uint_le(zeros, 2000);
		fill_region_close(&fr);
		ck_assert_int_eq(kvmem_source_free(s), 0);
		pthread_barrier_destroy(&start);
	}
}
END

/* ---- beside a pager ---- */

struct toucher {
	struct fill_region *fr;
	_Atomic uint64_t bad;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;
	unsigned long long seed = 99;

	for (int i = 0; i < 3000; i++) {
		uint64_t at = harness_random(&seed) % PAGES * PAGE;

		if (memcmp(t->fr->base + at, content + at, PAGE))
			atomic_fetch_add(&t->bad, 1);
	}
	return NULL;
}

static void beside_pager(uint32_t backing)
{
	struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_source *s = memory_source();
	struct kvmem_pager *pager = NULL;
	struct fill_region fr;
	struct toucher t = { .fr = &fr };
	pthread_t thread;
	int r;

	if (!fill_region_open(&fr, backing, BYTES)) {
		kvmem_source_free(s);
		return;
	}
	r = kvmem_pager_create(NULL, &pager);
	if (r) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		goto out;
	}
	r = kvmem_pager_add(pager, fr.region, s, 0, 0);
	if (r == -EOPNOTSUPP) {
		harness_skip(backing == KVMEM_BACKING_GUEST_MEMFD ? "gmem-uffd" : "uffd-minor",
			     "%s", kvmem_error_detail());
		goto out;
	}
	ck_assert_msg(!r, "%s", kvmem_error_detail());
	ck_assert_int_eq(kvmem_pager_start(pager), 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, touch, &t), 0);
	ck_assert_msg(!kvmem_populate(fr.region, 0, s, NULL, &res), "%s", kvmem_error_detail());
	pthread_join(thread, NULL);
	ck_assert_uint_eq(t.bad, 0);
	ck_assert_uint_eq(fill_sum(&res), BYTES);
	harness_note("%s: 0x%lx bytes by populate (%s), 0x%lx by the pager",
		     fill_backing_name(backing), (unsigned long)(BYTES - res.bytes_present),
		     kvmem_fill_method_name(res.method), (unsigned long)res.bytes_present);
	fill_expect(&fr, 0, 0, BYTES);
	ck_assert_int_eq(kvmem_pager_stop(pager, KVMEM_STOP_FILL), 0);
out:
	ck_assert_int_eq(kvmem_pager_free(pager), 0);
	fill_region_close(&fr);
	ck_assert_int_eq(kvmem_source_free(s), 0);
}

TEST(beside_a_pager_on_a_memfd)
{
	beside_pager(KVMEM_BACKING_MEMFD);
}
END

TEST(beside_a_pager_on_anonymous_memory)
{
	beside_pager(KVMEM_BACKING_ANONYMOUS);
}
END

TEST(beside_a_pager_on_a_guest_memfd)
{
	beside_pager(KVMEM_BACKING_GUEST_MEMFD);
}
END

/* ---- no memory ---- */

static int read_content(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	memcpy(buf, content + offset, bytes);
	return 0;
}

static int out_of_memory(void *arg)
{
	struct fill_region *fr = arg;
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct rlimit old, none;
	struct kvmem_source *s;
	void *rest;
	int r;

	ops.read = read_content;
	if (kvmem_source_callback(&ops, NULL, BYTES, &s))
		return 1;
	getrlimit(RLIMIT_AS, &old);
	none = old;
	none.rlim_cur = 1 << 20;
	setrlimit(RLIMIT_AS, &none);
	do /* what the heap still has, for good */
		rest = calloc(1, 64 << 10);
	while (rest);
	r = kvmem_populate(fr->region, 0, s, NULL, NULL);
	setrlimit(RLIMIT_AS, &old);
	if (r != -ENOMEM || !strstr(kvmem_error_detail(), "populate"))
		return 2;
	if (kvmem_source_free(s))
		return 3;
	if (kvmem_source_callback(&ops, NULL, BYTES, &s))
		return 4;
	if (kvmem_populate(fr->region, 0, s, NULL, NULL) || memcmp(fr->base, content, BYTES))
		return 5;
	return kvmem_source_free(s) ? 6 : 0;
}

TEST(no_memory_left_to_the_process)
{
	struct fill_region fr;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	SKIP("rlimit-as", "a sanitizer needs all of the address space");
#endif
	kvmem_source_free(memory_source());
	ck_assert(fill_region_open(&fr, KVMEM_BACKING_MEMFD, BYTES));
	ck_assert_int_eq(harness_child(out_of_memory, &fr), 0);
	fill_region_close(&fr);
}
END

HARNESS_MAIN(T(guest_memfd), T(memfd), T(hugetlb), T(anonymous), T(guest_memfd_by_write),
	     T(parts_and_what_lies_between), T(two_fills_at_once_fill_each_page_once),
	     T(discard_beside_a_fill), T(beside_a_pager_on_a_memfd),
	     T(beside_a_pager_on_anonymous_memory), T(beside_a_pager_on_a_guest_memfd),
	     T(no_memory_left_to_the_process))
