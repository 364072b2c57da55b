// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* First touches, out of a pager's trace. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "image/workset.h"

#define ENTRIES		256u
#define DEFAULT_WINDOW	30000000000ull
#define DEFAULT_SETTLED 2000000000ull

struct kvmem_recorder {
	struct kw_memory memory;
	struct kvmem_recorder_opts o;
	struct kvmem_recorder_stats stats;
	uint64_t last_ns;  /* the last new touch */
	uint64_t *touched; /* a bit for each page */
	uint32_t *order;   /* pages, as they were touched */
	uint64_t count, room, most;
	/* Of the set that was replayed: its ranges by address. */
	struct kw_range *replayed;
	uint64_t replayed_count;
	uint32_t sample;
};

/* ---- making and freeing ---- */

static int by_page(const void *a, const void *b)
{
	const struct kw_range *x = a, *y = b;

	return (x->page > y->page) - (x->page < y->page);
}

static int take_replayed(struct kvmem_recorder *r, const struct kvmem_workset *w)
{
	if (w->memory_pages != r->memory.pages)
		return ki_fail(EINVAL, "kvmem_recorder_create: replayed: the set is of memory of "
				       "another length");
	r->replayed = malloc((w->count + 1) * sizeof(*r->replayed));
	if (!r->replayed)
		return ki_fail(ENOMEM, "kvmem_recorder_create: no memory");
	memcpy(r->replayed, w->ranges, w->count * sizeof(*r->replayed));
	r->replayed_count = w->count;
	if (w->count)
		qsort(r->replayed, w->count, sizeof(*r->replayed), by_page);
	r->sample = w->sample;
	for (uint64_t i = 0; i < w->count; i++)
		if (kw_left_out(&r->replayed[i], r->sample))
			r->stats.pages_left_out += r->replayed[i].pages;
	return 0;
}

static int build(struct kvmem_recorder *r, struct kvmem_region *const *regions, uint32_t count,
		 const struct kvmem_recorder_opts *opts)
{
	int err = kvmem_opts_copy(&r->o, sizeof(r->o), sizeof(r->o), opts, "kvmem_recorder_opts");

	if (!err && r->o.flags)
		err = ki_fail(EINVAL, "kvmem_recorder_opts: flags must be 0");
	if (!err)
		err = kw_memory_make("kvmem_recorder_create", regions, count, &r->memory);
	if (err)
		return err;
	r->touched = calloc(r->memory.pages / 64 + 1, sizeof(*r->touched));
	if (!r->touched)
		return ki_fail(ENOMEM, "kvmem_recorder_create: no memory");
	if (!r->o.begin_ns)
		r->o.begin_ns = ki_now_ns();
	if (!r->o.window_ns)
		r->o.window_ns = DEFAULT_WINDOW;
	if (!r->o.settled_ns)
		r->o.settled_ns = DEFAULT_SETTLED;
	r->most = r->o.max_bytes ? r->o.max_bytes >> KI_PAGE_SHIFT : r->memory.pages / 2;
	return r->o.replayed ? take_replayed(r, r->o.replayed) : 0;
}

int kvmem_recorder_create(struct kvmem_region *const *regions, uint32_t region_count,
			  const struct kvmem_recorder_opts *opts,
			  struct kvmem_recorder **ret_recorder)
{
	struct kvmem_recorder *r;
	int err;

	if (!ret_recorder)
		return ki_fail(EINVAL, "kvmem_recorder_create: ret_recorder is NULL");
	r = calloc(1, sizeof(*r));
	if (!r)
		return ki_fail(ENOMEM, "kvmem_recorder_create: no memory");
	err = build(r, regions, region_count, opts);
	if (err)
		kvmem_recorder_free(r);
	else
		*ret_recorder = r;
	return err;
}

void kvmem_recorder_free(struct kvmem_recorder *recorder)
{
	if (!recorder)
		return;
	kw_memory_free(&recorder->memory);
	free(recorder->touched);
	free(recorder->order);
	free(recorder->replayed);
	free(recorder);
}

/* ---- touches ---- */

/* The range of the replayed set that has the page; NULL: none. */
static const struct kw_range *find_replayed(const struct kvmem_recorder *r, uint32_t page)
{
	uint64_t low = 0, high = r->replayed_count;

	while (low < high) {
		uint64_t mid = low + (high - low) / 2;
		const struct kw_range *at = &r->replayed[mid];

		if (page < at->page)
			high = mid;
		else if (page >= (uint64_t)at->page + at->pages)
			low = mid + 1;
		else
			return at;
	}
	return NULL;
}

/* Counted as what it tells of the replay; of a set that was replayed only what is missing in it is recorded. */
static bool is_new(struct kvmem_recorder *r, uint32_t page)
{
	const struct kw_range *set = find_replayed(r, page);

	if (!set) {
		r->stats.pages_new += r->o.replayed != NULL;
		return true;
	}
	if (kw_left_out(set, r->sample))
		r->stats.pages_missed++;
	else
		r->stats.pages_late++;
	return false;
}

