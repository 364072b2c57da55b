/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* CRC-32C (Castagnoli), for the host programs and for the guest. */
#ifndef CRC32C_H
#define CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Choose the fastest way this CPU has. Before the first crc32c(), on one thread. */
void crc32c_init(void);

/* The sum of what crc says was summed before (0: nothing) and these bytes. Any thread. */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);

/* The same by table, whatever the CPU has: for comparison. */
uint32_t crc32c_by_table(uint32_t crc, const void *data, size_t bytes);

#endif
