/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef FAKE_RINGS_H
#define FAKE_RINGS_H

/*
 * What of KVM the dirty tracker sees, in memory: rings, resets, slot logs, and pages that are write
 * protected or not, so that a write the kernel would not have logged is not logged here either.
 */

#include <stdbool.h>
#include <stdint.h>

#include "dirty/dirty_internal.h"
#include "fake_sys.h"
#include "base/uapi/kvm.h"

#define FK_VM_FD 500
#define FK_VCPU_FD 600		/* and the next ones */
#define FK_FILE_FD 700		/* something else */
#define FK_VCPUS 3
#define FK_SLOTS 8
#define FK_SLOT_PAGES 1024
#define FK_CALLS 64

struct fk_slot {
	uint32_t flags;
	uint64_t pages;
	uint64_t gpa;
	bool open[FK_SLOT_PAGES];	/* the guest writes it without being noticed */
	uint64_t log[FK_SLOT_PAGES / 64];
};

struct fk_vcpu {
	struct kvm_dirty_gfn *ring;	/* the kernel's own mapping of memfd */
	int memfd;
	uint32_t pushed, reset;
};

struct fake_kvm {
	/* set by the test */
	int64_t acq_rel, tso, manual;	/* what KVM_CHECK_EXTENSION says */
	int enable_errno, scratch_errno, get_errno, clear_errno, reset_errno, slot_errno;
	bool rings_on;
	uint32_t short_after;		/* the next reset stops after so many entries, ... */
	unsigned int short_times;	/* ... so often */
	uint32_t short_lost;		/* of these, so many are counted and stay open */
	unsigned int fail_clear_at;
	/* seen by the test */
	struct kvm_enable_cap enabled;
	unsigned int enables, resets, gets, clears, slot_sets;
	struct kvm_clear_dirty_log clear[FK_CALLS];
	struct kvm_userspace_memory_region sets[FK_CALLS];
	bool signals_open;		/* some signal was not blocked in a reset */
	uint32_t entries;
	struct fk_slot slots[FK_SLOTS];
	struct fk_vcpu vcpus[FK_VCPUS];
	/* objects */
	struct kvmem_vm vm;
	struct kvmem_region a, b;	/* FK_SLOT_PAGES and half of it */
};

extern struct fake_kvm fk;

void fk_reset(void);
void fk_done(void);

/* The guest writes a page through vCPU `vcpu`. */
void fk_write(unsigned int vcpu, uint32_t slot, uint64_t page);

#endif
