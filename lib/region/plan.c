// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What a region will be. Each candidate, a backing in a slot form, is asked for each wish whether
 * it can; the one that can most of what is wanted, and all that is needed, is taken. Every answer
 * has its reason, and the reasons are the plan's.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "region/region.h"
#include "base/uapi/kvm.h"

#define SIZE_2M (2ull << 20)
#define SIZE_1G (1ull << 30)
#define ALL_WANTS \
	(KVMEM_WANT_DIRTY | KVMEM_WANT_PAGING | KVMEM_WANT_NUMA | KVMEM_WANT_PRIVATE | \
	 KVMEM_WANT_HUGE | KVMEM_WANT_SHARED | KVMEM_WANT_WRITE | KVMEM_WANT_THP | \
	 KVMEM_WANT_CAPTURE)

struct candidate {
	uint32_t backing;
	uint32_t form;
	const char *name;
};

/* Best first, among those that can the same. The first one takes part only where it is fastest: runs_fast(). */
static const struct candidate candidates[] = {
	{ KVMEM_BACKING_ANONYMOUS, KVMEM_SLOT_HVA, "anonymous memory" },
	{ KVMEM_BACKING_GUEST_MEMFD, KVMEM_SLOT_HVA, "guest_memfd in an HVA slot" },
	{ KVMEM_BACKING_MEMFD, KVMEM_SLOT_HVA, "memfd" },
	{ KVMEM_BACKING_GUEST_MEMFD, KVMEM_SLOT_DIRECT, "guest_memfd in a direct slot" },
	{ KVMEM_BACKING_HUGETLB, KVMEM_SLOT_HVA, "hugetlb memfd" },
	{ KVMEM_BACKING_OTHER, KVMEM_SLOT_HVA, "the mapping given" },
	{ KVMEM_BACKING_CLONE, KVMEM_SLOT_HVA, "clone" },
};

/* Weights decide when not all can be had together: each outweighs all below it. */
static const struct wish {
	uint64_t bit;
	unsigned int weight;
	const char *name;
} wishes[] = {
	{ KVMEM_WANT_PRIVATE, 256, "private" }, { KVMEM_WANT_HUGE, 128, "huge" },
	{ KVMEM_WANT_DIRTY, 64, "dirty" },	{ KVMEM_WANT_PAGING, 32, "paging" },
	{ KVMEM_WANT_CAPTURE, 16, "capture" },	{ KVMEM_WANT_SHARED, 8, "shared" },
	{ KVMEM_WANT_NUMA, 4, "numa" },		{ KVMEM_WANT_WRITE, 2, "write" },
	{ KVMEM_WANT_THP, 1, "thp" },
};

/* What the planner knows while it asks. */
struct asking {
	const struct kvmem_caps *caps;
	const struct kvmem_region_opts *o;
	const struct km_own *own; /* the mapping given */
	uint64_t huge_size;	  /* page size of the hugetlb candidate */
	bool has_vm;
	bool asked_huge;     /* how many huge pages are free changes: asked for once a plan */
	const char *no_huge; /* then: why there is no hugetlb memory, or NULL */
	char text[256];	     /* what no_huge points to, where it is of this plan */
};

static const char *from_cap(struct asking *a, enum kvmem_cap id)
{
	return km_caps_lack(a->caps, id);
}

static bool is_gmem(const struct candidate *c)
{
	return c->backing == KVMEM_BACKING_GUEST_MEMFD;
}

/* ---- each answers NULL for yes, or why not ---- */

static bool asks_private(const struct asking *a)
{
	return (a->o->wants | a->o->needs) & KVMEM_WANT_PRIVATE;
}

static bool vm_has_private(const struct asking *a)
{
	return a->has_vm && km_caps_value(a->caps, KVMEM_CAP_MEMORY_ATTRIBUTES) &
				    (int64_t)KM_KVM_MEMORY_ATTRIBUTE_PRIVATE;
}

/* A guest_memfd that the host cannot reach holds the private pages, and a memfd the shared ones. */
static bool is_split(const struct asking *a, const struct candidate *c)
{
	return c->form == KVMEM_SLOT_DIRECT && asks_private(a) && vm_has_private(a) &&
	       !(a->o->flags & KVMEM_REGION_FD) &&
	       !km_caps_has(a->caps, KVMEM_CAP_GUEST_MEMFD_INIT_SHARED);
}

