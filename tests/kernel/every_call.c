// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What holds for every function alike: NULL, structs and ranges that are wrong are refused, and change
 * nothing; and the file descriptors that were given may be closed.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE  4096ull
#define PAGES 16u
#define BYTES (PAGES * PAGE)
#define GPA   (1ull << 30)

/* One of each kind. */
static struct {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	struct kvmem_dirty *dirty;
	struct kvmem_batch *batch; /* committed */
	struct kvmem_region_opts ro;
	int vcpu;
	uint8_t content[BYTES];
} t;

static unsigned int fds, maps;

static void before(void)
{
	fds = harness_count_fds();
	maps = harness_count_maps();
	kvmem_vm_fd(NULL); /* a sentence that no other call has */
}

static void refused(const char *call, int64_t r, int err, const char *word)
{
	const char *detail = kvmem_error_detail();

	ck_assert_msg(r == -err, "%s: %lld, not %d: %s", call, (long long)r, -err, detail);
	ck_assert_msg(!strstr(detail, "kvmem_vm_fd") && strstr(detail, word),
		      "%s: '%s' is not in: %s", call, word, detail);
	ck_assert_msg(harness_count_fds() == fds && harness_count_maps() == maps, "%s leaked",
		      call);
}

#define REFUSED(err, word, call) \
	do { \
		int64_t r_; \
		before(); \
		r_ = (call); \
		refused(#call, r_, err, word); \
	} while (0)

#define NONE(call) REFUSED(EINVAL, "NULL", call)

/* A call that succeeds leaves the detail of the last failure alone, whatever it tried first. */
#define ok(call) \
	do { \
		char before_[1024]; \
		int64_t ok_; \
		snprintf(before_, sizeof(before_), "%s", kvmem_error_detail()); \
		ok_ = (call); \
		ck_assert_msg(ok_ >= 0, "%lld: %s", (long long)ok_, kvmem_error_detail()); \
		ck_assert_msg(!strcmp(kvmem_error_detail(), before_), "%s left: %s", #call, \
			      kvmem_error_detail()); \
	} while (0)

/* False: skipped. The pager has no region and is not started; the batch holds the first page. */
static bool open_all(void)
{
	const uint64_t first = 1;

	memset(&t, 0, sizeof(t));
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	if (kvmem_pager_create(NULL, &t.pager)) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		return false;
	}
	ok(kvmem_vm_create(NULL, &t.vm));
	ok(kvmem_dirty_create(t.vm, NULL, &t.dirty));
	t.ro.size = sizeof(t.ro);
	t.ro.bytes = BYTES;
	t.ro.backing = KVMEM_BACKING_MEMFD;
	t.ro.needs = KVMEM_WANT_DIRTY;
	ok(kvmem_region_create(t.vm, &t.ro, &t.ram));
	ok(kvmem_region_attach(t.ram, 0, PAGE, GPA, 5, 0, NULL));
	ok(kvmem_source_memory(t.content, BYTES, &t.source));
	t.vcpu = ioctl(kvmem_vm_fd(t.vm), KVM_CREATE_VCPU, 0);
	ck_assert_int_ge(t.vcpu, 0);
	ok(kvmem_dirty_add_vcpu(t.dirty, t.vcpu));
	ok(kvmem_dirty_start(t.dirty));
	ok(kvmem_dirty_merge(t.dirty, t.ram, 0, PAGE, 12, &first));
	ck_assert_int_eq(kvmem_dirty_harvest(t.dirty, &t.batch), 1);
	ok(kvmem_dirty_commit(t.dirty, t.batch));
	return true;
}

