// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* vCPUs and their rings. */
#include "dirty/dirty_internal.h"

#include <asm/ioctls.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"

#define ENTRY_BYTES    sizeof(struct kvm_dirty_gfn)
#define VCPU_STATS_MIN sizeof(struct kvmem_vcpu_stats)

struct km_dirty_vcpu *km_dirty_vcpu_find(const struct kvmem_dirty *d, int fd)
{
	for (size_t i = 0; i < d->vcpu_count; i++)
		if (d->vcpus[i]->fd == fd)
			return d->vcpus[i];
	return NULL;
}

/*
 * Only the file descriptor of a vCPU maps memory and says EINVAL to an ioctl that is not KVM's
 * (others say ENOTTY), and says so without waiting for a vCPU that runs.
 */
static int vcpu_check(int fd)
{
	char answer[256];
	void *page;
	int64_t r = km_sys_ioctl(fd, TCGETS, answer);

	if (r == -EBADF)
		return km_fail(EBADF, "kvmem_dirty_add_vcpu: file descriptor %d is not open", fd);
	if (r == -EINVAL)
		r = km_sys_mmap(km_sys_page_size(), PROT_READ, MAP_SHARED, fd, 0, &page);
	else
		r = -ENOTTY;
	if (r < 0)
		return km_fail(EINVAL, "kvmem_dirty_add_vcpu: file descriptor %d is not a vCPU",
			       fd);
	km_sys_munmap(page, km_sys_page_size());
	return 0;
}

/*
 * A ring does not say where it stands. So whoever lets go of one writes a head marker into the entry
 * that comes next, which the kernel overwrites when it pushes it.
 */
#define MARKER_OFFSET 0x6b766d656d646972ull

static void leave_marker(struct km_ring *ring)
{
	struct km_ring_entry *e = &ring->entries[ring->head & ring->mask];

	if (ring->lost_head || ring->back ||
	    (uint32_t)__atomic_load_n(&e->flags_slot, __ATOMIC_ACQUIRE))
		return;
	__atomic_store_n(&e->offset, MARKER_OFFSET, __ATOMIC_RELAXED);
	__atomic_store_n(&e->flags_slot, KM_RING_NOWHERE << 32, __ATOMIC_RELEASE);
}

static void find_marker(struct km_ring *ring)
{
	for (uint32_t i = 0; i <= ring->mask; i++) {
		const struct km_ring_entry *e = &ring->entries[i];
		uint64_t flags_slot = __atomic_load_n(&e->flags_slot, __ATOMIC_ACQUIRE);

		if (flags_slot == KM_RING_NOWHERE << 32 && e->offset == MARKER_OFFSET) {
			ring->head = ring->tail = i;
			ring->lost_head = ring->may_lag = false;
			return;
		}
		if (flags_slot || e->offset)
			ring->lost_head = ring->may_lag = true; /* in use by someone before */
	}
}

/* Of a ring that is larger than we know, what comes after our part would never be read. */
static bool has_more(const struct km_dirty_vcpu *v, uint64_t offset)
{
	size_t page = km_sys_page_size();
	void *map;
	bool more;

	if (km_sys_mmap(page, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, offset + v->map_bytes,
			&map) < 0)
		return false;
	more = km_sys_madvise(map, page, KM_MADV_POPULATE_WRITE) >= 0;
	km_sys_munmap(map, page);
	return more;
}

static int map_ring(struct kvmem_dirty *d, struct km_dirty_vcpu *v)
{
	uint64_t offset = (uint64_t)KM_KVM_DIRTY_LOG_PAGE_OFFSET * km_sys_page_size();
	void *map;
	int64_t r;

	v->map_bytes = d->ring_entries * ENTRY_BYTES;
	r = km_sys_mmap(v->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, offset, &map);
	if (r < 0)
		return km_fail((int)-r, "mapping the dirty ring of vCPU %d: %m", v->fd);
	/* Beyond its real size a ring cannot be touched: learn that here and not by a signal. */
	r = km_sys_madvise(map, v->map_bytes, KM_MADV_POPULATE_WRITE);
	if (r < 0) {
		km_sys_munmap(map, v->map_bytes);
		return km_fail(r == -ENOMEM ? ENOMEM : EINVAL,
			       "the dirty ring of vCPU %d has fewer than %" PRIu32
			       " entries: is it a vCPU of this VM, is ring_entries right?",
			       v->fd, d->ring_entries);
	}
	if (has_more(v, offset)) {
		km_sys_munmap(map, v->map_bytes);
		return km_fail(EINVAL,
			       "the dirty ring of vCPU %d has more than %" PRIu32
			       " entries: is ring_entries right?",
			       v->fd, d->ring_entries);
	}
	d->vm->ring_entries = d->ring_entries;
	v->ring.entries = map;
	v->ring.mask = d->ring_entries - 1;
	find_marker(&v->ring);
	return 0;
}

