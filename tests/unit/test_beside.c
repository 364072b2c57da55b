// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Calls beside others, over userfaultfds that are played: one thread is held where another one comes, so that what
 * happens in a moment of a race happens each time.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/uapi/userfaultfd.h"
#include "capture/capture_internal.h"
#include "fake_sys.h"
#include "pager/pager_internal.h"

#define PAGE   4096ull
#define PAGES  64ull
#define BYTES  (PAGES * PAGE)
#define MOST   20u /* pagers */
#define HOLD_S 5u  /* so long a thread is held for what ought to come */

/* A userfaultfd of one pager, its only one. */
struct played {
	int fd;
	struct uffd_msg msg; /* that waits to be read, where `waits` */
	_Atomic bool waits;
	_Atomic unsigned int reads; /* that have found nothing since it was read */
	_Atomic bool again;	    /* its next placing ioctl says EAGAIN */
};

static struct {
	struct played uffds[MOST];
	unsigned int uffd_count;
	struct kvmem_region *a, *b;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	uint8_t content[2 * BYTES];
	/* Called once, where the name says, by the thread that comes there. */
	void (*in_read)(struct played *u);
	void (*in_register)(struct played *u, const struct uffdio_register *reg);
	void (*in_punch)(void);
	void (*in_source)(uint64_t offset);
	void (*in_complete)(void);
	_Atomic uint64_t woken; /* an address that has been woken */
	uint64_t look_for;
	_Atomic bool inside, goes_on, too_early;
	unsigned int completed, completed_early;
} k;

/* ---- the played kernel ---- */

static bool is_set(void *arg)
{
	return atomic_load((_Atomic bool *)arg);
}

static struct played *played(int fd)
{
	for (unsigned int i = 0; i < k.uffd_count; i++)
		if (k.uffds[i].fd == fd)
			return &k.uffds[i];
	return NULL;
}

/* Every second descriptor is the duplicate, which has no events. */
static int64_t play_userfaultfd(int flags)
{
	int fd = (int)km_real_open("/dev/null", O_RDWR);

	(void)flags;
	if (k.uffd_count < MOST)
		k.uffds[k.uffd_count++].fd = fd;
	return fd;
}

static int64_t play_open(const char *path, int flags)
{
	return strcmp(path, "/dev/userfaultfd") ? km_real_open(path, flags) : -ENOENT;
}

static int64_t play_epoll_ctl(int ep, int op, int fd, struct epoll_event *ev)
{
	(void)ep;
	(void)op;
	(void)fd;
	(void)ev;
	return 0;
}

static int64_t play_epoll_wait(int ep, struct epoll_event *ev, int max, int timeout_ms)
{
	(void)ep;
	(void)ev;
	(void)max;
	(void)timeout_ms;
	km_real_poll(NULL, 0, 1);
	return 0;
}

static int64_t play_read(int fd, void *buf, size_t len)
{
	void (*fn)(struct played * u) = k.in_read;
	struct played *u = played(fd);

	if (!u || len < sizeof(u->msg))
		return len == sizeof(uint64_t) ? km_real_read(fd, buf, len) : -EAGAIN;
	if (fn) {
		k.in_read = NULL;
		fn(u);
	}
	if (!atomic_load(&u->waits)) {
		atomic_fetch_add(&u->reads, 1);
		return -EAGAIN;
	}
	memcpy(buf, &u->msg, sizeof(u->msg));
	atomic_store(&u->reads, 0);
	atomic_store(&u->waits, false);
	return sizeof(u->msg);
}

static int64_t answer(struct played *u, int64_t bytes, __s64 *result)
{
	bool again = u && atomic_exchange(&u->again, false);

	*result = again ? 0 : bytes;
	return again ? -EAGAIN : 0;
}

static int64_t play_register(struct played *u, struct uffdio_register *reg)
{
	void (*fn)(struct played *, const struct uffdio_register *) = k.in_register;

	reg->ioctls = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_CONTINUE | 1ull << _UFFDIO_WAKE |
		      1ull << _UFFDIO_WRITEPROTECT;
	k.in_register = NULL;
	if (fn)
		fn(u, reg);
	return 0;
}

