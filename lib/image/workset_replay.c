// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A working set, given to a pager piece by piece: while one piece is being filled the next one waits already, so that
 * no worker is idle between them. The data are read ahead by threads of its own.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "image/workset.h"

#define PIECE_RANGES  1024u
#define PIECE_BYTES   (8u << 20)
#define UNDER_WAY     4u /* pieces that the pager has */
#define AHEAD_BYTES   (64u << 20)
#define AHEAD_THREADS 4u
#define STRETCH_BYTES (256u << 10) /* that a thread reads before it looks again */

struct replay {
	const struct kvmem_workset *w;
	struct kvmem_pager *pager;
	struct kw_memory memory;
	struct kvmem_replay_opts o;
	struct kvmem_replay_result result;
	uint64_t next;				 /* range that comes next ... */
	uint32_t at;				 /* ... and how much of it is done, in pages */
	struct kvmem_ticket *tickets[UNDER_WAY]; /* a ring; NULL: no piece */
	uint32_t ticket;
	/* Reading ahead. */
	pthread_t thread[AHEAD_THREADS];
	uint32_t threads;
	pthread_mutex_t lock; /* what follows */
	pthread_cond_t moved;
	uint64_t ahead_next; /* range that is read next ... */
	uint64_t ahead_done; /* ... and bytes of the set that come before it */
	uint64_t done;	     /* that the pager has been given */
	bool over;
};

/* ---- reading ahead ---- */

/* Some ranges that one of the threads reads now. */
struct stretch {
	uint64_t first, end;
};

/* The next ones, when the pager is not further behind than it may be. False: there are none, or it is over. */
static bool next_stretch(struct replay *r, struct stretch *ret)
{
	uint64_t room = r->o.ahead_bytes ? r->o.ahead_bytes : AHEAD_BYTES, bytes = 0;
	bool over;

	pthread_mutex_lock(&r->lock);
	while (!r->over && r->ahead_done > r->done && r->ahead_done - r->done > room)
		pthread_cond_wait(&r->moved, &r->lock);
	ret->first = r->ahead_next;
	while (r->ahead_next < r->w->count && bytes < STRETCH_BYTES) {
		const struct kw_range *range = &r->w->ranges[r->ahead_next++];

		if (!kw_left_out(range, r->o.sample))
			bytes += (uint64_t)range->pages << KI_PAGE_SHIFT;
	}
	ret->end = r->ahead_next;
	over = r->over || ret->first == ret->end ||
	       (r->o.max_bytes && r->ahead_done >= r->o.max_bytes);
	r->ahead_done += bytes;
	pthread_mutex_unlock(&r->lock);
	return !over;
}

static void *read_ahead(void *arg)
{
	struct replay *r = arg;
	struct stretch s;

	while (next_stretch(r, &s))
		for (uint64_t i = s.first; i < s.end; i++) {
			const struct kw_range *range = &r->w->ranges[i];

			/* A hint of a hint: what cannot be read is an error of the pager's source later. */
			if (!kw_left_out(range, r->o.sample))
				kvmem_image_prefetch(r->o.image,
						     (uint64_t)range->page << KI_PAGE_SHIFT,
						     (uint64_t)range->pages << KI_PAGE_SHIFT);
		}
	return NULL;
}

