// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "fill_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

bool fill_is_hole(uint64_t page)
{
	return page / 16 % 4 == 3;
}

void fill_content(void *to, uint64_t bytes)
{
	uint64_t *word = to;

	for (uint64_t i = 0; i < bytes / 8; i++) {
		uint64_t page = i / (PAGE / 8);

		word[i] = fill_is_hole(page) || page % 5 == 0
				  ? 0
				  : (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
	}
}

int fill_file(uint64_t bytes)
{
	char path[] = "populate-XXXXXX";
	uint8_t *content = malloc(bytes);
	int fd = mkostemp(path, O_CLOEXEC);

	if (fd < 0)
		goto out;
	unlink(path);
	fill_content(content, bytes);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	for (uint64_t at = 0; at < bytes; at += 16 * PAGE)
		if (!fill_is_hole(at / PAGE))
			ck_assert_int_eq(pwrite(fd, content + at, 16 * PAGE, (off_t)at), 16 * PAGE);
	fsync(fd);
out:
	free(content);
	return fd;
}

const char *fill_backing_name(uint32_t backing)
{
	static const char *const names[] = { "auto", "guest_memfd", "memfd", "hugetlb",
					     "anonymous" };

	return names[backing];
}

bool fill_region_open(struct fill_region *fr, uint32_t backing, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	int r = 0;

	memset(fr, 0, sizeof(*fr));
	if (backing == KVMEM_BACKING_GUEST_MEMFD)
		r = kvmem_vm_create(NULL, &fr->vm);
	if (r) {
		harness_skip("kvm", "%s", kvmem_error_detail());
		return false;
	}
	o.backing = backing;
	o.bytes = bytes;
	r = kvmem_region_create(fr->vm, &o, &fr->region);
	if (r == -EOPNOTSUPP || (r == -ENOMEM && backing == KVMEM_BACKING_HUGETLB)) {
		harness_skip(backing == KVMEM_BACKING_HUGETLB ? "hugetlb" : "guest-memfd", "%s",
			     kvmem_error_detail());
		kvmem_vm_free(fr->vm);
		return false;
	}
	ck_assert_msg(!r, "%s: %d: %s", fill_backing_name(backing), r, kvmem_error_detail());
	fr->base = kvmem_region_base(fr->region);
	fr->bytes = bytes;
	return true;
}

void fill_region_close(struct fill_region *fr)
{
	ck_assert_int_eq(kvmem_region_free(fr->region), 0);
	if (fr->vm)
		ck_assert_int_eq(kvmem_vm_free(fr->vm), 0);
}

void fill_expect(const struct fill_region *fr, uint64_t offset, uint64_t source_offset,
		 uint64_t bytes)
{
	uint8_t *want = calloc(1, fr->bytes), *content = malloc(fr->bytes);

	fill_content(content, fr->bytes);
	memcpy(want + offset, content + source_offset, bytes);
	for (uint64_t at = 0; at < fr->bytes; at += PAGE)
		ck_assert_msg(!memcmp(fr->base + at, want + at, PAGE), "page %lu",
			      (unsigned long)(at / PAGE));
	free(want);
	free(content);
}

uint64_t fill_sum(const struct kvmem_populate_result *res)
{
	return res->bytes_copied + res->bytes_written + res->bytes_read + res->bytes_zero +
	       res->bytes_hole + res->bytes_present;
}
