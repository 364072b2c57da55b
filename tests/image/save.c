// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_image_save(): memory into an image, and back, compared byte by byte. */
#include "image_rig.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <kvmem/kvmem.h>

struct guest {
	struct kvmem_region *ram[3];
	struct kvmem_image_region at[3];
	uint32_t count;
	uint64_t bytes;
};

static struct kvmem_region *make(enum kvmem_backing backing, uint64_t bytes)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;

	o.bytes = bytes;
	o.backing = backing;
	must(kvmem_region_create(NULL, &o, &ram));
	madvise(kvmem_region_base(ram), bytes, MADV_NOHUGEPAGE);
	return ram;
}

static void add(struct guest *g, enum kvmem_backing backing, uint64_t bytes)
{
	g->ram[g->count] = make(backing, bytes);
	g->at[g->count++] = region_of(bytes, g->bytes, "ram");
	g->bytes += bytes;
}

/* Some pages are random, some zero and there, most are not there. */
static void touch(struct guest *g, unsigned long long *seed)
{
	for (uint32_t i = 0; i < g->count; i++) {
		uint64_t pages = kvmem_region_bytes(g->ram[i]) / PAGE;
		uint8_t *base = kvmem_region_base(g->ram[i]);

		for (uint64_t n = 0; n < pages / 16; n++) {
			uint64_t first = harness_random(seed) % pages;
			uint64_t run = 1 + harness_random(seed) % 9;

			for (uint64_t p = first; p < first + run && p < pages; p++) {
				fill_page(base + p * PAGE, p, (unsigned int)n + i);
				if (harness_random(seed) % 8 == 0)
					memset(base + p * PAGE, 0, PAGE);
			}
		}
	}
}

static struct kvmem_image_writer *begin(const struct guest *g, const char *path,
					struct kvmem_image *parent)
{
	struct kvmem_image_create_opts o = KVMEM_IMAGE_CREATE_OPTS_INIT;
	struct kvmem_image_writer *w;

	o.flags = KVMEM_IMAGE_NO_SYNC;
	o.regions = g->at;
	o.region_count = g->count;
	o.parent = parent;
	must(kvmem_image_create(path, &o, &w));
	return w;
}

static void compare(const struct guest *g, const char *path)
{
	char index[64];
	struct kvmem_image *image;
	uint8_t *buf = malloc(MIB), *mem = malloc(MIB);
	uint64_t at = 0;

	snprintf(index, sizeof(index), "%s.kvmem", path);
	image = open_image(index);
	for (uint32_t i = 0; i < g->count; i++)
		for (uint64_t in = 0, n; in < kvmem_region_bytes(g->ram[i]); in += n, at += n) {
			n = kvmem_region_bytes(g->ram[i]) - in;
			n = n > MIB ? MIB : n;
			must(kvmem_image_read(image, at, buf, n));
			must(kvmem_region_read(g->ram[i], in, mem, n));
			ck_assert_msg(!memcmp(buf, mem, n), "region %u differs near 0x%llx", i,
				      (unsigned long long)in);
		}
	free(buf);
	free(mem);
	must(kvmem_image_close(image));
}

static void end(struct guest *g)
{
	for (uint32_t i = 0; i < g->count; i++)
		must(kvmem_region_free(g->ram[i]));
}

TEST(all_of_a_guest_and_nothing_is_touched)
{
	unsigned long long seed = 3;

	enter_folder();
	for (uint32_t threads = 0; threads < 6; threads++) {
		struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
		struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
		uint8_t before[2][4096], after[2][4096];
		struct kvmem_image_info info = KVMEM_IMAGE_INFO_INIT;
		struct kvmem_image_writer *w;
		struct kvmem_image *image;
		struct guest g = { 0 };

		add(&g, KVMEM_BACKING_MEMFD, 16 * MIB);
		add(&g, KVMEM_BACKING_ANONYMOUS, 5 * MIB + 3 * PAGE);
		add(&g, KVMEM_BACKING_MEMFD, PAGE);
		touch(&g, &seed);
		for (unsigned int i = 0; i < 2; i++)
			mincore(kvmem_region_base(g.ram[i]), kvmem_region_bytes(g.ram[i]),
				before[i]);
		o.threads = threads;
		w = begin(&g, "saved", NULL);
		must(kvmem_image_save(w, g.ram, g.count, NULL, &o, &res));
		must(kvmem_image_commit(w, NULL));
		for (unsigned int i = 0; i < 2; i++) {
			mincore(kvmem_region_base(g.ram[i]), kvmem_region_bytes(g.ram[i]),
				after[i]);
			ck_assert_int_eq(
				memcmp(before[i], after[i], kvmem_region_bytes(g.ram[i]) / PAGE),
				0);
		}
		ck_assert_uint_eq(res.bytes_data + res.bytes_zero, g.bytes);
		ck_assert_uint_eq(res.bytes_absent, 0);
		image = open_image("saved.kvmem");
		must(kvmem_image_get_info(image, &info));
		ck_assert_uint_eq(info.bytes_data, res.bytes_data);
		must(kvmem_image_verify(image, NULL, NULL));
		must(kvmem_image_close(image));
		compare(&g, "saved");
		end(&g);
		shell("rm -f saved*");
	}
	leave_folder();
}
END

