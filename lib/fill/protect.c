// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Write protection that stays until it is taken away: a thread that writes to a page waits, and an event tells of it.
 *
 * Linux 6.1 takes pages of one mapping alone (ENOENT), later kernels those of several. EAGAIN: a removal waits until
 * its event has been read.
 *
 * The end of protection makes no page writable at once: the next write to it faults once more, and a thread that had
 * met the protection before can begin to wait after its end. So an event of a page that is not protected any more is
 * answered too, and who unregisters wakes at last (before Linux 6.7 unregistering wakes nobody).
 */
#include "fill/fill_internal.h"

#include <errno.h>
#include <sys/ioctl.h>

#define SPINS 200u

static int64_t issue(const struct km_watch *w, uint64_t first, uint64_t count, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = w->addr + (first << w->shift), .len = count << w->shift },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return km_uffd_ioctl(km_watch_uffd_of(w, first), UFFDIO_WRITEPROTECT, &wp);
}

static void back_off(const struct km_watch *w, uint64_t first, unsigned int tries)
{
	if (w->set->sees_removals && km_uffd_drain(w->set, km_watch_uffd_of(w, first)))
		return;
	if (tries > SPINS)
		km_sys_poll(NULL, 0, 1);
	else
		km_sys_yield();
}

int km_watch_set_wp(const struct km_watch *w, uint64_t first, uint64_t count, bool on)
{
	unsigned int tries = 0;
	uint64_t step = count;

	while (count) {
		uint64_t n = km_watch_in_stripe(w, first, km_min(count, step));
		int64_t r = issue(w, first, n, on);

		if (r == -EAGAIN) {
			back_off(w, first, tries++);
			continue;
		}
		if (r == -ENOENT && n > 1) {
			step = n / 2;
			continue;
		}
		if (r < 0 && r != -ENOENT)
			return (int)r;
		first += n;
		count -= n;
		step = count; /* the next mapping may be a large one */
	}
	return 0;
}

int km_watch_begin_wp(struct km_watch *w)
{
	struct uffdio_register reg = {
		.range = { .start = w->addr, .len = w->room << w->shift },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	int64_t r = km_uffd_ioctl(km_watch_uffd_of(w, 0), UFFDIO_REGISTER, &reg);

	w->ioctls = reg.ioctls;
	if (r >= 0 && !km_watch_can(w, _UFFDIO_WRITEPROTECT)) {
		km_watch_end_wp(w, 0);
		r = -EINVAL;
	}
	return r < 0 ? (int)r : 0;
}

void km_watch_end_wp(struct km_watch *w, uint64_t pages)
{
	struct uffdio_range range = { .start = w->addr, .len = w->room << w->shift };

	if (pages)
		km_watch_set_wp(w, 0, pages, false);
	km_uffd_ioctl(km_watch_uffd_of(w, 0), UFFDIO_UNREGISTER, &range);
	km_uffd_wake(km_watch_uffd_of(w, 0), range.start, range.len);
}

int64_t km_uffd_read_events(struct km_uffd_set *set, unsigned int index, struct uffd_msg *msgs,
			    unsigned int max)
{
	int64_t r = km_uffd_read_raw(&set->all[index], msgs, max * sizeof(*msgs));

	return r < 0 ? r : r / (int64_t)sizeof(*msgs);
}
