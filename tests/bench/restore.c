// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* From an image to a guest that has done something useful, beside a private mapping of the image's data. */
#include <stdio.h>

#include "burst.h"
#include "free_pages.h"
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
	{ RESTORE_REPLAY, "replay", "kvmem_workset_replay beside the guest", 0, 0 },
	{ RESTORE_REPLAY_FIRST, "replay-first", "kvmem_workset_replay, then the guest", 0, 2 },
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

/* A folder with an image, for the rows of fn. */
static void with_image(const char *name, void (*fn)(bool of), bool of)
{
	struct kvmem_pager *probe;

	if (kvmem_pager_create(NULL, &probe)) {
		bench_skip(name, "%s", kvmem_error_detail());
		return;
	}
	must(kvmem_pager_free(probe));
	folder_enter();
	restore_open(bench_mib(1024, 64) * MIB);
	free_pages_have(KVMEM_BACKING_ANONYMOUS, 2 * bench_mib(1024, 64) * MIB);
	fn(of);
	restore_close();
	folder_leave();
}

static void restore_warm(void)
{
	with_image("restore-warm", rows_of, false);
}

static void restore_dropped(void)
{
	with_image("restore-dropped", rows_of, true);
}

static void burst_time(void)
{
	with_image("burst-time", burst_rows, false);
}

static void burst_bytes(void)
{
	with_image("burst-bytes", burst_rows, true);
}

BENCH_MAIN({ "restore-warm", restore_warm }, { "restore-dropped", restore_dropped },
	   { "burst-time", burst_time }, { "burst-bytes", burst_bytes })
