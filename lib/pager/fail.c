// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What is done with pages that cannot be filled. */
#include "pager/pager_internal.h"

/* Where the caller has nothing to say: nobody may ever see zeros, and who waits must not hang. */
static int without_caller(uint32_t why)
{
	return why == KVMEM_FAIL_DEMAND || why == KVMEM_FAIL_STOP ? KVMEM_FAIL_POISON
								  : KVMEM_FAIL_LEAVE;
}

int km_fail_ask(struct kvmem_pager *pager, struct km_paged *p, uint64_t page, uint32_t why, int err,
		uint32_t attempt)
{
	const struct kvmem_pager_opts *o = &pager->opts;
	struct kvmem_fail fail = {
		.size = sizeof(fail),
		.error = err,
		.region = p->watch.region,
		.offset = page << p->watch.shift,
		.bytes = 1ull << p->watch.shift,
		.attempt = attempt,
		.why = why,
	};
	struct km_callback cb;
	int action;

	if (!o->fail)
		return without_caller(why);
	km_callback_enter(&cb, "kvmem_pager_opts.fail", pager, p->watch.region);
	action = (int)o->fail(o->arg, &fail);
	km_callback_leave(&cb);
	if (action == KVMEM_FAIL_LEAVE)
		return without_caller(why);
	return action;
}

static void poison(struct km_paged *p, uint64_t page)
{
	if (!km_presence_claim(km_paged_map(p), page, 1))
		return; /* somebody is trying again, and tells who waits; or it is poisoned still */
	km_poison_claimed(&p->watch, page);
}

int km_fill_or_fail(struct km_worker *w, struct km_paged *p, uint64_t page, uint32_t why,
		    const struct km_fill_way *way)
{
	uint32_t attempt = 0;
	int action, r;

	do {
		r = km_fill_run(&p->feed, &w->hands, page, 1, way);
		if (!r)
			return 0;
		if (km_watch_ended(&p->watch))
			return -ESRCH;
		if (r == KM_PARKED)
			return r;
		km_count_own(&w->counts.failed, 1);
		/* What is handed back is absent, and who waits goes on waiting. */
		if (why != KVMEM_FAIL_STOP && atomic_load(&w->pager->stopping))
			action = KVMEM_FAIL_LEAVE;
		else
			action = km_fail_ask(w->pager, p, page, why, r, ++attempt);
	} while (action == KVMEM_FAIL_RETRY);
	km_pager_set_error(w->pager, r);
	if (action != KVMEM_FAIL_LEAVE)
		poison(p, page);
	return r;
}
