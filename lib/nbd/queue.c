// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Requests, cut into pieces that one command can read, and the queue of those that no connection has taken. It is
 * ordered by deadline: the clock looks at the first one alone.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#include "nbd/internal.h"

/* Who cancels waits for the answer no longer than this: then the connection is given up, and made again. */
#define CANCEL_NS 500000000u

void kn_note(struct kvmem_nbd *nbd, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(nbd->stats.why, sizeof(nbd->stats.why), format, args);
	va_end(args);
}

/* ---- the queue, under the lock ---- */

static void list_remove(struct kn_list *l, struct kn_piece *p)
{
	if (p->prev)
		p->prev->next = p->next;
	else
		l->first = p->next;
	if (p->next)
		p->next->prev = p->prev;
	else
		l->last = p->prev;
}

static void list_insert(struct kn_list *l, struct kn_piece *before, struct kn_piece *p)
{
	p->next = before;
	p->prev = before ? before->prev : l->last;
	if (p->prev)
		p->prev->next = p;
	else
		l->first = p;
	if (before)
		before->prev = p;
	else
		l->last = p;
}

static void enqueue(struct kvmem_nbd *nbd, struct kn_piece *p, struct kn_piece *before)
{
	p->state = KN_QUEUED;
	list_insert(&nbd->queue, before, p);
	nbd->queued++;
	if (p->of->until_ns < nbd->clock_until_ns)
		pthread_cond_signal(&nbd->clock_changed);
}

static void dequeue(struct kvmem_nbd *nbd, struct kn_piece *p)
{
	list_remove(&nbd->queue, p);
	nbd->queued--;
}

static void poke(struct kn_connection *c)
{
	c->asleep = false;
	eventfd_write(c->wake, 1);
}

void kn_poke_all(struct kvmem_nbd *nbd)
{
	for (unsigned int i = 0; i < nbd->connection_count; i++)
		if (nbd->connections[i].asleep)
			poke(&nbd->connections[i]);
}

/* As many connections as there are pieces to be sent. */
static void poke_some(struct kvmem_nbd *nbd, size_t pieces)
{
	for (unsigned int i = 0; i < nbd->connection_count && pieces; i++) {
		struct kn_connection *c = &nbd->connections[i];

		if (c->phase != KN_UP || !c->asleep || c->in_flight >= nbd->opts.depth)
			continue;
		poke(c);
		pieces--;
	}
}

struct kn_piece *kn_take(struct kn_connection *c)
{
	struct kvmem_nbd *nbd = c->nbd;
	struct kn_piece *p = nbd->queue.first;

	if (!p || c->in_flight >= nbd->opts.depth)
		return NULL;
	dequeue(nbd, p);
	p->state = KN_SENT;
	p->at = c;
	list_insert(&c->sent, NULL, p);
	c->in_flight++;
	if (++nbd->stats.in_flight > nbd->stats.in_flight_most)
		nbd->stats.in_flight_most = nbd->stats.in_flight;
	return p;
}

static void unsend(struct kn_piece *p)
{
	struct kn_connection *c = p->at;

	list_remove(&c->sent, p);
	c->in_flight--;
	c->nbd->stats.in_flight--;
	p->at = NULL;
}

/* ---- how they end, under the lock ---- */

static void end_if_over(struct kvmem_nbd *nbd, struct kn_request *r, struct kn_finished *f)
{
	if (r->left)
		return;
	r->pub->user = NULL; /* nobody can cancel it any more */
	r->finished = f->first;
	f->first = r;
	if (!r->error)
		nbd->stats.bytes += r->bytes;
	else if (r->error == -ECANCELED)
		nbd->stats.requests_cancelled++;
	else if (r->error == -ETIMEDOUT)
		nbd->stats.requests_late++;
	else
		nbd->stats.requests_failed++;
}

/* What of it is queued is not sent any more. */
static void fail_request(struct kvmem_nbd *nbd, struct kn_request *r, int error)
{
	if (!r->error)
		r->error = error;
	for (uint32_t i = 0; i < r->count; i++) {
		struct kn_piece *p = &r->pieces[i];

		if (p->state != KN_QUEUED)
			continue;
		dequeue(nbd, p);
		p->state = KN_OVER;
		r->left--;
	}
}

void kn_over(struct kn_piece *p, int error, struct kn_finished *f)
{
	struct kn_request *r = p->of;
	struct kvmem_nbd *nbd = p->at->nbd;

	unsend(p);
	p->state = KN_OVER;
	r->left--;
	if (error)
		fail_request(nbd, r, error);
	end_if_over(nbd, r, f);
}

void kn_again(struct kn_piece *p)
{
	struct kvmem_nbd *nbd = p->at->nbd;
	struct kn_piece *before = nbd->queue.first;

	unsend(p);
	while (before && before->of->until_ns <= p->of->until_ns)
		before = before->next;
	enqueue(nbd, p, before);
	nbd->stats.again++;
}

