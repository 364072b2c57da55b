/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef ACTORS_H
#define ACTORS_H

/* What the files of the host's actors share. */

#include "torture.h"

struct area *some_area(struct thread *thread);
bool claim_some(struct thread *thread, enum claim how, unsigned int flags, uint32_t most,
		struct span *span);
/* Any pages, not claimed: for what needs no claim. */
struct span some_pages_of(struct thread *thread, struct area *area, uint32_t most);
struct span some_pages(struct thread *thread, uint32_t most);
void begin(struct thread *thread, enum operation op, const struct span *span, uint64_t argument);
/* The end of the operation and of the claim. */
void end(struct thread *thread, const struct span *span, int64_t result);

/* In any way that populate knows; -EOPNOTSUPP and -ECANCELED may come of what was asked for. */
int populate_pages(struct thread *thread, const struct span *span);
/* With defaults: what must succeed. */
int populate_whole(struct thread *thread, const struct span *span);
/* No populate is under way until _let_in(). False: one is. */
bool fills_keep_out(void);
void fills_let_in(void);

/* memory_ops.c */
void discard(struct thread *thread);
void mark_absent(struct thread *thread);
void put_pages(struct thread *thread);
void rotate(struct thread *thread);
void dontneed(struct thread *thread);
void remove_range(struct thread *thread);
void punch(struct thread *thread);
void advise(struct thread *thread);
void lock_range(struct thread *thread);
void protect(struct thread *thread);
void policy(struct thread *thread);
void grow(struct thread *thread);

/* pieces.c */
void reattach(struct thread *thread);

/* clones.c */
void clones(struct thread *thread);

/* poison.c */
void poison(struct thread *thread);
void slow(struct thread *thread);

#endif
