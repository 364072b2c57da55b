// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Images whose data are packed: the same content as from any other, or an error. */
#include "index_rig.h"

#include <pthread.h>
#include <stdatomic.h>

#include <zstd.h>

#define BYTES  (5 * MIB + 3 * PAGE) /* the last chunk has three pages */
#define PACKED KVMEM_IMAGE_PACKED

/* ---- what they have ---- */

/* Pages that are small when they are packed. */
static void fill_dull_page(uint8_t *page, uint64_t number)
{
	for (unsigned int i = 0; i < PAGE; i++)
		page[i] = (uint8_t)(number + i / 1024);
}

static void check_info(const struct kvmem_image *image, bool packed, uint64_t data)
{
	struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;

	must(kvmem_image_get_info(image, &info));
	ck_assert_int_eq((info.flags & PACKED) != 0, packed);
	ck_assert_int_eq(info.bytes_packed != 0, packed && data);
	ck_assert_uint_eq(info.bytes_data, data);
}

TEST(what_was_packed_is_read)
{
	unsigned long long seed = 1;
	uint8_t *m = model_new(BYTES, &seed), part[300];
	struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_image *image;
	struct stat st;

	enter_folder();
	memset(m + 2 * MIB, 0, MIB);
	for (uint64_t p = 0; p < 256; p++)
		fill_dull_page(m + 3 * MIB + p * PAGE, p);
	w = create("a", NULL, BYTES, PACKED);
	must(kvmem_image_write(w, 0, m, BYTES));
	/* Written again: the last word counts. */
	fill_page(m + 7 * PAGE, 7, 3);
	memset(m + 9 * PAGE, 0, PAGE);
	must(kvmem_image_write(w, 7 * PAGE, m + 7 * PAGE, PAGE));
	must(kvmem_image_write_zero(w, 9 * PAGE, PAGE));
	must(kvmem_image_write_blob(w, "state", "0123456789", 10));
	must(kvmem_image_commit(w, NULL));
	ck_assert_uint_eq(files_here(), 2);
	image = open_image("a.kvmem");
	must(kvmem_image_get_info(image, &info));
	check_info(image, true, info.bytes - info.bytes_zero);
	ck_assert_int_eq(stat("a", &st), 0);
	ck_assert_uint_eq((uint64_t)st.st_size, info.bytes_packed);
	ck_assert_uint_lt(info.bytes_packed, info.bytes_data - 240 * PAGE);
	check_model(image, m, BYTES);
	must(kvmem_image_verify(image, NULL, NULL));
	ck_assert_int_eq(kvmem_image_read_blob(image, "state", part, sizeof(part)), 10);
	for (uint64_t at = 0; at + sizeof(part) < BYTES; at += 65521) {
		must(kvmem_image_read(image, at, part, sizeof(part)));
		ck_assert_int_eq(memcmp(part, m + at, sizeof(part)), 0);
	}
	must(kvmem_image_prefetch(image, 0, BYTES));
	must(kvmem_image_prefetch(image, 5 * PAGE, PAGE));
	must(kvmem_image_close(image));
	/* The same content is the same file. */
	save_model("b", m, BYTES, PACKED);
	shell("cmp a b");
	free(m);
	leave_folder();
}
END

