// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What each page must contain, and who may change it now. */
#include "torture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- random numbers ---- */

struct rng rng_of(uint64_t seed, uint64_t stream)
{
	struct rng rng = { guest_pattern(seed + 1, stream) | 1 };

	guest_random(&rng.state);
	return rng;
}

uint64_t below(struct rng *rng, uint64_t n)
{
	return guest_below(&rng->state, n);
}

uint64_t between(struct rng *rng, uint64_t from, uint64_t to)
{
	return from + below(rng, to - from + 1);
}

bool one_in(struct rng *rng, uint64_t n)
{
	return !below(rng, n);
}

/* ---- claims ---- */

void area_model_open(struct area *area)
{
	pthread_mutex_init(&area->lock, NULL);
	pthread_mutex_init(&area->policy_lock, NULL);
	pthread_cond_init(&area->changed, NULL);
	area->claims = calloc(area->pages, sizeof(*area->claims));
	area->page = calloc(area->pages, sizeof(*area->page));
	if (!area->claims || !area->page)
		fail(NULL, -1, "no memory for the model");
}

void area_model_close(struct area *area)
{
	pthread_cond_destroy(&area->changed);
	pthread_mutex_destroy(&area->policy_lock);
	pthread_mutex_destroy(&area->lock);
	free(area->claims);
	free(area->page);
}

static struct piece *piece_of(struct area *area, uint32_t page)
{
	for (unsigned int i = 0; i < MAX_PIECES; i++) {
		struct piece *piece = &area->piece[i];

		if (piece->first <= page && page < piece->first + piece->count)
			return piece;
	}
	return NULL;
}

static bool is_free(const struct area *area, uint32_t page, enum claim how)
{
	return how == CLAIM_SHARED ? area->claims[page] >= 0 : !area->claims[page];
}

/* How far from `first` on the pages can be claimed, with the lock held. */
static uint32_t free_run(struct area *area, uint32_t first, enum claim how, unsigned int flags,
			 uint32_t most)
{
	struct piece *home = piece_of(area, first);
	uint32_t n = 0;

	if (flags & CLAIM_ATTACHED && (!home || !home->attached))
		return 0;
	while (n < most && first + n < area->pages && is_free(area, first + n, how)) {
		struct piece *piece = piece_of(area, first + n);

		if ((piece && piece->closing) || (flags & CLAIM_ATTACHED && piece != home))
			break;
		n++;
	}
	return flags & CLAIM_UNITS ? n / area->unit * area->unit : n;
}

bool claim(struct area *area, struct rng *rng, enum claim how, unsigned int flags, uint32_t most,
	   struct span *ret_span)
{
	uint32_t unit = flags & CLAIM_UNITS ? area->unit : 1, n = 0, first = 0;

	if (most < unit)
		most = unit;
	pthread_mutex_lock(&area->lock);
	for (unsigned int tries = 0; tries < 8 && !n; tries++) {
		first = (uint32_t)below(rng, area->pages / unit) * unit;
		n = free_run(area, first, how, flags, most);
	}
	for (uint32_t i = first; i < first + n; i++)
		area->claims[i] = how == CLAIM_SHARED ? (int16_t)(area->claims[i] + 1)
						      : (int16_t)-1;
	*ret_span = (struct span){ area, first, n, how, 0 };
	if (n && flags & CLAIM_ATTACHED)
		ret_span->gpa = piece_of(area, first)->gpa + (uint64_t)first * PAGE;
	pthread_mutex_unlock(&area->lock);
	return n;
}

bool use_piece(struct area *area, struct rng *rng, struct span *ret_span)
{
	struct piece *piece = &area->piece[below(rng, MAX_PIECES)];
	bool ok;

	pthread_mutex_lock(&area->lock);
	ok = piece->count && piece->attached && !piece->closing;
	if (ok) {
		piece->users++;
		*ret_span = (struct span){ area, piece->first, piece->count, CLAIM_SHARED,
					   piece->gpa + (uint64_t)piece->first * PAGE };
	}
	pthread_mutex_unlock(&area->lock);
	return ok;
}

void unuse_piece(const struct span *span)
{
	struct area *area = span->area;

	pthread_mutex_lock(&area->lock);
	piece_of(area, span->first)->users--;
	pthread_cond_broadcast(&area->changed);
	pthread_mutex_unlock(&area->lock);
}

void unclaim(const struct span *span)
{
	struct area *area = span->area;

	pthread_mutex_lock(&area->lock);
	for (uint32_t i = span->first; i < span->first + span->count; i++)
		area->claims[i] = span->how == CLAIM_SHARED ? (int16_t)(area->claims[i] - 1) : 0;
	pthread_cond_broadcast(&area->changed);
	pthread_mutex_unlock(&area->lock);
}

