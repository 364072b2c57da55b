// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Images that are damaged, or made to deceive. Whatever is done to the bytes of an image: what is read is either what
 * was written or an error.
 */
#include "index_rig.h"

#define PAGES 1100u /* three blocks, the last one not whole */
#define BYTES (PAGES * PAGE)

static uint8_t *model;
static struct file files[] = {
	{ .name = "base" }, { .name = "base.kvmem" }, { .name = "top" }, { .name = "top.kvmem" }
};

#define FILES (sizeof(files) / sizeof(files[0]))

/* KVMEM_IMAGE_PACKED or 0, of the base and of what is on top of it. */
static uint32_t layout;

/* A base of which a few pages are data, and a difference to it. */
static void make(void)
{
	struct kvmem_image_writer *w;
	struct kvmem_image *base;

	model = calloc(1, BYTES);
	enter_folder();
	w = create("base", NULL, BYTES, KVMEM_IMAGE_NO_SYNC | layout);
	for (uint64_t p = 0; p < PAGES; p += 37)
		fill_page(model + p * PAGE, p, 1);
	must(kvmem_image_write(w, 0, model, BYTES));
	must(kvmem_image_commit(w, NULL));
	base = open_image("base.kvmem");
	w = create("top", base, BYTES, KVMEM_IMAGE_NO_SYNC | layout);
	for (uint64_t p = 5; p < PAGES; p += 111) {
		fill_page(model + p * PAGE, p, 2);
		must(kvmem_image_write(w, p * PAGE, model + p * PAGE, PAGE));
	}
	memset(model, 0, PAGE);
	must(kvmem_image_write_zero(w, 0, PAGE));
	must(kvmem_image_write_blob(w, "state", "0123456789", 10));
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_close(base));
	for (size_t f = 0; f < FILES; f++)
		file_get(&files[f]);
}

static void unmake(void)
{
	for (size_t f = 0; f < FILES; f++)
		free(files[f].bytes);
	free(model);
	leave_folder();
}

/* Of each page: its content, or an error. Returns how many errors; `sure`: a wrong page is a failure. */
static unsigned int look(bool sure)
{
	struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	static uint8_t page[PAGE];
	struct kvmem_image *image;
	unsigned int errors = 0;
	uint8_t blob[16];
	int64_t n;

	if (kvmem_image_open("top.kvmem", NULL, &image))
		return 1;
	for (uint64_t p = 0; p < PAGES; p++) {
		memset(page, 0x55, sizeof(page));
		if (kvmem_image_read(image, p * PAGE, page, PAGE))
			errors++;
		else if (sure && memcmp(page, model + p * PAGE, PAGE))
			ck_abort_msg("page %lu is another one", (unsigned long)p);
	}
	n = kvmem_image_read_blob(image, "state", blob, sizeof(blob));
	if (n < 0)
		errors++;
	else if (sure && (n != 10 || memcmp(blob, "0123456789", 10)))
		ck_abort_msg("the blob is another one");
	for (uint64_t at = 0; at < BYTES; at = run.offset + run.bytes)
		if (kvmem_image_next_run(image, at, &run) != 1)
			break;
	must(kvmem_image_get_info(image, &info));
	if (sure && info.bytes != BYTES)
		ck_abort_msg("it is %lu bytes long", (unsigned long)info.bytes);
	if (kvmem_image_verify(image, NULL, NULL))
		errors++;
	must(kvmem_image_close(image));
	return errors;
}

static unsigned int rounds(unsigned int usual)
{
	const char *text = getenv("KVMEM_TEST_ROUNDS");

	return text ? (unsigned int)strtoul(text, NULL, 10) : usual;
}

/* ---- accidents ---- */

/* Pages of zeros are not stored: their bytes in the data are nobody's. */
static bool is_content(size_t f, size_t at)
{
	return f % 2 || layout || !is_zero_page(files[f].bytes + at / PAGE * PAGE);
}

TEST(no_flipped_bit_is_given_out)
{
	unsigned int seen = 0, silent = 0, n = rounds(3000);
	unsigned long long seed = 1;

	make();
	ck_assert_uint_eq(look(true), 0);
	for (unsigned int i = 0; i < n; i++) {
		size_t f = harness_random(&seed) % FILES;
		size_t at = harness_random(&seed) % files[f].size;

		if (!is_content(f, at))
			continue;
		file_write_byte(&files[f], at,
				files[f].bytes[at] ^ (uint8_t)(1u << harness_random(&seed) % 8));
		if (look(true))
			seen++;
		else
			silent++; /* between tables, and of parents what this image does not use */
		file_write_byte(&files[f], at, files[f].bytes[at]);
	}
	harness_note("%u flips: %u noticed, %u of bytes that mean nothing", seen + silent, seen,
		     silent);
	ck_assert_uint_gt(seen, n / 10);
	ck_assert_uint_eq(look(true), 0);
	unmake();
}
END

