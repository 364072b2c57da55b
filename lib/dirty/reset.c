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
	pthread_rwlock_unlock(&d->mark_lock);
	pthread_mutex_unlock(&v->lock);
	if (n) {
		km_count_shared(&v->pages, n);
		km_count_shared(&d->stats.pages, n);
	}
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

/* True when some ring has moved on. */
static bool look_after(struct kvmem_dirty *d)
{
	struct km_ring_run run;
	bool any = false, overwritten;

	for (size_t i = 0; i < d->vcpu_count; i++) {
		struct km_dirty_vcpu *v = d->vcpus[i];

		if (!v->ring.entries || !km_ring_reset_done(&v->ring, &v->last, &run, &overwritten))
			continue;
		any = true;
		km_doubt_run(d, &run);
		if (overwritten)
			km_doubt_all(d);
	}
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
		moved = look_after(d);
		if (r < 0)
			return km_fail(EIO,
				       "KVM_RESET_DIRTY_RINGS failed with error %d: the pages are "
				       "still the batch's, try again",
				       (int)-r);
		if (anything_marked(d))
			km_count_shared(&d->stats.short_resets, 1);
		idle = moved ? 0 : idle + 1;
		always = false;
	}
	return 0;
}

int km_dirty_reset(struct kvmem_dirty *d, bool always)
{
	int r;

	pthread_rwlock_wrlock(&d->mark_lock);
	r = reset_marked(d, always);
	atomic_store(&d->marked, anything_marked(d));
	pthread_rwlock_unlock(&d->mark_lock);
	return r;
}
