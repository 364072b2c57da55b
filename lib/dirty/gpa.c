// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Pages that devices wrote, by guest-physical address: the log of vhost, bitmaps of VFIO and iommufd. */
#include "dirty/dirty_internal.h"

#include <errno.h>
#include <inttypes.h>

struct log {
	struct kvmem_dirty *d;
	uint32_t space;
	uint64_t gpa, end;
	unsigned int shift;
	uint64_t outside; /* pages of KVM's that no slot we track has */
	uint64_t counted; /* pages of guest addresses below here are, in one count or the other */
};

/* Bytes [from, to) of guest-physical addresses. False when some are of no slot that we track. */
static bool set_gpas(struct log *log, uint64_t from, uint64_t to)
{
	unsigned int page_shift = log->d->page_shift;
	bool all = true;

	while (from < to) {
		struct kvmem_translation t;
		bool found = km_vm_look_up(log->d->vm, log->space, from, to - from, &t);
		struct km_slot *slot = found ? km_slot_find(log->d->vm, t.slot) : NULL;
		struct km_dirty_slot *s = slot ? slot->tracked : NULL;
		uint64_t bytes = t.bytes < to - from ? t.bytes : to - from;
		uint64_t offset = found ? t.offset : 0, first = offset >> page_shift;
		uint64_t end = ((offset + bytes - 1) >> page_shift) + 1;
		uint64_t n = km_dirty_count_from(&log->counted, from >> page_shift,
						 ((from + bytes - 1) >> page_shift) + 1);

		if (s) {
			km_dmap_set_range_shared(&s->dr->pending, first, end - first);
			km_count_shared(&log->d->stats.pages_merged, n);
		} else {
			log->outside += n;
			all = false;
		}
		from += bytes;
	}
	return all;
}

static bool set_run(struct log *log, uint64_t first, uint64_t end)
{
	uint64_t bytes = log->end - log->gpa;
	uint64_t to = end > (bytes - 1) >> log->shift ? bytes : end << log->shift;

	return set_gpas(log, log->gpa + (first << log->shift), log->gpa + to);
}

/* A word of the bitmap, of which `mask` is meant. */
static uint64_t get_word(uint64_t *word, uint64_t mask, bool clear)
{
	if (!clear || !(__atomic_load_n(word, __ATOMIC_RELAXED) & mask))
		return __atomic_load_n(word, __ATOMIC_ACQUIRE) & mask;
	return __atomic_fetch_and(word, ~mask, __ATOMIC_ACQ_REL) & mask;
}

/* Bits [at + lo, at + lo + n), all of one word. Returns those that were left out, if it was in part. */
static uint64_t merge_run(struct log *log, uint64_t at, unsigned int lo, unsigned int n)
{
	uint64_t out = 0;

	if (set_run(log, at + lo, at + lo + n))
		return 0;
	for (unsigned int i = lo; i < lo + n; i++)
		if (!set_run(log, at + i, at + i + 1))
			out |= 1ull << i;
	return out;
}

static void merge_bits(struct log *log, uint64_t *bitmap, bool clear)
{
	uint64_t bits = ((log->end - log->gpa - 1) >> log->shift) + 1;

	for (uint64_t at = 0; at < bits; at += 64) {
		uint64_t mask = bits - at < 64 ? ~(~0ull << (bits - at)) : ~0ull;
		uint64_t word = get_word(&bitmap[at / 64], mask, clear), out = 0;

		while (word) {
			unsigned int lo = (unsigned int)__builtin_ctzll(word);
			uint64_t gap = ~(word >> lo);
			unsigned int n = gap ? (unsigned int)__builtin_ctzll(gap) : 64;

			n = n > 64 - lo ? 64 - lo : n;
			out |= merge_run(log, at, lo, n);
			word &= lo + n < 64 ? ~0ull << (lo + n) : 0;
		}
		if (clear && out) /* back, for a slot that comes */
			__atomic_fetch_or(&bitmap[at / 64], out, __ATOMIC_RELEASE);
	}
}

static int gpa_check(struct kvmem_dirty *d, const struct log *log, uint64_t bytes,
		     const uint64_t *bitmap, uint32_t flags)
{
	int r;

	if (!d || !bitmap)
		return km_fail(EINVAL, "kvmem_dirty_merge_gpa: %s is NULL", d ? "bitmap" : "dirty");
	if ((uintptr_t)bitmap % sizeof(*bitmap))
		return km_fail(EINVAL, "kvmem_dirty_merge_gpa: bitmap is not aligned to 8 bytes");
	if (log->space >= KM_SLOT_SPACES)
		return km_fail(EINVAL,
			       "kvmem_dirty_merge_gpa: space %" PRIu32 ", KVM has two at most",
			       log->space);
	if (log->shift > 40)
		return km_fail(EINVAL, "kvmem_dirty_merge_gpa: page_shift %u, must be at most 40",
			       log->shift);
	r = km_flags_check(flags, KVMEM_MERGE_CLEAR, "kvmem_dirty_merge_gpa: flags");
	if (!r)
		r = km_range_check(log->gpa, bytes, 1ull << 52,
				   "kvmem_dirty_merge_gpa: guest-physical addresses");
	return r;
}

int64_t kvmem_dirty_merge_gpa(struct kvmem_dirty *dirty, uint32_t space, uint64_t gpa,
			      uint64_t bytes, unsigned int page_shift, uint64_t *bitmap,
			      uint32_t flags)
{
	struct log log = {
		.d = dirty, .space = space, .gpa = gpa, .end = gpa + bytes, .shift = page_shift
	};
	int r = gpa_check(dirty, &log, bytes, bitmap, flags);

	if (!r)
		r = km_callback_check("kvmem_dirty_merge_gpa", dirty);
	if (r)
		return r;
	pthread_rwlock_rdlock(&dirty->vm->lock);
	if (dirty->started)
		merge_bits(&log, bitmap, flags & KVMEM_MERGE_CLEAR);
	else
		r = km_fail(EINVAL,
			    "kvmem_dirty_merge_gpa: not started: kvmem_dirty_start() first");
	pthread_rwlock_unlock(&dirty->vm->lock);
	return r ? r : (int64_t)log.outside;
}
