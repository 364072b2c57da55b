// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What is in memory is what the server has: reads at odd places, blocks, holes, populate and pagers, errors. */
#include "nbd_rig.h"

#define ODD (8 * MIB + 777) /* no multiple of anything */

TEST(bad_input)
{
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct kvmem_nbd_stats stats = KVMEM_NBD_STATS_INIT;
	struct kvmem_nbd_info info = KVMEM_NBD_INFO_INIT;
	struct kvmem_source *source = NULL;
	struct kvmem_nbd *nbd = NULL;
	unsigned int fds, threads;

	enter_folder();
	fails(kvmem_nbd_open(URI, NULL, &nbd), ENOENT, "sock");
	fds = harness_count_fds(); /* a sanitizer has a thread of its own by now */
	threads = count_threads();
	fails(kvmem_nbd_open(NULL, NULL, &nbd), EINVAL, "uri is NULL");
	fails(kvmem_nbd_open(URI, NULL, NULL), EINVAL, "ret_nbd is NULL");
	o.size = 4;
	fails(kvmem_nbd_open(URI, &o, &nbd), EINVAL, "size");
	o.size = sizeof(o);
	o.flags = 1u << 30;
	fails(kvmem_nbd_open(URI, &o, &nbd), EINVAL, "flags");
	o.flags = 0;
	o.connections = 17;
	fails(kvmem_nbd_open(URI, &o, &nbd), EINVAL, "connections");
	o.connections = 0;
	o.depth = 1025;
	fails(kvmem_nbd_open(URI, &o, &nbd), EINVAL, "depth");
	fails(kvmem_nbd_open("guest.img", NULL, &nbd), EINVAL, "guest.img");
	fails(kvmem_nbd_open("http://localhost/", NULL, &nbd), EINVAL, "http://localhost/");
	fails(kvmem_nbd_open(URI, NULL, &nbd), ENOENT, "sock");
	fails(kvmem_nbd_open("nbd://127.0.0.1:1/", NULL, &nbd), EIO, "127.0.0.1:1");
	fails(kvmem_nbd_source(NULL, 0, 0, &source), EINVAL, "nbd is NULL");
	fails(kvmem_nbd_get_info(NULL, &info), EINVAL, "nbd is NULL");
	fails(kvmem_nbd_get_stats(NULL, &stats), EINVAL, "nbd is NULL");
	must(kvmem_nbd_close(NULL));
	ck_assert_ptr_null(nbd);
	ck_assert_uint_eq(harness_count_fds(), fds);
	threads_are(threads);
	leave_folder();
}
END

TEST(exports_that_cannot_be_used)
{
	struct kvmem_source *source = NULL;
	struct kvmem_nbd *nbd = NULL;
	struct server s;

	NEED_NBDKIT();
	enter_folder();
	server_start(&s, "--filter=exportname", "pattern", "1M", "exportname-strict=true",
		     "exportname=guest");
	fails(kvmem_nbd_open(URI, NULL, &nbd), ENOENT, "sock");
	must(kvmem_nbd_open("nbd+unix:///guest?socket=sock", NULL, &nbd));
	fails(kvmem_nbd_source(nbd, MIB, 0, &source), ENODATA, "too short");
	fails(kvmem_nbd_source(nbd, MIB - 1, 2, &source), ENODATA, "too short");
	fails(kvmem_nbd_source(nbd, UINT64_MAX, 2, &source), ENODATA, "too short");
	fails(kvmem_nbd_source(nbd, 2, UINT64_MAX, &source), ENODATA, "too short");
	fails(kvmem_nbd_source(nbd, 0, 0, NULL), EINVAL, "ret_source");
	must(kvmem_nbd_source(nbd, MIB - 1, 1, &source));
	fails(kvmem_nbd_close(nbd), EBUSY, "1 sources");
	must(kvmem_source_free(source));
	must(kvmem_nbd_close(nbd));
	server_kill(&s);
	server_start(&s, "memory", "0");
	fails(kvmem_nbd_open(URI, NULL, &nbd), ENODATA, "empty");
	server_kill(&s);
	leave_folder();
}
END

