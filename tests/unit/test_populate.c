// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_populate(): ranges, zero and hole skipping, the presence map, progress, bad arguments. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fill_rig.h"

static const uint32_t methods[] = { KVMEM_FILL_AUTO, KVMEM_FILL_WRITE, KVMEM_FILL_POPULATE_COPY,
				    KVMEM_FILL_COPY };

TEST(every_method_gives_the_same_memory)
{
	struct rig g;

	for (int kind = RIG_MEMFD; kind <= RIG_ANON; kind++) {
		for (size_t m = 0; m < KM_ARRAY_SIZE(methods); m++) {
			uint64_t stored = 0;

			rig_init(&g, (enum rig_kind)kind, 0);
			rig_memory_source(&g);
			g.opts.method = methods[m];
			if (kind == RIG_ANON && methods[m] == KVMEM_FILL_WRITE) {
				ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
				rig_free(&g);
				continue;
			}
			ck_assert_int_eq(rig_populate(&g, 0), 0);
			if (methods[m])
				ck_assert_uint_eq(g.res.method, methods[m]);
			for (uint64_t p = 0; p < PAGES; p++) {
				bool zero = km_is_zero(g.content + p * PAGE, PAGE);

				stored += zero ? 0 : PAGE;
				ck_assert_int_eq(km_presence_get(&g.r.presence, p),
						 zero ? KM_ZERO : KM_PRESENT);
				ck_assert_int_eq(rig_allocated(&g, p), !zero);
			}
			if (methods[m] == KVMEM_FILL_WRITE)
				ck_assert_uint_eq(g.res.bytes_written, stored);
			else if (methods[m])
				ck_assert_uint_eq(g.res.bytes_copied, stored);
			ck_assert_uint_eq(g.res.bytes_zero, BYTES - stored);
			ck_assert_uint_eq(g.res.threads, 1);
			ck_assert_uint_eq(g.res.file_method, 0);
			rig_expect(&g);
			rig_free(&g);
		}
	}
}
END

TEST(any_offset_and_length)
{
	static const uint64_t odd[][3] = {
		/* offset, source offset, bytes */
		{ 1, 1, 1 },
		{ 0, 0, 100 },
		{ 4095, 8191, 2 },
		{ 5000, 5000, 3000 },
		{ 8192, 8193, 4096 },
		{ 3 * PAGE + 17, 40 * PAGE + 17, 100 * PAGE },
		{ 3 * PAGE + 17, 33, 10 * PAGE + 5 },
		{ 65 * PAGE, 10 * PAGE, 30 * PAGE },
		{ BYTES - 5, 4101, 5 },
		{ 7, BYTES - 3 * PAGE - 9, 0 },
		{ BYTES - 100 * PAGE, 999, 0 },
		{ 15 * PAGE + 100, 15 * PAGE + 100, 18 * PAGE },
	};
	static const unsigned int orders[] = { 0, 2, 4 };
	struct rig g;

	for (size_t i = 0; i < KM_ARRAY_SIZE(odd) * KM_ARRAY_SIZE(orders); i++) {
		const uint64_t *o = odd[i / KM_ARRAY_SIZE(orders)];

		for (size_t m = 0; m < KM_ARRAY_SIZE(methods); m++) {
			rig_init(&g, RIG_MEMFD, orders[i % KM_ARRAY_SIZE(orders)]);
			rig_memory_source(&g);
			g.opts.method = methods[m];
			g.opts.source_offset = o[1];
			g.opts.bytes = o[2];
			ck_assert_int_eq(rig_populate(&g, o[0]), 0);
			rig_expect(&g);
			rig_free(&g);
		}
	}
}
END

TEST(keep_zero_allocates_everything)
{
	struct rig g;

	for (size_t m = 0; m < KM_ARRAY_SIZE(methods); m++) {
		int fd;

		rig_init(&g, RIG_MEMFD, 0);
		fd = rig_content_file(&g, "/dev/shm");
		rig_file_source(&g, fd);
		g.opts.method = methods[m];
		g.opts.flags = KVMEM_POPULATE_KEEP_ZERO;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_eq(g.res.bytes_copied + g.res.bytes_written + g.res.bytes_read,
				  BYTES);
		for (uint64_t p = 0; p < PAGES; p++)
			ck_assert(rig_allocated(&g, p));
		rig_expect(&g);
		close(fd);
		rig_free(&g);
	}
}
END

