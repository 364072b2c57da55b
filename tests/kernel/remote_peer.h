/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef REMOTE_PEER_H
#define REMOTE_PEER_H

/*
 * Another process with memory of its own, registered with userfaultfds that it gives to the test, and which does what
 * it is told over a socket. Written without the library.
 */

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "pager_lib.h"

#define PEER_UFFDS   4u
#define PEER_SECONDS 120

enum peer_op {
	PEER_CHECK,  /* how many of the pages [a, a + b) are not as the source has them */
	PEER_ZERO,   /* ... are not zero */
	PEER_TOUCH,  /* page a: 0, or the signal that it raised */
	PEER_WRITE,  /* page a, by the byte b */
	PEER_REMOVE, /* MADV_DONTNEED of the pages [a, a + b) */
	PEER_PUNCH,  /* MADV_REMOVE */
	PEER_UNMAP,
	PEER_TOUCHERS, /* a threads that read all of it again and again */
	PEER_REMOVERS, /* a threads that remove pages of the second half */
	PEER_FLAGS,    /* fcntl(F_GETFL) of its own userfaultfd a */
	PEER_SET_FLAGS,
	PEER_TOGGLERS, /* a threads that set and clear O_NONBLOCK of its own userfaultfd 0 */
	PEER_EXEC,     /* another program */
};

struct peer_opts {
	uint64_t bytes;
	uint64_t page;	/* 0: the base page; huge pages are hugetlb */
	uint64_t modes; /* UFFDIO_REGISTER_MODE_*; 0: MISSING */
	uint64_t features;
	unsigned int uffds; /* 0: one; each has a part of the memory */
	int memfd;	    /* what is mapped; 0: anonymous memory */
	bool private_map;
	bool blocking;
	bool unregistered;
};

struct peer {
	pid_t pid;
	int sock;
	int uffds[PEER_UFFDS];
	unsigned int uffd_count;
	uint64_t addr, bytes, page;
};

struct peer_order {
	uint64_t op, a, b;
};

/* ---- in the other process ---- */

static struct {
	uint8_t *base;
	uint64_t bytes, page;
	int uffds[PEER_UFFDS];
	int sock;
} me;

static sigjmp_buf peer_jump;
static volatile sig_atomic_t peer_signal;

static inline void peer_caught(int sig)
{
	peer_signal = sig;
	siglongjmp(peer_jump, 1);
}

static inline int64_t peer_differing(uint64_t from, uint64_t count, bool zero)
{
	int64_t differing = 0;

	for (uint64_t page = from; page < from + count; page++) {
		const volatile uint64_t *p = (volatile uint64_t *)(me.base + page * PAGE);
		bool bad = false;

		for (unsigned int i = 0; i < PAGE / 8 && !bad; i++)
			bad = p[i] != (zero ? 0 : word_of(page, i));
		differing += bad;
	}
	return differing;
}

static inline int64_t peer_touch(uint64_t page)
{
	peer_signal = 0;
	if (!sigsetjmp(peer_jump, 1))
		(void)*(volatile uint8_t *)(me.base + page * PAGE);
	return peer_signal;
}

static inline void *peer_touch_all(void *arg)
{
	unsigned long long state = (uintptr_t)arg;

	for (;;)
		(void)*(volatile uint8_t *)(me.base +
					    harness_random(&state) % (me.bytes / PAGE) * PAGE);
	return NULL;
}

/*
 * Some ten thousand removals a second. Without a pause two threads can keep the kernel from filling anything of their
 * process for as long as they go on: it refuses while a removal has begun, and on one processor that is always so.
 */
