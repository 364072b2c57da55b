// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The parents of an image. Each is opened when something that it stores is read for the first time, so that an image
 * with two thousand of them opens as fast as one with none. It has to be the very image that the child was made from.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/internal.h"

struct name {
	char path[KI_MAX_NAME + 1];
};

static void name_of(const struct kvmem_image *image, uint32_t layer, struct name *ret)
{
	const struct ki_layer *l = &image->index.layers[layer];

	memcpy(ret->path, image->index.names + l->name, l->name_bytes);
	ret->path[l->name_bytes] = '\0';
}

/* Its index, compared with what the child knows of it. */
static int open_index(struct kvmem_image *image, uint32_t layer, struct ki_super *ret_super)
{
	const struct ki_layer *l = &image->index.layers[layer];
	struct name n;
	int fd, r;

	name_of(image, layer, &n);
	fd = openat(image->layers.dir, n.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return ki_fail(errno, "%s: its parent '%s': %m", image->path, n.path);
	r = ki_index_read_super(fd, n.path, ret_super);
	if (!r &&
	    (memcmp(ret_super->id, l->id, sizeof(l->id)) || !ki_sum_equal(ret_super->sum, l->sum)))
		r = ki_fail(ESTALE, "%s: '%s' is not the image any more that it was made on top of",
			    image->path, n.path);
	if (!r && ret_super->bytes != image->bytes)
		r = ki_fail(EBADMSG, "%s: its parent '%s' has another length", image->path, n.path);
	if (!r)
		return fd;
	close(fd);
	return r;
}

int ki_layers_know(struct kvmem_image *image)
{
	int r = 0;

	if (atomic_load_explicit(&image->layers.known, memory_order_acquire))
		return 0;
	pthread_mutex_lock(&image->layers.lock);
	if (!atomic_load_explicit(&image->layers.known, memory_order_relaxed))
		r = ki_index_read_layers(&image->index, image->path);
	if (!r)
		atomic_store_explicit(&image->layers.known, true, memory_order_release);
	pthread_mutex_unlock(&image->layers.lock);
	return r;
}

int ki_layer_index(struct kvmem_image *image, uint32_t layer)
{
	struct ki_super super;
	int r = ki_layers_know(image);

	return r ? r : open_index(image, layer, &super);
}

/* The data of an index in the folder dir, locked. */
static int open_file(int dir, const struct ki_super *super, const char *path)
{
	uint64_t bytes = super->incompat & KI_PACKED ? super->data_bytes : super->bytes;
	int fd = openat(dir, super->data_name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	int r = 0;

	if (fd < 0)
		return ki_fail(errno, "%s: its data '%s': %m", path, super->data_name);
	if (fstat(fd, &st))
		r = ki_fail(errno, "%s: its data '%s': %m", path, super->data_name);
	else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes)
		r = ki_fail(EBADMSG,
			    "%s: its data '%s' have another length than the index says: %" PRIu64,
			    path, super->data_name, bytes);
	else if (flock(fd, LOCK_SH | LOCK_NB))
		r = errno == EWOULDBLOCK
			    ? ki_fail(EBUSY, "%s: its data '%s' are locked by who deletes them",
				      path, super->data_name)
			    : ki_fail(errno, "%s: locking '%s': %m", path, super->data_name);
	if (!r)
		return fd;
	close(fd);
	return r;
}

/* The data of a layer, and its frames where they are packed. `index` is taken. One thread at a time. */
static int open_layer(struct kvmem_image *image, uint32_t layer, int dir, int index,
		      const struct ki_super *super, const char *path)
{
	struct ki_layers *l = &image->layers;
	int fd = open_file(dir, super, path), r = 0;

	if (fd < 0 || !(super->incompat & KI_PACKED)) {
		close(index);
		return fd;
	}
	r = ki_packed_open(index, fd, super, path, &l->packed[layer]);
	if (!r && !l->cache) {
		r = ki_cache_new(&l->cache);
		if (r) {
			ki_packed_close(l->packed[layer]);
			l->packed[layer] = NULL;
		}
	}
	if (!r)
		return fd;
	close(fd);
	return r;
}

/* The data are in the folder of the parent's own index. */
static int open_data(struct kvmem_image *image, uint32_t layer)
{
	struct ki_super super;
	struct ki_place place;
	struct name n;
	int index = open_index(image, layer, &super), fd;

	if (index < 0)
		return index;
	name_of(image, layer, &n);
	fd = ki_place_open(image->path, image->layers.dir, n.path, &place);
	if (fd < 0) {
		close(index);
		return fd;
	}
	fd = open_layer(image, layer, place.dir, index, &super, n.path);
	ki_place_close(&place);
	return fd;
}

int ki_layers_open(struct kvmem_image *image, int dir)
{
	const struct ki_super *s = &image->index.super;
	struct ki_layers *l = &image->layers;
	int fd, index;

	l->data = malloc(s->layers * sizeof(*l->data));
	l->packed = calloc(s->layers, sizeof(struct ki_packed *));
	l->dir = -1;
	for (uint32_t i = 0; l->data && i < s->layers; i++)
		atomic_init(&l->data[i], -1);
	if (!l->data || !l->packed)
		return ki_fail(ENOMEM, "kvmem_image_open: no memory for %" PRIu32 " layers",
			       s->layers);
	index = fcntl(image->index.fd, F_DUPFD_CLOEXEC, 0);
	if (index < 0)
		return ki_fail(errno, "kvmem_image_open: '%s': %m", image->path);
	fd = open_layer(image, s->layers - 1, dir, index, s, image->path);
	if (fd < 0)
		return fd;
	atomic_store(&l->data[s->layers - 1], fd);
	l->dir = fcntl(dir, F_DUPFD_CLOEXEC, 0);
	return l->dir < 0 ? ki_fail(errno, "kvmem_image_open: the folder of '%s': %m", image->path)
			  : 0;
}

void ki_layers_close(struct kvmem_image *image)
{
	struct ki_layers *l = &image->layers;

	for (uint32_t i = 0; l->data && i < image->index.super.layers; i++)
		if (l->data[i] >= 0)
			close(l->data[i]);
	for (uint32_t i = 0; l->packed && i < image->index.super.layers; i++)
		ki_packed_close(l->packed[i]);
	if (l->data && l->dir >= 0)
		close(l->dir);
	ki_cache_free(l->cache);
	free((void *)l->data);
	free((void *)l->packed);
}

int ki_layer_data(struct kvmem_image *image, uint32_t layer, int *ret_fd)
{
	_Atomic int *slot = &image->layers.data[layer];
	int fd = atomic_load_explicit(slot, memory_order_acquire), r;

	if (fd < 0) {
		r = ki_layers_know(image);
		if (r)
			return r;
		pthread_mutex_lock(&image->layers.lock);
		fd = atomic_load_explicit(slot, memory_order_relaxed);
		if (fd < 0)
			fd = open_data(image, layer);
		if (fd >= 0)
			atomic_store_explicit(slot, fd, memory_order_release);
		pthread_mutex_unlock(&image->layers.lock);
	}
	*ret_fd = fd;
	return fd < 0 ? fd : 0;
}
