/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/*
 * lifecycle: the whole way of a guest's memory. Make it, place it, fill it from an image, run a
 * guest that checks every page and then writes to many while the host learns which; save it, and
 * start a second guest at once whose memory comes in as it touches it. Each step checks itself.
 */
#include "crc32c.h"
#include "example.h"
#include "lifecycle.h"
#include "vmm.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_GPA	     (UINT64_C(4) << 30)
#define TABLE_GPA    (UINT64_C(2) << 30) /* where the guest hands its sums over */
#define SLOT_BOOT    0
#define SLOT_TABLE   1
#define FIRST_SLOT   2 /* the library's */
#define RING_ENTRIES 1024
#define WRITE_ROUNDS 4
#define PAGE	     LIFECYCLE_PAGE
#define WAIT_NS	     INT64_C(60000000000)

struct machine {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	struct kvmem_dirty *dirty; /* NULL: not tracked */
	struct vmm *vmm;
	struct vmm_vcpu *vcpus[GUEST_MAX_VCPUS];
	uint32_t *table;
	_Atomic uint64_t hello_ns, first_ns, rounds;
};

static struct lifecycle_options opt;
static struct lifecycle_results res;

static void must_vmm(int ret)
{
	if (ret) {
		fprintf(stderr, "%s\n", vmm_error());
		exit(EXIT_FAILURE);
	}
}

/* Room for a sum of each page, in whole pages. */
static uint64_t table_bytes(void)
{
	return (opt.bytes / PAGE * sizeof(uint32_t) + PAGE - 1) / PAGE * PAGE;
}

static void *must_alloc(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		perror("mmap");
		exit(EXIT_FAILURE);
	}
	return p;
}

/* 1, 2: a VM, what it can do, and memory for it. */

static struct kvmem_vm *make_vm(void)
{
	struct kvmem_vm_opts opts = KVMEM_VM_OPTS_INIT;

	opts.first_slot = FIRST_SLOT;
	return must_have_vm(&opts);
}

static void print_caps(struct kvmem_vm *vm)
{
	const struct kvmem_caps *caps = kvmem_vm_caps(vm);
	int len = (int)must(kvmem_caps_format(caps, KVMEM_CAPS_TEXT, NULL, 0), "caps");
	char *text = must_alloc((uint64_t)len + 1);

	must(kvmem_caps_format(caps, KVMEM_CAPS_TEXT, text, (size_t)len + 1), "caps");
	say("%s\n", text);
	munmap(text, (size_t)len + 1);
}

static struct kvmem_region *make_ram(struct kvmem_vm *vm, uint64_t wants, uint64_t needs,
				     uint32_t slot_form, struct kvmem_plan *plan)
{
	struct kvmem_region_opts opts = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;

	opts.bytes = opt.bytes;
	opts.wants = wants;
	opts.needs = needs;
	opts.backing = opt.backing;
	opts.slot_form = slot_form;
	if (kvmem_region_plan(vm, &opts, plan) == -EOPNOTSUPP && (opt.backing || slot_form)) {
		say("not as asked for: %s\n", kvmem_error_detail());
		opts.backing = KVMEM_BACKING_AUTO;
		opts.slot_form = KVMEM_SLOT_AUTO;
	}
	must(kvmem_region_create(vm, &opts, &ram), "kvmem_region_create");
	must(kvmem_region_get_plan(ram, plan), "kvmem_region_get_plan");
	say("plan: %s, %s slot, %llu MiB in pages of %llu KiB\n%s\n", backing_name(plan->backing),
	    plan->slot_form == KVMEM_SLOT_DIRECT ? "direct" : "HVA",
	    (unsigned long long)(plan->bytes / MIB), (unsigned long long)(plan->page_size / 1024),
	    plan->reasons);
	return ram;
}

/* 3: placed on all nodes in turn. */

static void place(struct kvmem_region *ram)
{
	unsigned long nodes[LIFECYCLE_NODES / (8 * sizeof(unsigned long))];

	must(kvmem_numa_nodes(nodes, LIFECYCLE_NODES), "kvmem_numa_nodes");
	res.policy_emulated = must(kvmem_region_set_policy(ram, 0, opt.bytes,
							   KVMEM_POLICY_INTERLEAVE, nodes,
							   LIFECYCLE_NODES, 0),
				   "set_policy") == 1;
}

