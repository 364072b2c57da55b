// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Rounds of one thing alone, as often as it goes: page faults, or the dirty log. */
#include "torture.h"

#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define FAULT_PAGES 4096u
#define RING_PAGES  4096u
#define SECONDS	    2
#define LAP_WRITES  60000u /* of a vCPU in a lap; in supervisor mode they must fit its ring */

static void begin_guest(struct round *round, unsigned int i, struct guest_mailbox command)
{
	command.page = PAGE;
	*vmm_mailbox(round->vcpu[i]) = command;
	if (vmm_start(round->vcpu[i]))
		fail(NULL, -1, "%s", vmm_error());
}

static void wait_guests(struct round *round)
{
	for (unsigned int i = 0; i < round->vcpus; i++)
		if (vmm_wait(round->vcpu[i]))
			fail(NULL, -1, "%s", vmm_error());
}

/*
 * A hypervisor without hardware virtualisation interprets supervisor code: its writes are logged each time,
 * at ten times the rate of page faults. Elsewhere it makes no difference.
 */
static void enter_supervisor_mode(const struct vmm_vcpu *vcpu)
{
	struct kvm_sregs s;

	if (ioctl(vmm_vcpu_fd(vcpu), KVM_GET_SREGS, &s))
		fail(NULL, -1, "KVM_GET_SREGS");
	s.cs.dpl = s.ss.dpl = 0;
	s.cs.selector = 0x10;
	s.ss.selector = 0x18;
	s.ds = s.es = s.fs = s.gs = s.ss;
	if (ioctl(vmm_vcpu_fd(vcpu), KVM_SET_SREGS, &s))
		fail(NULL, -1, "KVM_SET_SREGS");
}

static void open_vm(struct round *round, bool ring)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;

	o.first_slot = 1;
	must(kvmem_vm_create(&o, &round->vm));
	round->supervisor = ring && !one_in(&round->rng, 3);
	if (ring)
		open_tracker(round);
	if (round->supervisor)
		describe(", guests in supervisor mode");
	open_guest(round);
	for (unsigned int i = 0; i < round->vcpus && round->supervisor; i++)
		enter_supervisor_mode(round->vcpu[i]);
}

static void close_vm(struct round *round)
{
	vmm_destroy(round->vmm);
	must(kvmem_vm_free(round->vm));
}

static struct kvmem_region *open_region(struct round *round, uint32_t pages, uint64_t wants)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *region;

	o.bytes = (uint64_t)pages * PAGE;
	o.backing = one_in(&round->rng, 3) ? KVMEM_BACKING_ANONYMOUS : KVMEM_BACKING_MEMFD;
	o.needs = wants;
	must(kvmem_region_create(round->vm, &o, &region));
	must(kvmem_region_attach(region, 0, o.bytes, GPA, KVMEM_SLOT_ANY, 0, NULL));
	return region;
}

/* ---- faults ---- */

struct fault_lap {
	struct kvmem_region *region;
	struct kvmem_pager *pager;
	unsigned char *content;
	uint64_t seed;
};

/* Each vCPU compares the pages, the one from the front and the other at random or from the middle. */
static void touch_all(struct round *round, const struct fault_lap *lap)
{
	uint64_t bytes = (uint64_t)FAULT_PAGES * PAGE, half = bytes / 2;
	bool both = one_in(&round->rng, 3);

	begin_guest(round, 0,
		    (struct guest_mailbox){ .command = GUEST_VERIFY,
					    .gpa = GPA,
					    .step = PAGE,
					    .bytes = both ? bytes : half,
					    .seed = lap->seed });
	begin_guest(round, 1,
		    (struct guest_mailbox){ .command = GUEST_VERIFY,
					    .gpa = GPA + half,
					    .step = PAGE,
					    .bytes = half,
					    .seed = lap->seed });
	wait_guests(round);
	for (unsigned int i = 0; i < 2; i++) {
		const struct guest_mailbox *box = vmm_mailbox(round->vcpu[i]);

		if (box->result)
			fail(NULL, -1,
			     "vCPU %u: %llu pages differ from their source, the first is %llu", i,
			     (unsigned long long)box->result,
			     (unsigned long long)(box->bad_gpa - GPA) / PAGE);
		count(COUNT_GUEST_PAGES, box->bytes / PAGE);
	}
}

