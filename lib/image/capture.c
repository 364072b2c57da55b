// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The memory of a moment into an image, while the guest runs on. A page that is about to be written comes from
 * kvmem_capture's before_write, in the writer's way; all others are fetched. Each comes once, so that no two threads
 * write the same pages of the image.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/internal.h"

struct kvmem_image_capture {
	struct kvmem_capture *capture;
	struct kvmem_image_writer *w; /* NULL: not started */
	struct kvmem_region **regions;
	uint32_t flags;
	struct ki_dirty_set set; /* of a difference; else it has no bits */
	struct kvmem_image_save_opts o;
	_Atomic bool
		running; /* kvmem_image_capture_run() is not over: its callback may call back */
	pthread_mutex_t lock; /* what follows */
	struct kvmem_image_save_result result;
	uint64_t done, total; /* bytes that are captured */
	int err;
	char detail[512];
};

/* ---- pages ---- */

static uint32_t number_of(const struct kvmem_image_capture *c, const struct kvmem_region *region)
{
	uint32_t i = 0;

	while (c->regions[i] != region)
		i++;
	return i;
}

static void count(struct kvmem_image_capture *c, uint64_t data, uint64_t zero, uint64_t absent)
{
	pthread_mutex_lock(&c->lock);
	c->result.bytes_data += data;
	c->result.bytes_zero += zero;
	c->result.bytes_absent += absent;
	pthread_mutex_unlock(&c->lock);
}

static int refuse(const struct kvmem_image_capture *c, const struct kvmem_capture_run *run,
		  uint64_t to)
{
	if (run->kind == KVMEM_CAPTURE_POISONED)
		return ki_fail(EIO,
			       "kvmem_image_capture: byte 0x%" PRIx64
			       " of the image: a page that is poisoned",
			       to);
	if (c->flags & KVMEM_IMAGE_ABSENT_FROM_PARENT)
		return 0;
	return ki_fail(
		EOPNOTSUPP,
		"kvmem_image_capture: byte 0x%" PRIx64
		" of the image: a page that its pager had not filled. Wait until all are in, "
		"or leave them to the parent by KVMEM_IMAGE_ABSENT_FROM_PARENT",
		to);
}

/* Pages of 4 KiB, content NULL: those of a run that are wanted. */
static int put(struct kvmem_image_capture *c, const struct kvmem_capture_run *run, uint64_t to,
	       uint64_t pages, const char *content)
{
	uint64_t stored = 0;
	int r;

	if (run->kind == KVMEM_CAPTURE_POISONED || run->kind == KVMEM_CAPTURE_ABSENT) {
		r = refuse(c, run, to);
		if (!r) /* kvmem_image_write() may have put something there */
			r = ki_writer_put_parents(c->w, to >> KI_PAGE_SHIFT, pages);
		if (!r)
			count(c, 0, 0, pages << KI_PAGE_SHIFT);
		return r;
	}
	r = ki_writer_put(c->w, to >> KI_PAGE_SHIFT, pages, content, &stored);
	if (!r)
		count(c, stored << KI_PAGE_SHIFT, (pages - stored) << KI_PAGE_SHIFT, 0);
	return r;
}

/* A run is of whole pages of the region, which may be huge ones; what was written is told by pages of 4 KiB. */
static int store(struct kvmem_image_capture *c, const struct kvmem_capture_run *run,
		 const char *content)
{
	uint32_t i = number_of(c, run->region);
	uint64_t first = run->offset >> KI_PAGE_SHIFT, page = first;
	uint64_t end = page + (run->bytes >> KI_PAGE_SHIFT);
	int r = 0;

	if (run->kind != KVMEM_CAPTURE_DATA)
		content = NULL;
	for (uint64_t n; !r && (n = ki_dirty_set_run(&c->set, i, page, end, &page)); page += n)
		r = put(c, run, c->w->regions[i].offset + (page << KI_PAGE_SHIFT), n,
			content ? content + ((page - first) << KI_PAGE_SHIFT) : NULL);
	if (r)
		return r;
	pthread_mutex_lock(&c->lock);
	c->done += run->bytes;
	pthread_mutex_unlock(&c->lock);
	return 0;
}

