/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#define _GNU_SOURCE 1
#include "vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef KVM_EXIT_DIRTY_RING_FULL
#define KVM_EXIT_DIRTY_RING_FULL 31
#endif
#define EXIT_MEMORY_FAULT 39 /* KVM_EXIT_MEMORY_FAULT, which is younger than some headers */

#define KICK_SIGNAL SIGUSR1
#define PTE_PRESENT UINT64_C(1)
#define PTE_WRITE   UINT64_C(2)
#define PTE_USER    UINT64_C(4)
#define PTE_LARGE   UINT64_C(0x80)
#define PTE_ADDRESS UINT64_C(0x000ffffffffff000)
#define LARGE_PAGE  UINT64_C(0x200000)
#define MAX_CPUID   256

extern const unsigned char guest_program[], guest_program_end[];

struct vmm {
	int kvm_fd, vm_fd;
	bool own_vm;
	uint32_t boot_slot;
	unsigned char *boot;
	size_t run_bytes;
	uint64_t next_table;
	struct vmm_ops ops;
	struct vmm_vcpu *vcpus[GUEST_MAX_VCPUS];
};

struct vmm_vcpu {
	struct vmm *vmm;
	uint32_t index;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool started;
	int result;
	char error[200];
	pthread_mutex_t lock; /* over what follows */
	pthread_cond_t change;
	pthread_t runner;
	bool in_run, cancelled, running;
	unsigned int paused;
};

static _Thread_local char last_error[200];

const char *vmm_error(void)
{
	return last_error;
}

static int __attribute__((format(printf, 2, 3))) fail(int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(last_error, sizeof(last_error), format, args);
	va_end(args);
	return -err;
}

static int fail_errno(const char *what)
{
	int err = errno;

	return fail(err, "%s: %s", what, strerror(err));
}

int vmm_fd(const struct vmm *vmm)
{
	return vmm->vm_fd;
}

static uint64_t *table_at(struct vmm *vmm, uint64_t gpa)
{
	return (uint64_t *)(void *)(vmm->boot + gpa);
}

static uint64_t *page_directory(struct vmm *vmm, uint64_t gpa)
{
	uint64_t *entry = table_at(vmm, GUEST_PDPT) + (gpa >> 30);

	if (!*entry) {
		if (vmm->next_table == GUEST_BOOT_BYTES)
			return NULL;
		*entry = vmm->next_table | PTE_PRESENT | PTE_WRITE | PTE_USER;
		vmm->next_table += 4096;
	}
	return table_at(vmm, *entry & PTE_ADDRESS);
}

int vmm_map(struct vmm *vmm, uint64_t gpa, uint64_t bytes)
{
	uint64_t end = gpa + bytes;

	if (end < gpa || end > UINT64_C(512) << 30)
		return fail(EINVAL, "the guest's page tables end at 512 GiB");
	for (gpa &= ~(LARGE_PAGE - 1); gpa < end; gpa += LARGE_PAGE) {
		uint64_t *directory = page_directory(vmm, gpa);

		if (!directory)
			return fail(ENOMEM, "no room for more guest page tables");
		directory[(gpa >> 21) & 511] = gpa | PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_LARGE;
	}
	return 0;
}

static int set_slot(struct vmm *vmm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t bytes,
		    void *memory)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)memory,
	};

	if (ioctl(vmm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region))
		return fail_errno("KVM_SET_USER_MEMORY_REGION");
	return 0;
}

int vmm_set_slot(struct vmm *vmm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t bytes,
		 void *memory)
{
	int ret = bytes ? vmm_map(vmm, gpa, bytes) : 0;

	return ret ? ret : set_slot(vmm, slot, flags, gpa, bytes, memory);
}

