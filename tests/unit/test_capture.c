// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Captures over a userfaultfd that is played: what is protected when, and what each failure leaves. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/uapi/userfaultfd.h"
#include "capture/record.h"
#include "fake_sys.h"
#include "fill/fill.h"

#define PAGE  4096ull
#define PAGES 64ull
#define BYTES (PAGES * PAGE)

/* The played kernel. */
static struct {
	uint8_t *base;
	_Atomic bool protected[PAGES];
	_Atomic bool registered;
	uint64_t map_end; /* 0; or pages of two mappings meet there: a call for both is ENOENT */
	_Atomic unsigned int again; /* so often UFFDIO_WRITEPROTECT says EAGAIN */
	_Atomic uint64_t wp_calls, wakes;
	int events; /* a pipe: its reading end */
	int feed;
	unsigned int handed, fail_at;
	uint8_t image[BYTES], times[PAGES];
	uint32_t kinds[PAGES];
} k;

static struct kvmem_region *ram;
static struct kvmem_capture *capture;

static int64_t play_userfaultfd(int flags)
{
	int fds[2];

	(void)flags;
	if (pipe2(fds, O_NONBLOCK | O_CLOEXEC))
		return -errno;
	k.events = fds[0];
	k.feed = fds[1];
	return fds[0];
}

static int64_t play_open(const char *path, int flags)
{
	return strcmp(path, "/dev/userfaultfd") ? km_real_open(path, flags) : -ENOENT;
}

/* As a page that exists and is protected looks there; real is what exists. */
static int64_t play_pread(int fd, void *buf, size_t len, uint64_t off)
{
	int64_t r = km_real_pread(fd, buf, len, off);
	uint64_t first = off / 8 - (uintptr_t)k.base / PAGE, *entries = buf;

	for (uint64_t i = 0; r > 0 && i < len / 8 && first + i < PAGES; i++)
		if (k.protected[first + i])
			entries[i] |= 1ull << 57;
	return r;
}

static int64_t write_protect(struct uffdio_writeprotect *wp)
{
	uint64_t first = (wp->range.start - (uintptr_t)k.base) / PAGE, n = wp->range.len / PAGE;

	k.wp_calls++;
	ck_assert(n && first + n <= PAGES);
	if (k.again) {
		k.again--;
		return -EAGAIN;
	}
	if (!k.registered || (first < k.map_end && first + n > k.map_end))
		return -ENOENT;
	for (uint64_t i = first; i < first + n; i++)
		k.protected[i] = wp->mode & UFFDIO_WRITEPROTECT_MODE_WP;
	return 0;
}

static int64_t play_ioctl(int fd, unsigned long request, void *arg)
{
	switch (request) {
	case UFFDIO_API:
		ck_assert_uint_eq(((struct uffdio_api *)arg)->features,
				  UFFD_FEATURE_PAGEFAULT_FLAG_WP);
		return 0;
	case UFFDIO_REGISTER: {
		struct uffdio_register *reg = arg;

		ck_assert_uint_eq(reg->mode, UFFDIO_REGISTER_MODE_WP);
		ck_assert_uint_eq(reg->range.len, BYTES);
		k.registered = true;
		reg->ioctls = 1ull << _UFFDIO_WRITEPROTECT | 1ull << _UFFDIO_WAKE;
		return 0;
	}
	case UFFDIO_WRITEPROTECT:
		return write_protect(arg);
	case UFFDIO_UNREGISTER:
		k.registered = false;
		for (uint64_t i = 0; i < PAGES; i++)
			k.protected[i] = false;
		return 0;
	case UFFDIO_WAKE:
		k.wakes++;
		return 0;
	default:
		return km_real_ioctl(fd, request, arg);
	}
}

static void keep(const struct kvmem_capture_run *run, const void *content)
{
	for (uint64_t i = 0; i < run->bytes / PAGE; i++) {
		k.times[run->offset / PAGE + i]++;
		k.kinds[run->offset / PAGE + i] = run->kind;
	}
	if (content)
		memcpy(k.image + run->offset, content, run->bytes);
}

