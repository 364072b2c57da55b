// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Growable structs and the error detail. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <kvmem/base.h>

#include "base/callback.h"
#include "base/error.h"

struct opts_v2 {
	uint32_t size;
	uint32_t flags;
	uint64_t later;
};

#define MIN_SIZE 8u

TEST(opts_null_means_defaults)
{
	struct opts_v2 got;

	memset(&got, 0xff, sizeof(got));
	ck_assert_int_eq(km_opts_copy(&got, sizeof(got), MIN_SIZE, NULL, "opts"), 0);
	ck_assert_uint_eq(got.size, sizeof(got));
	ck_assert_uint_eq(got.flags, 0);
	ck_assert_uint_eq(got.later, 0);
}
END

TEST(opts_of_an_older_caller)
{
	struct opts_v2 old = { .size = MIN_SIZE, .flags = 7, .later = 99 }, got;

	ck_assert_int_eq(km_opts_copy(&got, sizeof(got), MIN_SIZE, &old, "opts"), 0);
	ck_assert_uint_eq(got.flags, 7);
	ck_assert_uint_eq(got.later, 0);
}
END

TEST(opts_of_a_newer_caller)
{
	struct {
		struct opts_v2 known;
		uint64_t unknown;
	} in = { .known = { .size = sizeof(in), .flags = 1 } };
	struct opts_v2 got;

	ck_assert_int_eq(km_opts_copy(&got, sizeof(got), MIN_SIZE, &in, "opts"), 0);
	in.unknown = 1ull << 63;
	ck_assert_int_eq(km_opts_copy(&got, sizeof(got), MIN_SIZE, &in, "opts"), -E2BIG);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "opts"));
}
END

TEST(opts_too_small)
{
	struct opts_v2 in = { .size = MIN_SIZE - 1 }, got;

	ck_assert_int_eq(km_opts_copy(&got, sizeof(got), MIN_SIZE, &in, "opts"), -EINVAL);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "must be at least 8"));
}
END

TEST(result_writes_no_more_than_asked)
{
	struct opts_v2 dst = { .size = MIN_SIZE, .later = 42 };
	const struct opts_v2 src = { .size = sizeof(src), .flags = 3, .later = 5 };

	ck_assert_int_eq(km_result_check(&dst, MIN_SIZE, "result"), 0);
	km_result_copy(&dst, &src, sizeof(src));
	ck_assert_uint_eq(dst.flags, 3);
	ck_assert_uint_eq(dst.later, 42);
	ck_assert_uint_eq(dst.size, MIN_SIZE);
}
END

TEST(result_tail_of_a_newer_caller_is_zeroed)
{
	struct {
		struct opts_v2 known;
		uint64_t unknown;
	} dst = { .known = { .size = sizeof(dst) }, .unknown = 77 };
	const struct opts_v2 src = { .size = sizeof(src), .later = 5 };

	km_result_copy(&dst, &src, sizeof(src));
	ck_assert_uint_eq(dst.known.later, 5);
	ck_assert_uint_eq(dst.unknown, 0);
}
END

TEST(ranges)
{
	ck_assert_int_eq(km_range_check(0, 4096, 4096, "r"), 0);
	ck_assert_int_eq(km_range_check(0, 0, 4096, "r"), -EINVAL);
	ck_assert_int_eq(km_range_check(4096, 1, 4096, "r"), -ERANGE);
	ck_assert_int_eq(km_range_check(UINT64_MAX, 2, 4096, "r"), -EINVAL);
	ck_assert_int_eq(km_align_check(4097, 4096, "r"), -EINVAL);
	ck_assert_int_eq(km_align_check(8192, 4096, "r"), 0);
	ck_assert_int_eq(km_flags_check(4, 3, "flags"), -EINVAL);
	ck_assert_int_eq(km_flags_check(3, 3, "flags"), 0);
}
END

TEST(detail_holds_the_kernels_text)
{
	ck_assert_int_eq(km_fail(ENOSPC, "slot: %m"), -ENOSPC);
	ck_assert_str_eq(kvmem_error_detail(), "slot: No space left on device");
	km_fail(EIO, "outer: %s", kvmem_error_detail());
	ck_assert_str_eq(kvmem_error_detail(), "outer: slot: No space left on device");
}
END

