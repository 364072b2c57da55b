// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The actors that stand for the VMM's own threads: everything that is done to memory from the host. */
#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static struct area *some_area(struct thread *thread)
{
	return &thread->round->area[below(&thread->rng, thread->round->areas)];
}

static bool claim_some(struct thread *thread, enum claim how, unsigned int flags, uint32_t most,
		       struct span *span)
{
	return claim(some_area(thread), &thread->rng, how, flags,
		     (uint32_t)between(&thread->rng, 1, most), span);
}

static void begin(struct thread *thread, enum operation op, const struct span *span,
		  uint64_t argument)
{
	op_begin(thread, op, span->area, span->first, span->count, argument);
}

static void end(struct thread *thread, const struct span *span, int64_t result)
{
	op_end(thread, result);
	unclaim(span);
}

/* Any pages: for what needs no claim. */
static struct span some_pages(struct thread *thread, uint32_t most)
{
	struct area *area = some_area(thread);
	uint32_t first = (uint32_t)below(&thread->rng, area->pages);
	uint32_t n = (uint32_t)between(&thread->rng, 1, most);

	return (struct span){ area, first, n < area->pages - first ? n : area->pages - first,
			      CLAIM_SHARED, 0 };
}

/* ---- content ---- */

void merge_span(struct round *round, const struct span *span)
{
	uint64_t bitmap[BUFFER_PAGES * 16];

	if (!round->dirty || !span->area->tracked)
		return;
	memset(bitmap, 0xff, sizeof(bitmap));
	pthread_rwlock_rdlock(&round->dirty_gate);
	if (round->tracking)
		must(kvmem_dirty_merge(round->dirty, span->area->region,
				       (uint64_t)span->first * PAGE, (uint64_t)span->count * PAGE,
				       12, bitmap));
	pthread_rwlock_unlock(&round->dirty_gate);
}

/* As a device or the VMM writes: in no log of KVM. */
static void host_write(struct thread *thread)
{
	uint64_t seed = guest_random(&thread->rng.state) | 1;
	struct span span;
	uint32_t n;

	if (!claim_some(thread, CLAIM_EXCLUSIVE, 0, 20, &span))
		return;
	begin(thread, OP_HOST_WRITE, &span, 0);
	n = write_stamps(span.area, span.first, span.count, seed);
	if (n < span.count)
		fail(span.area, span.first + n, "area %d page %u cannot be written: %s",
		     span.area->index, span.first + n, strerror(errno));
	model_written(&span, seed, (uint64_t)span.first * PAGE);
	merge_span(thread->round, &span);
	end(thread, &span, 0);
}

static void host_check(struct thread *thread)
{
	struct span span;

	if (!claim_some(thread, CLAIM_SHARED, 0, 64, &span))
		return;
	begin(thread, OP_HOST_CHECK, &span, 0);
	check_pages(span.area, span.first, span.count, "host");
	end(thread, &span, 0);
}

/* ---- filling ---- */

static int populate_pages(struct thread *thread, const struct span *span)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	const struct source *source = span->area->source;
	uint64_t from = source_offset_of(span->area, span->first);

	if (from >= source->bytes)
		return 0;
	o.source_offset = from;
	o.bytes = (uint64_t)span->count * PAGE;
	if (o.bytes > source->bytes - from)
		o.bytes = source->bytes - from;
	o.threads = (uint32_t)between(&thread->rng, 0, 2);
	o.chunk_bytes = one_in(&thread->rng, 2) ? 0 : between(&thread->rng, 1, 32) * PAGE;
	o.flags = one_in(&thread->rng, 4) ? KVMEM_POPULATE_KEEP_ZERO : 0;
	return kvmem_populate(span->area->region, (uint64_t)span->first * PAGE, source->handle, &o,
			      NULL);
}

/* Without a claim: it fills what is absent with what is its content already, or finds it there. */
static void populate(struct thread *thread)
{
	struct span span = some_pages(thread, 300);
	int r;

	if (!span.area->paged && !thread->round->populated)
		return;
	begin(thread, OP_POPULATE, &span, 0);
	r = populate_pages(thread, &span);
	if (r && r != -EREMOTEIO)
		must(r);
	op_end(thread, r);
}

