/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* dirty: run a guest that writes pages in rounds, and print the runs of pages it wrote. */
#include "example.h"
#include "vmm.h"

#define RAM_BYTES     (16 * MIB)
#define RAM_GPA	      (UINT64_C(4) << 30)
#define PAGES_A_ROUND 12
#define ROUNDS	      4
#define SEED	      2026

struct example {
	struct kvmem_dirty *dirty;
	struct kvmem_region *ram;
	uint64_t seed, page;
	unsigned char expected[RAM_BYTES / 4096];
	uint64_t wrong;
};

/* What the guest has written in this round, by the same arithmetic. */
static void expect(struct example *ex)
{
	uint64_t pages = RAM_BYTES / ex->page;

	memset(ex->expected, 0, sizeof(ex->expected));
	for (uint64_t i = 0; i < PAGES_A_ROUND; i++)
		ex->expected[guest_write_next(&ex->seed, i, pages, ex->page, GUEST_RANDOM).page] =
			1;
}

/* Harvest, commit, and only then look at the pages. */
static int round_done(void *arg, struct vmm_vcpu *vcpu, uint32_t event)
{
	struct example *ex = arg;
	struct kvmem_batch *batch;
	struct kvmem_run run;
	int64_t pages;

	(void)vcpu;
	if (event != GUEST_EVENT_ROUND)
		return 0;
	expect(ex);
	pages = must(kvmem_dirty_harvest(ex->dirty, &batch), "kvmem_dirty_harvest");
	printf("%lld pages:", (long long)pages);
	must(kvmem_dirty_commit(ex->dirty, batch), "kvmem_dirty_commit");
	while (must(kvmem_batch_next(batch, &run), "kvmem_batch_next")) {
		printf(" %llx+%llx", (unsigned long long)run.offset, (unsigned long long)run.bytes);
		for (uint64_t at = run.offset; at < run.offset + run.bytes; at += ex->page)
			ex->expected[at / ex->page] ^= 1;
	}
	printf("\n");
	for (uint64_t i = 0; i < RAM_BYTES / ex->page; i++)
		ex->wrong += ex->expected[i];
	kvmem_batch_free(batch); /* an empty one too */
	return 0;
}

static int ring_full(void *arg, struct vmm_vcpu *vcpu)
{
	return kvmem_dirty_ring_full(((struct example *)arg)->dirty, vmm_vcpu_fd(vcpu));
}

static void run_guest(struct vmm *vmm, struct example *ex)
{
	struct vmm_vcpu *vcpu;

	if (vmm_map(vmm, RAM_GPA, RAM_BYTES) || vmm_vcpu_create(vmm, 0, &vcpu)) {
		fprintf(stderr, "%s\n", vmm_error());
		exit(EXIT_FAILURE);
	}
	must(kvmem_dirty_add_vcpu(ex->dirty, vmm_vcpu_fd(vcpu)), "kvmem_dirty_add_vcpu");
	must(kvmem_dirty_start(ex->dirty), "kvmem_dirty_start");
	*vmm_mailbox(vcpu) = (struct guest_mailbox){
		.command = GUEST_WRITE,
		.flags = GUEST_RANDOM | GUEST_TELL_ROUND,
		.gpa = RAM_GPA,
		.bytes = RAM_BYTES,
		.page = ex->page,
		.seed = SEED,
		.rounds = ROUNDS,
		.count = PAGES_A_ROUND,
	};
	if (vmm_run(vcpu)) {
		fprintf(stderr, "%s\n", vmm_error());
		exit(EXIT_FAILURE);
	}
}

int main(void)
{
	static struct example ex = { .seed = SEED };
	struct vmm_ops ops = { .arg = &ex, .event = round_done, .ring_full = ring_full };
	struct kvmem_region_opts opts = KVMEM_REGION_OPTS_INIT;
	struct kvmem_vm_opts vm_opts = KVMEM_VM_OPTS_INIT;
	struct kvmem_vm *vm;
	struct vmm *vmm;
	uint32_t mode;

	vm_opts.first_slot = 1; /* slot 0 is the boot area's */
	vm = must_have_vm(&vm_opts);
	opts.bytes = RAM_BYTES;
	opts.needs = KVMEM_WANT_DIRTY;
	must(kvmem_region_create(vm, &opts, &ex.ram), "kvmem_region_create");
	ex.page = kvmem_region_page_size(ex.ram);
	must(kvmem_dirty_create(vm, NULL, &ex.dirty), "kvmem_dirty_create");
	must(kvmem_region_attach(ex.ram, 0, RAM_BYTES, RAM_GPA, KVMEM_SLOT_ANY, 0, NULL), "attach");
	if (vmm_create(kvmem_vm_fd(vm), 0, &ops, &vmm)) {
		fprintf(stderr, "%s\n", vmm_error());
		return EXIT_FAILURE;
	}
	run_guest(vmm, &ex);
	mode = kvmem_dirty_get_mode(ex.dirty);
	must(kvmem_dirty_stop(ex.dirty), "kvmem_dirty_stop");
	must(kvmem_dirty_free(ex.dirty), "kvmem_dirty_free");
	vmm_destroy(vmm);
	kvmem_region_free(ex.ram);
	kvmem_vm_free(vm);
	printf("by %s: %s\n", mode == KVMEM_DIRTY_RING ? "ring" : "bitmap",
	       ex.wrong ? "not what the guest wrote" : "exactly the pages the guest wrote");
	return ex.wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
