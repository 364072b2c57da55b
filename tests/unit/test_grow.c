// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A region becomes longer: where it was it stays, what is new is empty, and what fails changes nothing. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_kvm.h"
#include "region/region.h"

#define PAGE  4096ull
#define BYTES (21 * PAGE) /* no whole word of the record */
#define ROOM  (50 * PAGE)

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static uint8_t *base;

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

static int create(struct kvmem_region_opts o)
{
	o.size = sizeof(o);
	o.bytes = BYTES;
	if (!o.reserve)
		o.reserve = ROOM;
	return kvmem_region_create(vm, &o, &ram);
}

#define CREATE(...) create((struct kvmem_region_opts){ __VA_ARGS__ })

static void fresh(uint32_t backing)
{
	fake_kvm_reset();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
	ck_assert_msg(!CREATE(.backing = backing), "%s", kvmem_error_detail());
	base = kvmem_region_base(ram);
}

static void done(void)
{
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	ck_assert_int_eq(fake.allocs, 0);
}

static void expect_states(uint64_t from, const char *want)
{
	char got[64] = "";

	for (uint64_t p = 0; p < strlen(want); p++)
		got[p] = "a-pzx---c"[km_presence_get(&ram->presence, from + p)];
	ck_assert_str_eq(got, want);
}

/* The kernel's answer, since a sanitizer would not let a child die of it. */
static bool dies(const uint8_t *at)
{
	int p[2], err;

	ck_assert_int_eq(pipe(p), 0);
	err = write(p[1], at, 1) < 0 ? errno : 0;
	close(p[0]);
	close(p[1]);
	ck_assert(err == 0 || err == EFAULT);
	return err == EFAULT;
}

static const uint32_t backings[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_GUEST_MEMFD,
				     KVMEM_BACKING_ANONYMOUS };

TEST(k9_2_it_grows_where_it_is)
{
	for (size_t i = 0; i < KM_ARRAY_SIZE(backings); i++) {
		struct kvmem_run run;

		fresh(backings[i]);
		base[BYTES - 1] = 7;
		ck_assert_uint_eq(kvmem_region_bytes(ram), BYTES);
		ck_assert(dies(base + BYTES));
		failed(ERANGE, "beyond", kvmem_region_attach(ram, BYTES, PAGE, 0, 0, 0, NULL));
		failed(ERANGE, "beyond", kvmem_region_mark_present(ram, BYTES, PAGE));
		ck_assert_int_eq(kvmem_region_mark_present(ram, 0, BYTES), 0);
		ck_assert_int_eq(kvmem_region_next_missing(ram, 0, &run), 0);
		ck_assert_int_eq(kvmem_region_grow(ram, BYTES), 0); /* as it is */
		ck_assert_int_eq(kvmem_region_grow(ram, 2 * BYTES), 0);
		ck_assert_ptr_eq(kvmem_region_base(ram), base);
		ck_assert_uint_eq(kvmem_region_bytes(ram), 2 * BYTES);
		ck_assert_uint_eq(base[BYTES - 1], 7);
		ck_assert_uint_eq(base[BYTES], 0);
		base[2 * BYTES - 1] = 8;
		ck_assert(dies(base + 2 * BYTES));
		expect_states(20, "paaa");
		ck_assert_int_eq(kvmem_region_next_missing(ram, 0, &run), 1);
		ck_assert_uint_eq(run.offset, BYTES);
		ck_assert_uint_eq(run.bytes, BYTES);
		ck_assert_uint_eq(km_presence_missing(&ram->presence), 21);
		ck_assert_int_eq(kvmem_region_attach(ram, BYTES, BYTES, 0, 0, 0, NULL), 0);
		ck_assert_int_eq(kvmem_region_mark_present(ram, BYTES, BYTES), 0);
		ck_assert_int_eq(kvmem_region_discard(ram, BYTES, PAGE), 0);
		ck_assert_int_eq(kvmem_region_grow(ram, ROOM), 0);
		ck_assert_uint_eq(km_presence_missing(&ram->presence), 50 - 42);
		done();
	}
}
END

