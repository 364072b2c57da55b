// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Filling guest memory from files: sparse and cached, whole and cold. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fill_mem.h"

#define RUN   MIB /* of data in the sparse file, each fourth MiB */
#define DEPTH 16u /* of the reads that find out what the disk can do */

static uint64_t file_bytes;
static bool file_sparse;
static int file = -1;
static uint8_t *unit; /* what the file is made of: MiB i begins at word i % 4096 of this */

static bool is_data(uint64_t mib)
{
	return !file_sparse || mib % 4 == 0;
}

static uint64_t data_bytes(void)
{
	return file_sparse ? file_bytes / 4 : file_bytes;
}

static const uint8_t *mib_content(uint64_t mib)
{
	return unit + mib % 4096 * 8;
}

static void make_file(uint64_t bytes, bool sparse)
{
	char path[4096];

	file_bytes = bytes;
	file_sparse = sparse;
	if (!unit) {
		unit = bench_alloc(2 * MIB);
		bench_random_words(unit, 2 * MIB, 3);
	}
	snprintf(path, sizeof(path), "%s/bench-XXXXXX", bench_dir());
	file = mkostemp(path, O_CLOEXEC);
	bench_check(file >= 0, "no file can be made in %s", bench_dir());
	unlink(path);
	bench_check(!ftruncate(file, (off_t)bytes), "ftruncate");
	for (uint64_t i = 0; i < bytes / MIB; i++)
		if (is_data(i))
			bench_check(pwrite(file, mib_content(i), MIB, (off_t)(i * MIB)) ==
					    (ssize_t)MIB,
				    "no room for a file of 0x%lx bytes in %s", (unsigned long)bytes,
				    bench_dir());
	bench_check(!fsync(file), "fsync");
}

static void make_cold(void)
{
	bench_check(!posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED), "posix_fadvise");
}

/* Memory without pages is zero; looking at it would only make some. */
static bool has_pages(const uint8_t *p)
{
	unsigned char in[MIB / PAGE];

	bench_check(!mincore((void *)(uintptr_t)p, MIB, in), "mincore");
	for (size_t i = 0; i < MIB / PAGE; i++)
		if (in[i] & 1)
			return true;
	return false;
}

static void check_memory(const struct memory *m)
{
	static const uint8_t zero[MIB];

	for (uint64_t i = 0; i < m->bytes / MIB; i++) {
		const uint8_t *p = m->base + i * MIB;

		if (is_data(i) || has_pages(p))
			bench_check(!memcmp(p, is_data(i) ? mib_content(i) : zero, MIB),
				    "MiB %lu is not what the file is", (unsigned long)i);
	}
}

static void read_all(int fd, uint8_t *to, uint64_t bytes, uint64_t offset)
{
	while (bytes) {
		ssize_t n = pread(fd, to, bytes, (off_t)offset);

		bench_check(n > 0, "pread: %s", strerror(errno));
		to += n;
		offset += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
}

/* ---- sparse, cached ---- */

static double pread_whole(void *arg)
{
	struct memory m;
	double start, took;

	(void)arg;
	memory_make(&m, KVMEM_BACKING_AUTO, file_bytes, file_bytes);
	start = bench_now();
	read_all(file, m.base, file_bytes, 0);
	took = bench_now() - start;
	check_memory(&m);
	memory_free(&m);
	return took;
}

static double pread_data(void *arg)
{
	struct memory m;
	double start, took;

	(void)arg;
	memory_make(&m, KVMEM_BACKING_AUTO, file_bytes, data_bytes());
	start = bench_now();
	for (uint64_t i = 0; i < file_bytes / MIB; i++)
		if (is_data(i))
			read_all(file, m.base + i * MIB, MIB, i * MIB);
	took = bench_now() - start;
	check_memory(&m);
	memory_free(&m);
	return took;
}

static uint32_t threads, file_method;

static double by_populate(void *arg)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_source *s;
	struct memory m;
	double took;

	(void)arg;
	o.threads = threads;
	o.file_method = file_method;
	memory_make(&m, KVMEM_BACKING_AUTO, file_bytes, data_bytes());
	bench_check(!kvmem_source_file(file, 0, 0, 0, &s), "source: %s", kvmem_error_detail());
	took = memory_fill(&m, s, &o, NULL);
	check_memory(&m);
	kvmem_source_free(s);
	memory_free(&m);
	return took;
}

static void sparse(void)
{
	make_file(bench_mib(4096, 1024) * MIB, true);
	threads = 0;
	bench_compare(
		"fill-sparse",
		&(struct bench_report){
			.on = memory_kind(0),
			.unit = "ms",
			.baseline = { "pread() of the whole file", pread_whole, NULL },
			.ours = { "kvmem_populate", by_populate, NULL },
			.limit = { "pread() of the data alone, 1 thread", pread_data, NULL },
			.target = 5,
			.note = "a quarter of the file is data, in runs of 1 MiB, all in the page cache",
		});
	threads = 1;
	bench_compare("fill-sparse-1",
		      &(struct bench_report){
			      .on = memory_kind(0),
			      .unit = "ms",
			      .baseline = { "pread() of the whole file", pread_whole, NULL },
			      .ours = { "kvmem_populate, 1 thread", by_populate, NULL },
			      .limit = { "pread() of the data alone, 1 thread", pread_data, NULL },
		      });
	close(file);
}

