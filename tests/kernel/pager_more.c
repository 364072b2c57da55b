// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What a migration and a working set want of a pager: pages marked absent, content that is pushed, tickets, a trace;
 * and regions that come and go while it runs, threads and userfaultfds as the caller wants them.
 */
#include "pager_lib.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <linux/userfaultfd.h>

#define PAGES 512u

static const enum kvmem_backing backings[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };

/* ---- a source that is held up ---- */

static struct {
	const uint8_t *content;
	_Atomic int held; /* reads wait while it is not 0 */
	_Atomic unsigned int waiting, reads;
	_Atomic uint64_t bad; /* page that fails, +1 */
} slow;

static int slow_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	atomic_fetch_add(&slow.waiting, 1);
	while (atomic_load(&slow.held))
		usleep(100);
	atomic_fetch_sub(&slow.waiting, 1);
	atomic_fetch_add(&slow.reads, 1);
	if (atomic_load(&slow.bad) && offset / PAGE <= atomic_load(&slow.bad) - 1 &&
	    atomic_load(&slow.bad) - 1 < (offset + bytes + PAGE - 1) / PAGE)
		return -ENXIO;
	memcpy(buf, slow.content + offset, bytes);
	return 0;
}

static void use_slow(struct set *s)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	memset(&slow, 0, sizeof(slow));
	slow.content = s->content;
	ops.read = slow_read;
	must(kvmem_source_callback(&ops, NULL, s->bytes, &s->source));
}

static bool is_waiting(void *arg)
{
	return atomic_load(&slow.waiting) >= *(unsigned int *)arg;
}

static void wait_for_readers(unsigned int n)
{
	ck_assert(harness_wait(is_waiting, &n, 10));
}

static void end_set(struct set *s)
{
	if (s->pager)
		kvmem_pager_stop(s->pager, KVMEM_STOP_HAND_BACK); /* if it runs */
	close_set(s);
}

static void *reads_page(void *arg)
{
	const uint8_t *page = arg;

	return (void *)(uintptr_t)(*(volatile const uint64_t *)page);
}

/* ---- absent again ---- */

static void absent_again(enum kvmem_backing backing)
{
	struct set s;

	if (!open_set(&s, backing, PAGES * PAGE))
		return;
	use_memory(&s);
	s.opts.fault_around = PAGE;
	start_set(&s);
	for (uint64_t p = 0; p < 100; p++)
		check_page(&s, p);
	memset(s.base, 0x55, 50 * PAGE); /* a guest has written */
	must(kvmem_region_discard(s.ram, 60 * PAGE, PAGE));
	s.content[10 * PAGE] ^= 0xff; /* and the source has something new */
	must(kvmem_region_mark_absent(s.ram, 5 * PAGE, 80 * PAGE, 0));
	ck_assert_uint_eq(stats_of(&s).pages_missing, PAGES - 100 + 80);
	for (uint64_t p = 5; p < 85; p++)
		check_page(&s, p);
	ck_assert_uint_eq(s.base[4 * PAGE], 0x55);
	check_page(&s, 90);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_page(&s, 400);
	end_set(&s);
}

TEST(pages_marked_absent_are_filled_again)
{
	for (size_t i = 0; i < 2; i++)
		absent_again(backings[i]);
}
END

/* Poisoned pages too; `complete` and kvmem_pager_wait() begin anew, and the background brings them in. */
static _Atomic int completes;

static void on_complete(void *arg)
{
	(void)arg;
	atomic_fetch_add(&completes, 1);
}

TEST(complete_comes_once_more)
{
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_slow(&s);
	atomic_store(&completes, 0);
	s.opts.complete = on_complete;
	s.opts.flags = KVMEM_PAGER_BACKGROUND;
	start_set(&s);
	must(kvmem_pager_wait(s.pager, 10000000000));
	ck_assert_int_eq(completes, 1);
	atomic_store(&slow.held, 1);
	must(kvmem_region_mark_absent(s.ram, 0, 300 * PAGE, 0));
	ck_assert_int_eq(kvmem_pager_wait(s.pager, 1000000), -ETIMEDOUT);
	atomic_store(&slow.held, 0);
	must(kvmem_pager_wait(s.pager, 10000000000));
	ck_assert_int_eq(completes, 2);
	ck_assert_uint_eq(stats_of(&s).pages_missing, 0);
	for (uint64_t p = 0; p < 300; p++)
		check_page(&s, p);
	end_set(&s);
}
END

