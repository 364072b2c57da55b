/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_PAGER_H
#define KM_PAGER_H

/*
 * pager: on demand. Threads that serve the faults of regions and fill the rest behind them; a
 * client of fill. Nothing to its left calls it but through the listener of a region's record.
 *
 * Invariants: every fault that is read is answered, or marked on the claim that answers it; a page
 * that cannot be filled is poisoned or handed to the caller, and never reads as zero; a fault waits
 * for no read but its own and the one under way on its page.
 */

#include <kvmem/pager.h>

#include "fill/fill.h"

#endif
