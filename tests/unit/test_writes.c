// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Writes by asynchronous write protection, over a kernel that is played: what it tells, what each failure leaves. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/uapi/pagemap.h"
#include "base/uapi/userfaultfd.h"
#include "fake_sys.h"
#include "region/region.h"

#define PAGE  4096ull
#define TABLE 512ull /* pages of a page table */
#define PAGES (4 * TABLE)
#define BYTES (PAGES * PAGE)

/* An entry of a page table. EMPTY reads as written: something was there, or protection was never asked for. */
enum entry { EMPTY, MARKER, WRITTEN, CLEAN };

/* The played kernel: the region's page tables, and whether a table that is not there is told as written (7.2). */
static struct {
	uint64_t base;
	enum entry entries[PAGES];
	bool tables[PAGES / TABLE];
	bool tells_holes;
	bool registered;
	bool other_registered; /* a mapping beside the region */
} k;

static struct kvmem_region *ram;
static struct kvmem_writes *writes;

static int64_t play_userfaultfd(int flags)
{
	(void)flags;
	return km_real_open("/dev/null", O_RDWR);
}

static bool is_ram(uint64_t at)
{
	return at >= k.base && at < k.base + BYTES;
}

static bool is_written(uint64_t n)
{
	if (!k.tables[n / TABLE])
		return k.tells_holes;
	return k.entries[n] == EMPTY || k.entries[n] == WRITTEN;
}

/* Neither present nor swapped: a marker is told as swapped. */
static bool is_hole(uint64_t n)
{
	return !k.tables[n / TABLE] || k.entries[n] == EMPTY;
}

/* Entries that are empty get a marker, in tables that are made for it: WP_UNPOPULATED. */
static void protect(uint64_t n)
{
	if (!k.tables[n / TABLE])
		memset(&k.entries[n / TABLE * TABLE], 0, TABLE * sizeof(k.entries[0]));
	k.tables[n / TABLE] = true;
	k.entries[n] = k.entries[n] == EMPTY	 ? MARKER
		       : k.entries[n] == WRITTEN ? CLEAN
						 : k.entries[n];
}

static int64_t write_protect(const struct uffdio_writeprotect *wp)
{
	uint64_t first = (wp->range.start - k.base) / PAGE, end = first + wp->range.len / PAGE;

	if (!is_ram(wp->range.start) || !k.registered)
		return -ENOENT;
	for (uint64_t n = first; n < end; n++) {
		if (wp->mode & UFFDIO_WRITEPROTECT_MODE_WP)
			protect(n);
		else if (k.tables[n / TABLE])
			k.entries[n] = k.entries[n] >= WRITTEN ? WRITTEN : EMPTY;
	}
	return 0;
}

/* Of a mapping that nothing was ever put in: no page table is there. */
static int64_t scan_other(struct km_pm_scan *s)
{
	struct km_page_region *vec = (void *)(uintptr_t)s->vec;

	s->walk_end = s->end;
	if (!k.tells_holes || !k.other_registered)
		return 0;
	vec[0] = (struct km_page_region){ s->start, s->end, KM_PAGE_IS_WRITTEN };
	return 1;
}

static bool matches(const struct km_pm_scan *s, uint64_t n)
{
	return s->category_mask & KM_PAGE_IS_WRITTEN ? is_written(n) : is_hole(n);
}

static int64_t scan(struct km_pm_scan *s)
{
	struct km_page_region *vec = (void *)(uintptr_t)s->vec;
	uint64_t used = 0, at = s->start;

	ck_assert_uint_eq(s->size, sizeof(*s));
	if (s->start == s->end)
		return 0;
	if (!is_ram(s->start))
		return scan_other(s);
	for (; at < s->end; at += PAGE) {
		uint64_t n = (at - k.base) / PAGE;

		if (!matches(s, n))
			continue;
		if (used && vec[used - 1].end == at) {
			vec[used - 1].end += PAGE;
		} else {
			if (used == s->vec_len)
				break;
			vec[used++] = (struct km_page_region){ at, at + PAGE, s->return_mask };
		}
		if (s->flags & KM_PM_SCAN_WP_MATCHING)
			protect(n);
	}
	s->walk_end = at;
	return (int64_t)used;
}