/* Threads read and rewrite a page all the time while it is marked absent: never zeros, never hung. */
static struct {
	uint8_t *base;
	const uint8_t *content;
	_Atomic bool over;
	_Atomic unsigned int wrong;
} hammered;

static void *hammers(void *arg)
{
	(void)arg;
	for (uint64_t p = 0; !atomic_load(&hammered.over); p = (p + 1) % 64) {
		volatile const uint64_t *page = (uint64_t *)(hammered.base + p * PAGE);

		if (*page != *(const uint64_t *)(hammered.content + p * PAGE))
			atomic_fetch_add(&hammered.wrong, 1);
	}
	return NULL;
}

TEST(no_zeros_appear_while_pages_are_marked)
{
	for (size_t b = 0; b < 2; b++) {
		pthread_t threads[2];
		struct set s;

		if (!open_set(&s, backings[b], PAGES * PAGE))
			return;
		use_memory(&s);
		s.opts.fault_around = b ? PAGE : 0;
		s.opts.workers = 2;
		start_set(&s);
		hammered.base = s.base;
		hammered.content = s.content;
		hammered.wrong = 0;
		atomic_store(&hammered.over, false);
		for (size_t i = 0; i < 2; i++)
			ck_assert_int_eq(pthread_create(&threads[i], NULL, hammers, NULL), 0);
		for (unsigned int n = 0; n < 3000; n++) {
			uint64_t first = n % 60, count = n % 4 + 1;

			must(kvmem_region_mark_absent(s.ram, first * PAGE, count * PAGE, 0));
		}
		atomic_store(&hammered.over, true);
		for (size_t i = 0; i < 2; i++)
			pthread_join(threads[i], NULL);
		ck_assert_uint_eq(hammered.wrong, 0);
		end_set(&s);
	}
}
END

TEST(absent_is_refused_and_waits_for_fills)
{
	pthread_t reader;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_slow(&s);
	s.opts.fault_around = PAGE;
	start_set(&s);
	ck_assert_int_eq(kvmem_region_mark_absent(s.ram, 0, PAGE, 2), -EINVAL);
	ck_assert_int_eq(kvmem_region_mark_absent(s.ram, 1, PAGE, 0), -EINVAL);
	ck_assert_int_eq(kvmem_region_mark_absent(s.ram, 0, (PAGES + 1) * PAGE, 0), -ERANGE);
	atomic_store(&slow.held, 1);
	ck_assert_int_eq(pthread_create(&reader, NULL, reads_page, s.base), 0);
	wait_for_readers(1);
	atomic_store(&slow.held, 0);
	must(kvmem_region_mark_absent(s.ram, 0, PAGE, 0)); /* waits for the read under way */
	pthread_join(reader, NULL);
	check_page(&s, 0);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_region_mark_absent(s.ram, 0, PAGE, 0));
	must(kvmem_pager_start(s.pager));
	check_page(&s, 0);
	end_set(&s);
}
END

TEST(absent_without_a_pager_reads_as_zero_until_it_is_filled)
{
	struct kvmem_populate_opts po = KVMEM_POPULATE_OPTS_INIT;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_memory(&s);
	must(kvmem_populate(s.ram, 0, s.source, NULL, NULL));
	must(kvmem_region_mark_absent(s.ram, 3 * PAGE, 2 * PAGE, 0));
	must(kvmem_populate(s.ram, 0, s.source, &po, NULL));
	check_page(&s, 3);
	must(kvmem_region_mark_absent(s.ram, 3 * PAGE, 2 * PAGE, 0));
	must(kvmem_pager_create(NULL, &s.pager));
	must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
	must(kvmem_pager_start(s.pager));
	check_page(&s, 4);
	check_page(&s, 3);
	end_set(&s);
}
END

/* ---- content that came unasked ---- */

/* A whole page in the middle of it. */
static void *page_of(uint8_t *memory)
{
	return (void *)(((uintptr_t)memory + 8 * PAGE) & ~(uintptr_t)(PAGE - 1));
}

