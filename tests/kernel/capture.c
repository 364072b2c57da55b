// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The memory of a moment, taken while it is written to: every page once, and as it was. */
#include "capture_rig.h"

#define BYTES (8 * MIB)

/* Why this kernel cannot capture that kind; the test says so and goes on with the next. */
static bool cannot(struct rig *r)
{
	if (kvmem_capture_check(r->capture, r->region) != -EOPNOTSUPP)
		return false;
	harness_note("%s: %s", kind_names[r->kind], kvmem_error_detail());
	return true;
}

static bool open_kind(struct rig *r, enum kind kind, uint64_t bytes)
{
	if (!rig_open(r, kind, bytes)) {
		harness_note("%s: no huge pages", kind_names[kind]);
		return false;
	}
	ck_assert(rig_capture(r));
	if (!cannot(r))
		return true;
	rig_close(r);
	return false;
}

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

/* ---- exactness ---- */

TEST(memory_at_rest_is_captured_by_the_loop_alone)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	for (enum kind kind = 0; kind < KINDS; kind++) {
		static struct rig r; /* writers outlive a test that fails */

		if (open_kind(&r, kind, BYTES)) {
			ck_ok(rig_start(&r));
			ck_ok(rig_drain(&r, HUGE));
			ck_ok(kvmem_capture_stop(r.capture));
			rig_check(&r);
			rig_check_stats(&r);
			ck_assert_uint_eq(atomic_load(&r.callbacks), 0);
			rig_close(&r);
		}
	}
}
END

/* Nobody fetches anything: all that is written comes by the callback, and what is not is left. */
TEST(a_page_that_is_written_comes_first)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	for (enum kind kind = 0; kind < KINDS; kind++) {
		static struct rig r; /* writers outlive a test that fails */

		if (open_kind(&r, kind, BYTES)) {
			uint64_t exists = 0;

			ck_ok(rig_start(&r));
			for (uint64_t at = 0; at < BYTES; at += PAGE)
				both(&r, at + 16, at + 5);
			exists = atomic_load(&r.callbacks);
			ck_assert_uint_gt(exists, BYTES / r.page / 8);
			for (uint64_t at = 0; at < BYTES; at += PAGE)
				both(&r, at + 24, at + 7);
			ck_assert_uint_eq(atomic_load(&r.callbacks), exists);
			ck_ok(rig_drain(&r, HUGE));
			ck_ok(kvmem_capture_stop(r.capture));
			rig_check(&r);
			rig_check_stats(&r);
			ck_assert(!memcmp(r.base, r.model, BYTES));
			rig_close(&r);
		}
	}
}
END

/* Writers at once with two loops, several captures one after the other. */
static void writers_and_loops(enum kind kind)
{
	struct drainer d[2];
	static struct rig r; /* writers outlive a test that fails */

	if (!open_kind(&r, kind, BYTES))
		return;
	writers_start(&r);
	for (unsigned int round = 0; round < 6; round++) {
		writers_go_on(&r);
		ck_ok(rig_start(&r));
		for (unsigned int i = 0; i < 2; i++) {
			d[i] = (struct drainer){ &r, i || r.page == HUGE ? HUGE : 5 * PAGE, 0, 0 };
			ck_assert_int_eq(pthread_create(&d[i].thread, NULL, drainer_run, &d[i]), 0);
		}
		for (unsigned int i = 0; i < 2; i++) {
			pthread_join(d[i].thread, NULL);
			ck_assert_int_eq(d[i].result, 0);
		}
		ck_ok(kvmem_capture_stop(r.capture));
		rig_check(&r);
	}
	rig_check_stats(&r);
	writers_go_on(&r);
	writers_stop(&r);
	ck_assert(!memcmp(r.base, r.model, BYTES));
	rig_close(&r);
}

TEST(writers_on_all_pages_at_once)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	for (enum kind kind = 0; kind < KINDS; kind++) {
		writers_and_loops(kind);
	}
}
END

/* ---- some pages alone ---- */

#define RUNS 60u

/* Anywhere, in any order, over each other; *set has the 4 KiB pages that come by it. */
static void choose_runs(const struct rig *r, struct kvmem_run *runs, bool *set,
			unsigned long long *seed)
{
	uint64_t pages = r->bytes / PAGE, per = r->page / PAGE;

	memset(set, 0, pages * sizeof(*set));
	for (unsigned int i = 0; i < RUNS; i++) {
		uint64_t first = harness_random(seed) % pages, n = 1 + harness_random(seed) % 8;

		if (r->page > PAGE && i > 1) /* else all huge pages would be in it */
			first = runs[i % 2].offset / PAGE;
		n = first + n > pages ? pages - first : n;
		runs[i] = (struct kvmem_run){ r->region, first * PAGE, n * PAGE };
		for (uint64_t p = first / per * per; p < first + n || p % per; p++)
			set[p] = true;
	}
}

static void check_runs(const struct rig *r, const bool *set)
{
	for (uint64_t page = 0; page < r->bytes / PAGE; page++) {
		ck_assert_msg(atomic_load(&r->times[page]) == set[page],
			      "%s: page %lu came %u times", kind_names[r->kind],
			      (unsigned long)page, r->times[page]);
		ck_assert_msg(
			!set[page] || !memcmp(r->image + page * PAGE, r->want + page * PAGE, PAGE),
			"%s: page %lu is not as it was", kind_names[r->kind], (unsigned long)page);
	}
}

static void start_runs(struct rig *r, const struct kvmem_run *runs)
{
	for (uint64_t i = 0; i < r->bytes / PAGE; i++)
		atomic_store(&r->times[i], 0);
	pthread_rwlock_wrlock(&r->pause);
	memcpy(r->want, r->model, r->bytes);
	ck_ok(kvmem_capture_start_runs(r->capture, &r->region, 1, runs, RUNS));
	pthread_rwlock_unlock(&r->pause);
}

static void runs_of(enum kind kind)
{
	static bool set[BYTES / PAGE];
	struct kvmem_run runs[RUNS];
	unsigned long long seed = 50 + kind;
	struct drainer d[2];
	static struct rig r; /* writers outlive a test that fails */

	if (!open_kind(&r, kind, BYTES))
		return;
	writers_start(&r);
	for (unsigned int round = 0; round < 6; round++) {
		choose_runs(&r, runs, set, &seed);
		writers_go_on(&r);
		start_runs(&r, runs);
		if (round % 2)
			writers_go_on(&r);
		for (unsigned int i = 0; i < 2; i++) {
			d[i] = (struct drainer){ &r, i || r.page == HUGE ? HUGE : 5 * PAGE, 0, 0 };
			ck_assert_int_eq(pthread_create(&d[i].thread, NULL, drainer_run, &d[i]), 0);
		}
		for (unsigned int i = 0; i < 2; i++) {
			pthread_join(d[i].thread, NULL);
			ck_assert_int_eq(d[i].result, 0);
		}
		ck_ok(kvmem_capture_stop(r.capture));
		check_runs(&r, set);
	}
	writers_go_on(&r);
	writers_stop(&r);
	ck_assert(!memcmp(r.base, r.model, BYTES));
	rig_close(&r);
}

TEST(some_pages_alone_while_all_are_written)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	for (enum kind kind = 0; kind < KINDS; kind++) {
		runs_of(kind);
	}
}
END

CAPTURE_MAIN(T(memory_at_rest_is_captured_by_the_loop_alone), T(a_page_that_is_written_comes_first),
	     T(writers_on_all_pages_at_once), T(some_pages_alone_while_all_are_written))