/* Without those that cannot be had. Of many small ranges one thread cannot ask fast enough for what a disk can do. */
static void start_ahead(struct replay *r)
{
	uint32_t most = r->o.image ? ki_workers(0) : 0;
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (r->threads < most && r->threads < AHEAD_THREADS &&
	       !pthread_create(&r->thread[r->threads], NULL, read_ahead, r)) {
		pthread_setname_np(r->thread[r->threads], "kvmem-ahead");
		r->threads++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void move(struct replay *r, uint64_t bytes, bool over)
{
	pthread_mutex_lock(&r->lock);
	r->done += bytes;
	r->over |= over;
	pthread_cond_broadcast(&r->moved);
	pthread_mutex_unlock(&r->lock);
}

/* ---- pieces ---- */

static uint32_t region_of(const struct kw_memory *m, uint64_t page)
{
	uint32_t low = 0, high = m->count - 1;

	while (low < high) {
		uint32_t mid = low + (high - low + 1) / 2;

		if (m->first[mid] <= page)
			low = mid;
		else
			high = mid - 1;
	}
	return low;
}

struct piece {
	struct kvmem_range ranges[PIECE_RANGES];
	uint32_t count;
	uint32_t region;
	uint64_t bytes; /* of the set */
};

/* Whole pages of the region: huge ones are larger than what the set has. */
static void add_range(struct piece *p, uint64_t offset, uint64_t bytes, uint64_t page)
{
	uint64_t first = offset & ~(page - 1), end = (offset + bytes + page - 1) & ~(page - 1);
	struct kvmem_range *last = p->count ? &p->ranges[p->count - 1] : NULL;

	p->bytes += bytes;
	if (last && first >= last->offset && end <= last->offset + last->bytes)
		return; /* the same huge page */
	p->ranges[p->count++] = (struct kvmem_range){ .offset = first, .bytes = end - first };
}

/* Ranges of one region, up to what a piece holds. */
static bool next_piece(struct replay *r, struct piece *p)
{
	const struct kw_memory *m = &r->memory;

	p->count = 0;
	p->bytes = 0;
	while (r->next < r->w->count && p->count < PIECE_RANGES && p->bytes < PIECE_BYTES) {
		const struct kw_range *range = &r->w->ranges[r->next];
		uint64_t page = (uint64_t)range->page + r->at,
			 end = (uint64_t)range->page + range->pages;
		uint32_t i = region_of(m, page);
		uint64_t here = i + 1 < m->count ? m->first[i + 1] : m->pages;

		if (kw_left_out(range, r->o.sample)) {
			r->result.bytes_left_out += (uint64_t)range->pages << KI_PAGE_SHIFT;
			r->next++;
			continue;
		}
		if (p->count && i != p->region)
			break;
		p->region = i;
		end = ki_min(ki_min(end, here), page + PIECE_BYTES / KI_PAGE);
		add_range(p, (page - m->first[i]) << KI_PAGE_SHIFT, (end - page) << KI_PAGE_SHIFT,
			  kvmem_region_page_size(m->regions[i]));
		r->at += (uint32_t)(end - page);
		if (r->at == range->pages) {
			r->at = 0;
			r->next++;
		}
	}
	return p->count;
}

static bool is_enough(const struct replay *r)
{
	return r->o.max_bytes && r->result.bytes >= r->o.max_bytes;
}

/* The oldest piece under way is in, or has failed: nobody waits for it, a fault will tell. */
static void wait_for(struct replay *r)
{
	struct kvmem_ticket **t = &r->tickets[r->ticket % UNDER_WAY];

	if (!*t)
		return;
	kvmem_ticket_wait(*t, -1, NULL);
	kvmem_ticket_free(*t);
	*t = NULL;
}

static int tell(struct replay *r)
{
	struct kvmem_image_progress p = { .size = sizeof(p),
					  .done = r->result.bytes,
					  .total = r->w->pages << KI_PAGE_SHIFT };

	if (!r->o.progress || !r->o.progress(r->o.arg, &p))
		return 0;
	return ki_fail(ECANCELED, "kvmem_workset_replay: canceled by progress");
}

static int replay(struct replay *r)
{
	struct piece *p = malloc(sizeof(*p));
	int err = p ? 0 : ki_fail(ENOMEM, "kvmem_workset_replay: no memory");

	while (!err && !is_enough(r) && next_piece(r, p)) {
		wait_for(r);
		err = kvmem_pager_prefetch(r->pager, r->memory.regions[p->region], p->ranges,
					   p->count, NULL, &r->tickets[r->ticket % UNDER_WAY]);
		r->ticket++;
		if (err)
			break;
		r->result.bytes += p->bytes;
		move(r, p->bytes, false);
		err = tell(r);
	}
	for (uint32_t i = 0; i < UNDER_WAY; i++, r->ticket++) {
		if (err) /* what has not been begun is left */
			kvmem_ticket_free(r->tickets[r->ticket % UNDER_WAY]);
		else
			wait_for(r);
	}
	free(p);
	return err;
}

/* ---- the call ---- */

static int run(struct replay *r)
{
	struct kvmem_pager_stats before = KVMEM_PAGER_STATS_INIT, after = KVMEM_PAGER_STATS_INIT;
	uint64_t begin = ki_now_ns();
	int err = kvmem_pager_get_stats(r->pager, &before);

	if (err)
		return err;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->moved, NULL);
	start_ahead(r);
	err = replay(r);
	move(r, 0, true);
	for (uint32_t i = 0; i < r->threads; i++)
		pthread_join(r->thread[i], NULL);
	pthread_cond_destroy(&r->moved);
	pthread_mutex_destroy(&r->lock);
	if (!err)
		err = kvmem_pager_get_stats(r->pager, &after);
	r->result.pages_filled = after.pages_prefetch - before.pages_prefetch;
	r->result.faults = after.faults_missing + after.faults_minor - before.faults_missing -
			   before.faults_minor;
	r->result.ns = ki_now_ns() - begin;
	return err;
}

int kvmem_workset_replay(struct kvmem_workset *workset, struct kvmem_pager *pager,
			 struct kvmem_region *const *regions, uint32_t region_count,
			 const struct kvmem_replay_opts *opts,
			 struct kvmem_replay_result *ret_result)
{
	struct replay r = { .w = workset, .pager = pager };
	int err;

	if (!workset || !pager)
		return ki_fail(EINVAL, "kvmem_workset_replay: %s is NULL",
			       workset ? "pager" : "workset");
	err = kvmem_opts_copy(&r.o, sizeof(r.o), sizeof(r.o), opts, "kvmem_replay_opts");
	if (!err && ret_result)
		err = kvmem_result_check(ret_result, sizeof(r.result), "kvmem_replay_result");
	if (!err)
		err = kw_memory_make("kvmem_workset_replay", regions, region_count, &r.memory);
	if (err)
		return err;
	if (r.memory.pages != workset->memory_pages ||
	    (r.o.image && r.o.image->bytes >> KI_PAGE_SHIFT != workset->memory_pages))
		err = ki_fail(EINVAL,
			      "kvmem_workset_replay: the set is of 0x%" PRIx64
			      " bytes of memory, regions or image have another length",
			      workset->memory_pages << KI_PAGE_SHIFT);
	if (!err) {
		workset->sample = r.o.sample;
		if (r.o.image) /* progress cannot close it */
			atomic_fetch_add(&r.o.image->users, 1);
		err = run(&r);
		if (r.o.image)
			atomic_fetch_sub(&r.o.image->users, 1);
		if (err)
			err = ki_fail_as("kvmem_workset_replay", err);
	}
	kw_memory_free(&r.memory);
	if (!err && ret_result)
		kvmem_result_copy(ret_result, &r.result, sizeof(r.result));
	return err;
}
