// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The commit of a new image: its data and its index get their names, and what they replace goes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "image/internal.h"

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
static int keep_access(const struct kvmem_image_writer *w, const struct ki_old *old, int index)
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

struct names {
	char index[sizeof(((struct ki_place *)0)->name) + sizeof(KI_SUFFIX)];
	char data[256];
	bool data_named;
};

/* The name of the data: that of the image, or one of their own where that is taken. */
static void choose_data_name(const struct kvmem_image_writer *w, const uint8_t *id, struct names *n)
{
	struct stat st;

	snprintf(n->data, sizeof(n->data), "%s", w->place.name);
	if (w->flags & KVMEM_IMAGE_REPLACE &&
	    !fstatat(w->place.dir, n->data, &st, AT_SYMLINK_NOFOLLOW))
		ki_name_by_id(w->place.name, id, n->data, sizeof(n->data));
}

/*
 * The data and the index are complete: their names. Both are locked before they have one. The data, so that nobody
 * takes them for some that nobody reads; the index, so that who replaces this image waits until it is all there.
 */
static int name_files(struct kvmem_image_writer *w, struct names *n, struct ki_new_file *index,
		      bool replace)
{
	int r = 0;

	if (!n->data_named) {
		flock(w->data.fd, LOCK_SH | LOCK_NB);
		r = ki_new_file_name(&w->data, n->data, false);
		n->data_named = !r;
		if (!r)
			r = sync_file(w, w->place.dir, "the folder");
	}
	if (r)
		return r;
	flock(index->fd, LOCK_EX | LOCK_NB);
	return ki_new_file_name(index, n->index, replace);
}

/* -EEXIST where another commit was faster: what there is to be replaced is another image then. */
static int put_in_place(struct kvmem_image_writer *w, const uint8_t *id, struct names *n)
{
	struct ki_new_file index = { .fd = -1 };
	struct ki_old old = { .index = -1 };
	int r = 0;

	if (w->flags & KVMEM_IMAGE_REPLACE)
		r = ki_old_find(w, n->index, &old);
	if (!r && !n->data_named)
		choose_data_name(w, id, n);
	if (!r)
		r = ki_store_index(w, n->data, id, &old, &index);
	if (!r)
		r = keep_access(w, &old, index.fd);
	if (!r)
		r = sync_file(w, index.fd, "the index");
	if (!r)
		r = name_files(w, n, &index, old.index >= 0);
	if (!r) {
		n->data_named = false; /* they are the image's: they stay, whatever comes */
		r = sync_file(w, w->place.dir, "the folder");
		if (!r)
			ki_old_remove(w, &old, n->data);
	}
	/* A child of a fork may have the descriptors too, and with them the locks. */
	if (!n->data_named)
		flock(w->data.fd, LOCK_UN);
	flock(index.fd, LOCK_UN);
	ki_new_file_end(&index);
	ki_old_end(&old);
	return r;
}

#define TRIES 10u

static int publish(struct kvmem_image_writer *w, const uint8_t *id)
{
	int r = w->flags & KVMEM_IMAGE_PACKED ? ki_pack(w) : 0;
	struct names n = { .data_named = false };

	snprintf(n.index, sizeof(n.index), "%s%s", w->place.name, KI_SUFFIX);
	if (!r)
		r = sync_file(w, w->data.fd, "the data");
	if (!r)
		r = put_in_place(w, id, &n);
	for (unsigned int i = 1; r == -EEXIST && w->flags & KVMEM_IMAGE_REPLACE && i < TRIES; i++)
		r = put_in_place(w, id, &n);
	if (n.data_named) {
		unlinkat(w->place.dir, n.data, 0);
		flock(w->data.fd, LOCK_UN);
	}
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
		r = ki_fail(EINVAL, "kvmem_image_commit: a save or capture into the writer has "
				    "failed: the image would lack pages");
	else if (getrandom(id, sizeof(id), 0) != sizeof(id))
		r = ki_fail(errno, "kvmem_image_commit: getrandom(): %m");
	else
		r = publish(writer, id);
	if (r)
		r = ki_fail_as("kvmem_image_commit", r);
	else if (ret_id)
		memcpy(ret_id->bytes, id, sizeof(id));
	if (!r) {
		kvmem_batch_free(writer->batch);
		writer->batch = NULL;
	}
	ki_writer_free(writer);
	return r;
}
