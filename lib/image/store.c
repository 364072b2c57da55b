// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The index of a new image. Blocks that nothing was written to stay where they are, in the indexes of the parents:
 * what a difference costs follows from what is different, not from the memory's size.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "image/internal.h"

struct store {
	struct kvmem_image_writer *w;
	int fd;
	struct ki_super super;
	uint64_t at; /* the file's end so far */
	struct ki_layer *layers;
	struct ki_block *blocks;
	uint64_t spans;
};

static int put(struct store *s, const void *bytes, uint64_t n, struct ki_table *ret)
{
	int r = ki_write_at(s->fd, s->at, bytes, n, "kvmem_image_commit: the index");

	*ret = (struct ki_table){ .offset = s->at, .bytes = n, .sum = ki_sum(bytes, n) };
	/* Each table begins on a page of its own: a damaged sector is of one. */
	s->at = (s->at + n + KI_PAGE - 1) & ~(uint64_t)(KI_PAGE - 1);
	return r;
}

/* ---- layers ---- */

/* The folder of the parent's index, with a '/' at the end; "": that of the new image. It may have been opened by a path
 * from a working directory that is another one now: the descriptor knows. */
static int parents_folder(const struct store *s, char *ret, size_t room)
{
	const struct kvmem_image *p = s->w->parent;
	struct stat ours, theirs;
	char proc[40];
	ssize_t n;

	ret[0] = '\0';
	if (fstat(s->w->place.dir, &ours) || fstat(p->layers.dir, &theirs))
		return ki_fail(errno, "kvmem_image_commit: the folder: %m");
	if (ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino)
		return 0;
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", p->layers.dir);
	n = readlink(proc, ret, room - 1);
	if (n < 0)
		return ki_fail(errno, "kvmem_image_commit: the folder of the parent '%s': %m",
			       p->path);
	if ((size_t)n >= room - 1)
		return ki_fail(ENAMETOOLONG, "kvmem_image_commit: the path of the parent");
	memcpy(ret + n, "/", 2);
	return 0;
}

/* The path of a layer's index from the folder of the new one. Returns its length, or more than KI_MAX_NAME. */
static size_t name_layer(const struct store *s, uint32_t layer, const char *folder, char *ret)
{
	const struct kvmem_image *p = s->w->parent;
	const struct ki_layer *l = &s->layers[layer];
	const char *slash = strrchr(p->path, '/'), *name = p->index.names + l->name;
	size_t room = KI_MAX_NAME + 1;

	if (layer + 2 == s->super.layers) /* the parent itself */
		return (size_t)snprintf(ret, room, "%s%s", folder, slash ? slash + 1 : p->path);
	return (size_t)snprintf(ret, room, "%s%.*s", *name == '/' ? "" : folder, (int)l->name_bytes,
				name);
}

/* What is called so now has to be the parent that the new image was made on top of. */
static int check_parent(const struct store *s, const char *name)
{
	struct ki_super super;
	int fd = openat(s->w->place.dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), r;

	if (fd < 0)
		return ki_fail(errno, "kvmem_image_commit: the parent '%s': %m", name);
	r = ki_index_read_super(fd, name, &super);
	close(fd);
	if (!r && !ki_sum_equal(super.sum, s->w->parent->index.super.sum))
		r = ki_fail(ESTALE, "kvmem_image_commit: the parent '%s' is another image by now",
			    name);
	return r;
}

static int name_layers(struct store *s, char **ret_names, uint64_t *ret_bytes)
{
	const struct kvmem_image *p = s->w->parent;
	uint32_t count = s->super.layers - 1;
	char folder[KI_MAX_NAME + 1], *names;
	uint64_t used = 0, room;
	int r = p ? parents_folder(s, folder, sizeof(folder)) : 0;

	if (r || !p)
		return r;
	room = p->index.super.name_table.bytes + count * strlen(folder) + KI_MAX_NAME + 1;
	names = room <= KI_MAX_NAMES ? malloc(room) : NULL;
	if (!names)
		return ki_fail(ENOMEM, "kvmem_image_commit: no memory for the names of parents");
	*ret_names = names;
	for (uint32_t i = 0; i < count; i++) {
		struct ki_layer *l = &s->layers[i];
		char name[KI_MAX_NAME + 1];
		size_t n = name_layer(s, i, folder, name);

		if (n > KI_MAX_NAME || n > room - used)
			return ki_fail(ENAMETOOLONG,
				       "kvmem_image_commit: the path of a parent: "
				       "'%.60s...'",
				       name);
		memcpy(names + used, name, n);
		l->name = (uint32_t)used;
		l->name_bytes = (uint32_t)n;
		used += n;
		if (i + 1 == count)
			r = check_parent(s, name);
	}
	*ret_bytes = used;
	return r;
}

