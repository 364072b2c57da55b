/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef IMAGE_MEM_H
#define IMAGE_MEM_H

/* What the rows about images share: a folder of their own on the disk that is measured, images in it, and memory. */

#include <kvmem/image.h>
#include <kvmem/kvmem.h>
#include <kvmem/workset.h>

#include "bench.h"

#define PAGE UINT64_C(4096)
#define MIB  (UINT64_C(1) << 20)

/* A call of the library that may not fail. */
void must(int r);

/* A new folder, which is the current one until it is removed with all that is in it. */
void folder_enter(void);
void folder_leave(void);

struct kvmem_image *image_open(const char *index);
/* Of one region. */
struct kvmem_image_writer *image_create(const char *name, uint64_t bytes, uint32_t flags,
					struct kvmem_image *parent);
/* An image "image" with fill_page(n, 1) in page n of it; on the disk when this returns. */
void image_make(uint64_t bytes);
/* Its data out of the page cache. */
void image_drop(void);
/* How many bytes of a file the page cache has. */
uint64_t image_cached(const char *name);

/* The number behind `key`, a line's beginning, in a file of /proc. */
uint64_t proc_number(const char *path, const char *key);

/* A page that no other page number and version has. */
void fill_page(void *page, uint64_t number, uint32_t version);
bool is_page(const void *page, uint64_t number, uint32_t version);

struct kvmem_region *memory_create(uint64_t bytes, uint32_t backing);

/* A set with these ranges of the memory in this order. */
struct kvmem_workset *workset_make(uint64_t bytes, const struct kvmem_range *ranges,
				   uint64_t count);

#endif
