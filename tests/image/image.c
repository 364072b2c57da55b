// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Images as they are made, opened, chained and read. */
#include "image_rig.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/resource.h>

#define BYTES (5 * MIB + 3 * PAGE)

TEST(what_was_written_is_read)
{
	struct kvmem_image_region regions[3] = { region_of(3 * PAGE, 0, "low"),
						 region_of(5 * MIB - PAGE, 1ull << 32, "high"),
						 region_of(PAGE, 1ull << 40, "") };
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region got = KVMEM_IMAGE_REGION_INIT;
	struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;
	uint64_t bytes = 5 * MIB + 3 * PAGE, data = 0;
	struct kvmem_image_writer *w;
	unsigned long long seed = 1;
	struct kvmem_image *image;
	struct kvmem_image_id id;
	uint8_t *m, part[100];
	FILE *f;

	enter_folder();
	m = model_new(bytes, &seed);
	o.regions = regions;
	o.region_count = 3;
	must(kvmem_image_create("guest", &o, &w));
	ck_assert_uint_eq(files_here(), 0); /* nothing has a name */
	must(kvmem_image_write(w, 0, m, bytes));
	must(kvmem_image_write_blob(w, "device state", "abcdefgh", 8));
	must(kvmem_image_write_blob(w, "empty", NULL, 0));
	fails(kvmem_image_write_blob(w, "empty", "x", 1), EEXIST, "already");
	must(kvmem_image_commit(w, &id));
	ck_assert_uint_eq(files_here(), 2);
	image = open_image("guest.kvmem");
	check_model(image, m, bytes);
	must(kvmem_image_verify(image, NULL, NULL));
	for (uint64_t p = 0; p < bytes / PAGE; p++)
		data += is_zero_page(m + p * PAGE) ? 0 : PAGE;
	must(kvmem_image_get_info(image, &info));
	ck_assert_int_eq(memcmp(&id, &info.id, sizeof(id)), 0);
	ck_assert_uint_eq(info.bytes, bytes);
	ck_assert_uint_eq(info.bytes_data, data);
	ck_assert_uint_eq(info.bytes_zero, bytes - data);
	ck_assert_uint_eq(info.regions, 3);
	ck_assert_uint_eq(info.blobs, 2);
	ck_assert_uint_eq(info.depth, 0);
	must(kvmem_image_get_region(image, 1, &got));
	ck_assert_uint_eq(got.offset, 3 * PAGE);
	ck_assert_uint_eq(got.gpa, 1ull << 32);
	ck_assert_str_eq(got.name, "high");
	fails(kvmem_image_get_region(image, 3, &got), ERANGE, "3 regions");
	ck_assert_int_eq(kvmem_image_read_blob(image, "device state", part, 3), 8);
	ck_assert_int_eq(memcmp(part, "abc", 3), 0);
	ck_assert_int_eq(kvmem_image_read_blob(image, "empty", part, 3), 0);
	fails((int)kvmem_image_read_blob(image, "none", part, 3), ENOENT, "'none'");
	ck_assert_str_eq(kvmem_image_blob_name(image, 0), "device state");
	ck_assert_ptr_null(kvmem_image_blob_name(image, 2));
	for (uint64_t at = 0; at < 3 * PAGE; at += 77) { /* odd places */
		must(kvmem_image_read(image, at, part, sizeof(part)));
		ck_assert_int_eq(memcmp(part, m + at, sizeof(part)), 0);
	}
	fails(kvmem_image_read(image, bytes - 1, part, 2), ERANGE, "image of");
	must(kvmem_image_close(image));
	/* The data are the memory, for whoever reads a raw file. */
	f = fopen("guest", "re");
	for (uint64_t p = 0; p < bytes / PAGE; p++) {
		uint8_t page[PAGE];

		ck_assert_uint_eq(fread(page, 1, PAGE, f), PAGE);
		ck_assert_int_eq(memcmp(page, m + p * PAGE, PAGE), 0);
	}
	ck_assert_int_eq(fgetc(f), EOF);
	fclose(f);
	free(m);
	leave_folder();
}
END

/* The data of an image without a parent are a template; what a clone has made of them is a difference to it. */
TEST(a_clone_of_the_data_and_its_difference)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_image *full, *diff;
	bool changed[BYTES / PAGE] = { false };
	struct kvmem_image_writer *w;
	unsigned long long seed = 11;
	struct kvmem_region *ram;
	uint8_t *m, *at;

	enter_folder();
	m = model_new(BYTES, &seed);
	save_model("full", m, BYTES, 0);
	full = open_image("full.kvmem");
	o.bytes = BYTES;
	o.flags = KVMEM_REGION_CLONE;
	o.fd = open("full", O_RDONLY | O_CLOEXEC);
	must(kvmem_region_create(NULL, &o, &ram));
	close(o.fd);
	at = kvmem_region_base(ram);
	ck_assert_int_eq(memcmp(at, m, BYTES), 0);
	for (unsigned int i = 0; i < 300; i++) {
		uint64_t page = harness_random(&seed) % (BYTES / PAGE);

		changed[page] = true;
		if (i % 3)
			fill_page(at + page * PAGE, page, 2);
		else
			must(kvmem_region_discard(ram, page * PAGE, PAGE));
	}
	w = create("diff", full, 0, 0);
	for (uint64_t page = 0; page < BYTES / PAGE; page++)
		if (changed[page])
			must(kvmem_image_write(w, page * PAGE, at + page * PAGE, PAGE));
	must(kvmem_image_commit(w, NULL));
	diff = open_image("diff.kvmem");
	check_model(diff, at, BYTES);
	/* Nothing of it is in the template. */
	check_model(full, m, BYTES);
	must(kvmem_image_verify(full, NULL, NULL));
	must(kvmem_region_free(ram));
	must(kvmem_image_close(diff));
	must(kvmem_image_close(full));
	free(m);
	leave_folder();
}
END

