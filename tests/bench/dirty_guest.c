// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Dirty tracking of a guest that runs: the library against the ioctls themselves. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#include "bench.h"
#include "vmm.h"

#define GIB	     (UINT64_C(1) << 30)
#define PAGE	     4096u
#define RAM_GPA	     (UINT64_C(4) << 30)
#define RING_ENTRIES 65536u
#define RAM_SLOT     1u

#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif

/* ---- a guest, with the library or by hand ---- */

enum way { BY_LIBRARY, BY_RING, BY_BITMAP };

struct machine {
	enum way way;
	uint64_t bytes;
	struct vmm *vmm;
	struct vmm_vcpu *vcpu;
	/* with the library */
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	struct kvmem_dirty *dirty;
	/* by hand */
	int vm_fd;
	void *memory;
	struct kvm_dirty_gfn *ring;
	uint32_t head;
	uint64_t *bitmap;
};

static void need(int r, const char *what)
{
	bench_check(r >= 0, "%s: %s; %s", what, vmm_error(), kvmem_error_detail());
}

static int on_full(void *arg, struct vmm_vcpu *vcpu)
{
	(void)arg;
	(void)vcpu;
	bench_check(false, "a ring filled: the row writes too much at once");
	return -1;
}

static void enable(int fd, uint32_t cap, uint64_t arg)
{
	struct kvm_enable_cap c = { .cap = cap, .args = { arg } };

	bench_check(!ioctl(fd, KVM_ENABLE_CAP, &c), "capability %u: %m", cap);
}

static void make_by_library(struct machine *m)
{
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;

	vo.first_slot = RAM_SLOT;
	need(kvmem_vm_create(&vo, &m->vm), "VM");
	o.mode = KVMEM_DIRTY_RING;
	o.ring_entries = RING_ENTRIES;
	need(kvmem_dirty_create(m->vm, &o, &m->dirty), "tracker");
	ro.bytes = m->bytes;
	ro.needs = KVMEM_WANT_DIRTY;
	ro.backing = KVMEM_BACKING_MEMFD;
	need(kvmem_region_create(m->vm, &ro, &m->ram), "region");
	need(kvmem_region_attach(m->ram, 0, m->bytes, RAM_GPA, RAM_SLOT, 0, NULL), "slot");
	m->vm_fd = kvmem_vm_fd(m->vm);
}

