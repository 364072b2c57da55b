// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The per-page record: runs, claims across words, one claimer per page under a race. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
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
	km_presence_turn(&map, 0, PAGES, KM_PRESENT, KM_ZERO);
	expect_run(0, 31, KM_ABSENT);
	expect_run(31, 65, KM_ZERO);
	ck_assert_uint_eq(km_presence_missing(&map), PAGES - 65);
	ck_assert(km_presence_wait(&map, 0, PAGES, UINT64_MAX));
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

/* A claim that ends in poison, and a removal that comes before its end or did not come. */
TEST(k8_25_a_removal_before_the_poison_is_published_is_not_lost)
{
	fresh();
	ck_assert_uint_eq(km_presence_claim(&map, 3, 2), 2);
	km_presence_mark(&map, 3);
	km_presence_mark(&map, 4);
	km_presence_remove(&map, 4, 1);
	km_presence_abandon(&map, 3, 2);
	ck_assert_int_eq(km_presence_get(&map, 3), KM_POISONED);
	ck_assert_int_eq(km_presence_get(&map, 4), KM_ZERO);
	ck_assert_uint_eq(km_presence_poisoned(&map), 1);
	km_presence_destroy(&map);
}
END

/* Up to MANY - 1 pages the record is heap, from there on a mapping. */
#define MANY ((1u << 17) + 1)

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

/* ---- flags of claims ---- */

TEST(flags_do_not_divide_a_run_of_claimed_pages)
{
	bool removed;

	fresh();
	ck_assert_uint_eq(km_presence_claim(&map, 10, 50), 50);
	ck_assert_int_eq(km_presence_want(&map, 12), KM_CLAIMED);
	ck_assert_int_eq(km_presence_want(&map, 9), KM_ABSENT);
	ck_assert_uint_eq(km_presence_remove(&map, 20, 20), 0);
	expect_run(10, 50, KM_CLAIMED);
	ck_assert_int_eq(km_presence_get(&map, 12), KM_CLAIMED);
	ck_assert_uint_eq(km_presence_removed(&map, 10, 50, &removed), 10);
	ck_assert(!removed);
	ck_assert_uint_eq(km_presence_removed(&map, 20, 40, &removed), 20);
	ck_assert(removed);
	ck_assert_uint_eq(km_presence_removed(&map, 40, 20, &removed), 20);
	ck_assert(!removed);
	ck_assert_uint_eq(km_presence_removed(&map, 25, 3, &removed), 3);
	km_presence_destroy(&map);
}
END

