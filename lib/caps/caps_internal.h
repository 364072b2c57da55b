/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_CAPS_INTERNAL_H
#define KM_CAPS_INTERNAL_H

/*
 * How the capability table works inside. An entry is probed when first asked for, under the table's
 * lock; a probe may settle several entries that one experiment answers, and may ask for others.
 *
 * What says nothing lasting is not kept: a probe that failed for want of files, memory or the like,
 * and how many huge pages are free. Such an entry is probed again by each look-up. The text of a
 * reason stays as long as the table, because callers have pointers to it.
 */

#include <pthread.h>
#include <stdatomic.h>

#include "caps/caps.h"

#define KM_CAP_REASON 256

struct km_cap_entry {
	_Atomic bool known;   /* for good: read without the lock from then on */
	unsigned int settled; /* the look-up that settled it; 0: none */
	uint32_t support;
	int error;
	int64_t value;
	const char *fallback;
	const char *reason;
};

struct km_cap_text {
	struct km_cap_text *next;
	char text[];
};

struct km_cap_def;

struct kvmem_caps {
	pthread_mutex_t lock;
	const struct km_cap_def *defs; /* km_cap_defs, which stands above the probes */
	int kvm_fd;		       /* ours, -1: /dev/kvm is opened when needed */
	int vm_fd;		       /* borrowed, -1: the scratch VM answers */
	uint64_t vm_type;
	bool snapshot;	 /* nothing is probed again: vm_fd was lent for one call */
	int scratch_kvm; /* open during one look-up */
	int scratch_vm;
	unsigned int look_up; /* their number, from 1 */
	int64_t passing;      /* a failure of this look-up that says nothing lasting; else 0 */
	struct km_cap_text *texts;
	struct km_cap_entry entries[KVMEM_CAP_COUNT_];
};

struct km_cap_def {
	uint32_t id;
	const char *name;
	void (*probe)(struct kvmem_caps *c); /* settles at least `id` */
	bool changes;			     /* a quantity: asked for each time */
};

extern const struct km_cap_def km_cap_defs[KVMEM_CAP_COUNT_ - 1];

/* For probes, which hold the lock. */

/* Hands r on. When that is a failure which passes, nothing that this look-up settles is kept: for
 * steps whose error no entry gets. */
int64_t km_cap_step(struct kvmem_caps *c, int64_t r);
bool km_cap_passes(int64_t r);

const struct km_cap_entry *km_cap_need(struct kvmem_caps *c, uint32_t id);
bool km_cap_is_native(struct kvmem_caps *c, uint32_t id);

void km_cap_native(struct kvmem_caps *c, uint32_t id, int64_t value, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void km_cap_none(struct kvmem_caps *c, uint32_t id, int64_t err, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void km_cap_unknown(struct kvmem_caps *c, uint32_t id, int64_t err, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void km_cap_fallback(struct kvmem_caps *c, uint32_t id, int64_t err, const char *fallback,
		     const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* fds that live until the look-up ends; -errno. */
int64_t km_caps_kvm(struct kvmem_caps *c);
int64_t km_caps_scratch_vm(struct kvmem_caps *c);
int64_t km_caps_vm(struct kvmem_caps *c); /* the VM given, else the scratch VM */

uint64_t km_gmem_flags(struct kvmem_caps *c); /* that give the most capable guest_memfd */

/* A userfaultfd that sees kernel faults, without touching the error detail. `ret_features` (may be
 * NULL) receives what the kernel offers. */
int64_t km_uffd_try(uint64_t features, uint64_t *ret_features);

void km_probe_kvm(struct kvmem_caps *c);
void km_probe_gmem(struct kvmem_caps *c);
void km_probe_slots(struct kvmem_caps *c);
void km_probe_gmem_slots(struct kvmem_caps *c);
void km_probe_dirty(struct kvmem_caps *c);
void km_probe_attributes(struct kvmem_caps *c);
void km_probe_pre_fault(struct kvmem_caps *c);
void km_probe_uffd(struct kvmem_caps *c);
void km_probe_uffd_modes(struct kvmem_caps *c);
void km_probe_uffd_hugetlb(struct kvmem_caps *c);
void km_probe_uffd_async(struct kvmem_caps *c);
void km_probe_gmem_uffd(struct kvmem_caps *c);
void km_probe_gmem_numa(struct kvmem_caps *c);
void km_probe_numa(struct kvmem_caps *c);
void km_probe_hugetlb(struct kvmem_caps *c);
void km_probe_madvise(struct kvmem_caps *c);
void km_probe_uring(struct kvmem_caps *c);
void km_probe_odirect(struct kvmem_caps *c);

#endif
