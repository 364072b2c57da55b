// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * vCPUs that run on memory which is filled beneath them: by their own faults, by populate at the same
 * time, while pages are discarded, and from a source that fails. Content is compared page by page.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#include "vmm.h"

#define PAGE  4096ull
#define PAGES 2048ull
#define BYTES (PAGES * PAGE)
#define GPA   (4ull << 30)
#define SEED  4711u
#define VCPUS 4u

static struct {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	struct vmm *vmm;
	struct vmm_vcpu *vcpus[VCPUS];
	uint8_t *base, *content;
	int fd;
} m;

static void ok(int r)
{
	ck_assert_msg(r >= 0, "%d: %s", r, kvmem_error_detail());
}

static void vmm_ok(int r)
{
	ck_assert_msg(!r, "%d: %s", r, vmm_error());
}

/* ---- a machine with a pager that is not started ---- */

static void make_content(void)
{
	m.content = aligned_alloc(PAGE, BYTES);
	ck_assert_ptr_nonnull(m.content);
	for (uint64_t at = 0; at < BYTES; at += 8) {
		uint64_t word = guest_pattern(SEED, GPA + at);

		memcpy(m.content + at, &word, 8);
	}
}

static void open_region(uint32_t backing, uint64_t there)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.bytes = BYTES;
	o.backing = backing;
	o.slot_form = KVMEM_SLOT_HVA;
	if (there) {
		m.fd = memfd_create("ram", MFD_CLOEXEC);
		ck_assert_int_eq(ftruncate(m.fd, BYTES), 0);
		ck_assert_int_eq(pwrite(m.fd, m.content, there, 0), (ssize_t)there);
		o.flags = KVMEM_REGION_FD;
		o.fd = m.fd;
	}
	ok(kvmem_region_create(m.vm, &o, &m.ram));
	m.base = kvmem_region_base(m.ram);
	ok(kvmem_region_attach(m.ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, NULL));
}

static void open_guest(void)
{
	vmm_ok(vmm_create(kvmem_vm_fd(m.vm), 0, NULL, &m.vmm));
	vmm_ok(vmm_map(m.vmm, GPA, BYTES));
	for (uint32_t i = 0; i < VCPUS; i++)
		vmm_ok(vmm_vcpu_create(m.vmm, i, &m.vcpus[i]));
}

static void close_machine(void)
{
	vmm_destroy(m.vmm);
	ok(kvmem_pager_free(m.pager));
	ok(kvmem_region_free(m.ram));
	ok(kvmem_source_free(m.source));
	ok(kvmem_vm_free(m.vm));
	free(m.content);
	if (m.fd >= 0)
		close(m.fd);
}

/* The first `there` bytes of the region have their content already. False: skipped. */
static bool open_machine(uint32_t backing, uint64_t there, struct kvmem_source *source,
			 const struct kvmem_pager_opts *opts)
{
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	int r;

	memset(&m, 0, sizeof(m));
	m.fd = -1;
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	r = kvmem_pager_create(opts, &m.pager);
	if (r) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		return false;
	}
	vo.first_slot = 1;
	ok(kvmem_vm_create(&vo, &m.vm));
	make_content();
	m.source = source;
	if (!source)
		ok(kvmem_source_memory(m.content, BYTES, &m.source));
	open_region(backing, there);
	r = kvmem_pager_add(m.pager, m.ram, m.source, 0, 0);
	if (r == -EOPNOTSUPP) {
		harness_skip("gmem-uffd", "%s", kvmem_error_detail());
		close_machine();
		return false;
	}
	ok(r);
	open_guest();
	return true;
}

static void begin(unsigned int vcpu, struct guest_mailbox command)
{
	command.page = PAGE;
	command.seed = command.seed ? command.seed : SEED;
	*vmm_mailbox(m.vcpus[vcpu]) = command;
	vmm_ok(vmm_start(m.vcpus[vcpu]));
}

