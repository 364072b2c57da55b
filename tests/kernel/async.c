// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Sources that answer later. The server of these tests keeps what it is asked, and answers when and in the order that
 * the test wants, from threads of its own, from within submit, or never before it is cancelled.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "pager_lib.h"

#define PAGES	1024u
#define MOST	4096u
#define READERS 100u

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	const uint8_t *content;
	struct kvmem_source_request *queue[MOST];
	unsigned int queued, most_queued, submits, requests, cancels;
	_Atomic unsigned int answered;
	bool held;		     /* answer nothing */
	_Atomic bool at_once;	     /* answer within submit */
	bool end;		     /* the threads */
	_Atomic bool ignores_cancel; /* the threads answer when they are no longer held */
	_Atomic int refuse;	     /* what submit returns */
	_Atomic uint64_t bad;	     /* page + 1 that fails; */
	_Atomic unsigned int fails;  /* so often; 0: always */
	pthread_t threads[2];
	unsigned int seed;
} server = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static int result_of(const struct kvmem_source_request *r)
{
	bool bad = server.bad && r->offset / PAGE <= server.bad - 1 &&
		   server.bad - 1 < (r->offset + r->bytes + PAGE - 1) / PAGE;

	if (!bad)
		return 0;
	if (server.fails && r->bytes <= PAGE && !--server.fails)
		server.bad = 0;
	return -ENXIO;
}

static void answer(struct kvmem_source_request *r, int result)
{
	if (!result)
		memcpy(r->buf, server.content + r->offset, r->bytes);
	atomic_fetch_add(&server.answered, 1);
	must(kvmem_source_complete(r, result));
}

static void *answers(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&server.lock);
	while (!server.end) {
		struct kvmem_source_request *r;
		unsigned int i;
		int result;

		if (server.held || !server.queued) {
			pthread_cond_wait(&server.changed, &server.lock);
			continue;
		}
		i = (unsigned int)rand_r(&server.seed) % server.queued; /* in any order */
		r = server.queue[i];
		server.queue[i] = server.queue[--server.queued];
		result = result_of(r);
		pthread_mutex_unlock(&server.lock);
		answer(r, result);
		pthread_mutex_lock(&server.lock);
	}
	pthread_mutex_unlock(&server.lock);
	return NULL;
}

static int on_submit(void *arg, struct kvmem_source_request *const *requests, size_t count)
{
	ck_assert_ptr_eq(arg, &server);
	if (server.refuse)
		return server.refuse;
	for (size_t i = 0; i < count && server.at_once; i++)
		answer(requests[i], result_of(requests[i]));
	if (server.at_once)
		return 0;
	pthread_mutex_lock(&server.lock);
	server.submits++;
	server.requests += (unsigned int)count;
	for (size_t i = 0; i < count; i++) {
		ck_assert_uint_lt(server.queued, MOST);
		ck_assert_ptr_null(requests[i]->user);
		requests[i]->user = &server;
		server.queue[server.queued++] = requests[i];
	}
	if (server.queued > server.most_queued)
		server.most_queued = server.queued;
	pthread_cond_broadcast(&server.changed);
	pthread_mutex_unlock(&server.lock);
	return 0;
}

static void on_cancel(void *arg, struct kvmem_source_request *request)
{
	bool found = false;

	(void)arg;
	pthread_mutex_lock(&server.lock);
	server.cancels++;
	for (unsigned int i = 0; i < server.queued && !found && !server.ignores_cancel; i++)
		if (server.queue[i] == request) {
			server.queue[i] = server.queue[--server.queued];
			found = true;
		}
	pthread_mutex_unlock(&server.lock);
	if (found)
		answer(request, -ECANCELED);
}

static void set(bool *what, bool value)
{
	pthread_mutex_lock(&server.lock);
	*what = value;
	pthread_cond_broadcast(&server.changed);
	pthread_mutex_unlock(&server.lock);
}

static bool has_queued(void *arg)
{
	bool r;

	pthread_mutex_lock(&server.lock);
	r = server.queued >= *(unsigned int *)arg;
	pthread_mutex_unlock(&server.lock);
	return r;
}

