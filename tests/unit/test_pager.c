// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The pager over a userfaultfd that is played: what it asks of the kernel, and what it makes of each answer. */
#include "harness.h"
#include "prefetch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/uapi/mm.h"
#include "fake_sys.h"
#include "pager/pager_internal.h"

#define PAGE  4096u
#define PAGES 64u
#define BYTES (PAGES * PAGE)
#define ALL_IOCTLS \
	(1ull << _UFFDIO_COPY | 1ull << _UFFDIO_ZEROPAGE | 1ull << _UFFDIO_CONTINUE | \
	 1ull << _UFFDIO_WAKE)

/* ---- the played kernel ---- */

enum what { COPY, ZERO, CONTINUE, POISON, WAKE, KINDS };

struct answer {
	int64_t r;	/* of the ioctl */
	int64_t result; /* in its result field */
};

static struct {
	struct kvmem_region region;
	struct kvmem_pager *pager;
	struct kvmem_source *source;
	uint8_t content[BYTES];
	uint64_t ioctls;
	int64_t register_r;
	uint64_t register_mode;
	struct answer answers[16]; /* for resolving ioctls, in turn; then all succeed */
	unsigned int answer_count, answer_at;
	struct uffd_msg msgs[200];
	unsigned int msg_count, msg_at;
	unsigned int count[KINDS];
	uint64_t last_dst[KINDS], last_len[KINDS];
	bool revoked[BYTES / PAGE];
	int no_access; /* pages that have lost their access rights */
	bool woken[PAGES];
	atomic_bool punched;
	bool mapped[PAGES]; /* by ZEROPAGE, and not punched out since */
	void (*after_read)(void);
	void (*meanwhile)(void); /* called once, in a placing ioctl before it takes effect */
	int bad_fd;		 /* -EBADF for this one */
	unsigned int completes;
} k;

static int64_t some_fd(void)
{
	return km_real_open("/dev/null", O_RDWR);
}

static int64_t play_open(const char *path, int flags)
{
	(void)path;
	(void)flags;
	return some_fd();
}

static int64_t play_ioctl_val(int fd, unsigned long request, unsigned long arg)
{
	(void)fd;
	(void)request;
	(void)arg;
	return some_fd();
}

static int64_t play_read(int fd, void *buf, size_t len)
{
	struct uffd_msg *to = buf;
	unsigned int n = 0;

	if (fd == k.bad_fd)
		return -EBADF;
	if (len < sizeof(*to))
		return -EAGAIN; /* an eventfd */
	while (n < len / sizeof(*to) && k.msg_at < k.msg_count)
		to[n++] = k.msgs[k.msg_at++];
	if (n && k.after_read) /* who waited for the event goes on */
		k.after_read();
	return n ? (int64_t)(n * sizeof(*to)) : -EAGAIN;
}

static int64_t play_epoll_ctl(int ep, int op, int fd, struct epoll_event *ev)
{
	(void)ep;
	(void)op;
	(void)fd;
	(void)ev;
	return 0;
}

static uint64_t offset_of(uint64_t addr)
{
	return addr - (uintptr_t)k.region.base;
}

/* What the next answer lets through of len bytes: the ioctl's value in *r. */
static uint64_t let_through(enum what what, uint64_t dst, uint64_t len, int64_t *r, __s64 *result)
{
	struct answer a = { 0, (int64_t)len };
	void (*meanwhile)(void) = k.meanwhile;

	k.meanwhile = NULL;
	if (meanwhile)
		meanwhile();
	ck_assert_uint_lt(offset_of(dst), BYTES);
	ck_assert_uint_le(offset_of(dst) + len, BYTES);
	k.count[what]++;
	k.last_dst[what] = offset_of(dst);
	k.last_len[what] = len;
	if (k.answer_at < k.answer_count)
		a = k.answers[k.answer_at++];
	*r = a.r;
	*result = a.result;
	return a.result > 0 ? (uint64_t)a.result : 0;
}

static int64_t play_ioctl(int fd, unsigned long request, void *arg)
{
	int64_t r = 0;
	uint64_t n;

	if (fd == k.bad_fd)
		return -EBADF;
	if (request == UFFDIO_REGISTER) {
		struct uffdio_register *reg = arg;

		k.register_mode = reg->mode;
		reg->ioctls = k.ioctls;
		return k.register_r;
	} else if (request == UFFDIO_COPY) {
		struct uffdio_copy *c = arg;

		n = let_through(COPY, c->dst, c->len, &r, &c->copy);
		memcpy(k.region.base + offset_of(c->dst), (void *)(uintptr_t)c->src, n);
	} else if (request == UFFDIO_ZEROPAGE) {
		struct uffdio_zeropage *z = arg;

		n = let_through(ZERO, z->range.start, z->range.len, &r, &z->zeropage);
		memset(k.region.base + offset_of(z->range.start), 0, n);
		memset(k.mapped + offset_of(z->range.start) / PAGE, true, n / PAGE);
	} else if (request == UFFDIO_CONTINUE) {
		struct uffdio_continue *c = arg;

		n = let_through(CONTINUE, c->range.start, c->range.len, &r, &c->mapped);
		memset(k.mapped + offset_of(c->range.start) / PAGE, true, n / PAGE);
	} else if (request == KM_UFFDIO_POISON) {
		struct km_uffdio_poison *p = arg;

		let_through(POISON, p->range.start, p->range.len, &r, (__s64 *)&p->updated);
	} else if (request == UFFDIO_WAKE) {
		struct uffdio_range *w = arg;

		k.count[WAKE]++;
		k.last_dst[WAKE] = offset_of(w->start);
		k.last_len[WAKE] = w->len;
		memset(k.woken + offset_of(w->start) / PAGE, true, w->len / PAGE);
	} else if (request == KM_PROCMAP_QUERY) { /* what a source in memory is */
		return km_real_ioctl(fd, request, arg);
	} else {
		ck_assert(request == UFFDIO_API || request == UFFDIO_UNREGISTER);
	}
	return r;
}

static int64_t play_mprotect(void *addr, size_t len, int prot)
{
	uint64_t at = (uintptr_t)addr - (uintptr_t)k.region.base;

	if (at >= BYTES) /* a second mapping is given access */
		return km_real_mprotect(addr, len, prot);
	for (uint64_t page = at / PAGE; page < (at + len) / PAGE; page++) {
		k.no_access += (prot == PROT_NONE) - k.revoked[page];
		k.revoked[page] = prot == PROT_NONE;
	}
	return 0;
}

