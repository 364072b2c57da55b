// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* File input straight into guest memory: io_uring and O_DIRECT. */
#include "caps/caps_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <string.h>
#include <sys/mman.h>

/* Memory as a guest's would be: a guest_memfd where the host can map one, else a memfd. */
static int64_t guest_page(struct kvmem_caps *c, size_t bytes, void **ret_page,
			  const char **ret_what)
{
	int64_t fd = -1, vm, r;

	*ret_what = "a memfd";
	if (km_cap_is_native(c, KVMEM_CAP_GUEST_MEMFD_GUP)) {
		vm = km_caps_vm(c);
		fd = vm < 0 ? vm : km_gmem_create((int)vm, bytes, km_gmem_flags(c));
		km_cap_step(c, fd);
		*ret_what = "a guest_memfd";
	}
	if (fd < 0) {
		*ret_what = "a memfd";
		fd = km_sys_memfd_create("kvmem-probe", 0);
		if (fd >= 0 && km_sys_ftruncate((int)fd, bytes) < 0) {
			km_sys_close((int)fd);
			return -ENOMEM;
		}
	}
	if (fd < 0)
		return fd;
	r = km_sys_mmap(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, 0, ret_page);
	km_sys_close((int)fd);
	return r;
}

static void no_uring(struct kvmem_caps *c, int64_t err)
{
	const char *why = err == -ENOSYS  ? "the kernel has no CONFIG_IO_URING, or seccomp hides it"
			  : err == -EPERM ? "kernel.io_uring_disabled or seccomp forbids it"
			  : err == -ENOMEM ? "RLIMIT_MEMLOCK is too small"
					   : "see io_uring_setup(2)";

	km_cap_fallback(c, KVMEM_CAP_IO_URING, err, "pread()", "io_uring_setup(): %m: %s", why);
	km_cap_none(c, KVMEM_CAP_IO_URING_FIXED, err, "no io_uring: %m");
}

static void probe_fixed(struct kvmem_caps *c, struct io_uring *ring)
{
	size_t bytes = km_sys_page_size();
	struct iovec iov = { .iov_len = bytes };
	const char *what;
	int64_t r = guest_page(c, bytes, &iov.iov_base, &what);

	if (r < 0) {
		km_cap_unknown(c, KVMEM_CAP_IO_URING_FIXED, r, "no guest memory to register: %m");
		return;
	}
	r = km_sys_uring_register_buffers(ring, &iov, 1);
	if (r < 0)
		km_cap_none(c, KVMEM_CAP_IO_URING_FIXED, r, "IORING_REGISTER_BUFFERS over %s: %m%s",
			    what, r == -ENOMEM ? "; raise RLIMIT_MEMLOCK" : "");
	else
		km_cap_native(c, KVMEM_CAP_IO_URING_FIXED, 0, "IORING_REGISTER_BUFFERS takes %s",
			      what);
	km_sys_munmap(iov.iov_base, bytes);
}

void km_probe_uring(struct kvmem_caps *c)
{
	static const int ops[] = { IORING_OP_READ, IORING_OP_READ_FIXED, IORING_OP_WRITE };
	struct io_uring ring;
	struct io_uring_params p;
	int64_t r;

	memset(&p, 0, sizeof(p));
	r = km_sys_uring_init(4, &ring, &p);
	if (r < 0) {
		no_uring(c, r);
		return;
	}
	for (size_t i = 0; i < KM_ARRAY_SIZE(ops) && r >= 0; i++)
		r = km_sys_uring_probe_op(&ring, ops[i]);
	if (r < 0)
		km_cap_fallback(c, KVMEM_CAP_IO_URING, r, "pread()",
				"io_uring lacks one of READ, READ_FIXED and WRITE: %m");
	else
		km_cap_native(c, KVMEM_CAP_IO_URING, p.features,
			      "io_uring with READ, READ_FIXED and WRITE, features 0x%x",
			      p.features);
	probe_fixed(c, &ring);
	km_sys_uring_exit(&ring);
}

/* A file without a name on a file system that takes O_DIRECT, and how far it got. */
static int64_t direct_file(const char **ret_dir)
{
	static const char *const dirs[] = { "/var/tmp", "/tmp", "." };
	int64_t fd = -ENOENT;

	for (size_t i = 0; i < KM_ARRAY_SIZE(dirs); i++) {
		*ret_dir = dirs[i];
		fd = km_sys_open(dirs[i], O_TMPFILE | O_RDWR | O_DIRECT);
		if (fd >= 0)
			return fd;
	}
	return fd;
}

void km_probe_odirect(struct kvmem_caps *c)
{
	size_t bytes = km_sys_page_size() > 4096 ? km_sys_page_size() : 4096;
	const char *dir, *what;
	int64_t fd = direct_file(&dir), r;
	void *page;

	if (fd < 0) {
		km_cap_unknown(c, KVMEM_CAP_ODIRECT_GUEST_MEMORY, fd,
			       "no file system to try O_DIRECT on: an "
			       "O_TMPFILE in /var/tmp, /tmp and the working directory: %m");
		return;
	}
	r = km_sys_ftruncate((int)fd, bytes);
	if (r >= 0)
		r = guest_page(c, bytes, &page, &what);
	if (r >= 0) {
		/* Written out of guest memory first, so that the read meets data and not a hole. */
		r = km_sys_pwrite((int)fd, page, bytes, 0);
		if (r >= 0)
			r = km_sys_pread((int)fd, page, bytes, 0);
		km_sys_munmap(page, bytes);
	}
	km_sys_close((int)fd);
	if (r < 0)
		km_cap_none(c, KVMEM_CAP_ODIRECT_GUEST_MEMORY, r,
			    "O_DIRECT between a file in %s and guest memory: %m", dir);
	else
		km_cap_native(
			c, KVMEM_CAP_ODIRECT_GUEST_MEMORY, 0,
			"O_DIRECT works between a file in %s and %s; other file systems may differ",
			dir, what);
}
