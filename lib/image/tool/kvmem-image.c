// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem-image(1): looks at images, checks them, and makes them from other files. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <kvmem/image.h>

#define PAGE 4096u
#define STEP (1u << 20)

static struct {
	bool json, replace, no_sync, diff, quiet;
	const char *parent;
} options;

static const char usage[] =
	"usage: kvmem-image info [--json] IMAGE...\n"
	"       kvmem-image verify IMAGE...\n"
	"       kvmem-image diff [--json] IMAGE OTHER\n"
	"       kvmem-image create [--parent IMAGE [--diff]] [--replace] [--no-sync] RAW NEW\n"
	"       kvmem-image flatten [--replace] [--no-sync] IMAGE NEW\n"
	"       kvmem-image extract IMAGE RAW\n"
	"\n"
	"IMAGE is the index of an image, NAME.kvmem; NEW is NAME, without .kvmem.\n"
	"  --json     for programs\n"
	"  --parent   store only what differs from this image\n"
	"  --diff     the holes of RAW are the parent's, as in Firecracker's diff snapshots\n"
	"  --replace  replace an image of that name\n"
	"  --no-sync  do not wait for the disk\n"
	"  --quiet    no progress\n";

/* ---- ends ---- */

static int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int complain(const char *format, ...)
{
	va_list ap;

	fputs("kvmem-image: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	return 1;
}

static int failed(void)
{
	return complain("%s", kvmem_error_detail());
}

static int show_progress(void *arg, const struct kvmem_image_progress *p)
{
	static unsigned int last = 101;
	unsigned int percent = (unsigned int)(p->total ? p->done * 100 / p->total : 100);

	(void)arg;
	if (options.quiet || percent == last)
		return 0;
	last = percent;
	fprintf(stderr, "\r%3u %%%s", percent, p->done == p->total ? "\r     \r" : "");
	return 0;
}

static void progress(uint64_t done, uint64_t total)
{
	const struct kvmem_image_progress p = { .size = sizeof(p), .done = done, .total = total };

	show_progress(NULL, &p);
}

/* ---- info ---- */

static void print_id(const struct kvmem_image_id *id)
{
	for (unsigned int i = 0; i < sizeof(id->bytes); i++)
		printf("%02x", id->bytes[i]);
}

/* As a JSON string; names are the VMM's. */
static void print_json(const char *text)
{
	putchar('"');
	for (; *text; text++)
		if (*text == '"' || *text == '\\')
			printf("\\%c", *text);
		else if ((unsigned char)*text < 0x20)
			printf("\\u%04x", *text);
		else
			putchar(*text);
	putchar('"');
}

static bool has_parent(const struct kvmem_image_info *i)
{
	static const struct kvmem_image_id none;

	return memcmp(&i->parent, &none, sizeof(none)) != 0;
}

static void info_json(struct kvmem_image *image, const char *path, const struct kvmem_image_info *i)
{
	struct kvmem_image_region r = KVMEM_IMAGE_REGION_INIT;

	printf("{\"path\": ");
	print_json(path);
	printf(", \"id\": \"");
	print_id(&i->id);
	printf("\", \"parent\": ");
	if (has_parent(i)) {
		putchar('"');
		print_id(&i->parent);
		putchar('"');
	} else {
		printf("null");
	}
	printf(", \"depth\": %" PRIu32 ", \"bytes\": %" PRIu64 ", \"data\": %" PRIu64
	       ", \"parents\": %" PRIu64 ", \"zero\": %" PRIu64 ", \"created_ns\": %" PRIu64
	       ", \"regions\": [",
	       i->depth, i->bytes, i->bytes_data, i->bytes_parent, i->bytes_zero, i->created_ns);
	for (uint32_t n = 0; !kvmem_image_get_region(image, n, &r) && n < i->regions; n++) {
		printf("%s{\"name\": ", n ? ", " : "");
		print_json(r.name);
		printf(", \"offset\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"flags\": %" PRIu32
		       ", \"gpa\": ",
		       r.offset, r.bytes, r.flags);
		if (r.gpa == UINT64_MAX)
			printf("null}");
		else
			printf("%" PRIu64 "}", r.gpa);
	}
	printf("], \"blobs\": [");
	for (uint32_t n = 0; n < i->blobs; n++) {
		const char *name = kvmem_image_blob_name(image, n);

		printf("%s{\"name\": ", n ? ", " : "");
		print_json(name);
		printf(", \"bytes\": %" PRId64 "}", kvmem_image_read_blob(image, name, NULL, 0));
	}
	printf("]}\n");
}

static void info_text(struct kvmem_image *image, const char *path, const struct kvmem_image_info *i)
{
	struct kvmem_image_region r = KVMEM_IMAGE_REGION_INIT;

	printf("%s\n  id      ", path);
	print_id(&i->id);
	if (has_parent(i)) {
		printf("\n  parent  ");
		print_id(&i->parent);
		printf("  (%" PRIu32 " in all)", i->depth);
	}
	printf("\n  bytes   %" PRIu64 ": %" PRIu64 " stored here, %" PRIu64 " in parents, %" PRIu64
	       " zero\n",
	       i->bytes, i->bytes_data, i->bytes_parent, i->bytes_zero);
	for (uint32_t n = 0; n < i->regions && !kvmem_image_get_region(image, n, &r); n++) {
		printf("  region  %" PRIu32 " '%s': %" PRIu64 " bytes at offset %" PRIu64, n,
		       r.name, r.bytes, r.offset);
		if (r.gpa != UINT64_MAX)
			printf(", guest address 0x%" PRIx64, r.gpa);
		putchar('\n');
	}
	for (uint32_t n = 0; n < i->blobs; n++) {
		const char *name = kvmem_image_blob_name(image, n);

		printf("  blob    '%s': %" PRId64 " bytes\n", name,
		       kvmem_image_read_blob(image, name, NULL, 0));
	}
}

static int do_info(char **paths)
{
	int ret = 0;

	for (; *paths; paths++) {
		struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT;
		struct kvmem_image *image;

		if (kvmem_image_open(*paths, NULL, &image)) {
			ret = failed();
			continue;
		}
		kvmem_image_get_info(image, &i);
		if (options.json)
			info_json(image, *paths, &i);
		else
			info_text(image, *paths, &i);
		kvmem_image_close(image);
	}
	return ret;
}

static int do_verify(char **paths)
{
	int ret = 0;

	for (; *paths; paths++) {
		struct kvmem_image *image;

		if (kvmem_image_open(*paths, NULL, &image)) {
			ret = failed();
			continue;
		}
		if (kvmem_image_verify(image, show_progress, NULL))
			ret = failed();
		else
			printf("%s: all of it is as it was written\n", *paths);
		kvmem_image_close(image);
	}
	return ret;
}

/* ---- diff ---- */

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
	static char one[STEP], other[STEP];

	for (uint64_t at = 0, n; at < bytes; at += n) {
		n = bytes - at < STEP ? bytes - at : STEP;
		if (kvmem_image_read(a, at, one, n) || kvmem_image_read(b, at, other, n))
			return 2;
		for (uint64_t p = 0; p < n; p += PAGE)
			if (memcmp(one + p, other + p, PAGE) != 0)
				add_page(runs, at + p);
	}
	end_run(runs);
	return 0;
}

