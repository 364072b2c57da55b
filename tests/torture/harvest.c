// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The thread that harvests, commits and copies, as a migration does. A page that was claimed before a harvest
 * begins, so that nobody writes it, must be in the copy with its last content once the batch is copied: it
 * was reported when it was written last, or later. Another thread has readers that come and go, and take from the
 * log what the harvester is to get all the same.
 */
#include "torture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AUDITS 4

static struct copy {
	unsigned char *bytes;
	uint8_t *
		valid; /* 0: not known what the copy has to be, until the page is copied or looked at */
} copies[MAX_AREAS];

void harvest_open(struct round *round)
{
	for (unsigned int i = 0; i < round->areas; i++) {
		struct area *area = &round->area[i];

		if (!area->tracked)
			continue;
		copies[i].bytes = malloc((size_t)area->pages * PAGE);
		copies[i].valid = calloc(area->pages, 1);
		if (!copies[i].bytes || !copies[i].valid)
			fail(NULL, -1, "no memory for the copy");
		for (uint32_t page = 0; page < area->pages; page++) {
			expected_page(area, page, area->page[page].base,
				      copies[i].bytes + (size_t)page * PAGE);
			copies[i].valid[page] = area->page[page].base != BASE_EITHER;
		}
	}
}

/* With a filter that names all regions, or without; or the one that every tracker has. */
void reader_open(struct round *round)
{
	struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;
	struct kvmem_region *regions[MAX_AREAS];

	round->reader = kvmem_dirty_reader(round->dirty);
	if (!allowed(OP_READER) || one_in(&round->rng, 2))
		return;
	o.regions = regions;
	for (unsigned int i = 0; i < round->areas; i++)
		regions[i] = round->area[i].region;
	o.region_count = one_in(&round->rng, 2) ? round->areas : 0;
	must(kvmem_dirty_reader_create(round->dirty, &o, &round->reader));
}

void reader_close(struct round *round)
{
	if (round->reader && round->reader != kvmem_dirty_reader(round->dirty))
		must(kvmem_reader_free(round->reader));
	round->reader = NULL;
}

void harvest_close(struct round *round)
{
	for (unsigned int i = 0; i < round->areas; i++) {
		free(copies[i].bytes);
		free(copies[i].valid);
	}
}

void harvest_forget(const struct area *area, uint32_t page)
{
	if (copies[area->index].valid)
		copies[area->index].valid[page] = 0;
}

/* A batch has brought it into an image. */
void harvest_saved(const struct area *area, uint32_t page, const void *content)
{
	memcpy(copies[area->index].bytes + (size_t)page * PAGE, content, PAGE);
	copies[area->index].valid[page] = 1;
}

/* ---- copying what is reported ---- */

static struct area *area_of(struct round *round, const struct kvmem_run *run)
{
	for (unsigned int i = 0; i < round->areas; i++)
		if (round->area[i].region == run->region)
			return &round->area[i];
	fail(NULL, -1, "a batch has a run of a region that is not there");
}

static void copy_pages(struct area *area, uint32_t first, uint32_t n)
{
	struct copy *copy = &copies[area->index];

	while (n) {
		uint32_t most = n < BUFFER_PAGES ? n : BUFFER_PAGES;
		uint32_t got = read_pages(area, first, most, copy->bytes + (size_t)first * PAGE);

		memset(copy->valid + first, 1, got);
		first += got;
		n -= got;
		if (got < most) {
			/* It is poisoned at this moment, or else somebody will find out. */
			copy->valid[first++] = 0;
			n--;
		}
	}
}

static uint64_t bits_of(const uint64_t *bitmap, uint64_t words)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < words; i++)
		n += (uint64_t)__builtin_popcountll(bitmap[i]);
	return n;
}

/* The same pages as the runs have. */
static void check_bitmaps(struct round *round, struct kvmem_batch *batch, uint64_t pages)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < round->areas; i++) {
		struct area *area = &round->area[i];
		uint64_t *bitmap = calloc(area->pages / 64 + 1, 8);

		must(kvmem_batch_bitmap(batch, area->region, 0, (uint64_t)area->pages * PAGE,
					bitmap));
		sum += bits_of(bitmap, area->pages / 64 + 1);
		free(bitmap);
	}
	if (sum != pages)
		fail(NULL, -1, "a batch of %llu pages has %llu bits", (unsigned long long)pages,
		     (unsigned long long)sum);
}

