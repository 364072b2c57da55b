// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory that the caller has mapped himself: what it is, and which pages it has. */
#include "region/mapping.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/sysmacros.h>

#include "base/vmas.h"
#include "region/region.h"

/* ---- what is mapped there ---- */

struct look {
	struct km_vma first;
	uint64_t at; /* how far it is of one kind */
	const char *differs;
};

static const char *difference(const struct km_vma *a, const struct km_vma *b)
{
	if (a->read != b->read || a->write != b->write)
		return "other access rights";
	if (a->shared != b->shared || a->dev_major != b->dev_major ||
	    a->dev_minor != b->dev_minor || a->ino != b->ino)
		return "another file or another kind of memory";
	if (a->ino && a->offset + (b->start - a->start) != b->offset)
		return "another part of the file than the one that follows";
	return NULL;
}

static bool same_kind(void *arg, const struct km_vma *v)
{
	struct look *l = arg;

	if (!l->at)
		l->first = *v;
	l->differs = difference(&l->first, v);
	if (l->differs)
		return false;
	l->at = v->end;
	return true;
}

static int look_at(const struct kvmem_region_opts *o, struct km_vma *ret)
{
	uint64_t at = (uintptr_t)o->mapping;
	struct look l = { .at = 0 };
	int64_t r = km_vmas_walk(at, at + o->bytes, same_kind, &l);

	if (r < 0)
		return km_fail(EOPNOTSUPP,
			       "kvmem_region_opts.mapping: /proc/self/maps, which tells what is "
			       "mapped there, cannot be read (errno %d)",
			       (int)-r);
	if (!r && l.differs)
		return km_fail(EINVAL,
			       "kvmem_region_opts.mapping %p + 0x%" PRIx64
			       " is of more than one kind: from 0x%" PRIx64
			       " on it has %s; make a region of each",
			       o->mapping, o->bytes, l.at, l.differs);
	if (!r)
		return km_fail(EFAULT,
			       "kvmem_region_opts.mapping %p + 0x%" PRIx64
			       ": nothing is mapped at 0x%" PRIx64,
			       o->mapping, o->bytes, l.at ? l.at : at);
	*ret = l.first;
	if (ret->read)
		return 0;
	return km_fail(EINVAL, "kvmem_region_opts.mapping %p is mapped without access (PROT_NONE)",
		       o->mapping);
}

/* ---- with the file descriptor of it ---- */

/* A file on a disk, or of persistent memory: its mapping can be tracked all the same. */
static int adopt_kind(struct kvmem_region_opts *o)
{
	int r = km_adopt_kind(o);
	struct km_detail why;

	if (r != -EBADF)
		return r;
	km_detail_save(&why);
	return km_fail(EBADF, "%s; without KVMEM_REGION_FD the mapping can be tracked, and no more",
		       why.text);
}

static int check_file(struct kvmem_region_opts *o, const struct km_vma *v)
{
	uint64_t offset = v->offset + ((uintptr_t)o->mapping - v->start);
	struct stat st;
	int64_t err = km_sys_fstat(o->fd, &st);

	if (err < 0)
		return km_fail((int)-err, "kvmem_region_opts.fd %d: fstat: %m", o->fd);
	if (v->ino != st.st_ino || v->dev_major != major(st.st_dev) ||
	    v->dev_minor != minor(st.st_dev))
		return km_fail(
			EINVAL,
			"kvmem_region_opts.mapping %p is not of kvmem_region_opts.fd %d: it is of "
			"inode %" PRIu64 " on device %" PRIu32 ":%" PRIu32 ", the file is %" PRIu64
			" on %u:%u",
			o->mapping, o->fd, v->ino, v->dev_major, v->dev_minor, (uint64_t)st.st_ino,
			major(st.st_dev), minor(st.st_dev));
	if (!v->shared)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_region_opts.mapping %p is a private mapping of fd %d (MAP_PRIVATE): "
			"what is written there is not in the file. Map it MAP_SHARED, or leave "
			"KVMEM_REGION_FD out",
			o->mapping, o->fd);
	if (!v->write)
		return km_fail(EOPNOTSUPP,
			       "kvmem_region_opts.mapping %p is mapped without write access: leave "
			       "KVMEM_REGION_FD out for memory that is read alone",
			       o->mapping);
	if (offset != o->fd_offset)
		return km_fail(EINVAL,
			       "kvmem_region_opts.mapping %p begins at byte 0x%" PRIx64
			       " of fd %d, fd_offset says 0x%" PRIx64,
			       o->mapping, offset, o->fd, o->fd_offset);
	return adopt_kind(o);
}

