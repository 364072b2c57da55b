// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_image_precopy() and runs of kvmem_image_save(), by what the kernel tells of writes to the mapping. */
#include "image_rig.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include <kvmem/kvmem.h>

#define BYTES	(24 * MIB)
#define SECOND	(5 * MIB)
#define WRITERS 2u

static struct {
	struct kvmem_region *ram[2];
	struct kvmem_image_region at[2];
	struct kvmem_writes *writes;
	pthread_t writers[WRITERS];
	_Atomic bool stop;
	bool fast;
} g;

static struct kvmem_region *make(enum kvmem_backing backing, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;

	o.bytes = bytes;
	o.backing = backing;
	must(kvmem_region_create(NULL, &o, &ram));
	madvise(kvmem_region_base(ram), bytes, MADV_NOHUGEPAGE);
	for (uint64_t p = 0; p < bytes / PAGE; p += 3)
		fill_page((uint8_t *)kvmem_region_base(ram) + p * PAGE, p, 1);
	return ram;
}

static bool open_guest(void)
{
	int r = kvmem_writes_create(NULL, &g.writes);

	if (r == -EOPNOTSUPP || r == -EPERM) {
		harness_skip("wp-async", "%s", kvmem_error_detail());
		return false;
	}
	must(r);
	g.ram[0] = make(KVMEM_BACKING_MEMFD, BYTES);
	g.ram[1] = make(KVMEM_BACKING_ANONYMOUS, SECOND);
	g.at[0] = region_of(BYTES, 0, "ram");
	g.at[1] = region_of(SECOND, BYTES, "more");
	for (unsigned int i = 0; i < 2; i++)
		must(kvmem_writes_add(g.writes, g.ram[i]));
	g.stop = false;
	return true;
}

static void close_guest(void)
{
	for (unsigned int i = 0; i < 2; i++) {
		must(kvmem_writes_remove(g.writes, g.ram[i]));
		must(kvmem_region_free(g.ram[i]));
	}
	must(kvmem_writes_free(g.writes));
}

/* A vCPU: all over the memory as fast as it can, or here and there. */
static void *write_on(void *arg)
{
	const struct timespec breath = { .tv_nsec = 200000 };
	unsigned long long seed = (uintptr_t)arg;

	while (!g.stop) {
		unsigned int i = harness_random(&seed) % 4 == 0;
		uint64_t bytes = i ? SECOND : BYTES;
		uint8_t *base = kvmem_region_base(g.ram[i]);
		uint64_t page = harness_random(&seed) % (bytes / PAGE) * PAGE;

		if (harness_random(&seed) % 16 == 0)
			memset(base + page, 0, PAGE);
		else
			__atomic_fetch_add((uint64_t *)(void *)(base + page), seed,
					   __ATOMIC_RELAXED);
		if (!g.fast)
			nanosleep(&breath, NULL);
	}
	return NULL;
}

static void start_writers(bool fast)
{
	g.fast = fast;
	for (uintptr_t i = 0; i < WRITERS; i++)
		ck_assert_int_eq(pthread_create(&g.writers[i], NULL, write_on, (void *)(i + 1)), 0);
}

static void stop_writers(void)
{
	g.stop = true;
	for (unsigned int i = 0; i < WRITERS; i++)
		pthread_join(g.writers[i], NULL);
}

static struct kvmem_image_writer *begin(const char *path, struct kvmem_image *parent)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_writer *w;

	o.flags = KVMEM_IMAGE_NO_SYNC | KVMEM_IMAGE_REPLACE;
	o.regions = g.at;
	o.region_count = 2;
	o.parent = parent;
	must(kvmem_image_create(path, &o, &w));
	return w;
}

/* The image is the memory as it is now. */
static void compare(const char *index)
{
	struct kvmem_image *image = open_image(index);
	static uint8_t buf[MIB];

	for (unsigned int i = 0; i < 2; i++)
		for (uint64_t at = 0; at < g.at[i].bytes; at += MIB) {
			must(kvmem_image_read(image, i * BYTES + at, buf, MIB));
			ck_assert(!memcmp(buf, (uint8_t *)kvmem_region_base(g.ram[i]) + at, MIB));
		}
	must(kvmem_image_verify(image, NULL, NULL));
	must(kvmem_image_close(image));
}

