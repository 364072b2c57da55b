/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/*
 * The guest program: 64-bit, freestanding, in user mode with I/O privilege, one copy for all vCPUs.
 * It takes a command from its mailbox, does it, says so with an exit, and takes the next.
 *
 * User mode because some hypervisors without hardware virtualisation interpret a guest's supervisor
 * code, but run user code directly; to the others it makes no difference.
 */
#include "../crc32c.h"
#include "protocol.h"

typedef volatile struct guest_mailbox mailbox;

void guest_main(mailbox *box);

static void tell_host(uint32_t event)
{
	__asm__ volatile("outl %0, %w1" : : "a"(event), "d"(GUEST_PORT) : "memory");
}

static volatile uint64_t *word_at(uint64_t gpa)
{
	return (volatile uint64_t *)(uintptr_t)gpa;
}

static uint64_t page_count(const mailbox *box)
{
	return box->bytes / box->page;
}

static void page_done(mailbox *box, uint64_t done)
{
	box->progress = done;
	if (done == 1 && (box->flags & GUEST_TELL_FIRST))
		tell_host(GUEST_EVENT_FIRST);
}

static void do_crc(mailbox *box)
{
	uint64_t pages = page_count(box), page = box->page, gpa = box->gpa;
	uint32_t *table = (uint32_t *)(uintptr_t)box->table;

	for (uint64_t i = 0; i < pages && !box->stop; i++) {
		uint64_t n = (box->flags & GUEST_RANDOM) ? guest_shuffle(i, pages) : i;

		table[n] = crc32c(0, (const void *)(uintptr_t)(gpa + n * page), page);
		page_done(box, i + 1);
	}
	box->result = box->progress;
}

/* GUEST_WRITE and GUEST_READ: rounds over pages, one word of each. */
static void do_rounds(mailbox *box, int write)
{
	uint64_t pages = page_count(box), page = box->page, state = box->seed, sum = 0, done = 0;
	uint64_t rounds = box->rounds ? box->rounds : 1, count = box->count ? box->count : pages;

	for (uint64_t round = 0; round < rounds && !box->stop; round++) {
		for (uint64_t i = 0; i < count && !box->stop; i++) {
			struct guest_write w = guest_write_next(&state, i, pages, page, box->flags);
			volatile uint64_t *p = word_at(box->gpa + w.page * page + w.offset);

			if (write)
				*p = w.value;
			else
				sum += *p;
			page_done(box, ++done);
		}
		box->round = round + 1;
		if (box->flags & GUEST_TELL_ROUND)
			tell_host(GUEST_EVENT_ROUND);
	}
	box->result = write ? done : sum;
}

static void do_fill(mailbox *box)
{
	uint64_t end = box->gpa + box->bytes, step = box->step, seed = box->seed, done = 0;

	for (uint64_t gpa = box->gpa; gpa < end && !box->stop; gpa += step) {
		*word_at(gpa) = guest_pattern(seed, gpa);
		page_done(box, ++done);
	}
	box->result = done;
}

static void do_verify(mailbox *box)
{
	uint64_t end = box->gpa + box->bytes, step = box->step, seed = box->seed, done = 0, bad = 0;

	for (uint64_t gpa = box->gpa; gpa < end && !box->stop; gpa += step) {
		if (*word_at(gpa) != guest_pattern(seed, gpa) && bad++ == 0)
			box->bad_gpa = gpa;
		page_done(box, ++done);
	}
	box->result = bad;
}

static void do_spin(mailbox *box)
{
	uint64_t end = box->gpa + box->bytes, page = box->page, passes = 0;

	while (!box->stop && (!box->rounds || passes < box->rounds)) {
		passes++;
		for (uint64_t gpa = box->gpa; gpa < end; gpa += page)
			*word_at(gpa) = passes;
		box->progress = passes;
	}
	box->result = passes;
}

static void do_command(mailbox *box)
{
	box->progress = 0;
	box->round = 0;
	box->result = 0;
	box->bad_gpa = 0;
	switch (box->command) {
	case GUEST_CRC:
		do_crc(box);
		break;
	case GUEST_WRITE:
		do_rounds(box, 1);
		break;
	case GUEST_READ:
		do_rounds(box, 0);
		break;
	case GUEST_FILL:
		do_fill(box);
		break;
	case GUEST_VERIFY:
		do_verify(box);
		break;
	case GUEST_SPIN:
		do_spin(box);
		break;
	default:
		break;
	}
}

void guest_main(mailbox *box)
{
	/* Every vCPU makes the same tables in the same place: no lock needed. */
	crc32c_init();
	box->hello = 1;
	for (;;) {
		do_command(box);
		tell_host(GUEST_EVENT_DONE);
	}
}
