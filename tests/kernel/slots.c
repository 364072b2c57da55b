// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a running guest sees of its slots: parts of a region, read-only ones, ones that come and go,
 * and pages that are discarded under it. */
#include "harness.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#include "vmm.h"

#define PAGE  4096ull
#define PAGES 1024ull
#define BYTES (PAGES * PAGE)
#define GPA   (4ull << 30)
#define SEED  4711u

static struct {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	unsigned char *base;
	struct vmm *vmm;
	struct vmm_vcpu *vcpu;
} m;

static void ok(int r)
{
	ck_assert_msg(r >= 0, "%d: %s", r, kvmem_error_detail());
}

static void vmm_ok(int r)
{
	ck_assert_msg(!r, "%d: %s", r, vmm_error());
}

static bool open_machine(uint32_t backing, uint32_t form)
{
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	memset(&m, 0, sizeof(m));
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	vo.first_slot = 1;
	ok(kvmem_vm_create(&vo, &m.vm));
	o.bytes = BYTES;
	o.backing = backing;
	o.slot_form = form;
	if (kvmem_region_create(m.vm, &o, &m.ram)) {
		/* An HVA slot is of use only where KVM can pin the pages of the mapping. */
		harness_skip(form == KVMEM_SLOT_HVA ? "gmem-gup" : "guest-memfd", "%s",
			     kvmem_error_detail());
		kvmem_vm_free(m.vm);
		return false;
	}
	m.base = kvmem_region_base(m.ram);
	vmm_ok(vmm_create(kvmem_vm_fd(m.vm), 0, NULL, &m.vmm));
	vmm_ok(vmm_map(m.vmm, GPA, 2 * BYTES));
	vmm_ok(vmm_vcpu_create(m.vmm, 0, &m.vcpu));
	return true;
}

static void close_machine(void)
{
	vmm_destroy(m.vmm);
	ok(kvmem_region_free(m.ram));
	ok(kvmem_vm_free(m.vm));
}

static void attach(uint64_t offset, uint64_t bytes, uint64_t gpa, uint32_t slot, uint32_t flags)
{
	ok(kvmem_region_attach(m.ram, offset, bytes, gpa, slot, flags, NULL));
}

static void command(uint32_t what, uint64_t gpa, uint64_t bytes)
{
	*vmm_mailbox(m.vcpu) = (struct guest_mailbox){
		.command = what,
		.gpa = gpa,
		.bytes = bytes,
		.page = PAGE,
		.step = 512,
		.seed = SEED,
	};
}

static void run(uint32_t what, uint64_t gpa, uint64_t bytes)
{
	command(what, gpa, bytes);
	vmm_ok(vmm_run(m.vcpu));
}

/* Words that differ from what GUEST_FILL would have left at these guest addresses. */
static uint64_t verify(uint64_t gpa, uint64_t bytes)
{
	run(GUEST_VERIFY, gpa, bytes);
	return vmm_mailbox(m.vcpu)->result;
}

static uint64_t word(uint64_t offset)
{
	uint64_t w;

	memcpy(&w, m.base + offset, sizeof(w));
	return w;
}

/* ---- forms ---- */

static void host_and_guest_share(uint32_t backing, uint32_t form)
{
	if (!open_machine(backing, form))
		return;
	attach(0, BYTES, GPA, KVMEM_SLOT_ANY, 0);
	run(GUEST_FILL, GPA, BYTES);
	for (uint64_t at = 0; at < BYTES; at += 512)
		ck_assert_uint_eq(word(at), guest_pattern(SEED, GPA + at));
	memset(m.base + 100 * PAGE, 0, 8);
	ck_assert_uint_eq(verify(GPA, BYTES), 1);
	ck_assert_uint_eq(vmm_mailbox(m.vcpu)->bad_gpa, GPA + 100 * PAGE);
	close_machine();
}

TEST(hva_slot_of_a_guest_memfd)
{
	host_and_guest_share(KVMEM_BACKING_GUEST_MEMFD, KVMEM_SLOT_HVA);
}
END

TEST(direct_slot_of_a_guest_memfd)
{
	host_and_guest_share(KVMEM_BACKING_GUEST_MEMFD, KVMEM_SLOT_DIRECT);
}
END

TEST(slot_of_a_memfd)
{
	host_and_guest_share(KVMEM_BACKING_MEMFD, KVMEM_SLOT_AUTO);
}
END

TEST(slot_of_anonymous_memory)
{
	host_and_guest_share(KVMEM_BACKING_ANONYMOUS, KVMEM_SLOT_AUTO);
}
END

/* ---- parts ---- */

