// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What was written through a mapping: each page that was, and of those at rest none. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE  4096ull
#define MIB   (1ull << 20)
#define HUGE  (2 * MIB)
#define BYTES (8 * MIB)
#define PAGES (BYTES / PAGE)

static void must(int64_t r)
{
	if (r < 0)
		ck_abort_msg("%lld: %s", (long long)r, kvmem_error_detail());
}

static void fails(int64_t r, int err, const char *word)
{
	if (r != -err || !strstr(kvmem_error_detail(), word))
		ck_abort_msg("%lld, not %d, or '%s' is not in: %s", (long long)r, -err, word,
			     kvmem_error_detail());
}

struct rig {
	struct kvmem_writes *writes;
	struct kvmem_region *region;
	uint8_t *at;
	uint64_t page;
	bool told[PAGES];
	uint64_t count; /* of told */
};

static bool open_writes(struct kvmem_writes **ret)
{
	int r = kvmem_writes_create(NULL, ret);

	if (r == -EOPNOTSUPP || r == -EPERM) {
		harness_skip("wp-async", "%s", kvmem_error_detail());
		return false;
	}
	must(r);
	return true;
}

/* False: no huge pages. */
static bool open_region(struct rig *r, uint32_t backing, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	int err;

	o.bytes = bytes;
	o.backing = backing;
	o.page_size = backing == KVMEM_BACKING_HUGETLB ? HUGE : 0;
	err = kvmem_region_create(NULL, &o, &r->region);
	if (err == -EOPNOTSUPP && backing == KVMEM_BACKING_HUGETLB)
		return false;
	must(err);
	r->at = kvmem_region_base(r->region);
	r->page = kvmem_region_page_size(r->region);
	return true;
}

static void close_rig(struct rig *r)
{
	must(kvmem_writes_remove(r->writes, r->region));
	must(kvmem_region_free(r->region));
	must(kvmem_writes_free(r->writes));
}

/* By a few runs at a time, as small buffers do. */
static void take(struct rig *r, size_t room)
{
	uint64_t at = 0, bytes = kvmem_region_bytes(r->region), next, last = 0;
	struct kvmem_run runs[512];

	memset(r->told, 0, sizeof(r->told));
	r->count = 0;
	for (; at < bytes; at = next) {
		int64_t n = kvmem_writes_take(r->writes, r->region, at, runs, room, &next);

		must(n);
		ck_assert_int_le(n, (int64_t)room);
		ck_assert_uint_gt(next, at);
		for (int64_t i = 0; i < n; i++) {
			ck_assert_ptr_eq(runs[i].region, r->region);
			ck_assert_uint_ge(runs[i].offset, last);
			last = runs[i].offset + runs[i].bytes;
			ck_assert_uint_le(last, bytes);
			for (uint64_t p = runs[i].offset / PAGE; p < last / PAGE; p++) {
				r->told[p] = true;
				r->count++;
			}
		}
	}
}

static uint64_t small(const struct rig *r)
{
	return r->page / PAGE;
}

static const uint32_t backings[] = { KVMEM_BACKING_ANONYMOUS, KVMEM_BACKING_MEMFD,
				     KVMEM_BACKING_HUGETLB };

TEST(each_page_that_was_written_and_no_other)
{
	static struct rig r;

	for (unsigned int i = 0; i < 3; i++) {
		uint64_t step, n = 0;

		if (!open_writes(&r.writes))
			return;
		if (!open_region(&r, backings[i], BYTES)) {
			must(kvmem_writes_free(r.writes));
			continue;
		}
		memset(r.at, 1, BYTES / 2); /* the other half was never touched */
		must(kvmem_writes_add(r.writes, r.region));
		take(&r, 512);
		ck_assert_uint_eq(r.count, 0);
		for (unsigned int round = 0; round < 3; round++) {
			step = r.page * (3 + round);
			n = 0;
			for (uint64_t at = 0; at < BYTES; at += step, n++)
				r.at[at + round]++;
			for (uint64_t at = r.page; at < BYTES; at += r.page)
				ck_assert_uint_le(((volatile uint8_t *)r.at)[at],
						  4); /* reads are none */
			take(&r, 1 + 200 * round);
			ck_assert_uint_eq(r.count, n * small(&r));
			for (uint64_t at = 0; at < BYTES; at += step)
				ck_assert(r.told[at / PAGE]);
			take(&r, 512);
			ck_assert_uint_eq(r.count, 0);
		}
		close_rig(&r);
	}
}
END

