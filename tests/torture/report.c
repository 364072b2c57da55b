// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a round did, in memory that it shares with its supervisor: it outlives the round's process. */
#include "torture.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct report *report;

const char *operation_name(enum operation op)
{
	static const char *const names[] = {
#define X(id, name) name,
		OPERATIONS(X)
#undef X
	};

	return op < OP_COUNT ? names[op] : "?";
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void report_open(void)
{
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (report == MAP_FAILED) {
		perror("torture: mmap");
		exit(2);
	}
}

void report_clear(void)
{
	report->failed = 0;
	report->storming = 0;
	report->fail_area = report->fail_page = -1;
	report->failure[0] = report->setup[0] = 0;
	for (unsigned int i = 0; i < MAX_THREADS; i++) {
		struct trace *trace = &report->trace[i];

		trace->name[0] = 0;
		trace->tid = 0;
		trace->busy_since = 0;
		trace->events = 0;
	}
}

void count(enum counter counter, uint64_t n)
{
	atomic_fetch_add_explicit(&report->counter[counter], n, memory_order_relaxed);
}

void op_begin(struct thread *thread, enum operation op, const struct area *area, uint32_t first,
	      uint32_t pages, uint64_t argument)
{
	struct trace *trace = thread->trace;
	uint64_t n = atomic_load_explicit(&trace->events, memory_order_relaxed);
	struct event *e = &trace->event[n % TRACE_EVENTS];

	e->ns = now_ns();
	e->op = (uint16_t)op;
	e->area = area ? (int16_t)area->index : -1;
	e->first = first;
	e->count = pages;
	e->argument = argument;
	e->result = RESULT_PENDING;
	atomic_store_explicit(&trace->events, n + 1, memory_order_release);
	atomic_store_explicit(&trace->busy_since, e->ns, memory_order_release);
	atomic_fetch_add_explicit(&report->done[op], 1, memory_order_relaxed);
}

int64_t op_end(struct thread *thread, int64_t result)
{
	struct trace *trace = thread->trace;

	trace->event[(trace->events - 1) % TRACE_EVENTS].result = result;
	atomic_store_explicit(&trace->busy_since, 0, memory_order_release);
	return result;
}

void fail(const struct area *area, int64_t page, const char *format, ...)
{
	int expected = 0;
	va_list args;

	if (atomic_compare_exchange_strong(&report->failed, &expected, 1)) {
		report->fail_area = area ? area->index : -1;
		report->fail_page = (int)page;
		va_start(args, format);
		vsnprintf(report->failure, sizeof(report->failure), format, args);
		va_end(args);
	}
	_exit(1);
}

int64_t must_be(int64_t result, const char *call, const char *file, int line)
{
	const char *slash = strrchr(file, '/');

	if (result < 0)
		fail(NULL, -1, "%s:%d: %s: %lld (%s): %s", slash ? slash + 1 : file, line, call,
		     (long long)result, strerror((int)-result), kvmem_error_detail());
	return result;
}

/* ---- printing, by the supervisor ---- */

static uint64_t first_kept(const struct trace *trace)
{
	return trace->events > TRACE_EVENTS ? trace->events - TRACE_EVENTS : 0;
}

static bool concerns(const struct event *e, int area, int page)
{
	return e->area == area &&
	       (page < 0 || (e->first <= (uint32_t)page && (uint32_t)page < e->first + e->count));
}

static void print_event(const struct trace *trace, const struct event *e, uint64_t end)
{
	fprintf(stderr, "  -%10.3f ms  %-10s %-12s", (double)(end - e->ns) / 1e6, trace->name,
		operation_name(e->op));
	if (e->area >= 0)
		fprintf(stderr, " area %d", e->area);
	if (e->count)
		fprintf(stderr, " pages %u+%u", e->first, e->count);
	if (e->argument)
		fprintf(stderr, " (%llx)", (unsigned long long)e->argument);
	if (e->result == RESULT_PENDING)
		fprintf(stderr, " ... not done\n");
	else
		fprintf(stderr, " = %lld\n", (long long)e->result);
}

struct line {
	const struct trace *trace;
	const struct event *event;
};

static int by_time(const void *a, const void *b)
{
	const struct line *x = a, *y = b;

	return x->event->ns < y->event->ns ? -1 : x->event->ns > y->event->ns;
}

/* The last events that concern the page (page < 0: the area; area < 0: all), oldest first. */
static void print_last(const char *title, int area, int page, unsigned int most)
{
	struct line *lines = calloc((size_t)MAX_THREADS * TRACE_EVENTS, sizeof(*lines));
	uint64_t end = now_ns();
	size_t n = 0;

	for (unsigned int i = 0; lines && i < MAX_THREADS; i++) {
		const struct trace *trace = &report->trace[i];

		for (uint64_t k = first_kept(trace); k < trace->events; k++) {
			const struct event *e = &trace->event[k % TRACE_EVENTS];

			if ((area < 0 && page < 0) || concerns(e, area, page))
				lines[n++] = (struct line){ trace, e };
		}
	}
	if (!n) {
		free(lines);
		return;
	}
	qsort(lines, n, sizeof(*lines), by_time);
	fprintf(stderr, "%s\n", title);
	for (size_t i = n > most ? n - most : 0; i < n; i++)
		print_event(lines[i].trace, lines[i].event, end);
	free(lines);
}

static void print_pending(void)
{
	uint64_t end = now_ns();

	fprintf(stderr, "under way:\n");
	for (unsigned int i = 0; i < MAX_THREADS; i++) {
		const struct trace *trace = &report->trace[i];

		if (trace->busy_since)
			print_event(trace, &trace->event[(trace->events - 1) % TRACE_EVENTS], end);
	}
}

void report_print_failure(unsigned int round)
{
	fprintf(stderr, "torture: FAILED: seed %llu, round %u\n  %s\n  %s\n",
		(unsigned long long)options.seed, round, report->setup,
		report->failure[0] ? report->failure : "(no message)");
	if (report->fail_page >= 0)
		print_last("what was done with the page:", report->fail_area, report->fail_page,
			   40);
	print_last(report->fail_area < 0 ? "last of all:" : "last in the area:", report->fail_area,
		   -1, 30);
	print_pending();
	fprintf(stderr, "again: torture%s --seed %llu --round %u%s",
		options.no_vcpus ? " --no-vcpus" : "", (unsigned long long)options.seed, round,
		options.mask == UINT64_MAX ? "" : " --without");
	for (unsigned int op = 0, n = 0; op < OP_COUNT; op++)
		if (!(options.mask >> op & 1))
			fprintf(stderr, "%c%s", n++ ? ',' : ' ', operation_name(op));
	fprintf(stderr, "\n");
}

void report_print_counts(double seconds)
{
	static const char *const names[] = { "faults",
					     "pages compared by guests",
					     "pages compared by the host",
					     "entries",
					     "resets",
					     "short resets",
					     "poisoned",
					     "pages captured",
					     "pages saved",
					     "signals",
					     "stops",
					     "rounds" };
	unsigned int n = 0;

	printf("operations:");
	for (unsigned int op = 0; op < OP_COUNT; op++)
		if (report->done[op])
			printf("%s %s %llu", n++ ? "," : "", operation_name(op),
			       (unsigned long long)report->done[op]);
	printf("\n");
	for (unsigned int i = 0; i < COUNT_COUNTERS; i++)
		printf("%s: %llu%s", names[i], (unsigned long long)report->counter[i],
		       i + 1 < COUNT_COUNTERS ? ", " : "\n");
	printf("%.0f s: %.0f faults, %.0f entries, %.0f pages compared a second\n", seconds,
	       (double)report->counter[COUNT_FAULTS] / seconds,
	       (double)report->counter[COUNT_ENTRIES] / seconds,
	       (double)(report->counter[COUNT_GUEST_PAGES] + report->counter[COUNT_HOST_PAGES]) /
		       seconds);
}
