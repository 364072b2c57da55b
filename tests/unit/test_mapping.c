// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory that the caller has mapped himself: told apart, left as it is, and refused with a reason. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_kvm.h"
#include "fill/fill.h"
#include "pager/pager.h"
#include "source/source.h"

#define PAGE  4096ull
#define PAGES 64ull
#define BYTES (PAGES * PAGE)
#define RW    (PROT_READ | PROT_WRITE)
#define ALL   (KVMEM_WANT_DIRTY | KVMEM_WANT_PAGING | KVMEM_WANT_NUMA | KVMEM_WANT_SHARED)

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static unsigned int fds, maps;
static uint8_t *at;

static void count(void)
{
	fds = harness_count_fds();
	maps = harness_count_maps();
}

static void fresh_vm(void)
{
	fake_kvm_reset();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
}

static void close_vm(void)
{
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	ck_assert_int_eq(fake.allocs, 0);
}

static int create(struct kvmem_region_opts o)
{
	o.size = sizeof(o);
	if (!o.bytes)
		o.bytes = BYTES;
	o.flags |= KVMEM_REGION_MAPPING;
	return kvmem_region_create(vm, &o, &ram);
}

#define CREATE(...) create((struct kvmem_region_opts){ __VA_ARGS__ })

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

static uint8_t *map(int prot, int flags, int fd, uint64_t offset)
{
	void *p = mmap(NULL, BYTES, prot, flags | (fd < 0 ? MAP_ANONYMOUS : 0), fd, (off_t)offset);

	ck_assert_ptr_ne(p, MAP_FAILED);
	return p;
}

static int memfd(uint64_t bytes)
{
	int fd = memfd_create("theirs", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)bytes), 0);
	return fd;
}

static void expect_states(const char *want)
{
	char got[PAGES + 1] = "";

	for (uint64_t p = 0; p < strlen(want); p++)
		got[p] = "a-pzx---c"[km_presence_get(&ram->presence, p)];
	ck_assert_str_eq(got, want);
}

static void free_region(void)
{
	ck_assert_msg(!kvmem_region_free(ram), "%s", kvmem_error_detail());
}

/* ---- each kind ---- */

static void expect_plan(uint32_t backing, uint64_t granted)
{
	ck_assert_ptr_eq(kvmem_region_base(ram), at);
	ck_assert_uint_eq(ram->plan.backing, backing);
	ck_assert_uint_eq(ram->plan.slot_form, KVMEM_SLOT_HVA);
	ck_assert_msg(ram->plan.granted == granted, "granted 0x%lx\n%s",
		      (unsigned long)ram->plan.granted, ram->plan.reasons);
	ck_assert_uint_eq(ram->plan.given_up, ALL & ~granted);
}

static void anonymous(void)
{
	at = map(RW, MAP_PRIVATE, -1, 0);
	at[2 * PAGE] = 1;
	at[PAGE * 5] = 2;
	memset(&fake.count, 0, sizeof(fake.count));
	ck_assert_int_eq(CREATE(.mapping = at, .wants = ALL), 0);
	/* Looked at, and nothing else. */
	ck_assert_uint_eq(fake.count.madvise + fake.count.mprotect + fake.count.mlock_onfault +
				  fake.count.munlock + fake.count.mbind,
			  0);
	expect_plan(KVMEM_BACKING_ANONYMOUS,
		    KVMEM_WANT_DIRTY | KVMEM_WANT_PAGING | KVMEM_WANT_NUMA);
	expect_states("aapaapaa");
	failed(ENODEV, "no file descriptor", kvmem_region_fd(ram));
	free_region();
	ck_assert_uint_eq(at[2 * PAGE] + at[5 * PAGE], 3);
	munmap(at, BYTES);
}

TEST(k9_1_anonymous_memory)
{
	fresh_vm();
	at = map(RW, MAP_PRIVATE, -1, 0); /* and what is probed has been */
	ck_assert_int_eq(CREATE(.mapping = at, .wants = ALL), 0);
	free_region();
	munmap(at, BYTES);
	anonymous();
	close_vm();
}
END

