// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * What a commit replaces: the image of that name, locked, and data that images before it have left behind.
 *
 * One commit at a time replaces an image: it holds flock(2) LOCK_EX on its index. Only who may read the image can do
 * so; the folder, whose lock anybody could hold who may look into it, is not locked. Whoever has waited for the lock
 * finds that the name has another index by now, and begins again.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/internal.h"

#define LOCK_TRIES 3000u /* of 10 ms */

void ki_name_by_id(const char *name, const uint8_t *id, char *ret, size_t room)
{
	size_t n = strnlen(name, room - 34);

	memcpy(ret, name, n);
	ret[n++] = '.';
	for (unsigned int i = 0; i < 16; i++, n += 2)
		snprintf(ret + n, room - n, "%02x", id[i]);
}

/* ---- the lock ---- */

static bool has_name(int dir, const char *name, int fd)
{
	struct stat ours, now;

	return !fstat(fd, &ours) && !fstatat(dir, name, &now, 0) && ours.st_dev == now.st_dev &&
	       ours.st_ino == now.st_ino;
}

/* 0: locked, or this file system has no locks; 1: another process has it. */
static int try_lock(int fd)
{
	if (!flock(fd, LOCK_EX | LOCK_NB))
		return 0;
	/* EBADF: NFS, which wants to write for it. */
	if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENOLCK || errno == EINVAL ||
	    errno == EBADF)
		return 0;
	if (errno == EWOULDBLOCK || errno == EINTR)
		return 1;
	return ki_fail(errno, "kvmem_image_commit: the lock of the index: %m");
}

static void unlock(int fd)
{
	flock(fd, LOCK_UN); /* a child of a fork may have the descriptor too */
	close(fd);
}

