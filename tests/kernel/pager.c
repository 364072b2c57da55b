// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The pager on memory without a VM: content page by page, in every order and by every way. */
#include "prefetch.h"
#include "pager_lib.h"

#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>

#define BYTES (16u * MIB)
#define PAGES (BYTES / PAGE)
#define NS    1000000000ll

static const enum kvmem_backing kinds[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS };

/* A page is there for its reader a moment before it counts. */
static bool whole(void *arg)
{
	return !stats_of(arg).pages_missing;
}

static void touch_in_order(enum kvmem_backing backing, uint64_t around, bool back)
{
	struct kvmem_pager_stats st;
	struct set s;

	if (!open_set(&s, backing, BYTES))
		return;
	use_memory(&s);
	s.opts.fault_around = around;
	start_set(&s);
	for (uint64_t i = 0; i < PAGES; i++)
		check_page(&s, back ? PAGES - 1 - i : i);
	ck_assert(harness_wait(whole, &s, 20));
	must(kvmem_pager_wait(s.pager, 20 * NS));
	st = stats_of(&s);
	ck_assert_uint_eq(st.pages_demand + st.pages_around, PAGES);
	if (around == PAGE)
		ck_assert_uint_ge(st.faults_missing, PAGES);
	else if (!around)
		ck_assert_uint_lt(st.faults_missing, 4 * BYTES / MIB + 64);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_all(&s);
	close_set(&s);
}

TEST(in_order)
{
	for (unsigned int k = 0; k < 2; k++)
		for (uint64_t around = 0; around <= 64 * PAGE;
		     around = around ? around * 8 : PAGE) {
			touch_in_order(kinds[k], around, false);
			touch_in_order(kinds[k], around, true);
		}
}
END

struct toucher {
	struct set *s;
	unsigned long long seed;
};

static void *touch_at_random(void *arg)
{
	struct toucher *t = arg;

	for (unsigned int i = 0; i < 3 * PAGES; i++)
		check_page(t->s, harness_random(&t->seed) % PAGES);
	return NULL;
}

static void touch_by_threads(struct set *s, unsigned int threads)
{
	struct toucher t[8];
	pthread_t id[8];

	for (unsigned int i = 0; i < threads; i++) {
		t[i] = (struct toucher){ .s = s, .seed = 1 + i };
		ck_assert_int_eq(pthread_create(&id[i], NULL, touch_at_random, &t[i]), 0);
	}
	for (unsigned int i = 0; i < threads; i++)
		pthread_join(id[i], NULL);
}

TEST(at_random_by_threads_over_shards)
{
	static const struct {
		unsigned int shards, workers;
		uint64_t around, spin;
	} v[] = {
		{ 1, 1, PAGE, 0 }, { 1, 1, 0, 0 },     { 3, 1, 0, 0 },
		{ 1, 3, PAGE, 0 }, { 2, 2, 0, 20000 },
	};

	for (unsigned int k = 0; k < 2; k++)
		for (unsigned int i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
			struct set s;

			if (!open_set(&s, kinds[k], BYTES))
				return;
			use_file(&s);
			s.opts.shards = v[i].shards;
			s.opts.workers = v[i].workers;
			s.opts.fault_around = v[i].around;
			s.opts.busy_poll_ns = v[i].spin;
			start_set(&s);
			touch_by_threads(&s, 4);
			check_all(&s);
			must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
			close_set(&s);
		}
}
END

static void count_complete(void *arg)
{
	atomic_fetch_add((_Atomic int *)arg, 1);
}

TEST(background_fills_everything_once)
{
	for (unsigned int k = 0; k < 2; k++) {
		_Atomic int completed = 0;
		struct kvmem_pager_stats st;
		struct kvmem_run run;
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_file(&s);
		s.opts.flags = KVMEM_PAGER_BACKGROUND;
		s.opts.complete = count_complete;
		s.opts.arg = &completed;
		s.opts.shards = 2;
		start_set(&s);
		touch_by_threads(&s, 2);
		must(kvmem_pager_wait(s.pager, 20 * NS));
		ck_assert_int_eq(completed, 1);
		st = stats_of(&s);
		ck_assert_uint_eq(st.pages_missing, 0);
		ck_assert_uint_gt(st.pages_zero, 0);
		ck_assert_uint_eq(st.pages_demand + st.pages_around + st.pages_background, PAGES);
		ck_assert_int_eq(kvmem_region_next_missing(s.ram, 0, &run), 0);
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		check_all(&s);
		ck_assert_int_eq(completed, 1);
		close_set(&s);
	}
}
END

