// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Sources of known content: each word is a function of the seed and of where it stands. Callback sources
 * can be slow, and can fail on ranges for a while.
 */
#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define HOLE_BYTES 65536u

static bool is_hole(const struct source *source, uint64_t offset)
{
	return source->holes && offset / HOLE_BYTES % 4 == 3;
}

static uint64_t word_at(const struct source *source, uint64_t index)
{
	uint64_t offset = index * 8;

	/* Some pages hold zeros that are no hole. */
	if (is_hole(source, offset) || offset / PAGE % 11 == 5)
		return 0;
	return guest_pattern(source->seed, offset);
}

static void words_to(const struct source *source, uint64_t offset, unsigned char *to,
		     uint64_t bytes)
{
	while (bytes) {
		uint64_t word = word_at(source, offset / 8), skip = offset % 8;
		uint64_t n = bytes < 8 - skip ? bytes : 8 - skip;

		memcpy(to, (const unsigned char *)&word + skip, n);
		to += n;
		offset += n;
		bytes -= n;
	}
}

void source_content(const struct source *source, uint64_t offset, void *to, uint64_t bytes)
{
	uint64_t there = offset >= source->bytes ? 0 : source->bytes - offset;
	uint64_t n = bytes < there ? bytes : there;

	words_to(source, offset, to, n);
	memset((unsigned char *)to + n, 0, bytes - n);
}

/* ---- callbacks ---- */

static bool is_bad(struct source *source, uint64_t offset, uint64_t bytes)
{
	for (unsigned int i = 0; i < MAX_THREADS; i++) {
		uint64_t to = atomic_load(&source->bad[i].to);

		if (to && offset < to && atomic_load(&source->bad[i].from) < offset + bytes)
			return true;
	}
	return false;
}

static int read_source(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct source *source = arg;
	uint64_t slow = atomic_load_explicit(&source->slow_ns, memory_order_relaxed);
	struct timespec pause = { .tv_nsec = (long)slow };

	if (!bytes || offset >= source->bytes || bytes > source->bytes - offset)
		fail(NULL, -1, "the source was asked for %llu bytes at %llu of %llu",
		     (unsigned long long)bytes, (unsigned long long)offset,
		     (unsigned long long)source->bytes);
	if (slow)
		nanosleep(&pause, NULL);
	if (is_bad(source, offset, bytes)) {
		memset(buf, 0xbd, bytes < 512 ? bytes : 512);
		return -EREMOTEIO;
	}
	source_content(source, offset, buf, bytes);
	for (uint64_t page = offset / PAGE; page * PAGE < offset + bytes; page++)
		atomic_store(&source->read_done[page], 1);
	return 0;
}

static int extent_of(void *arg, uint64_t offset, struct kvmem_extent *ret_extent)
{
	const struct source *source = arg;
	uint64_t from = offset / HOLE_BYTES * HOLE_BYTES;

	ret_extent->kind = !is_hole(source, offset)	? KVMEM_EXTENT_DATA
			   : from / HOLE_BYTES % 8 == 3 ? KVMEM_EXTENT_HOLE
							: KVMEM_EXTENT_ZERO;
	ret_extent->offset = from;
	ret_extent->bytes = HOLE_BYTES;
	return 0;
}

bool source_may_be_read(const struct source *source, uint64_t offset, uint64_t bytes)
{
	if (source->kind != SOURCE_CALLBACK)
		return true;
	for (uint64_t page = offset / PAGE; page * PAGE < offset + bytes; page++) {
		if (page * PAGE >= source->bytes || is_hole(source, page * PAGE))
			continue;
		if (!atomic_load(&source->read_done[page]))
			return false;
	}
	return true;
}

void source_was_read(struct source *source, uint64_t offset, uint64_t bytes)
{
	for (uint64_t page = offset / PAGE;
	     source->kind == SOURCE_CALLBACK && page * PAGE < offset + bytes &&
	     page * PAGE < source->bytes;
	     page++)
		atomic_store(&source->read_done[page], 1);
}

void source_fail(struct source *source, unsigned int actor, uint64_t offset, uint64_t bytes)
{
	atomic_store(&source->bad[actor].from, offset);
	atomic_store(&source->bad[actor].to, offset + bytes);
}

void source_recover(struct source *source, unsigned int actor)
{
	atomic_store(&source->bad[actor].to, 0);
}

/* ---- open and close ---- */

/* ---- answers that come later ---- */

#define MOST_REQUESTS 8192u

struct server {
	struct source *source;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_t threads[2];
	struct rng rng;
	bool end;
	unsigned int count;
	struct kvmem_source_request *queue[MOST_REQUESTS];
};

/* Any of those that wait; NULL: none does. With the lock held. */
static struct kvmem_source_request *take_any(struct server *s)
{
	uint64_t i = s->count ? below(&s->rng, s->count) : 0;
	struct kvmem_source_request *r = s->count ? s->queue[i] : NULL;

	if (r)
		s->queue[i] = s->queue[--s->count];
	return r;
}

static void answer(struct source *source, struct kvmem_source_request *r)
{
	must(kvmem_source_complete(r, read_source(source, r->offset, r->buf, r->bytes)));
}