TEST(k9_1_a_memfd_with_its_descriptor)
{
	int fd = memfd(4 * BYTES);

	fresh_vm();
	at = map(RW, MAP_SHARED, fd, BYTES);
	at[PAGE] = 7;
	ck_assert_int_eq(CREATE(.mapping = at, .flags = KVMEM_REGION_FD, .fd = fd,
				.fd_offset = BYTES, .wants = ALL & ~KVMEM_WANT_SHARED),
			 0);
	ck_assert_uint_eq(ram->plan.backing, KVMEM_BACKING_MEMFD);
	ck_assert_uint_eq(ram->plan.granted, ALL & ~KVMEM_WANT_SHARED);
	ck_assert_ptr_eq(kvmem_region_base(ram), at);
	expect_states("apaa");
	ck_assert_int_eq(kvmem_region_discard(ram, PAGE, PAGE), 0);
	ck_assert_uint_eq(at[PAGE], 0);
	at[3 * PAGE] = 9;
	free_region();
	ck_assert_uint_eq(at[3 * PAGE], 9);
	/* As an adopted file: nothing in it is content. */
	ck_assert_int_eq(CREATE(.mapping = at, .flags = KVMEM_REGION_FD, .fd = fd,
				.fd_offset = BYTES, .content = KVMEM_CONTENT_IGNORE),
			 0);
	expect_states("aaaa");
	free_region();
	munmap(at, BYTES);
	close(fd);
	close_vm();
}
END

/* What the library cannot fill is all there, and can be tracked. */
static void other(uint8_t *p, uint64_t granted, const char *why)
{
	struct kvmem_source *source;
	struct kvmem_pager *pager;

	at = p;
	ck_assert_msg(!CREATE(.mapping = at, .wants = ALL), "%s", kvmem_error_detail());
	expect_plan(KVMEM_BACKING_OTHER, granted);
	ck_assert_msg(strstr(ram->plan.reasons, why), "'%s' is not in %s", why, ram->plan.reasons);
	ck_assert_uint_eq(km_presence_missing(&ram->presence), 0);
	failed(EOPNOTSUPP, why, kvmem_region_discard(ram, 0, PAGE));
	ck_assert_int_eq(kvmem_source_memory(at, BYTES, &source), 0);
	failed(EOPNOTSUPP, why, kvmem_populate(ram, 0, source, NULL, NULL));
	ck_assert_int_eq(kvmem_pager_create(NULL, &pager), 0);
	failed(EOPNOTSUPP, why, kvmem_pager_add(pager, ram, source, 0, 0));
	ck_assert_int_eq(kvmem_pager_free(pager), 0);
	ck_assert_int_eq(kvmem_source_free(source), 0);
	failed(ENODEV, "without one", kvmem_region_fd(ram));
	free_region();
	failed(EOPNOTSUPP, why, CREATE(.mapping = at, .needs = KVMEM_WANT_PAGING));
	failed(EOPNOTSUPP, why, CREATE(.mapping = at, .content = KVMEM_CONTENT_IGNORE));
	failed(EOPNOTSUPP, why, CREATE(.mapping = at, .backing = KVMEM_BACKING_ANONYMOUS));
	munmap(at, BYTES);
}

TEST(k9_1_what_cannot_be_filled)
{
	char name[] = "/var/tmp/kvmem-test-XXXXXX";
	int fd = memfd(BYTES), file = mkstemp(name);

	ck_assert_int_ge(file, 0);
	unlink(name);
	ck_assert_int_eq(ftruncate(file, (off_t)BYTES), 0);
	fresh_vm();
	other(map(RW, MAP_PRIVATE, fd, 0), KVMEM_WANT_DIRTY, "private mapping of a file");
	other(map(RW, MAP_PRIVATE, file, 0), KVMEM_WANT_DIRTY, "private mapping of a file");
	other(map(RW, MAP_SHARED, file, 0), KVMEM_WANT_DIRTY, "KVMEM_REGION_FD");
	other(map(RW, MAP_SHARED, fd, 0), KVMEM_WANT_DIRTY, "KVMEM_REGION_FD");
	other(map(RW, MAP_SHARED, -1, 0), KVMEM_WANT_DIRTY, "KVMEM_REGION_FD");
	other(map(PROT_READ, MAP_PRIVATE, -1, 0), 0, "without write access");
	other(map(PROT_READ, MAP_SHARED, fd, 0), 0, "without write access");
	at = map(RW, MAP_SHARED, file, 0);
	failed(EBADF, "without KVMEM_REGION_FD",
	       CREATE(.mapping = at, .flags = KVMEM_REGION_FD, .fd = file));
	munmap(at, BYTES);
	close(fd);
	close(file);
	close_vm();
}
END

