// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What becomes of every set of wishes on every kind of kernel. */
#include "harness.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "caps/caps_internal.h"
#include "region/region.h"
#include "fake_sys.h"

/* What a kernel can, a bit each. */
enum {
	A_GMEM = 1 << 0,
	A_WRITE = 1 << 1,
	A_GMEM_UFFD = 1 << 2,
	A_GMEM_NUMA = 1 << 3,
	A_PRIVATE = 1 << 4,
	A_HUGE = 1 << 5,
	A_UFFD = 1 << 6,
	A_DIRECT_DIRTY = 1 << 7,
	A_THP = 1 << 8,	     /* of anonymous and of shared memory */
	A_WP_ASYNC = 1 << 9, /* write protection, with events and without */
	ABILITIES = 1 << 10,
};

#define WANTS 512u
#define BYTES (4ull << 20)

static struct kvmem_caps caps;

static void cap(uint32_t id, bool has, int64_t value)
{
	struct km_cap_entry *e = &caps.entries[id];

	e->support = has ? KVMEM_SUPPORT_NATIVE : KVMEM_SUPPORT_NONE;
	e->value = has ? value : 0;
	e->fallback = "";
	e->reason = "the test says so";
	e->known = true;
}

static bool too_few; /* huge pages are free, and fewer than are asked for */

static int64_t huge_memfd(const char *name, unsigned int flags)
{
	return too_few && flags & MFD_HUGETLB ? -ENOMEM
					      : km_real_memfd_create(name, flags & MFD_CLOEXEC);
}

/* As they come: "madvise", "advise", or never; and a size of its own, if one has been chosen. */
static const char *thp_choice[4];
static const char *thp_text;

static int64_t thp_open(const char *path, int flags)
{
	static const char dir[] = "/sys/kernel/mm/transparent_hugepage/";
	static const char *const names[] = { "enabled", "shmem_enabled", "hugepages-2048kB/enabled",
					     "hugepages-2048kB/shmem_enabled" };

	if (strncmp(path, dir, sizeof(dir) - 1))
		return km_real_open(path, flags);
	thp_text = NULL;
	for (size_t i = 0; i < 4; i++)
		if (!strcmp(path + sizeof(dir) - 1, names[i]))
			thp_text = thp_choice[i];
	return thp_text ? 10000 : -ENOENT;
}

static int64_t thp_read(int fd, void *buf, size_t len)
{
	if (fd != 10000)
		return km_real_read(fd, buf, len);
	strncpy(buf, thp_text, len);
	return (int64_t)strlen(thp_text);
}

static void thp(const char *anonymous, const char *shared, const char *own, const char *own_shared)
{
	thp_choice[0] = anonymous;
	thp_choice[1] = shared;
	thp_choice[2] = own;
	thp_choice[3] = own_shared;
}

static void kernel(unsigned int a)
{
	int64_t modes = KVMEM_UFFD_MISSING | KVMEM_UFFD_MINOR;
	int64_t wp = a & A_WP_ASYNC ? KVMEM_UFFD_WP : 0;

	fake_reset();
	fake.memfd_create = huge_memfd;
	fake.open = thp_open;
	fake.read = thp_read;
	thp(a & A_THP ? "always [madvise] never\n" : "always madvise [never]\n",
	    a & A_THP ? "always within_size [advise] never deny force\n"
		      : "always within_size advise [never] deny force\n",
	    "always [inherit] madvise never\n", NULL);
	memset(&caps, 0, sizeof(caps));
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++)
		cap(id, false, 0);
	cap(KVMEM_CAP_GUEST_MEMFD, a & A_GMEM, 3);
	cap(KVMEM_CAP_GUEST_MEMFD_INIT_SHARED, a & A_GMEM, 3);
	cap(KVMEM_CAP_GUEST_MEMFD_HVA_SLOT, a & A_GMEM, 0);
	cap(KVMEM_CAP_GUEST_MEMFD_HVA_DIRTY, a & A_GMEM, 0);
	cap(KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT, a & A_GMEM, 0);
	cap(KVMEM_CAP_GUEST_MEMFD_DIRECT_DIRTY, a & A_GMEM && a & A_DIRECT_DIRTY, 0);
	cap(KVMEM_CAP_GUEST_MEMFD_WRITE, a & A_GMEM && a & A_WRITE, KVMEM_WRITE_ALIGNED);
	cap(KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG, a & A_GMEM && a & A_WRITE, 8);
	cap(KVMEM_CAP_GUEST_MEMFD_UFFD, a & A_GMEM && a & A_GMEM_UFFD, modes);
	cap(KVMEM_CAP_GUEST_MEMFD_NUMA, a & A_GMEM && a & A_GMEM_NUMA, 0);
	cap(KVMEM_CAP_MEMORY_ATTRIBUTES, a & A_PRIVATE, 8);
	cap(KVMEM_CAP_HUGETLB_2M, a & A_HUGE, 8);
	cap(KVMEM_CAP_UFFD_SHMEM, a & A_UFFD, modes | wp);
	cap(KVMEM_CAP_UFFD_HUGETLB, a & A_UFFD, modes | wp);
	cap(KVMEM_CAP_UFFD_ANON, a & A_UFFD, KVMEM_UFFD_MISSING | wp);
	cap(KVMEM_CAP_UFFD_WP_ASYNC, a & A_WP_ASYNC, 0);
	cap(KVMEM_CAP_NUMA_NODES, true, 2);
}

