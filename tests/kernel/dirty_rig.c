// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "dirty_rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int on_ring_full(void *arg, struct vmm_vcpu *vcpu)
{
	struct rig *rig = arg;

	atomic_fetch_add(&rig->full, 1);
	return kvmem_dirty_ring_full(rig->dirty, vmm_vcpu_fd(vcpu));
}

bool rig_has_ring(void)
{
	struct kvmem_vm *vm;
	struct kvmem_dirty *d;
	struct kvmem_dirty_opts o = KVMEM_DIRTY_OPTS_INIT;
	int r;

	o.mode = KVMEM_DIRTY_RING;
	if (kvmem_vm_create(NULL, &vm))
		return false;
	r = kvmem_dirty_create(vm, &o, &d);
	if (!r)
		kvmem_dirty_free(d);
	kvmem_vm_free(vm);
	return !r;
}

/* False: there is no guest_memfd that can be tracked. */
static bool open_region(struct rig *rig, const struct rig_opts *o)
{
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;

	ro.bytes = rig->bytes;
	ro.needs = KVMEM_WANT_DIRTY;
	ro.backing = o->backing;
	ro.mapping = o->mapping;
	ro.fd = o->fd;
	ro.reserve = o->reserve;
	ro.flags = o->mapping ? KVMEM_REGION_MAPPING : 0;
	if (o->fd)
		ro.flags |= o->clone ? KVMEM_REGION_CLONE : KVMEM_REGION_FD;
	if (o->backing == KVMEM_BACKING_GUEST_MEMFD &&
	    kvmem_region_plan(rig->vm, &ro, &plan) == -EOPNOTSUPP) {
		harness_skip("guest-memfd", "%s", kvmem_error_detail());
		return false;
	}
	ck_ok(kvmem_region_create(rig->vm, &ro, &rig->ram));
	rig->base = kvmem_region_base(rig->ram);
	if (o->own_slot) {
		ck_assert_msg(!vmm_set_slot(rig->vmm, 5, 0, RIG_GPA, rig->bytes, rig->base), "%s",
			      vmm_error());
		ck_ok(kvmem_region_adopt_slot(rig->ram, 0, rig->bytes, RIG_GPA, 5, 0));
	} else {
		ck_ok(kvmem_region_attach(rig->ram, 0, rig->bytes, RIG_GPA, KVMEM_SLOT_ANY, 0,
					  NULL));
	}
	rig->copy = calloc(1, o->reserve ? o->reserve : rig->bytes);
	rig->seen = calloc(1, (o->reserve ? o->reserve : rig->bytes) / RIG_PAGE);
	ck_assert(rig->copy && rig->seen);
	return true;
}

static void open_tracker(struct rig *rig, const struct rig_opts *o)
{
	struct kvmem_dirty_opts d = KVMEM_DIRTY_OPTS_INIT;

	d.mode = o->mode;
	d.ring_entries = o->ring_entries;
	d.flags = o->flags;
	d.reap_min_ns = d.reap_max_ns = o->reap_ns;
	ck_ok(kvmem_dirty_create(rig->vm, &d, &rig->dirty));
}

bool rig_open(struct rig *rig, const struct rig_opts *o)
{
	struct kvmem_vm_opts vo = KVMEM_VM_OPTS_INIT;
	struct vmm_ops ops = { .arg = rig, .ring_full = on_ring_full };

	memset(rig, 0, sizeof(*rig));
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	if (o->mode == KVMEM_DIRTY_RING && !rig_has_ring()) {
		harness_skip("dirty-ring", "%s", kvmem_error_detail());
		return false;
	}
	rig->bytes = o->bytes ? o->bytes : 16u << 20;
	rig->count = o->vcpus ? o->vcpus : 1;
	vo.first_slot = 1;
	ck_ok(kvmem_vm_create(&vo, &rig->vm));
	open_tracker(rig, o);
	ck_assert_msg(!vmm_create(kvmem_vm_fd(rig->vm), 0, &ops, &rig->vmm), "%s", vmm_error());
	if (!open_region(rig, o)) {
		rig_close(rig);
		return false;
	}
	ck_assert_msg(!vmm_map(rig->vmm, RIG_GPA, o->reserve ? o->reserve : rig->bytes), "%s",
		      vmm_error());
	for (unsigned int i = 0; i < rig->count; i++) {
		ck_assert_msg(!vmm_vcpu_create(rig->vmm, i, &rig->vcpus[i]), "%s", vmm_error());
		ck_ok(kvmem_dirty_add_vcpu(rig->dirty, vmm_vcpu_fd(rig->vcpus[i])));
	}
	if (!o->not_started)
		ck_ok(kvmem_dirty_start(rig->dirty));
	return true;
}

