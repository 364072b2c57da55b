/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef DIRTY_GUEST_H
#define DIRTY_GUEST_H

/* A guest whose memory is real and whose KVM, with its log, is one in memory. */

#include "image_rig.h"

#include <sys/mman.h>

#include "unit/fake_rings.h"

#define PAGES (uint64_t) FK_SLOT_PAGES
#define BYTES (PAGES * PAGE)

static struct kvmem_dirty *dirty;
static struct kvmem_batch *batch;
static struct kvmem_region *ram; /* fk.a, with memory */
static uint8_t *base, *model;	 /* of the image that a chain so far shows */

static inline void open_guest(uint32_t mode)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;

	enter_folder();
	fk_reset();
	base = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(base, MAP_FAILED);
	model = calloc(1, BYTES);
	ram = &fk.a;
	ram->base = base;
	ram->fd = -1;
	ram->plan.backing = KVMEM_BACKING_ANONYMOUS;
	must(km_presence_init(&ram->presence, PAGES));
	o.mode = mode;
	o.ring_entries = mode == KVMEM_DIRTY_RING ? 1024 : 0;
	must(kvmem_dirty_create(&fk.vm, &o, &dirty));
	must(kvmem_region_attach(ram, 0, BYTES, 0, 0, 0, NULL));
	must(kvmem_dirty_add_vcpu(dirty, FK_VCPU_FD));
	must(kvmem_dirty_start(dirty));
	batch = NULL;
}

static inline void close_guest(void)
{
	kvmem_batch_free(batch);
	must(kvmem_dirty_stop(dirty));
	must(kvmem_dirty_free(dirty));
	km_presence_destroy(&ram->presence);
	fk_done();
	munmap(base, BYTES);
	free(model);
	leave_folder();
}

/* The guest writes: the memory changes, and the log says so. */
static inline void guest_writes(uint64_t page, unsigned int change)
{
	fill_page(base + page * PAGE, page, change);
	fk_write(0, 0, page);
}

static inline int64_t harvest(void)
{
	int64_t n = kvmem_dirty_harvest(dirty, &batch);

	must((int)n);
	must((int)kvmem_dirty_commit(dirty, batch));
	return n;
}

static inline struct kvmem_image_writer *begin(const char *path, struct kvmem_image *parent)
{
	struct kvmem_image_region at = region_of(BYTES, 0, "ram");
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_writer *w;

	o.flags = KVMEM_IMAGE_NO_SYNC;
	o.regions = &at;
	o.region_count = 1;
	o.parent = parent;
	must(kvmem_image_create(path, &o, &w));
	return w;
}

static inline void save_full(const char *path)
{
	struct kvmem_image_writer *w = begin(path, NULL);

	must(kvmem_image_save(w, &ram, 1, NULL, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
}

static inline bool is_dirty(uint64_t page)
{
	struct kvmem_run run;
	bool found = false;

	while (kvmem_batch_next(batch, &run) > 0)
		found |= run.offset <= page * PAGE && page * PAGE < run.offset + run.bytes;
	return found;
}

static inline int cancels(void *arg, const struct kvmem_image_progress *p)
{
	(void)arg;
	(void)p;
	return 1;
}

#endif
