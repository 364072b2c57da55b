/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_BASE_H
#define KM_BASE_H

/*
 * base: what every part stands on. System calls (sys.h), failures (error.h), constants newer than
 * the headers of the build host (uapi/), and the few helpers below. It knows no object of the
 * library.
 *
 * Invariant: nothing but base/sys.c makes a system call or allocates, so that the unit tests can
 * fake, count and fail each one.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/callback.h"
#include "base/copy.h"
#include "base/error.h"
#include "base/gate.h"
#include "base/sys.h"

#define KM_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static inline uint64_t km_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline void km_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* All of [p, p + bytes) is zero; at memory speed. */
bool km_is_zero(const void *p, size_t bytes);

/*
 * MADV_DONTNEED that also takes locked memory (mlock(2), mlockall(2) with MCL_FUTURE), of which
 * MADV_DONTNEED alone is EINVAL. 0 or -errno without detail: -EINVAL where the memory is locked and
 * the kernel is older than 5.18.
 */
int64_t km_mem_drop(void *addr, size_t bytes);

#endif
