// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Many guests from one image: what memory one more of them takes. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image_mem.h"

#define MOST   32u
#define ROUNDS 3u /* memory does not spread */

enum way { BY_COPY, BY_CLONE, BY_MEMFD };

static struct {
	uint64_t bytes;	   /* of one */
	uint64_t *written; /* pages that each of them writes */
	uint64_t count;
	struct kvmem_region *rams[MOST];
	int file, memfd;
} c;

/* ---- making them ---- */

/* A sealed memfd with all of the image in it. */
static void make_template(void)
{
	void *p;

	c.memfd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	bench_check(c.memfd >= 0 && !ftruncate(c.memfd, (off_t)c.bytes), "clones: a memfd");
	p = mmap(NULL, c.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c.memfd, 0);
	bench_check(p != MAP_FAILED && pread(c.file, p, c.bytes, 0) == (ssize_t)c.bytes,
		    "clones: filling a memfd");
	munmap(p, c.bytes);
	bench_check(!fcntl(c.memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE),
		    "clones: seals");
}

static struct kvmem_region *make_copy(void)
{
	struct kvmem_region *ram = memory_create(c.bytes, KVMEM_BACKING_MEMFD);
	struct kvmem_image *image = image_open("image.kvmem");
	struct kvmem_source *source;

	must(kvmem_image_source(image, 0, &source));
	must(kvmem_populate(ram, 0, source, NULL, NULL));
	must(kvmem_source_free(source));
	must(kvmem_image_close(image));
	return ram;
}

static struct kvmem_region *make_clone(int fd)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;

	o.flags = KVMEM_REGION_CLONE;
	o.fd = fd;
	o.bytes = c.bytes;
	must(kvmem_region_create(NULL, &o, &ram));
	return ram;
}

static void make(enum way way, unsigned int number)
{
	uint8_t *base;

	c.rams[number] = way == BY_COPY ? make_copy()
					: make_clone(way == BY_CLONE ? c.file : c.memfd);
	base = kvmem_region_base(c.rams[number]);
	for (uint64_t i = 0; i < c.count; i++)
		fill_page(base + c.written[i] * PAGE, c.written[i], 2 + number);
}

/* Byte by byte: its own pages, and all others, which are the image's still. */
static void check(unsigned int number)
{
	const uint8_t *base = kvmem_region_base(c.rams[number]);
	uint8_t *own = calloc(c.bytes / PAGE, 1);

	for (uint64_t i = 0; i < c.count; i++)
		own[c.written[i]] = 1;
	for (uint64_t p = 0; p < c.bytes / PAGE; p++)
		bench_check(is_page(base + p * PAGE, p, own[p] ? 2 + number : 1),
			    "clones: another content");
	free(own);
}

/* ---- what they take ---- */

static uint64_t own_memory(void)
{
	return proc_number("/proc/self/smaps_rollup", "Pss_Anon:") << 10;
}

static uint64_t memory_of(int fd)
{
	struct stat st;

	bench_check(!fstat(fd, &st), "clones: fstat");
	return (uint64_t)st.st_blocks * 512;
}

/* Pages of memory and of files in memory that there are because of them, each counted once; in MiB. */
static double memory(enum way way, unsigned int count)
{
	uint64_t n = own_memory();

	if (way == BY_CLONE)
		n += image_cached("image");
	if (way == BY_MEMFD)
		n += memory_of(c.memfd);
	for (unsigned int i = 0; way == BY_COPY && i < count; i++)
		n += memory_of(kvmem_region_fd(c.rams[i]));
	return (double)n / (double)MIB;
}

static double with_clones(enum way way, unsigned int count, double *ret_ns)
{
	double before, after, t;

	if (way == BY_MEMFD)
		make_template();
	before = (double)own_memory() / (double)MIB;
	t = bench_now();
	for (unsigned int i = 0; i < count; i++)
		make(way, i);
	*ret_ns = bench_now() - t;
	if (way == BY_CLONE) /* all of the image is in use, as in time it is with many guests */
		check(0);
	after = memory(way, count);
	for (unsigned int i = 0; i < count; i++) {
		check(i);
		must(kvmem_region_free(c.rams[i]));
	}
	if (way == BY_MEMFD)
		close(c.memfd);
	return after - before;
}

/* ---- rows ---- */

struct side {
	enum way way;
	unsigned int count;
};

static double further_mib(void *arg)
{
	const struct side *s = arg;
	double ns, one = with_clones(s->way, 1, &ns);

	return (with_clones(s->way, s->count, &ns) - one) / (s->count - 1);
}

static double written_mib(void *arg)
{
	(void)arg;
	return (double)(c.count * PAGE) / (double)MIB;
}

static double time_of(void *arg)
{
	const struct side *s = arg;
	double ns;

	with_clones(s->way, s->count, &ns);
	return ns;
}

static void rows_of(unsigned int count)
{
	struct side copy = { BY_COPY, count }, clone = { BY_CLONE, count };
	struct bench_report memory_row = {
		.unit = "MiB",
		.rounds = ROUNDS,
		.baseline = { "a copy in each", further_mib, &copy },
		.ours = { "KVMEM_REGION_CLONE of the data", further_mib, &clone },
		.limit = { "what it has written", written_mib, NULL },
		.limit_target = 1.1,
		.note = "for one more guest that writes 2 % of its pages: anonymous pages, memfds "
			"and the page cache of the image; written by the host, without KVM",
	};
	struct bench_report time_row = {
		.unit = "ms",
		.rounds = ROUNDS,
		.baseline = { "kvmem_populate of each", time_of, &copy },
		.ours = { "KVMEM_REGION_CLONE of the data", time_of, &clone },
		.note = "until all are there and have written 2 % of their pages",
	};
	char name[32];

	snprintf(name, sizeof(name), "clones-memory-%u", count);
	bench_compare(name, &memory_row);
	snprintf(name, sizeof(name), "clones-time-%u", count);
	bench_compare(name, &time_row);
}

/* All that there is, image and template included, by how many guests there are. */
static void series(unsigned int most)
{
	const char *curves[] = { "a copy in each", "clones of the file",
				 "clones of a sealed memfd" };
	double x[6], y[6], ns;

	for (unsigned int way = BY_COPY; way <= BY_MEMFD; way++) {
		size_t n = 0;

		for (unsigned int count = 1; count <= most; count *= 2, n++) {
			x[n] = count;
			y[n] = with_clones(way, count, &ns);
		}
		bench_series("clones-memory", curves[way], "guests", "MiB", x, y, n);
	}
}

static void clones(void)
{
	unsigned int most = bench_quick() ? 8 : MOST;
	uint64_t pages;

	folder_enter();
	c.bytes = bench_mib(256, 32) * MIB;
	image_make(c.bytes);
	c.file = open("image", O_RDONLY);
	bench_check(c.file >= 0, "clones: the image's data");
	pages = c.bytes / PAGE;
	c.count = pages / 50;
	c.written = calloc(c.count, sizeof(*c.written));
	for (uint64_t i = 0; i < c.count; i++)
		c.written[i] = i * 50 + i % 50;
	rows_of(2);
	if (most > 8)
		rows_of(8);
	rows_of(most);
	series(most);
	free(c.written);
	close(c.file);
	folder_leave();
}

BENCH_MAIN({ "clones", clones })