static void print_placement(struct kvmem_region *ram)
{
	struct kvmem_placement where = KVMEM_PLACEMENT_INIT;

	where.nodes = res.node_pages;
	where.node_count = LIFECYCLE_NODES;
	must(kvmem_region_placement(ram, 0, opt.bytes, &where), "kvmem_region_placement");
	res.misplaced = where.misplaced;
	for (unsigned int n = 0; n < where.node_count; n++)
		if (res.node_pages[n])
			say("node %u: %llu pages\n", n, (unsigned long long)res.node_pages[n]);
}

/* 4: filled from the image. */

static void fill(struct kvmem_region *ram, int image_fd)
{
	struct kvmem_populate_opts opts = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_source *image;

	if (!opt.json && isatty(STDOUT_FILENO))
		opts.progress = draw_progress;
	must(kvmem_source_file(image_fd, 0, 0, 0, &image), "kvmem_source_file");
	must(kvmem_populate(ram, 0, image, &opts, &res.fill), "kvmem_populate");
	must(kvmem_source_free(image), "kvmem_source_free");
	say("filled by %s, %.0f MiB/s\n", kvmem_fill_method_name(res.fill.method),
	    mib_per_s(res.image_bytes, res.fill.elapsed_ns));
}

/* 5: a guest runs on it. */

static int on_event(void *arg, struct vmm_vcpu *vcpu, uint32_t event)
{
	struct machine *m = arg;
	uint64_t none = 0;

	(void)vcpu;
	if (event == GUEST_EVENT_HELLO)
		atomic_compare_exchange_strong(&m->hello_ns, &none, now_ns());
	else if (event == GUEST_EVENT_FIRST)
		atomic_compare_exchange_strong(&m->first_ns, &none, now_ns());
	else if (event == GUEST_EVENT_ROUND)
		m->rounds++;
	return 0;
}

static int on_ring_full(void *arg, struct vmm_vcpu *vcpu)
{
	return kvmem_dirty_ring_full(((struct machine *)arg)->dirty, vmm_vcpu_fd(vcpu));
}

/* Before the first vCPU. */
static void track(struct machine *m)
{
	struct kvmem_dirty_opts opts = KVMEM_DIRTY_OPTS_INIT;

	opts.mode = opt.dirty;
	opts.ring_entries = opt.dirty == KVMEM_DIRTY_BITMAP ? 0 : RING_ENTRIES;
	must(kvmem_dirty_create(m->vm, &opts, &m->dirty), "kvmem_dirty_create");
}

static void attach(struct machine *m)
{
	struct vmm_ops ops = { .arg = m, .event = on_event, .ring_full = on_ring_full };

	must(kvmem_region_attach(m->ram, 0, opt.bytes, RAM_GPA, KVMEM_SLOT_ANY, 0, NULL), "attach");
	must_vmm(vmm_create(kvmem_vm_fd(m->vm), SLOT_BOOT, &ops, &m->vmm));
	m->table = must_alloc(table_bytes());
	must_vmm(vmm_map(m->vmm, RAM_GPA, opt.bytes));
	must_vmm(vmm_set_slot(m->vmm, SLOT_TABLE, 0, TABLE_GPA, table_bytes(), m->table));
	for (uint32_t i = 0; i < opt.vcpus; i++) {
		must_vmm(vmm_vcpu_create(m->vmm, i, &m->vcpus[i]));
		if (m->dirty)
			must(kvmem_dirty_add_vcpu(m->dirty, vmm_vcpu_fd(m->vcpus[i])), "add_vcpu");
	}
}

/* The same command for all vCPUs, each on its own share of the pages. */
static void start_all(struct machine *m, const struct guest_mailbox *command)
{
	uint64_t pages = opt.bytes / PAGE, from, to;

	for (uint32_t i = 0; i < opt.vcpus; i++) {
		struct guest_mailbox *box = vmm_mailbox(m->vcpus[i]);

		from = pages * i / opt.vcpus;
		to = pages * (i + 1) / opt.vcpus;
		*box = *command;
		box->page = PAGE;
		box->gpa = RAM_GPA + from * PAGE;
		box->bytes = (to - from) * PAGE;
		box->table = TABLE_GPA + from * sizeof(uint32_t);
		box->seed = i + 1;
		box->count = (to - from) / 4;
		must_vmm(vmm_start(m->vcpus[i]));
	}
}

