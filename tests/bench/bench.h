/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef BENCH_H
#define BENCH_H

/*
 * Rows of the benchmark. A program has a table of rows; each row measures its sides in turn (baseline,
 * ours, limit, baseline, ours, ...) after a warm-up round that counts for nothing, and reports medians
 * as one line of JSON on standard output. tests/bench/run collects them.
 *
 * A side's function sets up, times what counts, checks the result byte by byte (bench_check), cleans
 * up, and returns the nanoseconds that counted.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bench_side {
	const char *what;	  /* a few words for the table */
	double (*run)(void *arg); /* ns, or the value measured */
	void *arg;
};

struct bench_report {
	const char *on;	  /* what it ran on, e.g. the backing; may be NULL */
	const char *unit; /* "ms" (of ns), or the unit of the values as they are */
	bool more_is_better;
	unsigned int rounds; /* 0: as usual; more where runs are short or spread */
	struct bench_side baseline;
	struct bench_side ours;
	struct bench_side limit; /* .run may be NULL */
	double target;	     /* ours is to be this many times better than the baseline; 0: none */
	double limit_target; /* ours takes at most this many times the limit; 0: none */
	const char *note;    /* may be NULL */
};

struct bench_row {
	const char *name;
	void (*run)(void);
};

#define BENCH_SHORT 61 /* rounds of a row whose runs take well under a millisecond, or a few */
#define BENCH_MORE  21 /* of one that spreads, and whose runs are long */
#define BENCH_SPREAD \
	91 /* of one that spreads by where the scheduler puts its threads; the most there are */

/* Measure the sides and print the row. In --quick runs rows have fewer rounds. */
void bench_compare(const char *name, const struct bench_report *b);

/* Numbers without target: value of each x, as one curve of a series. */
void bench_series(const char *name, const char *curve, const char *x_name, const char *unit,
		  const double *x, const double *y, size_t count);

/* The median of fn(arg) over the rounds, after one for warm-up. */
double bench_median(double (*fn)(void *arg), void *arg);

/* The row cannot be measured here. */
void bench_skip(const char *name, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A wrong result ends the program with a message: no row is won by doing less. */
void bench_check(bool right, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

double bench_now(void); /* ns */
bool bench_quick(void);
uint64_t bench_mib(uint64_t usual, uint64_t in_quick); /* the size of a row, unless --mib says it */
const char *bench_dir(void);			       /* for big files; a real disk if possible */
void *bench_alloc(uint64_t bytes);		       /* touched */
/*
 * This thread, and those it starts from here on, to the n-th CPU that the program may use (counted
 * round), or to all of them again. Where the scheduler puts two threads that wake each other decides
 * a round trip's time more than what they do: a row must not leave it to luck.
 */
void bench_pin(unsigned int n);
void bench_unpin(void);
void bench_random_words(void *to, uint64_t bytes, uint64_t seed); /* no zero word */

/* program [--quick] [--mib N] [--dir DIR] [--list] [ROW...] */
int bench_main(int argc, char **argv, const struct bench_row *rows, size_t count);

#define BENCH_MAIN(...) \
	int main(int argc, char **argv) \
	{ \
		const struct bench_row rows[] = { __VA_ARGS__ }; \
		return bench_main(argc, argv, rows, sizeof(rows) / sizeof(rows[0])); \
	}

#endif
