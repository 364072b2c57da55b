// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A capture beside a pager that has the region: what it had not filled is its source's, all else is as it was. */
#include "capture_rig.h"

#define BYTES (12 * MIB)

struct paged {
	struct rig r;
	struct kvmem_pager *pager;
	struct kvmem_source *source;
	uint8_t *content;
	bool own_threads; /* of the test: NO_THREADS */
	_Atomic bool stop;
	pthread_t handler;
};

static const enum kind kinds[] = { ANON, MEMFD, HUGETLB };

/* A pager is of one thread at a time: who stops and starts it keeps this one out. */
static pthread_mutex_t handling = PTHREAD_MUTEX_INITIALIZER;

static void *handle(void *arg)
{
	struct paged *p = arg;
	int n;

	while (!atomic_load(&p->stop)) {
		pthread_mutex_lock(&handling);
		n = kvmem_pager_handle(p->pager);
		pthread_mutex_unlock(&handling);
		if (!n)
			nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
	}
	return NULL;
}

/* False: the test is over, for want of huge pages or userfaultfd. */
static bool open_paged(struct paged *p, enum kind kind, uint32_t flags, bool keep)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	unsigned long long seed = 9;
	int err;

	memset(p, 0, sizeof(*p));
	if (!rig_open(&p->r, kind, BYTES)) {
		harness_note("%s: no huge pages", kind_names[kind]);
		return false;
	}
	if (!rig_capture(&p->r)) {
		harness_note("%s", kvmem_error_detail());
		rig_close(&p->r);
		return false;
	}
	p->content = malloc(BYTES);
	ck_assert_ptr_nonnull(p->content);
	fill_random(p->content, BYTES, &seed);
	if (!keep) {
		memcpy(p->r.model, p->content, BYTES);
		p->r.source = p->content;
	}
	if (keep && kind == MEMFD) /* in the file still, and not mapped */
		ck_assert_int_eq(madvise(p->r.base, BYTES, MADV_DONTNEED), 0);
	o.flags = flags;
	err = kvmem_pager_create(&o, &p->pager);
	ck_assert_msg(!err, "%s", kvmem_error_detail());
	ck_ok(kvmem_source_memory(p->content, BYTES, &p->source));
	ck_ok(kvmem_pager_add(p->pager, p->r.region, p->source, 0,
			      keep ? KVMEM_FILL_KEEP : KVMEM_FILL_OVERWRITE));
	for (uint64_t at = 0; keep && at < BYTES; at += PAGE) {
		struct kvmem_run run;
		uint32_t state;

		ck_ok(kvmem_region_next_run(p->r.region, at, &run, &state));
		if (state == KVMEM_PAGE_ABSENT)
			memcpy(p->r.model + at, p->content + at, PAGE);
	}
	p->r.source = p->content;
	ck_ok(kvmem_pager_start(p->pager));
	if (flags & KVMEM_PAGER_NO_THREADS) {
		p->own_threads = true;
		ck_assert_int_eq(pthread_create(&p->handler, NULL, handle, p), 0);
	}
	if (kvmem_capture_check(p->r.capture, p->r.region) != -EOPNOTSUPP)
		return true;
	harness_note("%s: %s", kind_names[kind], kvmem_error_detail());
	return true;
}

static void close_paged(struct paged *p)
{
	if (p->own_threads) {
		ck_ok(kvmem_pager_stop(p->pager, KVMEM_STOP_HAND_BACK));
		atomic_store(&p->stop, true);
		pthread_join(p->handler, NULL);
	} else {
		ck_ok(kvmem_pager_stop(p->pager, KVMEM_STOP_FILL));
		ck_assert(!memcmp(p->r.base, p->r.model, BYTES));
	}
	ck_ok(kvmem_pager_free(p->pager));
	rig_close(&p->r);
	ck_ok(kvmem_source_free(p->source));
	free(p->content);
}

static bool can(struct paged *p)
{
	return kvmem_capture_check(p->r.capture, p->r.region) != -EOPNOTSUPP;
}

static bool no_userfaultfd(void)
{
	struct kvmem_pager *pager;
	int err = kvmem_pager_create(NULL, &pager);

	if (!err)
		kvmem_pager_free(pager);
	return err == -EPERM || err == -ENOSYS || err == -EOPNOTSUPP;
}

/* ---- beside each other ---- */

static void rounds(struct paged *p, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		writers_go_on(&p->r);
		ck_ok(rig_start(&p->r));
		ck_ok(rig_drain(&p->r, HUGE));
		ck_ok(kvmem_capture_stop(p->r.capture));
		rig_check(&p->r);
	}
	rig_check_stats(&p->r);
}

