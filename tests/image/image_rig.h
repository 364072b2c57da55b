/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef IMAGE_RIG_H
#define IMAGE_RIG_H

/* A model of what an image has: the content itself. */

#include "on_top.h"

#include <dirent.h>
#include <errno.h>

#include <kvmem/image.h>

static inline unsigned int files_here(void)
{
	unsigned int n = 0;
	DIR *d = opendir(".");

	ck_assert_ptr_nonnull(d);
	for (const struct dirent *e; (e = readdir(d)) != NULL;)
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n;
}

/* Pages that tell where they are, and of which change. */
static inline void fill_page(uint8_t *page, uint64_t number, unsigned int change)
{
	uint64_t *word = (uint64_t *)page;

	for (unsigned int i = 0; i < PAGE / 8; i++)
		word[i] = (number << 20 | i) * 0x9e3779b97f4a7c15ull ^ change;
}

static inline bool is_zero_page(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE - 1);
}

/* `bytes` of which some pages are data and some zero. */
static inline uint8_t *model_new(uint64_t bytes, unsigned long long *seed)
{
	uint8_t *m = calloc(1, bytes);

	ck_assert_ptr_nonnull(m);
	for (uint64_t p = 0; p < bytes / PAGE; p++)
		if (harness_random(seed) % 3)
			fill_page(m + p * PAGE, p, 1);
	return m;
}

static inline struct kvmem_image_region region_of(uint64_t bytes, uint64_t gpa, const char *name)
{
	struct kvmem_image_region r = KVMEM_IMAGE_REGION_INIT;

	r.bytes = bytes;
	r.gpa = gpa;
	snprintf(r.name, sizeof(r.name), "%s", name);
	return r;
}

static inline struct kvmem_image_writer *create(const char *path, struct kvmem_image *parent,
						uint64_t bytes, uint32_t flags)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(bytes, 0, "ram");
	struct kvmem_image_writer *w;

	o.flags = flags;
	o.parent = parent;
	if (!parent) {
		o.regions = &one;
		o.region_count = 1;
	}
	must(kvmem_image_create(path, &o, &w));
	return w;
}

/* A full image of it. */
static inline void save_model(const char *path, const uint8_t *m, uint64_t bytes, uint32_t flags)
{
	struct kvmem_image_writer *w = create(path, NULL, bytes, flags);

	must(kvmem_image_write(w, 0, m, bytes));
	must(kvmem_image_commit(w, NULL));
}

static inline struct kvmem_image *open_image(const char *path)
{
	struct kvmem_image *image;

	must(kvmem_image_open(path, NULL, &image));
	return image;
}

static inline void check_model(struct kvmem_image *image, const uint8_t *m, uint64_t bytes)
{
	uint8_t *buf = malloc(bytes);

	memset(buf, 0xaa, bytes);
	must(kvmem_image_read(image, 0, buf, bytes));
	for (uint64_t p = 0; p < bytes / PAGE; p++)
		if (memcmp(buf + p * PAGE, m + p * PAGE, PAGE))
			ck_abort_msg("page %lu is another one", (unsigned long)p);
	free(buf);
}

#endif
