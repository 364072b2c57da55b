// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Images: of all memory or of a dirty batch, with all actors parked, and of captures while they go on. Each is opened
 * again and compared with the model. A save that is given up gives its batch back: the harvester finds out.
 */
#include "torture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <kvmem/image.h>

#define PIECE 64u /* pages */

static const char *path_of(const char *name)
{
	static char paths[4][sizeof(folder) + 32];
	static unsigned int next;
	char *path = paths[next++ % 4];

	snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
	return path;
}

static void remove_image(const char *name)
{
	char index[32];

	snprintf(index, sizeof(index), "%s.kvmem", name);
	unlink(path_of(name));
	unlink(path_of(index));
}

/* ---- images of areas ---- */

static struct kvmem_image_writer *create(const char *name, struct area *const *areas,
					 unsigned int n, struct kvmem_image *parent)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region regions[MAX_AREAS];
	struct kvmem_image_writer *writer;

	memset(regions, 0, sizeof(regions));
	for (unsigned int i = 0; i < n; i++) {
		regions[i].size = sizeof(regions[i]);
		regions[i].gpa = areas[i]->gpa;
		regions[i].bytes = (uint64_t)pages_of(areas[i]) * PAGE;
	}
	o.flags = KVMEM_IMAGE_NO_SYNC;
	o.regions = parent ? NULL : regions;
	o.region_count = parent ? 0 : n;
	o.parent = parent;
	must(kvmem_image_create(path_of(name), &o, &writer));
	return writer;
}

static struct kvmem_image *open_image(const char *name)
{
	struct kvmem_image *image;
	char index[32];

	snprintf(index, sizeof(index), "%s.kvmem", name);
	must(kvmem_image_open(path_of(index), NULL, &image));
	return image;
}

/* What the areas' sources have. What areas have grown by is zero there. */
static struct kvmem_image *open_parent(const char *name, struct area *const *areas, unsigned int n)
{
	struct kvmem_image_writer *writer = create(name, areas, n, NULL);
	static unsigned char buf[PIECE * PAGE];
	uint64_t begin = 0;

	for (unsigned int i = 0; i < n; i++) {
		for (uint32_t page = 0, some; page < areas[i]->pages; page += some) {
			some = areas[i]->pages - page < PIECE ? areas[i]->pages - page : PIECE;
			source_content(areas[i]->source, source_offset_of(areas[i], page), buf,
				       (uint64_t)some * PAGE);
			must(kvmem_image_write(writer, begin + (uint64_t)page * PAGE, buf,
					       (uint64_t)some * PAGE));
		}
		begin += (uint64_t)pages_of(areas[i]) * PAGE;
	}
	must(kvmem_image_commit(writer, NULL));
	return open_image(name);
}

static void close_all(struct kvmem_image *image, const char *name, struct kvmem_image *parent,
		      const char *parent_name)
{
	must(kvmem_image_close(image));
	must(kvmem_image_close(parent));
	remove_image(name);
	remove_image(parent_name);
}

/* ---- saves ---- */

struct save {
	struct round *round;
	struct area *areas[MAX_AREAS];
	struct kvmem_region *regions[MAX_AREAS];
	struct kvmem_image *parent;
	struct kvmem_batch *batch;
	uint64_t *bits[MAX_AREAS]; /* pages of the batch; NULL: all */
};

/* Harvested and committed, and which pages it has. */
static void take_batch(struct save *s)
{
	struct round *round = s->round;

	must(kvmem_reader_harvest(round->reader, &s->batch));
	must(kvmem_dirty_commit(round->dirty, s->batch));
	for (unsigned int i = 0; i < round->areas; i++) {
		s->bits[i] = calloc(s->areas[i]->pages / 64 + 1, 8);
		if (!s->bits[i])
			fail(NULL, -1, "no memory for a batch");
		must(kvmem_batch_bitmap(s->batch, s->regions[i], 0,
					(uint64_t)s->areas[i]->pages * PAGE, s->bits[i]));
	}
}

static void check_rest(const struct save *s, struct area *area, uint32_t page,
		       const unsigned char *content)
{
	unsigned char want[PAGE] = { 0 };

	if (s->parent)
		source_content(area->source, source_offset_of(area, page), want, PAGE);
	if (memcmp(want, content, PAGE))
		fail(area, page,
		     "area %d page %u is not of the batch, and has changed in the image",
		     area->index, page);
}

static void check_area(const struct save *s, unsigned int number, const unsigned char *content,
		       uint32_t first, uint32_t n)
{
	struct area *area = s->areas[number];
	const uint64_t *bits = s->bits[number];

	for (uint32_t page = first; page < first + n; page++, content += PAGE) {
		if (page >= area->pages) {
			if (!bits && !grown_matches(page, content))
				fail(area, page, "page %u, added later, in the image", page);
			continue;
		}
		if (bits && !(bits[page / 64] >> page % 64 & 1)) {
			check_rest(s, area, page, content);
			continue;
		}
		if (!page_matches(area, page, content))
			fail_content(area, page, content,
				     bits ? "the image of a batch" : "the image");
		if (bits)
			harvest_saved(area, page, content);
	}
	count(COUNT_SAVED, n);
}

