// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Pages that exist although the record has them ABSENT: a guest has run without a pager, or the VMM
 * has touched the memory by hand. Nobody but the caller knows whether they are content.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "fill/fill_internal.h"

#define FOLIO_PAGES 512u /* of the largest folio that comes unasked, in base pages */
#define ASK_PAGES   (1u << 20)

struct look {
	struct kvmem_region *r;
	uint32_t how;		/* 0, KVMEM_FILL_KEEP or KVMEM_FILL_OVERWRITE */
	struct km_found *later; /* what is found is not acted upon, but listed; NULL: at once */
	struct km_exists exists;
	uint64_t found; /* pages refused */
	uint64_t first; /* of them */
	uint64_t block; /* last one that shared_folio() looked at */
	bool block_shared;
};

/* ---- is there anything at all? One system call ---- */

static bool no_blocks(const struct kvmem_region *r)
{
	struct stat st;

	return km_sys_fstat(r->fd, &st) >= 0 && !st.st_blocks;
}

static bool none_cached(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t pages = 0;

	return km_sys_cachestat(r->fd, r->fd_offset + (page << r->page_shift),
				count << r->page_shift, &pages) >= 0 &&
	       !pages;
}

static bool none_in_core(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t bytes = count << r->page_shift, grain = km_sys_page_size();
	uint64_t most = km_min(bytes, ASK_PAGES * grain), n;
	uint8_t *at = r->base + (page << r->page_shift);
	unsigned char *vec = km_sys_alloc(most / grain);
	bool none = vec != NULL;

	for (; none && bytes; at += n, bytes -= n) {
		n = km_min(bytes, most);
		none = km_sys_mincore(at, n, vec) >= 0 && km_is_zero(vec, n / grain);
	}
	km_sys_free(vec);
	return none;
}

/* False: some may be there. */
static bool nothing(const struct kvmem_region *r, uint64_t page, uint64_t count)
{
	switch (r->plan.backing) {
	case KVMEM_BACKING_MEMFD:
	case KVMEM_BACKING_HUGETLB:
		return no_blocks(r);
	case KVMEM_BACKING_GUEST_MEMFD:
		return none_cached(r, page, count);
	default:
		return none_in_core(r, page, count) && km_no_swap();
	}
}

/* ---- what came along with others ---- */

/* Blocks begin `skew` pages before the region: all pages of one exist, those beside the region too. */
static bool block_is_shared(struct look *l, uint64_t block, uint64_t skew)
{
	const struct kvmem_region *r = l->r;
	int64_t begin = (int64_t)(block * FOLIO_PAGES - skew), pages = (int64_t)r->presence.pages;
	int64_t first = begin < 0 ? 0 : begin, end = begin + FOLIO_PAGES;
	int64_t last = end > pages ? pages : end, unit = (int64_t)km_region_page(r);
	bool exists[FOLIO_PAGES], filled = false;

	if (km_exists_get(&l->exists, (uint64_t)first, (unsigned int)(last - first), exists) < 0)
		return false;
	for (int64_t i = first; i < last; i++) {
		if (!exists[i - first])
			return false;
		filled |= km_presence_get(&r->presence, (uint64_t)i) == KM_PRESENT;
	}
	/* What the region does not have of it came first, maybe; what the caller wants to keep he keeps. */
	if (!filled)
		filled = last - first < FOLIO_PAGES && l->how != KVMEM_FILL_KEEP;
	return filled &&
	       km_exists_beside(r, begin * unit, (uint64_t)(first - begin) * (uint64_t)unit) &&
	       km_exists_beside(r, last * unit, (uint64_t)(end - last) * (uint64_t)unit);
}

/*
 * A page filled by the library can bring the rest of a huge page with it, all zeros. Such
 * neighbours are as absent as they were: they lie in a block that exists as a whole, beside pages
 * that are PRESENT, and hold zeros. So do those at the region's ends that a neighbour of the region
 * brought, in the same file or in the same mapping.
 */
static bool came_along(struct look *l, uint64_t page)
{
	const struct kvmem_region *r = l->r;
	uint64_t base = r->fd >= 0 ? r->fd_offset : (uintptr_t)r->base;
	uint64_t skew = (base >> r->page_shift) % FOLIO_PAGES;
	uint64_t block = (page + skew) / FOLIO_PAGES;
	uint8_t content[4096];

	/* Under a watch a look at a page that we have claimed would wait for ourselves. */
	if (r->watch || km_region_page(r) != sizeof(content))
		return false;
	if (block != l->block) {
		l->block = block;
		l->block_shared = block_is_shared(l, block, skew);
	}
	return l->block_shared && !km_copy(content, r->base + (page << r->page_shift), 4096) &&
	       km_is_zero(content, sizeof(content));
}

/* ---- claimed pages ---- */

