// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The regions of a capture: which can be captured, taken, and let go. */
#include "capture/capture_internal.h"

#include <errno.h>
#include <inttypes.h>

/* ---- can it? ---- */

static const char *never(const struct kvmem_capture *c, const struct kvmem_region *r)
{
	if (r->plan.backing == KVMEM_BACKING_GUEST_MEMFD || r->plan.slot_form == KVMEM_SLOT_DIRECT)
		return "userfaultfd has no write protection that raises events on a guest_memfd: save "
		       "what a dirty reader reports, and pause for the rest";
	if (km_region_page(r) > KM_PAGE_MOST)
		return "its pages are larger than 2 MiB, and a write would wait for the copy of one";
	if (r->flags & KVMEM_REGION_OVERLAP)
		return "other regions have the same memory (KVMEM_REGION_OVERLAP), and writes through "
		       "their mappings are not seen";
	if (!km_region_is_shared(r) && c->pagemap < 0)
		return "private memory needs /proc/self/pagemap, which cannot be opened: it tells which "
		       "pages exist";
	return NULL;
}

/* Of a region that a pager has, with the region's lock held. */
static int check_watched(const struct kvmem_region *r)
{
	const struct km_watch *w = r->watch;

	if (!w->set->captures)
		return km_fail(EOPNOTSUPP,
			       "its pager was made without KVMEM_PAGER_CAPTURE: its userfaultfds "
			       "have no write protection that raises events");
	if (!km_watch_can(w, _UFFDIO_WRITEPROTECT))
		return km_fail(EOPNOTSUPP,
			       "this kernel has no write protection by userfaultfd on its memory");
	if (!atomic_load(&w->set->served))
		return km_fail(EBUSY,
			       "nobody reads the events of its pager: kvmem_pager_start() it");
	return 0;
}

static int refused(int err)
{
	if (err == -EINVAL || err == -EPERM)
		return km_fail(
			EOPNOTSUPP,
			"this kernel has no write protection by userfaultfd that raises "
			"events on its memory: anonymous memory and, from Linux 5.19 on, "
			"memfds of base or huge pages and private mappings of memfds have it");
	return km_fail(-err, "UFFDIO_REGISTER: %m%s",
		       err == -EBUSY ? "; another userfaultfd has the memory" : "");
}

static void set_own_watch(struct km_watch *w, struct kvmem_capture *c, struct kvmem_region *r)
{
	*w = (struct km_watch){
		.set = &c->set,
		.region = r,
		.addr = (uintptr_t)r->base,
		.room = atomic_load(&r->bytes) >> r->page_shift,
		.shift = r->page_shift,
		.stripe = atomic_load(&r->bytes) >> r->page_shift,
	};
}

/* With the region's lock held. `w`: registered where it has no pager. */
static int take_region(struct kvmem_capture *c, struct kvmem_region *r, struct km_watch *w)
{
	int err = km_region_own_check(r, "kvmem_capture");
	const char *no = err ? NULL : never(c, r);

	if (err)
		return err;
	if (no)
		return km_fail(EOPNOTSUPP, "%s", no);
	if (atomic_load(&r->guard))
		return km_fail(EBUSY, "a capture of the region is under way");
	if (r->watch)
		return check_watched(r);
	set_own_watch(w, c, r);
	err = km_watch_begin_wp(w);
	return err ? refused(err) : 0;
}

int km_parts_check(struct kvmem_capture *c, struct kvmem_region *region)
{
	struct km_watch w;
	int r;

	pthread_mutex_lock(&region->lock);
	r = take_region(c, region, &w);
	if (!r && !region->watch)
		km_watch_end_wp(&w, 0);
	pthread_mutex_unlock(&region->lock);
	return r;
}

/* ---- taken ---- */

static void set_content(struct km_captured *p)
{
	const struct kvmem_region *r = p->region;
	bool private = !km_region_is_shared(r),
	     base_pages = km_region_page(r) == km_sys_page_size();

	p->by_fd = r->fd >= 0;
	p->by_pages = r->plan.backing == KVMEM_BACKING_ANONYMOUS || (r->clone && base_pages);
	p->checks = private && base_pages;
	p->seeks = r->fd >= 0 && r->plan.backing == KVMEM_BACKING_MEMFD;
}

