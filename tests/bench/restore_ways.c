// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "restore_ways.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static struct {
	uint64_t bytes;
	uint64_t *order; /* pages, as they are touched */
	uint64_t count;
	uint64_t result;
	struct kvmem_workset *set;
} g;

/* ---- what there is before a restore ---- */

/* A tenth of the pages in an order that a shuffle of all of them gives. */
static void make_order(void)
{
	uint64_t pages = g.bytes / PAGE, *all = calloc(pages, sizeof(*all));
	unsigned int seed = 7;

	g.count = pages / 10;
	for (uint64_t i = 0; i < pages; i++)
		all[i] = i;
	for (uint64_t i = 0; i < g.count; i++) {
		uint64_t j = i + (uint64_t)rand_r(&seed) % (pages - i), page = all[j];

		all[j] = all[i];
		all[i] = page;
	}
	g.order = all;
}

static uint64_t sum_of(const void *page)
{
	const uint64_t *word = page;
	uint64_t sum = 0;

	for (unsigned int i = 0; i < PAGE / 8; i++)
		sum += word[i];
	return sum;
}

void restore_open(uint64_t bytes)
{
	struct kvmem_range *ranges;
	uint64_t page[PAGE / 8];

	g.bytes = bytes;
	image_make(bytes);
	make_order();
	ranges = calloc(g.count, sizeof(*ranges));
	g.result = 0;
	for (uint64_t i = 0; i < g.count; i++) {
		ranges[i] = (struct kvmem_range){ g.order[i] * PAGE, PAGE };
		fill_page(page, g.order[i], 1);
		g.result += sum_of(page);
	}
	g.set = workset_make(bytes, ranges, g.count);
	free(ranges);
}

void restore_close(void)
{
	kvmem_workset_free(g.set);
	free(g.order);
}

uint64_t restore_set_bytes(void)
{
	return g.count * PAGE;
}

/* ---- the ways ---- */

static void *map(int fd, int flags)
{
	void *p = mmap(NULL, g.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | flags, fd, 0);

	bench_check(p != MAP_FAILED, "restore: no mapping");
	return p;
}

static void read_all(struct restored *r)
{
	r->base = map(-1, MAP_ANONYMOUS);
	for (uint64_t at = 0; at < g.bytes; at += MIB)
		bench_check(pread(r->fd, r->base + at, MIB, (off_t)at) == (ssize_t)MIB,
			    "restore: pread");
}

static void *replay(void *arg)
{
	struct kvmem_replay_opts o = KVMEM_REPLAY_OPTS_INIT;
	struct restored *r = arg;

	o.image = r->image;
	must(kvmem_workset_replay(g.set, r->pager, &r->ram, 1, &o, NULL));
	return NULL;
}

/* What a VMM does with a set where no pager fills the memory. */
static void *read_ahead(void *arg)
{
	struct kvmem_workset_range ranges[512];
	struct restored *r = arg;
	int64_t n;

	for (uint64_t at = 0; (n = kvmem_workset_ranges(g.set, at, ranges, 512)) > 0;
	     at += (uint64_t)n)
		for (int64_t i = 0; i < n; i++)
			must(kvmem_image_prefetch(r->image, ranges[i].offset, ranges[i].bytes));
	must((int)n);
	return NULL;
}

static void start_thread(struct restored *r, void *(*fn)(void *arg))
{
	bench_check(!pthread_create(&r->thread, NULL, fn, r), "restore: no thread");
	r->has_thread = true;
}

static void make_pager(struct restored *r)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.bytes = g.bytes;
	o.needs = KVMEM_WANT_PAGING;
	must(kvmem_region_create(NULL, &o, &r->ram));
	r->base = kvmem_region_base(r->ram);
	r->image = image_open("image.kvmem");
	must(kvmem_image_source(r->image, 0, &r->source));
	must(kvmem_pager_create(NULL, &r->pager));
	must(kvmem_pager_add(r->pager, r->ram, r->source, 0, 0));
	must(kvmem_pager_start(r->pager));
}

static void make_clone(struct restored *r)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.flags = KVMEM_REGION_CLONE;
	o.fd = r->fd;
	o.bytes = g.bytes;
	must(kvmem_region_create(NULL, &o, &r->ram));
	r->base = kvmem_region_base(r->ram);
}

void restore_begin(struct restored *r, enum restore_way way)
{
	*r = (struct restored){ .way = way, .fd = open("image", O_RDONLY) };
	bench_check(r->fd >= 0, "restore: the image's data");
	switch (way) {
	case RESTORE_FILE_MAP:
		r->base = map(r->fd, 0);
		break;
	case RESTORE_EAGER:
		read_all(r);
		break;
	case RESTORE_PAGER:
		make_pager(r);
		break;
	case RESTORE_REPLAY:
		make_pager(r);
		start_thread(r, replay);
		break;
	case RESTORE_REPLAY_FIRST:
		make_pager(r);
		replay(r);
		break;
	case RESTORE_CLONE_AHEAD:
		r->image = image_open("image.kvmem");
		start_thread(r, read_ahead);
		make_clone(r);
		break;
	case RESTORE_CLONE:
		make_clone(r);
		break;
	}
}

uint64_t restore_work(const struct restored *r)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < g.count; i++)
		sum += sum_of(r->base + g.order[i] * PAGE);
	return sum;
}

void restore_end(struct restored *r, uint64_t result)
{
	if (r->has_thread)
		pthread_join(r->thread, NULL);
	bench_check(result == g.result, "restore: another result of the guest");
	for (uint64_t i = 0; i < g.count; i++)
		bench_check(is_page(r->base + g.order[i] * PAGE, g.order[i], 1),
			    "restore: another content");
	if (r->pager) {
		must(kvmem_pager_stop(r->pager, KVMEM_STOP_HAND_BACK));
		must(kvmem_pager_free(r->pager));
		must(kvmem_source_free(r->source));
	}
	if (r->ram)
		must(kvmem_region_free(r->ram));
	else
		munmap(r->base, g.bytes);
	must(kvmem_image_close(r->image));
	close(r->fd);
}
