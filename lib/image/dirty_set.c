// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Which pages a capture of a difference has. A capture is of whole pages of a region; where these are larger than those
 * in which writes are told, bits tell which part of them goes into the image. A bit a page needs no order of the runs.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "image/internal.h"

#define ROOM	 4096u
#define PER_WORD 64u

/* ---- made ---- */

static int make_room(struct ki_dirty_set *s, uint64_t *room)
{
	struct kvmem_run *more;

	if (*room - s->run_count >= ROOM)
		return 0;
	*room = *room ? 2 * *room : 2 * (uint64_t)ROOM;
	more = realloc(s->of_batch, *room * sizeof(*more));
	if (!more)
		return ki_fail(ENOMEM,
			       "kvmem_image_capture_start_dirty: no memory for %" PRIu64 " runs",
			       *room);
	s->runs = s->of_batch = more;
	return 0;
}

static int take_batch(struct ki_dirty_set *s, struct kvmem_batch *batch)
{
	struct kvmem_run seen[PER_WORD];
	uint64_t room = 0;
	int64_t got;
	int r;

	/* From its first run on, whatever the caller has looked at before. */
	while ((got = kvmem_batch_runs(batch, seen, PER_WORD)) > 0)
		;
	if (got < 0)
		return (int)got;
	do {
		r = make_room(s, &room);
		if (r)
			return r;
		got = kvmem_batch_runs(batch, s->of_batch + s->run_count, room - s->run_count);
		if (got > 0)
			s->run_count += (uint64_t)got;
	} while (got > 0);
	return (int)got;
}

static int make_bits(struct ki_dirty_set *s, const struct kvmem_image_writer *w,
		     struct kvmem_region *const *regions)
{
	s->region_count = w->region_count;
	s->bits = calloc(w->region_count, sizeof(*s->bits));
	if (!s->bits)
		return ki_fail(ENOMEM, "kvmem_image_capture_start_dirty: no memory");
	for (uint32_t i = 0; i < w->region_count; i++) {
		uint64_t pages = w->regions[i].bytes >> KI_PAGE_SHIFT;

		if (kvmem_region_page_size(regions[i]) <= KI_PAGE)
			continue;
		s->bits[i] = calloc((pages + PER_WORD - 1) / PER_WORD, sizeof(uint64_t));
		if (!s->bits[i])
			return ki_fail(ENOMEM,
				       "kvmem_image_capture_start_dirty: no memory for the bits of "
				       "regions[%" PRIu32 "]",
				       i);
	}
	return 0;
}

/* Where it is one of the image's: others are refused by the capture. */
static void set_bits(struct ki_dirty_set *s, const struct kvmem_image_writer *w,
		     struct kvmem_region *const *regions, const struct kvmem_run *run)
{
	uint64_t page = run->offset >> KI_PAGE_SHIFT, end = page + (run->bytes >> KI_PAGE_SHIFT);

	for (uint32_t i = 0; i < w->region_count; i++) {
		if (regions[i] != run->region || !s->bits[i])
			continue;
		end = ki_min(end, w->regions[i].bytes >> KI_PAGE_SHIFT);
		for (; page < end; page++)
			s->bits[i][page / PER_WORD] |= UINT64_C(1) << page % PER_WORD;
	}
}

int ki_dirty_set_init(struct ki_dirty_set *s, const struct kvmem_image_writer *w,
		      struct kvmem_region *const *regions, struct kvmem_batch *batch,
		      const struct kvmem_image_save_opts *o)
{
	bool any = false;
	int r = 0;

	*s = (struct ki_dirty_set){ .runs = o->runs, .run_count = o->run_count };
	if (batch)
		r = take_batch(s, batch);
	if (!r)
		r = make_bits(s, w, regions);
	for (uint32_t i = 0; !r && i < w->region_count; i++)
		any |= s->bits[i] != NULL;
	for (uint64_t i = 0; any && i < s->run_count; i++)
		set_bits(s, w, regions, &s->runs[i]);
	return r;
}

void ki_dirty_set_destroy(struct ki_dirty_set *s)
{
	for (uint32_t i = 0; s->bits && i < s->region_count; i++)
		free(s->bits[i]);
	free((void *)s->bits);
	free(s->of_batch);
	*s = (struct ki_dirty_set){ 0 };
}

/* ---- asked ---- */

static bool has(const uint64_t *bits, uint64_t page)
{
	return bits[page / PER_WORD] >> page % PER_WORD & 1;
}

uint64_t ki_dirty_set_run(const struct ki_dirty_set *s, uint32_t region, uint64_t page,
			  uint64_t end, uint64_t *ret_page)
{
	const uint64_t *bits = s->bits ? s->bits[region] : NULL;
	uint64_t n = 0;

	while (bits && page < end && !has(bits, page))
		page++;
	*ret_page = page;
	if (!bits)
		return end - page;
	while (page + n < end && has(bits, page + n))
		n++;
	return n;
}
