// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Content into the kernel's pages, by each method, and which method it shall be. */
#include "populate/populate_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "fill/store.h"

#define TRIAL_BYTES (768u << 10) /* by each method before they are compared */

/* ---- methods: 0, KM_STORE_REFUSED or -errno ---- */

static int store_by(struct km_fill *f, uint32_t method, uint64_t pos, const uint8_t *src,
		    uint64_t bytes, uint64_t *mapped)
{
	switch (method) {
	case KVMEM_FILL_WRITE:
		return km_store_write(f->r, f->store, pos, src, bytes);
	case KVMEM_FILL_UFFD_COPY:
		return f->ops->place(f->r, pos, src, bytes, mapped);
	case KVMEM_FILL_POPULATE_COPY:
		return km_store_populate(f->r, f->store, pos, src, bytes);
	default:
		return km_store_copy(f->r, f->store, pos, src, bytes);
	}
}

/* ---- which one ---- */

static const char *why_not(const struct km_fill *f, uint32_t method)
{
	switch (method) {
	case KVMEM_FILL_WRITE:
		return km_store_no_write(f->r, f->offset, f->end - f->offset);
	case KVMEM_FILL_UFFD_COPY:
		if (!f->ops)
			return "no pager serves the region, so it has no userfaultfd";
		return f->page_bytes > f->grain
			       ? "a userfaultfd takes whole pages, and huge ones are filled in parts"
			       : NULL;
	default:
		return f->store ? NULL
				: "a pager serves this anonymous memory, which can only be filled "
				  "through its userfaultfd";
	}
}

/* The methods to try, from what is asked for and what the memory is. */
int km_fill_choose(struct km_fill *f)
{
	uint32_t want = f->opts.method, all = 0;

	if (want != KVMEM_FILL_AUTO) {
		if (why_not(f, want))
			return km_fail(EOPNOTSUPP, "populate: method %s: %s",
				       kvmem_fill_method_name(want), why_not(f, want));
		atomic_store(&f->method, want);
		return 0;
	}
	if (!f->store && !f->ops)
		return km_fail(EOPNOTSUPP,
			       "populate: a pager holds this anonymous memory and does not "
			       "serve it: start the pager, or populate before it is added");
	if (!f->store) {
		atomic_store(&f->method, KVMEM_FILL_UFFD_COPY);
		return 0;
	}
	all = 1u << KVMEM_FILL_POPULATE_COPY;
	if (!why_not(f, KVMEM_FILL_WRITE))
		all |= 1u << KVMEM_FILL_WRITE;
	else
		atomic_store(&f->method, KVMEM_FILL_POPULATE_COPY);
	atomic_store(&f->candidates, all);
	return 0;
}

static uint32_t pick(struct km_fill *f)
{
	uint32_t method = atomic_load_explicit(&f->method, memory_order_relaxed);
	uint32_t all = atomic_load_explicit(&f->candidates, memory_order_relaxed);
	uint64_t least = UINT64_MAX;

	if (method != KVMEM_FILL_AUTO)
		return method;
	for (uint32_t m = 0; m < KM_FILL_METHODS; m++) {
		uint64_t bytes = atomic_load_explicit(&f->trial[m].bytes, memory_order_relaxed);

		if (!(all & 1u << m) || bytes >= least)
			continue;
		least = bytes;
		method = m;
	}
	return method;
}

/* When all have had their turn, the fastest stays. */
static void judge(struct km_fill *f, uint32_t method, uint64_t bytes, uint64_t ns)
{
	uint32_t all = atomic_load_explicit(&f->candidates, memory_order_relaxed), best = 0;
	double least = 0;

	atomic_fetch_add_explicit(&f->trial[method].ns, ns, memory_order_relaxed);
	atomic_fetch_add_explicit(&f->trial[method].bytes, bytes, memory_order_relaxed);
	for (uint32_t m = 0; m < KM_FILL_METHODS; m++) {
		double per_byte;

		if (!(all & 1u << m))
			continue;
		if (atomic_load(&f->trial[m].bytes) < TRIAL_BYTES)
			return;
		per_byte = (double)atomic_load(&f->trial[m].ns) /
			   (double)atomic_load(&f->trial[m].bytes);
		if (best && per_byte >= least)
			continue;
		least = per_byte;
		best = m;
	}
	atomic_store(&f->method, best);
}

