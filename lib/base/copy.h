/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_COPY_H
#define KM_COPY_H

#include <stddef.h>

/*
 * Copy by the kernel, which answers -EFAULT where a load or a store of ours would be SIGBUS or
 * SIGSEGV: a mapping of a file that has been cut short, huge pages that have run out, poison. On
 * failure a part may have been copied. Sets no detail.
 */
int km_copy(void *to, const void *from, size_t bytes);

#endif