static const char *exists_gmem(struct asking *a, const struct candidate *c)
{
	const char *no;

	if (!a->has_vm)
		return "a guest_memfd belongs to a VM, and none was given";
	no = from_cap(a,
		      is_split(a, c) ? KVMEM_CAP_GUEST_MEMFD : KVMEM_CAP_GUEST_MEMFD_INIT_SHARED);
	if (no)
		return no;
	return from_cap(a, c->form == KVMEM_SLOT_DIRECT ? KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT
							: KVMEM_CAP_GUEST_MEMFD_HVA_SLOT);
}

static const char *lacks_huge(struct asking *a)
{
	enum kvmem_cap id = a->huge_size == SIZE_1G ? KVMEM_CAP_HUGETLB_1G : KVMEM_CAP_HUGETLB_2M;
	const char *no = from_cap(a, id);
	int64_t err;

	/* A template is there, so there are huge pages: how many are missing tells more. */
	if (no && !(a->o->flags & KVMEM_REGION_CLONE))
		return no;
	if (a->o->bytes % a->huge_size || a->o->reserve % a->huge_size) {
		snprintf(a->text, sizeof(a->text),
			 "0x%" PRIx64
			 " bytes%s are not a multiple of the huge page size 0x%" PRIx64,
			 a->o->bytes % a->huge_size ? a->o->bytes : a->o->reserve,
			 a->o->bytes % a->huge_size ? "" : " of reserve", a->huge_size);
		return a->text;
	}
	err = km_caps_try_huge(a->o->bytes, a->huge_size);
	if (err >= 0)
		return NULL;
	snprintf(a->text, sizeof(a->text),
		 "%" PRIu64 " huge pages of %" PRIu64
		 " MiB cannot be reserved now (errno %d), %" PRId64
		 " are free: see /sys/kernel/mm/hugepages/*/nr_hugepages",
		 a->o->bytes / a->huge_size, a->huge_size >> 20, (int)-err,
		 km_caps_value(a->caps, id));
	return a->text;
}

static const char *exists_hugetlb(struct asking *a)
{
	if (!a->asked_huge)
		a->no_huge = lacks_huge(a);
	a->asked_huge = true;
	return a->no_huge;
}

static const char *exists(struct asking *a, const struct candidate *c)
{
	if (a->o->flags & (KVMEM_REGION_FD | KVMEM_REGION_MAPPING))
		return NULL; /* it is there already */
	if (is_gmem(c))
		return exists_gmem(a, c);
	if (c->backing == KVMEM_BACKING_HUGETLB || a->o->page_size > km_sys_page_size())
		return exists_hugetlb(a); /* of a clone for what it writes, all of it at worst */
	return NULL;
}

static const char *can_dirty(struct asking *a, const struct candidate *c)
{
	if (c->backing == KVMEM_BACKING_OTHER && !a->own->writable)
		return a->own->limits;
	if (!is_gmem(c))
		return NULL;
	return from_cap(a, c->form == KVMEM_SLOT_DIRECT ? KVMEM_CAP_GUEST_MEMFD_DIRECT_DIRTY
							: KVMEM_CAP_GUEST_MEMFD_HVA_DIRTY);
}

static const char *can_paging(struct asking *a, const struct candidate *c)
{
	enum kvmem_cap id = c->backing == KVMEM_BACKING_GUEST_MEMFD ? KVMEM_CAP_GUEST_MEMFD_UFFD
			    : c->backing == KVMEM_BACKING_MEMFD	    ? KVMEM_CAP_UFFD_SHMEM
			    : c->backing == KVMEM_BACKING_HUGETLB   ? KVMEM_CAP_UFFD_HUGETLB
								    : KVMEM_CAP_UFFD_ANON;

	if (c->form == KVMEM_SLOT_DIRECT)
		return "KVM resolves the faults of a direct slot on the guest_memfd itself, no "
		       "userfaultfd sees "
		       "them";
	/* Of huge pages it can be tried only while one is free: where none is, as where all are in the
	 * file given, shmem tells whether there is a userfaultfd at all. */
	if (id == KVMEM_CAP_UFFD_HUGETLB && km_caps_unknown(a->caps, id))
		id = KVMEM_CAP_UFFD_SHMEM;
	if (!km_caps_has(a->caps, id) || !(km_caps_value(a->caps, id) & KVMEM_UFFD_MISSING))
		return km_caps_reason(a->caps, id);
	return NULL;
}

