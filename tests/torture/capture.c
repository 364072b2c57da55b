// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Captures: the actors are parked for the pause, and the model is copied; then they go on, and each page that the
 * capture hands out must be as in the copy. Some captures are cancelled, and some fail: what they have handed out
 * until then is right as well.
 */
#include "torture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HUGE_BYTES (UINT64_C(2) << 20)

static struct {
	struct kvmem_capture *capture; /* NULL: there is no write protection that raises events */
	struct moment moment;
	_Atomic uint8_t *times[MAX_AREAS]; /* that a page of moment.area[i] came */
	_Atomic uint64_t handed;
	_Atomic uint64_t fail_at; /* before_write fails at this call; 0: never */
	unsigned int cancel_at;	  /* the fetching ends after so many runs; 0: at the end */
	bool into_image, images;
	uint64_t pause_us; /* between two runs */
	uint64_t buf_bytes;
	struct thread *thread;
	pthread_mutex_t lock; /* what follows */
	pthread_cond_t changed;
	bool work, end;
	int result;
} c = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

/* ---- what comes ---- */

static unsigned int number_of(const struct kvmem_region *region)
{
	unsigned int i = 0;

	while (i < c.moment.count && c.moment.region[i] != region)
		i++;
	if (i == c.moment.count)
		fail(NULL, -1, "a capture hands out a region that is not of it");
	return i;
}

static void check_page(unsigned int number, uint32_t page, uint32_t kind, const void *content)
{
	struct area *area = c.moment.area[number];
	const struct page *then = page < area->pages ? &c.moment.page[number][page] : NULL;
	unsigned char other[PAGE];

	if (atomic_fetch_add(&c.times[number][page], 1))
		fail(area, page, "area %d page %u comes twice", area->index, page);
	switch (kind) {
	case KVMEM_CAPTURE_DATA:
		break;
	case KVMEM_CAPTURE_ZERO:
		memset(other, 0, PAGE);
		content = other;
		break;
	case KVMEM_CAPTURE_ABSENT:
		if (page >= area->pages)
			fail(area, page, "page %u, added later, is captured as absent", page);
		source_content(area->sources[then->generation], source_offset_of(area, page), other,
			       PAGE);
		content = other;
		break;
	default:
		fail(area, page, "area %d page %u is captured as kind %u", area->index, page, kind);
	}
	count(COUNT_CAPTURED, 1);
	if (page >= area->pages) {
		if (!grown_matches(page, content))
			fail(area, page, "page %u, added later, is captured as kind %u", page,
			     kind);
		return;
	}
	if (page_was(area, page, then, content))
		return;
	fail_content_then(area, page, then, content,
			  kind == KVMEM_CAPTURE_DATA   ? "captured as data, at the pause"
			  : kind == KVMEM_CAPTURE_ZERO ? "captured as zeros, at the pause"
						       : "captured as absent, at the pause");
}

static void check_run(const struct kvmem_capture_run *run, const void *content)
{
	unsigned int number = number_of(run->region);
	uint32_t first = (uint32_t)(run->offset / PAGE), n = (uint32_t)(run->bytes / PAGE);

	if (first + n > c.moment.pages[number])
		fail(c.moment.area[number], first, "%u pages from %u on are captured", n, first);
	for (uint32_t i = 0; i < n; i++)
		check_page(number, first + i, run->kind,
			   content ? (const char *)content + (size_t)i * PAGE : NULL);
}

static int before_write(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	(void)arg;
	if (atomic_fetch_add(&c.handed, 1) + 1 == c.fail_at)
		return -ENOSPC;
	if (run->kind != KVMEM_CAPTURE_DATA || !content)
		fail(c.moment.area[number_of(run->region)], (int64_t)(run->offset / PAGE),
		     "a page of kind %u is about to be written", run->kind);
	check_run(run, content);
	return 0;
}

/* ---- the thread that fetches ---- */

