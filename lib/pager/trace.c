// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Who faulted what, when and why. Each thread of the pager writes to a ring of its own, which kvmem_pager_trace_read()
 * empties; what does not fit is counted and dropped. One more, under a lock, is for the threads of callers.
 */
#include "pager/pager_internal.h"

#include <errno.h>

#define MOST_ENTRIES (1u << 24)

int km_trace_check(const struct kvmem_pager_opts *o)
{
	if (o->trace_entries & (o->trace_entries - 1) || o->trace_entries > MOST_ENTRIES)
		return km_fail(
			EINVAL,
			"kvmem_pager_opts: trace_entries %u is not a power of two of at most %u",
			o->trace_entries, MOST_ENTRIES);
	return 0;
}

int km_trace_open(struct km_trace *t, uint32_t entries)
{
	if (!entries)
		return 0;
	t->entries = km_sys_alloc((size_t)entries * sizeof(*t->entries));
	if (!t->entries)
		return km_fail(ENOMEM, "pager: no memory for a trace of %u entries", entries);
	t->mask = entries - 1;
	return 0;
}

void km_trace_close(struct km_trace *t)
{
	km_sys_free(t->entries);
}

void km_trace_put(struct km_trace *t, const struct kvmem_trace_entry *e)
{
	uint64_t head = atomic_load_explicit(&t->head, memory_order_relaxed);

	if (head - atomic_load_explicit(&t->tail, memory_order_acquire) > t->mask) {
		km_count_own(&t->dropped, 1);
		return;
	}
	t->entries[head & t->mask] = *e;
	atomic_store_explicit(&t->head, head + 1, memory_order_release);
}

static struct kvmem_trace_entry entry_of(const struct km_watch *w, uint64_t first, uint64_t count,
					 uint16_t why)
{
	return (struct kvmem_trace_entry){
		.time_ns = km_sys_now_ns(),
		.region = w->region,
		.offset = first << w->shift,
		.bytes = count << w->shift,
		.why = why,
	};
}

void km_trace_fill(void *arg, uint32_t tag, const struct km_watch *w, uint64_t first,
		   uint64_t count)
{
	struct km_worker *worker = arg;
	const struct kvmem_trace_entry e = entry_of(w, first, count, (uint16_t)tag);

	km_trace_put(&worker->trace, &e);
}

void km_trace_given(struct kvmem_pager *pager, const struct km_watch *w, uint64_t first,
		    uint64_t count, uint16_t why)
{
	const struct kvmem_trace_entry e = entry_of(w, first, count, why);

	pthread_mutex_lock(&pager->given_lock);
	km_trace_put(&pager->given_trace, &e);
	pthread_mutex_unlock(&pager->given_lock);
}

void km_trace_faults(struct km_worker *w, const struct km_fault *f, unsigned int count,
		     uint64_t now)
{
	for (unsigned int i = 0; i < count; i++) {
		const struct kvmem_trace_entry e = {
			.time_ns = f[i].read_ns,
			.region = f[i].paged->watch.region,
			.offset = f[i].page << f[i].paged->watch.shift,
			.bytes = 1ull << f[i].paged->watch.shift,
			.service_ns = now - f[i].read_ns,
			.thread = f[i].thread,
			.why = KVMEM_TRACE_DEMAND,
			.flags = (uint16_t)((f[i].write ? KVMEM_TRACE_WRITE : 0) |
					    (f[i].minor ? KVMEM_TRACE_MINOR : 0)),
		};

		km_trace_put(&w->trace, &e);
	}
}

/* ---- reading ---- */

static struct km_trace *trace_at(struct kvmem_pager *pager, unsigned int i)
{
	return i < pager->all_count ? &pager->workers[i].trace : &pager->given_trace;
}

static const struct kvmem_trace_entry *oldest_of(const struct km_trace *t)
{
	uint64_t tail = atomic_load_explicit(&t->tail, memory_order_relaxed);

	if (!t->entries || tail == atomic_load_explicit(&t->head, memory_order_acquire))
		return NULL;
	return &t->entries[tail & t->mask];
}

/* The ring whose oldest entry is the oldest of all; NULL: they are empty. */
static struct km_trace *next_trace(struct kvmem_pager *pager)
{
	const struct kvmem_trace_entry *oldest = NULL;
	struct km_trace *ret = NULL;

	for (unsigned int i = 0; i <= pager->all_count; i++) {
		const struct kvmem_trace_entry *e = oldest_of(trace_at(pager, i));

		if (e && (!oldest || e->time_ns < oldest->time_ns)) {
			oldest = e;
			ret = trace_at(pager, i);
		}
	}
	return ret;
}

uint64_t km_trace_dropped(const struct kvmem_pager *pager)
{
	uint64_t n = atomic_load(&pager->given_trace.dropped);

	for (unsigned int i = 0; i < pager->all_count; i++)
		n += atomic_load_explicit(&pager->workers[i].trace.dropped, memory_order_relaxed);
	return n;
}

int64_t kvmem_pager_trace_read(struct kvmem_pager *pager, struct kvmem_trace_entry *entries,
			       size_t count)
{
	struct km_trace *t;
	size_t n = 0;

	if (!pager || (!entries && count))
		return km_fail(EINVAL, "kvmem_pager_trace_read: %s is NULL",
			       pager ? "entries" : "pager");
	if (!pager->opts.trace_entries)
		return km_fail(EINVAL, "kvmem_pager_trace_read: the pager was made without "
				       "trace_entries");
	pthread_mutex_lock(&pager->trace_lock);
	while (n < count && (t = next_trace(pager)) != NULL) {
		entries[n++] = *oldest_of(t);
		atomic_fetch_add_explicit(&t->tail, 1, memory_order_release);
	}
	pthread_mutex_unlock(&pager->trace_lock);
	return (int64_t)n;
}
