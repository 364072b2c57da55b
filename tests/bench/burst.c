// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Sixteen processes, as VMMs are, which restore the same image at the same moment. */
#include "burst.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "restore_ways.h"

#define COUNT 16u

/* Between the processes. */
struct shared {
	pthread_barrier_t start, end;
	double ns[COUNT];
	uint64_t disk_bytes[COUNT];
};

struct side {
	enum restore_way way;
	bool dropped;
	bool bytes; /* the value is what was read from the disk */
};

/* What this process has had read from disks, its threads included. */
static uint64_t disk_bytes(void)
{
	return proc_number("/proc/self/io", "read_bytes:");
}

static void one_of_them(struct shared *shared, unsigned int number, enum restore_way way)
{
	uint64_t before = disk_bytes(), result;
	struct restored r;
	double t;

	pthread_barrier_wait(&shared->start);
	t = bench_now();
	restore_begin(&r, way);
	result = restore_work(&r);
	shared->ns[number] = bench_now() - t;
	pthread_barrier_wait(&shared->end); /* nobody's checks are in somebody else's time */
	shared->disk_bytes[number] = disk_bytes() - before;
	restore_end(&r, result);
}

static struct shared *shared_new(void)
{
	struct shared *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_barrierattr_t attr;

	bench_check(s != MAP_FAILED, "burst: no memory");
	pthread_barrierattr_init(&attr);
	pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&s->start, &attr, COUNT);
	pthread_barrier_init(&s->end, &attr, COUNT);
	pthread_barrierattr_destroy(&attr);
	return s;
}

static int by_value(const void *a, const void *b)
{
	return (*(const double *)a > *(const double *)b) -
	       (*(const double *)a < *(const double *)b);
}

static double run(void *arg)
{
	const struct side *side = arg;
	struct shared *shared = shared_new();
	pid_t pids[COUNT];
	double value = 0;

	if (side->dropped)
		image_drop();
	fflush(stdout);
	for (unsigned int i = 0; i < COUNT; i++) {
		pids[i] = fork();
		bench_check(pids[i] >= 0, "burst: fork");
		if (pids[i])
			continue;
		one_of_them(shared, i, side->way);
		_exit(0);
	}
	for (unsigned int i = 0; i < COUNT; i++) {
		int status;

		bench_check(waitpid(pids[i], &status, 0) == pids[i] && !status,
			    "burst: a restore failed");
		value += (double)shared->disk_bytes[i] / (double)MIB;
	}
	if (!side->bytes) {
		qsort(shared->ns, COUNT, sizeof(shared->ns[0]), by_value);
		value = shared->ns[COUNT * 95 / 100];
	}
	munmap(shared, sizeof(*shared));
	return value;
}

static double image_mib(void *arg)
{
	(void)arg;
	return (double)restore_set_bytes() * 10 / (double)MIB;
}

static void row(const char *name, enum restore_way way, const char *what, bool dropped, bool bytes)
{
	struct side file_map = { RESTORE_FILE_MAP, dropped, bytes }, ours = { way, dropped, bytes };
	struct bench_report r = {
		.unit = bytes ? "MiB" : "ms",
		.baseline = { "16 private mappings", run, &file_map },
		.ours = { what, run, &ours },
		.target = bytes ? 0 : 1 / 1.1,
		.note = bytes ? "read from the disk by all of them together"
			      : "the slowest but none of 16 processes (p95); threads of the host, "
				"without KVM, as the guests",
	};

	if (bytes) {
		r.limit = (struct bench_side){ "the image, once", image_mib, NULL };
		r.limit_target = 1.02;
	}
	bench_compare(name, &r);
}

void burst_rows(bool bytes)
{
	if (!bytes) {
		row("burst-time-warm-clone", RESTORE_CLONE, "16 clones", false, false);
		row("burst-time-warm-replay", RESTORE_REPLAY, "16 pagers with a replay", false,
		    false);
		row("burst-time-dropped-clone", RESTORE_CLONE, "16 clones", true, false);
	}
	row(bytes ? "burst-bytes-clone-set" : "burst-time-dropped-clone-set", RESTORE_CLONE_AHEAD,
	    "16 clones, the set read ahead", true, bytes);
	row(bytes ? "burst-bytes-replay" : "burst-time-dropped-replay", RESTORE_REPLAY,
	    "16 pagers with a replay", true, bytes);
}
