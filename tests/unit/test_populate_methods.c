// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* How pages are made: revisions of write(), what the kernel refuses, pagers, and every call failing. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fill_rig.h"
#include "base/uapi/mm.h"
#include "fill/fill.h"

/* ---- write revisions, over a memfd that behaves as a guest_memfd of that revision ---- */

static struct rig *gmem;
static unsigned int most; /* pages a call takes before it stops short */

static bool exists(uint64_t off)
{
	return rig_allocated(gmem, off / PAGE - 1);
}

static int64_t gmem_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
	uint32_t rev = gmem->r.plan.write_rev;
	size_t n = 0;

	if (fd != gmem->r.fd)
		return km_real_pwrite(fd, buf, len, off);
	if (rev != KVMEM_WRITE_ANY && ((off | len) & (PAGE - 1)))
		return -EINVAL;
	if (off + len > gmem->r.fd_offset + BYTES)
		return -EINVAL;
	while (n < len && n < most * PAGE) {
		size_t piece = len - n < PAGE ? len - n : PAGE;

		if (rev == KVMEM_WRITE_ALIGNED_ONCE && exists(off + n))
			return n ? (int64_t)n : -ENOSPC;
		km_real_pwrite(fd, (const char *)buf + n, piece, off + n);
		n += piece;
	}
	return (int64_t)n;
}

static void gmem_init(struct rig *g, uint32_t rev)
{
	rig_init(g, RIG_MEMFD, 0);
	rig_memory_source(g);
	g->r.plan.backing = KVMEM_BACKING_GUEST_MEMFD;
	g->r.plan.write_rev = rev;
	g->opts.method = KVMEM_FILL_WRITE;
	gmem = g;
	most = 5;
	fake.pwrite = gmem_pwrite;
}

TEST(each_revision_of_write)
{
	static const uint64_t ranges[][2] = { { 0, 0 }, { 100, 9000 }, { PAGE + 1, 33 * PAGE } };
	struct rig g;

	for (uint32_t rev = KVMEM_WRITE_ALIGNED_ONCE; rev <= KVMEM_WRITE_ALIGNED; rev++) {
		for (size_t i = 0; i < KM_ARRAY_SIZE(ranges); i++) {
			gmem_init(&g, rev);
			g.opts.bytes = ranges[i][1];
			ck_assert_int_eq(rig_populate(&g, ranges[i][0]), 0);
			ck_assert_uint_gt(g.res.bytes_written, 0);
			ck_assert_uint_eq(g.res.bytes_copied, 0);
			ck_assert_uint_eq(g.res.method, KVMEM_FILL_WRITE);
			rig_expect(&g);
			rig_free(&g);
		}
	}
}
END

static int64_t touched_since(int fd, uint64_t off, uint64_t len, uint64_t *ret_pages)
{
	(void)fd, (void)off, (void)len;
	*ret_pages = 0;
	return 0;
}

TEST(a_page_that_is_there_cannot_be_written_once)
{
	struct rig g;

	gmem_init(&g, KVMEM_WRITE_ALIGNED_ONCE);
	fake.cachestat = touched_since;
	for (unsigned int p = 1; p < PAGES; p += 3)
		*(volatile uint8_t *)(g.r.base + p * PAGE) = 0x5a;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	for (unsigned int p = 0; p < PAGES; p++) /* zero pages were not touched */
		if (p % 3 == 1 && km_is_zero(g.content + p * PAGE, PAGE))
			g.r.base[p * PAGE] = 0;
	rig_expect(&g);
	rig_free(&g);
}
END

static int64_t no_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
	(void)fd, (void)buf, (void)len, (void)off;
	return -ESPIPE;
}

static int64_t full_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
	(void)fd, (void)buf, (void)len, (void)off;
	return -ENOSPC;
}

