// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * System calls, each in a few lines. Compiled a second time for the unit tests, with KM_SYS_REAL,
 * under other names that their fake calls through to.
 */
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <liburing.h>
#include <numa.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define KM_SYS_cachestat 451 /* on every architecture but alpha */

#ifdef KM_SYS_REAL
#define SYS(name)			 km_real_##name
#define DECLARE_REAL(name, params, args) int64_t km_real_##name params;
KM_SYS_CALLS(DECLARE_REAL)
void *km_real_alloc(size_t len);
void *km_real_realloc(void *p, size_t len);
#else
#define SYS(name) km_sys_##name
#endif

static int64_t result(int64_t r)
{
	return r < 0 ? -errno : r;
}

#define RESTART(call) \
	({ \
		int64_t r_; \
		do \
			r_ = (call); \
		while (r_ < 0 && errno == EINTR); \
		result(r_); \
	})

int64_t SYS(open)(const char *path, int flags)
{
	return RESTART(open(path, flags | O_CLOEXEC, 0600));
}

int64_t SYS(dup)(int fd)
{
	return result(fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

int64_t SYS(fcntl_getfl)(int fd)
{
	return result(fcntl(fd, F_GETFL));
}

int64_t SYS(fcntl_seals)(int fd)
{
	return result(fcntl(fd, F_GET_SEALS));
}

int64_t SYS(fcntl_add_seals)(int fd, unsigned int seals)
{
	return result(fcntl(fd, F_ADD_SEALS, seals));
}

int64_t SYS(fcntl_cloexec)(int fd)
{
	return result(fcntl(fd, F_SETFD, FD_CLOEXEC));
}

int64_t SYS(fstat)(int fd, struct stat *st)
{
	return result(fstat(fd, st));
}

int64_t SYS(fstatfs)(int fd, struct statfs *st)
{
	return RESTART(fstatfs(fd, st));
}

/* Ends the text with a NUL, which readlink() does not. */
int64_t SYS(readlink)(const char *path, char *buf, size_t len)
{
	ssize_t n = readlink(path, buf, len - 1);

	if (n >= 0)
		buf[n] = '\0';
	return result(n);
}

int64_t SYS(ioctl)(int fd, unsigned long request, void *arg)
{
	return RESTART(ioctl(fd, request, arg));
}

int64_t SYS(ioctl_val)(int fd, unsigned long request, unsigned long arg)
{
	return RESTART(ioctl(fd, request, arg));
}

int64_t SYS(mmap)(size_t len, int prot, int flags, int fd, uint64_t off, void **ret)
{
	void *p = mmap(NULL, len, prot, flags, fd, (off_t)off);

	if (p == MAP_FAILED)
		return -errno;
	*ret = p;
	return 0;
}

/* *addr is where it would be best, and then where it is. */
int64_t SYS(mmap_near)(size_t len, int prot, int flags, int fd, uint64_t off, void **addr)
{
	void *p = mmap(*addr, len, prot, flags, fd, (off_t)off);

	if (p == MAP_FAILED)
		return -errno;
	*addr = p;
	return 0;
}

/* By number: musl has no mlock2(). */
int64_t SYS(mlock_onfault)(void *addr, size_t len)
{
	return result(syscall(SYS_mlock2, addr, len, MLOCK_ONFAULT));
}

int64_t SYS(munlock)(void *addr, size_t len)
{
	return result(munlock(addr, len));
}

int64_t SYS(mprotect)(void *addr, size_t len, int prot)
{
	return result(mprotect(addr, len, prot));
}

int64_t SYS(madvise)(void *addr, size_t len, int advice)
{
	return RESTART(madvise(addr, len, advice));
}

int64_t SYS(mincore)(void *addr, size_t len, unsigned char *vec)
{
	return result(mincore(addr, len, vec));
}

/* How many pages of the file are in the page cache; since 6.5. */
int64_t SYS(cachestat)(int fd, uint64_t off, uint64_t len, uint64_t *ret_pages)
{
	struct {
		uint64_t off, len;
	} range = { off, len };
	struct {
		uint64_t cache, dirty, writeback, evicted, recently_evicted;
	} count = { 0 };
	int64_t r = result(syscall(KM_SYS_cachestat, fd, &range, &count, 0u));

	*ret_pages = count.cache;
	return r;
}

int64_t SYS(memfd_create)(const char *name, unsigned int flags)
{
	return result(memfd_create(name, flags | MFD_CLOEXEC));
}

/* Beyond RLIMIT_FSIZE, which holds for memfds too, the kernel raises SIGXFSZ: it ends the program. */
int64_t SYS(ftruncate)(int fd, uint64_t len)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur < len)
		return -EFBIG;
	return RESTART(ftruncate(fd, (off_t)len));
}

