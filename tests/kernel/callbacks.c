// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * The table "Callbacks" of kvmem(7): each call from each callback is answered as the table says. The manual's own
 * test compares `rows` with the page.
 */
#include "pager_lib.h"

#include <stdio.h>

enum where { PAGER_READ, POPULATE_READ, FAIL, COMPLETE, DONE, PROGRESS, WHERES };

static struct {
	struct set s;
	struct kvmem_vm *vm;
	struct kvmem_dirty *dirty;
	struct kvmem_ticket *ticket;
	struct kvmem_capture *capture; /* under way; NULL: the kernel has none of this memory */
	struct kvmem_writes *writes;
	struct kvmem_region *tracked;
	atomic_bool broken; /* page 3 cannot be read */
	atomic_bool taken;  /* a callback makes the calls */
	enum where where;
	atomic_int told; /* callbacks that have made all calls */
	char wrong[200]; /* what was not answered as the table says */
} now;

static struct kvmem_run run;
static uint8_t page[PAGE];

static int call_populate(void)
{
	return kvmem_populate(now.s.ram, 0, now.s.source, NULL, NULL);
}

static int call_discard(void)
{
	return kvmem_region_discard(now.s.ram, 0, PAGE);
}

static int call_present(void)
{
	return kvmem_region_mark_present(now.s.ram, 0, PAGE);
}

static int call_absent(void)
{
	return kvmem_region_mark_absent(now.s.ram, 0, PAGE, 0);
}

static int call_next_missing(void)
{
	return kvmem_region_next_missing(now.s.ram, 0, &run);
}

static int call_next_run(void)
{
	uint32_t state;

	return kvmem_region_next_run(now.s.ram, 0, &run, &state);
}

static int call_stored(void)
{
	struct kvmem_stored stored[4];
	int64_t n = kvmem_region_stored(now.s.ram, 0, MIB, stored, 4);

	return n < 0 ? (int)n : 0;
}

static int call_get_plan(void)
{
	struct kvmem_plan plan = KVMEM_PLAN_INIT;

	return kvmem_region_get_plan(now.s.ram, &plan);
}

static int call_attach(void)
{
	return kvmem_region_attach(now.tracked, 0, PAGE, 1 << 30, KVMEM_SLOT_ANY, 0, NULL);
}

static int call_detach(void)
{
	return kvmem_region_detach(now.tracked, 0);
}

static int call_adopt_slot(void)
{
	return kvmem_region_adopt_slot(now.tracked, 0, PAGE, 1 << 30, 7, 0);
}

static int call_region_free(void)
{
	return kvmem_region_free(now.s.ram);
}

static int call_translate(void)
{
	struct kvmem_translation t = KVMEM_TRANSLATION_INIT;

	return kvmem_vm_translate(now.vm, 0, 0, 1, &t);
}

static int call_add(void)
{
	return kvmem_pager_add(now.s.pager, now.s.ram, now.s.source, 0, 0);
}

static int call_set_source(void)
{
	return kvmem_pager_set_source(now.s.pager, now.s.ram, now.s.source, 0);
}

static int call_start(void)
{
	return kvmem_pager_start(now.s.pager);
}

static int call_handle(void)
{
	int r = kvmem_pager_handle(now.s.pager);

	/* It has threads, which is looked at first. */
	return r == -EINVAL ? -EDEADLK : r;
}

static int call_stop(void)
{
	return kvmem_pager_stop(now.s.pager, KVMEM_STOP_HAND_BACK);
}

static int call_pager_free(void)
{
	return kvmem_pager_free(now.s.pager);
}

static int call_remove(void)
{
	return kvmem_pager_remove(now.s.pager, now.s.ram, KVMEM_STOP_FILL);
}

static int call_wait(void)
{
	return kvmem_pager_wait(now.s.pager, -1);
}

static int call_prefetch(void)
{
	const struct kvmem_range r = { 0, PAGE };

	return kvmem_pager_prefetch(now.s.pager, now.s.ram, &r, 1, NULL, NULL);
}

/* A page that is not wanted by the callback's own fill. */
static int call_put(void)
{
	return (int)kvmem_pager_put(now.s.pager, now.s.ram, now.s.bytes - PAGE,
				    now.s.content + now.s.bytes - PAGE, PAGE);
}

static int call_trace_read(void)
{
	struct kvmem_trace_entry e;

	return (int)kvmem_pager_trace_read(now.s.pager, &e, 1);
}

static int call_get_stats(void)
{
	struct kvmem_pager_stats st = KVMEM_PAGER_STATS_INIT;

	return kvmem_pager_get_stats(now.s.pager, &st);
}

