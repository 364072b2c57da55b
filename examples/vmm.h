/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/*
 * The smallest VMM that runs the guest program of examples/guest: a boot area in a slot of its own,
 * vCPUs that start in 64-bit mode, one command at a time for each. It knows nothing of libkvmem;
 * it stands for the VMM that uses it.
 *
 * All functions that can fail return 0 or -errno; vmm_error() has the sentence.
 */
#ifndef VMM_H
#define VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/protocol.h"

struct vmm;
struct vmm_vcpu;

/*
 * Called from the thread that runs the vCPU, which is outside KVM_RUN then. 0: go on; a negative
 * errno ends the command and is what vmm_run() returns. A NULL member: such an exit is an error,
 * but for events, which then go unheard.
 */
struct vmm_ops {
	void *arg;
	int (*event)(void *arg, struct vmm_vcpu *vcpu, uint32_t event); /* GUEST_EVENT_* */
	int (*ring_full)(void *arg, struct vmm_vcpu *vcpu); /* KVM_EXIT_DIRTY_RING_FULL */
	int (*memory_fault)(void *arg, struct vmm_vcpu *vcpu, uint64_t gpa, uint64_t bytes);
};

/*
 * vm_fd: the VM to use, which stays the caller's; -1: make one. The boot area takes the slot
 * boot_slot and guest addresses below GUEST_BOOT_BYTES. ops may be NULL, and is copied.
 */
int vmm_create(int vm_fd, uint32_t boot_slot, const struct vmm_ops *ops, struct vmm **ret_vmm);
/* Waits for running commands, which are cancelled. NULL is allowed. */
void vmm_destroy(struct vmm *vmm);

int vmm_fd(const struct vmm *vmm);
const char *vmm_error(void); /* of the calling thread's last failure, or vmm_wait()'s vCPU's */

/* Let the guest see [gpa, gpa + bytes) at the same virtual address. Before the vCPUs run. */
int vmm_map(struct vmm *vmm, uint64_t gpa, uint64_t bytes);
/* A plain slot over memory of the caller, mapped as above. flags: KVM_MEM_*. bytes 0: remove. */
int vmm_set_slot(struct vmm *vmm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t bytes,
		 void *memory);

int vmm_vcpu_create(struct vmm *vmm, uint32_t index, struct vmm_vcpu **ret_vcpu);
int vmm_vcpu_fd(const struct vmm_vcpu *vcpu);
uint32_t vmm_vcpu_index(const struct vmm_vcpu *vcpu);
/* Fill in a command here, then vmm_run() or vmm_start(). */
struct guest_mailbox *vmm_mailbox(struct vmm_vcpu *vcpu);

/*
 * Run the command in the mailbox to its end on this thread. -ECANCELED after vmm_cancel(); the next
 * call goes on with the same command where it was.
 */
int vmm_run(struct vmm_vcpu *vcpu);
/* The same on a thread of its own; vmm_wait() returns what vmm_run() did. */
int vmm_start(struct vmm_vcpu *vcpu);
int vmm_wait(struct vmm_vcpu *vcpu);
/* Whether what vmm_start() began is still going on. */
bool vmm_running(struct vmm_vcpu *vcpu);

/* From another thread: out of KVM_RUN and not back in before as many vmm_resume(). */
void vmm_pause(struct vmm_vcpu *vcpu);
void vmm_resume(struct vmm_vcpu *vcpu);
void vmm_cancel(struct vmm_vcpu *vcpu);

/* A value the guest is writing at this moment. */
static inline uint64_t vmm_peek(const uint64_t *value)
{
	return __atomic_load_n(value, __ATOMIC_ACQUIRE);
}

/* Let the command end early by itself. */
static inline void vmm_ask_stop(struct vmm_vcpu *vcpu)
{
	__atomic_store_n(&vmm_mailbox(vcpu)->stop, 1u, __ATOMIC_RELEASE);
}

#endif