/* A ROM: the guest's writes are exits, and not a KVM_RUN that fails. */
TEST(k9_1_memory_that_can_only_be_read)
{
	fresh_vm();
	at = map(PROT_READ, MAP_PRIVATE, -1, 0);
	ck_assert_int_eq(CREATE(.mapping = at), 0);
	failed(EOPNOTSUPP, "KVMEM_ATTACH_READONLY",
	       kvmem_region_attach(ram, 0, BYTES, 0, 1, 0, NULL));
	failed(EOPNOTSUPP, "KVMEM_ATTACH_READONLY",
	       kvmem_region_adopt_slot(ram, 0, BYTES, 0, 1, 0));
	ck_assert_int_eq(kvmem_region_attach(ram, 0, BYTES, 0, 1, KVMEM_ATTACH_READONLY, NULL), 0);
	free_region();
	munmap(at, BYTES);
	close_vm();
}
END

/* Policies are set on the mapping, and stay there: it is the caller's memory all the same. */
TEST(k9_1_policies_of_an_own_mapping)
{
	unsigned long node = 1;
	int fd = memfd(BYTES);

	fresh_vm();
	for (int file = 0; file < 2; file++) {
		at = map(RW, file ? MAP_SHARED : MAP_PRIVATE, file ? fd : -1, 0);
		ck_assert_int_eq(CREATE(.mapping = at, .flags = file ? KVMEM_REGION_FD : 0,
					.fd = file ? fd : 0, .needs = KVMEM_WANT_NUMA),
				 0);
		fake.count.mbind = 0;
		ck_assert_int_ge(
			kvmem_region_set_policy(ram, 0, BYTES, KVMEM_POLICY_BIND, &node, 64, 0), 0);
		ck_assert_uint_gt(fake.count.mbind, 0);
		free_region();
		munmap(at, BYTES);
	}
	close(fd);
	close_vm();
}
END

/* ---- what is there ---- */

static unsigned int swapped_page;

/* As the kernel shows it: a page in swap is not present, and mincore() passes over it. */
static int64_t swapped(int fd, void *buf, size_t len, uint64_t off)
{
	int64_t n = km_real_pread(fd, buf, len, off);
	uint64_t first = off / 8, page = (uintptr_t)at / PAGE + swapped_page;

	if (n > 0 && first <= page && page < first + len / 8) {
		((uint64_t *)buf)[page - first] = 1ull << 62;
		if (page + 1 < first + len / 8)
			((uint64_t *)buf)[page + 1 - first] = 1ull << 62 | 1ull << 57;
	}
	return n;
}

TEST(k9_1_a_page_in_swap_is_content)
{
	fresh_vm();
	at = map(RW, MAP_PRIVATE, -1, 0);
	fake.pread = swapped;
	swapped_page = 3;
	ck_assert_int_eq(CREATE(.mapping = at), 0);
	expect_states("aaapaa"); /* the next one is a marker, and no page */
	free_region();
	munmap(at, BYTES);
	close_vm();
}
END

static const char *hidden;
static const char *swaps; /* what /proc/swaps says; NULL: there is none */

static int64_t no_open(const char *path, int flags)
{
	if (hidden && !strcmp(path, hidden))
		return -EACCES;
	if (!strcmp(path, "/proc/swaps"))
		return swaps ? 10000 : -ENOENT;
	return km_real_open(path, flags);
}

static int64_t read_swaps(int fd, void *buf, size_t len)
{
	if (fd != 10000)
		return km_real_read(fd, buf, len);
	strncpy(buf, swaps, len);
	return (int64_t)strlen(swaps);
}

