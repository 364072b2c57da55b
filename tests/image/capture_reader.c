// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Captures of what a dirty reader reports, over a KVM in memory: of the moment of the harvest, and no page is lost. */
#include "dirty_guest.h"

#include <sys/ioctl.h>
#include <sys/resource.h>

#include "base/uapi/userfaultfd.h"

static int64_t (*fake_kvm_ioctl)(int fd, unsigned long request, void *arg);

/* The memory is real, so is its userfaultfd; KVM is not. */
static int64_t real_uffd_ioctl(int fd, unsigned long request, void *arg)
{
	return _IOC_TYPE(request) == UFFDIO ? km_real_ioctl(fd, request, arg)
					    : fake_kvm_ioctl(fd, request, arg);
}

static bool open_live(uint32_t mode, struct kvmem_image_capture **ret_capture)
{
	int r;

	open_guest(mode);
	fake_kvm_ioctl = fake.ioctl;
	fake.ioctl = real_uffd_ioctl;
	fake.userfaultfd = NULL;
	fake.open = NULL;
	r = kvmem_image_capture_create(NULL, ret_capture);
	if (r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		close_guest();
		return false;
	}
	must(r);
	return true;
}

static void close_live(struct kvmem_image_capture *capture)
{
	must(kvmem_image_capture_free(capture));
	close_guest();
}

/* The batch goes into the writer, or back to its reader. */
static int start_live(struct kvmem_image_capture *capture, struct kvmem_image_writer *w)
{
	struct kvmem_batch *b = batch;

	batch = NULL;
	return kvmem_image_capture_start_dirty(capture, w, &ram, 1, b, NULL);
}

TEST(moments_of_a_reader_chain)
{
	for (unsigned int mode = 0; mode < 2; mode++) {
		struct kvmem_image_capture *capture;
		unsigned long long seed = 40 + mode;
		struct kvmem_image *chain[7];
		char name[32];

		if (!open_live(mode ? KVMEM_DIRTY_BITMAP : KVMEM_DIRTY_RING, &capture))
			return;
		for (uint64_t p = 0; p < PAGES; p += 3)
			guest_writes(p, 1);
		harvest();
		kvmem_batch_free(batch);
		save_full("0");
		chain[0] = open_image("0.kvmem");
		for (unsigned int depth = 1; depth < 7; depth++) {
			struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
			struct kvmem_image_writer *w;
			struct kvmem_run run;
			uint64_t zeroed = 100 + depth, n;

			for (unsigned int i = 0; i < 40; i++)
				guest_writes(harness_random(&seed) % PAGES, 10 * depth);
			memset(base + zeroed * PAGE, 0, PAGE);
			fk_write(0, 0, zeroed);
			must(kvmem_region_discard(ram, (200 + depth) * PAGE, PAGE));
			n = (uint64_t)harvest();
			/* From its first run on, whatever was looked at. */
			ck_assert_int_eq(kvmem_batch_next(batch, &run), 1);
			snprintf(name, sizeof(name), "%u", depth);
			w = begin(name, chain[depth - 1]);
			must(start_live(capture, w));
			memcpy(model, base, BYTES);
			/* The guest runs on: these are of the next image. */
			guest_writes(run.offset / PAGE, 10 * depth + 1);
			for (unsigned int i = 0; i < 40; i++)
				guest_writes(harness_random(&seed) % PAGES, 10 * depth + 2);
			fails((int)kvmem_dirty_harvest(dirty, &batch), EBUSY, "out");
			must(kvmem_image_capture_run(capture, NULL, &res));
			must(kvmem_image_commit(w, NULL));
			ck_assert_uint_eq(res.bytes_data + res.bytes_zero, n * PAGE);
			ck_assert_uint_ge(res.bytes_zero, 2 * PAGE);
			snprintf(name, sizeof(name), "%u.kvmem", depth);
			chain[depth] = open_image(name);
			check_model(chain[depth], model, BYTES);
		}
		for (unsigned int i = 7; i--;)
			must(kvmem_image_close(chain[i]));
		close_live(capture);
	}
}
END

