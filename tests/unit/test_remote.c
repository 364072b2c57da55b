// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory of another process over a kernel that is played: what is refused, and what is made of each answer. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_sys.h"
#include "pager/pager_internal.h"

#define PAGE  UINT64_C(4096)
#define PAGES 64u
#define BYTES (PAGES * PAGE)
#define BASE  UINT64_C(0x7f0000000000)
#define HUGE  (UINT64_C(2) << 20)
#define READY 0x80000000u
#define ALL   0x1ffull /* ioctls of the kernel, POISON among them */

enum what { COPY, ZERO, CONTINUE, POISON, WAKE, PROTECT, KINDS };

struct answer {
	int64_t r, result;
};

static struct {
	int uffds[2];
	const char *link, *fdinfo; /* NULL: as a userfaultfd has it */
	unsigned int features;
	uint64_t ioctls;
	int64_t flags;
	bool no_nowait;
	int64_t ping; /* of the looks at what is there */
	int64_t protect;
	struct answer answers[16]; /* for what places, in turn; then all succeed */
	unsigned int answer_count, answer_at;
	bool always;		    /* the last answer stays */
	uint64_t removed_at_eagain; /* this page; 0: none */
	struct uffd_msg msgs[256];
	unsigned int msg_count, msg_at;
	unsigned int count[KINDS];
	uint64_t last[KINDS];
	uint8_t theirs[BYTES]; /* the other process's memory */
	bool woken[PAGES];
	unsigned int fails, ends;
	struct kvmem_region *ram;
	struct kvmem_pager *pager;
	struct kvmem_source *source;
	int source_error;
	unsigned int source_reads;
} k;

static uint8_t content[BYTES];

/* ---- the played kernel ---- */

static bool is_uffd(int fd)
{
	return fd == k.uffds[0] || fd == k.uffds[1];
}

static int64_t play_readlink(const char *path, char *buf, size_t len)
{
	bool fd = !strncmp(path, "/proc/self/fd/", 14);

	if (fd && is_uffd((int)strtol(path + 14, NULL, 10)))
		return snprintf(buf, len, "%s", k.link ? k.link : "anon_inode:[userfaultfd]");
	return km_real_readlink(path, buf, len);
}

static int64_t play_open(const char *path, int flags)
{
	char text[128];
	int fd;

	if (strncmp(path, "/proc/self/fdinfo/", 18) != 0)
		return km_real_open(path, flags);
	if (k.fdinfo)
		snprintf(text, sizeof(text), "%s", k.fdinfo);
	else
		snprintf(text, sizeof(text), "pos:\t0\nAPI:\taa:%x:%llx\n", k.features,
			 (unsigned long long)k.ioctls);
	fd = memfd_create("fdinfo", MFD_CLOEXEC);
	if (write(fd, text, strlen(text)) < 0 || lseek(fd, 0, SEEK_SET))
		abort();
	return fd;
}

static int64_t play_getfl(int fd)
{
	return is_uffd(fd) ? k.flags : km_real_fcntl_getfl(fd);
}

static int64_t play_read_nowait(int fd, void *buf, size_t len)
{
	struct uffd_msg *to = buf;
	unsigned int n = 0;

	(void)fd;
	if (k.no_nowait)
		return -EOPNOTSUPP;
	if (len < sizeof(*to))
		return -EINVAL;
	while (n < len / sizeof(*to) && k.msg_at < k.msg_count)
		to[n++] = k.msgs[k.msg_at++];
	return n ? (int64_t)(n * sizeof(*to)) : -EAGAIN;
}

static int64_t play_read(int fd, void *buf, size_t len)
{
	return len >= sizeof(struct uffd_msg) && len % sizeof(struct uffd_msg) == 0
		       ? -EAGAIN
		       : km_real_read(fd, buf, len);
}

static int64_t play_epoll_ctl(int ep, int op, int fd, struct epoll_event *ev)
{
	(void)ep;
	(void)op;
	(void)fd;
	(void)ev;
	return 0;
}

static void put_msg(unsigned int event, uint64_t a, uint64_t b)
{
	struct uffd_msg *m = &k.msgs[k.msg_count++];

	memset(m, 0, sizeof(*m));
	m->event = (uint8_t)event;
	if (event == UFFD_EVENT_PAGEFAULT) {
		m->arg.pagefault.address = a;
		m->arg.pagefault.flags = b;
	} else {
		m->arg.remove.start = a;
		m->arg.remove.end = b;
	}
}

static struct answer next_answer(enum what what, uint64_t addr, uint64_t len)
{
	struct answer a = { 0, (int64_t)len };

	k.count[what]++;
	k.last[what] = addr;
	if (k.answer_at < k.answer_count) {
		a = k.answers[k.answer_at];
		if (!k.always || k.answer_at + 1 < k.answer_count)
			k.answer_at++;
	}
	if (a.r == -EAGAIN && k.removed_at_eagain) {
		uint64_t at = BASE + k.removed_at_eagain * PAGE;

		put_msg(UFFD_EVENT_REMOVE, at, at + PAGE);
		k.removed_at_eagain = 0;
	}
	return a;
}

static int64_t play_copy(struct uffdio_copy *c)
{
	static uint8_t copied[BYTES];
	struct answer a;

	/* A look: its source is not there. */
	if (km_copy(copied, (void *)(uintptr_t)c->src, c->len > BYTES ? PAGE : c->len))
		return k.ping;
	a = next_answer(COPY, c->dst, c->len);
	c->copy = a.result;
	if (a.result > 0 && c->dst - BASE < BYTES)
		memcpy(k.theirs + (c->dst - BASE), copied, km_min((uint64_t)a.result, BYTES));
	return a.r;
}

