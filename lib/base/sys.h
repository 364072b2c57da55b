/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_SYS_H
#define KM_SYS_H

/*
 * The only way from the library to the kernel and to the allocator. Functions return a value >= 0
 * or -errno, restarted after EINTR unless said otherwise; `alloc` returns NULL. Unit tests replace
 * this layer: they link their own km_sys_*, generated from these lists, in front of the real ones.
 */

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/vfs.h>

/* How a thread is made: on which processors (NULL: as they come), by which policy (0: as its maker). */
/* One of the library's threads: stays where it is until it has been joined. */
struct km_thread {
	pthread_t id;
	void *(*fn)(void *);
	void *arg;
	char name[16];
};

struct km_sys_thread {
	const unsigned long *cpus;
	size_t cpu_bytes;
	int policy, priority;
};

struct io_uring;
struct io_uring_params;
struct io_uring_cqe;
struct rlimit;

/* Calls that acquire or do something, and can fail: X(name, parameters, arguments), returning
 * int64_t. */
#define KM_SYS_CALLS(X) \
	X(open, (const char *path, int flags), (path, flags)) \
	X(dup, (int fd), (fd)) \
	X(fcntl_getfl, (int fd), (fd)) \
	X(fcntl_seals, (int fd), (fd)) \
	X(fcntl_add_seals, (int fd, unsigned int seals), (fd, seals)) \
	X(fcntl_cloexec, (int fd), (fd)) \
	X(fstat, (int fd, struct stat *st), (fd, st)) \
	X(fstatfs, (int fd, struct statfs *st), (fd, st)) \
	X(readlink, (const char *path, char *buf, size_t len), (path, buf, len)) \
	X(ioctl, (int fd, unsigned long request, void *arg), (fd, request, arg)) \
	X(ioctl_val, (int fd, unsigned long request, unsigned long arg), (fd, request, arg)) \
	X(mmap, (size_t len, int prot, int flags, int fd, uint64_t off, void **ret), \
	  (len, prot, flags, fd, off, ret)) \
	X(mmap_near, (size_t len, int prot, int flags, int fd, uint64_t off, void **addr), \
	  (len, prot, flags, fd, off, addr)) \
	X(mlock_onfault, (void *addr, size_t len), (addr, len)) \
	X(munlock, (void *addr, size_t len), (addr, len)) \
	X(mprotect, (void *addr, size_t len, int prot), (addr, len, prot)) \
	X(madvise, (void *addr, size_t len, int advice), (addr, len, advice)) \
	X(mincore, (void *addr, size_t len, unsigned char *vec), (addr, len, vec)) \
	X(cachestat, (int fd, uint64_t off, uint64_t len, uint64_t *ret_pages), \
	  (fd, off, len, ret_pages)) \
	X(memfd_create, (const char *name, unsigned int flags), (name, flags)) \
	X(ftruncate, (int fd, uint64_t len), (fd, len)) \
	X(fallocate, (int fd, int mode, uint64_t off, uint64_t len), (fd, mode, off, len)) \
	X(lseek, (int fd, uint64_t off, int whence), (fd, off, whence)) \
	X(pread, (int fd, void *buf, size_t len, uint64_t off), (fd, buf, len, off)) \
	X(pread_nowait, (int fd, void *buf, size_t len, uint64_t off), (fd, buf, len, off)) \
	X(pwrite, (int fd, const void *buf, size_t len, uint64_t off), (fd, buf, len, off)) \
	X(vm_read, (void *to, const void *from, size_t len), (to, from, len)) \
	X(getrlimit, (int what, struct rlimit *ret), (what, ret)) \
	X(pipe, (int ret[2]), (ret)) \
	X(read, (int fd, void *buf, size_t len), (fd, buf, len)) \
	X(read_nowait, (int fd, void *buf, size_t len), (fd, buf, len)) \
	X(write, (int fd, const void *buf, size_t len), (fd, buf, len)) \
	X(userfaultfd, (int flags), (flags)) \
	X(eventfd, (unsigned int value, int flags), (value, flags)) \
	X(timerfd, (void), ()) \
	X(timerfd_set, (int fd, uint64_t at_ns), (fd, at_ns)) \
	X(epoll_create, (void), ()) \
	X(epoll_ctl, (int ep, int op, int fd, struct epoll_event *ev), (ep, op, fd, ev)) \
	X(epoll_wait, (int ep, struct epoll_event *ev, int max, int timeout_ms), \
	  (ep, ev, max, timeout_ms)) \
	X(futex_wait, (_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns), \
	  (word, value, timeout_ns)) \
	X(futex_wake, (_Atomic uint32_t *word), (word)) \
	X(poll, (struct pollfd * fds, unsigned int n, int timeout_ms), (fds, n, timeout_ms)) \
	X(mbind, \
	  (void *addr, size_t len, int mode, const unsigned long *nodes, unsigned long maxnode, \
	   unsigned int flags), \
	  (addr, len, mode, nodes, maxnode, flags)) \
	X(get_mempolicy, \
	  (int *mode, unsigned long *nodes, unsigned long maxnode, void *addr, \
	   unsigned long flags), \
	  (mode, nodes, maxnode, addr, flags)) \
	X(set_mempolicy, (int mode, const unsigned long *nodes, unsigned long maxnode), \
	  (mode, nodes, maxnode)) \
	X(node_bytes, (int node), (node)) \
	X(run_near_node, (int node), (node)) \
	X(move_pages_query, (size_t count, void **pages, int *status), (count, pages, status)) \
	X(thread_create, \
	  (struct km_thread * ret, const char *name, const struct km_sys_thread *how, \
	   void *(*fn)(void *), void *arg), \
	  (ret, name, how, fn, arg)) \
	X(uring_init, (unsigned int entries, struct io_uring *ring, struct io_uring_params *p), \
	  (entries, ring, p)) \
	X(uring_workers, (struct io_uring * ring, unsigned int most), (ring, most)) \
	X(uring_submit, (struct io_uring * ring), (ring)) \
	X(uring_wait, (struct io_uring * ring, struct io_uring_cqe * *ret), (ring, ret)) \
	X(uring_register_buffers, \
	  (struct io_uring * ring, const struct iovec *iov, unsigned int n), (ring, iov, n)) \
	X(uring_probe_op, (struct io_uring * ring, int op), (ring, op))

#define KM_SYS_DECLARE(name, params, args) int64_t km_sys_##name params;
KM_SYS_CALLS(KM_SYS_DECLARE)

void *km_sys_alloc(size_t len); /* zeroed */
void *km_sys_realloc(void *p, size_t len);

/* Calls that release or observe: they have nothing to report. */
void km_sys_free(void *p);
void km_sys_close(int fd);
void km_sys_munmap(void *addr, size_t len);
void km_sys_uring_exit(struct io_uring *ring);
void km_sys_thread_join(const struct km_thread *thread);
void km_sys_block_signals(sigset_t *ret_old); /* every signal, of the calling thread */
void km_sys_restore_signals(const sigset_t *old);
uint64_t km_sys_now_ns(void);
void km_sys_yield(void);
size_t km_sys_page_size(void);
unsigned int km_sys_cpus(void); /* that this process may run on */

#endif