/* What is written by the kernel, and what is in the mapping no more. */
TEST(writes_of_the_kernel_and_pages_that_have_gone)
{
	static struct rig r;
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	for (unsigned int i = 0; i < 2; i++) {
		if (!open_writes(&r.writes))
			break;
		open_region(&r, backings[i], BYTES);
		memset(r.at, 1, BYTES);
		must(kvmem_writes_add(r.writes, r.region));
		ck_assert_int_eq(read(fd, r.at + 7 * PAGE, 2 * PAGE), 2 * PAGE);
		take(&r, 512);
		ck_assert_uint_eq(r.count, 2);
		ck_assert(r.told[7] && r.told[8]);
		/* Written, and dropped from the mapping: of a memfd the content is still there. */
		r.at[20 * PAGE] = 5;
		ck_assert_int_eq(madvise(r.at + 20 * PAGE, PAGE, MADV_DONTNEED), 0);
		take(&r, 512);
		ck_assert(r.told[20]);
		/* The same, and its page table with it. */
		memset(r.at + 512 * PAGE, 5, 1536 * PAGE);
		ck_assert_int_eq(madvise(r.at + 512 * PAGE, 1536 * PAGE, MADV_DONTNEED), 0);
		take(&r, 512);
		ck_assert_uint_eq(r.count, 1536);
		/* At rest, and swapped out or dropped, where there is swap: not written. */
		ck_assert_int_eq(madvise(r.at + 100 * PAGE, 50 * PAGE, MADV_PAGEOUT), 0);
		if (backings[i] == KVMEM_BACKING_MEMFD)
			ck_assert_int_eq(madvise(r.at + 200 * PAGE, 50 * PAGE, MADV_DONTNEED), 0);
		take(&r, 512);
		ck_assert_uint_eq(r.count, 0);
		r.at[210 * PAGE] = 3;
		take(&r, 512);
		ck_assert(r.told[210]);
		close_rig(&r);
	}
	close(fd);
}
END

/* As where the kernel tells nothing of page tables that are not there: it cannot be asked. */
static bool open_writes_blind(struct kvmem_writes **ret)
{
	struct rlimit was, none = { .rlim_cur = 0 };
	bool opened;

	ck_assert_int_eq(getrlimit(RLIMIT_AS, &was), 0);
	none.rlim_max = was.rlim_max;
	ck_assert_int_eq(setrlimit(RLIMIT_AS, &none), 0);
	opened = open_writes(ret);
	ck_assert_int_eq(setrlimit(RLIMIT_AS, &was), 0);
	return opened;
}

/* All of [from, to) is told, once. */
static void told_once(struct rig *r, uint64_t from, uint64_t to)
{
	take(r, 3);
	for (uint64_t p = 0; p < PAGES; p++)
		if (r->told[p] != (p * PAGE >= from && p * PAGE < to))
			ck_abort_msg("page %llu of [%llu, %llu)", (unsigned long long)p,
				     (unsigned long long)(from / PAGE),
				     (unsigned long long)(to / PAGE));
	take(r, 512);
	ck_assert_uint_eq(r->count, 0);
	r->at[from] ^= 1;
	r->at[to - 1] ^= 1;
	take(r, 1);
	ck_assert_uint_eq(r->count, 2);
}