TEST(background_spends_no_memory_on_holes)
{
	static unsigned char vec[PAGES];
	unsigned int there = 0;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
		return;
	use_file(&s);
	s.opts.flags = KVMEM_PAGER_BACKGROUND;
	start_set(&s);
	must(kvmem_pager_wait(s.pager, 20 * NS));
	ck_assert_int_eq(mincore(s.base, BYTES, vec), 0);
	for (unsigned int i = 0; i < PAGES; i++)
		there += vec[i] & 1;
	ck_assert_uint_eq(there, PAGES / 2);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_all(&s);
	close_set(&s);
}
END

static bool filled(void *arg)
{
	const struct set *s = arg;
	struct kvmem_run low, high;

	return kvmem_region_next_missing(s->ram, 2 * MIB, &low) == 1 && low.offset == 3 * MIB &&
	       kvmem_region_next_missing(s->ram, 8 * MIB, &high) == 1 && high.offset == 9 * MIB;
}

TEST(prefetch_fills_what_it_is_given)
{
	struct kvmem_run runs[2], missing;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
		return;
	use_memory(&s);
	start_set(&s);
	runs[0] = (struct kvmem_run){ s.ram, 8 * MIB, MIB };
	runs[1] = (struct kvmem_run){ s.ram, 2 * MIB, MIB };
	must(prefetch_runs(s.pager, runs, 2));
	ck_assert(harness_wait(filled, &s, 20));
	ck_assert_int_eq(kvmem_region_next_missing(s.ram, 2 * MIB, &missing), 1);
	ck_assert_uint_eq(missing.offset, 3 * MIB);
	ck_assert_uint_eq(missing.bytes, 5 * MIB);
	ck_assert_uint_eq(stats_of(&s).faults_missing, 0);
	check_all(&s);
	runs[0].bytes = BYTES;
	ck_assert_int_eq(prefetch_runs(s.pager, runs, 2), -ERANGE);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	close_set(&s);
}
END

TEST(hand_back_leaves_the_rest_missing)
{
	struct kvmem_run run;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
		return;
	use_memory(&s);
	s.opts.fault_around = PAGE;
	start_set(&s);
	check_page(&s, 7);
	ck_assert_int_eq(kvmem_region_free(s.ram), -EBUSY);
	ck_assert_int_eq(kvmem_source_free(s.source), -EBUSY);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	must(kvmem_region_next_missing(s.ram, 0, &run));
	ck_assert_uint_eq(run.bytes, 7 * PAGE);
	must(kvmem_region_next_missing(s.ram, 7 * PAGE, &run));
	ck_assert_uint_eq(run.offset, 8 * PAGE);
	ck_assert_uint_eq(run.offset + run.bytes, BYTES);
	must(kvmem_pager_free(s.pager));
	start_set(&s); /* another pager takes over */
	s.base[7 * PAGE] ^= 1;
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	s.content[7 * PAGE] ^= 1;
	check_all(&s);
	close_set(&s);
}
END

TEST(short_source_and_odd_offset)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct kvmem_source *part;
		struct set s;
		uint8_t *shifted;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		must(kvmem_source_memory(s.content, 3 * MIB + 777, &part));
		must(kvmem_pager_create(&s.opts, &s.pager));
		must(kvmem_pager_add(s.pager, s.ram, part, 1001, 0));
		must(kvmem_pager_start(s.pager));
		shifted = calloc(1, BYTES);
		ck_assert_ptr_nonnull(shifted);
		memcpy(shifted, s.content + 1001, 3 * MIB + 777 - 1001);
		ck_assert_int_eq(memcmp(shifted, s.base, BYTES), 0);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		free(shifted);
		close_set(&s);
		must(kvmem_source_free(part));
	}
}
END

/* ---- the caller's own loop ---- */