TEST(nothing_but_zeros_is_packed)
{
	uint8_t *m = calloc(1, BYTES);
	struct kvmem_image *image;
	struct stat st;

	enter_folder();
	save_model("a", m, BYTES, PACKED);
	ck_assert_int_eq(stat("a", &st), 0);
	ck_assert_int_eq(st.st_size, 0);
	image = open_image("a.kvmem");
	check_info(image, true, 0);
	check_model(image, m, BYTES);
	must(kvmem_image_verify(image, NULL, NULL));
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

/* Differences one on top of the other, of both layouts in turn; what each has, and by which way it is found. */
static void make_chain(uint8_t *m, unsigned int depth)
{
	unsigned long long seed = 7;
	char path[32];

	save_model("c0", m, BYTES, PACKED | KVMEM_IMAGE_NO_SYNC);
	for (unsigned int d = 1; d < depth; d++) {
		struct kvmem_image *parent;
		struct kvmem_image_writer *w;

		snprintf(path, sizeof(path), "c%u.kvmem", d - 1);
		parent = open_image(path);
		snprintf(path, sizeof(path), "c%u", d);
		w = create(path, parent, BYTES, KVMEM_IMAGE_NO_SYNC | (d % 2 ? 0 : PACKED));
		for (unsigned int i = 0; i < 100; i++) {
			uint64_t p = harness_random(&seed) % (BYTES / PAGE);

			if (i % 4)
				fill_page(m + p * PAGE, p, d);
			else
				memset(m + p * PAGE, 0, PAGE);
			must(kvmem_image_write(w, p * PAGE, m + p * PAGE, PAGE));
		}
		must(kvmem_image_commit(w, NULL));
		must(kvmem_image_close(parent));
	}
}

/* So deep that layers have to share slots of the cache. */
TEST(chains_of_both_layouts)
{
	struct kvmem_image *image, *parent;
	unsigned long long seed = 2;
	uint8_t *m = model_new(BYTES, &seed);
	unsigned int fds;

	enter_folder();
	fds = harness_count_fds();
	make_chain(m, 35);
	image = open_image("c34.kvmem");
	check_model(image, m, BYTES);
	must(kvmem_image_verify(image, NULL, NULL));
	must(kvmem_image_prefetch(image, 0, BYTES));
	/* By the way that it knows, wherever the program is. */
	ck_assert_int_eq(chdir("/"), 0);
	must(kvmem_image_open_parent(image, &parent));
	must(kvmem_image_close(image));
	ck_assert_int_eq(chdir(folder), 0);
	image = open_image("c33.kvmem");
	for (uint64_t at = 0; at < BYTES; at += PAGE) {
		uint8_t one[PAGE], other[PAGE];

		must(kvmem_image_read(image, at, one, PAGE));
		must(kvmem_image_read(parent, at, other, PAGE));
		ck_assert_int_eq(memcmp(one, other, PAGE), 0);
	}
	must(kvmem_image_close(image));
	must(kvmem_image_close(parent));
	image = open_image("c0.kvmem");
	fails(kvmem_image_open_parent(image, &parent), ENOENT, "no parent");
	must(kvmem_image_close(image));
	ck_assert_uint_eq(harness_count_fds(), fds);
	free(m);
	leave_folder();
}
END

TEST(a_parent_that_was_packed_since_is_another_one)
{
	uint8_t *m = calloc(1, BYTES);
	struct kvmem_image *image, *parent;

	enter_folder();
	make_chain(m, 2);
	image = open_image("c1.kvmem");
	memset(m, 0, BYTES);
	save_model("c0", m, BYTES, PACKED | KVMEM_IMAGE_REPLACE);
	fails(kvmem_image_open_parent(image, &parent), ESTALE, "not the image");
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

/* ---- making ---- */

static int counts_and_ends(void *arg, const struct kvmem_image_progress *p)
{
	unsigned int *left = arg;

	ck_assert_uint_eq(p->size, sizeof(*p));
	ck_assert_uint_le(p->done, p->total);
	return !--*left;
}

TEST(a_commit_is_told_of_and_cancelled)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	unsigned long long seed = 3;
	uint8_t *m = model_new(BYTES, &seed);
	struct kvmem_image_writer *w;
	unsigned int left = 1, fds;

	enter_folder();
	o.regions = &one;
	o.region_count = 1;
	o.progress = counts_and_ends;
	o.arg = &left;
	fds = harness_count_fds();
	fails(kvmem_image_create("a", &o, &w), EINVAL, "PACKED");
	o.flags = PACKED;
	for (unsigned int tries = 0; tries < 100; tries++) {
		int r;

		left = 1;
		must(kvmem_image_create("a", &o, &w));
		must(kvmem_image_write(w, 0, m, BYTES));
		r = kvmem_image_commit(w, NULL);
		if (!r) { /* the other threads were faster */
			shell("rm a a.kvmem");
			continue;
		}
		fails(r, ECANCELED, "progress");
		break;
	}
	ck_assert_uint_eq(left, 0);
	ck_assert_uint_eq(files_here(), 0);
	ck_assert_uint_eq(harness_count_fds(), fds);
	free(m);
	leave_folder();
}
END

/* A guest's memory into packed data. */
static int uses_the_writer(void *arg, const struct kvmem_image_progress *p)
{
	struct kvmem_image_writer *w = *(struct kvmem_image_writer **)arg;
	uint8_t page[PAGE] = { 1 };

	(void)p;
	fails(kvmem_image_write(w, 0, page, PAGE), EBUSY, "commit");
	fails(kvmem_image_write_zero(w, 0, PAGE), EBUSY, "commit");
	fails(kvmem_image_write_blob(w, "late", page, 1), EBUSY, "commit");
	fails(kvmem_image_commit(w, NULL), EBUSY, "commit");
	kvmem_image_abort(w); /* the commit's to free */
	return 0;
}

/* What is written to a span that has been packed would be in no frame, and its sum in the index. */
TEST(a_callback_uses_the_writer)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_region one = region_of(BYTES, 0, "ram");
	struct kvmem_image_writer *w = NULL;
	unsigned long long seed = 5;
	uint8_t *m = model_new(BYTES, &seed);
	struct kvmem_image *image;

	enter_folder();
	o.flags = PACKED;
	o.regions = &one;
	o.region_count = 1;
	o.progress = uses_the_writer;
	o.arg = &w;
	must(kvmem_image_create("a", &o, &w));
	must(kvmem_image_write(w, 0, m, BYTES));
	must(kvmem_image_commit(w, NULL));
	image = open_image("a.kvmem");
	check_model(image, m, BYTES);
	must(kvmem_image_verify(image, NULL, NULL));
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

TEST(memory_is_saved_packed)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_image_save_result saved = KVMEM_IMAGE_SAVE_RESULT_INIT;
	unsigned long long seed = 6;
	uint8_t *m = model_new(BYTES, &seed);
	struct kvmem_image_writer *w;
	struct kvmem_image *image;
	struct kvmem_region *ram;

	enter_folder();
	o.bytes = BYTES;
	must(kvmem_region_create(NULL, &o, &ram));
	memcpy(kvmem_region_base(ram), m, BYTES);
	w = create("a", NULL, BYTES, PACKED);
	must(kvmem_image_save(w, &ram, 1, NULL, NULL, &saved));
	must(kvmem_image_commit(w, NULL));
	image = open_image("a.kvmem");
	check_info(image, true, saved.bytes_data);
	check_model(image, m, BYTES);
	must(kvmem_region_free(ram));
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

/* ---- the cache ---- */

static struct file index_file = { .name = "a.kvmem" }, data_file = { .name = "a" };

static struct ki_frame *frame_of(uint64_t chunk)
{
	struct ki_super *s = (void *)index_file.bytes;

	return (struct ki_frame *)(void *)(index_file.bytes + s->frame_table.offset) + chunk;
}

static void get_files(void)
{
	file_get(&index_file);
	file_get(&data_file);
}

static void free_files(void)
{
	free(index_file.bytes);
	free(data_file.bytes);
}

/* In the order of the chunks, whatever threads there are. */
TEST(frames_lie_in_order)
{
	const uint64_t bytes = 96 * MIB;
	uint8_t *m = calloc(1, bytes);
	uint64_t at = 0;

	/* Some spans take long to pack and some do not. */
	for (uint64_t p = 0; p < bytes / PAGE; p++)
		if (p / 512 % 3 == 0)
			fill_page(m + p * PAGE, p, 1);
		else if (p % 16 == 0)
			fill_dull_page(m + p * PAGE, p);
	enter_folder();
	save_model("a", m, bytes, PACKED | KVMEM_IMAGE_NO_SYNC);
	get_files();
	for (uint64_t chunk = 0; chunk < bytes / KI_CHUNK; chunk++) {
		ck_assert_uint_eq(frame_of(chunk)->offset, at);
		ck_assert_uint_ne(frame_of(chunk)->bytes, 0);
		at += frame_of(chunk)->bytes;
	}
	ck_assert_uint_eq(at, data_file.size);
	free_files();
	free(m);
	leave_folder();
}
END

static void damage_frame(uint64_t chunk)
{
	size_t at = frame_of(chunk)->offset + frame_of(chunk)->bytes / 2;

	file_write_byte(&data_file, at, data_file.bytes[at] ^ 4);
}

/* What was unpacked once is not unpacked again; a frame that is damaged then is not seen until the image is opened. */
TEST(a_chunk_is_unpacked_once)
{
	uint8_t *m = calloc(1, BYTES), page[PAGE];
	struct kvmem_image *image;

	enter_folder();
	for (uint64_t p = 0; p < BYTES / PAGE; p++)
		fill_page(m + p * PAGE, p, 1);
	save_model("a", m, BYTES, PACKED);
	get_files();
	image = open_image("a.kvmem");
	for (uint64_t chunk = 0; chunk < 8; chunk++)
		must(kvmem_image_read(image, chunk * KI_CHUNK, page, PAGE));
	for (uint64_t chunk = 0; chunk < 12; chunk++)
		damage_frame(chunk);
	for (uint64_t p = 0; p < 12 * 16; p++) {
		if (p / 16 >= 8) {
			fails(kvmem_image_read(image, p * PAGE, page, PAGE), EBADMSG, "frame");
			continue;
		}
		must(kvmem_image_read(image, p * PAGE, page, PAGE));
		ck_assert_int_eq(memcmp(page, m + p * PAGE, PAGE), 0);
	}
	must(kvmem_image_read(image, 12 * KI_CHUNK, page, PAGE));
	fails(kvmem_image_verify(image, NULL, NULL), EBADMSG, "offset 0x80000");
	must(kvmem_image_close(image));
	image = open_image("a.kvmem");
	fails(kvmem_image_read(image, 0, page, PAGE), EBADMSG, "offset 0x0");
	must(kvmem_image_close(image));
	free_files();
	free(m);
	leave_folder();
}
END

static struct {
	struct kvmem_image *image;
	uint8_t *m;
	_Atomic unsigned int errors;
} shared;

static void *reads(void *arg)
{
	unsigned long long seed = (unsigned long long)(uintptr_t)arg;

	for (unsigned int i = 0; i < 1500; i++) {
		uint64_t p = harness_random(&seed) % (BYTES / PAGE);
		uint8_t page[PAGE];

		if (kvmem_image_read(shared.image, p * PAGE, page, PAGE))
			atomic_fetch_add(&shared.errors, 1);
		else if (memcmp(page, shared.m + p * PAGE, PAGE))
			ck_abort_msg("page %lu is another one", (unsigned long)p);
	}
	return NULL;
}

static void read_in_threads(unsigned int count)
{
	pthread_t threads[16];

	shared.errors = 0;
	for (uintptr_t i = 0; i < count; i++)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, reads, (void *)(i + 1)), 0);
	for (unsigned int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

/* More chunks than the cache has, of several layers, and some that cannot be unpacked. */
TEST(many_threads_read_one_image)
{
	unsigned long long seed = 4;

	enter_folder();
	shared.m = model_new(BYTES, &seed);
	make_chain(shared.m, 4);
	shared.image = open_image("c3.kvmem");
	read_in_threads(16);
	ck_assert_uint_eq(shared.errors, 0);
	must(kvmem_image_close(shared.image));
	save_model("a", shared.m, BYTES, PACKED);
	get_files();
	for (uint64_t chunk = 0; chunk < BYTES / KI_CHUNK; chunk += 3)
		damage_frame(chunk);
	shared.image = open_image("a.kvmem");
	read_in_threads(16);
	ck_assert_uint_gt(shared.errors, 100);
	must(kvmem_image_close(shared.image));
	free_files();
	free(shared.m);
	leave_folder();
}
END

/* ---- as a source ---- */

TEST(a_region_is_filled_from_it)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	unsigned long long seed = 5;
	uint8_t *m = model_new(BYTES, &seed);
	struct kvmem_source *source;
	struct kvmem_region *ram;
	struct kvmem_image *image;

	enter_folder();
	make_chain(m, 5);
	image = open_image("c4.kvmem");
	o.bytes = BYTES;
	must(kvmem_region_create(NULL, &o, &ram));
	must(kvmem_image_source(image, 0, &source));
	must(kvmem_populate(ram, 0, source, NULL, NULL));
	ck_assert_int_eq(memcmp(kvmem_region_base(ram), m, BYTES), 0);
	must(kvmem_region_free(ram));
	must(kvmem_source_free(source));
	must(kvmem_image_close(image));
	free(m);
	leave_folder();
}
END

