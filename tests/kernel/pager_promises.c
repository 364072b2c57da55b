// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a pager must not lose, hang or make zero; each test is named after the kind of fault that it is about. */
#include "prefetch.h"
#include "pager_lib.h"
#include "toucher.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>

#define BYTES (16u * MIB)
#define PAGES (BYTES / PAGE)
#define NS    1000000000ll

static const enum kvmem_backing kinds[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };

/* ---- an access that may end in a signal ---- */

static _Thread_local sigjmp_buf back;

static void on_signal(int sig)
{
	siglongjmp(back, sig);
}

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

/* ---- a thread that touches a page, and is seen to wait for it ---- */

static bool is_done(void *arg)
{
	return atomic_load(&((struct toucher *)arg)->done);
}

static void join_touch(struct toucher *t)
{
	ck_assert_msg(harness_wait(is_done, t, 20), "the access to page %lu never comes back",
		      (unsigned long)t->page);
	pthread_join(t->thread, NULL);
}

/* ---- K4: where mappings meet ---- */

#define EDGE (8u * MIB + PAGE)

enum divide { BY_POLICY, BY_DONTDUMP, BY_MLOCK, DIVISIONS };

static void divide(const struct set *s, enum divide how)
{
	unsigned long node0 = 1;
	int r = 0;

	if (how == BY_POLICY)
		r = (int)syscall(SYS_mbind, s->base, EDGE, 1 /* MPOL_PREFERRED */, &node0, 64ul,
				 0u);
	else if (how == BY_DONTDUMP)
		r = madvise(s->base, EDGE, MADV_DONTDUMP);
	else
		r = madvise(s->base, EDGE, MADV_SEQUENTIAL);
	ck_assert_int_eq(r, 0);
}

static bool prefetched(void *arg)
{
	return stats_of(arg).pages_prefetch >= 4 * MIB / PAGE;
}

TEST(k4_15_a_prefetch_across_two_mappings)
{
	for (unsigned int k = 0; k < 2; k++)
		for (int how = 0; how < DIVISIONS; how++) {
			struct kvmem_run run;
			struct set s;

			if (!open_set(&s, kinds[k], BYTES))
				return;
			use_memory(&s);
			must(kvmem_pager_create(&s.opts, &s.pager));
			must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
			divide(&s, (enum divide)how);
			must(kvmem_pager_start(s.pager));
			run = (struct kvmem_run){ s.ram, 6 * MIB, 4 * MIB };
			must(prefetch_runs(s.pager, &run, 1));
			ck_assert(harness_wait(prefetched, &s, 20));
			must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
			check_all(&s);
			close_set(&s);
		}
}
END

TEST(k4_15_populate_and_mark_present_across_two_mappings)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct kvmem_populate_opts po = KVMEM_POPULATE_OPTS_INIT;
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		must(kvmem_pager_create(&s.opts, &s.pager));
		must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
		divide(&s, BY_DONTDUMP);
		must(kvmem_pager_start(s.pager));
		if (kinds[k] == KVMEM_BACKING_MEMFD) {
			ck_assert_int_eq(pwrite(kvmem_region_fd(s.ram), s.content + 7 * MIB,
						2 * MIB, 7 * MIB),
					 2 * MIB);
			must(kvmem_region_mark_present(s.ram, 7 * MIB, 2 * MIB));
		}
		must(kvmem_populate(s.ram, 0, s.source, &po, NULL));
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_set(&s);
	}
}
END

/* ---- K5: every event gets an answer ---- */

/*
 * Page 9 is present and removed; then one batch holds a fault that continues a sequence, whose window covers
 * page 9, and a fault on page 9 itself.
 */
TEST(k5_16_window_covers_other_fault)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct toucher a, b;
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		s.opts.flags =
			KVMEM_PAGER_NO_THREADS; /* who touches is another thread, served from here */
		s.opts.fault_around = 16 * PAGE;
		start_set(&s);
		for (uint64_t page = 0; page < 3; page++) {
			start_touch(&a, &s, page == 2 ? 40 : page);
			for (unsigned int i = 0; i < 2000 && !is_done(&a); i++) {
				must(kvmem_pager_handle(s.pager));
				poll(NULL, 0, 1);
			}
			join_touch(&a);
		}
		ck_assert_int_eq(madvise(s.base + 40 * PAGE, PAGE, MADV_DONTNEED), 0);
		start_touch(&a, &s, 32);
		start_touch(&b, &s, 40);
		harness_wait(in_fault, &a, 5);
		harness_wait(in_fault, &b, 5);
		for (unsigned int i = 0; i < 5000 && !(is_done(&a) && is_done(&b)); i++) {
			must(kvmem_pager_handle(s.pager));
			poll(NULL, 0, 1);
		}
		join_touch(&a);
		join_touch(&b);
		ck_assert_int_eq(b.first,
				 kinds[k] == KVMEM_BACKING_MEMFD ? s.content[40 * PAGE] : 0);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
		close_set(&s);
	}
}
END

