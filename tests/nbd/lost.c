// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Many requests under way, and servers that die, are silent, come back, come back as others, or do not. */
#include "nbd_rig.h"

static bool has_in_flight(void *arg)
{
	return stats_of(arg).in_flight == TOUCHERS;
}

/* nbdkit's log: requests that came to it. */
static unsigned int count_reads(const char *path)
{
	unsigned int n = 0;
	char line[512];
	FILE *f = fopen(path, "re");

	while (f && fgets(line, sizeof(line), f))
		n += strstr(line, " Read id=") != NULL;
	if (f)
		fclose(f);
	return n;
}

static bool has_reads(void *path)
{
	return count_reads(path) >= TOUCHERS;
}

static void start_paused(struct server *s, const char *plugin, const char *argument)
{
	server_start(s, "--filter=log", "--filter=pause", plugin, argument, "pause-control=pause",
		     "logfile=log");
	server_pause("p");
}

/* More than a hundred faults are under way: nobody answers, and the server has been asked for all of them. */
TEST(more_than_a_hundred_requests_in_flight)
{
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct toucher t[TOUCHERS];
	struct kvmem_nbd *nbd;
	struct memory m;
	struct server s;

	NEED_NBDKIT();
	enter_folder();
	o.connections = 1;
	start_paused(&s, "pattern", "4M");
	nbd = open_nbd(&o);
	if (memory_page(&m, source_of(nbd, 0, 0), 4 * MIB, NULL)) {
		touch_start(t, &m, TOUCHERS);
		ck_assert(harness_wait(has_in_flight, nbd, 60));
		ck_assert(harness_wait(has_reads, (char[]){ "log" }, 60));
		for (unsigned int i = 0; i < TOUCHERS; i++)
			ck_assert(!t[i].done);
		server_pause("r");
		touch_end(t, TOUCHERS);
		for (unsigned int i = 0; i < TOUCHERS; i++)
			ck_assert(is_pattern(m.base + 2 * i * PAGE, 2 * i * PAGE, PAGE));
		ck_assert_uint_eq(stats_of(nbd).in_flight_most, TOUCHERS);
		ck_assert_uint_eq(stats_of(nbd).in_flight, 0);
		ck_assert_uint_eq(stats_of(nbd).bytes, TOUCHERS * PAGE);
		must(kvmem_pager_stop(m.pager, KVMEM_STOP_HAND_BACK));
		memory_free(&m);
		must(kvmem_nbd_close(nbd));
	}
	server_kill(&s);
	leave_folder();
}
END

/* What was under way is asked for once more, by the connection that is made again, and nothing comes twice. */
TEST(a_server_killed_and_started_again)
{
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct toucher t[TOUCHERS];
	struct kvmem_nbd *nbd;
	struct memory m;
	struct server s;

	NEED_NBDKIT();
	enter_folder();
	for (o.connections = 1; o.connections < 5; o.connections += 3) {
		struct kvmem_nbd_stats st;

		start_paused(&s, "pattern", "4M");
		nbd = open_nbd(&o);
		if (!memory_page(&m, source_of(nbd, 0, 0), 4 * MIB, NULL))
			break;
		touch_start(t, &m, TOUCHERS);
		ck_assert(harness_wait(has_in_flight, nbd, 60));
		server_kill(&s);
		server_run(&s);
		touch_end(t, TOUCHERS);
		for (unsigned int i = 0; i < TOUCHERS; i++)
			ck_assert(is_pattern(m.base + 2 * i * PAGE, 2 * i * PAGE, PAGE));
		st = stats_of(nbd);
		/* One that is about to break may have been given those of another. */
		ck_assert_uint_ge(st.again, TOUCHERS);
		ck_assert(st.again == TOUCHERS || o.connections > 1);
		ck_assert_uint_eq(st.requests, TOUCHERS);
		ck_assert_uint_eq(st.bytes, TOUCHERS * PAGE);
		ck_assert_uint_eq(st.requests_failed + st.requests_late + st.requests_cancelled, 0);
		ck_assert_uint_eq(st.broken, o.connections);
		ck_assert_str_ne(st.why, "");
		must(kvmem_pager_stop(m.pager, KVMEM_STOP_HAND_BACK));
		memory_free(&m);
		must(kvmem_nbd_close(nbd));
		server_kill(&s);
		unlink("log");
	}
	leave_folder();
}
END

