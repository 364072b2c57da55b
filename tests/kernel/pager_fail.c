// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Fail closed: a source that fails, a descriptor that is closed; never zeros, never a hang. */
#include "prefetch.h"
#include "pager_lib.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>

#define BYTES (4u * MIB)
#define PAGES (BYTES / PAGE)
#define NS    1000000000ll

/* ---- an access that may end in a signal ---- */

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

static void catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
}

/* ---- a source with a bad page ---- */

struct bad {
	struct set s;
	_Atomic bool broken;
	_Atomic unsigned int reads, failed, asked;
	_Atomic unsigned int mend_at; /* the attempt at which `fail` mends the source */
	_Atomic int error;
	_Atomic uint64_t offset;
};

#define BAD_PAGE 300u

static int bad_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct bad *b = arg;
	uint64_t bad = (uint64_t)BAD_PAGE * PAGE;

	atomic_fetch_add(&b->reads, 1);
	if (atomic_load(&b->broken) && offset <= bad && offset + bytes > bad) {
		memset(buf, 0x77, bytes / 2); /* half a read must not be seen */
		atomic_fetch_add(&b->failed, 1);
		return -EIO;
	}
	memcpy(buf, b->s.content + offset, bytes);
	return 0;
}

static enum kvmem_fail_action on_fail(void *arg, const struct kvmem_fail *f)
{
	struct bad *b = arg;

	atomic_fetch_add(&b->asked, 1);
	atomic_store(&b->error, f->error);
	atomic_store(&b->offset, f->offset);
	if (f->attempt < b->mend_at)
		return KVMEM_FAIL_RETRY;
	if (!b->mend_at)
		return KVMEM_FAIL_POISON;
	atomic_store(&b->broken, false);
	return KVMEM_FAIL_RETRY;
}

static bool open_bad(struct bad *b, enum kvmem_backing backing, uint32_t flags, bool callback)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	memset(b, 0, sizeof(*b));
	if (!open_set(&b->s, backing, BYTES))
		return false;
	catch_signals();
	ops.read = bad_read;
	must(kvmem_source_callback(&ops, b, BYTES, &b->s.source));
	b->broken = true;
	b->s.opts.flags = flags;
	b->s.opts.arg = b;
	if (callback)
		b->s.opts.fail = on_fail;
	start_set(&b->s);
	return true;
}

static const enum kvmem_backing kinds[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };

TEST(a_page_that_cannot_be_read_is_poisoned)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct bad b;

		if (!open_bad(&b, kinds[k], 0, false))
			return;
		ck_assert_int_ne(access_page(&b.s, BAD_PAGE), 0);
		for (uint64_t i = 0; i < PAGES; i++)
			if (i != BAD_PAGE)
				check_page(&b.s, i);
		ck_assert_int_ne(access_page(&b.s, BAD_PAGE), 0);
		ck_assert_uint_eq(stats_of(&b.s).pages_poisoned, 1);
		ck_assert_int_eq(kvmem_pager_wait(b.s.pager, NS), -EIO);
		ck_assert_int_eq(kvmem_pager_stop(b.s.pager, KVMEM_STOP_FILL), -EIO);
		ck_assert_int_ne(access_page(&b.s, BAD_PAGE), 0); /* afterwards, too */
		close_set(&b.s);
	}
}
END

TEST(the_caller_is_asked)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct bad b;

		if (!open_bad(&b, kinds[k], 0, true))
			return;
		ck_assert_int_ne(access_page(&b.s, BAD_PAGE), 0);
		ck_assert_uint_eq(b.asked, 1);
		ck_assert_int_eq(b.error, -EIO);
		ck_assert_uint_eq(b.offset, BAD_PAGE * PAGE);
		must(kvmem_pager_stop(b.s.pager, KVMEM_STOP_HAND_BACK));
		close_set(&b.s);

		if (!open_bad(&b, kinds[k], 0, true))
			return;
		b.mend_at = 5;
		for (uint64_t i = 0; i < PAGES; i++)
			check_page(&b.s, i);
		ck_assert_uint_eq(b.asked, 5);
		must(kvmem_pager_wait(b.s.pager, NS));
		must(kvmem_pager_stop(b.s.pager, KVMEM_STOP_FILL));
		close_set(&b.s);
	}
}
END

static bool whole(void *arg)
{
	return !stats_of(arg).pages_missing;
}

