// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * No page lost and none said in vain where the kernel is at its worst: resets that are interrupted,
 * slot numbers used again, settings of the VMM's own, and changes that no log of the kernel shows.
 */
#include "dirty_rig.h"
#include "prefetch.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>

/* ---- completions of an io_uring of the harvesting thread ---- */

struct completions {
	struct io_uring ring;
	int efd;
	uint64_t pause_ns;
	pthread_t thread;
	atomic_bool stop;
	atomic_ulong sent;
};

static void *complete(void *arg)
{
	struct completions *c = arg;
	const struct timespec pause = { .tv_nsec = (long)c->pause_ns };
	const uint64_t one = 1;

	while (!atomic_load(&c->stop)) {
		if (write(c->efd, &one, sizeof(one)) != sizeof(one))
			break;
		atomic_fetch_add(&c->sent, 1);
		if (c->pause_ns > 50000)
			nanosleep(&pause, NULL);
		else
			for (uint64_t i = 0; i < c->pause_ns; i++)
				__asm__ volatile("");
	}
	return NULL;
}

static void arm(struct completions *c)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&c->ring);

	io_uring_prep_poll_multishot(sqe, c->efd, POLLIN);
	ck_assert_int_eq(io_uring_submit(&c->ring), 1);
}

/* False where this machine has none. */
static bool completions_begin(struct completions *c, uint64_t pause_ns)
{
	int r;

	memset(c, 0, sizeof(*c));
	r = io_uring_queue_init(4096, &c->ring, 0);
	if (r) {
		harness_skip("io-uring", "%s", strerror(-r));
		return false;
	}
	c->efd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	c->pause_ns = pause_ns;
	ck_assert_int_ge(c->efd, 0);
	arm(c);
	ck_assert_int_eq(pthread_create(&c->thread, NULL, complete, c), 0);
	return true;
}

/* As a busy user of the ring does; the poll ends when the completion queue has overflown. */
static void completions_reap(struct completions *c)
{
	struct io_uring_cqe *cqe;
	bool more = true;
	unsigned int n = 0;

	while (!io_uring_peek_cqe(&c->ring, &cqe)) {
		more = cqe->flags & IORING_CQE_F_MORE;
		io_uring_cqe_seen(&c->ring, cqe);
		n++;
	}
	if (n && !more)
		arm(c);
}

static void completions_end(struct completions *c)
{
	atomic_store(&c->stop, true);
	pthread_join(c->thread, NULL);
	io_uring_queue_exit(&c->ring);
	close(c->efd);
}

static struct kvmem_dirty_stats stats(struct rig *rig)
{
	struct kvmem_dirty_stats s = KVMEM_DIRTY_STATS_INIT;

	ck_ok(kvmem_dirty_get_stats(rig->dirty, &s));
	return s;
}

/* ---- a pager beside it ---- */

struct paged {
	unsigned char *content;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
};

/* Serves the rig's RAM, whose content is not zero and not the same in any two pages. */
static bool pager_begin(struct paged *p, struct rig *rig)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	int r;

	p->content = malloc(rig->bytes);
	ck_assert_ptr_nonnull(p->content);
	for (uint64_t i = 0; i < rig->bytes / 8; i++)
		((uint64_t *)p->content)[i] = i + 1;
	r = kvmem_pager_create(&o, &p->pager);
	if (r) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		free(p->content);
		return false;
	}
	ck_ok(kvmem_source_memory(p->content, rig->bytes, &p->source));
	ck_ok(kvmem_pager_add(p->pager, rig->ram, p->source, 0, KVMEM_FILL_OVERWRITE));
	ck_ok(kvmem_pager_start(p->pager));
	return true;
}

static void pager_end(struct paged *p)
{
	ck_ok(kvmem_pager_stop(p->pager, KVMEM_STOP_FILL));
	ck_ok(kvmem_pager_free(p->pager));
	ck_ok(kvmem_source_free(p->source));
	free(p->content);
}

