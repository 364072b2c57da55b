// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What the kernel does to those who use it without care, by raw system calls. A hazard that is not
 * there is a skip; KVMEM_TEST_REQUIRE names those that a kernel is known to have, and so the day
 * one goes is noticed and the library's care for it can be looked at again.
 */
#include <linux/memfd.h>
#include <signal.h>
#include <sys/stat.h>
#include "uffd.h"

#define RING_PAGES   112u
#define RING_ROUNDS  200u
#define RING_TRIES   6u /* whether a signal comes at the right moment is luck */
#define RING_BYTES   65536u
#define RING_ENTRIES (RING_BYTES / sizeof(struct kvm_dirty_gfn))

/* Seen: pass. Not seen: skip, or fail when it is required. */
static void hazard(bool seen, const char *name)
{
	if (seen || tap_required(name))
		tap_ok(seen, name);
	else
		tap_skip(name, "this kernel does not show it");
}

static uint8_t *shmem_pages(unsigned pages, int *ret_fd)
{
	uint8_t *p;

	*ret_fd = (int)syscall(SYS_memfd_create, "hazard", MFD_CLOEXEC);
	must(*ret_fd >= 0 && !ftruncate(*ret_fd, (off_t)(pages * PAGE)), "memfd");
	p = map_shared(*ret_fd, pages * PAGE);
	must(p, "mmap");
	return p;
}

static void absent_page_under_minor_only(void)
{
	int memfd, uffd = uffd_new();
	struct toucher t;
	uint8_t *p;
	int64_t flags;

	if (uffd < 0)
		return tap_skip("absent-page-under-minor-only-is-zero", "no userfaultfd");
	p = shmem_pages(4, &memfd);
	must(!uffd_register(uffd, p, 4 * PAGE, UFFDIO_REGISTER_MODE_MINOR), "register MINOR");
	toucher_start(&t, p + PAGE);
	flags = uffd_wait(uffd, &t.done);
	close(uffd);
	hazard(toucher_join(&t) == 0 && flags < 0, "absent-page-under-minor-only-is-zero");
	munmap(p, 4 * PAGE);
	close(memfd);
}

static void closed_userfaultfd(void)
{
	int memfd, uffd = uffd_new();
	struct toucher t;
	uint8_t *p;
	int64_t flags;

	if (uffd < 0)
		return tap_skip("closed-userfaultfd-leaves-zeros", "no userfaultfd");
	p = shmem_pages(1, &memfd);
	must(!uffd_register(uffd, p, PAGE, UFFDIO_REGISTER_MODE_MISSING), "register MISSING");
	toucher_start(&t, p);
	flags = uffd_wait(uffd, &t.done);
	close(uffd);
	hazard(toucher_join(&t) == 0 && flags >= 0, "closed-userfaultfd-leaves-zeros");
	munmap(p, PAGE);
	close(memfd);
}

/* Pages with a pattern go back to the kernel's free lists. */
static void soil_free_memory(size_t bytes)
{
	uint8_t *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(p != MAP_FAILED, "mmap");
	memset(p, 0xa5, bytes);
	munmap(p, bytes);
}

static unsigned stale_pages(const uint8_t *p, unsigned pages)
{
	unsigned n = 0;

	for (unsigned i = 0; i < pages; i++) {
		bool clean = true;

		for (size_t b = 0; b < PAGE; b++)
			clean = clean && p[i * PAGE + b] == 0;
		n += !clean;
	}
	return n;
}