static void wait_for_queue(unsigned int n)
{
	ck_assert(harness_wait(has_queued, &n, 10));
}

static bool open_server(struct set *s, enum kvmem_backing backing)
{
	struct kvmem_source_async_ops ops = KVMEM_SOURCE_ASYNC_OPS_INIT;

	if (!open_set(s, backing, PAGES * PAGE))
		return false;
	server.content = s->content;
	server.queued = server.most_queued = server.submits = server.requests = server.cancels = 0;
	atomic_store(&server.answered, 0);
	server.held = server.end = false;
	server.at_once = false;
	server.ignores_cancel = false;
	server.refuse = 0;
	server.bad = 0;
	server.fails = 0;
	server.seed = 7;
	ops.submit = on_submit;
	ops.cancel = on_cancel;
	must(kvmem_source_async(&ops, &server, s->bytes, &s->source));
	for (unsigned int i = 0; i < 2; i++)
		ck_assert_int_eq(pthread_create(&server.threads[i], NULL, answers, NULL), 0);
	return true;
}

static void close_server(struct set *s)
{
	if (s->pager)
		kvmem_pager_stop(s->pager, KVMEM_STOP_HAND_BACK); /* if it runs */
	ck_assert_uint_eq(server.queued, 0);
	set(&server.end, true);
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(server.threads[i], NULL);
	close_set(s);
}

static void check_pages_of(const struct set *s)
{
	for (uint64_t p = 0; p < PAGES; p++)
		check_page(s, p);
}

/* ---- faults ---- */

static void *reads(void *arg)
{
	return (void *)(uintptr_t)(*(volatile const uint64_t *)arg);
}

static void readers_start(const struct set *s, pthread_t *threads)
{
	for (uint64_t i = 0; i < READERS; i++)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, reads, s->base + i * 7 * PAGE),
				 0);
}

static void readers_end(const struct set *s, const pthread_t *threads)
{
	for (uint64_t i = 0; i < READERS; i++) {
		void *word;

		pthread_join(threads[i], &word);
		ck_assert_uint_eq((uint64_t)(uintptr_t)word,
				  *(uint64_t *)(s->content + i * 7 * PAGE));
	}
}

/* One thread serves: were it to wait for the first answer, the second request would never come. */
static void many_in_flight(enum kvmem_backing backing)
{
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;
	pthread_t threads[READERS];
	struct set s;

	if (!open_server(&s, backing))
		return;
	s.opts.shards = 1;
	start_set(&s);
	set(&server.held, true);
	readers_start(&s, threads);
	wait_for_queue(READERS);
	set(&server.held, false);
	readers_end(&s, threads);
	must(kvmem_pager_get_stats(s.pager, &st));
	ck_assert_uint_eq(st.pages_demand, READERS);
	ck_assert_uint_gt(st.service_p50_ns, 0);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_pages_of(&s);
	close_server(&s);
}

TEST(a_hundred_faults_wait_side_by_side)
{
	many_in_flight(KVMEM_BACKING_MEMFD);
	many_in_flight(KVMEM_BACKING_ANONYMOUS);
}
END

TEST(answers_from_within_submit)
{
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	server.at_once = true;
	s.opts.flags = KVMEM_PAGER_BACKGROUND;
	start_set(&s);
	check_pages_of(&s);
	must(kvmem_pager_wait(s.pager, 10000000000));
	close_server(&s);
}
END

TEST(the_background_has_many_under_way_and_a_fault_does_not_wait_for_them)
{
	pthread_t reader;
	void *word;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	s.opts.flags = KVMEM_PAGER_BACKGROUND;
	s.opts.shards = 1;
	s.opts.fault_around = PAGE;
	set(&server.held, true);
	start_set(&s);
	wait_for_queue(16); /* 1024 pages in requests of 64 */
	set(&server.held, false);
	must(kvmem_pager_wait(s.pager, 10000000000));
	must(kvmem_region_mark_absent(s.ram, 0, PAGES * PAGE, 0));
	ck_assert_int_eq(pthread_create(&reader, NULL, reads, s.base + 999 * PAGE), 0);
	pthread_join(reader, &word);
	must(kvmem_pager_wait(s.pager, 10000000000));
	check_pages_of(&s);
	close_server(&s);
}
END

