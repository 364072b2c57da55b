// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Working sets: recorded, merged, stored, and replayed. */
#include "image_rig.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "image/workset.h"

#define PAGES 1024u
#define BYTES (PAGES * PAGE)
#define MS    1000000ull

static struct kvmem_region *ram[2];

static void make_regions(void)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	for (unsigned int i = 0; i < 2; i++) {
		o.bytes = BYTES;
		o.backing = KVMEM_BACKING_MEMFD;
		must(kvmem_region_create(NULL, &o, &ram[i]));
	}
}

static void free_regions(void)
{
	must(kvmem_region_free(ram[0]));
	must(kvmem_region_free(ram[1]));
}

static struct kvmem_trace_entry fault(unsigned int region, uint64_t page, uint64_t ms)
{
	return (struct kvmem_trace_entry){ .time_ns = ms * MS,
					   .region = ram[region],
					   .offset = page * PAGE,
					   .bytes = PAGE,
					   .service_ns = 10 };
}

static struct kvmem_recorder *recorder_of(const struct kvmem_workset *replayed, uint64_t window,
					  uint64_t settled, uint64_t bytes)
{
	struct kvmem_recorder_opts o = KVMEM_RECORDER_OPTS_INIT;
	struct kvmem_recorder *r;

	o.begin_ns = 1;
	o.window_ns = window * MS;
	o.settled_ns = settled * MS;
	o.max_bytes = bytes;
	o.replayed = replayed;
	must(kvmem_recorder_create(ram, 2, &o, &r));
	return r;
}

static struct kvmem_workset *finish(struct kvmem_recorder *r)
{
	struct kvmem_workset *w;

	must(kvmem_recorder_finish(r, &w));
	kvmem_recorder_free(r);
	return w;
}

static struct kvmem_workset_info info_of(const struct kvmem_workset *w)
{
	struct kvmem_workset_info i = KVMEM_WORKSET_INFO_INIT;

	must(kvmem_workset_get_info(w, &i));
	return i;
}

static struct kvmem_recorder_stats stats_of(const struct kvmem_recorder *r)
{
	struct kvmem_recorder_stats s = KVMEM_RECORDER_STATS_INIT;

	must(kvmem_recorder_get_stats(r, &s));
	return s;
}

/* "page+pages*votes ..." in the order of the set. */
static void is_set(const struct kvmem_workset *w, const char *want)
{
	struct kvmem_workset_range r[4];
	char text[512] = "";
	int64_t n;

	for (uint64_t i = 0; (n = kvmem_workset_ranges(w, i, r, 4)) > 0; i += (uint64_t)n)
		for (int64_t k = 0; k < n; k++)
			snprintf(text + strlen(text), sizeof(text) - strlen(text), "%lu+%lu*%u ",
				 (unsigned long)(r[k].offset / PAGE),
				 (unsigned long)(r[k].bytes / PAGE), r[k].votes);
	ck_assert_str_eq(text, want);
}

/* ---- recording ---- */