static const char *can_numa(struct asking *a, const struct candidate *c)
{
	if (c->backing == KVMEM_BACKING_HUGETLB)
		return "a hugetlb file holds no policy, only a mapping of it does; the filling "
		       "threads apply it";
	return from_cap(a, is_gmem(c) ? KVMEM_CAP_GUEST_MEMFD_NUMA : KVMEM_CAP_NUMA_NODES);
}

static const char *can_private(struct asking *a, const struct candidate *c)
{
	if (!a->has_vm)
		return "private memory needs a VM";
	if (!vm_has_private(a))
		return km_caps_reason(a->caps, KVMEM_CAP_MEMORY_ATTRIBUTES);
	return c->form == KVMEM_SLOT_DIRECT ? NULL
					    : "private memory needs a direct slot of a guest_memfd";
}

static const char *can_huge(struct asking *a, const struct candidate *c)
{
	(void)a;
	if (c->backing == KVMEM_BACKING_HUGETLB)
		return NULL;
	return is_gmem(c) ? "a guest_memfd has base pages only" : "huge pages come from hugetlb";
}

static const char *can_shared(struct asking *a, const struct candidate *c)
{
	(void)a;
	return c->backing == KVMEM_BACKING_ANONYMOUS ? "anonymous memory has no file descriptor"
						     : NULL;
}

static const char *can_write(struct asking *a, const struct candidate *c)
{
	switch (c->backing) {
	case KVMEM_BACKING_GUEST_MEMFD:
		return is_split(a, c) ? NULL : from_cap(a, KVMEM_CAP_GUEST_MEMFD_WRITE);
	case KVMEM_BACKING_MEMFD:
		return NULL;
	case KVMEM_BACKING_HUGETLB:
		return "hugetlb files have no write()";
	default:
		return "anonymous memory has no file descriptor";
	}
}

static const char *can_thp(struct asking *a, const struct candidate *c)
{
	bool shared = c->backing == KVMEM_BACKING_MEMFD;

	if (c->backing == KVMEM_BACKING_HUGETLB)
		return NULL;
	if (is_gmem(c))
		return "a guest_memfd has base pages only";
	if (a->own)
		return "the mapping is the caller's: call madvise(MADV_HUGEPAGE) on it";
	switch (km_caps_thp(shared)) {
	case KM_THP_NEVER:
		return shared ? "transparent huge pages of shared memory are off: see "
				"/sys/kernel/mm/transparent_hugepage/shmem_enabled"
			      : "transparent huge pages are off: see "
				"/sys/kernel/mm/transparent_hugepage/enabled";
	case KM_THP_UNKNOWN:
		return "/sys/kernel/mm/transparent_hugepage cannot be read";
	default:
		return NULL;
	}
}

static const char *able(struct asking *a, const struct candidate *c, uint64_t bit)
{
	/* KVM logs what is written through any mapping: that is all that is asked of this one. */
	if (c->backing == KVMEM_BACKING_OTHER && bit == KVMEM_WANT_CAPTURE)
		return "the mapping was given without its file: kvmem_capture_check() tells";
	if (c->backing == KVMEM_BACKING_OTHER && bit != KVMEM_WANT_DIRTY)
		return a->own->limits;
	if (c->backing == KVMEM_BACKING_CLONE)
		return km_clone_lacks(a->caps, a->o, bit);
	switch (bit) {
	case KVMEM_WANT_DIRTY:
		return can_dirty(a, c);
	case KVMEM_WANT_PAGING:
		return can_paging(a, c);
	case KVMEM_WANT_NUMA:
		return can_numa(a, c);
	case KVMEM_WANT_PRIVATE:
		return can_private(a, c);
	case KVMEM_WANT_HUGE:
		return can_huge(a, c);
	case KVMEM_WANT_SHARED:
		return can_shared(a, c);
	case KVMEM_WANT_THP:
		return can_thp(a, c);
	case KVMEM_WANT_CAPTURE:
		return km_no_capture(a->caps, c->backing);
	default:
		return can_write(a, c);
	}
}

