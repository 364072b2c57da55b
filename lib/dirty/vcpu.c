// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* vCPUs and their rings. */
#include "dirty/dirty_internal.h"

#include <asm/ioctls.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"

#define ENTRY_BYTES    sizeof(struct kvm_dirty_gfn)
#define ENTRIES_MAX    65536u /* the kernel's own limit */
#define NO_SLOT	       UINT32_MAX
#define VCPU_STATS_MIN sizeof(struct kvmem_vcpu_stats)

/* ---- turning the rings on ---- */

struct flavour {
	uint32_t cap;
	uint32_t max; /* entries; 0: the kernel has no rings */
};

/* On x86 the older capability promises the same order; elsewhere only the newer one exists. */
static struct flavour probe_flavour(int vm_fd)
{
	static const uint32_t caps[] = {
		KM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
#if defined(__x86_64__)
		KVM_CAP_DIRTY_LOG_RING,
#endif
	};
	struct flavour f = { 0 };

	for (size_t i = 0; i < KM_ARRAY_SIZE(caps); i++) {
		int64_t bytes = km_sys_ioctl_val(vm_fd, KVM_CHECK_EXTENSION, caps[i]);

		if (bytes < (int64_t)ENTRY_BYTES)
			continue;
		f.cap = caps[i];
		f.max = (uint32_t)(bytes / (int64_t)ENTRY_BYTES);
		break;
	}
	return f;
}

static int64_t enable(int vm_fd, uint32_t cap, uint32_t entries)
{
	struct kvm_enable_cap c = { .cap = cap, .args = { entries * ENTRY_BYTES } };

	return km_sys_ioctl(vm_fd, KVM_ENABLE_CAP, &c);
}

/* GET_DIRTY_LOG says ENXIO for any slot where the rings are on, EINVAL for a bad one where not. */
static bool rings_are_on(int vm_fd)
{
	struct kvm_dirty_log log = { .slot = NO_SLOT };

	return km_sys_ioctl(vm_fd, KVM_GET_DIRTY_LOG, &log) == -ENXIO;
}

/*
 * The kernel has one EINVAL for "too small for this machine" and for "a vCPU exists". A VM of our
 * own, without a vCPU, tells which. 1: this size works; 0: it does not; -errno: no VM to be had.
 */
static int size_works(const struct kvmem_vm *vm, const struct flavour *f, uint32_t entries)
{
	int64_t fd = km_caps_new_vm(vm->caps);
	int r;

	if (fd < 0)
		return (int)fd;
	r = enable((int)fd, f->cap, entries) >= 0;
	km_sys_close((int)fd);
	return r;
}

static int enable_failed(struct kvmem_dirty *d, const struct flavour *f, uint32_t entries, int err)
{
	int works;

	if (err != -EINVAL)
		return km_fail(-err, "dirty ring of %" PRIu32 " entries: %m", entries);
	works = size_works(d->vm, f, entries);
	if (works < 0)
		return km_fail(
			EBUSY,
			"dirty ring of %" PRIu32 " entries: the VM has a vCPU already, or they are "
			"fewer than this machine needs; no VM to tell which by: %s; give kvm_fd in "
			"kvmem_vm_opts",
			entries, strerror(-works));
	if (!works)
		return km_fail(
			EINVAL,
			"kvmem_dirty_opts: ring_entries %" PRIu32
			" is less than this machine needs "
			"(64, and 512 more with Intel's page modification log): take 1024 or more",
			entries);
	return km_fail(
		EBUSY,
		"dirty ring: the VM has a vCPU already: create the tracker before the first one");
}

static int entries_check(const struct flavour *f, uint32_t entries)
{
	if (entries * ENTRY_BYTES >= km_sys_page_size() && entries <= f->max)
		return 0;
	return km_fail(EINVAL,
		       "kvmem_dirty_opts: ring_entries %" PRIu32
		       ", this kernel takes %zu to %" PRIu32,
		       entries, km_sys_page_size() / ENTRY_BYTES, f->max);
}

