// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* See life.h. Small on purpose: each is run once for every system call there is. */
#include "life.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#include "vmm.h"

#define PAGE	 UINT64_C(4096)
#define MIB	 (UINT64_C(1) << 20)
#define BYTES	 (4 * MIB)
#define PAGES	 (BYTES / PAGE)
#define LARGE	 (16 * MIB) /* more than one thread makes by itself */
#define GPA	 (UINT64_C(4) << 30)
#define SEED	 2026
#define BAD	 UINT64_C(100) /* the page that a source does not have */
#define UFFDS	 8u
#define PATIENCE INT64_C(10000000000)

struct life_how life_how;

static int uffds[UFFDS];
static unsigned int uffds_used;

void life_fail(enum life_end end, const char *why)
{
	fprintf(stderr, "%s\n", why);
	_exit((int)end);
}

void life_phase(enum life_phase phase)
{
	static const char *const names[] = { "@create", "@run", "@stop" };

	if (life_how.marks)
		life_mark(names[phase]);
	if (life_how.phase)
		life_how.phase(phase);
}

void life_mark(const char *call)
{
	if (life_how.marks && write(-1, call ? call : "", call ? strlen(call) : 0) != -1)
		abort();
}

int64_t life_check(const char *call, int64_t r)
{
	char why[2048];

	if (r >= 0)
		return r;
	snprintf(why, sizeof(why), "%s: %s: %s", call, strerror((int)-r), kvmem_error_detail());
	life_fail(*kvmem_error_detail() ? LIFE_SAID : LIFE_MUTE, why);
}

/* Memory that this process plays other ones with: registered, and given to the library with its userfaultfds. */
static char *theirs, *joined;
static int their_uffd = -1, joined_uffd = -1;

static int open_registered(char **ret_memory)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	*ret_memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	reg.range.start = (uintptr_t)*ret_memory;
	reg.range.len = BYTES;
	if (fd < 0 || *ret_memory == MAP_FAILED || ioctl(fd, UFFDIO_API, &api) ||
	    ioctl(fd, UFFDIO_REGISTER, &reg))
		return -1;
	return fd;
}

static bool open_theirs(void)
{
	if (!theirs) {
		their_uffd = open_registered(&theirs);
		joined_uffd = open_registered(&joined);
	}
	return their_uffd >= 0 && joined_uffd >= 0;
}

bool life_open_uffds(void)
{
	if (!open_theirs())
		return false;
	for (unsigned int i = 0; i < UFFDS; i++) {
		uffds[i] = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		if (uffds[i] < 0)
			return false;
	}
	return true;
}

/* ---- what they are made of ---- */

static void must_vmm(int r)
{
	if (r)
		life_fail(LIFE_SAID, vmm_error()); /* KVM_RUN on a page that is poisoned */
}

/* The image is on a disk where there is one to write to. */
static int image = -1, kept = -1, event = -1;

struct machine {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	struct vmm *vmm;
	struct vmm_vcpu *vcpu;
};

static void open_vm(struct machine *m)
{
	struct kvmem_vm_opts o = KVMEM_VM_OPTS_INIT;

	*m = (struct machine){ 0 };
	o.first_slot = 1;
	MUST(kvmem_vm_create, &o, &m->vm);
}

static struct kvmem_region *make_region(struct kvmem_vm *vm, uint32_t backing, uint64_t wants)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *r;

	o.bytes = BYTES;
	o.backing = backing;
	o.wants = wants;
	MUST(kvmem_region_create, vm, &o, &r);
	return r;
}

/* Over a file that has its first MiB already. */
static struct kvmem_region *kept_region(struct kvmem_vm *vm)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *r;

	o.bytes = BYTES;
	o.flags = KVMEM_REGION_FD;
	o.fd = kept;
	o.wants = KVMEM_WANT_PAGING;
	MUST(kvmem_region_create, vm, &o, &r);
	return r;
}

static void add_guest(struct machine *m)
{
	must_vmm(vmm_create(kvmem_vm_fd(m->vm), 0, NULL, &m->vmm));
	must_vmm(vmm_map(m->vmm, GPA, BYTES));
	must_vmm(vmm_vcpu_create(m->vmm, 0, &m->vcpu));
}

static uint64_t guest(struct machine *m, uint32_t command, uint64_t first, uint64_t pages)
{
	*vmm_mailbox(m->vcpu) = (struct guest_mailbox){ .command = command,
							.gpa = GPA + first * PAGE,
							.bytes = pages * PAGE,
							.page = PAGE,
							.step = PAGE,
							.seed = SEED };
	must_vmm(vmm_run(m->vcpu));
	return vmm_mailbox(m->vcpu)->result;
}

static void close_vm(struct machine *m)
{
	vmm_destroy(m->vmm);
	if (m->ram)
		MUST(kvmem_region_free, m->ram);
	MUST(kvmem_vm_free, m->vm);
}

/* What the guest looks for: its pattern in the first word of each page. */
static uint8_t content[BYTES] __attribute__((aligned(4096)));

static void make_content(void)
{
	for (uint64_t at = 0; at < BYTES; at += PAGE) {
		uint64_t word = guest_pattern(SEED, GPA + at);

		memcpy(content + at, &word, sizeof(word));
	}
}

static void on_bus(int sig)
{
	(void)sig;
	_exit(LIFE_POISONED); /* what KVM raises for a vCPU on a poisoned page */
}

