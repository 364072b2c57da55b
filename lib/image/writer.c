// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* An image that is being made: pages into its data, what they are into blocks. commit.c gives it its name. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/internal.h"

#define FLAGS (KVMEM_IMAGE_NO_SYNC | KVMEM_IMAGE_REPLACE | KVMEM_IMAGE_PACKED)

/* ---- making and giving up ---- */

void ki_writer_return_batch(struct kvmem_image_writer *w)
{
	if (w->batch)
		kvmem_batch_return(w->batch);
	w->batch = NULL;
}

void ki_writer_free(struct kvmem_image_writer *w)
{
	for (uint64_t i = 0; w->blocks && i < ki_spans(w->bytes); i++)
		free((void *)w->blocks[i]);
	for (uint32_t i = 0; i < w->blob_count; i++)
		free(w->blobs[i].content);
	ki_writer_return_batch(w);
	if (w->parent)
		atomic_fetch_sub(&w->parent->users, 1);
	ki_new_file_end(&w->data);
	if (w->place.dir >= 0)
		ki_place_close(&w->place);
	pthread_mutex_destroy(&w->lock);
	free((void *)w->blocks);
	free(w->frames);
	free(w->regions);
	free(w);
}

static int check_parent(const struct kvmem_image_create_opts *o)
{
	if (!o->parent)
		return 0;
	if (ki_is_raw(o->parent))
		return ki_fail(EOPNOTSUPP,
			       "kvmem_image_create: the parent '%s' is a raw file: make an image "
			       "of it first",
			       o->parent->path);
	if (o->parent->index.super.layers >= KI_MAX_LAYERS)
		return ki_fail(EINVAL, "kvmem_image_create: the parent has %u parents already",
			       KI_MAX_LAYERS - 1);
	return 0;
}

/* What the commit has to find under the name. */
static int take_replaces(struct kvmem_image_writer *w, const struct kvmem_image_create_opts *o)
{
	if (!o->replaces)
		return 0;
	if (!(o->flags & KVMEM_IMAGE_REPLACE))
		return ki_fail(EINVAL,
			       "kvmem_image_create: replaces goes with KVMEM_IMAGE_REPLACE");
	if (ki_is_raw(o->replaces))
		return ki_fail(EOPNOTSUPP,
			       "kvmem_image_create: replaces, '%s', is a raw file: no image",
			       o->replaces->path);
	w->replaces = true;
	w->replaces_sum = o->replaces->index.super.sum;
	return 0;
}

static int same_as_parent(const struct kvmem_image_writer *w)
{
	const struct kvmem_image *p = w->parent;
	bool same = w->region_count == p->region_count;

	for (uint32_t i = 0; same && i < w->region_count; i++)
		same = w->regions[i].bytes == p->regions[i].bytes;
	return same ? 0
		    : ki_fail(EINVAL,
			      "kvmem_image_create: regions have other lengths than those of the "
			      "parent '%s'",
			      p->path);
}

static int take_regions(struct kvmem_image_writer *w, const struct kvmem_image_create_opts *o)
{
	const struct kvmem_image_region *from = o->regions;
	uint32_t count = o->region_count;
	int r;

	if (!from && !count && w->parent) {
		from = w->parent->regions;
		count = w->parent->region_count;
	}
	r = ki_regions_copy("kvmem_image_create", from, count, &w->regions, &w->bytes);
	if (r)
		return r;
	w->region_count = count;
	return w->parent ? same_as_parent(w) : 0;
}

/* Early, so that no gigabytes are written in vain: the commit looks again. */
static int check_names(const struct kvmem_image_writer *w, const char *path)
{
	char index[sizeof(w->place.name) + sizeof(KI_SUFFIX)];
	struct stat st;

	size_t n = strlen(w->place.name), suffix = sizeof(KI_SUFFIX) - 1;

	if (n >= suffix && !strcmp(w->place.name + n - suffix, KI_SUFFIX))
		return ki_fail(EINVAL,
			       "kvmem_image_create: path '%s' is the name of an index: a new image "
			       "is named by its data, without " KI_SUFFIX,
			       path);
	if (n + sizeof(KI_SUFFIX) > sizeof(w->place.name))
		return ki_fail(ENAMETOOLONG, "kvmem_image_create: the name of '%s' is too long",
			       path);
	if (w->flags & KVMEM_IMAGE_REPLACE)
		return 0;
	snprintf(index, sizeof(index), "%s%s", w->place.name, KI_SUFFIX);
	if (!fstatat(w->place.dir, index, &st, AT_SYMLINK_NOFOLLOW) ||
	    !fstatat(w->place.dir, w->place.name, &st, AT_SYMLINK_NOFOLLOW))
		return ki_fail(EEXIST,
			       "kvmem_image_create: '%s' or '%s%s' exists: KVMEM_IMAGE_REPLACE "
			       "replaces an image",
			       path, path, KI_SUFFIX);
	return 0;
}

