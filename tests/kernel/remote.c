// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory of another process: its content, its userfaultfds, and what it removes. */
#include "remote_peer.h"

#define BYTES  (8u * MIB)
#define PAGES  (BYTES / PAGE)
#define MINUTE (60 * 1000000000ll)

/* ---- content ---- */

static void check_content(const struct peer_opts *o)
{
	struct served s;

	served_begin(&s, o);
	served_start(&s);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, o->bytes / PAGE), 0);
	must(kvmem_pager_wait(s.pager, MINUTE));
	ck_assert_uint_eq(served_stats(&s).pages_missing, 0);
	ck_assert_uint_gt(served_stats(&s).faults_missing, 0);
	served_end(&s);
}

TEST(anonymous_memory)
{
	if (has_uffd())
		check_content(&(struct peer_opts){ .bytes = BYTES });
}
END

TEST(anonymous_memory_by_two_userfaultfds)
{
	if (has_uffd())
		check_content(&(struct peer_opts){ .bytes = BYTES, .uffds = 2 });
}
END

TEST(memfd)
{
	int fd;

	if (!has_uffd())
		return;
	fd = a_memfd(BYTES, 0);
	check_content(&(struct peer_opts){ .bytes = BYTES, .memfd = fd });
	close(fd);
}
END

TEST(memfd_with_minor_faults)
{
	int fd;

	if (!has_uffd())
		return;
	fd = a_memfd(BYTES, 0);
	check_content(&(struct peer_opts){ .bytes = BYTES,
					   .memfd = fd,
					   .modes = UFFDIO_REGISTER_MODE_MISSING |
						    UFFDIO_REGISTER_MODE_MINOR });
	close(fd);
}
END

static unsigned int free_huge_pages(void)
{
	char text[32] = "";
	int fd = open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", O_RDONLY);

	if (fd >= 0 && read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	return (unsigned int)strtoul(text, NULL, 10);
}

TEST(huge_pages)
{
	const struct peer_opts o = { .bytes = BYTES,
				     .page = 2 * MIB,
				     .features = UFFD_FEATURE_EVENT_REMOVE };
	struct served s;

	if (!has_uffd())
		return;
	SKIP_IF(free_huge_pages() < BYTES / (2 * MIB), "hugetlb", "no free huge pages");
	check_content(&o);
	/* Zeros, which UFFDIO_ZEROPAGE does not place there. */
	served_begin(&s, &o);
	s.peer.page = o.page;
	served_start(&s);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, 1024), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVE, 512, 512), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVE, 1024, 512), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_ZERO, 512, 1024), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, 512), 0);
	served_end(&s);
}
END

/* A sealed template of ours, which the other process maps: its pages are shared, holes come from the source. */
TEST(template_of_ours_by_minor_faults)
{
	struct served s;
	int fd;

	if (!has_uffd())
		return;
	fd = a_memfd(BYTES, MFD_ALLOW_SEALING);
	served_begin(&s, &(struct peer_opts){ .bytes = BYTES,
					      .memfd = fd,
					      .private_map = true,
					      .features = UFFD_FEATURE_EVENT_REMOVE,
					      .modes = UFFDIO_REGISTER_MODE_MISSING |
						       UFFDIO_REGISTER_MODE_MINOR });
	ck_assert_int_eq(pwrite(fd, s.content, BYTES / 2, 0), BYTES / 2);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
	s.opts.flags |= KVMEM_REMOTE_FD;
	s.opts.fd = fd;
	served_start(&s);
	ck_assert_uint_le(served_stats(&s).pages_missing, PAGES / 2);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, PAGES), 0);
	ck_assert_uint_gt(served_stats(&s).faults_minor, 0);
	/* What is removed does not come back from the template. */
	ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVE, 10, 20), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_ZERO, 10, 20), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVE, 10, 20), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_ZERO, 10, 20), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 30, 20), 0);
	served_end(&s);
	close(fd);
}
END

