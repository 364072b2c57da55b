// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Memory that the VMM has mapped, and slots that it has set: tracked, filled and paged by the library, and
 * the VMM's own before and after.
 */
#include "dirty_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/uapi/kvm.h"

#define PAGE  4096ull
#define BYTES (8ull << 20)
#define PAGES (BYTES / PAGE)
#define GPA   (UINT64_C(4) << 30)
#define SEED  4711u
#define RW    (PROT_READ | PROT_WRITE)

enum kind { ANON, MEMFD, HUGETLB, HUGE_ADVISED, PRIVATE_FILE, NO_FD, KINDS };

static const char *const kind_names[] = { "anonymous",
					  "memfd",
					  "hugetlb",
					  "anonymous, MADV_HUGEPAGE",
					  "private mapping of a file",
					  "shared, without descriptor" };

struct own {
	uint8_t *at;
	int fd; /* 0: none was given */
	int file;
};

/* A mapping of the kind, in the middle of others. */
static struct own map_own(enum kind kind)
{
	struct own o = { .file = -1 };
	int flags = kind == MEMFD || kind == HUGETLB || kind == NO_FD ? MAP_SHARED : MAP_PRIVATE;

	if (kind != ANON && kind != HUGE_ADVISED) {
		o.file = memfd_create(
			"theirs", MFD_CLOEXEC | (kind == HUGETLB ? MFD_HUGETLB | 21u << 26 : 0));
		ck_assert_int_gt(o.file, 0);
		ck_assert_int_eq(ftruncate(o.file, (off_t)BYTES), 0);
	}
	o.fd = kind == MEMFD || kind == HUGETLB ? o.file : 0;
	o.at = mmap(NULL, BYTES, RW, flags | (o.file < 0 ? MAP_ANONYMOUS : 0), o.file, 0);
	if (o.at == MAP_FAILED && kind == HUGETLB) { /* the pool has too few */
		close(o.file);
		return (struct own){ .at = NULL };
	}
	ck_assert_ptr_ne(o.at, MAP_FAILED);
	/* Else a machine whose huge pages are always on has 512 pages where one was written. */
	madvise(o.at, BYTES, kind == HUGE_ADVISED ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return o;
}

static void unmap_own(const struct own *o)
{
	ck_assert_int_eq(munmap(o->at, BYTES), 0);
	if (o->file >= 0)
		close(o->file);
}

/*
 * What is mapped there, in `text`: access, file, and how far it is of one kind. (Mappings of hugetlb files, once
 * divided, are not joined again by the kernel.)
 */
static void shape(const uint8_t *at, char *text, size_t room)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512], kind[128], last[128] = "", *perms, *rest;
	unsigned long start, end, offset, until = 0;
	size_t used = 0;

	ck_assert_ptr_nonnull(f);
	text[0] = '\0';
	while (fgets(line, sizeof(line), f)) {
		start = strtoul(line, &rest, 16);
		end = strtoul(rest + 1, &perms, 16);
		offset = strtoul(perms + 5, &rest, 16); /* " rw-p" comes before it */
		if (start >= (uintptr_t)at + BYTES || end <= (uintptr_t)at)
			continue;
		/* Equal of neighbours that show one part of a file after the other. */
		snprintf(kind, sizeof(kind), "%.5s %lx %.60s", perms, offset - start, rest);
		if (strcmp(kind, last) != 0 || start != until)
			used += (size_t)snprintf(text + used, room - used, "%lx%s", start, kind);
		memcpy(last, kind, sizeof(last));
		until = end;
		ck_assert_uint_lt(used, room);
	}
	snprintf(text + used, room - used, "until %lx\n", until);
	fclose(f);
}

static int create(const struct own *o, struct kvmem_vm *vm, uint64_t needs, uint32_t content,
		  struct kvmem_region **ret)
{
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;

	ro.bytes = BYTES;
	ro.mapping = o->at;
	ro.fd = o->fd;
	ro.flags = KVMEM_REGION_MAPPING | (o->fd ? KVMEM_REGION_FD : 0);
	ro.needs = needs;
	ro.content = content;
	return kvmem_region_create(vm, &ro, ret);
}

/* ---- dirty alone ---- */

