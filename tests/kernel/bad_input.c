// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Bad input, as kvmem(7) lists it: each call is refused with its code and a sentence of its own, and
 * leaves no file descriptor and no mapping behind.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE  ((uint64_t)sysconf(_SC_PAGESIZE))
#define PAGES 16u
#define GPA   (UINT64_C(1) << 30)

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static struct kvmem_source *text;
static char content[8192] = "content";

/* ---- how a refusal is told ---- */

static unsigned int fds, maps;

static void before(void)
{
	fds = harness_count_fds();
	maps = harness_count_maps();
	kvmem_caps_get(NULL, 0, NULL); /* a sentence that none of the calls below has */
}

static void refused(int64_t r, int err, const char *word)
{
	const char *detail = kvmem_error_detail();

	ck_assert_msg(r == -err, "%lld, not %d: %s", (long long)r, -err, detail);
	ck_assert_msg(!strstr(detail, "kvmem_caps_get") && strstr(detail, word),
		      "'%s' is not in: %s", word, detail);
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
}

/* The call answers -err, with a sentence in which `word` is. */
#define REFUSED(err, word, call) \
	do { \
		int64_t r_; \
		before(); \
		r_ = (call); \
		refused(r_, err, word); \
	} while (0)

#define OK(call) \
	do { \
		int64_t r_ = (call); \
		ck_assert_msg(r_ >= 0, "%lld: %s", (long long)r_, kvmem_error_detail()); \
	} while (0)

/* ---- what there is to call them on ---- */

static bool open_vm(void)
{
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	OK(kvmem_vm_create(NULL, &vm));
	return true;
}

static void open_ram(uint64_t needs)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.bytes = PAGES * PAGE;
	o.backing = KVMEM_BACKING_MEMFD;
	o.needs = needs;
	OK(kvmem_region_create(vm, &o, &ram));
	OK(kvmem_source_memory(content, sizeof(content), &text));
}

static void close_all(void)
{
	OK(kvmem_source_free(text));
	OK(kvmem_region_free(ram));
	OK(kvmem_vm_free(vm));
	text = NULL;
	ram = NULL;
	vm = NULL;
}

static int create(struct kvmem_region_opts o)
{
	struct kvmem_region *r = NULL;

	o.size = sizeof(o);
	return kvmem_region_create(vm, &o, &r);
}

static int attach(uint64_t offset, uint64_t bytes, uint64_t gpa)
{
	return kvmem_region_attach(ram, offset, bytes, gpa, KVMEM_SLOT_ANY, 0, NULL);
}

static int populate(uint64_t offset, struct kvmem_populate_opts o)
{
	o.size = sizeof(o);
	return kvmem_populate(ram, offset, text, &o, NULL);
}

static int policy(uint64_t offset, uint64_t bytes, uint32_t mode, unsigned long nodes)
{
	return kvmem_region_set_policy(ram, offset, bytes, mode, &nodes, 64, 0);
}

static int placement(uint64_t offset, uint64_t bytes)
{
	struct kvmem_placement p = KVMEM_PLACEMENT_INIT;

	return kvmem_region_placement(ram, offset, bytes, &p);
}

/* ---- sizes and ranges ---- */

TEST(zero_sizes)
{
	char byte;

	if (!open_vm())
		return;
	open_ram(0);
	REFUSED(EINVAL, "bytes", create((struct kvmem_region_opts){ 0 }));
	REFUSED(EINVAL, "0 bytes", attach(0, 0, GPA));
	REFUSED(EINVAL, "0 bytes", kvmem_region_discard(ram, 0, 0));
	REFUSED(EINVAL, "0 bytes", kvmem_region_mark_present(ram, 0, 0));
	REFUSED(EINVAL, "0 bytes", policy(0, 0, KVMEM_POLICY_BIND, 1));
	REFUSED(EINVAL, "0 bytes", placement(0, 0));
	REFUSED(EINVAL, "0", kvmem_source_memory(content, 0, &text));
	REFUSED(EINVAL, "0 bytes", kvmem_source_read(text, 0, &byte, 0));
	close_all();
}
END