/* The first error, with what was said of it: in a thread that nobody asks. */
static void keep(struct kvmem_image_capture *c, int err)
{
	pthread_mutex_lock(&c->lock);
	if (!c->err) {
		c->err = err;
		snprintf(c->detail, sizeof(c->detail), "%s", kvmem_error_detail());
	}
	pthread_mutex_unlock(&c->lock);
}

static int before_write(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	struct kvmem_image_capture *c = arg;
	int r = store(c, run, content);

	if (r)
		keep(c, r);
	return r;
}

/* ---- making, starting ---- */

int kvmem_image_capture_create(const struct kvmem_capture_opts *opts,
			       struct kvmem_image_capture **ret_capture)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_image_capture *c;
	int r;

	if (!ret_capture)
		return ki_fail(EINVAL, "kvmem_image_capture_create: ret_capture is NULL");
	r = kvmem_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_capture_opts");
	if (!r && o.before_write)
		r = ki_fail(EINVAL, "kvmem_image_capture_create: opts: before_write is this "
				    "library's, and must be NULL");
	if (r)
		return r;
	c = calloc(1, sizeof(*c));
	if (!c)
		return ki_fail(ENOMEM, "kvmem_image_capture_create: no memory");
	pthread_mutex_init(&c->lock, NULL);
	o.before_write = before_write;
	o.arg = c;
	r = kvmem_capture_create(&o, &c->capture);
	if (r) {
		pthread_mutex_destroy(&c->lock);
		free(c);
		return ki_fail_as("kvmem_image_capture_create", r);
	}
	*ret_capture = c;
	return 0;
}

static void forget(struct kvmem_image_capture *c)
{
	free((void *)c->regions);
	ki_dirty_set_destroy(&c->set);
	c->regions = NULL;
	c->w = NULL;
}

static int check(const char *call, const struct kvmem_image_capture *c,
		 const struct kvmem_image_writer *w, struct kvmem_region *const *regions,
		 uint32_t region_count, uint32_t flags)
{
	if (!c || !w)
		return ki_fail(EINVAL, "%s: %s is NULL", call, c ? "writer" : "capture");
	if (c->w)
		return ki_fail(EBUSY, "%s: it has been started already", call);
	if (flags & ~KVMEM_IMAGE_ABSENT_FROM_PARENT || (flags && !w->parent))
		return ki_fail(EINVAL,
			       "%s: flags: unknown, or KVMEM_IMAGE_ABSENT_FROM_PARENT without a "
			       "parent",
			       call);
	return ki_writer_check_regions(w, call, regions, region_count);
}

/* Of what c->set has, or of all of the regions; nothing has begun when it fails. */
static int start(const char *call, struct kvmem_image_capture *c, struct kvmem_image_writer *writer,
		 struct kvmem_region *const *regions, uint32_t region_count, uint32_t flags,
		 bool dirty)
{
	struct kvmem_capture_stats stats = KVMEM_CAPTURE_STATS_INIT;
	int r;

	c->regions = malloc(region_count * sizeof(struct kvmem_region *));
	if (!c->regions)
		return ki_fail(ENOMEM, "%s: no memory", call);
	memcpy((void *)c->regions, (const void *)regions,
	       region_count * sizeof(struct kvmem_region *));
	c->w = writer;
	c->flags = flags;
	c->done = 0;
	c->err = 0;
	c->result = (struct kvmem_image_save_result)KVMEM_IMAGE_SAVE_RESULT_INIT;
	writer->saving = true; /* before the first page comes */
	r = dirty ? kvmem_capture_start_runs(c->capture, regions, region_count, c->set.runs,
					     c->set.run_count)
		  : kvmem_capture_start(c->capture, regions, region_count);
	if (r) {
		writer->saving = false;
		forget(c);
		return ki_fail_as(call, r);
	}
	kvmem_capture_get_stats(c->capture, &stats);
	c->total = stats.bytes;
	return 0;
}

