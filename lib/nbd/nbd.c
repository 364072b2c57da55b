// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* An export: opened, looked at, closed. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "nbd/internal.h"

#define SECOND	   1000000000ull
#define MOST_PAUSE (3600 * SECOND)
#define ALL_FLAGS  (KVMEM_NBD_ALL_DATA | KVMEM_NBD_WAIT_HOLES | KVMEM_NBD_URI_FILES)

/* ---- threads ---- */

/* The VMM's signals are not for it; what a thread raises itself would end the program if it were blocked. */
static int start_thread(pthread_t *ret, void *(*fn)(void *arg), void *arg, const char *name,
			unsigned int number)
{
	static const int own[] = { SIGSYS, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
	sigset_t all, before;
	char text[16];
	int r;

	sigfillset(&all);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(&all, own[i]);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(ret, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r)
		return kn_fail(r, "kvmem_nbd_open: a thread: %m");
	snprintf(text, sizeof(text), "%s/%u", name, number);
	pthread_setname_np(*ret, text);
	return 0;
}

/* One more connection. */
static int connection_start(struct kvmem_nbd *nbd)
{
	unsigned int number = nbd->connection_count;
	struct kn_connection *c = &nbd->connections[number];
	int r;

	c->nbd = nbd;
	c->random = kn_now_ns() ^ (uintptr_t)c;
	c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->wake < 0)
		return kn_fail(errno, "kvmem_nbd_open: eventfd: %m");
	/* Before its thread, which may be woken from then on. */
	pthread_mutex_lock(&nbd->lock);
	nbd->connection_count = number + 1;
	pthread_mutex_unlock(&nbd->lock);
	r = start_thread(&c->thread, kn_connection, c, "kvmem-nbd", number);
	if (!r)
		return 0;
	pthread_mutex_lock(&nbd->lock);
	nbd->connection_count = number;
	pthread_mutex_unlock(&nbd->lock);
	close(c->wake);
	return r;
}

static void stop(struct kvmem_nbd *nbd)
{
	pthread_mutex_lock(&nbd->lock);
	nbd->stopping = true;
	pthread_cond_signal(&nbd->clock_changed);
	kn_poke_all(nbd);
	pthread_mutex_unlock(&nbd->lock);
	for (unsigned int i = 0; i < nbd->connection_count; i++) {
		pthread_join(nbd->connections[i].thread, NULL);
		close(nbd->connections[i].wake);
	}
	pthread_join(nbd->clock, NULL);
}

/* ---- opened ---- */

static int check_opts(struct kvmem_nbd_opts *o)
{
	if (o->flags & ~ALL_FLAGS)
		return kn_fail(EINVAL, "kvmem_nbd_opts: flags: unknown bits 0x%" PRIx32,
			       o->flags & ~ALL_FLAGS);
	if (o->connections > KN_MOST_CONNECTIONS)
		return kn_fail(EINVAL, "kvmem_nbd_opts: connections is %" PRIu32 ", at most %u",
			       o->connections, KN_MOST_CONNECTIONS);
	if (o->depth > KN_MOST_DEPTH)
		return kn_fail(EINVAL, "kvmem_nbd_opts: depth is %" PRIu32 ", at most %u", o->depth,
			       KN_MOST_DEPTH);
	o->connections = o->connections ? o->connections : 4;
	o->depth = o->depth ? o->depth : 128;
	o->deadline_ns = o->deadline_ns ? o->deadline_ns : 30 * SECOND;
	o->silence_ns = o->silence_ns ? o->silence_ns : 10 * SECOND;
	o->retry_ns = kn_min(o->retry_ns ? o->retry_ns : SECOND, MOST_PAUSE);
	return 0;
}

static struct kvmem_nbd *nbd_new(const char *uri, const struct kvmem_nbd_opts *o)
{
	struct kvmem_nbd *nbd = calloc(1, sizeof(*nbd));
	pthread_condattr_t attr;

	if (!nbd)
		return NULL;
	nbd->uri = strdup(uri);
	if (!nbd->uri) {
		free(nbd);
		return NULL;
	}
	nbd->opts = *o;
	pthread_mutex_init(&nbd->lock, NULL);
	pthread_cond_init(&nbd->opened, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&nbd->clock_changed, &attr);
	pthread_condattr_destroy(&attr);
	kn_holes_init(&nbd->holes);
	return nbd;
}

static void nbd_free(struct kvmem_nbd *nbd)
{
	kn_holes_end(&nbd->holes);
	pthread_cond_destroy(&nbd->clock_changed);
	pthread_cond_destroy(&nbd->opened);
	pthread_mutex_destroy(&nbd->lock);
	free(nbd->uri);
	free(nbd);
}

/* Of the errors of libnbd and of the system those that tell what to do; the sentence has the others. */
static int told_error(int error)
{
	static const int told[] = { EINVAL,  ENOENT, EACCES, EPERM, ETIMEDOUT,
				    ENODATA, ENOMEM, EMFILE, EAGAIN };

	for (size_t i = 0; i < sizeof(told) / sizeof(told[0]); i++)
		if (error == -told[i])
			return told[i];
	return EIO;
}

