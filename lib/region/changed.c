// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Content of a region that the library has changed: who tracks its writes is told. */
#include <errno.h>
#include <sys/ioctl.h>

#include "base/uapi/userfaultfd.h"
#include "region/region.h"

int km_region_changes_to(struct kvmem_region *r, int uffd)
{
	int before, err = 0;

	pthread_mutex_lock(&r->lock);
	before = atomic_exchange(&r->writes, uffd + 1);
	if (uffd < 0 && atomic_load(&r->fillers)) { /* who may be about to use it */
		atomic_store(&r->writes, before);
		err = km_fail(
			EBUSY,
			"kvmem_writes_remove: a populate, a discard or the like is under way");
	}
	pthread_mutex_unlock(&r->lock);
	return err;
}

/* Protection off, as a write would: pages read as written, and what is not mapped as taken out. */
static void unprotect(const struct kvmem_region *r, int uffd, uint64_t offset, uint64_t bytes)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)r->base + offset, .len = bytes },
	};

	km_sys_ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

void km_region_changed(struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	int uffd = atomic_load(&r->writes) - 1;

	if (uffd >= 0 && bytes)
		unprotect(r, uffd, offset, bytes);
	km_vm_changed(r->vm, r, offset, bytes);
}