static int list(struct km_found *f, uint64_t page, uint64_t count)
{
	struct km_found_run *last = f->count ? &f->runs[f->count - 1] : NULL;

	if (last && last->page + last->count == page) {
		last->count += count;
		return 0;
	}
	if (!f->runs || f->count == f->room) {
		size_t room = f->room ? 2 * f->room : 64;
		struct km_found_run *runs = km_sys_alloc(room * sizeof(*runs));

		if (!runs)
			return km_fail(ENOMEM, "no memory for a list of pages that exist");
		if (f->runs)
			memcpy(runs, f->runs, f->count * sizeof(*runs));
		km_sys_free(f->runs);
		f->runs = runs;
		f->room = room;
	}
	f->runs[f->count++] = (struct km_found_run){ page, count };
	return 0;
}

/* Claimed pages that exist, each of them, and came along with no others. */
static int decide(struct look *l, uint64_t page, uint64_t count)
{
	uint64_t done = 0;
	int r = 0;

	if (l->how && l->later)
		r = list(l->later, page, count);
	else if (l->how == KVMEM_FILL_KEEP)
		r = km_pages_stored(l->r, page, count, &done);
	else if (l->how == KVMEM_FILL_OVERWRITE)
		km_pages_forget(l->r, page, count);
	else if (!l->found)
		l->first = page;
	if (!l->how)
		l->found += count;
	if (done < count)
		km_pages_abandon(l->r, page + done, count - done, false);
	return r;
}

/* Claimed now, so that what they are holds until it has been acted upon. */
static int look_again(struct look *l, uint64_t page, uint64_t count)
{
	bool exists[KM_CLAIM_PAGES];
	int64_t err = km_exists_get(&l->exists, page, (unsigned int)count, exists);
	int r = err < 0 ? km_fail((int)-err, "looking for pages that exist: %m") : 0;

	for (uint64_t i = 0, n; i < count; i += n) {
		bool act = !r && exists[i] && !came_along(l, page + i);

		for (n = 1; i + n < count && !r; n++)
			if ((exists[i + n] && !came_along(l, page + i + n)) != act)
				break;
		if (act)
			r = decide(l, page + i, n);
		else
			km_pages_abandon(l->r, page + i, n, false);
	}
	return r;
}

/* Pages of which some may exist and be absent. */
static int look_at(struct look *l, uint64_t page, uint64_t count)
{
	int r = 0;

	while (!r && count) {
		int64_t n = 0;

		if (km_presence_get(&l->r->presence, page) == KM_ABSENT)
			n = km_pages_claim(l->r, page, count);
		if (n < 0)
			return (int)n;
		if (n)
			r = look_again(l, page, (uint64_t)n);
		else
			n = 1; /* somebody is at it */
		page += (uint64_t)n;
		count -= (uint64_t)n;
	}
	return r;
}

/* ---- a run of absent pages ---- */

/* SEEK_DATA passes over what is not there. */
static int by_extents(struct look *l, uint64_t page, uint64_t count)
{
	unsigned int shift = l->r->page_shift;
	uint64_t at = page << shift, stop = (page + count) << shift, first, end;
	int64_t found;
	int r = 0;

	while (!r && at < stop) {
		found = km_next_extent(l->r, at, &first, &end);
		if (found < 0)
			return km_fail((int)-found, "looking for pages that exist: SEEK_DATA: %m");
		if (!found || first >= stop)
			break;
		first = first > at ? first : at;
		at = km_min(end, stop);
		r = look_at(l, first >> shift, (at - first) >> shift);
	}
	return r;
}

static int by_batches(struct look *l, uint64_t page, uint64_t count)
{
	bool exists[KM_EXISTS_BATCH];
	int r = 0;

	while (!r && count) {
		unsigned int n = (unsigned int)km_min(count, KM_EXISTS_BATCH);
		int64_t err = km_exists_get(&l->exists, page, n, exists);

		if (err < 0)
			return km_fail((int)-err, "looking for pages that exist: %m");
		for (unsigned int i = 0, run; !r && i < n; i += run) {
			for (run = 1; i + run < n && exists[i + run] == exists[i]; run++)
				;
			if (exists[i])
				r = look_at(l, page + i, run);
		}
		page += n;
		count -= n;
	}
	return r;
}

/* Halves of it, as long as the kernel says in one call that there is nothing. */
static int by_halves(struct look *l, uint64_t page, uint64_t count)
{
	uint64_t half = count / 2;
	int r;

	if (none_cached(l->r, page, count))
		return 0;
	if (count <= KM_EXISTS_BATCH)
		return by_batches(l, page, count);
	r = by_halves(l, page, half);
	return r ? r : by_halves(l, page + half, count - half);
}

static int absent_run(struct look *l, uint64_t page, uint64_t count)
{
	switch (l->r->plan.backing) {
	case KVMEM_BACKING_MEMFD:
		return by_extents(l, page, count);
	case KVMEM_BACKING_GUEST_MEMFD:
		return by_halves(l, page, count);
	default:
		return by_batches(l, page, count);
	}
}

