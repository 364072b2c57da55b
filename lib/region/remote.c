// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Regions whose memory is another process's. Every number here comes from that process, by way of the caller: it is
 * bounded before it is believed, and nothing is made until all of it has been looked at.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <kvmem/remote.h>

#include "base/uapi/userfaultfd.h"
#include "region/region.h"

#define PAGE_MOST (1ull << 30)
#define NR(name)  (1ull << (name))

/* ---- options ---- */

static int check_flags(const struct kvmem_remote_opts *o)
{
	const uint32_t known = KVMEM_REMOTE_MISSING | KVMEM_REMOTE_MINOR | KVMEM_REMOTE_FD |
			       KVMEM_REMOTE_RECORD;
	int r = km_flags_check(o->flags, known, "kvmem_remote_opts.flags");

	if (r)
		return r;
	if (!(o->flags & (KVMEM_REMOTE_MISSING | KVMEM_REMOTE_MINOR)))
		return km_fail(EINVAL,
			       "kvmem_remote_opts.flags has neither KVMEM_REMOTE_MISSING nor "
			       "KVMEM_REMOTE_MINOR: memory is registered for one, or both");
	if (o->flags & KVMEM_REMOTE_FD && !(o->flags & KVMEM_REMOTE_MINOR))
		return km_fail(
			EINVAL,
			"kvmem_remote_opts.flags: KVMEM_REMOTE_FD without KVMEM_REMOTE_MINOR: "
			"pages of a file raise no fault that could be answered");
	/* An absent page of a file is allocated as zeros by the kernel where MISSING is not registered. */
	if (!(o->flags & (KVMEM_REMOTE_MISSING | KVMEM_REMOTE_FD)))
		return km_fail(EINVAL,
			       "kvmem_remote_opts.flags: KVMEM_REMOTE_MINOR alone needs the file, "
			       "with KVMEM_REMOTE_FD: what it lacks the kernel fills with zeros");
	return 0;
}

static int check_sizes(struct kvmem_remote_opts *o)
{
	uint64_t base = km_sys_page_size();

	if (!o->page_size)
		o->page_size = base;
	if (o->page_size & (o->page_size - 1) || o->page_size < base || o->page_size > PAGE_MOST)
		return km_fail(EINVAL,
			       "kvmem_remote_opts.page_size is 0x%" PRIx64
			       ": a power of two from 0x%" PRIx64 " to 0x%llx",
			       o->page_size, base, (unsigned long long)PAGE_MOST);
	if (!o->bytes || o->bytes & (o->page_size - 1) || o->bytes > INT64_MAX)
		return km_fail(EINVAL,
			       "kvmem_remote_opts.bytes is 0x%" PRIx64
			       ": a non-zero multiple of page_size 0x%" PRIx64,
			       o->bytes, o->page_size);
	if (!o->uffds || !o->uffd_count || o->uffd_count > KVMEM_REMOTE_UFFDS_MAX)
		return km_fail(EINVAL,
			       "kvmem_remote_opts: %" PRIu32 " userfaultfds%s; from 1 to %u",
			       o->uffd_count, o->uffds ? "" : " (NULL)", KVMEM_REMOTE_UFFDS_MAX);
	if (!o->mappings || !o->mapping_count || o->mapping_count > KVMEM_REMOTE_MAPPINGS_MAX)
		return km_fail(EINVAL, "kvmem_remote_opts: %" PRIu32 " mappings%s; from 1 to %u",
			       o->mapping_count, o->mappings ? "" : " (NULL)",
			       KVMEM_REMOTE_MAPPINGS_MAX);
	return 0;
}

/* ---- userfaultfds ---- */

