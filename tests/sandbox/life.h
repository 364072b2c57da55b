/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef LIFE_H
#define LIFE_H

/*
 * Lives: small VMMs that go through create, run and stop, and between them call every function of the library. They
 * run in children, under a tracer that writes down what each call does, and under filters that allow no more than that.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum life_phase { LIFE_CREATE, LIFE_RUN, LIFE_STOP, LIFE_PHASES };

/* How a life that does not come to its end ends. */
enum life_end {
	LIFE_WHOLE = 0,
	LIFE_SAID = 3,	   /* a call failed with a sentence */
	LIFE_MUTE = 4,	   /* ... with none */
	LIFE_WRONG = 5,	   /* wrong content, or a page lost */
	LIFE_POISONED = 6, /* a page was poisoned */
	LIFE_SETUP = 7,	   /* it is not the library that failed */
};

struct life {
	const char *name;
	void (*live)(void);
};

extern const struct life lives[];
extern const size_t life_count;

/* How this process lives. */
struct life_how {
	bool marks; /* tell a tracer what is called: write() to descriptor -1 */
	bool given; /* its userfaultfds were opened before (life_open_uffds()) */
	void (*phase)(enum life_phase); /* told of each phase; may be NULL */
};

extern struct life_how life_how;

/* The files that all lives use: made before, as that is the VMM's doing. */
bool life_prepare(void);

/* Userfaultfds for a process that may open none later. False: there are none. */
bool life_open_uffds(void);

/* ---- for lives ---- */

void life_phase(enum life_phase phase);
void life_mark(const char *call); /* NULL: it has returned */
int64_t life_check(const char *call, int64_t r);
__attribute__((noreturn)) void life_fail(enum life_end end, const char *why);

#define CALL(fn, ...) \
	({ \
		life_mark(#fn); \
		__auto_type call_ = fn(__VA_ARGS__); \
		life_mark(NULL); \
		call_; \
	})

#define VOID(fn, ...) \
	do { \
		life_mark(#fn); \
		fn(__VA_ARGS__); \
		life_mark(NULL); \
	} while (0)

/* What may not fail. */
#define MUST(fn, ...) life_check(#fn, CALL(fn, __VA_ARGS__))

#endif
