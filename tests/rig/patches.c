// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The patched kernel behaves as the patches say, by raw system calls: what the library finds out
 * about it is then worth something. Everything is found by trying; the parameters only tell which
 * answer is the right one.
 */
#include "uffd.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define SHARED (GMEM_MMAP | GMEM_INIT_SHARED)
#define PAGES  8u

static long parameter(const char *name)
{
	char path[128], text[32] = "";
	int fd;

	snprintf(path, sizeof(path), "/sys/module/kvm/parameters/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	return strtol(text, NULL, 10);
}

/* One guest_memfd of PAGES pages, and a page of data. */
struct gmem {
	int vm, fd;
	uint8_t *map;
	uint8_t data[PAGE];
};

static struct gmem gmem_make(uint64_t flags)
{
	struct gmem g = { .vm = kvm_new_vm() };

	g.fd = gmem_new(g.vm, PAGES * PAGE, flags);
	if (g.fd >= 0)
		g.map = map_shared(g.fd, PAGES * PAGE);
	memset(g.data, 0x5a, sizeof(g.data));
	return g;
}

static void gmem_free(struct gmem *g)
{
	if (g->map)
		munmap(g->map, PAGES * PAGE);
	if (g->fd >= 0)
		close(g->fd);
	close(g->vm);
}

static ssize_t write_at(struct gmem *g, unsigned page, size_t len)
{
	ssize_t n = pwrite(g->fd, g->data, len, (off_t)(page * PAGE));

	return n < 0 ? -errno : n;
}

/* The creation flags with which a write works: 0 when none do. */
static uint64_t write_flags(void)
{
	int vm = kvm_new_vm();
	uint64_t offered = (uint64_t)gmem_flags(vm);
	uint64_t found = 0;

	close(vm);
	for (unsigned bit = 0; bit < 32 && !found; bit++) {
		uint64_t flags = SHARED | (1ull << bit);
		struct gmem g;

		if (flags & ~offered)
			continue;
		g = gmem_make(flags);
		if (g.fd >= 0 && write_at(&g, 0, PAGE) == (ssize_t)PAGE)
			found = flags;
		gmem_free(&g);
	}
	return found;
}

static bool page_is(const uint8_t *p, uint8_t first, size_t n)
{
	for (size_t i = 0; i < PAGE; i++)
		if (p[i] != (i < n ? first : 0))
			return false;
	return true;
}

/* The revision by what it does; 0 when writes are refused as the released kernels do. */
static long revision_found(uint64_t flags)
{
	struct gmem g = gmem_make(flags ? flags : SHARED);
	long rev = -1;

	if (!flags) {
		if (write_at(&g, 0, PAGE) == -ESPIPE && write(g.fd, g.data, PAGE) < 0 &&
		    errno == EINVAL)
			rev = 0;
	} else if (write_at(&g, 0, PAGE) != (ssize_t)PAGE) {
		rev = -1;
	} else if (write_at(&g, 0, PAGE) == -ENOSPC) {
		rev = write_at(&g, 1, 100) == -EINVAL ? 5 : -1;
	} else if (write_at(&g, 1, 100) == 100) {
		rev = page_is(g.map + PAGE, 0x5a, 100) ? 6 : -1;
	} else if (flags & (1ull << 3)) {
		rev = 73;
	} else {
		rev = 7;
	}
	gmem_free(&g);
	return rev;
}

static void test_write(uint64_t flags)
{
	struct gmem g;
	uint8_t *two;

	if (!flags)
		return tap_skip("write-population", "off in this mode");
	g = gmem_make(flags);
	tap_ok(write_at(&g, 2, PAGE) == (ssize_t)PAGE && page_is(g.map + 2 * PAGE, 0x5a, PAGE),
	       "write-content");
	tap_ok(write_at(&g, PAGES, PAGE) == -EINVAL, "write-beyond-the-size");
	two = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(two != MAP_FAILED && !mprotect(two + PAGE, PAGE, PROT_NONE), "mmap");
	memset(two, 1, PAGE);
	tap_ok(pwrite(g.fd, two, 2 * PAGE, 4 * (off_t)PAGE) == (ssize_t)PAGE &&
		       pwrite(g.fd, two + PAGE, PAGE, 5 * (off_t)PAGE) < 0 && errno == EFAULT,
	       "write-partial-then-error");
	munmap(two, 2 * PAGE);
	gmem_free(&g);
	if (flags != SHARED) {
		g = gmem_make(SHARED);
		tap_ok(write_at(&g, 0, PAGE) == -ENODEV, "write-without-the-flag");
		gmem_free(&g);
	}
}

static void test_uffd_refused(void)
{
	struct gmem g = gmem_make(SHARED);
	int uffd = uffd_new();

	must(uffd >= 0 && g.map, "userfaultfd");
	tap_ok(uffd_register(uffd, g.map, PAGES * PAGE, UFFDIO_REGISTER_MODE_MISSING) < 0 &&
		       errno == EINVAL,
	       "userfaultfd-refused");
	close(uffd);
	gmem_free(&g);
}

/* Touches page n from a thread; the fault's flags, after resolve() has served it. */
static int64_t fault(struct gmem *g, int uffd, unsigned n,
		     int (*resolve)(int, struct gmem *, unsigned), uint8_t *ret_value)
{
	struct toucher t;
	int64_t flags;

	toucher_start(&t, g->map + n * PAGE);
	flags = uffd_wait(uffd, &t.done);
	if (flags >= 0 && resolve(uffd, g, n))
		flags = -2;
	if (flags < 0)
		close(uffd);
	*ret_value = toucher_join(&t);
	return flags;
}

static int by_copy(int uffd, struct gmem *g, unsigned n)
{
	return uffd_copy(uffd, g->map + n * PAGE, g->data);
}

static int by_zero(int uffd, struct gmem *g, unsigned n)
{
	return uffd_zero(uffd, g->map + n * PAGE);
}

static int by_continue(int uffd, struct gmem *g, unsigned n)
{
	return uffd_continue(uffd, g->map + n * PAGE, PAGE);
}

static void test_uffd_host(uint64_t flags)
{
	const uint64_t both = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
	struct gmem g = gmem_make(flags ? flags : SHARED);
	uint8_t *other = map_shared(g.fd, PAGES * PAGE);
	int uffd = uffd_new();
	uint8_t value;

	must(uffd >= 0 && other, "userfaultfd");
	must(!uffd_register(uffd, g.map, PAGES * PAGE, both), "register MISSING | MINOR");
	tap_ok(fault(&g, uffd, 0, by_copy, &value) == 0 && value == 0x5a, "absent-page-is-missing");
	tap_ok(fault(&g, uffd, 1, by_zero, &value) == 0 && value == 0, "missing-page-by-zeropage");
	other[2 * PAGE] = 7;
	tap_ok(fault(&g, uffd, 2, by_continue, &value) == UFFD_PAGEFAULT_FLAG_MINOR && value == 7,
	       "present-page-is-minor");
	tap_ok(uffd_copy(uffd, g.map + 2 * PAGE, g.data) < 0 && errno == EEXIST,
	       "copy-over-a-present-page");
	tap_ok(uffd_continue(uffd, g.map + 5 * PAGE, PAGE) < 0 && errno == EFAULT,
	       "continue-of-an-absent-page");
	close(uffd);
	munmap(other, PAGES * PAGE);
	gmem_free(&g);
}

static void test_uffd_private(void)
{
	struct gmem g = gmem_make(GMEM_MMAP);
	int uffd = uffd_new();

	must(uffd >= 0 && g.map, "a guest_memfd without INIT_SHARED");
	tap_ok(uffd_register(uffd, g.map, PAGES * PAGE, UFFDIO_REGISTER_MODE_MISSING) < 0 &&
		       errno == EINVAL,
	       "userfaultfd-refused-on-private");
	close(uffd);
	gmem_free(&g);
}

struct runner {
	pthread_t thread;
	struct vcpu vcpu;
	int result;
	atomic_bool done;
};

static void *runner_main(void *arg)
{
	struct runner *r = arg;

	r->result = vcpu_run(&r->vcpu);
	atomic_store(&r->done, true);
	return NULL;
}

/* mov al, [0x3000]; add al, [0x4000]; out 0x10, al */
static void test_uffd_vcpu(uint64_t flags)
{
	static const uint8_t code[] = { 0xa0, 0x00, 0x30, 0x02, 0x06, 0x00, 0x40, 0xe6, 0x10 };
	struct gmem g = gmem_make(flags ? flags : SHARED);
	uint8_t *other = map_shared(g.fd, PAGES * PAGE);
	struct runner r = { .result = -1 };
	int uffd = uffd_new();
	int64_t missing, minor;

	must(uffd >= 0 && other, "userfaultfd");
	memcpy(other + PAGE, code, sizeof(code));
	other[4 * PAGE] = 2;
	must(!slot_set(g.vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, PAGES * PAGE, g.map), "HVA slot");
	r.vcpu = vcpu_new(g.vm, PAGE);
	must(!uffd_register(uffd, g.map + 2 * PAGE, (PAGES - 2) * PAGE,
			    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR),
	     "register");
	must(!pthread_create(&r.thread, NULL, runner_main, &r), "pthread_create");
	missing = uffd_wait(uffd, &r.done);
	must(missing < 0 || (flags ? (g.data[0] = 40, write_at(&g, 3, PAGE) == (ssize_t)PAGE)
				   : (other[3 * PAGE] = 40, true)),
	     "fill");
	must(missing < 0 || !uffd_continue(uffd, g.map + 3 * PAGE, PAGE), "UFFDIO_CONTINUE");
	minor = missing < 0 ? -1 : uffd_wait(uffd, &r.done);
	must(minor < 0 || !uffd_continue(uffd, g.map + 4 * PAGE, PAGE), "UFFDIO_CONTINUE");
	close(uffd);
	pthread_join(r.thread, NULL);
	tap_ok(missing == 0, "vcpu-missing-fault");
	tap_ok(minor == UFFD_PAGEFAULT_FLAG_MINOR, "vcpu-minor-fault");
	tap_ok(r.result == 42, "vcpu-reads-what-was-filled");
	vcpu_free(&r.vcpu);
	munmap(other, PAGES * PAGE);
	gmem_free(&g);
}

static void test_gup(uint64_t flags, bool refused, const char *name)
{
	struct gmem g = gmem_make(flags);
	int err = madvise(g.map, PAGES * PAGE, MADV_POPULATE_WRITE) ? errno : 0;

	g.map[0] = 1; /* a plain store works either way */
	tap_ok(err == (refused ? EINVAL : 0) && g.map[0] == 1, name);
	gmem_free(&g);
}

int main(void)
{
	long rev = parameter("gmem_write_rev");
	uint64_t flags;

	if (rev < 0) {
		fprintf(stderr, "not the rig's patched kernel\n");
		return 77;
	}
	flags = write_flags();
	tap_note("write population works with flags %#llx and acts as revision %ld",
		 (unsigned long long)flags, revision_found(flags));
	tap_ok(revision_found(flags) == rev, "write-revision-by-probing");
	test_write(flags);
	if (parameter("gmem_uffd")) {
		test_uffd_host(flags);
		test_uffd_private();
		test_uffd_vcpu(flags);
	} else {
		test_uffd_refused();
	}
	test_gup(SHARED, parameter("gmem_no_gup") == 1, "gup");
	if (parameter("gmem_no_gup") == 2)
		test_gup(SHARED | (1ull << 2), true, "gup-refused-by-flag");
	return tap_done();
}