static int do_diff(char **paths)
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

/* ---- create, flatten ---- */

static int copy_pages(struct kvmem_image *from, struct kvmem_image *parent,
		      struct kvmem_image_writer *to, uint64_t offset, uint64_t bytes)
{
	static char buf[STEP], old[STEP];
	int r = kvmem_image_read(from, offset, buf, bytes);

	if (!r && parent)
		r = kvmem_image_read(parent, offset, old, bytes);
	for (uint64_t p = 0, n; !r && p < bytes; p += n) {
		bool same = parent && !memcmp(buf + p, old + p, PAGE);

		for (n = PAGE; p + n < bytes; n += PAGE)
			if ((parent && !memcmp(buf + p + n, old + p + n, PAGE)) != same)
				break;
		if (!same)
			r = kvmem_image_write(to, offset + p, buf + p, n);
	}
	return r;
}

/* All that the new one has not by itself: without a parent zeros need no word. */
static int copy_all(struct kvmem_image *from, struct kvmem_image *parent,
		    struct kvmem_image_writer *to, uint64_t bytes)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	int r = 0;

	for (uint64_t at = 0; !r && at < bytes; at = run.offset + run.bytes) {
		r = kvmem_image_next_run(from, at, &run);
		if (r < 0)
			return r;
		r = 0;
		if (run.kind == KVMEM_IMAGE_ZERO && !parent)
			continue;
		for (uint64_t p = 0, n; !r && p < run.bytes; p += n) {
			n = run.bytes - p < STEP ? run.bytes - p : STEP;
			r = copy_pages(from, parent, to, run.offset + p, n);
			progress(run.offset + p + n, bytes);
		}
	}
	progress(bytes, bytes);
	return r;
}

