// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Pages of clones that are discarded: zero, and never the template's again, whatever happens meanwhile. */
#include "clone_rig.h"

#include "huge_pages.h"

#include <linux/mempolicy.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

/* ---- discard ---- */

TEST(a_discarded_page_is_zero_and_never_the_templates_again)
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		uint64_t page = kind == HUGE_MEMFD ? HUGE : PAGE;
		int fd = make_template(kind, BYTES);
		struct kvmem_region *r;
		uint8_t *at;

		if (fd < 0) {
			harness_note("%s: no huge pages", kind_name(kind));
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

/* Zeros that were written are content, which a madvise(2) of the VMM's own takes away. */
static bool is_data(struct kvmem_region *r, uint64_t bytes)
{
	struct kvmem_stored run;

	return kvmem_region_stored(r, 0, bytes, &run, 1) == 1 && run.kind == KVMEM_STORED_DATA &&
	       run.bytes == bytes;
}

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
	if (!is_data(r, 16 * PAGE))
		return 4;
	if (munlockall() || madvise(at, 16 * PAGE, MADV_DONTNEED))
		return 5;
	if (!is_data(r, 16 * PAGE) ||
	    !is_template(at, 0, 16 * PAGE)) /* asked before it is touched */
		return 6;
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

/* In huge pages a discard writes zeros. */
TEST(and_in_huge_pages_no_record_says_zero)
{
	struct kvmem_region *r;
	uint8_t *at;
	int fd;

	huge_pages_begin();
	fd = make_template(HUGE_MEMFD, BYTES);
	if (fd < 0) {
		huge_pages_end();
		SKIP("hugetlb", "no huge pages");
	}
	r = clone_of(fd, BYTES);
	at = base_of(r);
	ck_ok(kvmem_region_discard(r, 0, HUGE));
	ck_assert(is_zero(at, HUGE));
	ck_assert(is_data(r, HUGE));
	ck_assert_int_eq(madvise(at, HUGE, MADV_DONTNEED), 0);
	ck_assert(is_data(r, HUGE));
	ck_assert(is_template(at, 0, HUGE));
	ck_ok(kvmem_region_free(r));
	close(fd);
	huge_pages_end();
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

HARNESS_MAIN(T(a_discarded_page_is_zero_and_never_the_templates_again),
	     T(discards_in_any_order_against_a_model), T(mappings_are_left_to_the_vmm),
	     T(discards_work_where_no_mapping_is_left),
	     T(what_is_mapped_over_is_told_what_the_clone_was), T(locked_memory_can_be_discarded),
	     T(madvise_by_the_vmm_brings_the_template_back),
	     T(and_in_huge_pages_no_record_says_zero),
	     T(who_looks_meanwhile_sees_the_old_page_or_zeros), T(signals_and_forks_meanwhile),
	     T(several_threads_discard_the_same_pages), T(a_file_that_is_cut_short))