bool life_prepare(void)
{
	make_content();
	open_theirs(); /* where that is allowed */
	signal(SIGBUS, on_bus);
	image = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (image < 0)
		image = memfd_create("image", MFD_CLOEXEC);
	kept = memfd_create("kept", MFD_CLOEXEC);
	event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return image >= 0 && kept >= 0 && event >= 0 && pwrite(image, content, BYTES, 0) == BYTES &&
	       !fsync(image) && !ftruncate(kept, BYTES) && pwrite(kept, content, MIB, 0) == MIB;
}

static struct kvmem_source *image_source(void)
{
	struct kvmem_source *s;

	MUST(kvmem_source_file, image, 0, 0, 0, &s);
	return s;
}

/*
 * A word of guest memory by system call: a poisoned page is an error there and not a signal. Not under a tracer, which
 * looks at the arguments while the thread that has to fill the page is stopped.
 */
static uint64_t peek(const struct kvmem_region *r, uint64_t page)
{
	const uint8_t *at = (const uint8_t *)kvmem_region_base(r) + page * PAGE;
	static int ends[2] = { -1, -1 };
	uint64_t word;

	if (life_how.marks)
		return *(const volatile uint64_t *)at;
	if (ends[0] < 0 && pipe2(ends, O_CLOEXEC))
		life_fail(LIFE_SETUP, "no pipe");
	if (write(ends[1], at, sizeof(word)) < 0)
		life_fail(errno == EFAULT ? LIFE_POISONED : LIFE_SETUP, "poisoned");
	if (read(ends[0], &word, sizeof(word)) != sizeof(word))
		life_fail(LIFE_SETUP, "no pipe");
	return word;
}

/* A page that the source does not have: an error for who touches it. */
static void expect_poison(const struct kvmem_region *r, uint64_t page)
{
	uint8_t *at = (uint8_t *)kvmem_region_base(r) + page * PAGE;
	uint64_t word = 0;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) || write(ends[1], &word, sizeof(word)) != sizeof(word))
		life_fail(LIFE_SETUP, "no pipe");
	if (read(ends[0], at, sizeof(word)) != -1 || errno != EFAULT)
		life_fail(LIFE_WRONG, "a page that cannot be read is not poisoned");
	close(ends[0]);
	close(ends[1]);
}

static void expect(const struct kvmem_region *r, uint64_t first, uint64_t pages)
{
	for (uint64_t i = first; i < first + pages; i++)
		if (peek(r, i) != guest_pattern(SEED, GPA + i * PAGE))
			life_fail(LIFE_WRONG, "a page is not the image's");
}

static struct kvmem_pager *make_pager(uint32_t flags, uint32_t shards)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_pager *p;
	int32_t given[2];

	o.flags = flags;
	o.shards = shards;
	o.trace_entries = 256;
	o.fault_around = 16 * PAGE;
	if (life_how.given) {
		if (uffds_used + shards > UFFDS)
			life_fail(LIFE_SETUP, "too few userfaultfds");
		for (unsigned int i = 0; i < shards; i++)
			given[i] = uffds[uffds_used++];
		o.uffds = given;
		o.uffd_count = shards;
	}
	MUST(kvmem_pager_create, &o, &p);
	return p;
}

/* A call of populate, and what it did is looked at. */
static void fill(struct kvmem_region *r, struct kvmem_source *s, uint32_t method,
		 uint32_t file_method)
{
	struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	int ret;

	o.method = method;
	o.file_method = file_method;
	o.threads = 2;
	o.chunk_bytes = MIB;
	o.bytes = BYTES;
	o.uring_workers = 4;
	MUST(kvmem_region_mark_absent, r, 0, BYTES, 0); /* filled once more */
	ret = CALL(kvmem_populate, r, 0, s, &o, &res);
	if (ret == -EOPNOTSUPP && (method || file_method))
		return; /* not with this memory, or not here */
	life_check("kvmem_populate", ret);
	expect(r, 0, PAGES);
	VOID(kvmem_fill_method_name, res.method);
	VOID(kvmem_file_method_name, res.file_method);
}

static void fill_all_ways(struct kvmem_region *r)
{
	struct kvmem_source *file = image_source(), *memory;

	MUST(kvmem_source_memory, content, BYTES, &memory);
	for (uint32_t method = KVMEM_FILL_AUTO; method <= KVMEM_FILL_COPY; method++)
		fill(r, memory, method, KVMEM_FILE_AUTO);
	fill(r, file, KVMEM_FILL_AUTO, KVMEM_FILE_AUTO); /* from the page cache */
	for (uint32_t method = KVMEM_FILE_AUTO; method <= KVMEM_FILE_PREAD; method++) {
		posix_fadvise(image, 0, 0, POSIX_FADV_DONTNEED);
		fill(r, file, KVMEM_FILL_AUTO, method);
	}
	MUST(kvmem_source_free, memory);
	MUST(kvmem_source_free, file);
}

/* Preallocation, and the guest's own tables. */
static void make_pages(struct machine *m)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	o.flags = KVMEM_POPULATE_PREALLOC | KVMEM_POPULATE_MAP_GUEST;
	o.vcpu_fd = vmm_vcpu_fd(m->vcpu);
	o.threads = 2;
	MUST(kvmem_populate, m->ram, 0, NULL, &o, NULL);
}

