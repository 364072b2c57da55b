// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What memory holds: for who saves or sends it. */
#include "fill/fill_internal.h"

#include <errno.h>
#include <inttypes.h>

#include "base/copy.h"

struct survey {
	struct kvmem_region *r;
	struct km_exists exists;
	enum {
		NOT_ASKED,	/* the kernel has not been needed yet */
		KNOWS,		/* km_exists_get() tells of every page */
		KNOWS_PRESENCE, /* ... of pages that are there; others may be there too */
	} kernel;
	bool paged;
	uint64_t end; /* of the range, in bytes */
	struct kvmem_stored *runs;
	size_t room, count;
	bool full; /* a run more than there is room for */
};

/* ---- does the kernel tell? ---- */

/*
 * mincore() knows the huge pages that are mapped here. Others are there where another process, or a write to the file,
 * has made them: unless the file holds just as many as are mapped here.
 */
static bool hugetlb_is_known(const struct kvmem_region *r)
{
	uint64_t page = km_region_page(r), mapped = 0;
	unsigned char there = 0;
	struct stat st;

	if (km_sys_fstat(r->fd, &st) < 0)
		return false;
	for (uint64_t at = 0; st.st_blocks && at < r->bytes; at += page) {
		if (km_sys_mincore(r->base + at, km_sys_page_size(), &there) < 0)
			return false;
		mapped += there & 1;
	}
	return (uint64_t)st.st_blocks * 512 == mapped * page;
}

static int ask_kernel(struct survey *s)
{
	const struct kvmem_region *r = s->r;
	struct km_exists exists;
	int64_t err = km_exists_begin(&exists, s->r, s->r->base);

	if (err < 0)
		return km_fail((int)-err, "kvmem_region_stored: looking for pages that exist: %m");
	s->exists = exists;
	s->kernel = KNOWS;
	if (r->plan.backing == KVMEM_BACKING_MEMFD && r->fd >= 0)
		s->exists.how = KM_EXISTS_EXTENTS; /* mincore() passes over pages in swap */
	else if (s->exists.how == KM_EXISTS_RECORD)
		s->kernel = KNOWS_PRESENCE;
	else if (r->plan.backing == KVMEM_BACKING_HUGETLB)
		s->kernel = hugetlb_is_known(r) ? KNOWS : KNOWS_PRESENCE;
	else if (r->plan.backing == KVMEM_BACKING_ANONYMOUS && s->exists.how == KM_EXISTS_MINCORE)
		s->kernel = km_no_swap() ? KNOWS : KNOWS_PRESENCE;
	return 0;
}

/* ---- runs ---- */

/* False: there is no room for it. */
static bool add(struct survey *s, uint64_t page, uint64_t count, uint32_t kind)
{
	uint64_t end = km_min((page + count) << s->r->page_shift, s->end);
	struct kvmem_stored *run = s->runs + s->count;

	if (s->count && run[-1].kind == kind) {
		run[-1].bytes = end - run[-1].offset;
		return true;
	}
	s->full = s->count == s->room;
	if (s->full)
		return false;
	/* The first begins where the caller's range does, maybe inside a huge page. */
	if (s->count)
		run->offset = page << s->r->page_shift;
	run->bytes = end - run->offset;
	run->kind = kind;
	run->reserved = 0;
	s->count++;
	return true;
}

/* Pages that hold something if they exist. */
static int add_existing(struct survey *s, uint64_t page, uint64_t count)
{
	bool exists[KM_EXISTS_BATCH];
	int r = s->kernel == NOT_ASKED ? ask_kernel(s) : 0;

	if (r)
		return r;
	if (s->kernel == KNOWS_PRESENCE) {
		add(s, page, count, KVMEM_STORED_DATA);
		return 0;
	}
	for (uint64_t n; count && !s->full; page += n, count -= n) {
		int64_t err;

		n = km_min(count, KM_EXISTS_BATCH);
		err = km_exists_get(&s->exists, page, (unsigned int)n, exists);
		if (err < 0)
			return km_fail((int)-err,
				       "kvmem_region_stored: looking for pages that exist: %m");
		for (uint64_t i = 0; i < n; i++)
			if (!add(s, page + i, 1, exists[i] ? KVMEM_STORED_DATA : KVMEM_STORED_ZERO))
				break;
	}
	return 0;
}

/* Content may have been placed, and written to, that the record does not have yet. */
static int add_claimed(struct survey *s, uint64_t page, uint64_t count)
{
	int r = s->kernel == NOT_ASKED ? ask_kernel(s) : 0;

	for (uint64_t end = page + count; !r && !s->full && page < end; page++) {
		bool exists = true;
		int64_t err = s->kernel == KNOWS ? km_exists_get(&s->exists, page, 1, &exists) : 0;

		if (err < 0)
			return km_fail((int)-err,
				       "kvmem_region_stored: looking for pages that exist: %m");
		add(s, page, 1,
		    exists				      ? KVMEM_STORED_DATA
		    : km_presence_zero(&s->r->presence, page) ? KVMEM_STORED_ZERO
							      : KVMEM_STORED_ABSENT);
	}
	return r;
}

