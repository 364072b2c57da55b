// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "fake_sys.h"

#include <liburing.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct fake fake;

void *km_real_alloc(size_t len);
void *km_real_realloc(void *p, size_t len);

void fake_reset(void)
{
	memset(&fake, 0, sizeof(fake));
}

static int injected(const char *name)
{
	if (atomic_fetch_add(&fake.calls, 1) + 1 != fake.fail_at)
		return 0;
	fake.failed = name;
	return 1;
}

#define FAKE_DEFINE(name, params, args) \
	int64_t km_sys_##name params \
	{ \
		__atomic_add_fetch(&fake.count.name, 1, __ATOMIC_RELAXED); \
		if (injected(#name)) \
			return -fake.fail_errno; \
		return fake.name ? fake.name args : km_real_##name args; \
	}
KM_SYS_CALLS(FAKE_DEFINE)

static void *counted(void *p, long n)
{
	if (p)
		atomic_fetch_add(&fake.allocs, n);
	return p;
}

void *km_sys_alloc(size_t len)
{
	if (injected("alloc"))
		return NULL;
	return counted(fake.alloc ? fake.alloc(len) : km_real_alloc(len), 1);
}

void *km_sys_realloc(void *p, size_t len)
{
	if (injected("realloc"))
		return NULL;
	return counted(km_real_realloc(p, len), p ? 0 : 1);
}

void km_sys_free(void *p)
{
	counted(p, -1);
	free(p);
}
