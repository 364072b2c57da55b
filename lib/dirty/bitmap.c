// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "dirty/bitmap.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "base/sys.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b)  PASTE_(a, b)
#define FOR_EACH_BIT_(i, w, left) \
	for (uint64_t left = (w); left && ((i) = (unsigned int)__builtin_ctzll(left), 1); \
	     left &= left - 1)
#define FOR_EACH_BIT(i, w) FOR_EACH_BIT_(i, w, PASTE(left_, __LINE__))

static size_t words(uint64_t bits)
{
	return (size_t)((bits + 63) / 64);
}

/*
 * In huge pages where it pays: after a run of the guest the TLB is cold, and a harvest that touches
 * words all over the map would walk the page tables for each. Whether the kernel has any is its
 * business.
 */
#define HUGE_PAGE (2u << 20)
#define HUGE_FROM (256u << 10)

static uint64_t *place(struct km_dmap *m, size_t bytes)
{
	uintptr_t at = (uintptr_t)m->map;

	if (bytes < HUGE_FROM)
		return m->map;
	at = (at + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
	km_sys_madvise((void *)at, m->map_bytes - HUGE_PAGE, MADV_HUGEPAGE);
	return (uint64_t *)at;
}

int km_dmap_init(struct km_dmap *m, uint64_t pages)
{
	size_t bytes, lines;
	int64_t r;

	memset(m, 0, sizeof(*m));
	m->pages = pages;
	m->n0 = words(pages);
	lines = (m->n0 + KM_DMAP_LINE - 1) / KM_DMAP_LINE;
	m->n1 = words(lines);
	m->n2 = words(m->n1);
	bytes = (lines * KM_DMAP_LINE + m->n1 + m->n2) * sizeof(uint64_t);
	m->map_bytes = bytes < HUGE_FROM
			       ? bytes
			       : ((bytes + HUGE_PAGE - 1) & ~(size_t)(HUGE_PAGE - 1)) + HUGE_PAGE;
	r = km_sys_mmap(m->map_bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &m->map);
	if (r < 0)
		return km_fail((int)-r, "dirty map of %zu bytes: %m", m->map_bytes);
	m->l0 = place(m, bytes);
	m->l1 = m->l0 + lines * KM_DMAP_LINE;
	m->l2 = m->l1 + m->n1;
	return 0;
}

void km_dmap_destroy(struct km_dmap *m)
{
	km_sys_munmap(m->map, m->map_bytes);
	memset(m, 0, sizeof(*m));
}

void km_dmap_set_range(struct km_dmap *m, uint64_t first, uint64_t count)
{
	for (uint64_t w = first / 64; count && w <= (first + count - 1) / 64; w++)
		km_dmap_or_counted(m, w, km_dmap_mask(w, first, count));
}

void km_dmap_set_range_shared(struct km_dmap *m, uint64_t first, uint64_t count)
{
	for (uint64_t w = first / 64; count && w <= (first + count - 1) / 64; w++)
		km_dmap_or_shared(m, w, km_dmap_mask(w, first, count));
}

static inline void or_word(struct km_dmap *m, uint64_t word, uint64_t bits, bool shared)
{
	if (shared)
		km_dmap_or_shared(m, word, bits);
	else
		km_dmap_or(m, word, bits);
}

static inline __attribute__((always_inline)) uint64_t or_bits(struct km_dmap *m, uint64_t first,
							      const uint64_t *bits, uint64_t count,
							      bool shared)
{
	unsigned int shift = (unsigned int)(first % 64);
	uint64_t word = first / 64, n = 0;

	for (uint64_t i = 0; i < count; i += 64) {
		uint64_t v = bits[i / 64];

		if (count - i < 64)
			v &= ~(~0ull << (count - i));
		if (!v)
			continue;
		n += (uint64_t)__builtin_popcountll(v);
		if (v << shift)
			or_word(m, word + i / 64, v << shift, shared);
		if (shift && v >> (64 - shift))
			or_word(m, word + i / 64 + 1, v >> (64 - shift), shared);
	}
	return n;
}

uint64_t km_dmap_or_bits(struct km_dmap *m, uint64_t first, const uint64_t *bits, uint64_t count)
{
	m->uncounted = true;
	return or_bits(m, first, bits, count, false);
}

uint64_t km_dmap_or_bits_shared(struct km_dmap *m, uint64_t first, const uint64_t *bits,
				uint64_t count)
{
	return or_bits(m, first, bits, count, true);
}

static uint64_t take_word(uint64_t *w)
{
	return __atomic_exchange_n(w, 0, __ATOMIC_SEQ_CST);
}

static void take_line(struct km_dmap *const *into, size_t count, struct km_dmap *shared,
		      uint64_t word)
{
	for (uint64_t end = word + KM_DMAP_LINE; word < end; word++) {
		uint64_t bits;

		if (!__atomic_load_n(&shared->l0[word], __ATOMIC_SEQ_CST))
			continue;
		bits = take_word(&shared->l0[word]);
		for (size_t i = 0; i < count && bits; i++)
			km_dmap_or_counted(into[i], word, bits);
	}
}

void km_dmap_take(struct km_dmap *const *into, size_t count, struct km_dmap *shared)
{
	unsigned int i, j;

	for (size_t k = 0; k < shared->n2; k++) {
		if (!__atomic_load_n(&shared->l2[k], __ATOMIC_SEQ_CST))
			continue;
		FOR_EACH_BIT (i, take_word(&shared->l2[k]))
			FOR_EACH_BIT (j, take_word(&shared->l1[k * 64 + i]))
				take_line(into, count, shared,
					  ((k * 64 + i) * 64 + j) * KM_DMAP_LINE);
	}
}

void km_dmap_add(struct km_dmap *into, const struct km_dmap *from)
{
	unsigned int i, j;

	for (size_t k = 0; k < from->n2; k++)
		FOR_EACH_BIT (i, from->l2[k])
			FOR_EACH_BIT (j, from->l1[k * 64 + i]) {
				uint64_t word = ((k * 64 + i) * 64 + j) * KM_DMAP_LINE;

				for (uint64_t end = word + KM_DMAP_LINE; word < end; word++)
					if (from->l0[word])
						km_dmap_or_counted(into, word, from->l0[word]);
			}
}

/* The summaries stay: they may say too much, never too little. */
void km_dmap_clear_range(struct km_dmap *m, uint64_t first, uint64_t count)
{
	for (uint64_t w = first / 64; count && w <= (first + count - 1) / 64; w++) {
		uint64_t gone = m->l0[w] & km_dmap_mask(w, first, count);

		m->l0[w] &= ~gone;
		m->set -= (uint64_t)__builtin_popcountll(gone);
	}
}

static inline __attribute__((always_inline)) uint64_t count_all(const struct km_dmap *m)
{
	unsigned int i, j;
	uint64_t n = 0;

	for (size_t k = 0; k < m->n2; k++)
		FOR_EACH_BIT (i, m->l2[k])
			FOR_EACH_BIT (j, m->l1[k * 64 + i]) {
				const uint64_t *l0 = m->l0 + ((k * 64 + i) * 64 + j) * KM_DMAP_LINE;

				for (unsigned int w = 0; w < KM_DMAP_LINE; w++)
					n += (uint64_t)__builtin_popcountll(l0[w]);
			}
	return n;
}

#if defined(__x86_64__)
__attribute__((target("popcnt"))) static uint64_t count_popcnt(const struct km_dmap *m)
{
	return count_all(m);
}
#endif

uint64_t km_dmap_count(struct km_dmap *m)
{
	if (!m->uncounted)
		return m->set;
#if defined(__x86_64__)
	m->set = __builtin_cpu_supports("popcnt") ? count_popcnt(m) : count_all(m);
#else
	m->set = count_all(m);
#endif
	m->uncounted = false;
	return m->set;
}

void km_dmap_clear(struct km_dmap *m)
{
	unsigned int i, j;

	m->set = 0;
	m->uncounted = false;
	for (size_t k = 0; k < m->n2; k++) {
		FOR_EACH_BIT (i, m->l2[k]) {
			FOR_EACH_BIT (j, m->l1[k * 64 + i])
				memset(m->l0 + ((k * 64 + i) * 64 + j) * KM_DMAP_LINE, 0,
				       KM_DMAP_LINE * sizeof(uint64_t));
			m->l1[k * 64 + i] = 0;
		}
		m->l2[k] = 0;
	}
}
