/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_REGION_H
#define KM_REGION_H

/*
 * region: a run of guest RAM. What it is made of (plan, adopt), its file and mappings, and the
 * record of its pages (presence.h). Knows vm, caps and base.
 *
 * Invariant: the record is the only truth about which pages have their content; nobody fills a page
 * that he has not claimed there.
 */

#include <pthread.h>
#include <stdatomic.h>

#include <kvmem/region.h>

#include "base/base.h"
#include "region/clone.h"
#include "region/exists.h"
#include "region/mapping.h"
#include "region/policy.h"
#include "region/presence.h"
#include "region/remote.h"
#include "vm/vm.h"

struct km_watch; /* fill: the userfaultfds that watch the mapping, while a pager has it */
struct km_guard; /* fill: who is to see pages before they change, while a capture has it */

struct kvmem_region {
	struct kvmem_vm *vm; /* may be NULL */
	struct kvmem_plan plan;
	_Atomic uint64_t bytes; /* grows: kvmem_region_grow() */
	uint64_t room;		/* bytes of its file and its mappings: it can grow to them */
	bool locked;		/* mlockall() was in force when it was mapped */
	unsigned int page_shift;
	int fd;		/* ours; -1 for anonymous memory and clones */
	int private_fd; /* guest_memfd of private pages beside fd's shared ones; else -1 */
	uint64_t fd_offset;
	struct km_clone *clone;	  /* NULL: the region is none */
	struct km_remote *remote; /* NULL: the memory is ours */
	void *arg;		  /* the caller's word */
	uint32_t flags;		  /* KVMEM_REGION_* */
	bool adopted;	   /* the file was the caller's: of others' making, maybe of their user */
	bool own_mapping;  /* the mapping is the caller's, and stays his */
	struct km_own own; /* then: what it is */
	bool own_description; /* fd shares its position and flags with nobody */
	/* Adopted with KVMEM_CONTENT_IGNORE: what exists and the record does not know is no content.
	 */
	bool ignore_existing;
	dev_t dev; /* of an adopted file */
	ino_t ino;
	bool registered;
	uintptr_t mapped;		  /* base, where registry.c may look at it */
	struct kvmem_region *next, *prev; /* registry.c */
	uint8_t *base;
	struct km_presence presence;
	pthread_mutex_t lock;	      /* policies, alias, pager, fillers */
	struct km_policy *policies;   /* region/policy.h */
	uint8_t *alias;		      /* second mapping, never registered with a userfaultfd */
	struct km_watch *watch;	      /* NULL: no pager has it; changes while nobody fills */
	_Atomic unsigned int fillers; /* operations on its pages under way: see km_pages_enter() */
	void *_Atomic tracked;	      /* dirty: its record of the region, while there is one */
	_Atomic bool no_access;	      /* pages were poisoned by taking their access rights away */
	_Atomic int
		writes; /* 1 + the userfaultfd of who watches writes to the mapping; 0: nobody */
	struct km_guard *_Atomic guard; /* NULL: no capture has it; see fill/guard.h */
	_Atomic unsigned int unguarded; /* who found no guard, and is at work still */
};

static inline uint64_t km_region_page(const struct kvmem_region *r)
{
	return 1ull << r->page_shift;
}

static inline uint64_t km_region_room(const struct kvmem_region *r)
{
	return r->room;
}

/* What is stored is in a file, and stays there when pages are dropped from the mapping. */
static inline bool km_region_is_shared(const struct kvmem_region *r)
{
	return r->own_mapping ? r->own.shared : r->fd >= 0;
}

/*
 * changed.c: who watches writes hears by this userfaultfd of what the library changes past the mapping; -1: of no more.
 * -EBUSY of that while pages are filled or taken away. And: these bytes were changed.
 */
int km_region_changes_to(struct kvmem_region *r, int uffd);
void km_region_changed(struct kvmem_region *r, uint64_t offset, uint64_t bytes);

/* Without anything: for who makes one (region.c, remote.c). What he has set of it _destroy() frees. */
struct kvmem_region *km_region_new(void);
void km_region_destroy(struct kvmem_region *r);

