/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_KVMEM_H
#define KVMEM_KVMEM_H

/* All of libkvmem, in the order in which a guest's memory comes to life. */

#include <kvmem/base.h>
#include <kvmem/caps.h>
#include <kvmem/vm.h>
#include <kvmem/region.h>
#include <kvmem/numa.h>
#include <kvmem/source.h>
#include <kvmem/populate.h>
#include <kvmem/remote.h>
#include <kvmem/pager.h>
#include <kvmem/dirty.h>
#include <kvmem/capture.h>
#include <kvmem/writes.h>

#endif
