// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Files: whole reads and writes, and files that get their name when they are complete. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/internal.h"

int ki_place_open(const char *call, int dir, const char *path, struct ki_place *ret)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	char folder[4096] = ".";

	if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
		return ki_fail(EINVAL, "%s: path '%s' names no file", call, path);
	if (strlen(name) >= sizeof(ret->name))
		return ki_fail(ENAMETOOLONG, "%s: the name of '%s' is longer than %zu bytes", call,
			       path, sizeof(ret->name) - 1);
	if (slash && (size_t)(slash - path) >= sizeof(folder))
		return ki_fail(ENAMETOOLONG, "%s: the path '%.40s...' is too long", call, path);
	if (slash) /* of "/name" the root */
		snprintf(folder, sizeof(folder), "%.*s", slash == path ? 1 : (int)(slash - path),
			 path);
	ret->dir = openat(dir, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (ret->dir < 0)
		return ki_fail(errno, "%s: opening the folder of '%s': %m", call, path);
	snprintf(ret->name, sizeof(ret->name), "%s", name);
	return 0;
}

void ki_place_close(struct ki_place *p)
{
	close(p->dir);
}

int ki_read_at(int fd, uint64_t at, void *buf, uint64_t bytes, const char *what)
{
	while (bytes) {
		ssize_t n = pread(fd, buf, ki_min(bytes, 1u << 30), (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return ki_fail(errno, "%s: reading at byte %" PRIu64 ": %m", what, at);
		if (!n)
			return ki_fail(EBADMSG,
				       "%s: ends at byte %" PRIu64 ", %" PRIu64
				       " bytes before it should",
				       what, at, bytes);
		buf = (char *)buf + n;
		at += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

/* Beyond RLIMIT_FSIZE the kernel does not just refuse: SIGXFSZ ends the program. */
int ki_check_length(uint64_t bytes, const char *what)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_FSIZE, &limit) || bytes <= limit.rlim_cur)
		return 0;
	return ki_fail(EFBIG, "%s: %" PRIu64 " bytes are more than RLIMIT_FSIZE, %" PRIu64, what,
		       bytes, (uint64_t)limit.rlim_cur);
}

int ki_write_at(int fd, uint64_t at, const void *buf, uint64_t bytes, const char *what)
{
	int r = ki_check_length(at + bytes, what);

	if (r)
		return r;
	while (bytes) {
		ssize_t n = pwrite(fd, buf, ki_min(bytes, 1u << 30), (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return ki_fail(errno, "%s: writing at byte %" PRIu64 ": %m", what, at);
		buf = (const char *)buf + n;
		at += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

/* Under a name that nobody has. */
static int make_temporary(struct ki_new_file *f, int (*make)(struct ki_new_file *f))
{
	uint64_t random;

	for (unsigned int tries = 0; tries < 100; tries++) {
		if (getrandom(&random, sizeof(random), 0) != sizeof(random))
			break;
		snprintf(f->temporary, sizeof(f->temporary), ".kvmem-%016" PRIx64 ".tmp", random);
		if (make(f) >= 0)
			return 0;
		if (errno != EEXIST)
			break;
	}
	f->temporary[0] = '\0';
	return -1;
}

static int create_named(struct ki_new_file *f)
{
	return f->fd = openat(f->dir, f->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
}

/* Before Linux 6.10, and without CAP_DAC_READ_SEARCH, a file without a name is linked by its name in /proc. */
static int link_unnamed(int fd, int dir, const char *name)
{
	char proc[40];

	if (!linkat(fd, "", dir, name, AT_EMPTY_PATH))
		return 0;
	if (errno == EEXIST)
		return -1;
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	return linkat(AT_FDCWD, proc, dir, name, AT_SYMLINK_FOLLOW);
}

static int link_temporary(struct ki_new_file *f)
{
	return link_unnamed(f->fd, f->dir, f->temporary);
}

int ki_new_file(int dir, const char *what, struct ki_new_file *ret)
{
	*ret = (struct ki_new_file){ .dir = dir };
	ret->fd = openat(dir, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	/* Where there is no O_TMPFILE: network file systems, old overlays. */
	if (ret->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL))
		make_temporary(ret, create_named);
	return ret->fd < 0 ? ki_fail(errno, "%s: making a file: %m", what) : 0;
}

int ki_new_file_name(struct ki_new_file *f, const char *name, bool replace)
{
	int r;

	if (replace && !f->temporary[0] && make_temporary(f, link_temporary))
		return ki_fail(errno, "naming '%s': %m", name);
	if (replace)
		r = renameat(f->dir, f->temporary, f->dir, name);
	else if (f->temporary[0])
		r = linkat(f->dir, f->temporary, f->dir, name, 0);
	else
		r = link_unnamed(f->fd, f->dir, name);
	if (r)
		return ki_fail(errno, "naming '%s': %m", name);
	if (replace)
		f->temporary[0] = '\0';
	return 0;
}

void ki_new_file_end(struct ki_new_file *f)
{
	if (f->fd < 0)
		return;
	if (f->temporary[0])
		unlinkat(f->dir, f->temporary, 0);
	close(f->fd);
	f->fd = -1;
}
