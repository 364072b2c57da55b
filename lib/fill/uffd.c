// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Userfaultfds: opened, used although somebody closes them, and registered over regions. */
#include "fill/fill_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/ioctl.h>

/* ---- one of them ---- */

static int uffd_fd(struct km_uffd *u)
{
	return atomic_load_explicit(&u->fd, memory_order_relaxed);
}

/* Somebody closed our descriptor: go on with the duplicate. */
static bool use_spare(struct km_uffd *u, int64_t err)
{
	if (err != -EBADF || uffd_fd(u) == u->spare)
		return false;
	atomic_store_explicit(&u->fd, u->spare, memory_order_relaxed);
	return true;
}

int64_t km_uffd_ioctl(struct km_uffd *u, unsigned long request, void *arg)
{
	int64_t r = km_sys_ioctl(uffd_fd(u), request, arg);

	return use_spare(u, r) ? km_sys_ioctl(uffd_fd(u), request, arg) : r;
}

int64_t km_uffd_read_raw(struct km_uffd *u, void *buf, size_t bytes)
{
	int64_t r;

	/* Whatever the other process makes of O_NONBLOCK; Linux 6.10 has it. */
	if (u->view) {
		r = km_sys_read_nowait(uffd_fd(u), buf, bytes);
		if (r >= 0 || r == -EAGAIN)
			return r;
	}
	r = km_sys_read(uffd_fd(u), buf, bytes);
	return use_spare(u, r) ? km_sys_read(uffd_fd(u), buf, bytes) : r;
}

/*
 * One that the caller has opened, when he still was allowed to. What UFFDIO_API was told cannot be read back, and it
 * is told once: so that is for us to do.
 */
static int take_given(int given, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int64_t fl = km_sys_fcntl_getfl(given), r;

	if (fl < 0)
		return km_fail(EBADF, "userfaultfd %d is not open", given);
	if (!(fl & O_NONBLOCK))
		return km_fail(EINVAL, "userfaultfd %d was opened without O_NONBLOCK", given);
	r = km_sys_ioctl(given, UFFDIO_API, &api);
	if (r == -EINVAL && features & KM_UFFD_FEATURE_WP_ASYNC)
		return km_fail(EOPNOTSUPP, "UFFDIO_API refused the features");
	if (r == -EINVAL)
		return km_fail(EINVAL,
			       "UFFDIO_API of userfaultfd %d: %m; has it been called already? "
			       "It is for the library to call",
			       given);
	if (r < 0)
		return km_fail(EBADF, "file descriptor %d is not a userfaultfd: %m", given);
	r = km_sys_dup(given);
	return r < 0 ? km_fail((int)-r, "duplicating userfaultfd %d: %m", given) : (int)r;
}

/* given -1: none. */
static int open_uffd(struct km_uffd *u, int given, uint64_t features)
{
	int fd = given < 0 ? km_uffd_open(features) : take_given(given, features);
	int64_t spare;

	if (fd < 0)
		return fd;
	spare = km_sys_dup(fd);
	if (spare < 0) {
		km_sys_close(fd);
		return km_fail((int)-spare, "duplicating a userfaultfd: %m");
	}
	atomic_store(&u->fd, fd);
	u->spare = (int)spare;
	return 0;
}

static void close_uffd(struct km_uffd *u)
{
	if (uffd_fd(u) != u->spare)
		km_sys_close(uffd_fd(u));
	km_sys_close(u->spare);
}

/* ---- a set ---- */

/* With write protection that raises no events (Linux 6.7), where the kernel has it. */
static int open_one(struct km_uffd_set *set, unsigned int i, int given, uint64_t features)
{
	struct km_detail before;
	int r;

	if (set->captures || (i && !set->protects))
		return open_uffd(&set->all[i], given, features);
	km_detail_save(&before);
	r = open_uffd(&set->all[i], given, features | KM_UFFD_FEATURE_WP_ASYNC);
	set->protects = !r;
	if (r != -EOPNOTSUPP || i)
		return r;
	km_detail_restore(&before);
	return open_uffd(&set->all[i], given, features);
}

