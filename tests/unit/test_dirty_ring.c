// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The ring reader on rings in plain memory: order, wrap, strangers, a ring in use, and a live writer. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <linux/kvm.h>

#include "dirty/ring.h"
#include "fake_sys.h"

#define ENTRIES	  256u
#define MAP_PAGES 100000u

static struct kvm_dirty_gfn gfns[ENTRIES];
static struct km_ring ring;
static struct km_dmap own, shared;
static struct km_ring_slot window1, window_smm;
static struct km_slot slot1, slot_smm, untracked;
static struct km_slot *numbers[2][8], **by_id[2];
static struct km_ring_slots slots;
static uint32_t pushed;

static bool is_empty(const struct km_dmap *m)
{
	for (size_t i = 0; i < m->n0; i++)
		if (m->l0[i])
			return false;
	return true;
}

static void take_into(struct km_dmap *into, struct km_dmap *from)
{
	km_dmap_take(&into, 1, from);
}

static void fresh(void)
{
	fake_reset();
	memset(gfns, 0, sizeof(gfns));
	memset(numbers, 0, sizeof(numbers));
	pushed = 0;
	ck_assert_int_eq(km_dmap_init(&own, MAP_PAGES), 0);
	ck_assert_int_eq(km_dmap_init(&shared, MAP_PAGES), 0);
	ring = (struct km_ring){ (struct km_ring_entry *)gfns, ENTRIES - 1, 0, 0, false };
	window1 = (struct km_ring_slot){ &own, &shared, 1000, 5000 };
	window_smm = (struct km_ring_slot){ &own, &shared, 50037, 300 };
	slot1.tracked = &window1;
	slot_smm.tracked = &window_smm;
	numbers[0][1] = &slot1;
	numbers[0][4] = &untracked;
	numbers[1][7] = &slot_smm;
	by_id[0] = numbers[0];
	by_id[1] = numbers[1];
	slots = (struct km_ring_slots){ .by_id = by_id, .ids = 8 };
}

static void done(void)
{
	km_dmap_destroy(&own);
	km_dmap_destroy(&shared);
}

/* As the kernel does: the entry, then its flags. */
static void push(uint32_t slot, uint64_t offset)
{
	struct kvm_dirty_gfn *g = &gfns[pushed++ % ENTRIES];

	__atomic_store_n(&g->slot, slot, __ATOMIC_RELAXED);
	__atomic_store_n(&g->offset, offset, __ATOMIC_RELAXED);
	__atomic_store_n(&g->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
}

static unsigned int reset_all(void)
{
	unsigned int n = 0;

	for (size_t i = 0; i < ENTRIES; i++)
		if (gfns[i].flags == KVM_DIRTY_GFN_F_RESET) {
			gfns[i].flags = 0;
			n++;
		}
	return n;
}

static bool has(const struct km_dmap *m, uint64_t page)
{
	return m->l0[page / 64] >> (page % 64) & 1;
}

TEST(layout_is_the_kernels)
{
	ck_assert_uint_eq(sizeof(struct km_ring_entry), sizeof(struct kvm_dirty_gfn));
	ck_assert_uint_eq(offsetof(struct km_ring_entry, offset),
			  offsetof(struct kvm_dirty_gfn, offset));
	ck_assert_uint_eq(KM_RING_DIRTY, KVM_DIRTY_GFN_F_DIRTY);
	ck_assert_uint_eq(KM_RING_RESET, KVM_DIRTY_GFN_F_RESET);
}
END

TEST(pages_land_in_their_slots_window)
{
	fresh();
	push(1, 0);
	push(1, 1);
	push(1, 4999);
	push(1 << 16 | 7, 0);
	push(1 << 16 | 7, 299);
	push(1, 2);
	ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 6);
	ck_assert_uint_eq(km_dmap_count(&own), 6);
	ck_assert(has(&own, 1000) && has(&own, 1001) && has(&own, 1002) && has(&own, 5999));
	ck_assert(has(&own, 50037) && has(&own, 50336));
	ck_assert(is_empty(&shared));
	ck_assert_uint_eq(reset_all(), 6);
	ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 0);
	done();
}
END

TEST(the_shared_way_takes_the_same)
{
	fresh();
	push(1, 10);
	push(1 << 16 | 7, 3);
	push(1, 75);
	ck_assert_uint_eq(km_ring_take(&ring, &slots, true), 3);
	ck_assert(is_empty(&own));
	take_into(&own, &shared);
	ck_assert_uint_eq(km_dmap_count(&own), 3);
	ck_assert(has(&own, 1010) && has(&own, 1075) && has(&own, 50040));
	done();
}
END

static unsigned int foreigners;
static uint64_t foreign_sum;

static void on_foreign(void *arg, uint32_t slot, uint64_t page)
{
	ck_assert_ptr_eq(arg, &foreigners);
	foreigners++;
	foreign_sum += slot * 1000 + page;
}

