// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* A run of guest RAM: its file, its mapping in this process, the record of its pages. */
#include <errno.h>
#include <string.h>

#include "region/policy.h"
#include "region/region.h"

/* ---- the plan ---- */

/* Options checked, what an adopted file is, and the plan: the same for planning and for making. */
static int make_plan(struct kvmem_vm *vm, const struct kvmem_region_opts *opts,
		     struct kvmem_region_opts *o, struct km_own *mapping, struct kvmem_plan *plan)
{
	struct kvmem_caps *own = NULL;
	int r = km_plan_opts(opts, o);

	*mapping = (struct km_own){ 0 };
	if (!r && o->flags & KVMEM_REGION_MAPPING)
		r = km_mapping_kind(o, mapping);
	else if (!r && o->flags & KVMEM_REGION_FD)
		r = km_adopt_kind(o);
	else if (!r && o->flags & KVMEM_REGION_CLONE)
		r = km_clone_kind(o);
	if (!r && !vm)
		r = km_caps_create(-1, -1, 0, &own);
	if (r)
		return r;
	r = km_plan_make(vm ? vm->caps : own, vm != NULL, o,
			 o->flags & KVMEM_REGION_MAPPING ? mapping : NULL, plan);
	kvmem_caps_free(own);
	return r;
}

int kvmem_region_plan(struct kvmem_vm *vm, const struct kvmem_region_opts *opts,
		      struct kvmem_plan *ret_plan)
{
	struct kvmem_plan plan;
	struct kvmem_region_opts o;
	struct km_own mapping;
	int r = km_result_check(ret_plan, sizeof(plan), "kvmem_plan");

	if (!r)
		r = make_plan(vm, opts, &o, &mapping, &plan);
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

struct kvmem_region *km_region_new(void)
{
	struct kvmem_region *r = km_sys_alloc(sizeof(*r));

	if (!r)
		return NULL;
	r->fd = -1;
	r->private_fd = -1;
	pthread_mutex_init(&r->lock, NULL);
	return r;
}

void km_region_destroy(struct kvmem_region *r)
{
	km_registry_remove(r);
	km_policies_free(r);
	km_region_unmap(r, r->alias);
	if (r->presence.words)
		km_presence_destroy(&r->presence);
	if (!r->own_mapping)
		km_region_unmap(r, r->base);
	km_sys_close(r->private_fd);
	km_sys_close(r->fd);
	km_clone_free(r->clone);
	km_remote_free(r->remote);
	pthread_mutex_destroy(&r->lock);
	km_sys_free(r);
}

static int map_region(struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	int64_t err = 0;

	if (r->own_mapping)
		r->base = o->mapping;
	else
		err = km_region_map(r, KM_MAPPING_GUEST, &r->base);
	if (err < 0)
		return km_region_map_fail(r, "mapping it", err);
	if (r->clone)
		r->clone->fd = -1;
	km_registry_mapped(r);
	return 0;
}

/* Holes of a template too: a page that is zero is PRESENT as well, and nothing has to be asked. */
static int find_pages(struct kvmem_region *r)
{
	if (r->clone) {
		km_presence_publish(&r->presence, 0, r->presence.pages, KM_PRESENT);
		return 0;
	}
	if (r->own_mapping && (r->own.limits || (r->fd < 0 && !r->ignore_existing)))
		return km_mapping_presence(r);
	return r->adopted && !r->ignore_existing ? km_adopt_presence(r) : 0;
}

static int build(struct kvmem_region *r, const struct kvmem_region_opts *o)
{
	int err = 0;

	/* What is refused is refused before the file is opened once more: closing that again would
	 * drop the record locks that the process has on it. */
	if (r->adopted || r->clone)
		r->fd_offset = o->fd_offset;
	if (r->adopted || r->own_mapping)
		err = km_registry_add_given(r, r->adopted ? o->fd : -1, o->mapping);
	if (!err)
		err = km_region_make_files(r, o);
	if (!err && !r->registered)
		km_registry_add(r);
	if (!err)
		err = map_region(r, o);
	if (!err)
		err = km_presence_init_growing(&r->presence, r->bytes >> r->page_shift,
					       r->room >> r->page_shift);
	if (!err)
		err = find_pages(r);
	/* Last, as it cannot be undone. */
	return err ? err : km_region_seal_given(r, o);
}

int kvmem_region_create(struct kvmem_vm *vm, const struct kvmem_region_opts *opts,
			struct kvmem_region **ret_region)
{
	struct kvmem_region_opts o;
	struct kvmem_region *r;
	int err;

	if (!ret_region)
		return km_fail(EINVAL, "kvmem_region_create: ret_region is NULL");
	r = km_region_new();
	if (!r)
		return km_fail(ENOMEM, "region: no memory");
	r->vm = vm;
	err = make_plan(vm, opts, &o, &r->own, &r->plan);
	if (!err) {
		r->bytes = o.bytes;
		r->room = o.reserve ? o.reserve : o.bytes;
		r->flags = o.flags;
		r->arg = o.arg;
		r->adopted = o.flags & KVMEM_REGION_FD;
		r->own_mapping = o.flags & KVMEM_REGION_MAPPING;
		r->ignore_existing = o.content == KVMEM_CONTENT_IGNORE;
		r->page_shift = (unsigned int)__builtin_ctzll(r->plan.page_size);
		if (o.flags & KVMEM_REGION_CLONE)
			r->clone = km_clone_new(o.fd);
		if (o.flags & KVMEM_REGION_CLONE && !r->clone)
			err = km_fail(ENOMEM, "region: no memory");
	}
	if (!err)
		err = build(r, &o);
	if (err) {
		km_region_destroy(r);
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
	bool busy, captured, watched;
	int r;

	if (!region)
		return 0;
	r = km_callback_check("kvmem_region_free", NULL);
	if (r)
		return r;
	pthread_mutex_lock(&region->lock);
	busy = region->watch || atomic_load(&region->fillers);
	watched = atomic_load(&region->writes) != 0;
	captured = atomic_load(&region->guard) != NULL;
	pthread_mutex_unlock(&region->lock);
	if (captured)
		return km_fail(EBUSY, "kvmem_region_free: a capture of the region is under way: "
				      "kvmem_capture_stop() it first");
	if (watched)
		return km_fail(EBUSY, "kvmem_region_free: writes to it are watched: "
				      "kvmem_writes_remove() it first");
	if (busy)
		return km_fail(
			EBUSY,
			"kvmem_region_free: a pager serves the region, or a populate is under way: "
			"stop it first");
	r = km_region_detach_all(region);
	if (r)
		return r;
	leave_vm(region);
	km_region_destroy(region);
	return 0;
}

/* ---- what it is ---- */

void *kvmem_region_base(const struct kvmem_region *region)
{
	if (region && km_region_own_check(region, "kvmem_region_base"))
		return NULL;
	if (region)
		return region->base;
	km_fail(EINVAL, "kvmem_region_base: region is NULL");
	return NULL;
}

uint64_t kvmem_region_bytes(const struct kvmem_region *region)
{
	return region ? region->bytes : 0;
}

void *kvmem_region_arg(const struct kvmem_region *region)
{
	return region ? region->arg : NULL;
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
		return km_fail(ENODEV, "kvmem_region_fd: %s",
			       region->remote  ? "memory of another process has none here"
			       : region->clone ? "a clone has no file, its template is the caller's"
			       : region->own.limits
				       ? "the region is a mapping that was given without one"
				       : "anonymous memory has no file descriptor");
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
