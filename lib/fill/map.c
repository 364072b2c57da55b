// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Pages that have content, mapped where a fault asks for them; and pages that nothing can bring. */
#include "fill/fill_internal.h"

#include <errno.h>
#include <sys/mman.h>

#define TRIES 8u

static int place_one(struct km_watch *w, enum km_place_op op, uint64_t page, bool present)
{
	static const uint8_t zeros[64u << 10];
	struct km_place p = {
		.watch = w, .op = op, .first = page, .count = 1, .quiet = true, .present = present
	};

	if (op == KM_PLACE_ZERO && !km_watch_can(w, _UFFDIO_ZEROPAGE)) {
		if (w->shift > 16 || !km_watch_can(w, _UFFDIO_COPY))
			return -EOPNOTSUPP;
		p.op = KM_PLACE_COPY;
		p.src = zeros;
	}
	return km_place(&p);
}

/* A page of zeros where the kernel has none and knows no ioctl for it: -EEXIST when it has. */
static int zero_large(struct km_watch *w, uint64_t page)
{
	struct km_uffd *u = km_watch_uffd_of(w, page);
	uint64_t bytes = 1ull << w->shift;
	uint8_t *base;
	int r = km_region_store(w->region, &base);

	if (r)
		return r;
	/* Made in the file, it is zero; the caller maps it. Inside the gate, as in place.c. */
	km_gate_enter(&u->gate, KM_UFFD_PLACES);
	if (km_presence_settled(&w->region->presence, page, 1)) {
		km_presence_turn(&w->region->presence, page, 1, KM_ZERO, KM_PRESENT);
		r = km_store_make(w->region, base, page << w->shift, bytes);
	}
	km_gate_leave(&u->gate, KM_UFFD_PLACES);
	return r ? r : -EEXIST;
}

/* The same in another process, by a copy. */
static int copy_zeros(struct km_watch *w, uint64_t page)
{
	struct km_place p = {
		.watch = w, .op = KM_PLACE_COPY, .first = page, .count = 1, .quiet = true
	};
	uint8_t *zeros = km_sys_alloc(1ull << w->shift);
	int r = -ENOMEM;

	p.src = zeros;
	if (zeros)
		r = km_place(&p);
	km_sys_free(zeros);
	return r;
}

/*
 * UFFDIO_ZEROPAGE says that a page exists where the page table holds a mark and no page: of write
 * protection, which outlives the page. UFFDIO_COPY overwrites it.
 */
static int zero_one(struct km_watch *w, uint64_t page)
{
	static const uint8_t zeros[64u << 10];
	struct km_place copy = { .watch = w,
				 .op = KM_PLACE_COPY,
				 .first = page,
				 .count = 1,
				 .src = zeros,
				 .quiet = true };
	int r = place_one(w, KM_PLACE_ZERO, page, false);

	if (r == -EOPNOTSUPP && km_watch_is_remote(w))
		return copy_zeros(w, page);
	if (r == -EEXIST && w->region->fd < 0)
		return w->shift > 16 ? r : km_place(&copy);
	return r == -EOPNOTSUPP && w->region->fd >= 0 ? zero_large(w, page) : r;
}

/*
 * One page, in whatever state the kernel has it: removed since, mapped since, or only in the file.
 * What changes all the time is left alone after some tries: the access faults again.
 */
static int map_one(struct km_watch *w, uint64_t page, bool zero)
{
	bool file = km_watch_has_file(w), removed = zero && km_watch_is_remote(w);
	int r = -EAGAIN;

	for (unsigned int i = 0; i < TRIES; i++) {
		r = file && !removed ? place_one(w, KM_PLACE_CONTINUE, page, !zero) : -EFAULT;
		if (r == -EFAULT) /* nothing there any more */
			r = zero_one(w, page);
		if (r != -EEXIST || !file)
			break;
		r = place_one(w, KM_PLACE_CONTINUE, page, !zero);
		if (r != -EFAULT)
			break;
	}
	return r == -EEXIST || r == -ENOENT || r == -EFAULT ? 0 : r;
}

static int map_many(struct km_watch *w, uint64_t first, uint64_t count, bool zero,
		    uint64_t *ret_done)
{
	struct km_place p = {
		.watch = w, .first = first, .count = count, .quiet = true, .present = !zero
	};
	int r = -EEXIST;

	if (zero && km_watch_can(w, _UFFDIO_ZEROPAGE)) {
		p.op = KM_PLACE_ZERO;
		r = km_place(&p);
	} else if (!zero && km_watch_has_file(w)) {
		p.op = KM_PLACE_CONTINUE;
		r = km_place(&p);
	}
	*ret_done = p.done;
	return r;
}

