// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * userfaultfd: how to get one that sees the faults of vCPUs, and on which memory it really raises
 * which fault. Registration alone proves little, so each mode is shown by a fault: with
 * UFFD_FEATURE_SIGBUS the kernel fails an access that would be handed to the userfaultfd instead of
 * waiting for an answer, and the access is made by a system call, which reports EFAULT.
 */
#include "caps/caps_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"
#include "base/uapi/userfaultfd.h"

static const char how_to_get[] = "open /dev/userfaultfd read-write (give this user access to it), "
				 "or run with CAP_SYS_PTRACE, or set "
				 "the sysctl vm.unprivileged_userfaultfd to 1";

static int64_t from_device(void)
{
	int64_t dev = km_sys_open("/dev/userfaultfd", O_RDWR), fd;

	if (dev < 0)
		return dev;
	fd = km_sys_ioctl_val((int)dev, KM_USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	km_sys_close((int)dev);
	return fd;
}

static int64_t handshake(int64_t fd, uint64_t features, uint64_t *ret_features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int64_t r;

	if (fd < 0)
		return fd;
	r = km_sys_ioctl((int)fd, UFFDIO_API, &api);
	if (r < 0) {
		km_sys_close((int)fd);
		return r;
	}
	if (ret_features)
		*ret_features = api.features;
	return fd;
}

/* A userfaultfd without USER_MODE_ONLY: with it KVM_RUN would fail on the first missing page. */
int64_t km_uffd_try(uint64_t features, uint64_t *ret_features)
{
	int64_t fd = from_device();

	if (fd < 0)
		fd = km_sys_userfaultfd(O_NONBLOCK);
	return handshake(fd, features, ret_features);
}

int km_uffd_open(uint64_t features)
{
	int64_t fd = km_uffd_try(features, NULL);

	if (fd == -EPERM || fd == -EACCES)
		return km_fail(EPERM, "userfaultfd for the faults of vCPUs is forbidden here: %s",
			       how_to_get);
	if (fd == -ENOSYS)
		return km_fail(ENOSYS, "userfaultfd: %m; the kernel needs CONFIG_USERFAULTFD");
	if (fd == -EINVAL)
		return km_fail(EOPNOTSUPP, "userfaultfd: UFFDIO_API refused the features 0x%llx",
			       (unsigned long long)features);
	if (fd < 0)
		return km_fail((int)-fd, "userfaultfd: %m");
	return (int)fd;
}

void km_probe_uffd(struct kvmem_caps *c)
{
	int64_t dev = from_device(), call = km_sys_userfaultfd(0), fd;
	uint64_t features = 0;

	if (dev < 0)
		km_cap_none(c, KVMEM_CAP_UFFD_DEVICE, dev,
			    "opening /dev/userfaultfd: %m; Linux 6.1 and later "
			    "have it, this user needs access to it");
	else
		km_cap_native(c, KVMEM_CAP_UFFD_DEVICE, 0, "/dev/userfaultfd opens");
	if (call < 0)
		km_cap_none(c, KVMEM_CAP_UFFD_SYSCALL, call,
			    "userfaultfd() with kernel faults: %m; %s", how_to_get);
	else
		km_cap_native(c, KVMEM_CAP_UFFD_SYSCALL, 0,
			      "userfaultfd() with kernel faults is allowed");
	km_sys_close((int)call);
	km_sys_close((int)dev);
	fd = km_uffd_try(0, &features);
	if (fd < 0)
		km_cap_none(c, KVMEM_CAP_UFFD, fd,
			    "no userfaultfd that sees the faults of vCPUs: %m; %s", how_to_get);
	else
		km_cap_native(c, KVMEM_CAP_UFFD, (int64_t)features,
			      "UFFDIO_API offers the features 0x%llx",
			      (unsigned long long)features);
	km_sys_close((int)fd);
}

/* ---- modes on a kind of memory ---- */

/* Memory to try a mode on; `other` maps the same file, NULL for memory without one. */
struct ground {
	struct kvmem_caps *c;
	uint8_t *map;
	uint8_t *other;
	size_t page;
	size_t bytes;
	int byte; /* a file of one byte, which a system call copies to or from the memory */
};

static int64_t reg(int uffd, const struct ground *g, uint64_t mode)
{
	struct uffdio_register r = {
		.range = { .start = (uintptr_t)g->map, .len = g->bytes },
		.mode = mode,
	};

	return km_cap_step(g->c, km_sys_ioctl(uffd, UFFDIO_REGISTER, &r));
}

static void unreg(int uffd, const struct ground *g)
{
	struct uffdio_range r = { .start = (uintptr_t)g->map, .len = g->bytes };

	km_cap_step(g->c, km_sys_ioctl(uffd, UFFDIO_UNREGISTER, &r));
}

/* Would an access to this page be handed to the userfaultfd? The kernel copies from it; nothing
 * waits. */
static bool raised(const struct ground *g, const void *addr)
{
	return km_cap_step(g->c, km_sys_pwrite(g->byte, addr, 1, 0)) == -EFAULT;
}

/* Likewise a write: the kernel copies a byte to it. */
static bool write_goes(const struct ground *g)
{
	return km_cap_step(g->c, km_sys_pread(g->byte, g->map, 1, 0)) == 1;
}

static bool missing_works(int uffd, const struct ground *g)
{
	bool works;

	if (reg(uffd, g, UFFDIO_REGISTER_MODE_MISSING) < 0)
		return false;
	works = raised(g, g->map) && !(g->other && raised(g, g->other));
	unreg(uffd, g);
	return works;
}

/* A page made through the other mapping must raise a minor fault, and CONTINUE must end it. */
static bool minor_works(int uffd, const struct ground *g)
{
	struct uffdio_continue cont = {
		.range = { .start = (uintptr_t)g->map, .len = g->page },
	};
	bool works;

	if (!g->other ||
	    reg(uffd, g, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR) < 0)
		return false;
	works = !raised(g, g->other) && raised(g, g->map) &&
		km_cap_step(g->c, km_sys_ioctl(uffd, UFFDIO_CONTINUE, &cont)) >= 0 &&
		!raised(g, g->map);
	unreg(uffd, g);
	return works;
}

/* A page there and protected must fail a write, and take it once the protection is gone. */
static bool wp_works(int uffd, const struct ground *g)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)g->map, .len = g->bytes },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	bool works;

	if (raised(g, g->map) || reg(uffd, g, UFFDIO_REGISTER_MODE_WP) < 0)
		return false;
	works = km_cap_step(g->c, km_sys_ioctl(uffd, UFFDIO_WRITEPROTECT, &wp)) >= 0 &&
		!write_goes(g);
	wp.mode = 0;
	works = works && km_cap_step(g->c, km_sys_ioctl(uffd, UFFDIO_WRITEPROTECT, &wp)) >= 0 &&
		write_goes(g);
	unreg(uffd, g);
	return works;
}

