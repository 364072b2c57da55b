// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "dirty/ring.h"

#include <stdatomic.h>

/*
 * Bytes ahead of the reader that are pulled in, also beyond the ring's end (a prefetch never
 * faults): the hardware prefetcher stops at each page.
 */
#define AHEAD 4096u

/* Entries read at once where they are all of one slot: a cache line's. */
#define BLOCK 4u

/* A run of entries that fall into one word of one slot, kept in registers. */
struct cursor {
	struct km_dmap *map;
	uint64_t first;
	uint64_t pages;
	uint64_t want; /* what flags_slot of the slot's next entry reads */
	uint64_t word;
	uint64_t bits;
	bool foreign; /* the library has not set the slot */
	bool torn;    /* a push and a mark for nobody met in an entry: whose page it was is lost */
	uint64_t strays, foreigners;
};

static inline void flush(struct cursor *c, bool shared)
{
	if (!c->bits)
		return;
	if (shared)
		km_dmap_or_shared(c->map, c->word, c->bits);
	else
		km_dmap_or_counted(c->map, c->word, c->bits);
	c->bits = 0;
}

static struct km_slot *find_slot(const struct km_ring_slots *slots, uint32_t id)
{
	if (id >> 16 >= KM_SLOT_SPACES || (id & 0xffff) >= slots->ids || !slots->by_id[id >> 16])
		return NULL;
	return slots->by_id[id >> 16][id & 0xffff];
}

/* Entries of a slot we do not follow get no pages, and so fail the bounds check one by one. */
static void switch_slot(struct cursor *c, struct km_ring_slots *slots, uint64_t flags_slot,
			bool shared)
{
	struct km_slot *slot = find_slot(slots, (uint32_t)(flags_slot >> 32));
	struct km_ring_slot *s = slot ? slot->tracked : NULL;

	flush(c, shared);
	c->want = flags_slot;
	c->torn |= flags_slot >> 32 == KM_RING_NOWHERE;
	c->foreign = !slot && flags_slot >> 32 != KM_RING_NOWHERE;
	c->pages = 0;
	if (!s)
		return;
	/* `own` changes with the reader that harvests, beside vCPUs that empty rings for all. */
	c->map = shared ? s->shared : __atomic_load_n(&s->own, __ATOMIC_RELAXED);
	c->first = s->first;
	c->pages = s->pages;
}

/* No page of a slot that we follow. */
static void pass_on(struct cursor *c, struct km_ring_slots *slots, uint64_t offset)
{
	if (!c->foreign) {
		c->strays++;
		return;
	}
	c->foreigners++;
	if (slots->foreign)
		slots->foreign(slots->arg, (uint32_t)(c->want >> 32), offset);
}

/*
 * The load of flags_slot acquires the offset behind it. Marking is a release of the 32-bit flags:
 * the kernel may reuse the entry once it sees RESET, so both loads must be done by then.
 */
static inline uint64_t load_flags(const struct km_ring_entry *e)
{
	return __atomic_load_n(&e->flags_slot, __ATOMIC_ACQUIRE);
}

static inline uint64_t load_offset(const struct km_ring_entry *e)
{
	return __atomic_load_n(&e->offset, __ATOMIC_RELAXED);
}

static inline void mark(struct km_ring_entry *e)
{
	__atomic_store_n((uint32_t *)&e->flags_slot, KM_RING_RESET, __ATOMIC_RELEASE);
}

static inline void set_page(struct km_dmap *map, uint64_t page)
{
	km_dmap_or(map, page / 64, 1ull << (page % 64));
}

static inline void set_block(struct km_dmap *map, uint64_t p0, uint64_t p1, uint64_t p2,
			     uint64_t p3)
{
	if ((p0 ^ p3) < 64 && ((p0 ^ p1) | (p0 ^ p2)) < 64) {
		km_dmap_or(map, p0 / 64,
			   1ull << (p0 % 64) | 1ull << (p1 % 64) | 1ull << (p2 % 64) |
				   1ull << (p3 % 64));
		return;
	}
	set_page(map, p0);
	set_page(map, p1);
	set_page(map, p2);
	set_page(map, p3);
}

