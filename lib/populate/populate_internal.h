/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_POPULATE_INTERNAL_H
#define KM_POPULATE_INTERNAL_H

/*
 * One kvmem_populate() is a struct km_fill; each of its threads a struct km_filler. A filler takes
 * chunks and gets pieces: claimed pages that all hold data, or that all hold none. A piece is
 * filled at once through a buffer or by reads in flight straight into guest memory.
 *
 * Each file calls only those below it:
 *
 *	populate.c	arguments, the whole, the result
 *	prealloc.c	all pages of a range as zeros, without a source
 *	map_guest.c	what is filled, in the guest's tables too
 *	crew.c		the threads, waiting for the claims of others
 *	next.c		chunks, claims: which piece is next
 *	flight.c	reads straight into guest memory (io.c: io_uring)
 *	buffer.c	a piece through a buffer, zeros found
 *	method.c	how pages are made, and which way is the fastest
 *	piece.c		a piece and the ends of its claim, extents of the source
 *	progress.c	how far it is, and what ends it early
 *	names.c		what the methods are called
 *	threads.c	how many threads pay
 *
 * Positions (`pos`) are bytes into the region.
 */

#include "populate/populate.h"

#define KM_FILL_METHODS (KVMEM_FILL_COPY + 1)
#define KM_FILE_METHODS (KVMEM_FILE_PREAD + 1)
#define KM_FILL_BLOCK	(256u << 10) /* default chunk, and most that goes through a buffer at once */
#define KM_FILL_TICK_NS 50000000u    /* between two calls of `progress` */

struct km_io;
struct km_flight;

struct km_fill_counts {
	uint64_t copied;
	uint64_t written;
	uint64_t read;
	uint64_t zero;
	uint64_t hole;
	uint64_t present;
	uint64_t method[KM_FILL_METHODS]; /* bytes stored by each */
	uint64_t file[KM_FILE_METHODS];	  /* bytes read by each */
};

/* Claimed pages, not yet published. */
struct km_piece {
	uint64_t page;
	uint64_t pages;
	bool data;   /* some of each page; else the source holds only zeros and holes here */
	bool stored; /* of the first page, a part is in the kernel already */
};

struct km_filler {
	_Atomic uint64_t next; /* chunk; other threads take from here when theirs are done */
	uint64_t first, end;   /* chunks of its share */
	_Atomic uint64_t done; /* bytes dealt with, for progress */
	struct km_fill *f;
	unsigned int index;
	bool started;
	bool recount; /* a second look: what is present was counted in the first */
	struct km_thread thread;

	uint64_t page;	      /* next one to look at */
	uint64_t claimed_end; /* claimed from `page` up to here */
	uint64_t chunk_end;
	uint64_t deferred;	    /* bytes of pages that others had claimed */
	struct kvmem_extent ext[2]; /* last ones asked for */
	unsigned int ext_last;
	struct km_numa_state numa;
	uint64_t numa_from; /* the thread's policy is the one of [from, end) */
	uint64_t numa_end;

	uint32_t method; /* of the last store */
	bool zeros_seen; /* in the last piece, and not few */
	uint8_t *buf;	 /* KM_FILL_BLOCK bytes, made when needed */
	struct km_io *io;
	struct km_flight *flights;
	struct km_fill_counts counts;
	struct km_fill_counts kept; /* when the last page was published: back to this on failure */
	char line[128];		    /* the next one's counters are in cache lines of their own */
};

struct km_trial {
	_Atomic uint64_t bytes;
	_Atomic uint64_t ns;
};

struct km_fill {
	struct kvmem_region *r;
	struct kvmem_source *s;
	struct kvmem_populate_opts opts;
	bool watched;	/* by a userfaultfd: a pager serves the region, or has handed it back */
	uint8_t *store; /* where content is stored; NULL: only by km_pages_place() */
	uint64_t offset, end; /* the range asked for */
	uint64_t source_offset;
	uint64_t first_page, pages; /* that it touches */
	uint64_t chunk_pages, chunks;
	uint64_t page_bytes, grain; /* of the region; of the host */
	bool keep_zero;
	bool in_place; /* the source is memory that can be read where it lies */

	struct km_filler *fillers;
	unsigned int threads;
	uint64_t start_ns, tick_ns;
	_Atomic int stop;
	_Atomic int error; /* the first one, -errno */
	char detail[512];

	_Atomic uint32_t method;     /* AUTO as long as they are on trial */
	_Atomic uint32_t candidates; /* bit per method */
	struct km_trial trial[KM_FILL_METHODS];

