// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Content of an image: found, read, compared with its sums. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "image/internal.h"

#define PAGE_MASK     ((uint64_t)KI_PAGE - 1)
#define VERIFY_STEP   (1ull << 20) /* a part of a span: its entries are in one block */
#define MOST_IN_A_RUN (1ull << 30)

static int entry_at(struct kvmem_image *image, uint64_t page, const struct ki_entry **ret)
{
	const struct ki_entry *block;
	int r = ki_image_block(image, page / KI_BLOCK_PAGES, &block);

	if (!r)
		*ret = &block[page % KI_BLOCK_PAGES];
	return r;
}

/* Pages from `page` on in one place, all in one block, at most `most`. */
static uint64_t same_place(const struct ki_entry *e, uint64_t page, uint64_t most)
{
	uint64_t n = 1;

	most = ki_min(most, KI_BLOCK_PAGES - page % KI_BLOCK_PAGES);
	while (n < most && e[n].place == e->place)
		n++;
	return n;
}

static int read_data(struct kvmem_image *image, const struct ki_entry *e, uint64_t page,
		     uint64_t count, char *buf)
{
	const struct ki_layers *l = &image->layers;
	uint32_t layer = e->place - 1;
	int fd, r = ki_layer_data(image, layer, &fd);

	if (!r && l->packed[layer])
		r = ki_packed_read(l->cache, l->packed[layer], image->path, layer, page, count,
				   buf);
	else if (!r)
		r = ki_read_at(fd, page << KI_PAGE_SHIFT, buf, count << KI_PAGE_SHIFT, image->path);
	for (uint64_t i = 0; !r && i < count; i++)
		if (ki_page_sum(buf + (i << KI_PAGE_SHIFT)) != e[i].sum)
			r = ki_fail(EBADMSG,
				    "%s: the page at offset 0x%" PRIx64
				    " is damaged, in layer %" PRIu32 " of %" PRIu32,
				    image->path, (page + i) << KI_PAGE_SHIFT, layer,
				    image->index.super.layers);
	return r;
}

/* Whole pages of an image with an index. */
static int read_pages(struct kvmem_image *image, uint64_t page, uint64_t count, char *buf)
{
	int r = 0;

	for (uint64_t n; !r && count; page += n, count -= n, buf += n << KI_PAGE_SHIFT) {
		const struct ki_entry *e;

		r = entry_at(image, page, &e);
		if (r)
			break;
		n = same_place(e, page, count);
		if (e->place)
			r = read_data(image, e, page, n, buf);
		else
			memset(buf, 0, n << KI_PAGE_SHIFT);
	}
	return r;
}

/* A part of one page: the whole of it is read, as its sum is of the whole. */
static int read_part(struct kvmem_image *image, uint64_t offset, char *buf, uint64_t bytes)
{
	char page[KI_PAGE];
	int r = read_pages(image, offset >> KI_PAGE_SHIFT, 1, page);

	if (!r)
		memcpy(buf, page + (offset & PAGE_MASK), bytes);
	return r;
}

static int read_indexed(struct kvmem_image *image, uint64_t offset, char *buf, uint64_t bytes)
{
	int r = 0;

	for (uint64_t n; !r && bytes; offset += n, buf += n, bytes -= n) {
		if (offset & PAGE_MASK || bytes < KI_PAGE) {
			n = ki_min(bytes, KI_PAGE - (offset & PAGE_MASK));
			r = read_part(image, offset, buf, n);
		} else {
			n = bytes & ~PAGE_MASK;
			r = read_pages(image, offset >> KI_PAGE_SHIFT, n >> KI_PAGE_SHIFT, buf);
		}
	}
	return r;
}

/* What the holes of a raw file stand for. */
static int read_raw(struct kvmem_image *image, uint64_t offset, char *buf, uint64_t bytes)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	int r = 0;

	for (uint64_t n; !r && bytes; offset += n, buf += n, bytes -= n) {
		r = ki_raw_run(image, offset & ~PAGE_MASK, &run);
		if (r)
			break;
		n = ki_min(bytes, run.offset + run.bytes - offset);
		if (run.kind == KVMEM_IMAGE_DATA)
			r = ki_raw_read(image, offset, buf, n);
		else if (run.kind == KVMEM_IMAGE_PARENT)
			r = kvmem_image_read(image->parent, offset, buf, n);
		else
			memset(buf, 0, n);
	}
	return r;
}

int kvmem_image_read(struct kvmem_image *image, uint64_t offset, void *buf, uint64_t bytes)
{
	if (!image || !buf)
		return ki_fail(EINVAL, "kvmem_image_read: %s is NULL", image ? "buf" : "image");
	if (offset > image->bytes || bytes > image->bytes - offset)
		return ki_fail(ERANGE,
			       "kvmem_image_read: 0x%" PRIx64 " bytes at 0x%" PRIx64
			       " of an image of 0x%" PRIx64,
			       bytes, offset, image->bytes);
	return ki_is_raw(image) ? read_raw(image, offset, buf, bytes)
				: read_indexed(image, offset, buf, bytes);
}

/* ---- runs ---- */

static int indexed_run(struct kvmem_image *image, uint64_t from, uint64_t most,
		       struct kvmem_image_run *ret)
{
	uint64_t page = from >> KI_PAGE_SHIFT, n;
	uint64_t pages = ki_min(image->bytes, from + most) >> KI_PAGE_SHIFT;
	uint32_t self = image->index.super.layers, place = 0;
	const struct ki_entry *e;

