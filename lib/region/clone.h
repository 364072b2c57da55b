/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_CLONE_H
#define KM_CLONE_H

/*
 * Clones (KVMEM_REGION_CLONE): a private mapping of a template, a file that nobody is to change. The library holds no
 * file descriptor of it: the mapping keeps the file, and no way leads from a clone to the template.
 *
 * Pages of a clone that are discarded must not show the template again. Anonymous memory is mapped over them
 * (fill/clone.c); which pages those are is kept here, as a list of overlays without gaps between touching ones.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvmem_caps;
struct kvmem_region_opts;

struct km_overlay {
	uint64_t first, end; /* pages of the region */
};

/* Under the region's lock, but for `fd`. */
struct km_clone {
	int fd; /* of the template, the caller's: until the region has been mapped; then -1 */
	struct km_overlay *overlays;
	size_t count, room;
};

/* The options that do not go together with KVMEM_REGION_CLONE. -errno with the detail set. */
int km_clone_opts(const struct kvmem_region_opts *o);

/* Of checked options: sets backing and page_size to what the template is. -errno with the detail set. */
int km_clone_kind(struct kvmem_region_opts *o);

/* Why a clone cannot do what is wished for (one KVMEM_WANT_* bit); NULL: it can. */
const char *km_clone_lacks(const struct kvmem_caps *caps, const struct kvmem_region_opts *o,
			   uint64_t bit);

/* How far the template is safe from changes, for the plan. */
const char *km_clone_note(const struct kvmem_region_opts *o);

/* NULL: no memory. `c` NULL is allowed in _free(). */
struct km_clone *km_clone_new(int fd);
void km_clone_free(struct km_clone *c);

/* How many pages from `page` on, at most `max`, are all over the template, or are all not. */
uint64_t km_clone_run(const struct km_clone *c, uint64_t page, uint64_t max, bool *ret_over);

/*
 * May memory be mapped over these pages? Each overlay that touches no other takes two mappings of vm.max_map_count,
 * which all of the VMM shares: the overlays of all clones of a process are limited. _add() after it was done.
 */
bool km_clone_may_add(struct km_clone *c, uint64_t first, uint64_t end);
void km_clone_add(struct km_clone *c, uint64_t first, uint64_t end);

#endif
