// SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
/* What all commands print. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tool.h"

#define BAR 30u /* characters */

static unsigned int shown; /* characters of the progress line that there are */

/* Bytes of the UTF-8 character that text begins with; 0: it begins with none. */
static unsigned int utf8(const unsigned char *text, uint32_t *ret)
{
	unsigned int n = text[0] < 0x80 ? 1 : text[0] < 0xe0 ? 2 : text[0] < 0xf0 ? 3 : 4;
	uint32_t c = n == 1 ? text[0] : text[0] & (0xffu >> (n + 1));
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };

	if (text[0] >= 0x80 && (text[0] < 0xc2 || text[0] > 0xf4))
		return 0;
	for (unsigned int i = 1; i < n; i++) {
		if ((text[i] & 0xc0) != 0x80) /* also at the end */
			return 0;
		c = c << 6 | (text[i] & 0x3f);
	}
	*ret = c;
	return c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : n;
}

/* What moves a terminal's cursor, switches its modes, or turns the direction of the text around it. */
static bool is_control(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x061c || c == 0x200e || c == 0x200f ||
	       (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

void print_text(FILE *to, const char *text)
{
	const unsigned char *t = (const unsigned char *)text;

	for (uint32_t n, c = 0; *t; t += n) {
		n = utf8(t, &c);
		if (*t == '\\')
			fputs("\\\\", to);
		else if (n && !is_control(c))
			fwrite(t, 1, n, to);
		else
			for (uint32_t i = 0; i < (n ? n : 1); i++)
				fprintf(to, "\\x%02x", t[i]);
		n = n ? n : 1;
	}
}

int complain(const char *format, ...)
{
	char text[8192];
	va_list ap;

	progress_end();
	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	fputs("kvmem-image: ", stderr);
	print_text(stderr, text);
	fputc('\n', stderr);
	return 1;
}

int failed(void)
{
	return complain("%s", kvmem_error_detail());
}

void progress_end(void)
{
	if (shown)
		fprintf(stderr, "\r%*s\r", (int)shown, "");
	shown = 0;
}

void progress(const char *what, uint64_t done, uint64_t total)
{
	static const char full[] = "##############################";
	static const char none[] = "..............................";
	static unsigned int last;
	unsigned int percent, bar;
	int n;

	_Static_assert(sizeof(full) == BAR + 1 && sizeof(none) == BAR + 1, "as long as the bar");
	if (options.quiet)
		return;
	if (done >= total) {
		progress_end();
		return;
	}
	percent = (unsigned int)((double)done * 100 / (double)total);
	if (shown && percent == last)
		return;
	last = percent;
	bar = percent * BAR / 100;
	n = fprintf(stderr, "\r%s [%.*s%.*s] %2u %%", what, (int)bar, full, (int)(BAR - bar), none,
		    percent);
	shown = n > 1 ? (unsigned int)n - 1 : 0;
	fflush(stderr);
}

void print_json(const char *text)
{
	const unsigned char *t = (const unsigned char *)text;

	putchar('"');
	for (uint32_t n, c = 0; *t; t += n ? n : 1) {
		n = utf8(t, &c);
		if (*t == '"' || *t == '\\')
			printf("\\%c", *t);
		else if (n && is_control(c))
			printf("\\u%04x", c);
		else if (n)
			fwrite(t, 1, n, stdout);
		else
			fputs("\\ufffd", stdout);
	}
	putchar('"');
}
