// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Data that are packed: for each chunk of the image one zstd frame. A frame is compared with its sum before it is given
 * to the decompressor, has to say that it holds exactly one chunk, and is unpacked into a buffer of that size.
 *
 * Chunks that were unpacked are kept in a small cache of the image: page faults come one page at a time, and mostly in
 * chunks where others were just before. A chunk has one slot that it can be in. A thread that wants it while another
 * one unpacks it waits for the slot, and then finds it there.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zstd.h>

#include "image/internal.h"

#define SLOTS	  32u
#define IN_A_PART (KI_PART / sizeof(struct ki_frame))

struct ki_packed {
	int index; /* descriptor of the index that has the tables */
	int data;  /* borrowed */
	uint64_t bytes, data_bytes;
	struct ki_table table;
	uint64_t *sums; /* of its parts */
};

struct slot {
	pthread_mutex_t lock;
	bool used;
	uint32_t layer; /* of the content, where it is used */
	uint64_t chunk;
	char *content; /* KI_CHUNK; NULL: never used */
};

/* What a thread needs to unpack a frame. */
struct workspace {
	struct workspace *next;
	ZSTD_DCtx *context;
	char frame[KI_MAX_FRAME];
};

struct ki_cache {
	struct slot slots[SLOTS];
	pthread_mutex_t lock;	/* the list */
	struct workspace *idle; /* as many as there were threads that unpacked at once */
};

/* ---- the frames of a layer ---- */

int ki_packed_open(int index, int data, const struct ki_super *super, const char *path,
		   struct ki_packed **ret)
{
	uint64_t parts = (super->frame_table.bytes + KI_PART - 1) / KI_PART;
	struct ki_packed *p = calloc(1, sizeof(*p));
	int r;

	if (!p) {
		close(index);
		return ki_fail(ENOMEM, "%s: no memory", path);
	}
	p->index = index;
	p->data = data;
	p->bytes = super->bytes;
	p->data_bytes = super->data_bytes;
	p->table = super->frame_table;
	r = ki_table_read(index, path, super, &super->frame_part_table, parts * sizeof(*p->sums),
			  &p->sums);
	if (r)
		ki_packed_close(p);
	else
		*ret = p;
	return r;
}

void ki_packed_close(struct ki_packed *p)
{
	if (!p)
		return;
	close(p->index);
	free(p->sums);
	free(p);
}

int ki_packed_frame(const struct ki_packed *p, const char *path, uint64_t chunk,
		    struct ki_frame *ret)
{
	struct ki_frame frames[IN_A_PART];
	int r = ki_part_read(p->index, path, &p->table, p->sums, chunk / IN_A_PART, frames);

	if (r)
		return r;
	*ret = frames[chunk % IN_A_PART];
	if (ret->bytes > KI_MAX_FRAME || ret->offset > p->data_bytes ||
	    ret->bytes > p->data_bytes - ret->offset)
		return ki_fail(EBADMSG,
			       "%s: the index is damaged: chunk %" PRIu64
			       " of the image is %" PRIu32 " bytes at byte %" PRIu64 " of the data",
			       path, chunk, ret->bytes, ret->offset);
	return 0;
}

/* ---- unpacking ---- */

/*
 * One frame, of the format that zstd has had since 1.0 (libzstd may know older ones), which says itself how much it
 * holds. ZSTD_decompressDCtx() writes no more than the buffer has, and allocates nothing by what a frame says.
 */
static bool unpack_frame(struct workspace *ws, size_t frame_bytes, char *content, size_t bytes)
{
	uint32_t magic = 0;

	if (frame_bytes >= sizeof(magic))
		memcpy(&magic, ws->frame, sizeof(magic));
	return magic == ZSTD_MAGICNUMBER &&
	       ZSTD_getFrameContentSize(ws->frame, frame_bytes) == bytes &&
	       ZSTD_findFrameCompressedSize(ws->frame, frame_bytes) == frame_bytes &&
	       ZSTD_decompressDCtx(ws->context, content, bytes, ws->frame, frame_bytes) == bytes;
}

