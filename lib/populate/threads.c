// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* How many threads fill. */
#include "populate/populate_internal.h"

#define AUTO_THREADS 8u		 /* beyond, they wait for each other in the kernel */
#define AUTO_SHARE   (16u << 20) /* bytes that make another thread worth its start */

unsigned int km_fill_threads(uint32_t asked, uint64_t bytes, uint64_t units)
{
	uint64_t n = asked;

	if (!n) {
		n = km_min(1 + bytes / AUTO_SHARE, km_sys_cpus());
		n = km_min(n, AUTO_THREADS);
	}
	return (unsigned int)km_min(n, units);
}
