// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* diff: where two images have another content. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tool.h"

/* Offsets up to `until` where the content is another one, in runs of pages. */
struct runs {
	uint64_t first, end; /* of the run so far; first == end: there is none */
	uint64_t count, bytes;
};

static void end_run(struct runs *r)
{
	if (r->first == r->end)
		return;
	if (options.json)
		printf("%s{\"offset\": %" PRIu64 ", \"bytes\": %" PRIu64 "}", r->count ? ", " : "",
		       r->first, r->end - r->first);
	else
		printf("0x%" PRIx64 " 0x%" PRIx64 "\n", r->first, r->end - r->first);
	r->count++;
	r->bytes += r->end - r->first;
	r->first = r->end;
}

static void add_page(struct runs *r, uint64_t offset)
{
	if (offset != r->end) {
		end_run(r);
		r->first = offset;
	}
	r->end = offset + PAGE;
}

static int compare(struct kvmem_image *a, struct kvmem_image *b, uint64_t bytes, struct runs *runs)
{
	bool quiet = isatty(STDOUT_FILENO); /* its lines and the bar would be mixed */
	static char one[STEP], other[STEP];

	for (uint64_t at = 0, n; at < bytes; at += n) {
		n = bytes - at < STEP ? bytes - at : STEP;
		if (kvmem_image_read(a, at, one, n) || kvmem_image_read(b, at, other, n))
			return 2;
		for (uint64_t p = 0; p < n; p += PAGE)
			if (memcmp(one + p, other + p, PAGE) != 0)
				add_page(runs, at + p);
		if (!quiet)
			progress("diff", at + n, bytes);
	}
	end_run(runs);
	return 0;
}

int do_diff(char **paths)
{
	struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT, j = KVMEM_IMAGE_INFO_INIT;
	struct kvmem_image *a = NULL, *b = NULL;
	struct runs runs = { 0 };
	int r = 2;

	if (kvmem_image_open(paths[0], NULL, &a) || kvmem_image_open(paths[1], NULL, &b)) {
		failed();
		goto out;
	}
	kvmem_image_get_info(a, &i);
	kvmem_image_get_info(b, &j);
	if (i.bytes != j.bytes) {
		complain("%s has %" PRIu64 " bytes, %s %" PRIu64, paths[0], i.bytes, paths[1],
			 j.bytes);
		goto out;
	}
	if (options.json)
		putchar('[');
	r = compare(a, b, i.bytes, &runs);
	if (options.json)
		puts("]");
	if (r)
		failed();
	else
		r = runs.count ? 1 : 0;
out:
	kvmem_image_close(b);
	kvmem_image_close(a);
	return r;
}
