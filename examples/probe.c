/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* probe: what this machine can do for a guest's memory, as a table or, with --json, as JSON. */
#include "example.h"

static char *format(const struct kvmem_caps *caps, uint32_t how)
{
	size_t len = (size_t)must(kvmem_caps_format(caps, how, NULL, 0), "kvmem_caps_format") + 1;
	char *text = malloc(len);

	if (!text)
		exit(EXIT_FAILURE);
	must(kvmem_caps_format(caps, how, text, len), "kvmem_caps_format");
	return text;
}

int main(int argc, char **argv)
{
	uint32_t how = KVMEM_CAPS_TEXT;
	struct kvmem_caps *caps;
	char *text;

	if (argc == 2 && !strcmp(argv[1], "--json"))
		how = KVMEM_CAPS_JSON;
	else if (argc != 1) {
		fprintf(stderr, "usage: %s [--json]\n", argv[0]);
		return 2;
	}
	must(kvmem_caps_probe(NULL, &caps), "kvmem_caps_probe");
	text = format(caps, how);
	fputs(text, stdout);
	if (*text && text[strlen(text) - 1] != '\n')
		putchar('\n');
	free(text);
	kvmem_caps_free(caps);
	return 0;
}
