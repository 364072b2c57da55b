// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * From a guest-physical address to host memory, as a device does it for each descriptor: random addresses, by
 * one thread and by two at once, in a VM of 8 and of 512 slots. Beside it what VMMs have: an array sorted by
 * address, searched by halves under a read/write lock.
 */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include <kvmem/kvmem.h>

#include "bench.h"

#define SLOT_BYTES   (64ull << 10)
#define GAP	     (1ull << 20) /* from one slot's address to the next */
#define ADDRESSES    4096u
#define MOST_THREADS 8

struct slot {
	uint64_t gpa, bytes;
	char *host;
};

static struct {
	struct kvmem_vm *vm;
	struct kvmem_region *ram;
	pthread_rwlock_t lock;
	struct slot *slots;
	size_t count;
	uint64_t gpas[ADDRESSES];
	uint64_t rounds;
	unsigned int threads;
} b;

static char *search(uint64_t gpa, uint64_t bytes)
{
	size_t low = 0, high = b.count;
	char *host = NULL;

	pthread_rwlock_rdlock(&b.lock);
	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (b.slots[mid].gpa <= gpa)
			low = mid + 1;
		else
			high = mid;
	}
	if (low && gpa + bytes <= b.slots[low - 1].gpa + b.slots[low - 1].bytes)
		host = b.slots[low - 1].host + (gpa - b.slots[low - 1].gpa);
	pthread_rwlock_unlock(&b.lock);
	return host;
}

static void *look_up_by_lock(void *arg)
{
	uintptr_t sum = 0;

	(void)arg;
	for (uint64_t r = 0; r < b.rounds; r++)
		for (size_t i = 0; i < ADDRESSES; i++)
			sum += (uintptr_t)search(b.gpas[i], 16);
	return (void *)sum;
}

static void *look_up_by_library(void *arg)
{
	struct kvmem_translation t = KVMEM_TRANSLATION_INIT;
	uintptr_t sum = 0;
	int failed = 0;

	(void)arg;
	for (uint64_t r = 0; r < b.rounds; r++)
		for (size_t i = 0; i < ADDRESSES; i++) {
			failed |= kvmem_vm_translate(b.vm, 0, b.gpas[i], 16, &t);
			sum += (uintptr_t)t.host;
		}
	return failed ? NULL : (void *)sum;
}

/* Nanoseconds that one thread takes for an address while `threads` do the same. */
static double timed(void *(*fn)(void *))
{
	pthread_t other[MOST_THREADS];
	double t = bench_now();
	void *sum, *all;

	for (unsigned int i = 1; i < b.threads; i++)
		bench_check(!pthread_create(&other[i], NULL, fn, NULL), "no thread");
	all = fn(NULL);
	for (unsigned int i = 1; i < b.threads; i++) {
		pthread_join(other[i], &sum);
		bench_check(sum == all, "vm-translate: the threads disagree");
	}
	bench_check(all != NULL, "vm-translate: %s", kvmem_error_detail());
	return (bench_now() - t) / (double)(b.rounds * ADDRESSES);
}

static double by_lock(void *arg)
{
	(void)arg;
	return timed(look_up_by_lock);
}

static double by_library(void *arg)
{
	struct kvmem_translation t = KVMEM_TRANSLATION_INIT;

	(void)arg;
	for (size_t i = 0; i < ADDRESSES; i++)
		bench_check(!kvmem_vm_translate(b.vm, 0, b.gpas[i], 16, &t) &&
				    t.host == search(b.gpas[i], 16),
			    "vm-translate: wrong address");
	return timed(look_up_by_library);
}

static bool open_vm(size_t count)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	unsigned int seed = 1;

	b.count = count;
	b.rounds = bench_quick() ? 50 : 500;
	o.bytes = SLOT_BYTES * count;
	if (kvmem_vm_create(NULL, &b.vm))
		return false;
	bench_check(!kvmem_region_create(b.vm, &o, &b.ram), "%s", kvmem_error_detail());
	b.slots = calloc(count, sizeof(*b.slots));
	bench_check(b.slots, "no memory");
	pthread_rwlock_init(&b.lock, NULL);
	for (size_t i = 0; i < count; i++) {
		b.slots[i] = (struct slot){ i * GAP, SLOT_BYTES,
					    (char *)kvmem_region_base(b.ram) + i * SLOT_BYTES };
		bench_check(!kvmem_region_attach(b.ram, i * SLOT_BYTES, SLOT_BYTES, i * GAP,
						 KVMEM_SLOT_ANY, 0, NULL),
			    "%s", kvmem_error_detail());
	}
	for (size_t i = 0; i < ADDRESSES; i++)
		b.gpas[i] = (size_t)rand_r(&seed) % count * GAP +
			    (uint64_t)(unsigned int)rand_r(&seed) % (SLOT_BYTES - 16);
	return true;
}

static void close_vm(void)
{
	pthread_rwlock_destroy(&b.lock);
	free(b.slots);
	kvmem_region_free(b.ram);
	kvmem_vm_free(b.vm);
}

static void compare(const char *name, size_t slots, unsigned int threads, const char *note)
{
	struct bench_report r = {
		.unit = "ns",
		.baseline = { "sorted array, rwlock", by_lock, NULL },
		.ours = { "kvmem_vm_translate", by_library, NULL },
		.target = threads > 1 ? 1 : 0,
		.note = note,
	};

	if (!open_vm(slots)) {
		bench_skip(name, "%s", kvmem_error_detail());
		return;
	}
	b.threads = threads;
	bench_compare(name, &r);
	close_vm();
}

static void translate_8(void)
{
	compare("vm-translate-8", 8, 1, "at most 20 ns");
}

static void translate_512(void)
{
	compare("vm-translate-512", 512, 1, "at most 60 ns");
}

static void translate_shared(void)
{
	compare("vm-translate-shared", 512, 2, "two device threads at once");
}

BENCH_MAIN({ "vm-translate-8", translate_8 }, { "vm-translate-512", translate_512 },
	   { "vm-translate-shared", translate_shared })
