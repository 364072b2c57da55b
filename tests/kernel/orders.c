// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* "Order of calls" and "Order of freeing" of kvmem(7): what comes too late or too early is refused as told. */
#include "pager_lib.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static struct kvmem_source *source;
static uint8_t content[MIB];

static bool open_vm(uint64_t needs)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	if (kvmem_vm_create(NULL, &vm)) {
		harness_skip("kvm", "%s", kvmem_error_detail());
		return false;
	}
	o.bytes = MIB;
	o.needs = needs;
	must(kvmem_region_create(vm, &o, &ram));
	must(kvmem_source_memory(content, MIB, &source));
	return true;
}

static void close_vm(void)
{
	must(kvmem_source_free(source));
	must(kvmem_region_free(ram));
	must(kvmem_vm_free(vm));
}

TEST(a_tracker_comes_before_the_first_vcpu)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	struct kvmem_dirty *dirty;
	int vcpu;

	if (!open_vm(KVMEM_WANT_DIRTY))
		return;
	vcpu = ioctl(kvmem_vm_fd(vm), KVM_CREATE_VCPU, 0);
	ck_assert_int_ge(vcpu, 0);
	o.mode = KVMEM_DIRTY_RING;
	ck_assert_int_eq(kvmem_dirty_create(vm, &o, &dirty), -EBUSY);
	must(kvmem_dirty_create(vm, NULL, &dirty));
	ck_assert_uint_eq(kvmem_dirty_get_mode(dirty), KVMEM_DIRTY_BITMAP);
	must(kvmem_dirty_free(dirty));
	close(vcpu);
	close_vm();
}
END

TEST(what_is_written_by_hand_is_announced_before_it_is_filled)
{
	const unsigned long node = 1;
	struct kvmem_pager *pager;

	if (!open_vm(0))
		return;
	memset(kvmem_region_base(ram), 1, PAGE);
	ck_assert_int_eq(kvmem_region_set_policy(ram, 0, MIB, KVMEM_POLICY_BIND, &node, 64, 0),
			 -EEXIST);
	ck_assert_int_eq(kvmem_populate(ram, 0, source, NULL, NULL), -EEXIST);
	if (!kvmem_pager_create(NULL, &pager)) {
		ck_assert_int_eq(kvmem_pager_add(pager, ram, source, 0, 0), -EEXIST);
		must(kvmem_pager_free(pager));
	}
	must(kvmem_region_mark_present(ram, 0, PAGE));
	must(kvmem_populate(ram, 0, source, NULL, NULL));
	ck_assert_uint_eq(*(uint8_t *)kvmem_region_base(ram), 1);
	close_vm();
}
END

TEST(a_tracker_is_freed_after_its_batches_and_readers)
{
	struct kvmem_reader *reader;
	struct kvmem_batch *batch;
	struct kvmem_dirty *dirty;

	if (!open_vm(KVMEM_WANT_DIRTY))
		return;
	must(kvmem_dirty_create(vm, NULL, &dirty));
	must(kvmem_dirty_reader_create(dirty, NULL, &reader));
	must(kvmem_dirty_start(dirty));
	must((int)kvmem_reader_harvest(reader, &batch));
	ck_assert_int_eq(kvmem_reader_free(reader), -EBUSY);
	ck_assert_int_eq(kvmem_dirty_stop(dirty), -EBUSY);
	kvmem_batch_free(batch);
	ck_assert_int_eq(kvmem_dirty_free(dirty), -EBUSY);
	must(kvmem_dirty_stop(dirty));
	ck_assert_int_eq(kvmem_dirty_free(dirty), -EBUSY);
	must(kvmem_reader_free(reader));
	must(kvmem_region_free(ram)); /* before the tracker, if need be */
	ck_assert_int_eq(kvmem_vm_free(vm), -EBUSY);
	must(kvmem_dirty_free(dirty));
	must(kvmem_vm_free(vm));
	must(kvmem_source_free(source));
}
END

TEST(a_pager_is_freed_before_what_it_serves)
{
	const struct kvmem_range all = { 0, MIB };
	struct kvmem_ticket *ticket;
	struct kvmem_pager *pager;
	int r = kvmem_pager_create(NULL, &pager);

	SKIP_IF(r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP, "uffd", "%s",
		kvmem_error_detail());
	must(r);
	if (!open_vm(KVMEM_WANT_PAGING)) {
		must(kvmem_pager_free(pager));
		return;
	}
	must(kvmem_pager_add(pager, ram, source, 0, 0));
	must(kvmem_pager_prefetch(pager, ram, &all, 1, NULL, &ticket));
	must(kvmem_pager_start(pager));
	ck_assert_int_eq(kvmem_pager_free(pager), -EBUSY);
	ck_assert_int_eq(kvmem_source_free(source), -EBUSY);
	ck_assert_int_eq(kvmem_region_free(ram), -EBUSY);
	ck_assert_int_eq(kvmem_vm_free(vm), -EBUSY);
	must(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
	ck_assert_int_eq(kvmem_source_free(source), -EBUSY);
	ck_assert_int_eq(kvmem_region_free(ram), -EBUSY);
	must(kvmem_pager_free(pager));
	must(kvmem_ticket_free(ticket)); /* after the pager, if need be */
	close_vm();
}
END

HARNESS_MAIN(T(a_tracker_comes_before_the_first_vcpu),
	     T(what_is_written_by_hand_is_announced_before_it_is_filled),
	     T(a_tracker_is_freed_after_its_batches_and_readers),
	     T(a_pager_is_freed_before_what_it_serves))
