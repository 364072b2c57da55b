// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The NUMA nodes that have memory and that this process may use. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "caps/caps.h"
#include "base/uapi/mm.h"

#define WORD_BITS (8 * sizeof(unsigned long))
#define NODES	  (KM_NODE_WORDS * WORD_BITS)

/* A list as the kernel writes it: "0-3,8". */
static void parse_list(const char *p, unsigned long *mask)
{
	while (*p >= '0' && *p <= '9') {
		char *end;
		unsigned long first = strtoul(p, &end, 10), last = first;

		if (*end == '-')
			last = strtoul(end + 1, &end, 10);
		for (; first <= last && first < NODES; first++)
			mask[first / WORD_BITS] |= 1ul << (first % WORD_BITS);
		p = end + (*end == ',');
	}
}

/* The list that follows `key` in a file; key "": that the file begins with. */
static int64_t list_in_file(const char *path, const char *key, unsigned long *mask)
{
	char text[8192];
	int64_t fd = km_sys_open(path, O_RDONLY), n;
	const char *at;

	if (fd < 0)
		return fd;
	n = km_sys_read((int)fd, text, sizeof(text) - 1);
	km_sys_close((int)fd);
	if (n < 0)
		return n;
	text[n] = '\0';
	at = strstr(text, key);
	if (!at)
		return -ENOENT;
	at += strlen(key);
	parse_list(at + strspn(at, " \t"), mask);
	return 0;
}

/* A container's seccomp filter refuses the system call; the files say the same. */
static int64_t from_files(unsigned long *mask)
{
	unsigned long allowed[KM_NODE_WORDS] = { 0 };
	int64_t r = list_in_file("/sys/devices/system/node/has_memory", "", mask);

	if (r >= 0)
		r = list_in_file("/proc/self/status", "Mems_allowed_list:", allowed);
	for (size_t i = 0; i < KM_NODE_WORDS; i++)
		mask[i] &= allowed[i];
	return r;
}

int64_t km_caps_nodes(unsigned long *mask)
{
	int64_t r;

	memset(mask, 0, KM_NODE_WORDS * sizeof(*mask));
	r = km_sys_get_mempolicy(NULL, mask, NODES + 1, NULL, KM_MPOL_F_MEMS_ALLOWED);
	if (r == -ENOSYS) { /* a kernel without NUMA */
		mask[0] = 1;
		return 0;
	}
	if (r == -EPERM && from_files(mask) >= 0)
		return 0;
	return r;
}