static int copy_blobs(struct kvmem_image *from, struct kvmem_image_writer *to, uint32_t count)
{
	int64_t r = 0;

	for (uint32_t n = 0; r >= 0 && n < count; n++) {
		const char *name = kvmem_image_blob_name(from, n);
		int64_t bytes = kvmem_image_read_blob(from, name, NULL, 0);
		void *buf = malloc((size_t)bytes + 1);

		if (!buf)
			r = kvmem_error_set(ENOMEM, "no memory for blob '%s'", name);
		else
			r = kvmem_image_read_blob(from, name, buf, (uint64_t)bytes);
		if (r >= 0)
			r = kvmem_image_write_blob(to, name, buf, (uint64_t)bytes);
		free(buf);
	}
	return (int)(r < 0 ? r : 0);
}

static struct kvmem_image_region *regions_of(struct kvmem_image *image, uint32_t count)
{
	struct kvmem_image_region *r = calloc(count, sizeof(*r));

	for (uint32_t n = 0; r && n < count; n++) {
		r[n].size = sizeof(*r);
		kvmem_image_get_region(image, n, &r[n]);
	}
	return r;
}

/* A new image of what `from` has, on top of `parent` (NULL: of nothing). */
static int make(struct kvmem_image *from, struct kvmem_image *parent, const char *path)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT;
	struct kvmem_image_region *regions;
	struct kvmem_image_writer *to;
	int r;

	kvmem_image_get_info(from, &i);
	regions = regions_of(from, i.regions);
	if (!regions)
		return kvmem_error_set(ENOMEM, "no memory");
	o.flags = (options.replace ? KVMEM_IMAGE_REPLACE : 0) |
		  (options.no_sync ? KVMEM_IMAGE_NO_SYNC : 0);
	o.parent = parent;
	if (!parent) {
		o.regions = regions;
		o.region_count = i.regions;
	}
	r = kvmem_image_create(path, &o, &to);
	free(regions);
	if (r)
		return r;
	r = copy_all(from, parent, to, i.bytes);
	if (!r)
		r = copy_blobs(from, to, i.blobs);
	if (r) {
		kvmem_image_abort(to);
		return r;
	}
	return kvmem_image_commit(to, NULL);
}

static int do_create(char **paths)
{
	struct kvmem_image_open_opts raw = KVMEM_IMAGE_OPEN_OPTS_INIT;
	struct kvmem_image *from = NULL, *parent = NULL;
	struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT;
	struct kvmem_image_region *regions = NULL;
	int r = 0;

	raw.flags = options.diff ? KVMEM_IMAGE_RAW_DIFF : KVMEM_IMAGE_RAW_FULL;
	if (options.parent)
		r = kvmem_image_open(options.parent, NULL, &parent);
	if (!r && parent) {
		kvmem_image_get_info(parent, &i);
		regions = regions_of(parent, i.regions);
		raw.regions = regions;
		raw.region_count = i.regions;
		raw.parent = options.diff ? parent : NULL;
	}
	if (!r)
		r = kvmem_image_open(paths[0], &raw, &from);
	if (!r)
		r = make(from, parent, paths[1]);
	if (r)
		failed();
	kvmem_image_close(from);
	kvmem_image_close(parent);
	free(regions);
	return r ? 1 : 0;
}

