// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Memory made beforehand: all of it, as zeros, or none; and mapped for the guest where KVM offers that. */
#include "harness.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"
#include "fake_kvm.h"
#include "fill/fill.h"

#define PAGE  4096ull
#define PAGES 9000ull /* four units and a bit */
#define BYTES (PAGES * PAGE)

static struct kvmem_vm *vm;
static struct kvmem_region *ram;
static uint8_t *base;
static struct kvmem_populate_result res;

static void failed(int err, const char *word, int r)
{
	ck_assert_msg(r == -err, "%d, not %d: %s", r, -err, kvmem_error_detail());
	ck_assert_msg(strstr(kvmem_error_detail(), word), "'%s' is not in: %s", word,
		      kvmem_error_detail());
}

static void fresh(uint32_t backing)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	fake_kvm_reset();
	ck_assert_int_eq(kvmem_vm_create(NULL, &vm), 0);
	o.bytes = BYTES;
	o.backing = backing;
	ck_assert_msg(!kvmem_region_create(vm, &o, &ram), "%s", kvmem_error_detail());
	base = kvmem_region_base(ram);
}

static void done(void)
{
	ck_assert_int_eq(kvmem_region_free(ram), 0);
	ck_assert_int_eq(kvmem_vm_free(vm), 0);
	ck_assert_int_eq(fake.allocs, 0);
}

static int prealloc(uint64_t offset, struct kvmem_populate_opts o)
{
	o.size = sizeof(o);
	o.flags |= KVMEM_POPULATE_PREALLOC;
	res = (struct kvmem_populate_result)KVMEM_POPULATE_RESULT_INIT;
	return kvmem_populate(ram, offset, NULL, &o, &res);
}

#define PREALLOC(offset, ...) prealloc(offset, (struct kvmem_populate_opts){ __VA_ARGS__ })

/* Pages that the kernel has. */
static uint64_t there(void)
{
	unsigned char *vec = calloc(1, PAGES);
	uint64_t n = 0;

	ck_assert_int_eq(mincore(base, BYTES, vec), 0);
	for (uint64_t i = 0; i < PAGES; i++)
		n += vec[i] & 1;
	free(vec);
	return n;
}

static uint64_t in_state(enum km_page_state want)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < PAGES; i++)
		n += km_presence_get(&ram->presence, i) == want;
	return n;
}

static const uint32_t backings[] = { KVMEM_BACKING_MEMFD, KVMEM_BACKING_ANONYMOUS,
				     KVMEM_BACKING_GUEST_MEMFD };

TEST(k9_4_all_of_it_is_made)
{
	for (size_t i = 0; i < KM_ARRAY_SIZE(backings); i++) {
		fresh(backings[i]);
		ck_assert_msg(!PREALLOC(0, .threads = 3), "%s", kvmem_error_detail());
		ck_assert_uint_eq(there(), PAGES);
		ck_assert_uint_eq(in_state(KM_PRESENT), PAGES);
		ck_assert_uint_eq(res.bytes_made, BYTES);
		ck_assert_uint_eq(res.bytes_present, 0);
		ck_assert_uint_eq(res.threads, 3);
		ck_assert(km_is_zero(base, BYTES));
		ck_assert_int_eq(PREALLOC(0, .threads = 1), 0); /* is there already */
		ck_assert_uint_eq(res.bytes_made, 0);
		ck_assert_uint_eq(res.bytes_present, BYTES);
		done();
	}
}
END

/* Before Linux 5.14, and on memory that the kernel does not pin: zeros are stored, page by page. */
static int64_t no_populate(void *addr, size_t len, int advice)
{
	return advice == KM_MADV_POPULATE_READ || advice == KM_MADV_POPULATE_WRITE
		       ? -EINVAL
		       : km_real_madvise(addr, len, advice);
}

TEST(k9_4_without_madv_populate)
{
	for (size_t i = 0; i < 2; i++) {
		fresh(backings[i]);
		fake.madvise = no_populate;
		ck_assert_int_eq(kvmem_region_discard(ram, 0, PAGE), 0);
		base[5] = 7; /* by the guest: the record says zero */
		ck_assert_int_eq(PREALLOC(0, .threads = 2), 0);
		ck_assert_uint_eq(there(), PAGES);
		ck_assert_uint_eq(base[5], 7);
		done();
	}
}
END

