// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The data of an image as the template of clones. */
#include "image_rig.h"

#include <sys/file.h>

#define BYTES (40 * PAGE)

/* An image p that is packed; false: the build has no zstd. */
static bool packed(void)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	struct kvmem_image_writer *w;
	int r;

	o.flags = KVMEM_IMAGE_PACKED;
	o.regions = &one;
	o.region_count = 1;
	r = kvmem_image_create("p", &o, &w);
	if (r == -EOPNOTSUPP)
		return false;
	must(r);
	must(kvmem_image_commit(w, NULL));
	return true;
}

/* Of the image that is open, although somebody has the old one's data, which have its name. */
TEST(the_data_as_a_template)
{
	struct kvmem_image_open_opts raw = KVMEM_IMAGE_OPEN_OPTS_INIT;
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	unsigned long long seed = 61;
	uint8_t *old = model_new(BYTES, &seed), *new = model_new(BYTES, &seed);
	struct kvmem_image *reader, *image, *child;
	struct kvmem_image_writer *w;
	struct kvmem_region *ram;
	int fd = -1;

	enter_folder();
	save_model("a", old, BYTES, 0);
	reader = open_image("a.kvmem");
	fill_page(new, 0, 9);
	save_model("a", new, BYTES, KVMEM_IMAGE_REPLACE);
	image = open_image("a.kvmem");
	must(kvmem_image_template(image, &fd));
	w = create("child", image, 0, 0);
	must(kvmem_image_write(w, 0, old, PAGE));
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_close(image));
	save_model("b", old, BYTES, 0);
	o.bytes = BYTES;
	o.flags = KVMEM_REGION_CLONE;
	o.fd = fd;
	must(kvmem_region_create(NULL, &o, &ram));
	ck_assert_int_eq(memcmp(kvmem_region_base(ram), new, BYTES), 0);
	must(kvmem_region_free(ram));
	close(fd);

	child = open_image("child.kvmem");
	fails(kvmem_image_template(child, &fd), EOPNOTSUPP, "parents");
	fails(kvmem_image_template(child, NULL), EINVAL, "ret_fd");
	fails(kvmem_image_template(NULL, &fd), EINVAL, "image");
	raw.flags = KVMEM_IMAGE_RAW_DIFF;
	raw.parent = reader;
	must(kvmem_image_open("b", &raw, &image));
	fails(kvmem_image_template(image, &fd), EOPNOTSUPP, "parents");
	must(kvmem_image_close(image));
	if (packed()) {
		image = open_image("p.kvmem");
		fails(kvmem_image_template(image, &fd), EOPNOTSUPP, "packed");
		must(kvmem_image_close(image));
	}
	must(kvmem_image_close(child));
	must(kvmem_image_close(reader));
	free(old);
	free(new);
	leave_folder();
}
END

/* The descriptor alone keeps them from who would remove them. */
TEST(a_template_keeps_its_lock)
{
	struct kvmem_image_open_opts raw = KVMEM_IMAGE_OPEN_OPTS_INIT;
	unsigned long long seed = 62;
	uint8_t *m = model_new(BYTES, &seed);

	enter_folder();
	save_model("a", m, BYTES, 0);
	for (unsigned int i = 0; i < 2; i++) {
		struct kvmem_image *image;
		int fd, other = open("a", O_RDONLY | O_CLOEXEC);

		raw.flags = i ? KVMEM_IMAGE_RAW_FULL : 0;
		must(kvmem_image_open(i ? "a" : "a.kvmem", &raw, &image));
		must(kvmem_image_template(image, &fd));
		must(kvmem_image_close(image));
		ck_assert_int_eq(flock(other, LOCK_EX | LOCK_NB), -1);
		ck_assert_int_eq(write(fd, m, 1), -1);
		close(fd);
		ck_assert_int_eq(flock(other, LOCK_EX | LOCK_NB), 0);
		close(other);
	}
	free(m);
	leave_folder();
}
END

HARNESS_MAIN(T(the_data_as_a_template), T(a_template_keeps_its_lock))
