// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A new image of what another one has. It appears when it is complete: the library's writer sees to that. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tool.h"

#define SUFFIX ".kvmem" /* of an index */

struct copy {
	struct kvmem_image *from, *parent;
	struct kvmem_image_writer *to;
	enum make_how how;
	uint64_t bytes; /* of the image */
};

static int read_error(int r)
{
	return r < 0 ? r : 0;
}

/* Zeros need a word where the parent has something else. */
static int copy_zeros(const struct copy *c, uint64_t offset, uint64_t bytes)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	uint64_t end = offset + bytes;
	int r = 0;

	for (uint64_t at = offset, n; !r && c->parent && at < end; at += n) {
		r = read_error(kvmem_image_next_run(c->parent, at, &run));
		if (r)
			break;
		n = run.offset + run.bytes < end ? run.offset + run.bytes - at : end - at;
		if (run.kind != KVMEM_IMAGE_ZERO)
			r = kvmem_image_write_zero(c->to, at, n);
	}
	return r;
}

/* At most STEP bytes. With a parent, those that are not as it has them. */
static int copy_content(const struct copy *c, uint64_t offset, uint64_t bytes)
{
	static char buf[STEP], old[STEP];
	int r = kvmem_image_read(c->from, offset, buf, bytes);

	if (r || !c->parent || c->how == MAKE_EXACTLY)
		return r ? r : kvmem_image_write(c->to, offset, buf, bytes);
	r = kvmem_image_read(c->parent, offset, old, bytes);
	for (uint64_t p = 0, n; !r && p < bytes; p += n) {
		bool same = !memcmp(buf + p, old + p, PAGE);

		for (n = PAGE; p + n < bytes; n += PAGE)
			if (!memcmp(buf + p + n, old + p + n, PAGE) != same)
				break;
		if (!same)
			r = kvmem_image_write(c->to, offset + p, buf + p, n);
	}
	return r;
}

/* An index may have pages of an older image that its parent has not, or not any more. */
static int copy_reverted(const struct copy *c, const struct kvmem_image_run *run)
{
	struct kvmem_image_run theirs = KVMEM_IMAGE_RUN_INIT;
	uint64_t end = run->offset + run->bytes;
	int r = 0;

	for (uint64_t at = run->offset, n; !r && at < end; at += n) {
		r = read_error(kvmem_image_next_run(c->parent, at, &theirs));
		if (r)
			break;
		n = theirs.offset + theirs.bytes < end ? theirs.offset + theirs.bytes - at
						       : end - at;
		n = n < STEP ? n : STEP;
		if (theirs.kind == KVMEM_IMAGE_ZERO || theirs.layer != run->layer)
			r = copy_content(c, at, n);
	}
	return r;
}

static int copy_run(const struct copy *c, const struct kvmem_image_run *run)
{
	int r = 0;

	if (run->kind == KVMEM_IMAGE_ZERO)
		return copy_zeros(c, run->offset, run->bytes);
	if (run->kind == KVMEM_IMAGE_PARENT && c->how != MAKE_BY_CONTENT)
		return c->parent ? copy_reverted(c, run) : 0;
	for (uint64_t p = 0, n; !r && p < run->bytes; p += n) {
		n = run->bytes - p < STEP ? run->bytes - p : STEP;
		r = copy_content(c, run->offset + p, n);
		progress("copy", run->offset + p + n, c->bytes);
	}
	return r;
}

static int copy_memory(const struct copy *c)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	int r = 0;

	for (uint64_t at = 0; !r && at < c->bytes; at = run.offset + run.bytes) {
		r = read_error(kvmem_image_next_run(c->from, at, &run));
		if (!r)
			r = copy_run(c, &run);
	}
	progress_end();
	return r;
}

static int copy_blobs(const struct copy *c, uint32_t count)
{
	int64_t r = 0;

	for (uint32_t n = 0; r >= 0 && n < count; n++) {
		const char *name = kvmem_image_blob_name(c->from, n);
		int64_t bytes = kvmem_image_read_blob(c->from, name, NULL, 0);
		void *buf = malloc((size_t)bytes + 1);

		if (!buf)
			r = kvmem_error_set(ENOMEM, "no memory for blob '%s'", name);
		else
			r = kvmem_image_read_blob(c->from, name, buf, (uint64_t)bytes);
		if (r >= 0)
			r = kvmem_image_write_blob(c->to, name, buf, (uint64_t)bytes);
		free(buf);
	}
	return (int)(r < 0 ? r : 0);
}

struct kvmem_image_region *regions_of(struct kvmem_image *image, uint32_t *ret_count)
{
	struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT;
	struct kvmem_image_region *r;

	kvmem_image_get_info(image, &i);
	r = calloc(i.regions, sizeof(*r));
	if (!r)
		kvmem_error_set(ENOMEM, "no memory for %" PRIu32 " regions", i.regions);
	for (uint32_t n = 0; r && n < i.regions; n++) {
		r[n].size = sizeof(*r);
		kvmem_image_get_region(image, n, &r[n]);
	}
	*ret_count = i.regions;
	return r;
}

static int show_packing(void *arg, const struct kvmem_image_progress *p)
{
	(void)arg;
	progress("pack", p->done, p->total);
	return 0;
}

bool is_same_name(const char *index, const char *path)
{
	struct stat before, other, after;
	char name[4096];

	if (snprintf(name, sizeof(name), "%s" SUFFIX, path) >= (int)sizeof(name))
		return false;
	/* Somebody may replace it just now: then the two are not of one moment. */
	do {
		if (stat(index, &before) || stat(name, &other) || stat(index, &after))
			return false;
	} while (before.st_ino != after.st_ino || before.st_dev != after.st_dev);
	return other.st_ino == after.st_ino && other.st_dev == after.st_dev;
}

static int begin(struct copy *c, const char *path, uint32_t flags, bool replaces_from)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region *regions = regions_of(c->from, &o.region_count);
	int r;

	if (!regions)
		return -ENOMEM;
	o.flags = flags | (options.replace ? KVMEM_IMAGE_REPLACE : 0) |
		  (options.no_sync ? KVMEM_IMAGE_NO_SYNC : 0);
	o.regions = regions;
	o.parent = c->parent;
	if (options.replace && replaces_from)
		o.replaces = c->from;
	if (flags & KVMEM_IMAGE_PACKED)
		o.progress = show_packing;
	r = kvmem_image_create(path, &o, &c->to);
	free(regions);
	return r;
}

int make(struct kvmem_image **from, struct kvmem_image *parent, const char *path, enum make_how how,
	 uint32_t flags, bool replaces_from)
{
	struct copy c = { .from = *from, .parent = parent, .how = how };
	struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT;
	int r = begin(&c, path, flags, replaces_from);

	if (r)
		return r;
	kvmem_image_get_info(c.from, &i);
	c.bytes = i.bytes;
	r = copy_memory(&c);
	if (!r)
		r = copy_blobs(&c, i.blobs);
	if (r) {
		kvmem_image_abort(c.to);
		return r;
	}
	kvmem_image_close(*from);
	*from = NULL;
	r = kvmem_image_commit(c.to, NULL);
	progress_end();
	return r;
}