static bool all_but_one(void *arg)
{
	return stats_of(arg).pages_missing == 1;
}

TEST(background_leaves_what_fails_and_goes_on)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct bad b;

		if (!open_bad(&b, kinds[k], KVMEM_PAGER_BACKGROUND, false))
			return;
		ck_assert(harness_wait(all_but_one, &b.s, 20));
		ck_assert_int_eq(kvmem_pager_wait(b.s.pager, -1), -EIO);
		atomic_store(&b.broken, false); /* an access asks again */
		check_all(&b.s);
		ck_assert(harness_wait(whole, &b.s, 20));
		must(kvmem_pager_wait(b.s.pager, 20 * NS));
		must(kvmem_pager_stop(b.s.pager, KVMEM_STOP_FILL));
		check_all(&b.s);
		close_set(&b.s);
	}
}
END

TEST(stop_fills_poisons_and_tells)
{
	for (unsigned int k = 0; k < 2; k++)
		for (unsigned int flags = 0; flags <= KVMEM_PAGER_NO_THREADS;
		     flags += KVMEM_PAGER_NO_THREADS) {
			struct bad b;
			struct kvmem_run run;

			if (!open_bad(&b, kinds[k], flags, false))
				return;
			ck_assert_int_eq(kvmem_pager_stop(b.s.pager, KVMEM_STOP_FILL), -EIO);
			ck_assert_uint_eq(stats_of(&b.s).pages_missing, 1);
			for (uint64_t i = 0; i < PAGES; i++)
				if (i != BAD_PAGE)
					check_page(&b.s, i);
			ck_assert_int_ne(access_page(&b.s, BAD_PAGE), 0);
			ck_assert_int_eq(kvmem_region_next_missing(b.s.ram, 0, &run), 1);
			ck_assert_uint_eq(run.offset, BAD_PAGE * PAGE);
			ck_assert_uint_eq(run.bytes, PAGE);
			close_set(&b.s);
		}
}
END

/*
 * A worker has the bad page claimed when the thread that stops the pager comes to it, and gives it up only
 * after that thread waits for it, or has passed it by: nobody may take it for filled.
 */
struct slow {
	struct bad b;
	pthread_t stopper;
	pid_t stopper_tid;
	_Atomic bool stop_is_near, bad_is_claimed, stop_has_passed;
};

static bool is_set(void *flag)
{
	return atomic_load((_Atomic bool *)flag);
}

/* The thread that stops has passed the bad page by, or sleeps: it waits for the claim. */
static bool stop_is_there(void *arg)
{
	struct slow *t = arg;
	char path[64], text[256] = "";
	const char *state;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)t->stopper_tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_gt(read(fd, text, sizeof(text) - 1), 0);
	close(fd);
	state = strrchr(text, ')');
	return t->stop_has_passed || (t->bad_is_claimed && state && state[2] == 'S');
}

static int slow_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct slow *t = arg;
	struct kvmem_run bad = { .region = t->b.s.ram,
				 .offset = (uint64_t)BAD_PAGE * PAGE,
				 .bytes = PAGE };
	bool worker = !pthread_equal(pthread_self(), t->stopper);

	if (worker && offset == t->b.s.bytes - PAGE) {
		harness_wait(is_set, &t->stop_is_near, 20);
	} else if (worker && offset == bad.offset) {
		atomic_store(&t->bad_is_claimed, true);
		harness_wait(stop_is_there, t, 20);
	} else if (!worker && offset < bad.offset && bytes == PAGE && !t->stop_is_near) {
		/* One by one now: their window has failed. */
		prefetch_runs(t->b.s.pager, &bad, 1);
		atomic_store(&t->stop_is_near, true);
		harness_wait(is_set, &t->bad_is_claimed, 20);
	} else if (!worker && offset > bad.offset) {
		atomic_store(&t->stop_has_passed, true);
	}
	return bad_read(&t->b, offset, buf, bytes);
}

