// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* An image that is open, and its blocks, looked up when something of their span is asked for. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/internal.h"

#define RAW   (KVMEM_IMAGE_RAW_FULL | KVMEM_IMAGE_RAW_DIFF)
#define TRIES 100u /* as often as it may be replaced while it is opened */

const struct ki_entry ki_zero_block[KI_BLOCK_PAGES];

/* ---- open and close ---- */

static int make_blocks(struct kvmem_image *image)
{
	image->blocks = calloc(ki_spans(image->bytes), sizeof(*image->blocks));
	return image->blocks ? 0 : ki_fail(ENOMEM, "kvmem_image_open: no memory for blocks");
}

/* An index that was replaced after it was opened may have lost its data: then the new one is to be had. */
static bool was_replaced(const struct ki_place *place, int fd)
{
	struct stat ours, now;

	return !fstat(fd, &ours) && !fstatat(place->dir, place->name, &now, 0) &&
	       (ours.st_dev != now.st_dev || ours.st_ino != now.st_ino);
}

static int open_index(struct kvmem_image *image, bool *ret_again)
{
	struct ki_place place;
	int fd, r = ki_place_open("kvmem_image_open", AT_FDCWD, image->path, &place);

	*ret_again = false;
	if (r)
		return r;
	fd = openat(place.dir, place.name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) {
		r = ki_fail(errno, "kvmem_image_open: '%s': %m", image->path);
		image->index.fd = -1;
	} else {
		r = ki_index_read(fd, image->path, &image->index);
	}
	if (!r) {
		image->bytes = image->index.super.bytes;
		image->region_count = image->index.super.regions;
		r = ki_regions_stored(&image->index, &image->regions);
		if (!r)
			r = make_blocks(image);
		if (!r)
			r = ki_layers_open(image, place.dir);
		*ret_again = r && was_replaced(&place, fd);
	} else {
		image->index = (struct ki_index){ .fd = -1 };
	}
	ki_place_close(&place);
	return r;
}

static void destroy(struct kvmem_image *image)
{
	if (image->index.fd >= 0) {
		ki_layers_close(image);
		for (uint64_t i = 0; image->blocks && i < ki_spans(image->bytes); i++)
			if (image->blocks[i] != ki_zero_block)
				free((void *)image->blocks[i]);
		ki_index_close(&image->index);
	}
	if (image->raw_fd >= 0)
		close(image->raw_fd);
	if (image->parent)
		atomic_fetch_sub(&image->parent->users, 1);
	pthread_mutex_destroy(&image->layers.lock);
	free((void *)image->blocks);
	free(image->regions);
	free(image->path);
	free(image);
}

static int check_opts(const struct kvmem_image_open_opts *o)
{
	if (o->flags & ~RAW || o->flags == RAW)
		return ki_fail(EINVAL,
			       "kvmem_image_open: flags 0x%" PRIx32
			       ": KVMEM_IMAGE_RAW_FULL, KVMEM_IMAGE_RAW_DIFF or none",
			       o->flags);
	if (o->flags != KVMEM_IMAGE_RAW_DIFF ? o->parent != NULL : !o->parent)
		return ki_fail(EINVAL, "kvmem_image_open: parent goes with KVMEM_IMAGE_RAW_DIFF, "
				       "and with it only");
	if (!o->flags && (o->regions || o->region_count))
		return ki_fail(EINVAL,
			       "kvmem_image_open: regions are those of the index: they are given "
			       "for raw files only");
	return 0;
}

static int open_one(const char *path, const struct kvmem_image_open_opts *o,
		    struct kvmem_image **ret, bool *ret_again)
{
	struct kvmem_image *image = calloc(1, sizeof(*image));
	int r;

	*ret_again = false;
	if (!image)
		return ki_fail(ENOMEM, "kvmem_image_open: no memory");
	image->raw_fd = image->index.fd = -1;
	image->flags = o->flags;
	pthread_mutex_init(&image->layers.lock, NULL);
	image->path = strdup(path);
	if (!image->path)
		r = ki_fail(ENOMEM, "kvmem_image_open: no memory");
	else
		r = o->flags ? ki_raw_open(path, o, image) : open_index(image, ret_again);
	if (r)
		destroy(image);
	else
		*ret = image;
	return r;
}

int kvmem_image_open(const char *path, const struct kvmem_image_open_opts *opts,
		     struct kvmem_image **ret_image)
{
	struct kvmem_image_open_opts o = KVMEM_IMAGE_OPEN_OPTS_INIT;
	bool again = true;
	int r;

	if (!path || !ret_image)
		return ki_fail(EINVAL, "kvmem_image_open: %s is NULL", path ? "ret_image" : "path");
	r = kvmem_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_image_open_opts");
	if (!r)
		r = check_opts(&o);
	if (r)
		return r;
	for (unsigned int tries = 0; again && tries < TRIES; tries++)
		r = open_one(path, &o, ret_image, &again);
	return r;
}

int kvmem_image_close(struct kvmem_image *image)
{
	uint32_t users = image ? atomic_load(&image->users) : 0;

	if (users)
		return ki_fail(EBUSY,
			       "kvmem_image_close: '%s' is in use by %" PRIu32
			       " sources, writers or images on top of it",
			       image->path, users);
	if (image)
		destroy(image);
	return 0;
}

/* ---- blocks ---- */

static int read_block(struct kvmem_image *image, const struct ki_block *b, uint64_t span,
		      struct ki_entry *ret)
{
	bool own = b->layer == image->index.super.layers - 1;
	int fd = own ? image->index.fd : ki_layer_index(image, b->layer), r;

