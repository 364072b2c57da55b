// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_populate(): the process lives, whatever the source, the limits and the descriptor are. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "fill_rig.h"

static const uint32_t methods[] = { KVMEM_FILL_AUTO, KVMEM_FILL_WRITE, KVMEM_FILL_POPULATE_COPY,
				    KVMEM_FILL_COPY };

/* ---- a source in memory that is taken away ---- */

struct cut {
	struct rig g;
	enum rig_kind kind;
	unsigned int order;
	uint32_t method;
	uint64_t left; /* bytes of the source's file that stay */
	int fd;
};

/* The content in a mapping of a file, which may be cut short. */
static void mapped_source(struct cut *c)
{
	void *p;

	c->fd = memfd_create("source", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(c->fd, BYTES), 0);
	ck_assert_int_eq(pwrite(c->fd, c->g.content, BYTES, 0), BYTES);
	p = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, c->fd, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	ck_assert_int_eq(kvmem_source_memory(p, BYTES, &c->g.source), 0);
}

static void expect_half(struct cut *c)
{
	struct rig *g = &c->g;

	for (uint64_t p = 0; p < g->r.presence.pages; p++) {
		uint64_t at = p << g->r.page_shift, n = 1ull << g->r.page_shift;

		if (km_presence_get(&g->r.presence, p) == KM_ABSENT)
			ck_assert(km_is_zero(g->r.base + at, n));
		else
			ck_assert(!memcmp(g->r.base + at, g->content + at, n));
		if (at + n > c->left)
			ck_assert_int_eq(km_presence_get(&g->r.presence, p), KM_ABSENT);
	}
}

static int populate_cut(void *arg)
{
	struct cut *c = arg;
	struct rig *g = &c->g;

	rig_init(g, c->kind, c->order);
	mapped_source(c);
	g->opts.method = c->method;
	ck_assert_int_eq(ftruncate(c->fd, (off_t)c->left), 0);
	ck_assert_int_eq(kvmem_populate(&g->r, 0, g->source, &g->opts, &g->res), -EFAULT);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "cut short"));
	expect_half(c);
	ck_assert_int_eq(ftruncate(c->fd, BYTES), 0);
	ck_assert_int_eq(pwrite(c->fd, g->content, BYTES, 0), BYTES);
	g->opts.flags = KVMEM_FILL_OVERWRITE; /* looking at them has made the absent ones */
	ck_assert_int_eq(rig_populate(g, 0), 0);
	rig_expect(g);
	return 0;
}

TEST(k10_30_a_source_that_was_cut_short)
{
	for (unsigned int i = 0; i < 2 * 2 * KM_ARRAY_SIZE(methods); i++) {
		struct cut c = { .kind = i & 1 ? RIG_ANON : RIG_MEMFD,
				 .order = i & 2 ? 4 : 0,
				 .method = methods[i / 4],
				 .left = BYTES / 2 + PAGE };

		if (c.kind == RIG_ANON && c.method == KVMEM_FILL_WRITE)
			continue;
		ck_assert_int_eq(harness_child(populate_cut, &c), 0);
	}
}
END

static int source_fd = -1;
static atomic_int reads_left;

static int64_t cut_vm_read(void *to, const void *from, size_t len)
{
	if (atomic_fetch_sub(&reads_left, 1) == 0)
		ck_assert_int_eq(ftruncate(source_fd, 0), 0);
	return km_real_vm_read(to, from, len);
}

static int populate_while_cut(void *arg)
{
	struct cut *c = arg;
	struct rig *g = &c->g;

	rig_init(g, c->kind, c->order);
	mapped_source(c);
	source_fd = c->fd;
	fake.vm_read = cut_vm_read;
	g->opts.method = c->method;
	g->opts.chunk_bytes = 64 << 10;
	ck_assert_int_eq(kvmem_populate(&g->r, 0, g->source, &g->opts, &g->res), -EFAULT);
	c->left = 256 << 10; /* a buffer's worth may have been read before */
	expect_half(c);
	return 0;
}

TEST(k10_30_a_source_that_is_cut_short_meanwhile)
{
	for (unsigned int i = 0; i < 3 * KM_ARRAY_SIZE(methods); i++) {
		struct cut c = { .kind = RIG_MEMFD, .method = methods[i / 3] };

		atomic_store(&reads_left, (int)(i % 3));
		ck_assert_int_eq(harness_child(populate_while_cut, &c), 0);
	}
}
END