static void beside(enum kind kind, uint32_t flags, bool keep)
{
	static struct paged p; /* writers outlive a test that fails */

	if (!open_paged(&p, kind, KVMEM_PAGER_CAPTURE | flags, keep))
		return;
	if (can(&p)) {
		writers_start(&p.r);
		rounds(&p, 3);
		writers_go_on(&p.r);
		writers_stop(&p.r);
	}
	close_paged(&p);
}

static void each_kind(void (*fn)(enum kind kind, uint32_t flags, bool keep), uint32_t flags,
		      bool keep)
{
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		fn(kinds[i], flags, keep);
	}
}

TEST(a_pager_fills_on_demand_while_it_is_captured)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	each_kind(beside, 0, false);
}
END

TEST(a_pager_fills_in_the_background_while_it_is_captured)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	each_kind(beside, KVMEM_PAGER_BACKGROUND, false);
}
END

/* Present, in the file, and not mapped: what maps them takes their protection away, so they are handed out first. */
TEST(pages_that_are_present_and_not_mapped)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	each_kind(beside, 0, true);
	each_kind(beside, KVMEM_PAGER_BACKGROUND, true);
}
END

TEST(a_pager_without_threads_hands_out_in_its_callers_loop)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	each_kind(beside, KVMEM_PAGER_NO_THREADS, false);
}
END

TEST(mapping_alone_hands_out_before_it_maps)
{
	static struct paged p; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	if (!open_paged(&p, MEMFD, KVMEM_PAGER_CAPTURE, true))
		return;
	if (can(&p)) {
		struct kvmem_capture_stats s = KVMEM_CAPTURE_STATS_INIT;
		uint8_t sum = 0;

		/* Not a page has been touched since the pager has the region: no write meets protection. */
		ck_ok(rig_start(&p.r));
		for (uint64_t at = 0; at < BYTES; at += PAGE)
			sum ^= *(volatile uint8_t *)(p.r.base + at);
		for (uint64_t at = 0; at < BYTES; at += PAGE)
			both(&p.r, at + 40, at + sum);
		ck_ok(rig_drain(&p.r, HUGE));
		ck_ok(kvmem_capture_stop(p.r.capture));
		rig_check(&p.r);
		rig_check_stats(&p.r);
		ck_ok(kvmem_capture_get_stats(p.r.capture, &s));
		ck_assert_uint_eq(s.writers, 0);
		ck_assert_uint_gt(s.bytes_written, BYTES / 2);
		ck_assert_uint_gt(s.bytes_absent, BYTES / 4);
	}
	close_paged(&p);
}
END

/* ---- what is refused ---- */

TEST(a_pager_that_cannot_and_one_that_is_needed)
{
	static struct paged p; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	if (!open_paged(&p, MEMFD, 0, false))
		return;
	ck_fails(rig_start(&p.r), EOPNOTSUPP, "KVMEM_PAGER_CAPTURE");
	ck_fails(kvmem_capture_check(p.r.capture, p.r.region), EOPNOTSUPP, "KVMEM_PAGER_CAPTURE");
	close_paged(&p);

	if (!open_paged(&p, MEMFD, KVMEM_PAGER_CAPTURE, false))
		return;
	if (can(&p)) {
		writers_start(&p.r);
		writers_go_on(&p.r);
		ck_ok(rig_start(&p.r));
		ck_fails(kvmem_pager_stop(p.pager, KVMEM_STOP_FILL), EBUSY, "capture");
		ck_fails(kvmem_pager_remove(p.pager, p.r.region, KVMEM_STOP_FILL), EBUSY,
			 "capture");
		ck_fails(kvmem_region_free(p.r.region), EBUSY, "capture");
		writers_go_on(&p.r);
		/* Handed back, another thread reads the events; started, the pager's own again. */
		ck_ok(kvmem_pager_stop(p.pager, KVMEM_STOP_HAND_BACK));
		ck_fails(kvmem_pager_free(p.pager), EBUSY, "capture");
		ck_ok(kvmem_pager_start(p.pager));
		writers_go_on(&p.r);
		ck_ok(rig_drain(&p.r, HUGE));
		ck_ok(kvmem_capture_stop(p.r.capture));
		rig_check(&p.r);
		writers_stop(&p.r);
	}
	close_paged(&p);
}
END

