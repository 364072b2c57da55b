// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A guest's memory into an image while it runs: all of it, then again what was written meanwhile, pass by pass. A page
 * that is written while it is read is stored torn, and told by the next pass. The last pass, with the guest stopped,
 * makes the image that of one moment.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include <kvmem/dirty.h>
#include <kvmem/writes.h>

#include "image/internal.h"

#define DEFAULT_PAUSE_NS 100000000u
#define DEFAULT_PASSES	 16u
#define STALLED		 2u /* passes in a row that had not much less to do than the one before */
#define ROOM		 4096u

struct precopy {
	struct kvmem_image_writer *w;
	struct kvmem_region *const *regions;
	struct kvmem_image_precopy_opts o;
	struct kvmem_image_save_opts save;
	struct kvmem_image_precopy_result result;
	struct kvmem_run *runs; /* of writes */
	uint64_t run_count, run_room;
};

/* ---- one pass ---- */

static int run_pass(struct precopy *p, struct kvmem_batch *batch)
{
	struct kvmem_image_save_result result = KVMEM_IMAGE_SAVE_RESULT_INIT;
	int r = ki_save("kvmem_image_precopy", p->w, p->regions, batch, &p->save, &result);

	p->result.bytes_data += result.bytes_data;
	p->result.bytes_pass = result.bytes_data + result.bytes_zero + result.bytes_absent;
	p->result.pause_ns = result.ns;
	p->result.passes++;
	return r;
}

static int pass_of_reader(struct precopy *p)
{
	struct kvmem_batch *batch;
	int64_t r = kvmem_reader_harvest(p->o.reader, &batch);

	if (r < 0)
		return (int)r;
	r = kvmem_dirty_commit(p->o.dirty, batch);
	if (r >= 0)
		r = run_pass(p, batch);
	if (r)
		kvmem_batch_return(batch);
	else
		kvmem_batch_free(batch);
	return (int)r;
}

/* There is room for ROOM runs more. */
static int make_room(struct precopy *p)
{
	uint64_t room = p->run_room ? 2 * p->run_room : 2 * (uint64_t)ROOM;
	struct kvmem_run *more;

	if (p->run_room - p->run_count >= ROOM)
		return 0;
	more = realloc(p->runs, room * sizeof(*more));
	if (!more)
		return ki_fail(ENOMEM, "kvmem_image_precopy: no memory for %" PRIu64 " runs", room);
	p->runs = more;
	p->run_room = room;
	return 0;
}

static int take_region(struct precopy *p, struct kvmem_region *region)
{
	uint64_t at = 0, bytes = kvmem_region_bytes(region);
	int64_t n;
	int r = 0;

	while (at < bytes) {
		r = make_room(p);
		if (r)
			return r;
		n = kvmem_writes_take(p->o.writes, region, at, p->runs + p->run_count, ROOM, &at);
		if (n < 0)
			return (int)n;
		p->run_count += (uint64_t)n;
	}
	return r;
}

static int pass_of_writes(struct precopy *p)
{
	int r = make_room(p);

	p->run_count = 0;
	for (uint32_t i = 0; !r && i < p->w->region_count; i++)
		r = take_region(p, p->regions[i]);
	if (r)
		return r;
	p->save.runs = p->runs;
	p->save.run_count = p->run_count;
	return run_pass(p, NULL);
}

static int pass(struct precopy *p)
{
	return p->o.reader ? pass_of_reader(p) : pass_of_writes(p);
}

/* ---- until it is short ---- */

static bool is_short(const struct precopy *p)
{
	return p->result.pause_ns <= p->o.pause_ns;
}

static int run_passes(struct precopy *p)
{
	unsigned int stalled = 0;
	uint64_t before;
	int r = p->w->precopy ? 0 : run_pass(p, NULL);

	p->w->precopy = true;
	while (!r && (!p->result.passes || !is_short(p))) {
		if (p->result.passes >= p->o.passes || stalled == STALLED) {
			p->result.end = stalled == STALLED ? KVMEM_IMAGE_PRECOPY_STALLED
							   : KVMEM_IMAGE_PRECOPY_PASSES;
			break;
		}
		before = p->result.passes ? p->result.bytes_pass : UINT64_MAX;
		r = pass(p);
		stalled = p->result.bytes_pass > before - before / 10 ? stalled + 1 : 0;
	}
	return r;
}

static int run_last(struct precopy *p)
{
	int r = p->w->precopy ? pass(p) : run_pass(p, NULL);

	if (!r)
		p->w->precopy = false;
	return r;
}

/* ---- the call ---- */

