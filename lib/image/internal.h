/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KI_INTERNAL_H
#define KI_INTERNAL_H

/*
 * libkvmem-image, on the public interface of libkvmem alone. Its parts, each calling only those above it:
 *
 *	errors.c	sentences of failures
 *	files.c		paths, whole reads and writes, files without a name until they get one
 *	sums.c		checksums
 *	workers.c	several threads for one call
 *	index.c		one index file: its head and tables, believed only after they were checked
 *	regions.c	tables of regions
 *	packed.c	data that are zstd frames; packed_none.c where the build has no zstd
 *	layers.c	the parents of an image, opened when something of them is needed
 *	raw.c		files without an index
 *	image.c		an image: opened, looked up, closed
 *	parent.c	the image that one was made on top of
 *	read.c		content, checked; runs; verify
 *	source.c	its content as a source
 *	ahead.c		data into the page cache
 *	pack.c		the data of a new image into zstd frames
 *	old.c		the image that a new one replaces, and data that stay behind
 *	store.c		the index of a new image
 *	writer.c	an image that is being made
 *	commit.c	its commit: names, and who may read it
 *	save_next.c	what of a guest's memory is to be saved, piece by piece
 *	save.c		threads that do it
 *	precopy.c	the same while the guest runs, pass by pass
 *	dirty_set.c	which pages a capture of a difference has
 *	capture.c	the same of the memory of a moment, while the guest runs on
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <kvmem/image.h>
#include <kvmem/region.h>

#include "image/format.h"

/* -err, with one sentence about it. (clang's analyzer does not see that it never returns 0.) */
#ifdef __clang_analyzer__
#define ki_fail(err, ...) ((void)kvmem_error_set(err, __VA_ARGS__), -1)
#else
#define ki_fail kvmem_error_set
#endif

/* ---- errors.c ---- */

/*
 * A failure of a call that `call` has made, -errno with its sentence: from now on the sentence is of `call`. Whoever
 * reads it has called that one, and may never have heard of the other.
 */
int ki_fail_as(const char *call, int r);

static inline uint64_t ki_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- files.c ---- */

#define KI_SUFFIX ".kvmem"

/* The folder of a path, opened, and the name in it. */
struct ki_place {
	int dir;
	char name[256];
};

int ki_place_open(const char *call, int dir, const char *path, struct ki_place *ret);
void ki_place_close(struct ki_place *p);

/* All of it; a file that ends before is -EBADMSG. *_at: from and to one place. -errno with the detail set. */
int ki_read_at(int fd, uint64_t at, void *buf, uint64_t bytes, const char *what);
int ki_write_at(int fd, uint64_t at, const void *buf, uint64_t bytes, const char *what);
/* May a file of this process be so long? */
int ki_check_length(uint64_t bytes, const char *what);

/* A file in dir that has no name, or one that nobody expects. */
struct ki_new_file {
	int fd;
	int dir;
	char temporary[64]; /* "": it has no name yet */
};

int ki_new_file(int dir, const char *what, struct ki_new_file *ret);
/* Its name from now on; replace: in place of whatever is there. */
int ki_new_file_name(struct ki_new_file *f, const char *name, bool replace);
/* Closed; and gone, if it never got its name. */
void ki_new_file_end(struct ki_new_file *f);

/* ---- sums.c ---- */

struct ki_sum ki_sum(const void *bytes, size_t n);
uint64_t ki_sum64(const void *bytes, size_t n);
uint32_t ki_page_sum(const void *page);
bool ki_sum_equal(struct ki_sum a, struct ki_sum b);
bool ki_is_zero(const void *bytes, size_t n);

/* ---- workers.c ---- */

#define KI_MAX_WORKERS 64u

uint64_t ki_now_ns(void); /* CLOCK_MONOTONIC */
/* How many: those wanted, or as many as CPUs, at most 4. */
uint32_t ki_workers(uint32_t wanted);
/* fn in so many threads, the caller's among them; returns when all have returned. With fewer it takes longer. */
void ki_workers_run(const char *name, uint32_t count, void (*fn)(void *arg, bool caller),
		    void *arg);

/* ---- index.c ---- */