TEST(put_places_what_is_absent_and_nothing_else)
{
	for (size_t b = 0; b < 2; b++) {
		uint8_t *other = malloc(64 * PAGE);
		pthread_t reader;
		void *word;
		struct set s;

		if (!open_set(&s, backings[b], PAGES * PAGE))
			return;
		use_slow(&s);
		memset(other, 0x77, 64 * PAGE);
		s.opts.fault_around = PAGE;
		start_set(&s);
		check_page(&s, 2);
		must(kvmem_region_discard(s.ram, 3 * PAGE, PAGE));
		ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, 0, other, 8 * PAGE), 6 * PAGE);
		ck_assert_uint_eq(s.base[PAGE], 0x77);
		check_page(&s, 2);
		ck_assert_uint_eq(s.base[3 * PAGE], 0);
		ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, 0, other, 8 * PAGE), 0);
		/* A thread that waits for the page goes on with what was pushed, or with the source's. */
		atomic_store(&slow.held, 1);
		ck_assert_int_eq(pthread_create(&reader, NULL, reads_page, s.base + 20 * PAGE), 0);
		wait_for_readers(1);
		ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, 20 * PAGE, other, PAGE), 0);
		atomic_store(&slow.held, 0);
		pthread_join(reader, &word);
		check_page(&s, 20);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
		ck_assert_int_eq(pthread_create(&reader, NULL, reads_page, s.base + 30 * PAGE), 0);
		ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, 30 * PAGE, other, 2 * PAGE),
				 2 * PAGE);
		pthread_join(reader, &word);
		ck_assert_uint_eq((uint64_t)(uintptr_t)word, 0x7777777777777777u);
		ck_assert_uint_eq(stats_of(&s).pages_given, 8);
		ck_assert_msg(kvmem_pager_put(s.pager, s.ram, 40 * PAGE, (void *)8, PAGE) ==
				      -EFAULT,
			      "%s", kvmem_error_detail());
		ck_assert_int_eq(mprotect(page_of(other), PAGE, PROT_NONE), 0);
		ck_assert_msg(kvmem_pager_put(s.pager, s.ram, 40 * PAGE, page_of(other), PAGE) ==
				      -EFAULT,
			      "%s", kvmem_error_detail());
		ck_assert_int_eq(mprotect(page_of(other), PAGE, PROT_READ | PROT_WRITE), 0);
		ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, 1, other, PAGE), -EINVAL);
		ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, PAGES * PAGE, other, PAGE),
				 -ERANGE);
		must(kvmem_pager_start(s.pager));
		check_page(&s, 40);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, 0, other, PAGE), -ENOENT);
		end_set(&s);
		free(other);
	}
}
END

/* ---- tickets ---- */

static struct {
	_Atomic int calls;
	struct kvmem_ticket_result result;
	struct kvmem_ticket *_Atomic ticket;
	int free_result, wait_result;
} told;

static void on_done(void *arg, const struct kvmem_ticket_result *result)
{
	ck_assert_ptr_eq(arg, &told);
	told.result = *result;
	if (atomic_load(&told.ticket)) {
		told.free_result = kvmem_ticket_free(atomic_load(&told.ticket));
		told.wait_result = kvmem_ticket_wait(atomic_load(&told.ticket), 0, NULL);
	}
	atomic_fetch_add(&told.calls, 1);
}

static struct kvmem_ticket *ask(struct set *s, const struct kvmem_range *ranges, size_t count)
{
	struct kvmem_prefetch_opts o = KVMEM_PREFETCH_OPTS_INIT;
	struct kvmem_ticket *t;

	memset(&told, 0, sizeof(told));
	o.done = on_done;
	o.arg = &told;
	must(kvmem_pager_prefetch(s->pager, s->ram, ranges, count, &o, &t));
	return t;
}

TEST(a_ticket_is_done_when_its_pages_are_in)
{
	const struct kvmem_range list[] = { { 300 * PAGE, 20 * PAGE }, { 5 * PAGE + 7, 100 } };
	struct kvmem_ticket_result r = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_ticket *t;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_slow(&s);
	s.opts.fault_around = PAGE;
	start_set(&s);
	atomic_store(&slow.held, 1);
	t = ask(&s, list, 2);
	atomic_store(&told.ticket, t);
	ck_assert_int_eq(kvmem_ticket_wait(t, 1000000, &r), -ETIMEDOUT);
	atomic_store(&slow.held, 0);
	must(kvmem_ticket_wait(t, -1, &r));
	ck_assert_uint_eq(r.pages, 21);
	ck_assert_uint_eq(r.pages_failed, 0);
	ck_assert_int_eq(told.calls, 1);
	ck_assert_int_eq(told.free_result, -EDEADLK);
	ck_assert_int_eq(told.wait_result, -EDEADLK);
	ck_assert_uint_eq(stats_of(&s).pages_prefetch, 21);
	must(kvmem_ticket_free(t));
	/* Of nothing, and of what is there already. */
	t = ask(&s, NULL, 0);
	must(kvmem_ticket_wait(t, 0, &r));
	ck_assert_int_eq(told.calls, 1);
	must(kvmem_ticket_free(t));
	t = ask(&s, list, 2);
	must(kvmem_ticket_wait(t, -1, &r));
	ck_assert_uint_eq(r.pages, 21);
	must(kvmem_ticket_free(t));
	end_set(&s);
}
END