static int unpack_chunk(struct workspace *ws, const struct ki_packed *p, const char *path,
			uint64_t chunk, char *content)
{
	uint64_t bytes = ki_min(KI_CHUNK, p->bytes - (chunk << KI_CHUNK_SHIFT));
	struct ki_frame f;
	int r = ki_packed_frame(p, path, chunk, &f);

	if (!r && !f.bytes)
		return ki_fail(EBADMSG, "%s: the index is damaged: chunk %" PRIu64 " has no frame",
			       path, chunk);
	if (!r)
		r = ki_read_at(p->data, f.offset, ws->frame, f.bytes, path);
	if (!r && ((uint32_t)ki_sum64(ws->frame, f.bytes) != f.sum ||
		   !unpack_frame(ws, f.bytes, content, bytes)))
		r = ki_fail(EBADMSG,
			    "%s: the frame of the chunk at offset 0x%" PRIx64 ", byte %" PRIu64
			    " of packed data, is damaged",
			    path, chunk << KI_CHUNK_SHIFT, f.offset);
	return r;
}

static struct workspace *take_workspace(struct ki_cache *cache)
{
	struct workspace *ws;

	pthread_mutex_lock(&cache->lock);
	ws = cache->idle;
	if (ws)
		cache->idle = ws->next;
	pthread_mutex_unlock(&cache->lock);
	if (ws)
		return ws;
	ws = malloc(sizeof(*ws));
	if (ws)
		ws->context = ZSTD_createDCtx();
	if (ws && !ws->context) {
		free(ws);
		ws = NULL;
	}
	return ws;
}

static void return_workspace(struct ki_cache *cache, struct workspace *ws)
{
	pthread_mutex_lock(&cache->lock);
	ws->next = cache->idle;
	cache->idle = ws;
	pthread_mutex_unlock(&cache->lock);
}

/* ---- the cache ---- */

int ki_cache_new(struct ki_cache **ret)
{
	struct ki_cache *cache = calloc(1, sizeof(*cache));

	if (!cache)
		return ki_fail(ENOMEM, "no memory for chunks of packed data");
	pthread_mutex_init(&cache->lock, NULL);
	for (unsigned int i = 0; i < SLOTS; i++)
		pthread_mutex_init(&cache->slots[i].lock, NULL);
	*ret = cache;
	return 0;
}

void ki_cache_free(struct ki_cache *cache)
{
	if (!cache)
		return;
	for (struct workspace *ws = cache->idle, *next; ws; ws = next) {
		next = ws->next;
		ZSTD_freeDCtx(ws->context);
		free(ws);
	}
	for (unsigned int i = 0; i < SLOTS; i++) {
		free(cache->slots[i].content);
		pthread_mutex_destroy(&cache->slots[i].lock);
	}
	pthread_mutex_destroy(&cache->lock);
	free(cache);
}

/* Neighbouring chunks, and the same chunk of several layers, have slots of their own. */
static struct slot *slot_of(struct ki_cache *cache, uint32_t layer, uint64_t chunk)
{
	return &cache->slots[(chunk + layer) % SLOTS];
}

/* With the slot's lock held. */
static int fill_slot(struct ki_cache *cache, struct slot *s, const struct ki_packed *p,
		     const char *path, uint32_t layer, uint64_t chunk)
{
	struct workspace *ws;
	int r;

	if (s->used && s->layer == layer && s->chunk == chunk)
		return 0;
	s->used = false;
	if (!s->content)
		s->content = malloc(KI_CHUNK);
	ws = s->content ? take_workspace(cache) : NULL;
	if (!ws)
		return ki_fail(ENOMEM, "%s: no memory to unpack a chunk", path);
	r = unpack_chunk(ws, p, path, chunk, s->content);
	return_workspace(cache, ws);
	s->used = !r;
	s->layer = layer;
	s->chunk = chunk;
	return r;
}

int ki_packed_read(struct ki_cache *cache, const struct ki_packed *p, const char *path,
		   uint32_t layer, uint64_t page, uint64_t count, char *buf)
{
	int r = 0;

	for (uint64_t n; !r && count; page += n, count -= n, buf += n << KI_PAGE_SHIFT) {
		uint64_t chunk = page / KI_CHUNK_PAGES, in = page % KI_CHUNK_PAGES;
		struct slot *s = slot_of(cache, layer, chunk);

		n = ki_min(count, KI_CHUNK_PAGES - in);
		pthread_mutex_lock(&s->lock);
		r = fill_slot(cache, s, p, path, layer, chunk);
		if (!r)
			memcpy(buf, s->content + (in << KI_PAGE_SHIFT), n << KI_PAGE_SHIFT);
		pthread_mutex_unlock(&s->lock);
	}
	return r;
}