static void make_by_hand(struct machine *m)
{
	int fd = memfd_create("guest", MFD_CLOEXEC), kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	bench_check(fd >= 0 && kvm >= 0 && !ftruncate(fd, (off_t)m->bytes),
		    "memory of the guest: %m");
	m->vm_fd = ioctl(kvm, KVM_CREATE_VM, 0ul);
	bench_check(m->vm_fd >= 0, "VM: %m");
	m->memory = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	bench_check(m->memory != MAP_FAILED, "memory of the guest: %m");
	if (m->way == BY_RING)
		enable(m->vm_fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, RING_ENTRIES * sizeof(*m->ring));
	else
		enable(m->vm_fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		       KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
	m->bitmap = bench_alloc(m->bytes / PAGE / 8);
	close(fd);
	close(kvm);
}

static void log_begins(struct machine *m)
{
	int fd = vmm_vcpu_fd(m->vcpu);

	if (m->way == BY_LIBRARY) {
		need(kvmem_dirty_add_vcpu(m->dirty, fd), "vCPU");
		need(kvmem_dirty_start(m->dirty), "start");
		return;
	}
	need(vmm_set_slot(m->vmm, RAM_SLOT, KVM_MEM_LOG_DIRTY_PAGES, RAM_GPA, m->bytes, m->memory),
	     "slot");
	if (m->way != BY_RING)
		return;
	m->ring = mmap(NULL, RING_ENTRIES * sizeof(*m->ring), PROT_READ | PROT_WRITE, MAP_SHARED,
		       fd, KVM_DIRTY_LOG_PAGE_OFFSET * (off_t)sysconf(_SC_PAGESIZE));
	bench_check(m->ring != MAP_FAILED, "ring: %m");
}

static void machine_make(struct machine *m, enum way way, uint64_t bytes)
{
	struct vmm_ops ops = { .ring_full = on_full };

	*m = (struct machine){ .way = way, .bytes = bytes };
	if (way == BY_LIBRARY)
		make_by_library(m);
	else
		make_by_hand(m);
	need(vmm_create(m->vm_fd, 0, &ops, &m->vmm), "VMM");
	need(vmm_map(m->vmm, RAM_GPA, bytes), "page tables");
	need(vmm_vcpu_create(m->vmm, 0, &m->vcpu), "vCPU");
	log_begins(m);
}

static void machine_free(struct machine *m)
{
	if (m->way == BY_LIBRARY) {
		need(kvmem_dirty_stop(m->dirty), "stop");
		need(kvmem_dirty_free(m->dirty), "free");
	}
	vmm_destroy(m->vmm);
	if (m->way == BY_LIBRARY) {
		need(kvmem_region_free(m->ram), "region");
		need(kvmem_vm_free(m->vm), "VM");
		return;
	}
	if (m->ring)
		munmap(m->ring, RING_ENTRIES * sizeof(*m->ring));
	munmap(m->bitmap, m->bytes / PAGE / 8);
	munmap(m->memory, m->bytes);
	close(m->vm_fd);
}

/* ---- what the guest does ---- */

static struct guest_mailbox writes(const struct machine *m, uint64_t count, bool random)
{
	return (struct guest_mailbox){
		.command = GUEST_WRITE,
		.flags = random ? GUEST_RANDOM : 0,
		.gpa = RAM_GPA,
		.bytes = m->bytes,
		.page = PAGE,
		.seed = 4711,
		.count = count,
	};
}

/* How many different pages that is. */
static uint64_t pages_written(const struct machine *m, uint64_t count, bool random)
{
	struct guest_mailbox w = writes(m, count, random);
	uint64_t pages = m->bytes / PAGE, different = 0, state = w.seed;
	uint64_t *seen = calloc(pages / 64 + 1, 8);

	for (uint64_t i = 0; i < count; i++) {
		uint64_t p = guest_write_next(&state, i, pages, PAGE, w.flags).page;

		different += !(seen[p / 64] >> (p % 64) & 1);
		seen[p / 64] |= UINT64_C(1) << (p % 64);
	}
	free(seen);
	return different;
}

static uint64_t count_bits(const struct machine *m)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < m->bytes / PAGE / 64; i++)
		n += (uint64_t)__builtin_popcountll(m->bitmap[i]);
	return n;
}

/* ---- harvest and reset of what a guest wrote ---- */

struct guest_arg {
	struct machine *m;
	uint64_t count;
	bool random;
	uint64_t pages;		     /* different ones among them; 0: not counted yet */
	double harvest_ns, reset_ns; /* of the last run */
};

/*
 * Returns how many different pages. They are counted once: a look at a bitmap of the guest between the
 * guest's run and the harvest would empty the caches the more, the larger the guest is.
 */
static uint64_t guest_writes(struct guest_arg *a)
{
	if (!a->pages)
		a->pages = pages_written(a->m, a->count, a->random);
	*(struct guest_mailbox *)vmm_mailbox(a->m->vcpu) = writes(a->m, a->count, a->random);
	need(vmm_run(a->m->vcpu), "guest");
	return a->pages;
}

static uint32_t collect(struct machine *m)
{
	uint32_t n = 0;

	for (;; n++, m->head++) {
		struct kvm_dirty_gfn *e = &m->ring[m->head % RING_ENTRIES];
		uint64_t page;

		if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
			return n;
		page = e->offset;
		if (e->slot == RAM_SLOT && page < m->bytes / PAGE)
			m->bitmap[page / 64] |= UINT64_C(1) << (page % 64);
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
	}
}