/* All that was refused has left everything as it was. */
static void close_all(void)
{
	struct kvmem_run run;

	ck_assert_int_eq(kvmem_region_next_missing(t.ram, 0, &run), 1);
	ck_assert_uint_eq(run.bytes, BYTES);
	ck_assert_int_eq(kvmem_batch_next(t.batch, &run), 1);
	ck_assert_uint_eq(run.bytes, PAGE);
	ck_assert_int_eq(kvmem_batch_next(t.batch, &run), 0);
	kvmem_batch_free(t.batch);
	ck_assert_int_eq(kvmem_dirty_harvest(t.dirty, &t.batch), 0);
	kvmem_batch_free(t.batch);
	ok(kvmem_dirty_stop(t.dirty));
	ok(kvmem_dirty_free(t.dirty));
	close(t.vcpu);
	ok(kvmem_region_detach(t.ram, 5));
	ok(kvmem_pager_free(t.pager));
	ok(kvmem_region_free(t.ram));
	ok(kvmem_source_free(t.source));
	ok(kvmem_vm_free(t.vm));
}

/* ---- NULL ---- */

static int read_nothing(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	(void)offset;
	memset(buf, 0, bytes);
	return 0;
}

static int answer_nothing(void *arg, struct kvmem_source_request *const *requests, size_t count)
{
	(void)arg;
	(void)requests;
	(void)count;
	return -EIO;
}

static void null_of_memory(void)
{
	struct kvmem_source_ops ops = { .size = sizeof(ops), .read = read_nothing };
	struct kvmem_source_async_ops async = { .size = sizeof(async), .submit = answer_nothing };
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_placement place = KVMEM_PLACEMENT_INIT;
	struct kvmem_extent extent = KVMEM_EXTENT_INIT;
	struct kvmem_attachment attachment;
	struct kvmem_source *s;
	struct kvmem_region *r;
	unsigned long node = 1;
	struct kvmem_stored stored;
	struct kvmem_run run;
	uint32_t state;

	NONE(kvmem_opts_copy(NULL, sizeof(plan), sizeof(plan), &plan, "plan"));
	NONE(kvmem_opts_copy(&plan, sizeof(plan), sizeof(plan), &plan, NULL));
	NONE(kvmem_result_check(NULL, sizeof(plan), "plan"));
	NONE(kvmem_result_check(&plan, sizeof(plan), NULL));
	kvmem_result_copy(NULL, &plan, sizeof(plan));
	kvmem_result_copy(&plan, NULL, sizeof(plan));
	NONE(kvmem_region_plan(t.vm, NULL, &plan));
	NONE(kvmem_region_plan(t.vm, &t.ro, NULL));
	NONE(kvmem_region_create(t.vm, NULL, &r));
	NONE(kvmem_region_create(t.vm, &t.ro, NULL));
	NONE(kvmem_region_get_plan(NULL, &plan));
	NONE(kvmem_region_get_plan(t.ram, NULL));
	NONE(kvmem_region_grow(NULL, PAGE));
	NONE(kvmem_region_check_huge(NULL, 0, PAGE, 0));
	NONE(kvmem_region_fd(NULL));
	NONE(kvmem_region_private_fd(NULL));
	NONE(kvmem_region_attach(NULL, 0, PAGE, GPA, KVMEM_SLOT_ANY, 0, NULL));
	NONE(kvmem_region_detach(NULL, 5));
	NONE(kvmem_region_adopt_slot(NULL, 0, PAGE, GPA, 5, 0));
	NONE(kvmem_region_attachments(NULL, 0, PAGE, &attachment, 1));
	NONE(kvmem_region_attachments(t.ram, 0, PAGE, NULL, 1));
	NONE(kvmem_region_discard(NULL, 0, PAGE));
	NONE(kvmem_region_mark_present(NULL, 0, PAGE));
	NONE(kvmem_region_next_missing(NULL, 0, &run));
	NONE(kvmem_region_next_missing(t.ram, 0, NULL));
	NONE(kvmem_region_next_run(NULL, 0, &run, &state));
	NONE(kvmem_region_next_run(t.ram, 0, NULL, &state));
	NONE(kvmem_region_next_run(t.ram, 0, &run, NULL));
	NONE(kvmem_region_stored(NULL, 0, PAGE, &stored, 1));
	NONE(kvmem_region_stored(t.ram, 0, PAGE, NULL, 1));
	NONE(kvmem_region_read(NULL, 0, &stored, 8));
	NONE(kvmem_region_read(t.ram, 0, NULL, 8));
	NONE(kvmem_region_set_attributes(NULL, 0, PAGE, 0));
	NONE(kvmem_region_set_policy(NULL, 0, PAGE, KVMEM_POLICY_BIND, &node, 64, 0));
	NONE(kvmem_region_set_policy(t.ram, 0, PAGE, KVMEM_POLICY_BIND, NULL, 64, 0));
	NONE(kvmem_region_placement(NULL, 0, PAGE, &place));
	NONE(kvmem_region_placement(t.ram, 0, PAGE, NULL));
	place.node_count = 1;
	NONE(kvmem_region_placement(t.ram, 0, PAGE, &place));
	NONE(kvmem_numa_nodes(NULL, 64));
	NONE(kvmem_source_file(0, 0, 0, 0, NULL));
	NONE(kvmem_source_memory(NULL, PAGE, &s));
	NONE(kvmem_source_memory(t.content, PAGE, NULL));
	NONE(kvmem_source_callback(NULL, NULL, PAGE, &s));
	NONE(kvmem_source_callback(&ops, NULL, PAGE, NULL));
	ops.read = NULL;
	NONE(kvmem_source_callback(&ops, NULL, PAGE, &s));
	NONE(kvmem_source_async(NULL, NULL, PAGE, &s));
	NONE(kvmem_source_async(&async, NULL, PAGE, NULL));
	async.submit = NULL;
	NONE(kvmem_source_async(&async, NULL, PAGE, &s));
	NONE(kvmem_source_complete(NULL, 0));
	NONE(kvmem_source_extent(NULL, 0, &extent));
	NONE(kvmem_source_extent(t.source, 0, NULL));
	NONE(kvmem_source_read(NULL, 0, t.content, 1));
	NONE(kvmem_source_read(t.source, 0, NULL, 1));
	NONE(kvmem_populate(NULL, 0, t.source, NULL, NULL));
	NONE(kvmem_populate(t.ram, 0, NULL, NULL, NULL));
}

