/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef TOUCHER_H
#define TOUCHER_H

/* A thread that touches a page under a pager, and whether a thread sleeps. */

#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>

#include "pager_lib.h"

struct toucher {
	const struct set *s;
	uint64_t page;
	uint8_t first; /* what it read */
	pid_t tid;
	_Atomic bool begun, done;
	pthread_t thread;
};

static inline void *touch(void *arg)
{
	struct toucher *t = arg;

	t->tid = (pid_t)syscall(SYS_gettid);
	atomic_store(&t->begun, true);
	t->first = *(volatile uint8_t *)(t->s->base + t->page * PAGE);
	atomic_store(&t->done, true);
	return NULL;
}

static inline void run_touch(struct toucher *t)
{
	ck_assert_int_eq(pthread_create(&t->thread, NULL, touch, t), 0);
}

static inline void start_touch(struct toucher *t, const struct set *s, uint64_t page)
{
	*t = (struct toucher){ .s = s, .page = page };
	run_touch(t);
}

static inline bool read_of_task(pid_t tid, const char *name, char *ret_text, size_t bytes)
{
	char path[64];
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/%s", (int)tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		n = read(fd, ret_text, bytes - 1);
	close(fd);
	ret_text[n > 0 ? n : 0] = '\0';
	return n > 0;
}

/*
 * A thread sleeps: interruptibly (in a page fault) or not (until an event of its own is read). Who waits for a lock
 * of the kernel's on its way there sleeps as well, but not for long: it is looked at for a while.
 */
static inline bool is_asleep(pid_t tid)
{
	char text[4096], slept[64] = "";

	for (unsigned int look = 0; look < 5; look++) {
		const char *switches;

		if (!read_of_task(tid, "stat", text, sizeof(text)) ||
		    !(strstr(text, ") S") || strstr(text, ") D")) ||
		    !read_of_task(tid, "status", text, sizeof(text)))
			return false;
		switches = strstr(text, "\nvoluntary_ctxt_switches:");
		if (!switches)
			return false;
		if (look && strncmp(switches, slept, sizeof(slept) - 1))
			return false;
		snprintf(slept, sizeof(slept), "%.63s", switches);
		nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
	}
	return true;
}

static inline bool in_fault(void *arg)
{
	struct toucher *t = arg;

	return t->begun && is_asleep(t->tid);
}

#endif
