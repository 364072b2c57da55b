// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A run of guest RAM: its file, its mapping in this process, the record of its pages. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "numa/numa.h"
#include "base/uapi/kvm.h"
#include "base/uapi/mm.h"

/* ---- the plan ---- */

/* Options checked, what an adopted file is, and the plan: the same for planning and for making. */
static int make_plan(struct kvmem_vm *vm, const struct kvmem_region_opts *opts,
		     struct kvmem_region_opts *o, struct kvmem_plan *plan)
{
	struct kvmem_caps *own = NULL;
	int r = km_plan_opts(opts, o);

	if (!r && o->flags & KVMEM_REGION_FD)
		r = km_adopt_kind(o);
	if (!r && !vm)
		r = km_caps_create(-1, -1, 0, &own);
	if (r)
		return r;
	r = km_plan_make(vm ? vm->caps : own, vm != NULL, o, plan);
	kvmem_caps_free(own);
	return r;
}

int kvmem_region_plan(struct kvmem_vm *vm, const struct kvmem_region_opts *opts,
		      struct kvmem_plan *ret_plan)
{
	struct kvmem_plan plan;
	struct kvmem_region_opts o;
	int r = km_result_check(ret_plan, sizeof(plan), "kvmem_plan");

	if (!r)
		r = make_plan(vm, opts, &o, &plan);
	if (!r)
		km_result_copy(ret_plan, &plan, sizeof(plan));
	return r;
}

int kvmem_region_get_plan(const struct kvmem_region *region, struct kvmem_plan *ret_plan)
{
	int r = km_result_check(ret_plan, sizeof(*ret_plan), "kvmem_plan");

	if (r)
		return r;
	if (!region)
		return km_fail(EINVAL, "kvmem_region_get_plan: region is NULL");
	km_result_copy(ret_plan, &region->plan, sizeof(region->plan));
	return 0;
}

/* ---- making ---- */

static int64_t make_guest_memfd(const struct kvmem_region *r)
{
	struct km_kvm_create_guest_memfd g = { .size = r->bytes, .flags = r->plan.gmem_flags };

	return km_sys_ioctl(r->vm->fd, KM_KVM_CREATE_GUEST_MEMFD, &g);
}

static int64_t make_memfd(const struct kvmem_region *r)
{
	unsigned int flags = 0;
	int64_t fd, err;

	if (r->plan.backing == KVMEM_BACKING_HUGETLB)
		flags = MFD_HUGETLB |
			(r->plan.page_size == 1ull << 30 ? KM_MFD_HUGE_1GB : KM_MFD_HUGE_2MB);
	fd = km_sys_memfd_create("kvmem", flags);
	if (fd < 0)
		return fd;
	err = km_sys_ftruncate((int)fd, r->bytes);
	if (err >= 0)
		return fd;
	km_sys_close((int)fd);
	return err;
}

static int make_file(struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	const char *what = "duplicate of the file descriptor given";
	int64_t fd;

	if (o->flags & KVMEM_REGION_FD) {
		fd = km_sys_dup(o->fd);
	} else if (r->plan.backing == KVMEM_BACKING_GUEST_MEMFD && !r->plan.shared_backing) {
		what = "KVM_CREATE_GUEST_MEMFD";
		fd = make_guest_memfd(r);
	} else if (r->plan.backing == KVMEM_BACKING_ANONYMOUS) {
		return 0;
	} else {
		what = "memfd_create and ftruncate";
		fd = make_memfd(r);
	}
	if (fd < 0)
		return km_fail((int)-fd, "region of 0x%" PRIx64 " bytes: %s: %m", r->bytes, what);
	r->fd = (int)fd;
	r->fd_offset = o->fd_offset;
	return 0;
}

/* Private pages are nothing the host can map: they have a guest_memfd of their own, the shared ones
 * fd. */
static int make_private(struct kvmem_region *r)
{
	int64_t fd;

	if (!r->plan.shared_backing)
		return 0;
	fd = make_guest_memfd(r);
	if (fd < 0)
		return km_fail((int)-fd,
			       "private pages of a region of 0x%" PRIx64
			       " bytes: KVM_CREATE_GUEST_MEMFD: %m",
			       r->bytes);
	r->private_fd = (int)fd;
	return 0;
}

static int64_t map_file(const struct kvmem_region *r, uint8_t **ret)
{
	void *p = NULL;
	int64_t err = km_sys_mmap(r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, r->fd_offset,
				  &p);

	*ret = p;
	return err;
}

static int map_region(struct kvmem_region *r)
{
	void *p = NULL;
	int64_t err;

	if (r->fd >= 0) {
		err = map_file(r, &r->base);
	} else {
		err = km_sys_mmap(r->bytes, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &p);
		r->base = p;
	}
	if (err < 0)
		return km_fail((int)-err, "region of 0x%" PRIx64 " bytes: mapping it: %m%s",
			       r->bytes,
			       r->plan.backing == KVMEM_BACKING_HUGETLB
				       ? "; not enough free huge pages, raise vm.nr_hugepages"
				       : "; see RLIMIT_AS and vm.max_map_count");
	return 0;
}