/* A source that counts, is told to wait, to fail, and whom to tell. */
struct talker {
	struct set *s;
	_Atomic unsigned int reads, extents;
	_Atomic bool broken;
	_Atomic uint64_t broken_page; /* UINT64_MAX: all of them */
	_Atomic int fail_reads;	      /* so many from now on */
	void (*on_read)(struct talker *t, uint64_t page);
	void *arg;
	_Atomic unsigned int whys[4];
	_Atomic int answer;  /* of `fail` */
	_Atomic int refused; /* calls that are */
	_Atomic unsigned int completed;
};

static int talk(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct talker *t = arg;
	uint64_t page = offset / PAGE, bad = atomic_load(&t->broken_page);

	atomic_fetch_add(&t->reads, 1);
	if (t->on_read)
		t->on_read(t, page);
	/* Taken, not looked at first: two readers at once would take it below zero. */
	if (atomic_load(&t->fail_reads) > 0 && atomic_fetch_sub(&t->fail_reads, 1) > 0)
		return -EIO;
	if (atomic_load(&t->broken) &&
	    (bad == UINT64_MAX || (offset <= bad * PAGE && bad * PAGE < offset + bytes)))
		return -EIO;
	memcpy(buf, t->s->content + offset, bytes);
	return 0;
}

static enum kvmem_fail_action on_fail(void *arg, const struct kvmem_fail *f)
{
	struct talker *t = arg;

	ck_assert_uint_lt(f->why, 4);
	atomic_fetch_add(&t->whys[f->why], 1);
	return (enum kvmem_fail_action)atomic_load(&t->answer);
}

static void on_complete(void *arg)
{
	atomic_fetch_add(&((struct talker *)arg)->completed, 1);
}

static bool open_talker(struct talker *t, struct set *s, enum kvmem_backing backing, uint64_t bytes,
			uint32_t source_flags)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	memset(t, 0, sizeof(*t));
	t->s = s;
	atomic_store(&t->broken_page, UINT64_MAX);
	if (!open_set(s, backing, bytes))
		return false;
	catch_signals();
	ops.read = talk;
	ops.flags = source_flags;
	must(kvmem_source_callback(&ops, t, bytes, &s->source));
	s->opts.arg = t;
	return true;
}

static void touch_last_page(struct talker *t, uint64_t page)
{
	struct toucher *touching = t->arg;

	if (page >= 64 && !touching->begun && !touching->s) {
		start_touch(touching, t->s, PAGES - 1);
		ck_assert(harness_wait(in_fault, touching, 20));
	}
}

TEST(k5_17_stop_without_threads_serves_faults_while_it_fills)
{
	struct toucher touching = { 0 };
	unsigned int at_touch = 0;
	struct talker t;
	struct set s;

	if (!open_talker(&t, &s, KVMEM_BACKING_MEMFD, BYTES, 0))
		return;
	t.on_read = touch_last_page;
	t.arg = &touching;
	s.opts.flags = KVMEM_PAGER_NO_THREADS;
	start_set(&s);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	join_touch(&touching);
	(void)at_touch;
	ck_assert_uint_eq(stats_of(&s).pages_demand, 1); /* it did not wait for its turn */
	check_all(&s);
	close_set(&s);
}
END

/* Touchers that go on from one source to the next; a word of the content is never zero. */
static _Atomic bool touching_on;

static void *touch_on_and_on(void *arg)
{
	const struct set *s = arg;
	unsigned long long seed = (unsigned long long)syscall(SYS_gettid);

	while (atomic_load(&touching_on)) {
		uint64_t page = harness_random(&seed) % PAGES;

		ck_assert_msg(*(volatile uint64_t *)(s->base + page * PAGE) ==
				      *(uint64_t *)(s->content + page * PAGE),
			      "page %lu is not the source's", (unsigned long)page);
	}
	return NULL;
}