/* Can the kernel read this page for the program? */
static bool is_poisoned(const uint8_t *page)
{
	int ends[2];
	ssize_t n;

	ck_assert_int_eq(pipe(ends), 0);
	n = write(ends[1], page, 8);
	ck_assert(n == 8 || errno == EFAULT);
	close(ends[0]);
	close(ends[1]);
	return n < 0;
}

/* Of a chunk that is damaged every page is poisoned, and its neighbours are whole. */
TEST(a_pager_never_gives_out_a_damaged_chunk)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	uint8_t *m = calloc(1, BYTES), *base;
	struct kvmem_source *source;
	struct kvmem_region *ram;
	struct kvmem_image *image;
	struct kvmem_pager *pager;
	int r = kvmem_pager_create(NULL, &pager);

	SKIP_IF(r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP, "uffd", "%s",
		kvmem_error_detail());
	must(r);
	enter_folder();
	for (uint64_t p = 0; p < BYTES / PAGE; p++)
		fill_page(m + p * PAGE, p, 1);
	save_model("a", m, BYTES, PACKED);
	get_files();
	damage_frame(1);
	image = open_image("a.kvmem");
	o.bytes = BYTES;
	must(kvmem_region_create(NULL, &o, &ram));
	must(kvmem_image_source(image, 0, &source));
	must(kvmem_pager_add(pager, ram, source, 0, 0));
	must(kvmem_pager_start(pager));
	base = kvmem_region_base(ram);
	for (uint64_t p = 0; p < BYTES / PAGE; p++) {
		if (p / 16 == 1)
			ck_assert(is_poisoned(base + p * PAGE));
		else
			ck_assert_int_eq(memcmp(base + p * PAGE, m + p * PAGE, PAGE), 0);
	}
	must(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_pager_free(pager));
	must(kvmem_region_free(ram));
	must(kvmem_source_free(source));
	must(kvmem_image_close(image));
	free_files();
	free(m);
	leave_folder();
}
END

