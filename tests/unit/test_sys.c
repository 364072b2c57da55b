// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The system calls themselves: an interrupted one goes on, descriptors are close-on-exec, errors are -errno. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "harness.h"
#include "fake_sys.h"
#include "base/base.h"

#define SIGNALS 3

/* ---- EINTR ---- */

static int ends[2];
static volatile sig_atomic_t signals;

/* The last signal ends the wait. */
static void on_alarm(int number)
{
	(void)number;
	if (++signals == SIGNALS && write(ends[1], "x", 1) != 1)
		signals = -1000;
}

static int64_t wait_by_read(void)
{
	char byte;

	return km_real_read(ends[0], &byte, 1);
}

static int64_t wait_by_poll(void)
{
	struct pollfd p = { .fd = ends[0], .events = POLLIN };

	return km_real_poll(&p, 1, 20000);
}

static int64_t wait_by_epoll(void)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int64_t ep = km_real_epoll_create(), r;

	ck_assert_int_ge(ep, 0);
	ck_assert_int_eq(km_real_epoll_ctl((int)ep, EPOLL_CTL_ADD, ends[0], &ev), 0);
	r = km_real_epoll_wait((int)ep, &ev, 1, 20000);
	close((int)ep);
	return r;
}

static void interrupt(int64_t (*wait)(void))
{
	const struct itimerval every = { { 0, 2000 }, { 0, 2000 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigaction act = { .sa_handler = on_alarm }, old; /* without SA_RESTART */
	int64_t r;

	ck_assert_int_eq(pipe2(ends, O_CLOEXEC), 0);
	signals = 0;
	ck_assert_int_eq(sigaction(SIGALRM, &act, &old), 0);
	ck_assert_int_eq(setitimer(ITIMER_REAL, &every, NULL), 0);
	r = wait();
	setitimer(ITIMER_REAL, &never, NULL);
	sigaction(SIGALRM, &old, NULL);
	close(ends[0]);
	close(ends[1]);
	ck_assert_int_eq(r, 1);
	ck_assert_int_ge(signals, SIGNALS);
}

TEST(interrupted_calls_go_on)
{
	interrupt(wait_by_read);
	interrupt(wait_by_poll);
	interrupt(wait_by_epoll);
}
END

/* ---- what they give ---- */

TEST(descriptors_are_close_on_exec)
{
	int64_t fds[] = {
		km_real_open("/dev/null", O_RDONLY),
		km_real_dup(0),
		km_real_memfd_create("test", 0),
		km_real_eventfd(0, EFD_NONBLOCK),
		km_real_epoll_create(),
	};

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		ck_assert_int_ge(fds[i], 0);
		ck_assert_int_eq(fcntl((int)fds[i], F_GETFD), FD_CLOEXEC);
		close((int)fds[i]);
	}
}
END

TEST(errors_are_negative_errnos)
{
	char byte = 0;
	void *p = &byte;

	ck_assert_int_eq(km_real_open("/nowhere/at/all", O_RDONLY), -ENOENT);
	ck_assert_int_eq(km_real_dup(-1), -EBADF);
	ck_assert_int_eq(km_real_pread(-1, &byte, 1, 0), -EBADF);
	ck_assert_int_eq(km_real_ioctl(-1, 0, NULL), -EBADF);
	ck_assert_int_eq(km_real_mmap(0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &p),
			 -EINVAL);
	ck_assert_ptr_eq(p, &byte);
	ck_assert_int_eq(km_real_madvise(NULL, 4096, 12345), -EINVAL);
	ck_assert_int_eq(km_real_node_bytes(100000), -ENODEV);
}
END

/* ---- memory ---- */

TEST(k10_32_locked_memory_is_dropped_too)
{
	const size_t bytes = 4 * 4096;
	unsigned char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				-1, 0);

	fake_reset();
	ck_assert_ptr_ne(p, MAP_FAILED);
	p[0] = p[4096] = 1;
	ck_assert_int_eq(km_mem_drop(p, 4096), 0);
	ck_assert_uint_eq(p[0], 0);
	ck_assert_int_eq(syscall(SYS_mlock, p, bytes), 0); /* which sanitizers take away by name */
	ck_assert_int_eq(madvise(p, bytes, MADV_DONTNEED), -1);
	p[0] = 1;
	ck_assert_int_eq(km_mem_drop(p, bytes), 0);
	ck_assert_uint_eq(p[0] | p[4096], 0);
	munmap(p, bytes);
}
END

/* ---- copies ---- */

static size_t at_once;

static int64_t short_vm_read(void *to, const void *from, size_t len)
{
	return km_real_vm_read(to, from, len < at_once ? len : at_once);
}

static int64_t no_vm_read(void *to, const void *from, size_t len)
{
	(void)to;
	(void)from;
	(void)len;
	return -EPERM;
}

TEST(k10_30_a_copy_goes_on_where_it_ended_early)
{
	static uint8_t from[300000], to[sizeof(from)];

	for (size_t i = 0; i < sizeof(from); i++)
		from[i] = (uint8_t)(i ^ i >> 8 ^ i >> 16);
	fake_reset();
	for (at_once = 1000; at_once <= sizeof(from); at_once *= 17) {
		fake.vm_read = short_vm_read;
		memset(to, 0, sizeof(to));
		ck_assert_int_eq(km_copy(to, from, sizeof(from)), 0);
		ck_assert_mem_eq(to, from, sizeof(from));
	}
	fake.vm_read = no_vm_read; /* then through a pipe, which holds less than this */
	memset(to, 0, sizeof(to));
	ck_assert_int_eq(km_copy(to, from, sizeof(from)), 0);
	ck_assert_mem_eq(to, from, sizeof(from));
	fake_reset();
}
END

HARNESS_MAIN(T(interrupted_calls_go_on), T(descriptors_are_close_on_exec),
	     T(errors_are_negative_errnos), T(k10_32_locked_memory_is_dropped_too),
	     T(k10_30_a_copy_goes_on_where_it_ended_early))
