// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Where the pages of another process's memory are, and all such regions of this process. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <kvmem/remote.h>

#include "region/region.h"

/* ---- of all of this process ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct km_remote *remotes;

static bool same_uffd(const struct km_remote *a, const struct km_remote *b)
{
	for (unsigned int i = 0; i < a->uffd_count; i++)
		for (unsigned int k = 0; k < b->uffd_count; k++)
			if (a->uffds[i].ino == b->uffds[k].ino &&
			    a->uffds[i].dev == b->uffds[k].dev)
				return true;
	return false;
}

int km_remote_enlist(struct km_remote *m)
{
	int r = 0;

	pthread_mutex_lock(&lock);
	for (const struct km_remote *other = remotes; !r && other; other = other->next)
		if (same_uffd(m, other))
			r = km_fail(EBUSY,
				    "kvmem_remote_opts.uffds: another region of this process "
				    "has one of these userfaultfds, whose events can be read "
				    "once only");
	if (!r) {
		m->next = remotes;
		if (remotes)
			remotes->prev = m;
		remotes = m;
		m->listed = true;
	}
	pthread_mutex_unlock(&lock);
	return r;
}

static void delist(struct km_remote *m)
{
	if (!m->listed)
		return;
	pthread_mutex_lock(&lock);
	if (m->prev)
		m->prev->next = m->next;
	else
		remotes = m->next;
	if (m->next)
		m->next->prev = m->prev;
	pthread_mutex_unlock(&lock);
}

/* ---- options ---- */

static int bad_mapping(uint32_t i, const struct kvmem_remote_mapping *m, const char *rule)
{
	return km_fail(EINVAL,
		       "kvmem_remote_opts.mappings[%" PRIu32 "] (0x%" PRIx64 " + 0x%" PRIx64
		       ", offset 0x%" PRIx64 "): %s",
		       i, m->addr, m->bytes, m->offset, rule);
}

static int check_mapping(const struct kvmem_remote_opts *o, uint32_t i)
{
	const struct kvmem_remote_mapping *m = &o->mappings[i];

	if (!m->bytes || (m->addr | m->bytes | m->offset) & (o->page_size - 1))
		return bad_mapping(i, m,
				   "address, bytes and offset are multiples of the page size, "
				   "and bytes is not 0");
	if (!m->addr || m->addr + m->bytes < m->addr || m->addr + m->bytes > INT64_MAX)
		return bad_mapping(i, m, "it wraps around, or is not in user space");
	if (m->offset + m->bytes < m->offset || m->offset + m->bytes > o->bytes)
		return bad_mapping(i, m, "it ends beyond kvmem_remote_opts.bytes");
	if (m->uffd >= o->uffd_count)
		return bad_mapping(i, m, "its uffd is not an index of kvmem_remote_opts.uffds");
	if (m->reserved)
		return bad_mapping(i, m, "its `reserved` is not 0");
	return 0;
}

/* ---- spans ---- */

static int by_page(const void *a, const void *b)
{
	const struct km_span *x = a, *y = b;

	return x->first < y->first ? -1 : x->first > y->first;
}

static int by_addr(const void *a, const void *b)
{
	const struct km_span *x = a, *y = b;

	return x->addr < y->addr ? -1 : x->addr > y->addr;
}

static int check_addresses(struct km_remote *m, unsigned int shift)
{
	m->by_addr = km_sys_alloc(m->span_count * sizeof(*m->by_addr));
	if (!m->by_addr)
		return km_fail(ENOMEM, "kvmem_remote_create: no memory");
	memcpy(m->by_addr, m->spans, m->span_count * sizeof(*m->by_addr));
	qsort(m->by_addr, m->span_count, sizeof(*m->by_addr), by_addr);
	for (unsigned int i = 1; i < m->span_count; i++) {
		const struct km_span *before = &m->by_addr[i - 1], *s = &m->by_addr[i];

		if (before->addr + (before->pages << shift) > s->addr)
			return km_fail(EINVAL,
				       "kvmem_remote_opts.mappings: those at addresses 0x%" PRIx64
				       " and 0x%" PRIx64 " overlap",
				       before->addr, s->addr);
	}
	return 0;
}

static int check_cover(struct km_remote *m, uint64_t pages, unsigned int shift)
{
	uint64_t at = 0;

	/* Of a further process: a gap is memory that it does not have. */
	qsort(m->spans, m->span_count, sizeof(*m->spans), by_page);
	for (unsigned int i = 0; i < m->span_count; i++) {
		if (m->joined && m->spans[i].first > at)
			at = m->spans[i].first;
		if (m->spans[i].first != at)
			return km_fail(EINVAL,
				       "kvmem_remote_opts.mappings %s at offset 0x%" PRIx64
				       " of the region: they cover each byte once",
				       m->spans[i].first < at ? "overlap" : "leave a gap",
				       km_min(m->spans[i].first, at) << shift);
		at += m->spans[i].pages;
	}
	if (at == pages || m->joined)
		return 0;
	return km_fail(EINVAL,
		       "kvmem_remote_opts.mappings end at offset 0x%" PRIx64
		       " of the region, which has 0x%" PRIx64 " bytes",
		       at << shift, pages << shift);
}

int km_remote_spans(struct km_remote *m, const struct kvmem_remote_opts *o, unsigned int shift)
{
	int r = 0;

	m->spans = km_sys_alloc(o->mapping_count * sizeof(*m->spans));
	if (!m->spans)
		return km_fail(ENOMEM, "kvmem_remote_create: no memory");
	m->span_count = o->mapping_count;
	for (uint32_t i = 0; !r && i < o->mapping_count; i++) {
		r = check_mapping(o, i);
		m->spans[i] = (struct km_span){ .addr = o->mappings[i].addr,
						.first = o->mappings[i].offset >> shift,
						.pages = o->mappings[i].bytes >> shift,
						.uffd = o->mappings[i].uffd };
	}
	if (!r)
		r = check_addresses(m, shift);
	return r ? r : check_cover(m, o->bytes >> shift, shift);
}

const struct km_span *km_remote_span(const struct km_remote *m, uint64_t page)
{
	unsigned int low = 0, high = m->span_count;

	while (high - low > 1) {
		unsigned int middle = low + (high - low) / 2;

		if (m->spans[middle].first <= page)
			low = middle;
		else
			high = middle;
	}
	return &m->spans[low];
}

unsigned int km_remote_at(const struct km_remote *m, uint64_t addr)
{
	unsigned int low = 0, high = m->span_count;

	while (high - low > 1) {
		unsigned int middle = low + (high - low) / 2;

		if (m->by_addr[middle].addr <= addr)
			low = middle;
		else
			high = middle;
	}
	return low;
}

/* ---- the end ---- */

void km_remote_free(struct km_remote *m)
{
	if (!m)
		return;
	delist(m);
	for (unsigned int i = 0; i < m->uffd_count; i++)
		km_sys_close(m->uffds[i].fd);
	km_sys_close(m->record);
	km_sys_free(m->uffds);
	km_sys_free(m->spans);
	km_sys_free(m->by_addr);
	km_sys_free(m);
}
