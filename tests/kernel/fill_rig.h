/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef FILL_RIG_H
#define FILL_RIG_H

/* Known content, regions of each kind, and the check of one against the other. */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <kvmem/kvmem.h>

#include "harness.h"

#define PAGE UINT64_C(4096)

/* Page p of the content: zero when p is in a hole (each fourth 64 KiB) or p % 5 == 0, else words of p. */
void fill_content(void *to, uint64_t bytes);
bool fill_is_hole(uint64_t page);

/* An unlinked file of that content in the current directory, holes and all; -1 if none can be made. */
int fill_file(uint64_t bytes);

struct fill_region {
	struct kvmem_vm *vm;
	struct kvmem_region *region;
	uint8_t *base;
	uint64_t bytes;
};

/* False: the test is skipped, for want of KVM, guest_memfd or huge pages. */
bool fill_region_open(struct fill_region *fr, uint32_t backing, uint64_t bytes);
void fill_region_close(struct fill_region *fr);
const char *fill_backing_name(uint32_t backing);

/* Region bytes [offset, offset + bytes) hold the content from source_offset on, whole pages else 0. */
void fill_expect(const struct fill_region *fr, uint64_t offset, uint64_t source_offset,
		 uint64_t bytes);
uint64_t fill_sum(const struct kvmem_populate_result *res);

#endif
