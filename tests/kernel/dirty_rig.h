/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef DIRTY_RIG_H
#define DIRTY_RIG_H

/*
 * A guest under tracking, and a copy of its memory kept up by what the tracker reports: when the guest
 * has stopped and the last batch is in, a page that differs was lost.
 */

#include "harness.h"

#include <stdatomic.h>
#include <stdint.h>

#include <kvmem/kvmem.h>

#include "vmm.h"

#define RIG_PAGE  4096u
#define RIG_GPA	  (UINT64_C(4) << 30)
#define RIG_VCPUS 4

struct rig {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	struct kvmem_dirty *dirty;
	struct vmm *vmm;
	struct vmm_vcpu *vcpus[RIG_VCPUS];
	unsigned int count;
	uint64_t bytes;
	unsigned char *base, *copy;
	unsigned char
		*seen; /* a byte a page: reported by the last rig_sync() or since rig_forget() */
	uint64_t reported, same; /* pages; of these, not changed since they were copied last */
	atomic_uint full;	 /* exits with a full ring */
};

/* What a test asks for; zeros are good defaults. */
struct rig_opts {
	uint32_t mode;
	uint32_t ring_entries;
	uint32_t flags;
	uint64_t bytes;	    /* default 16 MiB */
	unsigned int vcpus; /* default 1 */
	uint32_t backing;
	uint64_t reap_ns;
	bool not_started;
	void *mapping; /* the caller's, of `bytes`; then fd is its descriptor, or 0 */
	int fd;
	bool clone;	  /* fd is the template; the copy begins as zeros all the same */
	uint64_t reserve; /* that the region can grow to */
	bool own_slot;	  /* set by the VMM, and told to the library */
};

/* False when the test is skipped for want of KVM, of dirty rings or of guest_memfd. */
bool rig_open(struct rig *rig, const struct rig_opts *o);
void rig_close(struct rig *rig);

/* The kernel has rings. */
bool rig_has_ring(void);

/* vCPU `index` begins to write `count` pages a round, at random or in order, in its share of the RAM. */
void rig_write(struct rig *rig, unsigned int index, uint64_t rounds, uint64_t count, bool random);
void rig_wait(struct rig *rig);
bool rig_running(struct rig *rig);

/* One harvest into the copy; returns its pages. */
uint64_t rig_sync(struct rig *rig);

/* Harvest until the vCPUs are done, and once more. */
void rig_follow(struct rig *rig);

void rig_forget(struct rig *rig);

/* Pages in which the copy differs from the memory. */
uint64_t rig_lost(const struct rig *rig);
uint64_t rig_seen(const struct rig *rig);

#define ck_ok(call) \
	do { \
		int64_t ck_r_ = (call); \
		ck_assert_msg(ck_r_ >= 0, "%s: %ld: %s", #call, (long)ck_r_, \
			      kvmem_error_detail()); \
	} while (0)

/* -errno and a detail that has the word. */
#define ck_fails(call, err, word) \
	do { \
		ck_assert_int_eq((call), -(err)); \
		ck_assert_msg(strstr(kvmem_error_detail(), word), "%s", kvmem_error_detail()); \
	} while (0)

#endif
