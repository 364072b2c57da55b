// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A connection and the thread that owns it: it is made, watched, given up when it breaks, when it owes answers and is
 * silent, or when a request's time is over; and made again, after pauses that grow.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "nbd/internal.h"

#define FIRST_PAUSE_NS 10000000u

/* ---- lost ---- */

/* With a part of it left to chance: those who lose a server together do not come back at one moment. */
static uint64_t pause_ns(struct kn_connection *c)
{
	uint64_t most = c->nbd->opts.retry_ns, ns = FIRST_PAUSE_NS;

	if (!c->failures)
		return 0;
	for (unsigned int i = 1; i < c->failures && ns < most; i++)
		ns *= 2;
	ns = kn_min(ns, most);
	c->random = c->random * 6364136223846793005ull + 1442695040888963407ull;
	return ns - (c->random >> 33) % (ns / 2 + 1);
}

/* The caller of kvmem_nbd_open() hears of the first attempt. */
static void tried(struct kvmem_nbd *nbd, int error)
{
	if (nbd->tried)
		return;
	nbd->tried = true;
	nbd->error = error;
	pthread_cond_signal(&nbd->opened);
}

/* error: positive; text: what libnbd says is in the handle's thread, and gone after the next call. */
static void lose(struct kn_connection *c, int error, const char *text)
{
	struct kvmem_nbd *nbd = c->nbd;

	pthread_mutex_lock(&nbd->lock);
	kn_note(nbd, "%s: %s", c->phase == KN_UP ? "the connection broke" : "connecting", text);
	if (c->phase == KN_UP) {
		nbd->stats.connected--;
		nbd->stats.broken++;
	} else {
		nbd->stats.attempts_failed++;
	}
	c->phase = KN_DOWN;
	tried(nbd, -error);
	pthread_mutex_unlock(&nbd->lock);
	nbd_close(c->handle); /* from here on nothing is written to the buffers of what was sent */
	c->handle = NULL;
	c->lost = false;
	c->refused = false;
	c->until_ns = kn_after(pause_ns(c));
	c->failures++;
	kn_take_back(c);
}

static void lose_by_libnbd(struct kn_connection *c)
{
	const char *text = nbd_get_error();
	int error = nbd_get_errno();

	if (c->lost)
		text = "the server is shutting down";
	else if (c->handle && nbd_aio_is_closed(c->handle))
		text = "the server has closed it"; /* no error of libnbd's */
	lose(c, error ? error : EIO, text ? text : "libnbd does not say why");
}

/* ---- made ---- */

static bool set_up(struct kn_connection *c)
{
	struct nbd_handle *h = c->handle;
	uint32_t flags = c->nbd->opts.flags;

	if (nbd_set_debug(h, false) || nbd_set_uri_allow_local_file(h, flags & KVMEM_NBD_URI_FILES))
		return false;
	return (flags & KVMEM_NBD_ALL_DATA) ||
	       !nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION);
}

static void begin(struct kn_connection *c)
{
	struct kvmem_nbd *nbd = c->nbd;

	c->handle = nbd_create();
	c->answered = NULL;
	if (!c->handle || !set_up(c) || nbd_aio_connect_uri(c->handle, nbd->uri) < 0) {
		lose_by_libnbd(c);
		return;
	}
	c->until_ns = kn_after(nbd->opts.silence_ns);
	pthread_mutex_lock(&nbd->lock);
	c->phase = KN_CONNECTING;
	pthread_mutex_unlock(&nbd->lock);
}

static struct kn_export look_at_export(struct nbd_handle *h)
{
	int64_t bytes = nbd_get_size(h), block = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM),
		most = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);
	struct kn_export e = { .bytes = bytes > 0 ? (uint64_t)bytes : 0, .block = 512 };

	e.readable = e.bytes;
	/* Where the server does not say, blocks of 512 are safe, and a part of one at the end is as well. */
	if (block > 0 && block <= KN_PIECE) {
		e.block = (uint32_t)block;
		e.readable &= ~(uint64_t)(block - 1);
	}
	e.piece = KN_PIECE;
	if (most > 0 && most < KN_PIECE)
		e.piece = (uint32_t)most & ~(e.block - 1);
	if (nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0)
		e.flags |= KVMEM_NBD_HOLES;
	if (nbd_can_multi_conn(h) > 0)
		e.flags |= KVMEM_NBD_MULTI_CONN;
	if (nbd_get_tls_negotiated(h) > 0)
		e.flags |= KVMEM_NBD_TLS;
	return e;
}

/* With the lock held. */
static bool is_same_export(struct kvmem_nbd *nbd, const struct kn_export *e, char *text,
			   size_t room)
{
	const struct kn_export *first = &nbd->export;

	if (!nbd->tried) {
		nbd->export = *e;
		if (e->flags & KVMEM_NBD_HOLES)
			kn_holes_begin(&nbd->holes);
		return true;
	}
	if (e->bytes == first->bytes && e->block <= first->block && e->piece >= first->piece)
		return true;
	snprintf(text, room,
		 "the export is another one now, of 0x%" PRIx64 " bytes and not 0x%" PRIx64,
		 e->bytes, first->bytes);
	return false;
}

static void is_ready(struct kn_connection *c)
{
	struct kn_export e = look_at_export(c->handle);
	struct kvmem_nbd *nbd = c->nbd;
	char text[KVMEM_NBD_WHY_MAX];
	bool same;

	if (!e.readable || !e.piece) {
		lose(c, ENODATA,
		     e.readable ? "the server's block sizes cannot be used"
				: "the export is empty");
		return;
	}
	pthread_mutex_lock(&nbd->lock);
	same = is_same_export(nbd, &e, text, sizeof(text));
	if (same) {
		c->phase = KN_UP;
		nbd->stats.connected++;
		tried(nbd, 0);
	}
	pthread_mutex_unlock(&nbd->lock);
	c->heard_ns = kn_now_ns();
	if (!same)
		lose(c, ESTALE, text);
}

