// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The capability table, and looking up what is in it. */
#include "caps/caps_internal.h"

#include <errno.h>
#include <string.h>

const struct km_cap_def km_cap_defs[KVMEM_CAP_COUNT_ - 1] = {
	{ KVMEM_CAP_KVM, "kvm", km_probe_kvm },
	{ KVMEM_CAP_USER_MEMORY2, "user-memory2", km_probe_slots },
	{ KVMEM_CAP_MEMORY_SLOTS, "memory-slots", km_probe_slots },
	{ KVMEM_CAP_READONLY_MEM, "readonly-slots", km_probe_slots },
	{ KVMEM_CAP_GUEST_MEMFD, "guest-memfd", km_probe_gmem },
	{ KVMEM_CAP_GUEST_MEMFD_MMAP, "guest-memfd-mmap", km_probe_gmem },
	{ KVMEM_CAP_GUEST_MEMFD_INIT_SHARED, "guest-memfd-init-shared", km_probe_gmem },
	{ KVMEM_CAP_GUEST_MEMFD_GUP, "guest-memfd-gup", km_probe_gmem },
	{ KVMEM_CAP_GUEST_MEMFD_WRITE, "guest-memfd-write", km_probe_gmem },
	{ KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG, "guest-memfd-write-flag", km_probe_gmem },
	{ KVMEM_CAP_GUEST_MEMFD_UFFD, "guest-memfd-uffd", km_probe_gmem_uffd },
	{ KVMEM_CAP_GUEST_MEMFD_NUMA, "guest-memfd-numa", km_probe_gmem_numa },
	{ KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT, "guest-memfd-direct-slot", km_probe_gmem_slots },
	{ KVMEM_CAP_GUEST_MEMFD_DIRECT_DIRTY, "guest-memfd-direct-dirty", km_probe_gmem_slots },
	{ KVMEM_CAP_GUEST_MEMFD_HVA_SLOT, "guest-memfd-hva-slot", km_probe_gmem_slots },
	{ KVMEM_CAP_GUEST_MEMFD_HVA_DIRTY, "guest-memfd-hva-dirty", km_probe_gmem_slots },
	{ KVMEM_CAP_UFFD, "uffd", km_probe_uffd },
	{ KVMEM_CAP_UFFD_DEVICE, "uffd-device", km_probe_uffd },
	{ KVMEM_CAP_UFFD_SYSCALL, "uffd-syscall", km_probe_uffd },
	{ KVMEM_CAP_UFFD_SHMEM, "uffd-shmem", km_probe_uffd_modes },
	{ KVMEM_CAP_UFFD_HUGETLB, "uffd-hugetlb", km_probe_uffd_hugetlb },
	{ KVMEM_CAP_UFFD_ANON, "uffd-anon", km_probe_uffd_modes },
	{ KVMEM_CAP_UFFD_WP_ASYNC, "uffd-wp-async", km_probe_uffd_async },
	{ KVMEM_CAP_UFFD_POISON, "uffd-poison", km_probe_uffd_modes },
	{ KVMEM_CAP_UFFD_MOVE, "uffd-move", km_probe_uffd_modes },
	{ KVMEM_CAP_NUMA_NODES, "numa-nodes", km_probe_numa },
	{ KVMEM_CAP_NUMA_PREFERRED_MANY, "numa-preferred-many", km_probe_numa },
	{ KVMEM_CAP_NUMA_WEIGHTED_INTERLEAVE, "numa-weighted-interleave", km_probe_numa },
	{ KVMEM_CAP_DIRTY_RING, "dirty-ring", km_probe_dirty },
	{ KVMEM_CAP_DIRTY_RING_ACQ_REL, "dirty-ring-acq-rel", km_probe_dirty },
	{ KVMEM_CAP_DIRTY_RING_WITH_BITMAP, "dirty-ring-with-bitmap", km_probe_dirty },
	{ KVMEM_CAP_DIRTY_MANUAL_PROTECT, "dirty-manual-protect", km_probe_dirty },
	{ KVMEM_CAP_DIRTY_INITIALLY_SET, "dirty-initially-set", km_probe_dirty },
	{ KVMEM_CAP_PRE_FAULT, "pre-fault", km_probe_pre_fault },
	{ KVMEM_CAP_MEMORY_ATTRIBUTES, "memory-attributes", km_probe_attributes },
	{ KVMEM_CAP_HUGETLB_2M, "hugetlb-2m", km_probe_hugetlb, true },
	{ KVMEM_CAP_HUGETLB_1G, "hugetlb-1g", km_probe_hugetlb, true },
	{ KVMEM_CAP_MADV_POPULATE, "madv-populate", km_probe_madvise },
	{ KVMEM_CAP_IO_URING, "io-uring", km_probe_uring },
	{ KVMEM_CAP_IO_URING_FIXED, "io-uring-fixed", km_probe_uring },
	{ KVMEM_CAP_ODIRECT_GUEST_MEMORY, "odirect-guest-memory", km_probe_odirect },
};

/* ---- look-ups ---- */

static void drop_scratch(struct kvmem_caps *c)
{
	km_sys_close(c->scratch_vm);
	km_sys_close(c->scratch_kvm);
	c->scratch_vm = -1;
	c->scratch_kvm = -1;
}

static void begin_look_up(struct kvmem_caps *c)
{
	pthread_mutex_lock(&c->lock);
	c->look_up++;
	c->passing = 0;
}

static void end_look_up(struct kvmem_caps *c)
{
	drop_scratch(c);
	pthread_mutex_unlock(&c->lock);
}