/* ---- damage ---- */

#define SMALL (40 * PAGE) /* three chunks, the last one not whole */

static uint8_t *small_model(void)
{
	uint8_t *m = calloc(1, SMALL);

	for (uint64_t p = 0; p < SMALL / PAGE; p += 3)
		fill_dull_page(m + p * PAGE, p);
	return m;
}

/* Each page is what it was, or an error. Returns how many errors. */
static unsigned int look(const uint8_t *m)
{
	static uint8_t page[PAGE];
	struct kvmem_image *image;
	unsigned int errors = 0;

	if (kvmem_image_open("a.kvmem", NULL, &image))
		return 1;
	for (uint64_t p = 0; p < SMALL / PAGE; p++) {
		memset(page, 0x55, sizeof(page));
		if (kvmem_image_read(image, p * PAGE, page, PAGE))
			errors++;
		else if (memcmp(page, m + p * PAGE, PAGE))
			ck_abort_msg("page %lu is another one", (unsigned long)p);
	}
	must(kvmem_image_close(image));
	return errors;
}

/* Of the data each bit; of the index, where it is used, a bit of every third byte. */
TEST(no_flipped_bit_is_given_out)
{
	unsigned int flips = 0, seen = 0;
	uint8_t *m = small_model();

	enter_folder();
	save_model("a", m, SMALL, PACKED);
	get_files();
	ck_assert_uint_eq(look(m), 0);
	for (size_t at = 0; at < data_file.size; at++)
		for (unsigned int bit = 0; bit < 8; bit++, flips++) {
			file_write_byte(&data_file, at, data_file.bytes[at] ^ (uint8_t)(1u << bit));
			ck_assert_uint_gt(look(m), 0);
			file_write_byte(&data_file, at, data_file.bytes[at]);
		}
	for (size_t at = 0; at < index_file.size; at += 3) {
		if (is_zero_page(index_file.bytes + at / PAGE * PAGE))
			continue;
		file_write_byte(&index_file, at, index_file.bytes[at] ^ (uint8_t)(1u << at % 8));
		flips++;
		seen += look(m) != 0;
		file_write_byte(&index_file, at, index_file.bytes[at]);
	}
	ck_assert_uint_eq(look(m), 0);
	harness_note("%u flips, %u of the index noticed", flips, seen);
	ck_assert_uint_gt(seen, PAGE / 3);
	free_files();
	free(m);
	leave_folder();
}
END