/* ---- failures ---- */

static _Atomic unsigned int asked;

static enum kvmem_fail_action on_fail(void *arg, const struct kvmem_fail *fail)
{
	(void)arg;
	atomic_fetch_add(&asked, 1);
	ck_assert_int_eq(fail->error, -ENXIO);
	return fail->attempt < 500 ? KVMEM_FAIL_RETRY : KVMEM_FAIL_POISON;
}

static void retries(bool at_once)
{
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	atomic_store(&asked, 0);
	server.at_once = at_once;
	server.bad = 20 + 1;
	server.fails = 100;
	s.opts.fail = on_fail;
	start_set(&s);
	check_page(&s, 20);
	ck_assert_uint_eq(asked, 100);
	close_server(&s);
}

TEST(what_failed_is_asked_again)
{
	retries(false);
	retries(true); /* no deeper and deeper */
}
END

TEST(a_request_that_fails_costs_only_its_page)
{
	const struct kvmem_range list = { 0, 128 * PAGE };
	struct kvmem_ticket_result r = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_ticket *t;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	server.bad = 70 + 1;
	start_set(&s);
	must(kvmem_pager_prefetch(s.pager, s.ram, &list, 1, NULL, &t));
	ck_assert_int_eq(kvmem_ticket_wait(t, 10000000000, &r), -ENXIO);
	ck_assert_uint_eq(r.pages, 127);
	ck_assert_uint_eq(r.pages_failed, 1);
	must(kvmem_ticket_free(t));
	check_page(&s, 69);
	check_page(&s, 71);
	server.bad = 0;
	check_page(&s, 70);
	server.refuse = -EHOSTUNREACH;
	must(kvmem_pager_prefetch(s.pager, s.ram, &(struct kvmem_range){ 500 * PAGE, 2 * PAGE }, 1,
				  NULL, &t));
	ck_assert_int_lt(kvmem_ticket_wait(t, 10000000000, &r), 0);
	ck_assert_uint_eq(r.pages_failed, 2);
	must(kvmem_ticket_free(t));
	server.refuse = 0;
	check_page(&s, 500);
	close_server(&s);
}
END

/* A filter that came later, over all threads: no content can be placed any more. */
static bool refuse_copies(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, UFFDIO_COPY, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = sizeof(code) / sizeof(code[0]), .filter = code };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog);
}

static enum kvmem_fail_action on_refused(void *arg, const struct kvmem_fail *fail)
{
	(void)arg;
	atomic_fetch_add(&asked, 1);
	ck_assert_int_eq(fail->error, -EPERM);
	return fail->attempt < 5 ? KVMEM_FAIL_RETRY : KVMEM_FAIL_POISON;
}

/* In a child, as a filter stays. Returns how often the caller was asked, or 200 and more. */
static int place_refused(void *arg)
{
	const struct kvmem_range list = { 0, 8 * PAGE };
	struct kvmem_ticket_result r = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_ticket *t;
	int ends[2];
	struct set s;

	(void)arg;
	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return 201;
	s.opts.fail = on_refused;
	s.opts.fault_around = PAGE;
	start_set(&s);
	if (!refuse_copies())
		return 202;
	atomic_store(&asked, 0);
	if (pipe(ends) || write(ends[1], s.base + 20 * PAGE, 8) != -1 || errno != EFAULT)
		return 203;
	if (atomic_load(&asked) != 5)
		return 204;
	must(kvmem_pager_prefetch(s.pager, s.ram, &list, 1, NULL, &t));
	if (kvmem_ticket_wait(t, 10000000000, &r) != -EPERM || r.pages_failed != 8)
		return 205;
	must(kvmem_ticket_free(t));
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	return (int)atomic_load(&asked);
}

