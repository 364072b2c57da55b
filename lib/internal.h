/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_INTERNAL_H
#define KM_INTERNAL_H

/*
 * What the parts know of each other. A part reads the objects to its left in
 *
 *	caps -> vm -> region -> numa -> source -> populate, pager -> dirty
 *
 * and reaches to its right only through the hooks declared here.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <kvmem/kvmem.h>

#include "error.h"
#include "presence.h"
#include "sys.h"

#define KM_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static inline uint64_t km_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- caps ---- */

/* A table whose entries are probed when first asked for. kvm_fd (-1: /dev/kvm) is duplicated, vm_fd
 * (-1: none) borrowed; scratch VMs are of vm_type. */
int km_caps_create(int kvm_fd, int vm_fd, uint64_t vm_type, struct kvmem_caps **ret_caps);

/* Shorthands for planning: probe if need be; never fail, an unknown counts as not there. */
bool km_caps_has(const struct kvmem_caps *caps, enum kvmem_cap id);	/* NATIVE */
int64_t km_caps_value(const struct kvmem_caps *caps, enum kvmem_cap id);
const char *km_caps_reason(const struct kvmem_caps *caps, enum kvmem_cap id);

/* A VM more, for the caller to try something on and to close; -errno without detail. */
int64_t km_caps_new_vm(const struct kvmem_caps *caps);

/* A userfaultfd that sees kernel faults (vCPUs), by the device, else by the system call; its API
 * handshake done with `features`. Returns the fd or -errno with the detail set. */
int km_uffd_open(uint64_t features);

/* ---- vm ---- */

struct km_slot {
	uint32_t id;			/* address space << 16 | number */
	uint32_t flags;			/* KVMEM_ATTACH_* */
	struct kvmem_region *region;
	uint64_t offset;		/* bytes into the region */
	uint64_t bytes;
	uint64_t gpa;
	bool logged;			/* KVM_MEM_LOG_DIRTY_PAGES is set */
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
	int fd;				/* ours: created, or a duplicate of the adopted one */
	uint64_t type;
	uint32_t first_slot;
	uint32_t max_slots;
	struct kvmem_caps *caps;
	pthread_rwlock_t lock;		/* slots and hooks */
	struct km_slot **slots;		/* sorted by id */
	size_t slot_count;
	size_t slot_room;
	const struct km_slot_hooks *hooks;
	void *hooks_arg;
	uint32_t ring_entries;		/* of the dirty rings; 0: off. Once on, on for the VM's life */
	_Atomic unsigned int users;	/* regions and the tracker */
};

/* Slots per address space; <= 0 when the file descriptor is not a VM. */
int64_t km_vm_slots(int vm_fd);

/* Set or change a slot in the kernel as `slot` and its region say, with or without dirty log; or delete
 * it. slot->logged is the caller's to keep. -errno with the detail set. vm->lock held for writing. */
int km_slot_set(struct kvmem_vm *vm, const struct km_slot *slot, bool logged);
int km_slot_delete(struct kvmem_vm *vm, const struct km_slot *slot);
struct km_slot *km_slot_find(struct kvmem_vm *vm, uint32_t id);

/* ---- region ---- */

struct km_policy {
	struct km_policy *next;		/* sorted by offset, no overlap */
	uint64_t offset;
	uint64_t bytes;
	int mode;			/* enum km_mpol */
	bool emulated;
	unsigned long maxnode;
	unsigned long nodes[16];	/* 1024 nodes, the kernel's own limit */
};

/*
 * The pager, as region and populate see it, while it serves a region. Offsets and bytes are whole
 * pages of the region. What is done when the first two fail is *ret_done bytes of it: these the guest sees,
 * and may have written to.
 */
struct km_fault_ops {
	/* Content was stored through km_region_store() memory or the fd: map it, wake its waiters. */
	int (*complete)(struct kvmem_region *r, uint64_t offset, uint64_t bytes, uint64_t *ret_done);
	/* Place content from a buffer (NULL: zeros): the way for memory without a file descriptor. */
	int (*place)(struct kvmem_region *r, uint64_t offset, const void *buf, uint64_t bytes,
		     uint64_t *ret_done);
	/* Claims were given up: let the waiters fault again. */
	void (*wake)(struct kvmem_region *r, uint64_t offset, uint64_t bytes);
	/* Take pages out of anonymous memory: the kernel holds who does so until the pager has noticed. */
	int (*remove)(struct kvmem_region *r, uint64_t offset, uint64_t bytes);
};

