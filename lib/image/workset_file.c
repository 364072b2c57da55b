// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Working sets in files. A set is a hint: what is not right in every byte is no set. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/workset.h"

#define MAGIC	"KVMEMWSS"
#define VERSION 1u

struct header {
	char magic[8];
	uint32_t version;
	uint32_t granule; /* 4096 */
	uint8_t image[16];
	uint64_t memory_pages;
	uint64_t ranges;
	uint64_t pages;
	uint32_t samples;
	uint32_t reserved;
	struct ki_sum ranges_sum;
	struct ki_sum sum; /* of what lies before it */
};

_Static_assert(sizeof(struct header) == 96 && sizeof(struct kw_range) == 16, "as documented");

static struct ki_sum sum_of(const struct header *h)
{
	return ki_sum(h, offsetof(struct header, sum));
}

/* Of a raw file there is no id: then the length alone says whose it is. */
static void id_of(const struct kvmem_image *image, uint8_t *ret)
{
	memset(ret, 0, 16);
	if (!ki_is_raw(image))
		memcpy(ret, image->index.super.id, 16);
}

/* ---- saving ---- */

static int write_file(const struct kvmem_workset *w, const struct kvmem_image *image, int fd)
{
	struct header h = { .version = VERSION,
			    .granule = KI_PAGE,
			    .memory_pages = w->memory_pages,
			    .ranges = w->count,
			    .pages = w->pages,
			    .samples = w->samples };
	uint64_t bytes = w->count * sizeof(*w->ranges);
	int r;

	memcpy(h.magic, MAGIC, sizeof(h.magic));
	id_of(image, h.image);
	h.ranges_sum = ki_sum(w->ranges, bytes);
	h.sum = sum_of(&h);
	r = ki_write_at(fd, 0, &h, sizeof(h), "kvmem_workset_save");
	if (!r)
		r = ki_write_at(fd, sizeof(h), w->ranges, bytes, "kvmem_workset_save");
	if (!r && fsync(fd))
		r = ki_fail(errno, "kvmem_workset_save: to the disk: %m");
	return r;
}

