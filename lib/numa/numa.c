// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* Policies by range: held by the kernel where it honours mbind(), else by the threads that fill. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>

#include "numa/numa.h"
#include "base/uapi/mm.h"

#define WORD_BITS (8 * sizeof(unsigned long))
#define NODES	  KM_POLICY_NODES

struct mask {
	unsigned long w[KM_NODE_WORDS];
};

static bool has(const unsigned long *w, unsigned long node)
{
	return node < NODES && w[node / WORD_BITS] >> (node % WORD_BITS) & 1;
}

static unsigned int weight(const struct mask *m)
{
	unsigned int n = 0;

	for (size_t i = 0; i < KM_ARRAY_SIZE(m->w); i++)
		n += (unsigned int)__builtin_popcountl(m->w[i]);
	return n;
}

/* What -EPERM means of mbind() and its like, which the kernel itself has no such answer for. */
static const char forbidden[] =
	"; a seccomp filter refuses it, as those of containers do without CAP_SYS_NICE";

/* ---- nodes ---- */

static int nodes_fail(int64_t err)
{
	return km_fail((int)-err, "the nodes allowed: get_mempolicy: %m%s",
		       err == -EPERM ? forbidden : "");
}

int kvmem_numa_nodes(unsigned long *nodes, unsigned long maxnode)
{
	struct mask m;
	int64_t r;

	if (!nodes || !maxnode)
		return km_fail(EINVAL, "kvmem_numa_nodes: %s",
			       nodes ? "maxnode is 0" : "nodes is NULL");
	r = km_caps_nodes(m.w);
	if (r < 0)
		return nodes_fail(r);
	for (unsigned long n = 0; n < NODES; n++)
		if (n >= maxnode && has(m.w, n))
			return km_fail(EINVAL, "kvmem_numa_nodes: maxnode %lu leaves out node %lu",
				       maxnode, n);
	for (unsigned long i = 0; i < (maxnode + WORD_BITS - 1) / WORD_BITS; i++)
		nodes[i] = i < KM_ARRAY_SIZE(m.w) ? m.w[i] : 0;
	return (int)weight(&m);
}

static int refuse_node(unsigned long node)
{
	int64_t bytes = node <= INT_MAX ? km_sys_node_bytes((int)node) : -ENODEV;

	if (bytes < 0)
		return km_fail(ENODEV, "kvmem_region_set_policy: node %lu does not exist", node);
	if (!bytes)
		return km_fail(ENODEV, "kvmem_region_set_policy: node %lu has no memory", node);
	return km_fail(EPERM, "kvmem_region_set_policy: node %lu is outside this process's cpuset",
		       node);
}

/* ---- arguments ---- */

static const struct {
	int kernel;
	const char *name;
} modes[] = {
	[KVMEM_POLICY_DEFAULT] = { KM_MPOL_DEFAULT, "default" },
	[KVMEM_POLICY_BIND] = { KM_MPOL_BIND, "bind" },
	[KVMEM_POLICY_PREFERRED] = { KM_MPOL_PREFERRED, "preferred" },
	[KVMEM_POLICY_PREFERRED_MANY] = { KM_MPOL_PREFERRED_MANY, "preferred-many" },
	[KVMEM_POLICY_INTERLEAVE] = { KM_MPOL_INTERLEAVE, "interleave" },
	[KVMEM_POLICY_WEIGHTED_INTERLEAVE] = { KM_MPOL_WEIGHTED_INTERLEAVE, "weighted-interleave" },
};

static int copy_mask(struct mask *m, const unsigned long *nodes, unsigned long maxnode)
{
	struct mask allowed;
	int64_t r;

	memset(m, 0, sizeof(*m));
	if (maxnode && !nodes)
		return km_fail(EINVAL, "kvmem_region_set_policy: nodes is NULL and maxnode is %lu",
			       maxnode);
	if (!maxnode)
		return 0;
	r = km_caps_nodes(allowed.w);
	if (r < 0)
		return nodes_fail(r);
	for (unsigned long n = 0; n < maxnode; n++) {
		if (!(nodes[n / WORD_BITS] >> (n % WORD_BITS) & 1))
			continue;
		if (!has(allowed.w, n))
			return refuse_node(n);
		m->w[n / WORD_BITS] |= 1ul << (n % WORD_BITS);
	}
	return 0;
}