/* The last word on a page counts, also where it was data in this image before. */
TEST(pages_are_written_again)
{
	uint8_t *m = calloc(1, BYTES);
	struct kvmem_image_writer *w;
	unsigned long long seed = 5;
	struct kvmem_image *image;
	struct stat st;
	uint8_t *raw;
	int fd;

	enter_folder();
	w = create("a", NULL, BYTES, 0);
	for (unsigned int i = 0; i < 3000; i++) {
		uint64_t p = harness_random(&seed) % (BYTES / PAGE);

		switch (harness_random(&seed) % 3) {
		case 0:
			memset(m + p * PAGE, 0, PAGE);
			must(kvmem_image_write_zero(w, p * PAGE, PAGE));
			break;
		case 1:
			memset(m + p * PAGE, 0, PAGE);
			must(kvmem_image_write(w, p * PAGE, m + p * PAGE, PAGE));
			break;
		default:
			fill_page(m + p * PAGE, p, i);
			must(kvmem_image_write(w, p * PAGE, m + p * PAGE, PAGE));
		}
	}
	must(kvmem_image_commit(w, NULL));
	image = open_image("a.kvmem");
	check_model(image, m, BYTES);
	must(kvmem_image_close(image));
	fd = open("a", O_RDONLY | O_CLOEXEC);
	raw = malloc(BYTES);
	ck_assert_int_eq(fstat(fd, &st), 0);
	ck_assert_int_eq(st.st_size, BYTES);
	ck_assert_int_eq(pread(fd, raw, BYTES, 0), BYTES);
	ck_assert_int_eq(memcmp(raw, m, BYTES), 0);
	close(fd);
	free(raw);
	free(m);
	leave_folder();
}
END

/* ---- chains ---- */

#define DEPTH 60u

/* Each a difference to the one before; some pages become zero again. */
static void make_chain(uint8_t *m, unsigned int depth)
{
	unsigned long long seed = 3;
	char path[32];

	save_model("c0", m, BYTES, KVMEM_IMAGE_NO_SYNC);
	for (unsigned int d = 1; d < depth; d++) {
		struct kvmem_image *parent;
		struct kvmem_image_writer *w;

		snprintf(path, sizeof(path), "c%u.kvmem", d - 1);
		parent = open_image(path);
		snprintf(path, sizeof(path), "c%u", d);
		w = create(path, parent, BYTES, KVMEM_IMAGE_NO_SYNC);
		for (unsigned int i = 0; i < 20; i++) {
			uint64_t p = harness_random(&seed) % (BYTES / PAGE);

			if (i % 4)
				fill_page(m + p * PAGE, p, d);
			else
				memset(m + p * PAGE, 0, PAGE);
			must(kvmem_image_write(w, p * PAGE, m + p * PAGE, PAGE));
		}
		fails(kvmem_image_close(parent), EBUSY, "in use");
		must(kvmem_image_commit(w, NULL));
		must(kvmem_image_close(parent));
	}
}

static void check_runs(struct kvmem_image *image, const uint8_t *m)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;
	uint64_t sums[3] = { 0 };

	for (uint64_t at = 0; at < BYTES; at = run.offset + run.bytes) {
		ck_assert_int_eq(kvmem_image_next_run(image, at, &run), 1);
		ck_assert_uint_eq(run.offset, at);
		for (uint64_t p = at / PAGE; p < (at + run.bytes) / PAGE; p++)
			ck_assert_int_eq(run.kind == KVMEM_IMAGE_ZERO, is_zero_page(m + p * PAGE));
		sums[run.kind] += run.bytes;
	}
	ck_assert_int_eq(kvmem_image_next_run(image, BYTES, &run), 0);
	must(kvmem_image_get_info(image, &info));
	ck_assert_uint_eq(sums[KVMEM_IMAGE_ZERO], info.bytes_zero);
	ck_assert_uint_eq(sums[KVMEM_IMAGE_DATA], info.bytes_data);
	ck_assert_uint_eq(sums[KVMEM_IMAGE_PARENT], info.bytes_parent);
}

