// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Ring or bitmap: what the kernel has, what the VMM has on already, and what may be turned on. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/uapi/kvm.h"

#define ENTRY_BYTES sizeof(struct kvm_dirty_gfn)
#define ENTRIES_MAX 65536u /* the kernel's own limit */
#define NO_SLOT	    UINT32_MAX

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
			"dirty ring: the VMM has turned it on itself: say its size in ring_entries of "
			"kvmem_vm_opts or of kvmem_dirty_opts");
	if (have && entries && have != entries)
		return km_fail(EINVAL,
			       "kvmem_dirty_opts: ring_entries %" PRIu32
			       ", but the VM's rings are on with %" PRIu32 " for its life",
			       entries, have);
	return 0;
}

/*
 * Processors that log into a buffer of their own (Intel's page modification log) enter its pages
 * into the ring only when the vCPU has left the guest; a slot can be deleted before that, and then
 * they are nowhere. KVM keeps room for such a buffer in each ring, so a ring that is too small for
 * it is refused there.
 */
#define SMALL_RING 512u

static bool has_late_writes(const struct kvmem_dirty *d, const struct flavour *f)
{
	return SMALL_RING * ENTRY_BYTES >= km_sys_page_size() &&
	       size_works(d->vm, f, SMALL_RING) != 1;
}

/*
 * KVM_DIRTY_LOG_INITIALLY_SET, which the VMM may have turned on and which cannot be read back,
 * makes a ring log nothing. With the rings on nobody can use the capability: the calls it is about
 * are ENXIO for every slot. So the VMM loses nothing by having it turned off.
 */
static int lower_manual(struct kvmem_dirty *d)
{
	struct kvm_enable_cap c = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 };
	int64_t r;

	if (d->vm->manual_known && !d->vm->manual)
		return 0;
	if (km_sys_ioctl_val(d->vm->fd, KVM_CHECK_EXTENSION, c.cap) <= 0)
		return 0;
	r = km_sys_ioctl(d->vm->fd, KVM_ENABLE_CAP, &c);
	if (r < 0)
		return km_fail((int)-r,
			       "turning off KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, with which a dirty "
			       "ring may log nothing: %m");
	d->vm->manual = 0;
	d->vm->manual_known = true;
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
	d->ring_entries = entries;
	if (!on) /* else it is what the caller says, until a ring has been seen */
		d->vm->ring_entries = entries;
	r = lower_manual(d);
	if (r)
		return r;
	d->late_writes = !(d->flags & KVMEM_DIRTY_DETACH_STOPPED) && has_late_writes(d, &f);
	snprintf(
		d->reason, sizeof(d->reason),
		"ring of %" PRIu32 " entries a vCPU, which is %" PRIu64
		" KiB of kernel memory each (%s)%s; not tracked: vCPUs that are not added, slots of "
		"regions without KVMEM_WANT_DIRTY",
		entries, entries * ENTRY_BYTES / 1024,
		f.cap == KM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL ? "KVM_CAP_DIRTY_LOG_RING_ACQ_REL"
							   : "KVM_CAP_DIRTY_LOG_RING",
		d->late_writes ? "; a slot that is detached is reported whole" : "");
	return 0;
}

/*
 * Where the VMM has not said what it has on, the capability is left alone: it cannot be read back.
 * KVM_CLEAR_DIRTY_LOG works with and without it.
 */
static bool may_set_manual(const struct kvmem_dirty *d, const struct km_dirty_wish *wish)
{
	return d->vm->manual_known && (!d->vm->adopted || wish->whole_vm);
}

static int use_bitmap(struct kvmem_dirty *d, const struct km_dirty_wish *wish, const char *why)
{
	int64_t offered = km_sys_ioctl_val(d->vm->fd, KVM_CHECK_EXTENSION,
					   KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);

	d->mode = KVMEM_DIRTY_BITMAP;
	if (offered > 0 && may_set_manual(d, wish))
		d->offered = (uint64_t)offered;
	d->clears = d->vm->manual_known
			    ? (d->offered | d->vm->manual) & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
			    : offered > 0;
	snprintf(d->reason, sizeof(d->reason),
		 "bitmap with %s clear: %s; not tracked: slots of regions without KVMEM_WANT_DIRTY",
		 !d->clears	       ? "automatic"
		 : d->vm->manual_known ? "manual"
				       : "manual or automatic (as the VMM has it)",
		 why);
	return 0;
}

/* Rings are for all of a VM, the VMM's own slots too. */
static const char *no_leave(const struct kvmem_dirty *d, const struct km_dirty_wish *wish, bool on)
{
	if (on || !d->vm->adopted || wish->whole_vm || wish->mode == KVMEM_DIRTY_RING)
		return NULL;
	return "the VM is adopted, and rings would be for all its slots: KVMEM_DIRTY_WHOLE_VM or mode "
	       "KVMEM_DIRTY_RING allows them";
}

int km_dirty_choose(struct kvmem_dirty *d, const struct km_dirty_wish *wish)
{
	bool on = d->vm->ring_entries || rings_are_on(d->vm->fd);
	struct km_detail before;
	int r;

	if (wish->mode == KVMEM_DIRTY_BITMAP) {
		if (on)
			return km_fail(
				EBUSY,
				"dirty bitmap: the VM's dirty rings are on, for its life, and "
				"exclude it");
		return use_bitmap(d, wish, "asked for");
	}
	if (no_leave(d, wish, on))
		return use_bitmap(d, wish, no_leave(d, wish, on));
	km_detail_save(&before);
	r = try_ring(d, wish->entries, on);
	if (!r)
		km_detail_restore(&before);
	if (!r || wish->mode == KVMEM_DIRTY_RING || on)
		return r;
	if (r != -EBUSY && r != -EOPNOTSUPP)
		return r;
	r = use_bitmap(d, wish, kvmem_error_detail());
	km_detail_restore(&before);
	return r;
}
