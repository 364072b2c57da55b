// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A VM and the table of the memory slots that the library set on it. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "vm/vm.h"
#include "base/uapi/kvm.h"

static int open_kvm(const struct kvmem_vm_opts *o)
{
	int64_t fd;

	if (o->flags & KVMEM_VM_KVM_FD)
		return o->kvm_fd;
	fd = km_sys_open("/dev/kvm", O_RDWR);
	if (fd == -EACCES || fd == -EPERM)
		return km_fail(EACCES,
			       "opening /dev/kvm: %m; give this user read and write access to it");
	if (fd == -ENXIO) /* a node without a driver, as ENODEV is */
		fd = -ENODEV;
	if (fd < 0)
		return km_fail((int)-fd, "opening /dev/kvm: %m%s",
			       fd == -ENOENT || fd == -ENODEV
				       ? "; load kvm_intel or kvm_amd, or give kvm_fd"
				       : "");
	return (int)fd;
}

static int opts_check(struct kvmem_vm_opts *o, const struct kvmem_vm_opts *opts)
{
	int r = km_opts_copy(o, sizeof(*o), sizeof(*o), opts, "kvmem_vm_opts");

	if (!r)
		r = km_flags_check(o->flags, KVMEM_VM_KVM_FD | KVMEM_VM_MANUAL_PROTECT,
				   "kvmem_vm_opts.flags");
	if (!r && o->ring_entries & (o->ring_entries - 1))
		r = km_fail(EINVAL, "kvmem_vm_opts.ring_entries %" PRIu32 " is not a power of two",
			    o->ring_entries);
	if (!r && o->reserved)
		r = km_fail(EINVAL, "kvmem_vm_opts.reserved must be 0");
	if (!r && o->manual_protect && !(o->flags & KVMEM_VM_MANUAL_PROTECT))
		r = km_fail(
			EINVAL,
			"kvmem_vm_opts.manual_protect is given without KVMEM_VM_MANUAL_PROTECT");
	if (!r && o->flags & KVMEM_VM_KVM_FD &&
	    km_sys_ioctl_val(o->kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		r = km_fail(EBADF, "kvmem_vm_opts.kvm_fd %d is not open, or not /dev/kvm",
			    o->kvm_fd);
	return r;
}

/*
 * Who changes slots or vCPUs comes first: vCPUs that empty their rings hold the lock for reading,
 * one or the other at any moment when there are many, and would keep a writer out for as long as
 * they like.
 */
static void init_lock(pthread_rwlock_t *lock)
{
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
#ifdef __GLIBC__ /* the only one that has the choice */
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
	pthread_rwlock_init(lock, &attr);
	pthread_rwlockattr_destroy(&attr);
}

/* Takes over vm_fd when it succeeds. kvm_fd may be -1. */
static int vm_new(int kvm_fd, int vm_fd, bool adopted, int64_t slots, const struct kvmem_vm_opts *o,
		  struct kvmem_vm **ret_vm)
{
	struct kvmem_vm *vm;
	int r;

	if (o->first_slot >= slots)
		return km_fail(EINVAL,
			       "kvmem_vm_opts.first_slot is %" PRIu32
			       ", this VM has slots 0 to %" PRId64,
			       o->first_slot, slots - 1);
	vm = km_sys_alloc(sizeof(*vm));
	if (!vm)
		return km_fail(ENOMEM, "VM: no memory");
	vm->fd = vm_fd;
	vm->type = o->type;
	vm->first_slot = o->first_slot;
	vm->max_slots = (uint32_t)slots;
	vm->adopted = adopted;
	vm->manual_known = !adopted || o->flags & KVMEM_VM_MANUAL_PROTECT;
	vm->manual = o->manual_protect;
	vm->ring_entries = o->ring_entries;
	r = km_caps_create(kvm_fd, vm_fd, o->type, &vm->caps);
	if (r) {
		km_sys_free(vm);
		return r;
	}
	init_lock(&vm->lock);
	init_lock(&vm->change_lock);
	*ret_vm = vm;
	return 0;
}

int kvmem_vm_create(const struct kvmem_vm_opts *opts, struct kvmem_vm **ret_vm)
{
	struct kvmem_vm_opts o;
	int64_t vm_fd;
	int r, kvm;

	if (!ret_vm)
		return km_fail(EINVAL, "kvmem_vm_create: ret_vm is NULL");
	r = opts_check(&o, opts);
	if (r)
		return r;
	kvm = open_kvm(&o);
	if (kvm < 0)
		return kvm;
	vm_fd = km_sys_ioctl_val(kvm, KVM_CREATE_VM, o.type);
	if (vm_fd < 0) {
		r = km_fail((int)-vm_fd, "KVM_CREATE_VM with type %" PRIu64 ": %m", o.type);
	} else {
		int64_t slots = km_vm_slots((int)vm_fd, "kvmem_vm_create: the new VM");

		r = slots < 0 ? (int)slots : vm_new(kvm, (int)vm_fd, false, slots, &o, ret_vm);
		if (r)
			km_sys_close((int)vm_fd);
	}
	if (!(o.flags & KVMEM_VM_KVM_FD))
		km_sys_close(kvm);
	return r;
}

int kvmem_vm_adopt(int vm_fd, const struct kvmem_vm_opts *opts, struct kvmem_vm **ret_vm)
{
	struct kvmem_vm_opts o;
	int64_t fd, slots;
	int r;

	if (!ret_vm)
		return km_fail(EINVAL, "kvmem_vm_adopt: ret_vm is NULL");
	r = opts_check(&o, opts);
	if (r)
		return r;
	slots = km_vm_slots(vm_fd, "kvmem_vm_adopt: file descriptor");
	if (slots < 0)
		return (int)slots;
	fd = km_sys_dup(vm_fd);
	if (fd < 0)
		return km_fail((int)-fd, "kvmem_vm_adopt: duplicate of %d: %m", vm_fd);
	r = vm_new(o.flags & KVMEM_VM_KVM_FD ? o.kvm_fd : -1, (int)fd, true, slots, &o, ret_vm);
	if (r)
		km_sys_close((int)fd);
	return r;
}

int kvmem_vm_free(struct kvmem_vm *vm)
{
	unsigned int users;

	if (!vm)
		return 0;
	users = atomic_load(&vm->users);
	if (users)
		return km_fail(
			EBUSY,
			"kvmem_vm_free: %u regions and trackers of the VM exist: free them first",
			users);
	kvmem_caps_free(vm->caps);
	pthread_rwlock_destroy(&vm->lock);
	pthread_rwlock_destroy(&vm->change_lock);
	km_sys_close(vm->fd);
	km_slots_free(vm);
	km_sys_free(vm);
	return 0;
}

int kvmem_vm_fd(const struct kvmem_vm *vm)
{
	return vm ? vm->fd : km_fail(EINVAL, "kvmem_vm_fd: vm is NULL");
}

int kvmem_vm_kvm_fd(const struct kvmem_vm *vm)
{
	if (!vm)
		return km_fail(EINVAL, "kvmem_vm_kvm_fd: vm is NULL");
	if (km_caps_kvm_fd(vm->caps) < 0)
		return km_fail(ENODEV,
			       "kvmem_vm_kvm_fd: the VM was adopted without KVMEM_VM_KVM_FD");
	return km_caps_kvm_fd(vm->caps);
}

const struct kvmem_caps *kvmem_vm_caps(struct kvmem_vm *vm)
{
	if (!vm) {
		km_fail(EINVAL, "kvmem_vm_caps: vm is NULL");
		return NULL;
	}
	return vm->caps;
}