static int check_mask(uint32_t mode, const struct mask *m)
{
	unsigned int n = weight(m);

	if (mode == KVMEM_POLICY_DEFAULT && n)
		return km_fail(
			EINVAL,
			"kvmem_region_set_policy: the default policy takes no nodes, %u are given",
			n);
	if (mode != KVMEM_POLICY_DEFAULT && !n)
		return km_fail(EINVAL,
			       "kvmem_region_set_policy: policy %s needs a node, none is given",
			       modes[mode].name);
	if (mode == KVMEM_POLICY_PREFERRED && n > 1)
		return km_fail(EINVAL,
			       "kvmem_region_set_policy: policy preferred takes one node, %u are "
			       "given: see "
			       "KVMEM_POLICY_PREFERRED_MANY",
			       n);
	return 0;
}

static int check_args(const struct kvmem_region *r, uint64_t offset, uint64_t bytes, uint32_t mode,
		      uint32_t flags)
{
	int ret;

	if (!r)
		return km_fail(EINVAL, "kvmem_region_set_policy: region is NULL");
	if (mode >= KM_ARRAY_SIZE(modes))
		return km_fail(EINVAL, "kvmem_region_set_policy: mode %" PRIu32 " is unknown",
			       mode);
	ret = km_region_own_check(r, "kvmem_region_set_policy");
	if (ret)
		return ret;
	ret = km_flags_check(flags, KVMEM_POLICY_FUTURE | KVMEM_POLICY_NATIVE,
			     "kvmem_region_set_policy: flags");
	if (!ret)
		ret = km_range_check(offset, bytes, r->bytes, "kvmem_region_set_policy: region");
	if (!ret)
		ret = km_align_check(offset, km_region_page(r), "kvmem_region_set_policy: offset");
	if (!ret)
		ret = km_align_check(bytes, km_region_page(r), "kvmem_region_set_policy: bytes");
	return ret;
}

static struct km_policy *new_policy(const struct km_policy *like)
{
	struct km_policy *p = km_sys_alloc(sizeof(*p));

	if (p)
		*p = *like;
	return p;
}

/* ---- setting ---- */

static int too_late(struct kvmem_region *r, uint64_t offset, uint64_t bytes, uint32_t flags)
{
	int64_t n;

	if (flags & KVMEM_POLICY_FUTURE)
		return 0;
	n = km_region_count_pages(r, offset, bytes);
	if (n < 0)
		return (int)n;
	if (!n)
		return 0;
	return km_fail(EEXIST,
		       "kvmem_region_set_policy: %" PRId64 " pages of offset 0x%" PRIx64
		       " + 0x%" PRIx64 " exist already and stay where they are: set the policy "
		       "before filling, discard them, or "
		       "pass KVMEM_POLICY_FUTURE",
		       n, offset, bytes);
}

/*
 * Does the memory itself hold the policy, or only the mapping it was set through? A second mapping
 * tells. Of hugetlb files it is the mapping that holds it, of a guest_memfd before Linux 6.19
 * nobody.
 */
static int64_t held_by_memory(struct kvmem_region *r, uint64_t offset, int mode)
{
	int got = -1;
	void *p;
	int64_t err;

	if (r->fd < 0)
		return 1;
	/* Without access, so that mlockall(MCL_FUTURE) makes no page. */
	err = km_sys_mmap(km_region_page(r), PROT_NONE, MAP_SHARED | MAP_NORESERVE, r->fd,
			  r->fd_offset + offset, &p);
	if (err < 0)
		return err;
	err = km_sys_get_mempolicy(&got, NULL, 0, p, KM_MPOL_F_ADDR);
	km_sys_munmap(p, km_region_page(r));
	if (err == -EPERM) /* seccomp: shmem always holds it, of others nothing is sure */
		return r->plan.backing == KVMEM_BACKING_MEMFD;
	return err < 0 ? err : got == mode;
}

