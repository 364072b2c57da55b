/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef CLONE_RIG_H
#define CLONE_RIG_H

/* Templates of each kind, clones of them, and what the kernel says of their memory. */

#include "dirty_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE  4096ull
#define MIB   (1ull << 20)
#define HUGE  (2 * MIB)
#define BYTES (4 * MIB)
#define PAGES (BYTES / PAGE)
#define RW    (PROT_READ | PROT_WRITE)

enum { SEAL_WRITE = 0x8, SEAL_FUTURE = 0x10 };
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | SEAL_WRITE)

enum kind { FILE_ON_DISK, MEMFD, HUGE_MEMFD, KINDS };

static inline const char *kind_name(enum kind kind)
{
	static const char *const names[] = { "file", "memfd", "hugetlb memfd" };

	return names[kind];
}

/* What each template has at a byte: never 0, and different from page to page. */
static inline uint8_t pattern(uint64_t at)
{
	return (uint8_t)(1 + (at / PAGE * 7 + at / 64) % 255);
}

static inline void fill(uint8_t *at, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		at[i] = pattern(i);
}

static inline bool is_template(const uint8_t *at, uint64_t offset, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		if (at[i] != pattern(offset + i))
			return false;
	return true;
}

static inline bool is_zero(const uint8_t *at, uint64_t bytes)
{
	return !at[0] && !memcmp(at, at + 1, bytes - 1);
}

static inline int write_file(uint64_t bytes)
{
	char path[] = "/tmp/kvmem-clone-XXXXXX";
	uint8_t *content = malloc(bytes);
	int fd = mkostemp(path, O_CLOEXEC);

	ck_assert(content && fd >= 0);
	ck_assert_int_eq(unlink(path), 0);
	fill(content, bytes);
	ck_assert_int_eq(pwrite(fd, content, bytes, 0), (ssize_t)bytes);
	free(content);
	return fd;
}

/* -1: there are no huge pages, and the skip is not noted. */
static inline int make_memfd(enum kind kind, uint64_t bytes, int seals)
{
	int fd = memfd_create("template",
			      MFD_CLOEXEC | MFD_ALLOW_SEALING |
				      (kind == HUGE_MEMFD ? MFD_HUGETLB | 21u << 26 : 0));
	uint8_t *at;

	if (fd < 0 && kind == HUGE_MEMFD)
		return -1;
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	at = mmap(NULL, bytes, RW, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED && kind == HUGE_MEMFD) {
		close(fd);
		return -1;
	}
	ck_assert_ptr_ne(at, MAP_FAILED);
	fill(at, bytes);
	munmap(at, bytes);
	if (seals)
		ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static inline int make_template(enum kind kind, uint64_t bytes)
{
	return kind == FILE_ON_DISK ? write_file(bytes) : make_memfd(kind, bytes, SEALS);
}

static inline bool unchanged(int fd, uint64_t bytes)
{
	uint8_t *at = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	bool same;

	ck_assert_ptr_ne(at, MAP_FAILED);
	same = is_template(at, 0, bytes);
	munmap(at, bytes);
	return same;
}

static inline struct kvmem_region_opts opts_of(int fd, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.bytes = bytes;
	o.flags = KVMEM_REGION_CLONE;
	o.fd = fd;
	return o;
}

static inline struct kvmem_region *clone_of(int fd, uint64_t bytes)
{
	struct kvmem_region_opts o = opts_of(fd, bytes);
	struct kvmem_region *r;

	ck_ok(kvmem_region_create(NULL, &o, &r));
	return r;
}

static inline uint8_t *base_of(struct kvmem_region *r)
{
	return kvmem_region_base(r);
}

static inline uint32_t state_at(struct kvmem_region *r, uint64_t offset)
{
	struct kvmem_run run;
	uint32_t state;

	ck_assert_int_eq(kvmem_region_next_run(r, offset, &run, &state), 1);
	return state;
}

/* A field of /proc/self/smaps, in KiB, of all that is mapped in the range. */
static inline long smaps(const uint8_t *at, uint64_t bytes, const char *field)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long start, end;
	bool here = false;
	char line[512], *rest;
	long sum = 0;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		start = strtoul(line, &rest, 16);
		if (*rest == '-') {
			end = strtoul(rest + 1, NULL, 16);
			here = start < (uintptr_t)at + bytes && end > (uintptr_t)at;
		} else if (here && !strncmp(line, field, strlen(field))) {
			sum += strtol(line + strlen(field), NULL, 10);
		}
	}
	fclose(f);
	return sum;
}

static inline long meminfo(const char *field)
{
	FILE *f = fopen("/proc/meminfo", "re");
	char line[256];
	long v = -1;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, field, strlen(field)))
			v = strtol(line + strlen(field) + 1, NULL, 10);
	fclose(f);
	return v;
}

static inline unsigned int maps_in(const uint8_t *at, uint64_t bytes)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long start, end;
	unsigned int n = 0;
	char line[512], *rest;

	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		start = strtoul(line, &rest, 16);
		end = strtoul(rest + 1, NULL, 16);
		n += start < (uintptr_t)at + bytes && end > (uintptr_t)at;
	}
	fclose(f);
	return n;
}

#endif
