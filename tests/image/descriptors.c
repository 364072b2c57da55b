// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* How many file descriptors a chain of images takes, and what happens where there are fewer. */
#include "image_rig.h"

#include <sys/resource.h>

#define BYTES (3 * MIB)
#define DEPTH 6u

static uint8_t *model;
static bool packed[DEPTH]; /* layers that are; none in a build without zstd */

static void put_layer(unsigned int d)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	struct kvmem_image *parent = NULL;
	struct kvmem_image_writer *w;
	char name[32];
	int r;

	snprintf(name, sizeof(name), "c%u.kvmem", d - 1);
	if (d)
		parent = open_image(name);
	o.parent = parent;
	o.regions = &one;
	o.region_count = 1;
	o.flags = KVMEM_IMAGE_NO_SYNC | (d % 2 ? 0 : KVMEM_IMAGE_PACKED);
	snprintf(name, sizeof(name), "c%u", d);
	r = kvmem_image_create(name, &o, &w);
	packed[d] = !r && d % 2 == 0;
	if (r == -EOPNOTSUPP) {
		o.flags = KVMEM_IMAGE_NO_SYNC;
		r = kvmem_image_create(name, &o, &w);
	}
	must(r);
	for (uint64_t p = d; p < BYTES / PAGE; p += DEPTH) {
		fill_page(model + p * PAGE, p, d);
		must(kvmem_image_write(w, p * PAGE, model + p * PAGE, PAGE));
	}
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_close(parent));
}

/* The last link of it: of the layers each page in a row is another one's. */
static void make_chain(unsigned int depth)
{
	enter_folder();
	model = calloc(1, BYTES);
	for (unsigned int d = 0; d < depth; d++)
		put_layer(d);
}

static void unmake(void)
{
	free(model);
	leave_folder();
}

/* kvmem_image(3), "File descriptors". */
static unsigned int expected(unsigned int depth)
{
	unsigned int n = packed[depth - 1] ? 4 : 3;

	for (unsigned int d = 0; d + 1 < depth; d++)
		n += packed[d] ? 2 : 1;
	return n;
}

TEST(as_many_as_the_manual_says)
{
	for (unsigned int depth = 1; depth <= DEPTH; depth++) {
		unsigned int fds = harness_count_fds();
		struct kvmem_image *image;
		char name[32];

		make_chain(depth);
		snprintf(name, sizeof(name), "c%u.kvmem", depth - 1);
		image = open_image(name);
		ck_assert_uint_eq(harness_count_fds() - fds, packed[depth - 1] ? 4 : 3);
		check_model(image, model, BYTES);
		ck_assert_uint_eq(harness_count_fds() - fds, expected(depth));
		must(kvmem_image_verify(image, NULL, NULL));
		ck_assert_uint_eq(harness_count_fds() - fds, expected(depth));
		must(kvmem_image_close(image));
		ck_assert_uint_eq(harness_count_fds(), fds);
		unmake();
	}
}
END

/* From now on so many more files can be opened. */
static void leave_room_for(unsigned int files)
{
	struct rlimit now;
	int end = 0;

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &now), 0);
	for (unsigned int room = 0; room < files || fcntl(end, F_GETFD) >= 0; end++)
		room += fcntl(end, F_GETFD) < 0;
	now.rlim_cur = (rlim_t)end;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &now), 0);
}

/* The sentence names the file and the reason. */
static void check_failure(int r)
{
	fails(r, EMFILE, "Too many open files");
	ck_assert_msg(strstr(kvmem_error_detail(), "'c") || strstr(kvmem_error_detail(), "'./"),
		      "%s", kvmem_error_detail());
}

TEST(a_limit_in_the_middle)
{
	uint8_t *buf = malloc(BYTES);
	unsigned int fds, not_opened = 0, not_read = 0;
	struct rlimit old;
	bool done = false;

	make_chain(DEPTH);
	fds = harness_count_fds();
	getrlimit(RLIMIT_NOFILE, &old);
	for (unsigned int files = 0; !done; files++) {
		struct kvmem_image *image = NULL;
		int r;

		ck_assert_uint_lt(files, expected(DEPTH) + 4);
		leave_room_for(files);
		r = kvmem_image_open("c5.kvmem", NULL, &image);
		if (r) {
			check_failure(r);
			not_opened++;
		} else {
			r = kvmem_image_read(image, 0, buf, BYTES);
			done = !r;
			/* The last one that is opened is c4, which is packed: its folder is one more. */
			if (done)
				ck_assert_uint_eq(files, expected(DEPTH) + (packed[4] ? 1 : 2));
			if (r) {
				check_failure(r);
				not_read++;
				check_failure(kvmem_image_verify(image, NULL, NULL));
			}
		}
		ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
		/* What could not be opened then can be now; nothing is open twice. */
		if (image) {
			check_model(image, model, BYTES);
			ck_assert_uint_eq(harness_count_fds() - fds, expected(DEPTH));
		}
		must(kvmem_image_close(image));
		ck_assert_uint_eq(harness_count_fds(), fds);
	}
	ck_assert_uint_ge(not_opened, 3);
	ck_assert_uint_ge(not_read, DEPTH - 1);
	harness_note("%u limits at which it was not opened, %u at which it was not read whole",
		     not_opened, not_read);
	free(buf);
	unmake();
}
END

TEST(a_commit_takes_three_more)
{
	struct rlimit old;

	make_chain(3);
	getrlimit(RLIMIT_NOFILE, &old);
	for (unsigned int files = 0; files <= 3; files++) {
		struct kvmem_image *parent = open_image("c1.kvmem"), *image;
		unsigned int fds = harness_count_fds();
		struct kvmem_image_writer *w;
		uint8_t page[PAGE];
		int r;

		w = create("c2", parent, BYTES, KVMEM_IMAGE_REPLACE);
		ck_assert_uint_eq(harness_count_fds() - fds, 2);
		fill_page(page, 2, 77);
		must(kvmem_image_write(w, 2 * PAGE, page, PAGE));
		leave_room_for(files);
		r = kvmem_image_commit(w, NULL);
		ck_assert_msg(r == (files < 3 ? -EMFILE : 0), "%d: %s", r, kvmem_error_detail());
		if (r)
			ck_assert_ptr_nonnull(strstr(kvmem_error_detail(), "Too many open files"));
		ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
		ck_assert_uint_le(harness_count_fds(), fds + 2); /* the parent's parent */
		image = open_image("c2.kvmem");
		must(kvmem_image_read(image, 2 * PAGE, page, PAGE));
		ck_assert_int_eq(!memcmp(page, model + 2 * PAGE, PAGE), r != 0);
		ck_assert_uint_eq(files_here(), 6);
		must(kvmem_image_close(image));
		must(kvmem_image_close(parent));
	}
	unmake();
}
END

HARNESS_MAIN(T(as_many_as_the_manual_says), T(a_limit_in_the_middle), T(a_commit_takes_three_more))