/* false: no such guest here, and the skip is noted. */
static bool track_at(const struct own *o, enum kind kind, uint32_t mode, bool own_slot)
{
	struct rig rig;
	char before[4096], after[4096];

	shape(o->at, before, sizeof(before));
	if (!rig_open(&rig, &(struct rig_opts){ .mode = mode,
						.ring_entries = 1024,
						.bytes = BYTES,
						.vcpus = 2,
						.mapping = o->at,
						.fd = o->fd,
						.own_slot = own_slot }))
		return false;
	ck_assert_ptr_eq(rig.base, o->at);
	for (unsigned int round = 0; round < 2; round++) {
		rig_write(&rig, 0, 10, 300, true);
		rig_write(&rig, 1, 10, 300, false);
		rig_follow(&rig);
		ck_assert_msg(!rig_lost(&rig), "%s: %lu pages lost", kind_names[kind],
			      (unsigned long)rig_lost(&rig));
	}
	ck_assert_uint_gt(rig.reported, 0);
	/* What was written is the VMM's, and so is the mapping. */
	memcpy(rig.copy, o->at, BYTES);
	rig_close(&rig);
	shape(o->at, after, sizeof(after));
	ck_assert_str_eq(before, after);
	return true;
}

static void track(enum kind kind, uint32_t mode, bool own_slot)
{
	struct own o = map_own(kind);

	if (!o.at)
		return;
	track_at(&o, kind, mode, own_slot);
	unmap_own(&o);
}

/* Emulated guests take seconds each: there, each kind of memory has one log with a slot of the library's, and the
 * other log with a slot of the VMM's. */
static void track_all(bool own_slot)
{
	for (enum kind kind = 0; kind < KINDS; kind++) {
		if (!harness_emulated() || kind % 2 == own_slot)
			track(kind, KVMEM_DIRTY_BITMAP, own_slot);
		if (!harness_emulated() || kind % 2 != own_slot)
			track(kind, KVMEM_DIRTY_RING, own_slot);
	}
}

TEST(k9_1_every_mapping_can_be_tracked)
{
	track_all(false);
}
END

/* A VMM that has all of its own, and wants to know what was written. */
TEST(k9_1_and_so_can_the_vmms_own_slot_over_it)
{
	track_all(true);
}
END

/* ---- beside a userfaultfd of the VMM's ---- */

static struct {
	int fd;
	pthread_t thread;
	_Atomic bool stop;
	_Atomic unsigned int answered;
} own_uffd;

/* Each fault, and each page that was taken out of a shared mapping for a moment. */
static void *answer_faults(void *arg)
{
	(void)arg;
	while (!own_uffd.stop) {
		struct pollfd p = { .fd = own_uffd.fd, .events = POLLIN };
		struct uffd_msg msg;
		uint64_t at;

		if (poll(&p, 1, 20) < 1 || read(own_uffd.fd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		at = msg.arg.pagefault.address & ~(PAGE - 1);
		own_uffd.answered++;
		if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR)
			ioctl(own_uffd.fd, UFFDIO_CONTINUE,
			      &(struct uffdio_continue){ .range = { at, PAGE } });
		else
			ioctl(own_uffd.fd, UFFDIO_ZEROPAGE,
			      &(struct uffdio_zeropage){ .range = { at, PAGE } });
		ioctl(own_uffd.fd, UFFDIO_WAKE, &(struct uffdio_range){ at, PAGE });
	}
	return NULL;
}

static bool open_own_uffd(const struct own *o)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { (uintptr_t)o->at, BYTES },
		.mode = UFFDIO_REGISTER_MODE_MISSING | (o->fd ? UFFDIO_REGISTER_MODE_MINOR : 0),
	};
	int dev;

	own_uffd.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (own_uffd.fd < 0) {
		dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		own_uffd.fd = dev < 0 ? -1
				      : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(dev);
	}
	if (own_uffd.fd < 0)
		return false;
	ck_assert_int_eq(ioctl(own_uffd.fd, UFFDIO_API, &api), 0);
	ck_assert_int_eq(ioctl(own_uffd.fd, UFFDIO_REGISTER, &reg), 0);
	own_uffd.stop = false;
	ck_assert_int_eq(pthread_create(&own_uffd.thread, NULL, answer_faults, NULL), 0);
	return true;
}

static void close_own_uffd(void)
{
	own_uffd.stop = true;
	pthread_join(own_uffd.thread, NULL);
	close(own_uffd.fd);
}

