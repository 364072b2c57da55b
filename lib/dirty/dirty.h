/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_DIRTY_H
#define KM_DIRTY_H

/*
 * dirty: what was written. KVM's ring or bitmap behind harvest and commit. Knows vm and region,
 * and asks fill to protect pages that a pager watches; vm reaches it through km_slot_hooks, which vm
 * declares.
 */

#include <kvmem/dirty.h>

#include "region/region.h"
#include "vm/vm.h"

#endif