TEST(a_chain_has_what_its_last_link_says)
{
	struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;
	unsigned long long seed = 9;
	uint8_t *m = model_new(BYTES, &seed);
	struct kvmem_image *image;
	char path[32];

	enter_folder();
	make_chain(m, DEPTH);
	snprintf(path, sizeof(path), "c%u.kvmem", DEPTH - 1);
	image = open_image(path);
	must(kvmem_image_get_info(image, &info));
	ck_assert_uint_eq(info.depth, DEPTH - 1);
	ck_assert_uint_eq(info.flags, KVMEM_IMAGE_DIFF);
	check_model(image, m, BYTES);
	check_runs(image, m);
	must(kvmem_image_verify(image, NULL, NULL));
	must(kvmem_image_close(image));
	/* Images of one folder move together. */
	shell("mkdir moved && mv c* moved/");
	ck_assert_int_eq(chdir("/"), 0);
	snprintf(path, sizeof(path), "moved/c%u.kvmem", DEPTH - 1);
	{
		char all[128];

		snprintf(all, sizeof(all), "%s/%s", folder, path);
		image = open_image(all);
	}
	check_model(image, m, BYTES);
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

/* All that a block describes: there is none for it then, and not the parent's. */
TEST(two_mebibytes_become_zero)
{
	unsigned long long seed = 43;
	uint8_t *m = model_new(BYTES, &seed);
	struct kvmem_image *a, *b;
	struct kvmem_image_writer *w;

	enter_folder();
	save_model("a", m, BYTES, 0);
	a = open_image("a.kvmem");
	w = create("b", a, BYTES, 0);
	must(kvmem_image_write_zero(w, 2 * MIB, 2 * MIB));
	memset(m + 2 * MIB, 0, 2 * MIB);
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_close(a));
	b = open_image("b.kvmem");
	check_model(b, m, BYTES);
	check_runs(b, m);
	must(kvmem_image_close(b));
	free(m);
	leave_folder();
}
END

/* Parents in another folder are found by their path, from wherever the child is opened. */
TEST(parents_in_other_folders)
{
	unsigned long long seed = 11;
	uint8_t *m = model_new(BYTES, &seed);
	struct kvmem_image *a, *b, *c;
	struct kvmem_image_writer *w;

	enter_folder();
	shell("mkdir base vm vm/deep");
	save_model("base/a", m, BYTES, 0);
	a = open_image("base/a.kvmem");
	w = create("vm/b", a, BYTES, 0);
	fill_page(m, 0, 77);
	must(kvmem_image_write(w, 0, m, PAGE));
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_close(a));
	ck_assert_int_eq(chdir("vm"), 0);
	b = open_image("b.kvmem");
	check_model(b, m, BYTES);
	w = create("deep/c", b, BYTES, 0);
	fill_page(m + PAGE, 1, 78);
	must(kvmem_image_write(w, PAGE, m + PAGE, PAGE));
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_close(b));
	ck_assert_int_eq(chdir("/"), 0);
	{
		char path[128];

		snprintf(path, sizeof(path), "%s/vm/deep/c.kvmem", folder);
		c = open_image(path);
	}
	check_model(c, m, BYTES);
	must(kvmem_image_close(c));
	free(m);
	leave_folder();
}
END

/* A parent that is another one, or not there, is an error when something of it is needed; never zeros. */
TEST(a_parent_that_is_not_the_one)
{
	unsigned long long seed = 13;
	uint8_t *m = model_new(BYTES, &seed), page[PAGE], other[PAGE];
	struct kvmem_image *a, *b;
	struct kvmem_image_writer *w;

	enter_folder();
	fill_page(m, 0, 1);
	fill_page(m + PAGE, 1, 1);
	save_model("a", m, BYTES, 0);
	a = open_image("a.kvmem");
	w = create("b", a, BYTES, 0);
	fill_page(other, 0, 2);
	must(kvmem_image_write(w, 0, other, PAGE));
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_close(a));
	/* The same content under another id. */
	save_model("a", m, BYTES, KVMEM_IMAGE_REPLACE);
	b = open_image("b.kvmem");
	must(kvmem_image_read(b, 0, page, PAGE));
	ck_assert_int_eq(memcmp(page, other, PAGE), 0);
	fails(kvmem_image_read(b, PAGE, page, PAGE), ESTALE, "not the image any more");
	must(kvmem_image_close(b));
	ck_assert_int_eq(unlink("a.kvmem"), 0);
	b = open_image("b.kvmem");
	fails(kvmem_image_read(b, PAGE, page, PAGE), ENOENT, "a.kvmem");
	fails(kvmem_image_verify(b, NULL, NULL), ENOENT, "a.kvmem");
	must(kvmem_image_close(b));
	free(m);
	leave_folder();
}
END

/* It has been replaced since it was opened: a difference to it could never be read. */
TEST(a_difference_to_what_is_no_longer_there)
{
	unsigned long long seed = 59;
	uint8_t *m = model_new(BYTES, &seed);
	struct kvmem_image *a;
	struct kvmem_image_writer *w;

	enter_folder();
	shell("mkdir other");
	save_model("a", m, BYTES, 0);
	a = open_image("a.kvmem");
	w = create("b", a, BYTES, 0);
	save_model("a", m, BYTES, KVMEM_IMAGE_REPLACE);
	fails(kvmem_image_commit(w, NULL), ESTALE, "another image");
	must(kvmem_image_close(a));
	/* Found from wherever the program has gone since. */
	a = open_image("a.kvmem");
	ck_assert_int_eq(chdir("other"), 0);
	w = create("c", a, BYTES, 0);
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_close(a));
	a = open_image("c.kvmem");
	check_model(a, m, BYTES);
	must(kvmem_image_close(a));
	ck_assert_int_eq(chdir(".."), 0);
	ck_assert_int_eq(unlink("a.kvmem"), 0);
	free(m);
	leave_folder();
}
END