static uint64_t read_from, read_to;

static int64_t watch_pread(int fd, void *buf, size_t len, uint64_t off)
{
	if (off < read_to && off + len > read_from)
		ck_abort_msg("a hole is read at 0x%lx", (unsigned long)off);
	return km_real_pread(fd, buf, len, off);
}

TEST(holes_are_never_read)
{
	struct rig g;
	int fd;

	for (unsigned int order = 0; order <= 4; order += 2) {
		rig_init(&g, RIG_MEMFD, order);
		fd = rig_content_file(&g, "/dev/shm");
		rig_file_source(&g, fd);
		read_from = 16 * PAGE;
		read_to = 32 * PAGE;
		fake.pread = watch_pread;
		g.opts.file_method = KVMEM_FILE_PREAD;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_eq(g.res.bytes_hole, 16 * PAGE);
		ck_assert_uint_eq(g.res.file_method, KVMEM_FILE_PREAD);
		rig_expect(&g);
		close(fd);
		rig_free(&g);
	}
}
END

TEST(holes_that_begin_and_end_within_pages)
{
	struct rig g;
	int fd;

	for (unsigned int order = 0; order <= 4; order += 2) {
		for (uint64_t shift = 1; shift < 3 * PAGE; shift += 1337) {
			rig_init(&g, RIG_MEMFD, order);
			fd = rig_content_file(&g, "/dev/shm");
			rig_file_source(&g, fd);
			g.opts.source_offset = 5 * PAGE + shift;
			g.opts.bytes = 60 * PAGE + 7;
			ck_assert_int_eq(rig_populate(&g, 3 * PAGE), 0);
			/* The hole is 16 pages long: the page at either end may hold some data. */
			ck_assert_uint_le(g.res.bytes_hole, 16 * PAGE);
			if (!order)
				ck_assert_uint_ge(g.res.bytes_hole, 14 * PAGE);
			rig_expect(&g);
			close(fd);
			rig_free(&g);
		}
	}
}
END

TEST(huge_pages_are_made_when_any_part_is_data)
{
	struct rig g;

	rig_init(&g, RIG_MEMFD, 4);
	rig_memory_source(&g);
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	for (uint64_t p = 0; p < g.r.presence.pages; p++)
		ck_assert_int_eq(km_presence_get(&g.r.presence, p), p == 1 ? KM_ZERO : KM_PRESENT);
	rig_expect(&g);
	rig_free(&g);
}
END

TEST(what_is_there_is_left_alone)
{
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	memset(g.r.base + 40 * PAGE, 0x77, 3 * PAGE);
	ck_assert_uint_eq(km_presence_claim(&g.r.presence, 40, 3), 3);
	km_presence_publish(&g.r.presence, 40, 2, KM_PRESENT);
	km_presence_publish(&g.r.presence, 42, 1, KM_ZERO);
	g.opts.bytes = BYTES - 100;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(g.res.bytes_present, 3 * PAGE);
	memset(g.want + 40 * PAGE, 0x77, 3 * PAGE);
	rig_expect(&g);
	memset(g.content, 0x11, BYTES);
	ck_assert_int_eq(kvmem_populate(&g.r, 0, g.source, &g.opts, &g.res), 0);
	ck_assert_uint_eq(g.res.bytes_present, BYTES - 100);
	rig_expect(&g);
	rig_free(&g);
}
END

struct other {
	struct rig *g;
	bool give_up;
	_Atomic bool go;
};

/* Has pages 100..119 claimed, and is done with them once populate has passed over them. */
static void *other_filler(void *arg)
{
	struct other *o = arg;

	while (!atomic_load(&o->go))
		sched_yield();
	if (o->give_up) {
		km_presence_abandon(&o->g->r.presence, 100, 20);
	} else {
		memcpy(o->g->r.base + 100 * PAGE, o->g->content + 100 * PAGE, 20 * PAGE);
		km_presence_publish(&o->g->r.presence, 100, 20, KM_PRESENT);
	}
	return NULL;
}

static int let_go(void *arg, const struct kvmem_progress *p)
{
	struct other *o = arg;

	if (p->done >= p->total - 20 * PAGE)
		atomic_store(&o->go, true);
	return 0;
}

