// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The actors that stand for the VMM's own threads: everything that is done to memory from the host. */
#include "actors.h"
#include "prefetch.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct area *some_area(struct thread *thread)
{
	return &thread->round->area[below(&thread->rng, thread->round->areas)];
}

bool claim_some(struct thread *thread, enum claim how, unsigned int flags, uint32_t most,
		struct span *span)
{
	return claim(some_area(thread), &thread->rng, how, flags,
		     (uint32_t)between(&thread->rng, 1, most), span);
}

void begin(struct thread *thread, enum operation op, const struct span *span, uint64_t argument)
{
	op_begin(thread, op, span->area, span->first, span->count, argument);
}

void end(struct thread *thread, const struct span *span, int64_t result)
{
	op_end(thread, result);
	unclaim(span);
}

/* A page that populate fills in part is zero in the rest: so ask for whole ones. */
struct span some_pages_of(struct thread *thread, struct area *area, uint32_t most)
{
	uint32_t unit = area->unit, first = (uint32_t)below(&thread->rng, area->pages / unit);
	uint32_t n = (uint32_t)between(&thread->rng, 1, (most + unit - 1) / unit);

	if (n > area->pages / unit - first)
		n = area->pages / unit - first;
	return (struct span){ area, first * unit, n * unit, CLAIM_SHARED, 0 };
}

struct span some_pages(struct thread *thread, uint32_t most)
{
	return some_pages_of(thread, some_area(thread), most);
}

/* ---- content ---- */

void merge_span(struct round *round, const struct span *span)
{
	uint64_t bitmap[BUFFER_PAGES * 16];

	if (!round->dirty || !span->area->tracked)
		return;
	memset(bitmap, 0xff, sizeof(bitmap));
	pthread_rwlock_rdlock(&round->dirty_gate);
	if (round->tracking && span->first % 2)
		must(kvmem_dirty_mark(round->dirty, span->area->region,
				      (uint64_t)span->first * PAGE, (uint64_t)span->count * PAGE));
	else if (round->tracking)
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

/* Pages that are claimed do not fail: who poisons pages heals them before he lets them go. */
static void host_store(struct thread *thread)
{
	uint64_t seed = guest_random(&thread->rng.state) | 1;
	struct span span;

	if (!claim_some(thread, CLAIM_EXCLUSIVE, 0, 20, &span))
		return;
	begin(thread, OP_HOST_STORE, &span, 0);
	store_stamps(span.area, span.first, span.count, seed);
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

/*
 * What the VMM takes away while it is being filled, and nobody hears of, may be left with a part of its content: the
 * manual says so. So one keeps the other out.
 */
static pthread_rwlock_t fills = PTHREAD_RWLOCK_INITIALIZER;

bool fills_keep_out(void)
{
	return !pthread_rwlock_trywrlock(&fills);
}

void fills_let_in(void)
{
	pthread_rwlock_unlock(&fills);
}

static int populate_with(const struct span *span, struct kvmem_populate_opts *o)
{
	const struct source *source = span->area->source;
	uint64_t from = source_offset_of(span->area, span->first);
	int r;

	if (from >= source->bytes)
		return 0;
	o->source_offset = from;
	o->bytes = (uint64_t)span->count * PAGE;
	if (o->bytes > source->bytes - from)
		o->bytes = source->bytes - from;
	pthread_rwlock_rdlock(&fills);
	r = kvmem_populate(span->area->region, (uint64_t)span->first * PAGE, source->handle, o,
			   NULL);
	pthread_rwlock_unlock(&fills);
	return r;
}

int populate_whole(struct thread *thread, const struct span *span)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.threads = (uint32_t)between(&thread->rng, 0, 2);
	return populate_with(span, &o);
}

static int cancel_at_once(void *arg, const struct kvmem_progress *progress)
{
	(void)arg;
	return progress->done < progress->total;
}

int populate_pages(struct thread *thread, const struct span *span)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.threads = (uint32_t)between(&thread->rng, 0, 2);
	o.chunk_bytes = one_in(&thread->rng, 2)
				? 0
				: between(&thread->rng, 1, 32) * PAGE * span->area->unit;
	o.flags = one_in(&thread->rng, 4) ? KVMEM_POPULATE_KEEP_ZERO : 0;
	o.method = one_in(&thread->rng, 2) ? KVMEM_FILL_AUTO
					   : (uint32_t)between(&thread->rng, 1, KVMEM_FILL_COPY);
	o.file_method = span->area->source->kind != SOURCE_FILE || one_in(&thread->rng, 2)
				? KVMEM_FILE_AUTO
				: (uint32_t)between(&thread->rng, 1, KVMEM_FILE_PREAD);
	o.progress = one_in(&thread->rng, 8) ? cancel_at_once : NULL;
	return populate_with(span, &o);
}