TEST(unaligned_sizes)
{
	if (!open_vm())
		return;
	open_ram(0);
	REFUSED(EINVAL, "multiple", create((struct kvmem_region_opts){ .bytes = PAGE + 1 }));
	REFUSED(EINVAL, "page_size",
		create((struct kvmem_region_opts){ .bytes = PAGE, .page_size = 12345 }));
	REFUSED(EINVAL, "offset", attach(1, PAGE, GPA));
	REFUSED(EINVAL, "bytes", attach(0, PAGE - 1, GPA));
	REFUSED(EINVAL, "gpa", attach(0, PAGE, GPA + 1));
	REFUSED(EINVAL, "multiple", kvmem_region_discard(ram, 1, PAGE));
	REFUSED(EINVAL, "multiple", kvmem_region_mark_present(ram, 0, PAGE + 1));
	REFUSED(EINVAL, "multiple", policy(PAGE / 2, PAGE, KVMEM_POLICY_BIND, 1));
	REFUSED(EINVAL, "multiple", placement(0, PAGE / 2));
	close_all();
}
END

TEST(overflowing_sizes)
{
	if (!open_vm())
		return;
	open_ram(0);
	REFUSED(EINVAL, "more than a file can hold",
		create((struct kvmem_region_opts){ .bytes = (UINT64_C(1) << 63) }));
	REFUSED(EINVAL, "overflows", attach(-PAGE, 2 * PAGE, GPA));
	REFUSED(EINVAL, "overflows", attach(0, PAGE, -PAGE));
	REFUSED(EINVAL, "overflows", kvmem_region_discard(ram, PAGE, -PAGE));
	REFUSED(EINVAL, "overflows", policy(PAGE, -PAGE, KVMEM_POLICY_BIND, 1));
	REFUSED(EINVAL, "overflows", kvmem_source_read(text, 1, content, UINT64_MAX));
	close_all();
}
END

TEST(ranges_beyond_the_end)
{
	struct kvmem_extent extent = KVMEM_EXTENT_INIT;
	struct kvmem_run run;

	if (!open_vm())
		return;
	open_ram(0);
	REFUSED(ERANGE, "beyond", attach(PAGE, PAGES * PAGE, GPA));
	REFUSED(ERANGE, "gpa", attach(0, PAGE, UINT64_C(1) << 62));
	REFUSED(ERANGE, "beyond", kvmem_region_discard(ram, PAGES * PAGE, PAGE));
	REFUSED(ERANGE, "beyond", kvmem_region_mark_present(ram, 0, (PAGES + 1) * PAGE));
	REFUSED(ERANGE, "beyond", kvmem_region_next_missing(ram, PAGES * PAGE + 1, &run));
	REFUSED(ERANGE, "beyond", policy(0, (PAGES + 1) * PAGE, KVMEM_POLICY_BIND, 1));
	REFUSED(ERANGE, "beyond", placement(PAGE, PAGES * PAGE));
	REFUSED(ERANGE, "beyond",
		populate(PAGES * PAGE - 10, (struct kvmem_populate_opts){ .bytes = 11 }));
	REFUSED(ERANGE, "beyond", kvmem_source_read(text, sizeof(content), content, 1));
	REFUSED(ERANGE, "beyond", kvmem_source_extent(text, sizeof(content), &extent));
	close_all();
}
END

TEST(slots_that_overlap_or_do_not_exist)
{
	uint32_t slot;

	if (!open_vm())
		return;
	open_ram(0);
	OK(kvmem_region_attach(ram, 0, 4 * PAGE, GPA, KVMEM_SLOT_ANY, 0, &slot));
	REFUSED(EEXIST, "overlap", attach(8 * PAGE, PAGE, GPA + 3 * PAGE));
	REFUSED(EEXIST, "taken", kvmem_region_attach(ram, 0, PAGE, 2 * GPA, slot, 0, NULL));
	REFUSED(EINVAL, "slot number", kvmem_region_attach(ram, 0, PAGE, 2 * GPA, 0xffff, 0, NULL));
	REFUSED(ENOENT, "slot", kvmem_region_detach(ram, slot + 1));
	REFUSED(EINVAL, "flags",
		kvmem_region_attach(ram, 0, PAGE, 2 * GPA, KVMEM_SLOT_ANY, 8, NULL));
	close_all();
}
END

/* ---- nodes ---- */