static int64_t play_ioctl(int fd, unsigned long request, void *arg)
{
	struct uffdio_continue *cont = arg;
	struct uffdio_range *range = arg;
	struct uffdio_copy *copy = arg;
	__s64 none;

	switch (request) {
	case UFFDIO_REGISTER:
		return play_register(played(fd), arg);
	case UFFDIO_CONTINUE:
		return answer(played(fd), (int64_t)cont->range.len, &cont->mapped);
	case UFFDIO_COPY:
		return answer(played(fd), (int64_t)copy->len, &copy->copy);
	case UFFDIO_WRITEPROTECT:
		return answer(played(fd), 1, &none);
	case UFFDIO_WAKE:
		if (k.look_for - range->start < range->len)
			atomic_store(&k.woken, k.look_for);
		return 0;
	case UFFDIO_API:
	case UFFDIO_UNREGISTER:
		return 0;
	default:
		return km_real_ioctl(fd, request, arg);
	}
}

static int64_t play_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
	void (*fn)(void) = k.in_punch;

	if (fn && mode & FALLOC_FL_PUNCH_HOLE) {
		k.in_punch = NULL;
		fn();
	}
	return km_real_fallocate(fd, mode, offset, bytes);
}

static void begin(void)
{
	fake_reset();
	memset(&k, 0, sizeof(k));
	memset(k.content, 0x5a, sizeof(k.content));
}

/* When the regions have been made, by the kernel that there is. */
static void play(void)
{
	fake.userfaultfd = play_userfaultfd;
	fake.open = play_open;
	fake.epoll_ctl = play_epoll_ctl;
	fake.epoll_wait = play_epoll_wait;
	fake.read = play_read;
	fake.ioctl = play_ioctl;
	fake.fallocate = play_fallocate;
}

/* ---- regions and pagers ---- */

static struct kvmem_region *make_region(void)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *r;

	o.bytes = BYTES;
	o.backing = KVMEM_BACKING_MEMFD;
	ck_assert_int_eq(kvmem_region_create(NULL, &o, &r), 0);
	return r;
}

static void on_complete(void *arg)
{
	struct kvmem_run run;

	(void)arg;
	k.completed++;
	if (k.a && kvmem_region_next_missing(k.a, 0, &run))
		k.completed_early++;
	if (k.in_complete)
		k.in_complete();
}

static struct kvmem_pager *make_pager(uint32_t flags)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_pager *pager;

	o.flags = flags;
	o.complete = on_complete;
	o.fault_around = PAGE;
	o.shards = 1;
	ck_assert_int_eq(kvmem_pager_create(&o, &pager), 0);
	return pager;
}

/* Events of removals are read, although the pager has no threads that do it all the time. */
static void see_removals(struct kvmem_pager *pager)
{
	pager->set.sees_removals = true;
	pager->set.all[0].sees_removals = true;
}

static void populate(struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.bytes = bytes;
	ck_assert_int_eq(kvmem_populate(r, offset, k.source, &o, NULL), 0);
}

static void tear_down(void)
{
	ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	ck_assert_int_eq(kvmem_region_free(k.a), 0);
	ck_assert_int_eq(kvmem_region_free(k.b), 0);
	ck_assert_int_eq(kvmem_source_free(k.source), 0);
	ck_assert_int_eq(fake.allocs, 0);
	fake_reset();
}

/* ---- a region is removed ---- */

/* Inside the gate, and maybe at that region in the list. */
static void hold_reader(struct played *u)
{
	(void)u;
	atomic_store(&k.inside, true);
	/* A second is as good as for ever: who removes has nothing else to do. */
	if (harness_wait(is_set, &k.goes_on, 1))
		atomic_store(&k.too_early, true);
}

static void *put_a_page(void *arg)
{
	(void)arg;
	if (kvmem_pager_put(k.pager, k.a, 0, k.content, PAGE) != (int64_t)PAGE)
		abort();
	return NULL;
}