static int make_boot_area(struct vmm *vmm)
{
	void *boot = mmap(NULL, GUEST_BOOT_BYTES, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int ret;

	if (boot == MAP_FAILED)
		return fail_errno("mmap of the boot area");
	vmm->boot = boot;
	vmm->next_table = GUEST_TABLES;
	memcpy(vmm->boot + GUEST_CODE, guest_program, (size_t)(guest_program_end - guest_program));
	*table_at(vmm, GUEST_PML4) = GUEST_PDPT | PTE_PRESENT | PTE_WRITE | PTE_USER;
	ret = vmm_map(vmm, 0, GUEST_BOOT_BYTES);
	return ret ? ret : set_slot(vmm, vmm->boot_slot, 0, 0, GUEST_BOOT_BYTES, boot);
}

static int open_kvm(struct vmm *vmm, int vm_fd)
{
	int bytes;

	vmm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vmm->kvm_fd < 0)
		return fail_errno("/dev/kvm");
	bytes = ioctl(vmm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (bytes < 0)
		return fail_errno("KVM_GET_VCPU_MMAP_SIZE");
	vmm->run_bytes = (size_t)bytes;
	vmm->vm_fd = vm_fd < 0 ? ioctl(vmm->kvm_fd, KVM_CREATE_VM, 0) : vm_fd;
	vmm->own_vm = vm_fd < 0;
	return vmm->vm_fd < 0 ? fail_errno("KVM_CREATE_VM") : 0;
}

static void kicked(int signal)
{
	(void)signal;
}

int vmm_create(int vm_fd, uint32_t boot_slot, const struct vmm_ops *ops, struct vmm **ret_vmm)
{
	struct sigaction action = { .sa_handler = kicked };
	struct vmm *vmm = calloc(1, sizeof(*vmm));
	int ret;

	if (!vmm)
		return fail(ENOMEM, "no memory");
	vmm->vm_fd = -1;
	vmm->boot_slot = boot_slot;
	if (ops)
		vmm->ops = *ops;
	sigemptyset(&action.sa_mask);
	sigaction(KICK_SIGNAL, &action, NULL);
	ret = open_kvm(vmm, vm_fd);
	if (!ret)
		ret = make_boot_area(vmm);
	if (ret) {
		vmm_destroy(vmm);
		return ret;
	}
	*ret_vmm = vmm;
	return 0;
}

static void vcpu_destroy(struct vmm_vcpu *vcpu)
{
	vmm_cancel(vcpu);
	vmm_wait(vcpu);
	if (vcpu->run)
		munmap(vcpu->run, vcpu->vmm->run_bytes);
	if (vcpu->fd >= 0)
		close(vcpu->fd);
	pthread_cond_destroy(&vcpu->change);
	pthread_mutex_destroy(&vcpu->lock);
	free(vcpu);
}

void vmm_destroy(struct vmm *vmm)
{
	if (!vmm)
		return;
	for (int i = 0; i < GUEST_MAX_VCPUS; i++)
		if (vmm->vcpus[i])
			vcpu_destroy(vmm->vcpus[i]);
	if (vmm->boot) {
		set_slot(vmm, vmm->boot_slot, 0, 0, 0, NULL);
		munmap(vmm->boot, GUEST_BOOT_BYTES);
	}
	if (vmm->own_vm && vmm->vm_fd >= 0)
		close(vmm->vm_fd);
	if (vmm->kvm_fd >= 0)
		close(vmm->kvm_fd);
	free(vmm);
}

static int set_cpuid(struct vmm_vcpu *vcpu)
{
	struct kvm_cpuid2 *cpuid;
	int ret = 0;

	cpuid = calloc(1, sizeof(*cpuid) + MAX_CPUID * sizeof(cpuid->entries[0]));
	if (!cpuid)
		return fail(ENOMEM, "no memory");
	cpuid->nent = MAX_CPUID;
	if (ioctl(vcpu->vmm->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid))
		ret = fail_errno("KVM_GET_SUPPORTED_CPUID");
	else if (ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid))
		ret = fail_errno("KVM_SET_CPUID2");
	free(cpuid);
	return ret;
}

static struct kvm_segment user_segment(uint16_t selector, uint8_t type)
{
	return (struct kvm_segment){
		.limit = UINT32_MAX,
		.selector = selector,
		.type = type,
		.present = 1,
		.dpl = 3,
		.db = type == 3,
		.s = 1,
		.l = type == 11,
		.g = 1,
	};
}

/* 64-bit user mode, paging on, port I/O allowed (IOPL 3), no interrupts, no exception handlers. */
static int set_registers(struct vmm_vcpu *vcpu)
{
	struct kvm_regs regs = {
		.rip = GUEST_CODE,
		.rsp = GUEST_STACKS + (vcpu->index + 1) * GUEST_STACK_BYTES,
		.rdi = GUEST_MAILBOXES + vcpu->index * GUEST_MAILBOX_BYTES,
		.rflags = 0x3002,
	};
	struct kvm_sregs sregs;

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		return fail_errno("KVM_GET_SREGS");
	sregs.cs = user_segment(0x33, 11);
	sregs.ss = sregs.ds = sregs.es = sregs.fs = sregs.gs = user_segment(0x2b, 3);
	sregs.cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
	sregs.cr3 = GUEST_PML4;
	sregs.cr4 = 0x20;   /* PAE */
	sregs.efer = 0x500; /* LMA LME */
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs))
		return fail_errno("KVM_SET_SREGS");
	if (ioctl(vcpu->fd, KVM_SET_REGS, &regs))
		return fail_errno("KVM_SET_REGS");
	return 0;
}

