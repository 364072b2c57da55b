// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Differences of a moment, while threads write on as vCPUs do: what was written since the parent comes from these
 * threads themselves, page by page.
 */
#include "live_guest.h"

#include <sys/resource.h>

/* The balloon: some pages are gone, which hides what the parent has. */
static void give_back_pages(void)
{
	for (unsigned int i = 0; i < 2; i++) {
		uint64_t first = harness_random(&g.seed) % (lengths[i] / PAGE - 5);

		must(kvmem_region_discard(g.ram[i], first * PAGE, 5 * PAGE));
		for (uint64_t p = first; p < first + 5; p++)
			g.dirty[g.at[i].gpa / PAGE + p] = true;
	}
}

static uint32_t flags_of(unsigned int depth)
{
	struct kvmem_image_writer *w;
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;

	if (depth % 3 != 1)
		return 0;
	o.flags = KVMEM_IMAGE_PACKED;
	o.regions = g.at;
	o.region_count = 1;
	if (kvmem_image_create("probe", &o, &w))
		return 0; /* a build without zstd */
	kvmem_image_abort(w);
	return KVMEM_IMAGE_PACKED;
}

#define DEPTH 9u

TEST(a_chain_of_moments)
{
	struct kvmem_image *chain[DEPTH];
	struct kvmem_image_writer *w;
	char name[16];

	if (!enter_with_guest())
		return;
	start_writers();
	for (unsigned int depth = 0; depth < DEPTH; depth++) {
		struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
		struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;

		o.threads = depth % 3 + 1;
		snprintf(name, sizeof(name), "%u", depth);
		w = begin(name, depth ? chain[depth - 1] : NULL, flags_of(depth));
		guest_runs();
		pause_guest();
		give_back_pages();
		take_dirty();
		if (depth)
			must(start_dirty(w));
		else
			must(kvmem_image_capture_start(g.capture, w, g.ram, REGIONS, 0));
		memset(g.runs, 0, sizeof(g.runs)); /* read during the call */
		keep_model();
		g.paused = false;
		if (depth % 2)
			guest_runs(); /* most of it comes by writers then */
		must(kvmem_image_capture_run(g.capture, &o, &res));
		must(kvmem_image_commit(w, NULL));
		if (!depth)
			g.pages = PAGES;
		check(name, &res);
		snprintf(name, sizeof(name), "%u.kvmem", depth);
		chain[depth] = open_image(name);
	}
	for (unsigned int depth = DEPTH; depth--;)
		must(kvmem_image_close(chain[depth]));
	stop_writers();
	leave_with_guest();
}
END

/* ---- failures ---- */

static int cancels(void *arg, const struct kvmem_image_progress *p)
{
	(void)arg;
	ck_assert_uint_le(p->done, p->total);
	ck_assert_uint_lt(p->total, BYTES);
	return p->done > 3 * PAGE;
}

static void disk_is_full(void)
{
	struct rlimit before, small;

	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
	small = before;
	small.rlim_cur = 64 * 1024;
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
	g.paused = false;
	fails(kvmem_image_capture_run(g.capture, NULL, NULL), EFBIG, "RLIMIT_FSIZE");
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
}

/* What fails loses nothing: the next image has what was dirty then and what is dirty since. */
TEST(failed_and_once_more)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_image *parent = enter_with_parent();

	if (!parent)
		return;
	start_writers();
	for (unsigned int how = 0; how < 4; how++) {
		w = begin("child", parent, 0);
		guest_runs();
		pause_guest();
		take_dirty();
		must(start_dirty(w));
		fails(start_dirty(w), EBUSY, "already");
		if (how == 0) {
			fails(kvmem_image_capture_stop(g.capture), ECANCELED, "handed out");
		} else if (how == 1) {
			o.progress = cancels;
			fails(kvmem_image_capture_run(g.capture, &o, NULL), ECANCELED, "progress");
		} else if (how == 2) {
			disk_is_full();
		} else {
			keep_model();
			g.paused = false;
			must(kvmem_image_capture_run(g.capture, NULL, &res));
			must(kvmem_image_commit(w, NULL));
			check("child", &res);
			break;
		}
		g.paused = false;
		fails(kvmem_image_commit(w, NULL), EINVAL, "has failed");
		give_dirty_back();
		guest_runs(); /* nobody sleeps in a write */
	}
	stop_writers();
	leave_with_parent(parent);
}
END

/* ---- page by page ---- */

TEST(writes_elsewhere_wait_for_nothing)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_capture_stats s = KVMEM_CAPTURE_STATS_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_image *parent = enter_with_parent();

	if (!parent)
		return;
	guest_writes(5, 1, 77);
	guest_writes(2500, 1, 77); /* anonymous memory */
	if (g.huge)
		guest_writes(3100, 1, 77);
	take_dirty();
	w = begin("child", parent, 0);
	must(start_dirty(w));
	keep_model();
	for (uint64_t p = 0; p < 3072; p++) /* the first two regions */
		if (p % 2048 < 400 || p % 2048 > 500)
			guest_writes(p < 2048 ? (p + 64) % 2048 : p, 2, 78);
	must(kvmem_image_capture_get_stats(g.capture, &s));
	ck_assert_uint_eq(s.bytes_written, PAGE);
	ck_assert_uint_le(s.writers, 1); /* counted after its wait has ended */
	if (g.huge)
		guest_writes(3200, 2,
			     79); /* of the same huge page: it is captured, and not in the image */
	must(kvmem_image_capture_run(g.capture, NULL, &res));
	must(kvmem_image_commit(w, NULL));
	check("child", &res);
	leave_with_parent(parent);
}
END