int64_t SYS(fallocate)(int fd, int mode, uint64_t off, uint64_t len)
{
	return RESTART(fallocate(fd, mode, (off_t)off, (off_t)len));
}

int64_t SYS(lseek)(int fd, uint64_t off, int whence)
{
	return result(lseek(fd, (off_t)off, whence));
}

int64_t SYS(pread)(int fd, void *buf, size_t len, uint64_t off)
{
	return RESTART(pread(fd, buf, len, (off_t)off));
}

/* What can be read without waiting for the disk: -EAGAIN where nothing can. */
int64_t SYS(pread_nowait)(int fd, void *buf, size_t len, uint64_t off)
{
	struct iovec v = { .iov_base = buf, .iov_len = len };

	return RESTART(preadv2(fd, &v, 1, (off_t)off, RWF_NOWAIT));
}

/* At the file's own position: of what has none. */
int64_t SYS(read_nowait)(int fd, void *buf, size_t len)
{
	struct iovec v = { .iov_base = buf, .iov_len = len };

	return RESTART(preadv2(fd, &v, 1, -1, RWF_NOWAIT));
}

int64_t SYS(pwrite)(int fd, const void *buf, size_t len, uint64_t off)
{
	return RESTART(pwrite(fd, buf, len, (off_t)off));
}

/* process_vm_readv() on this process; how much is copied may end at a page that is not there. */
int64_t SYS(vm_read)(void *to, const void *from, size_t len)
{
	struct iovec dst = { .iov_base = to, .iov_len = len };
	struct iovec src = { .iov_base = (void *)(uintptr_t)from, .iov_len = len };

	return RESTART(syscall(SYS_process_vm_readv, getpid(), &dst, 1ul, &src, 1ul, 0ul));
}

int64_t SYS(getrlimit)(int what, struct rlimit *ret)
{
	return result(getrlimit((unsigned int)what, ret)); /* glibc makes it an unsigned enum */
}

/* Both ends without waiting. */
int64_t SYS(pipe)(int ret[2])
{
	return result(pipe2(ret, O_CLOEXEC | O_NONBLOCK));
}

int64_t SYS(read)(int fd, void *buf, size_t len)
{
	return RESTART(read(fd, buf, len));
}

int64_t SYS(write)(int fd, const void *buf, size_t len)
{
	return RESTART(write(fd, buf, len));
}

int64_t SYS(userfaultfd)(int flags)
{
	return result(syscall(SYS_userfaultfd, flags | O_CLOEXEC));
}

int64_t SYS(eventfd)(unsigned int value, int flags)
{
	return result(eventfd(value, flags | EFD_CLOEXEC));
}

