// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "fake_rings.h"

#include <asm/ioctls.h>
#include <check.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/uapi/userfaultfd.h"
#include <unistd.h>

struct fake_kvm fk;

#define SCRATCH_FD 510

static uint32_t entries_of(const struct kvm_enable_cap *cap)
{
	return (uint32_t)(cap->args[0] / sizeof(struct kvm_dirty_gfn));
}

#define UFFD  900
#define MEMFD 800

static int64_t enable_cap(int fd, const struct kvm_enable_cap *cap)
{
	if (cap->cap == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) {
		fk.enabled = *cap;
		fk.manual_now = cap->args[0];
		return 0;
	}
	if (fk.pml && entries_of(cap) < 576)
		return -EINVAL;
	if (fd == SCRATCH_FD)
		return -fk.scratch_errno;
	fk.enabled = *cap;
	fk.enables++;
	if (fk.enable_errno)
		return -fk.enable_errno;
	fk.rings_on = true;
	fk.entries = entries_of(cap);
	return 0;
}

/* Logging begins: all pages are protected, but for INITIALLY_SET. */
static void begin_log(struct fk_slot *s)
{
	bool set = fk.manual_now & KVM_DIRTY_LOG_INITIALLY_SET;

	memset(s->open, set, sizeof(s->open));
	memset(s->log, set ? 0xff : 0, sizeof(s->log));
}

static int64_t set_slot(const struct kvm_userspace_memory_region *m)
{
	struct fk_slot *s = &fk.slots[m->slot];
	bool on = m->flags & KVM_MEM_LOG_DIRTY_PAGES;

	fk.sets[fk.slot_sets++ % FK_CALLS] = *m;
	if (fk.slot_errno && !fk.slot_good)
		return -fk.slot_errno;
	fk.slot_good -= !!fk.slot_good;
	if (!m->memory_size) {
		memset(s, 0, sizeof(*s));
		return 0;
	}
	if (s->pages && (s->pages != m->memory_size / 4096 || s->hva != m->userspace_addr))
		return -EINVAL;
	s->pages = m->memory_size / 4096;
	s->gpa = m->guest_phys_addr;
	s->hva = m->userspace_addr;
	if (on && !(s->flags & KVM_MEM_LOG_DIRTY_PAGES))
		begin_log(s);
	s->flags = m->flags;
	return 0;
}

static bool manual_on(void)
{
	return fk.manual_now & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
}

static int64_t get_log(const struct kvm_dirty_log *log)
{
	struct fk_slot *s;

	if (fk.rings_on)
		return -ENXIO;
	if (log->slot >= FK_SLOTS)
		return -EINVAL;
	fk.gets++;
	if (fk.get_errno)
		return -fk.get_errno;
	s = &fk.slots[log->slot];
	memcpy(log->dirty_bitmap, s->log, (s->pages + 63) / 64 * 8);
	if (!manual_on()) {
		memset(s->log, 0, sizeof(s->log));
		memset(s->open, 0, sizeof(s->open));
	}
	return 0;
}

static int64_t clear_log(const struct kvm_clear_dirty_log *c)
{
	struct fk_slot *s = &fk.slots[c->slot];
	const uint64_t *bits = c->dirty_bitmap;

	fk.clear[fk.clears++ % FK_CALLS] = *c;
	if (fk.clears == fk.fail_clear_at)
		return -fk.clear_errno;
	if (c->first_page % 64 || (c->num_pages % 64 && c->first_page + c->num_pages != s->pages))
		return -EINVAL;
	for (uint64_t i = 0; i < c->num_pages; i++)
		if (bits[i / 64] >> (i % 64) & 1) {
			s->log[(c->first_page + i) / 64] &= ~(1ull << ((c->first_page + i) % 64));
			s->open[c->first_page + i] = false;
		}
	return 0;
}

/* ---- resets ---- */

struct join {
	uint32_t slot;
	uint64_t offset, mask;
};

static unsigned int last_bit(uint64_t mask)
{
	return 63 - (unsigned int)__builtin_clzll(mask);
}

static void protect(const struct join *j)
{
	struct fk_slot *s = j->slot < FK_SLOTS ? &fk.slots[j->slot] : NULL;

	if (!s || j->offset + last_bit(j->mask) >= s->pages) {
		fk.dropped++;
		return;
	}
	for (unsigned int i = 0; i < 64; i++)
		if (j->mask >> i & 1)
			s->open[j->offset + i] = false;
}

static bool joined(struct join *j, uint32_t slot, uint64_t offset)
{
	int64_t delta = (int64_t)(offset - j->offset);

	if (slot != j->slot)
		return false;
	if (delta >= 0 && delta < 64) {
		j->mask |= 1ull << delta;
		return true;
	}
	if (delta >= 0 || delta <= -64 || j->mask << -delta >> -delta != j->mask)
		return false;
	j->offset = offset;
	j->mask = j->mask << -delta | 1;
	return true;
}

