/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* full_diff: a full snapshot, then one of what was written since; memory is made of both again. */
#include "small.h"
#include <unistd.h>

#define RAM (8 * MIB)

struct snapshot {
	int fd;				      /* each page at its own offset */
	uint64_t pages[RAM / BASE_PAGE / 64]; /* which it has */
};

/* While the guest stands still. The first harvest is all of it: KVMEM_DIRTY_FIRST_ALL. */
static void save(struct kvmem_dirty *dirty, struct kvmem_region *ram, struct snapshot *s)
{
	char *base = kvmem_region_base(ram);
	struct kvmem_batch *batch;
	struct kvmem_run run;

	s->fd = fileno(tmpfile());
	printf("%u pages\n", (unsigned int)must(kvmem_dirty_harvest(dirty, &batch), "harvest"));
	must(kvmem_dirty_commit(dirty, batch), "commit");
	must(kvmem_batch_bitmap(batch, ram, 0, RAM, s->pages), "bitmap");
	while (must(kvmem_batch_next(batch, &run), "next"))
		must(pwrite(s->fd, base + run.offset, run.bytes, (off_t)run.offset), "pwrite");
	kvmem_batch_free(batch);
}

/* The newest first, by hand; the rest is filled from the full one. */
static void load(struct kvmem_region *ram, const struct snapshot *full, const struct snapshot *diff)
{
	char *base = kvmem_region_base(ram);
	struct kvmem_source *rest;

	for (uint64_t i = 0, at = 0; at < RAM; i++, at += BASE_PAGE)
		if (diff->pages[i / 64] >> i % 64 & 1) {
			must(pread(diff->fd, base + at, BASE_PAGE, (off_t)at), "pread");
			must(kvmem_region_mark_present(ram, at, BASE_PAGE), "mark_present");
		}
	must(kvmem_source_file(full->fd, 0, RAM, 0, &rest), "file");
	must(kvmem_populate(ram, 0, rest, NULL, NULL), "populate");
}

int main(void)
{
	static struct snapshot full, diff;
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram = small_ram(vm, KVMEM_WANT_DIRTY, RAM), *again;
	struct kvmem_dirty *dirty;
	struct vmm_vcpu *vcpu = small_tracked(vm, ram, KVMEM_DIRTY_FIRST_ALL, &dirty);

	small_run(vcpu, GUEST_FILL, GPA, RAM / 2);
	must(kvmem_dirty_start(dirty), "start");
	save(dirty, ram, &full);
	small_run(vcpu, GUEST_FILL, GPA + RAM / 4, RAM / 2);
	save(dirty, ram, &diff);
	again = small_ram(NULL, 0, RAM);
	load(again, &full, &diff);
	return memcmp(kvmem_region_base(ram), kvmem_region_base(again), RAM) != 0;
}
