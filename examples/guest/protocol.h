/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/*
 * What the host and the guest program agree on: where things are in guest memory, the mailbox
 * through which each vCPU gets its commands, and the pseudo-random sequences that let the host
 * work out afterwards what the guest has done.
 *
 * The guest's own code, stacks, page tables and mailboxes live in a boot area below 2 MiB, in a
 * slot of its own. The RAM under test is somewhere above and is touched by commands alone.
 */
#ifndef GUEST_PROTOCOL_H
#define GUEST_PROTOCOL_H

#ifdef __ASSEMBLER__
#define GUEST_U64(n) n
#else
#include <stdint.h>
#define GUEST_U64(n) UINT64_C(n)
#endif

#define GUEST_BOOT_BYTES    GUEST_U64(0x200000)
#define GUEST_PML4	    GUEST_U64(0x1000)
#define GUEST_PDPT	    GUEST_U64(0x2000)
#define GUEST_CODE	    GUEST_U64(0x10000)
#define GUEST_CODE_BYTES    GUEST_U64(0x30000)
#define GUEST_MAILBOXES	    GUEST_U64(0x40000)
#define GUEST_MAILBOX_BYTES GUEST_U64(0x1000)
#define GUEST_STACKS	    GUEST_U64(0x80000)
#define GUEST_STACK_BYTES   GUEST_U64(0x2000)
#define GUEST_TABLES	    GUEST_U64(0x100000) /* page directories, one for each GiB in use */
#define GUEST_MAX_VCPUS	    64

/* A 32-bit OUT to this port is an exit to the host; the value is one of the events. */
#define GUEST_PORT	  0x700
#define GUEST_EVENT_HELLO 1 /* the first instruction has run */
#define GUEST_EVENT_FIRST 2 /* the first page of a command is done (GUEST_TELL_FIRST) */
#define GUEST_EVENT_ROUND 3 /* a round of GUEST_WRITE is done (GUEST_TELL_ROUND) */
#define GUEST_EVENT_DONE  4 /* the command is done: result and bad_gpa are valid */

#ifndef __ASSEMBLER__

enum guest_command {
	GUEST_NOTHING,
	GUEST_CRC,   /* table[i] = CRC-32C of page i; result: the number of pages */
	GUEST_WRITE, /* rounds × count writes of 8 bytes, see guest_write_next(); result: writes */
	GUEST_READ,  /* rounds × count reads of 8 bytes, one a page; result: their sum */
	GUEST_FILL,  /* every step bytes a word of guest_pattern(); result: words */
	GUEST_VERIFY, /* the same, compared; result: words that differ, the first at bad_gpa */
	GUEST_SPIN, /* rewrite each page once a pass, until stop or rounds passes; result: passes */
};

/* Flags */
#define GUEST_RANDOM	 1u /* pages in pseudo-random order (default: in address order) */
#define GUEST_TELL_FIRST 2u /* GUEST_EVENT_FIRST after the first page */
#define GUEST_TELL_ROUND 4u /* GUEST_EVENT_ROUND after each round */

/* The host writes the first part before it enters the guest; all of it may be read at any time. */
struct guest_mailbox {
	uint32_t command;
	uint32_t flags;
	uint64_t gpa; /* the range to work on */
	uint64_t bytes;
	uint64_t page;	   /* bytes in a page: a power of two */
	uint64_t step;	   /* GUEST_FILL, GUEST_VERIFY: bytes from word to word, a multiple of 8 */
	uint64_t table;	   /* GUEST_CRC: address of a uint32_t for each page */
	uint64_t seed;	   /* not 0 */
	uint64_t rounds;   /* 0: one; for GUEST_SPIN: no end */
	uint64_t count;	   /* GUEST_WRITE, GUEST_READ: pages a round; 0: as many as the range has */
	uint32_t stop;	   /* the host may set it while the command runs */
	uint32_t hello;	   /* the guest sets it with its first instructions */
	uint64_t progress; /* pages, words or passes done so far */
	uint64_t round;	   /* rounds done so far */
	uint64_t result;
	uint64_t bad_gpa;
};

static inline uint64_t guest_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * UINT64_C(0x2545f4914f6cdd1d);
}

/* A number below n, for n below 2^32. */
static inline uint64_t guest_below(uint64_t *state, uint64_t n)
{
	return ((guest_random(state) >> 32) * n) >> 32;
}

/* The i-th page in pseudo-random order: each of n pages once, for n below 2^32. */
static inline uint64_t guest_shuffle(uint64_t i, uint64_t n)
{
	/* A prime above 2^32 has no factor in common with n. */
	return (i * (UINT64_C(11400714819323198549) % n)) % n;
}

static inline uint64_t guest_pattern(uint64_t seed, uint64_t gpa)
{
	uint64_t state = seed ^ (gpa + 1) * UINT64_C(0x9e3779b97f4a7c15);

	return guest_random(&state);
}

struct guest_write {
	uint64_t page;	 /* number in the range */
	uint64_t offset; /* of the 8 bytes in the page */
	uint64_t value;
};

/*
 * The next write of GUEST_WRITE. The state starts as the seed and goes on through all rounds;
 * i is the number of the write in its round.
 */
static inline struct guest_write guest_write_next(uint64_t *state, uint64_t i, uint64_t pages,
						  uint64_t page_bytes, uint32_t flags)
{
	struct guest_write w;

	w.page = (flags & GUEST_RANDOM) ? guest_below(state, pages) : i % pages;
	w.offset = guest_below(state, page_bytes / 8) * 8;
	w.value = guest_random(state);
	return w;
}

#endif /* __ASSEMBLER__ */
#endif
