// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What a map gives out. Runs are made in two steps: the edges of the runs of some words (pages at
 * which clean turns to dirty or back), then pairs of edges to runs. Edges come out of a word by the
 * number of them, whatever their pattern, and where the processor has the instructions a whole word
 * at once.
 */
#include <stddef.h>
#include <string.h>

#include "dirty/bitmap.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define EDGES 1024u /* enough: no more lines are begun */
#define SPAN \
	(UINT32_MAX - 1024) /* pages; a longer run is given in parts: 16 TiB with 4 KiB pages */
#define LINE_EDGES (KM_DMAP_LINE * 64 + 64) /* of a line, and room to store some too many */

struct edges {
	uint64_t base; /* page from which they count */
	size_t count;
	_Alignas(64) uint32_t at[EDGES + LINE_EDGES];
};

/* Lines of a map that are not zero, in order. */
struct walk {
	const struct km_dmap *m;
	uint64_t i;    /* word of l1 */
	uint64_t left; /* its bits that are to come */
};

static void walk_begin(struct walk *w, const struct km_dmap *m, uint64_t word)
{
	uint64_t line = word / KM_DMAP_LINE;

	*w = (struct walk){ .m = m, .i = line / 64 };
	if (w->i < m->n1)
		w->left = m->l1[w->i] & ~0ull << (line % 64);
}

/* To the next word of l1 that is not zero. */
static bool walk_up(struct walk *w)
{
	uint64_t i = w->i + 1, k = i / 64, bits;

	if (k >= w->m->n2)
		return false;
	bits = w->m->l2[k] & ~0ull << (i % 64);
	while (!bits) {
		if (++k >= w->m->n2)
			return false;
		bits = w->m->l2[k];
	}
	w->i = k * 64 + (uint64_t)__builtin_ctzll(bits);
	w->left = w->m->l1[w->i];
	return true;
}

/* Its first word, and a bit for each word that is not zero: where these are, no branch could guess.
 */
static inline bool walk_next(struct walk *w, uint64_t *ret_word, unsigned int *ret_mask)
{
	const uint64_t *l0;

	if (!w->left && !walk_up(w))
		return false;
	*ret_word = (w->i * 64 + (uint64_t)__builtin_ctzll(w->left)) * KM_DMAP_LINE;
	w->left &= w->left - 1;
	l0 = w->m->l0 + *ret_word;
	*ret_mask = 0;
	for (unsigned int i = 0; i < KM_DMAP_LINE; i++)
		*ret_mask |= (unsigned int)!!l0[i] << i;
	return true;
}

typedef size_t add_edges_fn(uint64_t turns, uint32_t first, uint32_t *at);
typedef void store_runs_fn(const struct edges *e, struct kvmem_region *region, unsigned int shift,
			   struct kvmem_run *runs, size_t count);

/* Four pages at a time: which of them turn, how many. Four are stored whatever their number. */
typedef uint32_t four __attribute__((vector_size(16)));

static const four turns_of[16] = {
	{ 0 }, { 0 },	 { 1 },	   { 0, 1 },	{ 2 },	  { 0, 2 },    { 1, 2 },    { 0, 1, 2 },
	{ 3 }, { 0, 3 }, { 1, 3 }, { 0, 1, 3 }, { 2, 3 }, { 0, 2, 3 }, { 1, 2, 3 }, { 0, 1, 2, 3 },
};
static const uint8_t count_of[16] = { 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4 };

/* The positions of the set bits of `turns`; returns how many. Of more than two, none costs a
 * branch. */
static inline size_t add_edges_plain(uint64_t turns, uint32_t first, uint32_t *at)
{
	uint64_t rest = turns & (turns - 1);
	four base = { first, first, first, first };
	size_t n = 0;

	if (!(rest & (rest - 1))) {
		for (; turns; turns &= turns - 1)
			at[n++] = first + (uint32_t)__builtin_ctzll(turns);
		return n;
	}
	for (unsigned int i = 0; i < 64; i += 4, base += 4) {
		four edges = turns_of[turns >> i & 15] + base;

		memcpy(at + n, &edges, sizeof(edges));
		n += count_of[turns >> i & 15];
	}
	return n;
}

static inline void store_runs_plain(const struct edges *e, struct kvmem_region *region,
				    unsigned int shift, struct kvmem_run *runs, size_t count)
{
	for (size_t i = 0; i < count; i++)
		runs[i] = (struct kvmem_run){
			.region = region,
			.offset = (e->base + e->at[2 * i]) << shift,
			.bytes = (uint64_t)(e->at[2 * i + 1] - e->at[2 * i]) << shift,
		};
}

/* The edges of one word. `next` is the word after the last one added, whose last bit is `open`. */
struct scan {
	struct edges *e;
	size_t count;
	uint64_t next, open;
};

