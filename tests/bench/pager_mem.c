// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "pager_mem.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "free_pages.h"

bool lazy_has_huge(uint64_t bytes)
{
	int fd = memfd_create("bench", MFD_CLOEXEC | MFD_HUGETLB);
	void *p = MAP_FAILED;

	if (fd >= 0 && !ftruncate(fd, (off_t)bytes))
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p != MAP_FAILED)
		munmap(p, bytes);
	if (fd >= 0)
		close(fd);
	return p != MAP_FAILED;
}

const uint8_t *lazy_content(uint64_t bytes)
{
	static uint8_t *content;
	static uint64_t have;

	if (have < bytes) {
		content = bench_alloc(bytes);
		have = bytes;
		bench_random_words(content, bytes, 7);
	}
	return content;
}

static void make_file(struct lazy *l, const uint8_t *content, uint64_t bytes, enum lazy_kind kind)
{
	uint8_t *to;

	if (kind != LAZY_HUGE)
		free_pages_have(KVMEM_BACKING_MEMFD, bytes);
	memset(l, 0, sizeof(*l));
	l->bytes = bytes;
	l->content = content;
	l->kind = kind;
	l->page = kind == LAZY_HUGE ? 2 * MIB : PAGE;
	l->fd = memfd_create("bench", kind == LAZY_HUGE ? MFD_CLOEXEC | MFD_HUGETLB : MFD_CLOEXEC);
	bench_check(l->fd >= 0 && !ftruncate(l->fd, (off_t)bytes), "memfd");
	if (kind != LAZY_MINOR)
		return;
	to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, 0);
	bench_check(to != MAP_FAILED, "mmap");
	memcpy(to, content, bytes);
	munmap(to, bytes);
}

/* ---- the simple handler ---- */

struct baseline {
	struct lazy *l;
	int uffd;
	int stop;
	uint8_t *alias;
	pthread_t thread;
};

static void serve_one(struct baseline *b)
{
	struct uffdio_continue c = { 0 };
	struct uffd_msg msg;
	uint64_t offset;

	if (read(b->uffd, &msg, sizeof(msg)) != sizeof(msg))
		return;
	offset = (msg.arg.pagefault.address & ~(b->l->page - 1)) - (uintptr_t)b->l->base;
	if (b->l->kind != LAZY_MINOR)
		memcpy(b->alias + offset, b->l->content + offset, b->l->page);
	c.range.start = (uintptr_t)b->l->base + offset;
	c.range.len = b->l->page;
	bench_check(!ioctl(b->uffd, UFFDIO_CONTINUE, &c) || errno == EEXIST, "UFFDIO_CONTINUE");
}

static void *simple_handler(void *arg)
{
	struct baseline *b = arg;
	struct pollfd p[2] = { { .fd = b->uffd, .events = POLLIN },
			       { .fd = b->stop, .events = POLLIN } };

	for (;;) {
		poll(p, 2, -1);
		if (p[1].revents)
			return NULL;
		serve_one(b);
	}
}

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	bench_check(fd >= 0 && !ioctl(fd, UFFDIO_API, &api), "userfaultfd");
	return fd;
}

void lazy_by_simple(struct lazy *l, const uint8_t *content, uint64_t bytes, enum lazy_kind kind)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING |
					       UFFDIO_REGISTER_MODE_MINOR };
	struct baseline *b = calloc(1, sizeof(*b));

	make_file(l, content, bytes, kind);
	bench_check(b != NULL, "no memory");
	l->simple = b;
	b->l = l;
	l->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, 0);
	b->alias = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, 0);
	bench_check(l->base != MAP_FAILED && b->alias != MAP_FAILED, "mmap");
	b->uffd = open_uffd();
	b->stop = eventfd(0, EFD_CLOEXEC);
	reg.range.start = (uintptr_t)l->base;
	reg.range.len = bytes;
	bench_check(!ioctl(b->uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
	bench_check(!pthread_create(&b->thread, NULL, simple_handler, b), "thread");
}

static void end_simple(struct lazy *l)
{
	struct baseline *b = l->simple;
	uint64_t one = 1;

	bench_check(write(b->stop, &one, sizeof(one)) == sizeof(one), "eventfd");
	pthread_join(b->thread, NULL);
	close(b->uffd);
	close(b->stop);
	munmap(b->alias, l->bytes);
	munmap(l->base, l->bytes);
	free(b);
}

/* ---- the library ---- */

void lazy_by_pager(struct lazy *l, const uint8_t *content, uint64_t bytes, enum lazy_kind kind,
		   const struct kvmem_pager_opts *opts, struct kvmem_vm *vm)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;
	int r;

	make_file(l, content, bytes, kind);
	o.flags = KVMEM_REGION_FD;
	o.fd = l->fd;
	o.bytes = bytes;
	r = kvmem_region_create(vm, &o, &l->region);
	if (!r)
		r = kvmem_source_memory(content, bytes, &l->source);
	if (!r)
		r = kvmem_pager_create(opts, &l->pager);
	if (!r)
		r = kvmem_pager_add(l->pager, l->region, l->source, 0, 0);
	bench_check(!r, "pager: %s", kvmem_error_detail());
	l->base = kvmem_region_base(l->region);
}

void lazy_start(struct lazy *l)
{
	if (l->pager)
		bench_check(!kvmem_pager_start(l->pager), "pager: %s", kvmem_error_detail());
}

static void end_pager(struct lazy *l)
{
	bench_check(!kvmem_pager_stop(l->pager, KVMEM_STOP_HAND_BACK), "stop: %s",
		    kvmem_error_detail());
	kvmem_pager_free(l->pager);
	kvmem_region_free(l->region);
	kvmem_source_free(l->source);
}

/* ---- */

/*
 * Its pages are to the kernel what those of the others are: only mapped where they were in the file before. By
 * MAP_POPULATE they would be active pages, and KVM's first use of one would be spared the way there.
 */
void lazy_none(struct lazy *l, const uint8_t *content, uint64_t bytes, enum lazy_kind kind)
{
	make_file(l, content, bytes, kind);
	l->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, 0);
	bench_check(l->base != MAP_FAILED, "mmap");
	if (kind != LAZY_MINOR)
		memcpy(l->base, content, bytes);
	for (uint64_t at = 0; at < bytes; at += PAGE)
		(void)*(const volatile uint8_t *)(l->base + at);
}

void lazy_end(struct lazy *l)
{
	bench_check(!memcmp(l->base, l->content, l->bytes), "the memory is not what the source is");
	if (l->simple)
		end_simple(l);
	else if (l->pager)
		end_pager(l);
	else
		munmap(l->base, l->bytes);
	close(l->fd);
}