static int call_ticket_wait(void)
{
	return kvmem_ticket_wait(now.ticket, -1, NULL);
}

static int call_ticket_free(void)
{
	return kvmem_ticket_free(now.ticket);
}

/* Not the page that fails: a source may read itself, but for ever it may not. */
static int call_source_read(void)
{
	return kvmem_source_read(now.s.source, now.s.bytes - PAGE, page, PAGE);
}

static int call_source_extent(void)
{
	struct kvmem_extent e = KVMEM_EXTENT_INIT;

	return kvmem_source_extent(now.s.source, 0, &e);
}

static int call_source_free(void)
{
	return kvmem_source_free(now.s.source);
}

static int call_capture_start(void)
{
	return kvmem_capture_start(now.capture, &now.s.ram, 1);
}

/* The first stops it, before anything was asked for. */
static int call_capture_stop(void)
{
	int r = kvmem_capture_stop(now.capture);

	return r == -ECANCELED || r == -EINVAL ? 0 : r;
}

static int call_writes_add(void)
{
	return kvmem_writes_add(now.writes, now.s.ram);
}

static int call_dirty_start(void)
{
	return kvmem_dirty_start(now.dirty);
}

static int call_dirty_stop(void)
{
	return kvmem_dirty_stop(now.dirty);
}

static int call_harvest(void)
{
	struct kvmem_batch *batch;

	return (int)kvmem_dirty_harvest(now.dirty, &batch);
}

static int call_commit(void)
{
	return (int)kvmem_dirty_commit(now.dirty, (struct kvmem_batch *)&now);
}

static int call_reader_create(void)
{
	struct kvmem_reader *reader;

	return kvmem_dirty_reader_create(now.dirty, NULL, &reader);
}

static int call_reader_free(void)
{
	return kvmem_reader_free(kvmem_dirty_reader(now.dirty));
}

static int call_reader_harvest(void)
{
	struct kvmem_batch *batch;

	return (int)kvmem_reader_harvest(kvmem_dirty_reader(now.dirty), &batch);
}

static int call_pending(void)
{
	return (int)kvmem_reader_pending(kvmem_dirty_reader(now.dirty), NULL);
}

static int call_forget(void)
{
	return kvmem_reader_forget(kvmem_dirty_reader(now.dirty), now.tracked, 0, PAGE);
}

static int call_return(void)
{
	return kvmem_batch_return((struct kvmem_batch *)&now);
}

static int call_mark(void)
{
	return kvmem_dirty_mark(now.dirty, now.tracked, 0, 1);
}

static int call_detail(void)
{
	return kvmem_error_detail() ? 0 : -1;
}

