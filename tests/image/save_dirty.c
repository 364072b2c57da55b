// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_image_save() of what a dirty reader reports, over a KVM in memory: no page of a batch is ever lost. */
#include "dirty_guest.h"

/* The batch goes into the writer; never freed here any more. */
static int save(struct kvmem_image_writer *w, struct kvmem_image_save_result *res)
{
	struct kvmem_batch *b = batch;

	batch = NULL;
	return kvmem_image_save(w, &ram, 1, b, NULL, res);
}

TEST(differences_hold_what_was_written_and_chain)
{
	for (unsigned int mode = 0; mode < 2; mode++) {
		unsigned long long seed = 4 + mode;
		struct kvmem_image *chain[9];
		char name[32];

		open_guest(mode ? KVMEM_DIRTY_BITMAP : KVMEM_DIRTY_RING);
		for (uint64_t p = 0; p < PAGES; p += 3)
			guest_writes(p, 1);
		harvest();
		kvmem_batch_free(batch);
		batch = NULL;
		save_full("0");
		chain[0] = open_image("0.kvmem");
		for (unsigned int depth = 1; depth < 9; depth++) {
			struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
			struct kvmem_image_writer *w;
			uint64_t zeroed = 100 + depth, n;

			for (unsigned int i = 0; i < 40; i++)
				guest_writes(harness_random(&seed) % PAGES, depth + 1);
			memset(base + zeroed * PAGE, 0, PAGE); /* it hides the parent's */
			fk_write(0, 0, zeroed);
			n = (uint64_t)harvest();
			snprintf(name, sizeof(name), "%u", depth);
			w = begin(name, chain[depth - 1]);
			must(save(w, &res));
			must(kvmem_image_commit(w, NULL));
			ck_assert_uint_eq(res.bytes_data + res.bytes_zero, n * PAGE);
			ck_assert_uint_ge(res.bytes_zero, PAGE);
			/* Saved is saved. */
			ck_assert_int_eq(harvest(), 0);
			kvmem_batch_free(batch);
			batch = NULL;
			snprintf(name, sizeof(name), "%u.kvmem", depth);
			chain[depth] = open_image(name);
			check_model(chain[depth], base, BYTES);
		}
		for (unsigned int i = 9; i--;)
			must(kvmem_image_close(chain[i]));
		close_guest();
	}
}
END

enum failure { ABORTED, CANCELED, REFUSED, NO_WRITER, FOREIGN, EXISTS, NOT_COMMITTED, FAILURES };

static void fail_to_save(enum failure how)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_region *other = &fk.b;
	struct kvmem_image_writer *w = begin("diff", NULL);
	struct kvmem_batch *b = batch;

	batch = NULL;
	switch (how) {
	case CANCELED:
		o.progress = cancels;
		fails(kvmem_image_save(w, &ram, 1, b, &o, NULL), ECANCELED, "progress");
		fails(kvmem_image_commit(w, NULL), EINVAL, "has failed");
		return;
	case REFUSED:
		o.threads = 1000;
		fails(kvmem_image_save(w, &ram, 1, b, &o, NULL), EINVAL, "threads");
		break;
	case NO_WRITER:
		fails(kvmem_image_save(NULL, &ram, 1, b, NULL, NULL), EINVAL, "writer");
		break;
	case FOREIGN:
		fails(kvmem_image_save(w, &other, 1, b, NULL, NULL), EINVAL, "bytes");
		break;
	case EXISTS:
		must(kvmem_image_save(w, &ram, 1, b, NULL, NULL));
		shell("touch diff.kvmem");
		fails(kvmem_image_commit(w, NULL), EEXIST, "diff");
		shell("rm diff.kvmem");
		return;
	case NOT_COMMITTED:
		fails(kvmem_image_save(w, &ram, 1, b, NULL, NULL), EPERM, "commit");
		break;
	default:
		must(kvmem_image_save(w, &ram, 1, b, NULL, NULL));
	}
	kvmem_image_abort(w);
}

