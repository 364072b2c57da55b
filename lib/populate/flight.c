// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A file's bytes straight into guest memory, several reads in flight: with O_DIRECT where file and
 * kernel take it, else through the page cache. What is in the page cache already is copied instead,
 * as is memory that only the kernel may touch safely.
 */
#include "populate/populate_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "populate/io.h"

#define DEPTH 16u /* reads in flight, of a chunk each, by each thread */

struct km_flight {
	struct km_io_read rd; /* first: the engine hands it back */
	struct km_piece piece;
	bool busy;
	bool direct;
};

/* ---- set up ---- */

static int open_direct(struct km_fill *f)
{
	bool forced = f->opts.file_method == KVMEM_FILE_DIRECT;
	char path[32];
	int64_t fd;

	if (f->s->flags & KVMEM_SOURCE_BUFFERED)
		return !forced ? 0
			       : km_fail(EOPNOTSUPP,
					 "populate: file method %s: the source was made "
					 "with KVMEM_SOURCE_BUFFERED",
					 kvmem_file_method_name(KVMEM_FILE_DIRECT));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", f->s->fd);
	fd = km_sys_open(path, O_RDONLY | O_DIRECT);
	if (fd >= 0) {
		f->direct_fd = (int)fd;
		return 0;
	}
	return !forced ? 0
		       : km_fail(EOPNOTSUPP,
				 "populate: file method %s: opening the file with O_DIRECT "
				 "through %s: %s",
				 kvmem_file_method_name(KVMEM_FILE_DIRECT), path,
				 strerror((int)-fd));
}

/* Mapped only to ask what is in the page cache; without it, all counts as cached. */
static void map_cached(struct km_fill *f)
{
	uint64_t from = f->s->offset + f->source_offset, page = f->grain;
	int64_t r;

	f->cached_offset = from & ~(page - 1);
	f->cached_bytes = from + (f->end - f->offset) - f->cached_offset;
	r = km_sys_mmap(f->cached_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, f->s->fd,
			f->cached_offset, &f->cached);
	if (r < 0)
		f->cached = NULL;
}

static int check_forced(struct km_fill *f)
{
	uint32_t m = f->opts.method;
	const char *why = NULL;

	if (f->opts.file_method == KVMEM_FILE_PREAD)
		return 0;
	if (!f->store)
		why = "a pager serves this anonymous memory, and nothing can be read straight into it";
	else if (m == KVMEM_FILL_WRITE || m == KVMEM_FILL_UFFD_COPY)
		why = "it reads straight into guest memory, and the required fill method does not";
	if (!why)
		return 0;
	return km_fail(EOPNOTSUPP, "populate: file method %s: %s",
		       kvmem_file_method_name(f->opts.file_method), why);
}

int km_flight_prepare(struct km_fill *f)
{
	uint32_t want = f->opts.file_method;
	uint32_t m = f->opts.method;
	int r = 0;

	if (f->s->kind != KM_SOURCE_FILE) {
		if (want != KVMEM_FILE_AUTO)
			return km_fail(EOPNOTSUPP,
				       "populate: file method %s: the source is no file",
				       kvmem_file_method_name(want));
		return 0;
	}
	if (want != KVMEM_FILE_AUTO)
		r = check_forced(f);
	else if (!f->store || m == KVMEM_FILL_WRITE || m == KVMEM_FILL_UFFD_COPY || f->keep_zero)
		atomic_store(&f->uring_off, true);
	if (r || want == KVMEM_FILE_PREAD || f->uring_off)
		return r;
	if (want != KVMEM_FILE_URING)
		r = open_direct(f);
	if (!r && want == KVMEM_FILE_AUTO)
		map_cached(f);
	return r;
}

void km_flight_finish(struct km_fill *f)
{
	km_sys_close(f->direct_fd);
	km_sys_munmap(f->cached, f->cached_bytes);
}

/* ---- which way ---- */

/*
 * Less than half of it is in the page cache. The kernel tells that only who owns or may write the
 * file, and pretends to others that all is cached: they get pread() unless they ask for more.
 */
static bool cold(struct km_fill *f, uint64_t pos, uint64_t bytes)
{
	uint64_t from = f->s->offset + km_fill_source_pos(f, pos) - f->cached_offset;
	unsigned char vec[KM_FILL_BLOCK / 4096 + 1];
	uint64_t pages, cached = 0;

	if (!f->cached)
		return false;
	bytes += from & (f->grain - 1);
	from &= ~(f->grain - 1);
	pages = (bytes + f->grain - 1) / f->grain;
	if (pages > sizeof(vec))
		pages = sizeof(vec);
	if (km_sys_mincore((uint8_t *)f->cached + from, pages * f->grain, vec) < 0)
		return false;
	for (uint64_t i = 0; i < pages; i++)
		cached += vec[i] & 1u;
	return cached * 2 < pages;
}

/*
 * The whole piece, and all of it one extent of data: no hole is read, no tail is to be zeroed. Of
 * huge pages holes are read when the way is required.
 */
