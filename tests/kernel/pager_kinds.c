// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Kinds of faults that a pager must not have: pages where mappings meet, events without an answer,
 * poison that stays, content that comes back after a removal, counts behind the wake.
 */
#include "prefetch.h"
#include "pager_lib.h"
#include "toucher.h"

#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <time.h>

#define BYTES (4u * MIB)
#define PAGES (BYTES / PAGE)

static const enum kvmem_backing kinds[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };

static void sleep_ms(unsigned int ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

	nanosleep(&ts, NULL);
}

/* ---- K4: where two mappings meet ---- */

enum split { ADVICE, LOCK, PROTECTION, SPLITS };

/* Divides the mapping in the middle of what is filled at once. */
static void divide(const struct set *s, enum split how)
{
	uint8_t *at = s->base + MIB + 13 * PAGE;
	int r;

	switch (how) {
	case ADVICE:
		r = madvise(at, MIB, MADV_DONTDUMP);
		break;
	case LOCK:
		r = mlock2(at, 16 * PAGE, MLOCK_ONFAULT);
		break;
	default:
		r = mprotect(at, MIB, PROT_READ);
	}
	ck_assert_int_eq(r, 0);
}

TEST(k4_15_filled_in_advance_where_mappings_meet)
{
	for (unsigned int i = 0; i < 2 * SPLITS; i++) {
		struct kvmem_run all = { .bytes = BYTES };
		struct set s;

		if (!open_set(&s, kinds[i % 2], BYTES))
			return;
		use_memory(&s);
		start_set(&s);
		divide(&s, i / 2);
		all.region = s.ram;
		must(prefetch_runs(s.pager, &all, 1));
		must(kvmem_pager_wait(s.pager, 60 * 1000000000ll));
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		check_all(&s);
		close_set(&s);
	}
}
END

TEST(k4_15_filled_at_the_end_where_mappings_meet)
{
	for (unsigned int i = 0; i < 2 * SPLITS; i++) {
		struct set s;

		if (!open_set(&s, kinds[i % 2], BYTES))
			return;
		use_memory(&s);
		start_set(&s);
		divide(&s, i / 2);
		check_page(&s, MIB / PAGE + 12); /* around it, too */
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		check_all(&s);
		close_set(&s);
	}
}
END

TEST(k4_15_populated_beside_a_pager_where_mappings_meet)
{
	for (unsigned int i = 0; i < 2 * SPLITS; i++) {
		struct set s;

		if (!open_set(&s, kinds[i % 2], BYTES))
			return;
		use_memory(&s);
		start_set(&s);
		divide(&s, i / 2);
		must(kvmem_populate(s.ram, 0, s.source, NULL, NULL));
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
		check_all(&s);
		close_set(&s);
	}
}
END

TEST(k4_15_marked_where_mappings_meet)
{
	for (unsigned int i = 0; i < SPLITS; i++) {
		struct set s;
		int fd;

		if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
			return;
		use_memory(&s);
		start_set(&s);
		divide(&s, i);
		fd = kvmem_region_fd(s.ram);
		ck_assert_int_eq(pwrite(fd, s.content, BYTES, 0), BYTES);
		must(kvmem_region_mark_present(s.ram, 0, BYTES));
		must(kvmem_pager_wait(s.pager, 0));
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_set(&s);
	}
}
END

/* ---- K5: every fault gets an answer ---- */

/* Serve until all of them have gone on; a fault without an answer never does. */
static void serve_until_done(const struct set *s, struct toucher *t, unsigned int count)
{
	struct pollfd p = { .fd = kvmem_pager_fd(s->pager), .events = POLLIN };

	for (unsigned int i = 0; i < count; i++) {
		for (unsigned int ms = 0; !atomic_load(&t[i].done) && ms < 10000; ms += 10) {
			poll(&p, 1, 10);
			must(kvmem_pager_handle(s->pager));
		}
		ck_assert_msg(atomic_load(&t[i].done), "the fault on page %llu has no answer",
			      (unsigned long long)t[i].page);
		pthread_join(t[i].thread, NULL);
	}
}

