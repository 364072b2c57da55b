// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The bitmap mode: the kernel keeps a log per slot. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <inttypes.h>

#include "base/uapi/kvm.h"

#define INITIALLY_SET ((uint64_t)KVM_DIRTY_LOG_INITIALLY_SET)
#define MANUAL	      ((uint64_t)KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)

/*
 * A clear costs a call and a flush of the vCPUs' TLBs, so clean words in between are cleared along;
 * but the kernel holds its MMU lock for one range, so no more than 1 GiB of guest at once.
 */
#define CLEAR_GAP_WORDS 512u
#define CLEAR_MAX_WORDS 4096u

static int64_t set_manual(struct kvmem_dirty *d, uint64_t bits)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { bits } };

	return km_sys_ioctl(d->vm->fd, KVM_ENABLE_CAP, &cap);
}

/*
 * INITIALLY_SET makes a new log report every page, and spares the protection of all pages when
 * logging begins: so it is used where the first harvest is to be everything, and only there. What
 * the VMM has on stays on.
 */
int km_dirty_log_enable(struct kvmem_dirty *d)
{
	uint64_t bits = d->offered & MANUAL;
	int64_t r;

	if (d->flags & KVMEM_DIRTY_FIRST_ALL)
		bits |= d->offered & INITIALLY_SET;
	bits |= d->vm->manual;
	d->manual = d->vm->manual;
	if (!d->offered || bits == d->manual)
		return 0;
	r = set_manual(d, bits);
	if (r < 0)
		return km_fail((int)-r, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 0x%" PRIx64 ": %m",
			       bits);
	d->manual = bits;
	return 0;
}

/* Back to what the VMM has said that it had. */
void km_dirty_log_disable(struct kvmem_dirty *d)
{
	if (d->manual != d->vm->manual)
		set_manual(d, d->vm->manual);
	d->manual = d->vm->manual;
}

static int get_log(struct kvmem_dirty *d, uint32_t id, struct km_dirty_slot *s)
{
	struct kvm_dirty_log log = { .slot = id, .dirty_bitmap = s->log };
	int64_t r = km_sys_ioctl(d->vm->fd, KVM_GET_DIRTY_LOG, &log);

	if (r < 0)
		return km_fail(
			r == -ENOMEM ? ENOMEM : EIO,
			"KVM_GET_DIRTY_LOG of slot %" PRIu32 ": error %d%s", id, (int)-r,
			r == -ENOENT
				? ": the slot is not logged any more: who has set it anew or deleted it "
				  "calls kvmem_region_adopt_slot() again, or kvmem_region_detach()"
				: "");
	return 0;
}

static int clear_range(struct kvmem_dirty *d, uint32_t id, struct km_dirty_slot *s, uint64_t word,
		       uint64_t end)
{
	uint64_t last = end * 64 < s->ring.pages ? end * 64 : s->ring.pages;
	struct kvm_clear_dirty_log clear = {
		.slot = id,
		.num_pages = (uint32_t)(last - word * 64),
		.first_page = word * 64,
		.dirty_bitmap = s->log + word,
	};
	uint64_t start = km_sys_now_ns();
	int64_t r = km_sys_ioctl(d->vm->fd, KVM_CLEAR_DIRTY_LOG, &clear);

	km_count_shared(&d->stats.resets, 1);
	km_count_shared(&d->stats.reset_ns, km_sys_now_ns() - start);
	if (r < 0)
		return km_fail(EIO,
			       "KVM_CLEAR_DIRTY_LOG of slot %" PRIu32 ", pages %" PRIu64
			       " to %" PRIu64 ": error %d: the batch stays uncommitted, try again",
			       id, word * 64, last, (int)-r);
	return 0;
}

static int clear_slot(struct kvmem_dirty *d, uint32_t id, struct km_dirty_slot *s)
{
	uint64_t words = (s->ring.pages + 63) / 64, start, end;
	int r = 0;

	for (uint64_t w = 0; w < words && !r; w++) {
		if (!s->log[w])
			continue;
		start = w;
		end = w + 1;
		while (++w < words && w - end < CLEAR_GAP_WORDS && w - start < CLEAR_MAX_WORDS)
			if (s->log[w])
				end = w + 1;
		w = end - 1;
		r = clear_range(d, id, s, start, end);
	}
	if (!r)
		s->fetched = false;
	return r;
}

static int fetch(struct kvmem_dirty *d, uint32_t id, struct km_dirty_slot *s, bool shared)
{
	uint64_t n;
	int r = s->fetched && d->clears ? clear_slot(d, id, s) : 0;

	if (!r)
		r = get_log(d, id, s);
	if (r)
		return r;
	n = shared ? km_dmap_or_bits_shared(&s->dr->pending, s->ring.first, s->log, s->ring.pages)
		   : km_dmap_or_bits(&s->dr->of[d->takes]->batch, s->ring.first, s->log,
				     s->ring.pages);
	s->fetched = n;
	km_count_shared(&d->stats.pages, n);
	return 0;
}

int km_dirty_log_fetch(struct kvmem_dirty *d, bool shared)
{
	int r = 0;

	for (size_t i = 0; i < d->vm->slot_count && !r; i++)
		if (d->vm->slots[i]->tracked)
			r = fetch(d, d->vm->slots[i]->id, d->vm->slots[i]->tracked, shared);
	return r;
}

/* Where GET_DIRTY_LOG has cleared the log itself there is nothing to do. */
int km_dirty_log_clear(struct kvmem_dirty *d)
{
	int r = 0;

	for (size_t i = 0; i < d->vm->slot_count && !r; i++) {
		struct km_slot *slot = d->vm->slots[i];
		struct km_dirty_slot *s = slot->tracked;

		if (s && s->fetched && d->clears)
			r = clear_slot(d, slot->id, s);
	}
	return r;
}

static bool all_set(const struct km_dirty_slot *s)
{
	uint64_t n = 0;

	for (uint64_t w = 0; w < (s->ring.pages + 63) / 64; w++)
		n += (uint64_t)__builtin_popcountll(s->log[w]);
	return n == s->ring.pages;
}

/*
 * Logging has just begun. Where the VMM has INITIALLY_SET on, every page reads as written: clear
 * that, so that the first harvest is what was written since.
 */
int km_dirty_log_settle(struct kvmem_dirty *d)
{
	int r = 0;

	if (d->flags & KVMEM_DIRTY_FIRST_ALL || !d->clears ||
	    (d->vm->manual_known && !(d->manual & INITIALLY_SET)))
		return 0;
	for (size_t i = 0; i < d->vm->slot_count && !r; i++) {
		struct km_slot *slot = d->vm->slots[i];
		struct km_dirty_slot *s = slot->tracked;

		if (!s)
			continue;
		r = get_log(d, slot->id, s);
		if (!r && all_set(s))
			r = clear_slot(d, slot->id, s);
	}
	return r;
}