static int64_t play_ioctl(int fd, unsigned long request, void *arg)
{
	struct uffdio_range *range = arg;
	struct answer a;

	(void)fd;
	switch (request) {
	case UFFDIO_COPY:
		return play_copy(arg);
	case UFFDIO_ZEROPAGE:
		a = next_answer(ZERO, range->start, range->len);
		((struct uffdio_zeropage *)arg)->zeropage = a.result;
		return a.r;
	case UFFDIO_CONTINUE:
		a = next_answer(CONTINUE, range->start, range->len);
		((struct uffdio_continue *)arg)->mapped = a.result;
		return a.r;
	case KM_UFFDIO_POISON:
		a = next_answer(POISON, range->start, range->len);
		((struct km_uffdio_poison *)arg)->updated = a.result;
		return a.r;
	case UFFDIO_WRITEPROTECT:
		k.count[PROTECT]++;
		k.last[PROTECT] = range->start;
		return k.protect;
	case UFFDIO_WAKE:
		k.count[WAKE]++;
		for (uint64_t at = range->start; at < range->start + range->len; at += PAGE)
			if (at - BASE < BYTES)
				k.woken[(at - BASE) / PAGE] = true;
		return 0;
	default:
		return -EINVAL;
	}
}

static void play(void)
{
	memset(&k, 0, sizeof(k));
	fake_reset();
	k.uffds[0] = memfd_create("uffd", MFD_CLOEXEC);
	k.uffds[1] = memfd_create("uffd", MFD_CLOEXEC);
	k.features = READY | UFFD_FEATURE_EVENT_REMOVE;
	k.ioctls = ALL;
	k.flags = O_RDWR | O_NONBLOCK;
	k.ping = -EFAULT;
	fake.readlink = play_readlink;
	fake.open = play_open;
	fake.fcntl_getfl = play_getfl;
	fake.read_nowait = play_read_nowait;
	fake.read = play_read;
	fake.epoll_ctl = play_epoll_ctl;
	fake.ioctl = play_ioctl;
	for (size_t i = 0; i < BYTES; i++)
		content[i] = (uint8_t)(i / PAGE + 1);
}

static void end_play(void)
{
	close(k.uffds[0]);
	close(k.uffds[1]);
	fake_reset();
}

/* ---- regions and pagers ---- */

static struct kvmem_remote_mapping one = { .addr = BASE, .bytes = BYTES };

static struct kvmem_remote_opts good(void)
{
	struct kvmem_remote_opts o = KVMEM_REMOTE_OPTS_INIT;

	one = (struct kvmem_remote_mapping){ .addr = BASE, .bytes = BYTES };
	o.flags = KVMEM_REMOTE_MISSING;
	o.bytes = BYTES;
	o.mappings = &one;
	o.mapping_count = 1;
	o.uffds = k.uffds;
	o.uffd_count = 1;
	return o;
}

static enum kvmem_fail_action on_fail(void *arg, const struct kvmem_fail *fail)
{
	(void)arg;
	(void)fail;
	k.fails++;
	return KVMEM_FAIL_POISON;
}

static void on_ended(void *arg, struct kvmem_region *region)
{
	(void)arg;
	ck_assert_ptr_eq(region, k.ram);
	k.ends++;
}

static int read_content(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	k.source_reads++;
	if (k.source_error)
		return k.source_error;
	memcpy(buf, content + offset, bytes);
	return 0;
}

static void serve(const struct kvmem_remote_opts *o)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_pager_opts po = KVMEM_PAGER_OPTS_INIT;

	po.flags = KVMEM_PAGER_REMOTE | KVMEM_PAGER_NO_THREADS;
	po.fault_around = PAGE;
	po.fail = on_fail;
	po.ended = on_ended;
	ops.read = read_content;
	ck_assert_msg(!kvmem_remote_create(o, &k.ram), "%s", kvmem_error_detail());
	ck_assert_int_eq(kvmem_source_callback(&ops, NULL, BYTES, &k.source), 0);
	ck_assert_int_eq(kvmem_pager_create(&po, &k.pager), 0);
	ck_assert_msg(!kvmem_pager_add(k.pager, k.ram, k.source, 0, 0), "%s", kvmem_error_detail());
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
	memset(k.count, 0, sizeof(k.count));
	memset(k.woken, 0, sizeof(k.woken));
}

static void begin(void)
{
	struct kvmem_remote_opts o;

	play();
	o = good();
	serve(&o);
}

static void end(void)
{
	kvmem_pager_stop(k.pager, KVMEM_STOP_HAND_BACK);
	ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	ck_assert_int_eq(kvmem_region_free(k.ram), 0);
	ck_assert_int_eq(kvmem_source_free(k.source), 0);
	ck_assert_int_eq(fake.allocs, 0);
	end_play();
}

static void fault(uint64_t page, uint64_t flags)
{
	put_msg(UFFD_EVENT_PAGEFAULT, BASE + page * PAGE, flags);
	ck_assert_int_ge(kvmem_pager_handle(k.pager), 0);
}

static void answer(int64_t r, int64_t result)
{
	k.answers[k.answer_count++] = (struct answer){ r, result };
}

static uint32_t state_of(uint64_t page)
{
	struct kvmem_run run;
	uint32_t state;

	ck_assert_int_eq(kvmem_region_next_run(k.ram, page * PAGE, &run, &state), 1);
	return state;
}

static bool is_right(uint64_t page)
{
	return !memcmp(k.theirs + page * PAGE, content + page * PAGE, PAGE);
}

