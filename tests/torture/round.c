// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The life of a round: threads, phases, and the checks between them. */
#include "torture.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct round the_round;
static struct thread threads[MAX_THREADS];
static unsigned int thread_count;

static void open_trace(struct thread *thread, const char *name)
{
	thread->trace = &report->trace[thread->index];
	snprintf(thread->trace->name, sizeof(thread->trace->name), "%s", name);
}

static void *thread_main(void *arg)
{
	struct thread *thread = arg;

	atomic_store(&thread->trace->tid, (int32_t)syscall(SYS_gettid));
	thread->body(thread);
	atomic_store(&thread->trace->tid, 0);
	return NULL;
}

struct thread *thread_start(const char *name, void (*body)(struct thread *), struct vmm_vcpu *vcpu)
{
	struct thread *thread = &threads[thread_count];

	if (thread_count == MAX_THREADS)
		fail(NULL, -1, "too many threads");
	thread->index = thread_count++;
	thread->round = &the_round;
	thread->body = body;
	thread->vcpu = vcpu;
	thread->rng = rng_of(the_round.seed, 100 + thread->index);
	open_trace(thread, name);
	if (pthread_create(&thread->id, NULL, thread_main, thread))
		fail(NULL, -1, "no thread");
	return thread;
}

void thread_join(struct thread *thread)
{
	pthread_join(thread->id, NULL);
	thread->id = 0;
}

static void start_actor(const char *name, void (*body)(struct thread *), struct vmm_vcpu *vcpu)
{
	the_round.running++;
	thread_start(name, body, vcpu);
}

/* ---- parking ---- */

bool go_on(struct thread *thread)
{
	struct round *round = thread->round;
	bool end;

	pthread_mutex_lock(&round->lock);
	if (round->park) {
		round->running--;
		pthread_cond_broadcast(&round->change);
		while (round->park)
			pthread_cond_wait(&round->change, &round->lock);
		round->running++;
	}
	end = round->end;
	if (end) {
		round->running--;
		pthread_cond_broadcast(&round->change);
	}
	pthread_mutex_unlock(&round->lock);
	return !end;
}

void park_actors(struct round *round)
{
	pthread_mutex_lock(&round->lock);
	round->park = true;
	while (round->running)
		pthread_cond_wait(&round->change, &round->lock);
	pthread_mutex_unlock(&round->lock);
}

void unpark_actors(struct round *round)
{
	pthread_mutex_lock(&round->lock);
	round->park = false;
	pthread_cond_broadcast(&round->change);
	pthread_mutex_unlock(&round->lock);
}

static void end_actors(struct round *round)
{
	pthread_mutex_lock(&round->lock);
	round->end = true;
	while (round->running)
		pthread_cond_wait(&round->change, &round->lock);
	pthread_mutex_unlock(&round->lock);
	for (unsigned int i = 1; i < thread_count; i++)
		if (threads[i].id)
			thread_join(&threads[i]);
}

/* ---- phases ---- */

static void sleep_ms(uint64_t ms)
{
	uint64_t until = now_ns() + ms * 1000000;

	while (now_ns() < until)
		usleep(2000);
}

/* The actors' time, with captures and saves in it. The last capture may go on behind it. */
static void act(struct round *round, struct thread *thread, uint64_t ms)
{
	uint64_t until = now_ns() + ms * 1000000;

	if (allowed(OP_SAVE) && (swarm.often == OP_SAVE || one_in(&round->rng, 3)))
		save_pause(round, thread);
	for (uint64_t now; (now = now_ns()) < until;) {
		uint64_t left = (until - now) / 1000000;

		if (allowed(OP_CAPTURE) && !one_in(&round->rng, 3))
			capture_begin(round, thread);
		sleep_ms(one_in(&round->rng, 2) ? left : below(&round->rng, left + 1));
		if (one_in(&round->rng, 2))
			capture_end(round, thread);
	}
}

static void check_all(struct thread *thread, const char *when)
{
	struct round *round = thread->round;

	for (unsigned int i = 0; i < round->areas; i++) {
		op_begin(thread, OP_HOST_CHECK, &round->area[i], 0, round->area[i].pages, 0);
		check_pages(&round->area[i], 0, round->area[i].pages, when);
		op_end(thread, 0);
	}
	check_template(round, 0, round->template.pages);
}

