// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory that is made before a guest runs: the guest then takes no fault of the host's. */
#include "dirty_rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define MIB   (1ull << 20)
#define BYTES (16 * MIB)
#define GPA   (UINT64_C(4) << 30)

struct machine {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	struct vmm *vmm;
	struct vmm_vcpu *vcpu;
};

static bool open_machine(struct machine *m, uint32_t backing)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;

	vo.first_slot = 1;
	if (kvmem_vm_create(&vo, &m->vm)) {
		harness_skip("kvm", "%s", kvmem_error_detail());
		return false;
	}
	o.bytes = BYTES;
	o.backing = backing;
	if (kvmem_region_create(m->vm, &o, &m->ram)) {
		ck_ok(kvmem_vm_free(m->vm));
		return false;
	}
	ck_ok(kvmem_region_attach(m->ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, NULL));
	ck_assert_msg(!vmm_create(kvmem_vm_fd(m->vm), 0, NULL, &m->vmm), "%s", vmm_error());
	ck_assert_msg(!vmm_map(m->vmm, GPA, BYTES), "%s", vmm_error());
	ck_assert_msg(!vmm_vcpu_create(m->vmm, 0, &m->vcpu), "%s", vmm_error());
	return true;
}

static void close_machine(struct machine *m)
{
	vmm_destroy(m->vmm);
	ck_ok(kvmem_region_free(m->ram));
	ck_ok(kvmem_vm_free(m->vm));
}

static long faults(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return u.ru_minflt;
}

static void write_all(struct machine *m)
{
	*vmm_mailbox(m->vcpu) = (struct guest_mailbox){ .command = GUEST_WRITE,
							.gpa = GPA,
							.bytes = BYTES,
							.page = RIG_PAGE,
							.seed = 1,
							.rounds = 1,
							.count = BYTES / RIG_PAGE };
	ck_assert_msg(!vmm_run(m->vcpu), "%s", vmm_error());
}

TEST(k9_4_a_guest_on_preallocated_memory_makes_none)
{
	static const uint32_t backings[] = { KVMEM_BACKING_AUTO, KVMEM_BACKING_MEMFD,
					     KVMEM_BACKING_GUEST_MEMFD };

	for (size_t i = 0; i < 3; i++) {
		struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
		struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
		struct machine m;
		long before;

		if (!open_machine(&m, backings[i]))
			continue;
		o.flags = KVMEM_POPULATE_PREALLOC | KVMEM_POPULATE_MAP_GUEST;
		o.vcpu_fd = vmm_vcpu_fd(m.vcpu);
		ck_ok(kvmem_populate(m.ram, 0, NULL, &o, &res));
		ck_assert_uint_eq(res.bytes_made, BYTES);
		ck_assert_uint_eq(res.bytes_mapped + res.bytes_unmapped, BYTES);
		harness_note("%u: %llu MiB mapped for the guest", backings[i],
			     (unsigned long long)(res.bytes_mapped / MIB));
		before = faults();
		write_all(&m);
		/* The mailbox and the VMM's own: no page of the guest's. */
		ck_assert_int_lt(faults() - before, 100);
		close_machine(&m);
	}
}
END

TEST(k9_4_mapping_for_the_guest_where_it_is_needed)
{
	struct kvmem_cap_info info = KVMEM_CAP_INFO_INIT;
	struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct machine m;
	int r;

	if (!open_machine(&m, KVMEM_BACKING_MEMFD))
		return;
	o.flags = KVMEM_POPULATE_PREALLOC | KVMEM_POPULATE_MAP_GUEST | KVMEM_POPULATE_MAP_NEEDED;
	o.vcpu_fd = vmm_vcpu_fd(m.vcpu);
	r = kvmem_populate(m.ram, 0, NULL, &o, &res);
	ck_ok(kvmem_caps_get(kvmem_vm_caps(m.vm), KVMEM_CAP_PRE_FAULT, &info));
	if (info.support == KVMEM_SUPPORT_NATIVE) {
		ck_ok(r);
		ck_assert_uint_eq(res.bytes_mapped, BYTES);
		write_all(&m);
	} else {
		ck_fails(r, EOPNOTSUPP, "not offered");
		ck_assert_int_eq(kvmem_region_next_missing(m.ram, 0, &(struct kvmem_run){ 0 }), 1);
	}
	close_machine(&m);
}
END

static long free_huge(void)
{
	FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
	char line[32] = "0";

	if (!f)
		return 0;
	if (!fgets(line, sizeof(line), f))
		line[0] = '\0';
	fclose(f);
	return strtol(line, NULL, 10);
}

/* A pool that is too small: what was made goes back to it. */
TEST(k9_4_too_few_huge_pages_leave_nothing)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_populate_opts po = KVMEM_POPULATE_OPTS_INIT;
	long have = free_huge();
	struct kvmem_region *ram;
	int fd;

	if (have < 4)
		SKIP("hugetlb", "%ld huge pages of 2 MiB are free, 4 are wanted", have);
	fd = memfd_create("theirs", MFD_CLOEXEC | MFD_HUGETLB | 21u << 26);
	ck_assert_int_ge(fd, 0);
	o.bytes = (uint64_t)(have + 4) * 2 * MIB;
	ck_assert_int_eq(ftruncate(fd, (off_t)o.bytes), 0);
	/* Mapped without a reservation, by the caller: the kernel notices when they are touched. */
	o.mapping = mmap(NULL, o.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	ck_assert_ptr_ne(o.mapping, MAP_FAILED);
	o.flags = KVMEM_REGION_MAPPING | KVMEM_REGION_FD;
	o.fd = fd;
	ck_ok(kvmem_region_create(NULL, &o, &ram));
	po.flags = KVMEM_POPULATE_PREALLOC;
	po.threads = 2;
	ck_fails(kvmem_populate(ram, 0, NULL, &po, NULL), ENOMEM, "huge pages");
	ck_assert_int_eq(free_huge(), have);
	ck_ok(kvmem_region_free(ram));
	munmap(o.mapping, o.bytes);
	close(fd);
	ck_assert_int_eq(free_huge(), have);
}
END

HARNESS_MAIN(T(k9_4_a_guest_on_preallocated_memory_makes_none),
	     T(k9_4_mapping_for_the_guest_where_it_is_needed),
	     T(k9_4_too_few_huge_pages_leave_nothing))
