// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Which pages are captured, where it is not all of them: what a dirty reader tells, e.g. */
#include "capture/capture_internal.h"

#include <errno.h>
#include <inttypes.h>

/* From the last one found on: runs are mostly sorted by region. `count` when it is none of them. */
static size_t find_region(const struct kvmem_run *run, struct kvmem_region *const *regions,
			  size_t count, size_t last)
{
	for (size_t tries = 0; tries < count; tries++, last = (last + 1) % count)
		if (regions[last] == run->region)
			return last;
	return count;
}

int km_capture_runs_check(const struct km_capture_runs *only, struct kvmem_region *const *regions,
			  size_t count)
{
	uint64_t page = km_sys_page_size(), bytes;
	size_t at = 0;

	if (!only->runs && only->count)
		return km_fail(EINVAL, "kvmem_capture_start_runs: runs is NULL");
	for (uint64_t i = 0; i < only->count; i++) {
		const struct kvmem_run *run = &only->runs[i];

		at = find_region(run, regions, count, at);
		if (at == count)
			return km_fail(EINVAL,
				       "kvmem_capture_start_runs: runs[%" PRIu64
				       "] is of a region that is none of regions",
				       i);
		bytes = atomic_load(&run->region->bytes);
		if ((run->offset | run->bytes) % page || !run->bytes || run->offset > bytes ||
		    run->bytes > bytes - run->offset)
			return km_fail(EINVAL,
				       "kvmem_capture_start_runs: runs[%" PRIu64 "]: 0x%" PRIx64
				       " bytes at offset 0x%" PRIx64
				       " are no whole pages of a region of 0x%" PRIx64 " bytes",
				       i, run->bytes, run->offset, bytes);
	}
	return 0;
}

static struct km_captured *part_of(const struct kvmem_capture *c, const struct kvmem_run *run,
				   size_t count, size_t *at)
{
	while (c->parts[*at]->region != run->region)
		*at = (*at + 1) % count;
	return c->parts[*at];
}

void km_capture_runs_apply(struct kvmem_capture *c, size_t count,
			   const struct km_capture_runs *only)
{
	size_t at = 0;

	for (size_t i = 0; i < count; i++) {
		c->parts[i]->in_runs = true;
		km_record_exclude_all(&c->parts[i]->record);
	}
	for (uint64_t i = 0; i < only->count; i++) {
		const struct kvmem_run *run = &only->runs[i];
		struct km_captured *p = part_of(c, run, count, &at);
		uint64_t first = run->offset >> p->shift;

		km_record_include(&p->record, first,
				  ((run->offset + run->bytes - 1) >> p->shift) + 1 - first);
	}
}
