// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* From an image to a guest that has done something useful, beside a private mapping of the image's data. */
#include <stdio.h>

#include "burst.h"
#include "restore_ways.h"

struct side {
	enum restore_way way;
	bool dropped;
};

static double time_of(void *arg)
{
	const struct side *side = arg;
	struct restored r;
	uint64_t result;
	double t;

	if (side->dropped)
		image_drop();
	t = bench_now();
	restore_begin(&r, side->way);
	result = restore_work(&r);
	t = bench_now() - t;
	restore_end(&r, result);
	return t;
}

struct way_row {
	enum restore_way way;
	const char *name, *what;
	double warm, dropped; /* targets; 0: none */
};

static const struct way_row way_rows[] = {
	{ RESTORE_EAGER, "eager", "read() of all", 0, 0 },
	{ RESTORE_PAGER, "pager", "kvmem_pager alone", 0, 0 },
	{ RESTORE_REPLAY, "replay", "kvmem_pager and kvmem_workset_replay", 0, 2 },
	{ RESTORE_CLONE, "clone", "KVMEM_REGION_CLONE of the data", 1 / 1.1, 0 },
	{ RESTORE_CLONE_AHEAD, "clone-set", "KVMEM_REGION_CLONE, the set read ahead", 1 / 1.1, 2 },
};

static void rows_of(bool dropped)
{
	for (size_t i = 0; i < sizeof(way_rows) / sizeof(way_rows[0]); i++) {
		const struct way_row *w = &way_rows[i];
		struct side file_map = { RESTORE_FILE_MAP, dropped }, ours = { w->way, dropped };
		struct bench_report r = {
			.unit = "ms",
			.baseline = { "MAP_PRIVATE of the data", time_of, &file_map },
			.ours = { w->what, time_of, &ours },
			.target = dropped ? w->dropped : w->warm,
			.note = "a thread of the host, without KVM, reads a tenth of the pages, "
				"scattered, as the guest",
		};
		char name[48];

		snprintf(name, sizeof(name), "restore-%s-%s", dropped ? "dropped" : "warm",
			 w->name);
		bench_compare(name, &r);
	}
}

static void restore(void)
{
	struct kvmem_pager *probe;

	if (kvmem_pager_create(NULL, &probe)) {
		bench_skip("restore", "%s", kvmem_error_detail());
		return;
	}
	must(kvmem_pager_free(probe));
	folder_enter();
	restore_open(bench_mib(1024, 64) * MIB);
	rows_of(false);
	rows_of(true);
	restore_close();
	folder_leave();
}

static void burst(void)
{
	folder_enter();
	restore_open(bench_mib(1024, 64) * MIB);
	burst_rows();
	restore_close();
	folder_leave();
}

BENCH_MAIN({ "restore", restore }, { "burst", burst })
