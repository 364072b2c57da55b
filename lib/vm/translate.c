// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * From guest-physical addresses to regions, for threads that take no lock.
 *
 * Each address space has two views of its slots, sorted by address. Readers use the one that the sequence
 * number names; a change builds the other one and then publishes it with the next number. A reader whose
 * number is still the current one after it has read was not disturbed: its view is written to again only
 * after that. So a reader never waits for a writer that was preempted half-way; it starts again only when a
 * change was completed meanwhile.
 *
 * The words of a view are stored with release and loaded with acquire: who has loaded a word of the next
 * change also sees, when it looks at the number again, that the number has moved.
 */
#include <errno.h>
#include <inttypes.h>

#include "vm/vm.h"

struct entry {
	_Atomic uint64_t end;	 /* guest address one past the slot */
	_Atomic uint64_t host;	 /* of its first byte */
	_Atomic uint64_t offset; /* into the region */
	_Atomic uint32_t id;
	_Atomic uint32_t flags;
	struct kvmem_region *_Atomic region;
	void *_Atomic arg;
};

struct km_view {
	struct km_view *older; /* smaller ones before it: a reader may still be looking at them */
	size_t room;
	_Atomic size_t count;
	_Atomic uint64_t *gpas; /* first addresses: the search touches nothing else */
	struct entry *entries;
};

#define GET(word)	 atomic_load_explicit(&(word), memory_order_acquire)
#define PUT(word, value) atomic_store_explicit(&(word), value, memory_order_release)

static void put_slot(struct km_view *v, size_t at, const struct km_slot *s)
{
	struct entry *e = &v->entries[at];

	PUT(v->gpas[at], s->gpa);
	PUT(e->end, s->gpa + s->bytes);
	PUT(e->host, s->hva);
	PUT(e->offset, s->offset);
	PUT(e->id, s->id);
	PUT(e->flags, s->readonly ? KVMEM_TRANSLATION_READONLY : 0);
	PUT(e->region, s->owner);
	PUT(e->arg, s->arg);
}

static void put_copy(struct km_view *v, size_t at, struct km_view *from, size_t i)
{
	struct entry *e = &v->entries[at], *f = &from->entries[i];

	PUT(v->gpas[at], GET(from->gpas[i]));
	PUT(e->end, GET(f->end));
	PUT(e->host, GET(f->host));
	PUT(e->offset, GET(f->offset));
	PUT(e->id, GET(f->id));
	PUT(e->flags, GET(f->flags));
	PUT(e->region, GET(f->region));
	PUT(e->arg, GET(f->arg));
}

static struct km_view *view_new(size_t room)
{
	struct km_view *v = km_sys_alloc(sizeof(*v));

	if (!v)
		return NULL;
	v->room = room;
	v->gpas = km_sys_alloc(room * sizeof(*v->gpas));
	v->entries = km_sys_alloc(room * sizeof(*v->entries));
	if (v->gpas && v->entries)
		return v;
	km_sys_free((void *)v->gpas);
	km_sys_free(v->entries);
	km_sys_free(v);
	return NULL;
}

int km_views_reserve(struct km_views *vs)
{
	uint64_t seq = GET(vs->seq);
	struct km_view *now = GET(vs->view[seq & 1]);
	struct km_view *next = GET(vs->view[(seq + 1) & 1]);
	size_t need = (now ? GET(now->count) : 0) + 1;
	struct km_view *v;

	if (next && next->room >= need)
		return 0;
	v = view_new(need * 2 < 8 ? 8 : need * 2);
	if (!v)
		return -ENOMEM;
	v->older = next;
	PUT(vs->view[(seq + 1) & 1], v);
	return 0;
}

/*
 * The next view: the current one without the slot `gone` and with `added`. It has room: reserve() saw to an
 * added one, and a view that is not current was so one change ago, with one slot less at most.
 */
static void change(struct km_views *vs, const struct km_slot *gone, const struct km_slot *added)
{
	uint64_t seq = GET(vs->seq);
	struct km_view *now = GET(vs->view[seq & 1]);
	struct km_view *next = GET(vs->view[(seq + 1) & 1]);
	size_t count = now ? GET(now->count) : 0, n = 0;

	for (size_t i = 0; i < count; i++) {
		if (gone && GET(now->entries[i].id) == gone->id)
			continue;
		if (added && GET(now->gpas[i]) > added->gpa) {
			put_slot(next, n++, added);
			added = NULL;
		}
		put_copy(next, n++, now, i);
	}
	if (added)
		put_slot(next, n++, added);
	if (next) /* else it never was the current one, and there is nothing to put into it */
		PUT(next->count, n);
	PUT(vs->seq, seq + 1);
}

void km_views_add(struct km_views *vs, const struct km_slot *slot)
{
	change(vs, NULL, slot);
}

void km_views_remove(struct km_views *vs, const struct km_slot *slot)
{
	change(vs, slot, NULL);
}

void km_views_free(struct km_views *vs)
{
	for (unsigned int i = 0; i < 2; i++)
		for (struct km_view *v = GET(vs->view[i]), *older; v; v = older) {
			older = v->older;
			km_sys_free((void *)v->gpas);
			km_sys_free(v->entries);
			km_sys_free(v);
		}
}

