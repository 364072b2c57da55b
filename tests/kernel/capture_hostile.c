// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a VMM does wrong, or at the same time: nobody sleeps for ever, and what is handed out is exact or refused. */
#include "capture_rig.h"

#include <signal.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define BYTES (8 * MIB)

static bool no_userfaultfd(void)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_capture *c;
	int err;

	o.before_write = rig_before;
	err = kvmem_capture_create(&o, &c);
	if (!err)
		kvmem_capture_free(c);
	return err == -EPERM || err == -ENOSYS || err == -EOPNOTSUPP;
}

static void open_rig(struct rig *r, enum kind kind)
{
	ck_assert(rig_open(r, kind, BYTES));
	ck_assert(rig_capture(r));
}

/* A capture as it should be, after all that went before. */
static void once_more(struct rig *r)
{
	r->fail_at = 0;
	ck_ok(rig_start(r));
	ck_ok(rig_drain(r, 64 * PAGE));
	ck_ok(kvmem_capture_stop(r->capture));
	rig_check(r);
}

/* ---- errors and ends in the middle ---- */

TEST(a_callback_that_fails_ends_the_capture_and_not_the_guest)
{
	struct kvmem_capture_run run;
	uint8_t page[PAGE];
	static struct rig r; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	open_rig(&r, ANON);
	r.fail_at = 20;
	writers_start(&r);
	writers_go_on(&r);
	ck_ok(rig_start(&r));
	while (atomic_load(&r.callbacks) < 20)
		writers_go_on(&r);
	writers_go_on(&r);
	ck_fails(kvmem_capture_next(r.capture, page, sizeof(page), &run), ENOSPC, "before_write");
	ck_fails(kvmem_capture_stop(r.capture), ENOSPC, "before_write");
	writers_go_on(&r);
	once_more(&r);
	writers_stop(&r);
	ck_assert(!memcmp(r.base, r.model, BYTES));
	rig_close(&r);
}
END

TEST(a_capture_is_cancelled_at_any_time)
{
	unsigned long long seed = 4;
	static struct rig r; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	for (enum kind kind = ANON; kind <= MEMFD; kind++) {
		open_rig(&r, kind);
		writers_start(&r);
		for (unsigned int i = 0; i < 30; i++) {
			struct drainer d = { &r, 16 * PAGE, 0, 0 };
			int err;

			ck_ok(rig_start(&r));
			ck_assert_int_eq(pthread_create(&d.thread, NULL, drainer_run, &d), 0);
			nanosleep(&(struct timespec){ .tv_nsec = (long)(harness_random(&seed) %
									2000000) },
				  NULL);
			err = kvmem_capture_stop(r.capture);
			pthread_join(d.thread, NULL);
			ck_assert_msg(err == 0 || err == -ECANCELED, "%s", kvmem_error_detail());
			ck_assert_msg(d.result == 0 || d.result == -ECANCELED ||
					      d.result == -EINVAL,
				      "%d", d.result);
			if (!err)
				rig_check(&r);
			writers_go_on(&r);
		}
		once_more(&r);
		writers_stop(&r);
		ck_assert(!memcmp(r.base, r.model, BYTES));
		rig_close(&r);
	}
}
END

TEST(freed_captures_leave_nothing)
{
	unsigned int fds = harness_count_fds(), maps;
	static struct rig r; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	open_rig(&r, ANON);
	maps = harness_count_maps();
	for (unsigned int i = 0; i < 20; i++) {
		ck_ok(rig_start(&r));
		ck_fails(kvmem_capture_free(r.capture), EBUSY, "under way");
		ck_assert_int_eq(kvmem_capture_stop(r.capture), -ECANCELED);
	}
	ck_assert_uint_le(harness_count_maps(), maps + 2);
	rig_close(&r);
	ck_assert_uint_eq(harness_count_fds(), fds);
}
END

/* ---- memory that is taken away ---- */

