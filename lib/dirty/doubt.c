// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What a reset may have left unprotected.
 *
 * The kernel counts entries as reset one by one, joins neighbouring pages to runs of 64, and
 * protects a run when the next entry does not belong to it. Between the last count and the last
 * protection it looks for interruptions (signals, also those that cannot be blocked: SIGSTOP,
 * ptrace, the freezer, completions of io_uring) and returns when there is one. So after every
 * return, with whatever count, the last run before the point where each ring stands is in doubt,
 * and nothing else is. Its pages are protected again at once. Where that is not possible now they
 * are written down, and each harvest tries again and reports them until it works, or until KVM logs
 * a write to them, which proves that they were protected.
 */
#include "dirty/dirty_internal.h"

static void drop(struct kvmem_dirty *d, size_t i)
{
	d->doubts[i] = d->doubts[--d->doubt_count];
}

static void suspect(struct kvmem_dirty *d, struct km_dirty_slot *s)
{
	s->suspect = true;
	atomic_store(&d->suspects, true);
}

/* More than there is room for: the slot is to be repaired whole. */
static void write_down(struct kvmem_dirty *d, uint32_t slot, struct km_dirty_slot *s, uint64_t word,
		       uint64_t mask)
{
	for (size_t i = 0; i < d->doubt_count; i++) {
		struct km_doubt *q = &d->doubts[i];

		if (q->dr == s->dr && q->word == word && q->slot == slot) {
			q->mask |= mask;
			q->old &= ~mask;
			return;
		}
	}
	if (d->doubt_count == KM_DOUBTS)
		suspect(d, s);
	else
		d->doubts[d->doubt_count++] = (struct km_doubt){ s->dr, slot, word, mask, 0 };
}

static void doubt_ours(struct kvmem_dirty *d, const struct km_ring_run *run,
		       struct km_dirty_slot *s)
{
	uint64_t mask = run->mask, page = s->ring.first + run->first;

	if (run->first >= s->ring.pages)
		return;
	if (s->ring.pages - run->first < 64)
		mask &= ~(~0ull << (s->ring.pages - run->first));
	if (!mask)
		return;
	if (km_dirty_protect(d, s->dr->region, page, mask)) {
		km_count_shared(&d->stats.pages_protected, (uint64_t)__builtin_popcountll(mask));
		return;
	}
	write_down(d, run->slot, s, page / 64, mask << (page % 64));
	if (page % 64 && mask >> (64 - page % 64))
		write_down(d, run->slot, s, page / 64 + 1, mask >> (64 - page % 64));
}

/* Pages that we cannot reach: the VMM is told. */
static void doubt_foreign(struct kvmem_dirty *d, const struct km_ring_run *run)
{
	struct km_callback cb;

	if (!d->foreign)
		return;
	km_callback_enter(&cb, "kvmem_dirty_opts.foreign", d, d->vm);
	for (uint64_t left = run->mask; left; left &= left - 1)
		d->foreign(d->arg, run->slot, run->first + (uint64_t)__builtin_ctzll(left),
			   KVMEM_FOREIGN_UNSURE);
	km_callback_leave(&cb);
}

void km_doubt_run(struct kvmem_dirty *d, const struct km_ring_run *run)
{
	struct km_slot *slot;

	if (!run->mask)
		return;
	slot = km_slot_find(d->vm, run->slot);
	if (!slot)
		doubt_foreign(d, run);
	else if (slot->tracked)
		doubt_ours(d, run, slot->tracked);
}

void km_doubt_all(struct kvmem_dirty *d)
{
	for (size_t i = 0; i < d->vm->slot_count; i++)
		if (d->vm->slots[i]->tracked)
			suspect(d, d->vm->slots[i]->tracked);
}

uint64_t km_doubt_pages(const struct kvmem_dirty *d)
{
	uint64_t n = 0;

	for (size_t i = 0; i < d->doubt_count; i++)
		n += (uint64_t)__builtin_popcountll(d->doubts[i].mask);
	return n;
}

static bool protect_again(struct kvmem_dirty *d, const struct km_doubt *q)
{
	if (!km_dirty_protect(d, q->dr->region, q->word * 64, q->mask))
		return false;
	km_count_shared(&d->stats.pages_protected, (uint64_t)__builtin_popcountll(q->mask));
	return true;
}

void km_doubt_begin(struct kvmem_dirty *d)
{
	if (!d->doubt_count)
		return;
	pthread_rwlock_wrlock(&d->mark_lock);
	for (size_t i = 0; i < d->doubt_count; i++)
		d->doubts[i].old = d->doubts[i].mask;
	pthread_rwlock_unlock(&d->mark_lock);
}

/* What the rings held of the old ones, all that the batch has now, is marked since, and goes through another
 * reset. */
static void drop_logged(struct kvmem_dirty *d)
{
	for (size_t i = d->doubt_count; i--;) {
		struct km_doubt *q = &d->doubts[i];

		q->mask &= ~(q->dr->of[d->takes]->batch.l0[q->word] & q->old);
		if (!q->mask)
			drop(d, i);
	}
}

void km_doubt_report(struct kvmem_dirty *d, bool shared)
{
	if (!d->doubt_count)
		return;
	pthread_rwlock_wrlock(&d->mark_lock);
	if (!shared)
		drop_logged(d);
	for (size_t i = d->doubt_count; i--;) {
		const struct km_doubt *q = &d->doubts[i];

		if (shared)
			km_dmap_or_shared(&q->dr->pending, q->word, q->mask);
		else
			km_dmap_or_counted(&q->dr->of[d->takes]->batch, q->word, q->mask);
		km_count_shared(&d->stats.pages_kept, (uint64_t)__builtin_popcountll(q->mask));
		if (protect_again(d, q))
			drop(d, i);
	}
	pthread_rwlock_unlock(&d->mark_lock);
}

void km_doubt_slot_gone(struct kvmem_dirty *d, uint32_t slot)
{
	for (size_t i = d->doubt_count; i--;) {
		const struct km_doubt *q = &d->doubts[i];

		if (q->slot != slot)
			continue;
		km_dmap_or_shared(&q->dr->pending, q->word, q->mask);
		drop(d, i);
	}
}

void km_doubt_forget(struct kvmem_dirty *d, const struct km_dirty_region *dr)
{
	for (size_t i = d->doubt_count; i--;)
		if (!dr || d->doubts[i].dr == dr)
			drop(d, i);
}