int kvmem_image_capture_start(struct kvmem_image_capture *capture,
			      struct kvmem_image_writer *writer,
			      struct kvmem_region *const *regions, uint32_t region_count,
			      uint32_t flags)
{
	const char *call = "kvmem_image_capture_start";
	int r = check(call, capture, writer, regions, region_count, flags);

	return r ? r : start(call, capture, writer, regions, region_count, flags, false);
}

static int check_dirty(const struct kvmem_image_writer *w, const struct kvmem_batch *batch,
		       const struct kvmem_image_save_opts *o)
{
	if (!o->runs == !batch)
		return ki_fail(EINVAL,
			       "kvmem_image_capture_start_dirty: either a batch or opts->runs: "
			       "kvmem_image_capture_start() captures all");
	if (o->threads || o->progress || o->reserved)
		return ki_fail(EINVAL,
			       "kvmem_image_capture_start_dirty: opts: threads and progress are of "
			       "kvmem_image_capture_run(), and must be 0 as reserved");
	if (!o->runs && o->run_count)
		return ki_fail(EINVAL,
			       "kvmem_image_capture_start_dirty: opts: run_count without runs");
	if (batch && w && w->batch)
		return ki_fail(EINVAL,
			       "kvmem_image_capture_start_dirty: batch: the image has taken "
			       "one already");
	return 0;
}

static int start_dirty(struct kvmem_image_capture *c, struct kvmem_image_writer *w,
		       struct kvmem_region *const *regions, uint32_t region_count,
		       struct kvmem_batch *batch, const struct kvmem_image_save_opts *o)
{
	const char *call = "kvmem_image_capture_start_dirty";
	int r = ki_dirty_set_init(&c->set, w, regions, batch, o);

	if (r)
		r = ki_fail_as(call, r);
	else
		r = start(call, c, w, regions, region_count, o->flags, true);
	if (r)
		ki_dirty_set_destroy(&c->set);
	return r;
}

int kvmem_image_capture_start_dirty(struct kvmem_image_capture *capture,
				    struct kvmem_image_writer *writer,
				    struct kvmem_region *const *regions, uint32_t region_count,
				    struct kvmem_batch *batch,
				    const struct kvmem_image_save_opts *opts)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	int r = kvmem_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_image_save_opts");

	if (!r)
		r = check_dirty(writer, batch, &o);
	if (!r)
		r = check("kvmem_image_capture_start_dirty", capture, writer, regions, region_count,
			  o.flags);
	if (!r)
		r = start_dirty(capture, writer, regions, region_count, batch, &o);
	if (!r)
		writer->batch = batch ? batch : writer->batch;
	else if (batch && (!writer || writer->batch != batch))
		kvmem_batch_return(batch);
	return r;
}

/* ---- the background, and the end ---- */

static int tell(struct kvmem_image_capture *c)
{
	struct kvmem_image_progress p = { .size = sizeof(p), .total = c->total };

	pthread_mutex_lock(&c->lock);
	p.done = c->done;
	pthread_mutex_unlock(&c->lock);
	if (!c->o.progress || !c->o.progress(c->o.arg, &p))
		return 0;
	return ki_fail(ECANCELED, "kvmem_image_capture_run: canceled by progress");
}

static bool has_failed(struct kvmem_image_capture *c)
{
	bool failed;

	pthread_mutex_lock(&c->lock);
	failed = c->err != 0;
	pthread_mutex_unlock(&c->lock);
	return failed;
}

static void fetch(void *arg, bool caller)
{
	struct kvmem_image_capture *c = arg;
	uint64_t room = KI_PIECE;
	struct kvmem_capture_run run;
	char *buf;
	int r = 1, err;

	for (uint32_t i = 0; i < c->w->region_count; i++)
		if (kvmem_region_page_size(c->regions[i]) > room)
			room = kvmem_region_page_size(c->regions[i]);
	buf = aligned_alloc(KI_PAGE, room);
	if (!buf)
		r = ki_fail(ENOMEM, "kvmem_image_capture_run: no memory");
	else if (caller &&
		 tell(c)) /* once at least: the other threads may leave it nothing to do */
		r = -ECANCELED;
	while (r > 0 && !has_failed(c)) {
		r = kvmem_capture_next(c->capture, buf, room, &run);
		err = r > 0 ? store(c, &run, buf) : 0;
		if (!err && r > 0 && caller)
			err = tell(c);
		if (err)
			r = err;
	}
	/* -ECANCELED of the capture: another thread has failed, or somebody stops it. */
	if (r < 0)
		keep(c, r);
	free(buf);
}