static double harvest_by_hand(void *arg)
{
	struct guest_arg *a = arg;
	uint64_t pages = guest_writes(a);
	double start, middle, end;
	uint32_t n;
	int r;

	memset(a->m->bitmap, 0, a->m->bytes / PAGE / 8);
	start = bench_now();
	n = collect(a->m);
	middle = bench_now();
	r = ioctl(a->m->vm_fd, KVM_RESET_DIRTY_RINGS, 0ul);
	end = bench_now();
	bench_check(r == (int)n, "%d of %u entries were reset", r, n);
	bench_check(count_bits(a->m) == pages, "other pages than were written");
	a->harvest_ns = middle - start;
	a->reset_ns = end - middle;
	return end - start;
}

static double harvest_by_library(void *arg)
{
	struct guest_arg *a = arg;
	uint64_t pages = guest_writes(a);
	double start = bench_now(), middle, end;
	struct kvmem_batch *batch;
	int64_t n, kept;

	n = kvmem_dirty_harvest(a->m->dirty, &batch);
	middle = bench_now();
	kept = n > 0 ? kvmem_dirty_commit(a->m->dirty, batch) : -1;
	end = bench_now();
	bench_check(n == (int64_t)pages && !kept, "other pages than were written: %s",
		    kvmem_error_detail());
	kvmem_batch_free(batch);
	a->harvest_ns = middle - start;
	a->reset_ns = end - middle;
	return end - start;
}

/* Three readers, each of which gets all of it: harvest and commit of each. */
static double harvest_by_three(void *arg)
{
	struct guest_arg *a = arg;
	struct kvmem_reader *readers[3] = { kvmem_dirty_reader(a->m->dirty) };
	struct kvmem_batch *batch;
	double start, ns;
	uint64_t pages;

	for (unsigned int i = 1; i < 3; i++)
		need(kvmem_dirty_reader_create(a->m->dirty, NULL, &readers[i]), "reader");
	pages = guest_writes(a);
	start = bench_now();
	for (unsigned int i = 0; i < 3; i++) {
		int64_t n = kvmem_reader_harvest(readers[i], &batch);

		bench_check(n == (int64_t)pages && !kvmem_dirty_commit(a->m->dirty, batch),
			    "other pages than were written: %s", kvmem_error_detail());
		kvmem_batch_free(batch);
	}
	ns = bench_now() - start;
	for (unsigned int i = 1; i < 3; i++)
		need(kvmem_reader_free(readers[i]), "reader");
	return ns;
}

static bool no_kvm(const char *name)
{
	if (!access("/dev/kvm", R_OK | W_OK))
		return false;
	bench_skip(name, "/dev/kvm cannot be opened");
	return true;
}

struct part {
	struct guest_arg *of;
	double (*run)(void *arg);
	bool reset;
};

static double part_ns(void *arg)
{
	const struct part *p = arg;

	p->run(p->of);
	return p->reset ? p->of->reset_ns : p->of->harvest_ns;
}

static void parts(const char *curve, struct guest_arg *a, double (*run)(void *arg))
{
	struct part harvest = { a, run, false }, reset = { a, run, true };
	double x[2] = { 1, 2 }, y[2];

	y[0] = bench_median(part_ns, &harvest) / (double)a->count;
	y[1] = bench_median(part_ns, &reset) / (double)a->count;
	bench_series("dirty-guest-parts", curve, "1 harvest, 2 reset", "ns/page", x, y, 2);
}

/*
 * The kernel's share of a run varies by more than ours is of it, and for as long as a VM lives by where its tables
 * came to lie: so each round is of a VM of its own.
 */
#define RUNS	    5u
#define GUEST_BYTES (UINT64_C(256) << 20)

static double mean_of(struct guest_arg *a, enum way way, double (*run)(void *arg))
{
	double ns = 0;

	machine_make(a->m, way, GUEST_BYTES);
	run(a);
	for (unsigned int i = 0; i < RUNS; i++)
		ns += run(a);
	machine_free(a->m);
	return ns / RUNS;
}

static double mean_by_hand(void *arg)
{
	return mean_of(arg, BY_RING, harvest_by_hand);
}

static double mean_by_library(void *arg)
{
	return mean_of(arg, BY_LIBRARY, harvest_by_library);
}