/* The same knowledge a second time, as a table. */
struct answer {
	uint32_t backing, form;
	uint64_t can;
	bool there;
};

static uint64_t when(bool cond, uint64_t bits)
{
	return cond ? bits : 0;
}

/* Paging and sharing exclude each other, and so do paging and transparent huge pages; of two wishes
 * alike, paging stays. */
static void exclude(uint64_t wants, struct answer *out, unsigned int n)
{
	const uint64_t losers[] = { KVMEM_WANT_SHARED, KVMEM_WANT_THP };

	for (unsigned int i = 0; i < n; i++)
		for (unsigned int j = 0; j < 2; j++) {
			const uint64_t both = KVMEM_WANT_PAGING | losers[j];

			if (j && out[i].backing == KVMEM_BACKING_HUGETLB)
				continue;
			if ((wants & both) == both && (out[i].can & both) == both)
				out[i].can &= ~losers[j];
		}
}

/* Nothing that is wanted needs a file, and what is written is found without one. */
static bool no_file(unsigned int a, uint64_t wants)
{
	return !(wants & ~(uint64_t)(KVMEM_WANT_DIRTY | KVMEM_WANT_NUMA | KVMEM_WANT_THP |
				     KVMEM_WANT_CAPTURE)) &&
	       (!(wants & KVMEM_WANT_DIRTY) || a & A_WP_ASYNC) &&
	       (!(wants & KVMEM_WANT_CAPTURE) || (a & A_UFFD && a & A_WP_ASYNC));
}

static unsigned int answers(unsigned int a, uint64_t wants, struct answer *out)
{
	uint64_t hva = KVMEM_WANT_SHARED | when(a & A_WRITE, KVMEM_WANT_WRITE) |
		       when(a & A_GMEM_NUMA, KVMEM_WANT_NUMA);
	uint64_t capture = when(a & A_UFFD && a & A_WP_ASYNC, KVMEM_WANT_CAPTURE);

	out[0] = (struct answer){ KVMEM_BACKING_ANONYMOUS, KVMEM_SLOT_HVA,
				  KVMEM_WANT_DIRTY | KVMEM_WANT_NUMA | capture |
					  when(a & A_THP, KVMEM_WANT_THP),
				  no_file(a, wants) };
	out[1] = (struct answer){ KVMEM_BACKING_GUEST_MEMFD, KVMEM_SLOT_HVA,
				  hva | KVMEM_WANT_DIRTY | when(a & A_GMEM_UFFD, KVMEM_WANT_PAGING),
				  a & A_GMEM };
	out[2] = (struct answer){ KVMEM_BACKING_MEMFD, KVMEM_SLOT_HVA,
				  KVMEM_WANT_SHARED | KVMEM_WANT_WRITE | KVMEM_WANT_NUMA | capture |
					  KVMEM_WANT_DIRTY | when(a & A_UFFD, KVMEM_WANT_PAGING) |
					  when(a & A_THP, KVMEM_WANT_THP),
				  true };
	out[3] = (struct answer){ KVMEM_BACKING_GUEST_MEMFD, KVMEM_SLOT_DIRECT,
				  hva | when(a & A_PRIVATE, KVMEM_WANT_PRIVATE) |
					  when(a & A_DIRECT_DIRTY, KVMEM_WANT_DIRTY),
				  a & A_GMEM };
	out[4] = (struct answer){ KVMEM_BACKING_HUGETLB, KVMEM_SLOT_HVA,
				  KVMEM_WANT_SHARED | KVMEM_WANT_HUGE | KVMEM_WANT_DIRTY | capture |
					  KVMEM_WANT_THP | when(a & A_UFFD, KVMEM_WANT_PAGING),
				  a & A_HUGE && wants & KVMEM_WANT_HUGE };
	exclude(wants, out, 5);
	return 5;
}

