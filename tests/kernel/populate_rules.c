// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_populate() on real memory: beside pagers, over poison, unannounced pages, limits, callbacks. */
#include <fcntl.h>
#include <sys/resource.h>

#include "pager_lib.h"

static const enum kvmem_backing kinds[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static int populate(struct set *s, uint64_t offset, uint64_t bytes, uint32_t flags)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.source_offset = offset;
	o.bytes = bytes;
	o.flags = flags;
	return kvmem_populate(s->ram, offset, s->source, &o, NULL);
}

/* ---- mappings that are split ---- */

static void split(struct set *s)
{
	const int kept = PROT_READ | PROT_WRITE;

	must(madvise(s->base + 2 * MIB + PAGE, MIB, MADV_DONTDUMP));
	must(madvise(s->base + 5 * MIB - PAGE, 3 * PAGE, MADV_DONTDUMP));
	must(mprotect(s->base + 6 * MIB + 5 * PAGE, PAGE, PROT_READ));
	must(mprotect(s->base + 6 * MIB + 5 * PAGE, PAGE, kept));
	for (uint64_t at = 7 * MIB; at < 8 * MIB; at += 6 * PAGE)
		must(madvise(s->base + at, 3 * PAGE, MADV_DONTDUMP));
}

TEST(k4_15_populate_across_split_mappings)
{
	for (size_t k = 0; k < KINDS; k++) {
		for (int how = 0; how < 3; how++) {
			struct kvmem_run run;
			struct set s;

			if (!open_set(&s, kinds[k], 8 * MIB))
				return;
			use_memory(&s);
			start_set(&s);
			split(&s);
			if (how == 1) { /* zeros: mapped by another call */
				memset(s.content + 2 * MIB, 0, MIB);
				memset(s.content + 7 * MIB, 0, MIB);
			}
			must(populate(&s, 0, 0, how == 2 ? KVMEM_POPULATE_KEEP_ZERO : 0));
			ck_assert_int_eq(kvmem_region_next_missing(s.ram, 0, &run), 0);
			check_all(&s);
			ck_assert_uint_eq(stats_of(&s).pages_demand, 0);
			must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
			check_all(&s);
			close_set(&s);
		}
	}
}
END

/* ---- after a pager ---- */

struct waiter {
	struct set *s;
	uint64_t page;
	_Atomic bool there;
};

static void *touch(void *arg)
{
	struct waiter *w = arg;

	check_page(w->s, w->page);
	atomic_store(&w->there, true);
	return NULL;
}

TEST(k5_18_populate_serves_who_waits_after_hand_back)
{
	for (size_t k = 0; k < KINDS; k++) {
		struct waiter w[4];
		pthread_t t[4];
		struct set s;

		if (!open_set(&s, kinds[k], 4 * MIB))
			return;
		use_memory(&s);
		s.opts.fault_around = PAGE;
		start_set(&s);
		check_page(&s, 7);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
		for (int i = 0; i < 4; i++) {
			w[i] = (struct waiter){ .s = &s, .page = (uint64_t)i * 250 + 9 };
			ck_assert_int_eq(pthread_create(&t[i], NULL, touch, &w[i]), 0);
		}
		usleep(100000);
		for (int i = 0; i < 4; i++)
			ck_assert(!atomic_load(&w[i].there)); /* waits, and sees no zeros */
		must(populate(&s, 0, 0, 0));
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
		check_all(&s);
		close_set(&s);
	}
}
END

static _Atomic bool source_fails;

static int moody_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct set *s = arg;

	if (atomic_load(&source_fails))
		return -EIO;
	memcpy(buf, s->content + offset, bytes);
	return 0;
}

static void use_moody(struct set *s)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	ops.read = moody_read;
	must(kvmem_source_callback(&ops, s, s->bytes, &s->source));
}

/* The end of a pager, whose source fails, poisons what is missing. */
static void poison(struct set *s)
{
	struct kvmem_run run;
	uint32_t state = 0;

	atomic_store(&source_fails, true);
	ck_assert_int_eq(kvmem_pager_stop(s->pager, KVMEM_STOP_FILL), -EIO);
	ck_assert_int_ge(kvmem_region_next_run(s->ram, 40 * PAGE, &run, &state), 0);
	ck_assert_uint_eq(state, KVMEM_PAGE_POISONED);
	atomic_store(&source_fails, false);
}

TEST(k7_24_populate_heals_poison)
{
	for (size_t k = 0; k < KINDS; k++) {
		struct kvmem_run run;
		struct set s;

		if (!open_set(&s, kinds[k], MIB))
			return;
		use_moody(&s);
		start_set(&s);
		check_page(&s, 3);
		poison(&s);
		must(populate(&s, 0, 0, 0));
		ck_assert_int_eq(kvmem_region_next_missing(s.ram, 0, &run), 0);
		check_all(&s);
		memset(s.base, 0x5c, s.bytes);
		close_set(&s);
	}
}
END