TEST(discards_without_a_pager_are_handed_out_first)
{
	static struct rig r; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	for (enum kind kind = 0; kind < KINDS; kind++) {
		if (kind == HUGETLB || kind == OWN_MEMFD)
			continue;
		open_rig(&r, kind);
		if (kvmem_capture_check(r.capture, r.region)) {
			harness_note("%s: %s", kind_names[kind], kvmem_error_detail());
			rig_close(&r);
			continue;
		}
		ck_ok(rig_start(&r));
		for (uint64_t at = 0; at < BYTES; at += 8 * PAGE) {
			ck_ok(kvmem_region_discard(r.region, at, 5 * PAGE));
			memset(r.model + at, 0, 5 * PAGE);
			both(&r, at + PAGE, at + 9);
		}
		ck_ok(rig_drain(&r, HUGE));
		ck_ok(kvmem_capture_stop(r.capture));
		rig_check(&r);
		rig_check_stats(&r);
		ck_assert(!memcmp(r.base, r.model, BYTES));
		once_more(&r);
		rig_close(&r);
	}
}
END

/* It cannot be handed out any more: that is told, and never zeros are given for it. */
TEST(memory_that_others_take_away_is_not_zero_but_an_error)
{
	static struct rig r; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	open_rig(&r, ANON);
	ck_ok(rig_start(&r));
	ck_assert_int_eq(madvise(r.base + 3 * PAGE, PAGE, MADV_DONTNEED), 0);
	memset(r.model + 3 * PAGE, 0, PAGE);
	ck_fails(rig_drain(&r, 16 * PAGE), EIO, "kvmem_region_discard");
	both(&r, 8 * PAGE, 1);
	ck_fails(kvmem_capture_stop(r.capture), EIO, "offset 0x3000");
	once_more(&r);
	rig_close(&r);
}
END

/* ---- two of a kind ---- */

TEST(one_capture_a_region)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_region *twice[2];
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	struct kvmem_capture *c;
	static struct rig a, b;

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	open_rig(&a, ANON);
	open_rig(&b, ANON);
	twice[0] = twice[1] = a.region;
	ck_fails(kvmem_capture_start(a.capture, twice, 2), EBUSY, "regions[1]");
	ck_ok(rig_start(&a));
	ck_fails(rig_start(&a), EBUSY, "under way");
	twice[0] = b.region;
	ck_fails(kvmem_capture_start(b.capture, twice, 2), EBUSY, "regions[1]");
	ck_fails(kvmem_capture_check(b.capture, a.region), EBUSY, "under way");
	ck_ok(kvmem_capture_check(b.capture, b.region));
	ck_ok(rig_start(&b));
	ck_fails(kvmem_region_free(a.region), EBUSY, "capture");
	ck_ok(kvmem_source_memory(a.model, BYTES, &source));
	ck_ok(kvmem_pager_create(NULL, &pager));
	ck_fails(kvmem_pager_add(pager, a.region, source, 0, KVMEM_FILL_KEEP), EBUSY, "capture");
	ck_ok(kvmem_pager_free(pager));
	ck_ok(kvmem_source_free(source));
	both(&a, 0, 1);
	both(&b, 0, 2);
	ck_ok(rig_drain(&a, HUGE));
	ck_ok(rig_drain(&b, HUGE));
	ck_ok(kvmem_capture_stop(a.capture));
	ck_ok(kvmem_capture_stop(b.capture));
	rig_check(&a);
	rig_check(&b);

	/* A userfaultfd that the caller has opened, once. */
	o.before_write = rig_before;
	o.arg = &a;
	o.flags = KVMEM_CAPTURE_UFFD;
	o.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (o.uffd >= 0) {
		ck_ok(kvmem_capture_create(&o, &c));
		ck_fails(kvmem_capture_create(&o, &b.capture), EINVAL, "already");
		ck_ok(kvmem_capture_free(a.capture));
		a.capture = c;
		once_more(&a);
		close(o.uffd);
	}
	o.uffd = -1;
	b.capture = NULL;
	ck_fails(kvmem_capture_create(&o, &c), EBADF, "-1");
	rig_close(&a);
	rig_close(&b);
}
END