TEST(k5_18_hand_back_and_the_next_source_without_a_gap)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct kvmem_source *second;
		pthread_t id[3];
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		must(kvmem_source_memory(s.content, BYTES, &second));
		s.opts.fault_around = PAGE;
		s.opts.workers = 1 + k;
		start_set(&s);
		atomic_store(&touching_on, true);
		for (unsigned int i = 0; i < 3; i++)
			ck_assert_int_eq(pthread_create(&id[i], NULL, touch_on_and_on, &s), 0);
		for (unsigned int i = 0; i < 40; i++) {
			must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
			ck_assert_int_eq(kvmem_region_free(s.ram), -EBUSY);
			must(kvmem_pager_set_source(s.pager, s.ram, i % 2 ? s.source : second, 0));
			must(kvmem_pager_start(s.pager));
			poll(NULL, 0, 1);
		}
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		atomic_store(&touching_on, false);
		for (unsigned int i = 0; i < 3; i++)
			pthread_join(id[i], NULL);
		check_all(&s);
		close_set(&s);
		must(kvmem_source_free(second));
	}
}
END

TEST(k5_18_populate_lets_go_who_waits_after_hand_back)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct toucher data, hole;
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_file(&s);
		start_set(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
		start_touch(&data, &s, 5);
		start_touch(&hole, &s, MIB / PAGE + 5);
		ck_assert(harness_wait(in_fault, &data, 20));
		ck_assert(harness_wait(in_fault, &hole, 20));
		must(kvmem_populate(s.ram, 0, s.source, NULL, NULL));
		join_touch(&data);
		join_touch(&hole);
		ck_assert_uint_eq(data.first, s.content[5 * PAGE]);
		ck_assert_uint_eq(hole.first, 0);
		must(kvmem_pager_free(s.pager));
		s.pager = NULL;
		check_all(&s);
		close_set(&s);
	}
}
END

static bool all_there(void *arg)
{
	return !stats_of(arg).pages_missing;
}

TEST(k5_19_failures_of_the_background_reach_fail)
{
	struct talker t;
	struct set s;

	if (!open_talker(&t, &s, KVMEM_BACKING_MEMFD, MIB, 0))
		return;
	s.opts.flags = KVMEM_PAGER_BACKGROUND;
	s.opts.fail = on_fail;
	s.opts.shards = 1;
	t.answer = KVMEM_FAIL_LEAVE;
	t.broken_page = 100;
	t.broken = true;
	start_set(&s);
	ck_assert_int_eq(kvmem_pager_wait(s.pager, -1),
			 -EIO); /* a pass that filled nothing of it */
	ck_assert_uint_eq(stats_of(&s).pages_missing, 1);
	ck_assert_uint_eq(stats_of(&s).pages_poisoned, 0);
	ck_assert_uint_gt(t.whys[KVMEM_FAIL_BACKGROUND], 0);
	ck_assert_uint_eq(t.whys[KVMEM_FAIL_DEMAND], 0);
	t.broken = false;
	ck_assert(harness_wait(all_there, &s, 20)); /* a later pass */
	must(kvmem_pager_wait(s.pager, 20 * NS));
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_all(&s);
	close_set(&s);
}
END

TEST(k5_19_a_passing_error_does_not_end_the_wait)
{
	struct talker t;
	struct set s;

	if (!open_talker(&t, &s, KVMEM_BACKING_MEMFD, 4 * MIB, 0))
		return;
	s.opts.flags = KVMEM_PAGER_BACKGROUND;
	t.fail_reads = 7;
	start_set(&s);
	must(kvmem_pager_wait(s.pager, 20 * NS));
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_all(&s);
	close_set(&s);
}
END

/* ---- K6: progress ---- */

/* Pages of 2 MiB for the time of a test, where this may be had; what was there before is put back. */
static long pages_before = -1;

static long huge_pages(long want)
{
	char text[32] = "";
	int fd = open("/proc/sys/vm/nr_hugepages", O_RDWR | O_CLOEXEC);
	long had = -1;

	if (fd < 0)
		return -1;
	if (read(fd, text, sizeof(text) - 1) > 0)
		had = strtol(text, NULL, 10);
	if (want >= 0) {
		int n = snprintf(text, sizeof(text), "%ld", want);

		if (pwrite(fd, text, (size_t)n, 0) != n)
			had = -1;
	}
	close(fd);
	return had;
}

static bool open_huge(struct set *s, uint64_t bytes)
{
	bool ok;

	pages_before = huge_pages(-1);
	if (pages_before >= 0 && pages_before < (long)(bytes / (2 * MIB)) + 2)
		huge_pages((long)(bytes / (2 * MIB)) + 2);
	ok = open_set(s, KVMEM_BACKING_HUGETLB, bytes);
	if (!ok && pages_before >= 0)
		huge_pages(pages_before);
	return ok;
}