int km_uffd_set_open(struct km_uffd_set *set, unsigned int count, const int32_t *given,
		     unsigned int flags)
{
	bool removals = flags & KM_UFFD_REMOVALS;
	uint64_t features = (removals ? UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP : 0) |
			    (flags & KM_UFFD_THREADS ? UFFD_FEATURE_THREAD_ID : 0) |
			    (flags & KM_UFFD_CAPTURES ? UFFD_FEATURE_PAGEFAULT_FLAG_WP : 0);
	int r = 0;

	set->sees_removals = removals;
	set->none = flags & KM_UFFD_NONE;
	set->protects = set->captures = flags & KM_UFFD_CAPTURES;
	set->raw = km_sys_alloc(count * sizeof(*set->all) + KM_CACHE_LINE);
	if (!set->raw)
		return km_fail(ENOMEM, "no memory for %u userfaultfds", count);
	set->all = (void *)(((uintptr_t)set->raw + KM_CACHE_LINE - 1) &
			    ~(uintptr_t)(KM_CACHE_LINE - 1));
	set->count = count;
	for (unsigned int i = 0; i < count; i++) {
		atomic_store(&set->all[i].fd, -1);
		set->all[i].spare = -1;
		set->all[i].sees_removals = removals;
	}
	for (unsigned int i = 0; !r && i < count && !(flags & KM_UFFD_NONE); i++)
		r = open_one(set, i, given ? given[i] : -1, features);
	return r;
}

void km_uffd_set_close(struct km_uffd_set *set)
{
	for (unsigned int i = 0; i < set->count; i++)
		close_uffd(&set->all[i]);
	km_sys_free(set->raw);
	*set = (struct km_uffd_set){ 0 };
}

void km_uffd_settle(struct km_uffd_set *set)
{
	for (unsigned int i = 0; set->sees_removals && i < set->count; i++) {
		km_gate_enter(&set->all[i].gate, KM_UFFD_PLACES);
		km_gate_leave(&set->all[i].gate, KM_UFFD_PLACES);
	}
}

void km_uffd_settle_places(struct km_uffd_set *set)
{
	for (unsigned int i = 0; i < set->count; i++) {
		km_gate_enter(&set->all[i].gate, KM_UFFD_READS);
		km_gate_leave(&set->all[i].gate, KM_UFFD_READS);
	}
}

/* ---- stripes ---- */

unsigned int km_watch_shard(const struct km_watch *w, uint64_t page)
{
	return (unsigned int)((w->first_uffd + page / w->stripe) % w->set->count);
}

uint64_t km_watch_in_stripe(const struct km_watch *w, uint64_t page, uint64_t count)
{
	const struct km_span *s;

	count = km_min(count, w->stripe - page % w->stripe);
	if (!km_watch_is_remote(w))
		return count;
	s = km_remote_span(w->region->remote, page);
	return km_min(count, s->first + s->pages - page);
}

struct km_uffd *km_watch_uffd_of(const struct km_watch *w, uint64_t page)
{
	if (km_watch_is_remote(w))
		return &km_view_first(w)->uffds[km_remote_span(w->region->remote, page)->uffd];
	return &w->set->all[km_watch_shard(w, page)];
}

uint64_t km_watch_addr(const struct km_watch *w, uint64_t page)
{
	const struct km_span *s;

	if (!km_watch_is_remote(w))
		return w->addr + (page << w->shift);
	s = km_remote_span(w->region->remote, page);
	return s->addr + ((page - s->first) << w->shift);
}

void km_uffd_wake(struct km_uffd *u, uint64_t addr, uint64_t bytes)
{
	struct uffdio_range range = { .start = addr, .len = bytes };

	km_uffd_ioctl(u, UFFDIO_WAKE, &range);
}