TEST(strangers_are_marked_counted_and_handed_on)
{
	fresh();
	foreigners = 0;
	foreign_sum = 0;
	slots.foreign = on_foreign;
	slots.arg = &foreigners;
	push(2, 7);	  /* a slot that is not ours */
	push(4, 0);	  /* one that is, and is not tracked */
	push(9, 0);	  /* beyond the table */
	push(3 << 16, 0); /* no such address space */
	push(1, 5000);	  /* beyond the slot */
	push(1, 4);
	ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 6);
	ck_assert_uint_eq(km_dmap_count(&own), 1);
	ck_assert_uint_eq(slots.strays, 2);
	ck_assert_uint_eq(slots.foreign_entries, 3);
	ck_assert_uint_eq(foreigners, 3);
	ck_assert_uint_eq(foreign_sum, 2007 + 9000 + (3 << 16) * 1000);
	ck_assert_uint_eq(reset_all(), 6);
	done();
}
END

TEST(a_full_ring_is_read_once_and_wraps)
{
	uint64_t total = 0;

	fresh();
	for (int round = 0; round < 7; round++) {
		for (unsigned int i = 0; i < ENTRIES - 3; i++)
			push(1, total++ % 5000);
		ck_assert_uint_eq(km_ring_take(&ring, &slots, false), ENTRIES - 3);
		ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 0);
		ck_assert_uint_eq(reset_all(), ENTRIES - 3);
	}
	ck_assert_uint_eq(km_dmap_count(&own), total);
	for (unsigned int i = 0; i < ENTRIES; i++)
		push(1, i);
	ck_assert_uint_eq(km_ring_take(&ring, &slots, false), ENTRIES);
	ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 0);
	done();
}
END

TEST(entries_not_reset_yet_stop_the_reader)
{
	fresh();
	push(1, 0);
	ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 1);
	pushed = ring.head = 0; /* as after a whole turn without a reset */
	ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 0);
	ck_assert_uint_eq(gfns[0].flags, KVM_DIRTY_GFN_F_RESET);
	done();
}
END

TEST(a_ring_in_use_is_read_from_where_it_stands)
{
	fresh();
	for (uint32_t start = 0; start < ENTRIES; start += 5) {
		memset(gfns, 0, sizeof(gfns));
		km_dmap_clear(&own);
		pushed = start;
		ring.lost_head = true;
		ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 0);
		ck_assert(ring.lost_head);
		for (unsigned int i = 0; i < 100; i++)
			push(1, i);
		ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 100);
		push(1, 200);
		ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 1);
		ck_assert_uint_eq(km_dmap_count(&own), 101);
	}
	done();
}
END

#define LIVE 500000u

/* A vCPU that writes as long as there is room, and a kernel that resets what was read. */
static void *live_writer(void *arg)
{
	unsigned long long seed = 7;
	uint32_t freed = 0;

	(void)arg;
	while (pushed < LIVE) {
		struct kvm_dirty_gfn *g = &gfns[freed % ENTRIES];

		if (freed != pushed &&
		    __atomic_load_n(&g->flags, __ATOMIC_ACQUIRE) == KVM_DIRTY_GFN_F_RESET) {
			__atomic_store_n(&g->flags, 0, __ATOMIC_RELAXED);
			freed++;
		} else if (pushed - freed < ENTRIES) {
			push(1, harness_random(&seed) % 5000);
		}
	}
	return NULL;
}

TEST(a_live_writer_loses_nothing)
{
	unsigned long long seed = 7;
	uint64_t taken = 0, missing = 0;
	pthread_t t;

	fresh();
	ck_assert_int_eq(pthread_create(&t, NULL, live_writer, NULL), 0);
	while (taken < LIVE)
		taken += km_ring_take(&ring, &slots, taken % 2);
	pthread_join(t, NULL);
	ck_assert_uint_eq(taken, LIVE);
	take_into(&own, &shared);
	for (unsigned int i = 0; i < LIVE; i++)
		missing += !has(&own, 1000 + harness_random(&seed) % 5000);
	ck_assert_uint_eq(missing, 0);
	ck_assert_uint_eq(slots.strays, 0);
	done();
}
END

/* ---- after a reset ---- */

static void expect_last(uint32_t end, uint32_t slot, uint64_t first, uint64_t mask)
{
	struct km_ring_run run = km_ring_last_run(&ring, end);

	ck_assert_uint_eq(run.slot, slot);
	ck_assert_uint_eq(run.first, first);
	ck_assert_uint_eq(run.mask, mask);
}