/*
 * Whole blocks of the cursor's slot among `count` entries in a row, for the thread that owns the
 * map; returns how many entries. One branch for four sets of flags, and loads that wait for no
 * store, are what makes it faster than entry by entry. Unrolled by hand: at -O2 the compiler goes
 * through the stack.
 */
static inline __attribute__((always_inline)) uint32_t take_blocks_as(const struct cursor *c,
								     struct km_ring_entry *e,
								     uint32_t count)
{
	const uint64_t want = c->want, first = c->first, pages = c->pages;
	struct km_dmap *map = c->map;
	uint32_t n = 0;

	for (; count - n >= BLOCK; n += BLOCK, e += BLOCK) {
		uint64_t other = (load_flags(&e[0]) ^ want) | (load_flags(&e[1]) ^ want) |
				 (load_flags(&e[2]) ^ want) | (load_flags(&e[3]) ^ want);
		uint64_t o0 = load_offset(&e[0]), o1 = load_offset(&e[1]);
		uint64_t o2 = load_offset(&e[2]), o3 = load_offset(&e[3]);

		if (other || o0 >= pages || o1 >= pages || o2 >= pages || o3 >= pages)
			break;
		__builtin_prefetch((void *)((uintptr_t)e + AHEAD), 1);
		mark(&e[0]);
		mark(&e[1]);
		mark(&e[2]);
		mark(&e[3]);
		set_block(map, first + o0, first + o1, first + o2, first + o3);
	}
	return n;
}

#if defined(__x86_64__)
/* Shifts by a variable take one micro-operation instead of three. */
__attribute__((target("bmi2"))) static uint32_t take_blocks_bmi2(const struct cursor *c,
								 struct km_ring_entry *e,
								 uint32_t count)
{
	return take_blocks_as(c, e, count);
}
#endif

static uint32_t take_blocks(const struct cursor *c, struct km_ring_entry *e, uint32_t count)
{
	c->map->uncounted = true;
#if defined(__x86_64__)
	if (__builtin_cpu_supports("bmi2"))
		return take_blocks_bmi2(c, e, count);
#endif
	return take_blocks_as(c, e, count);
}

/* One entry; false when it is not dirty. */
static inline bool take_one(struct cursor *c, struct km_ring_entry *e, struct km_ring_slots *slots,
			    bool shared)
{
	uint64_t flags_slot = load_flags(e), offset, page;

	if (flags_slot != c->want) {
		if ((uint32_t)flags_slot != KM_RING_DIRTY)
			return false;
		switch_slot(c, slots, flags_slot, shared);
	}
	offset = load_offset(e);
	mark(e);
	if (offset >= c->pages) {
		pass_on(c, slots, offset);
		return true;
	}
	page = c->first + offset;
	if (page / 64 != c->word) {
		flush(c, shared);
		c->word = page / 64;
	}
	c->bits |= 1ull << (page % 64);
	return true;
}

enum how { OWN, OWN_FEW, SHARED };

/*
 * A harvest of a few pages finds the map cold, and would wait for each word in turn: so words are
 * asked for this many entries ahead. One of many pages warms the map as it goes.
 */
#define FEW  2048u
#define LEAD 64u

static inline void ask(const struct cursor *c, const struct km_ring_entry *e)
{
	uint64_t offset = load_offset(e);

	__builtin_prefetch((void *)((uintptr_t)e + 1024), 1);
	if (load_flags(e) == c->want && offset < c->pages)
		__builtin_prefetch(&c->map->l0[(c->first + offset) / 64], 1);
}

