// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Files without an index: what the holes of a file mean is the caller's word, and nothing checks its content. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/internal.h"

static int check_length(const char *path, const struct kvmem_image *image, uint64_t file_bytes)
{
	if (!file_bytes || file_bytes % KI_PAGE)
		return ki_fail(EINVAL,
			       "kvmem_image_open: '%s' has %" PRIu64
			       " bytes: not whole pages of 4096",
			       path, file_bytes);
	if (image->regions && image->bytes != file_bytes)
		return ki_fail(EINVAL,
			       "kvmem_image_open: '%s' has %" PRIu64 " bytes, its regions %" PRIu64,
			       path, file_bytes, image->bytes);
	if (image->parent && image->parent->bytes != file_bytes)
		return ki_fail(EINVAL,
			       "kvmem_image_open: '%s' has %" PRIu64 " bytes, its parent %" PRIu64,
			       path, file_bytes, image->parent->bytes);
	return 0;
}

int ki_raw_open(const char *path, const struct kvmem_image_open_opts *o, struct kvmem_image *image)
{
	struct kvmem_image_region one = KVMEM_IMAGE_REGION_INIT;
	struct stat st;
	int r = 0;

	image->raw_fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (image->raw_fd < 0)
		return ki_fail(errno, "kvmem_image_open: '%s': %m", path);
	if (fstat(image->raw_fd, &st))
		return ki_fail(errno, "kvmem_image_open: '%s': %m", path);
	if (!S_ISREG(st.st_mode))
		return ki_fail(EINVAL, "kvmem_image_open: '%s' is not a file", path);
	if (flock(image->raw_fd, LOCK_SH | LOCK_NB))
		return ki_fail(errno == EWOULDBLOCK ? EBUSY : errno,
			       "kvmem_image_open: locking '%s': %m", path);
	if (o->parent) {
		image->parent = o->parent;
		atomic_fetch_add(&image->parent->users, 1);
	}
	if (o->regions || o->region_count)
		r = ki_regions_copy("kvmem_image_open", o->regions, o->region_count,
				    &image->regions, &image->bytes);
	if (!r)
		r = check_length(path, image, (uint64_t)st.st_size);
	if (r || image->regions) {
		image->region_count = o->region_count;
		return r;
	}
	one.bytes = (uint64_t)st.st_size;
	one.gpa = UINT64_MAX;
	image->region_count = 1;
	return ki_regions_copy("kvmem_image_open", &one, 1, &image->regions, &image->bytes);
}

/* No data behind `from`: a hole up to the end, unless the file has become shorter. */
static int check_end(const struct kvmem_image *image)
{
	struct stat st;

	if (fstat(image->raw_fd, &st))
		return ki_fail(errno, "%s: %m", image->path);
	if ((uint64_t)st.st_size < image->bytes)
		return ki_fail(EBADMSG,
			       "%s: the raw file has %" PRIu64 " bytes by now, not %" PRIu64,
			       image->path, (uint64_t)st.st_size, image->bytes);
	return 0;
}

int ki_raw_run(struct kvmem_image *image, uint64_t from, struct kvmem_image_run *ret)
{
	off_t data = lseek(image->raw_fd, (off_t)from, SEEK_DATA), end;
	uint64_t first;

	if (data < 0 && errno != ENXIO)
		return ki_fail(errno, "%s: SEEK_DATA at byte %" PRIu64 ": %m", image->path, from);
	if (data < 0) {
		int r = check_end(image);

		if (r)
			return r;
	}
	/* A page that is data in part is data. */
	first = data < 0 ? image->bytes : (uint64_t)data & ~(uint64_t)(KI_PAGE - 1);
	ret->offset = from;
	if (first > from) {
		ret->kind = image->parent ? KVMEM_IMAGE_PARENT : KVMEM_IMAGE_ZERO;
		ret->bytes = ki_min(first, image->bytes) - from;
		return 0;
	}
	end = lseek(image->raw_fd, data, SEEK_HOLE);
	if (end < 0)
		return ki_fail(errno, "%s: SEEK_HOLE at byte %" PRIu64 ": %m", image->path, from);
	ret->kind = KVMEM_IMAGE_DATA;
	ret->bytes = (((uint64_t)end + KI_PAGE - 1) & ~(uint64_t)(KI_PAGE - 1)) - from;
	ret->bytes = ki_min(ret->bytes, image->bytes - from);
	return 0;
}

int ki_raw_read(struct kvmem_image *image, uint64_t offset, void *buf, uint64_t bytes)
{
	return ki_read_at(image->raw_fd, offset, buf, bytes, image->path);
}