static void set_guard(struct km_captured *p)
{
	p->guard = (struct km_guard){
		.region = p->region,
		.watch = p->watched ? p->region->watch : &p->own,
		.before = km_written_before,
		.holds = km_written_holds,
		.waited = km_written_waited,
	};
	km_guard_begin(&p->guard);
}

static struct km_captured *new_part(struct kvmem_capture *c, struct kvmem_region *r)
{
	struct km_captured *p = km_sys_alloc(sizeof(*p));

	if (!p)
		return NULL;
	p->capture = c;
	p->region = r;
	p->shift = r->page_shift;
	p->pages = atomic_load(&r->bytes) >> p->shift;
	p->chunk = KM_CHUNK_BYTES >> p->shift;
	if (!km_record_init(&p->record, p->pages))
		return p;
	km_sys_free(p);
	return NULL;
}

static void free_part(struct km_captured *p)
{
	if (p)
		km_record_destroy(&p->record);
	km_sys_free(p);
}

static int begin_part(struct kvmem_capture *c, struct km_captured *p)
{
	struct kvmem_region *r = p->region;
	int err;

	p->first_chunk = c->chunks;
	pthread_mutex_lock(&r->lock);
	err = take_region(c, r, &p->own);
	if (!err) {
		atomic_fetch_add(&r->fillers, 1); /* its pager stays, and so does the region */
		p->watched = r->watch != NULL;
		set_content(p);
		set_guard(p);
	}
	pthread_mutex_unlock(&r->lock);
	if (!err)
		c->chunks += (p->pages + p->chunk - 1) / p->chunk;
	return err;
}

static void end_part(struct km_captured *p)
{
	/* What is protected still was so when the capture failed, or was ended before its time. */
	if (p->watched)
		km_watch_wake(p->region->watch, 0, p->pages);
	else
		km_watch_end_wp(&p->own, 0);
	km_pages_leave(p->region);
	free_part(p);
}

/* By address. */
static void insert(struct kvmem_capture *c, struct km_captured *p)
{
	size_t i = c->part_count;

	for (; i && c->by_addr[i - 1]->region->base > p->region->base; i--)
		c->by_addr[i] = c->by_addr[i - 1];
	c->by_addr[i] = p;
	c->parts[c->part_count++] = p;
	atomic_fetch_add(&c->bytes, atomic_load(&p->record.left) << p->shift);
}

struct km_captured *km_parts_at(const struct kvmem_capture *c, uint64_t addr)
{
	size_t lo = 0, hi = c->part_count;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		struct km_captured *p = c->by_addr[mid];

		uint64_t base = (uintptr_t)p->region->base;

		if (addr < base)
			hi = mid;
		else if (addr - base < p->pages << p->shift)
			return p->watched ? NULL : p;
		else
			lo = mid + 1;
	}
	return NULL;
}

/* One for each thread that hands out, and some for threads of others. */
static int make_buffers(struct kvmem_capture *c, uint64_t bytes)
{
	unsigned int want = c->thread_count + 4;

	if (c->all_buffers && bytes <= c->buffer_bytes)
		return 0;
	for (unsigned int i = 0; c->all_buffers && i < c->buffer_count; i++)
		km_sys_free(c->all_buffers[i].bytes);
	km_sys_free(c->all_buffers);
	c->buffers = NULL;
	c->buffer_count = 0;
	c->buffer_bytes = bytes;
	c->all_buffers = km_sys_alloc(want * sizeof(*c->all_buffers));
	for (; c->all_buffers && c->buffer_count < want; c->buffer_count++) {
		struct km_copy_buffer *b = &c->all_buffers[c->buffer_count];

		b->bytes = km_sys_alloc(bytes);
		if (!b->bytes)
			break;
		b->next = c->buffers;
		c->buffers = b;
	}
	return c->buffer_count ? 0 : km_fail(ENOMEM, "%s: no memory for buffers", c->call);
}

static int part_failed(const struct kvmem_capture *c, int err, size_t i)
{
	struct km_detail why;

	km_detail_save(&why);
	return km_fail(-err, "%s: regions[%zu]: %.420s", c->call, i, why.text);
}