static int set_up_vcpu(struct vmm_vcpu *vcpu)
{
	void *run;
	int ret;

	vcpu->fd = ioctl(vcpu->vmm->vm_fd, KVM_CREATE_VCPU, vcpu->index);
	if (vcpu->fd < 0)
		return fail_errno("KVM_CREATE_VCPU");
	run = mmap(NULL, vcpu->vmm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED)
		return fail_errno("mmap of the vCPU");
	vcpu->run = run;
	ret = set_cpuid(vcpu);
	return ret ? ret : set_registers(vcpu);
}

int vmm_vcpu_create(struct vmm *vmm, uint32_t index, struct vmm_vcpu **ret_vcpu)
{
	struct vmm_vcpu *vcpu;
	int ret;

	if (index >= GUEST_MAX_VCPUS || vmm->vcpus[index])
		return fail(EINVAL, "vCPU %u: in use, or not below %d", index, GUEST_MAX_VCPUS);
	vcpu = calloc(1, sizeof(*vcpu));
	if (!vcpu)
		return fail(ENOMEM, "no memory");
	vcpu->vmm = vmm;
	vcpu->index = index;
	pthread_mutex_init(&vcpu->lock, NULL);
	pthread_cond_init(&vcpu->change, NULL);
	ret = set_up_vcpu(vcpu);
	if (ret) {
		vcpu_destroy(vcpu);
		return ret;
	}
	vmm->vcpus[index] = vcpu;
	*ret_vcpu = vcpu;
	return 0;
}

int vmm_vcpu_fd(const struct vmm_vcpu *vcpu)
{
	return vcpu->fd;
}

uint32_t vmm_vcpu_index(const struct vmm_vcpu *vcpu)
{
	return vcpu->index;
}

struct guest_mailbox *vmm_mailbox(struct vmm_vcpu *vcpu)
{
	return (void *)(vcpu->vmm->boot + GUEST_MAILBOXES + vcpu->index * GUEST_MAILBOX_BYTES);
}

/*
 * A kick between here and KVM_RUN is not lost: whoever kicks sets immediate_exit under the lock,
 * after this has cleared it, and KVM_RUN looks at it.
 */
static int enter(struct vmm_vcpu *vcpu)
{
	int ret = 0;

	pthread_mutex_lock(&vcpu->lock);
	vcpu->runner = pthread_self();
	while (vcpu->paused && !vcpu->cancelled)
		pthread_cond_wait(&vcpu->change, &vcpu->lock);
	if (vcpu->cancelled) {
		vcpu->cancelled = false;
		ret = fail(ECANCELED, "vCPU %u: cancelled", vcpu->index);
	} else {
		vcpu->run->immediate_exit = 0;
		vcpu->in_run = true;
	}
	pthread_mutex_unlock(&vcpu->lock);
	return ret;
}

static void leave(struct vmm_vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->lock);
	vcpu->in_run = false;
	pthread_cond_broadcast(&vcpu->change);
	pthread_mutex_unlock(&vcpu->lock);
}

static int fail_exit(struct vmm_vcpu *vcpu, const char *what, uint64_t value)
{
	struct kvm_regs regs = { 0 };

	ioctl(vcpu->fd, KVM_GET_REGS, &regs);
	return fail(EIO, "vCPU %u: %s (0x%llx) at rip 0x%llx", vcpu->index, what,
		    (unsigned long long)value, (unsigned long long)regs.rip);
}

/* 1: the command is done. */
static int handle_io(struct vmm_vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;
	const struct vmm_ops *ops = &vcpu->vmm->ops;
	uint32_t event;

	if (run->io.port != GUEST_PORT || run->io.direction != KVM_EXIT_IO_OUT || run->io.size != 4)
		return fail_exit(vcpu, "unexpected port access", run->io.port);
	memcpy(&event, (const char *)run + run->io.data_offset, sizeof(event));
	if (event == GUEST_EVENT_DONE)
		return 1;
	return ops->event ? ops->event(ops->arg, vcpu, event) : 0;
}

static int handle_memory_fault(struct vmm_vcpu *vcpu)
{
	const struct vmm_ops *ops = &vcpu->vmm->ops;
	uint64_t fault[3]; /* flags, gpa, size */

	memcpy(fault, &vcpu->run->hw, sizeof(fault)); /* the start of the exit's own data */
	if (!ops->memory_fault)
		return fail_exit(vcpu, "KVM_EXIT_MEMORY_FAULT", fault[1]);
	return ops->memory_fault(ops->arg, vcpu, fault[1], fault[2]);
}

