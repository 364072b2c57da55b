// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A real guest on memory that is filled beneath it, and the time to its first instruction. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pager_mem.h"
#include "vmm.h"

#define VCPUS 2u
#define GPA   (UINT64_C(4) << 30)
#define SLOT  1u

enum by { BY_SIMPLE, BY_PAGER, PRESENT };

struct guest_arg {
	enum by by;
	bool random;
	enum lazy_kind kind;
};

static void vmm_ok(int r)
{
	bench_check(!r, "%s", vmm_error());
}

static void ok(int r)
{
	bench_check(r >= 0, "%s", kvmem_error_detail());
}

static struct kvmem_vm *make_vm(void)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;
	struct kvmem_vm *vm;

	o.first_slot = SLOT;
	ok(kvmem_vm_create(&o, &vm));
	return vm;
}

static bool no_kvm(const char *row)
{
	if (!access("/dev/kvm", R_OK | W_OK))
		return false;
	bench_skip(row, "/dev/kvm cannot be opened");
	return true;
}

/* ---- touching all of it ---- */

static uint64_t guest_bytes(void)
{
	return (bench_quick() ? 64 : 256) * MIB;
}

static void read_memory(struct vmm_vcpu *vcpu, uint64_t gpa, uint64_t bytes, bool random,
			uint64_t seed)
{
	*vmm_mailbox(vcpu) = (struct guest_mailbox){
		.command = GUEST_READ,
		.flags = random ? GUEST_RANDOM : 0,
		.gpa = gpa,
		.bytes = bytes,
		.page = PAGE,
		.seed = seed,
	};
	vmm_ok(vmm_start(vcpu));
}

static double guest_touch(void *arg)
{
	const struct guest_arg *a = arg;
	uint64_t bytes = guest_bytes(), part = bytes / VCPUS;
	const uint8_t *content = lazy_content(bytes);
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_vm *vm = make_vm();
	struct vmm_vcpu *vcpus[VCPUS];
	struct vmm *vmm;
	struct lazy l;
	double start, took;

	o.flags = KVMEM_PAGER_BACKGROUND;
	if (a->by == BY_SIMPLE)
		lazy_by_simple(&l, content, bytes, a->kind);
	else if (a->by == BY_PAGER)
		lazy_by_pager(&l, content, bytes, a->kind, &o, vm);
	else
		lazy_none(&l, content, bytes, a->kind);
	vmm_ok(vmm_create(kvmem_vm_fd(vm), 0, NULL, &vmm));
	if (a->by == BY_PAGER) {
		ok(kvmem_region_attach(l.region, 0, bytes, GPA, SLOT, 0, NULL));
		vmm_ok(vmm_map(vmm, GPA, bytes));
	} else {
		vmm_ok(vmm_set_slot(vmm, SLOT, 0, GPA, bytes, l.base));
	}
	for (uint32_t i = 0; i < VCPUS; i++)
		vmm_ok(vmm_vcpu_create(vmm, i, &vcpus[i]));
	start = bench_now();
	lazy_start(&l);
	for (uint32_t i = 0; i < VCPUS; i++) {
		bench_pin(i);
		read_memory(vcpus[i], a->random ? GPA : GPA + i * part, a->random ? bytes : part,
			    a->random, i + 1);
	}
	bench_unpin();
	for (uint32_t i = 0; i < VCPUS; i++)
		vmm_ok(vmm_wait(vcpus[i]));
	took = bench_now() - start;
	vmm_destroy(vmm);
	lazy_end(&l);
	ok(kvmem_vm_free(vm));
	return took;
}

static void compare_guest(const char *name, bool random, enum lazy_kind kind)
{
	static const char *const on[] = { "memfd, pages from a memory source",
					  "memfd, pages in the file",
					  "hugetlb, pages from a memory source" };
	struct guest_arg simple = { BY_SIMPLE, random, kind }, pager = { BY_PAGER, random, kind };
	struct guest_arg present = { PRESENT, random, kind };

	if (no_kvm(name))
		return;
	if (kind == LAZY_HUGE && !lazy_has_huge(guest_bytes())) {
		bench_skip(name,
			   "%u huge pages of 2 MiB are not there: see /proc/sys/vm/nr_hugepages",
			   (unsigned int)(guest_bytes() / (2 * MIB)));
		return;
	}
	bench_compare(
		name,
		&(struct bench_report){
			.on = on[kind],
			.unit = "ms",
			.baseline = { "one handler, a message a read, a page an ioctl", guest_touch,
				      &simple },
			.ours = { "pager, background fill beside the faults", guest_touch, &pager },
			.limit = { "memory that is all present and mapped", guest_touch, &present },
			.limit_target = kind == LAZY_HUGE ? 0 : 1.3,
			.note = random ? "2 vCPUs on a CPU each read as many pseudo-random pages as there are"
				       : "2 vCPUs on a CPU each read one half in order",
		});
}

static void in_order(void)
{
	compare_guest("pager-guest-sequential", false, LAZY_MISSING);
}

static void at_random(void)
{
	compare_guest("pager-guest-random", true, LAZY_MISSING);
}

static void minor_in_order(void)
{
	compare_guest("pager-guest-minor-sequential", false, LAZY_MINOR);
}

