// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "fill_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void make_content(uint8_t *p)
{
	unsigned long long seed = 88172645463325252ull;

	for (uint64_t page = 0; page < PAGES; page++) {
		if ((page >= 16 && page < 32) || page % 7 == 0)
			continue;
		for (uint64_t i = 0; i < PAGE; i += 8) {
			unsigned long long v = harness_random(&seed);

			memcpy(p + page * PAGE + i, &v, 8);
		}
	}
}

void rig_init(struct rig *g, enum rig_kind kind, unsigned int order)
{
	struct kvmem_region *r = &g->r;
	void *base;

	fake_reset();
	memset(g, 0, sizeof(*g));
	g->fds = harness_count_fds();
	g->maps = harness_count_maps();
	g->want = calloc(1, BYTES);
	g->content = calloc(1, BYTES);
	make_content(g->content);
	r->bytes = r->room = BYTES;
	r->page_shift = 12 + order;
	r->fd = r->private_fd = -1;
	if (kind == RIG_MEMFD) {
		r->fd = memfd_create("region", MFD_CLOEXEC);
		ck_assert_int_eq(ftruncate(r->fd, BYTES + PAGE), 0);
		r->fd_offset = PAGE;
		base = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, PAGE);
		r->plan.backing = KVMEM_BACKING_MEMFD;
		r->plan.write_rev = KVMEM_WRITE_ANY;
	} else {
		base = mmap(NULL, BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		r->plan.backing = KVMEM_BACKING_ANONYMOUS;
	}
	ck_assert_ptr_ne(base, MAP_FAILED);
	madvise(base, BYTES, MADV_NOHUGEPAGE);
	r->base = base;
	pthread_mutex_init(&r->lock, NULL);
	ck_assert_int_eq(km_presence_init(&r->presence, BYTES >> r->page_shift), 0);
	g->opts.size = sizeof(g->opts);
	g->opts.threads = 1;
	g->res.size = sizeof(g->res);
}

void rig_free(struct rig *g)
{
	struct kvmem_region *r = &g->r;

	ck_assert_uint_eq(atomic_load(&r->fillers), 0);
	for (uint64_t p = 0; p < r->presence.pages; p++)
		ck_assert_int_ne(km_presence_get(&r->presence, p), KM_CLAIMED);
	ck_assert_int_eq(kvmem_source_free(g->source), 0);
	km_presence_destroy(&r->presence);
	km_sys_munmap(r->alias, BYTES);
	munmap(r->base, BYTES);
	if (r->fd >= 0)
		close(r->fd);
	free(g->want);
	free(g->content);
	ck_assert_uint_eq(harness_count_fds(), g->fds);
	ck_assert_int_eq(fake.allocs, 0);
	fake_reset();
}

void rig_memory_source(struct rig *g)
{
	ck_assert_int_eq(kvmem_source_memory(g->content, BYTES, &g->source), 0);
}

int rig_content_file(struct rig *g, const char *dir)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/fill-XXXXXX", dir);
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return -1;
	unlink(path);
	ck_assert_int_eq(ftruncate(fd, BYTES), 0);
	for (uint64_t at = 0; at < BYTES; at += 16 * PAGE)
		if (!km_is_zero(g->content + at, 16 * PAGE))
			ck_assert_int_eq(pwrite(fd, g->content + at, 16 * PAGE, (off_t)at),
					 16 * PAGE);
	ck_assert_int_eq(fsync(fd), 0);
	return fd;
}

void rig_file_source(struct rig *g, int fd)
{
	ck_assert_int_eq(kvmem_source_file(fd, 0, 0, 0, &g->source), 0);
}

int rig_populate(struct rig *g, uint64_t offset)
{
	uint64_t bytes = g->opts.bytes;
	int r = kvmem_populate(&g->r, offset, g->source, &g->opts, &g->res);

	if (r)
		return r;
	if (!bytes) {
		bytes = BYTES - g->opts.source_offset;
		bytes = bytes < BYTES - offset ? bytes : BYTES - offset;
	}
	memcpy(g->want + offset, g->content + g->opts.source_offset, bytes);
	ck_assert_uint_eq(rig_sum(g), bytes);
	return 0;
}

uint64_t rig_sum(const struct rig *g)
{
	return g->res.bytes_copied + g->res.bytes_written + g->res.bytes_read + g->res.bytes_zero +
	       g->res.bytes_hole + g->res.bytes_present;
}

void rig_expect(struct rig *g)
{
	for (uint64_t p = 0; p < PAGES; p++)
		ck_assert_msg(!memcmp(g->r.base + p * PAGE, g->want + p * PAGE, PAGE), "page %lu",
			      (unsigned long)p);
}

bool rig_allocated(struct rig *g, uint64_t page)
{
	unsigned char vec = 0;
	int64_t data;

	if (g->r.fd < 0) {
		ck_assert_int_eq(mincore(g->r.base + page * PAGE, PAGE, &vec), 0);
		return vec & 1;
	}
	data = lseek(g->r.fd, (off_t)(g->r.fd_offset + page * PAGE), SEEK_DATA);
	return data == (int64_t)(g->r.fd_offset + page * PAGE);
}
