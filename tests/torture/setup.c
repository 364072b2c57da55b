// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a round is made of, by its seed: VM, tracker, vCPUs, memory, sources, pager; and its end. */
#include "actors.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

void describe(const char *format, ...)
{
	size_t at = strlen(report->setup);
	va_list args;

	va_start(args, format);
	vsnprintf(report->setup + at, sizeof(report->setup) - at, format, args);
	va_end(args);
}

struct swarm swarm = { .mask = UINT64_MAX, .often = OP_COUNT };

void swarm_open(uint64_t seed)
{
	struct rng rng = rng_of(seed, 3);

	swarm.mask = UINT64_MAX;
	swarm.often = OP_COUNT;
	for (unsigned int op = 0; op < OP_HARVEST; op++)
		if (one_in(&rng, 4))
			swarm.mask &= ~(UINT64_C(1) << op);
	if (one_in(&rng, 2))
		swarm.often = (enum operation)below(&rng, OP_FORK);
}

bool is_turn(struct thread *thread, enum operation op, unsigned int weight, unsigned int of)
{
	return allowed(op) && (op == swarm.often || below(&thread->rng, of) < weight);
}

uint64_t gpa_of(const struct area *area, uint32_t page, bool other)
{
	return area->gpa + (other ? AREA_GPA_BYTES : 0) + (uint64_t)page * PAGE;
}

/* ---- the tracker ---- */

static int on_ring_full(void *arg, struct vmm_vcpu *vcpu)
{
	const struct round *round = arg;

	atomic_fetch_add_explicit(&report->done[OP_RING_FULL], 1, memory_order_relaxed);
	return (int)must(kvmem_dirty_ring_full(round->dirty, vmm_vcpu_fd(vcpu)));
}

void open_tracker(struct round *round)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	int r;

	if (!round->vm || !allowed(OP_HARVEST) ||
	    (round->kind == KIND_MIX && one_in(&round->rng, 6)))
		return;
	o.mode = one_in(&round->rng, 3) ? KVMEM_DIRTY_BITMAP : KVMEM_DIRTY_RING;
	if (round->kind == KIND_RING)
		o.mode = KVMEM_DIRTY_RING;
	o.ring_entries = o.mode == KVMEM_DIRTY_RING ? 1024u << (2 * below(&round->rng, 4)) : 0;
	if (round->supervisor)
		o.ring_entries = 65536;
	o.flags = (one_in(&round->rng, 3) ? KVMEM_DIRTY_REAPER : 0) |
		  (one_in(&round->rng, 5) ? KVMEM_DIRTY_FIRST_ALL : 0);
	r = kvmem_dirty_create(round->vm, &o, &round->dirty);
	if (r == -EOPNOTSUPP) {
		o.mode = KVMEM_DIRTY_AUTO;
		o.ring_entries = 0;
		r = kvmem_dirty_create(round->vm, &o, &round->dirty);
	}
	if (r == -EOPNOTSUPP) {
		round->dirty = NULL;
		return;
	}
	must(r);
	describe("; %s of %u%s%s",
		 kvmem_dirty_get_mode(round->dirty) == KVMEM_DIRTY_RING ? "ring" : "bitmap",
		 o.ring_entries, o.flags & KVMEM_DIRTY_REAPER ? ", reaper" : "",
		 o.flags & KVMEM_DIRTY_FIRST_ALL ? ", first-all" : "");
}

void dirty_start(struct round *round)
{
	harvest_open(round);
	reader_open(round);
	must(kvmem_dirty_start(round->dirty));
	round->tracking = true;
}

void count_dirty(const struct kvmem_dirty *dirty)
{
	struct kvmem_dirty_stats s = KVMEM_DIRTY_STATS_INIT;

	must(kvmem_dirty_get_stats(dirty, &s));
	count(COUNT_ENTRIES, s.pages);
	count(COUNT_RESETS, s.resets);
	count(COUNT_SHORT_RESETS, s.short_resets);
}

