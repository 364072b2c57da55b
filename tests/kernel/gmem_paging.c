// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Lazy paging of a guest_memfd, where the kernel has it: a guest on a slot over its mapping gets
 * every page from the source, by missing and by minor faults of its vCPU. Where the kernel has it
 * not, or the slot is a direct one, the refusal says why.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#include "base/uapi/kvm.h"
#include "vmm.h"

#define PAGE  4096ull
#define PAGES 2048ull
#define BYTES (PAGES * PAGE)
#define GPA   (4ull << 30)
#define SEED  815u
#define STEP  512u

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static struct kvmem_source *source;
static struct kvmem_pager *pager;
static unsigned char *content;

static void ok(int r)
{
	ck_assert_msg(r >= 0, "%d: %s", r, kvmem_error_detail());
}

static bool open_vm(void)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;

	o.first_slot = 1;
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	ok(kvmem_vm_create(&o, &vm));
	return true;
}

static int64_t cap(uint32_t id, const char **ret_reason)
{
	static struct kvmem_cap_info info;

	info = (struct kvmem_cap_info)KVMEM_CAP_INFO_INIT;
	ok(kvmem_caps_get(kvmem_vm_caps(vm), id, &info));
	if (ret_reason)
		*ret_reason = info.reason;
	return info.support == KVMEM_SUPPORT_NATIVE ? info.value : -1;
}

/* Facilities are told apart by what caps says; tests/rig/expect holds caps to the kernel. */
static bool need(uint32_t id, const char *facility)
{
	const char *reason;

	if (!open_vm())
		return false;
	if (cap(id, &reason) >= 0)
		return true;
	harness_skip(facility, "%s", reason);
	kvmem_vm_free(vm);
	return false;
}

static void make_content(void)
{
	content = calloc(1, BYTES);
	for (uint64_t at = 0; at < BYTES; at += STEP) {
		uint64_t w = guest_pattern(SEED, GPA + at);

		memcpy(content + at, &w, sizeof(w));
	}
	ok(kvmem_source_memory(content, BYTES, &source));
}

static void start_pager(void)
{
	ok(kvmem_pager_create(NULL, &pager));
	ok(kvmem_pager_add(pager, ram, source, 0, 0));
	ok(kvmem_pager_start(pager));
}

static void close_all(void)
{
	ok(kvmem_pager_stop(pager, KVMEM_STOP_FILL));
	ok(kvmem_pager_free(pager));
	ok(kvmem_region_free(ram));
	ok(kvmem_source_free(source));
	ok(kvmem_vm_free(vm));
	free(content);
}

/* Words of its RAM that the guest finds different from the source. */
static uint64_t guest_verifies(void)
{
	struct vmm_vcpu *vcpu;
	struct vmm *vmm;
	uint64_t bad;

	ck_assert_msg(!vmm_create(kvmem_vm_fd(vm), 0, NULL, &vmm), "%s", vmm_error());
	ck_assert_msg(!vmm_map(vmm, GPA, BYTES), "%s", vmm_error());
	ck_assert_msg(!vmm_vcpu_create(vmm, 0, &vcpu), "%s", vmm_error());
	*vmm_mailbox(vcpu) = (struct guest_mailbox){
		.command = GUEST_VERIFY,
		.gpa = GPA,
		.bytes = BYTES,
		.page = PAGE,
		.step = STEP,
		.seed = SEED,
	};
	ck_assert_msg(!vmm_run(vcpu), "%s", vmm_error());
	bad = vmm_mailbox(vcpu)->result;
	vmm_destroy(vmm);
	return bad;
}

static void make_region(uint64_t needs)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;

	o.bytes = BYTES;
	o.backing = KVMEM_BACKING_GUEST_MEMFD;
	o.needs = needs;
	ok(kvmem_region_create(vm, &o, &ram));
	ok(kvmem_region_get_plan(ram, &plan));
	ck_assert_uint_eq(plan.slot_form, KVMEM_SLOT_HVA);
	ck_assert_uint_eq(plan.granted & needs, needs);
}