/* ---- pages that nobody has announced ---- */

static void by_hand(struct set *s)
{
	memset(s->base + 17 * PAGE, 0x21, 3 * PAGE);
	s->base[200 * PAGE] = 1;
}

static void unannounced(enum kvmem_backing backing, struct kvmem_vm *vm)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.backing = backing;
	o.bytes = MIB;
	for (int how = 0; how < 3; how++) {
		struct set s = { .bytes = MIB, .fd = -1 };

		must(kvmem_region_create(vm, &o, &s.ram));
		s.base = kvmem_region_base(s.ram);
		s.content = make_content(MIB);
		memset(s.content + 18 * PAGE, 0, PAGE);
		use_memory(&s);
		by_hand(&s);
		ck_assert_int_eq(populate(&s, 0, 0, 0), -EEXIST);
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "4 pages"));
		ck_assert_uint_eq(s.base[19 * PAGE + 5], 0x21);
		if (how == 1) {
			must(populate(&s, 0, 0, KVMEM_FILL_KEEP));
			memset(s.content + 17 * PAGE, 0x21, 3 * PAGE);
			memset(s.content + 200 * PAGE, 0, PAGE);
			s.content[200 * PAGE] = 1;
		} else if (how == 2) {
			must(populate(&s, 0, 0, KVMEM_FILL_OVERWRITE));
		} else {
			must(kvmem_region_discard(s.ram, 17 * PAGE, 3 * PAGE));
			must(kvmem_region_mark_present(s.ram, 200 * PAGE, PAGE));
			must(populate(&s, 0, 0, 0));
			memset(s.content + 17 * PAGE, 0, 3 * PAGE);
			memset(s.content + 200 * PAGE, 0, PAGE);
			s.content[200 * PAGE] = 1;
		}
		check_all(&s);
		close_set(&s);
	}
}

TEST(k11_33_unannounced_pages_of_a_memfd_and_of_anonymous_memory)
{
	for (size_t k = 0; k < KINDS; k++)
		unannounced(kinds[k], NULL);
}
END

TEST(k11_33_unannounced_pages_of_a_guest_memfd)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_vm *vm;
	int r = kvmem_vm_create(NULL, &vm);

	SKIP_IF(r, "kvm", "%s", kvmem_error_detail());
	o.backing = KVMEM_BACKING_GUEST_MEMFD;
	o.bytes = MIB;
	r = kvmem_region_plan(vm, &o, &plan);
	if (r)
		harness_skip("guest-memfd", "%s", kvmem_error_detail());
	else
		unannounced(KVMEM_BACKING_GUEST_MEMFD, vm);
	must(kvmem_vm_free(vm));
}
END

/* A huge page that a small fill made as a whole: its other pages are as absent as before. */
TEST(k11_33_the_rest_of_a_huge_page_does_not_count)
{
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_ANONYMOUS, 8 * MIB))
		return;
	use_memory(&s);
	if (madvise(s.base, s.bytes, MADV_HUGEPAGE))
		harness_note("no transparent huge pages here");
	must(populate(&s, 3 * PAGE, 20 * PAGE, 0));
	must(populate(&s, MIB, MIB, 0));
	must(populate(&s, 5 * MIB + PAGE, PAGE, 0));
	must(populate(&s, 0, 0, 0));
	check_all(&s);
	close_set(&s);
}
END

/* ---- files of others ---- */

static int given_file(int flags)
{
	int fd = memfd_create("given", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, 8 * MIB), 0);
	if (flags)
		ck_assert_int_eq(fcntl(fd, F_SETFL, flags), 0);
	return fd;
}

static void adopt(struct set *s, int fd)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	memset(s, 0, sizeof(*s));
	o.flags = KVMEM_REGION_FD;
	o.fd = fd;
	o.bytes = 8 * MIB;
	must(kvmem_region_create(NULL, &o, &s->ram));
	s->bytes = 8 * MIB;
	s->fd = fd;
	s->base = kvmem_region_base(s->ram);
	s->content = make_content(s->bytes);
	use_memory(s);
}

TEST(k12_38_an_adopted_descriptor_that_appends)
{
	struct set s;

	adopt(&s, given_file(O_APPEND));
	must(populate(&s, 0, 0, 0));
	check_all(&s);
	ck_assert_int_eq(lseek(s.fd, 0, SEEK_END), 8 * MIB);
	close_set(&s);
}
END

static int limited(void *arg)
{
	struct rlimit limit;
	struct set *s = arg;
	int r;

	getrlimit(RLIMIT_FSIZE, &limit);
	limit.rlim_cur = MIB;
	setrlimit(RLIMIT_FSIZE, &limit);
	r = populate(s, 0, 0, 0);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_FSIZE, &limit);
	return r || memcmp(s->base, s->content, s->bytes);
}

TEST(k10_31_an_adopted_file_beyond_the_limit)
{
	struct set s;

	adopt(&s, given_file(0));
	ck_assert_int_eq(harness_child(limited, &s), 0);
	close_set(&s);
}
END

