// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Rounds of slots that come and go, by one thread: the same numbers for other parts of the memory, of other
 * lengths, while the log holds entries of the slots before them. What a round does depends on its seed alone.
 */
#include "torture.h"

#include <errno.h>

#define PAGES	400u
#define SLOTS	3u
#define SECONDS 1

static struct {
	struct kvmem_region *region;
	uint64_t *memory;
	uint64_t copy[PAGES];  /* the first word of each page, as of its last report */
	uint64_t model[PAGES]; /* as the guest wrote it last */
	struct {
		uint32_t first, count, number; /* count 0: not attached */
	} slot[SLOTS];
} s;

static uint64_t gpa_of_page(unsigned int slot, uint32_t page)
{
	return GPA + slot * (uint64_t)PAGES * PAGE + (uint64_t)page * PAGE;
}

static bool is_attached(uint32_t first, uint32_t count_)
{
	for (unsigned int i = 0; i < SLOTS; i++)
		if (s.slot[i].count && first < s.slot[i].first + s.slot[i].count &&
		    s.slot[i].first < first + count_)
			return true;
	return false;
}

static void attach(struct thread *thread, unsigned int i)
{
	struct rng *rng = &thread->rng;
	uint32_t first = one_in(rng, 2) ? 0 : (uint32_t)below(rng, PAGES);
	uint32_t n = (uint32_t)between(rng, 1, PAGES - first);
	uint32_t number = one_in(rng, 4) ? KVMEM_SLOT_ANY : 1 + (uint32_t)below(rng, 4);
	int r;

	if (is_attached(first, n))
		return;
	op_begin(thread, OP_REATTACH, NULL, first, n, number);
	r = kvmem_region_attach(s.region, (uint64_t)first * PAGE, (uint64_t)n * PAGE,
				gpa_of_page(i, first), number, 0, &s.slot[i].number);
	if (number == KVMEM_SLOT_ANY || (r && r != -EEXIST && r != -EBUSY))
		must(r);
	op_end(thread, r);
	if (r)
		return;
	s.slot[i].first = first;
	s.slot[i].count = n;
}

static void detach(struct thread *thread, unsigned int i)
{
	op_begin(thread, OP_REATTACH, NULL, s.slot[i].first, s.slot[i].count, 0);
	op_end(thread, must(kvmem_region_detach(s.region, s.slot[i].number)));
	s.slot[i].count = 0;
}

static void write_pages(struct thread *thread, unsigned int i)
{
	struct vmm_vcpu *vcpu = thread->round->vcpu[below(&thread->rng, thread->round->vcpus)];
	uint32_t at = s.slot[i].first + (uint32_t)below(&thread->rng, s.slot[i].count);
	uint32_t most = s.slot[i].first + s.slot[i].count - at,
		 n = (uint32_t)between(&thread->rng, 1, 6);
	uint64_t seed = guest_random(&thread->rng.state) | 1;

	n = n < most ? n : most;
	*vmm_mailbox(vcpu) = (struct guest_mailbox){ .command = GUEST_FILL,
						     .gpa = gpa_of_page(i, at),
						     .bytes = (uint64_t)n * PAGE,
						     .page = PAGE,
						     .step = PAGE,
						     .seed = seed };
	op_begin(thread, OP_GUEST_WRITE, NULL, at, n, seed);
	if (vmm_run(vcpu))
		fail(NULL, -1, "%s", vmm_error());
	op_end(thread, 0);
	for (uint32_t page = at; page < at + n; page++)
		s.model[page] = guest_pattern(seed, gpa_of_page(i, page));
}

static int64_t sync_(struct thread *thread)
{
	struct round *round = thread->round;
	struct kvmem_batch *batch;
	struct kvmem_run run;
	int64_t pages;

	op_begin(thread, OP_HARVEST, NULL, 0, 0, 0);
	pages = op_end(thread, must(kvmem_dirty_harvest(round->dirty, &batch)));
	if (!pages)
		return 0;
	op_begin(thread, OP_COMMIT, NULL, 0, 0, (uint64_t)pages);
	op_end(thread, must(kvmem_dirty_commit(round->dirty, batch)));
	while (must(kvmem_batch_next(batch, &run)) == 1)
		for (uint64_t page = run.offset / PAGE; page < (run.offset + run.bytes) / PAGE;
		     page++)
			s.copy[page] = s.memory[page * (PAGE / 8)];
	kvmem_batch_free(batch);
	return pages;
}

static void compare(struct thread *thread)
{
	struct area area = { .index = -1 };

	sync_(thread);
	for (uint32_t page = 0; page < PAGES; page++) {
		if (s.memory[page * (PAGE / 8)] != s.model[page])
			fail(&area, page, "page %u is not as the guest wrote it", page);
		if (s.copy[page] != s.model[page])
			fail(&area, page, "the last write of page %u was not reported", page);
	}
	count(COUNT_HOST_PAGES, PAGES);
}

static void step(struct thread *thread)
{
	unsigned int i = (unsigned int)below(&thread->rng, SLOTS);

	if (!s.slot[i].count)
		attach(thread, i);
	else if (one_in(&thread->rng, 5))
		detach(thread, i);
	else
		write_pages(thread, i);
	if (one_in(&thread->rng, 12))
		sync_(thread);
	if (one_in(&thread->rng, 60))
		compare(thread);
}

void hammer_slots(struct round *round, struct thread *thread)
{
	uint64_t until = now_ns() + SECONDS * UINT64_C(1000000000);
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;

	vo.first_slot = 1;
	must(kvmem_vm_create(&vo, &round->vm));
	open_tracker(round);
	if (!round->dirty) {
		must(kvmem_vm_free(round->vm));
		return;
	}
	open_guest(round);
	o.bytes = (uint64_t)PAGES * PAGE;
	o.backing = one_in(&round->rng, 3) ? KVMEM_BACKING_ANONYMOUS : KVMEM_BACKING_MEMFD;
	o.needs = KVMEM_WANT_DIRTY;
	must(kvmem_region_create(round->vm, &o, &s.region));
	s.memory = kvmem_region_base(s.region);
	must(kvmem_dirty_start(round->dirty));
	do
		step(thread);
	while (now_ns() < until);
	compare(thread);
	count_dirty(round->dirty);
	must(kvmem_dirty_stop(round->dirty));
	must(kvmem_dirty_free(round->dirty));
	vmm_destroy(round->vmm);
	must(kvmem_region_free(s.region));
	must(kvmem_vm_free(round->vm));
}
