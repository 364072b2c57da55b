// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A vCPU with a full ring empties it itself. */
#include "dirty/dirty_internal.h"

#include <errno.h>

static int ring_full_locked(struct kvmem_dirty *d, int fd)
{
	struct km_dirty_vcpu *v = km_dirty_vcpu_find(d, fd);

	if (!v)
		return km_fail(ENOENT, "kvmem_dirty_ring_full: vCPU %d was not added", fd);
	km_count_shared(&v->ring_full, 1);
	km_count_shared(&d->stats.ring_full, 1);
	km_dirty_take(d, v, true);
	/* Also where nothing was taken: an earlier owner of the ring may have marked entries and
	 * not had them reset, and only the kernel sees them. */
	return km_dirty_reset(d, true);
}

int kvmem_dirty_ring_full(struct kvmem_dirty *dirty, int vcpu_fd)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_ring_full: dirty is NULL");
	r = km_callback_check("kvmem_dirty_ring_full", dirty);
	if (r)
		return r;
	if (dirty->mode != KVMEM_DIRTY_RING)
		return km_fail(
			EINVAL,
			"kvmem_dirty_ring_full: there are no rings, the tracker uses the bitmap");
	pthread_rwlock_rdlock(&dirty->vm->lock);
	r = ring_full_locked(dirty, vcpu_fd);
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r;
}
