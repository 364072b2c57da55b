// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Sentences of failures: they name the call that was made, not the one that it made in turn. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "image/internal.h"

/* Behind "kvmem_CALL: ", if it begins so. The names of structs stay: they are the caller's. */
static const char *without_call(const char *text)
{
	size_t n = 0;

	while (isalnum((unsigned char)text[n]) || text[n] == '_')
		n++;
	if (strncmp(text, "kvmem_", 6) != 0 || strncmp(text + n, ": ", 2) != 0 ||
	    (n > 5 && !strncmp(text + n - 5, "_opts", 5)))
		return text;
	return text + n + 2;
}

int ki_fail_as(const char *call, int r)
{
	char text[512];

	snprintf(text, sizeof(text), "%s", without_call(kvmem_error_detail()));
	return ki_fail(-r, "%s: %s", call, text);
}