TEST(write_refused_by_the_kernel)
{
	struct rig g;

	gmem_init(&g, KVMEM_WRITE_ALIGNED);
	fake.pwrite = no_pwrite;
	ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "write"));
	g.opts.method = KVMEM_FILL_AUTO;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	ck_assert_uint_eq(g.res.bytes_written, 0);
	ck_assert_uint_eq(g.res.method, KVMEM_FILL_POPULATE_COPY);
	rig_expect(&g);
	rig_free(&g);

	gmem_init(&g, KVMEM_WRITE_NONE);
	ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "write population"));
	rig_free(&g);

	rig_init(&g, RIG_MEMFD, 0); /* a full file system: an error, not a reason to go on */
	rig_memory_source(&g);
	fake.pwrite = full_pwrite;
	g.opts.method = KVMEM_FILL_WRITE;
	ck_assert_int_eq(rig_populate(&g, 0), -ENOMEM);
	rig_free(&g);
}
END

/* ---- MADV_POPULATE ---- */

static int populate_errno;

static int64_t bad_madvise(void *addr, size_t len, int advice)
{
	if (advice == KM_MADV_POPULATE_READ || advice == KM_MADV_POPULATE_WRITE)
		return -populate_errno;
	return km_real_madvise(addr, len, advice);
}

TEST(populate_refused_means_copy)
{
	static const struct {
		uint32_t backing;
		int error, want;
	} cases[] = {
		{ KVMEM_BACKING_MEMFD, EINVAL, 0 },	  /* a kernel before 5.14 */
		{ KVMEM_BACKING_GUEST_MEMFD, EFAULT, 0 }, /* no GUP */
		{ KVMEM_BACKING_MEMFD, EFAULT, -ENOMEM }, /* touching it would be SIGBUS */
		{ KVMEM_BACKING_GUEST_MEMFD, ENOMEM, -ENOMEM },
	};
	struct rig g;

	for (size_t i = 0; i < KM_ARRAY_SIZE(cases); i++) {
		rig_init(&g, RIG_MEMFD, 0);
		rig_memory_source(&g);
		g.r.plan.backing = cases[i].backing;
		g.r.plan.write_rev = KVMEM_WRITE_NONE;
		populate_errno = cases[i].error;
		fake.madvise = bad_madvise;
		ck_assert_int_eq(rig_populate(&g, 0), cases[i].want);
		if (!cases[i].want) {
			ck_assert_uint_eq(g.res.method, KVMEM_FILL_COPY);
			g.opts.method = KVMEM_FILL_POPULATE_COPY;
			km_presence_turn(&g.r.presence, 0, PAGES, KM_PRESENT, KM_ABSENT);
			km_presence_turn(&g.r.presence, 0, PAGES, KM_ZERO, KM_ABSENT);
			g.opts.flags = KVMEM_FILL_OVERWRITE;
			ck_assert_int_eq(kvmem_populate(&g.r, 0, g.source, &g.opts, NULL),
					 -EOPNOTSUPP);
		}
		fake.madvise = NULL;
		rig_free(&g);
	}
}
END

TEST(the_fastest_of_the_trial_stays)
{
	struct rig g;
	unsigned long madvises;

	/* pwrite() in pages of 5 with a check each is the slower one by far. */
	gmem_init(&g, KVMEM_WRITE_ANY);
	most = 1;
	g.opts.method = KVMEM_FILL_AUTO;
	g.opts.flags = KVMEM_POPULATE_KEEP_ZERO;
	g.opts.chunk_bytes = 4 * PAGE;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	madvises = fake.count.madvise;
	ck_assert_uint_gt(madvises, 0);
	ck_assert_uint_gt(fake.count.pwrite, 0); /* both had their turn */
	rig_expect(&g);
	rig_free(&g);
}
END

/* ---- under a pager ---- */

static uint8_t pager_state[PAGES]; /* per page: 'm' mapped, 'w' woken */
static uint64_t pager_bad = UINT64_MAX;
static struct km_uffd pager_uffd;
static struct km_uffd_set pager_set;
static struct km_watch pager_watch;