int64_t SYS(timerfd)(void)
{
	return result(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
}

/* When km_sys_now_ns() is so late it is readable, until it is set again; UINT64_MAX: never. */
int64_t SYS(timerfd_set)(int fd, uint64_t at_ns)
{
	struct itimerspec t = { 0 };

	if (at_ns != UINT64_MAX) {
		t.it_value.tv_sec = (time_t)(at_ns / 1000000000);
		t.it_value.tv_nsec = (long)(at_ns % 1000000000) | 1; /* 0 would be never */
	}
	return result(timerfd_settime(fd, TFD_TIMER_ABSTIME, &t, NULL));
}

int64_t SYS(epoll_create)(void)
{
	return result(epoll_create1(EPOLL_CLOEXEC));
}

int64_t SYS(epoll_ctl)(int ep, int op, int fd, struct epoll_event *ev)
{
	return result(epoll_ctl(ep, op, fd, ev));
}

int64_t SYS(epoll_wait)(int ep, struct epoll_event *ev, int max, int timeout_ms)
{
	return RESTART(epoll_wait(ep, ev, max, timeout_ms));
}

/* Sleep while *word is `value`; a wake-up, a signal and the end of the time all end the sleep. */
int64_t SYS(futex_wait)(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(timeout_ns / 1000000000),
		.tv_nsec = (long)(timeout_ns % 1000000000),
	};

	return result(syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &ts, NULL, 0));
}

/* All that sleep on it. */
int64_t SYS(futex_wake)(_Atomic uint32_t *word)
{
	return result(syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0));
}

int64_t SYS(poll)(struct pollfd *fds, unsigned int n, int timeout_ms)
{
	return RESTART(poll(fds, n, timeout_ms));
}

int64_t SYS(mbind)(void *addr, size_t len, int mode, const unsigned long *nodes,
		   unsigned long maxnode, unsigned int flags)
{
	return result(syscall(SYS_mbind, addr, len, mode, nodes, maxnode, flags));
}

int64_t SYS(get_mempolicy)(int *mode, unsigned long *nodes, unsigned long maxnode, void *addr,
			   unsigned long flags)
{
	return result(syscall(SYS_get_mempolicy, mode, nodes, maxnode, addr, flags));
}

int64_t SYS(set_mempolicy)(int mode, const unsigned long *nodes, unsigned long maxnode)
{
	return result(syscall(SYS_set_mempolicy, mode, nodes, maxnode));
}

int64_t SYS(move_pages_query)(size_t count, void **pages, int *status)
{
	return result(syscall(SYS_move_pages, 0, count, pages, NULL, status, 0));
}

/* Memory of a node; libnuma reads it without a word, and says -1 for a node that is not there. */
int64_t SYS(node_bytes)(int node)
{
	long long r = numa_node_size64(node, NULL);

	return r < 0 ? -ENODEV : r;
}

/* As the kernel lists them, "0-3,8"; libnuma prints when it cannot read that. */
static void parse_cpus(const char *p, cpu_set_t *set)
{
	CPU_ZERO(set);
	while (*p >= '0' && *p <= '9') {
		char *end;
		unsigned long first = strtoul(p, &end, 10), last = first;

		if (*end == '-')
			last = strtoul(end + 1, &end, 10);
		for (; first <= last && first < CPU_SETSIZE; first++)
			CPU_SET(first, set);
		p = end + (*end == ',');
	}
}

/* The calling thread, on those CPUs of the node that it may use already; -ENODEV if there are none.
 */
