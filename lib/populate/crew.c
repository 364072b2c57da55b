// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The threads of a populate, and the claims of others that it waits for. */
#include "populate/populate_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* ---- threads ---- */

static int fill_piece(struct km_filler *w, struct km_piece *p)
{
	int r;

	if (!p->data)
		return w->f->keep_zero ? km_buffer_zeros(w, p) : km_piece_empty(w, p);
	r = km_flight_start(w, p);
	return r ? r : km_buffer_fill(w, p);
}

static void fill(struct km_filler *w)
{
	struct km_fill *f = w->f;
	struct km_piece p;
	int r;

	km_numa_save(&w->numa);
	for (;;) {
		if (!w->index)
			km_fill_tick(f, false);
		r = km_fill_next(w, &p);
		if (r <= 0)
			break;
		r = fill_piece(w, &p);
		if (r < 0)
			break;
	}
	if (r < 0)
		km_fill_stop(f, r);
	r = km_flight_drain(w);
	if (r < 0)
		km_fill_stop(f, r);
	km_fill_release(w);
	km_numa_leave(&w->numa);
	km_sys_free(w->buf);
	w->buf = NULL;
	w->numa_from = w->numa_end = 0;
}

/* Where the first page of its share is to be: what it stores is then near. Never the caller's
 * thread. */
static void go_near(struct km_filler *w)
{
	struct km_fill *f = w->f;
	uint64_t page = f->first_page + w->first * f->chunk_pages;
	int node = km_numa_node_at(f->r, page << f->r->page_shift);

	if (node >= 0)
		km_sys_run_near_node(node);
}

static void *thread_main(void *arg)
{
	go_near(arg);
	fill(arg);
	return NULL;
}

static void share_out(struct km_fill *f)
{
	for (unsigned int i = 0; i < f->threads; i++) {
		struct km_filler *w = &f->fillers[i];

		w->f = f;
		w->index = i;
		w->first = f->chunks * i / f->threads;
		atomic_store(&w->next, w->first);
		w->end = f->chunks * (i + 1) / f->threads;
	}
}

/* Of what is read in place, only pages that the range covers in part go through the buffer. */
static bool wants_buffer(const struct km_fill *f)
{
	return !f->in_place || ((f->offset | f->end) & (f->page_bytes - 1));
}

static bool start(struct km_filler *w)
{
	char name[16];

	if (wants_buffer(w->f) && km_buffer_need(w))
		return false;
	snprintf(name, sizeof(name), "kvmem-fill-%u", w->index % 1000u);
	w->started = km_sys_thread_create(&w->thread, name, NULL, thread_main, w) >= 0;
	if (!w->started) {
		km_sys_free(w->buf);
		w->buf = NULL;
	}
	return w->started;
}

/*
 * A thread that cannot be had is done without: the others take its share. The buffers are made
 * before the threads, whose stacks could otherwise take what is left of a small limit.
 */
static unsigned int run(struct km_fill *f)
{
	unsigned int started = 1;
	int r = wants_buffer(f) ? km_buffer_need(&f->fillers[0]) : 0;

	if (r)
		km_fill_stop(f, r);
	for (unsigned int i = 1; i < f->threads && !r; i++)
		started += start(&f->fillers[i]);
	fill(&f->fillers[0]);
	for (unsigned int i = 1; i < f->threads; i++)
		if (f->fillers[i].started)
			km_sys_thread_join(&f->fillers[i].thread);
	return started;
}

/* ---- pages that others had claimed ---- */

static uint64_t take_deferred(struct km_fill *f)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < f->threads; i++) {
		sum += f->fillers[i].deferred;
		f->fillers[i].deferred = 0;
	}
	return sum;
}

static void wait_for_others(struct km_fill *f)
{
	uint64_t page = f->first_page, end = f->first_page + f->pages;
	enum km_page_state state;

	while (page < end && !km_fill_stopped(f)) {
		uint64_t n = km_presence_run(&f->r->presence, page, end - page, &state);

		if (state != KM_CLAIMED) {
			page += n;
			continue;
		}
		km_pages_wait(f->r, page, n, KM_FILL_TICK_NS);
		km_fill_tick(f, false);
	}
}

/* Nothing is claimed by this call while it waits. Then what was given up is filled. */
static void settle(struct km_fill *f)
{
	struct km_filler *w = &f->fillers[0];

	while (!km_fill_stopped(f) && take_deferred(f)) {
		wait_for_others(f);
		for (unsigned int i = 0; i < f->threads; i++)
			f->fillers[i].end = 0;
		atomic_store(&w->next, 0);
		w->end = f->chunks;
		w->recount = true;
		fill(w);
	}
}

int km_fill_crew(struct km_fill *f, unsigned int *ret_threads)
{
	share_out(f);
	*ret_threads = run(f);
	settle(f);
	return atomic_load(&f->error);
}
