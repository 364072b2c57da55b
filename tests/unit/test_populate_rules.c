// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_populate(): pages that nobody has announced, poison, claims of others, calls from callbacks. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fill_rig.h"

/* ---- pages that nobody has announced ---- */

static const unsigned int by_hand[] = { 3, 20, 21, 22, 200 }; /* 20..22: zero in the source */

/* Written with no word to the library; page 50 with one. */
static void write_by_hand(struct rig *g)
{
	for (size_t i = 0; i < KM_ARRAY_SIZE(by_hand); i++)
		memset(g->r.base + by_hand[i] * PAGE, 0x77, PAGE);
	memset(g->r.base + 50 * PAGE, 0x33, PAGE);
	ck_assert_int_eq(kvmem_region_mark_present(&g->r, 50 * PAGE, PAGE), 0);
}

static void want_by_hand(struct rig *g, bool kept)
{
	memcpy(g->want, g->content, BYTES);
	for (size_t i = 0; kept && i < KM_ARRAY_SIZE(by_hand); i++)
		memset(g->want + by_hand[i] * PAGE, 0x77, PAGE);
	memset(g->want + 50 * PAGE, 0x33, PAGE);
}

TEST(k11_33_unannounced_pages_are_refused_with_their_number)
{
	struct rig g;

	for (int kind = RIG_MEMFD; kind <= RIG_ANON; kind++) {
		rig_init(&g, (enum rig_kind)kind, 0);
		rig_memory_source(&g);
		write_by_hand(&g);
		ck_assert_int_eq(rig_populate(&g, 0), -EEXIST);
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "5 pages"));
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "0x3000"));
		ck_assert_uint_eq(km_presence_missing(&g.r.presence), PAGES - 1);
		for (size_t i = 0; i < KM_ARRAY_SIZE(by_hand); i++)
			ck_assert_uint_eq(g.r.base[by_hand[i] * PAGE + 5], 0x77);
		/* A range without any is none of their business, nor is what is present. */
		g.opts.bytes = 40 * PAGE;
		g.opts.source_offset = 40 * PAGE;
		ck_assert_int_eq(kvmem_populate(&g.r, 40 * PAGE, g.source, &g.opts, &g.res), 0);
		ck_assert_uint_eq(g.res.bytes_present, PAGE);
		/* The page in which a range begins counts whole. */
		g.opts.bytes = 10;
		ck_assert_int_eq(kvmem_populate(&g.r, 201 * PAGE - 10, g.source, &g.opts, &g.res),
				 -EEXIST);
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "1 pages"));
		rig_free(&g);
	}
}
END

TEST(k11_33_unannounced_pages_are_kept_or_overwritten)
{
	struct rig g;

	for (int i = 0; i < 4; i++) {
		bool kept = i & 1;

		rig_init(&g, i & 2 ? RIG_ANON : RIG_MEMFD, 0);
		rig_memory_source(&g);
		write_by_hand(&g);
		g.opts.flags = kept ? KVMEM_FILL_KEEP : KVMEM_FILL_OVERWRITE;
		ck_assert_int_eq(kvmem_populate(&g.r, 0, g.source, &g.opts, &g.res), 0);
		ck_assert_uint_eq(rig_sum(&g), BYTES);
		ck_assert_uint_eq(g.res.bytes_present, (kept ? 6 : 1) * PAGE);
		want_by_hand(&g, kept);
		rig_expect(&g);
		ck_assert_uint_eq(km_presence_missing(&g.r.presence), 0);
		rig_free(&g);
	}
	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	g.opts.flags = KVMEM_FILL_KEEP | KVMEM_FILL_OVERWRITE;
	ck_assert_int_eq(rig_populate(&g, 0), -EINVAL);
	rig_free(&g);
}
END

/* A hole of the source is zero, whatever was there: also when it is not stored. */
TEST(k11_33_a_hole_is_zero_over_what_was_there)
{
	struct rig g;
	int fd;

	for (int kind = RIG_MEMFD; kind <= RIG_ANON; kind++) {
		rig_init(&g, (enum rig_kind)kind, 0);
		fd = rig_content_file(&g, "/dev/shm");
		rig_file_source(&g, fd);
		memset(g.r.base + 16 * PAGE, 0x55, 16 * PAGE);
		g.opts.flags = KVMEM_FILL_OVERWRITE;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_eq(g.res.bytes_hole, 16 * PAGE);
		ck_assert(!rig_allocated(&g, 20));
		rig_expect(&g);
		close(fd);
		rig_free(&g);
	}
}
END

TEST(k11_33_an_adopted_file_of_which_nothing_counts)
{
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	memset(g.r.base, 0x55, BYTES);
	g.r.ignore_existing = true;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(g.res.bytes_present, 0);
	rig_expect(&g);
	rig_free(&g);
}
END

