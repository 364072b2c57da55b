/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* What lifecycle.c leaves to lifecycle_io.c: options, files, and what is printed. */
#ifndef LIFECYCLE_H
#define LIFECYCLE_H

#include <kvmem/kvmem.h>
#include <stdbool.h>
#include <stdint.h>

#define LIFECYCLE_NODES 1024
#define LIFECYCLE_PAGE	4096u /* what the guest sums and dirty logging tells apart */

struct lifecycle_options {
	uint64_t bytes;
	uint32_t vcpus;
	const char *image; /* NULL: default_image, made when it is not there */
	char default_image[4096];
	char dir[4096];	    /* for files of our own */
	uint32_t backing;   /* enum kvmem_backing */
	uint32_t slot_form; /* enum kvmem_slot_form */
	uint32_t dirty;	    /* enum kvmem_dirty_mode */
	bool json;
};

struct lifecycle_results {
	uint64_t image_bytes;
	struct kvmem_plan plan, second_plan;
	bool policy_emulated;
	uint64_t node_pages[LIFECYCLE_NODES], misplaced;
	struct kvmem_populate_result fill;
	uint64_t first_wrong; /* pages whose sum in the guest was not the image's */
	struct kvmem_dirty_stats dirty;
	uint64_t pages_changed, pages_reported, pages_unchanged;
	uint64_t pages_missed;	/* changed, not reported */
	uint64_t writes_missed; /* written by the guest, not reported */
	struct kvmem_pager_stats pager;
	uint64_t hello_ns, first_ns, second_ns; /* since the second machine was begun */
	uint64_t second_wrong;
};

/* Ends the program on --help and on wrong options. */
void lifecycle_options(int argc, char **argv, struct lifecycle_options *opt);
void lifecycle_results_init(struct lifecycle_results *res);
/* The summary, and with it the exit status. */
int lifecycle_report(const struct lifecycle_options *opt, const struct lifecycle_results *res);

/* To standard output, unless that is for JSON. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
int draw_progress(void *arg, const struct kvmem_progress *progress);
const char *backing_name(uint32_t backing);

/* The sum of each of the file's pages; beyond its end they are zero. */
void sums_of_file(int fd, uint32_t *sums, uint64_t pages);

/* Both end the program when they cannot: the image, and a file without a name that has the memory. */
int open_image(const struct lifecycle_options *opt, struct lifecycle_results *res);
int save_memory(const struct lifecycle_options *opt, const char *base);

#endif