static bool whole(struct km_filler *w, uint64_t pos, uint64_t bytes)
{
	struct km_fill *f = w->f;
	uint32_t kind;
	uint64_t end;

	if (km_fill_clip(f, pos, pos + bytes) != bytes)
		return false;
	if (f->page_bytes > f->grain && f->opts.file_method != KVMEM_FILE_AUTO)
		return true;
	return !km_piece_extent(w, pos, &kind, &end) && kind == KVMEM_EXTENT_DATA &&
	       end - pos >= bytes;
}

static bool choose(struct km_filler *w, uint64_t pos, uint64_t bytes, bool *ret_direct)
{
	struct km_fill *f = w->f;
	uint32_t want = f->opts.file_method;

	if (f->s->kind != KM_SOURCE_FILE || want == KVMEM_FILE_PREAD)
		return false;
	if (atomic_load_explicit(&f->uring_off, memory_order_relaxed) || !whole(w, pos, bytes))
		return false;
	*ret_direct = f->direct_fd >= 0 &&
		      !atomic_load_explicit(&f->direct_off, memory_order_relaxed);
	return want != KVMEM_FILE_AUTO || cold(f, pos, bytes);
}

/* ---- completion ---- */

/* file 0: the source is no file. */
static void count_read(struct km_filler *w, uint32_t file, uint32_t method, uint64_t bytes,
		       bool zero)
{
	struct km_fill_counts *c = &w->counts;

	c->file[file] += bytes;
	if (zero) {
		c->zero += bytes;
		return;
	}
	c->method[method] += bytes;
	*(file ? &c->read : &c->copied) += bytes;
}

static int give_back(struct km_filler *w, struct km_piece *p, uint64_t pages)
{
	struct km_fill *f = w->f;
	int r = km_store_forget(f->r, f->store, km_fill_pos(f, p->page), pages * f->page_bytes);

	return r ? r : km_piece_zero(w, p, pages);
}

/* Pages that turned out to be zero are given back, unless all are to stay. */
static int publish_read(struct km_filler *w, struct km_piece *p, uint32_t file, uint32_t method)
{
	struct km_fill *f = w->f;

	while (p->pages) {
		const uint8_t *at = f->store + (p->page << f->r->page_shift);
		uint64_t n = 1, left = p->pages, bytes;
		bool zero = !f->keep_zero && km_is_zero(at, f->page_bytes);
		int r;

		while (n < p->pages &&
		       (!f->keep_zero && km_is_zero(at + n * f->page_bytes, f->page_bytes)) == zero)
			n++;
		r = zero ? give_back(w, p, n) : km_piece_stored(w, p, n);
		bytes = (left - p->pages) * f->page_bytes; /* on failure, those before it */
		count_read(w, file, method, bytes, zero);
		if (r < 0)
			return r;
	}
	return 0;
}

static bool refusal(int error)
{
	return error == -EINVAL || error == -EOPNOTSUPP || error == -EFAULT || error == -ENOSYS ||
	       error == -EPERM || error == -EACCES;
}

static int refused(struct km_filler *w, struct km_piece *p, bool direct, int error)
{
	struct km_fill *f = w->f;
	uint32_t file = direct ? KVMEM_FILE_DIRECT : KVMEM_FILE_URING;

	if (f->opts.file_method == file) {
		km_piece_abandon(w, p);
		return km_fail(
			EOPNOTSUPP,
			"populate: file method %s: reading into guest memory at offset "
			"0x%" PRIx64 " of the region: %s%s",
			kvmem_file_method_name(file), p->page << f->r->page_shift, strerror(-error),
			error == -EINVAL && direct ? " (O_DIRECT: the place in the file must be "
						     "aligned to its logical blocks)"
						   : "");
	}
	atomic_store(direct ? &f->direct_off : &f->uring_off, true);
	return km_buffer_fill(w, p);
}

static int land(struct km_filler *w, struct km_flight *fl)
{
	struct km_piece *p = &fl->piece;
	int r;

	fl->busy = false;
	if (refusal(fl->rd.error))
		return refused(w, p, fl->direct, fl->rd.error);
	if (fl->rd.error)
		r = km_fail(-fl->rd.error, "populate: reading the file at offset 0x%" PRIx64 ": %s",
			    fl->rd.offset,
			    fl->rd.error == -ENODATA ? "it ends there: it has shrunk"
						     : strerror(-fl->rd.error));
	else
		r = publish_read(w, p, fl->direct ? KVMEM_FILE_DIRECT : KVMEM_FILE_URING,
				 KVMEM_FILL_POPULATE_COPY);
	if (r)
		km_piece_abandon(w, p);
	return r;
}

int km_flight_drain(struct km_filler *w)
{
	struct km_io_read *rd;
	int r = 0, err;

	while (w->io && (rd = km_io_wait(w->io))) {
		err = land(w, (struct km_flight *)rd);
		r = r ? r : err;
	}
	km_io_destroy(w->io);
	km_sys_free(w->flights);
	w->io = NULL;
	w->flights = NULL;
	return r;
}

/* ---- start ---- */

