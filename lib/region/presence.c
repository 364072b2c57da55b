// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "region/presence.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/base.h"

#define PER_WORD KM_PAGES_PER_WORD
#define BITS	 KM_PAGE_BITS
#define EACH	 0x1111111111111111ull /* the lowest bit of each page */
#define TOP	 (EACH * KM_CLAIMED)
#define WANTED	 1u
#define REMOVED	 KM_PAGE_REMOVED
#define MARKED	 KM_PAGE_MARKED

/* How long a waiter sleeps before it looks by itself. */
#define LOOK_NS 100000000u

static size_t map_bytes(uint64_t pages)
{
	return (size_t)((pages + PER_WORD - 1) / PER_WORD * sizeof(uint64_t));
}

/*
 * A mapping of its own costs two system calls, and KVM is told of the second: more than all else
 * that making a small region adds to the system calls it cannot do without.
 */
#define FROM_HEAP (64u << 10)

int km_presence_init_growing(struct km_presence *p, uint64_t pages, uint64_t room)
{
	size_t bytes = map_bytes(room);
	void *map = NULL;
	int64_t r = 0;

	if (bytes > FROM_HEAP)
		r = km_sys_mmap(bytes, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &map);
	else
		map = km_sys_alloc(bytes);
	if (r < 0 || !map)
		return km_fail(r < 0 ? (int)-r : ENOMEM, "presence map of %zu bytes: %m", bytes);
	*p = (struct km_presence){ .words = map, .pages = pages, .room = room, .open = pages };
	return 0;
}

void km_presence_destroy(struct km_presence *p)
{
	if (p->mapped)
		km_sys_munmap(p->mapped, p->mapped_bytes);
	else if (map_bytes(p->room) > FROM_HEAP)
		km_sys_munmap((void *)p->words, map_bytes(p->room));
	else
		km_sys_free((void *)p->words);
	p->words = NULL;
}

/* ---- looking ---- */

/* Sequentially consistent: km_presence_wait() counts itself, then looks; who ends a claim changes
 * the word, then looks for waiters. One of the two sees the other. */
static uint64_t load(const struct km_presence *p, uint64_t page)
{
	return atomic_load(&p->words[page / PER_WORD]);
}

static unsigned int shift_of(uint64_t page)
{
	return (unsigned int)(page % PER_WORD) * BITS;
}

static unsigned int bits_in(uint64_t word, uint64_t page)
{
	return (unsigned int)(word >> shift_of(page) & 15);
}

static enum km_page_state state_in(uint64_t word, uint64_t page)
{
	unsigned int bits = bits_in(word, page);

	return (enum km_page_state)(bits & KM_CLAIMED ? KM_CLAIMED : bits);
}

enum km_page_state km_presence_get(const struct km_presence *p, uint64_t page)
{
	return state_in(load(p, page), page);
}

/* How many pages from `page` on, within the word, have no bit set in `diff`. */
static unsigned int clear_run(uint64_t diff, uint64_t page)
{
	diff >>= shift_of(page);
	if (!diff)
		return PER_WORD - (unsigned int)(page % PER_WORD);
	return (unsigned int)__builtin_ctzll(diff) / BITS;
}

