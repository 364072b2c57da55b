// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * guest_memfd: which creation flags do what on this kernel, tried on a few pages. The numbers of
 * the flags beyond the first two differ between trees, so a flag is known by what it changes.
 */
#include "caps/caps_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"

#define PAGES 4u

/* A small guest_memfd to try things on. */
struct trial {
	struct kvmem_caps *c;
	int fd;
	uint8_t *map;
	size_t page;
};

int64_t km_gmem_create(int vm_fd, uint64_t bytes, uint64_t flags)
{
	struct km_kvm_create_guest_memfd g = { .size = bytes, .flags = flags };
	int64_t fd = km_sys_ioctl(vm_fd, KM_KVM_CREATE_GUEST_MEMFD, &g), r;

	if (fd < 0)
		return fd;
	r = km_sys_fcntl_cloexec((int)fd);
	if (r >= 0)
		return fd;
	km_sys_close((int)fd);
	return r;
}

static int64_t trial_open(struct kvmem_caps *c, struct trial *t, int vm, uint64_t flags)
{
	int64_t r;
	void *map;

	t->c = c;
	t->page = km_sys_page_size();
	r = km_cap_step(c, km_gmem_create(vm, PAGES * t->page, flags));
	if (r < 0)
		return r;
	t->fd = (int)r;
	t->map = NULL;
	r = km_sys_mmap(PAGES * t->page, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0, &map);
	if (km_cap_step(c, r) >= 0)
		t->map = map;
	return 0;
}

static void trial_close(struct trial *t)
{
	km_sys_munmap(t->map, PAGES * t->page);
	km_sys_close(t->fd);
}

/* Does an access through the mapping fault in a page? The kernel makes it, so that no SIGBUS comes.
 */
static int64_t touch(const struct trial *t, const void *addr)
{
	int64_t fd = km_sys_memfd_create("kvmem-probe", 0), r;

	if (km_cap_step(t->c, fd) < 0)
		return fd;
	r = km_sys_ftruncate((int)fd, 1);
	if (r >= 0)
		r = km_sys_pwrite((int)fd, addr, 1, 0);
	km_sys_close((int)fd);
	return km_cap_step(t->c, r) < 0 ? r : 0;
}

static void none_of_it(struct kvmem_caps *c, int64_t err, const char *why)
{
	static const uint32_t ids[] = {
		KVMEM_CAP_GUEST_MEMFD_MMAP,	  KVMEM_CAP_GUEST_MEMFD_INIT_SHARED,
		KVMEM_CAP_GUEST_MEMFD_GUP,	  KVMEM_CAP_GUEST_MEMFD_WRITE,
		KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG,
	};

	for (size_t i = 0; i < KM_ARRAY_SIZE(ids); i++)
		km_cap_none(c, ids[i], err, "%s", why);
}

/* The smallest creation flags with which the file can be mapped and faulted in the host. */
static int64_t find_shared(struct kvmem_caps *c, int vm, uint64_t *ret_flags)
{
	static const uint64_t sets[] = {
		0,
		KM_GUEST_MEMFD_FLAG_MMAP,
		KM_GUEST_MEMFD_FLAG_MMAP | KM_GUEST_MEMFD_FLAG_INIT_SHARED,
	};
	int64_t err = -EOPNOTSUPP;
	bool mapped = false;

	for (size_t i = 0; i < KM_ARRAY_SIZE(sets); i++) {
		struct trial t;
		int64_t r = trial_open(c, &t, vm, sets[i]);

		if (r < 0) {
			err = r;
			continue;
		}
		if (t.map && !mapped) {
			mapped = true;
			km_cap_native(c, KVMEM_CAP_GUEST_MEMFD_MMAP, (int64_t)sets[i],
				      "mmap() works on a guest_memfd created with flags 0x%llx",
				      (unsigned long long)sets[i]);
		}
		r = t.map ? touch(&t, t.map) : -ENODEV;
		trial_close(&t);
		if (!r) {
			km_cap_native(
				c, KVMEM_CAP_GUEST_MEMFD_INIT_SHARED, (int64_t)sets[i],
				"the host can fault in pages of one created with flags 0x%llx",
				(unsigned long long)sets[i]);
			*ret_flags = sets[i];
			return 0;
		}
		err = r;
	}
	return err;
}

