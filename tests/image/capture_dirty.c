// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Differences of a moment, while threads write on as vCPUs do: what was written since the parent comes from these
 * threads themselves, page by page.
 */
#include "huge_pages.h"
#include "image_rig.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define REGIONS	  4u
#define BYTES	  (17 * MIB)
#define PAGES	  (BYTES / PAGE)
#define WRITERS	  3u
#define MOST_RUNS (2 * PAGES)
#define QUIET	  3u /* the region that nobody writes to */

static const uint64_t lengths[REGIONS] = { 8 * MIB, 4 * MIB, 4 * MIB, 1 * MIB };

static struct {
	struct kvmem_region *ram[REGIONS];
	struct kvmem_image_region at[REGIONS];
	uint8_t *base[REGIONS];
	uint8_t *model; /* of all, at the pause */
	_Atomic bool dirty[PAGES];
	bool huge; /* region 2 has huge pages */
	struct kvmem_image_capture *capture;
	struct kvmem_run runs[MOST_RUNS];
	uint64_t run_count, pages; /* that are in runs */
	unsigned long long seed;
	pthread_t writers[WRITERS];
	_Atomic bool stop, paused;
	_Atomic unsigned int asleep;
	_Atomic uint64_t writes;
} g;

/* ---- the guest ---- */

static int make(enum kvmem_backing backing, unsigned int i)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	int r;

	o.bytes = lengths[i];
	o.backing = backing;
	r = kvmem_region_create(NULL, &o, &g.ram[i]);
	if (r)
		return r;
	g.base[i] = kvmem_region_base(g.ram[i]);
	if (kvmem_region_page_size(g.ram[i]) == PAGE)
		madvise(g.base[i], lengths[i], MADV_NOHUGEPAGE);
	return 0;
}

static uint8_t *page_at(uint64_t page, unsigned int *ret_region)
{
	unsigned int i = 0;

	for (; page >= lengths[i] / PAGE; i++)
		page -= lengths[i] / PAGE;
	*ret_region = i;
	return g.base[i] + page * PAGE;
}

/* Half of it: the rest is not there at first. */
static bool open_guest(void)
{
	int r = kvmem_image_capture_create(NULL, &g.capture);
	unsigned int region;
	uint64_t at = 0;

	if (r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		return false;
	}
	must(r);
	must(make(KVMEM_BACKING_MEMFD, 0));
	must(make(KVMEM_BACKING_ANONYMOUS, 1));
	g.huge = !make(KVMEM_BACKING_HUGETLB, 2);
	if (!g.huge) {
		harness_note("no huge pages");
		must(make(KVMEM_BACKING_MEMFD, 2));
	}
	must(make(KVMEM_BACKING_MEMFD, QUIET));
	for (unsigned int i = 0; i < REGIONS; at += lengths[i++])
		g.at[i] = region_of(lengths[i], at, "ram");
	for (uint64_t p = 0; p < PAGES; p += 2)
		fill_page(page_at(p, &region), p, 1);
	g.model = malloc(BYTES);
	g.seed = 7;
	g.stop = g.paused = false;
	memset((void *)g.dirty, 0, sizeof(g.dirty));
	return true;
}

static void close_guest(void)
{
	must(kvmem_image_capture_free(g.capture));
	for (unsigned int i = 0; i < REGIONS; i++)
		must(kvmem_region_free(g.ram[i]));
	free(g.model);
}

/* Said before it is done: whoever looks finds both or stands between two writes. */
static void guest_writes(uint64_t page, uint64_t word, uint64_t value)
{
	unsigned int region;
	uint8_t *at = page_at(page, &region);

	g.dirty[page] = true;
	atomic_store((_Atomic uint64_t *)(void *)at + word, value);
}

static void *write_on(void *arg)
{
	const struct timespec breath = { .tv_nsec = 100000 };
	unsigned long long seed = (uintptr_t)arg;

	while (!g.stop) {
		uint64_t page = harness_random(&seed) % (PAGES - lengths[QUIET] / PAGE);

		if (g.paused) {
			g.asleep++;
			while (g.paused)
				usleep(50);
			g.asleep--;
		}
		guest_writes(page, harness_random(&seed) % 512, seed);
		if (g.writes++ % 64 == 0)
			nanosleep(&breath, NULL); /* not all pages are dirty at each pause */
	}
	return NULL;
}

static bool all_asleep(void *arg)
{
	(void)arg;
	return g.asleep == WRITERS;
}

static void pause_guest(void)
{
	g.paused = true;
	ck_assert(harness_wait(all_asleep, NULL, 60));
}

static bool has_written(void *arg)
{
	return g.writes >= *(uint64_t *)arg;
}

static void guest_runs(void)
{
	uint64_t until = g.writes + 700;

	g.paused = false;
	ck_assert(harness_wait(has_written, &until, 60));
}

static void start_writers(void)
{
	for (uintptr_t i = 0; i < WRITERS; i++)
		ck_assert_int_eq(pthread_create(&g.writers[i], NULL, write_on, (void *)(i + 1)), 0);
}

static void stop_writers(void)
{
	g.stop = true;
	g.paused = false;
	for (unsigned int i = 0; i < WRITERS; i++)
		pthread_join(g.writers[i], NULL);
}

/* ---- what is dirty ---- */

static void add_run(uint64_t page, uint64_t count)
{
	struct kvmem_run *run = &g.runs[g.run_count++];
	unsigned int region;
	uint8_t *at = page_at(page, &region);

	*run = (struct kvmem_run){ .region = g.ram[region],
				   .offset = (uint64_t)(at - g.base[region]),
				   .bytes = count * PAGE };
}