void rig_close(struct rig *rig)
{
	kvmem_dirty_stop(rig->dirty);
	ck_ok(kvmem_dirty_free(rig->dirty));
	vmm_destroy(rig->vmm);
	ck_ok(kvmem_region_free(rig->ram));
	ck_ok(kvmem_vm_free(rig->vm));
	free(rig->copy);
	free(rig->seen);
}

void rig_write(struct rig *rig, unsigned int index, uint64_t rounds, uint64_t count, bool random)
{
	struct guest_mailbox *box = vmm_mailbox(rig->vcpus[index]);
	uint64_t share = rig->bytes / rig->count;

	*box = (struct guest_mailbox){
		.command = GUEST_WRITE,
		.flags = random ? GUEST_RANDOM : 0,
		.gpa = RIG_GPA + index * share,
		.bytes = share,
		.page = RIG_PAGE,
		.seed = 1000 + index,
		.rounds = rounds,
		.count = count,
	};
	ck_assert_msg(!vmm_start(rig->vcpus[index]), "%s", vmm_error());
}

void rig_wait(struct rig *rig)
{
	for (unsigned int i = 0; i < rig->count; i++)
		ck_assert_msg(!vmm_wait(rig->vcpus[i]), "%s", vmm_error());
}

bool rig_running(struct rig *rig)
{
	for (unsigned int i = 0; i < rig->count; i++)
		if (vmm_running(rig->vcpus[i]))
			return true;
	return false;
}

static void copy_page(struct rig *rig, uint64_t at)
{
	rig->seen[at / RIG_PAGE] = 1;
	rig->reported++;
	if (!memcmp(rig->copy + at, rig->base + at, RIG_PAGE))
		rig->same++;
	memcpy(rig->copy + at, rig->base + at, RIG_PAGE);
}

uint64_t rig_sync(struct rig *rig)
{
	struct kvmem_batch *batch;
	struct kvmem_run run;
	uint64_t pages, sum = 0, last = 0;
	int64_t r = kvmem_dirty_harvest(rig->dirty, &batch);

	ck_ok(r);
	pages = kvmem_batch_pages(batch);
	ck_assert_uint_eq(pages, (uint64_t)r);
	ck_ok(kvmem_dirty_commit(rig->dirty, batch));
	while (kvmem_batch_next(batch, &run) == 1) {
		ck_assert_msg(!sum || run.offset > last, "runs not in order or not merged");
		last = run.offset + run.bytes;
		sum += run.bytes / RIG_PAGE;
		for (uint64_t at = run.offset; at < last; at += RIG_PAGE)
			copy_page(rig, at);
	}
	ck_assert_uint_eq(sum, pages);
	kvmem_batch_free(batch);
	return pages;
}

/*
 * Pages that nobody has reported before. Pages in doubt come with each batch where the kernel has no
 * way to protect them again (anonymous memory before Linux 6.7).
 */
static uint64_t rig_sync_new(struct rig *rig)
{
	struct kvmem_dirty_stats before = KVMEM_DIRTY_STATS_INIT, after = before;
	uint64_t pages, again;

	ck_ok(kvmem_dirty_get_stats(rig->dirty, &before));
	pages = rig_sync(rig);
	ck_ok(kvmem_dirty_get_stats(rig->dirty, &after));
	again = after.pages_kept - before.pages_kept;
	return pages > again ? pages - again : 0;
}

void rig_follow(struct rig *rig)
{
	while (rig_running(rig))
		rig_sync(rig);
	rig_wait(rig);
	while (rig_sync_new(rig))
		;
}

void rig_forget(struct rig *rig)
{
	memset(rig->seen, 0, rig->bytes / RIG_PAGE);
	rig->reported = rig->same = 0;
}

uint64_t rig_lost(const struct rig *rig)
{
	uint64_t lost = 0;

	for (uint64_t at = 0; at < rig->bytes; at += RIG_PAGE)
		lost += !!memcmp(rig->copy + at, rig->base + at, RIG_PAGE);
	return lost;
}

uint64_t rig_seen(const struct rig *rig)
{
	uint64_t seen = 0;

	for (uint64_t i = 0; i < rig->bytes / RIG_PAGE; i++)
		seen += rig->seen[i];
	return seen;
}
