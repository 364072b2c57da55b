// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Filling guest memory from memory. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "fill_mem.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif

/* What a row fills: made once, touched long before it is measured. */
static uint8_t *content;
static uint64_t content_bytes;

static uint64_t fill_bytes(void)
{
	return bench_mib(512, 128) * MIB;
}

static void need_content(uint64_t bytes)
{
	if (content_bytes == bytes)
		return;
	if (content)
		munmap(content, content_bytes);
	content = bench_alloc(bytes);
	content_bytes = bytes;
	bench_random_words(content, bytes, 1);
}

static void check_content(const struct memory *m)
{
	bench_check(!memcmp(m->base, content, m->bytes), "the memory is not what the source is");
}

/* ---- sides ---- */

/* What the posted series for write population compares itself to. */
static double plain_memcpy(void *arg)
{
	struct memory m;
	double start, took;

	(void)arg;
	memory_make(&m, KVMEM_BACKING_AUTO, content_bytes, content_bytes);
	start = bench_now();
	memcpy(m.base, content, m.bytes);
	took = bench_now() - start;
	check_content(&m);
	memory_free(&m);
	return took;
}

struct fill_arg {
	uint32_t threads;
	uint32_t method;
	uint32_t backing;
	uint64_t chunk;
	bool count_zero; /* zero pages must not exist afterwards */
};

static uint64_t zero_pages; /* of the content */

static double by_populate(void *arg)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_placement pl = KVMEM_PLACEMENT_INIT;
	const struct fill_arg *a = arg;
	struct kvmem_source *s;
	struct memory m;
	double took;

	o.threads = a->threads;
	o.method = a->method;
	o.chunk_bytes = a->chunk;
	memory_make(&m, a->backing, content_bytes, content_bytes);
	bench_check(!kvmem_source_memory(content, content_bytes, &s), "source");
	took = memory_fill(&m, s, &o, NULL);
	if (a->count_zero) {
		bench_check(!kvmem_region_placement(m.region, 0, m.bytes, &pl), "%s",
			    kvmem_error_detail());
		bench_check(pl.present == m.bytes / PAGE - zero_pages,
			    "%lu pages exist, %lu are not zero", (unsigned long)pl.present,
			    (unsigned long)(m.bytes / PAGE - zero_pages));
	}
	check_content(&m);
	kvmem_source_free(s);
	memory_free(&m);
	return took;
}

/* Nothing can make pages and bring content into them in less than the two take alone, one after the
 * other, except that a page still in cache is cheaper to copy to. */
static double pages_then_copy(void *arg)
{
	const double *share = arg;
	struct memory m;
	double start, took;

	memory_make(&m, KVMEM_BACKING_AUTO, content_bytes, content_bytes);
	start = bench_now();
	bench_check(!madvise(m.base, m.bytes, MADV_POPULATE_READ), "MADV_POPULATE_READ");
	memcpy(m.base, content, m.bytes);
	took = bench_now() - start;
	check_content(&m);
	memory_free(&m);
	return took * *share;
}

/* ---- rows ---- */

static void memory_1(void)
{
	static double whole = 1;
	static struct fill_arg a = { .threads = 1 };

	need_content(fill_bytes());
	bench_compare("fill-memory-1",
		      &(struct bench_report){
			      .on = memory_kind(0),
			      .unit = "ms",
			      .rounds = BENCH_MORE,
			      .baseline = { "mmap + memcpy, 1 thread", plain_memcpy, NULL },
			      .ours = { "kvmem_populate, 1 thread", by_populate, &a },
			      .limit = { "make and map the pages, then copy into them",
					 pages_then_copy, &whole },
			      .target = 1.4,
			      .limit_target = 1.05,
		      });
}

static void memory_2(void)
{
	static double half = 0.5;
	static struct fill_arg a = { .threads = 2 };

	need_content(fill_bytes());
	bench_compare("fill-memory-2",
		      &(struct bench_report){
			      .on = memory_kind(0),
			      .unit = "ms",
			      .rounds = BENCH_MORE,
			      .baseline = { "mmap + memcpy, 1 thread", plain_memcpy, NULL },
			      .ours = { "kvmem_populate, 2 threads", by_populate, &a },
			      .limit = { "half of: make and map the pages, then copy",
					 pages_then_copy, &half },
			      .target = 2.6,
			      .limit_target = 1.15,
		      });
}