/* Spans of a process that has joined may leave gaps. */
static void wake_view(const struct km_view *v, uint64_t first, uint64_t count)
{
	const struct km_remote *m = v->remote;
	const struct km_span *s = km_remote_span(m, first), *end = m->spans + m->span_count;
	unsigned int shift = v->watch->shift;

	for (; s < end && s->first < first + count; s++) {
		uint64_t from = s->first > first ? s->first : first;
		uint64_t to = km_min(s->first + s->pages, first + count);

		if (from < to)
			km_uffd_wake(&v->uffds[s->uffd], s->addr + ((from - s->first) << shift),
				     (to - from) << shift);
	}
}

void km_watch_wake(const struct km_watch *w, uint64_t first, uint64_t count)
{
	struct km_view *v = km_watch_is_remote(w) ? atomic_load(&km_view_first(w)->next) : NULL;

	for (; v; v = atomic_load(&v->next))
		wake_view(v, first, count);
	for (uint64_t n; count; first += n, count -= n) {
		n = km_watch_in_stripe(w, first, count);
		km_uffd_wake(km_watch_uffd_of(w, first), km_watch_addr(w, first), n << w->shift);
	}
}

static bool protect_stripe(const struct km_watch *w, uint64_t first, uint64_t count, uint64_t mode)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = w->addr + (first << w->shift), .len = count << w->shift },
		.mode = mode,
	};

	return km_uffd_ioctl(km_watch_uffd_of(w, first), UFFDIO_WRITEPROTECT, &wp) >= 0;
}

/* On and off again: what stayed on would outlive the page, as a marker in its place. */
bool km_watch_protect(const struct km_watch *w, uint64_t first, uint64_t count)
{
	bool done = km_watch_can(w, _UFFDIO_WRITEPROTECT);

	for (uint64_t n; done && count; first += n, count -= n) {
		n = km_watch_in_stripe(w, first, count);
		done = protect_stripe(w, first, n, UFFDIO_WRITEPROTECT_MODE_WP);
		done = done && protect_stripe(w, first, n, 0);
	}
	return done;
}