/* The first quarter is there before, but not in the page tables: those faults are minor ones. */
TEST(vcpu_faults_are_served)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;

	if (!need(KVMEM_CAP_GUEST_MEMFD_UFFD, "gmem-uffd"))
		return;
	make_content();
	make_region(KVMEM_WANT_PAGING | KVMEM_WANT_DIRTY);
	o.bytes = BYTES / 4;
	ok(kvmem_populate(ram, 0, source, &o, NULL));
	ck_assert_int_eq(madvise(kvmem_region_base(ram), BYTES / 4, MADV_DONTNEED), 0);
	start_pager();
	ok(kvmem_region_attach(ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, NULL));
	ck_assert_uint_eq(guest_verifies(), 0);
	ok(kvmem_pager_get_stats(pager, &s));
	harness_note("faults of the vCPU: %llu missing, %llu minor",
		     (unsigned long long)s.faults_missing, (unsigned long long)s.faults_minor);
	ck_assert_uint_gt(s.faults_missing, 0);
	ck_assert_uint_gt(s.faults_minor, 0);
	ck_assert_mem_eq(kvmem_region_base(ram), content, BYTES);
	close_all();
}
END

/* Pages of the kernel's free lists get a pattern that must not turn up again. */
static void soil_free_memory(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_ptr_ne(p, MAP_FAILED);
	memset(p, 0xa5, bytes);
	munmap(p, bytes);
}

/* An adopted file whose pages exist and were never filled: they come from the source, too. */
TEST(allocated_pages_show_nothing_stale)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct km_kvm_create_guest_memfd g = { .size = BYTES };
	int fd;

	if (!need(KVMEM_CAP_GUEST_MEMFD_UFFD, "gmem-uffd"))
		return;
	make_content();
	g.flags = (uint64_t)cap(KVMEM_CAP_GUEST_MEMFD_INIT_SHARED, NULL);
	if (cap(KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG, NULL) > 0)
		g.flags |= (uint64_t)cap(KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG, NULL);
	fd = ioctl(kvmem_vm_fd(vm), KM_KVM_CREATE_GUEST_MEMFD, &g);
	ck_assert_int_ge(fd, 0);
	soil_free_memory(128 << 20);
	ck_assert_int_eq(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)BYTES), 0);

	o.flags = KVMEM_REGION_FD;
	o.fd = fd;
	o.bytes = BYTES;
	o.needs = KVMEM_WANT_PAGING;
	ok(kvmem_region_create(vm, &o, &ram));
	start_pager();
	ok(kvmem_region_attach(ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, NULL));
	ck_assert_uint_eq(guest_verifies(), 0);
	ck_assert_mem_eq(kvmem_region_base(ram), content, BYTES);
	close(fd);
	close_all();
}
END

static void refused(const struct kvmem_region_opts *o, const char *word)
{
	ck_assert_int_eq(kvmem_region_create(vm, o, &ram), -EOPNOTSUPP);
	harness_note("%s", kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

TEST(refused_on_a_direct_slot)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	if (!need(KVMEM_CAP_GUEST_MEMFD_DIRECT_SLOT, "guest-memfd"))
		return;
	o.bytes = BYTES;
	o.backing = KVMEM_BACKING_GUEST_MEMFD;
	o.slot_form = KVMEM_SLOT_DIRECT;
	o.needs = KVMEM_WANT_PAGING;
	refused(&o, "direct slot");

	o.needs = 0;
	ok(kvmem_region_create(vm, &o, &ram));
	make_content();
	ok(kvmem_pager_create(NULL, &pager));
	ck_assert_int_eq(kvmem_pager_add(pager, ram, source, 0, 0), -EOPNOTSUPP);
	harness_note("%s", kvmem_error_detail());
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "direct"));
	ok(kvmem_pager_free(pager));
	ok(kvmem_region_free(ram));
	ok(kvmem_source_free(source));
	ok(kvmem_vm_free(vm));
	free(content);
}
END

/* Without the kernel's help: refused where guest_memfd was required, else a memfd and the reason. */
TEST(refused_or_replaced_without_the_kernel)
{
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	const char *reason;

	if (!open_vm())
		return;
	if (cap(KVMEM_CAP_GUEST_MEMFD_UFFD, &reason) < 0) {
		o.bytes = BYTES;
		o.needs = KVMEM_WANT_PAGING;
		ok(kvmem_region_plan(vm, &o, &plan));
		ck_assert_uint_eq(plan.backing, KVMEM_BACKING_MEMFD);
		ck_assert_ptr_nonnull(strstr(plan.reasons, "guest_memfd"));
		o.backing = KVMEM_BACKING_GUEST_MEMFD;
		refused(&o, "guest_memfd");
	}
	ok(kvmem_vm_free(vm));
}
END

HARNESS_MAIN(T(vcpu_faults_are_served), T(allocated_pages_show_nothing_stale),
	     T(refused_on_a_direct_slot), T(refused_or_replaced_without_the_kernel))