static struct km_cap_entry copy_of(const struct km_cap_entry *e)
{
	return (struct km_cap_entry){
		.support = e->support,
		.error = e->error,
		.value = e->value,
		.fallback = e->fallback,
		.reason = e->reason,
	};
}

/* The table is const to its readers: what a look-up adds does not change what it says. */
static struct km_cap_entry look_up(const struct kvmem_caps *caps, uint32_t id)
{
	struct kvmem_caps *c = (struct kvmem_caps *)(uintptr_t)caps;
	struct km_cap_entry *e = &c->entries[id], copy;

	if (atomic_load_explicit(&e->known, memory_order_acquire))
		return copy_of(e);
	begin_look_up(c);
	copy = copy_of(km_cap_need(c, id));
	end_look_up(c);
	return copy;
}

bool km_caps_has(const struct kvmem_caps *caps, enum kvmem_cap id)
{
	return look_up(caps, id).support == KVMEM_SUPPORT_NATIVE;
}

int64_t km_caps_value(const struct kvmem_caps *caps, enum kvmem_cap id)
{
	return look_up(caps, id).value;
}

const char *km_caps_reason(const struct kvmem_caps *caps, enum kvmem_cap id)
{
	return look_up(caps, id).reason;
}

bool km_caps_unknown(const struct kvmem_caps *caps, enum kvmem_cap id)
{
	return look_up(caps, id).support == KVMEM_SUPPORT_UNKNOWN;
}

const char *km_caps_lack(const struct kvmem_caps *caps, enum kvmem_cap id)
{
	struct km_cap_entry e = look_up(caps, id);

	return e.support == KVMEM_SUPPORT_NATIVE ? NULL : e.reason;
}

int km_caps_create(int kvm_fd, int vm_fd, uint64_t vm_type, struct kvmem_caps **ret_caps)
{
	struct kvmem_caps *c = km_sys_alloc(sizeof(*c));

	if (!c)
		return km_fail(ENOMEM, "capability table: no memory");
	c->defs = km_cap_defs;
	c->kvm_fd = -1;
	c->vm_fd = vm_fd;
	c->vm_type = vm_type;
	c->scratch_kvm = -1;
	c->scratch_vm = -1;
	if (kvm_fd >= 0) {
		int64_t r = km_sys_dup(kvm_fd);

		if (r < 0) {
			km_sys_free(c);
			return km_fail((int)-r, "capability table: duplicate of kvm_fd %d: %m",
				       kvm_fd);
		}
		c->kvm_fd = (int)r;
	}
	pthread_mutex_init(&c->lock, NULL);
	*ret_caps = c;
	return 0;
}

/* ---- public ---- */

int kvmem_caps_probe(const struct kvmem_caps_opts *opts, struct kvmem_caps **ret_caps)
{
	struct kvmem_caps_opts o;
	int r;

	if (!ret_caps)
		return km_fail(EINVAL, "kvmem_caps_probe: ret_caps is NULL");
	r = km_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_caps_opts");
	if (r)
		return r;
	r = km_flags_check(o.flags, KVMEM_CAPS_VM_FD, "kvmem_caps_opts.flags");
	if (r)
		return r;
	if (o.reserved)
		return km_fail(EINVAL, "kvmem_caps_opts.reserved must be 0");
	if (o.flags & KVMEM_CAPS_VM_FD && km_vm_slots(o.vm_fd, "kvmem_caps_opts.vm_fd") < 0)
		return -EBADF;
	r = km_caps_create(-1, o.flags & KVMEM_CAPS_VM_FD ? o.vm_fd : -1, o.vm_type, ret_caps);
	if (r)
		return r;
	(*ret_caps)->snapshot = true;
	begin_look_up(*ret_caps);
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++)
		km_cap_need(*ret_caps, id);
	end_look_up(*ret_caps);
	return 0;
}

int km_caps_kvm_fd(const struct kvmem_caps *caps)
{
	return caps->kvm_fd;
}

void kvmem_caps_free(struct kvmem_caps *caps)
{
	if (!caps)
		return;
	km_sys_close(caps->kvm_fd);
	for (struct km_cap_text *t = caps->texts, *next; t; t = next) {
		next = t->next;
		km_sys_free(t);
	}
	pthread_mutex_destroy(&caps->lock);
	km_sys_free(caps);
}

const char *kvmem_cap_name(uint32_t id)
{
	return id && id < KVMEM_CAP_COUNT_ ? km_cap_defs[id - 1].name : NULL;
}

int kvmem_caps_get(const struct kvmem_caps *caps, uint32_t id, struct kvmem_cap_info *ret_info)
{
	struct kvmem_cap_info info = { .id = id };
	struct km_cap_entry e;
	int r;

	if (!caps)
		return km_fail(EINVAL, "kvmem_caps_get: caps is NULL");
	if (!kvmem_cap_name(id))
		return km_fail(EINVAL,
			       "kvmem_caps_get: no facility has the number %u, they are 1 to %u",
			       id, KVMEM_CAP_COUNT_ - 1);
	r = km_result_check(ret_info, sizeof(info), "kvmem_cap_info");
	if (r)
		return r;
	e = look_up(caps, id);
	info.support = e.support;
	info.error = e.error;
	info.value = e.value;
	info.name = kvmem_cap_name(id);
	info.fallback = e.fallback;
	info.reason = e.reason;
	km_result_copy(ret_info, &info, sizeof(info));
	return 0;
}
