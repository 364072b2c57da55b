// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Clones of a template: one copy of what nobody has written, pages of their own where they have, and a template
 * that nothing of it reaches.
 */
#include "dirty_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE  4096ull
#define MIB   (1ull << 20)
#define HUGE  (2 * MIB)
#define BYTES (4 * MIB)
#define PAGES (BYTES / PAGE)
#define RW    (PROT_READ | PROT_WRITE)

enum { SEAL_WRITE = 0x8, SEAL_FUTURE = 0x10 };
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | SEAL_WRITE)

enum kind { FILE_ON_DISK, MEMFD, HUGE_MEMFD, KINDS };

static const char *const kind_names[] = { "file", "memfd", "hugetlb memfd" };

/* What each template has at a byte: never 0, and different from page to page. */
static uint8_t pattern(uint64_t at)
{
	return (uint8_t)(1 + (at / PAGE * 7 + at / 64) % 255);
}

static void fill(uint8_t *at, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		at[i] = pattern(i);
}

static bool is_template(const uint8_t *at, uint64_t offset, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		if (at[i] != pattern(offset + i))
			return false;
	return true;
}

static bool is_zero(const uint8_t *at, uint64_t bytes)
{
	return !at[0] && !memcmp(at, at + 1, bytes - 1);
}

static int write_file(uint64_t bytes)
{
	char path[] = "/tmp/kvmem-clone-XXXXXX";
	uint8_t *content = malloc(bytes);
	int fd = mkostemp(path, O_CLOEXEC);

	ck_assert(content && fd >= 0);
	ck_assert_int_eq(unlink(path), 0);
	fill(content, bytes);
	ck_assert_int_eq(pwrite(fd, content, bytes, 0), (ssize_t)bytes);
	free(content);
	return fd;
}

/* -1: there are no huge pages, and the skip is not noted. */
static int make_memfd(enum kind kind, uint64_t bytes, int seals)
{
	int fd = memfd_create("template",
			      MFD_CLOEXEC | MFD_ALLOW_SEALING |
				      (kind == HUGE_MEMFD ? MFD_HUGETLB | 21u << 26 : 0));
	uint8_t *at;

	if (fd < 0 && kind == HUGE_MEMFD)
		return -1;
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	at = mmap(NULL, bytes, RW, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED && kind == HUGE_MEMFD) {
		close(fd);
		return -1;
	}
	ck_assert_ptr_ne(at, MAP_FAILED);
	fill(at, bytes);
	munmap(at, bytes);
	if (seals)
		ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static int make_template(enum kind kind, uint64_t bytes)
{
	return kind == FILE_ON_DISK ? write_file(bytes) : make_memfd(kind, bytes, SEALS);
}

static bool unchanged(int fd, uint64_t bytes)
{
	uint8_t *at = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	bool same;

	ck_assert_ptr_ne(at, MAP_FAILED);
	same = is_template(at, 0, bytes);
	munmap(at, bytes);
	return same;
}

static struct kvmem_region_opts opts_of(int fd, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.bytes = bytes;
	o.flags = KVMEM_REGION_CLONE;
	o.fd = fd;
	return o;
}

static struct kvmem_region *clone_of(int fd, uint64_t bytes)
{
	struct kvmem_region_opts o = opts_of(fd, bytes);
	struct kvmem_region *r;

	ck_ok(kvmem_region_create(NULL, &o, &r));
	return r;
}

static uint8_t *base_of(struct kvmem_region *r)
{
	return kvmem_region_base(r);
}

static uint32_t state_at(struct kvmem_region *r, uint64_t offset)
{
	struct kvmem_run run;
	uint32_t state;

	ck_assert_int_eq(kvmem_region_next_run(r, offset, &run, &state), 1);
	return state;
}

/* A field of /proc/self/smaps, in KiB, of all that is mapped in the range. */
static long smaps(const uint8_t *at, uint64_t bytes, const char *field)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long start, end;
	bool here = false;
	char line[512], *rest;
	long sum = 0;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		start = strtoul(line, &rest, 16);
		if (*rest == '-') {
			end = strtoul(rest + 1, NULL, 16);
			here = start < (uintptr_t)at + bytes && end > (uintptr_t)at;
		} else if (here && !strncmp(line, field, strlen(field))) {
			sum += atol(line + strlen(field));
		}
	}
	fclose(f);
	return sum;
}

static long meminfo(const char *field)
{
	FILE *f = fopen("/proc/meminfo", "re");
	char line[256];
	long v = -1;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, field, strlen(field)))
			v = atol(line + strlen(field) + 1);
	fclose(f);
	return v;
}

static unsigned int maps_in(const uint8_t *at, uint64_t bytes)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long start, end;
	unsigned int n = 0;
	char line[512], *rest;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		start = strtoul(line, &rest, 16);
		end = strtoul(rest + 1, NULL, 16);
		n += start < (uintptr_t)at + bytes && end > (uintptr_t)at;
	}
	fclose(f);
	return n;
}

/* ---- what a clone is ---- */