/* ---- refused ---- */

static void refused(const struct kvmem_remote_opts *o, int code, const char *rule)
{
	struct kvmem_region *r = NULL;
	long allocs = fake.allocs;
	unsigned int fds = harness_count_fds();

	ck_assert_int_eq(kvmem_remote_create(o, &r), code);
	ck_assert_msg(strstr(kvmem_error_detail(), rule), "'%s' is not in: %s", rule,
		      kvmem_error_detail());
	ck_assert_ptr_null(r);
	ck_assert_int_eq(fake.allocs, allocs);
	ck_assert_uint_eq(harness_count_fds(), fds);
}

/* The first half of the region beside `m` as its other one. */
static void refused_mapping(struct kvmem_remote_mapping m, const char *rule)
{
	struct kvmem_remote_opts o = good();
	struct kvmem_remote_mapping two[2] = { { .addr = BASE, .bytes = BYTES / 2 }, m };

	o.mappings = two;
	o.mapping_count = 2;
	refused(&o, -EINVAL, rule);
}

TEST(mappings_that_break_a_rule)
{
	const uint64_t half = BYTES / 2;

	play();
#define M(a, b, off) ((struct kvmem_remote_mapping){ .addr = (a), .bytes = (b), .offset = (off) })
	refused_mapping(M(BASE + half + 1, half, half), "multiples of the page size");
	refused_mapping(M(BASE + half, half - 1, half), "multiples of the page size");
	refused_mapping(M(BASE + half, half, half + 8), "multiples of the page size");
	refused_mapping(M(BASE + half, 0, half), "bytes is not 0");
	refused_mapping(M(0, half, half), "user space");
	refused_mapping(M(UINT64_MAX - PAGE + 1, half, half), "wraps around");
	refused_mapping(M(UINT64_C(1) << 63, half, half), "user space");
	refused_mapping(M(BASE + half, half, BYTES - PAGE), "beyond");
	refused_mapping(M(BASE + half, half, UINT64_MAX - PAGE + 1), "beyond");
	refused_mapping(M(BASE + half, UINT64_MAX - PAGE + 1, half), "user space");
	refused_mapping(M(BASE + half - PAGE, half, half), "overlap");
	refused_mapping(M(BASE, half, half), "overlap");
	refused_mapping(M(BASE + half, half, half - PAGE), "overlap");
	refused_mapping(M(BASE + half, half - PAGE, half + PAGE), "gap");
	refused_mapping(M(BASE + half, half - PAGE, half), "end at");
#undef M
	refused_mapping((struct kvmem_remote_mapping){ BASE + half, half, half, 1, 0 }, "index");
	refused_mapping((struct kvmem_remote_mapping){ BASE + half, half, half, 0, 7 }, "reserved");
	end_play();
}
END

TEST(options_that_break_a_rule)
{
	struct kvmem_remote_opts o;

	play();
#define WITH(change, code, rule) \
	do { \
		o = good(); \
		change; \
		refused(&o, code, rule); \
	} while (0)
	WITH(o.flags = 0, -EINVAL, "neither");
	WITH(o.flags |= 1u << 20, -EINVAL, "flags");
	WITH(o.flags |= KVMEM_REMOTE_FD, -EINVAL, "KVMEM_REMOTE_MINOR");
	WITH(o.flags = KVMEM_REMOTE_MINOR, -EINVAL, "KVMEM_REMOTE_FD");
	WITH(o.page_size = 12288, -EINVAL, "power of two");
	WITH(o.page_size = 2048, -EINVAL, "power of two");
	WITH(o.page_size = UINT64_C(1) << 31, -EINVAL, "power of two");
	WITH(o.bytes = 0, -EINVAL, "multiple");
	WITH(o.bytes = BYTES + 1, -EINVAL, "multiple");
	WITH(o.bytes = UINT64_MAX - PAGE + 1, -EINVAL, "multiple");
	WITH(o.bytes = 2 * BYTES, -EINVAL, "end at");
	WITH(o.uffds = NULL, -EINVAL, "userfaultfds");
	WITH(o.uffd_count = 0, -EINVAL, "userfaultfds");
	WITH(o.uffd_count = KVMEM_REMOTE_UFFDS_MAX + 1, -EINVAL, "userfaultfds");
	WITH(o.mappings = NULL, -EINVAL, "mappings");
	WITH(o.mapping_count = 0, -EINVAL, "mappings");
	WITH(o.mapping_count = KVMEM_REMOTE_MAPPINGS_MAX + 1, -EINVAL, "mappings");
	WITH((o.flags |= KVMEM_REMOTE_RECORD, o.record_fd = -1), -EBADF, "record_fd");
	WITH((o.flags |= KVMEM_REMOTE_FD | KVMEM_REMOTE_MINOR, o.fd = -1), -EBADF, "fd -1");
	WITH(o.size = 4, -EINVAL, "size");
	end_play();
}
END

