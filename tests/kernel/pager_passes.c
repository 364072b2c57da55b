// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The background fill's passes: what failed is tried again, and who waits is told the truth about it. */
#include "pager_lib.h"

static _Atomic bool source_fails;
static _Atomic unsigned long failures;
static unsigned int read_us;

static int moody_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	struct set *s = arg;

	if (atomic_load(&source_fails)) {
		atomic_fetch_add(&failures, 1);
		return -EIO;
	}
	usleep(read_us);
	memcpy(buf, s->content + offset, bytes);
	return 0;
}

static void use_moody(struct set *s, uint32_t flags)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;

	ops.read = moody_read;
	ops.flags = flags;
	atomic_store(&source_fails, true);
	atomic_store(&failures, 0);
	must(kvmem_source_callback(&ops, s, s->bytes, &s->source));
}

static bool first_pass_failed(void *arg)
{
	const struct set *s = arg;

	return atomic_load(&failures) >= s->bytes / PAGE;
}

static bool some_filled(void *arg)
{
	return stats_of(arg).pages_background > 0;
}

/* A pass that fails is past as soon as the next one has begun. */
TEST(k5_19_who_waits_beside_a_second_pass_is_not_told_of_the_first)
{
	static struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, 2 * MIB))
		return;
	read_us = 20000;
	use_moody(&s, 0);
	s.opts.flags = KVMEM_PAGER_BACKGROUND;
	start_set(&s);
	ck_assert(harness_wait(first_pass_failed, &s, 20));
	atomic_store(&source_fails, false);
	ck_assert(harness_wait(some_filled, &s, 20));
	must(kvmem_pager_wait(s.pager, INT64_C(20000000000)));
	check_all(&s);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	close_set(&s);
}
END

/* Several workers of a shard: whoever is the last to leave a pass has to see that it is over. */
TEST(k5_19_a_pass_of_many_workers_is_followed_by_another)
{
	for (int round = 0; round < 20; round++) {
		static struct set s;

		if (!open_set(&s, KVMEM_BACKING_MEMFD, MIB))
			return;
		read_us = 0;
		use_moody(&s, KVMEM_SOURCE_CHEAP);
		s.opts.flags = KVMEM_PAGER_BACKGROUND;
		s.opts.shards = 1;
		s.opts.workers = 4;
		start_set(&s);
		ck_assert(harness_wait(first_pass_failed, &s, 20));
		atomic_store(&source_fails, false);
		while (!stats_of(&s).pages_background)
			usleep(1000);
		must(kvmem_pager_wait(s.pager, INT64_C(20000000000)));
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_set(&s);
	}
}
END

HARNESS_MAIN(T(k5_19_who_waits_beside_a_second_pass_is_not_told_of_the_first),
	     T(k5_19_a_pass_of_many_workers_is_followed_by_another))
