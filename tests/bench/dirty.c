// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The dirty tracker's work in memory: rings to maps, maps to runs. */
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench.h"
#include "dirty/bitmap.h"
#include "dirty/ring.h"

#define GIB	   (UINT64_C(1) << 30)
#define PAGE_SHIFT 12

/* ---- rings ---- */

#define RING_ENTRIES 65536u
#define SLOT	     1u
#define GUEST_PAGES  (16 * GIB >> PAGE_SHIFT)

static struct kvm_dirty_gfn *rings;
static uint64_t *bitmap, *want;
static struct km_dmap map;
static size_t want_words;

static size_t ring_count(void)
{
	return bench_quick() ? 8 : 64;
}

static size_t entry_count(void)
{
	return ring_count() * RING_ENTRIES;
}

static uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* In order: each vCPU writes its own stretch of the guest. */
static void make_rings(bool random)
{
	uint64_t state = 88172645463325252u, stretch = GUEST_PAGES / ring_count();

	want_words = GUEST_PAGES / 64;
	if (!rings) {
		rings = bench_alloc(entry_count() * sizeof(*rings));
		bitmap = bench_alloc(want_words * 8);
		want = bench_alloc(want_words * 8);
		bench_check(!km_dmap_init(&map, GUEST_PAGES), "no memory for a map");
		memset(map.l0, 0, map.n0 * 8);
	}
	memset(want, 0, want_words * 8);
	for (size_t i = 0; i < entry_count(); i++) {
		uint64_t page = random ? next_random(&state) % GUEST_PAGES
				       : i / RING_ENTRIES * stretch + i % RING_ENTRIES;

		rings[i] = (struct kvm_dirty_gfn){ .slot = SLOT, .offset = page };
		want[page / 64] |= UINT64_C(1) << (page % 64);
	}
}

static void push_all(void)
{
	for (size_t i = 0; i < entry_count(); i++)
		rings[i].flags = KVM_DIRTY_GFN_F_DIRTY;
}

static double ended(double start, const uint64_t *got, uint64_t entries)
{
	double ns = (bench_now() - start) / (double)entry_count();

	bench_check(entries == entry_count(), "entries were left in the rings");
	for (size_t i = 0; i < entry_count(); i++)
		bench_check(rings[i].flags == KVM_DIRTY_GFN_F_RESET, "an entry was not marked");
	bench_check(!memcmp(got, want, want_words * 8), "the bitmap is not what was written");
	return ns;
}

static uint32_t collect_by_entry(struct kvm_dirty_gfn *ring)
{
	uint64_t *to = bitmap;
	uint32_t n = 0;

	for (; n < RING_ENTRIES; n++) {
		struct kvm_dirty_gfn *e = &ring[n % RING_ENTRIES];
		uint64_t page;

		if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		page = e->offset;
		if (e->slot == SLOT && page < GUEST_PAGES)
			to[page / 64] |= UINT64_C(1) << (page % 64);
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
	}
	return n;
}

static double by_entry(void *arg)
{
	uint64_t n = 0;
	double start;

	(void)arg;
	push_all();
	memset(bitmap, 0, want_words * 8);
	start = bench_now();
	for (size_t i = 0; i < ring_count(); i++)
		n += collect_by_entry(rings + i * RING_ENTRIES);
	return ended(start, bitmap, n);
}

static double by_reader(void *arg)
{
	struct km_ring_slot slot = { .own = &map, .shared = &map, .pages = GUEST_PAGES };
	struct km_slot record = { .tracked = &slot };
	struct km_slot *table[SLOT + 1] = { NULL, &record }, **by_id[] = { table, table };
	struct km_ring_slots slots = { .by_id = by_id, .ids = SLOT + 1 };
	uint64_t n = 0;
	double start;

	(void)arg;
	push_all();
	km_dmap_clear(&map);
	start = bench_now();
	for (size_t i = 0; i < ring_count(); i++) {
		struct km_ring ring = { .entries = (struct km_ring_entry *)(rings +
									    i * RING_ENTRIES),
					.mask = RING_ENTRIES - 1 };

		n += km_ring_take(&ring, &slots, false);
	}
	return ended(start, map.l0, n);
}

static uint64_t sum;

static double by_stream(void *arg)
{
	const uint64_t *p = (const uint64_t *)rings;
	uint64_t s = 0;
	double start;

	(void)arg;
	push_all();
	start = bench_now();
	for (size_t i = 0; i < entry_count() * 2; i += 8) {
		__builtin_prefetch(p + i + 512); /* the hardware's prefetcher stops at each page */
		for (size_t k = i; k < i + 8; k++)
			s += p[k];
	}
	__atomic_store_n(&sum, s, __ATOMIC_RELAXED);
	return (bench_now() - start) / (double)entry_count();
}

