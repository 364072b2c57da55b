// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The data of a new image into zstd frames, when it is committed: until then pages may be written again, in any order.
 * Several threads take a span each. Where their frames go is decided in the order of the spans, so that the same
 * content is the same file whatever the threads do.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zstd.h>

#include "image/internal.h"

#define LEVEL	    3 /* of zstd: its default */
#define SPAN_CHUNKS (KI_BLOCK_PAGES / KI_CHUNK_PAGES)

_Static_assert(ZSTD_COMPRESSBOUND(KI_CHUNK) <= KI_MAX_FRAME, "no frame is longer");

struct pack {
	struct kvmem_image_writer *w;
	int fd; /* that frames are written to */
	pthread_mutex_t lock;
	pthread_cond_t turned;
	uint64_t span;		/* the next one that a thread takes */
	uint64_t tickets, turn; /* of spans that were taken; whose frames get their place next */
	uint64_t at;		/* in the file */
	int err;		/* the first error, and what was said of it */
	char detail[512];
};

/* Of a thread. */
struct packer {
	uint64_t span, ticket;
	ZSTD_CCtx *context;
	struct ki_frame frames[SPAN_CHUNKS]; /* offsets into out */
	uint64_t used;			     /* bytes of out */
	char chunk[KI_CHUNK];
	char out[SPAN_CHUNKS * KI_MAX_FRAME];
};

/* ---- a span ---- */

/* The pages of a chunk that are this image's, zeros between them. Returns how many, or -errno. */
static int read_chunk(const struct pack *p, struct packer *t, const struct ki_entry *e,
		      uint64_t page, uint64_t pages)
{
	uint32_t self = ki_writer_layer(p->w) + 1;
	int own = 0;

	for (uint64_t i = 0; i < pages; i++) {
		char *to = t->chunk + (i << KI_PAGE_SHIFT);
		int r;

		if (e[i].place != self) {
			memset(to, 0, KI_PAGE);
			continue;
		}
		own++;
		r = ki_read_at(p->w->data.fd, (page + i) << KI_PAGE_SHIFT, to, KI_PAGE,
			       "kvmem_image_commit: the data");
		if (!r && ki_page_sum(to) != e[i].sum)
			r = ki_fail(EIO,
				    "kvmem_image_commit: the page at offset 0x%" PRIx64
				    " is not read as it was written",
				    (page + i) << KI_PAGE_SHIFT);
		if (r)
			return r;
	}
	return own;
}

static int pack_chunk(const struct pack *p, struct packer *t, const struct ki_entry *e,
		      uint64_t page, struct ki_frame *ret)
{
	uint64_t pages = ki_min(KI_CHUNK_PAGES, (p->w->bytes >> KI_PAGE_SHIFT) - page);
	int own = read_chunk(p, t, e, page, pages);
	size_t n;

	*ret = (struct ki_frame){ 0 };
	if (own <= 0)
		return own;
	n = ZSTD_compressCCtx(t->context, t->out + t->used, KI_MAX_FRAME, t->chunk,
			      pages << KI_PAGE_SHIFT, LEVEL);
	if (ZSTD_isError(n))
		return ki_fail(ENOMEM, "kvmem_image_commit: zstd: %s", ZSTD_getErrorName(n));
	*ret = (struct ki_frame){ .offset = t->used,
				  .bytes = (uint32_t)n,
				  .sum = (uint32_t)ki_sum64(t->out + t->used, n) };
	t->used += n;
	return 0;
}

static int pack_span(const struct pack *p, struct packer *t)
{
	uint64_t chunks = ki_min(SPAN_CHUNKS, ki_chunks(p->w->bytes) - t->span * SPAN_CHUNKS);
	const struct ki_entry *e = atomic_load(&p->w->blocks[t->span]);
	int r = 0;

	t->used = 0;
	for (uint64_t i = 0; !r && i < chunks; i++)
		r = pack_chunk(p, t, e + i * KI_CHUNK_PAGES,
			       t->span * KI_BLOCK_PAGES + i * KI_CHUNK_PAGES, &t->frames[i]);
	/* What is packed need not go to the disk any more. Where there are no holes it does. */
	if (!r)
		fallocate(p->w->data.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  (off_t)(t->span * KI_SPAN), (off_t)KI_SPAN);
	return r;
}