TEST(k11_33_a_fresh_region_costs_one_call)
{
	struct rig g;

	for (int kind = RIG_MEMFD; kind <= RIG_ANON; kind++) {
		rig_init(&g, (enum rig_kind)kind, 0);
		rig_memory_source(&g);
		fake.calls = 0;
		ck_assert_int_eq(km_pages_unannounced(&g.r, 0, PAGES, 0, "test"), 0);
		ck_assert_uint_eq(fake.count.fstat + fake.count.mincore, 1);
		/* And a buffer for it; and whether there is swap, which mincore() passes over. */
		ck_assert_uint_eq(fake.calls, kind == RIG_ANON ? 4 : 1);
		rig_free(&g);
	}
}
END

static uint64_t swapped_page;

static int64_t open_swaps(const char *path, int flags)
{
	return strcmp(path, "/proc/swaps") ? km_real_open(path, flags) : 10000;
}

static int64_t read_swaps(int fd, void *buf, size_t len)
{
	static const char text[] = "Filename Type Size Used Priority\n/dev/sda2 partition 8 8 -2\n";

	if (fd != 10000)
		return km_real_read(fd, buf, len);
	memcpy(buf, text, sizeof(text));
	return sizeof(text) - 1;
}

static int64_t pagemap(int fd, void *buf, size_t len, uint64_t off)
{
	int64_t n = km_real_pread(fd, buf, len, off);

	if (n > 0 && off / 8 <= swapped_page && swapped_page < (off + len) / 8)
		((uint64_t *)buf)[swapped_page - off / 8] = 1ull << 62;
	return n;
}

/* A guest ran without a pager, and the kernel has swapped out what it wrote. */
TEST(k9_1_a_page_in_swap_is_unannounced_content)
{
	struct rig g;

	rig_init(&g, RIG_ANON, 0);
	rig_memory_source(&g);
	fake.open = open_swaps;
	fake.read = read_swaps;
	fake.pread = pagemap;
	swapped_page = (uintptr_t)g.r.base / PAGE + 9;
	ck_assert_int_eq(rig_populate(&g, 0), -EEXIST);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "1 pages"));
	ck_assert_uint_eq(km_presence_missing(&g.r.presence), g.r.presence.pages);
	rig_free(&g);
}
END

TEST(k11_33_what_others_fill_meanwhile_is_announced)
{
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	ck_assert_uint_eq(km_presence_claim(&g.r.presence, 8, 4), 4);
	memset(g.r.base + 8 * PAGE, 0x11, 4 * PAGE); /* half way */
	ck_assert_int_eq(km_pages_unannounced(&g.r, 0, PAGES, 0, "test"), 0);
	km_presence_publish(&g.r.presence, 8, 4, KM_PRESENT);
	ck_assert_int_eq(km_pages_unannounced(&g.r, 0, PAGES, 0, "test"), 0);
	rig_free(&g);
}
END

/* ---- poison ---- */

TEST(k7_24_poisoned_pages_are_filled)
{
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	ck_assert_uint_eq(km_presence_claim(&g.r.presence, 10, 30), 30);
	km_presence_publish(&g.r.presence, 10, 30, KM_POISONED);
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(g.res.bytes_present, 0);
	ck_assert_uint_eq(km_presence_missing(&g.r.presence), 0);
	ck_assert_uint_eq(km_presence_poisoned(&g.r.presence), 0);
	rig_expect(&g);
	rig_free(&g);
}
END

/* ---- claims of others ---- */

struct holder {
	struct rig *g;
	uint64_t hold_ns;
	unsigned int ticks;
};

static void *hold(void *arg)
{
	struct holder *h = arg;
	struct timespec ts = { .tv_sec = (time_t)(h->hold_ns / 1000000000u),
			       .tv_nsec = (long)(h->hold_ns % 1000000000u) };

	nanosleep(&ts, NULL);
	memcpy(h->g->r.base + 100 * PAGE, h->g->content + 100 * PAGE, 20 * PAGE);
	km_presence_publish(&h->g->r.presence, 100, 20, KM_PRESENT);
	return NULL;
}

static int count_ticks(void *arg, const struct kvmem_progress *p)
{
	struct holder *h = arg;

	(void)p;
	h->ticks++;
	return 0;
}

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

TEST(k6_21_who_waits_for_a_claim_sleeps_and_tells_progress)
{
	struct rig g;
	struct holder h = { .g = &g, .hold_ns = 600000000 };
	uint64_t cpu;
	pthread_t t;

	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	g.opts.progress = count_ticks;
	g.opts.progress_arg = &h;
	ck_assert_uint_eq(km_presence_claim(&g.r.presence, 100, 20), 20);
	ck_assert_int_eq(pthread_create(&t, NULL, hold, &h), 0);
	g.opts.bytes = PAGE;
	ck_assert_int_eq(rig_populate(&g, 0), 0); /* warm */
	h.ticks = 0;
	g.opts.bytes = 40 * PAGE;
	g.opts.source_offset = 90 * PAGE;
	cpu = cpu_ns();
	ck_assert_int_eq(rig_populate(&g, 90 * PAGE), 0);
	cpu = cpu_ns() - cpu;
	pthread_join(t, NULL);
	ck_assert_uint_ge(g.res.elapsed_ns, 400000000);
	ck_assert_msg(cpu < g.res.elapsed_ns / 50, "%lu ns of CPU in %lu", (unsigned long)cpu,
		      (unsigned long)g.res.elapsed_ns);
	ck_assert_uint_ge(h.ticks, 5);
	ck_assert_uint_le(h.ticks, 20);
	ck_assert_uint_eq(g.res.bytes_present, 20 * PAGE);
	rig_expect(&g);
	rig_free(&g);
}
END

