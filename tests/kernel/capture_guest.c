// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A guest under tracking is captured again and again: each image is of its pause, and dirty tracking, ring and bitmap,
 * misses nothing that is written to captured memory.
 */
#include "dirty_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE  UINT64_C(4096)
#define BYTES (UINT64_C(16) << 20)
#define PAGES (BYTES / PAGE)
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

struct image {
	const struct kvmem_region *ram;
	uint8_t *want, *got;
	_Atomic uint8_t times[PAGES];
	_Atomic uint64_t written;
	struct kvmem_capture *capture;
	int result;
};

static void take(struct image *m, const struct kvmem_capture_run *run, const void *content)
{
	for (uint64_t i = 0; i < run->bytes / PAGE; i++)
		atomic_fetch_add(&m->times[run->offset / PAGE + i], 1);
	if (content)
		memcpy(m->got + run->offset, content, run->bytes);
	else
		memset(m->got + run->offset, 0, run->bytes);
}

static int before_write(void *arg, const struct kvmem_capture_run *run, const void *content)
{
	struct image *m = arg;

	if (run->region != m->ram || run->kind != KVMEM_CAPTURE_DATA)
		return -EPROTO;
	take(m, run, content);
	atomic_fetch_add(&m->written, run->bytes);
	return 0;
}

static void *drain(void *arg)
{
	static uint8_t buf[64 * 4096];
	struct kvmem_capture_run run;
	struct image *m = arg;

	while ((m->result = kvmem_capture_next(m->capture, buf, sizeof(buf), &run)) > 0)
		take(m, &run, run.kind == KVMEM_CAPTURE_DATA ? buf : NULL);
	return NULL;
}

static bool open_image(struct image *m, const struct rig *rig)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;
	int err;

	memset(m, 0, sizeof(*m));
	m->ram = rig->ram;
	m->want = malloc(BYTES);
	m->got = malloc(BYTES);
	ck_assert(m->want && m->got);
	o.before_write = before_write;
	o.arg = m;
	err = kvmem_capture_create(&o, &m->capture);
	if (!err && !(err = kvmem_capture_check(m->capture, rig->ram)))
		return true;
	harness_note("%s", kvmem_error_detail());
	ck_assert_msg(err == -EPERM || err == -EOPNOTSUPP || err == -ENOSYS, "%d", err);
	kvmem_capture_free(m->capture);
	free(m->want);
	free(m->got);
	return false;
}

static void capture_once(struct image *m, struct rig *rig, bool random)
{
	struct kvmem_region *ram = rig->ram;
	pthread_t loop;

	/* No vCPU is in KVM_RUN. */
	memset((void *)m->times, 0, sizeof(m->times));
	memcpy(m->want, rig->base, BYTES);
	ck_ok(kvmem_capture_start(m->capture, &ram, 1));
	for (unsigned int i = 0; i < rig->count; i++)
		rig_write(rig, i, 4, 400, random);
	ck_assert_int_eq(pthread_create(&loop, NULL, drain, m), 0);
	while (rig_running(rig))
		rig_sync(rig);
	pthread_join(loop, NULL);
	ck_assert_int_eq(m->result, 0);
	ck_ok(kvmem_capture_stop(m->capture));
	for (uint64_t page = 0; page < PAGES; page++) {
		ck_assert_msg(m->times[page] == 1, "page %lu came %u times", (unsigned long)page,
			      m->times[page]);
		ck_assert_msg(!memcmp(m->got + page * PAGE, m->want + page * PAGE, PAGE),
			      "page %lu is not as it was", (unsigned long)page);
	}
	rig_wait(rig);
	rig_sync(rig);
}

static void captures(const struct rig_opts *o)
{
	static struct image m; /* threads outlive a test that fails */
	static struct rig rig;

	if (!rig_open(&rig, o))
		return;
	if (open_image(&m, &rig)) {
		for (unsigned int i = 0; i < rig.count; i++)
			rig_write(&rig, i, 1, 200, true);
		rig_follow(&rig);
		for (unsigned int i = 0; i < 5; i++)
			capture_once(&m, &rig, i % 2);
		ck_assert_uint_eq(rig_lost(&rig), 0);
		harness_note("%lu KiB were handed out before the guest wrote",
			     (unsigned long)m.written >> 10);
		ck_ok(kvmem_capture_free(m.capture));
		free(m.want);
		free(m.got);
	}
	rig_close(&rig);
}

TEST(anonymous_memory_with_a_ring)
{
	captures(&(struct rig_opts){ .mode = KVMEM_DIRTY_RING,
				     .bytes = BYTES,
				     .vcpus = 2,
				     .backing = KVMEM_BACKING_ANONYMOUS });
}
END

TEST(anonymous_memory_with_a_bitmap)
{
	captures(&(struct rig_opts){ .mode = KVMEM_DIRTY_BITMAP,
				     .bytes = BYTES,
				     .vcpus = 2,
				     .backing = KVMEM_BACKING_ANONYMOUS });
}
END

TEST(a_memfd_with_a_ring)
{
	captures(&(struct rig_opts){ .mode = KVMEM_DIRTY_RING,
				     .bytes = BYTES,
				     .vcpus = 2,
				     .backing = KVMEM_BACKING_MEMFD });
}
END

TEST(a_memfd_with_a_bitmap)
{
	captures(&(struct rig_opts){ .mode = KVMEM_DIRTY_BITMAP,
				     .bytes = BYTES,
				     .vcpus = 2,
				     .backing = KVMEM_BACKING_MEMFD });
}
END

TEST(a_clone_with_a_ring)
{
	int fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	ck_assert_int_eq(ftruncate(fd, (off_t)BYTES), 0);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	captures(&(struct rig_opts){
		.mode = KVMEM_DIRTY_RING, .bytes = BYTES, .vcpus = 2, .clone = true, .fd = fd });
	close(fd);
}
END

HARNESS_MAIN(T(anonymous_memory_with_a_ring), T(anonymous_memory_with_a_bitmap),
	     T(a_memfd_with_a_ring), T(a_memfd_with_a_bitmap), T(a_clone_with_a_ring))