/* The library's pager cannot have it too, and says why; the tracker works, whoever serves the faults. */
TEST(k9_1_beside_a_userfaultfd_of_the_vmms)
{
	static const enum kind kinds[] = { ANON, MEMFD };

	for (size_t i = 0; i < 4; i++) {
		struct own o = map_own(kinds[i / 2]);
		struct kvmem_source *source;
		struct kvmem_pager *pager;
		struct kvmem_region *ram;

		if (!open_own_uffd(&o) || kvmem_pager_create(NULL, &pager)) {
			unmap_own(&o);
			SKIP("uffd", "no userfaultfd that sees the faults of vCPUs");
		}
		ck_ok(create(&o, NULL, 0, KVMEM_CONTENT_IGNORE, &ram));
		ck_ok(kvmem_source_memory(&o, sizeof(o), &source));
		ck_fails(kvmem_pager_add(pager, ram, source, 0, 0), EBUSY, "another userfaultfd");
		ck_ok(kvmem_pager_free(pager));
		ck_ok(kvmem_source_free(source));
		ck_ok(kvmem_region_free(ram));
		if (track_at(&o, kinds[i / 2], i % 2 ? KVMEM_DIRTY_RING : KVMEM_DIRTY_BITMAP, true))
			ck_assert_uint_gt(own_uffd.answered, 0);
		close_own_uffd();
		unmap_own(&o);
	}
}
END

/* ---- paging alone, the VMM's own slot ---- */

static struct {
	struct vmm *vmm;
	struct vmm_vcpu *vcpus[2];
	uint8_t *content;
} m;

static bool open_guest(const struct own *o)
{
	if (access("/dev/kvm", R_OK | W_OK)) {
		harness_skip("kvm", "/dev/kvm cannot be opened");
		return false;
	}
	ck_assert_msg(!vmm_create(-1, 0, NULL, &m.vmm), "%s", vmm_error());
	ck_assert_msg(!vmm_set_slot(m.vmm, 1, 0, GPA, BYTES, o->at), "%s", vmm_error());
	for (uint32_t i = 0; i < 2; i++)
		ck_assert_msg(!vmm_vcpu_create(m.vmm, i, &m.vcpus[i]), "%s", vmm_error());
	m.content = aligned_alloc(PAGE, BYTES);
	ck_assert_ptr_nonnull(m.content);
	for (uint64_t at = 0; at < BYTES; at += 8) {
		uint64_t word = guest_pattern(SEED, GPA + at);

		memcpy(m.content + at, &word, 8);
	}
	return true;
}

static void close_guest(void)
{
	vmm_destroy(m.vmm);
	free(m.content);
}

static void verify(void)
{
	for (uint32_t i = 0; i < 2; i++) {
		*vmm_mailbox(m.vcpus[i]) = (struct guest_mailbox){ .command = GUEST_VERIFY,
								   .gpa = GPA,
								   .bytes = BYTES,
								   .page = PAGE,
								   .seed = SEED,
								   .step = PAGE };
		ck_assert_msg(!vmm_start(m.vcpus[i]), "%s", vmm_error());
	}
	for (uint32_t i = 0; i < 2; i++) {
		ck_assert_msg(!vmm_wait(m.vcpus[i]), "%s", vmm_error());
		ck_assert_uint_eq(vmm_mailbox(m.vcpus[i])->result, 0);
	}
}

static bool page_it(enum kind kind, uint32_t content)
{
	struct own o = map_own(kind);
	struct kvmem_region *ram;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	char before[4096], after[4096];

	if (!o.at)
		return true;
	if (kvmem_pager_create(NULL, &pager)) {
		harness_skip("uffd", "%s", kvmem_error_detail());
		unmap_own(&o);
		return false;
	}
	if (!open_guest(&o)) {
		ck_ok(kvmem_pager_free(pager));
		unmap_own(&o);
		return false;
	}
	shape(o.at, before, sizeof(before));
	/* Some of it the VMM has loaded itself; of IGNORE it is rubbish. */
	memcpy(o.at + 3 * PAGE, m.content + 3 * PAGE, 2 * PAGE);
	if (content == KVMEM_CONTENT_IGNORE)
		memset(o.at + 3 * PAGE, 0xee, 2 * PAGE);
	ck_ok(kvmem_source_memory(m.content, BYTES, &source));
	ck_ok(create(&o, NULL, KVMEM_WANT_PAGING, content, &ram));
	ck_ok(kvmem_pager_add(pager, ram, source, 0, 0));
	ck_ok(kvmem_pager_start(pager));
	verify();
	ck_ok(kvmem_pager_stop(pager, 0));
	ck_ok(kvmem_pager_free(pager));
	ck_ok(kvmem_region_free(ram));
	ck_ok(kvmem_source_free(source));
	verify();
	ck_assert_int_eq(memcmp(o.at, m.content, BYTES), 0);
	shape(o.at, after, sizeof(after));
	ck_assert_str_eq(before, after);
	close_guest();
	unmap_own(&o);
	return true;
}