static void *serve(void *arg)
{
	struct server *s = arg;

	pthread_mutex_lock(&s->lock);
	while (!s->end) {
		struct kvmem_source_request *r = take_any(s);

		if (!r) {
			pthread_cond_wait(&s->changed, &s->lock);
			continue;
		}
		pthread_mutex_unlock(&s->lock);
		answer(s->source, r);
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static int on_submit(void *arg, struct kvmem_source_request *const *requests, size_t n)
{
	struct source *source = arg;
	struct server *s = source->server;

	for (size_t i = 0; i < n; i++) {
		bool at_once;

		atomic_fetch_add_explicit(&report->done[OP_ASYNC], 1, memory_order_relaxed);
		pthread_mutex_lock(&s->lock);
		at_once = one_in(&s->rng, 8) || s->count == MOST_REQUESTS;
		if (!at_once)
			s->queue[s->count++] = requests[i];
		pthread_cond_signal(&s->changed);
		pthread_mutex_unlock(&s->lock);
		if (at_once)
			answer(source, requests[i]);
	}
	return 0;
}

/* Found, it is answered so; else a thread is at it. */
static void on_cancel(void *arg, struct kvmem_source_request *request)
{
	struct server *s = ((struct source *)arg)->server;
	bool found = false;

	pthread_mutex_lock(&s->lock);
	for (unsigned int i = 0; i < s->count && !found; i++)
		if (s->queue[i] == request) {
			s->queue[i] = s->queue[--s->count];
			found = true;
		}
	pthread_mutex_unlock(&s->lock);
	if (found)
		must(kvmem_source_complete(request, -ECANCELED));
}

static void open_async(struct source *source, struct rng *rng)
{
	struct kvmem_source_async_ops ops = KVMEM_SOURCE_ASYNC_OPS_INIT;
	struct server *s = calloc(1, sizeof(*s));

	if (!s) {
		fail(NULL, -1, "no memory for a server");
		return;
	}
	source->server = s;
	s->source = source;
	s->rng = rng_of(below(rng, UINT32_MAX), 1);
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	for (unsigned int i = 0; i < 2; i++)
		if (pthread_create(&s->threads[i], NULL, serve, s))
			fail(NULL, -1, "no thread for a server");
	ops.submit = on_submit;
	ops.cancel = on_cancel;
	ops.extent = source->holes ? extent_of : NULL;
	source->read_done = calloc(source->bytes / PAGE + 2, 1);
	must(kvmem_source_async(&ops, source, source->bytes, &source->handle));
}

static void close_async(struct server *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->end = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(s->threads[i], NULL);
	free(s);
}

static void open_callback(struct source *source)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	ops.read = read_source;
	ops.extent = source->holes ? extent_of : NULL;
	source->read_done = calloc(source->bytes / PAGE + 2, 1);
	must(kvmem_source_callback(&ops, source, source->bytes, &source->handle));
}

/* A file with what it holds for others before it, and holes where the source has holes. */
static void open_file(struct source *source, uint64_t before)
{
	unsigned char *block = malloc(HOLE_BYTES);

	source->fd = memfd_create("torture-source", MFD_CLOEXEC);
	if (source->fd < 0 || !block || ftruncate(source->fd, (off_t)(before + source->bytes)))
		fail(NULL, -1, "the file of a source: %s", strerror(errno));
	for (uint64_t at = 0; at < source->bytes; at += HOLE_BYTES) {
		uint64_t n = source->bytes - at < HOLE_BYTES ? source->bytes - at : HOLE_BYTES;

		if (is_hole(source, at))
			continue;
		source_content(source, at, block, n);
		if (pwrite(source->fd, block, n, (off_t)(before + at)) != (ssize_t)n)
			fail(NULL, -1, "the file of a source: %s", strerror(errno));
	}
	free(block);
	must(kvmem_source_file(source->fd, before, source->bytes, 0, &source->handle));
}

void source_open(struct source *source, enum source_kind kind, uint64_t seed, uint64_t bytes,
		 struct rng *rng)
{
	memset(source, 0, sizeof(*source));
	source->kind = kind;
	source->seed = seed;
	source->bytes = bytes;
	source->fd = -1;
	source->holes = kind != SOURCE_MEMORY && one_in(rng, 2);
	switch (kind) {
	case SOURCE_CALLBACK:
		if (allowed(OP_ASYNC) && one_in(rng, 2))
			open_async(source, rng);
		else
			open_callback(source);
		break;
	case SOURCE_MEMORY:
		source->content = malloc(bytes);
		source_content(source, 0, source->content, bytes);
		must(kvmem_source_memory(source->content, bytes, &source->handle));
		break;
	case SOURCE_FILE:
		open_file(source,
			  below(rng, 3) * 4096 + (allowed(OP_RAGGED) ? below(rng, 2) * 512 : 0));
		break;
	}
}

void source_close(struct source *source)
{
	if (!source->handle)
		return;
	must(kvmem_source_free(source->handle));
	close_async(source->server);
	free((void *)source->read_done);
	free(source->content);
	if (source->fd >= 0)
		close(source->fd);
	source->handle = NULL;
}