TEST(clones_have_the_templates_content_and_their_own_writes)
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		int fd = make_template(kind, BYTES);
		struct kvmem_region *a, *b;

		if (fd < 0) {
			harness_note("%s: no huge pages", kind_names[kind]);
			continue;
		}
		/* Two, and the template takes half of the huge pages that two more would. */
		a = clone_of(fd, BYTES);
		b = clone_of(fd, BYTES);
		ck_assert(is_template(base_of(a), 0, BYTES) && is_template(base_of(b), 0, BYTES));
		ck_assert_uint_eq(state_at(a, 0), KVMEM_PAGE_PRESENT);
		memset(base_of(a) + 3 * PAGE, 0xff, PAGE);
		base_of(b)[5 * PAGE] = 0;
		ck_assert(is_template(base_of(b), 0, 5 * PAGE));
		ck_assert(is_template(base_of(a) + 4 * PAGE, 4 * PAGE, BYTES - 4 * PAGE));
		ck_assert_int_eq(base_of(a)[3 * PAGE], 0xff);
		ck_assert_msg(unchanged(fd, BYTES), "%s", kind_names[kind]);
		ck_ok(kvmem_region_free(a));
		ck_assert_int_eq(base_of(b)[5 * PAGE], 0);
		ck_ok(kvmem_region_free(b));
		close(fd);
	}
}
END

TEST(a_part_of_a_template_and_its_last_page)
{
	const uint64_t odd = 5 * PAGE + 100;
	int fd = write_file(odd);
	struct kvmem_region_opts o = opts_of(fd, 4 * PAGE);
	struct kvmem_region *r;

	o.fd_offset = 2 * PAGE;
	ck_ok(kvmem_region_create(NULL, &o, &r));
	ck_assert(is_template(base_of(r), 2 * PAGE, 3 * PAGE + 100));
	ck_assert(is_zero(base_of(r) + 3 * PAGE + 100, PAGE - 100));
	ck_ok(kvmem_region_discard(r, PAGE, PAGE));
	ck_assert(is_zero(base_of(r) + PAGE, PAGE));
	ck_ok(kvmem_region_free(r));
	o.bytes = 5 * PAGE;
	ck_fails(kvmem_region_create(NULL, &o, &r), ERANGE, "fd");
	close(fd);
}
END

TEST(no_file_descriptor_of_the_template_is_kept)
{
	unsigned int fds = harness_count_fds(), maps = harness_count_maps();
	int fd = make_template(MEMFD, BYTES);
	struct kvmem_region *r = clone_of(fd, BYTES);

	ck_assert_uint_eq(harness_count_fds(), fds + 1);
	ck_fails(kvmem_region_fd(r), ENODEV, "clone");
	close(fd);
	ck_assert(is_template(base_of(r), 0, BYTES));
	ck_ok(kvmem_region_discard(r, 8 * PAGE, PAGE));
	ck_ok(kvmem_region_free(r));
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
}
END

/* ---- what is refused, and what the plan says ---- */

TEST(what_is_no_template_is_refused)
{
	struct kvmem_region_opts o = opts_of(-1, BYTES);
	struct kvmem_region *r;
	char path[64];
	int pipes[2], fd;

	ck_fails(kvmem_region_create(NULL, &o, &r), EBADF, "not open");
	ck_assert_int_eq(pipe2(pipes, O_CLOEXEC), 0);
	o.fd = pipes[0];
	ck_fails(kvmem_region_create(NULL, &o, &r), EBADF, "regular file");
	close(pipes[0]);
	close(pipes[1]);

	/* A memfd that could be sealed, and is not, or not enough. */
	o.fd = fd = make_memfd(MEMFD, BYTES, 0);
	ck_fails(kvmem_region_create(NULL, &o, &r), EPERM, "F_SEAL_WRITE");
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	ck_fails(kvmem_region_create(NULL, &o, &r), EPERM, "F_SEAL_WRITE");
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, SEAL_FUTURE), 0);
	ck_ok(kvmem_region_create(NULL, &o, &r));
	ck_ok(kvmem_region_free(r));

	o.bytes = BYTES + PAGE;
	ck_fails(kvmem_region_create(NULL, &o, &r), ERANGE, "fd");
	o.bytes = PAGE;
	o.fd_offset = 100;
	ck_fails(kvmem_region_create(NULL, &o, &r), EINVAL, "fd_offset");
	o.fd_offset = 0;
	o.page_size = HUGE;
	o.bytes = HUGE;
	ck_fails(kvmem_region_create(NULL, &o, &r), EOPNOTSUPP, "page_size");
	close(fd);

	fd = write_file(BYTES);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	o = opts_of(open(path, O_WRONLY | O_CLOEXEC), BYTES);
	ck_assert_int_ge(o.fd, 0);
	ck_fails(kvmem_region_create(NULL, &o, &r), EBADF, "reading");
	close(o.fd);
	o.fd = open(path, O_PATH | O_CLOEXEC);
	ck_fails(kvmem_region_create(NULL, &o, &r), EBADF, "reading");
	close(o.fd);
	/* Read-only is all that it takes. */
	o.fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_ok(kvmem_region_create(NULL, &o, &r));
	base_of(r)[0] = 0;
	ck_ok(kvmem_region_free(r));
	ck_assert(unchanged(o.fd, BYTES));
	close(o.fd);
	close(fd);
}
END

