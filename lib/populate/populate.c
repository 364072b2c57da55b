// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_populate(): what is asked for, the threads, progress, the end. */
#include "populate/populate_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define THREADS_THAT_WAIT 8u

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
	const uint64_t both = KVMEM_FILL_KEEP | KVMEM_FILL_OVERWRITE;
	int r = km_flags_check(o->flags,
			       KVMEM_POPULATE_KEEP_ZERO | KVMEM_POPULATE_PREALLOC |
				       KVMEM_POPULATE_MAP_GUEST | KVMEM_POPULATE_MAP_NEEDED | both,
			       "kvmem_populate_opts.flags");

	if (r)
		return r;
	if ((o->flags & both) == both)
		return km_fail(
			EINVAL,
			"populate: KVMEM_FILL_KEEP and KVMEM_FILL_OVERWRITE exclude each other");
	if (o->reserved)
		return km_fail(EINVAL, "kvmem_populate_opts.reserved must be 0");
	if (o->method >= KM_FILL_METHODS || o->file_method >= KM_FILE_METHODS)
		return km_fail(EINVAL, "populate: method %u, file method %u: one is unknown",
			       o->method, o->file_method);
	if (o->threads > KM_FILL_MOST_THREADS)
		return km_fail(EINVAL, "populate: %u threads, %u at most", o->threads,
			       KM_FILL_MOST_THREADS);
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
	f->threads = f->opts.threads;
	if (!f->threads && f->s->kind == KM_SOURCE_ASYNC) /* they wait for answers, not for CPUs */
		f->threads = THREADS_THAT_WAIT;
	f->threads = km_fill_threads(f->threads, f->end - f->offset, f->chunks);
	return 0;
}

/* ---- the whole ---- */

/* What exists and nobody has announced is neither left in place nor overwritten unasked. */
static int look_at_unannounced(struct km_fill *f)
{
	return km_pages_unannounced(f->r, f->first_page, f->pages,
				    f->opts.flags & (KVMEM_FILL_KEEP | KVMEM_FILL_OVERWRITE),
				    "populate");
}

/* From here until leave() no pager comes or goes. */
static int enter(struct km_fill *f)
{
	int r;

	km_pages_enter(f->r);
	f->watched = km_pages_watched(f->r);
	km_source_get(f->s);
	f->in_place = km_source_in_place(f->s, f->source_offset, f->end - f->offset);
	r = km_store_check(f->r, km_fill_pos(f, f->first_page), f->pages << f->r->page_shift);
	return r ? r : km_region_store(f->r, &f->store);
}

static void leave(struct km_fill *f)
{
	km_source_put(f->s);
	km_pages_leave(f->r);
}

static int fill_all(struct km_fill *f, struct kvmem_populate_result *res)
{
	unsigned int threads;
	int r = enter(f);

	if (!r)
		r = km_method_choose(f);
	if (!r)
		r = km_flight_prepare(f);
	if (!r)
		r = look_at_unannounced(f);
	if (r)
		goto out;
	f->fillers = km_sys_alloc(f->threads * sizeof(*f->fillers));
	if (!f->fillers) {
		r = km_fail(ENOMEM, "populate: no memory for the state of %u threads", f->threads);
		goto out;
	}
	r = km_fill_crew(f, &threads);
	if (r)
		km_fail(-r, "%s", f->detail);
	else
		km_fill_tick(f, true);
	sum_up(f, threads, res);
	km_sys_free(f->fillers);
out:
	km_flight_finish(f);
	leave(f);
	return r;
}

static int check_call(const struct kvmem_region *region, const struct kvmem_source *source,
		      const struct kvmem_populate_opts *opts, struct kvmem_populate_opts *o,
		      struct kvmem_populate_result *ret_result)
{
	int r;

	if (!region)
		return km_fail(EINVAL, "populate: region is NULL");
	r = km_callback_check("kvmem_populate", region);
	if (!r)
		r = km_region_fill_check(region, "kvmem_populate");
	if (!r && ret_result)
		r = km_result_check(ret_result, sizeof(*ret_result), "kvmem_populate_result");
	if (!r)
		r = km_opts_copy(o, sizeof(*o), sizeof(*o), opts, "kvmem_populate_opts");
	if (!r)
		r = check_opts(o);
	if (!r && !source != !!(o->flags & KVMEM_POPULATE_PREALLOC))
		r = km_fail(EINVAL, source ? "populate: source with KVMEM_POPULATE_PREALLOC: "
					     "zeros need none"
					   : "populate: source is NULL");
	return r ? r : km_map_guest_check(region, o);
}

static int from_source(struct kvmem_region *region, uint64_t offset, struct kvmem_source *source,
		       const struct kvmem_populate_opts *o, struct kvmem_populate_result *res,
		       uint64_t *ret_bytes)
{
	struct km_fill f = { .r = region, .s = source, .opts = *o, .direct_fd = -1 };
	int r = check_range(&f, offset);

	if (!r)
		r = lay_out(&f);
	if (r)
		return r;
	*ret_bytes = f.end - f.offset;
	f.start_ns = f.tick_ns = km_sys_now_ns();
	return fill_all(&f, res);
}

int kvmem_populate(struct kvmem_region *region, uint64_t offset, struct kvmem_source *source,
		   const struct kvmem_populate_opts *opts, struct kvmem_populate_result *ret_result)
{
	struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_populate_opts o;
	uint64_t bytes = 0;
	int r = check_call(region, source, opts, &o, ret_result);

	if (r)
		return r;
	if (source) {
		r = from_source(region, offset, source, &o, &res, &bytes);
	} else {
		r = km_prealloc(region, offset, &o, &res);
		bytes = res.bytes_made + res.bytes_present;
	}
	if (!r && o.flags & KVMEM_POPULATE_MAP_GUEST)
		r = km_map_guest(region, offset, bytes, &o, &res);
	if (ret_result)
		km_result_copy(ret_result, &res, sizeof(res));
	return r;
}