/* Each bit of what an index is found and believed by. */
TEST(no_bit_of_the_superblock_is_believed)
{
	make();
	for (size_t at = 0; at<KI_PAGE; at += rounds(0)> 3000 ? 1 : 13) {
		file_write_byte(&files[3], at, files[3].bytes[at] ^ (uint8_t)(1u << at % 8));
		ck_assert_uint_eq(look(true), 1); /* it does not open */
		file_write_byte(&files[3], at, files[3].bytes[at]);
	}
	unmake();
}
END

TEST(files_that_are_shorter_or_longer)
{
	unsigned long long seed = 2;

	make();
	for (unsigned int i = 0; i < 200; i++) {
		size_t f = harness_random(&seed) % FILES,
		       size = harness_random(&seed) % files[f].size;
		struct stat st;

		ck_assert_int_eq(truncate(files[f].name, (off_t)size), 0);
		ck_assert_uint_gt(look(true), 0);
		ck_assert_int_eq(truncate(files[f].name, (off_t)files[f].size + 1), 0);
		ck_assert_uint_gt(look(true), 0);
		file_put(&files[f], files[f].size);
		ck_assert_int_eq(stat(files[f].name, &st), 0);
	}
	ck_assert_uint_eq(look(true), 0);
	unmake();
}
END

/* Pages and blocks of 4096 bytes that are where others were. */
TEST(pages_that_changed_places)
{
	unsigned long long seed = 3;

	make();
	for (unsigned int i = 0; i < 300; i++) {
		size_t f = harness_random(&seed) % FILES, pages = files[f].size / PAGE;
		size_t a = harness_random(&seed) % pages, b = harness_random(&seed) % pages;
		uint8_t *at = files[f].bytes + a * PAGE, old[PAGE];

		memcpy(old, at, PAGE);
		memcpy(at, files[f].bytes + b * PAGE, PAGE);
		file_put(&files[f], files[f].size);
		look(true);
		memcpy(at, old, PAGE);
		file_put(&files[f], files[f].size);
	}
	ck_assert_uint_eq(look(true), 0);
	unmake();
}
END

/* The file shrinks while it is open: an error, not a signal. */
TEST(files_that_shrink_while_they_are_open)
{
	struct kvmem_image *image;
	uint8_t page[PAGE];

	for (unsigned int f = 0; f < FILES; f++) {
		unsigned int errors = 0;

		make();
		image = open_image("top.kvmem");
		ck_assert_int_eq(truncate(files[f].name, 0), 0);
		for (uint64_t p = 0; p < PAGES; p++)
			if (kvmem_image_read(image, p * PAGE, page, PAGE))
				errors++;
			else
				ck_assert_int_eq(memcmp(page, model + p * PAGE, PAGE), 0);
		ck_assert_uint_gt(errors, 0);
		must(kvmem_image_close(image));
		unmake();
	}
}
END

/* ---- deceit: the sums are right ---- */

static uint64_t odd_value(unsigned long long *seed)
{
	static const uint64_t odd[] = { 0,	  1,	     7,		 4095,	    4096,
					1u << 20, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX };
	uint64_t r = harness_random(seed);

	return r % 3 ? odd[r / 3 % (sizeof(odd) / sizeof(odd[0]))] : harness_random(seed);
}

/* What it says cannot be known to be wrong; it must not lead anybody astray: no crash, no end of memory or time. */
TEST(fields_that_lie_lead_nobody_astray)
{
	unsigned int n = rounds(3000), opened = 0;
	unsigned long long seed = 4;
	uint8_t *honest;

	make();
	honest = malloc(files[3].size);
	memcpy(honest, files[3].bytes, files[3].size);
	for (unsigned int i = 0; i < n; i++) {
		/* The superblock half of the time, else the tables. */
		size_t room = harness_random(&seed) % 2 ? offsetof(struct ki_super, unused)
							: files[3].size;
		size_t width = harness_random(&seed) % 2 ? 4 : 8;

		for (unsigned int k = 0; k <= harness_random(&seed) % 3; k++) {
			uint64_t value = odd_value(&seed);

			memcpy(files[3].bytes + harness_random(&seed) % (room / width - 1) * width,
			       &value, width);
		}
		make_right(&files[3]);
		file_put(&files[3], files[3].size);
		opened += look(false) != 1;
		memcpy(files[3].bytes, honest, files[3].size);
	}
	file_put(&files[3], files[3].size);
	ck_assert_uint_eq(look(true), 0);
	harness_note("%u lies, %u of them opened", n, opened);
	free(honest);
	unmake();
}
END

/* With other counts of pages and all sums right. `layer` UINT32_MAX: no layer's. */
static void lie_about_pages(uint64_t data, uint64_t parent, uint32_t layer, uint64_t pages)
{
	struct file f = files[3];
	struct ki_super *s;
	struct ki_layer *layers;

	f.bytes = malloc(f.size);
	memcpy(f.bytes, files[3].bytes, f.size);
	s = (void *)f.bytes;
	layers = (void *)(f.bytes + s->layer_table.offset);
	s->pages_data += data;
	s->pages_parent += parent;
	if (layer != UINT32_MAX)
		layers[layer].pages += pages;
	make_right(&f);
	file_put(&f, f.size);
	free(f.bytes);
}