static bool interrupted(uint32_t n)
{
	if (!fk.interrupt_times || n < fk.interrupt_after)
		return false;
	fk.interrupt_times--;
	return true;
}

/* False when it was interrupted. */
static bool reset_ring(struct fk_vcpu *v, uint32_t *n)
{
	struct join j = { 0 };

	while (!interrupted(*n)) {
		struct kvm_dirty_gfn *e = &v->ring[v->reset % fk.entries];

		if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_RESET) {
			if (j.mask)
				protect(&j);
			return true;
		}
		__atomic_store_n(&e->flags, 0, __ATOMIC_RELAXED);
		v->reset++;
		++*n;
		if (j.mask && joined(&j, e->slot, e->offset))
			continue;
		if (j.mask)
			protect(&j);
		j = (struct join){ e->slot, e->offset, 1 };
	}
	return false;
}

static int64_t reset_rings(void)
{
	sigset_t blocked;
	uint32_t n = 0;

	pthread_sigmask(SIG_SETMASK, NULL, &blocked);
	if (!sigismember(&blocked, SIGUSR1) || !sigismember(&blocked, SIGALRM))
		fk.signals_open = true;
	fk.resets++;
	if (fk.reset_errno)
		return -fk.reset_errno;
	for (size_t i = 0; i < FK_VCPUS; i++)
		if (fk.vcpus[i].ring && !reset_ring(&fk.vcpus[i], &n))
			break;
	for (uint64_t p = 300; fk.writes_in_reset; p++, fk.writes_in_reset--)
		fk_write(0, 0, p);
	return n;
}

/* ---- what the host does to its mapping, KVM follows ---- */

static unsigned int close_range_of(uint64_t from, uint64_t bytes)
{
	unsigned int pages = 0;

	for (size_t i = 0; i < FK_SLOTS; i++)
		for (uint64_t p = 0; p < fk.slots[i].pages; p++) {
			uint64_t at = fk.slots[i].hva + p * 4096;

			if (at < from || at >= from + bytes)
				continue;
			fk.slots[i].open[p] = false;
			pages++;
		}
	return pages;
}

static int64_t fake_madvise(void *addr, size_t len, int advice)
{
	if (advice != MADV_DONTNEED || (uintptr_t)addr < FK_RAM_A ||
	    (uintptr_t)addr >= FK_RAM_B + (FK_SLOT_PAGES << 12))
		return km_real_madvise(addr, len, advice);
	fk.zaps++;
	close_range_of((uintptr_t)addr, len);
	return 0;
}

static int64_t fake_userfaultfd(int flags)
{
	fk.user_mode_only = flags & UFFD_USER_MODE_ONLY;
	return fk.uffd_errno ? -fk.uffd_errno : UFFD;
}

static int64_t uffd_ioctl(unsigned long request, const void *arg)
{
	const struct uffdio_writeprotect *wp = arg;
	const struct uffdio_api *api = arg;

	if (request == UFFDIO_API && api->features & KM_UFFD_FEATURE_WP_ASYNC && fk.no_wp_async)
		return -EINVAL;
	if (request == UFFDIO_REGISTER)
		fk.registered = true;
	if (request == UFFDIO_UNREGISTER)
		fk.registered = false;
	if (request == UFFDIO_WAKE && !fk.registered) /* else another one follows it */
		fk.late_waiter = false;
	if (request != UFFDIO_WRITEPROTECT)
		return 0;
	fk.late_waiter |= fk.no_wp_async && fk.wp_on;
	fk.wp_on = wp->mode & UFFDIO_WRITEPROTECT_MODE_WP;
	if (!fk.wp_on)
		return 0;
	fk.wps++;
	close_range_of(wp->range.start, wp->range.len);
	return 0;
}

static int64_t fake_ioctl(int fd, unsigned long request, void *arg)
{
	if (request == TCGETS)
		return fd >= FK_VCPU_FD && fd < FK_FILE_FD ? -EINVAL : fd < 0 ? -EBADF : -ENOTTY;
	if (fd == UFFD)
		return uffd_ioctl(request, arg);
	if (fd != FK_VM_FD && fd != SCRATCH_FD)
		return -EBADF;
	switch (request) {
	case KVM_ENABLE_CAP:
		return enable_cap(fd, arg);
	case KVM_GET_DIRTY_LOG:
		return get_log(arg);
	case KVM_CLEAR_DIRTY_LOG:
		return clear_log(arg);
	case KVM_SET_USER_MEMORY_REGION:
		return set_slot(arg);
	}
	return -ENOTTY;
}

static int64_t fake_ioctl_val(int fd, unsigned long request, unsigned long arg)
{
	(void)fd;
	if (request == KVM_CREATE_VM)
		return SCRATCH_FD;
	if (request == KVM_RESET_DIRTY_RINGS)
		return reset_rings();
	if (request != KVM_CHECK_EXTENSION)
		return -ENOTTY;
	switch (arg) {
	case KM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
		return fk.acq_rel;
	case KVM_CAP_DIRTY_LOG_RING:
		return fk.tso;
	case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
		return fk.manual;
	}
	return 0;
}

