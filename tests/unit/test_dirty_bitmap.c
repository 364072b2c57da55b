// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Dirty maps against an array of bytes: every operation, at awkward alignments, and a race of adders. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "dirty/bitmap.h"
#include "fake_sys.h"

/* An assertion of Check costs a write each: not for a million pages. */
#define EXPECT(cond, page) \
	do { \
		if (!(cond)) \
			ck_abort_msg("%s: page %lu", #cond, (unsigned long)(page)); \
	} while (0)

#define PAGES 600001u /* three words of l2, none of them whole */

static struct km_dmap map, shared;
static unsigned char model[PAGES];
static unsigned long long seed;

static bool is_empty(const struct km_dmap *m)
{
	for (size_t i = 0; i < m->n0; i++)
		if (m->l0[i])
			return false;
	return true;
}

static void take_into(struct km_dmap *into, struct km_dmap *from)
{
	km_dmap_take(&into, 1, from);
}

static void fresh(void)
{
	fake_reset();
	seed = 42;
	memset(model, 0, sizeof(model));
	ck_assert_int_eq(km_dmap_init(&map, PAGES), 0);
	ck_assert_int_eq(km_dmap_init(&shared, PAGES), 0);
}

static void done(void)
{
	km_dmap_destroy(&map);
	km_dmap_destroy(&shared);
}

static uint64_t model_count(void)
{
	uint64_t n = 0;

	for (size_t i = 0; i < PAGES; i++)
		n += model[i];
	return n;
}

static void expect_runs(size_t chunk)
{
	struct kvmem_region *region = (struct kvmem_region *)&map;
	static struct kvmem_run runs[4096];
	uint64_t pos = 0, at = 0;
	size_t n;

	do {
		n = km_dmap_runs(&map, &pos, region, 12, runs, chunk);
		for (size_t i = 0; i < n; i++) {
			uint64_t end = (runs[i].offset + runs[i].bytes) >> 12;

			EXPECT(runs[i].region == region, at);
			EXPECT(!((runs[i].offset | runs[i].bytes) & 4095), at);
			EXPECT(end <= PAGES, at);
			for (; at < runs[i].offset >> 12; at++)
				EXPECT(!model[at], at);
			EXPECT(at < end, at);
			for (; at < end; at++)
				EXPECT(model[at], at);
			EXPECT(at == PAGES || !model[at], at);
		}
	} while (n == chunk);
	for (; at < PAGES; at++)
		EXPECT(!model[at], at);
}

/* The runs, asked for `chunk` at a time, are the model's. */
static void expect_model(size_t chunk)
{
	ck_assert_uint_eq(km_dmap_count(&map), model_count());
	ck_assert_int_eq(is_empty(&map), !model_count());
	expect_runs(chunk);
}

static void set(uint64_t page)
{
	model[page] = 1;
	if (page % 3) {
		km_dmap_or_counted(&map, page / 64, 1ull << (page % 64));
		return;
	}
	km_dmap_or(&map, page / 64, 1ull << (page % 64));
	map.uncounted = true;
}

static void set_range(uint64_t first, uint64_t count)
{
	memset(model + first, 1, count);
	km_dmap_set_range_shared(&shared, first, count);
}

TEST(single_pages_and_runs_over_word_edges)
{
	static const uint64_t pages[] = { 0,   1,    62,   63,	   64,	   65,	   127,
					  128, 4095, 4096, 262143, 262144, 262145, PAGES - 1 };

	fresh();
	expect_model(1);
	for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++) {
		set(pages[i]);
		expect_model(1);
		expect_model(64);
	}
	km_dmap_clear(&map);
	memset(model, 0, sizeof(model));
	expect_model(1);
	done();
}
END

TEST(ranges_go_through_the_shared_map)
{
	static const uint64_t ranges[][2] = { { 0, 1 },		 { 60, 8 },	  { 128, 64 },
					      { 200, 1000 },	 { 262100, 100 }, { 300000, 0 },
					      { PAGES - 65, 65 } };

	fresh();
	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		set_range(ranges[i][0], ranges[i][1]);
		take_into(&map, &shared);
		ck_assert(is_empty(&shared));
		expect_model(3);
	}
	set_range(0, PAGES);
	take_into(&map, &shared);
	expect_model(1);
	done();
}
END