static int take_uffds(struct km_remote *m, const struct kvmem_remote_opts *o)
{
	uint64_t kernel = 0, fills = NR(_UFFDIO_COPY) | NR(KM_UFFDIO_POISON_NR);
	int r = 0;

	m->uffds = km_sys_alloc(o->uffd_count * sizeof(*m->uffds));
	if (!m->uffds)
		return km_fail(ENOMEM, "kvmem_remote_create: no memory");
	for (; !r && m->uffd_count < o->uffd_count; m->uffd_count++) {
		m->uffds[m->uffd_count].fd = -1;
		r = km_remote_take_fd(&m->uffds[m->uffd_count], o->uffds[m->uffd_count], &kernel);
	}
	for (unsigned int i = 1; !r && i < m->uffd_count; i++)
		for (unsigned int k = 0; !r && k < i; k++)
			if (m->uffds[i].ino == m->uffds[k].ino &&
			    m->uffds[i].dev == m->uffds[k].dev)
				r = km_fail(EINVAL,
					    "kvmem_remote_opts.uffds[%u] and [%u] are one and the "
					    "same",
					    k, i);
	if (o->page_size == km_sys_page_size())
		fills |= NR(_UFFDIO_ZEROPAGE);
	if (m->minor)
		fills |= NR(_UFFDIO_CONTINUE);
	/* ZEROPAGE and CONTINUE may be left out of that list, which is of all kinds of memory together. */
	m->ioctls = fills & (kernel | ~NR(KM_UFFDIO_POISON_NR));
	return r;
}

static int check_there(const struct km_remote *m, const struct km_span *s, uint64_t page,
		       unsigned int shift)
{
	uint64_t addr = s->addr + ((page - s->first) << shift), base = km_sys_page_size();
	const struct km_remote_uffd *u = &m->uffds[s->uffd];
	int r = km_remote_ping(u, addr, 1ull << shift);

	/* Pages of several base pages could be filled in part. */
	if (!r && base < 1ull << shift && !km_remote_ping(u, addr, base))
		r = -EINVAL;
	if (!r || r == -EAGAIN)
		return 0;
	if (r == -ESRCH)
		return km_fail(ESRCH, "kvmem_remote_create: the process whose memory this is has "
				      "ended");
	if (r == -EINVAL)
		return km_fail(EINVAL,
			       "kvmem_remote_create: the memory at 0x%" PRIx64
			       " of the other process has no pages of 0x%llx bytes",
			       addr, 1ull << shift);
	if (r == -ENOENT)
		return km_fail(ENOENT,
			       "kvmem_remote_create: nothing is mapped and registered with a "
			       "userfaultfd at 0x%" PRIx64 " of the other process",
			       addr);
	return km_fail(-r, "kvmem_remote_create: looking at 0x%" PRIx64 ": %m", addr);
}

/* The ends of each span: the middle shows, if it is another matter, as ENOENT when it is filled. */
static int check_all_there(const struct km_remote *m, unsigned int shift)
{
	int r = 0;

	for (unsigned int i = 0; !r && i < m->span_count; i++) {
		const struct km_span *s = &m->spans[i];

		r = check_there(m, s, s->first, shift);
		if (!r && s->pages > 1)
			r = check_there(m, s, s->first + s->pages - 1, shift);
	}
	return r;
}

/* ---- pages of a file ---- */

static void mark(struct km_presence *p, uint64_t first, uint64_t end)
{
	uint64_t n = km_presence_claim(p, first, end - first);

	if (n)
		km_presence_publish(p, first, n, KM_PRESENT);
}

static int mark_extents(struct kvmem_region *r, const struct kvmem_remote_opts *o)
{
	uint64_t end = o->fd_offset + o->bytes, at = o->fd_offset;
	int64_t data, hole, before = km_sys_lseek(o->fd, 0, SEEK_CUR);
	int ret = 0;

	while (at < end) {
		data = km_sys_lseek(o->fd, at, SEEK_DATA);
		if (data == -ENXIO || data >= (int64_t)end)
			break;
		hole = data < 0 ? data : km_sys_lseek(o->fd, (uint64_t)data, SEEK_HOLE);
		if (hole < 0) {
			ret = km_fail((int)-hole, "kvmem_remote_opts.fd %d: SEEK_DATA: %m", o->fd);
			break;
		}
		at = km_min((uint64_t)hole, end);
		mark(&r->presence, ((uint64_t)data - o->fd_offset) >> r->page_shift,
		     (at - o->fd_offset) >> r->page_shift);
	}
	if (before >= 0) /* the position is not ours alone */
		km_sys_lseek(o->fd, (uint64_t)before, SEEK_SET);
	return ret;
}

