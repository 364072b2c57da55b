// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory of another process: shared with back-ends, taken over by a successor, and its process gone. */
#include "remote_peer.h"

#define BYTES  (8u * MIB)
#define PAGES  (BYTES / PAGE)
#define MINUTE (60 * 1000000000ll)

/* ---- further processes ---- */

/* The kernel's ioctls are told by fdinfo. */
static bool has_poison(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC), info;
	char path[64], text[512] = "", *ioctls;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (read(info, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(info);
	close(fd);
	ioctls = strrchr(text, ':');
	return ioctls && strtoull(ioctls + 1, NULL, 16) & 1 << 8;
}

/* An ioctl that was under way holds its memory for a moment. */
static bool is_gone(void *arg)
{
	const struct served *s = arg;

	return kvmem_remote_check(s->ram) == -ESRCH;
}

static int no_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	(void)arg;
	(void)bytes;
	(void)buf;
	(void)offset;
	return -EIO;
}

/* A back-end: maps the same file, by an userfaultfd and at addresses of its own. */
static void join(struct served *s, struct peer *b, const struct peer_opts *o, uint64_t from)
{
	struct kvmem_remote_mapping map = { .addr = 0, .bytes = o->bytes - from, .offset = from };
	struct kvmem_remote_opts jo = s->opts;

	peer_begin(b, o);
	map.addr = b->addr + from;
	jo.mappings = &map;
	jo.mapping_count = 1;
	jo.uffds = b->uffds;
	jo.uffd_count = 1;
	jo.flags = KVMEM_REMOTE_MISSING |
		   (o->modes & UFFDIO_REGISTER_MODE_MINOR ? KVMEM_REMOTE_MINOR : 0);
	must(kvmem_remote_join(s->pager, s->ram, &jo));
}

TEST(back_ends_share_what_is_filled)
{
	static const uint64_t modes[] = {
		UFFDIO_REGISTER_MODE_MISSING,
		UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	};
	struct kvmem_pager_stats st;
	struct peer_opts o = { .bytes = BYTES };
	struct peer b, part;
	struct served s;

	if (!has_uffd())
		return;
	for (unsigned int i = 0; i < 4; i++) {
		o.memfd = a_memfd(BYTES, 0);
		o.modes = modes[i % 2];
		o.features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
		served_begin(&s, &o);
		s.pager_opts.workers = 1 + i / 2;
		served_start(&s);
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, 100), 0);
		o.modes = modes[i / 2];
		join(&s, &b, &o, 0);
		join(&s, &part, &o, BYTES / 2);
		/* What it takes out of its mapping is not taken from the others, who have not seen it yet. */
		ck_assert_int_eq(peer_does(&b, PEER_REMOVE, 1500, 100), 0);
		/* All at the same time, from the same pages on. */
		peer_order(&b, PEER_CHECK, 0, PAGES);
		peer_order(&part, PEER_CHECK, PAGES / 2, PAGES / 2);
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, PAGES), 0);
		{
			int64_t r = -1;

			ck_assert(peer_answers(&b, PEER_SECONDS * 1000, &r));
			ck_assert_int_eq(r, 0);
			ck_assert(peer_answers(&part, PEER_SECONDS * 1000, &r));
			ck_assert_int_eq(r, 0);
		}
		st = served_stats(&s);
		ck_assert_uint_eq(st.pages_demand + st.pages_around, PAGES); /* each once */
		/* What the back-end writes the other sees. */
		ck_assert_int_eq(peer_does(&b, PEER_WRITE, 5, 9), 0);
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 5, 1), 1);
		/* Its own mapping is its own affair, and so is its end. */
		ck_assert_int_eq(peer_does(&b, PEER_REMOVE, 1000, 100), 0);
		ck_assert_int_eq(peer_does(&b, PEER_CHECK, 1000, 100), 0);
		ck_assert_int_eq(peer_does(&b, PEER_UNMAP, 1200, 100), 0);
		peer_kill(&part);
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 1000, PAGES - 1000), 0);
		ck_assert_uint_eq(s.tells, 0);
		served_end(&s);
		peer_end(&b);
		peer_end(&part);
		close(o.memfd);
	}
}
END