/* This method does not work here after all: what is left? COPY always is, where memory is mapped.
 */
static int drop(struct km_fill *f, uint32_t method)
{
	uint32_t left = atomic_fetch_and(&f->candidates, ~(1u << method)) & ~(1u << method);

	if (f->opts.method != KVMEM_FILL_AUTO)
		return km_fail(EOPNOTSUPP, "populate: method %s: %s",
			       kvmem_fill_method_name(method),
			       why_not(f, method) ? why_not(f, method)
						  : "this memory refuses it on this kernel");
	if (!f->store)
		return km_fail(EOPNOTSUPP,
			       "populate: the userfaultfd of the region refuses a copy");
	if (!(left & (left - 1)))
		atomic_store(&f->method, left ? (uint32_t)__builtin_ctz(left) : KVMEM_FILL_COPY);
	return 0;
}

/* What the last store() stored; `off`: it is not there after all. */
static void count(struct km_filler *w, uint64_t pos, uint64_t end, bool off)
{
	uint64_t n = km_fill_clip(w->f, pos, end);

	n = off ? -n : n;
	w->counts.method[w->method] += n;
	if (w->method == KVMEM_FILL_WRITE)
		w->counts.written += n;
	else
		w->counts.copied += n;
}

/*
 * src NULL: zeros, into memory that is zero where it exists. *mapped: bytes that the guest sees
 * already, on failure too.
 */
static int store(struct km_filler *w, uint64_t pos, const uint8_t *src, uint64_t bytes,
		 uint64_t *mapped)
{
	struct km_fill *f = w->f;
	int r = 0;

	*mapped = 0;

	do {
		bool trial = atomic_load_explicit(&f->method, memory_order_relaxed) ==
			     KVMEM_FILL_AUTO;
		uint64_t start = trial ? km_sys_now_ns() : 0;
		uint32_t method = w->method = pick(f);

		r = store_by(f, method, pos, src, bytes, mapped);
		if (r == KM_STORE_REFUSED) {
			if (drop(f, method))
				return -EOPNOTSUPP;
			continue;
		}
		if (!r && trial)
			judge(f, method, bytes, km_sys_now_ns() - start);
		if (!r || *mapped)
			count(w, pos, pos + (r ? *mapped : bytes), false);
	} while (r == KM_STORE_REFUSED);
	return r;
}

/* ---- pieces ---- */

static int need_buffer(struct km_filler *w)
{
	if (!w->buf)
		w->buf = km_sys_alloc(KM_FILL_BLOCK);
	if (!w->buf)
		return km_fail(ENOMEM, "populate: no memory for a buffer of %u bytes",
			       KM_FILL_BLOCK);
	return 0;
}

static int read_source(struct km_filler *w, uint64_t pos, uint8_t *to, uint64_t bytes)
{
	struct km_fill *f = w->f;

	if (f->s->kind == KM_SOURCE_FILE)
		w->counts.file[KVMEM_FILE_PREAD] += bytes;
	return km_source_read(f->s, km_fill_source_pos(f, pos), to, bytes);
}

/* What [from, to) shall hold, holes and all that lies outside of the range asked for as zeros. */
static int load(struct km_filler *w, uint64_t from, uint64_t to)
{
	struct km_fill *f = w->f;
	uint64_t pos = from < f->offset ? f->offset : from, end = to < f->end ? to : f->end;
	uint64_t next;
	uint32_t kind;
	int r;

	memset(w->buf, 0, pos - from);
	memset(w->buf + (end - from), 0, to - end);
	for (; pos < end; pos = next) {
		r = km_fill_extent(w, pos, &kind, &next);
		if (r)
			return r;
		if (next > end)
			next = end;
		if (kind == KVMEM_EXTENT_DATA)
			r = read_source(w, pos, w->buf + (pos - from), next - pos);
		else
			memset(w->buf + (pos - from), 0, next - pos);
		if (r)
			return r;
	}
	return 0;
}