/* ---- reads ---- */

static void check_reads(struct kvmem_nbd *nbd, uint64_t offset, uint64_t bytes)
{
	struct kvmem_source *source = source_of(nbd, offset, bytes);
	uint8_t *buf = malloc(bytes + 1);
	unsigned long long seed = 7;

	ck_assert_uint_eq(kvmem_source_bytes(source), bytes);
	memset(buf, 0xee, bytes + 1);
	must(kvmem_source_read(source, 0, buf, bytes));
	ck_assert(is_pattern(buf, offset, bytes));
	ck_assert_uint_eq(buf[bytes], 0xee);
	for (unsigned int i = 0; i < 200; i++) {
		uint64_t at = harness_random(&seed) % bytes;
		uint64_t n = 1 + harness_random(&seed) % (i % 2 ? 9000 : 9);

		n = n < bytes - at ? n : bytes - at;
		memset(buf, 0xee, n + 1);
		must(kvmem_source_read(source, at, buf, n));
		ck_assert_msg(is_pattern(buf, offset + at, n), "%llu bytes at %llu",
			      (unsigned long long)n, (unsigned long long)at);
		ck_assert_uint_eq(buf[n], 0xee);
	}
	fails(kvmem_source_read(source, bytes - 1, buf, 2), ERANGE, "beyond");
	free(buf);
	must(kvmem_source_free(source));
}

TEST(reads_at_odd_places)
{
	char size[32];
	struct server s;
	struct kvmem_nbd *nbd;

	NEED_NBDKIT();
	enter_folder();
	snprintf(size, sizeof(size), "%llu", ODD);
	server_start(&s, "pattern", size);
	nbd = open_nbd(NULL);
	check_reads(nbd, 0, ODD);
	check_reads(nbd, 4096, 3 * MIB);
	check_reads(nbd, 12345, 2 * MIB + 1);
	check_reads(nbd, ODD - 5, 5);
	must(kvmem_nbd_close(nbd));
	server_kill(&s);
	leave_folder();
}
END

/* The server refuses what is no whole block, and what is more than it allows. */
TEST(a_server_of_blocks)
{
	static const char *const most[] = { "blocksize-maximum=64K", "blocksize-maximum=12K",
					    "blocksize-maximum=32M", "blocksize-maximum=4K" };
	char size[32];

	NEED_NBDKIT();
	enter_folder();
	snprintf(size, sizeof(size), "%llu", ODD);
	for (size_t i = 0; i < sizeof(most) / sizeof(most[0]); i++) {
		struct kvmem_nbd_info info = KVMEM_NBD_INFO_INIT;
		uint64_t readable = ODD & ~4095ull;
		struct kvmem_source *source;
		struct kvmem_nbd *nbd;
		struct server s;

		server_start(&s, "--filter=blocksize-policy", "pattern", size,
			     "blocksize-error-policy=error", "blocksize-minimum=4K", most[i]);
		nbd = open_nbd(NULL);
		must(kvmem_nbd_get_info(nbd, &info));
		ck_assert_uint_eq(info.block_bytes, 4096);
		ck_assert_uint_eq(info.bytes, readable);
		check_reads(nbd, 0, readable);
		check_reads(nbd, 100, MIB);
		check_reads(nbd, 4096 - 1, 4096 + 2);
		fails(kvmem_nbd_source(nbd, 0, readable + 1, &source), ENODATA, "too short");
		must(kvmem_nbd_close(nbd));
		server_kill(&s);
	}
	leave_folder();
}
END

/* ---- memory ---- */

TEST(two_regions_of_one_export_are_populated)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct server s;
	struct kvmem_nbd *nbd;

	NEED_NBDKIT();
	enter_folder();
	server_start(&s, "pattern", "48M");
	nbd = open_nbd(NULL);
	for (unsigned int i = 0; i < 2; i++) {
		uint64_t offset = i ? 16 * MIB + 512 : 0;
		struct kvmem_source *source;
		struct kvmem_region *ram;

		o.bytes = i ? 31 * MIB : 16 * MIB;
		source = source_of(nbd, offset, o.bytes);
		must(kvmem_region_create(NULL, &o, &ram));
		must(kvmem_populate(ram, 0, source, NULL, NULL));
		ck_assert(is_pattern(kvmem_region_base(ram), offset, o.bytes));
		must(kvmem_region_free(ram));
		must(kvmem_source_free(source));
	}
	ck_assert_uint_eq(stats_of(nbd).bytes, 47 * MIB);
	must(kvmem_nbd_close(nbd));
	server_kill(&s);
	leave_folder();
}
END

