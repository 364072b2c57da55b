/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/*
 * pager [FILE]: a file appears in memory page by page as it is touched, in pseudo-random order, and
 * each page is compared with the file. No VM: the same memory could be a guest's.
 */
#include "example.h"
#include "guest/protocol.h" /* guest_shuffle() */

#include <fcntl.h>
#include <unistd.h>

static struct kvmem_pager *start(struct kvmem_region *ram, struct kvmem_source *source)
{
	struct kvmem_pager_opts opts = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_pager *pager;

	opts.fault_around = MIB / 16;
	must(kvmem_pager_create(&opts, &pager), "kvmem_pager_create");
	must(kvmem_pager_add(pager, ram, source, 0, 0), "kvmem_pager_add");
	must(kvmem_pager_start(pager), "kvmem_pager_start");
	return pager;
}

static uint64_t wrong_pages(struct kvmem_region *ram, int fd, uint64_t bytes)
{
	uint64_t page = kvmem_region_page_size(ram), pages = (bytes + page - 1) / page, wrong = 0;
	const char *base = kvmem_region_base(ram);
	char *expected = malloc(page);

	if (!expected)
		exit(EXIT_FAILURE);
	for (uint64_t i = 0; i < pages; i++) {
		uint64_t at = guest_shuffle(i, pages) * page;

		memset(expected, 0, page); /* beyond the end of the file */
		if (pread(fd, expected, page, (off_t)at) < 0 || memcmp(expected, base + at, page))
			wrong++;
	}
	free(expected);
	return wrong;
}

static void report(struct kvmem_pager *pager)
{
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;

	must(kvmem_pager_get_stats(pager, &s), "kvmem_pager_get_stats");
	printf("faults: %llu missing, %llu minor; pages: %llu on demand, %llu around them, %llu zero\n",
	       (unsigned long long)s.faults_missing, (unsigned long long)s.faults_minor,
	       (unsigned long long)s.pages_demand, (unsigned long long)s.pages_around,
	       (unsigned long long)s.pages_zero);
	printf("service time: p50 below %.1f us, p99 below %.1f us\n",
	       (double)s.service_p50_ns / 1e3, (double)s.service_p99_ns / 1e3);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "/proc/self/exe";
	struct kvmem_region_opts opts = KVMEM_REGION_OPTS_INIT;
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	struct kvmem_source *source;
	struct kvmem_region *ram;
	struct kvmem_pager *pager;
	uint64_t bytes, wrong;

	if (fd < 0) {
		perror(name);
		return EXIT_FAILURE;
	}
	must(kvmem_source_file(fd, 0, 0, 0, &source), "kvmem_source_file");
	bytes = kvmem_source_bytes(source);
	opts.bytes = (bytes + MIB - 1) / MIB * MIB;
	opts.needs = KVMEM_WANT_PAGING;
	must(kvmem_region_create(NULL, &opts, &ram), "kvmem_region_create");
	pager = start(ram, source);
	wrong = wrong_pages(ram, fd, bytes);
	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL), "kvmem_pager_stop");
	report(pager);
	printf("%s: %llu bytes, %llu wrong pages\n", name, (unsigned long long)bytes,
	       (unsigned long long)wrong);
	kvmem_pager_free(pager);
	kvmem_region_free(ram);
	kvmem_source_free(source);
	close(fd);
	return wrong ? EXIT_FAILURE : EXIT_SUCCESS;
}
