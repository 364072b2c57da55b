// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The guest program and its VMM on plain KVM, without the library: do they do what they say? */
#include "harness.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "crc32c.h"
#include "vmm.h"

#define PAGE	  4096u
#define PAGES	  4096u
#define RAM_BYTES ((uint64_t)PAGES * PAGE)
#define RAM_GPA	  (UINT64_C(4) << 30)
#define TABLE_GPA (UINT64_C(2) << 30)
#define SEED(i)	  (77u + (i))

struct machine {
	struct vmm *vmm;
	struct vmm_vcpu *vcpus[4];
	unsigned int count;
	unsigned char *ram;
	uint32_t *table;
	_Atomic unsigned int hello, first, rounds;
};

static int on_event(void *arg, struct vmm_vcpu *vcpu, uint32_t event)
{
	struct machine *m = arg;

	(void)vcpu;
	if (event == GUEST_EVENT_HELLO)
		m->hello++;
	else if (event == GUEST_EVENT_FIRST)
		m->first++;
	else if (event == GUEST_EVENT_ROUND)
		m->rounds++;
	return 0;
}

static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	ck_assert_ptr_ne(p, MAP_FAILED);
	return p;
}

/* False when there is no KVM, and the test is skipped. */
static bool open_machine(struct machine *m, unsigned int count)
{
	struct vmm_ops ops = { .arg = m, .event = on_event };

	memset(m, 0, sizeof(*m));
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	ck_assert_msg(!vmm_create(-1, 0, &ops, &m->vmm), "%s", vmm_error());
	m->count = count;
	m->ram = map(RAM_BYTES);
	m->table = map(PAGES * sizeof(uint32_t));
	ck_assert_msg(!vmm_set_slot(m->vmm, 1, 0, RAM_GPA, RAM_BYTES, m->ram), "%s", vmm_error());
	ck_assert_msg(!vmm_set_slot(m->vmm, 2, 0, TABLE_GPA, PAGES * 4, m->table), "%s",
		      vmm_error());
	for (unsigned int i = 0; i < count; i++)
		ck_assert_msg(!vmm_vcpu_create(m->vmm, i, &m->vcpus[i]), "%s", vmm_error());
	return true;
}

static void close_machine(struct machine *m)
{
	vmm_destroy(m->vmm);
	munmap(m->ram, RAM_BYTES);
	munmap(m->table, PAGES * sizeof(uint32_t));
}

static uint64_t share(const struct machine *m)
{
	return RAM_BYTES / m->count;
}

/* The same command for each vCPU on its own share of the RAM. */
static void command(struct machine *m, const struct guest_mailbox *what)
{
	for (unsigned int i = 0; i < m->count; i++) {
		struct guest_mailbox *box = vmm_mailbox(m->vcpus[i]);

		*box = *what;
		box->gpa = RAM_GPA + i * share(m);
		box->bytes = share(m);
		box->page = PAGE;
		box->table = TABLE_GPA + i * share(m) / PAGE * sizeof(uint32_t);
		box->seed = SEED(i);
		ck_assert_msg(!vmm_start(m->vcpus[i]), "%s", vmm_error());
	}
}

/* Returns the sum of the results. */
static uint64_t wait_all(struct machine *m)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < m->count; i++) {
		ck_assert_msg(!vmm_wait(m->vcpus[i]), "%s", vmm_error());
		sum += vmm_mailbox(m->vcpus[i])->result;
	}
	return sum;
}

static uint64_t run_all(struct machine *m, const struct guest_mailbox *what)
{
	command(m, what);
	return wait_all(m);
}

static void scribble(struct machine *m)
{
	unsigned long long state = 1;

	for (uint64_t i = 0; i < RAM_BYTES; i += 8) {
		unsigned long long value = harness_random(&state);

		memcpy(m->ram + i, &value, 8);
	}
}

