// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The memory of a moment into an image, while threads write to it as vCPUs do. */
#include "image_rig.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define BYTES	(16 * MIB)
#define WRITERS 3u

static struct {
	struct kvmem_region *ram;
	uint8_t *base, *model;
	struct kvmem_image_capture *capture;
	pthread_t writers[WRITERS];
	_Atomic bool stop, paused;
	_Atomic unsigned int asleep;
} g;

static bool open_guest(enum kvmem_backing backing)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	int r = kvmem_image_capture_create(NULL, &g.capture);

	if (r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		return false;
	}
	must(r);
	o.bytes = BYTES;
	o.backing = backing;
	must(kvmem_region_create(NULL, &o, &g.ram));
	g.base = kvmem_region_base(g.ram);
	madvise(g.base, BYTES, MADV_NOHUGEPAGE);
	g.model = malloc(BYTES);
	/* Half of it: the rest is not there at first. */
	for (uint64_t p = 0; p < BYTES / PAGE; p += 2)
		fill_page(g.base + p * PAGE, p, 1);
	return true;
}

static void close_guest(void)
{
	must(kvmem_image_capture_free(g.capture));
	must(kvmem_region_free(g.ram));
	free(g.model);
}

/* A vCPU: writes all over the memory, and stands still when it is told to. */
static void *write_on(void *arg)
{
	unsigned long long seed = (uintptr_t)arg;

	while (!g.stop) {
		uint64_t at = harness_random(&seed) % (BYTES / 8) * 8;

		if (g.paused) {
			g.asleep++;
			while (g.paused)
				usleep(50);
			g.asleep--;
		}
		*(volatile uint64_t *)(void *)(g.base + at) = seed;
	}
	return NULL;
}

static void start_writers(void)
{
	g.stop = g.paused = false;
	for (uintptr_t i = 0; i < WRITERS; i++)
		ck_assert_int_eq(pthread_create(&g.writers[i], NULL, write_on, (void *)(i + 1)), 0);
}

static bool all_asleep(void *arg)
{
	(void)arg;
	return g.asleep == WRITERS;
}

static void pause_guest(void)
{
	g.paused = true;
	ck_assert(harness_wait(all_asleep, NULL, 60));
}

static void stop_writers(void)
{
	g.stop = true;
	g.paused = false;
	for (unsigned int i = 0; i < WRITERS; i++)
		pthread_join(g.writers[i], NULL);
}

static struct kvmem_image_writer *begin(const char *name, struct kvmem_image *parent)
{
	struct kvmem_image_region at = region_of(BYTES, 0, "ram");
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_writer *w;

	o.flags = KVMEM_IMAGE_NO_SYNC;
	o.regions = &at;
	o.region_count = 1;
	o.parent = parent;
	must(kvmem_image_create(name, &o, &w));
	return w;
}

/* The pause: what the memory holds is what the image has to hold. */
static struct kvmem_image_writer *start(const char *name)
{
	struct kvmem_image_writer *w = begin(name, NULL);

	pause_guest();
	must(kvmem_image_capture_start(g.capture, w, &g.ram, 1, 0));
	memcpy(g.model, g.base, BYTES); /* reads are not held up */
	g.paused = false;
	return w;
}

static void check(const char *index)
{
	struct kvmem_image *image = open_image(index);

	must(kvmem_image_verify(image, NULL, NULL));
	check_model(image, g.model, BYTES);
	must(kvmem_image_close(image));
}

TEST(the_image_is_of_the_pause)
{
	const enum kvmem_backing kinds[] = { KVMEM_BACKING_ANONYMOUS, KVMEM_BACKING_MEMFD };

	enter_folder();
	for (unsigned int k = 0; k < 2; k++) {
		if (!open_guest(kinds[k]))
			return;
		start_writers();
		for (uint32_t round = 0; round < 6; round++) {
			struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
			struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
			struct kvmem_image_writer *w = start("now");

			o.threads = round % 3 + 1;
			fails(kvmem_image_commit(w, NULL), EBUSY, "not over");
			must(kvmem_image_capture_run(g.capture, &o, &res));
			must(kvmem_image_commit(w, NULL));
			ck_assert_uint_eq(res.bytes_data + res.bytes_zero, BYTES);
			check("now.kvmem");
			shell("rm now*");
		}
		stop_writers();
		close_guest();
	}
	leave_folder();
}
END

