// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Clones: where they are not their template any more, and what is left when a call fails. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_kvm.h"
#include "fill/fill.h"

#define PAGE  4096ull
#define PAGES 64ull
#define BYTES (PAGES * PAGE)
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

static struct kvmem_region *ram;

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

/* Page n has n + 1 in each byte. */
static int make_template(void)
{
	int fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t page[PAGE];

	ck_assert_int_ge(fd, 0);
	for (uint64_t n = 0; n < PAGES; n++) {
		memset(page, (int)n + 1, PAGE);
		ck_assert_int_eq(pwrite(fd, page, PAGE, (off_t)(n * PAGE)), (ssize_t)PAGE);
	}
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	return fd;
}

static int create(int fd, struct kvmem_region_opts o)
{
	o.size = sizeof(o);
	o.fd = fd;
	if (!o.bytes)
		o.bytes = BYTES;
	o.flags |= KVMEM_REGION_CLONE;
	return kvmem_region_create(NULL, &o, &ram);
}

#define CREATE(fd, ...) create(fd, (struct kvmem_region_opts){ __VA_ARGS__ })

static uint8_t *page_at(uint64_t page)
{
	return (uint8_t *)kvmem_region_base(ram) + page * PAGE;
}

/* Every byte of the page. */
static bool has(uint64_t page, uint8_t v)
{
	const uint8_t *at = page_at(page);

	return at[0] == v && !memcmp(at, at + 1, PAGE - 1);
}

static uint32_t state_of(uint64_t page)
{
	struct kvmem_run run;
	uint32_t state;

	ck_assert_int_eq(kvmem_region_next_run(ram, page * PAGE, &run, &state), 1);
	return state;
}

/* ---- the list of what lies over the template ---- */

TEST(the_list_is_the_map_of_pages)
{
	struct km_clone *c = km_clone_new(-1);
	bool model[PAGES + 1] = { false }, over;
	unsigned long long state = 7;

	for (unsigned int i = 0; i < 5000; i++) {
		uint64_t first = harness_random(&state) % PAGES;
		uint64_t n = 1 + harness_random(&state) % 3, runs = 0, from, len;

		n = n < PAGES - first ? n : PAGES - first;
		ck_assert(km_clone_may_add(c, first, first + n));
		km_clone_add(c, first, first + n);
		memset(model + first, true, n);
		for (uint64_t page = 0; page < PAGES; page++)
			runs += model[page] && !model[page + 1];
		ck_assert_uint_eq(c->count, runs);
		from = harness_random(&state) % PAGES;
		len = km_clone_run(c, from, PAGES - from, &over);
		ck_assert_int_eq(over, model[from]);
		for (uint64_t page = from; page < from + len; page++)
			ck_assert_int_eq(model[page], over);
		ck_assert(from + len == PAGES || model[from + len] != over);
		ck_assert_uint_eq(km_clone_run(c, from, 1, &over), 1);
		if (c->count == 1 && c->overlays[0].end - c->overlays[0].first == PAGES) {
			km_clone_free(c);
			c = km_clone_new(-1);
			memset(model, false, sizeof(model));
		}
	}
	km_clone_free(c);
}
END

/* All clones of a process together, and what is freed is there again. */
TEST(overlays_are_limited_in_a_process)
{
	struct km_clone *a = km_clone_new(-1), *b = km_clone_new(-1);
	uint64_t n = 0, page = 0;

	for (; km_clone_may_add(a, page, page + 1); page += 2, n++)
		km_clone_add(a, page, page + 1);
	ck_assert_uint_gt(n, 1000);
	ck_assert_uint_lt(n, 16384);
	ck_assert(!km_clone_may_add(b, 0, 1));
	ck_assert(km_clone_may_add(a, 1, 2)); /* between two: one less */
	km_clone_add(a, 1, 2);
	ck_assert(km_clone_may_add(b, 0, 1));
	km_clone_add(b, 0, 1);
	ck_assert(!km_clone_may_add(b, 2, 3));
	km_clone_free(a);
	ck_assert(km_clone_may_add(b, 2, 3));
	km_clone_free(b);
}
END

TEST(without_memory_for_the_list_no_mapping_is_made)
{
	struct km_clone *c;

	fake_kvm_reset();
	c = km_clone_new(-1);
	fake.fail_at = fake.calls + 1;
	fake.fail_errno = ENOMEM;
	ck_assert(!km_clone_may_add(c, 0, 1));
	fake.fail_at = 0;
	ck_assert(km_clone_may_add(c, 0, 1));
	km_clone_free(c);
}
END

/* ---- options ---- */

TEST(options_that_exclude_a_clone)
{
	int fd = make_template();

	fake_kvm_reset();
	failed(EINVAL, "KVMEM_REGION_FD", CREATE(fd, .flags = KVMEM_REGION_FD));
	failed(EINVAL, "KVMEM_REGION_MAPPING",
	       CREATE(fd, .flags = KVMEM_REGION_MAPPING, .mapping = &fd));
	failed(EINVAL, "reserve", CREATE(fd, .reserve = 2 * BYTES));
	failed(EINVAL, "seals", CREATE(fd, .seals = KVMEM_SEAL_SHRINK));
	failed(EINVAL, "backing", CREATE(fd, .backing = KVMEM_BACKING_MEMFD));
	failed(EINVAL, "content", CREATE(fd, .content = KVMEM_CONTENT_IGNORE));
	failed(EINVAL, "OVERLAP", CREATE(fd, .flags = KVMEM_REGION_OVERLAP));
	failed(EINVAL, "backing",
	       kvmem_region_create(
		       NULL,
		       &(struct kvmem_region_opts){ .size = sizeof(struct kvmem_region_opts),
						    .bytes = BYTES,
						    .backing = KVMEM_BACKING_CLONE },
		       &ram));
	failed(EOPNOTSUPP, "private", CREATE(fd, .needs = KVMEM_WANT_PRIVATE));
	ck_assert_int_eq(CREATE(fd, .backing = KVMEM_BACKING_CLONE), 0);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(fake.allocs, 0);
	close(fd);
}
END

