// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What of a guest's memory is to be saved, piece by piece: all of it, or what a dirty batch has. */
#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

#include "image/internal.h"

/* ---- which pages ---- */

/* The region of a batch's run is one of those given. */
static int find_region(struct ki_next *n, const struct kvmem_run *run)
{
	uint32_t count = n->w->region_count, i = n->region;

	/* Runs are sorted by region: it is mostly the one before. */
	for (uint32_t tries = 0; tries < count; tries++, i = (i + 1) % count)
		if (n->regions[i] == run->region)
			break;
	if (n->regions[i] != run->region)
		return ki_fail(EINVAL,
			       "kvmem_image_save: pages of a region that is none of regions");
	if (i != n->region)
		n->stored_at = n->stored_count = 0, n->record.bytes = 0;
	n->region = i;
	n->at = run->offset;
	n->end = run->offset + run->bytes;
	return 1;
}

/* The next run of pages that are to be saved: 1, or 0 at the end. */
static int next_run(struct ki_next *n)
{
	int64_t got;

	if (!n->batch && !n->runs) {
		if (n->end) /* all of a region is behind us */
			n->region++;
		n->stored_at = n->stored_count = 0;
		n->at = 0;
		n->end = n->region < n->w->region_count ? n->w->regions[n->region].bytes : 0;
		return n->end != 0;
	}
	if (n->runs)
		return n->run_at < n->run_count ? find_region(n, &n->runs[n->run_at++]) : 0;
	if (n->dirty_at == n->dirty_count) {
		got = kvmem_batch_runs(n->batch, n->dirty, KI_RUNS);
		if (got <= 0)
			return (int)got;
		n->dirty_count = (uint32_t)got;
		n->dirty_at = 0;
	}
	return find_region(n, &n->dirty[n->dirty_at++]);
}

int ki_next_check(const struct ki_next *n)
{
	for (uint64_t i = 0; i < n->run_count; i++) {
		const struct kvmem_run *run = &n->runs[i];
		uint64_t bytes;
		uint32_t k = 0;

		while (k < n->w->region_count && n->regions[k] != run->region)
			k++;
		bytes = k < n->w->region_count ? n->w->regions[k].bytes : 0;
		if (!bytes || (run->offset | run->bytes) % KI_PAGE || !run->bytes ||
		    run->offset > bytes || run->bytes > bytes - run->offset)
			return ki_fail(EINVAL,
				       "kvmem_image_save_opts: runs[%" PRIu64 "]: 0x%" PRIx64
				       " bytes at offset 0x%" PRIx64
				       " are no whole pages of one of regions",
				       i, run->bytes, run->offset);
	}
	return 0;
}

/* ---- what they hold ---- */

/* Of all that is to be saved the kernel is asked, many runs at once. */
static int by_survey(struct ki_next *n, struct ki_piece *p)
{
	const struct kvmem_stored *s;

	/* Runs of the caller's come in any order. */
	if (n->stored_at < n->stored_count && n->at < n->stored[n->stored_at].offset)
		n->stored_at = n->stored_count = 0;
	while (n->stored_at < n->stored_count &&
	       n->stored[n->stored_at].offset + n->stored[n->stored_at].bytes <= n->at)
		n->stored_at++;
	if (n->stored_at == n->stored_count) {
		int64_t got = kvmem_region_stored(p->region, n->at, n->end - n->at, n->stored,
						  KI_RUNS);

		if (got < 0)
			return (int)got;
		n->stored_count = (uint32_t)got;
		n->stored_at = 0;
	}
	s = &n->stored[n->stored_at];
	p->kind = s->kind;
	p->bytes = s->offset + s->bytes - n->at;
	return 0;
}

/*
 * Pages that the record does not have: would a pager fill them? Of an absent page the kind tells. A page of another
 * kind may have been filled since the record was read: then it tells nothing of its neighbours. 1: the record says
 * something else by now.
 */
static int ask_whether_paged(struct ki_next *n, const struct ki_piece *p)
{
	struct kvmem_stored one;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	int64_t got = kvmem_region_stored(p->region, n->at, page, &one, 1);
	int r;

	if (got < 0)
		return (int)got;
	n->paged = one.kind == KVMEM_STORED_ABSENT;
	if (n->paged)
		return 0;
	r = kvmem_region_next_run(p->region, n->at, &n->record, &n->record_state);
	return r < 0 ? r : n->record_state != KVMEM_PAGE_ABSENT;
}

static int look_up_record(struct ki_next *n, const struct ki_piece *p)
{
	int r;

	do {
		r = kvmem_region_next_run(p->region, n->at, &n->record, &n->record_state);
		if (r >= 0)
			r = n->record_state == KVMEM_PAGE_ABSENT ? ask_whether_paged(n, p) : 0;
	} while (r > 0);
	if (r < 0)
		n->record.bytes = 0;
	return r;
}

/*
 * A page of a batch was written: if the record does not know of it, it is there all the same. So the kernel is asked
 * only of pages that were zero, which may be discarded since, and of those that are just being filled: some of them may
 * be there already, and written to. What a save costs follows from what is dirty.
 */
static int by_record(struct ki_next *n, struct ki_piece *p)
{
	struct kvmem_run *rec = &n->record;

	if (!rec->bytes || n->at < rec->offset || n->at >= rec->offset + rec->bytes) {
		int r = look_up_record(n, p);

		if (r)
			return r;
	}
	p->bytes = rec->offset + rec->bytes - n->at;
	switch (n->record_state) {
	case KVMEM_PAGE_PRESENT:
		p->kind = KVMEM_STORED_DATA;
		return 0;
	case KVMEM_PAGE_POISONED:
		p->kind = KVMEM_STORED_POISONED;
		return 0;
	case KVMEM_PAGE_ABSENT:
		p->kind = n->paged ? KVMEM_STORED_ABSENT : KVMEM_STORED_DATA;
		return 0;
	default: /* ZERO, FILLING */
		return by_survey(n, p);
	}
}

/* From its first run on, whatever the caller has looked at before. */
int ki_next_begin(struct ki_next *n)
{
	int64_t got = n->batch != NULL;

	while (got > 0)
		got = kvmem_batch_runs(n->batch, n->dirty, KI_RUNS);
	return (int)got;
}

int ki_next_piece(struct ki_next *n, struct ki_piece *ret)
{
	int r = n->at < n->end ? 1 : n->over ? 0 : next_run(n);

	n->over = r <= 0; /* else the batch would begin again */
	if (r <= 0)
		return r;
	ret->region = n->regions[n->region];
	ret->from = n->at;
	ret->to = n->w->regions[n->region].offset + n->at;
	r = n->batch || n->runs ? by_record(n, ret) : by_survey(n, ret);
	if (r)
		return r;
	ret->bytes = ki_min(ret->bytes, n->end - n->at);
	if (ret->kind == KVMEM_STORED_DATA || ret->kind == KVMEM_STORED_ABSENT)
		ret->bytes = ki_min(ret->bytes, KI_PIECE - ret->to % KI_PIECE);
	n->at += ret->bytes;
	return 1;
}
