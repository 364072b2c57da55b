/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef FAKE_SYS_H
#define FAKE_SYS_H

/*
 * The library's system-call layer, replaced. Every call is counted; the fail_at-th fails with
 * fail_errno; a call with a handler in `fake` goes there; all others are real.
 *
 *	fake_reset();
 *	fake.ioctl = my_ioctl;			handler: same signature as km_sys_ioctl
 *	for (fail_at = 1; run() fails; fail_at++)	nothing may leak, whichever call fails
 */

#include <stdatomic.h>

#include <kvmem/kvmem.h>

#include "base/sys.h"

#define FAKE_MEMBER(name, params, args) int64_t(*name) params;
#define FAKE_COUNT(name, params, args)	unsigned long name;

struct fake {
	KM_SYS_CALLS(FAKE_MEMBER)
	void *(*alloc)(size_t len);
	unsigned long fail_at; /* 1: the first call fails; 0: none */
	int fail_errno;
	atomic_ulong calls;	    /* fallible calls so far */
	const char *_Atomic failed; /* name of the call that was made to fail */
	struct {
		KM_SYS_CALLS(FAKE_COUNT)
	} count;
	atomic_long allocs; /* blocks alive */
};

extern struct fake fake;

void fake_reset(void);

/* The real calls, for handlers that watch and pass on. */
#define FAKE_REAL(name, params, args) int64_t km_real_##name params;
KM_SYS_CALLS(FAKE_REAL)

#endif
