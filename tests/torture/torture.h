/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef TORTURE_H
#define TORTURE_H

/*
 * A stress with a model, through the public API, on the kernel that runs.
 *
 * A run is a sequence of rounds. Each round is a process of its own, made by a supervisor that sends it
 * signals, looks for operations that do not end, and prints what happened when it fails. A round has a VM
 * with vCPUs that run, a few areas of guest memory, and threads (actors) that do operations on them. The
 * seed of the run and the number of the round decide which.
 *
 * The model knows what each page must contain. An actor that changes pages or compares them claims these
 * pages before; another actor may have claimed the page beside it, so that pages of one word of a
 * record, of one 64-page run of the dirty log and of one huge page are worked on at the same time.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <kvmem/kvmem.h>

#include "vmm.h"

#define PAGE 4096u
#define GPA  (UINT64_C(4) << 30)
#define AREA_GPA_BYTES \
	(UINT64_C(64) << 20) /* an area may appear at either of two addresses, so far apart */
#define STAMP_STRIDE 512u    /* bytes between two words that a guest writes into a page */
#define MAX_CLONES   3
#define MAX_AREAS    (2 + MAX_CLONES) /* of them two that are no clones */
#define MAX_PIECES   12
#define MAX_THREADS  16
#define MAX_VCPUS    2

/* Kinds of operations: what --without and --only name, what is counted, and what traces show. */
#define OPERATIONS(X) \
	X(GUEST_WRITE, "guest-write") \
	X(GUEST_CHECK, "guest-check") \
	X(GUEST_READ, "guest-read") \
	X(GUEST_SPIN, "guest-spin") \
	X(GUEST_POISON, "guest-poison") \
	X(HOST_WRITE, "host-write") \
	X(HOST_STORE, "host-store") \
	X(HOST_CHECK, "host-check") \
	X(POPULATE, "populate") \
	X(PREFETCH, "prefetch") \
	X(BACKGROUND, "background") \
	X(AROUND, "around") \
	X(DISCARD, "discard") \
	X(DONTNEED, "dontneed") \
	X(REMOVE, "remove") \
	X(PUNCH, "punch") \
	X(ADVISE, "advise") \
	X(LOCK, "lock") \
	X(PROTECT, "protect") \
	X(POLICY, "policy") \
	X(GROW, "grow") \
	X(QUERY, "query") \
	X(REATTACH, "reattach") \
	X(POISON, "poison") \
	X(SLOW, "slow") \
	X(ASYNC, "async") \
	X(RAGGED, "ragged") \
	X(MARK, "mark") \
	X(ABSENT, "absent") \
	X(PUT, "put") \
	X(ROTATE, "rotate") \
	X(CLONES, "clones") \
	X(CAPTURE, "capture") \
	X(SAVE, "save") \
	X(FORK, "fork") \
	X(WAIT, "wait") \
	X(EVENT_LOOP, "event-loop") \
	X(STOP_FILL, "stop-fill") \
	X(HAND_BACK, "hand-back") \
	X(HARVEST, "harvest") \
	X(COMMIT, "commit") \
	X(AUDIT, "audit") \
	X(UNCOMMITTED, "uncommitted") \
	X(RETURN, "return") \
	X(PENDING, "pending") \
	X(FORGET, "forget") \
	X(READER, "reader") \
	X(RESTART, "restart") \
	X(RING_FULL, "ring-full") \
	X(URING, "uring") \
	X(SIGNALS, "signals") \
	X(STOPS, "stops") \
	X(SETUP, "setup") \
	X(CLOSE, "close")

enum operation {
#define X(id, name) OP_##id,
	OPERATIONS(X)
#undef X
		OP_COUNT
};

/* What a round is for. */
enum kind { KIND_MIX, KIND_FAULTS, KIND_RING, KIND_SLOTS, KIND_COUNT };

struct options {
	uint64_t seed;
	double seconds;
	uint64_t mask; /* bit i: operations of kind i may happen */
	unsigned int first_round, rounds;
	int kind;	  /* -1: by seed */
	uint32_t backing; /* 0: by seed */
	double hang_seconds;
	bool verbose, hold, one_round, want_shrink;
	bool no_vcpus; /* without KVM: threads are the writers */
	bool shrink;   /* it is being done: failures are not told */
};

