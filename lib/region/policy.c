// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
#include "region/policy.h"

#include <string.h>

#include "region/region.h"
#include "base/uapi/mm.h"

const struct km_policy *km_policy_at(const struct kvmem_region *r, uint64_t offset)
{
	for (const struct km_policy *p = r->policies; p && p->offset <= offset; p = p->next)
		if (offset < p->offset + p->bytes)
			return p;
	return NULL;
}

/* Cuts [offset, end) out of the list. *spare is used where that splits one policy in two. */
static void cut(struct kvmem_region *r, uint64_t offset, uint64_t end, struct km_policy **spare)
{
	struct km_policy **at = &r->policies;

	while (*at) {
		struct km_policy *p = *at;
		uint64_t p_end = p->offset + p->bytes;

		if (p_end <= offset || p->offset >= end) {
			at = &p->next;
		} else if (p->offset < offset && p_end > end) {
			struct km_policy *tail = *spare;

			*spare = NULL;
			*tail = *p;
			tail->offset = end;
			tail->bytes = p_end - end;
			p->bytes = offset - p->offset;
			p->next = tail;
			return;
		} else if (p->offset < offset) {
			p->bytes = offset - p->offset;
			at = &p->next;
		} else if (p_end > end) {
			p->offset = end;
			p->bytes = p_end - end;
			return;
		} else {
			*at = p->next;
			km_sys_free(p);
		}
	}
}

static bool same_policy(const struct km_policy *a, const struct km_policy *b)
{
	return a->mode == b->mode && a->emulated == b->emulated &&
	       !memcmp(a->nodes, b->nodes, sizeof(a->nodes));
}

/* Joins neighbours that say the same. */
static void merge(struct kvmem_region *r)
{
	for (struct km_policy *p = r->policies; p && p->next;) {
		struct km_policy *q = p->next;

		if (p->offset + p->bytes == q->offset && same_policy(p, q)) {
			p->bytes += q->bytes;
			p->next = q->next;
			km_sys_free(q);
		} else {
			p = q;
		}
	}
}

void km_policy_put(struct kvmem_region *r, struct km_policy *new, struct km_policy *spare)
{
	struct km_policy **at = &r->policies;

	cut(r, new->offset, new->offset + new->bytes, &spare);
	km_sys_free(spare);
	if (new->mode == KM_MPOL_DEFAULT) {
		km_sys_free(new);
		return;
	}
	while (*at && (*at)->offset < new->offset)
		at = &(*at)->next;
	new->next = *at;
	*at = new;
	merge(r);
}

void km_policies_free(struct kvmem_region *r)
{
	while (r->policies) {
		struct km_policy *p = r->policies;

		r->policies = p->next;
		km_sys_free(p);
	}
}

bool km_policy_part(const struct km_policy *p, uint64_t offset, uint64_t end,
		    struct km_policy *ret_part)
{
	uint64_t p_end = p->offset + p->bytes;

	if (p_end <= offset || p->offset >= end)
		return false;
	*ret_part = *p;
	ret_part->offset = p->offset > offset ? p->offset : offset;
	ret_part->bytes = km_min(p_end, end) - ret_part->offset;
	return true;
}

int64_t km_policy_bind(uint8_t *base, const struct km_policy *p)
{
	bool none = p->mode == KM_MPOL_DEFAULT;

	return km_sys_mbind(base + p->offset, p->bytes, p->mode, none ? NULL : p->nodes,
			    none ? 0 : KM_POLICY_MAXNODE, 0);
}

int64_t km_policy_bind_alias(struct kvmem_region *r)
{
	int64_t err = 0;

	for (const struct km_policy *p = r->policies; p && err >= 0; p = p->next)
		if (r->plan.backing == KVMEM_BACKING_HUGETLB)
			err = km_policy_bind(r->alias, p);
	return err;
}