/* A mapping for which no huge page is left: 0, -EFAULT, or 77 where none can be made. */
static int no_huge_pages(void *arg)
{
	const size_t huge = 2 << 20;
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
	void *p = mmap(NULL, huge, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, -1, 0);
	struct rig g;
	int r;

	(void)arg;
	if (p == MAP_FAILED)
		return 77;
	while (mmap(NULL, huge, PROT_READ, flags | MAP_POPULATE, -1, 0) != MAP_FAILED)
		; /* all that the pool has left */
	rig_init(&g, RIG_MEMFD, 0);
	ck_assert_int_eq(kvmem_source_memory(p, BYTES, &g.source), 0);
	r = kvmem_populate(&g.r, 0, g.source, &g.opts, &g.res);
	return r == -EFAULT ? 0 : r ? 1 : 2;
}

TEST(k10_30_a_source_whose_huge_pages_have_run_out)
{
	int r = 2;

	/* 2: the pool is the machine's, and somebody has filled it up again. */
	for (int tries = 0; tries < 20 && r == 2; tries++)
		r = harness_child(no_huge_pages, NULL);
	SKIP_IF(r == 77, "hugetlb", "no mapping of huge pages can be made");
	ck_assert_int_eq(r, 0);
}
END

/* What cannot be cut short is read in place, at full speed: no copy by the kernel, no buffer. */
TEST(k10_30_anonymous_memory_is_not_copied_twice)
{
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	g.source = NULL;
	ck_assert_int_eq(kvmem_source_memory(g.content, BYTES, &g.source), 0);
	g.opts.method = KVMEM_FILL_POPULATE_COPY;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(fake.count.vm_read, 0);
	rig_expect(&g);
	rig_free(&g);
}
END

/* ---- the region's own file is cut short ---- */

static int cut_region(void *arg)
{
	const uint32_t *method = arg;
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	g.r.adopted = true;
	g.opts.method = *method;
	ck_assert_int_eq(ftruncate(g.r.fd, PAGE + BYTES / 2), 0);
	ck_assert_int_eq(rig_populate(&g, 0), -ENODATA);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "region's file has been cut short"));
	ck_assert_int_eq(lseek(g.r.fd, 0, SEEK_END), PAGE + BYTES / 2);
	g.opts.bytes = BYTES / 2;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert(!memcmp(g.r.base, g.content, BYTES / 2));
	ck_assert_int_eq(ftruncate(g.r.fd, PAGE + BYTES), 0);
	rig_free(&g);
	return 0;
}

static unsigned int calls_left;
static int cut_fd;

static void cut_soon(void)
{
	if (!calls_left--)
		ck_assert_int_eq(ftruncate(cut_fd, PAGE), 0);
}

static int64_t cut_madvise(void *addr, size_t len, int advice)
{
	cut_soon();
	return km_real_madvise(addr, len, advice);
}

static int64_t cut_getrlimit(int what, struct rlimit *ret)
{
	cut_soon(); /* before each write */
	return km_real_getrlimit(what, ret);
}

static int cut_region_meanwhile(void *arg)
{
	const uint32_t *method = arg;
	struct rig g;

	for (unsigned int at = 0; at < 3; at++) {
		rig_init(&g, RIG_MEMFD, 0);
		rig_memory_source(&g);
		g.r.adopted = true;
		g.opts.method = *method;
		g.opts.chunk_bytes = 64 << 10;
		calls_left = at;
		cut_fd = g.r.fd;
		fake.madvise = cut_madvise;
		fake.getrlimit = cut_getrlimit;
		if (rig_populate(&g, 0) >= 0)
			return 1;
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "cut short"));
		ck_assert_int_eq(lseek(g.r.fd, 0, SEEK_END), PAGE);
		ck_assert_int_eq(ftruncate(g.r.fd, PAGE + BYTES), 0);
		rig_free(&g);
	}
	return 0;
}

TEST(k10_30_the_regions_file_was_cut_short)
{
	for (size_t m = 0; m < KM_ARRAY_SIZE(methods); m++) {
		uint32_t method = methods[m];

		ck_assert_int_eq(harness_child(cut_region, &method), 0);
		if (method != KVMEM_FILL_COPY)
			ck_assert_int_eq(harness_child(cut_region_meanwhile, &method), 0);
	}
}
END

/* ---- a range that ends, or begins, in the middle of a huge page ---- */

