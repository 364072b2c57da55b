// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* With all actors parked: what is stored of each page, and what the library reads of it, is as the model has it. */
#include "torture.h"

#include <errno.h>
#include <string.h>

#define RUNS 16u

static void check_stored(struct area *area, uint32_t page, uint32_t kind)
{
	const struct page *p = &area->page[page];
	unsigned char content[PAGE] = { 0 };

	switch (kind) {
	case KVMEM_STORED_ZERO:
		break;
	case KVMEM_STORED_ABSENT:
		source_content(area->sources[p->generation], source_offset_of(area, page), content,
			       PAGE);
		break;
	case KVMEM_STORED_DATA:
		must(kvmem_region_read(area->region, (uint64_t)page * PAGE, content, PAGE));
		break;
	default:
		fail(area, page, "area %d page %u is stored as kind %u", area->index, page, kind);
	}
	if (!page_matches(area, page, content))
		fail_content(area, page, content, "what is stored");
	count(COUNT_SAVED, 1);
}

static void save_stored(struct area *area)
{
	uint64_t bytes = (uint64_t)area->pages * PAGE;
	struct kvmem_stored runs[RUNS];

	for (uint64_t at = 0; at < bytes;) {
		int64_t n = must(kvmem_region_stored(area->region, at, bytes - at, runs, RUNS));

		for (int64_t i = 0; i < n; i++) {
			if (runs[i].offset != at || !runs[i].bytes)
				fail(area, (int64_t)(at / PAGE), "what is stored has a gap");
			for (; at < runs[i].offset + runs[i].bytes; at += PAGE)
				check_stored(area, (uint32_t)(at / PAGE), runs[i].kind);
		}
	}
}

void save_pause(struct round *round, struct thread *thread)
{
	park_actors(round);
	op_begin(thread, OP_SAVE, NULL, 0, 0, 0);
#ifdef TORTURE_IMAGES
	if (!one_in(&round->rng, 3))
		save_image(round, thread);
	else
#endif
		for (unsigned int i = 0; i < round->areas; i++)
			save_stored(&round->area[i]);
	op_end(thread, 0);
	unpark_actors(round);
}
