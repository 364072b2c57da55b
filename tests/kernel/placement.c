// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * On a machine with two nodes: each policy puts the pages where it says, on every kind of memory
 * the kernel has, whether the kernel holds the policy or the library emulates it. Believed are only
 * the nodes on which the pages are then found; the counts are printed.
 */
#include "harness.h"

#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE  4096u
#define PAGES 2048u
#define BYTES ((uint64_t)PAGES * PAGE)
#define NODES 64u
#define MIB   (UINT64_C(1) << 20)

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static unsigned int node[2];
static uint64_t count[NODES];
static struct kvmem_placement place;

static const struct {
	uint32_t id;
	const char *name;
} backings[] = {
	{ KVMEM_BACKING_GUEST_MEMFD, "guest_memfd" },
	{ KVMEM_BACKING_MEMFD, "memfd" },
	{ KVMEM_BACKING_ANONYMOUS, "anonymous" },
};

static void ok(int r)
{
	ck_assert_msg(r >= 0, "%d: %s", r, kvmem_error_detail());
}

static bool two_nodes(void)
{
	unsigned long mask = 0;

	if (kvmem_numa_nodes(&mask, NODES) < 2) {
		harness_skip("numa2", "one node has memory");
		return false;
	}
	node[0] = (unsigned int)__builtin_ctzl(mask);
	node[1] = (unsigned int)__builtin_ctzl(mask & (mask - 1));
	return true;
}

/* False where this kernel has no such memory. */
static bool make(uint32_t backing, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	vm = NULL;
	if (backing == KVMEM_BACKING_GUEST_MEMFD && kvmem_vm_create(NULL, &vm))
		return false;
	o.bytes = bytes;
	o.backing = backing;
	if (!kvmem_region_create(vm, &o, &ram))
		return true;
	kvmem_vm_free(vm);
	return false;
}

static void drop(void)
{
	ok(kvmem_region_free(ram));
	ok(kvmem_vm_free(vm));
}

static int set(uint64_t first, uint64_t pages, uint32_t mode, unsigned long mask)
{
	return kvmem_region_set_policy(ram, first * PAGE, pages * PAGE, mode, &mask, NODES, 0);
}

static void look(uint64_t first, uint64_t pages)
{
	place = (struct kvmem_placement){ .size = sizeof(place),
					  .node_count = NODES,
					  .nodes = count };
	ok(kvmem_region_placement(ram, first * PAGE, pages * PAGE, &place));
}

static int populate(uint64_t bytes, uint32_t threads)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	unsigned char *content = numa_alloc_onnode(bytes, (int)node[0]);
	struct kvmem_source *source;
	int r;

	ck_assert_ptr_nonnull(content);
	memset(content, 0x3c, bytes);
	ok(kvmem_source_memory(content, bytes, &source));
	o.threads = threads;
	r = kvmem_populate(ram, 0, source, &o, NULL);
	ok(kvmem_source_free(source));
	numa_free(content, bytes);
	return r;
}

static void report(const char *backing, const char *what, int held)
{
	harness_note("placement: %s, %s (%s): %llu pages on node %u, %llu on node %u", backing,
		     what, held ? "emulated" : "held by the kernel",
		     (unsigned long long)count[node[0]], node[0],
		     (unsigned long long)count[node[1]], node[1]);
}

/* One policy over all of a region: the share of pages in percent found on the second node. */
static void one_policy(const char *what, uint32_t mode, unsigned long mask, unsigned int low,
		       unsigned int high)
{
	for (size_t b = 0; b < 3; b++) {
		/* transparent huge pages are placed whole, and there are four of them */
		unsigned int slack = backings[b].id == KVMEM_BACKING_ANONYMOUS && low != high ? 15
											      : 0;
		int held;

		if (!make(backings[b].id, BYTES))
			continue;
		held = set(0, PAGES, mode, mask);
		ok(held);
		ok(populate(BYTES, 2));
		look(0, PAGES);
		report(backings[b].name, what, held);
		ck_assert_uint_eq(place.present, PAGES);
		ck_assert_uint_eq(place.misplaced, 0);
		ck_assert_uint_ge(count[node[1]] * 100, (uint64_t)(low - slack) * PAGES);
		ck_assert_uint_le(count[node[1]] * 100, (uint64_t)(high + slack) * PAGES);
		drop();
	}
}

TEST(bind)
{
	if (!two_nodes())
		return;
	one_policy("bind to the first node", KVMEM_POLICY_BIND, 1ul << node[0], 0, 0);
	one_policy("bind to the second node", KVMEM_POLICY_BIND, 1ul << node[1], 100, 100);
}
END

