// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Faults served: throughput in order and at random, and the time of one. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest/protocol.h" /* guest_shuffle() */
#include "pager_mem.h"

#define THREADS	  2
#define LATENCIES 4000u
#define GAP_NS	  200e3 /* between single faults: the handler is asleep again */

enum by { BY_SIMPLE, BY_PAGER, PRESENT };

struct touch_arg {
	enum by by;
	bool random;
	enum lazy_kind kind;
	uint64_t around; /* 0: default */
	uint64_t spin_ns;
	uint32_t shards;
	uint32_t workers;
	uint32_t trace; /* entries */
};

static uint64_t touch_bytes(void)
{
	return (bench_quick() ? 32 : 128) * MIB;
}

static void set_up(struct lazy *l, const struct touch_arg *a, uint64_t bytes)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	const uint8_t *content = lazy_content(bytes);

	o.fault_around = a->around;
	o.busy_poll_ns = a->spin_ns;
	o.shards = a->shards;
	o.workers = a->workers;
	o.trace_entries = a->trace;
	if (a->by == BY_SIMPLE)
		lazy_by_simple(l, content, bytes, a->kind);
	else if (a->by == BY_PAGER)
		lazy_by_pager(l, content, bytes, a->kind, &o, NULL);
	else
		lazy_none(l, content, bytes, a->kind);
}

/* ---- throughput ---- */

struct toucher {
	const volatile uint64_t *base;
	uint64_t first, pages, of;
	bool random;
	pthread_t thread;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	for (uint64_t i = 0; i < t->pages; i++) {
		uint64_t page = t->first + i;

		if (t->random)
			page = guest_shuffle(page, t->of);
		(void)t->base[page * (PAGE / 8)];
	}
	return NULL;
}

static double touch_all(void *arg)
{
	const struct touch_arg *a = arg;
	uint64_t bytes = touch_bytes(), pages = bytes / PAGE;
	struct toucher t[THREADS];
	struct lazy l;
	double start, took;

	set_up(&l, a, bytes);
	start = bench_now();
	lazy_start(&l);
	for (unsigned int i = 0; i < THREADS; i++) {
		t[i] = (struct toucher){ .base = (void *)l.base,
					 .random = a->random,
					 .of = pages,
					 .first = pages / THREADS * i,
					 .pages = pages / THREADS };
		bench_pin(i);
		bench_check(!pthread_create(&t[i].thread, NULL, touch, &t[i]), "thread");
	}
	bench_unpin();
	for (unsigned int i = 0; i < THREADS; i++)
		pthread_join(t[i].thread, NULL);
	took = bench_now() - start;
	lazy_end(&l);
	return took;
}

static void compare_touch(const char *name, const struct touch_arg *pager, double target)
{
	struct touch_arg simple = { .by = BY_SIMPLE, .kind = pager->kind, .random = pager->random };
	struct touch_arg present = { .by = PRESENT, .kind = pager->kind, .random = pager->random };
	const char *what = "pager";

	if (pager->around == PAGE)
		what = pager->workers > 1 ? "pager, fault-around off, one shard of two workers"
					  : "pager, fault-around off";

	bench_compare(
		name,
		&(struct bench_report){
			.on = "memfd",
			.unit = "ms",
			.rounds = BENCH_SPREAD,
			.baseline = { "one handler, a message a read, a page an ioctl", touch_all,
				      &simple },
			.ours = { what, touch_all, (void *)(uintptr_t)pager },
			.limit = { "touch of present memory", touch_all, &present },
			.target = target,
			.note = pager->kind == LAZY_MINOR
					? "pages in the file: minor faults; each thread has its CPU"
					: "pages from a memory source; each thread has its CPU",
		});
}

static void sequential(void)
{
	compare_touch("pager-sequential", &(struct touch_arg){ .by = BY_PAGER, .kind = LAZY_MINOR },
		      20);
}

/* Two workers that both take any fault: whichever has the CPU of the thread that waits. */
static void random_off(void)
{
	compare_touch("pager-random-off",
		      &(struct touch_arg){ .by = BY_PAGER,
					   .kind = LAZY_MINOR,
					   .random = true,
					   .around = PAGE,
					   .shards = 1,
					   .workers = 2 },
		      2);
}

/* The same with a trace, which nobody reads meanwhile: it is large enough. */
static void random_traced(void)
{
	struct touch_arg plain = { .by = BY_PAGER,
				   .kind = LAZY_MINOR,
				   .random = true,
				   .around = PAGE,
				   .shards = 1,
				   .workers = 2 };
	struct touch_arg traced = plain;

	traced.trace = 65536;
	bench_compare(
		"pager-trace",
		&(struct bench_report){
			.on = "memfd",
			.unit = "ms",
			.rounds = BENCH_SPREAD,
			.baseline = { "as pager-random-off, without a trace", touch_all, &plain },
			.ours = { "with a trace of 65536 entries a thread", touch_all, &traced },
			.target = 0.952,
			.note = "at most 5 % more",
		});
}

static void random_off_shards(void)
{
	compare_touch("pager-random-off-shards",
		      &(struct touch_arg){
			      .by = BY_PAGER, .kind = LAZY_MINOR, .random = true, .around = PAGE },
		      0);
}

static void random_default(void)
{
	compare_touch("pager-random",
		      &(struct touch_arg){ .by = BY_PAGER, .kind = LAZY_MINOR, .random = true },
		      10);
}

static void lazy_sequential(void)
{
	compare_touch("pager-lazy-sequential", &(struct touch_arg){ .by = BY_PAGER }, 0);
}

