// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The actors that run vCPUs: writes that the model knows, and comparisons made by the guest itself. */
#include "actors.h"

#include <errno.h>
#include <execinfo.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "crc32c.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

#define TABLE_OFFSET 1024u /* of the guest's table of sums, behind its mailbox */
#define CHECK_PAGES  64u

static _Thread_local struct vmm_vcpu *my_vcpu;
static _Thread_local volatile sig_atomic_t memory_error;

/* KVM sends it to the thread in KVM_RUN when the guest accesses a page that is poisoned. */
static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	(void)context;
	if (!my_vcpu)
		fail(NULL, -1, "signal %d at %p, outside KVM_RUN", signal, info->si_addr);
	memory_error = 1;
	vmm_cancel(my_vcpu);
}

/* A sanitizer tells more, and has a handler of its own. */
static void on_crash(int signal, siginfo_t *info, void *context)
{
	void *frames[40];

	(void)context;
	backtrace_symbols_fd(frames, backtrace(frames, 40), STDERR_FILENO);
	fail(NULL, -1, "signal %d at %p", signal, info->si_addr);
}

static void on_storm(int signal)
{
	(void)signal;
}

void guest_signals_open(void)
{
	struct sigaction bus = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	struct sigaction crash = { .sa_sigaction = on_crash, .sa_flags = SA_SIGINFO };
	struct sigaction storm = { .sa_handler = on_storm, .sa_flags = SA_RESTART };

	sigemptyset(&bus.sa_mask);
	sigemptyset(&storm.sa_mask);
	sigemptyset(&crash.sa_mask);
	if (!SANITIZED)
		sigaction(SIGSEGV, &crash, NULL);
	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGUSR2, &storm, NULL);
}

static bool is_memory_error(int r)
{
	return memory_error || r == -EFAULT || r == -EHWPOISON;
}

/* Runs the command; false: it stopped at a page that is poisoned, and goes on with the next call. */
static bool run(struct thread *thread)
{
	int r;

	do {
		memory_error = 0;
		r = vmm_run(thread->vcpu);
		if (!r)
			return true;
	} while (r == -ECANCELED && !memory_error);
	if (!is_memory_error(r))
		fail(NULL, -1, "%s: %s", thread->trace->name, vmm_error());
	count(COUNT_POISONED, 1);
	return false;
}

static struct guest_mailbox *command(struct thread *thread, uint32_t what, const struct span *span)
{
	struct guest_mailbox *box = vmm_mailbox(thread->vcpu);

	*box = (struct guest_mailbox){
		.command = what,
		.gpa = span->gpa,
		.bytes = (uint64_t)span->count * PAGE,
		.page = PAGE,
		.step = STAMP_STRIDE,
		.seed = guest_random(&thread->rng.state) | 1,
		.table = GUEST_MAILBOXES + vmm_vcpu_index(thread->vcpu) * GUEST_MAILBOX_BYTES +
			 TABLE_OFFSET,
	};
	return box;
}

static void run_claimed(struct thread *thread, const struct span *span)
{
	if (!run(thread))
		fail(span->area, -1,
		     "%s: memory error in area %d pages %u+%u, whose source does not fail: %s",
		     thread->trace->name, span->area->index, span->first, span->count, vmm_error());
}

static void fill(struct thread *thread, const struct span *span)
{
	struct guest_mailbox *box = command(thread, GUEST_FILL, span);
	uint64_t seed = box->seed;

	run_claimed(thread, span);
	model_written(span, seed, span->gpa);
}

static void guest_write(struct thread *thread)
{
	struct span span;

	if (!claim(some_area(thread), &thread->rng, CLAIM_EXCLUSIVE, CLAIM_ATTACHED,
		   (uint32_t)between(&thread->rng, 1, thread->round->max_claim), &span))
		return;
	op_begin(thread, OP_GUEST_WRITE, span.area, span.first, span.count, span.gpa);
	fill(thread, &span);
	op_end(thread, 0);
	unclaim(&span);
}

/* The same pages again and again, while they are harvested. */
static void guest_spin(struct thread *thread)
{
	struct span span;

	if (!claim(some_area(thread), &thread->rng, CLAIM_EXCLUSIVE, CLAIM_ATTACHED,
		   (uint32_t)between(&thread->rng, 1, 150), &span))
		return;
	op_begin(thread, OP_GUEST_SPIN, span.area, span.first, span.count, span.gpa);
	command(thread, GUEST_SPIN, &span)->rounds = between(&thread->rng, 1, 300);
	run_claimed(thread, &span);
	fill(thread, &span);
	op_end(thread, 0);
	unclaim(&span);
}