static double mean_by_three(void *arg)
{
	return mean_of(arg, BY_LIBRARY, harvest_by_three);
}

static void readers_row(void)
{
	uint64_t count = bench_quick() ? 4096 : 32768;
	struct machine one, three;
	struct guest_arg by_one = { &one, count, true, 0, 0, 0 };
	struct guest_arg by_three = { &three, count, true, 0, 0, 0 };
	struct bench_report r = {
		.on = "one vCPU, 256 MiB, 32768 writes at random",
		.unit = "ms",
		.baseline = { "one reader: harvest and commit", mean_by_library, &by_one },
		.ours = { "three readers, one after the other", mean_by_three, &by_three },
		.rounds = BENCH_SHORT,
		.note = "the kernel's reset is paid once",
	};

	if (no_kvm("dirty-readers"))
		return;
	bench_compare("dirty-readers", &r);
}

static void guest_row(const char *name, bool random)
{
	uint64_t count = bench_quick() ? 4096 : 32768;
	struct machine library, hand;
	struct guest_arg by_library = { &library, count, random, 0, 0, 0 };
	struct guest_arg by_hand = { &hand, count, random, 0, 0, 0 };
	struct bench_report r = {
		.on = "one vCPU, 256 MiB, 32768 writes",
		.unit = "ms",
		.baseline = { "per entry: load-acquire, set bit, store-release; then the reset",
			      mean_by_hand, &by_hand },
		.ours = { "kvmem_dirty_harvest() and kvmem_dirty_commit()", mean_by_library,
			  &by_library },
		.target = 1.0,
		.rounds = BENCH_SHORT,
		.note = "the kernel's reset is nearly all of both: see the parts",
	};

	if (no_kvm(name))
		return;
	bench_compare(name, &r);
	machine_make(&library, BY_LIBRARY, GUEST_BYTES);
	machine_make(&hand, BY_RING, GUEST_BYTES);
	parts(random ? "at random" : "in order", &by_library, harvest_by_library);
	parts(random ? "at random, baseline" : "in order, baseline", &by_hand, harvest_by_hand);
	machine_free(&hand);
	machine_free(&library);
}

static void guest_sequential(void)
{
	guest_row("dirty-guest-sequential", false);
}

static void guest_random_row(void)
{
	guest_row("dirty-guest-random", true);
}

/* ---- a thousand pages of a guest of any size ---- */

#define FEW 1000u

static double few_by_library(void *arg)
{
	struct guest_arg *a = arg;

	harvest_by_library(a);
	return a->harvest_ns;
}

/* Then cleared, in one call, for the pages to be logged again: not timed. */
static double few_by_bitmap(void *arg)
{
	struct guest_arg *a = arg;
	struct machine *m = a->m;
	uint64_t pages = guest_writes(a);
	struct kvm_dirty_log get = { .slot = RAM_SLOT, .dirty_bitmap = m->bitmap };
	struct kvm_clear_dirty_log clear = { .slot = RAM_SLOT,
					     .dirty_bitmap = m->bitmap,
					     .num_pages = (uint32_t)(m->bytes / PAGE) };
	double start = bench_now(), end;
	int r = ioctl(m->vm_fd, KVM_GET_DIRTY_LOG, &get);

	end = bench_now();
	bench_check(!r && count_bits(m) == pages, "other pages than were written");
	bench_check(!ioctl(m->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear), "clear: %m");
	return end - start;
}