/* The index that has the name, locked: *ret_fd, -1: there is none. */
static int lock_index(const struct kvmem_image_writer *w, const char *index, int *ret_fd)
{
	int r;

	*ret_fd = -1;
	for (unsigned int i = 0;; i++) {
		int fd = openat(w->place.dir, index, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

		if (fd < 0)
			return errno == ENOENT
				       ? 0
				       : ki_fail(errno, "kvmem_image_commit: '%s': %m", index);
		r = try_lock(fd);
		if (!r && has_name(w->place.dir, index, fd)) {
			*ret_fd = fd;
			return 0;
		}
		unlock(fd); /* locked, it had been replaced meanwhile */
		if (r < 0)
			return r;
		if (i >= LOCK_TRIES)
			return ki_fail(ETIMEDOUT,
				       "kvmem_image_commit: other processes have had the lock of "
				       "'%s' (flock(2)) for 30 s",
				       index);
		poll(NULL, 0, 10);
	}
}

/* ---- which image it is ---- */

/* An image that replaces one of its own parents could never be read. */
static int check_no_parent(const struct kvmem_image_writer *w, const uint8_t *id)
{
	int r = w->parent ? ki_layers_know(w->parent) : 0;

	for (uint32_t i = 0; !r && w->parent && i < w->parent->index.super.layers; i++)
		if (!memcmp(w->parent->index.layers[i].id, id, 16))
			r = ki_fail(EINVAL,
				    "kvmem_image_commit: '%s' is a parent of the image that would "
				    "replace it",
				    w->place.name);
	return r;
}

/* Is it still the image that the caller wants to replace? */
static int check_replaces(const struct kvmem_image_writer *w, const struct ki_super *super)
{
	if (!w->replaces || (super && ki_sum_equal(super->sum, w->replaces_sum)))
		return 0;
	return ki_fail(ESTALE,
		       "kvmem_image_commit: '%s" KI_SUFFIX "' is %s: not the image that was to be "
		       "replaced",
		       w->place.name, super ? "another image by now" : "not there any more");
}

/* ---- data that stay behind ---- */

static uint64_t mtime_ns(const struct stat *st)
{
	return (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec;
}

/* Nothing is written to data once they have a name: another file of that name is another one. */
static bool is_left(const struct ki_left *left, const struct stat *st)
{
	return S_ISREG(st->st_mode) && st->st_ino == left->inode && mtime_ns(st) == left->mtime_ns;
}

/* The names that data of this image's name may have: NAME, or NAME.ID. */
static void left_name(const struct kvmem_image_writer *w, const struct ki_left *left, bool by_id,
		      char *ret, size_t room)
{
	if (by_id)
		ki_name_by_id(w->place.name, left->id, ret, room);
	else
		snprintf(ret, room, "%s", w->place.name);
}

static bool is_there(const struct kvmem_image_writer *w, const struct ki_left *left)
{
	bool found = false;
	char name[256];
	struct stat st;

	for (unsigned int by_id = 0; left->inode && !found && by_id < 2; by_id++) {
		left_name(w, left, by_id, name, sizeof(name));
		found = !fstatat(w->place.dir, name, &st, 0) && is_left(left, &st);
	}
	return found;
}

/* The oldest is forgotten where there are too many: it stays then. */
static void add_left(struct ki_old *old, const struct ki_left *left)
{
	if (old->left_count == KI_MAX_LEFT)
		memmove(old->left, old->left + 1, --old->left_count * sizeof(*old->left));
	old->left[old->left_count++] = *left;
}

/* Its own data, which go if nobody has them, and those that are left of images before it. */
static void take_left(const struct kvmem_image_writer *w, const struct ki_super *super,
		      struct ki_old *old)
{
	struct ki_left own = { 0 };
	struct stat st;

	for (unsigned int i = 0; i < KI_MAX_LEFT; i++)
		if (is_there(w, &super->left[i]))
			add_left(old, &super->left[i]);
	if (!old->data[0] || fstatat(w->place.dir, old->data, &st, 0))
		return;
	memcpy(own.id, super->id, sizeof(own.id));
	own.inode = st.st_ino;
	own.mtime_ns = mtime_ns(&st);
	add_left(old, &own);
}

/* Unless somebody reads them, who keeps them. */
static void remove_left(const struct kvmem_image_writer *w, const struct ki_left *left,
			const char *name)
{
	int fd = openat(w->place.dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0)
		return;
	if (!fstat(fd, &st) && is_left(left, &st) && !flock(fd, LOCK_EX | LOCK_NB)) {
		if (has_name(w->place.dir, name, fd))
			unlinkat(w->place.dir, name, 0);
		flock(fd, LOCK_UN);
	}
	close(fd);
}

void ki_old_remove(const struct kvmem_image_writer *w, const struct ki_old *old,
		   const char *data_name)
{
	char name[256];

	for (unsigned int i = 0; i < old->left_count; i++)
		for (unsigned int by_id = 0; by_id < 2; by_id++) {
			left_name(w, &old->left[i], by_id, name, sizeof(name));
			if (strcmp(name, data_name) != 0)
				remove_left(w, &old->left[i], name);
		}
}

/* ---- found ---- */

/* An index that was copied names the data of the image it was copied from; one behind a link, those beside it. */
static void name_data(const struct kvmem_image_writer *w, const char *index,
		      const struct ki_super *super, struct ki_old *old)
{
	char by_id[256];
	struct stat st;

	if (fstatat(w->place.dir, index, &st, AT_SYMLINK_NOFOLLOW) || S_ISLNK(st.st_mode))
		return;
	ki_name_by_id(w->place.name, super->id, by_id, sizeof(by_id));
	if (!strcmp(super->data_name, w->place.name) || !strcmp(super->data_name, by_id))
		memcpy(old->data, super->data_name, sizeof(super->data_name));
	take_left(w, super, old);
}

int ki_old_find(const struct kvmem_image_writer *w, const char *index, struct ki_old *ret)
{
	struct ki_super super;
	int r = lock_index(w, index, &ret->index);

	if (r || ret->index < 0)
		return r ? r : check_replaces(w, NULL);
	r = ki_index_read_super(ret->index, index, &super);
	if (!r)
		r = check_no_parent(w, super.id);
	if (!r)
		r = check_replaces(w, &super);
	if (!r)
		name_data(w, index, &super, ret);
	return r;
}

void ki_old_end(struct ki_old *old)
{
	if (old->index >= 0)
		unlock(old->index);
	old->index = -1;
}