/* An image on top of what it replaces could never be read: neither its parent nor the parent's is replaced. */
TEST(an_image_does_not_replace_its_parents)
{
	unsigned long long seed = 61;
	uint8_t *m = model_new(BYTES, &seed);
	char name[] = "c0";
	struct kvmem_image *image;
	struct kvmem_image_writer *w;

	enter_folder();
	make_chain(m, 4);
	for (; name[1] < '4'; name[1]++) {
		image = open_image("c3.kvmem");
		w = create(name, image, 0, KVMEM_IMAGE_REPLACE);
		must(kvmem_image_write_zero(w, 0, PAGE));
		fails(kvmem_image_commit(w, NULL), EINVAL, "parent");
		must(kvmem_image_close(image));
	}
	ck_assert_uint_eq(files_here(), 8);
	image = open_image("c3.kvmem");
	check_model(image, m, BYTES);
	must(kvmem_image_verify(image, NULL, NULL));
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

static int with_a_short_limit(void *arg)
{
	const struct rlimit limit = { .rlim_cur = BYTES - 1, .rlim_max = BYTES - 1 };
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	struct kvmem_image_writer *w;

	(void)arg;
	o.regions = &one;
	o.region_count = 1;
	if (setrlimit(RLIMIT_FSIZE, &limit) || kvmem_image_create("a", &o, &w) != -EFBIG)
		return 1;
	one.bytes = PAGE;
	if (kvmem_image_create("a", &o, &w) ||
	    kvmem_image_write_blob(w, "b", calloc(1, BYTES), BYTES))
		return 2;
	return kvmem_image_commit(w, NULL) == -EFBIG && !access("a", F_OK) ? 3 : 0;
}

/* An error, and not SIGXFSZ. */
TEST(files_may_not_be_so_long)
{
	enter_folder();
	ck_assert_int_eq(harness_child(with_a_short_limit, NULL), 0);
	ck_assert_uint_eq(files_here(), 0);
	leave_folder();
}
END

/* The index ends in a table that is no whole page, and is filled up to one: that is beyond the limit. */
static int with_a_limit_in_the_last_page(void *arg)
{
	struct rlimit limit;
	struct kvmem_image_region one = region_of(PAGE, 0, "");
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_writer *w;
	uint8_t m[PAGE];

	(void)arg;
	fill_page(m, 0, 1);
	o.regions = &one;
	o.region_count = 1;
	must(kvmem_image_create("a", &o, &w));
	must(kvmem_image_write(w, 0, m, PAGE));
	must(kvmem_image_write_blob(w, "b", "b", 1));
	if (getrlimit(RLIMIT_FSIZE, &limit))
		return 1;
	limit.rlim_cur = 7 * PAGE + 1024;
	if (setrlimit(RLIMIT_FSIZE, &limit))
		return 1;
	return kvmem_image_commit(w, NULL) == -EFBIG ? 0 : 2;
}

TEST(an_index_may_not_be_so_long)
{
	enter_folder();
	ck_assert_int_eq(harness_child(with_a_limit_in_the_last_page, NULL), 0);
	ck_assert_uint_eq(files_here(), 0);
	leave_folder();
}
END

/* ---- names ---- */

/* Not a byte of a file that is refused. */
TEST(what_is_there_is_not_touched)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(PAGE, 0, "ram");
	uint8_t m[PAGE], text[32] = "";
	struct kvmem_image_writer *w;
	struct kvmem_image *image;
	FILE *f;

	enter_folder();
	fill_page(m, 0, 1);
	o.regions = &one;
	o.region_count = 1;
	f = fopen("x", "we");
	fputs("somebody's", f);
	fclose(f);
	fails(kvmem_image_create("x", &o, &w), EEXIST, "REPLACE");
	/* Beside it, under a name of its own. */
	save_model("x", m, PAGE, KVMEM_IMAGE_REPLACE);
	image = open_image("x.kvmem");
	check_model(image, m, PAGE);
	must(kvmem_image_close(image));
	f = fopen("x", "re");
	ck_assert_ptr_nonnull(fgets((char *)text, sizeof(text), f));
	fclose(f);
	ck_assert_str_eq((char *)text, "somebody's");
	/* An index that is none. */
	shell("cp x y.kvmem");
	fails(kvmem_image_create("y", &o, &w), EEXIST, "REPLACE");
	o.flags = KVMEM_IMAGE_REPLACE;
	must(kvmem_image_create("y", &o, &w));
	must(kvmem_image_write(w, 0, m, PAGE));
	fails(kvmem_image_commit(w, NULL), EBADMSG, "y.kvmem");
	shell("cmp x y.kvmem && test ! -e y");
	/* What came meanwhile. */
	o.flags = 0;
	must(kvmem_image_create("z", &o, &w));
	must(kvmem_image_write(w, 0, m, PAGE));
	shell("cp x z");
	fails(kvmem_image_commit(w, NULL), EEXIST, "'z'");
	shell("cmp x z && test ! -e z.kvmem");
	must(kvmem_image_create("v", &o, &w));
	must(kvmem_image_write(w, 0, m, PAGE));
	shell("cp x v.kvmem");
	fails(kvmem_image_commit(w, NULL), EEXIST, "'v.kvmem'");
	shell("cmp x v.kvmem && test ! -e v");
	must(kvmem_image_create("u", &o, &w));
	kvmem_image_abort(w);
	shell("test ! -e u -a ! -e u.kvmem");
	leave_folder();
}
END