TEST(nodes_that_do_not_exist)
{
	unsigned long far[16] = { 0 };

	open_ram(0);
	far[15] = 1ul << 63;
	REFUSED(ENODEV, "node 1023",
		kvmem_region_set_policy(ram, 0, PAGE, KVMEM_POLICY_BIND, far, 1024, 0));
	REFUSED(EINVAL, "needs a node", policy(0, PAGE, KVMEM_POLICY_BIND, 0));
	REFUSED(EINVAL, "mode", policy(0, PAGE, 77, 1));
	REFUSED(EINVAL, "maxnode", kvmem_numa_nodes(far, 0));
	close_all();
}
END

/* ---- sources ---- */

static int short_file(uint64_t bytes)
{
	int fd = memfd_create("short", MFD_CLOEXEC);

	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	return fd;
}

TEST(short_sources)
{
	struct kvmem_source *s = NULL;
	int fd = short_file(2 * PAGE);

	open_ram(0);
	REFUSED(ENODATA, "short", kvmem_source_file(fd, 0, 3 * PAGE, 0, &s));
	REFUSED(ENODATA, "short", kvmem_source_file(fd, 5 * PAGE, 0, 0, &s));
	REFUSED(ENODATA, "source", populate(0, (struct kvmem_populate_opts){ .bytes = 4 * PAGE }));
	close(fd);
	close_all();
}
END

static int fails_at_page_3(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	memset(buf, 1, bytes);
	return offset + bytes > 3 * PAGE ? -EREMOTEIO : 0;
}

TEST(sources_that_fail_in_the_middle)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_populate_result result = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_source *s;
	struct kvmem_run run;

	open_ram(0);
	ops.read = fails_at_page_3;
	OK(kvmem_source_callback(&ops, NULL, PAGES * PAGE, &s));
	o.threads = 1;
	o.chunk_bytes = PAGE;
	REFUSED(EREMOTEIO, "", kvmem_populate(ram, 0, s, &o, &result));
	/* The pages before are there and the others can still be filled. */
	ck_assert_uint_gt(result.bytes_copied + result.bytes_written, 0);
	ck_assert_int_eq(kvmem_region_next_missing(ram, 0, &run), 1);
	OK(kvmem_populate(ram, run.offset, text, NULL, NULL));
	OK(kvmem_source_free(s));
	close_all();
}
END

/* ---- structs ---- */

/* A struct of a caller's, with room for a newer header's fields behind it. */
union grown {
	uint32_t size;
	char room[2048];
};

typedef int (*taker)(const void *opts);

static int take_caps(const void *o)
{
	struct kvmem_caps *caps;

	return kvmem_caps_probe(o, &caps);
}

static int take_vm(const void *o)
{
	return kvmem_vm_create(o, &vm);
}

static int take_region(const void *o)
{
	struct kvmem_region *r;

	return kvmem_region_create(NULL, o, &r);
}

static int take_populate(const void *o)
{
	return kvmem_populate(ram, 0, text, o, NULL);
}

static int take_source(const void *o)
{
	struct kvmem_source *s;

	return kvmem_source_callback(o, NULL, PAGE, &s);
}

static int take_pager(const void *o)
{
	struct kvmem_pager *p;

	return kvmem_pager_create(o, &p);
}

static int take_dirty(const void *o)
{
	struct kvmem_dirty *d;

	return kvmem_dirty_create(vm, o, &d);
}

static const struct {
	const char *name;
	size_t size;
	taker take;
} takers[] = {
	{ "kvmem_caps_opts", sizeof(struct kvmem_caps_opts), take_caps },
	{ "kvmem_vm_opts", sizeof(struct kvmem_vm_opts), take_vm },
	{ "kvmem_region_opts", sizeof(struct kvmem_region_opts), take_region },
	{ "kvmem_populate_opts", sizeof(struct kvmem_populate_opts), take_populate },
	{ "kvmem_source_ops", sizeof(struct kvmem_source_ops), take_source },
	{ "kvmem_pager_opts", sizeof(struct kvmem_pager_opts), take_pager },
	{ "kvmem_dirty_opts", sizeof(struct kvmem_dirty_opts), take_dirty },
};

TEST(wrong_struct_sizes)
{
	if (!open_vm())
		return;
	open_ram(0);
	for (size_t i = 0; i < sizeof(takers) / sizeof(takers[0]); i++) {
		union grown g = { .room = { 0 } };

		REFUSED(EINVAL, takers[i].name, takers[i].take(&g));
		g.size = 4;
		REFUSED(EINVAL, takers[i].name, takers[i].take(&g));
	}
	close_all();
}
END