/*
 * What excludes paging on any memory: a pager serves the faults of the region's mapping alone, and brings in
 * base pages. What is needed stays; of two wishes alike it is paging.
 */
static const struct exclusion {
	uint64_t bit;
	const char *why;
} exclusions[] = {
	{ KVMEM_WANT_SHARED,
	  "paging and sharing exclude each other: through another mapping a page that is not "
	  "filled yet reads as zero, and what is written there is overwritten by the source" },
	{ KVMEM_WANT_THP,
	  "paging and transparent huge pages exclude each other: a pager brings in base pages" },
};

static const char *excluded(struct asking *a, const struct candidate *c, uint64_t bit,
			    const struct exclusion *x)
{
	const uint64_t both = KVMEM_WANT_PAGING | x->bit;
	uint64_t asked = a->o->wants | a->o->needs, loser = x->bit;

	if ((a->o->needs & both) == x->bit)
		loser = KVMEM_WANT_PAGING;
	if (bit != loser || (asked & both) != both || able(a, c, both & ~bit))
		return NULL;
	/* hugetlb pages are not transparent, and are paged as they are. */
	return x->bit == KVMEM_WANT_THP && c->backing == KVMEM_BACKING_HUGETLB ? NULL : x->why;
}

static const char *clash(struct asking *a, const struct candidate *c, uint64_t bit)
{
	const char *why = NULL;

	for (size_t i = 0; !why && i < KM_ARRAY_SIZE(exclusions); i++)
		why = excluded(a, c, bit, &exclusions[i]);
	return why;
}

static const char *can(struct asking *a, const struct candidate *c, uint64_t bit)
{
	const char *no = able(a, c, bit);

	return no ? no : clash(a, c, bit);
}

/* ---- the choice ---- */

static uint64_t abilities(struct asking *a, const struct candidate *c, uint64_t asked)
{
	uint64_t got = 0;

	for (size_t i = 0; i < KM_ARRAY_SIZE(wishes); i++)
		if (asked & wishes[i].bit && !can(a, c, wishes[i].bit))
			got |= wishes[i].bit;
	return got;
}

static unsigned int weigh(uint64_t bits)
{
	unsigned int sum = 0;

	for (size_t i = 0; i < KM_ARRAY_SIZE(wishes); i++)
		if (bits & wishes[i].bit)
			sum += wishes[i].weight;
	return sum;
}

/*
 * Where nothing that is asked for needs a file, anonymous memory runs fastest: its huge pages need no setting on
 * most machines, and the kernel zeroes them once. (Files' pages are zeroed again after init_on_alloc, and
 * are small where shmem_enabled is "never", the default.) To be tracked as well as a file it wants write
 * protection without events.
 */