static void minor_at_random(void)
{
	compare_guest("pager-guest-minor-random", true, LAZY_MINOR);
}

static void huge_in_order(void)
{
	compare_guest("pager-guest-huge-sequential", false, LAZY_HUGE);
}

static void huge_at_random(void)
{
	compare_guest("pager-guest-huge-random", true, LAZY_HUGE);
}

/* ---- the first instruction ---- */

#define DATA_BYTES  (64 * MIB)
#define EAGER_BYTES (512 * MIB)

struct first_arg {
	uint64_t bytes;
	bool eager;
};

struct first {
	double at;
};

static int on_event(void *arg, struct vmm_vcpu *vcpu, uint32_t event)
{
	struct first *f = arg;

	(void)vcpu;
	if (event == GUEST_EVENT_FIRST)
		f->at = bench_now();
	return 0;
}

/* An image of `bytes`: data at its beginning, then a hole. */
static int image(uint64_t bytes)
{
	static char path[4096];
	const uint8_t *content = lazy_content(DATA_BYTES);
	int fd;

	snprintf(path, sizeof(path), "%s/first-instruction.img", bench_dir());
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	bench_check(fd >= 0, "%s: %s", path, strerror(errno));
	if (lseek(fd, 0, SEEK_END) == 0)
		bench_check(write(fd, content, DATA_BYTES) == (ssize_t)DATA_BYTES, "write: %s",
			    path);
	bench_check(!ftruncate(fd, (off_t)bytes), "ftruncate: %s", strerror(errno));
	unlink(path);
	return fd;
}

static void run_first(struct kvmem_vm *vm, struct kvmem_region *ram, struct first *f)
{
	struct vmm_ops ops = { .arg = f, .event = on_event };
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;

	vmm_ok(vmm_create(kvmem_vm_fd(vm), 0, &ops, &vmm));
	ok(kvmem_region_attach(ram, 0, kvmem_region_bytes(ram), GPA, SLOT, 0, NULL));
	vmm_ok(vmm_map(vmm, GPA, DATA_BYTES));
	vmm_ok(vmm_vcpu_create(vmm, 0, &vcpu));
	*vmm_mailbox(vcpu) = (struct guest_mailbox){
		.command = GUEST_READ,
		.flags = GUEST_TELL_FIRST,
		.gpa = GPA,
		.bytes = DATA_BYTES,
		.page = PAGE,
		.seed = 1,
	};
	vmm_ok(vmm_run(vcpu));
	vmm_destroy(vmm);
}

/* From nothing but the image to the first access of the guest. */
static double first_instruction(void *arg)
{
	const struct first_arg *a = arg;
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct kvmem_source *source;
	struct kvmem_pager *pager = NULL;
	struct kvmem_region *ram;
	struct kvmem_vm *vm;
	struct first f = { 0 };
	int fd = image(a->bytes);
	double start = bench_now();

	vm = make_vm();
	ro.bytes = a->bytes;
	ro.backing = KVMEM_BACKING_MEMFD;
	ok(kvmem_region_create(vm, &ro, &ram));
	if (a->eager) {
		uint8_t *base = kvmem_region_base(ram);

		for (uint64_t at = 0; at < a->bytes; at += MIB)
			bench_check(pread(fd, base + at, MIB, (off_t)at) == MIB, "pread");
	} else {
		ok(kvmem_source_file(fd, 0, 0, 0, &source));
		ok(kvmem_pager_create(NULL, &pager));
		ok(kvmem_pager_add(pager, ram, source, 0, 0));
		ok(kvmem_pager_start(pager));
	}
	run_first(vm, ram, &f);
	bench_check(f.at > start, "the guest did not run");
	bench_check(!memcmp(kvmem_region_base(ram), lazy_content(DATA_BYTES), DATA_BYTES),
		    "the memory is not what the image is");
	if (pager) {
		ok(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
		ok(kvmem_pager_free(pager));
		ok(kvmem_source_free(source));
	}
	ok(kvmem_region_free(ram));
	ok(kvmem_vm_free(vm));
	close(fd);
	return f.at - start;
}

static void first(void)
{
	struct first_arg eager = { EAGER_BYTES, true }, small = { 64 * MIB, false };
	struct first_arg big = { 8192 * MIB, false };

	if (no_kvm("pager-first-instruction"))
		return;
	bench_compare(
		"pager-first-instruction",
		&(struct bench_report){
			.on = "memfd",
			.unit = "ms",
			.baseline = { "all of a 512 MiB image read first", first_instruction,
				      &eager },
			.ours = { "pager, image of 8 GiB", first_instruction, &big },
			.limit = { "pager, image of 64 MiB", first_instruction, &small },
			.limit_target = 1.3,
			.note = "from the image and nothing else to the guest's first access to its RAM",
		});
}

BENCH_MAIN({ "pager-guest-sequential", in_order }, { "pager-guest-random", at_random },
	   { "pager-guest-minor-sequential", minor_in_order },
	   { "pager-guest-minor-random", minor_at_random },
	   { "pager-guest-huge-sequential", huge_in_order },
	   { "pager-guest-huge-random", huge_at_random }, { "pager-first-instruction", first })