static void check_image(const struct save *s, struct kvmem_image *image)
{
	static unsigned char buf[PIECE * PAGE];
	uint64_t at = 0;

	for (unsigned int i = 0; i < s->round->areas; i++) {
		uint32_t pages = pages_of(s->areas[i]);

		for (uint32_t page = 0, n; page < pages; page += n) {
			n = pages - page < PIECE ? pages - page : PIECE;
			must(kvmem_image_read(image, at, buf, (uint64_t)n * PAGE));
			check_area(s, i, buf, page, n);
			at += (uint64_t)n * PAGE;
		}
	}
}

static int cancel_soon(void *arg, const struct kvmem_image_progress *progress)
{
	(void)arg;
	return progress->done * 2 > progress->total;
}

/* False: it was given up. */
static bool write_image(struct save *s)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_writer *writer = create("saved", s->areas, s->round->areas, s->parent);
	bool give_up = one_in(&s->round->rng, 5);
	int r;

	o.flags = s->parent ? KVMEM_IMAGE_ABSENT_FROM_PARENT : 0;
	o.threads = (uint32_t)below(&s->round->rng, 4);
	o.progress = one_in(&s->round->rng, 5) ? cancel_soon : NULL;
	r = kvmem_image_save(writer, s->regions, s->round->areas, s->batch, &o, NULL);
	if (r != -ECANCELED || !o.progress)
		must(r);
	if (r || give_up) {
		kvmem_image_abort(writer);
		return false;
	}
	must(kvmem_image_commit(writer, NULL));
	return true;
}

void save_image(struct round *round, struct thread *thread)
{
	struct save s = { .round = round };

	(void)thread;
	for (unsigned int i = 0; i < round->areas; i++) {
		s.areas[i] = &round->area[i];
		s.regions[i] = round->area[i].region;
	}
	/* Of a clone the parent has the template's content: the clone's own pages are stored over it. */
	if (one_in(&round->rng, 2))
		s.parent = open_parent("parent", s.areas, round->areas);
	if (round->tracking && one_in(&round->rng, 2))
		take_batch(&s);
	if (write_image(&s)) {
		struct kvmem_image *image = open_image("saved");

		check_image(&s, image);
		close_all(image, "saved", s.parent, "parent");
	} else {
		close_all(NULL, "saved", s.parent, "parent");
	}
	for (unsigned int i = 0; i < round->areas; i++)
		free(s.bits[i]);
}

/* ---- captures ---- */

static struct {
	struct kvmem_image_capture *capture;
	struct kvmem_image_writer *writer;
	struct kvmem_image *parent;
	bool stop; /* at once, instead of running it */
} c;

bool images_open(void)
{
	must(kvmem_image_capture_create(NULL, &c.capture));
	return true;
}

void images_close(void)
{
	must(kvmem_image_capture_free(c.capture));
	c.capture = NULL;
}

int image_capture_start(struct moment *moment, struct rng *rng)
{
	uint32_t flags = 0;

	c.parent = NULL;
	for (unsigned int i = 0; i < moment->count; i++)
		if (moment->area[i]->paged && !c.parent && !one_in(rng, 4)) {
			c.parent = open_parent("live-parent", moment->area, moment->count);
			flags = KVMEM_IMAGE_ABSENT_FROM_PARENT;
		}
	c.stop = one_in(rng, 10);
	c.writer = create("live", moment->area, moment->count, c.parent);
	return kvmem_image_capture_start(c.capture, c.writer, moment->region, moment->count, flags);
}

int image_capture_run(struct rng *rng)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;

	if (c.stop)
		return kvmem_image_capture_stop(c.capture);
	o.threads = (uint32_t)below(rng, 4);
	return kvmem_image_capture_run(c.capture, &o, NULL);
}

static bool any_paged(const struct moment *moment)
{
	for (unsigned int i = 0; i < moment->count; i++)
		if (moment->area[i]->paged)
			return true;
	return false;
}

static void check_moment(const struct moment *moment, struct kvmem_image *image)
{
	unsigned char content[PAGE];
	uint64_t at = 0;

	for (unsigned int i = 0; i < moment->count; i++) {
		struct area *area = moment->area[i];

		for (uint32_t page = 0; page < moment->pages[i]; page++, at += PAGE) {
			must(kvmem_image_read(image, at, content, PAGE));
			if (page < area->pages
				    ? !page_was(area, page, &moment->page[i][page], content)
				    : !grown_matches(page, content))
				fail(area, page,
				     "area %d page %u is not as at the pause in the image",
				     area->index, page);
			count(COUNT_CAPTURED, 1);
		}
	}
}

void image_capture_end(const struct moment *moment, int result)
{
	struct kvmem_image *image = NULL;

	if (result == -ECANCELED    ? !c.stop
	    : result == -EOPNOTSUPP ? c.parent || !any_paged(moment)
				    : result < 0)
		must(result);
	if (result) {
		kvmem_image_abort(c.writer);
	} else {
		must(kvmem_image_commit(c.writer, NULL));
		image = open_image("live");
		check_moment(moment, image);
	}
	close_all(image, "live", c.parent, "live-parent");
}
