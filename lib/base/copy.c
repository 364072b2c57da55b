// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "base/copy.h"

#include <errno.h>
#include <stdint.h>

#include "base/sys.h"

/*
 * Through a pipe: slower, but no sandbox forbids it, and it takes memory that the kernel cannot pin
 * (a guest_memfd without direct map, device memory). It does not block: a write stores what there
 * is room for, and the read takes just that out again.
 */
static int64_t by_pipe(uint8_t *to, const uint8_t *from, size_t bytes)
{
	int pipe[2];
	size_t done = 0;
	int64_t r = km_sys_pipe(pipe);

	if (r < 0)
		return r;
	while (r >= 0 && done < bytes) {
		r = km_sys_write(pipe[1], from + done, bytes - done);
		for (size_t end = done + (size_t)(r < 0 ? 0 : r); r >= 0 && done < end;) {
			r = km_sys_read(pipe[0], to + done, end - done);
			done += (size_t)(r < 0 ? 0 : r);
		}
	}
	km_sys_close(pipe[0]);
	km_sys_close(pipe[1]);
	return r;
}

int km_copy(void *to, const void *from, size_t bytes)
{
	size_t done = 0;
	int64_t r;

	while (done < bytes) {
		r = km_sys_vm_read((uint8_t *)to + done, (const uint8_t *)from + done,
				   bytes - done);
		if (r <= 0)
			break;
		done += (size_t)r;
	}
	if (done == bytes)
		return 0;
	if (r < 0 && r != -EFAULT && r != -ENOSYS && r != -EPERM)
		return (int)r;
	r = by_pipe((uint8_t *)to + done, (const uint8_t *)from + done, bytes - done);
	return r < 0 ? (int)r : 0;
}
