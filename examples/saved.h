/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* A guest's memory in an image, in a folder of its own, and a pager that restores it. The first word of each page is
 * the page's number. */
#ifndef SAVED_H
#define SAVED_H

#include <kvmem/image.h>
#include <unistd.h>

#include "example.h"

#define BASE_PAGE UINT64_C(4096)
#define PAGES	  UINT64_C(4096)

static inline uint64_t *word_of(struct kvmem_region *ram, uint64_t page)
{
	return (uint64_t *)kvmem_region_base(ram) + page * BASE_PAGE / sizeof(uint64_t);
}

static inline struct kvmem_region *make_ram(void)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .needs = KVMEM_WANT_PAGING };
	struct kvmem_region *ram;

	o.bytes = PAGES * BASE_PAGE;
	if (kvmem_region_create(NULL, &o, &ram) == -EOPNOTSUPP) {
		fprintf(stderr, "nothing can be paged here: %s\n", kvmem_error_detail());
		exit(EXIT_SKIP);
	}
	return ram;
}

/* A guest that has run: content is in all pages. */
static inline struct kvmem_region *make_full_ram(void)
{
	struct kvmem_region *ram = make_ram();

	for (uint64_t page = 0; page < PAGES; page++)
		*word_of(ram, page) = page;
	return ram;
}

static char saved_folder[] = "/tmp/kvmem-saved-XXXXXX";
static uint64_t saved_ns; /* how long the save took */

static inline struct kvmem_image *save_ram(void)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region at = KVMEM_IMAGE_REGION_INIT;
	struct kvmem_region *ram = make_full_ram();
	struct kvmem_image_writer *writer;
	struct kvmem_image *image;

	if (!mkdtemp(saved_folder) || chdir(saved_folder))
		exit(EXIT_FAILURE);
	at.bytes = PAGES * BASE_PAGE;
	o.regions = &at;
	o.region_count = 1;
	saved_ns = now_ns();
	must(kvmem_image_create("guest", &o, &writer), "image");
	must(kvmem_image_save(writer, &ram, 1, NULL, NULL, NULL), "save");
	must(kvmem_image_write_blob(writer, "devices", "their state", 11), "blob");
	must(kvmem_image_commit(writer, NULL), "commit");
	saved_ns = now_ns() - saved_ns;
	must(kvmem_region_free(ram), "free");
	must(kvmem_image_open("guest.kvmem", NULL, &image), "open");
	return image;
}

/* A pager that tells who touched what: neighbours are not brought in unasked. */
static inline struct kvmem_pager *page_ram(struct kvmem_region *ram, struct kvmem_image *image)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_source *source;
	struct kvmem_pager *pager;

	o.fault_around = BASE_PAGE;
	o.trace_entries = 4096;
	must(kvmem_image_source(image, 0, &source), "source");
	must(kvmem_pager_create(&o, &pager), "pager");
	must(kvmem_pager_add(pager, ram, source, 0, 0), "add");
	must(kvmem_pager_start(pager), "start");
	return pager;
}

static inline void leave_folder(void)
{
	const char *names[] = { "guest", "guest.kvmem", "guest.set", "live", "live.kvmem" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unlink(names[i]);
	if (chdir("/") || rmdir(saved_folder))
		perror(saved_folder);
}

#endif