static void null_of_engines(void)
{
	struct kvmem_pager_stats ps = KVMEM_PAGER_STATS_INIT;
	struct kvmem_dirty_stats ds = KVMEM_DIRTY_STATS_INIT;
	struct kvmem_vcpu_stats vs = KVMEM_VCPU_STATS_INIT;
	struct kvmem_range range = { 0, PAGE };
	struct kvmem_trace_entry entry;
	struct kvmem_run run = { t.ram, 0, PAGE };
	struct kvmem_dirty *d;
	struct kvmem_reader *reader;
	struct kvmem_batch *b;
	uint64_t bits = 1;

	NONE(kvmem_pager_create(NULL, NULL));
	NONE(kvmem_pager_add(NULL, t.ram, t.source, 0, 0));
	NONE(kvmem_pager_add(t.pager, NULL, t.source, 0, 0));
	NONE(kvmem_pager_add(t.pager, t.ram, NULL, 0, 0));
	NONE(kvmem_pager_set_source(NULL, t.ram, t.source, 0));
	NONE(kvmem_pager_set_source(t.pager, NULL, t.source, 0));
	NONE(kvmem_pager_set_source(t.pager, t.ram, NULL, 0));
	NONE(kvmem_pager_start(NULL));
	NONE(kvmem_pager_stop(NULL, KVMEM_STOP_FILL));
	NONE(kvmem_pager_set_source(NULL, t.ram, t.source, 0));
	NONE(kvmem_pager_set_source(t.pager, NULL, t.source, 0));
	NONE(kvmem_pager_set_source(t.pager, t.ram, NULL, 0));
	NONE(kvmem_pager_prefetch(NULL, t.ram, &range, 1, NULL, NULL));
	NONE(kvmem_pager_prefetch(t.pager, NULL, &range, 1, NULL, NULL));
	NONE(kvmem_pager_prefetch(t.pager, t.ram, NULL, 1, NULL, NULL));
	NONE(kvmem_ticket_wait(NULL, 0, NULL));
	ck_assert_int_eq(kvmem_ticket_free(NULL), 0);
	NONE(kvmem_pager_remove(NULL, t.ram, KVMEM_STOP_FILL));
	NONE(kvmem_pager_remove(t.pager, NULL, KVMEM_STOP_FILL));
	NONE(kvmem_pager_put(NULL, t.ram, 0, t.content, PAGE));
	NONE(kvmem_pager_put(t.pager, NULL, 0, t.content, PAGE));
	NONE(kvmem_pager_put(t.pager, t.ram, 0, NULL, PAGE));
	NONE(kvmem_pager_trace_read(NULL, &entry, 1));
	NONE(kvmem_pager_trace_read(t.pager, NULL, 1));
	NONE(kvmem_region_mark_absent(NULL, 0, PAGE, 0));
	NONE(kvmem_pager_fd(NULL));
	NONE(kvmem_pager_handle(NULL));
	NONE(kvmem_pager_wait(NULL, 0));
	NONE(kvmem_pager_get_stats(NULL, &ps));
	NONE(kvmem_pager_get_stats(t.pager, NULL));
	NONE(kvmem_dirty_create(NULL, NULL, &d));
	NONE(kvmem_dirty_create(t.vm, NULL, NULL));
	NONE(kvmem_dirty_start(NULL));
	NONE(kvmem_dirty_stop(NULL));
	NONE(kvmem_dirty_add_vcpu(NULL, t.vcpu));
	NONE(kvmem_dirty_remove_vcpu(NULL, t.vcpu));
	NONE(kvmem_dirty_ring_full(NULL, t.vcpu));
	NONE(kvmem_dirty_harvest(NULL, &b));
	NONE(kvmem_dirty_harvest(t.dirty, NULL));
	NONE(kvmem_dirty_reader_create(NULL, NULL, &reader));
	NONE(kvmem_dirty_reader_create(t.dirty, NULL, NULL));
	NONE(kvmem_reader_harvest(NULL, &b));
	NONE(kvmem_reader_harvest(kvmem_dirty_reader(t.dirty), NULL));
	NONE(kvmem_reader_pending(NULL, NULL));
	NONE(kvmem_reader_forget(NULL, t.ram, 0, PAGE));
	NONE(kvmem_reader_forget(kvmem_dirty_reader(t.dirty), NULL, 0, PAGE));
	NONE(kvmem_batch_return(NULL));
	NONE(kvmem_dirty_mark(NULL, t.ram, 0, 1));
	NONE(kvmem_dirty_mark(t.dirty, NULL, 0, 1));
	NONE(kvmem_dirty_merge_gpa(NULL, 0, 0, PAGE, 12, &bits, 0));
	NONE(kvmem_dirty_merge_gpa(t.dirty, 0, 0, PAGE, 12, NULL, 0));
	NONE(kvmem_dirty_commit(NULL, t.batch));
	REFUSED(EINVAL, "batch", kvmem_dirty_commit(t.dirty, NULL));
	NONE(kvmem_batch_next(NULL, &run));
	NONE(kvmem_batch_next(t.batch, NULL));
	NONE(kvmem_batch_runs(NULL, &run, 1));
	REFUSED(EINVAL, "room", kvmem_batch_runs(t.batch, NULL, 1));
	NONE(kvmem_batch_bitmap(NULL, t.ram, 0, PAGE, &bits));
	NONE(kvmem_batch_bitmap(t.batch, NULL, 0, PAGE, &bits));
	NONE(kvmem_batch_bitmap(t.batch, t.ram, 0, PAGE, NULL));
	NONE(kvmem_dirty_merge(NULL, t.ram, 0, PAGE, 12, &bits));
	NONE(kvmem_dirty_merge(t.dirty, NULL, 0, PAGE, 12, &bits));
	NONE(kvmem_dirty_merge(t.dirty, t.ram, 0, PAGE, 12, NULL));
	NONE(kvmem_dirty_get_stats(NULL, &ds));
	NONE(kvmem_dirty_get_stats(t.dirty, NULL));
	NONE(kvmem_dirty_get_vcpu_stats(NULL, t.vcpu, &vs));
	NONE(kvmem_dirty_get_vcpu_stats(t.dirty, t.vcpu, NULL));
}

