// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Sources that answer later: requests go out, and come back by kvmem_source_complete(), in any order and from any
 * thread. Who reads such a source like another one waits here, with the parts of the read under way side by side.
 */
#include "source/source.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#define PART_BYTES (64u << 10) /* of a read that is waited for */
#define MOST_PARTS 64u

int kvmem_source_async(const struct kvmem_source_async_ops *ops, void *arg, uint64_t bytes,
		       struct kvmem_source **ret_source)
{
	struct kvmem_source_async_ops o;
	struct kvmem_source *s;
	int r;

	if (!ops || !ret_source)
		return km_fail(EINVAL, "kvmem_source_async: %s is NULL",
			       ops ? "ret_source" : "ops");
	r = km_opts_copy(&o, sizeof(o), sizeof(o), ops, "kvmem_source_async_ops");
	if (!r)
		r = km_flags_check(o.flags, 0, "kvmem_source_async_ops: flags");
	if (r)
		return r;
	if (!o.submit)
		return km_fail(EINVAL, "kvmem_source_async_ops: submit is NULL");
	if (!bytes)
		return km_fail(EINVAL, "kvmem_source_async: bytes is 0");
	s = km_source_new(KM_SOURCE_ASYNC, bytes);
	if (!s)
		return -ENOMEM;
	s->ops.extent = o.extent;
	s->ops.close = o.close;
	s->submit = o.submit;
	s->cancel = o.cancel;
	s->arg = arg;
	*ret_source = s;
	return 0;
}

int km_source_submit(struct kvmem_source *s, struct km_source_request *const *requests,
		     size_t count)
{
	struct kvmem_source_request *list[MOST_PARTS];
	struct km_callback cb;
	int r;

	for (size_t i = 0; i < count; i++)
		list[i] = &requests[i]->pub;
	km_callback_enter(&cb, "kvmem_source_async_ops.submit", s, NULL);
	r = km_callback_errno(s->submit(s->arg, list, count));
	km_callback_leave(&cb);
	return r;
}

void km_source_cancel(struct kvmem_source *s, struct km_source_request *request)
{
	struct km_callback cb;

	if (!s->cancel)
		return;
	km_callback_enter(&cb, "kvmem_source_async_ops.cancel", s, NULL);
	s->cancel(s->arg, &request->pub);
	km_callback_leave(&cb);
}

int kvmem_source_complete(struct kvmem_source_request *request, int result)
{
	struct km_source_request *r = (struct km_source_request *)request;

	if (!request)
		return km_fail(EINVAL, "kvmem_source_complete: request is NULL");
	r->done(r, km_callback_errno(result));
	return 0;
}

/* ---- waiting for it ---- */

struct waited {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int left;
	int error;
};

struct part {
	struct km_source_request req; /* first */
	struct waited *of;
	bool done;
};

static void part_done(struct km_source_request *req, int result)
{
	struct part *part = (struct part *)req;
	struct waited *w = part->of;

	pthread_mutex_lock(&w->lock);
	part->done = true;
	if (result && !w->error)
		w->error = result;
	if (!--w->left)
		pthread_cond_signal(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

/* What has not come back is canceled, and comes back by that, or soon. */
static void give_up(struct kvmem_source *s, struct part *parts, size_t count)
{
	struct waited *w = parts->of;

	for (size_t i = 0; i < count; i++) {
		bool done;

		pthread_mutex_lock(&w->lock);
		done = parts[i].done;
		pthread_mutex_unlock(&w->lock);
		if (!done)
			km_source_cancel(s, &parts[i].req);
	}
}

/* With w->lock held. True: the time is over. */
static bool wait_for_parts(struct waited *w, bool looks)
{
	uint64_t until = km_sys_now_ns() + KM_SOURCE_LOOK_NS;
	struct timespec ts = { .tv_sec = (time_t)(until / 1000000000),
			       .tv_nsec = (long)(until % 1000000000) };

	if (looks)
		return pthread_cond_timedwait(&w->changed, &w->lock, &ts) == ETIMEDOUT;
	pthread_cond_wait(&w->changed, &w->lock);
	return false;
}

/* All parts of one submission have come back when it returns, also when some failed. */
static int read_parts(struct kvmem_source *s, struct part *parts, size_t count,
		      const struct km_source_wait *wait)
{
	struct km_source_request *list[MOST_PARTS];
	struct waited *w = parts->of;
	int r;

	w->left = (unsigned int)count;
	w->error = 0;
	for (size_t i = 0; i < count; i++)
		list[i] = &parts[i].req;
	r = km_source_submit(s, list, count);
	if (r)
		return r;
	pthread_mutex_lock(&w->lock);
	while (w->left) {
		if (!wait_for_parts(w, wait))
			continue;
		pthread_mutex_unlock(&w->lock);
		if (wait->look(wait->arg)) {
			give_up(s, parts, count);
			wait = NULL;
		}
		pthread_mutex_lock(&w->lock);
	}
	r = w->error;
	pthread_mutex_unlock(&w->lock);
	return r;
}

int km_source_async_read(struct kvmem_source *s, uint64_t offset, uint8_t *buf, uint64_t bytes,
			 const struct km_source_wait *wait)
{
	struct waited w = { .left = 0 };
	struct part *parts = km_sys_alloc(MOST_PARTS * sizeof(*parts));
	pthread_condattr_t attr;
	uint64_t at = 0;
	int r = 0;

	if (!parts)
		return km_fail(ENOMEM, "source: no memory for requests");
	pthread_mutex_init(&w.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w.changed, &attr);
	pthread_condattr_destroy(&attr);
	while (at < bytes && !r) {
		size_t n = 0;

		for (; n < MOST_PARTS && at < bytes; n++) {
			uint64_t part = km_min(bytes - at, PART_BYTES);

			parts[n] = (struct part){
				{ { offset + at, part, buf + at, NULL }, part_done }, &w, false
			};
			at += part;
		}
		r = read_parts(s, parts, n, wait);
	}
	pthread_cond_destroy(&w.changed);
	pthread_mutex_destroy(&w.lock);
	km_sys_free(parts);
	if (r)
		return km_fail(-r,
			       "source: a request of 0x%" PRIx64 " bytes at offset 0x%" PRIx64
			       " was answered: %m",
			       bytes, offset);
	return 0;
}