TEST(preferred)
{
	if (!two_nodes())
		return;
	one_policy("prefer the first node", KVMEM_POLICY_PREFERRED, 1ul << node[0], 0, 0);
	one_policy("prefer the second node", KVMEM_POLICY_PREFERRED, 1ul << node[1], 100, 100);
	one_policy("prefer any of the second node", KVMEM_POLICY_PREFERRED_MANY, 1ul << node[1],
		   100, 100);
}
END

TEST(interleave)
{
	if (!two_nodes())
		return;
	one_policy("interleave", KVMEM_POLICY_INTERLEAVE, 1ul << node[0] | 1ul << node[1], 45, 55);
}
END

static bool set_weight(unsigned int n, unsigned int weight)
{
	char path[96];
	bool good;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/kernel/mm/mempolicy/weighted_interleave/node%u", n);
	f = fopen(path, "we");
	if (!f)
		return false;
	good = fprintf(f, "%u\n", weight) > 0;
	return !fclose(f) && good;
}

TEST(weighted_interleave)
{
	unsigned long both;

	if (!two_nodes())
		return;
	both = 1ul << node[0] | 1ul << node[1];
	if (!set_weight(node[0], 1) || !set_weight(node[1], 3)) {
		ck_assert(make(KVMEM_BACKING_MEMFD, BYTES));
		if (set(0, PAGES, KVMEM_POLICY_WEIGHTED_INTERLEAVE, both) == -EOPNOTSUPP)
			harness_note("%s", kvmem_error_detail());
		drop();
		SKIP("weighted-interleave", "no weights in /sys/kernel/mm/mempolicy");
	}
	one_policy("weighted interleave 1:3", KVMEM_POLICY_WEIGHTED_INTERLEAVE, both, 70, 80);
	set_weight(node[0], 1);
	set_weight(node[1], 1);
}
END

TEST(part_of_a_region)
{
	if (!two_nodes())
		return;
	for (size_t b = 0; b < 3; b++) {
		int held;

		if (!make(backings[b].id, BYTES))
			continue;
		held = set(0, PAGES, KVMEM_POLICY_BIND, 1ul << node[0]);
		ok(held);
		ok(set(100, 300, KVMEM_POLICY_BIND, 1ul << node[1]));
		ok(populate(BYTES, 2));
		look(0, PAGES);
		report(backings[b].name, "pages 100 to 399 bound to the second node", held);
		ck_assert_uint_eq(count[node[1]], 300);
		ck_assert_uint_eq(place.misplaced, 0);
		look(100, 300);
		ck_assert_uint_eq(count[node[1]], 300);
		drop();
	}
}
END

/* Slots and policies cut the region at different places; neither cares for the other. */
TEST(ranges_across_slots)
{
	if (!two_nodes())
		return;
	if (kvmem_vm_create(NULL, &vm))
		SKIP("kvm", "%s", kvmem_error_detail());
	kvmem_vm_free(vm);
	for (size_t b = 0; b < 3; b++) {
		struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

		ok(kvmem_vm_create(NULL, &vm));
		o.bytes = BYTES;
		o.backing = backings[b].id;
		if (kvmem_region_create(vm, &o, &ram)) {
			ok(kvmem_vm_free(vm));
			continue;
		}
		ok(kvmem_region_attach(ram, BYTES / 2, BYTES / 2, 0, 7, 0, NULL));
		ok(kvmem_region_attach(ram, 0, BYTES / 2, UINT64_C(1) << 32, 8, 0, NULL));
		ok(set(0, PAGES, KVMEM_POLICY_BIND, 1ul << node[0]));
		ok(set(PAGES / 2 - 50, 100, KVMEM_POLICY_BIND, 1ul << node[1]));
		ok(populate(BYTES, 1));
		look(0, PAGES);
		ck_assert_uint_eq(count[node[1]], 100);
		look(PAGES / 2 - 50, 100);
		ck_assert_uint_eq(count[node[1]], 100);
		ck_assert_uint_eq(place.misplaced, 0);
		drop();
	}
}
END

struct job {
	unsigned int on;
	int result;
};

static void *populate_from(void *arg)
{
	struct job *j = arg;
	struct bitmask *cpus = numa_allocate_cpumask();

	if (numa_node_to_cpus((int)j->on, cpus) || numa_sched_setaffinity(0, cpus))
		j->result = -errno;
	else
		j->result = populate(BYTES, 1);
	numa_free_cpumask(cpus);
	return NULL;
}

