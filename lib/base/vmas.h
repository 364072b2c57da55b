/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_VMAS_H
#define KM_VMAS_H

/* What is mapped in this process, as /proc/self/maps has it: looked at, never touched. */

#include <stdbool.h>
#include <stdint.h>

struct km_vma {
	uint64_t start, end;
	uint64_t offset; /* bytes into the file; of anonymous memory it means nothing */
	uint32_t dev_major, dev_minor;
	uint64_t ino; /* 0: private anonymous memory */
	bool read, write, shared;
};

/*
 * Calls `fn` for each mapping that has bytes of [at, end), by address, until it returns false or there
 * is a gap. 1: all of the range is mapped, and `fn` has taken it; 0: not so. -errno where it cannot
 * be told, without detail: no /proc, or more mappings than anybody would ask for.
 */
int64_t km_vmas_walk(uint64_t at, uint64_t end, bool (*fn)(void *arg, const struct km_vma *v),
		     void *arg);

#endif