TEST(first_touches_in_their_order)
{
	struct kvmem_trace_entry e[14];
	struct kvmem_recorder *r;
	struct kvmem_workset *w;
	unsigned int n = 0;

	make_regions();
	r = recorder_of(NULL, 10000, 10000, 0);
	e[n++] = fault(0, 800, 1);
	e[n++] = fault(1, 7, 1);
	e[n++] = fault(0, 5, 2);
	e[n++] = fault(0, 500, 3);
	e[n++] = fault(1, 7, 4);   /* again */
	e[n++] = fault(0, 4, 5);   /* beside 5: one range, from 5's place on */
	e[n++] = fault(0, 801, 5); /* and on the other side */
	e[n] = fault(0, 90, 6);
	e[n++].why = KVMEM_TRACE_AROUND;
	e[n] = fault(0, 91, 6);
	e[n++].why = KVMEM_TRACE_PREFETCH;
	e[n] = fault(0, 512, 7);
	e[n++].bytes = 2 * PAGE; /* a larger page of the region */
	e[n] = fault(0, 9, 8);
	e[n++].region = NULL; /* somebody else's */
	e[n] = fault(0, PAGES - 1, 9);
	e[n++].bytes = 2 * PAGE; /* grown since: not of the image */
	ck_assert_int_eq(kvmem_recorder_add(r, e, n), 1);
	ck_assert_uint_eq(stats_of(r).faults, 9);
	ck_assert_uint_eq(stats_of(r).blocked_ns, 90);
	ck_assert_uint_eq(stats_of(r).pages, 9);
	w = finish(r);
	is_set(w, "800+2*1 1031+1*1 4+2*1 500+1*1 512+2*1 1023+1*1 ");
	ck_assert_uint_eq(info_of(w).samples, 1);
	ck_assert_uint_eq(info_of(w).bytes, 9 * PAGE);
	ck_assert_uint_eq(info_of(w).memory_bytes, 2 * BYTES);
	kvmem_workset_free(w);
	free_regions();
}
END

TEST(the_window_ends)
{
	const struct {
		uint64_t window, settled, bytes;
		const char *want;
	} cases[] = {
		{ 1000, 1000, 0, "0+1*1 2+1*1 4+1*1 6+1*1 " }, /* 1400 is too late */
		{ 10000, 150, 0, "0+1*1 2+1*1 4+1*1 " },       /* nothing new for 200 ms */
		{ 10000, 10000, 2 * PAGE, "0+1*1 2+1*1 " },
		{ 10000, 10000, 0, "0+1*1 2+1*1 4+1*1 6+1*1 8+1*1 " },
	};

	make_regions();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct kvmem_recorder *r = recorder_of(NULL, cases[i].window, cases[i].settled,
						       cases[i].bytes);
		const uint64_t at[] = { 500, 600, 700, 900, 1400 };
		struct kvmem_workset *w;

		for (unsigned int k = 0; k < 5; k++) {
			struct kvmem_trace_entry e = fault(0, k * 2, at[k]);

			must(kvmem_recorder_add(r, &e, 1));
		}
		/* The first touch was at 500 ms: until then nothing is settled. */
		ck_assert_uint_eq(stats_of(r).over, i < 3);
		ck_assert_uint_eq(stats_of(r).faults, 5);
		w = finish(r);
		is_set(w, cases[i].want);
		kvmem_workset_free(w);
	}
	free_regions();
}
END

TEST(under_replay_what_is_missing)
{
	struct kvmem_trace_entry e[4];
	struct kvmem_workset *set, *more;
	struct kvmem_recorder *r = NULL;

	enter_folder();
	make_regions();
	r = recorder_of(NULL, 1000, 1000, 0);
	e[0] = fault(0, 5, 1);
	e[1] = fault(0, 100, 2);
	kvmem_recorder_add(r, e, 2);
	set = finish(r);
	r = recorder_of(set, 1000, 1000, 0);
	e[0] = fault(0, 100, 1); /* before replay had come to it */
	e[1] = fault(0, 300, 2);
	kvmem_recorder_add(r, e, 2);
	ck_assert_uint_eq(stats_of(r).pages_late, 1);
	ck_assert_uint_eq(stats_of(r).pages_new, 1);
	ck_assert_uint_eq(stats_of(r).pages, 1);
	more = finish(r);
	is_set(more, "300+1*1 ");
	ck_assert_uint_eq(info_of(more).samples, 0);
	fails(kvmem_workset_merge(more, set), EINVAL, "under replay");
	must(kvmem_workset_merge(set, more));
	is_set(set, "5+1*1 300+1*1 100+1*1 ");
	ck_assert_uint_eq(info_of(set).samples, 1);
	kvmem_workset_free(more);
	kvmem_workset_free(set);
	free_regions();
	leave_folder();
}
END

/* ---- merging, against a model ---- */