static void follow(struct kvmem_dirty *d, struct kvmem_batch *batch, uint64_t at_least)
{
	static uint64_t bitmap[PAGES / 64];
	struct kvmem_run run = { 0 }, runs[4];
	uint64_t pages = CALL(kvmem_batch_pages, batch);

	MUST(kvmem_dirty_commit, d, batch);
	if (pages < at_least)
		life_fail(LIFE_WRONG, "a written page is not in the batch");
	if (MUST(kvmem_batch_next, batch, &run)) {
		VOID(kvmem_batch_region_pages, batch, run.region);
		MUST(kvmem_batch_bitmap, batch, run.region, 0, BYTES, bitmap);
	}
	MUST(kvmem_batch_runs, batch, runs, 4);
	MUST(kvmem_batch_return, batch);
	VOID(kvmem_batch_free, batch);
}

/* A tracker from its making to the guest's first write. */
static struct kvmem_dirty *make_dirty(struct machine *m, uint32_t mode)
{
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	struct kvmem_dirty *d;

	o.mode = mode;
	o.flags = KVMEM_DIRTY_REAPER;
	MUST(kvmem_dirty_create, m->vm, &o, &d);
	VOID(kvmem_dirty_get_reason, d);
	VOID(kvmem_dirty_get_mode, d);
	return d;
}

static void track(struct machine *m, struct kvmem_dirty *d)
{
	struct kvmem_reader_opts o = KVMEM_READER_OPTS_INIT;
	struct kvmem_vcpu_stats vs = KVMEM_VCPU_STATS_INIT;
	struct kvmem_dirty_stats st = KVMEM_DIRTY_STATS_INIT;
	uint64_t bits = 3, log[PAGES / 64] = { 5 };
	struct kvmem_reader *display;
	struct kvmem_batch *batch;

	o.region_count = 1;
	o.regions = &m->ram;
	o.threshold_pages = 1;
	o.event_fd = event;
	MUST(kvmem_dirty_start, d);
	MUST(kvmem_dirty_reader_create, d, &o, &display);
	VOID(kvmem_dirty_reader, d);
	guest(m, GUEST_FILL, 10, 700);
	MUST(kvmem_dirty_mark, d, m->ram, 900 * PAGE, 8);
	MUST(kvmem_dirty_merge, d, m->ram, 0, 2 * PAGE, 12, &bits);
	MUST(kvmem_dirty_merge_gpa, d, 0, GPA, BYTES, 12, log, KVMEM_MERGE_CLEAR);
	MUST(kvmem_dirty_harvest, d, &batch);
	follow(d, batch, 704);
	MUST(kvmem_reader_pending, display, NULL);
	MUST(kvmem_reader_forget, display, m->ram, 900 * PAGE, PAGE);
	MUST(kvmem_reader_harvest, display, &batch);
	follow(d, batch, 700);
	if (kvmem_dirty_get_mode(d) == KVMEM_DIRTY_RING)
		MUST(kvmem_dirty_ring_full, d, vmm_vcpu_fd(m->vcpu));
	MUST(kvmem_dirty_get_stats, d, &st);
	MUST(kvmem_dirty_get_vcpu_stats, d, vmm_vcpu_fd(m->vcpu), &vs);
	MUST(kvmem_reader_free, display);
}

static void end_dirty(struct machine *m, struct kvmem_dirty *d)
{
	MUST(kvmem_dirty_stop, d);
	MUST(kvmem_dirty_remove_vcpu, d, vmm_vcpu_fd(m->vcpu));
	MUST(kvmem_dirty_free, d);
}

static void look(struct machine *m)
{
	struct kvmem_translation t = KVMEM_TRANSLATION_INIT;
	struct kvmem_attachment a[4];
	struct kvmem_plan plan;
	struct kvmem_run run;
	uint8_t word[8];
	uint32_t state;

	MUST(kvmem_vm_translate, m->vm, 0, GPA + PAGE, 8, &t);
	MUST(kvmem_region_attachments, m->ram, 0, BYTES, a, 4);
	MUST(kvmem_region_next_missing, m->ram, 0, &run);
	MUST(kvmem_region_next_run, m->ram, 0, &run, &state);
	MUST(kvmem_region_read, m->ram, 0, word, sizeof(word));
	VOID(kvmem_region_base, m->ram);
	VOID(kvmem_region_bytes, m->ram);
	VOID(kvmem_region_arg, m->ram);
	VOID(kvmem_region_page_size, m->ram);
	CALL(kvmem_region_fd, m->ram);
	CALL(kvmem_region_private_fd, m->ram);
	VOID(kvmem_vm_fd, m->vm);
	VOID(kvmem_vm_kvm_fd, m->vm);
	VOID(kvmem_version);
	VOID(kvmem_error_detail);
	VOID(kvmem_error_set, EINVAL, "the last failure");
	MUST(kvmem_opts_copy, &plan, sizeof(plan), sizeof(plan), NULL, "plan");
	MUST(kvmem_result_check, &plan, sizeof(plan), "plan");
	VOID(kvmem_result_copy, &plan, &plan, sizeof(plan));
}

static void look_at_caps(const struct kvmem_caps *caps)
{
	struct kvmem_cap_info info = KVMEM_CAP_INFO_INIT;
	char text[16384];

	MUST(kvmem_caps_get, caps, KVMEM_CAP_KVM, &info);
	MUST(kvmem_caps_format, caps, KVMEM_CAPS_TEXT, text, sizeof(text));
	VOID(kvmem_cap_name, KVMEM_CAP_KVM);
}