TEST(bad_input)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_capture_stats s = KVMEM_CAPTURE_STATS_INIT;
	struct kvmem_region *none = NULL;
	struct kvmem_capture_run run;
	struct kvmem_capture *c;
	uint8_t page[PAGE];
	static struct rig r; /* writers outlive a test that fails */

	ck_fails(kvmem_capture_create(&o, &c), EINVAL, "before_write");
	ck_fails(kvmem_capture_create(NULL, &c), EINVAL, "before_write");
	o.before_write = rig_before;
	ck_fails(kvmem_capture_create(&o, NULL), EINVAL, "ret_capture");
	o.flags = 8;
	ck_fails(kvmem_capture_create(&o, &c), EINVAL, "flags");
	o.flags = 0;
	o.threads = 1000;
	ck_fails(kvmem_capture_create(&o, &c), EINVAL, "threads");
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	open_rig(&r, ANON);
	ck_fails(kvmem_capture_start(NULL, &r.region, 1), EINVAL, "capture");
	ck_fails(kvmem_capture_start(r.capture, NULL, 1), EINVAL, "regions");
	ck_fails(kvmem_capture_start(r.capture, &r.region, 0), EINVAL, "count");
	ck_fails(kvmem_capture_start(r.capture, &none, 1), EINVAL, "regions[0]");
	ck_fails(kvmem_capture_check(r.capture, NULL), EINVAL, "region");
	ck_fails(kvmem_capture_next(r.capture, page, PAGE, &run), EINVAL, "not started");
	ck_fails(kvmem_capture_stop(r.capture), EINVAL, "not started");
	ck_fails(kvmem_capture_get_stats(NULL, &s), EINVAL, "capture");
	ck_ok(kvmem_capture_free(NULL));
	ck_ok(rig_start(&r));
	ck_fails(kvmem_capture_next(r.capture, page, PAGE - 1, &run), EINVAL, "room");
	ck_fails(kvmem_capture_next(r.capture, NULL, PAGE, &run), EINVAL, "buf");
	ck_fails(kvmem_capture_next(r.capture, page, PAGE, NULL), EINVAL, "ret_run");
	ck_ok(rig_drain(&r, PAGE));
	ck_ok(kvmem_capture_stop(r.capture));
	rig_check(&r);
	rig_close(&r);
}
END

TEST(what_cannot_be_captured_says_why)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	char path[] = "/tmp/kvmem-capture-XXXXXX";
	struct kvmem_region *clone, *over;
	static struct rig r; /* writers outlive a test that fails */
	int fd;

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	open_rig(&r, MEMFD);
	fd = mkostemp(path, O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	unlink(path);
	ck_assert_int_eq(ftruncate(fd, (off_t)BYTES), 0);
	o.bytes = BYTES;
	o.flags = KVMEM_REGION_CLONE;
	o.fd = fd;
	ck_ok(kvmem_region_create(NULL, &o, &clone));
	if (kvmem_capture_check(r.capture, clone)) /* on a disk, not on tmpfs */
		ck_fails(kvmem_capture_start(r.capture, &clone, 1), EOPNOTSUPP, "regions[0]");
	ck_ok(kvmem_region_free(clone));
	close(fd);
	o.flags = KVMEM_REGION_FD | KVMEM_REGION_OVERLAP;
	o.fd = kvmem_region_fd(r.region);
	ck_ok(kvmem_region_create(NULL, &o, &over));
	ck_fails(kvmem_capture_start(r.capture, &over, 1), EOPNOTSUPP, "OVERLAP");
	ck_ok(kvmem_region_free(over));
	rig_close(&r);
}
END

/* ---- callbacks that call back ---- */

struct calls_back {
	struct kvmem_capture *capture;
	struct kvmem_region *region;
	_Atomic int
		results[6]; /* the write that waits is no synchronisation that a checker knows */
};