/* ---- memory ---- */

#define HUGE_SPARE 48 /* areas, what they grow by, templates */

/* A page that was punched out takes one of the pool again: where others have it, an access to it is an error. */
static bool has_huge_pages(void)
{
	FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
	char text[32] = "";

	if (f && !fgets(text, sizeof(text), f))
		text[0] = 0;
	if (f)
		fclose(f);
	return strtol(text, NULL, 10) >= HUGE_SPARE;
}

static uint32_t some_backing(struct round *round)
{
	static const uint32_t backings[] = { KVMEM_BACKING_MEMFD,	KVMEM_BACKING_MEMFD,
					     KVMEM_BACKING_MEMFD,	KVMEM_BACKING_MEMFD,
					     KVMEM_BACKING_ANONYMOUS,	KVMEM_BACKING_ANONYMOUS,
					     KVMEM_BACKING_GUEST_MEMFD, KVMEM_BACKING_HUGETLB };

	uint32_t backing = backings[below(&round->rng, sizeof(backings) / sizeof(backings[0]))];

	return backing == KVMEM_BACKING_HUGETLB && !has_huge_pages() ? KVMEM_BACKING_MEMFD
								     : backing;
}

/* Half of them: the region is then over our mapping. */
static void map_ourselves(struct round *round, struct area *area, struct kvmem_region_opts *o)
{
	int flags = area->own_fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	void *at;

	if (one_in(&round->rng, 2))
		return;
	at = mmap(NULL, o->bytes, PROT_READ | PROT_WRITE, flags, area->own_fd, 0);
	if (at == MAP_FAILED)
		fail(NULL, -1, "mmap: %s", strerror(errno));
	area->own_map = at;
	o->mapping = at;
	o->flags |= KVMEM_REGION_MAPPING;
}

static void drop_own(struct area *area)
{
	if (area->own_map && munmap(area->own_map, (size_t)area->pages * PAGE))
		fail(area, -1, "our own mapping is gone: %s", strerror(errno));
	if (area->own_fd >= 0)
		close(area->own_fd);
	area->own_map = NULL;
	area->own_fd = -1;
}

static int create_region(struct round *round, struct area *area, bool tracked)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	int r;

	o.bytes = (uint64_t)area->pages * PAGE;
	o.backing = area->backing;
	o.slot_form = KVMEM_SLOT_HVA;
	o.wants = KVMEM_WANT_PAGING | (tracked ? KVMEM_WANT_DIRTY : 0) |
		  (one_in(&round->rng, 4) ? KVMEM_WANT_CAPTURE : 0);
	if (area->backing == KVMEM_BACKING_MEMFD && one_in(&round->rng, 4)) {
		area->own_fd = memfd_create("torture", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (area->own_fd < 0 || ftruncate(area->own_fd, (off_t)o.bytes))
			fail(NULL, -1, "memfd: %s", strerror(errno));
		o.flags = KVMEM_REGION_FD;
		o.fd = area->own_fd;
	}
	if (area->backing == KVMEM_BACKING_ANONYMOUS || area->own_fd >= 0)
		map_ourselves(round, area, &o);
	area->room = area->pages;
	if (!o.flags) {
		area->room += (uint32_t)below(&round->rng, 3) * 400 * area->unit;
		o.reserve = (uint64_t)area->room * PAGE;
	}
	r = kvmem_region_create(round->vm, &o, &area->region);
	if (r)
		drop_own(area);
	return r;
}