TEST(unknown_tails)
{
	if (!open_vm())
		return;
	open_ram(0);
	for (size_t i = 0; i < sizeof(takers) / sizeof(takers[0]); i++) {
		union grown g = { .room = { 0 } };

		g.size = sizeof(g);
		g.room[takers[i].size] = 1;
		REFUSED(E2BIG, takers[i].name, takers[i].take(&g));
		g.room[takers[i].size] = 0;
		g.room[sizeof(g) - 1] = 1;
		REFUSED(E2BIG, takers[i].name, takers[i].take(&g));
	}
	close_all();
}
END

TEST(unknown_flags)
{
	struct kvmem_source *s;
	int fd = short_file(PAGE);

	if (!open_vm())
		return;
	open_ram(0);
	for (size_t i = 0; i < sizeof(takers) / sizeof(takers[0]); i++) {
		union grown g = { .room = { 0 } };
		uint32_t flags = 1u << 31;

		g.size = (uint32_t)takers[i].size;
		memcpy(g.room + 4, &flags, sizeof(flags)); /* all have it there */
		REFUSED(EINVAL, "flags", takers[i].take(&g));
	}
	REFUSED(EINVAL, "flags", kvmem_source_file(fd, 0, 0, 1u << 31, &s));
	REFUSED(EINVAL, "wants",
		create((struct kvmem_region_opts){ .bytes = PAGE, .wants = 1u << 31 }));
	REFUSED(EINVAL, "needs",
		create((struct kvmem_region_opts){ .bytes = PAGE, .needs = 1u << 31 }));
	REFUSED(EINVAL, "backing",
		create((struct kvmem_region_opts){ .bytes = PAGE, .backing = 9 }));
	REFUSED(EINVAL, "method", populate(0, (struct kvmem_populate_opts){ .method = 99 }));
	close(fd);
	close_all();
}
END

TEST(result_structs_too_small)
{
	struct kvmem_plan plan = { .size = 4 };
	struct kvmem_cap_info info = { .size = 4 };
	struct kvmem_placement p = { .size = 4 };
	struct kvmem_extent extent = { .size = 4 };

	if (!open_vm())
		return;
	open_ram(0);
	REFUSED(EINVAL, "size", kvmem_region_get_plan(ram, &plan));
	REFUSED(EINVAL, "size", kvmem_caps_get(kvmem_vm_caps(vm), KVMEM_CAP_KVM, &info));
	REFUSED(EINVAL, "size", kvmem_region_placement(ram, 0, PAGE, &p));
	REFUSED(EINVAL, "size", kvmem_source_extent(text, 0, &extent));
	close_all();
}
END

/* ---- the order of calls ---- */

TEST(ring_after_a_vcpu)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	struct kvmem_dirty *dirty;
	int vcpu;

	if (!open_vm())
		return;
	open_ram(0);
	o.mode = KVMEM_DIRTY_RING;
	vcpu = ioctl(kvmem_vm_fd(vm), KVM_CREATE_VCPU, 0);
	ck_assert_int_ge(vcpu, 0);
	REFUSED(EBUSY, "vCPU", kvmem_dirty_create(vm, &o, &dirty));
	close(vcpu);
	close_all();
}
END

TEST(policies_after_pages)
{
	open_ram(0);
	memset(kvmem_region_base(ram), 1, 3 * PAGE);
	REFUSED(EEXIST, "3 ", policy(0, PAGES * PAGE, KVMEM_POLICY_BIND, 1));
	close_all();
}
END