/* Without a claim: it fills what is absent with what is its content already, or finds it there. */
static void populate(struct thread *thread)
{
	struct span span = some_pages(thread, 300);
	int r;

	if (span.area->clone || (!span.area->paged && !thread->round->populated))
		return;
	begin(thread, OP_POPULATE, &span, 0);
	r = populate_pages(thread, &span);
	if (r != -EREMOTEIO && r != -EOPNOTSUPP && r != -ECANCELED)
		must(r);
	op_end(thread, r);
}

/* With a ticket, which is waited for a while, or not at all. */
static void prefetch_and_wait(struct thread *thread, const struct span *span)
{
	struct kvmem_range range = { (uint64_t)span->first * PAGE, (uint64_t)span->count * PAGE };
	struct kvmem_ticket_result result = KVMEM_TICKET_RESULT_INIT;
	uint32_t pages = span->count / span->area->unit;
	struct kvmem_ticket *ticket;
	int r = kvmem_pager_prefetch(thread->round->pager, span->area->region, &range, 1, NULL,
				     &ticket);

	if (r && thread->round->pager_state != PAGER_RUNNING)
		return;
	must(r);
	r = kvmem_ticket_wait(ticket, (int64_t)below(&thread->rng, 3000000), &result);
	if (r != -ETIMEDOUT && result.pages + result.pages_failed < pages)
		fail(span->area, span->first, "a ticket of %u pages is done with %llu and %llu",
		     pages, (unsigned long long)result.pages,
		     (unsigned long long)result.pages_failed);
	if (r && r != -ETIMEDOUT && r != -EREMOTEIO && r != -ECANCELED)
		must(r);
	if (!r != (!result.pages_failed && r != -ETIMEDOUT))
		fail(span->area, span->first, "a ticket says %d, and %llu pages failed", r,
		     (unsigned long long)result.pages_failed);
	must(kvmem_ticket_free(ticket));
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
	}
	pthread_rwlock_rdlock(&round->pager_gate);
	if (round->pager_state != PAGER_NONE) {
		begin(thread, OP_PREFETCH, &span, n);
		if (one_in(&thread->rng, 3)) {
			prefetch_and_wait(thread, &span);
			op_end(thread, 0);
		} else {
			r = prefetch_runs(round->pager, runs, n);
			if (round->pager_state == PAGER_RUNNING)
				must(r);
			op_end(thread, r);
		}
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

static void must_be_busy(int r, const char *call)
{
	if (r != -EBUSY)
		fail(NULL, -1, "%s must be -EBUSY, is %d", call, r);
}

/* What is in use cannot be freed, and goes on as if nobody had tried. */
static void check_refusals(struct round *round, struct area *area)
{
	pthread_rwlock_rdlock(&round->pager_gate);
	if (round->pager_state == PAGER_RUNNING && area->paged) {
		must_be_busy(kvmem_source_free(area->source->handle), "kvmem_source_free");
		must_be_busy(kvmem_region_free(area->region), "kvmem_region_free");
		must_be_busy(kvmem_pager_free(round->pager), "kvmem_pager_free");
		if (round->vm)
			must_be_busy(kvmem_vm_free(round->vm), "kvmem_vm_free");
	}
	pthread_rwlock_unlock(&round->pager_gate);
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
	check_refusals(thread->round, span.area);
	end(thread, &span, (int64_t)placement.present);
}

static const struct {
	enum operation op;
	unsigned int weight;
	void (*act)(struct thread *thread);
} acts[] = {
	{ OP_HOST_WRITE, 10, host_write },
	{ OP_HOST_STORE, 6, host_store },
	{ OP_HOST_CHECK, 20, host_check },
	{ OP_POPULATE, 4, populate },
	{ OP_PREFETCH, 10, prefetch },
	{ OP_WAIT, 3, wait_pager },
	{ OP_DISCARD, 12, discard },
	{ OP_ABSENT, 10, mark_absent },
	{ OP_PUT, 10, put_pages },
	{ OP_ROTATE, 1, rotate },
	{ OP_DONTNEED, 12, dontneed },
	{ OP_REMOVE, 8, remove_range },
	{ OP_PUNCH, 10, punch },
	{ OP_ADVISE, 5, advise },
	{ OP_LOCK, 4, lock_range },
	{ OP_PROTECT, 4, protect },
	{ OP_POLICY, 4, policy },
	{ OP_CLONES, 4, clones },
	{ OP_GROW, 3, grow },
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
