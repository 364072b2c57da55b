// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* CRC-32C of the examples: known values, and table against instruction. */
#include "harness.h"

#include <stdint.h>
#include <string.h>

#include "crc32c.h"

/* Check value of the CRC catalogue, and three of RFC 3720, B.4. */
TEST(known_values)
{
	unsigned char bytes[32];

	crc32c_init();
	ck_assert_uint_eq(crc32c(0, "123456789", 9), 0xe3069283);
	memset(bytes, 0, sizeof(bytes));
	ck_assert_uint_eq(crc32c(0, bytes, 32), 0x8a9136aa);
	memset(bytes, 0xff, sizeof(bytes));
	ck_assert_uint_eq(crc32c(0, bytes, 32), 0x62a8ab43);
	for (unsigned char i = 0; i < 32; i++)
		bytes[i] = i;
	ck_assert_uint_eq(crc32c(0, bytes, 32), 0x46dd794e);
	ck_assert_uint_eq(crc32c_by_table(0, bytes, 32), 0x46dd794e);
}
END

TEST(table_and_pieces_agree)
{
	unsigned long long state = 3;
	unsigned char bytes[300];

	crc32c_init();
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (unsigned char)harness_random(&state);
	for (size_t from = 0; from < 9; from++) {
		for (size_t n = 0; from + n <= sizeof(bytes); n++) {
			uint32_t whole = crc32c(0, bytes + from, n);
			uint32_t half = crc32c(0, bytes + from, n / 2);

			ck_assert_uint_eq(whole, crc32c_by_table(0, bytes + from, n));
			ck_assert_uint_eq(whole, crc32c(half, bytes + from + n / 2, n - n / 2));
		}
	}
}
END

HARNESS_MAIN(T(known_values), T(table_and_pieces_agree))
