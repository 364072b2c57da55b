// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The per-page record: runs, claims across words, one claimer per page under a race. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "fake_sys.h"
#include "region/presence.h"

#define PAGES 1000u

static struct km_presence map;

static void fresh(void)
{
	fake_reset();
	ck_assert_int_eq(km_presence_init(&map, PAGES), 0);
}

static void expect_run(uint64_t page, uint64_t length, enum km_page_state want)
{
	enum km_page_state state;

	ck_assert_uint_eq(km_presence_run(&map, page, PAGES, &state), length);
	ck_assert_int_eq(state, want);
}

TEST(claims_stop_at_what_is_taken)
{
	fresh();
	ck_assert_uint_eq(km_presence_claim(&map, 100, 10), 10);
	ck_assert_uint_eq(km_presence_claim(&map, 0, PAGES), 100);
	ck_assert_uint_eq(km_presence_claim(&map, 105, 10), 0);
	ck_assert_uint_eq(km_presence_claim(&map, 110, 5000), PAGES - 110);
	ck_assert_uint_eq(km_presence_claim(&map, PAGES, 1), 0);
	expect_run(0, PAGES, KM_CLAIMED);
	km_presence_destroy(&map);
}
END

TEST(states_and_the_count_of_missing)
{
	fresh();
	ck_assert_uint_eq(km_presence_claim(&map, 31, 66), 66);
	km_presence_publish(&map, 31, 33, KM_PRESENT);
	km_presence_publish(&map, 64, 32, KM_ZERO);
	km_presence_abandon(&map, 96, 1);
	expect_run(0, 31, KM_ABSENT);
	expect_run(31, 33, KM_PRESENT);
	expect_run(64, 32, KM_ZERO);
	expect_run(96, PAGES - 96, KM_ABSENT);
	ck_assert_uint_eq(km_presence_missing(&map), PAGES - 65);
	km_presence_change(&map, 0, PAGES, KM_PRESENT, KM_ZERO);
	expect_run(0, 31, KM_ABSENT);
	expect_run(31, 65, KM_ZERO);
	ck_assert_uint_eq(km_presence_missing(&map), PAGES - 65);
	km_presence_settle(&map, 0, PAGES);
	km_presence_destroy(&map);
}
END

#define RACERS 4

static _Atomic unsigned int owners[PAGES];

static void *race(void *arg)
{
	unsigned long long seed = (unsigned long long)(uintptr_t)arg + 1;

	for (int i = 0; i < 20000; i++) {
		uint64_t first = harness_random(&seed) % PAGES;
		uint64_t n = km_presence_claim(&map, first, harness_random(&seed) % 70 + 1);

		for (uint64_t p = first; p < first + n; p++)
			atomic_fetch_add(&owners[p], 1);
		if (n && i % 3) {
			for (uint64_t p = first; p < first + n; p++)
				atomic_fetch_sub(&owners[p], 1);
			km_presence_abandon(&map, first, n);
		} else if (n) {
			km_presence_publish(&map, first, n, KM_PRESENT);
		}
	}
	return NULL;
}

TEST(no_page_is_ever_claimed_twice)
{
	pthread_t t[RACERS];
	uint64_t present = 0;

	fresh();
	for (uintptr_t i = 0; i < RACERS; i++)
		ck_assert_int_eq(pthread_create(&t[i], NULL, race, (void *)i), 0);
	for (int i = 0; i < RACERS; i++)
		pthread_join(t[i], NULL);
	for (uint64_t p = 0; p < PAGES; p++) {
		bool is_present = km_presence_get(&map, p) == KM_PRESENT;

		ck_assert_uint_eq(owners[p], is_present);
		present += is_present;
	}
	ck_assert_uint_eq(km_presence_missing(&map), PAGES - present);
	km_presence_destroy(&map);
}
END

/* Up to MANY - 1 pages the record is heap, from there on a mapping. */
#define MANY ((1u << 18) + 1)

TEST(small_and_large_records_begin_absent)
{
	for (uint32_t pages = MANY - 1; pages <= MANY; pages++) {
		enum km_page_state state;

		fake_reset();
		ck_assert_int_eq(km_presence_init(&map, pages), 0);
		ck_assert_uint_eq(fake.count.mmap, pages == MANY);
		ck_assert_uint_eq(km_presence_run(&map, 0, pages, &state), pages);
		ck_assert_int_eq(state, KM_ABSENT);
		ck_assert_uint_eq(km_presence_claim(&map, 1, pages), pages - 1);
		km_presence_publish(&map, 1, pages - 1, KM_PRESENT);
		ck_assert_uint_eq(km_presence_missing(&map), 1);
		ck_assert_int_eq(km_presence_get(&map, pages - 1), KM_PRESENT);
		km_presence_destroy(&map);
	}
}
END

TEST(no_memory_is_an_error)
{
	for (uint32_t pages = MANY - 1; pages <= MANY; pages++) {
		fake_reset();
		fake.fail_at = 1;
		fake.fail_errno = ENOMEM;
		ck_assert_int_eq(km_presence_init(&map, pages), -ENOMEM);
	}
}
END

HARNESS_MAIN(T(claims_stop_at_what_is_taken), T(states_and_the_count_of_missing),
	     T(no_page_is_ever_claimed_twice),
	     T(small_and_large_records_begin_absent), T(no_memory_is_an_error))
