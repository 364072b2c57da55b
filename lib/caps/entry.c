// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What probes stand on: recording what they found, asking for what others find, scratch VMs. */
#include "caps/caps_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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
	keep = e->reason && !c->passing && !km_cap_passes(-e->error) && !c->defs[id - 1].changes;
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
		c->defs[id - 1].probe(c);
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