static unsigned int run_in(uint64_t word, uint64_t page, enum km_page_state state)
{
	return clear_run(state == KM_CLAIMED ? ~word & TOP : word ^ EACH * state, page);
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

uint64_t km_presence_removed(const struct km_presence *p, uint64_t page, uint64_t max,
			     bool *ret_removed)
{
	uint64_t n = 0;

	*ret_removed = bits_in(load(p, page), page) & REMOVED;
	while (n < max) {
		uint64_t flip = *ret_removed ? EACH * REMOVED : 0;
		uint64_t diff = (load(p, page + n) ^ flip) & EACH * REMOVED;
		unsigned int left = PER_WORD - (unsigned int)((page + n) % PER_WORD);
		unsigned int k = clear_run(diff, page + n);

		n += k;
		if (k < left)
			break;
	}
	return km_min(n, max);
}

/* In one look: the bit of REMOVED is also one of PRESENT, which a claim may become. */
bool km_presence_zero(const struct km_presence *p, uint64_t page)
{
	unsigned int bits = bits_in(load(p, page), page);

	return bits == KM_ZERO || (bits & KM_CLAIMED && bits & REMOVED);
}

uint64_t km_presence_settled(const struct km_presence *p, uint64_t first, uint64_t max)
{
	enum km_page_state state;
	uint64_t n = 0, run;

	for (; n < max; n += run) {
		run = km_presence_run(p, first + n, max - n, &state);
		if (state != KM_PRESENT && state != KM_ZERO)
			break;
	}
	return n;
}

bool km_presence_ended(const struct km_presence *p)
{
	enum km_page_state state;

	for (uint64_t page = 0, pages = p->pages; page < pages;) {
		page += km_presence_run(p, page, pages - page, &state);
		if (state == KM_ABSENT || state == KM_CLAIMED)
			return false;
	}
	return true;
}

/* ---- bits ---- */

/* The bits of `count` pages from `page` on, all within one word, each with the value `v`. */
static uint64_t fill_bits(uint64_t page, uint64_t count, unsigned int v)
{
	uint64_t all = EACH * v;

	if (count < PER_WORD)
		all &= (1ull << (count * BITS)) - 1;
	return all << shift_of(page);
}

static uint64_t in_word(uint64_t page, uint64_t count)
{
	return km_min(count, PER_WORD - page % PER_WORD);
}

/* ---- counting ---- */

/*
 * Adds to the counters after the words have changed; what that means for who listens. `surplus` is
 * what the caller had added to `open` before, for pages that it might open: `open` never counts
 * too few, so that who brings it to zero is right, and is the only one. Each page that is done or
 * poisoned is not open. The statistics come first: who is told finds them right.
 */
static unsigned int count(struct km_presence *p, uint64_t done, uint64_t poisoned, uint64_t surplus)
{
	uint64_t closed = surplus + done + poisoned, left;

	if (!done && !poisoned && !surplus)
		return 0;
	if (poisoned)
		atomic_store(&p->ever_poisoned, true);
	if (done)
		atomic_fetch_add(&p->done, done);
	if (poisoned)
		atomic_fetch_add(&p->poisoned, poisoned);
	left = closed ? atomic_fetch_sub(&p->open, closed) - closed : atomic_load(&p->open);
	return left ? 0 : KM_IS_WHOLE;
}

/* ---- claiming ---- */

uint64_t km_presence_claim(struct km_presence *p, uint64_t first, uint64_t max)
{
	uint64_t n = 0;

	if (first >= p->pages)
		return 0;
	max = km_min(max, p->pages - first);
	while (n < max) {
		_Atomic uint64_t *w = &p->words[(first + n) / PER_WORD];
		uint64_t room = in_word(first + n, max - n), old = atomic_load(w), got;

		do {
			got = km_min(run_in(old, first + n, KM_ABSENT), room);
			if (!got)
				return n;
		} while (!atomic_compare_exchange_weak(
			w, &old, old ^ fill_bits(first + n, got, KM_ABSENT ^ KM_CLAIMED)));
		n += got;
		if (got < room)
			break;
	}
	return n;
}

/*
 * Of one word, pages in state `from` that others do not claim. A claimed page is open: counted so before it
 * is, and taken back where it is not.
 */
static uint64_t claim_from(struct km_presence *p, uint64_t first, uint64_t room,
			   enum km_page_state from, unsigned int *ended)
{
	const bool poisoned = from == KM_POISONED;
	const unsigned int to = KM_CLAIMED | (poisoned ? MARKED : 0);
	_Atomic uint64_t *w = &p->words[first / PER_WORD];
	uint64_t old = atomic_load(w), got;

	while ((got = km_min(run_in(old, first, from), room)) != 0) {
		atomic_fetch_sub(poisoned ? &p->poisoned : &p->done, got);
		atomic_fetch_add(&p->open, got);
		if (atomic_compare_exchange_weak(w, &old, old ^ fill_bits(first, got, from ^ to)))
			break;
		*ended |= poisoned ? count(p, 0, got, 0) : count(p, got, 0, 0);
	}
	return got;
}

/* Of pages in state `a` or `b`. */
static uint64_t claim_either(struct km_presence *p, uint64_t first, uint64_t max,
			     enum km_page_state a, enum km_page_state b)
{
	unsigned int ended = 0;
	uint64_t n = 0, got;

	if (first >= p->pages)
		return 0;
	max = km_min(max, p->pages - first);
	while (n < max) {
		got = claim_from(p, first + n, in_word(first + n, max - n), a, &ended);
		if (!got && a != b)
			got = claim_from(p, first + n, in_word(first + n, max - n), b, &ended);
		if (!got)
			break;
		n += got;
	}
	if (ended & KM_IS_WHOLE)
		km_presence_notify(p); /* the last page was published meanwhile, and nobody told */
	return n;
}

uint64_t km_presence_claim_poisoned(struct km_presence *p, uint64_t first, uint64_t max)
{
	return claim_either(p, first, max, KM_POISONED, KM_POISONED);
}

uint64_t km_presence_claim_done(struct km_presence *p, uint64_t first, uint64_t max)
{
	return claim_either(p, first, max, KM_PRESENT, KM_ZERO);
}

/* ---- changing ---- */

static void wake_waiters(struct km_presence *p)
{
	if (!atomic_load(&p->waiters))
		return;
	atomic_fetch_add(&p->ends, 1);
	km_sys_futex_wake(&p->ends);
}

unsigned int km_presence_publish(struct km_presence *p, uint64_t first, uint64_t pages,
				 enum km_page_state state)
{
	uint64_t left = pages, wanted = 0;
	unsigned int r;

	while (left) {
		_Atomic uint64_t *w = &p->words[first / PER_WORD];
		uint64_t n = in_word(first, left), old = atomic_load(w);
		uint64_t all = fill_bits(first, n, 15), to = fill_bits(first, n, state);

		while (!atomic_compare_exchange_weak(w, &old, (old & ~all) | to))
			;
		wanted |= old & all & EACH * WANTED;
		first += n;
		left -= n;
	}
	r = state == KM_POISONED ? count(p, 0, pages, 0) : count(p, pages, 0, 0);
	wake_waiters(p);
	return r | (wanted ? KM_WAS_WANTED : 0);
}

bool km_presence_marked(const struct km_presence *p, uint64_t first, uint64_t pages)
{
	if (!atomic_load_explicit(&p->ever_poisoned, memory_order_acquire))
		return false;
	for (uint64_t n; pages; first += n, pages -= n) {
		n = in_word(first, pages);
		if (load(p, first) & fill_bits(first, n, MARKED))
			return true;
	}
	return false;
}

void km_presence_mark(struct km_presence *p, uint64_t page)
{
	atomic_store(&p->ever_poisoned, true);
	atomic_fetch_or(&p->words[page / PER_WORD], fill_bits(page, 1, MARKED));
}

static void clear_flag(struct km_presence *p, uint64_t first, uint64_t pages, unsigned int flag)
{
	for (uint64_t n; pages; first += n, pages -= n) {
		n = in_word(first, pages);
		atomic_fetch_and(&p->words[first / PER_WORD], ~fill_bits(first, n, flag));
	}
}

void km_presence_unmark(struct km_presence *p, uint64_t first, uint64_t pages)
{
	clear_flag(p, first, pages, MARKED);
}

void km_presence_unremove(struct km_presence *p, uint64_t first, uint64_t pages)
{
	clear_flag(p, first, pages, REMOVED);
}

/* Within one word, of the CLAIMED pages in `all`, those that become ZERO and POISONED, a bit each. */
static void abandoned(uint64_t old, uint64_t all, uint64_t *ret_zero, uint64_t *ret_poisoned)
{
	old &= all;
	*ret_zero = old / REMOVED & EACH;
	*ret_poisoned = old / MARKED & EACH & ~*ret_zero;
}

unsigned int km_presence_abandon(struct km_presence *p, uint64_t first, uint64_t pages)
{
	uint64_t wanted = 0, sum_zero = 0, sum_poisoned = 0;
	unsigned int r;

	while (pages) {
		_Atomic uint64_t *w = &p->words[first / PER_WORD];
		uint64_t n = in_word(first, pages), old = atomic_load(w);
		uint64_t all = fill_bits(first, n, 15), zero, poisoned;

		do
			abandoned(old, all, &zero, &poisoned);
		while (!atomic_compare_exchange_weak(
			w, &old, (old & ~all) | zero * KM_ZERO | poisoned * KM_POISONED));
		wanted |= old & all & EACH * WANTED;
		sum_zero += (uint64_t)__builtin_popcountll(zero);
		sum_poisoned += (uint64_t)__builtin_popcountll(poisoned);
		first += n;
		pages -= n;
	}
	r = count(p, sum_zero, sum_poisoned, 0);
	wake_waiters(p);
	return r | (wanted ? KM_WAS_WANTED : 0);
}

enum km_page_state km_presence_want(struct km_presence *p, uint64_t page)
{
	_Atomic uint64_t *w = &p->words[page / PER_WORD];
	uint64_t old = atomic_load(w);

	while (state_in(old, page) == KM_CLAIMED &&
	       !atomic_compare_exchange_weak(w, &old, old | fill_bits(page, 1, WANTED)))
		;
	return state_in(old, page);
}

/*
 * A rule for the pages of one word: the new bits of a page. `done` and `poisoned` are what the
 * change adds to the counters.
 */
struct rule {
	enum km_page_state from, to;
	bool removal;
};

struct sums {
	uint64_t done, poisoned;
};

static unsigned int new_bits(unsigned int bits, const struct rule *rule)
{
	if (!rule->removal)
		return bits == rule->from ? rule->to : bits;
	if (bits & KM_CLAIMED)
		return bits | REMOVED;
	return bits == KM_ABSENT || bits == KM_POISONED ? KM_ZERO : bits;
}

static bool is_done(unsigned int bits)
{
	return bits == KM_PRESENT || bits == KM_ZERO;
}

static uint64_t apply(uint64_t old, uint64_t first, uint64_t pages, const struct rule *rule,
		      struct sums *ret_sums)
{
	uint64_t word = old;

	*ret_sums = (struct sums){ 0 };
	for (uint64_t i = first; i < first + pages; i++) {
		unsigned int was = bits_in(old, i), is = new_bits(was, rule);

		word ^= (uint64_t)(was ^ is) << shift_of(i);
		ret_sums->done += (uint64_t)is_done(is) - (uint64_t)is_done(was);
		ret_sums->poisoned += (uint64_t)(is == KM_POISONED) - (was == KM_POISONED);
	}
	return word;
}

static unsigned int change(struct km_presence *p, uint64_t first, uint64_t pages,
			   const struct rule *rule)
{
	struct sums all = { 0 }, sums;
	uint64_t surplus = rule->removal || rule->to != KM_ABSENT ? 0 : pages;

	if (surplus)
		atomic_fetch_add(&p->open, surplus);
	while (pages) {
		_Atomic uint64_t *w = &p->words[first / PER_WORD];
		uint64_t n = in_word(first, pages), old = atomic_load(w), new;

		do
			new = apply(old, first, n, rule, &sums);
		while (new != old && !atomic_compare_exchange_weak(w, &old, new));
		all.done += sums.done;
		all.poisoned += sums.poisoned;
		first += n;
		pages -= n;
	}
	return count(p, all.done, all.poisoned, surplus);
}

unsigned int km_presence_remove(struct km_presence *p, uint64_t first, uint64_t pages)
{
	const struct rule rule = { .removal = true };

	return change(p, first, pages, &rule);
}

unsigned int km_presence_turn(struct km_presence *p, uint64_t first, uint64_t pages,
			      enum km_page_state from, enum km_page_state to)
{
	const struct rule rule = { .from = from, .to = to };

	return change(p, first, pages, &rule);
}

void km_presence_grow(struct km_presence *p, uint64_t pages, enum km_page_state state)
{
	uint64_t first = atomic_load(&p->pages), more = pages - first, n;

	if (state == KM_ABSENT) {
		atomic_fetch_add(&p->open, more);
		atomic_store(&p->pages, pages);
		return;
	}
	for (uint64_t at = first; at < pages; at += n) {
		n = in_word(at, pages - at);
		atomic_fetch_or(&p->words[at / PER_WORD], fill_bits(at, n, state));
	}
	atomic_store(&p->pages, pages);
	atomic_fetch_add(&p->done, more);
}

/* ---- waiting ---- */

static bool any_claimed(const struct km_presence *p, uint64_t first, uint64_t pages)
{
	enum km_page_state state;

	for (uint64_t end = first + pages, n; first < end; first += n) {
		n = km_presence_run(p, first, end - first, &state);
		if (state == KM_CLAIMED)
			return true;
	}
	return false;
}

bool km_presence_wait(struct km_presence *p, uint64_t first, uint64_t pages, uint64_t timeout_ns)
{
	uint64_t start, waited = 0;
	bool claimed;

	if (!any_claimed(p, first, pages))
		return true;
	start = km_sys_now_ns();
	for (;;) {
		uint32_t ends;

		atomic_fetch_add(&p->waiters, 1);
		ends = atomic_load(&p->ends);
		claimed = any_claimed(p, first, pages);
		if (claimed && waited < timeout_ns)
			km_sys_futex_wait(&p->ends, ends, km_min(timeout_ns - waited, LOOK_NS));
		atomic_fetch_sub(&p->waiters, 1);
		if (!claimed || waited >= timeout_ns)
			return !claimed;
		waited = km_sys_now_ns() - start;
	}
}

/* ---- telling ---- */

static _Thread_local struct {
	unsigned int depth;
	bool owed;
} deferred;

void km_presence_defer(void)
{
	deferred.depth++;
}

bool km_presence_defer_end(void)
{
	bool owed = deferred.owed;

	if (--deferred.depth)
		return false;
	deferred.owed = false;
	return owed;
}

unsigned int km_presence_undefer(void)
{
	unsigned int was = deferred.depth << 1 | deferred.owed;

	deferred.depth = 0;
	deferred.owed = false;
	return was;
}

void km_presence_redefer(unsigned int was)
{
	deferred.depth = was >> 1;
	deferred.owed = was & 1;
}

void km_presence_tell(void (*whole)(void *arg), void *arg)
{
	if (deferred.depth)
		deferred.owed = true;
	else
		whole(arg);
}

void km_presence_notify(struct km_presence *p)
{
	const struct km_presence_listener *l = atomic_load(&p->listener);
	void *arg = atomic_load(&p->listener_arg);

	if (l && arg)
		km_presence_tell(l->whole, arg);
}

void km_presence_notify_absent(struct km_presence *p)
{
	const struct km_presence_listener *l = atomic_load(&p->listener);
	void *arg = atomic_load(&p->listener_arg);

	if (l && arg)
		l->absent(arg);
}

void km_presence_listen(struct km_presence *p, const struct km_presence_listener *listener,
			void *arg)
{
	atomic_store(&p->listener_arg, arg);
	atomic_store(&p->listener, listener);
}
