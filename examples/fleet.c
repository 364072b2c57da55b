/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* fleet: a saved guest comes back eight times over one template, into which its working set is brought first. */
#include "fleet.h"

#define CLONES 8

/* A memfd of the image: the pages that guests begin with, then the rest; sealed. */
static int make_template(struct kvmem_image *image, unsigned int *wrong)
{
	int fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct kvmem_region_opts o = { .size = sizeof(o), .flags = KVMEM_REGION_FD, .fd = fd };
	struct kvmem_replay_result replayed = KVMEM_REPLAY_RESULT_INIT;
	struct kvmem_workset *set = record_set(image);
	struct kvmem_region *filled;
	struct kvmem_pager *pager;
	uint64_t begin;

	o.bytes = RAM;
	must(ftruncate(fd, RAM), "ftruncate");
	must(kvmem_region_create(NULL, &o, &filled), "template");
	pager = page_ram(filled, image);
	must(kvmem_workset_replay(set, pager, &filled, 1, NULL, &replayed), "replay");
	*wrong += row("template: working set", replayed.bytes, replayed.ns, 0,
		      replayed.pages_filled == TOUCHED);
	begin = now_ns();
	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL), "fill");
	*wrong += row("template: the rest", RAM - replayed.bytes, now_ns() - begin, 0,
		      sum_of(filled) == SUM);
	must(kvmem_pager_free(pager), "free");
	must(kvmem_region_free(filled), "free"); /* a mapping for writing forbids the seal */
	must(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), "seal");
	return fd;
}

int main(void)
{
	struct kvmem_image *image = save_ram();
	struct kvmem_region *ram[CLONES];
	uint64_t ns[CLONES], sum[CLONES];
	unsigned int wrong = 0;
	int fd;

	print_head();
	fd = make_template(image, &wrong);
	for (unsigned int i = 0; i < CLONES; i++) {
		ns[i] = run_clone(fd, &ram[i]);
		sum[i] = sum_of(ram[i]); /* all of it is read */
	}
	for (unsigned int i = 0; i < CLONES; i++)
		wrong += row("clone", RAM, ns[i], pss_of(ram[i]), sum[i] == SUM + WRITTEN - 1);
	leave_folder();
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS; /* the kernel frees what is left */
}