TEST(background_and_prefetch)
{
	struct kvmem_range first = { 0, BYTES / 4 };
	struct kvmem_ticket *ticket;
	struct served s;

	if (!has_uffd())
		return;
	served_begin(&s, &(struct peer_opts){ .bytes = BYTES, .uffds = 2 });
	served_start(&s);
	must(kvmem_pager_prefetch(s.pager, s.ram, &first, 1, NULL, &ticket));
	must(kvmem_ticket_wait(ticket, MINUTE, NULL));
	must(kvmem_ticket_free(ticket));
	ck_assert_uint_eq(served_stats(&s).pages_prefetch, PAGES / 4);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	ck_assert_uint_eq(served_stats(&s).pages_missing, 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, PAGES), 0);
	served_end(&s);
	/* All by the background, with a trace, on a pager with userfaultfds of its own. */
	served_begin(&s, &(struct peer_opts){ .bytes = BYTES });
	s.pager_opts.flags = KVMEM_PAGER_BACKGROUND;
	s.pager_opts.trace_entries = 4096;
	served_start(&s);
	must(kvmem_pager_wait(s.pager, MINUTE));
	ck_assert_uint_eq(served_stats(&s).pages_background, PAGES);
	ck_assert_int_gt(kvmem_pager_trace_read(s.pager, (struct kvmem_trace_entry[8]){ 0 }, 8), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, PAGES), 0);
	ck_assert_uint_eq(served_stats(&s).faults_missing, 0);
	served_end(&s);
}
END

TEST(without_threads)
{
	struct served s;
	int64_t differing = -1;
	struct pollfd fds[2];

	if (!has_uffd())
		return;
	for (unsigned int blocking = 0; blocking < (reads_nowait() ? 2u : 1u); blocking++) {
		served_begin(&s, &(struct peer_opts){ .bytes = BYTES, .blocking = blocking });
		s.pager_opts.flags |= KVMEM_PAGER_NO_THREADS;
		served_start(&s);
		peer_order(&s.peer, PEER_CHECK, 0, PAGES);
		fds[0] = (struct pollfd){ .fd = kvmem_pager_fd(s.pager), .events = POLLIN };
		fds[1] = (struct pollfd){ .fd = s.peer.sock, .events = POLLIN };
		must(kvmem_pager_handle(s.pager));
		while (!(fds[1].revents & POLLIN)) {
			ck_assert_int_gt(poll(fds, 2, PEER_SECONDS * 1000), 0);
			must(kvmem_pager_handle(s.pager));
		}
		ck_assert(peer_answers(&s.peer, 0, &differing));
		ck_assert_int_eq(differing, 0);
		served_end(&s);
	}
}
END

TEST(content_that_was_there_stays)
{
	struct served s;
	int fd;

	if (!has_uffd())
		return;
	fd = a_memfd(BYTES, 0);
	served_begin(&s, &(struct peer_opts){ .bytes = BYTES, .memfd = fd });
	ck_assert_int_eq(pwrite(fd, "mine", 4, 3 * PAGE), 4);
	s.pager_opts.flags |= KVMEM_PAGER_BACKGROUND;
	served_start(&s);
	must(kvmem_pager_wait(s.pager, MINUTE));
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, PAGES), 1);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 3, 1), 1);
	served_end(&s);
	close(fd);
}
END

/* ---- the descriptor ---- */

TEST(flags_are_left_alone)
{
	struct served s;
	int64_t before;

	if (!has_uffd())
		return;
	for (unsigned int blocking = 0; blocking < (reads_nowait() ? 2u : 1u); blocking++) {
		served_begin(&s, &(struct peer_opts){ .bytes = BYTES, .blocking = blocking });
		before = peer_does(&s.peer, PEER_FLAGS, 0, 0);
		served_start(&s);
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, PAGES), 0);
		ck_assert_int_eq(peer_does(&s.peer, PEER_FLAGS, 0, 0), before);
		served_end(&s);
	}
}
END

/* poll() then tells of an error for ever, and a read would wait. */
TEST(becomes_blocking_meanwhile)
{
	struct served s;
	int64_t flags;

	if (!has_uffd())
		return;
	SKIP_IF(!reads_nowait(), "uffd-nowait", "a read of it would wait");
	served_begin(&s, &(struct peer_opts){ .bytes = BYTES });
	served_start(&s);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, 16), 0);
	flags = peer_does(&s.peer, PEER_FLAGS, 0, 0);
	ck_assert_int_eq(
		peer_does(&s.peer, PEER_SET_FLAGS, 0, (uint64_t)flags & ~(uint64_t)O_NONBLOCK), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, PAGES), 0);
	served_end(&s);
}
END