static void note(uint64_t offset, uint64_t bytes, uint8_t what)
{
	const struct kvmem_region *r = pager_watch.region;

	ck_assert_uint_eq(offset & (km_region_page(r) - 1), 0);
	ck_assert_uint_eq(bytes & (km_region_page(r) - 1), 0);
	ck_assert_uint_gt(bytes, 0);
	for (uint64_t p = offset / PAGE; p < (offset + bytes) / PAGE; p++) {
		enum km_page_state state = km_presence_get(&r->presence, p);

		if (what == 'm')
			ck_assert_int_eq(state, KM_CLAIMED);
		else
			ck_assert_int_ne(state, KM_CLAIMED);
		pager_state[p] = what;
	}
}

/* The bytes that come to be; a fault waits for the page that does not. */
static int64_t let_through(uint64_t offset, uint64_t bytes, __s64 *result)
{
	*result = (__s64)bytes;
	if (offset > pager_bad || pager_bad >= offset + bytes)
		return 0;
	*result = (__s64)(pager_bad - offset);
	if (*result)
		return -EAGAIN;
	km_presence_want(&pager_watch.region->presence, pager_bad / PAGE);
	return -EIO;
}

static int64_t pager_ioctl(int fd, unsigned long request, void *arg)
{
	uint64_t base = pager_watch.addr, at;
	int64_t r = 0;

	if (fd != atomic_load(&pager_uffd.fd))
		return km_real_ioctl(fd, request, arg);
	if (request == UFFDIO_COPY) {
		struct uffdio_copy *c = arg;

		at = c->dst - base;
		r = let_through(at, c->len, &c->copy);
		memcpy(pager_watch.region->base + at, (void *)(uintptr_t)c->src, (size_t)c->copy);
		if (c->copy)
			note(at, (uint64_t)c->copy, 'm');
	} else if (request == UFFDIO_ZEROPAGE) {
		struct uffdio_zeropage *z = arg;

		r = let_through(z->range.start - base, z->range.len, &z->zeropage);
		if (z->zeropage)
			note(z->range.start - base, (uint64_t)z->zeropage, 'm');
	} else if (request == UFFDIO_CONTINUE) {
		struct uffdio_continue *c = arg;

		r = let_through(c->range.start - base, c->range.len, &c->mapped);
		if (c->mapped)
			note(c->range.start - base, (uint64_t)c->mapped, 'm');
	} else {
		struct uffdio_range *w = arg;

		ck_assert_uint_eq(request, UFFDIO_WAKE);
		note(w->start - base, w->len, 'w');
	}
	return r;
}

static int64_t no_events(int fd, void *buf, size_t len)
{
	return fd == atomic_load(&pager_uffd.fd) ? -EAGAIN : km_real_read(fd, buf, len);
}

static void pager_init(struct rig *g, enum rig_kind kind, unsigned int order)
{
	rig_init(g, kind, order);
	rig_memory_source(g);
	atomic_store(&pager_uffd.fd, 10000);
	pager_set = (struct km_uffd_set){ .count = 1, .all = &pager_uffd, .served = true };
	pager_watch = (struct km_watch){
		.set = &pager_set,
		.region = &g->r,
		.addr = (uintptr_t)g->r.base,
		.room = BYTES >> g->r.page_shift,
		.shift = g->r.page_shift,
		.stripe = BYTES >> g->r.page_shift,
		.ioctls = UINT64_MAX,
	};
	g->r.watch = &pager_watch;
	fake.ioctl = pager_ioctl;
	fake.read = no_events;
	memset(pager_state, 0, sizeof(pager_state));
	pager_bad = UINT64_MAX;
}