TEST(a_region_is_removed_while_who_fills_another_reads_events)
{
	pthread_t other;

	begin();
	k.a = make_region();
	k.b = make_region();
	ck_assert_int_eq(kvmem_source_memory(k.content, BYTES, &k.source), 0);
	play();
	k.pager = make_pager(KVMEM_PAGER_NO_THREADS);
	see_removals(k.pager);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.b, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.a, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
	atomic_store(&k.uffds[0].again, true);
	k.in_read = hold_reader;
	ck_assert_int_eq(pthread_create(&other, NULL, put_a_page, NULL), 0);
	ck_assert(harness_wait(is_set, &k.inside, HOLD_S));
	ck_assert_int_eq(kvmem_pager_remove(k.pager, k.b, KVMEM_STOP_HAND_BACK), 0);
	atomic_store(&k.goes_on, true);
	pthread_join(other, NULL);
	ck_assert(!k.too_early);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_HAND_BACK), 0);
	tear_down();
}
END

/* ---- a region is added ---- */

static bool is_served(void *arg)
{
	struct played *u = arg;

	return !atomic_load(&u->waits) && atomic_load(&u->reads);
}

/* The thread that keeps house reads a fault of it before the table has the region. */
static void fault_early(struct played *u, const struct uffdio_register *reg)
{
	u->msg = (struct uffd_msg){
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault = { .address = reg->range.start + 3 * PAGE,
				   .flags = UFFD_PAGEFAULT_FLAG_MINOR },
	};
	atomic_store(&u->reads, 0);
	atomic_store(&u->waits, true);
	if (!harness_wait(is_served, u, HOLD_S))
		abort();
	atomic_store(&k.woken, 0);
	k.look_for = reg->range.start + 3 * PAGE;
}

TEST(a_region_that_is_added_before_the_start_has_a_fault)
{
	begin();
	k.a = make_region();
	k.b = make_region();
	ck_assert_int_eq(kvmem_source_memory(k.content, BYTES, &k.source), 0);
	populate(k.b, 0, 8 * PAGE); /* whose threads need nobody else's answer than a mapping */
	play();
	k.pager = make_pager(0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.a, k.source, 0, 0), 0);
	k.in_register = fault_early;
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.b, k.source, 0, 0), 0);
	ck_assert_uint_eq(k.woken, k.look_for);
	tear_down();
}
END

/* ---- pages become absent beside a stop that fills ---- */

static int read_source(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	void (*fn)(uint64_t) = k.in_source;

	(void)arg;
	if (fn)
		fn(offset);
	memcpy(buf, k.content + offset, bytes);
	return 0;
}

static void open_two(int (*read)(void *, uint64_t, void *, uint64_t))
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	begin();
	k.a = make_region();
	k.b = make_region();
	ops.read = read;
	ck_assert_int_eq(kvmem_source_callback(&ops, NULL, 2 * BYTES, &k.source), 0);
	play();
	k.pager = make_pager(KVMEM_PAGER_NO_THREADS | KVMEM_PAGER_CAPTURE);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.a, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.b, k.source, BYTES, 0), 0);
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
}

static void expect_all_filled(struct kvmem_region *r)
{
	for (uint64_t page = 0; page < PAGES; page++)
		ck_assert_int_eq(km_presence_get(&r->presence, page), KM_PRESENT);
}

/* The first region has been filled when the second one's pages are read. */
static void mark_first(uint64_t offset)
{
	if (offset < BYTES)
		return;
	k.in_source = NULL;
	if (kvmem_region_mark_absent(k.a, 7 * PAGE, PAGE, 0))
		abort();
}

TEST(a_page_becomes_absent_while_a_stop_fills_the_rest)
{
	open_two(read_source);
	k.in_source = mark_first;
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), 0);
	ck_assert_uint_eq(k.completed, 1);
	ck_assert_uint_eq(k.completed_early, 0);
	expect_all_filled(k.a);
	expect_all_filled(k.b);
	tear_down();
}
END

/* The callback is the second region's, whose last page has come. */
static void mark_other(void)
{
	k.in_complete = NULL;
	if (kvmem_region_mark_absent(k.a, 7 * PAGE, PAGE, 0))
		abort();
}