	ret->offset = page << KI_PAGE_SHIFT;
	ret->bytes = 0;
	for (; page < pages; page += n) {
		int r = entry_at(image, page, &e);

		if (r) /* what comes before it is known all the same */
			return ret->bytes ? 0 : r;
		if (ret->bytes && e->place != place)
			break;
		place = e->place;
		n = same_place(e, page, pages - page);
		ret->bytes += n << KI_PAGE_SHIFT;
		if ((page + n) % KI_BLOCK_PAGES)
			break;
	}
	ret->kind = !place	    ? KVMEM_IMAGE_ZERO
		    : place == self ? KVMEM_IMAGE_DATA
				    : KVMEM_IMAGE_PARENT;
	ret->layer = place ? place - 1 : 0;
	return 0;
}

int ki_image_run(struct kvmem_image *image, uint64_t from, uint64_t most,
		 struct kvmem_image_run *ret)
{
	from &= ~PAGE_MASK;
	return ki_is_raw(image) ? ki_raw_run(image, from, ret)
				: indexed_run(image, from, (most + PAGE_MASK) & ~PAGE_MASK, ret);
}

int kvmem_image_next_run(struct kvmem_image *image, uint64_t from, struct kvmem_image_run *ret_run)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	int r;

	if (!image)
		return ki_fail(EINVAL, "kvmem_image_next_run: image is NULL");
	r = kvmem_result_check(ret_run, sizeof(run), "kvmem_image_run");
	if (r)
		return r;
	if (from > image->bytes)
		return ki_fail(ERANGE,
			       "kvmem_image_next_run: 0x%" PRIx64
			       " is beyond the image's 0x%" PRIx64 " bytes",
			       from, image->bytes);
	if (from == image->bytes)
		return 0;
	r = ki_image_run(image, from, MOST_IN_A_RUN, &run);
	if (r)
		return r;
	kvmem_result_copy(ret_run, &run, sizeof(run));
	return 1;
}

/* ---- verify ---- */

struct verify {
	struct kvmem_image *image;
	int (*progress)(void *arg, const struct kvmem_image_progress *progress);
	void *arg;
	struct kvmem_image_progress p;
	char *buf;	 /* VERIFY_STEP */
	uint64_t *pages; /* that each layer stores, by the blocks so far */
};

static int tell(const struct verify *v)
{
	if (!v->progress || !v->progress(v->arg, &v->p))
		return 0;
	return ki_fail(ECANCELED, "kvmem_image_verify: canceled by progress");
}

static int verify_blobs(const struct verify *v)
{
	char none[1];
	int r = 0;

	for (uint32_t i = 0; !r && i < v->image->index.super.blobs; i++) {
		int64_t n = kvmem_image_read_blob(v->image, v->image->index.blobs[i].name, none, 0);

		r = n < 0 ? (int)n : tell(v);
	}
	return r;
}

/* At most VERIFY_STEP bytes, of one block. */
static int verify_step(struct verify *v, uint64_t bytes)
{
	const struct ki_entry *e;
	int r = kvmem_image_read(v->image, v->p.done, v->buf, bytes);

	if (!r)
		r = entry_at(v->image, v->p.done >> KI_PAGE_SHIFT, &e);
	for (uint64_t i = 0; !r && i < bytes >> KI_PAGE_SHIFT; i++)
		if (e[i].place)
			v->pages[e[i].place - 1]++;
	v->p.done += bytes;
	return r ? r : tell(v);
}

/* How many pages each layer stores, by the blocks, is what the table of layers says. */
static int compare_counts(const struct verify *v)
{
	const struct ki_index *x = &v->image->index;

	for (uint32_t i = 0; i < x->super.layers; i++)
		if (v->pages[i] != x->layers[i].pages)
			return ki_fail(EBADMSG,
				       "%s: the index is damaged: layer %" PRIu32 " stores %" PRIu64
				       " pages, not %" PRIu64,
				       v->image->path, i, v->pages[i], x->layers[i].pages);
	return 0;
}

static int verify_all(struct verify *v)
{
	int r = ki_layers_know(v->image);

	if (!r)
		r = verify_blobs(v);
	while (!r && v->p.done < v->p.total)
		r = verify_step(v, ki_min(VERIFY_STEP, v->p.total - v->p.done));
	return r ? r : compare_counts(v);
}

int kvmem_image_verify(struct kvmem_image *image,
		       int (*progress)(void *arg, const struct kvmem_image_progress *progress),
		       void *arg)
{
	struct verify v = { .image = image, .progress = progress, .arg = arg };
	int r;

	if (!image)
		return ki_fail(EINVAL, "kvmem_image_verify: image is NULL");
	if (ki_is_raw(image))
		return ki_fail(EOPNOTSUPP,
			       "kvmem_image_verify: '%s' is a raw file: it has no "
			       "checksums",
			       image->path);
	v.p = (struct kvmem_image_progress){ .size = sizeof(v.p), .total = image->bytes };
	v.buf = malloc(VERIFY_STEP);
	v.pages = calloc(image->index.super.layers, sizeof(*v.pages));
	atomic_fetch_add(&image->users, 1); /* progress cannot close it */
	r = v.buf && v.pages ? verify_all(&v) : ki_fail(ENOMEM, "kvmem_image_verify: no memory");
	atomic_fetch_sub(&image->users, 1);
	free(v.buf);
	free(v.pages);
	return r;
}