TEST(descriptors_that_are_none)
{
	struct kvmem_remote_opts o;
	int both[2];

	play();
	WITH((k.link = "/memfd:x"), -EBADF, "not a userfaultfd");
	k.link = NULL;
	WITH(k.flags = -EBADF, -EBADF, "not open");
	k.flags = O_RDWR | O_NONBLOCK;
	WITH(k.features = UFFD_FEATURE_EVENT_REMOVE, -EINVAL, "UFFDIO_API");
	WITH(k.features = READY | UFFD_FEATURE_EVENT_FORK, -EOPNOTSUPP, "FORK");
	WITH(k.features = READY | UFFD_FEATURE_EVENT_REMAP, -EOPNOTSUPP, "REMAP");
	k.features = READY;
	WITH(k.fdinfo = "pos: 0\n", -EOPNOTSUPP, "fdinfo");
	WITH(k.fdinfo = "API:\tbb:1:1\n", -EOPNOTSUPP, "fdinfo");
	WITH(k.fdinfo = "API:\taa:80000000", -EOPNOTSUPP, "fdinfo");
	k.fdinfo = NULL;
	k.no_nowait = true;
	WITH(k.flags = O_RDWR, -EOPNOTSUPP, "6.10");
	k.no_nowait = false;
	k.flags = O_RDWR | O_NONBLOCK;
	both[0] = both[1] = k.uffds[0];
	WITH((o.uffds = both, o.uffd_count = 2), -EINVAL, "one and the same");
	WITH(k.ping = -ESRCH, -ESRCH, "ended");
	WITH(k.ping = -ENOENT, -ENOENT, "0x7f0000000000");
	WITH(k.ping = -EINVAL, -EINVAL, "no pages of");
	k.ping = -EFAULT;
	/* Huge pages that are none: a base page can be filled there. */
	one.bytes = HUGE;
	o = good();
	o.bytes = o.page_size = HUGE;
	one.bytes = HUGE;
	refused(&o, -EINVAL, "no pages of 0x200000 bytes");
	end_play();
}
END

TEST(one_region_a_userfaultfd)
{
	struct kvmem_remote_opts o;
	struct kvmem_region *first, *second = NULL;

	play();
	o = good();
	ck_assert_int_eq(kvmem_remote_create(&o, &first), 0);
	ck_assert_int_eq(kvmem_remote_create(&o, &second), -EBUSY);
	ck_assert_int_eq(kvmem_region_free(first), 0);
	ck_assert_int_eq(kvmem_remote_create(&o, &second), 0);
	ck_assert_int_eq(kvmem_region_free(second), 0);
	ck_assert_int_eq(fake.allocs, 0);
	end_play();
}
END

TEST(each_call_of_a_creation_fails)
{
	struct kvmem_remote_opts o;
	struct kvmem_region *r;
	unsigned int fds;
	int err = -1;

	play();
	o = good();
	fds = harness_count_fds();
	fake.fail_errno = EMFILE;
	for (fake.fail_at = 1; err; fake.fail_at++) {
		fake.calls = 0;
		r = NULL;
		err = kvmem_remote_create(&o, &r);
		if (!err)
			ck_assert_int_eq(kvmem_region_free(r), 0);
		/* What cannot be read is refused, or was only a look. */
		ck_assert_int_le(err, 0);
		ck_assert_int_eq(fake.allocs, 0);
		ck_assert_uint_eq(harness_count_fds(), fds);
		ck_assert_uint_lt(fake.fail_at, 100);
	}
	ck_assert_uint_gt(fake.fail_at, 10);
	end_play();
}
END

TEST(each_call_of_a_join_fails)
{
	struct kvmem_remote_mapping map = { .addr = BASE, .bytes = BYTES / 2, .offset = BYTES / 4 };
	struct kvmem_remote_opts o;
	unsigned int fds;
	long allocs;
	int err = -1;

	begin();
	o = good();
	o.mappings = &map;
	o.uffds = &k.uffds[1];
	fds = harness_count_fds();
	allocs = fake.allocs;
	fake.fail_errno = ENOMEM;
	for (fake.fail_at = 1; err; fake.fail_at++) {
		fake.calls = 0;
		err = kvmem_remote_join(k.pager, k.ram, &o);
		ck_assert_int_le(err, 0);
		if (err) {
			ck_assert_int_eq(fake.allocs, allocs);
			ck_assert_uint_eq(harness_count_fds(), fds);
		}
		ck_assert_uint_lt(fake.fail_at, 100);
	}
	ck_assert_uint_gt(fake.fail_at, 8);
	fake.fail_at = 0;
	fault(3, 0);
	ck_assert(is_right(3));
	ck_assert_int_eq(kvmem_remote_join(k.pager, k.ram, &o), -EBUSY);
	end();
}
END

TEST(what_needs_memory_of_our_own)
{
	struct kvmem_attachment at;
	struct kvmem_writes *writes;
	struct kvmem_stored stored;
	struct kvmem_placement place = KVMEM_PLACEMENT_INIT;
	const unsigned long node = 1;
	uint8_t buf[8];

	begin();
#define NO(call) ck_assert_int_eq(call, -EOPNOTSUPP)
	NO(kvmem_region_attach(k.ram, 0, BYTES, 0, KVMEM_SLOT_ANY, 0, NULL));
	NO(kvmem_region_adopt_slot(k.ram, 0, BYTES, 0, 1, 0));
	NO(kvmem_region_discard(k.ram, 0, PAGE));
	NO(kvmem_region_mark_present(k.ram, 0, PAGE));
	NO(kvmem_region_mark_absent(k.ram, 0, PAGE, 0));
	NO(kvmem_region_grow(k.ram, 2 * BYTES));
	NO(kvmem_region_check_huge(k.ram, 0, BYTES, 0));
	NO((int)kvmem_region_stored(k.ram, 0, BYTES, &stored, 1));
	NO(kvmem_region_read(k.ram, 0, buf, sizeof(buf)));
	NO(kvmem_region_set_policy(k.ram, 0, BYTES, KVMEM_POLICY_BIND, &node, 2, 0));
	NO(kvmem_region_placement(k.ram, 0, BYTES, &place));
	NO(kvmem_region_set_attributes(k.ram, 0, BYTES, 0));
	NO(kvmem_populate(k.ram, 0, k.source, NULL, NULL));
#undef NO
	ck_assert_ptr_null(kvmem_region_base(k.ram));
	ck_assert_int_eq(kvmem_region_fd(k.ram), -ENODEV);
	ck_assert_int_eq((int)kvmem_region_attachments(k.ram, 0, BYTES, &at, 1), 0);
	if (!kvmem_writes_create(NULL, &writes)) {
		ck_assert_int_eq(kvmem_writes_add(writes, k.ram), -EOPNOTSUPP);
		ck_assert_int_eq(kvmem_writes_free(writes), 0);
	}
	ck_assert_uint_eq(kvmem_region_bytes(k.ram), BYTES);
	end();
}
END

