// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "base/base.h"

#include <string.h>

#define STEP 256u /* bytes looked at before the loop asks: early enough for pages with content */

typedef uint64_t vec __attribute__((vector_size(32), aligned(1), may_alias));

static inline __attribute__((always_inline)) size_t zero_steps(const unsigned char *p, size_t bytes)
{
	size_t at;

	for (at = 0; at + STEP <= bytes; at += STEP) {
		const vec *v = (const vec *)(const void *)(p + at);
		vec a = (v[0] | v[1]) | (v[2] | v[3]);
		vec b = (v[4] | v[5]) | (v[6] | v[7]);

		a |= b;
		if (a[0] | a[1] | a[2] | a[3])
			break;
	}
	return at;
}

static size_t zero_steps_plain(const unsigned char *p, size_t bytes)
{
	return zero_steps(p, bytes);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static size_t zero_steps_avx2(const unsigned char *p, size_t bytes)
{
	return zero_steps(p, bytes);
}

static size_t zero_prefix(const unsigned char *p, size_t bytes)
{
	return __builtin_cpu_supports("avx2") ? zero_steps_avx2(p, bytes)
					      : zero_steps_plain(p, bytes);
}
#else
#define zero_prefix zero_steps_plain
#endif

bool km_is_zero(const void *p, size_t bytes)
{
	const unsigned char *c = p;
	size_t at;

	/* Most pages with content show it in their first bytes. */
	if (bytes >= 16) {
		uint64_t first[2];

		memcpy(first, c, sizeof(first));
		if (first[0] | first[1])
			return false;
	}
	at = zero_prefix(c, bytes);
	if (bytes - at >= STEP)
		return false;
	while (at < bytes)
		if (c[at++])
			return false;
	return true;
}