TEST(back_ends_before_the_first)
{
	struct peer_opts o = { .bytes = BYTES };
	struct peer b;
	struct served s;

	if (!has_uffd())
		return;
	o.memfd = a_memfd(BYTES, 0);
	o.modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
	served_begin(&s, &o);
	served_start(&s);
	join(&s, &b, &o, 0);
	ck_assert_int_eq(peer_does(&b, PEER_CHECK, 0, PAGES), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_PUNCH, 50, 10), 0);
	ck_assert_int_eq(peer_does(&b, PEER_ZERO, 50, 10), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_ZERO, 50, 10), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 60, PAGES - 60), 0);
	/* The first has ended: so has the region. */
	peer_kill(&s.peer);
	ck_assert(harness_wait(is_gone, &s, PEER_SECONDS));
	served_end(&s);
	peer_end(&b);
	close(o.memfd);
}
END

TEST(back_ends_and_pages_that_cannot_be_filled)
{
	struct kvmem_source_ops ops = { .size = sizeof(ops), .read = no_read };
	struct peer_opts o = { .bytes = BYTES };
	struct served s;
	struct peer b;

	if (!has_uffd())
		return;
	SKIP_IF(!has_poison(), "uffd-poison", "no UFFDIO_POISON");
	o.memfd = a_memfd(BYTES, 0);
	served_begin(&s, &o);
	must(kvmem_source_free(s.source));
	must(kvmem_source_callback(&ops, NULL, BYTES, &s.source));
	served_start(&s);
	join(&s, &b, &o, 0);
	ck_assert_int_eq(peer_does(&b, PEER_TOUCH, 5, 0), SIGBUS);
	ck_assert_int_eq(peer_does(&s.peer, PEER_TOUCH, 5, 0), SIGBUS);
	ck_assert_int_eq(peer_does(&b, PEER_TOUCH, 5, 0), SIGBUS);
	/* And healed, in each. */
	ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, 5 * PAGE, s.content + 5 * PAGE, PAGE),
			 PAGE);
	ck_assert_int_eq(peer_does(&s.peer, PEER_TOUCH, 5, 0), 0);
	ck_assert_int_eq(peer_does(&b, PEER_TOUCH, 5, 0), 0);
	ck_assert_int_eq(peer_does(&b, PEER_CHECK, 5, 1), 0);
	served_end(&s);
	peer_end(&b);
	close(o.memfd);
}
END

TEST(back_ends_that_are_refused)
{
	struct kvmem_remote_mapping map;
	struct peer_opts o = { .bytes = BYTES };
	struct kvmem_remote_opts jo;
	struct served s;
	struct peer b;

	if (!has_uffd())
		return;
	o.memfd = a_memfd(BYTES, 0);
	served_begin(&s, &o);
	served_start(&s);
	peer_begin(&b, &o);
	map = (struct kvmem_remote_mapping){ .addr = b.addr, .bytes = BYTES };
	jo = s.opts;
	jo.mappings = &map;
	jo.uffds = b.uffds;
#define NO(change, code) \
	do { \
		struct kvmem_remote_opts before = jo; \
		change; \
		ck_assert_int_eq(kvmem_remote_join(s.pager, s.ram, &jo), code); \
		jo = before; \
	} while (0)
	NO(jo.bytes = 2 * BYTES, -EINVAL);
	NO(jo.flags |= KVMEM_REMOTE_RECORD, -EINVAL);
	NO(jo.flags = 0, -EINVAL);
	NO(jo.uffds = s.peer.uffds, -EBUSY);
	NO(jo.mapping_count = 0, -EINVAL);
#undef NO
	map.addr += BYTES;
	ck_assert_int_eq(kvmem_remote_join(s.pager, s.ram, &jo), -ENOENT);
	map.addr -= BYTES;
	must(kvmem_remote_join(s.pager, s.ram, &jo));
	ck_assert_int_eq(kvmem_remote_join(s.pager, s.ram, &jo), -EBUSY);
	served_end(&s);
	peer_end(&b);
	close(o.memfd);
}
END

/* ---- its end ---- */

static bool is_told(void *arg)
{
	const struct served *s = arg;

	return atomic_load(&s->tells) > 0;
}