TEST(pagers_that_do_not_fit)
{
	struct kvmem_pager_opts po = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_remote_opts o;
	struct kvmem_pager *p = NULL;
	int32_t fd = 3;

	play();
	po.flags = KVMEM_PAGER_REMOTE | KVMEM_PAGER_CAPTURE;
	ck_assert_int_eq(kvmem_pager_create(&po, &p), -EINVAL);
	po.flags = KVMEM_PAGER_REMOTE;
	po.uffds = &fd;
	po.uffd_count = 1;
	ck_assert_int_eq(kvmem_pager_create(&po, &p), -EINVAL);
	po.uffds = NULL;
	po.uffd_count = 0;
	po.flags |= KVMEM_PAGER_NO_THREADS;
	/* A kernel without POISON: who waits for a page that cannot be filled would wait for ever. */
	k.ioctls &= ~(1ull << KM_UFFDIO_POISON_NR);
	o = good();
	ck_assert_int_eq(kvmem_remote_create(&o, &k.ram), 0);
	ck_assert_int_eq(kvmem_source_memory(content, BYTES, &k.source), 0);
	ck_assert_int_eq(kvmem_pager_create(&po, &p), 0);
	ck_assert_int_eq(kvmem_pager_add(p, k.ram, k.source, 0, 0), -EOPNOTSUPP);
	ck_assert_int_eq(kvmem_pager_free(p), 0);
	po.fail = on_fail;
	ck_assert_int_eq(kvmem_pager_create(&po, &k.pager), 0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.ram, k.source, 0, KVMEM_FILL_KEEP), -EINVAL);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.ram, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.ram, k.source, 0, 0), -EBUSY);
	ck_assert_int_eq(kvmem_region_free(k.ram), -EBUSY);
	end();
}
END

/* ---- answers ---- */

TEST(a_fault_is_filled)
{
	begin();
	fault(3, 0);
	ck_assert(is_right(3));
	ck_assert(k.woken[3]);
	ck_assert_uint_eq(state_of(3), KVMEM_PAGE_PRESENT);
	ck_assert_uint_eq(k.count[COPY], 1);
	end();
}
END

/* Before Linux 6.15 the result of EAGAIN stays 0, later it is -EAGAIN: neither is progress. */
TEST(events_are_unread)
{
	begin();
	answer(-EAGAIN, 0);
	answer(-EAGAIN, -EAGAIN);
	fault(3, 0);
	ck_assert_uint_eq(k.count[COPY], 3);
	ck_assert(is_right(3));
	ck_assert_uint_eq(state_of(3), KVMEM_PAGE_PRESENT);
	ck_assert_uint_eq(k.fails, 0);
	end();
}
END

/* The REMOVE that the kernel waits for is of this very page: its content must not appear. */
TEST(events_are_unread_and_take_the_page_away)
{
	begin();
	answer(-EAGAIN, 0);
	k.removed_at_eagain = 3;
	fault(3, 0);
	ck_assert_uint_eq(k.count[COPY], 1);
	ck_assert_uint_eq(state_of(3), KVMEM_PAGE_ZERO);
	ck_assert(!is_right(3));
	ck_assert(k.woken[3]); /* and faults again */
	fault(3, 0);
	ck_assert_uint_eq(k.count[COPY], 1);
	ck_assert_uint_eq(k.count[ZERO], 1);
	end();
}
END

TEST(removed_pages_stay_zero)
{
	begin();
	fault(4, 0);
	put_msg(UFFD_EVENT_REMOVE, BASE + 3 * PAGE, BASE + 5 * PAGE);
	ck_assert_int_ge(kvmem_pager_handle(k.pager), 0);
	ck_assert_uint_eq(state_of(3), KVMEM_PAGE_ZERO);
	ck_assert_uint_eq(state_of(4), KVMEM_PAGE_ZERO);
	ck_assert_uint_eq(state_of(5), KVMEM_PAGE_ABSENT);
	fault(3, 0);
	fault(4, 0);
	ck_assert_uint_eq(k.count[COPY], 1);
	ck_assert_uint_eq(k.count[ZERO], 2);
	/* Who takes the page away may do so only now. */
	ck_assert_uint_eq(state_of(3), KVMEM_PAGE_ZERO);
	end();
}
END

/* A page of a template, which the other process maps privately. */
TEST(removed_pages_do_not_come_back_by_minor_faults)
{
	struct kvmem_remote_opts o;

	play();
	o = good();
	o.flags |= KVMEM_REMOTE_MINOR;
	serve(&o);
	fault(3, 0);
	/* Its REMOVE is read while the page is about to be mapped. */
	answer(-EAGAIN, 0);
	k.removed_at_eagain = 3;
	memset(k.count, 0, sizeof(k.count));
	fault(3, UFFD_PAGEFAULT_FLAG_MINOR);
	ck_assert_uint_eq(k.count[CONTINUE], 1);
	ck_assert_uint_eq(state_of(3), KVMEM_PAGE_ZERO);
	ck_assert(k.woken[3]);
	fault(3, UFFD_PAGEFAULT_FLAG_MINOR);
	ck_assert_uint_eq(k.count[CONTINUE], 1);
	ck_assert_uint_eq(k.count[ZERO], 1);
	end();
}
END