static void make_ring(struct fk_vcpu *v, size_t len)
{
	v->memfd = (int)km_real_memfd_create("ring", 0);
	ck_assert_int_ge(v->memfd, 0);
	ck_assert_int_eq(km_real_ftruncate(v->memfd, len), 0);
	v->ring = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, v->memfd, 0);
	ck_assert_ptr_ne(v->ring, MAP_FAILED);
}

static int64_t fake_mmap(size_t len, int prot, int flags, int fd, uint64_t off, void **ret)
{
	struct fk_vcpu *v;

	if (fd < FK_VCPU_FD || fd >= FK_FILE_FD || !off)
		return fd >= FK_FILE_FD
			       ? -ENODEV
			       : km_real_mmap(len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, ret);
	ck_assert_uint_ge(off, 64 * 4096);
	v = &fk.vcpus[fd - FK_VCPU_FD];
	if (!v->ring)
		make_ring(v, fk.entries * sizeof(struct kvm_dirty_gfn));
	/* Pages beyond the ring can be mapped, but not touched. */
	return km_real_mmap(len, prot, flags, v->memfd, off - 64 * 4096, ret);
}

static void region_init(struct kvmem_region *r, uint64_t pages, uintptr_t base)
{
	memset(r, 0, sizeof(*r));
	r->vm = &fk.vm;
	r->plan.granted = KVMEM_WANT_DIRTY;
	r->plan.slot_form = KVMEM_SLOT_HVA;
	r->plan.page_size = 4096;
	r->page_shift = 12;
	r->bytes = r->room = pages * 4096;
	r->fd = MEMFD;
	r->private_fd = -1;
	r->base = (uint8_t *)base;
	pthread_mutex_init(&r->lock, NULL);
}

static int64_t fake_open(const char *path, int flags)
{
	(void)flags;
	return strcmp(path, "/dev/kvm") ? -ENOENT : 400;
}

void fk_reset(void)
{
	memset(&fk, 0, sizeof(fk));
	fake_reset();
	fake.ioctl = fake_ioctl;
	fake.ioctl_val = fake_ioctl_val;
	fake.mmap = fake_mmap;
	fake.madvise = fake_madvise;
	fake.userfaultfd = fake_userfaultfd;
	fake.open = fake_open;
	fk.acq_rel = 65536 * 16;
	fk.manual = 3;
	fk.vm.fd = FK_VM_FD;
	fk.vm.max_slots = FK_SLOTS;
	fk.vm.manual_known = true;
	ck_assert_int_eq(km_caps_create(-1, FK_VM_FD, 0, &fk.vm.caps), 0);
	pthread_rwlock_init(&fk.vm.lock, NULL);
	pthread_rwlock_init(&fk.vm.change_lock, NULL);
	region_init(&fk.a, FK_SLOT_PAGES, FK_RAM_A);
	region_init(&fk.b, FK_SLOT_PAGES / 2, FK_RAM_B);
	atomic_store(&fake.calls, 0); /* fail_at counts the test's own */
}

void fk_done(void)
{
	while (fk.vm.slot_count)
		ck_assert_int_eq(kvmem_region_detach(fk.vm.slots[0]->owner, fk.vm.slots[0]->id), 0);
	for (size_t i = 0; i < FK_VCPUS; i++)
		if (fk.vcpus[i].ring) {
			munmap(fk.vcpus[i].ring, fk.entries * sizeof(struct kvm_dirty_gfn));
			close(fk.vcpus[i].memfd);
		}
	kvmem_caps_free(fk.vm.caps);
	km_slots_free(&fk.vm);
	pthread_rwlock_destroy(&fk.vm.lock);
	pthread_rwlock_destroy(&fk.vm.change_lock);
	ck_assert_int_eq(fake.allocs, 0);
	ck_assert(!fk.signals_open);
	ck_assert(!fk.late_waiter);
}

void fk_write(unsigned int vcpu, uint32_t slot, uint64_t page)
{
	struct fk_slot *s = &fk.slots[slot];
	struct fk_vcpu *v = &fk.vcpus[vcpu];
	struct kvm_dirty_gfn *e;

	ck_assert_uint_lt(page, s->pages);
	if (!(s->flags & KVM_MEM_LOG_DIRTY_PAGES) || s->open[page])
		return;
	s->open[page] = true;
	s->log[page / 64] |= 1ull << (page % 64);
	if (!fk.rings_on || !v->ring)
		return;
	e = &v->ring[v->pushed++ % fk.entries];
	if (!fk.overruns)
		ck_assert_uint_eq(e->flags, 0);
	e->slot = slot;
	e->offset = page;
	__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
}
