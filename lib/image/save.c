// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A guest's memory into an image. Each thread copies a piece out of the memory, and what it has copied is what it
 * checks for zeros, sums and writes: were the memory written from directly, a page that somebody changes meanwhile
 * would have a wrong sum, and be lost.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/internal.h"

#define MOST_PIECES \
	64u /* that a thread takes at once: pages that are dirty are mostly single ones */

struct save {
	const char *call;
	struct kvmem_image_writer *w;
	struct kvmem_image_save_opts o;
	struct kvmem_image_save_result result;
	pthread_mutex_t lock; /* what follows */
	struct ki_next next;
	uint64_t done, total; /* bytes */
	int err;	      /* the first error, and what was said of it */
	char detail[512];
};

/* What a thread has taken. */
struct job {
	struct ki_piece pieces[MOST_PIECES];
	uint32_t count;
	char *buf; /* KI_PIECE */
	uint64_t data, zero, absent;
};

/* ---- jobs ---- */

static bool is_copied(const struct save *s, const struct ki_piece *p)
{
	return p->kind == KVMEM_STORED_DATA ||
	       (p->kind == KVMEM_STORED_ABSENT && !(s->o.flags & KVMEM_IMAGE_ABSENT_FROM_PARENT));
}

/* Pieces that fit into the buffer together. 1, or 0 at the end. */
static int take(struct save *s, struct job *j)
{
	uint64_t room = KI_PIECE;
	int r = 1;

	j->count = 0;
	while (j->count < MOST_PIECES && room >= KI_PIECE / 2) {
		struct ki_piece *p = &j->pieces[j->count];

		r = ki_next_piece(&s->next, p);
		if (r <= 0)
			break;
		j->count++;
		if (!is_copied(s, p))
			continue;
		if (p->bytes > room) { /* the rest of it comes next */
			s->next.at -= p->bytes - room;
			p->bytes = room;
		}
		room -= p->bytes;
	}
	return r < 0 ? r : j->count != 0;
}

static int save_piece(struct save *s, struct job *j, const struct ki_piece *p)
{
	uint64_t page = p->to >> KI_PAGE_SHIFT, count = p->bytes >> KI_PAGE_SHIFT, stored = 0;
	int r;

	if (p->kind == KVMEM_STORED_POISONED)
		return ki_fail(EIO,
			       "%s: byte 0x%" PRIx64
			       " of the image: a page that could not be filled is poisoned",
			       s->call, p->to);
	if (p->kind == KVMEM_STORED_ABSENT && !is_copied(s, p)) {
		j->absent += p->bytes;
		/* An earlier pass may have stored what they held then. */
		return ki_writer_put_parents(s->w, page, count);
	}
	if (p->kind == KVMEM_STORED_ZERO) {
		j->zero += p->bytes;
		return ki_writer_put(s->w, page, count, NULL, NULL);
	}
	r = kvmem_region_read(p->region, p->from, j->buf, p->bytes);
	if (!r)
		r = ki_writer_put(s->w, page, count, j->buf, &stored);
	j->data += stored << KI_PAGE_SHIFT;
	j->zero += (count - stored) << KI_PAGE_SHIFT;
	return r;
}

static int do_job(struct save *s, struct job *j)
{
	int r = 0;

	j->data = j->zero = j->absent = 0;
	for (uint32_t i = 0; !r && i < j->count; i++)
		r = save_piece(s, j, &j->pieces[i]);
	/* Pages of a batch, or of runs, are all over the memory: what lies between them is none of this thread's. */
	if (!r && j->data && !s->next.batch && !s->next.runs) {
		const struct ki_piece *first = &j->pieces[0], *last = &j->pieces[j->count - 1];

		ki_writer_flush(s->w, first->to >> KI_PAGE_SHIFT,
				(last->to + last->bytes - first->to) >> KI_PAGE_SHIFT);
	}
	return r;
}

/* ---- threads ---- */

static void stop(struct save *s, int err)
{
	if (s->err)
		return;
	s->err = err;
	snprintf(s->detail, sizeof(s->detail), "%s", kvmem_error_detail());
}

/* With the lock held, and again when it returns: the caller's function does not block the others. */
static void tell(struct save *s)
{
	struct kvmem_image_progress p = { .size = sizeof(p), .done = s->done, .total = s->total };
	bool cancel;

	pthread_mutex_unlock(&s->lock);
	cancel = s->o.progress(s->o.arg, &p) != 0;
	pthread_mutex_lock(&s->lock);
	if (cancel)
		stop(s, ki_fail(ECANCELED, "%s: canceled by progress", s->call));
}