TEST(dirty_tracking_out_of_turn)
{
	struct kvmem_dirty *dirty, *second;
	struct kvmem_batch *batch, *other;
	const uint64_t first_page = 1;
	struct kvmem_run run;

	if (!open_vm())
		return;
	open_ram(KVMEM_WANT_DIRTY);
	OK(kvmem_dirty_create(vm, NULL, &dirty));
	OK(attach(0, PAGES * PAGE, GPA));
	REFUSED(EEXIST, "tracker", kvmem_dirty_create(vm, NULL, &second));
	REFUSED(EINVAL, "started", kvmem_dirty_harvest(dirty, &batch));
	REFUSED(EINVAL, "started", kvmem_dirty_stop(dirty));
	OK(kvmem_dirty_start(dirty));
	REFUSED(EBUSY, "started", kvmem_dirty_start(dirty));
	REFUSED(EBUSY, "started", kvmem_dirty_free(dirty));
	OK(kvmem_dirty_merge(dirty, ram, 0, PAGE, 12, &first_page));
	ck_assert_int_eq(kvmem_dirty_harvest(dirty, &batch), 1);
	REFUSED(EPERM, "commit", kvmem_batch_next(batch, &run));
	REFUSED(EBUSY, "batch", kvmem_dirty_harvest(dirty, &other));
	REFUSED(EBUSY, "batch", kvmem_dirty_stop(dirty));
	OK(kvmem_dirty_commit(dirty, batch));
	REFUSED(EALREADY, "commit", kvmem_dirty_commit(dirty, batch));
	kvmem_batch_free(batch);
	OK(kvmem_dirty_stop(dirty));
	REFUSED(EINVAL, "started", kvmem_dirty_stop(dirty));
	REFUSED(ENOENT, "vCPU", kvmem_dirty_remove_vcpu(dirty, 0));
	OK(kvmem_dirty_free(dirty));
	close_all();
}
END

static struct kvmem_pager *open_pager(void)
{
	struct kvmem_pager *pager = NULL;
	int r = kvmem_pager_create(NULL, &pager);

	if (r)
		harness_skip("uffd", "%s", kvmem_error_detail());
	return pager;
}

TEST(paging_out_of_turn)
{
	struct kvmem_pager *pager = open_pager(), *second;

	if (!pager)
		return;
	open_ram(KVMEM_WANT_PAGING);
	REFUSED(EINVAL, "region", kvmem_pager_start(pager));
	REFUSED(EINVAL, "not running", kvmem_pager_stop(pager, KVMEM_STOP_FILL));
	OK(kvmem_pager_add(pager, ram, text, 0, 0));
	OK(kvmem_pager_create(NULL, &second));
	REFUSED(EBUSY, "pager", kvmem_pager_add(second, ram, text, 0, 0));
	OK(kvmem_pager_free(second));
	OK(kvmem_pager_start(pager));
	REFUSED(EBUSY, "start", kvmem_pager_start(pager));
	REFUSED(EINVAL, "NO_THREADS", kvmem_pager_handle(pager));
	REFUSED(EINVAL, "how", kvmem_pager_stop(pager, 7));
	OK(kvmem_pager_stop(pager, KVMEM_STOP_FILL));
	REFUSED(EINVAL, "not running", kvmem_pager_stop(pager, KVMEM_STOP_FILL));
	OK(kvmem_pager_free(pager));
	close_all();
}
END

TEST(freed_while_in_use)
{
	struct kvmem_pager *pager;

	if (!open_vm())
		return;
	open_ram(KVMEM_WANT_PAGING);
	REFUSED(EBUSY, "region", kvmem_vm_free(vm));
	pager = open_pager();
	if (pager) {
		OK(kvmem_pager_add(pager, ram, text, 0, 0));
		OK(kvmem_pager_start(pager));
		REFUSED(EBUSY, "pager", kvmem_region_free(ram));
		REFUSED(EBUSY, "source", kvmem_source_free(text));
		REFUSED(EBUSY, "stop", kvmem_pager_free(pager));
		OK(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
		OK(kvmem_pager_free(pager));
	}
	close_all();
}
END

/* ---- NULL ---- */

TEST(null_pointers)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = PAGE };
	struct kvmem_dirty *dirty;

	open_ram(0);
	REFUSED(EINVAL, "NULL", kvmem_caps_probe(NULL, NULL));
	REFUSED(EINVAL, "NULL", kvmem_vm_create(NULL, NULL));
	REFUSED(EINVAL, "NULL", kvmem_vm_fd(NULL));
	REFUSED(EINVAL, "NULL", kvmem_region_create(NULL, NULL, &ram));
	REFUSED(EINVAL, "NULL", kvmem_region_create(NULL, &o, NULL));
	REFUSED(EINVAL, "NULL", kvmem_region_plan(NULL, &o, NULL));
	REFUSED(EINVAL, "NULL", kvmem_region_attach(NULL, 0, PAGE, GPA, 0, 0, NULL));
	REFUSED(EINVAL, "VM", attach(0, PAGE, GPA));
	REFUSED(EINVAL, "NULL", kvmem_region_discard(NULL, 0, PAGE));
	REFUSED(EINVAL, "NULL", kvmem_region_next_missing(ram, 0, NULL));
	REFUSED(EINVAL, "NULL",
		kvmem_region_set_policy(ram, 0, PAGE, KVMEM_POLICY_BIND, NULL, 64, 0));
	REFUSED(EINVAL, "NULL", kvmem_region_placement(ram, 0, PAGE, NULL));
	REFUSED(EINVAL, "NULL", kvmem_source_memory(NULL, PAGE, &text));
	REFUSED(EINVAL, "NULL", kvmem_source_callback(NULL, NULL, PAGE, &text));
	REFUSED(EINVAL, "NULL", kvmem_source_read(text, 0, NULL, PAGE));
	REFUSED(EINVAL, "NULL", kvmem_populate(NULL, 0, text, NULL, NULL));
	REFUSED(EINVAL, "NULL", kvmem_populate(ram, 0, NULL, NULL, NULL));
	REFUSED(EINVAL, "NULL", kvmem_pager_create(NULL, NULL));
	REFUSED(EINVAL, "NULL", kvmem_pager_start(NULL));
	REFUSED(EINVAL, "NULL", kvmem_dirty_create(NULL, NULL, &dirty));
	REFUSED(EINVAL, "NULL", kvmem_dirty_start(NULL));
	REFUSED(EINVAL, "NULL", kvmem_batch_next(NULL, NULL));
	close_all();
}
END

