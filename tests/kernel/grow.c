// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory that is added while the guest runs: under a tracker, under a pager, under both. */
#include "dirty_rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB   (1ull << 20)
#define FIRST (2 * MIB)
#define ROOM  (8 * MIB)

static struct kvmem_pager *pager;
static struct kvmem_source *source;
static uint8_t *content;

static bool open_pager(struct rig *rig, uint32_t shards)
{
	struct kvmem_pager_opts po = KVMEM_PAGER_OPTS_INIT;

	po.shards = shards;
	po.flags = KVMEM_PAGER_BACKGROUND;
	if (kvmem_pager_create(&po, &pager)) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		return false;
	}
	/* More than the region has: none of it may get into what is added. */
	content = malloc(ROOM);
	ck_assert_ptr_nonnull(content);
	memset(content, 0x5c, ROOM);
	ck_ok(kvmem_source_memory(content, ROOM, &source));
	ck_ok(kvmem_pager_add(pager, rig->ram, source, 0, 0));
	ck_ok(kvmem_pager_start(pager));
	return true;
}

static void close_pager(void)
{
	if (!pager)
		return;
	ck_ok(kvmem_pager_stop(pager, 0));
	ck_ok(kvmem_pager_free(pager));
	ck_ok(kvmem_source_free(source));
	free(content);
	pager = NULL;
}

/* The next `more` bytes, for the guest too, and a vCPU that writes to them. */
static void add(struct rig *rig, uint64_t more)
{
	uint64_t old = rig->bytes;

	ck_ok(kvmem_region_grow(rig->ram, old + more));
	ck_assert_uint_eq(kvmem_region_bytes(rig->ram), old + more);
	ck_assert_ptr_eq(kvmem_region_base(rig->ram), rig->base);
	ck_ok(kvmem_region_attach(rig->ram, old, more, RIG_GPA + old, KVMEM_SLOT_ANY, 0, NULL));
	rig->bytes = old + more;
}

static void expect_zero(const struct rig *rig, uint64_t from, uint64_t bytes)
{
	for (uint64_t at = from; at < from + bytes; at += 8)
		ck_assert_msg(!*(const uint64_t *)(rig->base + at), "offset 0x%lx",
			      (unsigned long)at);
}

/* Free huge pages for all of it. */
static bool has_huge(void)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;

	o.bytes = ROOM;
	o.backing = KVMEM_BACKING_HUGETLB;
	return !kvmem_region_plan(NULL, &o, &plan);
}

static void grow_it(uint32_t backing, uint32_t mode, uint32_t shards)
{
	struct kvmem_run run;
	struct rig rig;

	if (!rig_open(&rig, &(struct rig_opts){ .mode = mode,
						.ring_entries = 1024,
						.backing = backing,
						.bytes = FIRST,
						.reserve = ROOM,
						.vcpus = 2 }))
		return;
	if (shards && !open_pager(&rig, shards)) {
		rig_close(&rig);
		return;
	}
	/* What the pager brings in is nothing that was written. */
	if (shards) {
		ck_assert_int_eq(kvmem_pager_wait(pager, INT64_C(60000000000)), 0);
		memset(rig.copy, 0x5c, FIRST);
	}
	for (uint64_t more = FIRST; rig.bytes < ROOM; more = rig.bytes) {
		rig_write(&rig, 0, harness_emulated() ? 10 : 100, 200, true);
		add(&rig, more);
		expect_zero(&rig, rig.bytes - more / 4, more / 4);
		if (shards)
			ck_assert_int_eq(kvmem_region_next_missing(rig.ram, 0, &run), 0);
		rig_write(&rig, 1, harness_emulated() ? 10 : 100, 200, true);
		rig_follow(&rig);
		ck_assert_msg(!rig_lost(&rig), "%lu pages lost", (unsigned long)rig_lost(&rig));
	}
	ck_fails(kvmem_region_grow(rig.ram, ROOM + kvmem_region_page_size(rig.ram)), ERANGE,
		 "reserve");
	if (shards) {
		struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;

		ck_ok(kvmem_pager_get_stats(pager, &s));
		ck_assert_uint_eq(s.pages_missing, 0);
		ck_assert_int_eq(kvmem_pager_wait(pager, 0), 0);
	}
	close_pager();
	rig_close(&rig);
}

TEST(k9_2_added_memory_is_tracked)
{
	grow_it(KVMEM_BACKING_MEMFD, KVMEM_DIRTY_BITMAP, 0);
	grow_it(KVMEM_BACKING_MEMFD, KVMEM_DIRTY_RING, 0);
	grow_it(KVMEM_BACKING_ANONYMOUS, KVMEM_DIRTY_BITMAP, 0);
	grow_it(KVMEM_BACKING_ANONYMOUS, KVMEM_DIRTY_RING, 0);
}
END