static void start_actors(struct round *round)
{
	static const char *const guests[] = { "guest0", "guest1" };

	for (unsigned int i = 0; i < round->vcpus; i++)
		start_actor(guests[i], guest_actor, round->vcpu[i]);
	start_actor("host0", host_actor, NULL);
	start_actor("host1", host_actor, NULL);
	if (!round->vcpus) {
		start_actor("host2", host_actor, NULL);
		start_actor("host3", host_actor, NULL);
	}
	if (round->dirty && round->tracking)
		start_actor("harvester", harvester, NULL);
	if (round->dirty && round->tracking && allowed(OP_READER) && one_in(&round->rng, 2))
		start_actor("reader", other_reader, NULL);
	atomic_store(&report->storming, 1);
}

/* What the record calls missing has the next source's content from here on. */
static void next_generation(struct area *area)
{
	struct kvmem_run run;
	uint64_t at = 0;

	area->generation = 1;
	area->source = area->sources[1];
	while (at < (uint64_t)area->pages * PAGE &&
	       must(kvmem_region_next_missing(area->region, at, &run)) == 1) {
		for (uint64_t page = run.offset / PAGE; page < (run.offset + run.bytes) / PAGE;
		     page++) {
			struct page *p = &area->page[page];

			if (p->exists || p->base == BASE_ZERO)
				fail(area, (int64_t)page,
				     "area %d page %llu has content, and is handed back as missing",
				     area->index, (unsigned long long)page);
			p->base = BASE_SOURCE;
			p->generation = 1;
			harvest_forget(area, (uint32_t)page);
		}
		at = run.offset + run.bytes;
	}
}

/* A call that needs a pager that runs holds the gate. */
static void set_pager_state(struct round *round, enum pager_state state)
{
	pthread_rwlock_wrlock(&round->pager_gate);
	atomic_store(&round->pager_state, state);
	pthread_rwlock_unlock(&round->pager_gate);
}

static void hand_back(struct round *round, struct thread *thread, uint64_t how)
{
	event_loop_stop(round);
	set_pager_state(round, PAGER_STOPPING);
	op_begin(thread, OP_HAND_BACK, NULL, 0, 0, how);
	op_end(thread, must(kvmem_pager_stop(round->pager, KVMEM_STOP_HAND_BACK)));
}

static void start_again(struct round *round)
{
	atomic_store(&round->completes, 0); /* it comes once for each start */
	must(kvmem_pager_start(round->pager));
	set_pager_state(round, PAGER_RUNNING);
	event_loop_start(round);
}

/* Under guests and actors that go on: what is missing waits meanwhile. */
static void pause_pager(struct round *round, struct thread *thread)
{
	hand_back(round, thread, 0);
	sleep_ms(below(&round->rng, 30));
	start_again(round);
}

/* The same pager, or another one, goes on with another source. */
static void change_source(struct round *round, struct thread *thread, bool other_pager)
{
	park_actors(round);
	hand_back(round, thread, 1 + other_pager);
	for (unsigned int i = 0; i < round->areas; i++) {
		struct area *area = &round->area[i];

		if (!area->paged)
			continue;
		next_generation(area);
		if (!other_pager)
			must(kvmem_pager_set_source(round->pager, area->region,
						    area->source->handle, area->source_offset));
	}
	if (other_pager) {
		pager_close(round);
		if (!pager_open(round, thread))
			fail(NULL, -1, "no second pager: %s", kvmem_error_detail());
	} else {
		start_again(round);
	}
	unpark_actors(round);
}

static void hand_over(struct round *round, struct thread *thread)
{
	bool pause = one_in(&round->rng, 3), other = !pause && one_in(&round->rng, 2);

	/* Who reads the pager's events stays, and saves what is written: elsewhere it is refused. */
	if (other || round->pager_flags & KVMEM_PAGER_NO_THREADS)
		capture_end(round, thread);
	if (pause)
		pause_pager(round, thread);
	else
		change_source(round, thread, other);
}