TEST(a_pager_that_is_handed_back_answers_writes)
{
	static struct paged p; /* writers outlive a test that fails */

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	if (!open_paged(&p, ANON, KVMEM_PAGER_CAPTURE, false))
		return;
	if (can(&p)) {
		for (uint64_t at = 0; at < BYTES / 2; at += PAGE)
			both(&p.r, at, at + 1);
		ck_ok(kvmem_pager_stop(p.pager, KVMEM_STOP_HAND_BACK));
		ck_ok(rig_start(&p.r));
		for (uint64_t at = 0; at < BYTES / 2; at += PAGE)
			both(&p.r, at, at + 2);
		ck_ok(rig_drain(&p.r, PAGE));
		ck_ok(kvmem_capture_stop(p.r.capture));
		rig_check(&p.r);
		ck_ok(kvmem_pager_start(p.pager));
	}
	close_paged(&p);

	if (!open_paged(&p, ANON, KVMEM_PAGER_CAPTURE | KVMEM_PAGER_NO_THREADS, false))
		return;
	pthread_mutex_lock(&handling);
	ck_ok(kvmem_pager_stop(p.pager, KVMEM_STOP_HAND_BACK));
	if (can(&p))
		ck_fails(rig_start(&p.r), EBUSY, "kvmem_pager_start");
	ck_ok(kvmem_pager_start(p.pager));
	pthread_mutex_unlock(&handling);
	if (can(&p)) {
		ck_ok(rig_start(&p.r));
		ck_fails(kvmem_pager_stop(p.pager, KVMEM_STOP_HAND_BACK), EBUSY, "capture");
		ck_assert_int_eq(kvmem_capture_stop(p.r.capture), -ECANCELED);
	}
	close_paged(&p);
}
END

/* ---- taken away ---- */

static void discards(enum kind kind, uint32_t flags, bool keep)
{
	static struct paged p; /* writers outlive a test that fails */
	uint64_t step;

	(void)keep;
	if (!open_paged(&p, kind, KVMEM_PAGER_CAPTURE | flags, false))
		return;
	step = 4 * p.r.page;
	if (can(&p)) {
		for (uint64_t at = 0; at < BYTES / 2; at += PAGE)
			both(&p.r, at, at + 3);
		ck_ok(rig_start(&p.r));
		for (uint64_t at = 0; at + step <= BYTES; at += 2 * step) {
			ck_ok(kvmem_region_discard(p.r.region, at, step));
			memset(p.r.model + at, 0, step);
		}
		ck_ok(kvmem_region_mark_absent(p.r.region, 5 * p.r.page, p.r.page, 0));
		memcpy(p.r.model + 5 * p.r.page, p.content + 5 * p.r.page, p.r.page);
		ck_ok(rig_drain(&p.r, HUGE));
		ck_ok(kvmem_capture_stop(p.r.capture));
		rig_check(&p.r);
		rig_check_stats(&p.r);
	}
	close_paged(&p);
}

TEST(what_a_balloon_takes_away_is_handed_out_first)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	each_kind(discards, 0, false);
}
END

struct held {
	_Atomic bool reading, go;
	const uint8_t *content;
};

static int held_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct held *h = arg;

	atomic_store(&h->reading, true);
	while (!atomic_load(&h->go))
		nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
	memcpy(buf, h->content + offset, bytes);
	return 0;
}

static bool is_reading(void *arg)
{
	return atomic_load(&((struct held *)arg)->reading);
}

/* A page is being filled when it is taken away: it is zero from then on, and never what the source has. */
static void taken_away_while_filled(enum kind kind)
{
	const struct kvmem_range first = { 0, 8 * PAGE };
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	static struct held held; /* its reader outlives a test that fails */
	struct kvmem_stored stored;
	static struct paged p; /* writers outlive a test that fails */

	memset(&p, 0, sizeof(p));
	ck_assert(rig_open(&p.r, kind, MIB));
	ck_assert(rig_capture(&p.r));
	p.content = malloc(MIB);
	ck_assert_ptr_nonnull(p.content);
	memset(p.content, 0x5c, MIB);
	held.content = p.r.source = p.content;
	atomic_store(&held.reading, false);
	atomic_store(&held.go, false);
	o.flags = KVMEM_PAGER_CAPTURE;
	ops.read = held_read;
	ck_ok(kvmem_source_callback(&ops, &held, MIB, &p.source));
	ck_ok(kvmem_pager_create(&o, &p.pager));
	ck_ok(kvmem_pager_add(p.pager, p.r.region, p.source, 0, KVMEM_FILL_OVERWRITE));
	ck_ok(kvmem_pager_start(p.pager));
	memcpy(p.r.model, p.content, MIB);
	ck_ok(kvmem_pager_prefetch(p.pager, p.r.region, &first, 1, NULL, NULL));
	ck_assert(harness_wait(is_reading, &held, 60));
	ck_assert_int_eq(madvise(p.r.base, 4 * PAGE, MADV_DONTNEED), 0);
	memset(p.r.model, 0, 4 * PAGE);
	ck_assert_int_eq(kvmem_region_stored(p.r.region, 0, 4 * PAGE, &stored, 1), 1);
	ck_assert_uint_eq(stored.kind, KVMEM_STORED_ZERO);
	ck_assert_int_eq(kvmem_region_stored(p.r.region, 4 * PAGE, 4 * PAGE, &stored, 1), 1);
	ck_assert_uint_eq(stored.kind, KVMEM_STORED_ABSENT);
	if (can(&p)) {
		ck_ok(rig_start(&p.r));
		ck_ok(rig_drain(&p.r, HUGE));
		ck_ok(kvmem_capture_stop(p.r.capture));
		rig_check(&p.r);
	}
	atomic_store(&held.go, true);
	ck_ok(kvmem_pager_stop(p.pager, KVMEM_STOP_FILL));
	ck_assert(!memcmp(p.r.base, p.r.model, MIB));
	ck_ok(kvmem_pager_free(p.pager));
	rig_close(&p.r);
	ck_ok(kvmem_source_free(p.source));
	free(p.content);
}

