// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A vCPU with a full ring empties it itself. */
#include "dirty/dirty_internal.h"

#include <errno.h>

/* So many exits without an entry in between are believed of a ring that is not known to have overflowed. */
#define MANY_EXITS 100

/*
 * A ring that the kernel has overflowed by so much that it is full whatever is reset: its vCPU would exit for ever.
 * Known by exits without an entry in between.
 */
static bool is_stuck(struct kvmem_dirty *d, struct km_dirty_vcpu *v)
{
	uint64_t pages;
	bool stuck;

	pthread_mutex_lock(&v->lock);
	pthread_rwlock_rdlock(&d->mark_lock);
	pages = atomic_load(&v->pages);
	v->idle_exits = v->ring.tail == v->ring.head && pages == v->pages_at_full
				? v->idle_exits + 1
				: 0;
	v->pages_at_full = pages;
	stuck = v->ring.may_lag && v->idle_exits > (v->ring.had_overflow ? 0 : MANY_EXITS);
	pthread_rwlock_unlock(&d->mark_lock);
	pthread_mutex_unlock(&v->lock);
	return stuck;
}

/* Nothing was taken of a full ring: others have, or its entries are where we do not look. */
static void look_around(struct kvmem_dirty *d, struct km_dirty_vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	pthread_rwlock_rdlock(&d->mark_lock);
	v->ring.overflowed |= km_ring_is_astray(&v->ring);
	pthread_rwlock_unlock(&d->mark_lock);
	pthread_mutex_unlock(&v->lock);
}

static int ring_full_locked(struct kvmem_dirty *d, int fd)
{
	struct km_dirty_vcpu *v = km_dirty_vcpu_find(d, fd);
	int r;

	if (!v)
		return km_fail(ENOENT, "kvmem_dirty_ring_full: vCPU %d was not added", fd);
	km_count_shared(&v->ring_full, 1);
	km_count_shared(&d->stats.ring_full, 1);
	if (!km_dirty_take(d, v, true))
		look_around(d, v);
	/* Also where nothing was taken: an earlier owner of the ring may have marked entries and
	 * not had them reset, and only the kernel sees them. */
	r = km_dirty_reset_full(d, v);
	if (r || !is_stuck(d, v))
		return r;
	return km_fail(
		EIO,
		"kvmem_dirty_ring_full: the ring of vCPU %d is full, and holds no entry: the kernel has "
		"overflowed it; make a VM with larger rings, or with KVMEM_DIRTY_BITMAP",
		v->fd);
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
	km_readers_look(dirty);
	return r;
}