TEST(random_maps_of_every_density)
{
	fresh();
	for (unsigned int density = 1; density < 1u << 20; density *= density == 1 ? 2 : 8) {
		for (uint64_t p = 0; p < PAGES; p++)
			if (harness_random(&seed) % density == 0)
				set(p);
		expect_model(7);
		expect_model(64);
		expect_model(4096);
		km_dmap_clear(&map);
		ck_assert(is_empty(&map));
		memset(model, 0, sizeof(model));
	}
	done();
}
END

TEST(bits_of_any_alignment_in_and_out)
{
	uint64_t in[40], out[40];

	fresh();
	for (int round = 0; round < 2000; round++) {
		uint64_t count = harness_random(&seed) % (39 * 64) + 1;
		uint64_t first = harness_random(&seed) % (PAGES - count);
		uint64_t from = first + harness_random(&seed) % count;
		uint64_t n = harness_random(&seed) % (first + count - from) + 1;

		for (size_t i = 0; i < 40; i++)
			in[i] = harness_random(&seed) & harness_random(&seed);
		km_dmap_or_bits(&map, first, in, count);
		for (uint64_t i = 0; i < count; i++)
			model[first + i] |= (unsigned char)(in[i / 64] >> (i % 64) & 1);

		memset(out, 0, sizeof(out));
		out[39] = 1ull << 63;
		km_dmap_or_out(&map, from, n, out);
		for (uint64_t i = 0; i < 40 * 64 - 1; i++)
			EXPECT((out[i / 64] >> (i % 64) & 1) == (i < n && model[from + i]), i);
		ck_assert_uint_eq(out[39] >> 63, 1);
	}
	expect_model(7);
	done();
}
END

TEST(runs_further_apart_than_32_bits_count)
{
	static const uint64_t pages[] = { 5, (1ull << 32) + 5, (1ull << 33) - 1 };
	struct kvmem_run runs[8] = { 0 };
	struct km_dmap huge;
	uint64_t pos;

	fake_reset();
	ck_assert_int_eq(km_dmap_init(&huge, 1ull << 33), 0);
	for (size_t i = 0; i < 3; i++)
		km_dmap_or(&huge, pages[i] / 64, 1ull << (pages[i] % 64));
	pos = 0;
	ck_assert_uint_eq(km_dmap_runs(&huge, &pos, NULL, 12, runs, 8), 3);
	for (size_t i = 0; i < 3; i++) {
		ck_assert_uint_eq(runs[i].offset, pages[i] << 12);
		ck_assert_uint_eq(runs[i].bytes, 4096);
	}
	km_dmap_destroy(&huge);
}
END

#define ADDERS 3
static atomic_int adding;

static void *add(void *arg)
{
	unsigned long long s = (unsigned long long)(uintptr_t)arg + 1;

	for (int i = 0; i < 100000; i++) {
		uint64_t p = harness_random(&s) % PAGES;

		__atomic_store_n(&model[p], 1, __ATOMIC_RELAXED);
		km_dmap_or_shared(&shared, p / 64, 1ull << (p % 64));
	}
	atomic_fetch_sub(&adding, 1);
	return NULL;
}

TEST(nothing_is_lost_between_adders_and_a_taker)
{
	pthread_t t[ADDERS];

	fresh();
	atomic_store(&adding, ADDERS);
	for (uintptr_t i = 0; i < ADDERS; i++)
		ck_assert_int_eq(pthread_create(&t[i], NULL, add, (void *)i), 0);
	while (atomic_load(&adding))
		take_into(&map, &shared);
	for (int i = 0; i < ADDERS; i++)
		pthread_join(t[i], NULL);
	take_into(&map, &shared);
	expect_model(64);
	for (size_t i = 0; i < shared.n0; i++)
		EXPECT(!shared.l0[i], i * 64);
	done();
}
END

TEST(no_memory_is_an_error)
{
	fake_reset();
	fake.fail_at = 1;
	fake.fail_errno = ENOMEM;
	ck_assert_int_eq(km_dmap_init(&map, PAGES), -ENOMEM);
}
END

HARNESS_MAIN(T(single_pages_and_runs_over_word_edges), T(ranges_go_through_the_shared_map),
	     T(random_maps_of_every_density), T(bits_of_any_alignment_in_and_out),
	     T(runs_further_apart_than_32_bits_count),
	     T(nothing_is_lost_between_adders_and_a_taker), T(no_memory_is_an_error))