static struct kvmem_workset *record_model(const bool *touched)
{
	struct kvmem_recorder *r = recorder_of(NULL, 100000, 100000, BYTES * 2);

	for (uint64_t p = 0; p < PAGES; p++) {
		struct kvmem_trace_entry e = fault(0, p, 1);

		if (touched[p])
			kvmem_recorder_add(r, &e, 1);
	}
	return finish(r);
}

static void check_votes(const struct kvmem_workset *w, const uint8_t *history, uint32_t samples)
{
	uint32_t votes[PAGES] = { 0 };
	struct kvmem_workset_range r;

	for (uint64_t i = 0; kvmem_workset_ranges(w, i, &r, 1) > 0; i++)
		for (uint64_t p = r.offset / PAGE; p < (r.offset + r.bytes) / PAGE; p++) {
			ck_assert_uint_eq(votes[p], 0); /* in one range alone */
			votes[p] = r.votes;
		}
	for (uint64_t p = 0; p < PAGES; p++) {
		uint32_t n = (uint32_t)__builtin_popcount(history[p]);

		ck_assert_uint_eq(votes[p], n * 4 >= samples ? n : 0);
	}
}

TEST(a_set_forgets_what_is_touched_no_more)
{
	unsigned long long seed = 9;
	bool touched[PAGES];
	uint8_t history[PAGES] = { 0 };
	struct kvmem_workset *set = NULL;

	make_regions();
	for (uint32_t n = 1; n < 40; n++) {
		struct kvmem_workset *w;

		for (uint64_t p = 0; p < PAGES; p++) {
			touched[p] = harness_random(&seed) % 16 < (p % 8) * 2;
			/* A page that was dropped begins anew. */
			if (set && (uint32_t)__builtin_popcount(history[p]) * 4 <
					   (n - 1 < KW_SAMPLES ? n - 1 : KW_SAMPLES))
				history[p] = 0;
			history[p] = (uint8_t)(history[p] << 1 | touched[p]);
		}
		w = record_model(touched);
		if (set) {
			must(kvmem_workset_merge(set, w));
			kvmem_workset_free(w);
		} else {
			set = w;
		}
		check_votes(set, history, n < KW_SAMPLES ? n : KW_SAMPLES);
	}
	/* Nothing is touched any more: it empties. */
	memset(touched, 0, sizeof(touched));
	for (uint32_t n = 0; n < KW_SAMPLES; n++) {
		struct kvmem_workset *w = record_model(touched);

		must(kvmem_workset_merge(set, w));
		kvmem_workset_free(w);
	}
	ck_assert_uint_eq(info_of(set).bytes, 0);
	kvmem_workset_free(set);
	free_regions();
}
END

/* ---- files ---- */

static struct kvmem_image *make_image(const char *name, unsigned int change)
{
	struct kvmem_image_region at[2] = { region_of(BYTES, 0, "low"),
					    region_of(BYTES, BYTES, "high") };
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	uint8_t *model = malloc(2 * BYTES);
	struct kvmem_image_writer *w;
	char index[64];

	for (uint64_t p = 0; p < 2 * PAGES; p++)
		fill_page(model + p * PAGE, p, change);
	o.flags = KVMEM_IMAGE_NO_SYNC;
	o.regions = at;
	o.region_count = 2;
	must(kvmem_image_create(name, &o, &w));
	must(kvmem_image_write(w, 0, model, 2 * BYTES));
	must(kvmem_image_commit(w, NULL));
	free(model);
	snprintf(index, sizeof(index), "%s.kvmem", name);
	return open_image(index);
}

static struct kvmem_workset *some_set(unsigned int ranges)
{
	struct kvmem_recorder *r = recorder_of(NULL, 100000, 100000, 0);

	for (unsigned int i = 0; i < ranges; i++) {
		struct kvmem_trace_entry e = fault(i % 2, (i * 389) % PAGES, i + 1);

		kvmem_recorder_add(r, &e, 1);
	}
	return finish(r);
}