/* ---- again and again, while it works ---- */

struct filling {
	struct kvmem_source *source;
	struct kvmem_region *ram;
	_Atomic bool done;
};

static void *fill(void *arg)
{
	struct filling *f = arg;
	int r = kvmem_populate(f->ram, 0, f->source, NULL, NULL);

	atomic_store(&f->done, true);
	return r ? strdup(kvmem_error_detail()) : NULL;
}

struct progress {
	struct kvmem_nbd *nbd;
	uint64_t bytes;
	struct filling *f;
};

static bool has_come(void *arg)
{
	const struct progress *p = arg;

	return p->f->done || stats_of(p->nbd).bytes >= p->bytes;
}

TEST(a_server_killed_again_and_again)
{
	struct kvmem_region_opts r = KVMEM_REGION_OPTS_INIT;
	uint64_t bytes = 64 * MIB;
	struct filling f = { NULL };
	struct kvmem_nbd *nbd;
	pthread_t thread;
	struct server s;
	void *failed;

	NEED_NBDKIT();
	enter_folder();
	server_start(&s, "--filter=delay", "pattern", "64M", "rdelay=20ms");
	nbd = open_nbd(NULL);
	f.source = source_of(nbd, 0, 0);
	r.bytes = bytes;
	must(kvmem_region_create(NULL, &r, &f.ram));
	ck_assert_int_eq(pthread_create(&thread, NULL, fill, &f), 0);
	for (unsigned int i = 0; i < 12; i++) {
		struct progress p = { nbd, stats_of(nbd).bytes + 2 * MIB, &f };

		ck_assert(harness_wait(has_come, &p, 60));
		server_kill(&s);
		server_run(&s);
	}
	pthread_join(thread, &failed);
	ck_assert_msg(!failed, "%s", (char *)failed);
	ck_assert(is_pattern(kvmem_region_base(f.ram), 0, bytes));
	ck_assert_uint_eq(stats_of(nbd).bytes, bytes);
	ck_assert_uint_gt(stats_of(nbd).broken, 5);
	must(kvmem_region_free(f.ram));
	must(kvmem_source_free(f.source));
	must(kvmem_nbd_close(nbd));
	server_kill(&s);
	leave_folder();
}
END

/* ---- it does not come back ---- */

static _Atomic unsigned int asked;
static _Atomic int last_error;

static enum kvmem_fail_action on_fail(void *arg, const struct kvmem_fail *f)
{
	(void)arg;
	atomic_fetch_add(&asked, 1);
	atomic_store(&last_error, f->error);
	return KVMEM_FAIL_POISON;
}

/* dies: it is killed, or (false) connected and silent. */
static void fail_closed(bool dies)
{
	struct kvmem_pager_opts p = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct toucher t[TOUCHERS];
	struct kvmem_nbd_stats st;
	struct kvmem_nbd *nbd;
	struct memory m;
	struct server s;

	enter_folder();
	catch_signals();
	asked = 0;
	o.connections = 1;
	o.deadline_ns = 1500 * MS;
	o.silence_ns = 200 * MS;
	p.fail = on_fail;
	start_paused(&s, "pattern", "4M");
	nbd = open_nbd(&o);
	if (!memory_page(&m, source_of(nbd, 0, 0), 4 * MIB, &p)) {
		server_kill(&s);
		leave_folder();
		return;
	}
	touch_start(t, &m, TOUCHERS);
	if (dies) {
		ck_assert(harness_wait(has_in_flight, nbd, 60));
		server_kill(&s);
	}
	touch_end(t, TOUCHERS); /* all of them have failed: nobody hangs */
	for (unsigned int i = 0; i < TOUCHERS; i++)
		ck_assert_int_ne(t[i].sig, 0);
	ck_assert_uint_eq(asked, TOUCHERS);
	ck_assert_int_eq(last_error, -ETIMEDOUT);
	ck_assert_uint_eq(pager_stats(&m).pages_poisoned, TOUCHERS);
	st = stats_of(nbd);
	ck_assert_uint_eq(st.requests_late, TOUCHERS);
	ck_assert_uint_eq(st.in_flight, 0);
	ck_assert_uint_eq(st.bytes, 0);
	ck_assert_uint_ge(st.broken, 1);
	ck_assert_str_ne(st.why, "");
	if (dies)
		ck_assert_uint_ge(st.attempts_failed, 2);
	must(kvmem_pager_stop(m.pager, KVMEM_STOP_HAND_BACK));
	memory_free(&m);
	must(kvmem_nbd_close(nbd));
	if (!dies)
		server_kill(&s);
	leave_folder();
}