/* Pages that others are filling: put by hand, by populate, by a fault. */
TEST(a_ticket_waits_for_the_fills_of_others)
{
	const struct kvmem_range list = { 0, 4 * PAGE };
	struct kvmem_ticket_result r = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_ticket *t;
	pthread_t reader;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_slow(&s);
	s.opts.fault_around = PAGE;
	s.opts.shards = 1;
	s.opts.workers = 2;
	start_set(&s);
	atomic_store(&slow.held, 1);
	ck_assert_int_eq(pthread_create(&reader, NULL, reads_page, s.base), 0);
	wait_for_readers(1);
	ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, PAGE, s.content + PAGE, 3 * PAGE),
			 3 * PAGE);
	t = ask(&s, &list, 1);
	ck_assert_int_eq(kvmem_ticket_wait(t, 20000000, &r), -ETIMEDOUT);
	ck_assert_int_eq(told.calls, 0);
	atomic_store(&slow.held, 0);
	must(kvmem_ticket_wait(t, 10000000000, &r));
	ck_assert_uint_eq(r.pages, 4);
	pthread_join(reader, NULL);
	must(kvmem_ticket_free(t));
	end_set(&s);
}
END

TEST(a_ticket_says_what_failed)
{
	const struct kvmem_range list = { 8 * PAGE, 8 * PAGE };
	struct kvmem_ticket_result r = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_ticket *t;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_slow(&s);
	start_set(&s);
	slow.bad = 10 + 1;
	t = ask(&s, &list, 1);
	ck_assert_int_eq(kvmem_ticket_wait(t, -1, &r), -ENXIO);
	ck_assert_uint_eq(r.pages, 7);
	ck_assert_uint_eq(r.pages_failed, 1);
	ck_assert_int_eq(r.error, -ENXIO);
	must(kvmem_ticket_free(t));
	slow.bad = 0;
	end_set(&s);
}
END

TEST(tickets_end_with_their_pager)
{
	const struct kvmem_range list = { 0, 64 * PAGE };
	struct kvmem_ticket_result r = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_ticket *t, *gone;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_slow(&s);
	must(kvmem_pager_create(&s.opts, &s.pager));
	must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
	gone = ask(&s, &list, 1); /* not started: it waits */
	must(kvmem_ticket_free(gone));
	ck_assert_int_eq(told.calls, 0);
	t = ask(&s, &list, 1);
	must(kvmem_pager_start(s.pager));
	must(kvmem_ticket_wait(t, -1, &r));
	must(kvmem_ticket_free(t));
	must(kvmem_region_mark_absent(s.ram, 0, 64 * PAGE, 0));
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	t = ask(&s, &list, 1);
	must(kvmem_pager_free(s.pager));
	s.pager = NULL;
	ck_assert_int_eq(kvmem_ticket_wait(t, 0, &r), -ECANCELED);
	ck_assert_uint_eq(r.pages_failed, 64);
	ck_assert_int_eq(told.calls, 1);
	must(kvmem_ticket_free(t)); /* after the pager */
	end_set(&s);
}
END

/* Windows one after the other, each asked for when the one before is in: until the pager goes. */
static struct {
	struct set *s;
	unsigned int told, asked;
	int refused;
	struct kvmem_ticket *next, *other;
} chain;

static void asks_for_more(void *arg, const struct kvmem_ticket_result *result)
{
	const struct kvmem_range list = { 0, 64 * PAGE };
	struct kvmem_prefetch_opts o = KVMEM_PREFETCH_OPTS_INIT;

	(void)arg;
	(void)result;
	chain.told++;
	o.done = asks_for_more;
	if (chain.told < 3) {
		chain.refused = kvmem_pager_prefetch(chain.s->pager, chain.s->ram, &list, 1, &o,
						     &chain.next);
		chain.asked += !chain.refused;
	}
}

static void chained(bool started)
{
	const struct kvmem_range list = { 0, 64 * PAGE };
	struct kvmem_prefetch_opts o = KVMEM_PREFETCH_OPTS_INIT;
	struct kvmem_ticket *first;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_memory(&s);
	memset(&chain, 0, sizeof(chain));
	chain.s = &s;
	s.opts.flags = KVMEM_PAGER_NO_THREADS;
	must(kvmem_pager_create(&s.opts, &s.pager));
	must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
	if (started)
		must(kvmem_pager_start(s.pager));
	o.done = asks_for_more;
	must(kvmem_pager_prefetch(s.pager, s.ram, &list, 1, &o, &first));
	if (started)
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	must(kvmem_pager_free(s.pager));
	s.pager = NULL;
	ck_assert_uint_eq(chain.told, 1);
	ck_assert_int_eq(chain.refused, -EINVAL);
	must(kvmem_ticket_free(first));
	close_set(&s);
}

