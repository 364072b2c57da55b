/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_VM_H
#define KM_VM_H

/*
 * vm: a VM, made here or adopted, and the one record of each slot that the library has set on it.
 * Knows caps and base, and of a region nothing but its address. The dirty tracker, to its right,
 * follows the slots through km_slot_hooks and hangs its own part on the record.
 *
 * Invariant: a slot that the library has set is in the table exactly as long as KVM has it, one of the VMM's
 * from its adoption until it is forgotten; the table changes under vm->lock, held for writing.
 */

#include <pthread.h>
#include <stdatomic.h>

#include <kvmem/vm.h>

#include "base/base.h"
#include "caps/caps.h"

struct kvmem_region;
struct km_view;

#define KM_SLOT_SPACES 2u /* address spaces of a VM: KVM has no more */

struct km_slot {
	/* What KVM is told. */
	uint32_t id; /* address space << 16 | number */
	bool readonly;
	uint64_t gpa;
	uint64_t bytes;
	uint64_t hva;
	int gmem_fd; /* a direct slot's guest_memfd; -1: an HVA slot */
	uint64_t gmem_offset;
	bool logged;   /* KVM_MEM_LOG_DIRTY_PAGES is set, for the tracker */
	bool adopted;  /* the VMM has set it, and deletes it */
	bool keep_log; /* adopted: the VMM has the flag set, and keeps it */
	/* Whose it is: vm does not look into the owner. */
	struct kvmem_region *owner;
	void *arg;	 /* the caller's word on the owner */
	uint64_t offset; /* bytes into the owner */
	bool wants_log;	 /* its writes are to be logged while a tracker is started */
	void *tracked; /* the tracker's part of the record, NULL while it does not follow the slot */
};

/* The dirty tracker, as those to its left see it. Called with vm->lock held for writing, but for
 * changed(). */
struct km_slot_hooks {
	/*
	 * Before the slot is set: shall it be logged? Returns 0/1, or -errno to refuse the slot:
	 * -EBUSY when its number cannot be used yet and another one can.
	 */
	int (*attaching)(void *arg, struct km_slot *slot);
	/* The slot could not be set after all. */
	void (*attach_failed)(void *arg, struct km_slot *slot);
	/* Before the slot is deleted: take what its log holds; and after. */
	void (*detaching)(void *arg, struct km_slot *slot);
	void (*detached)(void *arg, struct km_slot *slot);
	/* kvmem_region_free(), after its slots are gone: forget the region. */
	void (*region_freed)(void *arg, const struct kvmem_region *region);
	/*
	 * The library itself changed the content of pages. vm->change_lock, and no other, is held: for
	 * writing when `exclusive`, else for reading; false, then, asks to be called again with it for
	 * writing.
	 */
	bool (*changed)(void *arg, struct kvmem_region *region, uint64_t offset, uint64_t bytes,
			bool exclusive);
};

/* The slots of an address space as kvmem_vm_translate() sees them: translate.c. */
struct km_views {
	_Atomic uint64_t seq;
	struct km_view *_Atomic view[2]; /* the current one is that of seq's last bit */
};

struct kvmem_vm {
	int fd; /* ours: created, or a duplicate of the adopted one */
	uint64_t type;
	uint32_t first_slot;
	uint32_t max_slots;
	bool adopted;
	bool manual_known; /* `manual` is what KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is set to */
	uint64_t manual;
	struct kvmem_caps *caps;
	pthread_rwlock_t lock;	/* slots and hooks; prefers writers: never taken twice */
	struct km_slot **slots; /* sorted by id */
	size_t slot_count;
	size_t slot_room;
	struct km_slot **by_id[KM_SLOT_SPACES]; /* max_slots each, made on first need */
	struct km_views views[KM_SLOT_SPACES];	/* the same slots, by address */
	const struct km_slot_hooks *hooks;
	void *hooks_arg;
	/*
	 * What km_vm_changed() needs, and nothing else: vm->lock is held for writing across calls that
	 * wait until vCPUs have left their faults, and these may be waiting for who calls it. Taken inside
	 * vm->lock; never held across an ioctl or a callback.
	 */
	pthread_rwlock_t change_lock;
	_Atomic bool tracking; /* a tracker is started; changes with change_lock held for writing */
	uint32_t ring_entries; /* of the dirty rings; 0: off. Once on, on for the VM's life */
	_Atomic unsigned int users; /* regions and the tracker */
};