struct ki_index {
	int fd;
	struct ki_super super;
	struct ki_region *regions;
	struct ki_layer *layers; /* NULL: not read yet, as `names` */
	char *names;
	struct ki_blob *blobs;
	uint64_t *parts;
};

static inline uint64_t ki_spans(uint64_t bytes)
{
	return (bytes + KI_SPAN - 1) >> KI_SPAN_SHIFT;
}

/* Takes fd, also when it fails. `path` is for sentences. */
int ki_index_read(int fd, const char *path, struct ki_index *ret);
/* The superblock alone: of a parent, whose tables nobody needs. */
int ki_index_read_super(int fd, const char *path, struct ki_super *ret);
void ki_index_close(struct ki_index *x);
/* Its layers and their names: when the first of them is needed. */
int ki_index_read_layers(struct ki_index *x, const char *path);
/* Where the block of a span is. */
int ki_index_block(const struct ki_index *x, uint64_t span, struct ki_block *ret);
/* Of all spans. */
int ki_index_blocks(const struct ki_index *x, struct ki_block *ret);
/* A table of the head of an index: allocated, read and compared with its sum. It has to have so many bytes. */
int ki_table_read(int fd, const char *path, const struct ki_super *s, const struct ki_table *t,
		  uint64_t bytes, void *ret);
/* KI_PART bytes of a table, or what is left of it, compared with their sum. */
int ki_part_read(int fd, const char *path, const struct ki_table *t, const uint64_t *sums,
		 uint64_t part, void *buf);

/* ---- regions.c ---- */

/* Those that a caller gives: checked, copied, with their offsets; and how long they are together. */
int ki_regions_copy(const char *call, const struct kvmem_image_region *regions, uint32_t count,
		    struct kvmem_image_region **ret, uint64_t *ret_bytes);
int ki_regions_stored(const struct ki_index *x, struct kvmem_image_region **ret);

/* ---- packed.c ---- */

static inline uint64_t ki_chunks(uint64_t bytes)
{
	return (bytes + KI_CHUNK - 1) >> KI_CHUNK_SHIFT;
}

struct ki_packed; /* the frames of one layer */
struct ki_cache;  /* chunks of an image that were unpacked, of all its layers */

/* index is taken, also when it fails; data stay the caller's. */
int ki_packed_open(int index, int data, const struct ki_super *super, const char *path,
		   struct ki_packed **ret);
void ki_packed_close(struct ki_packed *p);
/* Where a chunk's frame is: checked to lie in the data. */
int ki_packed_frame(const struct ki_packed *p, const char *path, uint64_t chunk,
		    struct ki_frame *ret);
int ki_cache_new(struct ki_cache **ret);
void ki_cache_free(struct ki_cache *cache);
/* Pages as they were packed: their sums are the caller's to check. */
int ki_packed_read(struct ki_cache *cache, const struct ki_packed *p, const char *path,
		   uint32_t layer, uint64_t page, uint64_t count, char *buf);

/* ---- layers.c ---- */

struct ki_layers {
	_Atomic bool known; /* the index's table of them has been read */
	int dir;	    /* of the image's index: names are from there */
	_Atomic int *data;  /* descriptors, -1: not opened yet; of the image itself the last one */
	/* As `data`, whose descriptors are stored last: NULL where the data are not packed. */
	struct ki_packed **packed;
	struct ki_cache *cache; /* NULL: no layer that was opened is packed */
	pthread_mutex_t lock;
};

/* From its return on index.layers can be used. */
int ki_layers_know(struct kvmem_image *image);
/* 0: open and locked; the descriptor is the image's. */
int ki_layer_data(struct kvmem_image *image, uint32_t layer, int *ret_fd);
/* Its index, opened and compared; the caller's. */
int ki_layer_index(struct kvmem_image *image, uint32_t layer);
/* The image's own data, in the folder dir of its index. */
int ki_layers_open(struct kvmem_image *image, int dir);
void ki_layers_close(struct kvmem_image *image);

/* ---- image.c ---- */

