/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_RECORD_H
#define KM_RECORD_H

/*
 * What has been handed out of a region: four bits a page, changed by compare-and-swap. All is DATA at the beginning, so
 * that a record takes no memory for what nobody asks about.
 *
 *	DATA ---assign---> ZERO | ABSENT | POISONED	what the page was at the pause
 *	   \                   |
 *	    +----- take ---> BUSY ---done---> DONE
 *
 * Where not all pages of a region are captured, the others are DONE from the beginning.
 * A page that was taken and turns out to be of another kind is put back as that kind.
 */

#include <stdatomic.h>
#include <stdint.h>

enum km_record_state {
	KM_RECORD_DATA = 0,
	KM_RECORD_ZERO = 1,
	KM_RECORD_ABSENT = 2,
	KM_RECORD_POISONED = 3,
	KM_RECORD_BUSY = 4,
	KM_RECORD_DONE = 5,
};

struct km_record {
	_Atomic uint64_t *words;
	uint64_t pages;
	_Atomic uint64_t left; /* pages that are not DONE */
};

int km_record_init(struct km_record *rec, uint64_t pages); /* 0 or -ENOMEM, without detail */
void km_record_destroy(struct km_record *rec);

enum km_record_state km_record_get(const struct km_record *rec, uint64_t page);

/* Before others see it: all pages become DONE; then some of them DATA again, which they may be already. */
void km_record_exclude_all(struct km_record *rec);
void km_record_include(struct km_record *rec, uint64_t first, uint64_t count);

/* The run of pages in one state from `page` on, at most `max`. */
uint64_t km_record_run(const struct km_record *rec, uint64_t page, uint64_t max,
		       enum km_record_state *ret_state);

/* Pages that are DATA become `state`; the others stay. */
void km_record_assign(struct km_record *rec, uint64_t first, uint64_t count,
		      enum km_record_state state);

/* The first page at or behind `first` that can be taken; rec->pages when there is none. */
uint64_t km_record_next(const struct km_record *rec, uint64_t first);

/* Pages from `first` on that are in `state`, at most `max`, become BUSY: how many, maybe 0. */
uint64_t km_record_take(struct km_record *rec, uint64_t first, uint64_t max,
			enum km_record_state state);

/* BUSY pages become DONE, or `state` again. */
void km_record_done(struct km_record *rec, uint64_t first, uint64_t count);
void km_record_put_back(struct km_record *rec, uint64_t page, enum km_record_state state);

#endif