/* ---- the lives ---- */

/* All that has to do with a VM and memory that the plan chooses, or that is asked for by kind. */
static void vm_life(uint32_t backing, uint32_t mode)
{
	struct kvmem_stored stored;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_placement place = KVMEM_PLACEMENT_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	unsigned long nodes[16];
	uint64_t node_pages[1024];
	struct kvmem_dirty *d;
	struct machine m;
	uint32_t slot;

	life_phase(LIFE_CREATE);
	open_vm(&m);
	look_at_caps(CALL(kvmem_vm_caps, m.vm));
	o.bytes = BYTES;
	o.backing = backing;
	o.needs = KVMEM_WANT_DIRTY;
	if (CALL(kvmem_region_plan, m.vm, &o, &plan))
		backing =
			KVMEM_BACKING_AUTO; /* no guest_memfd in user space, or none in an HVA slot */
	m.ram = make_region(m.vm, backing, KVMEM_WANT_DIRTY | KVMEM_WANT_NUMA);
	MUST(kvmem_region_get_plan, m.ram, &plan);
	MUST(kvmem_numa_nodes, nodes, 1024);
	MUST(kvmem_region_set_policy, m.ram, 0, BYTES, KVMEM_POLICY_BIND, nodes, 1024, 0);
	fill_all_ways(m.ram);
	place.nodes = node_pages;
	place.node_count = 1024;
	MUST(kvmem_region_placement, m.ram, 0, BYTES, &place);
	MUST(kvmem_region_stored, m.ram, 0, BYTES, &stored, 1);
	CALL(kvmem_region_check_huge, m.ram, 0, BYTES, GPA);
	d = make_dirty(&m, mode);
	MUST(kvmem_region_attach, m.ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, &slot);
	add_guest(&m);
	MUST(kvmem_dirty_add_vcpu, d, vmm_vcpu_fd(m.vcpu));
	make_pages(&m);
	life_phase(LIFE_RUN);
	if (guest(&m, GUEST_VERIFY, 0, PAGES))
		life_fail(LIFE_WRONG, "the guest finds other content");
	look(&m);
	track(&m, d);
	MUST(kvmem_region_discard, m.ram, 0, 8 * PAGE);
	if (peek(m.ram, 3))
		life_fail(LIFE_WRONG, "a discarded page is not zero");
	MUST(kvmem_region_mark_absent, m.ram, 16 * PAGE, PAGE, KVMEM_ABSENT_ATTACHED);
	MUST(kvmem_region_mark_present, m.ram, 16 * PAGE, PAGE);
	life_phase(LIFE_STOP);
	end_dirty(&m, d);
	MUST(kvmem_region_detach, m.ram, slot);
	close_vm(&m);
}

static void guest_memfd_life(void)
{
	vm_life(KVMEM_BACKING_GUEST_MEMFD, KVMEM_DIRTY_AUTO);
}

static void memfd_life(void)
{
	vm_life(KVMEM_BACKING_MEMFD, KVMEM_DIRTY_BITMAP);
}

static void anonymous_life(void)
{
	vm_life(KVMEM_BACKING_ANONYMOUS, KVMEM_DIRTY_RING);
}

/* A guest whose memory comes from a file while it runs, and is tracked. */
static void paged_life(uint32_t backing, uint32_t flags)
{
	const struct kvmem_range list = { 512 * PAGE, 64 * PAGE };
	struct kvmem_ticket_result res = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;
	struct kvmem_populate_opts fo = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_trace_entry trace[64];
	struct kvmem_source *source;
	struct kvmem_region *more;
	struct kvmem_ticket *ticket;
	struct kvmem_pager *p;
	struct kvmem_dirty *d;
	struct machine m;

	life_phase(LIFE_CREATE);
	open_vm(&m);
	m.ram = make_region(m.vm, backing, KVMEM_WANT_DIRTY | KVMEM_WANT_PAGING);
	more = kept_region(m.vm);
	source = image_source();
	p = make_pager(flags, 1);
	MUST(kvmem_pager_add, p, m.ram, source, 0, 0);
	MUST(kvmem_pager_set_source, p, m.ram, source, 0);
	fo.bytes = 64 * PAGE;
	MUST(kvmem_populate, m.ram, 0, source, &fo, NULL);
	d = make_dirty(&m, KVMEM_DIRTY_AUTO);
	MUST(kvmem_region_attach, m.ram, 0, BYTES, GPA, KVMEM_SLOT_ANY, 0, NULL);
	MUST(kvmem_region_attach, more, 0, BYTES, GPA + BYTES, KVMEM_SLOT_ANY, 0, NULL);
	add_guest(&m);
	MUST(kvmem_dirty_add_vcpu, d, vmm_vcpu_fd(m.vcpu));
	MUST(kvmem_pager_start, p);
	/* Hot-plugged, with pages that are there already; its end is a hole in the image. */
	MUST(kvmem_pager_add, p, more, source, MIB, KVMEM_FILL_KEEP);
	life_phase(LIFE_RUN);
	guest(&m, GUEST_VERIFY, 128, 8);
	MUST(kvmem_pager_put, p, m.ram, 300 * PAGE, content + 300 * PAGE, PAGE);
	MUST(kvmem_pager_prefetch, p, m.ram, &list, 1, NULL, &ticket);
	MUST(kvmem_ticket_wait, ticket, PATIENCE, &res);
	MUST(kvmem_ticket_free, ticket);
	if (guest(&m, GUEST_VERIFY, 0, PAGES))
		life_fail(LIFE_WRONG, "the guest finds other content");
	expect(more, 5, 3);
	if (peek(more, 2 * MIB / PAGE) != guest_pattern(SEED, GPA + 3 * MIB) ||
	    peek(more, PAGES - 5))
		life_fail(LIFE_WRONG, "a page is not the image's");
	if (flags & KVMEM_PAGER_BACKGROUND)
		MUST(kvmem_pager_wait, p, PATIENCE);
	MUST(kvmem_pager_get_stats, p, &st);
	if (st.pages_poisoned)
		life_fail(LIFE_POISONED, "a page is poisoned");
	MUST(kvmem_pager_trace_read, p, trace, 64);
	VOID(kvmem_pager_fd, p);
	track(&m, d);
	MUST(kvmem_region_discard, m.ram, 0, 8 * PAGE);
	MUST(kvmem_region_mark_absent, m.ram, 40 * PAGE, 4 * PAGE, KVMEM_ABSENT_ATTACHED);
	MUST(kvmem_region_mark_present, m.ram, 50 * PAGE, PAGE);
	expect(m.ram, 40, 4);
	look(&m);
	life_phase(LIFE_STOP);
	MUST(kvmem_pager_remove, p, more, KVMEM_STOP_FILL);
	MUST(kvmem_pager_stop, p, KVMEM_STOP_FILL);
	end_dirty(&m, d);
	MUST(kvmem_pager_free, p);
	MUST(kvmem_region_free, more);
	MUST(kvmem_source_free, source);
	close_vm(&m);
}

