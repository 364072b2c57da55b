// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* create: an image of a raw file. */
#include <errno.h>
#include <stdlib.h>

#include "tool.h"

/* RAW, with the regions of the parent if there is one. */
static int open_raw(const char *path, struct kvmem_image *parent, struct kvmem_image **ret)
{
	struct kvmem_image_open_opts raw = KVMEM_IMAGE_OPEN_OPTS_INIT;
	struct kvmem_image_region *regions = NULL;
	int r;

	raw.flags = options.diff ? KVMEM_IMAGE_RAW_DIFF : KVMEM_IMAGE_RAW_FULL;
	if (parent) {
		regions = regions_of(parent, &raw.region_count);
		if (!regions)
			return -ENOMEM;
		raw.regions = regions;
		raw.parent = options.diff ? parent : NULL;
	}
	r = kvmem_image_open(path, &raw, ret);
	free(regions);
	return r;
}

int do_create(char **paths)
{
	struct kvmem_image *from = NULL, *parent = NULL;
	int r = options.parent ? kvmem_image_open(options.parent, NULL, &parent) : 0;

	if (!r)
		r = open_raw(paths[0], parent, &from);
	if (!r)
		r = make(&from, parent, paths[1], options.diff ? MAKE_SAME_PARENT : MAKE_BY_CONTENT,
			 0, false);
	if (r)
		failed();
	kvmem_image_close(from);
	kvmem_image_close(parent);
	return r ? 1 : 0;
}
