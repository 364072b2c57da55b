// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* `complete` over a userfaultfd that is played: an event of a removal is read in the middle of something else. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/uapi/userfaultfd.h"
#include "fake_sys.h"
#include "pager/pager_internal.h"

#define PAGE   4096ull
#define PAGES  64ull
#define BYTES  (PAGES * PAGE)
#define ABSENT 62ull /* and the page behind it */

static struct {
	struct kvmem_region *region;
	struct kvmem_pager *pager;
	struct kvmem_source *source;
	struct kvmem_capture *capture;
	uint8_t content[BYTES];
	int uffd; /* the pager's */
	struct uffd_msg msgs[2];
	unsigned int msg_count, msg_at;
	unsigned long again; /* the ioctl that says EAGAIN once */
	int then;	     /* ... and this later on */
	unsigned int completed, inside;
	int result; /* of what the callback calls */
	int (*call)(void);
} k;

static int64_t play_userfaultfd(int flags)
{
	int fd = (int)km_real_open("/dev/null", O_RDWR);

	(void)flags;
	if (k.uffd < 0)
		k.uffd = fd;
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

/* The removal waits behind the fault: whoever is told EAGAIN reads it. */
static int64_t play_read(int fd, void *buf, size_t len)
{
	if (fd != k.uffd || k.msg_at == k.msg_count)
		return len == sizeof(uint64_t) ? km_real_read(fd, buf, len) : -EAGAIN;
	memcpy(buf, &k.msgs[k.msg_at++], sizeof(k.msgs[0]));
	return sizeof(k.msgs[0]);
}

static int64_t answer(unsigned long request, int64_t bytes, __s64 *result)
{
	*result = request == k.again ? 0 : bytes;
	if (request == k.again) {
		k.again = 0;
		return -EAGAIN;
	}
	return 0;
}

static int64_t play_ioctl(int fd, unsigned long request, void *arg)
{
	struct uffdio_register *reg = arg;
	struct uffdio_continue *cont = arg;
	__s64 none;

	switch (request) {
	case UFFDIO_REGISTER:
		reg->ioctls = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_CONTINUE |
			      1ull << _UFFDIO_WAKE | 1ull << _UFFDIO_WRITEPROTECT;
		return 0;
	case UFFDIO_CONTINUE:
		return answer(request, (int64_t)cont->range.len, &cont->mapped);
	case UFFDIO_WRITEPROTECT:
		if (answer(request, 1, &none))
			return -EAGAIN;
		return ((struct uffdio_writeprotect *)arg)->mode ? k.then : 0;
	case UFFDIO_API:
	case UFFDIO_WAKE:
	case UFFDIO_UNREGISTER:
		return 0;
	default:
		return km_real_ioctl(fd, request, arg);
	}
}

static void on_complete(void *arg)
{
	(void)arg;
	k.completed++;
	k.inside += atomic_load(&k.region->unguarded);
	if (k.call)
		k.result = k.call();
}

/* All but two pages are present, and a removal of these waits to be read. */
static void set_up(void)
{
	struct kvmem_region_opts r = KVMEM_REGION_OPTS_INIT;
	struct kvmem_pager_opts p = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_populate_opts fill = KVMEM_POPULATE_OPTS_INIT;

	fake_reset();
	memset(&k, 0, sizeof(k));
	memset(k.content, 0x5a, sizeof(k.content));
	k.uffd = -1;
	k.result = 1;
	r.bytes = BYTES;
	r.backing = KVMEM_BACKING_MEMFD;
	fill.bytes = ABSENT * PAGE;
	p.flags = KVMEM_PAGER_CAPTURE | KVMEM_PAGER_NO_THREADS;
	p.complete = on_complete;
	p.fault_around = PAGE;
	ck_assert_int_eq(kvmem_region_create(NULL, &r, &k.region), 0);
	ck_assert_int_eq(kvmem_source_memory(k.content, BYTES, &k.source), 0);
	ck_assert_int_eq(kvmem_populate(k.region, 0, k.source, &fill, NULL), 0);
	fake.userfaultfd = play_userfaultfd;
	fake.open = play_open;
	fake.epoll_ctl = play_epoll_ctl;
	fake.read = play_read;
	fake.ioctl = play_ioctl;
	ck_assert_int_eq(kvmem_pager_create(&p, &k.pager), 0);
	k.pager->set.sees_removals = true; /* though nobody but this thread reads them */
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.region, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
}

static void removal_waits(void)
{
	uint64_t at = (uintptr_t)k.region->base + ABSENT * PAGE;

	k.msgs[k.msg_count++] = (struct uffd_msg){
		.event = UFFD_EVENT_REMOVE, .arg.remove = { .start = at, .end = at + 2 * PAGE }
	};
}

static void tear_down(void)
{
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_HAND_BACK), 0);
	ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	ck_assert_int_eq(kvmem_region_free(k.region), 0);
	ck_assert_int_eq(kvmem_source_free(k.source), 0);
	ck_assert_int_eq(fake.allocs, 0);
	fake_reset();
}