static int call_back(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	struct calls_back *b = arg;
	struct kvmem_capture_run other;
	uint8_t page[PAGE];

	(void)content;
	b->results[0] = kvmem_capture_stop(b->capture);
	b->results[1] = kvmem_capture_free(b->capture);
	b->results[2] = kvmem_capture_next(b->capture, page, sizeof(page), &other);
	b->results[3] = kvmem_capture_start(b->capture, &b->region, 1);
	b->results[4] = kvmem_region_discard(b->region, run->offset, PAGE);
	b->results[5] = kvmem_region_free(b->region);
	return 0;
}

TEST(calls_that_would_wait_for_themselves_are_refused)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct calls_back b = { 0 };
	static struct rig r; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	ck_assert(rig_open(&r, ANON, BYTES));
	o.before_write = call_back;
	o.arg = &b;
	ck_ok(kvmem_capture_create(&o, &r.capture));
	b.capture = r.capture;
	b.region = r.region;
	ck_ok(rig_start(&r));
	both(&r, 0, 1);
	for (size_t i = 0; i < sizeof(b.results) / sizeof(*b.results); i++)
		ck_assert_msg(b.results[i] == -EDEADLK, "%zu: %d", i, b.results[i]);
	ck_assert_int_eq(kvmem_capture_stop(r.capture), -ECANCELED);
	ck_assert(!memcmp(r.base, r.model, BYTES));
	rig_close(&r);
}
END

/* ---- what else goes on in a process ---- */

static void nothing(int sig)
{
	(void)sig;
}

static void *send_signals(void *arg)
{
	struct rig *r = arg;

	while (!atomic_load(&r->stop)) {
		for (unsigned int i = 0; i < WRITERS; i++)
			pthread_kill(r->writers[i].thread, SIGUSR1);
		nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);
	}
	return NULL;
}

TEST(signals_and_children)
{
	struct sigaction sa = { .sa_handler = nothing }, old;
	pthread_t sender;
	static struct rig r; /* writers outlive a test that fails */
	int status;

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	ck_assert_int_eq(sigaction(SIGUSR1, &sa, &old), 0);
	for (enum kind kind = ANON; kind <= MEMFD; kind++) {
		open_rig(&r, kind);
		writers_start(&r);
		ck_assert_int_eq(pthread_create(&sender, NULL, send_signals, &r), 0);
		for (unsigned int i = 0; i < 3; i++) {
			pid_t child;

			ck_ok(rig_start(&r));
			child = fork();
			/*
			 * Its private pages are its own, and nobody is to be asked. No assertion: another
			 * thread may have held Check's lock.
			 */
			if (!child) {
				if (kind != MEMFD)
					memset(r.base, 0xcc, BYTES);
				_exit(0);
			}
			ck_assert_int_ge(child, 0);
			ck_assert_int_eq(waitpid(child, &status, 0), child);
			ck_assert_int_eq(status, 0);
			ck_ok(rig_drain(&r, 16 * PAGE));
			ck_ok(kvmem_capture_stop(r.capture));
			rig_check(&r);
		}
		atomic_store(&r.stop, true);
		pthread_join(sender, NULL);
		writers_stop(&r);
		ck_assert(!memcmp(r.base, r.model, BYTES));
		rig_close(&r);
	}
	sigaction(SIGUSR1, &old, NULL);
}
END

