// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The capability table: what is known, and how it comes to be known. */
#include "caps/caps_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
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

/* ---- what probes say ---- */

/* Limits and shortages of the moment, of this process or of the machine. */
bool km_cap_passes(int64_t r)
{
	switch (r) {
	case -EMFILE:
	case -ENFILE:
	case -ENOMEM:
	case -EAGAIN:
	case -EINTR:
	case -EFBIG:
	case -ENOSPC:
		return true;
	default:
		return false;
	}
}

int64_t km_cap_step(struct kvmem_caps *c, int64_t r)
{
	if (km_cap_passes(r))
		c->passing = r;
	return r;
}

/* The same text is kept once, however often it is said. */
static const char *keep_text(struct kvmem_caps *c, const char *text)
{
	size_t len = strlen(text) + 1;
	struct km_cap_text *t;

	for (t = c->texts; t; t = t->next)
		if (!strcmp(t->text, text))
			return t->text;
	t = km_sys_alloc(sizeof(*t) + len);
	if (!t)
		return NULL;
	memcpy(t->text, text, len);
	t->next = c->texts;
	c->texts = t;
	return t->text;
}

/* The first to settle an entry in a look-up is right: it knows more than what comes after it. */
static void settle(struct kvmem_caps *c, uint32_t id, enum kvmem_support support, int64_t value,
		   int64_t err, const char *fallback, const char *fmt, va_list ap)
{
	struct km_cap_entry *e = &c->entries[id];
	char text[KM_CAP_REASON];
	bool keep;

	if (atomic_load_explicit(&e->known, memory_order_relaxed) || e->settled == c->look_up)
		return;
	e->settled = c->look_up;
	e->error = (int)(err < 0 ? -err : err);
	if (e->error == EMFILE || e->error == ENFILE || e->error == EAGAIN || e->error == EINTR ||
	    e->error == EFBIG)
		support = KVMEM_SUPPORT_UNKNOWN; /* it says nothing of the kernel */
	e->support = support;
	e->value = value;
	e->fallback = fallback;
	errno = e->error; /* for %m */
	vsnprintf(text, sizeof(text), fmt, ap);
	e->reason = keep_text(c, text);
	keep = e->reason && !c->passing && !km_cap_passes(-e->error) &&
	       !km_cap_defs[id - 1].changes;
	if (!e->reason)
		e->reason = "there is no memory to keep the reason";
	if (keep || c->snapshot)
		atomic_store_explicit(&e->known, true, memory_order_release);
}

void km_cap_native(struct kvmem_caps *c, uint32_t id, int64_t value, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	settle(c, id, KVMEM_SUPPORT_NATIVE, value, 0, "", fmt, ap);
	va_end(ap);
}

void km_cap_none(struct kvmem_caps *c, uint32_t id, int64_t err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	settle(c, id, KVMEM_SUPPORT_NONE, 0, err, "", fmt, ap);
	va_end(ap);
}

void km_cap_unknown(struct kvmem_caps *c, uint32_t id, int64_t err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	settle(c, id, KVMEM_SUPPORT_UNKNOWN, 0, err, "", fmt, ap);
	va_end(ap);
}

void km_cap_fallback(struct kvmem_caps *c, uint32_t id, int64_t err, const char *fallback,
		     const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	settle(c, id, KVMEM_SUPPORT_FALLBACK, 0, err, fallback, fmt, ap);
	va_end(ap);
}

const struct km_cap_entry *km_cap_need(struct kvmem_caps *c, uint32_t id)
{
	struct km_cap_entry *e = &c->entries[id];

	if (!atomic_load_explicit(&e->known, memory_order_relaxed) && e->settled != c->look_up)
		km_cap_defs[id - 1].probe(c);
	return e;
}

bool km_cap_is_native(struct kvmem_caps *c, uint32_t id)
{
	return km_cap_need(c, id)->support == KVMEM_SUPPORT_NATIVE;
}

/* ---- objects to probe on ---- */

int64_t km_caps_kvm(struct kvmem_caps *c)
{
	if (c->kvm_fd >= 0)
		return c->kvm_fd;
	if (c->scratch_kvm < 0)
		c->scratch_kvm = (int)km_sys_open("/dev/kvm", O_RDWR);
	return c->scratch_kvm;
}

int64_t km_caps_scratch_vm(struct kvmem_caps *c)
{
	if (c->scratch_vm < 0) {
		int64_t kvm = km_caps_kvm(c);

		if (kvm < 0)
			return kvm;
		c->scratch_vm = (int)km_sys_ioctl_val((int)kvm, KVM_CREATE_VM, c->vm_type);
	}
	return c->scratch_vm;
}

int64_t km_caps_new_vm(const struct kvmem_caps *c)
{
	bool own = c->kvm_fd < 0;
	int64_t kvm = own ? km_sys_open("/dev/kvm", O_RDWR) : c->kvm_fd, fd;

	if (kvm < 0)
		return kvm;
	fd = km_sys_ioctl_val((int)kvm, KVM_CREATE_VM, c->vm_type);
	if (own)
		km_sys_close((int)kvm);
	return fd;
}

int64_t km_caps_vm(struct kvmem_caps *c)
{
	return c->vm_fd >= 0 ? c->vm_fd : km_caps_scratch_vm(c);
}

static void drop_scratch(struct kvmem_caps *c)
{
	km_sys_close(c->scratch_vm);
	km_sys_close(c->scratch_kvm);
	c->scratch_vm = -1;
	c->scratch_kvm = -1;
}

/* ---- look-ups ---- */

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