TEST(is_blocking_now_and_then)
{
	struct served s;

	if (!has_uffd())
		return;
	SKIP_IF(!reads_nowait(), "uffd-nowait", "a read of it would wait");
	for (unsigned int workers = 1; workers <= 2; workers++) {
		served_begin(&s, &(struct peer_opts){ .bytes = BYTES });
		s.pager_opts.workers = workers;
		served_start(&s);
		ck_assert_int_eq(peer_does(&s.peer, PEER_TOGGLERS, 1, 0), 0);
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, PAGES), 0);
		served_end(&s);
	}
}
END

/* ---- removals ---- */

TEST(removed_pages_are_zero)
{
	struct served s;
	struct kvmem_run run;
	uint32_t state;

	if (!has_uffd())
		return;
	served_begin(&s,
		     &(struct peer_opts){ .bytes = BYTES, .features = UFFD_FEATURE_EVENT_REMOVE });
	served_start(&s);
	ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVE, 100, 50), 0); /* absent */
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 300, 50), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVE, 310, 20), 0); /* present */
	must(kvmem_region_next_run(s.ram, 100 * PAGE, &run, &state));
	ck_assert_uint_eq(state, KVMEM_PAGE_ZERO);
	ck_assert_uint_eq(run.bytes, 50 * PAGE);
	ck_assert_int_eq(peer_does(&s.peer, PEER_ZERO, 100, 50), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_ZERO, 310, 20), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 150, 160), 0);
	ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 330, PAGES - 330), 0);
	ck_assert_uint_ge(served_stats(&s).removes, 2);
	served_end(&s);
}
END

static bool removes(void *arg)
{
	return served_stats(arg).removes > 0;
}

TEST(removals_storm_while_it_is_filled)
{
	struct served s;

	if (!has_uffd())
		return;
	for (unsigned int i = 0; i < 4; i++) {
		served_begin(&s, &(struct peer_opts){ .bytes = BYTES,
						      .uffds = 1 + i % 2,
						      .features = UFFD_FEATURE_EVENT_REMOVE });
		s.pager_opts.workers = 1 + i / 2;
		s.pager_opts.flags |= KVMEM_PAGER_BACKGROUND;
		served_start(&s);
		ck_assert_int_eq(peer_does(&s.peer, PEER_REMOVERS, 2, 0), 0);
		ck_assert(harness_wait(removes, &s, PEER_SECONDS));
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, PAGES / 2), 0);
		must(kvmem_pager_wait(s.pager, MINUTE));
		served_end(&s);
	}
}
END

TEST(unmapped_in_the_middle)
{
	struct served s;

	if (!has_uffd())
		return;
	for (unsigned int events = 0; events < 2; events++) {
		served_begin(&s, &(struct peer_opts){
					 .bytes = BYTES,
					 .features = events ? UFFD_FEATURE_EVENT_UNMAP |
								      UFFD_FEATURE_EVENT_REMOVE
							    : 0 });
		served_start(&s);
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, 8), 0);
		ck_assert_int_eq(peer_does(&s.peer, PEER_UNMAP, 1000, 100), 0);
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 0, 1000), 0);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		ck_assert_int_eq(peer_does(&s.peer, PEER_CHECK, 1100, PAGES - 1100), 0);
		ck_assert_uint_eq(served_stats(&s).pages_missing, 0);
		ck_assert_uint_eq(s.tells, 0);
		served_end(&s);
	}
}
END

HARNESS_MAIN(T(anonymous_memory), T(anonymous_memory_by_two_userfaultfds), T(memfd),
	     T(memfd_with_minor_faults), T(huge_pages), T(template_of_ours_by_minor_faults),
	     T(background_and_prefetch), T(without_threads), T(content_that_was_there_stays),
	     T(flags_are_left_alone), T(becomes_blocking_meanwhile), T(is_blocking_now_and_then),
	     T(removed_pages_are_zero), T(removals_storm_while_it_is_filled),
	     T(unmapped_in_the_middle))