bool km_watch_unprotect(const struct km_watch *w, uint64_t page)
{
	return km_watch_can(w, _UFFDIO_WRITEPROTECT) &&
	       protect_stripe(w, page, 1, UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
}

/* ---- registering ---- */

static const char *why_refused(const struct km_watch *w)
{
	if (w->region->plan.backing == KVMEM_BACKING_GUEST_MEMFD)
		return "this kernel takes no userfaultfd on a guest_memfd mapping: create the region with "
		       "KVMEM_WANT_PAGING and the plan moves to a memfd";
	return "this kernel takes no userfaultfd on this kind of memory: create the region as a memfd";
}

static int register_failed(const struct km_watch *w, uint64_t first, uint64_t count, int64_t err)
{
	if (err == -EINVAL)
		return km_fail(EOPNOTSUPP, "pager: UFFDIO_REGISTER: %s", why_refused(w));
	return km_fail(
		(int)-err,
		"pager: UFFDIO_REGISTER of 0x%" PRIx64 " bytes at offset 0x%" PRIx64 ": %m%s",
		count << w->shift, first << w->shift,
		err == -ENOMEM ? "; each region takes a mapping or more: see vm.max_map_count"
		: err == -EBUSY
			? "; the memory is registered with another userfaultfd: only one can "
			  "serve it"
			: "");
}

static int register_stripe(struct km_watch *w, uint64_t first, uint64_t count)
{
	struct uffdio_register reg = {
		.range = { .start = w->addr + (first << w->shift), .len = count << w->shift },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int64_t r;

	/* Never MINOR alone: an absent page would not fault, but be allocated as zeros. */
	if (w->region->fd >= 0)
		reg.mode |= UFFDIO_REGISTER_MODE_MINOR;
	/* For the dirty tracker: km_watch_protect(); and for captures. */
	if (w->set->captures || (w->set->protects && w->region->plan.granted & KVMEM_WANT_DIRTY))
		reg.mode |= UFFDIO_REGISTER_MODE_WP;
	r = km_uffd_ioctl(km_watch_uffd_of(w, first), UFFDIO_REGISTER, &reg);
	if (r == -EINVAL && reg.mode & UFFDIO_REGISTER_MODE_WP) {
		reg.mode &= ~(uint64_t)UFFDIO_REGISTER_MODE_WP;
		r = km_uffd_ioctl(km_watch_uffd_of(w, first), UFFDIO_REGISTER, &reg);
	}
	if (r < 0)
		return register_failed(w, first, count, r);
	w->ioctls &= reg.ioctls;
	return 0;
}

static void unregister(struct km_watch *w, uint64_t pages)
{
	for (uint64_t first = 0, n; first < pages; first += n) {
		struct uffdio_range range;

		n = km_watch_in_stripe(w, first, pages - first);
		range.start = w->addr + (first << w->shift);
		range.len = n << w->shift;
		km_uffd_ioctl(km_watch_uffd_of(w, first), UFFDIO_UNREGISTER, &range);
	}
}

/*
 * Where a filter refuses UFFDIO_WAKE, a thread whose page has come, or is poisoned, would sleep for ever: nobody looks
 * at what that ioctl answers later on.
 */
int km_watch_check_wake(const struct km_watch *w)
{
	struct uffdio_range range = { .start = km_watch_addr(w, 0), .len = 1ull << w->shift };
	int64_t r = km_uffd_ioctl(km_watch_uffd_of(w, 0), UFFDIO_WAKE, &range);

	return r < 0 ? km_fail((int)-r, "pager: UFFDIO_WAKE: %m") : 0;
}

/* Readers walk the list without a lock: a watch is whole before it can be found. */
void km_watch_append(struct km_uffd_set *set, struct km_watch *w)
{
	if (set->last_watch)
		atomic_store_explicit(&set->last_watch->next, w, memory_order_release);
	else
		atomic_store_explicit(&set->first_watch, w, memory_order_release);
	set->last_watch = w;
}

int km_watch_register(struct km_watch *w)
{
	const uint64_t fills = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_CONTINUE;
	uint64_t first, n;
	int r;

	w->ioctls = UINT64_MAX;
	for (first = 0; first < w->room; first += n) {
		n = km_watch_in_stripe(w, first, w->room - first);
		r = register_stripe(w, first, n);
		if (r)
			goto undo;
	}
	r = km_watch_check_wake(w);
	if (r)
		goto undo;
	if (w->ioctls & fills)
		return 0;
	r = km_fail(EOPNOTSUPP, "pager: the memory takes neither UFFDIO_COPY nor UFFDIO_CONTINUE");
undo:
	unregister(w, first);
	return r;
}

void km_watch_join(struct km_watch *w)
{
	km_watch_append(w->set, w);
	w->region->watch = w;
}

void km_watch_unregister(struct km_watch *w)
{
	unregister(w, w->room);
}

/* Threads of the pager that walk the list just now may still be at this watch: its `next` stays as it is. */
void km_watch_unlink(struct km_watch *w)
{
	struct km_watch *_Atomic *link = &w->set->first_watch;
	struct km_watch *before = NULL;

	while (atomic_load(link) != w) {
		before = atomic_load(link);
		link = &before->next;
	}
	atomic_store(link, atomic_load(&w->next));
	if (w->set->last_watch == w)
		w->set->last_watch = before;
	km_uffd_settle(w->set); /* those of others, which read events, have left it */
}

void km_watch_end(struct km_watch *w)
{
	unregister(w, w->room);
	km_watch_unlink(w);
	w->region->watch = NULL;
}