TEST(nothing_is_dirty)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_image *parent = enter_with_parent();

	if (!parent)
		return;
	take_dirty();
	w = begin("child", parent, 0);
	must(start_dirty(w));
	keep_model();
	guest_writes(5, 1, 77);
	must(kvmem_image_capture_run(g.capture, NULL, &res));
	must(kvmem_image_commit(w, NULL));
	check("child", &res);
	/* Nor has anything been written to a parent's page: without one all others are zero. */
	take_dirty();
	ck_assert_uint_eq(g.pages, 1);
	w = begin("alone", NULL, 0);
	must(start_dirty(w));
	memset(g.model, 0, BYTES);
	memcpy(g.model + 5 * PAGE, g.base[0] + 5 * PAGE, PAGE);
	must(kvmem_image_capture_run(g.capture, NULL, &res));
	must(kvmem_image_commit(w, NULL));
	check("alone", &res);
	leave_with_parent(parent);
}
END

/* What the caller has put into the image itself stays where nothing is captured. */
TEST(pages_that_were_put_before)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_image *parent = enter_with_parent();
	uint8_t page[PAGE];

	if (!parent)
		return;
	guest_writes(5, 1, 77);
	take_dirty();
	keep_model();
	fill_page(page, 8, 3);
	memcpy(g.model + 8 * PAGE, page, PAGE);
	w = begin("child", parent, 0);
	must(kvmem_image_write(w, 5 * PAGE, page, PAGE));
	must(kvmem_image_write(w, 8 * PAGE, page, PAGE));
	must(start_dirty(w));
	must(kvmem_image_capture_run(g.capture, NULL, &res));
	must(kvmem_image_commit(w, NULL));
	res.bytes_data += PAGE;
	g.pages++;
	check("child", &res);
	leave_with_parent(parent);
}
END

TEST(what_is_refused)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT, bad;
	struct kvmem_image_writer *w;
	struct kvmem_run run;

	if (!enter_with_guest())
		return;
	w = begin("r", NULL, 0);
	run = (struct kvmem_run){ .region = g.ram[0], .offset = 0, .bytes = PAGE };
#define REFUSED(word) \
	fails(kvmem_image_capture_start_dirty(g.capture, w, g.ram, REGIONS, NULL, &bad), EINVAL, \
	      word)
	o.runs = &run;
	o.run_count = 1;
	fails(kvmem_image_capture_start_dirty(g.capture, w, g.ram, REGIONS, NULL, NULL), EINVAL,
	      "either");
	fails(kvmem_image_capture_start_dirty(NULL, w, g.ram, REGIONS, NULL, &o), EINVAL,
	      "capture");
	fails(kvmem_image_capture_start_dirty(g.capture, NULL, g.ram, REGIONS, NULL, &o), EINVAL,
	      "writer");
	fails(kvmem_image_capture_start_dirty(g.capture, w, g.ram, 2, NULL, &o), EINVAL,
	      "2 regions");
	bad = o, bad.threads = 2;
	REFUSED("threads");
	bad = o, bad.progress = cancels;
	REFUSED("progress");
	bad = o, bad.flags = KVMEM_IMAGE_ABSENT_FROM_PARENT;
	REFUSED("parent");
	bad = o, bad.flags = 1u << 7;
	REFUSED("flags");
	bad = o, bad.runs = NULL;
	REFUSED("either");
	run.bytes = PAGE - 1;
	bad = o;
	REFUSED("runs[0]");
	names_call("kvmem_image_capture_start_dirty");
	run.bytes = lengths[0] + PAGE;
	REFUSED("runs[0]");
	run.bytes = 0 - PAGE;
	REFUSED("runs[0]");
	run.region = NULL;
	REFUSED("runs[0]");
	run = (struct kvmem_run){ .region = g.ram[2], .offset = 0 - PAGE, .bytes = 2 * PAGE };
	REFUSED("runs[0]");
	must(kvmem_image_commit(w, NULL)); /* none of it has touched the writer */
	leave_with_guest();
}
END

/* ---- under a pager ---- */

static int of_page(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	for (uint64_t i = 0; i < bytes; i += PAGE)
		fill_page((uint8_t *)buf + i, (offset + i) / PAGE, 1);
	return 0;
}