static void paged_memfd_life(void)
{
	paged_life(KVMEM_BACKING_MEMFD, KVMEM_PAGER_BACKGROUND);
}

static void paged_anonymous_life(void)
{
	paged_life(KVMEM_BACKING_ANONYMOUS, 0);
}

/* Without a thread of the library: the VMM's event loop serves. Sources that are the VMM's own. */

struct server {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct kvmem_source_request *queue[PAGES];
	size_t count;
	bool end;
};

static void *answer(void *arg)
{
	struct server *s = arg;

	pthread_mutex_lock(&s->lock);
	while (!s->end || s->count) {
		struct kvmem_source_request *r;

		if (!s->count) {
			pthread_cond_wait(&s->changed, &s->lock);
			continue;
		}
		r = s->queue[--s->count];
		pthread_mutex_unlock(&s->lock);
		memcpy(r->buf, content + r->offset, r->bytes);
		MUST(kvmem_source_complete, r, 0);
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static int submit(void *arg, struct kvmem_source_request *const *requests, size_t count)
{
	struct server *s = arg;

	pthread_mutex_lock(&s->lock);
	for (size_t i = 0; i < count; i++)
		s->queue[s->count++] = requests[i];
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return 0;
}

static int read_content(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	if (offset <= BAD * PAGE && BAD * PAGE < offset + bytes)
		return -EIO;
	memcpy(buf, content + offset, bytes);
	return 0;
}

static _Atomic bool loop_ends;

static void *loop(void *arg)
{
	struct pollfd fd = { .fd = kvmem_pager_fd(arg), .events = POLLIN };

	while (!atomic_load(&loop_ends)) {
		poll(&fd, 1, 10);
		MUST(kvmem_pager_handle, arg);
	}
	return NULL;
}

static void event_loop_life(void)
{
	static struct server server = { .lock = PTHREAD_MUTEX_INITIALIZER,
					.changed = PTHREAD_COND_INITIALIZER };
	struct kvmem_source_async_ops later = KVMEM_SOURCE_ASYNC_OPS_INIT;
	struct kvmem_source_ops now = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_extent extent = KVMEM_EXTENT_INIT;
	const struct kvmem_range list = { 200 * PAGE, 64 * PAGE };
	struct kvmem_source *async, *callback, *memory;
	struct kvmem_ticket *ticket;
	struct kvmem_region *a, *b, *c;
	pthread_t answers, handles;
	struct kvmem_pager *p;
	uint64_t word;

	server.end = false;
	atomic_store(&loop_ends, false);
	life_phase(LIFE_CREATE);
	a = make_region(NULL, KVMEM_BACKING_ANONYMOUS, KVMEM_WANT_PAGING);
	b = make_region(NULL, KVMEM_BACKING_MEMFD, KVMEM_WANT_PAGING);
	c = kept_region(NULL);
	later.submit = submit;
	MUST(kvmem_source_async, &later, &server, BYTES, &async);
	now.read = read_content;
	MUST(kvmem_source_callback, &now, NULL, BYTES, &callback);
	MUST(kvmem_source_memory, content, BYTES, &memory);
	VOID(kvmem_source_bytes, async);
	MUST(kvmem_source_extent, memory, 0, &extent);
	if (pthread_create(&answers, NULL, answer, &server))
		life_fail(LIFE_SETUP, "no thread");
	MUST(kvmem_source_read, async, 0, &word, sizeof(word));
	p = make_pager(KVMEM_PAGER_NO_THREADS, 2);
	MUST(kvmem_pager_add, p, a, async, 0, 0);
	MUST(kvmem_pager_add, p, b, callback, 0, 0);
	MUST(kvmem_pager_add, p, c, memory, 0, KVMEM_FILL_KEEP);
	MUST(kvmem_pager_start, p);
	if (pthread_create(&handles, NULL, loop, p))
		life_fail(LIFE_SETUP, "no thread");
	life_phase(LIFE_RUN);
	MUST(kvmem_pager_prefetch, p, a, &list, 1, NULL, &ticket);
	MUST(kvmem_ticket_wait, ticket, PATIENCE, NULL);
	MUST(kvmem_ticket_free, ticket);
	expect(a, 0, 40);
	expect(b, 0, 40);
	expect(c, MIB / PAGE - 4, 8);
	expect_poison(b, BAD);
	MUST(kvmem_region_discard, a, 0, 8 * PAGE);
	if (peek(a, 3))
		life_fail(LIFE_WRONG, "a discarded page is not zero");
	life_phase(LIFE_STOP);
	atomic_store(&loop_ends, true);
	pthread_join(handles, NULL);
	CALL(kvmem_pager_stop, p, KVMEM_STOP_FILL); /* the bad page's error */
	MUST(kvmem_pager_free, p);
	pthread_mutex_lock(&server.lock);
	server.end = true;
	pthread_cond_broadcast(&server.changed);
	pthread_mutex_unlock(&server.lock);
	pthread_join(answers, NULL);
	expect(a, 8, PAGES - 8);
	MUST(kvmem_region_free, a);
	MUST(kvmem_region_free, b);
	MUST(kvmem_region_free, c);
	MUST(kvmem_source_free, async);
	MUST(kvmem_source_free, callback);
	MUST(kvmem_source_free, memory);
}

/* A VMM that has its VM, memory and slot already, and a page fault handler to try. */
static void own_life(void)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_vm *adopted;
	struct kvmem_source *source;
	struct kvmem_pager *p;
	struct kvmem_dirty *d;
	struct machine m;
	void *memory;

	life_phase(LIFE_CREATE);
	open_vm(&m);
	MUST(kvmem_vm_adopt, kvmem_vm_fd(m.vm), NULL, &adopted);
	memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		life_fail(LIFE_SETUP, "no memory");
	add_guest(&m);
	must_vmm(vmm_set_slot(m.vmm, 1, 0, GPA, BYTES, memory));
	o.bytes = BYTES;
	o.flags = KVMEM_REGION_MAPPING;
	o.mapping = memory;
	o.needs = KVMEM_WANT_DIRTY;
	o.wants = KVMEM_WANT_PAGING;
	MUST(kvmem_region_create, m.vm, &o, &m.ram);
	MUST(kvmem_region_adopt_slot, m.ram, 0, BYTES, GPA, 1, 0);
	MUST(kvmem_source_memory, content, BYTES, &source);
	p = make_pager(0, 1);
	MUST(kvmem_pager_add, p, m.ram, source, 0, 0);
	MUST(kvmem_pager_put, p, m.ram, 0, content, PAGE);
	MUST(kvmem_region_discard, m.ram, 0, PAGE); /* nobody reads events yet */
	MUST(kvmem_region_mark_absent, m.ram, 0, PAGE, KVMEM_ABSENT_ATTACHED);
	MUST(kvmem_pager_start, p);
	d = make_dirty(&m, KVMEM_DIRTY_AUTO);
	MUST(kvmem_dirty_add_vcpu, d, vmm_vcpu_fd(m.vcpu));
	life_phase(LIFE_RUN);
	if (guest(&m, GUEST_VERIFY, 0, PAGES))
		life_fail(LIFE_WRONG, "the guest finds other content");
	track(&m, d);
	life_phase(LIFE_STOP);
	end_dirty(&m, d);
	MUST(kvmem_pager_stop, p, KVMEM_STOP_HAND_BACK);
	MUST(kvmem_pager_free, p);
	MUST(kvmem_source_free, source);
	MUST(kvmem_region_free, m.ram);
	m.ram = NULL;
	MUST(kvmem_vm_free, adopted);
	close_vm(&m);
	munmap(memory, BYTES);
}

/* Memory that grows, in huge pages where they are to be had, kept out of dumps. */
static void grow_life(void)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_caps *caps;
	struct machine m;

	life_phase(LIFE_CREATE);
	MUST(kvmem_caps_probe, NULL, &caps);
	look_at_caps(caps);
	VOID(kvmem_caps_free, caps);
	open_vm(&m);
	o.bytes = LARGE;
	o.reserve = 2 * LARGE;
	o.backing = KVMEM_BACKING_MEMFD;
	o.wants = KVMEM_WANT_THP;
	o.flags = KVMEM_REGION_DONTDUMP | KVMEM_REGION_DONTFORK;
	MUST(kvmem_region_create, m.vm, &o, &m.ram);
	MUST(kvmem_region_attach, m.ram, 0, LARGE, GPA, 1, 0, NULL);
	add_guest(&m);
	make_pages(&m);
	MUST(kvmem_region_grow, m.ram, 2 * LARGE);
	MUST(kvmem_region_attach, m.ram, LARGE, LARGE, GPA + LARGE, 2, 0, NULL);
	CALL(kvmem_region_check_huge, m.ram, 0, 2 * LARGE, GPA);
	life_phase(LIFE_RUN);
	guest(&m, GUEST_FILL, 0, PAGES);
	life_phase(LIFE_STOP);
	MUST(kvmem_region_detach, m.ram, 2);
	MUST(kvmem_region_detach, m.ram, 1);
	close_vm(&m);
}

