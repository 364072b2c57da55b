// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Packed data in a build without zstd: refused when an image is opened or made, so that the rest is never called. */
#include <errno.h>
#include <unistd.h>

#include "image/internal.h"

#define NO_ZSTD "this libkvmem-image was built without zstd"

int ki_packed_open(int index, int data, const struct ki_super *super, const char *path,
		   struct ki_packed **ret)
{
	(void)data;
	(void)super;
	(void)ret;
	close(index);
	return ki_fail(EOPNOTSUPP, "%s: its data are packed, and " NO_ZSTD, path);
}

void ki_packed_close(struct ki_packed *p)
{
	(void)p;
}

int ki_packed_frame(const struct ki_packed *p, const char *path, uint64_t chunk,
		    struct ki_frame *ret)
{
	(void)p;
	(void)chunk;
	(void)ret;
	return ki_fail(EOPNOTSUPP, "%s: " NO_ZSTD, path);
}

int ki_cache_new(struct ki_cache **ret)
{
	(void)ret;
	return ki_fail(EOPNOTSUPP, NO_ZSTD);
}

void ki_cache_free(struct ki_cache *cache)
{
	(void)cache;
}

int ki_packed_read(struct ki_cache *cache, const struct ki_packed *p, const char *path,
		   uint32_t layer, uint64_t page, uint64_t count, char *buf)
{
	(void)cache;
	(void)p;
	(void)layer;
	(void)page;
	(void)count;
	(void)buf;
	return ki_fail(EOPNOTSUPP, "%s: " NO_ZSTD, path);
}

int ki_pack_check(void)
{
	return ki_fail(EOPNOTSUPP, "kvmem_image_create: KVMEM_IMAGE_PACKED: " NO_ZSTD);
}

int ki_pack(struct kvmem_image_writer *w)
{
	(void)w;
	return ki_pack_check();
}