TEST(stop_waits_for_what_a_worker_gives_up)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct slow t = { .stopper = pthread_self(), .stopper_tid = (pid_t)syscall(SYS_gettid) };
	struct kvmem_run last = { .offset = BYTES - PAGE, .bytes = PAGE };

	if (!open_set(&t.b.s, KVMEM_BACKING_MEMFD, BYTES))
		return;
	catch_signals();
	ops.read = slow_read;
	must(kvmem_source_callback(&ops, &t, BYTES, &t.b.s.source));
	t.b.broken = true;
	t.b.s.opts.shards = 1;
	start_set(&t.b.s);
	last.region = t.b.s.ram;
	must(prefetch_runs(t.b.s.pager, &last, 1));
	ck_assert_int_eq(kvmem_pager_stop(t.b.s.pager, KVMEM_STOP_FILL), -EIO);
	ck_assert(t.bad_is_claimed);
	ck_assert_int_ne(access_page(&t.b.s, BAD_PAGE), 0);
	for (uint64_t i = 0; i < PAGES; i++)
		if (i != BAD_PAGE)
			check_page(&t.b.s, i);
	close_set(&t.b.s);
}
END

struct waiter {
	struct set *s;
	uint64_t page;
	int signal;
	_Atomic bool done;
};

static void *wait_for_page(void *arg)
{
	struct waiter *w = arg;

	w->signal = access_page(w->s, w->page);
	atomic_store(&w->done, true);
	return NULL;
}

static bool failing(void *arg)
{
	return atomic_load(&((struct bad *)arg)->asked) > 3;
}

TEST(stop_ends_endless_retries)
{
	struct waiter w = { .page = BAD_PAGE };
	pthread_t id;
	struct bad b;

	if (!open_bad(&b, KVMEM_BACKING_MEMFD, 0, true))
		return;
	b.mend_at = UINT32_MAX;
	w.s = &b.s;
	ck_assert_int_eq(pthread_create(&id, NULL, wait_for_page, &w), 0);
	ck_assert(harness_wait(failing, &b, 20));
	ck_assert(!w.done);
	must(kvmem_pager_stop(b.s.pager, KVMEM_STOP_HAND_BACK));
	ck_assert_uint_eq(stats_of(&b.s).pages_poisoned, 0); /* nobody has given the page up */
	ck_assert(!w.done);				     /* and nobody reads zeros of it */
	atomic_store(&b.broken, false);
	must(kvmem_pager_start(b.s.pager));
	pthread_join(id, NULL);
	ck_assert_int_eq(access_page(&b.s, BAD_PAGE), 0);
	ck_assert_mem_eq(b.s.base + BAD_PAGE * PAGE, b.s.content + BAD_PAGE * PAGE, PAGE);
	must(kvmem_pager_stop(b.s.pager, KVMEM_STOP_HAND_BACK));
	close_set(&b.s);
}
END

/* ---- descriptors ---- */

/* Close one in two of the process's userfaultfds, as a stray close() would. */
static unsigned int close_half(void)
{
	unsigned int seen = 0, closed = 0;
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;

	ck_assert_ptr_nonnull(d);
	while ((e = readdir(d))) {
		char link[64] = "";
		int fd = (int)strtol(e->d_name, NULL, 10);

		if (readlinkat(dirfd(d), e->d_name, link, sizeof(link) - 1) < 0 ||
		    strcmp(link, "anon_inode:[userfaultfd]") != 0)
			continue;
		if (seen++ % 2 == 0) {
			close(fd);
			closed++;
		}
	}
	closedir(d);
	return closed;
}

TEST(a_descriptor_closed_by_mistake_costs_nothing)
{
	const uint64_t half = PAGES / 2;
	unsigned int n;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
		return;
	use_memory(&s);
	s.opts.fault_around = 8 * PAGE;
	s.opts.shards = 1;
	start_set(&s);
	for (uint64_t i = 0; i < half; i++)
		check_page(&s, i);
	n = close_half();
	ck_assert_uint_eq(n, 1);
	for (uint64_t i = half; i < PAGES; i++)
		check_page(&s, i);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	close_set(&s);
}
END

TEST(nothing_leaks)
{
	unsigned int fds = 0, maps = 0;

	for (unsigned int i = 0; i < 4; i++) {
		struct set s;

		if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
			return;
		use_file(&s);
		s.opts.shards = 3;
		s.opts.workers = 2;
		start_set(&s);
		check_all(&s);
		must(kvmem_pager_stop(s.pager, i % 2));
		close_set(&s);
		if (!i) {
			fds = harness_count_fds();
			maps = harness_count_maps();
		}
	}
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_le(harness_count_maps(), maps + 2); /* the allocator's arenas vary */
}
END

/* ---- calls in the wrong order, and wrong arguments ---- */