TEST(k9_1_the_vmms_slot_is_paged)
{
	static const enum kind kinds[] = { ANON, MEMFD, HUGE_ADVISED, HUGETLB };

	/* With huge pages one byte written makes 512 of them content: nothing to be kept there. */
	for (size_t i = 0; i < 4; i++)
		if ((i < 2 && !page_it(kinds[i], KVMEM_CONTENT_KEEP)) ||
		    !page_it(kinds[i], KVMEM_CONTENT_IGNORE))
			return;
}
END

/* ---- a guest_memfd of the VMM's ---- */

TEST(k9_1_a_guest_memfd_that_the_vmm_has_mapped)
{
	struct km_kvm_create_guest_memfd g = { .size = BYTES, .flags = 3 };
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct kvmem_plan plan = KVMEM_PLAN_INIT;
	struct kvmem_region *ram;
	struct kvmem_vm *vm;
	uint8_t *at;
	int fd;

	if (kvmem_vm_create(NULL, &vm))
		SKIP("kvm", "%s", kvmem_error_detail());
	fd = ioctl(kvmem_vm_fd(vm), KM_KVM_CREATE_GUEST_MEMFD, &g);
	if (fd < 0) {
		ck_ok(kvmem_vm_free(vm));
		SKIP("guest-memfd", "KVM_CREATE_GUEST_MEMFD that the host can map: errno %d",
		     errno);
	}
	at = mmap(NULL, BYTES, RW, MAP_SHARED, fd, 0);
	ck_assert_ptr_ne(at, MAP_FAILED);
	at[3 * PAGE] = 7;
	ro.bytes = BYTES / 2;
	ro.fd_offset = PAGE;
	ro.mapping = at + PAGE;
	ro.fd = fd;
	ro.flags = KVMEM_REGION_MAPPING | KVMEM_REGION_FD;
	ck_ok(kvmem_region_create(vm, &ro, &ram));
	ck_ok(kvmem_region_get_plan(ram, &plan));
	ck_assert_uint_eq(plan.backing, KVMEM_BACKING_GUEST_MEMFD);
	ck_ok(kvmem_region_attach(ram, 0, BYTES / 2, 0, 5, 0, NULL));
	ck_ok(kvmem_region_discard(ram, 2 * PAGE, PAGE));
	ck_assert_uint_eq(at[3 * PAGE], 0);
	at[4 * PAGE] = 8;
	ck_ok(kvmem_region_free(ram));
	ck_assert_uint_eq(at[4 * PAGE], 8);
	/* Of another file descriptor. */
	ro.fd = memfd_create("another", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(ro.fd, (off_t)BYTES), 0);
	ck_fails(kvmem_region_create(vm, &ro, &ram), EINVAL, "is not of");
	close(ro.fd);
	munmap(at, BYTES);
	close(fd);
	ck_ok(kvmem_vm_free(vm));
}
END

/* ---- populate ---- */

TEST(k9_1_populate_fills_what_is_not_there)
{
	static const enum kind kinds[] = { ANON, MEMFD, HUGE_ADVISED };

	for (size_t i = 0; i < 3; i++) {
		struct own o = map_own(kinds[i]);
		struct kvmem_region *ram;
		struct kvmem_source *source;
		struct kvmem_populate_result res = KVMEM_POPULATE_RESULT_INIT;
		uint64_t kept;

		if (!open_guest(&o)) {
			unmap_own(&o);
			return;
		}
		memset(o.at + 700 * PAGE, 0x77, PAGE);
		ck_ok(create(&o, NULL, 0, 0, &ram));
		ck_ok(kvmem_source_memory(m.content, BYTES, &source));
		ck_ok(kvmem_populate(ram, 0, source, NULL, &res));
		/* With huge pages one byte written makes 512 of them. */
		kept = res.bytes_present / PAGE;
		ck_assert_uint_ge(kept, 1);
		ck_assert_uint_le(kept, 512);
		if (kinds[i] != HUGE_ADVISED)
			ck_assert_uint_eq(kept, 1);
		for (uint64_t p = 0; p < PAGES; p++)
			if (kinds[i] != HUGE_ADVISED && p != 700)
				ck_assert_msg(!memcmp(o.at + p * PAGE, m.content + p * PAGE, PAGE),
					      "%s: page %lu", kind_names[kinds[i]],
					      (unsigned long)p);
		ck_assert_uint_eq(o.at[700 * PAGE], 0x77);
		ck_ok(kvmem_region_discard(ram, 0, 2 * PAGE));
		ck_assert_uint_eq(o.at[PAGE + 8], 0);
		ck_ok(kvmem_region_free(ram));
		ck_ok(kvmem_source_free(source));
		ck_assert_uint_eq(o.at[700 * PAGE], 0x77);
		close_guest();
		unmap_own(&o);
	}
}
END

