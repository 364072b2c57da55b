/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef PAGER_LIB_H
#define PAGER_LIB_H

/* A region, a source with a known content, and a pager between them, for the pager tests. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE 4096u
#define MIB  (1u << 20)

#define must(call) \
	do { \
		int must_ = (call); \
		ck_assert_msg(must_ >= 0, "%s: %d %s", #call, must_, kvmem_error_detail()); \
	} while (0)

struct set {
	enum kvmem_backing backing;
	uint64_t bytes;
	struct kvmem_region *ram;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	struct kvmem_pager_opts opts;
	uint32_t add_flags;
	uint8_t *base;
	uint8_t *content;
	int fd;
};

static inline uint64_t word_of(uint64_t page, unsigned int i)
{
	return (page * 0x9e3779b97f4a7c15ull) ^ (i * 0xd1342543de82ef95ull) ^ 1;
}

static inline uint8_t *make_content(uint64_t bytes)
{
	uint64_t *p = aligned_alloc(PAGE, bytes);

	ck_assert_ptr_nonnull(p);
	for (uint64_t i = 0; i < bytes / 8; i++)
		p[i] = word_of(i / (PAGE / 8), (unsigned int)(i % (PAGE / 8)));
	return (uint8_t *)p;
}

/* False, with the skip recorded, where userfaultfd is not to be had. */
static inline bool open_set(struct set *s, enum kvmem_backing backing, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_pager_opts none = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_pager *probe;
	int r = kvmem_pager_create(NULL, &probe);

	memset(s, 0, sizeof(*s));
	if (r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		return false;
	}
	must(r);
	must(kvmem_pager_free(probe));
	s->opts = none;
	s->backing = backing;
	s->bytes = bytes;
	s->fd = -1;
	o.bytes = bytes;
	o.backing = backing;
	r = kvmem_region_create(NULL, &o, &s->ram);
	if (r < 0 && backing == KVMEM_BACKING_HUGETLB) {
		harness_skip("hugetlb", "%s", kvmem_error_detail());
		return false;
	}
	must(r);
	s->base = kvmem_region_base(s->ram);
	s->content = make_content(bytes);
	return true;
}

static inline void use_memory(struct set *s)
{
	must(kvmem_source_memory(s->content, s->bytes, &s->source));
}

/* A file of the content, with a hole of one MiB at each odd MiB. The content is made to match. */
static inline void use_file(struct set *s)
{
	s->fd = memfd_create("source", MFD_CLOEXEC);
	ck_assert_int_ge(s->fd, 0);
	ck_assert_int_eq(ftruncate(s->fd, (off_t)s->bytes), 0);
	for (uint64_t at = 0; at < s->bytes; at += MIB) {
		if (at / MIB % 2)
			memset(s->content + at, 0, MIB);
		else
			ck_assert_int_eq(pwrite(s->fd, s->content + at, MIB, (off_t)at), MIB);
	}
	must(kvmem_source_file(s->fd, 0, 0, 0, &s->source));
}

static inline void start_set(struct set *s)
{
	must(kvmem_pager_create(&s->opts, &s->pager));
	must(kvmem_pager_add(s->pager, s->ram, s->source, 0, s->add_flags));
	must(kvmem_pager_start(s->pager));
}

static inline void check_page(const struct set *s, uint64_t page)
{
	ck_assert_msg(!memcmp(s->base + page * PAGE, s->content + page * PAGE, PAGE),
		      "page %llu differs", (unsigned long long)page);
}

static inline void check_all(const struct set *s)
{
	for (uint64_t page = 0; page < s->bytes / PAGE; page++)
		check_page(s, page);
}

static inline struct kvmem_pager_stats stats_of(const struct set *s)
{
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;

	must(kvmem_pager_get_stats(s->pager, &st));
	return st;
}

static inline void close_set(struct set *s)
{
	must(kvmem_pager_free(s->pager));
	must(kvmem_region_free(s->ram));
	must(kvmem_source_free(s->source));
	free(s->content);
	if (s->fd >= 0)
		close(s->fd);
}

#endif