static void close_huge(struct set *s)
{
	close_set(s);
	if (pages_before >= 0)
		huge_pages(pages_before);
}

TEST(k6_20_huge_pages_and_a_source_that_ends_within_one)
{
	static const struct {
		uint64_t bytes, offset;
	} sources[] = { { 5 * MIB + PAGE, 0 }, { BYTES, 3 * PAGE }, { 7 * MIB + 123, PAGE } };

	for (unsigned int i = 0; i < 2 * 3; i++) {
		uint64_t have = sources[i / 2].bytes, offset = sources[i / 2].offset;
		struct kvmem_source *part;
		struct toucher t;
		uint8_t *want;
		struct set s;

		if (!open_huge(&s, BYTES))
			return;
		use_memory(&s);
		must(kvmem_source_memory(s.content, have, &part));
		want = calloc(1, BYTES);
		memcpy(want, s.content + offset, have - offset);
		s.opts.flags = i % 2 ? KVMEM_PAGER_BACKGROUND : 0;
		must(kvmem_pager_create(&s.opts, &s.pager));
		must(kvmem_pager_add(s.pager, s.ram, part, offset, 0));
		must(kvmem_pager_start(s.pager));
		start_touch(&t, &s, 5 * MIB / PAGE);
		join_touch(&t);
		ck_assert_int_eq(memcmp(s.base, want, BYTES), 0);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_huge(&s);
		must(kvmem_source_free(part));
		free(want);
	}
}
END

/* All free huge pages; returns how many. */
static unsigned int take_pool(void **taken, unsigned int max)
{
	unsigned int n = 0;

	for (; n < max; n++) {
		taken[n] = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
		if (taken[n] == MAP_FAILED)
			break;
	}
	return n;
}

/* Read by the kernel, which answers EFAULT where an access would raise SIGBUS. */
static bool reads_as(const struct set *s, uint64_t offset, const uint8_t *want)
{
	uint8_t page[PAGE];
	int fds[2];
	bool same;

	ck_assert_int_eq(pipe2(fds, O_CLOEXEC), 0);
	same = write(fds[1], s->base + offset, PAGE) == (ssize_t)PAGE &&
	       read(fds[0], page, PAGE) == (ssize_t)PAGE && !memcmp(page, want, PAGE);
	close(fds[0]);
	close(fds[1]);
	return same;
}

/* A discarded huge page goes back to the pool, and others may take it. */
TEST(k10_30_the_pool_of_huge_pages_runs_dry)
{
	static const uint8_t zeros[PAGE];
	static void *taken[4096];
	unsigned int n;
	struct set s;

	if (!open_huge(&s, BYTES))
		return;
	use_memory(&s);
	start_set(&s);
	check_page(&s, 0);
	check_page(&s, 5 * MIB / PAGE);
	must(kvmem_region_discard(s.ram, 0, 2 * MIB));
	n = take_pool(taken, 4096);
	/* Zero, or an error where there is no page for it: never what was there before. */
	reads_as(&s, 0, zeros);
	ck_assert(!reads_as(&s, 0, s.content));
	ck_assert(reads_as(&s, 5 * MIB, s.content + 5 * MIB));
	ck_assert(reads_as(&s, 7 * MIB, s.content + 7 * MIB)); /* reserved, and absent so far */
	while (n)
		munmap(taken[--n], 2 * MIB);
	must(kvmem_region_discard(s.ram, 0, 2 * MIB));
	ck_assert(reads_as(&s, 0, zeros));
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	close_huge(&s);
}
END

static int short_extent(void *arg, uint64_t offset, struct kvmem_extent *ret)
{
	struct talker *t = arg;

	atomic_fetch_add(&t->extents, 1);
	ret->kind = KVMEM_EXTENT_DATA;
	ret->offset = offset & ~(uint64_t)(64 * 1024 - 1);
	ret->bytes = 64 * 1024;
	return 0;
}

static int read_ones(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	(void)offset;
	memset(buf, 1, bytes);
	return 0;
}

