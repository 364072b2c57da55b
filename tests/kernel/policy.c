// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Policies on the kernel that runs: where the pages land, however the policy is held. */
#include "harness.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE	  4096ull
#define PAGES	  2048ull
#define BYTES	  (PAGES * PAGE)
#define MAX_NODES 64u

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static unsigned char *base;
static unsigned long nodes; /* with memory */
static unsigned int node_count, first_node, second_node;
static uint64_t per_node[MAX_NODES];
static struct kvmem_placement place;

static void ok(int r)
{
	ck_assert_msg(r >= 0, "%d: %s", r, kvmem_error_detail());
}

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

static void close_region(void)
{
	ok(kvmem_region_free(ram));
	ok(kvmem_vm_free(vm));
}

static bool pins(void)
{
	struct kvmem_cap_info i = KVMEM_CAP_INFO_INIT;

	ok(kvmem_caps_get(kvmem_vm_caps(vm), KVMEM_CAP_GUEST_MEMFD_GUP, &i));
	return i.support == KVMEM_SUPPORT_NATIVE;
}

static bool open_region(uint32_t backing)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	vm = NULL;
	if (backing == KVMEM_BACKING_GUEST_MEMFD) {
		if (access("/dev/kvm", R_OK | W_OK)) {
			harness_note("no guest_memfd: /dev/kvm cannot be opened");
			return false;
		}
		ok(kvmem_vm_create(NULL, &vm));
	}
	o.bytes = BYTES;
	o.backing = backing;
	if (kvmem_region_create(vm, &o, &ram)) {
		harness_note("no guest_memfd: %s", kvmem_error_detail());
		kvmem_vm_free(vm);
		return false;
	}
	base = kvmem_region_base(ram);
	if (vm && !pins()) {
		harness_note("guest_memfd: %s",
			     "its pages cannot be pinned, and nobody tells their node");
		close_region();
		return false;
	}
	madvise(base, BYTES, MADV_NOHUGEPAGE); /* what is counted here are base pages */
	nodes = 0;
	node_count = (unsigned int)kvmem_numa_nodes(&nodes, MAX_NODES);
	ck_assert_uint_gt(node_count, 0);
	first_node = (unsigned int)__builtin_ctzl(nodes);
	second_node = node_count > 1 ? (unsigned int)__builtin_ctzl(nodes & (nodes - 1))
				     : first_node;
	return true;
}

static int set(uint64_t first, uint64_t pages, uint32_t mode, unsigned long mask, uint32_t flags)
{
	return kvmem_region_set_policy(ram, first * PAGE, pages * PAGE, mode, &mask, MAX_NODES,
				       flags);
}

static void look(uint64_t first, uint64_t pages)
{
	place = (struct kvmem_placement){ .size = sizeof(place),
					  .node_count = MAX_NODES,
					  .nodes = per_node };
	ok(kvmem_region_placement(ram, first * PAGE, pages * PAGE, &place));
	ck_assert_uint_eq(place.pages, pages);
	ck_assert_uint_eq(place.other, 0);
}

/* Fill through the library, so that an emulated policy counts too. */
static void fill(void)
{
	unsigned char *content = malloc(BYTES);
	struct kvmem_source *s;

	memset(content, 0x3c, BYTES);
	ok(kvmem_source_memory(content, BYTES, &s));
	ok(kvmem_populate(ram, 0, s, NULL, NULL));
	ok(kvmem_source_free(s));
	ck_assert_mem_eq(base, content, BYTES);
	free(content);
}

static const uint32_t backings[] = { KVMEM_BACKING_GUEST_MEMFD, KVMEM_BACKING_MEMFD,
				     KVMEM_BACKING_ANONYMOUS };

/* ---- with any number of nodes ---- */

TEST(every_policy_places_every_page)
{
	static const uint32_t modes[] = {
		KVMEM_POLICY_DEFAULT,	 KVMEM_POLICY_BIND,
		KVMEM_POLICY_PREFERRED,	 KVMEM_POLICY_PREFERRED_MANY,
		KVMEM_POLICY_INTERLEAVE, KVMEM_POLICY_WEIGHTED_INTERLEAVE,
	};

	for (size_t b = 0; b < 3; b++) {
		for (size_t i = 0; i < 6; i++) {
			unsigned long mask;
			int r;

			if (!open_region(backings[b]))
				break;
			mask = modes[i] == KVMEM_POLICY_DEFAULT	    ? 0
			       : modes[i] == KVMEM_POLICY_PREFERRED ? 1ul << second_node
								    : nodes;
			r = set(0, PAGES, modes[i], mask, 0);
			if (r == -EOPNOTSUPP && modes[i] >= KVMEM_POLICY_PREFERRED_MANY) {
				harness_note("%s", kvmem_error_detail());
				close_region();
				continue;
			}
			ok(r);
			fill();
			look(0, PAGES);
			ck_assert_uint_eq(place.present, PAGES);
			ck_assert_msg(!place.misplaced,
				      "backing %u, mode %u, held by %s: %llu pages misplaced",
				      backings[b], modes[i], r ? "the library" : "the kernel",
				      (unsigned long long)place.misplaced);
			close_region();
		}
	}
}
END

TEST(too_late)
{
	for (size_t b = 0; b < 3; b++) {
		if (!open_region(backings[b]))
			continue;
		for (unsigned int i = 0; i < 5; i++)
			base[(100 + i) * PAGE] = 1;
		failed(EEXIST, "5 pages", set(0, PAGES, KVMEM_POLICY_BIND, nodes, 0));
		ok(set(200, 10, KVMEM_POLICY_BIND, nodes, 0));
		ok(set(0, PAGES, KVMEM_POLICY_BIND, nodes, KVMEM_POLICY_FUTURE));
		ok(kvmem_region_discard(ram, 0, BYTES));
		ok(set(0, PAGES, KVMEM_POLICY_BIND, nodes, 0));
		close_region();
	}
}
END