static void precopy(bool fast)
{
	struct kvmem_image_precopy_opts o = KVMEM_IMAGE_PRECOPY_OPTS_INIT;
	struct kvmem_image_precopy_result res = KVMEM_IMAGE_PRECOPY_RESULT_INIT;
	struct kvmem_image_writer *w;

	if (!open_guest())
		return;
	o.writes = g.writes;
	o.threads = 2;
	o.pause_ns = fast ? 1 : 0; /* of a nanosecond: never */
	o.passes = 5;
	w = begin("image", NULL);
	start_writers(fast);
	must(kvmem_image_precopy(w, g.ram, 2, &o, &res));
	if (fast)
		ck_assert_uint_ne(res.end, KVMEM_IMAGE_PRECOPY_CONVERGED);
	else
		ck_assert_uint_eq(res.end, KVMEM_IMAGE_PRECOPY_CONVERGED);
	ck_assert_uint_ge(res.passes, 1);
	ck_assert_uint_le(res.passes, 5);
	harness_note("%u passes, the last of %lu KiB, a pause of %lu us is expected", res.passes,
		     (unsigned long)res.bytes_pass >> 10, (unsigned long)res.pause_ns / 1000);
	must(kvmem_image_precopy(w, g.ram, 2, &o, &res)); /* some more */
	stop_writers();
	o.flags = KVMEM_IMAGE_LAST_PASS;
	must(kvmem_image_precopy(w, g.ram, 2, &o, &res));
	ck_assert_uint_eq(res.passes, 1);
	must(kvmem_image_commit(w, NULL));
	compare("image.kvmem");
	close_guest();
}

TEST(a_guest_that_writes_little)
{
	enter_folder();
	precopy(false);
	leave_folder();
}
END

TEST(a_guest_that_writes_all_the_time)
{
	enter_folder();
	precopy(true);
	leave_folder();
}
END

static int cancels(void *arg, const struct kvmem_image_progress *p)
{
	(void)p;
	return ++*(unsigned int *)arg == 2;
}

TEST(refused_and_failed)
{
	struct kvmem_image_precopy_opts o = KVMEM_IMAGE_PRECOPY_OPTS_INIT;
	struct kvmem_image_writer *w;
	unsigned int calls = 0;

	enter_folder();
	if (open_guest()) {
		w = begin("image", NULL);
		fails(kvmem_image_precopy(w, g.ram, 2, &o, NULL), EINVAL, "either reader");
		o.writes = g.writes;
		o.dirty = (struct kvmem_dirty *)(void *)&o;
		fails(kvmem_image_precopy(w, g.ram, 2, &o, NULL), EINVAL, "either reader");
		o.dirty = NULL;
		fails(kvmem_image_precopy(NULL, g.ram, 2, &o, NULL), EINVAL, "writer");
		fails(kvmem_image_precopy(w, g.ram, 1, &o, NULL), EINVAL, "regions");
		o.flags = KVMEM_IMAGE_ABSENT_FROM_PARENT;
		fails(kvmem_image_precopy(w, g.ram, 2, &o, NULL), EINVAL, "parent");
		o.flags = 8;
		fails(kvmem_image_precopy(w, g.ram, 2, &o, NULL), EINVAL, "flags");
		o.flags = 0;
		must(kvmem_writes_remove(g.writes, g.ram[1]));
		fails(kvmem_image_precopy(w, g.ram, 2, &o, NULL), EINVAL, "regions[1]");
		must(kvmem_writes_add(g.writes, g.ram[1]));
		must(kvmem_image_precopy(w, g.ram, 2, &o, NULL));
		fails(kvmem_image_commit(w, NULL), EINVAL, "LAST_PASS");
		w = begin("image", NULL);
		o.progress = cancels;
		o.arg = &calls;
		o.threads = 1;
		fails(kvmem_image_precopy(w, g.ram, 2, &o, NULL), ECANCELED, "progress");
		names_call("kvmem_image_precopy");
		o.progress = NULL;
		fails(kvmem_image_precopy(w, g.ram, 2, &o, NULL), EINVAL, "given");
		kvmem_image_abort(w);
		close_guest();
	}
	leave_folder();
}
END