/* Not asked for again and again, without an end and without a word. */
TEST(what_the_kernel_refuses_to_place_has_failed)
{
	struct set s;
	int r;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, PAGE))
		return;
	must(kvmem_region_free(s.ram));
	free(s.content);
	r = harness_child(place_refused, NULL);
	SKIP_IF(r == 202, "seccomp", "no filter can be set");
	ck_assert_int_eq(r, 5 + 8 * 5);
}
END

/* ---- stop ---- */

static void *stops_filling(void *arg)
{
	return (void *)(intptr_t)kvmem_pager_stop(arg, KVMEM_STOP_FILL);
}

TEST(hand_back_cancels_and_fill_waits)
{
	pthread_t threads[READERS], stopper;
	void *r;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	start_set(&s);
	set(&server.held, true);
	readers_start(&s, threads);
	wait_for_queue(READERS);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK)); /* the server never answers */
	ck_assert_uint_eq(server.cancels, READERS);
	set(&server.held, false);
	must(kvmem_pager_start(s.pager)); /* they wait still, for these answers */
	readers_end(&s, threads);
	must(kvmem_region_mark_absent(s.ram, 0, 700 * PAGE, 0));
	set(&server.held, true);
	readers_start(&s, threads);
	wait_for_queue(READERS);
	ck_assert_int_eq(pthread_create(&stopper, NULL, stops_filling, s.pager), 0);
	usleep(10000);
	set(&server.held, false);
	pthread_join(stopper, &r);
	ck_assert_ptr_null(r);
	readers_end(&s, threads);
	check_pages_of(&s);
	close_server(&s);
}
END

/* The answers come although they were cancelled: content for pages that are wanted still. */
TEST(a_late_answer_to_what_was_cancelled)
{
	pthread_t threads[READERS];
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	start_set(&s);
	set(&server.held, true);
	server.ignores_cancel = true;
	readers_start(&s, threads);
	wait_for_queue(READERS);
	set(&server.held, false);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK)); /* waits for the answers */
	ck_assert_uint_eq(atomic_load(&server.answered), READERS);
	must(kvmem_pager_start(s.pager));
	readers_end(&s, threads);
	close_server(&s);
}
END

TEST(a_region_is_removed_while_requests_are_under_way)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	const struct kvmem_range list = { 0, 256 * PAGE };
	struct kvmem_ticket_result r = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_region *more;
	struct kvmem_ticket *t;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	start_set(&s);
	o.bytes = s.bytes;
	must(kvmem_region_create(NULL, &o, &more));
	must(kvmem_pager_add(s.pager, more, s.source, 0, 0));
	set(&server.held, true);
	must(kvmem_pager_prefetch(s.pager, more, &list, 1, NULL, &t));
	wait_for_queue(4);
	must(kvmem_pager_remove(s.pager, more, KVMEM_STOP_HAND_BACK));
	ck_assert_int_eq(kvmem_ticket_wait(t, 0, &r), -ECANCELED);
	ck_assert_uint_eq(r.pages_failed, 256);
	must(kvmem_ticket_free(t));
	must(kvmem_region_free(more));
	set(&server.held, false);
	check_page(&s, 3);
	close_server(&s);
}
END

static _Atomic bool in_fail, hold_fail;

static enum kvmem_fail_action fails_slowly(void *arg, const struct kvmem_fail *fail)
{
	(void)arg;
	(void)fail;
	atomic_store(&in_fail, true);
	while (atomic_load(&hold_fail))
		usleep(100);
	return KVMEM_FAIL_RETRY;
}

static bool is_in_fail(void *arg)
{
	(void)arg;
	return atomic_load(&in_fail);
}

struct removal {
	struct kvmem_pager *pager;
	struct kvmem_region *region;
	int r;
};

static void *removes(void *arg)
{
	struct removal *rm = arg;

	rm->r = kvmem_pager_remove(rm->pager, rm->region, KVMEM_STOP_HAND_BACK);
	return NULL;
}