static int put_span(const struct pack *p, const struct packer *t, uint64_t at)
{
	uint64_t chunks = ki_min(SPAN_CHUNKS, ki_chunks(p->w->bytes) - t->span * SPAN_CHUNKS);
	struct ki_frame *to = p->w->frames + t->span * SPAN_CHUNKS;

	for (uint64_t i = 0; i < chunks; i++) {
		to[i] = t->frames[i];
		if (to[i].bytes)
			to[i].offset += at;
	}
	return ki_write_at(p->fd, at, t->out, t->used, "kvmem_image_commit: the data");
}

/* ---- threads ---- */

static void stop(struct pack *p, int err)
{
	if (!p->err) {
		p->err = err;
		snprintf(p->detail, sizeof(p->detail), "%s", kvmem_error_detail());
	}
	pthread_cond_broadcast(&p->turned);
}

/* A span that has a block: without one nothing was written to it. */
static bool take(struct pack *p, struct packer *t)
{
	uint64_t spans = ki_spans(p->w->bytes);

	while (p->span < spans && !atomic_load(&p->w->blocks[p->span]))
		p->span++;
	if (p->err || p->span == spans)
		return false;
	t->span = p->span++;
	t->ticket = p->tickets++;
	return true;
}

/* A place for the frames, when all spans before have theirs. */
static uint64_t place(struct pack *p, const struct packer *t)
{
	uint64_t at;

	while (p->turn != t->ticket && !p->err)
		pthread_cond_wait(&p->turned, &p->lock);
	at = p->at;
	p->at += t->used;
	p->turn++;
	pthread_cond_broadcast(&p->turned);
	return at;
}

/* With the lock held, and again when it returns. */
static void tell(struct pack *p, const struct packer *t)
{
	struct kvmem_image_progress done = { .size = sizeof(done), .total = p->w->bytes };
	bool cancel;

	done.done = ki_min((t->span + 1) * KI_SPAN, done.total);
	pthread_mutex_unlock(&p->lock);
	cancel = p->w->progress(p->w->progress_arg, &done) != 0;
	pthread_mutex_lock(&p->lock);
	if (cancel)
		stop(p, ki_fail(ECANCELED, "kvmem_image_commit: canceled by progress"));
}

static void work(void *arg, bool caller)
{
	struct packer *t = malloc(sizeof(*t));
	struct pack *p = arg;
	int r = 0;

	if (t)
		t->context = ZSTD_createCCtx();
	if (!t || !t->context)
		r = ki_fail(ENOMEM, "kvmem_image_commit: no memory to pack");
	pthread_mutex_lock(&p->lock);
	while (!r && take(p, t)) {
		uint64_t at = 0;

		pthread_mutex_unlock(&p->lock);
		r = pack_span(p, t);
		pthread_mutex_lock(&p->lock);
		if (!r)
			at = place(p, t);
		if (r || p->err)
			break;
		pthread_mutex_unlock(&p->lock);
		r = put_span(p, t, at);
		pthread_mutex_lock(&p->lock);
		if (!r && caller && p->w->progress && !p->err)
			tell(p, t);
	}
	if (r)
		stop(p, r);
	pthread_mutex_unlock(&p->lock);
	if (t)
		ZSTD_freeCCtx(t->context);
	free(t);
}

/* ---- the data ---- */

int ki_pack_check(void)
{
	return 0;
}

int ki_pack(struct kvmem_image_writer *w)
{
	struct pack p = { .w = w };
	struct ki_new_file file;
	int r = ki_new_file(w->place.dir, "kvmem_image_commit: the data", &file);

	if (r)
		return r;
	w->frames = calloc(ki_chunks(w->bytes), sizeof(*w->frames));
	if (!w->frames) {
		ki_new_file_end(&file);
		return ki_fail(ENOMEM, "kvmem_image_commit: no memory for the table of frames");
	}
	p.fd = file.fd;
	pthread_mutex_init(&p.lock, NULL);
	pthread_cond_init(&p.turned, NULL);
	ki_workers_run("kvmem-pack", ki_workers(0), work, &p);
	pthread_cond_destroy(&p.turned);
	pthread_mutex_destroy(&p.lock);
	w->packed_bytes = p.at;
	if (p.err) {
		ki_new_file_end(&file);
		return ki_fail(-p.err, "%s", p.detail);
	}
	ki_new_file_end(&w->data);
	w->data = file;
	return 0;
}