static int cancels(void *arg, const struct kvmem_image_progress *p)
{
	uint64_t *limit = arg;

	return p->done >= *limit;
}

TEST(canceled_and_stopped_and_once_more)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_writer *w;
	uint64_t limit = 2 * MIB;

	enter_folder();
	if (!open_guest(KVMEM_BACKING_ANONYMOUS))
		return;
	start_writers();
	o.progress = cancels;
	o.arg = &limit;
	w = start("c");
	fails(kvmem_image_capture_run(g.capture, &o, NULL), ECANCELED, "progress");
	fails(kvmem_image_commit(w, NULL), EINVAL, "has failed");
	w = start("c");
	fails(kvmem_image_capture_free(g.capture), EBUSY, "started");
	fails(kvmem_image_capture_start(g.capture, w, &g.ram, 1, 0), EBUSY, "already");
	fails(kvmem_image_capture_stop(g.capture), ECANCELED, "");
	names_call("kvmem_image_capture_stop");
	/* It lacks pages, whatever else is put into it. */
	fails(kvmem_image_save(w, &g.ram, 1, NULL, NULL, NULL), EINVAL, "given up");
	fails(kvmem_image_capture_start(g.capture, w, &g.ram, 1, 0), EINVAL, "given up");
	kvmem_image_abort(w);
	ck_assert_uint_eq(files_here(), 0);
	w = start("c");
	must(kvmem_image_capture_run(g.capture, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	check("c.kvmem");
	stop_writers();
	close_guest();
	leave_folder();
}
END

/* A page that goes under while the guest runs: RLIMIT_FSIZE stands for a full disk. */
TEST(the_image_cannot_be_written)
{
	struct rlimit before, small;
	struct kvmem_image_writer *w;

	enter_folder();
	if (!open_guest(KVMEM_BACKING_MEMFD))
		return;
	start_writers();
	w = begin("full", NULL);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
	small = before;
	small.rlim_cur = 1 * MIB;
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
	pause_guest();
	must(kvmem_image_capture_start(g.capture, w, &g.ram, 1, 0));
	g.paused = false;
	fails(kvmem_image_capture_run(g.capture, NULL, NULL), EFBIG, "RLIMIT_FSIZE");
	names_call("kvmem_image_capture_run");
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
	kvmem_image_abort(w);
	pause_guest(); /* nobody sleeps in a write */
	stop_writers();
	close_guest();
	leave_folder();
}
END

static int of_page(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	for (uint64_t i = 0; i < bytes; i += PAGE)
		fill_page((uint8_t *)buf + i, (offset + i) / PAGE, 1);
	return 0;
}

TEST(what_a_pager_has_not_filled_is_the_parents)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_pager_opts po = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_source *source;
	struct kvmem_image *parent;
	struct kvmem_pager *pager;

	enter_folder();
	if (!open_guest(KVMEM_BACKING_MEMFD))
		return;
	for (uint64_t p = 0; p < BYTES / PAGE; p++)
		fill_page(g.model + p * PAGE, p, 1);
	w = begin("parent", NULL);
	must(kvmem_image_write(w, 0, g.model, BYTES));
	must(kvmem_image_commit(w, NULL));
	parent = open_image("parent.kvmem");
	ops.read = of_page;
	must(kvmem_source_callback(&ops, NULL, BYTES, &source));
	po.flags = KVMEM_PAGER_CAPTURE;
	must(kvmem_pager_create(&po, &pager));
	must(kvmem_pager_add(pager, g.ram, source, 0, KVMEM_FILL_OVERWRITE));
	must(kvmem_pager_start(pager));
	memset(g.base + 5 * PAGE, 7, PAGE);
	memset(g.model + 5 * PAGE, 7, PAGE);

	w = begin("whole", NULL);
	must(kvmem_image_capture_start(g.capture, w, &g.ram, 1, 0));
	fails(kvmem_image_capture_run(g.capture, NULL, NULL), EOPNOTSUPP, "ABSENT_FROM_PARENT");
	names_call("kvmem_image_capture_run");
	kvmem_image_abort(w);
	w = begin("child", parent);
	must(kvmem_image_capture_start(g.capture, w, &g.ram, 1, KVMEM_IMAGE_ABSENT_FROM_PARENT));
	memset(g.base + 5 * PAGE, 9, PAGE);   /* filled before */
	memset(g.base + 900 * PAGE, 9, PAGE); /* filled now */
	must(kvmem_image_capture_run(g.capture, NULL, &res));
	must(kvmem_image_commit(w, NULL));
	ck_assert_uint_gt(res.bytes_absent, 0);
	check("child.kvmem");
	must(kvmem_image_close(parent));
	must(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_pager_free(pager));
	must(kvmem_source_free(source));
	close_guest();
	leave_folder();
}
END