enum live_failure {
	LIVE_STOPPED,
	LIVE_CANCELED,
	LIVE_ABORTED,
	LIVE_EXISTS,
	LIVE_FULL,
	LIVE_AND_RUNS,
	LIVE_OPTS,
	LIVE_SIZE,
	LIVE_NO_WRITER,
	LIVE_NO_CAPTURE,
	LIVE_OTHER_REGION,
	LIVE_NOT_COMMITTED,
	LIVE_FAILURES
};

/* Started: how it ends. */
static void end_badly(enum live_failure how, struct kvmem_image_capture *c,
		      struct kvmem_image_writer *w)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct rlimit before, small;

	must(start_live(c, w));
	guest_writes(5, 8);
	switch (how) {
	case LIVE_STOPPED:
		fails(kvmem_image_capture_stop(c), ECANCELED, "handed out");
		break;
	case LIVE_CANCELED:
		o.progress = cancels;
		fails(kvmem_image_capture_run(c, &o, NULL), ECANCELED, "progress");
		break;
	case LIVE_EXISTS:
		must(kvmem_image_capture_run(c, NULL, NULL));
		shell("touch diff.kvmem");
		fails(kvmem_image_commit(w, NULL), EEXIST, "diff");
		shell("rm diff.kvmem");
		return;
	case LIVE_FULL:
		ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
		small = before;
		small.rlim_cur = 6 * PAGE;
		ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
		fails(kvmem_image_capture_run(c, NULL, NULL), EFBIG, "RLIMIT_FSIZE");
		ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
		fails(kvmem_image_commit(w, NULL), EINVAL, "has failed");
		return;
	default:
		must(kvmem_image_capture_run(c, NULL, NULL));
	}
	kvmem_image_abort(w);
}

/* Not started: the batch is back at once, and the writer is as it was. */
static void refuse_to_start(enum live_failure how, struct kvmem_image_capture *c,
			    struct kvmem_image_writer *w)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_run run = { .region = ram, .bytes = PAGE };
	struct kvmem_batch *b = batch;

	batch = NULL;
	switch (how) {
	case LIVE_AND_RUNS:
		o.runs = &run;
		o.run_count = 1;
		fails(kvmem_image_capture_start_dirty(c, w, &ram, 1, b, &o), EINVAL, "either");
		break;
	case LIVE_OPTS:
		o.threads = 1;
		fails(kvmem_image_capture_start_dirty(c, w, &ram, 1, b, &o), EINVAL, "threads");
		break;
	case LIVE_SIZE:
		o.size = 4;
		fails(kvmem_image_capture_start_dirty(c, w, &ram, 1, b, &o), EINVAL, "size");
		break;
	case LIVE_NO_WRITER:
		fails(kvmem_image_capture_start_dirty(c, NULL, &ram, 1, b, NULL), EINVAL, "writer");
		break;
	case LIVE_NO_CAPTURE:
		fails(kvmem_image_capture_start_dirty(NULL, w, &ram, 1, b, NULL), EINVAL,
		      "capture");
		break;
	case LIVE_NOT_COMMITTED:
		fails(kvmem_image_capture_start_dirty(c, w, &ram, 1, b, NULL), EPERM, "commit");
		names_call("kvmem_image_capture_start_dirty");
		break;
	default:
		fails(kvmem_image_capture_start_dirty(c, w, &ram, 1, b, NULL), EINVAL,
		      "none of regions");
	}
	fails(kvmem_image_capture_stop(c), EINVAL, "not started");
	kvmem_image_abort(w);
}