/*
 * Give the slot `want` to the guest, or take one away. The record is vm's from then on. With id
 * KVMEM_SLOT_ANY the lowest number from vm->first_slot on that KVM takes. -errno with the detail
 * set. vm->lock held for writing.
 */
int km_slot_add(struct kvmem_vm *vm, const struct km_slot *want, struct km_slot **ret_slot);
int km_slot_remove(struct kvmem_vm *vm, struct km_slot *slot);

/* A slot that the VMM has set, compared with what KVM has. And told again: its flags. */
int km_slot_adopt(struct kvmem_vm *vm, const struct km_slot *want);
int km_slot_readopt(struct kvmem_vm *vm, struct km_slot *slot, bool keep_log);

/* NULL when the library has neither set nor adopted one of this id. vm->lock held. */
static inline struct km_slot *km_slot_find(const struct kvmem_vm *vm, uint32_t id)
{
	uint32_t space = id >> 16, number = id & 0xffff;

	if (space >= KM_SLOT_SPACES || number >= vm->max_slots || !vm->by_id[space])
		return NULL;
	return vm->by_id[space][number];
}

/* Set or change a slot in the kernel as `slot` says, with or without dirty log; or delete it.
 * slot->logged is the caller's to keep. -errno with the detail set. vm->lock held for writing. */
int km_slot_set(struct kvmem_vm *vm, const struct km_slot *slot, bool logged);
/* The sentence of what KVM refused. */
int km_slot_refused(const struct km_slot *slot, int64_t err);
int km_slot_delete(struct kvmem_vm *vm, const struct km_slot *slot);

/* Its dirty log on, or off as far as the VMM does not want it on. A slot that the VMM has set is looked at first: where
 * it is not there any more, off is nothing to do and on is refused. */
int km_slot_log(struct kvmem_vm *vm, const struct km_slot *slot, bool on);

/* A page of nobody's to ask with: munmap() it. -errno with the detail set. */
int64_t km_slot_ask_page(void **ret_hva);
/* Has KVM this number? Nothing is made for the question where something is shown at gpa. */
bool km_slot_is_known(struct kvmem_vm *vm, uint32_t id, uint64_t gpa, void *hva);

/* Has KVM such a slot? 0, or -ENOENT or -EINVAL with the detail of what differs. Changes nothing of any slot
 * that KVM has. vm->lock held for writing. */
int km_slot_verify(struct kvmem_vm *vm, const struct km_slot *slot);

/* translate.c: room for one more slot (-ENOMEM without detail); then that, or one less, cannot fail.
 * vm->lock held for writing. */
int km_views_reserve(struct km_views *vs);
void km_views_add(struct km_views *vs, const struct km_slot *slot);
void km_views_remove(struct km_views *vs, const struct km_slot *slot);
void km_views_free(struct km_views *vs);

/* kvmem_vm_translate() without its checks and its sentence: false when no slot holds gpa, and ret->bytes is then
 * how many bytes at least none holds. */
bool km_vm_look_up(struct kvmem_vm *vm, uint32_t space, uint64_t gpa, uint64_t bytes,
		   struct kvmem_translation *ret);

/* A tracker starts or stops: from its return on, changed() is called or is not under way. */
void km_vm_set_tracking(struct kvmem_vm *vm, bool on);

/* The table's memory; no slot is in it any more. */
void km_slots_free(struct kvmem_vm *vm);

/*
 * The library has changed the content of pages (discard, populate, mark_present; not what a pager
 * brings in from its source): the next harvest reports them. Called after the change was made,
 * under any lock but vm->change_lock, which it takes itself. vm may be NULL. Costs one load while no
 * tracker is started.
 */
void km_vm_changed(struct kvmem_vm *vm, struct kvmem_region *region, uint64_t offset,
		   uint64_t bytes);

#endif