static void copy_batch(struct round *round, struct kvmem_batch *batch, uint64_t pages)
{
	struct area *last_area = NULL;
	struct kvmem_run run;
	uint64_t sum = 0, last = 0;

	while (must(kvmem_batch_next(batch, &run)) == 1) {
		struct area *area = area_of(round, &run);

		if (!run.bytes || run.offset % PAGE || run.bytes % PAGE ||
		    run.offset + run.bytes > (uint64_t)area->pages * PAGE)
			fail(area, -1, "a run of %llu bytes at %llu in a region of %u pages",
			     (unsigned long long)run.bytes, (unsigned long long)run.offset,
			     area->pages);
		if (area == last_area && run.offset <= last)
			fail(area, -1, "runs not in order, or not merged");
		if (!area->tracked)
			fail(area, -1, "a run of a region that is not tracked");
		last_area = area;
		last = run.offset + run.bytes;
		sum += run.bytes / PAGE;
		copy_pages(area, (uint32_t)(run.offset / PAGE), (uint32_t)(run.bytes / PAGE));
	}
	if (sum != pages || kvmem_batch_pages(batch) != pages)
		fail(NULL, -1, "harvest said %llu pages, the runs have %llu",
		     (unsigned long long)pages, (unsigned long long)sum);
}

/* Pages copied, or -1 when the batch was given back without a commit. */
static int64_t harvest(struct thread *thread, struct busy_ring *ring, bool may_give_back)
{
	struct round *round = thread->round;
	struct kvmem_batch *batch = NULL;
	int64_t pages, r;

	if (ring)
		busy_ring_arm(ring, &thread->rng);
	op_begin(thread, OP_HARVEST, NULL, 0, 0, 0);
	pages = must(kvmem_reader_harvest(round->reader, &batch));
	op_end(thread, pages);
	if (!pages && one_in(&thread->rng, 2)) {
		kvmem_batch_free(batch);
		return 0;
	}
	if (may_give_back && allowed(OP_UNCOMMITTED) && one_in(&thread->rng, 20)) {
		op_begin(thread, OP_UNCOMMITTED, NULL, 0, 0, (uint64_t)pages);
		kvmem_batch_free(batch);
		op_end(thread, 0);
		return -1;
	}
	if (may_give_back && allowed(OP_PENDING) && one_in(&thread->rng, 8)) {
		op_begin(thread, OP_PENDING, NULL, 0, 0, 0);
		op_end(thread, must(kvmem_reader_pending(round->reader, NULL)));
	}
	if (may_give_back && one_in(&thread->rng, 4))
		usleep((useconds_t)below(&thread->rng, 300));
	op_begin(thread, OP_COMMIT, NULL, 0, 0, (uint64_t)pages);
	r = must(kvmem_dirty_commit(round->dirty, batch));
	op_end(thread, r);
	if (may_give_back && allowed(OP_RETURN) && one_in(&thread->rng, 20)) {
		op_begin(thread, OP_RETURN, NULL, 0, 0, (uint64_t)pages);
		op_end(thread, must(kvmem_batch_return(batch)));
		return -1;
	}
	op_begin(thread, OP_AUDIT, NULL, 0, 0, (uint64_t)pages);
	copy_batch(round, batch, (uint64_t)pages);
	if (one_in(&thread->rng, 8))
		check_bitmaps(round, batch, (uint64_t)pages);
	op_end(thread, 0);
	kvmem_batch_free(batch);
	return pages;
}

/* ---- comparing ---- */

static void audit_page(struct area *area, uint32_t page)
{
	struct copy *copy = &copies[area->index];
	unsigned char *bytes = copy->bytes + (size_t)page * PAGE, now[PAGE];

	if (!copy->valid[page]) {
		copy->valid[page] = read_pages(area, page, 1, bytes) == 1;
		if (copy->valid[page] && !page_matches(area, page, bytes))
			fail_content(area, page, bytes, "harvester");
		return;
	}
	if (page_matches(area, page, bytes))
		return;
	if (read_pages(area, page, 1, now) == 1 && !page_matches(area, page, now))
		fail_content(area, page, now, "harvester");
	fail_content(area, page, bytes, "the copy of a page whose last change was not reported");
}

static void audit(const struct span *span)
{
	for (uint32_t i = 0; i < span->count; i++)
		audit_page(span->area, span->first + i);
	count(COUNT_HOST_PAGES, span->count);
}

static void harvest_and_audit(struct thread *thread, struct busy_ring *ring)
{
	struct span spans[AUDITS];
	unsigned int n = 0;

	for (unsigned int i = 0; i < AUDITS; i++) {
		struct area *area = &thread->round->area[below(&thread->rng, thread->round->areas)];

		if (area->tracked && claim(area, &thread->rng, CLAIM_SHARED, 0, 24, &spans[n]))
			n++;
	}
	if (harvest(thread, ring, true) >= 0)
		for (unsigned int i = 0; i < n; i++)
			audit(&spans[i]);
	while (n)
		unclaim(&spans[--n]);
}