static int64_t play_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
	if (mode & FALLOC_FL_PUNCH_HOLE)
		memset(k.mapped + offset / PAGE, false, bytes / PAGE);
	atomic_store(&k.punched, true);
	return km_real_fallocate(fd, mode, offset, bytes);
}

static void play(void)
{
	fake.open = play_open;
	fake.ioctl_val = play_ioctl_val;
	fake.ioctl = play_ioctl;
	fake.read = play_read;
	fake.epoll_ctl = play_epoll_ctl;
	fake.mprotect = play_mprotect;
	fake.fallocate = play_fallocate;
}

static void fault(unsigned int page, bool minor)
{
	k.msgs[k.msg_count++] = (struct uffd_msg){
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault = { .address = (uintptr_t)k.region.base + page * PAGE,
				   .flags = minor ? UFFD_PAGEFAULT_FLAG_MINOR : 0 },
	};
}

static void removed(unsigned int page, unsigned int count)
{
	uint64_t start = (uintptr_t)k.region.base + page * PAGE;

	k.msgs[k.msg_count++] = (struct uffd_msg){
		.event = UFFD_EVENT_REMOVE,
		.arg.remove = { .start = start, .end = start + count * PAGE },
	};
}

static void answer(int64_t r, int64_t result)
{
	k.answers[k.answer_count++] = (struct answer){ r, result };
}

/* ---- a region by hand ---- */

static void make_region(bool file)
{
	fake_reset();
	memset(&k, 0, sizeof(k));
	k.bad_fd = -1;
	k.ioctls = ALL_IOCTLS;
	for (unsigned int i = 0; i < BYTES; i++)
		k.content[i] = (uint8_t)(i / PAGE * 7 + i % 251 + 1);
	k.region.bytes = k.region.room = BYTES;
	k.region.page_shift = 12;
	k.region.plan.page_size = PAGE;
	k.region.plan.slot_form = KVMEM_SLOT_HVA;
	k.region.fd = k.region.private_fd = -1;
	if (file) {
		k.region.fd = (int)km_real_memfd_create("test", 0);
		ck_assert_int_eq(ftruncate(k.region.fd, BYTES), 0);
	}
	k.region.base = mmap(NULL, BYTES, PROT_READ | PROT_WRITE,
			     file ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, k.region.fd, 0);
	ck_assert_ptr_ne(k.region.base, MAP_FAILED);
	ck_assert_int_eq(km_presence_init(&k.region.presence, PAGES), 0);
	pthread_mutex_init(&k.region.lock, NULL);
	ck_assert_int_eq(kvmem_source_memory(k.content, BYTES, &k.source), 0);
}

static void drop_region(void)
{
	ck_assert_int_eq(kvmem_source_free(k.source), 0);
	km_presence_destroy(&k.region.presence);
	munmap(k.region.base, BYTES);
	if (k.region.alias)
		munmap(k.region.alias, BYTES);
	if (k.region.fd >= 0)
		close(k.region.fd);
	pthread_mutex_destroy(&k.region.lock);
	ck_assert_int_eq(fake.allocs, 0);
}

static void count_complete(void *arg)
{
	(void)arg;
	k.completes++;
}

/* Served by hand: kvmem_pager_handle(). */
static int open_pager(uint64_t around)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	int r;

	o.flags = KVMEM_PAGER_NO_THREADS;
	o.fault_around = around;
	o.complete = count_complete;
	r = kvmem_pager_create(&o, &k.pager);
	if (r)
		return r;
	k.pager->set.sees_removals = true;
	k.pager->set.all[0].sees_removals = true; /* though nobody but this thread reads them */
	r = kvmem_pager_add(k.pager, &k.region, k.source, 0, 0);
	if (!r)
		r = kvmem_pager_start(k.pager);
	if (r)
		kvmem_pager_free(k.pager);
	k.count[WAKE] = 0; /* what waited for the start */
	return r;
}

static void set_up(bool file, uint64_t around)
{
	make_region(file);
	play();
	ck_assert_int_eq(open_pager(around), 0);
}

static void tear_down(void)
{
	kvmem_pager_stop(k.pager, KVMEM_STOP_HAND_BACK);
	ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	drop_region();
}

static void expect_state(unsigned int page, enum km_page_state state)
{
	ck_assert_int_eq(km_presence_get(&k.region.presence, page), state);
}

static void expect_content(unsigned int page)
{
	ck_assert_int_eq(memcmp(k.region.base + page * PAGE, k.content + page * PAGE, PAGE), 0);
}

static void expect_zero(unsigned int page)
{
	static const uint8_t zero[PAGE];

	ck_assert_int_eq(memcmp(k.region.base + page * PAGE, zero, PAGE), 0);
}

static struct kvmem_pager_stats stats(void)
{
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;

	ck_assert_int_eq(kvmem_pager_get_stats(k.pager, &s), 0);
	return s;
}

/* ---- tests ---- */

TEST(registers_for_missing_and_minor)
{
	set_up(true, PAGE);
	ck_assert_uint_eq(k.register_mode,
			  UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
	tear_down();
	set_up(false, PAGE);
	ck_assert_uint_eq(k.register_mode, UFFDIO_REGISTER_MODE_MISSING);
	tear_down();
}
END

TEST(refuses_what_no_userfaultfd_sees)
{
	make_region(true);
	play();
	k.region.plan.slot_form = KVMEM_SLOT_DIRECT;
	ck_assert_int_eq(open_pager(0), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "direct"));
	k.region.plan.slot_form = KVMEM_SLOT_HVA;
	k.register_r = -EINVAL;
	k.region.plan.backing = KVMEM_BACKING_GUEST_MEMFD;
	ck_assert_int_eq(open_pager(0), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "guest_memfd"));
	k.register_r = 0;
	k.ioctls = 1ull << _UFFDIO_WAKE;
	ck_assert_int_eq(open_pager(0), -EOPNOTSUPP);
	k.ioctls = ALL_IOCTLS;
	k.region.fillers = 1;
	ck_assert_int_eq(open_pager(0), -EBUSY);
	k.region.fillers = 0;
	ck_assert_ptr_null(k.region.watch);
	drop_region();
}
END

TEST(neighbours_of_a_batch_are_one_copy)
{
	set_up(true, PAGE);
	fault(11, false);
	fault(9, false);
	fault(30, false);
	fault(10, false);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 4);
	ck_assert_uint_eq(k.count[COPY], 2);
	ck_assert_uint_eq(k.last_dst[COPY], 30 * PAGE);
	for (unsigned int i = 9; i < 12; i++) {
		expect_content(i);
		expect_state(i, KM_PRESENT);
	}
	ck_assert_uint_eq(stats().reads, 1);
	ck_assert_uint_eq(stats().pages_demand, 4);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 0);
	tear_down();
}
END

