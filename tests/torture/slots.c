// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Rounds of slots that come and go, by one thread: the same numbers for other parts of the memory, of other
 * lengths, while the log holds entries of the slots before them. Some are set by the VMM itself and adopted. After
 * each change the addresses are translated. What a round does depends on its seed alone.
 */
#include "torture.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#define PAGES	400u
#define SLOTS	3u
#define SECONDS 1

static struct {
	struct kvmem_region *region;
	uint64_t *memory;
	struct kvmem_reader *reader[2];
	uint64_t copy[2][PAGES]; /* the first word of each page, as of its last report to each */
	uint64_t model[PAGES];	 /* as the guest wrote it last */
	struct {
		uint32_t first, count, number; /* count 0: not attached */
		bool own;		       /* the VMM has set it */
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

static int set_slot(struct thread *thread, uint32_t number, uint64_t gpa, uint32_t first,
		    uint32_t n)
{
	struct kvm_userspace_memory_region slot = {
		.slot = number,
		.guest_phys_addr = gpa,
		.memory_size = (uint64_t)n * PAGE,
		.userspace_addr = (uintptr_t)s.memory + (uint64_t)first * PAGE,
	};

	return ioctl(kvmem_vm_fd(thread->round->vm), KVM_SET_USER_MEMORY_REGION, &slot) ? -errno
											: 0;
}

static bool is_number_taken(uint32_t number)
{
	for (unsigned int i = 0; i < SLOTS; i++)
		if (s.slot[i].count && s.slot[i].number == number)
			return true;
	return false;
}

/* A slot that the VMM sets, and tells of; now and then with a wrong claim first, which changes nothing. */
static void attach_own(struct thread *thread, unsigned int i, uint32_t first, uint32_t n)
{
	uint32_t number = 1 + (uint32_t)below(&thread->rng, 4);
	uint64_t gpa = gpa_of_page(i, first), offset = (uint64_t)first * PAGE;
	int r;

	if (is_number_taken(number))
		return;
	op_begin(thread, OP_REATTACH, NULL, first, n, number);
	if (set_slot(thread, number, gpa, first, n))
		fail(NULL, first, "slot %u could not be set", number);
	if (one_in(&thread->rng, 3) &&
	    kvmem_region_adopt_slot(s.region, offset, (uint64_t)n * PAGE,
				    one_in(&thread->rng, 2) ? gpa - PAGE : gpa + PAGE, number,
				    0) >= 0)
		fail(NULL, first, "a wrong address of slot %u was believed", number);
	r = kvmem_region_adopt_slot(s.region, offset, (uint64_t)n * PAGE, gpa, number, 0);
	if (r && r != -EBUSY)
		must(r);
	if (r && set_slot(thread, number, gpa, first, 0))
		fail(NULL, first, "slot %u is not there any more", number);
	op_end(thread, r);
	if (r)
		return;
	s.slot[i].first = first;
	s.slot[i].count = n;
	s.slot[i].number = number;
	s.slot[i].own = true;
}

/* Each page is where the slots say, and nothing is anywhere else. */
static void check_addresses(struct thread *thread)
{
	unsigned int i = (unsigned int)below(&thread->rng, SLOTS);
	uint32_t page = (uint32_t)below(&thread->rng, PAGES);
	bool there = page >= s.slot[i].first && page < s.slot[i].first + s.slot[i].count;
	struct kvmem_translation t = KVMEM_TRANSLATION_INIT;
	uint64_t gpa = gpa_of_page(i, page) + 8;
	struct kvmem_attachment a[SLOTS];
	int r = kvmem_vm_translate(thread->round->vm, 0, gpa, UINT64_MAX, &t);

	if (r != (there ? 0 : -ENOENT))
		fail(NULL, page, "translation of 0x%" PRIx64 ": %d", gpa, r);
	if (!there)
		return;
	if (t.region != s.region || t.slot != s.slot[i].number ||
	    t.offset != (uint64_t)page * PAGE + 8 || t.host != (char *)s.memory + t.offset ||
	    t.bytes < PAGE - 8)
		fail(NULL, page, "0x%" PRIx64 " leads to offset 0x%" PRIx64 " of slot %u", gpa,
		     t.offset, t.slot);
	if (must(kvmem_region_attachments(s.region, (uint64_t)page * PAGE, PAGE, a, SLOTS)) != 1 ||
	    a[0].gpa != gpa - 8 || a[0].slot != s.slot[i].number)
		fail(NULL, page, "page %u is said to be at 0x%" PRIx64, page, a[0].gpa);
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
	if (one_in(rng, 3)) {
		attach_own(thread, i, first, n);
		return;
	}
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
	s.slot[i].own = false;
}

/* The VMM deletes a slot of its own after it has told, or before. */
static void detach(struct thread *thread, unsigned int i)
{
	bool before = s.slot[i].own && one_in(&thread->rng, 2);
	uint64_t gpa = gpa_of_page(i, s.slot[i].first);

	op_begin(thread, OP_REATTACH, NULL, s.slot[i].first, s.slot[i].count, 0);
	if (before && set_slot(thread, s.slot[i].number, gpa, s.slot[i].first, 0))
		fail(NULL, s.slot[i].first, "slot %u is not there any more", s.slot[i].number);
	op_end(thread, must(kvmem_region_detach(s.region, s.slot[i].number)));
	if (s.slot[i].own && !before && set_slot(thread, s.slot[i].number, gpa, s.slot[i].first, 0))
		fail(NULL, s.slot[i].first, "slot %u is not there any more", s.slot[i].number);
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

static void sync_(struct thread *thread, unsigned int i, bool may_return)
{
	struct round *round = thread->round;
	struct kvmem_batch *batch;
	struct kvmem_run run;
	int64_t pages;

	op_begin(thread, OP_HARVEST, NULL, 0, 0, i);
	pages = op_end(thread, must(kvmem_reader_harvest(s.reader[i], &batch)));
	op_begin(thread, OP_COMMIT, NULL, 0, 0, (uint64_t)pages);
	op_end(thread, must(kvmem_dirty_commit(round->dirty, batch)));
	if (may_return && allowed(OP_RETURN) && one_in(&thread->rng, 16)) {
		op_begin(thread, OP_RETURN, NULL, 0, 0, i);
		op_end(thread, must(kvmem_batch_return(batch)));
		return;
	}
	while (must(kvmem_batch_next(batch, &run)) == 1)
		for (uint64_t page = run.offset / PAGE; page < (run.offset + run.bytes) / PAGE;
		     page++)
			s.copy[i][page] = s.memory[page * (PAGE / 8)];
	kvmem_batch_free(batch);
}

/* The reader does not want what was written so far: its copy is the memory for these pages. */
static void forget_pages(struct thread *thread, unsigned int i)
{
	uint32_t at = (uint32_t)below(&thread->rng, PAGES);
	uint32_t n = (uint32_t)between(&thread->rng, 1, PAGES - at);

	op_begin(thread, OP_FORGET, NULL, at, n, i);
	op_end(thread, must(kvmem_reader_forget(s.reader[i], s.region, (uint64_t)at * PAGE,
						(uint64_t)n * PAGE)));
	for (uint32_t page = at; page < at + n; page++)
		s.copy[i][page] = s.memory[page * (PAGE / 8)];
}

/* A device writes, and says so by guest-physical address; or the VMM does. */
static void write_beside(struct thread *thread, unsigned int i)
{
	uint32_t at = s.slot[i].first + (uint32_t)below(&thread->rng, s.slot[i].count);
	uint64_t word = guest_random(&thread->rng.state), bit = 1;

	s.memory[at * (PAGE / 8)] = s.model[at] = word;
	op_begin(thread, OP_MARK, NULL, at, 1, 0);
	if (one_in(&thread->rng, 2))
		must(kvmem_dirty_mark(thread->round->dirty, s.region, (uint64_t)at * PAGE, 8));
	else if (must(kvmem_dirty_merge_gpa(thread->round->dirty, 0, gpa_of_page(i, at), PAGE, 12,
					    &bit, KVMEM_MERGE_CLEAR)) ||
		 bit)
		fail(NULL, at, "page %u is in no slot, or its bit is not taken", at);
	op_end(thread, 0);
}

/* What is pending of each is never less than what differs. */
static void check_pending(struct thread *thread, unsigned int i)
{
	int64_t pending, differ = 0;

	op_begin(thread, OP_PENDING, NULL, 0, 0, i);
	pending = op_end(thread, must(kvmem_reader_pending(s.reader[i], s.region)));
	for (uint32_t page = 0; page < PAGES; page++)
		differ += s.copy[i][page] != s.model[page];
	if (pending < differ)
		fail(NULL, -1, "%lld pages differ, and %lld are pending", (long long)differ,
		     (long long)pending);
}

static void compare(struct thread *thread)
{
	struct area area = { .index = -1 };

	for (unsigned int i = 0; i < 2; i++)
		sync_(thread, i, false);
	for (uint32_t page = 0; page < PAGES; page++) {
		if (s.memory[page * (PAGE / 8)] != s.model[page])
			fail(&area, page, "page %u is not as the guest wrote it", page);
		for (unsigned int i = 0; i < 2; i++)
			if (s.copy[i][page] != s.model[page])
				fail(&area, page,
				     "the last write of page %u was not reported to %u", page, i);
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
	check_addresses(thread);
	if (s.slot[i].count && allowed(OP_MARK) && one_in(&thread->rng, 8))
		write_beside(thread, i);
	if (one_in(&thread->rng, 12))
		sync_(thread, (unsigned int)below(&thread->rng, 2), true);
	if (allowed(OP_FORGET) && one_in(&thread->rng, 40))
		forget_pages(thread, (unsigned int)below(&thread->rng, 2));
	if (allowed(OP_PENDING) && one_in(&thread->rng, 20))
		check_pending(thread, (unsigned int)below(&thread->rng, 2));
	if (one_in(&thread->rng, 60))
		compare(thread);
}

void hammer_slots(struct round *round, struct thread *thread)
{
	uint64_t until = now_ns() + SECONDS * UINT64_C(1000000000);
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_reader_opts ro = KVMEM_READER_OPTS_INIT;
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
	s.reader[0] = kvmem_dirty_reader(round->dirty);
	ro.regions = &s.region;
	ro.region_count = one_in(&round->rng, 2);
	must(kvmem_dirty_reader_create(round->dirty, &ro, &s.reader[1]));
	do
		step(thread);
	while (now_ns() < until);
	compare(thread);
	count_dirty(round->dirty);
	must(kvmem_dirty_stop(round->dirty));
	must(kvmem_reader_free(s.reader[1]));
	must(kvmem_dirty_free(round->dirty));
	vmm_destroy(round->vmm);
	must(kvmem_region_free(s.region));
	must(kvmem_vm_free(round->vm));
}