TEST(the_last_run_is_what_the_kernel_may_have_joined)
{
	fresh();
	expect_last(0, 0, 0, 0);
	push(1, 100);
	push(1, 163);
	push(1, 101);
	push(1, 164); /* too far from 100, not from 101 */
	push(1, 130);
	push(1 << 16 | 7, 131);
	km_ring_take(&ring, &slots, false);
	expect_last(6, 1 << 16 | 7, 131, 1);
	expect_last(5, 1, 101, 1ull << 63 | 1ull << 62 | 1ull << 29 | 1);
	expect_last(3, 1, 100, 1ull << 63 | 3);
	ring.tail = 4;
	expect_last(5, 1, 130, 1);
	done();
}
END

/* The kernel resets the first `n` of 100 entries. */
static bool reset_some(uint32_t n, struct km_ring_run *run, bool *overwritten)
{
	struct km_ring_run before = km_ring_last_run(&ring, ring.head);

	for (uint32_t i = 0; i < n; i++)
		gfns[(ring.tail + i) % ENTRIES].flags = 0;
	return km_ring_reset_done(&ring, &before, run, overwritten);
}

TEST(where_a_reset_stopped_is_read_off_the_ring)
{
	struct km_ring_run run;
	bool overwritten;

	for (uint32_t n = 0; n <= 100; n++)
		for (uint32_t start = 0; start < 2; start++) {
			fresh();
			pushed = ring.head = ring.tail = start * (ENTRIES - 50);
			for (unsigned int i = 0; i < 100; i++)
				push(1, i);
			ck_assert_uint_eq(km_ring_take(&ring, &slots, false), 100);
			push(1, 4000);
			ck_assert(reset_some(n, &run, &overwritten) == (n > 0));
			ck_assert(!overwritten);
			ck_assert_uint_eq(ring.tail, start * (ENTRIES - 50) + n);
			if (n)
				ck_assert_uint_eq(run.first, n > 64 ? n - 64 : 0);
			ck_assert_uint_eq(run.mask, n >= 64 ? ~0ull : (1ull << n) - 1);
			ck_assert(km_ring_holds(&ring, 1) == (n < 100));
			ck_assert(!km_ring_holds(&ring, 2));
			done();
		}
}
END

TEST(a_vcpu_that_goes_around_the_ring_is_noticed)
{
	struct km_ring_run run;
	bool overwritten;

	fresh();
	for (unsigned int i = 0; i < ENTRIES - 10; i++)
		push(1, i);
	km_ring_take(&ring, &slots, false);
	for (unsigned int i = 0; i < 20; i++) { /* ten of them over entries reset meanwhile */
		if (i == 10)
			memset(gfns, 0, 30 * sizeof(*gfns));
		push(1, 3000 + i);
	}
	ck_assert(reset_some(0, &run, &overwritten));
	ck_assert_uint_eq(ring.tail, 30);
	ck_assert(overwritten);
	done();
}
END

/* ---- an entry is read before it is given back ---- */

static struct kvm_dirty_gfn *protected_gfns;
static volatile sig_atomic_t stores;

/* The kernel at its fastest: the entry is another page's in the moment in which it is marked. */
static void on_store(int number)
{
	(void)number;
	stores++;
	mprotect(protected_gfns, ENTRIES * sizeof(*protected_gfns), PROT_READ | PROT_WRITE);
	protected_gfns[0].offset = 77;
}

TEST(an_entry_is_read_before_it_is_given_back)
{
	struct sigaction act = { .sa_handler = on_store }, before;
	size_t bytes = ENTRIES * sizeof(*protected_gfns);

	for (int shared_way = 0; shared_way < 2; shared_way++) {
		fresh();
		protected_gfns = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ck_assert_ptr_ne(protected_gfns, MAP_FAILED);
		push(1, 5);
		protected_gfns[0] = gfns[0];
		ring.entries = (struct km_ring_entry *)protected_gfns;
		stores = 0;
		ck_assert_int_eq(mprotect(protected_gfns, bytes, PROT_READ), 0);
		ck_assert_int_eq(sigaction(SIGSEGV, &act, &before), 0);
		ck_assert_uint_eq(km_ring_take(&ring, &slots, shared_way), 1);
		sigaction(SIGSEGV, &before, NULL);
		ck_assert_int_eq(stores, 1);
		ck_assert(has(shared_way ? &shared : &own, 1005));
		ck_assert(!has(shared_way ? &shared : &own, 1077));
		munmap(protected_gfns, bytes);
		done();
	}
}
END

HARNESS_MAIN(T(the_last_run_is_what_the_kernel_may_have_joined),
	     T(where_a_reset_stopped_is_read_off_the_ring),
	     T(a_vcpu_that_goes_around_the_ring_is_noticed), T(layout_is_the_kernels),
	     T(pages_land_in_their_slots_window), T(the_shared_way_takes_the_same),
	     T(strangers_are_marked_counted_and_handed_on), T(a_full_ring_is_read_once_and_wraps),
	     T(entries_not_reset_yet_stop_the_reader),
	     T(a_ring_in_use_is_read_from_where_it_stands), T(a_live_writer_loses_nothing),
	     T(an_entry_is_read_before_it_is_given_back))
