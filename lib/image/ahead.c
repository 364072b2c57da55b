// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Data of an image into the page cache, before somebody needs them. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>

#include "image/internal.h"

/* The kernel cuts WILLNEED to the read-ahead window of the disk, silently: 128 KiB where nobody has set it. */
#define STEP (128u << 10)

static int will_need(int fd, uint64_t at, uint64_t bytes)
{
	for (uint64_t n; bytes; at += n, bytes -= n) {
		int err;

		n = ki_min(bytes, STEP);
		err = posix_fadvise(fd, (off_t)at, (off_t)n, POSIX_FADV_WILLNEED);
		if (err)
			return ki_fail(err, "kvmem_image_prefetch: at byte %" PRIu64 ": %m", at);
	}
	return 0;
}

/* The frames that have these pages. */
static int prefetch_frames(const struct kvmem_image *image, uint32_t layer, int fd, uint64_t at,
			   uint64_t bytes)
{
	uint64_t end = ki_chunks(at + bytes);
	int r = 0;

	for (uint64_t chunk = at >> KI_CHUNK_SHIFT; !r && chunk < end; chunk++) {
		struct ki_frame frame;

		r = ki_packed_frame(image->layers.packed[layer], image->path, chunk, &frame);
		if (!r)
			r = will_need(fd, frame.offset, frame.bytes);
	}
	return r;
}

static int prefetch_run(struct kvmem_image *image, const struct kvmem_image_run *run, uint64_t at,
			uint64_t bytes)
{
	int fd = image->raw_fd, r = 0;

	/* Of a raw difference the parent is an image of its own. */
	if (ki_is_raw(image) && run->kind == KVMEM_IMAGE_PARENT)
		return kvmem_image_prefetch(image->parent, at, bytes);
	if (!ki_is_raw(image))
		r = ki_layer_data(image, run->layer, &fd);
	if (!r && !ki_is_raw(image) && image->layers.packed[run->layer])
		return prefetch_frames(image, run->layer, fd, at, bytes);
	return r ? r : will_need(fd, at, bytes);
}

int kvmem_image_prefetch(struct kvmem_image *image, uint64_t offset, uint64_t bytes)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	uint64_t end = offset + bytes;
	int r = 0;

	if (!image)
		return ki_fail(EINVAL, "kvmem_image_prefetch: image is NULL");
	if (offset > image->bytes || bytes > image->bytes - offset)
		return ki_fail(ERANGE,
			       "kvmem_image_prefetch: 0x%" PRIx64 " bytes at 0x%" PRIx64
			       " of an image of 0x%" PRIx64,
			       bytes, offset, image->bytes);
	for (uint64_t at = offset, n; !r && at < end; at += n) {
		r = ki_image_run(image, at, end - at, &run);
		if (r)
			return r;
		n = ki_min(run.offset + run.bytes, end) - at;
		r = run.kind == KVMEM_IMAGE_ZERO ? 0 : prefetch_run(image, &run, at, n);
	}
	return r;
}
