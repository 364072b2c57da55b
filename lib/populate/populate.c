// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_populate(): what is asked for, the threads, progress, the end. */
#include "populate/populate_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TICK_NS	     50000000u
#define MOST_THREADS 256u
#define AUTO_THREADS 8u		 /* beyond, they wait for each other in the kernel */
#define AUTO_SHARE   (16u << 20) /* bytes that make another thread worth its start */

const char *kvmem_fill_method_name(uint32_t method)
{
	static const char *const names[] = { "auto", "write", "uffd-copy", "populate+copy",
					     "copy" };

	return method < KM_ARRAY_SIZE(names) ? names[method] : NULL;
}

const char *kvmem_file_method_name(uint32_t method)
{
	static const char *const names[] = { "auto", "io_uring+O_DIRECT", "io_uring", "pread" };

	return method < KM_ARRAY_SIZE(names) ? names[method] : NULL;
}

bool km_fill_stopped(struct km_fill *f)
{
	return atomic_load_explicit(&f->stop, memory_order_relaxed);
}

void km_fill_fail(struct km_fill *f, int error)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&f->error, &none, error))
		snprintf(f->detail, sizeof(f->detail), "%s", kvmem_error_detail());
	atomic_store(&f->stop, 1);
}

/* ---- progress ---- */

static void tick(struct km_fill *f, bool last)
{
	struct kvmem_progress p = { .size = sizeof(p), .total = f->end - f->offset };
	uint64_t now;

	if (!f->opts.progress)
		return;
	now = km_sys_now_ns();
	if (!last && now - f->tick_ns < TICK_NS)
		return;
	f->tick_ns = now;
	p.elapsed_ns = now - f->start_ns;
	for (unsigned int i = 0; i < f->threads; i++)
		p.done += atomic_load_explicit(&f->fillers[i].done, memory_order_relaxed);
	if (f->opts.progress(f->opts.progress_arg, &p) && !last)
		km_fill_fail(f,
			     km_fail(ECANCELED,
				     "populate: canceled by the progress callback after 0x%" PRIx64
				     " of 0x%" PRIx64 " bytes",
				     p.done, p.total));
}

/* ---- threads ---- */

static void fill(struct km_filler *w)
{
	struct km_fill *f = w->f;
	struct km_piece p;
	int r;

	km_numa_save(&w->numa);
	for (;;) {
		if (!w->index)
			tick(f, false);
		r = km_fill_next(w, &p);
		if (r <= 0)
			break;
		r = km_fill_start(w, &p);
		if (!r)
			r = km_fill_piece(w, &p);
		if (r < 0)
			break;
	}
	if (r < 0)
		km_fill_fail(f, r);
	r = km_fill_drain(w);
	if (r < 0)
		km_fill_fail(f, r);
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

static unsigned int threads_for(const struct km_fill *f)
{
	uint64_t n = f->opts.threads, cpus = km_sys_cpus();

	if (!n) {
		n = 1 + (f->end - f->offset) / AUTO_SHARE;
		n = n < cpus ? n : cpus;
		n = n < AUTO_THREADS ? n : AUTO_THREADS;
	}
	return (unsigned int)(n < f->chunks ? n : f->chunks);
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

/* A thread that cannot be had is done without: the others take its share. */
static unsigned int run(struct km_fill *f)
{
	unsigned int started = 1;
	char name[16];

	for (unsigned int i = 1; i < f->threads; i++) {
		struct km_filler *w = &f->fillers[i];

		snprintf(name, sizeof(name), "kvmem-fill-%u", i % 1000u);
		w->started = km_sys_thread_create(&w->thread, name, thread_main, w) >= 0;
		started += w->started;
	}
	fill(&f->fillers[0]);
	for (unsigned int i = 1; i < f->threads; i++)
		if (f->fillers[i].started)
			km_sys_thread_join(f->fillers[i].thread);
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
		km_sys_yield();
		tick(f, false);
	}
}

/* Wait until they are filled; fill what was given up. */
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

/* ---- result ---- */

static uint32_t most(const uint64_t *bytes, unsigned int count)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i < count; i++)
		if (bytes[i] > bytes[best])
			best = i;
	return best;
}

static void sum_up(struct km_fill *f, unsigned int threads, struct kvmem_populate_result *res)
{
	uint64_t method[KM_FILL_METHODS] = { 0 }, file[KM_FILE_METHODS] = { 0 };

	for (unsigned int i = 0; i < f->threads; i++) {
		const struct km_fill_counts *c = &f->fillers[i].counts;

		res->bytes_copied += c->copied;
		res->bytes_written += c->written;
		res->bytes_read += c->read;
		res->bytes_zero += c->zero;
		res->bytes_hole += c->hole;
		res->bytes_present += c->present;
		for (unsigned int m = 0; m < KM_FILL_METHODS; m++)
			method[m] += c->method[m];
		for (unsigned int m = 0; m < KM_FILE_METHODS; m++)
			file[m] += c->file[m];
	}
	/* What others filled meanwhile was never counted: it is the rest. */
	if (!atomic_load(&f->error))
		res->bytes_present = f->end - f->offset - res->bytes_copied - res->bytes_written -
				     res->bytes_read - res->bytes_zero - res->bytes_hole;
	res->method = f->opts.method ? f->opts.method : most(method, KM_FILL_METHODS);
	res->file_method = most(file, KM_FILE_METHODS);
	res->threads = threads;
	res->elapsed_ns = km_sys_now_ns() - f->start_ns;
}

/* ---- arguments ---- */