TEST(a_guest_memfd_is_no_template)
{
	struct kvmem_region_opts o = { .size = sizeof(o), .bytes = BYTES };
	struct kvmem_region *gmem;
	struct kvmem_vm *vm;

	fake_kvm_reset();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
	o.backing = KVMEM_BACKING_GUEST_MEMFD;
	ck_assert_int_eq(kvmem_region_create(vm, &o, &gmem), 0);
	failed(EOPNOTSUPP, "guest_memfd", CREATE(kvmem_region_fd(gmem), .arg = NULL));
	ck_assert_int_eq(kvmem_region_free(gmem), 0);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
}
END

/* ---- failures ---- */

TEST(nothing_leaks_when_making_one_fails)
{
	int fd = make_template();
	unsigned int fds = harness_count_fds(), maps = harness_count_maps();

	fake_kvm_reset();
	for (unsigned long n = 1; n == 1 || fake.failed; n++) {
		int r;

		fake_kvm_reset();
		fake.fail_at = fake.calls + n;
		fake.fail_errno = ENOMEM;
		r = CREATE(fd, .flags = KVMEM_REGION_DONTDUMP, .wants = KVMEM_WANT_DIRTY);
		fake.fail_at = 0;
		if (!r) {
			ck_assert(has(3, 4));
			ck_assert_int_eq(kvmem_region_free(ram), 0);
		}
		ck_assert_int_eq(fake.allocs, 0);
		ck_assert_uint_eq(harness_count_fds(), fds);
		ck_assert_uint_eq(harness_count_maps(), maps);
	}
	close(fd);
}
END

/* ENOMEM: as the kernel answers where vm.max_map_count is reached, and then nothing has changed. */
static int64_t no_mapping(size_t len, int prot, int flags, int fd, uint64_t off, void **addr)
{
	if (flags & MAP_FIXED)
		return -ENOMEM;
	return km_real_mmap_near(len, prot, flags, fd, off, addr);
}

TEST(where_there_is_no_mapping_zeros_are_written)
{
	int fd = make_template();

	fake_kvm_reset();
	fake.mmap_near = no_mapping;
	ck_assert_int_eq(CREATE(fd, .arg = NULL), 0);
	ck_assert_int_eq(kvmem_region_discard(ram, 2 * PAGE, 20 * PAGE), 0);
	for (uint64_t page = 0; page < PAGES; page++)
		ck_assert(has(page, page >= 2 && page < 22 ? 0 : (uint8_t)(page + 1)));
	ck_assert_uint_eq(ram->clone->count, 0);
	/* Later it is possible again: all becomes one mapping. */
	fake.mmap_near = NULL;
	page_at(3)[0] = 1;
	ck_assert_int_eq(kvmem_region_discard(ram, 0, 10 * PAGE), 0);
	ck_assert(has(3, 0) && has(10, 0));
	ck_assert_uint_eq(ram->clone->count, 1);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	close(fd);
}
END

/* Whichever call fails: a page is the template's or zero, and the record has no page as zero that is not. */
static void records_are_right(void)
{
	for (uint64_t page = 0; page < PAGES; page++) {
		bool old = has(page, (uint8_t)(page + 1));

		ck_assert(old || has(page, 0));
		ck_assert_msg(!old || state_of(page) == KVMEM_PAGE_PRESENT, "page %lu",
			      (unsigned long)page);
	}
}

static void fail_each(bool mapped, int err)
{
	int fd = make_template();

	for (unsigned long n = 1; n == 1 || fake.failed; n++) {
		int r;

		fake_kvm_reset();
		ck_assert_int_eq(CREATE(fd, .flags = KVMEM_REGION_DONTFORK), 0);
		ck_assert_int_eq(kvmem_region_discard(ram, 8 * PAGE, PAGE), 0);
		fake.mmap_near = mapped ? NULL : no_mapping;
		fake.fail_at = fake.calls + n;
		fake.fail_errno = err;
		r = kvmem_region_discard(ram, PAGE, 40 * PAGE);
		fake.fail_at = 0;
		ck_assert(r == 0 || r == -EIO);
		if (r)
			ck_assert(strstr(kvmem_error_detail(), "discard") != NULL);
		for (uint64_t page = 1; !r && page < 41; page++)
			ck_assert(has(page, 0) && state_of(page) == KVMEM_PAGE_ZERO);
		records_are_right();
		/* And it can be done again. */
		fake.mmap_near = NULL;
		ck_assert_int_eq(kvmem_region_discard(ram, PAGE, 40 * PAGE), 0);
		ck_assert(has(1, 0) && has(40, 0) && has(41, 42));
		ck_assert_int_eq(kvmem_region_free(ram), 0);
	}
	close(fd);
}

TEST(the_record_is_right_whichever_call_of_a_discard_fails)
{
	fail_each(true, ENOMEM);
	fail_each(true, EPERM);
	fail_each(false, ENOMEM);
	fail_each(false, EFAULT);
}
END

HARNESS_MAIN(T(the_list_is_the_map_of_pages), T(overlays_are_limited_in_a_process),
	     T(without_memory_for_the_list_no_mapping_is_made), T(options_that_exclude_a_clone),
	     T(a_guest_memfd_is_no_template), T(nothing_leaks_when_making_one_fails),
	     T(where_there_is_no_mapping_zeros_are_written),
	     T(the_record_is_right_whichever_call_of_a_discard_fails))