TEST(pages_claimed_by_others_are_waited_for)
{
	for (int give_up = 0; give_up < 2; give_up++) {
		struct rig g;
		struct other o = { .g = &g, .give_up = give_up };
		pthread_t t;

		rig_init(&g, RIG_MEMFD, 0);
		rig_memory_source(&g);
		ck_assert_uint_eq(km_presence_claim(&g.r.presence, 100, 20), 20);
		g.opts.progress = let_go;
		g.opts.progress_arg = &o;
		ck_assert_int_eq(pthread_create(&t, NULL, other_filler, &o), 0);
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		pthread_join(t, NULL);
		ck_assert_uint_eq(g.res.bytes_present, give_up ? 0 : 20 * PAGE);
		rig_expect(&g);
		rig_free(&g);
	}
}
END

struct script {
	struct rig *g;
	uint64_t bad; /* reads that touch this offset fail */
	int error;
};

static int script_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct script *s = arg;

	if (s->error && offset <= s->bad && s->bad < offset + bytes)
		return s->error;
	memcpy(buf, s->g->content + offset, bytes);
	return 0;
}

static void callback_source(struct rig *g, struct script *s)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	s->g = g;
	ops.read = script_read;
	ck_assert_int_eq(kvmem_source_callback(&ops, s, BYTES, &g->source), 0);
}

TEST(a_source_error_in_the_middle)
{
	for (unsigned int threads = 1; threads <= 3; threads++) {
		struct script s = { .bad = 130 * PAGE + 5, .error = -ESTALE };
		uint64_t present = 0;
		struct rig g;

		rig_init(&g, RIG_MEMFD, 0);
		callback_source(&g, &s);
		g.opts.threads = threads;
		g.opts.chunk_bytes = 16 * PAGE;
		ck_assert_int_eq(rig_populate(&g, 0), -ESTALE);
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "offset 0x80000"));
		for (uint64_t p = 0; p < PAGES; p++) {
			enum km_page_state state = km_presence_get(&g.r.presence, p);

			ck_assert_int_ne(state, KM_CLAIMED);
			present += state != KM_ABSENT;
			if (state == KM_ABSENT)
				ck_assert(km_is_zero(g.r.base + p * PAGE, PAGE));
		}
		ck_assert_int_eq(km_presence_get(&g.r.presence, 130), KM_ABSENT);
		ck_assert_uint_eq(rig_sum(&g), present * PAGE);

		s.error = 0;
		g.opts.flags = KVMEM_FILL_OVERWRITE; /* looking at them has made the absent ones */
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_ge(g.res.bytes_present, present * PAGE);
		rig_expect(&g);
		rig_free(&g);
	}
}
END

/* The first fill dies with content stored; then a source of zeros fills. */
TEST(nothing_of_a_failed_fill_remains)
{
	struct script s = { .bad = 75 * PAGE, .error = -EIO };
	struct rig g;

	rig_init(&g, RIG_MEMFD, 7); /* two pages of two blocks */
	callback_source(&g, &s);
	g.opts.method = KVMEM_FILL_WRITE;
	ck_assert_int_eq(rig_populate(&g, 0), -EIO);
	ck_assert_uint_gt(fake.count.pwrite, 0);
	ck_assert_uint_eq(rig_sum(&g), 0);
	s.error = 0;
	memset(g.content, 0, BYTES);
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	rig_expect(&g);
	rig_free(&g);
}
END

static uint64_t last_done, calls;

static int count_progress(void *arg, const struct kvmem_progress *p)
{
	ck_assert_uint_eq(p->total, BYTES);
	ck_assert_uint_ge(p->done, last_done);
	last_done = p->done;
	calls++;
	return arg && p->done >= *(uint64_t *)arg;
}

static int slow_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	uint64_t until = km_sys_now_ns() + 20000000;

	while (km_sys_now_ns() < until)
		sched_yield();
	return script_read(arg, offset, buf, bytes);
}

static void slow_source(struct rig *g, struct script *s)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	s->g = g;
	ops.read = slow_read;
	ck_assert_int_eq(kvmem_source_callback(&ops, s, BYTES, &g->source), 0);
	g->opts.chunk_bytes = 16 * PAGE;
	g->opts.progress = count_progress;
	last_done = calls = 0;
}

TEST(progress_is_told_and_ends_at_the_total)
{
	struct script s = { 0 };
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	slow_source(&g, &s);
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(last_done, BYTES);
	ck_assert_uint_ge(calls, 3); /* 16 chunks of 20 ms, a call each 50 ms */
	ck_assert_uint_le(calls, 17);
	rig_expect(&g);
	rig_free(&g);
}
END

