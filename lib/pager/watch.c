// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Beside the faults: prefetch, waiting for the end, statistics. */
#include "pager/pager_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <time.h>

/* ---- prefetch ---- */

void km_prefetch_free(struct km_prefetch *f)
{
	while (f) {
		struct km_prefetch *next = f->next;

		km_sys_free(f);
		f = next;
	}
}

static struct km_paged *paged_of(const struct kvmem_pager *pager, const struct kvmem_region *region)
{
	for (unsigned int i = 0; i < pager->paged_count; i++)
		if (pager->paged[i]->region == region)
			return pager->paged[i];
	return NULL;
}

static int check_run(const struct kvmem_pager *pager, const struct kvmem_run *run)
{
	if (!paged_of(pager, run->region))
		return km_fail(ENOENT, "kvmem_pager_prefetch: the region is not of this pager");
	return km_range_check(run->offset, run->bytes, run->region->bytes, "kvmem_pager_prefetch");
}

/* A run in pieces of one shard each, onto a list. */
static int split(struct km_paged *p, const struct kvmem_run *run, struct km_prefetch ***tail)
{
	uint64_t page = run->offset >> p->shift;
	uint64_t end = (run->offset + run->bytes + (1ull << p->shift) - 1) >> p->shift;
	uint64_t n;

	for (; page < end; page += n) {
		struct km_prefetch *f = km_sys_alloc(sizeof(*f));

		if (!f)
			return km_fail(ENOMEM, "kvmem_pager_prefetch: no memory");
		n = km_min(end - page, p->stripe - page % p->stripe);
		f->window = (struct km_window){ .paged = p, .first = page, .count = n };
		**tail = f;
		*tail = &f->next;
	}
	return 0;
}

/* Each to its shard. */
static void hand_out(struct kvmem_pager *pager, struct km_prefetch *list)
{
	while (list) {
		struct km_prefetch *f = list;
		const struct km_window *w = &f->window;
		struct km_shard *s =
			&pager->shards[w->first / w->paged->stripe % pager->shard_count];

		list = f->next;
		f->next = NULL;
		*s->prefetch_tail = f;
		s->prefetch_tail = &f->next;
		atomic_fetch_add_explicit(&s->prefetch_count, 1, memory_order_release);
	}
}

/* All of them or none. With the pager's lock held. */
static int queue(struct kvmem_pager *pager, const struct kvmem_run *runs, size_t count)
{
	struct km_prefetch *list = NULL, **tail = &list;
	int r = 0;

	for (size_t i = 0; !r && i < count; i++)
		r = split(paged_of(pager, runs[i].region), &runs[i], &tail);
	if (r)
		km_prefetch_free(list);
	else
		hand_out(pager, list);
	return r;
}

int kvmem_pager_prefetch(struct kvmem_pager *pager, const struct kvmem_run *runs, size_t count)
{
	int r = 0;

	if (!pager || (!runs && count))
		return km_fail(EINVAL, "kvmem_pager_prefetch: %s is NULL",
			       pager ? "runs" : "pager");
	pthread_mutex_lock(&pager->lock);
	if (pager->released)
		r = km_fail(EINVAL, "kvmem_pager_prefetch: the pager was stopped");
	for (size_t i = 0; !r && i < count; i++)
		r = check_run(pager, &runs[i]);
	if (!r)
		r = queue(pager, runs, count);
	pthread_mutex_unlock(&pager->lock);
	if (atomic_load(&pager->state) == KM_PAGER_RUNNING)
		km_pager_kick_all(pager);
	return r;
}

/* ---- waiting ---- */

static bool before(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec < b->tv_sec : a->tv_nsec < b->tv_nsec;
}

static struct timespec from_now(int64_t ns)
{
	struct timespec t;
	int64_t sum;

	clock_gettime(CLOCK_MONOTONIC, &t);
	sum = t.tv_nsec + ns % 1000000000;
	t.tv_sec += ns / 1000000000 + sum / 1000000000;
	t.tv_nsec = sum % 1000000000;
	return t;
}

/* 1: not yet. */
static int wait_result(struct kvmem_pager *pager)
{
	int err = atomic_load(&pager->error);

	if (atomic_load(&pager->complete))
		return 0;
	if (err && km_pager_missing(pager))
		return km_fail(-err, "kvmem_pager_wait: a page could not be filled: %m");
	if (atomic_load(&pager->state) != KM_PAGER_RUNNING)
		return km_fail(EINVAL, "kvmem_pager_wait: the pager was stopped meanwhile");
	return 1;
}

