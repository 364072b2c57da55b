// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Slots that are taken away and come back, whole or in parts, under the same and under other numbers. */
#include "actors.h"

#include <errno.h>
#include <unistd.h>

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

static unsigned int piece_behind(struct area *area, const struct piece *piece)
{
	unsigned int i = 0;

	pthread_mutex_lock(&area->lock);
	while (i < MAX_PIECES &&
	       (!area->piece[i].count || area->piece[i].first != piece->first + piece->count))
		i++;
	pthread_mutex_unlock(&area->lock);
	return i;
}

/* With the piece claimed: the one behind it becomes part of it, when that can be had too. */
static void join_piece(struct area *area, struct piece *piece)
{
	unsigned int i = piece_behind(area, piece);
	struct piece *next = &area->piece[i];
	struct span span;

	/* It may have become another one: then it has been cut short, or begins elsewhere. */
	if (i == MAX_PIECES || !claim_piece(area, i, &span))
		return;
	if (next->first != piece->first + piece->count) {
		unclaim_piece(area, i);
		return;
	}
	must(kvmem_region_detach(area->region, next->slot));
	pthread_mutex_lock(&area->lock);
	piece->count += next->count;
	next->count = 0;
	next->attached = next->closing = false;
	pthread_mutex_unlock(&area->lock);
}

void reattach(struct thread *thread)
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