/* The guest writes `count` pages a round; each round must report these, and no others. */
static void each_round_exactly(uint32_t backing, bool paged, uint64_t count, unsigned int rounds,
			       uint64_t pause_ns)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING, .backing = backing };
	struct completions c;
	uint64_t missed = 0, vain = 0;
	struct paged p;
	struct rig rig;

	if (harness_emulated())
		rounds = (rounds + 3) / 4;
	if (!rig_open(&rig, &o))
		return;
	if (paged && !pager_begin(&p, &rig)) {
		rig_close(&rig);
		return;
	}
	if (!completions_begin(&c, pause_ns)) {
		if (paged)
			pager_end(&p);
		rig_close(&rig);
		return;
	}
	for (unsigned int i = 0; i < rounds; i++) {
		uint64_t seen;

		rig_forget(&rig);
		rig_write(&rig, 0, 1, count, false);
		rig_wait(&rig);
		rig_sync(&rig);
		completions_reap(&c);
		seen = rig_seen(&rig);
		missed += seen < count ? count - seen : 0;
		vain += seen > count ? seen - count : 0;
	}
	completions_end(&c);
	harness_note(
		"%lu completions, %lu resets, %lu short, %lu pages protected again, %lu reported again",
		atomic_load(&c.sent), (unsigned long)stats(&rig).resets,
		(unsigned long)stats(&rig).short_resets, (unsigned long)stats(&rig).pages_protected,
		(unsigned long)stats(&rig).pages_kept);
	ck_assert_msg(!missed && !vain,
		      "%lu page writes never reported, %lu pages reported in vain", missed, vain);
	if (paged)
		pager_end(&p);
	else
		ck_assert_uint_eq(rig_lost(&rig), 0);
	rig_close(&rig);
}

TEST(k1_2_equal_count)
{
	each_round_exactly(KVMEM_BACKING_MEMFD, false, 1, 2000, 20000);
}
END

TEST(k1_2_equal_count_of_runs)
{
	each_round_exactly(KVMEM_BACKING_MEMFD, false, 112, 300, 20000);
}
END

TEST(k1_3_too_much_said)
{
	each_round_exactly(KVMEM_BACKING_MEMFD, false, 4096, 20, 100000);
}
END

TEST(k1_3_too_much_said_guest_memfd)
{
	each_round_exactly(KVMEM_BACKING_GUEST_MEMFD, false, 4096, 10, 100000);
}
END

TEST(k1_3_too_much_said_anonymous)
{
	each_round_exactly(KVMEM_BACKING_ANONYMOUS, false, 300, 100, 20000);
}
END

TEST(k1_3_too_much_said_under_a_pager)
{
	each_round_exactly(KVMEM_BACKING_MEMFD, true, 300, 100, 20000);
}
END

TEST(k1_3_too_much_said_under_a_pager_of_anonymous_memory)
{
	each_round_exactly(KVMEM_BACKING_ANONYMOUS, true, 300, 100, 20000);
}
END

/* ---- slot numbers ---- */

static void guest_writes(struct rig *rig, uint64_t gpa, uint64_t page)
{
	struct guest_mailbox *box = vmm_mailbox(rig->vcpus[0]);

	*box = (struct guest_mailbox){ .command = GUEST_WRITE,
				       .gpa = gpa + page * RIG_PAGE,
				       .bytes = RIG_PAGE,
				       .page = RIG_PAGE,
				       .seed = 5,
				       .count = 1 };
	ck_assert_msg(!vmm_run(rig->vcpus[0]), "%s", vmm_error());
}

static int64_t sync_pages(struct kvmem_dirty *dirty)
{
	struct kvmem_batch *batch;
	int64_t r = kvmem_dirty_harvest(dirty, &batch);

	ck_ok(r);
	ck_ok(kvmem_dirty_commit(dirty, batch));
	kvmem_batch_free(batch);
	return r;
}