static bool any_running(struct machine *m)
{
	for (uint32_t i = 0; i < opt.vcpus; i++)
		if (vmm_running(m->vcpus[i]))
			return true;
	return false;
}

static void wait_all(struct machine *m)
{
	for (uint32_t i = 0; i < opt.vcpus; i++)
		must_vmm(vmm_wait(m->vcpus[i]));
}

/* Returns the number of pages whose sum is another than the guest's. */
static uint64_t guest_sums(struct machine *m, uint32_t flags, const uint32_t *expected)
{
	uint64_t wrong = 0;

	start_all(m, &(struct guest_mailbox){ .command = GUEST_CRC, .flags = flags });
	wait_all(m);
	for (uint64_t i = 0; i < opt.bytes / PAGE; i++)
		wrong += m->table[i] != expected[i];
	return wrong;
}

/* Returns the number of pages. */
static int64_t harvest(struct machine *m, unsigned char *reported)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;
	int64_t pages = must(kvmem_dirty_harvest(m->dirty, &batch), "kvmem_dirty_harvest");

	must(kvmem_dirty_commit(m->dirty, batch), "kvmem_dirty_commit");
	while (must(kvmem_batch_next(batch, &run), "kvmem_batch_next")) /* here a VMM would send */
		memset(reported + run.offset / PAGE, 1, run.bytes / PAGE);
	kvmem_batch_free(batch);
	return pages;
}

static void start_writes(struct machine *m)
{
	start_all(m, &(struct guest_mailbox){ .command = GUEST_WRITE,
					      .flags = GUEST_RANDOM | GUEST_TELL_ROUND,
					      .rounds = WRITE_ROUNDS });
}

static void track_writes(struct machine *m, unsigned char *reported)
{
	const struct timespec nap = { .tv_nsec = 1000000 };

	must(kvmem_dirty_start(m->dirty), "kvmem_dirty_start");
	start_writes(m);
	/* Nobody harvests during the first round, so the rings fill and the vCPUs empty them. */
	while (m->rounds < opt.vcpus && any_running(m))
		nanosleep(&nap, NULL);
	while (any_running(m)) {
		harvest(m, reported);
		nanosleep(&nap, NULL);
	}
	wait_all(m);
	while (harvest(m, reported)) /* all vCPUs have left KVM_RUN: what is left is all there is */
		;
	must(kvmem_dirty_get_stats(m->dirty, &res.dirty), "kvmem_dirty_get_stats");
	must(kvmem_dirty_stop(m->dirty), "kvmem_dirty_stop");
}

/* 6: was every change reported, and is every write that the guest made by our arithmetic there? */

static uint32_t *sums_of_memory(const unsigned char *base)
{
	uint32_t *sums = must_alloc(table_bytes());

	for (uint64_t i = 0; i < opt.bytes / PAGE; i++)
		sums[i] = crc32c(0, base + i * PAGE, PAGE);
	return sums;
}

static void check_reports(const uint32_t *before, const uint32_t *after,
			  const unsigned char *reported)
{
	for (uint64_t i = 0; i < opt.bytes / PAGE; i++) {
		bool changed = before[i] != after[i];

		res.pages_changed += changed;
		res.pages_reported += reported[i];
		res.pages_missed += changed && !reported[i];
		res.pages_unchanged += reported[i] && !changed;
	}
}

static void check_writes(const unsigned char *reported)
{
	for (uint32_t v = 0; v < opt.vcpus; v++) {
		uint64_t from = opt.bytes / PAGE * v / opt.vcpus, state = v + 1;
		uint64_t pages = opt.bytes / PAGE * (v + 1) / opt.vcpus - from;

		for (uint64_t i = 0; i < pages / 4 * WRITE_ROUNDS; i++)
			res.writes_missed += !reported[from + guest_write_next(&state, 0, pages,
									       PAGE, GUEST_RANDOM)
								      .page];
	}
}

