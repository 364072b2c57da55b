// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Checksums against accidents, by XXH3: not against who wants to deceive. */
#include <string.h>

#include <xxhash.h>

#include "image/internal.h"

struct ki_sum ki_sum(const void *bytes, size_t n)
{
	XXH128_hash_t h = XXH3_128bits(bytes, n);

	return (struct ki_sum){ .low = h.low64, .high = h.high64 };
}

uint64_t ki_sum64(const void *bytes, size_t n)
{
	return XXH3_64bits(bytes, n);
}

uint32_t ki_page_sum(const void *page)
{
	return (uint32_t)XXH3_64bits(page, KI_PAGE);
}

bool ki_sum_equal(struct ki_sum a, struct ki_sum b)
{
	return a.low == b.low && a.high == b.high;
}

bool ki_is_zero(const void *bytes, size_t n)
{
	const unsigned char *p = bytes;

	return !n || (!p[0] && !memcmp(p, p + 1, n - 1));
}
