// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a guest has written since its parent image, into an image on top of that. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image_mem.h"

#define GPA (UINT64_C(4) << 30)

static struct {
	uint64_t bytes;
	uint64_t *bitmap;
	uint64_t count; /* bits that are set */
	struct kvmem_vm *vm;
	struct kvmem_dirty *dirty;
	struct kvmem_writes *writes;
	struct kvmem_region *ram;
	uint8_t *base;
	struct kvmem_image *parent;
} d;

static bool is_dirty(uint64_t page)
{
	return d.bitmap[page / 64] >> (page % 64) & 1;
}

/* The next run of dirty pages from *page on. */
static bool next_run(uint64_t *page, uint64_t *ret_count)
{
	uint64_t pages = d.bytes / PAGE, end;

	for (; *page < pages; (*page)++) {
		if (!d.bitmap[*page / 64])
			*page |= 63;
		else if (is_dirty(*page))
			break;
	}
	if (*page >= pages)
		return false;
	for (end = *page + 1; end < pages && is_dirty(end); end++)
		;
	*ret_count = end - *page;
	return true;
}

/* ---- the sides ---- */

/* What VMMs do: a sparse file of the memory's length, with each run of the bitmap at its place. */
static double by_loop(void *arg)
{
	uint64_t page = 0, n;
	double t = bench_now();
	int fd = open("loop", O_RDWR | O_CREAT | O_TRUNC, 0600);

	(void)arg;
	bench_check(fd >= 0 && !ftruncate(fd, (off_t)d.bytes), "save-diff: a file");
	for (; next_run(&page, &n); page += n)
		bench_check(pwrite(fd, d.base + page * PAGE, n * PAGE, (off_t)(page * PAGE)) ==
				    (ssize_t)(n * PAGE),
			    "save-diff: pwrite");
	bench_check(!fdatasync(fd), "save-diff: fdatasync");
	t = bench_now() - t;
	close(fd);
	unlink("loop");
	return t;
}

/* Each page is the guest's where it is dirty, and the parent's where not: by the image, byte by byte. */
static void check_saved(void)
{
	struct kvmem_image *image = image_open("diff.kvmem");
	struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;
	uint8_t page[PAGE];
	uint64_t seen = 0;

	must(kvmem_image_get_info(image, &info));
	bench_check(info.bytes_data == d.count * PAGE, "save-diff: other pages than are dirty");
	for (uint64_t p = 0; p < d.bytes / PAGE; p++) {
		if (!is_dirty(p) && p % 512)
			continue; /* zero, by what info has said of all of them */
		must(kvmem_image_read(image, p * PAGE, page, PAGE));
		bench_check(is_page(page, p, is_dirty(p) ? 2 : 1), "save-diff: another content");
		seen += is_dirty(p);
	}
	bench_check(seen == d.count, "save-diff: pages are missing");
	must(kvmem_image_close(image));
	unlink("diff.kvmem");
	unlink("diff");
}

/* The guest writes them once more. */
static void write_again(void)
{
	uint64_t page = 0, n;

	for (; next_run(&page, &n); page += n)
		for (uint64_t i = 0; i < n; i++)
			fill_page(d.base + (page + i) * PAGE, page + i, 2);
}

/* Without a log of KVM's. */
static double by_writes(void *arg)
{
	struct kvmem_image_writer *w;
	struct kvmem_run runs[512];
	double t;

	(void)arg;
	write_again();
	t = bench_now();
	w = image_create("diff", d.bytes, 0, d.parent);
	for (uint64_t at = 0; at < d.bytes;) {
		int64_t n = kvmem_writes_take(d.writes, d.ram, at, runs, 512, &at);

		must((int)n);
		for (int64_t i = 0; i < n; i++)
			must(kvmem_image_write(w, runs[i].offset, d.base + runs[i].offset,
					       runs[i].bytes));
	}
	must(kvmem_image_commit(w, NULL));
	t = bench_now() - t;
	check_saved();
	return t;
}