static int check_opts(const struct kvmem_populate_opts *o)
{
	int r = km_flags_check(o->flags, KVMEM_POPULATE_KEEP_ZERO, "kvmem_populate_opts.flags");

	if (r)
		return r;
	if (o->method >= KM_FILL_METHODS || o->file_method >= KM_FILE_METHODS)
		return km_fail(EINVAL, "populate: method %u, file method %u: one is unknown",
			       o->method, o->file_method);
	if (o->threads > MOST_THREADS)
		return km_fail(EINVAL, "populate: %u threads, %u at most", o->threads,
			       MOST_THREADS);
	if (o->reserved)
		return km_fail(EINVAL, "populate: reserved is %u, must be 0", o->reserved);
	return 0;
}

static int check_range(struct km_fill *f, uint64_t offset)
{
	const struct kvmem_populate_opts *o = &f->opts;
	uint64_t have = f->s->bytes, bytes = o->bytes;
	int r;

	if (offset >= f->r->bytes)
		return km_fail(ERANGE,
			       "populate: offset 0x%" PRIx64 " is not below the 0x%" PRIx64
			       " bytes of the region",
			       offset, f->r->bytes);
	if (o->source_offset >= have)
		return km_fail(ENODATA,
			       "populate: source offset 0x%" PRIx64 " is not below the 0x%" PRIx64
			       " bytes of the source",
			       o->source_offset, have);
	have -= o->source_offset;
	if (!bytes)
		bytes = have < f->r->bytes - offset ? have : f->r->bytes - offset;
	r = km_range_check(offset, bytes, f->r->bytes, "populate: range of the region");
	if (r)
		return r;
	if (bytes > have)
		return km_fail(ENODATA,
			       "populate: 0x%" PRIx64
			       " bytes are asked for, and the source has 0x%" PRIx64
			       " from offset 0x%" PRIx64 " on",
			       bytes, have, o->source_offset);
	f->offset = offset;
	f->end = offset + bytes;
	f->source_offset = o->source_offset;
	return 0;
}

static int lay_out(struct km_fill *f)
{
	uint64_t chunk = f->opts.chunk_bytes;
	int r;

	f->page_bytes = km_region_page(f->r);
	f->grain = km_sys_page_size();
	if (!chunk)
		chunk = f->page_bytes > KM_FILL_BLOCK ? f->page_bytes : KM_FILL_BLOCK;
	r = km_align_check(chunk, f->page_bytes, "populate: chunk_bytes");
	if (r)
		return r;
	f->keep_zero = f->opts.flags & KVMEM_POPULATE_KEEP_ZERO;
	f->first_page = f->offset >> f->r->page_shift;
	f->pages = ((f->end + f->page_bytes - 1) >> f->r->page_shift) - f->first_page;
	f->chunk_pages = chunk >> f->r->page_shift;
	f->chunks = (f->pages + f->chunk_pages - 1) / f->chunk_pages;
	f->threads = threads_for(f);
	return 0;
}

/* ---- the whole ---- */

/* From here until leave() no pager comes or goes. */
static int enter(struct km_fill *f)
{
	pthread_mutex_lock(&f->r->lock);
	atomic_fetch_add(&f->r->fillers, 1);
	f->ops = f->r->fault_ops;
	pthread_mutex_unlock(&f->r->lock);
	km_source_get(f->s);
	f->in_place = km_source_in_place(f->s, f->source_offset, f->end - f->offset);
	return km_region_store(f->r, &f->store);
}

static void leave(struct km_fill *f)
{
	km_source_put(f->s);
	atomic_fetch_sub(&f->r->fillers, 1);
}

static int fill_all(struct km_fill *f, struct kvmem_populate_result *res)
{
	unsigned int threads;
	int r = enter(f);

	if (!r)
		r = km_fill_choose(f);
	if (!r)
		r = km_fill_file_open(f);
	if (r)
		goto out;
	f->fillers = km_sys_alloc(f->threads * sizeof(*f->fillers));
	if (!f->fillers) {
		r = km_fail(ENOMEM, "populate: no memory for the state of %u threads", f->threads);
		goto out;
	}
	share_out(f);
	threads = run(f);
	settle(f);
	r = atomic_load(&f->error);
	if (r)
		km_fail(-r, "%s", f->detail);
	else
		tick(f, true);
	sum_up(f, threads, res);
	km_sys_free(f->fillers);
out:
	km_fill_file_close(f);
	leave(f);
	return r;
}

int kvmem_populate(struct kvmem_region *region, uint64_t offset, struct kvmem_source *source,
		   const struct kvmem_populate_opts *opts, struct kvmem_populate_result *ret_result)
{
	struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
	struct km_fill f = { .r = region, .s = source, .direct_fd = -1 };
	int r;

	if (!region || !source)
		return km_fail(EINVAL, "populate: %s is NULL", region ? "source" : "region");
	r = ret_result ? km_result_check(ret_result, sizeof(res), "kvmem_populate_result") : 0;
	if (!r)
		r = km_opts_copy(&f.opts, sizeof(f.opts), sizeof(f.opts), opts,
				 "kvmem_populate_opts");
	if (!r)
		r = check_opts(&f.opts);
	if (!r)
		r = check_range(&f, offset);
	if (!r)
		r = lay_out(&f);
	if (r)
		return r;
	f.start_ns = f.tick_ns = km_sys_now_ns();
	r = fill_all(&f, &res);
	if (ret_result)
		km_result_copy(ret_result, &res, sizeof(res));
	return r;
}