TEST(k9_2_what_a_peer_stored_there_is_no_content)
{
	static const uint32_t files[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_GUEST_MEMFD };

	for (size_t i = 0; i < 2; i++) {
		fresh(files[i]);
		ck_assert_int_eq(km_real_pwrite(kvmem_region_fd(ram), "x", 1, BYTES + PAGE), 1);
		ck_assert_int_eq(kvmem_region_grow(ram, 2 * BYTES), 0);
		ck_assert_uint_eq(base[BYTES + PAGE], 0);
		done();
	}
	fresh(KVMEM_BACKING_MEMFD);
	ck_assert_int_lt(ftruncate(kvmem_region_fd(ram), PAGE), 0); /* sealed all the time */
	done();
}
END

/* Zero while somebody answers faults: there is no other content for it. */
TEST(k9_2_under_a_pager_it_is_zero)
{
	uint8_t *store;

	fresh(KVMEM_BACKING_MEMFD);
	ram->watch = (struct km_watch *)ram; /* never looked into here */
	ck_assert_int_eq(km_region_store(ram, &store), 0);
	ck_assert_ptr_ne(store, base);
	ck_assert(dies(store + BYTES));
	ck_assert_int_eq(kvmem_region_grow(ram, BYTES + 3 * PAGE), 0);
	store[BYTES + 3 * PAGE - 1] = 5;
	ck_assert_uint_eq(base[BYTES + 3 * PAGE - 1], 5);
	ck_assert(dies(store + BYTES + 3 * PAGE));
	expect_states(20, "azzz");
	ck_assert_uint_eq(km_presence_missing(&ram->presence), 21);
	ram->watch = NULL;
	done();
}
END

static unsigned int told;

static void on_whole(void *arg)
{
	(void)arg;
	told++;
}

static const struct km_presence_listener listen_on_whole = { on_whole, on_whole };

/* Who looked while it grew may have seen the new pages as missing. */
TEST(k9_2_a_whole_region_tells_again)
{
	fresh(KVMEM_BACKING_MEMFD);
	ram->watch = (struct km_watch *)ram;
	told = 0;
	km_presence_listen(&ram->presence, &listen_on_whole, ram);
	ck_assert_int_eq(kvmem_region_grow(ram, BYTES + PAGE), 0);
	ck_assert_uint_eq(told, 0);
	ck_assert_uint_eq(km_presence_claim(&ram->presence, 0, 21), 21);
	ck_assert_uint_eq(km_presence_publish(&ram->presence, 0, 21, KM_PRESENT), KM_IS_WHOLE);
	ck_assert_int_eq(kvmem_region_grow(ram, BYTES + 2 * PAGE), 0);
	ck_assert_uint_eq(told, 1);
	ram->watch = NULL;
	done();
}
END

TEST(k9_2_wrong_lengths)
{
	fresh(KVMEM_BACKING_MEMFD);
	failed(EINVAL, "NULL", kvmem_region_grow(NULL, PAGE));
	failed(EINVAL, "multiple", kvmem_region_grow(ram, BYTES + 1));
	failed(EINVAL, "cannot shrink", kvmem_region_grow(ram, BYTES - PAGE));
	failed(EINVAL, "cannot shrink", kvmem_region_grow(ram, 0));
	failed(ERANGE, "reserve", kvmem_region_grow(ram, ROOM + PAGE));
	failed(ERANGE, "reserve", kvmem_region_grow(ram, UINT64_MAX & ~(PAGE - 1)));
	ck_assert_uint_eq(kvmem_region_bytes(ram), BYTES);
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	failed(EINVAL, "reserve", CREATE(.reserve = BYTES - PAGE));
	failed(EINVAL, "reserve", CREATE(.reserve = ROOM + 1));
	failed(EINVAL, "reserve", CREATE(.reserve = UINT64_MAX & ~(PAGE - 1)));
	failed(EINVAL, "reserve", CREATE(.reserve = ROOM, .flags = KVMEM_REGION_FD));
	failed(EINVAL, "reserve", CREATE(.flags = KVMEM_REGION_MAPPING, .mapping = base));
	ck_assert_int_eq(CREATE(.reserve = BYTES), 0);
	failed(ERANGE, "reserve", kvmem_region_grow(ram, BYTES + PAGE));
	done();
}
END

