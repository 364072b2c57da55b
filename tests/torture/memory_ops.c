// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What is done to memory beneath the guest: pages taken away, by the library and past it, and mappings split. */
#include "actors.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- taking away ---- */

void discard(struct thread *thread)
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

static bool any_bad(const struct span *span)
{
	for (uint32_t i = span->first; i < span->first + span->count; i++)
		if (span->area->page[i].bad)
			return true;
	return false;
}

static void make_absent(struct thread *thread, struct span *span)
{
	begin(thread, OP_ABSENT, span, 0);
	must(kvmem_region_mark_absent(span->area->region, (uint64_t)span->first * PAGE,
				      (uint64_t)span->count * PAGE, KVMEM_ABSENT_ATTACHED));
	for (uint32_t i = span->first; i < span->first + span->count; i++) {
		struct page *p = &span->area->page[i];

		p->seed = 0;
		p->base = BASE_SOURCE;
		p->exists = 0;
		p->generation = span->area->generation;
	}
	end(thread, span, 0);
}

/* Their source's content again, whatever was written over it. */
void mark_absent(struct thread *thread)
{
	struct round *round = thread->round;
	struct span span;

	pthread_rwlock_rdlock(&round->pager_gate);
	if (round->pager_state == PAGER_RUNNING &&
	    claim_some(thread, CLAIM_EXCLUSIVE, CLAIM_UNITS, 40, &span)) {
		if (span.area->paged && !any_bad(&span))
			make_absent(thread, &span);
		else
			unclaim(&span);
	}
	pthread_rwlock_unlock(&round->pager_gate);
}

/* What absent pages would get from their source, before anybody asks for it. */
void put_pages(struct thread *thread)
{
	static _Thread_local unsigned char buffer[BUFFER_PAGES * PAGE];
	struct round *round = thread->round;
	struct span span;

	pthread_rwlock_rdlock(&round->pager_gate);
	if (round->pager_state == PAGER_RUNNING &&
	    claim_some(thread, CLAIM_SHARED, CLAIM_UNITS, BUFFER_PAGES, &span)) {
		if (span.area->paged && span.count <= BUFFER_PAGES) {
			begin(thread, OP_PUT, &span, 0);
			source_was_read(span.area->source, source_offset_of(span.area, span.first),
					(uint64_t)span.count * PAGE);
			for (uint32_t i = 0; i < span.count; i++)
				source_content(span.area->source,
					       source_offset_of(span.area, span.first + i),
					       buffer + (size_t)i * PAGE, PAGE);
			must(kvmem_pager_put(round->pager, span.area->region,
					     (uint64_t)span.first * PAGE, buffer,
					     (uint64_t)span.count * PAGE));
			end(thread, &span, 0);
		} else {
			unclaim(&span);
		}
	}
	pthread_rwlock_unlock(&round->pager_gate);
}

/* A region leaves the pager, filled, and comes back, under guests that go on. */
void rotate(struct thread *thread)
{
	struct round *round = thread->round;
	struct area *area = &round->area[below(&thread->rng, round->areas)];
	bool captured;
	int r;

	pthread_rwlock_wrlock(&round->pager_gate);
	captured = round->capturing;
	if (round->pager_state == PAGER_RUNNING && area->paged &&
	    !(round->pager_flags & KVMEM_PAGER_NO_THREADS)) {
		op_begin(thread, OP_ROTATE, area, 0, 0, 0);
		r = kvmem_pager_remove(round->pager, area->region, KVMEM_STOP_FILL);
		if (r == -EBUSY && captured) {
			op_end(thread, r);
			pthread_rwlock_unlock(&round->pager_gate);
			return;
		}
		if (r != -EREMOTEIO)
			must(r);
		do /* another thread may be discarding */
			r = kvmem_pager_add(round->pager, area->region, area->source->handle,
					    area->source_offset, 0);
		while (r == -EBUSY);
		op_end(thread, must(r));
	}
	pthread_rwlock_unlock(&round->pager_gate);
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

	/* What the clone wrote is gone; where nothing lies over the template, that is seen again. */
	if (area->clone) {
		p->seed = 0;
		p->exists = 0;
		if (area->unit > 1) /* zeros of a discard were written, and go with the rest */
			p->base = BASE_SOURCE;
		return;
	}
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

/* Past the sanitizers, whose munlock() does nothing, while their mlock2() does. */
static int unlock(void *at, size_t bytes)
{
	return (int)syscall(SYS_munlock, at, bytes);
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
		unlock(at, bytes);
		return madvise(at, bytes, MADV_REMOVE);
	default:
		unlock(at, bytes);
		return madvise(at, bytes, MADV_DONTNEED);
	}
}