static int begin(struct kvmem_image_writer *w, const char *path,
		 const struct kvmem_image_create_opts *o)
{
	int r = take_regions(w, o);

	if (!r)
		r = ki_place_open("kvmem_image_create", AT_FDCWD, path, &w->place);
	if (r)
		return r;
	r = check_names(w, path);
	if (!r)
		r = ki_new_file(w->place.dir, "kvmem_image_create: the data", &w->data);
	if (!r)
		r = ki_check_length(w->bytes, "kvmem_image_create: the data");
	if (!r && ftruncate(w->data.fd, (off_t)w->bytes))
		r = ki_fail(errno, "kvmem_image_create: data of %" PRIu64 " bytes: %m", w->bytes);
	if (r)
		return r;
	w->blocks = calloc(ki_spans(w->bytes), sizeof(*w->blocks));
	return w->blocks ? 0 : ki_fail(ENOMEM, "kvmem_image_create: no memory");
}

int kvmem_image_create(const char *path, const struct kvmem_image_create_opts *opts,
		       struct kvmem_image_writer **ret_writer)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_writer *w;
	int r;

	if (!path || !ret_writer)
		return ki_fail(EINVAL, "kvmem_image_create: %s is NULL",
			       path ? "ret_writer" : "path");
	r = kvmem_opts_copy(&o, sizeof(o), sizeof(o), opts, "kvmem_image_create_opts");
	if (!r && o.flags & ~FLAGS)
		r = ki_fail(EINVAL, "kvmem_image_create: flags: unknown bits 0x%" PRIx32,
			    o.flags & ~FLAGS);
	if (!r)
		r = check_parent(&o);
	if (!r && o.flags & KVMEM_IMAGE_PACKED)
		r = ki_pack_check();
	if (!r && o.progress && !(o.flags & KVMEM_IMAGE_PACKED))
		r = ki_fail(EINVAL, "kvmem_image_create: progress goes with KVMEM_IMAGE_PACKED");
	if (r)
		return r;
	w = calloc(1, sizeof(*w));
	if (!w)
		return ki_fail(ENOMEM, "kvmem_image_create: no memory");
	pthread_mutex_init(&w->lock, NULL);
	w->place.dir = w->data.fd = -1;
	w->flags = o.flags;
	w->progress = o.progress;
	w->progress_arg = o.arg;
	w->parent = o.parent;
	if (w->parent)
		atomic_fetch_add(&w->parent->users, 1);
	r = take_replaces(w, &o);
	if (!r)
		r = begin(w, path, &o);
	if (r)
		ki_writer_free(w);
	else
		*ret_writer = w;
	return r;
}

void kvmem_image_abort(struct kvmem_image_writer *writer)
{
	/* From a callback of the commit, which frees it, or of a save, which works with it: nothing. */
	if (writer && !writer->committing && !writer->saving)
		ki_writer_free(writer);
}

/* ---- pages ---- */

/* The entries of a span, as the parent has them at first. */
static int block_of(struct kvmem_image_writer *w, uint64_t span, struct ki_entry **ret)
{
	struct ki_entry *e = atomic_load_explicit(&w->blocks[span], memory_order_acquire);
	const struct ki_entry *from = ki_zero_block;
	int r = 0;

	*ret = e;
	if (e)
		return 0;
	if (w->parent)
		r = ki_image_block(w->parent, span, &from);
	if (r)
		return r;
	pthread_mutex_lock(&w->lock);
	e = atomic_load_explicit(&w->blocks[span], memory_order_relaxed);
	if (!e) {
		e = malloc(KI_PAGE);
		if (e)
			memcpy(e, from, KI_PAGE);
		atomic_store_explicit(&w->blocks[span], e, memory_order_release);
	}
	pthread_mutex_unlock(&w->lock);
	*ret = e;
	return e ? 0 : ki_fail(ENOMEM, "kvmem_image_write: no memory for a block of the index");
}

/* Pages of one span. What was stored in them before is taken out: a hole of the data reads as zero. */
static int set_zero(struct kvmem_image_writer *w, struct ki_entry *e, uint64_t page, uint64_t count)
{
	uint32_t self = ki_writer_layer(w) + 1;
	bool stored = false;

	for (uint64_t i = 0; i < count; i++) {
		stored |= e[i].place == self;
		e[i] = (struct ki_entry){ 0 };
	}
	if (stored && fallocate(w->data.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)(page << KI_PAGE_SHIFT), (off_t)(count << KI_PAGE_SHIFT))) {
		static const char zeros[KI_PAGE];
		int r = errno == EOPNOTSUPP ? 0 : ki_fail(errno, "kvmem_image_write: a hole: %m");

		for (uint64_t i = 0; !r && i < count; i++)
			r = ki_write_at(w->data.fd, (page + i) << KI_PAGE_SHIFT, zeros, KI_PAGE,
					"kvmem_image_write: the data");
		return r;
	}
	return 0;
}

