// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Threads that wait for each other, each in a way that the manual allows: pages that nobody serves
 * any more, locks held while the kernel waits for a vCPU, marks in the page tables that are taken
 * for pages. Each case runs in a child, since what it looks for is a thread that never comes back.
 */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#include "vmm.h"

#define PAGE	4096ul
#define GPA	(UINT64_C(4) << 30)
#define PAGES	512u
#define WAIT_MS 5000u

enum { GOOD, HANGS, WRONG, NO_SETUP, LACKING };

static void nap(unsigned int ms)
{
	const struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l };

	nanosleep(&t, NULL);
}

/* In the child: the facility is there, or the case ends. */
static void need(int r, const char *what)
{
	if (r >= 0)
		return;
	printf("# %s: %d %s\n", what, r, kvmem_error_detail());
	fflush(stdout);
	_exit(r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP || r == -ENODEV ? LACKING : NO_SETUP);
}

#define NEED(call) need((int)(call), #call)

struct rig {
	struct kvmem_vm *vm;
	struct kvmem_dirty *dirty;
	struct vmm *vmm;
	struct vmm_vcpu *vcpu;
	struct kvmem_region *ram, *other;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	uint8_t *base;
	uint64_t fails_at;		/* page whose read fails; UINT64_MAX: none */
	unsigned int first_ms, each_ms; /* that reads take */
	_Atomic bool reading;		/* the first read has begun */
	_Atomic bool broken;		/* all reads fail */
	bool zeros;			/* one page in eight is zero */
};

static uint8_t byte_of(const struct rig *rig, uint64_t page)
{
	return rig->zeros && page % 8 == 0 ? 0 : 5;
}

static void *attach_other(void *arg)
{
	struct rig *rig = arg;

	NEED(kvmem_region_attach(rig->other, 0, PAGES * PAGE, GPA + (1ul << 30), KVMEM_SLOT_ANY, 0,
				 NULL));
	return NULL;
}

static int read_source(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct rig *rig = arg;

	for (uint64_t i = 0; i < bytes; i += PAGE)
		memset((uint8_t *)buf + i, byte_of(rig, (offset + i) / PAGE), PAGE);
	if (!atomic_exchange(&rig->reading, true))
		nap(rig->first_ms);
	if (atomic_load(&rig->broken))
		return -EIO;
	nap(rig->each_ms);
	return rig->fails_at - offset / PAGE < bytes / PAGE ? -EIO : 0;
}

/* A hole from the first byte to the last, and nothing to read. */
static int all_hole(void *arg, uint64_t offset, struct kvmem_extent *ret)
{
	(void)arg;
	(void)offset;
	ret->kind = KVMEM_EXTENT_HOLE;
	ret->offset = 0;
	ret->bytes = PAGES * PAGE;
	return 0;
}

static int on_ring_full(void *arg, struct vmm_vcpu *vcpu)
{
	struct rig *rig = arg;

	return kvmem_dirty_ring_full(rig->dirty, vmm_vcpu_fd(vcpu));
}

static void open_guest(struct rig *rig, uint32_t mode)
{
	struct vmm_ops ops = { .arg = rig, .ring_full = on_ring_full };
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;

	o.first_slot = 1;
	d.mode = mode;
	NEED(kvmem_vm_create(&o, &rig->vm));
	NEED(kvmem_dirty_create(rig->vm, &d, &rig->dirty));
	NEED(vmm_create(kvmem_vm_fd(rig->vm), 0, &ops, &rig->vmm));
}

static void open_ram(struct rig *rig, uint32_t backing)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	o.bytes = PAGES * PAGE;
	o.backing = backing;
	o.needs = rig->vm ? KVMEM_WANT_DIRTY : 0;
	NEED(kvmem_region_create(rig->vm, &o, &rig->ram));
	rig->base = kvmem_region_base(rig->ram);
	if (!rig->vm)
		return;
	NEED(kvmem_region_create(rig->vm, &o, &rig->other));
	NEED(kvmem_region_attach(rig->ram, 0, o.bytes, GPA, KVMEM_SLOT_ANY, 0, NULL));
	NEED(vmm_map(rig->vmm, GPA, o.bytes));
	NEED(vmm_vcpu_create(rig->vmm, 0, &rig->vcpu));
	NEED(kvmem_dirty_add_vcpu(rig->dirty, vmm_vcpu_fd(rig->vcpu)));
	NEED(kvmem_dirty_start(rig->dirty));
}