TEST(k1_1_number_used_again)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING };
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	uint64_t gpa = RIG_GPA + (UINT64_C(1) << 30);
	struct kvmem_region *extra;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	ro.bytes = 400 * RIG_PAGE;
	ro.needs = KVMEM_WANT_DIRTY;
	ck_ok(kvmem_region_create(rig.vm, &ro, &extra));
	ck_assert_msg(!vmm_map(rig.vmm, gpa, 200 * RIG_PAGE), "%s", vmm_error());
	ck_ok(kvmem_region_attach(extra, 0, 200 * RIG_PAGE, gpa, 77, 0, NULL));
	guest_writes(&rig, gpa, 100);
	ck_ok(kvmem_region_detach(extra, 77));
	ck_ok(kvmem_region_attach(extra, 200 * RIG_PAGE, 90 * RIG_PAGE, gpa, 77, 0, NULL));
	guest_writes(&rig, gpa, 80);
	ck_assert_int_eq(sync_pages(rig.dirty), 2);
	for (int i = 0; i < 10; i++) {
		guest_writes(&rig, gpa, 80);
		ck_assert_int_eq(sync_pages(rig.dirty), 1);
	}
	ck_ok(kvmem_region_free(extra));
	rig_close(&rig);
}
END

/* ---- what the VMM has set ---- */

struct adopted {
	int kvm, vm_fd;
	struct kvmem_vm *vm;
	struct vmm *vmm;
	struct vmm_vcpu *vcpu;
	struct kvmem_dirty *dirty;
	struct kvmem_region *ram;
	unsigned char *own; /* slot 0, the VMM's */
};

#define OWN_GPA	  (UINT64_C(9) << 30)
#define RAM_BYTES (UINT64_C(1) << 20)

static void set_own_slot(struct adopted *a, uint32_t flags)
{
	struct kvm_userspace_memory_region m = { .slot = 0,
						 .flags = flags,
						 .guest_phys_addr = OWN_GPA,
						 .memory_size = RAM_BYTES,
						 .userspace_addr = (uintptr_t)a->own };

	ck_assert_int_eq(ioctl(a->vm_fd, KVM_SET_USER_MEMORY_REGION, &m), 0);
}

/* The VMM has a slot 0 and has set the manual protection; then it adopts the VM. */
static bool adopt(struct adopted *a, uint64_t manual, const struct kvmem_vm_opts *vo,
		  const struct kvmem_dirty_opts *d)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				      .args = { manual } };
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct vmm_ops ops = { .arg = a };

	memset(a, 0, sizeof(*a));
	a->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (a->kvm < 0) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	if (d->mode == KVMEM_DIRTY_RING && !rig_has_ring()) {
		harness_skip("dirty-ring", "%s", kvmem_error_detail());
		close(a->kvm);
		return false;
	}
	a->vm_fd = ioctl(a->kvm, KVM_CREATE_VM, 0);
	ck_assert_int_ge(a->vm_fd, 0);
	ck_assert_int_eq(ioctl(a->vm_fd, KVM_ENABLE_CAP, &cap), 0);
	a->own = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(a->own, MAP_FAILED);
	set_own_slot(a, 0);
	ck_ok(kvmem_vm_adopt(a->vm_fd, vo, &a->vm));
	ck_ok(kvmem_dirty_create(a->vm, d, &a->dirty));
	ck_assert_msg(!vmm_create(a->vm_fd, 1, &ops, &a->vmm), "%s", vmm_error());
	ro.bytes = RAM_BYTES;
	ro.needs = KVMEM_WANT_DIRTY;
	ck_ok(kvmem_region_create(a->vm, &ro, &a->ram));
	ck_ok(kvmem_region_attach(a->ram, 0, ro.bytes, RIG_GPA, KVMEM_SLOT_ANY, 0, NULL));
	ck_assert_msg(!vmm_map(a->vmm, RIG_GPA, ro.bytes), "%s", vmm_error());
	ck_assert_msg(!vmm_map(a->vmm, OWN_GPA, ro.bytes), "%s", vmm_error());
	ck_assert_msg(!vmm_vcpu_create(a->vmm, 0, &a->vcpu), "%s", vmm_error());
	ck_ok(kvmem_dirty_add_vcpu(a->dirty, vmm_vcpu_fd(a->vcpu)));
	return true;
}