/* Where UFFDIO_ZEROPAGE does not place zeros, a copy does. */
TEST(removed_huge_pages_do_not_come_back_either)
{
	struct kvmem_remote_opts o;

	play();
	o = good();
	o.flags |= KVMEM_REMOTE_MINOR;
	o.page_size = 2 * PAGE;
	k.ping = -EAGAIN; /* they are base pages */
	serve(&o);
	fault(4, 0);
	ck_assert(is_right(4) && is_right(5));
	put_msg(UFFD_EVENT_REMOVE, BASE + 4 * PAGE, BASE + 6 * PAGE);
	ck_assert_int_ge(kvmem_pager_handle(k.pager), 0);
	fault(5, UFFD_PAGEFAULT_FLAG_MINOR);
	ck_assert_uint_eq(k.count[CONTINUE], 0);
	ck_assert_uint_eq(k.count[ZERO], 0);
	ck_assert_uint_eq(k.count[COPY], 2);
	ck_assert(!k.theirs[4 * PAGE] && !k.theirs[5 * PAGE]);
	end();
}
END

TEST(it_never_stops_changing)
{
	begin();
	answer(-EAGAIN, 0);
	k.always = true;
	fault(3, 0);
	ck_assert_uint_eq(state_of(3), KVMEM_PAGE_ABSENT);
	ck_assert(k.woken[3]); /* and faults again */
	ck_assert_uint_eq(k.fails, 0);
	ck_assert_uint_eq(k.ends, 0);
	ck_assert_int_eq((int)kvmem_pager_put(k.pager, k.ram, 0, content, PAGE), -EAGAIN);
	k.always = false;
	k.answer_at = k.answer_count;
	fault(3, 0);
	ck_assert(is_right(3));
	end();
}
END

TEST(a_mapping_went_away)
{
	begin();
	answer(-ENOENT, -ENOENT);
	fault(3, 0);
	ck_assert_uint_eq(state_of(3), KVMEM_PAGE_ZERO);
	fault(4, 0);
	ck_assert(is_right(4));
	ck_assert_uint_eq(k.ends, 0);
	ck_assert_uint_eq(k.fails, 0);
	end();
}
END

TEST(a_page_was_there)
{
	begin();
	answer(-EEXIST, -EEXIST);
	fault(3, 0);
	ck_assert_uint_eq(state_of(3), KVMEM_PAGE_PRESENT);
	ck_assert(k.woken[3]);
	end();
}
END

static void check_ended(uint64_t page, uint32_t state)
{
	struct kvmem_range range = { 0, BYTES };
	unsigned int reads = k.source_reads;

	ck_assert_uint_eq(state_of(page), state);
	ck_assert_uint_eq(k.ends, 1);
	ck_assert_uint_eq(k.fails, k.source_error ? 1 : 0);
	memset(k.count, 0, sizeof(k.count));
	/* Nothing is tried any more. */
	ck_assert_int_eq((int)kvmem_pager_put(k.pager, k.ram, 9 * PAGE, content, PAGE), -ESRCH);
	ck_assert_int_eq(kvmem_pager_prefetch(k.pager, k.ram, &range, 1, NULL, NULL), -ESRCH);
	fault(10, 0);
	ck_assert_uint_le(k.count[COPY], 1);
	ck_assert_uint_eq(k.ends, 1);
	ck_assert_int_eq(kvmem_remote_check(k.ram), -ESRCH);
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), -ESRCH);
	ck_assert_uint_eq(k.source_reads, reads);
	end();
}

TEST(the_process_ended_at_a_copy)
{
	begin();
	answer(-ESRCH, -ESRCH);
	k.always = true;
	fault(3, 0);
	check_ended(3, KVMEM_PAGE_ABSENT);
}
END

TEST(the_process_ended_at_a_page_of_zeros)
{
	begin();
	put_msg(UFFD_EVENT_REMOVE, BASE + 3 * PAGE, BASE + 4 * PAGE);
	ck_assert_int_ge(kvmem_pager_handle(k.pager), 0);
	answer(-ESRCH, -ESRCH);
	k.always = true;
	fault(3, 0);
	check_ended(3, KVMEM_PAGE_ZERO);
}
END

TEST(the_process_ended_at_a_minor_fault)
{
	struct kvmem_remote_opts o;

	play();
	o = good();
	o.flags |= KVMEM_REMOTE_MINOR;
	serve(&o);
	fault(3, 0);
	ck_assert(is_right(3));
	answer(-ESRCH, -ESRCH);
	k.always = true;
	fault(3, UFFD_PAGEFAULT_FLAG_MINOR);
	ck_assert_uint_gt(k.count[CONTINUE], 0);
	check_ended(3, KVMEM_PAGE_PRESENT);
}
END

TEST(the_process_ended_at_a_mark_of_poison)
{
	begin();
	k.source_error = -EIO;
	answer(-ESRCH, -ESRCH);
	k.always = true;
	fault(3, 0);
	ck_assert_uint_gt(k.count[POISON], 0);
	check_ended(3, KVMEM_PAGE_ABSENT);
}
END

static struct kvmem_region *told[4];
static unsigned int told_count;

static void on_any_ended(void *arg, struct kvmem_region *region)
{
	(void)arg;
	told[told_count++] = region;
}

/*
 * A thread of nobody's has no more than its own region: another one may be removed, and freed, while its end is told.
 */
