// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "filter.h"

#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/uapi/pagemap.h"
#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"
#include "base/uapi/userfaultfd.h"

#define MOST 1024u

#define I(name) \
	{ \
#name, (uint32_t)name \
	}
#define KM(name) \
	{ \
#name, (uint32_t)KM_##name \
	}

static const struct {
	const char *name;
	uint32_t request;
} ioctls[] = {
	I(KVM_GET_API_VERSION),
	I(KVM_CHECK_EXTENSION),
	I(KVM_CREATE_VM),
	I(KVM_GET_VCPU_MMAP_SIZE),
	I(KVM_CREATE_VCPU),
	I(KVM_ENABLE_CAP),
	I(KVM_SET_USER_MEMORY_REGION),
	KM(KVM_SET_USER_MEMORY_REGION2),
	KM(KVM_CREATE_GUEST_MEMFD),
	KM(KVM_SET_MEMORY_ATTRIBUTES),
	KM(KVM_PRE_FAULT_MEMORY),
	I(KVM_GET_DIRTY_LOG),
	I(KVM_CLEAR_DIRTY_LOG),
	I(KVM_RESET_DIRTY_RINGS),
	I(KVM_RUN),
#ifdef __x86_64__
	I(KVM_GET_SREGS),
	I(KVM_SET_SREGS),
	I(KVM_SET_REGS),
	I(KVM_SET_FPU),
	I(KVM_GET_SUPPORTED_CPUID),
	I(KVM_SET_CPUID2),
#endif
	I(KVM_SET_ONE_REG),
	KM(USERFAULTFD_IOC_NEW),
	I(UFFDIO_API),
	I(UFFDIO_REGISTER),
	I(UFFDIO_UNREGISTER),
	I(UFFDIO_WAKE),
	I(UFFDIO_COPY),
	I(UFFDIO_ZEROPAGE),
	I(UFFDIO_CONTINUE),
	I(UFFDIO_WRITEPROTECT),
	KM(UFFDIO_POISON),
	KM(UFFDIO_MOVE),
	KM(PROCMAP_QUERY),
	KM(PAGEMAP_SCAN),
	I(TCGETS),
};

#define IOCTLS (sizeof(ioctls) / sizeof(ioctls[0]))

/* What the VMM of the lives does by itself: the same list for all phases, as it is not what is shown. */
static const struct call own[] = {
	{ SYS_ioctl, "ioctl", "KVM_RUN" },
	{ SYS_ioctl, "ioctl", "KVM_GET_VCPU_MMAP_SIZE" },
	{ SYS_ioctl, "ioctl", "KVM_CREATE_VCPU" },
	{ SYS_ioctl, "ioctl", "KVM_SET_USER_MEMORY_REGION" },
#ifdef __x86_64__
	{ SYS_ioctl, "ioctl", "KVM_GET_SREGS" },
	{ SYS_ioctl, "ioctl", "KVM_SET_SREGS" },
	{ SYS_ioctl, "ioctl", "KVM_SET_REGS" },
	{ SYS_ioctl, "ioctl", "KVM_SET_FPU" },
	{ SYS_ioctl, "ioctl", "KVM_GET_SUPPORTED_CPUID" },
	{ SYS_ioctl, "ioctl", "KVM_SET_CPUID2" },
#endif
	{ SYS_ioctl, "ioctl", "KVM_SET_ONE_REG" },
	{ SYS_write, "write", NULL },
	{ SYS_read, "read", NULL },
	{ SYS_pipe2, "pipe2", NULL },
	{ SYS_close, "close", NULL },
	{ SYS_fadvise64, "fadvise64", NULL },
	{ SYS_ppoll, "ppoll", NULL },
#ifdef SYS_poll
	{ SYS_poll, "poll", NULL },
#endif
	{ SYS_rt_sigreturn, "rt_sigreturn", NULL },
	{ SYS_exit, "exit", NULL },
	{ SYS_exit_group, "exit_group", NULL },
	{ SYS_seccomp, "seccomp", NULL }, /* the filter of the next phase */
	{ SYS_prctl, "prctl", NULL },
};

uint32_t filter_ioctl(const char *name)
{
	for (size_t i = 0; i < IOCTLS; i++)
		if (!strcmp(ioctls[i].name, name))
			return ioctls[i].request;
	return 0;
}

void filter_print_ioctls(void)
{
	for (size_t i = 0; i < IOCTLS; i++)
		printf("%s 0x%x\n", ioctls[i].name, ioctls[i].request);
}

/* ---- programs ---- */

struct program {
	struct sock_filter code[MOST];
	unsigned short len;
};

static void add(struct program *p, struct sock_filter f)
{
	if (p->len == MOST)
		abort();
	p->code[p->len++] = f;
}

static void add_equal(struct program *p, uint32_t value, uint32_t answer)
{
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1));
	add(p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, answer));
}

static void load(struct program *p, size_t offset)
{
	add(p, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset));
}

static void add_list(struct program *p, const struct call *calls, size_t count, bool of_ioctl,
		     uint32_t answer)
{
	for (size_t i = 0; i < count; i++) {
		if (!of_ioctl != !calls[i].ioctl)
			continue;
		if (of_ioctl && !filter_ioctl(calls[i].ioctl)) {
			fprintf(stderr, "%s is not in the table of ioctls\n", calls[i].ioctl);
			abort();
		}
		add_equal(p, of_ioctl ? filter_ioctl(calls[i].ioctl) : (uint32_t)calls[i].nr,
			  answer);
	}
}

static bool install(const struct program *p)
{
	struct sock_fprog prog = { .len = p->len, .filter = (struct sock_filter *)p->code };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog);
}

static void on_refused(int sig, siginfo_t *info, void *context)
{
	char text[80];
	int n;

	(void)sig;
	(void)context;
	n = snprintf(text, sizeof(text), "refused: system call %d\n", info->si_syscall);
	if (write(STDERR_FILENO, text, (size_t)n) != n)
		_exit(FILTER_REFUSED);
	_exit(FILTER_REFUSED);
}

bool filter_allow(const struct call *const *lists, const size_t *counts, size_t list_count)
{
	struct sigaction sa = { .sa_sigaction = on_refused, .sa_flags = SA_SIGINFO };
	struct program p = { .len = 0 };

	sigaction(SIGSYS, &sa, NULL);
	load(&p, offsetof(struct seccomp_data, nr));
	add_list(&p, own, sizeof(own) / sizeof(own[0]), false, SECCOMP_RET_ALLOW);
	for (size_t i = 0; i < list_count; i++)
		add_list(&p, lists[i], counts[i], false, SECCOMP_RET_ALLOW);
	add(&p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 1, 0));
	add(&p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
	load(&p, offsetof(struct seccomp_data, args[1]));
	add_list(&p, own, sizeof(own) / sizeof(own[0]), true, SECCOMP_RET_ALLOW);
	for (size_t i = 0; i < list_count; i++)
		add_list(&p, lists[i], counts[i], true, SECCOMP_RET_ALLOW);
	add(&p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
	return install(&p);
}

bool filter_refuse(const struct call *call, int error)
{
	uint32_t answer = SECCOMP_RET_ERRNO | (uint32_t)error;
	struct program p = { .len = 0 };

	load(&p, offsetof(struct seccomp_data, nr));
	if (call->ioctl) {
		add(&p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 1, 0));
		add(&p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
		load(&p, offsetof(struct seccomp_data, args[1]));
	}
	add_list(&p, call, 1, call->ioctl, answer);
	add(&p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	return install(&p);
}