static bool nobodys(const struct area *area, const struct piece *piece)
{
	if (piece->users)
		return false;
	for (uint32_t i = piece->first; i < piece->first + piece->count; i++)
		if (area->claims[i])
			return false;
	return true;
}

bool claim_piece(struct area *area, unsigned int index, struct span *ret_span)
{
	struct piece *piece = &area->piece[index];

	pthread_mutex_lock(&area->lock);
	if (!piece->count || piece->closing) {
		pthread_mutex_unlock(&area->lock);
		return false;
	}
	piece->closing = true;
	while (!nobodys(area, piece))
		pthread_cond_wait(&area->changed, &area->lock);
	for (uint32_t i = piece->first; i < piece->first + piece->count; i++)
		area->claims[i] = -1;
	*ret_span = (struct span){ area, piece->first, piece->count, CLAIM_EXCLUSIVE,
				   piece->gpa + (uint64_t)piece->first * PAGE };
	pthread_mutex_unlock(&area->lock);
	return true;
}

void unclaim_piece(struct area *area, unsigned int index)
{
	struct piece *piece = &area->piece[index];

	pthread_mutex_lock(&area->lock);
	for (uint32_t i = piece->first; i < piece->first + piece->count; i++)
		area->claims[i] = 0;
	piece->closing = false;
	pthread_cond_broadcast(&area->changed);
	pthread_mutex_unlock(&area->lock);
}

/* ---- content ---- */

uint64_t source_offset_of(const struct area *area, uint32_t page)
{
	return area->source_offset + (uint64_t)page * PAGE;
}

static void expected_of(const struct area *area, uint32_t page, const struct page *p,
			enum base base, void *to)
{
	unsigned char *bytes = to;

	if (base == BASE_SOURCE)
		source_content(area->sources[p->generation], source_offset_of(area, page), to,
			       PAGE);
	else
		memset(to, 0, PAGE);
	for (uint32_t at = 0; p->seed && at < PAGE; at += STAMP_STRIDE) {
		uint64_t word = guest_pattern(p->seed, p->gpa + at);

		memcpy(bytes + at, &word, sizeof(word));
	}
}

void expected_page(const struct area *area, uint32_t page, enum base base, void *to)
{
	expected_of(area, page, &area->page[page], base, to);
}

uint32_t pages_of(const struct area *area)
{
	return (uint32_t)(kvmem_region_bytes(area->region) / PAGE);
}

bool grown_matches(uint32_t page, const void *content)
{
	unsigned char expected[PAGE] = { 0 };
	uint64_t word = page;

	memcpy(expected + GROWN_WORD(page), &word, sizeof(word));
	return !memcmp(expected, content, PAGE);
}

bool page_was(const struct area *area, uint32_t page, const struct page *then, const void *content)
{
	unsigned char expected[PAGE];

	expected_of(area, page, then, then->base == BASE_SOURCE ? BASE_SOURCE : BASE_ZERO,
		    expected);
	if (!memcmp(expected, content, PAGE))
		return true;
	if (then->base != BASE_EITHER)
		return false;
	expected_of(area, page, then, BASE_SOURCE, expected);
	return !memcmp(expected, content, PAGE);
}

static bool matches(struct area *area, uint32_t page, enum base base, const void *content)
{
	unsigned char expected[PAGE];

	expected_page(area, page, base, expected);
	return !memcmp(expected, content, PAGE);
}

bool page_matches(struct area *area, uint32_t page, const void *content)
{
	struct page *p = &area->page[page];
	bool zero;

	if (p->base != BASE_EITHER)
		return matches(area, page, p->base, content);
	zero = matches(area, page, BASE_ZERO, content);
	if (!matches(area, page, BASE_SOURCE, content)) {
		p->base = BASE_ZERO;
		return zero;
	}
	if (!zero) /* else it is both: nothing is learnt */
		p->base = BASE_SOURCE;
	return true;
}

static bool all_zero(const unsigned char *content)
{
	return !content[0] && !memcmp(content, content + 1, PAGE - 1);
}

void fail_content(struct area *area, uint32_t page, const void *content, const char *who)
{
	fail_content_then(area, page, &area->page[page], content, who);
}

