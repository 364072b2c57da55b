// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What sources of all kinds have in common. */
#include "source/source.h"

#include <errno.h>

void km_source_get(struct kvmem_source *s)
{
	atomic_fetch_add_explicit(&s->users, 1, memory_order_relaxed);
}

void km_source_put(struct kvmem_source *s)
{
	atomic_fetch_sub_explicit(&s->users, 1, memory_order_release);
}

struct kvmem_source *km_source_new(enum km_source_kind kind, uint64_t bytes)
{
	struct kvmem_source *s = km_sys_alloc(sizeof(*s));

	if (!s) {
		km_fail(ENOMEM, "source: no memory for its %zu bytes of state", sizeof(*s));
		return NULL;
	}
	s->kind = kind;
	s->bytes = bytes;
	s->fd = -1;
	return s;
}

int km_callback_errno(int r)
{
	return !r || (r < 0 && r >= -4095) ? r : -EIO;
}
