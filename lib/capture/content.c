// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What a page was at the pause, and its content.
 *
 * Of memory with a file that we have open content is read from the file: a hole reads as zeros and stays one, nothing
 * is mapped, and no fault is raised. Else it is copied by the kernel out of the mapping, and only where a page exists:
 * an absent page under a pager would wait for the pager, which may be this thread.
 *
 * Who takes pages of private memory away (madvise(2)) takes their protection too, which pagemap shows. Content that was
 * copied and is protected still has been there all the time.
 */
#include "capture/capture_internal.h"

#include <errno.h>
#include <inttypes.h>

#define PRESENT	   (1ull << 63)
#define SWAPPED	   (1ull << 62)
#define GUARD_PAGE (1ull << 58)
#define PROTECTED  (1ull << 57) /* by a userfaultfd: the page, or the marker where there is none */
#define PER_READ   1024u	/* entries of pagemap */

/* ---- pagemap ---- */

/* `count` at most PER_READ. 0 or -errno with the detail set. */
static int read_pagemap(const struct km_captured *p, uint64_t page, uint64_t count,
			uint64_t *entries)
{
	uint64_t at = (uintptr_t)km_captured_at(p, page) / km_sys_page_size();
	size_t bytes = count * sizeof(*entries);
	int64_t n = km_sys_pread(p->capture->pagemap, entries, bytes, at * sizeof(*entries));

	if (n == (int64_t)bytes)
		return 0;
	return km_fail(n < 0 ? (int)-n : EIO, "capture: reading /proc/self/pagemap: %s",
		       n < 0 ? "%m" : "it ends early");
}

/* A page in swap, or one that another thread has armed and swap has taken: markers are not left in anonymous memory. */
static bool exists(uint64_t entry)
{
	return entry & PRESENT || (entry & SWAPPED && !(entry & GUARD_PAGE));
}

/* Those of the run that do not exist are zero. */
static int kinds_by_pagemap(struct km_captured *p, uint64_t first, uint64_t count)
{
	uint64_t entries[PER_READ], n, run;
	int r;

	for (; count; first += n, count -= n) {
		n = km_min(count, PER_READ);
		r = read_pagemap(p, first, n, entries);
		if (r)
			return r;
		for (uint64_t i = 0; i < n; i += run) {
			bool there = exists(entries[i]);

			for (run = 1; i + run < n && exists(entries[i + run]) == there; run++)
				;
			if (!there)
				km_record_assign(&p->record, first + i, run, KM_RECORD_ZERO);
		}
	}
	return 0;
}

/* ---- kinds ---- */

/*
 * Under a pager the library's record is the truth: what it has as ABSENT, or is just being filled, had no content at
 * the pause that anybody could have seen (km_guard_settle()); where it was REMOVED meanwhile, it is zero. Without one
 * only its marks of poison count: a guest writes where it wants.
 */
static void kinds_by_presence(struct km_captured *p, uint64_t first, uint64_t count)
{
	const struct km_presence *map = &p->region->presence;
	enum km_page_state state;

	if (!p->watched && !km_presence_poisoned(map))
		return;
	for (uint64_t n; count; first += n, count -= n) {
		n = km_presence_run(map, first, count, &state);
		if (p->watched && state == KM_CLAIMED) {
			n = 1;
			state = km_presence_zero(map, first) ? KM_ZERO : KM_ABSENT;
		}
		if (state == KM_POISONED)
			km_record_assign(&p->record, first, n, KM_RECORD_POISONED);
		else if (p->watched && state == KM_ZERO)
			km_record_assign(&p->record, first, n, KM_RECORD_ZERO);
		else if (p->watched && state != KM_PRESENT)
			km_record_assign(&p->record, first, n, KM_RECORD_ABSENT);
	}
}

/* Of a clone, what lies over the template is anonymous memory; template pages exist, all of them. */
static int kinds_of_clone(struct km_captured *p, uint64_t first, uint64_t count)
{
	struct kvmem_region *r = p->region;
	int err = 0;
	bool over;

	for (uint64_t n; count && !err; first += n, count -= n) {
		pthread_mutex_lock(&r->lock);
		n = km_clone_run(r->clone, first, count, &over);
		pthread_mutex_unlock(&r->lock);
		if (over)
			err = kinds_by_pagemap(p, first, n);
	}
	return err;
}