/* The old data go with the image that they were of, unless somebody reads it: who does reads on. */
TEST(an_image_is_replaced)
{
	unsigned long long seed = 17;
	uint8_t *old = model_new(BYTES, &seed), *new = model_new(BYTES, &seed);
	struct kvmem_image *reader, *image;

	enter_folder();
	save_model("a", old, BYTES, 0);
	save_model("a", new, BYTES, KVMEM_IMAGE_REPLACE);
	ck_assert_uint_eq(files_here(), 2);
	image = open_image("a.kvmem");
	check_model(image, new, BYTES);
	must(kvmem_image_close(image));
	reader = open_image("a.kvmem");
	save_model("a", old, BYTES, KVMEM_IMAGE_REPLACE);
	ck_assert_uint_eq(files_here(), 3);
	check_model(reader, new, BYTES);
	must(kvmem_image_close(reader));
	image = open_image("a.kvmem");
	check_model(image, old, BYTES);
	must(kvmem_image_close(image));
	free(old);
	free(new);
	leave_folder();
}
END

/* An index that was copied names data of another image: they stay when the copy is replaced. */
TEST(data_of_others_stay)
{
	unsigned long long seed = 47;
	uint8_t *m = model_new(BYTES, &seed), *n = model_new(BYTES, &seed);
	struct kvmem_image *image;
	struct stat st;

	enter_folder();
	save_model("a", m, BYTES, 0);
	ck_assert_int_eq(stat("a", &st), 0);
	ck_assert_int_eq(st.st_mode & 0077, 0); /* a guest's memory is nobody else's */
	shell("cp a.kvmem b.kvmem");
	save_model("b", n, BYTES, KVMEM_IMAGE_REPLACE);
	image = open_image("a.kvmem");
	check_model(image, m, BYTES);
	must(kvmem_image_close(image));
	image = open_image("b.kvmem");
	check_model(image, n, BYTES);
	must(kvmem_image_close(image));
	free(m);
	free(n);
	leave_folder();
}
END

static _Atomic bool replaces_end;

static void *replaces(void *arg)
{
	for (unsigned int i = 0; i < 200; i++)
		save_model("a", arg, 8 * PAGE, KVMEM_IMAGE_REPLACE | KVMEM_IMAGE_NO_SYNC);
	atomic_store(&replaces_end, true);
	return NULL;
}

/* There is an image of this name all the time, so it can be opened all the time. */
TEST(an_image_is_opened_while_it_is_replaced)
{
	unsigned long long seed = 53;
	uint8_t *m = model_new(8 * PAGE, &seed);
	pthread_t replacer;
	unsigned int opened = 0;

	enter_folder();
	save_model("a", m, 8 * PAGE, KVMEM_IMAGE_NO_SYNC);
	atomic_store(&replaces_end, false);
	ck_assert_int_eq(pthread_create(&replacer, NULL, replaces, m), 0);
	for (; !atomic_load(&replaces_end); opened++) {
		struct kvmem_image *image = open_image("a.kvmem");

		check_model(image, m, 8 * PAGE);
		must(kvmem_image_close(image));
	}
	pthread_join(replacer, NULL);
	ck_assert_uint_gt(opened, 10);
	free(m);
	leave_folder();
}
END

/* Who deletes an image locks its data first: flock(LOCK_EX). */
TEST(an_image_in_use_is_locked)
{
	struct kvmem_image *image, *none;
	uint8_t m[PAGE];
	int fd;

	enter_folder();
	fill_page(m, 0, 1);
	save_model("a", m, PAGE, 0);
	image = open_image("a.kvmem");
	fd = open("a", O_RDONLY | O_CLOEXEC);
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), -1);
	ck_assert_int_eq(errno, EWOULDBLOCK);
	must(kvmem_image_close(image));
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
	fails(kvmem_image_open("a.kvmem", NULL, &none), EBUSY, "locked");
	close(fd);
	leave_folder();
}
END

/* ---- raw files ---- */