TEST(k9_2_what_fails_changes_nothing)
{
	for (size_t i = 0; i < KM_ARRAY_SIZE(backings); i++) {
		unsigned long n = 0;
		uint8_t *store;
		int r;

		do {
			fresh(backings[i]);
			if (backings[i] != KVMEM_BACKING_ANONYMOUS) {
				ram->watch = (struct km_watch *)ram;
				ck_assert_int_eq(km_region_store(ram, &store), 0);
				ram->watch = NULL;
			}
			fake.fail_at = fake.calls + ++n;
			fake.fail_errno = ENOMEM;
			fake.failed = NULL;
			r = kvmem_region_grow(ram, ROOM);
			fake.fail_at = 0;
			if (r) {
				failed(ENOMEM, "growing", r);
				ck_assert_uint_eq(kvmem_region_bytes(ram), BYTES);
				ck_assert_uint_eq(ram->presence.pages, 21);
				ck_assert(dies(base + BYTES));
				ck_assert(!ram->alias || dies(ram->alias + BYTES));
				ck_assert_int_eq(kvmem_region_grow(ram, ROOM), 0);
			}
			base[ROOM - 1] = 1;
			done();
		} while (fake.failed);
		ck_assert_uint_eq(n, backings[i] == KVMEM_BACKING_ANONYMOUS ? 3 : 5);
	}
}
END

/* ---- the record, while others are at it ---- */

#define MANY 4096u

static struct km_presence map;
static _Atomic bool stop;

static void *fill(void *arg)
{
	uint64_t first = (uintptr_t)arg, at = first, n;

	while (!atomic_load(&stop)) {
		n = km_presence_claim(&map, at, 3);
		if (n)
			km_presence_publish(&map, at, n, KM_PRESENT);
		ck_assert_uint_le(km_presence_missing(&map), atomic_load(&map.pages));
		at = (at + 5) % MANY;
	}
	return NULL;
}

TEST(k9_2_the_record_grows_under_fillers)
{
	pthread_t threads[2];
	uint64_t at = 0;

	fake_reset();
	ck_assert_int_eq(km_presence_init_growing(&map, 1, MANY), 0);
	atomic_store(&stop, false);
	for (uintptr_t i = 0; i < 2; i++)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, fill, (void *)i), 0);
	for (uint64_t pages = 1; pages < MANY;) {
		pages = km_min(pages + 1 + pages % 37, MANY);
		km_presence_grow(&map, pages, pages % 3 ? KM_ABSENT : KM_ZERO);
		ck_assert_uint_le(km_presence_missing(&map), pages);
	}
	while (km_presence_missing(&map))
		at = (at + 1) % MANY;
	atomic_store(&stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	ck_assert_uint_eq(atomic_load(&map.open), 0);
	ck_assert_uint_eq(atomic_load(&map.done), MANY);
	km_presence_destroy(&map);
}
END

/* ---- limits ---- */

static uint64_t locked_bytes;

static int64_t locked(void *addr, size_t len, int advice)
{
	return advice == MADV_DONTNEED ? -EINVAL : km_real_madvise(addr, len, advice);
}

static int64_t on_fault(void *addr, size_t len)
{
	(void)addr;
	locked_bytes += len;
	return 0;
}

/* mlockall(MCL_FUTURE): what is new is locked as it comes, like the rest, before it can be touched. */
TEST(k9_2_locked_memory_grows_locked)
{
	fake_kvm_reset();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
	fake.madvise = locked;
	fake.mlock_onfault = on_fault;
	locked_bytes = 0;
	ck_assert_int_eq(CREATE(.backing = KVMEM_BACKING_ANONYMOUS), 0);
	ck_assert_uint_eq(locked_bytes, BYTES);
	ck_assert_int_eq(kvmem_region_grow(ram, ROOM), 0);
	ck_assert_uint_eq(locked_bytes, ROOM);
	done();
}
END

HARNESS_MAIN(T(k9_2_it_grows_where_it_is), T(k9_2_what_a_peer_stored_there_is_no_content),
	     T(k9_2_under_a_pager_it_is_zero), T(k9_2_a_whole_region_tells_again),
	     T(k9_2_wrong_lengths), T(k9_2_what_fails_changes_nothing),
	     T(k9_2_the_record_grows_under_fillers), T(k9_2_locked_memory_grows_locked))