/* Private memory, where KVM has it: a VM of type KVM_X86_SW_PROTECTED_VM. */
static void private_life(void)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct kvmem_region *r;
	struct kvmem_vm *vm = NULL;

	life_phase(LIFE_CREATE);
	vo.type = 1;
	if (CALL(kvmem_vm_create, &vo, &vm)) {
		life_phase(LIFE_RUN);
		life_phase(LIFE_STOP);
		return;
	}
	o.bytes = BYTES;
	o.needs = KVMEM_WANT_PRIVATE;
	MUST(kvmem_region_create, vm, &o, &r);
	MUST(kvmem_region_attach, r, 0, BYTES, GPA, 1, 0, NULL);
	life_phase(LIFE_RUN);
	MUST(kvmem_region_set_attributes, r, 0, MIB, KVMEM_ATTRIBUTE_PRIVATE);
	MUST(kvmem_region_set_attributes, r, 0, MIB, 0);
	MUST(kvmem_region_discard, r, 0, MIB);
	life_phase(LIFE_STOP);
	MUST(kvmem_region_detach, r, 1);
	MUST(kvmem_region_free, r);
	MUST(kvmem_vm_free, vm);
}

/* ---- a capture ---- */

static int keep_page(void *arg, const struct kvmem_capture_run *run, const void *page)
{
	atomic_fetch_add((atomic_ulong *)arg, run->bytes);
	return page ? 0 : -EIO;
}

