/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* nbd_restore [URI]: a guest's memory comes from a server page by page. Without a URI, nbdkit is started for it, with
 * an export whose words are their own offsets. */
#include <endian.h>
#include <kvmem/nbd.h>
#include <unistd.h>

#include "small.h"

#define FIRST (16 * MIB) /* the export has two regions, one behind the other */
#define ALL   (48 * MIB)

static struct kvmem_nbd *server;

static struct kvmem_region *restore(struct kvmem_pager *pager, uint64_t offset, uint64_t bytes)
{
	struct kvmem_region *ram = small_ram(NULL, KVMEM_WANT_PAGING, bytes);
	struct kvmem_source *source;

	must(kvmem_nbd_source(server, offset, bytes, &source), "kvmem_nbd_source");
	must(kvmem_pager_add(pager, ram, source, 0, 0), "kvmem_pager_add");
	return ram;
}

static void run_guest(struct kvmem_region *ram, uint64_t offset)
{
	const uint64_t *word = kvmem_region_base(ram);

	for (uint64_t at = 0; at < kvmem_region_bytes(ram); at += 37 * BASE_PAGE)
		if (be64toh(word[at / sizeof(*word)]) != offset + at)
			must(-EIO, "the guest found something else");
}

int main(int argc, char **argv)
{
	struct kvmem_nbd_stats stats = KVMEM_NBD_STATS_INIT;
	struct kvmem_nbd_opts o = { .size = sizeof(o), .deadline_ns = 10000000000 };
	struct kvmem_region *low, *high;
	struct kvmem_pager *pager;

	if (argc < 2) {
		setenv("PROGRAM", argv[0], 1);
		execlp("nbdkit", "nbdkit", "-U", "-", "pattern", "48M", "--run",
		       "\"$PROGRAM\" \"$uri\"", NULL);
		return EXIT_SKIP; /* there is no nbdkit */
	}
	must(kvmem_nbd_open(argv[1], &o, &server), "kvmem_nbd_open");
	must(kvmem_pager_create(NULL, &pager), "kvmem_pager_create");
	low = restore(pager, 0, FIRST);
	high = restore(pager, FIRST, ALL - FIRST);
	must(kvmem_pager_start(pager), "kvmem_pager_start");
	run_guest(low, 0);
	run_guest(high, FIRST);
	must(kvmem_nbd_get_stats(server, &stats), "kvmem_nbd_get_stats");
	printf("%u connections, %u KiB came\n", stats.connected, (unsigned int)(stats.bytes >> 10));
	return EXIT_SUCCESS; /* the kernel frees what is left */
}
