// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A userfaultfd that another process gives: is it one, and what can it do? */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/uapi/userfaultfd.h"
#include "region/region.h"

/* Of fdinfo: UFFDIO_API has been called. */
#define INITIALIZED (1ull << 31)

static int check_kind(int given)
{
	char path[32], link[64] = "";

	if (km_sys_fcntl_getfl(given) < 0)
		return km_fail(EBADF, "kvmem_remote_opts.uffds: descriptor %d is not open", given);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", given);
	if (km_sys_readlink(path, link, sizeof(link) - 1) < 0)
		return km_fail(EOPNOTSUPP,
			       "/proc/self/fd cannot be read, which tells what the descriptors of "
			       "another process are");
	if (strcmp(link, "anon_inode:[userfaultfd]") != 0)
		return km_fail(EBADF, "kvmem_remote_opts.uffds: descriptor %d is not a userfaultfd",
			       given);
	return 0;
}

/* The line "API:\taa:<features>:<ioctls>", all in hexadecimal digits. */
static int parse_fdinfo(const char *text, uint64_t *ret_features, uint64_t *ret_ioctls)
{
	const char *at = strstr(text, "API:");
	char *end;

	if (!at)
		return -EINVAL;
	if (strtoull(at + 4, &end, 16) != UFFD_API || *end != ':')
		return -EINVAL;
	*ret_features = strtoull(end + 1, &end, 16);
	if (*end != ':')
		return -EINVAL;
	*ret_ioctls = strtoull(end + 1, &end, 16);
	return 0;
}

static int read_fdinfo(int given, uint64_t *ret_features, uint64_t *ret_ioctls)
{
	char path[40], text[1024];
	int64_t fd, n;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", given);
	fd = km_sys_open(path, O_RDONLY);
	n = fd < 0 ? fd : km_sys_read((int)fd, text, sizeof(text) - 1);
	if (fd >= 0)
		km_sys_close((int)fd);
	if (n < 0)
		return (int)n;
	text[n] = 0;
	return parse_fdinfo(text, ret_features, ret_ioctls);
}

static int check_features(int given, uint64_t features)
{
	const uint64_t refused = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP;

	if (!(features & INITIALIZED))
		return km_fail(EINVAL,
			       "kvmem_remote_opts.uffds: UFFDIO_API has not been called on "
			       "userfaultfd %d",
			       given);
	if (!(features & refused))
		return 0;
	return km_fail(EOPNOTSUPP,
		       "kvmem_remote_opts.uffds: userfaultfd %d reports %s events, which are not "
		       "served: leave UFFD_FEATURE_EVENT_FORK and _REMAP out of UFFDIO_API",
		       given, features & UFFD_FEATURE_EVENT_FORK ? "FORK" : "REMAP");
}

/* A read that is too short for an event takes none, and tells whether RWF_NOWAIT is known (Linux 6.10). */
static bool reads_nowait(int fd)
{
	char byte;

	return km_sys_read_nowait(fd, &byte, sizeof(byte)) == -EINVAL;
}

static int check_blocking(int given, bool blocking)
{
	if (!blocking || reads_nowait(given))
		return 0;
	return km_fail(EOPNOTSUPP,
		       "kvmem_remote_opts.uffds: userfaultfd %d was opened without O_NONBLOCK, and "
		       "this kernel (before 6.10) cannot read such a one without waiting",
		       given);
}

int km_remote_take_fd(struct km_remote_uffd *u, int given, uint64_t *ret_ioctls)
{
	struct stat st;
	int64_t fl, fd;
	int r = check_kind(given);

	if (r)
		return r;
	r = read_fdinfo(given, &u->features, ret_ioctls);
	if (r)
		return km_fail(
			EOPNOTSUPP,
			"/proc/self/fdinfo/%d, which tells with what features userfaultfd %d "
			"was made, cannot be read: %s",
			given, given, strerror(-r));
	r = check_features(given, u->features);
	if (r)
		return r;
	fl = km_sys_fcntl_getfl(given);
	u->blocking = fl >= 0 && !(fl & O_NONBLOCK);
	r = check_blocking(given, u->blocking);
	if (r)
		return r;
	fd = km_sys_fstat(given, &st);
	if (fd >= 0)
		fd = km_sys_dup(given);
	if (fd < 0)
		return km_fail((int)-fd, "duplicating userfaultfd %d: %m", given);
	u->dev = st.st_dev;
	u->ino = st.st_ino;
	u->fd = (int)fd;
	return 0;
}

int km_remote_ping(const struct km_remote_uffd *u, uint64_t addr, uint64_t bytes)
{
	struct uffdio_copy copy = { .dst = addr, .len = bytes };
	size_t page = km_sys_page_size();
	void *nothing;
	int64_t r;

	r = km_sys_mmap(page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
			&nothing);
	if (r < 0)
		return (int)r;
	copy.src = (uintptr_t)nothing;
	r = km_sys_ioctl(u->fd, UFFDIO_COPY, &copy);
	km_sys_munmap(nothing, page);
	/* Any other answer of the process's memory is one that it is there. */
	return r == -ESRCH || r == -ENOENT || r == -EINVAL || r == -EAGAIN ? (int)r : 0;
}
