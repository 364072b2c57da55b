// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "region/presence.h"

#include <errno.h>
#include <sys/mman.h>

#include "region/region.h"

#define PER_WORD 32u
#define LOW_BITS 0x5555555555555555ull /* the low bit of each page's pair */

static size_t map_bytes(uint64_t pages)
{
	return (size_t)((pages + PER_WORD - 1) / PER_WORD * sizeof(uint64_t));
}

/* A map of its own for the kernel to keep reserved costs two calls and KVM's notice of the second:
 * more than all else that making a small region adds to the system calls it cannot do without. */
#define FROM_HEAP (64u << 10)

int km_presence_init(struct km_presence *p, uint64_t pages)
{
	size_t bytes = map_bytes(pages);
	void *map = NULL;
	int64_t r = 0;

	if (bytes > FROM_HEAP)
		r = km_sys_mmap(bytes, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &map);
	else
		map = km_sys_alloc(bytes);
	if (r < 0 || !map)
		return km_fail(r < 0 ? (int)-r : ENOMEM, "presence map of %zu bytes: %m", bytes);
	p->words = map;
	p->pages = pages;
	atomic_store(&p->done, 0);
	return 0;
}

void km_presence_destroy(struct km_presence *p)
{
	if (map_bytes(p->pages) > FROM_HEAP)
		km_sys_munmap((void *)p->words, map_bytes(p->pages));
	else
		km_sys_free((void *)p->words);
	p->words = NULL;
}

static uint64_t load(const struct km_presence *p, uint64_t page)
{
	return atomic_load_explicit(&p->words[page / PER_WORD], memory_order_acquire);
}

static enum km_page_state state_in(uint64_t word, uint64_t page)
{
	return (enum km_page_state)(word >> (page % PER_WORD * 2) & 3);
}

enum km_page_state km_presence_get(const struct km_presence *p, uint64_t page)
{
	return state_in(load(p, page), page);
}

/* How many pages from `page` on are in `state`, within one word. */
static unsigned int run_in(uint64_t word, uint64_t page, enum km_page_state state)
{
	unsigned int shift = (unsigned int)(page % PER_WORD * 2);
	uint64_t diff = (word ^ (LOW_BITS * state)) >> shift;

	if (!diff)
		return PER_WORD - shift / 2;
	return (unsigned int)__builtin_ctzll(diff) / 2;
}

uint64_t km_presence_run(const struct km_presence *p, uint64_t page, uint64_t max,
			 enum km_page_state *ret_state)
{
	uint64_t word = load(p, page), n = 0;

	max = km_min(max, p->pages - page);
	*ret_state = state_in(word, page);
	for (;;) {
		unsigned int left = PER_WORD - (unsigned int)((page + n) % PER_WORD);
		unsigned int k = run_in(word, page + n, *ret_state);

		n += k;
		if (k < left || n >= max)
			return km_min(n, max);
		word = load(p, page + n);
	}
}

/* The pairs of `count` pages from `page` on, all within one word, each with value `v`. */
static uint64_t pairs(uint64_t page, uint64_t count, unsigned int v)
{
	uint64_t all = LOW_BITS * v;

	if (count < PER_WORD)
		all &= (1ull << (count * 2)) - 1;
	return all << (page % PER_WORD * 2);
}

uint64_t km_presence_claim(struct km_presence *p, uint64_t first, uint64_t max)
{
	uint64_t n = 0;

	if (first >= p->pages)
		return 0;
	max = km_min(max, p->pages - first);
	while (n < max) {
		_Atomic uint64_t *w = &p->words[(first + n) / PER_WORD];
		uint64_t in_word = km_min(max - n, PER_WORD - (first + n) % PER_WORD);
		uint64_t old = atomic_load_explicit(w, memory_order_acquire);
		uint64_t got;

		do {
			got = km_min(run_in(old, first + n, KM_ABSENT), in_word);
			if (!got)
				return n;
		} while (!atomic_compare_exchange_weak_explicit(
			w, &old, old | pairs(first + n, got, KM_CLAIMED), memory_order_acq_rel,
			memory_order_acquire));
		n += got;
		if (got < in_word)
			break;
	}
	return n;
}

/* XOR turns CLAIMED (1) into the wanted state, and only the claimer touches a claimed pair. */
static void flip(struct km_presence *p, uint64_t first, uint64_t count, unsigned int with)
{
	while (count) {
		uint64_t n = km_min(count, PER_WORD - first % PER_WORD);

		atomic_fetch_xor_explicit(&p->words[first / PER_WORD], pairs(first, n, with),
					  memory_order_acq_rel);
		first += n;
		count -= n;
	}
}

void km_presence_publish(struct km_presence *p, uint64_t first, uint64_t count,
			 enum km_page_state state)
{
	flip(p, first, count, (unsigned int)KM_CLAIMED ^ (unsigned int)state);
	atomic_fetch_add_explicit(&p->done, count, memory_order_acq_rel);
}

void km_presence_abandon(struct km_presence *p, uint64_t first, uint64_t count)
{
	flip(p, first, count, KM_CLAIMED);
}

void km_presence_change(struct km_presence *p, uint64_t first, uint64_t count,
			enum km_page_state from, enum km_page_state to)
{
	for (; count; first++, count--) {
		_Atomic uint64_t *w = &p->words[first / PER_WORD];
		uint64_t old = atomic_load_explicit(w, memory_order_acquire);

		while (state_in(old, first) == from &&
		       !atomic_compare_exchange_weak_explicit(
			       w, &old,
			       old ^ pairs(first, 1, (unsigned int)from ^ (unsigned int)to),
			       memory_order_acq_rel, memory_order_acquire))
			;
	}
}

void km_presence_settle(const struct km_presence *p, uint64_t first, uint64_t count)
{
	enum km_page_state state;
	unsigned int spins = 0;

	while (count) {
		uint64_t n = km_presence_run(p, first, count, &state);

		if (state == KM_CLAIMED) {
			if (++spins > 100)
				km_sys_yield();
			continue;
		}
		first += n;
		count -= n;
	}
}
