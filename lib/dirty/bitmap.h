/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_DIRTY_BITMAP_H
#define KM_DIRTY_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <kvmem/region.h>

/*
 * A bit per page (l0) under two levels of summary: a bit of l1 says that one of eight words of l0,
 * a cache line, is not zero, a bit of l2 the same of a word of l1. So finding, counting and
 * clearing cost by what is dirty, not by the size of the guest (64 GiB: 8 words of l2, 4 KiB of
 * l1), and a page in a cold map costs one cache line. The memory is reserved, not touched, at
 * creation.
 *
 * Two sets of writers: km_dmap_or() for a map that one thread owns, km_dmap_or_shared() for one
 * that any thread adds to while one takes from it. The two do not mix on one map.
 */
struct km_dmap {
	uint64_t pages;
	size_t n0, n1, n2; /* words of each level */
	uint64_t *l0, *l1, *l2;
	uint64_t set; /* bits set, unless some were set without counting */
	bool uncounted;
	void *map;
	size_t map_bytes;
};

#define KM_DMAP_LINE	      8u /* words of l0 under a bit of l1 */
#define KM_DMAP_L1_WORD(word) ((word) >> 9)
#define KM_DMAP_L1_BIT(word)  (1ull << ((word) >> 3 & 63))
#define KM_DMAP_L2_WORD(word) ((word) >> 15)
#define KM_DMAP_L2_BIT(word)  (1ull << ((word) >> 9 & 63))

int km_dmap_init(struct km_dmap *m, uint64_t pages);
void km_dmap_destroy(struct km_dmap *m);

/* bits is not 0. The caller sets m->uncounted, once for many. */
static inline void km_dmap_or(struct km_dmap *m, uint64_t word, uint64_t bits)
{
	uint64_t old = m->l0[word];

	m->l0[word] = old | bits;
	if (!old) {
		m->l1[KM_DMAP_L1_WORD(word)] |= KM_DMAP_L1_BIT(word);
		m->l2[KM_DMAP_L2_WORD(word)] |= KM_DMAP_L2_BIT(word);
	}
}

/* Where they are few, counting as they come saves a second visit to each. */
static inline void km_dmap_or_counted(struct km_dmap *m, uint64_t word, uint64_t bits)
{
	uint64_t fresh = bits & ~m->l0[word];

	/* One bit mostly, and population count may be a call. */
	m->set += fresh & (fresh - 1) ? (uint64_t)__builtin_popcountll(fresh) : !!fresh;
	km_dmap_or(m, word, bits);
}

static inline void km_dmap_or_bit_shared(uint64_t *word, uint64_t bit)
{
	if (!(__atomic_load_n(word, __ATOMIC_SEQ_CST) & bit))
		__atomic_fetch_or(word, bit, __ATOMIC_SEQ_CST);
}

/*
 * Bottom up, where km_dmap_take() clears top down: whoever finds a summary bit set already has put
 * its word where the taker that clears that bit will still look for it. Sequentially consistent,
 * since each side stores to one level and then loads another.
 */
static inline void km_dmap_or_shared(struct km_dmap *m, uint64_t word, uint64_t bits)
{
	__atomic_fetch_or(&m->l0[word], bits, __ATOMIC_SEQ_CST);
	km_dmap_or_bit_shared(&m->l1[KM_DMAP_L1_WORD(word)], KM_DMAP_L1_BIT(word));
	km_dmap_or_bit_shared(&m->l2[KM_DMAP_L2_WORD(word)], KM_DMAP_L2_BIT(word));
}

/* The bits of [first, first + count) that lie in `word`. */
static inline uint64_t km_dmap_mask(uint64_t word, uint64_t first, uint64_t count)
{
	uint64_t lo = first > word * 64 ? first - word * 64 : 0;
	uint64_t end = first + count - word * 64;
	uint64_t mask = ~0ull << lo;

	return end < 64 ? mask & ~(~0ull << end) : mask;
}

/* Pages [first, first + count), into a map that the caller owns, and into a shared one. */
void km_dmap_set_range(struct km_dmap *m, uint64_t first, uint64_t count);
void km_dmap_set_range_shared(struct km_dmap *m, uint64_t first, uint64_t count);

/* Pages first + i for each bit i of `bits` below `count`, any alignment of first; returns how many.
 */
uint64_t km_dmap_or_bits(struct km_dmap *m, uint64_t first, const uint64_t *bits, uint64_t count);

/* The same into a shared map. */
uint64_t km_dmap_or_bits_shared(struct km_dmap *m, uint64_t first, const uint64_t *bits,
				uint64_t count);

/* Move everything from a shared map into each of `count` that the caller owns. */
void km_dmap_take(struct km_dmap *const *into, size_t count, struct km_dmap *shared);

/* All that `from` has, into another one; the caller owns both. */
void km_dmap_add(struct km_dmap *into, const struct km_dmap *from);

/* Pages [first, first + count) are not set any more, in a map that the caller owns. */
void km_dmap_clear_range(struct km_dmap *m, uint64_t first, uint64_t count);

uint64_t km_dmap_count(struct km_dmap *m);
void km_dmap_clear(struct km_dmap *m);

/*
 * Runs of set bits at or after page *pos, in order and merged, at most `max`, as runs of `region`
 * in bytes (page << shift); *pos moves on to where the next call begins. Fewer than `max` only at
 * the end.
 */
size_t km_dmap_runs(const struct km_dmap *m, uint64_t *pos, struct kvmem_region *region,
		    unsigned int shift, struct kvmem_run *runs, size_t max);

/* OR bits [first, first + count) into `out`, whose bit 0 is page `first`. */
void km_dmap_or_out(const struct km_dmap *m, uint64_t first, uint64_t count, uint64_t *out);

#endif
