// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The rest filled, in the thread that stops the pager. */
#include "pager/pager_internal.h"

#include <errno.h>

#define LOOK_NS 1000000u

/* Nobody else answers faults: they do not wait for the end of the fill. */
static void serve_if_alone(struct kvmem_pager *pager)
{
	struct km_worker *w = &pager->workers[0];

	if (!(pager->opts.flags & KVMEM_PAGER_NO_THREADS))
		return;
	while (km_serve_events(w))
		;
	km_later_step(w);
}

static void wait_for_claim(struct kvmem_pager *pager, struct km_paged *p, uint64_t page, uint64_t n)
{
	bool alone = pager->opts.flags & KVMEM_PAGER_NO_THREADS;

	while (!km_presence_wait(km_paged_map(p), page, n, alone ? LOOK_NS : UINT64_MAX))
		serve_if_alone(pager);
}

/*
 * A page of a piece that could not be filled. A worker may have claimed it, and give it up again:
 * only a page that is not absent after that is done.
 */
static int fill_page(struct km_worker *w, struct km_paged *p, uint64_t page,
		     const struct km_fill_way *way)
{
	enum km_page_state state;
	int r;

	for (;;) {
		wait_for_claim(w->pager, p, page, 1);
		state = km_presence_get(km_paged_map(p), page);
		if (state != KM_ABSENT && state != KM_POISONED)
			return 0;
		r = km_fill_or_fail(w, p, page, KVMEM_FAIL_STOP, way);
		if (r)
			return r == KM_PARKED ? -EAGAIN : r;
	}
}

static int fill_piece(struct km_worker *w, struct km_paged *p, uint64_t page, uint64_t count,
		      const struct km_fill_way *way, uint64_t *ret_n)
{
	int r, err = 0;

	*ret_n = 0;
	if (!km_fill_run(&p->feed, &w->hands, page, count, way))
		return 0; /* it leaves out what others have claimed: look again */
	for (uint64_t i = 0; i < count; i++) {
		r = fill_page(w, p, page + i, way);
		err = err ? err : r;
		serve_if_alone(w->pager);
	}
	*ret_n = count;
	return err;
}

/* As much as one read brings. */
static uint64_t piece_pages(const struct km_worker *w, const struct km_paged *p)
{
	uint64_t n = km_min(w->hands.buf_bytes >> p->watch.shift, KM_CLAIM_PAGES);

	return n ? n : 1;
}

static int fill_rest_of(struct km_worker *w, struct km_paged *p)
{
	struct km_fill_way way = {
		.heal = true,
		.pages = &w->counts.pages[KM_BACKGROUND],
		.zero = &w->counts.zero,
	};
	enum km_page_state state;
	uint64_t page = 0, n;
	int r, err = 0;

	for (; page < km_watch_pages(&p->watch); page += n) {
		if (km_watch_ended(&p->watch)) {
			km_remote_tell_if(w->pager, NULL);
			return -ESRCH;
		}
		n = km_presence_run(km_paged_map(p), page, UINT64_MAX, &state);
		if (state == KM_CLAIMED) {
			wait_for_claim(w->pager, p, page, n);
			n = 0;
		} else if (state == KM_ABSENT || state == KM_POISONED) {
			r = fill_piece(w, p, page, km_min(n, piece_pages(w, p)), &way, &n);
			err = err ? err : r;
		}
		serve_if_alone(w->pager);
	}
	return err;
}

int km_pager_fill_region(struct km_paged *p)
{
	return fill_rest_of(km_stop_worker(p->pager), p);
}

int km_pager_fill_rest(struct kvmem_pager *pager)
{
	int r, err = 0;

	for (struct km_paged *p = km_paged_first(pager); p; p = km_paged_next(p)) {
		r = fill_rest_of(km_stop_worker(pager), p);
		err = err ? err : r;
	}
	return err;
}