static int64_t bind_range(struct kvmem_region *r, const struct km_policy *p)
{
	int64_t err = km_policy_bind(r->base, p);

	if (err >= 0 && r->alias && r->plan.backing == KVMEM_BACKING_HUGETLB)
		err = km_policy_bind(r->alias, p);
	return err;
}

/* What is in the kernel for the range now, as far as this library set it. */
static void rebind(struct kvmem_region *r, uint64_t offset, uint64_t bytes)
{
	struct km_policy none = { .offset = offset, .bytes = bytes, .mode = KM_MPOL_DEFAULT };
	struct km_policy part;

	bind_range(r, &none);
	for (const struct km_policy *p = r->policies; p; p = p->next) {
		if (p->emulated && r->plan.backing != KVMEM_BACKING_HUGETLB)
			continue;
		if (km_policy_part(p, offset, offset + bytes, &part))
			bind_range(r, &part);
	}
}

static int refuse_mode(uint32_t mode, const struct km_policy *p, int64_t err)
{
	if (err == -ENOSYS)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_region_set_policy: this kernel has no mbind(): CONFIG_NUMA is off");
	if (err == -EINVAL && mode > KVMEM_POLICY_PREFERRED && mode != KVMEM_POLICY_INTERLEAVE)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_region_set_policy: mbind() on this kernel does not take the policy "
			"%s",
			modes[mode].name);
	return km_fail((int)-err,
		       "kvmem_region_set_policy: mbind() with %s of offset 0x%" PRIx64
		       " + 0x%" PRIx64 ": %m%s",
		       modes[mode].name, p->offset, p->bytes, err == -EPERM ? forbidden : "");
}

static int refuse_native(const struct kvmem_region *r)
{
	if (r->plan.backing == KVMEM_BACKING_HUGETLB)
		return km_fail(
			EOPNOTSUPP,
			"kvmem_region_set_policy: hugetlb files hold no policy, only the mapping "
			"does: use a memfd, or let the library emulate it");
	return km_fail(
		EOPNOTSUPP,
		"kvmem_region_set_policy: this kernel takes mbind() on a guest_memfd and ignores "
		"it "
		"(Linux 6.19 and later honour it): use a memfd, or let the library emulate it");
}

/* mbind(), and whether it counts: 0 held by the kernel, 1 to be emulated. Undone on failure. */
static int apply(struct kvmem_region *r, struct km_policy *p, uint32_t mode, uint32_t flags)
{
	int64_t err = bind_range(r, p);
	int ret = 1;

	/* Without mbind() there is no policy in the kernel that could be taken back. */
	if (err < 0 && mode == KVMEM_POLICY_DEFAULT && (err == -ENOSYS || err == -EPERM))
		return 0;
	if (err < 0)
		return refuse_mode(mode, p, err);
	err = mode == KVMEM_POLICY_DEFAULT ? 1 : held_by_memory(r, p->offset, p->mode);
	if (err > 0)
		return 0;
	if (err < 0)
		ret = km_fail((int)-err, "kvmem_region_set_policy: reading the policy back: %m");
	else if (flags & KVMEM_POLICY_NATIVE)
		ret = refuse_native(r);
	/* Faults through a hugetlb mapping, those of vCPUs among them, do follow the mapping's. */
	if (ret < 0 || r->plan.backing != KVMEM_BACKING_HUGETLB)
		rebind(r, p->offset, p->bytes);
	return ret;
}

static int set_locked(struct kvmem_region *r, struct km_policy *want, uint32_t mode, uint32_t flags)
{
	struct km_policy *new = new_policy(want), *spare = new_policy(want);
	int ret = new &&spare ? 0 : km_fail(ENOMEM, "kvmem_region_set_policy: no memory");

	if (!ret)
		ret = too_late(r, want->offset, want->bytes, flags);
	if (!ret)
		ret = apply(r, want, mode, flags);
	if (ret < 0) {
		km_sys_free(new);
		km_sys_free(spare);
		return ret;
	}
	new->emulated = ret;
	km_policy_put(r, new, spare);
	return ret;
}