TEST(what_is_refused)
{
	struct kvmem_image_save_opts so = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	struct kvmem_image_capture *c;
	struct kvmem_image_writer *w;

	enter_folder();
	if (!open_guest(KVMEM_BACKING_ANONYMOUS))
		return;
	w = begin("r", NULL);
	o.before_write = (int (*)(void *, const struct kvmem_capture_run *, const void *))1;
	fails(kvmem_image_capture_create(&o, &c), EINVAL, "before_write");
	fails(kvmem_image_capture_create(NULL, NULL), EINVAL, "ret_capture");
	fails(kvmem_image_capture_start(NULL, w, &g.ram, 1, 0), EINVAL, "capture");
	fails(kvmem_image_capture_start(g.capture, NULL, &g.ram, 1, 0), EINVAL, "writer");
	fails(kvmem_image_capture_start(g.capture, w, &g.ram, 2, 0), EINVAL, "2 regions");
	fails(kvmem_image_capture_start(g.capture, w, &g.ram, 1, 1), EINVAL, "parent");
	fails(kvmem_image_capture_run(g.capture, NULL, NULL), EINVAL, "not started");
	must(kvmem_image_capture_start(g.capture, w, &g.ram, 1, 0));
	so.flags = KVMEM_IMAGE_ABSENT_FROM_PARENT;
	fails(kvmem_image_capture_run(g.capture, &so, NULL), EINVAL, "flags");
	names_call("kvmem_image_capture_run");
	must(kvmem_image_capture_run(g.capture, NULL, NULL));
	fails(kvmem_image_capture_stop(g.capture), EINVAL, "not started");
	fails(kvmem_image_capture_get_stats(NULL, NULL), EINVAL, "capture");
	must(kvmem_image_capture_free(NULL));
	must(kvmem_image_commit(w, NULL)); /* none of it has touched the writer */
	close_guest();
	leave_folder();
}
END

/* While a capture has the writer nobody else gets it, and a call that is refused takes nothing from the capture. */
TEST(a_writer_is_of_one_capture)
{
	struct kvmem_image_capture *other;
	struct kvmem_image_writer *w;

	if (!open_guest(KVMEM_BACKING_ANONYMOUS))
		return;
	enter_folder();
	must(kvmem_image_capture_create(NULL, &other));
	w = begin("one", NULL);
	must(kvmem_image_capture_start(g.capture, w, &g.ram, 1, 0));
	fails(kvmem_image_capture_start(other, w, &g.ram, 1, 0), EBUSY, "");
	fails(kvmem_image_save(w, &g.ram, 1, NULL, NULL, NULL), EBUSY, "");
	fails(kvmem_image_commit(w, NULL), EBUSY, "not over");
	must(kvmem_image_capture_run(g.capture, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	must(kvmem_image_capture_free(other));
	close_guest();
	leave_folder();
}
END

static int stop_in_progress(void *arg, const struct kvmem_image_progress *p)
{
	int *r = arg;

	(void)p;
	if (*r == 1)
		*r = kvmem_image_capture_stop(g.capture);
	return 0;
}

/* kvmem_image_capture_run() is in it still: what it works with may not go. */
TEST(a_callback_stops_the_capture)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_writer *w;
	int r = 1;

	if (!open_guest(KVMEM_BACKING_ANONYMOUS))
		return;
	enter_folder();
	w = begin("one", NULL);
	must(kvmem_image_capture_start(g.capture, w, &g.ram, 1, 0));
	o.progress = stop_in_progress;
	o.arg = &r;
	must(kvmem_image_capture_run(g.capture, &o, NULL));
	ck_assert_int_eq(r, -EBUSY);
	must(kvmem_image_commit(w, NULL));
	close_guest();
	leave_folder();
}
END

HARNESS_MAIN(T(a_writer_is_of_one_capture), T(a_callback_stops_the_capture),
	     T(the_image_is_of_the_pause), T(canceled_and_stopped_and_once_more),
	     T(the_image_cannot_be_written), T(what_a_pager_has_not_filled_is_the_parents),
	     T(what_is_refused))