TEST(threads_of_the_wrong_node)
{
	if (!two_nodes())
		return;
	for (size_t b = 0; b < 3; b++) {
		for (unsigned int wanted = 0; wanted < 2; wanted++) {
			struct job j = { .on = node[!wanted] };
			pthread_t t;
			int held;

			if (!make(backings[b].id, BYTES))
				continue;
			held = set(0, PAGES, KVMEM_POLICY_BIND, 1ul << node[wanted]);
			ok(held);
			ck_assert_int_eq(pthread_create(&t, NULL, populate_from, &j), 0);
			pthread_join(t, NULL);
			ok(j.result);
			look(0, PAGES);
			report(backings[b].name,
			       wanted ? "bound to the second, filled from the first"
				      : "bound to the first, filled from the second",
			       held);
			ck_assert_uint_eq(count[node[wanted]], PAGES);
			drop();
		}
	}
}
END

static bool may_fill_a_node(void)
{
	if (!two_nodes())
		return false;
	if (getenv("KVMEM_TEST_RIG"))
		return true;
	harness_skip("numa2", "it would fill a node of this machine");
	return false;
}

/* Takes all but `leave` bytes of what is free on a node. */
static void *fill_node(unsigned int n, uint64_t leave, uint64_t *ret_bytes)
{
	unsigned long mask = 1ul << n;
	long long unused;
	void *p;

	ck_assert_int_ge(numa_node_size64((int)n, &unused), 0);
	ck_assert_uint_ge((uint64_t)unused, leave + 64 * MIB);
	*ret_bytes = ((uint64_t)unused - leave) / PAGE * PAGE;
	p = mmap(NULL, *ret_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	ck_assert_int_eq(mbind(p, *ret_bytes, MPOL_PREFERRED, &mask, NODES, 0), 0);
	for (uint64_t at = 0; at < *ret_bytes; at += PAGE)
		((volatile unsigned char *)p)[at] = 1;
	return p;
}

/* A preferred node that is full: the rest goes elsewhere, and the report says so. */
TEST(preferred_node_full)
{
	const uint64_t bytes = 160 * MIB;
	uint64_t taken;
	void *hog;

	if (!may_fill_a_node())
		return;
	hog = fill_node(node[1], 96 * MIB, &taken);
	ck_assert(make(KVMEM_BACKING_MEMFD, bytes));
	ok(set(0, bytes / PAGE, KVMEM_POLICY_PREFERRED, 1ul << node[1]));
	ok(populate(bytes, 1));
	look(0, bytes / PAGE);
	report("memfd", "prefer the second node, which is full", 0);
	ck_assert_uint_eq(place.present, bytes / PAGE);
	ck_assert_uint_gt(count[node[0]], 0);
	ck_assert_uint_eq(place.misplaced, count[node[0]]);
	drop();
	munmap(hog, taken);
}
END

/* Of all that is here, the kernel is to end this process when a node has no memory left. */
static void be_the_victim(void)
{
	FILE *f = fopen("/proc/self/oom_score_adj", "we");

	if (!f || fputs("1000", f) < 0 || fclose(f))
		_exit(4);
}

/* More is bound to a node than it has: an error or the end of a process, and never a page elsewhere. */
TEST(bound_node_full)
{
	const uint64_t bytes = 160 * MIB;
	uint64_t taken;
	void *hog;
	pid_t pid;
	int status;

	if (!may_fill_a_node())
		return;
	hog = fill_node(node[1], 96 * MIB, &taken);
	for (size_t b = 0; b < 3; b++) {
		pid = fork();
		if (!pid) {
			int r;

			be_the_victim();
			if (!make(backings[b].id, bytes))
				_exit(77);
			if (set(0, bytes / PAGE, KVMEM_POLICY_BIND, 1ul << node[1]) < 0)
				_exit(3);
			r = populate(bytes, 1);
			if (!r)
				look(0, bytes / PAGE);
			_exit(r == -ENOMEM ? 2 : r || count[node[1]] < bytes / PAGE);
		}
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
			continue;
		harness_note("%s, bound to a node that is full: %s", backings[b].name,
			     WIFSIGNALED(status) ? "ended by the kernel" : "ENOMEM");
		ck_assert_msg((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) ||
				      (WIFEXITED(status) && WEXITSTATUS(status) == 2),
			      "%s: status %#x", backings[b].name, status);
	}
	munmap(hog, taken);
}
END

HARNESS_MAIN(T(bind), T(preferred), T(interleave), T(weighted_interleave), T(part_of_a_region),
	     T(ranges_across_slots), T(threads_of_the_wrong_node), T(preferred_node_full),
	     T(bound_node_full))