TEST(null_to_every_function)
{
	struct kvmem_translation translation = KVMEM_TRANSLATION_INIT;
	struct kvmem_cap_info info = KVMEM_CAP_INFO_INIT;

	if (!open_all())
		return;
	NONE(kvmem_caps_probe(NULL, NULL));
	NONE(kvmem_caps_get(NULL, KVMEM_CAP_KVM, &info));
	NONE(kvmem_caps_get(kvmem_vm_caps(t.vm), KVMEM_CAP_KVM, NULL));
	NONE(kvmem_caps_format(NULL, KVMEM_CAPS_TEXT, NULL, 0));
	NONE(kvmem_caps_format(kvmem_vm_caps(t.vm), KVMEM_CAPS_TEXT, NULL, 10));
	NONE(kvmem_vm_create(NULL, NULL));
	NONE(kvmem_vm_adopt(kvmem_vm_fd(t.vm), NULL, NULL));
	ck_assert_int_eq(kvmem_vm_fd(NULL), -EINVAL);
	NONE(kvmem_vm_kvm_fd(NULL));
	NONE(kvmem_vm_translate(NULL, 0, GPA, 1, &translation));
	NONE(kvmem_vm_translate(t.vm, 0, GPA, 1, NULL));
	null_of_memory();
	null_of_engines();
	close_all();
}
END

