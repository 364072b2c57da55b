// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * flatten, rebase, compact, pack, unpack: an image of the same content that is stored in another way, on top of another
 * parent, or as packed or raw data.
 */
#include "tool.h"

enum layout { RAW, PACKED, AS_IT_IS };
enum parent_is { NO_PARENT, ITS_OWN, THAT_OF_OPTIONS };

static int open_parent(struct kvmem_image *image, const struct kvmem_image_info *i,
		       enum parent_is which, struct kvmem_image **ret)
{
	if (which == THAT_OF_OPTIONS)
		return kvmem_image_open(options.parent, NULL, ret);
	return which == ITS_OWN && i->depth ? kvmem_image_open_parent(image, ret) : 0;
}

static int remake(char **paths, enum parent_is which, enum make_how how, enum layout layout)
{
	struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT;
	bool packed, same_name = is_same_name(paths[0], paths[1]);
	struct kvmem_image *image, *parent = NULL;
	int r = kvmem_image_open(paths[0], NULL, &image);

	if (r)
		return failed();
	kvmem_image_get_info(image, &i);
	packed = layout == AS_IT_IS ? i.flags & KVMEM_IMAGE_PACKED : layout == PACKED;
	r = open_parent(image, &i, which, &parent);
	if (!r)
		r = make(&image, parent, paths[1], how, packed ? KVMEM_IMAGE_PACKED : 0, same_name);
	if (r)
		failed();
	kvmem_image_close(image);
	kvmem_image_close(parent);
	return r ? 1 : 0;
}

int do_flatten(char **paths)
{
	return remake(paths, NO_PARENT, MAKE_BY_CONTENT, AS_IT_IS);
}

int do_rebase(char **paths)
{
	return remake(paths, options.flat ? NO_PARENT : THAT_OF_OPTIONS, MAKE_BY_CONTENT, AS_IT_IS);
}

int do_compact(char **paths)
{
	return remake(paths, ITS_OWN, MAKE_SAME_PARENT, AS_IT_IS);
}

int do_pack(char **paths)
{
	return remake(paths, ITS_OWN, MAKE_EXACTLY, PACKED);
}

int do_unpack(char **paths)
{
	return remake(paths, ITS_OWN, MAKE_EXACTLY, RAW);
}