static int set_data(struct kvmem_image_writer *w, struct ki_entry *e, uint64_t page, uint64_t count,
		    const char *buf)
{
	uint32_t self = ki_writer_layer(w) + 1;
	int r = ki_write_at(w->data.fd, page << KI_PAGE_SHIFT, buf, count << KI_PAGE_SHIFT,
			    "kvmem_image_write: the data");

	for (uint64_t i = 0; !r && i < count; i++)
		e[i] = (struct ki_entry){ .place = self,
					  .sum = ki_page_sum(buf + (i << KI_PAGE_SHIFT)) };
	return r;
}

/* Pages of one span: runs of data, and runs of zeros. */
static int write_span(struct kvmem_image_writer *w, struct ki_entry *e, uint64_t page,
		      uint64_t count, const char *buf, uint64_t *stored)
{
	int r = 0;

	for (uint64_t n; !r && count; page += n, e += n, buf += n << KI_PAGE_SHIFT, count -= n) {
		bool zero = ki_is_zero(buf, KI_PAGE);

		for (n = 1; n < count; n++)
			if (ki_is_zero(buf + (n << KI_PAGE_SHIFT), KI_PAGE) != zero)
				break;
		r = zero ? set_zero(w, e, page, n) : set_data(w, e, page, n, buf);
		*stored += zero ? 0 : n;
	}
	return r;
}

static int check_range(const struct kvmem_image_writer *w, const char *call, uint64_t offset,
		       uint64_t bytes)
{
	if (!w)
		return ki_fail(EINVAL, "%s: writer is NULL", call);
	if (w->committing)
		return ki_fail(EBUSY, "%s: kvmem_image_commit() is not over", call);
	if ((offset | bytes) % KI_PAGE)
		return ki_fail(EINVAL,
			       "%s: 0x%" PRIx64 " bytes at offset 0x%" PRIx64
			       ": not whole pages of 4096",
			       call, bytes, offset);
	if (offset > w->bytes || bytes > w->bytes - offset)
		return ki_fail(ERANGE,
			       "%s: 0x%" PRIx64 " bytes at 0x%" PRIx64 " of an image of 0x%" PRIx64,
			       call, bytes, offset, w->bytes);
	return 0;
}

/* Pages that are zero as long as nothing is written to them: of a span without a block, and no parent. */
static bool is_zero_already(const struct kvmem_image_writer *w, uint64_t span)
{
	return !w->parent && !atomic_load_explicit(&w->blocks[span], memory_order_acquire);
}

int ki_writer_put(struct kvmem_image_writer *w, uint64_t page, uint64_t count, const char *buf,
		  uint64_t *stored)
{
	int r = 0;

	for (uint64_t n; !r && count; page += n, count -= n) {
		uint64_t in = page % KI_BLOCK_PAGES;
		struct ki_entry *e;

		n = ki_min(count, KI_BLOCK_PAGES - in);
		if (!buf && is_zero_already(w, page / KI_BLOCK_PAGES))
			continue;
		r = block_of(w, page / KI_BLOCK_PAGES, &e);
		if (r)
			break;
		r = buf ? write_span(w, e + in, page, n, buf, stored)
			: set_zero(w, e + in, page, n);
		if (buf)
			buf += n << KI_PAGE_SHIFT;
	}
	return r;
}

/* What was written to them before is taken out. */
int ki_writer_put_parents(struct kvmem_image_writer *w, uint64_t page, uint64_t count)
{
	int r = 0;

	for (uint64_t n; !r && count; page += n, count -= n) {
		uint64_t span = page / KI_BLOCK_PAGES, in = page % KI_BLOCK_PAGES;
		struct ki_entry *e = atomic_load_explicit(&w->blocks[span], memory_order_acquire);
		const struct ki_entry *from = ki_zero_block;

		n = ki_min(count, KI_BLOCK_PAGES - in);
		if (!e)
			continue;
		if (w->parent)
			r = ki_image_block(w->parent, span, &from);
		if (!r)
			r = set_zero(w, e + in, page, n);
		if (!r)
			memcpy(e + in, from + in, n * sizeof(*e));
	}
	return r;
}

