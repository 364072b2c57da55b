/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Built for the host and, freestanding, for the guest: no C library here but memcpy(). */
#include "crc32c.h"

#include <stdbool.h>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#define POLYNOMIAL 0x82f63b78u

static uint32_t table[8][256];
static bool by_instruction;

static void make_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (POLYNOMIAL & (0u - (crc & 1)));
		table[0][i] = crc;
	}
	for (uint32_t i = 0; i < 256; i++)
		for (int k = 1; k < 8; k++)
			table[k][i] = (table[k - 1][i] >> 8) ^ table[0][table[k - 1][i] & 0xff];
}

static uint64_t load64(const unsigned char *p)
{
	uint64_t word;

	__builtin_memcpy(&word, p, sizeof(word));
	return word;
}

uint32_t crc32c_by_table(uint32_t crc, const void *data, size_t bytes)
{
	const unsigned char *p = data;

	crc = ~crc;
	for (; bytes >= 8; bytes -= 8, p += 8) {
		uint64_t w = load64(p) ^ crc; /* little-endian */

		crc = table[7][w & 0xff] ^ table[6][(w >> 8) & 0xff] ^ table[5][(w >> 16) & 0xff] ^
		      table[4][(w >> 24) & 0xff] ^ table[3][(w >> 32) & 0xff] ^
		      table[2][(w >> 40) & 0xff] ^ table[1][(w >> 48) & 0xff] ^ table[0][w >> 56];
	}
	for (; bytes; bytes--, p++)
		crc = (crc >> 8) ^ table[0][(crc ^ *p) & 0xff];
	return ~crc;
}

#ifdef __x86_64__
/*
 * The instruction works on general registers: written as assembly, it needs neither vector state
 * nor a compiler option, and the guest has neither.
 */
static uint32_t crc32c_by_instruction(uint32_t start, const void *data, size_t bytes)
{
	const unsigned char *p = data;
	uint64_t crc = ~start;

	for (; bytes >= 8; bytes -= 8, p += 8)
		__asm__("crc32q %1, %0" : "+r"(crc) : "rm"(load64(p)));
	for (; bytes; bytes--, p++)
		__asm__("crc32b %1, %0" : "+r"(crc) : "rm"(*p));
	return ~(uint32_t)crc;
}

void crc32c_init(void)
{
	unsigned int eax, ebx, ecx = 0, edx;

	make_table();
	by_instruction = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_SSE4_2);
}
#else
static uint32_t crc32c_by_instruction(uint32_t start, const void *data, size_t bytes)
{
	return crc32c_by_table(start, data, bytes);
}

void crc32c_init(void)
{
	make_table();
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes)
{
	if (by_instruction)
		return crc32c_by_instruction(crc, data, bytes);
	return crc32c_by_table(crc, data, bytes);
}