TEST(a_list_asked_for_while_the_pager_goes)
{
	chained(true);
	chained(false);
}
END

static void frees_the_other(void *arg, const struct kvmem_ticket_result *result)
{
	struct kvmem_ticket **other = arg, *t = *other;

	(void)result;
	*other = NULL;
	chain.told++;
	if (t)
		must(kvmem_ticket_free(t));
}

TEST(a_ticket_is_freed_by_the_end_of_another)
{
	const struct kvmem_range list = { 0, 64 * PAGE };
	struct kvmem_prefetch_opts o = KVMEM_PREFETCH_OPTS_INIT;
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct kvmem_ticket *a, *b;
	struct kvmem_region *more;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_memory(&s);
	memset(&chain, 0, sizeof(chain));
	s.opts.flags = KVMEM_PAGER_NO_THREADS;
	must(kvmem_pager_create(&s.opts, &s.pager));
	must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
	ro.bytes = s.bytes;
	must(kvmem_region_create(NULL, &ro,
				 &more)); /* a callback may not free tickets of its region */
	must(kvmem_pager_add(s.pager, more, s.source, 0, 0));
	o.done = frees_the_other;
	o.arg = &b;
	must(kvmem_pager_prefetch(s.pager, s.ram, &list, 1, &o, &a));
	o.arg = &a;
	must(kvmem_pager_prefetch(s.pager, more, &list, 1, &o, &b));
	must(kvmem_pager_free(s.pager));
	s.pager = NULL;
	ck_assert_uint_eq(chain.told, 1);
	must(kvmem_ticket_free(a ? a : b));
	must(kvmem_region_free(more));
	close_set(&s);
}
END

TEST(what_is_wrong_with_a_prefetch)
{
	const struct kvmem_range good = { 0, PAGE }, far = { PAGES * PAGE, PAGE };
	struct kvmem_prefetch_opts o = KVMEM_PREFETCH_OPTS_INIT;
	struct kvmem_ticket *t = NULL;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_memory(&s);
	start_set(&s);
	ck_assert_int_eq(kvmem_pager_prefetch(s.pager, s.ram, &far, 1, NULL, &t), -ERANGE);
	o.flags = 1;
	ck_assert_int_eq(kvmem_pager_prefetch(s.pager, s.ram, &good, 1, &o, &t), -EINVAL);
	o.flags = 0;
	o.done = on_done;
	ck_assert_int_eq(kvmem_pager_prefetch(s.pager, s.ram, &good, 1, &o, NULL), -EINVAL);
	ck_assert_ptr_null(t);
	end_set(&s);
}
END

/* ---- the trace ---- */

TEST(a_trace_says_who_asked_for_what)
{
	const struct kvmem_range list = { 100 * PAGE, 4 * PAGE };
	struct kvmem_trace_entry e[256];
	struct kvmem_ticket *t;
	uint64_t last = 0, demand = 0;
	int64_t n;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_memory(&s);
	s.opts.fault_around = PAGE;
	s.opts.trace_entries = 64;
	start_set(&s);
	for (uint64_t p = 0; p < 5; p++)
		check_page(&s, p * 3);
	s.base[20 * PAGE] = s.content[20 * PAGE]; /* a write */
	t = ask(&s, &list, 1);
	must(kvmem_ticket_wait(t, -1, NULL));
	must(kvmem_ticket_free(t));
	ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, 200 * PAGE, s.content + 200 * PAGE, PAGE),
			 PAGE);
	n = kvmem_pager_trace_read(s.pager, e, 256);
	ck_assert_int_ge(n, 8);
	for (int64_t i = 0; i < n; i++) {
		ck_assert_ptr_eq(e[i].region, s.ram);
		ck_assert_uint_ge(e[i].time_ns, last);
		last = e[i].time_ns;
		if (e[i].why == KVMEM_TRACE_DEMAND) {
			demand++;
			ck_assert_uint_eq(e[i].thread, (uint32_t)syscall(SYS_gettid));
			ck_assert_uint_eq(e[i].bytes, PAGE);
			ck_assert_uint_gt(e[i].service_ns, 0);
			ck_assert_int_eq(!!(e[i].flags & KVMEM_TRACE_WRITE),
					 e[i].offset == 20 * PAGE);
		} else if (e[i].why == KVMEM_TRACE_PREFETCH) {
			ck_assert_uint_ge(e[i].offset, 100 * PAGE);
		} else {
			ck_assert_uint_eq(e[i].why, KVMEM_TRACE_PUT);
			ck_assert_uint_eq(e[i].offset, 200 * PAGE);
		}
	}
	ck_assert_uint_eq(demand, 6);
	ck_assert_int_eq(kvmem_pager_trace_read(s.pager, e, 256), 0);
	ck_assert_uint_eq(stats_of(&s).trace_dropped, 0);
	for (uint64_t p = 0; p < PAGES; p++)
		check_page(&s, p);
	n = kvmem_pager_trace_read(s.pager, e, 256);
	ck_assert_int_ge(n, 64);
	ck_assert_uint_gt(stats_of(&s).trace_dropped, 0);
	end_set(&s);
	s.opts.trace_entries = 100;
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &s.pager), -EINVAL);
	s.opts.trace_entries = 0;
	must(kvmem_pager_create(&s.opts, &s.pager));
	ck_assert_int_eq(kvmem_pager_trace_read(s.pager, e, 1), -EINVAL);
	must(kvmem_pager_free(s.pager));
}
END