static void restart(struct thread *thread)
{
	struct round *round = thread->round;

	op_begin(thread, OP_RESTART, NULL, 0, 0, 0);
	pthread_rwlock_wrlock(&round->dirty_gate);
	must(kvmem_dirty_stop(round->dirty));
	must(kvmem_dirty_start(round->dirty));
	for (unsigned int i = 0; i < round->areas; i++)
		if (round->area[i].tracked)
			memset(copies[i].valid, 0, round->area[i].pages);
	pthread_rwlock_unlock(&round->dirty_gate);
	op_end(thread, 0);
}

void harvester(struct thread *thread)
{
	struct busy_ring *ring = allowed(OP_URING) && one_in(&thread->rng, 2) ? busy_ring_open()
									      : NULL;
	static const unsigned int pauses_us[] = { 0, 0, 500, 3000, 20000, 60000 };
	uint64_t pause_us = pauses_us[below(&thread->rng, 6)];

	while (go_on(thread)) {
		harvest_and_audit(thread, ring);
		if (pause_us)
			usleep((useconds_t)below(&thread->rng, pause_us));
		if (allowed(OP_RESTART) && one_in(&thread->rng, 300))
			restart(thread);
	}
	busy_ring_close(ring);
}

/* ---- the others ---- */

static void other_batch(struct thread *thread, struct kvmem_reader *reader)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;
	uint64_t sum = 0;
	int64_t pages = must(kvmem_reader_harvest(reader, &batch));

	if (one_in(&thread->rng, 4)) {
		kvmem_batch_free(batch);
		return;
	}
	usleep((useconds_t)below(&thread->rng, 400));
	must(kvmem_dirty_commit(thread->round->dirty, batch));
	while (must(kvmem_batch_next(batch, &run)) == 1)
		sum += run.bytes / PAGE;
	if (sum != (uint64_t)pages)
		fail(NULL, -1, "another reader: harvest said %lld pages, the runs have %llu",
		     (long long)pages, (unsigned long long)sum);
	if (one_in(&thread->rng, 4))
		must(kvmem_batch_return(batch));
	else
		kvmem_batch_free(batch);
}

static void forget_some(struct thread *thread, struct kvmem_reader *reader)
{
	struct area *area = &thread->round->area[below(&thread->rng, thread->round->areas)];
	uint32_t first = (uint32_t)below(&thread->rng, area->pages);
	uint32_t n = (uint32_t)between(&thread->rng, 1, area->pages - first);

	op_begin(thread, OP_FORGET, area, first, n, 0);
	op_end(thread, must(kvmem_reader_forget(reader, area->region, (uint64_t)first * PAGE,
						(uint64_t)n * PAGE)));
}

static void use_reader(struct thread *thread)
{
	struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;
	struct round *round = thread->round;
	struct kvmem_region *only = round->area[below(&thread->rng, round->areas)].region;
	unsigned int uses = (unsigned int)below(&thread->rng, 12);
	struct kvmem_reader *reader;

	o.flags = one_in(&thread->rng, 3) ? KVMEM_READER_FIRST_ALL : 0;
	o.regions = &only;
	o.region_count = one_in(&thread->rng, 2);
	must(kvmem_dirty_reader_create(round->dirty, &o, &reader));
	for (unsigned int i = 0; i < uses; i++) {
		if (one_in(&thread->rng, 3))
			must(kvmem_reader_pending(reader, one_in(&thread->rng, 2) ? only : NULL));
		else if (allowed(OP_FORGET) && one_in(&thread->rng, 3))
			forget_some(thread, reader);
		else
			other_batch(thread, reader);
	}
	must(kvmem_reader_free(reader));
}

void other_reader(struct thread *thread)
{
	struct round *round = thread->round;

	while (go_on(thread)) {
		pthread_rwlock_rdlock(&round->dirty_gate);
		op_begin(thread, OP_READER, NULL, 0, 0, 0);
		if (round->tracking)
			use_reader(thread);
		op_end(thread, 0);
		pthread_rwlock_unlock(&round->dirty_gate);
		usleep((useconds_t)below(&thread->rng, 20000));
	}
}

void harvest_last(struct thread *thread)
{
	struct round *round = thread->round;

	for (unsigned int i = 0; i < 100 && harvest(thread, NULL, false); i++)
		;
	for (unsigned int i = 0; i < round->areas; i++) {
		struct span all = { &round->area[i], 0, round->area[i].pages, CLAIM_SHARED, 0 };

		if (all.area->tracked)
			audit(&all);
	}
}