int km_content_kinds(struct km_captured *p, uint64_t first, uint64_t count)
{
	kinds_by_presence(p, first, count);
	if (p->region->clone)
		return p->by_pages ? kinds_of_clone(p, first, count) : 0;
	return p->by_pages ? kinds_by_pagemap(p, first, count) : 0;
}

/* ---- holes ---- */

/* The extent is remembered: SEEK_HOLE goes through all of it. */
static bool look(struct km_captured *p, uint64_t page)
{
	uint64_t first, end;
	int64_t found;

	if (page >= p->data_first && page < p->data_end)
		return true;
	found = km_next_extent(p->region, page << p->shift, &first, &end);
	if (found < 0)
		return false;
	p->data_first = found ? first >> p->shift : p->pages;
	p->data_end = found ? end >> p->shift : p->pages;
	return true;
}

uint64_t km_content_hole(struct km_captured *p, uint64_t first, uint64_t max, uint64_t *ret_data)
{
	uint64_t hole = 0;

	*ret_data = max;
	if (!p->seeks)
		return 0;
	pthread_mutex_lock(&p->capture->lock);
	if (look(p, first)) {
		if (first < p->data_first)
			hole = km_min(max, p->data_first - first);
		else if (first < p->data_end)
			*ret_data = km_min(max, p->data_end - first);
	}
	pthread_mutex_unlock(&p->capture->lock);
	return hole;
}

/* ---- content ---- */

static int read_file(struct km_captured *p, uint64_t first, uint64_t count, uint8_t *buf)
{
	uint64_t at = p->region->fd_offset + (first << p->shift), bytes = count << p->shift;

	for (int64_t n; bytes; buf += n, at += (uint64_t)n, bytes -= (uint64_t)n) {
		n = km_sys_pread(p->region->fd, buf, bytes, at);
		if (n == -EIO || n == -EFAULT) /* a page that the hardware has lost */
			return -EFAULT;
		if (n <= 0)
			return km_fail(n ? (int)-n : ENODATA,
				       "capture: reading the region's file at 0x%" PRIx64 ": %s",
				       at, n ? "%m" : "it has been cut short");
	}
	return 0;
}

static int lost(const struct km_captured *p, uint64_t page)
{
	if (!km_capture_goes_on(p->capture)) /* nothing is protected any more */
		return -ECANCELED;
	return km_fail(
		EIO,
		"capture: the page at offset 0x%" PRIx64
		" of the region was taken away by others before it was saved: memory is given "
		"back by kvmem_region_discard()",
		page << p->shift);
}

/* All of them are protected as they were at the pause. */
static int check(const struct km_captured *p, uint64_t first, uint64_t count)
{
	uint64_t entries[KM_COPY_PAGES], n;
	int r = 0;

	if (!p->checks || !atomic_load(&p->armed))
		return 0;
	for (; !r && count; first += n, count -= n) {
		n = km_min(count, KM_COPY_PAGES);
		r = read_pagemap(p, first, n, entries);
		for (uint64_t i = 0; !r && i < n; i++)
			if (!(entries[i] & PROTECTED))
				r = lost(p, first + i);
	}
	return r;
}

static int copy(struct km_captured *p, uint64_t first, uint64_t count, void *buf)
{
	int r;

	if (p->by_fd)
		return read_file(p, first, count, buf);
	r = check(p, first, count);
	if (r)
		return r;
	r = km_copy(buf, km_captured_at(p, first), count << p->shift);
	if (r == -EFAULT)
		return r;
	if (r)
		return km_fail(-r, "capture: copying 0x%" PRIx64 " bytes: %m", count << p->shift);
	return check(p, first, count);
}

int km_content_copy(struct km_captured *p, uint64_t first, uint64_t count, void *buf)
{
	int r = copy(p, first, count, buf);

	/* Said before protection is taken away: what was copied before it was said was protected all the time. */
	return !r && !km_capture_goes_on(p->capture) ? -ECANCELED : r;
}