TEST(killed_with_faults_queued)
{
	struct served s;
	unsigned int fds;

	if (!has_uffd())
		return;
	fds = harness_count_fds();
	for (unsigned int i = 0; i < 12; i++) {
		served_begin(&s, &(struct peer_opts){ .bytes = BYTES,
						      .uffds = 1 + i % 2,
						      .features = UFFD_FEATURE_EVENT_REMOVE });
		s.pager_opts.workers = 1 + i / 2 % 2;
		if (i % 3)
			s.pager_opts.flags |= KVMEM_PAGER_BACKGROUND;
		served_start(&s);
		ck_assert_int_eq(peer_does(&s.peer, PEER_TOUCHERS, 3, 0), 0);
		if (i % 2)
			ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVERS, 1, 0), 0);
		must(kvmem_remote_check(s.ram));
		peer_kill(&s.peer);
		ck_assert(harness_wait(is_gone, &s, PEER_SECONDS));
		/* Nothing tells of it but a page that is to be placed. */
		if (served_stats(&s).pages_missing) {
			ck_assert_int_lt(kvmem_pager_put(s.pager, s.ram, 0, s.content, BYTES), 1);
			ck_assert(harness_wait(is_told, &s, PEER_SECONDS));
			ck_assert_ptr_eq(s.told, s.ram);
			ck_assert_int_eq(kvmem_pager_wait(s.pager, MINUTE), -ESRCH);
			ck_assert_int_eq(kvmem_pager_prefetch(s.pager, s.ram,
							      &(struct kvmem_range){ 0, PAGE }, 1,
							      NULL, NULL),
					 -ESRCH);
			ck_assert_uint_eq(s.tells, 1);
		}
		served_end(&s);
	}
	ck_assert_uint_eq(harness_count_fds(), fds);
}
END

TEST(executes_another_program)
{
	struct served s;

	if (!has_uffd())
		return;
	served_begin(&s, &(struct peer_opts){ .bytes = BYTES });
	served_start(&s);
	peer_order(&s.peer, PEER_EXEC, 0, 0);
	while (!kvmem_remote_check(s.ram))
		sched_yield();
	ck_assert_int_eq(kvmem_remote_check(s.ram), -ESRCH);
	ck_assert_int_eq(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL), -ESRCH);
	ck_assert_uint_eq(s.tells, 1);
	served_end(&s);
}
END

TEST(tickets_end_with_the_process)
{
	struct kvmem_range all = { 0, BYTES };
	struct kvmem_ticket_result res = KVMEM_TICKET_RESULT_INIT;
	struct kvmem_ticket *ticket;
	struct served s;

	if (!has_uffd())
		return;
	served_begin(&s, &(struct peer_opts){ .bytes = BYTES });
	served_start(&s);
	peer_kill(&s.peer);
	must(kvmem_pager_prefetch(s.pager, s.ram, &all, 1, NULL, &ticket));
	ck_assert_int_lt(kvmem_ticket_wait(ticket, MINUTE, &res), 0);
	ck_assert_uint_eq(res.pages_failed, PAGES);
	must(kvmem_ticket_free(ticket));
	ck_assert(harness_wait(is_told, &s, PEER_SECONDS));
	ck_assert_int_eq(kvmem_pager_remove(s.pager, s.ram, KVMEM_STOP_FILL), -ESRCH);
	served_end(&s);
}
END

/* ---- pages that cannot be filled ---- */

TEST(poisoned_where_the_source_fails)
{
	struct kvmem_source_ops ops = { .size = sizeof(ops), .read = no_read };
	struct served s;

	if (!has_uffd())
		return;
	SKIP_IF(!has_poison(), "uffd-poison", "no UFFDIO_POISON");
	served_begin(&s, &(struct peer_opts){ .bytes = BYTES });
	must(kvmem_source_free(s.source));
	must(kvmem_source_callback(&ops, NULL, BYTES, &s.source));
	served_start(&s);
	ck_assert_int_eq(peer_does(&s.peer, PEER_TOUCH, 5, 0), SIGBUS);
	ck_assert_int_eq(peer_does(&s.peer, PEER_TOUCH, 5, 0), SIGBUS);
	ck_assert_uint_eq(served_stats(&s).pages_poisoned, 1);
	/* And healed. */
	ck_assert_int_eq(kvmem_pager_put(s.pager, s.ram, 5 * PAGE, s.content + 5 * PAGE, PAGE),
			 PAGE);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 5, 1), 0);
	served_end(&s);
}
END