extern struct options options;
#define FOLDER_BYTES 64
extern char folder[FOLDER_BYTES]; /* for the files of a round; the supervisor empties it */

/*
 * Each round leaves some kinds of operations out, by its seed, and does one kind more often: what hides a
 * fault is often another operation that mends it in time.
 */
struct swarm {
	uint64_t mask;
	enum operation often;
};

extern struct swarm swarm;

static inline bool allowed(enum operation op)
{
	return (options.mask & swarm.mask & UINT64_C(1) << op) != 0;
}

/* ---- report.c: what the supervisor sees of a round ---- */

#define TRACE_EVENTS   2048
#define RESULT_PENDING INT64_MIN

struct event {
	uint64_t ns;
	uint64_t argument;
	int64_t result; /* RESULT_PENDING until it is done */
	uint32_t first, count;
	uint16_t op;
	int16_t area; /* -1: none */
};

/* A thread's trace. Written by the thread, read by the supervisor when the round has failed. */
struct trace {
	char name[16];
	_Atomic int32_t tid;
	_Atomic uint64_t busy_since; /* 0: between operations */
	_Atomic uint64_t events;
	struct event event[TRACE_EVENTS];
};

enum counter {
	COUNT_FAULTS,
	COUNT_GUEST_PAGES, /* compared by the guest */
	COUNT_HOST_PAGES,  /* compared by the host */
	COUNT_ENTRIES,	   /* pages taken from KVM's log */
	COUNT_RESETS,
	COUNT_SHORT_RESETS,
	COUNT_POISONED,
	COUNT_CAPTURED, /* pages that came out of captures as the model says */
	COUNT_SAVED,	/* pages that came out of images, or of what is stored */
	COUNT_SIGNALS,
	COUNT_STOPS,
	COUNT_ROUNDS,
	COUNT_COUNTERS
};

struct report {
	_Atomic int failed;
	_Atomic int storming; /* the supervisor may send signals */
	_Atomic int fail_area, fail_page;
	char failure[1024];
	char setup[512];
	_Atomic uint64_t done[OP_COUNT];
	_Atomic uint64_t counter[COUNT_COUNTERS];
	struct trace trace[MAX_THREADS];
};

extern struct report *report;

struct area;
struct thread;

const char *operation_name(enum operation op);
uint64_t now_ns(void);
void report_open(void);
void report_clear(void); /* all but the counters */
void report_print_failure(unsigned int round);
void report_print_counts(double seconds);
void count(enum counter counter, uint64_t n);

/* Around an operation of the calling thread. */
void op_begin(struct thread *thread, enum operation op, const struct area *area, uint32_t first,
	      uint32_t pages, uint64_t argument);
int64_t op_end(struct thread *thread, int64_t result);

