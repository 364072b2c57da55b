/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_VM_H
#define KVMEM_VM_H

/*
 * Whose memory it is: a KVM VM, made here or adopted from a VMM that already has one, and the table
 * of its memory slots.
 */

#include <kvmem/base.h>
#include <kvmem/caps.h>

KVMEM_BEGIN_DECLS

struct kvmem_vm;
struct kvmem_region;

#define KVMEM_SLOT_ANY UINT32_MAX /* let the library choose the slot number */

struct kvmem_vm_opts {
	uint32_t size;
	uint32_t flags;	     /* KVMEM_VM_* */
	uint64_t type;	     /* machine type for KVM_CREATE_VM; 0 is the default VM */
	int32_t kvm_fd;	     /* with KVMEM_VM_KVM_FD: use this instead of opening /dev/kvm */
	uint32_t first_slot; /* the library chooses slot numbers from here on (default 0) */
	/* What the VMM has turned on for the whole VM, which KVM does not tell. */
	uint64_t manual_protect; /* with KVMEM_VM_MANUAL_PROTECT: the value it has given
				  * KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; 0: none */
	uint32_t ring_entries;	 /* of the dirty rings that it has turned on; 0: it has not */
	uint32_t reserved;	 /* 0 */
};

#define KVMEM_VM_KVM_FD		(1u << 0)
#define KVMEM_VM_MANUAL_PROTECT (1u << 1)
#define KVMEM_VM_OPTS_INIT	KVMEM_INIT_(struct kvmem_vm_opts)

/**
 * kvmem_vm_create() - open /dev/kvm and create a VM.
 *
 * The library owns the VM's file descriptor; borrow it with kvmem_vm_fd(). A kvm_fd given stays the
 * caller's and may be closed afterwards. Errors: -EINVAL, -E2BIG, -ENOMEM, -EBADF (kvm_fd is not open,
 * or not /dev/kvm), -ENOENT or -ENODEV (no /dev/kvm, or no KVM behind it), -EACCES, -EMFILE. May be
 * called from any thread.
 */
KVMEM_API int kvmem_vm_create(const struct kvmem_vm_opts *opts, struct kvmem_vm **ret_vm);

/**
 * kvmem_vm_adopt() - use a VM that the caller has already.
 *
 * vm_fd stays the caller's; the library keeps a duplicate (close-on-exec), so the VM lives until
 * both are closed. Slots set by the VMM itself are not known here: keep the library off them with
 * opts->first_slot or by giving slot numbers to kvmem_region_attach(). opts->type says what type the
 * VM was created with. Errors: -EINVAL, -E2BIG, -ENOMEM, -EBADF (not open, or not a KVM VM; kvm_fd, as
 * above), -EMFILE.
 * May be called from any thread.
 */
KVMEM_API int kvmem_vm_adopt(int vm_fd, const struct kvmem_vm_opts *opts, struct kvmem_vm **ret_vm);

/**
 * kvmem_vm_free() - let go of the VM; closes the library's file descriptor of it.
 *
 * Errors: -EBUSY while a region or a dirty tracker of it exists. NULL is allowed.
 * One thread at a time per object.
 */
KVMEM_API int kvmem_vm_free(struct kvmem_vm *vm);

/** kvmem_vm_fd() - the VM's file descriptor, borrowed: valid until kvmem_vm_free(). */
KVMEM_API int kvmem_vm_fd(const struct kvmem_vm *vm);

/** kvmem_vm_kvm_fd() - a file descriptor of /dev/kvm, borrowed: valid until kvmem_vm_free(). -ENODEV for a
 * VM that was adopted without KVMEM_VM_KVM_FD. */
KVMEM_API int kvmem_vm_kvm_fd(const struct kvmem_vm *vm);

struct kvmem_translation {
	uint32_t size;
	uint32_t slot; /* number of the slot (address space << 16 | id) that holds gpa */
	struct kvmem_region *region; /* whose memory the slot shows */
	void *arg;		     /* kvmem_region_opts.arg of that region */
	uint64_t offset;	     /* of gpa in the region, in bytes */
	uint64_t bytes; /* from gpa on, contiguous in the region; at most what was asked for */
	void *host;	/* where this process sees the byte at gpa */
	uint32_t flags; /* KVMEM_TRANSLATION_* */
	uint32_t reserved;
};

#define KVMEM_TRANSLATION_READONLY (1u << 0) /* the slot is read-only for the guest */
#define KVMEM_TRANSLATION_INIT	   KVMEM_INIT_(struct kvmem_translation)

/**
 * kvmem_vm_translate() - which region and host address are behind a guest-physical address.
 *
 * For device threads: takes no lock, waits for nobody. space is the address space of the slot: 0, or 1 for
 * that of x86's system management mode. bytes is how much is wanted (UINT64_MAX: all there is): less is
 * returned where the run ends, and the caller asks again for the rest. Slots side by side that show one region
 * are one run. Exact while slots come and go: it finds a slot from the return of kvmem_region_attach() on, and
 * no more after kvmem_region_detach() has returned. Knows the slots that the library has set or adopted.
 * Errors: -ENOENT (no slot holds gpa), -EINVAL. May be called from any thread.
 */
KVMEM_API int kvmem_vm_translate(struct kvmem_vm *vm, uint32_t space, uint64_t gpa, uint64_t bytes,
				 struct kvmem_translation *ret_translation);

/**
 * kvmem_vm_caps() - the capability table of this VM, borrowed.
 *
 * Facilities are probed when first asked for, and the result is kept, unless it may pass: a probe that
 * failed for want of files or memory, and how many huge pages are free, are asked for each time. May be
 * called from any thread.
 */
KVMEM_API const struct kvmem_caps *kvmem_vm_caps(struct kvmem_vm *vm);

KVMEM_END_DECLS

#endif
