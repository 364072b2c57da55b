// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Dirty tracking of guests that run: nothing is lost, in either mode, and little is said in vain. */
#include "dirty_rig.h"

#include <errno.h>
#include <string.h>

/* The pages GUEST_WRITE will have written. */
static uint64_t expected_pages(const struct rig *rig, unsigned int index, uint64_t count,
			       bool random, unsigned char *ret_pages)
{
	uint64_t share = rig->bytes / rig->count / RIG_PAGE, n = 0;
	uint64_t state = 1000 + index;

	for (uint64_t i = 0; i < count; i++) {
		struct guest_write w = guest_write_next(&state, i, share, RIG_PAGE,
							random ? GUEST_RANDOM : 0);

		n += !ret_pages[index * share + w.page];
		ret_pages[index * share + w.page] = 1;
	}
	return n;
}

static void exactly_what_was_written(uint32_t mode)
{
	struct rig_opts o = { .mode = mode, .vcpus = 2 };
	static unsigned char want[4096];
	struct rig rig;
	uint64_t n;

	if (!rig_open(&rig, &o))
		return;
	ck_assert_uint_eq(kvmem_dirty_get_mode(rig.dirty), mode);
	ck_assert_uint_eq(rig_sync(&rig), 0);
	for (int random = 0; random < 2; random++) {
		memset(want, 0, sizeof(want));
		rig_forget(&rig);
		rig_write(&rig, 0, 1, 700, random);
		rig_write(&rig, 1, 1, 300, random);
		rig_wait(&rig);
		n = expected_pages(&rig, 0, 700, random, want);
		n += expected_pages(&rig, 1, 300, random, want);
		ck_assert_uint_eq(rig_sync(&rig), n);
		ck_assert_int_eq(memcmp(want, rig.seen, sizeof(want)), 0);
		ck_assert_uint_eq(rig_sync(&rig), 0);
	}
	ck_assert_uint_eq(rig_lost(&rig), 0);
	rig_close(&rig);
}

TEST(ring_reports_exactly_what_was_written)
{
	exactly_what_was_written(KVMEM_DIRTY_RING);
}
END

TEST(bitmap_reports_exactly_what_was_written)
{
	exactly_what_was_written(KVMEM_DIRTY_BITMAP);
}
END

static void nothing_lost_while_writing(struct rig_opts o)
{
	struct rig rig;

	o.vcpus = 2;
	if (!rig_open(&rig, &o))
		return;
	rig_write(&rig, 0, 40, 2000, true);
	rig_write(&rig, 1, 40, 2000, false);
	rig_follow(&rig);
	ck_assert_uint_eq(rig_lost(&rig), 0);
	ck_assert_uint_ge(rig.reported, rig_seen(&rig));
	harness_note("%lu pages reported, %lu of them unchanged, %u exits with a full ring",
		     rig.reported, rig.same, rig.full);
	rig_close(&rig);
}

TEST(ring_loses_nothing_while_the_guest_writes)
{
	nothing_lost_while_writing((struct rig_opts){ .mode = KVMEM_DIRTY_RING });
}
END

TEST(small_ring_fills_and_loses_nothing)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_RING, .ring_entries = 1024 };
	struct rig rig;

	if (!rig_open(&rig, &o))
		return;
	rig_write(&rig, 0, 3, 4000, false);
	rig_wait(&rig); /* nobody harvests: it must empty its own ring */
	ck_assert_uint_ge(rig.full, 3);
	while (rig_sync(&rig))
		;
	ck_assert_uint_eq(rig_lost(&rig), 0);
	ck_assert_uint_eq(rig_seen(&rig), 4000);
	rig_close(&rig);
	nothing_lost_while_writing(o);
}
END

TEST(bitmap_loses_nothing_while_the_guest_writes)
{
	nothing_lost_while_writing((struct rig_opts){ .mode = KVMEM_DIRTY_BITMAP });
}
END

HARNESS_MAIN(T(ring_reports_exactly_what_was_written), T(bitmap_reports_exactly_what_was_written),
	     T(ring_loses_nothing_while_the_guest_writes), T(small_ring_fills_and_loses_nothing),
	     T(bitmap_loses_nothing_while_the_guest_writes))
