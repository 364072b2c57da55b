// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A gate keeps its two groups apart, lets each in, and loses no wake-up. */
#include "harness.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

#define THREADS 4
#define ROUNDS	20000u

static struct km_gate gate;
static _Atomic int inside[2];
static _Atomic int met;

struct crowd {
	pthread_t thread;
	enum km_gate_side side;
	unsigned int stays; /* looks around it takes inside */
};

static void *pass(void *arg)
{
	const struct crowd *c = arg;

	for (unsigned int i = 0; i < ROUNDS; i++) {
		km_gate_enter(&gate, c->side);
		atomic_fetch_add(&inside[c->side], 1);
		for (unsigned int k = 0; k <= c->stays; k++)
			if (atomic_load(&inside[!c->side]))
				atomic_store(&met, 1);
		atomic_fetch_sub(&inside[c->side], 1);
		km_gate_leave(&gate, c->side);
	}
	return NULL;
}

static void run(unsigned int stays)
{
	struct crowd all[THREADS];

	memset(&gate, 0, sizeof(gate));
	met = 0;
	for (int i = 0; i < THREADS; i++) {
		all[i] = (struct crowd){ .side = i % 2 ? KM_GATE_RIGHT : KM_GATE_LEFT,
					 .stays = stays };
		ck_assert_int_eq(pthread_create(&all[i].thread, NULL, pass, &all[i]), 0);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(all[i].thread, NULL);
	ck_assert_int_eq(met, 0);
	ck_assert_uint_eq(gate.word, 0);
}

TEST(groups_never_meet)
{
	run(0);
	run(200);
}
END

struct one {
	enum km_gate_side side;
	_Atomic int state; /* 1: about to enter, 2: inside */
};

static void *enter_one(void *arg)
{
	struct one *o = arg;

	atomic_store(&o->state, 1);
	km_gate_enter(&gate, o->side);
	atomic_store(&o->state, 2);
	km_gate_leave(&gate, o->side);
	return NULL;
}

/* What the word says of the side that waits: some thread of it sleeps or is about to. */
static void wait_until_it_waits(enum km_gate_side side)
{
	uint32_t flag = 0x8000u << (side == KM_GATE_LEFT ? 0 : 16);

	for (int i = 0; i < 10000 && !(atomic_load(&gate.word) & flag); i++)
		usleep(1000);
	ck_assert(atomic_load(&gate.word) & flag);
}

TEST(a_side_that_waits_is_not_starved)
{
	struct one waits = { .side = KM_GATE_RIGHT }, joins = { .side = KM_GATE_LEFT };
	pthread_t a, b;

	memset(&gate, 0, sizeof(gate));
	km_gate_enter(&gate, KM_GATE_LEFT);
	ck_assert_int_eq(pthread_create(&a, NULL, enter_one, &waits), 0);
	wait_until_it_waits(KM_GATE_RIGHT);
	ck_assert_int_eq(pthread_create(&b, NULL, enter_one, &joins), 0);
	wait_until_it_waits(KM_GATE_LEFT);
	ck_assert_int_eq(joins.state, 1);
	ck_assert_int_eq(waits.state, 1);
	km_gate_leave(&gate, KM_GATE_LEFT);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	ck_assert_int_eq(joins.state, 2);
	ck_assert_int_eq(waits.state, 2);
	ck_assert_uint_eq(gate.word, 0);
}
END

TEST(one_side_enters_together)
{
	memset(&gate, 0, sizeof(gate));
	km_gate_enter(&gate, KM_GATE_LEFT);
	km_gate_enter(&gate, KM_GATE_LEFT);
	km_gate_leave(&gate, KM_GATE_LEFT);
	km_gate_leave(&gate, KM_GATE_LEFT);
	km_gate_enter(&gate, KM_GATE_RIGHT);
	km_gate_enter(&gate, KM_GATE_RIGHT);
	km_gate_leave(&gate, KM_GATE_RIGHT);
	km_gate_leave(&gate, KM_GATE_RIGHT);
	ck_assert_uint_eq(gate.word, 0);
}
END

HARNESS_MAIN(T(groups_never_meet), T(a_side_that_waits_is_not_starved), T(one_side_enters_together))