TEST(wrong_calls)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;
	struct kvmem_pager *other;
	struct kvmem_run run = { 0 };
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
		return;
	use_memory(&s);
	ck_assert_int_eq(kvmem_pager_create(NULL, NULL), -EINVAL);
	o.flags = 1u << 31;
	ck_assert_int_eq(kvmem_pager_create(&o, &other), -EINVAL);
	o.flags = KVMEM_PAGER_NO_THREADS;
	o.workers = 2;
	ck_assert_int_eq(kvmem_pager_create(&o, &other), -EINVAL);
	o.workers = 0;
	o.shards = 100000;
	ck_assert_int_eq(kvmem_pager_create(&o, &other), -EINVAL);
	o.size = 3;
	ck_assert_int_eq(kvmem_pager_create(&o, &other), -EINVAL);

	must(kvmem_pager_create(NULL, &s.pager));
	must(kvmem_pager_create(NULL, &other));
	ck_assert_int_eq(kvmem_pager_start(s.pager), -EINVAL); /* no region */
	ck_assert_int_eq(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL), -EINVAL);
	ck_assert_int_eq(kvmem_pager_add(NULL, s.ram, s.source, 0, 0), -EINVAL);
	ck_assert_int_eq(kvmem_pager_add(s.pager, NULL, s.source, 0, 0), -EINVAL);
	ck_assert_int_eq(kvmem_pager_add(s.pager, s.ram, NULL, 0, 0), -EINVAL);
	ck_assert_int_eq(kvmem_pager_add(s.pager, s.ram, s.source, UINT64_MAX, 0), -EINVAL);
	must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
	ck_assert_int_eq(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0), -EBUSY);
	ck_assert_int_eq(kvmem_pager_add(other, s.ram, s.source, 0, 0), -EBUSY);
	ck_assert_int_eq(kvmem_pager_wait(s.pager, 0), -EINVAL);
	must(kvmem_pager_start(s.pager));
	ck_assert_int_eq(kvmem_pager_start(s.pager), -EBUSY);
	ck_assert_int_eq(kvmem_pager_free(s.pager), -EBUSY);
	ck_assert_int_eq(kvmem_pager_wait(s.pager, 0), -ETIMEDOUT);
	ck_assert_int_eq(kvmem_pager_fd(s.pager), -EINVAL);
	ck_assert_int_eq(kvmem_pager_handle(s.pager), -EINVAL);
	ck_assert_int_eq(kvmem_pager_prefetch(s.pager, s.ram, NULL, 1, NULL, NULL), -EINVAL);
	run.region = s.ram;
	ck_assert_int_eq(prefetch_runs(s.pager, &run, 1), -EINVAL); /* 0 bytes */
	ck_assert_int_eq(prefetch_runs(other, &run, 1), -ENOENT);
	must(kvmem_pager_prefetch(s.pager, s.ram, NULL, 0, NULL, NULL));
	st.size = 4;
	ck_assert_int_eq(kvmem_pager_get_stats(s.pager, &st), -EINVAL);
	ck_assert_int_eq(kvmem_pager_get_stats(s.pager, NULL), -EINVAL);
	ck_assert_int_eq(kvmem_pager_stop(s.pager, 7), -EINVAL);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	ck_assert_int_eq(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK), -EINVAL);
	ck_assert_int_eq(kvmem_pager_wait(s.pager, 0), -EINVAL);
	must(kvmem_pager_start(s.pager)); /* goes on */
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	ck_assert_int_eq(kvmem_pager_start(s.pager), -EBUSY);
	run.bytes = PAGE;
	ck_assert_int_eq(prefetch_runs(s.pager, &run, 1), -EINVAL);
	must(kvmem_pager_free(other));
	must(kvmem_pager_free(NULL));
	close_set(&s);
}
END

TEST(freed_before_the_start)
{
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
		return;
	use_memory(&s);
	must(kvmem_pager_create(NULL, &s.pager));
	must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
	must(kvmem_pager_free(s.pager));
	ck_assert_uint_eq(s.base[0], 0); /* an ordinary page again */
	s.pager = NULL;
	close_set(&s);
}
END

HARNESS_MAIN(T(a_page_that_cannot_be_read_is_poisoned), T(the_caller_is_asked),
	     T(background_leaves_what_fails_and_goes_on), T(stop_fills_poisons_and_tells),
	     T(stop_waits_for_what_a_worker_gives_up), T(stop_ends_endless_retries),
	     T(a_descriptor_closed_by_mistake_costs_nothing), T(nothing_leaks), T(wrong_calls),
	     T(freed_before_the_start))
