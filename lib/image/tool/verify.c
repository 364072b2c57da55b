// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* verify: all of images against their checksums. */
#include <stdio.h>
#include <string.h>

#include "tool.h"

static int show(void *arg, const struct kvmem_image_progress *p)
{
	(void)arg;
	progress("verify", p->done, p->total);
	return 0;
}

static void print_result(const char *path, bool ok)
{
	if (!options.json) {
		if (!ok)
			return;
		print_text(stdout, path);
		puts(": all of it is as it was written");
		return;
	}
	printf("{\"path\": ");
	print_json(path);
	printf(", \"ok\": %s, \"error\": ", ok ? "true" : "false");
	if (ok)
		printf("null");
	else
		print_json(kvmem_error_detail());
	puts("}");
}

int do_verify(char **paths)
{
	int ret = 0;

	for (; *paths; paths++) {
		struct kvmem_image *image = NULL;
		int r = kvmem_image_open(*paths, NULL, &image);

		if (!r)
			r = kvmem_image_verify(image, show, NULL);
		progress_end();
		print_result(*paths, !r);
		if (r)
			ret = failed();
		kvmem_image_close(image);
	}
	return ret;
}