TEST(k9_4_what_is_there_stays)
{
	fresh(KVMEM_BACKING_MEMFD);
	memset(base + 3 * PAGE, 0x33, 2 * PAGE);
	failed(EEXIST, "2 pages", PREALLOC(0, .threads = 1));
	ck_assert_int_eq(kvmem_region_mark_present(ram, 3 * PAGE, PAGE), 0);
	ck_assert_int_eq(kvmem_region_discard(ram, 10 * PAGE, PAGE), 0);
	base[10 * PAGE] = 9; /* the guest has written to it since */
	ck_assert_int_eq(PREALLOC(PAGE, .bytes = 20 * PAGE, .flags = KVMEM_FILL_KEEP), 0);
	ck_assert_uint_eq(base[3 * PAGE] & base[4 * PAGE], 0x33);
	ck_assert_uint_eq(base[10 * PAGE], 9);
	ck_assert_uint_eq(there(), 20);
	ck_assert_uint_eq(in_state(KM_PRESENT), 19);
	ck_assert_uint_eq(res.bytes_made, 18 * PAGE); /* with the one that is zero */
	ck_assert_uint_eq(res.bytes_present, 2 * PAGE);
	done();
}
END

static _Atomic unsigned int populated, fail_after;

static int64_t no_memory(void *addr, size_t len, int advice)
{
	if ((advice == KM_MADV_POPULATE_READ || advice == KM_MADV_POPULATE_WRITE) &&
	    populated++ >= fail_after)
		return -EFAULT;
	return km_real_madvise(addr, len, advice);
}

TEST(k9_4_too_little_memory_leaves_nothing)
{
	for (size_t i = 0; i < 2; i++) {
		for (fail_after = 0; fail_after < 5; fail_after++) {
			fresh(backings[i]);
			ck_assert_int_eq(kvmem_region_mark_present(ram, 7 * PAGE, PAGE), 0);
			base[7 * PAGE] = 7;
			fake.madvise = no_memory;
			populated = 0;
			failed(ENOMEM, "no pages to be had",
			       PREALLOC(0, .threads = 1 + fail_after % 3));
			ck_assert_uint_eq(there(), 1);
			ck_assert_uint_eq(in_state(KM_PRESENT), 1);
			ck_assert_uint_eq(in_state(KM_ABSENT), PAGES - 1);
			ck_assert_uint_eq(base[7 * PAGE], 7);
			ck_assert_uint_eq(res.bytes_made, 0);
			done();
		}
	}
}
END

TEST(k9_4_whatever_fails)
{
	unsigned long n = 0;
	int r;

	do {
		fresh(KVMEM_BACKING_MEMFD);
		fake.fail_at = fake.calls + ++n;
		fake.fail_errno = ENOMEM;
		r = PREALLOC(0, .threads = 2);
		fake.fail_at = 0;
		ck_assert_uint_eq(there(), r ? 0 : PAGES);
		ck_assert_uint_eq(in_state(KM_CLAIMED), 0);
		done();
		ck_assert_uint_lt(n, 40);
	} while (fake.failed);
}
END

static int cancel(void *arg, const struct kvmem_progress *p)
{
	ck_assert_uint_eq(p->total, BYTES);
	*(uint64_t *)arg += p->done;
	return 1;
}

static int64_t slow(void *addr, size_t len, int advice)
{
	usleep(60000);
	return km_real_madvise(addr, len, advice);
}

TEST(k9_4_canceled_leaves_nothing)
{
	uint64_t seen = 0;

	fresh(KVMEM_BACKING_MEMFD);
	fake.madvise = slow;
	failed(ECANCELED, "canceled",
	       PREALLOC(0, .threads = 1, .progress = cancel, .progress_arg = &seen));
	ck_assert_uint_gt(seen, 0);
	ck_assert_uint_eq(there(), 0);
	ck_assert_uint_eq(in_state(KM_ABSENT), PAGES);
	done();
}
END

