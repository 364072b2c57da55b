// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* How pages are made: by each method, and which method it shall be. */
#include "populate/populate_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define TRIAL_BYTES (768u << 10) /* by each method before they are compared */

/* ---- methods: 0, KM_STORE_REFUSED or -errno ---- */

static int place(struct km_fill *f, uint64_t pos, const uint8_t *src, uint64_t bytes,
		 uint64_t *ret_placed)
{
	unsigned int shift = f->r->page_shift;
	int r = km_pages_place(f->r, pos >> shift, bytes >> shift, src, ret_placed);

	*ret_placed <<= shift;
	return r;
}

static int store_by(struct km_fill *f, uint32_t method, uint64_t pos, const uint8_t *src,
		    uint64_t bytes, uint64_t *ret_placed)
{
	switch (method) {
	case KVMEM_FILL_WRITE:
		return km_store_write(f->r, f->store, pos, src, bytes);
	case KVMEM_FILL_UFFD_COPY:
		return place(f, pos, src, bytes, ret_placed);
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
		if (!f->watched)
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
int km_method_choose(struct km_fill *f)
{
	uint32_t want = f->opts.method, all = 0;

	if (want != KVMEM_FILL_AUTO) {
		if (why_not(f, want))
			return km_fail(EOPNOTSUPP, "populate: method %s: %s",
				       kvmem_fill_method_name(want), why_not(f, want));
		atomic_store(&f->method, want);
		return 0;
	}
	if (!f->store && !f->watched)
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

/* What the last store stored. */
static void count(struct km_filler *w, uint64_t n)
{
	w->counts.method[w->method] += n;
	if (w->method == KVMEM_FILL_WRITE)
		w->counts.written += n;
	else
		w->counts.copied += n;
}

void km_method_uncount(struct km_filler *w, uint64_t pos, uint64_t end)
{
	count(w, -km_fill_clip(w->f, pos, end));
}

int km_method_store(struct km_filler *w, uint64_t pos, const uint8_t *src, uint64_t bytes,
		    uint64_t *ret_placed)
{
	struct km_fill *f = w->f;
	int r = 0;

	*ret_placed = 0;
	do {
		bool trial = atomic_load_explicit(&f->method, memory_order_relaxed) ==
			     KVMEM_FILL_AUTO;
		uint64_t start = trial ? km_sys_now_ns() : 0;
		uint32_t method = w->method = pick(f);

		r = store_by(f, method, pos, src, bytes, ret_placed);
		if (r == KM_STORE_REFUSED) {
			if (drop(f, method))
				return -EOPNOTSUPP;
			continue;
		}
		if (!r && trial)
			judge(f, method, bytes, km_sys_now_ns() - start);
		if (!r || *ret_placed)
			count(w, km_fill_clip(f, pos, pos + (r ? *ret_placed : bytes)));
	} while (r == KM_STORE_REFUSED);
	return r;
}