static void probe_gup(struct kvmem_caps *c, int vm, uint64_t flags)
{
	struct trial t;
	int64_t r = trial_open(c, &t, vm, flags);

	if (r >= 0) {
		r = km_sys_madvise(t.map, t.page, KM_MADV_POPULATE_WRITE);
		trial_close(&t);
	}
	if (r < 0)
		km_cap_none(
			c, KVMEM_CAP_GUEST_MEMFD_GUP, r,
			"MADV_POPULATE_WRITE on the mapping of a "
			"guest_memfd: %m; its pages cannot be pinned, so no O_DIRECT into them");
	else
		km_cap_native(c, KVMEM_CAP_GUEST_MEMFD_GUP, 0,
			      "MADV_POPULATE_WRITE works on the mapping of a guest_memfd");
}

/* ---- write population ---- */

static bool content_is(const uint8_t *p, size_t n, uint8_t value)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != value)
			return false;
	return true;
}

/* What pwrite() does on this file: enum kvmem_write_rev, or -errno when it does not work at all. */
static int64_t write_behaviour(struct trial *t)
{
	uint8_t *buf = km_sys_alloc(t->page);
	int64_t r, partial, again;

	if (!buf)
		return -ENOMEM;
	memset(buf, 0x5a, t->page);
	r = km_sys_pwrite(t->fd, buf, t->page, 0);
	if (r >= 0 &&
	    ((size_t)r != t->page || touch(t, t->map) || !content_is(t->map, t->page, 0x5a)))
		r = -EIO;
	if (r < 0) {
		km_sys_free(buf);
		return r;
	}
	partial = km_sys_pwrite(t->fd, buf, 100, t->page);
	memset(buf, 0xa5, t->page);
	again = km_sys_pwrite(t->fd, buf, t->page, 0);
	km_sys_free(buf);
	if (again < 0)
		return again == -ENOSPC || again == -EEXIST ? KVMEM_WRITE_ALIGNED_ONCE : again;
	if (!content_is(t->map, t->page, 0xa5))
		return -EIO;
	return partial == 100 ? KVMEM_WRITE_ANY : KVMEM_WRITE_ALIGNED;
}

static int64_t try_write(struct kvmem_caps *c, int vm, uint64_t flags, bool need_gup)
{
	struct trial t;
	int64_t r = trial_open(c, &t, vm, flags);

	if (r < 0)
		return r;
	if (!t.map || touch(&t, t.map + 2 * t.page))
		r = -ENODEV;
	else if (need_gup && km_cap_step(c, km_sys_madvise(t.map + 3 * t.page, t.page,
							   KM_MADV_POPULATE_WRITE)) < 0)
		r = -EFAULT; /* this flag takes away more than it gives */
	else
		r = write_behaviour(&t);
	trial_close(&t);
	return r;
}

static const char *const rev_text[] = {
	[KVMEM_WRITE_ALIGNED_ONCE] = "whole pages only, a page already there is ENOSPC",
	[KVMEM_WRITE_ANY] = "any range, overwrites pages already there",
	[KVMEM_WRITE_ALIGNED] = "whole pages only, overwrites pages already there",
};