/* Nobody ever sees zeros, as the manual says: also when it is let go at once. */
TEST(a_page_becomes_absent_when_a_stop_has_filled_the_rest)
{
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;

	open_two(read_source);
	k.in_complete = mark_other;
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), 0);
	expect_all_filled(k.a);
	ck_assert_int_eq(kvmem_pager_get_stats(k.pager, &s), 0);
	ck_assert_uint_eq(s.pages_missing, 0);
	tear_down();
}
END

static void mark_when_done(void *arg, const struct kvmem_ticket_result *result)
{
	(void)arg;
	(void)result;
	mark_other();
}

/* The last callback of a stop: a list that nobody has dealt with is dropped. */
TEST(a_page_becomes_absent_when_the_threads_of_a_stop_have_ended)
{
	const struct kvmem_range range = { .offset = 0, .bytes = PAGE };
	struct kvmem_prefetch_opts o = KVMEM_PREFETCH_OPTS_INIT;
	struct kvmem_ticket *ticket;

	open_two(read_source);
	o.done = mark_when_done;
	ck_assert_int_eq(kvmem_pager_prefetch(k.pager, k.b, &range, 1, &o, &ticket), 0);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), 0);
	expect_all_filled(k.a);
	ck_assert_int_eq(kvmem_ticket_free(ticket), 0);
	tear_down();
}
END

/* What cannot be filled any more is told, and counted. */
static int read_lost(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	if (k.completed)
		return -EIO;
	memcpy(buf, k.content + offset, bytes);
	return 0;
}

TEST(a_page_becomes_absent_whose_source_has_gone)
{
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;

	open_two(read_lost);
	k.in_complete = mark_other;
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), -EIO);
	ck_assert_int_eq(kvmem_pager_get_stats(k.pager, &s), 0);
	ck_assert_uint_eq(s.pages_missing, 1);
	ck_assert_uint_eq(s.pages_poisoned, 1);
	tear_down();
}
END

/* ---- a capture ends ---- */

static int take_page(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	(void)arg;
	(void)run;
	(void)content;
	return 0;
}

static struct kvmem_capture *make_capture(void)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_capture *c;

	o.threads = 1;
	o.before_write = take_page;
	ck_assert_int_eq(kvmem_capture_create(&o, &c), 0);
	return c;
}

static void removal(struct played *u, struct kvmem_region *r, uint64_t page, uint64_t count)
{
	uint64_t at = (uintptr_t)r->base + page * PAGE;

	u->msg = (struct uffd_msg){ .event = UFFD_EVENT_REMOVE,
				    .arg.remove = { .start = at, .end = at + count * PAGE } };
	atomic_store(&u->waits, true);
}

static bool is_read(void *arg)
{
	return !atomic_load((_Atomic bool *)arg);
}

/* As the kernel: who takes pages out is held up until its event has been read. */
static void hold_remover(void)
{
	removal(&k.uffds[0], k.a, 8, 4);
	atomic_store(&k.inside, true);
	if (!harness_wait(is_read, &k.uffds[0].waits, HOLD_S))
		atomic_store(&k.too_early, true);
}

static void *discard(void *arg)
{
	(void)arg;
	if (kvmem_region_discard(k.a, 8 * PAGE, 4 * PAGE))
		abort();
	return NULL;
}

/* ... which is in the guard that the end of the capture waits for. */
TEST(a_capture_ends_while_a_discard_waits_for_its_event)
{
	struct kvmem_capture *c;
	pthread_t other;

	begin();
	k.a = make_region();
	ck_assert_int_eq(kvmem_source_memory(k.content, BYTES, &k.source), 0);
	populate(k.a, 0, BYTES);
	play();
	k.pager = make_pager(KVMEM_PAGER_NO_THREADS | KVMEM_PAGER_CAPTURE);
	see_removals(k.pager);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.a, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
	c = make_capture();
	ck_assert_int_eq(kvmem_capture_start(c, &k.a, 1), 0);
	k.in_punch = hold_remover;
	ck_assert_int_eq(pthread_create(&other, NULL, discard, NULL), 0);
	ck_assert(harness_wait(is_set, &k.inside, HOLD_S));
	ck_assert_int_eq(kvmem_capture_stop(c), -ECANCELED);
	pthread_join(other, NULL);
	ck_assert(!k.too_early);
	ck_assert_int_eq(kvmem_capture_free(c), 0);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_HAND_BACK), 0);
	tear_down();
}
END