/* ---- without ---- */

static const char *limits_of(const struct km_vma *v)
{
	if (!v->write)
		return "it is mapped without write access";
	if (!v->shared && v->ino)
		return "it is a private mapping of a file or of huge pages (MAP_PRIVATE): what is "
		       "taken out of it comes back from the file, and what is stored never gets there";
	if (v->shared)
		return "it is a shared mapping, and the file descriptor of it was not given: give "
		       "it with KVMEM_REGION_FD";
	return NULL;
}

static int check_backing(struct kvmem_region_opts *o, uint32_t backing, const struct km_own *own)
{
	if (o->backing && o->backing != backing)
		return km_fail(EOPNOTSUPP,
			       "kvmem_region_opts.mapping %p is of another kind than the backing "
			       "asked for%s%s: leave backing AUTO",
			       o->mapping, own->limits ? ": " : "", own->limits ? own->limits : "");
	if (own->limits && o->content == KVMEM_CONTENT_IGNORE)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_region_opts.content KVMEM_CONTENT_IGNORE: pages of the mapping "
			"cannot be filled: %s",
			own->limits);
	o->backing = backing;
	o->page_size = km_sys_page_size();
	return 0;
}

int km_mapping_kind(struct kvmem_region_opts *o, struct km_own *ret_own)
{
	struct km_vma v = { 0 };
	int r = km_align_check((uintptr_t)o->mapping, km_sys_page_size(),
			       "kvmem_region_opts.mapping");

	if (!r && o->page_size > km_sys_page_size() && !(o->flags & KVMEM_REGION_FD))
		r = km_fail(EOPNOTSUPP,
			    "kvmem_region_opts.page_size 0x%" PRIx64
			    ": of a mapping, huge pages are taken with their file descriptor alone "
			    "(KVMEM_REGION_FD)",
			    o->page_size);
	if (!r)
		r = look_at(o, &v);
	if (r)
		return r;
	ret_own->shared = v.shared;
	ret_own->writable = v.write;
	if (o->flags & KVMEM_REGION_FD) {
		r = check_file(o, &v);
		return r ? r
			 : km_align_check((uintptr_t)o->mapping, o->page_size,
					  "kvmem_region_opts.mapping");
	}
	ret_own->limits = limits_of(&v);
	return check_backing(o, ret_own->limits ? KVMEM_BACKING_OTHER : KVMEM_BACKING_ANONYMOUS,
			     ret_own);
}

/* ---- which pages exist ---- */

static void mark(struct kvmem_region *r, uint64_t page, uint64_t count)
{
	km_presence_publish(&r->presence, page, km_presence_claim(&r->presence, page, count),
			    KM_PRESENT);
}

/* pagemap belongs to root in a process that has given up its user. */
static int cannot_tell(struct kvmem_region *r)
{
	if (r->plan.granted & KVMEM_WANT_PAGING)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_region_opts.mapping: the pages that exist cannot be told: there is "
			"swap, and /proc/self/pagemap cannot be read. Pass KVMEM_CONTENT_IGNORE if "
			"there is no content in it, or make the region before privileges are dropped");
	r->own.limits = "which of its pages exist cannot be told: there is swap, and "
			"/proc/self/pagemap cannot be read";
	mark(r, 0, r->presence.pages);
	return 0;
}

static int find_existing(struct kvmem_region *r)
{
	uint64_t total = r->presence.pages, n;
	bool exists[KM_EXISTS_BATCH];
	struct km_exists x;
	int64_t err = km_exists_begin(&x, r, r->base);

	if (err >= 0 && x.how != KM_EXISTS_PAGEMAP && !km_no_swap())
		return cannot_tell(r);
	for (uint64_t at = 0; at < total && err >= 0; at += n) {
		n = km_min(total - at, KM_EXISTS_BATCH);
		err = km_exists_get(&x, at, (unsigned int)n, exists);
		for (uint64_t i = 0, run; i < n && err >= 0; i += run) {
			for (run = 1; i + run < n && exists[i + run] == exists[i];)
				run++;
			if (exists[i])
				mark(r, at + i, run);
		}
	}
	return err < 0 ? km_fail((int)-err, "finding the pages of the mapping given: pagemap: %m")
		       : 0;
}

int km_mapping_presence(struct kvmem_region *r)
{
	if (!r->own.limits)
		return find_existing(r);
	mark(r, 0, r->presence.pages);
	return 0;
}
