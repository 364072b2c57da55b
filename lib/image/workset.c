// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A working set: ranges in the order of their first touch, with the samples that have them. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "image/workset.h"

/* ---- making one ---- */

static int by_page(const void *a, const void *b)
{
	const struct kw_page *x = a, *y = b;

	return (x->page > y->page) - (x->page < y->page);
}

/* A range with the rank of the page in it that was touched first. */
struct ranked {
	struct kw_range range;
	uint32_t rank;
};

/* Ranks may be equal: then by address, so that a set is the same however it was made. */
static int by_rank(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	if (x->rank != y->rank)
		return x->rank > y->rank ? 1 : -1;
	return (x->range.page > y->range.page) - (x->range.page < y->range.page);
}

static uint64_t join(const struct kw_page *pages, uint64_t count, struct ranked *ret)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < count; i++) {
		struct ranked *last = n ? &ret[n - 1] : NULL;

		if (last && last->range.page + last->range.pages == pages[i].page &&
		    last->range.history == pages[i].history) {
			last->range.pages++;
			last->rank = (uint32_t)ki_min(last->rank, pages[i].rank);
			continue;
		}
		ret[n++] = (struct ranked){
			.range = { .page = pages[i].page, .pages = 1, .history = pages[i].history },
			.rank = pages[i].rank
		};
	}
	return n;
}

struct kvmem_workset *kw_make(struct kw_page *pages, uint64_t count, uint64_t memory_pages,
			      uint32_t samples)
{
	struct kvmem_workset *w = calloc(1, sizeof(*w));
	struct ranked *ranked = malloc((count + 1) * sizeof(*ranked));

	if (!w || !ranked)
		goto no_memory;
	if (count)
		qsort(pages, count, sizeof(*pages), by_page);
	w->count = join(pages, count, ranked);
	w->ranges = malloc((w->count + 1) * sizeof(*w->ranges));
	if (!w->ranges)
		goto no_memory;
	if (w->count)
		qsort(ranked, w->count, sizeof(*ranked), by_rank);
	for (uint64_t i = 0; i < w->count; i++)
		w->ranges[i] = ranked[i].range;
	w->pages = count;
	w->memory_pages = memory_pages;
	w->samples = samples;
	free(ranked);
	return w;
no_memory:
	free(ranked);
	free(w);
	ki_fail(ENOMEM, "working set: no memory for %" PRIu64 " pages", count);
	return NULL;
}

void kvmem_workset_free(struct kvmem_workset *workset)
{
	if (!workset)
		return;
	free(workset->ranges);
	free(workset);
}

/* ---- merging ---- */

/* Ranks of sets of different lengths are compared as shares of the whole. */
static struct kw_page *expand(const struct kvmem_workset *w)
{
	struct kw_page *pages = calloc(w->pages + 1, sizeof(*pages));
	uint64_t n = 0;

	for (uint64_t i = 0; pages && i < w->count; i++)
		for (uint32_t p = 0; p < w->ranges[i].pages; p++)
			pages[n++] = (struct kw_page){ .page = w->ranges[i].page + p,
						       .rank = (uint32_t)((i << 31) / w->count),
						       .history = w->ranges[i].history };
	if (pages && n)
		qsort(pages, n, sizeof(*pages), by_page);
	return pages;
}

static bool is_kept(uint8_t history, uint32_t samples)
{
	return (uint32_t)__builtin_popcount(history) * 4 >= samples && history;
}

/* A page of the set, of the recording, or of both. */
static struct kw_page join_pages(const struct kw_page *old, const struct kw_page *new,
				 uint32_t samples)
{
	static const struct kw_page none;
	const struct kw_page *a = old ? old : &none, *b = new ? new : &none;
	struct kw_page p = old ? *a : *b;

	if (old && new)
		p.rank = a->rank / 2 + b->rank / 2;
	p.history = (uint8_t)(a->history << samples | b->history);
	if (!samples) /* under replay: what the set has could not be seen */
		p.history = old ? a->history : 1;
	return p;
}

static uint64_t merge(const struct kvmem_workset *w, const struct kw_page *old,
		      const struct kvmem_workset *rec, const struct kw_page *new,
		      struct kw_page *ret)
{
	uint32_t samples = (uint32_t)ki_min(w->samples + rec->samples, KW_SAMPLES);
	uint64_t i = 0, j = 0, n = 0;

	while (i < w->pages || j < rec->pages) {
		bool first = j == rec->pages || (i < w->pages && old[i].page <= new[j].page);
		bool second = i == w->pages || (j < rec->pages && new[j].page <= old[i].page);

		ret[n] = join_pages(first ? &old[i] : NULL, second ? &new[j] : NULL, rec->samples);
		i += first;
		j += second;
		n += is_kept(ret[n].history, samples);
	}
	return n;
}