static void destroy(struct kvmem_region *r)
{
	km_numa_free_policies(r);
	km_sys_munmap(r->alias, r->bytes);
	if (r->presence.words)
		km_presence_destroy(&r->presence);
	km_sys_munmap(r->base, r->bytes);
	km_sys_close(r->private_fd);
	km_sys_close(r->fd);
	pthread_mutex_destroy(&r->lock);
	km_sys_free(r);
}

static int build(struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	int err = make_file(r, o);

	if (!err)
		err = make_private(r);
	if (!err)
		err = map_region(r);
	if (!err)
		err = km_presence_init(&r->presence, r->bytes >> r->page_shift);
	if (!err && o->flags & KVMEM_REGION_FD)
		err = km_adopt_presence(r);
	return err;
}

int kvmem_region_create(struct kvmem_vm *vm, const struct kvmem_region_opts *opts,
			struct kvmem_region **ret_region)
{
	struct kvmem_region_opts o;
	struct kvmem_region *r;
	int err;

	if (!ret_region)
		return km_fail(EINVAL, "kvmem_region_create: ret_region is NULL");
	r = km_sys_alloc(sizeof(*r));
	if (!r)
		return km_fail(ENOMEM, "region: no memory");
	r->vm = vm;
	r->fd = -1;
	r->private_fd = -1;
	pthread_mutex_init(&r->lock, NULL);
	err = make_plan(vm, opts, &o, &r->plan);
	if (!err) {
		r->bytes = o.bytes;
		r->page_shift = (unsigned int)__builtin_ctzll(r->plan.page_size);
		err = build(r, &o);
	}
	if (err) {
		destroy(r);
		return err;
	}
	if (vm)
		atomic_fetch_add(&vm->users, 1);
	*ret_region = r;
	return 0;
}

static void leave_vm(struct kvmem_region *region)
{
	struct kvmem_vm *vm = region->vm;

	if (!vm)
		return;
	pthread_rwlock_wrlock(&vm->lock);
	if (vm->hooks)
		vm->hooks->region_freed(vm->hooks_arg, region);
	pthread_rwlock_unlock(&vm->lock);
	atomic_fetch_sub(&vm->users, 1);
}

int kvmem_region_free(struct kvmem_region *region)
{
	bool busy;
	int r;

	if (!region)
		return 0;
	pthread_mutex_lock(&region->lock);
	busy = region->pager || region->fault_ops || atomic_load(&region->fillers);
	pthread_mutex_unlock(&region->lock);
	if (busy)
		return km_fail(
			EBUSY,
			"kvmem_region_free: a pager serves the region, or a populate is under way: "
			"stop it first");
	r = km_region_detach_all(region);
	if (r)
		return r;
	leave_vm(region);
	destroy(region);
	return 0;
}

/* ---- what it is ---- */

void *kvmem_region_base(const struct kvmem_region *region)
{
	if (region)
		return region->base;
	km_fail(EINVAL, "kvmem_region_base: region is NULL");
	return NULL;
}

uint64_t kvmem_region_bytes(const struct kvmem_region *region)
{
	return region ? region->bytes : 0;
}

uint64_t kvmem_region_page_size(const struct kvmem_region *region)
{
	return region ? km_region_page(region) : 0;
}

int kvmem_region_fd(const struct kvmem_region *region)
{
	if (!region)
		return km_fail(EINVAL, "kvmem_region_fd: region is NULL");
	if (region->fd < 0)
		return km_fail(ENODEV, "kvmem_region_fd: anonymous memory has no file descriptor");
	return region->fd;
}

int kvmem_region_private_fd(const struct kvmem_region *region)
{
	if (!region)
		return km_fail(EINVAL, "kvmem_region_private_fd: region is NULL");
	if (region->private_fd < 0)
		return km_fail(ENODEV, "kvmem_region_private_fd: the region has no private pages "
				       "apart from the shared ones");
	return region->private_fd;
}

static int64_t map_alias(struct kvmem_region *r)
{
	int64_t err = map_file(r, &r->alias);

	if (err >= 0)
		err = km_numa_bind_alias(r);
	if (err < 0) {
		km_sys_munmap(r->alias, r->bytes);
		r->alias = NULL;
	}
	return err;
}

int km_region_store(struct kvmem_region *r, uint8_t **ret_base)
{
	int64_t err = 0;

	pthread_mutex_lock(&r->lock);
	if (!r->fault_ops && !r->pager) {
		*ret_base = r->base;
	} else if (r->fd < 0) {
		*ret_base = NULL;
	} else {
		if (!r->alias)
			err = map_alias(r);
		*ret_base = r->alias;
	}
	pthread_mutex_unlock(&r->lock);
	return err < 0 ? km_fail((int)-err,
				 "second mapping of the region's 0x%" PRIx64 " bytes: %m", r->bytes)
		       : 0;
}
