// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "image_mem.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[256];

void must(int r)
{
	bench_check(r >= 0, "%s", kvmem_error_detail());
}

/* ---- the folder ---- */

void folder_enter(void)
{
	snprintf(folder, sizeof(folder), "%s/kvmem-bench-XXXXXX", bench_dir());
	bench_check(mkdtemp(folder) && !chdir(folder), "%s: no folder", folder);
}

void folder_leave(void)
{
	char command[300];

	bench_check(!chdir("/"), "chdir");
	snprintf(command, sizeof(command), "rm -rf '%s'", folder);
	if (system(command)) /* NOLINT(cert-env33-c): a command of the benchmark's own */
		bench_check(false, "%s", command);
}

/* ---- images ---- */

struct kvmem_image *image_open(const char *index)
{
	struct kvmem_image *image;

	must(kvmem_image_open(index, NULL, &image));
	return image;
}

struct kvmem_image_writer *image_create(const char *name, uint64_t bytes, uint32_t flags,
					struct kvmem_image *parent)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region at = KVMEM_IMAGE_REGION_INIT;
	struct kvmem_image_writer *w;

	at.bytes = bytes;
	o.flags = flags;
	o.regions = &at;
	o.region_count = 1;
	o.parent = parent;
	must(kvmem_image_create(name, &o, &w));
	return w;
}

void image_make(uint64_t bytes)
{
	struct kvmem_image_writer *w = image_create("image", bytes, 0, NULL);
	uint8_t *buf = malloc(MIB);

	for (uint64_t at = 0; at < bytes; at += MIB) {
		for (uint64_t in = 0; in < MIB; in += PAGE)
			fill_page(buf + in, (at + in) / PAGE, 1);
		must(kvmem_image_write(w, at, buf, MIB));
	}
	must(kvmem_image_commit(w, NULL));
	free(buf);
}

void image_drop(void)
{
	int fd = open("image", O_RDONLY);

	bench_check(fd >= 0 && !fdatasync(fd) && !posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED),
		    "dropping the page cache of the image");
	close(fd);
}

uint64_t image_cached(const char *name)
{
	int fd = open(name, O_RDONLY);
	uint64_t pages = 0, n = 0;
	unsigned char *in_core;
	struct stat st;
	void *p;

	bench_check(fd >= 0 && !fstat(fd, &st), "%s cannot be opened", name);
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	bench_check(p != MAP_FAILED, "%s cannot be mapped", name);
	pages = ((uint64_t)st.st_size + PAGE - 1) / PAGE;
	in_core = malloc(pages);
	bench_check(!mincore(p, (size_t)st.st_size, in_core), "mincore");
	for (uint64_t i = 0; i < pages; i++)
		n += in_core[i] & 1;
	free(in_core);
	munmap(p, (size_t)st.st_size);
	close(fd);
	return n * PAGE;
}

uint64_t proc_number(const char *path, const char *key)
{
	FILE *f = fopen(path, "r");
	uint64_t n = 0;
	char line[128];

	bench_check(f != NULL, "%s cannot be read", path);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			n = strtoull(line + strlen(key), NULL, 10);
	fclose(f);
	return n;
}

/* ---- content ---- */

void fill_page(void *page, uint64_t number, uint32_t version)
{
	uint64_t *word = page;

	for (unsigned int i = 0; i < PAGE / 8; i++)
		word[i] = (number << 32 | version) * UINT64_C(0x9e3779b97f4a7c15) + i;
}

bool is_page(const void *page, uint64_t number, uint32_t version)
{
	uint64_t want[PAGE / 8];

	fill_page(want, number, version);
	return !memcmp(page, want, PAGE);
}

/* ---- memory, and what is touched of it ---- */

struct kvmem_region *memory_create(uint64_t bytes, uint32_t backing)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;

	o.bytes = bytes;
	o.backing = backing;
	must(kvmem_region_create(NULL, &o, &ram));
	return ram;
}

struct kvmem_workset *workset_make(uint64_t bytes, const struct kvmem_range *ranges, uint64_t count)
{
	struct kvmem_region *ram = memory_create(bytes, KVMEM_BACKING_MEMFD);
	struct kvmem_recorder_opts o = KVMEM_RECORDER_OPTS_INIT;
	struct kvmem_workset *set;
	struct kvmem_recorder *r;

	o.begin_ns = 1;
	o.max_bytes = bytes;
	must(kvmem_recorder_create(&ram, 1, &o, &r));
	for (uint64_t i = 0; i < count; i++) {
		struct kvmem_trace_entry e = { .time_ns = 2,
					       .region = ram,
					       .offset = ranges[i].offset,
					       .bytes = ranges[i].bytes };

		must(kvmem_recorder_add(r, &e, 1));
	}
	must(kvmem_recorder_finish(r, &set));
	kvmem_recorder_free(r);
	must(kvmem_region_free(ram));
	return set;
}
