#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
"""kvmem-image(1), as it is used."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytap import main	# noqa: E402

TOP = Path(__file__).resolve().parents[2]
TOOL = os.environ["KVMEM_TOOL"]
PAGE = 4096
PAGES = 700


class Tool(unittest.TestCase):
	def setUp(self):
		self.dir = Path(tempfile.mkdtemp())
		self.addCleanup(shutil.rmtree, self.dir)
		self.random = random.Random(self.id())

	def run_tool(self, *args, status=0):
		done = subprocess.run([TOOL, *args], cwd=self.dir, capture_output=True, text=True, check=False)
		self.assertEqual(done.returncode, status, done.stderr)
		if status == 1 and args[0] != "diff":
			self.assertRegex(done.stderr, r"^kvmem-image: .+\n$")
			self.assertEqual(len(done.stderr.splitlines()), 1)
		return done.stdout + done.stderr

	def info(self, name):
		return json.loads(self.run_tool("info", "--json", name))

	def pages(self, *numbers):
		"""A raw sparse file's pages: {number: bytes}"""
		return {n: self.random.randbytes(PAGE) for n in numbers}

	def write(self, name, pages):
		with open(self.dir / name, "wb") as f:
			f.truncate(PAGES * PAGE)
			for n, content in pages.items():
				f.seek(n * PAGE)
				f.write(content)

	def content(self, *layers):
		out = bytearray(PAGES * PAGE)
		for pages in layers:
			for n, content in pages.items():
				out[n * PAGE:(n + 1) * PAGE] = content
		return bytes(out)

	def check(self, name, want):
		self.run_tool("verify", f"{name}.kvmem")
		self.run_tool("extract", f"{name}.kvmem", f"{name}.out")
		self.assertEqual((self.dir / f"{name}.out").read_bytes(), want, name)

	def test_a_raw_file_and_back(self):
		pages = self.pages(0, 3, 4, 600, PAGES - 1)
		self.write("raw", pages)
		self.assertEqual(self.run_tool("create", "raw", "a"), "")
		i = self.info("a.kvmem")
		self.assertEqual((i["bytes"], i["data"], i["parents"], i["depth"], i["parent"]),
				 (PAGES * PAGE, 5 * PAGE, 0, 0, None))
		self.assertRegex(i["id"], "^[0-9a-f]{32}$")
		self.check("a", self.content(pages))
		out = self.dir / "a.out"
		self.assertLess(out.stat().st_blocks * 512, 40 * PAGE)	# sparse
		self.assertEqual(out.stat().st_mode & 0o777, 0o600)
		self.assertIn(f"{5 * PAGE} stored here", self.run_tool("info", "a.kvmem"))

	def test_a_difference_by_content(self):
		old = self.pages(1, 2, 3, 500)
		new = {**old, **self.pages(2, 700 - 5)}
		new[3] = bytes(PAGE)
		self.write("old", old)
		self.write("new", new)
		self.run_tool("create", "old", "a")
		self.run_tool("create", "--parent", "a.kvmem", "new", "b")
		i = self.info("b.kvmem")
		self.assertEqual((i["data"], i["parents"], i["depth"]), (2 * PAGE, 2 * PAGE, 1))
		self.assertEqual(i["parent"], self.info("a.kvmem")["id"])
		self.check("b", self.content(new))
		runs = json.loads(self.run_tool("diff", "--json", "a.kvmem", "b.kvmem", status=1))
		self.assertEqual(runs, [{"offset": 2 * PAGE, "bytes": 2 * PAGE},
					{"offset": 695 * PAGE, "bytes": PAGE}])
		self.assertEqual(self.run_tool("diff", "a.kvmem", "b.kvmem", status=1),
				 "0x2000 0x2000\n0x2b7000 0x1000\n")
		self.assertEqual(self.run_tool("diff", "a.kvmem", "a.kvmem"), "")

	def test_a_difference_by_holes(self):
		old, new = self.pages(1, 2, 3), self.pages(2, 9)
		new[3] = bytes(PAGE)	# written zeros are zeros
		self.write("old", old)
		self.write("new", new)
		self.run_tool("create", "old", "a")
		self.run_tool("create", "--parent", "a.kvmem", "--diff", "new", "b")
		self.check("b", self.content(old, new))
		self.run_tool("create", "--parent", "a.kvmem", "new", "c")
		self.check("c", self.content(new))

	def test_flatten(self):
		layers = [self.pages(*self.random.sample(range(PAGES), 20)) for _ in range(4)]
		for n, pages in enumerate(layers):
			self.write("raw", pages)
			more = ["--parent", f"i{n - 1}.kvmem", "--diff"] if n else []
			self.run_tool("create", "--no-sync", *more, "raw", f"i{n}")
		self.run_tool("flatten", "i3.kvmem", "alone")
		self.assertEqual(self.info("alone.kvmem")["depth"], 0)
		for n in range(4):
			(self.dir / f"i{n}").unlink()
		self.check("alone", self.content(*layers))

	def test_nothing_is_written_over(self):
		self.write("raw", self.pages(1))
		self.write("a", self.pages(2))
		before = (self.dir / "a").read_bytes()
		self.run_tool("create", "raw", "a", status=1)
		self.run_tool("create", "raw", "b")
		self.run_tool("extract", "b.kvmem", "a", status=1)
		self.assertEqual((self.dir / "a").read_bytes(), before)
		self.run_tool("create", "raw", "b", status=1)
		self.run_tool("create", "--replace", "a", "b")
		self.check("b", before)

	def test_damage_is_told(self):
		self.write("raw", self.pages(5, 6))
		self.run_tool("create", "raw", "a")
		with open(self.dir / "a", "r+b") as f:
			f.seek(6 * PAGE + 77)
			f.write(b"?")
		self.assertIn("0x6000", self.run_tool("verify", "a.kvmem", status=1))
		self.run_tool("extract", "a.kvmem", "out", status=1)
		self.assertFalse((self.dir / "out").exists())
		self.run_tool("flatten", "a.kvmem", "b", status=1)
		self.assertEqual(sorted(p.name for p in self.dir.iterdir()), ["a", "a.kvmem", "raw"])
		self.run_tool("verify", "raw", status=1)
		self.run_tool("info", "none", status=1)

	def test_wrong_arguments(self):
		for args in ([], ["nothing"], ["info"], ["diff", "a"], ["create", "--diff", "a", "b"],
			     ["info", "--replace", "a"], ["verify", "--nonsense", "a"]):
			self.assertIn("usage:", self.run_tool(*args, status=2), args)

	def test_manual_and_help_agree(self):
		page = (TOP / "docs/man/kvmem-image.1.rst").read_text(encoding="utf-8")
		told = set(re.findall(r"^``(--[\w-]+)``", page, re.M)) | {"--version"}
		text = self.run_tool("--help")
		self.assertEqual(told - {"--help", "--version"}, set(re.findall(r"(?<!\[)(--[\w-]+)  ", text)))
		for command in ("info", "verify", "diff", "create", "flatten", "extract"):
			self.assertIn(f"kvmem-image {command} ", text)
			self.assertIn(f"\n``{command}``\n", page)
		self.assertRegex(self.run_tool("--version"), r"^kvmem-image \d+\.\d+\.\d+\n$")


if __name__ == "__main__":
	main()
