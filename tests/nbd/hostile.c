// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A server that lies, in every message that it sends: what a source gives out is right, or an error. */
#include "nbd_rig.h"

#include <endian.h>

#define EXPORT (4 * MIB)

enum trick {
	HONEST,
	/* of reads */
	HALF,	  /* half of the data, and "that was all" */
	NOTHING,  /* "that was all" */
	OUTSIDE,  /* data of another place */
	TWICE,	  /* two answers */
	STRANGER, /* to somebody who did not ask */
	GARBAGE,
	CUT,	/* half of an answer, and the end */
	BROKEN, /* an error */
	LEAVES, /* the error "I am shutting down" */
	MUTE,
	LAST_OF_READS,
	/* of block status */
	EMPTY_RUN = LAST_OF_READS,
	HUGE_RUN,
	NO_RUN,
	OTHER_CONTEXT,
	TOO_MUCH_STATUS,
	CUT_STATUS,
	MUTE_STATUS,
	HOLE_ALONE, /* not allocated, and nothing about its bytes */
	LAST_OF_STATUS,
	/* of all */
	TRICKLE, /* a byte now and then */
	ANY,	 /* each time another one */
};

static struct {
	int listener;
	pthread_t thread;
	_Atomic int trick;
	_Atomic unsigned int times; /* that it is done; then HONEST; 0: always */
	_Atomic unsigned int accepted, asked, status_asked;
	_Atomic bool end;
	unsigned long long seed;
} liar;

/* ---- the protocol ---- */

struct request {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, offset;
	uint32_t bytes;
} __attribute__((packed));

struct chunk {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie;
	uint32_t bytes;
} __attribute__((packed));