/* What the kernel and the record said of one run is not believed of a run before it. */
TEST(runs_in_any_order)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_run runs[64];

	enter_folder();
	if (open_guest()) {
		for (unsigned int i = 0; i < 2; i++) {
			must(kvmem_region_discard(g.ram[i], 0, SECOND));
			for (uint64_t k = 0; k < 32; k++) {
				uint64_t page = (k * 19 + 7) % 32 * 5;

				runs[i * 32 + k] = (struct kvmem_run){ .region = g.ram[i],
								       .offset = page * PAGE,
								       .bytes = PAGE };
				if (page % 2)
					fill_page((uint8_t *)kvmem_region_base(g.ram[i]) +
							  page * PAGE,
						  page, 3);
			}
		}
		memset((uint8_t *)kvmem_region_base(g.ram[0]) + SECOND, 0, BYTES - SECOND);
		o.runs = runs;
		o.run_count = 64;
		w = begin("image", NULL);
		must(kvmem_image_save(w, g.ram, 2, NULL, &o, NULL));
		must(kvmem_image_commit(w, NULL));
		compare("image.kvmem");
		close_guest();
	}
	leave_folder();
}
END

/* A chain of differences without any log of KVM's. */
TEST(runs_are_saved_as_a_difference)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_image *parent;
	struct kvmem_run runs[600];

	enter_folder();
	if (open_guest()) {
		uint64_t next, n = 0, at;

		w = begin("first", NULL);
		must(kvmem_image_save(w, g.ram, 2, NULL, NULL, NULL));
		must(kvmem_image_commit(w, NULL));
		for (uint64_t p = 0; p < 200; p++)
			fill_page((uint8_t *)kvmem_region_base(g.ram[0]) + 7 * p * PAGE, p, 9);
		memset(kvmem_region_base(g.ram[1]), 0, 3 * PAGE);
		must(kvmem_region_discard(g.ram[1], 90 * PAGE, 30 * PAGE));
		for (unsigned int i = 0; i < 2; i++)
			for (at = 0; at < g.at[i].bytes; at = next) {
				int64_t got = kvmem_writes_take(g.writes, g.ram[i], at, runs + n,
								600 - n, &next);
				must((int)got);
				n += (uint64_t)got;
			}
		o.runs = runs;
		o.run_count = n;
		parent = open_image("first.kvmem");
		w = begin("second", parent);
		must(kvmem_image_save(w, g.ram, 2, NULL, &o, &res));
		must(kvmem_image_commit(w, NULL));
		must(kvmem_image_close(parent));
		ck_assert_uint_eq(res.bytes_data, 200 * PAGE);
		ck_assert_uint_eq(res.bytes_zero, 33 * PAGE);
		compare("second.kvmem");

		w = begin("third", NULL);
		runs[n - 1].bytes += 1;
		fails(kvmem_image_save(w, g.ram, 2, NULL, &o, &res), EINVAL, "runs[");
		runs[n - 1].bytes -= 1;
		runs[0].offset = BYTES;
		fails(kvmem_image_save(w, g.ram, 2, NULL, &o, &res), EINVAL, "runs[0]");
		runs[0].region = NULL;
		fails(kvmem_image_save(w, g.ram, 2, NULL, &o, &res), EINVAL, "runs[0]");
		o.runs = NULL;
		fails(kvmem_image_save(w, g.ram, 2, NULL, &o, &res), EINVAL, "run_count");
		o.runs = runs;
		o.run_count = 0;
		must(kvmem_image_save(w, g.ram, 2, NULL, &o, &res));
		ck_assert_uint_eq(res.bytes_data + res.bytes_zero, 0);
		kvmem_image_abort(w);
		close_guest();
	}
	leave_folder();
}
END

HARNESS_MAIN(T(a_guest_that_writes_little), T(a_guest_that_writes_all_the_time),
	     T(refused_and_failed), T(runs_in_any_order), T(runs_are_saved_as_a_difference))
