/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* postcopy: the receiving side. What was written after it had been sent is fetched, or pushed, while the guest runs. */
#include "small.h"

#define RAM   (8 * MIB)
#define STALE (2 * MIB) /* from here on, to the end, what was sent is old */

static uint64_t *there; /* the memory of the sending side, at last */

/* What would ask the sending side, and wait for its answer. */
static int fetch(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	memcpy(buf, (char *)there + offset, bytes);
	return 0;
}

int main(void)
{
	struct kvmem_source_ops ops = { .size = sizeof(ops), .read = fetch };
	struct kvmem_pager_stats stats = KVMEM_PAGER_STATS_INIT;
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram = small_ram(vm, KVMEM_WANT_PAGING, RAM);
	struct kvmem_source *stream, *sender;
	uint64_t wrong, placed = 0, *sent = small_image(RAM);
	struct kvmem_pager *pager;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;

	there = small_image(RAM);
	memset((char *)sent + STALE, 0xa5, RAM - STALE); /* what came first: old */
	must(kvmem_source_memory(sent, RAM, &stream), "stream");
	must(kvmem_populate(ram, 0, stream, NULL, NULL), "precopy");
	must(kvmem_region_mark_absent(ram, STALE, RAM - STALE, 0), "kvmem_region_mark_absent");

	must(kvmem_source_callback(&ops, NULL, RAM, &sender), "sender");
	must(kvmem_pager_create(NULL, &pager), "pager");
	must(kvmem_pager_add(pager, ram, sender, 0, 0), "add");
	must(kvmem_region_attach(ram, 0, RAM, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), RAM, &vmm);
	must(kvmem_pager_start(pager), "start");
	wrong = small_run(vcpu, GUEST_VERIFY, GPA, RAM / 2); /* fetched as it is touched */
	for (uint64_t at = STALE; at < RAM; at += BASE_PAGE) /* pushed */
		placed += (uint64_t)must(
			kvmem_pager_put(pager, ram, at, (char *)there + at, BASE_PAGE), "put");
	must(kvmem_pager_wait(pager, -1), "wait"); /* the sending side may end */
	must(kvmem_pager_get_stats(pager, &stats), "stats");
	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL), "stop");
	wrong += small_run(vcpu, GUEST_VERIFY, GPA, RAM);
	printf("%u pages fetched, %u pushed, %u wrong\n", (unsigned int)stats.pages_demand,
	       (unsigned int)(placed / BASE_PAGE), (unsigned int)wrong);
	vmm_destroy(vmm);
	return wrong || placed != RAM / 2 ? EXIT_FAILURE : EXIT_SUCCESS;
}