TEST(who_puts_content_tells_of_no_other_region)
{
	struct kvmem_pager_opts po = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_region *other;
	struct kvmem_remote_opts o;

	play();
	told_count = 0;
	o = good();
	ck_assert_int_eq(kvmem_remote_create(&o, &k.ram), 0);
	o.uffds = &k.uffds[1];
	ck_assert_int_eq(kvmem_remote_create(&o, &other), 0);
	ck_assert_int_eq(kvmem_source_memory(content, BYTES, &k.source), 0);
	po.flags = KVMEM_PAGER_REMOTE | KVMEM_PAGER_NO_THREADS;
	po.ended = on_any_ended;
	ck_assert_int_eq(kvmem_pager_create(&po, &k.pager), 0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, k.ram, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_add(k.pager, other, k.source, 0, 0), 0);
	ck_assert_int_eq(kvmem_pager_start(k.pager), 0);
	km_remote_ended(other->watch); /* a filler has found it, and not told yet */
	ck_assert_int_eq(kvmem_pager_put(k.pager, k.ram, 0, content, PAGE), PAGE);
	ck_assert_uint_eq(told_count, 0);
	answer(-ESRCH, -ESRCH);
	ck_assert_int_eq(kvmem_pager_put(k.pager, k.ram, PAGE, content, PAGE), -ESRCH);
	ck_assert_uint_eq(told_count, 1);
	ck_assert_ptr_eq(told[0], k.ram);
	ck_assert_int_ge(kvmem_pager_handle(k.pager), 0);
	ck_assert_uint_eq(told_count, 2);
	ck_assert_ptr_eq(told[1], other);
	kvmem_pager_stop(k.pager, KVMEM_STOP_HAND_BACK);
	ck_assert_int_eq(kvmem_pager_free(k.pager), 0);
	ck_assert_int_eq(kvmem_region_free(k.ram), 0);
	ck_assert_int_eq(kvmem_region_free(other), 0);
	ck_assert_int_eq(kvmem_source_free(k.source), 0);
	ck_assert_int_eq(fake.allocs, 0);
	end_play();
}
END

/* Its pages are smaller than it has said: a part of one was filled, and nothing goes round in circles. */
TEST(a_page_is_filled_in_part)
{
	struct kvmem_remote_opts o;

	play();
	o = good();
	o.page_size = 2 * PAGE;
	k.ping = -EAGAIN; /* which the look could not see */
	serve(&o);
	answer(-EAGAIN, (int64_t)PAGE);
	k.always = true;
	fault(4, 0);
	ck_assert_uint_eq(k.fails, 1);
	ck_assert_uint_eq(k.count[POISON], 1);
	end();
}
END

/* ---- events ---- */

TEST(addresses_that_are_in_no_mapping)
{
	begin();
	put_msg(UFFD_EVENT_PAGEFAULT, BASE + BYTES + 123, 0);
	put_msg(UFFD_EVENT_PAGEFAULT, 4096, 0);
	put_msg(UFFD_EVENT_REMOVE, BASE - PAGE, BASE);
	put_msg(UFFD_EVENT_REMOVE, 0, UINT64_MAX);
	ck_assert_int_ge(kvmem_pager_handle(k.pager), 0);
	ck_assert_uint_eq(k.count[COPY], 0);
	ck_assert_uint_eq(k.count[POISON], 2);
	ck_assert_uint_eq(k.last[POISON], 4096);
	ck_assert_uint_eq(state_of(0), KVMEM_PAGE_ZERO); /* of the last */
	end();
}
END

TEST(writes_that_wait_for_protection)
{
	begin();
	fault(7, UFFD_PAGEFAULT_FLAG_WP);
	ck_assert_uint_eq(k.count[PROTECT], 1);
	ck_assert_uint_eq(k.last[PROTECT], BASE + 7 * PAGE);
	ck_assert_uint_eq(state_of(7), KVMEM_PAGE_ABSENT);
	ck_assert(!k.woken[7]); /* the kernel does that */
	k.protect = -EAGAIN;
	fault(7, UFFD_PAGEFAULT_FLAG_WP);
	ck_assert_uint_eq(k.count[PROTECT], 2);
	ck_assert(k.woken[7]);
	end();
}
END

TEST(accesses_to_nothing_while_its_memory_changes)
{
	begin();
	answer(-EAGAIN, -EAGAIN);
	put_msg(UFFD_EVENT_PAGEFAULT, BASE + BYTES + 123, 0);
	ck_assert_int_ge(kvmem_pager_handle(k.pager), 0);
	ck_assert_uint_eq(k.count[POISON], 1);
	ck_assert_uint_eq(k.count[WAKE], 1); /* it comes again */
	end();
}
END

TEST(spans_out_of_order)
{
	const uint64_t part = BYTES / 4;
	struct kvmem_remote_mapping maps[4];
	struct kvmem_remote_opts o;

	play();
	o = good();
	/* The other way round there, by two userfaultfds. */
	for (unsigned int i = 0; i < 4; i++)
		maps[i] = (struct kvmem_remote_mapping){ .addr = BASE + (3 - i) * part,
							 .bytes = part,
							 .offset = i * part,
							 .uffd = i % 2 };
	o.mappings = maps;
	o.mapping_count = 4;
	o.uffd_count = 2;
	serve(&o);
	for (uint64_t i = 0; i < PAGES; i++)
		fault(i, 0);
	for (uint64_t i = 0; i < PAGES; i++) {
		uint64_t span = i / (PAGES / 4), page = (3 - span) * (PAGES / 4) + i % (PAGES / 4);

		ck_assert(!memcmp(k.theirs + i * PAGE, content + page * PAGE, PAGE));
		ck_assert(k.woken[i]);
	}
	put_msg(UFFD_EVENT_REMOVE, BASE, BASE + PAGE);
	ck_assert_int_ge(kvmem_pager_handle(k.pager), 0);
	ck_assert_uint_eq(state_of(3 * PAGES / 4), KVMEM_PAGE_ZERO);
	ck_assert_uint_eq(state_of(0), KVMEM_PAGE_PRESENT);
	end();
}
END

