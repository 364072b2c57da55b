/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* record: what a guest touches after a restore is recorded once. The next restore brings it in first. */
#include "small.h"

#define RAM	(16 * MIB)
#define ENTRIES 4096

static struct kvmem_range list[ENTRIES]; /* what was touched, in that order */
static size_t count;

/* Returns how many pages the guest had to wait for. */
static uint64_t restore(struct kvmem_source *image)
{
	struct kvmem_pager_opts o = { .size = sizeof(o), .fault_around = BASE_PAGE };
	struct kvmem_pager_stats stats = KVMEM_PAGER_STATS_INIT;
	struct kvmem_vm *vm = small_vm();
	struct kvmem_region *ram = small_ram(vm, KVMEM_WANT_PAGING, RAM);
	struct kvmem_trace_entry e;
	struct kvmem_ticket *ticket;
	struct kvmem_pager *pager;
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;

	o.trace_entries = ENTRIES;
	must(kvmem_pager_create(&o, &pager), "pager");
	must(kvmem_pager_add(pager, ram, image, 0, 0), "add");
	must(kvmem_region_attach(ram, 0, RAM, GPA, KVMEM_SLOT_ANY, 0, NULL), "slot");
	vcpu = small_guest(kvmem_vm_fd(vm), RAM, &vmm);
	must(kvmem_pager_start(pager), "start");
	/* The list of the last time, and the guest when it is in. The first time it is empty. */
	must(kvmem_pager_prefetch(pager, ram, list, count, NULL, &ticket), "prefetch");
	must(kvmem_ticket_wait(ticket, -1, NULL), "ticket");
	must(kvmem_ticket_free(ticket), "ticket");
	if (small_run(vcpu, GUEST_VERIFY, GPA + 9 * MIB, MIB) ||
	    small_run(vcpu, GUEST_VERIFY, GPA + 2 * MIB, MIB / 2))
		must(-EIO, "the guest found something else");
	must(kvmem_pager_get_stats(pager, &stats), "stats");
	must(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK), "stop");
	while (count < ENTRIES && must(kvmem_pager_trace_read(pager, &e, 1), "trace"))
		if (e.why == KVMEM_TRACE_DEMAND)
			list[count++] = (struct kvmem_range){ e.offset, e.bytes };
	return stats.pages_demand; /* the kernel frees what is left */
}

int main(void)
{
	struct kvmem_source *image;
	uint64_t first, second;

	must(kvmem_source_memory(small_image(RAM), RAM, &image), "image");
	first = restore(image);
	second = restore(image);
	printf("pages that the guest waited for: %u, then %u\n", (unsigned int)first,
	       (unsigned int)second);
	return first == 384 && !second ? EXIT_SUCCESS : EXIT_FAILURE;
}