/* Each page by itself, some also with the next one, in no order. */
static void take_dirty(void)
{
	g.run_count = g.pages = 0;
	for (uint64_t p = 0; p < PAGES; p++) {
		if (!g.dirty[p])
			continue;
		g.pages++;
		add_run(p, 1);
		if (p + 1 < lengths[0] / PAGE && g.dirty[p + 1])
			add_run(p, 2);
	}
	memset((void *)g.dirty, 0, sizeof(g.dirty));
	for (uint64_t i = g.run_count; i > 1; i--) {
		uint64_t k = harness_random(&g.seed) % i;
		struct kvmem_run other = g.runs[k];

		g.runs[k] = g.runs[i - 1];
		g.runs[i - 1] = other;
	}
}

static void give_dirty_back(void)
{
	for (uint64_t i = 0; i < g.run_count; i++)
		for (unsigned int k = 0; k < REGIONS; k++)
			if (g.runs[i].region == g.ram[k])
				for (uint64_t n = 0; n < g.runs[i].bytes / PAGE; n++)
					g.dirty[(g.at[k].gpa + g.runs[i].offset) / PAGE + n] = true;
}

/* ---- images ---- */

static struct kvmem_image_writer *begin(const char *name, struct kvmem_image *parent,
					uint32_t flags)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_writer *w;

	o.flags = KVMEM_IMAGE_NO_SYNC | flags;
	o.regions = g.at;
	o.region_count = REGIONS;
	o.parent = parent;
	must(kvmem_image_create(name, &o, &w));
	return w;
}

static void keep_model(void)
{
	for (unsigned int i = 0; i < REGIONS; i++)
		memcpy(g.model + g.at[i].gpa, g.base[i], lengths[i]);
}

static int start_dirty(struct kvmem_image_writer *w)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;

	o.runs = g.runs;
	o.run_count = g.run_count;
	return kvmem_image_capture_start_dirty(g.capture, w, g.ram, REGIONS, NULL, &o);
}

static void check(const char *name, const struct kvmem_image_save_result *res)
{
	char index[32];
	struct kvmem_image *image;
	struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;

	snprintf(index, sizeof(index), "%s.kvmem", name);
	image = open_image(index);
	must(kvmem_image_verify(image, NULL, NULL));
	check_model(image, g.model, BYTES);
	must(kvmem_image_get_info(image, &info));
	/* These pages and no others. */
	ck_assert_uint_eq(res->bytes_data + res->bytes_zero, g.pages * PAGE);
	ck_assert_uint_eq(info.bytes_data, res->bytes_data);
	must(kvmem_image_close(image));
}

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

	enter_folder();
	if (!open_guest())
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
	close_guest();
	leave_folder();
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
	struct kvmem_image *parent;

	enter_folder();
	if (!open_guest())
		return;
	w = begin("parent", NULL, 0);
	must(kvmem_image_save(w, g.ram, REGIONS, NULL, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	parent = open_image("parent.kvmem");
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
	must(kvmem_image_close(parent));
	close_guest();
	leave_folder();
}
END

/* ---- page by page ---- */

static struct kvmem_image *save_parent(void)
{
	struct kvmem_image_writer *w = begin("parent", NULL, 0);

	must(kvmem_image_save(w, g.ram, REGIONS, NULL, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	return open_image("parent.kvmem");
}

TEST(writes_elsewhere_wait_for_nothing)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_capture_stats s = KVMEM_CAPTURE_STATS_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_image *parent;

	enter_folder();
	if (!open_guest())
		return;
	parent = save_parent();
	memset((void *)g.dirty, 0, sizeof(g.dirty));
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
	must(kvmem_image_close(parent));
	close_guest();
	leave_folder();
}
END

TEST(nothing_is_dirty)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_image *parent;

	enter_folder();
	if (!open_guest())
		return;
	parent = save_parent();
	memset((void *)g.dirty, 0, sizeof(g.dirty));
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
	must(kvmem_image_close(parent));
	close_guest();
	leave_folder();
}
END

TEST(what_is_refused)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT, bad;
	struct kvmem_image_writer *w;
	struct kvmem_run run;

	enter_folder();
	if (!open_guest())
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
	run.bytes = lengths[0] + PAGE;
	REFUSED("runs[0]");
	run.bytes = 0 - PAGE;
	REFUSED("runs[0]");
	run.region = NULL;
	REFUSED("runs[0]");
	run = (struct kvmem_run){ .region = g.ram[2], .offset = 0 - PAGE, .bytes = 2 * PAGE };
	REFUSED("runs[0]");
	must(kvmem_image_commit(w, NULL)); /* none of it has touched the writer */
	close_guest();
	leave_folder();
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

	enter_folder();
	if (!open_guest())
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
	close_guest();
	leave_folder();
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

	enter_folder();
	if (!open_guest())
		return;
	r = kvmem_writes_create(NULL, &writes);
	if (r) {
		harness_skip("wp-async", "%s", kvmem_error_detail());
		close_guest();
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
	must(kvmem_image_close(parent));
	close_guest();
	leave_folder();
}
END

int main(int argc, char **argv)
{
	const struct harness_test tests[] = {
		T(a_chain_of_moments),
		T(failed_and_once_more),
		T(writes_elsewhere_wait_for_nothing),
		T(nothing_is_dirty),
		T(what_is_refused),
		T(what_a_pager_has_not_filled_is_the_parents),
		T(of_what_was_written_to_the_mapping),
	};

	huge_pages_begin();
	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
