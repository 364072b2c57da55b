// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "capture/record.h"

#include <errno.h>
#include <stdbool.h>

#include "base/base.h"

#define PER_WORD 16u
#define BITS	 4u
#define EACH	 0x1111111111111111ull

int km_record_init(struct km_record *rec, uint64_t pages)
{
	rec->words = km_sys_alloc((pages + PER_WORD - 1) / PER_WORD * sizeof(*rec->words));
	rec->pages = pages;
	atomic_store(&rec->left, pages);
	return rec->words ? 0 : -ENOMEM;
}

void km_record_destroy(struct km_record *rec)
{
	km_sys_free(rec->words);
	rec->words = NULL;
}

static unsigned int nibble(uint64_t word, unsigned int i)
{
	return (unsigned int)(word >> i * BITS & 0xf);
}

enum km_record_state km_record_get(const struct km_record *rec, uint64_t page)
{
	return nibble(atomic_load(&rec->words[page / PER_WORD]), page % PER_WORD);
}

/* How many pages of a word, from `at` on and at most `max`, are in `state`. */
static unsigned int same(uint64_t word, unsigned int at, uint64_t max, unsigned int state)
{
	uint64_t differs = (word ^ EACH * state) >> at * BITS;
	unsigned int n = differs ? (unsigned int)__builtin_ctzll(differs) / BITS : PER_WORD - at;

	if (n > PER_WORD - at)
		n = PER_WORD - at;
	return (unsigned int)km_min(n, max);
}

uint64_t km_record_run(const struct km_record *rec, uint64_t page, uint64_t max,
		       enum km_record_state *ret_state)
{
	enum km_record_state state = km_record_get(rec, page);
	uint64_t n = 0, step;

	max = km_min(max, rec->pages - page);
	*ret_state = state;
	while (n < max) {
		unsigned int at = (page + n) % PER_WORD;

		step = same(atomic_load(&rec->words[(page + n) / PER_WORD]), at, max - n, state);
		n += step;
		if (!step || (at + step < PER_WORD && n < max))
			break;
	}
	return n ? n : 1;
}

/* `n` nibbles from `at` on, each of them 1. */
static uint64_t ones(unsigned int at, unsigned int n)
{
	return (n < PER_WORD ? EACH & ((1ull << n * BITS) - 1) : EACH) << at * BITS;
}

void km_record_exclude_all(struct km_record *rec)
{
	for (uint64_t i = 0; i < (rec->pages + PER_WORD - 1) / PER_WORD; i++)
		atomic_store_explicit(&rec->words[i], EACH * KM_RECORD_DONE, memory_order_relaxed);
	atomic_store(&rec->left, 0);
}

void km_record_include(struct km_record *rec, uint64_t first, uint64_t count)
{
	uint64_t added = 0;

	for (uint64_t n; count; first += n, count -= n) {
		_Atomic uint64_t *word = &rec->words[first / PER_WORD];
		unsigned int at = first % PER_WORD;
		uint64_t old = atomic_load_explicit(word, memory_order_relaxed), excluded;

		n = km_min(count, PER_WORD - at);
		excluded = old & ones(at, (unsigned int)n); /* DONE is odd, DATA 0 */
		atomic_store_explicit(word, old - excluded * KM_RECORD_DONE, memory_order_relaxed);
		added += (unsigned int)__builtin_popcountll(excluded);
	}
	atomic_fetch_add(&rec->left, added);
}

void km_record_assign(struct km_record *rec, uint64_t first, uint64_t count,
		      enum km_record_state state)
{
	for (uint64_t n; count; first += n, count -= n) {
		_Atomic uint64_t *word = &rec->words[first / PER_WORD];
		unsigned int at = first % PER_WORD;
		uint64_t old = atomic_load(word), free;

		n = km_min(count, PER_WORD - at);
		do {
			free = ~(old | old >> 1 | old >> 2 | old >> 3) & ones(at, (unsigned int)n);
		} while (free && !atomic_compare_exchange_weak(word, &old, old | free * state));
	}
}

/* Neither BUSY nor DONE: the third bit of each is clear. */
uint64_t km_record_next(const struct km_record *rec, uint64_t first)
{
	while (first < rec->pages) {
		unsigned int at = first % PER_WORD;
		uint64_t word = atomic_load(&rec->words[first / PER_WORD]);
		uint64_t open = ~(word >> 2) & EACH & ~0ull << at * BITS;

		if (open) {
			first += (unsigned int)__builtin_ctzll(open) / BITS - at;
			break;
		}
		first += PER_WORD - at;
	}
	return km_min(first, rec->pages);
}

uint64_t km_record_take(struct km_record *rec, uint64_t first, uint64_t max,
			enum km_record_state state)
{
	uint64_t taken = 0;

	max = first < rec->pages ? km_min(max, rec->pages - first) : 0;
	while (taken < max) {
		uint64_t page = first + taken;
		_Atomic uint64_t *word = &rec->words[page / PER_WORD];
		unsigned int at = page % PER_WORD, n;
		uint64_t old = atomic_load(word);

		do {
			n = same(old, at, max - taken, state);
		} while (n && !atomic_compare_exchange_weak(
				      word, &old, old + ones(at, n) * (KM_RECORD_BUSY - state)));
		taken += n;
		if (at + n < PER_WORD)
			break;
	}
	return taken;
}

void km_record_done(struct km_record *rec, uint64_t first, uint64_t count)
{
	for (uint64_t n, left = count; left; first += n, left -= n) {
		unsigned int at = first % PER_WORD;

		n = km_min(left, PER_WORD - at);
		atomic_fetch_add(&rec->words[first / PER_WORD],
				 ones(at, (unsigned int)n) * (KM_RECORD_DONE - KM_RECORD_BUSY));
	}
	atomic_fetch_sub(&rec->left, count);
}

void km_record_put_back(struct km_record *rec, uint64_t page, enum km_record_state state)
{
	atomic_fetch_sub(&rec->words[page / PER_WORD],
			 ones(page % PER_WORD, 1) * (KM_RECORD_BUSY - state));
}