static inline __attribute__((always_inline)) void scan_word(struct scan *s, uint64_t word,
							    uint64_t bits, add_edges_fn *add)
{
	uint32_t *at = s->e->at;

	if (word != s->next && s->open) {
		at[s->count++] = (uint32_t)(s->next * 64 - s->e->base);
		s->open = 0;
	}
	s->count += add(bits ^ (bits << 1 | s->open), (uint32_t)(word * 64 - s->e->base),
			at + s->count);
	s->open = bits >> 63;
	s->next = word + 1;
}

static inline bool all_ones(const uint64_t *l)
{
	return (l[0] & l[1] & l[2] & l[3] & l[4] & l[5] & l[6] & l[7]) == ~0ull;
}

static inline __attribute__((always_inline)) void scan_line(struct scan *s, uint64_t word,
							    unsigned int mask, const uint64_t *l0,
							    add_edges_fn *add)
{
	if (mask == 0xff) {
		if (s->open && s->next == word && all_ones(l0)) {
			s->next += KM_DMAP_LINE;
			return;
		}
		for (unsigned int i = 0; i < KM_DMAP_LINE; i++)
			scan_word(s, word + i, l0[i], add);
		return;
	}
	for (; mask; mask &= mask - 1) {
		unsigned int i = (unsigned int)__builtin_ctz(mask);

		scan_word(s, word + i, l0[i], add);
	}
}

/* The first line, from page `pos` on: what lies before was given out. False when nothing is left.
 */
static inline __attribute__((always_inline)) bool scan_first(struct scan *s, struct walk *walk,
							     uint64_t pos, add_edges_fn *add)
{
	uint64_t l0[KM_DMAP_LINE], word;
	unsigned int mask;

	do {
		if (!walk_next(walk, &word, &mask))
			return false;
		for (unsigned int i = 0; i < KM_DMAP_LINE; i++) {
			l0[i] = walk->m->l0[word + i];
			if (word + i < pos / 64)
				l0[i] = 0;
			else if (word + i == pos / 64)
				l0[i] &= ~0ull << (pos % 64);
			mask &= l0[i] ? ~0u : ~(1u << i);
		}
	} while (!mask);
	s->e->base = word * 64;
	scan_line(s, word, mask, l0, add);
	return true;
}

/* Edges of whole runs from page `pos` on, until there is no more room or no more run. */
static inline __attribute__((always_inline)) void collect(const struct km_dmap *m, uint64_t pos,
							  struct edges *e, add_edges_fn *add)
{
	struct scan s = { .e = e };
	struct walk walk;
	unsigned int mask;
	uint64_t word;

	walk_begin(&walk, m, pos / 64);
	if (scan_first(&s, &walk, pos, add)) {
		while (s.count <= EDGES && walk_next(&walk, &word, &mask)) {
			if (word * 64 - e->base > SPAN)
				break;
			scan_line(&s, word, mask, m->l0 + word, add);
		}
		if (s.open && s.count <= EDGES)
			e->at[s.count++] = (uint32_t)(s.next * 64 - e->base);
	}
	e->count = s.count;
}

static inline __attribute__((always_inline)) size_t
next_runs(const struct km_dmap *m, uint64_t *pos, struct kvmem_region *region, unsigned int shift,
	  struct kvmem_run *runs, size_t max, add_edges_fn *add, store_runs_fn *store)
{
	struct edges e;
	size_t n = 0;

	while (n < max) {
		size_t pairs;

		collect(m, *pos, &e, add);
		pairs = e.count / 2 < max - n ? e.count / 2 : max - n;
		if (!pairs) {
			*pos = m->n0 * 64;
			break;
		}
		store(&e, region, shift, runs + n, pairs);
		*pos = e.base + e.at[2 * pairs - 1];
		n += pairs;
	}
	return n;
}

#if defined(__x86_64__)

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,bmi,bmi2,popcnt")))

/* Stores up to 64 edges, of which the first popcount(turns) count. */
static inline AVX512 size_t add_edges_avx512(uint64_t turns, uint32_t first, uint32_t *at)
{
	static const uint8_t numbers[64] = {
		0,  1,	2,  3,	4,  5,	6,  7,	8,  9,	10, 11, 12, 13, 14, 15,
		16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
		32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
		48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
	};
	__m512i set = _mm512_maskz_compress_epi8(turns, _mm512_loadu_si512(numbers));
	__m512i base = _mm512_set1_epi32((int)first);
	size_t n = (size_t)_mm_popcnt_u64(turns);

#define STORE(i) \
	_mm512_storeu_si512( \
		at + 16ul * (i), \
		_mm512_add_epi32(base, _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(set, i))))
	STORE(0);
	if (n > 16) {
		STORE(1);
		STORE(2);
	}
	if (n > 48)
		STORE(3);
#undef STORE
	return n;
}

