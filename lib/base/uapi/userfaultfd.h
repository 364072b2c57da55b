/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_UAPI_USERFAULTFD_H
#define KM_UAPI_USERFAULTFD_H

/* As uapi/kvm.h: what Linux 6.1 headers lack of userfaultfd, under names of our own. */

#include <linux/userfaultfd.h>
#include <stdint.h>

struct km_uffdio_poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};

struct km_uffdio_move {
	uint64_t dst;
	uint64_t src;
	uint64_t len;
	uint64_t mode;
	int64_t move;
};

#define KM_UFFDIO_MOVE_NR	       0x05
#define KM_UFFDIO_POISON_NR	       0x08
#define KM_UFFDIO_MOVE		       _IOWR(UFFDIO, KM_UFFDIO_MOVE_NR, struct km_uffdio_move)
#define KM_UFFDIO_POISON	       _IOWR(UFFDIO, KM_UFFDIO_POISON_NR, struct km_uffdio_poison)
#define KM_UFFDIO_POISON_MODE_DONTWAKE (1ull << 0)

#define KM_UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1ull << 12)
#define KM_UFFD_FEATURE_WP_UNPOPULATED	   (1ull << 13)
#define KM_UFFD_FEATURE_POISON		   (1ull << 14)
#define KM_UFFD_FEATURE_WP_ASYNC	   (1ull << 15)
#define KM_UFFD_FEATURE_MOVE		   (1ull << 16)

#define KM_USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)

#endif