TEST(parts_in_another_order)
{
	if (!open_machine(KVMEM_BACKING_AUTO, KVMEM_SLOT_HVA))
		return;
	attach(BYTES / 2, BYTES / 2, GPA, 9, 0);
	attach(0, BYTES / 2, GPA + BYTES / 2, 4, 0);
	run(GUEST_FILL, GPA, BYTES);
	for (uint64_t at = 0; at < BYTES; at += 512)
		ck_assert_uint_eq(word((at + BYTES / 2) % BYTES), guest_pattern(SEED, GPA + at));
	close_machine();
}
END

TEST(one_part_at_two_addresses)
{
	if (!open_machine(KVMEM_BACKING_AUTO, KVMEM_SLOT_HVA))
		return;
	attach(0, BYTES, GPA, KVMEM_SLOT_ANY, 0);
	attach(0, BYTES, GPA + BYTES, KVMEM_SLOT_ANY, 0);
	run(GUEST_FILL, GPA + BYTES, BYTES);
	ck_assert_uint_eq(word(0), guest_pattern(SEED, GPA + BYTES));
	run(GUEST_FILL, GPA, BYTES);
	ck_assert_uint_eq(verify(GPA, BYTES), 0);
	ck_assert_uint_eq(verify(GPA + BYTES, BYTES), BYTES / 512);
	close_machine();
}
END

TEST(many_slots_of_a_page)
{
	if (!open_machine(KVMEM_BACKING_AUTO, KVMEM_SLOT_HVA))
		return;
	for (uint64_t p = 0; p < PAGES; p++)
		attach((PAGES - 1 - p) * PAGE, PAGE, GPA + p * PAGE, KVMEM_SLOT_ANY, 0);
	run(GUEST_FILL, GPA, BYTES);
	ck_assert_uint_eq(word(0), guest_pattern(SEED, GPA + BYTES - PAGE));
	for (uint32_t id = 1; id <= PAGES; id += 2)
		ok(kvmem_region_detach(m.ram, id));
	for (uint32_t id = 2; id <= PAGES; id += 2)
		ck_assert_uint_eq(verify(GPA + (id - 1) * PAGE, PAGE), 0);
	close_machine();
}
END

/* ---- what is not there, or may not be written ---- */

static void exits_with(uint32_t what, uint64_t gpa, const char *why)
{
	command(what, gpa, PAGE);
	ck_assert_int_ne(vmm_run(m.vcpu), 0);
	ck_assert_msg(strstr(vmm_error(), why), "%s", vmm_error());
}

TEST(writes_to_a_read_only_slot_exit)
{
	if (!open_machine(KVMEM_BACKING_AUTO, KVMEM_SLOT_HVA))
		return;
	attach(0, BYTES / 2, GPA, 1, 0);
	run(GUEST_FILL, GPA, BYTES / 2);
	ok(kvmem_region_detach(m.ram, 1));
	attach(0, BYTES / 2, GPA, 1, KVMEM_ATTACH_READONLY);
	ck_assert_uint_eq(verify(GPA, BYTES / 2), 0);
	m.base[0] ^= 1; /* the host may */
	ck_assert_uint_eq(verify(GPA, BYTES / 2), 1);
	exits_with(GUEST_FILL, GPA, "outside the slots");
	close_machine();
}
END

TEST(a_detached_slot_is_gone)
{
	if (!open_machine(KVMEM_BACKING_AUTO, KVMEM_SLOT_HVA))
		return;
	attach(0, BYTES, GPA, 1, 0);
	run(GUEST_FILL, GPA, BYTES);
	ok(kvmem_region_detach(m.ram, 1));
	exits_with(GUEST_READ, GPA, "outside the slots");
	close_machine();
}
END

static bool is_spinning(void *arg)
{
	(void)arg;
	return vmm_peek(&vmm_mailbox(m.vcpu)->progress) > 0;
}

static bool has_ended(void *arg)
{
	(void)arg;
	return !vmm_running(m.vcpu);
}

TEST(a_slot_detached_under_a_running_guest)
{
	if (!open_machine(KVMEM_BACKING_AUTO, KVMEM_SLOT_HVA))
		return;
	attach(0, BYTES, GPA, 1, 0);
	command(GUEST_SPIN, GPA, BYTES);
	vmm_ok(vmm_start(m.vcpu));
	ck_assert(harness_wait(is_spinning, NULL, 20));
	ok(kvmem_region_detach(m.ram, 1));
	ck_assert(harness_wait(has_ended, NULL, 20));
	ck_assert_int_ne(vmm_wait(m.vcpu), 0);
	ck_assert_msg(strstr(vmm_error(), "outside the slots"), "%s", vmm_error());
	close_machine();
}
END

