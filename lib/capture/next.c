// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* kvmem_capture_next(): the caller's own loop over what nobody writes to. */
#include "capture/capture_internal.h"

#include <errno.h>
#include <inttypes.h>

struct taking {
	struct km_captured *p;
	uint64_t first, count; /* pages taken so far, of one kind */
	uint8_t *buf;
	uint64_t room; /* pages in buf */
	uint32_t kind;
};

/* Pages of no content, all in one go. */
static bool take_empty(struct taking *t, uint64_t page, enum km_record_state state)
{
	struct km_captured *p = t->p;
	uint64_t n = km_record_take(&p->record, page, UINT64_MAX, state);

	if (!n)
		return false;
	*t = (struct taking){ .p = p, .first = page, .count = n, .kind = (uint32_t)state };
	km_captured_done(p, page, n, false);
	return true;
}

/* A hole of the file: protected all the same, by markers. */
static bool take_hole(struct taking *t, uint64_t page, uint64_t max)
{
	struct km_captured *p = t->p;
	uint64_t n = km_record_take(&p->record, page, max, KM_RECORD_DATA);

	if (!n)
		return false;
	*t = (struct taking){ .p = p, .first = page, .count = n, .kind = KVMEM_CAPTURE_ZERO };
	km_captured_done(p, page, n, true);
	return true;
}

/* Those that cannot be read, one by one: the first of them ends the run, or is a run of its own. */
static int copy_each(struct taking *t, uint64_t page, uint64_t count, uint64_t *ret_good)
{
	int r = 0;

	for (*ret_good = 0; *ret_good < count; (*ret_good)++) {
		r = km_content_copy(t->p, page + *ret_good, 1,
				    t->buf + ((t->count + *ret_good) << t->p->shift));
		if (r)
			break;
	}
	return r;
}

/* Pages of data from `page` on, at most `max`. 0, 1: none, or -errno; behind what it takes the run ends unless
 * *ret_more. */
static int take_data(struct taking *t, uint64_t page, uint64_t max, bool *ret_more)
{
	struct km_captured *p = t->p;
	uint64_t n = km_record_take(&p->record, page, km_min(max, KM_COPY_PAGES), KM_RECORD_DATA);
	uint64_t good = n;
	int r;

	*ret_more = false;
	if (!n)
		return 1;
	r = km_content_copy(p, page, n, t->buf + (t->count << p->shift));
	if (r == -EFAULT)
		r = copy_each(t, page, n, &good);
	if (!good && r == -EFAULT && !t->count) {
		t->kind = KVMEM_CAPTURE_POISONED;
		good = 1;
		r = 0;
	} else {
		*ret_more = !r;
		if (r && r != -EFAULT) /* what was copied before it is not handed out either */
			good = 0;
		r = r == -EFAULT ? 0 : r;
	}
	for (uint64_t i = good; i < n; i++)
		km_record_put_back(&p->record, page + i, KM_RECORD_DATA);
	if (good < n)
		km_capture_changed(p->capture);
	if (good) {
		t->count += good;
		km_captured_done(p, page, good, true);
	}
	return r ? r : !good;
}

/* Data from `page` on, as much as there is without a gap, and room for it. */
static int fill_buffer(struct taking *t, uint64_t page)
{
	struct km_captured *p = t->p;
	uint64_t data, at = page;
	bool more = true;
	int r = 0;

	*t = (struct taking){ .p = p, .first = page, .buf = t->buf, .room = t->room };
	for (; !r && more && t->count < t->room && at < p->pages; at = page + t->count) {
		if (km_content_hole(p, at, t->room - t->count, &data))
			break;
		r = take_data(t, at, km_min(data, t->room - t->count), &more);
		if (r > 0)
			break;
	}
	if (r < 0)
		km_capture_fail(p->capture, r);
	if (t->count) /* handed out: the next call tells of the failure */
		return 0;
	return r < 0 ? r : 1;
}

