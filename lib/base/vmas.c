// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "base/vmas.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/uapi/mm.h"

/* As many as vm.max_map_count allows by default; beyond, memory counts as not known. */
#define MOST_MAPPINGS 65536u
#define MOST_TEXT     (8u << 20)

struct walk {
	uint64_t at, end; /* what is left of the range */
	bool (*fn)(void *arg, const struct km_vma *v);
	void *arg;
	int64_t result;
};

/* A mapping; they come by address. False: no need to look at another. */
static bool step(struct walk *w, const struct km_vma *v)
{
	if (v->end <= w->at)
		return true;
	if (v->start > w->at || !w->fn(w->arg, v)) {
		w->result = 0;
		return false;
	}
	w->at = v->end;
	w->result = w->at >= w->end;
	return !w->result;
}

/* One call a mapping. -ENOTTY before 6.11. */
static int64_t by_query(int fd, struct walk *w)
{
	for (unsigned int i = 0; i < MOST_MAPPINGS; i++) {
		struct km_procmap_query q = { .size = sizeof(q), .query_addr = w->at };
		int64_t r = km_sys_ioctl(fd, KM_PROCMAP_QUERY, &q);
		struct km_vma v = {
			.start = q.vma_start,
			.end = q.vma_end,
			.offset = q.vma_offset,
			.dev_major = q.dev_major,
			.dev_minor = q.dev_minor,
			.ino = q.inode,
			.read = q.vma_flags & KM_PROCMAP_QUERY_VMA_READABLE,
			.write = q.vma_flags & KM_PROCMAP_QUERY_VMA_WRITABLE,
			.shared = q.vma_flags & KM_PROCMAP_QUERY_VMA_SHARED,
		};

		if (r == -ENOENT) /* a gap */
			return 0;
		if (r < 0)
			return r;
		if (!step(w, &v))
			return w->result;
	}
	return -E2BIG;
}

/* "start-end perms offset major:minor inode [path]" */
static bool parse_line(const char *line, struct km_vma *v)
{
	char perms[4], *p;

	memset(v, 0, sizeof(*v));
	v->start = strtoull(line, &p, 16);
	if (*p++ != '-')
		return false;
	v->end = strtoull(p, &p, 16);
	if (*p++ != ' ' || v->end <= v->start || strnlen(p, sizeof(perms)) < sizeof(perms))
		return false;
	memcpy(perms, p, sizeof(perms));
	v->read = perms[0] == 'r';
	v->write = perms[1] == 'w';
	v->shared = perms[3] == 's';
	v->offset = strtoull(p + sizeof(perms), &p, 16);
	v->dev_major = (uint32_t)strtoul(p, &p, 16);
	if (*p++ != ':')
		return false;
	v->dev_minor = (uint32_t)strtoul(p, &p, 16);
	v->ino = strtoull(p, &p, 10);
	return true;
}

static int64_t by_text(int fd, struct walk *w)
{
	char text[4096 + 1];
	size_t have = 0, total = 0;
	bool cut = false; /* the rest of a line with a long path is to come */
	int64_t n;

	while (total < MOST_TEXT &&
	       (n = km_sys_read(fd, text + have, sizeof(text) - 1 - have)) > 0) {
		char *line = text, *nl;
		struct km_vma v;

		have += (size_t)n;
		total += (size_t)n;
		text[have] = '\0';
		for (; (nl = strchr(line, '\n')); line = nl + 1, cut = false) {
			if (!cut && !parse_line(line, &v))
				return -EIO;
			if (!cut && !step(w, &v))
				return w->result;
		}
		have = (size_t)(text + have - line);
		memmove(text, line, have);
		if (have < sizeof(text) - 1)
			continue;
		/* All but the path is at its beginning. */
		if (!cut && !parse_line(text, &v))
			return -EIO;
		if (!cut && !step(w, &v))
			return w->result;
		cut = true;
		have = 0;
	}
	if (total >= MOST_TEXT)
		return -E2BIG;
	return n < 0 ? n : 0; /* nothing is mapped behind the last one */
}

int64_t km_vmas_walk(uint64_t at, uint64_t end, bool (*fn)(void *arg, const struct km_vma *v),
		     void *arg)
{
	struct walk w = { .at = at, .end = end, .fn = fn, .arg = arg };
	int64_t fd = km_sys_open("/proc/self/maps", O_RDONLY), r;

	if (fd < 0)
		return fd;
	r = by_query((int)fd, &w);
	if (r == -ENOTTY)
		r = by_text((int)fd, &w);
	km_sys_close((int)fd);
	return r;
}
