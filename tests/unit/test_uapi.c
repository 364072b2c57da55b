// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What lib/base/uapi defines equals what this build host's kernel headers define, where they do. */
#include "harness.h"

#include <stdint.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/mman.h>

#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"
#include "base/uapi/userfaultfd.h"

static unsigned int compared;

static void same(const char *name, unsigned long long ours, unsigned long long theirs)
{
	compared++;
	ck_assert_msg(ours == theirs, "%s: 0x%llx here, 0x%llx in the host's headers", name, ours,
		      theirs);
}

#define SAME(name) same(#name, (unsigned long long)KM_##name, (unsigned long long)(name))

TEST(kvm)
{
#ifdef KVM_SET_USER_MEMORY_REGION2
	SAME(KVM_SET_USER_MEMORY_REGION2);
	ck_assert_uint_eq(sizeof(struct km_kvm_userspace_memory_region2),
			  sizeof(struct kvm_userspace_memory_region2));
#endif
#ifdef KVM_CREATE_GUEST_MEMFD
	SAME(KVM_CREATE_GUEST_MEMFD);
	SAME(KVM_SET_MEMORY_ATTRIBUTES);
	SAME(KVM_MEM_GUEST_MEMFD);
	SAME(KVM_MEMORY_ATTRIBUTE_PRIVATE);
	SAME(KVM_CAP_USER_MEMORY2);
	SAME(KVM_CAP_MEMORY_FAULT_INFO);
	SAME(KVM_CAP_MEMORY_ATTRIBUTES);
	SAME(KVM_CAP_GUEST_MEMFD);
#endif
#ifdef KVM_PRE_FAULT_MEMORY
	SAME(KVM_PRE_FAULT_MEMORY);
	SAME(KVM_CAP_PRE_FAULT_MEMORY);
#endif
#ifdef KVM_CAP_GUEST_MEMFD_FLAGS
	SAME(KVM_CAP_GUEST_MEMFD_FLAGS);
	SAME(GUEST_MEMFD_FLAG_MMAP);
	SAME(GUEST_MEMFD_FLAG_INIT_SHARED);
#endif
#ifdef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
	SAME(KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
#endif
#ifdef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
	SAME(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP);
#endif
	SAME(KVM_DIRTY_LOG_PAGE_OFFSET);
	ck_assert_uint_gt(compared, 0);
}
END

TEST(userfaultfd_and_mm)
{
#ifdef UFFDIO_POISON
	SAME(UFFDIO_POISON);
	SAME(UFFD_FEATURE_POISON);
#endif
#ifdef UFFDIO_MOVE
	SAME(UFFDIO_MOVE);
	SAME(UFFD_FEATURE_MOVE);
#endif
#ifdef UFFD_FEATURE_WP_ASYNC
	SAME(UFFD_FEATURE_WP_ASYNC);
	SAME(UFFD_FEATURE_WP_UNPOPULATED);
#endif
	SAME(USERFAULTFD_IOC_NEW);
	SAME(MADV_POPULATE_READ);
	SAME(MADV_POPULATE_WRITE);
#ifdef MADV_DONTNEED_LOCKED
	SAME(MADV_DONTNEED_LOCKED);
#endif
#ifdef PROCMAP_QUERY
	SAME(PROCMAP_QUERY);
	SAME(PROCMAP_QUERY_VMA_READABLE);
	SAME(PROCMAP_QUERY_VMA_SHARED);
	ck_assert_uint_eq(sizeof(struct km_procmap_query), sizeof(struct procmap_query));
#endif
	harness_note("%u definitions compared", compared);
}
END

HARNESS_MAIN(T(kvm), T(userfaultfd_and_mm))
