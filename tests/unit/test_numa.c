// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Policies by range, kept and applied; placement; what the kernel is told and what it may answer.
 */
#include "harness.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_sys.h"
#include "numa/numa.h"
#include "source/source.h"
#include "base/uapi/mm.h"

#define PAGE  4096ull
#define PAGES 1024ull
#define BYTES (PAGES * PAGE)

static struct kvmem_region region;
static unsigned long two_nodes = 3;

static struct {
	unsigned int calls;
	void *addr;
	size_t len;
	int mode;
	unsigned long nodes, maxnode;
	unsigned int flags;
} told;
static int mbind_error;
static bool held; /* the file keeps what one of its mappings is told */

/* A machine with memory on nodes 0 and 1, node 2 outside the cpuset, no others. */
static int64_t nodes_get_mempolicy(int *mode, unsigned long *nodes, unsigned long maxnode,
				   void *addr, unsigned long flags)
{
	(void)maxnode;
	if (flags & KM_MPOL_F_ADDR) {
		ck_assert_ptr_ne(addr, told.addr);
		*mode = held ? told.mode : KM_MPOL_DEFAULT;
	} else if (flags & KM_MPOL_F_MEMS_ALLOWED) {
		memset(nodes, 0, 128);
		nodes[0] = 3;
	} else if (mode) {
		*mode = KM_MPOL_DEFAULT;
	}
	return 0;
}

static int64_t nodes_node_bytes(int node)
{
	return node <= 2 ? 1ll << 30 : -ENODEV;
}

static int64_t watch_mbind(void *addr, size_t len, int mode, const unsigned long *nodes,
			   unsigned long maxnode, unsigned int flags)
{
	if (mbind_error)
		return -mbind_error;
	told.calls++;
	told.addr = addr;
	told.len = len;
	told.mode = mode;
	told.nodes = nodes ? nodes[0] : 0;
	told.maxnode = maxnode;
	told.flags = flags;
	return 0;
}

static int set_mode;
static unsigned long set_nodes;
static unsigned int set_calls;

static int64_t watch_set_mempolicy(int mode, const unsigned long *nodes, unsigned long maxnode)
{
	(void)maxnode;
	set_mode = mode;
	set_nodes = nodes[0];
	set_calls++;
	return 0;
}

static void fresh(uint32_t backing)
{
	void *base;

	fake_reset();
	memset(&told, 0, sizeof(told));
	mbind_error = 0;
	set_calls = 0;
	memset(&region, 0, sizeof(region));
	region.fd = backing == KVMEM_BACKING_ANONYMOUS ? -1 : memfd_create("test", 0);
	ck_assert(region.fd < 0 || !ftruncate(region.fd, BYTES));
	ck_assert_int_eq(km_real_mmap(BYTES, PROT_READ | PROT_WRITE,
				      region.fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED,
				      region.fd, 0, &base),
			 0);
	held = backing == KVMEM_BACKING_MEMFD;
	region.base = base;
	region.bytes = region.room = BYTES;
	region.page_shift = 12;
	region.plan.backing = backing;
	pthread_mutex_init(&region.lock, NULL);
	ck_assert_int_eq(km_presence_init(&region.presence, PAGES), 0);
	fake.get_mempolicy = nodes_get_mempolicy;
	fake.node_bytes = nodes_node_bytes;
	fake.mbind = watch_mbind;
	fake.set_mempolicy = watch_set_mempolicy;
}

static void done(void)
{
	km_policies_free(&region);
	km_presence_destroy(&region.presence);
	munmap(region.base, BYTES);
	if (region.alias)
		munmap(region.alias, BYTES);
	close(region.fd);
	ck_assert_int_eq(fake.allocs, 0);
}

static int set(uint64_t first, uint64_t pages, uint32_t mode, unsigned long nodes, uint32_t flags)
{
	return kvmem_region_set_policy(&region, first * PAGE, pages * PAGE, mode, &nodes, 64,
				       flags);
}