static int64_t modes_of(const struct ground *g)
{
	int64_t fd = km_uffd_try(UFFD_FEATURE_SIGBUS, NULL), modes = 0;

	if (km_cap_step(g->c, fd) < 0)
		return fd;
	if (missing_works((int)fd, g))
		modes |= KVMEM_UFFD_MISSING;
	if (minor_works((int)fd, g))
		modes |= KVMEM_UFFD_MINOR;
	if (wp_works((int)fd, g))
		modes |= KVMEM_UFFD_WP;
	km_sys_close((int)fd);
	return modes;
}

/* Made and written once, so that later nothing but the memory on trial can fail. */
static int64_t byte_open(void)
{
	int64_t fd = km_sys_memfd_create("kvmem-probe", 0), r;

	if (fd < 0)
		return fd;
	r = km_sys_ftruncate((int)fd, 1); /* which refuses where pwrite() would raise SIGXFSZ */
	if (r >= 0)
		r = km_sys_pwrite((int)fd, "", 1, 0);
	if (r == 1)
		return fd;
	km_sys_close((int)fd);
	return r < 0 ? r : -EIO;
}

static void ground_close(struct ground *g)
{
	km_sys_munmap(g->map, g->bytes);
	km_sys_munmap(g->other, g->bytes);
	km_sys_close(g->byte);
}

static int64_t ground_open(struct kvmem_caps *c, struct ground *g, int fd, size_t page)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	int64_t byte = byte_open(), r;
	void *p;

	if (byte < 0)
		return byte;
	*g = (struct ground){ .c = c, .page = page, .bytes = page, .byte = (int)byte };
	r = km_sys_mmap(g->bytes, PROT_READ | PROT_WRITE, flags, fd, 0, &p);
	if (r >= 0)
		g->map = p;
	if (r >= 0 && fd >= 0) {
		r = km_sys_mmap(g->bytes, PROT_READ | PROT_WRITE, flags, fd, 0, &p);
		if (r >= 0)
			g->other = p;
	}
	if (r < 0)
		ground_close(g);
	return r;
}