static void open_lap(struct round *round, struct fault_lap *lap, struct kvmem_source *source)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;

	lap->region = open_region(round, FAULT_PAGES, KVMEM_WANT_PAGING);
	o.fault_around = one_in(&round->rng, 4) ? 4 * PAGE : PAGE;
	o.workers = (uint32_t)between(&round->rng, 1, 3);
	o.shards = (uint32_t)between(&round->rng, 1, 2);
	must(kvmem_pager_create(&o, &lap->pager));
	must(kvmem_pager_add(lap->pager, lap->region, source, 0, 0));
	must(kvmem_pager_start(lap->pager));
}

static void close_lap(struct round *round, struct fault_lap *lap)
{
	unsigned char *memory = kvmem_region_base(lap->region);

	must(kvmem_pager_stop(lap->pager,
			      one_in(&round->rng, 2) ? KVMEM_STOP_FILL : KVMEM_STOP_HAND_BACK));
	count_pager(lap->pager);
	must(kvmem_pager_free(lap->pager));
	if (memcmp(memory, lap->content, (size_t)FAULT_PAGES * PAGE))
		fail(NULL, -1, "the region differs from its source");
	count(COUNT_HOST_PAGES, FAULT_PAGES);
	must(kvmem_region_free(lap->region));
}

/* Minor faults: a shared file mapping that is taken out keeps its content. */
static void take_out(struct round *round, struct fault_lap *lap)
{
	struct kvmem_plan plan = KVMEM_PLAN_INIT;

	must(kvmem_region_get_plan(lap->region, &plan));
	for (unsigned int i = 0; i < 2 && plan.backing == KVMEM_BACKING_MEMFD; i++) {
		if (madvise(kvmem_region_base(lap->region), (size_t)FAULT_PAGES * PAGE,
			    MADV_DONTNEED))
			fail(NULL, -1, "MADV_DONTNEED");
		touch_all(round, lap);
	}
}

void hammer_faults(struct round *round, struct thread *thread)
{
	uint64_t until = now_ns() + SECONDS * UINT64_C(1000000000),
		 bytes = (uint64_t)FAULT_PAGES * PAGE;
	struct kvmem_source *source;
	struct fault_lap lap = { .seed = round->seed | 1 };

	open_vm(round, false);
	lap.content = malloc(bytes);
	for (uint64_t at = 0; lap.content && at < bytes; at += 8) {
		uint64_t word = guest_pattern(lap.seed, GPA + at);

		memcpy(lap.content + at, &word, 8);
	}
	must(kvmem_source_memory(lap.content, bytes, &source));
	do {
		op_begin(thread, OP_GUEST_CHECK, NULL, 0, FAULT_PAGES, 0);
		open_lap(round, &lap, source);
		touch_all(round, &lap);
		take_out(round, &lap);
		close_lap(round, &lap);
		op_end(thread, 0);
	} while (now_ns() < until);
	vmm_destroy(round->vmm);
	must(kvmem_source_free(source));
	must(kvmem_vm_free(round->vm));
	free(lap.content);
}

/* ---- the dirty log ---- */

struct ring_lap {
	struct kvmem_region *region;
	volatile uint64_t *memory;
	uint64_t *copy; /* the first word of each page, as of its last report */
};

static uint64_t word_of(const struct ring_lap *lap, uint64_t page)
{
	return lap->memory[page * (PAGE / 8)];
}