TEST(a_server_that_never_comes_back)
{
	NEED_NBDKIT();
	fail_closed(true);
}
END

TEST(a_server_that_becomes_silent)
{
	NEED_NBDKIT();
	fail_closed(false);
}
END

/* A connection that answers nothing is given up, and what was under way comes over the next one. */
TEST(a_connection_that_becomes_silent)
{
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct toucher t[TOUCHERS];
	struct kvmem_nbd *nbd;
	struct memory m;
	struct server s, other;

	NEED_NBDKIT();
	enter_folder();
	o.connections = 1;
	o.silence_ns = 300 * MS;
	start_paused(&s, "pattern", "4M");
	nbd = open_nbd(&o);
	if (memory_page(&m, source_of(nbd, 0, 0), 4 * MIB, NULL)) {
		touch_start(t, &m, TOUCHERS);
		ck_assert(harness_wait(has_in_flight, nbd, 60));
		/* Another server in its place; the silent one lives. */
		server_start(&other, "pattern", "4M");
		touch_end(t, TOUCHERS);
		for (unsigned int i = 0; i < TOUCHERS; i++)
			ck_assert(is_pattern(m.base + 2 * i * PAGE, 2 * i * PAGE, PAGE));
		ck_assert_uint_ge(stats_of(nbd).again, TOUCHERS);
		must(kvmem_pager_stop(m.pager, KVMEM_STOP_HAND_BACK));
		memory_free(&m);
		must(kvmem_nbd_close(nbd));
		server_kill(&other);
	}
	server_kill(&s);
	leave_folder();
}
END

static int listen_at(const char *path)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(at.sun_path, sizeof(at.sun_path), "%s", path);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	ck_assert_int_eq(listen(fd, 64), 0);
	return fd;
}

TEST(a_server_that_accepts_and_says_nothing)
{
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	unsigned int fds, threads = count_threads();
	struct kvmem_nbd *nbd = NULL;
	int fd;

	enter_folder();
	fds = harness_count_fds();
	fd = listen_at("sock");
	o.silence_ns = 100 * MS;
	fails(kvmem_nbd_open(URI, &o, &nbd), ETIMEDOUT, "silent");
	close(fd);
	ck_assert_ptr_null(nbd);
	ck_assert_uint_eq(harness_count_fds(), fds);
	threads_are(threads);
	leave_folder();
}
END

/* ---- it comes back as another one ---- */

static bool is_another(void *arg)
{
	return strstr(stats_of(arg).why, "another one");
}

TEST(a_server_that_comes_back_with_another_export)
{
	static const char *const sizes[] = { "3M", "5M", "512" };
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct kvmem_source *source;
	struct kvmem_nbd *nbd;
	struct server s, other;
	uint8_t page[PAGE];

	NEED_NBDKIT();
	enter_folder();
	o.deadline_ns = 400 * MS;
	o.retry_ns = 20 * MS;
	server_start(&s, "pattern", "4M");
	nbd = open_nbd(&o);
	source = source_of(nbd, 0, 0);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		server_kill(&s);
		server_start(&other, "memory", sizes[i]);
		ck_assert(harness_wait(is_another, nbd, 60));
		ck_assert_int_eq(kvmem_source_read(source, 0, page, PAGE), -ETIMEDOUT);
		server_kill(&other);
		server_run(&s);
		/* The right one again. */
		while (kvmem_source_read(source, MIB, page, PAGE))
			;
		ck_assert(is_pattern(page, MIB, PAGE));
	}
	must(kvmem_source_free(source));
	must(kvmem_nbd_close(nbd));
	server_kill(&s);
	leave_folder();
}
END

