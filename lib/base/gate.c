// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "base/gate.h"

#include "base/base.h"

#define INSIDE	 0x7fffu
#define WAITS	 0x8000u
#define ANY_WAIT (WAITS << 16 | WAITS)
#define LOOKS	 300u
#define SLEEP_NS 100000000u /* a bound of each sleep, after which the word is looked at again */

static unsigned int shift_of(enum km_gate_side side)
{
	return side == KM_GATE_LEFT ? 0 : 16;
}

/* Nobody of the other side is inside; and where it waits, no thread of ours is joined. */
static bool may_enter(uint32_t word, unsigned int mine, unsigned int other)
{
	return !(word >> other & INSIDE) && !(word >> other & WAITS && word >> mine & INSIDE);
}

void km_gate_enter(struct km_gate *g, enum km_gate_side side)
{
	const unsigned int mine = shift_of(side), other = 16 - mine;
	uint32_t old = atomic_load_explicit(&g->word, memory_order_relaxed), waiting;

	for (unsigned int looks = 0;;) {
		if (may_enter(old, mine, other)) {
			if (atomic_compare_exchange_weak_explicit(
				    &g->word, &old, old + (1u << mine), memory_order_acquire,
				    memory_order_relaxed))
				return;
			continue;
		}
		if (looks++ < LOOKS) {
			km_relax();
			old = atomic_load_explicit(&g->word, memory_order_relaxed);
			continue;
		}
		/* Some thread is inside: the last one to leave sees the flag. */
		waiting = old | WAITS << mine;
		if (atomic_compare_exchange_strong_explicit(
			    &g->word, &old, waiting, memory_order_relaxed, memory_order_relaxed)) {
			km_sys_futex_wait(&g->word, waiting, SLEEP_NS);
			old = atomic_load_explicit(&g->word, memory_order_relaxed);
		}
	}
}

void km_gate_leave(struct km_gate *g, enum km_gate_side side)
{
	const unsigned int mine = shift_of(side);
	uint32_t old = atomic_fetch_sub_explicit(&g->word, 1u << mine, memory_order_release);

	if ((old >> mine & INSIDE) != 1 || !(old & ANY_WAIT))
		return;
	/* All of both sides look again, and say again that they wait. */
	atomic_fetch_and_explicit(&g->word, ~ANY_WAIT, memory_order_relaxed);
	km_sys_futex_wake(&g->word);
}
