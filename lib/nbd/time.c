// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The time, and when something is over. */
#include <time.h>

#include "nbd/internal.h"

uint64_t kn_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t kn_after(uint64_t ns)
{
	uint64_t now = kn_now_ns();

	return ns > UINT64_MAX - now ? UINT64_MAX : now + ns;
}