TEST(removal_comes_before_the_faults_of_its_batch)
{
	set_up(false, PAGE);
	fault(5, false);
	removed(4, 4);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 2);
	ck_assert_uint_eq(k.count[COPY], 0);
	ck_assert_uint_eq(k.count[ZERO], 1);
	ck_assert_uint_eq(k.last_dst[ZERO], 5 * PAGE);
	ck_assert_uint_eq(stats().removes, 1);
	expect_state(5, KM_PRESENT);
	expect_state(6, KM_ZERO);
	expect_state(8, KM_ABSENT);
	tear_down();
}
END

TEST(eagain_with_progress_goes_on_behind_it)
{
	set_up(true, BYTES);
	answer(0, PAGE);	   /* the page itself */
	answer(-EAGAIN, 5 * PAGE); /* of its neighbours */
	answer(-EAGAIN, PAGE);
	fault(0, false);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	ck_assert_uint_eq(k.count[COPY], 4);
	ck_assert_uint_eq(k.last_dst[COPY], 7 * PAGE);
	ck_assert_uint_eq(stats().retries, 0);
	for (unsigned int i = 0; i < PAGES; i++) {
		expect_content(i);
		expect_state(i, KM_PRESENT);
	}
	tear_down();
}
END

static void eagain_for_an_event(int64_t result)
{
	set_up(false, PAGE);
	for (unsigned int i = 0; i < 8; i++)
		fault(i, false);
	for (unsigned int i = 8; i < KM_UFFD_MSGS; i++)
		fault(40, false); /* a full read: the event is for the next */
	removed(3, 2);
	removed(20, 1);
	fault(50, false);
	answer(-EAGAIN, result);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), KM_UFFD_MSGS);
	for (unsigned int i = 0; i < 8; i++) {
		bool gone = i == 3 || i == 4;

		if (gone)
			expect_zero(i);
		else
			expect_content(i);
		expect_state(i, gone ? KM_ZERO : KM_PRESENT);
		ck_assert(k.woken[i]);
	}
	expect_state(20, KM_ZERO);
	expect_state(50, KM_ABSENT); /* its thread was woken, to fault again */
	ck_assert(k.woken[50]);
	ck_assert_uint_eq(stats().retries, 1);
	ck_assert_uint_eq(stats().removes, 2);
	tear_down();
}

TEST(eagain_for_an_unread_event_reads_it)
{
	eagain_for_an_event(0); /* before 6.15 */
	eagain_for_an_event(-EAGAIN);
}
END

TEST(eagain_without_an_event_waits)
{
	set_up(true, PAGE);
	for (unsigned int i = 0; i < 10; i++)
		answer(-EAGAIN, i % 2 ? -EAGAIN : 0);
	fault(1, false);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	expect_content(1);
	ck_assert_uint_eq(stats().retries, 10);
	tear_down();
}
END

TEST(a_page_in_the_file_is_replaced)
{
	set_up(true, PAGE);
	memset(k.region.base + 2 * PAGE, 0xee, PAGE);
	answer(-EEXIST, -EEXIST);
	fault(2, true);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	ck_assert_uint_eq(fake.count.fallocate, 1); /* out with it */
	ck_assert_uint_eq(k.count[COPY], 2);
	expect_content(2);
	expect_state(2, KM_PRESENT);
	tear_down();
}
END

TEST(a_page_in_anonymous_memory_is_kept_and_its_waiter_woken)
{
	set_up(false, PAGE);
	answer(-EEXIST, -EEXIST);
	fault(2, false);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	ck_assert_uint_eq(k.count[WAKE], 1);
	ck_assert_uint_eq(k.last_dst[WAKE], 2 * PAGE);
	expect_state(2, KM_PRESENT);
	tear_down();
}
END

TEST(unmapped_memory_is_let_be)
{
	set_up(true, PAGE);
	answer(-ENOENT, -ENOENT);
	fault(2, false);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	expect_state(2, KM_ZERO);
	ck_assert_uint_eq(k.count[POISON], 0);
	tear_down();
}
END

TEST(failures_of_the_region_and_of_populate_have_their_sentence)
{
	set_up(true, PAGE);
	answer(-EFAULT, -EFAULT);
	ck_assert_int_eq(kvmem_region_mark_present(&k.region, 5 * PAGE, PAGE), -EIO);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "offset 0x5000 of the region"));
	expect_state(5, KM_ABSENT);
	tear_down();
	set_up(false, PAGE);
	answer(-ENOMEM, -ENOMEM);
	ck_assert_int_eq(kvmem_populate(&k.region, 0, k.source, NULL, NULL), -ENOMEM);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "UFFDIO_COPY"));
	expect_state(0, KM_ABSENT);
	tear_down();
}
END

/* What the guest sees, it may have written to: it must not go back and be filled again. */
TEST(pages_mapped_before_a_failure_stay)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
	static const uint32_t ways[] = { KVMEM_FILL_COPY, KVMEM_FILL_UFFD_COPY };

	for (unsigned int i = 0; i < KM_ARRAY_SIZE(ways); i++) {
		set_up(true, PAGE);
		o.method = ways[i];
		answer(-EAGAIN, 3 * PAGE);
		answer(-ENOMEM, -ENOMEM);
		ck_assert_int_eq(kvmem_populate(&k.region, 0, k.source, &o, &res), -ENOMEM);
		ck_assert_uint_eq(res.bytes_copied, 3 * PAGE);
		expect_state(2, KM_PRESENT);
		expect_content(2);
		expect_state(3, KM_ABSENT);
		ck_assert_int_eq(kvmem_populate(&k.region, 0, k.source, &o, NULL), 0);
		expect_content(3);
		tear_down();
	}
	set_up(true, PAGE);
	answer(-EAGAIN, 3 * PAGE);
	answer(-EFAULT, -EFAULT);
	ck_assert_int_eq(kvmem_region_mark_present(&k.region, 0, 8 * PAGE), -EIO);
	expect_state(2, KM_PRESENT);
	expect_state(3, KM_ABSENT);
	tear_down();
}
END