void kn_complete(struct kn_finished *f)
{
	while (f->first) {
		struct kn_request *r = f->first;
		struct kvmem_source_request *pub = r->pub;
		int error = r->error;

		f->first = r->finished;
		free(r);
		kvmem_source_complete(pub, error);
	}
}

/* ---- from the library ---- */

/* Cut where the export has a multiple of the most that is read by a command: the blocks around a piece are no more. */
static void cut(struct kn_request *r, uint64_t at, uint64_t most)
{
	uint64_t end = at + r->bytes;
	uint8_t *to = r->pub->buf;

	for (uint32_t i = 0; i < r->count; i++) {
		struct kn_piece *p = &r->pieces[i];

		p->of = r;
		p->offset = at;
		p->bytes = (uint32_t)kn_min(most - at % most, end - at);
		p->to = to;
		at += p->bytes;
		to += p->bytes;
	}
}

static struct kn_request *request_new(struct kvmem_nbd *nbd, uint64_t base,
				      struct kvmem_source_request *pub)
{
	uint64_t most = nbd->export.piece, at = base + pub->offset;
	uint64_t count = pub->bytes ? (at + pub->bytes - 1) / most - at / most + 1 : 0;
	struct kn_request *r;

	if (count > UINT32_MAX)
		return NULL;
	r = calloc(1, sizeof(*r) + (size_t)count * sizeof(r->pieces[0]));
	if (!r)
		return NULL;
	r->pub = pub;
	r->bytes = pub->bytes;
	r->left = r->count = (uint32_t)count;
	cut(r, at, most);
	return r;
}

int kn_submit(struct kvmem_nbd *nbd, uint64_t base, struct kvmem_source_request *const *requests,
	      size_t count)
{
	struct kn_finished list = { NULL }, empty = { NULL };
	struct kn_request *r, **tail = &list.first;
	size_t pieces = 0;

	for (size_t i = 0; i < count; i++) {
		r = request_new(nbd, base, requests[i]);
		if (!r)
			goto no_memory;
		*tail = r;
		tail = &r->finished;
	}
	pthread_mutex_lock(&nbd->lock);
	while ((r = list.first) != NULL) {
		list.first = r->finished;
		r->until_ns = kn_after(nbd->opts.deadline_ns);
		r->pub->user = r;
		nbd->stats.requests++;
		for (uint32_t i = 0; i < r->count; i++)
			enqueue(nbd, &r->pieces[i], NULL);
		pieces += r->count;
		end_if_over(nbd, r, &empty); /* of no bytes */
	}
	poke_some(nbd, pieces);
	pthread_mutex_unlock(&nbd->lock);
	kn_complete(&empty);
	return 0;
no_memory:
	while ((r = list.first) != NULL) {
		list.first = r->finished;
		free(r);
	}
	return kn_fail(ENOMEM, "nbd: no memory for %zu requests", count);
}

void kn_cancel(struct kvmem_nbd *nbd, struct kvmem_source_request *request)
{
	struct kn_finished f = { NULL };
	struct kn_request *r;

	pthread_mutex_lock(&nbd->lock);
	r = request->user;
	if (r) {
		fail_request(nbd, r, -ECANCELED);
		end_if_over(nbd, r, &f);
		/* What is sent is still written to by libnbd. */
		r->until_ns = kn_min(r->until_ns, kn_after(CANCEL_NS));
		for (uint32_t i = 0; i < r->count; i++)
			if (r->pieces[i].state == KN_SENT && r->pieces[i].at->asleep)
				poke(r->pieces[i].at);
	}
	pthread_mutex_unlock(&nbd->lock);
	kn_complete(&f);
}

/* ---- the clock ---- */

static void sleep_until(struct kvmem_nbd *nbd, uint64_t ns)
{
	struct timespec t = { .tv_sec = (time_t)(ns / 1000000000),
			      .tv_nsec = (long)(ns % 1000000000) };

	nbd->clock_until_ns = ns;
	if (ns == UINT64_MAX)
		pthread_cond_wait(&nbd->clock_changed, &nbd->lock);
	else
		pthread_cond_timedwait(&nbd->clock_changed, &nbd->lock, &t);
	nbd->clock_until_ns = 0;
}

void *kn_clock(void *arg)
{
	struct kvmem_nbd *nbd = arg;

	pthread_mutex_lock(&nbd->lock);
	while (!nbd->stopping) {
		struct kn_piece *p = nbd->queue.first;
		struct kn_finished f = { NULL };
		struct kn_request *r;

		if (!p || p->of->until_ns > kn_now_ns()) {
			sleep_until(nbd, p ? p->of->until_ns : UINT64_MAX);
			continue;
		}
		r = p->of;
		fail_request(nbd, r, -ETIMEDOUT);
		end_if_over(nbd, r, &f);
		pthread_mutex_unlock(&nbd->lock);
		kn_complete(&f);
		pthread_mutex_lock(&nbd->lock);
	}
	pthread_mutex_unlock(&nbd->lock);
	return NULL;
}