static int fetch(struct thread *thread)
{
	unsigned char *buf = malloc(c.buf_bytes);
	struct kvmem_capture_run run;
	int r = 1;

	if (!buf)
		fail(NULL, -1, "no memory to capture into");
	for (unsigned int n = 1; r == 1; n++) {
		r = kvmem_capture_next(c.capture, buf, c.buf_bytes, &run);
		if (r == 1)
			check_run(&run, run.kind == KVMEM_CAPTURE_DATA ? buf : NULL);
		if (n == c.cancel_at)
			break;
		if (c.pause_us)
			usleep((useconds_t)below(&thread->rng, c.pause_us));
	}
	free(buf);
	return r;
}

static void fetcher(struct thread *thread)
{
	int r;

	pthread_mutex_lock(&c.lock);
	while (!c.end) {
		if (!c.work) {
			pthread_cond_wait(&c.changed, &c.lock);
			continue;
		}
		pthread_mutex_unlock(&c.lock);
		op_begin(thread, OP_CAPTURE, NULL, 0, 0, c.cancel_at);
#ifdef TORTURE_IMAGES
		r = c.into_image ? image_capture_run(&thread->rng) : fetch(thread);
#else
		r = fetch(thread);
#endif
		op_end(thread, r);
		pthread_mutex_lock(&c.lock);
		c.result = r;
		c.work = false;
		pthread_cond_broadcast(&c.changed);
	}
	pthread_mutex_unlock(&c.lock);
}

static void set_work(bool end)
{
	pthread_mutex_lock(&c.lock);
	c.work = !end;
	c.end = end;
	pthread_cond_broadcast(&c.changed);
	pthread_mutex_unlock(&c.lock);
}

static int wait_work(void)
{
	int r;

	pthread_mutex_lock(&c.lock);
	while (c.work)
		pthread_cond_wait(&c.changed, &c.lock);
	r = c.result;
	pthread_mutex_unlock(&c.lock);
	return r;
}

void capture_open(struct round *round)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	int r;

	if (!allowed(OP_CAPTURE))
		return;
	o.before_write = before_write;
	o.threads = (uint32_t)below(&round->rng, 4);
	r = kvmem_capture_create(&o, &c.capture);
	if (r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP)
		return;
	must(r);
#ifdef TORTURE_IMAGES
	c.images = images_open();
#endif
	c.thread = thread_start("capture", fetcher, NULL);
}

void capture_close(struct round *round)
{
	(void)round;
	if (!c.capture)
		return;
	set_work(true);
	thread_join(c.thread);
#ifdef TORTURE_IMAGES
	images_close();
#endif
	must(kvmem_capture_free(c.capture));
	c.capture = NULL;
}

/* ---- the pause ---- */

static struct page *copy_model(const struct area *area)
{
	struct page *copy = malloc(area->pages * sizeof(*copy));

	if (!copy)
		fail(NULL, -1, "no memory for the model of a pause");
	for (uint32_t i = 0; i < area->pages; i++)
		copy[i] = area->page[i];
	return copy;
}

/* What can be captured now. */
static void choose_areas(struct round *round)
{
	c.moment.count = 0;
	c.buf_bytes = between(&round->rng, 1, 64) * PAGE;
	for (unsigned int i = 0; i < round->areas; i++) {
		struct area *area = &round->area[i];
		unsigned int n = c.moment.count;
		int r = kvmem_capture_check(c.capture, area->region);

		if (r == -EOPNOTSUPP || (r == -EBUSY && area->paged == PAGED_NO_EVENTS))
			continue;
		must(r);
		c.moment.area[n] = area;
		c.moment.region[n] = area->region;
		c.moment.page[n] = copy_model(area);
		c.moment.pages[n] = pages_of(area);
		c.times[n] = calloc(c.moment.pages[n], 1);
		if (!c.times[n])
			fail(NULL, -1, "no memory for a capture");
		if (area->unit > 1)
			c.buf_bytes = HUGE_BYTES;
		c.moment.count++;
	}
}

static void forget_moment(void)
{
	for (unsigned int i = 0; i < c.moment.count; i++) {
		free(c.moment.page[i]);
		free((void *)c.times[i]);
	}
	c.moment.count = 0;
}