/* ---- whole, cold ---- */

static double cold_pread(void *arg)
{
	uint8_t *buf = bench_alloc(MIB);
	struct memory m;
	double start, took;

	(void)arg;
	make_cold();
	memory_make(&m, KVMEM_BACKING_AUTO, file_bytes, file_bytes);
	start = bench_now();
	for (uint64_t at = 0; at < file_bytes; at += MIB) {
		read_all(file, buf, MIB, at);
		memcpy(m.base + at, buf, MIB);
	}
	took = bench_now() - start;
	check_memory(&m);
	memory_free(&m);
	munmap(buf, MIB);
	return took;
}

static double cold_populate(void *arg)
{
	make_cold();
	return by_populate(arg);
}

static void queue_read(struct io_uring *ring, int fd, uint8_t *buf, unsigned int slot,
		       uint64_t offset)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_read(sqe, fd, buf + slot * MIB, MIB, offset);
	io_uring_sqe_set_data(sqe, (void *)(uintptr_t)slot);
	bench_check(io_uring_submit(ring) == 1, "io_uring_submit");
}

/* The file in order with O_DIRECT, several reads in flight, into buffers that nobody looks at. */
static double disk_alone(void *arg)
{
	char path[64];
	uint8_t *buf = bench_alloc(DEPTH * MIB);
	struct io_uring ring;
	uint64_t at = 0, done = 0;
	double start, took;
	int fd;

	(void)arg;
	make_cold();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	bench_check(fd >= 0 && !io_uring_queue_init(DEPTH, &ring, 0), "O_DIRECT or io_uring");
	start = bench_now();
	for (unsigned int i = 0; i < DEPTH; i++, at += MIB)
		queue_read(&ring, fd, buf, i, at);
	while (done < file_bytes) {
		struct io_uring_cqe *cqe;
		unsigned int slot;

		bench_check(!io_uring_wait_cqe(&ring, &cqe) && cqe->res == (int)MIB, "read");
		slot = (unsigned int)(uintptr_t)io_uring_cqe_get_data(cqe);
		io_uring_cqe_seen(&ring, cqe);
		done += MIB;
		if (at < file_bytes) {
			queue_read(&ring, fd, buf, slot, at);
			at += MIB;
		}
	}
	took = bench_now() - start;
	io_uring_queue_exit(&ring);
	close(fd);
	munmap(buf, DEPTH * MIB);
	return took;
}

static bool has_direct(void)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void cold(void)
{
	make_file(bench_mib(2048, 512) * MIB, false);
	threads = 0;
	if (has_direct())
		bench_compare("fill-cold",
			      &(struct bench_report){
				      .on = memory_kind(0),
				      .unit = "ms",
				      .baseline = { "pread() of 1 MiB, memcpy", cold_pread, NULL },
				      .ours = { "kvmem_populate", cold_populate, NULL },
				      .limit = { "the disk alone: O_DIRECT, 16 MiB in flight",
						 disk_alone, NULL },
				      .target = 1.5,
				      .limit_target = 1 / 0.85,
			      });
	else
		bench_skip("fill-cold", "%s takes no O_DIRECT", bench_dir());
	close(file);
}

static void file_methods(void)
{
	make_file(bench_mib(1024, 256) * MIB, false);
	for (file_method = KVMEM_FILE_DIRECT; file_method <= KVMEM_FILE_PREAD; file_method++) {
		for (threads = 1; threads <= 2; threads++) {
			char curve[64];
			double x = threads, y;

			if (file_method == KVMEM_FILE_DIRECT && !has_direct())
				continue;
			y = (double)file_bytes / bench_median(cold_populate, NULL) * 1e9 /
			    (double)MIB;
			snprintf(curve, sizeof(curve), "cold, %s",
				 kvmem_file_method_name(file_method));
			bench_series("fill-file-method", curve, "threads", "MiB/s", &x, &y, 1);
			if (file_method == KVMEM_FILE_DIRECT)
				continue; /* it left nothing in the cache */
			y = (double)file_bytes / bench_median(by_populate, NULL) * 1e9 /
			    (double)MIB;
			snprintf(curve, sizeof(curve), "cached, %s",
				 kvmem_file_method_name(file_method));
			bench_series("fill-file-method", curve, "threads", "MiB/s", &x, &y, 1);
		}
	}
	file_method = KVMEM_FILE_AUTO;
	close(file);
}

BENCH_MAIN({ "fill-sparse", sparse }, { "fill-cold", cold }, { "fill-file-method", file_methods })
