// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Further processes that have the memory of a region of another process. */
#include "pager/pager_internal.h"

#include <errno.h>

#include <kvmem/remote.h>

int kvmem_remote_join(struct kvmem_pager *pager, struct kvmem_region *region,
		      const struct kvmem_remote_opts *opts)
{
	struct km_detail failed;
	struct km_remote *m;
	struct km_paged *p;
	struct km_view *v;
	int r;

	if (!pager || !region || !region->remote)
		return km_fail(EINVAL, "kvmem_remote_join: %s",
			       !pager	 ? "pager is NULL"
			       : !region ? "region is NULL"
					 : "region is memory of this process");
	r = km_callback_check("kvmem_remote_join", pager);
	if (r)
		return r;
	p = km_paged_of(pager, region);
	if (!p)
		return km_fail(ENOENT, "kvmem_remote_join: the region is not of this pager");
	r = km_remote_open(region, opts, &m);
	if (r)
		return r;
	r = km_view_new(&p->watch, m, &v);
	if (r) {
		km_remote_free(m);
		return r;
	}
	r = km_remote_poll_view(pager, v);
	if (r) {
		km_detail_save(&failed);
		km_workers_settle(pager); /* one of them may have got an event of it just now */
		km_view_free(v);
		km_detail_restore(&failed);
		return r;
	}
	km_view_add(v);
	/* Faults that nobody has read yet, and pages that came meanwhile. */
	km_watch_wake(&p->watch, 0, km_watch_pages(&p->watch));
	return 0;
}