static int start(struct round *round)
{
	atomic_store(&c.handed, 0);
	atomic_store(&c.fail_at, 0); /* a start that fails is no capture: it is told to later */
	c.cancel_at = one_in(&round->rng, 10) ? (unsigned int)between(&round->rng, 1, 50) : 0;
	c.pause_us = one_in(&round->rng, 2) ? 0 : between(&round->rng, 1, 2000);
	c.into_image = c.images && one_in(&round->rng, 3);
#ifdef TORTURE_IMAGES
	if (c.into_image)
		return image_capture_start(&c.moment, &round->rng);
#endif
	return kvmem_capture_start(c.capture, c.moment.region, c.moment.count);
}

void capture_begin(struct round *round, struct thread *thread)
{
	int r = 0;

	if (!c.capture || round->capturing)
		return;
	park_actors(round);
	op_begin(thread, OP_CAPTURE, NULL, 0, 0, 0);
	choose_areas(round);
	if (c.moment.count) {
		uint64_t fail_at = one_in(&round->rng, 10) ? between(&round->rng, 1, 100) : 0;

		r = (int)must(start(round));
		atomic_store(&c.fail_at, fail_at);
		atomic_store(&round->capturing, 1);
		set_work(false);
	}
	op_end(thread, r);
	unpark_actors(round);
}

/* ---- the end ---- */

/* Each page came once, or, where the capture did not come to its end, once at most. */
static void check_times(bool all)
{
	for (unsigned int i = 0; all && i < c.moment.count; i++)
		for (uint32_t page = 0; page < c.moment.pages[i]; page++)
			if (c.times[i][page] != 1)
				fail(c.moment.area[i], page, "area %d page %u was not captured",
				     c.moment.area[i]->index, page);
}

static void check_stats(bool all)
{
	struct kvmem_capture_stats s = KVMEM_CAPTURE_STATS_INIT;
	uint64_t bytes = 0, times = 0;

	must(kvmem_capture_get_stats(c.capture, &s));
	for (unsigned int i = 0; i < c.moment.count; i++) {
		bytes += (uint64_t)c.moment.pages[i] * PAGE;
		for (uint32_t page = 0; page < c.moment.pages[i]; page++)
			times += c.times[i][page];
	}
	if (s.bytes != bytes || (all && s.bytes_left) || bytes - s.bytes_left != times * PAGE)
		fail(NULL, -1,
		     "a capture of %llu bytes: %llu in its statistics, %llu left, %llu came",
		     (unsigned long long)bytes, (unsigned long long)s.bytes,
		     (unsigned long long)s.bytes_left, (unsigned long long)times * PAGE);
}

static void end_capture(int fetched)
{
	int r = kvmem_capture_stop(c.capture);

	if (r == -ENOSPC ? !c.fail_at : r == -ECANCELED ? !c.cancel_at : r < 0)
		must(r);
	if (fetched < 0 && fetched != r)
		fail(NULL, -1, "fetching ended with %d, and the capture with %d", fetched, r);
	check_times(!r);
	check_stats(!r);
}

void capture_end(struct round *round, struct thread *thread)
{
	int fetched;

	if (!round->capturing)
		return;
	fetched = wait_work();
	op_begin(thread, OP_CAPTURE, NULL, 0, 0, 1);
#ifdef TORTURE_IMAGES
	if (c.into_image)
		image_capture_end(&c.moment, fetched);
	else
		end_capture(fetched);
#else
	end_capture(fetched);
#endif
	atomic_store(&round->capturing, 0);
	forget_moment();
	op_end(thread, fetched);
}

void capture_check_refusals(struct round *round)
{
	bool paged = false;

	for (unsigned int i = 0; i < c.moment.count && round->capturing; i++)
		paged |= c.moment.area[i]->paged != PAGED_NO;
	/* An image's capture ends in the thread that fetches. */
	if (!paged || c.into_image)
		return;
	if (kvmem_pager_stop(round->pager, KVMEM_STOP_FILL) != -EBUSY)
		fail(NULL, -1, "a pager can be stopped under a capture of its regions");
	if (kvmem_region_free(c.moment.region[0]) != -EBUSY)
		fail(NULL, -1, "a region can be freed while it is captured");
}
