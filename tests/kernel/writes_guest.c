// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What vCPUs write, of which KVM keeps no log, is told by the mapping: a copy kept up by it is the memory at last. */
#include "dirty_rig.h"

#include <errno.h>
#include <string.h>

#define BYTES (UINT64_C(16) << 20)

static uint64_t take(struct kvmem_writes *writes, struct rig *rig)
{
	uint64_t pages = 0, next;
	struct kvmem_run runs[64];

	for (uint64_t at = 0; at < BYTES; at = next) {
		int64_t n = kvmem_writes_take(writes, rig->ram, at, runs, 64, &next);

		ck_ok(n);
		for (int64_t i = 0; i < n; i++) {
			memcpy(rig->copy + runs[i].offset, rig->base + runs[i].offset,
			       runs[i].bytes);
			pages += runs[i].bytes / RIG_PAGE;
		}
	}
	return pages;
}

static void without_a_log(uint32_t backing)
{
	struct rig_opts o = { .mode = KVMEM_DIRTY_BITMAP,
			      .bytes = BYTES,
			      .vcpus = 2,
			      .backing = backing,
			      .not_started = true };
	struct kvmem_writes *writes;
	static struct rig rig; /* threads outlive a test that fails */
	uint64_t pages = 0;
	int r;

	if (!rig_open(&rig, &o))
		return;
	r = kvmem_writes_create(NULL, &writes);
	if (r == -EOPNOTSUPP || r == -EPERM) {
		harness_skip("wp-async", "%s", kvmem_error_detail());
		rig_close(&rig);
		return;
	}
	ck_ok(r);
	ck_ok(kvmem_writes_add(writes, rig.ram));
	for (unsigned int round = 0; round < 4; round++) {
		for (unsigned int i = 0; i < rig.count; i++)
			rig_write(&rig, i, 8, 300, round % 2);
		while (rig_running(&rig))
			pages += take(writes, &rig);
		rig_wait(&rig);
		pages += take(writes, &rig);
		ck_assert_uint_eq(rig_lost(&rig), 0);
		ck_assert_uint_eq(take(writes, &rig), 0);
	}
	harness_note("%lu pages were told", (unsigned long)pages);
	ck_assert_uint_gt(pages, 600);
	ck_ok(kvmem_writes_remove(writes, rig.ram));
	ck_ok(kvmem_writes_free(writes));
	rig_close(&rig);
}

TEST(anonymous_memory)
{
	without_a_log(KVMEM_BACKING_ANONYMOUS);
}
END

TEST(a_memfd)
{
	without_a_log(KVMEM_BACKING_MEMFD);
}
END

TEST(a_guest_memfd)
{
	without_a_log(KVMEM_BACKING_GUEST_MEMFD);
}
END

HARNESS_MAIN(T(anonymous_memory), T(a_memfd), T(a_guest_memfd))
