/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* async_source: a hundred requests under way over a socket (as pointers here), answered in reverse order. */
#include <sys/socket.h>

#include "small.h"

#define PAGES  100
#define STRIDE (2 * BASE_PAGE) /* faults on neighbours would be one request */

static void *server(void *arg)
{
	struct kvmem_source_request *asked[PAGES];

	must(recv(*(int *)arg, asked, sizeof(asked), MSG_WAITALL) - (int)sizeof(asked), "recv");
	for (int i = PAGES; i--;) {
		*(uint64_t *)asked[i]->buf = asked[i]->offset + 1; /* what comes over the wire */
		must(kvmem_source_complete(asked[i], 0), "kvmem_source_complete");
	}
	return arg;
}

static int submit(void *arg, struct kvmem_source_request *const *requests, size_t count)
{
	size_t bytes = count * sizeof(*requests);

	return send(*(int *)arg, requests, bytes, 0) == (ssize_t)bytes ? 0 : -EIO;
}

static void *touch(void *page)
{
	return (void *)(uintptr_t) * (volatile uint64_t *)page;
}

int main(void)
{
	struct kvmem_source_async_ops ops = { .size = sizeof(ops), .submit = submit };
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = PAGES * STRIDE };
	struct kvmem_source *source;
	struct kvmem_region *ram;
	struct kvmem_pager *pager;
	pthread_t t[PAGES];
	int ends[2]; /* ours, the server's */
	void *word;

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
	o.needs = KVMEM_WANT_PAGING;
	must(kvmem_region_create(NULL, &o, &ram), "region");
	must(kvmem_source_async(&ops, ends, PAGES * STRIDE, &source), "source");
	must(kvmem_pager_create(NULL, &pager), "pager");
	must(kvmem_pager_add(pager, ram, source, 0, 0), "add");
	must(kvmem_pager_start(pager), "start");
	small_thread(server, &ends[1]);
	for (uint64_t i = 0; i < PAGES; i++) /* as many vCPUs would */
		t[i] = small_thread(touch, (char *)kvmem_region_base(ram) + i * STRIDE);
	for (uint64_t i = 0; i < PAGES; i++)
		if (pthread_join(t[i], &word) || (uintptr_t)word != i * STRIDE + 1)
			must(-EIO, "a page");
	puts("a hundred pages came, the last one first");
	return EXIT_SUCCESS; /* the kernel frees what is left */
}