static void of_paged(struct kvmem_image *parent)
{
	const uint64_t written[] = { 5, 11, 700 }, absent = 900;
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_writer *w;

	for (unsigned int i = 0; i < 3; i++)
		guest_writes(written[i], 3, 99);
	must(kvmem_region_discard(g.ram[0], 11 * PAGE, PAGE));
	g.dirty[absent] = true; /* told, and not filled: it is as its source has it */
	take_dirty();
	ck_assert_uint_eq(g.pages, 4);
	w = begin("whole", parent, 0);
	must(start_dirty(w));
	fails(kvmem_image_capture_run(g.capture, NULL, NULL), EOPNOTSUPP, "ABSENT_FROM_PARENT");
	kvmem_image_abort(w);

	w = begin("child", parent, 0);
	must(kvmem_image_write(w, absent * PAGE, g.base[1], PAGE)); /* does not stay */
	o.flags = KVMEM_IMAGE_ABSENT_FROM_PARENT;
	o.runs = g.runs;
	o.run_count = g.run_count;
	must(kvmem_image_capture_start_dirty(g.capture, w, g.ram, REGIONS, NULL, &o));
	memcpy(g.model + 5 * PAGE, g.base[0] + 5 * PAGE, PAGE);
	memcpy(g.model + 700 * PAGE, g.base[0] + 700 * PAGE, PAGE);
	memset(g.model + 11 * PAGE, 0, PAGE);
	guest_writes(5, 4, 100);   /* filled before */
	guest_writes(900, 4, 100); /* filled now */
	guest_writes(901, 4, 100); /* filled now, and none of it */
	must(kvmem_image_capture_run(g.capture, NULL, &res));
	must(kvmem_image_commit(w, NULL));
	ck_assert_uint_eq(res.bytes_absent, PAGE);
	ck_assert_uint_eq(res.bytes_zero, PAGE);
	g.pages--; /* left to the parent */
	check("child", &res);
}

TEST(what_a_pager_has_not_filled_is_the_parents)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_pager_opts po = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_source *source;
	struct kvmem_image *parent;
	struct kvmem_pager *pager;

	if (!enter_with_guest())
		return;
	keep_model();
	for (uint64_t p = 0; p < lengths[0] / PAGE; p++)
		fill_page(g.model + p * PAGE, p, 1);
	w = begin("parent", NULL, 0);
	must(kvmem_image_write(w, 0, g.model, BYTES));
	must(kvmem_image_commit(w, NULL));
	parent = open_image("parent.kvmem");
	ops.read = of_page;
	must(kvmem_source_callback(&ops, NULL, lengths[0], &source));
	po.flags = KVMEM_PAGER_CAPTURE;
	must(kvmem_pager_create(&po, &pager));
	must(kvmem_pager_add(pager, g.ram[0], source, 0, KVMEM_FILL_OVERWRITE));
	must(kvmem_pager_start(pager));
	memset((void *)g.dirty, 0, sizeof(g.dirty));
	of_paged(parent);
	must(kvmem_image_close(parent));
	must(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_pager_free(pager));
	must(kvmem_source_free(source));
	leave_with_guest();
}
END

/* ---- what the kernel tells of writes ---- */

static void take_writes(struct kvmem_writes *writes)
{
	g.run_count = g.pages = 0;
	for (unsigned int i = 0; i < REGIONS; i++) {
		for (uint64_t at = 0; at < lengths[i];) {
			int64_t n = kvmem_writes_take(writes, g.ram[i], at, g.runs + g.run_count,
						      MOST_RUNS - g.run_count, &at);
			must((int)n);
			g.run_count += (uint64_t)n;
		}
		/* A mapping has one userfaultfd. */
		must(kvmem_writes_remove(writes, g.ram[i]));
	}
	for (uint64_t i = 0; i < g.run_count; i++)
		g.pages += g.runs[i].bytes / PAGE;
}

TEST(of_what_was_written_to_the_mapping)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_writes *writes;
	struct kvmem_image *parent;
	int r;

	if (!enter_with_guest())
		return;
	r = kvmem_writes_create(NULL, &writes);
	if (r) {
		harness_skip("wp-async", "%s", kvmem_error_detail());
		leave_with_guest();
		return;
	}
	parent = save_parent();
	for (unsigned int i = 0; i < REGIONS; i++)
		must(kvmem_writes_add(writes, g.ram[i]));
	start_writers();
	guest_runs();
	pause_guest();
	give_back_pages();
	w = begin("child", parent, 0);
	g.run_count = 0;
	fails(start_dirty(w), EBUSY, "regions[0]");
	take_writes(writes);
	ck_assert_uint_ge(g.pages, 100);
	must(start_dirty(w));
	keep_model();
	guest_runs();
	must(kvmem_image_capture_run(g.capture, NULL, &res));
	must(kvmem_image_commit(w, NULL));
	check("child", &res);
	stop_writers();
	must(kvmem_writes_free(writes));
	leave_with_parent(parent);
}
END

int main(int argc, char **argv)
{
	const struct harness_test tests[] = {
		T(a_chain_of_moments),
		T(failed_and_once_more),
		T(writes_elsewhere_wait_for_nothing),
		T(nothing_is_dirty),
		T(pages_that_were_put_before),
		T(what_is_refused),
		T(what_a_pager_has_not_filled_is_the_parents),
		T(of_what_was_written_to_the_mapping),
	};

	huge_pages_begin();
	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