/* ---- successors ---- */

TEST(a_successor_goes_on_with_the_record)
{
	struct served s;
	uint64_t missing;
	int record;

	if (!has_uffd())
		return;
	served_begin(&s,
		     &(struct peer_opts){ .bytes = BYTES, .features = UFFD_FEATURE_EVENT_REMOVE });
	served_start(&s);
	ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVE, 7, 3), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 20, 100), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_WRITE, 20, 77), 0);
	record = fcntl(kvmem_remote_record_fd(s.ram), F_DUPFD_CLOEXEC, 0);
	ck_assert_int_ge(record, 0);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	missing = served_stats(&s).pages_missing;
	must(kvmem_pager_free(s.pager));
	must(kvmem_region_free(s.ram));
	s.opts.flags |= KVMEM_REMOTE_RECORD;
	s.opts.record_fd = record;
	/* A fault that nobody has read yet. */
	peer_order(&s.peer, PEER_CHECK, 121, PAGES - 121);
	served_start(&s);
	close(record);
	{
		int64_t differing = -1;

		ck_assert(peer_answers(&s.peer, PEER_SECONDS * 1000, &differing));
		ck_assert_int_eq(differing, 0);
	}
	ck_assert_uint_le(served_stats(&s).pages_missing, missing);
	ck_assert_int_eq(peer_does(&s.peer, PEER_ZERO, 7, 3), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 20, 1), 1); /* as it was written */
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 21, 100), 0);
	served_end(&s);
}
END

/* Serves until it is killed; the record is the parent's. */
static int handler(void *arg)
{
	struct served *s = arg;

	served_start(s);
	pause();
	return 0;
}

/* Some time in a handler's life. */
static void kill_one(struct served *s, long ns)
{
	const struct timespec while_it_serves = { .tv_nsec = ns };
	pid_t pid = fork();

	ck_assert_int_ge(pid, 0);
	if (!pid)
		_exit(handler(s));
	nanosleep(&while_it_serves, NULL);
	kill(pid, SIGKILL);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

/* Also while other threads of the process remove pages of its second half without a pause. */
TEST(killed_handlers_have_successors)
{
	struct kvmem_region *keeper;
	int64_t differing = -1;
	struct served s;

	if (!has_uffd())
		return;
	for (unsigned int round = 0; round < 8; round++) {
		bool storm = round % 2;

		served_begin(&s, &(struct peer_opts){ .bytes = BYTES,
						      .uffds = 1 + round / 2 % 2,
						      .features = UFFD_FEATURE_EVENT_REMOVE });
		/* A region that keeps the record: forked, two processes have it. */
		must(kvmem_remote_create(&s.opts, &keeper));
		s.opts.record_fd = fcntl(kvmem_remote_record_fd(keeper), F_DUPFD_CLOEXEC, 0);
		s.opts.flags |= KVMEM_REMOTE_RECORD;
		must(kvmem_region_free(keeper));
		if (storm)
			ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVERS, 2, 0), 0);
		peer_order(&s.peer, PEER_CHECK, 0, storm ? PAGES / 2 : PAGES);
		for (unsigned int i = 0; i <= round % 3; i++)
			kill_one(&s, 200000 * (long)(1 + round * round));
		served_start(&s);
		close(s.opts.record_fd);
		ck_assert(peer_answers(&s.peer, PEER_SECONDS * 1000, &differing));
		ck_assert_int_eq(differing, 0);
		if (!storm)
			must(kvmem_pager_wait(s.pager, MINUTE));
		served_end(&s);
	}
}
END

HARNESS_MAIN(T(killed_with_faults_queued), T(executes_another_program),
	     T(tickets_end_with_the_process), T(poisoned_where_the_source_fails),
	     T(a_successor_goes_on_with_the_record), T(killed_handlers_have_successors),
	     T(back_ends_share_what_is_filled), T(back_ends_before_the_first),
	     T(back_ends_and_pages_that_cannot_be_filled), T(back_ends_that_are_refused))