/* What lies behind the end of a short export is zero, as it is for each source. */
TEST(memory_comes_by_faults)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	uint64_t bytes = 16 * MIB;
	struct kvmem_nbd *nbd;
	struct memory m;
	struct server s;
	char size[32];

	NEED_NBDKIT();
	enter_folder();
	snprintf(size, sizeof(size), "%llu", ODD);
	server_start(&s, "pattern", size);
	nbd = open_nbd(NULL);
	o.flags = KVMEM_PAGER_BACKGROUND;
	if (memory_page(&m, source_of(nbd, 0, 0), bytes, &o)) {
		unsigned long long seed = 3;

		for (unsigned int i = 0; i < 500; i++) {
			uint64_t page = harness_random(&seed) % (ODD / PAGE) * PAGE;

			ck_assert(is_pattern(m.base + page, page, PAGE));
		}
		must(kvmem_pager_wait(m.pager, -1));
		ck_assert(is_pattern(m.base, 0, ODD));
		ck_assert(is_zero(m.base + ODD, bytes - ODD));
		must(kvmem_pager_stop(m.pager, KVMEM_STOP_FILL));
		memory_free(&m);
		must(kvmem_nbd_close(nbd));
	}
	server_kill(&s);
	leave_folder();
}
END

/* ---- holes ---- */

#define HOLED (24 * MIB)

/* A sparse file, and what it has. */
static uint8_t *make_file(const char *path)
{
	uint8_t *m = calloc(1, HOLED);
	unsigned long long seed = 17;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	ck_assert_ptr_nonnull(m);
	ck_assert_int_eq(ftruncate(fd, HOLED), 0);
	for (unsigned int i = 0; i < 60; i++) {
		uint64_t at = harness_random(&seed) % (HOLED / PAGE - 16) * PAGE;
		uint64_t bytes = (1 + harness_random(&seed) % 16) * PAGE;

		for (uint64_t b = 0; b < bytes; b++)
			m[at + b] = (uint8_t)(harness_random(&seed) | 1);
		ck_assert_int_eq(pwrite(fd, m + at, bytes, (off_t)at), (ssize_t)bytes);
	}
	close(fd);
	return m;
}

/* Zeros that the source tells of; each of them is one. */
static uint64_t check_extents(struct kvmem_source *source, const uint8_t *m)
{
	struct kvmem_extent e = KVMEM_EXTENT_INIT;
	uint64_t zero = 0, bytes = kvmem_source_bytes(source);

	for (uint64_t at = 0; at < bytes; at = e.offset + e.bytes) {
		must(kvmem_source_extent(source, at, &e));
		ck_assert_uint_eq(e.offset, at);
		if (e.kind == KVMEM_EXTENT_DATA)
			continue;
		ck_assert_uint_eq(at % PAGE, 0);
		ck_assert(is_zero(m + at, e.bytes));
		zero += e.bytes;
	}
	return zero;
}

