// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a template is, what a clone of it can do, and where a clone is not the template any more. */
#include "region/clone.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "region/region.h"

#define SEAL_WRITE	  0x0008
#define SEAL_FUTURE_WRITE 0x0010

/* ---- options ---- */

int km_clone_opts(const struct kvmem_region_opts *o)
{
	if (!(o->flags & KVMEM_REGION_CLONE)) {
		if (o->backing == KVMEM_BACKING_CLONE)
			return km_fail(EINVAL, "kvmem_region_opts.backing KVMEM_BACKING_CLONE "
					       "without KVMEM_REGION_CLONE");
		return 0;
	}
	if (o->flags & (KVMEM_REGION_FD | KVMEM_REGION_MAPPING))
		return km_fail(EINVAL,
			       "kvmem_region_opts.flags: KVMEM_REGION_CLONE excludes "
			       "KVMEM_REGION_FD and KVMEM_REGION_MAPPING: a clone has pages of its "
			       "own, opts.fd is the template");
	if (o->reserve)
		return km_fail(EINVAL,
			       "kvmem_region_opts.reserve with KVMEM_REGION_CLONE: a clone is "
			       "as long as its template; make a region of what is added");
	if (o->seals)
		return km_fail(EINVAL, "kvmem_region_opts.seals with KVMEM_REGION_CLONE: the "
				       "template stays as it is, seal it before");
	if (o->backing && o->backing != KVMEM_BACKING_CLONE)
		return km_fail(EINVAL,
			       "kvmem_region_opts.backing %" PRIu32
			       " with KVMEM_REGION_CLONE: leave it AUTO",
			       o->backing);
	return 0;
}

/* ---- the template ---- */

/* Of a file that has no seals, or can have none: on a file system, or a memfd without MFD_ALLOW_SEALING. */
static bool cannot_be_sealed(int64_t seals)
{
	return seals < 0 || (seals & KVMEM_SEAL_SEAL &&
			     !(seals & (KVMEM_SEAL_SHRINK | SEAL_WRITE | SEAL_FUTURE_WRITE)));
}

/* What can be safe must be: nobody forgets the seals of a memfd on purpose. */
static int check_seals(int fd)
{
	int64_t seals = km_sys_fcntl_seals(fd);

	if (cannot_be_sealed(seals) ||
	    (seals & KVMEM_SEAL_SHRINK && seals & (SEAL_WRITE | SEAL_FUTURE_WRITE)))
		return 0;
	return km_fail(EPERM,
		       "kvmem_region_opts.fd %d: the template is not sealed, whoever has it could "
		       "change or shorten the memory of all clones: fcntl(F_ADD_SEALS) with "
		       "F_SEAL_SHRINK and F_SEAL_WRITE, or F_SEAL_FUTURE_WRITE where it is still "
		       "mapped for writing",
		       fd);
}

const char *km_clone_note(const struct kvmem_region_opts *o)
{
	int64_t seals = km_sys_fcntl_seals(o->fd);

	if (cannot_be_sealed(seals))
		return "the template has no seals: who writes to it changes what clones have not "
		       "written, who shortens it takes pages away from them (SIGBUS)";
	if (!(seals & SEAL_WRITE))
		return "the template is sealed with F_SEAL_FUTURE_WRITE: mappings of it made for "
		       "writing before can still change what clones have not written";
	return "the template is sealed: nobody can change it";
}

static int check_open(int fd)
{
	int64_t mode = km_sys_fcntl_getfl(fd);

	if (mode < 0)
		return km_fail(EBADF, "kvmem_region_opts.fd %d is not open", fd);
	if ((mode & O_ACCMODE) == O_WRONLY || mode & O_PATH)
		return km_fail(EBADF, "kvmem_region_opts.fd %d is not open for reading", fd);
	return 0;
}

int km_clone_kind(struct kvmem_region_opts *o)
{
	uint64_t base = km_sys_page_size(), page;
	uint32_t backing;
	struct stat st;
	int64_t err;
	int r = check_open(o->fd);

	if (r)
		return r;
	err = km_sys_fstat(o->fd, &st);
	if (err < 0)
		return km_fail((int)-err, "kvmem_region_opts.fd %d: fstat: %m", o->fd);
	if (!S_ISREG(st.st_mode))
		return km_fail(
			EBADF,
			"kvmem_region_opts.fd %d, the template, is not a regular file or a memfd",
			o->fd);
	backing = km_file_kind(o->fd, &st);
	if (backing == KVMEM_BACKING_GUEST_MEMFD)
		return km_fail(EOPNOTSUPP,
			       "kvmem_region_opts.fd %d is a guest_memfd, which cannot be mapped "
			       "privately: a template is a file or a memfd",
			       o->fd);
	page = backing == KVMEM_BACKING_HUGETLB ? (uint64_t)st.st_blksize : base;
	/* The last page of a file need not be full: what follows in it is zero. */
	r = km_file_range(o, page, ((uint64_t)st.st_size + page - 1) & ~(page - 1));
	if (!r)
		r = check_seals(o->fd);
	o->backing = KVMEM_BACKING_CLONE;
	return r;
}