/* ---- regions come and go ---- */

static struct kvmem_region *another(struct set *s)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *r;

	o.bytes = s->bytes;
	o.backing = s->backing;
	must(kvmem_region_create(NULL, &o, &r));
	return r;
}

static void check_region(const struct kvmem_region *r, const struct set *s, uint64_t pages)
{
	for (uint64_t p = 0; p < pages; p++)
		ck_assert(!memcmp((uint8_t *)kvmem_region_base(r) + p * PAGE, s->content + p * PAGE,
				  PAGE));
}

TEST(a_region_is_added_under_a_running_pager_and_removed)
{
	for (size_t b = 0; b < 2; b++) {
		struct kvmem_region *more[8];
		struct set s;

		if (!open_set(&s, backings[b], PAGES * PAGE))
			return;
		use_memory(&s);
		s.opts.flags = b ? KVMEM_PAGER_BACKGROUND : 0;
		start_set(&s);
		for (unsigned int round = 0; round < 20; round++) {
			for (unsigned int i = 0; i < 8; i++) {
				more[i] = another(&s);
				must(kvmem_pager_add(s.pager, more[i], s.source, 0, 0));
				check_region(more[i], &s, 40);
			}
			for (unsigned int i = 0; i < 8; i++) {
				unsigned int k = (i * 5 + round) % 8;

				if (round % 2) {
					must(kvmem_pager_remove(s.pager, more[k], KVMEM_STOP_FILL));
					check_region(more[k], &s, PAGES);
				} else {
					must(kvmem_pager_remove(s.pager, more[k],
								KVMEM_STOP_HAND_BACK));
				}
				must(kvmem_region_free(more[k]));
			}
		}
		check_page(&s, 500);
		ck_assert_int_eq(kvmem_pager_remove(s.pager, more[0], 9), -EINVAL);
		must(kvmem_pager_remove(s.pager, s.ram, KVMEM_STOP_FILL));
		check_page(&s, 499);
		ck_assert_int_eq(kvmem_pager_remove(s.pager, s.ram, KVMEM_STOP_FILL), -ENOENT);
		must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
		end_set(&s);
	}
}
END

/* A thread waits in a fault on the region, and its source is slow: it is neither lost nor given zeros. */
TEST(a_region_is_removed_while_a_thread_waits_for_it)
{
	struct kvmem_region *more;
	pthread_t reader;
	void *word;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_slow(&s);
	start_set(&s);
	more = another(&s);
	must(kvmem_pager_add(s.pager, more, s.source, 0, 0));
	atomic_store(&slow.held, 1);
	ck_assert_int_eq(pthread_create(&reader, NULL, reads_page,
					(uint8_t *)kvmem_region_base(more) + 7 * PAGE),
			 0);
	wait_for_readers(1);
	atomic_store(&slow.held, 0);
	must(kvmem_pager_remove(s.pager, more, KVMEM_STOP_FILL));
	pthread_join(reader, &word);
	ck_assert_uint_eq((uint64_t)(uintptr_t)word, word_of(7, 0));
	check_region(more, &s, PAGES);
	must(kvmem_region_free(more));
	end_set(&s);
}
END

struct removal {
	struct kvmem_pager *pager;
	struct kvmem_region *region;
	int r;
};