TEST(raw_files_by_the_callers_word)
{
	struct kvmem_image_open_opts o = KVMEM_IMAGE_OPEN_OPTS_INIT;
	unsigned long long seed = 19;
	uint8_t *m = model_new(BYTES, &seed), *both = malloc(BYTES);
	struct kvmem_image *full, *diff, *none;
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	struct kvmem_image_writer *w;
	int fd;

	enter_folder();
	save_model("full", m, BYTES, 0);
	fd = open("diff", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ck_assert_int_eq(ftruncate(fd, BYTES), 0);
	memcpy(both, m, BYTES);
	for (uint64_t p = 0; p < BYTES / PAGE; p += 16) { /* written zeros are zeros */
		if (p % 32)
			memset(both + p * PAGE, 0, PAGE);
		else
			fill_page(both + p * PAGE, p, 5);
		ck_assert_int_eq(pwrite(fd, both + p * PAGE, PAGE, (off_t)(p * PAGE)), PAGE);
	}
	fails(kvmem_image_open("full", NULL, &none), EBADMSG, "begin with");
	o.flags = KVMEM_IMAGE_RAW_FULL;
	must(kvmem_image_open("full", &o, &full));
	check_model(full, m, BYTES);
	fails(kvmem_image_verify(full, NULL, NULL), EOPNOTSUPP, "raw");
	o.flags = KVMEM_IMAGE_RAW_DIFF;
	fails(kvmem_image_open("diff", &o, &none), EINVAL, "parent");
	o.parent = full;
	must(kvmem_image_open("diff", &o, &diff));
	check_model(diff, both, BYTES);
	must(kvmem_image_next_run(diff, PAGE, &run));
	ck_assert_uint_eq(run.kind, KVMEM_IMAGE_PARENT);
	ck_assert_uint_eq(run.bytes, 15 * PAGE);
	fails(kvmem_image_close(full), EBUSY, "in use");
	{
		struct kvmem_image_create_opts c = KVMEM_IMAGE_CREATE_OPTS_INIT;

		c.parent = diff;
		fails(kvmem_image_create("child", &c, &w), EOPNOTSUPP, "raw");
	}
	must(kvmem_image_close(diff));
	must(kvmem_image_close(full));
	ck_assert_int_eq(ftruncate(fd, BYTES - PAGE), 0);
	o.flags = KVMEM_IMAGE_RAW_FULL;
	o.parent = NULL;
	must(kvmem_image_open("diff", &o, &full));
	must(kvmem_image_close(full));
	ck_assert_int_eq(ftruncate(fd, BYTES - 1), 0);
	fails(kvmem_image_open("diff", &o, &none), EINVAL, "whole pages");
	close(fd);
	free(m);
	free(both);
	leave_folder();
}
END

/* ---- several threads ---- */

static struct {
	struct kvmem_image_writer *w;
	struct kvmem_image *image;
	uint8_t *m;
	_Atomic unsigned int next;
} shared;

static void *writes(void *arg)
{
	uint64_t p;

	(void)arg;
	while ((p = atomic_fetch_add(&shared.next, 3)) < BYTES / PAGE) {
		uint64_t n = BYTES / PAGE - p < 3 ? BYTES / PAGE - p : 3;

		must(kvmem_image_write(shared.w, p * PAGE, shared.m + p * PAGE, n * PAGE));
	}
	return NULL;
}

static void *reads(void *arg)
{
	unsigned long long seed = (unsigned long long)(uintptr_t)arg;

	for (unsigned int i = 0; i < 2000; i++) {
		uint64_t p = harness_random(&seed) % (BYTES / PAGE);
		uint8_t page[PAGE];

		must(kvmem_image_read(shared.image, p * PAGE, page, PAGE));
		if (memcmp(page, shared.m + p * PAGE, PAGE))
			ck_abort_msg("page %lu is another one", (unsigned long)p);
	}
	return NULL;
}

static void in_threads(void *(*fn)(void *))
{
	pthread_t threads[4];

	for (uintptr_t i = 0; i < 4; i++)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, fn, (void *)(i + 1)), 0);
	for (unsigned int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

/* A raw file has no sums: but what it has lost is no zeros. */
TEST(a_raw_file_that_shrinks)
{
	struct kvmem_image_open_opts o = KVMEM_IMAGE_OPEN_OPTS_INIT;
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	struct kvmem_image *image;
	uint8_t page[PAGE];
	int fd;

	enter_folder();
	fill_page(page, 1, 1);
	fd = open("raw", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ck_assert_int_eq(ftruncate(fd, 8 * PAGE), 0);
	ck_assert_int_eq(pwrite(fd, page, PAGE, 5 * PAGE), PAGE);
	o.flags = KVMEM_IMAGE_RAW_FULL;
	must(kvmem_image_open("raw", &o, &image));
	must(kvmem_image_read(image, 6 * PAGE, page, PAGE)); /* a hole at the end */
	ck_assert(is_zero_page(page));
	ck_assert_int_eq(ftruncate(fd, 3 * PAGE), 0);
	for (uint64_t p = 3; p < 8; p++) {
		fails(kvmem_image_read(image, p * PAGE, page, PAGE), EBADMSG, "raw");
		fails(kvmem_image_next_run(image, p * PAGE, &run), EBADMSG, "raw");
	}
	/* Of a hole before the new end nobody can say how long it was. */
	fails(kvmem_image_read(image, 2 * PAGE, page, PAGE), EBADMSG, "raw");
	must(kvmem_image_close(image));
	close(fd);
	leave_folder();
}
END

TEST(several_threads_write_and_read)
{
	unsigned long long seed = 23;

	enter_folder();
	shared.m = model_new(BYTES, &seed);
	make_chain(shared.m, 5);
	shared.image = open_image("c4.kvmem");
	in_threads(reads);
	shared.w = create("all", shared.image, BYTES, 0);
	shared.next = 0;
	for (uint64_t p = 0; p < BYTES / PAGE; p += 2)
		fill_page(shared.m + p * PAGE, p, 99);
	in_threads(writes);
	must(kvmem_image_commit(shared.w, NULL));
	must(kvmem_image_close(shared.image));
	shared.image = open_image("all.kvmem");
	check_model(shared.image, shared.m, BYTES);
	must(kvmem_image_close(shared.image));
	free(shared.m);
	leave_folder();
}
END

/* ---- as a source ---- */

TEST(a_region_is_filled_from_it)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	unsigned long long seed = 29;
	struct kvmem_source *source;
	struct kvmem_region *ram;
	struct kvmem_image *image;
	uint8_t *m;

	enter_folder();
	m = model_new(BYTES, &seed);
	make_chain(m, 5);
	image = open_image("c4.kvmem");
	o.bytes = BYTES;
	must(kvmem_region_create(NULL, &o, &ram));
	must(kvmem_image_source(image, 0, &source));
	fails(kvmem_image_source(image, 1, &source), ERANGE, "1 regions");
	fails(kvmem_image_close(image), EBUSY, "in use");
	must(kvmem_populate(ram, 0, source, NULL, NULL));
	ck_assert_int_eq(memcmp(kvmem_region_base(ram), m, BYTES), 0);
	must(kvmem_region_free(ram));
	must(kvmem_source_free(source));
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

/* A page that is damaged is poisoned, and its neighbours are whole. */
TEST(a_pager_never_gives_out_a_damaged_page)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	unsigned long long seed = 31;
	struct kvmem_source *source;
	struct kvmem_region *ram;
	struct kvmem_image *image;
	struct kvmem_pager *pager;
	uint8_t *m, *base;
	int fd, ends[2], r;

	r = kvmem_pager_create(NULL, &pager);
	SKIP_IF(r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP, "uffd", "%s",
		kvmem_error_detail());
	must(r);
	enter_folder();
	m = model_new(BYTES, &seed);
	for (uint64_t p = 0; p < 4; p++)
		fill_page(m + p * PAGE, p, 1);
	save_model("a", m, BYTES, 0);
	fd = open("a", O_RDWR | O_CLOEXEC);
	ck_assert_int_eq(pwrite(fd, "x", 1, 2 * PAGE + 5), 1);
	close(fd);
	image = open_image("a.kvmem");
	fails(kvmem_image_verify(image, NULL, NULL), EBADMSG, "0x2000");
	o.bytes = BYTES;
	must(kvmem_region_create(NULL, &o, &ram));
	must(kvmem_image_source(image, 0, &source));
	must(kvmem_pager_add(pager, ram, source, 0, 0));
	must(kvmem_pager_start(pager));
	base = kvmem_region_base(ram);
	ck_assert_int_eq(memcmp(base + PAGE, m + PAGE, PAGE), 0);
	ck_assert_int_eq(memcmp(base + 3 * PAGE, m + 3 * PAGE, PAGE), 0);
	ck_assert_int_eq(pipe(ends), 0);
	ck_assert_int_eq(write(ends[1], base + 2 * PAGE, 8), -1);
	ck_assert_int_eq(errno, EFAULT);
	close(ends[0]);
	close(ends[1]);
	must(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_pager_free(pager));
	must(kvmem_region_free(ram));
	must(kvmem_source_free(source));
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

/* ---- limits and nonsense ---- */

TEST(nonsense_is_refused_by_name)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(PAGE, 0, "ram");
	struct kvmem_image_open_opts oo = KVMEM_IMAGE_OPEN_OPTS_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_image *image;
	unsigned int fds;
	uint8_t m[PAGE];

	enter_folder();
	fds = harness_count_fds();
	fails(kvmem_image_create(NULL, NULL, &w), EINVAL, "path");
	fails(kvmem_image_create("a", NULL, &w), EINVAL, "regions");
	o.regions = &one;
	o.region_count = 1;
	fails(kvmem_image_create("", &o, &w), EINVAL, "names no file");
	fails(kvmem_image_create("b/", &o, &w), EINVAL, "names no file");
	fails(kvmem_image_create("none/a", &o, &w), ENOENT, "folder");
	o.flags = 1u << 20;
	fails(kvmem_image_create("a", &o, &w), EINVAL, "flags");
	o.flags = 0;
	one.bytes = 100;
	fails(kvmem_image_create("a", &o, &w), EINVAL, "regions[0].bytes");
	one.bytes = 1ull << 60;
	fails(kvmem_image_create("a", &o, &w), EINVAL, "regions[0].bytes");
	one.bytes = PAGE;
	memset(one.name, 'x', sizeof(one.name));
	fails(kvmem_image_create("a", &o, &w), EINVAL, "name");
	one.name[0] = 0;
	one.size = 3;
	fails(kvmem_image_create("a", &o, &w), EINVAL, "size");
	one.size = sizeof(one);
	must(kvmem_image_create("a", &o, &w));
	fails(kvmem_image_write(w, 1, m, PAGE), EINVAL, "whole pages");
	fails(kvmem_image_write(w, 0, m, 2 * PAGE), ERANGE, "image of");
	fails(kvmem_image_write(w, 0, NULL, PAGE), EINVAL, "buf");
	fails(kvmem_image_write_zero(w, PAGE, PAGE), ERANGE, "image of");
	fails(kvmem_image_write_blob(w, "", m, 1), EINVAL, "name");
	fails(kvmem_image_write_blob(w, "a name that is longer than thirty-one bytes", m, 1),
	      EINVAL, "name");
	kvmem_image_abort(w);
	fails(kvmem_image_open(NULL, NULL, &image), EINVAL, "path");
	fails(kvmem_image_create("x.kvmem", &o, &w), EINVAL, "index");
	fails(kvmem_image_open("none", NULL, &image), ENOENT, "none");
	fails(kvmem_image_open(".", NULL, &image), EINVAL, "names no file");
	oo.flags = KVMEM_IMAGE_RAW_DIFF | KVMEM_IMAGE_RAW_FULL;
	fails(kvmem_image_open("none", &oo, &image), EINVAL, "flags");
	must(kvmem_image_close(NULL));
	kvmem_image_abort(NULL);
	ck_assert_int_eq(kvmem_image_commit(NULL, NULL), -EINVAL);
	ck_assert_uint_eq(harness_count_fds(), fds);
	leave_folder();
}
END

struct told {
	struct kvmem_image *image;
	unsigned int calls, cancel_at;
	uint64_t done, bytes;
};

static int count_calls(void *arg, const struct kvmem_image_progress *p)
{
	struct told *t = arg;

	ck_assert_uint_ge(p->done, t->done);
	ck_assert_uint_eq(p->total, t->bytes);
	t->done = p->done;
	fails(kvmem_image_close(t->image), EBUSY, "in use");
	return ++t->calls == t->cancel_at;
}

/* After each blob, and each MiB: nobody waits for more than that. */
TEST(verify_can_be_cancelled)
{
	const uint64_t bytes = 3 * MIB + 5 * PAGE;
	unsigned long long seed = 91;
	uint8_t *m = model_new(bytes, &seed);
	struct kvmem_image_writer *w;
	struct kvmem_image *image;

	enter_folder();
	w = create("a", NULL, bytes, 0);
	must(kvmem_image_write(w, 0, m, bytes));
	must(kvmem_image_write_blob(w, "one", m, PAGE));
	must(kvmem_image_write_blob(w, "two", m, 0));
	must(kvmem_image_commit(w, NULL));
	image = open_image("a.kvmem");
	for (unsigned int at = 0; at <= 6; at++) {
		struct told t = { .image = image, .cancel_at = at, .bytes = bytes };

		if (!at)
			must(kvmem_image_verify(image, count_calls, &t));
		else
			fails(kvmem_image_verify(image, count_calls, &t), ECANCELED, "progress");
		ck_assert_uint_eq(t.calls, at ? at : 6);
	}
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

/* No file descriptor is left at some point: nothing is lost, and nothing stays open. */
TEST(few_descriptors)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	unsigned long long seed = 37;
	uint8_t *m = model_new(BYTES, &seed);
	struct rlimit old, now;
	unsigned int left, fds;
	bool done = false;

	enter_folder();
	make_chain(m, 3);
	fds = harness_count_fds();
	getrlimit(RLIMIT_NOFILE, &old);
	for (left = 0; !done && left < 40; left++) {
		struct kvmem_image *image = NULL;
		struct kvmem_image_writer *w = NULL;
		uint8_t *buf = malloc(BYTES);
		int top = dup(0), r;

		ck_assert_int_ge(top, 0);
		close(top);
		now = old;
		now.rlim_cur = (rlim_t)top + left;
		setrlimit(RLIMIT_NOFILE, &now);
		r = kvmem_image_open("c2.kvmem", NULL, &image);
		if (!r)
			r = kvmem_image_read(image, 0, buf, BYTES);
		o.regions = &one;
		o.region_count = 1;
		o.flags = KVMEM_IMAGE_REPLACE;
		if (!r)
			r = kvmem_image_create("new", &o, &w);
		if (!r)
			r = kvmem_image_write(w, 0, buf, BYTES);
		if (!r) {
			r = kvmem_image_commit(w, NULL);
			w = NULL;
		}
		setrlimit(RLIMIT_NOFILE, &old);
		ck_assert_msg(!r || r == -EMFILE, "%d: %s", r, kvmem_error_detail());
		kvmem_image_abort(w);
		must(kvmem_image_close(image));
		ck_assert_uint_eq(harness_count_fds(), fds);
		free(buf);
		done = !r;
	}
	ck_assert(done);
	{
		struct kvmem_image *image = open_image("new.kvmem");

		check_model(image, m, BYTES);
		must(kvmem_image_close(image));
	}
	free(m);
	leave_folder();
}
END

HARNESS_MAIN(T(what_was_written_is_read), T(a_clone_of_the_data_and_its_difference),
	     T(pages_are_written_again), T(a_chain_has_what_its_last_link_says),
	     T(two_mebibytes_become_zero), T(parents_in_other_folders),
	     T(a_parent_that_is_not_the_one), T(what_is_there_is_not_touched),
	     T(an_image_is_replaced), T(data_of_others_stay),
	     T(an_image_is_opened_while_it_is_replaced), T(a_difference_to_what_is_no_longer_there),
	     T(an_image_does_not_replace_its_parents), T(files_may_not_be_so_long),
	     T(an_index_may_not_be_so_long), T(an_image_in_use_is_locked),
	     T(raw_files_by_the_callers_word), T(a_raw_file_that_shrinks),
	     T(several_threads_write_and_read), T(a_region_is_filled_from_it),
	     T(a_pager_never_gives_out_a_damaged_page), T(nonsense_is_refused_by_name),
	     T(verify_can_be_cancelled), T(few_descriptors))
