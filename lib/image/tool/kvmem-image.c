// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem-image(1): looks at images, checks them, and makes them from others. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tool.h"

struct options options;

static const char usage[] =
	"usage: kvmem-image info [--json] IMAGE...\n"
	"       kvmem-image verify [--json] IMAGE...\n"
	"       kvmem-image diff [--json] IMAGE OTHER\n"
	"       kvmem-image create [--parent IMAGE [--diff]] [--replace] [--no-sync] RAW NEW\n"
	"       kvmem-image flatten [--replace] [--no-sync] IMAGE NEW\n"
	"       kvmem-image rebase --parent PARENT | --flat [--replace] [--no-sync] IMAGE NEW\n"
	"       kvmem-image compact [--replace] [--no-sync] IMAGE NEW\n"
	"       kvmem-image pack [--replace] [--no-sync] IMAGE NEW\n"
	"       kvmem-image unpack [--replace] [--no-sync] IMAGE NEW\n"
	"       kvmem-image extract IMAGE RAW\n"
	"\n"
	"IMAGE is the index of an image, NAME.kvmem; NEW is NAME, without .kvmem.\n"
	"  --json     for programs\n"
	"  --parent   store only what differs from this image\n"
	"  --diff     the holes of RAW are the parent's, as in Firecracker's diff snapshots\n"
	"  --flat     without a parent\n"
	"  --replace  replace an image of that name\n"
	"  --no-sync  do not wait for the disk\n"
	"  --quiet    no progress\n";

static const struct command {
	const char *name;
	int (*run)(char **paths);
	int least, most;   /* paths */
	const char *takes; /* options, by their letters */
} commands[] = {
	{ "info", do_info, 1, INT32_MAX, "j" }, { "verify", do_verify, 1, INT32_MAX, "jq" },
	{ "diff", do_diff, 2, 2, "jq" },	{ "create", do_create, 2, 2, "pdrnq" },
	{ "flatten", do_flatten, 2, 2, "rnq" }, { "rebase", do_rebase, 2, 2, "pfrnq" },
	{ "compact", do_compact, 2, 2, "rnq" }, { "pack", do_pack, 2, 2, "rnq" },
	{ "unpack", do_unpack, 2, 2, "rnq" },	{ "extract", do_extract, 2, 2, "q" },
};

static const struct option longs[] = {
	{ "json", no_argument, NULL, 'j' },    { "parent", required_argument, NULL, 'p' },
	{ "diff", no_argument, NULL, 'd' },    { "flat", no_argument, NULL, 'f' },
	{ "replace", no_argument, NULL, 'r' }, { "no-sync", no_argument, NULL, 'n' },
	{ "quiet", no_argument, NULL, 'q' },   { "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' }, { NULL, 0, NULL, 0 },
};

static int wrong(void)
{
	fputs(usage, stderr);
	return 2;
}

/* Returns 0, or what to end with plus 1. */
static int take(int option, const struct command *c)
{
	switch (option) {
	case 'h':
		fputs(usage, stdout);
		return 1;
	case 'V':
		printf("kvmem-image %s\n", kvmem_version());
		return 1;
	case 'j':
		options.json = true;
		break;
	case 'p':
		options.parent = optarg;
		break;
	case 'd':
		options.diff = true;
		break;
	case 'f':
		options.flat = true;
		break;
	case 'r':
		options.replace = true;
		break;
	case 'n':
		options.no_sync = true;
		break;
	case 'q':
		options.quiet = true;
		break;
	default:
		return wrong() + 1;
	}
	return c && !strchr(c->takes, option) ? wrong() + 1 : 0;
}

static bool options_agree(const struct command *c)
{
	if (c->run == do_rebase)
		return options.flat == !options.parent;
	return !options.diff || options.parent;
}

int main(int argc, char **argv)
{
	const struct command *c = NULL;
	int option, end;

	for (size_t n = 0; argc > 1 && n < sizeof(commands) / sizeof(commands[0]); n++)
		if (!strcmp(argv[1], commands[n].name))
			c = &commands[n];
	options.quiet = !isatty(STDERR_FILENO);
	if (c)
		optind = 2;
	while ((option = getopt_long(argc, argv, "hV", longs, NULL)) != -1) {
		end = take(option, c);
		if (end)
			return end - 1;
	}
	if (!c || argc - optind < c->least || argc - optind > c->most || !options_agree(c))
		return wrong();
	end = c->run(argv + optind);
	if (fflush(stdout) || ferror(stdout)) {
		complain("writing what was found: %s", strerror(errno));
		return end > 1 ? end : c->run == do_diff ? 2 : 1;
	}
	return end;
}
