// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_region_stored() and kvmem_region_read(): what memory holds, found without making any of it. */
#include "pager_lib.h"

#define PAGES	2048u
#define BYTES	((uint64_t)PAGES * PAGE)
#define SIZE_2M (2u << 20)

static const enum kvmem_backing kinds[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* Each page's kind, by calls that have room for `room` runs; the runs are checked for order and merging. */
static void look_up(struct kvmem_region *ram, uint64_t first, uint64_t pages, size_t room,
		    uint8_t *kinds_of)
{
	struct kvmem_stored runs[64];
	uint64_t at = first * PAGE, end = (first + pages) * PAGE;

	while (at < end) {
		int64_t n = kvmem_region_stored(ram, at, end - at, runs, room);
		uint32_t before = UINT32_MAX;

		ck_assert_msg(n > 0, "%lld %s", (long long)n, kvmem_error_detail());
		ck_assert_int_le(n, (int64_t)room);
		for (int64_t i = 0; i < n; i++) {
			ck_assert_uint_eq(runs[i].offset, at);
			ck_assert_uint_gt(runs[i].bytes, 0);
			ck_assert_uint_eq(runs[i].reserved, 0);
			ck_assert_uint_ne(runs[i].kind, before);
			before = runs[i].kind;
			memset(kinds_of + at / PAGE - first, (int)runs[i].kind,
			       runs[i].bytes / PAGE);
			at += runs[i].bytes;
		}
	}
	ck_assert_uint_eq(at, end);
}

static void is_kind(struct kvmem_region *ram, uint64_t page, uint64_t count, uint32_t kind)
{
	uint8_t of[PAGES];

	look_up(ram, page, count, 64, of);
	for (uint64_t i = 0; i < count; i++)
		ck_assert_msg(of[i] == kind, "page %llu: kind %u, not %u",
			      (unsigned long long)(page + i), of[i], kind);
}

static struct kvmem_region *make(enum kvmem_backing backing, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;
	int r;

	o.bytes = bytes;
	o.backing = backing;
	r = kvmem_region_create(NULL, &o, &ram);
	if (r < 0 && backing == KVMEM_BACKING_HUGETLB) {
		harness_skip("hugetlb", "%s", kvmem_error_detail());
		return NULL;
	}
	must(r);
	/* Single pages: what a huge page brings along is memory too. */
	if (backing != KVMEM_BACKING_HUGETLB)
		must(madvise(kvmem_region_base(ram), bytes, MADV_NOHUGEPAGE));
	return ram;
}

TEST(what_a_guest_without_a_pager_wrote_is_data)
{
	for (size_t k = 0; k < KINDS; k++) {
		struct kvmem_region *ram = make(kinds[k], BYTES);
		uint8_t *base = kvmem_region_base(ram), before[PAGES], after[PAGES], buf[2 * PAGE];

		is_kind(ram, 0, PAGES, KVMEM_STORED_ZERO);
		base[5 * PAGE] = 1;
		base[(PAGES - 1) * PAGE] = 2;
		is_kind(ram, 0, 5, KVMEM_STORED_ZERO);
		is_kind(ram, 5, 1, KVMEM_STORED_DATA);
		is_kind(ram, PAGES - 1, 1, KVMEM_STORED_DATA);
		/* The record has it as zero, and it is not any more. */
		must(kvmem_region_discard(ram, 5 * PAGE, 2 * PAGE));
		is_kind(ram, 4, 4, KVMEM_STORED_ZERO);
		base[6 * PAGE + 7] = 3;
		is_kind(ram, 5, 1, KVMEM_STORED_ZERO);
		is_kind(ram, 6, 1, KVMEM_STORED_DATA);
		/* Nothing of it touches a page. */
		ck_assert_int_eq(mincore(base, BYTES, before), 0);
		is_kind(ram, 0, 5, KVMEM_STORED_ZERO);
		ck_assert_int_eq(mincore(base, BYTES, after), 0);
		ck_assert_int_eq(memcmp(before, after, PAGES), 0);
		must(kvmem_region_read(ram, 6 * PAGE, buf, 2 * PAGE));
		ck_assert_uint_eq(buf[7], 3);
		ck_assert_int_eq(memcmp(buf, base + 6 * PAGE, 2 * PAGE), 0);
		must(kvmem_region_free(ram));
	}
}
END

/* Against a list of what was done to each page, with every room for runs. */
TEST(any_pattern_with_any_room)
{
	unsigned long long seed = 5;

	for (size_t k = 0; k < KINDS; k++) {
		struct kvmem_region *ram = make(kinds[k], BYTES);
		uint8_t *base = kvmem_region_base(ram), model[PAGES] = { 0 }, of[PAGES];

		for (unsigned int round = 0; round < 60; round++) {
			uint64_t first = harness_random(&seed) % PAGES;
			uint64_t n = 1 + harness_random(&seed) % 40;
			bool write = harness_random(&seed) % 3;

			n = first + n > PAGES ? PAGES - first : n;
			for (uint64_t i = first; write && i < first + n; i++)
				base[i * PAGE + round] = 1;
			if (!write)
				must(kvmem_region_discard(ram, first * PAGE, n * PAGE));
			memset(model + first, write ? KVMEM_STORED_DATA : KVMEM_STORED_ZERO, n);
			first = harness_random(&seed) % PAGES;
			n = PAGES - first;
			look_up(ram, first, n, 1 + round, of);
			ck_assert_int_eq(memcmp(of, model + first, n), 0);
		}
		must(kvmem_region_free(ram));
	}
}
END

static int read_but_one(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct set *s = arg;

	if (offset <= 77 * PAGE && 77 * PAGE < offset + bytes)
		return -EBADMSG;
	memcpy(buf, s->content + offset, bytes);
	return 0;
}

TEST(under_a_pager_the_source_has_what_is_absent)
{
	for (size_t k = 0; k < KINDS; k++) {
		struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
		struct kvmem_run bad;
		uint8_t buf[4 * PAGE];
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		s.opts.fault_around = PAGE;
		ops.read = read_but_one;
		must(kvmem_source_callback(&ops, &s, BYTES, &s.source));
		start_set(&s);
		is_kind(s.ram, 0, PAGES, KVMEM_STORED_ABSENT);
		check_page(&s, 9);
		is_kind(s.ram, 9, 1, KVMEM_STORED_DATA);
		is_kind(s.ram, 10, 60, KVMEM_STORED_ABSENT);
		must(kvmem_region_discard(s.ram, 300 * PAGE, 4 * PAGE));
		is_kind(s.ram, 300, 4, KVMEM_STORED_ZERO);
		s.base[301 * PAGE] = 1;
		is_kind(s.ram, 300, 1, KVMEM_STORED_ZERO);
		is_kind(s.ram, 301, 1, KVMEM_STORED_DATA);
		/* Reading fills; a page that cannot be filled is an error, and not zeros. */
		must(kvmem_region_read(s.ram, 400 * PAGE, buf, sizeof(buf)));
		ck_assert_int_eq(memcmp(buf, s.content + 400 * PAGE, sizeof(buf)), 0);
		is_kind(s.ram, 400, 4, KVMEM_STORED_DATA);
		bad = (struct kvmem_run){ s.ram, 77 * PAGE, PAGE };
		ck_assert_int_eq(kvmem_region_read(s.ram, 76 * PAGE, buf, sizeof(buf)), -EFAULT);
		is_kind(s.ram, bad.offset / PAGE, 1, KVMEM_STORED_POISONED);
		ck_assert_int_eq(kvmem_region_read(s.ram, bad.offset + 8, buf, 8), -EFAULT);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
		must(kvmem_pager_free(s.pager));
		s.pager = NULL;
		/* Nobody would fill them now. */
		is_kind(s.ram, 500, 8, KVMEM_STORED_ZERO);
		is_kind(s.ram, 77, 1, KVMEM_STORED_POISONED);
		close_set(&s);
	}
}
END

TEST(huge_pages)
{
	struct kvmem_region *ram = make(KVMEM_BACKING_HUGETLB, 6ul * SIZE_2M);
	const uint64_t huge = SIZE_2M / PAGE;
	uint8_t *base, *peer, buf[64];
	struct kvmem_stored run;

	if (!ram)
		return;
	base = kvmem_region_base(ram);
	is_kind(ram, 0, PAGES, KVMEM_STORED_ZERO);
	base[SIZE_2M + 5] = 1;
	is_kind(ram, 0, huge, KVMEM_STORED_ZERO);
	is_kind(ram, huge, huge, KVMEM_STORED_DATA);
	is_kind(ram, huge + 3, 2, KVMEM_STORED_DATA); /* inside a huge page */
	ck_assert_int_eq(kvmem_region_stored(ram, SIZE_2M - PAGE, PAGE, &run, 1), 1);
	ck_assert_uint_eq(run.bytes, PAGE);
	/* What another process has made is not mapped here, and is there. */
	peer = mmap(NULL, 6ul * SIZE_2M, PROT_READ | PROT_WRITE, MAP_SHARED, kvmem_region_fd(ram),
		    0);
	ck_assert_ptr_ne(peer, MAP_FAILED);
	peer[4 * SIZE_2M] = 77;
	is_kind(ram, 4 * huge, huge, KVMEM_STORED_DATA);
	must(kvmem_region_read(ram, 4 * SIZE_2M, buf, sizeof(buf)));
	ck_assert_uint_eq(buf[0], 77);
	must(kvmem_region_read(ram, 3 * SIZE_2M, buf, sizeof(buf)));
	ck_assert_uint_eq(buf[0], 0);
	munmap(peer, 6ul * SIZE_2M);
	must(kvmem_region_free(ram));
}
END

TEST(what_is_refused)
{
	struct kvmem_region *ram = make(KVMEM_BACKING_MEMFD, BYTES);
	struct kvmem_stored run = { .offset = 99 };
	uint8_t buf[8];

	ck_assert_int_eq(kvmem_region_stored(NULL, 0, PAGE, &run, 1), -EINVAL);
	ck_assert_int_eq(kvmem_region_stored(ram, 0, PAGE, NULL, 1), -EINVAL);
	ck_assert_int_eq(kvmem_region_stored(ram, 0, PAGE, &run, 0), -EINVAL);
	ck_assert_int_eq(kvmem_region_stored(ram, 1, PAGE, &run, 1), -EINVAL);
	ck_assert_int_eq(kvmem_region_stored(ram, 0, PAGE + 1, &run, 1), -EINVAL);
	ck_assert_int_eq(kvmem_region_stored(ram, PAGE, BYTES, &run, 1), -ERANGE);
	ck_assert_int_eq(kvmem_region_stored(ram, UINT64_MAX - PAGE + 1, PAGE, &run, 1), -ERANGE);
	ck_assert_int_eq(kvmem_region_stored(ram, BYTES, 0, &run, 1), 0);
	ck_assert_uint_eq(run.offset, 99);
	ck_assert_int_eq(kvmem_region_read(NULL, 0, buf, 8), -EINVAL);
	ck_assert_int_eq(kvmem_region_read(ram, 0, NULL, 8), -EINVAL);
	ck_assert_int_eq(kvmem_region_read(ram, BYTES - 7, buf, 8), -ERANGE);
	must(kvmem_region_read(ram, BYTES, NULL, 0));
	must(kvmem_region_free(ram));
}
END

HARNESS_MAIN(T(what_a_guest_without_a_pager_wrote_is_data), T(any_pattern_with_any_room),
	     T(under_a_pager_the_source_has_what_is_absent), T(huge_pages), T(what_is_refused))