static inline void *peer_remove_all(void *arg)
{
	const struct timespec pause = { .tv_nsec = 50000 };
	unsigned long long state = (uintptr_t)arg;
	uint64_t half = me.bytes / me.page / 2;

	for (;;) {
		madvise(me.base + (half + harness_random(&state) % half) * me.page, me.page,
			MADV_DONTNEED);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static inline void *peer_toggle(void *arg)
{
	int flags = fcntl(me.uffds[0], F_GETFL);

	(void)arg;
	for (unsigned int i = 0;; i++)
		fcntl(me.uffds[0], F_SETFL, i % 2 ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
	return NULL;
}

static inline int64_t peer_threads(uint64_t n, void *(*fn)(void *))
{
	pthread_t t;

	for (uint64_t i = 0; i < n; i++)
		pthread_create(&t, NULL, fn, (void *)(uintptr_t)(i + 1));
	return 0;
}

static inline int64_t peer_do(const struct peer_order *o)
{
	uint8_t *at = me.base + o->a * PAGE;

	switch ((enum peer_op)o->op) {
	case PEER_CHECK:
		return peer_differing(o->a, o->b, false);
	case PEER_ZERO:
		return peer_differing(o->a, o->b, true);
	case PEER_TOUCH:
		return peer_touch(o->a);
	case PEER_WRITE:
		*(volatile uint8_t *)at = (uint8_t)o->b;
		return 0;
	case PEER_REMOVE:
		return madvise(at, o->b * PAGE, MADV_DONTNEED);
	case PEER_PUNCH:
		return madvise(at, o->b * PAGE, MADV_REMOVE);
	case PEER_UNMAP:
		return munmap(at, o->b * PAGE);
	case PEER_TOUCHERS:
		return peer_threads(o->a, peer_touch_all);
	case PEER_REMOVERS:
		return peer_threads(o->a, peer_remove_all);
	case PEER_FLAGS:
		return fcntl(me.uffds[o->a], F_GETFL);
	case PEER_SET_FLAGS:
		return fcntl(me.uffds[o->a], F_SETFL, (int)o->b);
	case PEER_TOGGLERS:
		return peer_threads(o->a, peer_toggle);
	case PEER_EXEC:
		execl("/proc/self/exe", "remote", "no_such_test", (char *)NULL);
		return -1;
	}
	return -1;
}

static inline int peer_open_uffd(const struct peer_opts *o)
{
	struct uffdio_api api = { .api = UFFD_API, .features = o->features };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | (o->blocking ? 0 : O_NONBLOCK));

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		_exit(11);
	return fd;
}

static inline void peer_map(const struct peer_opts *o)
{
	int flags = o->memfd && !o->private_map ? MAP_SHARED : MAP_PRIVATE;
	int fd = o->memfd ? o->memfd : -1;

	if (!o->memfd)
		flags |= MAP_ANONYMOUS;
	if (o->page && !o->memfd)
		flags |= MAP_HUGETLB;
	me.bytes = o->bytes;
	me.page = o->page ? o->page : PAGE;
	me.base = mmap(NULL, o->bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd, 0);
	if (me.base == MAP_FAILED)
		_exit(12);
}

static inline void peer_register(const struct peer_opts *o, unsigned int count)
{
	uint64_t part = o->bytes / count;

	for (unsigned int i = 0; i < count; i++) {
		struct uffdio_register reg = {
			.range = { .start = (uintptr_t)me.base + i * part, .len = part },
			.mode = o->modes ? o->modes : UFFDIO_REGISTER_MODE_MISSING,
		};

		me.uffds[i] = peer_open_uffd(o);
		if (!o->unregistered && ioctl(me.uffds[i], UFFDIO_REGISTER, &reg))
			_exit(13);
	}
}

static inline void peer_send(unsigned int count)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * PEER_UFFDS)];
		struct cmsghdr align;
	} control = { 0 };
	uint64_t addr = (uintptr_t)me.base;
	struct iovec iov = { &addr, sizeof(addr) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.buf,
			      .msg_controllen = CMSG_SPACE(sizeof(int) * count) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int) * count);
	memcpy(CMSG_DATA(c), me.uffds, sizeof(int) * count);
	if (sendmsg(me.sock, &msg, 0) != sizeof(addr))
		_exit(14);
}