/* Runs of 1 to 64 pages, zero or not by turns, as memory of a guest that has run for a while. */
static void half_zero(void)
{
	uint64_t x = 88172645463325252u, page = 0, pages = content_bytes / PAGE;
	bool zero = false;

	zero_pages = 0;
	while (page < pages) {
		uint64_t n;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		n = x % 64 + 1;
		if (n > pages - page)
			n = pages - page;
		if (zero)
			memset(content + page * PAGE, 0, n * PAGE);
		zero_pages += zero ? n : 0;
		page += n;
		zero = !zero;
	}
}

static void zeros(void)
{
	static struct fill_arg one = { .threads = 1, .count_zero = true };
	static struct fill_arg a = { .count_zero = true };

	need_content(fill_bytes() * 2);
	half_zero();
	bench_compare("fill-zero",
		      &(struct bench_report){
			      .on = memory_kind(0),
			      .unit = "ms",
			      .rounds = BENCH_MORE,
			      .baseline = { "mmap + memcpy of all", plain_memcpy, NULL },
			      .ours = { "kvmem_populate, zero pages left out", by_populate, &a },
			      .target = 1.8,
			      .note = "half of the pages are zero, in runs of 1 to 64",
		      });
	bench_compare("fill-zero-1",
		      &(struct bench_report){
			      .on = memory_kind(0),
			      .unit = "ms",
			      .rounds = BENCH_MORE,
			      .baseline = { "mmap + memcpy of all", plain_memcpy, NULL },
			      .ours = { "the same, 1 thread", by_populate, &one },
		      });
	munmap(content, content_bytes);
	content = NULL;
	content_bytes = 0;
}

static void threads(void)
{
	double x[4], y[4];

	need_content(fill_bytes());
	for (uint32_t t = 1; t <= 4; t++) {
		struct fill_arg a = { .threads = t };

		x[t - 1] = t;
		y[t - 1] = bench_median(by_populate, &a) / 1e6;
	}
	bench_series("fill-threads", memory_kind(0), "threads", "ms", x, y, 4);
}

static void chunks(void)
{
	double x[9], y[9];

	need_content(fill_bytes());
	for (unsigned int i = 0; i < 9; i++) {
		struct fill_arg a = { .threads = 1,
				      .method = KVMEM_FILL_POPULATE_COPY,
				      .chunk = (UINT64_C(16) << 10) << i };

		x[i] = (double)(16 << i);
		y[i] = bench_median(by_populate, &a) / 1e6;
	}
	bench_series("fill-chunk", memory_kind(0), "KiB", "ms", x, y, 9);
}

/* The cost of a page by each method on each kind of memory; those it does not take are left out. */
static void methods(void)
{
	static const uint32_t backings[] = { KVMEM_BACKING_GUEST_MEMFD, KVMEM_BACKING_MEMFD,
					     KVMEM_BACKING_ANONYMOUS };

	need_content(fill_bytes() / 2);
	for (unsigned int b = 0; b < 3; b++) {
		bool gmem = backings[b] == KVMEM_BACKING_GUEST_MEMFD;

		if (gmem && strcmp(memory_kind(0), "guest_memfd") != 0)
			continue;
		for (uint32_t m = KVMEM_FILL_WRITE; m <= KVMEM_FILL_COPY; m++) {
			struct fill_arg a = { .threads = 1, .method = m, .backing = backings[b] };
			struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
			double x = m, y;
			struct kvmem_source *s;
			struct memory mem;
			char curve[64];
			int r;

			memory_make(&mem, backings[b], MIB, MIB);
			bench_check(!kvmem_source_memory(content, MIB, &s), "source");
			o.method = m;
			r = kvmem_populate(mem.region, 0, s, &o, NULL);
			kvmem_source_free(s);
			memory_free(&mem);
			if (r)
				continue;
			y = bench_median(by_populate, &a) / ((double)content_bytes / (double)PAGE);
			snprintf(curve, sizeof(curve), "%s, %s", memory_kind(backings[b]),
				 kvmem_fill_method_name(m));
			bench_series("fill-method", curve, "method", "ns/page", &x, &y, 1);
		}
	}
}

BENCH_MAIN({ "fill-memory-1", memory_1 }, { "fill-memory-2", memory_2 }, { "fill-zero", zeros },
	   { "fill-threads", threads }, { "fill-chunk", chunks }, { "fill-method", methods })
