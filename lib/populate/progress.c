// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* How far a populate is, and what ends it early: an error, or the caller. */
#include "populate/populate_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

void km_fill_stop(struct km_fill *f, int error)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&f->error, &none, error))
		snprintf(f->detail, sizeof(f->detail), "%s", kvmem_error_detail());
	atomic_store(&f->stop, 1);
}

static int tell(struct km_fill *f, const struct kvmem_progress *p)
{
	struct km_callback cb;
	int r;

	km_callback_enter(&cb, "kvmem_populate_opts.progress", f->r, NULL);
	r = f->opts.progress(f->opts.progress_arg, p);
	km_callback_leave(&cb);
	return r;
}

void km_fill_tick(struct km_fill *f, bool last)
{
	struct kvmem_progress p = { .size = sizeof(p), .total = f->end - f->offset };
	uint64_t now;

	if (!f->opts.progress)
		return;
	now = km_sys_now_ns();
	if (!last && now - f->tick_ns < KM_FILL_TICK_NS)
		return;
	f->tick_ns = now;
	p.elapsed_ns = now - f->start_ns;
	for (unsigned int i = 0; i < f->threads; i++)
		p.done += atomic_load_explicit(&f->fillers[i].done, memory_order_relaxed);
	if (tell(f, &p) && !last)
		km_fill_stop(f,
			     km_fail(ECANCELED,
				     "populate: canceled by the progress callback after 0x%" PRIx64
				     " of 0x%" PRIx64 " bytes",
				     p.done, p.total));
}
