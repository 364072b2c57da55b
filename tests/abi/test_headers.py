#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""Each header compiles alone, twice included, in every language that may include it."""

import shutil
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import headers	# noqa: E402
from headers import output	# noqa: E402
from pytap import main	# noqa: E402

C = ("c99", "c11", "c17")
CXX = ("c++17", "c++20")
EXTRA = ["-Wconversion", "-Wshadow", "-Wundef", "-Wmissing-field-initializers"]
EXTRA_C = [*EXTRA, "-Wstrict-prototypes", "-Wmissing-prototypes"]


def program(name, language):
	"""Includes a header and uses its INIT macros, as a local and through an assignment."""
	lines = [f"#include <kvmem/{name}>"] * 2 + ["int use(void);", "int use(void)", "{",
						     "\tunsigned long sum = 0;"]
	for i, (macro, struct) in enumerate(headers.initialisers(name).items()):
		lines += [f"\t{struct} v{i} = {macro};", f"\tsum += v{i}.size;"]
	return "\n".join(lines + ["\treturn (int)sum;", "}", ""])


class Headers(headers.TestCase):
	def compile_all(self, compiler, standards, suffix, flags):
		if not shutil.which(compiler):
			self.skipTest(f"{compiler} is not installed")
		with tempfile.TemporaryDirectory() as tmp:
			for name in headers.EVERY:
				for std in standards:
					src = Path(tmp, name + std + suffix)
					src.write_text(program(name, suffix), encoding="ascii")
					output([compiler, f"-std={std}", *headers.WARNINGS, *flags,
						f"-I{headers.INCLUDE}", "-fsyntax-only", src])

	def test_gcc_c(self):
		self.compile_all("gcc", C, ".c", EXTRA_C)

	def test_gcc_cxx(self):
		self.compile_all("g++", CXX, ".cc", EXTRA)

	def test_clang_c(self):
		self.compile_all("clang", C, ".c", EXTRA_C)

	def test_clang_cxx(self):
		self.compile_all("clang++", CXX, ".cc", EXTRA)

	def test_kvmem_h_includes_all(self):
		included = {line.split("/")[1].rstrip(">") for line in
			    headers.raw("kvmem.h").splitlines() if line.startswith("#include")}
		self.equal_sets(included, set(headers.NAMES) - {"kvmem.h"}, ("kvmem.h", "the tree"))

	def test_every_growable_struct_has_its_initialiser(self):
		for name in headers.EVERY:
			sized = {s for s, f in headers.structs(name).items() if f[0] == "size"}
			made = {s.split()[1] for s in headers.initialisers(name).values()}
			given = {s for s in sized if f"const struct {s} *" in headers.code(name)}
			self.assertFalse(sized - made - given, f"{name}: no INIT macro")


if __name__ == "__main__":
	main()