TEST(the_plan_says_what_a_clone_has_and_what_not)
{
	int disk = write_file(BYTES), sealed = make_template(MEMFD, BYTES);
	int future = make_memfd(MEMFD, BYTES, F_SEAL_SHRINK | SEAL_FUTURE);
	struct kvmem_region_opts o = opts_of(disk, BYTES);
	struct kvmem_plan plan = KVMEM_PLAN_INIT;

	o.wants = KVMEM_WANT_DIRTY | KVMEM_WANT_PAGING | KVMEM_WANT_SHARED | KVMEM_WANT_WRITE |
		  KVMEM_WANT_HUGE | KVMEM_WANT_THP;
	ck_ok(kvmem_region_plan(NULL, &o, &plan));
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_CLONE);
	ck_assert_uint_eq(plan.slot_form, KVMEM_SLOT_HVA);
	ck_assert_uint_eq(plan.page_size, PAGE);
	ck_assert_uint_eq(plan.granted, KVMEM_WANT_DIRTY);
	ck_assert_uint_eq(plan.given_up, o.wants & ~(uint64_t)KVMEM_WANT_DIRTY);
	ck_assert_msg(strstr(plan.reasons, "has no seals") &&
			      strstr(plan.reasons, "paging given up: "),
		      "%s", plan.reasons);
	o.fd = sealed;
	ck_ok(kvmem_region_plan(NULL, &o, &plan));
	ck_assert_msg(strstr(plan.reasons, "nobody can change it") != NULL, "%s", plan.reasons);
	o.fd = future;
	ck_ok(kvmem_region_plan(NULL, &o, &plan));
	ck_assert_msg(strstr(plan.reasons, "F_SEAL_FUTURE_WRITE") != NULL, "%s", plan.reasons);
	o.needs = KVMEM_WANT_PAGING;
	ck_fails(kvmem_region_plan(NULL, &o, &plan), EOPNOTSUPP, "paging");
	o.needs = 0;
	o.slot_form = KVMEM_SLOT_DIRECT;
	ck_fails(kvmem_region_plan(NULL, &o, &plan), EOPNOTSUPP, "direct slot");
	close(disk);
	close(sealed);
	close(future);
}
END

TEST(nothing_fills_a_clone)
{
	int fd = make_template(MEMFD, BYTES);
	struct kvmem_region *r = clone_of(fd, BYTES);
	uint8_t *content = calloc(1, BYTES);
	struct kvmem_populate_opts po = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	struct kvmem_run run;

	ck_ok(kvmem_source_memory(content, BYTES, &source));
	ck_fails(kvmem_populate(r, 0, source, NULL, NULL), EOPNOTSUPP, "clone");
	po.flags = KVMEM_POPULATE_PREALLOC;
	ck_fails(kvmem_populate(r, 0, NULL, &po, NULL), EOPNOTSUPP, "clone");
	if (!kvmem_pager_create(NULL, &pager)) {
		ck_fails(kvmem_pager_add(pager, r, source, 0, 0), EOPNOTSUPP, "clone");
		ck_ok(kvmem_pager_free(pager));
	}
	ck_fails(kvmem_region_mark_absent(r, 0, PAGE, 0), EOPNOTSUPP, "clone");
	ck_fails(kvmem_region_grow(r, BYTES + PAGE), ERANGE, "reserve");
	ck_assert_int_eq(kvmem_region_next_missing(r, 0, &run), 0);
	ck_ok(kvmem_region_mark_present(r, 0, PAGE));
	ck_assert(is_template(base_of(r), 0, BYTES));
	ck_ok(kvmem_region_free(r));
	ck_ok(kvmem_source_free(source));
	free(content);
	close(fd);
}
END

static int with_a_limit(void *arg)
{
	const struct rlimit none = { 1, 1 };
	struct kvmem_region_opts o = opts_of(*(int *)arg, BYTES);
	struct kvmem_region *r;

	if (setrlimit(RLIMIT_DATA, &none))
		return 77;
	if (kvmem_region_create(NULL, &o, &r) != -ENOMEM)
		return 2;
	return strstr(kvmem_error_detail(), "RLIMIT_DATA") ? 0 : 3;
}

/* A clone is private memory, which this limit counts although nothing has been copied yet. */
TEST(limits_of_private_memory_are_named)
{
	int fd = make_template(MEMFD, BYTES), r = harness_child(with_a_limit, &fd);

	ck_assert_msg(r == 0 || r == 77, "%d", r);
	close(fd);
}
END

TEST(where_pages_are_and_whether_huge_ones_can_be_mapped)
{
	int fd = make_template(MEMFD, BYTES);
	struct kvmem_region *r = clone_of(fd, BYTES);
	struct kvmem_placement p = KVMEM_PLACEMENT_INIT;
	uint64_t nodes[64];

	p.nodes = nodes;
	p.node_count = 64;
	ck_ok(kvmem_region_placement(r, 0, BYTES, &p));
	ck_assert_uint_eq(p.pages, PAGES);
	ck_assert_uint_eq(p.present, PAGES); /* in the template, and not looked at yet */
	ck_assert_uint_eq(p.other, PAGES);
	ck_fails(kvmem_region_set_policy(r, 0, BYTES, KVMEM_POLICY_DEFAULT, NULL, 0, 0), EEXIST,
		 "FUTURE");
	base_of(r)[3 * PAGE] = 1;
	ck_ok(kvmem_region_discard(r, 8 * PAGE, PAGE));
	p.node_count = 64;
	ck_ok(kvmem_region_placement(r, 0, BYTES, &p));
	ck_assert_uint_eq(p.present, PAGES - 1); /* of a discarded page there is none */
	ck_assert_uint_lt(p.other, PAGES - 1);
	ck_fails(kvmem_region_check_huge(r, 0, BYTES, (uintptr_t)base_of(r)), EOPNOTSUPP,
		 "base pages");
	ck_ok(kvmem_region_free(r));
	close(fd);
}
END