static void create_memory(struct round *round, struct area *area, uint32_t pages)
{
	bool tracked = round->dirty && (!area->index || one_in(&round->rng, 2));
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	int r;

	area->backing = some_backing(round);
	if (options.backing)
		area->backing = options.backing;
	if (!round->vm && area->backing == KVMEM_BACKING_GUEST_MEMFD)
		area->backing = KVMEM_BACKING_MEMFD;
	area->unit = area->backing == KVMEM_BACKING_HUGETLB ? 512 : 1;
	area->pages = (pages + area->unit - 1) / area->unit * area->unit;
	r = create_region(round, area, tracked);
	if (r == -EOPNOTSUPP || r == -ENOMEM) {
		area->backing = KVMEM_BACKING_MEMFD;
		area->unit = 1;
		area->pages = pages;
		r = create_region(round, area, tracked);
	}
	must(r);
	must(kvmem_region_get_plan(area->region, &plan));
	area->tracked = tracked && plan.granted & KVMEM_WANT_DIRTY;
	area->memory = kvmem_region_base(area->region);
	area->fd = kvmem_region_fd(area->region);
	if (area->fd < 0)
		area->fd = -1;
}

static void open_sources(struct round *round, struct area *area)
{
	uint64_t bytes = (uint64_t)area->pages * PAGE, from = 0;
	enum source_kind kind = (enum source_kind)below(&round->rng, 3);

	if (allowed(OP_RAGGED) && one_in(&round->rng, 2)) {
		static const uint32_t offsets[] = { PAGE, 17 * PAGE, 512, 8, 1234, 65536 - 8 };

		from = offsets[below(&round->rng, 6)];
		bytes -= below(&round->rng, bytes / 2);
	}
	area->source_offset = from;
	for (unsigned int i = 0; i < 2; i++) {
		source_open(&round->source[area->index][i], kind,
			    guest_random(&round->rng.state) | 1, from + bytes, &round->rng);
		area->sources[i] = &round->source[area->index][i];
	}
	area->source = area->sources[0];
	describe("; area %d: %u pages of %u%s, %s source%s of %llu from %llu%s", area->index,
		 area->pages, area->backing, area->own_map ? " mapped by us" : "",
		 kind == SOURCE_CALLBACK ? "callback"
		 : kind == SOURCE_MEMORY ? "memory"
					 : "file",
		 area->source->holes ? " with holes" : "", (unsigned long long)area->source->bytes,
		 (unsigned long long)from, area->tracked ? ", tracked" : "");
}

void attach_area(struct round *round, struct area *area)
{
	uint32_t n = (uint32_t)between(&round->rng, 1, 4), units = area->pages / area->unit, at = 0;

	for (uint32_t i = 0; round->vm && i < n && at < units; i++) {
		uint32_t most = units - at,
			 take = i + 1 == n ? most : (uint32_t)between(&round->rng, 1, most);

		area->piece[i] = (struct piece){ .first = at * area->unit,
						 .count = take * area->unit,
						 .gpa = gpa_of(area, 0, one_in(&round->rng, 2)) };
		attach_piece(area, &area->piece[i], KVMEM_SLOT_ANY);
		at += take;
	}
}

static void open_area(struct round *round, unsigned int index)
{
	struct area *area = &round->area[index];

	area->index = (int)index;
	area->own_fd = area->fd = -1;
	area->gpa = GPA + index * 2 * AREA_GPA_BYTES;
	create_memory(round, area,
		      (uint32_t)between(&round->rng, 100, one_in(&round->rng, 3) ? 3000 : 600));
	area_model_open(area);
	open_sources(round, area);
	attach_area(round, area);
}

/* Pages that the VMM writes itself, before there is a pager or a populate. */
void mark_some(struct round *round, struct thread *thread)
{
	struct span span;

	for (unsigned int i = 0; allowed(OP_MARK) && i < 4; i++) {
		struct area *area = &round->area[below(&round->rng, round->own_areas)];
		uint64_t seed = guest_random(&round->rng.state) | 1;

		if (one_in(&round->rng, 2) ||
		    !claim(area, &round->rng, CLAIM_EXCLUSIVE, CLAIM_UNITS, 30, &span))
			continue;
		op_begin(thread, OP_MARK, area, span.first, span.count, 0);
		if (write_stamps(area, span.first, span.count, seed) != span.count)
			fail(area, span.first, "area %u cannot be written: %s", area->index,
			     strerror(errno));
		must(kvmem_region_mark_present(area->region, (uint64_t)span.first * PAGE,
					       (uint64_t)span.count * PAGE));
		model_zeroed(&span);
		model_written(&span, seed, (uint64_t)span.first * PAGE);
		op_end(thread, 0);
		unclaim(&span);
	}
}