#define HEADER \
	"Filename				Type		Size		Used		Priority\n"

/* A process that has given up its user may not read its own pagemap. */
TEST(k9_1_without_proc_nothing_is_guessed)
{
	fresh_vm();
	at = map(RW, MAP_PRIVATE, -1, 0);
	at[PAGE] = 1;
	fake.open = no_open;
	fake.read = read_swaps;
	hidden = "/proc/self/maps";
	failed(EOPNOTSUPP, "/proc/self/maps", CREATE(.mapping = at));
	hidden = "/proc/self/pagemap";
	/* With swap, mincore() would pass over pages. */
	swaps = HEADER "/dev/sda2                               partition\t8\t0\t-2\n";
	failed(EOPNOTSUPP, "KVMEM_CONTENT_IGNORE",
	       CREATE(.mapping = at, .needs = KVMEM_WANT_PAGING));
	ck_assert_int_eq(CREATE(.mapping = at, .needs = KVMEM_WANT_DIRTY), 0);
	expect_states("pppp");
	failed(EOPNOTSUPP, "cannot be told", kvmem_region_discard(ram, 0, PAGE));
	free_region();
	ck_assert_int_eq(CREATE(.mapping = at, .content = KVMEM_CONTENT_IGNORE), 0);
	expect_states("aaaa");
	free_region();
	swaps = HEADER;
	ck_assert_int_eq(CREATE(.mapping = at, .needs = KVMEM_WANT_PAGING), 0);
	expect_states("apaa");
	free_region();
	swaps = NULL; /* a kernel without */
	ck_assert_int_eq(CREATE(.mapping = at, .needs = KVMEM_WANT_PAGING), 0);
	expect_states("apaa");
	free_region();
	munmap(at, BYTES);
	close_vm();
}
END

static int64_t old_ioctl(int fd, unsigned long request, void *arg)
{
	return (request & 0xff00) == 'f' << 8 ? -ENOTTY : km_real_ioctl(fd, request, arg);
}

/* ---- a neighbour with a path that is longer than any buffer ---- */

#define DEPTH 22
#define NAME \
	"d123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789" \
	"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"

static int deep_file(int dirs[DEPTH + 1])
{
	int dir = open("/tmp", O_DIRECTORY | O_RDONLY | O_CLOEXEC);

	for (int i = 0; i < DEPTH; i++) {
		ck_assert(!mkdirat(dir, NAME, 0700) || errno == EEXIST);
		dirs[i] = dir;
		dir = openat(dir, NAME, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
		ck_assert_int_ge(dir, 0);
	}
	dirs[DEPTH] = dir;
	return openat(dir, "file", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
}

static void remove_deep(int dirs[DEPTH + 1])
{
	unlinkat(dirs[DEPTH], "file", 0);
	close(dirs[DEPTH]);
	for (int i = DEPTH; i--;) {
		unlinkat(dirs[i], NAME, AT_REMOVEDIR);
		close(dirs[i]);
	}
}

TEST(a_mapping_behind_one_with_a_long_path)
{
	int dirs[DEPTH + 1], fd = deep_file(dirs);
	uint8_t *p = map(RW, MAP_PRIVATE, -1, 0);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, PAGE), 0);
	fresh_vm();
	ck_assert_ptr_ne(mmap(p, PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0), MAP_FAILED);
	fake.ioctl = old_ioctl;
	ck_assert_int_eq(CREATE(.mapping = p + PAGE, .bytes = PAGE), 0);
	free_region();
	fake.ioctl = NULL;
	munmap(p, BYTES);
	close(fd);
	remove_deep(dirs);
	close_vm();
}
END

/* ---- wrong ones ---- */