struct kvmem_image {
	char *path;
	uint32_t flags;		/* KVMEM_IMAGE_RAW_* */
	_Atomic uint32_t users; /* sources, writers, images on top */
	uint64_t bytes;
	struct kvmem_image_region *regions;
	uint32_t region_count;
	/* Raw. */
	int raw_fd;
	struct kvmem_image *parent;
	/* With an index. */
	struct ki_index index;
	struct ki_layers layers;
	struct ki_entry *_Atomic *blocks; /* of each span, NULL: not looked up yet */
};

/* All zero: of spans without a block. Not to be freed. */
extern const struct ki_entry ki_zero_block[KI_BLOCK_PAGES];

/* The 512 entries of a span, borrowed. */
int ki_image_block(struct kvmem_image *image, uint64_t span, const struct ki_entry **ret);

static inline bool ki_is_raw(const struct kvmem_image *image)
{
	return image->flags & (KVMEM_IMAGE_RAW_FULL | KVMEM_IMAGE_RAW_DIFF);
}

/* ---- read.c ---- */

/* kvmem_image_next_run() of a page in the image, that looks no further than `most` bytes. */
int ki_image_run(struct kvmem_image *image, uint64_t from, uint64_t most,
		 struct kvmem_image_run *ret);

/* ---- writer.c ---- */

struct ki_new_blob {
	char name[KVMEM_IMAGE_NAME_MAX + 1];
	void *content;
	uint64_t bytes;
};

struct kvmem_image_writer {
	struct ki_place place;
	uint32_t flags;
	uint64_t bytes;
	struct kvmem_image_region *regions;
	uint32_t region_count;
	struct kvmem_image *parent;
	bool replaces; /* only the image whose superblock has this sum */
	struct ki_sum replaces_sum;
	struct ki_new_file data;
	int (*progress)(void *arg, const struct kvmem_image_progress *progress); /* of packing */
	void *progress_arg;
	struct ki_frame *frames; /* of each chunk, once the data are packed; else NULL */
	uint64_t packed_bytes;
	_Atomic bool committing; /* a callback of the commit's may use the writer */
	_Atomic bool saving, save_failed;
	bool precopy;			  /* pages may have been written since they were saved */
	struct kvmem_batch *batch;	  /* freed by the commit, else given back; NULL: none */
	pthread_mutex_t lock;		  /* blocks that are made, blobs */
	struct ki_entry *_Atomic *blocks; /* of spans that something was written to */
	struct ki_new_blob blobs[KI_MAX_BLOBS];
	uint32_t blob_count;
};

/* The number of the layer that is being written. */
static inline uint32_t ki_writer_layer(const struct kvmem_image_writer *w)
{
	return w->parent ? w->parent->index.super.layers : 0;
}

void ki_writer_free(struct kvmem_image_writer *w);
/* It will not be committed: the batch, if there is one, goes back to its reader. Details of errors stay. */
void ki_writer_return_batch(struct kvmem_image_writer *w);
/* Whole pages; buf NULL: zeros. *stored counts pages that were not zero. */
int ki_writer_put(struct kvmem_image_writer *w, uint64_t page, uint64_t count, const char *buf,
		  uint64_t *stored);
/* Whole pages that are the parent's again, whatever was written to them. */
int ki_writer_put_parents(struct kvmem_image_writer *w, uint64_t page, uint64_t count);
/* Are these regions the memory of the image? */
int ki_writer_check_regions(const struct kvmem_image_writer *w, const char *call,
			    struct kvmem_region *const *regions, uint32_t count);
/* Have the kernel begin to write these pages of the data, so that the commit has less to wait for. */
void ki_writer_flush(struct kvmem_image_writer *w, uint64_t page, uint64_t count);

/* ---- save_next.c ---- */

#define KI_PIECE (1u << 20) /* most bytes of data that are read at once */
#define KI_RUNS	 256u

/* Neighbouring pages of one kind. */
struct ki_piece {
	struct kvmem_region *region;
	uint64_t from;	/* bytes into the region */
	uint64_t to;	/* bytes into the image */
	uint64_t bytes; /* of DATA at most KI_PIECE */
	uint32_t kind;	/* enum kvmem_stored_kind */
};