TEST(progress_cancels)
{
	for (unsigned int threads = 1; threads <= 2; threads++) {
		uint64_t enough = BYTES / 8;
		struct script s = { 0 };
		struct rig g;

		rig_init(&g, RIG_MEMFD, 0);
		slow_source(&g, &s);
		g.opts.progress_arg = &enough;
		g.opts.threads = threads;
		ck_assert_int_eq(rig_populate(&g, 0), -ECANCELED);
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "progress"));
		ck_assert_uint_ge(rig_sum(&g), enough);
		ck_assert_uint_lt(rig_sum(&g), BYTES);
		ck_assert_uint_eq(km_presence_missing(&g.r.presence) * PAGE, BYTES - rig_sum(&g));
		g.opts.progress = NULL;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		rig_expect(&g);
		rig_free(&g);
	}
}
END

TEST(many_threads_fill_each_page_once)
{
	for (unsigned int threads = 2; threads <= 8; threads += 3) {
		struct rig g;

		rig_init(&g, RIG_MEMFD, 0);
		rig_memory_source(&g);
		g.opts.threads = threads;
		g.opts.chunk_bytes = PAGE * 3;
		g.opts.method = KVMEM_FILL_WRITE;
		ck_assert_int_eq(rig_populate(&g, 123), 0);
		ck_assert_uint_eq(g.res.threads, threads);
		ck_assert_uint_eq(g.res.bytes_present, 0);
		rig_expect(&g);
		rig_free(&g);
	}
}
END

static int64_t no_threads(struct km_thread *ret, const char *name, const struct km_sys_thread *how,
			  void *(*fn)(void *), void *arg)
{
	(void)ret, (void)name, (void)how, (void)fn, (void)arg;
	return -EAGAIN;
}

TEST(without_threads_the_caller_does_it_all)
{
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	fake.thread_create = no_threads;
	g.opts.threads = 4;
	g.opts.chunk_bytes = 4 * PAGE;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(fake.count.thread_create, 3);
	ck_assert_uint_eq(g.res.threads, 1);
	rig_expect(&g);
	rig_free(&g);
}
END

static __thread int policy;
static int64_t log_policy(int mode, const unsigned long *nodes, unsigned long maxnode)
{
	(void)maxnode;
	policy = nodes && nodes[0] ? mode * 100 + (int)nodes[0] : 0;
	return 0;
}

static int64_t no_policy(int *mode, unsigned long *nodes, unsigned long maxnode, void *addr,
			 unsigned long flags)
{
	(void)nodes, (void)maxnode, (void)addr, (void)flags;
	*mode = 0;
	return 0;
}

static int made_under[PAGES];

static int64_t log_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
	for (uint64_t p = off / PAGE; p < (off + len) / PAGE; p++)
		made_under[p - 1] = policy; /* the region begins a page into its file */
	return km_real_pwrite(fd, buf, len, off);
}

TEST(pages_are_made_under_their_emulated_policy)
{
	for (unsigned int threads = 1; threads <= 3; threads++) {
		struct rig g;
		struct km_policy b = { .offset = 90 * PAGE,
				       .bytes = 166 * PAGE,
				       .mode = 3,
				       .emulated = true,
				       .nodes = { 5 } };
		struct km_policy a = { .next = &b,
				       .offset = 10 * PAGE,
				       .bytes = 30 * PAGE,
				       .mode = 2,
				       .emulated = true,
				       .nodes = { 1 } };

		rig_init(&g, RIG_MEMFD, 0);
		rig_memory_source(&g);
		memset(made_under, 0xff, sizeof(made_under));
		fake.set_mempolicy = log_policy;
		fake.get_mempolicy = no_policy;
		fake.pwrite = log_pwrite;
		g.r.policies = &a;
		g.opts.threads = threads;
		g.opts.method = KVMEM_FILL_WRITE;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		for (int p = 0; p < (int)PAGES; p++) {
			int want = p >= 10 && p < 40 ? 201 : p >= 90 ? 305 : 0;

			if (!km_is_zero(g.content + p * (int)PAGE, PAGE))
				ck_assert_int_eq(made_under[p], want);
		}
		ck_assert_int_eq(policy, 0); /* the calling thread has its own back */
		rig_expect(&g);
		rig_free(&g);
	}
}
END

static _Atomic int near_calls, near_node;

static int64_t log_near(int node)
{
	near_node = node;
	near_calls++;
	return 0;
}