static int handle_exit(struct vmm_vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;
	const struct vmm_ops *ops = &vcpu->vmm->ops;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return handle_io(vcpu);
	case KVM_EXIT_INTR:
		return 0;
	case KVM_EXIT_DIRTY_RING_FULL:
		return ops->ring_full ? ops->ring_full(ops->arg, vcpu)
				      : fail_exit(vcpu, "dirty ring full, and no handler", 0);
	case KVM_EXIT_MMIO:
		return fail_exit(vcpu, "access outside the slots", run->mmio.phys_addr);
	case KVM_EXIT_SHUTDOWN:
		return fail_exit(vcpu, "triple fault", 0);
	case KVM_EXIT_INTERNAL_ERROR:
		return fail_exit(vcpu, "KVM internal error", run->internal.suberror);
	case KVM_EXIT_FAIL_ENTRY:
		return fail_exit(vcpu, "entry refused by the processor",
				 run->fail_entry.hardware_entry_failure_reason);
	default:
		return fail_exit(vcpu, "unexpected exit", run->exit_reason);
	}
}

static int run_once(struct vmm_vcpu *vcpu)
{
	int ret = enter(vcpu), err;

	if (ret)
		return ret;
	vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	ret = ioctl(vcpu->fd, KVM_RUN, 0);
	err = ret ? errno : 0;
	leave(vcpu);
	if (!ret)
		return handle_exit(vcpu);
	if (err == EINTR || err == EAGAIN)
		return 0;
	if (vcpu->run->exit_reason == EXIT_MEMORY_FAULT)
		return handle_memory_fault(vcpu);
	return fail(err, "vCPU %u: KVM_RUN: %s", vcpu->index, strerror(err));
}

int vmm_run(struct vmm_vcpu *vcpu)
{
	int ret;

	do {
		ret = run_once(vcpu);
	} while (!ret);
	return ret < 0 ? ret : 0;
}

static void set_running(struct vmm_vcpu *vcpu, bool running)
{
	pthread_mutex_lock(&vcpu->lock);
	vcpu->running = running;
	pthread_mutex_unlock(&vcpu->lock);
}

bool vmm_running(struct vmm_vcpu *vcpu)
{
	bool running;

	pthread_mutex_lock(&vcpu->lock);
	running = vcpu->running;
	pthread_mutex_unlock(&vcpu->lock);
	return running;
}

static void *vcpu_thread(void *arg)
{
	struct vmm_vcpu *vcpu = arg;

	last_error[0] = 0;
	vcpu->result = vmm_run(vcpu);
	memcpy(vcpu->error, last_error, sizeof(vcpu->error));
	set_running(vcpu, false);
	return NULL;
}

int vmm_start(struct vmm_vcpu *vcpu)
{
	sigset_t all, old;
	int err;

	/* Signals are for the program's own threads; the kick alone is for these. */
	sigfillset(&all);
	sigdelset(&all, KICK_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	set_running(vcpu, true);
	err = pthread_create(&vcpu->thread, NULL, vcpu_thread, vcpu);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	vcpu->started = !err;
	if (err)
		set_running(vcpu, false);
	return err ? fail(err, "vCPU %u: no thread: %s", vcpu->index, strerror(err)) : 0;
}

int vmm_wait(struct vmm_vcpu *vcpu)
{
	if (!vcpu->started)
		return 0;
	pthread_join(vcpu->thread, NULL);
	vcpu->started = false;
	if (vcpu->result)
		memcpy(last_error, vcpu->error, sizeof(last_error));
	return vcpu->result;
}

/* With the lock held. */
static void kick(struct vmm_vcpu *vcpu)
{
	if (!vcpu->in_run)
		return;
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELEASE);
	pthread_kill(vcpu->runner, KICK_SIGNAL);
}

void vmm_pause(struct vmm_vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->lock);
	vcpu->paused++;
	kick(vcpu);
	while (vcpu->in_run)
		pthread_cond_wait(&vcpu->change, &vcpu->lock);
	pthread_mutex_unlock(&vcpu->lock);
}

void vmm_resume(struct vmm_vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->lock);
	vcpu->paused--;
	pthread_cond_broadcast(&vcpu->change);
	pthread_mutex_unlock(&vcpu->lock);
}

void vmm_cancel(struct vmm_vcpu *vcpu)
{
	pthread_mutex_lock(&vcpu->lock);
	vcpu->cancelled = true;
	kick(vcpu);
	pthread_cond_broadcast(&vcpu->change);
	pthread_mutex_unlock(&vcpu->lock);
}