static double by_batch(void *arg)
{
	struct kvmem_image_writer *w;
	struct kvmem_batch *batch;
	double t;

	(void)arg;
	must(kvmem_dirty_merge(d.dirty, d.ram, 0, d.bytes, 12, d.bitmap));
	t = bench_now();
	bench_check(kvmem_dirty_harvest(d.dirty, &batch) == (int64_t)d.count,
		    "save-diff: other pages than were written; %s", kvmem_error_detail());
	bench_check(!kvmem_dirty_commit(d.dirty, batch), "save-diff: commit");
	w = image_create("diff", d.bytes, 0, d.parent);
	must(kvmem_image_save(w, &d.ram, 1, batch, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	t = bench_now() - t;
	check_saved();
	return t;
}

/* ---- memory, and what is dirty in it ---- */

/* The log of a VM's, or none: then its memory is all the same. */
static bool open_log(void)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;

	if (kvmem_vm_create(NULL, &d.vm))
		return false;
	o.mode = KVMEM_DIRTY_BITMAP;
	must(kvmem_dirty_create(d.vm, &o, &d.dirty));
	return true;
}

/* A page in each 2 MiB, so that every block of its index is one that a child's index has to have too. */
static void make_parent(void)
{
	struct kvmem_image_writer *w = image_create("parent", d.bytes, 0, NULL);
	uint8_t page[PAGE];

	for (uint64_t p = 0; p < d.bytes / PAGE; p += 512) {
		fill_page(page, p, 1);
		must(kvmem_image_write(w, p * PAGE, page, PAGE));
	}
	must(kvmem_image_commit(w, NULL));
	d.parent = image_open("parent.kvmem");
}

static void open_memory(uint64_t bytes, bool log)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	d.bytes = bytes;
	d.bitmap = calloc(bytes / PAGE / 64, 8);
	d.count = 0;
	o.bytes = bytes;
	o.needs = log ? KVMEM_WANT_DIRTY : 0;
	o.backing = KVMEM_BACKING_ANONYMOUS;
	must(kvmem_region_create(log ? d.vm : NULL, &o, &d.ram));
	d.base = kvmem_region_base(d.ram);
	if (log) {
		must(kvmem_region_attach(d.ram, 0, bytes, GPA, KVMEM_SLOT_ANY, 0, NULL));
		must(kvmem_dirty_start(d.dirty));
	} else {
		must(kvmem_writes_add(d.writes, d.ram));
	}
	make_parent();
}

static void close_memory(bool log)
{
	must(kvmem_image_close(d.parent));
	unlink("parent.kvmem");
	unlink("parent");
	must(log ? kvmem_dirty_stop(d.dirty) : kvmem_writes_remove(d.writes, d.ram));
	must(kvmem_region_free(d.ram));
	free(d.bitmap);
}

/* Anywhere, until there are so many. No other page has memory. */
static void write_pages(uint64_t count)
{
	unsigned int seed = (unsigned int)count;

	while (d.count < count) {
		uint64_t p = ((uint64_t)(unsigned int)rand_r(&seed) << 15 ^
			      (unsigned int)rand_r(&seed)) %
			     (d.bytes / PAGE);

		if (is_dirty(p))
			continue;
		d.bitmap[p / 64] |= UINT64_C(1) << (p % 64);
		fill_page(d.base + p * PAGE, p, 2);
		d.count++;
	}
}

/* ---- rows ---- */

#define NOTE \
	"scattered pages, no others have memory; the parent has a page in each 2 MiB; all synced"

static void rows_of(bool log)
{
	const uint64_t counts[] = { 1000, 10000, 100000 };
	const char *kind = log ? "save-diff" : "save-diff-writes";
	struct bench_report r = {
		.unit = "ms",
		.baseline = { "pwrite loop over a bitmap", by_loop, NULL },
		.ours = { log ? "harvest and kvmem_image_save"
			      : "kvmem_writes_take, kvmem_image_write",
			  log ? by_batch : by_writes, NULL },
		.target = 2,
		.note = NOTE,
	};
	double x[4], y[4];
	char name[48];
	size_t n = 0;

	open_memory(bench_mib(8192, 256) * MIB, log);
	for (size_t i = 0; i < (bench_quick() ? 1 : 3); i++) {
		write_pages(counts[i]);
		r.rounds = counts[i] < 100000 ? 0 : 3; /* a disk takes seconds for so many places */
		snprintf(name, sizeof(name), "%s-%llu", kind, (unsigned long long)counts[i]);
		bench_compare(name, &r);
	}
	close_memory(log);
	for (uint64_t mib = bench_mib(8192, 256); n < 4 && mib >= 1; mib /= 2, n++) {
		open_memory(mib * MIB, log);
		write_pages(1000);
		x[n] = (double)mib;
		y[n] = bench_median(r.ours.run, NULL) / 1e6;
		close_memory(log);
	}
	bench_series(kind, r.ours.what, "MiB of memory, 1000 dirty pages", "ms", x, y, n);
}

static void save_diff(void)
{
	folder_enter();
	if (open_log()) {
		rows_of(true);
		must(kvmem_dirty_free(d.dirty));
		must(kvmem_vm_free(d.vm));
	} else {
		bench_skip("save-diff", "no dirty log: %s", kvmem_error_detail());
	}
	if (kvmem_writes_create(NULL, &d.writes)) {
		bench_skip("save-diff-writes", "%s", kvmem_error_detail());
	} else {
		rows_of(false);
		must(kvmem_writes_free(d.writes));
	}
	folder_leave();
}

BENCH_MAIN({ "save-diff", save_diff })
