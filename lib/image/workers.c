// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Several threads for one call. */
#include <sched.h>
#include <signal.h>
#include <time.h>

#include "image/internal.h"

uint64_t ki_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint32_t ki_workers(uint32_t wanted)
{
	cpu_set_t set;

	if (wanted)
		return wanted;
	if (sched_getaffinity(0, sizeof(set), &set))
		return 4;
	return (uint32_t)ki_min((uint64_t)CPU_COUNT(&set), 4);
}

struct worker {
	void (*fn)(void *arg, bool caller);
	void *arg;
};

static void *run(void *arg)
{
	const struct worker *w = arg;

	w->fn(w->arg, false);
	return NULL;
}

void ki_workers_run(const char *name, uint32_t count, void (*fn)(void *arg, bool caller), void *arg)
{
	struct worker w = { fn, arg };
	pthread_t threads[KI_MAX_WORKERS];
	sigset_t all, before;
	uint32_t n = 0;

	/* The VMM's signals are not for these threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (n + 1 < count && !pthread_create(&threads[n], NULL, run, &w))
		pthread_setname_np(threads[n++], name);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	fn(arg, true);
	while (n)
		pthread_join(threads[--n], NULL);
}