static uint64_t end(unsigned int vcpu)
{
	ck_assert_msg(!vmm_wait(m.vcpus[vcpu]), "vCPU %u: %s", vcpu, vmm_error());
	return vmm_mailbox(m.vcpus[vcpu])->result;
}

static void verify_from(unsigned int vcpu, uint64_t offset, uint64_t bytes, uint64_t step)
{
	begin(vcpu,
	      (struct guest_mailbox){
		      .command = GUEST_VERIFY, .gpa = GPA + offset, .bytes = bytes, .step = step });
}

static void read_at_random(unsigned int vcpu)
{
	begin(vcpu, (struct guest_mailbox){ .command = GUEST_READ,
					    .flags = GUEST_RANDOM,
					    .gpa = GPA,
					    .bytes = BYTES,
					    .seed = 1 + vcpu });
}

static struct kvmem_pager_stats stats(void)
{
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;

	ok(kvmem_pager_get_stats(m.pager, &s));
	return s;
}

static uint64_t pages_filled(const struct kvmem_pager_stats *s)
{
	return s->pages_demand + s->pages_around + s->pages_background;
}

/* A page is counted a moment after it is mapped: the vCPU that waited for it may be done by then. */
static bool all_counted(void *pages)
{
	struct kvmem_pager_stats s = stats();

	return pages_filled(&s) == *(const uint64_t *)pages;
}

static void compare(void)
{
	for (uint64_t at = 0; at < BYTES; at += PAGE)
		ck_assert_msg(!memcmp(m.base + at, m.content + at, PAGE), "page %lu differs",
			      (unsigned long)(at / PAGE));
}

/* ---- faults alone ---- */

static void vcpus_fault(uint32_t backing, uint64_t there, uint64_t around, uint32_t shards,
			uint32_t flags)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	uint64_t absent = (BYTES - there) / PAGE;
	struct kvmem_pager_stats s;

	o.fault_around = around;
	o.shards = shards;
	o.flags = flags;
	if (!open_machine(backing, there, NULL, &o))
		return;
	read_at_random(0); /* they wait at their first page */
	read_at_random(1);
	verify_from(2, 0, BYTES, 64);
	verify_from(3, BYTES / 2, BYTES / 2, 64);
	ok(kvmem_pager_start(m.pager));
	end(0);
	end(1);
	ck_assert_uint_eq(end(2), 0);
	ck_assert_uint_eq(end(3), 0);
	harness_wait(all_counted, &absent, 20);
	s = stats();
	harness_note("%lu missing, %lu minor; pages: %lu by demand, %lu around, %lu background",
		     (unsigned long)s.faults_missing, (unsigned long)s.faults_minor,
		     (unsigned long)s.pages_demand, (unsigned long)s.pages_around,
		     (unsigned long)s.pages_background);
	ck_assert_uint_eq(pages_filled(&s), absent);
	if (there == BYTES)
		ck_assert_uint_eq(s.faults_missing, 0);
	else
		ck_assert_uint_gt(s.faults_missing, 0);
	if (there)
		ck_assert_uint_gt(s.faults_minor, 0);
	ok(kvmem_pager_stop(m.pager, KVMEM_STOP_FILL));
	compare();
	close_machine();
}

TEST(vcpus_fault_on_a_memfd)
{
	vcpus_fault(KVMEM_BACKING_MEMFD, 0, PAGE, 1, 0);
	vcpus_fault(KVMEM_BACKING_MEMFD, 0, 0, 2, KVMEM_PAGER_BACKGROUND);
}
END

TEST(vcpus_fault_on_anonymous_memory)
{
	vcpus_fault(KVMEM_BACKING_ANONYMOUS, 0, PAGE, 2, 0);
}
END

/* Whether vCPUs can fault on a guest_memfd through the host's mapping of it. */
static bool has_guest_memfd(void)
{
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_vm *vm;
	int r;

	if (kvmem_vm_create(NULL, &vm)) {
		harness_skip("kvm", "%s", kvmem_error_detail());
		return false;
	}
	o.bytes = BYTES;
	o.backing = KVMEM_BACKING_GUEST_MEMFD;
	o.slot_form = KVMEM_SLOT_HVA;
	r = kvmem_region_plan(vm, &o, &plan);
	if (r)
		harness_skip("guest-memfd", "%s", kvmem_error_detail());
	ok(kvmem_vm_free(vm));
	return !r;
}