static void connecting(struct kn_connection *c)
{
	if (nbd_aio_is_dead(c->handle) || nbd_aio_is_closed(c->handle))
		lose_by_libnbd(c);
	else if (nbd_aio_is_ready(c->handle))
		is_ready(c);
	else if (kn_now_ns() >= c->until_ns)
		lose(c, ETIMEDOUT, "the server is silent");
}

/* ---- working ---- */

/* When a request of what was sent is late; UINT64_MAX: there is none. */
static uint64_t first_deadline(struct kn_connection *c)
{
	uint64_t until = UINT64_MAX;

	pthread_mutex_lock(&c->nbd->lock);
	for (const struct kn_piece *p = c->sent.first; p; p = p->next)
		until = kn_min(until, p->of->until_ns);
	pthread_mutex_unlock(&c->nbd->lock);
	return until;
}

static uint64_t silent_at(struct kn_connection *c)
{
	uint64_t ns = c->nbd->opts.silence_ns;

	if (!c->sent.first && !kn_holes_asked(c))
		return UINT64_MAX;
	return ns > UINT64_MAX - c->heard_ns ? UINT64_MAX : c->heard_ns + ns;
}

static void working(struct kn_connection *c)
{
	kn_send(c);
	kn_holes_ask(c);
	if (!kn_settle(c))
		lose_by_libnbd(c);
}

/* After what has come was read: this thread may have been busy for long, in a callback of the VMM's. */
static void look_at_time(struct kn_connection *c, bool heard)
{
	uint64_t now = kn_now_ns();

	if (c->phase != KN_UP)
		return;
	if (first_deadline(c) <= now)
		lose(c, ETIMEDOUT, "a request was not answered in time");
	else if (!heard && silent_at(c) <= now)
		lose(c, ETIMEDOUT, "it owes answers and is silent");
}

/* ---- waiting ---- */

static uint64_t wait_until(struct kn_connection *c)
{
	if (c->phase != KN_UP)
		return c->until_ns;
	return kn_min(first_deadline(c), silent_at(c));
}

static int poll_timeout(uint64_t until_ns)
{
	uint64_t now = kn_now_ns();

	if (until_ns == UINT64_MAX)
		return -1;
	if (until_ns <= now)
		return 0;
	return (int)kn_min((until_ns - now + 999999) / 1000000, 3600000);
}

/* Whoever puts something into the queue from here on, or ends it all, wakes it. */
static bool may_sleep(struct kn_connection *c)
{
	struct kvmem_nbd *nbd = c->nbd;
	bool busy;

	pthread_mutex_lock(&nbd->lock);
	busy = c->phase == KN_UP && nbd->queue.first && c->in_flight < nbd->opts.depth;
	busy = busy || nbd->stopping;
	c->asleep = !busy;
	pthread_mutex_unlock(&nbd->lock);
	return !busy;
}

static void events(struct kn_connection *c, short revents)
{
	unsigned int direction = nbd_aio_get_direction(c->handle);
	int r = 0;

	c->heard_ns = revents & POLLIN ? kn_now_ns() : c->heard_ns;
	if (direction & LIBNBD_AIO_DIRECTION_READ && revents & (POLLIN | POLLHUP | POLLERR))
		r = nbd_aio_notify_read(c->handle);
	else if (direction & LIBNBD_AIO_DIRECTION_WRITE && revents & (POLLOUT | POLLHUP | POLLERR))
		r = nbd_aio_notify_write(c->handle);
	if (c->phase == KN_UP && (!kn_settle(c) || r < 0))
		lose_by_libnbd(c);
}

static void wait_for_events(struct kn_connection *c)
{
	struct pollfd fds[2] = { { .fd = c->wake, .events = POLLIN }, { .fd = -1 } };
	uint64_t until;
	bool sleeps;
	int timeout;
	eventfd_t woken;

	if (c->handle) {
		unsigned int direction = nbd_aio_get_direction(c->handle);

		fds[1].fd = nbd_aio_get_fd(c->handle);
		fds[1].events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
					(direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
	}
	/* In this order: who changes a deadline from here on wakes it. */
	sleeps = may_sleep(c);
	until = wait_until(c);
	timeout = sleeps ? poll_timeout(until) : 0;
	if (poll(fds, 2, timeout) < 0)
		return;
	if (fds[0].revents)
		eventfd_read(c->wake, &woken);
	if (fds[1].revents)
		events(c, fds[1].revents);
	look_at_time(c, fds[1].revents);
}

/* Nothing is under way any more, but perhaps a question about holes. */
static void say_goodbye(struct kn_connection *c)
{
	if (!c->handle)
		return;
	if (c->phase == KN_UP && nbd_aio_is_ready(c->handle))
		nbd_aio_disconnect(c->handle, 0);
	nbd_close(c->handle);
	c->handle = NULL;
	kn_take_back(c);
}

static bool is_stopping(struct kvmem_nbd *nbd)
{
	bool stopping;

	pthread_mutex_lock(&nbd->lock);
	stopping = nbd->stopping;
	pthread_mutex_unlock(&nbd->lock);
	return stopping;
}

void *kn_connection(void *arg)
{
	struct kn_connection *c = arg;

	while (!is_stopping(c->nbd)) {
		if (c->phase == KN_DOWN && kn_now_ns() >= c->until_ns)
			begin(c);
		if (c->phase == KN_CONNECTING)
			connecting(c);
		if (c->phase == KN_UP)
			working(c);
		wait_for_events(c);
	}
	say_goodbye(c);
	return NULL;
}