static void wrong_shapes(void)
{
	uint8_t *p = map(RW, MAP_PRIVATE, -1, 0);
	int fd = memfd(4 * BYTES), other_fd = memfd(4 * BYTES);

	failed(EINVAL, "NULL", CREATE(.bytes = BYTES));
	failed(EINVAL, "mapping", CREATE(.mapping = p + 1));
	failed(EINVAL, "beyond the address space",
	       CREATE(.mapping = (void *)(UINTPTR_MAX & ~(PAGE - 1)), .bytes = 2 * PAGE));
	failed(EINVAL, "madvise", CREATE(.mapping = p, .flags = KVMEM_REGION_DONTFORK));
	failed(EINVAL, "madvise", CREATE(.mapping = p, .flags = KVMEM_REGION_DONTDUMP));
	failed(EINVAL, "seals", CREATE(.mapping = p, .seals = KVMEM_SEAL_SEAL));
	failed(EINVAL, "fd_offset", CREATE(.mapping = p, .fd_offset = PAGE));
	failed(EINVAL, "unknown", CREATE(.mapping = p, .content = 2));
	failed(EOPNOTSUPP, "page_size",
	       CREATE(.mapping = p, .page_size = 2 << 20, .bytes = 2 << 20));
	failed(EOPNOTSUPP, "another kind", CREATE(.mapping = p, .backing = KVMEM_BACKING_MEMFD));
	failed(EINVAL, "not of", CREATE(.mapping = p, .flags = KVMEM_REGION_FD, .fd = fd));
	failed(EBADF, "fstat", CREATE(.mapping = p, .flags = KVMEM_REGION_FD, .fd = 9999));
	munmap(p + 8 * PAGE, PAGE);
	failed(EFAULT, "nothing is mapped", CREATE(.mapping = p));
	failed(EFAULT, "nothing is mapped", CREATE(.mapping = p + 8 * PAGE, .bytes = PAGE));
	ck_assert_ptr_ne(mmap(p + 8 * PAGE, PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0), MAP_FAILED);
	failed(EINVAL, "more than one kind", CREATE(.mapping = p));
	munmap(p, BYTES);
	p = map(RW, MAP_PRIVATE, -1, 0);
	ck_assert_int_eq(mprotect(p + 5 * PAGE, PAGE, PROT_READ), 0);
	failed(EINVAL, "access rights", CREATE(.mapping = p));
	ck_assert_int_eq(mprotect(p, BYTES, PROT_NONE), 0);
	failed(EINVAL, "PROT_NONE", CREATE(.mapping = p));
	munmap(p, BYTES);

	p = map(RW, MAP_SHARED, fd, BYTES);
	failed(EINVAL, "not of", CREATE(.mapping = p, .flags = KVMEM_REGION_FD, .fd = other_fd));
	failed(EINVAL, "fd_offset says 0x0",
	       CREATE(.mapping = p, .flags = KVMEM_REGION_FD, .fd = fd));
	failed(EINVAL, "begins at byte 0x41000",
	       CREATE(.mapping = p + PAGE, .bytes = PAGE, .flags = KVMEM_REGION_FD, .fd = fd,
		      .fd_offset = BYTES));
	ck_assert_ptr_ne(mmap(p + 8 * PAGE, PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0), MAP_FAILED);
	failed(EINVAL, "another part",
	       CREATE(.mapping = p, .flags = KVMEM_REGION_FD, .fd = fd, .fd_offset = BYTES));
	munmap(p, BYTES);
	p = map(RW, MAP_PRIVATE, fd, 0);
	failed(EOPNOTSUPP, "MAP_SHARED", CREATE(.mapping = p, .flags = KVMEM_REGION_FD, .fd = fd));
	munmap(p, BYTES);
	p = map(PROT_READ, MAP_SHARED, fd, 0);
	failed(EOPNOTSUPP, "write access",
	       CREATE(.mapping = p, .flags = KVMEM_REGION_FD, .fd = fd));
	munmap(p, BYTES);
	close(fd);
	close(other_fd);
}

TEST(k9_1_wrong_mappings_name_their_fault)
{
	fresh_vm();
	kvmem_region_plan(vm,
			  &(struct kvmem_region_opts){ .size = sizeof(struct kvmem_region_opts),
						       .bytes = BYTES },
			  &(struct kvmem_plan)KVMEM_PLAN_INIT);
	count();
	wrong_shapes();
	fake.ioctl = old_ioctl; /* the text of /proc/self/maps, before Linux 6.11 */
	wrong_shapes();
	fake.ioctl = NULL;
	ck_assert_uint_eq(harness_count_fds(), fds);
	ck_assert_uint_eq(harness_count_maps(), maps);
	close_vm();
}
END