int kvmem_image_write(struct kvmem_image_writer *writer, uint64_t offset, const void *buf,
		      uint64_t bytes)
{
	int r = check_range(writer, "kvmem_image_write", offset, bytes);
	uint64_t stored = 0;

	if (!r && !buf)
		r = ki_fail(EINVAL, "kvmem_image_write: buf is NULL");
	return r ? r
		 : ki_writer_put(writer, offset >> KI_PAGE_SHIFT, bytes >> KI_PAGE_SHIFT, buf,
				 &stored);
}

int kvmem_image_write_zero(struct kvmem_image_writer *writer, uint64_t offset, uint64_t bytes)
{
	int r = check_range(writer, "kvmem_image_write_zero", offset, bytes);

	if (r)
		return r;
	r = ki_writer_put(writer, offset >> KI_PAGE_SHIFT, bytes >> KI_PAGE_SHIFT, NULL, NULL);
	return r ? ki_fail_as("kvmem_image_write_zero", r) : 0;
}

void ki_writer_flush(struct kvmem_image_writer *w, uint64_t page, uint64_t count)
{
	/* What will be packed need not reach the disk before. */
	if (!(w->flags & (KVMEM_IMAGE_NO_SYNC | KVMEM_IMAGE_PACKED)))
		sync_file_range(w->data.fd, (off_t)(page << KI_PAGE_SHIFT),
				(off_t)(count << KI_PAGE_SHIFT), SYNC_FILE_RANGE_WRITE);
}

int ki_writer_check_regions(const struct kvmem_image_writer *w, const char *call,
			    struct kvmem_region *const *regions, uint32_t count)
{
	if (w->committing)
		return ki_fail(EBUSY, "%s: kvmem_image_commit() is not over", call);
	if (w->saving)
		return ki_fail(EBUSY, "%s: a save or capture has the writer", call);
	if (w->save_failed)
		return ki_fail(EINVAL,
			       "%s: a save or capture into the writer has failed: it can only be "
			       "given up",
			       call);
	if (!regions || count != w->region_count)
		return ki_fail(EINVAL, "%s: %" PRIu32 " regions: the image has %" PRIu32, call,
			       regions ? count : 0, w->region_count);
	for (uint32_t i = 0; i < count; i++)
		if (!regions[i] || kvmem_region_bytes(regions[i]) != w->regions[i].bytes)
			return ki_fail(EINVAL,
				       "%s: regions[%" PRIu32 "] has 0x%" PRIx64
				       " bytes, region %" PRIu32 " of the image 0x%" PRIx64,
				       call, i, regions[i] ? kvmem_region_bytes(regions[i]) : 0, i,
				       w->regions[i].bytes);
	return 0;
}

/* ---- blobs ---- */

static int add_blob(struct kvmem_image_writer *w, const char *name, void *content, uint64_t bytes)
{
	struct ki_new_blob *b = &w->blobs[w->blob_count];

	for (uint32_t i = 0; i < w->blob_count; i++)
		if (!strcmp(w->blobs[i].name, name))
			return ki_fail(EEXIST, "kvmem_image_write_blob: there is a '%s' already",
				       name);
	if (w->blob_count == KI_MAX_BLOBS)
		return ki_fail(ENOSPC, "kvmem_image_write_blob: '%s': there are %u already", name,
			       KI_MAX_BLOBS);
	snprintf(b->name, sizeof(b->name), "%s", name);
	b->content = content;
	b->bytes = bytes;
	w->blob_count++;
	return 0;
}

int kvmem_image_write_blob(struct kvmem_image_writer *writer, const char *name, const void *buf,
			   uint64_t bytes)
{
	void *content;
	int r;

	if (!writer || !name || (!buf && bytes))
		return ki_fail(EINVAL, "kvmem_image_write_blob: %s is NULL",
			       !writer ? "writer"
			       : !name ? "name"
				       : "buf");
	if (!*name || strlen(name) > KVMEM_IMAGE_NAME_MAX || bytes > KI_MAX_BLOB)
		return ki_fail(EINVAL,
			       "kvmem_image_write_blob: '%s' of %" PRIu64
			       " bytes: a name has 1 to %d, a blob at most %llu",
			       name, bytes, KVMEM_IMAGE_NAME_MAX, KI_MAX_BLOB);
	if (writer->committing)
		return ki_fail(EBUSY, "kvmem_image_write_blob: kvmem_image_commit() is not over");
	content = malloc(bytes + 1);
	if (!content)
		return ki_fail(ENOMEM, "kvmem_image_write_blob: no memory");
	if (bytes)
		memcpy(content, buf, bytes);
	pthread_mutex_lock(&writer->lock);
	r = add_blob(writer, name, content, bytes);
	pthread_mutex_unlock(&writer->lock);
	if (r)
		free(content);
	return r;
}
