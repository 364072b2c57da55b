/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef PREFETCH_H
#define PREFETCH_H

/* Prefetch of runs, each of its region, without a ticket. */

#include <kvmem/kvmem.h>

static inline int prefetch_runs(struct kvmem_pager *pager, const struct kvmem_run *runs,
				size_t count)
{
	int r = 0;

	for (size_t i = 0; !r && i < count; i++)
		r = kvmem_pager_prefetch(pager, runs[i].region,
					 &(struct kvmem_range){ runs[i].offset, runs[i].bytes }, 1,
					 NULL, NULL);
	return r;
}

#endif