TEST(k9_1_one_record_for_one_page)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *first;
	int fd = memfd(BYTES);

	fresh_vm();
	at = map(RW, MAP_PRIVATE, -1, 0);
	ck_assert_int_eq(CREATE(.mapping = at, .bytes = 8 * PAGE), 0);
	first = ram;
	failed(EBUSY, "overlaps", CREATE(.mapping = at + 7 * PAGE, .bytes = PAGE));
	failed(EBUSY, "overlaps", CREATE(.mapping = at));
	ck_assert_int_eq(CREATE(.mapping = at + 8 * PAGE, .bytes = PAGE), 0);
	free_region();
	ck_assert_int_eq(CREATE(.mapping = at, .flags = KVMEM_REGION_OVERLAP), 0);
	free_region();
	ck_assert_int_eq(kvmem_region_free(first), 0);
	ck_assert_int_eq(CREATE(.mapping = at), 0);
	free_region();
	munmap(at, BYTES);
	/* The library's own memory is no mapping of the caller's. */
	o.bytes = BYTES;
	o.backing = KVMEM_BACKING_ANONYMOUS;
	ck_assert_int_eq(kvmem_region_create(vm, &o, &first), 0);
	failed(EBUSY, "overlaps", CREATE(.mapping = kvmem_region_base(first)));
	ck_assert_int_eq(kvmem_region_free(first), 0);
	/* And a file is one file, wherever it is mapped. */
	at = map(RW, MAP_SHARED, fd, 0);
	o.backing = 0;
	o.flags = KVMEM_REGION_FD;
	o.fd = fd;
	ck_assert_int_eq(kvmem_region_create(vm, &o, &first), 0);
	failed(EBUSY, "overlap", CREATE(.mapping = at, .flags = KVMEM_REGION_FD, .fd = fd));
	ck_assert_int_eq(kvmem_region_free(first), 0);
	munmap(at, BYTES);
	close(fd);
	close_vm();
}
END

TEST(k9_1_whatever_fails_the_mapping_stays)
{
	int fd = memfd(BYTES), r;

	for (unsigned long n = 1; n == 1 || fake.failed; n++) {
		bool file = n % 2;

		fake_kvm_reset();
		count();
		ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
		at = map(RW, file ? MAP_SHARED : MAP_PRIVATE, file ? fd : -1, 0);
		at[PAGE] = 3;
		fake.fail_at = fake.calls + (n + 1) / 2;
		fake.fail_errno = EMFILE;
		r = CREATE(.mapping = at, .flags = file ? KVMEM_REGION_FD : 0, .fd = file ? fd : 0);
		fake.fail_at = 0;
		if (r)
			ck_assert_uint_gt(strlen(kvmem_error_detail()), 0);
		else
			free_region();
		ck_assert_uint_eq(at[PAGE], 3);
		ck_assert_int_eq(munmap(at, BYTES), 0);
		ck_assert_int_eq(kvmem_vm_free(vm), 0);
		ck_assert_uint_eq(harness_count_fds(), fds);
		ck_assert_uint_eq(harness_count_maps(), maps);
		ck_assert_int_eq(fake.allocs, 0);
		ck_assert_uint_lt(n, 120);
	}
	close(fd);
}
END

HARNESS_MAIN(T(a_mapping_behind_one_with_a_long_path), T(k9_1_anonymous_memory),
	     T(k9_1_a_memfd_with_its_descriptor), T(k9_1_what_cannot_be_filled),
	     T(k9_1_memory_that_can_only_be_read), T(k9_1_policies_of_an_own_mapping),
	     T(k9_1_a_page_in_swap_is_content), T(k9_1_without_proc_nothing_is_guessed),
	     T(k9_1_wrong_mappings_name_their_fault), T(k9_1_one_record_for_one_page),
	     T(k9_1_whatever_fails_the_mapping_stays))