static void few_pages(void)
{
	uint64_t big = bench_quick() ? 4 : 64;
	struct machine library, small, hand;
	struct guest_arg by_library = { &library, FEW, true, 0, 0, 0 };
	struct guest_arg in_small = { &small, FEW, true, 0, 0, 0 };
	struct guest_arg by_hand = { &hand, FEW, true, 0, 0, 0 };
	char on[80];
	struct bench_report r = {
		.on = on,
		.unit = "us",
		.baseline = { "KVM_GET_DIRTY_LOG of the slot (manual clear, not counted)",
			      few_by_bitmap, &by_hand },
		.ours = { "kvmem_dirty_harvest() (commit not counted)", few_by_library,
			  &by_library },
		.target = 10,
		.rounds = BENCH_SHORT,
	};

	if (no_kvm("dirty-few"))
		return;
	machine_make(&library, BY_LIBRARY, big * GIB);
	machine_make(&hand, BY_BITMAP, big * GIB);
	snprintf(on, sizeof(on), "1000 pages at random, guest of %u GiB", (unsigned int)big);
	bench_compare("dirty-few", &r);
	machine_free(&hand);
	machine_make(&small, BY_LIBRARY, GIB);
	r.baseline = (struct bench_side){ "the same, guest of 1 GiB", few_by_library, &in_small };
	r.target = 0.8;
	r.note = "flat: the size of the guest adds no more than a fourth";
	bench_compare("dirty-few-flat", &r);
	machine_free(&small);
	machine_free(&library);
}

#define FEW_SIZES 4u

static void few_by_size(void)
{
	static const double sizes[FEW_SIZES] = { 1, 4, 16, 64 };
	double own[FEW_SIZES] = { 0 }, theirs[FEW_SIZES] = { 0 };
	size_t n = bench_quick() ? 2 : FEW_SIZES;

	if (no_kvm("dirty-few-by-size"))
		return;
	for (size_t i = 0; i < n; i++) {
		uint64_t bytes = (uint64_t)sizes[i] * GIB;
		struct machine m;
		struct guest_arg a = { &m, FEW, true, 0, 0, 0 };

		machine_make(&m, BY_LIBRARY, bytes);
		own[i] = bench_median(few_by_library, &a) / 1e3;
		machine_free(&m);
		machine_make(&m, BY_BITMAP, bytes);
		theirs[i] = bench_median(few_by_bitmap, &a) / 1e3;
		machine_free(&m);
	}
	bench_series("dirty-few-by-size", "harvest", "GiB", "us", sizes, own, n);
	bench_series("dirty-few-by-size", "KVM_GET_DIRTY_LOG", "GiB", "us", sizes, theirs, n);
}

/* ---- what the API costs over the ioctls ---- */

#define CALLS	   200u
#define API_TARGET (1 / 1.05)

static double create_by_library(void *arg)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct machine *m = arg;
	double start = bench_now();

	o.bytes = 64u << 20;
	o.backing = KVMEM_BACKING_MEMFD;
	for (unsigned int i = 0; i < CALLS; i++) {
		struct kvmem_region *r;

		need(kvmem_region_create(m->vm, &o, &r), "region");
		need(kvmem_region_free(r), "region");
	}
	return (bench_now() - start) / CALLS;
}

/* Address space for a mapping that begins at a multiple of 2 MiB, as huge pages of KVM want it. */
static void *aligned_space(size_t bytes)
{
	const size_t huge = 2u << 20;
	char *p = mmap(NULL, bytes + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0);
	char *start = (char *)(((uintptr_t)p + huge - 1) & ~(uintptr_t)(huge - 1));

	bench_check(p != MAP_FAILED, "reserving: %m");
	if (start > p)
		munmap(p, (size_t)(start - p));
	munmap(start + bytes, (size_t)(p + huge - start));
	return start;
}

/* As much as the library does: a memfd that nobody can cut short, and a mapping for huge pages. */
static double create_by_hand(void *arg)
{
	double start = bench_now();

	(void)arg;
	for (unsigned int i = 0; i < CALLS; i++) {
		int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		void *p;

		bench_check(fd >= 0 && !ftruncate(fd, 64 << 20), "memfd: %m");
		bench_check(!fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), "seals: %m");
		p = mmap(aligned_space(64 << 20), 64 << 20, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0);
		bench_check(p != MAP_FAILED, "mapping: %m");
		munmap(p, 64 << 20);
		close(fd);
	}
	return (bench_now() - start) / CALLS;
}

#define API_GPA	  (UINT64_C(1) << 36)
#define API_SLOT  9u
#define API_BYTES (1u << 20)