/* 7: saved, and come back to life page by page. */

static struct kvmem_pager *serve(struct kvmem_region *ram, struct kvmem_source *saved)
{
	struct kvmem_pager_opts opts = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_pager *pager;

	opts.flags = KVMEM_PAGER_BACKGROUND;
	must(kvmem_pager_create(&opts, &pager), "kvmem_pager_create");
	must(kvmem_pager_add(pager, ram, saved, 0, 0), "kvmem_pager_add");
	must(kvmem_pager_start(pager), "kvmem_pager_start");
	return pager;
}

static void close_machine(struct machine *m)
{
	must(kvmem_dirty_free(m->dirty), "kvmem_dirty_free");
	vmm_destroy(m->vmm);
	munmap(m->table, table_bytes());
	must(kvmem_region_free(m->ram), "kvmem_region_free");
	must(kvmem_vm_free(m->vm), "kvmem_vm_free");
}

static void second_life(int saved_fd, const uint32_t *expected)
{
	uint64_t start = now_ns();
	struct machine m = { .vm = make_vm() };
	struct kvmem_source *saved;
	struct kvmem_pager *pager;

	m.ram = make_ram(m.vm, 0, KVMEM_WANT_PAGING, KVMEM_SLOT_AUTO, &res.second_plan);
	must(kvmem_source_file(saved_fd, 0, 0, 0, &saved), "kvmem_source_file");
	pager = serve(m.ram, saved);
	attach(&m);
	res.second_wrong = guest_sums(&m, GUEST_RANDOM | GUEST_TELL_FIRST, expected);
	res.second_ns = now_ns() - start;
	res.hello_ns = m.hello_ns - start;
	res.first_ns = m.first_ns - start;
	must(kvmem_pager_wait(pager, WAIT_NS), "kvmem_pager_wait");
	must(kvmem_pager_get_stats(pager, &res.pager), "kvmem_pager_get_stats");
	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL), "kvmem_pager_stop");
	must(kvmem_pager_free(pager), "kvmem_pager_free");
	must(kvmem_source_free(saved), "kvmem_source_free");
	close_machine(&m);
}

int main(int argc, char **argv)
{
	struct machine m = { 0 };
	uint32_t *before, *after;
	unsigned char *reported;
	int image_fd, saved_fd;
	bool direct;

	lifecycle_options(argc, argv, &opt);
	lifecycle_results_init(&res);
	crc32c_init();
	m.vm = make_vm();
	image_fd = open_image(&opt, &res);
	print_caps(m.vm);
	/* A direct slot has no dirty log: who asks for one gives tracking up, and the plan says so. */
	direct = opt.slot_form == KVMEM_SLOT_DIRECT;
	m.ram = make_ram(m.vm, direct ? KVMEM_WANT_DIRTY : 0, direct ? 0 : KVMEM_WANT_DIRTY,
			 opt.slot_form, &res.plan);
	place(m.ram);
	fill(m.ram, image_fd);
	print_placement(m.ram);

	if (!direct)
		track(&m);
	attach(&m);
	before = must_alloc(table_bytes());
	sums_of_file(image_fd, before, opt.bytes / PAGE);
	res.first_wrong = guest_sums(&m, 0, before);
	say("the guest's sums: %llu of %llu pages differ from the image\n",
	    (unsigned long long)res.first_wrong, (unsigned long long)(opt.bytes / PAGE));

	reported = must_alloc(opt.bytes / PAGE);
	if (m.dirty) {
		track_writes(&m, reported);
	} else {
		start_writes(&m);
		wait_all(&m);
		memset(reported, 1, opt.bytes / PAGE); /* untracked: any page may be dirty */
	}
	after = sums_of_memory(kvmem_region_base(m.ram));
	check_reports(before, after, reported);
	check_writes(reported);

	saved_fd = save_memory(&opt, kvmem_region_base(m.ram));
	close_machine(&m);
	second_life(saved_fd, after);
	close(saved_fd);
	close(image_fd);
	return lifecycle_report(&opt, &res);
}