TEST(k6_22_a_fault_asks_for_a_bounded_number_of_extents)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	const uint64_t bytes = 1ull << 34;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct talker t = { 0 };
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, MIB))
		return;
	must(kvmem_region_free(s.ram));
	o.bytes = bytes;
	o.backing = KVMEM_BACKING_MEMFD;
	must(kvmem_region_create(NULL, &o, &s.ram));
	s.base = kvmem_region_base(s.ram);
	ops.read = read_ones;
	ops.extent = short_extent;
	must(kvmem_source_callback(&ops, &t, bytes, &s.source));
	start_set(&s);
	ck_assert_uint_eq(s.base[bytes / 2], 1);
	ck_assert_uint_le(t.extents, 200);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	close_set(&s);
}
END

/* The background's read does not come back before the fault has been served. */
static void wait_for_toucher(struct talker *t, uint64_t page)
{
	struct toucher *touching = t->arg;

	if (page != PAGES - 1)
		harness_wait(is_done, touching, 20);
}

TEST(k6_23_a_fault_does_not_wait_for_the_reads_of_the_background)
{
	struct toucher touching = { .page = PAGES - 1 };
	struct talker t;
	struct set s;

	if (!open_talker(&t, &s, KVMEM_BACKING_MEMFD, BYTES, 0))
		return;
	touching.s = &s; /* whole before the background looks at it */
	t.on_read = wait_for_toucher;
	t.arg = &touching;
	s.opts.flags = KVMEM_PAGER_BACKGROUND;
	s.opts.shards = 1;
	start_set(&s);
	run_touch(&touching);
	ck_assert_msg(harness_wait(is_done, &touching, 10), "it waits for the background");
	pthread_join(touching.thread, NULL);
	must(kvmem_pager_wait(s.pager, 60 * NS));
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_all(&s);
	close_set(&s);
}
END

/* ---- K7: poison is a state ---- */

#define BAD 77u

static uint32_t state_of(const struct set *s, uint64_t page)
{
	struct kvmem_run run;
	uint32_t state;

	ck_assert_int_eq(kvmem_region_next_run(s->ram, page * PAGE, &run, &state), 1);
	ck_assert_uint_eq(run.offset, page * PAGE);
	return state;
}

static bool is_healed(void *arg)
{
	return state_of(arg, BAD) == KVMEM_PAGE_PRESENT;
}

enum heal { HEAL_POPULATE, HEAL_PREFETCH, HEAL_DISCARD, HEAL_STOP, HEAL_NEXT, HEAL_FREED, HEALS };

static void heal(struct set *s, struct talker *t, enum heal how)
{
	struct kvmem_run run = { s->ram, BAD * PAGE, PAGE };

	t->broken = false;
	switch (how) {
	case HEAL_POPULATE:
		must(kvmem_populate(s->ram, 0, s->source, NULL, NULL));
		break;
	case HEAL_PREFETCH:
		must(prefetch_runs(s->pager, &run, 1));
		ck_assert(harness_wait(is_healed, s, 20));
		break;
	case HEAL_DISCARD:
		must(kvmem_region_discard(s->ram, BAD * PAGE, PAGE));
		memset(s->content + BAD * PAGE, 0, PAGE);
		break;
	case HEAL_STOP:
		must(kvmem_pager_stop(s->pager, KVMEM_STOP_FILL));
		break;
	case HEAL_NEXT:
		must(kvmem_pager_stop(s->pager, KVMEM_STOP_HAND_BACK));
		must(kvmem_pager_start(s->pager));
		break; /* the first access already waits for the content */
	default:       /* the marks outlive the pager */
		must(kvmem_pager_stop(s->pager, KVMEM_STOP_HAND_BACK));
		must(kvmem_pager_free(s->pager));
		s->pager = NULL;
		must(kvmem_populate(s->ram, 0, s->source, NULL, NULL));
	}
}

TEST(k7_24_a_poisoned_page_is_known_and_healed)
{
	for (unsigned int k = 0; k < 2; k++)
		for (int how = 0; how < HEALS; how++) {
			struct talker t;
			struct set s;

			if (!open_talker(&t, &s, kinds[k], MIB, 0))
				return;
			t.broken_page = BAD;
			t.broken = true;
			start_set(&s);
			ck_assert_int_ne(access_page(&s, BAD), 0);
			ck_assert_uint_eq(state_of(&s, BAD), KVMEM_PAGE_POISONED);
			ck_assert_uint_eq(stats_of(&s).pages_poisoned, 1);
			ck_assert_int_ne(access_page(&s, BAD), 0);
			heal(&s, &t, (enum heal)how);
			ck_assert_int_eq(access_page(&s, BAD), 0);
			check_page(&s, BAD);
			ck_assert_uint_ne(state_of(&s, BAD), KVMEM_PAGE_POISONED);
			if (s.pager)
				ck_assert_uint_eq(stats_of(&s).pages_poisoned, 0);
			if (s.pager && how != HEAL_STOP)
				must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
			check_all(&s);
			close_set(&s);
		}
}
END