static void remove_page(const struct set *s, uint64_t page)
{
	int advice = s->backing == KVMEM_BACKING_MEMFD ? MADV_REMOVE : MADV_DONTNEED;

	ck_assert_int_eq(madvise(s->base + page * PAGE, PAGE, advice), 0);
	memset(s->content + page * PAGE, 0, PAGE);
}

/* All that can be done without a fault, the neighbours of the last one. */
static void serve_until_idle(const struct set *s)
{
	struct pollfd p = { .fd = kvmem_pager_fd(s->pager), .events = POLLIN };

	for (unsigned int i = 0; i < 100 || poll(&p, 1, 0); i++)
		must(kvmem_pager_handle(s->pager));
}

static uint64_t first_missing(const struct set *s)
{
	struct kvmem_run run;

	ck_assert_int_eq(kvmem_region_next_missing(s->ram, 0, &run), 1);
	return run.offset / PAGE;
}

/*
 * A sequence of faults, whose windows double. The last window covers a page that was present in the
 * record, and which madvise() has taken away without the pager's hearing of it. The fault of the
 * sequence and one on this page are in one batch.
 */
TEST(k5_16_window_covers_other_fault)
{
	for (unsigned int i = 0; i < 16; i++) {
		struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
		uint64_t gone = 100 + 16 * (i / 2);
		struct toucher t[2];
		struct set s;

		if (!open_set(&s, kinds[i % 2], BYTES))
			return;
		use_memory(&s);
		o.bytes = PAGE;
		o.source_offset = gone * PAGE;
		must(kvmem_populate(s.ram, gone * PAGE, s.source, &o, NULL));
		s.opts.flags = KVMEM_PAGER_NO_THREADS;
		start_set(&s);
		while (first_missing(&s) <= gone / 2) {
			start_touch(t, &s, first_missing(&s));
			serve_until_done(&s, t, 1);
			serve_until_idle(&s);
		}
		remove_page(&s, gone);
		start_touch(&t[0], &s, first_missing(&s));
		start_touch(&t[1], &s, gone);
		sleep_ms(20); /* both are in the queue, most likely */
		serve_until_done(&s, t, 2);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		check_all(&s);
		close_set(&s);
	}
}
END

struct ordered {
	struct set s;
	unsigned int reads, of_page[PAGES]; /* the number of the read that brought each page */
};

static int ordered_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct ordered *o = arg;

	o->reads++;
	for (uint64_t at = offset; at < offset + bytes; at += PAGE)
		o->of_page[at / PAGE] = o->reads;
	memcpy(buf, o->s.content + offset, bytes);
	return 0;
}

/* A fault that waits does so for the read under way, not for all that is missing. */
TEST(k5_17_faults_are_served_while_stop_fills)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
		static struct ordered o;
		struct toucher t;

		memset(&o, 0, sizeof(o));
		if (!open_set(&o.s, kinds[k], BYTES))
			return;
		ops.read = ordered_read;
		must(kvmem_source_callback(&ops, &o, BYTES, &o.s.source));
		o.s.opts.flags = KVMEM_PAGER_NO_THREADS;
		start_set(&o.s);
		start_touch(&t, &o.s, PAGES - 100);
		ck_assert(harness_wait(in_fault, &t, 20));
		must(kvmem_pager_stop(o.s.pager, KVMEM_STOP_FILL));
		pthread_join(t.thread, NULL);
		ck_assert_uint_lt(o.of_page[PAGES - 100], o.of_page[PAGES / 2]);
		check_all(&o.s);
		close_set(&o.s);
	}
}
END

/* ---- K7: poison can be healed ---- */

static _Thread_local sigjmp_buf back;

static void on_signal(int sig)
{
	siglongjmp(back, sig);
}

/* 0, or the signal that reading the page raises. */
static int access_page(const struct set *s, uint64_t page)
{
	int sig = sigsetjmp(back, 1);

	if (!sig)
		(void)*(volatile uint8_t *)(s->base + page * PAGE);
	return sig;
}

struct bad {
	struct set s;
	atomic_bool broken;
};

#define BAD_PAGE 300u

