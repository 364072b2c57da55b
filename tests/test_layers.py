#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""tests/layers is green for a small library in layers, and red for each arrow that is added to it."""

import os
import shlex
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from pytap import main	# noqa: E402

LIBRARY = {
	"base/base.h": "int base(void);\n",
	"base/uapi/mm.h": "#define X 1\n",
	"base/base.c": '#include "base/base.h"\n#include "base/uapi/mm.h"\nint base(void) { return X; }\n',
	"vm/vm.h": '#include "base/base.h"\nextern int (*vm_hook)(void);\nint vm(void);\nint vm_end(void);\n',
	"vm/vm_internal.h": "int vm_end(void);\n",
	"vm/vm.c": '#include "vm/vm.h"\nint (*vm_hook)(void);\n'
		   "int vm(void) { return (vm_hook ? vm_hook() : 0) + base() + vm_end(); }\n",
	"vm/end.c": '#include "vm_internal.h"\nint vm_end(void) { return 3; }\n',
	"fill/fill.h": "int fill(void);\n",
	"fill/fill.c": '#include "base/uapi/mm.h"\n#include "fill/fill.h"\n#include "vm/vm.h"\n'
		       "static int back(void) { return X; }\n"
		       "int fill(void) { vm_hook = back; return vm(); }\n",
}


class Layers(unittest.TestCase):
	def setUp(self):
		tmp = tempfile.TemporaryDirectory()
		self.addCleanup(tmp.cleanup)
		self.top = Path(tmp.name)
		self.files = dict(LIBRARY)

	def run_layers(self):
		cc, objects = shlex.split(os.environ.get("CC", "cc")), []
		for name, text in self.files.items():
			path = self.top / "lib" / name
			path.parent.mkdir(parents=True, exist_ok=True)
			path.write_text(text, encoding="utf-8")
		(self.top / "build/lib").mkdir(parents=True)
		for name in self.files:
			if name.endswith(".c"):
				objects.append(self.top / "build" / (name.replace("/", "_") + ".o"))
				subprocess.run([*cc, "-w", "-c", f"-I{self.top}/lib", "-o", objects[-1],
						self.top / "lib" / name], check=True)
		subprocess.run(["ar", "rcs", self.top / "build/lib/libkvmem.a", *objects], check=True)
		done = subprocess.run([sys.executable, HERE / "layers", "--lib", self.top / "lib",
				       self.top / "build"], stdout=subprocess.PIPE, text=True, check=False)
		return done.returncode, done.stdout.splitlines()[:-1]

	def expect(self, *words):
		status, lines = self.run_layers()
		self.assertEqual(len(lines), len(words), lines)
		for line, word in zip(lines, words):
			self.assertIn(word, line)
		self.assertEqual(status, 1 if words else 0)

	def add(self, name, line):
		self.files[name] = line + "\n" + self.files[name]

	def test_green(self):
		self.expect()

	def test_include_to_the_right(self):
		self.add("vm/end.c", '#include "fill/fill.h"')
		self.expect("vm/end.c:1: includes fill/fill.h: fill is to the right of vm")

	def test_include_of_what_is_internal(self):
		self.add("fill/fill.c", '#include "vm/vm_internal.h"')
		self.expect("fill/fill.c:1: includes vm/vm_internal.h: others may use vm/vm.h only")

	def test_include_through_the_folder_above(self):
		self.add("vm/end.c", '#include "../fill/fill.h"')
		self.expect("vm/end.c:1: includes fill/fill.h")

	def test_symbol_to_the_right(self):
		self.add("base/base.c", "int fill(void); int up(void) { return fill(); }")
		status, lines = self.run_layers()
		self.assertEqual(status, 1)
		self.assertIn("base/base.c: uses fill of fill/fill.c: fill is to the right of base", lines)
		self.assertTrue(any(l.startswith("circle: ") for l in lines), lines)

	def test_circle_within_a_part(self):
		self.add("vm/end.c", "int vm(void); int again(void) { return vm(); }")
		self.expect("circle: vm/end.c -> vm/vm.c (vm); vm/vm.c -> vm/end.c (vm_end)")

	def test_data_counts_as_well(self):
		self.add("vm/end.c", "extern int (*vm_hook)(void); int see(void) { return !!vm_hook; }")
		self.expect("circle: vm/end.c -> vm/vm.c (vm_hook)")

	def test_circle_of_headers(self):
		self.add("base/uapi/mm.h", '#pragma once\n#include "base/base.h"')
		self.add("base/base.h", '#pragma once\n#include "base/uapi/mm.h"')
		self.expect("circle of includes: base/base.h, base/uapi/mm.h")

	def test_file_in_no_part(self):
		self.files["other.c"] = "int other;\n"
		self.expect("other.c: in no part")


if __name__ == "__main__":
	main()
