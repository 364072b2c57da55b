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

/* A thread sleeps: interruptibly (in a page fault) or not (until an event of its own is read). */
static inline bool is_asleep(pid_t tid)
{
	char path[64], text[64] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	return strstr(text, ") S") || strstr(text, ") D");
}

static inline bool in_fault(void *arg)
{
	struct toucher *t = arg;

	return t->begun && is_asleep(t->tid);
}

#endif
