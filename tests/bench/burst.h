/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef BURST_H
#define BURST_H

/* Rows of many restores at once, from the image of restore_open(). */
void burst_rows(void);

#endif