int kvmem_workset_merge(struct kvmem_workset *workset, const struct kvmem_workset *recording)
{
	struct kw_page *old, *new, *all;
	struct kvmem_workset *merged = NULL;

	if (!workset || !recording || workset == recording)
		return ki_fail(EINVAL, "kvmem_workset_merge: %s",
			       !workset	    ? "workset is NULL"
			       : !recording ? "recording is NULL"
					    : "a set into itself");
	if (!workset->samples || workset->memory_pages != recording->memory_pages)
		return ki_fail(EINVAL, workset->samples
					       ? "kvmem_workset_merge: the sets are of memory of "
						 "different lengths"
					       : "kvmem_workset_merge: workset is a recording "
						 "under replay: merge it into the set that was "
						 "replayed");
	old = expand(workset);
	new = expand(recording);
	all = malloc((workset->pages + recording->pages + 1) * sizeof(*all));
	if (old && new &&all)
		merged = kw_make(
			all, merge(workset, old, recording, new, all), workset->memory_pages,
			(uint32_t)ki_min(workset->samples + recording->samples, KW_SAMPLES));
	free(old);
	free(new);
	free(all);
	if (!merged)
		return ki_fail(ENOMEM, "kvmem_workset_merge: no memory");
	free(workset->ranges);
	workset->ranges = merged->ranges;
	workset->count = merged->count;
	workset->pages = merged->pages;
	workset->samples = merged->samples;
	free(merged);
	return 0;
}

/* ---- looking at one ---- */

int kvmem_workset_get_info(const struct kvmem_workset *workset, struct kvmem_workset_info *ret_info)
{
	struct kvmem_workset_info info = KVMEM_WORKSET_INFO_INIT;
	int r;

	if (!workset)
		return ki_fail(EINVAL, "kvmem_workset_get_info: workset is NULL");
	r = kvmem_result_check(ret_info, sizeof(info), "kvmem_workset_info");
	if (r)
		return r;
	info.samples = workset->samples;
	info.ranges = workset->count;
	info.bytes = workset->pages << KI_PAGE_SHIFT;
	info.memory_bytes = workset->memory_pages << KI_PAGE_SHIFT;
	kvmem_result_copy(ret_info, &info, sizeof(info));
	return 0;
}

int64_t kvmem_workset_ranges(const struct kvmem_workset *workset, uint64_t first,
			     struct kvmem_workset_range *ranges, size_t count)
{
	size_t n = 0;

	if (!workset || (!ranges && count))
		return ki_fail(EINVAL, "kvmem_workset_ranges: %s is NULL",
			       workset ? "ranges" : "workset");
	for (; n < count && first < workset->count; first++, n++) {
		const struct kw_range *r = &workset->ranges[first];

		ranges[n] = (struct kvmem_workset_range){
			.offset = (uint64_t)r->page << KI_PAGE_SHIFT,
			.bytes = (uint64_t)r->pages << KI_PAGE_SHIFT,
			.votes = (uint32_t)__builtin_popcount(r->history),
		};
	}
	return (int64_t)n;
}

/* ---- regions ---- */

int kw_memory_make(const char *call, struct kvmem_region *const *regions, uint32_t count,
		   struct kw_memory *ret)
{
	*ret = (struct kw_memory){ .count = count };
	if (!regions || !count || count > KI_MAX_REGIONS)
		return ki_fail(EINVAL, "%s: regions: %" PRIu32 " of them; there are 1 to %u", call,
			       regions ? count : 0, KI_MAX_REGIONS);
	ret->regions = calloc(count, sizeof(struct kvmem_region *));
	ret->first = calloc(count, sizeof(*ret->first));
	if (!ret->regions || !ret->first) {
		kw_memory_free(ret);
		return ki_fail(ENOMEM, "%s: no memory", call);
	}
	for (uint32_t i = 0; i < count; i++) {
		if (!regions[i]) {
			kw_memory_free(ret);
			return ki_fail(EINVAL, "%s: regions[%" PRIu32 "] is NULL", call, i);
		}
		ret->regions[i] = regions[i];
		ret->first[i] = ret->pages;
		ret->pages += kvmem_region_bytes(regions[i]) >> KI_PAGE_SHIFT;
	}
	if (ret->pages <= UINT32_MAX)
		return 0;
	kw_memory_free(ret);
	return ki_fail(EOPNOTSUPP, "%s: working sets are of at most 16 TiB", call);
}

void kw_memory_free(struct kw_memory *m)
{
	free((void *)m->regions);
	free(m->first);
	*m = (struct kw_memory){ 0 };
}