/* hugetlbfs tells no holes: all or nothing. */
static int mark_huge(struct kvmem_region *r, const struct kvmem_remote_opts *o,
		     const struct stat *st)
{
	if ((uint64_t)st->st_blocks * 512 < (uint64_t)st->st_size)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_remote_opts.fd %d of huge pages lacks some of them, and nothing "
			"tells which: fill all of it first",
			o->fd);
	mark(&r->presence, 0, r->presence.pages);
	return 0;
}

static int mark_file(struct kvmem_region *r, const struct kvmem_remote_opts *o)
{
	struct stat st;
	uint32_t kind;
	int64_t err = km_sys_fstat(o->fd, &st);

	if (err < 0)
		return km_fail(EBADF, "kvmem_remote_opts.fd %d: fstat: %s", o->fd,
			       strerror((int)-err));
	kind = km_file_kind(o->fd, &st);
	if (kind != KVMEM_BACKING_MEMFD && kind != KVMEM_BACKING_HUGETLB)
		return km_fail(EBADF, "kvmem_remote_opts.fd %d is no memfd", o->fd);
	if (o->fd_offset & (o->page_size - 1))
		return km_fail(EINVAL,
			       "kvmem_remote_opts.fd_offset 0x%" PRIx64
			       " is not a multiple of page_size 0x%" PRIx64,
			       o->fd_offset, o->page_size);
	if (o->fd_offset + o->bytes < o->bytes || o->fd_offset + o->bytes > (uint64_t)st.st_size)
		return km_fail(ERANGE,
			       "kvmem_remote_opts.fd %d has 0x%" PRIx64
			       " bytes, fewer than fd_offset and bytes ask for",
			       o->fd, (uint64_t)st.st_size);
	if (kind == KVMEM_BACKING_HUGETLB)
		return mark_huge(r, o, &st);
	return mark_extents(r, o);
}

/* ---- making, freeing ---- */

static int take(struct km_remote *m, const struct kvmem_remote_opts *o, unsigned int shift)
{
	int err = km_remote_spans(m, o, shift);

	if (!err)
		err = take_uffds(m, o);
	if (!err)
		err = km_remote_enlist(m);
	return err ? err : check_all_there(m, shift);
}

static void plan(struct kvmem_region *r, const struct kvmem_remote_opts *o)
{
	r->plan = (struct kvmem_plan){ .size = sizeof(r->plan),
				       .backing = KVMEM_BACKING_REMOTE,
				       .bytes = o->bytes,
				       .page_size = o->page_size,
				       .granted = KVMEM_WANT_PAGING };
	strcpy(r->plan.reasons, "memory of another process, served through its userfaultfd\n");
	r->bytes = r->room = o->bytes;
	r->page_shift = (unsigned int)__builtin_ctzll(o->page_size);
	r->arg = o->arg;
	r->remote->minor = o->flags & KVMEM_REMOTE_MINOR;
	r->remote->record = -1;
}

static int build(struct kvmem_region *r, const struct kvmem_remote_opts *o)
{
	int given = o->flags & KVMEM_REMOTE_RECORD ? o->record_fd : -1;
	int err;

	if (o->flags & KVMEM_REMOTE_RECORD && given < 0)
		return km_fail(EBADF, "kvmem_remote_opts.record_fd is %d", given);
	err = take(r->remote, o, r->page_shift);
	if (!err)
		err = km_record_open(&r->presence, o->bytes >> r->page_shift, r->page_shift, given,
				     &r->remote->record);
	if (!err && o->flags & KVMEM_REMOTE_FD && given < 0)
		err = mark_file(r, o);
	return err;
}

