// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The files of a region: made, sealed, or a description of the one given. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>

#include "region/region.h"
#include "base/uapi/mm.h"

static int fail_file(const struct kvmem_region *r, const char *what, int64_t err)
{
	return km_fail((int)-err, "region of 0x%" PRIx64 " bytes: %s: %m%s", r->room, what,
		       err == -EFBIG
			       ? "; RLIMIT_FSIZE (ulimit -f) is smaller, and holds for memfds "
				 "too: raise it, or use a guest_memfd or anonymous memory"
			       : "");
}

static int make_guest_memfd(const struct kvmem_region *r, const char *what, int *ret_fd)
{
	int64_t fd = km_gmem_create(r->vm->fd, r->room, r->plan.gmem_flags);

	if (fd < 0)
		return fail_file(r, what, fd);
	*ret_fd = (int)fd;
	return 0;
}

static int fail_seals(const struct kvmem_region *r, unsigned int seals, int64_t err)
{
	return km_fail((int)-err,
		       "region of 0x%" PRIx64 " bytes: adding the seals 0x%x to its file: %m%s",
		       r->bytes, seals,
		       err == -EPERM ? "; the file forbids further seals (F_SEAL_SEAL): it is on a "
				       "file system, or was made without MFD_ALLOW_SEALING"
		       : err == -EINVAL ? "; Linux 6.3 and later have F_SEAL_EXEC"
					: "");
}

/* A file that a peer could cut short is SIGBUS for everybody who has it mapped. */
static unsigned int seals_wanted(const struct kvmem_region_opts *o)
{
	unsigned int seals = o->seals == KVMEM_SEAL_NONE ? 0 : o->seals;

	if ((!o->seals || seals) && !(o->flags & KVMEM_REGION_FD))
		seals |= KVMEM_SEAL_SHRINK | KVMEM_SEAL_GROW;
	return seals;
}

static int seal(const struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	unsigned int seals = seals_wanted(o);
	int64_t err = seals ? km_sys_fcntl_add_seals(r->fd, seals) : 0;

	return err < 0 ? fail_seals(r, seals, err) : 0;
}

/* Could they be added? As far as that can be known without adding them. */
static int check_seals(const struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	unsigned int seals = seals_wanted(o);
	int64_t have = seals ? km_sys_fcntl_seals(o->fd) : 0;

	if (have < 0)
		return fail_seals(r, seals, have);
	return have & KVMEM_SEAL_SEAL && seals & ~have ? fail_seals(r, seals, -EPERM) : 0;
}

static int make_memfd(struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	unsigned int flags = MFD_ALLOW_SEALING;
	int64_t fd, err;

	if (r->plan.backing == KVMEM_BACKING_HUGETLB)
		flags |= MFD_HUGETLB |
			 (r->plan.page_size == 1ull << 30 ? KM_MFD_HUGE_1GB : KM_MFD_HUGE_2MB);
	fd = km_sys_memfd_create("kvmem", flags);
	if (fd < 0)
		return fail_file(r, "memfd_create", fd);
	r->fd = (int)fd;
	err = km_sys_ftruncate(r->fd, r->room);
	return err < 0 ? fail_file(r, "ftruncate of a memfd", err) : seal(r, o);
}

/*
 * A description of our own: without the caller's O_APPEND, which makes pwrite() ignore the offset,
 * without O_DIRECT, and with a position that nobody shares. Of a guest_memfd there is no other, and
 * it needs none.
 */
static int open_given(struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	int64_t mode = km_sys_fcntl_getfl(o->fd), fd = -ENXIO;
	int err = check_seals(r, o);
	char path[32];

	if (err)
		return err;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", o->fd);
	if (r->plan.backing != KVMEM_BACKING_GUEST_MEMFD)
		fd = km_sys_open(path, O_RDWR);
	r->own_description = fd >= 0;
	if (fd < 0 && mode >= 0 && mode & (O_APPEND | O_DIRECT))
		return km_fail(
			EBADF,
			"kvmem_region_opts.fd %d is open with O_APPEND or O_DIRECT and cannot "
			"be opened again without through %s (errno %d): pass one that is not",
			o->fd, path, (int)-fd);
	if (fd < 0)
		fd = km_sys_dup(o->fd);
	if (fd < 0)
		return fail_file(r, "duplicate of the file descriptor given", fd);
	r->fd = (int)fd;
	return 0;
}

int km_region_seal_given(const struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	return o->flags & KVMEM_REGION_FD ? seal(r, o) : 0;
}

int km_region_make_files(struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	int err = 0;

	r->own_description = true;
	if (o->flags & KVMEM_REGION_FD)
		err = open_given(r, o);
	else if (r->plan.backing == KVMEM_BACKING_GUEST_MEMFD && !r->plan.shared_backing)
		err = make_guest_memfd(r, "KVM_CREATE_GUEST_MEMFD", &r->fd);
	else if (r->plan.backing != KVMEM_BACKING_ANONYMOUS && !r->own_mapping && !r->clone)
		err = make_memfd(r, o);
	/* Private pages are nothing the host can map: they have a guest_memfd of their own. */
	if (!err && r->plan.shared_backing)
		err = make_guest_memfd(r, "for private pages: KVM_CREATE_GUEST_MEMFD",
				       &r->private_fd);
	return err;
}
