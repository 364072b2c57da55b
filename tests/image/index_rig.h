/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef INDEX_RIG_H
#define INDEX_RIG_H

/* Files of images as bytes, and an index that says something else with all its sums right. */

#include "image_rig.h"

#include <stddef.h>

#include <xxhash.h>

#include "image/format.h"

struct file {
	const char *name;
	uint8_t *bytes;
	size_t size;
};

static inline void file_get(struct file *f)
{
	int fd = open(f->name, O_RDONLY | O_CLOEXEC);
	struct stat st;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(fstat(fd, &st), 0);
	f->size = (size_t)st.st_size;
	f->bytes = malloc(f->size + 1);
	ck_assert_int_eq(pread(fd, f->bytes, f->size, 0), st.st_size);
	close(fd);
}

/* Pages of zeros are holes. */
static inline void file_put(const struct file *f, size_t size)
{
	int fd = open(f->name, O_WRONLY | O_TRUNC | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	for (size_t at = 0, n; at < size; at += n) {
		n = size - at < PAGE ? size - at : PAGE;
		if (n == PAGE && is_zero_page(f->bytes + at))
			continue;
		ck_assert_int_eq(pwrite(fd, f->bytes + at, n, (off_t)at), (ssize_t)n);
	}
	ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
	close(fd);
}

static inline void file_write_byte(const struct file *f, size_t at, uint8_t byte)
{
	int fd = open(f->name, O_WRONLY | O_CLOEXEC);

	ck_assert_int_eq(pwrite(fd, &byte, 1, (off_t)at), 1);
	close(fd);
}

/* ---- sums ---- */

static inline struct ki_sum sum_of(const void *p, size_t n)
{
	XXH128_hash_t h = XXH3_128bits(p, n);

	return (struct ki_sum){ .low = h.low64, .high = h.high64 };
}

static inline bool is_inside(const struct ki_table *t, size_t size)
{
	return t->offset <= size && t->bytes <= size - t->offset;
}

static inline void sum_table(uint8_t *file, size_t size, struct ki_table *t)
{
	if (is_inside(t, size))
		t->sum = sum_of(file + t->offset, t->bytes);
}

static inline void sum_parts(uint8_t *file, size_t size, const struct ki_table *sums,
			     const struct ki_table *table)
{
	uint64_t parts = is_inside(sums, size) ? sums->bytes / 8 : 0;

	for (uint64_t i = 0; i < parts && i * KI_PART < table->bytes; i++) {
		uint64_t at = table->offset + i * KI_PART, sum;
		uint64_t left = table->bytes - i * KI_PART;

		if (at > size || left > size - at)
			break;
		sum = XXH3_64bits(file + at, left < KI_PART ? left : KI_PART);
		memcpy(file + sums->offset + i * 8, &sum, 8);
	}
}

/* All sums as they should be, as far as they can be found. */
static inline void make_right(const struct file *f)
{
	struct ki_super *s = (void *)f->bytes;

	sum_parts(f->bytes, f->size, &s->part_table, &s->block_table);
	sum_parts(f->bytes, f->size, &s->frame_part_table, &s->frame_table);
	sum_table(f->bytes, f->size, &s->region_table);
	sum_table(f->bytes, f->size, &s->layer_table);
	sum_table(f->bytes, f->size, &s->name_table);
	sum_table(f->bytes, f->size, &s->blob_table);
	sum_table(f->bytes, f->size, &s->part_table);
	sum_table(f->bytes, f->size, &s->frame_part_table);
	s->sum = sum_of(s, offsetof(struct ki_super, sum));
}

#endif