/* ---- K8: removal while it is being filled ---- */

struct remover {
	struct set *s;
	int advice; /* one that takes the content too, so that it does not matter what was there before */
	pthread_t thread;
	_Atomic bool begun, done;
	_Atomic pid_t tid;
};

static void *remove_half(void *arg)
{
	struct remover *r = arg;

	r->tid = (pid_t)syscall(SYS_gettid);
	ck_assert_int_eq(madvise(r->s->base + BYTES / 2, BYTES / 2, r->advice), 0);
	r->done = true;
	return NULL;
}

/* Its event is queued, and waits to be read, maybe by the thread that waits here; or has been read. */
static bool has_removed(void *arg)
{
	struct remover *r = arg;

	return r->done || (r->tid && is_asleep(r->tid));
}

/* The first read of the removed half: the removal is on its way before it comes back. */
static void remove_meanwhile(struct talker *t, uint64_t page)
{
	struct remover *r = t->arg;

	if (page >= PAGES / 2 && !atomic_exchange(&r->begun, true)) {
		ck_assert_int_eq(pthread_create(&r->thread, NULL, remove_half, r), 0);
		ck_assert(harness_wait(has_removed, r, 20));
	}
}

static void remove_under_a_fill(enum kvmem_backing backing, unsigned int workers, bool by_stop,
				bool populate)
{
	static const uint8_t zero[PAGE];
	struct remover r = { 0 };
	struct talker t;
	struct set s;

	if (!open_talker(&t, &s, backing, BYTES, KVMEM_SOURCE_CHEAP))
		return;
	t.on_read = remove_meanwhile;
	t.arg = &r;
	r.s = &s;
	r.advice = backing == KVMEM_BACKING_ANONYMOUS ? MADV_DONTNEED : MADV_REMOVE;
	s.opts.shards = 1;
	s.opts.workers = workers;
	start_set(&s);
	if (by_stop) {
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	} else if (populate) {
		must(kvmem_populate(
			s.ram, BYTES / 2, s.source,
			&(struct kvmem_populate_opts){ .size = sizeof(struct kvmem_populate_opts),
						       .source_offset = BYTES / 2 },
			NULL));
	} else {
		(void)*(volatile uint8_t *)(s.base + BYTES / 2 + 100 * PAGE);
		for (uint64_t page = PAGES / 2; page < PAGES; page++)
			(void)*(volatile uint8_t *)(s.base + page * PAGE);
	}
	ck_assert(r.begun);
	pthread_join(r.thread, NULL);
	for (uint64_t page = PAGES / 2; page < PAGES; page++)
		ck_assert_msg(!memcmp(s.base + page * PAGE, zero, PAGE),
			      "%u workers: page %lu is back", workers, (unsigned long)page);
	if (!by_stop)
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	close_set(&s);
}

TEST(k8_25_what_is_removed_during_a_read_stays_zero)
{
	for (unsigned int workers = 1; workers <= 4; workers++)
		remove_under_a_fill(KVMEM_BACKING_ANONYMOUS, workers, false, false);
	for (unsigned int workers = 1; workers <= 2; workers++) {
		remove_under_a_fill(KVMEM_BACKING_ANONYMOUS, workers, true, false);
		remove_under_a_fill(KVMEM_BACKING_ANONYMOUS, workers, false, true);
		remove_under_a_fill(KVMEM_BACKING_MEMFD, workers, false, false);
	}
}
END

/* ---- K9: callbacks and completion ---- */

TEST(k9_26_complete_comes_when_populate_fills_the_last_page)
{
	for (unsigned int flags = 0; flags <= KVMEM_PAGER_NO_THREADS;
	     flags += KVMEM_PAGER_NO_THREADS)
		for (unsigned int i = 0; i < 50; i++) {
			_Atomic unsigned int *completed;
			struct talker t;
			struct set s;

			if (!open_talker(&t, &s, KVMEM_BACKING_MEMFD, MIB, 0))
				return;
			completed = &t.completed;
			s.opts.flags = flags;
			s.opts.complete = on_complete;
			start_set(&s);
			must(kvmem_populate(s.ram, 0, s.source, NULL, NULL));
			ck_assert_uint_eq(*completed, 1);
			if (flags) {
				struct pollfd p = { .fd = kvmem_pager_fd(s.pager),
						    .events = POLLIN };

				ck_assert_int_eq(poll(&p, 1, 0),
						 1); /* the caller's loop hears of it */
			}
			must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
			ck_assert_uint_eq(*completed, 1);
			close_set(&s);
		}
}
END

