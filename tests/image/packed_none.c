// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* libkvmem-image as it is built without zstd: packed images are refused in words, and all others are as ever. */
#include "index_rig.h"

#define BYTES (40 * PAGE)

/* As an image says that it is packed. Its tables need not be right: nobody looks at them. */
static void say_packed(const char *name)
{
	struct file index = { .name = name };
	struct ki_super *s;

	file_get(&index);
	s = (void *)index.bytes;
	s->incompat |= KI_PACKED;
	s->chunk_shift = KI_CHUNK_SHIFT;
	s->frame_table.offset = PAGE;
	s->frame_table.bytes = (BYTES + KI_CHUNK - 1) / KI_CHUNK * sizeof(struct ki_frame);
	s->data_bytes = BYTES;
	s->sum = sum_of(s, offsetof(struct ki_super, sum));
	file_put(&index, index.size);
	free(index.bytes);
}

TEST(packed_images_are_refused_in_words)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	uint8_t *m = calloc(1, BYTES), page[PAGE];
	struct kvmem_image_writer *w;
	struct kvmem_image *image;
	unsigned int fds;

	enter_folder();
	fill_page(m + PAGE, 1, 1);
	save_model("a", m, BYTES, 0);
	image = open_image("a.kvmem");
	check_model(image, m, BYTES);
	w = create("b", image, BYTES, 0);
	fill_page(m + 2 * PAGE, 2, 1);
	must(kvmem_image_write(w, 2 * PAGE, m + 2 * PAGE, PAGE));
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_close(image));
	o.regions = &one;
	o.region_count = 1;
	o.flags = KVMEM_IMAGE_PACKED;
	fds = harness_count_fds();
	fails(kvmem_image_create("c", &o, &w), EOPNOTSUPP, "without zstd");
	say_packed("a.kvmem");
	fails(kvmem_image_open("a.kvmem", NULL, &image), EOPNOTSUPP, "without zstd");
	/* Of an image on top of it, what it stores itself. */
	image = open_image("b.kvmem");
	must(kvmem_image_read(image, 2 * PAGE, page, PAGE));
	ck_assert_int_eq(memcmp(page, m + 2 * PAGE, PAGE), 0);
	fails(kvmem_image_read(image, PAGE, page, PAGE), ESTALE, "not the image");
	must(kvmem_image_close(image));
	ck_assert_uint_eq(harness_count_fds(), fds);
	free(m);
	leave_folder();
}
END

HARNESS_MAIN(T(packed_images_are_refused_in_words))