/* Who ends a claim learns whether a fault came meanwhile; the next claim begins without it. */
TEST(k5_16_a_wanted_page_is_told_to_who_ends_the_claim)
{
	static const enum km_page_state ends[] = { KM_PRESENT, KM_ZERO, KM_POISONED, KM_ABSENT };

	for (unsigned int i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		for (unsigned int wanted = 0; wanted < 2; wanted++) {
			unsigned int r;

			fresh();
			ck_assert_uint_eq(km_presence_claim(&map, 14, 4), 4);
			if (wanted)
				km_presence_want(&map, 17);
			r = ends[i] ? km_presence_publish(&map, 14, 4, ends[i])
				    : km_presence_abandon(&map, 14, 4);
			ck_assert_uint_eq(r, wanted ? KM_WAS_WANTED : 0);
			expect_run(14, ends[i] ? 4 : PAGES - 14, ends[i]);
			km_presence_turn(&map, 14, 4, ends[i], KM_ABSENT);
			ck_assert_uint_eq(km_presence_missing(&map), PAGES);
			ck_assert_uint_eq(km_presence_claim(&map, 14, 4), 4);
			ck_assert_uint_eq(km_presence_publish(&map, 14, 4, KM_PRESENT), 0);
			km_presence_destroy(&map);
		}
}
END

TEST(k8_25_what_was_removed_under_a_claim_is_zero_when_it_is_given_up)
{
	fresh();
	ck_assert_uint_eq(km_presence_claim(&map, 100, 40), 40);
	km_presence_remove(&map, 90, 30);
	expect_run(90, 10, KM_ZERO);
	ck_assert_uint_eq(km_presence_abandon(&map, 100, 40), 0);
	expect_run(90, 30, KM_ZERO);
	expect_run(120, PAGES - 120, KM_ABSENT);
	ck_assert_uint_eq(km_presence_missing(&map), PAGES - 30);
	ck_assert_uint_eq(km_presence_claim(&map, 120, 1), 1);
	km_presence_publish(&map, 120, 1, KM_PRESENT);
	km_presence_remove(&map, 120, 1); /* may still be in the file */
	expect_run(120, 1, KM_PRESENT);
	km_presence_destroy(&map);
}
END

TEST(k7_24_poison_is_a_state_that_is_counted_and_healed)
{
	fresh();
	ck_assert(!map.ever_poisoned);
	ck_assert_uint_eq(km_presence_claim(&map, 30, 5), 5);
	km_presence_publish(&map, 30, 5, KM_POISONED);
	ck_assert(map.ever_poisoned);
	ck_assert_uint_eq(km_presence_poisoned(&map), 5);
	ck_assert_uint_eq(km_presence_missing(&map), PAGES);
	ck_assert_uint_eq(km_presence_claim(&map, 30, 5), 0);
	ck_assert_uint_eq(km_presence_claim_poisoned(&map, 29, 5), 0);
	ck_assert_uint_eq(km_presence_claim_poisoned(&map, 30, 100), 5);
	ck_assert_uint_eq(km_presence_poisoned(&map), 0);
	km_presence_publish(&map, 30, 1, KM_PRESENT);
	km_presence_publish(&map, 31, 4, KM_POISONED);
	km_presence_remove(&map, 31, 1);
	expect_run(31, 1, KM_ZERO);
	km_presence_turn(&map, 0, PAGES, KM_POISONED, KM_ABSENT);
	ck_assert_uint_eq(km_presence_poisoned(&map), 0);
	ck_assert_uint_eq(km_presence_missing(&map), PAGES - 2);
	km_presence_destroy(&map);
}
END

TEST(k7_24_a_claim_of_poisoned_pages_that_is_given_up)
{
	fresh();
	ck_assert_uint_eq(km_presence_claim(&map, 12, 8), 8);
	km_presence_publish(&map, 12, 8, KM_POISONED);
	ck_assert_uint_eq(km_presence_claim_poisoned(&map, 12, 8), 8);
	ck_assert(km_presence_marked(&map, 12, 1) && km_presence_marked(&map, 0, PAGES));
	ck_assert(!km_presence_marked(&map, 0, 12) && !km_presence_marked(&map, 20, 100));
	km_presence_remove(&map, 15, 2);
	km_presence_unmark(&map, 19, 1);
	km_presence_abandon(&map, 12, 8);
	expect_run(12, 3, KM_POISONED);
	expect_run(15, 2, KM_ZERO);
	expect_run(17, 2, KM_POISONED);
	expect_run(19, PAGES - 19, KM_ABSENT);
	ck_assert_uint_eq(km_presence_poisoned(&map), 5);
	ck_assert_uint_eq(km_presence_missing(&map), PAGES - 2);
	km_presence_destroy(&map);
}
END

TEST(a_present_page_can_become_absent_again)
{
	fresh();
	ck_assert_uint_eq(km_presence_claim(&map, 0, PAGES), PAGES);
	ck_assert_uint_eq(km_presence_publish(&map, 0, PAGES, KM_PRESENT), KM_IS_WHOLE);
	ck_assert_uint_eq(km_presence_turn(&map, 500, 30, KM_PRESENT, KM_ABSENT), 0);
	ck_assert_uint_eq(km_presence_missing(&map), 30);
	expect_run(500, 30, KM_ABSENT);
	ck_assert_uint_eq(km_presence_claim(&map, 500, 40), 30);
	ck_assert_uint_eq(km_presence_publish(&map, 500, 30, KM_ZERO), KM_IS_WHOLE);
	km_presence_destroy(&map);
}
END

/* ---- telling that nothing is missing ---- */

static void whole(void *arg)
{
	atomic_fetch_add((_Atomic unsigned int *)arg, 1);
}

static const struct km_presence_listener listen_whole = { whole, whole };

TEST(k9_26_the_last_publisher_tells_that_nothing_is_missing)
{
	_Atomic unsigned int told = 0;

	fresh();
	km_presence_notify(&map); /* nobody listens */
	km_presence_listen(&map, &listen_whole, &told);
	ck_assert_uint_eq(km_presence_claim(&map, 0, PAGES), PAGES);
	ck_assert_uint_eq(km_presence_publish(&map, 0, PAGES - 3, KM_PRESENT), 0);
	ck_assert_uint_eq(km_presence_publish(&map, PAGES - 3, 1, KM_POISONED), 0);
	ck_assert_uint_eq(km_presence_abandon(&map, PAGES - 1, 1), 0);
	ck_assert_uint_eq(km_presence_publish(&map, PAGES - 2, 1, KM_ZERO), 0);
	ck_assert_uint_eq(km_presence_remove(&map, PAGES - 1, 1), KM_IS_WHOLE);
	km_presence_notify(&map);
	ck_assert_uint_eq(told, 1);
	ck_assert_uint_eq(km_presence_claim_poisoned(&map, PAGES - 3, 1), 1);
	ck_assert_uint_eq(km_presence_publish(&map, PAGES - 3, 1, KM_PRESENT), KM_IS_WHOLE);
	km_presence_destroy(&map);
}
END

static _Atomic unsigned int told_whole;

static void *fill_some(void *arg)
{
	for (uint64_t p = (uintptr_t)arg; p < PAGES; p += RACERS)
		if (km_presence_claim(&map, p, 1) &&
		    km_presence_publish(&map, p, 1, p % 3 ? KM_PRESENT : KM_POISONED) & KM_IS_WHOLE)
			atomic_fetch_add(&told_whole, 1);
	return NULL;
}

TEST(k9_26_the_end_is_never_missed_in_a_race)
{
	for (unsigned int round = 0; round < 200; round++) {
		pthread_t t[RACERS];

		fresh();
		atomic_store(&told_whole, 0);
		for (uintptr_t i = 0; i < RACERS; i++)
			ck_assert_int_eq(pthread_create(&t[i], NULL, fill_some, (void *)i), 0);
		for (int i = 0; i < RACERS; i++)
			pthread_join(t[i], NULL);
		ck_assert_uint_ge(atomic_load(&told_whole), 1);
		km_presence_destroy(&map);
	}
}
END

/* ---- order ---- */

static uint64_t content[PAGES]; /* plain memory: ThreadSanitizer sees a read that nothing orders */

static void *store_and_publish(void *arg)
{
	(void)arg;
	for (uint64_t page = 0; page < PAGES; page++) {
		ck_assert_uint_eq(km_presence_claim(&map, page, 1), 1);
		content[page] = page + 1;
		km_presence_publish(&map, page, 1, KM_PRESENT);
	}
	return NULL;
}

TEST(who_sees_a_page_present_sees_its_content)
{
	pthread_t t;

	fresh();
	ck_assert_int_eq(pthread_create(&t, NULL, store_and_publish, NULL), 0);
	for (uint64_t page = 0; page < PAGES; page++) {
		while (km_presence_get(&map, page) != KM_PRESENT)
			sched_yield();
		ck_assert_uint_eq(content[page], page + 1);
	}
	pthread_join(t, NULL);
	km_presence_destroy(&map);
}
END

/* ---- waiting ---- */

static void *give_up_later(void *arg)
{
	struct timespec ts = { .tv_nsec = 200000000 };

	(void)arg;
	nanosleep(&ts, NULL);
	km_presence_abandon(&map, 5, 2);
	return NULL;
}

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

TEST(k6_21_who_waits_for_a_claim_sleeps)
{
	uint64_t start, cpu;
	pthread_t t;

	fresh();
	ck_assert(km_presence_wait(&map, 0, PAGES, UINT64_MAX));
	ck_assert_uint_eq(km_presence_claim(&map, 5, 2), 2);
	start = km_sys_now_ns();
	cpu = cpu_ns();
	ck_assert(!km_presence_wait(&map, 0, PAGES, 50000000));
	ck_assert_uint_ge(km_sys_now_ns() - start, 45000000);
	ck_assert_int_eq(pthread_create(&t, NULL, give_up_later, NULL), 0);
	ck_assert(km_presence_wait(&map, 0, PAGES, UINT64_MAX));
	ck_assert_uint_ge(km_sys_now_ns() - start, 190000000);
	ck_assert_uint_lt(cpu_ns() - cpu, (km_sys_now_ns() - start) / 20);
	pthread_join(t, NULL);
	ck_assert_uint_eq(map.waiters, 0);
	km_presence_destroy(&map);
}
END

/* The waiter's own looks are left out, so that a wake-up that is lost shows. */
static int64_t sleep_until_woken(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns)
{
	(void)timeout_ns;
	return km_real_futex_wait(word, value, 60ull * 1000000000);
}

TEST(k6_21_who_waits_is_woken)
{
	uint64_t start;
	pthread_t t;

	fresh();
	fake.futex_wait = sleep_until_woken;
	ck_assert_uint_eq(km_presence_claim(&map, 5, 2), 2);
	ck_assert_int_eq(pthread_create(&t, NULL, give_up_later, NULL), 0);
	start = km_sys_now_ns();
	ck_assert(km_presence_wait(&map, 0, PAGES, UINT64_MAX));
	ck_assert_uint_lt(km_sys_now_ns() - start, 30ull * 1000000000);
	pthread_join(t, NULL);
	km_presence_destroy(&map);
}
END

#define WAITS 20000u

static atomic_uint claimed_turn, waited_turn;

/* Many pages, so that a look at all of them takes a while: the claim ends at any moment of it. */
static void *claim_and_end(void *arg)
{
	(void)arg;
	for (unsigned int i = 1; i <= WAITS; i++) {
		ck_assert_uint_eq(km_presence_claim(&map, 5, PAGES - 5), PAGES - 5);
		atomic_store(&claimed_turn, i);
		for (volatile unsigned int n = 0; n < i * 7 % 3000; n++)
			;
		km_presence_abandon(&map, 5, PAGES - 5);
		while (atomic_load(&waited_turn) != i)
			sched_yield();
	}
	return NULL;
}

TEST(k6_21_no_wake_up_is_lost)
{
	uint64_t start;
	pthread_t t;

	fresh();
	fake.futex_wait = sleep_until_woken;
	start = km_sys_now_ns();
	ck_assert_int_eq(pthread_create(&t, NULL, claim_and_end, NULL), 0);
	for (unsigned int i = 1; i <= WAITS; i++) {
		while (atomic_load(&claimed_turn) != i)
			sched_yield();
		ck_assert(km_presence_wait(&map, 0, PAGES, UINT64_MAX));
		atomic_store(&waited_turn, i);
	}
	pthread_join(t, NULL);
	ck_assert_uint_lt(km_sys_now_ns() - start, 50ull * 1000000000);
	km_presence_destroy(&map);
}
END

static struct km_presence many;
static unsigned int sleeps;
static volatile sig_atomic_t looks;

static void *second_page_of_words(void)
{
	return (void *)((uintptr_t)many.words + 4096);
}

/* The first sleep ends for nothing; the look after it will stop in the middle. */
static int64_t stop_the_next_look(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns)
{
	if (sleeps++)
		return sleep_until_woken(word, value, timeout_ns);
	ck_assert_int_eq(mprotect(second_page_of_words(), 4096, PROT_NONE), 0);
	return 0;
}

static void end_the_claim(int number)
{
	(void)number;
	looks++;
	mprotect(second_page_of_words(), 4096, PROT_READ | PROT_WRITE);
	km_presence_abandon(&many, 0, MANY);
}

TEST(k6_21_a_claim_that_ends_during_the_look)
{
	struct sigaction act = { .sa_handler = end_the_claim }, before;
	uint64_t start;

	fake_reset();
	ck_assert_int_eq(km_presence_init(&many, MANY), 0);
	ck_assert_uint_eq(km_presence_claim(&many, 0, MANY), MANY);
	fake.futex_wait = stop_the_next_look;
	sleeps = 0;
	looks = 0;
	ck_assert_int_eq(sigaction(SIGSEGV, &act, &before), 0);
	start = km_sys_now_ns();
	ck_assert(km_presence_wait(&many, 0, MANY, UINT64_MAX));
	ck_assert_uint_lt(km_sys_now_ns() - start, 30ull * 1000000000);
	sigaction(SIGSEGV, &before, NULL);
	ck_assert_int_eq(looks, 1);
	km_presence_destroy(&many);
}
END

/* Two threads that do the last two things to the record at the same moment, many times. */
#define LAST_ROUNDS 100000u

static struct last {
	void (*act[2])(void);
	_Atomic unsigned int round, ended;
	unsigned int misses;
} last;

static void tell_if(unsigned int ended)
{
	if (ended & KM_IS_WHOLE)
		atomic_fetch_add(&told_whole, 1);
}

static void publish_first(void)
{
	tell_if(km_presence_publish(&map, 0, 1, KM_PRESENT));
}

static void poison_second(void)
{
	tell_if(km_presence_publish(&map, 1, 1, KM_POISONED));
}

static void remove_second(void)
{
	tell_if(km_presence_remove(&map, 1, 1));
}

/* Claimed and published again: in between nothing is whole. */
static void heal_second(void)
{
	if (km_presence_claim_poisoned(&map, 1, 1))
		tell_if(km_presence_publish(&map, 1, 1, KM_PRESENT));
}

static void both_claimed(void)
{
	km_presence_claim(&map, 0, 2);
}

static void one_poisoned(void)
{
	km_presence_claim(&map, 0, 2);
	km_presence_publish(&map, 1, 1, KM_POISONED);
}

static void spin_until(_Atomic unsigned int *what, unsigned int least)
{
	for (unsigned int i = 1; atomic_load(what) < least; i++)
		if (i % 256 == 0)
			sched_yield();
}

static void *other_actor(void *arg)
{
	(void)arg;
	for (unsigned int n = 1; n <= LAST_ROUNDS; n++) {
		spin_until(&last.round, n);
		last.act[1]();
		atomic_store(&last.ended, n);
	}
	return NULL;
}

static void on_told(void *arg)
{
	(void)arg;
	atomic_fetch_add(&told_whole, 1);
}

static const struct km_presence_listener listen_on_told = { on_told, on_told };

/* Somebody is told each time. */
static void race_for_the_last(void (*prepare)(void), void (*one)(void), void (*other)(void))
{
	pthread_t t;

	last = (struct last){ .act = { one, other } };
	ck_assert_int_eq(pthread_create(&t, NULL, other_actor, NULL), 0);
	for (unsigned int n = 1; n <= LAST_ROUNDS; n++) {
		ck_assert_int_eq(km_presence_init(&map, 2), 0);
		km_presence_listen(&map, &listen_on_told, &map);
		prepare();
		atomic_store(&told_whole, 0);
		atomic_store(&last.round, n);
		for (unsigned int i = n % 512; i; i--) /* to meet at some round, wherever it is */
			atomic_load(&last.round);
		last.act[0]();
		spin_until(&last.ended, n);
		last.misses += !atomic_load(&told_whole) || atomic_load(&map.open);
		km_presence_destroy(&map);
	}
	pthread_join(t, NULL);
	ck_assert_msg(!last.misses, "nobody was told in %u of %u rounds", last.misses, LAST_ROUNDS);
}

TEST(k9_26_a_page_poisoned_beside_the_last_one_published)
{
	race_for_the_last(both_claimed, publish_first, poison_second);
}
END

TEST(k9_26_a_poisoned_page_removed_beside_the_last_one_published)
{
	race_for_the_last(one_poisoned, publish_first, remove_second);
}
END

TEST(k9_26_a_poisoned_page_healed_beside_the_last_one_published)
{
	race_for_the_last(one_poisoned, publish_first, heal_second);
}
END

static _Atomic unsigned int too_early;

/* While it has its claim, the page is open. */
static void claim_and_keep(void)
{
	if (km_presence_claim_poisoned(&map, 1, 1)) {
		for (int i = 0; i < 50; i++)
			if (atomic_load(&map.open) == 0)
				atomic_fetch_add(&too_early, 1);
		tell_if(km_presence_publish(&map, 1, 1, KM_POISONED));
	}
}

TEST(k9_26_nothing_is_whole_while_a_page_is_healed)
{
	atomic_store(&too_early, 0);
	race_for_the_last(one_poisoned, publish_first, claim_and_keep);
	ck_assert_uint_eq(atomic_load(&too_early), 0);
}
END

HARNESS_MAIN(T(claims_stop_at_what_is_taken), T(states_and_the_count_of_missing),
	     T(no_page_is_ever_claimed_twice),
	     T(k8_25_a_removal_before_the_poison_is_published_is_not_lost),
	     T(small_and_large_records_begin_absent), T(no_memory_is_an_error),
	     T(flags_do_not_divide_a_run_of_claimed_pages),
	     T(k5_16_a_wanted_page_is_told_to_who_ends_the_claim),
	     T(k8_25_what_was_removed_under_a_claim_is_zero_when_it_is_given_up),
	     T(k7_24_poison_is_a_state_that_is_counted_and_healed),
	     T(k7_24_a_claim_of_poisoned_pages_that_is_given_up),
	     T(a_present_page_can_become_absent_again),
	     T(k9_26_the_last_publisher_tells_that_nothing_is_missing),
	     T(k9_26_the_end_is_never_missed_in_a_race),
	     T(who_sees_a_page_present_sees_its_content), T(k6_21_who_waits_for_a_claim_sleeps),
	     T(k6_21_who_waits_is_woken), T(k6_21_no_wake_up_is_lost),
	     T(k6_21_a_claim_that_ends_during_the_look),
	     T(k9_26_a_page_poisoned_beside_the_last_one_published),
	     T(k9_26_a_poisoned_page_removed_beside_the_last_one_published),
	     T(k9_26_a_poisoned_page_healed_beside_the_last_one_published),
	     T(k9_26_nothing_is_whole_while_a_page_is_healed))