static void prefetch(struct thread *thread)
{
	struct round *round = thread->round;
	struct kvmem_run runs[4];
	struct span span = some_pages(thread, 100);
	size_t n = between(&thread->rng, 1, 4);
	int r = 0;

	for (size_t i = 0; i < n; i++) {
		struct span s = i ? some_pages(thread, 50) : span;

		if (!s.area->paged)
			return;
		runs[i] = (struct kvmem_run){ s.area->region, (uint64_t)s.first * PAGE,
					      (uint64_t)s.count * PAGE };
		if (s.area->unit > 1)
			runs[i].offset = runs[i].offset / s.area->unit / PAGE * s.area->unit * PAGE;
	}
	pthread_rwlock_rdlock(&round->pager_gate);
	if (round->pager_state == PAGER_RUNNING) {
		begin(thread, OP_PREFETCH, &span, n);
		r = kvmem_pager_prefetch(round->pager, runs, n);
		if (r && round->pager_state == PAGER_RUNNING)
			must(r);
		op_end(thread, r);
	}
	pthread_rwlock_unlock(&round->pager_gate);
}

static void wait_pager(struct thread *thread)
{
	struct round *round = thread->round;
	int64_t ns = (int64_t)below(&thread->rng, 500000);
	int r;

	pthread_rwlock_rdlock(&round->pager_gate);
	if (round->pager_state == PAGER_RUNNING && !(round->pager_flags & KVMEM_PAGER_NO_THREADS)) {
		op_begin(thread, OP_WAIT, NULL, 0, 0, (uint64_t)ns);
		r = kvmem_pager_wait(round->pager, ns);
		if (r && r != -ETIMEDOUT && r != -EREMOTEIO && round->pager_state == PAGER_RUNNING)
			must(r);
		op_end(thread, r);
	}
	pthread_rwlock_unlock(&round->pager_gate);
}

/* ---- taking away ---- */

static void discard(struct thread *thread)
{
	struct span span;
	int r;

	if (!claim_some(thread, CLAIM_EXCLUSIVE, CLAIM_UNITS, 70, &span))
		return;
	begin(thread, OP_DISCARD, &span, 0);
	r = kvmem_region_discard(span.area->region, (uint64_t)span.first * PAGE,
				 (uint64_t)span.count * PAGE);
	must(r);
	model_zeroed(&span);
	end(thread, &span, 0);
}

enum after { KEEPS, ZEROES };

/* What becomes of a page that had content, and of one that was absent, by the kernel's rules and the manual. */
static void balloon_rules(enum operation op, const struct area *area, enum after *present,
			  enum after *absent)
{
	bool anonymous = area->backing == KVMEM_BACKING_ANONYMOUS,
	     told = area->paged == PAGED_EVENTS;

	*present = op == OP_DONTNEED && !anonymous ? KEEPS : ZEROES;
	*absent = op != OP_PUNCH && told ? ZEROES : KEEPS;
}

static void balloon_page(const struct area *area, uint32_t page, enum after present,
			 enum after absent)
{
	struct page *p = &area->page[page];
	bool may_be_absent = area->paged && !p->exists && p->base != BASE_ZERO &&
			     p->generation == area->generation;
	bool may_be_present = !may_be_absent ||
			      source_may_be_read(area->source, source_offset_of(area, page), PAGE);
	enum after one = may_be_present ? present : absent,
		   other = may_be_absent ? absent : present;

	if (one == KEEPS && other == KEEPS)
		return;
	if (one == ZEROES && other == ZEROES) {
		p->base = BASE_ZERO;
		p->seed = 0;
		p->exists = 0;
	} else {
		p->base = BASE_EITHER;
	}
}

static int take_away(enum operation op, const struct span *span)
{
	unsigned char *at = span->area->memory + (size_t)span->first * PAGE;
	size_t bytes = (size_t)span->count * PAGE;

	switch (op) {
	case OP_PUNCH:
		return fallocate(span->area->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 (off_t)span->first * PAGE, (off_t)bytes);
	case OP_REMOVE:
		munlock(at, bytes);
		return madvise(at, bytes, MADV_REMOVE);
	default:
		munlock(at, bytes);
		return madvise(at, bytes, MADV_DONTNEED);
	}
}