TEST(null_to_captures)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_capture_stats stats = KVMEM_CAPTURE_STATS_INIT;
	struct kvmem_region *none = NULL;
	struct kvmem_capture_run run;
	struct kvmem_capture *c;
	uint8_t page[64];

	NONE(kvmem_capture_create(NULL, NULL));
	NONE(kvmem_capture_create(&o, &c)); /* before_write */
	NONE(kvmem_capture_check(NULL, NULL));
	NONE(kvmem_capture_start(NULL, &none, 1));
	NONE(kvmem_capture_start_runs(NULL, &none, 1, NULL, 0));
	NONE(kvmem_capture_next(NULL, page, sizeof(page), &run));
	NONE(kvmem_capture_stop(NULL));
	NONE(kvmem_capture_get_stats(NULL, &stats));
	NONE(kvmem_capture_get_stats(NULL, NULL));
	ck_assert_int_eq(kvmem_capture_free(NULL), 0);
}
END

TEST(null_to_remotes)
{
	NONE(kvmem_remote_create(NULL, NULL));
	NONE(kvmem_remote_join(NULL, NULL, NULL));
	NONE(kvmem_remote_record_fd(NULL));
	NONE(kvmem_remote_check(NULL));
}
END

TEST(null_to_writes)
{
	struct kvmem_run run;
	uint64_t next;

	NONE(kvmem_writes_create(NULL, NULL));
	NONE(kvmem_writes_add(NULL, NULL));
	NONE(kvmem_writes_take(NULL, NULL, 0, &run, 1, &next));
	NONE(kvmem_writes_watched(NULL, NULL));
	NONE(kvmem_writes_remove(NULL, NULL));
	ck_assert_int_eq(kvmem_writes_free(NULL), 0);
}
END

