/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#define _GNU_SOURCE 1
#include "image.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE	      UINT64_C(4096)
#define SMALLEST_FILE 4096

struct image {
	int fd;
	uint64_t at, bytes;
};

static int copy_bytes(struct image *image, int from, uint64_t bytes)
{
	static char chunk[1 << 20];

	while (bytes) {
		size_t want = bytes < sizeof(chunk) ? (size_t)bytes : sizeof(chunk);
		ssize_t got = read(from, chunk, want);

		if (got <= 0)
			return got ? -errno : 0;
		if (pwrite(image->fd, chunk, (size_t)got, (off_t)image->at) != got)
			return errno ? -errno : -ENOSPC;
		image->at += (uint64_t)got;
		bytes -= (uint64_t)got;
	}
	return 0;
}

/* A file, then a hole a third as long: one quarter of the whole is holes. */
static int add_file(struct image *image, int from, uint64_t bytes)
{
	uint64_t hole = (bytes / 3 + PAGE - 1) & ~(PAGE - 1), room = image->bytes - image->at;
	int ret = copy_bytes(image, from, bytes < room ? bytes : room);

	if (ret)
		return ret;
	image->at = (image->at + PAGE - 1) & ~(PAGE - 1);
	room = image->bytes - image->at;
	image->at += hole < room ? hole : room;
	return 0;
}

static int add_tree(struct image *image, int dir_fd);

static int add_entry(struct image *image, int dir_fd, const char *name)
{
	struct stat st;
	int ret = 0, fd;

	fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return 0;
	if (!fstat(fd, &st) && S_ISDIR(st.st_mode))
		return add_tree(image, fd);
	if (S_ISREG(st.st_mode) && st.st_size >= SMALLEST_FILE)
		ret = add_file(image, fd, (uint64_t)st.st_size);
	close(fd);
	return ret;
}

/* Closes dir_fd. In the directory's own order: the image need not be the same everywhere. */
static int add_tree(struct image *image, int dir_fd)
{
	DIR *dir = fdopendir(dir_fd);
	struct dirent *entry;
	int ret = 0;

	if (!dir) {
		close(dir_fd);
		return 0;
	}
	while (!ret && image->at < image->bytes && (entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			ret = add_entry(image, dirfd(dir), entry->d_name);
	closedir(dir);
	return ret;
}

/* On a machine without the usual trees. */
static int add_self(struct image *image)
{
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct stat st;
	int ret;

	if (fd < 0)
		return -errno;
	ret = fstat(fd, &st) ? -errno : add_file(image, fd, (uint64_t)st.st_size);
	close(fd);
	return ret;
}

static int add_machine(struct image *image)
{
	static const char *const trees[] = { "/usr/lib", "/usr/bin", "/usr/share" };
	uint64_t before = image->at;
	int ret = 0;

	for (size_t i = 0; i < sizeof(trees) / sizeof(trees[0]) && !ret; i++) {
		int fd = open(trees[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (fd >= 0)
			ret = add_tree(image, fd);
	}
	return !ret && image->at == before ? add_self(image) : ret;
}

static int fill_image(int fd, uint64_t bytes)
{
	struct image image = { .fd = fd, .bytes = bytes };
	int ret = ftruncate(fd, (off_t)bytes) ? -errno : 0;

	/* More than once where the machine has less than that. */
	while (!ret && image.at < bytes)
		ret = add_machine(&image);
	return ret;
}

static int make_image(const char *path, uint64_t bytes)
{
	size_t len = strlen(path) + sizeof(".XXXXXX");
	char *name = malloc(len);
	int fd, ret;

	if (!name)
		return -ENOMEM;
	snprintf(name, len, "%s.XXXXXX", path);
	fd = mkostemp(name, O_CLOEXEC);
	ret = fd < 0 ? -errno : fill_image(fd, bytes);
	if (!ret && rename(name, path))
		ret = -errno;
	if (ret && fd >= 0) {
		unlink(name);
		close(fd);
	}
	free(name);
	return ret ? ret : fd;
}

int image_open_or_make(const char *path, uint64_t bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (fd >= 0) {
		if (!fstat(fd, &st) && (uint64_t)st.st_size == bytes)
			return fd;
		close(fd);
	}
	return make_image(path, bytes);
}
