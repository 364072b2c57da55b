/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KN_INTERNAL_H
#define KN_INTERNAL_H

/*
 * libkvmem-nbd, on the public interface of libkvmem alone. Its parts, each calling only those above it:
 *
 *	time.c		the time
 *	queue.c		requests, their pieces, and how they end; the clock
 *	holes.c		where the export is zero
 *	transfer.c	pieces on their way over a connection
 *	connection.c	a connection: made, watched, given up, made again; its thread
 *	source.c	the export as a source
 *	nbd.c		opened, looked at, closed
 *
 * A libnbd handle belongs to the thread of its connection; no other thread calls libnbd. A piece is in one of three
 * places: the queue, the list of what a connection has sent, or nowhere since it is over. It changes its place under
 * kvmem_nbd.lock. Its buffer is written to only while it is sent: a handle is closed before its pieces go back to the
 * queue, or before they fail. kvmem_source_complete() is called without the lock.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include <kvmem/nbd.h>

#include <libnbd.h>

#define KN_MOST_CONNECTIONS 16u
#define KN_MOST_DEPTH	    1024u
#define KN_PIECE	    (1u << 20) /* most bytes that are read by one command */
#define KN_PAGE		    4096u      /* what is zero is told in whole pages of a source */

/* -err, with one sentence about it. (clang's analyzer does not see that it never returns 0.) */
#ifdef __clang_analyzer__
#define kn_fail(err, ...) ((void)kvmem_error_set(err, __VA_ARGS__), -1)
#else
#define kn_fail kvmem_error_set
#endif

static inline uint64_t kn_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- time.c ---- */

uint64_t kn_now_ns(void); /* CLOCK_MONOTONIC */
/* now + ns, or the end of time. */
uint64_t kn_after(uint64_t ns);

/* ---- queue.c ---- */

struct kn_request;

/* Of a request, what one command reads. */
struct kn_piece {
	struct kn_piece *next, *prev; /* in the queue, or of what a connection has sent */
	struct kn_piece *answered;    /* of the connection's thread: the next one that was */
	struct kn_request *of;
	enum { KN_QUEUED, KN_SENT, KN_OVER } state;
	struct kn_connection *at; /* SENT */
	uint64_t offset;	  /* bytes into the export */
	uint32_t bytes;
	int error;	  /* errno of the answer */
	uint64_t asked;	  /* bytes that the command reads: whole blocks around the piece */
	uint64_t came;	  /* of these */
	uint8_t *to;	  /* its place in the request's buffer */
	uint8_t *blocks;  /* the whole blocks around it; NULL: it is read to its place */
	uint32_t skipped; /* bytes in front of it in `blocks` */
};

struct kn_list {
	struct kn_piece *first, *last;
};

struct kn_request {
	struct kvmem_source_request *pub; /* its `user` is this, until it is over; under the lock */
	struct kn_request *finished;	  /* the next one to be completed */
	uint64_t until_ns;
	uint64_t bytes;
	uint32_t left; /* pieces that are not over */
	uint32_t count;
	int error; /* -errno, the first */
	struct kn_piece pieces[];
};

/* Requests that are over: who has the lock passes them to kn_complete() when it has let go of it. */
struct kn_finished {
	struct kn_request *first;
};

struct kvmem_nbd;

int kn_submit(struct kvmem_nbd *nbd, uint64_t base, struct kvmem_source_request *const *requests,
	      size_t count);
void kn_cancel(struct kvmem_nbd *nbd, struct kvmem_source_request *request);

/* With the lock held: a piece to be sent by c, or NULL. */
struct kn_piece *kn_take(struct kn_connection *c);
/* With the lock held: a piece that was sent is over, by 0 or -errno; or is to be sent again. */
void kn_over(struct kn_piece *p, int error, struct kn_finished *f);
void kn_again(struct kn_piece *p);
void kn_complete(struct kn_finished *f);