/*
 * The mapping begins and ends within huge pages. Who touches his own memory beside it gets a huge page, and brings
 * pages of zeros into the region: nobody has written them, and they are filled.
 */
enum beside { FILLED, PAGED, KEPT };

static void beside_huge_pages(enum beside how)
{
	struct kvmem_populate_opts po = KVMEM_POPULATE_OPTS_INIT;
	const uint64_t huge = 512 * PAGE, front = 57 * PAGE, bytes = front + huge + 100 * PAGE;
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	uint8_t *all = mmap(NULL, 4 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			    0);
	uint8_t *base = (uint8_t *)(((uintptr_t)all + huge - 1) & ~(huge - 1)), *content;
	unsigned char first = 0, last = 0;
	struct kvmem_pager *pager = NULL;
	struct kvmem_source *source;
	struct kvmem_region *ram;

	ck_assert_ptr_ne(all, MAP_FAILED);
	if (how == PAGED && kvmem_pager_create(NULL, &pager)) {
		munmap(all, 4 * huge);
		SKIP("uffd", "%s", kvmem_error_detail());
	}
	madvise(all, 4 * huge, MADV_HUGEPAGE);
	ro.bytes = bytes;
	ro.mapping = base + huge - front;
	ro.flags = KVMEM_REGION_MAPPING;
	ck_ok(kvmem_region_create(NULL, &ro, &ram));
	base[0] = 1;
	base[3 * huge - 1] = 1;
	ck_assert_int_eq(mincore(ro.mapping, PAGE, &first), 0);
	ck_assert_int_eq(mincore((uint8_t *)ro.mapping + bytes - PAGE, PAGE, &last), 0);
	content = malloc(bytes);
	memset(content, 0x39, bytes);
	ck_ok(kvmem_source_memory(content, bytes, &source));
	po.flags = how == KEPT ? KVMEM_FILL_KEEP : 0;
	if (how == PAGED) {
		ck_ok(kvmem_pager_add(pager, ram, source, 0, 0));
		ck_ok(kvmem_pager_start(pager));
	} else {
		ck_ok(kvmem_populate(ram, 0, source, &po, NULL));
	}
	/* What is there is content, if the caller says so. */
	if (how == KEPT && first & last & 1) {
		memset(content, 0, front);
		memset(content + bytes - 100 * PAGE, 0, 100 * PAGE);
	}
	ck_assert_int_eq(memcmp(ro.mapping, content, bytes), 0);
	ck_assert_uint_eq(base[0], 1);
	ck_assert_uint_eq(base[3 * huge - 1], 1);
	if (how == PAGED) {
		ck_ok(kvmem_pager_stop(pager, KVMEM_STOP_FILL));
		ck_ok(kvmem_pager_free(pager));
	}
	ck_ok(kvmem_region_free(ram));
	ck_ok(kvmem_source_free(source));
	free(content);
	munmap(all, 4 * huge);
	if (!(first & last & 1))
		harness_note("this kernel made no huge pages");
}

TEST(k9_1_a_neighbour_brings_huge_pages)
{
	beside_huge_pages(FILLED);
	beside_huge_pages(PAGED);
	beside_huge_pages(KEPT);
}
END