/* ---- the VM ---- */

void open_guest(struct round *round)
{
	struct vmm_ops ops = { .arg = round, .ring_full = on_ring_full };

	if (vmm_create(kvmem_vm_fd(round->vm), 0, &ops, &round->vmm) ||
	    vmm_map(round->vmm, GPA, 2 * MAX_AREAS * AREA_GPA_BYTES))
		fail(NULL, -1, "%s", vmm_error());
	round->vcpus = MAX_VCPUS;
	for (unsigned int i = 0; i < round->vcpus; i++) {
		if (vmm_vcpu_create(round->vmm, i, &round->vcpu[i]))
			fail(NULL, -1, "%s", vmm_error());
		if (round->dirty)
			must(kvmem_dirty_add_vcpu(round->dirty, vmm_vcpu_fd(round->vcpu[i])));
	}
}

void round_open(struct round *round, struct thread *thread)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;

	for (unsigned int op = 0; op < OP_HARVEST; op++)
		if (!allowed((enum operation)op) && options.mask >> op & 1)
			describe("%s%s", report->setup[0] ? "," : "left out: ",
				 operation_name((enum operation)op));
	if (swarm.often < OP_COUNT)
		describe("; often: %s", operation_name(swarm.often));
	op_begin(thread, OP_SETUP, NULL, 0, 0, 0);
	o.first_slot = 1;
	if (!options.no_vcpus)
		must(kvmem_vm_create(&o, &round->vm));
	round->own_areas = round->areas = (unsigned int)between(&round->rng, 1,
								MAX_AREAS - MAX_CLONES);
	round->max_claim = one_in(&round->rng, 2) ? 16 : 200;
	round->retries = (unsigned int)below(&round->rng, 4);
	open_tracker(round);
	if (round->vm)
		open_guest(round);
	for (unsigned int i = 0; i < round->own_areas; i++)
		open_area(round, i);
	clones_open(round);
	op_end(thread, 0);
}

/* What may be freed in any order is. */
void round_close(struct round *round, struct thread *thread)
{
	bool dirty_first = one_in(&round->rng, 2);

	op_begin(thread, OP_CLOSE, NULL, 0, 0, dirty_first);
	for (unsigned int i = 0; i < round->areas && !dirty_first; i++)
		must(kvmem_region_free(round->area[i].region));
	if (round->dirty) {
		count_dirty(round->dirty);
		if (round->tracking)
			must(kvmem_dirty_stop(round->dirty));
		for (unsigned int i = 0; i < round->vcpus && one_in(&round->rng, 2); i++)
			must(kvmem_dirty_remove_vcpu(round->dirty, vmm_vcpu_fd(round->vcpu[i])));
		reader_close(round);
		must(kvmem_dirty_free(round->dirty));
	}
	for (unsigned int i = 0; i < round->areas && dirty_first; i++)
		must(kvmem_region_free(round->area[i].region));
	if (round->vm) {
		vmm_destroy(round->vmm);
		must(kvmem_vm_free(round->vm));
	}
	harvest_close(round);
	clones_close(round);
	for (unsigned int i = 0; i < round->areas; i++) {
		source_close(&round->source[i][0]);
		source_close(&round->source[i][1]);
		area_model_close(&round->area[i]);
		drop_own(&round->area[i]);
	}
	op_end(thread, 0);
}

/* ---- the pager ---- */