static const struct row {
	const char *name;
	int (*call)(void);
	const char *cells[WHERES];
} rows[] = {
	/* clang-format off */
	{ "populate", call_populate, { "no", "no", "no", "no", "no", "no" } },
	{ "region_discard", call_discard, { "no", "no", "no", "no", "no", "no" } },
	{ "region_mark_present", call_present, { "no", "no", "no", "no", "no", "no" } },
	{ "region_mark_absent", call_absent, { "no", "no", "no", "no", "no", "no" } },
	{ "region_next_missing", call_next_missing, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "region_next_run", call_next_run, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "region_stored", call_stored, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "region_get_plan", call_get_plan, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "region_attach", call_attach, { "no", "no", "no", "no", "no", "no" } },
	{ "region_detach", call_detach, { "no", "no", "no", "no", "no", "no" } },
	{ "region_adopt_slot", call_adopt_slot, { "no", "no", "no", "no", "no", "no" } },
	{ "region_free", call_region_free, { "no", "no", "no", "no", "no", "no" } },
	{ "vm_translate", call_translate, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "pager_add", call_add, { "no", "busy", "no", "no", "busy", "busy" } },
	{ "pager_set_source", call_set_source, { "no", "never", "no", "no", "never", "never" } },
	{ "pager_start", call_start, { "no", "never", "no", "no", "never", "never" } },
	{ "pager_handle", call_handle, { "no", "never", "no", "no", "never", "never" } },
	{ "pager_stop", call_stop, { "no", "no", "no", "no", "no", "no" } },
	{ "pager_free", call_pager_free, { "no", "no", "no", "no", "no", "no" } },
	{ "pager_remove", call_remove, { "no", "no", "no", "no", "no", "no" } },
	{ "pager_wait", call_wait, { "no", "no", "no", "no", "no", "no" } },
	{ "pager_prefetch", call_prefetch, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "pager_put", call_put, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "pager_trace_read", call_trace_read, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "pager_get_stats", call_get_stats, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "ticket_wait", call_ticket_wait, { "no", "no", "no", "no", "no", "no" } },
	{ "ticket_free", call_ticket_free, { "no", "no", "no", "no", "no", "no" } },
	{ "source_read", call_source_read, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "source_extent", call_source_extent, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "source_free", call_source_free, { "no", "no", "busy", "busy", "busy", "busy" } },
	{ "capture_start", call_capture_start, { "no", "no", "no", "no", "no", "no" } },
	{ "capture_stop", call_capture_stop, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "writes_add", call_writes_add, { "no", "no", "no", "no", "no", "no" } },
	{ "dirty_start", call_dirty_start, { "no", "no", "no", "no", "no", "no" } },
	{ "dirty_stop", call_dirty_stop, { "no", "no", "no", "no", "no", "no" } },
	{ "dirty_harvest", call_harvest, { "no", "no", "no", "no", "no", "no" } },
	{ "dirty_commit", call_commit, { "no", "no", "no", "no", "no", "no" } },
	{ "dirty_reader_create", call_reader_create, { "no", "no", "no", "no", "no", "no" } },
	{ "reader_free", call_reader_free, { "no", "no", "no", "no", "no", "no" } },
	{ "reader_harvest", call_reader_harvest, { "no", "no", "no", "no", "no", "no" } },
	{ "reader_pending", call_pending, { "no", "no", "no", "no", "no", "no" } },
	{ "reader_forget", call_forget, { "no", "no", "no", "no", "no", "no" } },
	{ "batch_return", call_return, { "no", "no", "no", "no", "no", "no" } },
	{ "dirty_mark", call_mark, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	{ "error_detail", call_detail, { "yes", "yes", "yes", "yes", "yes", "yes" } },
	/* clang-format on */
};

/* Rows that need an object which is not there are left out. */
static bool can_call(const struct row *r)
{
	if (strstr(r->name, "ticket"))
		return now.ticket;
	if (strstr(r->name, "capture"))
		return now.capture;
	if (strstr(r->name, "writes"))
		return now.writes;
	if (strstr(r->name, "dirty") || strstr(r->name, "reader") || strstr(r->name, "batch"))
		return now.dirty;
	if (r->call == call_attach || r->call == call_detach || r->call == call_adopt_slot ||
	    r->call == call_translate)
		return now.vm;
	return now.s.pager || !strstr(r->name, "pager");
}

static const char *word_for(int r)
{
	return r == -EDEADLK ? "no" : r == -EBUSY ? "busy" : "yes";
}

/* Several threads may be in the callback at once: one of them makes the calls, many of which are for one at a time. */
static void call_all(void)
{
	if (atomic_exchange(&now.taken, true))
		return;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const char *want = rows[i].cells[now.where];
		int r;

		if (!strcmp(want, "never") || !can_call(&rows[i]))
			continue;
		r = rows[i].call();
		if (strcmp(word_for(r), want) && !now.wrong[0])
			snprintf(now.wrong, sizeof(now.wrong), "%s: %d, not \"%s\"", rows[i].name,
				 r, want);
	}
	atomic_fetch_add(&now.told, 1);
}

/* ---- the callbacks ---- */

static int on_read(void *arg, uint64_t offset, void *buf, uint64_t bytes)
{
	static _Thread_local bool inside;
	bool reads = now.where == PAGER_READ || now.where == POPULATE_READ;

	(void)arg;
	if (reads && !inside && !atomic_load(&now.told)) {
		inside = true; /* it reads itself */
		call_all();
		inside = false;
	}
	if (atomic_load(&now.broken) && offset <= 3 * PAGE && offset + bytes > 3 * PAGE)
		return -EIO;
	memcpy(buf, now.s.content + offset, bytes);
	return 0;
}

static enum kvmem_fail_action on_fail(void *arg, const struct kvmem_fail *f)
{
	(void)arg;
	(void)f;
	call_all();
	atomic_store(&now.broken, false);
	return KVMEM_FAIL_RETRY;
}

static void on_complete(void *arg)
{
	(void)arg;
	if (now.where == COMPLETE && !atomic_load(&now.told))
		call_all();
}

/* It may be called before kvmem_pager_prefetch() has returned: the ticket is not known then. */
static void on_done(void *arg, const struct kvmem_ticket_result *result)
{
	(void)arg;
	(void)result;
	if (now.where == DONE)
		call_all();
}

static int on_progress(void *arg, const struct kvmem_progress *p)
{
	(void)arg;
	(void)p;
	if (now.where == PROGRESS && !atomic_load(&now.told))
		call_all();
	return 0;
}