/* A memfd of one page of the given kind; -1 for anonymous memory. */
static int64_t ground_file(size_t page, unsigned int memfd_flags)
{
	int64_t fd = km_sys_memfd_create("kvmem-probe", memfd_flags), r;

	if (fd < 0)
		return fd;
	r = km_sys_ftruncate((int)fd, page);
	if (r >= 0)
		return fd;
	km_sys_close((int)fd);
	return r;
}

/* WP_ASYNC: the kernel clears the protection itself, so a write to a protected page goes through.
 */
static bool wp_async_works(const struct ground *g)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)g->map, .len = g->bytes },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int64_t fd = km_uffd_try(KM_UFFD_FEATURE_WP_ASYNC | KM_UFFD_FEATURE_WP_UNPOPULATED |
					 UFFD_FEATURE_SIGBUS,
				 NULL);
	bool works;

	if (km_cap_step(g->c, fd) < 0)
		return false;
	works = reg((int)fd, g, UFFDIO_REGISTER_MODE_WP) >= 0 &&
		km_cap_step(g->c, km_sys_ioctl((int)fd, UFFDIO_WRITEPROTECT, &wp)) >= 0;
	works = works && write_goes(g);
	km_sys_close((int)fd);
	return works;
}

static const struct {
	uint32_t id;
	const char *what;
	size_t page; /* 0: the base page */
	bool file;
	unsigned int memfd_flags;
} kinds[] = {
	{ KVMEM_CAP_UFFD_SHMEM, "shmem (memfd)", 0, true, 0 },
	{ KVMEM_CAP_UFFD_HUGETLB, "hugetlb memory", 2ul << 20, true,
	  MFD_HUGETLB | KM_MFD_HUGE_2MB },
	{ KVMEM_CAP_UFFD_ANON, "anonymous memory", 0, false, 0 },
};

static void say_modes(struct kvmem_caps *c, uint32_t id, const char *what, int64_t modes)
{
	if (modes > 0)
		km_cap_native(c, id, modes, "userfaultfd on %s raises:%s%s%s", what,
			      modes & KVMEM_UFFD_MISSING ? " missing" : "",
			      modes & KVMEM_UFFD_MINOR ? " minor" : "",
			      modes & KVMEM_UFFD_WP ? " write-protect" : "");
	else
		km_cap_none(c, id, 0, "UFFDIO_REGISTER on %s: no mode raises its fault", what);
}

static int64_t kind_open(struct kvmem_caps *c, size_t i, struct ground *g)
{
	size_t page = kinds[i].page ? kinds[i].page : km_sys_page_size();
	int64_t fd = kinds[i].file ? ground_file(page, kinds[i].memfd_flags) : -1, r;

	*g = (struct ground){ .c = c };
	r = kinds[i].file && fd < 0 ? fd : ground_open(c, g, (int)fd, page);
	km_sys_close((int)fd);
	return km_cap_step(c, r);
}

static void probe_kind(struct kvmem_caps *c, size_t i)
{
	struct ground g;
	int64_t r = kind_open(c, i, &g), modes;

	if (r < 0) {
		km_cap_unknown(c, kinds[i].id, r, "no %s to try userfaultfd on: %m%s",
			       kinds[i].what,
			       kinds[i].page ? "; reserve huge pages with vm.nr_hugepages" : "");
		return;
	}
	modes = modes_of(&g);
	ground_close(&g);
	if (modes < 0)
		km_cap_none(c, kinds[i].id, modes, "no userfaultfd: %s",
			    km_cap_need(c, KVMEM_CAP_UFFD)->reason);
	else
		say_modes(c, kinds[i].id, kinds[i].what, modes);
}

/* An ioctl of the API with a range that is not registered: ENOENT and the like say that it is
 * known. */
