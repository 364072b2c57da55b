// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* info: what images are. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tool.h"

static void print_id(const struct kvmem_image_id *id)
{
	for (unsigned int i = 0; i < sizeof(id->bytes); i++)
		printf("%02x", id->bytes[i]);
}

static bool has_parent(const struct kvmem_image_info *i)
{
	static const struct kvmem_image_id none;

	return memcmp(&i->parent, &none, sizeof(none)) != 0;
}

static void info_json(struct kvmem_image *image, const char *path, const struct kvmem_image_info *i)
{
	struct kvmem_image_region r = KVMEM_IMAGE_REGION_INIT;

	printf("{\"path\": ");
	print_json(path);
	printf(", \"id\": \"");
	print_id(&i->id);
	printf("\", \"parent\": ");
	if (has_parent(i)) {
		putchar('"');
		print_id(&i->parent);
		putchar('"');
	} else {
		printf("null");
	}
	printf(", \"depth\": %" PRIu32 ", \"bytes\": %" PRIu64 ", \"data\": %" PRIu64
	       ", \"parents\": %" PRIu64 ", \"zero\": %" PRIu64 ", \"created_ns\": %" PRIu64
	       ", \"packed\": ",
	       i->depth, i->bytes, i->bytes_data, i->bytes_parent, i->bytes_zero, i->created_ns);
	if (i->flags & KVMEM_IMAGE_PACKED)
		printf("%" PRIu64, i->bytes_packed);
	else
		printf("null");
	printf(", \"regions\": [");
	for (uint32_t n = 0; !kvmem_image_get_region(image, n, &r) && n < i->regions; n++) {
		printf("%s{\"name\": ", n ? ", " : "");
		print_json(r.name);
		printf(", \"offset\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"flags\": %" PRIu32
		       ", \"gpa\": ",
		       r.offset, r.bytes, r.flags);
		if (r.gpa == UINT64_MAX)
			printf("null}");
		else
			printf("%" PRIu64 "}", r.gpa);
	}
	printf("], \"blobs\": [");
	for (uint32_t n = 0; n < i->blobs; n++) {
		const char *name = kvmem_image_blob_name(image, n);

		printf("%s{\"name\": ", n ? ", " : "");
		print_json(name);
		printf(", \"bytes\": %" PRId64 "}", kvmem_image_read_blob(image, name, NULL, 0));
	}
	printf("]}\n");
}

static void info_text(struct kvmem_image *image, const char *path, const struct kvmem_image_info *i)
{
	struct kvmem_image_region r = KVMEM_IMAGE_REGION_INIT;

	print_text(stdout, path);
	printf("\n  id      ");
	print_id(&i->id);
	if (has_parent(i)) {
		printf("\n  parent  ");
		print_id(&i->parent);
		printf("  (%" PRIu32 " in all)", i->depth);
	}
	printf("\n  bytes   %" PRIu64 ": %" PRIu64 " stored here, %" PRIu64 " in parents, %" PRIu64
	       " zero\n",
	       i->bytes, i->bytes_data, i->bytes_parent, i->bytes_zero);
	if (i->flags & KVMEM_IMAGE_PACKED)
		printf("  packed  into %" PRIu64 "\n", i->bytes_packed);
	for (uint32_t n = 0; n < i->regions && !kvmem_image_get_region(image, n, &r); n++) {
		printf("  region  %" PRIu32 " '", n);
		print_text(stdout, r.name);
		printf("': %" PRIu64 " bytes at offset %" PRIu64, r.bytes, r.offset);
		if (r.gpa != UINT64_MAX)
			printf(", guest address 0x%" PRIx64, r.gpa);
		putchar('\n');
	}
	for (uint32_t n = 0; n < i->blobs; n++) {
		const char *name = kvmem_image_blob_name(image, n);

		printf("  blob    '");
		print_text(stdout, name);
		printf("': %" PRId64 " bytes\n", kvmem_image_read_blob(image, name, NULL, 0));
	}
}

int do_info(char **paths)
{
	int ret = 0;

	for (; *paths; paths++) {
		struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT;
		struct kvmem_image *image;

		if (kvmem_image_open(*paths, NULL, &image)) {
			ret = failed();
			continue;
		}
		kvmem_image_get_info(image, &i);
		if (options.json)
			info_json(image, *paths, &i);
		else
			info_text(image, *paths, &i);
		kvmem_image_close(image);
	}
	return ret;
}