/* private over huge over dirty over paging over capture over shared over numa over write over thp */
static unsigned int rank(uint64_t bits)
{
	static const uint64_t order[] = {
		KVMEM_WANT_THP,	   KVMEM_WANT_WRITE,   KVMEM_WANT_NUMA,
		KVMEM_WANT_SHARED, KVMEM_WANT_CAPTURE, KVMEM_WANT_PAGING,
		KVMEM_WANT_DIRTY,  KVMEM_WANT_HUGE,    KVMEM_WANT_PRIVATE
	};
	unsigned int r = 0;

	for (unsigned int i = 0; i < 9; i++)
		r |= bits & order[i] ? 1u << i : 0;
	return r;
}

static unsigned int lines_with(const char *text, const char *word)
{
	unsigned int n = 0;

	for (const char *p = text; (p = strstr(p, word)); p++)
		n++;
	return n;
}

static void check_wants(unsigned int a, uint64_t wants)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = BYTES, .wants = wants };
	struct kvmem_plan p;
	struct answer all[5], *best = NULL;
	unsigned int n = answers(a, wants, all);

	for (unsigned int i = 0; i < n; i++)
		if (all[i].there && (!best || rank(all[i].can & wants) > rank(best->can & wants)))
			best = &all[i];
	ck_assert_int_eq(km_plan_make(&caps, true, &o, NULL, &p), 0);
	ck_assert_msg(p.backing == best->backing && p.slot_form == best->form,
		      "abilities 0x%x wants 0x%x: backing %u form %u, not %u %u\n%s", a,
		      (unsigned int)wants, p.backing, p.slot_form, best->backing, best->form,
		      p.reasons);
	ck_assert_uint_eq(p.granted, best->can & wants);
	ck_assert_uint_eq(p.given_up, wants & ~best->can);
	ck_assert_uint_eq(lines_with(p.reasons, " given up: "),
			  (unsigned int)__builtin_popcountll(p.given_up));
	ck_assert_uint_gt(strlen(p.reasons), 0);
	ck_assert_int_eq(p.reasons[strlen(p.reasons) - 1], '\n');
}

static void check_needs(unsigned int a, uint64_t needs)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = BYTES, .needs = needs };
	struct kvmem_plan p;
	struct answer all[5];
	unsigned int n = answers(a, needs, all);
	bool possible = false;
	int r;

	for (unsigned int i = 0; i < n; i++)
		possible |= all[i].there && !(needs & ~all[i].can);
	r = km_plan_make(&caps, true, &o, NULL, &p);
	ck_assert_msg(r == (possible ? 0 : -EOPNOTSUPP), "abilities 0x%x needs 0x%x: %d %s", a,
		      (unsigned int)needs, r, kvmem_error_detail());
	if (possible) {
		ck_assert_uint_eq(p.granted, needs);
		ck_assert_uint_eq(p.given_up, 0);
	} else {
		ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "region needs"));
	}
}

TEST(every_wish_on_every_kernel)
{
	for (unsigned int a = 0; a < ABILITIES; a++) {
		kernel(a);
		for (uint64_t w = 0; w < WANTS; w++) {
			check_wants(a, w);
			check_needs(a, w);
		}
	}
}
END

static struct kvmem_plan plan;

static int plan_of(unsigned int a, struct kvmem_region_opts o)
{
	o.size = sizeof(o);
	if (!o.bytes)
		o.bytes = BYTES;
	kernel(a);
	return km_plan_make(&caps, true, &o, NULL, &plan);
}

#define PLAN(a, ...) plan_of(a, (struct kvmem_region_opts){ __VA_ARGS__ })