/* Pages of two buffers' size: one of the buffers holds nothing of the range. */
TEST(k6_20_a_part_of_a_huge_page)
{
	static const uint64_t ranges[][2] = {
		{ 0, 5 * PAGE + 3 }, { 0, BYTES / 2 + 1 }, { BYTES / 2 - 5 * PAGE - 9, 5 * PAGE },
		{ BYTES - 77, 77 },  { BYTES / 4 + 1, 5 }, { BYTES / 2 - 1, 2 },
	};

	for (size_t i = 0; i < KM_ARRAY_SIZE(ranges) * KM_ARRAY_SIZE(methods); i++) {
		const uint64_t *range = ranges[i / KM_ARRAY_SIZE(methods)];
		struct rig g;

		rig_init(&g, RIG_MEMFD, 7);
		ck_assert_int_eq(kvmem_source_memory(g.content, range[1], &g.source), 0);
		memset(g.content, 0x19, BYTES);
		g.opts.method = methods[i % KM_ARRAY_SIZE(methods)];
		ck_assert_int_eq(kvmem_populate(&g.r, range[0], g.source, &g.opts, &g.res), 0);
		memset(g.want + range[0], 0x19, range[1]);
		rig_expect(&g);
		rig_free(&g);
	}
}
END

/* ---- little memory ---- */

static _Atomic bool threads_made;

static int64_t hungry_thread(struct km_thread *ret, const char *name,
			     const struct km_sys_thread *how, void *(*fn)(void *), void *arg)
{
	atomic_store(&threads_made, true);
	return km_real_thread_create(ret, name, how, fn, arg);
}

static void *no_more_memory(size_t len)
{
	return atomic_load(&threads_made) ? NULL : calloc(1, len);
}

/* What the stacks of threads take may be what the buffers need. */
TEST(k10_30_buffers_come_before_threads)
{
	struct rig g;
	int fd;

	rig_init(&g, RIG_MEMFD, 0);
	fd = rig_content_file(&g, "/dev/shm");
	rig_file_source(&g, fd);
	atomic_store(&threads_made, false);
	fake.thread_create = hungry_thread;
	fake.alloc = no_more_memory;
	g.opts.threads = 3;
	g.opts.chunk_bytes = 64 << 10;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(g.res.threads, 2); /* the third found no buffer */
	fake.alloc = NULL;
	rig_expect(&g);
	close(fd);
	rig_free(&g);
}
END

/* ---- RLIMIT_FSIZE ---- */

/* No assertion under the limit: each writes to a file of its own. */
static void limit_files(uint64_t bytes)
{
	struct rlimit limit;

	getrlimit(RLIMIT_FSIZE, &limit);
	limit.rlim_cur = bytes;
	setrlimit(RLIMIT_FSIZE, &limit);
}

static int limited(struct rig *g, uint64_t bytes)
{
	int r;

	limit_files(bytes);
	r = kvmem_populate(&g->r, 0, g->source, &g->opts, &g->res);
	limit_files(RLIM_INFINITY);
	memcpy(g->want, g->content, BYTES);
	return r;
}

static int populate_limited(void *arg)
{
	const uint64_t *limit = arg;
	struct rig g;

	for (size_t m = 0; m < KM_ARRAY_SIZE(methods); m++) {
		rig_init(&g, RIG_MEMFD, 0);
		rig_memory_source(&g);
		g.opts.method = methods[m];
		if (methods[m] == KVMEM_FILL_WRITE) {
			ck_assert_int_eq(limited(&g, *limit), -EOPNOTSUPP);
			ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "RLIMIT_FSIZE"));
		} else {
			ck_assert_int_eq(limited(&g, *limit), 0);
			ck_assert_uint_eq(g.res.bytes_written, 0);
			rig_expect(&g);
		}
		rig_free(&g);
	}
	return 0;
}

TEST(k10_31_a_limit_of_file_size_is_no_end_of_the_process)
{
	static uint64_t limits[] = { 0, PAGE, BYTES / 2, BYTES, BYTES + PAGE - 1 };

	for (size_t i = 0; i < KM_ARRAY_SIZE(limits); i++)
		ck_assert_int_eq(harness_child(populate_limited, &limits[i]), 0);
}
END

/* The limit comes down between two writes. */
static int64_t limiting_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
	int64_t r = km_real_pwrite(fd, buf, len, off);

	limit_files(off + (uint64_t)r);
	return r;
}

static int populate_while_limited(void *arg)
{
	struct rig g;

	(void)arg;
	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	g.opts.chunk_bytes = 64 << 10;
	fake.pwrite = limiting_pwrite;
	ck_assert_int_eq(limited(&g, RLIM_INFINITY), 0);
	ck_assert_uint_gt(fake.count.pwrite, 0);
	rig_expect(&g);
	rig_free(&g);
	return 0;
}

