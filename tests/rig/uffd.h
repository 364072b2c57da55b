/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Raw userfaultfd for the rig's own programs: one page touched by a thread, watched from outside.
 */
#ifndef RIG_UFFD_H
#define RIG_UFFD_H

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include "kvm.h"

#define WAIT_MS 5000

static inline int uffd_new(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static inline int uffd_register(int fd, const void *p, size_t bytes, uint64_t mode)
{
	struct uffdio_register r = {
		.range = { .start = (uintptr_t)p, .len = bytes },
		.mode = mode,
	};

	return ioctl(fd, UFFDIO_REGISTER, &r);
}

static inline int uffd_copy(int fd, const void *dst, const void *src)
{
	struct uffdio_copy c = {
		.dst = (uintptr_t)dst,
		.src = (uintptr_t)src,
		.len = PAGE,
	};

	return ioctl(fd, UFFDIO_COPY, &c);
}

static inline int uffd_zero(int fd, const void *dst)
{
	struct uffdio_zeropage z = { .range = { .start = (uintptr_t)dst, .len = PAGE } };

	return ioctl(fd, UFFDIO_ZEROPAGE, &z);
}

static inline int uffd_continue(int fd, const void *dst, size_t bytes)
{
	struct uffdio_continue c = { .range = { .start = (uintptr_t)dst, .len = bytes } };

	return ioctl(fd, UFFDIO_CONTINUE, &c);
}

/* Waits for one page fault; its flags, or -1 when none comes in time or before *done. */
static inline int64_t uffd_wait(int fd, const atomic_bool *done)
{
	struct uffd_msg msg;

	for (int waited = 0; waited < WAIT_MS && !atomic_load(done); waited += 5) {
		struct pollfd p = { .fd = fd, .events = POLLIN };

		if (poll(&p, 1, 5) > 0 && read(fd, &msg, sizeof(msg)) == sizeof(msg) &&
		    msg.event == UFFD_EVENT_PAGEFAULT)
			return (int64_t)msg.arg.pagefault.flags;
	}
	return -1;
}

/* A thread that reads one byte. */
struct toucher {
	pthread_t thread;
	const volatile uint8_t *at;
	uint8_t value;
	atomic_bool done;
};

static inline void *toucher_main(void *arg)
{
	struct toucher *t = arg;

	t->value = *t->at;
	atomic_store(&t->done, true);
	return NULL;
}

static inline void toucher_start(struct toucher *t, const uint8_t *at)
{
	t->at = at;
	t->value = 0xff;
	atomic_store(&t->done, false);
	must(!pthread_create(&t->thread, NULL, toucher_main, t), "pthread_create");
}

static inline uint8_t toucher_join(struct toucher *t)
{
	pthread_join(t->thread, NULL);
	return t->value;
}

#endif
