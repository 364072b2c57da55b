/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* What all examples do with an error: say it and end. */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <errno.h>
#include <kvmem/kvmem.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXIT_SKIP 77

#define MIB UINT64_C(0x100000)

static inline void example_fail(int64_t ret, const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", what, strerror((int)-ret), kvmem_error_detail());
	exit(EXIT_FAILURE);
}

/* ret, when it is not an error. */
static inline int64_t must(int64_t ret, const char *what)
{
	if (ret < 0)
		example_fail(ret, what);
	return ret;
}

/* A VM, or the end of the program where there is no KVM. */
static inline struct kvmem_vm *must_have_vm(const struct kvmem_vm_opts *opts)
{
	struct kvmem_vm *vm;
	int ret = kvmem_vm_create(opts, &vm);

	if (ret == -ENOENT || ret == -ENODEV || ret == -EACCES) {
		fprintf(stderr, "no virtual machine can be made here: %s\n", kvmem_error_detail());
		exit(EXIT_SKIP);
	}
	must(ret, "kvmem_vm_create");
	return vm;
}

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline double mib_per_s(uint64_t bytes, uint64_t ns)
{
	return ns ? (double)bytes / (double)MIB * 1e9 / (double)ns : 0;
}

#endif