/* ---- frames that lie, with all sums right ---- */

/* In place of the frame of chunk 1, which has 65 536 bytes; the data end with it. */
static void put_frame(const void *frame, size_t bytes)
{
	struct ki_frame before = *frame_of(1);
	struct ki_super *s = (void *)index_file.bytes;
	struct file data = data_file;

	data.size = data_file.size + bytes;
	data.bytes = malloc(data.size + 1);
	memcpy(data.bytes, data_file.bytes, data_file.size);
	memcpy(data.bytes + data_file.size, frame, bytes);
	*frame_of(1) = (struct ki_frame){ .offset = data_file.size,
					  .bytes = (uint32_t)bytes,
					  .sum = (uint32_t)XXH3_64bits(frame, bytes) };
	s->data_bytes = data.size;
	make_right(&index_file);
	file_put(&index_file, index_file.size);
	file_put(&data, data.size);
	free(data.bytes);
	*frame_of(1) = before;
	s->data_bytes = data_file.size;
	make_right(&index_file);
}

/* The five pages of chunk 1 that are stored cannot be read; what else there is can. */
static void refused(const uint8_t *m, const void *frame, size_t bytes, const char *what)
{
	unsigned int errors;

	put_frame(frame, bytes);
	errors = look(m);
	if (errors != 5)
		ck_abort_msg("%s: %u errors", what, errors);
}

