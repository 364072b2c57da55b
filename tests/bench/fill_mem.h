/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef FILL_MEM_H
#define FILL_MEM_H

/* A fresh region for each run: the same memory for the baseline, for the library and for the limit. */

#include <kvmem/kvmem.h>

#include "bench.h"

#define PAGE UINT64_C(4096)
#define MIB  (UINT64_C(1) << 20)

struct memory {
	struct kvmem_vm *vm;
	struct kvmem_region *region;
	uint8_t *base;
	uint64_t bytes;
};

/* Of the given backing; AUTO is guest_memfd where there is one, else memfd. `touch` bytes of free memory are
 * there to be taken. */
void memory_make(struct memory *m, uint32_t backing, uint64_t bytes, uint64_t touch);
void memory_free(struct memory *m);
const char *memory_kind(uint32_t backing);

/* kvmem_populate() from source; returns its ns, and checks that it dealt with all bytes. */
double memory_fill(struct memory *m, struct kvmem_source *source,
		   const struct kvmem_populate_opts *opts, struct kvmem_populate_result *res);

#endif
