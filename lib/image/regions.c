// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Tables of regions: as a caller gives them, and as they are stored. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/internal.h"

int ki_regions_copy(const char *call, const struct kvmem_image_region *regions, uint32_t count,
		    struct kvmem_image_region **ret, uint64_t *ret_bytes)
{
	struct kvmem_image_region *copy;
	uint64_t at = 0;

	if (!regions || !count || count > KI_MAX_REGIONS)
		return ki_fail(EINVAL, "%s: regions: %" PRIu32 " of them; there are 1 to %u", call,
			       regions ? count : 0, KI_MAX_REGIONS);
	copy = calloc(count, sizeof(*copy));
	if (!copy)
		return ki_fail(ENOMEM, "%s: no memory for %" PRIu32 " regions", call, count);
	for (uint32_t i = 0; i < count; i++) {
		const struct kvmem_image_region *r = &regions[i];
		int err = 0;

		if (r->size != sizeof(*r) || r->reserved)
			err = ki_fail(EINVAL,
				      "%s: regions[%" PRIu32 "].size is %" PRIu32
				      ", or reserved is not 0: begin with KVMEM_IMAGE_REGION_INIT",
				      call, i, r->size);
		else if (!r->bytes || r->bytes % KI_PAGE || r->bytes > KI_MAX_BYTES - at)
			err = ki_fail(EINVAL,
				      "%s: regions[%" PRIu32 "].bytes is 0x%" PRIx64
				      ": not a non-zero multiple of 4096, or too long",
				      call, i, r->bytes);
		else if (strnlen(r->name, sizeof(r->name)) == sizeof(r->name))
			err = ki_fail(EINVAL, "%s: regions[%" PRIu32 "].name has no end", call, i);
		if (err) {
			free(copy);
			return err;
		}
		copy[i] = *r;
		copy[i].offset = at;
		/* What lies behind the end of the name is nobody's business. */
		memset(copy[i].name, 0, sizeof(copy[i].name));
		snprintf(copy[i].name, sizeof(copy[i].name), "%s", r->name);
		at += r->bytes;
	}
	*ret = copy;
	*ret_bytes = at;
	return 0;
}

int ki_regions_stored(const struct ki_index *x, struct kvmem_image_region **ret)
{
	struct kvmem_image_region *regions = calloc(x->super.regions, sizeof(*regions));

	if (!regions)
		return ki_fail(ENOMEM, "kvmem_image_open: no memory for regions");
	for (uint32_t i = 0; i < x->super.regions; i++) {
		const struct ki_region *from = &x->regions[i];
		struct kvmem_image_region *to = &regions[i];

		*to = (struct kvmem_image_region){ .size = sizeof(*to),
						   .flags = from->flags,
						   .gpa = from->gpa,
						   .bytes = from->bytes,
						   .offset = from->offset };
		memcpy(to->name, from->name, sizeof(to->name));
	}
	*ret = regions;
	return 0;
}
