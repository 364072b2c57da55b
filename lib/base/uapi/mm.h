/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_UAPI_MM_H
#define KM_UAPI_MM_H

/* Of memory and mappings: ours, since the headers of 6.1 days lack some. */

#include <stdint.h>
#include <sys/ioctl.h>

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

#define KM_MADV_POPULATE_READ	22
#define KM_MADV_POPULATE_WRITE	23
#define KM_MADV_DONTNEED_LOCKED 24

#define KM_MFD_HUGE_2MB (21u << 26)
#define KM_MFD_HUGE_1GB (30u << 26)

/* On /proc/self/maps, since 6.11. */
struct km_procmap_query {
	uint64_t size;
	uint64_t query_flags;
	uint64_t query_addr;
	uint64_t vma_start;
	uint64_t vma_end;
	uint64_t vma_flags;
	uint64_t vma_page_size;
	uint64_t vma_offset;
	uint64_t inode;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint32_t vma_name_size;
	uint32_t build_id_size;
	uint64_t vma_name_addr;
	uint64_t build_id_addr;
};

#define KM_PROCMAP_QUERY	      _IOWR('f', 17, struct km_procmap_query)
#define KM_PROCMAP_QUERY_VMA_READABLE 0x01u
#define KM_PROCMAP_QUERY_VMA_WRITABLE 0x02u
#define KM_PROCMAP_QUERY_VMA_SHARED   0x08u

#endif