TEST(present_and_vanished_pages)
{
	set_up(true, PAGE);
	ck_assert_uint_eq(km_presence_claim(&k.region.presence, 0, 8), 8);
	km_presence_publish(&k.region.presence, 0, 8, KM_PRESENT);
	fault(0, true);
	kvmem_pager_handle(k.pager); /* only to be mapped */
	ck_assert_uint_eq(k.count[CONTINUE], 1);
	answer(-EEXIST, -EEXIST);
	answer(-EEXIST, -EEXIST);
	fault(1, false);
	kvmem_pager_handle(k.pager); /* mapped by now */
	ck_assert_uint_eq(k.last_dst[WAKE], PAGE);
	ck_assert_uint_eq(stats().faults_stale, 1);
	answer(-EFAULT, -EFAULT);
	answer(-EFAULT, -EFAULT);
	fault(2, false);
	kvmem_pager_handle(k.pager); /* punched out of the file */
	ck_assert_uint_eq(k.count[ZERO], 1);
	ck_assert_uint_eq(k.last_dst[ZERO], 2 * PAGE);
	ck_assert_uint_eq(k.count[COPY], 0);
	tear_down();
}
END

static pthread_t other;

static void *discards(void *arg)
{
	(void)arg;
	if (kvmem_region_discard(&k.region, 0, 8 * PAGE))
		abort();
	return NULL;
}

static void *marks_absent(void *arg)
{
	(void)arg;
	if (kvmem_region_mark_absent(&k.region, 0, 8 * PAGE, 0))
		abort();
	return NULL;
}

/* As far as it gets while a page is being placed. */
static void meanwhile(void *(*const fn)(void *))
{
	if (pthread_create(&other, NULL, fn, NULL))
		abort();
	for (unsigned int i = 0; i < 100 && !atomic_load(&k.punched); i++)
		usleep(1000);
}

static void discard_meanwhile(void)
{
	meanwhile(discards);
}

static void mark_absent_meanwhile(void)
{
	meanwhile(marks_absent);
}

static void map_beside(enum km_page_state state, int64_t first_answer, void (*fn)(void))
{
	set_up(true, PAGE);
	ck_assert_uint_eq(km_presence_claim(&k.region.presence, 0, 8), 8);
	km_presence_publish(&k.region.presence, 0, 8, state);
	if (first_answer)
		answer(first_answer, first_answer);
	if (first_answer == -EFAULT)
		answer(-EFAULT, -EFAULT);
	fault(3, false);
	k.meanwhile = fn;
	kvmem_pager_handle(k.pager);
	pthread_join(other, NULL);
	ck_assert(!k.mapped[3] || km_presence_get(&k.region.presence, 3) == KM_PRESENT);
	tear_down();
}

/* Or what is written to the page is taken for zeros by who asks the record. */
TEST(a_page_of_zeros_is_not_brought_behind_a_discard)
{
	map_beside(KM_ZERO, 0, discard_meanwhile);
	map_beside(KM_PRESENT, -EFAULT, discard_meanwhile);
}
END

/* Or it is seen while it is filled again. */
TEST(a_page_is_not_mapped_behind_a_mark_absent)
{
	map_beside(KM_PRESENT, 0, mark_absent_meanwhile);
	map_beside(KM_PRESENT, -EFAULT, mark_absent_meanwhile);
	map_beside(KM_ZERO, 0, mark_absent_meanwhile);
	/* Who found it PRESENT comes when it is being filled again. */
	set_up(true, PAGE);
	ck_assert_uint_eq(km_presence_claim(&k.region.presence, 3, 1), 1);
	ck_assert_int_eq(km_map_run(k.region.watch, 3, 1, false, 1), 0);
	ck_assert_uint_eq(k.count[CONTINUE], 0);
	km_presence_abandon(&k.region.presence, 3, 1);
	tear_down();
}
END

/* Marked absent, asked of its source in vain, and poisoned, while the page that was found PRESENT is looked for. */
static void poison_meanwhile(void)
{
	km_presence_turn(&k.region.presence, 3, 1, KM_PRESENT, KM_POISONED);
}

/* Zeros by copy, and in a file those of UFFDIO_ZEROPAGE, overwrite the mark. */
TEST(zeros_are_not_brought_over_poison)
{
	set_up(true, PAGE);
	ck_assert_uint_eq(km_presence_claim(&k.region.presence, 0, 8), 8);
	km_presence_publish(&k.region.presence, 0, 8, KM_PRESENT);
	answer(-EFAULT, -EFAULT);
	answer(-EFAULT, -EFAULT);
	fault(3, false);
	k.meanwhile = poison_meanwhile;
	kvmem_pager_handle(k.pager);
	ck_assert_uint_eq(k.count[ZERO] + k.count[COPY], 0);
	ck_assert_uint_eq(k.count[CONTINUE], 1);
	ck_assert(k.woken[3]);
	expect_state(3, KM_POISONED);
	tear_down();
}
END

static void *marks_present(void *arg)
{
	(void)arg;
	if (pwrite(k.region.fd, "x", 1, 0) != 1 ||
	    kvmem_region_mark_present(&k.region, 0, 8 * PAGE))
		abort();
	return NULL;
}

static void *puts_content(void *arg)
{
	(void)arg;
	if (kvmem_pager_put(k.pager, &k.region, 0, k.content, 8 * PAGE) < 0)
		abort();
	return NULL;
}

static void mark_absent_after_read(void)
{
	meanwhile(marks_absent);
}

static void mark_present_after_read(void)
{
	meanwhile(marks_present);
}

static void put_after_read(void)
{
	meanwhile(puts_content);
}

static void after_removal(void (*fn)(void), enum km_page_state state)
{
	set_up(true, PAGE);
	removed(0, 8);
	k.after_read = fn;
	kvmem_pager_handle(k.pager);
	pthread_join(other, NULL);
	expect_state(3, state);
	tear_down();
}

/* The kernel lets who removes go on when its event has been read, which is before it is in the record. */
TEST(what_comes_after_a_removal_is_not_undone_by_it)
{
	after_removal(mark_absent_after_read, KM_ABSENT);
	after_removal(mark_present_after_read, KM_PRESENT);
	after_removal(put_after_read, KM_ZERO);
}
END

/* A populate, say, in a thread that has not come on yet. */
TEST(a_stop_tells_of_the_last_page_that_is_not_counted_yet)
{
	set_up(true, PAGE);
	ck_assert_uint_eq(km_presence_claim(&k.region.presence, 3, 1), 1);
	atomic_fetch_add(&k.region.presence.open, 1);
	atomic_fetch_sub(&k.region.presence.done, 1);
	km_presence_publish(&k.region.presence, 3, 1, KM_PRESENT);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), 0);
	ck_assert_uint_eq(k.completes, 1);
	ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	drop_region();
}
END

