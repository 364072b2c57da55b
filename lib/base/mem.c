// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include <errno.h>
#include <sys/mman.h>

#include "base/base.h"
#include "base/uapi/mm.h"

int64_t km_mem_drop(void *addr, size_t bytes)
{
	int64_t r = km_sys_madvise(addr, bytes, MADV_DONTNEED);

	return r == -EINVAL ? km_sys_madvise(addr, bytes, KM_MADV_DONTNEED_LOCKED) : r;
}
