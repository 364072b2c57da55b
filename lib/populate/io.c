// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "populate/io.h"

#include <errno.h>
#include <liburing.h>
#include <stdbool.h>

#include "base/sys.h"

#define MOST_BYTES (1u << 30) /* of one operation; the kernel takes no more than 2 GiB */

struct km_io {
	struct io_uring ring;
	unsigned int pending;
	int broken; /* a submission failed: its entry may still be queued, so no more */
};

int km_io_create(unsigned int depth, unsigned int workers, struct km_io **ret_io)
{
	struct io_uring_params params = { .flags = IORING_SETUP_CLAMP };
	struct km_io *io = km_sys_alloc(sizeof(*io));
	int64_t r;

	if (!io)
		return -ENOMEM;
	r = km_sys_uring_init(depth, &io->ring, &params);
	if (r < 0) {
		km_sys_free(io);
		return (int)r;
	}
	if (workers)
		r = km_sys_uring_workers(&io->ring, workers);
	if (r < 0) {
		km_io_destroy(io);
		return (int)r;
	}
	*ret_io = io;
	return 0;
}

void km_io_destroy(struct km_io *io)
{
	if (!io)
		return;
	km_sys_uring_exit(&io->ring);
	km_sys_free(io);
}

unsigned int km_io_pending(const struct km_io *io)
{
	return io->pending;
}

static int submit(struct km_io *io, struct km_io_read *rd, unsigned int flags)
{
	struct io_uring_sqe *sqe;
	int64_t r;

	if (io->broken)
		return io->broken;
	sqe = io_uring_get_sqe(&io->ring);
	if (!sqe)
		return -EBUSY;
	io_uring_prep_read(sqe, rd->fd, rd->to,
			   (unsigned int)(rd->bytes < MOST_BYTES ? rd->bytes : MOST_BYTES),
			   rd->offset);
	io_uring_sqe_set_flags(sqe, flags);
	io_uring_sqe_set_data(sqe, rd);
	do
		r = km_sys_uring_submit(&io->ring);
	while (r == -EAGAIN);
	if (r < 0)
		io->broken = (int)r;
	return r < 0 ? (int)r : 0;
}

int km_io_start(struct km_io *io, struct km_io_read *rd)
{
	int r = submit(io, rd, 0);

	if (!r)
		io->pending++;
	return r;
}

/* Whether the read is over; if not, the rest of it is in flight again. */
static bool over(struct km_io *io, struct km_io_read *rd, int res)
{
	unsigned int flags = 0;

	rd->error = res == 0 ? -ENODATA : res < 0 ? res : 0;
	if (res > 0 && (uint64_t)res >= rd->bytes)
		return true;
	if (res > 0) {
		rd->to += res;
		rd->bytes -= (uint64_t)res;
		rd->offset += (uint64_t)res;
	} else if (res == -EAGAIN || res == -EINTR) {
		flags = IOSQE_ASYNC; /* the file cannot wait in line: let a kernel thread do it */
	} else {
		return true;
	}
	rd->error = submit(io, rd, flags);
	return rd->error != 0;
}

struct km_io_read *km_io_wait(struct km_io *io)
{
	struct io_uring_cqe *cqe;
	struct km_io_read *rd;

	while (io->pending) {
		int res;

		/* What is in flight writes to memory of the caller: never return before it is done.
		 */
		if (km_sys_uring_wait(&io->ring, &cqe) < 0 && io_uring_peek_cqe(&io->ring, &cqe)) {
			km_sys_poll(NULL, 0, 1);
			continue;
		}
		rd = io_uring_cqe_get_data(cqe);
		res = cqe->res;
		io_uring_cqe_seen(&io->ring, cqe);
		if (!over(io, rd, res))
			continue;
		io->pending--;
		return rd;
	}
	return NULL;
}