/* Nor does the pause at its beginning wait for a worker that waits for its source. */
TEST(a_capture_starts_while_a_discard_waits_for_its_event)
{
	struct kvmem_capture *c;
	pthread_t other;

	begin();
	k.a = make_region();
	ck_assert_int_eq(kvmem_source_memory(k.content, BYTES, &k.source), 0);
	populate(k.a, 0, BYTES);
	play();
	k.pager = make_pager(KVMEM_PAGER_NO_THREADS | KVMEM_PAGER_CAPTURE);
	see_removals(k.pager);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.a, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
	c = make_capture();
	k.in_punch = hold_remover;
	ck_assert_int_eq(pthread_create(&other, NULL, discard, NULL), 0);
	ck_assert(harness_wait(is_set, &k.inside, HOLD_S));
	ck_assert_int_eq(kvmem_capture_start(c, &k.a, 1), 0);
	pthread_join(other, NULL);
	ck_assert(!k.too_early);
	ck_assert_int_eq(kvmem_capture_stop(c), -ECANCELED);
	ck_assert_int_eq(kvmem_capture_free(c), 0);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_HAND_BACK), 0);
	tear_down();
}
END

/* ---- a capture ends in a callback ---- */

static struct kvmem_capture *capture;
static pthread_t waiter;
static int (*takes_out)(void);
static int stopped;

static int discard_some(void)
{
	return kvmem_region_discard(k.a, 0, 8 * PAGE);
}

static int mark_some(void)
{
	return kvmem_region_mark_absent(k.a, 0, 8 * PAGE, 0);
}

static void *take_out(void *arg)
{
	(void)arg;
	if (takes_out())
		abort();
	return NULL;
}

static bool waits_for_claim(void *arg)
{
	(void)arg;
	return atomic_load(&k.a->presence.waiters) > 0;
}

/* The page is claimed, and who takes it out waits for that; the end of the capture must not wait for him. */
static void stop_in_read(uint64_t offset)
{
	(void)offset;
	k.in_source = NULL;
	if (pthread_create(&waiter, NULL, take_out, NULL) ||
	    !harness_wait(waits_for_claim, NULL, HOLD_S))
		abort();
	stopped = -EDEADLK;
	if (!atomic_load(&k.a->guard->users))
		stopped = kvmem_capture_stop(capture);
}

static void stop_beside(int (*fn)(void))
{
	open_two(read_source);
	takes_out = fn;
	capture = make_capture();
	ck_assert_int_eq(kvmem_capture_start(capture, &k.a, 1), 0);
	k.uffds[0].msg = (struct uffd_msg){
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault = { .address = (uintptr_t)k.a->base + 3 * PAGE },
	};
	atomic_store(&k.uffds[0].waits, true);
	k.in_source = stop_in_read;
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	pthread_join(waiter, NULL);
	ck_assert_int_eq(stopped, -ECANCELED);
	ck_assert_int_eq(kvmem_capture_free(capture), 0);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_HAND_BACK), 0);
	tear_down();
}

TEST(a_capture_ends_in_a_callback_whose_page_is_to_be_taken_out)
{
	stop_beside(discard_some);
	stop_beside(mark_some);
}
END

/* ---- a capture of many pagers' regions ---- */

static struct {
	struct kvmem_region *regions[MOST];
	struct kvmem_pager *pagers[MOST];
} many;

static void make_many(void)
{
	begin();
	ck_assert_int_eq(kvmem_source_memory(k.content, BYTES, &k.source), 0);
	for (unsigned int i = 0; i < MOST; i++) {
		many.regions[i] = make_region();
		populate(many.regions[i], 0, BYTES - PAGE);
	}
	play();
	for (unsigned int i = 0; i < MOST; i++) {
		many.pagers[i] = make_pager(KVMEM_PAGER_NO_THREADS | KVMEM_PAGER_CAPTURE);
		see_removals(many.pagers[i]);
		ck_assert_int_eq(kvmem_pager_add(many.pagers[i], many.regions[i], k.source, 0, 0),
				 0);
		ck_assert_int_eq(kvmem_pager_start(many.pagers[i]), 0);
	}
}