static void adopted_end(struct adopted *a)
{
	ck_ok(kvmem_dirty_free(a->dirty));
	vmm_destroy(a->vmm);
	ck_ok(kvmem_region_free(a->ram));
	ck_ok(kvmem_vm_free(a->vm));
	munmap(a->own, RAM_BYTES);
	close(a->vm_fd);
	close(a->kvm);
}

static void adopted_write(struct adopted *a, uint64_t gpa, uint64_t pages)
{
	struct guest_mailbox *box = vmm_mailbox(a->vcpu);

	*box = (struct guest_mailbox){ .command = GUEST_WRITE,
				       .gpa = gpa,
				       .bytes = RAM_BYTES,
				       .page = RIG_PAGE,
				       .seed = 5,
				       .count = pages };
	ck_assert_msg(!vmm_run(a->vcpu), "%s", vmm_error());
}

/* What KVM says of the VMM's own slot 0: pages written, or -errno. */
static int own_log(struct adopted *a)
{
	uint64_t bits[RAM_BYTES / RIG_PAGE / 64] = { 0 };
	struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = bits };
	int n = 0;

	if (ioctl(a->vm_fd, KVM_GET_DIRTY_LOG, &log))
		return -errno;
	for (size_t i = 0; i < sizeof(bits) / 8; i++)
		n += __builtin_popcountll(bits[i]);
	return n;
}

TEST(k2_8_a_ring_where_the_vmm_has_initially_set_on)
{
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;
	struct adopted a;

	d.mode = KVMEM_DIRTY_RING;
	for (int told = 0; told < 2; told++) {
		vo.flags = told ? KVMEM_VM_MANUAL_PROTECT : 0;
		vo.manual_protect = told ? 3 : 0;
		if (!adopt(&a, 3, &vo, &d))
			return;
		ck_ok(kvmem_dirty_start(a.dirty));
		adopted_write(&a, RIG_GPA, 10);
		ck_assert_int_eq(sync_pages(a.dirty), 10);
		adopted_write(&a, RIG_GPA, 10);
		ck_assert_int_eq(sync_pages(a.dirty), 10);
		ck_ok(kvmem_dirty_stop(a.dirty));
		adopted_end(&a);
	}
}
END

/* Whatever the VMM has on, told or not: its new slots are as it expects, ours exact. */
TEST(k2_9_bitmap_leaves_on_what_the_vmm_has_on)
{
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;
	struct adopted a;

	d.mode = KVMEM_DIRTY_BITMAP;
	for (uint64_t i = 0; i < 6; i++) {
		uint64_t bits = i / 2 + (i / 2 == 2);

		vo.flags = i % 2 ? KVMEM_VM_MANUAL_PROTECT : 0;
		vo.manual_protect = i % 2 ? bits : 0;
		if (!adopt(&a, bits, &vo, &d))
			return;
		ck_ok(kvmem_dirty_start(a.dirty));
		for (int again = 0; again < 3; again++) {
			adopted_write(&a, RIG_GPA, 10);
			ck_assert_int_eq(sync_pages(a.dirty), 10);
			ck_assert_int_eq(sync_pages(a.dirty), 0);
		}
		set_own_slot(&a, KVM_MEM_LOG_DIRTY_PAGES);
		ck_assert_int_eq(own_log(&a), bits == 3 ? 256 : 0);
		set_own_slot(&a, 0);
		ck_ok(kvmem_dirty_stop(a.dirty));
		set_own_slot(&a, KVM_MEM_LOG_DIRTY_PAGES);
		ck_assert_int_eq(own_log(&a), bits == 3 ? 256 : 0);
		adopted_end(&a);
	}
}
END

