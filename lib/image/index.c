// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * One index file. It is read, not mapped: a mapping would raise SIGBUS when somebody shortens the file, and would
 * show other bytes than those that were checked when somebody writes to it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/internal.h"

static int bad(const char *path, const char *what)
{
	return ki_fail(EBADMSG, "%s: not an index of libkvmem, or damaged: %s", path, what);
}

static bool is_inside(const struct ki_table *t, const struct ki_super *s)
{
	return t->offset >= KI_PAGE && t->offset <= s->index_bytes &&
	       t->bytes <= s->index_bytes - t->offset;
}

static bool check_packed(const struct ki_super *s)
{
	return s->chunk_shift == KI_CHUNK_SHIFT &&
	       s->data_bytes <= ki_chunks(s->bytes) * KI_MAX_FRAME &&
	       s->frame_table.bytes == ki_chunks(s->bytes) * sizeof(struct ki_frame) &&
	       is_inside(&s->frame_table, s);
}

/* More pages than there are: every number of them in the tables is one of these two, or a part of it. */
static bool check_pages(const struct ki_super *s)
{
	uint64_t pages = s->bytes >> KI_PAGE_SHIFT;

	return s->pages_data <= pages && s->pages_parent <= pages - s->pages_data &&
	       (s->layers > 1 || !s->pages_parent);
}

static int check_super(const struct ki_super *s, uint64_t file_bytes, const char *path)
{
	if (memcmp(s->magic, KI_MAGIC, sizeof(s->magic)))
		return bad(path, "it does not begin with " KI_MAGIC);
	if (!ki_sum_equal(s->sum, ki_sum(s, offsetof(struct ki_super, sum))))
		return bad(path, "the sum of its superblock is wrong");
	if (s->version != KI_VERSION || s->incompat & ~KI_INCOMPAT)
		return ki_fail(EOPNOTSUPP,
			       "%s: version %" PRIu32 " with features 0x%" PRIx64
			       "; this library knows version %u with 0x%" PRIx64,
			       path, s->version, s->incompat, KI_VERSION, (uint64_t)KI_INCOMPAT);
	if (s->super_bytes != KI_PAGE || s->page_shift != KI_PAGE_SHIFT)
		return bad(path, "its page size");
	if (!s->bytes || s->bytes > KI_MAX_BYTES || s->bytes % KI_PAGE)
		return bad(path, "its length");
	if (s->index_bytes > KI_MAX_INDEX_BYTES || s->index_bytes != file_bytes)
		return bad(path, "the file has another length than it says");
	if (!s->regions || s->regions > KI_MAX_REGIONS || !s->layers || s->layers > KI_MAX_LAYERS ||
	    s->blobs > KI_MAX_BLOBS)
		return bad(path, "its counts");
	if (!check_pages(s))
		return bad(path, "how many pages it stores");
	if (s->incompat & KI_PACKED && !check_packed(s))
		return bad(path, "how its data are packed");
	if (!s->data_name_bytes || s->data_name_bytes >= sizeof(s->data_name) ||
	    strnlen(s->data_name, sizeof(s->data_name)) != s->data_name_bytes ||
	    strchr(s->data_name, '/'))
		return bad(path, "the name of its data");
	return 0;
}

int ki_index_read_super(int fd, const char *path, struct ki_super *ret)
{
	struct stat st;
	int r;

	if (fstat(fd, &st))
		return ki_fail(errno, "%s: %m", path);
	if (!S_ISREG(st.st_mode) || st.st_size < (off_t)sizeof(*ret))
		return bad(path, "no file, or a short one");
	r = ki_read_at(fd, 0, ret, sizeof(*ret), path);
	return r ? r : check_super(ret, (uint64_t)st.st_size, path);
}

int ki_table_read(int fd, const char *path, const struct ki_super *s, const struct ki_table *t,
		  uint64_t bytes, void *ret)
{
	void *p;
	int r;

	if (t->bytes != bytes || !is_inside(t, s))
		return bad(path, "where its tables are");
	p = malloc(bytes + 1);
	if (!p)
		return ki_fail(ENOMEM, "%s: no memory for a table of %" PRIu64 " bytes", path,
			       bytes);
	r = ki_read_at(fd, t->offset, p, bytes, path);
	if (!r && !ki_sum_equal(t->sum, ki_sum(p, bytes)))
		r = bad(path, "the sum of a table is wrong");
	if (r)
		free(p);
	else
		*(void **)ret = p;
	return r;
}

static bool is_name(const char *name, size_t room)
{
	size_t n = strnlen(name, room);

	return n && n < room && ki_is_zero(name + n, room - n);
}

static int check_regions(const struct ki_index *x, const char *path)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < x->super.regions; i++) {
		const struct ki_region *r = &x->regions[i];

		if (r->offset != at || !r->bytes || r->bytes % KI_PAGE ||
		    r->bytes > x->super.bytes - at || r->unused ||
		    strnlen(r->name, sizeof(r->name)) == sizeof(r->name))
			return bad(path, "its regions");
		at += r->bytes;
	}
	return at == x->super.bytes ? 0 : bad(path, "its regions");
}