static void set_registered(uint64_t start, bool on)
{
	if (is_ram(start))
		k.registered = on;
	else
		k.other_registered = on;
}

static int64_t play_ioctl(int fd, unsigned long request, void *arg)
{
	switch (request) {
	case UFFDIO_API:
		ck_assert(((struct uffdio_api *)arg)->features & KM_UFFD_FEATURE_WP_ASYNC);
		return 0;
	case UFFDIO_REGISTER:
		ck_assert_uint_eq(((struct uffdio_register *)arg)->mode, UFFDIO_REGISTER_MODE_WP);
		set_registered(((struct uffdio_register *)arg)->range.start, true);
		return 0;
	case UFFDIO_UNREGISTER:
		set_registered(((struct uffdio_range *)arg)->start, false);
		return 0;
	case UFFDIO_WRITEPROTECT:
		return write_protect(arg);
	case KM_PAGEMAP_SCAN:
		return scan(arg);
	default:
		return km_real_ioctl(fd, request, arg);
	}
}

static void open_ram(bool tells_holes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	memset(&k, 0, sizeof(k));
	o.bytes = BYTES;
	o.backing = KVMEM_BACKING_MEMFD;
	ck_assert_int_eq(kvmem_region_create(NULL, &o, &ram), 0);
	k.base = (uintptr_t)kvmem_region_base(ram);
	k.tells_holes = tells_holes;
	fake_reset();
	fake.userfaultfd = play_userfaultfd;
	fake.ioctl = play_ioctl;
	writes = NULL;
}

static void close_ram(void)
{
	fake.fail_at = 0;
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	fake_reset();
}

/* What a guest does: a write, and a page table that the kernel takes back. */
static void write_page(uint64_t n)
{
	k.tables[n / TABLE] = true;
	k.entries[n] = WRITTEN;
}

static void lose_table(uint64_t table)
{
	k.tables[table] = false;
	for (uint64_t n = table * TABLE; n < (table + 1) * TABLE; n++)
		k.entries[n] = EMPTY;
}

/* One pass over all; times[n]: how often page n was told. */
static int pass(uint8_t *times, size_t room)
{
	struct kvmem_run runs[4];
	uint64_t from = 0;

	memset(times, 0, PAGES);
	while (from < BYTES) {
		uint64_t next = 0;
		int64_t n = kvmem_writes_take(writes, ram, from, runs, room, &next);

		if (n < 0)
			return (int)n;
		ck_assert_uint_gt(next, from);
		for (int64_t i = 0; i < n; i++)
			for (uint64_t at = runs[i].offset; at < runs[i].offset + runs[i].bytes;
			     at += PAGE)
				times[at / PAGE]++;
		from = next;
	}
	return 0;
}

static void passes(bool tells_holes, size_t room)
{
	uint8_t times[PAGES];

	open_ram(tells_holes);
	ck_assert_int_eq(kvmem_writes_create(NULL, &writes), 0);
	ck_assert_int_eq(kvmem_writes_add(writes, ram), 0);
	ck_assert_int_eq(pass(times, room), 0);
	for (uint64_t n = 0; n < PAGES; n++)
		ck_assert_uint_eq(times[n], 0);
	for (uint64_t n = 1; n < 40; n += 3)
		write_page(n);
	lose_table(2);
	ck_assert_int_eq(pass(times, room), 0);
	for (uint64_t n = 0; n < PAGES; n++)
		ck_assert_msg(times[n] == (n / TABLE == 2 || (n < 40 && n % 3 == 1)),
			      "page %lu came %u times", (unsigned long)n, times[n]);
	ck_assert_int_eq(pass(times, room), 0); /* and is protected again */
	for (uint64_t n = 0; n < PAGES; n++)
		ck_assert_uint_eq(times[n], 0);
	ck_assert_int_eq(kvmem_writes_remove(writes, ram), 0);
	ck_assert_int_eq(kvmem_writes_free(writes), 0);
	ck_assert(!k.registered);
	close_ram();
}