TEST(k2_10_auto_leaves_the_vmms_own_log_alone)
{
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;
	struct adopted a;

	if (!adopt(&a, 0, NULL, &d))
		return;
	ck_assert_uint_eq(kvmem_dirty_get_mode(a.dirty), KVMEM_DIRTY_BITMAP);
	set_own_slot(&a, KVM_MEM_LOG_DIRTY_PAGES);
	ck_ok(kvmem_dirty_start(a.dirty));
	adopted_write(&a, OWN_GPA, 7);
	adopted_write(&a, RIG_GPA, 5);
	ck_assert_int_eq(sync_pages(a.dirty), 5);
	ck_assert_int_eq(own_log(&a), 7);
	ck_ok(kvmem_dirty_stop(a.dirty));
	adopted_end(&a);
}
END

static uint64_t handed[RAM_BYTES / RIG_PAGE];

static void on_foreign(void *arg, uint32_t slot, uint64_t page, uint32_t flags)
{
	(void)arg;
	ck_assert_uint_eq(slot, 0);
	if (!(flags & KVMEM_FOREIGN_UNSURE))
		handed[page]++;
}

TEST(k2_10_entries_of_the_vmms_slots_are_handed_on)
{
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;
	struct adopted a;

	d.mode = KVMEM_DIRTY_RING;
	d.foreign = on_foreign;
	if (!adopt(&a, 0, NULL, &d))
		return;
	set_own_slot(&a, KVM_MEM_LOG_DIRTY_PAGES);
	ck_ok(kvmem_dirty_start(a.dirty));
	memset(handed, 0, sizeof(handed));
	for (uint64_t i = 1; i < 4; i++) {
		adopted_write(&a, OWN_GPA, 7);
		adopted_write(&a, RIG_GPA, 5);
		ck_assert_int_eq(sync_pages(a.dirty), 5);
		for (unsigned int p = 0; p < 7; p++)
			ck_assert_uint_ge(handed[p], i);
		ck_assert_uint_eq(handed[7], 0);
	}
	ck_ok(kvmem_dirty_stop(a.dirty));
	adopted_end(&a);
}
END

TEST(k2_11_any_passes_over_the_vmms_numbers)
{
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;
	struct adopted a;
	uint32_t id;

	if (!adopt(&a, 0, NULL, &d))
		return;
	/* 0 is the VMM's own, 1 its library's; ours was attached under 2. */
	ck_ok(kvmem_region_attach(a.ram, 0, RIG_PAGE, UINT64_C(20) << 30, KVMEM_SLOT_ANY, 0, &id));
	ck_assert_uint_gt(id, 2);
	ck_assert_int_eq(kvmem_region_attach(a.ram, 0, RIG_PAGE, OWN_GPA, KVMEM_SLOT_ANY, 0, &id),
			 -EEXIST);
	ck_assert_ptr_null(strstr(kvmem_error_detail(), "guest_memfd"));
	adopted_end(&a);
}
END

/* ---- what the library itself changes ---- */

/*
 * Harvests and commits: the pages [first, first + count) of the RAM, and no others but those that the
 * kernel has no way to protect again under a pager (before Linux 6.7).
 */
static void expect_pages(struct rig *rig, uint64_t first, uint64_t count)
{
	uint64_t kept = stats(rig).pages_kept, vain = 0;

	rig_forget(rig);
	rig_sync(rig);
	kept = stats(rig).pages_kept - kept;
	for (uint64_t p = 0; p < rig->bytes / RIG_PAGE; p++) {
		bool expected = p >= first && p < first + count;

		ck_assert_msg(rig->seen[p] || !expected, "page %lu is not reported", p);
		vain += rig->seen[p] && !expected;
	}
	ck_assert_uint_le(vain, kept);
}