static size_t pack_plainly(const void *from, size_t bytes, bool with_size, uint8_t *to, size_t room)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();
	size_t n;

	ck_assert_uint_eq(
		ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, with_size)), 0);
	n = ZSTD_compress2(c, to, room, from, bytes);
	ck_assert_uint_eq(ZSTD_isError(n), 0);
	ZSTD_freeCCtx(c);
	return n;
}

TEST(frames_that_lie)
{
	const size_t bomb_bytes = 64 * MIB, room = KI_MAX_FRAME * 2;
	uint8_t *m = small_model(), *bomb = calloc(1, bomb_bytes), *frame = malloc(room), byte = 0;
	const uint8_t *chunk = m + KI_CHUNK;
	const uint32_t size = KI_CHUNK, legacy = 0xFD2FB527;
	struct kvmem_image *image;
	size_t n;

	enter_folder();
	save_model("a", m, SMALL, PACKED);
	get_files();
	/* An honest one at another place is taken. */
	n = pack_plainly(chunk, KI_CHUNK, true, frame, room);
	put_frame(frame, n);
	ck_assert_uint_eq(look(m), 0);
	refused(m, frame, n - 1, "cut short");
	frame[n] = 0;
	refused(m, frame, n + 1, "a byte behind it");
	memcpy(frame + n, frame, n);
	refused(m, frame, 2 * n, "twice");
	memcpy(frame + n, "\x50\x2a\x4d\x18\x08\0\0\0abcdefgh", 16);
	refused(m, frame, n + 16, "and one behind it that is skipped");
	refused(m, frame, 3, "no magic");
	refused(m, &byte, 0, "none");
	memcpy(frame, &legacy, 4);
	refused(m, frame, n, "the format of zstd 0.7");
	n = pack_plainly(chunk, KI_CHUNK, false, frame, room);
	refused(m, frame, n, "of a size that it does not say");
	n = pack_plainly(chunk, KI_CHUNK - 1, true, frame, room);
	refused(m, frame, n, "shorter than a chunk");
	n = pack_plainly(bomb, KI_CHUNK + 1, true, frame, room);
	refused(m, frame, n, "longer than a chunk");
	n = pack_plainly(bomb, KI_CHUNK, true, frame, room);
	refused(m, frame, n, "of zeros: not the pages that were stored");
	n = pack_plainly(bomb, bomb_bytes, true, frame, room);
	ck_assert_uint_lt(n, KI_MAX_FRAME);
	refused(m, frame, n, "of 64 MiB");
	/* Magic, descriptor 0x80, the window, and four bytes that say how long the content is. */
	ck_assert_uint_eq(frame[4], 0x80);
	memcpy(frame + 6, &size, 4);
	refused(m, frame, n, "of 64 MiB that says 64 KiB");
	n = pack_plainly(bomb, bomb_bytes, false, frame, room);
	refused(m, frame, n, "of 64 MiB that does not say it");
	memcpy(frame, "\x50\x2a\x4d\x18\x08\0\0\0abcdefgh", 16);
	refused(m, frame, 16, "one that is skipped");
	memset(frame, 'x', KI_MAX_FRAME + 1);
	refused(m, frame, KI_MAX_FRAME, "none of zstd");
	put_frame(frame, KI_MAX_FRAME + 1);
	image = open_image("a.kvmem");
	fails(kvmem_image_read(image, 18 * PAGE, frame, PAGE), EBADMSG, "index is damaged");
	must(kvmem_image_close(image));
	file_put(&index_file, index_file.size);
	file_put(&data_file, data_file.size);
	ck_assert_uint_eq(look(m), 0);
	free_files();
	free(frame);
	free(bomb);
	free(m);
	leave_folder();
}
END

