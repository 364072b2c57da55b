// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What cannot be done with a region of its kind. */
#include <errno.h>

#include "region/region.h"

int km_region_own_check(const struct kvmem_region *r, const char *what)
{
	if (!r->remote)
		return 0;
	return km_fail(EOPNOTSUPP,
		       "%s: the region is memory of another process (kvmem_remote_create()): it is "
		       "not mapped here, and only a pager fills it",
		       what);
}

int km_region_fill_check(const struct kvmem_region *r, const char *what)
{
	int err = km_region_own_check(r, what);

	if (err)
		return err;
	if (r->clone)
		return km_fail(EOPNOTSUPP,
			       "%s: the region is a clone: all of its pages have content, the "
			       "template's or its own, and none can be filled",
			       what);
	if (!r->own.limits)
		return 0;
	return km_fail(
		EOPNOTSUPP,
		"%s: pages of the region, a mapping that was given, can neither be filled nor "
		"taken out: %s",
		what, r->own.limits);
}
