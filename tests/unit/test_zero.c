// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* km_is_zero() sees every single byte, at every alignment and length. */
#include "harness.h"

#include <string.h>

#include "numa/numa.h"
#include "source/source.h"

static unsigned char buf[8192 + 64];

TEST(every_byte_counts)
{
	memset(buf, 0, sizeof(buf));
	ck_assert(km_is_zero(buf, 4096));
	for (size_t i = 0; i < 4096; i++) {
		buf[i] = 1;
		ck_assert_msg(!km_is_zero(buf, 4096), "byte %zu", i);
		buf[i] = 0;
	}
}
END

TEST(bytes_outside_do_not_count)
{
	for (size_t at = 1; at < 40; at++) {
		for (size_t len = 0; len < 1200; len += len < 40 ? 1 : 37) {
			memset(buf, 0xff, sizeof(buf));
			memset(buf + at, 0, len);
			ck_assert_msg(km_is_zero(buf + at, len), "%zu bytes at %zu", len, at);
			if (!len)
				continue;
			buf[at + len - 1] = 0x80;
			ck_assert_msg(!km_is_zero(buf + at, len), "last of %zu at %zu", len, at);
		}
	}
}
END

HARNESS_MAIN(T(every_byte_counts), T(bytes_outside_do_not_count))