TEST(whatever_fails_the_dirty_pages_come_again)
{
	for (unsigned int how = 0; how < FAILURES; how++) {
		open_guest(KVMEM_DIRTY_RING);
		guest_writes(5, 1);
		guest_writes(77, 1);
		if (how == NOT_COMMITTED)
			must((int)kvmem_dirty_harvest(dirty, &batch));
		else
			harvest();
		fail_to_save(how);
		guest_writes(6, 2);
		ck_assert_int_eq(harvest(), 3);
		ck_assert(is_dirty(5) && is_dirty(6) && is_dirty(77));
		close_guest();
	}
}
END

static void check_one(struct kvmem_image *image, uint64_t page, unsigned int change)
{
	uint8_t got[PAGE], want[PAGE];

	fill_page(want, page, change);
	must(kvmem_image_read(image, page * PAGE, got, PAGE));
	ck_assert_int_eq(memcmp(got, want, PAGE), 0);
}

TEST(a_batch_that_was_looked_at_is_saved_whole)
{
	struct kvmem_image_writer *w;
	struct kvmem_image *image;
	struct kvmem_run run;

	open_guest(KVMEM_DIRTY_RING);
	for (uint64_t p = 1; p < 400; p += 2)
		guest_writes(p, 3);
	harvest();
	for (unsigned int i = 0; i < 50; i++)
		ck_assert_int_eq(kvmem_batch_next(batch, &run), 1);
	w = begin("whole", NULL);
	must(save(w, NULL));
	/* It is the image's until the commit: one for each. */
	guest_writes(3, 4);
	fails((int)kvmem_dirty_harvest(dirty, &batch), EBUSY, "out");
	must(kvmem_image_commit(w, NULL));
	w = begin("second", NULL);
	harvest();
	must(save(w, NULL));
	must(kvmem_image_commit(w, NULL));
	image = open_image("second.kvmem");
	check_one(image, 3, 4);
	must(kvmem_image_close(image));
	fill_page(base + 3 * PAGE, 3, 3);
	image = open_image("whole.kvmem");
	check_model(image, base, BYTES);
	must(kvmem_image_close(image));
	close_guest();
}
END

TEST(discarded_since_it_was_written)
{
	struct kvmem_image_writer *w;
	struct kvmem_image *parent, *image;

	open_guest(KVMEM_DIRTY_RING);
	for (uint64_t p = 0; p < 64; p++)
		guest_writes(p, 3);
	harvest();
	kvmem_batch_free(batch);
	save_full("p");
	parent = open_image("p.kvmem");
	must(kvmem_region_discard(ram, 20 * PAGE, 4 * PAGE));
	guest_writes(9, 4);
	guest_writes(10, 4);
	guest_writes(22, 4); /* discarded, and written since */
	harvest();
	must(kvmem_region_discard(ram, 9 * PAGE, PAGE));
	w = begin("d", parent);
	must(save(w, NULL));
	must(kvmem_image_commit(w, NULL));
	image = open_image("d.kvmem");
	check_model(image, base, BYTES);
	must(kvmem_image_close(image));
	must(kvmem_image_close(parent));
	close_guest();
}
END

/* ---- beside a pager that fills ---- */

static const struct km_presence_listener pager;
static uint64_t
	filled_next; /* 0: none; else the page that the pager fills when the record has been looked at */

/* meson: --wrap. */
int __real_kvmem_region_next_run(const struct kvmem_region *region, uint64_t from,
				 struct kvmem_run *ret_run, uint32_t *ret_state);
int __wrap_kvmem_region_next_run(const struct kvmem_region *region, uint64_t from,
				 struct kvmem_run *ret_run, uint32_t *ret_state);

int __wrap_kvmem_region_next_run(const struct kvmem_region *region, uint64_t from,
				 struct kvmem_run *ret_run, uint32_t *ret_state)
{
	int r = __real_kvmem_region_next_run(region, from, ret_run, ret_state);
	uint64_t page = filled_next;