static void continue_of_allocated_page(void)
{
	enum { PAGES = 4096 };
	const char *name = "continue-of-an-allocated-page-shows-stale-memory";
	int vm = kvm_new_vm(), uffd = uffd_new();
	int fd = gmem_new(vm, PAGES * PAGE, GMEM_MMAP | GMEM_INIT_SHARED);
	uint8_t *p = fd < 0 ? NULL : map_shared(fd, PAGES * PAGE);
	unsigned stale;

	if (!p || uffd < 0 ||
	    uffd_register(uffd, p, PAGES * PAGE,
			  UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR)) {
		tap_skip(name, "no userfaultfd on guest_memfd");
	} else {
		soil_free_memory(256 << 20);
		must(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)(PAGES * PAGE)), "fallocate");
		must(!uffd_continue(uffd, p, PAGES * PAGE), "UFFDIO_CONTINUE");
		stale = stale_pages(p, PAGES);
		tap_note("%u of %d pages show stale memory", stale, PAGES);
		hazard(stale > 0, name);
	}
	if (p)
		munmap(p, PAGES * PAGE);
	if (fd >= 0)
		close(fd);
	if (uffd >= 0)
		close(uffd);
	close(vm);
}

/*
 * mov ax, 0x1000; mov cx, RING_PAGES; 1: mov ds, ax; inc byte [0]; add ax, 0x100; loop 1b;
 * out 0x10, al; jmp back to the start: one byte in each page from 64 KiB on, then an exit.
 */
static const uint8_t writer_code[] = {
	0xb8, 0x00, 0x10, 0xb9, RING_PAGES, 0x00, 0x8e, 0xd8, 0xfe, 0x06, 0x00,
	0x00, 0x05, 0x00, 0x01, 0xe2,	    0xf5, 0xe6, 0x10, 0xeb, 0xeb,
};

struct ring_vm {
	int vm;
	struct vcpu vcpu;
	struct kvm_dirty_gfn *ring;
	uint32_t next;
	uint8_t *ram;
};

static bool ring_vm_make(struct ring_vm *r)
{
	struct kvm_enable_cap cap = {
		.cap = KM_KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
		.args = { RING_BYTES },
	};

	r->vm = kvm_new_vm();
	if (ioctl(r->vm, KVM_ENABLE_CAP, &cap)) {
		close(r->vm);
		return false;
	}
	r->ram = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(r->ram != MAP_FAILED, "mmap");
	must(!slot_set(r->vm, 0, 0, 0, 64 << 10, r->ram), "slot of the code");
	must(!slot_set(r->vm, 1, KVM_MEM_LOG_DIRTY_PAGES, 64 << 10, RING_PAGES * PAGE,
		       r->ram + (64 << 10)),
	     "slot of the data");
	memcpy(r->ram + PAGE, writer_code, sizeof(writer_code));
	r->vcpu = vcpu_new(r->vm, PAGE);
	r->ring = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, r->vcpu.fd,
		       (off_t)(KVM_DIRTY_LOG_PAGE_OFFSET * PAGE));
	must(r->ring != MAP_FAILED, "mmap of the ring");
	r->next = 0;
	return true;
}

static void ring_vm_free(struct ring_vm *r)
{
	munmap(r->ring, RING_BYTES);
	vcpu_free(&r->vcpu);
	munmap(r->ram, 1 << 20);
	close(r->vm);
}

/* How many pages the ring had: the kernel may enter one of them twice. */
static unsigned ring_vm_harvest(struct ring_vm *r)
{
	bool seen[RING_PAGES] = { false };
	unsigned n = 0;

	for (;;) {
		struct kvm_dirty_gfn *e = &r->ring[r->next % RING_ENTRIES];

		if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
			return n;
		must(e->offset < RING_PAGES, "an entry of the slot's pages");
		n += !seen[e->offset];
		seen[e->offset] = true;
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		r->next++;
	}
}

struct storm {
	pthread_t thread, target;
	atomic_bool stop;
};

static void on_signal(int sig)
{
	(void)sig;
}

static void *storm_main(void *arg)
{
	struct storm *s = arg;

	while (!atomic_load(&s->stop))
		pthread_kill(s->target, SIGUSR1);
	return NULL;
}