static int load(const struct kvmem_image *image)
{
	struct kvmem_workset *w;
	int r = kvmem_workset_load("set", image, &w);

	if (!r)
		kvmem_workset_free(w);
	return r;
}

TEST(stored_and_loaded)
{
	struct kvmem_image *a, *b;
	struct kvmem_workset *w, *again;
	struct stat st;

	enter_folder();
	make_regions();
	a = make_image("a", 1);
	b = make_image("b", 1);
	w = some_set(200);
	must(kvmem_workset_save(w, "set", a));
	ck_assert_int_eq(stat("set", &st), 0);
	ck_assert_uint_eq(st.st_mode & 07777, 0600);
	must(kvmem_workset_load("set", a, &again));
	ck_assert_uint_eq(info_of(again).ranges, info_of(w).ranges);
	ck_assert_int_eq(memcmp(again->ranges, w->ranges, w->count * sizeof(*w->ranges)), 0);
	kvmem_workset_free(again);
	fails(load(b), ESTALE, "another image");
	must(kvmem_workset_save(w, "set", b)); /* replaced */
	must(load(b));
	fails(load(a), ESTALE, "another image");
	fails(kvmem_workset_load("none", a, &again), ENOENT, "none");
	fails(kvmem_workset_load(".", a, &again), EISDIR, "directory");
	fails(kvmem_workset_save(w, "no/folder", a), ENOENT, "folder");
	fails(kvmem_workset_save(w, "a.kvmem", a), EEXIST, "no working set"); /* an image's index */
	fails(kvmem_workset_save(w, "a", a), EEXIST, "no working set");
	kvmem_workset_free(w);
	must(kvmem_image_close(a));
	must(kvmem_image_close(b));
	free_regions();
	leave_folder();
}
END

static void put_file(const void *bytes, size_t n)
{
	int fd = open("set", O_WRONLY | O_TRUNC | O_CREAT, 0600);

	ck_assert_int_eq(write(fd, bytes, n), (ssize_t)n);
	close(fd);
}

static size_t get_file(uint8_t *buf, size_t room)
{
	int fd = open("set", O_RDONLY);
	ssize_t n = read(fd, buf, room);

	ck_assert_int_gt(n, 0);
	close(fd);
	return (size_t)n;
}

TEST(no_bit_of_it_can_be_wrong)
{
	static uint8_t good[65536], bad[65536];
	struct kvmem_image *a;
	struct kvmem_workset *w;
	size_t n;

	enter_folder();
	make_regions();
	a = make_image("a", 1);
	w = some_set(60);
	must(kvmem_workset_save(w, "set", a));
	n = get_file(good, sizeof(good));
	for (size_t bit = 0; bit < n * 8; bit++) {
		memcpy(bad, good, n);
		bad[bit / 8] ^= (uint8_t)(1u << bit % 8);
		put_file(bad, n);
		if (!load(a))
			ck_abort_msg("bit %zu is not noticed", bit);
	}
	for (size_t short_by = 1; short_by <= n; short_by++) {
		put_file(good, n - short_by);
		if (!load(a))
			ck_abort_msg("%zu bytes less are not noticed", short_by);
	}
	memcpy(bad, good, n);
	put_file(bad, n + 16);
	fails(load(a), EBADMSG, "bytes");
	kvmem_workset_free(w);
	must(kvmem_image_close(a));
	free_regions();
	leave_folder();
}
END

/* A liar's file: each sum is right. */
static void lie(uint8_t *file, size_t n)
{
	XXH128_hash_t h = XXH3_128bits(file + 96, n - 96);

	memcpy(file + 64, &h.low64, 8);
	memcpy(file + 72, &h.high64, 8);
	h = XXH3_128bits(file, 80);
	memcpy(file + 80, &h.low64, 8);
	memcpy(file + 88, &h.high64, 8);
	put_file(file, n);
}