TEST(what_was_written_comes_once_and_tables_that_have_gone)
{
	for (size_t room = 1; room <= 4; room++) {
		passes(false, room);
		passes(true, room);
	}
}
END

/* ---- every call fails once ---- */

static int live(uint8_t *times)
{
	int r = kvmem_writes_create(NULL, &writes), err;

	if (r)
		return r;
	r = kvmem_writes_add(writes, ram);
	if (!r) {
		write_page(5);
		lose_table(1);
		r = pass(times, 2);
		err = kvmem_writes_remove(writes, ram);
		ck_assert_int_eq(err, 0);
	}
	err = kvmem_writes_free(writes);
	ck_assert_int_eq(err, 0);
	return r;
}

/* A word of the sentence that the failure of this call gives. */
static bool is_named(const char *failed)
{
	static const char *const ioctls[] = { "UFFD_FEATURE_WP_ASYNC", "UFFDIO_REGISTER",
					      "UFFDIO_WRITEPROTECT", "PAGEMAP_SCAN",
					      "page tables" };
	const char *text = kvmem_error_detail();

	if (!strcmp(failed, "alloc"))
		return strstr(text, "no memory");
	if (!strcmp(failed, "open"))
		return strstr(text, "/proc/self/pagemap");
	for (size_t i = 0; !strcmp(failed, "ioctl") && i < KM_ARRAY_SIZE(ioctls); i++)
		if (strstr(text, ioctls[i]))
			return true;
	return strstr(text, failed);
}

static void each_fails(bool tells_holes, int err)
{
	unsigned long failures = 0;
	uint8_t times[PAGES];
	bool whole = false;

	for (unsigned long n = 1; !whole; n++) {
		unsigned int fds, maps;
		long allocs;
		int r;

		open_ram(tells_holes);
		fds = harness_count_fds();
		maps = harness_count_maps();
		allocs = atomic_load(&fake.allocs);
		fake.fail_errno = err;
		fake.fail_at = n;
		r = live(times);
		whole = atomic_load(&fake.calls) < fake.fail_at;
		fake.fail_at = 0;
		failures += r != 0;
		ck_assert_msg(!r || is_named(fake.failed), "%s: %s", fake.failed,
			      kvmem_error_detail());
		ck_assert_msg(!r || !k.registered, "%s: it is registered", fake.failed);
		for (uint64_t p = 0; !r && p < PAGES; p++)
			ck_assert_msg(times[p] == (p == 5 || p / TABLE == 1), "%s: page %lu",
				      fake.failed, (unsigned long)p);
		ck_assert_msg(harness_count_fds() == fds, "%s leaks a descriptor", fake.failed);
		ck_assert_msg(harness_count_maps() == maps, "%s leaks a mapping", fake.failed);
		ck_assert_msg(atomic_load(&fake.allocs) == allocs, "%s leaks memory", fake.failed);
		ck_assert_msg(!atomic_load(&ram->writes), "%s: it is watched", fake.failed);
		close_ram();
	}
	ck_assert_uint_gt(failures, 6);
}

TEST(each_call_fails_and_nothing_is_left)
{
	each_fails(false, EIO);
	each_fails(true, EIO);
	each_fails(false, ENOMEM);
	each_fails(true, EINVAL);
}
END

HARNESS_MAIN(T(what_was_written_comes_once_and_tables_that_have_gone),
	     T(each_call_fails_and_nothing_is_left))