static void lazy_random_off(void)
{
	compare_touch(
		"pager-lazy-random-off",
		&(struct touch_arg){
			.by = BY_PAGER, .random = true, .around = PAGE, .shards = 1, .workers = 2 },
		0);
}

static void lazy_random(void)
{
	compare_touch("pager-lazy-random", &(struct touch_arg){ .by = BY_PAGER, .random = true },
		      0);
}

/* ---- the time of one fault ---- */

struct latency_arg {
	struct touch_arg touch;
	bool storm;
	double quantile; /* < 0: the mean */
};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void pause_ns(double ns)
{
	double until = bench_now() + ns;

	while (bench_now() < until)
		;
}

static double mean(const double *ns, unsigned int n)
{
	double sum = 0;

	for (unsigned int i = 0; i < n; i++)
		sum += ns[i];
	return sum / n;
}

static double fault_time(void *arg)
{
	static double ns[LATENCIES];
	const struct latency_arg *a = arg;
	uint64_t bytes = touch_bytes(), pages = bytes / PAGE;
	unsigned int n = bench_quick() ? LATENCIES / 4 : LATENCIES;
	struct lazy l;

	bench_pin(1);
	set_up(&l, &a->touch, bytes);
	lazy_start(&l);
	bench_pin(0);
	for (unsigned int i = 0; i < n; i++) {
		const volatile uint64_t *at = (void *)(l.base + guest_shuffle(i, pages) * PAGE);
		double start;

		if (!a->storm)
			pause_ns(GAP_NS);
		start = bench_now();
		(void)*at;
		ns[i] = bench_now() - start;
	}
	bench_unpin();
	lazy_end(&l);
	if (a->quantile < 0)
		return mean(ns, n);
	qsort(ns, n, sizeof(*ns), by_value);
	return ns[(unsigned int)((n - 1) * a->quantile)];
}

static void compare_fault(const char *name, bool storm, double quantile, uint64_t around,
			  double target)
{
	struct latency_arg simple = { .touch = { .by = BY_SIMPLE },
				      .storm = storm,
				      .quantile = quantile };
	struct latency_arg pager = simple;

	pager.touch.by = BY_PAGER;
	pager.touch.around = around;
	pager.touch.spin_ns = storm ? 50000 : 0;
	bench_compare(
		name,
		&(struct bench_report){
			.on = "memfd",
			.unit = "us",
			.rounds = quantile < 0	   ? BENCH_SHORT
				  : quantile > 0.9 ? BENCH_MORE
						   : 0,
			.baseline = { "one handler, a message a read, a page an ioctl", fault_time,
				      &simple },
			.ours = { storm ? "pager, spins 50 us before it sleeps" : "pager",
				  fault_time, &pager },
			.target = target,
			.note = "one thread, random pages, from a memory source; the handler has a CPU of its own",
		});
}

static void fault_p50(void)
{
	compare_fault("pager-fault-p50", false, 0.50, PAGE, 1 / 1.05);
}

static void fault_p99(void)
{
	compare_fault("pager-fault-p99", false, 0.99, PAGE, 1 / 1.2);
}

static void fault_around(void)
{
	compare_fault("pager-fault-around-mean", false, -1, 0, 0);
}

static void storm(void)
{
	compare_fault("pager-storm-p50", true, 0.50, PAGE, 1 / 0.4);
}

/* ---- curves ---- */

static double thousands_a_second(const struct touch_arg *a)
{
	uint64_t pages = touch_bytes() / PAGE;

	return (double)pages / bench_median(touch_all, (void *)(uintptr_t)a) * 1e6;
}

static void around_curve(void)
{
	double x[10], ordered[10], shuffled[10];

	for (unsigned int i = 0; i < 10; i++) {
		struct touch_arg a = { .by = BY_PAGER, .around = PAGE << i };

		x[i] = (double)(1u << i);
		ordered[i] = thousands_a_second(&a);
		a.random = true;
		shuffled[i] = thousands_a_second(&a);
	}
	bench_series("pager-around", "in order", "pages of fault-around", "1000 pages/s", x,
		     ordered, 10);
	bench_series("pager-around", "at random", "pages of fault-around", "1000 pages/s", x,
		     shuffled, 10);
}

static void threads_curve(void)
{
	double x[4], shards[4], workers[4];

	for (uint32_t i = 0; i < 4; i++) {
		struct touch_arg a = {
			.by = BY_PAGER, .random = true, .around = PAGE, .shards = i + 1
		};

		x[i] = i + 1;
		shards[i] = thousands_a_second(&a);
		a.shards = 1;
		a.workers = i + 1;
		workers[i] = thousands_a_second(&a);
	}
	bench_series("pager-threads", "shards of one worker", "threads", "1000 pages/s", x, shards,
		     4);
	bench_series("pager-threads", "workers of one shard", "threads", "1000 pages/s", x, workers,
		     4);
}

BENCH_MAIN({ "pager-sequential", sequential }, { "pager-random-off", random_off },
	   { "pager-trace", random_traced }, { "pager-random-off-shards", random_off_shards },
	   { "pager-random", random_default }, { "pager-lazy-sequential", lazy_sequential },
	   { "pager-lazy-random-off", lazy_random_off }, { "pager-lazy-random", lazy_random },
	   { "pager-fault-p50", fault_p50 }, { "pager-fault-p99", fault_p99 },
	   { "pager-fault-around-mean", fault_around }, { "pager-storm-p50", storm },
	   { "pager-around", around_curve }, { "pager-threads", threads_curve })
