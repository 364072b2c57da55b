/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef HARNESS_H
#define HARNESS_H

/*
 * Check's assertions under a runner that prints TAP and knows skips.
 *
 *	TEST(name) { ... ck_assert_int_eq(...); ... }
 *	int main(int argc, char **argv) { return harness_main(argc, argv, TESTS(name, ...)); }
 *
 * With arguments, only the tests named run. A skip names the facility it lacks; KVMEM_TEST_REQUIRE, a
 * comma-separated list of facilities, turns skips for want of these into failures.
 */

#include <check.h>
#include <stdbool.h>
#include <stddef.h>

struct harness_test {
	const char *name;
	const TTest *test;
};

#define TEST(name) START_TEST(name)
#define END	   END_TEST
#define T(fn) \
	{ \
#fn, fn \
	}

/* Skip the running test: `facility` as KVMEM_TEST_REQUIRE names it, e.g. "kvm", "guest-memfd", "numa2". */
#define SKIP(facility, ...) \
	do { \
		harness_skip(facility, __VA_ARGS__); \
		return; \
	} while (0)

#define SKIP_IF(cond, facility, ...) \
	do { \
		if (cond) \
			SKIP(facility, __VA_ARGS__); \
	} while (0)

void harness_skip(const char *facility, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A TAP comment. */
void harness_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* In the rig: emulated processors, where all takes ten times as long. */
bool harness_emulated(void);

int harness_main(int argc, char **argv, const struct harness_test *tests, size_t count);

/* Wait until fn(arg), at most `seconds`; false on time-out. */
bool harness_wait(bool (*fn)(void *arg), void *arg, unsigned int seconds);

/* Run fn(arg) in a child process; returns its exit status, or 128 + the signal that ended it. */
int harness_child(int (*fn)(void *arg), void *arg);

/* Open file descriptors and mappings of this process: equal before and after means nothing leaked. (Of
 * mappings always 0 under a sanitizer, which makes some itself.) */
unsigned int harness_count_fds(void);
unsigned int harness_count_maps(void);

/* Pseudo-random numbers, the same on every run. */
unsigned long long harness_random(unsigned long long *state);

#define HARNESS_MAIN(...) \
	int main(int argc, char **argv) \
	{ \
		const struct harness_test tests[] = { __VA_ARGS__ }; \
		return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0])); \
	}

#endif