int64_t SYS(run_near_node)(int node)
{
	char text[4096];
	cpu_set_t near, may;
	ssize_t n;
	int fd;

	snprintf(text, sizeof(text), "/sys/devices/system/node/node%d/cpulist", node);
	fd = open(text, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -ENODEV;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	parse_cpus(text, &near);
	if (sched_getaffinity(0, sizeof(may), &may))
		return -errno;
	CPU_AND(&near, &near, &may);
	return CPU_COUNT(&near) ? result(sched_setaffinity(0, sizeof(near), &near)) : -ENODEV;
}

static int thread_attr(pthread_attr_t *attr, const struct km_sys_thread *how)
{
	struct sched_param param = { .sched_priority = how->priority };
	int r = 0;

	if (how->cpus)
		r = pthread_attr_setaffinity_np(attr, how->cpu_bytes, (const cpu_set_t *)how->cpus);
	if (!r && how->policy)
		r = pthread_attr_setinheritsched(attr, PTHREAD_EXPLICIT_SCHED);
	if (!r && how->policy)
		r = pthread_attr_setschedpolicy(attr, how->policy);
	if (!r && how->policy)
		r = pthread_attr_setschedparam(attr, &param);
	return r;
}

/* A thread names itself: to name another one, the C library opens a file in /proc. */
static void *start_thread(void *arg)
{
	const struct km_thread *t = arg;

	pthread_setname_np(pthread_self(), t->name);
	return t->fn(t->arg);
}

int64_t SYS(thread_create)(struct km_thread *ret, const char *name, const struct km_sys_thread *how,
			   void *(*fn)(void *), void *arg)
{
	static const int own[] = { SIGSYS, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
	pthread_attr_t attr;
	sigset_t all, old;
	int r;

	ret->fn = fn;
	ret->arg = arg;
	snprintf(ret->name, sizeof(ret->name), "%s", name);
	r = pthread_attr_init(&attr);
	if (r)
		return -r;
	if (how)
		r = thread_attr(&attr, how);
	/* The thread inherits the mask: no signal of the program ever lands on it. What a thread raises itself would
	 * end the program if it were blocked, before a handler (of a system call filter's SIGSYS) could say why. */
	sigfillset(&all);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(&all, own[i]);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (!r)
		r = pthread_create(&ret->id, &attr, start_thread, ret);
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

int64_t SYS(uring_init)(unsigned int entries, struct io_uring *ring, struct io_uring_params *p)
{
	return io_uring_queue_init_params(entries, ring, p);
}

/* Threads of the kernel's, for files (bounded) and for what may wait for ever (unbounded); since 5.15. */
int64_t SYS(uring_workers)(struct io_uring *ring, unsigned int most)
{
	unsigned int values[2] = { most, most };

	return io_uring_register_iowq_max_workers(ring, values);
}

int64_t SYS(uring_submit)(struct io_uring *ring)
{
	int r;

	do
		r = io_uring_submit(ring);
	while (r == -EINTR);
	return r;
}

int64_t SYS(uring_wait)(struct io_uring *ring, struct io_uring_cqe **ret)
{
	int r;

	do
		r = io_uring_wait_cqe(ring, ret);
	while (r == -EINTR);
	return r;
}

int64_t SYS(uring_register_buffers)(struct io_uring *ring, const struct iovec *iov, unsigned int n)
{
	return io_uring_register_buffers(ring, iov, n);
}

int64_t SYS(uring_probe_op)(struct io_uring *ring, int op)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
	int r;

	if (!probe)
		return -ENOSYS;
	r = io_uring_opcode_supported(probe, op) ? 0 : -EOPNOTSUPP;
	io_uring_free_probe(probe);
	return r;
}

void *SYS(alloc)(size_t len)
{
	return calloc(1, len);
}

void *SYS(realloc)(void *p, size_t len)
{
	return realloc(p, len);
}

#ifndef KM_SYS_REAL

void km_sys_free(void *p)
{
	free(p);
}

#endif

/* These have nothing to fake: one set serves both. */

void km_sys_close(int fd)
{
	if (fd >= 0)
		close(fd);
}

void km_sys_munmap(void *addr, size_t len)
{
	if (addr)
		munmap(addr, len);
}

void km_sys_uring_exit(struct io_uring *ring)
{
	io_uring_queue_exit(ring);
}

void km_sys_thread_join(const struct km_thread *thread)
{
	pthread_join(thread->id, NULL);
}

void km_sys_block_signals(sigset_t *ret_old)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, ret_old);
}

void km_sys_restore_signals(const sigset_t *old)
{
	pthread_sigmask(SIG_SETMASK, old, NULL);
}

uint64_t km_sys_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void km_sys_yield(void)
{
	sched_yield();
}

size_t km_sys_page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

unsigned int km_sys_cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		return (unsigned int)sysconf(_SC_NPROCESSORS_ONLN);
	return (unsigned int)CPU_COUNT(&set);
}
