/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef FILL_RIG_H
#define FILL_RIG_H

/* What the populate tests share: regions made by hand, sources with known content, checks. */

#include <stdbool.h>
#include <stdint.h>

#include "harness.h"
#include "fake_sys.h"
#include "fill/fill.h"
#include "numa/numa.h"
#include "source/source.h"

#define PAGE  4096u
#define PAGES 256u
#define BYTES (PAGES * PAGE)

struct rig {
	struct kvmem_region r;
	uint8_t *want;	  /* what the region shall hold */
	uint8_t *content; /* BYTES of the source; pages 16..31 and every 7th are zero */
	struct kvmem_source *source;
	struct kvmem_populate_opts opts;
	struct kvmem_populate_result res;
	unsigned int fds, maps;
};

enum rig_kind { RIG_MEMFD, RIG_ANON };

/* Pages of 4096 << order. fake_reset() is done. */
void rig_init(struct rig *g, enum rig_kind kind, unsigned int order);
void rig_free(struct rig *g); /* nothing leaked, nothing claimed, source not in use */

void rig_memory_source(struct rig *g);
int rig_content_file(struct rig *g, const char *dir); /* holes where whole 64 KiB are zero */
void rig_file_source(struct rig *g, int fd);
int rig_populate(struct rig *g, uint64_t offset); /* also into g->want, as it should be */
void rig_expect(struct rig *g);			  /* content, and the counts add up */
uint64_t rig_sum(const struct rig *g);
bool rig_allocated(struct rig *g, uint64_t page); /* in the kernel (4 KiB pages) */

#endif
