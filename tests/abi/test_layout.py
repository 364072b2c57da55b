#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Sizes, offsets and values that programs are compiled with are those on record.

    test_layout.py --record    writes the record anew; a released one may only grow"""

import platform
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import headers	# noqa: E402
from headers import CC, output	# noqa: E402
from pytap import main	# noqa: E402

MACHINE = platform.machine()
RECORD = Path(__file__).resolve().parent / f"layout.{MACHINE}"
VERSION = "KVMEM_VERSION_"
FIXED = ("kvmem_run", "kvmem_remote_mapping", "kvmem_stored", "kvmem_workset_range", "kvmem_attachment", "kvmem_range", "kvmem_trace_entry",
	"kvmem_source_request", "kvmem_image_id", "kvmem_capture_run")  # elements of arrays, and what the library alone makes: their pages say that they never grow


def generate():
	lines = ["#include <kvmem/kvmem.h>", *(f"#include <kvmem/{n}>" for n in headers.OTHERS),
		 "#include <stdio.h>", "int main(void)", "{"]
	for name in headers.EVERY:
		for struct, fields in headers.structs(name).items():
			lines.append(f'\tprintf("struct {struct} %zu\\n", sizeof(struct {struct}));')
			lines += [f'\tprintf("\\t{f} %zu %zu\\n", offsetof(struct {struct}, {f}), '
				  f"sizeof(((struct {struct} *)0)->{f}));" for f in fields]
	for name in headers.EVERY:
		for c in headers.enumerators(name) + headers.constants(name):
			if not c.startswith(VERSION):
				lines.append(f'\tprintf("{c} %lld\\n", (long long){c});')
	return "\n".join(lines + ["\treturn 0;", "}", ""])


def layout():
	with tempfile.TemporaryDirectory() as tmp:
		src, exe = Path(tmp, "layout.c"), Path(tmp, "layout")
		src.write_text(generate(), encoding="ascii")
		output([*CC, "-Wall", "-Werror", f"-I{headers.INCLUDE}", src, "-o", exe])
		return output([exe])


class Layout(headers.TestCase):
	def test_is_the_one_on_record(self):
		if not RECORD.exists():
			self.skipTest(f"no layout is on record for {MACHINE}")
		self.assertEqual(RECORD.read_text(encoding="ascii"), layout(),
				 f"{RECORD.name} says otherwise: an incompatible change, or, where "
				 "something was added, make the record anew with --record")

	def test_growable_structs_begin_with_size(self):
		for line, after in zip(layout().splitlines(), layout().splitlines()[1:]):
			name = line.split()[1] if line.startswith("struct ") else ""
			if name not in ("", *FIXED):
				self.assertEqual(after.strip(), "size 0 4", name)

	def test_no_struct_ends_in_padding(self):
		"""Bytes that nobody set would be taken for fields of a newer header."""
		size, last, name = 0, 0, ""
		for line in layout().splitlines() + ["struct end 0"]:
			if line.startswith("struct "):
				self.assertEqual(last, size, name)
				_, name, size = line.split()
				size, last = int(size), 0
			elif line.startswith("\t"):
				_, offset, length = line.split()
				last = int(offset) + int(length)


if __name__ == "__main__":
	if sys.argv[1:] == ["--record"]:
		RECORD.write_text(layout(), encoding="ascii")
	else:
		main()