TEST(nodes_that_are_not_there)
{
	unsigned long far[16] = { 0 };

	if (!open_region(KVMEM_BACKING_MEMFD))
		return;
	far[15] = 1; /* node 960 */
	failed(ENODEV, "node 960",
	       kvmem_region_set_policy(ram, 0, PAGE, KVMEM_POLICY_BIND, far, 1024, 0));
	for (unsigned int n = 0; n < 63; n++)
		if (!(nodes >> n & 1)) {
			int r = set(0, 1, KVMEM_POLICY_BIND, 1ul << n, 0);

			ck_assert(r == -ENODEV || r == -EPERM);
			ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "node "));
			break;
		}
	failed(EINVAL, "needs a node", set(0, 1, KVMEM_POLICY_BIND, 0, 0));
	failed(EINVAL, "mode 99", set(0, 1, 99, nodes, 0));
	failed(ERANGE, "beyond", set(PAGES, 1, KVMEM_POLICY_BIND, nodes, 0));
	close_region();
}
END

/* What the library calls held by the kernel shows through another mapping; what it emulates does
   not. */
TEST(held_or_emulated_is_true)
{
	for (size_t b = 0; b < 2; b++) {
		struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
		struct kvmem_region *again;
		int r, mode = -1;

		if (!open_region(backings[b]))
			continue;
		r = set(0, PAGES, KVMEM_POLICY_BIND, 1ul << first_node, 0);
		ok(r);
		o.bytes = BYTES;
		o.flags = KVMEM_REGION_FD | KVMEM_REGION_OVERLAP;
		o.fd = kvmem_region_fd(ram);
		ok(kvmem_region_create(vm, &o, &again));
		ck_assert(!syscall(SYS_get_mempolicy, &mode, NULL, 0, kvmem_region_base(again), 2));
		ck_assert_int_eq(mode == 2, r == 0);
		if (r)
			failed(EOPNOTSUPP, "ignores",
			       set(0, PAGES, KVMEM_POLICY_BIND, 1ul << first_node,
				   KVMEM_POLICY_NATIVE));
		ok(kvmem_region_free(again));
		close_region();
	}
}
END

TEST(placement_makes_no_page)
{
	for (size_t b = 0; b < 3; b++) {
		if (!open_region(backings[b]))
			continue;
		look(0, PAGES);
		ck_assert_uint_eq(place.present, 0);
		base[7 * PAGE] = 1;
		look(0, PAGES);
		look(0, PAGES);
		ck_assert_uint_eq(place.present, 1);
		close_region();
	}
}
END

TEST(the_callers_own_policy_is_left_alone)
{
	int before = -1, after = -1;

	SKIP_IF(!open_region(KVMEM_BACKING_GUEST_MEMFD), "gmem-gup",
		"no guest_memfd whose pages can be pinned");
	ok(set(0, PAGES, KVMEM_POLICY_INTERLEAVE, nodes, 0));
	ck_assert(!syscall(SYS_get_mempolicy, &before, NULL, 0, NULL, 0));
	fill();
	ck_assert(!syscall(SYS_get_mempolicy, &after, NULL, 0, NULL, 0));
	ck_assert_int_eq(before, after);
	close_region();
}
END

/* ---- with two nodes ---- */

#define NEED_TWO \
	do { \
		if (node_count < 2) { \
			close_region(); \
			SKIP("numa2", "one node has memory"); \
		} \
	} while (0)

TEST(pages_land_on_their_node)
{
	for (size_t b = 0; b < 3; b++) {
		if (!open_region(backings[b]))
			continue;
		NEED_TWO;
		ok(set(0, PAGES / 2, KVMEM_POLICY_BIND, 1ul << second_node, 0));
		ok(set(PAGES / 2, PAGES / 4, KVMEM_POLICY_BIND, 1ul << first_node, 0));
		ok(set(PAGES * 3 / 4, PAGES / 4, KVMEM_POLICY_INTERLEAVE,
		       1ul << first_node | 1ul << second_node, 0));
		fill();
		look(0, PAGES / 2);
		ck_assert_uint_eq(per_node[second_node], PAGES / 2);
		look(PAGES / 2, PAGES / 4);
		ck_assert_uint_eq(per_node[first_node], PAGES / 4);
		look(PAGES * 3 / 4, PAGES / 4);
		ck_assert_uint_gt(per_node[first_node], PAGES / 4 * 4 / 10);
		ck_assert_uint_gt(per_node[second_node], PAGES / 4 * 4 / 10);
		look(0, PAGES);
		ck_assert_uint_eq(place.misplaced, 0);
		close_region();
	}
}
END

TEST(misplaced_pages_are_counted)
{
	if (!open_region(KVMEM_BACKING_MEMFD))
		return;
	NEED_TWO;
	ok(set(0, PAGES, KVMEM_POLICY_BIND, 1ul << first_node, 0));
	fill();
	ok(set(0, 10, KVMEM_POLICY_BIND, 1ul << second_node, KVMEM_POLICY_FUTURE));
	look(0, PAGES);
	ck_assert_uint_eq(place.misplaced, 10);
	close_region();
}
END

HARNESS_MAIN(T(every_policy_places_every_page), T(too_late), T(nodes_that_are_not_there),
	     T(held_or_emulated_is_true), T(placement_makes_no_page),
	     T(the_callers_own_policy_is_left_alone), T(pages_land_on_their_node),
	     T(misplaced_pages_are_counted))
