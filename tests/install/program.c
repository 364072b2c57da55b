/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Built as C99 and as C++ against the installed library: makes memory and fills it, no guest needed. */
#include <stdio.h>
#include <string.h>

#include <kvmem/kvmem.h>

static int fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, kvmem_error_detail());
	return 1;
}

int main(void)
{
	static const char text[] = "what the guest finds in its memory";
	struct kvmem_region_opts opts = KVMEM_REGION_OPTS_INIT;
	struct kvmem_populate_result result = KVMEM_POPULATE_RESULT_INIT;
	struct kvmem_source *source;
	struct kvmem_region *region;
	char version[32];

	snprintf(version, sizeof(version), "%d.%d.%d", KVMEM_VERSION_MAJOR, KVMEM_VERSION_MINOR,
		 KVMEM_VERSION_PATCH);
	if (strcmp(version, kvmem_version()))
		return fail("header and library differ");
	opts.bytes = 1 << 20;
	opts.backing = KVMEM_BACKING_MEMFD;
	if (kvmem_region_create(NULL, &opts, &region))
		return fail("create");
	if (kvmem_source_memory(text, sizeof(text), &source))
		return fail("source");
	if (kvmem_populate(region, 4096, source, NULL, &result))
		return fail("populate");
	if (memcmp((const char *)kvmem_region_base(region) + 4096, text, sizeof(text)))
		return fail("content");
	if (kvmem_source_free(source) || kvmem_region_free(region))
		return fail("free");
	printf("libkvmem %s\n", version);
	return 0;
}
