/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KVMEM_BASE_H
#define KVMEM_BASE_H

/*
 * What every part shares: the export mark, the rule of growable structs, errors, the version.
 *
 * Growable structs. Each option and result struct begins with `uint32_t size`, which the caller
 * sets to sizeof (the KVMEM_*_INIT macros do). The library accepts every size it ever published, and
 * larger ones: options as long as the bytes it does not know are zero (-E2BIG otherwise), results always:
 * it sets the bytes it does not know to zero, and writes none beyond `size`. No struct is larger than 4096
 * bytes: a `size` beyond that was never set, and is -EINVAL. NULL for an options argument means all defaults.
 *
 * Errors. Functions return 0 or a positive result, and -errno on failure; a failure changed nothing
 * unless the function says so. kvmem(7) lists the codes. NULL for an object or a result is -EINVAL, or 0,
 * NULL or "" where a function returns no code.
 */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define KVMEM_BEGIN_DECLS extern "C" {
#define KVMEM_END_DECLS	  }
#define KVMEM_INIT_(type) \
	([] { \
		type init_ = {}; \
		init_.size = (uint32_t)sizeof(type); \
		return init_; \
	}())
#else
#define KVMEM_BEGIN_DECLS
#define KVMEM_END_DECLS
#define KVMEM_INIT_(type) \
	{ \
		.size = (uint32_t)sizeof(type) \
	}
#endif

#if defined(__GNUC__) && defined(KVMEM_BUILDING_)
#define KVMEM_API __attribute__((visibility("default")))
#else
#define KVMEM_API
#endif

#if defined(__GNUC__)
#define KVMEM_PRINTF_(text, first) __attribute__((format(printf, text, first)))
#else
#define KVMEM_PRINTF_(text, first)
#endif

KVMEM_BEGIN_DECLS

#define KVMEM_VERSION_MAJOR 0
#define KVMEM_VERSION_MINOR 1
#define KVMEM_VERSION_PATCH 0

/**
 * kvmem_version() - the version of the library that is loaded, as "major.minor.patch".
 *
 * Static storage. May be called from any thread.
 */
KVMEM_API const char *kvmem_version(void);

/**
 * kvmem_error_detail() - one sentence about the last failure in this thread.
 *
 * Says what was tried, on which argument and range, what the rule is or the kernel said, and what
 * to do. For people: the text is not stable. Valid until this thread's next failing call; "" before
 * the first failure. A call that succeeds leaves it alone. May be called from any thread.
 */
KVMEM_API const char *kvmem_error_detail(void);

/**
 * kvmem_error_set() - for a library on top of this one: say what failed, as this library does.
 *
 * The sentence becomes kvmem_error_detail() of this thread; format is as for printf(3), and %m is the text of
 * err, a positive errno value. Returns -err. Callbacks of the caller's may use it too. May be called from any
 * thread.
 */
KVMEM_API int kvmem_error_set(int err, const char *format, ...) KVMEM_PRINTF_(2, 3);

/**
 * kvmem_opts_copy() - for a library on top of this one: the caller's options into a struct of its own.
 *
 * As growable structs are, see above: `known` is sizeof the library's own struct, `min` what it was in the first
 * release, `what` names the struct in sentences. src may be NULL: dst is all zero then, but for its size. Errors:
 * -EINVAL (also: the size cannot be), -E2BIG. May be called from any thread.
 */
KVMEM_API int kvmem_opts_copy(void *dst, size_t known, size_t min, const void *src,
			      const char *what);

/** kvmem_result_check() - the same of a result, before anything is done: can dst have been set up? Errors: -EINVAL. */
KVMEM_API int kvmem_result_check(const void *dst, size_t min, const char *what);

/** kvmem_result_copy() - a result of `known` bytes into the caller's struct, which was checked: what fits. */
KVMEM_API void kvmem_result_copy(void *dst, const void *src, size_t known);

KVMEM_END_DECLS

#endif