/* ---- file descriptors ---- */

TEST(closed_file_descriptors)
{
	struct kvmem_caps_opts c = { .size = sizeof(c), .flags = KVMEM_CAPS_VM_FD, .vm_fd = 999 };
	struct kvmem_caps *caps;
	struct kvmem_source *s;
	struct kvmem_vm *v;

	REFUSED(EBADF, "999", kvmem_vm_adopt(999, NULL, &v));
	REFUSED(EBADF, "999", kvmem_caps_probe(&c, &caps));
	REFUSED(EBADF, "999", kvmem_source_file(999, 0, 0, 0, &s));
	REFUSED(EBADF, "999",
		create((struct kvmem_region_opts){
			.bytes = PAGE, .flags = KVMEM_REGION_FD, .fd = 999 }));
}
END

TEST(file_descriptors_of_the_wrong_kind)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), fd[2], write_only;
	struct kvmem_source *s;
	struct kvmem_dirty *dirty;
	struct kvmem_vm *v;

	ck_assert_int_eq(pipe2(fd, O_CLOEXEC), 0);
	write_only = open("/dev/null", O_WRONLY | O_CLOEXEC);
	REFUSED(EBADF, "not a KVM VM", kvmem_vm_adopt(null, NULL, &v));
	REFUSED(EBADF, "memfd",
		create((struct kvmem_region_opts){
			.bytes = PAGE, .flags = KVMEM_REGION_FD, .fd = null }));
	REFUSED(EBADF, "reading", kvmem_source_file(write_only, 0, 0, 0, &s));
	REFUSED(ESPIPE, "file", kvmem_source_file(fd[0], 0, 0, 0, &s));
	if (open_vm()) {
		open_ram(0);
		OK(kvmem_dirty_create(vm, NULL, &dirty));
		REFUSED(EINVAL, "vCPU", kvmem_dirty_add_vcpu(dirty, null));
		REFUSED(EBADF, "999", kvmem_dirty_add_vcpu(dirty, 999));
		OK(kvmem_dirty_free(dirty));
		close_all();
	}
	close(null);
	close(write_only);
	close(fd[0]);
	close(fd[1]);
}
END

/* ---- what the machine forbids, each in a child ---- */

/* 0 when the call, made in the child, answers -err with `word` in its sentence. */
static int said(int64_t r, int err, const char *word)
{
	if (r == -err && strstr(kvmem_error_detail(), word))
		return 0;
	harness_note("%lld, not %d: %s", (long long)r, -err, kvmem_error_detail());
	return 1;
}

static int be_nobody(void)
{
	return setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534);
}

static int kvm_as_nobody(void *arg)
{
	(void)arg;
	return be_nobody() || said(kvmem_vm_create(NULL, &vm), EACCES, "/dev/kvm");
}