/* ---- the plan ---- */

/* A private mapping of a memfd is as good as the memfd; one of an ordinary file is refused by the kernel. */
static const char *no_capture(const struct kvmem_caps *caps, const struct kvmem_region_opts *o)
{
	struct stat st;
	uint32_t backing = km_sys_fstat(o->fd, &st) < 0 ? 0 : km_file_kind(o->fd, &st);

	return backing ? km_no_capture(caps, backing)
		       : "userfaultfd has no write protection that raises events on private mappings "
			 "of ordinary files: make the template a memfd";
}

const char *km_clone_lacks(const struct kvmem_caps *caps, const struct kvmem_region_opts *o,
			   uint64_t bit)
{
	bool huge = o->page_size > km_sys_page_size();

	switch (bit) {
	case KVMEM_WANT_DIRTY:
		return NULL;
	case KVMEM_WANT_PAGING:
		return "a template has all of the content: the kernel brings its pages in by itself, "
		       "shared by all clones, and no pager has anything to fill";
	case KVMEM_WANT_NUMA: /* of what the clone writes: its mapping holds the policy */
		return km_caps_lack(caps, KVMEM_CAP_NUMA_NODES);
	case KVMEM_WANT_CAPTURE:
		return no_capture(caps, o);
	case KVMEM_WANT_HUGE:
		return huge ? NULL : "the template has base pages: make it a memfd of huge pages";
	case KVMEM_WANT_THP:
		return huge ? NULL : "a clone's own copies of pages are base pages";
	case KVMEM_WANT_PRIVATE:
		return "private memory needs a direct slot of a guest_memfd";
	case KVMEM_WANT_SHARED:
		return "what a clone writes is in no file that another process could map";
	default:
		return "a clone never writes to its template";
	}
}

/* ---- where it is not the template ---- */

/* Of vm.max_map_count, 65 530 where nobody has changed it, this takes a quarter at most. */
#define MOST_OVERLAYS 8192u

static _Atomic size_t all_overlays;

struct km_clone *km_clone_new(int fd)
{
	struct km_clone *c = km_sys_alloc(sizeof(*c));

	if (c)
		c->fd = fd;
	return c;
}

void km_clone_free(struct km_clone *c)
{
	if (!c)
		return;
	atomic_fetch_sub(&all_overlays, c->count);
	km_sys_free(c->overlays);
	km_sys_free(c);
}

/* The first overlay that ends at or behind `page`: the one that it lies in, or touches, or the next one. */
static size_t find(const struct km_clone *c, uint64_t page)
{
	size_t lo = 0, hi = c->count;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (c->overlays[mid].end < page)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

uint64_t km_clone_run(const struct km_clone *c, uint64_t page, uint64_t max, bool *ret_over)
{
	size_t i = find(c, page + 1);
	uint64_t until = page + max;

	*ret_over = i < c->count && c->overlays[i].first <= page;
	if (*ret_over)
		until = c->overlays[i].end;
	else if (i < c->count)
		until = c->overlays[i].first;
	return km_min(until - page, max);
}

/* The overlays that [first, end) meets or touches. */
static size_t touched(const struct km_clone *c, uint64_t first, uint64_t end, size_t *ret_at)
{
	size_t i = find(c, first), n = 0;

	while (i + n < c->count && c->overlays[i + n].first <= end)
		n++;
	*ret_at = i;
	return n;
}

static bool make_room(struct km_clone *c)
{
	size_t room = c->room ? 2 * c->room : 16;
	struct km_overlay *p;

	if (c->count < c->room)
		return true;
	p = km_sys_realloc(c->overlays, room * sizeof(*p));
	if (!p)
		return false;
	c->overlays = p;
	c->room = room;
	return true;
}

bool km_clone_may_add(struct km_clone *c, uint64_t first, uint64_t end)
{
	size_t at;

	return touched(c, first, end, &at) ||
	       (atomic_load(&all_overlays) < MOST_OVERLAYS && make_room(c));
}

void km_clone_add(struct km_clone *c, uint64_t first, uint64_t end)
{
	size_t at, n = touched(c, first, end, &at);
	struct km_overlay *p = &c->overlays[at];
	struct km_overlay new = { first, end };

	if (n) {
		new.first = km_min(new.first, p[0].first);
		new.end = p[n - 1].end > end ? p[n - 1].end : end;
	}
	memmove(p + 1, p + n, (c->count - at - n) * sizeof(*p));
	*p = new;
	c->count += 1 - n;
	atomic_fetch_add(&all_overlays, 1 - n);
}