static void refused(int r, const char *word)
{
	ck_assert_int_eq(r, -EOPNOTSUPP);
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

TEST(requirements_that_exclude_each_other)
{
	unsigned int all = ABILITIES - 1, most = all & ~(unsigned int)A_DIRECT_DIRTY;

	refused(PLAN(most, .needs = KVMEM_WANT_PRIVATE | KVMEM_WANT_DIRTY),
		"private memory excludes");
	refused(PLAN(all, .needs = KVMEM_WANT_PRIVATE | KVMEM_WANT_PAGING), "no userfaultfd sees");
	refused(PLAN(all, .needs = KVMEM_WANT_PRIVATE | KVMEM_WANT_HUGE), "base pages only");
	refused(PLAN(all, .needs = KVMEM_WANT_HUGE | KVMEM_WANT_WRITE), "no write()");
	refused(PLAN(all, .needs = KVMEM_WANT_SHARED, .backing = KVMEM_BACKING_ANONYMOUS),
		"no file descriptor");
	refused(PLAN(all, .backing = KVMEM_BACKING_MEMFD, .slot_form = KVMEM_SLOT_DIRECT),
		"guest_memfd only");
	refused(PLAN(all, .backing = KVMEM_BACKING_MEMFD, .page_size = 2 << 20), "hugetlb only");
	refused(PLAN(A_UFFD, .backing = KVMEM_BACKING_GUEST_MEMFD), "the test says so");
	refused(PLAN(A_GMEM | A_UFFD, .backing = KVMEM_BACKING_GUEST_MEMFD,
		     .needs = KVMEM_WANT_PAGING),
		"backing, slot form");
	refused(PLAN(A_GMEM, .slot_form = KVMEM_SLOT_DIRECT, .needs = KVMEM_WANT_DIRTY),
		"needs dirty");
	refused(PLAN(all, .page_size = 2 << 20, .bytes = 3 << 20), "multiple");
}
END

TEST(what_is_asked_for_is_made)
{
	unsigned int all = ABILITIES - 1;

	ck_assert_int_eq(PLAN(all, .backing = KVMEM_BACKING_ANONYMOUS, .wants = KVMEM_WANT_SHARED),
			 0);
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_ANONYMOUS);
	ck_assert_uint_eq(plan.given_up, KVMEM_WANT_SHARED);
	ck_assert_int_eq(PLAN(all, .slot_form = KVMEM_SLOT_DIRECT), 0);
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_GUEST_MEMFD);
	ck_assert_uint_eq(plan.slot_form, KVMEM_SLOT_DIRECT);
	ck_assert_int_eq(PLAN(all, .page_size = 2 << 20), 0);
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_HUGETLB);
	ck_assert_uint_eq(plan.page_size, 2 << 20);
	ck_assert_int_eq(PLAN(all, .gmem_flags = 0x10), 0);
	ck_assert_uint_eq(plan.gmem_flags, 0x10 | 8 | 3);
	ck_assert_uint_eq(plan.write_rev, KVMEM_WRITE_ALIGNED);
	ck_assert_int_eq(PLAN(A_HUGE, .wants = KVMEM_WANT_HUGE, .bytes = 3 << 20), 0);
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_MEMFD);
	ck_assert_ptr_nonnull(strstr(plan.reasons, "multiple"));
}
END

/* A peer would read zeros for what is not filled yet, and lose what it writes. */
TEST(k13_43_paging_and_sharing_exclude_each_other)
{
	const uint64_t both = KVMEM_WANT_PAGING | KVMEM_WANT_SHARED;

	refused(PLAN(A_UFFD, .needs = both), "exclude each other");
	ck_assert_int_eq(PLAN(A_UFFD, .wants = both), 0);
	ck_assert_uint_eq(plan.granted, KVMEM_WANT_PAGING);
	ck_assert_uint_eq(plan.given_up, KVMEM_WANT_SHARED);
	ck_assert_ptr_nonnull(strstr(plan.reasons, "shared given up: paging and sharing"));
	ck_assert_int_eq(PLAN(A_UFFD, .needs = KVMEM_WANT_SHARED, .wants = KVMEM_WANT_PAGING), 0);
	ck_assert_uint_eq(plan.granted, KVMEM_WANT_SHARED);
	ck_assert_uint_eq(plan.given_up, KVMEM_WANT_PAGING);
	ck_assert_ptr_nonnull(strstr(plan.reasons, "paging given up: paging and sharing"));
	ck_assert_int_eq(PLAN(A_UFFD, .needs = KVMEM_WANT_PAGING, .wants = KVMEM_WANT_SHARED), 0);
	ck_assert_uint_eq(plan.granted, KVMEM_WANT_PAGING);
	/* Without a userfaultfd nothing is paged, and nothing stands against sharing. */
	ck_assert_int_eq(PLAN(0, .wants = both), 0);
	ck_assert_uint_eq(plan.granted, KVMEM_WANT_SHARED);
}
END