/* Those that return no code. */
TEST(null_where_there_is_no_code)
{
	ck_assert_ptr_null(kvmem_vm_caps(NULL));
	ck_assert_ptr_null(kvmem_region_base(NULL));
	ck_assert_ptr_null(kvmem_region_arg(NULL));
	ck_assert_uint_eq(kvmem_region_bytes(NULL), 0);
	ck_assert_uint_eq(kvmem_region_page_size(NULL), 0);
	ck_assert_uint_eq(kvmem_source_bytes(NULL), 0);
	ck_assert_uint_eq(kvmem_dirty_get_mode(NULL), KVMEM_DIRTY_AUTO);
	ck_assert_str_eq(kvmem_dirty_get_reason(NULL), "");
	ck_assert_uint_eq(kvmem_batch_pages(NULL), 0);
	ck_assert_uint_eq(kvmem_batch_region_pages(NULL, NULL), 0);
	ck_assert_ptr_null(kvmem_dirty_reader(NULL));
	ck_assert_int_eq(kvmem_reader_free(NULL), 0);
	kvmem_caps_free(NULL);
	kvmem_batch_free(NULL);
	ck_assert_int_eq(kvmem_vm_free(NULL), 0);
	ck_assert_int_eq(kvmem_region_free(NULL), 0);
	ck_assert_int_eq(kvmem_source_free(NULL), 0);
	ck_assert_int_eq(kvmem_pager_free(NULL), 0);
	ck_assert_int_eq(kvmem_dirty_free(NULL), 0);
}
END

/* ---- results ---- */

TEST(results_of_every_kind)
{
	union {
		uint32_t size;
		char room[4096];
	} g = { .size = 4 };

	if (!open_all())
		return;
	for (unsigned int i = 0; i < 2; i++, g.size = 0) {
		REFUSED(EINVAL, "size",
			kvmem_caps_get(kvmem_vm_caps(t.vm), KVMEM_CAP_KVM, (void *)&g));
		REFUSED(EINVAL, "size", kvmem_region_plan(t.vm, &t.ro, (void *)&g));
		REFUSED(EINVAL, "size", kvmem_region_get_plan(t.ram, (void *)&g));
		REFUSED(EINVAL, "size", kvmem_region_placement(t.ram, 0, PAGE, (void *)&g));
		REFUSED(EINVAL, "size", kvmem_source_extent(t.source, 0, (void *)&g));
		REFUSED(EINVAL, "size", kvmem_populate(t.ram, 0, t.source, NULL, (void *)&g));
		REFUSED(EINVAL, "size", kvmem_pager_get_stats(t.pager, (void *)&g));
		REFUSED(EINVAL, "size", kvmem_dirty_get_stats(t.dirty, (void *)&g));
		REFUSED(EINVAL, "size", kvmem_dirty_get_vcpu_stats(t.dirty, t.vcpu, (void *)&g));
	}
	close_all();
}
END

/* ---- ranges ---- */

static int attach_at(uint64_t offset, uint64_t bytes)
{
	return kvmem_region_attach(t.ram, offset, bytes, 2 * GPA, KVMEM_SLOT_ANY, 0, NULL);
}

static int discard(uint64_t offset, uint64_t bytes)
{
	return kvmem_region_discard(t.ram, offset, bytes);
}

static int mark(uint64_t offset, uint64_t bytes)
{
	return kvmem_region_mark_present(t.ram, offset, bytes);
}

static int attributes(uint64_t offset, uint64_t bytes)
{
	return kvmem_region_set_attributes(t.ram, offset, bytes, 0);
}

static int policy(uint64_t offset, uint64_t bytes)
{
	unsigned long node = 1;

	return kvmem_region_set_policy(t.ram, offset, bytes, KVMEM_POLICY_BIND, &node, 64, 0);
}

static int placement(uint64_t offset, uint64_t bytes)
{
	struct kvmem_placement p = KVMEM_PLACEMENT_INIT;

	return kvmem_region_placement(t.ram, offset, bytes, &p);
}

static int bitmap(uint64_t offset, uint64_t bytes)
{
	uint64_t bits = 0;

	return kvmem_batch_bitmap(t.batch, t.ram, offset, bytes, &bits);
}