static int wait_locked(struct kvmem_pager *pager, int64_t timeout_ns)
{
	struct timespec end = from_now(timeout_ns < 0 ? 0 : timeout_ns), tick;
	int r;

	/* Who publishes the last page may be populate or a discard, which do not know us: look,
	 * too. */
	while ((r = wait_result(pager)) > 0) {
		if (!km_pager_missing(pager))
			km_worker_kick(&pager->workers[0]);
		tick = from_now((int64_t)KM_TICK_MS * 1000000);
		if (timeout_ns >= 0 && before(&end, &tick))
			tick = end;
		r = pthread_cond_timedwait(&pager->changed, &pager->lock, &tick);
		if (r == ETIMEDOUT && timeout_ns >= 0 && !before(&tick, &end)) {
			r = wait_result(pager);
			return r <= 0 ? r
				      : km_fail(ETIMEDOUT,
						"kvmem_pager_wait: %" PRIu64 " pages are "
						"missing still",
						km_pager_missing(pager));
		}
	}
	return r;
}

int kvmem_pager_wait(struct kvmem_pager *pager, int64_t timeout_ns)
{
	int r;

	if (!pager)
		return km_fail(EINVAL, "kvmem_pager_wait: pager is NULL");
	if (pager->opts.flags & KVMEM_PAGER_NO_THREADS)
		return km_fail(EINVAL,
			       "kvmem_pager_wait: the pager has no threads: nothing would go on");
	pthread_mutex_lock(&pager->lock);
	if (atomic_load(&pager->state) == KM_PAGER_RUNNING) {
		pager->waiters++;
		r = wait_locked(pager, timeout_ns);
		if (!--pager->waiters)
			pthread_cond_broadcast(&pager->changed);
	} else {
		r = km_fail(EINVAL, "kvmem_pager_wait: the pager is not running");
	}
	pthread_mutex_unlock(&pager->lock);
	return r;
}

/* ---- statistics ---- */

static uint64_t get(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

static void add_counts(struct kvmem_pager_stats *s, const struct km_pager_counts *c)
{
	s->faults_missing += get(&c->missing);
	s->faults_minor += get(&c->minor);
	s->faults_stale += get(&c->stale);
	s->reads += get(&c->reads);
	s->pages_demand += get(&c->pages[KM_DEMAND]);
	s->pages_around += get(&c->pages[KM_AROUND]);
	s->pages_prefetch += get(&c->pages[KM_PREFETCH]);
	s->pages_background += get(&c->pages[KM_BACKGROUND]);
	s->pages_zero += get(&c->zero);
	s->pages_poisoned += get(&c->poisoned);
	for (unsigned int i = 0; i < KVMEM_HIST_BUCKETS; i++)
		s->service_ns[i] += get(&c->service_ns[i]);
}

static uint64_t missing(struct kvmem_pager *pager)
{
	uint64_t n;

	pthread_mutex_lock(&pager->lock);
	n = pager->released ? pager->missing_at_end : km_pager_missing(pager);
	pthread_mutex_unlock(&pager->lock);
	return n;
}

int kvmem_pager_get_stats(const struct kvmem_pager *pager, struct kvmem_pager_stats *ret_stats)
{
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;
	int r = km_result_check(ret_stats, sizeof(s), "pager statistics");

	if (r)
		return r;
	if (!pager)
		return km_fail(EINVAL, "kvmem_pager_get_stats: pager is NULL");
	s.shards = pager->shard_count;
	for (unsigned int i = 0; i < pager->worker_count; i++)
		add_counts(&s, &pager->workers[i].counts);
	for (unsigned int i = 0; i < pager->shard_count; i++) {
		s.removes += get(&pager->shards[i].removes);
		s.retries += get(&pager->shards[i].retries);
	}
	s.pages_missing = missing((struct kvmem_pager *)(uintptr_t)pager);
	km_result_copy(ret_stats, &s, sizeof(s));
	return 0;
}

uint64_t kvmem_hist_quantile(const uint64_t *buckets, unsigned int count, double q)
{
	double total = 0, below = 0, want, part;

	if (!buckets)
		return 0;
	for (unsigned int i = 0; i < count; i++)
		total += (double)buckets[i];
	want = q < 0 ? 0 : q > 1 ? total : q * total;
	for (unsigned int i = 0; i < count && i < 63; i++) {
		if (buckets[i] && below + (double)buckets[i] >= want) {
			part = (want - below) / (double)buckets[i];
			return (uint64_t)((double)(1ull << i) * (1 + part));
		}
		below += (double)buckets[i];
	}
	return 0;
}