/* The pool is empty because all of it is in the file given: it can be paged all the same. */
TEST(k2_12_a_hugetlb_file_is_paged_though_no_page_is_free)
{
	struct kvmem_region_opts o = { .size = sizeof(o),
				       .bytes = BYTES,
				       .flags = KVMEM_REGION_FD,
				       .backing = KVMEM_BACKING_HUGETLB,
				       .page_size = 2 << 20,
				       .needs = KVMEM_WANT_PAGING };

	kernel(A_UFFD);
	caps.entries[KVMEM_CAP_UFFD_HUGETLB].support = KVMEM_SUPPORT_UNKNOWN;
	ck_assert_int_eq(km_plan_make(&caps, true, &o, NULL, &plan), 0);
	ck_assert_uint_eq(plan.granted, KVMEM_WANT_PAGING);
	kernel(0);
	caps.entries[KVMEM_CAP_UFFD_HUGETLB].support = KVMEM_SUPPORT_UNKNOWN;
	refused(km_plan_make(&caps, true, &o, NULL, &plan), "the test says so");
}
END

/* Some are free, and not as many as the region has. */
TEST(k2_12_too_few_free_huge_pages)
{
	too_few = true;
	ck_assert_int_eq(PLAN(ABILITIES - 1, .wants = KVMEM_WANT_HUGE | KVMEM_WANT_DIRTY), 0);
	ck_assert_uint_eq(plan.given_up, KVMEM_WANT_HUGE);
	ck_assert_uint_ne(plan.backing, KVMEM_BACKING_HUGETLB);
	ck_assert_ptr_nonnull(strstr(plan.reasons, "2 huge pages of 2 MiB cannot be reserved"));
	refused(PLAN(ABILITIES - 1, .needs = KVMEM_WANT_HUGE), "nr_hugepages");
	refused(PLAN(ABILITIES - 1, .backing = KVMEM_BACKING_HUGETLB), "nr_hugepages");
	too_few = false;
}
END

TEST(no_vm_no_guest_memfd)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = BYTES };

	kernel(ABILITIES - 1);
	o.wants = KVMEM_WANT_SHARED;
	ck_assert_int_eq(km_plan_make(&caps, false, &o, NULL, &plan), 0);
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_MEMFD);
	ck_assert_ptr_nonnull(strstr(plan.reasons, "belongs to a VM"));
	o.backing = KVMEM_BACKING_GUEST_MEMFD;
	refused(km_plan_make(&caps, false, &o, NULL, &plan), "belongs to a VM");
}
END

static int64_t limited(int what, struct rlimit *ret)
{
	ret->rlim_cur = ret->rlim_max = what == RLIMIT_DATA ? 1 << 20 : RLIM_INFINITY;
	return 0;
}