static struct set *called_set;

/* All that would wait for the thread that it is called from. */
static void call_all(struct talker *t)
{
	struct set *s = called_set;

	if (kvmem_region_discard(s->ram, 0, PAGE) == -EDEADLK)
		atomic_fetch_add(&t->refused, 1);
	if (kvmem_populate(s->ram, 0, s->source, NULL, NULL) == -EDEADLK)
		atomic_fetch_add(&t->refused, 1);
	if (kvmem_region_mark_present(s->ram, 0, PAGE) == -EDEADLK)
		atomic_fetch_add(&t->refused, 1);
	if (kvmem_pager_stop(s->pager, KVMEM_STOP_HAND_BACK) == -EDEADLK)
		atomic_fetch_add(&t->refused, 1);
	if (kvmem_pager_free(s->pager) == -EDEADLK)
		atomic_fetch_add(&t->refused, 1);
	if (kvmem_pager_wait(s->pager, -1) == -EDEADLK)
		atomic_fetch_add(&t->refused, 1);
	if (kvmem_pager_set_source(s->pager, s->ram, s->source, 0) == -EDEADLK)
		atomic_fetch_add(&t->refused, 1);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "callback"));
	stats_of(s);
}

static void call_from_read(struct talker *t, uint64_t page)
{
	if (page == 3 && !t->completed++)
		call_all(t);
}

static enum kvmem_fail_action call_from_fail(void *arg, const struct kvmem_fail *f)
{
	struct talker *t = arg;

	(void)f;
	call_all(t);
	atomic_store(&t->broken, false);
	return KVMEM_FAIL_RETRY;
}

static void call_from_complete(void *arg)
{
	call_all(arg);
}

TEST(k9_27_calls_that_would_wait_for_themselves_are_refused)
{
	for (unsigned int from = 0; from < 3; from++) {
		struct talker t;
		struct set s;

		if (!open_talker(&t, &s, KVMEM_BACKING_MEMFD, MIB, 0))
			return;
		called_set = &s;
		if (from == 0)
			t.on_read = call_from_read;
		if (from == 1) {
			s.opts.fail = call_from_fail;
			t.broken_page = 3;
			t.broken = true;
		}
		if (from == 2)
			s.opts.complete = call_from_complete;
		start_set(&s);
		check_page(&s, 3);
		check_all(&s);
		must(kvmem_pager_wait(s.pager, 20 * NS));
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		ck_assert_int_eq(t.refused, 7);
		close_set(&s);
	}
}
END

TEST(k9_28_who_was_woken_finds_himself_counted)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		s.opts.fault_around = PAGE;
		start_set(&s);
		for (uint64_t page = 0; page < PAGES; page++) {
			struct kvmem_pager_stats st;
			uint64_t served = 0;

			(void)*(volatile uint8_t *)(s.base + page * PAGE);
			st = stats_of(&s);
			for (unsigned int i = 0; i < KVMEM_HIST_BUCKETS; i++)
				served += st.service_ns[i];
			ck_assert_uint_eq(st.pages_demand, page + 1);
			ck_assert_uint_eq(st.pages_missing, PAGES - page - 1);
			ck_assert_uint_ge(served, page + 1);
		}
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_set(&s);
	}
}
END

/* ---- K11: pages that nothing has announced ---- */

TEST(k11_33_the_pager_takes_no_page_that_nothing_has_announced)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct kvmem_run run;
		uint32_t state;
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		/* A guest ran without a pager. In base pages: a huge one makes all of it exist. */
		madvise(s.base, BYTES, MADV_NOHUGEPAGE);
		memset(s.base + 3 * MIB, 0x5a, 5 * PAGE);
		must(kvmem_pager_create(&s.opts, &s.pager));
		ck_assert_int_eq(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0), -EEXIST);
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), " 5 pages"));
		ck_assert_uint_eq(s.base[3 * MIB], 0x5a);
		ck_assert_int_eq(kvmem_pager_add(s.pager, s.ram, s.source, 0,
						 KVMEM_FILL_KEEP | KVMEM_FILL_OVERWRITE),
				 -EINVAL);
		ck_assert_int_eq(kvmem_pager_add(s.pager, s.ram, s.source, 0, 1), -EINVAL);
		must(kvmem_pager_add(s.pager, s.ram, s.source, 0,
				     k ? KVMEM_FILL_OVERWRITE : KVMEM_FILL_KEEP));
		ck_assert_int_eq(kvmem_region_next_run(s.ram, 3 * MIB, &run, &state), 1);
		ck_assert_uint_eq(state, k ? KVMEM_PAGE_ABSENT : KVMEM_PAGE_PRESENT);
		if (!k)
			memset(s.content + 3 * MIB, 0x5a, 5 * PAGE);
		must(kvmem_pager_start(s.pager));
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_set(&s);
	}
}
END