struct ki_next {
	struct kvmem_image_writer *w;
	struct kvmem_region *const *regions;
	struct kvmem_batch *batch;
	const struct kvmem_run *runs; /* in place of a batch */
	uint64_t run_at, run_count;
	uint32_t region;  /* that is at */
	uint64_t at, end; /* in it: what is left of a run to be saved */
	struct kvmem_run dirty[KI_RUNS];
	uint32_t dirty_at, dirty_count;
	struct kvmem_stored stored[KI_RUNS]; /* of the region, in order */
	uint32_t stored_at, stored_count;
	struct kvmem_run record; /* what its record says of pages around */
	uint32_t record_state;
	bool paged; /* a pager would fill what is absent */
	bool over;
};

int ki_next_begin(struct ki_next *n);
/* Are these runs of the regions? */
int ki_next_check(const struct ki_next *n);
/* 1: a piece; 0: that was all. One thread at a time. */
int ki_next_piece(struct ki_next *n, struct ki_piece *ret);

/* ---- save.c ---- */

/* Of regions that fit: all of them, a batch (borrowed) or o->runs. */
int ki_save(const char *call, struct kvmem_image_writer *w, struct kvmem_region *const *regions,
	    struct kvmem_batch *batch, const struct kvmem_image_save_opts *o,
	    struct kvmem_image_save_result *ret);

/* ---- dirty_set.c ---- */

struct ki_dirty_set {
	const struct kvmem_run *runs;
	struct kvmem_run *of_batch; /* the same, where they are of one */
	uint64_t run_count;
	/* Of regions whose pages are larger than KI_PAGE: a bit for each KI_PAGE that runs have. Else NULL. */
	uint64_t **bits;
	uint32_t region_count;
};

/*
 * The runs of a batch that is committed; NULL: those of o, borrowed until the capture has begun. That they are pages of
 * these regions is not checked. Destroyed by the caller, also when it fails.
 */
int ki_dirty_set_init(struct ki_dirty_set *s, const struct kvmem_image_writer *w,
		      struct kvmem_region *const *regions, struct kvmem_batch *batch,
		      const struct kvmem_image_save_opts *o);
void ki_dirty_set_destroy(struct ki_dirty_set *s);
/* The first run of pages of a region that are in the set, from `page` on and before `end`: *ret_page, and how many. */
uint64_t ki_dirty_set_run(const struct ki_dirty_set *s, uint32_t region, uint64_t page,
			  uint64_t end, uint64_t *ret_page);

/* ---- pack.c ---- */

/* Can this build pack? */
int ki_pack_check(void);
/* The data, which were a raw file so far, are frames from its return on. */
int ki_pack(struct kvmem_image_writer *w);

/* ---- old.c ---- */

/* The image that a commit replaces. */
struct ki_old {
	int index; /* locked; -1: there is none */
	char data
		[256]; /* the name of its data, which go with it; "": they are somebody else's too */
	/* Data that are to go as soon as nobody has them: its own, and those of images before it. */
	struct ki_left left[KI_MAX_LEFT];
	unsigned int left_count;
};

/* NAME.ID, the name of data whose own name is taken. */
void ki_name_by_id(const char *name, const uint8_t *id, char *ret, size_t room);
/* ret->index is -1 before. Ended by the caller, also when it fails. */
int ki_old_find(const struct kvmem_image_writer *w, const char *index, struct ki_old *ret);
/* The new image, whose data are called data_name, has taken its place. */
void ki_old_remove(const struct kvmem_image_writer *w, const struct ki_old *old,
		   const char *data_name);
/* Another commit may go on. */
void ki_old_end(struct ki_old *old);

/* ---- store.c ---- */

/* The index, complete, without a name. It remembers what is left of `old`. */
int ki_store_index(struct kvmem_image_writer *w, const char *data_name, const uint8_t *id,
		   const struct ki_old *old, struct ki_new_file *ret);

/* ---- raw.c ---- */

int ki_raw_open(const char *path, const struct kvmem_image_open_opts *o, struct kvmem_image *image);
/* The run that `from`, a page, begins. */
int ki_raw_run(struct kvmem_image *image, uint64_t from, struct kvmem_image_run *ret);
int ki_raw_read(struct kvmem_image *image, uint64_t offset, void *buf, uint64_t bytes);

#endif
