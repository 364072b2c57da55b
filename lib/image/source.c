// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The content of one region of an image, for populate and pagers; and its data, for clones. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

#include "image/internal.h"

/*
 * A fault, or a range of a working set, asks for a page or a few: the index is not read for many more. Who reads on
 * asks again.
 */
#define MOST_IN_AN_EXTENT (128u << 10)

struct source {
	struct kvmem_image *image;
	const struct kvmem_image_region *region;
};

static int source_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct source *s = arg;

	return kvmem_image_read(s->image, s->region->offset + offset, buf, bytes);
}

static int source_extent(void *arg, uint64_t offset, struct kvmem_extent *ret)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	struct source *s = arg;
	uint64_t end = s->region->offset + s->region->bytes;
	int r = ki_image_run(s->image, s->region->offset + offset, MOST_IN_AN_EXTENT, &run);

	if (r)
		return r;
	ret->kind = run.kind == KVMEM_IMAGE_ZERO ? KVMEM_EXTENT_ZERO : KVMEM_EXTENT_DATA;
	ret->offset = run.offset - s->region->offset;
	ret->bytes = ki_min(run.bytes, end - run.offset);
	return 0;
}

static void source_close(void *arg)
{
	struct source *s = arg;

	atomic_fetch_sub(&s->image->users, 1);
	free(s);
}

int kvmem_image_source(struct kvmem_image *image, uint32_t index, struct kvmem_source **ret_source)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct source *s;
	int r;

	if (!image || !ret_source)
		return ki_fail(EINVAL, "kvmem_image_source: %s is NULL",
			       image ? "ret_source" : "image");
	if (index >= image->region_count)
		return ki_fail(ERANGE,
			       "kvmem_image_source: index %" PRIu32 ": there are %" PRIu32
			       " regions",
			       index, image->region_count);
	s = malloc(sizeof(*s));
	if (!s)
		return ki_fail(ENOMEM, "kvmem_image_source: no memory");
	s->image = image;
	s->region = &image->regions[index];
	ops.read = source_read;
	ops.extent = source_extent;
	ops.close = source_close;
	r = kvmem_source_callback(&ops, s, s->region->bytes, ret_source);
	if (r)
		free(s);
	else
		atomic_fetch_add(&image->users, 1);
	return r;
}

/* ---- clones ---- */

int kvmem_image_template(struct kvmem_image *image, int *ret_fd)
{
	const struct ki_super *s;
	int fd;

	if (!image || !ret_fd)
		return ki_fail(EINVAL, "kvmem_image_template: %s is NULL",
			       image ? "ret_fd" : "image");
	s = &image->index.super;
	if (ki_is_raw(image) ? image->parent != NULL : s->pages_parent || s->incompat & KI_PACKED)
		return ki_fail(
			EOPNOTSUPP,
			"kvmem_image_template: '%s' %s: fill a memfd from it, and clone that",
			image->path,
			ki_is_raw(image) || s->pages_parent ? "has pages in its parents"
							    : "is packed");
	fd = ki_is_raw(image) ? image->raw_fd : atomic_load(&image->layers.data[s->layers - 1]);
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return ki_fail(errno, "kvmem_image_template: '%s': %m", image->path);
	*ret_fd = fd;
	return 0;
}
