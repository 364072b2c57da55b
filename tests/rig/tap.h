/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* TAP for the rig's own programs, which use raw system calls and no library. */
#ifndef RIG_TAP_H
#define RIG_TAP_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int tap_count, tap_failures;

/*
 * Inside the rig: what the kernel has logged so far belongs to this test. The result follows on
 * another way, which says nothing about the order.
 */
static inline void tap_mark(const char *name)
{
	FILE *f = getenv("KVMEM_TEST_RIG") ? fopen("/dev/kmsg", "we") : NULL;

	if (!f)
		return;
	fprintf(f, "<7>kvmem-test: end of %s\n", name);
	fclose(f);
}

static inline void tap_ok(bool good, const char *name)
{
	if (!good)
		tap_failures++;
	tap_mark(name);
	printf("%sok %d - %s\n", good ? "" : "not ", ++tap_count, name);
	fflush(stdout);
}

static inline void tap_skip(const char *name, const char *reason)
{
	tap_mark(name);
	printf("ok %d - %s # SKIP %s\n", ++tap_count, name, reason);
	fflush(stdout);
}

#define tap_note(...) \
	do { \
		printf("# " __VA_ARGS__); \
		printf("\n"); \
		fflush(stdout); \
	} while (0)

/* Whether KVMEM_TEST_REQUIRE has the name. */
static inline bool tap_required(const char *name)
{
	const char *list = getenv("KVMEM_TEST_REQUIRE");
	size_t n = strlen(name);

	for (; list && *list; list += strcspn(list, ","), list += *list == ',')
		if (!strncmp(list, name, n) && (list[n] == ',' || !list[n]))
			return true;
	return false;
}

/* For what the tests take for granted: nothing further makes sense without it. */
#define must(cond, what) \
	do { \
		if (!(cond)) { \
			printf("Bail out! %s: %s\n", what, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

static inline int tap_done(void)
{
	printf("1..%d\n", tap_count);
	return tap_failures ? 1 : 0;
}

#endif