TEST(no_permission_for_kvm)
{
	SKIP_IF(geteuid(), "root", "only root can become another user");
	SKIP_IF(access("/dev/kvm", F_OK), "kvm", "there is no /dev/kvm");
	ck_assert_int_eq(harness_child(kvm_as_nobody, NULL), 0);
}
END

static int pager_as_nobody(void *arg)
{
	struct kvmem_pager *pager;

	(void)arg;
	return be_nobody() ||
	       said(kvmem_pager_create(NULL, &pager), EPERM, "vm.unprivileged_userfaultfd") ||
	       said(kvmem_pager_create(NULL, &pager), EPERM, "CAP_SYS_PTRACE") ||
	       said(kvmem_pager_create(NULL, &pager), EPERM, "/dev/userfaultfd");
}

static bool userfaultfd_is_for_all(void)
{
	FILE *f = fopen("/proc/sys/vm/unprivileged_userfaultfd", "re");
	int c = f ? getc(f) : '0';

	if (f)
		fclose(f);
	return c == '1';
}

TEST(userfaultfd_forbidden)
{
	SKIP_IF(geteuid(), "root", "only root can become another user");
	SKIP_IF(userfaultfd_is_for_all(), "restricted-uffd", "vm.unprivileged_userfaultfd is 1");
	ck_assert_int_eq(harness_child(pager_as_nobody, NULL), 0);
}
END

static int create_without_files(void *arg)
{
	const struct rlimit none = { 0, 0 };

	(void)arg;
	return setrlimit(RLIMIT_NOFILE, &none) ||
	       said(create((struct kvmem_region_opts){ .bytes = PAGE,
						       .backing = KVMEM_BACKING_MEMFD }),
		    EMFILE, "region");
}

TEST(too_many_files)
{
	ck_assert_int_eq(harness_child(create_without_files, NULL), 0);
}
END

static int create_without_room(void *arg)
{
	const struct rlimit room = { 256u << 20, 256u << 20 };

	(void)arg;
	return setrlimit(RLIMIT_AS, &room) ||
	       said(create((struct kvmem_region_opts){ .bytes = 1u << 30,
						       .backing = KVMEM_BACKING_MEMFD }),
		    ENOMEM, "region");
}

TEST(out_of_memory)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	SKIP("rlimit-as", "a sanitizer needs all of the address space");
#endif
	ck_assert_int_eq(harness_child(create_without_room, NULL), 0);
}
END

TEST(requirements_that_exclude_each_other)
{
	REFUSED(EOPNOTSUPP, "direct",
		create((struct kvmem_region_opts){ .bytes = PAGE,
						   .backing = KVMEM_BACKING_MEMFD,
						   .slot_form = KVMEM_SLOT_DIRECT }));
	REFUSED(EOPNOTSUPP, "shared",
		create((struct kvmem_region_opts){ .bytes = PAGE,
						   .backing = KVMEM_BACKING_ANONYMOUS,
						   .needs = KVMEM_WANT_SHARED }));
	REFUSED(EOPNOTSUPP, "guest_memfd",
		create((struct kvmem_region_opts){ .bytes = PAGE,
						   .backing = KVMEM_BACKING_GUEST_MEMFD }));
	REFUSED(EOPNOTSUPP, "huge",
		create((struct kvmem_region_opts){ .bytes = PAGE,
						   .backing = KVMEM_BACKING_HUGETLB }));
}
END

HARNESS_MAIN(T(zero_sizes), T(unaligned_sizes), T(overflowing_sizes), T(ranges_beyond_the_end),
	     T(slots_that_overlap_or_do_not_exist), T(nodes_that_do_not_exist), T(short_sources),
	     T(sources_that_fail_in_the_middle), T(wrong_struct_sizes), T(unknown_tails),
	     T(unknown_flags), T(result_structs_too_small), T(ring_after_a_vcpu),
	     T(policies_after_pages), T(dirty_tracking_out_of_turn), T(paging_out_of_turn),
	     T(freed_while_in_use), T(null_pointers), T(closed_file_descriptors),
	     T(file_descriptors_of_the_wrong_kind), T(no_permission_for_kvm),
	     T(userfaultfd_forbidden), T(too_many_files), T(out_of_memory),
	     T(requirements_that_exclude_each_other))
