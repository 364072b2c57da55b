// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Which memory has write protection that raises events (KVMEM_WANT_CAPTURE). */
#include "region/region.h"

const char *km_no_capture(const struct kvmem_caps *caps, uint32_t backing)
{
	enum kvmem_cap id = backing == KVMEM_BACKING_MEMFD     ? KVMEM_CAP_UFFD_SHMEM
			    : backing == KVMEM_BACKING_HUGETLB ? KVMEM_CAP_UFFD_HUGETLB
							       : KVMEM_CAP_UFFD_ANON;

	if (backing == KVMEM_BACKING_GUEST_MEMFD)
		return "userfaultfd has no write protection that raises events on a guest_memfd";
	if (id == KVMEM_CAP_UFFD_HUGETLB && km_caps_unknown(caps, id))
		id = KVMEM_CAP_UFFD_SHMEM;
	if (!km_caps_has(caps, id))
		return km_caps_reason(caps, id);
	return km_caps_value(caps, id) & KVMEM_UFFD_WP
		       ? NULL
		       : "this kernel has no write protection by userfaultfd on it: anonymous memory "
			 "has it from Linux 5.7 on, files from 5.19 on";
}