/* Writes that were never reported, of RING_PAGES * RING_ROUNDS. */
static unsigned ring_lost(struct ring_vm *r, bool blocked)
{
	struct sigaction sa = { .sa_handler = on_signal };
	struct storm s = { .target = pthread_self() };
	unsigned reported = 0;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaction(SIGUSR1, &sa, NULL);
	/* not while the guest runs, or it would get nowhere */
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	must(!pthread_create(&s.thread, NULL, storm_main, &s), "pthread_create");
	for (unsigned i = 0; i < RING_ROUNDS; i++) {
		must(vcpu_run(&r->vcpu) >= 0, "KVM_RUN");
		reported += ring_vm_harvest(r);
		if (!blocked)
			pthread_sigmask(SIG_UNBLOCK, &set, NULL);
		must(ioctl(r->vm, KVM_RESET_DIRTY_RINGS, 0ul) >= 0, "KVM_RESET_DIRTY_RINGS");
		pthread_sigmask(SIG_BLOCK, &set, NULL);
	}
	atomic_store(&s.stop, true);
	pthread_join(s.thread, NULL);
	return RING_PAGES * RING_ROUNDS - reported;
}

static void signals_during_ring_reset(void)
{
	unsigned lost = 0, lost_blocked, tries;
	struct ring_vm r;

	for (tries = 0; !lost && tries < RING_TRIES; tries++) {
		if (!ring_vm_make(&r)) {
			tap_skip("signals-during-ring-reset-lose-pages", "no dirty ring");
			tap_skip("blocked-signals-lose-none", "no dirty ring");
			return;
		}
		lost = ring_lost(&r, false);
		ring_vm_free(&r);
	}
	must(ring_vm_make(&r), "another dirty ring");
	lost_blocked = ring_lost(&r, true);
	ring_vm_free(&r);
	tap_note(
		"never reported: %u of %u page writes under signals (try %u), %u with them blocked",
		lost, RING_PAGES * RING_ROUNDS, tries, lost_blocked);
	hazard(lost > 0, "signals-during-ring-reset-lose-pages");
	tap_ok(lost_blocked == 0, "blocked-signals-lose-none");
}

/* mov al, [0x3000]; out 0x10, al */
static void direct_slot_hides_absent_pages(void)
{
	static const uint8_t code[] = { 0xa0, 0x00, 0x30, 0xe6, 0x10 };
	const char *name = "direct-slot-gives-zero-for-an-absent-page";
	int vm = kvm_new_vm(), uffd = uffd_new();
	int fd = gmem_new(vm, 16 * PAGE, GMEM_MMAP | GMEM_INIT_SHARED);
	uint8_t *p = fd < 0 ? NULL : map_shared(fd, 16 * PAGE);
	atomic_bool never = false;
	struct vcpu v;

	if (!p || uffd < 0 ||
	    (memcpy(p + PAGE, code, sizeof(code)),
	     uffd_register(uffd, p + 2 * PAGE, 8 * PAGE, UFFDIO_REGISTER_MODE_MISSING))) {
		tap_skip(name, "no userfaultfd on guest_memfd");
	} else {
		must(!slot_set_direct(vm, 0, 0, 0, 16 * PAGE, fd, p), "direct slot");
		v = vcpu_new(vm, PAGE);
		atomic_store(&never, true);
		hazard(vcpu_run(&v) == 0 && uffd_wait(uffd, &never) < 0, name);
		vcpu_free(&v);
	}
	if (uffd >= 0)
		close(uffd);
	if (p)
		munmap(p, 16 * PAGE);
	if (fd >= 0)
		close(fd);
	close(vm);
}

int main(void)
{
	int kvm = kvm_open();

	if (kvm < 0) {
		fprintf(stderr, "/dev/kvm: %s\n", strerror(errno));
		return 77;
	}
	close(kvm);
	absent_page_under_minor_only();
	closed_userfaultfd();
	continue_of_allocated_page();
	direct_slot_hides_absent_pages();
	signals_during_ring_reset();
	return tap_done();
}