static int bad_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct bad *b = arg;
	uint64_t bad = (uint64_t)BAD_PAGE * PAGE;

	if (atomic_load(&b->broken) && offset <= bad && offset + bytes > bad)
		return -EIO;
	memcpy(buf, b->s.content + offset, bytes);
	return 0;
}

/* A pager with a page that is poisoned, and a source that is well again. */
static bool open_poisoned(struct bad *b, enum kvmem_backing backing)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct sigaction sa = { .sa_handler = on_signal };

	memset(b, 0, sizeof(*b));
	if (!open_set(&b->s, backing, BYTES))
		return false;
	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	ops.read = bad_read;
	must(kvmem_source_callback(&ops, b, BYTES, &b->s.source));
	b->broken = true;
	start_set(&b->s);
	ck_assert_int_ne(access_page(&b->s, BAD_PAGE), 0);
	ck_assert_uint_eq(stats_of(&b->s).pages_poisoned, 1);
	b->broken = false;
	return true;
}

static void expect_healed(const struct bad *b)
{
	ck_assert_int_eq(access_page(&b->s, BAD_PAGE), 0);
	check_page(&b->s, BAD_PAGE);
}

static void populate_part(struct bad *b)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.source_offset = (uint64_t)(BAD_PAGE - 4) * PAGE;
	o.bytes = 8 * PAGE;
	must(kvmem_populate(b->s.ram, o.source_offset, b->s.source, &o, NULL));
}

static void end_poisoned(struct bad *b)
{
	ck_assert_uint_eq(stats_of(&b->s).pages_poisoned, 0);
	must(kvmem_pager_stop(b->s.pager, KVMEM_STOP_FILL));
	check_all(&b->s);
	close_set(&b->s);
}

TEST(k7_24_populate_beside_the_pager_heals)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct bad b;

		if (!open_poisoned(&b, kinds[k]))
			return;
		populate_part(&b);
		expect_healed(&b);
		end_poisoned(&b);
	}
}
END

TEST(k7_24_discard_heals)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct bad b;

		if (!open_poisoned(&b, kinds[k]))
			return;
		must(kvmem_region_discard(b.s.ram, BAD_PAGE * PAGE, PAGE));
		memset(b.s.content + BAD_PAGE * PAGE, 0, PAGE);
		expect_healed(&b);
		end_poisoned(&b);
	}
}
END

TEST(k7_24_zeros_heal)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct bad b;

		if (!open_poisoned(&b, kinds[k]))
			return;
		memset(b.s.content + (BAD_PAGE - 4) * PAGE, 0, 8 * PAGE);
		populate_part(&b);
		expect_healed(&b);
		end_poisoned(&b);
	}
}
END

/* Not by the count of poisoned pages: one that is being filled is not among them. */
static bool is_present(void *arg)
{
	struct bad *b = arg;
	struct kvmem_run run;
	uint32_t state;

	return kvmem_region_next_run(b->s.ram, BAD_PAGE * PAGE, &run, &state) == 1 &&
	       state == KVMEM_PAGE_PRESENT;
}

TEST(k7_24_prefetch_heals)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct kvmem_run run = { .offset = BAD_PAGE * PAGE, .bytes = PAGE };
		struct bad b;

		if (!open_poisoned(&b, kinds[k]))
			return;
		run.region = b.s.ram;
		must(prefetch_runs(b.s.pager, &run, 1));
		ck_assert(harness_wait(is_present, &b, 20));
		expect_healed(&b);
		end_poisoned(&b);
	}
}
END

TEST(k7_24_populate_without_a_pager_heals)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct bad b;

		if (!open_poisoned(&b, kinds[k]))
			return;
		must(kvmem_pager_stop(b.s.pager, KVMEM_STOP_HAND_BACK));
		must(kvmem_pager_free(b.s.pager));
		b.s.pager = NULL;
		must(kvmem_populate(b.s.ram, 0, b.s.source, NULL, NULL));
		expect_healed(&b);
		check_all(&b.s);
		close_set(&b.s);
	}
}
END

/* ---- K8: a removal during a read is exact ---- */

