// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Clones of a template: areas like the others, whose pages have the template's content until they are written or
 * discarded. Each has a model of its own, so that what one writes and another one sees is a page that differs.
 */
#include "actors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_UNIT   512u
#define HUGE_MEMFD  (MFD_HUGETLB | 21u << 26)
#define SEALS	    (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#define SHORT_PAGES 64u

bool is_filled(const struct round *round, const struct area *area)
{
	return round->populated || area->clone;
}

/* ---- the template ---- */

static int open_file(struct rng *rng, uint32_t *ret_unit)
{
	char path[sizeof(folder) + 16];
	int fd = -1;

	*ret_unit = 1;
	if (one_in(rng, 5)) {
		snprintf(path, sizeof(path), "%s/template", folder);
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		unlink(path);
		return fd;
	}
	if (one_in(rng, 5)) {
		fd = memfd_create("torture-template", MFD_CLOEXEC | MFD_ALLOW_SEALING | HUGE_MEMFD);
		*ret_unit = HUGE_UNIT;
	}
	if (fd < 0) {
		fd = memfd_create("torture-template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		*ret_unit = 1;
	}
	return fd;
}

/* False: there are not so many huge pages. */
static bool write_template(struct template *t, uint64_t bytes)
{
	unsigned char *at;

	if (ftruncate(t->fd, (off_t)bytes))
		fail(NULL, -1, "the template: %s", strerror(errno));
	at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
	if (at == MAP_FAILED && t->unit > 1)
		return false;
	if (at == MAP_FAILED)
		fail(NULL, -1, "the template: %s", strerror(errno));
	source_content(&t->source, 0, at, bytes);
	munmap(at, bytes);
	/* Of a file that is no memfd there are none. */
	if (fcntl(t->fd, F_ADD_SEALS, SEALS) && errno != EINVAL && errno != EPERM)
		fail(NULL, -1, "the template cannot be sealed: %s", strerror(errno));
	at = mmap(NULL, bytes, PROT_READ, MAP_SHARED, t->fd, 0);
	if (at == MAP_FAILED)
		fail(NULL, -1, "the template: %s", strerror(errno));
	t->memory = at;
	return true;
}

static bool open_template(struct round *round)
{
	struct template *t = &round->template;

	t->fd = open_file(&round->rng, &t->unit);
	if (t->fd < 0)
		fail(NULL, -1, "the template: %s", strerror(errno));
	t->pages = t->unit > 1 ? 2 * t->unit : (uint32_t)between(&round->rng, 100, 900);
	source_open(&t->source, SOURCE_MEMORY, guest_random(&round->rng.state) | 1,
		    (uint64_t)t->pages * PAGE, &round->rng);
	return write_template(t, (uint64_t)t->pages * PAGE);
}

void check_template(struct round *round, uint32_t first, uint32_t count_)
{
	struct template *t = &round->template;
	unsigned char want[PAGE];

	for (uint32_t page = first; t->memory && page < first + count_; page++) {
		source_content(&t->source, (uint64_t)page * PAGE, want, PAGE);
		if (memcmp(want, t->memory + (size_t)page * PAGE, PAGE))
			fail(NULL, -1, "page %u of the template has changed", page);
	}
}

/* ---- clones ---- */

static struct kvmem_region_opts clone_opts(const struct template *t, uint32_t first,
					   uint32_t count_)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.flags = KVMEM_REGION_CLONE;
	o.fd = t->fd;
	o.fd_offset = (uint64_t)first * PAGE;
	o.bytes = (uint64_t)count_ * PAGE;
	return o;
}

/* All of the template, or a part of it. */
static void some_part(const struct template *t, struct rng *rng, uint32_t most, uint32_t *ret_first,
		      uint32_t *ret_count)
{
	uint32_t units = t->pages / t->unit;
	uint32_t first = one_in(rng, 2) ? 0 : (uint32_t)below(rng, units);
	uint32_t count_ = one_in(rng, 2) ? units - first : (uint32_t)between(rng, 1, units - first);

	*ret_first = first * t->unit;
	*ret_count = (count_ > most ? most : count_) * t->unit;
}