static int make_layers(struct store *s, const uint8_t *id)
{
	const struct kvmem_image *p = s->w->parent;
	uint32_t self = ki_writer_layer(s->w);
	int r = p ? ki_layers_know(s->w->parent) : 0;

	if (r)
		return r;
	s->super.layers = self + 1;
	s->layers = calloc(s->super.layers, sizeof(*s->layers));
	if (!s->layers)
		return ki_fail(ENOMEM, "kvmem_image_commit: no memory");
	if (p) {
		memcpy(s->layers, p->index.layers, self * sizeof(*s->layers));
		s->layers[self - 1].sum = p->index.super.sum;
		memcpy(s->super.parent, p->index.super.id, sizeof(s->super.parent));
		s->super.parent_sum = p->index.super.sum;
		s->super.flags |= KI_FLAG_DIFF;
	}
	memcpy(s->layers[self].id, id, sizeof(s->layers[self].id));
	return 0;
}

/* ---- blocks ---- */

static void count_places(struct store *s, const struct ki_entry *e, bool add)
{
	for (unsigned int i = 0; i < KI_BLOCK_PAGES; i++)
		if (e[i].place)
			s->layers[e[i].place - 1].pages += add ? 1 : UINT64_MAX;
}

/* A block that was written to: stored, unless it is as the parent has it. */
static int put_block(struct store *s, uint64_t span, const struct ki_entry *e)
{
	const struct ki_entry *before = ki_zero_block;
	struct ki_block *b = &s->blocks[span];
	struct ki_table where;
	int r = s->w->parent ? ki_image_block(s->w->parent, span, &before) : 0;

	if (r || !memcmp(before, e, KI_PAGE))
		return r;
	count_places(s, before, false);
	count_places(s, e, true);
	*b = (struct ki_block){ .layer = KI_NO_LAYER };
	if (ki_is_zero(e, KI_PAGE))
		return 0;
	if (s->at / KI_PAGE > UINT32_MAX)
		return ki_fail(EFBIG, "kvmem_image_commit: the index is too long");
	b->layer = s->super.layers - 1;
	b->number = (uint32_t)(s->at / KI_PAGE);
	b->sum = ki_sum64(e, KI_PAGE);
	return put(s, e, KI_PAGE, &where);
}

static int put_blocks(struct store *s)
{
	int r = 0;

	for (uint64_t span = 0; span < s->spans; span++)
		s->blocks[span] = (struct ki_block){ .layer = KI_NO_LAYER };
	if (s->w->parent)
		r = ki_index_blocks(&s->w->parent->index, s->blocks);
	for (uint64_t span = 0; !r && span < s->spans; span++) {
		const struct ki_entry *e = atomic_load(&s->w->blocks[span]);

		if (e)
			r = put_block(s, span, e);
	}
	return r;
}

/* The sums of the parts of a table that has been put, in a table of their own. */
static int put_part_sums(struct store *s, char *table, struct ki_table *where,
			 struct ki_table *ret_sums)
{
	uint64_t parts = (where->bytes + KI_PART - 1) / KI_PART;
	uint64_t *sums = malloc(parts * sizeof(*sums));
	int r;

	if (!sums)
		return ki_fail(ENOMEM, "kvmem_image_commit: no memory");
	for (uint64_t i = 0; i < parts; i++)
		sums[i] = ki_sum64(table + i * KI_PART,
				   ki_min(KI_PART, where->bytes - i * KI_PART));
	r = put(s, sums, parts * sizeof(*sums), ret_sums);
	where->sum = (struct ki_sum){ 0 }; /* its parts have theirs */
	free(sums);
	return r;
}

static int put_block_table(struct store *s)
{
	struct ki_super *x = &s->super;
	int r = put(s, s->blocks, s->spans * sizeof(*s->blocks), &x->block_table);

	return r ? r : put_part_sums(s, (char *)s->blocks, &x->block_table, &x->part_table);
}

static int put_frames(struct store *s)
{
	const struct kvmem_image_writer *w = s->w;
	struct ki_super *x = &s->super;
	int r;

	if (!w->frames)
		return 0;
	x->incompat |= KI_PACKED;
	x->chunk_shift = KI_CHUNK_SHIFT;
	x->data_bytes = w->packed_bytes;
	r = put(s, w->frames, ki_chunks(w->bytes) * sizeof(*w->frames), &x->frame_table);
	return r ? r : put_part_sums(s, (char *)w->frames, &x->frame_table, &x->frame_part_table);
}

/* ---- the rest ---- */