/* A balloon of the VMM's own, which does not ask the library. It reports to the tracker, as the manual asks. */
static void balloon(struct thread *thread, enum operation op)
{
	enum after present, absent;
	struct span span;
	int before;

	if (!claim_some(thread, CLAIM_EXCLUSIVE, CLAIM_UNITS, 70, &span))
		return;
	if (span.area->backing == KVMEM_BACKING_GUEST_MEMFD ||
	    (op != OP_DONTNEED && span.area->fd < 0) ||
	    (!span.area->paged && !thread->round->populated)) {
		unclaim(&span);
		return;
	}
	begin(thread, op, &span, 0);
	before = span.area->paged;
	if (take_away(op, &span))
		fail(span.area, span.first, "%s: %s", operation_name(op), strerror(errno));
	balloon_rules(op, span.area, &present, &absent);
	/* The pager is being stopped: it may have seen this, or have been gone. */
	if (before != span.area->paged || thread->round->pager_state == PAGER_STOPPING) {
		for (uint32_t i = 0; i < span.count; i++) {
			struct page *p = &span.area->page[span.first + i];

			if (present == ZEROES && p->exists)
				balloon_page(span.area, span.first + i, ZEROES, ZEROES);
			else if (!p->exists && p->base != BASE_ZERO)
				p->base = BASE_EITHER;
		}
	} else {
		for (uint32_t i = 0; i < span.count; i++)
			balloon_page(span.area, span.first + i, present, absent);
	}
	merge_span(thread->round, &span);
	end(thread, &span, 0);
}

static void dontneed(struct thread *thread)
{
	balloon(thread, OP_DONTNEED);
}

static void remove_(struct thread *thread)
{
	balloon(thread, OP_REMOVE);
}

static void punch(struct thread *thread)
{
	balloon(thread, OP_PUNCH);
}

/* ---- splitting the mapping ---- */

static void advise(struct thread *thread)
{
	static const int advices[] = { MADV_DONTDUMP,	MADV_DODUMP,  MADV_HUGEPAGE,
				       MADV_NOHUGEPAGE, MADV_RANDOM,  MADV_SEQUENTIAL,
				       MADV_NORMAL,	MADV_DONTDUMP };
	struct span span = some_pages(thread, 200);
	int advice = advices[below(&thread->rng, 8)], r;

	begin(thread, OP_ADVISE, &span, (uint64_t)advice);
	r = madvise(span.area->memory + (size_t)span.first * PAGE, (size_t)span.count * PAGE,
		    advice);
	op_end(thread, r ? -errno : 0);
}

static void lock(struct thread *thread)
{
	struct span span;
	void *at;
	int r;

	if (!claim_some(thread, CLAIM_SHARED, 0, 40, &span))
		return;
	at = span.area->memory + (size_t)span.first * PAGE;
	begin(thread, OP_LOCK, &span, 0);
	if (one_in(&thread->rng, 2))
		r = munlock(at, (size_t)span.count * PAGE);
	else
		r = mlock2(at, (size_t)span.count * PAGE,
			   one_in(&thread->rng, 2) ? MLOCK_ONFAULT : 0);
	end(thread, &span, r ? -errno : 0);
}

/* There and back. Pages that are filled meanwhile must have a way that asks for no right to write. */
static void protect(struct thread *thread)
{
	struct span span;
	void *at;

	if (!claim_some(thread, CLAIM_EXCLUSIVE, 0, 40, &span))
		return;
	if (!span.area->paged && !thread->round->populated) {
		unclaim(&span);
		return;
	}
	at = span.area->memory + (size_t)span.first * PAGE;
	begin(thread, OP_PROTECT, &span, 0);
	if (mprotect(at, (size_t)span.count * PAGE, PROT_READ))
		fail(span.area, span.first, "mprotect: %s", strerror(errno));
	usleep((useconds_t)below(&thread->rng, 300));
	if (mprotect(at, (size_t)span.count * PAGE, PROT_READ | PROT_WRITE))
		fail(span.area, span.first, "mprotect back: %s", strerror(errno));
	end(thread, &span, 0);
}

static void policy(struct thread *thread)
{
	static const uint32_t modes[] = { KVMEM_POLICY_DEFAULT, KVMEM_POLICY_BIND,
					  KVMEM_POLICY_PREFERRED, KVMEM_POLICY_INTERLEAVE };
	struct span span = some_pages(thread, 200);
	struct area *area = span.area;
	uint32_t mode = modes[below(&thread->rng, 4)];
	unsigned long node = 1;
	int r;

	span.first -= span.first % area->unit;
	span.count = (span.count + area->unit - 1) / area->unit * area->unit;
	pthread_mutex_lock(&area->policy_lock);
	begin(thread, OP_POLICY, &span, mode);
	r = kvmem_region_set_policy(area->region, (uint64_t)span.first * PAGE,
				    (uint64_t)span.count * PAGE, mode,
				    mode == KVMEM_POLICY_DEFAULT ? NULL : &node,
				    mode == KVMEM_POLICY_DEFAULT ? 0 : 8, KVMEM_POLICY_FUTURE);
	if (r != -EOPNOTSUPP)
		must(r);
	op_end(thread, r);
	pthread_mutex_unlock(&area->policy_lock);
}

/* ---- slots ---- */