TEST(lies_with_right_sums)
{
	static uint8_t good[65536], bad[65536];
	const struct {
		size_t at, bytes;
		uint64_t value;
	} lies[] = {
		{ 8, 4, 2 },	       { 12, 4, 8192 },	      { 32, 8, PAGES },
		{ 32, 8, 1ull << 40 }, { 40, 8, 1ull << 60 }, { 40, 8, 59 },
		{ 48, 8, 61 },	       { 48, 8, UINT64_MAX }, { 56, 4, 0 },
		{ 56, 4, 9 },	       { 60, 4, 1 },	      { 96, 4, 2 * PAGES },
		{ 96, 4, UINT32_MAX }, { 100, 4, 0 },	      { 100, 4, UINT32_MAX },
		{ 104, 1, 0 },	       { 104, 1, 2 },	      { 105, 1, 1 },
		{ 112, 4, 0 }, /* the page of the first range once more */
	};
	struct kvmem_image *a;
	struct kvmem_workset *w;
	size_t n;

	enter_folder();
	make_regions();
	a = make_image("a", 1);
	w = some_set(60);
	must(kvmem_workset_save(w, "set", a));
	n = get_file(good, sizeof(good));
	memcpy(bad, good, n);
	lie(bad, n);
	must(load(a)); /* the liar is good at it */
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		memcpy(bad, good, n);
		memcpy(bad + lies[i].at, &lies[i].value, lies[i].bytes);
		lie(bad, n);
		if (!load(a))
			ck_abort_msg("lie %zu is believed", i);
	}
	kvmem_workset_free(w);
	must(kvmem_image_close(a));
	free_regions();
	leave_folder();
}
END

/* ---- replay ---- */

struct session {
	struct kvmem_source *source[2];
	struct kvmem_pager *pager;
};

static bool begin(struct session *s, struct kvmem_image *image)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	int r;

	make_regions();
	o.fault_around = PAGE;
	o.trace_entries = 4096;
	o.shards = 2;
	r = kvmem_pager_create(&o, &s->pager);
	if (r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		return false;
	}
	must(r);
	for (unsigned int i = 0; i < 2; i++) {
		must(kvmem_image_source(image, i, &s->source[i]));
		must(kvmem_pager_add(s->pager, ram[i], s->source[i], 0, 0));
	}
	must(kvmem_pager_start(s->pager));
	return true;
}

