// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The end of a pass of the background over everything. */
#include "pager/pager_internal.h"

#define FIRST_DELAY_NS 100000000ull /* before what failed is tried again */
#define MOST_DELAY_NS  5000000000ull

/* The last slice of a pass is done. Where pages failed, another pass comes, later. */
static void end_pass(struct kvmem_pager *pager, struct km_backlog *b)
{
	bool stuck;

	pthread_mutex_lock(&pager->lock);
	if (atomic_load(&b->failed) && !atomic_load(&b->busy) && !atomic_load(&b->retry_ns) &&
	    atomic_load(&b->cursor) >= b->slices) {
		stuck = !atomic_load(&b->filled);
		b->delay_ns = stuck && b->delay_ns ? km_min(b->delay_ns * 2, MOST_DELAY_NS)
						   : FIRST_DELAY_NS;
		atomic_store(&b->stuck, stuck);
		atomic_store(&b->retry_ns, km_sys_now_ns() + b->delay_ns);
		pthread_cond_broadcast(&pager->changed);
	}
	pthread_mutex_unlock(&pager->lock);
}

/* Whoever is the last to be busy with a shard looks whether that was the end of a pass: also who
 * only found that there is no slice left, for the one who did the last may have gone before. */
void km_pass_give_back(struct kvmem_pager *pager, struct km_backlog *b)
{
	if (atomic_fetch_sub(&b->busy, 1) == 1 && atomic_load(&b->failed))
		end_pass(pager, b);
}

void km_pass_request_ended(struct kvmem_pager *pager, struct km_backlog *b, uint64_t failed,
			   bool filled)
{
	if (failed)
		atomic_fetch_add(&b->failed, failed);
	if (filled)
		atomic_fetch_add(&b->filled, 1);
	atomic_fetch_sub(&b->later_pieces, 1);
	km_pass_give_back(pager, b);
}