struct loop {
	struct set *s;
	_Atomic bool stop;
	unsigned int events;
};

static void *handle_events(void *arg)
{
	struct loop *l = arg;
	struct pollfd p = { .fd = kvmem_pager_fd(l->s->pager), .events = POLLIN };

	while (!atomic_load(&l->stop))
		if (poll(&p, 1, 10) > 0)
			l->events += (unsigned int)kvmem_pager_handle(l->s->pager);
	return NULL;
}

TEST(without_threads)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct loop l = { 0 };
		pthread_t id;
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_file(&s);
		s.opts.flags = KVMEM_PAGER_NO_THREADS;
		s.opts.shards = 2;
		start_set(&s);
		ck_assert_int_eq(kvmem_pager_handle(s.pager), 0);
		l.s = &s;
		ck_assert_int_eq(pthread_create(&id, NULL, handle_events, &l), 0);
		touch_by_threads(&s, 2);
		check_all(&s);
		atomic_store(&l.stop, true);
		pthread_join(id, NULL);
		ck_assert_uint_gt(l.events, 0);
		ck_assert_int_eq(kvmem_pager_wait(s.pager, 0), -EINVAL);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		check_all(&s);
		close_set(&s);
	}
}
END

TEST(without_threads_in_the_background)
{
	_Atomic int completed = 0;
	struct pollfd p = { .events = POLLIN };
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
		return;
	use_file(&s);
	s.opts.flags = KVMEM_PAGER_NO_THREADS | KVMEM_PAGER_BACKGROUND;
	s.opts.complete = count_complete;
	s.opts.arg = &completed;
	start_set(&s);
	p.fd = kvmem_pager_fd(s.pager);
	for (unsigned int i = 0; !atomic_load(&completed); i++) {
		ck_assert_uint_lt(i, 10000);
		ck_assert_int_eq(poll(&p, 1, 20000), 1);
		must(kvmem_pager_handle(s.pager));
	}
	ck_assert_int_eq(poll(&p, 1, 0), 0);
	ck_assert_uint_eq(stats_of(&s).pages_missing, 0);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_all(&s);
	close_set(&s);
}
END

/* ---- pages that exist ---- */

TEST(what_was_there_stays)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		memset(s.base + 2 * MIB, 0x5a, MIB); /* the VMM's, and says so */
		must(kvmem_region_mark_present(s.ram, 2 * MIB, MIB));
		memset(s.base + 4 * MIB, 0xa5, MIB); /* stray: not content */
		s.add_flags = KVMEM_FILL_OVERWRITE;
		start_set(&s);
		memset(s.content + 2 * MIB, 0x5a, MIB);
		touch_by_threads(&s, 2);
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_set(&s);
	}
}
END

/* The first half of the content is in the file already. */
static bool open_adopted(struct set *s)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	if (!open_set(s, KVMEM_BACKING_MEMFD, BYTES))
		return false;
	use_memory(s);
	must(kvmem_region_free(s->ram));
	s->fd = memfd_create("ram", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(s->fd, BYTES), 0);
	for (uint64_t at = 0; at < BYTES / 2; at += MIB)
		ck_assert_int_eq(pwrite(s->fd, s->content + at, MIB, (off_t)at), MIB);
	o.bytes = BYTES;
	o.flags = KVMEM_REGION_FD;
	o.fd = s->fd;
	must(kvmem_region_create(NULL, &o, &s->ram));
	s->base = kvmem_region_base(s->ram);
	return true;
}

static uint64_t mapped_pages(const struct set *s)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t n = 0, entry;

	ck_assert_int_ge(fd, 0);
	for (uint64_t page = 0; page < PAGES; page++) {
		off_t at = (off_t)(((uintptr_t)s->base / PAGE + page) * sizeof(entry));

		ck_assert_int_eq(pread(fd, &entry, sizeof(entry), at), sizeof(entry));
		n += entry >> 63;
	}
	close(fd);
	return n;
}

static void handle_all(const struct set *s)
{
	struct pollfd p = { .fd = kvmem_pager_fd(s->pager), .events = POLLIN };

	for (unsigned int i = 0; poll(&p, 1, 0) == 1; i++) {
		ck_assert_uint_lt(i, 10000);
		must(kvmem_pager_handle(s->pager));
	}
}