static void open_pager(struct rig *rig, bool hole, uint32_t flags)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;

	ops.read = read_source;
	ops.extent = hole ? all_hole : NULL;
	o.flags = flags;
	o.fault_around = PAGE;
	NEED(kvmem_source_callback(&ops, rig, PAGES * PAGE, &rig->source));
	NEED(kvmem_pager_create(&o, &rig->pager));
	NEED(kvmem_pager_add(rig->pager, rig->ram, rig->source, 0, 0));
	NEED(kvmem_pager_start(rig->pager));
}

/* ---- what may hang, on a thread of its own ---- */

struct job {
	void *(*fn)(void *arg);
	void *arg;
	_Atomic bool done;
};

static void *job_main(void *arg)
{
	struct job *job = arg;

	job->fn(job->arg);
	atomic_store(&job->done, true);
	return NULL;
}

static void begin(struct job *job, void *(*fn)(void *arg), void *arg)
{
	pthread_t t;

	job->fn = fn;
	job->arg = arg;
	NEED(-pthread_create(&t, NULL, job_main, job));
	NEED(-pthread_detach(t));
}

static bool ends(struct job *job)
{
	for (unsigned int i = 0; i < WAIT_MS / 10 && !atomic_load(&job->done); i++)
		nap(10);
	return atomic_load(&job->done);
}

static void *look(void *arg)
{
	(void)*(volatile uint8_t *)arg;
	return NULL;
}

static void *populate(void *arg)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct rig *rig = arg;

	o.threads = 1;
	NEED(kvmem_populate(rig->ram, 0, rig->source, &o, NULL));
	return NULL;
}

/* The vCPU reads a page; it may wait for it. */
static void guest_reads(struct rig *rig, uint64_t page)
{
	*vmm_mailbox(rig->vcpu) = (struct guest_mailbox){ .command = GUEST_READ,
							  .gpa = GPA + page * PAGE,
							  .bytes = PAGE,
							  .page = PAGE,
							  .seed = 1,
							  .rounds = 1,
							  .count = 1 };
	NEED(vmm_start(rig->vcpu));
	nap(100);
}

static void guest_writes(struct rig *rig, uint64_t page)
{
	*vmm_mailbox(rig->vcpu) = (struct guest_mailbox){ .command = GUEST_WRITE,
							  .gpa = GPA + page * PAGE,
							  .bytes = PAGE,
							  .page = PAGE,
							  .seed = 1,
							  .rounds = 1,
							  .count = 1 };
	NEED(vmm_run(rig->vcpu));
}

/* ---- handed back ---- */

struct backed {
	uint32_t backing;
	bool discard;
};

/* Nothing is missing: an access does not wait, whoever serves the region or nobody. */
static int handed_back_whole(void *arg)
{
	const struct backed *b = arg;
	struct rig rig = { .fails_at = UINT64_MAX };
	struct job access = { 0 };

	open_ram(&rig, b->backing);
	open_pager(&rig, !b->discard, KVMEM_PAGER_BACKGROUND);
	NEED(kvmem_pager_wait(rig.pager, -1));
	NEED(kvmem_pager_stop(rig.pager, KVMEM_STOP_HAND_BACK));
	if (b->discard)
		NEED(kvmem_region_discard(rig.ram, 0, 4 * PAGE));
	NEED(kvmem_populate(rig.ram, 0, rig.source, NULL, NULL));
	begin(&access, look, rig.base);
	return ends(&access) ? GOOD : HANGS;
}

static _Atomic bool enough;

static void *discards(void *arg)
{
	struct rig *rig = arg;

	for (uint64_t i = 0; !atomic_load(&enough); i++)
		NEED(kvmem_region_discard(rig->ram, i % PAGES * PAGE, PAGE));
	return NULL;
}

