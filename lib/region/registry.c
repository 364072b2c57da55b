// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The regions of this process: no two records of the same bytes of a file or of the same memory. */
#include <errno.h>
#include <inttypes.h>

#include "region/region.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct kvmem_region *regions;

static bool same_bytes(const struct kvmem_region *r, const struct stat *st,
		       const struct kvmem_region *other)
{
	struct stat theirs = { .st_dev = other->dev, .st_ino = other->ino };

	if ((other->fd < 0 && !other->adopted) || other->fd_offset >= r->fd_offset + r->room ||
	    r->fd_offset >= other->fd_offset + other->room)
		return false;
	if (!other->adopted && km_sys_fstat(other->fd, &theirs) < 0)
		return false;
	return theirs.st_dev == st->st_dev && theirs.st_ino == st->st_ino;
}

static int check_file(const struct kvmem_region *r, const struct stat *st)
{
	for (const struct kvmem_region *other = regions; other; other = other->next)
		if (same_bytes(r, st, other))
			return km_fail(
				EBUSY,
				"bytes 0x%" PRIx64 " + 0x%" PRIx64 " of the file given overlap "
				"those of another region of this process (0x%" PRIx64
				" + 0x%" PRIx64 "), whose record of pages would know nothing of "
				"this one's: see KVMEM_REGION_OVERLAP",
				r->fd_offset, r->room, other->fd_offset, other->room);
	return 0;
}

static void add(struct kvmem_region *r)
{
	r->next = regions;
	if (regions)
		regions->prev = r;
	regions = r;
	r->registered = true;
}

static int check_mapping(const struct kvmem_region *r, const void *mapping)
{
	uintptr_t at = (uintptr_t)mapping;

	for (const struct kvmem_region *other = regions; other; other = other->next)
		if (other->mapped && other->mapped < at + r->room &&
		    at < other->mapped + other->room)
			return km_fail(EBUSY,
				       "kvmem_region_opts.mapping %p + 0x%" PRIx64
				       " overlaps another region of this process (at 0x%" PRIxPTR
				       " + 0x%" PRIx64
				       "), whose record of pages would know nothing of "
				       "this one's: see KVMEM_REGION_OVERLAP",
				       mapping, r->room, other->mapped, other->room);
	return 0;
}

/* What was just made can be no other region's: only adoption looks. */
void km_registry_add(struct kvmem_region *r)
{
	pthread_mutex_lock(&lock);
	add(r);
	pthread_mutex_unlock(&lock);
}

void km_registry_mapped(struct kvmem_region *r)
{
	pthread_mutex_lock(&lock);
	r->mapped = (uintptr_t)r->base;
	pthread_mutex_unlock(&lock);
}

int km_registry_add_given(struct kvmem_region *r, int fd, const void *mapping)
{
	struct stat st;
	int64_t err = fd < 0 ? 0 : km_sys_fstat(fd, &st);
	bool overlap = r->flags & KVMEM_REGION_OVERLAP;
	int ret = 0;

	if (err < 0)
		return km_fail((int)-err, "kvmem_region_opts.fd %d: fstat: %m", fd);
	if (fd >= 0) {
		r->dev = st.st_dev;
		r->ino = st.st_ino;
	}
	pthread_mutex_lock(&lock);
	if (!overlap && fd >= 0)
		ret = check_file(r, &st);
	if (!ret && !overlap && mapping)
		ret = check_mapping(r, mapping);
	if (!ret) {
		r->mapped = (uintptr_t)mapping;
		add(r);
	}
	pthread_mutex_unlock(&lock);
	return ret;
}

void km_registry_remove(struct kvmem_region *r)
{
	if (!r->registered)
		return;
	pthread_mutex_lock(&lock);
	if (r->prev)
		r->prev->next = r->next;
	else
		regions = r->next;
	if (r->next)
		r->next->prev = r->prev;
	pthread_mutex_unlock(&lock);
}