static int check_opts(const struct kvmem_image_writer *w, struct kvmem_image_precopy_opts *o)
{
	if (o->flags & ~(KVMEM_IMAGE_LAST_PASS | KVMEM_IMAGE_ABSENT_FROM_PARENT))
		return ki_fail(EINVAL, "kvmem_image_precopy_opts: flags: unknown bits 0x%" PRIx32,
			       o->flags);
	if (o->flags & KVMEM_IMAGE_ABSENT_FROM_PARENT && !w->parent)
		return ki_fail(EINVAL,
			       "kvmem_image_precopy_opts: KVMEM_IMAGE_ABSENT_FROM_PARENT, and "
			       "the image has no parent");
	if (o->threads > KI_MAX_WORKERS)
		return ki_fail(EINVAL, "kvmem_image_precopy_opts: threads: at most %u",
			       KI_MAX_WORKERS);
	if (!o->reader == !o->writes || !o->reader != !o->dirty)
		return ki_fail(EINVAL,
			       "kvmem_image_precopy_opts: either reader with dirty, or writes");
	o->pause_ns = o->pause_ns ? o->pause_ns : DEFAULT_PAUSE_NS;
	o->passes = o->passes ? o->passes : DEFAULT_PASSES;
	return 0;
}

/* Else the guest would be stopped before anybody notices that its writes are not seen. */
static int check_watched(struct kvmem_writes *writes, struct kvmem_region *const *regions,
			 uint32_t region_count)
{
	for (uint32_t i = 0; i < region_count; i++) {
		struct kvmem_plan plan = KVMEM_PLAN_INIT;
		int r = kvmem_region_get_plan(regions[i], &plan);

		if (!r && plan.slot_form == KVMEM_SLOT_DIRECT)
			r = ki_fail(EOPNOTSUPP,
				    "kvmem_image_precopy: regions[%" PRIu32
				    "] has direct slots: what vCPUs write does not go through its "
				    "mapping",
				    i);
		if (!r && kvmem_writes_watched(writes, regions[i]) !=
				  (int64_t)kvmem_region_bytes(regions[i]))
			r = ki_fail(EINVAL,
				    "kvmem_image_precopy: regions[%" PRIu32
				    "] is not watched by writes, or has grown: kvmem_writes_add() "
				    "first",
				    i);
		if (r)
			return r;
	}
	return 0;
}

static int check(struct precopy *p, struct kvmem_image_writer *writer,
		 struct kvmem_region *const *regions, uint32_t region_count,
		 const struct kvmem_image_precopy_opts *opts,
		 const struct kvmem_image_precopy_result *ret)
{
	int r = 0;

	if (!writer || !opts)
		return ki_fail(EINVAL, "kvmem_image_precopy: %s is NULL",
			       writer ? "opts" : "writer");
	if (ret)
		r = kvmem_result_check(ret, sizeof(p->result), "kvmem_image_precopy_result");
	if (!r)
		r = ki_writer_check_regions(writer, "kvmem_image_precopy", regions, region_count);
	if (!r)
		r = kvmem_opts_copy(&p->o, sizeof(p->o), sizeof(p->o), opts,
				    "kvmem_image_precopy_opts");
	if (!r)
		r = check_opts(writer, &p->o);
	if (!r && p->o.writes)
		r = check_watched(p->o.writes, regions, region_count);
	return r;
}

int kvmem_image_precopy(struct kvmem_image_writer *writer, struct kvmem_region *const *regions,
			uint32_t region_count, const struct kvmem_image_precopy_opts *opts,
			struct kvmem_image_precopy_result *ret_result)
{
	struct precopy p = { .w = writer,
			     .regions = regions,
			     .save = KVMEM_IMAGE_SAVE_OPTS_INIT,
			     .result = KVMEM_IMAGE_PRECOPY_RESULT_INIT };
	uint64_t begin = ki_now_ns();
	int r = check(&p, writer, regions, region_count, opts, ret_result);

	if (r)
		return r;
	p.save.flags = p.o.flags & KVMEM_IMAGE_ABSENT_FROM_PARENT;
	p.save.threads = p.o.threads;
	p.save.progress = p.o.progress;
	p.save.arg = p.o.arg;
	r = p.o.flags & KVMEM_IMAGE_LAST_PASS ? run_last(&p) : run_passes(&p);
	writer->save_failed |= r != 0;
	if (r)
		r = ki_fail_as("kvmem_image_precopy", r);
	p.result.ns = ki_now_ns() - begin;
	free(p.runs);
	if (!r && ret_result)
		kvmem_result_copy(ret_result, &p.result, sizeof(p.result));
	return r;
}
