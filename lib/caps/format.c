// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* The capability table as text: lines for people, JSON for machines. */
#include "caps/caps_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

/* Grows past its room and only counts then, as snprintf(3) does. */
struct out {
	char *buf;
	size_t room;
	size_t len;
};

static void put(struct out *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void put(struct out *o, const char *fmt, ...)
{
	size_t at = o->len < o->room ? o->len : o->room;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(at < o->room ? o->buf + at : NULL, o->room - at, fmt, ap);
	va_end(ap);
	if (n > 0)
		o->len += (size_t)n;
}

static const char *const support_names[] = {
	[KVMEM_SUPPORT_UNKNOWN] = "unknown",
	[KVMEM_SUPPORT_NONE] = "none",
	[KVMEM_SUPPORT_FALLBACK] = "fallback",
	[KVMEM_SUPPORT_NATIVE] = "native",
};

static void put_json_string(struct out *o, const char *s)
{
	put(o, "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			put(o, "\\%c", *s);
		else if ((unsigned char)*s < 0x20)
			put(o, "\\u%04x", *s);
		else
			put(o, "%c", *s);
	}
	put(o, "\"");
}

static void put_json(struct out *o, const struct kvmem_cap_info *i, bool last)
{
	put(o,
	    "  \"%s\": {\"support\": \"%s\", \"value\": %" PRId64 ", \"errno\": %d, \"fallback\": ",
	    i->name, support_names[i->support], i->value, i->error);
	put_json_string(o, i->fallback);
	put(o, ", \"reason\": ");
	put_json_string(o, i->reason);
	put(o, last ? "}\n" : "},\n");
}

/* The other values are bits. */
static bool is_number(uint32_t id)
{
	switch (id) {
	case KVMEM_CAP_KVM:
	case KVMEM_CAP_MEMORY_SLOTS:
	case KVMEM_CAP_GUEST_MEMFD_WRITE:
	case KVMEM_CAP_NUMA_NODES:
	case KVMEM_CAP_DIRTY_RING:
	case KVMEM_CAP_DIRTY_RING_ACQ_REL:
	case KVMEM_CAP_HUGETLB_2M:
	case KVMEM_CAP_HUGETLB_1G:
		return true;
	default:
		return false;
	}
}

static void put_text(struct out *o, const struct kvmem_cap_info *i)
{
	put(o, "%-26s %-8s ", i->name, support_names[i->support]);
	if (!i->value)
		put(o, "%-12s ", "-");
	else if (is_number(i->id))
		put(o, "%-12" PRId64 " ", i->value);
	else
		put(o, "%#-12" PRIx64 " ", (uint64_t)i->value);
	put(o, "%s", i->reason);
	if (i->fallback[0])
		put(o, " [instead: %s]", i->fallback);
	put(o, "\n");
}

int kvmem_caps_format(const struct kvmem_caps *caps, uint32_t format, char *buf, size_t len)
{
	struct out o = { .buf = buf, .room = len };

	if (!caps || (!buf && len))
		return km_fail(EINVAL, "kvmem_caps_format: %s is NULL", caps ? "buf" : "caps");
	if (format > KVMEM_CAPS_JSON)
		return km_fail(EINVAL, "kvmem_caps_format: format %u is unknown", format);
	if (len)
		buf[0] = '\0';
	if (format == KVMEM_CAPS_JSON)
		put(&o, "{\n");
	for (uint32_t id = 1; id < KVMEM_CAP_COUNT_; id++) {
		struct kvmem_cap_info info = { .size = sizeof(info) };

		kvmem_caps_get(caps, id, &info);
		if (format == KVMEM_CAPS_JSON)
			put_json(&o, &info, id + 1 == KVMEM_CAP_COUNT_);
		else
			put_text(&o, &info);
	}
	if (format == KVMEM_CAPS_JSON)
		put(&o, "}\n");
	return (int)o.len;
}