/* Once on, the rings are on for the VM's life, and in one size. */
static int rings_on_already(struct kvmem_dirty *d, uint32_t entries)
{
	uint32_t have = d->vm->ring_entries;

	if (!have && !entries)
		return km_fail(
			EBUSY,
			"dirty ring: the VMM has turned it on itself: say its size in ring_entries");
	if (have && entries && have != entries)
		return km_fail(EINVAL,
			       "kvmem_dirty_opts: ring_entries %" PRIu32
			       ", but the VM's rings are on with %" PRIu32 " for its life",
			       entries, have);
	return 0;
}

static int try_ring(struct kvmem_dirty *d, uint32_t entries, bool on)
{
	struct flavour f = probe_flavour(d->vm->fd);
	int64_t err;
	int r;

	if (!f.max)
		return km_fail(
			EOPNOTSUPP,
			"dirty ring: this kernel has none (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, since "
			"Linux 5.11 on x86-64): use the bitmap");
	if (on) {
		r = rings_on_already(d, entries);
		if (r)
			return r;
		if (!entries)
			entries = d->vm->ring_entries;
	} else if (!entries) {
		entries = f.max < ENTRIES_MAX ? f.max : ENTRIES_MAX;
	}
	r = entries_check(&f, entries);
	if (r)
		return r;
	if (!on) {
		err = enable(d->vm->fd, f.cap, entries);
		if (err < 0)
			return enable_failed(d, &f, entries, (int)err);
	}
	d->mode = KVMEM_DIRTY_RING;
	d->ring_entries = d->vm->ring_entries = entries;
	snprintf(d->reason, sizeof(d->reason), "ring of %" PRIu32 " entries a vCPU (%s)", entries,
		 f.cap == KM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL ? "KVM_CAP_DIRTY_LOG_RING_ACQ_REL"
							    : "KVM_CAP_DIRTY_LOG_RING");
	return 0;
}

static int use_bitmap(struct kvmem_dirty *d, const char *why)
{
	int64_t manual = km_sys_ioctl_val(d->vm->fd, KVM_CHECK_EXTENSION,
					  KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	d->mode = KVMEM_DIRTY_BITMAP;
	d->manual = manual > 0 ? (uint64_t)manual : 0;
	snprintf(d->reason, sizeof(d->reason), "bitmap with %s clear: %s",
		 d->manual & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE ? "manual" : "automatic", why);
	return 0;
}

int km_dirty_rings_probe(struct kvmem_dirty *d, uint32_t entries, uint32_t mode)
{
	bool on = d->vm->ring_entries || rings_are_on(d->vm->fd);
	int r;

	if (mode == KVMEM_DIRTY_BITMAP) {
		if (on)
			return km_fail(
				EBUSY,
				"dirty bitmap: the VM's dirty rings are on, for its life, and "
				"exclude it");
		return use_bitmap(d, "asked for");
	}
	r = try_ring(d, entries, on);
	if (!r || mode == KVMEM_DIRTY_RING || on)
		return r;
	if (r == -EBUSY || r == -EOPNOTSUPP)
		return use_bitmap(d, kvmem_error_detail());
	return r;
}

/* ---- vCPUs ---- */

static struct km_dirty_vcpu *vcpu_find(const struct kvmem_dirty *d, int fd)
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
 * A ring does not say where it stands. So whoever lets go of one leaves a note in the entry that
 * comes next, which the kernel overwrites when it pushes it.
 */
#define NOTE_SLOT   0xfffffffeull
#define NOTE_OFFSET 0x6b766d656d646972ull

static void leave_note(struct km_ring *ring)
{
	struct km_ring_entry *e = &ring->entries[ring->head & ring->mask];

	if (ring->lost_head || (uint32_t)__atomic_load_n(&e->flags_slot, __ATOMIC_ACQUIRE))
		return;
	__atomic_store_n(&e->offset, NOTE_OFFSET, __ATOMIC_RELAXED);
	__atomic_store_n(&e->flags_slot, NOTE_SLOT << 32, __ATOMIC_RELEASE);
}

static void find_note(struct km_ring *ring)
{
	for (uint32_t i = 0; i <= ring->mask; i++) {
		const struct km_ring_entry *e = &ring->entries[i];
		uint64_t flags_slot = __atomic_load_n(&e->flags_slot, __ATOMIC_ACQUIRE);

		if (flags_slot == NOTE_SLOT << 32 && e->offset == NOTE_OFFSET) {
			ring->head = i;
			ring->lost_head = false;
			return;
		}
		if (flags_slot || e->offset)
			ring->lost_head = true; /* in use by someone before */
	}
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
	v->ring.entries = map;
	v->ring.mask = d->ring_entries - 1;
	find_note(&v->ring);
	return 0;
}

static void vcpu_free(struct km_dirty_vcpu *v)
{
	if (v->ring.entries) {
		leave_note(&v->ring);
		km_sys_munmap(v->ring.entries, v->map_bytes);
	}
	pthread_mutex_destroy(&v->lock);
	km_sys_free(v);
}

static int add_locked(struct kvmem_dirty *d, int fd)
{
	struct km_dirty_vcpu *v;
	int r;

	if (vcpu_find(d, fd))
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
		vcpu_free(v);
		return r;
	}
	d->vcpus[d->vcpu_count++] = v;
	return 0;
}