/* Page tables that have gone as a whole: of huge pages, of 2 MiB at a time, and to their last page beside others. */
TEST(page_tables_that_have_gone)
{
	static const uint64_t parts[][2] = { { 0, BYTES },
					     { HUGE, 2 * HUGE },
					     { HUGE - PAGE, 3 * HUGE + PAGE },
					     { 3 * HUGE, BYTES } };
	static struct rig r;

	for (unsigned int i = 0; i < 4; i++) {
		if (!(i < 2 ? open_writes : open_writes_blind)(&r.writes))
			return;
		open_region(&r, backings[i % 2], BYTES);
		madvise(r.at, BYTES, MADV_HUGEPAGE); /* where there are such */
		memset(r.at, 1, BYTES);
		must(kvmem_writes_add(r.writes, r.region));
		for (unsigned int k = 0; k < 4; k++) {
			uint64_t from = parts[k][0], to = parts[k][1];

			ck_assert_int_eq(madvise(r.at + from, to - from, MADV_DONTNEED), 0);
			/* What was at rest is told for anonymous memory alone: of a file its marks stay. */
			if (backings[i % 2] == KVMEM_BACKING_ANONYMOUS)
				told_once(&r, from, to);
			memset(r.at + from, 3, to - from);
			ck_assert_int_eq(madvise(r.at + from, to - from, MADV_DONTNEED), 0);
			told_once(&r, from, to);
			must(kvmem_region_discard(r.region, from, to - from));
			told_once(&r, from, to);
		}
		close_rig(&r);
	}
}
END

/* What the kernel tells of page tables is looked at in memory that has none, also where all new memory is locked. */
TEST(page_tables_that_have_gone_where_memory_is_locked)
{
	static struct rig r;
	bool opened;

	if (mlockall(MCL_FUTURE)) {
		harness_note("mlockall: %s", strerror(errno));
		return;
	}
	opened = open_writes(&r.writes);
	munlockall();
	if (!opened)
		return;
	open_region(&r, KVMEM_BACKING_ANONYMOUS, BYTES);
	memset(r.at, 1, BYTES);
	must(kvmem_writes_add(r.writes, r.region));
	must(kvmem_region_discard(r.region, HUGE, HUGE));
	told_once(&r, HUGE, 2 * HUGE);
	close_rig(&r);
}
END

static int pattern(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	(void)offset;
	memset(buf, 0x5a, bytes);
	return 0;
}

/* populate() writes past the mapping, and a discard takes pages away. */
TEST(what_the_library_changes_is_told)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_source *source;
	static struct rig r;

	ops.read = pattern;
	for (unsigned int i = 0; i < 2; i++) {
		if (!open_writes(&r.writes))
			return;
		open_region(&r, backings[i], BYTES);
		must(kvmem_source_callback(&ops, NULL, BYTES, &source));
		must(kvmem_writes_add(r.writes, r.region));
		must(kvmem_populate(r.region, 0, source, NULL, NULL));
		take(&r, 512);
		ck_assert_uint_eq(r.count, PAGES);
		take(&r, 512);
		ck_assert_uint_eq(r.count, 0);
		must(kvmem_region_discard(r.region, 30 * PAGE, 5 * PAGE));
		take(&r, 512);
		for (uint64_t p = 30; p < 35; p++)
			ck_assert(r.told[p]);
		ck_assert_uint_eq(r.count, 5);
		r.at[31 * PAGE] = 1;
		take(&r, 512);
		ck_assert_uint_eq(r.count, 1);
		close_rig(&r);
		must(kvmem_source_free(source));
	}
}
END

/* Content that nobody has told the library of, and that a populate takes away. */
TEST(what_is_overwritten_is_told)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	static struct rig r;

	o.flags = KVMEM_POPULATE_PREALLOC | KVMEM_FILL_OVERWRITE;
	for (unsigned int i = 0; i < 2; i++) {
		if (!open_writes(&r.writes))
			return;
		open_region(&r, backings[i], BYTES);
		r.at[31 * PAGE] = 1;
		must(kvmem_writes_add(r.writes, r.region));
		must(kvmem_populate(r.region, 0, NULL, &o, NULL));
		ck_assert_uint_eq(r.at[31 * PAGE], 0);
		take(&r, 512);
		ck_assert(r.told[31]);
		close_rig(&r);
	}
}
END

/* A discard puts another mapping in place of the file's. */
/* Of a file of zeros. */
static void open_clone(struct rig *r)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	char name[] = "/tmp/kvmem-writes-XXXXXX";
	int fd = mkstemp(name);

	ck_assert_int_ge(fd, 0);
	unlink(name);
	ck_assert_int_eq(ftruncate(fd, (off_t)BYTES), 0);
	o.bytes = BYTES;
	o.flags = KVMEM_REGION_CLONE;
	o.fd = fd;
	must(kvmem_region_create(NULL, &o, &r->region));
	close(fd);
	r->at = kvmem_region_base(r->region);
	r->page = PAGE;
}

