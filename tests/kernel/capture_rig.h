/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef CAPTURE_RIG_H
#define CAPTURE_RIG_H

/*
 * Regions with a copy of what they hold, threads that write to both (they play vCPUs), and an image that a capture
 * fills: when it is over, each page has come once and is what the copy was at the pause.
 */

#include "harness.h"
#include "huge_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE	UINT64_C(4096)
#define MIB	(UINT64_C(1) << 20)
#define HUGE	(2 * MIB)
#define WRITERS 4u

#define ck_ok(call) \
	do { \
		int64_t ck_r_ = (call); \
		ck_assert_msg(ck_r_ >= 0, "%s: %ld: %s", #call, (long)ck_r_, \
			      kvmem_error_detail()); \
	} while (0)

#define ck_fails(call, err, word) \
	do { \
		ck_assert_int_eq((call), -(err)); \
		ck_assert_msg(strstr(kvmem_error_detail(), word), "%s", kvmem_error_detail()); \
	} while (0)

enum kind { ANON, THP, MEMFD, HUGETLB, CLONE, CLONE_DISCARDED, OWN_ANON, OWN_MEMFD, KINDS };

static const char *const kind_names[] = { "anonymous",	   "anonymous, huge pages",
					  "memfd",	   "hugetlb",
					  "clone",	   "clone, partly discarded",
					  "own anonymous", "own memfd" };

struct writer {
	struct rig *rig;
	unsigned int index;
	unsigned long long seed;
	pthread_t thread;
};

/* One region and all that belongs to it. */
struct rig {
	enum kind kind;
	struct kvmem_region *region;
	uint8_t *base, *model; /* what it holds */
	uint64_t bytes, page;
	uint8_t *want;		 /* the model at the pause */
	uint8_t *image;		 /* what the capture gave */
	_Atomic uint8_t *times;	 /* of each 4 KiB */
	_Atomic uint8_t *absent; /* said to be the source's */
	const uint8_t *source;	 /* what that has */
	int template_fd;
	void *own;
	/* Writers hold it for reading; the pause for writing. */
	pthread_rwlock_t pause;
	_Atomic bool stop;
	struct writer writers[WRITERS];
	unsigned int writer_count;
	_Atomic uint64_t writes;
	struct kvmem_capture *capture;
	_Atomic uint64_t callbacks;
	uint64_t fail_at; /* the n-th callback fails; 0: none */
};

static inline void fill_random(uint8_t *at, uint64_t bytes, unsigned long long *seed)
{
	for (uint64_t i = 0; i < bytes; i += 8) {
		unsigned long long v = harness_random(seed);

		memcpy(at + i, &v, 8);
	}
}

static inline int make_template(struct rig *r)
{
	int fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(pwrite(fd, r->model, r->bytes, 0), (ssize_t)r->bytes);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
	return fd;
}

static inline bool rig_make_region(struct rig *r)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	int fd = -1, err;

	o.bytes = r->bytes;
	o.backing = r->kind == ANON || r->kind == THP ? KVMEM_BACKING_ANONYMOUS
		    : r->kind == HUGETLB	      ? KVMEM_BACKING_HUGETLB
		    : r->kind == MEMFD		      ? KVMEM_BACKING_MEMFD
						      : KVMEM_BACKING_AUTO;
	o.wants = r->kind == THP ? KVMEM_WANT_THP : 0;
	if (r->kind == CLONE || r->kind == CLONE_DISCARDED) {
		o.flags = KVMEM_REGION_CLONE;
		o.fd = r->template_fd = make_template(r);
	}
	if (r->kind == OWN_MEMFD) {
		fd = memfd_create("own", MFD_CLOEXEC);
		ck_assert_int_eq(ftruncate(fd, (off_t)r->bytes), 0);
	}
	if (r->kind == OWN_ANON || r->kind == OWN_MEMFD) {
		r->own = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE,
			      fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
		ck_assert_ptr_ne(r->own, MAP_FAILED);
		o.mapping = r->own;
		o.flags = KVMEM_REGION_MAPPING;
		close(fd);
	}
	err = kvmem_region_create(NULL, &o, &r->region);
	if (err && r->kind == HUGETLB)
		return false;
	ck_assert_msg(!err, "%s: %s", kind_names[r->kind], kvmem_error_detail());
	r->base = kvmem_region_base(r->region);
	r->page = kvmem_region_page_size(r->region);
	return true;
}

static inline void both(struct rig *r, uint64_t at, uint64_t v)
{
	memcpy(r->base + at, &v, 8);
	memcpy(r->model + at, &v, 8);
}