static int merge(uint64_t offset, uint64_t bytes)
{
	const uint64_t bits = 1;

	return kvmem_dirty_merge(t.dirty, t.ram, offset, bytes, 12, &bits);
}

static int fill(uint64_t offset, uint64_t bytes)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.bytes = bytes;
	return kvmem_populate(t.ram, offset, t.source, &o, NULL);
}

static int source_read(uint64_t offset, uint64_t bytes)
{
	return kvmem_source_read(t.source, offset, t.content, bytes);
}

static const struct {
	const char *name;
	int (*call)(uint64_t offset, uint64_t bytes);
	bool takes_zero; /* as "all there is" */
	bool takes_any;	 /* not only whole pages */
} ranges[] = {
	{ "attach", attach_at, false, false },	  { "discard", discard, false, false },
	{ "mark_present", mark, false, false },	  { "set_attributes", attributes, false, false },
	{ "set_policy", policy, false, false },	  { "placement", placement, false, false },
	{ "batch_bitmap", bitmap, false, false }, { "merge", merge, false, true },
	{ "populate", fill, true, true },	  { "source_read", source_read, false, true },
};

TEST(ranges_of_every_function)
{
	if (!open_all())
		return;
	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		int (*call)(uint64_t, uint64_t) = ranges[i].call;

		harness_note("%s", ranges[i].name);
		if (!ranges[i].takes_zero)
			REFUSED(EINVAL, "0 bytes", call(0, 0));
		if (!ranges[i].takes_any) {
			REFUSED(EINVAL, "multiple", call(1, PAGE));
			REFUSED(EINVAL, "multiple", call(0, PAGE - 1));
			REFUSED(EINVAL, "multiple", call(PAGE / 2, PAGE / 2));
		}
		REFUSED(EINVAL, "overflows", call(PAGE, -PAGE));
		REFUSED(EINVAL, "overflows", call(PAGE, UINT64_MAX & ~(PAGE - 1)));
		REFUSED(ERANGE, "beyond", call(PAGE, BYTES));
		REFUSED(ERANGE, "0x", call(BYTES, PAGE));
		REFUSED(ERANGE, "0x", call(1ull << 40, PAGE));
		REFUSED(ERANGE, "beyond", call(0, 1ull << 62));
	}
	close_all();
}
END

/* ---- flags that are no option of a struct ---- */

TEST(flags_of_every_function)
{
	unsigned long node = 1;
	struct kvmem_source *s;

	if (!open_all())
		return;
	REFUSED(EINVAL, "flags",
		kvmem_region_attach(t.ram, 0, PAGE, 2 * GPA, KVMEM_SLOT_ANY, 1u << 31, NULL));
	REFUSED(EINVAL, "flags",
		kvmem_region_set_policy(t.ram, 0, PAGE, KVMEM_POLICY_BIND, &node, 64, 1u << 31));
	REFUSED(EINVAL, "attributes", kvmem_region_set_attributes(t.ram, 0, PAGE, 1u << 2));
	REFUSED(EINVAL, "flags", kvmem_source_file(0, 0, 0, 1u << 31, &s));
	REFUSED(EINVAL, "format", kvmem_caps_format(kvmem_vm_caps(t.vm), 2, NULL, 0));
	REFUSED(EINVAL, "0",
		kvmem_caps_get(kvmem_vm_caps(t.vm), 0, &(struct kvmem_cap_info){ .size = 8 }));
	close_all();
}
END

/* ---- file descriptors ---- */

TEST(kvm_fd_of_another_kind)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;
	struct kvmem_vm *vm;
	int kinds[3];

	if (!open_all())
		return;
	kinds[0] = open("/dev/null", O_RDWR | O_CLOEXEC);
	kinds[1] = kvmem_vm_fd(t.vm);
	kinds[2] = 999;
	o.flags = KVMEM_VM_KVM_FD;
	for (unsigned int i = 0; i < 3; i++) {
		o.kvm_fd = kinds[i];
		REFUSED(EBADF, "kvm_fd", kvmem_vm_create(&o, &vm));
		REFUSED(EBADF, "kvm_fd", kvmem_vm_adopt(kvmem_vm_fd(t.vm), &o, &vm));
	}
	close(kinds[0]);
	close_all();
}
END