TEST(k9_4_wrong_arguments)
{
	struct kvmem_source *s;
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	fresh(KVMEM_BACKING_MEMFD);
	ck_assert_int_eq(kvmem_source_memory(&o, sizeof(o), &s), 0);
	o.flags = KVMEM_POPULATE_PREALLOC;
	failed(EINVAL, "source", kvmem_populate(ram, 0, s, &o, NULL));
	ck_assert_int_eq(kvmem_source_free(s), 0);
	failed(EINVAL, "source is NULL", kvmem_populate(ram, 0, NULL, NULL, NULL));
	failed(EINVAL, "multiple", PREALLOC(1, .bytes = PAGE));
	failed(EINVAL, "multiple", PREALLOC(0, .bytes = 1));
	failed(ERANGE, "beyond", PREALLOC(BYTES - PAGE, .bytes = 2 * PAGE));
	failed(EINVAL, "0 bytes", PREALLOC(BYTES, .bytes = 0));
	failed(EINVAL, "mean nothing", PREALLOC(0, .method = KVMEM_FILL_COPY));
	failed(EINVAL, "mean nothing", PREALLOC(0, .source_offset = PAGE));
	failed(EINVAL, "threads", PREALLOC(0, .threads = 1000));
	failed(EINVAL, "vcpu_fd", PREALLOC(0, .vcpu_fd = 3));
	failed(EINVAL, "MAP_NEEDED", PREALLOC(0, .flags = KVMEM_POPULATE_MAP_NEEDED));
	failed(EBADF, "vcpu_fd", PREALLOC(0, .flags = KVMEM_POPULATE_MAP_GUEST, .vcpu_fd = 9999));
	ram->watch = &(struct km_watch){ .set = &(struct km_uffd_set){ .count = 0 } };
	failed(EBUSY, "pager", PREALLOC(0, .threads = 1));
	ram->watch = NULL;
	ck_assert_uint_eq(km_presence_claim(&ram->presence, 5, 1), 1);
	km_presence_publish(&ram->presence, 5, 1, KM_POISONED);
	failed(EIO, "poisoned", PREALLOC(0, .threads = 1));
	ck_assert_uint_eq(in_state(KM_ABSENT), PAGES - 1);
	done();
}
END

static void *overlap(void *arg)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	uint64_t at = (uintptr_t)arg;

	o.flags = KVMEM_POPULATE_PREALLOC;
	o.bytes = BYTES - at;
	o.threads = 2;
	return (void *)(intptr_t)kvmem_populate(ram, at, NULL, &o, NULL);
}

/* Each waits for the other's claims, and not both. */
TEST(k9_4_two_at_once)
{
	pthread_t threads[4];
	void *r;

	for (unsigned int round = 0; round < 5; round++) {
		fresh(KVMEM_BACKING_MEMFD);
		for (uintptr_t i = 0; i < 4; i++)
			ck_assert_int_eq(pthread_create(&threads[i], NULL, overlap,
							(void *)(i * 1000 * PAGE)),
					 0);
		for (unsigned int i = 0; i < 4; i++) {
			pthread_join(threads[i], &r);
			ck_assert_ptr_null(r);
		}
		ck_assert_uint_eq(in_state(KM_PRESENT), PAGES);
		done();
	}
}
END

/* ---- the guest's tables ---- */

static int64_t (*kvm_ioctl)(int fd, unsigned long request, void *arg);
static int64_t (*kvm_ioctl_val)(int fd, unsigned long request, unsigned long arg);
static uint64_t asked[8][2], step;
static unsigned int asks;
static int64_t refuse;

static int64_t pre_fault(int fd, unsigned long request, void *arg)
{
	struct km_kvm_pre_fault_memory *m = arg;
	uint64_t n;

	if (request != KM_KVM_PRE_FAULT_MEMORY)
		return kvm_ioctl(fd, request, arg);
	ck_assert_uint_eq(m->flags, 0);
	asked[asks % 8][0] = m->gpa;
	asked[asks++ % 8][1] = m->size;
	if (refuse)
		return refuse;
	n = step && step < m->size ? step : m->size;
	m->gpa += n;
	m->size -= n;
	return m->size ? -EAGAIN : 0;
}

static int64_t offered(int fd, unsigned long request, unsigned long arg)
{
	return request == KVM_CHECK_EXTENSION && arg == KM_KVM_CAP_PRE_FAULT_MEMORY
		       ? 1
		       : kvm_ioctl_val(fd, request, arg);
}

static void attach_parts(bool offer)
{
	fresh(KVMEM_BACKING_MEMFD);
	kvm_ioctl = fake.ioctl;
	kvm_ioctl_val = fake.ioctl_val ? fake.ioctl_val : km_real_ioctl_val;
	fake.ioctl = pre_fault;
	if (offer)
		fake.ioctl_val = offered;
	asks = 0;
	step = 0;
	refuse = 0;
	ck_assert_int_eq(kvmem_region_attach(ram, 0, 100 * PAGE, 1 << 20, 1, 0, NULL), 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 200 * PAGE, 50 * PAGE, 8 << 20, 2, 0, NULL), 0);
	ck_assert_int_eq(kvmem_region_attach(ram, 0, PAGE, 1 << 20, 1u << 16 | 3, 0, NULL), 0);
}

