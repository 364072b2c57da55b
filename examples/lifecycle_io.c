/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#define _GNU_SOURCE 1
#include "lifecycle.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crc32c.h"
#include "guest/protocol.h"
#include "image.h"

#define MIB  UINT64_C(0x100000)
#define PAGE LIFECYCLE_PAGE
#define BAR  40

static const char *const backings[] = { "auto", "guest-memfd", "memfd", "hugetlb", "anonymous" };
static const char *const slots[] = { "auto", "hva", "direct" };
static const char *const modes[] = { "auto", "ring", "bitmap" };
static bool quiet;

void say(const char *format, ...)
{
	va_list args;

	if (quiet)
		return;
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	fflush(stdout);
}

const char *backing_name(uint32_t backing)
{
	return backing < sizeof(backings) / sizeof(backings[0]) ? backings[backing] : "unknown";
}

static void __attribute__((noreturn)) usage(FILE *out, const char *name, int status)
{
	fprintf(out,
		"usage: %s [options]\n"
		"Make, place, fill, run, track, save and lazily restore a guest's memory.\n"
		"  --size BYTES     of guest memory, with K, M or G (default 256M)\n"
		"  --vcpus N        1 to %d (default 2)\n"
		"  --image FILE     fill from this file (default: one made of this machine's files)\n"
		"  --backing WHAT   auto, guest-memfd, memfd or anonymous\n"
		"  --slot FORM      auto, hva or direct (a direct slot cannot track what is dirty)\n"
		"  --dirty HOW      auto, ring or bitmap\n"
		"  --json           the results as one JSON object, and nothing else\n"
		"  --help\n"
		"Exit status: 0 every check held, 1 not, 2 wrong options, 77 no KVM here.\n",
		name, GUEST_MAX_VCPUS);
	exit(status);
}

static void __attribute__((noreturn)) bad_value(const char *name, const char *option)
{
	fprintf(stderr, "%s: --%s does not take %s\n", name, option, optarg);
	usage(stderr, name, 2);
}

static uint64_t number(const char *name, const char *option, uint64_t least, uint64_t most)
{
	static const char units[] = "KMG";
	const char *unit;
	char *end;
	uint64_t n;

	errno = 0;
	n = strtoull(optarg, &end, 0);
	unit = *end ? strchr(units, *end) : NULL;
	if (unit) {
		unsigned int shift = 10 * (unsigned int)(unit - units + 1);

		n = n > UINT64_MAX >> shift ? UINT64_MAX : n << shift;
		end++;
	}
	if (errno || *end || end == optarg || *optarg == '-' || n < least || n > most)
		bad_value(name, option);
	return n;
}

static uint32_t choice(const char *name, const char *option, const char *const *names, size_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (!strcmp(optarg, names[i]))
			return i;
	bad_value(name, option);
}

/* Beside the program, so that what a build makes stays in its directory; else /var/tmp. */
static void choose_directory(struct lifecycle_options *opt)
{
	char self[4096];
	ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
	const char *dir = "/var/tmp";

	if (len > 0) {
		self[len] = 0;
		if (!access(dirname(self), W_OK))
			dir = self;
	}
	snprintf(opt->dir, sizeof(opt->dir), "%s", dir);
	if (snprintf(opt->default_image, sizeof(opt->default_image), "%s/lifecycle-%lluM.img", dir,
		     (unsigned long long)(opt->bytes / MIB)) >= (int)sizeof(opt->default_image))
		exit(EXIT_FAILURE);
}

