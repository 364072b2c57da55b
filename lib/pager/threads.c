// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* How the pager's threads are made: their names, the processors they run on, how they are scheduled. */
#include "pager/pager_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

int km_threads_check(const struct kvmem_pager_opts *o)
{
	if (o->thread_name &&
	    strlen(o->thread_name) > sizeof(((struct km_thread_opts *)0)->prefix) - 1)
		return km_fail(EINVAL,
			       "kvmem_pager_opts: thread_name \"%s\" is longer than 8 characters",
			       o->thread_name);
	if (o->cpu_count && !o->cpus)
		return km_fail(EINVAL, "kvmem_pager_opts: cpus is NULL");
	if (!o->cpu_count && o->cpus)
		return km_fail(EINVAL, "kvmem_pager_opts: cpus is given, and cpu_count is 0");
	if (o->sched_policy && o->sched_policy != SCHED_FIFO && o->sched_policy != SCHED_RR)
		return km_fail(
			EINVAL,
			"kvmem_pager_opts: sched_policy %" PRIu32
			" is neither SCHED_FIFO nor SCHED_RR: the others are inherited from the "
			"thread that starts the pager",
			o->sched_policy);
	if (o->sched_priority && !o->sched_policy)
		return km_fail(EINVAL,
			       "kvmem_pager_opts: sched_priority %" PRId32
			       " is given without sched_policy",
			       o->sched_priority);
	return 0;
}

int km_threads_copy(struct kvmem_pager *pager)
{
	const struct kvmem_pager_opts *o = &pager->opts;
	struct km_thread_opts *t = &pager->threads;
	size_t words = (o->cpu_count + 8 * sizeof(*t->cpus) - 1) / (8 * sizeof(*t->cpus));

	snprintf(t->prefix, sizeof(t->prefix), "%s", o->thread_name ? o->thread_name : "kvmem");
	t->policy = o->sched_policy;
	t->priority = o->sched_priority;
	t->cpu_count = o->cpu_count;
	if (!words)
		return 0;
	t->cpus = km_sys_alloc(words * sizeof(*t->cpus));
	if (!t->cpus)
		return km_fail(ENOMEM, "kvmem_pager_create: no memory");
	memcpy(t->cpus, o->cpus, words * sizeof(*t->cpus));
	return 0;
}

/* The thread is made with them: one that may not have them is not begun. */
int64_t km_threads_create(struct kvmem_pager *pager, struct km_thread *ret, const char *what,
			  unsigned int number, void *(*fn)(void *), void *arg)
{
	const struct km_thread_opts *t = &pager->threads;
	const struct km_sys_thread how = {
		.cpus = t->cpus,
		.cpu_bytes = ((size_t)t->cpu_count + 63) / 64 * 8,
		.policy = (int)t->policy,
		.priority = t->priority,
	};
	char name[16];

	if (number == UINT32_MAX)
		snprintf(name, sizeof(name), "%s-%s", t->prefix, what);
	else
		snprintf(name, sizeof(name), "%s-%s/%u", t->prefix, what, number % 1000);
	return km_sys_thread_create(ret, name, &how, fn, arg);
}