static void library_changes(uint32_t mode, bool paged)
{
	struct rig_opts o = { .mode = mode, .bytes = 8u << 20, .backing = KVMEM_BACKING_MEMFD };
	struct kvmem_source *source;
	unsigned char *content;
	struct paged p;
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	content = malloc(100 * RIG_PAGE);
	ck_assert_ptr_nonnull(content);
	memset(content, 7, 100 * RIG_PAGE);
	ck_ok(kvmem_source_memory(content, 100 * RIG_PAGE, &source));
	if (!paged || pager_begin(&p, &rig)) {
		rig_write(&rig, 0, 1, 200, false);
		rig_wait(&rig);
		expect_pages(&rig, 0, 200);
		ck_ok(kvmem_region_discard(rig.ram, 10 * RIG_PAGE, 50 * RIG_PAGE));
		expect_pages(&rig, 10, 50);
		ck_assert_uint_eq(rig.base[20 * RIG_PAGE], 0);
		ck_ok(kvmem_populate(rig.ram, 1000 * RIG_PAGE, source, NULL, NULL));
		expect_pages(&rig, 1000, 100);
		if (paged) /* where the pager does not see it */
			ck_assert_int_eq(pwrite(kvmem_region_fd(rig.ram), content, 5 * RIG_PAGE,
						1500 * RIG_PAGE),
					 5 * RIG_PAGE);
		else
			memset(rig.base + 1500 * RIG_PAGE, 9, 5 * RIG_PAGE);
		ck_ok(kvmem_region_mark_present(rig.ram, 1500 * RIG_PAGE, 5 * RIG_PAGE));
		expect_pages(&rig, 1500, 5);
		expect_pages(&rig, 0, 0);
		if (paged) {
			/* What it brings in from its source is no change. */
			struct kvmem_run run = { rig.ram, 1800 * RIG_PAGE, 64 * RIG_PAGE };

			ck_ok(prefetch_runs(p.pager, &run, 1));
			pager_end(&p);
			expect_pages(&rig, 0, 0);
		}
	}
	ck_ok(kvmem_source_free(source));
	free(content);
	rig_close(&rig);
}

TEST(k3_14_what_the_library_changes_ring)
{
	library_changes(KVMEM_DIRTY_RING, false);
}
END

TEST(k3_14_what_the_library_changes_bitmap)
{
	library_changes(KVMEM_DIRTY_BITMAP, false);
}
END

TEST(k3_14_what_the_library_changes_under_a_pager_ring)
{
	library_changes(KVMEM_DIRTY_RING, true);
}
END

TEST(k3_14_what_the_library_changes_under_a_pager_bitmap)
{
	library_changes(KVMEM_DIRTY_BITMAP, true);
}
END

HARNESS_MAIN(T(k1_2_equal_count), T(k1_2_equal_count_of_runs), T(k1_3_too_much_said),
	     T(k1_3_too_much_said_guest_memfd), T(k1_3_too_much_said_anonymous),
	     T(k1_3_too_much_said_under_a_pager),
	     T(k1_3_too_much_said_under_a_pager_of_anonymous_memory), T(k1_1_number_used_again),
	     T(k2_8_a_ring_where_the_vmm_has_initially_set_on),
	     T(k2_9_bitmap_leaves_on_what_the_vmm_has_on),
	     T(k2_10_auto_leaves_the_vmms_own_log_alone),
	     T(k2_10_entries_of_the_vmms_slots_are_handed_on),
	     T(k2_11_any_passes_over_the_vmms_numbers), T(k3_14_what_the_library_changes_ring),
	     T(k3_14_what_the_library_changes_bitmap),
	     T(k3_14_what_the_library_changes_under_a_pager_ring),
	     T(k3_14_what_the_library_changes_under_a_pager_bitmap))
