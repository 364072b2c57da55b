// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Pieces on their way. libnbd fills a piece's buffer and calls back from within a call of this thread's; what it says
 * is looked at after that call has returned, since an error may mean that the connection has died: then the piece is
 * sent again on the next one.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "nbd/internal.h"

/* A part of an answer. libnbd does not look whether all parts came. */
static int part_came(void *arg, const void *part, size_t bytes, uint64_t offset,
		     unsigned int status, int *error)
{
	struct kn_piece *p = arg;

	(void)part;
	(void)offset; /* it lies within what was asked for: libnbd looks at that */
	(void)error;
	if (status == LIBNBD_READ_DATA || status == LIBNBD_READ_HOLE)
		p->came += bytes;
	return 0;
}

static int piece_answered(void *arg, int *error)
{
	struct kn_piece *p = arg;
	struct kn_connection *c = p->at; /* changed by this thread alone */

	p->error = *error;
	if (!p->error && p->came != p->asked)
		p->error = EPROTO;
	p->answered = c->answered;
	c->answered = p;
	return 1; /* libnbd forgets the command */
}

/* ---- sending ---- */

/* Where the server reads whole blocks alone, those around the piece. False: no memory. */
static bool in_blocks(const struct kn_export *e, struct kn_piece *p, uint64_t *ret_from,
		      void **ret_to)
{
	uint64_t mask = e->block - 1;
	uint64_t from = p->offset & ~mask;
	uint64_t end = kn_min((p->offset + p->bytes + mask) & ~mask, e->readable);

	*ret_from = from;
	p->asked = end - from;
	p->came = 0;
	*ret_to = p->to;
	if (end - from == p->bytes)
		return true;
	p->skipped = (uint32_t)(p->offset - from);
	p->blocks = malloc(end - from);
	*ret_to = p->blocks;
	return p->blocks;
}

static void send_piece(struct kn_connection *c, struct kn_piece *p)
{
	nbd_completion_callback done = { .callback = piece_answered, .user_data = p };
	nbd_chunk_callback part = { .callback = part_came, .user_data = p };
	uint64_t from;
	void *to;

	p->error = 0;
	if (!in_blocks(&c->nbd->export, p, &from, &to)) {
		int error = ENOMEM;

		piece_answered(p, &error);
		return;
	}
	/* An error here says nothing about the piece: libnbd may have called piece_answered() for it, and may hold
	 * its buffer still. It is taken back when the handle is closed. */
	if (nbd_aio_pread_structured(c->handle, to, p->asked, from, part, done, 0) < 0)
		c->refused = true;
}

/* What there is is shared by all connections that work. */
static size_t share(const struct kvmem_nbd *nbd)
{
	size_t up = 0;

	for (unsigned int i = 0; i < nbd->connection_count; i++)
		up += nbd->connections[i].phase == KN_UP;
	return up ? (nbd->queued + up - 1) / up : nbd->queued;
}

void kn_send(struct kn_connection *c)
{
	struct kvmem_nbd *nbd = c->nbd;
	bool owes = kn_holes_asked(c);
	struct kn_piece *p;

	pthread_mutex_lock(&nbd->lock);
	c->asleep = false;
	if (!c->in_flight && !owes)
		c->heard_ns = kn_now_ns();
	for (size_t left = share(nbd); left && !c->refused && (p = kn_take(c)) != NULL; left--) {
		pthread_mutex_unlock(&nbd->lock);
		send_piece(c, p);
		pthread_mutex_lock(&nbd->lock);
	}
	pthread_mutex_unlock(&nbd->lock);
}

/* ---- answers ---- */

static void free_blocks(struct kn_piece *p)
{
	free(p->blocks);
	p->blocks = NULL;
}

/* Without the lock: the bytes in their place. True: it is over, by 0 or -errno; false: it is to be sent again. */
static bool is_over(struct kn_connection *c, struct kn_piece *p, bool dead)
{
	if (!p->error) {
		if (p->blocks)
			memcpy(p->to, p->blocks + p->skipped, p->bytes);
		free_blocks(p);
		c->failures = 0;
		return true;
	}
	if (p->error == ESHUTDOWN)
		c->lost = true;
	if (dead || c->lost || c->refused)
		return false; /* its blocks may be written to until the handle is closed */
	free_blocks(p);
	return true;
}

static void settle_piece(struct kn_connection *c, struct kn_piece *p, struct kn_finished *f)
{
	if (p->error)
		kn_note(c->nbd, "reading 0x%" PRIx32 " bytes at offset 0x%" PRIx64 ": %s", p->bytes,
			p->offset, strerror(p->error));
	kn_over(p, !p->error ? 0 : p->error == ENOMEM ? -ENOMEM : -EIO, f);
}

bool kn_settle(struct kn_connection *c)
{
	bool dead = nbd_aio_is_dead(c->handle) || nbd_aio_is_closed(c->handle);
	struct kn_piece *p = c->answered, *next, *over = NULL;
	struct kn_finished f = { NULL };

	c->answered = NULL;
	for (; p; p = next) {
		next = p->answered;
		if (!is_over(c, p, dead))
			continue;
		p->answered = over;
		over = p;
	}
	if (over) {
		pthread_mutex_lock(&c->nbd->lock);
		for (p = over; p; p = next) {
			next = p->answered;
			settle_piece(c, p, &f);
		}
		pthread_mutex_unlock(&c->nbd->lock);
		kn_complete(&f);
	}
	if (!dead)
		kn_holes_settle(c);
	return !dead && !c->lost && !c->refused;
}

void kn_take_back(struct kn_connection *c)
{
	struct kvmem_nbd *nbd = c->nbd;
	struct kn_finished f = { NULL };
	struct kn_piece *p;
	bool holes;

	c->answered = NULL;
	holes = kn_holes_lost(c);
	pthread_mutex_lock(&nbd->lock);
	while ((p = c->sent.first) != NULL) {
		uint64_t now = kn_now_ns();

		free_blocks(p);
		if (p->of->error || p->of->until_ns <= now)
			kn_over(p, -ETIMEDOUT, &f);
		else
			kn_again(p);
	}
	if (nbd->queue.first || holes)
		kn_poke_all(nbd);
	pthread_mutex_unlock(&nbd->lock);
	kn_complete(&f);
}
