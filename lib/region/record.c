// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The record of pages in a memfd, which outlives the process that writes it: a header, and then the words of
 * presence.h. Nothing else has to be known of a region: counters follow from the words.
 *
 * Taken over, claims are ended as if given up: whether the content was placed before their thread died UFFDIO_COPY
 * tells, by EEXIST.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "region/region.h"

#define PER_WORD KM_PAGES_PER_WORD
#define BITS	 KM_PAGE_BITS

struct header {
	char magic[8];
	uint32_t version;
	uint32_t page_shift;
	uint64_t pages;
	uint64_t reserved[5];
};

_Static_assert(sizeof(struct header) == 64, "the words begin at byte 64");

static const char magic[8] = "kvmemrec";

static uint64_t record_bytes(uint64_t pages)
{
	return sizeof(struct header) + (pages + PER_WORD - 1) / PER_WORD * sizeof(uint64_t);
}

/* ---- taking one over ---- */

/* A state that has no meaning: the words are no record. */
static bool is_valid(unsigned int bits)
{
	return bits & KM_CLAIMED || bits == KM_ABSENT || bits == KM_PRESENT || bits == KM_ZERO ||
	       bits == KM_POISONED;
}

static unsigned int unclaimed(unsigned int bits)
{
	if (!(bits & KM_CLAIMED))
		return bits;
	if (bits & KM_PAGE_REMOVED)
		return KM_ZERO;
	return bits & KM_PAGE_MARKED ? KM_POISONED : KM_ABSENT;
}

static int adopt_words(struct km_presence *p)
{
	uint64_t done = 0, poisoned = 0;

	for (uint64_t page = 0; page < p->pages; page++) {
		_Atomic uint64_t *w = &p->words[page / PER_WORD];
		unsigned int shift = (unsigned int)(page % PER_WORD) * BITS;
		uint64_t word = atomic_load_explicit(w, memory_order_relaxed);
		unsigned int bits = (unsigned int)(word >> shift & ((1u << BITS) - 1)),
			     to = unclaimed(bits);

		if (!word && page % PER_WORD == 0) { /* most are */
			page += PER_WORD - 1;
			continue;
		}
		if (!is_valid(bits))
			return km_fail(EINVAL,
				       "kvmem_remote_opts.record_fd: page %" PRIu64
				       " has a state that no record has",
				       page);
		if (to != bits)
			atomic_store_explicit(w, word ^ (uint64_t)(bits ^ to) << shift,
					      memory_order_relaxed);
		done += to == KM_PRESENT || to == KM_ZERO;
		poisoned += to == KM_POISONED;
	}
	p->done = done;
	p->poisoned = poisoned;
	p->ever_poisoned = poisoned > 0;
	p->open = p->pages - done - poisoned;
	return 0;
}

/* Of the file, before it is mapped: nobody can cut it short any more. */
static int check_file(int fd, uint64_t bytes)
{
	int64_t seals = km_sys_fcntl_seals(fd), r;
	struct stat st;

	if (seals < 0)
		return km_fail(EINVAL, "kvmem_remote_opts.record_fd %d is no record: not a memfd",
			       fd);
	if (!(seals & KVMEM_SEAL_SHRINK))
		return km_fail(EPERM,
			       "kvmem_remote_opts.record_fd %d is not sealed with F_SEAL_SHRINK: "
			       "somebody could cut it short",
			       fd);
	r = km_sys_fstat(fd, &st);
	if (r < 0)
		return km_fail((int)-r, "kvmem_remote_opts.record_fd %d: fstat: %m", fd);
	if ((uint64_t)st.st_size == bytes)
		return 0;
	return km_fail(EINVAL,
		       "kvmem_remote_opts.record_fd %d has 0x%" PRIx64
		       " bytes; the record of this region has 0x%" PRIx64,
		       fd, (uint64_t)st.st_size, bytes);
}

static int check_header(const struct header *h, const struct km_presence *p, unsigned int shift)
{
	if (memcmp(h->magic, magic, sizeof(magic)) || h->version != 1)
		return km_fail(EINVAL, "kvmem_remote_opts.record_fd is no record of this version");
	if (h->page_shift != shift || h->pages != p->pages)
		return km_fail(EINVAL,
			       "kvmem_remote_opts.record_fd is the record of another region: of "
			       "%" PRIu64 " pages of 2^%" PRIu32 " bytes",
			       h->pages, h->page_shift);
	return 0;
}

/* ---- a new one ---- */

static int64_t make(uint64_t bytes)
{
	int64_t fd = km_sys_memfd_create("kvmem-record", MFD_CLOEXEC | MFD_ALLOW_SEALING), r;

	if (fd < 0)
		return fd;
	r = km_sys_ftruncate((int)fd, bytes);
	if (r >= 0)
		r = km_sys_fcntl_add_seals((int)fd,
					   KVMEM_SEAL_SHRINK | KVMEM_SEAL_GROW | KVMEM_SEAL_SEAL);
	if (r >= 0)
		return fd;
	km_sys_close((int)fd);
	return r;
}

static void write_header(struct header *h, const struct km_presence *p, unsigned int shift)
{
	h->version = 1;
	h->page_shift = shift;
	h->pages = p->pages;
	memcpy(h->magic, magic, sizeof(magic));
}

int km_record_open(struct km_presence *p, uint64_t pages, unsigned int shift, int given,
		   int *ret_fd)
{
	uint64_t bytes = record_bytes(pages);
	int r = given < 0 ? 0 : check_file(given, bytes);
	int64_t fd, err;
	void *map = NULL;

	if (r)
		return r;
	fd = given < 0 ? make(bytes) : km_sys_dup(given);
	if (fd < 0)
		return km_fail((int)-fd,
			       "the record of a region, a memfd of 0x%" PRIx64 " bytes: %m", bytes);
	err = km_sys_mmap(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, 0, &map);
	if (err < 0) {
		km_sys_close((int)fd);
		return km_fail((int)-err, "mapping the record of a region: %m");
	}
	*p = (struct km_presence){ .words = (void *)((char *)map + sizeof(struct header)),
				   .pages = pages,
				   .room = pages,
				   .open = pages,
				   .mapped = map,
				   .mapped_bytes = bytes };
	*ret_fd = (int)fd;
	if (given < 0) {
		write_header(map, p, shift);
		return 0;
	}
	r = check_header(map, p, shift);
	return r ? r : adopt_words(p);
}