	if (fd < 0)
		return fd;
	r = ki_read_at(fd, (uint64_t)b->number * KI_PAGE, ret, KI_PAGE, image->path);
	if (!own)
		close(fd);
	if (r)
		return r;
	if (ki_sum64(ret, KI_PAGE) != b->sum)
		return ki_fail(EBADMSG, "%s: the index is damaged: block %" PRIu64, image->path,
			       span);
	for (unsigned int i = 0; i < KI_BLOCK_PAGES; i++)
		if (ret[i].place > b->layer + 1)
			return ki_fail(EBADMSG,
				       "%s: the index is damaged: block %" PRIu64
				       " knows layers that came later",
				       image->path, span);
	return 0;
}

static int load_block(struct kvmem_image *image, uint64_t span, struct ki_entry **ret)
{
	struct ki_block b;
	struct ki_entry *e;
	int r = ki_index_block(&image->index, span, &b);

	if (r)
		return r;
	if (b.layer == KI_NO_LAYER) {
		*ret = (struct ki_entry *)(uintptr_t)ki_zero_block;
		return 0;
	}
	e = malloc(KI_PAGE);
	if (!e)
		return ki_fail(ENOMEM, "%s: no memory for a block of its index", image->path);
	r = read_block(image, &b, span, e);
	if (r)
		free(e);
	else
		*ret = e;
	return r;
}

int ki_image_block(struct kvmem_image *image, uint64_t span, const struct ki_entry **ret)
{
	struct ki_entry *_Atomic *slot = &image->blocks[span];
	struct ki_entry *e = atomic_load_explicit(slot, memory_order_acquire), *old = NULL;
	int r;

	if (!e) {
		r = load_block(image, span, &e);
		if (r)
			return r;
		if (!atomic_compare_exchange_strong(slot, &old, e)) {
			if (e != ki_zero_block)
				free(e); /* another thread was first */
			e = old;
		}
	}
	*ret = e;
	return 0;
}

/* ---- what it is ---- */

int kvmem_image_get_info(const struct kvmem_image *image, struct kvmem_image_info *ret_info)
{
	struct kvmem_image_info i = { .size = sizeof(i) };
	int r;

	if (!image)
		return ki_fail(EINVAL, "kvmem_image_get_info: image is NULL");
	r = kvmem_result_check(ret_info, sizeof(i), "kvmem_image_info");
	if (r)
		return r;
	i.bytes = image->bytes;
	i.regions = image->region_count;
	i.flags = image->flags;
	if (!ki_is_raw(image)) {
		const struct ki_super *s = &image->index.super;

		i.flags |= s->flags & KI_FLAG_DIFF ? KVMEM_IMAGE_DIFF : 0;
		i.flags |= s->incompat & KI_PACKED ? KVMEM_IMAGE_PACKED : 0;
		i.bytes_packed = s->incompat & KI_PACKED ? s->data_bytes : 0;
		memcpy(i.id.bytes, s->id, sizeof(s->id));
		memcpy(i.parent.bytes, s->parent, sizeof(s->parent));
		i.bytes_data = s->pages_data << KI_PAGE_SHIFT;
		i.bytes_parent = s->pages_parent << KI_PAGE_SHIFT;
		i.bytes_zero = i.bytes - i.bytes_data - i.bytes_parent;
		i.created_ns = s->created_ns;
		i.blobs = s->blobs;
		i.depth = s->layers - 1;
	}
	kvmem_result_copy(ret_info, &i, sizeof(i));
	return 0;
}

int kvmem_image_get_region(const struct kvmem_image *image, uint32_t index,
			   struct kvmem_image_region *ret_region)
{
	int r;

	if (!image)
		return ki_fail(EINVAL, "kvmem_image_get_region: image is NULL");
	if (index >= image->region_count)
		return ki_fail(ERANGE,
			       "kvmem_image_get_region: index %" PRIu32 ": there are %" PRIu32
			       " regions",
			       index, image->region_count);
	r = kvmem_result_check(ret_region, sizeof(*ret_region), "kvmem_image_region");
	if (!r)
		kvmem_result_copy(ret_region, &image->regions[index], sizeof(*ret_region));
	return r;
}

const char *kvmem_image_blob_name(const struct kvmem_image *image, uint32_t index)
{
	if (!image || ki_is_raw(image) || index >= image->index.super.blobs)
		return NULL;
	return image->index.blobs[index].name;
}

static const struct ki_blob *find_blob(const struct kvmem_image *image, const char *name)
{
	for (uint32_t i = 0; !ki_is_raw(image) && i < image->index.super.blobs; i++)
		if (!strcmp(image->index.blobs[i].name, name))
			return &image->index.blobs[i];
	return NULL;
}

int64_t kvmem_image_read_blob(const struct kvmem_image *image, const char *name, void *buf,
			      uint64_t bytes)
{
	const struct ki_blob *b;
	void *all;
	int r;

	if (!image || !name || (!buf && bytes))
		return ki_fail(EINVAL, "kvmem_image_read_blob: %s is NULL",
			       !image  ? "image"
			       : !name ? "name"
				       : "buf");
	b = find_blob(image, name);
	if (!b)
		return ki_fail(ENOENT, "kvmem_image_read_blob: '%s' has no blob '%s'", image->path,
			       name);
	if (!buf)
		return (int64_t)b->content.bytes;
	all = malloc(b->content.bytes + 1);
	if (!all)
		return ki_fail(ENOMEM, "kvmem_image_read_blob: no memory");
	r = ki_read_at(image->index.fd, b->content.offset, all, b->content.bytes, image->path);
	if (!r && !ki_sum_equal(ki_sum(all, b->content.bytes), b->content.sum))
		r = ki_fail(EBADMSG, "%s: blob '%s' is damaged", image->path, name);
	if (!r)
		memcpy(buf, all, ki_min(bytes, b->content.bytes));
	free(all);
	return r ? r : (int64_t)b->content.bytes;
}