/* Given back, and written to again while no pager had it: the record of that time does not know of the write. */
static void written_before_the_pager(enum kind kind)
{
	static struct paged p; /* writers outlive a test that fails */
	struct kvmem_stored stored;

	memset(&p, 0, sizeof(p));
	if (!rig_open(&p.r, kind, BYTES)) {
		harness_note("%s: no huge pages", kind_names[kind]);
		return;
	}
	ck_assert(rig_capture(&p.r));
	ck_ok(kvmem_region_discard(p.r.region, 0, BYTES));
	memset(p.r.model, 0, BYTES);
	for (uint64_t at = 0; at < BYTES; at += 3 * p.r.page)
		both(&p.r, at, at + 1);
	ck_ok(kvmem_source_memory(p.r.model, BYTES, &p.source));
	ck_ok(kvmem_pager_create(
		&(struct kvmem_pager_opts){ .size = sizeof(struct kvmem_pager_opts),
					    .flags = KVMEM_PAGER_CAPTURE },
		&p.pager));
	ck_ok(kvmem_pager_add(p.pager, p.r.region, p.source, 0, 0));
	ck_ok(kvmem_pager_start(p.pager));
	ck_assert_int_ge(kvmem_region_stored(p.r.region, 0, p.r.page, &stored, 1), 1);
	ck_assert_uint_eq(stored.kind, KVMEM_STORED_DATA);
	if (can(&p)) {
		ck_ok(rig_start(&p.r));
		both(&p.r, 0, 7);
		ck_ok(rig_drain(&p.r, HUGE));
		ck_ok(kvmem_capture_stop(p.r.capture));
		rig_check(&p.r);
	}
	ck_ok(kvmem_pager_stop(p.pager, KVMEM_STOP_FILL));
	ck_assert(!memcmp(p.r.base, p.r.model, BYTES));
	ck_ok(kvmem_pager_free(p.pager));
	rig_close(&p.r);
	ck_ok(kvmem_source_free(p.source));
}

TEST(what_was_written_before_the_pager_came_is_captured)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		written_before_the_pager(kinds[i]);
}
END

TEST(what_is_taken_away_while_it_is_filled_is_zero)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	taken_away_while_filled(ANON);
	taken_away_while_filled(MEMFD);
}
END

/*
 * Many pages are placed by one call, and entered in the record when it returns: the first of them can be written before
 * that. It is written, and captured at once.
 */
static void written_while_placed(enum kind kind)
{
	static struct paged p; /* writers outlive a test that fails */
	const uint64_t part = 128 * PAGE;

	if (!open_paged(&p, kind, KVMEM_PAGER_CAPTURE, false))
		return;
	for (uint64_t at = 0; can(&p) && at + part <= BYTES; at += part) {
		const struct kvmem_range range = { at, part };
		unsigned char there = 0;

		memcpy(p.r.model + at, &at, sizeof(at));
		memcpy(p.r.want, p.r.model, BYTES);
		for (uint64_t i = 0; i < BYTES / PAGE; i++) {
			atomic_store(&p.r.times[i], 0);
			atomic_store(&p.r.absent[i], 0);
		}
		ck_ok(kvmem_pager_prefetch(p.pager, p.r.region, &range, 1, NULL, NULL));
		while (!(there & 1))
			ck_assert_int_eq(mincore(p.r.base + at, PAGE, &there), 0);
		memcpy(p.r.base + at, &at, sizeof(at));
		ck_ok(kvmem_capture_start(p.r.capture, &p.r.region, 1));
		ck_ok(rig_drain(&p.r, HUGE));
		ck_ok(kvmem_capture_stop(p.r.capture));
		rig_check(&p.r);
	}
	close_paged(&p);
}

