// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Emptying the rings into the maps, and having the kernel reset what was taken. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <inttypes.h>

#include "base/uapi/kvm.h"

/* Calls in a row that reset nothing, before the rest is left to the next reset. */
#define IDLE_CALLS 200

/* Under mark_lock: no reset is under way, and one that follows finds the entries behind head. */
uint32_t km_dirty_take(struct kvmem_dirty *d, struct km_dirty_vcpu *v, bool shared)
{
	uint32_t n;

	if (!v->ring.entries)
		return 0;
	pthread_mutex_lock(&v->lock);
	pthread_rwlock_rdlock(&d->mark_lock);
	n = km_ring_take(&v->ring, &d->table, shared);
	if (n)
		atomic_store(&d->marked, true);
	if (v->ring.overflowed)
		atomic_store(&d->overflowed, true);
	if (n) {
		km_count_shared(&v->pages, n);
		km_count_shared(&d->stats.pages, n);
	}
	pthread_rwlock_unlock(&d->mark_lock);
	pthread_mutex_unlock(&v->lock);
	return n;
}

uint64_t km_dirty_take_all(struct kvmem_dirty *d, bool shared)
{
	uint64_t n = 0;

	for (size_t i = 0; i < d->vcpu_count; i++)
		n += km_dirty_take(d, d->vcpus[i], shared);
	return n;
}

static bool anything_marked(const struct kvmem_dirty *d)
{
	for (size_t i = 0; i < d->vcpu_count; i++)
		if (d->vcpus[i]->ring.tail != d->vcpus[i]->ring.head)
			return true;
	return false;
}

bool km_dirty_unreset(struct kvmem_dirty *d, uint32_t slot)
{
	for (size_t i = 0; i < d->vcpu_count; i++)
		if (km_ring_holds(&d->vcpus[i]->ring, slot))
			return true;
	return false;
}

/* Blocking signals spares the kernel most interruptions; doubt.c sees to the others. */
static int64_t call_kernel(struct kvmem_dirty *d)
{
	uint64_t start = km_sys_now_ns();
	sigset_t old;
	int64_t r;

	km_sys_block_signals(&old);
	r = km_sys_ioctl_val(d->vm->fd, KVM_RESET_DIRTY_RINGS, 0);
	km_sys_restore_signals(&old);
	km_count_shared(&d->stats.resets, 1);
	km_count_shared(&d->stats.reset_ns, km_sys_now_ns() - start);
	return r;
}

static void look_before(struct kvmem_dirty *d)
{
	for (size_t i = 0; i < d->vcpu_count; i++) {
		struct km_dirty_vcpu *v = d->vcpus[i];

		if (v->ring.entries)
			v->last = km_ring_last_run(&v->ring, v->ring.head);
	}
}

/* Which pages were lost cannot be told: each slot is to be protected again, and reported, whole. */
static bool look_for_overflow(struct kvmem_dirty *d, struct km_dirty_vcpu *v)
{
	if (!v->ring.overflowed)
		return false;
	km_ring_begin_again(&v->ring);
	km_doubt_all(d);
	km_count_shared(&d->stats.ring_overflows, 1);
	return true;
}

/*
 * After a call that has reset `count` entries. True when some ring has moved on. Where a ring has overflowed, entries
 * that we do not know of may have been reset, and the run in doubt may be among them.
 */
static bool look_after(struct kvmem_dirty *d, int64_t count)
{
	struct km_ring_run run;
	bool unsure = false, overwritten;
	int64_t moved = 0;

	for (size_t i = 0; i < d->vcpu_count; i++) {
		struct km_dirty_vcpu *v = d->vcpus[i];

		if (!v->ring.entries)
			continue;
		unsure |= v->ring.had_overflow;
		if (look_for_overflow(d, v))
			continue;
		moved += km_ring_reset_done(&v->ring, &v->last, &run, &overwritten);
		look_for_overflow(d, v);
		km_doubt_run(d, &run);
		if (overwritten)
			km_doubt_all(d);
	}
	if (unsure && count >= 0 && moved != count)
		km_doubt_all(d);
	return moved || count > 0;
}

/* Rings that the kernel is behind of. True when the next call may do more than the last one. */
static bool step_back(struct kvmem_dirty *d)
{
	bool any = false;

	for (size_t i = 0; i < d->vcpu_count; i++)
		any |= d->vcpus[i]->ring.entries && km_ring_step_back(&d->vcpus[i]->ring);
	return any;
}

static int reset_marked(struct kvmem_dirty *d, bool always)
{
	unsigned int idle = 0;

	while ((always || anything_marked(d)) && idle < IDLE_CALLS) {
		int64_t r;
		bool moved;

		look_before(d);
		r = call_kernel(d);
		moved = look_after(d, r);
		if (r < 0)
			return km_fail(EIO,
				       "KVM_RESET_DIRTY_RINGS failed with error %d: the pages are "
				       "still the batch's, try again",
				       (int)-r);
		if (anything_marked(d))
			km_count_shared(&d->stats.short_resets, 1);
		idle = moved || step_back(d) ? 0 : idle + 1;
		always = false;
	}
	return 0;
}

static int reset(struct kvmem_dirty *d, bool always)
{
	int r;

	pthread_rwlock_wrlock(&d->mark_lock);
	r = reset_marked(d, always);
	atomic_store(&d->marked, anything_marked(d));
	atomic_store(&d->overflowed, false);
	for (size_t i = 0; i < d->vcpu_count; i++) {
		const struct km_ring *ring = &d->vcpus[i]->ring;

		d->vcpus[i]->lags = ring->back && ring->tail != ring->head;
	}
	pthread_rwlock_unlock(&d->mark_lock);
	return r;
}

/* -EIO where the kernel does not come to what is marked in a ring: of `only`, or of any. */
static int check_lag(struct kvmem_dirty *d, const struct km_dirty_vcpu *only)
{
	const struct km_dirty_vcpu *v = NULL;

	pthread_rwlock_rdlock(&d->mark_lock);
	for (size_t i = 0; i < d->vcpu_count; i++)
		if (d->vcpus[i]->lags && (!only || only == d->vcpus[i]))
			v = d->vcpus[i];
	pthread_rwlock_unlock(&d->mark_lock);
	if (!v)
		return 0;
	return km_fail(
		EIO,
		"the ring of vCPU %d has overflowed: the kernel does not reset what is marked; try again, "
		"else make a VM with larger rings, or with KVMEM_DIRTY_BITMAP",
		v->fd);
}

/* Where a vCPU that has pushed on stands in the way, what it has pushed is marked, and gives way. */
static int reset_for(struct kvmem_dirty *d, bool always, const struct km_dirty_vcpu *only)
{
	int r = reset(d, always);

	if (r || !check_lag(d, only))
		return r;
	km_dirty_take_all(d, true);
	r = reset(d, false);
	return r ? r : check_lag(d, only);
}

int km_dirty_reset(struct kvmem_dirty *d, bool always)
{
	return reset_for(d, always, NULL);
}

int km_dirty_reset_full(struct kvmem_dirty *d, struct km_dirty_vcpu *v)
{
	return reset_for(d, true, v);
}
