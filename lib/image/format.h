/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KI_FORMAT_H
#define KI_FORMAT_H

/*
 * The index as it is stored: docs/image-format.md. All numbers are little-endian, as on every machine that
 * libkvmem runs on.
 *
 *	superblock	4096 bytes; has the digests of the tables, and one of its own
 *	tables		regions, layers with their names, blobs with their bytes, sums of the block table
 *	block table	for each 2 MiB of the image: in which index its block is, where, and the block's sum
 *	blocks		4096 bytes each: what and where the 512 pages of 2 MiB are, and their sums
 *	frame table	of packed data: for each 64 KiB of the image where their zstd frame is, and its sum
 */

#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the index is stored little-endian");

#define KI_PAGE	       4096u
#define KI_PAGE_SHIFT  12
#define KI_BLOCK_PAGES 512u /* pages that one block describes */
#define KI_SPAN	       ((uint64_t)KI_PAGE * KI_BLOCK_PAGES)
#define KI_SPAN_SHIFT  21
#define KI_PART	       4096u /* bytes of the block table that one sum covers */

#define KI_MAGIC   "KVMEMIMG"
#define KI_VERSION 1u

/* What this library knows. Others: of the first kind they can be ignored, of the second they cannot. */
#define KI_COMPAT   0ull
#define KI_PACKED   (1ull << 0) /* the data are zstd frames */
#define KI_INCOMPAT KI_PACKED

/* Packed data: each chunk of the image that has pages stored there is one zstd frame. */
#define KI_CHUNK_SHIFT 16
#define KI_CHUNK       (1u << KI_CHUNK_SHIFT)
#define KI_CHUNK_PAGES (KI_CHUNK / KI_PAGE)
#define KI_MAX_FRAME   (KI_CHUNK + KI_CHUNK / 64)

#define KI_FLAG_DIFF (1u << 0)

/* Bounds, checked before anything is believed or allocated. */
#define KI_MAX_BYTES	   (1ull << 46)
#define KI_MAX_REGIONS	   4096u
#define KI_MAX_LAYERS	   (1u << 20)
#define KI_MAX_BLOBS	   64u
#define KI_MAX_BLOB	   (1ull << 30)
#define KI_MAX_NAMES	   (1u << 28) /* bytes of all names of layers */
#define KI_MAX_NAME	   4095u
#define KI_MAX_LEFT	   64u
#define KI_MAX_INDEX_BYTES (1ull << 44)

struct ki_sum {
	uint64_t low, high; /* XXH3, 128 bits, seed 0 */
};

/* A run of bytes of the index file. */
struct ki_table {
	uint64_t offset;
	uint64_t bytes;
	struct ki_sum sum;
};

/* All zero: none. */
struct ki_left {
	uint8_t id[16];	   /* of the image: its data are called NAME or NAME.ID */
	uint64_t inode;	   /* of the data */
	uint64_t mtime_ns; /* of the data, since 1970 */
};

struct ki_super {
	char magic[8];
	uint32_t version;
	uint32_t super_bytes; /* KI_PAGE */
	uint64_t compat, incompat;
	uint32_t page_shift; /* KI_PAGE_SHIFT */
	uint32_t flags;	     /* KI_FLAG_* */
	uint8_t id[16];
	uint8_t parent[16];	  /* zero: none */
	struct ki_sum parent_sum; /* of the parent's superblock */
	uint64_t bytes;		  /* of the image */
	uint64_t index_bytes;	  /* of this file */
	uint64_t created_ns;
	uint64_t pages_data, pages_parent;
	uint32_t regions, layers, blobs;
	uint32_t data_name_bytes;
	struct ki_table region_table; /* struct ki_region each */
	struct ki_table layer_table;  /* struct ki_layer each, the last one is this image */
	struct ki_table name_table;   /* the layers' names, one behind the other */
	struct ki_table blob_table;   /* struct ki_blob each */
	struct ki_table part_table;   /* a 64-bit sum for each KI_PART bytes of the block table */
	struct ki_table block_table;  /* struct ki_block each; its own sum is not used: zero */
	char data_name[256];	      /* of the data, in the folder of the index */
	/* Of packed data; else zero. */
	uint32_t chunk_shift; /* KI_CHUNK_SHIFT */
	uint32_t unused_32;
	uint64_t data_bytes; /* of the data */
	struct ki_table
		frame_part_table;    /* a 64-bit sum for each KI_PART bytes of the frame table */
	struct ki_table frame_table; /* struct ki_frame each; its own sum is not used: zero */
	/* Data of images of this name before, which somebody had open when they were replaced. */
	struct ki_left left[KI_MAX_LEFT];
	uint8_t unused[1360]; /* zero */
	struct ki_sum sum;    /* of all before it */
};

struct ki_region {
	uint64_t gpa, bytes, offset;
	uint32_t flags, unused;
	char name[32];
};

struct ki_layer {
	uint8_t id[16];
	struct ki_sum sum; /* of its superblock; of the last one, which is this image, zero */
	uint32_t name; /* bytes into the names: the path of its index from the folder of this one */
	uint32_t name_bytes; /* 0: of the last one */
	uint64_t pages;	     /* of this image that are stored there */
};

struct ki_blob {
	char name[32];
	struct ki_table content;
};

#define KI_NO_LAYER UINT32_MAX /* all 512 pages are zero, and there is no block */

struct ki_block {
	uint32_t layer;	 /* whose index has it, or KI_NO_LAYER */
	uint32_t number; /* the block begins at byte number * 4096 of that index */
	uint64_t sum;	 /* XXH3, 64 bits, of the block */
};

/* One page. */
struct ki_entry {
	uint32_t place; /* 0: zero; n + 1: in the data of layer n, at its own offset */
	uint32_t sum;	/* lower half of XXH3, 64 bits, of the page; of a page of zeros 0 */
};

/* One chunk of packed data: its pages that this image stores at their places in the chunk, zeros between them. */
struct ki_frame {
	uint64_t offset; /* bytes into the data */
	uint32_t
		bytes; /* 0: there is no frame, since no page of the chunk is stored in this image */
	uint32_t sum;  /* lower half of XXH3, 64 bits, of the frame */
};

_Static_assert(sizeof(struct ki_super) == KI_PAGE, "the superblock is one page");
_Static_assert(sizeof(struct ki_region) == 64 && sizeof(struct ki_layer) == 48 &&
		       sizeof(struct ki_blob) == 64 && sizeof(struct ki_block) == 16 &&
		       sizeof(struct ki_entry) == 8 && sizeof(struct ki_frame) == 16 &&
		       sizeof(struct ki_left) == 32,
	       "no padding in what is stored");

#endif
