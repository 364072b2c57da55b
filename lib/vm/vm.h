/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_VM_H
#define KM_VM_H

/*
 * vm: a VM, made here or adopted, and the one record of each slot that the library has set on it.
 * Knows caps and base. The dirty tracker, to its right, follows the slots through km_slot_hooks.
 *
 * Invariant: a slot is in the table exactly as long as KVM has it; the table changes under
 * vm->lock, held for writing.
 */

#include <pthread.h>
#include <stdatomic.h>

#include <kvmem/vm.h>

#include "base/base.h"
#include "caps/caps.h"

struct kvmem_region;

struct km_slot {
	uint32_t id;	/* address space << 16 | number */
	uint32_t flags; /* KVMEM_ATTACH_* */
	struct kvmem_region *region;
	uint64_t offset; /* bytes into the region */
	uint64_t bytes;
	uint64_t gpa;
	bool logged; /* KVM_MEM_LOG_DIRTY_PAGES is set */
};

/* The dirty tracker, as region sees it. Called with vm->lock held for writing. */
struct km_slot_hooks {
	/* Before the slot is set: shall it be logged? Returns 0/1, or -errno to refuse the slot. */
	int (*attaching)(void *arg, const struct km_slot *slot);
	/* The slot could not be set after all. */
	void (*attach_failed)(void *arg, const struct km_slot *slot);
	/* Before the slot is deleted: take what its log holds; and after. */
	void (*detaching)(void *arg, const struct km_slot *slot);
	void (*detached)(void *arg, const struct km_slot *slot);
	/* kvmem_region_free(), after its slots are gone: forget the region. */
	void (*region_freed)(void *arg, const struct kvmem_region *region);
};

struct kvmem_vm {
	int fd; /* ours: created, or a duplicate of the adopted one */
	uint64_t type;
	uint32_t first_slot;
	uint32_t max_slots;
	struct kvmem_caps *caps;
	pthread_rwlock_t lock;	/* slots and hooks */
	struct km_slot **slots; /* sorted by id */
	size_t slot_count;
	size_t slot_room;
	const struct km_slot_hooks *hooks;
	void *hooks_arg;
	uint32_t ring_entries;	    /* of the dirty rings; 0: off. Once on, on for the VM's life */
	_Atomic unsigned int users; /* regions and the tracker */
};

/* Set or change a slot in the kernel as `slot` and its region say, with or without dirty log; or
 * delete it. slot->logged is the caller's to keep. -errno with the detail set. vm->lock held for
 * writing. */
int km_slot_set(struct kvmem_vm *vm, const struct km_slot *slot, bool logged);
int km_slot_delete(struct kvmem_vm *vm, const struct km_slot *slot);
struct km_slot *km_slot_find(struct kvmem_vm *vm, uint32_t id);

#endif