static void check_sums(unsigned int vcpus, uint32_t flags)
{
	struct machine m;

	if (!open_machine(&m, vcpus))
		return;
	crc32c_init();
	scribble(&m);
	ck_assert_uint_eq(
		run_all(&m, &(struct guest_mailbox){ .command = GUEST_CRC, .flags = flags }),
		PAGES);
	for (unsigned int i = 0; i < PAGES; i++)
		ck_assert_uint_eq(m.table[i], crc32c(0, m.ram + i * PAGE, PAGE));
	ck_assert_uint_eq(m.hello, vcpus);
	ck_assert_uint_eq(m.first, flags & GUEST_TELL_FIRST ? vcpus : 0);
	close_machine(&m);
}

TEST(sums_1)
{
	check_sums(1, 0);
}
END
TEST(sums_2)
{
	check_sums(2, GUEST_RANDOM);
}
END
TEST(sums_4)
{
	check_sums(4, GUEST_RANDOM | GUEST_TELL_FIRST);
}
END

#define ROUNDS 3u
#define WRITES 500u

/* What the guest should have left, worked out on a copy. */
static void replay(const struct machine *m, unsigned char *copy, uint32_t flags)
{
	for (unsigned int i = 0; i < m->count; i++) {
		uint64_t state = SEED(i), pages = share(m) / PAGE;

		for (uint64_t k = 0; k < ROUNDS * WRITES; k++) {
			struct guest_write w = guest_write_next(&state, k % WRITES, pages, PAGE,
								flags);

			memcpy(copy + i * share(m) + w.page * PAGE + w.offset, &w.value, 8);
		}
	}
}

static void check_writes(unsigned int vcpus, uint32_t flags)
{
	struct guest_mailbox what = { .command = GUEST_WRITE,
				      .flags = flags | GUEST_TELL_ROUND,
				      .rounds = ROUNDS,
				      .count = WRITES };
	unsigned char *copy;
	struct machine m;

	if (!open_machine(&m, vcpus))
		return;
	copy = map(RAM_BYTES);
	scribble(&m);
	memcpy(copy, m.ram, RAM_BYTES);
	ck_assert_uint_eq(run_all(&m, &what), vcpus * ROUNDS * WRITES);
	ck_assert_uint_eq(m.rounds, vcpus * ROUNDS);
	ck_assert_int_ne(memcmp(copy, m.ram, RAM_BYTES), 0);
	replay(&m, copy, flags);
	ck_assert_int_eq(memcmp(copy, m.ram, RAM_BYTES), 0);
	munmap(copy, RAM_BYTES);
	close_machine(&m);
}

TEST(writes_random)
{
	check_writes(2, GUEST_RANDOM);
}
END
TEST(writes_in_order)
{
	check_writes(1, 0);
}
END

TEST(fill_and_verify)
{
	struct guest_mailbox fill = { .command = GUEST_FILL, .step = 8 };
	struct guest_mailbox verify = { .command = GUEST_VERIFY, .step = 8 };
	struct machine m;

	if (!open_machine(&m, 1))
		return;
	ck_assert_uint_eq(run_all(&m, &fill), RAM_BYTES / 8);
	ck_assert_uint_eq(run_all(&m, &verify), 0);
	m.ram[1234 * PAGE + 17] ^= 4;
	ck_assert_uint_eq(run_all(&m, &verify), 1);
	ck_assert_uint_eq(vmm_mailbox(m.vcpus[0])->bad_gpa, RAM_GPA + 1234 * PAGE + 16);
	close_machine(&m);
}
END

TEST(reads_write_nothing)
{
	struct guest_mailbox what = { .command = GUEST_READ, .flags = GUEST_RANDOM, .count = 300 };
	uint64_t state = SEED(0), sum = 0, word;
	unsigned char *copy;
	struct machine m;

	if (!open_machine(&m, 1))
		return;
	copy = map(RAM_BYTES);
	scribble(&m);
	memcpy(copy, m.ram, RAM_BYTES);
	for (uint64_t i = 0; i < 300; i++) {
		struct guest_write w = guest_write_next(&state, i, PAGES, PAGE, GUEST_RANDOM);

		memcpy(&word, copy + w.page * PAGE + w.offset, 8);
		sum += word;
	}
	ck_assert_uint_eq(run_all(&m, &what), sum);
	ck_assert_int_eq(memcmp(copy, m.ram, RAM_BYTES), 0);
	munmap(copy, RAM_BYTES);
	close_machine(&m);
}
END

