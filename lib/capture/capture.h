/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_CAPTURE_H
#define KM_CAPTURE_H

/*
 * capture: the memory of a moment, handed out while the guest runs on. Knows fill, whose guard (fill/guard.h) tells it
 * of writes that wait and of pages that are about to be taken away, and what is to its left; nothing knows capture.
 *
 * Invariants:
 *  - A page is handed out once, by who has made it BUSY in the record.
 *  - A page that is DATA or BUSY in the record is write-protected, from the arming on; DONE comes before the end of its
 *    protection.
 *  - A page that has no memory at the pause is zero by record, and one that a pager has not filled is its source's:
 *    neither needs protection, whatever is written to it later.
 *  - Threads that hand out pages never touch the memory through its mapping, except by calls that answer EFAULT, and
 *    there only pages that exist.
 */

#include <kvmem/capture.h>

#include "fill/fill.h"

#endif