TEST(holes_are_not_read)
{
	static const uint64_t offsets[] = { 0, 8 * PAGE, 1000, PAGE - 1 };
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct kvmem_nbd_info info = KVMEM_NBD_INFO_INIT;
	struct kvmem_nbd *nbd;
	struct server s;
	uint64_t zero = 0;
	uint8_t *m;

	NEED_NBDKIT();
	enter_folder();
	m = make_file("guest");
	for (uint64_t at = 0; at < HOLED; at += PAGE)
		zero += m[at] ? 0 : PAGE;
	server_start(&s, "file", "guest");
	o.flags = KVMEM_NBD_WAIT_HOLES;
	nbd = open_nbd(&o);
	must(kvmem_nbd_get_info(nbd, &info));
	ck_assert_uint_eq(info.flags, KVMEM_NBD_HOLES | KVMEM_NBD_MULTI_CONN);
	ck_assert_uint_eq(stats_of(nbd).bytes_known, HOLED);
	ck_assert_uint_eq(stats_of(nbd).bytes_zero, zero);
	for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
		struct kvmem_populate_result result = KVMEM_POPULATE_RESULT_INIT;
		struct kvmem_region_opts r = KVMEM_REGION_OPTS_INIT;
		uint64_t before = stats_of(nbd).bytes, told;
		struct kvmem_source *source = source_of(nbd, offsets[i], 0);
		struct kvmem_region *ram;

		r.bytes = HOLED;
		told = check_extents(source, m + offsets[i]);
		if (!offsets[i])
			ck_assert_uint_eq(told, zero);
		ck_assert_uint_gt(told, zero / 2);
		must(kvmem_region_create(NULL, &r, &ram));
		must(kvmem_populate(ram, 0, source, NULL, &result));
		ck_assert_int_eq(memcmp(kvmem_region_base(ram), m + offsets[i], HOLED - offsets[i]),
				 0);
		ck_assert_uint_eq(stats_of(nbd).bytes - before, HOLED - offsets[i] - told);
		must(kvmem_region_free(ram));
		must(kvmem_source_free(source));
	}
	must(kvmem_nbd_close(nbd));
	/* Whoever does not want to know reads it all. */
	o.flags = KVMEM_NBD_ALL_DATA | KVMEM_NBD_WAIT_HOLES;
	nbd = open_nbd(&o);
	ck_assert_uint_eq(stats_of(nbd).bytes_known, 0);
	{
		struct kvmem_source *source = source_of(nbd, 0, 0);

		ck_assert_uint_eq(check_extents(source, m), 0);
		must(kvmem_source_free(source));
	}
	must(kvmem_nbd_close(nbd));
	server_kill(&s);
	free(m);
	leave_folder();
}
END

/* Block status fails: nothing is known, and nothing else is amiss. */
TEST(a_server_that_fails_to_tell_holes)
{
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct kvmem_nbd *nbd;
	struct kvmem_source *source;
	struct server s;
	uint8_t *m, *buf = malloc(HOLED);

	NEED_NBDKIT();
	enter_folder();
	m = make_file("guest");
	server_start(&s, "--filter=error", "file", "guest", "error-extents-rate=100%");
	o.flags = KVMEM_NBD_WAIT_HOLES;
	nbd = open_nbd(&o);
	ck_assert_uint_eq(stats_of(nbd).bytes_known, 0);
	source = source_of(nbd, 0, 0);
	must(kvmem_source_read(source, 0, buf, HOLED));
	ck_assert_int_eq(memcmp(buf, m, HOLED), 0);
	must(kvmem_source_free(source));
	must(kvmem_nbd_close(nbd));
	free(buf);
	free(m);
	server_kill(&s);
	leave_folder();
}
END

/* ---- errors ---- */