int kvmem_remote_create(const struct kvmem_remote_opts *opts, struct kvmem_region **ret_region)
{
	struct kvmem_remote_opts o;
	struct kvmem_region *r;
	int err;

	if (!ret_region)
		return km_fail(EINVAL, "kvmem_remote_create: ret_region is NULL");
	err = km_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_remote_opts");
	if (!err)
		err = check_flags(&o);
	if (!err)
		err = check_sizes(&o);
	if (err)
		return err;
	r = km_region_new();
	if (!r)
		return km_fail(ENOMEM, "kvmem_remote_create: no memory");
	r->remote = km_sys_alloc(sizeof(*r->remote));
	if (r->remote) {
		plan(r, &o);
		err = build(r, &o);
	} else {
		err = km_fail(ENOMEM, "kvmem_remote_create: no memory");
	}
	if (err) {
		km_region_destroy(r);
		return err;
	}
	*ret_region = r;
	return 0;
}

/* ---- further processes ---- */

static int check_joined(const struct kvmem_region *r, const struct kvmem_remote_opts *o)
{
	if (o->flags & (KVMEM_REMOTE_FD | KVMEM_REMOTE_RECORD))
		return km_fail(EINVAL,
			       "kvmem_remote_join: KVMEM_REMOTE_FD and _RECORD are the region's, "
			       "which has them");
	if (!(o->flags & KVMEM_REMOTE_MISSING))
		return km_fail(EINVAL,
			       "kvmem_remote_join: KVMEM_REMOTE_MISSING is not in "
			       "kvmem_remote_opts.flags: what nobody has filled would be zeros "
			       "there");
	if (o->bytes == r->bytes && o->page_size == km_region_page(r))
		return 0;
	return km_fail(EINVAL,
		       "kvmem_remote_join: 0x%" PRIx64 " bytes in pages of 0x%" PRIx64
		       ", and the region has 0x%" PRIx64 " in pages of 0x%" PRIx64,
		       o->bytes, o->page_size, r->bytes, km_region_page(r));
}

int km_remote_open(const struct kvmem_region *r, const struct kvmem_remote_opts *opts,
		   struct km_remote **ret)
{
	struct kvmem_remote_opts o;
	struct km_remote *m;
	int err = km_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_remote_opts");

	if (!err)
		err = check_flags(&o);
	if (!err)
		err = check_sizes(&o);
	if (!err)
		err = check_joined(r, &o);
	if (err)
		return err;
	m = km_sys_alloc(sizeof(*m));
	if (!m)
		return km_fail(ENOMEM, "kvmem_remote_join: no memory");
	m->record = -1;
	m->joined = true;
	m->minor = o.flags & KVMEM_REMOTE_MINOR;
	err = take(m, &o, r->page_shift);
	if (err)
		km_remote_free(m);
	else
		*ret = m;
	return err;
}

/* ---- what it is ---- */

static int check_remote(const struct kvmem_region *region, const char *call)
{
	if (region && region->remote)
		return 0;
	return km_fail(EINVAL, "%s: region is %s", call,
		       region ? "memory of this process" : "NULL");
}

int kvmem_remote_record_fd(const struct kvmem_region *region)
{
	int r = check_remote(region, "kvmem_remote_record_fd");

	return r ? r : region->remote->record;
}

int kvmem_remote_check(const struct kvmem_region *region)
{
	int r = check_remote(region, "kvmem_remote_check");
	const struct km_remote *m;

	if (r)
		return r;
	m = region->remote;
	r = atomic_load(&m->ended) ? -ESRCH
				   : km_remote_ping(&m->uffds[m->spans[0].uffd], m->spans[0].addr,
						    km_region_page(region));
	if (r == -ESRCH)
		return km_fail(ESRCH, "kvmem_remote_check: the process has ended, or executed "
				      "another program");
	return r == -ENOMEM ? km_fail(ENOMEM, "kvmem_remote_check: %m") : 0;
}