/* All records, before any region is taken: whoever finds a guard finds what it captures. */
static int new_parts(struct kvmem_capture *c, struct kvmem_region *const *regions, size_t count,
		     const struct km_capture_runs *only)
{
	c->parts = km_sys_alloc(count * sizeof(struct km_captured *));
	c->by_addr = km_sys_alloc(count * sizeof(struct km_captured *));
	c->to_tell = km_sys_alloc(count * sizeof(struct kvmem_region *));
	if (!c->parts || !c->by_addr || !c->to_tell)
		return km_fail(ENOMEM, "%s: no memory for %zu regions", c->call, count);
	for (size_t i = 0; i < count; i++) {
		c->parts[i] = new_part(c, regions[i]);
		if (!c->parts[i])
			return km_fail(ENOMEM,
				       "%s: regions[%zu]: no memory for the record of its pages",
				       c->call, i);
	}
	if (only)
		km_capture_runs_apply(c, count, only);
	return 0;
}

/* By their order: those before have begun. */
static int begin_parts(struct kvmem_capture *c, size_t count)
{
	int r = 0;

	for (size_t i = 0; !r && i < count; i++) {
		r = begin_part(c, c->parts[i]);
		if (r)
			r = part_failed(c, r, i);
		else
			insert(c, c->parts[i]);
	}
	return r;
}

int km_parts_begin(struct kvmem_capture *c, struct kvmem_region *const *regions, size_t count,
		   const struct km_capture_runs *only)
{
	uint64_t largest = km_sys_page_size();
	int r;

	c->chunks = 0;
	atomic_store(&c->next_chunk, UINT64_MAX / 2); /* until km_arm() */
	atomic_store(&c->chunks_done, 0);
	atomic_store(&c->arm_error, 0);
	for (size_t i = 0; i < count; i++)
		if (km_region_page(regions[i]) > largest &&
		    km_region_page(regions[i]) <= KM_PAGE_MOST)
			largest = km_region_page(regions[i]);
	r = make_buffers(c, largest);
	if (!r)
		r = new_parts(c, regions, count, only);
	if (!r)
		r = begin_parts(c, count);
	for (size_t i = c->part_count; r && c->parts && i < count; i++)
		free_part(c->parts[i]);
	return r;
}

/* ---- let go ---- */

void km_parts_end_guards(struct kvmem_capture *c)
{
	for (size_t i = 0; i < c->part_count; i++)
		km_guard_end(&c->parts[i]->guard);
}

void km_parts_free(struct kvmem_capture *c)
{
	for (size_t i = 0; i < c->part_count; i++)
		end_part(c->parts[i]);
	km_sys_free(c->parts);
	km_sys_free(c->by_addr);
	km_sys_free(c->to_tell);
	c->to_tell = NULL;
	c->parts = c->by_addr = NULL;
	c->part_count = 0;
}

/* ---- told afterwards ---- */

/* One region of each pager. */
static void collect(const struct kvmem_capture *c, struct km_to_tell *t)
{
	for (size_t i = 0; t->regions && i < c->part_count; i++) {
		struct kvmem_region *r = c->parts[i]->region;
		size_t k = 0;

		if (!c->parts[i]->watched)
			continue;
		while (k < t->count && t->regions[k]->watch->set != r->watch->set)
			k++;
		if (k < t->count)
			continue;
		km_pages_enter(r);
		t->regions[t->count++] = r;
	}
}

void km_tell_collect(struct kvmem_capture *c, struct km_to_tell *t)
{
	t->regions = km_sys_alloc(c->part_count * sizeof(struct kvmem_region *));
	atomic_store(&c->whole, !t->regions);
	collect(c, t);
}

void km_tell_last(struct kvmem_capture *c, struct km_to_tell *t)
{
	t->regions = c->to_tell;
	c->to_tell = NULL;
	collect(c, t);
}

void km_tell_now(struct km_to_tell *t)
{
	for (size_t i = 0; i < t->count; i++)
		km_presence_notify(&t->regions[i]->presence);
	for (size_t i = 0; i < t->count; i++)
		km_pages_leave(t->regions[i]);
	km_sys_free(t->regions);
}
