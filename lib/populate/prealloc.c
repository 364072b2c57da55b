// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * All pages of a range are made, as zeros, without a source. All or none: the absent pages are claimed
 * first, so that nobody else fills them meanwhile, then made by several threads, then published. Claims
 * are taken by ascending address and others' are waited for on the way: two calls whose ranges overlap
 * do not wait for each other, because each waits only for pages behind all that it holds.
 */
#include "populate/populate_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#define UNIT (8u << 20) /* bytes that a thread makes at a time: whole huge pages */

struct run {
	uint64_t page, count;
};

struct prealloc {
	struct kvmem_region *r;
	const struct kvmem_populate_opts *opts;
	uint64_t first, end; /* pages */
	uint64_t unit, units;
	struct run *claims; /* ours */
	size_t count, room;
	unsigned int threads;
	_Atomic uint64_t next;	     /* unit */
	_Atomic uint64_t done, made; /* bytes */
	_Atomic int error;
	char detail[512];
	uint64_t start_ns, tick_ns;
};

/* ---- claims ---- */

static int remember(struct prealloc *p, uint64_t page, uint64_t count)
{
	struct run *last = p->count ? &p->claims[p->count - 1] : NULL, *more;
	size_t room = p->room ? 2 * p->room : 16;

	if (last && last->page + last->count == page) {
		last->count += count;
		return 0;
	}
	if (p->count == p->room) {
		more = km_sys_realloc(p->claims, room * sizeof(*more));
		if (!more)
			return km_fail(ENOMEM, "populate: no memory for what is preallocated");
		p->claims = more;
		p->room = room;
	}
	p->claims[p->count++] = (struct run){ page, count };
	return 0;
}

static int poisoned(uint64_t page, const struct kvmem_region *r)
{
	return km_fail(
		EIO,
		"populate: the page at offset 0x%" PRIx64
		" of the region could not be filled before (it is poisoned), and zeros are not "
		"its content: discard it or populate it from its source",
		page << r->page_shift);
}

static int claim_all(struct prealloc *p)
{
	struct km_presence *map = &p->r->presence;
	int err = 0;

	for (uint64_t page = p->first, n; page < p->end && !err; page += n) {
		enum km_page_state state;

		n = km_presence_run(map, page, p->end - page, &state);
		if (state == KM_POISONED) {
			err = poisoned(page, p->r);
		} else if (state == KM_CLAIMED) {
			km_presence_wait(map, page, n, UINT64_MAX);
			n = 0;
		} else if (state == KM_ABSENT) {
			n = km_presence_claim(map, page, n);
			err = n ? remember(p, page, n) : 0;
			if (err)
				km_presence_abandon(map, page, n);
		}
	}
	return err;
}

static void end_claims(struct prealloc *p, bool good)
{
	for (size_t i = 0; i < p->count; i++) {
		const struct run *c = &p->claims[i];
		unsigned int ended = 0;

		if (good)
			ended = km_presence_publish(&p->r->presence, c->page, c->count, KM_PRESENT);
		else
			km_pages_abandon(p->r, c->page, c->count, true);
		if (ended & KM_IS_WHOLE)
			km_presence_notify(&p->r->presence);
	}
	km_sys_free(p->claims);
}

/* ---- pages ---- */

/* Pages that are zero may have been written by the guest since: they are made, never stored to. */
static int make(struct prealloc *p, uint64_t page, uint64_t count, bool claimed)
{
	struct kvmem_region *r = p->r;
	uint64_t pos = page << r->page_shift, bytes = count << r->page_shift;
	int err = km_store_map(r, r->base, pos, bytes);

	if (err == KM_STORE_REFUSED && claimed)
		err = km_store_copy(r, r->base, pos, NULL, bytes);
	if (!err)
		atomic_fetch_add(&p->made, bytes);
	return err == KM_STORE_REFUSED ? 0 : err;
}

static int make_run(struct prealloc *p, uint64_t page, uint64_t count, bool claimed,
		    struct km_numa_state *numa)
{
	unsigned int shift = p->r->page_shift;
	int err = 0;

	for (uint64_t n, end; count && !err; page += n, count -= n) {
		err = km_numa_enter(p->r, page << shift, &end, numa);
		if (err)
			break;
		n = km_min(count, (end >> shift) - page);
		err = make(p, page, n, claimed);
	}
	return err;
}

static int make_unit(struct prealloc *p, uint64_t i, struct km_numa_state *numa)
{
	/* Units begin where huge pages do: at multiples of their size in the mapping, which is aligned. */
	uint64_t base = p->first - p->first % p->unit + i * p->unit;
	uint64_t page = base < p->first ? p->first : base, end = km_min(base + p->unit, p->end), n;
	enum km_page_state state;
	int err = 0;

	for (; page < end && !err; page += n) {
		n = km_presence_run(&p->r->presence, page, end - page, &state);
		if (state == KM_CLAIMED || state == KM_ZERO)
			err = make_run(p, page, n, state == KM_CLAIMED, numa);
		atomic_fetch_add(&p->done, n << p->r->page_shift);
	}
	return err;
}