/* By events: the window is over, and stays so. */
static bool is_over(struct kvmem_recorder *r, uint64_t time_ns)
{
	uint64_t since = r->last_ns ? r->last_ns : r->o.begin_ns;

	if (time_ns > r->o.begin_ns && time_ns - r->o.begin_ns > r->o.window_ns)
		r->stats.over = 1;
	/* Before the first touch the guest has not begun. */
	if (r->last_ns && time_ns > since && time_ns - since > r->o.settled_ns)
		r->stats.over = 1;
	if (r->count >= r->most)
		r->stats.over = 1;
	return r->stats.over;
}

static int append(struct kvmem_recorder *r, uint32_t page)
{
	if (r->count == r->room) {
		uint64_t room = r->room ? r->room * 2 : 4096;
		uint32_t *more = realloc(r->order, room * sizeof(*more));

		if (!more)
			return ki_fail(ENOMEM, "kvmem_recorder_read: no memory");
		r->order = more;
		r->room = room;
	}
	r->order[r->count++] = page;
	r->stats.pages = r->count;
	return 0;
}

static int touch(struct kvmem_recorder *r, uint32_t page, uint64_t time_ns)
{
	uint64_t *word = &r->touched[page / 64], bit = 1ull << page % 64;
	int err = 0;

	if (*word & bit)
		return 0;
	if (!is_over(r, time_ns) && is_new(r, page))
		err = append(r, page);
	else if (r->stats.over)
		is_new(r, page);
	if (err)
		return err;
	*word |= bit;
	if (!r->stats.over)
		r->last_ns = time_ns;
	return 0;
}

static int add(struct kvmem_recorder *r, const struct kvmem_trace_entry *e)
{
	const struct kw_memory *m = &r->memory;
	uint32_t i = 0;
	int err = 0;

	while (i < m->count && m->regions[i] != e->region)
		i++;
	if (i == m->count || e->why != KVMEM_TRACE_DEMAND)
		return 0;
	r->stats.faults++;
	r->stats.blocked_ns += e->service_ns;
	for (uint64_t at = e->offset; !err && at < e->offset + e->bytes; at += KI_PAGE) {
		uint64_t page = m->first[i] + (at >> KI_PAGE_SHIFT);

		/* A region that has grown since has more than the image. */
		if (page < (i + 1 < m->count ? m->first[i + 1] : m->pages))
			err = touch(r, (uint32_t)page, e->time_ns);
	}
	return err;
}

int kvmem_recorder_add(struct kvmem_recorder *recorder, const struct kvmem_trace_entry *entries,
		       size_t count)
{
	int err = 0;

	if (!recorder || (!entries && count))
		return ki_fail(EINVAL, "kvmem_recorder_add: %s is NULL",
			       recorder ? "entries" : "recorder");
	for (size_t i = 0; !err && i < count; i++)
		err = add(recorder, &entries[i]);
	return err ? err : !recorder->stats.over;
}

int kvmem_recorder_read(struct kvmem_recorder *recorder, struct kvmem_pager *pager)
{
	struct kvmem_trace_entry entries[ENTRIES];
	int64_t n = ENTRIES;
	int err = 1;

	if (!recorder || !pager)
		return ki_fail(EINVAL, "kvmem_recorder_read: %s is NULL",
			       recorder ? "pager" : "recorder");
	while (n == ENTRIES && err >= 0) {
		n = kvmem_pager_trace_read(pager, entries, ENTRIES);
		err = n < 0 ? (int)n : kvmem_recorder_add(recorder, entries, (size_t)n);
	}
	/* Nothing new may come for ever. */
	return err > 0 ? !is_over(recorder, ki_now_ns()) : err;
}

/* ---- results ---- */

int kvmem_recorder_get_stats(const struct kvmem_recorder *recorder,
			     struct kvmem_recorder_stats *ret_stats)
{
	int r;

	if (!recorder)
		return ki_fail(EINVAL, "kvmem_recorder_get_stats: recorder is NULL");
	r = kvmem_result_check(ret_stats, sizeof(recorder->stats), "kvmem_recorder_stats");
	if (!r)
		kvmem_result_copy(ret_stats, &recorder->stats, sizeof(recorder->stats));
	return r;
}

int kvmem_recorder_finish(struct kvmem_recorder *recorder, struct kvmem_workset **ret_workset)
{
	struct kvmem_workset *w;
	struct kw_page *pages;

	if (!recorder || !ret_workset)
		return ki_fail(EINVAL, "kvmem_recorder_finish: %s is NULL",
			       recorder ? "ret_workset" : "recorder");
	pages = malloc((recorder->count + 1) * sizeof(*pages));
	if (!pages)
		return ki_fail(ENOMEM, "kvmem_recorder_finish: no memory");
	for (uint64_t i = 0; i < recorder->count; i++)
		pages[i] = (struct kw_page){ .page = recorder->order[i],
					     .rank = (uint32_t)i,
					     .history = 1 };
	w = kw_make(pages, recorder->count, recorder->memory.pages, recorder->o.replayed ? 0 : 1);
	free(pages);
	if (!w)
		return -ENOMEM;
	*ret_workset = w;
	return 0;
}