int kvmem_dirty_add_vcpu(struct kvmem_dirty *dirty, int vcpu_fd)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_add_vcpu: dirty is NULL");
	r = vcpu_check(vcpu_fd);
	if (r)
		return r;
	pthread_rwlock_wrlock(&dirty->vm->lock);
	r = add_locked(dirty, vcpu_fd);
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r;
}

/* Under mark_lock: no reset is under way, and the entries count as marked before one begins. */
static uint32_t take_ring(struct kvmem_dirty *d, struct km_dirty_vcpu *v, bool shared)
{
	uint32_t n;

	if (!v->ring.entries)
		return 0;
	pthread_mutex_lock(&v->lock);
	pthread_rwlock_rdlock(&d->mark_lock);
	n = km_ring_take(&v->ring, &d->table, shared);
	atomic_fetch_add(&d->marked, n);
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
		n += take_ring(d, d->vcpus[i], shared);
	return n;
}

void km_dirty_vcpus_free(struct kvmem_dirty *d)
{
	if (km_dirty_take_all(d, true))
		km_dirty_reset(d);
	while (d->vcpu_count)
		vcpu_free(d->vcpus[--d->vcpu_count]);
}

static int remove_locked(struct kvmem_dirty *d, int fd)
{
	size_t i = 0;

	while (i < d->vcpu_count && d->vcpus[i]->fd != fd)
		i++;
	if (i == d->vcpu_count)
		return km_fail(ENOENT, "kvmem_dirty_remove_vcpu: vCPU %d was not added", fd);
	if (take_ring(d, d->vcpus[i], true))
		km_dirty_reset(d);
	vcpu_free(d->vcpus[i]);
	d->vcpu_count--;
	memmove(&d->vcpus[i], &d->vcpus[i + 1], (d->vcpu_count - i) * sizeof(*d->vcpus));
	return 0;
}

int kvmem_dirty_remove_vcpu(struct kvmem_dirty *dirty, int vcpu_fd)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_remove_vcpu: dirty is NULL");
	pthread_rwlock_wrlock(&dirty->vm->lock);
	r = remove_locked(dirty, vcpu_fd);
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r;
}