/* The guest reads pages that others change at the same time. */
static void guest_read(struct thread *thread)
{
	struct guest_mailbox *box;
	struct span span;

	if (!use_piece(some_area(thread), &thread->rng, &span))
		return;
	op_begin(thread, OP_GUEST_READ, span.area, span.first, span.count, span.gpa);
	box = command(thread, GUEST_READ, &span);
	box->flags = GUEST_RANDOM;
	box->count = between(&thread->rng, 1, 100);
	while (!run(thread))
		usleep(200); /* who made it fail heals it */
	op_end(thread, 0);
	unuse_piece(&span);
}

static void compare_sums(struct area *area, const struct span *span, const uint32_t *sums)
{
	unsigned char content[PAGE];

	for (uint32_t i = 0; i < span->count; i++) {
		uint32_t page = span->first + i;
		struct page *p = &area->page[page];
		enum base base = p->base, settled = base == BASE_EITHER ? BASE_ZERO : base;

		expected_page(area, page, settled, content);
		if (crc32c(0, content, PAGE) != sums[i] && base == BASE_EITHER) {
			settled = BASE_SOURCE;
			expected_page(area, page, settled, content);
		}
		if (crc32c(0, content, PAGE) != sums[i]) {
			if (read_pages(area, page, 1, content) == 1 &&
			    !page_matches(area, page, content))
				fail_content(area, page, content, "guest and host");
			fail(area, page,
			     "the guest sees other content than the host in area %d page %u",
			     area->index, page);
		}
		p->base = (uint8_t)settled;
		p->exists = 1;
	}
	count(COUNT_GUEST_PAGES, span->count);
}

static void check_span(struct thread *thread, const struct span *span)
{
	struct guest_mailbox *box = command(thread, GUEST_CRC, span);

	box->flags = one_in(&thread->rng, 2) ? GUEST_RANDOM : 0;
	run_claimed(thread, span);
	compare_sums(span->area, span,
		     (const uint32_t *)(const void *)((const char *)vmm_mailbox(thread->vcpu) +
						      TABLE_OFFSET));
}

static void guest_check(struct thread *thread)
{
	struct span span;

	if (!claim(some_area(thread), &thread->rng, CLAIM_SHARED, CLAIM_ATTACHED,
		   (uint32_t)between(&thread->rng, 1, CHECK_PAGES), &span))
		return;
	op_begin(thread, OP_GUEST_CHECK, span.area, span.first, span.count, span.gpa);
	check_span(thread, &span);
	op_end(thread, 0);
	unclaim(&span);
}

static void set_bad(const struct span *span, uint8_t bad)
{
	for (uint32_t i = 0; i < span->count; i++)
		span->area->page[span->first + i].bad = bad;
}

/* The guest runs into pages whose source fails, and goes on where it was when they are healed. */
static void guest_poison(struct thread *thread)
{
	struct area *area = some_area(thread);
	struct span span;

	if (!area->paged || area->source->kind != SOURCE_CALLBACK ||
	    !claim(area, &thread->rng, CLAIM_EXCLUSIVE, CLAIM_ATTACHED | CLAIM_UNITS,
		   (uint32_t)between(&thread->rng, 1, 12), &span))
		return;
	op_begin(thread, OP_GUEST_POISON, area, span.first, span.count, span.gpa);
	set_bad(&span, 1);
	source_fail(area->source, thread->index, source_offset_of(area, span.first),
		    (uint64_t)span.count * PAGE);
	command(thread, GUEST_READ, &span);
	while (!run(thread)) {
		source_recover(area->source, thread->index);
		heal(thread, &span, one_in(&thread->rng, 3));
	}
	source_recover(area->source, thread->index);
	heal(thread, &span, false);
	check_span(thread, &span);
	op_end(thread, 0);
	unclaim(&span);
}

static const struct {
	enum operation op;
	unsigned int weight;
	void (*act)(struct thread *thread);
} acts[] = {
	{ OP_GUEST_WRITE, 40, guest_write },  { OP_GUEST_CHECK, 25, guest_check },
	{ OP_GUEST_READ, 20, guest_read },    { OP_GUEST_SPIN, 8, guest_spin },
	{ OP_GUEST_POISON, 2, guest_poison },
};

void guest_actor(struct thread *thread)
{
	my_vcpu = thread->vcpu;
	while (go_on(thread)) {
		unsigned int i = (unsigned int)below(&thread->rng, sizeof(acts) / sizeof(acts[0]));

		if (is_turn(thread, acts[i].op, acts[i].weight, 40))
			acts[i].act(thread);
	}
	my_vcpu = NULL;
}