static bool runs_fast(const struct asking *a)
{
	uint64_t asked = a->o->wants | a->o->needs;
	struct rlimit limit;

	if (asked &
	    ~(uint64_t)(KVMEM_WANT_DIRTY | KVMEM_WANT_NUMA | KVMEM_WANT_THP | KVMEM_WANT_CAPTURE))
		return false;
	if (asked & KVMEM_WANT_CAPTURE && km_no_capture(a->caps, KVMEM_BACKING_ANONYMOUS))
		return false;
	if (asked & KVMEM_WANT_DIRTY && !km_caps_has(a->caps, KVMEM_CAP_UFFD_WP_ASYNC))
		return false;
	if (a->o->backing || a->o->seals || a->o->gmem_flags)
		return false;
	/* A limit of private memory, which shared memory does not count against. */
	return km_sys_getrlimit(RLIMIT_DATA, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY;
}

/* Does what the caller fixed leave this candidate? */
static bool allowed(const struct asking *a, const struct candidate *c)
{
	const struct kvmem_region_opts *o = a->o;

	if (o->backing && o->backing != c->backing)
		return false;
	if (o->slot_form && o->slot_form != c->form)
		return false;
	if (c->backing == KVMEM_BACKING_CLONE)
		return o->backing;
	if (c->backing == KVMEM_BACKING_HUGETLB)
		return o->page_size > km_sys_page_size() || o->backing ||
		       (o->wants | o->needs) & KVMEM_WANT_HUGE;
	if (o->page_size > km_sys_page_size())
		return false;
	if (c->backing == KVMEM_BACKING_ANONYMOUS)
		return o->backing || runs_fast(a);
	return c->backing != KVMEM_BACKING_OTHER || o->backing;
}

/* A line of the strings up to NULL: whole lines only. */
static void add_strings(struct kvmem_plan *p, const char *const *strings)
{
	size_t at = strlen(p->reasons), end = at;

	for (; *strings; strings++) {
		size_t n = strlen(*strings);

		if (end + n + 2 > sizeof(p->reasons)) {
			p->reasons[at] = '\0';
			return;
		}
		memcpy(p->reasons + end, *strings, n);
		end += n;
	}
	memcpy(p->reasons + end, "\n", 2);
}

#define add(p, ...) add_strings(p, (const char *const[]){ __VA_ARGS__, NULL })

static const struct candidate *choose(struct asking *a, struct kvmem_plan *p)
{
	const struct candidate *best = NULL;
	unsigned int best_needs = 0, best_wants = 0;

	for (size_t i = 0; i < KM_ARRAY_SIZE(candidates); i++) {
		const struct candidate *c = &candidates[i];
		unsigned int needs, wants;
		const char *no;

		if (!allowed(a, c))
			continue;
		no = exists(a, c);
		if (no) {
			add(p, "not ", c->name, ": ", no);
			continue;
		}
		needs = weigh(abilities(a, c, a->o->needs));
		wants = weigh(abilities(a, c, a->o->wants));
		if (!best || needs > best_needs || (needs == best_needs && wants > best_wants)) {
			best = c;
			best_needs = needs;
			best_wants = wants;
		}
		/* What comes later is no better, and to ask for it costs probes: a VM is made for some. */
		if (best_needs == weigh(a->o->needs) && best_wants == weigh(a->o->wants))
			break;
	}
	return best;
}

static void explain_losers(struct asking *a, struct kvmem_plan *p, const struct candidate *best)
{
	uint64_t asked = a->o->wants | a->o->needs, has = abilities(a, best, asked);

	for (const struct candidate *c = candidates; c != best; c++) {
		if (!allowed(a, c) || exists(a, c))
			continue;
		for (size_t i = 0; i < KM_ARRAY_SIZE(wishes); i++) {
			const char *no = has & wishes[i].bit ? can(a, c, wishes[i].bit) : NULL;

			if (no) {
				add(p, "not ", c->name, ", for ", wishes[i].name, ": ", no);
				break;
			}
		}
	}
}

/* The one that would do it and is not to be had here: its reason tells more than that others
 * cannot. */
static const struct candidate *would_do(struct asking *a, uint64_t bit)
{
	for (size_t i = 0; i < KM_ARRAY_SIZE(candidates); i++)
		if (allowed(a, &candidates[i]) && exists(a, &candidates[i]) &&
		    !can(a, &candidates[i], bit))
			return &candidates[i];
	return NULL;
}

static int refuse_need(struct asking *a, const struct candidate *best, uint64_t met,
		       const struct wish *w)
{
	const struct candidate *absent = would_do(a, w->bit);
	const char *forced = met & KVMEM_WANT_PRIVATE ? "; private memory excludes it"
			     : met & KVMEM_WANT_HUGE  ? "; huge pages exclude it"
			     : a->o->backing || a->o->slot_form
				     ? "; the backing, slot form, mapping or file given excludes it"
				     : "";

	if (!able(a, best, w->bit))
		return km_fail(EOPNOTSUPP, "region needs %s: %s; move one of the two to wants",
			       w->name, clash(a, best, w->bit));
	if (absent)
		return km_fail(EOPNOTSUPP, "region needs %s, which %s would give: %s", w->name,
			       absent->name, exists(a, absent));
	return km_fail(
		EOPNOTSUPP,
		"region needs %s, which %s does not give%s: %s; move it from needs to wants, or "
		"change what it is needed with",
		w->name, best->name, forced, can(a, best, w->bit));
}

static int refuse_needs(struct asking *a, const struct candidate *best, uint64_t met)
{
	for (size_t i = 0; i < KM_ARRAY_SIZE(wishes); i++)
		if (a->o->needs & ~met & wishes[i].bit)
			return refuse_need(a, best, met, &wishes[i]);
	return 0;
}

static int refuse_all(struct asking *a, const struct kvmem_plan *p)
{
	if (a->o->slot_form == KVMEM_SLOT_DIRECT && a->o->backing &&
	    a->o->backing != KVMEM_BACKING_GUEST_MEMFD)
		return km_fail(
			EOPNOTSUPP,
			"a direct slot takes a guest_memfd only: leave backing or slot_form AUTO");
	if (a->o->page_size > km_sys_page_size() && !p->reasons[0])
		return km_fail(EOPNOTSUPP,
			       "pages of 0x%" PRIx64
			       " bytes come from hugetlb only: leave backing AUTO "
			       "or set it to KVMEM_BACKING_HUGETLB",
			       a->o->page_size);
	return km_fail(EOPNOTSUPP, "no memory meets these requirements: %.*s",
		       (int)strcspn(p->reasons, "\n"),
		       p->reasons[0] ? p->reasons : "they exclude each other");
}

static void fill_gmem(struct asking *a, struct kvmem_plan *p)
{
	p->gmem_flags = a->o->gmem_flags;
	if (a->o->flags & KVMEM_REGION_FD)
		return;
	p->gmem_flags |= (uint64_t)km_caps_value(a->caps, KVMEM_CAP_GUEST_MEMFD_INIT_SHARED);
	if (!km_caps_has(a->caps, KVMEM_CAP_GUEST_MEMFD_WRITE))
		return;
	p->gmem_flags |= (uint64_t)km_caps_value(a->caps, KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG);
	p->write_rev = (uint32_t)km_caps_value(a->caps, KVMEM_CAP_GUEST_MEMFD_WRITE);
}

/* Also where it is off now: an administrator can turn it on later. */
static bool says_thp(const struct asking *a, const struct candidate *c, const struct kvmem_plan *p)
{
	if (a->own)
		return false;
	if (c->backing == KVMEM_BACKING_ANONYMOUS && !a->o->backing)
		return true;
	return p->granted & KVMEM_WANT_THP && c->backing != KVMEM_BACKING_HUGETLB;
}

static void fill(struct asking *a, struct kvmem_plan *p, const struct candidate *c)
{
	uint64_t asked = a->o->wants | a->o->needs;

	p->backing = c->backing;
	p->slot_form = c->form;
	p->bytes = a->o->bytes;
	p->page_size = c->backing == KVMEM_BACKING_HUGETLB ? a->huge_size : km_sys_page_size();
	if (c->backing == KVMEM_BACKING_CLONE)
		p->page_size = a->o->page_size;
	p->granted = abilities(a, c, asked);
	p->given_up = a->o->wants & ~p->granted;
	if (says_thp(a, c, p))
		p->flags |= KVMEM_PLAN_THP;
	if (is_split(a, c)) {
		p->gmem_flags = a->o->gmem_flags;
		p->shared_backing = KVMEM_BACKING_MEMFD;
		p->write_rev = KVMEM_WRITE_ANY;
	} else if (is_gmem(c)) {
		fill_gmem(a, p);
	} else if (c->backing == KVMEM_BACKING_MEMFD) {
		p->write_rev = KVMEM_WRITE_ANY;
	}
}

static const char *why_this(const struct asking *a, const struct candidate *c)
{
	if (a->o->flags & KVMEM_REGION_MAPPING)
		return c->backing == KVMEM_BACKING_OTHER ? "dirty tracking at most"
							 : "the mapping given is one";
	if (a->o->flags & KVMEM_REGION_FD)
		return "the file descriptor given is one";
	if (c->backing == KVMEM_BACKING_CLONE)
		return a->o->page_size > km_sys_page_size()
			       ? "a private mapping of the template; huge pages for all that it may "
				 "write are reserved"
			       : "a private mapping of the template, whose pages all clones share "
				 "until they write them";
	if (a->o->backing)
		return "it was asked for";
	if (c->backing == KVMEM_BACKING_ANONYMOUS)
		return "it runs fastest, and nothing that is wanted needs a file (a file descriptor: "
		       "KVMEM_WANT_SHARED)";
	if (is_split(a, c))
		return "for the private pages, which the host cannot map; the shared ones are in a "
		       "memfd";
	return is_gmem(c) ? "it is there, and the host can map it"
			  : "the best that gives what is wanted";
}

static void explain(struct asking *a, struct kvmem_plan *p, const struct candidate *c)
{
	explain_losers(a, p, c);
	add(p, c->name, ": ", why_this(a, c));
	if (c->backing == KVMEM_BACKING_CLONE)
		add(p, c->name, ": ", km_clone_note(a->o));
	if (p->flags & KVMEM_PLAN_THP)
		add(p, "transparent huge pages: ",
		    can_thp(a, c) ? can_thp(a, c)
				  : "KVM maps them where guest and host address are equal modulo 2 "
				    "MiB: kvmem_region_check_huge()");
	if (is_gmem(c) && c->form == KVMEM_SLOT_HVA && p->granted & KVMEM_WANT_DIRTY)
		add(p, "HVA slot: KVM logs no dirty pages of a direct slot");
	for (size_t i = 0; i < KM_ARRAY_SIZE(wishes); i++)
		if (p->given_up & wishes[i].bit)
			add(p, wishes[i].name, " given up: ", can(a, c, wishes[i].bit));
}

int km_plan_make(const struct kvmem_caps *caps, bool has_vm, const struct kvmem_region_opts *o,
		 const struct km_own *own, struct kvmem_plan *ret_plan)
{
	struct asking a = { .caps = caps, .o = o, .own = own, .has_vm = has_vm };
	const struct candidate *best;
	int r;

	memset(ret_plan, 0, sizeof(*ret_plan));
	a.huge_size = o->page_size > km_sys_page_size() ? o->page_size : SIZE_2M;
	best = choose(&a, ret_plan);
	if (!best)
		return refuse_all(&a, ret_plan);
	r = refuse_needs(&a, best, abilities(&a, best, o->needs));
	if (r)
		return r;
	fill(&a, ret_plan, best);
	explain(&a, ret_plan, best);
	return 0;
}

/* ---- options ---- */

static int check_page_size(const struct kvmem_region_opts *o)
{
	uint64_t base = km_sys_page_size();

	if (o->page_size && o->page_size != base && o->page_size != SIZE_2M &&
	    o->page_size != SIZE_1G)
		return km_fail(EINVAL,
			       "kvmem_region_opts.page_size 0x%" PRIx64 " is none of 0x%" PRIx64
			       ", 2 MiB and 1 GiB",
			       o->page_size, base);
	if (!o->bytes)
		return km_fail(EINVAL, "kvmem_region_opts.bytes is 0, must be at least one page");
	if (o->bytes > INT64_MAX || o->fd_offset > INT64_MAX - o->bytes)
		return km_fail(EINVAL,
			       "kvmem_region_opts: fd_offset 0x%" PRIx64 " + bytes 0x%" PRIx64
			       " is more than a file can hold",
			       o->fd_offset, o->bytes);
	return km_align_check(o->bytes, o->page_size ? o->page_size : base,
			      "kvmem_region_opts.bytes");
}

#define ALL_FLAGS \
	(KVMEM_REGION_FD | KVMEM_REGION_OVERLAP | KVMEM_REGION_DONTDUMP | KVMEM_REGION_DONTFORK | \
	 KVMEM_REGION_MAPPING | KVMEM_REGION_CLONE)
#define ALL_SEALS (KVMEM_SEAL_SEAL | KVMEM_SEAL_SHRINK | KVMEM_SEAL_GROW | KVMEM_SEAL_EXEC)

static int check_reserve(const struct kvmem_region_opts *o)
{
	if (!o->reserve)
		return 0;
	if (o->flags & (KVMEM_REGION_FD | KVMEM_REGION_MAPPING))
		return km_fail(EINVAL,
			       "kvmem_region_opts.reserve with KVMEM_REGION_FD or "
			       "KVMEM_REGION_MAPPING: memory that is there already does not grow, "
			       "make a region of all of it and attach parts");
	if (o->reserve < o->bytes || o->reserve > INT64_MAX)
		return km_fail(EINVAL,
			       "kvmem_region_opts.reserve 0x%" PRIx64
			       " is less than bytes 0x%" PRIx64 ", or more than a file can hold",
			       o->reserve, o->bytes);
	return km_align_check(o->reserve, o->page_size ? o->page_size : km_sys_page_size(),
			      "kvmem_region_opts.reserve");
}

static int check_mapping(const struct kvmem_region_opts *o)
{
	if (!(o->flags & KVMEM_REGION_MAPPING)) {
		if (o->mapping)
			return km_fail(EINVAL,
				       "kvmem_region_opts.mapping without KVMEM_REGION_MAPPING");
		if (o->backing == KVMEM_BACKING_OTHER)
			return km_fail(EINVAL, "kvmem_region_opts.backing KVMEM_BACKING_OTHER "
					       "without KVMEM_REGION_MAPPING");
		return 0;
	}
	if (!o->mapping)
		return km_fail(EINVAL, "kvmem_region_opts.mapping is NULL with "
				       "KVMEM_REGION_MAPPING");
	if (o->bytes > UINTPTR_MAX - (uintptr_t)o->mapping)
		return km_fail(EINVAL,
			       "kvmem_region_opts.mapping %p + bytes 0x%" PRIx64
			       " is beyond the address space",
			       o->mapping, o->bytes);
	if (o->flags & (KVMEM_REGION_DONTDUMP | KVMEM_REGION_DONTFORK))
		return km_fail(EINVAL,
			       "kvmem_region_opts.flags: KVMEM_REGION_DONTDUMP and "
			       "KVMEM_REGION_DONTFORK are for mappings that the library makes: "
			       "call madvise(2) on yours");
	if (o->seals && !(o->flags & KVMEM_REGION_FD))
		return km_fail(EINVAL, "kvmem_region_opts.seals of a mapping without "
				       "KVMEM_REGION_FD");
	return 0;
}

static int check_given(const struct kvmem_region_opts *o)
{
	if (o->content > KVMEM_CONTENT_IGNORE)
		return km_fail(EINVAL, "kvmem_region_opts.content %" PRIu32 " is unknown",
			       o->content);
	if (o->flags & KVMEM_REGION_FD)
		return 0;
	if (o->fd_offset && !(o->flags & KVMEM_REGION_CLONE))
		return km_fail(EINVAL, "kvmem_region_opts.fd_offset without KVMEM_REGION_FD or "
				       "KVMEM_REGION_CLONE");
	if (o->flags & KVMEM_REGION_MAPPING)
		return 0;
	if (o->content)
		return km_fail(EINVAL, "kvmem_region_opts.content without KVMEM_REGION_FD or "
				       "KVMEM_REGION_MAPPING");
	if (o->flags & KVMEM_REGION_OVERLAP)
		return km_fail(EINVAL, "kvmem_region_opts.flags: KVMEM_REGION_OVERLAP without "
				       "KVMEM_REGION_FD or KVMEM_REGION_MAPPING");
	return 0;
}

/* Those against writing are not for the library to set: it maps and writes the file itself. */
static int check_seals(const struct kvmem_region_opts *o)
{
	return o->seals == KVMEM_SEAL_NONE
		       ? 0
		       : km_flags_check(o->seals, ALL_SEALS, "kvmem_region_opts.seals");
}

int km_plan_opts(const struct kvmem_region_opts *opts, struct kvmem_region_opts *o)
{
	int r;

	if (!opts)
		return km_fail(EINVAL, "kvmem_region_opts is NULL: bytes must be said");
	r = km_opts_copy(o, sizeof(*o), sizeof(*o), opts, "kvmem_region_opts");
	if (!r)
		r = km_flags_check(o->flags, ALL_FLAGS, "kvmem_region_opts.flags");
	if (!r)
		r = km_flags_check(o->wants, ALL_WANTS, "kvmem_region_opts.wants");
	if (!r)
		r = km_flags_check(o->needs, ALL_WANTS, "kvmem_region_opts.needs");
	if (!r && o->backing > KVMEM_BACKING_CLONE)
		r = km_fail(EINVAL, "kvmem_region_opts.backing %" PRIu32 " is unknown", o->backing);
	if (!r && o->slot_form > KVMEM_SLOT_DIRECT)
		r = km_fail(EINVAL, "kvmem_region_opts.slot_form %" PRIu32 " is unknown",
			    o->slot_form);
	if (!r && o->reserved)
		r = km_fail(EINVAL, "kvmem_region_opts.reserved must be 0");
	if (!r)
		r = km_clone_opts(o);
	if (!r)
		r = check_given(o);
	if (!r)
		r = check_seals(o);
	if (!r)
		r = check_page_size(o);
	if (!r)
		r = check_reserve(o);
	return r ? r : check_mapping(o);
}