struct moved {
	struct vmm_vcpu *vcpu;
	uint64_t from;
};

static bool has_moved(void *arg)
{
	struct moved *moved = arg;

	return vmm_peek(&vmm_mailbox(moved->vcpu)->progress) > moved->from;
}

static void wait_moved(struct vmm_vcpu *vcpu)
{
	struct moved moved = { .vcpu = vcpu, .from = vmm_peek(&vmm_mailbox(vcpu)->progress) };

	ck_assert(harness_wait(has_moved, &moved, 30));
}

TEST(spin_pause_stop)
{
	struct machine m;
	uint64_t paused;

	if (!open_machine(&m, 2))
		return;
	command(&m, &(struct guest_mailbox){ .command = GUEST_SPIN });
	wait_moved(m.vcpus[0]);
	wait_moved(m.vcpus[1]);

	/* Paused, it stands still while the other goes on. */
	vmm_pause(m.vcpus[0]);
	paused = vmm_peek(&vmm_mailbox(m.vcpus[0])->progress);
	wait_moved(m.vcpus[1]);
	ck_assert_uint_eq(vmm_peek(&vmm_mailbox(m.vcpus[0])->progress), paused);
	vmm_resume(m.vcpus[0]);
	wait_moved(m.vcpus[0]);

	ck_assert(vmm_running(m.vcpus[0]));
	vmm_ask_stop(m.vcpus[0]);
	vmm_ask_stop(m.vcpus[1]);
	ck_assert_uint_gt(wait_all(&m), paused);
	ck_assert(!vmm_running(m.vcpus[0]));
	close_machine(&m);
}
END

TEST(cancel_and_go_on)
{
	struct machine m;

	if (!open_machine(&m, 1))
		return;
	command(&m, &(struct guest_mailbox){ .command = GUEST_SPIN });
	wait_moved(m.vcpus[0]);
	vmm_cancel(m.vcpus[0]);
	ck_assert_int_eq(vmm_wait(m.vcpus[0]), -ECANCELED);
	ck_assert_int_eq(vmm_start(m.vcpus[0]), 0);
	wait_moved(m.vcpus[0]);
	vmm_ask_stop(m.vcpus[0]);
	ck_assert_uint_gt(wait_all(&m), 0);
	close_machine(&m);
}
END

TEST(access_outside_is_an_error)
{
	struct guest_mailbox *box;
	struct machine m;

	if (!open_machine(&m, 1))
		return;
	ck_assert_int_eq(vmm_map(m.vmm, RAM_GPA + RAM_BYTES, PAGE), 0);
	box = vmm_mailbox(m.vcpus[0]);
	*box = (struct guest_mailbox){ .command = GUEST_READ,
				       .gpa = RAM_GPA + RAM_BYTES,
				       .bytes = PAGE,
				       .page = PAGE,
				       .seed = 1 };
	ck_assert_int_eq(vmm_run(m.vcpus[0]), -EIO);
	ck_assert_ptr_ne(strstr(vmm_error(), "outside the slots"), NULL);
	close_machine(&m);
}
END

TEST(nothing_leaks)
{
	unsigned int fds = harness_count_fds(), maps;
	struct machine m;

	for (int i = 0; i < 2; i++) {
		maps = harness_count_maps();
		if (!open_machine(&m, 2))
			return;
		run_all(&m, &(struct guest_mailbox){ .command = GUEST_CRC });
		close_machine(&m);
		ck_assert_uint_eq(harness_count_fds(), fds);
	}
	/* The second time: the first has left thread stacks in the C library's cache. */
	ck_assert_uint_eq(harness_count_maps(), maps);
}
END

HARNESS_MAIN(T(sums_1), T(sums_2), T(sums_4), T(writes_random), T(writes_in_order),
	     T(fill_and_verify), T(reads_write_nothing), T(spin_pause_stop), T(cancel_and_go_on),
	     T(access_outside_is_an_error), T(nothing_leaks))