	int direct_fd;			    /* the source's file with O_DIRECT, or -1 */
	_Atomic bool direct_off, uring_off; /* refused once: not tried again */
	void *cached; /* the source's file mapped, for mincore() only: never touched */
	uint64_t cached_bytes, cached_offset;
};

static inline bool km_fill_stopped(struct km_fill *f)
{
	return atomic_load_explicit(&f->stop, memory_order_relaxed);
}

static inline uint64_t km_fill_pos(const struct km_fill *f, uint64_t page)
{
	return page << f->r->page_shift;
}

static inline uint64_t km_fill_source_pos(const struct km_fill *f, uint64_t pos)
{
	return pos - f->offset + f->source_offset;
}

/* Bytes of [from, to) that are asked for. */
static inline uint64_t km_fill_clip(const struct km_fill *f, uint64_t from, uint64_t to)
{
	from = from > f->offset ? from : f->offset;
	to = km_min(to, f->end);
	return from < to ? to - from : 0;
}

/* ---- threads.c ---- */
#define KM_FILL_MOST_THREADS 256u
/* As many as are asked for, or as pay for so many bytes; at most one for each unit of work. */
unsigned int km_fill_threads(uint32_t asked, uint64_t bytes, uint64_t units);

/* ---- prealloc.c, map_guest.c ---- */
int km_prealloc(struct kvmem_region *r, uint64_t offset, const struct kvmem_populate_opts *o,
		struct kvmem_populate_result *res);
int km_map_guest_check(const struct kvmem_region *r, const struct kvmem_populate_opts *o);
int km_map_guest(const struct kvmem_region *r, uint64_t offset, uint64_t bytes,
		 const struct kvmem_populate_opts *o, struct kvmem_populate_result *res);

/* ---- crew.c ---- */
int km_fill_crew(struct km_fill *f, unsigned int *ret_threads); /* the error stays in f */

/* ---- progress.c ---- */
/* Whoever fills ends soon. The first failure counts; this thread's detail is taken along. */
void km_fill_stop(struct km_fill *f, int error);
/* Tells the caller where it stands, when it is time. His thread alone. */
void km_fill_tick(struct km_fill *f, bool last);

/* ---- next.c ---- */
int km_fill_next(struct km_filler *w, struct km_piece *p); /* 1, 0: no more, -errno */
void km_fill_release(struct km_filler *w);		   /* what is claimed and not handed out */

/* ---- flight.c ---- */
int km_flight_prepare(struct km_fill *f);
void km_flight_finish(struct km_fill *f);
/* 1: the piece is in flight or done, 0: not its way, -errno (piece abandoned). */
int km_flight_start(struct km_filler *w, const struct km_piece *p);
int km_flight_drain(struct km_filler *w); /* wait for all that is in flight */

/* ---- buffer.c: on failure the rest of the piece is abandoned ---- */
int km_buffer_fill(struct km_filler *w, struct km_piece *p);
int km_buffer_zeros(struct km_filler *w, struct km_piece *p); /* store zeros all over it */
int km_buffer_need(struct km_filler *w);		      /* its memory, which fill() frees */
void km_buffer_saw_zeros(struct km_filler *w, uint64_t zero, uint64_t bytes);

/* ---- method.c ---- */
int km_method_choose(struct km_fill *f);
/*
 * Store content (NULL: zeros) and count it. *ret_placed: bytes that are published already, on
 * failure too.
 */
int km_method_store(struct km_filler *w, uint64_t pos, const uint8_t *src, uint64_t bytes,
		    uint64_t *ret_placed);
void km_method_uncount(struct km_filler *w, uint64_t pos,
		       uint64_t end); /* it is not there after all */

/* ---- piece.c ---- */
int km_piece_extent(struct km_filler *w, uint64_t pos, uint32_t *ret_kind, uint64_t *ret_end);
int km_piece_read(struct km_filler *w, uint64_t pos, void *to, uint64_t bytes);
/* The first `pages` of the piece are stored; on failure those before are published. */
int km_piece_stored(struct km_filler *w, struct km_piece *p, uint64_t pages);
void km_piece_placed(struct km_filler *w, struct km_piece *p, uint64_t pages);
int km_piece_zero(struct km_filler *w, struct km_piece *p, uint64_t pages);
int km_piece_empty(struct km_filler *w,
		   struct km_piece *p); /* all of it: holes and zeros counted */
/* The rest of the piece cannot be filled: zero and absent again. */
void km_piece_abandon(struct km_filler *w, struct km_piece *p);

#endif
