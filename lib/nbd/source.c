// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Bytes of the export as a source that answers later. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "nbd/internal.h"

#define MOST_LOOKS 64u /* runs that are too short to be told */

struct source {
	struct kvmem_nbd *nbd;
	uint64_t offset; /* bytes into the export */
	uint64_t bytes;
};

static int source_submit(void *arg, struct kvmem_source_request *const *requests, size_t count)
{
	const struct source *s = arg;

	return kn_submit(s->nbd, s->offset, requests, count);
}

static void source_cancel(void *arg, struct kvmem_source_request *request)
{
	const struct source *s = arg;

	kn_cancel(s->nbd, request);
}

static uint64_t page_up(uint64_t bytes)
{
	return bytes > UINT64_MAX - (KN_PAGE - 1)
		       ? UINT64_MAX
		       : (bytes + KN_PAGE - 1) & ~(uint64_t)(KN_PAGE - 1);
}

/* The run that byte `at` of the source lies in, in bytes of the source; of what is zero, the whole pages. True: it is
 * zero. */
static bool find_run(const struct source *s, uint64_t at, struct kvmem_extent *ret,
		     uint64_t *ret_end)
{
	uint64_t begin, end;
	struct kn_run run = kn_holes_find(&s->nbd->holes, s->offset + at, &begin);

	begin = begin > s->offset ? begin - s->offset : 0;
	end = kn_min(run.end - s->offset, s->bytes);
	*ret_end = end;
	ret->kind = run.kind;
	if (run.kind != KVMEM_EXTENT_DATA) {
		begin = page_up(begin);
		end = end == s->bytes ? end : end & ~(uint64_t)(KN_PAGE - 1);
	}
	ret->offset = begin;
	ret->bytes = end > begin ? end - begin : 0;
	return ret->kind != KVMEM_EXTENT_DATA && ret->bytes;
}

static int source_extent(void *arg, uint64_t offset, struct kvmem_extent *ret)
{
	const struct source *s = arg;
	struct kvmem_extent run = *ret;
	uint64_t at = offset, end;

	for (unsigned int i = 0; i < MOST_LOOKS && at < s->bytes; i++, at = end) {
		if (!find_run(s, at, &run, &end) || run.offset + run.bytes <= offset)
			continue;
		if (run.offset <= offset) {
			*ret = run;
			return 0;
		}
		at = run.offset; /* data in front of it */
		break;
	}
	ret->kind = KVMEM_EXTENT_DATA;
	ret->offset = offset;
	ret->bytes = at - offset;
	return 0;
}

static void source_close(void *arg)
{
	struct source *s = arg;

	atomic_fetch_sub(&s->nbd->sources, 1);
	free(s);
}

int kn_source(struct kvmem_nbd *nbd, uint64_t offset, uint64_t bytes,
	      struct kvmem_source **ret_source)
{
	struct kvmem_source_async_ops ops = KVMEM_SOURCE_ASYNC_OPS_INIT;
	struct source *s = malloc(sizeof(*s));
	int r;

	if (!s)
		return kn_fail(ENOMEM, "kvmem_nbd_source: no memory");
	*s = (struct source){ nbd, offset, bytes };
	ops.submit = source_submit;
	ops.cancel = source_cancel;
	ops.extent = source_extent;
	ops.close = source_close;
	r = kvmem_source_async(&ops, s, bytes, ret_source);
	if (r)
		free(s);
	else
		atomic_fetch_add(&nbd->sources, 1);
	return r;
}
