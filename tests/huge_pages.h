/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef HUGE_PAGES_H
#define HUGE_PAGES_H

#include <stdio.h>
#include <stdlib.h>

/* Huge pages for as long as the program runs, where there are too few and it may make some. */
static long huge_pages_before;

static inline void set_huge_pages(long count)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", "we");

	if (!f)
		return;
	fprintf(f, "%ld", count);
	fclose(f);
}

static inline void huge_pages_end(void)
{
	set_huge_pages(huge_pages_before);
}

static inline void huge_pages_begin(void)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", "re");
	char text[32] = "";

	if (!f)
		return;
	huge_pages_before = fgets(text, sizeof(text), f) ? strtol(text, NULL, 10) : 16;
	if (huge_pages_before < 16) {
		atexit(huge_pages_end);
		set_huge_pages(huge_pages_before + 16);
	}
	fclose(f);
}

#endif