int km_map_run(struct km_watch *w, uint64_t first, uint64_t count, bool zero, unsigned int fixes)
{
	int r, err = 0;
	uint64_t n;

	for (; count; first += n, count -= n) {
		r = map_many(w, first, count, zero, &n);
		if (!r)
			continue;
		if (!fixes--)
			break;
		if (r != KM_PARKED && r != -ESRCH)
			r = map_one(w, first, zero);
		n = 1;
		if (r == KM_PARKED || r == -ESRCH)
			return r;
		if (r && !err)
			err = r;
	}
	return err;
}

/* ---- poison ---- */

static bool unprotect(struct km_watch *w, uint64_t page)
{
	struct km_guard *g = km_guard_enter(w->region);
	bool done = !(g && g->holds(g, page)) && km_watch_unprotect(w, page);

	km_guard_leave(w->region, g);
	return done;
}

/*
 * UFFDIO_POISON refuses a page table entry that is not empty: a page that is mapped, but also a mark
 * of write protection, which is no page and is taken away here. A claimed page that was removed
 * meanwhile is left alone: the mark would outlive the removal.
 */
static int place_poison(struct km_watch *w, uint64_t page, bool claimed)
{
	struct km_place p = { .watch = w,
			      .op = KM_PLACE_POISON,
			      .first = page,
			      .count = 1,
			      .claimed = claimed,
			      .quiet = true };
	int err = km_place(&p);

	/* The dirty tracker may protect it again just now. */
	for (unsigned int i = 0; err == -EEXIST && i < TRIES && unprotect(w, page); i++)
		err = km_place(&p);
	return err;
}

/*
 * Without UFFDIO_POISON (before 6.6, or memory that does not take it) the page is to lose its access
 * rights instead, *ret_no_access: the waiter gets SIGSEGV, a vCPU's KVM_RUN EFAULT, and neither ever
 * sees zeros. -EEXIST, -ENOENT: mapped, or not mapped any more.
 */
static int poison(struct km_watch *w, uint64_t page, bool claimed, bool *ret_no_access)
{
	int err = place_poison(w, page, claimed);

	*ret_no_access = false;
	if (err == -EFAULT) /* beyond the end of the file: the kernel raises the error by itself */
		return 0;
	if (!err || err == -EEXIST || err == -ENOENT || km_watch_is_remote(w))
		return err;
	atomic_store(&w->region->no_access, true);
	*ret_no_access = true;
	return 0;
}

bool km_poison_claimed(struct km_watch *w, uint64_t page)
{
	struct km_presence *map = &w->region->presence;
	bool marked = km_presence_marked(map, page, 1), removed, no_access;
	int err = poison(w, page, true, &no_access);

	if (err == -EEXIST && marked) /* by the mark that it had before */
		err = 0;
	km_presence_removed(map, page, 1, &removed);
	/* The process has ended, or its kernel cannot: the page is absent, and asked for again at the next fault. */
	if (km_watch_is_remote(w) && err && err != -ENOENT && err != -EEXIST) {
		km_pages_give_up(w->region, page, 1);
		return false;
	}
	if (err == -ENOENT) {
		km_pages_publish(w->region, page, 1, KM_ZERO, false);
	} else if (err == -EEXIST) {
		km_pages_publish(w->region, page, 1, KM_PRESENT, false);
	} else {
		/* POISONED, or ZERO if it was removed meanwhile. */
		km_presence_mark(map, page);
		km_pages_give_up(w->region, page, 1);
	}
	return !err && !removed;
}

bool km_poison_lost(struct km_watch *w, uint64_t page)
{
	bool no_access = false;
	int err = map_one(w, page, false);

	/* A page that nobody can bring now: the access faults again. */
	if (err == KM_PARKED || km_watch_ended(w))
		return false;
	err = err ? 0 : -EEXIST;

	if (!err)
		err = poison(w, page, false, &no_access);
	if (no_access)
		err = (int)km_pages_set_access(w->region, page, 1, PROT_NONE);
	if (!err) /* a discard has to take the mark away */
		atomic_store(&w->region->presence.ever_poisoned, true);
	return !err;
}
