// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The life of a capture: made, started at the pause, stopped, freed. */
#include "capture/capture_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>

#define DEFAULT_THREADS 4u

/* ---- made ---- */

static int opts_check(struct kvmem_capture_opts *o, const struct kvmem_capture_opts *opts)
{
	int r = km_opts_copy(o, sizeof(*o), sizeof(*o), opts, "kvmem_capture_opts");

	if (!r)
		r = km_flags_check(o->flags, KVMEM_CAPTURE_UFFD, "kvmem_capture_opts.flags");
	if (r)
		return r;
	if (!o->before_write)
		return km_fail(EINVAL, "kvmem_capture_opts.before_write is NULL: a page that is "
				       "about to be written has nowhere to go");
	if (o->flags & KVMEM_CAPTURE_UFFD && o->uffd < 0)
		return km_fail(EBADF, "kvmem_capture_opts.uffd %" PRId32 " is not open", o->uffd);
	if (o->threads > KM_MAX_THREADS)
		return km_fail(EINVAL, "kvmem_capture_opts.threads %" PRIu32 ": at most %u",
			       o->threads, KM_MAX_THREADS);
	if (!o->threads)
		o->threads = (uint32_t)km_min(km_sys_cpus(), DEFAULT_THREADS);
	return 0;
}

static void destroy(struct kvmem_capture *c)
{
	km_capture_threads_stop(c);
	if (c->set.all)
		km_uffd_set_close(&c->set);
	km_sys_close(c->pagemap);
	for (unsigned int i = 0; i < c->buffer_count; i++)
		km_sys_free(c->all_buffers[i].bytes);
	km_sys_free(c->all_buffers);
	pthread_cond_destroy(&c->changed);
	pthread_mutex_destroy(&c->lock);
	pthread_rwlock_destroy(&c->parts_lock);
	km_sys_free(c);
}

/* Who starts or stops comes first, before those who come back for more all the time. */
static void init_parts_lock(pthread_rwlock_t *lock)
{
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
#ifdef __GLIBC__ /* the only one that has the choice */
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
	pthread_rwlock_init(lock, &attr);
	pthread_rwlockattr_destroy(&attr);
}

int kvmem_capture_create(const struct kvmem_capture_opts *opts, struct kvmem_capture **ret_capture)
{
	struct kvmem_capture *c;
	int r;

	if (!ret_capture)
		return km_fail(EINVAL, "kvmem_capture_create: ret_capture is NULL");
	c = km_sys_alloc(sizeof(*c));
	if (!c)
		return km_fail(ENOMEM, "kvmem_capture_create: no memory");
	init_parts_lock(&c->parts_lock);
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->changed, NULL);
	c->pagemap = -1;
	r = opts_check(&c->opts, opts);
	if (!r)
		r = km_uffd_set_open(&c->set, 1,
				     c->opts.flags & KVMEM_CAPTURE_UFFD ? &c->opts.uffd : NULL,
				     KM_UFFD_CAPTURES);
	if (!r) {
		c->pagemap = (int)km_sys_open("/proc/self/pagemap", O_RDONLY);
		r = km_capture_threads_start(c);
	}
	if (r) {
		destroy(c);
		return r;
	}
	*ret_capture = c;
	return 0;
}

int kvmem_capture_free(struct kvmem_capture *capture)
{
	int r;

	if (!capture)
		return 0;
	r = km_callback_check("kvmem_capture_free", capture);
	if (r)
		return r;
	if (atomic_load(&capture->running))
		return km_fail(EBUSY, "kvmem_capture_free: the capture is under way: "
				      "kvmem_capture_stop() it first");
	destroy(capture);
	return 0;
}

/* ---- asked ---- */

int kvmem_capture_check(struct kvmem_capture *capture, struct kvmem_region *region)
{
	if (!capture || !region)
		return km_fail(EINVAL, "kvmem_capture_check: %s is NULL",
			       capture ? "region" : "capture");
	return km_parts_check(capture, region);
}

int kvmem_capture_get_stats(const struct kvmem_capture *capture,
			    struct kvmem_capture_stats *ret_stats)
{
	struct kvmem_capture_stats s = { .size = sizeof(s) };
	int r = km_result_check(ret_stats, sizeof(s), "kvmem_capture_stats");

	if (r)
		return r;
	if (!capture)
		return km_fail(EINVAL, "kvmem_capture_get_stats: capture is NULL");
	s.threads = capture->thread_count;
	s.bytes_written = atomic_load(&capture->written);
	s.bytes_background = atomic_load(&capture->background);
	s.bytes_zero = atomic_load(&capture->zero);
	s.bytes_absent = atomic_load(&capture->absent);
	s.bytes_poisoned = atomic_load(&capture->poisoned);
	s.bytes = atomic_load(&capture->bytes);
	s.bytes_left = s.bytes - s.bytes_written - s.bytes_background - s.bytes_zero -
		       s.bytes_absent - s.bytes_poisoned;
	s.pause_ns = atomic_load(&capture->pause_ns);
	s.writers = atomic_load(&capture->writers);
	s.writer_longest_ns = atomic_load(&capture->longest_ns);
	km_result_copy(ret_stats, &s, sizeof(s));
	return 0;
}

/* ---- started ---- */

static void forget_the_last(struct kvmem_capture *c)
{
	_Atomic uint64_t *const counters[] = { &c->bytes,    &c->written, &c->background,
					       &c->zero,     &c->absent,  &c->poisoned,
					       &c->pause_ns, &c->writers, &c->longest_ns };

	for (size_t i = 0; i < KM_ARRAY_SIZE(counters); i++)
		atomic_store(counters[i], 0);
	atomic_store(&c->error, 0);
	atomic_store(&c->ended, false);
	atomic_store(&c->whole, false);
}