static bool open_clone(struct round *round)
{
	struct area *area = &round->area[round->areas];
	struct template *t = &round->template;
	bool tracked = round->dirty && one_in(&round->rng, 2);
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_region_opts o;
	uint32_t first;
	int r;

	some_part(t, &round->rng, UINT32_MAX, &first, &area->pages);
	o = clone_opts(t, first, area->pages);
	o.wants = tracked ? KVMEM_WANT_DIRTY : 0;
	r = kvmem_region_create(round->vm, &o, &area->region);
	if (r == -ENOMEM && t->unit > 1)
		return false;
	must(r);
	must(kvmem_region_get_plan(area->region, &plan));
	area->index = (int)round->areas++;
	area->own_fd = area->fd = -1;
	area->gpa = GPA + (unsigned int)area->index * 2 * AREA_GPA_BYTES;
	area->backing = KVMEM_BACKING_CLONE;
	area->clone = true;
	area->unit = t->unit;
	area->room = area->pages;
	area->tracked = tracked && plan.granted & KVMEM_WANT_DIRTY;
	area->memory = kvmem_region_base(area->region);
	area->source = area->sources[0] = area->sources[1] = &t->source;
	area->source_offset = o.fd_offset;
	area_model_open(area);
	for (uint32_t page = 0; page < area->pages; page++)
		area->page[page].base = BASE_SOURCE;
	attach_area(round, area);
	describe("; area %d: clone of %u pages%s", area->index, area->pages,
		 area->tracked ? ", tracked" : "");
	return true;
}

void clones_open(struct round *round)
{
	unsigned int n = (unsigned int)below(&round->rng, MAX_CLONES + 1);

	round->template.fd = -1;
	if (!allowed(OP_CLONES) || !n || !open_template(round))
		return;
	while (n && open_clone(round))
		n--;
}

void clones_close(struct round *round)
{
	struct template *t = &round->template;

	check_template(round, 0, t->pages);
	source_close(&t->source);
	if (t->memory)
		munmap((void *)(uintptr_t)t->memory, (size_t)t->pages * PAGE);
	if (t->fd >= 0)
		close(t->fd);
}

/* ---- actors ---- */

static void check_part(const struct template *t, const unsigned char *at, uint32_t first,
		       uint32_t count_, const char *what)
{
	unsigned char want[PAGE];

	for (uint32_t page = first; page < first + count_; page++, at += PAGE) {
		source_content(&t->source, (uint64_t)page * PAGE, want, PAGE);
		if (memcmp(want, at, PAGE))
			fail(NULL, -1, "page %u of the template: %s", page, what);
	}
	count(COUNT_HOST_PAGES, count_);
}

/* One more, that nobody else knows: it begins as the template, whatever the others have written. */
static void use_clone(struct thread *thread)
{
	const struct template *t = &thread->round->template;
	static const unsigned char zeros[PAGE];
	struct kvmem_region_opts o;
	struct kvmem_region *region;
	unsigned char *at;
	uint32_t first, count_, page;
	int r;

	some_part(t, &thread->rng, SHORT_PAGES, &first, &count_);
	o = clone_opts(t, first, count_);
	r = kvmem_region_create(thread->round->vm, &o, &region);
	if (r == -ENOMEM && t->unit > 1)
		return;
	must(r);
	at = kvmem_region_base(region);
	check_part(t, at, first, count_, "a new clone has other content");
	memset(at, 0xc1, (size_t)count_ * PAGE);
	page = (uint32_t)below(&thread->rng, count_ / t->unit) * t->unit;
	must(kvmem_region_discard(region, (uint64_t)page * PAGE, (uint64_t)t->unit * PAGE));
	for (uint32_t i = 0; i < count_; i++)
		if (i >= page && i < page + t->unit
			    ? memcmp(at + (size_t)i * PAGE, zeros, PAGE) != 0
			    : at[(size_t)i * PAGE] != 0xc1)
			fail(NULL, -1, "page %u of a clone, of which %u was discarded", i, page);
	must(kvmem_region_free(region));
}

void clones(struct thread *thread)
{
	struct round *round = thread->round;
	struct template *t = &round->template;
	uint32_t first, count_;

	if (!t->memory)
		return;
	some_part(t, &thread->rng, SHORT_PAGES, &first, &count_);
	op_begin(thread, OP_CLONES, NULL, first, count_, 0);
	check_template(round, first, count_);
	if (one_in(&thread->rng, 3))
		use_clone(thread);
	op_end(thread, 0);
}