static void vcpu_free(struct kvmem_dirty *d, struct km_dirty_vcpu *v)
{
	if (v->ring.entries) {
		/* Slots of the VMM's own may be logged still, and a vCPU that runs may be writing
		 * the very entry: the next owner finds the place by the entries then. */
		if (!d->table.foreign_entries)
			leave_marker(&v->ring);
		km_sys_munmap(v->ring.entries, v->map_bytes);
	}
	pthread_mutex_destroy(&v->lock);
	km_sys_free(v);
}

/*
 * The kernel joins entries by slot number, and drops a run that ends beyond the slot which has the
 * number now. So what an earlier owner of the ring has left in it must be gone before entries of
 * slots of today come behind it.
 */
static void empty_used_ring(struct kvmem_dirty *d, struct km_dirty_vcpu *v)
{
	km_dirty_take(d, v, true);
	km_dirty_reset(d, true);
}

static int add_locked(struct kvmem_dirty *d, int fd)
{
	struct km_dirty_vcpu *v;
	int r;

	if (km_dirty_vcpu_find(d, fd))
		return km_fail(EEXIST, "kvmem_dirty_add_vcpu: vCPU %d was added before", fd);
	r = km_dirty_room(&d->vcpus, d->vcpu_count, &d->vcpu_room);
	if (r)
		return r;
	v = km_sys_alloc(sizeof(*v));
	if (!v)
		return km_fail(ENOMEM, "kvmem_dirty_add_vcpu: no memory");
	pthread_mutex_init(&v->lock, NULL);
	v->fd = fd;
	if (d->mode == KVMEM_DIRTY_RING)
		r = map_ring(d, v);
	if (r) {
		vcpu_free(d, v);
		return r;
	}
	d->vcpus[d->vcpu_count++] = v;
	if (v->ring.lost_head)
		empty_used_ring(d, v);
	return 0;
}

int kvmem_dirty_add_vcpu(struct kvmem_dirty *dirty, int vcpu_fd)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_add_vcpu: dirty is NULL");
	r = km_callback_check("kvmem_dirty_add_vcpu", dirty);
	if (r)
		return r;
	r = vcpu_check(vcpu_fd);
	if (r)
		return r;
	pthread_rwlock_wrlock(&dirty->vm->lock);
	r = add_locked(dirty, vcpu_fd);
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r;
}

void km_dirty_vcpus_free(struct kvmem_dirty *d)
{
	if (d->vcpu_count && d->mode == KVMEM_DIRTY_RING) {
		km_dirty_take_all(d, true);
		km_dirty_reset(d, true);
	}
	while (d->vcpu_count)
		vcpu_free(d, d->vcpus[--d->vcpu_count]);
}

static int remove_locked(struct kvmem_dirty *d, int fd)
{
	size_t i = 0;

	while (i < d->vcpu_count && d->vcpus[i]->fd != fd)
		i++;
	if (i == d->vcpu_count)
		return km_fail(ENOENT, "kvmem_dirty_remove_vcpu: vCPU %d was not added", fd);
	if (km_dirty_take(d, d->vcpus[i], true))
		km_dirty_reset(d, false);
	vcpu_free(d, d->vcpus[i]);
	d->vcpu_count--;
	memmove(&d->vcpus[i], &d->vcpus[i + 1], (d->vcpu_count - i) * sizeof(*d->vcpus));
	return 0;
}

int kvmem_dirty_remove_vcpu(struct kvmem_dirty *dirty, int vcpu_fd)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_remove_vcpu: dirty is NULL");
	r = km_callback_check("kvmem_dirty_remove_vcpu", dirty);
	if (r)
		return r;
	pthread_rwlock_wrlock(&dirty->vm->lock);
	r = remove_locked(dirty, vcpu_fd);
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r;
}

int kvmem_dirty_get_vcpu_stats(const struct kvmem_dirty *dirty, int vcpu_fd,
			       struct kvmem_vcpu_stats *ret_stats)
{
	struct kvmem_vcpu_stats s = { 0 };
	const struct km_dirty_vcpu *v;
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_get_vcpu_stats: dirty is NULL");
	r = km_callback_check("kvmem_dirty_get_vcpu_stats", dirty);
	if (r)
		return r;
	r = km_result_check(ret_stats, VCPU_STATS_MIN, "kvmem_vcpu_stats");
	if (r)
		return r;
	pthread_rwlock_rdlock(&dirty->vm->lock);
	v = km_dirty_vcpu_find(dirty, vcpu_fd);
	if (v) {
		s.pages = v->pages;
		s.ring_full = v->ring_full;
		s.pages_per_s = v->rate;
	}
	pthread_rwlock_unlock(&dirty->vm->lock);
	if (!v)
		return km_fail(ENOENT, "kvmem_dirty_get_vcpu_stats: vCPU %d was not added",
			       vcpu_fd);
	km_result_copy(ret_stats, &s, sizeof(s));
	return 0;
}