static int discard_beside_hand_back(void *arg)
{
	struct rig rig = { .fails_at = UINT64_MAX };

	(void)arg;
	open_ram(&rig, KVMEM_BACKING_ANONYMOUS);
	open_pager(&rig, false, 0);
	for (unsigned int i = 0; i < 20; i++) {
		struct job job = { 0 };

		atomic_store(&enough, false);
		begin(&job, discards, &rig);
		nap(5);
		NEED(kvmem_pager_stop(rig.pager, KVMEM_STOP_HAND_BACK));
		atomic_store(&enough, true);
		if (!ends(&job))
			return HANGS;
		NEED(kvmem_pager_start(rig.pager));
	}
	return GOOD;
}

/* ---- slots, while a vCPU waits for a page ---- */

/* To set a slot KVM waits for vCPUs that are in a fault; who fills the page must not wait for it. */
static int slot_beside_populate(void *arg)
{
	bool running = *(bool *)arg;
	struct rig rig = { .fails_at = UINT64_MAX, .first_ms = 1000, .zeros = true };
	struct job fill = { 0 }, attach = { 0 };

	open_guest(&rig, KVMEM_DIRTY_BITMAP);
	open_ram(&rig, KVMEM_BACKING_MEMFD);
	open_pager(&rig, false, 0);
	if (running) {
		begin(&fill, populate, &rig);
		while (!atomic_load(&rig.reading))
			nap(1);
		guest_reads(&rig, 20);
	} else {
		NEED(kvmem_pager_stop(rig.pager, KVMEM_STOP_HAND_BACK));
		guest_reads(&rig, PAGES - 1);
	}
	begin(&attach, attach_other, &rig);
	nap(100);
	if (!running)
		begin(&fill, populate, &rig);
	return ends(&fill) && ends(&attach) ? GOOD : HANGS;
}

/* ---- pages that are protected again after a reset ---- */

enum { HOLE, DISCARDED, FAILS };

struct marked {
	uint32_t backing;
	unsigned int what;
};

static void on_sigbus(int sig)
{
	(void)sig;
	_exit(GOOD);
}

/*
 * The pages between two that were written are absent. Whatever is done to these two after a reset,
 * an absent page becomes zero where it is to be zero, and kills where its source fails.
 */
static int absent_between_written(void *arg)
{
	const struct marked *m = arg;
	struct rig rig = { .fails_at = m->what == FAILS ? 5 : UINT64_MAX };
	struct kvmem_batch *batch;
	struct job access = { 0 };

	signal(SIGBUS, on_sigbus);
	signal(SIGSEGV, on_sigbus); /* before UFFDIO_POISON */
	open_guest(&rig, KVMEM_DIRTY_RING);
	open_ram(&rig, m->backing);
	open_pager(&rig, m->what != FAILS, 0);
	if (m->what == DISCARDED)
		NEED(kvmem_region_discard(rig.ram, 5 * PAGE, PAGE));
	guest_writes(&rig, 0);
	guest_writes(&rig, 10);
	NEED(kvmem_dirty_harvest(rig.dirty, &batch));
	NEED(kvmem_dirty_commit(rig.dirty, batch));
	kvmem_batch_free(batch);
	begin(&access, look, rig.base + 5 * PAGE);
	if (!ends(&access))
		return HANGS;
	return m->what == FAILS || rig.base[5 * PAGE] ? WRONG : GOOD;
}

/* ---- the background ---- */

/* It fills what an earlier pass could not: that is no failure any more. */
static int wait_beside_second_pass(void *arg)
{
	struct rig rig = { .fails_at = UINT64_MAX, .broken = true };
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;

	(void)arg;
	open_ram(&rig, KVMEM_BACKING_MEMFD);
	open_pager(&rig, false, KVMEM_PAGER_BACKGROUND);
	while (s.fills_failed < PAGES) {
		nap(1);
		NEED(kvmem_pager_get_stats(rig.pager, &s));
	}
	rig.each_ms = 50;
	atomic_store(&rig.broken, false);
	while (s.pages_background < PAGES / 8) {
		nap(1);
		NEED(kvmem_pager_get_stats(rig.pager, &s));
	}
	return kvmem_pager_wait(rig.pager, -1) ? WRONG : GOOD;
}

/* ---- poison ---- */

static _Thread_local sigjmp_buf after_error;