/* A fault on a claimed page is not kept: it marks the page, and who ends the claim wakes its thread. */
TEST(k5_17_a_fault_on_a_claimed_page_marks_it)
{
	set_up(true, PAGE);
	ck_assert_uint_eq(km_presence_claim(&k.region.presence, 7, 1), 1);
	fault(7, false);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 0);
	ck_assert_uint_eq(k.count[COPY] + k.count[ZERO] + k.count[CONTINUE] + k.count[WAKE], 0);
	ck_assert_int_eq(km_pages_zero(&k.region, 7, 1, true), 0);
	ck_assert_uint_eq(k.count[WAKE], 1);
	ck_assert_uint_eq(k.last_dst[WAKE], 7 * PAGE);
	fault(7, false); /* it comes again */
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	ck_assert_uint_eq(k.count[ZERO], 1);
	ck_assert_uint_eq(k.last_dst[ZERO], 7 * PAGE);
	tear_down();
}
END

TEST(faults_on_claimed_pages_of_a_discard_and_a_mark_are_woken)
{
	set_up(true, PAGE);
	ck_assert_int_eq(kvmem_region_discard(&k.region, 4 * PAGE, 2 * PAGE), 0);
	expect_state(4, KM_ZERO);
	ck_assert_uint_eq(k.count[WAKE], 0); /* nobody waited */
	ck_assert_int_eq(kvmem_region_mark_present(&k.region, 0, PAGE), 0);
	ck_assert_uint_eq(k.count[CONTINUE], 1);
	expect_state(0, KM_PRESENT);
	answer(-EIO, -EIO);
	ck_assert_int_eq(kvmem_region_mark_present(&k.region, 2 * PAGE, PAGE), -EIO);
	expect_state(2, KM_ABSENT);
	tear_down();
}
END

static int no_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)offset;
	(void)buf;
	(void)bytes;
	++*(unsigned int *)arg;
	km_presence_want(&k.region.presence, 1); /* another worker reads of a fault on it */
	return -EIO;
}

static void open_unreadable(unsigned int *reads, uint64_t fault_around)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	make_region(true);
	play();
	ck_assert_int_eq(kvmem_source_free(k.source), 0);
	ops.read = no_read;
	ops.flags = KVMEM_SOURCE_CHEAP;
	ck_assert_int_eq(kvmem_source_callback(&ops, reads, BYTES, &k.source), 0);
	ck_assert_int_eq(open_pager(fault_around), 0);
}

static void poison_with(int64_t r, unsigned long mprotects)
{
	unsigned int reads = 0;

	open_unreadable(&reads, PAGE);
	answer(r, r);
	fault(3, false);
	kvmem_pager_handle(k.pager);
	ck_assert_uint_eq(reads, 1);
	ck_assert_uint_eq(k.count[POISON], 1);
	ck_assert_uint_eq(k.last_dst[POISON], 3 * PAGE);
	ck_assert_uint_eq(fake.count.mprotect, mprotects);
	ck_assert_uint_eq(stats().pages_poisoned, 1);
	ck_assert_uint_eq(k.count[WAKE],
			  1); /* not before: it would fault, and be asked for, again */
	ck_assert_uint_eq(k.last_dst[WAKE], 3 * PAGE);
	expect_state(3, KM_POISONED);
	tear_down();
}

TEST(a_failed_page_is_poisoned_or_loses_its_access_rights)
{
	fake_reset();
	poison_with(PAGE, 0);
	poison_with(-EINVAL, 1); /* the ioctl of 6.6 is not known */
}
END

/* Its removal may be over: a mark of poison that came after it would stay. */
TEST(k8_25_a_page_that_was_removed_meanwhile_is_not_poisoned)
{
	unsigned int reads = 0;

	fake_reset();
	open_unreadable(&reads, PAGE);
	ck_assert_uint_eq(km_presence_claim(&k.region.presence, 3, 1), 1);
	km_presence_remove(&k.region.presence, 3, 1);
	ck_assert(!km_poison_claimed(k.region.watch, 3));
	ck_assert_uint_eq(k.count[POISON], 0);
	ck_assert_int_eq(k.no_access, 0);
	expect_state(3, KM_ZERO);
	tear_down();
}
END

/* Poison of before Linux 6.6: the page has lost its access rights, and loses them again. */
TEST(k7_24_poison_by_access_rights_outlives_a_healing_that_fails)
{
	unsigned int reads = 0;

	fake_reset();
	open_unreadable(&reads, PAGE);
	answer(-EINVAL, -EINVAL);
	fault(3, false);
	kvmem_pager_handle(k.pager);
	expect_state(3, KM_POISONED);
	ck_assert_int_eq(k.no_access, 1);
	ck_assert_int_eq(km_pages_claim(&k.region, 3, 1), 1);
	ck_assert_int_eq(k.no_access, 0); /* an access waits for the claim */
	km_pages_abandon(&k.region, 3, 1, false);
	expect_state(3, KM_POISONED);
	ck_assert_int_eq(k.no_access, 1);
	ck_assert_int_eq(km_pages_claim(&k.region, 3, 1), 1);
	km_presence_remove(&k.region.presence, 3, 1);
	km_pages_abandon(&k.region, 3, 1, false);
	expect_state(3, KM_ZERO);
	ck_assert_int_eq(k.no_access, 0);
	tear_down();
}
END

/* At vm.max_map_count, say: mprotect() of a part of a mapping makes another one. */
static int64_t no_mprotect(void *addr, size_t len, int prot)
{
	uint64_t at = (uintptr_t)addr - (uintptr_t)k.region.base;

	return at < BYTES && prot != PROT_NONE ? -ENOMEM : play_mprotect(addr, len, prot);
}

/* Each call that would have filled it says so, and comes back. */
TEST(poison_that_cannot_be_lifted_is_an_error)
{
	struct kvmem_populate_opts fill = KVMEM_POPULATE_OPTS_INIT;
	unsigned int reads = 0;

	fake_reset();
	open_unreadable(&reads, PAGE);
	answer(-EINVAL, -EINVAL);
	fault(3, false);
	kvmem_pager_handle(k.pager);
	expect_state(3, KM_POISONED);
	fake.mprotect = no_mprotect;
	fill.bytes = PAGE;
	ck_assert_int_eq(kvmem_pager_put(k.pager, &k.region, 3 * PAGE, k.content, PAGE), -ENOMEM);
	ck_assert_int_eq(kvmem_populate(&k.region, 3 * PAGE, k.source, &fill, NULL), -ENOMEM);
	ck_assert(strstr(kvmem_error_detail(), "max_map_count") != NULL);
	ck_assert_int_eq(kvmem_region_discard(&k.region, 3 * PAGE, PAGE), -ENOMEM);
	ck_assert_int_eq(kvmem_region_mark_present(&k.region, 3 * PAGE, PAGE), -ENOMEM);
	ck_assert_int_eq(kvmem_region_mark_absent(&k.region, 3 * PAGE, PAGE, 0), -EIO);
	expect_state(3, KM_POISONED);
	ck_assert_int_eq(k.no_access, 1);
	ck_assert_int_lt(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), 0);
	ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	drop_region();
}
END