static void grandchild(int err, const char *word)
{
	struct kvmem_image *image = open_image("top.kvmem");
	struct kvmem_image_writer *w = create("new", image, BYTES, 0);
	uint8_t page[PAGE] = { 0 };

	/* Pages that the base stores, one by one, are hidden: their count goes down. */
	for (uint64_t p = 37; p < PAGES; p += 37)
		must(kvmem_image_write(w, p * PAGE, page, PAGE));
	fails(kvmem_image_commit(w, NULL), err, word);
	ck_assert_uint_eq(files_here(), FILES);
	must(kvmem_image_close(image));
}

/* How many pages are stored where: nothing depends on it, and what cannot be is refused all the same. */
TEST(counts_of_pages_that_lie)
{
	struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;
	struct kvmem_image *image;
	const uint64_t none = UINT64_MAX / 2;

	make();
	for (unsigned int i = 0; i < 4; i++) {
		lie_about_pages(i & 1 ? none : 0, i & 2 ? none + 2 : 0, UINT32_MAX, 0);
		if (i)
			fails(kvmem_image_open("top.kvmem", NULL, &image), EBADMSG, "pages");
	}
	lie_about_pages(PAGES, 0, UINT32_MAX, 0);
	fails(kvmem_image_open("top.kvmem", NULL, &image), EBADMSG, "pages");

	/* What can be is found by verify; pages are read as they were written. */
	for (unsigned int i = 0; i < 2; i++) {
		lie_about_pages(i, !i, i, 1);
		image = open_image("top.kvmem");
		must(kvmem_image_get_info(image, &info));
		ck_assert_uint_le(info.bytes_data + info.bytes_parent + info.bytes_zero, BYTES);
		check_model(image, model, BYTES);
		fails(kvmem_image_verify(image, NULL, NULL), EBADMSG, "pages");
		must(kvmem_image_close(image));
	}
	/* Its head says another number than its layers together. */
	for (unsigned int i = 0; i < 2; i++) {
		lie_about_pages(0, i, i ? UINT32_MAX : 0, 1);
		image = open_image("top.kvmem");
		fails(kvmem_image_verify(image, NULL, NULL), EBADMSG, "pages");
		must(kvmem_image_close(image));
	}
	/* A layer that has fewer pages than a child takes from it. */
	image = open_image("top.kvmem");
	must(kvmem_image_get_info(image, &info));
	must(kvmem_image_close(image));
	lie_about_pages(0, 3 - info.bytes_parent / PAGE, 0, 3 - info.bytes_parent / PAGE);
	grandchild(EBADMSG, "pages");
	unmake();
}
END

/* A child of itself, a parent that is a folder, a pipe, a device: neither a circle nor a wait. */
TEST(parents_that_are_no_images)
{
	static const char *const instead[] = {
		"mkdir base.kvmem",	      "mkfifo base.kvmem",
		"ln -s /dev/zero base.kvmem", "ln -s base.kvmem base.kvmem",
		"ln top.kvmem base.kvmem",    "touch base.kvmem"
	};
	char command[64];

	for (size_t i = 0; i < sizeof(instead) / sizeof(instead[0]); i++) {
		make();
		ck_assert_int_eq(unlink("base.kvmem"), 0);
		snprintf(command, sizeof(command), "%s", instead[i]);
		shell(command);
		ck_assert_uint_gt(look(true), 0);
		unmake();
		make();
		ck_assert_int_eq(unlink("base"), 0);
		snprintf(command, sizeof(command), "%.*s base",
			 (int)(strrchr(instead[i], ' ') - instead[i]), instead[i]);
		if (strcmp(command, "ln -s base.kvmem base") &&
		    strcmp(command, "ln top.kvmem base")) {
			shell(command);
			ck_assert_uint_gt(look(true), 0);
		}
		unmake();
	}
}
END

#define ALL_TESTS \
	T(no_flipped_bit_is_given_out), T(no_bit_of_the_superblock_is_believed), \
		T(files_that_are_shorter_or_longer), T(pages_that_changed_places), \
		T(files_that_shrink_while_they_are_open), T(fields_that_lie_lead_nobody_astray), \
		T(counts_of_pages_that_lie), T(parents_that_are_no_images)

/* With an argument "packed" first: of packed images. */
int main(int argc, char **argv)
{
	const struct harness_test tests[] = { ALL_TESTS };

	if (argc > 1 && !strcmp(argv[1], "packed")) {
		layout = KVMEM_IMAGE_PACKED;
		argv[1] = argv[0];
		argc--;
		argv++;
	}
	return harness_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
