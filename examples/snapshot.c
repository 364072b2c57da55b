/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* snapshot: what a guest touches after a restore from its image is recorded, and comes first the next time. */
#include "saved.h"
#include <kvmem/workset.h>

#define TOUCHED 300
#define AT(i)	((i)*7919 % PAGES) /* the guest's pages are all over the memory */

static void run_guest(struct kvmem_region *ram)
{
	for (uint64_t i = 0; i < TOUCHED; i++)
		if (*word_of(ram, AT(i)) != AT(i))
			must(-EIO, "the guest found something else");
}

/* Returns how many pages the guest waited for. */
static unsigned int restore(struct kvmem_image *image)
{
	struct kvmem_recorder_stats stats = KVMEM_RECORDER_STATS_INIT;
	struct kvmem_region *ram = make_ram();
	struct kvmem_pager *pager = page_ram(ram, image);
	struct kvmem_recorder *recorder;
	struct kvmem_workset *set;
	int known = kvmem_workset_load("guest.set", image, &set); /* a hint: without it is slower */

	if (!known)
		must(kvmem_workset_replay(set, pager, &ram, 1, NULL, NULL), "replay");
	must(kvmem_recorder_create(&ram, 1, NULL, &recorder), "recorder");
	run_guest(ram);
	must(kvmem_recorder_read(recorder, pager), "trace"); /* now and then while it runs */
	must(kvmem_recorder_get_stats(recorder, &stats), "stats");
	if (known) {
		must(kvmem_recorder_finish(recorder, &set), "recorder");
		must(kvmem_workset_save(set, "guest.set", image), "set");
	}
	return (unsigned int)stats.pages; /* the kernel frees what is left */
}

int main(void)
{
	struct kvmem_image *image = save_ram();
	unsigned int first = restore(image), second = restore(image);

	printf("pages that the guest waited for: %u, then %u\n", first, second);
	leave_folder();
	return first == TOUCHED && !second ? EXIT_SUCCESS : EXIT_FAILURE;
}
