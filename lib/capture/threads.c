// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Threads of a capture: they read the events of its own userfaultfd, and help to arm. */
#include "capture/capture_internal.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <stdio.h>

#define MSGS 4u /* a read: the others are for the other threads */

static unsigned int serve(struct kvmem_capture *c)
{
	struct uffd_msg msgs[MSGS];
	unsigned int n;
	uint64_t now;
	int64_t r;

	pthread_rwlock_rdlock(&c->parts_lock);
	r = km_uffd_read_events(&c->set, 0, msgs, MSGS);
	n = r < 0 ? 0 : (unsigned int)r;
	now = n ? km_sys_now_ns() : 0;
	for (unsigned int i = 0; i < n; i++) {
		const struct km_captured *p = NULL;
		uint64_t addr = msgs[i].arg.pagefault.address;

		if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
			p = km_parts_at(c, addr);
		if (p)
			km_guard_fault(&p->own, (addr - p->own.addr) >> p->shift, now);
	}
	pthread_rwlock_unlock(&c->parts_lock);
	return n;
}

static void help(struct kvmem_capture *c)
{
	pthread_rwlock_rdlock(&c->parts_lock);
	if (c->parts)
		km_arm_help(c);
	pthread_rwlock_unlock(&c->parts_lock);
}

#define LOOK_MS 1000 /* the end is noticed so late where writing to an eventfd is refused */

static void *run(void *arg)
{
	struct km_capture_thread *t = arg;
	struct epoll_event ev[2];
	uint64_t kicks;

	while (!atomic_load(&t->capture->closing)) {
		int64_t n = km_sys_epoll_wait(t->epoll, ev, 2, LOOK_MS);

		if (n < 0) /* a filter: events are looked for all the same */
			km_sys_poll(NULL, 0, 1);

		for (int64_t i = 0; i < n; i++) {
			if (ev[i].data.ptr)
				continue;
			km_sys_read(t->kick, &kicks, sizeof(kicks));
			help(t->capture);
		}
		while (serve(t->capture))
			;
	}
	return NULL;
}

static int watch_fd(struct km_capture_thread *t, int fd, uint32_t events, void *ptr)
{
	struct epoll_event ev = { .events = events, .data = { .ptr = ptr } };
	int64_t r = km_sys_epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &ev);

	return r < 0 ? km_fail((int)-r, "capture: EPOLL_CTL_ADD: %m") : 0;
}

static int start(struct km_capture_thread *t, unsigned int i)
{
	struct kvmem_capture *c = t->capture;
	char name[16];
	int64_t fd;
	int r;

	fd = km_sys_epoll_create();
	if (fd < 0)
		return km_fail((int)-fd, "capture: epoll_create1: %m");
	t->epoll = (int)fd;
	fd = km_sys_eventfd(0, EFD_NONBLOCK);
	if (fd < 0)
		return km_fail((int)-fd, "capture: eventfd: %m");
	t->kick = (int)fd;
	r = watch_fd(t, t->kick, EPOLLIN, NULL);
	/* One event wakes one of them. */
	if (!r)
		r = watch_fd(t, atomic_load(&c->set.all[0].fd), EPOLLIN | EPOLLEXCLUSIVE, t);
	if (r)
		return r;
	snprintf(name, sizeof(name), "kvmem-save/%u", i % 1000);
	fd = km_sys_thread_create(&t->thread, name, NULL, run, t);
	t->started = fd >= 0;
	if (fd < 0)
		return km_fail((int)-fd,
			       "capture: thread %u: %m; see RLIMIT_NPROC, pids.max of the cgroup, "
			       "RLIMIT_AS",
			       i);
	return 0;
}

int km_capture_threads_start(struct kvmem_capture *c)
{
	int r = 0;

	c->threads = km_sys_alloc(c->opts.threads * sizeof(*c->threads));
	if (!c->threads)
		return km_fail(ENOMEM, "kvmem_capture_create: no memory");
	for (unsigned int i = 0; i < c->opts.threads; i++)
		c->threads[i] = (struct km_capture_thread){ .capture = c, .epoll = -1, .kick = -1 };
	c->thread_count = c->opts.threads;
	for (unsigned int i = 0; !r && i < c->thread_count; i++)
		r = start(&c->threads[i], i);
	return r;
}

void km_capture_threads_stop(struct kvmem_capture *c)
{
	atomic_store(&c->closing, true);
	km_capture_kick_all(c);
	for (unsigned int i = 0; i < c->thread_count; i++) {
		if (c->threads[i].started)
			km_sys_thread_join(&c->threads[i].thread);
		km_sys_close(c->threads[i].epoll);
		km_sys_close(c->threads[i].kick);
	}
	km_sys_free(c->threads);
	c->thread_count = 0;
}
