/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef RESTORE_WAYS_H
#define RESTORE_WAYS_H

/*
 * Ways to bring a guest back from an image, and a guest that then does something useful: it reads a tenth of its pages,
 * scattered, in an order that was recorded before, and adds up what is in them. The guest is a thread of the host:
 * there is no KVM in it.
 */

#include <pthread.h>

#include "image_mem.h"

enum restore_way {
	RESTORE_FILE_MAP, /* a private mapping of the image's data: what VMMs do without a library */
	RESTORE_EAGER,	  /* read(2) of all of it into anonymous memory, then the guest */
	RESTORE_PAGER,	  /* kvmem_pager over the image's source */
	RESTORE_REPLAY,	  /* ... and kvmem_workset_replay() beside the guest, with its read-ahead */
	RESTORE_REPLAY_FIRST, /* ... and the guest runs when it is over */
	RESTORE_CLONE,	      /* KVMEM_REGION_CLONE of the image's data */
	RESTORE_CLONE_AHEAD, /* ... and the working set read into the page cache beside the guest */
};

struct restored {
	enum restore_way way;
	uint8_t *base;
	int fd;
	struct kvmem_region *ram;
	struct kvmem_image *image;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	pthread_t thread;
	bool has_thread;
};

/* An image of so many bytes in the current folder, and the guest's order. */
void restore_open(uint64_t bytes);
void restore_close(void);

/* The guest can run when it returns, though its memory may not have come yet. */
void restore_begin(struct restored *r, enum restore_way way);
/* The guest's work; returns its result. */
uint64_t restore_work(const struct restored *r);
/* What it has seen was right; all is let go. */
void restore_end(struct restored *r, uint64_t result);

/* Bytes of the pages that the guest reads. */
uint64_t restore_set_bytes(void);

#endif