/* Two thirds of it exist, in runs; the others never existed, or were given back. False: no huge pages. */
static inline bool rig_open(struct rig *r, enum kind kind, uint64_t bytes)
{
	unsigned long long seed = kind + 1;
	bool clone = kind == CLONE || kind == CLONE_DISCARDED;
	pthread_rwlockattr_t attr;
	uint64_t step;

	memset(r, 0, sizeof(*r));
	r->kind = kind;
	r->bytes = bytes;
	r->template_fd = -1;
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&r->pause, &attr);
	pthread_rwlockattr_destroy(&attr);
	r->model = calloc(1, bytes);
	r->want = calloc(1, bytes);
	r->image = malloc(bytes);
	r->times = calloc(bytes / PAGE, 1);
	r->absent = calloc(bytes / PAGE, 1);
	ck_assert(r->model && r->want && r->image && r->times && r->absent);
	memset(r->image, 0xdb, bytes);
	if (clone)
		fill_random(r->model, bytes / 2, &seed);
	if (!rig_make_region(r)) {
		free(r->model);
		free(r->want);
		free(r->image);
		free((void *)r->times);
		free((void *)r->absent);
		return false;
	}
	step = kind == THP ? HUGE : r->page;
	for (uint64_t at = 0; at < bytes; at += step) {
		if (at / step % 3 == 2 || (clone && at / step % 5))
			continue;
		fill_random(r->model + at, step, &seed);
		memcpy(r->base + at, r->model + at, step);
	}
	for (uint64_t at = 0; kind == CLONE_DISCARDED && at < bytes; at += 16 * PAGE) {
		ck_ok(kvmem_region_discard(r->region, at, 3 * PAGE));
		memset(r->model + at, 0, 3 * PAGE);
		both(r, at + PAGE + 8, at + 1);
	}
	return true;
}

static inline void rig_close(struct rig *r)
{
	if (r->capture)
		ck_ok(kvmem_capture_free(r->capture));
	ck_ok(kvmem_region_free(r->region));
	if (r->own)
		munmap(r->own, r->bytes);
	if (r->template_fd >= 0)
		close(r->template_fd);
	pthread_rwlock_destroy(&r->pause);
	free(r->model);
	free(r->want);
	free(r->image);
	free((void *)r->times);
	free((void *)r->absent);
}

/* ---- writers ---- */

/* Each has pages of its own, so that memory and model agree without a lock. */
static inline void *writer_run(void *arg)
{
	struct writer *w = arg;
	struct rig *r = w->rig;
	uint64_t pages = r->bytes / PAGE;

	while (!atomic_load(&r->stop)) {
		pthread_rwlock_rdlock(&r->pause);
		for (unsigned int i = 0; i < 64; i++) {
			uint64_t n = harness_random(&w->seed);
			uint64_t page = n % pages / WRITERS * WRITERS + w->index;

			both(r, page * PAGE + (n >> 32) % 512 * 8, n | 1);
		}
		atomic_fetch_add(&r->writes, 64);
		pthread_rwlock_unlock(&r->pause);
	}
	return NULL;
}

static inline void writers_start(struct rig *r)
{
	atomic_store(&r->stop, false);
	for (r->writer_count = 0; r->writer_count < WRITERS; r->writer_count++) {
		struct writer *w = &r->writers[r->writer_count];

		*w = (struct writer){ r, r->writer_count, r->writer_count + 77, 0 };
		ck_assert_int_eq(pthread_create(&w->thread, NULL, writer_run, w), 0);
	}
}

static inline void writers_stop(struct rig *r)
{
	atomic_store(&r->stop, true);
	for (unsigned int i = 0; i < r->writer_count; i++)
		pthread_join(r->writers[i].thread, NULL);
	r->writer_count = 0;
}

static inline bool written_on(void *arg)
{
	uint64_t *from = ((void **)arg)[1];

	return atomic_load(&((struct rig *)((void **)arg)[0])->writes) > *from;
}

/* Writers get on: none of them sleeps for ever. */
static inline void writers_go_on(struct rig *r)
{
	uint64_t from = atomic_load(&r->writes) + 64 * WRITERS;
	void *arg[] = { r, &from };

	ck_assert_msg(harness_wait(written_on, arg, 60), "%s: writers are stuck",
		      kind_names[r->kind]);
}

/* ---- the capture ---- */