TEST(under_a_pager_pages_are_mapped)
{
	static const struct {
		enum rig_kind kind;
		uint32_t method, want;
	} cases[] = {
		{ RIG_MEMFD, KVMEM_FILL_POPULATE_COPY, KVMEM_FILL_POPULATE_COPY },
		{ RIG_MEMFD, KVMEM_FILL_COPY, KVMEM_FILL_COPY },
		{ RIG_MEMFD, KVMEM_FILL_WRITE, KVMEM_FILL_WRITE },
		{ RIG_MEMFD, KVMEM_FILL_UFFD_COPY, KVMEM_FILL_UFFD_COPY },
		{ RIG_ANON, KVMEM_FILL_AUTO, KVMEM_FILL_UFFD_COPY },
	};
	struct rig g;

	for (size_t i = 0; i < KM_ARRAY_SIZE(cases); i++) {
		pager_init(&g, cases[i].kind, 0);
		g.opts.method = cases[i].method;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		ck_assert_uint_eq(g.res.method, cases[i].want);
		for (unsigned int p = 0; p < PAGES; p++)
			ck_assert_int_eq(pager_state[p],
					 km_is_zero(g.content + p * PAGE, PAGE) ? 0 : 'm');
		if (cases[i].want != KVMEM_FILL_UFFD_COPY && cases[i].want != KVMEM_FILL_WRITE)
			ck_assert_ptr_nonnull(g.r.alias);
		rig_expect(&g);
		rig_free(&g);
	}
}
END

TEST(parts_of_huge_pages_do_not_go_through_userfaultfd)
{
	struct rig g;

	pager_init(&g, RIG_MEMFD, 1);
	g.opts.method = KVMEM_FILL_UFFD_COPY;
	ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "huge"));
	ck_assert_int_eq(km_presence_get(&g.r.presence, 1), KM_ABSENT);
	rig_free(&g);
}
END

TEST(anonymous_memory_under_a_pager_takes_no_other_method)
{
	struct rig g;

	pager_init(&g, RIG_ANON, 0);
	g.opts.method = KVMEM_FILL_POPULATE_COPY;
	ck_assert_int_eq(rig_populate(&g, 0), -EOPNOTSUPP);
	g.opts.method = KVMEM_FILL_AUTO;
	g.opts.flags = KVMEM_POPULATE_KEEP_ZERO;
	ck_assert_int_eq(rig_populate(&g, 0), 0);
	for (unsigned int p = 0; p < PAGES; p++)
		ck_assert_int_eq(pager_state[p], 'm');
	rig_expect(&g);
	rig_free(&g);
}
END

TEST(waiters_are_woken_when_the_fill_fails)
{
	struct rig g;

	for (int kind = RIG_MEMFD; kind <= RIG_ANON; kind++) {
		pager_init(&g, (enum rig_kind)kind, 0);
		pager_bad = 100 * PAGE;
		ck_assert_int_eq(rig_populate(&g, 0), -EIO);
		for (unsigned int p = 0; p < PAGES; p++) {
			enum km_page_state state = km_presence_get(&g.r.presence, p);

			ck_assert_int_ne(state, KM_CLAIMED);
			if (state == KM_PRESENT)
				ck_assert_int_eq(pager_state[p], 'm');
		}
		ck_assert_int_eq(pager_state[100], 'w');
		pager_bad = UINT64_MAX;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		rig_expect(&g);
		rig_free(&g);
	}
}
END