TEST(k9_2_added_memory_is_zero_under_a_pager)
{
	grow_it(KVMEM_BACKING_MEMFD, KVMEM_DIRTY_BITMAP, 1);
	grow_it(KVMEM_BACKING_MEMFD, KVMEM_DIRTY_RING, 2);
	grow_it(KVMEM_BACKING_ANONYMOUS, KVMEM_DIRTY_BITMAP, 2);
	if (has_huge())
		grow_it(KVMEM_BACKING_HUGETLB, KVMEM_DIRTY_BITMAP, 2);
}
END

TEST(k9_2_a_guest_memfd_grows)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;
	struct kvmem_vm *vm;

	if (kvmem_vm_create(NULL, &vm))
		SKIP("kvm", "%s", kvmem_error_detail());
	o.bytes = FIRST;
	o.reserve = ROOM;
	o.backing = KVMEM_BACKING_GUEST_MEMFD;
	if (kvmem_region_create(vm, &o, &ram)) {
		harness_skip("guest-memfd", "%s", kvmem_error_detail());
		ck_ok(kvmem_vm_free(vm));
		return;
	}
	ck_ok(kvmem_region_attach(ram, 0, FIRST, 0, 0, 0, NULL));
	ck_fails(kvmem_region_attach(ram, FIRST, FIRST, FIRST, 1, 0, NULL), ERANGE, "beyond");
	ck_ok(kvmem_region_grow(ram, 2 * FIRST));
	ck_ok(kvmem_region_attach(ram, FIRST, FIRST, FIRST, 1, 0, NULL));
	((uint8_t *)kvmem_region_base(ram))[2 * FIRST - 1] = 1;
	ck_ok(kvmem_region_free(ram));
	ck_ok(kvmem_vm_free(vm));
}
END

/* Huge pages are reserved for the part that is in use, and for what is added when it is added. */
TEST(k9_2_huge_pages_are_reserved_as_it_grows)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;
	uint64_t huge = 2 * MIB, had = 0;
	volatile uint8_t *base;

	o.bytes = huge;
	o.reserve = UINT64_C(1) << 40;
	o.backing = KVMEM_BACKING_HUGETLB;
	if (kvmem_region_create(NULL, &o, &ram))
		SKIP("hugetlb", "%s", kvmem_error_detail());
	base = kvmem_region_base(ram);
	base[0] = 1;
	while (had < 256 && !kvmem_region_grow(ram, huge * (had + 2)))
		had++;
	/* More than there are: nothing has changed, and what was granted can be touched. */
	if (had < 256)
		ck_fails(kvmem_region_grow(ram, huge * (had + 2)), ENOMEM, "huge pages");
	ck_assert_uint_eq(kvmem_region_bytes(ram), huge * (had + 1));
	for (uint64_t i = 0; i <= had; i++)
		base[i * huge] = 2;
	ck_ok(kvmem_region_free(ram));
}
END

/* mlockall() came after the region: what is added is absent all the same. */
TEST(what_is_added_after_mlockall_is_absent)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;
	struct kvmem_source *s;
	uint8_t *bytes;

	SKIP_IF(geteuid(), "root", "memory cannot be locked");
	o.bytes = FIRST;
	o.reserve = ROOM;
	o.backing = KVMEM_BACKING_ANONYMOUS;
	ck_ok(kvmem_region_create(NULL, &o, &ram));
	bytes = calloc(1, ROOM);
	ck_assert_ptr_nonnull(bytes);
	memset(bytes, 1, ROOM);
	ck_ok(kvmem_source_memory(bytes, ROOM, &s));
	ck_ok(kvmem_populate(ram, 0, s, NULL, NULL));
	ck_assert_int_eq(mlockall(MCL_CURRENT), 0);
	ck_ok(kvmem_region_grow(ram, ROOM));
	ck_ok(kvmem_populate(ram, 0, s, NULL, NULL));
	ck_assert(!memcmp(kvmem_region_base(ram), bytes, ROOM));
	ck_assert_int_eq(munlockall(), 0);
	ck_ok(kvmem_region_free(ram));
	ck_ok(kvmem_source_free(s));
	free(bytes);
}
END

HARNESS_MAIN(T(what_is_added_after_mlockall_is_absent), T(k9_2_added_memory_is_tracked),
	     T(k9_2_added_memory_is_zero_under_a_pager), T(k9_2_a_guest_memfd_grows),
	     T(k9_2_huge_pages_are_reserved_as_it_grows))