static void *removes(void *arg)
{
	struct removal *m = arg;

	m->r = kvmem_pager_remove(m->pager, m->region, KVMEM_STOP_HAND_BACK);
	return NULL;
}

/* Nothing is asked for any more. */
static bool is_leaving(void *arg)
{
	const struct kvmem_range list = { 0, PAGE };
	const struct removal *m = arg;

	return kvmem_pager_prefetch(m->pager, m->region, &list, 1, NULL, NULL) < 0;
}

/* What a thread of the pager has begun is completed while the memory is registered: it does not store into a region
 * that has been handed back. */
TEST(a_region_is_removed_while_a_page_of_it_is_read)
{
	const struct kvmem_range list = { 0, PAGE };
	struct removal m = { 0 };
	struct kvmem_run run;
	pthread_t remover;
	uint32_t state;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_slow(&s);
	start_set(&s);
	m.pager = s.pager;
	m.region = another(&s);
	must(kvmem_pager_add(s.pager, m.region, s.source, 0, 0));
	atomic_store(&slow.held, 1);
	must(kvmem_pager_prefetch(s.pager, m.region, &list, 1, NULL, NULL));
	wait_for_readers(1);
	ck_assert_int_eq(pthread_create(&remover, NULL, removes, &m), 0);
	ck_assert(harness_wait(is_leaving, &m, 10));
	usleep(20000); /* it waits now, and must not do more */
	atomic_store(&slow.held, 0);
	pthread_join(remover, NULL);
	must(m.r);
	must(kvmem_region_next_run(m.region, 0, &run, &state));
	ck_assert_uint_eq(state, KVMEM_PAGE_PRESENT);
	check_region(m.region, &s, 1);
	must(kvmem_region_free(m.region));
	end_set(&s);
}
END

/* ---- what the caller has already ---- */

static int open_uffd(int flags)
{
	return (int)syscall(SYS_userfaultfd, flags);
}

static void *waits_for_all(void *arg)
{
	return (void *)(intptr_t)kvmem_pager_wait(arg, -1);
}

TEST(who_waits_goes_on_when_the_last_region_leaves)
{
	pthread_t waiter;
	struct set s;
	void *r;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_memory(&s);
	start_set(&s);
	ck_assert_int_eq(pthread_create(&waiter, NULL, waits_for_all, s.pager), 0);
	usleep(20000);
	must(kvmem_pager_remove(s.pager, s.ram, KVMEM_STOP_HAND_BACK));
	pthread_join(waiter, &r);
	ck_assert_ptr_null(r);
	end_set(&s);
}
END

static _Atomic bool walks_end;

static void *keeps_asking(void *arg)
{
	while (!atomic_load(&walks_end))
		kvmem_pager_wait(arg, 0);
	return NULL;
}

static void *keeps_removing(void *arg)
{
	while (!atomic_load(&walks_end)) {
		madvise(arg, PAGE, MADV_REMOVE);
		reads_page(arg);
	}
	return NULL;
}

/* What goes through the list of regions does not meet one that was freed: for the sanitizers to see. */
TEST(regions_leave_while_others_go_through_the_list)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *more[4];
	pthread_t threads[2];
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_memory(&s);
	s.opts.shards = 2;
	start_set(&s);
	atomic_store(&walks_end, false);
	ck_assert_int_eq(pthread_create(&threads[0], NULL, keeps_asking, s.pager), 0);
	ck_assert_int_eq(pthread_create(&threads[1], NULL, keeps_removing, s.base), 0);
	o.bytes = 64 * PAGE;
	for (unsigned int round = 0; round < 40; round++) {
		for (unsigned int i = 0; i < 4; i++) {
			must(kvmem_region_create(NULL, &o, &more[i]));
			must(kvmem_pager_add(s.pager, more[i], s.source, 0, 0));
		}
		for (unsigned int i = 0; i < 4; i++) {
			must(kvmem_pager_remove(s.pager, more[i], KVMEM_STOP_HAND_BACK));
			must(kvmem_region_free(more[i]));
		}
	}
	atomic_store(&walks_end, true);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	end_set(&s);
}
END

