/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_POPULATE_H
#define KM_POPULATE_H

/*
 * populate: all now. kvmem_populate() and its threads; a client of fill. Nothing to its right uses
 * it.
 */

#include <kvmem/populate.h>

#include "fill/fill.h"

#endif