/* Bad sectors of the server's disk: the pages that they are in are poisoned, and no others. */
TEST(bad_pages_are_poisoned_and_no_others)
{
	static const uint64_t bad[] = { 5, 6, 100, 511 };
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	uint64_t pages = 512, at = 0;
	struct kvmem_nbd *nbd;
	struct memory m;
	struct server s;
	FILE *f;

	NEED_NBDKIT();
	enter_folder();
	catch_signals();
	f = fopen("map", "we");
	fprintf(f, "# Mapfile.\n# current_pos  current_status\n0x0 +\n");
	for (unsigned int i = 0; i < 4; i++) {
		if (bad[i] * PAGE > at)
			fprintf(f, "0x%llx 0x%llx +\n", (unsigned long long)at,
				(unsigned long long)(bad[i] * PAGE - at));
		fprintf(f, "0x%llx 0x1000 -\n", bad[i] * PAGE);
		at = (bad[i] + 1) * PAGE;
	}
	fclose(f);
	server_start(&s, "--filter=ddrescue", "pattern", "2M", "ddrescue-mapfile=map");
	nbd = open_nbd(NULL);
	o.flags = KVMEM_PAGER_BACKGROUND;
	if (memory_page(&m, source_of(nbd, 0, 0), pages * PAGE, &o)) {
		for (uint64_t page = 0; page < pages; page++) {
			bool is_bad = page == 5 || page == 6 || page == 100 || page == 511;

			ck_assert_int_eq(!!signal_of(m.base + page * PAGE), is_bad);
			if (!is_bad)
				ck_assert(is_pattern(m.base + page * PAGE, page * PAGE, PAGE));
		}
		ck_assert_uint_eq(pager_stats(&m).pages_poisoned, 4);
		ck_assert_int_eq(kvmem_pager_stop(m.pager, KVMEM_STOP_FILL), -EIO);
		ck_assert_uint_ge(stats_of(nbd).requests_failed, 4);
		ck_assert_ptr_nonnull(strstr(stats_of(nbd).why, "reading 0x1000 bytes"));
		memory_free(&m);
		must(kvmem_nbd_close(nbd));
	}
	server_kill(&s);
	leave_folder();
}
END

/* ---- connections ---- */

TEST(several_connections_where_the_server_allows_it)
{
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct kvmem_nbd_info info = KVMEM_NBD_INFO_INIT;
	struct kvmem_nbd *nbd;
	struct server s;

	NEED_NBDKIT();
	enter_folder();
	for (unsigned int allowed = 0; allowed < 2; allowed++) {
		server_start(&s, "--filter=multi-conn", "pattern", "32M",
			     allowed ? "multi-conn-mode=plugin" : "multi-conn-mode=disable");
		o.connections = 7;
		nbd = open_nbd(&o);
		must(kvmem_nbd_get_info(nbd, &info));
		ck_assert_uint_eq(info.connections, allowed ? 7 : 1);
		ck_assert_uint_eq(info.flags & KVMEM_NBD_MULTI_CONN,
				  allowed ? KVMEM_NBD_MULTI_CONN : 0);
		check_reads(nbd, 0, 32 * MIB);
		must(kvmem_nbd_close(nbd));
		server_kill(&s);
	}
	leave_folder();
}
END

/* By a key that both have. */
TEST(encrypted)
{
	static const char uri[] = "nbds+unix://alice@/?socket=sock&tls-psk-file=keys";
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
	struct kvmem_nbd_info info = KVMEM_NBD_INFO_INIT;
	struct kvmem_nbd *nbd;
	struct server s;

	NEED_NBDKIT();
	enter_folder();
	shell("echo alice:0123456789abcdef0123456789abcdef >keys; chmod 600 keys");
	server_start(&s, "--tls=require", "--tls-psk=keys", "pattern", "8M");
	fails(kvmem_nbd_open(URI, NULL, &nbd), EIO, "TLS");
	fails(kvmem_nbd_open(uri, NULL, &nbd), EPERM, "file");
	o.flags = KVMEM_NBD_URI_FILES;
	must(kvmem_nbd_open(uri, &o, &nbd));
	must(kvmem_nbd_get_info(nbd, &info));
	ck_assert_uint_ne(info.flags & KVMEM_NBD_TLS, 0);
	check_reads(nbd, 0, 8 * MIB);
	must(kvmem_nbd_close(nbd));
	shell("echo alice:0123456789abcdef0123456789abcdee >others");
	fails(kvmem_nbd_open("nbds+unix://alice@/?socket=sock&tls-psk-file=others", &o, &nbd), EIO,
	      "connecting");
	server_kill(&s);
	leave_folder();
}
END

HARNESS_MAIN(T(bad_input), T(exports_that_cannot_be_used), T(reads_at_odd_places),
	     T(a_server_of_blocks), T(two_regions_of_one_export_are_populated),
	     T(memory_comes_by_faults), T(holes_are_not_read), T(a_server_that_fails_to_tell_holes),
	     T(bad_pages_are_poisoned_and_no_others),
	     T(several_connections_where_the_server_allows_it), T(encrypted))
