// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <kvmem/base.h>

#undef km_fail

static _Thread_local char detail[sizeof(struct km_detail)];

static int set(int err, const char *fmt, va_list ap)
{
	char text[sizeof(detail)]; /* an argument may be the detail itself */
	int saved = errno;

	errno = err;
	vsnprintf(text, sizeof(text), fmt, ap);
	errno = saved;
	memcpy(detail, text, sizeof(detail));
	return -err;
}

int km_fail(int err, const char *fmt, ...)
{
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = set(err, fmt, ap);
	va_end(ap);
	return r;
}

int kvmem_error_set(int err, const char *format, ...)
{
	va_list ap;
	int r;

	va_start(ap, format);
	r = set(err, format, ap);
	va_end(ap);
	return r;
}

const char *kvmem_error_detail(void)
{
	return detail;
}

void km_detail_save(struct km_detail *d)
{
	memcpy(d->text, detail, sizeof(detail));
}

void km_detail_restore(const struct km_detail *d)
{
	memcpy(detail, d->text, sizeof(detail));
}

const char *kvmem_version(void)
{
	return KM_VERSION;
}

static int tail_is_zero(const unsigned char *p, size_t from, size_t to)
{
	while (from < to)
		if (p[from++])
			return 0;
	return 1;
}

static int size_check(uint32_t size, size_t min, const char *what)
{
	if (size < min)
		return km_fail(EINVAL,
			       "%s: size is %" PRIu32 ", must be at least %zu: set it to "
			       "sizeof, as the INIT macro does",
			       what, size, min);
	if (size > KM_STRUCT_MAX)
		return km_fail(EINVAL,
			       "%s: size is %" PRIu32 ", and no struct of the library is larger "
			       "than %u bytes: set it to sizeof, as the INIT macro does",
			       what, size, KM_STRUCT_MAX);
	return 0;
}

int km_opts_copy(void *dst, size_t known, size_t min, const void *src, const char *what)
{
	uint32_t size;
	int r;

	memset(dst, 0, known);
	if (!src) {
		size = (uint32_t)known;
		memcpy(dst, &size, sizeof(size));
		return 0;
	}
	memcpy(&size, src, sizeof(size));
	r = size_check(size, min, what);
	if (r)
		return r;
	if (size > known && !tail_is_zero(src, known, size))
		return km_fail(E2BIG,
			       "%s: size is %" PRIu32 " and this library knows %zu bytes, but "
			       "what lies beyond is not zero: it asks for something newer",
			       what, size, known);
	memcpy(dst, src, size < known ? size : known);
	return 0;
}

int km_result_check(const void *dst, size_t min, const char *what)
{
	uint32_t size;

	if (!dst)
		return km_fail(EINVAL, "%s: is NULL", what);
	memcpy(&size, dst, sizeof(size));
	return size_check(size, min, what);
}

void km_result_copy(void *dst, const void *src, size_t known)
{
	uint32_t size;

	memcpy(&size, dst, sizeof(size));
	memcpy((char *)dst + sizeof(size), (const char *)src + sizeof(size),
	       (size < known ? size : known) - sizeof(size));
	if (size > known) /* fields of a newer header: this library has no value for them */
		memset((char *)dst + known, 0, size - known);
}

/* For libraries on top, whose callers may give them anything. */

int kvmem_opts_copy(void *dst, size_t known, size_t min, const void *src, const char *what)
{
	if (!dst || !what)
		return km_fail(EINVAL, "kvmem_opts_copy: %s is NULL", dst ? "what" : "dst");
	return km_opts_copy(dst, known, min, src, what);
}

int kvmem_result_check(const void *dst, size_t min, const char *what)
{
	if (!what)
		return km_fail(EINVAL, "kvmem_result_check: what is NULL");
	return km_result_check(dst, min, what);
}

void kvmem_result_copy(void *dst, const void *src, size_t known)
{
	if (dst && src)
		km_result_copy(dst, src, known);
}

int km_flags_check(uint64_t flags, uint64_t known, const char *what)
{
	if (flags & ~known)
		return km_fail(EINVAL,
			       "%s: unknown bits 0x%" PRIx64 ", this library knows 0x%" PRIx64,
			       what, flags & ~known, known);
	return 0;
}

int km_range_check(uint64_t offset, uint64_t bytes, uint64_t limit, const char *what)
{
	if (!bytes)
		return km_fail(EINVAL, "%s: 0 bytes at offset 0x%" PRIx64 ", must be at least one",
			       what, offset);
	if (offset + bytes < offset)
		return km_fail(EINVAL, "%s: offset 0x%" PRIx64 " + 0x%" PRIx64 " bytes overflows",
			       what, offset, bytes);
	if (offset + bytes > limit)
		return km_fail(ERANGE,
			       "%s: offset 0x%" PRIx64 " + 0x%" PRIx64
			       " bytes ends beyond 0x%" PRIx64 " bytes",
			       what, offset, bytes, limit);
	return 0;
}

int km_align_check(uint64_t value, uint64_t align, const char *what)
{
	if (value & (align - 1))
		return km_fail(EINVAL,
			       "%s: 0x%" PRIx64 " is not a multiple of the page size 0x%" PRIx64,
			       what, value, align);
	return 0;
}