/* ---- the template ---- */

static int child_writes(void *arg)
{
	memset(arg, 0xee, BYTES);
	return 0;
}

/* By the mapping, by /proc/self/mem, by a child, by all descriptors there are, and by discards. */
TEST(a_clone_never_reaches_its_template)
{
	for (enum kind kind = FILE_ON_DISK; kind <= MEMFD; kind++) {
		int fd = make_template(kind, BYTES),
		    mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
		struct kvmem_region *r = clone_of(fd, BYTES), *other = clone_of(fd, BYTES);
		uint8_t *at = base_of(r);
		const uint8_t one = 0xee;

		ck_assert_int_ge(mem, 0);
		ck_assert_int_eq(harness_child(child_writes, at), 0);
		ck_assert(is_template(at, 0, BYTES)); /* what the child wrote is the child's */
		memset(at, 0xee, PAGE);
		ck_assert_int_eq(pwrite(mem, &one, 1, (off_t)(uintptr_t)(at + PAGE)), 1);
		ck_assert_int_eq(at[PAGE], 0xee);
		ck_ok(kvmem_region_discard(r, 2 * PAGE, 2 * PAGE));
		ck_assert_int_eq(pwrite(mem, &one, 1, (off_t)(uintptr_t)(at + 2 * PAGE)), 1);
		ck_assert_int_eq(msync(at, BYTES, MS_SYNC), 0);
		if (kind == MEMFD) { /* sealed: the caller's own descriptor cannot either */
			ck_assert_int_eq(pwrite(fd, &one, 1, 0), -1);
			ck_assert_int_eq(ftruncate(fd, 0), -1);
		}
		ck_assert_int_eq(harness_child(child_writes, at), 0);
		ck_assert(is_template(base_of(other), 0, BYTES));
		ck_assert_msg(unchanged(fd, BYTES), "%s", kind_names[kind]);
		ck_ok(kvmem_region_free(r));
		ck_ok(kvmem_region_free(other));
		close(mem);
		close(fd);
	}
}
END

/* ---- sharing ---- */

static long smaps_of_all(struct kvmem_region *const *r, unsigned int n, const char *field)
{
	long sum = 0;

	for (unsigned int i = 0; i < n; i++)
		sum += smaps(base_of(r[i]), kvmem_region_bytes(r[i]), field);
	return sum;
}

TEST(what_no_clone_has_written_is_there_once)
{
	enum { CLONES = 8 };
	const uint64_t bytes = 64 * MIB, part = bytes / PAGE / 50;
	int fd = make_template(MEMFD, bytes);
	struct kvmem_region *r[CLONES];
	uint64_t sum = 0;
	long kib;

	for (unsigned int i = 0; i < CLONES; i++) {
		r[i] = clone_of(fd, bytes);
		for (uint64_t at = 0; at < bytes; at += PAGE)
			sum += base_of(r[i])[at];
	}
	ck_assert_uint_gt(sum, 0);
	/* All have looked at all: that is the template once. */
	kib = smaps_of_all(r, CLONES, "Rss:");
	ck_assert_msg(kib >= CLONES * 60 * 1024, "%ld KiB are mapped", kib);
	kib = smaps_of_all(r, CLONES, "Pss:");
	ck_assert_msg(kib < 65 * 1024, "8 clones that have read 64 MiB: %ld KiB", kib);
	ck_assert_int_eq(smaps_of_all(r, CLONES, "Anonymous:"), 0);
	for (unsigned int i = 0; i < CLONES; i++)
		for (uint64_t n = 0; n < part; n++)
			base_of(r[i])[(n * 37 + i) % (bytes / PAGE) * PAGE] = 0xee;
	kib = smaps_of_all(r, CLONES, "Anonymous:");
	ck_assert_msg(kib == (long)(CLONES * part * 4), "each wrote %lu pages: %ld KiB in all",
		      (unsigned long)part, kib);
	/* A discard gives back what was written. */
	for (unsigned int i = 0; i < CLONES; i++)
		ck_ok(kvmem_region_discard(r[i], 0, bytes));
	ck_assert_int_eq(smaps_of_all(r, CLONES, "Rss:"), 0);
	for (unsigned int i = 0; i < CLONES; i++)
		ck_ok(kvmem_region_free(r[i]));
	close(fd);
}
END

/* ---- discard ---- */

TEST(a_discarded_page_is_zero_and_never_the_templates_again)
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		uint64_t page = kind == HUGE_MEMFD ? HUGE : PAGE;
		int fd = make_template(kind, BYTES);
		struct kvmem_region *r;
		uint8_t *at;

		if (fd < 0) {
			harness_note("%s: no huge pages", kind_names[kind]);
			continue;
		}
		r = clone_of(fd, BYTES);
		at = base_of(r);
		at[page] = 0xee; /* its own copy, and one page that it shares still */
		ck_ok(kvmem_region_discard(r, 0, page));
		ck_assert(is_zero(at, page));
		ck_assert_uint_eq(state_at(r, 0), KVMEM_PAGE_ZERO);
		ck_assert_uint_eq(state_at(r, page), KVMEM_PAGE_PRESENT);
		ck_assert_int_eq(at[page], 0xee);
		ck_ok(kvmem_region_discard(r, page, BYTES - page));
		ck_assert(is_zero(at, BYTES));
		at[0] = 0xee;
		ck_ok(kvmem_region_discard(r, 0, BYTES)); /* what was written since goes too */
		ck_assert(is_zero(at, BYTES));
		ck_assert(unchanged(fd, BYTES));
		ck_fails(kvmem_region_discard(r, 1, PAGE), EINVAL, "offset");
		ck_fails(kvmem_region_discard(r, BYTES, page), ERANGE, "discard");
		ck_ok(kvmem_region_free(r));
		close(fd);
	}
}
END