/* With the lock held: `why` of the statistics. */
void kn_note(struct kvmem_nbd *nbd, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Makes all connections that could send something look at the queue. With the lock held. */
void kn_poke_all(struct kvmem_nbd *nbd);
/* Lets pieces fail that no connection takes. */
void *kn_clock(void *arg);

/* ---- holes.c ---- */

struct kn_run {
	uint64_t end;  /* bytes into the export; it begins where the one before ends */
	uint32_t kind; /* enum kvmem_extent_kind */
};

struct kn_runs {
	struct kn_run *at;
	size_t count, room;
};

struct kn_holes {
	pthread_mutex_t lock;
	pthread_cond_t over_changed;
	struct kn_runs known; /* from byte 0 on */
	uint64_t bytes_zero;
	bool over;		  /* no more is asked */
	unsigned int failed;	  /* attempts in a row */
	struct kn_connection *by; /* that has asked */
	/* Of the thread of `by`. */
	struct kn_runs fresh;
	uint64_t asked_at;
	bool answered;
	int error;
};

void kn_holes_init(struct kn_holes *h);
void kn_holes_begin(struct kn_holes *h); /* the server tells them */
void kn_holes_end(struct kn_holes *h);
/* Wait until all that is to be known is known; false: the time is over. */
bool kn_holes_wait(struct kn_holes *h, uint64_t until_ns);
/* Of the connection's thread: ask for more, take an answer, forget what was asked. */
void kn_holes_ask(struct kn_connection *c);
void kn_holes_settle(struct kn_connection *c);
/* True: there is more to ask, by whichever connection works. */
bool kn_holes_lost(struct kn_connection *c);
/* It has asked, and the answer has not been taken. */
bool kn_holes_asked(struct kn_connection *c);
/* The run that `at` lies in: its kind and where it ends. */
struct kn_run kn_holes_find(struct kn_holes *h, uint64_t at, uint64_t *ret_begin);
void kn_holes_count(struct kn_holes *h, uint64_t *ret_known, uint64_t *ret_zero);

/* ---- connection.c ---- */

enum kn_phase { KN_DOWN, KN_CONNECTING, KN_UP };

struct kn_connection {
	struct kvmem_nbd *nbd;
	pthread_t thread;
	int wake; /* eventfd */
	/* Under the lock. */
	enum kn_phase phase; /* changed by its thread alone */
	bool asleep;
	struct kn_list sent; /* in the order of sending; changed by its thread alone */
	unsigned int in_flight;
	/* Of its thread. */
	struct nbd_handle *handle; /* NULL: KN_DOWN */
	struct kn_piece *answered;
	bool lost;	       /* the server says that it is going */
	bool refused;	       /* libnbd has not taken a command */
	unsigned int failures; /* in a row */
	uint64_t until_ns;     /* DOWN: when it is tried again; CONNECTING: when it is given up */
	uint64_t heard_ns;     /* something came, or nothing was owed */
	unsigned long long random;
};

void *kn_connection(void *arg);

/* ---- transfer.c: of the connection's thread ---- */

/* Send what there is in the queue, as much as there is room for. */
void kn_send(struct kn_connection *c);
/* Deal with what has been answered; after each call of libnbd. False: the connection is dead. */
bool kn_settle(struct kn_connection *c);
/* What was sent goes back to the queue, or fails; after the handle was closed. */
void kn_take_back(struct kn_connection *c);

/* ---- nbd.c ---- */

/* What the first connection found. */
struct kn_export {
	uint64_t bytes;
	uint64_t readable; /* whole blocks of it */
	uint32_t block;	   /* bytes; requests begin and end with one */
	uint32_t piece;	   /* most bytes of a command */
	uint32_t flags;	   /* of kvmem_nbd_info */
};

struct kvmem_nbd {
	char *uri;
	struct kvmem_nbd_opts opts;
	_Atomic uint32_t sources;
	pthread_mutex_t lock;
	pthread_cond_t opened; /* the first connection is there, or cannot be made */
	bool tried;
	int error; /* -errno of the first attempt */
	bool stopping;
	struct kn_export export; /* not changed any more when `tried` */
	struct kn_list queue;	 /* by deadline */
	size_t queued;
	pthread_cond_t clock_changed;
	uint64_t clock_until_ns; /* when the clock looks next */
	pthread_t clock;
	struct kvmem_nbd_stats stats; /* but what is counted elsewhere */
	struct kn_holes holes;
	struct kn_connection connections[KN_MOST_CONNECTIONS];
	unsigned int connection_count; /* under the lock */
};

/* ---- source.c ---- */

int kn_source(struct kvmem_nbd *nbd, uint64_t offset, uint64_t bytes,
	      struct kvmem_source **ret_source);

#endif