/* A small region that has been touched as a whole is no part of a neighbour's huge page. */
TEST(k9_1_zeros_by_hand_are_content)
{
	const uint64_t huge = 512 * PAGE, bytes = 64 * PAGE;
	static uint8_t other[64 * PAGE];
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct kvmem_source *source;
	struct kvmem_region *ram;
	uint8_t *all = mmap(NULL, 2 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			    0);

	ck_assert_ptr_ne(all, MAP_FAILED);
	madvise(all, 2 * huge, MADV_NOHUGEPAGE);
	ro.bytes = bytes;
	ro.mapping = (uint8_t *)(((uintptr_t)all + huge - 1) & ~(huge - 1)) + 100 * PAGE;
	ro.flags = KVMEM_REGION_MAPPING;
	ck_ok(kvmem_region_create(NULL, &ro, &ram));
	memset(ro.mapping, 0, bytes);
	memset(other, 0x11, bytes);
	ck_ok(kvmem_source_memory(other, bytes, &source));
	ck_fails(kvmem_populate(ram, 0, source, NULL, NULL), EEXIST, "64 pages");
	ck_ok(kvmem_region_free(ram));
	ck_ok(kvmem_source_free(source));
	munmap(all, 2 * huge);
}
END

/* ---- fork, and what the caller does to his mapping ---- */

/* A child has its copy of the memory, or none of it; the parent's pager goes on. */
TEST(k9_1_children_do_not_matter)
{
	struct own o = map_own(MEMFD);
	struct kvmem_region *ram;
	struct kvmem_source *source;
	struct kvmem_pager *pager;
	int status;
	pid_t child;

	if (kvmem_pager_create(NULL, &pager)) {
		unmap_own(&o);
		SKIP("uffd", "%s", kvmem_error_detail());
	}
	if (!open_guest(&o)) {
		ck_ok(kvmem_pager_free(pager));
		unmap_own(&o);
		return;
	}
	ck_assert_int_eq(madvise(o.at, BYTES, MADV_DONTFORK), 0);
	ck_ok(create(&o, NULL, KVMEM_WANT_PAGING, 0, &ram));
	ck_ok(kvmem_source_memory(m.content, BYTES, &source));
	ck_ok(kvmem_pager_add(pager, ram, source, 0, 0));
	ck_ok(kvmem_pager_start(pager));
	child = fork();
	if (!child) {
		unsigned char there;

		_exit(mincore(o.at, PAGE, &there) ? 0 : 1); /* not mapped: ENOMEM */
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	verify();
	ck_ok(kvmem_pager_stop(pager, 0));
	ck_ok(kvmem_pager_free(pager));
	ck_ok(kvmem_region_free(ram));
	ck_ok(kvmem_source_free(source));
	verify();
	close_guest();
	unmap_own(&o);
}
END

/* Two regions side by side in one mapping, one of them paged: the other is untouched by it. */
TEST(k9_1_a_part_of_a_mapping)
{
	struct own o = map_own(ANON), half = o;
	struct kvmem_region_opts ro = KVMEM_REGION_OPTS_INIT;
	struct kvmem_region *ram;
	struct kvmem_source *source;
	struct kvmem_pager *pager;

	if (kvmem_pager_create(NULL, &pager)) {
		unmap_own(&o);
		SKIP("uffd", "%s", kvmem_error_detail());
	}
	if (!open_guest(&o)) {
		ck_ok(kvmem_pager_free(pager));
		unmap_own(&o);
		return;
	}
	memcpy(o.at, m.content, BYTES / 2);
	ro.bytes = BYTES / 2;
	ro.flags = KVMEM_REGION_MAPPING;
	ro.mapping = half.at + BYTES / 2;
	ck_ok(kvmem_region_create(NULL, &ro, &ram));
	ck_ok(kvmem_source_memory(m.content, BYTES, &source));
	ck_ok(kvmem_pager_add(pager, ram, source, BYTES / 2, 0));
	ck_ok(kvmem_pager_start(pager));
	verify();
	ck_ok(kvmem_pager_stop(pager, 0));
	ck_ok(kvmem_pager_free(pager));
	ck_ok(kvmem_region_free(ram));
	ck_ok(kvmem_source_free(source));
	ck_assert_int_eq(memcmp(o.at, m.content, BYTES), 0);
	close_guest();
	unmap_own(&o);
}
END

HARNESS_MAIN(T(k9_1_every_mapping_can_be_tracked), T(k9_1_and_so_can_the_vmms_own_slot_over_it),
	     T(k9_1_beside_a_userfaultfd_of_the_vmms), T(k9_1_the_vmms_slot_is_paged),
	     T(k9_1_a_guest_memfd_that_the_vmm_has_mapped),
	     T(k9_1_populate_fills_what_is_not_there), T(k9_1_a_neighbour_brings_huge_pages),
	     T(k9_1_zeros_by_hand_are_content), T(k9_1_children_do_not_matter),
	     T(k9_1_a_part_of_a_mapping))