/* Where frames are, with all sums right. */
TEST(a_table_of_frames_that_lies)
{
	uint8_t *m = small_model();
	struct ki_frame honest[3];
	struct ki_frame lies[8];

	enter_folder();
	save_model("a", m, SMALL, PACKED);
	get_files();
	memcpy(honest, frame_of(0), sizeof(honest));
	for (unsigned int i = 0; i < 8; i++)
		lies[i] = honest[1];
	lies[0] = honest[0]; /* another chunk's */
	lies[1] = honest[2];
	lies[2].offset = data_file.size;
	lies[3].offset = UINT64_MAX;
	lies[4].bytes = UINT32_MAX;
	lies[5].bytes = 0;
	lies[6].offset++;
	lies[7].sum ^= 1;
	for (unsigned int i = 0; i < 8; i++) {
		unsigned int errors;

		*frame_of(1) = lies[i];
		make_right(&index_file);
		file_put(&index_file, index_file.size);
		errors = look(m);
		ck_assert_msg(errors == 5, "lie %u: %u errors", i, errors);
	}
	free_files();
	free(m);
	leave_folder();
}
END

/* What the head says of them, with all sums right: it does not open. */
TEST(a_head_that_lies)
{
	uint8_t *m = small_model();
	struct kvmem_image *image;
	struct ki_super honest, *s;

	enter_folder();
	save_model("a", m, SMALL, PACKED);
	get_files();
	s = (void *)index_file.bytes;
	honest = *s;
	for (unsigned int i = 0; i < 9; i++) {
		*s = honest;
		switch (i) {
		case 0:
			s->chunk_shift = 17;
			break;
		case 1:
			s->chunk_shift = 0;
			break;
		case 2:
			s->data_bytes++;
			break;
		case 3:
			s->data_bytes = UINT64_MAX;
			break;
		case 4:
			s->frame_table.bytes += sizeof(struct ki_frame);
			break;
		case 5:
			s->frame_table.offset = s->index_bytes - 1;
			break;
		case 6:
			s->frame_part_table.bytes += 8;
			break;
		case 7:
			s->frame_part_table.offset = UINT64_MAX;
			break;
		default:
			s->incompat = 0; /* then the data have another length */
		}
		make_right(&index_file);
		file_put(&index_file, index_file.size);
		fails(kvmem_image_open("a.kvmem", NULL, &image), EBADMSG, "a.kvmem");
	}
	*s = honest;
	s->incompat |= 1ull << 5;
	make_right(&index_file);
	file_put(&index_file, index_file.size);
	fails(kvmem_image_open("a.kvmem", NULL, &image), EOPNOTSUPP, "features 0x21");
	free_files();
	free(m);
	leave_folder();
}
END

HARNESS_MAIN(T(what_was_packed_is_read), T(nothing_but_zeros_is_packed), T(chains_of_both_layouts),
	     T(a_parent_that_was_packed_since_is_another_one), T(a_commit_is_told_of_and_cancelled),
	     T(a_callback_uses_the_writer), T(memory_is_saved_packed), T(frames_lie_in_order),
	     T(a_chunk_is_unpacked_once), T(many_threads_read_one_image),
	     T(a_region_is_filled_from_it), T(a_pager_never_gives_out_a_damaged_chunk),
	     T(no_flipped_bit_is_given_out), T(frames_that_lie), T(a_table_of_frames_that_lies),
	     T(a_head_that_lies))