static void work(void *arg, bool caller)
{
	struct save *s = arg;
	struct job j = { .buf = aligned_alloc(KI_PAGE, KI_PIECE) };
	int r = j.buf ? 0 : ki_fail(ENOMEM, "%s: no memory", s->call);

	pthread_mutex_lock(&s->lock);
	if (!r && caller && s->o.progress && !s->err)
		tell(s); /* once at least: the other threads may leave it nothing to do */
	while (!r && !s->err) {
		r = take(s, &j);
		if (r <= 0)
			break;
		pthread_mutex_unlock(&s->lock);
		r = do_job(s, &j);
		pthread_mutex_lock(&s->lock);
		s->result.bytes_data += j.data;
		s->result.bytes_zero += j.zero;
		s->result.bytes_absent += j.absent;
		s->done += j.data + j.zero + j.absent;
		if (!r && caller && s->o.progress && !s->err)
			tell(s);
	}
	if (r < 0)
		stop(s, r);
	pthread_mutex_unlock(&s->lock);
	free(j.buf);
}

static uint64_t total(const struct save *s)
{
	uint64_t bytes = 0;

	if (s->next.batch)
		return kvmem_batch_pages(s->next.batch) * KI_PAGE;
	if (!s->next.runs)
		return s->w->bytes;
	for (uint64_t i = 0; i < s->next.run_count; i++)
		bytes += s->next.runs[i].bytes;
	return bytes;
}

static int save_all(struct save *s)
{
	uint64_t begin = ki_now_ns();

	s->total = total(s);
	s->result.threads = ki_workers(s->o.threads);
	ki_workers_run("kvmem-save", s->result.threads, work, s);
	s->result.ns = ki_now_ns() - begin;
	return s->err ? ki_fail(-s->err, "%s", s->detail) : 0;
}

int ki_save(const char *call, struct kvmem_image_writer *w, struct kvmem_region *const *regions,
	    struct kvmem_batch *batch, const struct kvmem_image_save_opts *o,
	    struct kvmem_image_save_result *ret)
{
	struct save *s = calloc(1, sizeof(*s));
	int r;

	if (!s) {
		w->save_failed = true;
		return ki_fail(ENOMEM, "%s: no memory", call);
	}
	s->call = call;
	s->w = s->next.w = w;
	s->o = *o;
	s->next.regions = regions;
	s->next.batch = batch;
	s->next.runs = o->runs;
	s->next.run_count = o->run_count;
	pthread_mutex_init(&s->lock, NULL);
	w->saving = true;
	r = ki_next_begin(&s->next);
	if (!r)
		r = save_all(s);
	w->saving = false;
	w->save_failed |= r != 0;
	*ret = s->result;
	if (r)
		r = ki_fail_as(call, r);
	pthread_mutex_destroy(&s->lock);
	free(s);
	return r;
}

/* ---- the call ---- */

static int check_opts(const struct kvmem_image_writer *w, const struct kvmem_image_save_opts *o,
		      const struct kvmem_batch *batch)
{
	if (o->flags & ~KVMEM_IMAGE_ABSENT_FROM_PARENT || o->reserved)
		return ki_fail(EINVAL, "kvmem_image_save_opts: unknown flags, or reserved not 0");
	if (o->flags & KVMEM_IMAGE_ABSENT_FROM_PARENT && !w->parent)
		return ki_fail(EINVAL, "kvmem_image_save_opts: KVMEM_IMAGE_ABSENT_FROM_PARENT, and "
				       "the image has no parent");
	if (o->threads > KI_MAX_WORKERS)
		return ki_fail(EINVAL, "kvmem_image_save_opts: threads: at most %u",
			       KI_MAX_WORKERS);
	if (o->runs && batch)
		return ki_fail(EINVAL, "kvmem_image_save_opts: runs, and there is a batch");
	if (!o->runs && o->run_count)
		return ki_fail(EINVAL, "kvmem_image_save_opts: run_count without runs");
	if (batch && w->batch)
		return ki_fail(EINVAL, "kvmem_image_save: batch: the image has taken one already");
	return 0;
}

int kvmem_image_save(struct kvmem_image_writer *writer, struct kvmem_region *const *regions,
		     uint32_t region_count, struct kvmem_batch *batch,
		     const struct kvmem_image_save_opts *opts,
		     struct kvmem_image_save_result *ret_result)
{
	struct kvmem_image_save_result result = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct ki_next all = { .w = writer, .regions = regions };
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	int r = 0;

	if (!writer)
		r = ki_fail(EINVAL, "kvmem_image_save: writer is NULL");
	if (!r && ret_result)
		r = kvmem_result_check(ret_result, sizeof(result), "kvmem_image_save_result");
	if (!r)
		r = ki_writer_check_regions(writer, "kvmem_image_save", regions, region_count);
	if (!r)
		r = kvmem_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_image_save_opts");
	if (!r)
		r = check_opts(writer, &o, batch);
	if (!r) {
		all.runs = o.runs;
		all.run_count = o.run_count;
		r = ki_next_check(&all);
	}
	if (r) {
		if (batch && (!writer || writer->batch != batch))
			kvmem_batch_return(batch);
		return r;
	}
	if (batch)
		writer->batch = batch;
	r = ki_save("kvmem_image_save", writer, regions, batch, &o, &result);
	if (r)
		ki_writer_return_batch(writer);
	if (!r && ret_result)
		kvmem_result_copy(ret_result, &result, sizeof(result));
	return r;
}
