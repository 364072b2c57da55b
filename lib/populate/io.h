/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_IO_H
#define KM_IO_H

/*
 * Reads in flight, through io_uring. One thread at a time per engine. A read belongs to the engine
 * from km_io_start() until km_io_wait() returns it.
 */

#include <stdint.h>

struct km_io;

struct km_io_read {
	int fd;
	int error; /* of the whole read: 0, or -errno; -ENODATA at the end of the file */
	uint8_t *to;
	uint64_t bytes;
	uint64_t offset; /* in the file */
};

/* workers: of the kernel's, at most; 0: its own limit.
 * -EPERM, -ENOSYS, -ENOMEM...: no detail set, the caller knows what it means. */
int km_io_create(unsigned int depth, unsigned int workers, struct km_io **ret_io);
void km_io_destroy(struct km_io *io); /* nothing may be in flight */

unsigned int km_io_pending(const struct km_io *io);

/* At most `depth` may be pending. -errno: not started, and no more can be. */
int km_io_start(struct km_io *io, struct km_io_read *rd);

/* The next one to be done, whole; NULL when none is pending. */
struct km_io_read *km_io_wait(struct km_io *io);

#endif