static int start_check(struct kvmem_capture *c, struct kvmem_region *const *regions, size_t count,
		       const char *call)
{
	int r;

	if (!c || !regions)
		return km_fail(EINVAL, "%s: %s is NULL", call, c ? "regions" : "capture");
	r = km_callback_check(call, NULL);
	if (r)
		return r;
	if (!count)
		return km_fail(EINVAL, "%s: count is 0: nothing to capture", call);
	for (size_t i = 0; i < count; i++)
		if (!regions[i])
			return km_fail(EINVAL, "%s: regions[%zu] is NULL", call, i);
	if (atomic_load(&c->running))
		return km_fail(EBUSY, "%s: the capture is under way: kvmem_capture_stop() it first",
			       call);
	return 0;
}

/* Everything is let go, whoever waits or is about to. Returns the bytes that were not handed out. */
static uint64_t end(struct kvmem_capture *c, struct km_to_tell *tell)
{
	uint64_t left = 0;

	km_presence_defer();
	atomic_store(&c->ended, true);
	km_capture_open(c);
	km_parts_end_guards(c);
	/* Who is inside hands out what he has begun. */
	pthread_rwlock_wrlock(&c->parts_lock);
	for (size_t i = 0; i < c->part_count; i++)
		left += atomic_load(&c->parts[i]->record.left) << c->parts[i]->shift;
	km_tell_last(c, tell);
	km_parts_free(c);
	atomic_store(&c->running, false);
	pthread_rwlock_unlock(&c->parts_lock);
	km_presence_defer_end(); /* what is not owed is told in vain */
	return left;
}

static int start(struct kvmem_capture *capture, struct kvmem_region *const *regions, size_t count,
		 const struct km_capture_runs *only, const char *call)
{
	uint64_t begun = km_sys_now_ns();
	struct km_to_tell tell = { .count = 0 };
	struct km_detail why;
	int r = start_check(capture, regions, count, call);

	if (!r && only)
		r = km_capture_runs_check(only, regions, count);
	if (r)
		return r;
	pthread_rwlock_wrlock(&capture->parts_lock);
	forget_the_last(capture);
	capture->call = call;
	r = km_parts_begin(capture, regions, count, only);
	pthread_rwlock_unlock(&capture->parts_lock);
	/* What began before there was a guard has ended: what it has changed is of before the pause. */
	km_presence_defer();
	for (size_t i = 0; !r && i < count; i++)
		km_guard_settle(&capture->parts[i]->guard);
	if (km_presence_defer_end())
		atomic_store(&capture->whole, true);
	if (!r)
		r = km_arm(capture);
	if (!r)
		r = km_capture_error(capture, call);
	if (r) {
		km_detail_save(&why);
		end(capture, &tell);
		km_detail_restore(&why);
	} else {
		if (atomic_load(&capture->whole))
			km_tell_collect(capture, &tell);
		atomic_store(&capture->pause_ns, km_sys_now_ns() - begun);
		atomic_store(&capture->running, true);
	}
	km_tell_now(&tell);
	return r;
}

int kvmem_capture_start(struct kvmem_capture *capture, struct kvmem_region *const *regions,
			size_t count)
{
	return start(capture, regions, count, NULL, "kvmem_capture_start");
}

int kvmem_capture_start_runs(struct kvmem_capture *capture, struct kvmem_region *const *regions,
			     size_t count, const struct kvmem_run *runs, uint64_t run_count)
{
	const struct km_capture_runs only = { .runs = runs, .count = run_count };

	return start(capture, regions, count, &only, "kvmem_capture_start_runs");
}

/* ---- stopped ---- */

/* All that is left is in the hands of other threads. */
static bool only_others(const struct kvmem_capture *c)
{
	uint64_t left = 0;

	for (size_t i = 0; i < c->part_count; i++) {
		const struct km_record *rec = &c->parts[i]->record;
		uint64_t n = atomic_load(&rec->left);

		if (n && km_record_next(rec, 0) < rec->pages)
			return false;
		left += n;
	}
	return left > 0;
}

static void wait_for_others(struct kvmem_capture *c)
{
	pthread_mutex_lock(&c->lock);
	atomic_fetch_add(&c->waiters, 1);
	while (km_capture_goes_on(c) && only_others(c))
		pthread_cond_wait(&c->changed, &c->lock);
	atomic_fetch_sub(&c->waiters, 1);
	pthread_mutex_unlock(&c->lock);
}

int kvmem_capture_stop(struct kvmem_capture *capture)
{
	struct km_to_tell tell = { .count = 0 };
	uint64_t left;
	int r;

	if (!capture)
		return km_fail(EINVAL, "kvmem_capture_stop: capture is NULL");
	r = km_callback_check("kvmem_capture_stop", capture);
	if (r)
		return r;
	if (!atomic_load(&capture->running))
		return km_fail(EINVAL, "kvmem_capture_stop: the capture is not started");
	wait_for_others(capture);
	left = end(capture, &tell);
	r = km_capture_error(capture, "kvmem_capture_stop");
	if (!r && left)
		r = km_fail(ECANCELED,
			    "kvmem_capture_stop: 0x%" PRIx64 " of 0x%" PRIx64
			    " bytes had not been handed out",
			    left, atomic_load(&capture->bytes));
	km_tell_now(&tell);
	return r;
}