/* 0: the first connection is there. */
static int first_connection(struct kvmem_nbd *nbd)
{
	char why[KVMEM_NBD_WHY_MAX];
	int error, r;

	r = connection_start(nbd);
	if (r)
		return r;
	pthread_mutex_lock(&nbd->lock);
	while (!nbd->tried)
		pthread_cond_wait(&nbd->opened, &nbd->lock);
	error = nbd->error;
	memcpy(why, nbd->stats.why, sizeof(why));
	pthread_mutex_unlock(&nbd->lock);
	return error ? kn_fail(told_error(error), "kvmem_nbd_open: %s: %s", nbd->uri, why) : 0;
}

int kvmem_nbd_open(const char *uri, const struct kvmem_nbd_opts *opts, struct kvmem_nbd **ret_nbd)
{
	struct kvmem_nbd_opts o;
	struct kvmem_nbd *nbd;
	int r;

	if (!uri || !ret_nbd)
		return kn_fail(EINVAL, "kvmem_nbd_open: %s is NULL", uri ? "ret_nbd" : "uri");
	r = kvmem_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_nbd_opts");
	if (!r)
		r = check_opts(&o);
	if (r)
		return r;
	nbd = nbd_new(uri, &o);
	if (!nbd)
		return kn_fail(ENOMEM, "kvmem_nbd_open: no memory");
	r = start_thread(&nbd->clock, kn_clock, nbd, "kvmem-clock", 0);
	if (r) {
		nbd_free(nbd);
		return r;
	}
	r = first_connection(nbd);
	if (r) {
		stop(nbd);
		nbd_free(nbd);
		return r;
	}
	/* Without a thread for them there are fewer. */
	while (nbd->export.flags & KVMEM_NBD_MULTI_CONN && nbd->connection_count < o.connections &&
	       !connection_start(nbd))
		;
	if (o.flags & KVMEM_NBD_WAIT_HOLES)
		kn_holes_wait(&nbd->holes, kn_after(o.deadline_ns));
	*ret_nbd = nbd;
	return 0;
}

int kvmem_nbd_close(struct kvmem_nbd *nbd)
{
	uint32_t sources;

	if (!nbd)
		return 0;
	sources = atomic_load(&nbd->sources);
	if (sources)
		return kn_fail(EBUSY,
			       "kvmem_nbd_close: %" PRIu32
			       " sources of it are not freed: kvmem_source_free() first",
			       sources);
	stop(nbd);
	nbd_free(nbd);
	return 0;
}

int kvmem_nbd_source(struct kvmem_nbd *nbd, uint64_t offset, uint64_t bytes,
		     struct kvmem_source **ret_source)
{
	uint64_t size;

	if (!nbd || !ret_source)
		return kn_fail(EINVAL, "kvmem_nbd_source: %s is NULL", nbd ? "ret_source" : "nbd");
	size = nbd->export.readable;
	if (offset >= size || bytes > size - offset)
		return kn_fail(ENODATA,
			       "kvmem_nbd_source: the export has 0x%" PRIx64
			       " bytes that can be read, too short for 0x%" PRIx64
			       " at offset 0x%" PRIx64,
			       size, bytes ? bytes : 1, offset);
	if (!bytes && size < nbd->export.bytes)
		return kn_fail(ENODATA,
			       "kvmem_nbd_source: the export ends after 0x%" PRIx64
			       " bytes, and the server reads whole blocks of %" PRIu32
			       " alone: say how many of the 0x%" PRIx64
			       " that can be read are wanted",
			       nbd->export.bytes, nbd->export.block, size);
	return kn_source(nbd, offset, bytes ? bytes : size - offset, ret_source);
}

/* ---- looked at ---- */

int kvmem_nbd_get_info(const struct kvmem_nbd *nbd, struct kvmem_nbd_info *ret_info)
{
	struct kvmem_nbd_info info = KVMEM_NBD_INFO_INIT;
	int r;

	if (!nbd)
		return kn_fail(EINVAL, "kvmem_nbd_get_info: nbd is NULL");
	r = kvmem_result_check(ret_info, sizeof(info), "kvmem_nbd_info");
	if (r)
		return r;
	info.flags = nbd->export.flags;
	info.bytes = nbd->export.readable;
	info.connections = nbd->connection_count; /* since the open */
	info.block_bytes = nbd->export.block;
	kvmem_result_copy(ret_info, &info, sizeof(info));
	return 0;
}

int kvmem_nbd_get_stats(struct kvmem_nbd *nbd, struct kvmem_nbd_stats *ret_stats)
{
	struct kvmem_nbd_stats stats;
	int r;

	if (!nbd)
		return kn_fail(EINVAL, "kvmem_nbd_get_stats: nbd is NULL");
	r = kvmem_result_check(ret_stats, sizeof(stats), "kvmem_nbd_stats");
	if (r)
		return r;
	pthread_mutex_lock(&nbd->lock);
	stats = nbd->stats;
	pthread_mutex_unlock(&nbd->lock);
	kn_holes_count(&nbd->holes, &stats.bytes_known, &stats.bytes_zero);
	kvmem_result_copy(ret_stats, &stats, sizeof(stats));
	return 0;
}