static int cancel(void *arg, const struct kvmem_progress *p)
{
	(void)arg;
	return p->done < p->total;
}

TEST(k6_21_progress_cancels_the_wait)
{
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	ck_assert_uint_eq(km_presence_claim(&g.r.presence, 100, 20), 20);
	g.opts.progress = cancel;
	ck_assert_int_eq(rig_populate(&g, 0), -ECANCELED);
	ck_assert_int_eq(km_presence_get(&g.r.presence, 100), KM_CLAIMED);
	km_presence_abandon(&g.r.presence, 100, 20);
	rig_free(&g);
}
END

/* ---- calls from callbacks ---- */

struct nested {
	struct rig *g, *other;
	int populate, discard, mark, missing, elsewhere;
	unsigned int calls;
};

static void call_all(struct nested *n)
{
	struct kvmem_run run;
	struct rig *g = n->g;

	n->calls++;
	n->populate = kvmem_populate(&g->r, 0, g->source, NULL, NULL);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "kvmem_populate"));
	n->discard = kvmem_region_discard(&g->r, 0, PAGE);
	n->mark = kvmem_region_mark_present(&g->r, 0, PAGE);
	n->missing = kvmem_region_next_missing(&g->r, 0, &run);
	n->elsewhere = kvmem_populate(&n->other->r, 0, n->other->source, NULL, NULL);
}

static int nested_progress(void *arg, const struct kvmem_progress *p)
{
	(void)p;
	call_all(arg);
	return 0;
}

static int nested_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct nested *n = arg;

	memcpy(buf, n->g->content + offset, bytes);
	if (!offset)
		call_all(n);
	return 0;
}

static int nested_extent(void *arg, uint64_t offset, struct kvmem_extent *e)
{
	if (!offset)
		call_all(arg);
	e->kind = KVMEM_EXTENT_DATA;
	e->offset = 0;
	e->bytes = BYTES;
	return 0;
}

static void expect_refused(const struct nested *n)
{
	ck_assert_uint_gt(n->calls, 0);
	ck_assert_int_eq(n->populate, -EDEADLK);
	ck_assert_int_eq(n->discard, -EDEADLK);
	ck_assert_int_eq(n->mark, -EDEADLK);
	ck_assert_int_ge(n->missing, 0);
	ck_assert_int_eq(n->elsewhere, 0);
}

TEST(k9_27_calls_that_would_wait_for_themselves_are_refused)
{
	for (int i = 0; i < 3; i++) {
		struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
		struct rig g, other;
		struct nested n = { .g = &g, .other = &other };
		long allocs;

		rig_init(&other, RIG_ANON, 0);
		rig_memory_source(&other);
		allocs = fake.allocs;
		rig_init(&g, RIG_MEMFD, 0);
		if (i) {
			ops.read = nested_read;
			ops.extent = i == 2 ? nested_extent : NULL;
			ck_assert_int_eq(kvmem_source_callback(&ops, &n, BYTES, &g.source), 0);
		} else {
			rig_memory_source(&g);
			g.opts.progress = nested_progress;
			g.opts.progress_arg = &n;
		}
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		expect_refused(&n);
		rig_expect(&g);
		memcpy(other.want, other.content, BYTES);
		rig_expect(&other);
		/* Outside of the callback nothing is refused. */
		ck_assert_int_eq(kvmem_region_discard(&g.r, 0, PAGE), 0);
		rig_free(&g);
		fake.allocs = allocs; /* two rigs at once: each counts its own */
		rig_free(&other);
	}
}
END

HARNESS_MAIN(T(k11_33_unannounced_pages_are_refused_with_their_number),
	     T(k11_33_unannounced_pages_are_kept_or_overwritten),
	     T(k9_1_a_page_in_swap_is_unannounced_content),
	     T(k11_33_a_hole_is_zero_over_what_was_there),
	     T(k11_33_an_adopted_file_of_which_nothing_counts),
	     T(k11_33_a_fresh_region_costs_one_call),
	     T(k11_33_what_others_fill_meanwhile_is_announced), T(k7_24_poisoned_pages_are_filled),
	     T(k6_21_who_waits_for_a_claim_sleeps_and_tells_progress),
	     T(k6_21_progress_cancels_the_wait),
	     T(k9_27_calls_that_would_wait_for_themselves_are_refused))
