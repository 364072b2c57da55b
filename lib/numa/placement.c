// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Which pages exist and on which nodes they are, as the kernel says, without making any. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "numa/numa.h"
#include "base/uapi/mm.h"

#define BATCH 1024u

/* One batch of pages of the region. */
struct look {
	struct kvmem_region *r;
	uint8_t *view; /* a mapping that no userfaultfd watches */
	uint64_t page; /* first, in the region */
	unsigned int count;
	bool exists[BATCH];
};

/* hugetlb pages show in mincore() only once mapped here, so the library's own record counts too. */
static int64_t find_existing(struct look *l)
{
	uint64_t per_page = km_region_page(l->r) / km_sys_page_size();
	unsigned char vec[BATCH] = { 0 };
	int64_t err;

	for (unsigned int i = 0; i < l->count; i++) {
		uint64_t offset = (l->page + i) << l->r->page_shift;

		if (per_page == 1 && i % BATCH == 0) {
			err = km_sys_mincore(l->view + offset, l->count << l->r->page_shift, vec);
			if (err < 0)
				return err;
		} else if (per_page > 1) {
			err = km_sys_mincore(l->view + offset, km_sys_page_size(), &vec[i]);
			if (err < 0)
				return err;
		}
		l->exists[i] = vec[i] & 1 ||
			       km_presence_get(&l->r->presence, l->page + i) == KM_PRESENT;
	}
	return 0;
}

/* Calls fn with each batch of the range until it fails. */
static int64_t each_batch(struct kvmem_region *r, uint8_t *view, uint64_t offset, uint64_t bytes,
			  int64_t (*fn)(struct look *l, void *arg), void *arg)
{
	struct look l = { .r = r, .view = view, .page = offset >> r->page_shift };
	uint64_t left = bytes >> r->page_shift;
	int64_t err = 0;

	while (left && err >= 0) {
		l.count = left < BATCH ? (unsigned int)left : BATCH;
		err = find_existing(&l);
		if (err >= 0)
			err = fn(&l, arg);
		l.page += l.count;
		left -= l.count;
	}
	return err;
}

static int64_t count_batch(struct look *l, void *arg)
{
	for (unsigned int i = 0; i < l->count; i++)
		*(int64_t *)arg += l->exists[i];
	return 0;
}

int64_t km_region_count_pages(struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	int64_t n = 0, err = each_batch(r, r->base, offset, bytes, count_batch, &n);

	return err < 0 ? km_fail((int)-err, "mincore of offset 0x%" PRIx64 " + 0x%" PRIx64 ": %m",
				 offset, bytes)
		       : n;
}

static void map_run(const uint8_t *addr, unsigned int pages, unsigned int page_shift)
{
	if (km_sys_madvise((void *)(uintptr_t)addr, (size_t)pages << page_shift,
			   KM_MADV_POPULATE_READ) >= 0)
		return;
	/* Pages that cannot be pinned are not for madvise(); a load maps them. */
	for (unsigned int i = 0; i < pages; i++)
		(void)*(const volatile uint8_t *)(addr + ((size_t)i << page_shift));
}

/* move_pages(2) sees only what is mapped here: map what exists, run by run. */
static void map_existing(const struct look *l)
{
	for (unsigned int i = 0, n; i < l->count; i += n) {
		for (n = 1; i + n < l->count && l->exists[i + n] == l->exists[i]; n++)
			;
		if (l->exists[i] && l->r->fd >= 0)
			map_run(l->view + ((l->page + i) << l->r->page_shift), n, l->r->page_shift);
	}
}

static void tally(const struct look *l, unsigned int i, int node, struct kvmem_placement *p)
{
	if (node < 0 || (uint32_t)node >= p->node_count)
		p->other++;
	else
		p->nodes[node]++;
	if (node >= 0 &&
	    km_numa_misplaced(l->r, (l->page + i) << l->r->page_shift, (unsigned long)node))
		p->misplaced++;
}

/*
 * The node of each page, or -errno in its place. move_pages() needs CONFIG_MIGRATION; without it
 * get_mempolicy() tells the same, page by page; and without NUMA all is node 0.
 */
static int64_t query_nodes(const struct look *l, int *status)
{
	void *pages[BATCH];
	int64_t err;

	for (unsigned int i = 0; i < l->count; i++)
		pages[i] = l->view + ((l->page + i) << l->r->page_shift);
	err = km_sys_move_pages_query(l->count, pages, status);
	if (err != -ENOSYS)
		return err;
	for (unsigned int i = 0; i < l->count; i++) {
		if (!l->exists[i])
			continue;
		err = km_sys_get_mempolicy(&status[i], NULL, 0, pages[i],
					   KM_MPOL_F_NODE | KM_MPOL_F_ADDR);
		if (err < 0)
			status[i] = err == -ENOSYS ? 0 : (int)err;
	}
	return 0;
}

static int64_t place_batch(struct look *l, void *arg)
{
	struct kvmem_placement *p = arg;
	int status[BATCH];
	int64_t err;

	map_existing(l);
	err = query_nodes(l, status);
	if (err < 0)
		return err;
	p->pages += l->count;
	pthread_mutex_lock(&l->r->lock);
	for (unsigned int i = 0; i < l->count; i++) {
		if (!l->exists[i])
			continue;
		p->present++;
		tally(l, i, status[i], p);
	}
	pthread_mutex_unlock(&l->r->lock);
	return 0;
}

static int placement_check(const struct kvmem_region *r, uint64_t offset, uint64_t bytes,
			   const struct kvmem_placement *p)
{
	int ret;

	if (!r)
		return km_fail(EINVAL, "kvmem_region_placement: region is NULL");
	ret = km_result_check(p, sizeof(*p), "kvmem_placement");
	if (!ret && p->node_count && !p->nodes)
		ret = km_fail(EINVAL, "kvmem_placement.nodes is NULL and node_count is %" PRIu32,
			      p->node_count);
	if (!ret)
		ret = km_range_check(offset, bytes, r->bytes, "kvmem_region_placement");
	if (!ret)
		ret = km_align_check(offset, km_region_page(r), "kvmem_region_placement: offset");
	if (!ret)
		ret = km_align_check(bytes, km_region_page(r), "kvmem_region_placement: bytes");
	return ret;
}

int kvmem_region_placement(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
			   struct kvmem_placement *ret_placement)
{
	struct kvmem_placement p = { .size = sizeof(p) };
	uint8_t *view;
	int64_t err;
	int r = placement_check(region, offset, bytes, ret_placement);

	if (r)
		return r;
	r = km_region_store(region, &view);
	if (r)
		return r;
	p.node_count = ret_placement->node_count;
	p.nodes = ret_placement->nodes;
	if (p.node_count)
		memset(p.nodes, 0, p.node_count * sizeof(*p.nodes));
	/* Anonymous memory under a pager has no other view, and needs none: nothing is mapped
	 * there. */
	err = each_batch(region, view ? view : region->base, offset, bytes, place_batch, &p);
	if (err < 0)
		return km_fail((int)-err, "kvmem_region_placement: %m");
	while (p.node_count && !p.nodes[p.node_count - 1])
		p.node_count--;
	km_result_copy(ret_placement, &p, sizeof(p));
	return 0;
}