TEST(what_is_written_while_it_is_placed_is_captured)
{
	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	written_while_placed(ANON);
	written_while_placed(MEMFD);
}
END

/* ---- a source in memory that has a pager of its own ---- */

static _Atomic bool started;
static _Atomic unsigned int reads;

static bool has_started(void *arg)
{
	(void)arg;
	return atomic_load(&started);
}

static bool is_read(void *arg)
{
	(void)arg;
	return atomic_load(&reads);
}

/* What a pager waits for does not come before the capture has begun. */
static int after_start(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	(void)offset;
	atomic_fetch_add(&reads, 1);
	if (!harness_wait(has_started, NULL, 60))
		return -EIO;
	memset(buf, 5, bytes);
	return 0;
}

static struct kvmem_region *anonymous(void)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *r;

	o.bytes = MIB;
	o.backing = KVMEM_BACKING_ANONYMOUS;
	o.wants = KVMEM_WANT_PAGING;
	ck_ok(kvmem_region_create(NULL, &o, &r));
	return r;
}

static struct kvmem_pager *pager_of(struct kvmem_region *r, struct kvmem_source *s, uint32_t flags)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_pager *pager;

	o.flags = flags;
	ck_ok(kvmem_pager_create(&o, &pager));
	ck_ok(kvmem_pager_add(pager, r, s, 0, 0));
	ck_ok(kvmem_pager_start(pager));
	return pager;
}

/* It answers with an error when nobody waits any more. */
static int no_page(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	(void)arg;
	(void)run;
	return content ? 0 : -EIO;
}

TEST(the_pause_does_not_wait_for_a_source_in_memory)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_source *slow, *memory;
	struct kvmem_pager *below, *above;
	struct kvmem_region *r[2];
	struct kvmem_capture *c;

	SKIP_IF(no_userfaultfd(), "uffd", "%s", kvmem_error_detail());
	atomic_store(&started, false);
	r[0] = anonymous();
	r[1] = anonymous();
	ops.read = after_start;
	ck_ok(kvmem_source_callback(&ops, NULL, MIB, &slow));
	below = pager_of(r[0], slow, 0);
	ck_ok(kvmem_source_memory(kvmem_region_base(r[0]), MIB, &memory));
	o.before_write = no_page;
	ck_ok(kvmem_capture_create(&o, &c));
	above = pager_of(r[1], memory, KVMEM_PAGER_BACKGROUND | KVMEM_PAGER_CAPTURE);
	ck_assert(harness_wait(is_read, NULL, 60));
	ck_ok(kvmem_capture_start(c, &r[1], 1));
	atomic_store(&started, true);
	ck_assert_int_eq(kvmem_capture_stop(c), -ECANCELED);
	ck_ok(kvmem_pager_stop(above, KVMEM_STOP_FILL));
	ck_assert_uint_eq(*((uint8_t *)kvmem_region_base(r[1]) + MIB - 1), 5);
	ck_ok(kvmem_pager_stop(below, KVMEM_STOP_FILL));
	ck_ok(kvmem_pager_free(above));
	ck_ok(kvmem_pager_free(below));
	ck_ok(kvmem_capture_free(c));
	for (unsigned int i = 0; i < 2; i++)
		ck_ok(kvmem_region_free(r[i]));
	ck_ok(kvmem_source_free(memory));
	ck_ok(kvmem_source_free(slow));
}
END

CAPTURE_MAIN(T(a_pager_fills_on_demand_while_it_is_captured),
	     T(a_pager_fills_in_the_background_while_it_is_captured),
	     T(pages_that_are_present_and_not_mapped),
	     T(a_pager_without_threads_hands_out_in_its_callers_loop),
	     T(mapping_alone_hands_out_before_it_maps),
	     T(a_pager_that_cannot_and_one_that_is_needed),
	     T(a_pager_that_is_handed_back_answers_writes),
	     T(what_a_balloon_takes_away_is_handed_out_first),
	     T(what_was_written_before_the_pager_came_is_captured),
	     T(what_is_written_while_it_is_placed_is_captured),
	     T(what_is_taken_away_while_it_is_filled_is_zero),
	     T(the_pause_does_not_wait_for_a_source_in_memory))