#define MAP_IT .flags = KVMEM_POPULATE_MAP_GUEST, .bytes = 220 * PAGE

TEST(k9_4_where_the_guest_sees_it_it_is_mapped)
{
	attach_parts(true);
	step = 30 * PAGE;
	ck_assert_msg(!PREALLOC(PAGE, MAP_IT), "%s", kvmem_error_detail());
	ck_assert_uint_eq(res.bytes_mapped, (99 + 21) * PAGE);
	ck_assert_uint_eq(res.bytes_unmapped, 0);
	ck_assert_uint_eq(asks, 5); /* of the address space that the guest runs in */
	ck_assert_uint_eq(asked[0][0], (1 << 20) + PAGE);
	ck_assert_uint_eq(asked[1][0], (1 << 20) + 31 * PAGE);
	ck_assert_uint_eq(asked[4][0], 8 << 20);
	ck_assert_uint_eq(asked[4][1], 21 * PAGE);
	done();
}
END

TEST(k9_4_what_kvm_refuses_is_counted)
{
	attach_parts(true);
	refuse = -EFAULT;
	ck_assert_int_eq(PREALLOC(PAGE, MAP_IT), 0);
	ck_assert_uint_eq(res.bytes_mapped, 0);
	ck_assert_uint_eq(res.bytes_unmapped, (99 + 21) * PAGE);
	ck_assert_uint_eq(res.bytes_made, 220 * PAGE);
	failed(EFAULT, "KVM_PRE_FAULT_MEMORY",
	       PREALLOC(PAGE, .flags = KVMEM_POPULATE_MAP_GUEST | KVMEM_POPULATE_MAP_NEEDED,
			.bytes = PAGE));
	refuse = -EAGAIN; /* without end and without progress */
	ck_assert_int_eq(PREALLOC(PAGE, MAP_IT), 0);
	ck_assert_uint_eq(res.bytes_unmapped, (99 + 21) * PAGE);
	done();
}
END

TEST(k9_4_where_kvm_does_not_offer_it)
{
	attach_parts(false);
	ck_assert_int_eq(PREALLOC(0, MAP_IT), 0);
	ck_assert_uint_eq(asks, 0);
	ck_assert_uint_eq(res.bytes_unmapped, (100 + 20) * PAGE);
	failed(EOPNOTSUPP, "not offered",
	       PREALLOC(300 * PAGE, .flags = KVMEM_POPULATE_MAP_GUEST | KVMEM_POPULATE_MAP_NEEDED));
	ck_assert_uint_eq(there(), 220);
	done();
}
END

/* Also of what comes from a source; a range that is no whole pages is widened to them. */
TEST(k9_4_populate_maps_too)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;
	struct kvmem_source *s;
	uint8_t *content = calloc(1, 10 * PAGE);

	attach_parts(true);
	memset(content, 1, 10 * PAGE);
	ck_assert_int_eq(kvmem_source_memory(content, 10 * PAGE, &s), 0);
	o.flags = KVMEM_POPULATE_MAP_GUEST;
	o.bytes = 2 * PAGE;
	res = (struct kvmem_populate_result)KVMEM_POPULATE_RESULT_INIT;
	ck_assert_int_eq(kvmem_populate(ram, 100, s, &o, &res), 0);
	ck_assert_uint_eq(asked[0][0], 1 << 20);
	ck_assert_uint_eq(asked[0][1], 3 * PAGE);
	ck_assert_uint_eq(res.bytes_mapped, 3 * PAGE);
	ck_assert_int_eq(kvmem_source_free(s), 0);
	free(content);
	done();
}
END

HARNESS_MAIN(T(k9_4_all_of_it_is_made), T(k9_4_without_madv_populate), T(k9_4_what_is_there_stays),
	     T(k9_4_too_little_memory_leaves_nothing), T(k9_4_whatever_fails),
	     T(k9_4_canceled_leaves_nothing), T(k9_4_wrong_arguments), T(k9_4_two_at_once),
	     T(k9_4_where_the_guest_sees_it_it_is_mapped), T(k9_4_what_kvm_refuses_is_counted),
	     T(k9_4_where_kvm_does_not_offer_it), T(k9_4_populate_maps_too))