static uint64_t take_rest(struct kvmem_capture *capture)
{
	static uint8_t buf[16 * PAGE];
	struct kvmem_capture_run run = { 0 };
	uint64_t sum = 0;

	while (MUST(kvmem_capture_next, capture, buf, sizeof(buf), &run) > 0)
		sum += run.bytes;
	return sum;
}

/*
 * Memory with a pager, memory without one, and a memfd: captured while it is written to and pages are discarded. The
 * capture's userfaultfd is opened in the beginning.
 */
static void capture_life(void)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_capture_stats stats = KVMEM_CAPTURE_STATS_INIT;
	struct kvmem_capture *capture;
	struct kvmem_region *r[3];
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	atomic_ulong written = 0;
	struct kvmem_run run;
	uint64_t rest;

	life_phase(LIFE_CREATE);
	r[0] = make_region(NULL, KVMEM_BACKING_ANONYMOUS, 0);
	r[1] = make_region(NULL, KVMEM_BACKING_MEMFD, 0);
	r[2] = make_region(NULL, KVMEM_BACKING_MEMFD, KVMEM_WANT_PAGING);
	MUST(kvmem_source_memory, content, BYTES, &source);
	pager = make_pager(KVMEM_PAGER_CAPTURE, 1);
	MUST(kvmem_pager_add, pager, r[2], source, 0, 0);
	o.before_write = keep_page;
	o.arg = &written;
	o.threads = 2;
	if (life_how.given) {
		o.flags = KVMEM_CAPTURE_UFFD;
		o.uffd = uffds[uffds_used++];
	}
	MUST(kvmem_capture_create, &o, &capture);
	life_phase(LIFE_RUN);
	MUST(kvmem_pager_start, pager);
	for (unsigned int i = 0; i < 3; i++)
		memset(kvmem_region_base(r[i]), 7, 40 * PAGE);
	MUST(kvmem_capture_check, capture, r[0]);
	MUST(kvmem_capture_start, capture, r, 3);
	for (unsigned int i = 0; i < 3; i++)
		memset(kvmem_region_base(r[i]), 8, 8 * PAGE);
	for (unsigned int i = 0; i < 3; i++)
		MUST(kvmem_region_discard, r[i], 4 * PAGE, 8 * PAGE);
	rest = take_rest(capture);
	MUST(kvmem_capture_get_stats, capture, &stats);
	MUST(kvmem_capture_stop, capture);
	if (rest + written != 3 * BYTES || stats.bytes_left)
		life_fail(LIFE_WRONG, "a page was not captured");
	run = (struct kvmem_run){ .region = r[0], .offset = 20 * PAGE, .bytes = 9 * PAGE };
	written = 0;
	MUST(kvmem_capture_start_runs, capture, r, 3, &run, 1);
	memset(kvmem_region_base(r[0]), 9, 24 * PAGE);
	rest = take_rest(capture);
	MUST(kvmem_capture_stop, capture);
	if (rest + written != 9 * PAGE)
		life_fail(LIFE_WRONG, "a page was not captured, or another one was");
	life_phase(LIFE_STOP);
	MUST(kvmem_pager_stop, pager, KVMEM_STOP_HAND_BACK);
	MUST(kvmem_capture_free, capture);
	MUST(kvmem_pager_free, pager);
	for (unsigned int i = 0; i < 3; i++)
		MUST(kvmem_region_free, r[i]);
	MUST(kvmem_source_free, source);
}