/* -EOPNOTSUPP of a clone, of memory of another process, and of a mapping given whose pages cannot be filled or
 * taken out. */
int km_region_fill_check(const struct kvmem_region *r, const char *what);

/*
 * Where to store content so that no userfaultfd sees it: the mapping itself as long as no pager
 * has the region, then a second mapping of its file. NULL for anonymous memory under a pager
 * (km_pages_place() is the way). Made on first need.
 */
int km_region_store(struct kvmem_region *r, uint8_t **ret_base);

/*
 * registry.c: of a file (or -1) and a mapping given, before anything is made: -EBUSY where another
 * region has these bytes. _mapped(): where the others find it from then on.
 */
void km_registry_add(struct kvmem_region *r);
int km_registry_add_given(struct kvmem_region *r, int fd, const void *mapping);
void km_registry_mapped(struct kvmem_region *r);
void km_registry_remove(struct kvmem_region *r);

/* file.c: sets fd, private_fd and fd_offset. On failure what is open stays for who frees r. */
int km_region_make_files(struct kvmem_region *r, const struct kvmem_region_opts *o);
/* The file that the caller gave, if he wants that: when nothing else can fail. */
int km_region_seal_given(const struct kvmem_region *r, const struct kvmem_region_opts *o);

/* map.c: the whole room, with access to the bytes in use; -errno without detail, which _fail() makes and
 * returns. */
enum km_mapping {
	KM_MAPPING_GUEST, /* the one that KVM and a userfaultfd see */
	KM_MAPPING_ALIAS, /* a second one, beside it */
};
int64_t km_region_map(struct kvmem_region *r, enum km_mapping which, uint8_t **ret);
/* Access to bytes of a mapping that had none, or none any more. Makes no page. */
int64_t km_region_open(const struct kvmem_region *r, uint8_t *at, uint64_t bytes,
		       enum km_mapping which);
void km_region_close(uint8_t *at, uint64_t bytes);
/* Huge pages for bytes of the region that no mapping has asked the kernel for yet. */
int64_t km_region_reserve_huge(const struct kvmem_region *r, uint64_t offset, uint64_t bytes);
/* What madvise(2) is told of the mappings of a region. -errno. */
int64_t km_region_advise(const struct kvmem_region *r, uint8_t *at, uint64_t bytes);
void km_region_unmap(const struct kvmem_region *r, uint8_t *at); /* NULL: nothing */
int km_region_map_fail(const struct kvmem_region *r, const char *what, int64_t err);

/* What a region of these (checked) options will be, and the check of the options. `own`: with
 * KVMEM_REGION_MAPPING alone. */
int km_plan_make(const struct kvmem_caps *caps, bool has_vm, const struct kvmem_region_opts *o,
		 const struct km_own *own, struct kvmem_plan *ret_plan);
/* Why memory of this backing cannot be captured (KVMEM_WANT_CAPTURE); NULL: it can. */
const char *km_no_capture(const struct kvmem_caps *caps, uint32_t backing);
int km_plan_opts(const struct kvmem_region_opts *opts, struct kvmem_region_opts *o);
int km_region_detach_all(struct kvmem_region *r);
/* Does a slot show part of the range to the guest, to be written? */
bool km_region_is_writable(const struct kvmem_region *r, uint64_t offset, uint64_t bytes);
bool km_region_is_attached(const struct kvmem_region *r);

/* A file descriptor given: sets backing and page_size to what it is; and, mapped, which pages it
 * has. */
int km_adopt_kind(struct kvmem_region_opts *o);
/* Told by its file system: a regular file's enum kvmem_backing, or 0 for one that is none of them. */
uint32_t km_file_kind(int fd, const struct stat *st);
/* Sets page_size: of a file of `size` bytes in pages of `page` it is what the options ask for. */
int km_file_range(struct kvmem_region_opts *o, uint64_t page, uint64_t size);
int km_adopt_presence(struct kvmem_region *r);

#endif