TEST(vcpus_fault_on_a_guest_memfd)
{
	if (!has_guest_memfd())
		return;
	vcpus_fault(KVMEM_BACKING_GUEST_MEMFD, 0, PAGE, 2, 0);
}
END

TEST(vcpus_fault_on_pages_that_are_there)
{
	vcpus_fault(KVMEM_BACKING_AUTO, BYTES, PAGE, 1, 0);
	vcpus_fault(KVMEM_BACKING_AUTO, BYTES / 2, PAGE, 2, 0);
}
END

/* The guest runs on past the stop: what was missing is filled, and nothing of it read as zero. */
TEST(stopped_under_a_running_guest)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_run run;

	o.fault_around = PAGE;
	if (!open_machine(KVMEM_BACKING_MEMFD, 0, NULL, &o))
		return;
	ok(kvmem_pager_start(m.pager));
	for (unsigned int i = 0; i < VCPUS; i++)
		verify_from(i, i * BYTES / VCPUS, BYTES / VCPUS, 8);
	ok(kvmem_pager_stop(m.pager, KVMEM_STOP_FILL));
	ck_assert_int_eq(kvmem_region_next_missing(m.ram, 0, &run), 0);
	for (unsigned int i = 0; i < VCPUS; i++)
		ck_assert_uint_eq(end(i), 0);
	compare();
	close_machine();
}
END

/* ---- beside other fillers ---- */

#define ROUNDS 20u

/* What GUEST_WRITE of the second half leaves. */
static void write_to_content(void)
{
	uint64_t state = SEED, pages = PAGES / 2;

	for (uint64_t i = 0; i < ROUNDS * pages; i++) {
		struct guest_write w = guest_write_next(&state, i % pages, pages, PAGE,
							GUEST_RANDOM);

		memcpy(m.content + BYTES / 2 + w.page * PAGE + w.offset, &w.value, 8);
	}
}

/* vCPUs 0 and 1 have faulted pages in. */
static bool under_way(void *arg)
{
	(void)arg;
	return vmm_peek(&vmm_mailbox(m.vcpus[0])->progress) > 20 &&
	       vmm_peek(&vmm_mailbox(m.vcpus[1])->progress) > 20 * (PAGE / 64);
}

static void populate_beside_guest(uint32_t backing)
{
	struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_populate_opts po = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	uint64_t filled;

	o.fault_around = PAGE;
	po.threads = 2;
	po.chunk_bytes = 8 * PAGE;
	if (!open_machine(backing, 0, NULL, &o))
		return;
	ok(kvmem_pager_start(m.pager));
	begin(0, (struct guest_mailbox){ .command = GUEST_WRITE,
					 .flags = GUEST_RANDOM,
					 .rounds = ROUNDS,
					 .gpa = GPA + BYTES / 2,
					 .bytes = BYTES / 2 });
	verify_from(1, 0, BYTES / 2, 64);
	read_at_random(2);
	ck_assert(harness_wait(under_way, NULL, 20));
	ok(kvmem_populate(m.ram, 0, m.source, &po, &res));
	end(0);
	ck_assert_uint_eq(end(1), 0);
	end(2);
	filled = res.bytes_copied + res.bytes_written;
	harness_note("populate: %lu pages filled, %lu were there", (unsigned long)(filled / PAGE),
		     (unsigned long)(res.bytes_present / PAGE));
	ck_assert_uint_gt(res.bytes_present, 0);
	ck_assert_uint_eq(filled + res.bytes_present, BYTES);
	ck_assert_uint_eq(stats().pages_missing, 0);
	ok(kvmem_pager_stop(m.pager, KVMEM_STOP_FILL));
	write_to_content();
	compare();
	close_machine();
}