struct slow {
	struct set s;
	pthread_t remover;
	atomic_bool reading, removing;
};

#define WINDOW 256u

static int slow_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct slow *l = arg;

	memcpy(buf, l->s.content + offset, bytes);
	if (atomic_exchange(&l->reading, true))
		return 0;
	while (!atomic_load(&l->removing))
		sleep_ms(1);
	sleep_ms(30); /* in madvise() by now, which waits for its event to be read */
	return 0;
}

static void *remove_window(void *arg)
{
	struct slow *l = arg;
	int advice = l->s.backing == KVMEM_BACKING_MEMFD ? MADV_REMOVE : MADV_DONTNEED;

	while (!atomic_load(&l->reading))
		sleep_ms(1);
	atomic_store(&l->removing, true);
	ck_assert_int_eq(madvise(l->s.base, WINDOW * PAGE, advice), 0);
	return NULL;
}

TEST(k8_25_removed_while_it_is_read)
{
	for (unsigned int i = 0; i < 12; i++) {
		struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
		struct kvmem_run run = { .bytes = WINDOW * PAGE };
		struct slow l;

		memset(&l, 0, sizeof(l));
		if (!open_set(&l.s, kinds[i % 2], BYTES))
			return;
		ops.read = slow_read;
		must(kvmem_source_callback(&ops, &l, BYTES, &l.s.source));
		l.s.opts.shards = 1 + i / 6;
		l.s.opts.workers = 1 + i % 3;
		start_set(&l.s);
		ck_assert_int_eq(pthread_create(&l.remover, NULL, remove_window, &l), 0);
		run.region = l.s.ram;
		if (i < 6)
			must(prefetch_runs(l.s.pager, &run, 1));
		else
			(void)*(volatile uint8_t *)l.s.base;
		pthread_join(l.remover, NULL);
		memset(l.s.content, 0, WINDOW * PAGE);
		check_all(&l.s);
		must(kvmem_pager_stop(l.s.pager, KVMEM_STOP_FILL));
		check_all(&l.s);
		close_set(&l.s);
	}
}
END

/* ---- K9: counted before the wake ---- */

TEST(k9_28_who_is_woken_finds_the_fault_counted)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct kvmem_pager_stats st;
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		s.opts.fault_around = PAGE;
		start_set(&s);
		for (uint64_t page = 0, served = 0; page < PAGES; page++, served = 0) {
			(void)*(volatile uint8_t *)(s.base + page * PAGE);
			st = stats_of(&s);
			for (unsigned int b = 0; b < KVMEM_HIST_BUCKETS; b++)
				served += st.service_ns[b];
			ck_assert_uint_eq(st.pages_demand, page + 1);
			ck_assert_uint_eq(st.faults_missing, page + 1);
			ck_assert_uint_eq(served, page + 1);
		}
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_set(&s);
	}
}
END

/* ---- K11: what does not exist cannot be marked ---- */

TEST(k11_34_pages_that_do_not_exist_are_not_marked)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		start_set(&s);
		ck_assert_int_eq(kvmem_region_mark_present(s.ram, MIB, 8 * PAGE), -EIO);
		check_all(&s);
		must(kvmem_region_mark_present(s.ram, MIB, 8 * PAGE)); /* they are there now */
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		check_all(&s);
		close_set(&s);
	}
}
END

HARNESS_MAIN(T(k4_15_filled_in_advance_where_mappings_meet),
	     T(k4_15_filled_at_the_end_where_mappings_meet),
	     T(k4_15_populated_beside_a_pager_where_mappings_meet),
	     T(k4_15_marked_where_mappings_meet), T(k5_16_window_covers_other_fault),
	     T(k5_17_faults_are_served_while_stop_fills), T(k7_24_populate_beside_the_pager_heals),
	     T(k7_24_discard_heals), T(k7_24_zeros_heal), T(k7_24_prefetch_heals),
	     T(k7_24_populate_without_a_pager_heals), T(k8_25_removed_while_it_is_read),
	     T(k9_28_who_is_woken_finds_the_fault_counted),
	     T(k11_34_pages_that_do_not_exist_are_not_marked))