TEST(clones)
{
	static struct rig r;

	if (!open_writes(&r.writes))
		return;
	open_clone(&r);
	must(kvmem_writes_add(r.writes, r.region));
	take(&r, 512);
	ck_assert_uint_eq(r.count, 0);
	r.at[3 * PAGE] = 1;
	must(kvmem_region_discard(r.region, 64 * PAGE, 8 * PAGE));
	take(&r, 512);
	ck_assert(r.told[3]);
	for (uint64_t p = 64; p < 72; p++)
		ck_assert(r.told[p]);
	ck_assert_uint_eq(r.count, 9);
	r.at[65 * PAGE] = 1;
	take(&r, 512);
	ck_assert_uint_eq(r.count, 1);
	ck_assert(r.told[65]);
	must(kvmem_region_discard(r.region, HUGE, 2 * HUGE)); /* page tables and all */
	told_once(&r, HUGE, 3 * HUGE);
	close_rig(&r);
}
END

TEST(bad_input)
{
	struct kvmem_writes_opts o = KVMEM_WRITES_OPTS_INIT;
	struct kvmem_writes *other;
	struct kvmem_run run;
	static struct rig r;
	uint64_t next;

	if (!open_writes(&r.writes))
		return;
	o.flags = 4;
	fails(kvmem_writes_create(&o, &other), EINVAL, "flags");
	fails(kvmem_writes_create(NULL, NULL), EINVAL, "ret_writes");
	open_region(&r, KVMEM_BACKING_MEMFD, BYTES);
	fails(kvmem_writes_take(r.writes, r.region, 0, &run, 1, &next), EINVAL, "not watched");
	fails(kvmem_writes_remove(r.writes, r.region), EINVAL, "not watched");
	fails(kvmem_writes_add(r.writes, NULL), EINVAL, "region is NULL");
	ck_assert_int_eq(kvmem_writes_watched(r.writes, r.region), 0);
	must(kvmem_writes_add(r.writes, r.region));
	ck_assert_int_eq(kvmem_writes_watched(r.writes, r.region), (int64_t)BYTES);
	must(kvmem_writes_add(r.writes, r.region)); /* nothing has grown */
	must(kvmem_writes_create(NULL, &other));
	fails(kvmem_writes_add(other, r.region), EBUSY, "another userfaultfd");
	must(kvmem_writes_free(other));
	fails(kvmem_writes_take(r.writes, r.region, 7, &run, 1, &next), ERANGE, "not a page");
	fails(kvmem_writes_take(r.writes, r.region, BYTES, &run, 1, &next), ERANGE, "not a page");
	fails(kvmem_writes_take(r.writes, r.region, 0, &run, 0, &next), EINVAL, "count");
	fails(kvmem_writes_free(r.writes), EBUSY, "watches");
	fails(kvmem_region_free(r.region), EBUSY, "watched");
	close_rig(&r);
}
END

/* One userfaultfd a mapping: whoever comes second is refused, and nothing of the first is changed. */
TEST(a_pager_or_a_capture_has_it)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	static struct rig r;

	ops.read = pattern;
	if (!open_writes(&r.writes))
		return;
	open_region(&r, KVMEM_BACKING_MEMFD, BYTES);
	must(kvmem_source_callback(&ops, NULL, BYTES, &source));
	must(kvmem_pager_create(NULL, &pager));
	must(kvmem_pager_add(pager, r.region, source, 0, 0));
	fails(kvmem_writes_add(r.writes, r.region), EBUSY, "pager");
	must(kvmem_pager_start(pager));
	ck_assert_uint_eq(r.at[5 * PAGE], 0x5a);
	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL));
	must(kvmem_pager_free(pager));
	must(kvmem_writes_add(r.writes, r.region));
	must(kvmem_pager_create(NULL, &pager));
	must(kvmem_region_discard(r.region, 7 * PAGE, PAGE));
	r.at[7 * PAGE] = 7;
	fails(kvmem_pager_add(pager, r.region, source, 0, KVMEM_FILL_OVERWRITE), EBUSY,
	      "userfaultfd");
	ck_assert_uint_eq(r.at[7 * PAGE], 7);
	take(&r, 512);
	must(kvmem_pager_free(pager));
	r.at[9 * PAGE] = 1;
	take(&r, 512);
	ck_assert_uint_eq(r.count, 1);
	close_rig(&r);
	must(kvmem_source_free(source));
}
END