/* No flag, then each further flag bit by itself: the first with which pwrite() really writes. */
static void probe_write(struct kvmem_caps *c, int vm, uint64_t base)
{
	bool gup = km_cap_is_native(c, KVMEM_CAP_GUEST_MEMFD_GUP);
	int64_t first_err = 0;

	for (int bit = 1; bit < 16; bit++) {
		uint64_t flag = bit == 1 ? 0 : 1ull << bit;
		int64_t rev = try_write(c, vm, base | flag, gup);

		if (rev > 0) {
			km_cap_native(c, KVMEM_CAP_GUEST_MEMFD_WRITE, rev,
				      "pwrite() works with creation flags 0x%llx: %s",
				      (unsigned long long)(base | flag), rev_text[rev]);
			km_cap_native(c, KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG, (int64_t)flag,
				      "found by trying each flag: 0x%llx makes pwrite() work%s",
				      (unsigned long long)flag, flag ? "" : " (none is needed)");
			return;
		}
		if (!flag)
			first_err = rev;
	}
	km_cap_fallback(c, KVMEM_CAP_GUEST_MEMFD_WRITE, first_err,
			"MADV_POPULATE_WRITE and a copy through the mapping",
			"pwrite() on a guest_memfd with any creation flag this kernel takes: %m; "
			"write population "
			"is a patch series, in no released kernel so far");
	km_cap_none(c, KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG, first_err,
		    "no creation flag makes pwrite() work");
}

/* ---- all of it ---- */

static void no_shared(struct kvmem_caps *c, int64_t err)
{
	km_cap_none(c, KVMEM_CAP_GUEST_MEMFD_MMAP, err,
		    "no creation flags give a guest_memfd that mmap() "
		    "takes: %m; Linux 6.18 and later have GUEST_MEMFD_FLAG_MMAP");
	km_cap_none(c, KVMEM_CAP_GUEST_MEMFD_INIT_SHARED, err,
		    "host accesses to a guest_memfd of this VM fail: %m");
	none_of_it(c, err, "the host cannot reach the pages of a guest_memfd of this VM");
}

void km_probe_gmem(struct kvmem_caps *c)
{
	int64_t vm = km_caps_vm(c), fd, advertised, err;
	uint64_t flags = 0;

	if (vm < 0) {
		km_cap_unknown(c, KVMEM_CAP_GUEST_MEMFD, vm,
			       "no VM to create a guest_memfd on: %m");
		none_of_it(c, vm, "no VM to create a guest_memfd on");
		return;
	}
	fd = km_gmem_create((int)vm, km_sys_page_size(), 0);
	if (fd < 0) {
		km_cap_none(
			c, KVMEM_CAP_GUEST_MEMFD, fd,
			"KVM_CREATE_GUEST_MEMFD on a VM of type %llu: %m; "
			"Linux 6.18 and later allow it on ordinary VMs (CONFIG_KVM_GUEST_MEMFD)",
			(unsigned long long)c->vm_type);
		none_of_it(c, fd, "this VM has no guest_memfd");
		return;
	}
	km_sys_close((int)fd);
	advertised = km_cap_step(
		c, km_sys_ioctl_val((int)vm, KVM_CHECK_EXTENSION, KM_KVM_CAP_GUEST_MEMFD_FLAGS));
	km_cap_native(c, KVMEM_CAP_GUEST_MEMFD, advertised > 0 ? advertised : 0,
		      "KVM_CREATE_GUEST_MEMFD works; flags advertised: 0x%llx",
		      (unsigned long long)(advertised > 0 ? advertised : 0));
	err = find_shared(c, (int)vm, &flags);
	if (err < 0) {
		no_shared(c, err);
		return;
	}
	probe_gup(c, (int)vm, flags);
	probe_write(c, (int)vm, flags);
}

uint64_t km_gmem_flags(struct kvmem_caps *c)
{
	const struct km_cap_entry *shared = km_cap_need(c, KVMEM_CAP_GUEST_MEMFD_INIT_SHARED);
	uint64_t flags = 0;

	if (shared->support == KVMEM_SUPPORT_NATIVE)
		flags |= (uint64_t)shared->value;
	if (km_cap_is_native(c, KVMEM_CAP_GUEST_MEMFD_WRITE))
		flags |= (uint64_t)km_cap_need(c, KVMEM_CAP_GUEST_MEMFD_WRITE_FLAG)->value;
	return flags;
}
