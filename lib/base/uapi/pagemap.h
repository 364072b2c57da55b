/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_UAPI_PAGEMAP_H
#define KM_UAPI_PAGEMAP_H

/* PAGEMAP_SCAN of linux/fs.h (Linux 6.7), under names of our own. */

#include <linux/ioctl.h>
#include <stdint.h>

#define KM_PAGE_IS_WRITTEN (1ull << 1)
#define KM_PAGE_IS_PRESENT (1ull << 3)
#define KM_PAGE_IS_SWAPPED (1ull << 4)

#define KM_PM_SCAN_WP_MATCHING (1ull << 0)

struct km_page_region {
	uint64_t start, end, categories;
};

struct km_pm_scan {
	uint64_t size, flags;
	uint64_t start, end, walk_end;
	uint64_t vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define KM_PAGEMAP_SCAN _IOWR('f', 16, struct km_pm_scan)

#endif
