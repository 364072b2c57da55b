// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * Which region an address is in, while regions come and go under threads that serve faults.
 *
 * The table, sorted by address, is never changed: a change makes another one and publishes it. Old ones, and
 * regions that were removed, are freed when no thread can have them any more. Each thread of the pager looks at
 * `changes` between two pieces of work; when the number has moved it forgets what it remembers of regions that leave,
 * and then shows in `seen` that it has done so.
 */
#include "pager/pager_internal.h"

struct km_paged_table {
	struct km_paged_table *older;
	uint64_t gone_at; /* nobody has it who has seen this change */
	unsigned int count;
	struct km_paged *list[];
};

static bool is_in(const struct km_paged *p, uint64_t addr)
{
	return addr - p->watch.addr < km_watch_pages(&p->watch) << p->watch.shift;
}

struct km_paged *km_paged_at(const struct kvmem_pager *pager, uint64_t addr)
{
	const struct km_paged_table *t = atomic_load_explicit(&pager->table, memory_order_acquire);
	unsigned int low = 0, high = t ? t->count : 0;

	while (high - low > 1) {
		unsigned int middle = low + (high - low) / 2;

		if (t->list[middle]->watch.addr <= addr)
			low = middle;
		else
			high = middle;
	}
	return low < high && is_in(t->list[low], addr) ? t->list[low] : NULL;
}

struct km_paged_table *km_table_new(const struct kvmem_pager *pager)
{
	size_t count = pager->region_count + 1;

	return km_sys_alloc(sizeof(struct km_paged_table) + count * sizeof(struct km_paged *));
}

/* ---- who may have what ---- */

bool km_table_seen(const struct kvmem_pager *pager, uint64_t change)
{
	for (unsigned int i = 0; i < pager->all_count; i++) {
		const struct km_worker *w = &pager->workers[i];

		if (w->started && atomic_load(&w->seen) < change)
			return false;
	}
	return true;
}

void km_table_free_old(struct kvmem_pager *pager, bool all)
{
	struct km_paged_table **link = &pager->old_tables, *t;

	while ((t = *link) != NULL) {
		if (!all && !km_table_seen(pager, t->gone_at)) {
			link = &t->older;
			continue;
		}
		*link = t->older;
		km_sys_free(t);
	}
}

static void publish(struct kvmem_pager *pager, struct km_paged_table *t)
{
	struct km_paged_table *old = atomic_load(&pager->table);

	atomic_store_explicit(&pager->table, t, memory_order_release);
	if (old) {
		old->gone_at = atomic_fetch_add(&pager->changes, 1) + 1;
		old->older = pager->old_tables;
		pager->old_tables = old;
	}
	km_table_free_old(pager, false);
}

void km_table_add(struct kvmem_pager *pager, struct km_paged_table *t, struct km_paged *p)
{
	const struct km_paged_table *old = atomic_load(&pager->table);
	unsigned int n = old ? old->count : 0, i = n;

	for (; i && old->list[i - 1]->watch.addr > p->watch.addr; i--)
		t->list[i] = old->list[i - 1];
	t->list[i] = p;
	while (i--)
		t->list[i] = old->list[i];
	t->count = n + 1;
	publish(pager, t);
}

void km_table_remove(struct kvmem_pager *pager, struct km_paged_table *t, const struct km_paged *p)
{
	const struct km_paged_table *old = atomic_load(&pager->table);

	t->count = 0;
	for (unsigned int i = 0; i < old->count; i++)
		if (old->list[i] != p)
			t->list[t->count++] = old->list[i];
	publish(pager, t);
}

void km_table_free(struct kvmem_pager *pager)
{
	km_table_free_old(pager, true);
	km_sys_free(atomic_load(&pager->table));
	atomic_store(&pager->table, NULL);
}
