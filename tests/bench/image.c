// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A guest's memory into an image, chains of images, and a working set brought back, beside what VMMs write by hand. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "image_mem.h"

/* ---- save-full ---- */

static struct {
	struct kvmem_region *ram;
	uint8_t *base;
	uint64_t bytes, data; /* half of it: runs of 1 to 64 pages, data and zeros in turn */
	_Atomic uint64_t next;
	int fd;
} s;

static void open_memory(uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	unsigned int seed = 3;

	o.bytes = s.bytes = bytes;
	o.backing = KVMEM_BACKING_ANONYMOUS;
	must(kvmem_region_create(NULL, &o, &s.ram));
	s.base = kvmem_region_base(s.ram);
	s.data = 0;
	for (uint64_t at = 0, n, i = 0; at < bytes; at += n, i++) {
		n = (1u + (unsigned int)rand_r(&seed) % 64) * PAGE;
		n = n > bytes - at ? bytes - at : n;
		if (i % 2) {
			memset(s.base + at, 0, n);
			continue;
		}
		bench_random_words(s.base + at, n, at + 1);
		s.data += n;
	}
}

static bool is_zero(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE - 1);
}

static void write_all(int fd, const uint8_t *buf, uint64_t bytes, uint64_t at)
{
	while (bytes) {
		ssize_t n = pwrite(fd, buf, bytes, (off_t)at);

		bench_check(n > 0, "save-full: pwrite");
		buf += n;
		at += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
}

/* What VMMs do: runs of pages that are not zero, written from the guest's memory. */
static double save_by_loop(void *arg)
{
	int fd = open("loop", O_RDWR | O_CREAT | O_TRUNC, 0600);
	double t = bench_now();

	(void)arg;
	bench_check(fd >= 0 && !ftruncate(fd, (off_t)s.bytes), "save-full: a file");
	for (uint64_t at = 0, end; at < s.bytes; at = end) {
		bool zero = is_zero(s.base + at);

		for (end = at + PAGE; end < s.bytes && end - at < MIB; end += PAGE)
			if (is_zero(s.base + end) != zero)
				break;
		if (!zero)
			write_all(fd, s.base + at, end - at, at);
	}
	bench_check(!fdatasync(fd), "save-full: fdatasync");
	t = bench_now() - t;
	close(fd);
	unlink("loop");
	return t;
}

/* The image has what the memory has; and is gone. */
static void check_saved(void)
{
	struct kvmem_image *image = image_open("image.kvmem");
	uint8_t *buf = malloc(MIB);

	for (uint64_t at = 0; at < s.bytes; at += MIB) {
		must(kvmem_image_read(image, at, buf, MIB));
		bench_check(!memcmp(buf, s.base + at, MIB), "save: another content");
	}
	must(kvmem_image_close(image));
	free(buf);
	unlink("image");
	unlink("image.kvmem");
}

static double save_by_library(void *arg)
{
	struct kvmem_image_writer *w;
	double t = bench_now();

	(void)arg;
	w = image_create("image", s.bytes, 0, NULL);
	must(kvmem_image_save(w, &s.ram, 1, NULL, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	t = bench_now() - t;
	check_saved();
	return t;
}

static void *write_some(void *arg)
{
	for (uint64_t at; (at = atomic_fetch_add(&s.next, MIB)) < s.data;)
		write_all(s.fd, (const uint8_t *)arg, s.data - at < MIB ? s.data - at : MIB, at);
	return NULL;
}

/* As many bytes of data, without zeros between them: O_DIRECT, four writes of a MiB under way. */
static double disk_alone(void *arg)
{
	uint8_t *buf = aligned_alloc(PAGE, MIB);
	pthread_t threads[4];
	double t;

	(void)arg;
	bench_random_words(buf, MIB, 5);
	s.fd = open("disk", O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0600);
	if (s.fd < 0)
		s.fd = open("disk", O_WRONLY | O_CREAT | O_TRUNC, 0600);
	bench_check(s.fd >= 0 && !ftruncate(s.fd, (off_t)s.data), "save-full: a file");
	s.next = 0;
	t = bench_now();
	for (unsigned int i = 0; i < 4; i++)
		bench_check(!pthread_create(&threads[i], NULL, write_some, buf), "no thread");
	for (unsigned int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	bench_check(!fdatasync(s.fd), "save-full: fdatasync");
	t = bench_now() - t;
	close(s.fd);
	unlink("disk");
	free(buf);
	return t;
}

static void save_full(void)
{
	struct bench_report r = {
		.unit = "ms",
		.baseline = { "pwrite loop", save_by_loop, NULL },
		.ours = { "kvmem_image_save", save_by_library, NULL },
		.limit = { "the disk, data alone", disk_alone, NULL },
		.target = 1.8,
		.limit_target = 1.18,
		.note = "half zero; with checksums; all synced",
	};

	folder_enter();
	open_memory(bench_mib(2048, 64) * MIB);
	bench_compare("save-full", &r);
	must(kvmem_region_free(s.ram));
	folder_leave();
}

/* ---- capture-pause ---- */

/* How long the guest stands still; all of it is saved and looked at afterwards. */
static double pause_of_capture(void *arg)
{
	struct kvmem_capture_stats stats = KVMEM_CAPTURE_STATS_INIT;
	struct kvmem_image_capture *capture;
	struct kvmem_image_writer *w = image_create("image", s.bytes, 0, NULL);

	(void)arg;
	must(kvmem_image_capture_create(NULL, &capture));
	must(kvmem_image_capture_start(capture, w, &s.ram, 1, 0));
	must(kvmem_image_capture_get_stats(capture, &stats));
	must(kvmem_image_capture_run(capture, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_capture_free(capture));
	check_saved();
	return (double)stats.pause_ns;
}

/* ---- capture-pause of differences ---- */

static struct {
	struct kvmem_run *runs;
	uint64_t count;
	struct kvmem_image *parent;
} diff;

/* The image of which the differences are: of the same memory, of which `count` pages are then other ones. */
static void make_parent(void)
{
	struct kvmem_image_writer *w = image_create("parent", s.bytes, 0, NULL);

	must(kvmem_image_save(w, &s.ram, 1, NULL, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	diff.parent = image_open("parent.kvmem");
}

/*
 * So many pages, spread over the memory. `most` is the greatest count there will be, a multiple of this one: the pages
 * of a smaller count are among those of a greater one, as they keep their other content.
 */
static void make_dirty(uint64_t count, uint64_t most)
{
	uint64_t step = s.bytes / PAGE / most * (most / count);

	diff.count = count;
	diff.runs = calloc(count, sizeof(*diff.runs));
	for (uint64_t i = 0; i < count; i++) {
		diff.runs[i] = (struct kvmem_run){
			.region = s.ram,
			.offset = i * step * PAGE,
			.bytes = PAGE,
		};
		bench_random_words(s.base + diff.runs[i].offset, PAGE, i + 7);
	}
}

static double pause_of_difference(void *arg)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_capture_stats stats = KVMEM_CAPTURE_STATS_INIT;
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_writer *w = image_create("image", s.bytes, 0, diff.parent);
	struct kvmem_image_capture *capture;
	double pause;

	(void)arg;
	must(kvmem_image_capture_create(NULL, &capture));
	o.runs = diff.runs;
	o.run_count = diff.count;
	pause = bench_now();
	must(kvmem_image_capture_start_dirty(capture, w, &s.ram, 1, NULL, &o));
	pause = bench_now() - pause;
	must(kvmem_image_capture_run(capture, NULL, &res));
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_capture_get_stats(capture, &stats));
	bench_check(res.bytes_data == diff.count * PAGE && stats.bytes == res.bytes_data,
		    "capture-pause-diff: other pages than are dirty");
	must(kvmem_image_capture_free(capture));
	check_saved();
	return pause;
}

static void pauses_of_differences(void)
{
	const uint64_t counts[] = { 1000, 10000, 100000 };
	struct bench_report r = {
		.unit = "ms",
		.baseline = { "kvmem_image_capture_start", pause_of_capture, NULL },
		.ours = { "kvmem_image_capture_start_dirty", pause_of_difference, NULL },
		.note = "the pause, without the harvest; all of the memory is present, dirty pages "
			"are single ones",
	};
	unsigned int last = bench_quick() ? 0 : 2;
	char name[48];

	make_parent();
	for (unsigned int i = 0; i <= last; i++) {
		make_dirty(counts[i], counts[last]);
		snprintf(name, sizeof(name), "capture-pause-diff-%llu",
			 (unsigned long long)counts[i]);
		bench_compare(name, &r);
		free(diff.runs);
	}
	must(kvmem_image_close(diff.parent));
}

static void capture_pause(void)
{
	struct bench_report r = {
		.unit = "ms",
		.baseline = { "kvmem_image_save, stopped", save_by_library, NULL },
		.ours = { "kvmem_image_capture_start", pause_of_capture, NULL },
		.target = 50,
		.note = "all of the memory is present, half of it zero",
	};
	struct kvmem_image_capture *probe;

	if (kvmem_image_capture_create(NULL, &probe)) {
		bench_skip("capture-pause", "%s", kvmem_error_detail());
		return;
	}
	must(kvmem_image_capture_free(probe));
	folder_enter();
	open_memory(bench_mib(2048, 64) * MIB);
	bench_compare("capture-pause", &r);
	pauses_of_differences();
	must(kvmem_region_free(s.ram));
	folder_leave();
}

/* ---- chain ---- */

#define CHAIN_BYTES (64 * MIB)
#define CHAIN_PAGES (CHAIN_BYTES / PAGE)
#define CHAIN_READS 20000u

static struct chain {
	unsigned int depth;
	unsigned int from; /* the images of a chain are in one folder: the depth is the number */
	uint32_t version[CHAIN_PAGES];
} chain;

static void name_of(char *ret, size_t room, unsigned int depth, bool index)
{
	snprintf(ret, room, "%u%s", depth, index ? ".kvmem" : "");
}

/* Each link changes 32 pages. */
static void grow_chain(unsigned int depth)
{
	static unsigned int seed = 11;
	uint8_t page[PAGE];
	char name[32];

	for (; chain.depth <= depth; chain.depth++) {
		struct kvmem_image *parent = NULL;
		struct kvmem_image_writer *w;

		name_of(name, sizeof(name), chain.depth - 1, true);
		if (chain.depth)
			parent = image_open(name);
		name_of(name, sizeof(name), chain.depth, false);
		w = image_create(name, CHAIN_BYTES, KVMEM_IMAGE_NO_SYNC, parent);
		for (uint64_t i = 0; i < (parent ? 32 : CHAIN_PAGES); i++) {
			uint64_t p = parent ? (unsigned int)rand_r(&seed) % CHAIN_PAGES : i;

			chain.version[p] = chain.depth;
			fill_page(page, p, chain.depth);
			must(kvmem_image_write(w, p * PAGE, page, PAGE));
		}
		must(kvmem_image_commit(w, NULL));
		must(kvmem_image_close(parent));
	}
}

static double open_one(void *arg)
{
	char name[32];
	double t;

	name_of(name, sizeof(name), *(unsigned int *)arg, true);
	t = bench_now();
	for (unsigned int i = 0; i < 100; i++)
		must(kvmem_image_close(image_open(name)));
	return (bench_now() - t) / 100;
}

/* What a format without flattening does at least: all indexes of the chain. */
static double open_all(void *arg)
{
	unsigned int depth = *(unsigned int *)arg;
	double t = bench_now();
	char name[32];

	for (unsigned int i = 0; i <= depth; i++) {
		name_of(name, sizeof(name), i, true);
		must(kvmem_image_close(image_open(name)));
	}
	return bench_now() - t;
}

static int by_value(const void *a, const void *b)
{
	return (*(const double *)a > *(const double *)b) -
	       (*(const double *)a < *(const double *)b);
}

static double p99_of(void *arg)
{
	unsigned int depth = *(unsigned int *)arg, seed = 5;
	double *times = malloc(CHAIN_READS * sizeof(*times)), p99;
	uint8_t page[PAGE];
	struct kvmem_image *image;
	char name[32];

	name_of(name, sizeof(name), depth, true);
	image = image_open(name);
	for (unsigned int i = 0; i < CHAIN_READS; i++) {
		uint64_t p = (unsigned int)rand_r(&seed) % CHAIN_PAGES;
		double t = bench_now();

		must(kvmem_image_read(image, p * PAGE, page, PAGE));
		times[i] = bench_now() - t;
		if (depth + 1 == chain.depth)
			bench_check(is_page(page, p, chain.version[p]), "chain: another content");
	}
	must(kvmem_image_close(image));
	qsort(times, CHAIN_READS, sizeof(*times), by_value);
	p99 = times[CHAIN_READS * 99 / 100];
	free(times);
	return p99;
}

static void chains(void)
{
	const unsigned int usual[] = { 10, 200, 2000 }, quick[] = { 10, 50 };
	static unsigned int one = 1, depth;
	size_t count = bench_quick() ? 2 : 3;

	folder_enter();
	chain.depth = 0;
	for (size_t i = 0; i < count; i++) {
		struct bench_report open_row = {
			.unit = "us",
			.baseline = { "every index of the chain", open_all, &depth },
			.ours = { "kvmem_image_open", open_one, &depth },
			.limit = { "depth 1", open_one, &one },
			.limit_target = 1.3,
		};
		struct bench_report read_row = {
			.unit = "us",
			.baseline = { "depth 1", p99_of, &one },
			.ours = { "this depth", p99_of, &depth },
			.note = "p99 of 20000 reads of a page, the first of each parent's file among them",
		};
		char name[32];

		depth = bench_quick() ? quick[i] : usual[i];
		grow_chain(depth);
		snprintf(name, sizeof(name), "chain-open-%u", depth);
		bench_compare(name, &open_row);
		snprintf(name, sizeof(name), "chain-read-%u", depth);
		bench_compare(name, &read_row);
	}
	folder_leave();
}

/* ---- replay ---- */

static struct {
	uint64_t bytes;
	struct kvmem_workset *set;
	struct kvmem_workset_range *ranges; /* in the order of the set */
	struct kvmem_range *sorted;	    /* ascending */
	uint64_t count, set_bytes;
	uint8_t *buf;
	bool dropped;
} y;

static int by_offset(const void *a, const void *b)
{
	const struct kvmem_range *x = a, *z = b;

	return (x->offset > z->offset) - (x->offset < z->offset);
}

static void check_set(const uint8_t *base)
{
	for (uint64_t i = 0; i < y.count; i++)
		for (uint64_t at = y.sorted[i].offset; at < y.sorted[i].offset + y.sorted[i].bytes;
		     at += PAGE)
			bench_check(is_page(base + at, at / PAGE, 1), "replay: another content");
}

/* One thread, ascending, a read and an UFFDIO_COPY for each run. */
static double by_hand(void *arg)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct kvmem_region *ram = memory_create(y.bytes, KVMEM_BACKING_MEMFD);
	uint8_t *base = kvmem_region_base(ram);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int fd = open("image", O_RDONLY);
	double t;

	(void)arg;
	bench_check(uffd >= 0 && fd >= 0 && !ioctl(uffd, UFFDIO_API, &api), "replay: userfaultfd");
	reg.range.start = (uintptr_t)base;
	reg.range.len = y.bytes;
	bench_check(!ioctl(uffd, UFFDIO_REGISTER, &reg), "replay: UFFDIO_REGISTER");
	if (y.dropped)
		image_drop();
	t = bench_now();
	for (uint64_t i = 0; i < y.count; i++) {
		struct uffdio_copy c = { .dst = (uintptr_t)base + y.sorted[i].offset,
					 .src = (uintptr_t)y.buf,
					 .len = y.sorted[i].bytes };

		bench_check(pread(fd, y.buf, c.len, (off_t)y.sorted[i].offset) == (ssize_t)c.len &&
				    !ioctl(uffd, UFFDIO_COPY, &c),
			    "replay: UFFDIO_COPY");
	}
	t = bench_now() - t;
	check_set(base);
	close(fd);
	close(uffd);
	must(kvmem_region_free(ram));
	return t;
}

static double by_replay(void *arg)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_replay_opts ro = KVMEM_REPLAY_OPTS_INIT;
	struct kvmem_replay_result res = KVMEM_REPLAY_RESULT_INIT;
	struct kvmem_region *ram = memory_create(y.bytes, KVMEM_BACKING_MEMFD);
	struct kvmem_image *image = image_open("image.kvmem");
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	double t;

	(void)arg;
	must(kvmem_image_source(image, 0, &source));
	o.fault_around = PAGE;
	must(kvmem_pager_create(&o, &pager));
	must(kvmem_pager_add(pager, ram, source, 0, 0));
	must(kvmem_pager_start(pager));
	if (y.dropped)
		image_drop();
	ro.image = y.dropped ? image : NULL;
	t = bench_now();
	must(kvmem_workset_replay(y.set, pager, &ram, 1, &ro, &res));
	t = bench_now() - t;
	bench_check(res.pages_filled * PAGE == y.set_bytes && !res.faults,
		    "replay: pages are missing");
	check_set(kvmem_region_base(ram));
	must(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_pager_free(pager));
	must(kvmem_source_free(source));
	must(kvmem_region_free(ram));
	must(kvmem_image_close(image));
	return t;
}

/* The disk's time for as many bytes in one read. */
static double one_read(void *arg)
{
	int fd = open("image", O_RDONLY | O_DIRECT);
	uint8_t *buf = aligned_alloc(PAGE, 4 * MIB);
	double t = bench_now();

	(void)arg;
	for (uint64_t at = 0; at < y.set_bytes; at += 4 * MIB)
		bench_check(pread(fd, buf, 4 * MIB, (off_t)at) > 0, "replay: pread");
	t = bench_now() - t;
	free(buf);
	close(fd);
	return t;
}

/* Runs of 1 to 4 pages all over the memory, in an order that is not that of addresses. */
static void make_set(uint64_t runs)
{
	struct kvmem_range *ranges = calloc(runs, sizeof(*ranges));
	uint64_t slots = y.bytes / (8 * PAGE);

	for (uint64_t i = 0; i < runs; i++)
		ranges[i] = (struct kvmem_range){ i * 0x9e3779b1ull % slots * 8 * PAGE,
						  (1 + i % 4) * PAGE };
	y.set = workset_make(y.bytes, ranges, runs);
	free(ranges);
}

static void open_replay(void)
{
	struct kvmem_workset_info info = KVMEM_WORKSET_INFO_INIT;

	y.bytes = bench_mib(4096, 128) * MIB;
	y.buf = malloc(MIB);
	image_make(y.bytes);
	make_set(bench_quick() ? 2000 : 100000);
	must(kvmem_workset_get_info(y.set, &info));
	y.count = info.ranges;
	y.set_bytes = info.bytes;
	y.ranges = calloc(y.count, sizeof(*y.ranges));
	y.sorted = calloc(y.count, sizeof(*y.sorted));
	bench_check(kvmem_workset_ranges(y.set, 0, y.ranges, y.count) == (int64_t)y.count,
		    "replay: ranges");
	for (uint64_t i = 0; i < y.count; i++)
		y.sorted[i] = (struct kvmem_range){ y.ranges[i].offset, y.ranges[i].bytes };
	qsort(y.sorted, y.count, sizeof(*y.sorted), by_offset);
}

static void replay(void)
{
	struct bench_report cached = {
		.unit = "ms",
		.baseline = { "one thread, a COPY a run", by_hand, NULL },
		.ours = { "kvmem_workset_replay", by_replay, NULL },
		.target = 2,
		.note = "250000 pages in 100000 runs, in the page cache; checksums are checked",
	};
	struct bench_report dropped = cached;
	struct kvmem_pager *probe;

	if (kvmem_pager_create(NULL, &probe)) {
		bench_skip("replay-cached", "%s", kvmem_error_detail());
		return;
	}
	must(kvmem_pager_free(probe));
	folder_enter();
	open_replay();
	bench_compare("replay-cached", &cached);
	dropped.limit = (struct bench_side){ "as many bytes in one read", one_read, NULL };
	dropped.limit_target = 1.3;
	dropped.target = 0;
	dropped.note = "the same, dropped from the page cache, read ahead in the set's order";
	y.dropped = true;
	bench_compare("replay-dropped", &dropped);
	kvmem_workset_free(y.set);
	free(y.ranges);
	free(y.sorted);
	free(y.buf);
	folder_leave();
}

BENCH_MAIN({ "save-full", save_full }, { "capture-pause", capture_pause }, { "chain", chains },
	   { "replay", replay })
