/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_ERROR_H
#define KM_ERROR_H

#include <stddef.h>
#include <stdint.h>

/*
 * Set this thread's error detail and return -err; "%m" in fmt is the kernel's text for err. The one
 * way in which the library reports a failure: a callee that has set the detail is not overruled.
 */
int km_fail(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#ifdef __clang_analyzer__ /* which does not see that it never returns 0 */
#define km_fail(err, ...) ((void)km_fail(err, __VA_ARGS__), -1)
#endif

/*
 * Keep this thread's detail over a step that may fail without its failure being the caller's (a
 * way that is tried before another one): a call that succeeds leaves the detail as it was.
 */
struct km_detail {
	char text[512];
};
void km_detail_save(struct km_detail *d);
void km_detail_restore(const struct km_detail *d);

/* No struct of the library is, or will be, larger. A `size` beyond it was never initialized. */
#define KM_STRUCT_MAX 4096u

/*
 * Growable structs (kvmem/base.h). `known` is this library's sizeof, `min` that of the first
 * release; `what` names the argument in the detail.
 */
int km_opts_copy(void *dst, size_t known, size_t min, const void *src, const char *what);
int km_result_check(const void *dst, size_t min, const char *what);
void km_result_copy(void *dst, const void *src, size_t known);

/* -EINVAL when flags has a bit outside `known`. */
int km_flags_check(uint64_t flags, uint64_t known, const char *what);

/* [offset, offset + bytes) lies in [0, limit): -EINVAL for 0 bytes or overflow, -ERANGE beyond. */
int km_range_check(uint64_t offset, uint64_t bytes, uint64_t limit, const char *what);

/* value is a multiple of align (a power of two), else -EINVAL naming it. */
int km_align_check(uint64_t value, uint64_t align, const char *what);

#endif