static int do_flatten(char **paths)
{
	struct kvmem_image *from;
	int r = kvmem_image_open(paths[0], NULL, &from);

	if (r)
		return failed();
	r = make(from, NULL, paths[1]);
	if (r)
		failed();
	kvmem_image_close(from);
	return r ? 1 : 0;
}

/* ---- extract ---- */

static int write_all(int fd, const char *buf, uint64_t bytes, uint64_t at)
{
	while (bytes) {
		ssize_t n = pwrite(fd, buf, bytes, (off_t)at);

		if (n < 0)
			return kvmem_error_set(errno, "writing at byte %" PRIu64 ": %m", at);
		buf += n;
		at += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

static int extract_to(struct kvmem_image *from, int fd, uint64_t bytes)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	static char buf[STEP];
	int r = 0;

	if (ftruncate(fd, (off_t)bytes))
		return kvmem_error_set(errno, "a file of %" PRIu64 " bytes: %m", bytes);
	for (uint64_t at = 0; at < bytes; at = run.offset + run.bytes) {
		r = kvmem_image_next_run(from, at, &run);
		if (r < 0)
			return r;
		for (uint64_t p = 0, n; run.kind != KVMEM_IMAGE_ZERO && p < run.bytes; p += n) {
			n = run.bytes - p < STEP ? run.bytes - p : STEP;
			r = kvmem_image_read(from, run.offset + p, buf, n);
			if (!r)
				r = write_all(fd, buf, n, run.offset + p);
			if (r)
				return r;
			progress(run.offset + p + n, bytes);
		}
	}
	progress(bytes, bytes);
	return fsync(fd) ? kvmem_error_set(errno, "to the disk: %m") : 0;
}

/* Never over a file that is there: somebody may have it mapped. */
static int do_extract(char **paths)
{
	struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT;
	struct kvmem_image *from;
	int fd, r;

	if (kvmem_image_open(paths[0], NULL, &from))
		return failed();
	kvmem_image_get_info(from, &i);
	fd = open(paths[1], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0) {
		r = complain("'%s': %s", paths[1], strerror(errno));
	} else {
		r = extract_to(from, fd, i.bytes);
		if (r) {
			failed();
			unlink(paths[1]);
		}
		close(fd);
	}
	kvmem_image_close(from);
	return r ? 1 : 0;
}

/* ---- arguments ---- */

static const struct command {
	const char *name;
	int (*run)(char **paths);
	int least, most;   /* paths */
	const char *takes; /* options, by their letters */
} commands[] = {
	{ "info", do_info, 1, INT32_MAX, "j" }, { "verify", do_verify, 1, INT32_MAX, "q" },
	{ "diff", do_diff, 2, 2, "j" },		{ "create", do_create, 2, 2, "pdrnq" },
	{ "flatten", do_flatten, 2, 2, "rnq" }, { "extract", do_extract, 2, 2, "q" },
};

static const struct option longs[] = {
	{ "json", no_argument, NULL, 'j' },
	{ "parent", required_argument, NULL, 'p' },
	{ "diff", no_argument, NULL, 'd' },
	{ "replace", no_argument, NULL, 'r' },
	{ "no-sync", no_argument, NULL, 'n' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ NULL, 0, NULL, 0 },
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
	if (!c || argc - optind < c->least || argc - optind > c->most ||
	    (options.diff && !options.parent))
		return wrong();
	return c->run(argv + optind);
}