/* Nobody serves faults while this thread looks: what is not mapped would stop it. */
TEST(what_is_in_the_file_is_mapped_before_it_faults)
{
	struct kvmem_run runs[2];
	struct set s;

	if (!open_adopted(&s))
		return;
	s.opts.flags = KVMEM_PAGER_NO_THREADS;
	start_set(&s);
	runs[0] = (struct kvmem_run){ s.ram, 5 * MIB, MIB };
	runs[1] = (struct kvmem_run){ s.ram, 4 * MIB, 2 * MIB }; /* half of it is mapped by then */
	must(prefetch_runs(s.pager, runs, 2));
	handle_all(&s);
	ck_assert_uint_eq(mapped_pages(&s), 2 * MIB / PAGE);
	ck_assert(!memcmp(s.base + 4 * MIB, s.content + 4 * MIB, 2 * MIB));
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_HAND_BACK));
	close_set(&s);
}
END

TEST(the_background_maps_what_is_in_the_file)
{
	struct kvmem_pager_stats st;
	struct set s;

	if (!open_adopted(&s))
		return;
	s.opts.flags = KVMEM_PAGER_NO_THREADS | KVMEM_PAGER_BACKGROUND;
	start_set(&s);
	handle_all(&s);
	ck_assert_uint_eq(mapped_pages(&s), PAGES);
	check_all(&s);
	st = stats_of(&s);
	ck_assert_uint_eq(st.faults_minor + st.faults_missing, 0);
	ck_assert_uint_eq(st.pages_background, PAGES / 2);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	close_set(&s);
}
END

TEST(minor_faults_of_an_adopted_file)
{
	struct kvmem_pager_stats st;
	struct set s;

	if (!open_adopted(&s))
		return;
	start_set(&s);
	touch_by_threads(&s, 2);
	must(kvmem_pager_wait(s.pager, 20 * NS));
	st = stats_of(&s);
	ck_assert_uint_gt(st.faults_minor, 0);
	ck_assert_uint_gt(st.faults_missing, 0);
	ck_assert_uint_eq(st.pages_demand + st.pages_around, PAGES / 2);
	check_all(&s);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	close_set(&s);
}
END

/* 2 MiB at a time, which is more than a worker's buffer holds. */
TEST(huge_pages)
{
	for (unsigned int workers = 1; workers < 3; workers++) {
		struct kvmem_pager_stats st;
		struct set s;

		if (!open_set(&s, KVMEM_BACKING_HUGETLB, BYTES))
			return;
		ck_assert_uint_eq(kvmem_region_page_size(s.ram), 2 * MIB);
		use_file(&s);
		s.opts.workers = workers;
		s.opts.shards = workers;
		s.opts.flags = workers > 1 ? KVMEM_PAGER_BACKGROUND : 0;
		start_set(&s);
		check_page(&s, 3 * MIB / PAGE);
		must(kvmem_region_discard(s.ram, 2 * MIB, 4 * MIB)); /* there, and mostly not yet */
		memset(s.content + 2 * MIB, 0, 4 * MIB);
		touch_by_threads(&s, 2);
		check_all(&s);
		must(kvmem_pager_wait(s.pager, 20 * NS));
		st = stats_of(&s);
		ck_assert_uint_le(st.pages_demand + st.pages_around + st.pages_background,
				  BYTES / (2 * MIB));
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		check_all(&s);
		close_set(&s);
	}
}
END

/* ---- removal ---- */

TEST(discard_makes_zero_for_good)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		start_set(&s);
		check_page(&s, 4 * MIB / PAGE); /* and some about it */
		must(kvmem_region_discard(s.ram, 4 * MIB, MIB));
		memset(s.content + 4 * MIB, 0, MIB);
		check_all(&s);
		s.base[4 * MIB] = 1;
		must(kvmem_region_discard(s.ram, 4 * MIB, PAGE));
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		check_all(&s);
		close_set(&s);
	}
}
END