/* It is not asked for again: nobody would cancel that, and the source answers nothing any more. */
TEST(what_fails_while_its_region_leaves)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	const struct kvmem_range list = { 0, PAGE };
	struct removal rm;
	pthread_t remover;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	s.opts.fail = fails_slowly;
	s.opts.workers = 2;
	start_set(&s);
	o.bytes = s.bytes;
	for (unsigned int round = 0; round < 20; round++) {
		must(kvmem_region_create(NULL, &o, &rm.region));
		must(kvmem_pager_add(s.pager, rm.region, s.source, 0, 0));
		server.bad = 0 + 1;
		server.fails = 1;
		atomic_store(&in_fail, false);
		atomic_store(&hold_fail, true);
		must(kvmem_pager_prefetch(s.pager, rm.region, &list, 1, NULL, NULL));
		ck_assert(harness_wait(is_in_fail, NULL, 10));
		set(&server.held, true);
		rm.pager = s.pager;
		ck_assert_int_eq(pthread_create(&remover, NULL, removes, &rm), 0);
		usleep(3000);
		atomic_store(&hold_fail, false);
		pthread_join(remover, NULL);
		must(rm.r);
		ck_assert_uint_eq(server.queued, 0);
		must(kvmem_region_free(rm.region));
		set(&server.held, false);
	}
	close_server(&s);
}
END

/* A page is removed while its content is under way: it is zero. */
TEST(what_is_discarded_meanwhile)
{
	pthread_t reader;
	void *word;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_ANONYMOUS))
		return;
	s.opts.fault_around = PAGE;
	start_set(&s);
	set(&server.held, true);
	ck_assert_int_eq(pthread_create(&reader, NULL, reads, s.base + 9 * PAGE), 0);
	wait_for_queue(1);
	ck_assert_int_eq(madvise(s.base + 9 * PAGE, PAGE, MADV_DONTNEED), 0);
	set(&server.held, false);
	pthread_join(reader, &word);
	ck_assert_uint_eq((uint64_t)(uintptr_t)word, 0);
	close_server(&s);
}
END

/* ---- without threads, and other users ---- */

static _Atomic bool over;

static void *event_loop(void *arg)
{
	while (!atomic_load(&over))
		must(kvmem_pager_handle(arg));
	return NULL;
}

TEST(without_threads)
{
	pthread_t threads[READERS], loop;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	s.opts.flags = KVMEM_PAGER_NO_THREADS | KVMEM_PAGER_BACKGROUND;
	start_set(&s);
	atomic_store(&over, false);
	ck_assert_int_eq(pthread_create(&loop, NULL, event_loop, s.pager), 0);
	readers_start(&s, threads);
	readers_end(&s, threads);
	check_pages_of(&s);
	atomic_store(&over, true);
	pthread_join(loop, NULL);
	close_server(&s);
}
END

/* By nothing but the file descriptor: also what is to be looked at a moment later makes it readable. */
TEST(without_threads_a_ticket_is_done_by_polling)
{
	const struct kvmem_range list = { 0, 16 * PAGE };
	struct kvmem_ticket_result r = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_ticket *t;
	struct pollfd p;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	s.opts.flags = KVMEM_PAGER_NO_THREADS;
	start_set(&s);
	p = (struct pollfd){ .fd = kvmem_pager_fd(s.pager), .events = POLLIN };
	set(&server.held, true);
	must(kvmem_pager_prefetch(s.pager, s.ram, &list, 1, NULL, &t));
	for (unsigned int i = 0; i < 20; i++) { /* nothing comes meanwhile */
		poll(&p, 1, 2);
		must(kvmem_pager_handle(s.pager));
	}
	set(&server.held, false);
	while (kvmem_ticket_wait(t, 0, &r) == -ETIMEDOUT) {
		ck_assert_int_eq(poll(&p, 1, 10000), 1);
		must(kvmem_pager_handle(s.pager));
	}
	ck_assert_uint_eq(r.pages, 16);
	must(kvmem_ticket_free(t));
	close_server(&s);
}
END

