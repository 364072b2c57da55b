/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_CALLBACK_H
#define KM_CALLBACK_H

/*
 * Which callbacks of the caller this thread is inside of. A library function that would wait for
 * the very thread that calls it (a claim of its own, the end of its own loop) asks here first and
 * is refused with -EDEADLK.
 *
 *	struct km_callback cb;
 *
 *	km_callback_enter(&cb, "kvmem_pager_opts.complete", pager, NULL);
 *	opts->complete(opts->arg);
 *	km_callback_leave(&cb);
 *
 * and in kvmem_pager_stop():
 *
 *	r = km_callback_check("kvmem_pager_stop", pager);
 *
 * The markers of nested callbacks form a list on the stack of the thread: no allocation, no lock.
 * Set one around every call of a function pointer that the caller gave.
 */

struct km_callback {
	const char *name;	/* as the manual calls it */
	const void *objects[2]; /* that wait for the callback to return; NULL: none */
	const struct km_callback *outer;
};

/* `object` and `other` are what the callback belongs to: pager, region, source, tracker... */
void km_callback_enter(struct km_callback *cb, const char *name, const void *object,
		       const void *other);
void km_callback_leave(const struct km_callback *cb);

/* -EDEADLK, naming `call` and the callback, when this thread is inside a callback of `object`
 * (NULL: inside any callback); else 0. */
int km_callback_check(const char *call, const void *object);

#endif
