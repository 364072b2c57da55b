// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What a fault, and who waits for a page, pay for what goes on beside them. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "guest/protocol.h" /* guest_shuffle() */

#include "pager_mem.h"

#define READ_NS	     50e6
#define CALLER_BYTES (16 * MIB)

static void ok(int r)
{
	bench_check(r >= 0, "%s", kvmem_error_detail());
}

static void sleep_ns(double ns)
{
	struct timespec ts = { .tv_nsec = (long)ns };

	nanosleep(&ts, NULL);
}

static int slow_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	sleep_ns(READ_NS);
	memcpy(buf, (const uint8_t *)arg + offset, bytes);
	return 0;
}

static void open_slow(struct lazy *l, uint64_t bytes, uint32_t flags)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_pager_opts po = KVMEM_PAGER_OPTS_INIT;

	memset(l, 0, sizeof(*l));
	l->content = lazy_content(bytes);
	l->bytes = bytes;
	o.bytes = bytes;
	o.backing = KVMEM_BACKING_MEMFD;
	ops.read = slow_read;
	po.flags = flags;
	ok(kvmem_region_create(NULL, &o, &l->region));
	l->base = kvmem_region_base(l->region);
	ok(kvmem_source_callback(&ops, (void *)(uintptr_t)l->content, bytes, &l->source));
	ok(kvmem_pager_create(&po, &l->pager));
	ok(kvmem_pager_add(l->pager, l->region, l->source, 0, 0));
	ok(kvmem_pager_start(l->pager));
}

static void close_slow(struct lazy *l)
{
	ok(kvmem_pager_stop(l->pager, KVMEM_STOP_HAND_BACK));
	ok(kvmem_pager_free(l->pager));
	ok(kvmem_region_free(l->region));
	ok(kvmem_source_free(l->source));
}

/* ---- faults beside a background over a slow source ---- */

/* The 99th of 100 waits, or the last but none of fewer. */
static double wait_under_background(void *arg)
{
	unsigned int n = bench_quick() ? 12 : 40;
	uint64_t pages = CALLER_BYTES / PAGE;
	double worst = 0;
	struct lazy l;

	(void)arg;
	open_slow(&l, CALLER_BYTES, KVMEM_PAGER_BACKGROUND);
	for (unsigned int i = 0; i < n; i++) {
		uint64_t page = guest_shuffle(i, pages);
		double start = bench_now(), took;

		bench_check(!memcmp(l.base + page * PAGE, l.content + page * PAGE, PAGE),
			    "content");
		took = bench_now() - start;
		worst = took > worst ? took : worst;
	}
	close_slow(&l);
	return worst;
}

static double one_read(void *arg)
{
	double start = bench_now();

	(void)arg;
	sleep_ns(READ_NS);
	return bench_now() - start;
}

static void demand_under_background(void)
{
	bench_compare("pager-demand-under-background",
		      &(struct bench_report){
			      .on = "memfd",
			      .unit = "ms",
			      .rounds = 5,
			      .baseline = { "one read of the source", one_read, NULL },
			      .ours = { "the longest wait of a fault, beside the background",
					wait_under_background, NULL },
			      .target = 1 / 1.2,
			      .note = "a source of 50 ms a read; random pages",
		      });
}

/* ---- fault-around over a cold file ---- */

static double cold_faults(void *arg)
{
	uint64_t around = *(const uint64_t *)arg, bytes = 64 * MIB, pages = bytes / PAGE;
	unsigned int n = bench_quick() ? 200 : 800;
	const uint8_t *content = lazy_content(bytes);
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_pager_opts po = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_source *source;
	struct kvmem_region *ram;
	struct kvmem_pager *pager;
	static int fd = -1;
	uint8_t *base;
	char path[4096];
	double start, took;

	if (fd < 0) {
		snprintf(path, sizeof(path), "%s/around-cold.img", bench_dir());
		fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		bench_check(fd >= 0, "%s: %s", path, strerror(errno));
		unlink(path);
		bench_check(write(fd, content, bytes) == (ssize_t)bytes, "write");
		bench_check(!fsync(fd), "fsync");
	}
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	po.fault_around = around;
	o.bytes = bytes;
	o.backing = KVMEM_BACKING_MEMFD;
	ok(kvmem_region_create(NULL, &o, &ram));
	base = kvmem_region_base(ram);
	ok(kvmem_source_file(fd, 0, bytes, 0, &source));
	ok(kvmem_pager_create(&po, &pager));
	ok(kvmem_pager_add(pager, ram, source, 0, 0));
	ok(kvmem_pager_start(pager));
	start = bench_now();
	for (unsigned int i = 0; i < n; i++) {
		uint64_t page = guest_shuffle(i, pages);

		bench_check(!memcmp(base + page * PAGE, content + page * PAGE, PAGE), "content");
	}
	took = bench_now() - start;
	ok(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
	ok(kvmem_pager_free(pager));
	ok(kvmem_region_free(ram));
	ok(kvmem_source_free(source));
	return took;
}

static void around_cold(void)
{
	static uint64_t off = PAGE, on = 0;

	bench_compare("pager-around-cold",
		      &(struct bench_report){
			      .on = "memfd",
			      .unit = "ms",
			      .rounds = BENCH_MORE,
			      .baseline = { "pager, fault-around off", cold_faults, &off },
			      .ours = { "pager, fault-around on", cold_faults, &on },
			      .target = 1 / 1.05,
			      .note = "scattered faults; the file was dropped from the page cache",
		      });
}

/* ---- the CPU time of who waits for a claim ---- */

static double cpu_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static void *touch_first(void *arg)
{
	(void)*(volatile uint8_t *)arg;
	return NULL;
}

/* A discard of a page that a fault is filling from a slow source. */
static double claim_wait(bool cpu)
{
	double start = 0, begun = 0, took = 0;
	pthread_t thread;
	struct lazy l;

	open_slow(&l, MIB, 0);
	bench_check(!pthread_create(&thread, NULL, touch_first, l.base), "thread");
	sleep_ns(5e6);
	start = cpu ? cpu_now() : 0;
	begun = bench_now();
	ok(kvmem_region_discard(l.region, 0, PAGE));
	took = cpu ? cpu_now() - start : bench_now() - begun;
	pthread_join(thread, NULL);
	close_slow(&l);
	return took;
}

static double claim_wait_cpu(void *arg)
{
	(void)arg;
	return claim_wait(true);
}

static double claim_wait_share(void *arg)
{
	(void)arg;
	return claim_wait(false) / 100;
}

static void wait_cpu(void)
{
	bench_compare("claim-wait-cpu",
		      &(struct bench_report){
			      .on = "memfd",
			      .unit = "us",
			      .rounds = BENCH_MORE,
			      .baseline = { "1 % of the wait", claim_wait_share, NULL },
			      .ours = { "CPU time of a discard that waits for a fill",
					claim_wait_cpu, NULL },
			      .target = 1,
			      .note = "a source of 50 ms a read",
		      });
}

BENCH_MAIN({ "pager-demand-under-background", demand_under_background },
	   { "pager-around-cold", around_cold }, { "claim-wait-cpu", wait_cpu })