static int before_write(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	(void)arg;
	ck_assert_uint_eq(run->bytes, PAGE);
	if (++k.handed == k.fail_at)
		return -ENOSPC;
	keep(run, content);
	return 0;
}

/* Pages n with n % 4 != 3 exist. */
static void open_ram(uint32_t backing)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	memset(&k, 0, sizeof(k));
	o.bytes = BYTES;
	o.backing = backing;
	ck_assert_int_eq(kvmem_region_create(NULL, &o, &ram), 0);
	k.base = kvmem_region_base(ram);
	for (uint64_t n = 0; n < PAGES; n++)
		if (n % 4 != 3)
			memset(k.base + n * PAGE, (int)(n % 250) + 1, PAGE);
	fake_reset();
	fake.open = play_open;
	fake.userfaultfd = play_userfaultfd;
	fake.ioctl = play_ioctl;
	fake.pread = play_pread;
}

static void close_ram(void)
{
	fake.fail_at = 0;
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	fake_reset();
}

static int make(void)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;

	o.before_write = before_write;
	o.threads = 1;
	return kvmem_capture_create(&o, &capture);
}

static void end(void)
{
	ck_assert_int_eq(kvmem_capture_free(capture), 0);
	close(k.feed);
}

static unsigned int count_protected(void)
{
	unsigned int n = 0;

	for (uint64_t i = 0; i < PAGES; i++)
		n += k.protected[i];
	return n;
}

static int drain(uint64_t bytes)
{
	struct kvmem_capture_run run;
	uint8_t *buf = malloc(bytes);
	int r;

	while ((r = kvmem_capture_next(capture, buf, bytes, &run)) > 0)
		keep(&run, run.kind == KVMEM_CAPTURE_DATA ? buf : NULL);
	free(buf);
	return r;
}

static void check_image(void)
{
	for (uint64_t n = 0; n < PAGES; n++) {
		const uint8_t *at = k.image + n * PAGE;
		uint8_t v = n % 4 == 3 ? 0 : (uint8_t)(n % 250 + 1);

		ck_assert_msg(k.times[n] == 1, "page %lu: %u times", (unsigned long)n, k.times[n]);
		ck_assert_msg(at[0] == v && !memcmp(at, at + 1, PAGE - 1), "page %lu",
			      (unsigned long)n);
	}
}

/* ---- the record ---- */

TEST(the_record_is_a_map_of_states)
{
	uint8_t model[PAGES] = { 0 };
	unsigned long long seed = 3;
	struct km_record rec;
	uint64_t left = PAGES;

	ck_assert_int_eq(km_record_init(&rec, PAGES), 0);
	for (unsigned int i = 0; i < 60000; i++) {
		uint64_t first = harness_random(&seed) % PAGES, n, taken, next;
		uint64_t max = 1 + harness_random(&seed) % (PAGES - first);
		unsigned int state = (unsigned int)(harness_random(&seed) % 4);
		enum km_record_state got;

		n = km_record_run(&rec, first, max, &got);
		ck_assert_uint_eq(got, model[first]);
		for (uint64_t p = first; p < first + n; p++)
			ck_assert_uint_eq(model[p], got);
		ck_assert(n == max || model[first + n] != got);
		for (next = first; next < PAGES && model[next] >= KM_RECORD_BUSY; next++)
			;
		ck_assert_uint_eq(km_record_next(&rec, first), next);
		if (i % 3 == 0) {
			km_record_assign(&rec, first, km_record_run(&rec, first, max, &got), state);
			for (uint64_t p = first; p < first + n; p++)
				model[p] = model[p] ? model[p] : (uint8_t)state;
			continue;
		}
		for (n = 0; n < max && model[first + n] == state; n++)
			;
		taken = km_record_take(&rec, first, max, state);
		ck_assert_uint_eq(taken, n);
		if (taken) /* what is in somebody's hands stays */
			km_record_assign(&rec, first, taken, KM_RECORD_ABSENT);
		for (uint64_t p = first; p < first + taken; p++)
			ck_assert_uint_eq(km_record_get(&rec, p), KM_RECORD_BUSY);
		if (i % 3 == 1 && taken) {
			km_record_done(&rec, first, taken);
			memset(model + first, KM_RECORD_DONE, taken);
			left -= taken;
		}
		for (uint64_t p = first; i % 3 == 2 && p < first + taken; p++)
			km_record_put_back(&rec, p, state);
		ck_assert_uint_eq(atomic_load(&rec.left), left);
		if (left < PAGES / 8) {
			km_record_destroy(&rec);
			ck_assert_int_eq(km_record_init(&rec, PAGES), 0);
			memset(model, 0, sizeof(model));
			left = PAGES;
		}
	}
	km_record_destroy(&rec);
}
END