/* Nothing of that name, or an older set: anything else is not replaced. */
static int check_old(const struct ki_place *place)
{
	int fd = openat(place->dir, place->name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	char magic[8] = "";
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT
			       ? 0
			       : ki_fail(errno, "kvmem_workset_save: '%s': %m", place->name);
	n = pread(fd, magic, sizeof(magic), 0);
	close(fd);
	if (n && memcmp(magic, MAGIC, sizeof(magic)) != 0)
		return ki_fail(EEXIST, "kvmem_workset_save: '%s' is there, and no working set",
			       place->name);
	return 0;
}

int kvmem_workset_save(const struct kvmem_workset *workset, const char *path,
		       const struct kvmem_image *image)
{
	struct ki_new_file file = { .fd = -1 };
	struct ki_place place;
	int r;

	if (!workset || !path || !image)
		return ki_fail(EINVAL, "kvmem_workset_save: %s is NULL",
			       !workset ? "workset"
			       : !path	? "path"
					: "image");
	if (!workset->samples)
		return ki_fail(EINVAL, "kvmem_workset_save: workset is a recording under replay: "
				       "merge it into the set that was replayed");
	if (image->bytes >> KI_PAGE_SHIFT != workset->memory_pages)
		return ki_fail(EINVAL,
			       "kvmem_workset_save: the image has 0x%" PRIx64
			       " bytes, the working set is of 0x%" PRIx64,
			       image->bytes, workset->memory_pages << KI_PAGE_SHIFT);
	r = ki_place_open("kvmem_workset_save", AT_FDCWD, path, &place);
	if (r)
		return r;
	r = check_old(&place);
	if (!r)
		r = ki_new_file(place.dir, "kvmem_workset_save", &file);
	if (!r)
		r = write_file(workset, image, file.fd);
	if (!r)
		r = ki_new_file_name(&file, place.name, true);
	ki_new_file_end(&file);
	ki_place_close(&place);
	return r;
}

/* ---- loading ---- */

static int check_header(const struct header *h, const char *path, const struct kvmem_image *image)
{
	uint8_t id[16];

	if (memcmp(h->magic, MAGIC, sizeof(h->magic)))
		return ki_fail(EBADMSG, "%s: not a working set: it does not begin with " MAGIC,
			       path);
	if (h->version != VERSION)
		return ki_fail(EOPNOTSUPP, "%s: version %" PRIu32 " of working sets; this is %u",
			       path, h->version, VERSION);
	if (!ki_sum_equal(sum_of(h), h->sum))
		return ki_fail(EBADMSG, "%s: damaged: the header's checksum is wrong", path);
	id_of(image, id);
	if (memcmp(h->image, id, sizeof(id)) || h->memory_pages != image->bytes >> KI_PAGE_SHIFT)
		return ki_fail(ESTALE, "%s: the working set of another image", path);
	if (h->granule != KI_PAGE || h->reserved || !h->samples || h->samples > KW_SAMPLES ||
	    h->memory_pages > UINT32_MAX || h->pages > h->memory_pages || h->ranges > h->pages)
		return ki_fail(EBADMSG, "%s: its header cannot be", path);
	return 0;
}

/* Each in the memory, none twice. */
static int check_ranges(const struct kvmem_workset *w, const char *path)
{
	uint64_t *seen = calloc(w->memory_pages / 64 + 1, sizeof(*seen)), pages = 0;
	bool good = true;

	if (!seen)
		return ki_fail(ENOMEM, "kvmem_workset_load: no memory");
	for (uint64_t i = 0; good && i < w->count; i++) {
		const struct kw_range *r = &w->ranges[i];
		uint64_t end = (uint64_t)r->page + r->pages;

		good = r->pages && end <= w->memory_pages && r->history &&
		       r->history >> w->samples == 0 &&
		       ki_is_zero(r->reserved, sizeof(r->reserved));
		for (uint64_t p = r->page; good && p < end; p++) {
			good = !(seen[p / 64] >> p % 64 & 1);
			seen[p / 64] |= 1ull << p % 64;
		}
		pages += r->pages;
	}
	free(seen);
	return good && pages == w->pages ? 0 : ki_fail(EBADMSG, "%s: its ranges cannot be", path);
}

static int read_ranges(int fd, const struct header *h, const char *path, struct kvmem_workset *w)
{
	uint64_t bytes = h->ranges * sizeof(*w->ranges);
	struct stat st;
	int r;

	/* Looked at before so much is allocated. */
	if (fstat(fd, &st))
		return ki_fail(errno, "%s: %m", path);
	if ((uint64_t)st.st_size != sizeof(*h) + bytes)
		return ki_fail(EBADMSG, "%s: it has %" PRIu64 " bytes, and should have %" PRIu64,
			       path, (uint64_t)st.st_size, sizeof(*h) + bytes);
	w->ranges = malloc(bytes + 1);
	if (!w->ranges)
		return ki_fail(ENOMEM, "kvmem_workset_load: no memory for %" PRIu64 " ranges",
			       h->ranges);
	r = ki_read_at(fd, sizeof(*h), w->ranges, bytes, path);
	if (!r && !ki_sum_equal(ki_sum(w->ranges, bytes), h->ranges_sum))
		r = ki_fail(EBADMSG, "%s: damaged: the checksum of the ranges is wrong", path);
	w->count = h->ranges;
	w->pages = h->pages;
	w->memory_pages = h->memory_pages;
	w->samples = h->samples;
	return r ? r : check_ranges(w, path);
}

int kvmem_workset_load(const char *path, const struct kvmem_image *image,
		       struct kvmem_workset **ret_workset)
{
	struct kvmem_workset *w;
	struct header h;
	int fd, r;

	if (!path || !image || !ret_workset)
		return ki_fail(EINVAL, "kvmem_workset_load: %s is NULL",
			       !path	? "path"
			       : !image ? "image"
					: "ret_workset");
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return ki_fail(errno, "%s: %m", path);
	w = calloc(1, sizeof(*w));
	r = w ? ki_read_at(fd, 0, &h, sizeof(h), path)
	      : ki_fail(ENOMEM, "kvmem_workset_load: no memory");
	if (!r)
		r = check_header(&h, path, image);
	if (!r)
		r = read_ranges(fd, &h, path, w);
	close(fd);
	if (r)
		kvmem_workset_free(w);
	else
		*ret_workset = w;
	return r;
}