TEST(other_slots_come_and_go_under_a_running_guest)
{
	if (!open_machine(KVMEM_BACKING_AUTO, KVMEM_SLOT_HVA))
		return;
	attach(0, BYTES / 2, GPA, 1, 0);
	command(GUEST_SPIN, GPA, BYTES / 2);
	vmm_ok(vmm_start(m.vcpu));
	ck_assert(harness_wait(is_spinning, NULL, 20));
	for (int i = 0; i < 50; i++) {
		attach(BYTES / 2, BYTES / 2, GPA + BYTES, 2, i & 1 ? KVMEM_ATTACH_READONLY : 0);
		ok(kvmem_region_detach(m.ram, 2));
	}
	ck_assert(vmm_running(m.vcpu));
	vmm_ask_stop(m.vcpu);
	vmm_ok(vmm_wait(m.vcpu));
	close_machine();
}
END

/* ---- discard under a running guest ---- */

static void discard_under(uint32_t backing, uint32_t form)
{
	if (!open_machine(backing, form))
		return;
	attach(0, BYTES, GPA, 1, 0);
	run(GUEST_FILL, GPA, BYTES);
	*vmm_mailbox(m.vcpu) = (struct guest_mailbox){
		.command = GUEST_READ,
		.flags = GUEST_RANDOM,
		.gpa = GPA,
		.bytes = BYTES,
		.page = PAGE,
		.seed = SEED,
		.rounds = 1 << 20,
	};
	vmm_ok(vmm_start(m.vcpu));
	ck_assert(harness_wait(is_spinning, NULL, 20));
	for (uint64_t p = 0; p < PAGES; p += 2)
		ok(kvmem_region_discard(m.ram, p * PAGE, PAGE));
	vmm_ask_stop(m.vcpu);
	vmm_ok(vmm_wait(m.vcpu));
	for (uint64_t p = 0; p < PAGES; p++)
		ck_assert_uint_eq(verify(GPA + p * PAGE, PAGE), p % 2 ? 0 : PAGE / 512);
	for (uint64_t at = 0; at < BYTES; at += 2 * PAGE)
		ck_assert_uint_eq(word(at), 0);
	run(GUEST_FILL, GPA, BYTES);
	ck_assert_uint_eq(verify(GPA, BYTES), 0);
	ck_assert_uint_eq(word(0), guest_pattern(SEED, GPA));
	close_machine();
}

TEST(discard_under_a_reading_guest)
{
	discard_under(KVMEM_BACKING_GUEST_MEMFD, KVMEM_SLOT_HVA);
	discard_under(KVMEM_BACKING_GUEST_MEMFD, KVMEM_SLOT_DIRECT);
	discard_under(KVMEM_BACKING_MEMFD, KVMEM_SLOT_HVA);
	discard_under(KVMEM_BACKING_ANONYMOUS, KVMEM_SLOT_HVA);
}
END

TEST(discard_under_a_writing_guest)
{
	if (!open_machine(KVMEM_BACKING_AUTO, KVMEM_SLOT_HVA))
		return;
	attach(0, BYTES, GPA, 1, 0);
	run(GUEST_FILL, GPA + BYTES / 2, BYTES / 2);
	command(GUEST_SPIN, GPA, BYTES / 2);
	vmm_ok(vmm_start(m.vcpu));
	ck_assert(harness_wait(is_spinning, NULL, 20));
	for (int round = 0; round < 20; round++)
		ok(kvmem_region_discard(m.ram, 0, BYTES / 2));
	ck_assert(vmm_running(m.vcpu));
	vmm_ask_stop(m.vcpu);
	vmm_ok(vmm_wait(m.vcpu));
	ok(kvmem_region_discard(m.ram, 0, BYTES / 2));
	for (uint64_t at = 0; at < BYTES / 2; at += 64)
		ck_assert_uint_eq(word(at), 0);
	ck_assert_uint_eq(verify(GPA + BYTES / 2, BYTES / 2), 0);
	close_machine();
}
END

HARNESS_MAIN(T(hva_slot_of_a_guest_memfd), T(direct_slot_of_a_guest_memfd), T(slot_of_a_memfd),
	     T(slot_of_anonymous_memory), T(parts_in_another_order), T(one_part_at_two_addresses),
	     T(many_slots_of_a_page), T(writes_to_a_read_only_slot_exit),
	     T(a_detached_slot_is_gone), T(a_slot_detached_under_a_running_guest),
	     T(other_slots_come_and_go_under_a_running_guest), T(discard_under_a_reading_guest),
	     T(discard_under_a_writing_guest))