static void *other_thread(void *arg)
{
	*(bool *)arg = !kvmem_error_detail()[0];
	km_fail(EPERM, "theirs");
	return NULL;
}

TEST(detail_is_per_thread)
{
	bool was_empty = false;
	pthread_t t;

	km_fail(EPERM, "mine");
	ck_assert_int_eq(pthread_create(&t, NULL, other_thread, &was_empty), 0);
	pthread_join(t, NULL);
	ck_assert(was_empty);
	ck_assert_str_eq(kvmem_error_detail(), "mine");
}
END

/* A size that was never set: its tail would be read or, in a result, written over. */
TEST(k2_13_a_size_has_an_upper_bound)
{
	static struct {
		struct opts_v2 known;
		unsigned char room[2 * KM_STRUCT_MAX];
	} in;
	struct opts_v2 got;

	in.known.size = KM_STRUCT_MAX;
	ck_assert_int_eq(km_opts_copy(&got, sizeof(got), MIN_SIZE, &in, "opts"), 0);
	ck_assert_int_eq(km_result_check(&in, MIN_SIZE, "result"), 0);
	in.known.size = KM_STRUCT_MAX + 1;
	ck_assert_int_eq(km_opts_copy(&got, sizeof(got), MIN_SIZE, &in, "opts"), -EINVAL);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "opts: size is 4097"));
	in.known.size = UINT32_MAX;
	ck_assert_int_eq(km_result_check(&in, MIN_SIZE, "result"), -EINVAL);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "result: size is 4294967295"));
}
END

TEST(k2_13_a_detail_is_kept_over_a_way_that_failed)
{
	struct km_detail kept;

	km_fail(EPERM, "the last failure of the program");
	km_detail_save(&kept);
	km_fail(EIO, "a way that was tried");
	km_detail_restore(&kept);
	ck_assert_str_eq(kvmem_error_detail(), "the last failure of the program");
}
END

static void *check_elsewhere(void *arg)
{
	return (void *)(intptr_t)km_callback_check("kvmem_x", arg);
}

TEST(k9_27_a_call_that_would_wait_for_its_own_callback_is_refused)
{
	struct km_callback outer, inner;
	int pager = 0, region = 0, other = 0;
	pthread_t t;
	void *r;

	ck_assert_int_eq(km_callback_check("kvmem_x", NULL), 0);
	km_callback_enter(&outer, "kvmem_pager_opts.fail", &pager, &region);
	ck_assert_int_eq(km_callback_check("kvmem_x", &pager), -EDEADLK);
	ck_assert_int_eq(km_callback_check("kvmem_x", &region), -EDEADLK);
	ck_assert_int_eq(km_callback_check("kvmem_x", NULL), -EDEADLK);
	ck_assert_int_eq(km_callback_check("kvmem_x", &other), 0);
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "kvmem_x()"));
	ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "kvmem_pager_opts.fail"));
	km_callback_enter(&inner, "kvmem_source_ops.read", &other, NULL);
	ck_assert_int_eq(km_callback_check("kvmem_x", &other), -EDEADLK);
	ck_assert_int_eq(km_callback_check("kvmem_x", &pager), -EDEADLK);
	ck_assert_int_eq(pthread_create(&t, NULL, check_elsewhere, &pager), 0);
	pthread_join(t, &r);
	ck_assert_ptr_null(r);
	km_callback_leave(&inner);
	ck_assert_int_eq(km_callback_check("kvmem_x", &other), 0);
	km_callback_leave(&outer);
	ck_assert_int_eq(km_callback_check("kvmem_x", NULL), 0);
}
END

HARNESS_MAIN(T(opts_null_means_defaults), T(opts_of_an_older_caller), T(opts_of_a_newer_caller),
	     T(opts_too_small), T(result_writes_no_more_than_asked),
	     T(result_tail_of_a_newer_caller_is_zeroed), T(ranges),
	     T(detail_holds_the_kernels_text), T(detail_is_per_thread),
	     T(k2_13_a_size_has_an_upper_bound), T(k2_13_a_detail_is_kept_over_a_way_that_failed),
	     T(k9_27_a_call_that_would_wait_for_its_own_callback_is_refused))
