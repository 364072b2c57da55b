/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef BURST_H
#define BURST_H

#include <stdbool.h>

/* Rows of many restores at once, from the image of restore_open(): their time, or what they read from the disk. */
void burst_rows(bool bytes);

#endif
