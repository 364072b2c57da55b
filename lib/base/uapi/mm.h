/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_UAPI_MM_H
#define KM_UAPI_MM_H

/* Memory policy and madvise(2) numbers: ours, since libc headers of 6.1 days lack some. */

enum km_mpol {
	KM_MPOL_DEFAULT = 0,
	KM_MPOL_PREFERRED = 1,
	KM_MPOL_BIND = 2,
	KM_MPOL_INTERLEAVE = 3,
	KM_MPOL_LOCAL = 4,
	KM_MPOL_PREFERRED_MANY = 5,
	KM_MPOL_WEIGHTED_INTERLEAVE = 6,
};

#define KM_MPOL_F_NODE	       (1u << 0)
#define KM_MPOL_F_ADDR	       (1u << 1)
#define KM_MPOL_F_MEMS_ALLOWED (1u << 2)

#define KM_MADV_POPULATE_READ  22
#define KM_MADV_POPULATE_WRITE 23
#define KM_MADV_DONTNEED_LOCKED 24

#define KM_MFD_HUGE_2MB (21u << 26)
#define KM_MFD_HUGE_1GB (30u << 26)

#endif