/* What is present when a fill fails, its result has counted. */
TEST(a_failed_fill_counts_what_it_published)
{
	static const uint32_t methods[] = { KVMEM_FILL_COPY, KVMEM_FILL_POPULATE_COPY,
					    KVMEM_FILL_WRITE };
	static const uint32_t files[] = { 0, KVMEM_FILE_PREAD, KVMEM_FILE_URING };

	for (unsigned int i = 0; i < 9; i++) {
		uint64_t present = 0, stored;
		struct rig g;
		int fd = -1;

		pager_init(&g, RIG_MEMFD, 0);
		g.opts.method = i / 3 == 2 && i % 3 ? KVMEM_FILL_AUTO : methods[i / 3];
		g.opts.file_method = files[i % 3];
		g.opts.flags = i & 1 ? KVMEM_POPULATE_KEEP_ZERO : 0;
		g.opts.threads = 1;
		if (files[i % 3]) {
			ck_assert_int_eq(kvmem_source_free(g.source), 0);
			fd = rig_content_file(&g, "/var/tmp");
			rig_file_source(&g, fd);
		}
		pager_bad = 100 * PAGE;
		ck_assert_int_eq(rig_populate(&g, 0), -EIO);
		for (unsigned int p = 0; p < PAGES; p++)
			present += km_presence_get(&g.r.presence, p) == KM_PRESENT;
		stored = g.res.bytes_copied + g.res.bytes_written + g.res.bytes_read;
		ck_assert_msg(stored == present * PAGE,
			      "case %u: %llu bytes counted, %llu pages present", i,
			      (unsigned long long)stored, (unsigned long long)present);
		ck_assert_uint_gt(present, 0);
		if (fd >= 0)
			close(fd);
		rig_free(&g);
	}
}
END

/* ---- every call failing once ---- */

/* A joined thread's stack and malloc()'s arena for it are kept for the next one; ThreadSanitizer maps what it
 * likes. */
#ifdef __SANITIZE_THREAD__
#define MAPS_OF_THREADS 10000
#else
#define MAPS_OF_THREADS 4
#endif

static int fail_each(enum rig_kind kind, bool file, uint32_t file_method)
{
	int failures = 0;

	for (unsigned long at = 1;; at++) {
		struct rig g;
		unsigned int maps;
		int fd = -1, r;

		rig_init(&g, kind, 0);
		fd = file ? rig_content_file(&g, "/var/tmp") : -1;
		if (file)
			rig_file_source(&g, fd);
		else
			rig_memory_source(&g);
		g.opts.threads = 2;
		g.opts.file_method = file_method;
		maps = harness_count_maps();
		fake.fail_errno = ENOMEM;
		fake.fail_at = fake.calls + at;
		r = rig_populate(&g, 0);
		fake.fail_at = 0;
		if (r && r != -ENOMEM && r != -EOPNOTSUPP)
			ck_abort_msg("%s failing gave %d: %s", fake.failed, r,
				     kvmem_error_detail());
		failures += r != 0;
		ck_assert_uint_le(harness_count_maps(), maps + MAPS_OF_THREADS);
		at = fake.failed ? at : ULONG_MAX;
		ck_assert_int_eq(rig_populate(&g, 0), 0);
		rig_expect(&g);
		if (fd >= 0)
			close(fd);
		rig_free(&g);
		if (at == ULONG_MAX)
			return failures;
		ck_assert_uint_lt(at, 2000);
	}
}

TEST(nothing_leaks_whichever_call_fails)
{
	ck_assert_int_gt(fail_each(RIG_MEMFD, false, KVMEM_FILE_AUTO), 3);
	ck_assert_int_gt(fail_each(RIG_ANON, false, KVMEM_FILE_AUTO), 3);
	ck_assert_int_gt(fail_each(RIG_MEMFD, true, KVMEM_FILE_PREAD), 3);
	ck_assert_int_gt(fail_each(RIG_MEMFD, true, KVMEM_FILE_URING), 3);
}
END

HARNESS_MAIN(T(each_revision_of_write), T(a_page_that_is_there_cannot_be_written_once),
	     T(write_refused_by_the_kernel), T(populate_refused_means_copy),
	     T(the_fastest_of_the_trial_stays), T(under_a_pager_pages_are_mapped),
	     T(parts_of_huge_pages_do_not_go_through_userfaultfd),
	     T(anonymous_memory_under_a_pager_takes_no_other_method),
	     T(waiters_are_woken_when_the_fill_fails), T(a_failed_fill_counts_what_it_published),
	     T(nothing_leaks_whichever_call_fails))