TEST(userfaultfds_of_the_caller)
{
	struct uffdio_api api = { .api = UFFD_API };
	int32_t fds[2] = { open_uffd(O_CLOEXEC | O_NONBLOCK), open_uffd(O_CLOEXEC | O_NONBLOCK) };
	struct kvmem_pager *p;
	struct set s;

	if (fds[0] < 0) {
		harness_skip("uffd", "userfaultfd(2) is not allowed");
		return;
	}
	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_memory(&s);
	s.opts.uffds = fds;
	s.opts.uffd_count = 2;
	s.opts.trace_entries = 64;
	start_set(&s);
	close(fds[0]); /* the pager has its own duplicates */
	ck_assert_uint_eq(stats_of(&s).shards, 2);
	for (uint64_t i = 0; i < PAGES; i++)
		check_page(&s, i);
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &p), -EBADF); /* closed */
	fds[0] = fds[1];
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &p), -EINVAL); /* UFFDIO_API was called */
	s.opts.uffd_count = 1;
	s.opts.shards = 2;
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &p), -EINVAL);
	s.opts.shards = 0;
	fds[0] = open_uffd(O_CLOEXEC);
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &p), -EINVAL); /* blocks */
	close(fds[0]);
	fds[0] = open("/dev/null", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &p), -EBADF);
	close(fds[0]);
	(void)api;
	close(fds[1]);
	end_set(&s);
}
END

static unsigned int threads_named(const char *prefix, bool pinned)
{
	unsigned int n = 0;
	DIR *tasks = opendir("/proc/self/task");

	ck_assert_ptr_nonnull(tasks);
	for (struct dirent *d; (d = readdir(tasks)) != NULL;) {
		char path[64], name[32] = "";
		cpu_set_t set;
		int fd;

		snprintf(path, sizeof(path), "/proc/self/task/%.16s/comm", d->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (read(fd, name, sizeof(name) - 1) < 0)
			name[0] = 0;
		close(fd);
		if (strncmp(name, prefix, strlen(prefix)) != 0)
			continue;
		CPU_ZERO(&set);
		sched_getaffinity((pid_t)strtol(d->d_name, NULL, 10), sizeof(set), &set);
		n += !pinned || (CPU_COUNT(&set) == 1 && CPU_ISSET(0, &set));
	}
	closedir(tasks);
	return n;
}

/* A thread gives itself its name, soon after it was begun. */
static bool all_are_named(void *arg)
{
	(void)arg;
	return threads_named("mem-pager/", true) == 2 && threads_named("mem-fill/", true) == 2;
}

TEST(threads_as_the_caller_wants_them)
{
	unsigned long cpu0 = 1, none[16] = { [15] = 1ul << 63 };
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_slow(&s);
	s.opts.thread_name = "mem";
	s.opts.cpus = &cpu0;
	s.opts.cpu_count = 64;
	s.opts.shards = 2;
	start_set(&s);
	ck_assert(harness_wait(all_are_named, NULL, 10));
	check_page(&s, 7);
	end_set(&s);
	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGES * PAGE))
		return;
	use_memory(&s);
	s.opts.cpus = none; /* processors that are not there */
	s.opts.cpu_count = 1024;
	must(kvmem_pager_create(&s.opts, &s.pager));
	must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
	ck_assert_int_eq(kvmem_pager_start(s.pager), -EINVAL);
	end_set(&s);
	s.opts.sched_policy = SCHED_BATCH;
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &s.pager), -EINVAL);
	s.opts.sched_policy = 0;
	s.opts.sched_priority = 1;
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &s.pager), -EINVAL);
	s.opts.sched_priority = 0;
	s.opts.thread_name = "a name too long";
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &s.pager), -EINVAL);
	s.opts.thread_name = NULL;
	s.opts.cpus = NULL;
	ck_assert_int_eq(kvmem_pager_create(&s.opts, &s.pager), -EINVAL);
}
END

HARNESS_MAIN(T(pages_marked_absent_are_filled_again), T(complete_comes_once_more),
	     T(no_zeros_appear_while_pages_are_marked), T(absent_is_refused_and_waits_for_fills),
	     T(absent_without_a_pager_reads_as_zero_until_it_is_filled),
	     T(put_places_what_is_absent_and_nothing_else),
	     T(a_ticket_is_done_when_its_pages_are_in), T(a_ticket_waits_for_the_fills_of_others),
	     T(a_ticket_says_what_failed), T(tickets_end_with_their_pager),
	     T(what_is_wrong_with_a_prefetch), T(a_list_asked_for_while_the_pager_goes),
	     T(a_ticket_is_freed_by_the_end_of_another),
	     T(who_waits_goes_on_when_the_last_region_leaves),
	     T(regions_leave_while_others_go_through_the_list), T(a_trace_says_who_asked_for_what),
	     T(a_region_is_added_under_a_running_pager_and_removed),
	     T(a_region_is_removed_while_a_thread_waits_for_it),
	     T(a_region_is_removed_while_a_page_of_it_is_read), T(userfaultfds_of_the_caller),
	     T(threads_as_the_caller_wants_them))