void attach_piece(struct area *area, struct piece *piece, uint32_t slot)
{
	uint64_t gpa = piece->gpa + (uint64_t)piece->first * PAGE;
	int r;

	r = kvmem_region_attach(area->region, (uint64_t)piece->first * PAGE,
				(uint64_t)piece->count * PAGE, gpa, slot, 0, &piece->slot);
	if ((r == -EEXIST || r == -EBUSY) && slot != KVMEM_SLOT_ANY)
		r = kvmem_region_attach(area->region, (uint64_t)piece->first * PAGE,
					(uint64_t)piece->count * PAGE, gpa, KVMEM_SLOT_ANY, 0,
					&piece->slot);
	must(r);
	pthread_mutex_lock(&area->lock);
	piece->attached = true;
	pthread_mutex_unlock(&area->lock);
}

static uint32_t other_slot(struct thread *thread, const struct piece *piece)
{
	switch (below(&thread->rng, 3)) {
	case 0:
		return piece->slot;
	case 1:
		return (uint32_t)between(&thread->rng, 1, 40);
	default:
		return KVMEM_SLOT_ANY;
	}
}

/* With the piece claimed: its second half becomes a piece of its own. Returns its index, or MAX_PIECES. */
static unsigned int split_piece(struct area *area, struct piece *piece, struct rng *rng)
{
	unsigned int i = 0;
	uint32_t at;

	if (piece->count < 2 * area->unit)
		return MAX_PIECES;
	pthread_mutex_lock(&area->lock);
	while (i < MAX_PIECES && area->piece[i].count)
		i++;
	if (i < MAX_PIECES) {
		at = (uint32_t)between(rng, 1, piece->count / area->unit - 1) * area->unit;
		area->piece[i] = (struct piece){ .first = piece->first + at,
						 .count = piece->count - at,
						 .gpa = gpa_of(area, 0, one_in(rng, 2)),
						 .closing = true };
		piece->count = at;
	}
	pthread_mutex_unlock(&area->lock);
	return i;
}

/* With the piece claimed: the one behind it becomes part of it, when that can be had too. */
static void join_piece(struct area *area, struct piece *piece)
{
	struct span span;

	for (unsigned int i = 0; i < MAX_PIECES; i++) {
		struct piece *next = &area->piece[i];

		if (!next->count || next->first != piece->first + piece->count ||
		    !claim_piece(area, i, &span))
			continue;
		must(kvmem_region_detach(area->region, next->slot));
		pthread_mutex_lock(&area->lock);
		piece->count += next->count;
		next->count = 0;
		next->attached = next->closing = false;
		pthread_mutex_unlock(&area->lock);
		return;
	}
}

static void reattach(struct thread *thread)
{
	struct area *area = some_area(thread);
	unsigned int index = (unsigned int)below(&thread->rng, MAX_PIECES), other = MAX_PIECES;
	struct piece *piece = &area->piece[index];
	uint64_t how = below(&thread->rng, 3);
	struct span span;

	/* Not while it is empty: nobody else makes a piece of this index but under its own claim. */
	if (!claim_piece(area, index, &span))
		return;
	op_begin(thread, OP_REATTACH, area, span.first, span.count, piece->slot);
	must(kvmem_region_detach(area->region, piece->slot));
	pthread_mutex_lock(&area->lock);
	piece->attached = false;
	piece->gpa = gpa_of(area, 0, one_in(&thread->rng, 2));
	pthread_mutex_unlock(&area->lock);
	if (how == 0)
		other = split_piece(area, piece, &thread->rng);
	else if (how == 1)
		join_piece(area, piece);
	if (one_in(&thread->rng, 4))
		usleep((useconds_t)below(&thread->rng, 2000));
	attach_piece(area, piece, other_slot(thread, piece));
	if (other < MAX_PIECES) {
		attach_piece(area, &area->piece[other], KVMEM_SLOT_ANY);
		unclaim_piece(area, other);
	}
	op_end(thread, piece->slot);
	unclaim_piece(area, index);
}

/* ---- sources that fail and recover ---- */

/* The source has recovered: the pages get their content, and can be accessed. */
bool heal(struct thread *thread, struct span *span, bool by_discard)
{
	int r;

	if (by_discard && allowed(OP_DISCARD) && span->area->unit == 1) {
		must(kvmem_region_discard(span->area->region, (uint64_t)span->first * PAGE,
					  (uint64_t)span->count * PAGE));
		model_zeroed(span);
	} else {
		r = populate_pages(thread, span);
		if (r)
			must(r);
	}
	for (uint32_t i = 0; i < span->count; i++)
		span->area->page[span->first + i].bad = 0;
	check_pages(span->area, span->first, span->count,
		    by_discard ? "healed by discard" : "healed");
	return true;
}