/* The last of `count` slots, at least one, that begins at or below gpa; else the first. Without branches on
 * what is compared: guests' addresses are random, and each would be mispredicted every other time. */
static size_t find(struct km_view *v, size_t count, uint64_t gpa)
{
	_Atomic uint64_t *gpas = v->gpas;
	size_t i = 0;

	while (count > 1) {
		size_t half = count / 2;

		i = GET(gpas[i + half]) <= gpa ? i + half : i;
		count -= half;
	}
	return i;
}

/*
 * Slots side by side, for guest and host, of one region and with the same flags, are one run of bytes: how far the one
 * goes that slot i, which ends at `end`, is in.
 */
static uint64_t run_end(struct km_view *v, size_t i, size_t count, uint64_t end, uint64_t want_end)
{
	struct entry *e = &v->entries[i];

	for (size_t n = i + 1; end < want_end && n < count; n++) {
		struct entry *f = &v->entries[n];

		if (GET(v->gpas[n]) != end || GET(f->region) != GET(e->region) ||
		    GET(f->flags) != GET(e->flags) ||
		    GET(f->offset) != GET(e->offset) + (end - GET(v->gpas[i])))
			break;
		end = GET(f->end);
	}
	return end;
}

/* To the next slot's first byte, where gpa lies in none. */
static uint64_t hole(struct km_view *v, size_t i, size_t count, uint64_t gpa)
{
	if (count && GET(v->gpas[i]) <= gpa)
		i++;
	return (i < count ? GET(v->gpas[i]) : UINT64_MAX) - gpa;
}

/* What is stored in t is worth something only while the view was not changed. */
static inline __attribute__((always_inline)) bool look_up(struct km_view *v, uint64_t gpa,
							  uint64_t bytes,
							  struct kvmem_translation *t)
{
	size_t count = v ? GET(v->count) : 0, i = count ? find(v, count, gpa) : 0;
	uint64_t first = count ? GET(v->gpas[i]) : 0, in = gpa - first, end, want_end;
	struct entry *e;

	if (!count || gpa < first || gpa >= GET(v->entries[i].end)) {
		t->bytes = hole(v, i, count, gpa);
		return false;
	}
	e = &v->entries[i];
	end = GET(e->end);
	/* An address beyond the last is no gpa: what is asked for ends there. */
	want_end = bytes > UINT64_MAX - gpa ? UINT64_MAX : gpa + bytes;
	if (end < want_end)
		end = run_end(v, i, count, end, want_end);
	t->slot = GET(e->id);
	t->region = GET(e->region);
	t->arg = GET(e->arg);
	t->offset = GET(e->offset) + in;
	t->bytes = km_min(end, want_end) - gpa;
	t->host = (void *)(uintptr_t)(GET(e->host) + in);
	t->flags = GET(e->flags);
	return true;
}

static inline __attribute__((always_inline)) bool look_up_now(struct km_views *vs, uint64_t gpa,
							      uint64_t bytes,
							      struct kvmem_translation *t)
{
	uint64_t seq;
	bool found;

	do {
		seq = GET(vs->seq);
		found = look_up(GET(vs->view[seq & 1]), gpa, bytes, t);
	} while (GET(vs->seq) != seq);
	return found;
}

bool km_vm_look_up(struct kvmem_vm *vm, uint32_t space, uint64_t gpa, uint64_t bytes,
		   struct kvmem_translation *ret)
{
	return look_up_now(&vm->views[space], gpa, bytes, ret);
}

static int check(struct kvmem_vm *vm, uint32_t space, uint64_t bytes,
		 const struct kvmem_translation *result)
{
	if (!vm)
		return km_fail(EINVAL, "kvmem_vm_translate: vm is NULL");
	if (space >= KM_SLOT_SPACES)
		return km_fail(EINVAL,
			       "kvmem_vm_translate: space %" PRIu32
			       ": KVM has two address spaces at most",
			       space);
	if (!bytes)
		return km_fail(EINVAL, "kvmem_vm_translate: bytes is 0");
	return km_result_check(result, sizeof(*result), "kvmem_translation");
}

/* By value: a `t` whose address nobody takes stays in registers until it is stored, once, in the result. */
static int give_larger(struct kvmem_translation *ret, struct kvmem_translation t)
{
	km_result_copy(ret, &t, sizeof(t));
	return 0;
}

int kvmem_vm_translate(struct kvmem_vm *vm, uint32_t space, uint64_t gpa, uint64_t bytes,
		       struct kvmem_translation *ret_translation)
{
	struct kvmem_translation t = { .size = sizeof(t) };
	bool usual = vm && space < KM_SLOT_SPACES && bytes && ret_translation &&
		     ret_translation->size == sizeof(t);
	int r = usual ? 0 : check(vm, space, bytes, ret_translation);

	if (r)
		return r;
	if (!look_up_now(&vm->views[space], gpa, bytes, &t))
		return km_fail(ENOENT, "kvmem_vm_translate: no slot holds guest address 0x%" PRIx64,
			       gpa);
	if (!usual)
		return give_larger(ret_translation, t);
	*ret_translation = t;
	return 0;
}