/* It has ended, well or not; the writer can be committed if well. */
static int end(const char *call, struct kvmem_image_capture *c)
{
	int r = kvmem_capture_stop(c->capture);

	if (r == -EDEADLK || r == -EINVAL)
		return ki_fail_as(call, r);
	if (c->err)
		r = ki_fail(-c->err, "%s", c->detail);
	if (r)
		r = ki_fail_as(call, r);
	c->w->save_failed |= r != 0;
	c->w->saving = false;
	if (r)
		ki_writer_return_batch(c->w);
	forget(c);
	return r;
}

int kvmem_image_capture_run(struct kvmem_image_capture *capture,
			    const struct kvmem_image_save_opts *opts,
			    struct kvmem_image_save_result *ret_result)
{
	struct kvmem_image_capture *c = capture;
	uint64_t begin = ki_now_ns();
	int r;

	if (!c || !c->w)
		return ki_fail(EINVAL, "kvmem_image_capture_run: %s",
			       c ? "not started" : "capture is NULL");
	if (c->running)
		return ki_fail(EBUSY, "kvmem_image_capture_run: it is not over");
	r = kvmem_opts_copy(&c->o, sizeof(c->o), sizeof(c->o), opts, "kvmem_image_save_opts");
	if (!r && (c->o.flags || c->o.reserved || c->o.runs || c->o.run_count ||
		   c->o.threads > KI_MAX_WORKERS))
		r = ki_fail(
			EINVAL,
			"kvmem_image_capture_run: opts: flags and runs are of "
			"kvmem_image_capture_start_dirty(), and must be 0 as reserved; threads: "
			"at most %u",
			KI_MAX_WORKERS);
	if (!r && ret_result)
		r = kvmem_result_check(ret_result, sizeof(c->result), "kvmem_image_save_result");
	if (r)
		return r;
	c->result.threads = ki_workers(c->o.threads);
	c->running = true;
	ki_workers_run("kvmem-save", c->result.threads, fetch, c);
	c->running = false;
	r = end("kvmem_image_capture_run", c);
	c->result.ns = ki_now_ns() - begin;
	if (!r && ret_result)
		kvmem_result_copy(ret_result, &c->result, sizeof(c->result));
	return r;
}

int kvmem_image_capture_stop(struct kvmem_image_capture *capture)
{
	if (!capture || !capture->w)
		return ki_fail(EINVAL, "kvmem_image_capture_stop: %s",
			       capture ? "not started" : "capture is NULL");
	if (capture->running)
		return ki_fail(EBUSY, "kvmem_image_capture_stop: kvmem_image_capture_run() is not "
				      "over: progress cancels it by another value than 0");
	return end("kvmem_image_capture_stop", capture);
}

int kvmem_image_capture_get_stats(const struct kvmem_image_capture *capture,
				  struct kvmem_capture_stats *ret_stats)
{
	int r;

	if (!capture)
		return ki_fail(EINVAL, "kvmem_image_capture_get_stats: capture is NULL");
	r = kvmem_capture_get_stats(capture->capture, ret_stats);
	return r ? ki_fail_as("kvmem_image_capture_get_stats", r) : 0;
}

int kvmem_image_capture_free(struct kvmem_image_capture *capture)
{
	int r;

	if (!capture)
		return 0;
	if (capture->w)
		return ki_fail(EBUSY, "kvmem_image_capture_free: it is started: "
				      "kvmem_image_capture_stop() it first");
	r = kvmem_capture_free(capture->capture);
	if (r)
		return ki_fail_as("kvmem_image_capture_free", r);
	pthread_mutex_destroy(&capture->lock);
	free(capture);
	return 0;
}