/* A clone: pages of it are discarded, and its template is not touched. */
static void clone_life(void)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	unsigned long nodes[16];
	struct kvmem_region *r;

	o.fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (o.fd < 0 || pwrite(o.fd, content, BYTES, 0) != (ssize_t)BYTES ||
	    fcntl(o.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE))
		life_fail(LIFE_SETUP, "no template");
	life_phase(LIFE_CREATE);
	o.bytes = BYTES;
	o.flags = KVMEM_REGION_CLONE | KVMEM_REGION_DONTDUMP;
	MUST(kvmem_region_create, NULL, &o, &r);
	MUST(kvmem_numa_nodes, nodes, 1024);
	MUST(kvmem_region_set_policy, r, 0, BYTES, KVMEM_POLICY_BIND, nodes, 1024,
	     KVMEM_POLICY_FUTURE);
	life_phase(LIFE_RUN);
	expect(r, 0, 40);
	MUST(kvmem_region_discard, r, 0, 8 * PAGE);
	MUST(kvmem_region_discard, r, 4 * PAGE, 8 * PAGE);
	if (peek(r, 3) || peek(r, 11))
		life_fail(LIFE_WRONG, "a discarded page is not zero");
	life_phase(LIFE_STOP);
	MUST(kvmem_region_free, r);
	close(o.fd);
}

/* ---- writes through a mapping ---- */

static void writes_life(void)
{
	struct kvmem_writes *writes;
	struct kvmem_region *r;
	struct kvmem_run run = { 0 };
	uint64_t next;
	int ret;

	life_phase(LIFE_CREATE);
	r = make_region(NULL, KVMEM_BACKING_MEMFD, 0);
	ret = CALL(kvmem_writes_create, NULL, &writes);
	if (ret != -EOPNOTSUPP) { /* before Linux 6.7 */
		life_check("kvmem_writes_create", ret);
		life_phase(LIFE_RUN);
		MUST(kvmem_writes_add, writes, r);
		memset((char *)kvmem_region_base(r) + 8 * PAGE, 7, PAGE);
		if (MUST(kvmem_writes_take, writes, r, 0, &run, 1, &next) != 1 ||
		    run.offset != 8 * PAGE)
			life_fail(LIFE_WRONG, "a page that was written is not told");
		MUST(kvmem_region_discard, r, 0, 8 * PAGE);
		MUST(kvmem_writes_remove, writes, r);
		life_phase(LIFE_STOP);
		MUST(kvmem_writes_free, writes);
	}
	MUST(kvmem_region_free, r);
}

/* ---- memory of another process ---- */

static struct kvmem_remote_opts remote_opts(const struct kvmem_remote_mapping *map, const int *uffd)
{
	struct kvmem_remote_opts o = KVMEM_REMOTE_OPTS_INIT;

	o.flags = KVMEM_REMOTE_MISSING;
	o.bytes = BYTES;
	o.page_size = PAGE;
	o.mappings = map;
	o.mapping_count = 1;
	o.uffds = uffd;
	o.uffd_count = 1;
	return o;
}

/* Before Linux 6.6 nothing else ends the wait for a page that cannot be filled: the pager asks for this. */
static enum kvmem_fail_action end_it(void *arg, const struct kvmem_fail *fail)
{
	(void)arg;
	(void)fail;
	life_fail(LIFE_POISONED, "a page of another process cannot be filled");
}

static void remote_life(void)
{
	const struct kvmem_remote_mapping map = { .addr = (uintptr_t)theirs, .bytes = BYTES };
	const struct kvmem_remote_mapping other = { .addr = (uintptr_t)joined, .bytes = BYTES };
	const struct kvmem_remote_opts o = remote_opts(&map, &their_uffd);
	const struct kvmem_remote_opts jo = remote_opts(&other, &joined_uffd);
	struct kvmem_pager_opts po = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_source *source;
	struct kvmem_region *r;
	struct kvmem_pager *p;

	if (!open_theirs())
		return;
	life_phase(LIFE_CREATE);
	MUST(kvmem_remote_create, &o, &r);
	po.flags = KVMEM_PAGER_REMOTE;
	po.fail = end_it;
	MUST(kvmem_source_memory, content, BYTES, &source);
	MUST(kvmem_pager_create, &po, &p);
	MUST(kvmem_pager_add, p, r, source, 0, 0);
	MUST(kvmem_remote_join, p, r, &jo);
	MUST(kvmem_remote_record_fd, r);
	MUST(kvmem_pager_start, p);
	life_phase(LIFE_RUN);
	MUST(kvmem_remote_check, r);
	if (memcmp(theirs + 8 * PAGE, content + 8 * PAGE, 8 * PAGE) != 0)
		life_fail(LIFE_WRONG, "content of another process is not the source's");
	if (madvise(theirs, 4 * PAGE, MADV_DONTNEED) || theirs[PAGE])
		life_fail(LIFE_WRONG, "what was removed there is not zero");
	life_phase(LIFE_STOP);
	MUST(kvmem_pager_stop, p, KVMEM_STOP_HAND_BACK);
	MUST(kvmem_pager_free, p);
	MUST(kvmem_region_free, r);
	MUST(kvmem_source_free, source);
}

const struct life lives[] = {
	{ "guest_memfd", guest_memfd_life },
	{ "memfd", memfd_life },
	{ "anonymous", anonymous_life },
	{ "paged_memfd", paged_memfd_life },
	{ "paged_anonymous", paged_anonymous_life },
	{ "event_loop", event_loop_life },
	{ "own", own_life },
	{ "grow", grow_life },
	{ "private", private_life },
	{ "clone", clone_life },
	{ "capture", capture_life },
	{ "writes", writes_life },
	{ "remote", remote_life },
};

const size_t life_count = sizeof(lives) / sizeof(lives[0]);