/* The round ends here, and with it the process. The first failure is the one told. */
_Noreturn void fail(const struct area *area, int64_t page, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* For calls of the library that must succeed here: returns the result. */
int64_t must_be(int64_t result, const char *call, const char *file, int line);
#define must(call) must_be((call), #call, __FILE__, __LINE__)

/* ---- random numbers ---- */

struct rng {
	uint64_t state;
};

struct rng rng_of(uint64_t seed, uint64_t stream);
uint64_t below(struct rng *rng, uint64_t n);
uint64_t between(struct rng *rng, uint64_t from, uint64_t to); /* both included */
bool one_in(struct rng *rng, uint64_t n);

/* ---- sources.c ---- */

enum source_kind { SOURCE_CALLBACK, SOURCE_MEMORY, SOURCE_FILE };

struct bad_range {
	_Atomic uint64_t from, to; /* bytes of the source; empty: to == 0 */
};

struct source {
	struct kvmem_source *handle;
	enum source_kind kind;
	bool holes;
	uint64_t seed, bytes;
	_Atomic uint64_t slow_ns;	   /* how long a read takes */
	struct bad_range bad[MAX_THREADS]; /* one for each actor */
	_Atomic uint8_t *read_done; /* a byte a page: a read that returned 0 has covered it */
	unsigned char *content;
	int fd;
	struct server *server; /* answers later; NULL: the callback does */
};

void source_open(struct source *source, enum source_kind kind, uint64_t seed, uint64_t bytes,
		 struct rng *rng);
void source_close(struct source *source);
/* What the source holds; beyond its end, zeros. */
void source_content(const struct source *source, uint64_t offset, void *to, uint64_t bytes);
/* False: the library cannot have read these bytes yet. */
/* Somebody else has brought its content. */
void source_was_read(struct source *source, uint64_t offset, uint64_t bytes);
bool source_may_be_read(const struct source *source, uint64_t offset, uint64_t bytes);
void source_fail(struct source *source, unsigned int actor, uint64_t offset, uint64_t bytes);
void source_recover(struct source *source, unsigned int actor);

/* ---- model.c ---- */

enum base {
	BASE_ZERO,
	BASE_SOURCE,
	BASE_EITHER, /* the kernel's and the library's rules leave both open, until somebody looks */
};

/* Changed by who claimed the page; the atomic members are also settled by those who share it. */
struct page {
	uint64_t seed, gpa; /* of the words written over the base; seed 0: none were */
	uint8_t generation; /* which source it had, or will have */
	_Atomic uint8_t base;
	_Atomic uint8_t exists; /* somebody has accessed it, and nobody has taken it away since */
	_Atomic uint8_t bad; /* its source fails or has failed: an access may be a memory error */
};

/* A part of an area that has a slot of its own. */
struct piece {
	uint32_t first, count;
	uint64_t gpa; /* of the area's page 0, would the slot begin there */
	uint32_t slot;
	unsigned int users; /* who access it without a claim: it stays attached */
	bool attached, closing;
};

struct area {
	int index;
	struct kvmem_region *region;
	uint32_t backing;
	unsigned char *memory;
	int fd;	       /* -1: none */
	int own_fd;    /* of an adopted file */
	void *own_map; /* the mapping is ours, or NULL */
	uint32_t room; /* pages that it can grow to; what is beyond `pages` is nobody else's */
	uint32_t pages, unit; /* pages that are discarded together */
	bool tracked;
	uint64_t gpa;
	struct source *source;	   /* what absent pages have now */
	struct source *sources[2]; /* by generation */
	uint8_t generation;
	uint64_t source_offset;
	_Atomic int paged;    /* enum paged */
	pthread_mutex_t lock; /* over the claims and pieces */
	pthread_cond_t changed;
	int16_t *claims; /* < 0: exclusive; > 0: so many share the page */
	struct page *page;
	struct piece piece[MAX_PIECES]; /* count 0: none */
	pthread_mutex_t policy_lock;
	bool clone; /* its source is the template of the round */
};

enum paged { PAGED_NO, PAGED_EVENTS, PAGED_NO_EVENTS };

enum claim { CLAIM_SHARED, CLAIM_EXCLUSIVE };
#define CLAIM_ATTACHED 1u /* all in one slot */
#define CLAIM_UNITS    2u /* whole units */

struct span {
	struct area *area;
	uint32_t first, count;
	enum claim how;
	uint64_t gpa; /* with CLAIM_ATTACHED: of its first page */
};

void area_model_open(struct area *area);
void area_model_close(struct area *area);
/* A run of at most `most` pages anywhere; false: none found. */
bool claim(struct area *area, struct rng *rng, enum claim how, unsigned int flags, uint32_t most,
	   struct span *ret_span);
void unclaim(const struct span *span);
/* Pages may be accessed, and change meanwhile; the slot stays. False: try again. */
bool use_piece(struct area *area, struct rng *rng, struct span *ret_span);
void unuse_piece(const struct span *span);
/* Waits until the piece is nobody's; false: there is none, or another one is at it. */
bool claim_piece(struct area *area, unsigned int index, struct span *ret_span);
void unclaim_piece(struct area *area, unsigned int index);

uint64_t source_offset_of(const struct area *area, uint32_t page);
void expected_page(const struct area *area, uint32_t page, enum base base, void *to);
/* The page is as the model says; what was open is settled by it. */
bool page_matches(struct area *area, uint32_t page, const void *content);
/* A page that was added by OP_GROW: its number is in one word, and all else is zero. */
#define GROWN_WORD(page) (8 * ((page) % 500))
bool grown_matches(uint32_t page, const void *content);
uint32_t pages_of(const struct area *area); /* with those */
/* The page as it was when this copy of the model was made. */
bool page_was(const struct area *area, uint32_t page, const struct page *then, const void *content);
_Noreturn void fail_content(struct area *area, uint32_t page, const void *content, const char *who);
/* Of what the page was at another time. */
_Noreturn void fail_content_then(struct area *area, uint32_t page, const struct page *then,
				 const void *content, const char *who);

/* Pages copied before the first that cannot be accessed. Cannot be killed by a page that is poisoned. */
uint32_t read_pages(const struct area *area, uint32_t first, uint32_t count, void *to);
/* One word into each stride, as the guest does. */
uint32_t write_stamps(const struct area *area, uint32_t first, uint32_t count, uint64_t seed);
/* The same by stores of this thread. */
void store_stamps(const struct area *area, uint32_t first, uint32_t count, uint64_t seed);
/* Compare pages that the caller claimed, by reading them through the region. */
void check_pages(struct area *area, uint32_t first, uint32_t count, const char *who);
void model_written(const struct span *span, uint64_t seed, uint64_t gpa);
void model_zeroed(const struct span *span);

/* ---- round.c ---- */

enum pager_state { PAGER_NONE, PAGER_RUNNING, PAGER_STOPPING };

/* A sealed file that clones share, and what it holds. */
struct template
{
	int fd; /* -1: none */
	uint32_t pages, unit;
	const unsigned char *memory; /* a mapping for reading */
	struct source source;
};

struct round {
	uint64_t seed;
	enum kind kind;
	struct rng rng;
	struct kvmem_vm *vm;
	struct vmm *vmm;
	struct vmm_vcpu *vcpu[MAX_VCPUS];
	unsigned int vcpus;
	bool supervisor; /* the guests run in supervisor mode */
	struct area area[MAX_AREAS];
	unsigned int areas;	/* the clones are the last of them */
	unsigned int own_areas; /* those before */
	struct template template;
	_Atomic int capturing; /* a capture is under way: since all actors were parked */
	struct source source[MAX_AREAS][2];
	struct kvmem_pager *pager;
	unsigned int pagers; /* that there have been */
	uint32_t pager_flags;
	_Atomic int pager_state;
	pthread_rwlock_t pager_gate; /* read: the pager is not freed meanwhile */
	unsigned int retries;	     /* how often `fail` asks for another try */
	bool late;		     /* a region came when the pager was running already */
	_Atomic int completes;	     /* how often this pager said that nothing is missing */
	struct kvmem_dirty *dirty;
	struct kvmem_reader *reader; /* the harvester's: the tracker's own, or another one */
	pthread_rwlock_t dirty_gate; /* read: the tracker is not restarted meanwhile */
	bool tracking;
	_Atomic int populated; /* all pages have content: no pager and nothing to populate */
	uint32_t max_claim;
	/* parking */
	pthread_mutex_t lock;
	pthread_cond_t change;
	bool park, end;
	unsigned int running; /* actors that are not parked */
};

struct thread {
	struct round *round;
	struct trace *trace;
	unsigned int index;
	struct rng rng;
	pthread_t id;
	void (*body)(struct thread *thread);
	struct vmm_vcpu *vcpu;
	unsigned char *buffer; /* BUFFER_PAGES */
};

#define BUFFER_PAGES 64u

void run_round(uint64_t seed, enum kind kind);
struct thread *thread_start(const char *name, void (*body)(struct thread *), struct vmm_vcpu *vcpu);
void thread_join(struct thread *thread);
/* False: the round ends. Waits while the actors are parked. */
bool go_on(struct thread *thread);
void park_actors(struct round *round);
void unpark_actors(struct round *round);
uint64_t gpa_of(const struct area *area, uint32_t page, bool other);
void main_thread_open(struct thread *thread, const char *name);

/* setup.c */
void round_open(struct round *round, struct thread *thread);
void round_close(struct round *round, struct thread *thread);
void swarm_open(uint64_t seed);
bool is_turn(struct thread *thread, enum operation op, unsigned int weight, unsigned int of);
void open_tracker(struct round *round); /* round->dirty stays NULL where there is none */
void open_guest(struct round *round);
/* False: this memory takes no pager. */
bool pager_open(struct round *round, struct thread *thread);
void attach_area(struct round *round, struct area *area);
void pager_close(struct round *round);
void dirty_start(struct round *round);
/* Pages that are marked absent, and regions that come, are missing once more. */
bool completes_again(const struct round *round);
void count_pager(const struct kvmem_pager *pager);
void count_dirty(const struct kvmem_dirty *dirty);
void describe(const char *format, ...) __attribute__((format(printf, 1, 2)));
void mark_some(struct round *round, struct thread *thread);

/* actors.c, guests.c, harvest.c, hammer.c, storms.c */
void guest_actor(struct thread *thread);
void guest_signals_open(void);
void host_actor(struct thread *thread);
bool heal(struct thread *thread, struct span *span, bool by_discard);
void attach_piece(struct area *area, struct piece *piece, uint32_t slot);
void event_loop_start(struct round *round);
void event_loop_stop(struct round *round);
void merge_span(struct round *round, const struct span *span);
void harvester(struct thread *thread);
void other_reader(struct thread *thread);
void reader_open(struct round *round);
void reader_close(struct round *round);
void harvest_open(struct round *round);
void harvest_close(struct round *round);
/* The last harvest, with all actors parked: every page must be as the copy. */
void harvest_last(struct thread *thread);
void harvest_forget(const struct area *area, uint32_t page);
void hammer_faults(struct round *round, struct thread *thread);
void hammer_ring(struct round *round, struct thread *thread);
void hammer_slots(struct round *round, struct thread *thread);

/* clones.c */
void clones_open(struct round *round);
void clones_close(struct round *round);
void check_template(struct round *round, uint32_t first, uint32_t count);
/* Each page has content, from a source or from whoever wrote it, and no pager has the area. */
bool is_filled(const struct round *round, const struct area *area);

/* capture.c: by the main thread; another one fetches. */
struct moment {
	struct area *area[MAX_AREAS];
	struct kvmem_region *region[MAX_AREAS];
	struct page *page[MAX_AREAS]; /* the model of area[i] at the pause */
	uint32_t pages[MAX_AREAS];    /* with those that it has grown by */
	unsigned int count;
};
void capture_open(struct round *round);
void capture_close(struct round *round);
/* Parks the actors for the pause. */
void capture_begin(struct round *round, struct thread *thread);
void capture_end(struct round *round, struct thread *thread);
/* What the library refuses while a capture is under way. */
void capture_check_refusals(struct round *round);

/* save.c: with all actors parked, so that the model says what each page is. */
void save_pause(struct round *round, struct thread *thread);
void harvest_saved(const struct area *area, uint32_t page, const void *content);

#ifdef TORTURE_IMAGES
/* images.c */
bool images_open(void);
void images_close(void);
void save_image(struct round *round, struct thread *thread);
int image_capture_start(struct moment *moment, struct rng *rng);
int image_capture_run(struct rng *rng);
void image_capture_end(const struct moment *moment, int result);
#endif

struct storm {
	struct rng rng;
	uint64_t until, pause_ns;
	int what; /* 0: calm */
};

struct busy_ring;
struct busy_ring *busy_ring_open(void);
void busy_ring_arm(struct busy_ring *ring, struct rng *rng);
void busy_ring_close(struct busy_ring *ring);

void storm_open(struct storm *storm, uint64_t seed);
/* A signal or a stop, when it is time; returns ns to sleep. */
uint64_t storm_step(struct storm *storm, pid_t pid);

#endif