struct cut {
	struct set *s;
	int fd;
};

static int populate_cut(void *arg)
{
	struct cut *c = arg;

	if (ftruncate(c->fd, MIB + 5 * PAGE))
		return 1;
	return populate(c->s, 0, 0, KVMEM_FILL_OVERWRITE) == -EFAULT ? 0 : 2;
}

TEST(k10_30_a_source_in_a_file_that_was_cut_short)
{
	struct kvmem_run run;

	for (size_t k = 0; k < KINDS; k++) {
		struct set s;
		struct cut c = { .s = &s };
		void *p;

		if (!open_set(&s, kinds[k], 4 * MIB))
			return;
		c.fd = memfd_create("source", MFD_CLOEXEC);
		ck_assert_int_eq(pwrite(c.fd, s.content, s.bytes, 0), (ssize_t)s.bytes);
		p = mmap(NULL, s.bytes, PROT_READ, MAP_SHARED, c.fd, 0);
		ck_assert_ptr_ne(p, MAP_FAILED);
		must(kvmem_source_memory(p, s.bytes, &s.source));
		ck_assert_int_eq(harness_child(populate_cut, &c), 0);
		/* The child's record is its own; this process fills what is left here. */
		ck_assert_int_eq(populate_cut(&c), 0);
		ck_assert_int_eq(kvmem_region_next_missing(s.ram, 0, &run), 1);
		ck_assert_uint_le(run.offset, MIB + 5 * PAGE);
		ck_assert_int_eq(ftruncate(c.fd, (off_t)s.bytes), 0);
		ck_assert_int_eq(pwrite(c.fd, s.content, s.bytes, 0), (ssize_t)s.bytes);
		must(populate(&s, 0, 0, KVMEM_FILL_OVERWRITE));
		check_all(&s);
		must(kvmem_source_free(s.source));
		s.source = NULL;
		munmap(p, s.bytes);
		close(c.fd);
		close_set(&s);
	}
}
END

/* ---- calls from progress ---- */

struct nested {
	struct set *s;
	int stop, free, wait, discard, populate;
};

static int nested(void *arg, const struct kvmem_progress *p)
{
	struct nested *n = arg;
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;

	(void)p;
	n->stop = kvmem_pager_stop(n->s->pager, KVMEM_STOP_FILL);
	n->free = kvmem_pager_free(n->s->pager);
	n->wait = kvmem_pager_wait(n->s->pager, 1000000);
	n->discard = kvmem_region_discard(n->s->ram, 0, PAGE);
	n->populate = populate(n->s, 0, 0, 0);
	must(kvmem_pager_get_stats(n->s->pager, &st));
	return 0;
}

TEST(k9_27_progress_does_not_wait_for_its_own_populate)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct set s;
	struct nested n = { .s = &s };

	if (!open_set(&s, KVMEM_BACKING_MEMFD, 4 * MIB))
		return;
	use_memory(&s);
	start_set(&s);
	o.progress = nested;
	o.progress_arg = &n;
	must(kvmem_populate(s.ram, 0, s.source, &o, NULL));
	ck_assert_int_eq(n.stop, -EDEADLK);
	ck_assert_int_eq(n.free, -EDEADLK);
	ck_assert_int_eq(n.wait, -EDEADLK);
	ck_assert_int_eq(n.discard, -EDEADLK);
	ck_assert_int_eq(n.populate, -EDEADLK);
	check_all(&s);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	close_set(&s);
}
END

/* ---- a source that ends where addresses do ---- */

static int reads_zero(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	(void)offset;
	memset(buf, 7, bytes);
	return 0;
}

TEST(a_source_of_nearly_all_bytes_there_are)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, MIB))
		return;
	ops.read = reads_zero;
	must(kvmem_source_callback(&ops, NULL, UINT64_MAX, &s.source));
	must(populate(&s, 8 * PAGE, 4 * PAGE, 0));
	ck_assert_uint_eq(s.base[8 * PAGE], 7);
	ck_assert_uint_eq(s.base[12 * PAGE], 0);
	close_set(&s);
}
END

HARNESS_MAIN(T(a_source_of_nearly_all_bytes_there_are), T(k4_15_populate_across_split_mappings),
	     T(k5_18_populate_serves_who_waits_after_hand_back), T(k7_24_populate_heals_poison),
	     T(k11_33_unannounced_pages_of_a_memfd_and_of_anonymous_memory),
	     T(k11_33_unannounced_pages_of_a_guest_memfd),
	     T(k11_33_the_rest_of_a_huge_page_does_not_count),
	     T(k12_38_an_adopted_descriptor_that_appends),
	     T(k10_31_an_adopted_file_beyond_the_limit),
	     T(k10_30_a_source_in_a_file_that_was_cut_short),
	     T(k9_27_progress_does_not_wait_for_its_own_populate))