TEST(whatever_fails_of_a_moment_its_pages_come_again)
{
	for (unsigned int how = 0; how < LIVE_FAILURES; how++) {
		struct kvmem_image_capture *c;
		struct kvmem_image_writer *w;

		if (!open_live(KVMEM_DIRTY_RING, &c))
			return;
		guest_writes(5, 1);
		guest_writes(77, 1);
		if (how == LIVE_OTHER_REGION) {
			must(kvmem_region_attach(&fk.b, 0, BYTES / 2, 16 * BYTES, 1, 0, NULL));
			fk_write(0, 1, 9);
		}
		if (how == LIVE_NOT_COMMITTED)
			must((int)kvmem_dirty_harvest(dirty, &batch));
		else
			harvest();
		w = begin("diff", NULL);
		if (how <= LIVE_FULL)
			end_badly(how, c, w);
		else
			refuse_to_start(how, c, w);
		guest_writes(6, 2);
		ck_assert_int_eq(harvest(), how == LIVE_OTHER_REGION ? 4 : 3);
		ck_assert(is_dirty(5) && is_dirty(6) && is_dirty(77));
		/* And it can be done. */
		if (how != LIVE_OTHER_REGION) {
			w = begin("diff", NULL);
			must(start_live(c, w));
			must(kvmem_image_capture_run(c, NULL, NULL));
			must(kvmem_image_commit(w, NULL));
			ck_assert_int_eq(harvest(), 0);
		}
		close_live(c);
	}
}
END

/* Of another reader, whose batch it could not give back. */
TEST(an_image_takes_one_batch)
{
	struct kvmem_image_capture *c;
	struct kvmem_image_writer *w;
	struct kvmem_reader *other;
	struct kvmem_batch *second;

	if (!open_live(KVMEM_DIRTY_RING, &c))
		return;
	must(kvmem_dirty_reader_create(dirty, NULL, &other));
	guest_writes(5, 1);
	ck_assert_int_eq(harvest(), 1);
	ck_assert_int_eq(kvmem_reader_harvest(other, &second), 1);
	must((int)kvmem_dirty_commit(dirty, second));
	w = begin("diff", NULL);
	must(kvmem_image_save(w, &ram, 1, batch, NULL, NULL));
	batch = NULL;
	fails(kvmem_image_capture_start_dirty(c, w, &ram, 1, second, NULL), EINVAL, "already");
	must(kvmem_image_commit(w, NULL));
	ck_assert_int_eq(harvest(), 0);
	ck_assert_int_eq(kvmem_reader_harvest(other, &second), 1);
	kvmem_batch_free(second);
	must(kvmem_reader_free(other));
	close_live(c);
}
END

/* A batch that is the image's already does not go back since somebody gives it once more. */
TEST(a_batch_is_given_twice)
{
	struct kvmem_image_capture *c;
	struct kvmem_image_writer *w;
	struct kvmem_batch *b;

	for (unsigned int saved = 0; saved < 2; saved++) {
		if (!open_live(KVMEM_DIRTY_RING, &c))
			return;
		guest_writes(5, 1);
		harvest();
		b = batch;
		w = begin("diff", NULL);
		must(start_live(c, w));
		if (saved)
			must(kvmem_image_capture_run(c, NULL, NULL));
		ck_assert_int_lt(kvmem_image_capture_start_dirty(c, w, &ram, 1, b, NULL), 0);
		fails((int)kvmem_dirty_harvest(dirty, &batch), EBUSY, "out");
		if (!saved)
			must(kvmem_image_capture_run(c, NULL, NULL));
		must(kvmem_image_commit(w, NULL));
		ck_assert_int_eq(harvest(), 0);
		close_live(c);
	}
}
END

/* As the manual says: when the capture is stopped or cancelled, and not when somebody gives the image up. */
TEST(the_batch_is_back_when_the_capture_has_failed)
{
	for (unsigned int how = 0; how < 2; how++) {
		struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
		struct kvmem_image_capture *c;
		struct kvmem_image_writer *w;

		if (!open_live(KVMEM_DIRTY_RING, &c))
			return;
		guest_writes(5, 1);
		harvest();
		w = begin("diff", NULL);
		must(start_live(c, w));
		o.progress = cancels;
		fails(how ? kvmem_image_capture_stop(c) : kvmem_image_capture_run(c, &o, NULL),
		      ECANCELED, "");
		ck_assert_int_eq(harvest(), 1);
		kvmem_image_abort(w);
		close_live(c);
	}
}
END

HARNESS_MAIN(T(a_batch_is_given_twice), T(the_batch_is_back_when_the_capture_has_failed),
	     T(moments_of_a_reader_chain), T(whatever_fails_of_a_moment_its_pages_come_again),
	     T(an_image_takes_one_batch))