static uint32_t take(struct km_ring *ring, struct km_ring_slots *slots, enum how how)
{
	const bool shared = how == SHARED;
	struct cursor c = { .want = ~0ull, .word = ~0ull };
	const uint32_t size = ring->mask + 1;
	uint32_t done = 0;

	while (done < size) {
		uint32_t at = (ring->head + done) & ring->mask;
		uint32_t in_row = size - (done > at ? done : at);

		if (at % BLOCK == 0 && how == OWN && c.pages) {
			uint32_t n = take_blocks(&c, &ring->entries[at], in_row);

			done += n;
			if (n == in_row)
				continue;
			at += n;
		}
		if (how == OWN_FEW)
			ask(&c, &ring->entries[(at + LEAD) & ring->mask]);
		if (!take_one(&c, &ring->entries[at], slots, shared))
			break;
		done++;
	}
	flush(&c, shared);
	ring->head += done;
	ring->overflowed |= ring->head - ring->tail >= size || c.torn;
	if (c.strays)
		atomic_fetch_add_explicit(&slots->strays, c.strays, memory_order_relaxed);
	if (c.foreigners)
		atomic_fetch_add_explicit(&slots->foreign_entries, c.foreigners,
					  memory_order_relaxed);
	return done;
}

static bool is_dirty(const struct km_ring *ring, uint32_t i)
{
	return (uint32_t)__atomic_load_n(&ring->entries[i & ring->mask].flags_slot,
					 __ATOMIC_ACQUIRE) == KM_RING_DIRTY;
}

/* The oldest entry is the dirty one behind one that is not; of a ring that has overflowed, any. */
static bool find_head(struct km_ring *ring)
{
	uint32_t dirty = 0;

	for (uint32_t i = 0; i <= ring->mask; i++) {
		bool is = is_dirty(ring, i);

		dirty += is;
		if (!is || is_dirty(ring, i - 1))
			continue;
		ring->head = ring->tail = i;
		ring->lost_head = false;
		return true;
	}
	return dirty > ring->mask;
}

static bool has_few(const struct km_ring *ring)
{
	return ring->mask >= FEW && !is_dirty(ring, ring->head + FEW);
}

#define ROUNDS 8

uint32_t km_ring_take(struct km_ring *ring, struct km_ring_slots *slots, bool shared)
{
	uint32_t n, all = 0;

	if (ring->lost_head && !find_head(ring))
		return 0;
	/*
	 * While a whole ring was taken, its first entries may have been pushed over: what stays dirty of them would be
	 * taken for the place at which the kernel goes on.
	 */
	for (int i = 0; i < ROUNDS; i++) {
		n = take(ring, slots, shared ? SHARED : has_few(ring) ? OWN_FEW : OWN);
		all += n;
		if (n <= ring->mask)
			break;
	}
	return all;
}

bool km_ring_is_astray(const struct km_ring *ring)
{
	bool any = false;

	if (ring->lost_head || is_dirty(ring, ring->head))
		return false;
	for (uint32_t i = 0; i <= ring->mask && !any; i++)
		any = is_dirty(ring, i);
	return any && !is_dirty(ring, ring->head); /* in order, it would have come first */
}

/* ---- after a reset ---- */

static uint32_t slot_of(uint64_t flags_slot)
{
	return (uint32_t)(flags_slot >> 32);
}

static bool is_marked(const struct km_ring *ring, uint32_t i)
{
	return (uint32_t)__atomic_load_n(&ring->entries[i & ring->mask].flags_slot,
					 __ATOMIC_ACQUIRE) == KM_RING_RESET;
}

/* Adds the page to the run, if it still fits into 64 pages. */
static bool extend(struct km_ring_run *run, uint32_t slot, uint64_t page)
{
	uint64_t shift;

	if (!run->mask) {
		*run = (struct km_ring_run){ slot, page, 1 };
		return true;
	}
	if (slot != run->slot)
		return false;
	if (page >= run->first) {
		if (page - run->first >= 64)
			return false;
		run->mask |= 1ull << (page - run->first);
		return true;
	}
	shift = run->first - page;
	if (shift >= 64 || run->mask << shift >> shift != run->mask)
		return false;
	run->first = page;
	run->mask = run->mask << shift | 1;
	return true;
}

/* False when an entry of it has been overwritten, or the one behind, so that it may be next. */
static bool read_run(const struct km_ring *ring, uint32_t end, struct km_ring_run *run)
{
	*run = (struct km_ring_run){ 0 };
	for (uint32_t i = end; i != ring->tail; i--) {
		const struct km_ring_entry *e = &ring->entries[(i - 1) & ring->mask];
		uint32_t slot = slot_of(load_flags(e));
		uint64_t page = load_offset(e);

		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (is_dirty(ring, i - 1) || is_dirty(ring, i - 2))
			return false;
		if (!extend(run, slot, page))
			break;
	}
	return true;
}