/* Against a model: what each page has to be, and that neighbours become one mapping. */
TEST(discards_in_any_order_against_a_model)
{
	int fd = make_template(MEMFD, BYTES);
	struct kvmem_region *r = clone_of(fd, BYTES);
	uint8_t *at = base_of(r), *model = malloc(BYTES);
	unsigned long long state = 4711;

	ck_assert_ptr_nonnull(model);
	fill(model, BYTES);
	for (unsigned int step = 0; step < 3000; step++) {
		uint64_t page = harness_random(&state) % PAGES;
		uint64_t most = step % 3 ? 4 : 64, n = 1 + harness_random(&state) % most;
		uint8_t v = (uint8_t)harness_random(&state);

		n = n < PAGES - page ? n : PAGES - page;
		if (harness_random(&state) % 2) {
			memset(at + page * PAGE, v, n * PAGE);
			memset(model + page * PAGE, v, n * PAGE);
		} else {
			ck_ok(kvmem_region_discard(r, page * PAGE, n * PAGE));
			memset(model + page * PAGE, 0, n * PAGE);
			ck_assert_uint_eq(state_at(r, page * PAGE), KVMEM_PAGE_ZERO);
		}
		if (step % 100 == 99)
			ck_assert_msg(!memcmp(at, model, BYTES), "step %u", step);
	}
	for (uint64_t page = 0; page < PAGES; page += 2)
		ck_ok(kvmem_region_discard(r, page * PAGE, PAGE));
	for (uint64_t page = 1; page < PAGES; page += 2)
		ck_ok(kvmem_region_discard(r, page * PAGE, PAGE));
	ck_assert(is_zero(at, BYTES));
	ck_assert(unchanged(fd, BYTES));
	free(model);
	ck_ok(kvmem_region_free(r));
	close(fd);
}
END

/* A balloon of single pages: zeros everywhere, and no more than a quarter of the mappings that a VMM can have. */
TEST(mappings_are_left_to_the_vmm)
{
	const uint64_t pages = 40000;
	int fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct kvmem_region *r;
	uint8_t *at;
	unsigned int maps;

	ck_assert_int_eq(ftruncate(fd, (off_t)(pages * PAGE)), 0);
	for (uint64_t page = 0; page < pages; page++)
		ck_assert_int_eq(pwrite(fd, "t", 1, (off_t)(page * PAGE)), 1);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	r = clone_of(fd, pages * PAGE);
	at = base_of(r);
	for (uint64_t page = 1; page < pages; page += 2) {
		ck_ok(kvmem_region_discard(r, page * PAGE, PAGE));
		ck_assert(!at[page * PAGE] && at[(page - 1) * PAGE] == 't');
	}
	maps = maps_in(at, pages * PAGE);
	ck_assert_msg(maps > 1000 && maps < 17000, "%u mappings", maps);
	/* The holes between are closed: they cost none, and give some back. */
	for (uint64_t page = 0; page < pages; page += 2)
		ck_ok(kvmem_region_discard(r, page * PAGE, PAGE));
	for (uint64_t page = 0; page < pages; page++)
		ck_assert_int_eq(at[page * PAGE], 0);
	ck_ok(kvmem_region_free(r));
	/* The next clone has all that there is. */
	r = clone_of(fd, pages * PAGE);
	at = base_of(r);
	for (uint64_t page = 1; page < 2001; page += 2)
		ck_ok(kvmem_region_discard(r, page * PAGE, PAGE));
	ck_assert_uint_ge(maps_in(at, pages * PAGE), 2000);
	ck_ok(kvmem_region_free(r));
	close(fd);
}
END

/* The VMM has taken all mappings itself. */
static int without_mappings(void *arg)
{
	struct kvmem_region *r = arg;
	const uint64_t room = 200000 * PAGE;
	uint8_t *at = base_of(r);
	uint8_t *other = mmap(NULL, room, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			      -1, 0);
	uint64_t n = 1;

	if (other == MAP_FAILED)
		return 2;
	while (n < room / PAGE && !mprotect(other + n * PAGE, PAGE, PROT_NONE))
		n += 2;
	if (n >= room / PAGE)
		return 77; /* this machine allows more */
	for (uint64_t page = 1; page < 40; page += 2)
		if (kvmem_region_discard(r, page * PAGE, PAGE) || !is_zero(at + page * PAGE, PAGE))
			return 3;
	/* What splits nothing is possible still. */
	if (kvmem_region_discard(r, 0, BYTES) || !is_zero(at, BYTES))
		return 4;
	munmap(other, room);
	return 0;
}

TEST(discards_work_where_no_mapping_is_left)
{
	int fd = make_template(MEMFD, BYTES), r;
	struct kvmem_region *clone = clone_of(fd, BYTES);

	r = harness_child(without_mappings, clone);
	if (r == 77)
		harness_note("vm.max_map_count is beyond 200 000");
	else
		ck_assert_int_eq(r, 0);
	ck_ok(kvmem_region_free(clone));
	close(fd);
}
END