TEST(k9_3_what_needs_no_file_runs_fastest_without)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = BYTES };
	unsigned int all = ABILITIES - 1;

	ck_assert_int_eq(PLAN(all, .wants = KVMEM_WANT_DIRTY | KVMEM_WANT_NUMA), 0);
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_ANONYMOUS);
	ck_assert_uint_eq(plan.flags, KVMEM_PLAN_THP);
	ck_assert_ptr_nonnull(strstr(plan.reasons, "runs fastest"));
	ck_assert_ptr_nonnull(strstr(plan.reasons, "kvmem_region_check_huge"));
	/* Where they are off it says so, and is ready for when they are turned on. */
	ck_assert_int_eq(PLAN(0), 0);
	ck_assert_uint_eq(plan.flags, KVMEM_PLAN_THP);
	ck_assert_ptr_nonnull(strstr(plan.reasons, "transparent_hugepage/enabled"));
	/* What only a file has keeps a file. */
	ck_assert_int_eq(PLAN(all, .seals = KVMEM_SEAL_SEAL), 0);
	ck_assert_uint_ne(plan.backing, KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(PLAN(all, .gmem_flags = 0x10), 0);
	ck_assert_uint_ne(plan.backing, KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(PLAN(all, .slot_form = KVMEM_SLOT_DIRECT), 0);
	ck_assert_uint_ne(plan.backing, KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(PLAN(all & ~(unsigned int)A_WP_ASYNC, .wants = KVMEM_WANT_DIRTY), 0);
	ck_assert_uint_ne(plan.backing, KVMEM_BACKING_ANONYMOUS);
	/* A limit that a file's memory does not count against. */
	kernel(all);
	fake.getrlimit = limited;
	ck_assert_int_eq(km_plan_make(&caps, true, &o, NULL, &plan), 0);
	ck_assert_uint_ne(plan.backing, KVMEM_BACKING_ANONYMOUS);
	/* Asked for as a backing, it is as it was asked for. */
	ck_assert_int_eq(PLAN(all, .backing = KVMEM_BACKING_ANONYMOUS), 0);
	ck_assert_uint_eq(plan.flags, 0);
	ck_assert_int_eq(PLAN(all, .backing = KVMEM_BACKING_ANONYMOUS, .needs = KVMEM_WANT_THP), 0);
	ck_assert_uint_eq(plan.flags, KVMEM_PLAN_THP);
}
END

TEST(k9_3_huge_pages_as_the_machine_has_them)
{
	static const struct {
		const char *global, *own;
		enum km_thp means;
	} cases[] = {
		{ "[always] madvise never", NULL, KM_THP_ALWAYS },
		{ "always [madvise] never", NULL, KM_THP_ADVISED },
		{ "always madvise [never]", NULL, KM_THP_NEVER },
		{ "always madvise [never]", "always inherit [madvise] never", KM_THP_ADVISED },
		{ "[always] madvise never", "always inherit madvise [never]", KM_THP_NEVER },
		{ "always [madvise] never", "always [inherit] madvise never", KM_THP_ADVISED },
		{ "always [within_size] advise never deny force", NULL, KM_THP_ALWAYS },
		{ "always [something new]", NULL, KM_THP_UNKNOWN },
		{ "garbage", NULL, KM_THP_UNKNOWN },
		{ NULL, "[always]", KM_THP_UNKNOWN },
	};

	kernel(0);
	for (size_t i = 0; i < KM_ARRAY_SIZE(cases); i++) {
		thp(cases[i].global, NULL, cases[i].own, NULL);
		ck_assert_int_eq(km_caps_thp(false), cases[i].means);
		thp(NULL, cases[i].global, NULL, cases[i].own);
		ck_assert_int_eq(km_caps_thp(true), cases[i].means);
	}
	/* These two overrule what was chosen for a size. */
	thp(NULL, "always within_size advise never [deny] force", NULL, "[always]");
	ck_assert_int_eq(km_caps_thp(true), KM_THP_NEVER);
	thp(NULL, "always within_size advise never deny [force]", NULL, "always [never]");
	ck_assert_int_eq(km_caps_thp(true), KM_THP_ALWAYS);
}
END

TEST(k9_3_huge_pages_and_paging_exclude_each_other)
{
	const uint64_t both = KVMEM_WANT_PAGING | KVMEM_WANT_THP;
	const unsigned int can = A_UFFD | A_THP;

	refused(PLAN(can, .needs = both), "exclude each other");
	ck_assert_int_eq(PLAN(can, .wants = both), 0);
	ck_assert_uint_eq(plan.granted, KVMEM_WANT_PAGING);
	ck_assert_uint_eq(plan.flags, 0);
	ck_assert_ptr_nonnull(strstr(plan.reasons, "thp given up: paging"));
	ck_assert_int_eq(PLAN(can, .needs = KVMEM_WANT_THP, .wants = KVMEM_WANT_PAGING), 0);
	ck_assert_uint_eq(plan.granted, KVMEM_WANT_THP);
	ck_assert_int_eq(PLAN(can, .needs = KVMEM_WANT_THP | KVMEM_WANT_SHARED), 0);
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_MEMFD);
	ck_assert_uint_eq(plan.flags, KVMEM_PLAN_THP);
	refused(PLAN(A_UFFD, .needs = KVMEM_WANT_THP | KVMEM_WANT_SHARED), "shmem_enabled");
	refused(PLAN(A_UFFD, .needs = KVMEM_WANT_THP), "transparent_hugepage/enabled");
	/* Those of hugetlb are paged as they are. */
	ck_assert_int_eq(PLAN(can | A_HUGE, .needs = both | KVMEM_WANT_HUGE), 0);
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_HUGETLB);
	ck_assert_uint_eq(plan.flags, 0);
}
END