static int ring_full_locked(struct kvmem_dirty *d, int fd)
{
	struct km_dirty_vcpu *v = vcpu_find(d, fd);

	if (!v)
		return km_fail(ENOENT, "kvmem_dirty_ring_full: vCPU %d was not added", fd);
	km_count_shared(&v->ring_full, 1);
	km_count_shared(&d->stats.ring_full, 1);
	take_ring(d, v, true);
	return km_dirty_reset(d);
}

int kvmem_dirty_ring_full(struct kvmem_dirty *dirty, int vcpu_fd)
{
	int r;

	if (!dirty)
		return km_fail(EINVAL, "kvmem_dirty_ring_full: dirty is NULL");
	if (dirty->mode != KVMEM_DIRTY_RING)
		return km_fail(
			EINVAL,
			"kvmem_dirty_ring_full: there are no rings, the tracker uses the bitmap");
	pthread_rwlock_rdlock(&dirty->vm->lock);
	r = ring_full_locked(dirty, vcpu_fd);
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
	r = km_result_check(ret_stats, VCPU_STATS_MIN, "kvmem_vcpu_stats");
	if (r)
		return r;
	pthread_rwlock_rdlock(&dirty->vm->lock);
	v = vcpu_find(dirty, vcpu_fd);
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

/* ---- the reaper ---- */

/* Entries of the fullest ring. */
static uint32_t reap(struct kvmem_dirty *d)
{
	uint32_t most = 0, n;

	pthread_rwlock_rdlock(&d->vm->lock);
	for (size_t i = 0; i < d->vcpu_count; i++) {
		n = take_ring(d, d->vcpus[i], true);
		most = n > most ? n : most;
	}
	if (most)
		km_dirty_reset(d); /* what stays marked, the next reset reports */
	pthread_rwlock_unlock(&d->vm->lock);
	km_count_shared(&d->stats.reaps, 1);
	return most;
}

static uint64_t adapt(const struct kvmem_dirty *d, uint64_t ns, uint32_t most)
{
	if (most > d->ring_entries / 4)
		ns /= 2;
	else if (most < d->ring_entries / 16)
		ns *= 2;
	if (ns < d->reaper.min_ns)
		return d->reaper.min_ns;
	return ns > d->reaper.max_ns ? d->reaper.max_ns : ns;
}

/* False when the thread is to end. */
static bool pause_reaper(struct km_reaper *r, uint64_t ns)
{
	uint64_t until = km_sys_now_ns() + ns;
	struct timespec ts = { (time_t)(until / 1000000000u), (long)(until % 1000000000u) };
	bool go_on;

	pthread_mutex_lock(&r->lock);
	while (!r->quit && pthread_cond_timedwait(&r->wake, &r->lock, &ts) != ETIMEDOUT)
		;
	go_on = !r->quit;
	pthread_mutex_unlock(&r->lock);
	return go_on;
}

static void *reaper_main(void *arg)
{
	struct kvmem_dirty *d = arg;
	uint64_t ns = d->reaper.min_ns;

	while (pause_reaper(&d->reaper, ns))
		ns = adapt(d, ns, reap(d));
	return NULL;
}

/* The bitmap has nothing that could fill. */
int km_dirty_reaper_start(struct kvmem_dirty *d)
{
	int64_t r;

	if (!(d->flags & KVMEM_DIRTY_REAPER) || d->mode != KVMEM_DIRTY_RING)
		return 0;
	d->reaper.quit = false;
	r = km_sys_thread_create(&d->reaper.thread, "kvmem-reaper", reaper_main, d);
	if (r < 0)
		return km_fail((int)-r, "reaper thread: %m");
	d->reaper.running = true;
	return 0;
}

void km_dirty_reaper_stop(struct kvmem_dirty *d)
{
	if (!d->reaper.running)
		return;
	pthread_mutex_lock(&d->reaper.lock);
	d->reaper.quit = true;
	pthread_cond_signal(&d->reaper.wake);
	pthread_mutex_unlock(&d->reaper.lock);
	km_sys_thread_join(d->reaper.thread);
	d->reaper.running = false;
}