/*
 * Written since, maybe. Of a clone what does not exist is the template, but for where memory was mapped over it: where
 * zeros were written instead they are content, which a madvise(2) of the VMM's own takes away.
 */
static int add_zero(struct survey *s, uint64_t page, uint64_t count)
{
	struct kvmem_region *r = s->r;
	bool over = true;
	int err = 0;

	for (uint64_t n = count; !err && !s->full && count; page += n, count -= n) {
		if (r->clone) {
			pthread_mutex_lock(&r->lock);
			n = km_clone_run(r->clone, page, count, &over);
			pthread_mutex_unlock(&r->lock);
		}
		if (over)
			err = add_existing(s, page, n);
		else
			add(s, page, n, KVMEM_STORED_DATA);
	}
	return err;
}

static int add_state(struct survey *s, uint64_t page, uint64_t count, enum km_page_state state)
{
	switch (state) {
	case KM_PRESENT:
		add(s, page, count, KVMEM_STORED_DATA);
		return 0;
	case KM_POISONED:
		add(s, page, count, KVMEM_STORED_POISONED);
		return 0;
	case KM_ZERO:
		return add_zero(s, page, count);
	case KM_CLAIMED:
		return s->paged ? add_claimed(s, page, count) : add_existing(s, page, count);
	default:
		if (!s->paged)
			return add_existing(s, page, count);
		add(s, page, count, KVMEM_STORED_ABSENT);
		return 0;
	}
}

static int survey(struct survey *s, uint64_t offset)
{
	unsigned int shift = s->r->page_shift;
	uint64_t page = offset >> shift, end = (s->end + km_region_page(s->r) - 1) >> shift, n;
	enum km_page_state state;
	int r = 0;

	for (; !r && !s->full && page < end; page += n) {
		n = km_presence_run(&s->r->presence, page, end - page, &state);
		r = add_state(s, page, n, state);
	}
	return r;
}

static int check(const struct kvmem_region *r, const char *call, uint64_t offset, uint64_t bytes)
{
	if (!r)
		return km_fail(EINVAL, "%s: region is NULL", call);
	if (offset > r->bytes || bytes > r->bytes - offset)
		return km_fail(ERANGE,
			       "%s: offset 0x%" PRIx64 " + 0x%" PRIx64
			       " is beyond the region's 0x%" PRIx64 " bytes",
			       call, offset, bytes, r->bytes);
	return km_region_own_check(r, call);
}

/* Memory that was taken away before is in the record, also where its event has only just been read. */
static void enter_removals(struct kvmem_region *r)
{
	pthread_mutex_lock(&r->lock);
	if (r->watch)
		km_uffd_settle(r->watch->set);
	pthread_mutex_unlock(&r->lock);
}

int64_t kvmem_region_stored(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
			    struct kvmem_stored *runs, size_t count)
{
	struct survey s = { .r = region, .runs = runs, .room = count };
	int r = check(region, "kvmem_region_stored", offset, bytes);

	if (r)
		return r;
	if (!runs || !count)
		return km_fail(EINVAL, "kvmem_region_stored: %s",
			       runs ? "count is 0" : "runs is NULL");
	if ((offset | bytes) % km_sys_page_size())
		return km_fail(EINVAL,
			       "kvmem_region_stored: offset 0x%" PRIx64 " + 0x%" PRIx64
			       " are not whole base pages",
			       offset, bytes);
	if (!bytes)
		return 0;
	s.end = offset + bytes;
	s.paged = atomic_load(&region->presence.listener) != NULL;
	enter_removals(region);
	runs[0].offset = offset;
	r = survey(&s, offset);
	return r ? r : (int64_t)s.count;
}

/* ---- reading ---- */

/* Reading a hole of a hugetlb file takes no page from the pool; touching it does. */
static int64_t read_file(const struct kvmem_region *r, uint64_t offset, uint8_t *buf,
			 uint64_t bytes)
{
	int64_t n = 1;

	for (uint64_t done = 0; done < bytes && n > 0; done += (uint64_t)n)
		n = km_sys_pread(r->fd, buf + done, bytes - done, r->fd_offset + offset + done);
	return n > 0 ? 0 : n < 0 ? n : -EFAULT;
}

int kvmem_region_read(struct kvmem_region *region, uint64_t offset, void *buf, uint64_t bytes)
{
	int64_t err = check(region, "kvmem_region_read", offset, bytes);

	if (!err && !buf && bytes)
		err = km_fail(EINVAL, "kvmem_region_read: buf is NULL");
	if (err || !bytes)
		return (int)err;
	if (region->plan.backing == KVMEM_BACKING_HUGETLB && region->fd >= 0 &&
	    !atomic_load(&region->presence.listener) && !km_presence_poisoned(&region->presence))
		err = read_file(region, offset, buf, bytes);
	else
		err = km_copy(buf, region->base + offset, bytes);
	return err < 0 ? km_fail((int)-err,
				 "kvmem_region_read: offset 0x%" PRIx64 " + 0x%" PRIx64 ": %m",
				 offset, bytes)
		       : 0;
}