struct km_ring_run km_ring_last_run(const struct km_ring *ring, uint32_t end)
{
	struct km_ring_run run = { 0 };

	for (uint32_t i = end; i != ring->tail; i--) {
		const struct km_ring_entry *e = &ring->entries[(i - 1) & ring->mask];

		if (!extend(&run, slot_of(load_flags(e)), load_offset(e)))
			break;
	}
	return run;
}

/* Marked entries come after those that are not marked any more. */
static uint32_t find_tail(const struct km_ring *ring)
{
	uint32_t lo = ring->tail, hi = ring->head;

	if (lo == hi || !is_marked(ring, hi - 1))
		return hi;
	while (lo != hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (is_marked(ring, mid))
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

/* So many entries before the tail are marked at first; each time as many again. */
#define STEP 16u

/*
 * Of no slot, so that the kernel joins it to no other entry, and protects nothing. What somebody has marked, and the
 * kernel has not come to, keeps its slot. False of a dirty one.
 */
static bool mark_for_nobody(struct km_ring_entry *e)
{
	uint64_t was = load_flags(e);

	if ((uint32_t)was == KM_RING_RESET)
		return true;
	return (uint32_t)was != KM_RING_DIRTY &&
	       __atomic_compare_exchange_n(&e->flags_slot, &was,
					   KM_RING_NOWHERE << 32 | KM_RING_RESET, false,
					   __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

/*
 * One entry at least stays between these and the head, so that no reset goes beyond what the vCPU has pushed. The one
 * that it is pushing just now may be marked: then it comes out dirty, and of no slot.
 */
bool km_ring_step_back(struct km_ring *ring)
{
	uint32_t room = ring->mask - (ring->head - ring->tail),
		 more = ring->back ? ring->back : STEP;
	uint32_t before = ring->back;

	if (!ring->may_lag || !is_marked(ring, ring->tail))
		return false;
	for (; more && ring->back < room; more--, ring->back++)
		if (!mark_for_nobody(&ring->entries[(ring->tail - ring->back - 1) & ring->mask]))
			break;
	return ring->back != before;
}

/* The kernel has come to the tail: what is marked further back was too much. By how much it was behind. */
static uint32_t come_to_tail(struct km_ring *ring)
{
	uint32_t behind = 0;

	for (; ring->back; ring->back--) {
		uint64_t *flags = &ring->entries[(ring->tail - ring->back) & ring->mask].flags_slot;
		uint64_t marked = KM_RING_NOWHERE << 32 | KM_RING_RESET;

		behind += !__atomic_compare_exchange_n(flags, &marked, KM_RING_NOWHERE << 32, false,
						       __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	}
	return behind;
}

void km_ring_begin_again(struct km_ring *ring)
{
	ring->head = ring->tail = ring->back = 0;
	ring->overflowed = false;
	ring->lost_head = ring->may_lag = ring->had_overflow = true;
}

uint32_t km_ring_reset_done(struct km_ring *ring, const struct km_ring_run *before,
			    struct km_ring_run *ret_run, bool *ret_overwritten)
{
	uint32_t tail = find_tail(ring), moved = tail - ring->tail;

	if (moved)
		moved += come_to_tail(ring);
	for (uint32_t i = ring->tail; ring->may_lag && i != tail; i++)
		ring->overflowed |= is_marked(ring, i); /* it has again, in the middle of a reset */

	*ret_run = (struct km_ring_run){ 0 };
	*ret_overwritten = false;
	if (moved && tail == ring->head)
		*ret_run = *before;
	else if (moved)
		*ret_overwritten = !read_run(ring, tail, ret_run);
	ring->tail = tail;
	return moved;
}

bool km_ring_holds(const struct km_ring *ring, uint32_t slot)
{
	for (uint32_t i = ring->tail; i != ring->head; i++)
		if (slot_of(load_flags(&ring->entries[i & ring->mask])) == slot)
			return true;
	return false;
}