static int look(struct kvmem_region *r, uint64_t page, uint64_t count, uint32_t how,
		const char *what, struct km_found *later)
{
	struct look l = { .r = r, .how = how, .later = later, .block = UINT64_MAX };
	enum km_page_state state;
	int64_t err;
	int ret = 0;

	if (nothing(r, page, count))
		return 0;
	if (!how && r->ignore_existing)
		l.how = KVMEM_FILL_OVERWRITE;
	if (later)
		later->how = l.how;
	err = km_exists_begin(&l.exists, r, r->base);
	if (err < 0)
		return km_fail((int)-err, "%s: looking for pages that exist: %m", what);
	for (uint64_t n; !ret && count; page += n, count -= n) {
		n = km_presence_run(&r->presence, page, count, &state);
		if (state == KM_ABSENT)
			ret = absent_run(&l, page, n);
	}
	if (ret || !l.found)
		return ret;
	return km_fail(
		EEXIST,
		"%s: %" PRIu64 " pages of the range exist, the first at offset 0x%" PRIx64
		", and nothing has announced them: a guest has run without a pager, or the "
		"memory was touched by hand. Say by KVMEM_FILL_KEEP that they are content, by "
		"KVMEM_FILL_OVERWRITE that they are not, or announce what is by "
		"kvmem_region_mark_present()",
		what, l.found, l.first << r->page_shift);
}

int km_pages_unannounced(struct kvmem_region *r, uint64_t page, uint64_t count, uint32_t how,
			 const char *what)
{
	return look(r, page, count, how, what, NULL);
}

int km_pages_find_unannounced(struct kvmem_region *r, uint32_t how, const char *what,
			      struct km_found *ret_found)
{
	*ret_found = (struct km_found){ .how = how };
	return look(r, 0, r->presence.pages, how, what, ret_found);
}

int64_t km_pages_overwrite_found(struct kvmem_region *r, const struct km_found *f)
{
	int64_t err = 0;

	for (size_t i = 0; f->how == KVMEM_FILL_OVERWRITE && err >= 0 && i < f->count; i++) {
		const struct km_found_run *run = &f->runs[i];

		if (r->fd >= 0)
			err = km_pages_punch(r, run->page, run->count);
		if (err >= 0)
			km_region_changed(r, run->page << r->page_shift,
					  run->count << r->page_shift);
	}
	return err;
}

void km_pages_keep_found(struct kvmem_region *r, const struct km_found *f, bool keep)
{
	enum km_page_state from = keep ? KM_ABSENT : KM_PRESENT, to = keep ? KM_PRESENT : KM_ABSENT;

	for (size_t i = 0; f->how == KVMEM_FILL_KEEP && i < f->count; i++)
		km_presence_turn(&r->presence, f->runs[i].page, f->runs[i].count, from, to);
}

/* ---- pages that the record has ZERO ---- */

static void turn_written(const struct km_exists *x, uint64_t page, uint64_t count)
{
	struct km_presence *map = &x->r->presence;
	bool exists[KM_EXISTS_BATCH];

	while (count) {
		unsigned int n = (unsigned int)km_min(count, KM_EXISTS_BATCH), run;

		/* Where the kernel does not tell, any of them may have been written to. */
		if (x->how == KM_EXISTS_RECORD || km_exists_get(x, page, n, exists) < 0)
			for (unsigned int i = 0; i < n; i++)
				exists[i] = true;
		for (unsigned int i = 0; i < n; i += run) {
			for (run = 1; i + run < n && exists[i + run] == exists[i]; run++)
				;
			if (exists[i])
				km_presence_turn(map, page + i, run, KM_ZERO, KM_PRESENT);
		}
		page += n;
		count -= n;
	}
}

void km_pages_written_zeros(struct kvmem_region *r)
{
	uint64_t pages = r->presence.pages, n;
	struct km_exists x = { .r = r };
	enum km_page_state state;

	/* mincore() passes over pages in swap, and over huge pages that are not mapped. */
	if (km_exists_begin(&x, r, r->base) < 0 || r->plan.backing == KVMEM_BACKING_HUGETLB)
		x.how = KM_EXISTS_RECORD;
	else if (r->plan.backing == KVMEM_BACKING_MEMFD && r->fd >= 0)
		x.how = KM_EXISTS_EXTENTS;
	else if (x.how == KM_EXISTS_MINCORE && r->fd < 0 && !km_no_swap())
		x.how = KM_EXISTS_RECORD;
	for (uint64_t page = 0; page < pages; page += n) {
		n = km_presence_run(&r->presence, page, pages - page, &state);
		if (state == KM_ZERO)
			turn_written(&x, page, n);
	}
}
