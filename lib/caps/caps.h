/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_CAPS_H
#define KM_CAPS_H

/*
 * caps: what this kernel and machine can really do. A table of {facility, probe}; a probe does the
 * operation on an object of its own and looks at what came of it. Knows base.
 *
 * Invariant: a probe changes nothing that it did not make itself, and no kernel version is looked
 * at.
 */

#include <kvmem/caps.h>

#include "base/base.h"

/* A table whose entries are probed when first asked for. kvm_fd (-1: /dev/kvm) is duplicated, vm_fd
 * (-1: none) borrowed; scratch VMs are of vm_type. */
int km_caps_create(int kvm_fd, int vm_fd, uint64_t vm_type, struct kvmem_caps **ret_caps);

/* Its duplicate of kvm_fd, borrowed; -1: none. */
int km_caps_kvm_fd(const struct kvmem_caps *caps);

/* Shorthands for planning: probe if need be; never fail, an unknown counts as not there. */
bool km_caps_has(const struct kvmem_caps *caps, enum kvmem_cap id); /* NATIVE */
int64_t km_caps_value(const struct kvmem_caps *caps, enum kvmem_cap id);
const char *km_caps_reason(const struct kvmem_caps *caps, enum kvmem_cap id);
bool km_caps_unknown(const struct kvmem_caps *caps, enum kvmem_cap id);	    /* the probe failed */
const char *km_caps_lack(const struct kvmem_caps *caps, enum kvmem_cap id); /* why not, or NULL */

/* A VM more, for the caller to try something on and to close; -errno without detail. */
int64_t km_caps_new_vm(const struct kvmem_caps *caps);

/* A userfaultfd that sees kernel faults (vCPUs), by the device, else by the system call; its API
 * handshake done with `features`. Returns the fd or -errno with the detail set. */
int km_uffd_open(uint64_t features);

/* Can a hugetlb file of so many bytes be mapped now? 0, or -errno without detail: -ENOMEM when there
 * are not enough free pages. */
int64_t km_caps_try_huge(uint64_t bytes, uint64_t page_size);

/* Transparent huge pages of anonymous memory, or of shared memory (tmpfs, memfd), as the machine has
 * them set now: an administrator may change it at any time. */
enum km_thp {
	KM_THP_UNKNOWN, /* it cannot be read */
	KM_THP_NEVER,
	KM_THP_ADVISED, /* where MADV_HUGEPAGE was said */
	KM_THP_ALWAYS,
};
#define KM_THP_BYTES (2ull << 20)
enum km_thp km_caps_thp(bool shared);

/* Slots per address space of a VM, or -EBADF with the detail set: what is wrong with the file
 * descriptor, named `what` there. */
int64_t km_vm_slots(int vm_fd, const char *what);

/* A guest_memfd that is closed on exec (KVM has no flag for it); -errno without detail. */
int64_t km_gmem_create(int vm_fd, uint64_t bytes, uint64_t flags);

/* The nodes that have memory and that this process may use, in a mask of KM_NODE_WORDS; 0, or
 * -errno without detail. */
#define KM_NODE_WORDS 16 /* 1024 nodes, the kernel's own limit */
int64_t km_caps_nodes(unsigned long *mask);

#endif