static const char *no_ring(int error)
{
	switch (error) {
	case -EPERM:
	case -EACCES:
		return "forbidden: by kernel.io_uring_disabled, or by a seccomp filter";
	case -ENOSYS:
		return "not in this kernel, or kept out by a seccomp filter";
	case -ENOMEM:
		return "no memory: RLIMIT_MEMLOCK, on kernels that count rings against it";
	default:
		return strerror(-error);
	}
}

/* 1: there is a ring, 0: there will be none, -errno. */
static int need_ring(struct km_filler *w)
{
	struct km_fill *f = w->f;
	int r;

	if (w->io)
		return 1;
	w->flights = km_sys_alloc(DEPTH * sizeof(*w->flights));
	r = w->flights ? km_io_create(DEPTH, f->opts.uring_workers, &w->io) : -ENOMEM;
	if (!r)
		return 1;
	km_sys_free(w->flights);
	w->flights = NULL;
	if (f->opts.file_method != KVMEM_FILE_AUTO)
		return km_fail(EOPNOTSUPP, "populate: file method %s: io_uring: %s",
			       kvmem_file_method_name(f->opts.file_method), no_ring(r));
	atomic_store(&f->uring_off, true);
	return 0;
}

static struct km_flight *free_flight(struct km_filler *w)
{
	for (unsigned int i = 0; i < DEPTH; i++)
		if (!w->flights[i].busy)
			return &w->flights[i];
	return NULL;
}

static int take_off(struct km_filler *w, struct km_flight *fl, const struct km_piece *p,
		    bool direct)
{
	struct km_fill *f = w->f;
	uint64_t pos = p->page << f->r->page_shift, bytes = p->pages << f->r->page_shift;
	int r = 0;

	fl->piece = *p;
	fl->direct = direct;
	if (f->opts.method != KVMEM_FILL_COPY)
		r = km_store_map(f->r, f->store, pos,
				 bytes); /* where it is refused, the read may be as well */
	if (r < 0) {
		km_piece_abandon(w, &fl->piece);
		return r;
	}
	fl->rd = (struct km_io_read){
		.fd = direct ? f->direct_fd : f->s->fd,
		.to = f->store + pos,
		.bytes = bytes,
		.offset = f->s->offset + km_fill_source_pos(f, pos),
	};
	r = km_io_start(w->io, &fl->rd);
	if (r < 0) {
		r = refused(w, &fl->piece, direct, r);
		atomic_store(&f->uring_off, true);
		return r ? r : 1;
	}
	fl->busy = true;
	return 1;
}

/* ---- at once ---- */

/* The kernel brings it, so that it can just as well put it where it belongs. */
static bool straight(const struct km_fill *f)
{
	return f->store &&
	       (f->s->kind == KM_SOURCE_FILE || (f->s->kind == KM_SOURCE_MEMORY && !f->in_place));
}

/*
 * From the page cache straight into guest memory: the faults that the kernel takes on its way cost
 * less than mapping first and copying through a buffer. Not where write() has won the trial, and
 * not while the file is rich in zero pages, which are cheaper not made than given back.
 */
static int read_in(struct km_filler *w, const struct km_piece *whole_piece)
{
	struct km_fill *f = w->f;
	struct km_piece p = *whole_piece;
	uint64_t pos = p.page << f->r->page_shift, bytes = p.pages << f->r->page_shift;
	uint32_t method = f->r->fd < 0 ? KVMEM_FILL_POPULATE_COPY : KVMEM_FILL_COPY;
	uint32_t won = atomic_load_explicit(&f->method, memory_order_relaxed);
	uint64_t zero = w->counts.zero;
	int r = 0;

	if (won != KVMEM_FILL_POPULATE_COPY && won != KVMEM_FILL_COPY)
		return 0;
	if (f->opts.method != KVMEM_FILL_AUTO || !straight(f) || w->zeros_seen ||
	    !whole(w, pos, bytes))
		return 0;
	if (method == KVMEM_FILL_POPULATE_COPY)
		r = km_store_map(f->r, f->store, pos, bytes);
	if (!r)
		r = km_piece_read(w, pos, f->store + pos, bytes);
	if (r > 0 || r == -EFAULT)
		return 0;
	if (!r)
		r = publish_read(w, &p, f->s->kind == KM_SOURCE_FILE ? KVMEM_FILE_PREAD : 0,
				 method);
	if (r)
		km_piece_abandon(w, &p);
	km_buffer_saw_zeros(w, w->counts.zero - zero, bytes);
	return r ? r : 1;
}

int km_flight_start(struct km_filler *w, const struct km_piece *p)
{
	struct km_fill *f = w->f;
	struct km_piece mine = *p;
	struct km_flight *fl;
	bool direct;
	int r;

	if (!choose(w, p->page << f->r->page_shift, p->pages << f->r->page_shift, &direct))
		return read_in(w, p);
	r = need_ring(w);
	if (!r)
		return 0;
	while (r >= 0 && !(fl = free_flight(w)))
		r = land(w, (struct km_flight *)km_io_wait(w->io));
	if (r < 0) {
		km_piece_abandon(w, &mine);
		return r;
	}
	return take_off(w, fl, p, direct);
}
