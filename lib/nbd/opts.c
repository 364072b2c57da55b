// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Growable structs: the caller's size may be older or newer than this library's. And the time. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "nbd/internal.h"

#define MOST 4096u /* no struct is larger: kvmem/base.h */

static int check_size(uint32_t size, size_t least, const char *what)
{
	if (size >= least && size <= MOST)
		return 0;
	return kn_fail(EINVAL,
		       "%s: size is %" PRIu32
		       ", must be at least %zu: set it to sizeof, as the INIT macro does",
		       what, size, least);
}

int kn_opts_copy(void *dst, size_t known, const void *src, const char *what)
{
	uint32_t size = (uint32_t)known;
	int r;

	memset(dst, 0, known);
	memcpy(dst, &size, sizeof(size));
	if (!src)
		return 0;
	memcpy(&size, src, sizeof(size));
	r = check_size(size, known, what);
	if (r)
		return r;
	for (size_t i = known; i < size; i++)
		if (((const unsigned char *)src)[i])
			return kn_fail(E2BIG,
				       "%s: what lies beyond the %zu bytes that this library knows "
				       "is not zero: it asks for something newer",
				       what, known);
	memcpy(dst, src, known);
	return 0;
}

int kn_result_check(const void *dst, size_t known, const char *what)
{
	uint32_t size;

	if (!dst)
		return kn_fail(EINVAL, "%s: is NULL", what);
	memcpy(&size, dst, sizeof(size));
	return check_size(size, known, what);
}

void kn_result_copy(void *dst, const void *src, size_t known)
{
	uint32_t size;

	memcpy(&size, dst, sizeof(size));
	memcpy((char *)dst + sizeof(size), (const char *)src + sizeof(size), known - sizeof(size));
	memset((char *)dst + known, 0, size - known);
}

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