/* A page that somebody goes on writing has some content, and its sum is of that. */
struct scribbler {
	uint8_t *base;
	_Atomic bool stop;
};

static void *scribble(void *arg)
{
	struct scribbler *s = arg;

	for (uint64_t n = 0; !s->stop; n++)
		memset(s->base + n * 97 % (4 * MIB), (int)n, 61);
	return NULL;
}

TEST(a_guest_that_writes_on_spoils_no_sum)
{
	struct scribbler s = { 0 };
	pthread_t thread;

	enter_folder();
	for (unsigned int round = 0; round < 20; round++) {
		struct guest g = { 0 };
		struct kvmem_image_writer *w;
		struct kvmem_image *image;

		add(&g, KVMEM_BACKING_ANONYMOUS, 4 * MIB + PAGE);
		s.base = kvmem_region_base(g.ram[0]);
		s.stop = false;
		ck_assert_int_eq(pthread_create(&thread, NULL, scribble, &s), 0);
		w = begin(&g, "busy", NULL);
		must(kvmem_image_save(w, g.ram, 1, NULL, NULL, NULL));
		must(kvmem_image_commit(w, NULL));
		s.stop = true;
		pthread_join(thread, NULL);
		image = open_image("busy.kvmem");
		must(kvmem_image_verify(image, NULL, NULL));
		must(kvmem_image_close(image));
		end(&g);
		shell("rm -f busy*");
	}
	leave_folder();
}
END

/* ---- under a pager ---- */

static int of_page(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	uint64_t *bad = arg;

	if (offset <= *bad && *bad < offset + bytes)
		return -EBADMSG;
	for (uint64_t i = 0; i < bytes; i += PAGE)
		fill_page((uint8_t *)buf + i, (offset + i) / PAGE, 1);
	return 0;
}

static struct kvmem_pager *page_it(struct guest *g, struct kvmem_source *source)
{
	struct kvmem_pager_opts o = KVMEM_PAGER_OPTS_INIT;
	struct kvmem_pager *pager;
	int r;

	o.fault_around = PAGE;
	r = kvmem_pager_create(&o, &pager);
	if (r == -EPERM || r == -ENOSYS || r == -EOPNOTSUPP) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		return NULL;
	}
	must(r);
	must(kvmem_pager_add(pager, g->ram[0], source, 0, 0));
	must(kvmem_pager_start(pager));
	return pager;
}

static struct kvmem_source *source_of(uint64_t *bad, uint64_t bytes)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	struct kvmem_source *s;

	ops.read = of_page;
	must(kvmem_source_callback(&ops, bad, bytes, &s));
	return s;
}