static int opts_of(struct kvmem_region_opts o)
{
	struct kvmem_region_opts copy;

	if (!o.size)
		o.size = sizeof(o);
	return km_plan_opts(&o, &copy);
}

#define OPTS(...) opts_of((struct kvmem_region_opts){ __VA_ARGS__ })

static void invalid(int r, const char *word)
{
	ck_assert_int_eq(r, -EINVAL);
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

TEST(bad_options)
{
	struct {
		struct kvmem_region_opts o;
		uint64_t newer;
	} tail = { .o = { .size = sizeof(tail), .bytes = 4096 }, .newer = 1 };
	struct kvmem_region_opts copy;

	invalid(km_plan_opts(NULL, &copy), "NULL");
	invalid(OPTS(.size = 8, .bytes = 4096), "size is 8");
	ck_assert_int_eq(km_plan_opts(&tail.o, &copy), -E2BIG);
	invalid(OPTS(.bytes = 0), "bytes is 0");
	invalid(OPTS(.bytes = 4097), "bytes");
	invalid(OPTS(.bytes = UINT64_MAX & ~4095ull), "more than a file");
	invalid(OPTS(.bytes = 4096, .flags = 1u << 30), "flags");
	invalid(OPTS(.bytes = 4096, .flags = KVMEM_REGION_OVERLAP), "KVMEM_REGION_OVERLAP");
	invalid(OPTS(.bytes = 4096, .content = KVMEM_CONTENT_IGNORE), "content");
	invalid(OPTS(.bytes = 4096, .flags = KVMEM_REGION_FD, .content = 2), "content");
	invalid(OPTS(.bytes = 4096, .seals = 8), "seals"); /* F_SEAL_WRITE */
	invalid(OPTS(.bytes = 4096, .seals = KVMEM_SEAL_NONE | KVMEM_SEAL_GROW), "seals");
	ck_assert_int_eq(OPTS(.bytes = 4096, .seals = KVMEM_SEAL_NONE), 0);
	ck_assert_int_eq(OPTS(.bytes = 4096, .seals = KVMEM_SEAL_SEAL | KVMEM_SEAL_EXEC), 0);
	invalid(OPTS(.bytes = 4096, .wants = 1ull << 40), "wants");
	invalid(OPTS(.bytes = 4096, .needs = 1ull << 9), "needs");
	invalid(OPTS(.bytes = 4096, .backing = 6), "backing");
	invalid(OPTS(.bytes = 4096, .backing = KVMEM_BACKING_OTHER), "KVMEM_REGION_MAPPING");
	invalid(OPTS(.bytes = 4096, .slot_form = 3), "slot_form");
	invalid(OPTS(.bytes = 4096, .page_size = 8192), "page_size");
	invalid(OPTS(.bytes = 4096, .page_size = 2 << 20), "bytes");
	invalid(OPTS(.bytes = 4096, .reserved = 1), "reserved");
	invalid(OPTS(.bytes = 4096, .fd_offset = 4096), "fd_offset");
	ck_assert_int_eq(OPTS(.bytes = 4096), 0);
}
END

HARNESS_MAIN(T(every_wish_on_every_kernel), T(requirements_that_exclude_each_other),
	     T(what_is_asked_for_is_made), T(k13_43_paging_and_sharing_exclude_each_other),
	     T(k2_12_a_hugetlb_file_is_paged_though_no_page_is_free),
	     T(k2_12_too_few_free_huge_pages), T(no_vm_no_guest_memfd),
	     T(k9_3_what_needs_no_file_runs_fastest_without),
	     T(k9_3_huge_pages_as_the_machine_has_them),
	     T(k9_3_huge_pages_and_paging_exclude_each_other), T(bad_options))