static void end(struct session *s)
{
	must(kvmem_pager_stop(s->pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_pager_free(s->pager));
	must(kvmem_source_free(s->source[0]));
	must(kvmem_source_free(s->source[1]));
	free_regions();
}

/* A guest that touches some pages of both regions, the same in each session but for `also`. */
static void run_guest(uint64_t also)
{
	uint8_t want[PAGE];

	for (uint64_t n = 0; n < 600; n++) {
		uint64_t page = n == 599 ? also : n * 613 % (2 * PAGES);
		uint8_t *base = kvmem_region_base(ram[page / PAGES]);

		fill_page(want, page, 1);
		if (memcmp(base + page % PAGES * PAGE, want, PAGE))
			ck_abort_msg("page %lu has another content", (unsigned long)page);
	}
}

static struct kvmem_recorder *record(const struct kvmem_workset *replayed)
{
	struct kvmem_recorder_opts o = KVMEM_RECORDER_OPTS_INIT;
	struct kvmem_recorder *r;

	o.replayed = replayed;
	must(kvmem_recorder_create(ram, 2, &o, &r));
	return r;
}

TEST(a_session_is_replayed)
{
	struct kvmem_replay_result res = KVMEM_REPLAY_RESULT_INIT;
	struct kvmem_replay_opts o = KVMEM_REPLAY_OPTS_INIT;
	struct kvmem_recorder *r;
	struct kvmem_workset *set, *more;
	struct kvmem_image *image;
	struct session s;

	enter_folder();
	image = make_image("guest", 1);
	if (!begin(&s, image))
		return;
	r = record(NULL);
	run_guest(1);
	ck_assert_int_eq(kvmem_recorder_read(r, s.pager), 1);
	ck_assert_uint_eq(stats_of(r).pages, 600);
	set = finish(r);
	end(&s);
	must(kvmem_workset_save(set, "set", image));
	kvmem_workset_free(set);

	/* The second time nothing is waited for but what is new. */
	begin(&s, image);
	must(kvmem_workset_load("set", image, &set));
	o.image = image;
	o.ahead_bytes = 64 * PAGE;
	must(kvmem_workset_replay(set, s.pager, ram, 2, &o, &res));
	ck_assert_uint_eq(res.bytes, 600 * PAGE);
	ck_assert_uint_eq(res.pages_filled, 600);
	ck_assert_uint_eq(res.faults, 0);
	r = record(set);
	run_guest(3);
	must(kvmem_recorder_read(r, s.pager));
	ck_assert_uint_eq(stats_of(r).faults, 1);
	ck_assert_uint_eq(stats_of(r).pages_new, 1);
	more = finish(r);
	is_set(more, "3+1*1 ");
	end(&s);
	kvmem_workset_free(more);

	/* A part left out on purpose tells how much of the set is needed: all of it here. */
	begin(&s, image);
	o.sample = 4;
	must(kvmem_workset_replay(set, s.pager, ram, 2, &o, &res));
	ck_assert_uint_eq(res.bytes + res.bytes_left_out, 600 * PAGE);
	r = record(set);
	run_guest(1);
	must(kvmem_recorder_read(r, s.pager));
	ck_assert_uint_gt(stats_of(r).pages_left_out, 0);
	ck_assert_uint_eq(stats_of(r).pages_left_out * PAGE, res.bytes_left_out);
	ck_assert_uint_eq(stats_of(r).pages_missed, stats_of(r).pages_left_out);
	ck_assert_uint_eq(stats_of(r).pages_new, 0);
	kvmem_recorder_free(r);
	end(&s);

	/* No more than is wanted. */
	begin(&s, image);
	o.sample = 0;
	o.max_bytes = 100 * PAGE;
	must(kvmem_workset_replay(set, s.pager, ram, 2, &o, &res));
	ck_assert_uint_ge(res.bytes, 100 * PAGE);
	run_guest(1);
	end(&s);
	kvmem_workset_free(set);
	must(kvmem_image_close(image));
	leave_folder();
}
END

/* Threads that read ahead and do not sleep. */
static unsigned int readers_awake(void)
{
	unsigned int awake = 0;
	struct dirent *entry;
	DIR *tasks = opendir("/proc/self/task");

	while (tasks && (entry = readdir(tasks)) != NULL) {
		char path[300], line[256] = "";
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/stat", entry->d_name);
		f = fopen(path, "r");
		if (f && fgets(line, sizeof(line), f))
			awake += strstr(line, "(kvmem-ahead) ") && !strstr(line, ") S ");
		if (f)
			fclose(f);
	}
	if (tasks)
		closedir(tasks);
	return awake;
}

/* When those who read ahead are as far as they may be: the end has to reach all of them. */
static int cancels(void *arg, const struct kvmem_image_progress *p)
{
	(void)arg;
	ck_assert_uint_le(p->done, p->total);
	for (unsigned int i = 0; i < 2000 && readers_awake(); i++)
		usleep(1000);
	return 1;
}

/* Pages in descending order, and a guest that is at it as well; then one that is cancelled, and one of bad data. */
TEST(beside_a_running_guest_canceled_and_damaged)
{
	struct kvmem_replay_result res = KVMEM_REPLAY_RESULT_INIT;
	struct kvmem_replay_opts o = KVMEM_REPLAY_OPTS_INIT;
	struct kvmem_recorder *r;
	struct kvmem_workset *set;
	struct kvmem_image *image;
	struct session s;
	int fd;

	enter_folder();
	image = make_image("guest", 1);
	if (!begin(&s, image))
		return;
	r = recorder_of(NULL, 100000, 100000, 2 * BYTES);
	for (uint64_t p = 2 * PAGES; p--;)
		if (p % 2) {
			struct kvmem_trace_entry e = fault((unsigned int)(p / PAGES), p % PAGES, 1);

			kvmem_recorder_add(r, &e, 1);
		}
	set = finish(r);
	o.progress = cancels;
	o.image = image;
	o.ahead_bytes = PAGE;
	fails(kvmem_workset_replay(set, s.pager, ram, 2, &o, &res), ECANCELED, "progress");
	run_guest(2);
	end(&s);

	/* What cannot be read is left to the fault. */
	fd = open("guest", O_WRONLY);
	ck_assert_int_eq(pwrite(fd, "?", 1, 7 * PAGE + 5), 1);
	close(fd);
	begin(&s, image);
	must(kvmem_workset_replay(set, s.pager, ram, 2, NULL, &res));
	ck_assert_uint_eq(res.bytes, PAGES * PAGE);
	ck_assert_uint_eq(res.pages_filled, PAGES - 1);
	end(&s);
	kvmem_workset_free(set);
	must(kvmem_image_close(image));
	leave_folder();
}
END

TEST(what_is_refused)
{
	struct kvmem_recorder_opts o = KVMEM_RECORDER_OPTS_INIT;
	struct kvmem_replay_result res = KVMEM_REPLAY_RESULT_INIT;
	struct kvmem_recorder *r;
	struct kvmem_workset *set, *w;
	struct kvmem_image *image;
	struct session s;

	enter_folder();
	image = make_image("guest", 1);
	if (!begin(&s, image))
		return;
	fails(kvmem_recorder_create(NULL, 1, NULL, &r), EINVAL, "regions");
	fails(kvmem_recorder_create(ram, 0, NULL, &r), EINVAL, "regions");
	fails(kvmem_recorder_create(ram, 2, NULL, NULL), EINVAL, "ret_recorder");
	o.flags = 1;
	fails(kvmem_recorder_create(ram, 2, &o, &r), EINVAL, "flags");
	o.flags = 0;
	set = some_set(5);
	o.replayed = set;
	fails(kvmem_recorder_create(ram, 1, &o, &r), EINVAL, "another length");
	fails(kvmem_workset_merge(set, set), EINVAL, "itself");
	fails(kvmem_workset_merge(NULL, set), EINVAL, "workset");
	fails(kvmem_workset_replay(set, s.pager, ram, 1, NULL, NULL), EINVAL, "another length");
	fails(kvmem_workset_replay(NULL, s.pager, ram, 2, NULL, NULL), EINVAL, "workset");
	res.size = 4;
	fails(kvmem_workset_replay(set, s.pager, ram, 2, NULL, &res), EINVAL, "size");
	fails(kvmem_workset_load(NULL, image, &w), EINVAL, "path");
	fails(kvmem_workset_save(set, "x", NULL), EINVAL, "image");
	fails(kvmem_image_prefetch(image, 2 * BYTES, 1), ERANGE, "0x1 bytes");
	must(kvmem_image_prefetch(image, 0, 2 * BYTES));
	must(kvmem_image_prefetch(image, 5, 7));
	kvmem_workset_free(set);
	end(&s);
	must(kvmem_image_close(image));
	leave_folder();
}
END

HARNESS_MAIN(T(first_touches_in_their_order), T(the_window_ends), T(under_replay_what_is_missing),
	     T(a_set_forgets_what_is_touched_no_more), T(stored_and_loaded),
	     T(no_bit_of_it_can_be_wrong), T(lies_with_right_sums), T(a_session_is_replayed),
	     T(beside_a_running_guest_canceled_and_damaged), T(what_is_refused))