static inline void peer_main(const struct peer_opts *o, int sock)
{
	unsigned int count = o->uffds ? o->uffds : 1;
	struct peer_order order;
	int64_t answer;

	me.sock = sock;
	signal(SIGBUS, peer_caught);
	peer_map(o);
	peer_register(o, count);
	peer_send(count);
	while (read(sock, &order, sizeof(order)) == sizeof(order)) {
		answer = peer_do(&order);
		if (write(sock, &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
	_exit(0);
}

/* ---- in the test ---- */

static inline void peer_receive(struct peer *p)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * PEER_UFFDS)];
		struct cmsghdr align;
	} control;
	struct iovec iov = { &p->addr, sizeof(p->addr) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.buf,
			      .msg_controllen = sizeof(control.buf) };
	struct cmsghdr *c;

	ck_assert_int_eq(recvmsg(p->sock, &msg, MSG_CMSG_CLOEXEC), sizeof(p->addr));
	c = CMSG_FIRSTHDR(&msg);
	ck_assert_ptr_nonnull(c);
	p->uffd_count = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
	memcpy(p->uffds, CMSG_DATA(c), sizeof(int) * p->uffd_count);
}

static inline void peer_begin(struct peer *p, const struct peer_opts *o)
{
	int pair[2];

	memset(p, 0, sizeof(*p));
	p->bytes = o->bytes;
	p->page = o->page ? o->page : PAGE;
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	p->pid = fork();
	ck_assert_int_ge(p->pid, 0);
	if (!p->pid) {
		close(pair[0]);
		peer_main(o, pair[1]);
	}
	close(pair[1]);
	p->sock = pair[0];
	peer_receive(p);
}

static inline void peer_order(struct peer *p, enum peer_op op, uint64_t a, uint64_t b)
{
	struct peer_order o = { op, a, b };

	ck_assert_int_eq(send(p->sock, &o, sizeof(o), MSG_NOSIGNAL), sizeof(o));
}

/* False: no answer within so many milliseconds. */
static inline bool peer_answers(struct peer *p, int ms, int64_t *ret)
{
	struct pollfd f = { .fd = p->sock, .events = POLLIN };

	if (poll(&f, 1, ms) != 1)
		return false;
	return read(p->sock, ret, sizeof(*ret)) == sizeof(*ret);
}

static inline int64_t peer_does(struct peer *p, enum peer_op op, uint64_t a, uint64_t b)
{
	int64_t r = -1;
	bool answered;

	peer_order(p, op, a, b);
	answered = peer_answers(p, PEER_SECONDS * 1000, &r);
	if (!answered)
		kill(p->pid, SIGKILL);
	ck_assert_msg(answered, "the other process hangs in %d(%llu, %llu)", op,
		      (unsigned long long)a, (unsigned long long)b);
	return r;
}

static inline void peer_kill(struct peer *p)
{
	kill(p->pid, SIGKILL);
	ck_assert_int_eq(waitpid(p->pid, NULL, 0), p->pid);
	p->pid = 0;
}

static inline void peer_end(struct peer *p)
{
	if (p->pid)
		peer_kill(p);
	close(p->sock);
	for (unsigned int i = 0; i < p->uffd_count; i++)
		close(p->uffds[i]);
}

/* ---- served ---- */

struct served {
	struct peer peer;
	struct kvmem_remote_opts opts;
	struct kvmem_remote_mapping maps[PEER_UFFDS];
	struct kvmem_pager_opts pager_opts;
	struct kvmem_region *ram;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	uint8_t *content;
	struct kvmem_region *_Atomic told; /* by `ended` */
	_Atomic unsigned int tells;
	_Atomic unsigned int fails;
};

static inline void served_ended(void *arg, struct kvmem_region *region)
{
	struct served *s = arg;

	atomic_store(&s->told, region);
	atomic_fetch_add(&s->tells, 1);
}

