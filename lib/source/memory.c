// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/*
 * A source in this process's memory. That may be a mapping of a file, which somebody can cut short,
 * or of huge pages, which can run out: a load there is SIGBUS. The kernel copies from such memory
 * and answers EFAULT. It has to pin each page for that, which costs a tenth of a fill; so what
 * cannot be taken away, private anonymous memory, is found out once and read in place.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/uapi/mm.h"
#include "source/source.h"

#define MOST_MAPPINGS 4096u	 /* looked at before memory counts as not known */
#define MOST_TEXT     (1u << 20) /* of /proc/self/maps */

int km_source_memory_read(const struct kvmem_source *s, uint64_t offset, void *buf, uint64_t bytes)
{
	int r = km_copy(buf, s->base + offset, bytes);

	if (r == -EFAULT)
		return km_fail(EFAULT,
			       "source: the memory at offset 0x%" PRIx64 ", 0x%" PRIx64
			       " bytes, cannot be read: it is not mapped, a mapping of a file "
			       "that has been cut short, or huge pages that have run out",
			       offset, bytes);
	return r ? km_fail(-r,
			   "source: copying 0x%" PRIx64 " bytes at offset 0x%" PRIx64
			   " of the memory: %m",
			   bytes, offset)
		 : 0;
}

/* ---- what it is ---- */

/* How far [at, end) is private anonymous memory. */
struct reach {
	uint64_t at, end;
};

/* A mapping; they come by address. False: no need to look at another. */
static bool reach_on(struct reach *m, uint64_t start, uint64_t end, bool anonymous)
{
	if (end <= m->at)
		return true;
	if (start > m->at || !anonymous)
		return false;
	m->at = end;
	return m->at < m->end;
}

/* One call a mapping. -ENOTTY before 6.11. */
static int64_t by_query(int fd, struct reach *m)
{
	for (unsigned int i = 0; i < MOST_MAPPINGS; i++) {
		struct km_procmap_query q = { .size = sizeof(q), .query_addr = m->at };
		int64_t r = km_sys_ioctl(fd, KM_PROCMAP_QUERY, &q);

		if (r < 0)
			return r;
		if (!reach_on(m, q.vma_start, q.vma_end,
			      q.vma_flags & KM_PROCMAP_QUERY_VMA_READABLE &&
				      !(q.vma_flags & KM_PROCMAP_QUERY_VMA_SHARED) && !q.inode))
			break;
	}
	return 0;
}

/* What follows the n-th blank. */
static const char *skip_words(const char *p, unsigned int n)
{
	for (; p && n; n--) {
		p = strchr(p, ' ');
		p = p ? p + 1 : NULL;
	}
	return p;
}

/* "start-end perms offset device inode [path]" */
static bool parse_line(const char *line, struct reach *m)
{
	const char *perms = skip_words(line, 1), *inode = skip_words(perms, 3);
	uint64_t start, end;
	char *dash;

	if (!inode)
		return false;
	start = strtoull(line, &dash, 16);
	end = *dash == '-' ? strtoull(dash + 1, NULL, 16) : 0;
	return end > start &&
	       reach_on(m, start, end,
			perms[0] == 'r' && perms[3] == 'p' && !strtoull(inode, NULL, 10));
}

static void by_text(int fd, struct reach *m)
{
	char text[4096 + 1];
	size_t have = 0, total = 0;
	int64_t n;

	while (total < MOST_TEXT &&
	       (n = km_sys_read(fd, text + have, sizeof(text) - 1 - have)) > 0) {
		char *line = text, *nl;

		have += (size_t)n;
		total += (size_t)n;
		text[have] = '\0';
		for (; (nl = strchr(line, '\n')); line = nl + 1)
			if (!parse_line(line, m))
				return;
		have = (size_t)(text + have - line);
		memmove(text, line, have);
	}
}

bool km_source_in_place(const struct kvmem_source *s, uint64_t offset, uint64_t bytes)
{
	struct reach m = { .at = (uintptr_t)s->base + offset };
	int64_t fd;

	if (s->kind != KM_SOURCE_MEMORY)
		return false;
	m.end = m.at + bytes;
	fd = km_sys_open("/proc/self/maps", O_RDONLY);
	if (fd < 0)
		return false;
	if (by_query((int)fd, &m) == -ENOTTY)
		by_text((int)fd, &m);
	km_sys_close((int)fd);
	return m.at >= m.end;
}