/* ---- records ---- */

struct record {
	char magic[8];
	uint32_t version, shift;
	uint64_t pages, reserved[5];
	uint64_t words[PAGES / 16];
};

static int record_of(const struct record *r, bool sealed)
{
	int fd = memfd_create("record", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	ck_assert_int_eq(pwrite(fd, r, sizeof(*r), 0), sizeof(*r));
	if (sealed)
		ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
	return fd;
}

static struct kvmem_remote_opts with_record(int fd)
{
	struct kvmem_remote_opts o = good();

	o.flags |= KVMEM_REMOTE_RECORD;
	o.record_fd = fd;
	return o;
}

static const struct record fresh = { "kvmemrec", 1, 12, PAGES, { 0 }, { 0 } };

TEST(records_of_predecessors)
{
	/* Present, zero, poisoned; claimed; claimed and removed, wanted, poisoned before. */
	static const unsigned int bits[] = { 2, 3, 4, 8, 8 | 2, 8 | 1, 8 | 4, 8 | 4 | 2 };
	static const uint32_t states[] = { KVMEM_PAGE_PRESENT,	KVMEM_PAGE_ZERO,
					   KVMEM_PAGE_POISONED, KVMEM_PAGE_ABSENT,
					   KVMEM_PAGE_ZERO,	KVMEM_PAGE_ABSENT,
					   KVMEM_PAGE_POISONED, KVMEM_PAGE_ZERO };
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;
	struct record r = fresh;
	struct kvmem_remote_opts o;
	int fd;

	play();
	for (unsigned int i = 0; i < 8; i++)
		r.words[1] |= (uint64_t)bits[i] << 4 * i;
	fd = record_of(&r, true);
	o = with_record(fd);
	serve(&o);
	close(fd);
	for (unsigned int i = 0; i < 8; i++)
		ck_assert_uint_eq(state_of(16 + i), states[i]);
	ck_assert_int_eq(kvmem_pager_get_stats(k.pager, &st), 0);
	ck_assert_uint_eq(st.pages_missing, PAGES - 4);
	ck_assert_uint_eq(st.pages_poisoned, 2);
	fault(16 + 3, 0);
	ck_assert_uint_eq(state_of(16 + 3), KVMEM_PAGE_PRESENT);
	/* All of it: nothing is left that counts as missing. */
	ck_assert_int_eq(kvmem_pager_stop(k.pager, KVMEM_STOP_FILL), 0);
	ck_assert_int_eq(kvmem_pager_get_stats(k.pager, &st), 0);
	ck_assert_uint_eq(st.pages_missing, 0);
	end();
}
END

TEST(records_that_are_none)
{
	struct record r = fresh;
	struct kvmem_remote_opts o;
	int fd;

	play();
#define BAD(change, seal, code, rule) \
	do { \
		r = fresh; \
		change; \
		fd = record_of(&r, seal); \
		o = with_record(fd); \
		refused(&o, code, rule); \
		close(fd); \
	} while (0)
	BAD((void)0, false, -EPERM, "F_SEAL_SHRINK");
	BAD(r.magic[0] = 'x', true, -EINVAL, "no record");
	BAD(r.version = 2, true, -EINVAL, "no record");
	BAD(r.shift = 21, true, -EINVAL, "another region");
	BAD(r.pages = 1, true, -EINVAL, "another region");
	BAD(r.words[0] = 1, true, -EINVAL, "state");
	BAD(r.words[3] = 7ull << 60, true, -EINVAL, "state");
#undef BAD
	fd = memfd_create("short", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ck_assert_int_eq(ftruncate(fd, 64), 0);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	o = with_record(fd);
	refused(&o, -EINVAL, "bytes");
	close(fd);
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	o = with_record(fd);
	refused(&o, -EINVAL, "not a memfd");
	close(fd);
	end_play();
}
END

HARNESS_MAIN(T(mappings_that_break_a_rule), T(options_that_break_a_rule),
	     T(descriptors_that_are_none), T(one_region_a_userfaultfd),
	     T(each_call_of_a_creation_fails), T(each_call_of_a_join_fails),
	     T(what_needs_memory_of_our_own), T(pagers_that_do_not_fit), T(a_fault_is_filled),
	     T(events_are_unread), T(events_are_unread_and_take_the_page_away),
	     T(removed_pages_stay_zero), T(removed_pages_do_not_come_back_by_minor_faults),
	     T(removed_huge_pages_do_not_come_back_either), T(it_never_stops_changing),
	     T(a_mapping_went_away), T(a_page_was_there), T(the_process_ended_at_a_copy),
	     T(the_process_ended_at_a_page_of_zeros), T(the_process_ended_at_a_minor_fault),
	     T(the_process_ended_at_a_mark_of_poison), T(who_puts_content_tells_of_no_other_region),
	     T(a_page_is_filled_in_part), T(addresses_that_are_in_no_mapping),
	     T(writes_that_wait_for_protection), T(accesses_to_nothing_while_its_memory_changes),
	     T(spans_out_of_order), T(records_of_predecessors), T(records_that_are_none))