void lifecycle_options(int argc, char **argv, struct lifecycle_options *opt)
{
	static const struct option longs[] = {
		{ "size", required_argument, NULL, 's' },
		{ "vcpus", required_argument, NULL, 'v' },
		{ "image", required_argument, NULL, 'i' },
		{ "backing", required_argument, NULL, 'b' },
		{ "slot", required_argument, NULL, 'f' },
		{ "dirty", required_argument, NULL, 'd' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	*opt = (struct lifecycle_options){ .bytes = 256 * MIB, .vcpus = 2 };
	while ((c = getopt_long(argc, argv, "", longs, NULL)) >= 0) {
		if (c == 's')
			opt->bytes = number(argv[0], "size", 16 * MIB, UINT64_C(64) << 30);
		else if (c == 'v')
			opt->vcpus = (uint32_t)number(argv[0], "vcpus", 1, GUEST_MAX_VCPUS);
		else if (c == 'i')
			opt->image = optarg;
		else if (c == 'b')
			opt->backing = choice(argv[0], "backing", backings, 5);
		else if (c == 'f')
			opt->slot_form = choice(argv[0], "slot", slots, 3);
		else if (c == 'd')
			opt->dirty = choice(argv[0], "dirty", modes, 3);
		else if (c == 'j')
			opt->json = quiet = true;
		else
			usage(c == 'h' ? stdout : stderr, argv[0], c == 'h' ? 0 : 2);
	}
	if (optind < argc)
		usage(stderr, argv[0], 2);
	opt->bytes = (opt->bytes + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
	choose_directory(opt);
}

void lifecycle_results_init(struct lifecycle_results *res)
{
	memset(res, 0, sizeof(*res));
	res->plan.size = res->second_plan.size = sizeof(res->plan);
	res->fill.size = sizeof(res->fill);
	res->dirty.size = sizeof(res->dirty);
	res->pager.size = sizeof(res->pager);
}

int draw_progress(void *arg, const struct kvmem_progress *progress)
{
	uint64_t done = progress->total ? progress->done * BAR / progress->total : BAR;

	(void)arg;
	printf("\r[%-*.*s] %3llu MiB", BAR, (int)done, "########################################",
	       (unsigned long long)(progress->done / MIB));
	if (progress->done == progress->total)
		printf("\r%*s\r", BAR + 16, "");
	fflush(stdout);
	return 0;
}

void sums_of_file(int fd, uint32_t *sums, uint64_t pages)
{
	unsigned char page[PAGE];

	for (uint64_t i = 0; i < pages; i++) {
		size_t have = 0;
		ssize_t got;

		memset(page, 0, sizeof(page));
		while (have < PAGE &&
		       (got = pread(fd, page + have, PAGE - have, (off_t)(i * PAGE + have))) > 0)
			have += (size_t)got;
		sums[i] = crc32c(0, page, PAGE);
	}
}

int open_image(const struct lifecycle_options *opt, struct lifecycle_results *res)
{
	const char *name = opt->image ? opt->image : opt->default_image;
	int fd = opt->image ? open(name, O_RDONLY | O_CLOEXEC)
			    : image_open_or_make(name, opt->bytes);
	struct stat st;

	if (fd < 0 || fstat(fd, &st)) {
		fprintf(stderr, "%s: %s\n", name, strerror(fd >= 0 || opt->image ? errno : -fd));
		exit(EXIT_FAILURE);
	}
	res->image_bytes = (uint64_t)st.st_size;
	if (res->image_bytes > opt->bytes || !res->image_bytes) {
		fprintf(stderr,
			"the image has %llu bytes, the guest's memory %llu: choose --size\n",
			(unsigned long long)res->image_bytes, (unsigned long long)opt->bytes);
		exit(EXIT_FAILURE);
	}
	return fd;
}

int save_memory(const struct lifecycle_options *opt, const char *base)
{
	static const char zero[64 * PAGE];
	char name[sizeof(opt->dir) + 32];
	int fd;

	snprintf(name, sizeof(name), "%s/lifecycle-saved.XXXXXX", opt->dir);
	fd = mkostemp(name, O_CLOEXEC);
	if (fd < 0 || unlink(name) || ftruncate(fd, (off_t)opt->bytes))
		goto fail;
	for (uint64_t at = 0, n; at < opt->bytes; at += n) {
		n = opt->bytes - at < sizeof(zero) ? opt->bytes - at : sizeof(zero);
		if (memcmp(base + at, zero, n) && pwrite(fd, base + at, n, (off_t)at) != (ssize_t)n)
			goto fail;
	}
	return fd;
fail:
	perror("saving the memory");
	exit(EXIT_FAILURE);
}

struct line {
	const char *name; /* in JSON */
	const char *text;
	double value;
	const char *unit;
};

static void print_line(const struct line *line, bool json)
{
	int digits = line->value == (double)(uint64_t)line->value ? 0 : 1;

	if (json)
		printf(",\n  \"%s\": %.*f", line->name, digits ? 3 : 0, line->value);
	else
		printf("  %-52s %12.*f %s\n", line->text, digits, line->value, line->unit);
}

static void print_lines(const struct lifecycle_results *r, bool json)
{
	const struct line lines[] = {
		{ "image_bytes", "image", (double)r->image_bytes, "bytes" },
		{ "fill_ms", "filled in", (double)r->fill.elapsed_ns / 1e6, "ms" },
		{ "fill_threads", "  by", r->fill.threads, "threads" },
		{ "fill_bytes_read", "  read straight into guest memory",
		  (double)r->fill.bytes_read, "bytes" },
		{ "fill_bytes_copied", "  copied", (double)r->fill.bytes_copied, "bytes" },
		{ "fill_bytes_written", "  written", (double)r->fill.bytes_written, "bytes" },
		{ "fill_bytes_zero", "  zero, skipped", (double)r->fill.bytes_zero, "bytes" },
		{ "fill_bytes_hole", "  holes, skipped", (double)r->fill.bytes_hole, "bytes" },
		{ "misplaced_pages", "pages on another node than asked", (double)r->misplaced, "" },
		{ "sums_wrong", "sums of the guest that differ from the image",
		  (double)r->first_wrong, "" },
		{ "pages_changed", "pages the guest changed", (double)r->pages_changed, "" },
		{ "pages_reported", "  reported dirty", (double)r->pages_reported, "" },
		{ "pages_unchanged", "  reported and not changed", (double)r->pages_unchanged, "" },
		{ "pages_missed", "  changed and not reported", (double)r->pages_missed, "" },
		{ "writes_missed", "  written by the guest and not reported",
		  (double)r->writes_missed, "" },
		{ "harvests", "harvests", (double)r->dirty.harvests, "" },
		{ "ring_full", "ring-full exits", (double)r->dirty.ring_full, "" },
		{ "short_resets", "short resets", (double)r->dirty.short_resets, "" },
		{ "first_instruction_ms", "second life: first guest instruction after",
		  (double)r->hello_ns / 1e6, "ms" },
		{ "first_page_ms", "  first page of its memory after", (double)r->first_ns / 1e6,
		  "ms" },
		{ "all_pages_ms", "  all pages summed after", (double)r->second_ns / 1e6, "ms" },
		{ "faults", "  faults", (double)(r->pager.faults_missing + r->pager.faults_minor),
		  "" },
		{ "fault_p50_us", "  service time, half below",
		  (double)r->pager.service_p50_ns / 1e3, "us" },
		{ "fault_p99_us", "  service time, 99 % below",
		  (double)r->pager.service_p99_ns / 1e3, "us" },
		{ "pages_demand", "  pages on demand", (double)r->pager.pages_demand, "" },
		{ "pages_around", "  pages around them", (double)r->pager.pages_around, "" },
		{ "pages_background", "  pages in the background",
		  (double)r->pager.pages_background, "" },
		{ "second_sums_wrong", "  sums that differ from the first life's",
		  (double)r->second_wrong, "" },
	};

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
		print_line(&lines[i], json);
}

static const char *dirty_name(const struct lifecycle_results *r)
{
	return r->dirty.mode ? modes[r->dirty.mode] : "not tracked";
}

static void print_json(const struct lifecycle_options *opt, const struct lifecycle_results *r,
		       bool held)
{
	const char *file = kvmem_file_method_name(r->fill.file_method), *comma = "";

	printf("{\n  \"ok\": %s,\n  \"bytes\": %llu,\n  \"vcpus\": %u,\n", held ? "true" : "false",
	       (unsigned long long)opt->bytes, opt->vcpus);
	printf("  \"backing\": \"%s\",\n  \"second_backing\": \"%s\",\n",
	       backing_name(r->plan.backing), backing_name(r->second_plan.backing));
	printf("  \"fill_method\": \"%s\",\n  \"file_method\": \"%s\",\n",
	       kvmem_fill_method_name(r->fill.method), file ? file : "");
	printf("  \"slot\": \"%s\",\n", slots[r->plan.slot_form]);
	printf("  \"dirty\": \"%s\",\n  \"policy_emulated\": %s,\n", dirty_name(r),
	       r->policy_emulated ? "true" : "false");
	printf("  \"node_pages\": {");
	for (unsigned int n = 0; n < LIFECYCLE_NODES; n++) {
		if (!r->node_pages[n])
			continue;
		printf("%s\"%u\": %llu", comma, n, (unsigned long long)r->node_pages[n]);
		comma = ", ";
	}
	printf("}");
	print_lines(r, true);
	printf("\n}\n");
}

int lifecycle_report(const struct lifecycle_options *opt, const struct lifecycle_results *r)
{
	bool held = !r->first_wrong && !r->pages_missed && !r->writes_missed && !r->second_wrong &&
		    !r->misplaced && r->pages_changed;

	if (opt->json) {
		print_json(opt, r, held);
		return held ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	printf("%llu MiB of %s, %u vCPUs, dirty %s; second life on %s\n",
	       (unsigned long long)(opt->bytes / MIB), backing_name(r->plan.backing), opt->vcpus,
	       dirty_name(r), backing_name(r->second_plan.backing));
	print_lines(r, false);
	printf("%s\n", held ? "every check held" : "A CHECK FAILED");
	return held ? EXIT_SUCCESS : EXIT_FAILURE;
}