struct kvmem_region {
	struct kvmem_vm *vm;		/* may be NULL */
	struct kvmem_plan plan;
	uint64_t bytes;
	unsigned int page_shift;
	int fd;				/* ours; -1 for anonymous memory */
	int private_fd;			/* guest_memfd of private pages beside fd's shared ones; else -1 */
	uint64_t fd_offset;
	uint8_t *base;
	struct km_presence presence;
	pthread_mutex_t lock;		/* policies, alias, pager, fillers */
	struct km_policy *policies;
	uint8_t *alias;			/* second mapping, never registered with a userfaultfd */
	const struct km_fault_ops *fault_ops;	/* set while a pager serves the region */
	void *pager;
	_Atomic unsigned int fillers;	/* populate calls under way: a pager cannot be added meanwhile */
};

static inline uint64_t km_region_page(const struct kvmem_region *r)
{
	return 1ull << r->page_shift;
}

/*
 * Where to store content so that no userfaultfd sees it: the mapping itself as long as no pager
 * serves the region, then a second mapping of its file. NULL for anonymous memory under a pager
 * (place() is the way). Made on first need.
 */
int km_region_store(struct kvmem_region *r, uint8_t **ret_base);

/* What a region of these (checked) options will be, and the check of the options. */
int km_plan_make(const struct kvmem_caps *caps, bool has_vm, const struct kvmem_region_opts *o,
		 struct kvmem_plan *ret_plan);
int km_plan_opts(const struct kvmem_region_opts *opts, struct kvmem_region_opts *o);
int km_region_detach_all(struct kvmem_region *r);

/* A file descriptor given: sets backing and page_size to what it is; and, mapped, which pages it has. */
int km_adopt_kind(struct kvmem_region_opts *o);
int km_adopt_presence(struct kvmem_region *r);

/* ---- numa ---- */

struct km_numa_state {
	bool changed;
	int mode;			/* the thread's own policy */
	unsigned long nodes[16];
	int now_mode;			/* what it has instead, when changed */
	unsigned long now[16];
};

/*
 * The calling thread is about to make pages of r from `offset` on: apply the emulated policy there, if
 * any, to the thread. ret_end (bytes into the region) is how far that policy reaches. _leave()
 * restores what _save() kept.
 */
void km_numa_save(struct km_numa_state *s);
int km_numa_enter(struct kvmem_region *r, uint64_t offset, uint64_t *ret_end,
		  struct km_numa_state *s);
void km_numa_leave(struct km_numa_state *s);
void km_numa_free_policies(struct kvmem_region *r);

/* A new second mapping: of hugetlb, each mapping has its own policies. With r->lock held; -errno. */
int64_t km_numa_bind_alias(struct kvmem_region *r);

/* The one node that the policy at offset names; -1 when there is no policy, or several nodes. */
int km_numa_node_at(struct kvmem_region *r, uint64_t offset);

/* With r->lock held. */
bool km_numa_misplaced(const struct kvmem_region *r, uint64_t offset, unsigned long node);

/* Pages of a range that exist in the kernel; -errno with the detail set. */
int64_t km_region_count_pages(struct kvmem_region *r, uint64_t offset, uint64_t bytes);

/* ---- source ---- */

enum km_source_kind { KM_SOURCE_FILE, KM_SOURCE_MEMORY, KM_SOURCE_CALLBACK };

struct kvmem_source {
	enum km_source_kind kind;
	uint64_t bytes;
	_Atomic unsigned int users;
	int fd;				/* FILE: ours; offset within it */
	uint64_t offset;
	uint32_t flags;
	const uint8_t *base;		/* MEMORY */
	struct kvmem_source_ops ops;	/* CALLBACK */
	void *arg;
};

void km_source_get(struct kvmem_source *s);
void km_source_put(struct kvmem_source *s);

/* From `offset` to the end of its extent, not merged with a next one of the same kind. In range. */
int km_source_extent(struct kvmem_source *s, uint64_t offset, struct kvmem_extent *e);

/* Read within data extents, all of it or -errno with the detail set. In range. */
int km_source_read(struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes);

/* All of [p, p + bytes) is zero; at memory speed. */
bool km_is_zero(const void *p, size_t bytes);

#endif
