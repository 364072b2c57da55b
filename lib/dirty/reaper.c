// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The thread that keeps rings from filling. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <time.h>

/* Entries of the fullest ring. */
static uint32_t reap(struct kvmem_dirty *d)
{
	uint32_t most = 0, n;

	pthread_rwlock_rdlock(&d->vm->lock);
	for (size_t i = 0; i < d->vcpu_count; i++) {
		n = km_dirty_take(d, d->vcpus[i], true);
		most = n > most ? n : most;
	}
	if (most)
		km_dirty_reset(d, false); /* what stays marked, the next reset reports */
	pthread_rwlock_unlock(&d->vm->lock);
	km_readers_look(d);
	km_count_shared(&d->stats.reaps, 1);
	return most;
}

static uint64_t adapt(const struct kvmem_dirty *d, uint64_t ns, uint32_t most)
{
	if (most > d->ring_entries / 4)
		ns /= 2;
	else if (most < d->ring_entries / 16)
		ns *= 2;
	if (ns < d->reaper.min_ns)
		return d->reaper.min_ns;
	return ns > d->reaper.max_ns ? d->reaper.max_ns : ns;
}

/* False when the thread is to end. */
static bool pause_reaper(struct km_reaper *r, uint64_t ns)
{
	uint64_t until = km_sys_now_ns() + ns;
	struct timespec ts = { (time_t)(until / 1000000000u), (long)(until % 1000000000u) };
	bool more;

	pthread_mutex_lock(&r->lock);
	while (!r->quit && pthread_cond_timedwait(&r->wake, &r->lock, &ts) != ETIMEDOUT)
		;
	more = !r->quit;
	pthread_mutex_unlock(&r->lock);
	return more;
}

static void *reaper_main(void *arg)
{
	struct kvmem_dirty *d = arg;
	uint64_t ns = d->reaper.min_ns;

	while (pause_reaper(&d->reaper, ns))
		ns = adapt(d, ns, reap(d));
	return NULL;
}

/* The bitmap has nothing that could fill. */
int km_dirty_reaper_start(struct kvmem_dirty *d)
{
	int64_t r;

	if (!(d->flags & KVMEM_DIRTY_REAPER) || d->mode != KVMEM_DIRTY_RING)
		return 0;
	d->reaper.quit = false;
	r = km_sys_thread_create(&d->reaper.thread, "kvmem-reaper", NULL, reaper_main, d);
	if (r < 0)
		return km_fail(
			(int)-r,
			"kvmem_dirty_start: a thread for KVMEM_DIRTY_REAPER: %m; see RLIMIT_NPROC, the "
			"cgroup's pids.max and RLIMIT_AS");
	d->reaper.running = true;
	return 0;
}

void km_dirty_reaper_stop(struct kvmem_dirty *d)
{
	if (!d->reaper.running)
		return;
	pthread_mutex_lock(&d->reaper.lock);
	d->reaper.quit = true;
	pthread_cond_signal(&d->reaper.wake);
	pthread_mutex_unlock(&d->reaper.lock);
	km_sys_thread_join(&d->reaper.thread);
	d->reaper.running = false;
}