static void probe_range_ioctl(struct kvmem_caps *c, uint32_t id, uint64_t feature,
			      unsigned long request, const char *name, const char *since)
{
	uint64_t arg[5] = { 0 };
	int64_t fd = km_uffd_try(feature, NULL), r;

	if (fd < 0) {
		km_cap_none(c, id, fd, "%s: UFFDIO_API: %m; %s", name, since);
		return;
	}
	r = km_sys_ioctl((int)fd, request, arg);
	km_sys_close((int)fd);
	if (r == -EINVAL || r == -ENOENT) /* an empty range: the call is there and says so */
		km_cap_native(c, id, (int64_t)feature, "%s is offered", name);
	else
		km_cap_none(c, id, r, "%s: %m; %s", name, since);
}

void km_probe_uffd_modes(struct kvmem_caps *c)
{
	for (size_t i = 0; i < KM_ARRAY_SIZE(kinds); i++)
		if (kinds[i].id != KVMEM_CAP_UFFD_HUGETLB)
			probe_kind(c, i);
	probe_range_ioctl(c, KVMEM_CAP_UFFD_POISON, KM_UFFD_FEATURE_POISON, KM_UFFDIO_POISON,
			  "UFFDIO_POISON", "Linux 6.6 and later have it");
	probe_range_ioctl(c, KVMEM_CAP_UFFD_MOVE, KM_UFFD_FEATURE_MOVE, KM_UFFDIO_MOVE,
			  "UFFDIO_MOVE", "Linux 6.8 and later have it");
}

/* Apart from the others: it fails where no huge page is free, which says nothing lasting. */
void km_probe_uffd_hugetlb(struct kvmem_caps *c)
{
	for (size_t i = 0; i < KM_ARRAY_SIZE(kinds); i++)
		if (kinds[i].id == KVMEM_CAP_UFFD_HUGETLB)
			probe_kind(c, i);
}

void km_probe_uffd_async(struct kvmem_caps *c)
{
	int64_t async = 0;
	struct ground g;

	for (size_t i = 0; i < KM_ARRAY_SIZE(kinds); i++) {
		if (kind_open(c, i, &g) < 0)
			continue;
		if (wp_async_works(&g))
			async |= 1ll << i;
		ground_close(&g);
	}
	if (async)
		km_cap_native(c, KVMEM_CAP_UFFD_WP_ASYNC, async,
			      "UFFD_FEATURE_WP_ASYNC lets writes through on:"
			      "%s%s%s",
			      async & 1 ? " shmem" : "", async & 2 ? " hugetlb" : "",
			      async & 4 ? " anonymous" : "");
	else
		km_cap_none(c, KVMEM_CAP_UFFD_WP_ASYNC, 0,
			    "UFFD_FEATURE_WP_ASYNC is not offered; Linux 6.7 and later have it");
}

void km_probe_gmem_uffd(struct kvmem_caps *c)
{
	const struct km_cap_entry *shared = km_cap_need(c, KVMEM_CAP_GUEST_MEMFD_INIT_SHARED);
	int64_t vm, fd, r, modes;
	struct ground g;

	if (shared->support != KVMEM_SUPPORT_NATIVE) {
		km_cap_none(c, KVMEM_CAP_GUEST_MEMFD_UFFD, shared->error, "%s", shared->reason);
		return;
	}
	vm = km_caps_vm(c);
	fd = vm < 0 ? vm : km_gmem_create((int)vm, km_sys_page_size(), km_gmem_flags(c));
	r = fd < 0 ? fd : ground_open(c, &g, (int)fd, km_sys_page_size());
	km_sys_close((int)fd);
	if (r < 0) {
		km_cap_unknown(c, KVMEM_CAP_GUEST_MEMFD_UFFD, r,
			       "no guest_memfd to try userfaultfd on: %m");
		return;
	}
	modes = modes_of(&g);
	ground_close(&g);
	if (modes < 0)
		km_cap_none(c, KVMEM_CAP_GUEST_MEMFD_UFFD, modes, "no userfaultfd: %s",
			    km_cap_need(c, KVMEM_CAP_UFFD)->reason);
	else if (modes & KVMEM_UFFD_MISSING)
		say_modes(c, KVMEM_CAP_GUEST_MEMFD_UFFD, "the mapping of a guest_memfd", modes);
	else
		km_cap_fallback(
			c, KVMEM_CAP_GUEST_MEMFD_UFFD, 0, "a memfd behind the same region calls",
			"UFFDIO_REGISTER for missing pages on the mapping of a guest_memfd is "
			"refused or "
			"raises nothing: it is a patch series, in no released kernel so far");
}