/* System calls that store into guest memory are writes like those of a vCPU. */
TEST(the_kernels_own_writes)
{
	int fd = memfd_create("content", MFD_CLOEXEC);
	unsigned long long seed = 8;
	uint8_t *content = malloc(BYTES);
	static struct rig r; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	fill_random(content, BYTES, &seed);
	ck_assert_int_eq(pwrite(fd, content, BYTES, 0), (ssize_t)BYTES);
	for (enum kind kind = 0; kind < KINDS; kind++) {
		struct iovec to, from;

		if (kind == HUGETLB)
			continue;
		open_rig(&r, kind);
		if (!kvmem_capture_check(r.capture, r.region)) {
			ck_ok(rig_start(&r));
			ck_assert_int_eq(pread(fd, r.base, BYTES / 2, 0), (ssize_t)(BYTES / 2));
			to = (struct iovec){ r.base + BYTES / 2, BYTES / 2 };
			from = (struct iovec){ content + BYTES / 2, BYTES / 2 };
			ck_assert_int_eq(process_vm_writev(getpid(), &from, 1, &to, 1, 0),
					 (ssize_t)(BYTES / 2));
			memcpy(r.model, content, BYTES);
			ck_ok(rig_drain(&r, 16 * PAGE));
			ck_ok(kvmem_capture_stop(r.capture));
			rig_check(&r);
			ck_assert(!memcmp(r.base, r.model, BYTES));
		}
		rig_close(&r);
	}
	free(content);
	close(fd);
}
END

/* Anything divides a mapping: policies, madvise, mlock. The protection of Linux 6.1 takes one alone. */
TEST(mappings_that_are_divided_meanwhile)
{
	static struct rig r; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	for (enum kind kind = ANON; kind <= CLONE; kind++) {
		if (kind == HUGETLB)
			continue;
		open_rig(&r, kind);
		if (kvmem_capture_check(r.capture, r.region)) {
			rig_close(&r);
			continue;
		}
		for (uint64_t at = 0; at < BYTES / 2; at += 64 * PAGE)
			ck_assert_int_eq(madvise(r.base + at, 3 * PAGE, MADV_DONTDUMP), 0);
		writers_start(&r);
		ck_ok(rig_start(&r));
		for (uint64_t at = BYTES / 2; at < BYTES; at += 32 * PAGE)
			ck_assert_int_eq(madvise(r.base + at, 5 * PAGE, MADV_DONTDUMP), 0);
		ck_ok(rig_drain(&r, 100 * PAGE));
		ck_ok(kvmem_capture_stop(r.capture));
		rig_check(&r);
		once_more(&r);
		writers_stop(&r);
		rig_close(&r);
	}
}
END

/* A populate without a pager: what it fills comes as it was before. */
TEST(a_populate_beside_it)
{
	struct kvmem_populate_opts po = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_source *source;
	unsigned long long seed = 12;
	uint8_t *content = malloc(BYTES);
	static struct rig r; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	fill_random(content, BYTES, &seed);
	ck_ok(kvmem_source_memory(content, BYTES, &source));
	for (unsigned int i = 0; i < 4; i++) {
		enum kind kind = i & 1 ? MEMFD : ANON;

		open_rig(&r, kind);
		if (kvmem_capture_check(r.capture, r.region)) {
			rig_close(&r);
			continue;
		}
		po.flags = i & 2 ? KVMEM_FILL_OVERWRITE : KVMEM_FILL_KEEP;
		ck_ok(rig_start(&r));
		ck_ok(kvmem_populate(r.region, 0, source, &po, NULL));
		ck_ok(rig_drain(&r, HUGE));
		ck_ok(kvmem_capture_stop(r.capture));
		rig_check(&r);
		if (i & 2)
			ck_assert(!memcmp(r.base, content, BYTES));
		rig_close(&r);
	}
	ck_ok(kvmem_source_free(source));
	free(content);
}
END

HARNESS_MAIN(T(a_callback_that_fails_ends_the_capture_and_not_the_guest),
	     T(a_capture_is_cancelled_at_any_time), T(freed_captures_leave_nothing),
	     T(discards_without_a_pager_are_handed_out_first),
	     T(memory_that_others_take_away_is_not_zero_but_an_error), T(one_capture_a_region),
	     T(bad_input), T(what_cannot_be_captured_says_why),
	     T(calls_that_would_wait_for_themselves_are_refused), T(signals_and_children),
	     T(the_kernels_own_writes), T(mappings_that_are_divided_meanwhile),
	     T(a_populate_beside_it))