static bool may_fail(void)
{
	return allowed(OP_POISON) || allowed(OP_GUEST_POISON);
}

static void check_complete(struct round *round)
{
	struct kvmem_pager_stats stats = KVMEM_PAGER_STATS_INIT;

	must(kvmem_pager_get_stats(round->pager, &stats));
	if (stats.pages_missing)
		fail(NULL, -1, "stopped with all filled, but %llu pages count as missing",
		     (unsigned long long)stats.pages_missing);
	if (!round->completes || (round->completes > 1 && !completes_again(round)))
		fail(NULL, -1, "stopped with all filled, and `complete` came %d times",
		     round->completes);
}

/* Under guests and actors that go on. */
static void stop_filling(struct round *round, struct thread *thread)
{
	int r;

	capture_check_refusals(round);
	capture_end(round, thread);
	event_loop_stop(round);
	set_pager_state(round, PAGER_STOPPING);
	op_begin(thread, OP_STOP_FILL, NULL, 0, 0, 0);
	r = kvmem_pager_stop(round->pager, KVMEM_STOP_FILL);
	if (r != -EREMOTEIO || !may_fail())
		must(r);
	op_end(thread, r);
	if (!r)
		check_complete(round);
	for (unsigned int i = 0; i < round->areas; i++)
		atomic_store(&round->area[i].paged, PAGED_NO);
	atomic_store(&round->populated, 1);
	pthread_rwlock_wrlock(&round->pager_gate);
	pager_close(round);
	pthread_rwlock_unlock(&round->pager_gate);
}

static unsigned int open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int n = 0;

	while (dir && readdir(dir))
		n++;
	if (dir)
		closedir(dir);
	return n;
}

static void mix(struct round *round, struct thread *thread)
{
	unsigned int files = open_files();
	bool paged;

	round_open(round, thread);
	if (round->dirty && one_in(&round->rng, 2))
		dirty_start(round);
	mark_some(round, thread);
	paged = pager_open(round, thread);
	if (round->dirty && !round->tracking)
		dirty_start(round);
	capture_open(round);
	start_actors(round);
	act(round, thread, between(&round->rng, 50, 400));
	if (paged && allowed(OP_HAND_BACK) && one_in(&round->rng, 3)) {
		hand_over(round, thread);
		act(round, thread, between(&round->rng, 50, 300));
	}
	if (paged) {
		stop_filling(round, thread);
		act(round, thread, between(&round->rng, 20, 200));
	}
	if (one_in(&round->rng, 2))
		capture_end(round, thread);
	park_actors(round);
	if (round->tracking)
		harvest_last(thread);
	check_all(thread, "at the end");
	atomic_store(&report->storming, 0);
	unpark_actors(round);
	capture_end(round, thread);
	capture_close(round);
	end_actors(round);
	if (round->tracking)
		harvest_last(thread);
	check_all(thread, "after all");
	round_close(round, thread);
	if (open_files() != files)
		fail(NULL, -1, "%u files were open before the round, %u are after it", files,
		     open_files());
}

void run_round(uint64_t seed, enum kind kind)
{
	struct thread *thread = &threads[thread_count++];
	struct round *round = &the_round;

	thread->round = round;
	round->seed = seed;
	round->kind = kind;
	round->rng = rng_of(seed, 1);
	thread->rng = rng_of(seed, 2);
	open_trace(thread, "main");
	atomic_store(&thread->trace->tid, (int32_t)syscall(SYS_gettid));
	pthread_mutex_init(&round->lock, NULL);
	pthread_cond_init(&round->change, NULL);
	pthread_rwlock_init(&round->pager_gate, NULL);
	pthread_rwlock_init(&round->dirty_gate, NULL);
	guest_signals_open();
	count(COUNT_ROUNDS, 1);
	switch (kind) {
	case KIND_FAULTS:
		hammer_faults(round, thread);
		break;
	case KIND_RING:
		hammer_ring(round, thread);
		break;
	case KIND_SLOTS:
		hammer_slots(round, thread);
		break;
	default:
		mix(round, thread);
		break;
	}
}