/* ---- threads ---- */

static void stop_all(struct prealloc *p, int error)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&p->error, &none, error))
		snprintf(p->detail, sizeof(p->detail), "%s", kvmem_error_detail());
}

static void tick(struct prealloc *p, bool last)
{
	struct kvmem_progress g = { .size = sizeof(g) };
	uint64_t now;
	struct km_callback cb;
	int r;

	if (!p->opts->progress)
		return;
	now = km_sys_now_ns();
	if (!last && now - p->tick_ns < KM_FILL_TICK_NS)
		return;
	p->tick_ns = now;
	g.elapsed_ns = now - p->start_ns;
	g.total = (p->end - p->first) << p->r->page_shift;
	g.done = atomic_load(&p->done);
	km_callback_enter(&cb, "kvmem_populate_opts.progress", p->r, NULL);
	r = p->opts->progress(p->opts->progress_arg, &g);
	km_callback_leave(&cb);
	if (r && !last)
		stop_all(p, km_fail(ECANCELED, "populate: canceled by the progress callback: "
					       "nothing is preallocated"));
}

static void work(struct prealloc *p, bool caller)
{
	struct km_numa_state numa;
	uint64_t i;
	int err = 0;

	km_numa_save(&numa);
	while (!err && !atomic_load(&p->error) && (i = atomic_fetch_add(&p->next, 1)) < p->units) {
		err = make_unit(p, i, &numa);
		if (caller)
			tick(p, false);
	}
	if (err)
		stop_all(p, err);
	km_numa_leave(&numa);
}

static void *thread_main(void *arg)
{
	work(arg, false);
	return NULL;
}

/* A thread that cannot be had is done without. */
static unsigned int run_threads(struct prealloc *p)
{
	struct km_thread threads[KM_FILL_MOST_THREADS];
	unsigned int started = 0;
	char name[16];

	for (unsigned int i = 1; i < p->threads; i++) {
		snprintf(name, sizeof(name), "kvmem-make-%u", i % 1000u);
		if (km_sys_thread_create(&threads[started], name, NULL, thread_main, p) < 0)
			break;
		started++;
	}
	work(p, true);
	for (unsigned int i = 0; i < started; i++)
		km_sys_thread_join(&threads[i]);
	return started + 1;
}

/* ---- the whole ---- */

static int check(const struct kvmem_region *r, uint64_t offset, uint64_t bytes,
		 const struct kvmem_populate_opts *o)
{
	int err = km_range_check(offset, bytes, r->bytes, "populate: range of the region");

	if (!err)
		err = km_align_check(offset, km_region_page(r), "populate: offset");
	if (!err)
		err = km_align_check(bytes, km_region_page(r), "populate: bytes");
	if (!err &&
	    (o->source_offset || o->method || o->file_method || o->chunk_bytes || o->uring_workers))
		err = km_fail(
			EINVAL,
			"populate: source_offset, method, file_method, chunk_bytes and uring_workers mean "
			"nothing with KVMEM_POPULATE_PREALLOC, and must be 0");
	if (!err && r->watch)
		err = km_fail(EBUSY, "populate: a pager has the region, and its pages come from a "
				     "source: they cannot be preallocated");
	return err;
}

static int preallocate(struct prealloc *p, unsigned int *ret_threads)
{
	int err = km_pages_unannounced(p->r, p->first, p->end - p->first,
				       p->opts->flags & (KVMEM_FILL_KEEP | KVMEM_FILL_OVERWRITE),
				       "populate");

	if (!err)
		err = claim_all(p);
	if (!err) {
		*ret_threads = run_threads(p);
		err = atomic_load(&p->error);
		if (err)
			km_fail(-err, "%s", p->detail);
	}
	end_claims(p, !err);
	if (!err)
		tick(p, true);
	return err;
}

int km_prealloc(struct kvmem_region *r, uint64_t offset, const struct kvmem_populate_opts *o,
		struct kvmem_populate_result *res)
{
	struct prealloc p = { .r = r, .opts = o, .start_ns = km_sys_now_ns() };
	uint64_t bytes = o->bytes ? o->bytes : r->bytes - km_min(offset, r->bytes);
	int err;

	p.tick_ns = p.start_ns;
	km_pages_enter(r); /* no pager comes meanwhile */
	err = check(r, offset, bytes, o);
	if (!err) {
		p.first = offset >> r->page_shift;
		p.end = (offset + bytes) >> r->page_shift;
		p.unit = UNIT >> r->page_shift ? UNIT >> r->page_shift : 1;
		p.units = (p.end - 1) / p.unit - p.first / p.unit + 1;
		p.threads = km_fill_threads(o->threads, bytes, p.units);
		err = preallocate(&p, &res->threads);
	}
	km_pages_leave(r);
	if (!err) {
		res->bytes_made = atomic_load(&p.made);
		res->bytes_present = bytes - res->bytes_made;
	}
	res->elapsed_ns = km_sys_now_ns() - p.start_ns;
	return err;
}
