// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A guest starts: memory is made, given to it, and touched for the first time as a kernel that boots does
 * it: what is laid out at the beginning in order, then pages here and there.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#include "bench.h"
#include "vmm.h"

#define MIB  UINT64_C(1048576)
#define HUGE (2 * MIB)
#define PAGE 4096u
#define GPA  (UINT64_C(4) << 30)
#define SLOT 1u

struct start_arg {
	bool by_hand; /* mmap() and MADV_HUGEPAGE, without the library */
	uint32_t backing;
	uint64_t wants;
	bool populated; /* all pages made beforehand, outside of the time that counts */
};

static void vmm_ok(int r)
{
	bench_check(!r, "%s", vmm_error());
}

static void ok(int r)
{
	bench_check(r >= 0, "%s", kvmem_error_detail());
}

static uint64_t guest_bytes(void)
{
	return bench_mib(256, 64) * MIB;
}

/* ---- memory ---- */

struct memory {
	struct kvmem_region *region;
	uint8_t *map, *base;
};

static void make(struct memory *m, struct kvmem_vm *vm, struct vmm *vmm, const struct start_arg *a)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	memset(m, 0, sizeof(*m));
	o.bytes = guest_bytes();
	if (a->by_hand) {
		m->map = mmap(NULL, o.bytes + HUGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		bench_check(m->map != MAP_FAILED, "mmap: %s", strerror(errno));
		m->base = (uint8_t *)(((uintptr_t)m->map + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
		madvise(m->base, o.bytes, MADV_HUGEPAGE);
		vmm_ok(vmm_set_slot(vmm, SLOT, 0, GPA, o.bytes, m->base));
		return;
	}
	o.backing = a->backing;
	o.wants = a->wants;
	ok(kvmem_region_create(vm, &o, &m->region));
	m->base = kvmem_region_base(m->region);
	ok(kvmem_region_attach(m->region, 0, o.bytes, GPA, SLOT, 0, NULL));
}

static void unmake(struct memory *m)
{
	if (m->map)
		munmap(m->map, guest_bytes() + HUGE);
	ok(kvmem_region_free(m->region));
}

/* ---- the guest ---- */

static void write_pages(struct vmm_vcpu *vcpu, uint64_t bytes, uint64_t pages, bool random)
{
	*vmm_mailbox(vcpu) = (struct guest_mailbox){
		.command = GUEST_WRITE,
		.flags = random ? GUEST_RANDOM : 0,
		.gpa = GPA,
		.bytes = bytes,
		.page = PAGE,
		.seed = 4711,
		.rounds = 1,
		.count = pages,
	};
	vmm_ok(vmm_run(vcpu));
}

/* The image, the table of pages and the ramdisk: a quarter, in order; then as many pages anywhere. */
static void boot(struct vmm_vcpu *vcpu)
{
	uint64_t part = guest_bytes() / 4;

	write_pages(vcpu, part, part / PAGE, false);
	write_pages(vcpu, guest_bytes(), part / PAGE, true);
}

static void check_written(const struct memory *m)
{
	for (uint64_t at = 0; at < guest_bytes() / 4; at += PAGE) {
		bool any = false;

		for (unsigned int i = 0; i < PAGE; i += 8)
			any |= *(const volatile uint64_t *)(m->base + at + i) != 0;
		bench_check(any, "guest-start: nothing was written at offset 0x%lx",
			    (unsigned long)at);
	}
}

static double start(void *arg)
{
	const struct start_arg *a = arg;
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_vm *vm;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;
	struct memory m;
	double from, took;

	vo.first_slot = SLOT;
	ok(kvmem_vm_create(&vo, &vm));
	vmm_ok(vmm_create(kvmem_vm_fd(vm), 0, NULL, &vmm));
	vmm_ok(vmm_map(vmm, GPA, guest_bytes()));
	vmm_ok(vmm_vcpu_create(vmm, 0, &vcpu));
	from = bench_now();
	make(&m, vm, vmm, a);
	if (a->populated) {
		bench_check(!madvise(m.base, guest_bytes(), 23 /* MADV_POPULATE_WRITE */),
			    "MADV_POPULATE_WRITE: %s", strerror(errno));
		from = bench_now();
	}
	boot(vcpu);
	took = bench_now() - from;
	check_written(&m);
	vmm_destroy(vmm);
	unmake(&m);
	ok(kvmem_vm_free(vm));
	return took;
}

/* ---- rows ---- */

/* Why the memory cannot be had here, or NULL. */
static const char *lacks(const struct start_arg *a)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan p = KVMEM_PLAN_INIT;
	struct kvmem_vm *vm;
	int r;

	if (kvmem_vm_create(NULL, &vm))
		return kvmem_error_detail();
	o.bytes = guest_bytes();
	o.backing = a->backing;
	o.needs = a->wants;
	r = kvmem_region_plan(vm, &o, &p);
	ok(kvmem_vm_free(vm));
	return r ? kvmem_error_detail() : NULL;
}

static void compare(const char *name, const char *on, const struct start_arg *ours, double target,
		    const char *note)
{
	struct start_arg hand = { .by_hand = true }, mine = *ours;
	const char *no = lacks(ours);

	if (no) {
		bench_skip(name, "%s", no);
		return;
	}
	bench_compare(name, &(struct bench_report){
				    .on = on,
				    .unit = "ms",
				    .rounds = BENCH_MORE,
				    .baseline = { "mmap, MADV_HUGEPAGE, a slot", start, &hand },
				    .ours = { "kvmem_region_create, _attach", start, &mine },
				    .target = target,
				    .note = note,
			    });
}

#define NO_SLOWER (1 / 1.05)

static void by_plan(void)
{
	compare("guest-start", "what the plan takes where nothing needs a file",
		&(struct start_arg){ .backing = 0 }, NO_SLOWER, NULL);
}

static void on_hugetlb(void)
{
	compare("guest-start-hugetlb", "hugetlb memfd",
		&(struct start_arg){ .wants = KVMEM_WANT_HUGE }, NO_SLOWER, NULL);
}

static void on_memfd(void)
{
	compare("guest-start-memfd", "memfd", &(struct start_arg){ .backing = KVMEM_BACKING_MEMFD },
		0, "base pages, but where shmem_enabled allows huge ones");
}

static void on_thp_memfd(void)
{
	compare("guest-start-memfd-thp", "memfd, KVMEM_WANT_THP",
		&(struct start_arg){ .backing = KVMEM_BACKING_MEMFD, .wants = KVMEM_WANT_THP }, 0,
		"zeroed twice where the kernel has init_on_alloc");
}

static void on_guest_memfd(void)
{
	compare("guest-start-gmem", "guest_memfd",
		&(struct start_arg){ .backing = KVMEM_BACKING_GUEST_MEMFD }, 0, "base pages");
}

static void on_ready_memfd(void)
{
	compare("guest-start-ready", "memfd whose pages were made before",
		&(struct start_arg){ .backing = KVMEM_BACKING_MEMFD, .populated = true }, 0,
		"without the time to make them");
}

BENCH_MAIN({ "guest-start", by_plan }, { "guest-start-hugetlb", on_hugetlb },
	   { "guest-start-memfd", on_memfd }, { "guest-start-memfd-thp", on_thp_memfd },
	   { "guest-start-gmem", on_guest_memfd }, { "guest-start-ready", on_ready_memfd })