/* "dd", "dc" and the like of the mapping that has the address. */
static bool has_vm_flag(const uint8_t *at, const char *flag)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long start, end;
	bool here = false, has = false;
	char line[512], *rest;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		start = strtoul(line, &rest, 16);
		if (*rest == '-') {
			end = strtoul(rest + 1, NULL, 16);
			here = start <= (uintptr_t)at && (uintptr_t)at < end;
		} else if (here && !strncmp(line, "VmFlags:", 8)) {
			has = strstr(line, flag) != NULL;
		}
	}
	fclose(f);
	return has;
}

TEST(what_is_mapped_over_is_told_what_the_clone_was)
{
	int fd = make_template(MEMFD, BYTES);
	struct kvmem_region_opts o = opts_of(fd, BYTES);
	struct kvmem_region *r;
	const unsigned long node = 1;
	int mode = -1, p;

	o.flags |= KVMEM_REGION_DONTDUMP | KVMEM_REGION_DONTFORK;
	ck_ok(kvmem_region_create(NULL, &o, &r));
	p = kvmem_region_set_policy(r, 0, 8 * PAGE, KVMEM_POLICY_BIND, &node, 2,
				    KVMEM_POLICY_FUTURE);
	ck_ok(kvmem_region_discard(r, 4 * PAGE, 8 * PAGE));
	ck_assert(has_vm_flag(base_of(r) + 4 * PAGE, " dd"));
	ck_assert(has_vm_flag(base_of(r) + 11 * PAGE, " dd"));
	ck_assert(has_vm_flag(base_of(r) + 4 * PAGE, " dc"));
	if (!p) {
		ck_assert_int_eq(syscall(SYS_get_mempolicy, &mode, NULL, 0, base_of(r) + 5 * PAGE,
					 MPOL_F_ADDR),
				 0);
		ck_assert_int_eq(mode, MPOL_BIND);
		ck_assert_int_eq(syscall(SYS_get_mempolicy, &mode, NULL, 0, base_of(r) + 9 * PAGE,
					 MPOL_F_ADDR),
				 0);
		ck_assert_int_eq(mode, MPOL_DEFAULT);
	} else {
		harness_note("no policy: %s", kvmem_error_detail());
	}
	ck_ok(kvmem_region_free(r));
	close(fd);
}
END

static int locked(void *arg)
{
	int fd = *(int *)arg;
	struct kvmem_region *r;
	uint8_t *at;

	if (mlockall(MCL_FUTURE))
		return 77;
	r = clone_of(fd, BYTES);
	at = base_of(r);
	at[0] = 0xee;
	if (smaps(at, BYTES, "Anonymous:") > 64) /* only that: nothing was copied at once */
		return 2;
	ck_ok(kvmem_region_discard(r, 0, 16 * PAGE));
	if (!is_zero(at, 16 * PAGE) || !is_template(at + 16 * PAGE, 16 * PAGE, PAGE))
		return 3;
	ck_ok(kvmem_region_free(r));
	return 0;
}

TEST(locked_memory_can_be_discarded)
{
	int fd = make_template(MEMFD, BYTES), r = harness_child(locked, &fd);

	if (r == 77)
		harness_note("mlockall() is not allowed");
	else
		ck_assert_int_eq(r, 0);
	close(fd);
}
END

/* The manual warns of it: a private mapping of a file. Where memory has been mapped over it, it cannot happen. */
TEST(madvise_by_the_vmm_brings_the_template_back)
{
	int fd = make_template(MEMFD, BYTES);
	struct kvmem_region *r = clone_of(fd, BYTES);
	uint8_t *at = base_of(r);

	memset(at, 0xee, 2 * PAGE);
	ck_ok(kvmem_region_discard(r, 0, PAGE));
	ck_assert_int_eq(madvise(at, 2 * PAGE, MADV_DONTNEED), 0);
	ck_assert(is_zero(at, PAGE));
	ck_assert(is_template(at + PAGE, PAGE, PAGE));
	ck_ok(kvmem_region_free(r));
	close(fd);
}
END

/* ---- at the same time ---- */

static struct {
	struct kvmem_region *r;
	_Atomic bool stop;
	_Atomic unsigned long looks, wrong;
} reader;

/* Pages go from the template's content to zero once, and never back. */
static void *read_on(void *arg)
{
	static bool gone[PAGES];
	const volatile uint8_t *at = base_of(reader.r);

	(void)arg;
	while (!reader.stop) {
		for (uint64_t page = 0; page < PAGES; page++) {
			uint8_t v = at[page * PAGE];

			reader.wrong += v && (gone[page] || v != pattern(page * PAGE));
			gone[page] |= !v;
		}
		reader.looks++;
	}
	return NULL;
}

static void wait_for_look(void)
{
	unsigned long seen = reader.looks;

	while (reader.looks < seen + 1)
		sched_yield();
}

