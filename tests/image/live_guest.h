/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef LIVE_GUEST_H
#define LIVE_GUEST_H

/*
 * A guest that is captured while threads write to it as vCPUs do: memory of several kinds, what of it is dirty, what it
 * held at the pause, and images of it.
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

static inline int make(enum kvmem_backing backing, unsigned int i)
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

static inline uint8_t *page_at(uint64_t page, unsigned int *ret_region)
{
	unsigned int i = 0;

	for (; page >= lengths[i] / PAGE; i++)
		page -= lengths[i] / PAGE;
	*ret_region = i;
	return g.base[i] + page * PAGE;
}

/* Half of it: the rest is not there at first. */
static inline bool open_guest(void)
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

static inline void close_guest(void)
{
	must(kvmem_image_capture_free(g.capture));
	for (unsigned int i = 0; i < REGIONS; i++)
		must(kvmem_region_free(g.ram[i]));
	free(g.model);
}

/* Said before it is done: whoever looks finds both or stands between two writes. */
static inline void guest_writes(uint64_t page, uint64_t word, uint64_t value)
{
	unsigned int region;
	uint8_t *at = page_at(page, &region);

	g.dirty[page] = true;
	atomic_store((_Atomic uint64_t *)(void *)at + word, value);
}

static inline void *write_on(void *arg)
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

static inline bool all_asleep(void *arg)
{
	(void)arg;
	return g.asleep == WRITERS;
}

static inline void pause_guest(void)
{
	g.paused = true;
	ck_assert(harness_wait(all_asleep, NULL, 60));
}

static inline bool has_written(void *arg)
{
	return g.writes >= *(uint64_t *)arg;
}

static inline void guest_runs(void)
{
	uint64_t until = g.writes + 700;

	g.paused = false;
	ck_assert(harness_wait(has_written, &until, 60));
}

static inline void start_writers(void)
{
	for (uintptr_t i = 0; i < WRITERS; i++)
		ck_assert_int_eq(pthread_create(&g.writers[i], NULL, write_on, (void *)(i + 1)), 0);
}

static inline void stop_writers(void)
{
	g.stop = true;
	g.paused = false;
	for (unsigned int i = 0; i < WRITERS; i++)
		pthread_join(g.writers[i], NULL);
}

/* ---- what is dirty ---- */

static inline void add_run(uint64_t page, uint64_t count)
{
	struct kvmem_run *run = &g.runs[g.run_count++];
	unsigned int region;
	uint8_t *at = page_at(page, &region);

	*run = (struct kvmem_run){ .region = g.ram[region],
				   .offset = (uint64_t)(at - g.base[region]),
				   .bytes = count * PAGE };
}

/* Each page by itself, some also with the next one, in no order. */
static inline void take_dirty(void)
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

static inline void give_dirty_back(void)
{
	for (uint64_t i = 0; i < g.run_count; i++)
		for (unsigned int k = 0; k < REGIONS; k++)
			if (g.runs[i].region == g.ram[k])
				for (uint64_t n = 0; n < g.runs[i].bytes / PAGE; n++)
					g.dirty[(g.at[k].gpa + g.runs[i].offset) / PAGE + n] = true;
}

/* ---- images ---- */

static inline struct kvmem_image_writer *begin(const char *name, struct kvmem_image *parent,
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

static inline void keep_model(void)
{
	for (unsigned int i = 0; i < REGIONS; i++)
		memcpy(g.model + g.at[i].gpa, g.base[i], lengths[i]);
}

static inline int start_dirty(struct kvmem_image_writer *w)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;

	o.runs = g.runs;
	o.run_count = g.run_count;
	return kvmem_image_capture_start_dirty(g.capture, w, g.ram, REGIONS, NULL, &o);
}

static inline void check(const char *name, const struct kvmem_image_save_result *res)
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

static inline struct kvmem_image *save_parent(void)
{
	struct kvmem_image_writer *w = begin("parent", NULL, 0);

	must(kvmem_image_save(w, g.ram, REGIONS, NULL, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	return open_image("parent.kvmem");
}

/* ---- beginning and end of a test ---- */

/* False: skipped. */
static inline bool enter_with_guest(void)
{
	enter_folder();
	if (open_guest())
		return true;
	leave_folder();
	return false;
}

static inline void leave_with_guest(void)
{
	close_guest();
	leave_folder();
}

/* With an image of all that it has, to which nothing is dirty; NULL: skipped. */
static inline struct kvmem_image *enter_with_parent(void)
{
	struct kvmem_image *parent;

	if (!enter_with_guest())
		return NULL;
	parent = save_parent();
	memset((void *)g.dirty, 0, sizeof(g.dirty));
	return parent;
}

static inline void leave_with_parent(struct kvmem_image *parent)
{
	must(kvmem_image_close(parent));
	leave_with_guest();
}

#endif
