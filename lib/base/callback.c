// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "base/callback.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

static _Thread_local const struct km_callback *innermost;

void km_callback_enter(struct km_callback *cb, const char *name, const void *object,
		       const void *other)
{
	*cb = (struct km_callback){ name, { object, other }, innermost };
	innermost = cb;
}

void km_callback_leave(const struct km_callback *cb)
{
	innermost = cb->outer;
}

static bool belongs(const struct km_callback *cb, const void *object)
{
	return !object || cb->objects[0] == object || cb->objects[1] == object;
}

int km_callback_check(const char *call, const void *object)
{
	for (const struct km_callback *cb = innermost; cb; cb = cb->outer)
		if (belongs(cb, object))
			return km_fail(
				EDEADLK,
				"%s() is called from the callback %s, and would wait for that "
				"callback to return: call it from another thread, or later",
				call, cb->name);
	return 0;
}