/* Somebody writes into the file where the source has a hole: zero means zero, on demand and in the background. */
TEST(k11_33_zero_is_zero_on_every_way)
{
	for (unsigned int flags = 0; flags <= KVMEM_PAGER_BACKGROUND;
	     flags += KVMEM_PAGER_BACKGROUND) {
		static const uint8_t stray[PAGE] = { 1, 2, 3 };
		struct set s;

		if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
			return;
		use_file(&s);
		s.opts.flags = flags;
		must(kvmem_pager_create(&s.opts, &s.pager));
		must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
		ck_assert_int_eq(pwrite(kvmem_region_fd(s.ram), stray, PAGE, MIB + 7 * PAGE), PAGE);
		must(kvmem_pager_start(s.pager));
		if (flags)
			must(kvmem_pager_wait(s.pager, 20 * NS));
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		check_all(&s);
		close_set(&s);
	}
}
END

TEST(k11_34_mark_present_of_what_does_not_exist)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		start_set(&s);
		ck_assert_int_eq(kvmem_region_mark_present(s.ram, MIB, 4 * PAGE), -EIO);
		ck_assert_ptr_nonnull(
			strstr(kvmem_error_detail(), "nothing has been written there"));
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_set(&s);
	}
}
END

/* ---- K14: many regions ---- */

TEST(k14_46_three_thousand_regions_under_one_pager)
{
	enum { MANY = 3000 };
	static struct kvmem_region *many[MANY];
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_ANONYMOUS, 64 * MIB))
		return;
	use_memory(&s);
	s.opts.shards = 2;
	must(kvmem_pager_create(&s.opts, &s.pager));
	must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
	o.bytes = 64 * MIB;
	o.backing = KVMEM_BACKING_ANONYMOUS;
	for (unsigned int i = 0; i < MANY; i++) {
		must(kvmem_region_create(NULL, &o, &many[i]));
		must(kvmem_pager_add(s.pager, many[i], s.source, 0, 0));
	}
	must(kvmem_pager_start(s.pager));
	for (unsigned int i = 0; i < MANY; i += 37)
		ck_assert_int_eq(memcmp((uint8_t *)kvmem_region_base(many[i]) + i * PAGE,
					s.content + i * PAGE, PAGE),
				 0);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_pager_free(s.pager));
	s.pager = NULL;
	for (unsigned int i = 0; i < MANY; i++)
		must(kvmem_region_free(many[i]));
	close_set(&s);
}
END

HARNESS_MAIN(T(k4_15_a_prefetch_across_two_mappings),
	     T(k4_15_populate_and_mark_present_across_two_mappings),
	     T(k5_16_window_covers_other_fault),
	     T(k5_17_stop_without_threads_serves_faults_while_it_fills),
	     T(k5_18_hand_back_and_the_next_source_without_a_gap),
	     T(k5_18_populate_lets_go_who_waits_after_hand_back),
	     T(k5_19_failures_of_the_background_reach_fail),
	     T(k5_19_a_passing_error_does_not_end_the_wait),
	     T(k6_20_huge_pages_and_a_source_that_ends_within_one),
	     T(k10_30_the_pool_of_huge_pages_runs_dry),
	     T(k6_22_a_fault_asks_for_a_bounded_number_of_extents),
	     T(k6_23_a_fault_does_not_wait_for_the_reads_of_the_background),
	     T(k7_24_a_poisoned_page_is_known_and_healed),
	     T(k8_25_what_is_removed_during_a_read_stays_zero),
	     T(k9_26_complete_comes_when_populate_fills_the_last_page),
	     T(k9_27_calls_that_would_wait_for_themselves_are_refused),
	     T(k9_28_who_was_woken_finds_himself_counted),
	     T(k11_33_the_pager_takes_no_page_that_nothing_has_announced),
	     T(k11_33_zero_is_zero_on_every_way), T(k11_34_mark_present_of_what_does_not_exist),
	     T(k14_46_three_thousand_regions_under_one_pager))