/* Where the kernel has no UFFDIO_POISON (before 6.6), a pager needs it. */
static inline enum kvmem_fail_action served_fails(void *arg, const struct kvmem_fail *fail)
{
	struct served *s = arg;

	(void)fail;
	atomic_fetch_add(&s->fails, 1);
	return KVMEM_FAIL_POISON;
}

/* A userfaultfd can be read without waiting, although it is blocking (Linux 6.10). */
static inline bool reads_nowait(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffd_msg msg;
	struct iovec v = { &msg, sizeof(msg) };
	bool r = fd >= 0 && !ioctl(fd, UFFDIO_API, &api) &&
		 preadv2(fd, &v, 1, -1, RWF_NOWAIT) < 0 && errno == EAGAIN;

	close(fd);
	return r;
}

static inline int a_memfd(uint64_t bytes, unsigned int flags)
{
	int fd = memfd_create("peer", MFD_CLOEXEC | flags);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	return fd;
}

static inline bool has_uffd(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) {
		harness_skip("uffd", "no userfaultfd: %s", strerror(errno));
		return false;
	}
	close(fd);
	return true;
}

/* A peer, and what a region of it would be made of. */
static inline void served_begin(struct served *s, const struct peer_opts *o)
{
	const struct kvmem_remote_opts none = KVMEM_REMOTE_OPTS_INIT;
	const struct kvmem_pager_opts pager = KVMEM_PAGER_OPTS_INIT;
	uint64_t part;

	memset(s, 0, sizeof(*s));
	peer_begin(&s->peer, o);
	part = o->bytes / s->peer.uffd_count;
	for (unsigned int i = 0; i < s->peer.uffd_count; i++)
		s->maps[i] = (struct kvmem_remote_mapping){ .addr = s->peer.addr + i * part,
							    .bytes = part,
							    .offset = i * part,
							    .uffd = i };
	s->opts = none;
	s->opts.flags = (o->modes & UFFDIO_REGISTER_MODE_MINOR ? KVMEM_REMOTE_MINOR : 0) |
			(!o->modes || o->modes & UFFDIO_REGISTER_MODE_MISSING ? KVMEM_REMOTE_MISSING
									      : 0);
	s->opts.bytes = o->bytes;
	s->opts.page_size = o->page;
	s->opts.mappings = s->maps;
	s->opts.mapping_count = s->peer.uffd_count;
	s->opts.uffds = s->peer.uffds;
	s->opts.uffd_count = s->peer.uffd_count;
	s->pager_opts = pager;
	s->pager_opts.flags = KVMEM_PAGER_REMOTE;
	s->pager_opts.ended = served_ended;
	s->pager_opts.fail = served_fails;
	s->pager_opts.arg = s;
	s->content = make_content(o->bytes);
	must(kvmem_source_memory(s->content, o->bytes, &s->source));
}

static inline void served_start(struct served *s)
{
	must(kvmem_remote_create(&s->opts, &s->ram));
	must(kvmem_pager_create(&s->pager_opts, &s->pager));
	must(kvmem_pager_add(s->pager, s->ram, s->source, 0, 0));
	must(kvmem_pager_start(s->pager));
}

static inline struct kvmem_pager_stats served_stats(const struct served *s)
{
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;

	must(kvmem_pager_get_stats(s->pager, &st));
	return st;
}

static inline void served_end(struct served *s)
{
	if (s->pager) {
		int r = kvmem_pager_stop(s->pager, KVMEM_STOP_HAND_BACK);

		ck_assert_msg(!r || r == -EINVAL, "%s", kvmem_error_detail());
		must(kvmem_pager_free(s->pager));
	}
	must(kvmem_region_free(s->ram));
	must(kvmem_source_free(s->source));
	peer_end(&s->peer);
	free(s->content);
}

#endif