static void poison(struct thread *thread)
{
	struct span span;

	if (!claim_some(thread, CLAIM_EXCLUSIVE, CLAIM_UNITS, 12, &span))
		return;
	if (!span.area->paged || span.area->source->kind != SOURCE_CALLBACK) {
		unclaim(&span);
		return;
	}
	begin(thread, OP_POISON, &span, 0);
	for (uint32_t i = 0; i < span.count; i++)
		span.area->page[span.first + i].bad = 1;
	source_fail(span.area->source, thread->index, source_offset_of(span.area, span.first),
		    (uint64_t)span.count * PAGE);
	if (one_in(&thread->rng, 2))
		check_pages(span.area, span.first, span.count, "host, at a source that fails");
	if (one_in(&thread->rng, 3))
		(void)populate_pages(thread, &span);
	usleep((useconds_t)below(&thread->rng, 500));
	source_recover(span.area->source, thread->index);
	heal(thread, &span, one_in(&thread->rng, 3));
	end(thread, &span, 0);
}

static void slow(struct thread *thread)
{
	struct area *area = some_area(thread);

	op_begin(thread, OP_SLOW, area, 0, 0, 0);
	atomic_store(&area->source->slow_ns, between(&thread->rng, 20000, 1000000));
	usleep((useconds_t)below(&thread->rng, 5000));
	atomic_store(&area->source->slow_ns, 0);
	op_end(thread, 0);
}

/* ---- the rest of the process ---- */

static void fork_(struct thread *thread)
{
	int status = 0;
	pid_t pid;

	op_begin(thread, OP_FORK, NULL, 0, 0, 0);
	pid = fork();
	if (!pid)
		_exit(0);
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	op_end(thread, status);
}

static void check_missing(struct span *span)
{
	struct area *area = span->area;

	for (uint32_t i = span->first; i < span->first + span->count; i++) {
		uint64_t until = now_ns() + 5000000000u;
		struct kvmem_run run;

		/* A page can be accessed a moment before the record says so. */
		while (area->page[i].exists &&
		       must(kvmem_region_next_missing(area->region, (uint64_t)i * PAGE, &run)) &&
		       run.offset <= (uint64_t)i * PAGE) {
			if (now_ns() > until)
				fail(area, i, "area %d page %u has content, and counts as missing",
				     area->index, i);
			usleep(100);
		}
	}
}

static void query(struct thread *thread)
{
	struct kvmem_placement placement = KVMEM_PLACEMENT_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	uint64_t nodes[4] = { 0 };
	struct span span;

	if (!claim_some(thread, CLAIM_SHARED, CLAIM_UNITS, 20, &span))
		return;
	begin(thread, OP_QUERY, &span, 0);
	placement.nodes = nodes;
	placement.node_count = 4;
	must(kvmem_region_placement(span.area->region, (uint64_t)span.first * PAGE,
				    (uint64_t)span.count * PAGE, &placement));
	must(kvmem_region_get_plan(span.area->region, &plan));
	if (span.area->paged)
		check_missing(&span);
	end(thread, &span, (int64_t)placement.present);
}

static const struct {
	enum operation op;
	unsigned int weight;
	void (*act)(struct thread *thread);
} acts[] = {
	{ OP_HOST_WRITE, 10, host_write },
	{ OP_HOST_CHECK, 20, host_check },
	{ OP_POPULATE, 4, populate },
	{ OP_PREFETCH, 10, prefetch },
	{ OP_WAIT, 3, wait_pager },
	{ OP_DISCARD, 12, discard },
	{ OP_DONTNEED, 12, dontneed },
	{ OP_REMOVE, 8, remove_ },
	{ OP_PUNCH, 10, punch },
	{ OP_ADVISE, 5, advise },
	{ OP_LOCK, 4, lock },
	{ OP_PROTECT, 4, protect },
	{ OP_POLICY, 4, policy },
	{ OP_REATTACH, 6, reattach },
	{ OP_POISON, 4, poison },
	{ OP_SLOW, 1, slow },
	{ OP_FORK, 1, fork_ },
	{ OP_QUERY, 4, query },
};

void host_actor(struct thread *thread)
{
	while (go_on(thread)) {
		unsigned int i = (unsigned int)below(&thread->rng, sizeof(acts) / sizeof(acts[0]));

		if (is_turn(thread, acts[i].op, acts[i].weight, 20))
			acts[i].act(thread);
		if (one_in(&thread->rng, 8))
			usleep((useconds_t)below(&thread->rng, 200));
	}
}