TEST(descriptors_may_be_closed_after_the_call)
{
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct kvmem_source *source;
	struct kvmem_region *ram;
	struct kvmem_vm *vm;
	int kvm, vm_fd, file, image;

	SKIP_IF(access("/dev/kvm", R_OK | W_OK), "kvm", "/dev/kvm cannot be opened");
	fds = harness_count_fds();
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm_fd = ioctl(kvm, KVM_CREATE_VM, 0);
	file = memfd_create("ram", MFD_CLOEXEC);
	image = memfd_create("image", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(file, BYTES), 0);
	ck_assert_int_eq(pwrite(image, "image", 5, 0), 5);
	vo.flags = KVMEM_VM_KVM_FD;
	vo.kvm_fd = kvm;
	ro.flags = KVMEM_REGION_FD;
	ro.fd = file;
	ro.bytes = BYTES;
	ok(kvmem_vm_adopt(vm_fd, &vo, &vm));
	ok(kvmem_region_create(vm, &ro, &ram));
	ok(kvmem_source_file(image, 0, 0, 0, &source));
	close(kvm);
	close(vm_fd);
	close(file);
	close(image);
	ok(kvmem_region_attach(ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, NULL));
	ok(kvmem_populate(ram, 0, source, NULL, NULL));
	ck_assert_str_eq(kvmem_region_base(ram), "image");
	ok(kvmem_region_discard(ram, 0, PAGE));
	ok(kvmem_source_free(source));
	ok(kvmem_region_free(ram));
	ok(kvmem_vm_free(vm));
	ck_assert_uint_eq(harness_count_fds(), fds);
}
END

/* Where ways are tried one after the other: probes, plans, the ways of a fill, of a log, of a policy. */
TEST(k2_13_calls_that_succeed_leave_the_detail)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	int image = memfd_create("image", MFD_CLOEXEC);
	unsigned long nodes = 0;
	struct kvmem_source *file;
	struct kvmem_caps *caps;

	if (!open_all())
		return;
	ck_assert_int_eq(kvmem_vm_free(t.vm), -EBUSY); /* so that there is a detail */
	ok(kvmem_caps_probe(NULL, &caps));
	kvmem_caps_free(caps);
	ok(kvmem_numa_nodes(&nodes, 64));
	ck_assert_int_eq(ftruncate(image, BYTES), 0);
	ck_assert_int_eq(pwrite(image, "image", 5, 0), 5);
	ok(kvmem_source_file(image, 0, 0, 0, &file));
	o.bytes = BYTES;
	for (o.wants = 0; o.wants < 128; o.wants++) {
		struct kvmem_region *r;

		ok(kvmem_region_plan(t.vm, &o, &plan));
		if (plan.backing == KVMEM_BACKING_HUGETLB || plan.shared_backing)
			continue;
		ok(kvmem_region_create(t.vm, &o, &r));
		nodes &= -nodes;
		ok(kvmem_region_set_policy(r, 0, BYTES, KVMEM_POLICY_BIND, &nodes, 64, 0));
		ok(kvmem_populate(r, 0, file, NULL, NULL));
		ok(kvmem_region_free(r));
	}
	ok(kvmem_source_free(file));
	close(image);
	close_all();
}
END

HARNESS_MAIN(T(null_to_every_function), T(null_to_captures), T(null_to_remotes), T(null_to_writes),
	     T(null_where_there_is_no_code), T(results_of_every_kind), T(ranges_of_every_function),
	     T(flags_of_every_function), T(kvm_fd_of_another_kind),
	     T(descriptors_may_be_closed_after_the_call),
	     T(k2_13_calls_that_succeed_leave_the_detail))