TEST(madvise_behind_our_back)
{
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_ANONYMOUS, BYTES))
		return;
	use_memory(&s);
	start_set(&s);
	check_page(&s, MIB / PAGE);
	ck_assert_int_eq(madvise(s.base + MIB, MIB, MADV_DONTNEED), 0); /* in part present */
	memset(s.content + MIB, 0, MIB);
	check_all(&s);
	ck_assert_uint_eq(stats_of(&s).removes, 1);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_all(&s);
	close_set(&s);

	if (!open_set(&s, KVMEM_BACKING_MEMFD, BYTES))
		return;
	use_memory(&s);
	start_set(&s);
	check_page(&s, MIB / PAGE);
	check_page(&s, 3 * MIB / PAGE);
	ck_assert_int_eq(madvise(s.base + MIB, MIB, MADV_REMOVE), 0);
	memset(s.content + MIB, 0, MIB);
	s.base[3 * MIB] = 1; /* out of the mapping, not out of the file */
	s.content[3 * MIB] = 1;
	ck_assert_int_eq(madvise(s.base + 3 * MIB, PAGE, MADV_DONTNEED), 0);
	check_all(&s);
	ck_assert_uint_eq(stats_of(&s).removes, 2);
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	check_all(&s);
	close_set(&s);
}
END

#define DISCARDS 3000u

struct discarder {
	struct set *s;
	bool by_madvise;
	_Atomic bool stop;
	_Atomic unsigned int done;
};

/* Discards pages of odd number again and again, while others touch all. */
static void *discard_at_random(void *arg)
{
	struct discarder *d = arg;
	unsigned long long seed = 99;

	do {
		uint64_t page = harness_random(&seed) % PAGES | 1;

		if (d->by_madvise)
			ck_assert_int_eq(madvise(d->s->base + page * PAGE, PAGE, MADV_DONTNEED), 0);
		else
			must(kvmem_region_discard(d->s->ram, page * PAGE, PAGE));
		atomic_fetch_add(&d->done, 1);
	} while (!atomic_load(&d->stop) && d->done < DISCARDS);
	return NULL;
}

/* A page is whole: the source's, or, if its number is odd, zero. Once zero it stays zero. */
static void *touch_and_look(void *arg)
{
	static const uint8_t zero[PAGE];
	static _Thread_local uint8_t now[PAGE];
	struct toucher *t = arg;
	bool *gone = calloc(PAGES, 1);

	for (unsigned int i = 0; i < PAGES; i++) {
		uint64_t page = harness_random(&t->seed) % PAGES;

		memcpy(now, t->s->base + page * PAGE, PAGE);
		if (page % 2 && !now[0]) {
			ck_assert_int_eq(memcmp(t->s->base + page * PAGE, zero, PAGE), 0);
			gone[page] = true;
			continue;
		}
		ck_assert(!gone[page]);
		if (!(page % 2))
			ck_assert_int_eq(memcmp(now, t->s->content + page * PAGE, PAGE), 0);
	}
	free(gone);
	return NULL;
}

static void race_discard(enum kvmem_backing backing, bool by_madvise, unsigned int workers)
{
	struct discarder d = { 0 };
	struct toucher t[2];
	pthread_t id[3];
	struct set s;

	if (!open_set(&s, backing, BYTES))
		return;
	for (uint64_t page = 0; page < PAGES; page++)
		s.content[page * PAGE] = 0xff;
	use_memory(&s);
	s.opts.flags = KVMEM_PAGER_BACKGROUND;
	s.opts.workers = workers;
	s.opts.shards = by_madvise ? 2 : 1;
	s.opts.fault_around = 16 * PAGE;
	d.s = &s;
	d.by_madvise = by_madvise;
	start_set(&s);
	ck_assert_int_eq(pthread_create(&id[2], NULL, discard_at_random, &d), 0);
	for (unsigned int i = 0; i < 2; i++) {
		t[i] = (struct toucher){ .s = &s, .seed = 5 + i };
		ck_assert_int_eq(pthread_create(&id[i], NULL, touch_and_look, &t[i]), 0);
	}
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(id[i], NULL);
	atomic_store(&d.stop, true);
	pthread_join(id[2], NULL);
	ck_assert_uint_gt(d.done, 0);
	must(kvmem_pager_wait(s.pager, 20 * NS));
	must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
	close_set(&s);
}

