// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A source in this process's memory. That may be a mapping of a file, which somebody can cut short,
 * or of huge pages, which can run out: a load there is SIGBUS. The kernel copies from such memory
 * and answers EFAULT. It has to pin each page for that, which costs a tenth of a fill; so what
 * cannot be taken away, private anonymous memory, is found out once and read in place.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/vmas.h"
#include "source/source.h"

int km_source_memory_read(const struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes)
{
	int r = km_copy(buf, s->base + offset, bytes);

	if (r == -EFAULT)
		return km_fail(EFAULT,
			       "source: the memory at offset 0x%" PRIx64 ", 0x%" PRIx64
			       " bytes, cannot be read: it is not mapped, a mapping of a file "
			       "that has been cut short, or huge pages that have run out",
			       offset, bytes);
	return r ? km_fail(-r,
			   "source: copying 0x%" PRIx64 " bytes at offset 0x%" PRIx64
			   " of the memory: %m",
			   bytes, offset)
		 : 0;
}

/* ---- what it is ---- */

static bool is_private_anonymous(void *arg, const struct km_vma *v)
{
	(void)arg;
	return v->read && !v->shared && !v->ino;
}

bool km_source_in_place(const struct kvmem_source *s, uint64_t offset, uint64_t bytes)
{
	uint64_t at = (uintptr_t)s->base + offset;

	return s->kind == KM_SOURCE_MEMORY &&
	       km_vmas_walk(at, at + bytes, is_private_anonymous, NULL) == 1;
}