	if (page) {
		filled_next = 0;
		fill_page(base + page * PAGE, page, 1);
		ck_assert_uint_eq(km_presence_claim(&ram->presence, page, 1), 1);
		km_presence_publish(&ram->presence, page, 1, KM_PRESENT);
	}
	return r;
}

/* A parent with content 1 everywhere, whose pages a pager fills from; nothing is filled yet. */
static struct kvmem_image *open_paged(void)
{
	struct kvmem_image *parent;

	open_guest(KVMEM_DIRTY_RING);
	for (uint64_t p = 0; p < PAGES; p++)
		fill_page(model + p * PAGE, p, 1);
	save_model("parent", model, BYTES, KVMEM_IMAGE_NO_SYNC);
	parent = open_image("parent.kvmem");
	km_presence_listen(&ram->presence, &pager, NULL);
	return parent;
}

/* The memory has to be the model: what was not filled comes from the parent, and nothing else does. */
static void save_runs_and_close(struct kvmem_image *parent, const struct kvmem_run *run)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_writer *w = begin("diff", parent);
	struct kvmem_image *image;

	o.flags = KVMEM_IMAGE_ABSENT_FROM_PARENT;
	o.runs = run;
	o.run_count = 1;
	must(kvmem_image_save(w, &ram, 1, NULL, &o, &res));
	must(kvmem_image_commit(w, NULL));
	image = open_image("diff.kvmem");
	check_model(image, model, BYTES);
	ck_assert_uint_eq(res.bytes_absent, 9 * PAGE);
	ck_assert_uint_eq(res.bytes_data, PAGE);
	must(kvmem_image_close(image));
	must(kvmem_image_close(parent));
	km_presence_listen(&ram->presence, NULL, NULL);
	close_guest();
}

TEST(a_page_is_filled_while_the_record_is_read)
{
	struct kvmem_image *parent = open_paged();
	struct kvmem_run run = { .region = ram, .offset = 30 * PAGE, .bytes = 10 * PAGE };

	filled_next = 30;
	save_runs_and_close(parent, &run);
}
END

TEST(pages_that_a_pager_is_at)
{
	static const uint64_t placed[] = { 10, 15, 19 };

	for (unsigned int i = 0; i < 3; i++) {
		struct kvmem_image *parent = open_paged();
		struct kvmem_run run = { .region = ram, .offset = 10 * PAGE, .bytes = 10 * PAGE };
		struct kvmem_stored one;

		/* Claimed all, one placed, and written to before the record has it. */
		ck_assert_uint_eq(km_presence_claim(&ram->presence, 10, 10), 10);
		fill_page(base + placed[i] * PAGE, placed[i], 2);
		fill_page(model + placed[i] * PAGE, placed[i], 2);
		must((int)kvmem_region_stored(ram, (i ? 10 : 11) * PAGE, PAGE, &one, 1));
		SKIP_IF(one.kind != KVMEM_STORED_ABSENT, "swap",
			"the kernel does not tell which pages there are");
		save_runs_and_close(parent, &run);
	}
}
END

/* Stored by one pass, and then marked absent: what the parent has, and no longer what was stored. */
TEST(absent_again_between_two_passes)
{
	struct kvmem_image_precopy_opts o = KVMEM_IMAGE_PRECOPY_OPTS_INIT;
	struct kvmem_image *parent = open_paged(), *image;
	struct kvmem_image_writer *w = begin("live", parent);

	for (uint64_t p = 5; p < 8; p++) {
		ck_assert_uint_eq(km_presence_claim(&ram->presence, p, 1), 1);
		km_presence_publish(&ram->presence, p, 1, KM_PRESENT);
		guest_writes(p, 2);
		fill_page(model + p * PAGE, p, p == 6 ? 1 : 2);
	}
	o.flags = KVMEM_IMAGE_ABSENT_FROM_PARENT;
	o.dirty = dirty;
	o.reader = kvmem_dirty_reader(dirty);
	o.passes = 1;
	must(kvmem_image_precopy(w, &ram, 1, &o, NULL));
	km_presence_turn(&ram->presence, 6, 1, KM_PRESENT, KM_ABSENT);
	fk_write(0, 0, 6);
	o.flags |= KVMEM_IMAGE_LAST_PASS;
	must(kvmem_image_precopy(w, &ram, 1, &o, NULL));
	must(kvmem_image_commit(w, NULL));
	image = open_image("live.kvmem");
	check_model(image, model, BYTES);
	must(kvmem_image_close(image));
	must(kvmem_image_close(parent));
	km_presence_listen(&ram->presence, NULL, NULL);
	close_guest();
}
END