static int put_regions(struct store *s)
{
	struct ki_region *table = calloc(s->w->region_count, sizeof(*table));
	int r;

	if (!table)
		return ki_fail(ENOMEM, "kvmem_image_commit: no memory");
	for (uint32_t i = 0; i < s->w->region_count; i++) {
		const struct kvmem_image_region *from = &s->w->regions[i];

		table[i] = (struct ki_region){ .gpa = from->gpa,
					       .bytes = from->bytes,
					       .offset = from->offset,
					       .flags = from->flags };
		memcpy(table[i].name, from->name, sizeof(table[i].name));
	}
	s->super.regions = s->w->region_count;
	r = put(s, table, s->super.regions * sizeof(*table), &s->super.region_table);
	free(table);
	return r;
}

static int put_blobs(struct store *s)
{
	struct ki_blob table[KI_MAX_BLOBS] = { 0 };
	int r = 0;

	s->super.blobs = s->w->blob_count;
	for (uint32_t i = 0; !r && i < s->super.blobs; i++) {
		const struct ki_new_blob *b = &s->w->blobs[i];

		memcpy(table[i].name, b->name, sizeof(table[i].name));
		r = put(s, b->content, b->bytes, &table[i].content);
	}
	return r ? r : put(s, table, s->super.blobs * sizeof(*table), &s->super.blob_table);
}

static int put_layers(struct store *s)
{
	char *names = NULL;
	uint64_t bytes = 0;
	int r = name_layers(s, &names, &bytes);

	if (!r)
		r = put(s, s->layers, s->super.layers * sizeof(*s->layers), &s->super.layer_table);
	if (!r)
		r = put(s, names ? names : "", bytes, &s->super.name_table);
	free(names);
	return r;
}

/* A parent that says wrong numbers leads to some that cannot be: the new image could not be opened. */
static int sum_pages(struct store *s)
{
	struct ki_super *x = &s->super;
	uint64_t left = s->w->bytes >> KI_PAGE_SHIFT;

	for (uint32_t i = 0; i < x->layers; i++) {
		if (s->layers[i].pages > left)
			return ki_fail(EBADMSG,
				       "kvmem_image_commit: the index of the parent '%s' is "
				       "damaged: its numbers of pages",
				       s->w->parent ? s->w->parent->path : "");
		left -= s->layers[i].pages;
		if (i + 1 < x->layers)
			x->pages_parent += s->layers[i].pages;
	}
	x->pages_data = s->layers[x->layers - 1].pages;
	return 0;
}

static int put_super(struct store *s, const char *data_name, const uint8_t *id)
{
	struct ki_super *x = &s->super;
	struct timespec now;
	int r = sum_pages(s);

	if (r)
		return r;
	clock_gettime(CLOCK_REALTIME, &now);
	memcpy(x->magic, KI_MAGIC, sizeof(x->magic));
	x->version = KI_VERSION;
	x->super_bytes = KI_PAGE;
	x->page_shift = KI_PAGE_SHIFT;
	memcpy(x->id, id, sizeof(x->id));
	x->bytes = s->w->bytes;
	x->index_bytes = s->at;
	x->created_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	x->data_name_bytes = (uint32_t)strlen(data_name);
	memcpy(x->data_name, data_name, x->data_name_bytes);
	x->sum = ki_sum(x, offsetof(struct ki_super, sum));
	r = ki_check_length(s->at, "kvmem_image_commit: the index");
	if (r)
		return r;
	if (ftruncate(s->fd, (off_t)s->at))
		return ki_fail(errno, "kvmem_image_commit: the index: %m");
	return ki_write_at(s->fd, 0, x, sizeof(*x), "kvmem_image_commit: the index");
}

int ki_store_index(struct kvmem_image_writer *w, const char *data_name, const uint8_t *id,
		   const struct ki_old *old, struct ki_new_file *ret)
{
	struct store s = { .w = w, .at = KI_PAGE, .spans = ki_spans(w->bytes) };
	int r = ki_new_file(w->place.dir, "kvmem_image_commit: the index", ret);

	if (r)
		return r;
	s.fd = ret->fd;
	memcpy(s.super.left, old->left, old->left_count * sizeof(*old->left));
	s.blocks = malloc(s.spans * sizeof(*s.blocks));
	r = s.blocks ? make_layers(&s, id) : ki_fail(ENOMEM, "kvmem_image_commit: no memory");
	if (!r)
		r = put_blocks(&s);
	if (!r)
		r = put_block_table(&s);
	if (!r)
		r = put_frames(&s);
	if (!r)
		r = put_layers(&s);
	if (!r)
		r = put_regions(&s);
	if (!r)
		r = put_blobs(&s);
	if (!r)
		r = put_super(&s, data_name, id);
	free(s.blocks);
	free(s.layers);
	return r;
}
