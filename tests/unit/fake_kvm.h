/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef FAKE_KVM_H
#define FAKE_KVM_H

/*
 * A KVM that is not there: /dev/kvm, VMs and guest_memfds behind the faked system calls, as able or
 * unable as a test wants, and a record of the slots it was told. Its guest_memfds are memfds that
 * behave as the real ones do.
 */

#include <stdbool.h>
#include <stdint.h>

#include "fake_sys.h"

enum fake_write { FAKE_WRITE_NONE, FAKE_WRITE_ONCE, FAKE_WRITE_ANY, FAKE_WRITE_ALIGNED };

struct fake_slot {
	bool v2; /* KVM_SET_USER_MEMORY_REGION2 */
	uint32_t id, flags;
	uint64_t gpa, bytes, hva;
	uint64_t gmem_offset;
	int gmem;
};

#define FAKE_SLOTS 4096

struct fake_kvm {
	/* What it can. */
	int open_error; /* of /dev/kvm */
	int create_vm_error;
	uint64_t vm_types; /* bit mask of those it makes */
	int max_slots;
	int64_t attributes;
	bool no_readonly, no_memory2, no_gmem;
	uint64_t gmem_flags; /* accepted at creation */
	uint64_t gmem_advertised;
	enum fake_write write;
	uint64_t write_flag;  /* that enables it; 0: none needed */
	uint64_t no_gup_flag; /* that makes GUP fail */
	bool gmem_uffd, gmem_numa, direct_dirty;
	int slot_error; /* of the next slot that is set */
	int delete_error;
	int set_attributes_error;

	/* What it was told. */
	unsigned int vms, gmems;
	uint64_t last_type;
	struct fake_slot slot; /* the last one */
	unsigned int slot_calls;
	unsigned int slot_count; /* alive */
	struct fake_slot slots[FAKE_SLOTS];
	unsigned int attribute_calls;
	uint64_t attr_gpa, attr_bytes, attr_value;
};

extern struct fake_kvm kvm;

/* As Linux 6.18: maps guest_memfds, no write, no userfaultfd, policies ignored. Resets `fake` too.
 */
void fake_kvm_reset(void);

#endif
