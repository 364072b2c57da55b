// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What a map gives out: runs of set bits, word by word. A run begins or ends where a bit differs
 * from the one before it, so the set bits of `word ^ word << 1` are the edges of runs, and they
 * come in turn: begin, end, begin...
 */
#include "dirty/bitmap.h"

#include <string.h>

/* Words of a map that are not zero, in order. */
struct walk {
	const struct km_dmap *m;
	uint64_t i;    /* word of l1 */
	uint64_t left; /* its bits that are to come: lines of l0 */
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

/* The first word of the next line that is not zero. */
static inline bool walk_next(struct walk *w, uint64_t *ret_word)
{
	if (!w->left && !walk_up(w))
		return false;
	*ret_word = (w->i * 64 + (uint64_t)__builtin_ctzll(w->left)) * KM_DMAP_LINE;
	w->left &= w->left - 1;
	return true;
}

/* Runs as they are found. One is under way since page `from` when `open`. */
struct out {
	struct kvmem_region *region;
	unsigned int shift;
	struct kvmem_run *runs;
	size_t n, max;
	uint64_t from;
	bool open;
};

/* False when the last run that there is room for is out. */
static inline bool end_run(struct out *o, uint64_t page)
{
	o->runs[o->n++] = (struct kvmem_run){ .region = o->region,
					      .offset = o->from << o->shift,
					      .bytes = (page - o->from) << o->shift };
	o->from = page;
	o->open = false;
	return o->n < o->max;
}

static inline uint64_t next_edge(uint64_t *edges, uint64_t word)
{
	uint64_t page = word * 64 + (uint64_t)__builtin_ctzll(*edges);

	*edges &= *edges - 1;
	return page;
}

/* The edges of one word: first the end of the run under way, then pairs. False as above. */
static inline bool add_word(struct out *o, uint64_t word, uint64_t bits)
{
	uint64_t edges = bits ^ (bits << 1 | o->open);

	if (!edges)
		return true;
	if (o->open && !end_run(o, next_edge(&edges, word)))
		return false;
	while (edges) {
		o->from = next_edge(&edges, word);
		if (!edges) {
			o->open = true;
			break;
		}
		if (!end_run(o, next_edge(&edges, word)))
			return false;
	}
	return true;
}

/* From page *pos on; what is left of the run at the end is given out too. */
size_t km_dmap_runs(const struct km_dmap *m, uint64_t *pos, struct kvmem_region *region,
		    unsigned int shift, struct kvmem_run *runs, size_t max)
{
	struct out o = { .region = region, .shift = shift, .runs = runs, .max = max };
	uint64_t first = *pos / 64, next = first, word;
	struct walk walk;

	walk_begin(&walk, m, first);
	while (walk_next(&walk, &word)) {
		if (word != next && o.open && !end_run(&o, next * 64)) /* zeros in between */
			goto full;
		for (uint64_t w = word < first ? first : word; w < word + KM_DMAP_LINE; w++) {
			uint64_t bits = m->l0[w];

			if (w == first)
				bits &= ~0ull << (*pos % 64);
			if (!add_word(&o, w, bits))
				goto full;
		}
		next = word + KM_DMAP_LINE;
	}
	if (o.open)
		end_run(&o, next * 64);
	*pos = m->n0 * 64;
	return o.n;
full:
	*pos = o.from;
	return o.n;
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

	walk_begin(&walk, m, first / 64);
	while (walk_next(&walk, &word) && word <= last)
		for (uint64_t w = word; w < word + KM_DMAP_LINE && w <= last; w++)
			if (w >= first / 64)
				or_word(m->l0[w] & km_dmap_mask(w, first, count), w, first, out);
}