TEST(while_a_page_is_mapped)
{
	set_up();
	k.msgs[k.msg_count++] = (struct uffd_msg){
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault = { .address = (uintptr_t)k.region->base,
				   .flags = UFFD_PAGEFAULT_FLAG_MINOR },
	};
	removal_waits();
	k.again = UFFDIO_CONTINUE;
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	ck_assert_uint_eq(k.completed, 1);
	ck_assert_uint_eq(k.inside, 0);
	tear_down();
}
END

static int no_write(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	(void)arg;
	(void)run;
	(void)content;
	abort();
}

static void open_capture(void)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;

	o.threads = 1;
	o.before_write = no_write;
	ck_assert_int_eq(kvmem_capture_create(&o, &k.capture), 0);
}

static int stop_and_free(void)
{
	int r = kvmem_capture_stop(k.capture);

	ck_assert_int_eq(kvmem_capture_free(k.capture), 0);
	return r;
}

TEST(while_a_capture_is_started)
{
	set_up();
	open_capture();
	removal_waits();
	k.again = UFFDIO_WRITEPROTECT;
	k.call = stop_and_free;
	ck_assert_int_eq(kvmem_capture_start(k.capture, &k.region, 1), 0);
	ck_assert_uint_eq(k.completed, 1);
	ck_assert_int_eq(k.result,
			 -ECANCELED); /* it was started, and nobody had asked for its pages */
	tear_down();
}
END

/* What the callback is told of failures does not replace the reason of the call. */
TEST(while_a_capture_fails_to_start)
{
	set_up();
	open_capture();
	removal_waits();
	k.again = UFFDIO_WRITEPROTECT;
	k.then = -ENOMEM;
	k.call = stop_and_free;
	ck_assert_int_eq(kvmem_capture_start(k.capture, &k.region, 1), -ENOMEM);
	ck_assert_uint_eq(k.completed, 1);
	ck_assert_int_eq(k.result, -EINVAL); /* it is not started */
	ck_assert_msg(strstr(kvmem_error_detail(), "UFFDIO_WRITEPROTECT") != NULL, "%s",
		      kvmem_error_detail());
	tear_down();
}
END

/* Nobody is told inside, and who leaves last is told of it once. */
TEST(what_is_deferred_is_owed_once)
{
	set_up();
	km_presence_defer();
	km_presence_defer();
	removal_waits();
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	ck_assert_uint_eq(k.completed, 0);
	ck_assert(!km_presence_defer_end());
	ck_assert(km_presence_defer_end());
	km_presence_notify(&k.region->presence);
	ck_assert_uint_eq(k.completed, 1);
	km_presence_defer();
	ck_assert(!km_presence_defer_end());
	tear_down();
}
END

HARNESS_MAIN(T(while_a_page_is_mapped), T(while_a_capture_is_started),
	     T(while_a_capture_fails_to_start), T(what_is_deferred_is_owed_once))