TEST(who_looks_meanwhile_sees_the_old_page_or_zeros)
{
	int fd = make_template(MEMFD, BYTES);
	struct kvmem_region *other = clone_of(fd, BYTES);
	unsigned long long state = 99;
	pthread_t thread;

	reader.r = clone_of(fd, BYTES);
	ck_assert_int_eq(pthread_create(&thread, NULL, read_on, NULL), 0);
	for (unsigned int i = 0; i < 600; i++) {
		uint64_t page = harness_random(&state) % (PAGES - 8);

		ck_ok(kvmem_region_discard(reader.r, page * PAGE,
					   (1 + harness_random(&state) % 8) * PAGE));
		if (i % 100 == 0)
			wait_for_look();
	}
	ck_ok(kvmem_region_discard(reader.r, 0, BYTES));
	wait_for_look();
	wait_for_look();
	reader.stop = true;
	pthread_join(thread, NULL);
	ck_assert_uint_eq(reader.wrong, 0);
	ck_assert(is_zero(base_of(reader.r), BYTES));
	ck_assert(is_template(base_of(other), 0, BYTES)); /* one discards, the other reads */
	ck_ok(kvmem_region_free(reader.r));
	ck_ok(kvmem_region_free(other));
	close(fd);
}
END

static struct {
	uint8_t *at;
	_Atomic bool stop;
	_Atomic unsigned int forks, failed;
} forker;

static void *fork_on(void *arg)
{
	(void)arg;
	while (!forker.stop) {
		pid_t child = fork();

		if (!child) {
			*forker.at = 0xee; /* the child's own */
			_exit(0);
		}
		if (child < 0 || waitpid(child, NULL, 0) != child)
			forker.failed++;
		forker.forks++;
	}
	return NULL;
}

static void on_alarm(int sig)
{
	(void)sig;
}

/* Signals that interrupt, and children that share the pages. */
TEST(signals_and_forks_meanwhile)
{
	const struct itimerval often = { { 0, 2000 }, { 0, 2000 } }, never = { { 0, 0 }, { 0, 0 } };
	int fd = make_template(MEMFD, BYTES);
	struct kvmem_region *r = clone_of(fd, BYTES);
	unsigned long long state = 5;
	uint8_t *at = base_of(r);
	pthread_t thread;

	forker.at = at;
	signal(SIGALRM, on_alarm);
	ck_assert_int_eq(pthread_create(&thread, NULL, fork_on, NULL), 0);
	ck_assert_int_eq(setitimer(ITIMER_REAL, &often, NULL), 0);
	for (unsigned int i = 0; i < 2000 || forker.forks < 5; i++) {
		uint64_t page = 1 + harness_random(&state) % (PAGES - 1);

		at[page * PAGE] = 0xee;
		ck_ok(kvmem_region_discard(r, page * PAGE, PAGE));
		ck_assert_int_eq(at[page * PAGE], 0);
	}
	forker.stop = true;
	pthread_join(thread, NULL);
	setitimer(ITIMER_REAL, &never, NULL);
	signal(SIGALRM, SIG_DFL);
	ck_assert_uint_eq(forker.failed, 0);
	ck_assert(is_template(at, 0, PAGE));
	ck_assert(unchanged(fd, BYTES));
	ck_ok(kvmem_region_free(r));
	close(fd);
}
END

static struct {
	struct kvmem_region *r;
	_Atomic int failed;
} together;

static void *discard_all(void *arg)
{
	unsigned long long state = (uintptr_t)arg;

	for (unsigned int i = 0; i < 500; i++) {
		uint64_t page = harness_random(&state) % PAGES;

		if (kvmem_region_discard(together.r, page * PAGE, PAGE))
			together.failed++;
	}
	for (uint64_t page = 0; page < PAGES; page++)
		if (kvmem_region_discard(together.r, page * PAGE, PAGE))
			together.failed++;
	return NULL;
}

TEST(several_threads_discard_the_same_pages)
{
	int fd = make_template(MEMFD, BYTES);
	pthread_t threads[3];

	together.r = clone_of(fd, BYTES);
	for (uintptr_t i = 0; i < 3; i++)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, discard_all, (void *)(i + 1)),
				 0);
	for (unsigned int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	ck_assert_int_eq(together.failed, 0);
	ck_assert(is_zero(base_of(together.r), BYTES));
	ck_assert_uint_eq(state_at(together.r, 0), KVMEM_PAGE_ZERO);
	ck_ok(kvmem_region_free(together.r));
	close(fd);
}
END

/* ---- a file without seals ---- */

static int touch_last(void *arg)
{
	signal(SIGBUS, SIG_DFL); /* a sanitizer's handler */
	return ((const volatile uint8_t *)arg)[BYTES - PAGE] ? 0 : 1;
}

/* What the manual says of it; and a discard heals. */
TEST(a_file_that_is_cut_short)
{
	int fd = write_file(BYTES);
	struct kvmem_region *r = clone_of(fd, BYTES);
	uint8_t *at = base_of(r);

	ck_assert_int_eq(ftruncate(fd, (off_t)(BYTES / 2)), 0);
	ck_assert_int_eq(harness_child(touch_last, at), 128 + SIGBUS);
	ck_ok(kvmem_region_discard(r, BYTES / 2, BYTES / 2));
	ck_assert(is_zero(at + BYTES / 2, BYTES / 2));
	ck_assert(is_template(at, 0, BYTES / 2));
	ck_ok(kvmem_region_free(r));
	close(fd);
}
END

/* ---- huge pages ---- */