int kvmem_region_set_policy(struct kvmem_region *region, uint64_t offset, uint64_t bytes,
			    uint32_t mode, const unsigned long *nodes, unsigned long maxnode,
			    uint32_t flags)
{
	struct km_policy want = { .offset = offset, .bytes = bytes };
	struct mask m;
	int r = check_args(region, offset, bytes, mode, flags);

	if (!r)
		r = copy_mask(&m, nodes, maxnode);
	if (!r)
		r = check_mask(mode, &m);
	if (r)
		return r;
	want.mode = modes[mode].kernel;
	memcpy(want.nodes, m.w, sizeof(want.nodes));
	pthread_mutex_lock(&region->lock);
	r = set_locked(region, &want, mode, flags);
	pthread_mutex_unlock(&region->lock);
	return r;
}

/* ---- emulation by the filling threads ---- */

void km_numa_save(struct km_numa_state *s)
{
	memset(s, 0, sizeof(*s));
	if (km_sys_get_mempolicy(&s->mode, s->nodes, KM_POLICY_MAXNODE, NULL, 0) < 0)
		s->mode = KM_MPOL_DEFAULT;
}

void km_numa_leave(struct km_numa_state *s)
{
	if (s->changed)
		km_sys_set_mempolicy(s->mode, s->nodes, KM_POLICY_MAXNODE);
	s->changed = false;
}

/* The emulated policy at offset, copied; and where what is said of offset ends. */
static bool emulated_at(const struct kvmem_region *r, uint64_t offset, struct km_policy *ret,
			uint64_t *ret_end)
{
	*ret_end = r->bytes;
	for (const struct km_policy *p = r->policies; p; p = p->next) {
		if (!p->emulated || p->offset + p->bytes <= offset)
			continue;
		if (p->offset > offset) {
			*ret_end = p->offset;
			return false;
		}
		*ret = *p;
		*ret_end = p->offset + p->bytes;
		return true;
	}
	return false;
}

int km_numa_enter(struct kvmem_region *r, uint64_t offset, uint64_t *ret_end,
		  struct km_numa_state *s)
{
	struct km_policy p;
	bool found;
	int64_t err;

	pthread_mutex_lock(&r->lock);
	found = emulated_at(r, offset, &p, ret_end);
	pthread_mutex_unlock(&r->lock);
	if (!found) {
		km_numa_leave(s);
		return 0;
	}
	if (s->changed && s->now_mode == p.mode && !memcmp(s->now, p.nodes, sizeof(s->now)))
		return 0;
	err = km_sys_set_mempolicy(p.mode, p.nodes, KM_POLICY_MAXNODE);
	if (err < 0)
		return km_fail((int)-err, "set_mempolicy for offset 0x%" PRIx64 ": %m%s", offset,
			       err == -EPERM ? forbidden : "");
	s->changed = true;
	s->now_mode = p.mode;
	memcpy(s->now, p.nodes, sizeof(s->now));
	return 0;
}

/* A page of the range lies on `node`: is that outside of what its policy says? */
bool km_numa_misplaced(const struct kvmem_region *r, uint64_t offset, unsigned long node)
{
	const struct km_policy *p = km_policy_at(r, offset);

	return p && !has(p->nodes, node);
}

int km_numa_node_at(struct kvmem_region *r, uint64_t offset)
{
	const struct km_policy *p;
	int node = -1;

	pthread_mutex_lock(&r->lock);
	p = km_policy_at(r, offset);
	for (unsigned long n = 0; p && n < NODES; n++) {
		if (!has(p->nodes, n))
			continue;
		if (node >= 0) {
			node = -1;
			break;
		}
		node = (int)n;
	}
	pthread_mutex_unlock(&r->lock);
	return node;
}
