/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef FAKE_RINGS_H
#define FAKE_RINGS_H

/*
 * What of KVM the dirty tracker sees, in memory: rings, resets, slot logs, and pages that are write
 * protected or not, so that a write the kernel would not have logged is not logged here either.
 *
 * A reset does as Linux 6.18 does: it joins entries of one slot number within 64 pages to a mask,
 * protects the mask when the next entry does not belong to it, drops all of a mask whose last page
 * lies beyond the slot that has the number now, and looks for an interruption before each entry and
 * before the last mask, with which it leaves at once: what it has counted stays counted.
 */

#include <stdbool.h>
#include <stdint.h>

#include "dirty/dirty_internal.h"
#include "fake_sys.h"
#include "base/uapi/kvm.h"

#define FK_VM_FD      500
#define FK_VCPU_FD    600 /* and the next ones */
#define FK_FILE_FD    700 /* something else */
#define FK_VCPUS      3
#define FK_SLOTS      8
#define FK_SLOT_PAGES 1024
#define FK_CALLS      64
#define FK_RAM_A      0x10000000ul
#define FK_RAM_B      0x20000000ul

struct fk_slot {
	uint32_t flags;
	uint64_t pages;
	uint64_t gpa, hva;
	bool open[FK_SLOT_PAGES]; /* the guest writes it without being noticed */
	uint64_t log[FK_SLOT_PAGES / 64];
};

struct fk_vcpu {
	struct kvm_dirty_gfn *ring; /* the kernel's own mapping of memfd */
	int memfd;
	uint32_t pushed, reset;
};

struct fake_kvm {
	/* set by the test */
	int64_t acq_rel, tso, manual; /* what KVM_CHECK_EXTENSION says */
	int enable_errno, scratch_errno, get_errno, clear_errno, reset_errno, slot_errno;
	unsigned int writes_in_reset; /* of vCPU 0, to pages of slot 0 from 300 on */
	unsigned int slot_good;	      /* so many slots are set before slot_errno */
	bool rings_on;
	bool overruns;		      /* a vCPU is not stopped when its ring is full */
	uint32_t interrupt_after;     /* a reset is interrupted when it has counted so many, ... */
	unsigned int interrupt_times; /* ... so often */
	bool pml;		      /* rings need 512 entries more */
	int uffd_errno;		      /* of a userfaultfd */
	bool no_wp_async;	      /* before Linux 6.7 */
	bool user_mode_only;	      /* the userfaultfd sees no faults of KVM */
	bool wp_on;		      /* some page is write-protected by it */
	bool registered;
	bool late_waiter; /* met the protection before its off, and sleeps since; unregistering does not wake it */
	unsigned int fail_clear_at;
	/* seen by the test */
	struct kvm_enable_cap enabled;
	uint64_t manual_now;
	unsigned int enables, resets, gets, clears, slot_sets;
	unsigned int dropped;	/* masks that a reset dropped */
	unsigned int zaps, wps; /* MADV_DONTNEED, and write protections by userfaultfd, of RAM */
	struct kvm_clear_dirty_log clear[FK_CALLS];
	struct kvm_userspace_memory_region sets[FK_CALLS];
	bool signals_open; /* some signal was not blocked in a reset */
	uint32_t entries;
	struct fk_slot slots[FK_SLOTS];
	struct fk_vcpu vcpus[FK_VCPUS];
	/* objects */
	struct kvmem_vm vm;
	struct kvmem_region a, b; /* FK_SLOT_PAGES and half of it */
};

extern struct fake_kvm fk;

void fk_reset(void);
void fk_done(void);

/* The guest writes a page through vCPU `vcpu`. */
void fk_write(unsigned int vcpu, uint32_t slot, uint64_t page);

#endif