static double attach_by_library(void *arg)
{
	struct machine *m = arg;
	double start = bench_now();

	for (unsigned int i = 0; i < CALLS; i++) {
		need(kvmem_region_attach(m->ram, 0, API_BYTES, API_GPA, API_SLOT, 0, NULL),
		     "attach");
		need(kvmem_region_detach(m->ram, API_SLOT), "detach");
	}
	return (bench_now() - start) / CALLS;
}

static double attach_by_hand(void *arg)
{
	struct machine *m = arg;
	struct kvm_userspace_memory_region slot = {
		.slot = API_SLOT,
		.flags = KVM_MEM_LOG_DIRTY_PAGES,
		.guest_phys_addr = API_GPA,
		.userspace_addr = (uintptr_t)m->memory,
	};
	double start = bench_now();

	for (unsigned int i = 0; i < CALLS; i++) {
		slot.memory_size = API_BYTES;
		bench_check(!ioctl(m->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "slot: %m");
		slot.memory_size = 0;
		bench_check(!ioctl(m->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "slot: %m");
	}
	return (bench_now() - start) / CALLS;
}

static double empty_by_library(void *arg)
{
	struct machine *m = arg;
	double start = bench_now();

	for (unsigned int i = 0; i < CALLS; i++) {
		struct kvmem_batch *batch;

		bench_check(!kvmem_dirty_harvest(m->dirty, &batch), "the ring is not empty");
		kvmem_batch_free(batch);
	}
	return (bench_now() - start) / CALLS;
}

static double empty_by_hand(void *arg)
{
	struct machine *m = arg;
	double start = bench_now();

	for (unsigned int i = 0; i < CALLS; i++)
		bench_check(!collect(m) && !ioctl(m->vm_fd, KVM_RESET_DIRTY_RINGS, 0ul),
			    "the ring is not empty");
	return (bench_now() - start) / CALLS;
}

static double empty_look(void *arg)
{
	struct machine *m = arg;
	double start = bench_now();

	for (unsigned int i = 0; i < CALLS; i++)
		bench_check(!collect(m), "the ring is not empty");
	return (bench_now() - start) / CALLS;
}

static void api(void)
{
	struct machine library, hand;
	struct bench_report r = {
		.on = "per call, of 200",
		.unit = "us",
		.target = API_TARGET,
		.rounds = BENCH_SHORT,
	};

	if (no_kvm("api-region"))
		return;
	machine_make(&library, BY_LIBRARY, 64u << 20);
	machine_make(&hand, BY_RING, 64u << 20);
	r.baseline = (struct bench_side){ "a sealed memfd, mapped at a multiple of 2 MiB, and back",
					  create_by_hand, &hand };
	r.ours = (struct bench_side){ "kvmem_region_create() of a memfd, and _free()",
				      create_by_library, &library };
	bench_compare("api-region", &r);
	r.baseline = (struct bench_side){ "KVM_SET_USER_MEMORY_REGION, with and without size",
					  attach_by_hand, &hand };
	r.ours = (struct bench_side){ "kvmem_region_attach() and _detach(), tracked",
				      attach_by_library, &library };
	bench_compare("api-attach", &r);
	r.baseline = (struct bench_side){ "look at the next entry, KVM_RESET_DIRTY_RINGS",
					  empty_by_hand, &hand };
	r.ours = (struct bench_side){ "kvmem_dirty_harvest()", empty_by_library, &library };
	r.limit = (struct bench_side){ "look at the next entry, and no ioctl", empty_look, &hand };
	r.note =
		"the library makes no ioctl for an empty ring either: its time is locks, clock and statistics";
	bench_compare("api-empty-harvest", &r);
	machine_free(&hand);
	machine_free(&library);
}

BENCH_MAIN({ "dirty-guest-sequential", guest_sequential },
	   { "dirty-guest-random", guest_random_row }, { "dirty-readers", readers_row },
	   { "dirty-few", few_pages }, { "dirty-few-by-size", few_by_size }, { "api", api })