static int64_t sync_words(struct round *round, struct ring_lap *lap)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;
	int64_t pages = must(kvmem_dirty_harvest(round->dirty, &batch));

	must(kvmem_dirty_commit(round->dirty, batch));
	while (must(kvmem_batch_next(batch, &run)) == 1)
		for (uint64_t page = run.offset / PAGE; page < (run.offset + run.bytes) / PAGE;
		     page++)
			lap->copy[page] = word_of(lap, page);
	kvmem_batch_free(batch);
	return pages;
}

static bool guests_running(struct round *round)
{
	return vmm_running(round->vcpu[0]) || vmm_running(round->vcpu[1]);
}

/* vCPUs rewrite their pages, harvests go on all the while; then every page is as it was reported last. */
static void ring_lap(struct round *round, struct thread *thread, struct ring_lap *lap,
		     struct busy_ring *ring)
{
	uint32_t pages = (uint32_t)between(&round->rng, 64, RING_PAGES / 2), gap = RING_PAGES / 2;
	uint64_t passes = between(&round->rng, 5, 60);
	useconds_t pause = one_in(&round->rng, 3) ? 0
						  : (useconds_t)between(&round->rng, 100, 10000);

	pages = one_in(&round->rng, 4) ? pages : (pages % 300) + 8;
	/* A hypervisor that interprets does not look whether the ring is full (seen on 6.18). */
	if (round->supervisor || passes * pages > LAP_WRITES / 2)
		passes = (round->supervisor ? LAP_WRITES : LAP_WRITES / 2) / pages;
	op_begin(thread, OP_GUEST_SPIN, NULL, 0, 2 * pages, passes);
	for (unsigned int i = 0; i < 2; i++)
		begin_guest(round, i,
			    (struct guest_mailbox){ .command = one_in(&round->rng, 6) ? GUEST_FILL
										      : GUEST_SPIN,
						    .gpa = GPA + (uint64_t)i * gap * PAGE,
						    .bytes = (uint64_t)pages * PAGE,
						    .step = PAGE,
						    .seed = guest_random(&round->rng.state) | 1,
						    .rounds = passes });
	while (guests_running(round)) {
		if (ring)
			busy_ring_arm(ring, &round->rng);
		sync_words(round, lap);
		if (pause)
			usleep(pause);
	}
	wait_guests(round);
	/* Under a storm, pages in doubt may come again and again. */
	for (unsigned int i = 0; i < 50 && sync_words(round, lap); i++)
		;
	for (uint64_t page = 0; page < RING_PAGES; page++)
		if (lap->copy[page] != word_of(lap, page))
			fail(NULL, -1,
			     "page %llu: its last write was not reported (%llx, copied %llx)",
			     (unsigned long long)page, (unsigned long long)word_of(lap, page),
			     (unsigned long long)lap->copy[page]);
	count(COUNT_HOST_PAGES, RING_PAGES);
	op_end(thread, 0);
}

void hammer_ring(struct round *round, struct thread *thread)
{
	uint64_t until = now_ns() + SECONDS * UINT64_C(1000000000);
	struct busy_ring *ring = NULL;
	struct ring_lap lap;

	open_vm(round, true);
	if (!round->dirty) {
		close_vm(round);
		return;
	}
	if (allowed(OP_URING) && one_in(&round->rng, 2))
		ring = busy_ring_open();
	lap.region = open_region(round, RING_PAGES, KVMEM_WANT_DIRTY);
	lap.memory = kvmem_region_base(lap.region);
	lap.copy = calloc(RING_PAGES, sizeof(*lap.copy));
	must(kvmem_dirty_start(round->dirty));
	atomic_store(&report->storming, !round->supervisor || one_in(&round->rng, 4));
	do
		ring_lap(round, thread, &lap, ring);
	while (now_ns() < until);
	atomic_store(&report->storming, 0);
	count_dirty(round->dirty);
	must(kvmem_dirty_stop(round->dirty));
	must(kvmem_dirty_free(round->dirty));
	vmm_destroy(round->vmm);
	must(kvmem_region_free(lap.region));
	must(kvmem_vm_free(round->vm));
	busy_ring_close(ring);
	free(lap.copy);
}