/* ---- pass by pass ---- */

static unsigned int change;

/* The guest runs on: between two pieces of a pass it writes. */
static int guest_runs(void *arg, const struct kvmem_image_progress *p)
{
	(void)p;
	for (unsigned int i = 0; i < 5; i++)
		guest_writes(harness_random(arg) % PAGES, ++change);
	return 0;
}

TEST(precopy_by_a_reader)
{
	for (unsigned int mode = 0; mode < 2; mode++) {
		struct kvmem_image_precopy_opts o = KVMEM_IMAGE_PRECOPY_OPTS_INIT;
		struct kvmem_image_precopy_result res = KVMEM_IMAGE_PRECOPY_RESULT_INIT;
		unsigned long long seed = 4 + mode;
		struct kvmem_image_writer *w;
		struct kvmem_image *image;
		uint8_t *buf = malloc(BYTES);

		open_guest(mode ? KVMEM_DIRTY_BITMAP : KVMEM_DIRTY_RING);
		for (uint64_t p = 0; p < PAGES; p += 3)
			guest_writes(p, 1);
		o.dirty = dirty;
		o.reader = kvmem_dirty_reader(dirty);
		o.threads = 1;
		o.passes = 4;
		o.pause_ns = 1; /* no pass is so short */
		o.progress = guest_runs;
		o.arg = &seed;
		w = begin("live", NULL);
		must(kvmem_image_precopy(w, &ram, 1, &o, &res));
		ck_assert_uint_ne(res.end, KVMEM_IMAGE_PRECOPY_CONVERGED);
		ck_assert_uint_gt(res.passes, 1);
		guest_writes(7, 99);
		o.flags = KVMEM_IMAGE_LAST_PASS;
		o.progress = NULL;
		must(kvmem_image_precopy(w, &ram, 1, &o, &res));
		must(kvmem_image_commit(w, NULL));
		image = open_image("live.kvmem");
		must(kvmem_image_read(image, 0, buf, BYTES));
		ck_assert(!memcmp(buf, base, BYTES));
		must(kvmem_image_close(image));

		/* A pass that fails gives its pages back. */
		w = begin("canceled", NULL);
		must(kvmem_image_precopy(w, &ram, 1, &o, &res));
		kvmem_image_abort(w);
		w = begin("canceled", NULL);
		o.flags = 0;
		o.passes = 1;
		must(kvmem_image_precopy(w, &ram, 1, &o, &res));
		guest_writes(11, 100);
		o.flags = KVMEM_IMAGE_LAST_PASS;
		o.progress = cancels;
		fails(kvmem_image_precopy(w, &ram, 1, &o, &res), ECANCELED, "progress");
		kvmem_image_abort(w);
		ck_assert_int_ge(harvest(), 1);
		free(buf);
		close_guest();
	}
}
END

HARNESS_MAIN(T(differences_hold_what_was_written_and_chain),
	     T(whatever_fails_the_dirty_pages_come_again),
	     T(a_batch_that_was_looked_at_is_saved_whole), T(discarded_since_it_was_written),
	     T(a_page_is_filled_while_the_record_is_read), T(pages_that_a_pager_is_at),
	     T(absent_again_between_two_passes), T(precopy_by_a_reader))