TEST(the_kernel_is_told)
{
	fresh(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(set(2, 8, KVMEM_POLICY_INTERLEAVE, 3, 0), 0);
	ck_assert_uint_eq(told.calls, 1);
	ck_assert_ptr_eq(told.addr, region.base + 2 * PAGE);
	ck_assert_uint_eq(told.len, 8 * PAGE);
	ck_assert_int_eq(told.mode, KM_MPOL_INTERLEAVE);
	ck_assert_uint_eq(told.nodes, 3);
	ck_assert_uint_eq(told.maxnode, 1025);
	ck_assert_uint_eq(told.flags, 0);
	done();
}
END

static void expect_refused(int err, const char *word, int r)
{
	ck_assert_int_eq(r, -err);
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
	ck_assert_ptr_null(region.policies);
}

TEST(bad_input)
{
	unsigned long far[32] = { 0 };

	fresh(KVMEM_BACKING_MEMFD);
	expect_refused(EINVAL, "NULL", kvmem_region_set_policy(NULL, 0, PAGE, 0, NULL, 0, 0));
	expect_refused(EINVAL, "0 bytes", set(0, 0, KVMEM_POLICY_BIND, 1, 0));
	expect_refused(ERANGE, "ends beyond", set(PAGES, 1, KVMEM_POLICY_BIND, 1, 0));
	expect_refused(
		EINVAL, "multiple",
		kvmem_region_set_policy(&region, 1, PAGE, KVMEM_POLICY_BIND, &two_nodes, 64, 0));
	expect_refused(EINVAL, "mode", set(0, 1, 99, 1, 0));
	expect_refused(EINVAL, "flags", set(0, 1, KVMEM_POLICY_BIND, 1, 1u << 31));
	expect_refused(EINVAL, "needs a node", set(0, 1, KVMEM_POLICY_BIND, 0, 0));
	expect_refused(EINVAL, "takes no nodes", set(0, 1, KVMEM_POLICY_DEFAULT, 1, 0));
	expect_refused(EINVAL, "takes one node", set(0, 1, KVMEM_POLICY_PREFERRED, 3, 0));
	expect_refused(EPERM, "node 2", set(0, 1, KVMEM_POLICY_BIND, 4, 0));
	expect_refused(ENODEV, "node 5", set(0, 1, KVMEM_POLICY_BIND, 1 | 32, 0));
	far[20] = 1;
	expect_refused(ENODEV, "1280",
		       kvmem_region_set_policy(&region, 0, PAGE, KVMEM_POLICY_BIND, far, 2048, 0));
	ck_assert_uint_eq(told.calls, 0);
	done();
}
END

TEST(modes_the_kernel_lacks)
{
	fresh(KVMEM_BACKING_MEMFD);
	mbind_error = EINVAL;
	expect_refused(EOPNOTSUPP, "weighted", set(0, 1, KVMEM_POLICY_WEIGHTED_INTERLEAVE, 1, 0));
	expect_refused(EOPNOTSUPP, "preferred-many", set(0, 1, KVMEM_POLICY_PREFERRED_MANY, 1, 0));
	expect_refused(EINVAL, "mbind", set(0, 1, KVMEM_POLICY_BIND, 1, 0));
	mbind_error = ENOSYS;
	expect_refused(EOPNOTSUPP, "CONFIG_NUMA", set(0, 1, KVMEM_POLICY_BIND, 1, 0));
	done();
}
END

TEST(too_late_is_said_with_the_count)
{
	fresh(KVMEM_BACKING_ANONYMOUS);
	for (unsigned int i = 0; i < 7; i++)
		region.base[i * 3 * PAGE] = 1;
	expect_refused(EEXIST, "7 pages", set(0, PAGES, KVMEM_POLICY_BIND, 1, 0));
	ck_assert_int_eq(set(0, PAGES, KVMEM_POLICY_BIND, 1, KVMEM_POLICY_FUTURE), 0);
	ck_assert_int_eq(set(100, 10, KVMEM_POLICY_BIND, 1, 0), 0);
	done();
}
END

static void expect_policies(const char *want)
{
	char got[256] = "";

	for (struct km_policy *p = region.policies; p; p = p->next)
		snprintf(got + strlen(got), sizeof(got) - strlen(got), "%llu+%llu:%d ",
			 (unsigned long long)(p->offset / PAGE),
			 (unsigned long long)(p->bytes / PAGE), p->mode);
	ck_assert_str_eq(got, want);
}

TEST(later_ranges_cut_earlier_ones)
{
	fresh(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(set(100, 100, KVMEM_POLICY_BIND, 1, 0), 0);
	ck_assert_int_eq(set(140, 20, KVMEM_POLICY_INTERLEAVE, 3, 0), 0);
	expect_policies("100+40:2 140+20:3 160+40:2 ");
	ck_assert_int_eq(set(90, 60, KVMEM_POLICY_PREFERRED, 2, 0), 0);
	expect_policies("90+60:1 150+10:3 160+40:2 ");
	ck_assert_int_eq(set(150, 50, KVMEM_POLICY_PREFERRED_MANY, 3, 0), 0);
	expect_policies("90+60:1 150+50:5 ");
	ck_assert_int_eq(set(0, PAGES, KVMEM_POLICY_DEFAULT, 0, 0), 0);
	expect_policies("");
	done();
}
END

TEST(ignored_policies_are_taken_back)
{
	fresh(KVMEM_BACKING_GUEST_MEMFD);
	ck_assert_int_eq(set(0, 8, KVMEM_POLICY_BIND, 2, 0), 1);
	ck_assert_uint_eq(told.calls, 2);
	ck_assert_int_eq(told.mode, KM_MPOL_DEFAULT);
	ck_assert(region.policies->emulated);
	ck_assert_int_eq(set(0, 8, KVMEM_POLICY_DEFAULT, 0, 0), 0);
	expect_refused(EOPNOTSUPP, "6.19", set(0, 8, KVMEM_POLICY_BIND, 2, KVMEM_POLICY_NATIVE));
	held = true;
	ck_assert_int_eq(set(0, 8, KVMEM_POLICY_BIND, 2, KVMEM_POLICY_NATIVE), 0);
	ck_assert_int_eq(told.mode, KM_MPOL_BIND);
	ck_assert(!region.policies->emulated);
	done();
}
END

TEST(emulated_by_the_filling_thread)
{
	struct km_numa_state s;
	uint64_t end;

	fresh(KVMEM_BACKING_HUGETLB); /* whose policy the kernel keeps by mapping */
	expect_refused(EOPNOTSUPP, "hugetlb", set(0, 8, KVMEM_POLICY_BIND, 2, KVMEM_POLICY_NATIVE));
	ck_assert_int_eq(set(8, 8, KVMEM_POLICY_BIND, 2, 0), 1);
	ck_assert_int_eq(told.mode, KM_MPOL_BIND); /* left on the mapping: vCPU faults follow it */
	km_numa_save(&s);
	ck_assert_int_eq(km_numa_enter(&region, 0, &end, &s), 0);
	ck_assert_uint_eq(end, 8 * PAGE);
	ck_assert_uint_eq(set_calls, 0);
	ck_assert_int_eq(km_numa_enter(&region, 9 * PAGE, &end, &s), 0);
	ck_assert_uint_eq(end, 16 * PAGE);
	ck_assert_int_eq(set_mode, KM_MPOL_BIND);
	ck_assert_uint_eq(set_nodes, 2);
	ck_assert_int_eq(km_numa_enter(&region, 16 * PAGE, &end, &s), 0);
	ck_assert_uint_eq(end, BYTES);
	ck_assert_int_eq(set_mode, KM_MPOL_DEFAULT);
	ck_assert_uint_eq(set_calls, 2);
	km_numa_leave(&s);
	ck_assert_uint_eq(set_calls, 2);
	ck_assert_int_eq(km_numa_enter(&region, 9 * PAGE, &end, &s), 0);
	ck_assert_int_eq(km_numa_enter(&region, 10 * PAGE, &end, &s), 0);
	ck_assert_uint_eq(set_calls, 3); /* the same again is not said again */
	km_numa_leave(&s);
	ck_assert_uint_eq(set_calls, 4);
	done();
}
END

/* What a pager stores goes through the second mapping, whether it or the policy was there first. */
TEST(the_second_mapping_of_hugetlb_has_the_policies_too)
{
	uint8_t *store;

	fresh(KVMEM_BACKING_HUGETLB);
	ck_assert_int_eq(set(8, 8, KVMEM_POLICY_BIND, 2, 0), 1);
	region.watch = (struct km_watch *)&region; /* never looked into here */
	mbind_error = ENOMEM;
	ck_assert_int_eq(km_region_store(&region, &store), -ENOMEM);
	ck_assert_ptr_null(region.alias);
	mbind_error = 0;
	ck_assert_int_eq(km_region_store(&region, &store), 0);
	ck_assert_ptr_ne(store, region.base);
	ck_assert_ptr_eq(told.addr, store + 8 * PAGE);
	ck_assert_uint_eq(told.len, 8 * PAGE);
	ck_assert_uint_eq(told.nodes, 2);
	ck_assert_int_eq(set(32, 4, KVMEM_POLICY_PREFERRED, 1, 0), 1);
	ck_assert_ptr_eq(told.addr, store + 32 * PAGE);
	ck_assert_int_eq(told.mode, KM_MPOL_PREFERRED);
	done();
}
END

/* Every third page on node 1, every other on node 0. */
static int64_t scattered(size_t count, void **pages, int *status)
{
	for (size_t i = 0; i < count; i++)
		status[i] = (((uint8_t *)pages[i] - region.base) / (long)PAGE) % 3 == 0;
	return 0;
}

TEST(placement_counts)
{
	struct kvmem_placement p = KVMEM_PLACEMENT_INIT;
	uint64_t nodes[4] = { 9, 9, 9, 9 };

	fresh(KVMEM_BACKING_ANONYMOUS);
	fake.move_pages_query = scattered;
	ck_assert_int_eq(set(0, 600, KVMEM_POLICY_BIND, 1, 0), 0);
	for (unsigned int i = 0; i < 900; i++)
		region.base[i * PAGE] = 1;
	p.nodes = nodes;
	p.node_count = 4;
	ck_assert_int_eq(kvmem_region_placement(&region, 0, BYTES, &p), 0);
	ck_assert_uint_eq(p.pages, PAGES);
	ck_assert_uint_eq(p.present, 900);
	ck_assert_uint_eq(nodes[0], 600);
	ck_assert_uint_eq(nodes[1], 300);
	ck_assert_uint_eq(nodes[2], 0);
	ck_assert_uint_eq(p.node_count, 2);
	ck_assert_uint_eq(p.misplaced, 200);
	p.node_count = 1;
	ck_assert_int_eq(kvmem_region_placement(&region, 0, BYTES, &p), 0);
	ck_assert_uint_eq(p.other, 300);
	p.nodes = NULL;
	ck_assert_int_eq(kvmem_region_placement(&region, 0, BYTES, &p), -EINVAL);
	done();
}
END

static int64_t no_numa(int *mode, unsigned long *nodes, unsigned long maxnode, void *addr,
		       unsigned long flags)
{
	(void)mode, (void)nodes, (void)maxnode, (void)addr, (void)flags;
	return -ENOSYS;
}

static int64_t no_migration(size_t count, void **pages, int *status)
{
	(void)count, (void)pages, (void)status;
	return -ENOSYS;
}

static int64_t node_of_a_page(int *mode, unsigned long *nodes, unsigned long maxnode, void *addr,
			      unsigned long flags)
{
	(void)nodes, (void)maxnode;
	ck_assert_uint_eq(flags, KM_MPOL_F_NODE | KM_MPOL_F_ADDR);
	return addr == region.base + 5 * PAGE ? -EFAULT : scattered(1, &addr, mode);
}

TEST(placement_without_move_pages)
{
	struct kvmem_placement p = KVMEM_PLACEMENT_INIT;
	uint64_t nodes[4];

	fresh(KVMEM_BACKING_ANONYMOUS);
	memset(region.base, 1, 300 * PAGE);
	fake.move_pages_query = no_migration;
	fake.get_mempolicy = node_of_a_page;
	p.nodes = nodes;
	p.node_count = 4;
	ck_assert_int_eq(kvmem_region_placement(&region, 0, BYTES, &p), 0);
	ck_assert_uint_eq(p.present, 300);
	ck_assert_uint_eq(nodes[0], 199);
	ck_assert_uint_eq(nodes[1], 100);
	ck_assert_uint_eq(p.other, 1);
	p.node_count = 4;
	fake.get_mempolicy = no_numa;
	ck_assert_int_eq(kvmem_region_placement(&region, 0, BYTES, &p), 0);
	ck_assert_uint_eq(nodes[0], 300);
	done();
}
END

/* ---- where a seccomp filter refuses the calls ---- */

static int64_t forbidden_mempolicy(int *mode, unsigned long *nodes, unsigned long maxnode,
				   void *addr, unsigned long flags)
{
	(void)mode, (void)nodes, (void)maxnode, (void)addr, (void)flags;
	return -EPERM;
}

static int64_t forbidden_move_pages(size_t count, void **pages, int *status)
{
	(void)count, (void)pages, (void)status;
	return -EPERM;
}

static const char *with_memory, *allowed;

static int64_t node_files(const char *path, int flags)
{
	const char *text = NULL;
	int64_t fd;

	if (!strcmp(path, "/sys/devices/system/node/has_memory"))
		text = with_memory;
	else if (!strcmp(path, "/proc/self/status"))
		text = allowed;
	else
		return km_real_open(path, flags);
	if (!text)
		return -ENOENT;
	fd = km_real_memfd_create("text", 0);
	ck_assert_int_eq(write((int)fd, text, strlen(text)), (ssize_t)strlen(text));
	lseek((int)fd, 0, SEEK_SET);
	return fd;
}

static void fresh_container(uint32_t backing)
{
	fresh(backing);
	fake.get_mempolicy = forbidden_mempolicy;
	fake.move_pages_query = forbidden_move_pages;
	fake.open = node_files;
	mbind_error = EPERM;
	with_memory = "0-1,3\n";
	allowed = "Name:\ttest\nMems_allowed:\t0000000b\nMems_allowed_list:\t0-1\nx:\t1\n";
}

TEST(k14_44_nodes_are_read_from_files)
{
	unsigned long got = 0;

	fresh_container(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(kvmem_numa_nodes(&got, 64), 2);
	ck_assert_uint_eq(got, 3);
	allowed = "Mems_allowed_list:\t1,3-5\n";
	ck_assert_int_eq(kvmem_numa_nodes(&got, 64), 2);
	ck_assert_uint_eq(got, 0xa);
	with_memory = NULL;
	expect_refused(EPERM, "CAP_SYS_NICE", kvmem_numa_nodes(&got, 64));
	done();
}
END

TEST(k14_44_policies_are_refused_with_the_reason)
{
	fresh_container(KVMEM_BACKING_MEMFD);
	expect_refused(EPERM, "seccomp", set(0, 8, KVMEM_POLICY_BIND, 1, 0));
	expect_refused(EPERM, "CAP_SYS_NICE", set(0, 8, KVMEM_POLICY_BIND, 1, 0));
	ck_assert_int_eq(set(0, 8, KVMEM_POLICY_DEFAULT, 0, 0), 0);
	ck_assert_ptr_null(region.policies);
	done();
}
END

TEST(k14_44_placement_counts_without_nodes)
{
	struct kvmem_placement p = KVMEM_PLACEMENT_INIT;
	uint64_t nodes[4];

	fresh_container(KVMEM_BACKING_ANONYMOUS);
	memset(region.base, 1, 30 * PAGE);
	p.nodes = nodes;
	p.node_count = 4;
	ck_assert_int_eq(kvmem_region_placement(&region, 0, BYTES, &p), 0);
	ck_assert_uint_eq(p.present, 30);
	ck_assert_uint_eq(p.other, 30);
	with_memory = "1\n"; /* one node: then there is no doubt */
	p.node_count = 4;
	ck_assert_int_eq(kvmem_region_placement(&region, 0, BYTES, &p), 0);
	ck_assert_uint_eq(p.other, 0);
	ck_assert_uint_eq(nodes[1], 30);
	done();
}
END

TEST(nodes_with_memory)
{
	unsigned long got = ~0ul;

	fresh(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(kvmem_numa_nodes(&got, 64), 2);
	ck_assert_uint_eq(got, 3);
	ck_assert_int_eq(kvmem_numa_nodes(&got, 1), -EINVAL);
	ck_assert_int_eq(kvmem_numa_nodes(NULL, 1), -EINVAL);
	fake.get_mempolicy = no_numa;
	ck_assert_int_eq(kvmem_numa_nodes(&got, 64), 1);
	ck_assert_uint_eq(got, 1);
	done();
}
END

static int64_t filtered_get_mempolicy(int *mode, unsigned long *nodes, unsigned long maxnode,
				      void *addr, unsigned long flags)
{
	(void)mode, (void)nodes, (void)maxnode, (void)addr, (void)flags;
	return -EPERM;
}

/* Memory on nodes 0 to 3 and 70, of which 0, 2 and 70 are allowed. */
static int64_t files_of_a_machine(const char *path, int flags)
{
	const char *text = NULL;
	int fd;

	if (!strcmp(path, "/sys/devices/system/node/has_memory"))
		text = "0-3,70\n";
	else if (!strcmp(path, "/proc/self/status"))
		text = "Name:\tx\nMems_allowed:\tff\nMems_allowed_list:\t0,2,64-71\nlast:\t1\n";
	if (!text)
		return km_real_open(path, flags);
	fd = (int)km_real_memfd_create("text", 0);
	ck_assert_int_eq(pwrite(fd, text, strlen(text), 0), (ssize_t)strlen(text));
	return fd;
}

TEST(k14_44_nodes_where_seccomp_refuses_the_call)
{
	unsigned long nodes[2] = { 0 };

	fresh(KVMEM_BACKING_MEMFD);
	fake.get_mempolicy = filtered_get_mempolicy;
	fake.open = files_of_a_machine;
	ck_assert_int_eq(kvmem_numa_nodes(nodes, 128), 3);
	ck_assert_uint_eq(nodes[0], 5);
	ck_assert_uint_eq(nodes[1], 1ul << 6);
	done();
}
END

TEST(whichever_call_fails_nothing_changes)
{
	int r = -1;

	for (unsigned long n = 1; r; n++) {
		fresh(KVMEM_BACKING_MEMFD);
		ck_assert_int_eq(set(0, PAGES, KVMEM_POLICY_BIND, 1, 0), 0);
		fake.fail_errno = ENOMEM;
		fake.fail_at = fake.calls + n;
		r = set(100, 10, KVMEM_POLICY_BIND, 2, 0);
		if (r) {
			ck_assert_int_eq(r, -ENOMEM);
			expect_policies("0+1024:2 ");
		}
		fake.fail_at = 0;
		done();
		ck_assert_uint_lt(n, 100);
	}
}
END

HARNESS_MAIN(T(the_kernel_is_told), T(bad_input), T(modes_the_kernel_lacks),
	     T(too_late_is_said_with_the_count), T(later_ranges_cut_earlier_ones),
	     T(ignored_policies_are_taken_back), T(emulated_by_the_filling_thread),
	     T(the_second_mapping_of_hugetlb_has_the_policies_too), T(placement_counts),
	     T(placement_without_move_pages), T(nodes_with_memory),
	     T(k14_44_nodes_are_read_from_files), T(k14_44_policies_are_refused_with_the_reason),
	     T(k14_44_placement_counts_without_nodes),
	     T(k14_44_nodes_where_seccomp_refuses_the_call),
	     T(whichever_call_fails_nothing_changes))