TEST(k10_31_a_limit_that_comes_down_meanwhile)
{
	ck_assert_int_eq(harness_child(populate_while_limited, NULL), 0);
}
END

/* ---- O_APPEND ---- */

static void append(int fd)
{
	ck_assert_int_eq(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_APPEND), 0);
}

TEST(k12_38_a_descriptor_that_appends_is_not_written_to)
{
	struct rig g;

	for (size_t m = 0; m < KM_ARRAY_SIZE(methods); m++) {
		rig_init(&g, RIG_MEMFD, 0);
		rig_memory_source(&g);
		append(g.r.fd);
		g.opts.method = methods[m];
		if (methods[m] == KVMEM_FILL_WRITE) {
			ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
			ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "O_APPEND"));
		} else {
			ck_assert_int_eq(rig_populate(&g, 0), 0);
			rig_expect(&g);
		}
		ck_assert_int_eq(lseek(g.r.fd, 0, SEEK_END), BYTES + PAGE);
		rig_free(&g);
	}
}
END

static int64_t appending_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
	int64_t r = km_real_pwrite(fd, buf, len, off);

	append(fd);
	return r;
}

TEST(k12_38_a_descriptor_that_begins_to_append)
{
	struct rig g;

	rig_init(&g, RIG_MEMFD, 0);
	rig_memory_source(&g);
	g.opts.chunk_bytes = 64 << 10;
	fake.pwrite = appending_pwrite;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_gt(fake.count.pwrite, 0);
	ck_assert_int_eq(lseek(g.r.fd, 0, SEEK_END), BYTES + PAGE);
	rig_expect(&g);
	rig_free(&g);
}
END

/* ---- extents ---- */

struct pieces {
	struct rig *g;
	uint64_t piece;
	unsigned long calls;
};

static int piece_extent(void *arg, uint64_t offset, struct kvmem_extent *e)
{
	struct pieces *p = arg;

	p->calls++;
	e->kind = KVMEM_EXTENT_DATA;
	e->offset = offset / p->piece * p->piece;
	e->bytes = p->piece;
	return 0;
}

static int piece_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct pieces *p = arg;

	memset(buf, 0x6b, bytes);
	if (offset + bytes <= BYTES)
		memcpy(buf, p->g->content + offset, bytes);
	return 0;
}

static void piece_source(struct pieces *p, uint64_t bytes)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	ops.read = piece_read;
	ops.extent = piece_extent;
	ck_assert_int_eq(kvmem_source_callback(&ops, p, bytes, &p->g->source), 0);
}

TEST(k6_22_populate_asks_for_the_extents_of_its_range_alone)
{
	static const uint64_t sizes[] = { 512, PAGE, 64 << 10, 256 << 10 };
	struct rig g;

	for (size_t i = 0; i < KM_ARRAY_SIZE(sizes); i++) {
		struct pieces p = { .g = &g, .piece = sizes[i] };
		unsigned long most = 2 * (BYTES / sizes[i] + 4);

		rig_init(&g, RIG_MEMFD, 0);
		piece_source(&p, UINT64_C(16) << 30);
		ck_assert_int_eq(kvmem_populate(&g.r, 0, g.source, &g.opts, &g.res), 0);
		ck_assert_msg(p.calls <= most, "%lu calls for extents of %lu bytes", p.calls,
			      (unsigned long)sizes[i]);
		memcpy(g.want, g.content, BYTES);
		rig_expect(&g);
		rig_free(&g);
	}
}
END

HARNESS_MAIN(T(k10_30_a_source_that_was_cut_short), T(k10_30_a_source_that_is_cut_short_meanwhile),
	     T(k10_30_a_source_whose_huge_pages_have_run_out),
	     T(k10_30_anonymous_memory_is_not_copied_twice),
	     T(k10_30_the_regions_file_was_cut_short), T(k10_30_buffers_come_before_threads),
	     T(k6_20_a_part_of_a_huge_page),
	     T(k10_31_a_limit_of_file_size_is_no_end_of_the_process),
	     T(k10_31_a_limit_that_comes_down_meanwhile),
	     T(k12_38_a_descriptor_that_appends_is_not_written_to),
	     T(k12_38_a_descriptor_that_begins_to_append),
	     T(k6_22_populate_asks_for_the_extents_of_its_range_alone))
