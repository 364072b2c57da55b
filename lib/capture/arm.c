// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The pause: what each page is, and protection of those that have content. By chunks, in several threads at once, since
 * the kernel takes the lock of the address space for reading.
 *
 * In anonymous memory protection leaves nothing where there is no page, so a chunk is one call. In a file it leaves
 * markers: of a region without a pager they are wanted, since nobody knows at the pause which pages exist (the file
 * tells later, page by page); under a pager only pages that have content are protected, and small gaps between them.
 */
#include "capture/capture_internal.h"

#include <errno.h>
#include <inttypes.h>

#define GAP_PAGES 64u /* to protect them costs no more than another call */
/* The same where they exist, and a write to each of them is one more event. */
#define GAP_IN_RUNS 12u

static int protect(struct km_captured *p, uint64_t first, uint64_t count)
{
	int r = km_watch_set_wp(p->guard.watch, first, count, true);

	if (!r)
		return 0;
	return km_fail(-r,
		       "%s: UFFDIO_WRITEPROTECT of 0x%" PRIx64 " bytes at offset 0x%" PRIx64 ": %m",
		       p->capture->call, count << p->shift, first << p->shift);
}

/* Behind `page`: the end of data and of gaps that are small; `end` when there is no other data. */
static uint64_t end_of_run(const struct km_captured *p, uint64_t page, uint64_t end)
{
	enum km_record_state state;
	uint64_t gap = p->in_runs ? GAP_IN_RUNS : GAP_PAGES, data_end = page, n;

	for (; page < end && page - data_end <= gap; page += n) {
		n = km_record_run(&p->record, page, end - page, &state);
		if (state == KM_RECORD_DATA)
			data_end = page + n;
	}
	return data_end;
}

static int protect_data(struct km_captured *p, uint64_t page, uint64_t end, bool whole)
{
	enum km_record_state state;
	int r = 0;

	for (uint64_t n; !r && page < end; page += n) {
		n = km_record_run(&p->record, page, end - page, &state);
		if (state != KM_RECORD_DATA)
			continue;
		n = whole ? end - page : end_of_run(p, page, end) - page;
		r = protect(p, page, n);
	}
	return r;
}

static int look_at_data(struct km_captured *p, uint64_t page, uint64_t end)
{
	enum km_record_state state;
	int r = 0;

	for (uint64_t n; !r && page < end; page += n) {
		n = km_record_run(&p->record, page, end - page, &state);
		if (state == KM_RECORD_DATA)
			r = km_content_kinds(p, page, n);
	}
	return r;
}

static int arm_chunk(struct km_captured *p, uint64_t chunk)
{
	uint64_t first = chunk * p->chunk, end = km_min(p->pages, first + p->chunk);
	int r = look_at_data(p, first, end);

	return r ? r : protect_data(p, first, end, !p->in_runs && (!p->watched || p->by_pages));
}

static struct km_captured *part_of(const struct kvmem_capture *c, uint64_t chunk)
{
	size_t i = c->part_count - 1;

	while (c->parts[i]->first_chunk > chunk)
		i--;
	return c->parts[i];
}

void km_arm_help(struct kvmem_capture *c)
{
	struct km_captured *p;
	uint64_t chunk;
	int r, none;

	while ((chunk = atomic_fetch_add(&c->next_chunk, 1)) < c->chunks) {
		p = part_of(c, chunk);
		r = 0;
		/* Events of a pager may be read here; `complete` waits until kvmem_capture_start() holds nothing. */
		km_presence_defer();
		if (!atomic_load(&c->arm_error))
			r = arm_chunk(p, chunk - p->first_chunk);
		if (km_presence_defer_end())
			atomic_store(&c->whole, true);
		if (r) {
			pthread_mutex_lock(&c->lock);
			none = 0;
			if (atomic_compare_exchange_strong(&c->arm_error, &none, r))
				km_detail_save(&c->why);
			pthread_mutex_unlock(&c->lock);
		}
		if (atomic_fetch_add(&c->chunks_done, 1) + 1 == c->chunks)
			km_capture_changed(c);
	}
}

int km_arm(struct kvmem_capture *c)
{
	atomic_store(&c->next_chunk, 0);
	if (c->chunks > 1)
		km_capture_kick_all(c);
	km_arm_help(c);
	pthread_mutex_lock(&c->lock);
	atomic_fetch_add(&c->waiters, 1);
	while (atomic_load(&c->chunks_done) < c->chunks)
		pthread_cond_wait(&c->changed, &c->lock);
	atomic_fetch_sub(&c->waiters, 1);
	pthread_mutex_unlock(&c->lock);
	if (atomic_load(&c->arm_error)) {
		km_detail_restore(&c->why);
		return atomic_load(&c->arm_error);
	}
	for (size_t i = 0; i < c->part_count; i++)
		atomic_store(&c->parts[i]->armed, true);
	return 0;
}
