/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* A memory image to try things on: real data of this machine, with real holes between. */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdint.h>

/*
 * Open the image at path for reading; when there is none, or none of that length, make it first:
 * system libraries and programs over three quarters of it, holes over the rest. It appears at once
 * and whole. The file descriptor, or -errno.
 */
int image_open_or_make(const char *path, uint64_t bytes);

#endif
