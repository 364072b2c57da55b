// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "bench.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define ROUNDS	     9
#define QUICK_ROUNDS 3

static bool quick;
static uint64_t mib;
static const char *dir = ".";
static cpu_set_t cpus;

bool bench_quick(void)
{
	return quick;
}

uint64_t bench_mib(uint64_t usual, uint64_t in_quick)
{
	return mib ? mib : quick ? in_quick : usual;
}

const char *bench_dir(void)
{
	return dir;
}

double bench_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

void bench_check(bool right, const char *fmt, ...)
{
	va_list ap;

	if (right)
		return;
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

void *bench_alloc(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	bench_check(p != MAP_FAILED, "no memory for 0x%lx bytes", (unsigned long)bytes);
	return p;
}

void bench_pin(unsigned int n)
{
	cpu_set_t one;
	size_t cpu = 0;

	for (n %= (unsigned int)CPU_COUNT(&cpus); n || !CPU_ISSET(cpu, &cpus); cpu++)
		n -= CPU_ISSET(cpu, &cpus) != 0;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	bench_check(!sched_setaffinity(0, sizeof(one), &one), "sched_setaffinity");
}

void bench_unpin(void)
{
	bench_check(!sched_setaffinity(0, sizeof(cpus), &cpus), "sched_setaffinity");
}

void bench_random_words(void *to, uint64_t bytes, uint64_t seed)
{
	uint64_t *w = to, x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;

	for (uint64_t i = 0; i < bytes / 8; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		w[i] = x | 1;
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(const double *v, unsigned int n)
{
	double s[BENCH_SPREAD];

	memcpy(s, v, n * sizeof(*v));
	qsort(s, n, sizeof(*s), by_value);
	return s[n / 2];
}

/* Of each round's own: what comes and goes on the machine is in both of its sides, or nearly. */
static double median_ratio(const double *v, const double *by, unsigned int n)
{
	double r[BENCH_SPREAD] = { 0 };

	for (unsigned int i = 0; i < n; i++)
		r[i] = v[i] / by[i];
	return median(r, n);
}

static unsigned int rounds(void)
{
	return quick ? QUICK_ROUNDS : ROUNDS;
}

double bench_median(double (*fn)(void *arg), void *arg)
{
	double v[ROUNDS] = { 0 };

	fn(arg);
	for (unsigned int i = 0; i < rounds(); i++)
		v[i] = fn(arg);
	return median(v, rounds());
}

static void print_string(const char *s)
{
	putchar('"');
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			putchar('\\');
		if (*s == '\n')
			fputs("\\n", stdout);
		else
			putchar(*s);
	}
	putchar('"');
}

static void print_side(const char *key, const struct bench_side *side, const double *v,
		       unsigned int count, double scale)
{
	printf(", \"%s\": {\"what\": ", key);
	print_string(side->what);
	printf(", \"median\": %.6g, \"runs\": [", median(v, count) / scale);
	for (unsigned int i = 0; i < count; i++)
		printf("%s%.6g", i ? ", " : "", v[i] / scale);
	printf("]}");
}

void bench_compare(const char *name, const struct bench_report *b)
{
	const struct bench_side *sides[] = { &b->baseline, &b->ours, &b->limit };
	double v[3][BENCH_SPREAD] = { { 0 } }, ratio, of_limit, scale = 1;
	unsigned int n = b->limit.run ? 3 : 2, count = b->rounds && !quick ? b->rounds : rounds();
	bool met;

	for (unsigned int s = 0; s < n; s++)
		sides[s]->run(sides[s]->arg);
	for (unsigned int i = 0; i < count; i++)
		for (unsigned int s = 0; s < n; s++)
			v[s][i] = sides[s]->run(sides[s]->arg);
	ratio = b->more_is_better ? median_ratio(v[1], v[0], count)
				  : median_ratio(v[0], v[1], count);
	of_limit = n < 3	       ? 0
		   : b->more_is_better ? median_ratio(v[2], v[1], count)
				       : median_ratio(v[1], v[2], count);
	met = ratio >= b->target && (!(b->limit_target > 0) || of_limit <= b->limit_target);

	if (!strcmp(b->unit, "ms"))
		scale = 1e6;
	else if (!strcmp(b->unit, "us"))
		scale = 1e3;
	printf("{\"row\": \"%s\", \"on\": ", name);
	print_string(b->on ? b->on : "");
	printf(", \"unit\": \"%s\"", b->unit);
	print_side("baseline", &b->baseline, v[0], count, scale);
	print_side("ours", &b->ours, v[1], count, scale);
	if (n == 3)
		print_side("limit", &b->limit, v[2], count, scale);
	printf(", \"ratio\": %.4g, \"target\": %.4g", ratio, b->target);
	if (n == 3)
		printf(", \"of_limit\": %.4g, \"limit_target\": %.4g", of_limit, b->limit_target);
	printf(", \"met\": %s, \"note\": ", met ? "true" : "false");
	print_string(b->note ? b->note : "");
	printf("}\n");
	fflush(stdout);
}

void bench_series(const char *name, const char *curve, const char *x_name, const char *unit,
		  const double *x, const double *y, size_t count)
{
	printf("{\"series\": \"%s\", \"curve\": \"%s\", \"x\": \"%s\", \"unit\": \"%s\", \"points\": [",
	       name, curve, x_name, unit);
	for (size_t i = 0; i < count; i++)
		printf("%s[%.6g, %.6g]", i ? ", " : "", x[i], y[i]);
	printf("]}\n");
	fflush(stdout);
}

void bench_skip(const char *name, const char *fmt, ...)
{
	char why[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	printf("{\"row\": \"%s\", \"skip\": ", name);
	print_string(why);
	printf("}\n");
	fflush(stdout);
}

static bool wanted(char **names, int count, const char *name)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(names[i], name))
			return true;
	return !count;
}

int bench_main(int argc, char **argv, const struct bench_row *rows, size_t count)
{
	int at = 1;

	for (; at < argc && argv[at][0] == '-'; at++) {
		if (!strcmp(argv[at], "--quick")) {
			quick = true;
		} else if (!strcmp(argv[at], "--dir") && at + 1 < argc) {
			dir = argv[++at];
		} else if (!strcmp(argv[at], "--mib") && at + 1 < argc) {
			mib = strtoull(argv[++at], NULL, 10);
		} else if (!strcmp(argv[at], "--list")) {
			for (size_t i = 0; i < count; i++)
				printf("%s\n", rows[i].name);
			return 0;
		} else {
			fprintf(stderr,
				"usage: %s [--quick] [--mib N] [--dir DIR] [--list] [ROW...]\n",
				argv[0]);
			return 2;
		}
	}
	bench_check(!sched_getaffinity(0, sizeof(cpus), &cpus), "sched_getaffinity");
	for (size_t i = 0; i < count; i++)
		if (wanted(argv + at, argc - at, rows[i].name))
			rows[i].run();
	return 0;
}
