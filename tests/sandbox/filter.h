/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef FILTER_H
#define FILTER_H

/* Filters of system calls. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

struct call {
	int nr;
	const char *name;
	const char *ioctl; /* of nr SYS_ioctl: which one; NULL: any */
};

/* ioctls of the library and of a VMM, by name; 0: not known. */
uint32_t filter_ioctl(const char *name);
void filter_print_ioctls(void);

/* For all threads: what is in none of the lists raises SIGSYS, which ends the process with FILTER_REFUSED and the
 * call's name. The VMM's own calls are always let through. */
#define FILTER_REFUSED 99
bool filter_allow(const struct call *const *lists, const size_t *counts, size_t list_count);
/* One call is answered with an errno, all else goes on. */
bool filter_refuse(const struct call *call, int error);

#endif