/* A balloon of the VMM's own, which does not ask the library. It reports to the tracker, as the manual asks. */
static void balloon(struct thread *thread, enum operation op)
{
	enum after present, absent;
	struct span span;
	bool alone = false;
	int before;

	if (!claim_some(thread, CLAIM_EXCLUSIVE, CLAIM_UNITS, 70, &span))
		return;
	if (op == OP_PUNCH || span.area->paged != PAGED_EVENTS ||
	    thread->round->pager_state == PAGER_STOPPING) {
		alone = fills_keep_out();
		if (!alone) {
			unclaim(&span);
			return;
		}
	}
	if (span.area->backing == KVMEM_BACKING_GUEST_MEMFD ||
	    (op != OP_DONTNEED && span.area->fd < 0) ||
	    (!span.area->paged && !is_filled(thread->round, span.area)) ||
	    /* Captured memory is given back by kvmem_region_discard() alone. */
	    thread->round->capturing) {
		if (alone)
			fills_let_in();
		unclaim(&span);
		return;
	}
	begin(thread, op, &span, 0);
	before = span.area->paged;
	if (take_away(op, &span))
		fail(span.area, span.first, "%s: %s", operation_name(op), strerror(errno));
	balloon_rules(op, span.area, &present, &absent);
	/* The pager is being stopped: it may have seen this, or have been gone. */
	if (!span.area->clone &&
	    (before != span.area->paged || thread->round->pager_state == PAGER_STOPPING)) {
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
	if (alone)
		fills_let_in();
	merge_span(thread->round, &span);
	end(thread, &span, 0);
}

void dontneed(struct thread *thread)
{
	balloon(thread, OP_DONTNEED);
}

void remove_range(struct thread *thread)
{
	balloon(thread, OP_REMOVE);
}

void punch(struct thread *thread)
{
	balloon(thread, OP_PUNCH);
}

/* ---- splitting the mapping ---- */

void advise(struct thread *thread)
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

void lock_range(struct thread *thread)
{
	struct span span;
	void *at;
	int r;

	if (!claim_some(thread, CLAIM_SHARED, 0, 40, &span))
		return;
	at = span.area->memory + (size_t)span.first * PAGE;
	begin(thread, OP_LOCK, &span, 0);
	if (one_in(&thread->rng, 2))
		r = unlock(at, (size_t)span.count * PAGE);
	else
		r = mlock2(at, (size_t)span.count * PAGE,
			   one_in(&thread->rng, 2) ? MLOCK_ONFAULT : 0);
	end(thread, &span, r ? -errno : 0);
}

/* There and back. Pages that are filled meanwhile must have a way that asks for no right to write. */
void protect(struct thread *thread)
{
	struct span span;
	void *at;

	if (!claim_some(thread, CLAIM_EXCLUSIVE, CLAIM_UNITS, 40, &span))
		return;
	if (!span.area->paged && !is_filled(thread->round, span.area)) {
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

void policy(struct thread *thread)
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

/* ---- growth ---- */

/* What is added is zero, whatever the source has, and keeps what is written to it. */
static void check_grown(struct area *area, uint32_t from, uint32_t to)
{
	for (uint32_t page = area->pages; page < to; page++) {
		uint64_t *word = (void *)(area->memory + (size_t)page * PAGE + GROWN_WORD(page));
		uint64_t want = page < from ? page : 0;

		if (page < from && page % 7 && from - page > 8)
			continue;
		if (*word != want)
			fail(area, page, "page %u, added later, holds %llu and not %llu", page,
			     (unsigned long long)*word, (unsigned long long)want);
		*word = page;
	}
}

/* While a pager answers faults: elsewhere what is added is absent, and the next source would fill it. */
void grow(struct thread *thread)
{
	struct round *round = thread->round;
	struct span span = some_pages(thread, 1);
	struct area *area = span.area;
	uint32_t from, to;

	pthread_rwlock_rdlock(&round->pager_gate);
	pthread_mutex_lock(&area->policy_lock);
	from = (uint32_t)(kvmem_region_bytes(area->region) / PAGE);
	to = from + (uint32_t)between(&thread->rng, 1, 40) * area->unit;
	if (round->pager_state == PAGER_RUNNING && !(round->pager_flags & KVMEM_PAGER_NO_THREADS) &&
	    area->paged && to <= area->room) {
		int r;

		begin(thread, OP_GROW, &span, to);
		r = kvmem_region_grow(area->region, (uint64_t)to * PAGE);
		if (r != -ENOMEM || area->unit == 1)
			must(r);
		if (!r)
			check_grown(area, from, to);
		op_end(thread, r);
	}
	pthread_mutex_unlock(&area->policy_lock);
	pthread_rwlock_unlock(&round->pager_gate);
}