/* Another worker may have left a fault in it to this claim. */
TEST(a_window_that_cannot_be_filled_wakes_who_waits_in_it)
{
	unsigned int reads = 0;

	fake_reset();
	open_unreadable(&reads, 8 * PAGE);
	answer(PAGE, PAGE);
	fault(3, false);
	for (unsigned int i = 0; i < 4; i++)
		kvmem_pager_handle(k.pager);
	ck_assert_uint_gt(reads, 1);
	ck_assert_uint_eq(k.count[POISON], 1);
	expect_state(3, KM_POISONED);
	expect_state(1, KM_ABSENT);
	ck_assert(k.woken[3]);
	ck_assert(k.woken[1]);
	tear_down();
}
END

/* Of pages that had content, one cannot be mapped: the others keep their access rights. */
static void lose_one_of_four(int64_t poison, unsigned long mprotects, uint64_t poisoned)
{
	set_up(true, PAGE);
	ck_assert_uint_eq(km_presence_claim(&k.region.presence, 0, 4), 4);
	km_presence_publish(&k.region.presence, 0, 4, KM_PRESENT);
	for (unsigned int i = 0; i < 4; i++)
		fault(i, true);
	answer(-EAGAIN, PAGE);	  /* page 0 is mapped, */
	answer(-ENOMEM, -ENOMEM); /* page 1 not, */
	answer(-ENOMEM, -ENOMEM); /* nor by itself, */
	answer(0, 2 * PAGE);	  /* 2 and 3 are */
	answer(-EEXIST, -EEXIST); /* what is lost? not 0, */
	answer(-EEXIST, -EEXIST);
	answer(-ENOMEM, -ENOMEM); /* but 1: */
	answer(poison, poison);
	answer(-EEXIST, -EEXIST);
	answer(-EEXIST, -EEXIST);
	answer(-EEXIST, -EEXIST);
	answer(-EEXIST, -EEXIST);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 4);
	ck_assert_uint_eq(k.answer_at, k.answer_count);
	ck_assert_uint_eq(k.count[POISON], 1);
	ck_assert_uint_eq(k.last_dst[POISON], PAGE);
	ck_assert_uint_eq(fake.count.mprotect, mprotects);
	ck_assert_uint_eq(stats().pages_poisoned, poisoned);
	ck_assert_int_eq(k.no_access, (int)mprotects);
	ck_assert_int_eq(kvmem_region_discard(&k.region, 0, 4 * PAGE), 0);
	ck_assert_int_eq(k.no_access, 0);
	tear_down();
}

TEST(only_pages_that_cannot_be_mapped_are_poisoned)
{
	fake_reset();
	lose_one_of_four(PAGE, 0, 1);
	lose_one_of_four(-EINVAL, 1, 1);
	lose_one_of_four(-EEXIST, 0, 0); /* mapped after all */
}
END

TEST(memory_without_copy_is_stored_and_continued)
{
	make_region(true);
	play();
	k.ioctls = 1ull << _UFFDIO_CONTINUE | 1ull << _UFFDIO_WAKE;
	ck_assert_int_eq(open_pager(8 * PAGE), 0);
	fault(9, false);
	kvmem_pager_handle(k.pager);
	ck_assert_uint_eq(k.count[COPY], 0);
	ck_assert_uint_ge(k.count[CONTINUE], 2);
	for (unsigned int i = 8; i < 16; i++) {
		expect_content(i);
		expect_state(i, KM_PRESENT);
	}
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), 0);
	for (unsigned int i = 0; i < PAGES; i++)
		expect_content(i);
	tear_down();
}
END

TEST(a_prefetch_is_queued_whole_or_not_at_all)
{
	struct kvmem_run run = { .region = &k.region, .offset = 4 * PAGE, .bytes = 16 * PAGE };
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;

	make_region(true);
	play();
	o.flags = KVMEM_PAGER_NO_THREADS;
	o.shards = 2;
	ck_assert_int_eq(kvmem_pager_create(&o, &k.pager), 0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, &k.region, k.source, 0, 0), 0);
	km_watch_first(&k.pager->set)->stripe =
		8; /* pieces of 4, 8 and 4 pages for shards 0, 1, 0 */
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
	for (unsigned int at = 1; at <= 3; at++) {
		fake.fail_at = atomic_load(&fake.calls) + at;
		fake.fail_errno = ENOMEM;
		ck_assert_int_eq(prefetch_runs(k.pager, &run, 1), -ENOMEM);
		ck_assert_str_eq(fake.failed, "alloc");
		for (unsigned int i = 0; i < 2; i++)
			ck_assert_ptr_null(k.pager->backlogs[i].now.first);
	}
	fake.fail_at = 0;
	ck_assert_int_eq(prefetch_runs(k.pager, &run, 1), 0);
	ck_assert_uint_eq(k.pager->backlogs[0].now.count, 2);
	ck_assert_uint_eq(k.pager->backlogs[1].now.count, 1);
	for (unsigned int i = 0; i < 4; i++)
		kvmem_pager_handle(k.pager);
	ck_assert_uint_eq(stats().pages_prefetch, 16);
	expect_state(3, KM_ABSENT);
	for (unsigned int i = 4; i < 20; i++)
		expect_content(i);
	expect_state(20, KM_ABSENT);
	tear_down();
}
END

TEST(windows_double_with_the_sequence)
{
	set_up(true, 32 * PAGE);
	km_paged_first(k.pager)->window = 4;
	fault(0, false);
	kvmem_pager_handle(k.pager);
	expect_state(3, KM_PRESENT);
	expect_state(4, KM_ABSENT);
	fault(4, false);
	kvmem_pager_handle(k.pager);
	expect_state(11, KM_PRESENT);
	expect_state(12, KM_ABSENT);
	fault(12, false);
	kvmem_pager_handle(k.pager);
	expect_state(27, KM_PRESENT);
	expect_state(28, KM_ABSENT);
	ck_assert_uint_eq(stats().pages_demand, 3);
	ck_assert_uint_eq(stats().pages_around, 25);
	fault(63, false);
	kvmem_pager_handle(k.pager);
	expect_state(60, KM_PRESENT);
	expect_state(59, KM_ABSENT);
	fault(59, false); /* backwards */
	kvmem_pager_handle(k.pager);
	expect_state(52, KM_PRESENT);
	expect_state(51, KM_ABSENT);
	tear_down();
}
END

