// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What the memory management offers: policies, huge pages, MADV_POPULATE. */
#include "caps/caps_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/uapi/mm.h"

#define MAXNODE	   1024ul
#define MASK_WORDS KM_NODE_WORDS

static int64_t base_page(int fd, void **ret)
{
	return km_sys_mmap(km_sys_page_size(), PROT_READ | PROT_WRITE,
			   fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0, ret);
}

/* A mask of one node that this process may use. */
static int64_t one_node(unsigned long *mask)
{
	int64_t r = km_caps_nodes(mask);

	for (size_t i = 0; r >= 0 && i < MASK_WORDS; i++)
		if (mask[i]) {
			mask[i] &= -mask[i];
			for (size_t j = i + 1; j < MASK_WORDS; j++)
				mask[j] = 0;
			return 0;
		}
	return r < 0 ? r : -ENODEV;
}

static int64_t try_mode(int mode)
{
	unsigned long mask[MASK_WORDS] = { 0 };
	void *page;
	int64_t r = one_node(mask);

	if (r < 0)
		return r;
	r = base_page(-1, &page);
	if (r < 0)
		return r;
	r = km_sys_mbind(page, km_sys_page_size(), mode, mask, MAXNODE, 0);
	km_sys_munmap(page, km_sys_page_size());
	return r;
}

static void probe_mode(struct kvmem_caps *c, uint32_t id, int mode, const char *name,
		       const char *since)
{
	int64_t r = try_mode(mode);

	if (r >= 0)
		km_cap_native(c, id, 0, "mbind() takes %s", name);
	else if (r == -EINVAL || r == -ENOSYS)
		km_cap_none(c, id, r, "mbind() with %s: %m; %s", name, since);
	else
		km_cap_unknown(c, id, r, "mbind() with %s: %m", name);
}

static void probe_nodes(struct kvmem_caps *c)
{
	unsigned long nodes[MASK_WORDS];
	int64_t r = km_caps_nodes(nodes);
	int n = 0;

	for (size_t i = 0; r >= 0 && i < MASK_WORDS; i++)
		n += __builtin_popcountl(nodes[i]);
	if (!n)
		km_cap_unknown(c, KVMEM_CAP_NUMA_NODES, r, "the nodes cannot be listed: %m");
	else if (km_cap_step(c, try_mode(KM_MPOL_BIND)) == -EPERM)
		km_cap_fallback(
			c, KVMEM_CAP_NUMA_NODES, -EPERM, "placing by the thread's own node",
			"mbind() is forbidden here (%m): a container's seccomp filter wants "
			"CAP_SYS_NICE for it");
	else
		km_cap_native(c, KVMEM_CAP_NUMA_NODES, n, "%d %s memory that this process may use",
			      n, n == 1 ? "node has" : "nodes have");
}

void km_probe_numa(struct kvmem_caps *c)
{
	probe_nodes(c);
	probe_mode(c, KVMEM_CAP_NUMA_PREFERRED_MANY, KM_MPOL_PREFERRED_MANY, "MPOL_PREFERRED_MANY",
		   "Linux 5.15 and later have it, with CONFIG_NUMA");
	probe_mode(c, KVMEM_CAP_NUMA_WEIGHTED_INTERLEAVE, KM_MPOL_WEIGHTED_INTERLEAVE,
		   "MPOL_WEIGHTED_INTERLEAVE", "Linux 6.9 and later have it, with CONFIG_NUMA");
}

/* A policy set through one mapping shows through another only if the file itself holds it. */
static int64_t policy_is_shared(void *a, const void *b)
{
	unsigned long mask[MASK_WORDS] = { 0 };
	int64_t r = one_node(mask);
	int mode = -1;

	if (r >= 0)
		r = km_sys_mbind(a, km_sys_page_size(), KM_MPOL_BIND, mask, MAXNODE, 0);
	if (r >= 0)
		r = km_sys_get_mempolicy(&mode, NULL, 0, (void *)(uintptr_t)b, KM_MPOL_F_ADDR);
	return r < 0 ? r : mode == KM_MPOL_BIND;
}

static int64_t gmem_policy(struct kvmem_caps *c)
{
	int64_t vm = km_caps_vm(c), fd, r;
	void *a, *b;

	fd = vm < 0 ? vm : km_gmem_create((int)vm, km_sys_page_size(), km_gmem_flags(c));
	if (fd < 0)
		return fd;
	r = base_page((int)fd, &a);
	if (r >= 0) {
		r = base_page((int)fd, &b);
		if (r >= 0) {
			r = policy_is_shared(a, b);
			km_sys_munmap(b, km_sys_page_size());
		}
		km_sys_munmap(a, km_sys_page_size());
	}
	km_sys_close((int)fd);
	return r;
}

void km_probe_gmem_numa(struct kvmem_caps *c)
{
	static const char instead[] = "the policy of the threads that fill the pages";
	const struct km_cap_entry *map = km_cap_need(c, KVMEM_CAP_GUEST_MEMFD_MMAP);
	int64_t r;

	if (map->support != KVMEM_SUPPORT_NATIVE) {
		km_cap_none(c, KVMEM_CAP_GUEST_MEMFD_NUMA, map->error, "%s", map->reason);
		return;
	}
	r = gmem_policy(c);
	if (r < 0)
		km_cap_unknown(c, KVMEM_CAP_GUEST_MEMFD_NUMA, r,
			       "mbind() on the mapping of a guest_memfd: %m");
	else if (r)
		km_cap_native(c, KVMEM_CAP_GUEST_MEMFD_NUMA, 0,
			      "mbind() through one mapping of a guest_memfd shows through another");
	else
		km_cap_fallback(c, KVMEM_CAP_GUEST_MEMFD_NUMA, 0, instead,
				"mbind() on the mapping of a guest_memfd succeeds and is ignored; "
				"Linux 6.19 and "
				"later honour it");
}

