/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef FREE_PAGES_H
#define FREE_PAGES_H

/*
 * Free memory that costs the same each time it is taken.
 *
 * A virtual machine's host may take back what its kernel has freed, and give it again at the next touch, which
 * costs several times what a fill does. It takes whole blocks of free pages. So pages are made, and freed but
 * for one of each few: what lies between stays free, is too small for the host to be told of, and is the first that
 * the kernel gives to whoever wants a page.
 */

#include <stdint.h>

/* At least so many bytes, for memory of this kind (KVMEM_BACKING_*). */
void free_pages_have(uint32_t backing, uint64_t bytes);

#endif