static inline void got(struct rig *r, const struct kvmem_capture_run *run, const void *content)
{
	ck_assert_ptr_eq(run->region, r->region);
	ck_assert_uint_le(run->offset + run->bytes, r->bytes);
	for (uint64_t at = run->offset / PAGE; at < (run->offset + run->bytes) / PAGE; at++) {
		atomic_fetch_add(&r->times[at], 1);
		if (run->kind == KVMEM_CAPTURE_ABSENT)
			atomic_fetch_add(&r->absent[at], 1);
	}
	if (content)
		memcpy(r->image + run->offset, content, run->bytes);
	else if (run->kind == KVMEM_CAPTURE_ZERO)
		memset(r->image + run->offset, 0, run->bytes);
}

static inline int rig_before(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	struct rig *r = arg;

	if (run->region != r->region || run->bytes != r->page || !content ||
	    run->kind != KVMEM_CAPTURE_DATA)
		return -EPROTO;
	if (atomic_fetch_add(&r->callbacks, 1) + 1 == r->fail_at)
		return -ENOSPC;
	got(r, run, content);
	return 0;
}

/* Skips of a test begin with its return value. */
static inline bool rig_capture(struct rig *r)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	int err;

	o.before_write = rig_before;
	o.arg = r;
	err = kvmem_capture_create(&o, &r->capture);
	if (err == -EPERM || err == -ENOSYS || err == -EOPNOTSUPP)
		return false;
	ck_assert_msg(!err, "%s", kvmem_error_detail());
	return true;
}

/* The pause. 0: captured from here on; else it cannot be, and the detail says why. */
static inline int rig_start(struct rig *r)
{
	int err;

	for (uint64_t i = 0; i < r->bytes / PAGE; i++) {
		atomic_store(&r->times[i], 0);
		atomic_store(&r->absent[i], 0);
	}
	pthread_rwlock_wrlock(&r->pause);
	memcpy(r->want, r->model, r->bytes);
	err = kvmem_capture_start(r->capture, &r->region, 1);
	pthread_rwlock_unlock(&r->pause);
	return err;
}

/* Until nothing is left; the first error. */
static inline int rig_drain(struct rig *r, uint64_t bytes)
{
	struct kvmem_capture_run run;
	uint8_t *buf = malloc(bytes);
	int err;

	ck_assert_ptr_nonnull(buf);
	while ((err = kvmem_capture_next(r->capture, buf, bytes, &run)) > 0)
		got(r, &run, run.kind == KVMEM_CAPTURE_DATA ? buf : NULL);
	free(buf);
	return err;
}

struct drainer {
	struct rig *rig;
	uint64_t bytes;
	int result;
	pthread_t thread;
};

static inline void *drainer_run(void *arg)
{
	struct drainer *d = arg;

	d->result = rig_drain(d->rig, d->bytes);
	return NULL;
}

/* Every page once, and as it was. */
static inline void rig_check(const struct rig *r)
{
	for (uint64_t page = 0; page < r->bytes / PAGE; page++) {
		ck_assert_msg(atomic_load(&r->times[page]) == 1, "%s: page %lu came %u times",
			      kind_names[r->kind], (unsigned long)page, r->times[page]);
		/* What is absent is as in the source, and nobody had written to it. */
		const uint8_t *is = (atomic_load(&r->absent[page]) ? r->source : r->image);

		ck_assert_msg(is && !memcmp(is + page * PAGE, r->want + page * PAGE, PAGE),
			      "%s: page %lu is not as it was", kind_names[r->kind],
			      (unsigned long)page);
	}
}

static inline void rig_check_stats(const struct rig *r)
{
	struct kvmem_capture_stats s = KVMEM_CAPTURE_STATS_INIT;

	ck_ok(kvmem_capture_get_stats(r->capture, &s));
	ck_assert_uint_eq(s.bytes, r->bytes);
	ck_assert_uint_eq(s.bytes_left, 0);
	ck_assert_uint_gt(s.pause_ns, 0);
	ck_assert_uint_eq(s.bytes_written + s.bytes_background + s.bytes_zero + s.bytes_absent +
				  s.bytes_poisoned,
			  s.bytes);
	harness_note("%s: %lu KiB by writers (%lu of them, longest %lu us), %lu KiB in the "
		     "background, %lu KiB zero, pause %lu us",
		     kind_names[r->kind], (unsigned long)s.bytes_written >> 10,
		     (unsigned long)s.writers, (unsigned long)s.writer_longest_ns / 1000,
		     (unsigned long)s.bytes_background >> 10, (unsigned long)s.bytes_zero >> 10,
		     (unsigned long)s.pause_ns / 1000);
}

#define CAPTURE_MAIN(...) \
	int main(int argc, char **argv) \
	{ \
		const struct harness_test tests[] = { __VA_ARGS__ }; \
		huge_pages_begin(); \
		return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0])); \
	}

#endif