TEST(what_a_pager_has_not_filled_is_the_parents)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_image_writer *w;
	struct kvmem_source *source;
	struct kvmem_image *parent;
	struct kvmem_pager *pager;
	struct guest g = { 0 };
	uint8_t *base;

	enter_folder();
	add(&g, KVMEM_BACKING_MEMFD, 4 * MIB);
	base = kvmem_region_base(g.ram[0]);
	for (uint64_t p = 0; p < 4 * MIB / PAGE; p++)
		fill_page(base + p * PAGE, p, 1);
	w = begin(&g, "parent", NULL);
	must(kvmem_image_save(w, g.ram, 1, NULL, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	end(&g);

	g = (struct guest){ 0 };
	add(&g, KVMEM_BACKING_MEMFD, 4 * MIB);
	base = kvmem_region_base(g.ram[0]);
	parent = open_image("parent.kvmem");
	must(kvmem_image_source(parent, 0, &source));
	pager = page_it(&g, source);
	if (!pager)
		return;
	memset(base + 7 * PAGE, 5, PAGE);
	ck_assert_uint_ne(*(volatile uint64_t *)(base + 9 * PAGE + 8),
			  0); /* filled, and as it was */
	must(kvmem_region_discard(g.ram[0], 20 * PAGE, PAGE));
	o.flags = KVMEM_IMAGE_ABSENT_FROM_PARENT;
	w = begin(&g, "child", parent);
	must(kvmem_image_save(w, g.ram, 1, NULL, &o, &res));
	must(kvmem_image_commit(w, NULL));
	ck_assert_uint_eq(res.bytes_data, 2 * PAGE);
	ck_assert_uint_eq(res.bytes_zero, PAGE);
	ck_assert_uint_eq(res.bytes_absent, 4 * MIB - 3 * PAGE);
	/* Without the flag they are filled, and stored. */
	w = begin(&g, "whole", NULL);
	ck_assert_int_eq(kvmem_image_save(w, g.ram, 1, NULL, &o, &res), -EINVAL);
	must(kvmem_image_save(w, g.ram, 1, NULL, NULL, &res));
	must(kvmem_image_commit(w, NULL));
	ck_assert_uint_eq(res.bytes_absent, 0);
	ck_assert_uint_eq(res.bytes_data, 4 * MIB - PAGE);
	compare(&g, "whole");
	compare(&g, "child");
	must(kvmem_pager_stop(pager, KVMEM_STOP_FILL));
	must(kvmem_pager_free(pager));
	must(kvmem_source_free(source));
	must(kvmem_image_close(parent));
	end(&g);
	leave_folder();
}
END

TEST(a_poisoned_page_is_an_error)
{
	uint64_t bad = 33 * PAGE;
	struct kvmem_source *source = source_of(&bad, 4 * MIB);
	struct kvmem_image_writer *w;
	struct kvmem_pager *pager;
	struct guest g = { 0 };

	enter_folder();
	add(&g, KVMEM_BACKING_MEMFD, 4 * MIB);
	pager = page_it(&g, source);
	if (!pager)
		return;
	for (unsigned int round = 0; round < 2; round++) {
		w = begin(&g, "bad", NULL);
		/* At first when the page is read, later by the record. */
		fails(kvmem_image_save(w, g.ram, 1, NULL, NULL, NULL), round ? EIO : EFAULT,
		      round ? "poisoned" : "0x");
		names_call("kvmem_image_save");
		fails(kvmem_image_commit(w, NULL), EINVAL, "has failed");
		ck_assert_uint_eq(files_here(), 0);
	}
	must(kvmem_pager_stop(pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_pager_free(pager));
	must(kvmem_source_free(source));
	end(&g);
	leave_folder();
}
END

/* ---- errors ---- */

static int after_some(void *arg, const struct kvmem_image_progress *p)
{
	uint64_t *limit = arg;

	ck_assert_uint_le(p->done, p->total);
	return p->done > *limit;
}

static int commits(void *arg, const struct kvmem_image_progress *p)
{
	(void)p;
	fails(kvmem_image_commit(arg, NULL), EBUSY, "not over");
	kvmem_image_abort(arg); /* nothing: the save works with it */
	return 0;
}

TEST(progress_and_cancel)
{
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	unsigned long long seed = 8;
	uint64_t limit = 3 * MIB;
	struct kvmem_image_writer *w;
	struct guest g = { 0 };

	enter_folder();
	add(&g, KVMEM_BACKING_ANONYMOUS, 32 * MIB);
	memset(kvmem_region_base(g.ram[0]), 1, 32 * MIB);
	touch(&g, &seed);
	o.progress = after_some;
	o.arg = &limit;
	for (o.threads = 1; o.threads < 4; o.threads++) {
		w = begin(&g, "c", NULL);
		fails(kvmem_image_save(w, g.ram, 1, NULL, &o, NULL), ECANCELED, "progress");
		kvmem_image_abort(w);
		ck_assert_uint_eq(files_here(), 0);
	}
	w = begin(&g, "c", NULL);
	o.progress = commits;
	o.arg = w;
	must(kvmem_image_save(w, g.ram, 1, NULL, &o, NULL));
	must(kvmem_image_commit(w, NULL));
	compare(&g, "c");
	end(&g);
	leave_folder();
}
END

static int on_a_full_disk(void *arg)
{
	struct kvmem_image_writer *w;
	struct guest g = { 0 };

	(void)arg;
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mkdir("full", 0700) || mount("none", "full", "tmpfs", 0, "size=4m"))
		return 77;
	add(&g, KVMEM_BACKING_ANONYMOUS, 16 * MIB);
	for (uint64_t p = 0; p < 16 * MIB / PAGE; p++)
		fill_page((uint8_t *)kvmem_region_base(g.ram[0]) + p * PAGE, p, 3);
	for (unsigned int round = 0; round < 3; round++) {
		w = begin(&g, "full/image", NULL);
		fails(kvmem_image_save(w, g.ram, 1, NULL, NULL, NULL), ENOSPC, "writing");
		kvmem_image_abort(w);
	}
	return 0;
}

TEST(the_disk_is_full)
{
	int r;

	enter_folder();
	r = harness_child(on_a_full_disk, NULL);
	shell("rmdir full 2>/dev/null || true");
	leave_folder();
	if (r == 77)
		SKIP("mount", "no tmpfs can be mounted");
	ck_assert_int_eq(r, 0);
}
END

TEST(a_file_may_not_be_so_long)
{
	struct rlimit before, small;
	struct kvmem_image_writer *w;
	struct guest g = { 0 };

	enter_folder();
	add(&g, KVMEM_BACKING_ANONYMOUS, 4 * MIB);
	memset(kvmem_region_base(g.ram[0]), 1, 4 * MIB);
	w = begin(&g, "long", NULL);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
	small = before;
	small.rlim_cur = MIB; /* set after the file has its length */
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
	fails(kvmem_image_save(w, g.ram, 1, NULL, NULL, NULL), EFBIG, "RLIMIT_FSIZE");
	names_call("kvmem_image_save");
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
	kvmem_image_abort(w);
	end(&g);
	leave_folder();
}
END

TEST(what_is_refused)
{
	struct kvmem_image_save_result res = KVMEM_IMAGE_SAVE_RESULT_INIT;
	struct kvmem_image_save_opts o = KVMEM_IMAGE_SAVE_OPTS_INIT;
	struct kvmem_region *none[2] = { NULL, NULL }, *two[2];
	struct kvmem_image_writer *w;
	struct guest g = { 0 }, other = { 0 };

	enter_folder();
	add(&g, KVMEM_BACKING_ANONYMOUS, MIB);
	add(&other, KVMEM_BACKING_ANONYMOUS, 2 * MIB);
	two[0] = two[1] = g.ram[0];
	w = begin(&g, "r", NULL);
	fails(kvmem_image_save(NULL, g.ram, 1, NULL, NULL, NULL), EINVAL, "writer");
	fails(kvmem_image_save(w, NULL, 1, NULL, NULL, NULL), EINVAL, "regions");
	fails(kvmem_image_save(w, two, 2, NULL, NULL, NULL), EINVAL, "2 regions");
	fails(kvmem_image_save(w, none, 1, NULL, NULL, NULL), EINVAL, "regions[0]");
	fails(kvmem_image_save(w, other.ram, 1, NULL, NULL, NULL), EINVAL, "0x200000 bytes");
	o.flags = 1u << 5;
	fails(kvmem_image_save(w, g.ram, 1, NULL, &o, NULL), EINVAL, "flags");
	o.flags = KVMEM_IMAGE_ABSENT_FROM_PARENT;
	fails(kvmem_image_save(w, g.ram, 1, NULL, &o, NULL), EINVAL, "no parent");
	o.flags = 0;
	o.threads = 65;
	fails(kvmem_image_save(w, g.ram, 1, NULL, &o, NULL), EINVAL, "threads");
	res.size = 8;
	fails(kvmem_image_save(w, g.ram, 1, NULL, NULL, &res), EINVAL, "size");
	/* Nothing of it has spoiled the writer; and what was written before by hand is replaced. */
	memset(kvmem_region_base(g.ram[0]), 7, PAGE);
	must(kvmem_image_write(w, 5 * PAGE, kvmem_region_base(g.ram[0]), PAGE));
	must(kvmem_image_save(w, g.ram, 1, NULL, NULL, NULL));
	must(kvmem_image_commit(w, NULL));
	compare(&g, "r");
	end(&g);
	end(&other);
	leave_folder();
}
END

HARNESS_MAIN(T(all_of_a_guest_and_nothing_is_touched), T(a_guest_that_writes_on_spoils_no_sum),
	     T(what_a_pager_has_not_filled_is_the_parents), T(a_poisoned_page_is_an_error),
	     T(progress_and_cancel), T(the_disk_is_full), T(a_file_may_not_be_so_long),
	     T(what_is_refused))
