/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef ON_TOP_H
#define ON_TOP_H

/* What tests of the libraries on top share: calls that succeed or fail, and a folder of a test's own. */

#include "harness.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#define PAGE 4096ull
#define MIB  (1ull << 20)

static inline void must(int r)
{
	if (r < 0)
		ck_abort_msg("%d: %s", r, kvmem_error_detail());
}

static inline void fails(int r, int err, const char *word)
{
	if (r != -err || !strstr(kvmem_error_detail(), word))
		ck_abort_msg("%d, not %d, or '%s' is not in: %s", r, -err, word,
			     kvmem_error_detail());
}

/* The last sentence is one of this call, and of no other that it has made. */
static inline void names_call(const char *call)
{
	const char *detail = kvmem_error_detail();
	size_t n = strlen(call);

	if (strncmp(detail, call, n) != 0 || strncmp(detail + n, ": ", 2) != 0 ||
	    !strncmp(detail + n + 2, "kvmem_", 6))
		ck_abort_msg("not of %s(): %s", call, detail);
}

/* A command of the test's own, no input of anybody's. */
static inline void shell(const char *command)
{
	if (system(command)) /* NOLINT(cert-env33-c) */
		ck_abort_msg("%s", command);
}

/* Made, entered, and removed with all that is in it. */
static char folder[64];

static inline void enter_folder(void)
{
	snprintf(folder, sizeof(folder), "%s/kvmem-test-XXXXXX",
		 getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	ck_assert_int_eq(chdir(folder), 0);
}

static inline void leave_folder(void)
{
	char command[128];

	ck_assert_int_eq(chdir("/"), 0);
	snprintf(command, sizeof(command), "rm -rf '%s'", folder);
	shell(command);
}

#endif