/* By the policy of their share, and only the threads that are the library's own. */
TEST(threads_run_near_the_memory_they_fill)
{
	static const struct {
		unsigned long nodes;
		int calls;
	} cases[] = { { 1ul << 3, 1 }, { 5, 0 } };

	for (size_t i = 0; i < KM_ARRAY_SIZE(cases); i++) {
		struct rig g;
		struct km_policy p = { .bytes = BYTES, .mode = 2, .nodes = { cases[i].nodes } };

		rig_init(&g, RIG_MEMFD, 0);
		rig_memory_source(&g);
		near_calls = 0;
		fake.run_near_node = log_near;
		g.r.policies = &p;
		g.opts.threads = 2;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_int_eq(near_calls, cases[i].calls);
		if (near_calls)
			ck_assert_int_eq(near_node, 3);
		rig_expect(&g);
		rig_free(&g);
	}
}
END

TEST(bad_arguments)
{
	struct rig g;
	struct kvmem_populate_opts o;

	rig_init(&g, RIG_MEMFD, 2);
	rig_memory_source(&g);
#define BAD(offset, want, ...) \
	do { \
		o = (struct kvmem_populate_opts){ __VA_ARGS__ }; \
		o.size = o.size ? o.size : sizeof(o); \
		ck_assert_int_eq(kvmem_populate(&g.r, offset, g.source, &o, NULL), want); \
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "populate")); \
	} while (0)
	BAD(BYTES, -ERANGE, .bytes = 1);
	BAD(BYTES, -ERANGE, .bytes = 0);
	BAD(UINT64_MAX, -ERANGE, .bytes = 2);
	BAD(100, -EINVAL, .bytes = UINT64_MAX);
	BAD(100, -ERANGE, .bytes = BYTES);
	BAD(0, -ENODATA, .source_offset = 10, .bytes = BYTES);
	BAD(0, -ENODATA, .source_offset = BYTES);
	BAD(0, -EINVAL, .flags = 2);
	BAD(0, -EINVAL, .method = 5);
	BAD(0, -EINVAL, .file_method = 4);
	BAD(0, -EINVAL, .vcpu_fd = 1);
	BAD(0, -EINVAL, .threads = 257);
	BAD(0, -EINVAL, .chunk_bytes = PAGE);
	BAD(0, -EINVAL, .size = 8);
	BAD(0, -EOPNOTSUPP, .file_method = KVMEM_FILE_PREAD);
	BAD(0, -EOPNOTSUPP, .method = KVMEM_FILL_UFFD_COPY);
#undef BAD
	ck_assert_int_eq(kvmem_populate(NULL, 0, g.source, NULL, NULL), -EINVAL);
	ck_assert_int_eq(kvmem_populate(&g.r, 0, NULL, NULL, NULL), -EINVAL);
	g.res.size = 4;
	ck_assert_int_eq(kvmem_populate(&g.r, 0, g.source, NULL, &g.res), -EINVAL);
	ck_assert_uint_eq(km_presence_missing(&g.r.presence), PAGES / 4);
	rig_free(&g);
}
END

TEST(names)
{
	ck_assert_str_eq(kvmem_fill_method_name(KVMEM_FILL_POPULATE_COPY), "populate+copy");
	ck_assert_ptr_null(kvmem_fill_method_name(KVMEM_FILL_COPY + 1));
	ck_assert_str_eq(kvmem_file_method_name(KVMEM_FILE_DIRECT), "io_uring+O_DIRECT");
	ck_assert_ptr_null(kvmem_file_method_name(KVMEM_FILE_PREAD + 1));
}
END

HARNESS_MAIN(T(every_method_gives_the_same_memory), T(any_offset_and_length),
	     T(keep_zero_allocates_everything), T(holes_are_never_read),
	     T(holes_that_begin_and_end_within_pages), T(huge_pages_are_made_when_any_part_is_data),
	     T(what_is_there_is_left_alone), T(pages_claimed_by_others_are_waited_for),
	     T(a_source_error_in_the_middle), T(nothing_of_a_failed_fill_remains),
	     T(progress_is_told_and_ends_at_the_total), T(progress_cancels),
	     T(many_threads_fill_each_page_once), T(without_threads_the_caller_does_it_all),
	     T(pages_are_made_under_their_emulated_policy),
	     T(threads_run_near_the_memory_they_fill), T(bad_arguments), T(names))