static void on_memory_error(int sig)
{
	(void)sig;
	siglongjmp(after_error, 1);
}

static bool reads_as(const uint8_t *at, uint8_t want)
{
	return !sigsetjmp(after_error, 1) && *(const volatile uint8_t *)at == want;
}

/* The next source has what the last one could not give: no page becomes zero on the way. */
static int poison_then_another_start(void *arg)
{
	struct rig rig = { .fails_at = UINT64_MAX, .broken = true };

	signal(SIGBUS, on_memory_error);
	signal(SIGSEGV, on_memory_error); /* before UFFDIO_POISON */
	open_ram(&rig, *(uint32_t *)arg);
	open_pager(&rig, false, 0);
	for (unsigned int i = 0; i < PAGES; i += 2)
		if (reads_as(rig.base + i * PAGE, 0))
			return WRONG;
	NEED(kvmem_pager_stop(rig.pager, KVMEM_STOP_HAND_BACK));
	atomic_store(&rig.broken, false);
	NEED(kvmem_pager_start(rig.pager));
	for (unsigned int i = 0; i < PAGES; i++)
		if (!reads_as(rig.base + i * PAGE, 5))
			return WRONG;
	return GOOD;
}

/* ---- the cases ---- */

static const char *const says[] = { "good", "a thread hangs", "wrong content or result",
				    "the test could not be set up" };

static void run(int (*fn)(void *arg), void *arg)
{
	int r = harness_child(fn, arg);

	if (r == LACKING)
		SKIP("uffd", "userfaultfd, KVM or dirty rings are not to be had here");
	ck_assert_msg(r == GOOD, "%s (%d)", r < LACKING ? says[r] : "ended", r);
}

static bool has_kvm(void)
{
	if (!access("/dev/kvm", R_OK | W_OK))
		return true;
	harness_skip("kvm", "/dev/kvm cannot be opened");
	return false;
}

TEST(k5_handed_back_hole_memfd)
{
	run(handed_back_whole, &(struct backed){ KVMEM_BACKING_MEMFD, false });
}
END

TEST(k5_handed_back_hole_anonymous)
{
	run(handed_back_whole, &(struct backed){ KVMEM_BACKING_ANONYMOUS, false });
}
END

TEST(k5_handed_back_discarded_memfd)
{
	run(handed_back_whole, &(struct backed){ KVMEM_BACKING_MEMFD, true });
}
END

TEST(k5_handed_back_discarded_anonymous)
{
	run(handed_back_whole, &(struct backed){ KVMEM_BACKING_ANONYMOUS, true });
}
END

TEST(k6_discard_beside_hand_back)
{
	run(discard_beside_hand_back, NULL);
}
END

TEST(k6_slot_beside_populate_running)
{
	if (has_kvm())
		run(slot_beside_populate, &(bool){ true });
}
END

TEST(k6_slot_beside_populate_handed_back)
{
	if (has_kvm())
		run(slot_beside_populate, &(bool){ false });
}
END

TEST(k1_absent_between_written)
{
	for (unsigned int what = HOLE; has_kvm() && what <= FAILS; what++) {
		run(absent_between_written, &(struct marked){ KVMEM_BACKING_MEMFD, what });
		run(absent_between_written, &(struct marked){ KVMEM_BACKING_ANONYMOUS, what });
	}
}
END

TEST(k5_wait_beside_second_pass)
{
	run(wait_beside_second_pass, NULL);
}
END

TEST(k7_poison_then_another_start)
{
	uint32_t memfd = KVMEM_BACKING_MEMFD, anonymous = KVMEM_BACKING_ANONYMOUS;

	run(poison_then_another_start, &memfd);
	run(poison_then_another_start, &anonymous);
}
END

HARNESS_MAIN(T(k7_poison_then_another_start), T(k5_handed_back_hole_memfd),
	     T(k5_handed_back_hole_anonymous), T(k5_handed_back_discarded_memfd),
	     T(k5_handed_back_discarded_anonymous), T(k6_discard_beside_hand_back),
	     T(k6_slot_beside_populate_running), T(k6_slot_beside_populate_handed_back),
	     T(k1_absent_between_written), T(k5_wait_beside_second_pass))
