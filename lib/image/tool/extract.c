// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* extract: all of an image as a raw file. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool.h"

static int write_all(int fd, const char *buf, uint64_t bytes, uint64_t at)
{
	while (bytes) {
		ssize_t n = pwrite(fd, buf, bytes, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return kvmem_error_set(errno, "writing at byte %" PRIu64 ": %m", at);
		buf += n;
		at += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

static int extract_to(struct kvmem_image *from, int fd, uint64_t bytes)
{
	struct kvmem_image_run run = KVMEM_IMAGE_RUN_INIT;
	static char buf[STEP];
	int r = 0;

	if (ftruncate(fd, (off_t)bytes))
		return kvmem_error_set(errno, "a file of %" PRIu64 " bytes: %m", bytes);
	for (uint64_t at = 0; at < bytes; at = run.offset + run.bytes) {
		r = kvmem_image_next_run(from, at, &run);
		if (r < 0)
			return r;
		for (uint64_t p = 0, n; run.kind != KVMEM_IMAGE_ZERO && p < run.bytes; p += n) {
			n = run.bytes - p < STEP ? run.bytes - p : STEP;
			r = kvmem_image_read(from, run.offset + p, buf, n);
			if (!r)
				r = write_all(fd, buf, n, run.offset + p);
			if (r)
				return r;
			progress("extract", run.offset + p + n, bytes);
		}
	}
	progress("extract", bytes, bytes);
	return fsync(fd) ? kvmem_error_set(errno, "to the disk: %m") : 0;
}

/* In the folder of path, without a name: nothing of it stays, however the program ends. */
static int open_unnamed(const char *path)
{
	const char *slash = strrchr(path, '/');
	char folder[4096] = ".";

	if (slash) /* of "/name" the root */
		snprintf(folder, sizeof(folder), "%.*s", slash == path ? 1 : (int)(slash - path),
			 path);
	return open(folder, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
}

static int link_unnamed(int fd, const char *path)
{
	char proc[40];

	/* Without CAP_DAC_READ_SEARCH, and before Linux 6.10, it has to be its name in /proc. */
	if (!linkat(fd, "", AT_FDCWD, path, AT_EMPTY_PATH))
		return 0;
	if (errno == EEXIST)
		return -1;
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	return linkat(AT_FDCWD, proc, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
}

/* It gets its name when it is complete; never over a file that is there: somebody may have it mapped. */
static int extract_as(struct kvmem_image *from, const char *path, uint64_t bytes)
{
	char temporary[4096];
	bool named = false;
	int fd, r;

	if (snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= (int)sizeof(temporary))
		return kvmem_error_set(ENAMETOOLONG, "'%s' is too long", path);
	if (!access(path, F_OK))
		return kvmem_error_set(EEXIST, "'%s' exists", path);
	fd = open_unnamed(path);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
		fd = mkostemp(temporary, O_CLOEXEC); /* this file system has no O_TMPFILE */
		named = fd >= 0;
	}
	if (fd < 0)
		return kvmem_error_set(errno, "'%s': %m", path);
	r = extract_to(from, fd, bytes);
	if (!r && (named ? link(temporary, path) : link_unnamed(fd, path)))
		r = kvmem_error_set(errno, "'%s': %m", path);
	if (named)
		unlink(temporary);
	close(fd);
	return r;
}

int do_extract(char **paths)
{
	struct kvmem_image_info i = KVMEM_IMAGE_INFO_INIT;
	struct kvmem_image *from;
	int r;

	signal(SIGXFSZ, SIG_IGN); /* a limit of the file's length is an error like others */
	if (kvmem_image_open(paths[0], NULL, &from))
		return failed();
	kvmem_image_get_info(from, &i);
	r = extract_as(from, paths[1], i.bytes);
	if (r)
		failed();
	kvmem_image_close(from);
	return r ? 1 : 0;
}
