// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The end of protection: of pages that are handed out, and of all when a capture has failed or ends. */
#include "capture/capture_internal.h"

#include <errno.h>

void km_capture_changed(struct kvmem_capture *c)
{
	if (!atomic_load(&c->waiters))
		return;
	pthread_mutex_lock(&c->lock);
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
}

void km_capture_open(struct kvmem_capture *c)
{
	for (size_t i = 0; i < c->part_count; i++) {
		const struct km_captured *p = c->parts[i];

		/* What a kernel refuses here, unregistering does: nobody sleeps for longer than the capture. */
		km_watch_set_wp(p->guard.watch, 0, p->pages, false);
	}
}

void km_capture_fail(struct kvmem_capture *c, int err)
{
	int none = 0;

	/* It is ended: what was begun is left undone. */
	if (err == -ECANCELED && atomic_load(&c->ended))
		return;
	pthread_mutex_lock(&c->lock);
	if (!atomic_load(&c->error))
		km_detail_save(&c->why);
	atomic_compare_exchange_strong(&c->error, &none, err);
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
	if (!none)
		km_capture_open(c);
}

int km_capture_error(struct kvmem_capture *c, const char *call)
{
	int err = atomic_load(&c->error);
	struct km_detail why;

	if (!err)
		return 0;
	pthread_mutex_lock(&c->lock);
	why = c->why;
	pthread_mutex_unlock(&c->lock);
	return km_fail(-err, "%s: the capture has failed: %.400s", call, why.text);
}

/*
 * DONE first: whoever asks from then on whether a page is protected hears no, and protects it anew (dirty/protect.c)
 * instead of relying on what is taken away here.
 */
void km_captured_done(struct km_captured *p, uint64_t first, uint64_t count, bool protected)
{
	int err = 0;

	km_record_done(&p->record, first, count);
	km_capture_changed(p->capture);
	if (protected)
		err = km_watch_set_wp(p->guard.watch, first, count, false);
	if (err) {
		km_fail(-err, "capture: UFFDIO_WRITEPROTECT: %m");
		km_capture_fail(p->capture, err);
	}
}