/* ---- given up while under way ---- */

/* The pager stops, with everything under way at a server that does not answer: soon, and nothing is filled. */
TEST(stopped_while_requests_are_under_way)
{
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct toucher t[TOUCHERS];
	struct kvmem_nbd *nbd;
	struct memory m;
	struct server s;

	NEED_NBDKIT();
	enter_folder();
	o.connections = 1;
	o.depth = 100; /* the others wait in the queue */
	o.deadline_ns = o.silence_ns = 3600000 * MS;
	start_paused(&s, "pattern", "4M");
	nbd = open_nbd(&o);
	if (memory_page(&m, source_of(nbd, 0, 0), 4 * MIB, NULL)) {
		struct kvmem_nbd_stats st;

		touch_start(t, &m, TOUCHERS);
		do {
			st = stats_of(nbd);
		} while (st.requests < TOUCHERS || st.in_flight < 100);
		must(kvmem_pager_stop(m.pager, KVMEM_STOP_HAND_BACK));
		st = stats_of(nbd);
		ck_assert_uint_eq(st.requests_cancelled, TOUCHERS);
		ck_assert_uint_eq(st.in_flight_most, 100);
		ck_assert_uint_eq(st.in_flight, 0);
		/* nbdkit 1.32 may end by an assertion of its own when it is resumed after a client has gone. */
		server_kill(&s);
		server_run(&s);
		must(kvmem_pager_start(m.pager));
		touch_end(t, TOUCHERS);
		for (unsigned int i = 0; i < TOUCHERS; i++)
			ck_assert(is_pattern(m.base + 2 * i * PAGE, 2 * i * PAGE, PAGE));
		must(kvmem_pager_stop(m.pager, KVMEM_STOP_HAND_BACK));
		memory_free(&m);
		must(kvmem_nbd_close(nbd));
	}
	server_kill(&s);
	leave_folder();
}
END

TEST(hundreds_of_lives)
{
	unsigned int fds, threads, maps;
	struct kvmem_nbd *nbd;
	struct server s;

	NEED_NBDKIT();
	enter_folder();
	server_start(&s, "-t", "2", "file", "/proc/self/exe");
	nbd = open_nbd(NULL); /* what the C library and others keep */
	must(kvmem_nbd_close(nbd));
	fds = harness_count_fds();
	threads = count_threads();
	maps = harness_count_maps();
	for (unsigned int i = 0; i < 300; i++) {
		struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
		struct kvmem_source *source;
		uint8_t page[PAGE];

		o.connections = 1 + i % 4;
		nbd = open_nbd(&o);
		source = source_of(nbd, 0, 0);
		if (i % 3)
			must(kvmem_source_read(source, 0, page, PAGE));
		must(kvmem_source_free(source));
		must(kvmem_nbd_close(nbd));
	}
	ck_assert_uint_eq(harness_count_fds(), fds);
	threads_are(threads);
	ck_assert_uint_le(harness_count_maps(), maps + 40); /* arenas and stacks that glibc keeps */
	server_kill(&s);
	leave_folder();
}
END

HARNESS_MAIN(T(more_than_a_hundred_requests_in_flight), T(a_server_killed_and_started_again),
	     T(a_server_killed_again_and_again), T(a_server_that_never_comes_back),
	     T(a_server_that_becomes_silent), T(a_connection_that_becomes_silent),
	     T(a_server_that_accepts_and_says_nothing),
	     T(a_server_that_comes_back_with_another_export),
	     T(stopped_while_requests_are_under_way), T(hundreds_of_lives))
