// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Sources that fail and recover, and pages that are poisoned meanwhile; sources that are slow. */
#include "actors.h"

#include <unistd.h>

/* The source has recovered: the pages get their content, and can be accessed. */
bool heal(struct thread *thread, struct span *span, bool by_discard)
{
	if (by_discard && allowed(OP_DISCARD) && span->area->unit == 1) {
		must(kvmem_region_discard(span->area->region, (uint64_t)span->first * PAGE,
					  (uint64_t)span->count * PAGE));
		model_zeroed(span);
	} else {
		must(populate_whole(thread, span));
	}
	for (uint32_t i = 0; i < span->count; i++)
		span->area->page[span->first + i].bad = 0;
	check_pages(span->area, span->first, span->count,
		    by_discard ? "healed by discard" : "healed");
	return true;
}

void poison(struct thread *thread)
{
	struct span span;

	if (!claim_some(thread, CLAIM_EXCLUSIVE, CLAIM_UNITS, 12, &span))
		return;
	if (!span.area->paged || span.area->source->kind != SOURCE_CALLBACK) {
		unclaim(&span);
		return;
	}
	begin(thread, OP_POISON, &span, 0);
	for (uint32_t i = 0; i < span.count; i++)
		span.area->page[span.first + i].bad = 1;
	source_fail(span.area->source, thread->index, source_offset_of(span.area, span.first),
		    (uint64_t)span.count * PAGE);
	if (one_in(&thread->rng, 2))
		check_pages(span.area, span.first, span.count, "host, at a source that fails");
	if (one_in(&thread->rng, 3))
		(void)populate_pages(thread, &span);
	usleep((useconds_t)below(&thread->rng, 500));
	source_recover(span.area->source, thread->index);
	heal(thread, &span, one_in(&thread->rng, 3));
	end(thread, &span, 0);
}

void slow(struct thread *thread)
{
	struct area *area = some_area(thread);

	op_begin(thread, OP_SLOW, area, 0, 0, 0);
	atomic_store(&area->source->slow_ns, between(&thread->rng, 20000, 1000000));
	usleep((useconds_t)below(&thread->rng, 5000));
	atomic_store(&area->source->slow_ns, 0);
	op_end(thread, 0);
}