static int check_layers(const struct ki_index *x, const char *path)
{
	uint32_t last = x->super.layers - 1;
	uint64_t names = x->super.name_table.bytes, left = x->super.pages_parent;

	for (uint32_t i = 0; i < last; i++) {
		const struct ki_layer *l = &x->layers[i];

		if (!l->name_bytes || l->name_bytes > KI_MAX_NAME || l->name > names ||
		    l->name_bytes > names - l->name || memchr(x->names + l->name, 0, l->name_bytes))
			return bad(path, "the names of its parents");
		if (l->pages > left)
			return bad(path, "how many pages its parents store");
		left -= l->pages;
	}
	if (left || x->layers[last].pages != x->super.pages_data)
		return bad(path, "how many pages its parents store");
	if (memcmp(x->layers[last].id, x->super.id, sizeof(x->super.id)) ||
	    x->layers[last].name_bytes)
		return bad(path, "its last layer is not itself");
	if (last ? memcmp(x->layers[last - 1].id, x->super.parent, sizeof(x->super.parent)) ||
			    !ki_sum_equal(x->layers[last - 1].sum, x->super.parent_sum)
		 : !ki_is_zero(x->super.parent, sizeof(x->super.parent)))
		return bad(path, "its parent");
	return 0;
}

static int check_blobs(const struct ki_index *x, const char *path)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < x->super.blobs; i++) {
		const struct ki_blob *b = &x->blobs[i];

		if (!is_name(b->name, sizeof(b->name)) || b->content.bytes > KI_MAX_BLOB ||
		    !is_inside(&b->content, &x->super))
			return bad(path, "its blobs");
		bytes += b->content.bytes; /* 64 GiB at most */
	}
	/* Each lies in the index and none over another: who copies them needs no more than the file has. */
	return bytes > x->super.index_bytes ? bad(path, "its blobs, which overlap") : 0;
}

static int read_tables(struct ki_index *x, const char *path)
{
	const struct ki_super *s = &x->super;
	uint64_t spans = ki_spans(s->bytes), table = spans * sizeof(struct ki_block);
	uint64_t parts = (table + KI_PART - 1) / KI_PART;
	int r;

	if (s->block_table.bytes != table || !is_inside(&s->block_table, s) ||
	    s->name_table.bytes > KI_MAX_NAMES)
		return bad(path, "where its tables are");
	r = ki_table_read(x->fd, path, s, &s->region_table, s->regions * sizeof(*x->regions),
			  &x->regions);
	if (!r)
		r = ki_table_read(x->fd, path, s, &s->blob_table, s->blobs * sizeof(*x->blobs),
				  &x->blobs);
	if (!r)
		r = ki_table_read(x->fd, path, s, &s->part_table, parts * sizeof(*x->parts),
				  &x->parts);
	if (!r)
		r = check_regions(x, path);
	return r ? r : check_blobs(x, path);
}

int ki_index_read_layers(struct ki_index *x, const char *path)
{
	const struct ki_super *s = &x->super;
	int r = 0;

	if (!x->layers)
		r = ki_table_read(x->fd, path, s, &s->layer_table, s->layers * sizeof(*x->layers),
				  &x->layers);
	if (!r && !x->names)
		r = ki_table_read(x->fd, path, s, &s->name_table, s->name_table.bytes, &x->names);
	return r ? r : check_layers(x, path);
}

int ki_index_read(int fd, const char *path, struct ki_index *ret)
{
	int r;

	*ret = (struct ki_index){ .fd = fd };
	r = ki_index_read_super(fd, path, &ret->super);
	if (!r)
		r = read_tables(ret, path);
	if (r)
		ki_index_close(ret);
	return r;
}

void ki_index_close(struct ki_index *x)
{
	free(x->regions);
	free(x->layers);
	free(x->names);
	free(x->blobs);
	free(x->parts);
	close(x->fd);
}

int ki_part_read(int fd, const char *path, const struct ki_table *t, const uint64_t *sums,
		 uint64_t part, void *buf)
{
	uint64_t bytes = ki_min(KI_PART, t->bytes - part * KI_PART);
	int r = ki_read_at(fd, t->offset + part * KI_PART, buf, bytes, path);

	if (!r && ki_sum64(buf, bytes) != sums[part])
		r = ki_fail(EBADMSG,
			    "%s: the index is damaged: its table at byte %" PRIu64
			    ", part %" PRIu64,
			    path, t->offset, part);
	return r;
}

/* Part `part` of the block table, checked. */
static int read_part(const struct ki_index *x, uint64_t part, void *buf)
{
	const struct ki_table *t = &x->super.block_table;
	uint64_t bytes = ki_min(KI_PART, t->bytes - part * KI_PART);
	struct ki_block *blocks = buf;
	int r = ki_part_read(x->fd, "the index", t, x->parts, part, buf);

	if (r)
		return r;
	for (uint64_t i = 0; i < bytes / sizeof(*blocks); i++)
		if (blocks[i].layer != KI_NO_LAYER && blocks[i].layer >= x->super.layers)
			return ki_fail(EBADMSG,
				       "the index is damaged: a block in part %" PRIu64
				       " of its block table is of no layer",
				       part);
	return 0;
}

int ki_index_block(const struct ki_index *x, uint64_t span, struct ki_block *ret)
{
	struct ki_block blocks[KI_PART / sizeof(*ret)];
	const uint64_t count = KI_PART / sizeof(*ret);
	int r = read_part(x, span / count, blocks);

	if (!r)
		*ret = blocks[span % count];
	return r;
}

int ki_index_blocks(const struct ki_index *x, struct ki_block *ret)
{
	uint64_t bytes = x->super.block_table.bytes;
	int r = 0;

	for (uint64_t part = 0; !r && part * KI_PART < bytes; part++)
		r = read_part(x, part, (char *)ret + part * KI_PART);
	return r;
}