TEST(discard_races_with_faults)
{
	race_discard(KVMEM_BACKING_MEMFD, false, 1);
	race_discard(KVMEM_BACKING_MEMFD, false, 2);
	race_discard(KVMEM_BACKING_ANONYMOUS, false, 1);
	race_discard(KVMEM_BACKING_ANONYMOUS, false, 2);
}
END

TEST(madvise_races_with_faults)
{
	race_discard(KVMEM_BACKING_ANONYMOUS, true, 1);
}
END

TEST(discard_before_the_start)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		memset(s.base, 1, MIB);
		must(kvmem_region_mark_present(s.ram, 0, MIB));
		must(kvmem_pager_create(&s.opts, &s.pager));
		must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
		must(kvmem_region_discard(s.ram, 0, 2 * MIB));
		must(kvmem_pager_start(s.pager));
		memset(s.content, 0, 2 * MIB);
		check_all(&s);
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		close_set(&s);
	}
}
END

/* ---- from other threads ---- */

static _Atomic bool look_on;

static void *look(void *arg)
{
	struct set *s = arg;
	const struct kvmem_run run = { .region = s->ram, .bytes = PAGE };

	while (atomic_load(&look_on)) {
		stats_of(s);
		must(kvmem_region_discard(s->ram, 0, PAGE));
		must(prefetch_runs(s->pager, &run, 1));
	}
	return NULL;
}

TEST(looked_at_while_regions_are_added)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *more[64];
	pthread_t id;
	struct set s;

	if (!open_set(&s, KVMEM_BACKING_ANONYMOUS, MIB))
		return;
	use_memory(&s);
	must(kvmem_pager_create(&s.opts, &s.pager));
	must(kvmem_pager_add(s.pager, s.ram, s.source, 0, 0));
	atomic_store(&look_on, true);
	ck_assert_int_eq(pthread_create(&id, NULL, look, &s), 0);
	o.bytes = MIB;
	o.backing = KVMEM_BACKING_ANONYMOUS;
	for (unsigned int i = 0; i < 64; i++) {
		must(kvmem_region_create(NULL, &o, &more[i]));
		must(kvmem_pager_add(s.pager, more[i], s.source, 0, 0));
	}
	atomic_store(&look_on, false);
	pthread_join(id, NULL);
	ck_assert_uint_ge(stats_of(&s).pages_missing, 64 * MIB / PAGE);
	must(kvmem_pager_free(s.pager));
	s.pager = NULL;
	for (unsigned int i = 0; i < 64; i++)
		must(kvmem_region_free(more[i]));
	close_set(&s);
}
END

TEST(discard_in_the_thread_that_handles)
{
	for (unsigned int k = 0; k < 2; k++) {
		struct set s;

		if (!open_set(&s, kinds[k], BYTES))
			return;
		use_memory(&s);
		memset(s.base, 1, MIB);
		must(kvmem_region_mark_present(s.ram, 0, MIB));
		s.opts.flags = KVMEM_PAGER_NO_THREADS;
		start_set(&s);
		must(kvmem_region_discard(s.ram, 0, 2 * MIB));
		must(kvmem_pager_stop(s.pager, KVMEM_STOP_FILL));
		memset(s.content, 0, 2 * MIB);
		check_all(&s);
		close_set(&s);
	}
}
END

HARNESS_MAIN(T(in_order), T(at_random_by_threads_over_shards), T(background_fills_everything_once),
	     T(background_spends_no_memory_on_holes), T(prefetch_fills_what_it_is_given),
	     T(hand_back_leaves_the_rest_missing), T(short_source_and_odd_offset),
	     T(without_threads), T(without_threads_in_the_background), T(what_was_there_stays),
	     T(what_is_in_the_file_is_mapped_before_it_faults),
	     T(the_background_maps_what_is_in_the_file), T(minor_faults_of_an_adopted_file),
	     T(huge_pages), T(discard_makes_zero_for_good), T(madvise_behind_our_back),
	     T(discard_races_with_faults), T(madvise_races_with_faults),
	     T(discard_before_the_start), T(looked_at_while_regions_are_added),
	     T(discard_in_the_thread_that_handles))
