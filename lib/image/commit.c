// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The commit of a new image: its data and its index get their names, and what they replace goes. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "image/internal.h"

/* NAME.ID, the name of data whose own name is taken. */
static void name_by_id(const char *name, const uint8_t *id, char *ret, size_t room)
{
	size_t n = strnlen(name, room - 34);

	memcpy(ret, name, n);
	ret[n++] = '.';
	for (unsigned int i = 0; i < 16; i++, n += 2)
		snprintf(ret + n, room - n, "%02x", id[i]);
}

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

/* The image of this name, as it was when the commit looked. */
struct old {
	int index; /* its descriptor; -1: there is none */
	char data
		[256]; /* the name of its data, which go with it; "": they are somebody else's too */
};

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

/* An index that was copied names the data of the image that it was copied from. */
static int find_old(const struct kvmem_image_writer *w, const char *index, struct old *ret)
{
	char by_id[256];
	struct ki_super super;
	int r;

	ret->index = openat(w->place.dir, index, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (ret->index < 0)
		return errno == ENOENT ? check_replaces(w, NULL)
				       : ki_fail(errno, "kvmem_image_commit: '%s': %m", index);
	r = ki_index_read_super(ret->index, index, &super);
	if (!r)
		r = check_no_parent(w, super.id);
	if (!r)
		r = check_replaces(w, &super);
	if (r)
		return r;
	name_by_id(w->place.name, super.id, by_id, sizeof(by_id));
	if (!strcmp(super.data_name, w->place.name) || !strcmp(super.data_name, by_id))
		memcpy(ret->data, super.data_name, sizeof(super.data_name));
	return 0;
}

/* Nobody reads it. Who does keeps it: then it stays. */
static void remove_old(const struct kvmem_image_writer *w, const char *name)
{
	int fd = name[0] ? openat(w->place.dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;

	if (fd < 0)
		return;
	if (!flock(fd, LOCK_EX | LOCK_NB))
		unlinkat(w->place.dir, name, 0);
	close(fd);
}

/* ---- who may read it ---- */

#define ACL "system.posix_acl_access"

/* The access control list of `from`, or none, as it has none. */
static bool keep_acl(int from, int to)
{
	char acl[4096];
	ssize_t n = fgetxattr(from, ACL, acl, sizeof(acl));

	if (n >= 0)
		return !fsetxattr(to, ACL, acl, (size_t)n, 0);
	if (errno != ENODATA)
		return errno == EOPNOTSUPP;
	/* A file may have one from its folder. */
	return !fremovexattr(to, ACL) || errno == ENODATA || errno == EOPNOTSUPP;
}

/*
 * A file that is to take the place of another one: its mode, and where this process may set them its owner, group and
 * access control list. Where it may not, the mode lets nobody read or write who could not before.
 */
static int keep_access_of(int from, int to)
{
	struct stat old, now;
	bool keep_group = true;
	mode_t mode;

	if (fstat(from, &old) || fstat(to, &now))
		return ki_fail(errno, "kvmem_image_commit: the files' mode: %m");
	mode = old.st_mode & 0777;
	if ((old.st_uid != now.st_uid || old.st_gid != now.st_gid) &&
	    fchown(to, old.st_uid, old.st_gid))
		keep_group = fchown(to, (uid_t)-1, old.st_gid) == 0;
	if (!keep_acl(from, to) || !keep_group) {
		mode_t all = mode & (mode >> 3) & 07;

		mode = (mode & 0700) | all << 3 | all;
	}
	/* EPERM: of a file system without modes; or it is the other owner's now, and his alone. */
	return fchmod(to, mode) && errno != EPERM
		       ? ki_fail(errno, "kvmem_image_commit: the files' mode: %m")
		       : 0;
}

/* Of the data that are replaced, too. Where they cannot be looked at, the new ones are their owner's alone. */
static int keep_access(const struct kvmem_image_writer *w, const struct old *old, int index)
{
	int from = -1, r = 0;

	if (old->index < 0)
		return 0;
	if (old->data[0])
		from = openat(w->place.dir, old->data,
			      O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (from >= 0 || !old->data[0] || errno == ENOENT)
		r = keep_access_of(from >= 0 ? from : old->index, w->data.fd);
	if (from >= 0)
		close(from);
	return r ? r : keep_access_of(old->index, index);
}

/* ---- the files ---- */

static int sync_file(const struct kvmem_image_writer *w, int fd, const char *what)
{
	if (w->flags & KVMEM_IMAGE_NO_SYNC || !fsync(fd))
		return 0;
	return ki_fail(errno, "kvmem_image_commit: %s to the disk: %m", what);
}

/* The name of the data: that of the image, or one of their own where that is taken. */
static void name_data(const struct kvmem_image_writer *w, const uint8_t *id, char *ret, size_t room)
{
	struct stat st;

	snprintf(ret, room, "%s", w->place.name);
	if (!fstatat(w->place.dir, ret, &st, AT_SYMLINK_NOFOLLOW))
		name_by_id(w->place.name, id, ret, room);
}

#define LOCK_TRIES 3000u /* of 10 ms */

/* One commit in a folder at a time looks names up, gives names and takes old files away. */
static int lock_folder(const struct kvmem_image_writer *w)
{
	for (unsigned int i = 0; flock(w->place.dir, LOCK_EX | LOCK_NB); i++) {
		if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENOLCK || errno == EINVAL)
			return 0; /* this file system has no locks */
		if (i == LOCK_TRIES || (errno != EWOULDBLOCK && errno != EINTR))
			return ki_fail(EBUSY, "kvmem_image_commit: the lock of the folder: %m");
		poll(NULL, 0, 10);
	}
	return 0;
}

/* The data and the index are complete: their names. */
static int name_files(struct kvmem_image_writer *w, const char *data_name,
		      struct ki_new_file *index, const char *index_name)
{
	int r;

	r = ki_new_file_name(&w->data, data_name, false);
	if (r)
		return r;
	r = sync_file(w, w->place.dir, "the folder");
	if (!r)
		r = ki_new_file_name(index, index_name, w->flags & KVMEM_IMAGE_REPLACE);
	if (r)
		unlinkat(w->place.dir, data_name, 0);
	return r;
}

/* With the folder's lock held. */
static int put_in_place(struct kvmem_image_writer *w, const uint8_t *id, struct old *old)
{
	char index_name[sizeof(w->place.name) + sizeof(KI_SUFFIX)], data_name[256];
	struct ki_new_file index = { .fd = -1 };
	int r = 0;

	snprintf(index_name, sizeof(index_name), "%s%s", w->place.name, KI_SUFFIX);
	snprintf(data_name, sizeof(data_name), "%s", w->place.name);
	if (w->flags & KVMEM_IMAGE_REPLACE) {
		name_data(w, id, data_name, sizeof(data_name));
		r = find_old(w, index_name, old);
	}
	if (!r)
		r = ki_store_index(w, data_name, id, &index);
	if (!r)
		r = keep_access(w, old, index.fd);
	if (!r)
		r = sync_file(w, index.fd, "the index");
	if (!r)
		r = name_files(w, data_name, &index, index_name);
	if (!r) {
		r = sync_file(w, w->place.dir, "the folder");
		if (!r && strcmp(old->data, data_name))
			remove_old(w, old->data);
	}
	ki_new_file_end(&index);
	return r;
}

static int publish(struct kvmem_image_writer *w, const uint8_t *id)
{
	int r = w->flags & KVMEM_IMAGE_PACKED ? ki_pack(w) : 0;
	struct old old = { .index = -1 };

	if (!r)
		r = sync_file(w, w->data.fd, "the data");
	if (!r)
		r = lock_folder(w); /* until the writer closes it */
	if (!r)
		r = put_in_place(w, id, &old);
	if (old.index >= 0)
		close(old.index);
	return r;
}

int kvmem_image_commit(struct kvmem_image_writer *writer, struct kvmem_image_id *ret_id)
{
	uint8_t id[16];
	int r;

	if (!writer)
		return ki_fail(EINVAL, "kvmem_image_commit: writer is NULL");
	if (writer->saving)
		return ki_fail(EBUSY, "kvmem_image_commit: kvmem_image_save() is not over");
	if (atomic_exchange(&writer->committing, true))
		return ki_fail(EBUSY, "kvmem_image_commit: it is being committed already");
	if (writer->precopy)
		r = ki_fail(EINVAL,
			    "kvmem_image_commit: KVMEM_IMAGE_LAST_PASS of kvmem_image_precopy() "
			    "has not been made: pages may have been written since");
	else if (writer->save_failed)
		r = ki_fail(EINVAL, "kvmem_image_commit: kvmem_image_save() has failed: the image "
				    "would lack pages");
	else if (getrandom(id, sizeof(id), 0) != sizeof(id))
		r = ki_fail(errno, "kvmem_image_commit: getrandom(): %m");
	else
		r = publish(writer, id);
	if (!r && ret_id)
		memcpy(ret_id->bytes, id, sizeof(id));
	if (!r) {
		kvmem_batch_free(writer->batch);
		writer->batch = NULL;
	}
	ki_writer_free(writer);
	return r;
}
