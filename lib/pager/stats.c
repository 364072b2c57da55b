// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "pager/pager_internal.h"

#include <errno.h>

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
	s->fills_failed += get(&c->failed);
	s->around_sampled += get(&c->sampled);
	s->around_touched += get(&c->touched);
	for (unsigned int i = 0; i < KVMEM_HIST_BUCKETS; i++)
		s->service_ns[i] += get(&c->service_ns[i]);
}

/* The time below which a share q of the histogram lies; within a bucket as if evenly spread. */
static uint64_t quantile(const uint64_t *buckets, double q)
{
	double total = 0, below = 0, want;

	for (unsigned int i = 0; i < KVMEM_HIST_BUCKETS; i++)
		total += (double)buckets[i];
	want = q * total;
	for (unsigned int i = 0; i < KVMEM_HIST_BUCKETS; i++) {
		double n = (double)buckets[i];

		if (buckets[i] && below + n >= want)
			return (uint64_t)((double)(1ull << i) * (1 + (want - below) / n));
		below += n;
	}
	return 0;
}

static void add_pages(struct kvmem_pager *pager, struct kvmem_pager_stats *s)
{
	pthread_mutex_lock(&pager->lock);
	s->pages_missing = km_pager_missing(pager, &s->pages_poisoned) + pager->missing_at_end;
	s->pages_poisoned += pager->poisoned_at_end;
	for (unsigned int i = 0; i < pager->all_count; i++)
		s->pages_poisoned += get(&pager->workers[i].counts.lost);
	pthread_mutex_unlock(&pager->lock);
}

/* Of the userfaultfds of other processes. */
static void add_remotes(const struct kvmem_pager *pager, struct kvmem_pager_stats *s)
{
	pthread_mutex_t *lock = (pthread_mutex_t *)(uintptr_t)&pager->lock;

	s->removes += get(&pager->gone_removes);
	s->retries += get(&pager->gone_retries);
	pthread_mutex_lock(lock);
	for (struct km_paged *p = km_paged_first(pager); p; p = km_paged_next(p)) {
		struct km_view *v = atomic_load(&p->watch.views);

		for (; v; v = atomic_load(&v->next))
			for (unsigned int i = 0; i < v->remote->uffd_count; i++) {
				s->removes += get(&v->uffds[i].removes);
				s->retries += get(&v->uffds[i].retries);
			}
	}
	pthread_mutex_unlock(lock);
}

int kvmem_pager_get_stats(const struct kvmem_pager *pager, struct kvmem_pager_stats *ret_stats)
{
	struct kvmem_pager_stats s = KVMEM_PAGER_STATS_INIT;
	int r = km_result_check(ret_stats, sizeof(s), "pager statistics");

	if (r)
		return r;
	if (!pager)
		return km_fail(EINVAL, "kvmem_pager_get_stats: pager is NULL");
	s.shards = pager->set.count;
	for (unsigned int i = 0; i < pager->all_count; i++)
		add_counts(&s, &pager->workers[i].counts);
	for (unsigned int i = 0; i < pager->set.count; i++) {
		s.removes += get(&pager->set.all[i].removes);
		s.retries += get(&pager->set.all[i].retries);
	}
	add_remotes(pager, &s);
	s.pages_demand += get(&pager->later_pages[KM_DEMAND]);
	s.pages_prefetch += get(&pager->later_pages[KM_PREFETCH]);
	s.pages_background += get(&pager->later_pages[KM_BACKGROUND]);
	s.fills_failed += get(&pager->later_failed);
	for (unsigned int i = 0; i < KVMEM_HIST_BUCKETS; i++)
		s.service_ns[i] += get(&pager->later_service[i]);
	s.pages_given = get(&pager->given_pages);
	s.trace_dropped = km_trace_dropped(pager);
	add_pages((struct kvmem_pager *)(uintptr_t)pager, &s);
	s.service_p50_ns = quantile(s.service_ns, 0.5);
	s.service_p90_ns = quantile(s.service_ns, 0.9);
	s.service_p99_ns = quantile(s.service_ns, 0.99);
	s.service_p999_ns = quantile(s.service_ns, 0.999);
	km_result_copy(ret_stats, &s, sizeof(s));
	return 0;
}