TEST(huge_pages_are_reserved_or_the_clone_is_refused)
{
	const uint64_t bytes = 2 * HUGE;
	int fd = make_template(HUGE_MEMFD, bytes);
	struct kvmem_region *r[64];
	struct kvmem_region_opts o;
	unsigned int n = 0;
	long reserved;
	int err = 0;

	if (fd < 0)
		SKIP("hugetlb", "no huge pages");
	o = opts_of(fd, bytes);
	reserved = meminfo("HugePages_Free:") - meminfo("HugePages_Rsvd:");
	while (n < 64 && !(err = kvmem_region_create(NULL, &o, &r[n])))
		n++;
	if (n < 64) {
		ck_assert_int_eq(err, -EOPNOTSUPP);
		ck_assert_msg(strstr(kvmem_error_detail(), "2 huge pages") &&
				      strstr(kvmem_error_detail(), "are free"),
			      "%s", kvmem_error_detail());
		ck_assert_int_eq((long)n, reserved / 2);
	}
	/* The pool is empty, and nobody dies of it. */
	for (unsigned int i = 0; i < n; i++) {
		memset(base_of(r[i]), 0xee, bytes);
		ck_ok(kvmem_region_discard(r[i], HUGE, HUGE));
		ck_assert(is_zero(base_of(r[i]) + HUGE, HUGE));
		memset(base_of(r[i]) + HUGE, 0xee, HUGE);
	}
	ck_assert(unchanged(fd, bytes));
	for (unsigned int i = 0; i < n; i++)
		ck_ok(kvmem_region_free(r[i]));
	ck_assert_int_eq(meminfo("HugePages_Free:") - meminfo("HugePages_Rsvd:"), reserved);
	close(fd);
}
END

/* ---- with a guest ---- */

/* Pages in doubt that came with a batch because the kernel cannot protect them again. */
static uint64_t kept(struct rig *rig)
{
	struct kvmem_dirty_stats s = KVMEM_DIRTY_STATS_INIT;

	ck_ok(kvmem_dirty_get_stats(rig->dirty, &s));
	return s.pages_kept;
}

/* false: no such guest here, and the skip is noted. */
static bool track(int fd, enum kind kind, uint32_t mode)
{
	const uint64_t page = kind == HUGE_MEMFD ? HUGE : PAGE;
	struct rig rig;
	uint64_t before;

	if (!rig_open(&rig, &(struct rig_opts){ .mode = mode,
						.ring_entries = 1024,
						.bytes = BYTES,
						.vcpus = 2,
						.fd = fd,
						.clone = true }))
		return false;
	memcpy(rig.copy, rig.base, BYTES);
	for (unsigned int round = 0; round < 3; round++) {
		rig_write(&rig, 0, 10, 100, true);
		rig_write(&rig, 1, 10, 100, false);
		for (unsigned int i = 0; i < 20; i++) /* under the running guest */
			ck_ok(kvmem_region_discard(rig.ram, (i * 39 + round) * page % BYTES, page));
		rig_follow(&rig);
		ck_assert_msg(!rig_lost(&rig), "%lu pages lost", (unsigned long)rig_lost(&rig));
	}
	/* A page that nobody writes and nobody discards is not reported, but for those that stay in doubt. */
	rig_forget(&rig);
	before = kept(&rig);
	rig_sync(&rig);
	ck_assert_uint_eq(rig_seen(&rig), kept(&rig) - before);
	if (kept(&rig) != before)
		harness_note("%s: %lu pages in doubt", kind_names[kind],
			     (unsigned long)rig_seen(&rig));
	ck_ok(kvmem_region_discard(rig.ram, 0, page));
	rig_forget(&rig);
	before = kept(&rig);
	rig_sync(&rig);
	ck_assert(rig.seen[0] && rig.seen[page / PAGE - 1]);
	ck_assert_uint_le(rig_seen(&rig), page / PAGE + kept(&rig) - before);
	ck_assert(is_zero(rig.base, page));
	rig_close(&rig);
	return true;
}

TEST(clones_of_every_kind_are_tracked_exactly)
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		int fd = make_template(kind, BYTES);

		if (fd < 0) {
			harness_note("%s: no huge pages", kind_names[kind]);
			continue;
		}
		if (track(fd, kind, KVMEM_DIRTY_RING))
			track(fd, kind, KVMEM_DIRTY_BITMAP);
		ck_assert_msg(unchanged(fd, BYTES), "%s", kind_names[kind]);
		close(fd);
	}
}
END

HARNESS_MAIN(T(clones_have_the_templates_content_and_their_own_writes),
	     T(a_part_of_a_template_and_its_last_page),
	     T(no_file_descriptor_of_the_template_is_kept), T(what_is_no_template_is_refused),
	     T(the_plan_says_what_a_clone_has_and_what_not), T(nothing_fills_a_clone),
	     T(limits_of_private_memory_are_named),
	     T(where_pages_are_and_whether_huge_ones_can_be_mapped),
	     T(a_clone_never_reaches_its_template), T(what_no_clone_has_written_is_there_once),
	     T(a_discarded_page_is_zero_and_never_the_templates_again),
	     T(discards_in_any_order_against_a_model), T(mappings_are_left_to_the_vmm),
	     T(discards_work_where_no_mapping_is_left),
	     T(what_is_mapped_over_is_told_what_the_clone_was), T(locked_memory_can_be_discarded),
	     T(who_looks_meanwhile_sees_the_old_page_or_zeros),
	     T(madvise_by_the_vmm_brings_the_template_back), T(signals_and_forks_meanwhile),
	     T(several_threads_discard_the_same_pages), T(a_file_that_is_cut_short),
	     T(huge_pages_are_reserved_or_the_clone_is_refused),
	     T(clones_of_every_kind_are_tracked_exactly))