static void rings_row(const char *name, bool random)
{
	char on[80];
	struct bench_report r = {
		.on = on,
		.unit = "ns/entry",
		.baseline = { "per entry: load-acquire, set bit, store-release", by_entry, NULL },
		.ours = { "the library's reader, with the map's summaries", by_reader, NULL },
		.limit = { "reading the rings alone", by_stream, NULL },
		.target = 1.3,
		.note = "both leave the same bitmap, and every entry marked",
	};

	snprintf(on, sizeof(on), "%zu rings of %u entries, pages of 16 GiB", ring_count(),
		 RING_ENTRIES);
	make_rings(random);
	bench_compare(name, &r);
}

static void rings_sequential(void)
{
	rings_row("dirty-ring-sequential", false);
}

static void rings_random(void)
{
	rings_row("dirty-ring-random", true);
}

/* ---- runs ---- */

#define RUNS	  1024u
#define MAP_PAGES (64 * GIB >> PAGE_SHIFT)

static struct km_dmap big;
static struct kvmem_run runs[RUNS];
static uint64_t run_count, run_sum;

static void take_runs(size_t n)
{
	for (size_t i = 0; i < n; i++)
		run_sum += runs[i].offset * 3 + runs[i].bytes;
	run_count += n;
}

static bool is_set(const uint64_t *bits, uint64_t page)
{
	return bits[page / 64] >> (page % 64) & 1;
}

/* With `check`, the runs are summed up, for the sides to be held against each other. */
static double runs_by_bit(bool check)
{
	const uint64_t *bits = big.l0;
	double start = bench_now();
	size_t n = 0;

	for (uint64_t page = 0; page < MAP_PAGES; page++) {
		uint64_t first = page;

		if (!is_set(bits, page))
			continue;
		while (page < MAP_PAGES && is_set(bits, page))
			page++;
		runs[n++] = (struct kvmem_run){ .offset = first << PAGE_SHIFT,
						.bytes = (page - first) << PAGE_SHIFT };
		if (n < RUNS)
			continue;
		if (check)
			take_runs(n);
		n = 0;
	}
	if (check)
		take_runs(n);
	return bench_now() - start;
}

static double runs_by_word(bool check)
{
	double start = bench_now();
	uint64_t pos = 0;
	size_t n;

	do {
		n = km_dmap_runs(&big, &pos, NULL, PAGE_SHIFT, runs, RUNS);
		if (check)
			take_runs(n);
	} while (n == RUNS);
	return bench_now() - start;
}

static double side_by_bit(void *arg)
{
	(void)arg;
	return runs_by_bit(false);
}

static double side_by_word(void *arg)
{
	(void)arg;
	return runs_by_word(false);
}

static double side_read(void *arg)
{
	double start = bench_now();
	uint64_t s = 0;

	(void)arg;
	for (size_t i = 0; i < big.n0; i++)
		s += big.l0[i];
	__atomic_store_n(&sum, s, __ATOMIC_RELAXED);
	return bench_now() - start;
}

static void check_runs(void)
{
	uint64_t count, checksum;

	run_count = run_sum = 0;
	runs_by_bit(true);
	count = run_count;
	checksum = run_sum;
	run_count = run_sum = 0;
	runs_by_word(true);
	bench_check(run_count == count && run_sum == checksum,
		    "not the runs of the loop over bits");
}

static void runs_row(const char *name, unsigned int per_mille, double target, const char *on)
{
	struct bench_report r = {
		.on = on,
		.unit = "ms",
		.baseline = { "bit by bit", side_by_bit, NULL },
		.ours = { "word by word", side_by_word, NULL },
		.limit = { "reading the bitmap", side_read, NULL },
		.target = target,
		.rounds = per_mille < 10 ? BENCH_SPREAD : 0,
		.note = "runs stored 1024 at a time, the same on both sides",
	};
	uint64_t state = 88172645463325252u;

	bench_check(!km_dmap_init(&big, MAP_PAGES), "no memory for a map");
	memset(big.l0, 0, big.n0 * 8);
	for (uint64_t p = 0; p < MAP_PAGES; p++)
		if (next_random(&state) % 1000 < per_mille)
			km_dmap_or(&big, p / 64, UINT64_C(1) << (p % 64));
	check_runs();
	bench_compare(name, &r);
	km_dmap_destroy(&big);
}

static void runs_sparse(void)
{
	runs_row("dirty-runs-sparse", 1, 20, "bitmap of 64 GiB, 0.1 % of the pages at random");
}

static void runs_half(void)
{
	runs_row("dirty-runs-half", 500, 8, "bitmap of 64 GiB, 50 % of the pages at random");
}

BENCH_MAIN({ "dirty-ring-sequential", rings_sequential }, { "dirty-ring-random", rings_random },
	   { "dirty-runs-sparse", runs_sparse }, { "dirty-runs-half", runs_half })
