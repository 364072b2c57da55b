/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* What live.c and fleet.c share: sums, a working set, and rows of a table. */
#ifndef FLEET_H
#define FLEET_H

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "saved.h"
#include <kvmem/workset.h>

#define RAM	(PAGES * BASE_PAGE)
#define SUM	(PAGES * (PAGES - 1) / 2) /* of the first words of all pages */
#define TOUCHED 300			  /* pages of the working set */
#define WRITTEN (PAGES / 50)		  /* pages that each clone writes */

static inline uint64_t sum_of(struct kvmem_region *ram)
{
	uint64_t sum = 0;

	for (uint64_t page = 0; page < PAGES; page++)
		sum += *word_of(ram, page);
	return sum;
}

static inline uint64_t sum_of_image(struct kvmem_image *image)
{
	uint64_t sum = 0, word;

	for (uint64_t page = 0; page < PAGES; page++) {
		must(kvmem_image_read(image, page * BASE_PAGE, &word, sizeof(word)), "read");
		sum += word;
	}
	return sum;
}

/* The first restore: what it touches comes first the next time. */
static inline struct kvmem_workset *record_set(struct kvmem_image *image)
{
	struct kvmem_region *ram = make_ram();
	struct kvmem_pager *pager = page_ram(ram, image);
	struct kvmem_recorder *recorder;
	struct kvmem_workset *set;

	must(kvmem_recorder_create(&ram, 1, NULL, &recorder), "recorder");
	for (uint64_t i = 0; i < TOUCHED; i++)
		if (*word_of(ram, i * 7919 % PAGES) != i * 7919 % PAGES)
			must(-EIO, "the guest found something else");
	must(kvmem_recorder_read(recorder, pager), "trace");
	must(kvmem_recorder_finish(recorder, &set), "recorder");
	must(kvmem_workset_save(set, "guest.set", image), "set");
	return set;
}

/* KiB of memory; what is shared is divided among those who share it. */
static inline unsigned long pss_of(struct kvmem_region *ram)
{
	uintptr_t first = (uintptr_t)kvmem_region_base(ram), from = 0, to = 0;
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long sum = 0;
	char line[512], *rest;

	while (f && fgets(line, sizeof(line), f)) {
		uintptr_t at = strtoul(line, &rest, 16);

		if (*rest == '-') {
			from = at;
			to = strtoul(rest + 1, NULL, 16);
		} else if (from < first + PAGES * BASE_PAGE && to > first &&
			   !strncmp(line, "Pss:", 4)) {
			sum += strtoul(line + 4, NULL, 10);
		}
	}
	if (f)
		fclose(f);
	return sum;
}

/* Some pages are written, page 1 is given back: neither is seen by the others. Returns how long that took. */
static inline uint64_t run_clone(int fd, struct kvmem_region **ret_ram)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .flags = KVMEM_REGION_CLONE, .fd = fd };
	uint64_t begin = now_ns();

	o.bytes = RAM;
	must(kvmem_region_create(NULL, &o, ret_ram), "clone");
	for (uint64_t page = 8; page < 8 + WRITTEN; page++)
		++*word_of(*ret_ram, page);
	must(kvmem_region_discard(*ret_ram, BASE_PAGE, BASE_PAGE), "discard");
	return now_ns() - begin;
}

static inline void print_head(void)
{
	printf("%-28s %10s %9s %9s  %s\n", "", "bytes", "ms", "PSS KiB", "sum");
}

/* kib: 0 where there is nothing to tell. Returns 1 where the sum is wrong. */
static inline unsigned int row(const char *name, uint64_t bytes, uint64_t ns, unsigned long kib,
			       bool right)
{
	char memory[32] = "";

	if (kib)
		snprintf(memory, sizeof(memory), "%lu", kib);
	printf("%-28s %10llu %9.2f %9s  %s\n", name, (unsigned long long)bytes, (double)ns / 1e6,
	       memory, right ? "right" : "WRONG");
	return right ? 0 : 1;
}

#endif
