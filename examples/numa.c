/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/*
 * numa [MiB]: spread the first half of a guest's memory over all nodes, bind the second half to the
 * last node, fill it, and see where its pages are indeed.
 */
#include "example.h"

#define MAX_NODES 1024
#define LONG_BITS (8 * sizeof(unsigned long))

static unsigned long all_nodes[MAX_NODES / LONG_BITS];
static unsigned long last_node[MAX_NODES / LONG_BITS];

static void find_nodes(void)
{
	unsigned int last = 0;

	must(kvmem_numa_nodes(all_nodes, MAX_NODES), "kvmem_numa_nodes");
	for (unsigned int n = 0; n < MAX_NODES; n++)
		if (all_nodes[n / LONG_BITS] >> (n % LONG_BITS) & 1)
			last = n;
	last_node[last / LONG_BITS] = 1ul << (last % LONG_BITS);
}

static void set_policy(struct kvmem_region *ram, uint64_t offset, uint64_t bytes, uint32_t mode,
		       const unsigned long *nodes)
{
	int64_t emulated = must(
		kvmem_region_set_policy(ram, offset, bytes, mode, nodes, MAX_NODES, 0),
		"kvmem_region_set_policy");

	if (emulated)
		printf("the kernel ignores a policy on this memory; the filling threads follow it\n");
}

/* Returns the number of pages that are not where they should be. */
static uint64_t report(struct kvmem_region *ram, const char *name, uint64_t offset, uint64_t bytes)
{
	struct kvmem_placement where = KVMEM_PLACEMENT_INIT;
	uint64_t pages[MAX_NODES] = { 0 };

	where.nodes = pages;
	where.node_count = MAX_NODES;
	must(kvmem_region_placement(ram, offset, bytes, &where), "kvmem_region_placement");
	printf("%-12s %llu of %llu pages present", name, (unsigned long long)where.present,
	       (unsigned long long)where.pages);
	for (uint32_t n = 0; n < where.node_count; n++)
		if (pages[n])
			printf(", node %u: %llu", n, (unsigned long long)pages[n]);
	printf(", misplaced: %llu\n", (unsigned long long)where.misplaced);
	return where.misplaced + (where.pages - where.present);
}

static int read_ones(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	(void)offset;
	memset(buf, 1, bytes);
	return 0;
}

static void fill(struct kvmem_region *ram, uint64_t bytes)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_source *ones;

	ops.read = read_ones;
	must(kvmem_source_callback(&ops, NULL, bytes, &ones), "kvmem_source_callback");
	must(kvmem_populate(ram, 0, ones, NULL, NULL), "kvmem_populate");
	kvmem_source_free(ones);
}

int main(int argc, char **argv)
{
	uint64_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 64) * MIB, half = bytes / 2;
	struct kvmem_region_opts opts = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;
	struct kvmem_vm *vm;
	uint64_t wrong;

	find_nodes();
	vm = must_have_vm(NULL);
	opts.bytes = bytes;
	opts.wants = KVMEM_WANT_NUMA;
	must(kvmem_region_create(vm, &opts, &ram), "kvmem_region_create");
	set_policy(ram, 0, half, KVMEM_POLICY_INTERLEAVE, all_nodes);
	set_policy(ram, half, bytes - half, KVMEM_POLICY_BIND, last_node);
	fill(ram, bytes);
	wrong = report(ram, "interleaved", 0, half);
	wrong += report(ram, "bound", half, bytes - half);
	kvmem_region_free(ram);
	kvmem_vm_free(vm);
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