/* Eight runs at a time: three registers of {region, offset, bytes}, put together from three. */
static inline AVX512 void store_runs_avx512(const struct edges *e, struct kvmem_region *region,
					    unsigned int shift, struct kvmem_run *runs,
					    size_t count)
{
	const __m512i r = _mm512_set1_epi64((long long)(uintptr_t)region);
	const __m512i base = _mm512_set1_epi64((long long)e->base);
	const __m512i low = _mm512_set1_epi64(UINT32_MAX);
	const __m512i i0 = _mm512_setr_epi64(0, 0, 8, 0, 1, 9, 0, 2);
	const __m512i i1 = _mm512_setr_epi64(10, 0, 3, 11, 0, 4, 12, 0);
	const __m512i i2 = _mm512_setr_epi64(5, 13, 0, 6, 14, 0, 7, 15);
	size_t i = 0;

	_Static_assert(sizeof(struct kvmem_run) == 24 && offsetof(struct kvmem_run, offset) == 8,
		       "three 64-bit words");
	for (; i + 8 <= count; i += 8) {
		__m512i pairs = _mm512_loadu_si512(e->at + 2 * i);
		__m512i from = _mm512_and_si512(pairs, low);
		__m512i len = _mm512_sub_epi64(_mm512_srli_epi64(pairs, 32), from);

		from = _mm512_slli_epi64(_mm512_add_epi64(from, base), shift);
		len = _mm512_slli_epi64(len, shift);
		_mm512_storeu_si512(
			(char *)(runs + i),
			_mm512_mask_mov_epi64(_mm512_permutex2var_epi64(from, i0, len), 0x49, r));
		_mm512_storeu_si512(
			(char *)(runs + i) + 64,
			_mm512_mask_mov_epi64(_mm512_permutex2var_epi64(from, i1, len), 0x92, r));
		_mm512_storeu_si512(
			(char *)(runs + i) + 128,
			_mm512_mask_mov_epi64(_mm512_permutex2var_epi64(from, i2, len), 0x24, r));
	}
	for (; i < count; i++)
		runs[i] = (struct kvmem_run){
			.region = region,
			.offset = (e->base + e->at[2 * i]) << shift,
			.bytes = (uint64_t)(e->at[2 * i + 1] - e->at[2 * i]) << shift,
		};
}

static AVX512 size_t next_runs_avx512(const struct km_dmap *m, uint64_t *pos,
				      struct kvmem_region *region, unsigned int shift,
				      struct kvmem_run *runs, size_t max)
{
	return next_runs(m, pos, region, shift, runs, max, add_edges_avx512, store_runs_avx512);
}

#endif

/*
 * Lines with gaps between them are nothing that the processor would fetch ahead by itself: asked
 * for together, they come together, also from memory. Not within the loops over words: it costs
 * them registers.
 */
static void ask_ahead(const struct km_dmap *m, uint64_t pos, size_t runs)
{
	uint64_t i = pos / 64 / KM_DMAP_LINE / 64;
	size_t asked = 0;

	if (runs > EDGES)
		runs = EDGES;
	for (; i < m->n1 && asked < runs && m->l1[i] != ~0ull; i++)
		for (uint64_t left = m->l1[i]; left; left &= left - 1, asked++)
			__builtin_prefetch(m->l0 + (i * 64 + (uint64_t)__builtin_ctzll(left)) *
							   KM_DMAP_LINE);
	__asm__ volatile(""); /* gcc drops calls of a function that does nothing but prefetch */
}

size_t km_dmap_runs_plain(const struct km_dmap *m, uint64_t *pos, struct kvmem_region *region,
			  unsigned int shift, struct kvmem_run *runs, size_t max)
{
	ask_ahead(m, *pos, max);
	return next_runs(m, pos, region, shift, runs, max, add_edges_plain, store_runs_plain);
}

size_t km_dmap_runs(const struct km_dmap *m, uint64_t *pos, struct kvmem_region *region,
		    unsigned int shift, struct kvmem_run *runs, size_t max)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bw")) {
		ask_ahead(m, *pos, max);
		return next_runs_avx512(m, pos, region, shift, runs, max);
	}
#endif
	return km_dmap_runs_plain(m, pos, region, shift, runs, max);
}

static void or_word(uint64_t v, uint64_t word, uint64_t first, uint64_t *out)
{
	uint64_t at = word * 64 - first; /* wraps below 0 in the first word */

	if (word * 64 < first) {
		out[0] |= v >> (first % 64);
		return;
	}
	if (v << (at % 64))
		out[at / 64] |= v << (at % 64);
	if (at % 64 && v >> (64 - at % 64))
		out[at / 64 + 1] |= v >> (64 - at % 64);
}

void km_dmap_or_out(const struct km_dmap *m, uint64_t first, uint64_t count, uint64_t *out)
{
	uint64_t word, last = (first + count - 1) / 64;
	struct walk walk;
	unsigned int mask;

	walk_begin(&walk, m, first / 64);
	while (walk_next(&walk, &word, &mask) && word <= last)
		for (uint64_t w = word; w < word + KM_DMAP_LINE && w <= last; w++)
			if (w >= first / 64)
				or_word(m->l0[w] & km_dmap_mask(w, first, count), w, first, out);
}
