// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A page that is about to be written, or taken away: its content goes to the caller first. In whatever thread has
 * learnt of it: one of the capture's, a pager's, or one that discards.
 */
#include "capture/capture_internal.h"

#include <errno.h>
#include <inttypes.h>

/* ---- waiting ---- */

static struct km_copy_buffer *take_buffer(struct kvmem_capture *c)
{
	struct km_copy_buffer *b;

	pthread_mutex_lock(&c->lock);
	atomic_fetch_add(&c->waiters, 1);
	while (!c->buffers)
		pthread_cond_wait(&c->changed, &c->lock);
	atomic_fetch_sub(&c->waiters, 1);
	b = c->buffers;
	c->buffers = b->next;
	pthread_mutex_unlock(&c->lock);
	return b;
}

static void give_buffer(struct kvmem_capture *c, struct km_copy_buffer *b)
{
	pthread_mutex_lock(&c->lock);
	b->next = c->buffers;
	c->buffers = b;
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
}

/* Somebody else hands it out: he copies it, or his before_write has it. */
static void wait_for_other(struct km_captured *p, uint64_t page)
{
	struct kvmem_capture *c = p->capture;

	pthread_mutex_lock(&c->lock);
	atomic_fetch_add(&c->waiters, 1);
	while (km_record_get(&p->record, page) == KM_RECORD_BUSY)
		pthread_cond_wait(&c->changed, &c->lock);
	atomic_fetch_sub(&c->waiters, 1);
	pthread_mutex_unlock(&c->lock);
}

/* ---- a page ---- */

static int tell(struct km_captured *p, uint64_t page, const void *content)
{
	const struct kvmem_capture_opts *o = &p->capture->opts;
	const struct kvmem_capture_run run = {
		.region = p->region,
		.offset = page << p->shift,
		.bytes = 1ull << p->shift,
		.kind = content ? KVMEM_CAPTURE_DATA : KVMEM_CAPTURE_POISONED,
	};
	unsigned int was = km_presence_undefer();
	struct km_callback cb;
	int r;

	km_callback_enter(&cb, "kvmem_capture_opts.before_write", p->capture, p->region);
	r = o->before_write(o->arg, &run, content);
	km_callback_leave(&cb);
	km_presence_redefer(was);
	if (!r)
		return 0;
	return km_fail(r < 0 && r >= -4095 ? -r : EIO,
		       "before_write of the page at offset 0x%" PRIx64 ": %m", page << p->shift);
}

static void hand_out(struct km_captured *p, uint64_t page)
{
	struct kvmem_capture *c = p->capture;
	struct km_copy_buffer *b = take_buffer(c);
	int err = km_content_copy(p, page, 1, b->bytes);

	if (!err || err == -EFAULT)
		err = tell(p, page, err ? NULL : b->bytes);
	give_buffer(c, b);
	if (err) { /* nothing is protected any more; the page is not counted as handed out */
		km_capture_fail(c, err);
		km_record_put_back(&p->record, page, KM_RECORD_DATA);
		km_capture_changed(c);
		return;
	}
	atomic_fetch_add(&c->written, 1ull << p->shift);
	km_captured_done(p, page, 1, true);
}

/* Before the page is armed: what it is has not been looked at. True: it is handed out. */
static bool look_first(struct km_captured *p, uint64_t page)
{
	enum km_record_state kind;
	int err;

	if (atomic_load(&p->armed))
		return false;
	/* Others begin with what is DATA, so the page is put back while it is found out. */
	km_record_put_back(&p->record, page, KM_RECORD_DATA);
	km_capture_changed(p->capture);
	err = km_content_kinds(p, page, 1);
	if (err)
		km_capture_fail(p->capture, err);
	kind = km_record_get(&p->record, page);
	return kind != KM_RECORD_DATA || !km_record_take(&p->record, page, 1, KM_RECORD_DATA);
}

static void before_page(struct km_captured *p, uint64_t page)
{
	while (km_capture_goes_on(p->capture)) {
		switch (km_record_get(&p->record, page)) {
		case KM_RECORD_DATA:
			if (km_record_take(&p->record, page, 1, KM_RECORD_DATA) &&
			    !look_first(p, page)) {
				hand_out(p, page);
				return;
			}
			break;
		case KM_RECORD_BUSY:
			wait_for_other(p, page);
			break;
		default:
			return;
		}
	}
}

void km_written_before(struct km_guard *g, uint64_t first, uint64_t count)
{
	struct km_captured *p = (struct km_captured *)g;
	struct km_detail before;
	enum km_record_state state;

	if (first >= p->pages)
		return; /* the region has grown since */
	count = km_min(count, p->pages - first);
	km_detail_save(&before);
	for (uint64_t n; count && km_capture_goes_on(p->capture); first += n, count -= n) {
		n = km_record_run(&p->record, first, count, &state);
		if (state == KM_RECORD_DATA || state == KM_RECORD_BUSY)
			for (uint64_t i = 0; i < n; i++)
				before_page(p, first + i);
	}
	km_detail_restore(&before);
}

bool km_written_holds(const struct km_guard *g, uint64_t page)
{
	const struct km_captured *p = (const struct km_captured *)g;
	enum km_record_state state;

	if (page >= p->pages || !km_capture_goes_on(p->capture))
		return false;
	state = km_record_get(&p->record, page);
	return state == KM_RECORD_DATA || state == KM_RECORD_BUSY;
}

void km_written_waited(struct km_guard *g, uint64_t ns)
{
	struct kvmem_capture *c = ((struct km_captured *)g)->capture;
	uint64_t longest = atomic_load(&c->longest_ns);

	atomic_fetch_add(&c->writers, 1);
	while (ns > longest && !atomic_compare_exchange_weak(&c->longest_ns, &longest, ns))
		;
}