static bool get(int fd, void *buf, size_t bytes)
{
	return !bytes || recv(fd, buf, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

static bool put(int fd, const void *buf, size_t bytes)
{
	const struct timespec tick = { .tv_nsec = 20000000 };

	for (size_t i = 0; liar.trick == TRICKLE && i < bytes && !liar.end; i++) {
		nanosleep(&tick, NULL);
		if (send(fd, (const char *)buf + i, 1, MSG_NOSIGNAL) != 1)
			return false;
	}
	return liar.trick == TRICKLE || send(fd, buf, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static bool put_reply(int fd, uint32_t option, uint32_t type, const void *data, uint32_t bytes)
{
	struct {
		uint64_t magic;
		uint32_t option, type, bytes;
	} __attribute__((packed))
	r = { htobe64(0x3e889045565a9), htobe32(option), htobe32(type), htobe32(bytes) };

	return send(fd, &r, sizeof(r), MSG_NOSIGNAL) == sizeof(r) &&
	       (!bytes || send(fd, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes);
}

/* True: the client wants to go on to commands. */
static bool negotiate(int fd)
{
	static const char context[] = "\0\0\0\7base:allocation";
	struct {
		uint16_t info;
		uint64_t bytes;
		uint16_t flags;
	} __attribute__((packed)) info = { 0, htobe64(EXPORT), htobe16(1 | 2) };
	struct {
		uint64_t magic;
		uint32_t option, bytes;
	} __attribute__((packed)) o;
	char data[4096], hello[18] = "NBDMAGICIHAVEOPT\0\3";

	if (send(fd, hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello) || !get(fd, data, 4))
		return false;
	while (get(fd, &o, sizeof(o)) && be32toh(o.bytes) <= sizeof(data) &&
	       get(fd, data, be32toh(o.bytes))) {
		uint32_t option = be32toh(o.option);

		if (option == 7) /* GO */
			return put_reply(fd, 7, 3, &info, sizeof(info)) &&
			       put_reply(fd, 7, 1, NULL, 0);
		if (option == 8) /* STRUCTURED_REPLY */
			put_reply(fd, 8, 1, NULL, 0);
		else if (option == 10) /* SET_META_CONTEXT */
			(void)(put_reply(fd, 10, 4, context, sizeof(context) - 1) &&
			       put_reply(fd, 10, 1, NULL, 0));
		else
			put_reply(fd, option, 0x80000001u, NULL, 0);
	}
	return false;
}

static bool put_chunk_head(int fd, uint64_t cookie, uint16_t type, size_t bytes)
{
	struct chunk c = { htobe32(0x668e33ef), htobe16(1), htobe16(type), cookie,
			   htobe32((uint32_t)bytes) };

	return put(fd, &c, sizeof(c));
}

static bool put_chunk(int fd, uint64_t cookie, uint16_t type, const void *head, size_t head_bytes,
		      const void *data, size_t bytes)
{
	return put_chunk_head(fd, cookie, type, head_bytes + bytes) && put(fd, head, head_bytes) &&
	       put(fd, data, bytes);
}

static bool put_error(int fd, uint64_t cookie, uint32_t error)
{
	struct {
		uint32_t error;
		uint16_t bytes;
	} __attribute__((packed)) e = { htobe32(error), 0 };

	return put_chunk(fd, cookie, 32769, &e, sizeof(e), NULL, 0);
}

static bool put_data(int fd, uint64_t cookie, uint64_t offset, const uint8_t *data, size_t bytes)
{
	uint64_t at = htobe64(offset);

	return put_chunk(fd, cookie, 1, &at, sizeof(at), data, bytes);
}

/* ---- lies ---- */

static bool answer_read(int fd, const struct request *r, enum trick trick)
{
	uint64_t offset = be64toh(r->offset), at = htobe64(offset);
	uint32_t bytes = be32toh(r->bytes);
	static uint8_t data[MIB];

	ck_assert_uint_le(bytes, MIB);
	for (uint32_t i = 0; i < bytes; i++)
		data[i] = pattern_at(offset + i);
	switch (trick) {
	case HALF:
		return put_chunk(fd, r->cookie, 1, &at, 8, data, bytes / 2);
	case NOTHING:
		return put_chunk(fd, r->cookie, 0, NULL, 0, NULL, 0);
	case OUTSIDE:
		return put_data(fd, r->cookie, offset + bytes, data, bytes);
	case TWICE:
		return put_data(fd, r->cookie, offset, data, bytes) &&
		       put_data(fd, r->cookie, offset, data, bytes);
	case STRANGER:
		return put_data(fd, ~r->cookie, offset, data, bytes);
	case GARBAGE:
		return put(fd, data + bytes / 3, bytes / 2);
	case CUT:
		return put_chunk_head(fd, r->cookie, 1, 8 + bytes) && put(fd, &at, 8) &&
		       put(fd, data, bytes / 2) && false;
	case BROKEN:
		return put_error(fd, r->cookie, 5);
	case LEAVES:
		return put_error(fd, r->cookie, 108);
	case MUTE:
		return true;
	default:
		return put_data(fd, r->cookie, offset, data, bytes);
	}
}

/* The first half is told to be data, and the second as well: nothing of this export is zero. */
static bool answer_status(int fd, const struct request *r, enum trick trick)
{
	uint32_t bytes = be32toh(r->bytes), context = htobe32(trick == OTHER_CONTEXT ? 8 : 7);
	uint32_t runs[2048] = { htobe32(bytes / 2), 0, htobe32(bytes - bytes / 2), 0 };
	size_t used = 4;

	switch (trick) {
	case EMPTY_RUN:
		runs[0] = 0;
		break;
	case HUGE_RUN:
		runs[0] = runs[2] = UINT32_MAX;
		break;
	case NO_RUN:
		used = 0;
		break;
	case TOO_MUCH_STATUS:
		for (used = 0; used < 2048; used += 2)
			runs[used] = htobe32(1u << 31);
		break;
	case HOLE_ALONE:
		runs[1] = runs[3] = htobe32(1);
		break;
	case CUT_STATUS:
		return false;
	case MUTE_STATUS:
		return true;
	default:
		break;
	}
	return put_chunk(fd, r->cookie, 5, &context, 4, runs, used * 4);
}

static enum trick next_trick(bool status)
{
	enum trick trick = liar.trick;

	if (trick == HONEST || trick == TRICKLE)
		return HONEST;
	if (trick == ANY)
		return (enum trick)(harness_random(&liar.seed) % (LAST_OF_STATUS + 6));
	if (status != (trick >= LAST_OF_READS))
		return HONEST;
	if (liar.times && !--liar.times)
		liar.trick = HONEST;
	return trick;
}

static void serve(int fd)
{
	struct request r;

	atomic_fetch_add(&liar.accepted, 1);
	if (!negotiate(fd))
		return;
	while (get(fd, &r, sizeof(r))) {
		bool status = be16toh(r.type) == 7;

		atomic_fetch_add(status ? &liar.status_asked : &liar.asked, 1);
		if (be16toh(r.type) != 0 && !status)
			return;
		if (status ? !answer_status(fd, &r, next_trick(true))
			   : !answer_read(fd, &r, next_trick(false)))
			return;
	}
}

static void *liar_thread(void *arg)
{
	int fd;

	while (!liar.end && (fd = accept(liar.listener, NULL, NULL)) >= 0) {
		serve(fd);
		close(fd);
	}
	return arg;
}

static void liar_start(enum trick trick, unsigned int times)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX, .sun_path = "sock" };

	memset(&liar, 0, sizeof(liar));
	liar.trick = (int)trick;
	liar.times = times;
	liar.seed = 1;
	liar.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	unlink("sock");
	ck_assert_int_eq(bind(liar.listener, (struct sockaddr *)&at, sizeof(at)), 0);
	ck_assert_int_eq(listen(liar.listener, 64), 0);
	ck_assert_int_eq(pthread_create(&liar.thread, NULL, liar_thread, NULL), 0);
}

static void liar_end(void)
{
	liar.end = true;
	shutdown(liar.listener, SHUT_RDWR);
	pthread_join(liar.thread, NULL);
	close(liar.listener);
}

/* ---- tests ---- */

static struct kvmem_nbd *open_liar(uint64_t deadline_ns, uint64_t silence_ns, uint64_t retry_ns)
{
	struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;

	o.connections = 1;
	o.deadline_ns = deadline_ns;
	o.silence_ns = silence_ns;
	o.retry_ns = retry_ns;
	return open_nbd(&o);
}

/* One page, right or an error; and right when it is. */
static int read_page(struct kvmem_source *source, uint64_t offset)
{
	uint8_t page[PAGE];
	int r = kvmem_source_read(source, offset, page, PAGE);

	ck_assert(r || is_pattern(page, offset, PAGE));
	return r;
}

static const enum trick lies[] = { HALF,    NOTHING, OUTSIDE, TWICE,  STRANGER,
				   GARBAGE, CUT,     BROKEN,  LEAVES, MUTE };

/* It lies once. What was a lie about the connection costs the connection, and is asked for again. */
TEST(one_lie)
{
	enter_folder();
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		bool final = lies[i] == HALF || lies[i] == NOTHING || lies[i] == BROKEN;
		struct kvmem_source *source;
		struct kvmem_nbd *nbd;
		int r;

		liar_start(lies[i], 1);
		nbd = open_liar(60000 * MS, 200 * MS, 20 * MS);
		source = source_of(nbd, 0, 0);
		r = read_page(source, MIB);
		ck_assert_msg(r == (final ? -EIO : 0), "lie %d: %d", (int)lies[i], r);
		ck_assert_int_eq(read_page(source, 2 * MIB), 0);
		must(kvmem_source_free(source));
		must(kvmem_nbd_close(nbd));
		liar_end();
	}
	leave_folder();
}
END

/* It lies always: whatever it is, the request fails when its time is over, at the latest, and connections are not made
 * in a storm. */
TEST(nothing_but_lies)
{
	enter_folder();
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct kvmem_source *source;
		struct kvmem_nbd *nbd;
		int r;

		liar_start(lies[i], 0);
		nbd = open_liar(400 * MS, 100 * MS, 1000 * MS);
		source = source_of(nbd, 0, 0);
		for (unsigned int k = 0; k < 2; k++) {
			r = read_page(source, k * MIB);
			/* The first of two answers is right. */
			ck_assert_msg(r == -EIO || r == -ETIMEDOUT || (!r && lies[i] == TWICE),
				      "lie %d: %d", (int)lies[i], r);
		}
		ck_assert_uint_le(liar.accepted, 30);
		must(kvmem_source_free(source));
		must(kvmem_nbd_close(nbd));
		liar_end();
	}
	leave_folder();
}
END

/* It is never silent, and never done. */
TEST(an_answer_that_comes_byte_by_byte)
{
	struct kvmem_source *source;
	struct kvmem_nbd *nbd;

	enter_folder();
	liar_start(TRICKLE, 0);
	nbd = open_liar(500 * MS, 200 * MS, 20 * MS);
	source = source_of(nbd, 0, 0);
	ck_assert_int_eq(read_page(source, 0), -ETIMEDOUT);
	ck_assert_ptr_nonnull(strstr(stats_of(nbd).why, "in time"));
	must(kvmem_source_free(source));
	must(kvmem_nbd_close(nbd));
	liar_end();
	leave_folder();
}
END

/* What it tells of holes is nothing that can be used, or data: nothing is zero, and reads go on. */
TEST(lies_about_holes)
{
	enter_folder();
	for (int trick = LAST_OF_READS; trick < LAST_OF_STATUS; trick++) {
		struct kvmem_nbd_opts o = KVMEM_NBD_OPTS_INIT;
		struct kvmem_extent e = KVMEM_EXTENT_INIT;
		struct kvmem_source *source;
		struct kvmem_nbd *nbd;

		liar_start((enum trick)trick, 0);
		o.flags = KVMEM_NBD_WAIT_HOLES;
		o.silence_ns = 100 * MS;
		o.retry_ns = 20 * MS;
		nbd = open_nbd(&o);
		source = source_of(nbd, 0, 0);
		must(kvmem_source_extent(source, 0, &e));
		ck_assert_uint_eq(e.kind, KVMEM_EXTENT_DATA);
		ck_assert_uint_eq(e.bytes, EXPORT);
		ck_assert_uint_le(liar.status_asked, 3);
		for (uint64_t at = 0; at < EXPORT; at += MIB)
			ck_assert_int_eq(read_page(source, at), 0);
		must(kvmem_source_free(source));
		must(kvmem_nbd_close(nbd));
		liar_end();
	}
	leave_folder();
}
END

struct reader {
	struct kvmem_source *source;
	unsigned int number, right, failed;
	bool wrong;
	pthread_t thread;
};

static void *reads(void *arg)
{
	struct reader *t = arg;
	unsigned long long seed = 100 + t->number;
	uint8_t *buf = malloc(MIB);

	for (unsigned int i = 0; i < 60; i++) {
		uint64_t bytes = 1 + harness_random(&seed) % (i % 8 ? 3 * PAGE : MIB);
		uint64_t at = harness_random(&seed) % (EXPORT - bytes);

		if (kvmem_source_read(t->source, at, buf, bytes)) {
			t->failed++;
			continue;
		}
		t->right++;
		t->wrong = t->wrong || !is_pattern(buf, at, bytes);
	}
	free(buf);
	return NULL;
}

/* Whatever it does, at random, beside reads of several threads; and at last the truth. */
TEST(any_lie_at_any_time)
{
	struct reader t[8] = { { NULL } };
	unsigned int right = 0, failed = 0;
	struct kvmem_source *source;
	struct kvmem_nbd *nbd;

	enter_folder();
	liar_start(ANY, 0);
	nbd = open_liar(300 * MS, 100 * MS, 20 * MS);
	source = source_of(nbd, 0, 0);
	for (unsigned int i = 0; i < 8; i++) {
		t[i].source = source;
		t[i].number = i;
		ck_assert_int_eq(pthread_create(&t[i].thread, NULL, reads, &t[i]), 0);
	}
	for (unsigned int i = 0; i < 8; i++) {
		pthread_join(t[i].thread, NULL);
		ck_assert(!t[i].wrong);
		right += t[i].right;
		failed += t[i].failed;
	}
	harness_note("%u reads were right, %u failed, on %u connections", right, failed,
		     liar.accepted);
	ck_assert_uint_gt(right, 0);
	ck_assert_uint_gt(failed, 0);
	liar.trick = HONEST;
	for (unsigned int tries = 0; read_page(source, 0); tries++)
		ck_assert_uint_lt(tries, 10);
	for (uint64_t at = 0; at < EXPORT; at += PAGE)
		ck_assert_int_eq(read_page(source, at), 0);
	ck_assert_uint_eq(stats_of(nbd).in_flight, 0);
	must(kvmem_source_free(source));
	must(kvmem_nbd_close(nbd));
	liar_end();
	leave_folder();
}
END

HARNESS_MAIN(T(one_lie), T(nothing_but_lies), T(an_answer_that_comes_byte_by_byte),
	     T(lies_about_holes), T(any_lie_at_any_time))