/* One run of a part: 1, 0: there is none, or -errno. */
static int next_of(struct taking *t, uint64_t from)
{
	struct km_captured *p = t->p;
	struct kvmem_capture *c = p->capture;
	uint64_t page = from, hole, data;
	int r;

	while ((page = km_record_next(&p->record, page)) < p->pages) {
		enum km_record_state state = km_record_get(&p->record, page);

		if (!km_capture_goes_on(c))
			return 0;
		if (state == KM_RECORD_BUSY || state == KM_RECORD_DONE)
			continue;
		if (state != KM_RECORD_DATA) {
			if (take_empty(t, page, state))
				return 1;
			continue;
		}
		hole = km_content_hole(p, page, UINT64_MAX, &data);
		if (hole) {
			if (take_hole(t, page, hole))
				return 1;
			continue;
		}
		r = fill_buffer(t, page);
		if (r <= 0)
			return r ? r : 1;
	}
	return 0;
}

static void count(struct kvmem_capture *c, const struct taking *t)
{
	_Atomic uint64_t *const of[] = {
		[KVMEM_CAPTURE_DATA] = &c->background,
		[KVMEM_CAPTURE_ZERO] = &c->zero,
		[KVMEM_CAPTURE_ABSENT] = &c->absent,
		[KVMEM_CAPTURE_POISONED] = &c->poisoned,
	};

	atomic_fetch_add(of[t->kind], t->count << t->p->shift);
}

/*
 * The cursor is behind all that has been handed out, but for pages that were put back: when nothing is found there, the
 * part is looked through from its beginning.
 */
static int next_run(struct kvmem_capture *c, void *buf, uint64_t bytes,
		    struct kvmem_capture_run *ret_run)
{
	for (size_t i = 0; i < c->part_count; i++) {
		struct km_captured *p = c->parts[i];
		struct taking t = { .p = p, .buf = buf, .room = bytes >> p->shift };
		int r = 0;

		if (!t.room)
			return km_fail(EINVAL,
				       "kvmem_capture_next: %" PRIu64
				       " bytes have no room for a page of 0x%" PRIx64 " bytes",
				       bytes, km_region_page(p->region));
		if (!atomic_load(&p->record.left))
			continue;
		r = next_of(&t, atomic_load(&p->cursor));
		if (!r)
			r = next_of(&t, 0);
		if (r < 0)
			return r;
		if (!r)
			continue;
		atomic_store(&p->cursor, t.first + t.count);
		count(c, &t);
		*ret_run = (struct kvmem_capture_run){
			.region = p->region,
			.offset = t.first << p->shift,
			.bytes = t.count << p->shift,
			.kind = t.kind,
		};
		return 1;
	}
	return 0;
}

int kvmem_capture_next(struct kvmem_capture *capture, void *buf, uint64_t bytes,
		       struct kvmem_capture_run *ret_run)
{
	struct km_to_tell tell = { .count = 0 };
	int r;

	if (!capture || !buf || !ret_run)
		return km_fail(EINVAL, "kvmem_capture_next: %s is NULL",
			       !capture ? "capture"
			       : !buf	? "buf"
					: "ret_run");
	r = km_callback_check("kvmem_capture_next", capture);
	if (r)
		return r;
	pthread_rwlock_rdlock(&capture->parts_lock);
	km_presence_defer();
	if (!atomic_load(&capture->running))
		r = km_fail(EINVAL, "kvmem_capture_next: the capture is not started");
	else if (!km_capture_error(capture, "kvmem_capture_next"))
		r = next_run(capture, buf, bytes, ret_run);
	if (r <= 0 && atomic_load(&capture->error))
		r = km_capture_error(capture, "kvmem_capture_next");
	else if (r <= 0 && atomic_load(&capture->ended))
		r = km_fail(ECANCELED, "kvmem_capture_next: the capture is being stopped");
	if (km_presence_defer_end() || atomic_load(&capture->whole))
		km_tell_collect(capture, &tell);
	pthread_rwlock_unlock(&capture->parts_lock);
	km_tell_now(&tell);
	return r;
}