TEST(populate_beside_a_writing_guest)
{
	populate_beside_guest(KVMEM_BACKING_MEMFD);
	populate_beside_guest(KVMEM_BACKING_ANONYMOUS);
}
END

static bool discarded[PAGES];

static void *discard_odd_pages(void *arg)
{
	unsigned long long seed = 3;

	(void)arg;
	for (unsigned int i = 0; i < PAGES; i++) {
		uint64_t page = harness_random(&seed) % PAGES | 1;

		ok(kvmem_region_discard(m.ram, page * PAGE, PAGE));
		discarded[page] = true;
	}
	return NULL;
}

static void discard_beside_guest(uint32_t backing)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	pthread_t discarder;

	o.fault_around = 16 * PAGE;
	o.flags = KVMEM_PAGER_BACKGROUND;
	if (!open_machine(backing, 0, NULL, &o))
		return;
	memset(discarded, 0, sizeof(discarded));
	ck_assert_int_eq(pthread_create(&discarder, NULL, discard_odd_pages, NULL), 0);
	ok(kvmem_pager_start(m.pager));
	for (unsigned int round = 0; round < 4; round++) {
		verify_from(0, 0, BYTES, 2 * PAGE);
		read_at_random(1);
		read_at_random(2);
		ck_assert_uint_eq(end(0), 0);
		end(1);
		end(2);
	}
	pthread_join(discarder, NULL);
	ok(kvmem_pager_stop(m.pager, KVMEM_STOP_FILL));
	for (uint64_t page = 0; page < PAGES; page++)
		if (discarded[page])
			memset(m.content + page * PAGE, 0, PAGE);
	compare();
	close_machine();
}

TEST(discards_beside_guest_faults)
{
	discard_beside_guest(KVMEM_BACKING_MEMFD);
	discard_beside_guest(KVMEM_BACKING_ANONYMOUS);
}
END

/* ---- a source that fails ---- */

#define BAD_PAGE   77u
#define READ_ZEROS 3
#define RUN_FAILED 4

static int all_but_one(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	memset(buf, 0x55, bytes);
	return offset <= BAD_PAGE * PAGE && BAD_PAGE * PAGE < offset + bytes ? -EREMOTEIO : 0;
}

static int run_into_bad_page(void *arg)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_source *source;

	(void)arg;
	signal(SIGBUS, SIG_DFL); /* a sanitizer has its own */
	ops.read = all_but_one;
	ok(kvmem_source_callback(&ops, NULL, BYTES, &source));
	if (!open_machine(KVMEM_BACKING_MEMFD, 0, source, NULL))
		return 0;
	ok(kvmem_pager_start(m.pager));
	*vmm_mailbox(m.vcpus[0]) = (struct guest_mailbox){
		.command = GUEST_READ,
		.gpa = GPA + (BAD_PAGE - 1) * PAGE,
		.bytes = 2 * PAGE,
		.page = PAGE,
		.seed = SEED,
	};
	return vmm_run(m.vcpus[0]) ? RUN_FAILED : READ_ZEROS;
}

/* KVM answers a page that the host has poisoned by SIGBUS, or KVM_RUN fails. */
TEST(a_bad_page_ends_the_guest)
{
	int r = harness_child(run_into_bad_page, NULL);

	if (!r) {
		open_machine(KVMEM_BACKING_MEMFD, 0, NULL, NULL); /* which tells what is missing */
		return;
	}
	harness_note("ended with %d", r);
	ck_assert(r == 128 + SIGBUS || r == RUN_FAILED);
}
END

HARNESS_MAIN(T(vcpus_fault_on_a_memfd), T(vcpus_fault_on_anonymous_memory),
	     T(vcpus_fault_on_a_guest_memfd), T(vcpus_fault_on_pages_that_are_there),
	     T(stopped_under_a_running_guest), T(populate_beside_a_writing_guest),
	     T(discards_beside_guest_faults), T(a_bad_page_ends_the_guest))