/* What is missing of each is removed, and told by an event that is read where the capture meets it. */
static void make_whole(void)
{
	for (unsigned int i = 0; i < MOST; i++) {
		removal(&k.uffds[i], many.regions[i], PAGES - 1, 1);
		atomic_store(&k.uffds[i].again, true);
	}
}

static void drop_many(struct kvmem_capture *c)
{
	ck_assert_int_eq(kvmem_capture_free(c), 0);
	for (unsigned int i = 0; i < MOST; i++) {
		ck_assert_int_eq(kvmem_pager_stop(many.pagers[i], KVMEM_STOP_HAND_BACK), 0);
		ck_assert_int_eq(kvmem_pager_free(many.pagers[i]), 0);
		ck_assert_int_eq(kvmem_region_free(many.regions[i]), 0);
	}
	ck_assert_int_eq(kvmem_source_free(k.source), 0);
	ck_assert_int_eq(fake.allocs, 0);
	fake_reset();
}

TEST(all_pagers_of_a_capture_are_told_when_it_starts)
{
	struct kvmem_capture *c;

	make_many();
	make_whole();
	c = make_capture();
	ck_assert_int_eq(kvmem_capture_start(c, many.regions, MOST), 0);
	ck_assert_uint_eq(k.completed, MOST);
	ck_assert_int_eq(kvmem_capture_stop(c), -ECANCELED);
	ck_assert_uint_eq(k.completed, MOST);
	drop_many(c);
}
END

TEST(all_pagers_of_a_capture_are_told_when_it_ends)
{
	struct kvmem_capture *c;

	make_many();
	c = make_capture();
	ck_assert_int_eq(kvmem_capture_start(c, many.regions, MOST), 0);
	make_whole();
	ck_assert_int_eq(kvmem_capture_stop(c), -ECANCELED);
	ck_assert_uint_eq(k.completed, MOST);
	drop_many(c);
}
END

static void *no_memory(size_t len)
{
	(void)len;
	return NULL;
}

/* Without memory for a list of them it is told by a later call. */
TEST(pagers_of_a_capture_are_told_later_for_want_of_memory)
{
	static uint8_t buf[BYTES];
	struct kvmem_capture_run run;
	struct kvmem_capture *c;

	make_many();
	c = make_capture();
	ck_assert_int_eq(kvmem_capture_start(c, many.regions, MOST), 0);
	make_whole();
	fake.alloc = no_memory;
	ck_assert_int_eq(kvmem_capture_next(c, buf, sizeof(buf), &run), 1);
	ck_assert_uint_eq(k.completed, 0);
	fake.alloc = NULL;
	for (unsigned int i = 1; i < MOST; i++)
		atomic_store(&k.uffds[i].again,
			     false); /* no more than the first has become whole */
	ck_assert_int_eq(kvmem_capture_next(c, buf, sizeof(buf), &run), 1);
	ck_assert_uint_eq(k.completed, 1);
	ck_assert_int_eq(kvmem_capture_stop(c), -ECANCELED);
	drop_many(c);
}
END

HARNESS_MAIN(T(a_region_is_removed_while_who_fills_another_reads_events),
	     T(a_region_that_is_added_before_the_start_has_a_fault),
	     T(a_page_becomes_absent_while_a_stop_fills_the_rest),
	     T(a_page_becomes_absent_when_a_stop_has_filled_the_rest),
	     T(a_page_becomes_absent_when_the_threads_of_a_stop_have_ended),
	     T(a_page_becomes_absent_whose_source_has_gone),
	     T(a_capture_ends_while_a_discard_waits_for_its_event),
	     T(a_capture_starts_while_a_discard_waits_for_its_event),
	     T(a_capture_ends_in_a_callback_whose_page_is_to_be_taken_out),
	     T(all_pagers_of_a_capture_are_told_when_it_starts),
	     T(all_pagers_of_a_capture_are_told_when_it_ends),
	     T(pagers_of_a_capture_are_told_later_for_want_of_memory))