/* The window behind a fault ends with it: its neighbour is filled apart. */
TEST(a_page_counts_once)
{
	set_up(true, 8 * PAGE);
	fault(40, false);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	fault(38, false);
	fault(39, false);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 2);
	ck_assert_uint_eq(stats().pages_demand, 3);
	ck_assert_uint_eq(stats().pages_around, 14);
	ck_assert_uint_eq(stats().pages_missing, PAGES - 17);
	tear_down();
}
END

TEST(a_closed_descriptor_is_replaced_by_the_spare)
{
	set_up(true, PAGE);
	k.bad_fd = atomic_load(&k.pager->set.all[0].fd);
	fault(1, false);
	ck_assert_int_eq(kvmem_pager_handle(k.pager), 1);
	expect_content(1);
	ck_assert_int_eq(atomic_load(&k.pager->set.all[0].fd), k.pager->set.all[0].spare);
	close(k.bad_fd);
	tear_down();
}
END

/* A whole life; returns the first error. */
static int live(bool file)
{
	int r;

	make_region(file);
	play();
	k.msg_count = k.msg_at = 0;
	r = open_pager(4 * PAGE);
	if (r)
		return r;
	fault(1, false);
	fault(17, true);
	kvmem_pager_handle(k.pager);
	kvmem_pager_handle(k.pager);
	r = kvmem_pager_stop(k.pager, KVMEM_STOP_FILL);
	kvmem_pager_free(k.pager);
	return r;
}

static void fail_each(bool file)
{
	unsigned int fds = harness_count_fds(), maps = harness_count_maps();
	unsigned long at, calls;

	ck_assert_int_eq(live(file), 0);
	calls = atomic_load(&fake.calls);
	drop_region();
	for (at = 1; at <= calls; at++) {
		make_region(file);
		play();
		fake.fail_at = atomic_load(&fake.calls) + at;
		fake.fail_errno = EIO;
		if (!open_pager(4 * PAGE)) {
			fault(1, false);
			fault(17, true);
			kvmem_pager_handle(k.pager);
			kvmem_pager_handle(k.pager);
			kvmem_pager_stop(k.pager, KVMEM_STOP_FILL);
			kvmem_pager_free(k.pager);
		}
		fake.fail_at = 0;
		for (unsigned int i = 0; i < PAGES; i++)
			if (km_presence_get(&k.region.presence, i) == KM_PRESENT)
				expect_content(i);
			else
				expect_state(i, KM_ABSENT);
		ck_assert_ptr_null(k.region.watch);
		drop_region();
		ck_assert_msg(harness_count_fds() == fds, "call %lu (%s) leaks an fd", at,
			      fake.failed);
		ck_assert_msg(harness_count_maps() <= maps + 2, "call %lu (%s) leaks", at,
			      fake.failed);
	}
}

TEST(nothing_leaks_whichever_call_fails)
{
	fake_reset();
	fail_each(true);
	fail_each(false);
}
END

/* Pages 3..5 exist, and nothing has announced them; 9 is poisoned, by its access rights or by a mark. */
static void make_unannounced(bool file, bool no_access)
{
	make_region(file);
	memset(k.region.base + 3 * PAGE, 0xee, 3 * PAGE);
	ck_assert_uint_eq(km_presence_claim(&k.region.presence, 9, 1), 1);
	km_presence_publish(&k.region.presence, 9, 1, KM_POISONED);
	k.region.no_access = no_access;
	k.region.plan.backing = file ? KVMEM_BACKING_MEMFD : KVMEM_BACKING_ANONYMOUS;
	k.revoked[9] = no_access;
	k.no_access = no_access;
	play();
}

static int add_over(uint32_t flags)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	int r;

	o.flags = KVMEM_PAGER_NO_THREADS;
	r = kvmem_pager_create(&o, &k.pager);
	if (r)
		return r;
	k.pager->set.sees_removals = true;
	r = kvmem_pager_add(k.pager, &k.region, k.source, 0, flags);
	if (r)
		ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	return r;
}

static void expect_as_before(bool no_access, bool overwrites)
{
	expect_state(3, KM_ABSENT);
	expect_state(9, KM_POISONED);
	ck_assert_int_eq(k.no_access, no_access);
	/* Of several steps that take out, none of which can be taken back, a later one. */
	if (overwrites && (!strcmp(fake.failed, "madvise") || !strcmp(fake.failed, "mprotect")))
		return;
	for (unsigned int i = 0; i < 3 * PAGE; i++)
		ck_assert_msg(k.region.base[3 * PAGE + i] == 0xee, "%s: byte %u is lost",
			      fake.failed, i);
}

/* An add that fails changes nothing: neither content that was to be overwritten nor poison is lost. */
static void add_fails_each(bool file, uint32_t flags, bool no_access)
{
	unsigned long at, failures = 0;
	bool whole = false;
	int r;

	for (at = 1; !whole; at++) {
		make_unannounced(file, no_access);
		fake.fail_at = atomic_load(&fake.calls) + at;
		fake.fail_errno = EIO;
		r = add_over(flags);
		whole = atomic_load(&fake.calls) < fake.fail_at;
		fake.fail_at = 0;
		failures += r != 0;
		if (r) {
			ck_assert_ptr_null(k.region.watch);
			expect_as_before(no_access, flags == KVMEM_FILL_OVERWRITE);
		} else {
			expect_state(9, KM_ABSENT);
			ck_assert_int_eq(k.no_access, 0);
			expect_state(3, flags == KVMEM_FILL_KEEP ? KM_PRESENT : KM_ABSENT);
			for (unsigned int i = 3; i < 6 && flags == KVMEM_FILL_OVERWRITE; i++)
				expect_zero(i);
			ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
		}
		drop_region();
	}
	ck_assert_uint_gt(failures, 8);
}

TEST(an_add_that_fails_loses_neither_content_nor_poison)
{
	static const uint32_t flags[] = { KVMEM_FILL_KEEP, KVMEM_FILL_OVERWRITE };

	for (unsigned int i = 0; i < 8; i++)
		add_fails_each(i & 1, flags[i >> 1 & 1], i >> 2);
}
END

static int64_t no_thread_at_all(struct km_thread *ret, const char *name,
				const struct km_sys_thread *how, void *(*fn)(void *), void *arg)
{
	(void)ret;
	(void)name;
	(void)how;
	(void)fn;
	(void)arg;
	return -EAGAIN;
}

TEST(an_add_without_a_thread_names_its_limits)
{
	make_unannounced(true, false);
	fake.thread_create = no_thread_at_all;
	ck_assert_int_eq(add_over(KVMEM_FILL_OVERWRITE), -EAGAIN);
	ck_assert_msg(strstr(kvmem_error_detail(), "RLIMIT_NPROC") != NULL, "%s",
		      kvmem_error_detail());
	fake.thread_create = NULL;
	drop_region();
}
END

