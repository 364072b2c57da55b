/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef TOOL_H
#define TOOL_H

/*
 * kvmem-image(1), a file for each kind of command:
 *
 *	kvmem-image.c	arguments
 *	print.c		what all of them print: sentences, progress, JSON strings
 *	info.c		info
 *	verify.c	verify
 *	diff.c		diff
 *	make.c		a new image of what another one has
 *	create.c	create
 *	relayer.c	flatten, rebase, compact, pack, unpack
 *	extract.c	extract
 *
 * Commands take the paths and return what the program ends with.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <kvmem/image.h>

#define PAGE 4096u
#define STEP (1u << 20) /* bytes that are read at once */

struct options {
	bool json, replace, no_sync, diff, flat, quiet;
	const char *parent;
};

extern struct options options;

/* ---- print.c ---- */

/* "kvmem-image: " and a sentence, on the standard error. Returns 1. */
int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The library's sentence on what failed last. Returns 1. */
int failed(void);
/* On a terminal, a bar of how much is done; gone when all is. */
void progress(const char *what, uint64_t done, uint64_t total);
/* Gone now: something else is printed, or it was not all. */
void progress_end(void);
/*
 * Names of images, and sentences that have them: whoever made an image has chosen them. Control characters and bytes
 * that are no UTF-8 are printed as \xNN, and a backslash twice.
 */
void print_text(FILE *to, const char *text);
/* A JSON string; what is no UTF-8 in it is U+FFFD. */
void print_json(const char *text);

/* ---- make.c ---- */

enum make_how {
	MAKE_BY_CONTENT,  /* stored is what differs from the parent's content */
	MAKE_SAME_PARENT, /* the same, of an image whose parent it is already */
	MAKE_EXACTLY,	  /* stored is what `from` stores, on top of its own parent */
};

/*
 * A new image of what *from has, on top of parent (NULL: none). *from is closed, and NULL then, before the new one
 * appears: so its data can go, where it is replaced. flags: KVMEM_IMAGE_PACKED or 0. replaces_from: the new image has
 * the name of *from, and replaces nothing but *from.
 */
int make(struct kvmem_image **from, struct kvmem_image *parent, const char *path, enum make_how how,
	 uint32_t flags, bool replaces_from);
/* Has the new image `path` the name of the index `index`? Asked before `index` is opened. */
bool is_same_name(const char *index, const char *path);
/* Its regions, allocated; NULL: no memory, with the detail set. */
struct kvmem_image_region *regions_of(struct kvmem_image *image, uint32_t *ret_count);

/* ---- commands ---- */

int do_info(char **paths);
int do_verify(char **paths);
int do_diff(char **paths);
int do_create(char **paths);
int do_flatten(char **paths);
int do_rebase(char **paths);
int do_compact(char **paths);
int do_pack(char **paths);
int do_unpack(char **paths);
int do_extract(char **paths);

#endif