static struct {
	int stop_fd;
	struct thread *thread;
} loop = { .stop_fd = -1 };

/* For NO_THREADS. It waits without a limit: a wake-up that is lost is a guest that hangs. */
static void event_loop(struct thread *thread)
{
	struct round *round = thread->round;
	struct pollfd p[2] = { { .fd = kvmem_pager_fd(round->pager), .events = POLLIN },
			       { .fd = loop.stop_fd, .events = POLLIN } };

	while (!p[1].revents) {
		if (poll(p, 2, -1) < 0 || !p[0].revents)
			continue;
		op_begin(thread, OP_EVENT_LOOP, NULL, 0, 0, 0);
		op_end(thread, must(kvmem_pager_handle(round->pager)));
	}
}

void event_loop_start(struct round *round)
{
	if (!(round->pager_flags & KVMEM_PAGER_NO_THREADS))
		return;
	loop.stop_fd = eventfd(0, EFD_CLOEXEC);
	loop.thread = thread_start("event-loop", event_loop, NULL);
}

void event_loop_stop(struct round *round)
{
	uint64_t one = 1;

	(void)round;
	if (loop.stop_fd < 0)
		return;
	if (write(loop.stop_fd, &one, sizeof(one)) != sizeof(one))
		fail(NULL, -1, "eventfd: %s", strerror(errno));
	thread_join(loop.thread);
	close(loop.stop_fd);
	loop.stop_fd = -1;
}

static enum kvmem_fail_action on_fail(void *arg, const struct kvmem_fail *f)
{
	const struct round *round = arg;

	if (f->error != -EREMOTEIO)
		fail(NULL, -1,
		     "fill of %llu bytes at %llu failed with %d, which the source did not say",
		     (unsigned long long)f->bytes, (unsigned long long)f->offset, f->error);
	if (f->attempt > round->retries)
		return f->offset / PAGE % 2 ? KVMEM_FAIL_LEAVE : KVMEM_FAIL_POISON;
	usleep(50);
	return KVMEM_FAIL_RETRY;
}

bool completes_again(const struct round *round)
{
	return allowed(OP_ABSENT) || allowed(OP_ROTATE) || round->late;
}

static void on_complete(void *arg)
{
	struct round *round = arg;

	if (atomic_fetch_add(&round->completes, 1) && !completes_again(round))
		fail(NULL, -1, "`complete` of a pager came twice");
}

static void choose_pager(struct round *round, struct kvmem_pager_opts *o)
{
	o->shards = (uint32_t)between(&round->rng, 1, 3);
	o->flags = (allowed(OP_BACKGROUND) && one_in(&round->rng, 2) ? KVMEM_PAGER_BACKGROUND : 0) |
		   (allowed(OP_CAPTURE) && !one_in(&round->rng, 3) ? KVMEM_PAGER_CAPTURE : 0) |
		   (allowed(OP_EVENT_LOOP) && one_in(&round->rng, 4) ? KVMEM_PAGER_NO_THREADS : 0);
	o->workers = o->flags & KVMEM_PAGER_NO_THREADS ? 0 : (uint32_t)between(&round->rng, 1, 4);
	o->fault_around = !allowed(OP_AROUND) || one_in(&round->rng, 3) ? PAGE
			  : one_in(&round->rng, 2) ? between(&round->rng, 2, 64) * PAGE
						   : 0;
	o->fail = one_in(&round->rng, 2) ? on_fail : NULL;
	o->complete = on_complete;
	o->trace_entries = one_in(&round->rng, 3) ? 1u << between(&round->rng, 4, 12) : 0;
	o->arg = round;
	round->completes = 0;
	describe("; pager: %u x %u%s%s%s, around %llu%s", o->shards, o->workers,
		 o->flags & KVMEM_PAGER_BACKGROUND ? ", background" : "",
		 o->flags & KVMEM_PAGER_NO_THREADS ? ", event loop" : "",
		 o->flags & KVMEM_PAGER_CAPTURE ? ", capture" : "",
		 (unsigned long long)o->fault_around, o->fail ? ", fail" : "");
}