static int64_t no_thread(struct km_thread *ret, const char *name, const struct km_sys_thread *how,
			 void *(*fn)(void *), void *arg)
{
	if (fake.count.thread_create > 3)
		return -EAGAIN;
	return km_real_thread_create(ret, name, how, fn, arg);
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

TEST(threads_that_cannot_be_made)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;

	make_region(true);
	play();
	fake.thread_create = no_thread;
	fake.epoll_wait = play_epoll_wait;
	o.shards = 2;
	o.workers = 2;
	ck_assert_int_eq(kvmem_pager_create(&o, &k.pager), 0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, &k.region, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_start(k.pager), -EAGAIN);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), -EINVAL);
	fake.thread_create = NULL;
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), 0);
	for (unsigned int i = 0; i < PAGES; i++)
		expect_content(i);
	ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	drop_region();
}
END

static struct {
	_Atomic unsigned int asked;
	unsigned int cancelled;
	bool answers;
} later;

static void answer_later(struct kvmem_source_request *r)
{
	memcpy(r->buf, k.content + r->offset, r->bytes);
	ck_assert_int_eq(kvmem_source_complete(r, 0), 0);
}

static int submit_later(void *arg, struct kvmem_source_request *const *requests, size_t count)
{
	(void)arg;
	for (size_t i = 0; i < count; i++)
		if (later.answers)
			answer_later(requests[i]);
	atomic_fetch_add(&later.asked, (unsigned int)count);
	return 0;
}

static void cancel_later(void *arg, struct kvmem_source_request *request)
{
	(void)arg;
	later.cancelled++;
	ck_assert_int_eq(kvmem_source_complete(request, -ECANCELED), 0);
}

/* The second worker is not to be had, when the filler has asked for something. */
static int64_t no_second_worker(struct km_thread *ret, const char *name,
				const struct km_sys_thread *how, void *(*fn)(void *), void *arg)
{
	if (strcmp(name, "kvmem-pager/1"))
		return km_real_thread_create(ret, name, how, fn, arg);
	for (int i = 0; i < 10000 && !atomic_load(&later.asked); i++)
		km_real_poll(NULL, 0, 1);
	return -EAGAIN;
}

TEST(a_start_that_fails_takes_back_what_it_has_asked_for)
{
	struct kvmem_source_async_ops ops = KVMEM_SOURCE_ASYNC_OPS_INIT;
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;

	make_region(true);
	ck_assert_int_eq(kvmem_source_free(k.source), 0);
	memset(&later, 0, sizeof(later));
	ops.submit = submit_later;
	ops.cancel = cancel_later;
	ck_assert_int_eq(kvmem_source_async(&ops, NULL, BYTES, &k.source), 0);
	play();
	fake.thread_create = no_second_worker;
	fake.epoll_wait = play_epoll_wait;
	o.workers = 2;
	o.flags = KVMEM_PAGER_BACKGROUND;
	ck_assert_int_eq(kvmem_pager_create(&o, &k.pager), 0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, &k.region, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_start(k.pager), -EAGAIN);
	ck_assert_uint_gt(later.asked, 0);
	ck_assert_uint_eq(later.cancelled, later.asked);
	for (unsigned int i = 0; i < PAGES; i++)
		expect_state(i, KM_ABSENT);
	later.answers = true;
	fake.thread_create = NULL;
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), 0);
	for (unsigned int i = 0; i < PAGES; i++)
		expect_content(i);
	ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	drop_region();
}
END

/* Quantiles lie within the bucket that holds them. */
TEST(quantiles)
{
	struct kvmem_pager_stats s;

	set_up(true, PAGE);
	s = stats();
	ck_assert_uint_eq(s.service_p50_ns + s.service_p999_ns, 0);
	atomic_store(&k.pager->workers[0].counts.service_ns[10], 90);
	atomic_store(&k.pager->workers[0].counts.service_ns[20], 10);
	s = stats();
	ck_assert_uint_eq(s.service_p50_ns, 1024 + 1024 * 50 / 90);
	ck_assert_uint_eq(s.service_p90_ns, 2048);
	ck_assert_uint_eq(s.service_p99_ns, 1992294); /* 2^20 * 1.9 */
	ck_assert_uint_ge(s.service_p999_ns, s.service_p99_ns);
	tear_down();
}
END

HARNESS_MAIN(T(registers_for_missing_and_minor), T(refuses_what_no_userfaultfd_sees),
	     T(neighbours_of_a_batch_are_one_copy), T(removal_comes_before_the_faults_of_its_batch),
	     T(eagain_with_progress_goes_on_behind_it), T(eagain_for_an_unread_event_reads_it),
	     T(eagain_without_an_event_waits), T(a_page_in_the_file_is_replaced),
	     T(a_page_in_anonymous_memory_is_kept_and_its_waiter_woken),
	     T(unmapped_memory_is_let_be),
	     T(failures_of_the_region_and_of_populate_have_their_sentence),
	     T(pages_mapped_before_a_failure_stay), T(present_and_vanished_pages),
	     T(a_page_of_zeros_is_not_brought_behind_a_discard),
	     T(a_page_is_not_mapped_behind_a_mark_absent), T(zeros_are_not_brought_over_poison),
	     T(what_comes_after_a_removal_is_not_undone_by_it),
	     T(a_stop_tells_of_the_last_page_that_is_not_counted_yet),
	     T(k5_17_a_fault_on_a_claimed_page_marks_it),
	     T(faults_on_claimed_pages_of_a_discard_and_a_mark_are_woken),
	     T(a_failed_page_is_poisoned_or_loses_its_access_rights),
	     T(k8_25_a_page_that_was_removed_meanwhile_is_not_poisoned),
	     T(k7_24_poison_by_access_rights_outlives_a_healing_that_fails),
	     T(poison_that_cannot_be_lifted_is_an_error),
	     T(a_window_that_cannot_be_filled_wakes_who_waits_in_it),
	     T(only_pages_that_cannot_be_mapped_are_poisoned),
	     T(a_prefetch_is_queued_whole_or_not_at_all),
	     T(memory_without_copy_is_stored_and_continued), T(windows_double_with_the_sequence),
	     T(a_page_counts_once), T(a_closed_descriptor_is_replaced_by_the_spare),
	     T(nothing_leaks_whichever_call_fails),
	     T(an_add_that_fails_loses_neither_content_nor_poison),
	     T(an_add_without_a_thread_names_its_limits), T(threads_that_cannot_be_made),
	     T(a_start_that_fails_takes_back_what_it_has_asked_for), T(quantiles))