void fail_content_then(struct area *area, uint32_t page, const struct page *then,
		       const void *content, const char *who)
{
	static const char *const bases[] = { "zeros", "its source", "zeros or its source" };
	const unsigned char *got = content;
	unsigned char want[PAGE], source[PAGE];
	enum base base = then->base;
	const char *like = "something else";
	uint32_t at = 0, differs = 0;

	expected_of(area, page, then, base == BASE_EITHER ? BASE_SOURCE : base, want);
	source_content(area->sources[then->generation], source_offset_of(area, page), source, PAGE);
	if (all_zero(got))
		like = "zeros";
	else if (!memcmp(got, source, PAGE))
		like = "its source alone";
	while (at < PAGE && got[at] == want[at])
		at++;
	for (uint32_t i = 0; i < PAGE; i++)
		differs += got[i] != want[i];
	fail(area, page,
	     "%s: area %d page %u: must be %s%s, is %s: %u bytes differ, the first at %u (%02x, must be %02x)",
	     who, area->index, page, bases[base], then->seed ? " and what was written" : "", like,
	     differs, at, got[at % PAGE], want[at % PAGE]);
}

/* ---- access from the host ---- */

/* By system calls, which say EFAULT where an access would be SIGBUS; not through any sanitizer's wrapper. */
uint32_t read_pages(const struct area *area, uint32_t first, uint32_t count_, void *to)
{
	uint32_t done = 0;

	while (done < count_) {
		struct iovec local = { (unsigned char *)to + (size_t)done * PAGE,
				       (size_t)(count_ - done) * PAGE };
		struct iovec remote = { area->memory + (size_t)(first + done) * PAGE,
					local.iov_len };
		long n = syscall(SYS_process_vm_readv, getpid(), &local, 1ul, &remote, 1ul, 0ul);

		if (n < (long)PAGE)
			break;
		done += (uint32_t)(n / PAGE);
	}
	return done;
}

uint32_t write_stamps(const struct area *area, uint32_t first, uint32_t count_, uint64_t seed)
{
	uint64_t words[PAGE / STAMP_STRIDE];
	struct iovec local[PAGE / STAMP_STRIDE], remote[PAGE / STAMP_STRIDE];

	for (uint32_t page = first; page < first + count_; page++) {
		for (uint32_t i = 0; i < PAGE / STAMP_STRIDE; i++) {
			uint64_t at = (uint64_t)page * PAGE + i * STAMP_STRIDE;

			words[i] = guest_pattern(seed, at);
			local[i] = (struct iovec){ &words[i], 8 };
			remote[i] = (struct iovec){ area->memory + at, 8 };
		}
		if (syscall(SYS_process_vm_writev, getpid(), local, PAGE / STAMP_STRIDE + 0ul,
			    remote, PAGE / STAMP_STRIDE + 0ul, 0ul) != PAGE / STAMP_STRIDE * 8)
			return page - first;
	}
	return count_;
}

/* A checker of races does not see that the writer waits for who saves the page before. */
__attribute__((no_sanitize("thread"))) void store_stamps(const struct area *area, uint32_t first,
							 uint32_t count_, uint64_t seed)
{
	for (uint64_t at = (uint64_t)first * PAGE; at < ((uint64_t)first + count_) * PAGE;
	     at += STAMP_STRIDE)
		*(volatile uint64_t *)(void *)(area->memory + at) = guest_pattern(seed, at);
}

void check_pages(struct area *area, uint32_t first, uint32_t count_, const char *who)
{
	static _Thread_local unsigned char content[16 * PAGE];

	while (count_) {
		uint32_t most = count_ < 16 ? count_ : 16,
			 n = read_pages(area, first, most, content);

		for (uint32_t i = 0; i < n; i++) {
			if (!page_matches(area, first + i, content + (size_t)i * PAGE))
				fail_content(area, first + i, content + (size_t)i * PAGE, who);
			area->page[first + i].exists = 1;
		}
		count(COUNT_HOST_PAGES, n);
		first += n;
		count_ -= n;
		if (n < most) {
			if (!area->page[first].bad)
				fail(area, first, "%s: area %d page %u cannot be read: %s", who,
				     area->index, first, strerror(errno));
			first++;
			count_--;
		}
	}
}

void model_written(const struct span *span, uint64_t seed, uint64_t gpa)
{
	for (uint32_t i = 0; i < span->count; i++) {
		struct page *p = &span->area->page[span->first + i];

		p->seed = seed;
		p->gpa = gpa + (uint64_t)i * PAGE;
		p->exists = 1;
	}
}

void model_zeroed(const struct span *span)
{
	for (uint32_t i = 0; i < span->count; i++) {
		struct page *p = &span->area->page[span->first + i];

		p->seed = 0;
		p->base = BASE_ZERO;
		p->exists = 0;
	}
}