/* ---- bringing them about ---- */

static void track(void)
{
	struct kvmem_region_opts o = KVMEM_REGION_OPTS_INIT;

	if (kvmem_vm_create(NULL, &now.vm))
		return;
	o.bytes = MIB;
	o.needs = KVMEM_WANT_DIRTY;
	must(kvmem_region_create(now.vm, &o, &now.tracked));
	must(kvmem_region_attach(now.tracked, 0, MIB, 0, KVMEM_SLOT_ANY, 0, NULL));
	must(kvmem_dirty_create(now.vm, NULL, &now.dirty));
	must(kvmem_dirty_start(now.dirty));
}

static void untrack(void)
{
	if (!now.vm)
		return;
	must(kvmem_dirty_stop(now.dirty));
	must(kvmem_dirty_free(now.dirty));
	must(kvmem_region_free(now.tracked));
	must(kvmem_vm_free(now.vm));
}

static int no_write(void *arg, const struct kvmem_capture_run *captured, const void *content)
{
	(void)arg;
	(void)captured;
	(void)content;
	return 0;
}

static void capture(void)
{
	struct kvmem_capture_opts o = KVMEM_CAPTURE_OPTS_INIT;

	o.before_write = no_write;
	if (kvmem_writes_create(NULL, &now.writes))
		now.writes = NULL;
	if (kvmem_capture_create(&o, &now.capture))
		now.capture = NULL;
	else if (kvmem_capture_start(now.capture, &now.s.ram, 1)) {
		harness_note("%s", kvmem_error_detail());
		must(kvmem_capture_free(now.capture));
		now.capture = NULL;
	}
}

static void end_capture(void)
{
	if (now.capture)
		call_capture_stop();
	must(kvmem_capture_free(now.capture));
	must(kvmem_writes_free(now.writes));
}

static void set_up(void)
{
	struct kvmem_source_ops ops = KVMEM_SOURCE_OPS_INIT;
	const struct kvmem_range last = { MIB - 2 * PAGE, PAGE };
	struct kvmem_prefetch_opts po = KVMEM_PREFETCH_OPTS_INIT;

	ops.read = on_read;
	must(kvmem_source_callback(&ops, NULL, MIB, &now.s.source));
	now.s.opts.fail = on_fail;
	now.s.opts.complete = on_complete;
	now.s.opts.fault_around = PAGE;
	now.s.opts.trace_entries = 64;
	now.s.opts.flags |= KVMEM_PAGER_CAPTURE;
	if (kvmem_pager_create(&now.s.opts, &now.s.pager)) {
		now.s.opts.flags &= ~KVMEM_PAGER_CAPTURE;
		must(kvmem_pager_create(&now.s.opts, &now.s.pager));
	}
	must(kvmem_pager_add(now.s.pager, now.s.ram, now.s.source, 0, 0));
	po.done = on_done;
	if (now.where != POPULATE_READ && now.where != PROGRESS)
		must(kvmem_pager_prefetch(now.s.pager, now.s.ram, &last, 1, &po, &now.ticket));
	now.broken = now.where == FAIL;
	capture();
}

static void go(void)
{
	struct kvmem_populate_opts o = KVMEM_POPULATE_OPTS_INIT;

	if (now.where == POPULATE_READ || now.where == PROGRESS) {
		o.threads = 1;
		o.progress = on_progress;
		must(kvmem_populate(now.s.ram, 0, now.s.source, &o, NULL));
		must(kvmem_pager_start(now.s.pager));
	} else {
		must(kvmem_pager_start(now.s.pager));
		check_page(&now.s, 3);
	}
}

static bool is_told(void *arg)
{
	(void)arg;
	return atomic_load(&now.told);
}

TEST(each_call_from_each_callback)
{
	for (int where = 0; where < WHERES; where++) {
		memset(&now, 0, sizeof(now));
		now.where = (enum where)where;
		if (!open_set(&now.s, KVMEM_BACKING_MEMFD, MIB))
			return;
		track();
		set_up();
		go();
		if (where == COMPLETE)
			check_all(&now.s);
		ck_assert_msg(harness_wait(is_told, NULL, 10), "callback %d was not called", where);
		ck_assert_msg(!now.wrong[0], "from callback %d: %s", where, now.wrong);
		end_capture();
		must(kvmem_pager_stop(now.s.pager, KVMEM_STOP_FILL));
		check_all(&now.s);
		must(kvmem_ticket_free(now.ticket));
		now.where = WHERES;
		close_set(&now.s);
		untrack();
	}
}
END

HARNESS_MAIN(T(each_call_from_each_callback))