static bool add_area(struct round *round, struct thread *thread, struct area *area, bool first)
{
	int r;

	op_begin(thread, OP_SETUP, area, 0, 0, 1);
	r = kvmem_pager_add(round->pager, area->region, area->source->handle, area->source_offset,
			    0);
	op_end(thread, r);
	if (r == -EOPNOTSUPP)
		return false;
	must(r);
	atomic_store(&area->paged,
		     round->pager_flags & KVMEM_PAGER_NO_THREADS ? PAGED_NO_EVENTS : PAGED_EVENTS);
	for (uint32_t page = 0; page < area->pages && first; page++) {
		if (area->page[page].exists)
			continue;
		area->page[page].base = BASE_SOURCE;
		harvest_forget(area, page);
	}
	return true;
}

/* Parts of the area, in any order, by any method; another thread may be filling the same. */
static void populate_parts(struct thread *thread, struct area *area)
{
	for (unsigned int i = 0; i < 6; i++) {
		struct span span = some_pages_of(thread, area, area->pages);

		op_begin(thread, OP_POPULATE, area, span.first, span.count, 0);
		op_end(thread, populate_pages(thread, &span));
	}
}

static struct area *area_to_populate;

static void populate_beside(struct thread *thread)
{
	populate_parts(thread, area_to_populate);
}

static void populate_area(struct thread *thread, struct area *area)
{
	struct span all = { area, 0, area->pages, CLAIM_SHARED, 0 };
	struct thread *beside = NULL;

	if (one_in(&thread->rng, 2)) {
		area_to_populate = area;
		beside = thread_start("populate", populate_beside, NULL);
		populate_parts(thread, area);
	}
	op_begin(thread, OP_POPULATE, area, 0, area->pages, 0);
	op_end(thread, must(populate_whole(thread, &all)));
	if (beside)
		thread_join(beside);
	for (uint32_t page = 0; page < area->pages; page++)
		if (!area->page[page].exists)
			area->page[page].base = BASE_SOURCE;
}

bool pager_open(struct round *round, struct thread *thread)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct area *late[MAX_AREAS];
	unsigned int late_count = 0;
	bool first = !round->pagers++, wanted = !first || !one_in(&round->rng, 5), any = false;
	int r;

	choose_pager(round, &o);
	round->pager_flags = o.flags;
	r = wanted ? kvmem_pager_create(&o, &round->pager) : 0;
	if (r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP)
		wanted = false;
	else
		must(r);
	for (unsigned int i = 0; i < round->own_areas; i++) {
		struct area *area = &round->area[i];

		if (any && area->backing == round->area[0].backing && (first || area->paged) &&
		    one_in(&round->rng, 2))
			late[late_count++] = area; /* under the running pager */
		else if (wanted && (first || area->paged) && add_area(round, thread, area, first))
			any = true;
		else if (first)
			populate_area(thread, area);
	}
	if (!any) {
		must(kvmem_pager_free(round->pager));
		round->pager = NULL;
		round->populated = 1;
		return false;
	}
	round->late = late_count > 0;
	must(kvmem_pager_start(round->pager));
	for (unsigned int i = 0; i < late_count; i++)
		add_area(round, thread, late[i], first);
	atomic_store(&round->pager_state, PAGER_RUNNING);
	event_loop_start(round);
	return true;
}

void count_pager(const struct kvmem_pager *pager)
{
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;

	must(kvmem_pager_get_stats(pager, &s));
	count(COUNT_FAULTS, s.faults_missing + s.faults_minor);
}

void pager_close(struct round *round)
{
	count_pager(round->pager);
	atomic_store(&round->pager_state, PAGER_NONE);
	must(kvmem_pager_free(round->pager));
	round->pager = NULL;
}