TEST(a_record_of_some_pages_has_these_alone)
{
	unsigned long long seed = 9;

	for (unsigned int round = 0; round < 2000; round++) {
		uint64_t pages = 1 + harness_random(&seed) % PAGES, left = 0;
		bool model[PAGES] = { false };
		struct km_record rec;

		ck_assert_int_eq(km_record_init(&rec, pages), 0);
		km_record_exclude_all(&rec);
		for (unsigned int i = 0; i < round % 7; i++) {
			uint64_t first = harness_random(&seed) % pages;
			uint64_t n = 1 + harness_random(&seed) % (pages - first);

			km_record_include(&rec, first, n);
			for (uint64_t p = first; p < first + n; p++) {
				left += !model[p];
				model[p] = true;
			}
		}
		ck_assert_uint_eq(atomic_load(&rec.left), left);
		for (uint64_t p = 0; p < pages; p++)
			ck_assert_uint_eq(km_record_get(&rec, p),
					  model[p] ? KM_RECORD_DATA : KM_RECORD_DONE);
		km_record_destroy(&rec);
	}
}
END

/* ---- what is protected ---- */

TEST(all_that_exists_is_protected_until_it_is_handed_out)
{
	struct kvmem_capture_run run;
	uint8_t buf[8 * PAGE];

	open_ram(KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(make(), 0);
	ck_assert_int_eq(kvmem_capture_start(capture, &ram, 1), 0);
	ck_assert_uint_eq(count_protected(), PAGES); /* where none exists nothing happens */
	ck_assert_uint_eq(k.wp_calls, 1);
	ck_assert_int_eq(kvmem_capture_next(capture, buf, sizeof(buf), &run), 1);
	ck_assert_uint_eq(run.bytes, 3 * PAGE);
	ck_assert_uint_eq(run.kind, KVMEM_CAPTURE_DATA);
	ck_assert(!k.protected[0] && !k.protected[2] && k.protected[4]);
	keep(&run, buf);
	ck_assert_int_eq(kvmem_capture_next(capture, buf, sizeof(buf), &run), 1);
	ck_assert_uint_eq(run.kind, KVMEM_CAPTURE_ZERO);
	ck_assert_uint_eq(run.offset, 3 * PAGE);
	keep(&run, NULL);
	ck_assert_int_eq(drain(PAGE), 0);
	ck_assert_int_eq(kvmem_capture_stop(capture), 0);
	ck_assert(!k.registered);
	ck_assert_uint_gt(k.wakes, 0);
	check_image();
	end();
	close_ram();
}
END

TEST(a_file_tells_of_its_holes_later)
{
	open_ram(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(make(), 0);
	ck_assert_int_eq(kvmem_capture_start(capture, &ram, 1), 0);
	ck_assert_uint_eq(count_protected(), PAGES);
	ck_assert_int_eq(drain(8 * PAGE), 0);
	ck_assert_uint_eq(count_protected(), 0);
	for (uint64_t n = 0; n < PAGES; n++)
		ck_assert_uint_eq(k.kinds[n], n % 4 == 3 ? KVMEM_CAPTURE_ZERO : KVMEM_CAPTURE_DATA);
	ck_assert_int_eq(kvmem_capture_stop(capture), 0);
	check_image();
	end();
	close_ram();
}
END

/* Linux 6.1 takes one mapping at a time, and any kernel may say EAGAIN. */
TEST(mappings_that_meet_and_kernels_that_wait)
{
	open_ram(KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(make(), 0);
	k.map_end = 33;
	k.again = 5;
	ck_assert_int_eq(kvmem_capture_start(capture, &ram, 1), 0);
	ck_assert_uint_eq(count_protected(), PAGES);
	k.again = 300;
	ck_assert_int_eq(drain(16 * PAGE), 0);
	ck_assert_int_eq(kvmem_capture_stop(capture), 0);
	check_image();
	end();
	close_ram();
}
END

/* ---- events ---- */

static void raise_write(uint64_t page)
{
	const struct uffd_msg m = {
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault = { .address = (uintptr_t)k.base + page * PAGE,
				   .flags = UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE },
	};

	ck_assert_int_eq(write(k.feed, &m, sizeof(m)), sizeof(m));
}

static bool is_open(void *arg)
{
	return !atomic_load((_Atomic bool *)arg);
}

TEST(a_write_that_waits_gets_its_page_handed_out)
{
	struct kvmem_capture_stats s = KVMEM_CAPTURE_STATS_INIT;

	open_ram(KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(make(), 0);
	ck_assert_int_eq(kvmem_capture_start(capture, &ram, 1), 0);
	raise_write(9);
	raise_write(11); /* of no memory at the pause: nothing is handed out */
	ck_assert(harness_wait(is_open, &k.protected[11], 10));
	ck_assert(harness_wait(is_open, &k.protected[9], 10));
	raise_write(9); /* once more: a thread that was late */
	ck_assert_int_eq(drain(16 * PAGE), 0);
	ck_assert_int_eq(kvmem_capture_stop(capture), 0);
	check_image();
	ck_assert_uint_eq(k.handed, 1);
	ck_assert_int_eq(kvmem_capture_get_stats(capture, &s), 0);
	ck_assert_uint_eq(s.bytes_written, PAGE);
	ck_assert_uint_ge(s.writers, 2);
	ck_assert_uint_eq(s.bytes_left, 0);
	ck_assert_uint_eq(s.bytes_zero, BYTES / 4);
	end();
	close_ram();
}
END

TEST(a_callback_that_fails_takes_all_protection_away)
{
	open_ram(KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(make(), 0);
	ck_assert_int_eq(kvmem_capture_start(capture, &ram, 1), 0);
	k.fail_at = 1;
	raise_write(9);
	ck_assert(harness_wait(is_open, &k.protected[50], 10));
	ck_assert_int_eq(drain(PAGE), -ENOSPC);
	ck_assert_msg(strstr(kvmem_error_detail(), "0x9000") != NULL, "%s", kvmem_error_detail());
	ck_assert_uint_eq(count_protected(), 0);
	ck_assert_int_eq(kvmem_capture_stop(capture), -ENOSPC);
	ck_assert(!k.registered);
	end();
	close_ram();
}
END

/* What was protected and is not any more: others have taken it away. */
TEST(protection_that_is_gone_is_told)
{
	open_ram(KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(make(), 0);
	ck_assert_int_eq(kvmem_capture_start(capture, &ram, 1), 0);
	k.protected[20] = false;
	ck_assert_int_eq(drain(64 * PAGE), -EIO);
	ck_assert_msg(strstr(kvmem_error_detail(), "0x14000") != NULL, "%s", kvmem_error_detail());
	ck_assert_int_eq(kvmem_capture_stop(capture), -EIO);
	end();
	close_ram();
}
END

/* ---- some pages alone ---- */

static struct kvmem_run of_ram(uint64_t first, uint64_t count)
{
	return (struct kvmem_run){ .region = ram, .offset = first * PAGE, .bytes = count * PAGE };
}

/* Pages of runs: 40 to 43 by two of them, of which 43 does not exist; 5; 20 and 22, with one between them. */
TEST(runs_alone_are_protected_and_handed_out)
{
	const uint32_t kinds[] = { KVMEM_BACKING_ANONYMOUS, KVMEM_BACKING_MEMFD };

	for (unsigned int i = 0; i < 2; i++) {
		const bool anonymous = kinds[i] == KVMEM_BACKING_ANONYMOUS;
		struct kvmem_capture_stats s = KVMEM_CAPTURE_STATS_INIT;
		struct kvmem_run runs[5];
		uint64_t in = 0;

		open_ram(kinds[i]);
		ck_assert_int_eq(make(), 0);
		runs[0] = of_ram(41, 3);
		runs[1] = of_ram(5, 1);
		runs[2] = of_ram(40, 2);
		runs[3] = of_ram(22, 1);
		runs[4] = of_ram(20, 1);
		ck_assert_int_eq(kvmem_capture_start_runs(capture, &ram, 1, runs, 5), 0);
		memset(runs, 0, sizeof(runs)); /* read during the call */
		for (uint64_t p = 0; p < PAGES; p++) {
			bool gap = p == 21, absent = p == 43 && anonymous;
			bool set = p == 5 || p == 20 || p == 22 || (p >= 40 && p <= 43);

			ck_assert_msg(k.protected[p] == (gap || (set && !absent)), "page %lu",
				      (unsigned long)p);
			in |= (uint64_t)set << p;
		}
		ck_assert_uint_eq(k.wp_calls, 3);
		raise_write(21); /* goes on, and is not handed out */
		raise_write(5);
		ck_assert(harness_wait(is_open, &k.protected[21], 10));
		ck_assert(harness_wait(is_open, &k.protected[5], 10));
		ck_assert_int_eq(drain(64 * PAGE), 0);
		ck_assert_int_eq(kvmem_capture_stop(capture), 0);
		ck_assert_uint_eq(k.handed, 1);
		for (uint64_t p = 0; p < PAGES; p++)
			ck_assert_msg(k.times[p] == (in >> p & 1), "page %lu", (unsigned long)p);
		ck_assert_uint_eq(k.kinds[43], KVMEM_CAPTURE_ZERO);
		ck_assert_uint_eq(k.image[22 * PAGE], 23);
		ck_assert_int_eq(kvmem_capture_get_stats(capture, &s), 0);
		ck_assert_uint_eq(s.bytes, 7 * PAGE);
		ck_assert_uint_eq(s.bytes_left, 0);
		ck_assert_uint_eq(s.bytes_written, PAGE);
		end();
		close_ram();
	}
}
END

TEST(no_run_is_a_capture_of_nothing)
{
	struct kvmem_capture_stats s = KVMEM_CAPTURE_STATS_INIT;

	open_ram(KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(make(), 0);
	ck_assert_int_eq(kvmem_capture_start_runs(capture, &ram, 1, NULL, 0), 0);
	ck_assert(k.registered);
	ck_assert_uint_eq(k.wp_calls, 0);
	ck_assert_int_eq(drain(PAGE), 0);
	ck_assert_int_eq(kvmem_capture_stop(capture), 0);
	ck_assert_int_eq(kvmem_capture_get_stats(capture, &s), 0);
	ck_assert_uint_eq(s.bytes, 0);
	/* All of it, once more, by the same capture. */
	ck_assert_int_eq(kvmem_capture_start(capture, &ram, 1), 0);
	ck_assert_int_eq(drain(PAGE), 0);
	ck_assert_int_eq(kvmem_capture_stop(capture), 0);
	check_image();
	end();
	close_ram();
}
END

TEST(runs_that_are_refused)
{
	struct kvmem_run runs[2];

	open_ram(KVMEM_BACKING_ANONYMOUS);
	ck_assert_int_eq(make(), 0);
	runs[0] = of_ram(1, 1);
	for (unsigned int i = 0; i < 6; i++) {
		runs[1] = of_ram(2, 1);
		switch (i) {
		case 0:
			runs[1].region = NULL;
			break;
		case 1:
			runs[1].bytes = 0;
			break;
		case 2:
			runs[1].offset += 8;
			break;
		case 3:
			runs[1].bytes += 512;
			break;
		case 4:
			runs[1].offset = BYTES;
			break;
		default:
			runs[1].bytes = 0 - PAGE;
		}
		ck_assert_int_eq(kvmem_capture_start_runs(capture, &ram, 1, runs, 2), -EINVAL);
		ck_assert_msg(strstr(kvmem_error_detail(), "runs[1]") != NULL, "%s",
			      kvmem_error_detail());
	}
	ck_assert_int_eq(kvmem_capture_start_runs(capture, &ram, 1, NULL, 1), -EINVAL);
	ck_assert_int_eq(kvmem_capture_start_runs(NULL, &ram, 1, runs, 1), -EINVAL);
	ck_assert_int_eq(kvmem_capture_start_runs(capture, &ram, 0, runs, 1), -EINVAL);
	ck_assert_msg(strstr(kvmem_error_detail(), "kvmem_capture_start_runs: count") != NULL, "%s",
		      kvmem_error_detail());
	ck_assert(!k.registered);
	end();
	close_ram();
}
END

/* ---- every call fails once ---- */

static int life(uint32_t backing)
{
	int r = make(), stopped;

	(void)backing;
	if (r)
		return r;
	r = kvmem_capture_start(capture, &ram, 1);
	if (!r) {
		r = kvmem_region_discard(ram, 0, 4 * PAGE);
		raise_write(9);
		if (!r)
			r = drain(16 * PAGE);
		stopped = kvmem_capture_stop(capture);
		if (!r)
			r = stopped;
	}
	/* Where unregistering is what has failed, the memory is registered until the userfaultfd is closed. */
	ck_assert_uint_eq(count_protected(), 0);
	ck_assert_int_eq(kvmem_capture_free(capture), 0);
	return r;
}

static void each_fails(uint32_t backing)
{
	unsigned long n = 0, failures = 0;
	unsigned int fds;
	long allocs;

	for (bool whole = false; !whole; n++) {
		int r;

		open_ram(backing);
		fds = harness_count_fds();
		allocs = atomic_load(&fake.allocs);
		k.feed = -1;
		fake.fail_errno = ENOMEM;
		fake.fail_at = n + 1;
		atomic_store(&fake.calls, 0);
		r = life(backing);
		whole = atomic_load(&fake.calls) < fake.fail_at;
		fake.fail_at = 0;
		if (k.feed >= 0)
			close(k.feed);
		failures += r != 0;
		ck_assert_msg(!r || *kvmem_error_detail(), "%s", (const char *)fake.failed);
		if (!r)
			check_image();
		ck_assert_msg(harness_count_fds() == fds, "%s leaks a file descriptor",
			      (const char *)fake.failed);
		ck_assert_msg(atomic_load(&fake.allocs) == allocs, "%s leaks memory",
			      (const char *)fake.failed);
		close_ram();
	}
	ck_assert_uint_gt(failures, 15);
}

TEST(each_call_fails_and_nothing_leaks_nor_stays_protected)
{
	each_fails(KVMEM_BACKING_ANONYMOUS);
	each_fails(KVMEM_BACKING_MEMFD);
}
END

HARNESS_MAIN(T(the_record_is_a_map_of_states), T(a_record_of_some_pages_has_these_alone),
	     T(runs_alone_are_protected_and_handed_out), T(no_run_is_a_capture_of_nothing),
	     T(runs_that_are_refused), T(all_that_exists_is_protected_until_it_is_handed_out),
	     T(a_file_tells_of_its_holes_later), T(mappings_that_meet_and_kernels_that_wait),
	     T(a_write_that_waits_gets_its_page_handed_out),
	     T(a_callback_that_fails_takes_all_protection_away), T(protection_that_is_gone_is_told),
	     T(each_call_fails_and_nothing_leaks_nor_stays_protected))
