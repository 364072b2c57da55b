// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Clones of a template: one copy of what nobody has written, pages of their own where they have, and a template
 * that nothing of it reaches.
 */
#include "clone_rig.h"

#include <sys/resource.h>

/* ---- what a clone is ---- */

TEST(clones_have_the_templates_content_and_their_own_writes)
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		int fd = make_template(kind, BYTES);
		struct kvmem_region *a, *b;

		if (fd < 0) {
			harness_note("%s: no huge pages", kind_name(kind));
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
		ck_assert_msg(unchanged(fd, BYTES), "%s", kind_name(kind));
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
		ck_assert_msg(unchanged(fd, BYTES), "%s", kind_name(kind));
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
		harness_note("%s: %lu pages in doubt", kind_name(kind),
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
			harness_note("%s: no huge pages", kind_name(kind));
			continue;
		}
		if (track(fd, kind, KVMEM_DIRTY_RING))
			track(fd, kind, KVMEM_DIRTY_BITMAP);
		ck_assert_msg(unchanged(fd, BYTES), "%s", kind_name(kind));
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
	     T(huge_pages_are_reserved_or_the_clone_is_refused),
	     T(clones_of_every_kind_are_tracked_exactly))
