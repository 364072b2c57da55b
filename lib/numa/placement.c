// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Which pages exist and on which nodes they are, as the kernel says, without making any. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "numa/numa.h"
#include "base/uapi/mm.h"

#define BATCH KM_EXISTS_BATCH

/* A walk over the region, and in it one batch of pages. */
struct look {
	struct kvmem_region *r;
	uint8_t *view; /* a mapping that no userfaultfd watches */
	uint64_t page; /* first, in the region */
	unsigned int count;
	int byte;      /* a file of one byte, made when needed; else -1 */
	int only_node; /* that has memory, when the kernel tells no page's; -1: not looked up; */
	/* -2: there are several */
	bool exists[BATCH];
};

static int64_t byte_file(struct look *l)
{
	int64_t fd, err;

	if (l->byte >= 0)
		return 0;
	fd = km_sys_memfd_create("kvmem-placement", 0);
	if (fd < 0)
		return fd;
	err = km_sys_ftruncate((int)fd, 1);
	if (err < 0)
		km_sys_close((int)fd);
	else
		l->byte = (int)fd;
	return err;
}

/*
 * Pages that cannot be pinned, as those of a guest_memfd on some kernels, are not for madvise(). The
 * kernel reads a byte of each instead, which maps it. Never a load here: a page that is gone by
 * now, or poisoned, would be SIGBUS; the kernel only answers EFAULT.
 */
static void map_run(struct look *l, uint8_t *addr, unsigned int pages)
{
	unsigned int shift = l->r->page_shift;

	if (km_sys_madvise(addr, (size_t)pages << shift, KM_MADV_POPULATE_READ) >= 0 ||
	    byte_file(l) < 0)
		return;
	for (unsigned int i = 0; i < pages; i++)
		km_sys_pwrite(l->byte, addr + ((size_t)i << shift), 1, 0);
}

/* move_pages(2) sees only what is mapped here: map what exists, run by run. */
static void map_existing(struct look *l)
{
	for (unsigned int i = 0, n; i < l->count; i += n) {
		for (n = 1; i + n < l->count && l->exists[i + n] == l->exists[i]; n++)
			;
		if (l->exists[i] && l->r->fd >= 0)
			map_run(l, l->view + ((l->page + i) << l->r->page_shift), n);
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

/* Where nobody tells the node of a page, it is known all the same when there is only one. */
static int only_node(struct look *l)
{
	unsigned long mask[KM_NODE_WORDS];
	unsigned int weight = 0;

	if (l->only_node != -1)
		return l->only_node;
	l->only_node = -2;
	if (km_caps_nodes(mask) < 0)
		return -2;
	for (unsigned int i = 0; i < KM_NODE_WORDS; i++) {
		weight += (unsigned int)__builtin_popcountl(mask[i]);
		if (mask[i] && weight == 1)
			l->only_node = (int)(8 * sizeof(*mask) * i) + __builtin_ctzl(mask[i]);
	}
	if (weight != 1)
		l->only_node = -2;
	return l->only_node;
}

static int node_of(struct look *l, uint8_t *addr)
{
	int node = 0;
	int64_t err = km_sys_get_mempolicy(&node, NULL, 0, addr, KM_MPOL_F_NODE | KM_MPOL_F_ADDR);

	if (err == -ENOSYS)
		return 0;
	if (err == -EPERM)
		return only_node(l);
	return err < 0 ? (int)err : node;
}

/*
 * The node of each page, or below 0 in its place. move_pages() needs CONFIG_MIGRATION; without it
 * get_mempolicy() tells the same, page by page; and without NUMA all is node 0. A container's
 * seccomp filter refuses both.
 */
static int64_t query_nodes(struct look *l, int *status)
{
	void *pages[BATCH];
	int64_t err;

	for (unsigned int i = 0; i < l->count; i++)
		pages[i] = l->view + ((l->page + i) << l->r->page_shift);
	err = km_sys_move_pages_query(l->count, pages, status);
	if (err != -ENOSYS && err != -EPERM)
		return err;
	for (unsigned int i = 0; i < l->count; i++)
		if (l->exists[i])
			status[i] = node_of(l, pages[i]);
	return 0;
}

static int64_t place_batch(struct look *l, struct kvmem_placement *p)
{
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

static int64_t place(struct kvmem_region *r, uint8_t *view, uint64_t offset, uint64_t bytes,
		     struct kvmem_placement *p)
{
	struct look l = { .r = r, .view = view, .page = offset >> r->page_shift };
	uint64_t left = bytes >> r->page_shift;
	struct km_exists x;
	int64_t err = km_exists_begin(&x, r, view);

	l.byte = l.only_node = -1;
	while (left && err >= 0) {
		l.count = (unsigned int)km_min(left, BATCH);
		err = km_exists_get(&x, l.page, l.count, l.exists);
		if (err >= 0)
			err = place_batch(&l, p);
		l.page += l.count;
		left -= l.count;
	}
	km_sys_close(l.byte);
	return err;
}

static int placement_check(const struct kvmem_region *r, uint64_t offset, uint64_t bytes,
			   const struct kvmem_placement *p)
{
	int ret;

	if (!r)
		return km_fail(EINVAL, "kvmem_region_placement: region is NULL");
	ret = km_region_own_check(r, "kvmem_region_placement");
	if (!ret)
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
	err = place(region, view ? view : region->base, offset, bytes, &p);
	if (err < 0)
		return km_fail((int)-err, "kvmem_region_placement: %m");
	while (p.node_count && !p.nodes[p.node_count - 1])
		p.node_count--;
	km_result_copy(ret_placement, &p, sizeof(p));
	return 0;
}
