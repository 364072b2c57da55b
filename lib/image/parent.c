// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The parent of an image, as an image of its own. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "image/internal.h"

/* The path of a layer's index, also after the program has changed its working directory. */
static int path_of(const struct kvmem_image *image, uint32_t layer, char *ret, size_t room)
{
	const struct ki_layer *l = &image->index.layers[layer];
	const char *name = image->index.names + l->name;
	char folder[KI_MAX_NAME + 1], proc[40];
	int bytes = (int)l->name_bytes;
	ssize_t got;

	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", image->layers.dir);
	got = readlink(proc, folder, sizeof(folder));
	if (got < 0)
		return ki_fail(errno, "kvmem_image_open_parent: the folder of '%s': %m",
			       image->path);
	got = *name == '/' ? snprintf(ret, room, "%.*s", bytes, name)
			   : snprintf(ret, room, "%.*s/%.*s", (int)got, folder, bytes, name);
	return (size_t)got < room
		       ? 0
		       : ki_fail(ENAMETOOLONG,
				 "kvmem_image_open_parent: the path of the parent of '%s'",
				 image->path);
}

int kvmem_image_open_parent(struct kvmem_image *image, struct kvmem_image **ret_parent)
{
	char path[2 * (KI_MAX_NAME + 1)];
	struct kvmem_image *parent;
	uint32_t layer;
	int r;

	if (!image || !ret_parent)
		return ki_fail(EINVAL, "kvmem_image_open_parent: %s is NULL",
			       image ? "ret_parent" : "image");
	if (ki_is_raw(image) || image->index.super.layers < 2)
		return ki_fail(ENOENT, "kvmem_image_open_parent: '%s' names no parent",
			       image->path);
	layer = image->index.super.layers - 2;
	r = ki_layers_know(image);
	if (!r)
		r = path_of(image, layer, path, sizeof(path));
	if (!r)
		r = kvmem_image_open(path, NULL, &parent);
	if (r)
		return ki_fail_as("kvmem_image_open_parent", r);
	if (!ki_sum_equal(parent->index.super.sum, image->index.layers[layer].sum)) {
		kvmem_image_close(parent);
		return ki_fail(ESTALE,
			       "%s: '%s' is not the image any more that it was made on top of",
			       image->path, path);
	}
	*ret_parent = parent;
	return 0;
}