/* ---- huge pages ---- */

static int64_t read_number(const char *path)
{
	char buf[32] = "";
	int64_t fd = km_sys_open(path, O_RDONLY), r;

	if (fd < 0)
		return fd;
	r = km_sys_read((int)fd, buf, sizeof(buf) - 1);
	km_sys_close((int)fd);
	return r < 0 ? r : strtoll(buf, NULL, 10);
}

/* Mapping reserves the pages, so that success means they can be had. */
int64_t km_caps_try_huge(uint64_t bytes, uint64_t page_size)
{
	unsigned int size_flag = page_size == 1ul << 30 ? KM_MFD_HUGE_1GB : KM_MFD_HUGE_2MB;
	int64_t fd = km_sys_memfd_create("kvmem-probe", MFD_HUGETLB | size_flag), r;
	void *p;

	if (fd < 0)
		return fd;
	r = km_sys_ftruncate((int)fd, bytes);
	if (r >= 0)
		r = km_sys_mmap(bytes, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, 0, &p);
	if (r >= 0)
		km_sys_munmap(p, bytes);
	km_sys_close((int)fd);
	return r;
}

static void probe_huge(struct kvmem_caps *c, uint32_t id, size_t bytes)
{
	int64_t r = km_caps_try_huge(bytes, bytes), n;
	char path[96];

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%zukB/free_hugepages",
		 bytes >> 10);
	if (r < 0) {
		km_cap_none(c, id, r, "a memfd of huge pages of %zu MiB: %m; reserve some in %s",
			    bytes >> 20, "/sys/kernel/mm/hugepages/*/nr_hugepages");
		return;
	}
	n = read_number(path);
	km_cap_native(c, id, n > 0 ? n : 1,
		      "a huge page of %zu MiB can be reserved; the value is how many are free",
		      bytes >> 20);
}

void km_probe_hugetlb(struct kvmem_caps *c)
{
	probe_huge(c, KVMEM_CAP_HUGETLB_2M, 2ul << 20);
	probe_huge(c, KVMEM_CAP_HUGETLB_1G, 1ul << 30);
}

void km_probe_madvise(struct kvmem_caps *c)
{
	void *page;
	int64_t r = base_page(-1, &page);

	if (r >= 0) {
		r = km_sys_madvise(page, km_sys_page_size(), KM_MADV_POPULATE_WRITE);
		km_sys_munmap(page, km_sys_page_size());
	}
	if (r < 0)
		km_cap_none(c, KVMEM_CAP_MADV_POPULATE, r,
			    "MADV_POPULATE_WRITE: %m; Linux 5.14 and later have it");
	else
		km_cap_native(c, KVMEM_CAP_MADV_POPULATE, 0, "MADV_POPULATE_WRITE makes pages");
}

/* ---- transparent huge pages ---- */

#define THP "/sys/kernel/mm/transparent_hugepage/"

/* "always [madvise] never": the word in brackets. False where there is no such file. */
static bool read_choice(const char *path, char *word, size_t room)
{
	char text[128] = "", *from, *to;
	int64_t fd = km_sys_open(path, O_RDONLY), n;

	if (fd < 0)
		return false;
	n = km_sys_read((int)fd, text, sizeof(text) - 1);
	km_sys_close((int)fd);
	from = n > 0 ? strchr(text, '[') : NULL;
	to = from ? strchr(from, ']') : NULL;
	if (!to)
		return false;
	*to = '\0';
	snprintf(word, room, "%s", from + 1);
	return true;
}

enum km_thp km_caps_thp(bool shared)
{
	static const struct {
		const char *word;
		enum km_thp means;
	} words[] = {
		{ "always", KM_THP_ALWAYS },	  { "force", KM_THP_ALWAYS },
		{ "within_size", KM_THP_ALWAYS }, { "madvise", KM_THP_ADVISED },
		{ "advise", KM_THP_ADVISED },	  { "never", KM_THP_NEVER },
		{ "deny", KM_THP_NEVER },
	};
	char word[32];
	bool known = read_choice(shared ? THP "shmem_enabled" : THP "enabled", word, sizeof(word));
	bool overruled = known && (!shared || (strcmp(word, "deny") && strcmp(word, "force")));
	char own[32];

	/* Since 6.8 (of shared memory 6.12) each size has a setting of its own. */
	if (overruled &&
	    read_choice(shared ? THP "hugepages-2048kB/shmem_enabled"
			       : THP "hugepages-2048kB/enabled",
			own, sizeof(own)) &&
	    strcmp(own, "inherit"))
		memcpy(word, own, sizeof(word));
	for (size_t i = 0; known && i < KM_ARRAY_SIZE(words); i++)
		if (!strcmp(word, words[i].word))
			return words[i].means;
	return KM_THP_UNKNOWN;
}