static int content(struct km_filler *w, uint64_t from, uint64_t to, const uint8_t **ret)
{
	struct km_fill *f = w->f;
	int r;

	if (f->in_place && from >= f->offset && to <= f->end) {
		*ret = f->s->base + km_fill_source_pos(f, from);
		return 0;
	}
	r = need_buffer(w);
	if (!r)
		r = load(w, from, to);
	*ret = w->buf;
	return r;
}

/* How far the content stays zero, or not zero; never beyond the end of a huge page. */
static uint64_t same_run(const struct km_fill *f, const uint8_t *src, uint64_t pos, uint64_t bytes,
			 bool *ret_zero)
{
	uint64_t n = f->grain;

	if (f->page_bytes > f->grain) {
		uint64_t left = f->page_bytes - (pos & (f->page_bytes - 1));

		bytes = bytes < left ? bytes : left;
	}
	if (f->keep_zero) {
		*ret_zero = false;
		return bytes;
	}
	*ret_zero = km_is_zero(src, f->grain);
	while (n < bytes && km_is_zero(src + n, f->grain) == *ret_zero)
		n += f->grain;
	return n;
}

/* The piece is complete up to `end`. Of a run that can be mapped in part only, that part is kept.
 */
static int publish(struct km_filler *w, struct km_piece *p, uint64_t end, bool stored, bool mapped)
{
	unsigned int shift = w->f->r->page_shift;
	uint64_t page = p->page;
	int r = km_fill_publish(w, p, (end >> shift) - page, stored, mapped);

	if (p->page == page)
		return r;
	if (r)
		count(w, p->page << shift, end, true);
	w->kept = w->counts;
	return r;
}

/* [pos, pos + bytes) was stored, or is zero: publish the pages that are complete by that. */
static int passed(struct km_filler *w, struct km_piece *p, uint64_t pos, uint64_t bytes, bool zero,
		  bool mapped)
{
	struct km_fill *f = w->f;
	uint64_t end = pos + bytes;

	if (zero)
		w->counts.zero += km_fill_clip(f, pos, end);
	else
		p->stored = true;
	if (end & (f->page_bytes - 1))
		return 0;
	return publish(w, p, end, p->stored, mapped);
}

static int store_block(struct km_filler *w, struct km_piece *p, uint64_t pos, const uint8_t *src,
		       uint64_t bytes)
{
	while (bytes) {
		bool zero;
		uint64_t n = same_run(w->f, src, pos, bytes, &zero), mapped = 0;
		int r = zero ? 0 : store(w, pos, src, n, &mapped), err = 0;

		if (!r || mapped)
			err = passed(w, p, pos, r ? mapped : n, zero, mapped);
		if (r || err)
			return r ? r : err;
		pos += n;
		src += n;
		bytes -= n;
	}
	return 0;
}

void km_fill_saw_zeros(struct km_filler *w, uint64_t zero, uint64_t bytes)
{
	w->zeros_seen = zero * 16 > bytes;
}

int km_fill_piece(struct km_filler *w, struct km_piece *p)
{
	struct km_fill *f = w->f;
	uint64_t zero = w->counts.zero;
	uint64_t start = p->page << f->r->page_shift, pos = start, next;
	uint64_t end = start + (p->pages << f->r->page_shift);
	int r = 0;

	w->kept = w->counts;
	for (; !r && pos < end; pos = next) {
		const uint8_t *src = NULL;

		next = end - pos < KM_FILL_BLOCK ? end : pos + KM_FILL_BLOCK;
		r = content(w, pos, next, &src);
		if (!r)
			r = store_block(w, p, pos, src, next - pos);
	}
	if (r) {
		w->counts = w->kept;
		km_fill_abandon(w, p);
	}
	km_fill_saw_zeros(w, w->counts.zero - zero, end - start);
	return r;
}

int km_fill_zeros(struct km_filler *w, struct km_piece *p)
{
	unsigned int shift = w->f->r->page_shift;
	uint64_t pos = p->page << shift, bytes = p->pages << shift, mapped;
	int r, err;

	w->kept = w->counts;
	r = store(w, pos, NULL, bytes, &mapped);
	if (!r || mapped) {
		err = publish(w, p, pos + (r ? mapped : bytes), true, mapped);
		r = r ? r : err;
	}
	if (r) {
		w->counts = w->kept;
		km_fill_abandon(w, p);
	}
	return r;
}
