// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include <stddef.h>

#include "base/base.h"
#include "populate/populate.h"

const char *kvmem_fill_method_name(uint32_t method)
{
	static const char *const names[] = { "auto", "write", "uffd-copy", "populate+copy",
					     "copy" };

	return method < KM_ARRAY_SIZE(names) ? names[method] : NULL;
}

const char *kvmem_file_method_name(uint32_t method)
{
	static const char *const names[] = { "auto", "io_uring+O_DIRECT", "io_uring", "pread" };

	return method < KM_ARRAY_SIZE(names) ? names[method] : NULL;
}