TEST(populate_and_read_have_several_under_way)
{
	struct kvmem_populate_opts po = KVMEM_POPULATE_OPTS_INIT;
	uint8_t *buf;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	buf = malloc(PAGES * PAGE);
	ck_assert_ptr_nonnull(buf);
	must(kvmem_populate(s.ram, 0, s.source, NULL, NULL));
	check_pages_of(&s);
	ck_assert_uint_gt(server.most_queued, 1);
	must(kvmem_source_read(s.source, 5, buf, PAGES * PAGE - 10));
	ck_assert(!memcmp(buf, s.content + 5, PAGES * PAGE - 10));
	must(kvmem_region_mark_absent(s.ram, 0, PAGES * PAGE, 0));
	server.bad = 300 + 1;
	ck_assert_int_eq(kvmem_populate(s.ram, 0, s.source, &po, NULL), -ENXIO);
	server.bad = 0;
	must(kvmem_populate(s.ram, 0, s.source, &po, NULL));
	check_pages_of(&s);
	free(buf);
	close_server(&s);
}
END

static int cancels_soon(void *arg, const struct kvmem_progress *p)
{
	ck_assert_uint_eq(p->done, 0);
	return ++*(unsigned int *)arg == 3;
}

/* Also while the answers are out, and may never come. */
TEST(populate_is_canceled_while_it_waits)
{
	struct kvmem_populate_opts po = KVMEM_POPULATE_OPTS_INIT;
	unsigned int calls = 0;
	struct kvmem_run run;
	struct set s;

	if (!open_server(&s, KVMEM_BACKING_MEMFD))
		return;
	set(&server.held, true);
	po.threads = 2;
	po.chunk_bytes = MIB;
	po.progress = cancels_soon;
	po.progress_arg = &calls;
	ck_assert_int_eq(kvmem_populate(s.ram, 0, s.source, &po, NULL), -ECANCELED);
	ck_assert(strstr(kvmem_error_detail(), "canceled by the progress callback"));
	ck_assert_uint_gt(server.cancels, 0);
	ck_assert_uint_eq(server.queued, 0);
	ck_assert_int_eq(kvmem_region_next_missing(s.ram, 0, &run), 1);
	ck_assert_uint_eq(run.bytes, PAGES * PAGE);
	set(&server.held, false);
	must(kvmem_populate(s.ram, 0, s.source, NULL, NULL));
	check_pages_of(&s);
	close_server(&s);
}
END

TEST(what_is_wrong_with_an_asynchronous_source)
{
	struct kvmem_source_async_ops ops = KVMEM_SOURCE_ASYNC_OPS_INIT;
	struct kvmem_source *source;

	ck_assert_int_eq(kvmem_source_async(&ops, NULL, PAGE, &source), -EINVAL);
	ops.submit = on_submit;
	ck_assert_int_eq(kvmem_source_async(&ops, NULL, 0, &source), -EINVAL);
	ck_assert_int_eq(kvmem_source_async(&ops, NULL, PAGE, NULL), -EINVAL);
	ck_assert_int_eq(kvmem_source_async(NULL, NULL, PAGE, &source), -EINVAL);
	ops.flags = 1;
	ck_assert_int_eq(kvmem_source_async(&ops, NULL, PAGE, &source), -EINVAL);
	ck_assert_int_eq(kvmem_source_complete(NULL, 0), -EINVAL);
}
END

HARNESS_MAIN(T(a_hundred_faults_wait_side_by_side), T(answers_from_within_submit),
	     T(the_background_has_many_under_way_and_a_fault_does_not_wait_for_them),
	     T(what_failed_is_asked_again), T(a_request_that_fails_costs_only_its_page),
	     T(what_the_kernel_refuses_to_place_has_failed), T(hand_back_cancels_and_fill_waits),
	     T(a_late_answer_to_what_was_cancelled),
	     T(a_region_is_removed_while_requests_are_under_way), T(what_is_discarded_meanwhile),
	     T(without_threads), T(without_threads_a_ticket_is_done_by_polling),
	     T(what_fails_while_its_region_leaves), T(populate_and_read_have_several_under_way),
	     T(populate_is_canceled_while_it_waits), T(what_is_wrong_with_an_asynchronous_source))
