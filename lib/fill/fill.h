/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_FILL_H
#define KM_FILL_H

/*
 * fill: from absent to present. Knows source, numa, region and what is to their left.
 */

#include "numa/numa.h"
#include "region/region.h"
#include "source/source.h"

#endif
