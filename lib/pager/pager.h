/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_PAGER_H
#define KM_PAGER_H

/*
 * pager: on demand. Threads that serve the faults of regions and fill the rest behind them; a
 * client of fill. Regions reach it through km_fault_ops, which region declares.
 */

#include <kvmem/pager.h>

#include "fill/fill.h"

#endif