struct writer {
	uint64_t *at;
	struct kvmem_region *region;
	pthread_t thread;
	_Atomic bool *end;
	unsigned long long seed;
};

/* The first word of a page counts the writes to it. */
static void *writes(void *arg)
{
	struct writer *w = arg;

	while (!atomic_load(w->end)) {
		uint64_t page = harness_random(&w->seed) % PAGES;

		__atomic_fetch_add(w->at + page * PAGE / 8, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *discards(void *arg)
{
	struct writer *w = arg;

	while (!atomic_load(w->end)) {
		uint64_t from = harness_random(&w->seed) % PAGES;
		uint64_t count = 1 + harness_random(&w->seed) % (PAGES - from);

		if (kvmem_region_discard(w->region, from * PAGE, count * PAGE))
			break; /* what is not discarded is seen by nobody: the copy is the same */
		usleep(500);
	}
	return NULL;
}

/* Beside writers and discards: a copy that is brought up to date by what is told is the memory at last. */
static void none_is_lost(struct rig *r, void *(*const last)(void *))
{
	static uint8_t copy[BYTES];
	_Atomic bool end = false;
	struct writer w[3];

	must(kvmem_writes_add(r->writes, r->region));
	memcpy(copy, r->at, BYTES);
	for (unsigned int k = 0; k < 3; k++) {
		w[k] = (struct writer){ .at = (uint64_t *)(void *)r->at,
					.region = r->region,
					.end = &end,
					.seed = k + 1 };
		ck_assert_int_eq(pthread_create(&w[k].thread, NULL, k == 2 ? last : writes, &w[k]),
				 0);
	}
	for (unsigned int round = 0; round <= 60; round++) {
		if (round == 60) {
			atomic_store(&end, true);
			for (unsigned int k = 0; k < 3; k++)
				pthread_join(w[k].thread, NULL);
		}
		take(r, round % 2 ? 512 : 3);
		for (uint64_t p = 0; p < PAGES; p++)
			if (r->told[p])
				memcpy(copy + p * PAGE, r->at + p * PAGE, PAGE);
	}
	ck_assert_int_eq(memcmp(copy, r->at, BYTES), 0);
	close_rig(r);
}

TEST(no_write_is_lost_while_it_is_taken)
{
	static struct rig r;

	for (unsigned int i = 0; i < 2; i++) {
		if (!open_writes(&r.writes))
			return;
		open_region(&r, backings[i], BYTES);
		none_is_lost(&r, writes);
	}
}
END

TEST(nor_beside_discards)
{
	static struct rig r;

	for (unsigned int i = 0; i < 6; i++) {
		if (!(i < 3 ? open_writes : open_writes_blind)(&r.writes))
			return;
#ifdef __SANITIZE_THREAD__ /* which takes a mapping that comes in place of another for a write to it */
		if (i % 3 == 2) {
			must(kvmem_writes_free(r.writes));
			continue;
		}
#endif
		if (i % 3 == 2)
			open_clone(&r);
		else
			open_region(&r, backings[i % 3], BYTES);
		none_is_lost(&r, discards);
	}
}
END

HARNESS_MAIN(T(each_page_that_was_written_and_no_other),
	     T(writes_of_the_kernel_and_pages_that_have_gone), T(page_tables_that_have_gone),
	     T(page_tables_that_have_gone_where_memory_is_locked),
	     T(what_the_library_changes_is_told), T(what_is_overwritten_is_told), T(clones),
	     T(bad_input), T(a_pager_or_a_capture_has_it), T(no_write_is_lost_while_it_is_taken),
	     T(nor_beside_discards))
